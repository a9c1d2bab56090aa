"""A study whose members' conditions differ: who is compared with whom, what is proposed, voted and adopted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.ballots import Ballot, Proposal, cast
from causaldao.conditions import read_for_effects
from causaldao.decisions import (
    answers_needed,
    cautions,
    decide_adoption,
    decide_comparison,
    decide_pool,
    decide_proposal,
    environments_needed,
    estimate_effects,
)
from causaldao.declared import Declaration
from causaldao.errors import ConfigurationError, GuaranteeError, IdentityError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.knowledge import Knowledge
from causaldao.pool import Pool
from causaldao.study import Study
from tests.causaldao.cases import released
from tests.counts import count
from tests.simulations.planted_environments import NAMES, TARGETS, TRUE, federation, rows, study

ASKED = study()


@cache
def _sites(seed: int = 0) -> tuple[Mapping[str, Evidence], Mapping[str, Declaration]]:
    """What five members of each environment release and declare."""
    rng = np.random.default_rng([seed, 1])
    tables, declared = federation(seed)
    return {n: released(rng, table, ASKED) for n, table in tables.items()}, _said(declared)


def _said(declared: Mapping[str, str]) -> dict[str, Declaration]:
    return {name: Declaration(environment) for name, environment in declared.items()}


def _pool(evidence: Mapping[str, Evidence], declared: Mapping[str, Declaration], asked: Study = ASKED) -> Pool:
    return decide_pool(asked, evidence, len(evidence), declared)


def _lie(evidence: Evidence) -> Evidence:
    """A first variable that pulls the last one down, hard."""
    moments = evidence.moments.clone()
    moments[1, -1] = moments[-1, 1] = moments[1, -1] - 0.2 * evidence.count
    return replace(evidence, moments=moments)


def _ballots(
    proposal: Proposal, evidence: Mapping[str, Evidence], declared: Mapping[str, Declaration]
) -> dict[str, Ballot]:
    level = ASKED.consensus.level
    return {n: cast(proposal, own, level=level, **declared[n].voting(ASKED)) for n, own in evidence.items()}


def test_directions_that_no_observation_tells_are_lost() -> None:
    for seed in range(count(2, 20)):
        evidence, declared = _sites(seed)
        pooled = _pool(evidence, declared)
        proposal = decide_proposal(ASKED, pooled)
        assert proposal.pattern.directed == TRUE, seed
        assert proposal.arrows == tuple(sorted(TRUE))
        adopted = decide_adoption(ASKED, proposal, _ballots(proposal, evidence, declared), len(evidence))
        assert adopted.pattern == proposal.pattern
        assert adopted.arrows == proposal.arrows
    # what the same chain shows where nothing is acted on
    plain = study({})
    observed = {name: one for name, one in evidence.items() if name.startswith("plain")}
    seen = decide_proposal(plain, decide_pool(plain, observed, 5)).pattern
    assert (seen.skeleton(), seen.directed) == (proposal.pattern.skeleton(), frozenset())


def test_an_honest_environment_is_accused_and_only_where_conditions_are_compared() -> None:
    evidence, declared = _sites()
    assert _pool(evidence, declared).accused == ()
    assert {n.rsplit("-", 1)[0] for n in decide_pool(study({}), evidence, 15).accused} >= {"held-b", "held-d"}


@pytest.mark.parametrize("liar", ["plain-2", "held-b-0", "held-d-4"])
def test_a_liar_hides_behind_its_conditions(liar: str) -> None:
    evidence, declared = _sites()
    pooled = _pool({**evidence, liar: _lie(evidence[liar])}, declared)
    assert pooled.accused == (liar,)
    assert liar in pooled.excluded
    assert liar not in pooled.weights
    assert decide_proposal(ASKED, pooled).pattern.directed == TRUE


def test_accusations_are_made_at_the_level_of_each_environment_by_itself() -> None:
    """The level is shared by the members of all environments: one critical value, as if they were compared as one."""
    evidence, declared = _sites()
    pooled, alone = _pool(evidence, declared), decide_pool(study({}), evidence, 15)
    assert pooled.environments["plain"].critical == pytest.approx(alone.critical)  # with its question
    assert pooled.critical == max(one.critical for one in pooled.environments.values())


def test_a_liar_with_an_environment_of_its_own_is_believed_or_stops_the_study() -> None:
    evidence, declared = _sites()
    targets = {**TARGETS, "mine": []}
    asked = study(targets)
    alone = {**evidence, "z-liar": _lie(evidence["plain-1"])}
    pooled = _pool(alone, {**declared, "z-liar": Declaration("mine")}, asked)
    assert pooled.accused == ()
    assert {name: (one.members, one.needs) for name, one in pooled.aside.items()} == {"mine": (("z-liar",), 5)}
    assert "z-liar" in pooled.excluded
    torch.testing.assert_close(pooled.evidence.moments, _pool(evidence, declared).evidence.moments)
    proposal = decide_proposal(asked, pooled)
    assert proposal.pattern.directed == TRUE
    own = {name: one.evidence for name, one in pooled.environments.items()}
    assert read_for_effects(asked, own, pooled.evidence) is own["plain"]
    # nothing there to hold its evidence against: it can contradict nothing by it
    assert -1 not in cast(proposal, alone["z-liar"], **Declaration("mine").voting(asked)).votes.values()


def test_the_recorded_pool_cannot_be_read_as_before() -> None:
    evidence, declared = _sites()
    found = _pool(evidence, declared).to_json()
    plain = decide_pool(study({}), evidence, 15).to_json()
    assert set(found) - set(plain) == {"environments", "aside"}
    assert {key: type(found[key]) for key in plain} == {key: type(value) for key, value in plain.items()}
    assert sum(found["weights"].values()) == pytest.approx(1)
    assert sorted(found["kept"] + found["excluded"]) == sorted(evidence)
    assert all(set(one) == set(plain) for one in found["environments"].values())


def test_what_was_only_changed_is_taken_for_set() -> None:
    """Soft: b still listens to a, less and louder; scored by a mechanism of its own, it tells both its directions."""
    asked = study({"plain": [], "changed": ["b"]}, discovery={"interventions": "soft", "restarts": 2})
    rng, evidence = np.random.default_rng(6), dict[str, Evidence]()
    for held in ("plain", "changed"):
        for k in range(5):
            noise = rng.normal(size=(5, 2000))
            a, b = noise[0], (0.8 * noise[0] + noise[1] if held == "plain" else 0.4 * noise[0] + 1.5 * noise[1])
            c = 0.8 * b + noise[2]
            table = pd.DataFrame({"a": a, "b": b, "c": c, "d": noise[3], "e": noise[4]})
            evidence[f"{held}-{k}"] = Evidence.from_data(table, asked.encoding)
    said = _said({name: name.rsplit("-", 1)[0] for name in evidence})
    proposal = decide_proposal(asked, _pool(evidence, said, asked))
    assert proposal.pattern.directed == {("a", "b"), ("b", "c")} == set(proposal.arrows)
    assert proposal.pattern.undirected == frozenset()


def test_members_of_one_environment_are_compared_otherwise_than_in_a_plain_study() -> None:
    evidence, _ = _sites()
    asked, plain = study({"plain": [], "other": []}), study({})
    observed = {name: one for name, one in evidence.items() if name.startswith("plain")}
    same = _said(dict.fromkeys(observed, "plain"))
    found, alone = _pool(observed, same, asked), decide_pool(plain, observed, 5)
    torch.testing.assert_close(found.evidence.covariance(), alone.evidence.covariance())
    told, expected = found.to_json(), alone.to_json()
    assert told.pop("aside") == {}
    assert told.pop("environments") == {"plain": expected}
    assert told == expected
    assert decide_proposal(asked, found).pattern == decide_proposal(plain, alone).pattern


def _declaring(**counts: int) -> dict[str, Declaration]:
    names = {"b": "held-b", "d": "held-d"}
    return {f"{key}-{k}": Declaration(names.get(key, key)) for key, number in counts.items() for k in range(number)}


@pytest.mark.parametrize(
    ("counts", "members", "words"),
    [
        ({"plain": 4, "b": 4, "d": 4}, 12, "No environment has enough members.*4 in 'plain'.*needs 5 members"),
        ({"plain": 5, "b": 4, "d": 4}, 13, "Only 5 of 13 members are in an environment.*; 8 are needed"),
        ({"plain": 4, "b": 5, "d": 5}, 14, "Effects are asked for, and no environment without targets"),
        ({"b": 9, "plain": 2}, 11, "b: acted on in every environment that can be compared .held-b."),
        ({}, 6, "No environment has enough members.*0 in 'plain', 0 in 'held-b'"),
    ],
)
def test_a_study_that_cannot_be_carried_goes_on_to_spend_privacy(
    counts: dict[str, int], members: int, words: str
) -> None:
    with pytest.raises(GuaranteeError, match=words) as caught:
        decide_comparison(ASKED, _declaring(**counts), members)
    assert caught.value.exit_code == 13


def test_liars_alone_stop_a_study() -> None:
    """With 2f + 3 honest members in each of its environments it goes on, whatever f others declare or leave unsaid."""
    honest = _declaring(plain=5, b=5)
    for said in ("plain", "held-b", "held-d", None):
        extra = {} if said is None else {"liar": Declaration(said)}
        decide_comparison(ASKED, {**honest, **extra}, 11)
    assert answers_needed(ASKED, 11) <= 10


def test_a_silent_member_takes_its_environment_with_it() -> None:
    evidence, declared = _sites()
    heard = {name: one for name, one in evidence.items() if name != "held-b-3"}
    pooled = decide_pool(ASKED, heard, 15, declared)
    assert pooled.aside == {}
    borne = {name: one.faulty for name, one in pooled.environments.items()}
    assert borne == {"held-b": 0, "held-d": 1, "plain": 1}  # the one who is silent may be the one who lies
    assert pooled.faulty == 0


def test_who_answers_the_roll_call_and_nothing_more_ends_a_study_that_all_others_paid_for() -> None:
    """Seven members of whom five can be compared, as many as are needed; then one of these gives no evidence."""
    evidence, declared = _sites()
    here = [name for name in evidence if name.startswith("plain") or name in ("held-b-0", "held-b-1")]
    decide_comparison(ASKED, {name: declared[name] for name in here}, 7)
    assert answers_needed(ASKED, 7) == 5
    pooled = decide_pool(ASKED, {name: evidence[name] for name in here if name != "plain-4"}, 7, declared)
    assert (pooled.environments["plain"].faulty, pooled.aside["held-b"].members) == (0, ("held-b-0", "held-b-1"))
    with pytest.raises(GuaranteeError, match="No environment has enough"):
        decide_pool(ASKED, {name: evidence[name] for name in here if name not in ("plain-3", "plain-4")}, 7, declared)


def test_more_are_silent_than_may_lie_and_the_rest_is_believed() -> None:
    evidence, declared = _sites()
    left_out = {"held-b-3", "held-d-3"}
    heard = {name: one for name, one in evidence.items() if name not in left_out}
    with pytest.raises(GuaranteeError, match="Only 5 of 15 members are in an environment that can be compared"):
        decide_pool(ASKED, heard, 15, declared)


def test_an_honest_member_seems_to_contradict_what_lies_below_an_intervention() -> None:
    """Held b, c hardly varies: the edge c -> d is as it was, and shows in no single member's evidence there. Held
    against all environments together those members would oppose a true edge that touches no target."""
    rng = np.random.default_rng(4)
    tables = {f"{held}-{k}": _driven(rng, held) for held in ("plain", "held-b") for k in range(5)}
    evidence = {name: Evidence.from_data(table, ASKED.encoding) for name, table in tables.items()}
    declared = _said({name: name.rsplit("-", 1)[0] for name in tables})
    proposal = decide_proposal(ASKED, _pool(evidence, declared))
    votes = {name: ballot.votes["c - d"] for name, ballot in _ballots(proposal, evidence, declared).items()}
    strangers = {name: cast(proposal, own).votes["c - d"] for name, own in evidence.items()}
    assert {votes[f"plain-{k}"] for k in range(5)} == {1}
    assert -1 not in votes.values()
    assert [strangers[f"held-b-{k}"] for k in range(5)].count(-1) >= 3


def _driven(rng: np.random.Generator, held: str, n: int = 150) -> pd.DataFrame:
    """b drives c, which moves d."""
    table = pd.DataFrame(rng.normal(size=(n, 5)), columns=list(NAMES))
    table["b"] *= 0.05 if held == "held-b" else 1.0
    table["c"] = table["b"] + 0.2 * table["c"]
    table["d"] += 0.8 * table["c"]
    return table


def test_a_member_opposes_by_evidence_what_its_conditions_act_on() -> None:
    evidence, declared = _sites()
    proposal = decide_proposal(ASKED, _pool(evidence, declared))
    name = "held-b-1"
    moments = evidence[name].moments.clone()
    moments[1, 2] = moments[2, 1] = moments[1, 2] - 0.008 * evidence[name].count
    forged, said = replace(evidence[name], moments=moments, noise=0.1), declared[name].voting(ASKED)
    assert cast(proposal, forged, **{**said, "targets": ()}).votes["a - b"] == -1
    assert cast(proposal, forged, **said).votes["a - b"] == 0
    known = Knowledge(forbidden={("a", "b"), ("b", "a")})
    assert cast(proposal, evidence[name], known, **said).votes["a - b"] == -1  # what it declares to know stands


def test_a_mark_is_judged_where_its_edge_is_cut() -> None:
    evidence, declared = _sites()
    pooled = _pool(evidence, declared)
    marks = {mark.key: mark for mark in decide_proposal(ASKED, pooled).marks}
    own = {key: {name: z for name, z, _ in mark.within} for key, mark in marks.items()}
    assert abs(own["a - b"]["held-b"]) < 0.1 < 0.5 < own["a - b"]["plain"]
    assert abs(own["c - d"]["held-d"]) < 0.1 < 0.5 < own["c - d"]["held-b"]
    assert marks["a - b"].z == pytest.approx(own["a - b"]["plain"], abs=0.1)  # as in both where b is free
    everywhere = study({"held-a": ["a"], "held-b": ["b"]}, effects=[])
    rng = np.random.default_rng(5)
    both = {f"{held}-{k}": released(rng, _held(rng, held), everywhere) for held in "ab" for k in range(5)}
    said = {name: Declaration(f"held-{name[0]}") for name in both}
    (mark,) = [m for m in decide_proposal(everywhere, _pool(both, said, everywhere)).marks if m.key == "a - b"]
    assert mark.z == pytest.approx({name: z for name, z, _ in mark.within}["held-a"])


def _held(rng: np.random.Generator, held: str) -> Any:
    table = rows(rng, "plain")
    if held == "b":
        return rows(rng, "held-b")
    table["a"] = 1.5 * rng.normal(size=len(table))
    for before, name in zip("abcd", "bcde", strict=True):
        table[name] = 0.8 * table[before] + rng.normal(size=len(table))
    return table


def test_effects_are_read_where_something_is_acted_on() -> None:
    evidence, declared = _sites()
    pooled = _pool(evidence, declared)
    own = {name: one.evidence for name, one in pooled.environments.items()}
    read = read_for_effects(ASKED, own, pooled.evidence)
    proposal = decide_proposal(ASKED, pooled)
    adopted = decide_adoption(ASKED, proposal, _ballots(proposal, evidence, declared), len(evidence))
    (effect,) = estimate_effects(ASKED, read, adopted, pooled.bounds)
    assert abs(effect["estimate"] - 0.64) < 4 * effect["standard_error"]
    assert effect["bound"] > 0
    (wrong,) = estimate_effects(ASKED, pooled.evidence, adopted, pooled.bounds)
    assert abs(wrong["estimate"] - 0.64) > 4 * wrong["standard_error"]
    # of two environments read together no bound is known
    two = study({"plain": [], "held-b": ["b"], "held-d": []})
    assert _pool(evidence, declared, two).bounds == (None,)


def test_an_adopted_arrow_outlives_the_edge_or_the_vote_against_it() -> None:
    evidence, declared = _sites()
    proposal = decide_proposal(ASKED, _pool(evidence, declared))
    against = {mark.key: -1 if mark.key == "b - c" else 1 for mark in proposal.marks}
    adopted = decide_adoption(ASKED, proposal, {name: Ballot(against) for name in evidence}, len(evidence))
    assert adopted.pattern.directed == TRUE - {("b", "c")}
    assert adopted.arrows == tuple(sorted(TRUE - {("b", "c")}))


def test_a_proposal_is_read_back_as_another() -> None:
    evidence, declared = _sites()
    proposal = decide_proposal(ASKED, _pool(evidence, declared))
    told = proposal.to_json()
    assert Proposal.from_json(told) == proposal
    for arrows in ([["b", "a"]], [["a", "b"], ["a", "b"]], "ab", [["a"]], [["b", "c"], ["a", "b"]], [[1, 2]]):
        with pytest.raises(IdentityError, match="arrows"):
            Proposal.from_json({**told, "arrows": arrows})
    for within in ([], {"plain": [0.1]}, {"plain": [0.1, -1]}, {"plain": [float("nan"), 1]}, {"plain": ["x", 1]}, 3):
        marks = [{**told["marks"][0], "within": within}, *told["marks"][1:]]
        with pytest.raises(IdentityError, match="mark"):
            Proposal.from_json({**told, "marks": marks})


def test_a_method_is_asked_about_interventions_that_it_does_not_know() -> None:
    for method in ("pc", "ges", "moment-fit"):
        with pytest.raises(ConfigurationError) as caught:
            study(discovery={"method": method})
        assert "knows nothing of interventions: take 'boss'" in str(caught.value)
        evidence, declared = _sites()
        asked = study({"plain": [], "held-b": [], "held-d": []}, discovery={"method": method})
        proposal = decide_proposal(asked, _pool(evidence, declared, asked))
        assert proposal.arrows == ()
        assert proposal.pattern.nodes == tuple(NAMES)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ([{"name": "x"}, {"name": "x"}], "['x'] are declared twice"),
        ([{"name": "x"}], "'x' is the only one"),
        ([{"name": "x", "targets": ["b"]}, {"name": "y", "targets": ["b"]}], "['b'] are targets in every one"),
        ([{"name": "x"}, {"name": "y", "targets": ["b", "b"]}], "['y'] name a target twice"),
        ([{"name": "x"}, {"name": "y", "targets": "b"}], "environments.1.targets: Input should be a list (got 'b')"),
    ],
)
def test_environments_that_cannot_be_meant_are_taken(declared: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        study(environments=declared)
    assert words in str(caught.value)


def test_more_is_asked_of_one_entry_than_it_holds() -> None:
    many = [{"name": f"e{k}", "targets": []} for k in range(100)]
    variables = [{"name": f"v{k}", "kind": "continuous", "bounds": [-1, 1]} for k in range(60)]
    with pytest.raises(ConfigurationError, match="100 pools of 60 variables take some"):
        study({}, environments=many, variables=variables, effects=[])


def test_a_study_says_how_many_each_environment_needs() -> None:
    needed = environments_needed(ASKED)
    assert [(one["name"], one["members_needed"], one["whoever_lies"], one["effects"]) for one in needed] == [
        ("plain", 5, 6, True), ("held-b", 5, 6, False), ("held-d", 5, 6, False),
    ]  # fmt: skip
    assert any("12 members cannot make all 3 environments comparable" in text for text in cautions(ASKED, 12))
    assert not any("comparable" in text for text in [*cautions(ASKED, 15), *cautions(ASKED), *cautions(study({}), 5)])
    assert "environments" not in study({}).to_json()
    crossed = cautions(study({"held-a": ["a"], "held-b": ["b"]}, effects=[]))
    assert [text[:47] for text in crossed] == [
        "Wherever a is left alone, b is acted on: what b", "Wherever b is left alone, a is acted on: what a",
    ]  # fmt: skip
