"""Edits of an adopted graph that members voted: which make sense, and what the graph is after them.

A study's result is history. An *edit* is a decision of the members about one of its edges, an entry ``federation.edit``
of the ledger; the *edited graph* is the adopted one after the study's edits, in the order of the ledger. An edit names
an edge [cause, effect] and a change:

    add       the two are not linked now; cause -> effect stands afterwards
    remove    the two are linked now, however; they are not afterwards
    reverse   cause -> effect, or cause - effect, stands now; effect -> cause stands afterwards

An edit changes what it says and as little else as can be: every other arrow stays, no undirected edge becomes part of
an unshielded collider, and Meek's rules direct what follows (`causaldao.models.pattern`). Where a removed edge
uncovers a triple, its colliders are those of the graph's DAG, as at the adoption (docs/adr/0007-adoption.md). An edit
that gives back what was adopted takes the one before it away with all that followed from it.

The graph after an edit always has a DAG extension, and keeps the study's knowledge, which every member approved. An
edit that would break one of these changes nothing, and its `Step` says why.

An entry's ``does`` is the digest of what its edit does (`Step.digest`). Members vote on it too: so what is recorded is
what each of them was shown, whatever passed or was hidden in between.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from causaldao.errors import CausalDAOError, ConfigurationError, IdentityError, MisuseError
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import extension, meek
from causaldao.signing import canonical, sha256
from causaldao.study import Study

KIND = "federation.edit"
ENTRIES = ("study.proposed", "adopt", KIND)  # from which a study's graph follows
CHANGES = ("add", "remove", "reverse")
MAX_REASON = 1000  # characters
_LISTED = 20  # names in a message


@dataclass(frozen=True)
class Edit:
    """A change of the edge between two variables: see the module."""

    cause: str
    effect: str
    change: str

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Edit:
        """The edit in an entry's body, whose shape was checked."""
        cause, effect = body["edge"]
        return cls(cause, effect, body["change"])

    @property
    def pair(self) -> Pair:
        return min(self.cause, self.effect), max(self.cause, self.effect)

    @property
    def target(self) -> Pair | None:
        """The arrow that stands afterwards; None: no edge."""
        return {"add": (self.cause, self.effect), "reverse": (self.effect, self.cause)}.get(self.change)


@dataclass(frozen=True)
class Step:
    """What one edit did: the edge ``before`` and ``after`` it, what ``also`` changed, each in words; or the ``problem``
    for which it changed nothing."""

    edit: Edit
    before: str
    after: str
    also: tuple[str, ...] = ()
    problem: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of what it did, in words."""
        return sha256(canonical([self.before, self.after, *self.also]))

    def to_json(self) -> dict[str, Any]:
        return {"before": self.before, "after": self.after, "also": list(self.also), "problem": self.problem}


@dataclass(frozen=True)
class Edited:
    """The adopted graph (``adopted``), each edit's step, the ``pattern`` after them and its ``dag`` in name order.

    ``net`` says of each pair that is not as it was adopted what stands now: an arrow, or None for no edge, in the order
    of the edits.
    """

    adopted: CausalGraph
    pattern: CausalGraph
    dag: CausalGraph
    steps: tuple[Step, ...]
    net: Mapping[Pair, Pair | None]


@dataclass(frozen=True)
class _State:
    pattern: CausalGraph
    dag: CausalGraph
    net: Mapping[Pair, Pair | None]


def edited(pattern: CausalGraph, dag: CausalGraph, edits: Iterable[Edit], knowledge: Knowledge = NONE) -> Edited:
    """The graph after edits, in their order. ``dag`` is an extension of ``pattern``, the adopted graph.

    ``pattern`` after them is maximally oriented and always has an extension; without edits both graphs are as given.
    """
    base = state = _State(pattern, dag, {})
    steps = []
    for edit in edits:
        step, state = _take(base, state, edit, knowledge)
        steps.append(step)
    return Edited(pattern, state.pattern, state.dag, tuple(steps), state.net)


def edge_words(graph: CausalGraph, a: str, b: str) -> str:
    """How two variables are linked: "a -> b", "a - b" or "no edge between a and b"."""
    if a not in graph.nodes or b not in graph.nodes or not graph.adjacent(a, b):
        return f"no edge between {a} and {b}"
    if (a, b) in graph.directed or (b, a) in graph.directed:
        return f"{a} -> {b}" if (a, b) in graph.directed else f"{b} -> {a}"
    return f"{a} - {b}"


def follow_up(knowledge: Knowledge, net: Mapping[Pair, Pair | None]) -> Knowledge:
    """The study's knowledge and what the edits say of it: an arrow is required, a removed edge is forbidden both ways.

    Raises
    ------
    ConfigurationError
        the two contradict each other.
    """
    required = frozenset(target for target in net.values() if target is not None)
    gone = [pair for pair, target in net.items() if target is None]
    return knowledge.merge(Knowledge(required, frozenset(way for a, b in gone for way in ((a, b), (b, a)))))


def knowledge_toml(knowledge: Knowledge) -> str:
    """The table ``[knowledge]`` of a study file; tiers stand with the study's variables."""

    def rows(pairs: Iterable[Pair]) -> str:
        return json.dumps([list(pair) for pair in sorted(pairs)], ensure_ascii=False)

    return f"[knowledge]\nrequired = {rows(knowledge.required)}\nforbidden = {rows(knowledge.forbidden)}\n"


