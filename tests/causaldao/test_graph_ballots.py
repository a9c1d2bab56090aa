"""Ballots that are graphs: liars who enter or swamp something alone, and words that no count should trip over."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao import graph_ballots
from causaldao.ballots import Proposal
from causaldao.errors import ConfigurationError, IdentityError
from causaldao.graph_ballots import GraphBallot, abstention, ballot_from, decide_local_adoption, votes_of
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import Knowledge
from causaldao.models.pattern import cpdag_of, extension
from causaldao.simulations.attacks.graphs import opposite
from causaldao.simulations.datasets import linear_gaussian
from causaldao.study import Study
from tests.causaldao.cases import released
from tests.causaldao.local import WHOLE, local_study, moments
from tests.counts import count
from tests.models.random_models import random_dag

STUDY = local_study()
TRUTH = CausalGraph.dag([("a", "c"), ("b", "c"), ("c", "d")], "abcd")
CASES = count(60, 3000)


def _ballots(graphs: dict[str, CausalGraph]) -> dict[str, GraphBallot]:
    return {name: GraphBallot(graph) for name, graph in graphs.items()}


def _read(said: Any, study: Study = STUDY) -> GraphBallot:
    """As it comes out of an envelope: JSON, and nothing that Python shares with it."""
    return GraphBallot.from_json(json.loads(json.dumps(said)), study)


# what an honest member says


def test_an_honest_ballot_is_another_graph_than_the_rows_have() -> None:
    rng = np.random.default_rng(0)
    ballot = ballot_from(STUDY, moments(rng, STUDY, TRUTH, 10_000))
    assert ballot.graph == cpdag_of(TRUTH)
    assert ballot.absent == {("a", "b"), ("a", "d"), ("b", "d")}  # so many records rule out a correlation of 0.1
    assert _read(ballot.to_json(STUDY)) == ballot
    assert ballot_from(STUDY, moments(np.random.default_rng(0), STUDY, TRUTH, 10_000)) == ballot


def test_what_the_evidence_cannot_tell_is_opposed() -> None:
    """100 records show the links of 0.8, and rule out nothing: a lack of evidence is no evidence of a lack."""
    rng = np.random.default_rng(1)
    ballot = ballot_from(STUDY, moments(rng, STUDY, TRUTH, 100))
    assert ballot.graph.skeleton()
    assert ballot.absent == frozenset()
    _, votes = votes_of(
        STUDY, {"own": ballot, "full": GraphBallot(CausalGraph.dag(combinations("abcd", 2), "abcd"))}, 2
    )
    assert set(votes["own"].votes.values()) == {0, 1}


def test_a_ballot_opposes_too_little_or_too_much() -> None:
    chain = GraphBallot(CausalGraph.cpdag([], [("a", "c"), ("b", "c")], "abcd"), frozenset({("a", "d")}))
    other = GraphBallot(CausalGraph.dag([("a", "c"), ("b", "c"), ("a", "d"), ("b", "d")], "abcd"))
    away = GraphBallot(CausalGraph.dag([("c", "a"), ("d", "a")], "abcd"))
    _, votes = votes_of(STUDY, {"chain": chain, "other": other, "away": away}, 3)
    assert votes["chain"].votes == {
        "a - c": 1, "b - c": 1, "a - d": -1, "b - d": 0,
        "a -> c <- b": -1,  # it sees the triple, and no collider
        "a -> d <- b": -1,  # it rules out a leg
        "c -> a <- d": -1,
    }  # fmt: skip
    assert votes["away"].votes["a -> c <- b"] == -1  # it directs a leg the other way
    assert votes["away"].votes["b - c"] == 0


def test_nine_of_ten_rulings_out_are_false() -> None:
    """At level 0.01 a link of partial correlation 0.1 is ruled out in fewer than 3 of 100 draws, noise included."""
    rng = np.random.default_rng(2)
    asked = local_study("ab", privacy={"epsilon": 3.0, "delta": 1e-5, "split": WHOLE})
    tries, wrong = count(100, 2000), 0
    weight = 0.1 / np.sqrt(1 - 0.01)
    for _ in range(tries):
        rows = linear_gaussian({("a", "b"): float(weight)}, 3000, rng, ("a", "b"))
        wrong += ("a", "b") in ballot_from(asked, released(rng, rows, asked)).absent
    assert wrong <= 0.03 * tries


@pytest.mark.parametrize(
    ("features", "method"), [("identity", "pc"), ("identity", "ges"), ("identity", "moment-fit"), ("one-hot", "boss"),
                             ("fourier", "boss"), ("one-hot", "pc")]
)  # fmt: skip
def test_a_method_or_feature_map_makes_no_ballot(features: str, method: str) -> None:
    discovery = {"evidence": "local", "features": features, "method": method, "restarts": 2}
    names, rng = "abc", np.random.default_rng(3)
    variables = [{"name": name, "kind": "continuous", "bounds": [-6.0, 6.0]} for name in names]
    if features == "one-hot":
        variables[0] = {"name": "a", "kind": "categorical", "levels": ["low", "mid", "high"]}
    asked = local_study(names, discovery=discovery, variables=variables)
    level = rng.integers(0, 3, size=4000)
    b = 1.5 * (level - 1) + rng.normal(size=4000)
    a = np.array(["low", "mid", "high"])[level] if features == "one-hot" else level - 1.0
    frame = pd.DataFrame({"a": a, "b": b, "c": rng.normal(size=4000)})
    ballot = ballot_from(asked, Evidence.from_data(frame, asked.encoding))
    assert ballot.abstains == ""
    assert ballot.graph.skeleton() == {("a", "b")}
    assert ballot.absent <= {("a", "c"), ("b", "c")}
    assert _read(ballot.to_json(asked), asked) == ballot


def test_noise_that_leaves_nothing_ends_the_study() -> None:
    drowned = moments(np.random.default_rng(4), STUDY, TRUTH, 200)
    drowned = replace(drowned, moments=drowned.moments - torch.diag(torch.tensor([0.0, 400, 400, 400, 400]).double()))
    own = Knowledge(required=frozenset({("a", "b")}))
    ballot = ballot_from(STUDY, drowned, own)
    assert ballot == abstention(STUDY, own, "data")
    assert ballot.graph.directed == {("a", "b")}
    assert _read(ballot.to_json(STUDY)) == ballot
    _, votes = votes_of(STUDY, {"own": ballot, "full": GraphBallot(TRUTH)}, 2)
    assert {key for key, vote in votes["own"].votes.items() if vote} == {"a - b"}


@pytest.mark.parametrize("error", [np.linalg.LinAlgError("Singular matrix"), IndexError(), MemoryError()])
def test_what_fails_on_some_noise_is_drawn_a_second_time(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether discovery failed is told of noise that was drawn; an answer after another draw would tell of two."""

    def fails(*_: object) -> Proposal:
        raise error

    monkeypatch.setattr("causaldao.graph_ballots.proposal_from", fails)
    rng = np.random.default_rng(0)
    assert ballot_from(STUDY, moments(rng, STUDY, CausalGraph.dag([("a", "b")], "abcd"))).abstains == "data"


