"""Background knowledge: required and forbidden directed edges, and tiers of time (Spirtes et al., 2000).

Knowledge prunes: what it excludes is never tested and never scored, rather than struck from the outcome
afterwards. In TOML, at the top or under ``[knowledge]``::

    required = [["smoking", "tar"]]
    forbidden = [["cancer", "age"]]
    tiers = { age = 0, smoking = 1, cancer = 2 }
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from causaldao.errors import ConfigurationError
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.pattern import meek


@dataclass(frozen=True)
class Knowledge:
    """What is known of a graph before any data. ``(a, b)`` stands for the directed edge a -> b.

    A required edge forbids its reverse. A variable of a later tier causes none of an earlier one; inside a
    tier, and for variables without one, nothing is said.

    Raises:
        ConfigurationError: an edge both required and forbidden, required both ways, against the tiers or
            around a cycle; a pair that is not two different names; a tier that is not an integer.
    """

    required: frozenset[Pair] = frozenset()
    forbidden: frozenset[Pair] = frozenset()
    tiers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "required", _pairs("required", self.required))
        object.__setattr__(self, "forbidden", _pairs("forbidden", self.forbidden))
        object.__setattr__(self, "tiers", _tiers(self.tiers))
        problems = [*self._clashes()]
        if problems:
            raise ConfigurationError("The background knowledge contradicts itself:", problems=problems)
        if problems := [*self._against_time(CausalGraph.dag(self.required))]:
            raise ConfigurationError("The background knowledge contradicts itself:", problems=problems)

    def __hash__(self) -> int:
        return hash((self.required, self.forbidden, tuple(sorted(self.tiers.items()))))

    def __bool__(self) -> bool:
        return bool(self.required or self.forbidden or self.tiers)

    @property
    def names(self) -> frozenset[str]:
        """Every name that the knowledge speaks of."""
        return frozenset(name for pair in self.required | self.forbidden for name in pair) | frozenset(self.tiers)

    def allows(self, a: str, b: str) -> bool:
        """Whether a -> b may be: not forbidden, its reverse not required, and not from a later tier to an
        earlier.
        """
        return (a, b) not in self.forbidden and (b, a) not in self.required and self.in_time(a, b)

    def adjacency_excluded(self, a: str, b: str) -> bool:
        """Whether neither direction may be, so that the pair is not adjacent and needs no test."""
        return not (self.allows(a, b) or self.allows(b, a))

    def requires(self, a: str, b: str) -> bool:
        """Whether a -> b or b -> a is required, so that the pair is adjacent and needs no test."""
        return (a, b) in self.required or (b, a) in self.required

    def conditioning_allowed(self, a: str, c: str) -> bool:
        """Whether c may stand in a separating set drawn from the adjacencies of a.

        Two variables of a DAG that are not adjacent are separated by the parents of one of them, so only
        possible parents of a need be tried from its side.
        """
        return self.allows(c, a)

    def orient(self, graph: CausalGraph) -> CausalGraph:
        """Direct the undirected edges whose reverse the knowledge rules out, then close under Meek's rules.

        Knowledge goes before the data: an edge so directed may make a collider that the graph did not have.

        Raises:
            ConfigurationError: an edge of the graph that the knowledge excludes, or a directed cycle that it
                forces.
        """
        self.check(graph.nodes)
        if wrong := sorted(pair for pair in graph.directed if not self.allows(*pair)):
            raise ConfigurationError(f"the graph has {_arrow(wrong[0])}, which the knowledge rules out.")
        arrows = {pair for edge in graph.undirected for pair in (edge, edge[::-1]) if not self.allows(*pair[::-1])}
        if both := sorted(pair for pair in arrows if pair[::-1] in arrows):
            raise ConfigurationError(f"{both[0][0]} and {both[0][1]} are adjacent, which the knowledge rules out.")
        lines = [pair for pair in graph.undirected if pair not in arrows and pair[::-1] not in arrows]
        return meek(CausalGraph.cpdag([*graph.directed, *arrows], lines, graph.nodes))

    def merge(self, other: Knowledge) -> Knowledge:
        """The knowledge of both. Raises ConfigurationError naming each clash, tiers that differ included."""
        if differing := sorted(n for n in self.tiers.keys() & other.tiers.keys() if self.tiers[n] != other.tiers[n]):
            problems = [f"{name} is in tier {self.tiers[name]} and in tier {other.tiers[name]}" for name in differing]
            raise ConfigurationError("The two bodies of knowledge put variables in different tiers:", problems=problems)
        return Knowledge(
            self.required | other.required, self.forbidden | other.forbidden, {**self.tiers, **other.tiers}
        )

    def check(self, names: Iterable[str]) -> None:
        """Raise ConfigurationError listing every name that the knowledge speaks of and ``names`` lacks."""
        known = sorted(names)
        if unknown := sorted(self.names - set(known)):
            raise ConfigurationError(
                f"The background knowledge names unknown variables {unknown}. The variables are {', '.join(known)}."
            )

    def to_json(self) -> dict[str, Any]:
        """A plain dict of sorted lists: required, forbidden, tiers."""
        return {
            "required": [list(pair) for pair in sorted(self.required)],
            "forbidden": [list(pair) for pair in sorted(self.forbidden)],
            "tiers": dict(sorted(self.tiers.items())),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Knowledge:
        """The knowledge that `to_json` wrote; absent keys are empty, unknown keys a ConfigurationError."""
        if unknown := sorted(set(data) - {"required", "forbidden", "tiers"}):
            raise ConfigurationError(f"unknown keys {unknown} in the knowledge. Keys are required, forbidden, tiers.")
        required, forbidden, tiers = (
            data.get("required", ()),
            data.get("forbidden", ()),
            data.get("tiers", {}),
        )
        return cls(_pairs("required", required), _pairs("forbidden", forbidden), tiers)

    @classmethod
    def from_toml(cls, text: str) -> Knowledge:
        """Knowledge from TOML text: the keys at the top, or in the table ``[knowledge]``."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"the knowledge is not TOML: {error}.") from error
        return cls.from_json(data["knowledge"] if isinstance(data.get("knowledge"), dict) else data)

    def in_time(self, a: str, b: str) -> bool:
        """Whether the tiers let a cause b, directly or through others."""
        return a not in self.tiers or b not in self.tiers or self.tiers[a] <= self.tiers[b]

    def _clashes(self) -> Iterable[str]:
        for a, b in sorted(self.required):
            if (a, b) in self.forbidden:
                yield f"{a} -> {b} is both required and forbidden"
            if (b, a) in self.required and a < b:
                yield f"{a} -> {b} and {b} -> {a} are both required"
            if not self.in_time(a, b):
                early, late = self.tiers[b], self.tiers[a]
                yield f"{a} -> {b} is required, but {a} is in tier {late} and {b} in tier {early}"

    def _against_time(self, required: CausalGraph) -> Iterable[str]:
        """Required paths from a later tier to an earlier one, through variables without a tier."""
        for b in required.nodes:
            for a in sorted(required.ancestors(b) - {b}):
                if not self.in_time(a, b):
                    early, late = self.tiers[b], self.tiers[a]
                    yield f"required edges lead from {a} to {b}, but {a} is in tier {late} and {b} in tier {early}"


