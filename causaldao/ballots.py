"""Proposal and verifiable ballots.

The proposal is what discovery finds in the pool, taken apart into *marks*: adjacencies, and unshielded colliders. A
ballot says of each mark +1, -1 or 0, by a noise-aware test in the voter's own released evidence; the voter's declared
knowledge overrides. A ballot is a function of public things, so anyone can recompute it (`recheck`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Any

import torch

from causaldao.errors import CausalDAOError, ConfigurationError, IdentityError
from causaldao.messages import fields
from causaldao.models.discovery import search
from causaldao.models.discovery.clipping import off_centre, restoration
from causaldao.models.discovery.evidence import Evidence, Partial
from causaldao.models.discovery.reading import Along, Reading, row_of
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import extension
from causaldao.signing import canonical, sha256

NEAR_TIE = 1e-6  # a statistic this close to its threshold may fall otherwise on another machine


@dataclass(frozen=True)
class Mark:
    """An adjacency (a, b), a < b, or an unshielded collider (a, c, b), a < b, c the collider.

    ``given`` is the conditioning set of its test: the partial correlation of the two ends is not zero; ``strength`` is
    that correlation in the pool, ``z`` and ``error`` Fisher's z of it and its standard error. ``along`` are the weights
    of the ends' directions where evidence is of blocks (`Reading.along`). ``within`` are name, z and error of the same
    test in each environment's pool alone, where members declare environments and it has power there.
    """

    nodes: tuple[str, ...]
    given: tuple[str, ...] = ()
    strength: float = 0.0
    z: float = 0.0
    error: float = 0.0
    along: Along = ()
    within: tuple[tuple[str, float, float], ...] = ()

    @property
    def kind(self) -> str:
        return "adjacency" if len(self.nodes) == 2 else "collider"

    @property
    def ends(self) -> tuple[str, str]:
        return self.nodes[0], self.nodes[-1]

    @property
    def key(self) -> str:
        return " - ".join(self.nodes) if len(self.nodes) == 2 else "{} -> {} <- {}".format(*self.nodes)

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": list(self.nodes), "given": list(self.given), "strength": self.strength, "z": self.z,
            "error": self.error, **({"along": [list(weights) for weights in self.along]} if self.along else {}),
            **({"within": {name: [z, error] for name, z, error in self.within}} if self.within else {}),
        }  # fmt: skip

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Mark:
        """Read a mark; anything that a test could stumble over is an IdentityError."""
        try:
            nodes, given = tuple(value["nodes"]), tuple(value["given"])
            numbers = [value["strength"], value["z"], value["error"]]
            named = all(isinstance(name, str) for name in (*nodes, *given)) and len(nodes) in (2, 3)
            apart = len(set(nodes)) == len(nodes) and not {nodes[0], nodes[-1]} & set(given)
            real = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            along: Along = ()
            if "along" in value:
                one, other = value["along"]
                along = (row_of(one), row_of(other))
            within = tuple((str(name), *_z_and_error(pair)) for name, pair in sorted(value.get("within", {}).items()))
        except (AttributeError, KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
            raise IdentityError(f"A mark of the proposal is not in its JSON form: {error}.") from error
        if not (named and apart and real) or numbers[2] < 0:
            raise IdentityError(f"The mark {nodes} given {given} with numbers {numbers} is none that discovery makes.")
        return Mark(nodes, given, float(numbers[0]), float(numbers[1]), float(numbers[2]), along, within)


@dataclass(frozen=True)
class Proposal:
    """A pattern (CPDAG) and its marks, with the decisions of discovery that hung on less than 1e-6.

    ``reading`` is how everybody's evidence is read; it says nothing where each variable is its own column.
    ``arrows`` are the directed edges that interventions tell of (`causaldao.conditions`).
    ``unrestored`` names the variable that forbade to put back what the clip took, in a study that asked for it.
    """

    pattern: CausalGraph
    marks: tuple[Mark, ...]
    near_ties: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)
    unrestored: str = ""
    arrows: tuple[Pair, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: a ballot names the proposal that it answers by this."""
        return sha256(canonical(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        return {
            "pattern": self.pattern.to_json(),
            "marks": [mark.to_json() for mark in self.marks],
            "near_ties": list(self.near_ties),
            **({"reading": self.reading.to_json()} if self.reading else {}),
            **({"unrestored": self.unrestored} if self.unrestored else {}),
            **({"arrows": [list(arrow) for arrow in self.arrows]} if self.arrows else {}),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Proposal:
        """Read a proposal; an IdentityError for marks or directions that no test could use, or arrows it has not."""
        marks = tuple(Mark.from_json(mark) for mark in value["marks"])
        reading = Reading.from_json(value.get("reading", {}))
        pattern, unrestored = CausalGraph.from_json(value["pattern"]), str(value.get("unrestored", ""))
        arrows = _arrows(value.get("arrows", []), pattern)
        proposal = Proposal(pattern, marks, tuple(value["near_ties"]), reading, unrestored, arrows)
        for mark in marks:
            sizes = [len(reading.directions.get(end, ((1.0,),))) for end in mark.ends]
            if [len(weights) for weights in mark.along] != ([] if sizes == [1, 1] else sizes):
                raise IdentityError(f"The mark {mark.key} weighs directions that its ends do not have.")
        return proposal


@dataclass(frozen=True)
class Ballot:
    """A vote on each mark: +1 the own evidence shows it, -1 contradicts it, 0 has no power to say.

    ``proposal`` is the digest of the proposal that was voted on. Without it a coordinator could show members different
    proposals and let an honest ballot look like one that does not follow.
    """

    votes: Mapping[str, int]
    knowledge: Knowledge = field(default=NONE)
    near_ties: tuple[str, ...] = ()
    proposal: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "votes": dict(self.votes), "knowledge": self.knowledge.to_json(), "near_ties": list(self.near_ties),
            "proposal": self.proposal,
        }  # fmt: skip

    @staticmethod
    def from_json(value: Any, proposal: Proposal) -> Ballot:
        """Read a ballot on ``proposal``: exactly its marks, each -1, 0 or +1; anything else is an IdentityError."""
        if not isinstance(value, Mapping):
            raise IdentityError(f"Expected a ballot, but got a {type(value).__name__}.")
        fields(value, {"votes": dict, "knowledge": dict, "near_ties": list, "proposal": str})
        try:
            knowledge = Knowledge.from_json(value["knowledge"])
            knowledge.check(proposal.pattern.nodes)
        except (TypeError, ValueError, AttributeError, CausalDAOError) as error:
            raise IdentityError("The knowledge that a ballot declares is not in its JSON form.") from error
        votes, ties, keys = value["votes"], value["near_ties"], {mark.key for mark in proposal.marks}
        wrong = sorted(set(votes) ^ keys) + sorted(k for k, v in votes.items() if type(v) is not int or abs(v) > 1)
        if wrong or not all(isinstance(tie, str) and tie in keys for tie in ties):
            raise IdentityError(
                f"A ballot votes -1, 0 or +1 on each mark of the proposal; {len(wrong)} are wrong here."
            )
        if value["proposal"] != proposal.digest:
            raise IdentityError(f"The ballot answers another proposal than {proposal.digest[:12]}.")
        return Ballot(dict(votes), knowledge, tuple(ties), proposal.digest)


def propose(
    evidence: Evidence, method: str, knowledge: Knowledge, *, seed: int, clip: float | None = None, **options: Any
) -> Proposal:
    """What discovery finds in the pooled evidence, as a pattern with its marks.

    ``seed`` is public (from the study's hash), so that anyone finds the same. ``clip`` is C² where what it took is to
    be put back first; where a variable's mean forbids that, the proposal names it and rests on the evidence as it is.
    """
    reading, unrestored = _read(evidence, clip)
    if method in ("boss", "moment-fit"):
        options = {**options, "generator": torch.Generator().manual_seed(seed)}
    found = search(reading.applied(evidence), method, knowledge, **options)
    ties = tuple(Mark(pair).key for pair in sorted(found.near_ties))
    return Proposal(found.graph, marks_of(found.graph, evidence, reading), ties, reading, unrestored)


def _read(evidence: Evidence, clip: float | None) -> tuple[Reading, str]:
    if evidence.blocks:
        return Reading.of_blocks(evidence), ""
    if clip is None:
        return Reading(), ""
    off = off_centre(evidence)
    return (Reading(), off[0]) if off else (Reading.of_map(evidence.names, restoration(evidence, clip)), "")


def marks_of(pattern: CausalGraph, evidence: Evidence, reading: Reading | None = None) -> tuple[Mark, ...]:
    """The marks of a pattern, each with the test that any holder of evidence can make of it.

    In the extension taken in name order, an adjacency p → c is tested given the other parents of c; a collider
    a → c ← b given c and the parents of the later of a and b, which separate them (local Markov property).
    """
    reading = Reading() if reading is None else reading
    dag = extension(pattern)
    if dag is None:
        raise ConfigurationError(f"The pattern {pattern} has no DAG extension: discovery must return one that has.")
    place = {name: k for k, name in enumerate(dag.topological_order())}
    marks = []
    for a, b in sorted(pattern.skeleton()):
        parent, child = sorted((a, b), key=place.__getitem__)
        marks.append(_mark((a, b), set(dag.parents(child)) - {parent}, evidence, reading))
    for a, c, b in sorted(pattern.unshielded_colliders()):
        later = max((a, b), key=place.__getitem__)
        marks.append(_mark((a, c, b), {*dag.parents(later), c}, evidence, reading))
    return tuple(marks)


def _mark(nodes: tuple[str, ...], given: set[str], evidence: Evidence, reading: Reading) -> Mark:
    a, b, others = nodes[0], nodes[-1], sorted(given)
    along = reading.along(evidence, a, b, others)
    test = reading.test(evidence, a, b, others, along)
    error = test.standard_error if test.sampling_error < float("inf") else 0.0
    return Mark(nodes, tuple(others), test.correlation, test.z, error, along)


def cast(
    proposal: Proposal,
    own: Evidence,
    knowledge: Knowledge = NONE,
    level: float = 0.01,
    targets: Iterable[str] = (),
    environment: str | None = None,
    lacks: Iterable[str] = (),
) -> Ballot:
    """The ballot that follows from ``own`` evidence and declared knowledge at the study's two-sided test level.

    +1 if the own z is significant in the pool's direction; else -1 if it differs significantly from the pool's z;
    else 0. Both tests count the sampling and privacy errors. ``targets`` are the variables that the member's conditions
    act on, declared in the study: there its evidence may differ and contradicts nothing, so -1 becomes 0. A member of
    an ``environment`` is held against the pool of that alone, and contradicts nothing where there is none. Of a mark
    whose test needs a variable that the member ``lacks`` its evidence says nothing: 0.
    """
    acted_on, lacking = frozenset(targets), frozenset(lacks)
    critical = NormalDist().inv_cdf(1 - level / 2)
    votes, ties = {}, []
    for mark in proposal.marks:
        if lacking & {*mark.ends, *mark.given}:
            votes[mark.key] = _known(mark, knowledge)
            continue
        vote, near = _vote(mark, own, proposal.reading, knowledge, critical, environment)
        excused = vote < 0 and acted_on & set(mark.nodes) and not _known(mark, knowledge)
        votes[mark.key] = 0 if excused else vote
        ties += [mark.key] if near else []
    return Ballot(votes, knowledge, tuple(ties), proposal.digest)


def recheck(
    ballot: Ballot,
    proposal: Proposal,
    own: Evidence,
    level: float,
    targets: Iterable[str] = (),
    environment: str | None = None,
    lacks: Iterable[str] = (),
) -> tuple[str, ...]:
    """The marks on which a ballot does not follow from the voter's evidence and declared knowledge; () if it does.

    A vote on a mark that the check finds within 1e-6 of a threshold is taken as given; which marks the voter lists as
    near-ties decides nothing, or a liar could list them all.
    """
    expected = cast(proposal, own, ballot.knowledge, level, targets, environment, lacks)
    return tuple(
        key for key, vote in expected.votes.items() if ballot.votes[key] != vote and key not in expected.near_ties
    )


def _vote(
    mark: Mark, own: Evidence, reading: Reading, knowledge: Knowledge, critical: float, environment: str | None
) -> tuple[int, bool]:
    known = _known(mark, knowledge)
    if known:
        return known, False
    test = reading.test(own, *mark.ends, mark.given, mark.along)
    shown, apart = _shown(mark, test), _apart(_held_against(mark, environment), test)
    vote = 1 if shown >= critical else -1 if apart >= critical else 0
    near = min(abs(shown - critical), abs(apart - critical)) < NEAR_TIE
    return vote, near


def _shown(mark: Mark, test: Partial) -> float:
    """The own z in standard errors, positive in the pool's direction."""
    towards = 1.0 if mark.z >= 0 else -1.0
    return towards * test.z / test.standard_error


def _apart(pooled: tuple[float, float] | None, test: Partial) -> float:
    """The distance of the own z from the pool's z and error, in standard errors of both; 0 where there is no pool."""
    return 0.0 if pooled is None else abs(test.z - pooled[0]) / math.hypot(test.standard_error, pooled[1])


def _held_against(mark: Mark, environment: str | None) -> tuple[float, float] | None:
    """z and error of the pool that a voter is compared with; None if its environment has none."""
    if environment is None:
        return mark.z, mark.error
    return next(((z, error) for name, z, error in mark.within if name == environment), None)


def _z_and_error(value: Any) -> tuple[float, float]:
    """A z and its standard error; ValueError for anything else."""
    z, error = value
    if not all(type(number) in (int, float) and math.isfinite(number) for number in (z, error)) or error < 0:
        raise ValueError(f"{value!r} is no z with its standard error")
    return float(z), float(error)


def _arrows(value: Any, pattern: CausalGraph) -> tuple[Pair, ...]:
    """Directed edges of the pattern, each once and in order; IdentityError for anything else."""
    known = [list(pair) for pair in sorted(pattern.directed)]
    if not isinstance(value, list) or value != [pair for pair in known if pair in value]:
        raise IdentityError("The arrows of a proposal are directed edges of its pattern, each once and in order.")
    return tuple((a, b) for a, b in value)


def _known(mark: Mark, knowledge: Knowledge) -> int:
    """What declared knowledge says of a mark: +1 required, -1 impossible, 0 nothing."""
    a, b = mark.ends
    if mark.kind == "adjacency":
        if knowledge.adjacency_excluded(a, b):
            return -1
        return int((a, b) in knowledge.required or (b, a) in knowledge.required)
    arrows = ((a, mark.nodes[1]), (b, mark.nodes[1]))
    if not all(knowledge.allows(*arrow) for arrow in arrows):
        return -1
    return int(all(arrow in knowledge.required for arrow in arrows))