def test_a_ballot_that_nobody_reads_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    own = moments(np.random.default_rng(5), STUDY, TRUTH)
    monkeypatch.setattr(graph_ballots, "MOST_BYTES", 100)
    assert ballot_from(STUDY, own).abstains == "too-large"
    monkeypatch.undo()
    monkeypatch.setattr(graph_ballots, "MOST_MARKS", 2)
    assert ballot_from(STUDY, own).abstains == "too-large"


def test_declared_knowledge_is_not_in_the_graph_or_overrules_the_study() -> None:
    own = moments(np.random.default_rng(6), STUDY, TRUTH)
    denied = Knowledge(forbidden=frozenset({("c", "d"), ("d", "c")}))
    ballot = ballot_from(STUDY, own, denied)
    assert ("c", "d") in ballot.absent
    assert _read(ballot.to_json(STUDY)).knowledge == denied
    strict = local_study(knowledge={"required": [["c", "d"]]})
    with pytest.raises(ConfigurationError, match="contradicts what study 'local' knows"):
        ballot_from(strict, own, denied)
    with pytest.raises(IdentityError, match="contradicts"):
        GraphBallot.from_json(ballot.to_json(strict), strict)


# what liars say


SAID: dict[str, Any] = GraphBallot(cpdag_of(TRUTH)).to_json(STUDY)


