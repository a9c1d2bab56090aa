"""Interventions: what is done to which variables of a structural model.

Three actions (Pearl, *Causality*, 2009, §3.2 and 4.2; Eberhardt & Scheines, 2007): `Set` puts a value in place of the
equation (hard), `Shift` adds to what the equation gives, `Law` puts another equation in its place (soft). An
`Intervention` is a set of them, each on a variable of its own; `|` joins two. Values are natural units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.graph import CausalGraph

Value = float | Tensor  # one for all rows, or one for each: (n,)
Columns = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Set:
    """X = value."""

    value: Value


@dataclass(frozen=True, eq=False)
class Shift:
    """X = f(parents, noise) + by."""

    by: Value


@dataclass(frozen=True, eq=False)
class Law:
    """X = draw(parents, noise): another mechanism over parents of its own.

    ``draw`` takes natural columns (n,) by name and the noise of X: standard normal (n,), of a category one Gumbel
    variable for each level (levels, n). In a counterfactual that is the noise of the factual row. ``log_prob``
    (columns, values) -> (n,) is needed only to condition on X.
    """

    parents: tuple[str, ...]
    draw: Callable[[Columns, Tensor], Tensor]
    log_prob: Callable[[Columns, Tensor], Tensor] | None = None

    @classmethod
    def normal(cls, mean: float, deviation: float) -> Law:
        """N(mean, deviation²), whatever the parents."""
        if not (math.isfinite(mean) and 0 < deviation < math.inf):
            raise MisuseError(f"N({mean}, {deviation}²): expected a finite mean and a positive, finite deviation.")

        def log_prob(columns: Columns, value: Tensor) -> Tensor:
            return -(((value - mean) / deviation).square() + math.log(2 * math.pi * deviation**2)) / 2

        return cls((), lambda columns, noise: mean + deviation * noise, log_prob)


Action = Set | Shift | Law


@dataclass(frozen=True, eq=False)
class Intervention:
    """Actions by the name of the variable; none at all leaves the model as it is."""

    actions: Mapping[str, Action] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def set(cls, **values: Value) -> Intervention:
        """do(X = value) for each."""
        return cls({name: Set(value) for name, value in values.items()})

    @classmethod
    def shift(cls, **deltas: Value) -> Intervention:
        """X = f(parents, noise) + delta for each."""
        return cls({name: Shift(delta) for name, delta in deltas.items()})

    @classmethod
    def replace(cls, **laws: Law) -> Intervention:
        """Another mechanism for each."""
        return cls(dict(laws))

    def __or__(self, other: Intervention) -> Intervention:
        """Both at once. MisuseError where they act on one variable: which comes first is not said."""
        if twice := sorted(set(self.actions) & set(other.actions)):
            raise MisuseError(f"{', '.join(twice)} is acted on twice. Say once what is done to each variable.")
        return Intervention({**self.actions, **other.actions})

    def of_kind(self, kind: type[Action]) -> tuple[str, ...]:
        """The variables that have an action of that kind."""
        return tuple(name for name, action in self.actions.items() if isinstance(action, kind))

    def graph(self, graph: CausalGraph) -> CausalGraph:
        """The graph under the intervention: no edge into a set variable, and a law's own parents into its variable.

        Raises:
            MisuseError: a variable that the graph lacks, or a law whose parents close a cycle.
        """
        self._require_known(graph)
        kept = [(a, b) for a, b in graph.directed if not isinstance(self.actions.get(b), Set | Law)]
        new = [(p, b) for b, law in self.actions.items() if isinstance(law, Law) for p in law.parents]
        try:
            return CausalGraph.dag([*kept, *new], graph.nodes)
        except ConfigurationError as error:
            raise MisuseError(f"The new mechanism cannot stand in this graph: {error}") from error

    def require(self, graph: CausalGraph, rows: int) -> None:
        """MisuseError, or DataError for a column of values, where an action cannot be done to ``rows`` rows."""
        self._require_known(graph)
        for name, action in self.actions.items():
            if not isinstance(action, Law):
                what = f"do({name})" if isinstance(action, Set) else f"shift({name})"
                _require_value(what, action.value if isinstance(action, Set) else action.by, rows)

    def _require_known(self, graph: CausalGraph) -> None:
        named = {*self.actions, *(p for law in self.actions.values() if isinstance(law, Law) for p in law.parents)}
        if unknown := sorted(named - set(graph.nodes)):
            raise MisuseError(
                f"The intervention names {', '.join(unknown)}, which the model lacks. It has {', '.join(graph.nodes)}."
            )


def intervention(do: Intervention | Mapping[str, float] | None) -> Intervention:
    """An intervention as it is; a mapping of values as do(); None as none."""
    return (
        do if isinstance(do, Intervention) else Intervention({name: Set(value) for name, value in (do or {}).items()})
    )


def _require_value(what: str, value: Value, rows: int) -> None:
    if not isinstance(value, Tensor):
        if not math.isfinite(value):
            raise MisuseError(f"{what} = {value}: expected a finite number.")
    elif value.shape != (rows,):
        raise DataError(f"{what} has values of shape {tuple(value.shape)}: expected ({rows},), one for each row.")
    elif not bool(torch.isfinite(value).all()):
        row = int(torch.nonzero(~torch.isfinite(value))[0])
        raise DataError(f"{what} is {value[row].item()} in row {row}: expected finite numbers.")


def column(value: Value, rows: int) -> Tensor:
    """The values for each row: (rows,) float64."""
    return value.double() if isinstance(value, Tensor) else torch.full((rows,), float(value), dtype=torch.float64)
