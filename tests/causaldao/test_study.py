"""The study file: every fault at once, and one hash for one meaning."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from causaldao.decisions import (
    MEASURED_FIT,
    answers_needed,
    cautions,
    graphs_needed,
    least_members,
    require_members,
)  # fmt: skip
from causaldao.errors import ConfigurationError, GuaranteeError
from causaldao.signing import canonical
from causaldao.study import Study
from tests.causaldao.cases import STUDY_TOML, study

SCENARIO = Path(__file__).parents[2] / "simulations" / "scenarios" / "rand-hie.toml"


def test_only_the_first_fault_is_reported() -> None:
    wrong = STUDY_TOML.replace("faulty = 1", "falty = 1").replace("rounds = 2", "rounds = -3")
    wrong = wrong.replace("epsilon = 4.0", 'epsilon = "much"')
    with pytest.raises(ConfigurationError) as caught:
        Study.from_toml(wrong, "mine.toml")
    assert caught.value.exit_code == 10
    shown = caught.value.problems
    assert len(shown) == 3
    for key, what in (("consensus.falty", "unknown key"), ("training.rounds", "-3"), ("privacy.epsilon", "much")):
        assert any(line.startswith(f"mine.toml: {key}: ") and what in line for line in shown), shown


def test_faults_between_keys_hide_one_another() -> None:
    with pytest.raises(ConfigurationError) as caught:
        study(
            members={"n_min": 50, "n_max": 20}, aggregation={"rule": "krumm"},
            privacy={"split": {"evidence": 0.5, "training": 0.1, "evaluation": 0.1}},
            knowledge={"required": [["pain", "dose"], ["dose", "pain"], ["height", "age"]]},
        )  # fmt: skip
    shown = "\n".join(caught.value.problems)
    for words in ("n_min 50", "krumm", "sum to 1", "height", "both required"):
        assert words in shown
    assert len(caught.value.problems) >= 5


@pytest.mark.parametrize("change", [
    {"privacy": {"epsilon": 0}}, {"privacy": {"epsilon": float("nan")}}, {"privacy": {"epsilon": float("inf")}},
    {"privacy": {"delta": 0.5}}, {"consensus": {"threshold": 0.5}}, {"consensus": {"faulty": -1}},
    {"consensus": {"level": 0}}, {"discovery": {"clip": 9.0}}, {"discovery": {"clip": 1.0}},
    {"discovery": {"method": "magic"}}, {"discovery": {"evidence": "rows"}}, {"training": {"sample_rate": 0}},
    {"training": {"sample_rate": 1.5}}, {"study": {"name": "../x"}}, {"study": {"name": "x\n"}},
    {"study": {"purpose": ""}}, {"members": {"n_min": 1}}, {"aggregation": {"pool": "median"}},
    {"study": {"seed": 1}}, {"privacy": {"split": {"evidence": 1.0, "training": 0.0, "evaluation": 0.0}}},
])  # fmt: skip
def test_a_study_that_cannot_be_run_is_proposed(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        study(**change)


ROBUST = {"treatment": "dose", "outcome": "pain", "adjustment": ["age"], "method": "aipw"}
SPLIT = {"evidence": 0.4, "training": 0.3, "evaluation": 0.1, "effects": 0.2}


def test_a_study_without_sums_has_another_hash_than_before_there_were_any() -> None:
    asked = study()
    assert asked.hash == "3d866d55b3bbe86cdacdc0c09cdeaec00b4e846d8d90e4ed6c4a171d42bd6a50"
    assert set(asked.to_json()["effects"][0]) == {"treatment", "outcome", "adjustment"}
    assert set(asked.to_json()["privacy"]["split"]) == {"evidence", "training", "evaluation"}
    plain = {"treatment": "dose", "outcome": "pain", "adjustment": ["age"], "method": "moments"}
    assert study(effects=[plain]).hash == asked.hash
    assert study(privacy={"split": {**asked.to_json()["privacy"]["split"], "effects": 0.0}}).hash == asked.hash


def test_two_questions_for_sums_have_one_hash() -> None:
    hashes = [
        study(privacy={"split": SPLIT}, effects=[{**ROBUST, **keys}]).hash
        for keys in ({}, {"estimand": "att"}, {"overlap": 0.1}, {"clip": 3.0}, {"spread": 0.0}, {"spread": 1.0})
    ]
    assert len({study().hash, *hashes}) == 7
    asked = study(privacy={"split": SPLIT}, effects=[ROBUST])
    assert Study.from_mapping(asked.to_json()).hash == asked.hash
    assert asked.robust_effects == asked.effects


def test_a_question_for_sums_that_cannot_be_paid_or_answered_is_proposed() -> None:
    told = {
        "give it a share": {"effects": [ROBUST]},
        "there is none": {"privacy": {"split": SPLIT}},
        "compares two arms": {
            "privacy": {"split": SPLIT}, "effects": [{**ROBUST, "treatment": "age", "adjustment": []}],
        },
        'only method = "aipw" has': {"effects": [{"treatment": "dose", "outcome": "pain", "spread": 0.0}]},
        "reads evidence of numbers": {
            "discovery": {"features": "fourier"}, "privacy": {"split": SPLIT}, "effects": [ROBUST],
        },
        "evaluation + effects = 1.2": {"privacy": {"split": {**SPLIT, "evidence": 0.6}}, "effects": [ROBUST]},
    }  # fmt: skip
    for words, change in told.items():
        with pytest.raises(ConfigurationError) as caught:
            study(**change)
        (problem,) = caught.value.problems
        assert words in problem


def _local(**changes: Any) -> Study:
    whole = {"evidence": 1.0, "training": 0.0, "evaluation": 0.0}
    given: dict[str, Any] = {
        "discovery": {"evidence": "local"}, "training": {"rounds": 0}, "effects": [], "privacy": {"split": whole},
    }  # fmt: skip
    return study(**{**given, **changes})


def test_a_study_of_local_ballots_has_the_hash_of_another_or_moves_it() -> None:
    asked = _local()
    assert asked.local
    assert not study().local
    assert Study.from_mapping(asked.to_json()).hash == asked.hash
    assert _local(discovery={"evidence": "shared"}).hash != asked.hash
    assert _local(aggregation={"pool": "multi-krum"}).hash == asked.hash


def test_local_ballots_are_asked_for_what_only_a_pool_gives() -> None:
    clip = {"evidence": "local", "restore": True, "clip": 3.0}
    numbers = [{"name": name, "kind": "continuous", "bounds": [-4, 4]} for name in ("age", "dose", "pain")]
    told: dict[str, dict[str, Any]] = {
        "set training.rounds = 0": {"training": {"rounds": 2}, "privacy": {}},
        "leave [[effects]] out": {"effects": [{"treatment": "dose", "outcome": "pain"}]},
        "split = { evidence = 1.0, training": {
            "privacy": {"split": {"evidence": 0.9, "training": 0.1, "evaluation": 0.0}},
        },
        "leave restore out": {"discovery": clip, "variables": numbers},
        "leave the key out": {"aggregation": {"pool": "sieve"}},
        "take a threshold of 0.6": {"consensus": {"threshold": 1.0}},
    }  # fmt: skip
    for words, change in told.items():
        with pytest.raises(ConfigurationError) as caught:
            _local(**change)
        assert any(words in problem for problem in caught.value.problems), caught.value.problems
    assert _local(consensus={"threshold": 1.0, "faulty": 0}).local


def test_the_bound_of_a_pool_is_asked_of_local_ballots() -> None:
    asked = _local(consensus={"faulty": 4})
    assert least_members(asked) == 10  # 2f + 3 would be 11
    require_members(asked, 10)
    assert [answers_needed(asked, members) for members in (10, 11, 20)] == [6, 7, 13]
    assert [graphs_needed(asked, 20, present) for present in (20, 19, 14)] == [16, 15, 13]
    with pytest.raises(GuaranteeError, match="largest f is 3"):
        require_members(asked, 9)
    assert "nobody can recompute" in cautions(asked, 10)[0]
    assert "6 must support a mark. 4 liars cannot enter one alone" in cautions(asked, 10)[1]


def _with(path: str, value: Any) -> dict[str, Any]:
    document = study().to_json()
    document[path] = value
    return document


@pytest.mark.parametrize("effects", [
    [{"treatment": "dose", "outcome": "dose"}], [{"treatment": "dose", "outcome": "height"}],
    [{"treatment": "dose", "outcome": "pain", "adjustment": ["pain"]}],
    [{"treatment": "dose", "outcome": "pain", "adjustment": ["dose"]}],
    [{"treatment": "dose", "outcome": "pain", "adjustment": ["age", "age"]}],
    [{"treatment": "dose", "outcome": "pain", "adjustment": "all"}],
])  # fmt: skip
def test_a_question_without_an_answer_is_found_after_the_budget_is_spent(effects: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigurationError):
        Study.from_mapping(_with("effects", effects))


@pytest.mark.parametrize("variable", [
    {"kind": "binary", "bounds": [0, 2]}, {"kind": "count", "bounds": [-1, 2]},
    {"kind": "continuous", "bounds": [1, 1]}, {"kind": "continuous", "bounds": [-1e308, 1e308]},
    {"kind": "categorical", "bounds": [0, 1]}, {"name": "a b"}, {"name": "dose"},
    {"kind": "continuous", "bounds": [-2, 1], "transform": "log1p"}, {"bounds": [0]}, {"tier": -1},
])  # fmt: skip
def test_a_variable_that_cannot_be_scaled(variable: dict[str, Any]) -> None:
    variables = study().to_json()["variables"]
    with pytest.raises(ConfigurationError):
        Study.from_mapping(_with("variables", [{**variables[0], **variable}, *variables[1:]]))


def test_a_hash_depends_on_how_the_file_is_written() -> None:
    plain = Study.from_toml(STUDY_TOML)
    spaced = STUDY_TOML.replace(" = ", "   =  ").replace("[privacy]", "# a comment\n\n[privacy]")
    written_out = STUDY_TOML.replace("restarts = 2", 'restarts = 2\nmethod = "boss"\nlattice = 1024')
    integers = STUDY_TOML.replace("[-6.0, 6.0]", "[-6, 6]").replace("epsilon = 4.0", "epsilon = 4")
    for text in (spaced, written_out, integers):
        assert Study.from_toml(text).hash == plain.hash
    assert Study.from_mapping(json.loads(canonical(plain.to_json()))).hash == plain.hash
    for other in (
        STUDY_TOML.replace("4.0", "4.5"),
        STUDY_TOML.replace("A test.", "A test!"),
        STUDY_TOML.replace("small", "smaller"),
    ):
        assert Study.from_toml(other).hash != plain.hash


def test_the_hash_of_a_study_changes_from_version_to_version() -> None:
    """Approvals and ledgers name this hash: if it must change, nodes have to approve again; say so in the changelog."""
    assert Study.from_toml(STUDY_TOML).hash == "3d866d55b3bbe86cdacdc0c09cdeaec00b4e846d8d90e4ed6c4a171d42bd6a50"


def test_the_scenario_cannot_be_read() -> None:
    asked = Study.from_toml(SCENARIO.read_text(), os.fspath(SCENARIO))
    assert asked.dictionary.names == asked.names
    assert asked.prior.tiers["visits"] == 1


def test_what_is_not_toml() -> None:
    with pytest.raises(ConfigurationError, match=r"x\.toml is not valid TOML"):
        Study.from_toml("[study", "x.toml")
    for value in (None, [], "x", {}):
        with pytest.raises(ConfigurationError):
            Study.from_mapping(value)


def test_a_default_is_missing_from_what_is_hashed() -> None:
    document = study().to_json()
    assert document["discovery"]["lattice"] == 1024
    assert document["knowledge"] == {"required": [], "forbidden": []}
    assert document["effects"] == [{"treatment": "dose", "outcome": "pain", "adjustment": ["age"]}]


def test_a_default_that_is_written_out_makes_another_study() -> None:
    """Two files that mean the same have one hash, so a node's approval of one is an approval of the other."""
    given = tomllib.loads(STUDY_TOML)
    plain = Study.from_mapping(given)
    spec = {**given.get("discovery", {}), "penalty": 2.0, "clip": float(len(plain.names) + 1)}
    assert "clip" not in given.get("discovery", {})
    assert Study.from_mapping({**given, "discovery": spec}).hash == plain.hash
    assert Study.from_mapping(plain.to_json()).hash == plain.hash


