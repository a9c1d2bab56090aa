"""An identified effect: the question, the expression that answers it, the reason, and its value on a joint table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from causaldao.errors import DataError, MisuseError
from causaldao.models.expression import Expression, Probability, Product, Quotient, Sum, free
from causaldao.models.notation import LATEX, TEXT, Notation, printed, query

if TYPE_CHECKING:
    import numpy.typing as npt

_SUM = 1e-6  # how far a joint table's sum may be from 1


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers over the values of discrete variables: ``values`` has one axis for each of ``names``, in that order.

    Raises:
        MisuseError: a name twice, or another number of axes than of names.
    """

    names: tuple[str, ...]
    values: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float64))
        if len(set(self.names)) < len(self.names):
            raise MisuseError(f"The axes are named {list(self.names)}, one name twice. Give each axis its own.")
        if self.values.ndim != len(self.names):
            raise MisuseError(f"The table has {self.values.ndim} axes and {len(self.names)} names. Name each axis.")


@dataclass(frozen=True)
class Estimand:
    """P(outcome | do(treatment), conditions) as an expression in the distribution of the observed variables.

    method: how it was found, "adjustment", "front-door", "none" (no causal path: nothing changes) or "ID"; why: the
    reason in sentences. `str` gives the equation.
    """

    treatment: tuple[str, ...]
    outcome: tuple[str, ...]
    conditions: tuple[str, ...]
    expression: Expression
    method: str
    why: tuple[str, ...] = ()

    @cached_property
    def arbitrary(self) -> tuple[str, ...]:
        """Variables that the expression names but its value does not depend on, if the graph is right (as the z of the
        napkin graph, whose ratio is the same for each z)."""
        return tuple(sorted(free(self.expression) - {*self.treatment, *self.outcome, *self.conditions}))

    @cached_property
    def variables(self) -> frozenset[str]:
        """All variables that are asked for or whose distribution the expression needs."""
        return frozenset({*self.treatment, *self.outcome, *self.conditions}) | _mentioned(self.expression)

    @property
    def text(self) -> str:
        """The expression alone, as text."""
        return self._printed(TEXT)

    @property
    def latex(self) -> str:
        """The whole equation, in LaTeX."""
        return f"{query(self.outcome, self.treatment, self.conditions, LATEX)} = {self._printed(LATEX)}"

    def __str__(self) -> str:
        told = f"  for any {', '.join(self.arbitrary)}" if self.arbitrary else ""
        return f"{query(self.outcome, self.treatment, self.conditions, TEXT)} = {self.text}{told}"

    def evaluate(self, joint: Table) -> Table:
        """The effect in a population whose joint distribution is ``joint``: a table over (treatment, conditions,
        outcome), in which the outcome sums to 1 for each value of the others.

        Variables that are `arbitrary` are averaged over their own distribution. More variables in ``joint`` than the
        expression names do no harm. Cost: a few arrays as large as ``joint``.

        Raises:
            MisuseError: ``joint`` lacks a variable.
            DataError: ``joint`` is no distribution, or has a cell of probability 0 that must be divided by.
        """
        asked = (*self.treatment, *self.conditions, *self.outcome)
        _require_distribution(joint, {*asked, *free(self.expression), *_mentioned(self.expression)})
        values = _value(self.expression, joint)
        if self.arbitrary:
            weights = _value(Probability(frozenset(self.arbitrary)), joint)
            values = (values * weights).sum(axis=_axes(joint, self.arbitrary), keepdims=True)
        shape = [size if name in asked else 1 for name, size in zip(joint.names, joint.values.shape, strict=True)]
        kept = [name for name in joint.names if name in asked]
        whole = np.broadcast_to(values, shape).reshape([joint.values.shape[joint.names.index(n)] for n in kept])
        return Table(asked, whole.transpose([kept.index(name) for name in asked]).copy())

    def to_json(self) -> dict[str, Any]:
        """The question, the answer as text and LaTeX, and the reason, as plain data."""
        return {
            "treatment": list(self.treatment),
            "outcome": list(self.outcome),
            "conditions": list(self.conditions),
            "method": self.method,
            "estimand": self.text,
            "latex": self.latex,
            "arbitrary": list(self.arbitrary),
            "why": list(self.why),
        }

    def _printed(self, notation: Notation) -> str:
        taken = {*self.treatment, *self.outcome, *self.conditions, *self.arbitrary}
        return printed(self.expression, notation, sorted(taken))


def _mentioned(expression: Expression) -> frozenset[str]:
    """All variables of an expression, also those that a sum binds."""
    match expression:
        case Probability(of, given):
            return of | given
        case Product(factors):
            return frozenset[str]().union(*map(_mentioned, factors))
        case Sum(_, body):
            return _mentioned(body)
        case Quotient(above, below):
            return _mentioned(above) | _mentioned(below)


def _require_distribution(joint: Table, needed: set[str]) -> None:
    if missing := sorted(needed - set(joint.names)):
        raise MisuseError(f"The joint table lacks {', '.join(missing)}; it has {', '.join(joint.names)}. Add them.")
    whole, least = float(joint.values.sum()), float(joint.values.min(initial=0.0))
    if not (abs(whole - 1) <= _SUM and least >= 0):
        raise DataError(
            f"The joint table sums to {whole:.6g} and its least entry is {least:.6g}: expected probabilities >= 0 that "
            "sum to 1. Divide counts by their total."
        )


def _axes(joint: Table, names: Sequence[str] | frozenset[str]) -> tuple[int, ...]:
    return tuple(axis for axis, name in enumerate(joint.names) if name in names)


def _value(expression: Expression, joint: Table) -> npt.NDArray[np.float64]:
    """The value over the axes of ``joint``, of length 1 where it does not depend on one: a sum drops what it binds."""
    match expression:
        case Probability(of, given):
            both = _marginal(joint, of | given)
            return _divided(both, both.sum(axis=_axes(joint, of), keepdims=True), joint) if given else both
        case Product(factors):
            result = np.ones((1,) * len(joint.names))
            for factor in factors:
                result = result * _value(factor, joint)
            return result
        case Sum(over, body):
            return np.asarray(_value(body, joint).sum(axis=_axes(joint, over), keepdims=True))
        case Quotient(above, below):
            return _divided(_value(above, joint), _value(below, joint), joint)


def _marginal(joint: Table, kept: frozenset[str]) -> npt.NDArray[np.float64]:
    others = tuple(axis for axis, name in enumerate(joint.names) if name not in kept)
    return np.asarray(joint.values.sum(axis=others, keepdims=True))


def _divided(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64], joint: Table) -> npt.NDArray[np.float64]:
    if not (below > 0).all():
        cell = np.argwhere(~(below > 0))[0]
        where = ", ".join(
            f"{name} = level {place}"
            for name, place, size in zip(joint.names, cell, below.shape, strict=True)
            if size > 1
        )
        raise DataError(
            f"No record has {where}, and the effect divides by the probability of that. Merge or drop levels until "
            "each combination occurs."
        )
    return above / below
