"""Studies on features, from the nodes to the audit: variables of mixed kinds, and what members send that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldao.ballots import cast
from causaldao.decisions import decide_pool, decide_proposal
from causaldao.models.discovery import discover
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.features import FeatureMap
from causaldao.models.graph import CausalGraph
from causaldao.models.pattern import f1
from causaldao.simulations.attacks import Conduct
from causaldao.simulations.attacks.conduct import View, Words
from causaldao.simulations.federation import Setting, simulate
from causaldao.study import Study
from tests.causaldao.cases import released
from tests.counts import count
from tests.simulations import planted_mixed, small

MEMBERS, ROWS = 9, 700
P = 11  # columns of x: the constant, four numbers, smoker, two wards, three bloods
WARDS = (6, 7)


def _wide(view: View, words: Words) -> Words:
    """Evidence of one column more, as of a map with another level."""
    if view.kind != "evidence":
        return words
    return words[0], {"moments": np.append(words[1]["moments"], np.zeros(P + 1, dtype=np.int64))}


def _overlapping(view: View, words: Words) -> Words:
    """A third of the records are in two wards at once."""
    if view.kind != "evidence":
        return words
    moments = words[1]["moments"].copy()
    rows, columns = np.triu_indices(P)
    moments[(rows == WARDS[0]) & (columns == WARDS[1])] += moments[0] // 3
    return words[0], {"moments": moments}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("mixed") / "run"
    setting = Setting(members=MEMBERS)
    liars = {setting.names[0]: Conduct(act=_wide), setting.names[1]: Conduct(act=_overlapping)}
    data = planted_mixed.rows(np.random.default_rng(0), ROWS * MEMBERS)
    return out, simulate(planted_mixed.study(), data, out, setting, conducts=liars)


def test_a_federation_finds_what_causes_what_among_numbers_and_levels(run: tuple[Path, dict[str, Any]]) -> None:
    pattern = CausalGraph.from_json(run[1]["graph"]["pattern"])
    assert set(pattern.nodes) == {name for edge in planted_mixed.EDGES for name in edge}
    assert f1(pattern.skeleton(), planted_mixed.SKELETON) >= 0.85
    assert not small.audited(run[0]).faults


def test_an_effect_is_adjusted_for_levels(run: tuple[Path, dict[str, Any]]) -> None:
    (effect,) = run[1]["effects"]
    assert effect["interval"][0] < planted_mixed.EFFECT < effect["interval"][1]
    assert abs(effect["pooled"] - planted_mixed.EFFECT) < 0.1
    assert effect["interval"][1] < 0
    assert effect["bound"] is not None


def test_evidence_of_another_width_or_of_no_records_at_all_is_quarantined(run: tuple[Path, dict[str, Any]]) -> None:
    names = Setting(members=MEMBERS).names
    assert small.status(run[1], names[0])[0] == "quarantined"
    status, reason = small.status(run[1], names[1])
    assert status == "quarantined"
    assert "two levels of 'ward' are taken at once" in reason
    assert not {member["name"] for member in run[1]["members"] if member["status"] == "accused"}


def _sites(seed: int, members: int, n: int) -> dict[str, Evidence]:
    rng, asked = np.random.default_rng(seed), planted_mixed.study()
    return {f"s{k}": released(rng, planted_mixed.rows(rng, n), asked) for k in range(members)}


def test_a_member_who_orders_the_levels_otherwise_is_accused() -> None:
    """Its evidence could be somebody's: only the comparison with others shows that its features are others."""
    asked, rng = planted_mixed.study(), np.random.default_rng(1)
    swapped = {"north": "east", "east": "south", "south": "north"}
    other: pd.DataFrame = planted_mixed.rows(rng, 1000)
    other = other.assign(ward=other["ward"].map(swapped))
    evidence = {**_sites(1, 8, 1000), "liar": released(rng, other, asked)}
    pool = decide_pool(asked, evidence, 9)
    assert pool.accused == ("liar",)
    assert "liar" not in pool.kept


