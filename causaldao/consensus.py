"""Adoption: from a proposal and the members' ballots to one graph that always has a causal order.

Edge-wise majorities need not be acyclic (three members with two edges each make A → B → C → A), so what is voted on are
marks that every member of a Markov equivalence class shares: the skeleton and the unshielded colliders (Verma & Pearl
1990). Colliders enter in order of support, each only while a consistent DAG extension exists (Dor & Tarsi 1992) that
respects the study's knowledge; Meek's rules (1995) complete the pattern.

With n eligible members, f of them possibly lying, and threshold τ:

* a proposed mark is struck if more than max(f, (1 - τ)·n) oppose it, so f members alone strike nothing;
* in local mode, where there is no pooled proposal, a mark enters if at least max(τ·n, f + 1) support it.

Directions that only interventions show, the proposal's arrows, are no marks: no member's own evidence holds the
comparison of environments that they come from. They stand wherever their adjacency does, but for an arrow that is part
of a collider which the votes struck, and as long as a DAG extension exists: votes go first.

An adjacency that the study's knowledge requires always stands, and one that it excludes never does: the study was
approved by every member before anything was counted.

The result does not depend on the order in which ballots arrive, and it is always extendable. A proposal of which
nothing was struck is adopted as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from causaldao.ballot_bounds import needed
from causaldao.ballots import Ballot, Mark, Proposal
from causaldao.errors import ConfigurationError, GuaranteeError
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import extension, in_the_way, pattern


@dataclass(frozen=True)
class ConsensusRule:
    """τ in (1/2, 1], f, the number n of eligible members, and the study's knowledge."""

    threshold: float
    faulty: int
    eligible: int
    knowledge: Knowledge = NONE
    local: bool = False

    @property
    def needed(self) -> int:
        """The supporters that a mark needs in local mode; 0 in shared mode, where opposition is counted."""
        return needed(self.threshold, self.faulty, self.eligible) if self.local else 0


@dataclass(frozen=True)
class Tally:
    """How the members voted on one mark, and what became of it. ``needed`` are the supporters it takes to enter in
    local mode, where a mark has no strength in any pool; 0 in shared mode."""

    mark: Mark
    support: int
    oppose: int
    abstain: int
    status: Literal["adopted", "contested"] = "adopted"
    needed: int = 0

    def to_json(self) -> dict[str, Any]:
        measure = {"needed": self.needed} if self.needed else {"strength": self.mark.strength}
        return {
            "kind": self.mark.kind, "nodes": list(self.mark.nodes), **measure,
            "support": self.support, "oppose": self.oppose, "abstain": self.abstain, "status": self.status,
        }  # fmt: skip


@dataclass(frozen=True)
class Consensus:
    """The adopted graph: its pattern (a CPDAG, or with knowledge a maximally oriented graph), its extension in name
    order, which is what is trained, and the tally of every mark. ``arrows`` are the proposal's that were carried over.
    ``stands`` says that the proposal's own pattern was kept because what the votes left has no DAG extension.
    ``unlisted`` counts the marks of local graphs that have no tally, because more than can be recorded did not enter.
    """

    pattern: CausalGraph
    dag: CausalGraph
    tallies: tuple[Tally, ...]
    stands: bool = False
    arrows: tuple[Pair, ...] = ()
    unlisted: int = 0

    @property
    def contested(self) -> tuple[Mark, ...]:
        return tuple(tally.mark for tally in self.tallies if tally.status == "contested")

    def to_json(self) -> dict[str, Any]:
        return {
            "pattern": self.pattern.to_json(),
            "dag": self.dag.to_json(),
            "marks": [tally.to_json() for tally in self.tallies],
            "stands": self.stands,
            **({"arrows": [list(arrow) for arrow in self.arrows]} if self.arrows else {}),
            **({"unlisted": self.unlisted} if self.unlisted else {}),
        }


