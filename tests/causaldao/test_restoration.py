"""What the clip took is put back in a study: found graphs, ballots, effects; where it must not be; what is sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from causaldao.ballots import Mark, Proposal, cast, recheck
from causaldao.decisions import decide_adoption, decide_pool, decide_proposal, estimate_effects, evidence_of_answers
from causaldao.errors import ConfigurationError, IdentityError
from causaldao.models.discovery.evidence import Evidence, partial
from causaldao.models.discovery.reading import Reading
from causaldao.simulations.datasets import linear_gaussian
from causaldao.study import Study
from tests.causaldao import cases

WEIGHTS = {("a", "b"): 0.9, ("b", "c"): 0.8, ("c", "d"): 0.9, ("a", "e"): 0.7, ("e", "d"): 0.5}
SKELETON = {("a", "b"), ("b", "c"), ("c", "d"), ("a", "e"), ("d", "e")}
EFFECT = 0.9 * 0.8 * 0.9 + 0.7 * 0.5


def asked(shift: float = 0.0, **discovery: Any) -> Study:
    """A study of the five variables whose bounds are off the mean of ``a`` by ``shift``."""
    value = cases.study().to_json()
    bounds = {name: [-6.0, 6.0] for name in "abcde"} | {"a": [-6.0 + shift, 6.0 + shift]}
    value["variables"] = [{"name": name, "kind": "continuous", "bounds": bounds[name]} for name in "abcde"]
    value["discovery"] = {"restarts": 2, "clip": 1.4, **discovery}
    value["training"] = {"rounds": 0}
    value["privacy"] = {**value["privacy"], "epsilon": 16.0}
    value["members"]["n_max"] = 100_000
    value["effects"] = [{"treatment": "a", "outcome": "d", "adjustment": []}]
    return Study.from_mapping(value)


def sites(study: Study, seed: int = 0) -> dict[str, Evidence]:
    rng = np.random.default_rng(seed)
    return {f"site-{k}": cases.released(rng, linear_gaussian(WEIGHTS, 20_000, rng), study) for k in range(6)}


@pytest.fixture(scope="module")
def restored() -> tuple[Study, dict[str, Evidence], Proposal]:
    study = asked(restore=True)
    evidence = sites(study)
    return study, evidence, decide_proposal(study, decide_pool(study, evidence, 6))


def test_the_bend_of_the_clip_is_no_edge_once_it_is_put_back(
    restored: tuple[Study, dict[str, Evidence], Proposal],
) -> None:
    plain = asked()
    bent = decide_proposal(plain, decide_pool(plain, sites(plain), 6))
    assert bent.pattern.skeleton() > SKELETON
    assert restored[2].pattern.skeleton() == SKELETON


def test_an_effect_shrinks_with_the_clip_and_not_when_it_is_put_back(
    restored: tuple[Study, dict[str, Evidence], Proposal],
) -> None:
    study, evidence, proposal = restored
    pool = decide_pool(study, evidence, 6)
    ballots = {name: cast(proposal, own) for name, own in evidence.items()}
    consensus = decide_adoption(study, proposal, ballots, 6)
    assert consensus.pattern.skeleton() == SKELETON
    answers, bounds = evidence_of_answers(study, pool.evidence, pool.bounds, proposal.reading)
    (effect,) = estimate_effects(study, answers, consensus, bounds)
    (bent,) = estimate_effects(study, pool.evidence, consensus, pool.bounds)
    assert abs(effect["estimate"] - EFFECT) < 0.03
    assert bent["estimate"] < EFFECT - 0.1
    assert effect["bound"] is None  # the pool's bound is of the bent answer
    assert bent["bound"] is not None


def test_ballots_follow_from_the_evidence_as_the_proposal_reads_it(
    restored: tuple[Study, dict[str, Evidence], Proposal],
) -> None:
    study, evidence, proposal = restored
    for own in evidence.values():
        ballot = cast(proposal, own, level=study.consensus.level)
        assert all(ballot.votes[f"{a} - {b}"] == 1 for a, b in SKELETON)
        assert recheck(ballot, proposal, own, study.consensus.level) == ()
    marks = {mark.nodes: mark for mark in proposal.marks}
    own = evidence["site-0"]
    assert abs(proposal.reading.test(own, "a", "b", ()).z - partial(own, "a", "b").z) > 0.05
    assert abs(marks["a", "b"].z - proposal.reading.test(own, "a", "b", marks["a", "b"].given).z) < 0.05


def test_a_ballot_that_is_cast_on_clipped_evidence_takes_the_bend_for_an_edge(
    restored: tuple[Study, dict[str, Evidence], Proposal],
) -> None:
    _, evidence, proposal = restored
    absent = replace(proposal, marks=(Mark(("c", "e"), ("b",)),))  # b separates them
    votes = [cast(absent, own).votes["c - e"] for own in evidence.values()]
    unread = [cast(replace(absent, reading=Reading()), own).votes["c - e"] for own in evidence.values()]
    assert votes == [0] * 6
    assert 0 not in unread


def test_a_proposal_says_how_it_reads_and_is_read_again(restored: tuple[Study, dict[str, Evidence], Proposal]) -> None:
    proposal = restored[2]
    assert Proposal.from_json(proposal.to_json()) == proposal
    plain = asked()
    other = decide_proposal(plain, decide_pool(plain, sites(plain), 6)).to_json()
    assert set(other) == {"pattern", "marks", "near_ties"}
    assert set(other["marks"][0]) == {"nodes", "given", "strength", "z", "error"}


def test_a_mean_far_from_the_centre_of_its_bounds_is_named_and_nothing_is_put_back() -> None:
    study = asked(shift=2.0, restore=True)
    proposal = decide_proposal(study, decide_pool(study, sites(study), 6))
    assert (proposal.unrestored, bool(proposal.reading)) == ("a", False)
    assert Proposal.from_json(proposal.to_json()) == proposal


@pytest.mark.parametrize("crooked", ["missing", "short", "twice", "infinite", "text"])
def test_a_reading_that_the_study_cannot_have_is_refused(
    crooked: str, restored: tuple[Study, dict[str, Evidence], Proposal]
) -> None:
    value = restored[2].to_json()
    reading = value["reading"]
    if crooked == "missing":
        del reading["c"]
    else:
        reading["c"] = {
            "short": [[1.0, 0.0]], "twice": [*reading["c"], *reading["c"]], "infinite": [[float("inf")] * 5],
            "text": [["1"] * 5],
        }[crooked]  # fmt: skip
    with pytest.raises(IdentityError):
        Proposal.from_json(value).reading.require(list("abcde"), (), mixed=True)


def test_a_study_that_puts_nothing_back_takes_no_reading(restored: tuple[Study, dict[str, Evidence], Proposal]) -> None:
    reading = restored[2].reading
    reading.require(list("abcde"), (), mixed=True)
    with pytest.raises(IdentityError, match="do not have"):
        reading.require(list("abcde"), (), mixed=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clip": None}, "nothing to put back"),
        ({"clip": 6.0}, "nothing to put back"),
        ({"features": "fourier"}, "only numbers can be put back"),
    ],
)
def test_restoration_is_refused_where_it_says_nothing(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        asked(restore=True, **change)


def test_restoration_is_refused_for_kinds_that_are_not_elliptical() -> None:
    value = asked(restore=True).to_json()
    value["variables"][1] = {"name": "b", "kind": "binary", "bounds": [0, 1]}
    with pytest.raises(ConfigurationError, match=r"elliptical.*\['b'\]"):
        Study.from_mapping(value)


def test_a_study_that_does_not_ask_for_it_has_the_hash_it_had() -> None:
    assert cases.study().hash == "3d866d55b3bbe86cdacdc0c09cdeaec00b4e846d8d90e4ed6c4a171d42bd6a50"
    assert asked(restore=False).hash == asked().hash != asked(restore=True).hash
    assert "restore" not in asked().to_json()["discovery"]
    assert Study.from_mapping(asked(restore=True).to_json()).hash == asked(restore=True).hash
