"""A structural causal model whose variables have mechanisms of any kind: `StructuralModel`.

x_j = F_j(pa_j, u_j) with independent noise (Pearl, *Causality*, 2009, ch. 7; the kinds stand in `mechanisms`). `sample`
solves the equations under an intervention, `counterfactual` keeps the noise of factual rows (abduction), acts and
solves again (prediction), `moments` are exact for linear models. Nodes of one kind at one depth of the graph are solved
as one batch. Rows are natural units in the order of `names`; a category is a number, one of its levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from causaldao.errors import CausalDAOError, DataError, MisuseError
from causaldao.models.design import Column, Design, Group, Node, stack
from causaldao.models.graph import CausalGraph
from causaldao.models.intervention import Intervention, Law, Set, Shift, column, intervention
from causaldao.models.mechanisms import KINDS, Kind, Size, gumbel, kind
from causaldao.models.saving import Array, Layout, read_model, tensor_problems, write_model
from causaldao.models.scm import finite_rows, require_dag

Do = Intervention | Mapping[str, float] | None
Noise = list[Tensor]  # of each node: (1, n) normal scores, of a category (levels, n) Gumbel variables

_FORMAT = "causaldao-structural/1"
_ROWS = 8192  # rows solved at once: what a layer of hidden units needs then stays in the cache


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) under an intervention; ``error`` (d,) is the Monte Carlo error of the mean."""

    mean: Tensor
    covariance: Tensor
    error: Tensor