def adopt(proposal: Proposal, ballots: Mapping[str, Ballot], rule: ConsensusRule) -> Consensus:
    """The consensus graph. Members without a ballot count as neither support nor opposition.

    Raises
    ------
    GuaranteeError
        more ballots than eligible members.
    """
    if len(ballots) > rule.eligible:
        raise GuaranteeError(f"{len(ballots)} ballots came, but only {rule.eligible} members are eligible.")
    counted = [_count(mark, ballots, rule) for mark in proposal.marks]
    passed = [tally for tally in counted if _passes(tally, rule)]
    edges = _standing(passed, proposal, rule.knowledge)
    wanted = sorted((t for t in passed if t.mark.kind == "collider"), key=lambda t: (-t.support, t.mark.key))
    candidates = [t.mark.nodes for t in wanted] + ([] if rule.local else _uncovered(proposal, edges))
    skeleton = _Skeleton(proposal.pattern.nodes, frozenset(edges), rule.knowledge)
    if rule.local:
        order = sorted((t for t in passed if t.mark.kind == "adjacency"), key=lambda t: (t.support, t.mark.key))
        free = [t.mark.ends for t in order if not rule.knowledge.requires(*t.mark.ends)]
        return _result(*_thin(skeleton, free, candidates), counted)
    skeleton, colliders = _directed(skeleton, candidates, _arrows_left(proposal, counted, passed, edges))
    if skeleton.extend(colliders) is None:
        return _proposal_stands(proposal, counted, rule)
    return _result(skeleton, colliders, counted)


def _arrows_left(
    proposal: Proposal, counted: Iterable[Tally], passed: Sequence[Tally], edges: Iterable[tuple[str, str]]
) -> list[Pair]:
    """The proposal's arrows whose adjacency stands, without those that would put up a collider that was struck."""
    kept = {frozenset(edge) for edge in edges}
    struck = [t.mark.nodes for t in counted if t.mark.kind == "collider" and t not in passed]
    opposed = {(end, c) for a, c, b in struck for end in (a, b)}
    return [arrow for arrow in proposal.arrows if frozenset(arrow) in kept and arrow not in opposed]


def _directed(
    skeleton: _Skeleton, candidates: Sequence[tuple[str, ...]], arrows: Sequence[Pair]
) -> tuple[_Skeleton, list[tuple[str, ...]]]:
    """The skeleton with the arrows that can stand on it, and the colliders that stand with them.

    All together where that has an extension, as it has unless a collider was struck; else the colliders by themselves,
    and then the arrows one by one.
    """
    whole = replace(skeleton, arrows=tuple(arrows))
    if arrows and whole.extend(waiting := whole.unshielded(candidates)) is not None:
        return whole, waiting
    colliders = skeleton.admit(candidates)
    for arrow in arrows:
        wider = replace(skeleton, arrows=(*skeleton.arrows, arrow))
        if wider.extend(colliders) is not None:
            skeleton = wider
    return skeleton, colliders


def _count(mark: Mark, ballots: Mapping[str, Ballot], rule: ConsensusRule) -> Tally:
    votes = [ballot.votes.get(mark.key, 0) for ballot in ballots.values()]
    support, oppose = votes.count(1), votes.count(-1)
    return Tally(mark, support, oppose, rule.eligible - support - oppose, needed=rule.needed)


def _passes(tally: Tally, rule: ConsensusRule) -> bool:
    n, tolerance = rule.eligible, 1e-9  # (1 - 0.6) * 5 is 2.0000000000000004 in floating point
    if rule.local:
        return tally.support >= rule.needed
    return tally.oppose <= max(rule.faulty, (1 - rule.threshold) * n + tolerance)


def _standing(passed: Iterable[Tally], proposal: Proposal, knowledge: Knowledge) -> list[tuple[str, str]]:
    """The adjacencies that passed and may be, and those that must be."""
    voted = {t.mark.ends for t in passed if t.mark.kind == "adjacency"}
    allowed = {pair for pair in voted if not knowledge.adjacency_excluded(*pair)}
    required = {(min(pair), max(pair)) for pair in knowledge.required if set(pair) <= set(proposal.pattern.nodes)}
    return sorted(allowed | required)