def _arrow(pair: Pair) -> str:
    return f"{pair[0]} -> {pair[1]}"


def _pairs(kind: str, pairs: Iterable[Sequence[str]]) -> frozenset[Pair]:
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise ConfigurationError(f"{kind} is {pairs!r}. Give a list of pairs [cause, effect].")
    return frozenset(_names(kind, pair) for pair in pairs)


def _names(kind: str, pair: Sequence[str]) -> Pair:
    names = tuple(pair) if isinstance(pair, list | tuple) else ()
    if len(names) != 2 or not all(isinstance(name, str) and name for name in names) or names[0] == names[1]:
        raise ConfigurationError(f"{kind} has {pair!r}. Give pairs [cause, effect] of two different names.")
    return names


def _tiers(tiers: Mapping[str, int]) -> Mapping[str, int]:
    if not isinstance(tiers, Mapping):
        raise ConfigurationError(f"tiers is {tiers!r}. Give a table of names and integers, such as {{ age = 0 }}.")
    if bad := [name for name, tier in tiers.items() if not isinstance(tier, int) or isinstance(tier, bool)]:
        raise ConfigurationError(
            f"the tier of {bad[0]!r} is {tiers[bad[0]]!r}. Give an integer; causes have lower ones."
        )
    return MappingProxyType(dict(tiers))


NONE = Knowledge()
