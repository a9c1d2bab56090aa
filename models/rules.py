"""Causal rules: statements "cause brings about effect, this strongly, after so long", and sets of them.

A rule is what a person can say and sign. A rule set is many-to-many: an effect may have many causes and a
cause many effects. It turns into a `CausalGraph` (structure) and into `Knowledge` (what discovery has to
respect).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from causaldao.errors import ConfigurationError
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import Knowledge

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, order=True)
class CausalRule:
    """``cause`` acts on ``effect`` with ``strength`` in [-1, 1], from ``offset`` on and for ``duration``.

    Times are in the unit of the study and not negative; offset 0 is within one record, duration 0 a single
    moment. The sign of the strength is the sign of the effect, and 0 states that there is none. A variable
    may act on itself only later.

    Raises:
        ConfigurationError: a name is empty, a number out of its bounds, or a cause its own effect at offset
        0.
    """

    cause: str
    effect: str
    strength: float = 1.0
    offset: float = 0
    duration: float = 0

    def __post_init__(self) -> None:
        for name in (self.cause, self.effect):
            if not isinstance(name, str) or not name:
                raise ConfigurationError(f"a rule names {name!r}. Cause and effect are strings that are not empty.")
        _check_number(self, "strength", -1.0, 1.0)
        _check_number(self, "offset", 0.0, math.inf)
        _check_number(self, "duration", 0.0, math.inf)
        if self.cause == self.effect and not self.offset:
            raise ConfigurationError(f"{self}: no variable causes itself at once. Give a positive offset.")

    def __str__(self) -> str:
        return f"{self.cause} -> {self.effect} at offset {self.offset:g}"


@dataclass(frozen=True)
class CausalRuleSet:
    """An immutable set of rules, in a fixed order that does not depend on how they came.

    Raises:
        ConfigurationError: one (cause, effect, offset) has two different strengths or durations.
    """

    rules: tuple[CausalRule, ...] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(set(self.rules), key=lambda rule: (_slot(rule), rule)))
        object.__setattr__(self, "rules", ordered)
        for one, two in pairwise(ordered):
            if _slot(one) == _slot(two):
                raise ConfigurationError(
                    f"{one} has strength {one.strength} for {one.duration:g} and strength {two.strength} for "
                    f"{two.duration:g}. Keep one of the two."
                )

    def add(self, rule: CausalRule) -> CausalRuleSet:
        """A new set with the rule; the same rule again changes nothing."""
        return CausalRuleSet((*self.rules, rule))

    def __iter__(self) -> Iterator[CausalRule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def __contains__(self, rule: object) -> bool:
        return rule in self.rules

    @property
    def names(self) -> tuple[str, ...]:
        """The sorted names that the rules speak of."""
        return tuple(sorted({name for rule in self.rules for name in (rule.cause, rule.effect)}))

    def to_graph(self, *, lagged: bool = False) -> CausalGraph:
        """The DAG over `names` of the rules with strength other than 0 at offset 0; ``lagged`` adds the later
        ones.

        Raises:
            ConfigurationError: the edges make a cycle, which is named. Feedback over time (a now, b later, a
                later still) is a cycle only with ``lagged``.
        """
        return CausalGraph.dag(self._edges(0.0, lagged), self.names)

    def to_knowledge(self, threshold: float = 0.5) -> Knowledge:
        """Require the edges of the rules at offset 0 whose |strength| is ``threshold`` or more, and forbid
        those of 0.

        Weaker rules say nothing, and rules with an offset speak of no edge within a record.
        """
        if not 0 < threshold <= 1:
            raise ConfigurationError(
                f"threshold is {threshold}. Give a number in (0, 1]: it is compared with |strength|."
            )
        none = frozenset(_pair(rule) for rule in self.rules if rule.offset == 0 and rule.strength == 0)
        return Knowledge(required=frozenset(self._edges(threshold, lagged=False)), forbidden=none)

    def adjacency(self, offset: float = 0) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
        """(float64 matrix (d, d), names): [i, j] is the strength of i on j at that offset, 0 if no rule."""
        index = {name: i for i, name in enumerate(self.names)}
        matrix = np.zeros((len(index), len(index)))
        for rule in self.rules:
            if rule.offset == offset:
                matrix[index[rule.cause], index[rule.effect]] = rule.strength
        return matrix, self.names

    def to_json(self) -> list[dict[str, Any]]:
        """A list of plain dicts: cause, effect, strength, offset, duration."""
        return [asdict(rule) for rule in self.rules]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]]) -> CausalRuleSet:
        """The rules that `to_json` wrote; numbers may be left out, unknown keys are a ConfigurationError."""
        return cls(tuple(map(_rule, data)))

    def _edges(self, least: float, lagged: bool) -> list[Pair]:
        rules = [r for r in self.rules if r.strength and abs(r.strength) >= least and (lagged or r.offset == 0)]
        return sorted({_pair(rule) for rule in rules if rule.cause != rule.effect})


def _pair(rule: CausalRule) -> Pair:
    return rule.cause, rule.effect


def _slot(rule: CausalRule) -> tuple[str, str, float]:
    return rule.cause, rule.effect, rule.offset


def _check_number(rule: CausalRule, name: str, low: float, high: float) -> None:
    value = getattr(rule, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigurationError(f"{name} of {rule.cause} -> {rule.effect} is {value!r}. Give a finite number.")
    if not low <= value <= high:
        bound = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"of {low:g} or more"
        raise ConfigurationError(f"{name} of {rule.cause} -> {rule.effect} is {value}. Give a number {bound}.")


def _rule(data: Mapping[str, Any]) -> CausalRule:
    keys = [f.name for f in fields(CausalRule)]
    if not isinstance(data, Mapping) or not {"cause", "effect"} <= set(data) <= set(keys):
        raise ConfigurationError(f"not a rule: {data!r}. A rule has cause and effect, and may have {keys[2:]}.")
    return CausalRule(**data)
