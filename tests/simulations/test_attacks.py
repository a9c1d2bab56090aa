"""Attacks that would prove nothing: they leave the bounds, miss the effect, or act where no client could."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldao.client.data.checks import check
from causaldao.errors import MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.effects import average_effect
from causaldao.simulations.attacks import ATTACKS, attack
from tests.simulations import small


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
    for name in ("forge", "quiet"):
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


def test_a_liar_does_not_alter_the_owners_table() -> None:
    frame = small.table(500)
    copy = frame.copy()
    for one in ATTACKS.values():
        one.conduct(small.study()).rows(frame)
    pd.testing.assert_frame_equal(frame, copy)


def test_an_unknown_attack_is_refused_with_the_choices() -> None:
    with pytest.raises(MisuseError, match="forge, forge-rows, flip-updates, quiet"):
        attack("bribe")


def test_an_attack_on_an_effect_needs_a_study_that_asks_for_one() -> None:
    conduct = attack("forge").conduct(small.study(effects=[]))
    with pytest.raises(MisuseError, match="asks for no effect"):
        conduct.rows(small.table(100))
