"""Edits by vote: those that make no sense and pass, graphs without a causal order, edits that change more than they
say."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from causaldao.edits import (
    CHANGES,
    Edit,
    Edited,
    Step,
    edge_words,
    edited,
    follow_up,
    knowledge_toml,
    standing,
)
from causaldao.errors import ConfigurationError, IdentityError, MisuseError
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of, extension, meek
from tests.causaldao.cases import study
from tests.counts import count
from tests.models.random_models import random_dag


def after(graph: CausalGraph, *edits: Edit, knowledge: Knowledge = NONE) -> Edited:
    dag = extension(graph)
    assert dag is not None
    return edited(graph, dag, edits, knowledge)


def last(graph: CausalGraph, *edits: Edit, knowledge: Knowledge = NONE) -> Step:
    return after(graph, *edits, knowledge=knowledge).steps[-1]


def add(a: str, b: str) -> Edit:
    return Edit(a, b, "add")


def remove(a: str, b: str) -> Edit:
    return Edit(a, b, "remove")


def reverse(a: str, b: str) -> Edit:
    return Edit(a, b, "reverse")


COLLIDER = CausalGraph.cpdag([("a", "c"), ("b", "c"), ("c", "d")], [], ["a", "b", "c", "d", "e"])
CHAIN = CausalGraph.cpdag([], [("a", "b"), ("b", "c"), ("c", "d")])
KNOWN = Knowledge(frozenset({("c", "d")}), frozenset({("a", "e")}), {"b": 1, "d": 2})


# what makes no sense


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (add("a", "c"), r"a -> c stands already"),
        (add("c", "a"), r"a -> c stands already"),
        (remove("a", "b"), "there is no edge between a and b: nothing is there to remove"),
        (reverse("a", "b"), "nothing is there to reverse"),
        (reverse("c", "a"), "a -> c stands already: an edge is named as it is now, so name a c to turn it"),
        (add("a", "z"), r"'z' is no variable of the study: it has a, b, c, d, e"),
        (remove("z", "a"), "'z' is no variable"),
        (add("a", "a"), "'a' cannot be its own cause"),
        (Edit("a", "b", "melt"), "'melt' is no change of an edge: give one of add, remove, reverse"),
        (add("d", "a"), r"cycle: .*d -> a"),
        (remove("d", "c"), "requires c -> d: it cannot be removed"),
        (reverse("c", "d"), "rules out d -> c"),
        (add("a", "e"), "rules out a -> e"),
        (add("d", "b"), "rules out d -> b"),
    ],
)
def test_an_edit_that_makes_no_sense_is_made(edit: Edit, reason: str) -> None:
    made = after(COLLIDER, edit, knowledge=KNOWN)
    assert re.search(reason, made.steps[0].problem), made.steps[0].problem
    assert (made.pattern, made.net) == (COLLIDER, {})
    assert made.steps[0].before == made.steps[0].after


def test_edges_together_lead_back_in_time() -> None:
    """Each is allowed; together they make a path from the later tier to the earlier one, by what members required."""
    known = Knowledge(tiers={"a": 0, "d": 2})
    graph = CausalGraph.cpdag([], [], ["a", "b", "d"])
    made = after(graph, add("d", "b"), add("b", "a"), knowledge=known)
    assert made.steps[0].problem == ""
    assert "d is in tier 2 and a in tier 0" in made.steps[1].problem
    assert made.pattern.directed == {("d", "b")}


def test_an_edge_closes_a_ring_of_open_directions() -> None:
    """a - b - c - d with a -> d: some collider would have to be, and nobody voted on which. Directed first, it can."""
    step = last(CHAIN, add("a", "d"))
    assert "first direct one of a - b, c - d by an edit" in step.problem
    made = after(CHAIN, reverse("b", "a"), add("a", "d"))
    assert [step.problem for step in made.steps] == ["", ""]
    assert made.pattern.directed == {("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")}


# what an edit changes


def test_an_edit_changes_more_than_it_says() -> None:
    made = after(COLLIDER, remove("c", "a"))
    assert made.pattern.directed == {("b", "c"), ("c", "d")}
    assert (made.steps[0].before, made.steps[0].after, made.steps[0].also) == (
        "a -> c", "no edge between c and a", (),
    )  # fmt: skip
    made = after(COLLIDER, reverse("a", "c"))
    assert made.pattern.directed == {("c", "a"), ("b", "c"), ("c", "d")}
    assert (made.steps[0].before, made.steps[0].after) == ("a -> c", "c -> a")
    made = after(COLLIDER, add("e", "d"))
    assert made.pattern.directed == COLLIDER.directed | {("e", "d")}


def test_a_direction_that_follows_is_left_open() -> None:
    """a - b - c - d has no collider: with b -> a nothing follows, with a -> b all of it does, and is said."""
    made = after(CHAIN, reverse("b", "a"))
    assert made.pattern.directed == {("a", "b"), ("b", "c"), ("c", "d")}
    assert made.steps[0].also == ("b - c becomes b -> c", "c - d becomes c -> d")
    assert after(CHAIN, reverse("a", "b")).pattern == CausalGraph.cpdag([("b", "a")], [("b", "c"), ("c", "d")])


def test_a_triple_that_is_uncovered_loses_the_direction_of_the_dag() -> None:
    triangle = CausalGraph.cpdag([], [("a", "b"), ("a", "c"), ("b", "c")])
    dag = CausalGraph.dag([("a", "b"), ("a", "c"), ("b", "c")])
    assert edited(triangle, dag, [remove("b", "a")]).pattern.directed == {("a", "c"), ("b", "c")}
    assert edited(triangle, dag, [remove("b", "c")]).pattern == CausalGraph.cpdag([], [("a", "b"), ("a", "c")])


def test_what_the_ledger_says_first_does_not_count_first() -> None:
    turned = after(COLLIDER, reverse("a", "c"), add("d", "a"))
    other = after(COLLIDER, add("d", "a"), reverse("a", "c"))
    assert [bool(step.problem) for step in turned.steps] == [False, False]
    assert [bool(step.problem) for step in other.steps] == [True, False]
    assert turned.pattern != other.pattern


def test_an_edit_that_is_taken_back_leaves_what_followed_from_it() -> None:
    pendant = CausalGraph.cpdag([], [("a", "b"), ("b", "c")], ["a", "b", "c", "x"])
    there = after(pendant, add("x", "b"))
    assert there.pattern.directed == {("x", "b"), ("b", "a"), ("b", "c")}
    back = after(pendant, add("x", "b"), remove("b", "x"))
    assert (back.pattern, dict(back.net)) == (pendant, {})
    assert back.steps[1].also == ("b -> a becomes a - b", "b -> c becomes b - c")
    back = after(COLLIDER, reverse("a", "c"), reverse("c", "a"))
    assert (back.pattern, dict(back.net)) == (COLLIDER, {})


def random_case(rng: np.random.Generator) -> tuple[CausalGraph, CausalGraph, Knowledge]:
    """A CPDAG with knowledge that its DAG keeps, and the DAG."""
    dag = random_dag(rng, int(rng.integers(3, 8)), float(rng.uniform(1, 3)))
    order, arrows = dag.topological_order(), sorted(dag.directed)
    tiers = {name: place // 2 for place, name in enumerate(order) if rng.random() < 0.3}
    required = frozenset(arrow for arrow in arrows if rng.random() < 0.15)
    gone = [pair for pair in combinations(order, 2) if not dag.adjacent(*pair)]
    forbidden = frozenset(pair for pair in gone if rng.random() < 0.2)
    known = Knowledge(required, forbidden, tiers)
    graph = known.orient(cpdag_of(dag))
    found = extension(graph)
    assert found is not None
    return graph, found, known


def random_edit(rng: np.random.Generator, nodes: tuple[str, ...]) -> Edit:
    a, b = rng.choice(nodes, 2, replace=False)
    return Edit(str(a), str(b), str(rng.choice(CHANGES)))


def test_an_edited_graph_has_no_causal_order() -> None:
    """Whatever is voted: the graph has an extension, its DAG is one, it is closed, and it keeps the knowledge."""
    rng, made, refused = np.random.default_rng(44), 0, 0
    for _ in range(count(40, 2000)):
        graph, dag, known = random_case(rng)
        edits = [random_edit(rng, graph.nodes) for _ in range(12)]
        found = edited(graph, dag, edits, known)
        made += sum(not step.problem for step in found.steps)
        refused += sum(bool(step.problem) for step in found.steps)
        assert extension(found.pattern) is not None
        assert found.dag.is_dag
        assert found.dag.skeleton() == found.pattern.skeleton()
        assert found.dag.directed >= found.pattern.directed
        assert found.dag.unshielded_colliders() == found.pattern.unshielded_colliders()
        assert meek(found.pattern) == found.pattern
        assert all(known.allows(*arrow) for arrow in found.dag.directed)
        assert all(found.pattern.adjacent(*pair) for pair in known.required)
        for pair, target in found.net.items():
            assert (target in found.pattern.directed) if target else not found.pattern.adjacent(*pair)
        steps = edited(graph, dag, [step.edit for step in found.steps if not step.problem], known)
        assert steps.pattern == found.pattern, "what was refused has left a trace"
        assert follow_up(known, found.net).required >= known.required
    assert min(made, refused) > 100, (made, refused)


def test_an_edge_that_is_added_and_removed_leaves_a_trace() -> None:
    rng, tried = np.random.default_rng(45), 0
    for _ in range(count(40, 2000)):
        graph, dag, known = random_case(rng)
        a, b = map(str, rng.choice(graph.nodes, 2, replace=False))
        there = edited(graph, dag, [add(a, b)], known)
        if not there.steps[0].problem:
            back = edited(graph, dag, [add(a, b), remove(b, a)], known)
            assert (back.pattern, back.dag, dict(back.net), back.steps[1].problem) == (graph, dag, {}, "")
            tried += 1
    assert tried > 10


def test_only_what_follows_is_directed() -> None:
    """Each arrow that an edit leaves between others was there before, or every DAG with the rest has it."""
    rng = np.random.default_rng(46)
    for _ in range(count(30, 500)):
        graph, dag, known = random_case(rng)
        edit = random_edit(rng, graph.nodes)
        found = edited(graph, dag, [edit], known)
        assert found.pattern.skeleton() ^ graph.skeleton() <= {edit.pair}
        for a, b in graph.directed - {edit.pair, edit.pair[::-1]}:
            assert (a, b) in found.pattern.directed, "an arrow that nobody voted on is gone"


# the table for a following study


def test_the_next_study_does_not_take_the_edits_as_knowledge() -> None:
    known = Knowledge(frozenset({("c", "d")}), frozenset({("a", "e")}))
    made = after(COLLIDER, reverse("a", "c"), remove("c", "b"), add("e", "d"), knowledge=known)
    text = knowledge_toml(follow_up(known, made.net))
    table = tomllib.loads(text)["knowledge"]
    assert table["required"] == [["c", "a"], ["c", "d"], ["e", "d"]]
    assert table["forbidden"] == [["a", "e"], ["b", "c"], ["c", "b"]]
    assert follow_up(known, {}) == known
    assert tomllib.loads(knowledge_toml(Knowledge(frozenset({('ü "x"', "\\")}))))["knowledge"]["required"] == [
        ['ü "x"', "\\"]
    ]


# what a ledger says


@dataclass
class Line:
    index: int
    kind: str
    body: dict[str, Any]


MARK = {
    "kind": "adjacency", "nodes": ["age", "dose"], "strength": 0.3, "support": 4, "oppose": 1, "abstain": 1,
    "status": "adopted",
}  # fmt: skip
STRANGE = CausalGraph.cpdag([("age", "dose")], [], ["age", "dose", "pain", "another"]).to_json()


def ledger(*edits: dict[str, Any]) -> list[Line]:
    asked = study()
    graph = CausalGraph.cpdag([("age", "dose")], [], asked.names)
    consensus = {
        "pattern": graph.to_json(), "dag": graph.to_json(), "stands": False,
        "marks": [MARK],
    }  # fmt: skip
    lines = [
        Line(3, "study.proposed", {"study": asked.hash, "document": asked.to_json()}),
        Line(5, "adopt", {"study": asked.hash, "consensus": consensus, "effects": []}),
        Line(6, "adopt", {"study": "0" * 64}),
    ]
    given = {"study": asked.hash, "edge": ["age", "dose"], "reason": "known"}
    return [*lines, *(Line(7 + i, "federation.edit", {**given, **edit}) for i, edit in enumerate(edits))]


def test_a_voter_is_not_told_what_an_edit_changes() -> None:
    found = standing(study().hash, ledger({"change": "reverse", "proposer": "ada", "votes": [{"member": "ada"}]}))
    assert found.edited.pattern.directed == {("dose", "age")}
    assert (found.voted[0].proposer, found.voted[0].voters) == ("ada", ("ada",))
    words = found.words(found.step(remove("age", "dose")))
    assert words == (
        "now: dose -> age, a link that 4 of 6 ballots support and 1 oppose; afterwards: no edge between age and dose"
    )
    assert "it does not fit the graph: age" in found.words(found.step(add("age", "age"))).replace("'", "")
    told = found.to_json()["edits"][0]
    assert (told["proposer"], told["votes"], told["before"], told["after"]) == (
        "ada", ["ada"], "age -> dose", "dose -> age",
    )  # fmt: skip
    assert found.require_fit(remove("age", "dose")).after == "no edge between age and dose"
    with pytest.raises(ConfigurationError, match=r"as it is after 1 edit\(s\): dose -> age stands already"):
        found.require_fit(add("age", "dose"))


def test_an_edit_of_no_study_or_of_one_without_a_graph() -> None:
    with pytest.raises(MisuseError, match="No entry of the ledger proposes study"):
        standing("1" * 64, ledger())
    with pytest.raises(MisuseError, match="has adopted no graph yet"):
        standing(study().hash, ledger()[:1])
    for kind, body in (("adopt", {"consensus": {}}), ("study.proposed", {"document": {"study": 1}})):
        lines = ledger()
        (line,) = [one for one in lines if one.kind == kind and one.index < 6]
        line.body |= body
        with pytest.raises(IdentityError, match="cannot be read from its entries"):
            standing(study().hash, lines)
    for name, value in (("marks", [{}]), ("marks", [{**MARK, "support": "4"}]), ("marks", 7), ("pattern", STRANGE)):
        lines = ledger()
        lines[1].body["consensus"][name] = value
        with pytest.raises(IdentityError, match="cannot be read from its entries"):
            standing(study().hash, lines)
    other = study(study={"name": "other"})
    lines = ledger()
    lines[0].body["document"] = other.to_json()
    with pytest.raises(IdentityError, match="another's"):
        standing(study().hash, lines)


def test_the_words_of_an_edge_are_the_ones_of_another() -> None:
    graph = CausalGraph.cpdag([("a", "b")], [("b", "c")])
    assert [edge_words(graph, *pair) for pair in (("b", "a"), ("c", "b"), ("a", "c"), ("a", "z"))] == [
        "a -> b", "c - b", "no edge between a and c", "no edge between a and z",
    ]  # fmt: skip
