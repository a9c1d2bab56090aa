"""Effects that members answer with sums: what is asked of whom, and what is made of what came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from causaldao import estimates
from causaldao.audit.case import differences
from causaldao.budget import plan
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import release_summary
from causaldao.decisions import decide_pool, require_members
from causaldao.errors import ConfigurationError, GuaranteeError
from causaldao.estimates import Asked, Functions
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.nuisance import Integers
from causaldao.models.summaries import LATTICE
from causaldao.study import Study
from tests.causaldao import cases

SPLIT = {"evidence": 0.6, "training": 0.0, "evaluation": 0.0, "effects": 0.4}
ROBUST = {"treatment": "dose", "outcome": "pain", "adjustment": ["age"], "method": "aipw", "spread": 0.0}
TRUTH = -1.0
DAG = CausalGraph.dag([("age", "dose"), ("age", "pain"), ("dose", "pain")])


def study(*effects: Mapping[str, Any], **changes: Mapping[str, Any]) -> Study:
    """The small study without training, asking for these effects; for the robust one if none is named."""
    value = cases.study(training={"rounds": 0}, privacy={"epsilon": 8.0}).to_json()
    value["privacy"]["split"] = SPLIT
    value["effects"] = [dict(effect) for effect in effects or (ROBUST,)]
    for table, keys in changes.items():
        value[table] = {**value[table], **keys}
    return Study.from_mapping(value)


@cache
def released(members: int = 8) -> dict[str, Evidence]:
    return cases.sites(np.random.default_rng(5), study(), members)


def asked(dag: CausalGraph = DAG, of: Study | None = None) -> tuple[Asked, ...]:
    return estimates.targets(of or study(), dag, dag)


def found(evidence: Mapping[str, Evidence], of: Study | None = None) -> tuple[Functions, ...]:
    given = of or study()
    weights = decide_pool(given, evidence, len(evidence)).weights
    return estimates.functions(given, asked(of=given), evidence, weights)


def honest(functions: Functions, of: Study) -> dict[str, Integers]:
    """Sums as honest members give them, on other records than the evidence's."""
    rng, noise = np.random.default_rng(6), NoiseSource.simulated(b"s" * 32)
    sigma = plan(of).effects_sigma
    return {
        name: release_summary(cases.rows(rng, 1500), of.dictionary, one, sigma, noise)[None]
        for name, one in functions.members.items()
    }


@pytest.fixture(scope="module")
def given() -> tuple[Functions, dict[str, Integers]]:
    (one,) = found(released(), FAULTY)
    return one, honest(one, FAULTY)


FAULTY = study(consensus={"faulty": 2})


def answer(functions: Functions, sums: Mapping[str, Integers], of: Study = FAULTY) -> dict[str, Any]:
    return estimates.estimate(of, asked(of=of), (functions,), sums)[0]


def test_the_answer_is_not_the_planted_one(given: tuple[Functions, dict[str, Integers]]) -> None:
    said = answer(*given)
    assert said["estimate"] == pytest.approx(TRUTH, abs=0.15)
    low, high = said["interval"]
    assert low < TRUTH < high
    assert said["interval_with_liars"][0] < low
    assert (said["accused"], said["quarantined"], said["faulty"], said["adjustment"]) == ([], {}, 2, ["age"])
    assert not differences(said, answer(given[0], dict(reversed(given[1].items()))))  # in whatever order they came


def test_two_liars_of_eight_are_not_named_or_move_the_answer(given: tuple[Functions, dict[str, Integers]]) -> None:
    functions, sums = given
    true = answer(*given)["estimate"]
    liars = ("site-2", "site-5")
    for errors in (2.0, 6.0, 20.0, -40.0):
        lying = dict(sums)
        for name in liars:
            one = functions.members[name]
            away = errors * one.typical / one.count**0.5 * one.denominator / one.clip * LATTICE
            lying[name] = sums[name] + np.rint([[away, 0, 0]]).astype(np.int64)
        said = answer(functions, lying)
        if abs(errors) > 10:
            assert set(liars) <= {*said["accused"], *said["quarantined"]}, errors
        without = answer(functions, {name: one for name, one in sums.items() if name not in liars})
        low, high = said["interval_with_liars"]
        assert low < true < high
        assert low < without["estimate"] < high
        assert abs(said["estimate"] - true) < 0.12, errors


def test_sums_that_no_records_add_up_to_are_taken(given: tuple[Functions, dict[str, Integers]]) -> None:
    functions, sums = given
    forged = {**sums, "site-0": np.full((1, 3), 2**62)}
    said = answer(functions, forged)
    assert list(said["quarantined"]) == ["site-0"]
    assert "site-0" not in said["weights"]
    three = {**forged, "site-1": forged["site-0"], "site-2": forged["site-0"]}
    assert answer(functions, three)["no_answer"] == "guarantee"  # more than the two that are borne


def test_silence_is_borne_beyond_the_bound(given: tuple[Functions, dict[str, Integers]]) -> None:
    functions, sums = given
    assert answer(functions, dict(list(sums.items())[2:]))["faulty"] == 0
    assert answer(functions, dict(list(sums.items())[3:]))["no_answer"] == "guarantee"
    assert answer(functions, {})["no_answer"] == "guarantee"


