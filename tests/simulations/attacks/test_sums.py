"""Sums that lie though the evidence was honest: unnamed, or no more a lie than what no records add up to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from causaldao.simulations.attacks import attack
from tests.causaldao.test_estimates import FAULTY, TRUTH, answer, found, honest, released

ROWS = 1500


def _said(kind: str, sums: Any) -> Any:
    """The tensors of a liar's reply."""
    view: Any = SimpleNamespace(kind=kind, node=SimpleNamespace(table=range(ROWS)))
    return attack("shift-sums").conduct(FAULTY).act(view, ({}, {"sums": sums}))[1]["sums"]


def test_a_shift_in_sums_goes_unnamed_or_moves_the_answer_out_of_its_interval() -> None:
    (functions,) = found(released(), FAULTY)
    sums = honest(functions, FAULTY)
    before = answer(functions, sums)
    liars = sorted(sums)[2:4]
    after = answer(functions, sums | {name: _said("effects", sums[name]) for name in liars})
    assert (before["accused"], after["accused"]) == ([], liars)
    assert after["quarantined"] == {}  # the sums add up; it is the others that give the lie away
    for name in liars:
        moved = after["members"][name]["estimate"] - before["members"][name]["estimate"]
        assert 0 < moved < 1, name
    low, high = after["interval"]
    assert low < TRUTH < high


def test_a_liar_in_sums_lies_in_other_words_or_where_it_was_not_asked() -> None:
    sums = np.array([[5, 7, 1], [0, 0, 0]], dtype=np.int64)
    assert _said("evidence", sums) is sums
    lied = _said("effects", sums)
    assert (lied[0, :2] > sums[0, :2]).all()
    assert lied[:, 2].tolist() == [1, 0]
    assert lied[1].tolist() == [0, 0, 0]
    assert sums[0].tolist() == [5, 7, 1]
