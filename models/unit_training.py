"""How the causal unit learns: its graph and mechanisms from observational and interventional rows.

The graph is learnt as in DCDI (Brouillard et al., NeurIPS 2020): a gate for each ordered pair, drawn anew for each
row by Gumbel-sigmoid (Jang, Gu & Poole, ICLR 2017), the likelihood of every equation on the rows where nobody held
its node, a price for each expected edge, and DAGMA's log-determinant against cycles (Bello, Aragam & Ravikumar,
NeurIPS 2022). The threshold comes last, and then the mechanisms are fitted to the graph that it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causaldao.errors import DataError, MisuseError
from causaldao.models.unit import CausalUnitNetwork, acyclicity, finite, positive

_STRUCTURE = 0.7  # share of the steps in which the graph is learnt
_SPARSITY, _ACYCLICITY = 0.2, 10.0
_TEMPERATURES = 1.0, 0.3
_PAIRS = 96  # rows of each side in the counterfactual loss, which compares all pairs
_SMALLEST = 1e-8  # residual variance, in units of the node's own: below it the likelihood has no bound


@dataclass(frozen=True, eq=False)
class Experiments:
    """Interventional rows (m, d), which of their nodes were held (m, d) bool, and their outcomes (m, output_dim)."""

    rows: Tensor
    held: Tensor
    outcome: Tensor | None = None


class CausalUnitTrainer:
    """Fits a `CausalUnitNetwork` to observational and interventional rows, by one loss with a weight for each part.

    fit: Σ_j ½ log of the residual variance of node j, over the rows that did not hold it (`cut`: off, held nodes are
    taken for natural ones); structure: edges and cycles, while the graph is open; counterfactual: the energy distance
    (Székely & Rizzo, 2013) between structural counterfactuals of observational rows, by abduction, action and
    prediction, and the rows that were seen under the same interventions. It is zero iff the two have one distribution,
    needs no counterfactual that nobody could observe, and acts once the graph is settled; outcome: mean squared error.

    schedule(progress in [0, 1]) is the share of interventional rows in a batch; by default intervention_prob always.
    While the graph is open, an expected edge costs ``sparsity`` nats a row and DAGMA's h grows to ``acyclicity`` d² h,
    both times structure_weight; the gates cool from the first of ``temperatures`` to the second.

    Raises:
        MisuseError: a probability outside [0, 1], a negative weight, a temperature or rate that is not positive, fewer
            than one step, or no experiments to draw.
        DataError: rows, masks or outcomes of the wrong shape or not finite, or a constant column.
    """

    def __init__(
        self,
        model: CausalUnitNetwork,
        intervention_prob: float = 0.3,
        counterfactual_weight: float = 1.0,
        structure_weight: float = 0.1,
        *,
        schedule: Callable[[float], float] | None = None,
        cut: bool = True,
        sparsity: float = _SPARSITY,
        acyclicity: float = _ACYCLICITY,
        temperatures: tuple[float, float] = _TEMPERATURES,
        rate: float = 0.02,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 <= intervention_prob <= 1:
            raise MisuseError(f"intervention_prob={intervention_prob}: expected a share in [0, 1].")
        weights = {
            "counterfactual_weight": counterfactual_weight, "structure_weight": structure_weight,
            "sparsity": sparsity, "acyclicity": acyclicity,
        }  # fmt: skip
        for name, weight in weights.items():
            if not (weight >= 0 and math.isfinite(weight)):
                raise MisuseError(f"{name}={weight}: expected a finite number of at least 0.")
        self.model, self.cut, self.rate, self.generator = model, cut, positive("rate", rate), generator
        self.intervention_prob = intervention_prob
        self.counterfactual_weight, self.structure_weight = counterfactual_weight, structure_weight
        self.sparsity, self.acyclicity = sparsity, acyclicity
        self.temperatures = tuple(positive("temperatures", one) for one in temperatures)
        self.schedule = schedule or (lambda _: intervention_prob)

    def train(
        self,
        x: Tensor,
        y: Tensor | None = None,
        experiments: Experiments | None = None,
        *,
        steps: int = 1000,
        batch: int = 256,
    ) -> list[dict[str, float]]:
        """Train on x (n, d) and y (n, output_dim), and settle the graph; the parts of the loss at every step.

        Without y the head stays as it is.
        """
        if min(steps, batch) < 1:
            raise MisuseError(f"steps={steps}, batch={batch}: expected at least 1 each.")
        x, y, seen = self._check(x, y, experiments)
        self._scale(torch.cat([x, seen.rows]), y)
        optimiser = torch.optim.Adam(self.model.parameters(), lr=self.rate, fused=True)
        history = []
        for step in range(steps):
            progress = step / steps
            for group in optimiser.param_groups:
                group["lr"] = self.rate * min(1.0, 4 * (1 - progress))
            if progress >= _STRUCTURE and self.model.unit.learns_structure:
                self.model.unit.settle()
            parts = self._parts(x, y, seen, progress, batch)
            loss = torch.stack(list(parts.values())).sum()
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            history.append({name: float(part.detach()) for name, part in parts.items()})
        if self.model.unit.learns_structure:
            self.model.unit.settle()
        return history

    def _parts(self, x: Tensor, y: Tensor | None, seen: Experiments, progress: float, batch: int) -> dict[str, Tensor]:
        unit = self.model.unit
        share = _share(self.schedule(progress), len(seen.rows))
        held_rows = round(batch * share + float(torch.rand((), generator=self.generator)) - 0.5)
        drawn, tried = self._draw(len(x), batch - held_rows), self._draw(len(seen.rows), held_rows)
        rows = torch.cat([x[drawn], seen.rows[tried]])
        held = torch.cat([torch.zeros(len(drawn), x.shape[1], dtype=torch.bool), seen.held[tried]])
        parts = {"fit": self._fit(rows, held, progress)}
        if unit.learns_structure and self.structure_weight:
            parts["structure"] = self.structure_weight * self._structure(progress)
        if y is not None and seen.outcome is not None:
            parts["outcome"] = self._outcome(rows, torch.cat([y[drawn], seen.outcome[tried]]))
        elif y is not None and len(drawn):
            parts["outcome"] = self._outcome(x[drawn], y[drawn])
        pairs = min(len(drawn), len(tried), _PAIRS)
        if self.counterfactual_weight and pairs > 1 and not unit.learns_structure:
            a, b = drawn[:pairs], tried[:pairs]
            outcomes = None if y is None or seen.outcome is None else (y[a], seen.outcome[b])
            distance = self._distance(x[a], seen.rows[b], seen.held[b], outcomes)
            parts["counterfactual"] = self.counterfactual_weight * distance
        return parts

    def _fit(self, rows: Tensor, held: Tensor, progress: float) -> Tensor:
        unit = self.model.unit
        scaled = (rows - unit.centre) / unit.spread
        hot, cold = self.temperatures
        temperature = hot * (cold / hot) ** min(1.0, progress / _STRUCTURE)
        gates = unit.gates(len(rows), temperature, self.generator) if unit.learns_structure else unit.settled
        free = 1 - held.to(rows.dtype) if self.cut else torch.ones_like(rows)
        squares = (free * (scaled - unit.scaled_mechanisms(gates)(scaled)).square()).sum(0)
        # A node that every row of the batch holds says nothing: its square is 0 and its logarithm a constant.
        return (squares / free.sum(0).clamp(min=1) + _SMALLEST).log().sum() / 2

    def _structure(self, progress: float) -> Tensor:
        likely, d = self.model.unit.probabilities(), len(self.model.unit.names)
        ramp = min(1.0, progress / _STRUCTURE)
        return self.sparsity * likely.sum() + self.acyclicity * ramp * d * d * acyclicity(likely)

    def _outcome(self, rows: Tensor, y: Tensor) -> Tensor:
        return ((self.model.read(rows) - y) / self.model.output_spread).square().mean()

    def _distance(self, x: Tensor, seen: Tensor, held: Tensor, outcomes: tuple[Tensor, Tensor] | None) -> Tensor:
        model = self.model
        world = model.unit.counterfactual(x, held if self.cut else torch.zeros_like(held), seen)
        mine, theirs = world / model.unit.spread, seen / model.unit.spread
        if outcomes is not None:
            y = outcomes[0] + model.read(world) - model.read(x)
            mine = torch.cat([mine, y / model.output_spread], 1)
            theirs = torch.cat([theirs, outcomes[1] / model.output_spread], 1)
        return energy_distance(mine, theirs)

    def _draw(self, n: int, count: int) -> Tensor:
        return torch.randint(n, (count,), generator=self.generator) if n else torch.zeros(0, dtype=torch.long)

    def _check(
        self, x: Tensor, y: Tensor | None, seen: Experiments | None
    ) -> tuple[Tensor, Tensor | None, Experiments]:
        d, outputs = len(self.model.unit.names), len(self.model.output_centre)
        dtype = self.model.unit.weight.dtype
        x = finite("Rows", x, d).to(dtype)
        y = None if y is None else finite("Outcomes", y, outputs, len(x)).to(dtype)
        if seen is None:
            if self.schedule(0.0) > 0 or self.schedule(1.0) > 0:
                raise MisuseError(
                    f"intervention_prob={self.intervention_prob}, but there are no interventional rows: "
                    "pass experiments, or set intervention_prob=0."
                )
            return x, y, Experiments(x[:0], torch.zeros(0, d, dtype=torch.bool), None if y is None else y[:0])
        rows = finite("Interventional rows", seen.rows, d).to(dtype)
        if seen.held.dtype != torch.bool or seen.held.shape != rows.shape:
            raise DataError(
                f"held is {seen.held.dtype} of shape {tuple(seen.held.shape)}: expected bool, {tuple(rows.shape)}."
            )
        outcome = seen.outcome
        if outcome is not None:
            outcome = finite("Interventional outcomes", outcome, outputs, len(rows)).to(dtype)
        return x, y, Experiments(rows, seen.held, outcome)

    def _scale(self, rows: Tensor, y: Tensor | None) -> None:
        unit = self.model.unit
        _standardise(rows, unit.centre, unit.spread, unit.names)
        if y is not None:
            outputs = [f"output {k + 1}" for k in range(y.shape[1])]
            _standardise(y, self.model.output_centre, self.model.output_spread, outputs)


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """2 E|A - B| - E|A - A'| - E|B - B'| between the rows of (n, k) and (m, k): >= 0, 0 iff the same distribution."""
    return 2 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b)


def _mean_distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").mean()


def _standardise(rows: Tensor, centre: Tensor, spread: Tensor, names: Sequence[str]) -> None:
    deviation = rows.std(0)
    if len(rows) < 2 or bool((deviation <= 0).any()):
        constant = [name for name, each in zip(names, deviation.tolist(), strict=True) if not each > 0]
        raise DataError(f"{', '.join(constant)} does not vary over {len(rows)} rows: drop it, or give more rows.")
    centre.copy_(rows.mean(0))
    spread.copy_(deviation)


def _share(share: float, available: int) -> float:
    if not 0 <= share <= 1:
        raise MisuseError(f"The schedule gave {share}: expected a share in [0, 1].")
    return share if available else 0.0