def _uncovered(proposal: Proposal, edges: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Triples a → c ← b of the proposal whose shielding edge a - b was struck: colliders, with no vote of their own."""
    kept = {frozenset(edge) for edge in edges}
    dag = extension(proposal.pattern)
    found: list[tuple[str, ...]] = []
    for a, b in sorted(proposal.pattern.skeleton()):
        if dag is not None and frozenset((a, b)) not in kept:
            common = set(dag.children(a)) & set(dag.children(b))
            found += [(a, c, b) for c in sorted(common) if {frozenset((a, c)), frozenset((b, c))} <= kept]
    return found


@dataclass(frozen=True)
class _Skeleton:
    """Adjacencies and knowledge; it answers which colliders can stand on them together."""

    nodes: tuple[str, ...]
    edges: frozenset[tuple[str, str]]
    knowledge: Knowledge
    arrows: tuple[Pair, ...] = ()

    @property
    def forced(self) -> list[tuple[str, str]]:
        """The directions that knowledge leaves no choice about, and those that interventions gave."""
        both = [pair for a, b in sorted(self.edges) for pair in ((a, b), (b, a))]
        known = [(a, b) for a, b in both if self.knowledge.allows(a, b) and not self.knowledge.allows(b, a)]
        return [*known, *self.arrows]

    def orient(self, colliders: Iterable[tuple[str, ...]]) -> CausalGraph | None:
        triples = [(a, c, b) for a, c, b in colliders]
        try:
            return pattern(sorted(self.edges), triples, self.nodes, self.forced)
        except ConfigurationError:
            return None

    def extend(self, colliders: Iterable[tuple[str, ...]]) -> CausalGraph | None:
        """The DAG extension in name order, None if there is none."""
        oriented = self.orient(colliders)
        return None if oriented is None else extension(oriented)

    def admit(self, candidates: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """All colliders if they can stand together; else one by one, each only if the graph stays extendable.

        A skeleton such as the chordless square has no extension until a collider enters; while none exists, a
        collider enters if it does not contradict those before it. Two colliders may force a third, and then can only
        stand with it: those that were turned away are tried again after each one that entered.
        """
        waiting = self.unshielded(candidates)
        if self.extend(waiting) is not None:
            return waiting
        admitted: list[tuple[str, ...]] = []
        extendable = self.extend(admitted) is not None
        while entering := next((t for t in waiting if self._may_enter([*admitted, t], extendable)), None):
            waiting.remove(entering)
            admitted.append(entering)
            extendable = extendable or self.extend(admitted) is not None
        return admitted

    def unshielded(self, candidates: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Those of the triples that are unshielded on this skeleton."""
        return [triple for triple in candidates if self._unshielded(*triple)]

    def agreeing(
        self, colliders: Sequence[tuple[str, ...]], candidates: Iterable[tuple[str, ...]]
    ) -> list[tuple[str, ...]]:
        """The colliders and those of the candidates that can stand beside them, by the rules of `admit`; those turned
        away are tried again when all were tried, so that it ends soon where hundreds contradict each other."""
        found = list(colliders)
        waiting = [triple for triple in self.unshielded(candidates) if triple not in found]
        if self.extend([*found, *waiting]) is not None:
            return [*found, *waiting]
        extendable, before = self.extend(found) is not None, -1
        while waiting and len(waiting) != before:
            before, turned = len(waiting), []
            for triple in waiting:
                if self._may_enter([*found, triple], extendable):
                    found.append(triple)
                    extendable = extendable or self.extend(found) is not None
                else:
                    turned.append(triple)
            waiting = turned
        return found

    def in_the_way(self, colliders: Iterable[tuple[str, ...]]) -> frozenset[str]:
        """The nodes among which no DAG has these colliders; see `causaldao.models.pattern.in_the_way`."""
        oriented = self.orient(colliders)
        return frozenset(self.nodes) if oriented is None else in_the_way(oriented)

    def _may_enter(self, attempt: list[tuple[str, ...]], extendable: bool) -> bool:
        return (self.extend(attempt) if extendable else self.orient(attempt)) is not None

    def _unshielded(self, a: str, c: str, b: str) -> bool:
        return self._has(a, c) and self._has(b, c) and not self._has(a, b)

    def _has(self, a: str, b: str) -> bool:
        return (a, b) in self.edges or (b, a) in self.edges


def _thin(
    skeleton: _Skeleton, weakest_first: list[tuple[str, str]], candidates: list[tuple[str, ...]]
) -> tuple[_Skeleton, list[tuple[str, ...]]]:
    """Local mode has no proposal to fall back on: while no extension exists, give up the least supported adjacency of
    those that stand in its way. All others stand: what a few contested links cost is among them.
    """
    colliders = skeleton.agreeing([], candidates)
    while left := skeleton.in_the_way(colliders):
        edge = next(pair for pair in weakest_first if left.issuperset(pair) and pair in skeleton.edges)
        skeleton = replace(skeleton, edges=skeleton.edges - {edge})
        kept = skeleton.unshielded(colliders)
        # What it gave up may let others in: a triple that it shielded, or whatever a collider stood against.
        fresh = candidates if len(kept) < len(colliders) else [t for t in candidates if {t[0], t[2]} == set(edge)]
        every = skeleton.unshielded(candidates)
        colliders = every if skeleton.extend(every) is not None else skeleton.agreeing(kept, fresh)
    return skeleton, skeleton.agreeing(colliders, candidates)


def _result(skeleton: _Skeleton, colliders: list[tuple[str, ...]], counted: list[Tally]) -> Consensus:
    oriented, dag = skeleton.orient(colliders), skeleton.extend(colliders)
    assert oriented is not None
    assert dag is not None
    standing = {frozenset(edge) for edge in skeleton.edges}
    entered = oriented.unshielded_colliders()  # those that knowledge alone directs are in the graph too
    tallies = []
    for tally in counted:
        holds = (
            frozenset(tally.mark.ends) in standing if tally.mark.kind == "adjacency" else tally.mark.nodes in entered
        )
        tallies.append(_with_status(tally, holds))
    return Consensus(oriented, dag, tuple(tallies), arrows=skeleton.arrows)


def _proposal_stands(proposal: Proposal, counted: list[Tally], rule: ConsensusRule) -> Consensus:
    """What the votes left has no extension: the proposal's pattern stands,
    and what was opposed is shown as contested.
    """
    dag = extension(proposal.pattern)
    if dag is None:
        raise ConfigurationError(
            f"The proposal's pattern {proposal.pattern} has no DAG extension: no discovery proposes it."
        )
    tallies = tuple(_with_status(tally, _passes(tally, rule)) for tally in counted)
    return Consensus(proposal.pattern, dag, tallies, stands=True, arrows=proposal.arrows)


def _with_status(tally: Tally, holds: bool) -> Tally:
    status: Literal["adopted", "contested"] = "adopted" if holds else "contested"
    return replace(tally, status=status)


def local_ballots(
    graphs: Mapping[str, CausalGraph],
    absent: Mapping[str, Collection[Pair]] = MappingProxyType({}),
    listed: Iterable[tuple[str, ...]] | None = None,
) -> tuple[Proposal, dict[str, Ballot]]:
    """Local mode: the union of the members' graphs as the list of marks, and each graph as a ballot on it.

    +1 on what a graph has. -1 on what it contradicts: an adjacency that its member rules out (``absent``, by member,
    pairs a < b); a collider of which it rules out a leg, directs one the other way, or sees the triple otherwise:
    shielded, or no collider. A link that a graph merely lacks is 0: a lack of evidence is no evidence of a lack.
    ``listed`` are the marks to be voted on, if not all of them.
    """
    nodes = tuple(sorted({node for graph in graphs.values() for node in graph.nodes}))
    own = {name: marks_held(graph) for name, graph in graphs.items()}
    union = set().union(*own.values()) if listed is None else set(listed)
    marks = tuple(Mark(found) for found in sorted(union, key=lambda mark: (len(mark), mark)))
    ballots = {}
    for name, graph in graphs.items():
        without, pairs, held = frozenset(absent.get(name, ())), graph.skeleton(), own[name]
        votes = {m.key: 1 if m.nodes in held else -int(_contradicted(m, graph, pairs, without)) for m in marks}
        ballots[name] = Ballot(votes)
    return Proposal(CausalGraph.cpdag(nodes=nodes), marks), ballots


def marks_held(graph: CausalGraph) -> frozenset[tuple[str, ...]]:
    """The adjacencies (a, b), a < b, and unshielded colliders (a, c, b), a < b, of a graph."""
    return frozenset[tuple[str, ...]]({*graph.skeleton(), *graph.unshielded_colliders()})


def _contradicted(mark: Mark, graph: CausalGraph, pairs: Collection[Pair], absent: Collection[Pair]) -> bool:
    """Whether a graph, of these adjacencies, speaks against a mark that it does not have."""
    if mark.kind == "adjacency":
        return mark.ends in absent
    a, c, b = mark.nodes
    legs = [(min(a, c), max(a, c)), (min(b, c), max(b, c))]
    away = (c, a) in graph.directed or (c, b) in graph.directed
    return away or any(leg in absent for leg in legs) or all(leg in pairs for leg in legs)
