"""Ballots: whoever votes other than the own evidence says is named; what is no ballot is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from causaldao.ballots import Ballot, Mark, Proposal, cast, marks_of, propose, recheck
from causaldao.errors import ConfigurationError, IdentityError
from causaldao.models.discovery.evidence import Evidence, partial
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import Knowledge
from causaldao.models.pattern import cpdag_of
from causaldao.pool import Settings, pool
from causaldao.signing import canonical
from tests.causaldao.cases import sites, study
from tests.models.random_models import noisy, population, sample, weights

STUDY = study()
SITES = sites(np.random.default_rng(0), STUDY, 6)
POOLED = pool(SITES, Settings(1, rows=(100, 5000))).evidence
PROPOSAL = propose(POOLED, "boss", STUDY.prior, seed=1, restarts=2)
LEVEL = 0.01


def _votes(ballot: Ballot, key: str, vote: int) -> Ballot:
    return replace(ballot, votes={**ballot.votes, key: vote})


def test_a_forged_vote_is_not_named() -> None:
    for own in SITES.values():
        honest = cast(PROPOSAL, own, level=LEVEL)
        assert recheck(honest, PROPOSAL, own, LEVEL) == ()
        for mark in PROPOSAL.marks:
            for vote in {-1, 0, 1} - {honest.votes[mark.key]}:
                assert recheck(_votes(honest, mark.key, vote), PROPOSAL, own, LEVEL) == (mark.key,)


def test_a_liar_declares_near_ties() -> None:
    own = SITES["site-0"]
    honest = cast(PROPOSAL, own, level=LEVEL)
    key = PROPOSAL.marks[0].key
    forged = replace(_votes(honest, key, -honest.votes[key] or 1), near_ties=tuple(mark.key for mark in PROPOSAL.marks))
    assert recheck(forged, PROPOSAL, own, LEVEL) == (key,)


def test_a_near_tie_is_not_listed() -> None:
    own = SITES["site-0"]
    mark = PROPOSAL.marks[0]
    test = partial(own, *mark.ends, mark.given)
    from statistics import NormalDist

    exactly = 2 * (1 - NormalDist().cdf(abs(test.z) / test.standard_error))
    if exactly == 0:  # too strong to have a level: make the mark weaker instead
        own = replace(own, noise=own.noise * abs(test.z) / test.standard_error / 3)
        test = partial(own, *mark.ends, mark.given)
        exactly = 2 * (1 - NormalDist().cdf(abs(test.z) / test.standard_error))
    ballot = cast(PROPOSAL, own, level=exactly)
    assert mark.key in ballot.near_ties
    assert recheck(_votes(ballot, mark.key, 0), PROPOSAL, own, exactly) == ()
    assert mark.key not in cast(PROPOSAL, own, level=exactly * 0.9).near_ties


def test_evidence_against_the_pool_supports_it() -> None:
    strong = weights(np.random.default_rng(3), 2, 1.0) * 0
    strong[0, 1] = 1.0
    here, there = population(strong, 5000), population(-strong, 5000)
    proposal = propose(here, "boss", Knowledge(), seed=0)
    (mark,) = proposal.marks
    assert cast(proposal, here).votes == {mark.key: 1}
    assert cast(proposal, there).votes == {mark.key: -1}
    assert cast(proposal, population(strong * 0, 5000)).votes == {mark.key: -1}
    assert cast(proposal, population(strong, 5)).votes == {mark.key: 0}
    drowned = noisy(population(strong, 5000), 1e5, np.random.default_rng(1))
    if drowned.count > 0:
        assert cast(proposal, drowned).votes == {mark.key: 0}


def test_declared_knowledge_does_not_override() -> None:
    own = SITES["site-0"]
    for mark in [m for m in PROPOSAL.marks if m.kind == "adjacency"]:
        a, b = mark.nodes
        ruled_out = Knowledge(forbidden=frozenset({(a, b), (b, a)}))
        required = Knowledge(required=frozenset({(a, b)}))
        assert cast(PROPOSAL, own, ruled_out).votes[mark.key] == -1
        assert cast(PROPOSAL, own, required).votes[mark.key] == 1
        assert recheck(cast(PROPOSAL, own, ruled_out, LEVEL), PROPOSAL, own, LEVEL) == ()


def test_knowledge_speaks_of_a_collider_as_of_an_adjacency() -> None:
    proposal = Proposal(CausalGraph.dag([("a", "c"), ("b", "c")]), (Mark(("a", "c", "b"), ("c",), 0.5, 0.5, 0.1),))
    own = population(np.zeros((3, 3)), 1000)
    own = Evidence(("a", "b", "c"), own.moments)
    key = "a -> c <- b"
    late = Knowledge(tiers={"a": 1, "c": 0})
    both = Knowledge(required=frozenset({("a", "c"), ("b", "c")}))
    one = Knowledge(required=frozenset({("a", "c")}))
    assert cast(proposal, own, late).votes[key] == -1
    assert cast(proposal, own, both).votes[key] == 1
    assert cast(proposal, own, one).votes[key] == cast(proposal, own).votes[key]


def test_every_true_mark_of_a_model_is_opposed() -> None:
    """Marks are dependences that the graph implies: in large samples of a faithful model each is shown."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        matrix = weights(rng, 6, 2.0)
        pooled = population(matrix)
        proposal = propose(pooled, "boss", Knowledge(), seed=0)
        ballot = cast(proposal, Evidence.from_data(sample(rng, matrix, 20_000)))
        assert all(vote == 1 for key, vote in ballot.votes.items() if _strength(proposal, key) > 0.1)
        assert list(ballot.votes.values()).count(-1) <= 1


def _strength(proposal: Proposal, key: str) -> float:
    return next(abs(mark.strength) for mark in proposal.marks if mark.key == key)