def _take(base: _State, state: _State, edit: Edit, knowledge: Knowledge) -> tuple[Step, _State]:
    before = edge_words(state.pattern, edit.cause, edit.effect)
    problem = _problem(state.pattern, edit, knowledge)
    if problem:
        return Step(edit, before, before, problem=problem), state
    try:
        after = _after(base, state, edit)
        follow_up(knowledge, after.net)
    except ConfigurationError as error:
        return Step(edit, before, before, problem=_said(error)), state
    also = _also(state.pattern, after.pattern, edit.pair)
    return Step(edit, before, edge_words(after.pattern, edit.cause, edit.effect), also), after


def _said(error: CausalDAOError) -> str:
    return " ".join([error.message, *error.problems])


def _problem(now: CausalGraph, edit: Edit, knowledge: Knowledge) -> str:
    """Why an edit cannot be, whatever the rest of the graph; "" if nothing speaks against it."""
    a, b = edit.cause, edit.effect
    if edit.change not in CHANGES:
        return f"{edit.change!r} is no change of an edge: give one of {', '.join(CHANGES)}."
    if unknown := [name for name in (a, b) if name not in now.nodes]:
        more = f" and {len(now.nodes) - _LISTED} more" if len(now.nodes) > _LISTED else ""
        there = ", ".join(sorted(now.nodes)[:_LISTED]) + more
        return f"{unknown[0]!r} is no variable of the study: it has {there}."
    if a == b:
        return f"{a!r} cannot be its own cause: name two variables."
    linked, stands = now.adjacent(a, b), edge_words(now, a, b)
    if edit.change == "add" and linked:
        return f"{stands} stands already: reverse it or remove it, or leave it as it is."
    if edit.change != "add" and not linked:
        return f"there is {stands}: nothing is there to {edit.change}."
    if edit.change == "reverse" and (b, a) in now.directed:
        return f"{stands} stands already: an edge is named as it is now, so name {b} {a} to turn it."
    if edit.change == "remove" and knowledge.requires(a, b):
        return f"the study's knowledge, which every member approved, requires {stands}: it cannot be removed."
    if edit.target is not None and not knowledge.allows(*edit.target):
        arrow = " -> ".join(edit.target)
        return f"the study's knowledge, which every member approved, rules out {arrow} (required, forbidden or tiers)."
    return ""


def _after(base: _State, state: _State, edit: Edit) -> _State:
    net = {pair: target for pair, target in state.net.items() if pair != edit.pair}
    if _stood(base.pattern, edit.pair, edit.target):
        try:  # as adopted: what followed from the edit before it goes too
            return _folded(base, net)
        except ConfigurationError:  # a later edit rests on it, so only the edge itself goes back
            pass
    pattern, dag = _changed(state.pattern, state.dag, edit.pair, edit.target)
    return _State(pattern, dag, {**net, edit.pair: edit.target})


def _stood(pattern: CausalGraph, pair: Pair, target: Pair | None) -> bool:
    return target in pattern.directed if target is not None else not pattern.adjacent(*pair)


