"""The causal unit: a structural causal model as a differentiable layer, with a graph given or learnt.

All d variables are computed at once, x~ = m v + (1 - m) (f(pa(x~)) + e), with masks m and values v of their own for
each row: do() replaces the one equation of each node it holds, and so cuts the edges *into* that node and no others
(Pearl, *Causality*, 2009, ch. 3, 7). There is no custom gradient: where m = 1 autograd gives zero through the cut
edge, and every other path keeps its gradient; under do(A) in the fork X -> A, X -> B -> Y, X still moves Y.

Adjacencies have causes in rows, effects in columns. Rows, values and noise are in natural units; mechanisms work on
(x - centre) / spread, which `causaldao.models.unit_training` takes from its data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.graph import CausalGraph
from causaldao.models.layers import CausalLinear, fan_in_normal
from causaldao.models.levels import Plan, Schedule, Weights, mixed

Intervention = Mapping[str, tuple[Tensor, Tensor | float]]  # name: (which rows (n,), their values (n,) or one)
Mechanisms = Callable[[Tensor], Tensor]
_T = TypeVar("_T")
_Held = dict[int, tuple[Tensor, Tensor]]  # place: which rows hold the node, bool (n,), and at what, (n,) or ()

_OPEN = -1  # `depth` of a unit whose graph is not settled
_FIRST_GATES = 0.1  # spread of the gates' logits at the start: no pair is favoured by much
_MANY, _MOST = 256, 0.75  # with so many rows, those that hold nothing are set apart unless they are few
_PLANS = 64  # sets of held nodes whose plans are kept


def acyclicity(adjacency: Tensor, s: float | None = None) -> Tensor:
    """DAGMA's h(A) = d log s - log det(s I - A) >= 0, zero iff the graph of A has no cycle; differentiable, scalar.

    A is (d, d), not negative, with a spectral radius below s (Bello et al., 2022, Theorem 1, with A for W∘W). By
    default s = d: entries in [0, 1] with a zero diagonal have row sums below it, so h is finite wherever gates stand.
    """
    d = adjacency.shape[-1]
    s = d if s is None else s
    inside = s * torch.eye(d, dtype=adjacency.dtype, device=adjacency.device) - adjacency
    log_det: Tensor = torch.linalg.slogdet(inside).logabsdet
    return d * math.log(s) - log_det


def mutilate(adjacency: Tensor, mask: Tensor) -> Tensor:
    """The graph of each row without the edges into its held nodes: (d, d) and (n, d) -> (n, d, d); a new tensor.

    A mask (d,) gives one (d, d). Differentiable in adjacency.
    """
    return adjacency * (1 - mask.to(adjacency.dtype)).unsqueeze(-2)


def strongest_dag(weights: Tensor, threshold: float = 0.5) -> Tensor:
    """The edges of weight above threshold, strongest first, without those that would close a cycle: (d, d) of 0, 1."""
    d = len(weights)
    dag, reach = torch.zeros_like(weights), torch.eye(d, dtype=torch.bool)
    above = sorted(((float(weights[i, j]), i, j) for i in range(d) for j in range(d) if i != j), reverse=True)
    for weight, i, j in above:
        if weight > threshold and not reach[j, i]:
            dag[i, j] = 1
            reach |= reach[:, i, None] & reach[j]
    return dag


class CausalUnit(nn.Module):
    """A structural causal model x_j = f_j(pa(x)) + e_j over d named nodes: one module of adjacency and mechanisms.

    f_j is one hidden layer of SiLU on the parents of j; all are two matrix products. Without `adjacency` the graph is
    learnt: until `settle` is called, `graph` is what the threshold leaves of the gates now, and what passes through
    it has no gradient in the gates. An adjacency that is passed to a method replaces the unit's own: (d, d) or one for
    each row (n, d, d), weights allowed, differentiable, without cycles; entry [i, j] scales what f_j sees of i.

    Raises:
        MisuseError: no names, a name twice, fewer than one hidden unit, an adjacency of the wrong shape.
        ConfigurationError: an adjacency with a cycle.
        DataError: rows, masks or values of the wrong shape, or not finite.
    """

    centre: Tensor
    spread: Tensor
    settled: Tensor
    depth: Tensor
    own: Tensor

    def __init__(
        self,
        names: Sequence[str],
        hidden: int = 8,
        *,
        adjacency: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.names, d = tuple(names), len(names)
        if not names or len(set(names)) < d:
            raise MisuseError(f"names={list(names)}: expected at least one, each once.")
        if hidden < 1:
            raise MisuseError(f"hidden={hidden} units: expected at least 1.")
        others = 1 - torch.eye(d)
        fan_in = torch.full((d, 1), (d - 1) / 2) if adjacency is None else _square(adjacency, d).ne(0).float().sum(0)
        present = others[..., None].expand(d, d, hidden)
        self.weight = nn.Parameter(fan_in_normal(present, fan_in.reshape(1, d, 1), 1.0, generator))
        self.bias = nn.Parameter(torch.randn(d, hidden, generator=generator))
        self.head = nn.Parameter(torch.randn(d, hidden, generator=generator) / math.sqrt(hidden))
        self.offset = nn.Parameter(torch.zeros(d))
        self.logits = nn.Parameter(_FIRST_GATES * torch.randn(d, d, generator=generator)) if adjacency is None else None
        self.register_buffer("own", torch.eye(d), persistent=False)
        self.register_buffer("centre", torch.zeros(d))
        self.register_buffer("spread", torch.ones(d))
        self.register_buffer("settled", torch.zeros(d, d))
        self.register_buffer("depth", torch.tensor(_OPEN))
        self._kept: dict[Any, Any] = {}
        self._schedules: dict[Any, Any] = {}
        if adjacency is not None:
            self.settle(adjacency)

    @property
    def learns_structure(self) -> bool:
        """Whether the graph is still open."""
        return int(self.depth) == _OPEN

    @property
    def graph(self) -> Tensor:
        """The DAG (d, d) that is used now: the settled one, or what the threshold leaves of the gates."""
        return strongest_dag(self.probabilities().detach()) if self.learns_structure else self.settled

    def causal_graph(self) -> CausalGraph:
        """The same as a `CausalGraph` over the names."""
        edges = [(self.names[i], self.names[j]) for i, j in self.graph.nonzero().tolist()]
        return CausalGraph.dag(edges, self.names)

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """How likely each edge is by its gate, (d, d) in [0, 1], diagonal 0; a settled graph given from outside: 0, 1.

        A lower temperature sharpens it.
        """
        if self.logits is None:
            return self.settled.ne(0).to(self.settled.dtype)
        return torch.sigmoid(self.logits / positive("temperature", temperature)) * (1 - self.own)

    def gates(self, n: int, temperature: float, generator: torch.Generator | None = None) -> Tensor:
        """n drawn graphs (n, d, d) of 0 and 1, not always acyclic; the gradient is that of the soft gates."""
        if self.logits is None:
            raise MisuseError("This unit's graph was given: it has no gates to draw. Leave adjacency out to learn it.")
        uniform = torch.rand(n, *self.logits.shape, generator=generator, dtype=self.logits.dtype).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((self.logits + uniform.logit()) / positive("temperature", temperature)) * (1 - self.own)
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())

    def settle(self, adjacency: Tensor | None = None) -> None:
        """Fix the graph: the given (d, d), or what the threshold leaves of the gates. A settled graph stays."""
        chosen = self.graph if adjacency is None else _square(adjacency, len(self.names)).to(self.settled)
        depth = _depth(chosen, self.names)
        self.settled.copy_(chosen.detach())
        self.depth.fill_(depth)

    def mechanisms(self, x: Tensor, adjacency: Tensor | None = None) -> Tensor:
        """f_j at the parents' values in x: (n, d) -> (n, d). The adjacency may have cycles here: nothing is solved."""
        x = self._rows(x)
        f = self.scaled_mechanisms(self.graph if adjacency is None else self._adjacency(adjacency, len(x)))
        return self.centre + self.spread * f((x - self.centre) / self.spread)

    def forward(
        self,
        noise: Tensor,
        mask: Tensor | None = None,
        value: Tensor | None = None,
        adjacency: Tensor | None = None,
    ) -> Tensor:
        """Solve the model from its noise, under do: (n, d) -> (n, d).

        mask (n, d) or (d,): bool, or a weight in [0, 1] (a soft intervention: the mixture of held and natural); value
        of the same shapes, read where the mask is not 0. Exact: a settled graph is solved level by level, another
        adjacency in as many sweeps as its longest path has nodes.
        """
        noise = self._rows(noise)
        if (mask is None) != (value is None):
            raise MisuseError("do() needs a mask and its values: give both or neither.")
        scaled, held, goal = noise / self.spread, None, None
        if mask is not None and value is not None:
            held, value = self._do(mask, value, noise)
            goal = (value - self.centre) / self.spread
        if adjacency is None and not self.learns_structure:
            now = self._plan(None).solve(scaled, held, goal)
        else:
            now = _swept(scaled, held, goal, *self._sweeps(adjacency, len(noise)))
        found = self.centre + self.spread * now
        if held is None or value is None:
            return found
        return _sound(torch.where(held == 1, value, found), value)

    def counterfactual(self, x: Tensor, mask: Tensor, value: Tensor, adjacency: Tensor | None = None) -> Tensor:
        """Abduction, action, prediction: the same rows had do been done, (n, d) -> (n, d).

        The noise is x - f(x), so a node that descends from no held one comes back bit for bit. Arguments as `forward`.
        """
        x = self._rows(x)
        held, value = self._do(mask, value, x)
        scaled, goal = (x - self.centre) / self.spread, (value - self.centre) / self.spread
        if adjacency is None and not self.learns_structure:
            plan = self._plan(tuple(range(len(self.names))))
            now = plan.change(scaled, list(zip(held.T, goal.T, strict=True)))
        else:
            now = _changed(scaled, held, goal, *self._sweeps(adjacency, len(x)))
        return _sound(torch.where(held == 1, value, x + self.spread * (now - scaled)), value)

    def train(self, mode: bool = True) -> Self:
        """As any module's.

        In eval mode without gradients, what follows from the parameters alone is kept from call to call. Optimisers
        and `load_state_dict` are noticed; call this after a write to a parameter's ``.data``, which leaves no trace.
        """
        self._kept.clear()
        return super().train(mode)

    def _plan(self, held: tuple[int, ...] | None) -> Plan:
        """How the settled graph is solved below held nodes; None: from the noise."""
        if self.training or torch.is_grad_enabled():
            return self._planned(held)
        return _kept(self._kept, self._tensors(), held, lambda: self._planned(held))

    def _planned(self, held: tuple[int, ...] | None) -> Plan:
        schedule = _kept(self._schedules, (self.settled,), held, lambda: Schedule.of(self.settled, held))
        return Plan.of(schedule, Weights(self.settled, self.weight, self.bias, self.head, self.offset))

    def scaled_mechanisms(self, adjacency: Tensor) -> Mechanisms:
        """Every node's mechanism under an adjacency (d, d), or one for each row (n, d, d): from scaled rows (n, d) to
        (n, d), also scaled."""
        d, hidden = self.bias.shape
        if adjacency.ndim == 3:
            weight = self.weight.transpose(0, 1)

            def each(z: Tensor) -> Tensor:
                seen = (z.unsqueeze(2) * adjacency).permute(2, 0, 1)
                active = functional.silu(torch.baddbmm(self.bias[:, None], seen, weight))
                return (active @ self.head[..., None]).squeeze(2).T + self.offset

            return each
        first = (self.weight * adjacency[..., None]).reshape(d, d * hidden)
        second = (self.own[..., None] * self.head).reshape(d, d * hidden)
        bias, offset = self.bias.reshape(-1), self.offset[:, None]

        def all_(z: Tensor) -> Tensor:
            # Transposed: a product with few columns is three times slower than one with few rows.
            return torch.addmm(offset, second, functional.silu(torch.addmm(bias, z, first)).T).T

        return all_

    def _sweeps(self, adjacency: Tensor | None, n: int) -> tuple[Mechanisms, int]:
        """All mechanisms at once, and how often they must be applied: the edges on the longest path."""
        graph = self.graph if adjacency is None else self._adjacency(adjacency, n)
        return self.scaled_mechanisms(graph), _depth(graph, self.names)

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.settled, self.weight, self.bias, self.head, self.offset

    def _adjacency(self, adjacency: Tensor, n: int) -> Tensor:
        d = len(self.names)
        if tuple(adjacency.shape) not in ((d, d), (n, d, d)):
            raise MisuseError(
                f"An adjacency of shape {tuple(adjacency.shape)}: expected ({d}, {d}) or ({n}, {d}, {d})."
            )
        if not bool(torch.isfinite(adjacency).all()):
            raise MisuseError("The adjacency holds numbers that are not finite: expected weights, 0 where no edge is.")
        return adjacency.to(self.weight.dtype)

    def _rows(self, x: Tensor) -> Tensor:
        return finite("Rows", x, len(self.names))

    def _do(self, mask: Tensor, value: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        for what, given in (("A mask", mask), ("Values", value)):
            if tuple(given.shape) not in (tuple(like.shape), tuple(like.shape[1:])):
                raise DataError(
                    f"{what} of shape {tuple(given.shape)}: expected {tuple(like.shape)}, one per row and node."
                )
        held = mask.expand_as(like) if mask.dtype == torch.bool else mask.to(like.dtype).expand_as(like)
        if mask.dtype != torch.bool and not bool(((held >= 0) & (held <= 1)).all()):
            raise DataError(f"A mask from {float(held.min()):g} to {float(held.max()):g}: expected weights in [0, 1].")
        return held, value.to(like.dtype).expand_as(like).masked_fill(held == 0, 0.0)


def _swept(scaled: Tensor, held: Tensor | None, goal: Tensor | None, f: Mechanisms, depth: int) -> Tensor:
    now = torch.zeros_like(scaled) if held is None or goal is None else mixed(held, goal, scaled)
    for _ in range(depth + 1):
        now = f(now) + scaled
        if held is not None and goal is not None:
            now = mixed(held, goal, now)
    return now


def _changed(scaled: Tensor, held: Tensor, goal: Tensor, f: Mechanisms, depth: int) -> Tensor:
    now = mixed(held, goal, scaled)
    if depth:
        before = f(scaled)
        for _ in range(depth):
            now = mixed(held, goal, scaled + (f(now) - before))
    return now


class CausalUnitNetwork(nn.Module):
    """Inputs that cause each other, and outputs read off them: (n, input_dim) -> (n, output_dim).

    ``model(x, interventions=[{name: (mask, values)}])`` first answers what the inputs of these very rows would be had
    the interventions been done (`CausalUnit.counterfactual`: do(x1) reaches x2 if x1 -> x2), then applies a plain MLP
    of hidden_dims to them. Several dicts act together. Names are x1, x2, … unless given. Without structure learning the
    graph is `adjacency` (input_dim, input_dim); without that either, columns are taken to be in causal order and each
    may cause all later ones.

    Raises:
        MisuseError: a dimension below 1, an adjacency beside structure learning, an unknown name, a node held twice in
            a row.
        ConfigurationError: a cyclic adjacency.
        DataError: rows, masks or values of the wrong shape, or not finite.
    """

    output_centre: Tensor
    output_spread: Tensor

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        output_dim: int,
        enable_structure_learning: bool = True,
        *,
        names: Sequence[str] | None = None,
        adjacency: Tensor | None = None,
        mechanism_units: int = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = [input_dim, *hidden_dims, output_dim]
        if min(sizes) < 1:
            raise MisuseError(f"Layers of sizes {sizes}: expected at least 1 each.")
        if enable_structure_learning and adjacency is not None:
            raise MisuseError(
                "An adjacency was given and is to be learnt: set enable_structure_learning=False to keep it."
            )
        names = tuple(f"x{i + 1}" for i in range(input_dim)) if names is None else tuple(names)
        if len(names) != input_dim:
            raise MisuseError(f"{len(names)} names for input_dim={input_dim}: expected one each.")
        if not enable_structure_learning and adjacency is None:
            adjacency = torch.ones(input_dim, input_dim).triu(1)
        self.unit = CausalUnit(names, mechanism_units, adjacency=adjacency, generator=generator)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [CausalLinear(inputs, outputs, generator=generator), nn.SiLU()]
        self.head = nn.Sequential(*layers[:-1])
        self.register_buffer("output_centre", torch.zeros(output_dim))
        self.register_buffer("output_spread", torch.ones(output_dim))

    def forward(self, x: Tensor, interventions: Sequence[Intervention] = ()) -> Tensor:
        """The outputs of the rows under the interventions; without any, of the rows as they are."""
        unit = self.unit
        x = finite("Rows", x, len(unit.names))
        held = _columns(unit.names, interventions, x) if interventions else {}
        if held and unit.learns_structure:
            return self.read(unit.counterfactual(x, *_spread_out(held, x)))
        centre, spread = unit.centre, unit.spread
        scaled = (x - centre) / spread
        if not held:
            return self._output(scaled)
        goals = [(mask, (value - centre[j]) / spread[j]) for j, (mask, value) in held.items()]
        # contiguous as plain rows are, or the products of rows that nothing holds would round another way
        found = self._output(_some_changed(unit._plan(tuple(held)), scaled, goals).contiguous())
        if not math.isfinite(found.detach().sum().item()):
            finite("Values", _spread_out(held, x)[1], len(unit.names))
        return found

    def counterfactual(self, x: Tensor, y: Tensor, interventions: Sequence[Intervention]) -> tuple[Tensor, Tensor]:
        """(x, y) of the same rows had the interventions been done: y keeps its own noise, y - output(x)."""
        y = finite("Outputs", y, len(self.output_centre), len(x))
        world = self.unit.counterfactual(x, *self.held(x, interventions))
        return world, y + (self.read(world) - self.read(x))

    def held(self, x: Tensor, interventions: Sequence[Intervention]) -> tuple[Tensor, Tensor]:
        """The interventions as (mask, value), each (n, input_dim); a value is 0 where nothing is held."""
        return _spread_out(_columns(self.unit.names, interventions, x), x)

    def read(self, x: Tensor) -> Tensor:
        """The head's outputs (n, output_dim) of rows (n, d) as they are: nothing is solved, nothing is checked."""
        return self._output((x - self.unit.centre) / self.unit.spread)

    def _output(self, scaled: Tensor) -> Tensor:
        return torch.addcmul(self.output_centre, self.output_spread, self.head(scaled))


def _some_changed(plan: Plan, scaled: Tensor, held: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """`Plan.change` of the rows in which anything is held, if that spares many."""
    if len(scaled) < _MANY:
        return plan.change(scaled, held)
    some = held[0][0] if len(held) == 1 else torch.stack([mask for mask, _ in held]).any(0)
    rows = some.nonzero().squeeze(1)
    if len(rows) > _MOST * len(scaled):
        return plan.change(scaled, held)
    chosen = [
        (mask.index_select(0, rows), value.index_select(0, rows) if value.ndim else value) for mask, value in held
    ]
    return scaled.index_copy(0, rows, plan.change(scaled.index_select(0, rows), chosen))


def _columns(
    names: Sequence[str], interventions: Sequence[Intervention], x: Tensor
) -> dict[int, tuple[Tensor, Tensor]]:
    """Named interventions by place; those of one node together."""
    _shaped("Rows", x, len(names))
    found: _Held = {}
    for name, (mask, value) in ((name, pair) for intervention in interventions for name, pair in intervention.items()):
        if name not in names:
            raise MisuseError(f"do() names {name}, which the model lacks. It has {', '.join(names)}.")
        j, given = names.index(name), torch.as_tensor(value, dtype=x.dtype, device=x.device)
        if mask.dtype != torch.bool or mask.shape != x.shape[:1] or given.shape not in ((), x.shape[:1]):
            raise DataError(
                f"do({name}) has a {mask.dtype} mask of shape {tuple(mask.shape)} and values of shape "
                f"{tuple(given.shape)}: expected a bool mask of shape ({len(x)},), and as many values or one."
            )
        if j in found:
            before, value_before = found[j]
            if bool((before & mask).any()):
                row = int((before & mask).nonzero()[0])
                raise MisuseError(
                    f"{name} is held twice in row {row}: merge the interventions or make their masks disjoint."
                )
            mask, given = before | mask, torch.where(mask, given, value_before)
        found[j] = mask, given
    return found


def _spread_out(held: _Held, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same as mask (n, d) bool and value (n, d), 0 where free; differentiable in the values."""
    masks, values = torch.zeros(x.shape, dtype=torch.bool, device=x.device), torch.zeros_like(x)
    for j, (mask, value) in held.items():
        masks[:, j], values[:, j] = mask, torch.where(mask, value, 0.0)
    return masks, values


def _depth(adjacency: Tensor, names: Sequence[str]) -> int:
    """Edges on the longest path of a (d, d) or of any of (n, d, d)."""
    edges = adjacency.detach().ne(0).float()
    walks, depth = edges, 0
    while bool(walks.any()):
        if (depth := depth + 1) >= edges.shape[-1]:
            closed = walks
            for _ in names:
                closed = ((closed @ edges) + walks).clamp(max=1)
            loops = closed.diagonal(dim1=-2, dim2=-1).reshape(-1, len(names)).any(0)
            on = ", ".join(name for name, loop in zip(names, loops.tolist(), strict=True) if loop)
            raise ConfigurationError(f"The adjacency holds a cycle through {on}: remove or reverse one of its edges.")
        walks = (walks @ edges).clamp(max=1)
    return depth


def _square(adjacency: Tensor, d: int) -> Tensor:
    if tuple(adjacency.shape) != (d, d) or not bool(torch.isfinite(adjacency).all()):
        raise MisuseError(
            f"An adjacency of shape {tuple(adjacency.shape)}: expected finite weights of shape ({d}, {d})."
        )
    return adjacency


def _shaped(what: str, given: Tensor, columns: int, rows: int | None = None) -> None:
    if given.ndim != 2 or given.shape[1] != columns or (rows is not None and len(given) != rows):
        wanted = f"({'n' if rows is None else rows}, {columns})"
        raise DataError(f"{what} of shape {tuple(given.shape)}: expected {wanted}.")


def finite(what: str, given: Tensor, columns: int, rows: int | None = None) -> Tensor:
    """``given``, if it is (rows, columns) and finite; else a DataError that says ``what`` it is and where it is not."""
    _shaped(what, given, columns, rows)
    # The sum alone is nearly free; if it overflows, the entries decide.
    if not math.isfinite(given.detach().sum().item()) and not bool(torch.isfinite(given).all()):
        row, column = torch.nonzero(~torch.isfinite(given))[0].tolist()
        value: Any = given[row, column].item()
        raise DataError(f"{what}: row {row}, column {column} is {value}, expected finite numbers.")
    return given


def _sound(found: Tensor, value: Tensor) -> Tensor:
    """What was found; values that were held are part of it, so that only if it is not finite they are looked at."""
    if not math.isfinite(found.detach().sum().item()):
        finite("Values", value, found.shape[1])
    return found


def _kept(store: dict[Any, Any], of: Sequence[Tensor], key: tuple[int, ...] | None, make: Callable[[], _T]) -> _T:
    """What follows from some tensors, made once for each key as long as they stay what they are."""
    try:
        now = [(one.data_ptr(), one._version) for one in of]
    except RuntimeError:  # tensors made in inference mode do not count their changes
        return make()
    if store.get("of") != now or len(store) > _PLANS:
        store.clear()
        store["of"] = now
    if key not in store:
        store[key] = make()
    found: _T = store[key]
    return found


def positive(name: str, value: float) -> float:
    """``value``, if it is finite and above 0; else a MisuseError."""
    if not (value > 0 and math.isfinite(value)):
        raise MisuseError(f"{name}={value}: expected a finite number above 0.")
    return value
