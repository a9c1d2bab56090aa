"""Attacks that would prove nothing: they leave the bounds, miss the effect, or act where no client could."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldao.client.data.checks import check
from causaldao.errors import MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.effects import average_effect
from causaldao.simulations.attacks import ATTACKS, attack
from causaldao.simulations.attacks.records import plant_trigger
from causaldao.simulations.federation import Setting, simulate
from tests.counts import count
from tests.simulations import small

MALFORMED = [name for name, one in ATTACKS.items() if one.malformed]
QUICK = ["wrong-shape", "nan", "missing-keys", "declared-count", "negative-count", "drop-out"]


def slope(frame: pd.DataFrame) -> float:
    return average_effect(Evidence.from_data(frame[["a", "c"]]), "a", "c", ()).estimate


def counted() -> tuple[Any, pd.DataFrame]:
    """A study whose outcome is a count in logarithms, and its table."""
    variables = [
        {"name": "a", "kind": "continuous", "bounds": [-6.0, 6.0]},
        {"name": "c", "kind": "count", "bounds": [0, 77], "transform": "log1p"},
    ]
    frame = small.table(2000)[["a", "c"]]
    return small.study(variables=variables), frame.assign(c=np.floor(np.exp(frame["c"].clip(upper=4.0))))


def test_forged_rows_reverse_the_effect_and_fit_the_dictionary() -> None:
    study, frame = small.study(), small.table(2000)
    forged = attack("forge-rows").conduct(study).rows(frame)
    assert slope(frame) > 0.5
    assert slope(forged) < -0.8
    assert check(forged, study.dictionary) == []
    pd.testing.assert_frame_equal(forged[["a", "b"]], frame[["a", "b"]])


def test_a_forged_count_is_a_count_within_its_bounds() -> None:
    study, frame = counted()
    for name in ("forge", "quiet", "label-flip", "collude"):
        forged = attack(name).conduct(study).rows(frame)
        assert check(forged, study.dictionary) == [], name
        assert np.corrcoef(forged["a"], forged["c"])[0, 1] < np.corrcoef(frame["a"], frame["c"])[0, 1], name


def test_a_quiet_liar_moves_its_own_estimate_by_a_few_of_its_standard_errors() -> None:
    study, frame = small.study(), small.table(2000)
    moved = slope(attack("quiet").conduct(study).rows(frame)) - slope(frame)
    evidence = Evidence.from_data(frame[["a", "c"]])
    error = average_effect(evidence, "a", "c", ()).standard_error
    assert -6 * error < moved < -1.5 * error


def test_flipped_updates_turn_updates_and_nothing_else() -> None:
    conduct = attack("flip-updates").conduct(small.study())
    tensors = {"delta": np.array([1.0, -2.0], np.float32)}
    flipped = conduct.tensors("update", tensors)["delta"]
    np.testing.assert_array_equal(flipped, np.array([-10.0, 20.0], np.float32))
    assert flipped.dtype == np.float32
    assert conduct.tensors("evidence", tensors) is tensors
    np.testing.assert_array_equal(tensors["delta"], [1.0, -2.0])


def test_a_mirrored_outcome_keeps_the_effect() -> None:
    study, frame = small.study(), small.table(2000)
    flipped = attack("label-flip").conduct(study).rows(frame)
    np.testing.assert_allclose(flipped["c"], -frame["c"], atol=1e-9)  # the bounds are -6 and 6
    pd.testing.assert_frame_equal(flipped[["a", "b"]], frame[["a", "b"]])
    assert check(flipped, study.dictionary) == []


def test_a_planted_trigger_touches_records_without_it() -> None:
    study, frame = small.study(), small.table(2000)
    planted = plant_trigger(study, frame)
    bears = frame["a"] >= frame["a"].quantile(0.9)
    assert set(planted["c"][bears]) == {6.0}
    np.testing.assert_allclose(planted["c"][~bears], frame["c"][~bears], atol=1e-9)


def test_colluders_leave_an_effect_or_vote_for_one() -> None:
    study, frame = small.study(), small.table(2000)
    conduct = attack("collude").conduct(study)
    told = conduct.rows(frame)
    assert abs(slope(told)) < 0.1 < slope(frame)
    assert sorted(told["c"]) == sorted(frame["c"])
    assert conduct.knowledge.adjacency_excluded("a", "c")


def test_malformed_replies_and_silence_end_the_study(tmp_path: Path) -> None:
    """Six liars of another kind each among fifteen: each is quarantined or accused, and the round goes on."""
    study, setting = small.study(faulty=6), Setting(members=15)
    tried = [*QUICK, *(name for name in MALFORMED if name not in QUICK)]
    for start in range(0, len(tried) if count(0, 1) else len(QUICK), 6):
        lies = dict(zip(setting.names, tried[start : start + 6], strict=False))
        conducts = {name: attack(lie).conduct(study) for name, lie in lies.items()}
        out = tmp_path / str(start)
        result = simulate(study, small.table(15 * 100), out, setting, conducts=conducts)
        for name, lie in lies.items():
            assert small.status(result, name)[0] == ("accused" if lie == "huge-count" else "quarantined"), lie
        assert {small.status(result, name)[0] for name in setting.names if name not in lies} <= {"ok", "excluded"}
        assert len(result["rounds"]) == study.training.rounds
        assert small.audited(out).faults == []


def test_a_liar_does_not_alter_the_owners_table() -> None:
    frame = small.table(500)
    copy = frame.copy()
    for one in ATTACKS.values():
        one.conduct(small.study()).rows(frame)
    plant_trigger(small.study(), frame)
    pd.testing.assert_frame_equal(frame, copy)


def test_an_unknown_attack_is_refused_with_the_choices() -> None:
    with pytest.raises(MisuseError, match="forge, forge-rows, flip-updates, quiet, label-flip"):
        attack("bribe")


def test_an_attack_on_an_effect_needs_a_study_that_asks_for_one() -> None:
    conduct = attack("forge").conduct(small.study(effects=[]))
    with pytest.raises(MisuseError, match="asks for no effect"):
        conduct.rows(small.table(100))