def _folded(base: _State, net: Mapping[Pair, Pair | None]) -> _State:
    pattern, dag = base.pattern, base.dag
    for pair, target in net.items():
        pattern, dag = _changed(pattern, dag, pair, target)
    return _State(pattern, dag, net)


def _changed(
    pattern: CausalGraph, dag: CausalGraph, pair: Pair, target: Pair | None
) -> tuple[CausalGraph, CausalGraph]:
    """The pattern and its extension with another edge between a pair; ConfigurationError if no DAG has it."""
    arrows = {arrow for arrow in pattern.directed if set(arrow) != set(pair)}
    if target is not None:
        arrows.add(target)
    else:
        common = dag.children(pair[0]) & dag.children(pair[1])
        arrows |= {(end, c) for end in pair for c in common}
    lines = {line for line in pattern.undirected if line != pair and line not in arrows and line[::-1] not in arrows}
    marked = CausalGraph.cpdag(arrows, lines, pattern.nodes)
    if extension(marked) is None:
        near = [line for line in sorted(lines) if set(line) & set(pair)] or sorted(lines)
        raise ConfigurationError(
            "no causal graph keeps every other arrow and adds no collider among the undirected edges: first direct one "
            f"of {', '.join(map(' - '.join, near[:_LISTED]))} by an edit (reverse)."
        )
    closed = meek(marked)
    found = extension(closed)
    assert found is not None  # Meek's rules direct only what every extension of `marked` has
    return closed, found


def _also(before: CausalGraph, after: CausalGraph, pair: Pair) -> tuple[str, ...]:
    pairs = sorted((before.skeleton() | after.skeleton()) - {pair})
    words = [(edge_words(before, *other), edge_words(after, *other)) for other in pairs]
    return tuple(f"{old} becomes {new}" for old, new in words if old != new)


# of a ledger