@dataclass(frozen=True, eq=False)
class StructuralModel:
    """Mechanisms on a DAG; columns and nodes follow ``names``. `fitting.fit` makes one from a table."""

    graph: CausalGraph
    names: tuple[str, ...]
    columns: tuple[Column, ...]
    nodes: tuple[Node, ...]

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each variable's mechanism."""
        return {name: node.kind for name, node in zip(self.names, self.nodes, strict=True)}

    @cached_property
    def design(self) -> Design:
        """How rows become what mechanisms read."""
        return Design(self.names, self.columns)

    def parents(self, j: int) -> list[int]:
        """The places of a node's parents, in the order of ``names``."""
        found = self.graph.parents(self.names[j])
        return [i for i, name in enumerate(self.names) if name in found]

    @cached_property
    def steps(self) -> tuple[Group, ...]:
        """Groups in an order in which each finds its parents solved."""
        return self._ordered(self.graph)

    @cached_property
    def linear(self) -> bool:
        """Whether every mechanism is linear and Gaussian, so that moments have a closed form."""
        return all(node.kind == "linear" for node in self.nodes)

    def draw(self, n: int, generator: torch.Generator) -> Noise:
        """Noise of n rows. Normal scores are drawn in single precision: six times as fast, and no less random."""
        normal = self._normal(n, generator).double()
        return [
            gumbel((len(one.levels), n), generator) if one.levels else normal[j] for j, one in enumerate(self.columns)
        ]

    def sample(self, n: int, do: Do, generator: torch.Generator) -> Tensor:
        """n independent rows under an intervention: (n, d) float64, natural units."""
        act = intervention(do)
        act.require(self.graph, _some(n))
        if self.linear and _plain(act):
            mean, mixing = self._affine(act)
            rows = torch.empty(len(self.names), n, dtype=torch.float64)
            for part in torch.split(rows, _ROWS, dim=1):
                part.copy_(torch.addmm(mean[:, None], mixing, self._normal(part.shape[1], generator)[:, 0].double()))
            return self._held(rows, act).T
        return self.solve(self.draw(n, generator), act).T

    def solve(
        self, noise: Noise, do: Do, given: Mapping[str, float] | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """The rows that noise leads to: (d, n), one row of the result for each variable.

        ``given`` clamps variables to what was seen; the log density of it, given the parents, is added to ``weight``
        (n,), as likelihood weighting asks.
        """
        act, n = intervention(do), noise[0].shape[1]
        act.require(self.graph, n)
        seen = {self.names.index(name): value for name, value in (given or {}).items()}
        plan = self._plan(act, frozenset(seen))
        rows = torch.empty(len(self.names), n, dtype=torch.float64)
        for start in range(0, n, _ROWS):
            part = slice(start, min(start + _ROWS, n))
            chunk = [one[:, part] for one in noise]
            extra = None if weight is None else weight[part]
            self._solve(plan, chunk, _part(act, part), rows[:, part], seen, extra)
        return rows

    def counterfactual(self, factual: Tensor, do: Do, generator: torch.Generator | None = None) -> Tensor:
        """The same units under an intervention: (n, d) natural -> (n, d) natural.

        What no action moves, and every row whose parents are what they were, comes back bit for bit. Where a row does
        not settle the noise (categories, counts) below an action, one draw of its posterior is taken.

        Raises:
            MisuseError: such a draw is needed and there is no generator.
            DataError: rows that are not finite, a value that is no level.
        """
        rows, act = finite_rows(factual, len(self.names)), intervention(do)
        act.require(self.graph, len(rows))
        if self.linear and _plain(act):
            return self._changed_line(rows, act)
        below = self._below(act)
        open_noise = [self.names[j] for j in sorted(below) if not KINDS[self.nodes[j].kind].invertible]
        if open_noise and generator is None:
            raise MisuseError(
                f"A row does not settle the noise of {', '.join(open_noise)}: give a generator, and ask for an "
                "interval with queries.counterfactual_interval."
            )
        generator = generator or torch.Generator().manual_seed(0)  # no kind that is left draws from it
        result = rows.T.contiguous().clone()
        for start in range(0, len(rows), _ROWS):
            part = slice(start, min(start + _ROWS, len(rows)))
            self._replay(rows.T[:, part], _part(act, part), below, result[:, part], generator)
        return result.T

    def moments(self, do: Do = None, *, n: int = 100_000, generator: torch.Generator | None = None) -> Moments:
        """Mean and covariance under an intervention: exact if all mechanisms are linear, else from n rows.

        Raises MisuseError where rows must be drawn and there is no generator.
        """
        act = intervention(do)
        if self.linear and _plain(act):
            act.require(self.graph, 1)
            mean, mixing = self._affine(act)
            return Moments(mean, mixing @ mixing.T, torch.zeros_like(mean))
        if generator is None:
            raise MisuseError("These moments have no closed form, so rows are drawn for them: give a generator.")
        rows = self.sample(n, act, generator).T
        return Moments(rows.mean(1), torch.cov(rows), rows.std(1) / math.sqrt(n))

    def expected(self, factual: Tensor) -> dict[str, Tensor]:
        """E[x_j | parents] of each row, natural units (n,); of a category its levels' probabilities (levels, n)."""
        rows = finite_rows(factual, len(self.names))
        design, found = self._encoded(rows.T), {}
        for j, name in enumerate(self.names):
            group = self._single(j)
            mean = group.kind.mean(group.params, group.parents(design))[0]
            found[name] = self._natural(j, mean) if group.kind.domain == "number" else mean
        return found

    def apply(self, name: str, columns: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """One mechanism at its parents' natural values (n,) by name and its noise (w, n): (n,)."""
        j, group, x = self._at(name, columns, noise.shape[1])
        return self._natural(j, group.kind.solve(group.params, x, noise[None])[0])

    def recover(self, name: str, columns: Mapping[str, Tensor], value: Tensor, generator: torch.Generator) -> Tensor:
        """The noise (w, n) that led to these values, drawn from its posterior where they do not settle it."""
        j, group, x = self._at(name, columns, len(value))
        return group.kind.abduct(group.params, x, self._target(j, value)[None], generator)[0]

    def log_prob(self, name: str, columns: Mapping[str, Tensor], value: Tensor) -> Tensor:
        """Log density of these values given the parents, natural units: (n,)."""
        j, group, x = self._at(name, columns, len(value))
        found = group.kind.log_prob(group.params, x, self._target(j, value)[None])[0].double()
        return found - math.log(self.columns[j].half) if group.kind.domain == "number" else found

    def law(self, name: str) -> Law:
        """This model's mechanism of a variable, to replace another model's (a soft intervention)."""
        return Law(
            tuple(self.names[i] for i in self.parents(self._place(name))),
            lambda columns, noise: self.apply(name, columns, noise.reshape(-1, noise.shape[-1])),
            lambda columns, value: self.log_prob(name, columns, value),
        )

    def noise(self, factual: Tensor, generator: torch.Generator) -> Noise:
        """The noise of factual rows (n, d), drawn from its posterior where a row does not settle it."""
        rows = finite_rows(factual, len(self.names)).T
        columns = dict(zip(self.names, rows, strict=True))
        return [self.recover(name, columns, columns[name], generator) for name in self.names]

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """(tensors, meta): parameters by place and name, the columns' units, and the rest as JSON."""
        tensors = {
            f"{j}.{name}": np.ascontiguousarray(tensor.detach().numpy()).copy()
            for j, node in enumerate(self.nodes)
            for name, tensor in node.params.items()
        }
        for unit in ("centre", "half", "low", "high"):
            tensors[unit] = np.array([getattr(one, unit) for one in self.columns], dtype=np.float64)
        meta = {
            "format": _FORMAT, "names": list(self.names), "graph": self.graph.to_json(),
            "kinds": [node.kind for node in self.nodes], "hidden": [node.hidden for node in self.nodes],
            "levels": [list(one.levels) for one in self.columns],
        }  # fmt: skip
        return tensors, meta

    @classmethod
    def from_state(cls, tensors: Mapping[str, Array], meta: Any) -> Self:
        """Rebuild a model from what came from outside. DataError lists all that does not fit."""
        graph, names, kinds, hidden, levels = _read_meta(meta)
        layout = _layout(graph, names, kinds, hidden, levels)
        positive = [name for name in layout if name == "half" or name.endswith((".scale", ".reach"))]
        problems = tensor_problems(tensors, layout, positive)
        if not problems:
            problems = tuple(
                f"{name}: expected rising values." for name, array in tensors.items()
                if name.endswith(".noise") and not (np.diff(array) > 0).all()
            )  # fmt: skip
        if problems:
            raise DataError(f"The model's state does not fit its description: {problems[0]}", problems=problems)
        centre, half, low, high = (tensors[unit].tolist() for unit in ("centre", "half", "low", "high"))
        columns = tuple(Column(*values) for values in zip(centre, half, low, high, levels, strict=True))
        nodes = []
        for j, (name, width) in enumerate(zip(kinds, hidden, strict=True)):
            mine = [key for key in layout if key.startswith(f"{j}.")]
            params = {key.split(".", 1)[1]: torch.from_numpy(np.array(tensors[key], copy=True)) for key in mine}
            nodes.append(Node(name, width, params))
        return cls(graph, names, columns, tuple(nodes))

    def save(self, path: str | PathLike[str]) -> None:
        """Write tensors and description as one safetensors file."""
        write_model(path, *self.state())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote. Raises DataError when the file is absent or is not such a model."""
        return cls.from_state(*read_model(path))

    def _normal(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(len(self.names), 1, _some(n), generator=generator)

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise MisuseError(f"There is no variable {name!r}; the model has {', '.join(self.names)}.")
        return self.names.index(name)

    def _single(self, j: int) -> Group:
        if j not in self._alone:
            self._alone[j] = self._group([j])
        return self._alone[j]

    @cached_property
    def _alone(self) -> dict[int, Group]:
        return {}

    def _group(self, members: Sequence[int]) -> Group:
        nodes = [self.nodes[j] for j in members]
        indices = [self.design.index(self.parents(j)) for j in members]
        levels = [len(self.columns[j].levels) for j in members]
        width = max(len(index) for index in indices)
        padded = [index + [self.design.width] * (width - len(index)) for index in indices]
        size = Size(width, max(node.hidden for node in nodes), max(levels))
        params = stack(kind(nodes[0].kind), [node.params for node in nodes], size)
        return Group(kind(nodes[0].kind), tuple(members), torch.tensor(padded, dtype=torch.long), params)

    def _ordered(self, graph: CausalGraph) -> tuple[Group, ...]:
        depth: dict[str, int] = {}
        for name in graph.topological_order():
            # the mechanism's own parents count too: those of a replaced one may be others, and are solved before
            depth[name] = 1 + max((depth[parent] for parent in graph.parents(name)), default=-1)
        groups: dict[tuple[int, str, bool], list[int]] = {}
        for j, name in enumerate(self.names):
            groups.setdefault((depth[name], self.nodes[j].kind, not self.parents(j)), []).append(j)
        return tuple(self._group(groups[key]) for key in sorted(groups))

    def _plan(self, act: Intervention, seen: frozenset[int]) -> list[tuple[Group | None, tuple[int, ...]]]:
        """Groups in order, without what is not to be solved by its own mechanism, and all members of each."""
        laws = {self.names.index(name) for name in act.of_kind(Law)}
        steps = self._ordered(act.graph(self.graph)) if laws else self.steps
        skipped = laws | seen | {self.names.index(name) for name in act.of_kind(Set)}
        wanted = frozenset(range(len(self.names))) - skipped
        return [(step.only(wanted), step.members) for step in steps]

    def _solve(
        self, plan: list[tuple[Group | None, tuple[int, ...]]], noise: Noise, act: Intervention, rows: Tensor,
        seen: Mapping[int, float], weight: Tensor | None,
    ) -> None:  # fmt: skip
        design = self.design.empty(rows.shape[1])
        for group, members in plan:
            solved: dict[int, Tensor] = {}
            if group is not None:
                taken = [noise[j] for j in group.members]
                stacked = torch.stack(taken) if len({len(one) for one in taken}) == 1 else _padded(taken)
                values = group.kind.solve(group.params, group.parents(design), stacked)
                solved = {j: self._natural(j, value) for j, value in zip(group.members, values, strict=True)}
            for j in members:
                if j in seen:
                    rows[j] = seen[j]
                    if weight is not None:
                        weight += self._seen_log_prob(j, act, rows)
                else:
                    rows[j] = self._acted(j, act, rows, solved.get(j), noise[j])
                self.design.write(design, j, rows[j])

    def _acted(self, j: int, act: Intervention, rows: Tensor, natural: Tensor | None, noise: Tensor) -> Tensor:
        """A variable's values after its action: of the factual equation's values ``natural``, of the law, or as set."""
        action, n = act.actions.get(self.names[j]), rows.shape[1]
        if isinstance(action, Set):
            value = column(action.value, n)
            self.design.target(j, value)  # a category can only be set to one of its levels
            return value
        if isinstance(action, Law):
            found = action.draw(self._columns(action.parents, rows), noise if self.columns[j].levels else noise[0])
            if found.shape != (n,) or not bool(torch.isfinite(found).all()):
                raise MisuseError(
                    f"The new mechanism of {self.names[j]} gives {tuple(found.shape)} values, or some that are not "
                    f"finite: expected ({n},), all finite."
                )
            self.design.target(j, found)
            return found
        assert natural is not None  # what has neither was solved
        if isinstance(action, Shift):
            self._require_shift(j)
            return natural + column(action.by, n)
        return natural

    def _require_shift(self, j: int) -> None:
        if self.columns[j].levels:
            raise MisuseError(
                f"{self.names[j]} is a category, which cannot be shifted: set it, or replace its mechanism."
            )

    def _seen_log_prob(self, j: int, act: Intervention, rows: Tensor) -> Tensor:
        name, action, n = self.names[j], act.actions.get(self.names[j]), rows.shape[1]
        if isinstance(action, Set):
            return torch.where(column(action.value, n) == rows[j], 0.0, -math.inf)
        if isinstance(action, Law):
            if action.log_prob is None:
                raise MisuseError(
                    f"The new mechanism of {name} has no log_prob, so nothing can be conditioned on {name}."
                )
            return action.log_prob(self._columns(action.parents, rows), rows[j])
        shift = column(action.by, n) if isinstance(action, Shift) else torch.zeros(n, dtype=torch.float64)
        if isinstance(action, Shift):
            self._require_shift(j)
        return self.log_prob(name, dict(zip(self.names, rows, strict=True)), rows[j] - shift)

    def _below(self, act: Intervention) -> frozenset[int]:
        """What an action may move through its own mechanism: not the variables that are set."""
        reached = act.graph(self.graph).descendants(list(act.actions))
        return frozenset(self.names.index(name) for name in reached - set(act.of_kind(Set)))

    def _replay(
        self, factual: Tensor, act: Intervention, below: frozenset[int], rows: Tensor, generator: torch.Generator
    ) -> None:
        before, after = self._encoded(factual), self._encoded(factual)
        steps = self._ordered(act.graph(self.graph)) if act.of_kind(Law) else self.steps
        for step in steps:
            group = step.only(below)
            solved: dict[int, Tensor] = {}
            if group is not None:
                solved = self._replayed(group, group.parents(before), group.parents(after), factual, generator)
            for j in step.members:
                name = self.names[j]
                if name not in act.actions and j not in below:
                    continue
                natural = solved.get(j)
                if natural is not None:  # where no parent moved, the value is the factual one to the last bit
                    index = self.design.index(self.parents(j))
                    natural = torch.where((before[index] != after[index]).any(0), natural, factual[j])
                noise = factual[j][None]
                if isinstance(act.actions.get(name), Law):
                    noise = self.recover(name, dict(zip(self.names, factual, strict=True)), factual[j], generator)
                rows[j] = self._acted(j, act, rows, natural, noise)
                self.design.write(after, j, rows[j])

    def _replayed(
        self, group: Group, before: Tensor, after: Tensor, factual: Tensor, generator: torch.Generator
    ) -> dict[int, Tensor]:
        y = torch.stack([self._target(j, factual[j]) for j in group.members])
        if group.kind.additive:
            values = y + (group.kind.mean(group.params, after) - group.kind.mean(group.params, before))
        else:
            noise = group.kind.abduct(group.params, before, y, generator)
            values = group.kind.solve(group.params, after, noise)
        return {j: self._natural(j, value) for j, value in zip(group.members, values, strict=True)}

    def _encoded(self, rows: Tensor) -> Tensor:
        design = self.design.empty(rows.shape[1])
        for j, values in enumerate(rows):
            self.design.target(j, values)
            self.design.write(design, j, values)
        return design

    def _target(self, j: int, natural: Tensor) -> Tensor:
        one, domain = self.columns[j], KINDS[self.nodes[j].kind].domain
        if domain == "number":
            return (natural - one.centre) / one.half
        if domain == "count" and bool(((natural < 0) | (natural != natural.floor())).any()):
            odd = natural[(natural < 0) | (natural != natural.floor())][0].item()
            raise DataError(f"{self.names[j]} = {odd:g}: expected a count, 0 or more. Give it a kind for numbers.")
        return self.design.target(j, natural)

    def _natural(self, j: int, value: Tensor) -> Tensor:
        one = self.columns[j]
        if one.levels:
            return torch.tensor(one.levels, dtype=torch.float64)[value.long()]
        return (
            one.centre + one.half * value.double() if KINDS[self.nodes[j].kind].domain == "number" else value.double()
        )

    def _columns(self, names: Sequence[str], rows: Tensor) -> dict[str, Tensor]:
        return {name: rows[self.names.index(name)] for name in names}

    def _at(self, name: str, columns: Mapping[str, Tensor], n: int) -> tuple[int, Group, Tensor]:
        j = self._place(name)
        design = self.design.empty(n)
        for parent in self.parents(j):
            self.design.write(design, parent, columns[self.names[parent]])
        group = self._single(j)
        return j, group, group.parents(design)

    def _changed_line(self, rows: Tensor, act: Intervention) -> Tensor:
        """Of linear mechanisms the noise cancels: what an action adds to its variable is carried along the slopes."""
        if not act.actions:
            return rows.clone()
        acted = [self.names.index(name) for name in act.actions]
        pushes = [
            action.value - rows[:, j] if isinstance(action, Set) else 0 * rows[:, j] + getattr(action, "by", 0.0)
            for j, action in zip(acted, act.actions.values(), strict=True)
        ]
        changed = torch.addmm(rows, torch.stack(pushes, 1), self._total(frozenset(act.of_kind(Set)))[acted])
        return self._held(changed.T, act).T

    def _total(self, held: frozenset[str]) -> Tensor:
        """Of linear mechanisms: by how much one unit more of a variable (row) moves each (d, d), some of them held."""
        if held not in self._totals:
            total = torch.eye(len(self.names), dtype=torch.float64)
            for name in self.graph.topological_order():
                if name not in held:
                    j, parents = self.names.index(name), self.parents(self.names.index(name))
                    total[:, j] += total[:, parents] @ self._slopes(j)
            self._totals[held] = total
        return self._totals[held]

    @cached_property
    def _totals(self) -> dict[frozenset[str], Tensor]:
        return {}

    def _slopes(self, j: int) -> Tensor:
        """Of a linear mechanism, natural units: (parents,)."""
        halves = torch.tensor([self.columns[i].half for i in self.parents(j)], dtype=torch.float64)
        return self.columns[j].half * self.nodes[j].params["linear"][0] / halves

    def _affine(self, act: Intervention) -> tuple[Tensor, Tensor]:
        """Mean (d,) and mixing (d, d) with x = mean + mixing · u, u standard normal. All mechanisms are linear."""
        d = len(self.names)
        mean, mixing = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
        for name in self.graph.topological_order():
            j, action = self.names.index(name), act.actions.get(name)
            one, params = self.columns[j], self.nodes[j].params
            if isinstance(action, Set):
                mean[j] = column(action.value, 1)[0]
                continue
            parents = self.parents(j)
            centre = torch.tensor([self.columns[i].centre for i in parents], dtype=torch.float64)
            slopes = self._slopes(j)
            mean[j] = one.centre + one.half * params["bias"][0, 0] + slopes @ (mean[parents] - centre)
            mixing[j] = slopes @ mixing[parents]
            mixing[j, j] = one.half * params["scale"][0, 0]
            if isinstance(action, Shift):
                mean[j] += column(action.by, 1)[0]
        return mean, mixing

    def _held(self, rows: Tensor, act: Intervention) -> Tensor:
        for name in act.of_kind(Set):
            action = act.actions[name]
            if isinstance(action, Set):
                rows[self.names.index(name)] = action.value
        return rows


def _some(n: int) -> int:
    if n < 1:
        raise MisuseError(f"n={n} rows to sample: expected at least 1.")
    return n


def _plain(act: Intervention) -> bool:
    """Whether it only sets and shifts, each variable by one value for all rows."""
    values = [action.value if isinstance(action, Set) else action.by for action in act.actions.values()
              if not isinstance(action, Law)]  # fmt: skip
    return not act.of_kind(Law) and not any(isinstance(value, Tensor) for value in values)


def _part(act: Intervention, part: slice) -> Intervention:
    """The intervention on some of the rows."""

    def cut(value: float | Tensor) -> float | Tensor:
        return value[part] if isinstance(value, Tensor) else value

    return Intervention(
        {
            name: Set(cut(action.value)) if isinstance(action, Set)
            else Shift(cut(action.by)) if isinstance(action, Shift) else action
            for name, action in act.actions.items()
        }
    )  # fmt: skip


def _padded(noise: Sequence[Tensor]) -> Tensor:
    whole = torch.zeros(len(noise), max(len(one) for one in noise), noise[0].shape[1], dtype=torch.float64)
    for j, one in enumerate(noise):
        whole[j, : len(one)] = one
    return whole


def _layout(
    graph: CausalGraph, names: tuple[str, ...], kinds: Sequence[str], hidden: Sequence[int],
    levels: Sequence[tuple[float, ...]],
) -> Layout:  # fmt: skip
    design = Design(names, tuple(Column(0.0, 1.0, 0.0, 1.0, one) for one in levels))
    layout: dict[str, tuple[tuple[int, ...], str]] = dict.fromkeys(
        ("centre", "half", "low", "high"), ((len(names),), "float64")
    )
    for j, name in enumerate(kinds):
        parents = [i for i, one in enumerate(names) if one in graph.parents(names[j])]
        shapes = KINDS[name].layout(Size(len(design.index(parents)), hidden[j], len(levels[j])))
        for key, shape in shapes.items():
            single = "hidden" in shapes and key not in ("noise", "reach", "noise_mean")
            layout[f"{j}.{key}"] = (shape, "float32" if single else "float64")
    return layout


_Meta = tuple[CausalGraph, tuple[str, ...], list[str], list[int], list[tuple[float, ...]]]


def _read_meta(meta: Any) -> _Meta:
    expected = {"format", "names", "graph", "kinds", "hidden", "levels"}
    if not isinstance(meta, Mapping) or set(meta) != expected or meta["format"] != _FORMAT:
        raise DataError(f"The model's description is not {_FORMAT}: expected the keys {', '.join(sorted(expected))}.")
    names, kinds, hidden, levels = (meta[key] for key in ("names", "kinds", "hidden", "levels"))
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"names={names!r} in the model's description: expected a list of texts.")
    for key, value in (("kinds", kinds), ("hidden", hidden), ("levels", levels)):
        if not isinstance(value, list) or len(value) != len(names):
            raise DataError(
                f"{key} in the model's description: expected a list, one entry for each of {len(names)} names."
            )
    for name, made, width, level in zip(names, kinds, hidden, levels, strict=True):
        if not isinstance(made, str) or made not in KINDS or type(width) is not int or not 1 <= width <= 1 << 16:
            raise DataError(
                f"{name} in the model's description has kind {made!r} and {width!r} hidden units: expected one of "
                f"{', '.join(KINDS)}, and an integer from 1 to {1 << 16}."
            )
        _require_levels(name, KINDS[made], level)
    try:
        graph = CausalGraph.from_json(meta["graph"])
        require_dag(graph, names)
    except (CausalDAOError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"The model's description holds no DAG over {', '.join(names)}: {error}") from error
    return graph, tuple(names), kinds, hidden, [tuple(float(one) for one in level) for level in levels]


def _require_levels(name: str, made: Kind, levels: Any) -> None:
    numbers = isinstance(levels, list) and all(type(one) in (int, float) and math.isfinite(one) for one in levels)
    rising = numbers and all(a < b for a, b in pairwise(levels))
    if not rising or (len(levels) < 2) == (made.domain == "category"):
        raise DataError(
            f"{name} in the model's description has levels {levels!r}: expected rising numbers, two or more for a "
            "category and none for another kind."
        )