def _graph(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(json.dumps(SAID))
    change(said["graph"])
    return said


def _edge(a: Any, b: Any, marks: Any = ("-", ">")) -> dict[str, Any]:
    return {"from": a, "to": b, "marks": list(marks) if isinstance(marks, tuple) else marks}


SQUARE = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "no object": (lambda: [SAID], "got a list"),
    "nothing": (dict, "missing"),
    "a further key": (lambda: {**SAID, "seed": 1}, "unknown"),
    "a truth value": (lambda: {**SAID, "abstains": True}, "wrong type"),
    "a graph that is text": (lambda: {**SAID, "graph": "abcd"}, "wrong type"),
    "an unknown node": (lambda: _graph(lambda g: g["nodes"].append("z")), "other variables"),
    "a node less": (lambda: _graph(lambda g: g.update(nodes=["a", "b", "c"])), "other variables"),
    "a node a million times": (lambda: _graph(lambda g: g.update(nodes=["a"] * 10**5)), "other variables"),
    "no nodes": (lambda: _graph(lambda g: g.pop("nodes")), "other variables"),
    "a name that moves the cursor": (
        lambda: _graph(lambda g: g["edges"].append(_edge("\x1b[2J", "\x1b[2J"))), r"^[\x20-\x7e]*$",
    ),
    "nodes in another order": (lambda: _graph(lambda g: g["nodes"].reverse()), "another order"),
    "nodes that are numbers": (lambda: _graph(lambda g: g.update(nodes=[1, 2, 3, 4])), "other variables"),
    "a self loop": (lambda: _graph(lambda g: g["edges"].append(_edge("a", "a"))), "self loop"),
    "a cycle": (lambda: _graph(lambda g: g.update(edges=[_edge("a", "b"), _edge("b", "c"), _edge("c", "a")])), "cycle"),
    "an edge twice": (lambda: _graph(lambda g: g["edges"].append(g["edges"][0])), "twice"),
    "an edge to nowhere": (lambda: _graph(lambda g: g["edges"].append(_edge("a", "z"))), "unknown nodes"),
    "an edge of null": (lambda: _graph(lambda g: g["edges"].append(_edge(None, "b"))), "cannot be taken"),
    "two arrowheads": (lambda: _graph(lambda g: g.update(edges=[_edge("a", "b", (">", ">"))])), "neither directed"),
    "a circle": (lambda: _graph(lambda g: g.update(edges=[_edge("a", "b", ("o", ">"))])), "neither directed"),
    "marks as text": (lambda: _graph(lambda g: g.update(edges=[_edge("a", "b", "->")])), "not written as"),
    "edges out of order": (lambda: _graph(lambda g: g["edges"].reverse()), "not written as"),
    "a key in the graph": (lambda: _graph(lambda g: g.update(note="x" * 1000)), "not written as"),
    "a graph that is deep": (lambda: _graph(lambda g: g.update(edges=[[[[[[]]]]]])), "cannot be taken"),
    "no causal order": (
        lambda: {**SAID, "graph": CausalGraph.cpdag(undirected=SQUARE, nodes="abcd").to_json()}, "no causal order",
    ),
    "not a number": (lambda: _graph(lambda g: g.update(edges=[_edge("a", float("nan"))])), "cannot be taken"),
    "too few bits": (lambda: {**SAID, "absent": "0"}, "one bit for each of 6"),
    "no hexadecimal digits": (lambda: {**SAID, "absent": "zz"}, "one bit for each of 6"),
    "bits behind the last": (lambda: {**SAID, "absent": "01"}, "behind the last"),
    "a link both there and ruled out": (lambda: {**SAID, "absent": "40"}, "both has and rules out a - c"),
    "knowledge of others": (lambda: {**SAID, "knowledge": {"tiers": {"z": 1}}}, "unknown variables"),
    "knowledge that is wrong": (lambda: {**SAID, "knowledge": {"required": [["a", "a"]]}}, "cannot be taken"),
    "knowledge that its graph lacks": (
        lambda: {**SAID, "knowledge": {"required": [["a", "d"]], "forbidden": [], "tiers": {}}}, "lacks a -> d",
    ),
    "a reason that is a text": (lambda: {**SAID, "abstains": "Patient 7 is odd"}, "a code"),
    "an abstention with a graph": (lambda: {**SAID, "abstains": "data"}, "more than what is known"),
    "noise from a seed in earnest": (lambda: {**SAID, "noise": "mine"}, "'os', or 'simulated'"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_malformed_ballot_is_counted_or_crashes_the_count(case: str) -> None:
    said, words = HOSTILE[case]
    with pytest.raises(IdentityError, match=words):
        GraphBallot.from_json(said(), STUDY)
    assert GraphBallot.from_json(json.loads(json.dumps(SAID)), STUDY).graph == cpdag_of(TRUTH)


def test_a_study_in_earnest_takes_noise_from_a_seed() -> None:
    earnest = Study.from_mapping({**STUDY.to_json(), "study": {**STUDY.to_json()["study"], "simulation": False}})
    simulated = {**SAID, "noise": "simulated"}
    assert GraphBallot.from_json(simulated, STUDY).noise == "simulated"
    with pytest.raises(IdentityError, match="a simulation"):
        GraphBallot.from_json(simulated, earnest)


def test_a_graph_that_breaks_what_the_study_knows_is_counted() -> None:
    tiers = [{"name": n, "kind": "continuous", "bounds": [-6.0, 6.0], "tier": k} for k, n in enumerate("abcd")]
    late = local_study(variables=tiers)
    wrong = GraphBallot(CausalGraph.dag([("d", "a")], "abcd")).to_json(late)
    with pytest.raises(IdentityError, match="rules out"):
        GraphBallot.from_json(wrong, late)
    lacking = local_study(knowledge={"required": [["a", "b"]]})
    with pytest.raises(IdentityError, match="lacks a -> b, which is known"):
        GraphBallot.from_json(GraphBallot(CausalGraph.dag([], "abcd")).to_json(lacking), lacking)
    # An arrow that knowledge alone forces, and that closes a circle with the others.
    forced = local_study(knowledge={"forbidden": [["a", "c"]]})
    ring = GraphBallot(CausalGraph.cpdag([("a", "b"), ("b", "c")], [("a", "c")], "abcd")).to_json(forced)
    with pytest.raises(IdentityError, match="ballot's graph"):
        GraphBallot.from_json(ring, forced)


def _wide(d: int, edges: list[tuple[int, int]]) -> tuple[Study, dict[str, Any]]:
    variables = [{"name": f"v{k:03}", "kind": "continuous", "bounds": [-6.0, 6.0]} for k in range(d)]
    asked = local_study(variables=variables)
    graph = CausalGraph.dag([(asked.names[i], asked.names[j]) for i, j in edges], asked.names)
    return asked, GraphBallot(graph).to_json(asked)


def test_more_marks_than_can_be_recorded_are_counted() -> None:
    """Thirty causes of thirty effects: 900 links, but 13,050 colliders. What is longer in bytes is not even read."""
    asked, said = _wide(60, [(i, 30 + j) for i in range(30) for j in range(30)])
    with pytest.raises(IdentityError, match="more than 10000 marks"):
        GraphBallot.from_json(said, asked)
    long = {**SAID, "graph": {**SAID["graph"], "edges": SAID["graph"]["edges"] * 10_000}}
    with pytest.raises(IdentityError, match="at most 700000 bytes"):
        GraphBallot.from_json(long, STUDY)


def test_one_member_swamps_the_record_with_marks_that_nobody_else_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_ballots, "MOST_LISTED", 4)
    graphs = {f"m{k}": TRUTH for k in range(4)} | {
        "liar": CausalGraph.dag([("a", "b"), ("a", "d"), ("b", "d")], "abcd")
    }
    found = decide_local_adoption(local_study(faulty=1), _ballots(graphs), 5)
    assert found.pattern == cpdag_of(TRUTH)
    assert [tally.support for tally in found.tallies] == [4, 4, 4, 4]
    assert found.unlisted == 3
    assert found.to_json()["unlisted"] == 3
    monkeypatch.setattr(graph_ballots, "MOST_LISTED", 1)  # what has enough supporters is listed, however much it is
    assert decide_local_adoption(local_study(faulty=1), _ballots(graphs), 5).pattern == cpdag_of(TRUTH)


@pytest.mark.parametrize("members", [5, 7, 10])
def test_colluders_enter_or_strike_something_alone(members: int) -> None:
    """f members with one invented graph, against honest ones who agree: the adopted graph is theirs."""
    rng = np.random.default_rng(members)
    faulty = 4 * members // 10
    asked = local_study("abcdef", faulty=faulty)
    for _ in range(count(10, 300)):
        honest, lie = (cpdag_of(random_dag(rng, 6, 2.5)) for _ in range(2))
        honest, lie = (_renamed(graph, asked) for graph in (honest, lie))
        lie = lie if rng.random() < 0.5 else opposite(honest, asked)
        graphs = {f"m{k}": lie if k < faulty else honest for k in range(members)}
        found = decide_local_adoption(asked, _ballots(graphs), members)
        assert found.pattern == honest
        silent = {name: graph for name, graph in graphs.items() if graph is not honest or name != f"m{faulty}"}
        assert decide_local_adoption(asked, _ballots(silent), members).pattern.skeleton() <= honest.skeleton()
        nobody = {name: graph for name, graph in graphs.items() if int(name[1:]) < faulty}
        assert decide_local_adoption(asked, _ballots(nobody), members).pattern.skeleton() == frozenset()


def _renamed(graph: CausalGraph, asked: Study) -> CausalGraph:
    name = dict(zip(sorted(graph.nodes), asked.names, strict=True))
    return CausalGraph.cpdag(
        [(name[a], name[b]) for a, b in graph.directed], [(name[a], name[b]) for a, b in graph.undirected], asked.names
    )


def test_a_count_ends_in_a_cycle_or_hangs_on_the_order_of_arrival() -> None:
    rng = np.random.default_rng(7)
    for _ in range(CASES):
        members = int(rng.integers(1, 9))
        asked = local_study("abcdef", faulty=int(rng.integers(0, 1 + 2 * members // 5)))
        ballots = {
            f"m{k}": GraphBallot(_renamed(cpdag_of(random_dag(rng, 6, float(rng.uniform(1, 4)))), asked))
            for k in range(members)
            if rng.random() < 0.85
        }
        found = decide_local_adoption(asked, ballots, members)
        assert found.dag.is_dag
        assert found.dag == extension(found.pattern)
        assert found.dag.unshielded_colliders() == found.pattern.unshielded_colliders()
        assert decide_local_adoption(asked, dict(reversed(ballots.items())), members) == found
        assert found.pattern.nodes == asked.names


def test_nobody_votes() -> None:
    found = decide_local_adoption(local_study(knowledge={"required": [["a", "b"]]}), {}, 5)
    assert found.dag.directed == {("a", "b")}
    assert found.dag.nodes == ("a", "b", "c", "d")


def test_a_forged_graph_is_none_that_is_taken() -> None:
    """The liars' ballot must get past every check, or the simulations that bear it prove nothing."""
    asked = local_study(knowledge={"required": [["a", "c"]], "forbidden": [["a", "d"]]})
    honest = asked.prior.orient(cpdag_of(TRUTH))
    forged = opposite(honest, asked)
    assert _read(GraphBallot(forged).to_json(asked), asked).graph == forged
    assert forged.directed == {("a", "c"), ("a", "b"), ("b", "d")}