class Line(Protocol):
    """What is asked of an entry."""

    @property
    def index(self) -> int: ...

    @property
    def kind(self) -> str: ...

    @property
    def body(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Voted:
    """An edit as its entry has it; ``proposer`` is "" if the operator put it."""

    index: int
    edit: Edit
    reason: str
    proposer: str
    voters: tuple[str, ...]
    does: str | None = None

    @classmethod
    def of(cls, line: Line) -> Voted:
        body = line.body
        voters = tuple(vote["member"] for vote in body.get("votes", ()))
        return cls(line.index, Edit.of(body), body["reason"], body.get("proposer", ""), voters, body.get("does"))


@dataclass(frozen=True)
class Standing:
    """A study's graph as its ledger has it: the entry ``adopted`` with its ``marks`` and ``effects``, the edits voted
    since, and what they make of it."""

    study: Study
    adopted: int
    marks: Sequence[Mapping[str, Any]]
    effects: Sequence[Mapping[str, Any]]
    dag: CausalGraph
    voted: tuple[Voted, ...]
    edited: Edited

    def step(self, edit: Edit) -> Step:
        """What one edit more would do."""
        known = [one.edit for one in self.voted]
        return edited(self.edited.adopted, self.dag, [*known, edit], self.study.prior).steps[-1]

    def require_fit(self, edit: Edit) -> Step:
        """What one edit more does; a ConfigurationError if it cannot be."""
        step = self.step(edit)
        if step.problem:
            raise ConfigurationError(
                f"The edit to {edit.change} {edit.cause} -> {edit.effect} does not fit the graph of study "
                f"{self.study.name!r} as it is after {len(self.voted)} edit(s): {step.problem}"
            )
        return step

    def require(self, body: Mapping[str, Any]) -> Step:
        """What the edit of an entry's body does, if it fits and does what it says that it does (``does``).

        Raises
        ------
        ConfigurationError
            it does not.
        """
        step = self.require_fit(Edit.of(body))
        if body.get("does") != step.digest:
            raise ConfigurationError(
                f"The edit to {step.edit.change} {step.edit.cause} -> {step.edit.effect} of study {self.study.name!r} "
                f"does not fit: {self.told(body)}. Propose it anew."
            )
        return step

    def told(self, body: Mapping[str, Any]) -> str:
        """What the edit of an entry's body would change, for those who vote on it, or why it cannot be."""
        step = self.step(Edit.of(body))
        other = "it would not do what it was put for, the graph is another by now; "
        return (other if not step.problem and body.get("does") != step.digest else "") + self.words(step)

    def words(self, step: Step) -> str:
        """What an edit would change, for those who vote on it."""
        if step.problem:
            return f"it does not fit the graph: {step.problem}"
        also = f"; with it {', '.join(step.also)}" if step.also else ""
        return f"now: {step.before}, {self.tally(step.edit.pair)}; afterwards: {step.after}{also}"

    def tally(self, pair: Pair) -> str:
        """How the study's ballots spoke of a link."""
        for mark in self.marks:
            if mark["kind"] == "adjacency" and set(mark["nodes"]) == set(pair):
                asked = mark["support"] + mark["oppose"] + mark["abstain"]
                return f"a link that {mark['support']} of {asked} ballots support and {mark['oppose']} oppose"
        return "a link on which the study had no ballot"

    def to_json(self) -> dict[str, Any]:
        """The graph before and after, and each edit: who proposed it, why, who voted for it and what it changed."""
        steps = zip(self.voted, self.edited.steps, strict=True)
        return {
            "study": {"name": self.study.name, "hash": self.study.hash},
            "adopted": {"pattern": self.edited.adopted.to_json(), "dag": self.dag.to_json()},
            "edits": [
                {
                    "index": one.index, "edge": [one.edit.cause, one.edit.effect], "change": one.edit.change,
                    "reason": one.reason, "proposer": one.proposer or None, "votes": list(one.voters), **step.to_json(),
                }
                for one, step in steps
            ],
            "graph": {"pattern": self.edited.pattern.to_json(), "dag": self.edited.dag.to_json()},
            "knowledge": knowledge_toml(follow_up(self.study.prior, self.edited.net)),
        }  # fmt: skip


def _marks(value: Any) -> list[Mapping[str, Any]]:
    """The ballots' marks, as far as they are looked at here; ValueError if they are none."""
    for mark in value:
        counts = [mark[name] for name in ("support", "oppose", "abstain")]
        if not isinstance(mark["kind"], str) or {*map(type, counts)} != {int} or {*map(type, mark["nodes"])} != {str}:
            raise ValueError("a mark is no count of votes on two or three variables")
    return list(value)


def standing(study: str, lines: Iterable[Line]) -> Standing:
    """The graph of the study with this hash, by its entries in their order; others' are passed over.

    What stands in an entry is believed: whether the adoption follows from the ballots is for the audit.

    Raises
    ------
    MisuseError
        no entry proposes the study, or none adopts a graph.
    IdentityError
        an entry cannot be read.
    """
    mine = [line for line in lines if line.body.get("study") == study]
    found = {kind: next((x for x in mine if x.kind == kind), None) for kind in ("study.proposed", "adopt")}
    proposed, adopted = found["study.proposed"], found["adopt"]
    if proposed is None:
        raise MisuseError(f"No entry of the ledger proposes study {study[:12]!r}: only a study on it has a graph.")
    if adopted is None:
        raise MisuseError(f"Study {study[:12]} has adopted no graph yet: an edit needs one. Let the study run first.")
    try:
        asked = Study.from_mapping(proposed.body.get("document"))
        pattern, dag = (CausalGraph.from_json(adopted.body["consensus"][name]) for name in ("pattern", "dag"))
        marks, effects = _marks(adopted.body["consensus"]["marks"]), list(adopted.body["effects"])
        if {*pattern.nodes, *dag.nodes} != set(asked.names):
            raise ValueError("its variables are not the study's")
        voted = tuple(Voted.of(line) for line in mine if line.kind == KIND and line.index > adopted.index)
        made = edited(pattern, dag, [one.edit for one in voted], asked.prior)
    except (CausalDAOError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise IdentityError(f"The graph of study {study[:12]} cannot be read from its entries: {error}.") from error
    if asked.hash != study:
        raise IdentityError(f"The document recorded for study {study[:12]} is another's, {asked.hash[:12]}.")
    return Standing(asked, adopted.index, marks, effects, dag, voted, made)