def test_a_fault_in_a_variable_is_reported_as_a_missing_variable() -> None:
    given = tomllib.loads(STUDY_TOML)
    first, second = dict(given["variables"][0]), dict(given["variables"][1])
    small = {**given, "variables": [{**first, "kind": "continous"}, second], "effects": [], "knowledge": {}}
    with pytest.raises(ConfigurationError) as caught:
        Study.from_mapping(small)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["variables.0.kind"]
    with pytest.raises(ConfigurationError, match="2 at least"):
        Study.from_mapping({**small, "variables": [first]})


# Aggregation


@pytest.mark.parametrize("rule", ["arc+caf", "nnm+trimmed-mean", "bucketing+caf", "centred-clipping", "arc+nnm+krum"])
def test_a_composed_rule_is_no_rule(rule: str) -> None:
    assert study(aggregation={"rule": rule}).aggregation.rule == rule


@pytest.mark.parametrize(("aggregation", "words"), [
    ({"rule": "fltrust"}, ("fltrust", "trusted beforehand", "auditor")),
    ({"rule": "nnm+monna"}, ("monna", "trusted beforehand")),
    ({"rule": "caf+arc"}, ("caf", "choose one of")),
    ({"optimiser": "fedprox"}, ("fedprox", "fedavg, fedavgm, fedadam, fedyogi")),
    ({"optimiser": "fedavgm", "rate": None, "second": 0.9}, ("'fedavgm' has no second", "rate, momentum")),
    ({"optimiser": "fedadam", "rate": 0.0}, ("rate",)),
    ({"optimiser": "fedadam", "rate": 0.1, "momentum": 1.0}, ("momentum",)),
    ({"optimiser": "fedyogi", "rate": 0.1, "floor": 0.0}, ("floor",)),
])  # fmt: skip
def test_an_aggregation_that_no_auditor_could_follow_is_proposed(
    aggregation: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        study(aggregation=aggregation)
    shown = "\n".join(caught.value.problems)
    assert all(word in shown for word in words), shown


def test_an_optimisers_default_is_not_in_the_hash() -> None:
    """Else a later version with other defaults would run another study under an approved hash."""
    plain = STUDY_TOML.replace('rule = "multi-krum"', 'rule = "arc+caf"\noptimiser = "fedadam"')
    filled = Study.from_toml(plain).to_json()["aggregation"]
    assert (filled["rate"], filled["momentum"], filled["second"], filled["floor"]) == (0.01, 0.9, 0.99, 1e-3)
    written_out = plain.replace('"fedadam"', '"fedadam"\nrate = 0.01\nfloor = 0.001')
    other = plain.replace('"fedadam"', '"fedadam"\nrate = 0.02')
    assert Study.from_toml(written_out).hash == Study.from_toml(plain).hash != Study.from_toml(other).hash
    assert Study.from_mapping(Study.from_toml(plain).to_json()).hash == Study.from_toml(plain).hash


@pytest.mark.parametrize("training", [
    {"proximal": -0.1}, {"proximal": float("nan")}, {"momentum": 1.0}, {"momentum": -0.1},
    {"rate": 0.5, "proximal": 2.5},
])  # fmt: skip
def test_training_that_overshoots_is_proposed(training: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="1 fault"):
        study(training=training)


# Features

LEVELS = {"name": "ward", "kind": "categorical", "levels": ["north", "south", "east"]}


def _mixed(**discovery: Any) -> dict[str, Any]:
    """The small study without training, its age become a ward of three levels."""
    value = study(training={"rounds": 0}).to_json()
    value["variables"][0] = LEVELS
    value["effects"] = [{"treatment": "dose", "outcome": "pain", "adjustment": ["ward"]}]
    return {**value, "discovery": {"features": "one-hot", **discovery}}


def test_levels_need_no_bounds_and_make_as_many_columns_but_one() -> None:
    asked = Study.from_mapping(_mixed())
    assert asked.encoding.blocks == (2, 1, 1)
    assert asked.encoding.clip == asked.to_json()["discovery"]["clip"] >= 4
    assert (asked.penalty, Study.from_mapping(_mixed(penalty=1.5)).penalty, study().penalty) == (1.0, 1.5, 2.0)
    assert Study.from_mapping(asked.to_json()).hash == asked.hash
    assert not {"waves", "width", "seed", "restore"} & set(asked.to_json()["discovery"])


def test_the_settings_of_waves_are_in_the_hash_where_there_are_waves() -> None:
    asked = Study.from_mapping(_mixed(features="fourier"))
    assert asked.encoding.blocks == (2, 1, 9)
    said = asked.to_json()["discovery"]
    assert (said["waves"], said["width"], said["seed"]) == (8, 0.25, 0)
    assert Study.from_mapping(_mixed(features="fourier", waves=8)).hash == asked.hash
    assert Study.from_mapping(_mixed(features="fourier", seed=1)).hash != asked.hash
    assert Study.from_mapping(asked.to_json()).hash == asked.hash


def _without_levels() -> dict[str, Any]:
    value = _mixed()
    value["variables"][0] = {"name": "ward", "kind": "categorical"}
    return value


def _mixed_with(table: str, keys: Any) -> dict[str, Any]:
    return {**_mixed(), table: keys}


@pytest.mark.parametrize(("value", "words"), [
    (_without_levels(), ("'ward'", "levels", "two or more")),
    (_mixed(features="identity"), ("categorical", "one-hot")),
    (_mixed(clip=1.0), ("clip", "greater than 1")),
    (_mixed(clip=9.0), ("clip", "4 features")),
    (_mixed(waves=4), ("['waves']", "'fourier'", "leave them out")),
    (_mixed(features="fourier", waves=1), ("discovery.waves",)),
    (_mixed_with("training", {"rounds": 1}), ("training.rounds = 0", "['ward']")),
    (_mixed_with("effects", [{"treatment": "ward", "outcome": "pain"}]), ("['ward']", "binary variable")),
])  # fmt: skip
def test_features_that_a_study_cannot_use_are_proposed(value: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Study.from_mapping(value)
    shown = "\n".join(caught.value.problems)
    assert all(word in shown for word in words), shown


def test_a_clip_that_shortens_every_record_is_warned_of() -> None:
    value = _mixed(features="fourier", clip=1.5)
    (caution,) = cautions(Study.from_mapping(value))
    assert "discovery.clip 1.5 shortens every record" in caution
    assert cautions(Study.from_mapping(_mixed())) == ()


@pytest.mark.parametrize(("method", "variables", "warned"), [
    ("moment-fit", MEASURED_FIT, 0), ("moment-fit", MEASURED_FIT + 1, 1), ("boss", MEASURED_FIT + 1, 0),
])  # fmt: skip
def test_a_search_beyond_what_was_measured_is_not_warned_of(method: str, variables: int, warned: int) -> None:
    value = study(training={"rounds": 0}).to_json()
    more = [{**value["variables"][0], "name": f"v{k}"} for k in range(variables - len(value["variables"]))]
    asked = {**value, "variables": [*value["variables"], *more], "discovery": {"method": method}}
    said = cautions(Study.from_mapping(asked))
    assert [f"measured up to {MEASURED_FIT} variables" in one for one in said] == [True] * warned


def test_the_worked_example_of_the_docs_is_another_study_than_they_say() -> None:
    """They show the hash that an institution approves; a default that changes shows here."""
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "studies.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"`early-walking\.toml`:\n\n```toml\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"early-walking: valid\n  hash ([0-9a-f]{64})\n", text)
    assert Study.from_toml(example).hash == shown
    approved = re.findall(
        r"(?:early-walking \(|pending +)([0-9a-f]{12,64})", (docs / "institution.md").read_text("utf-8")
    )
    assert len(approved) == 3
    assert all(shown.startswith(name) for name in approved)