def test_a_proposal_misses_a_mark_of_its_pattern() -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        matrix = weights(rng, 6, 2.5)
        graph = cpdag_of(
            CausalGraph.dag(
                [(f"v{i:02}", f"v{j:02}") for i, j in zip(*np.nonzero(matrix), strict=True)],
                [f"v{k:02}" for k in range(6)],
            )
        )
        marks = marks_of(graph, population(matrix))
        assert {mark.nodes for mark in marks} == graph.skeleton() | graph.unshielded_colliders()
        assert all(not set(mark.ends) & set(mark.given) for mark in marks)
        assert all(mark.nodes[1] in mark.given for mark in marks if mark.kind == "collider")


def test_a_pattern_without_an_order_is_proposed() -> None:
    square = CausalGraph.cpdag(undirected=[("v00", "v01"), ("v01", "v02"), ("v02", "v03"), ("v00", "v03")])
    with pytest.raises(ConfigurationError, match="no DAG extension"):
        marks_of(square, population(np.zeros((4, 4))))


def test_a_ballot_or_a_proposal_changes_on_the_wire() -> None:
    sent = json.loads(canonical(PROPOSAL.to_json()))
    read = Proposal.from_json(sent)
    assert read == PROPOSAL
    assert read.digest == PROPOSAL.digest
    knowledge = Knowledge(required=frozenset({("age", "pain")}), tiers={"age": 0})
    ballot = cast(read, SITES["site-0"], knowledge)
    assert Ballot.from_json(json.loads(canonical(ballot.to_json())), PROPOSAL) == ballot


def test_a_member_is_framed_by_another_proposal() -> None:
    """A ballot names what it answers: on another proposal with the same marks it is no ballot at all."""
    first, *rest = PROPOSAL.marks
    altered = replace(PROPOSAL, marks=(replace(first, z=-first.z), *rest))
    ballot = cast(altered, SITES["site-0"])
    with pytest.raises(IdentityError, match=PROPOSAL.digest[:12]):
        Ballot.from_json(ballot.to_json(), PROPOSAL)


GOOD = cast(PROPOSAL, SITES["site-0"]).to_json()
KEY = PROPOSAL.marks[0].key


@pytest.mark.parametrize("change", [
    {"votes": {}}, {"votes": {**GOOD["votes"], "x - y": 1}}, {"votes": {**GOOD["votes"], KEY: 2}},
    {"votes": {**GOOD["votes"], KEY: True}}, {"votes": {**GOOD["votes"], KEY: 1.5}},
    {"votes": {**GOOD["votes"], KEY: None}}, {"votes": {**GOOD["votes"], KEY: [1]}}, {"votes": [[KEY, 1]]},
    {"votes": None}, {"near_ties": [[1]]}, {"near_ties": "ab"},
    {"near_ties": ["x - y"]}, {"near_ties": {}}, {"knowledge": None}, {"knowledge": []}, {"knowledge": {"seed": 1}},
    {"knowledge": {"required": [["age", "height"]]}}, {"knowledge": {"required": [["age"]]}},
    {"knowledge": {"tiers": {"age": "0"}}}, {"knowledge": {"required": [["age", "dose"], ["dose", "age"]]}},
    {"knowledge": {"forbidden": 3}}, {"knowledge": {"tiers": [1]}},
    {"knowledge": {"required": [["age", "dose"], ["dose", "pain"], ["pain", "age"]]}},
    {"seed": 1}, {"proposal": ""}, {"proposal": 3}, {"proposal": "0" * 64},
])  # fmt: skip
def test_what_is_no_ballot_is_counted(change: dict[str, Any]) -> None:
    Ballot.from_json(GOOD, PROPOSAL)
    with pytest.raises(IdentityError):
        Ballot.from_json({**GOOD, **change}, PROPOSAL)


@pytest.mark.parametrize("value", [None, [], "x", 3, {}, {"votes": GOOD["votes"]}])
def test_another_json_value_is_a_ballot(value: Any) -> None:
    with pytest.raises(IdentityError):
        Ballot.from_json(value, PROPOSAL)


MARK = PROPOSAL.marks[0].to_json()


@pytest.mark.parametrize("change", [
    {"nodes": ["age"]}, {"nodes": ["age", "age"]}, {"nodes": ["a", "b", "c", "d"]}, {"nodes": [1, 2]}, {"nodes": None},
    {"nodes": []}, {"nodes": [["a"], "b"]}, {"given": [MARK["nodes"][0]]}, {"given": [0]}, {"z": "1"}, {"z": None},
    {"error": -1.0}, {"z": float("nan")}, {"strength": float("inf")}, {"error": True}, {"z": 10**400},
])  # fmt: skip
def test_a_mark_that_a_test_would_stumble_over(change: dict[str, Any]) -> None:
    assert Mark.from_json(MARK) == PROPOSAL.marks[0]
    with pytest.raises(IdentityError):
        Mark.from_json({**MARK, **change})
    with pytest.raises(IdentityError):
        Mark.from_json({"nodes": ["a", "b"]})


def test_a_near_tie_of_discovery_is_lost() -> None:
    """PC on a correlation exactly at its threshold: the proposal says that another machine may decide otherwise."""
    import math
    from statistics import NormalDist

    import torch

    count, alpha = 1000.0, 0.01
    z = NormalDist().inv_cdf(1 - alpha / 2) / math.sqrt(count - 3)
    moments = count * torch.eye(3, dtype=torch.float64)
    moments[1, 2] = moments[2, 1] = count * math.tanh(z)
    found = propose(Evidence(("a", "b"), moments), "pc", Knowledge(), seed=0, alpha=alpha)
    assert found.near_ties == ("a - b",)