@pytest.mark.parametrize("seed", range(100, 100 + count(2, 20)))
def test_ten_sites_find_mixed_graphs_that_numbers_for_levels_miss(seed: int) -> None:
    asked, sites = planted_mixed.study(), _sites(seed, 10, 1000)
    proposal = decide_proposal(asked, decide_pool(asked, sites, 10))
    assert f1(proposal.pattern.skeleton(), planted_mixed.SKELETON) >= 0.85
    against = [vote for own in sites.values() for vote in cast(proposal, own).votes.values()].count(-1)
    assert against <= 0.02 * 10 * len(proposal.marks)
    frame = planted_mixed.rows(np.random.default_rng(seed), 10_000)
    codes = {"ward": planted_mixed.WARDS, "blood": planted_mixed.BLOODS}
    coded = frame.assign(**{name: frame[name].map(words.index).astype(float) for name, words in codes.items()})
    assert f1(discover(coded).skeleton(), planted_mixed.SKELETON) < f1(
        proposal.pattern.skeleton(), planted_mixed.SKELETON
    )


def _curved(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """b is a parabola of a: their correlation is zero. c is a line of a."""
    a = rng.normal(size=n)
    return pd.DataFrame({"a": a, "b": a**2 + rng.normal(size=n), "c": a + rng.normal(size=n)})


def _asked(features: str, rounds: int = 0) -> Study:
    bounds = {"a": [-4.0, 4.0], "b": [-5.0, 9.0], "c": [-5.0, 5.0]}
    return small.study(
        rounds=rounds,
        variables=[{"name": name, "kind": "continuous", "bounds": bounds[name]} for name in "abc"],
        discovery={"features": features, "restarts": 2},
        effects=[{"treatment": "a", "outcome": "c", "adjustment": []}],
    )


def test_waves_find_a_curve_in_a_federation_and_its_members_vote_for_it() -> None:
    marks = {}
    for features in ("identity", "fourier"):
        asked, rng = _asked(features), np.random.default_rng(0)
        sites = {f"s{k}": released(rng, _curved(rng, 1000), asked) for k in range(7)}
        proposal = decide_proposal(asked, decide_pool(asked, sites, 7))
        marks[features] = proposal.pattern.skeleton()
        votes = [cast(proposal, own).votes for own in sites.values()]
        assert not any(vote == -1 for vote_of in votes for vote in vote_of.values())
        assert sum(vote_of.get("a - b", 0) for vote_of in votes) >= (6 if features == "fourier" else 0)
    assert marks == {"identity": {("a", "c")}, "fourier": {("a", "b"), ("a", "c")}}


@pytest.mark.skipif(not count(0, 1), reason="a whole federation more: with CAUSALDAO_PROVE=1")
def test_a_study_of_waves_trains_on_numbers_and_answers_in_their_units(tmp_path: Path) -> None:
    asked = _asked("fourier", rounds=1)
    data = _curved(np.random.default_rng(1), 600 * 4)
    value = {**asked.to_json(), "consensus": {"faulty": 0}}
    result = simulate(Study.from_mapping(value), data, tmp_path / "run", Setting(members=4))
    (effect,) = result["effects"]
    assert effect["interval"][0] < 1 < effect["interval"][1]
    assert abs(effect["estimate"] - effect["pooled"]) < 0.2
    assert effect["bound"] is None
    assert ("a", "b") in CausalGraph.from_json(result["graph"]["pattern"]).skeleton()
    assert not small.audited(tmp_path / "run").faults


@pytest.mark.skipif(not count(0, 1), reason="a whole federation more: with CAUSALDAO_PROVE=1")
def test_an_auditor_finds_impossible_evidence_that_a_coordinator_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(members=5)
    data = planted_mixed.rows(np.random.default_rng(2), 600 * 5)
    with monkeypatch.context() as blind:
        blind.setattr(FeatureMap, "impossible", lambda self, evidence: "")
        conducts = {setting.names[1]: Conduct(act=_overlapping)}
        simulate(planted_mixed.study(faulty=1), data, tmp_path / "run", setting, conducts=conducts)
    (fault,) = small.audited(tmp_path / "run").faults
    assert f"the evidence of {setting.names[1]} should not be taken: two levels of 'ward'" in fault.what