def test_somebody_is_asked_although_too_few_could_answer() -> None:
    """One member has nobody treated; with f = 2 of seven, six are too few."""
    evidence = dict(list(released().items())[:7])
    moments = evidence["site-3"].moments.clone()
    dose = evidence["site-3"].index("dose") + 1
    moments[0, dose] = moments[dose, 0] = -moments[0, 0]
    evidence["site-3"] = replace(evidence["site-3"], moments=moments)
    (one,) = found(evidence, FAULTY)
    assert one.code == "guarantee"
    assert "positivity" in one.aside["site-3"]
    assert estimates.respondents((one,)) == ()
    said = answer(one, {})
    assert (said["estimate"], said["no_answer"], list(said["aside"])) == (None, "guarantee", ["site-3"])
    (other,) = found(evidence)  # f = 1
    assert estimates.respondents((other,)) == tuple(sorted(set(evidence) - {"site-3"}))
    assert estimates.of_member((other, one), "site-3") == (None, None)


AUTO = {**ROBUST, "adjustment": "auto"}


def test_a_graph_that_settles_nothing_is_answered() -> None:
    of = study(AUTO)
    (settled,) = asked(DAG, of)
    assert settled.target is not None
    assert (settled.target.covariates, settled.implied) == (("age",), False)
    open_ = CausalGraph.cpdag(
        directed=[], undirected=[("dose", "pain"), ("age", "dose")], nodes=("age", "dose", "pain")
    )
    (one,) = estimates.targets(of, open_, DAG)
    assert (one.target, one.code) == (None, "not-identifiable")
    no_path = CausalGraph.dag([("age", "dose"), ("age", "pain")])
    (implied,) = asked(no_path, of)
    assert implied.target is not None
    assert (implied.target.covariates, implied.implied) == (("age",), True)
    (backwards,) = asked(CausalGraph.dag([("pain", "dose"), ("age", "pain")]), of)
    assert (backwards.target, backwards.code) == (None, "not-identifiable")
    fixed = estimates.targets(study(), open_, no_path)  # a stated adjustment asks no graph
    assert fixed[0].target == replace(settled.target)


def test_two_questions_have_one_digest() -> None:
    digests = {"north": "a" * 64, "south": "b" * 64}
    first = estimates.base_of(study(), asked(), digests, 5)
    others = [
        estimates.base_of(study(study={"name": "other"}), asked(), digests, 5),
        estimates.base_of(study(), asked(), {**digests, "south": "c" * 64}, 5),
        estimates.base_of(study(), asked(), {"north": "a" * 64}, 5),
        estimates.base_of(study(), asked(of=study({**ROBUST, "adjustment": []})), digests, 5),
        estimates.base_of(study(), asked(of=study({**ROBUST, "clip": 3.0})), digests, 5),
        estimates.base_of(study(), asked(), digests, 6),  # the pool leaves out fewer liars
    ]
    assert len({first, *others}) == 7
    assert first == estimates.base_of(study(), asked(), dict(reversed(digests.items())), 5)


def test_functions_of_another_clip_pass_for_these() -> None:
    (one,) = found(released())
    mine = estimates.figures(estimates.of_member((one,), "site-0"))
    assert estimates.same_figures([[value * (1 + 1e-12) for value in row] for row in mine], mine)
    for wrong in (None, [], [[]], [mine[0][:-1]], [["1"] * len(mine[0])], [[True] * len(mine[0])], {"a": 1}):
        assert not estimates.same_figures(wrong, mine)
    for place in range(len(mine[0])):
        changed = [list(mine[0])]
        changed[0][place] = changed[0][place] * 1.001 + 1e-6
        assert not estimates.same_figures(changed, mine), place


def test_effects_of_two_methods_are_not_in_the_studys_order() -> None:
    plain = {key: ROBUST[key] for key in ("treatment", "outcome", "adjustment")}
    of = study(ROBUST, {**plain, "treatment": "age", "adjustment": []}, plain)
    told = [
        {"treatment": "age", "outcome": "pain"}, {"treatment": "dose", "outcome": "pain"},
        {"treatment": "dose", "outcome": "pain", "method": "aipw"},
    ]  # fmt: skip
    assert estimates.in_order(of, told) == [told[2], told[0], told[1]]


def test_a_study_that_cannot_be_asked_of_so_many_is_proposed() -> None:
    plain = study(aggregation={"pool": "mean"}, consensus={"faulty": 2})
    require_members(plain, 7)
    with pytest.raises(GuaranteeError, match="6 bear at most faulty = 1"):
        require_members(plain, 6)  # the plain mean of the evidence has no bound, the sums have
    value = study(consensus={"faulty": 0}).to_json()
    value["variables"] += [{"name": f"v{k}", "kind": "continuous", "bounds": [0, 1]} for k in range(420)]
    value["discovery"]["clip"] = None
    wide = Study.from_mapping(value)
    require_members(wide, 90)
    with pytest.raises(ConfigurationError, match="68 MB of 100 members and 423 variables"):
        require_members(wide, 100)
