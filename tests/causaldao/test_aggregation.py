"""Robust aggregation against slow, obvious references; what any f rows may hold does not matter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from causaldao.aggregation import RULES, Rule, aggregate, weights_from_gram
from causaldao.aggregation.rules import faults_left
from causaldao.errors import GuaranteeError, MisuseError
from tests.counts import count

ROBUST = [name for name in RULES if name != "mean"]
AT_ZERO_THE_MEAN = ["mean", "trimmed-mean", "multi-krum"]


def _reference_krum(rows: np.ndarray, f: int) -> np.ndarray:
    """Blanchard et al. 2017, word for word."""
    n = len(rows)
    scores = []
    for i in range(n):
        others = sorted(float(((rows[i] - rows[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(others[: n - f - 2]))
    kept = sorted(range(n), key=lambda i: (scores[i], i))[: n - f]
    return rows[kept].mean(axis=0)


def _reference_trimmed(rows: np.ndarray, f: int) -> np.ndarray:
    return np.array([np.mean(sorted(column)[f : len(column) - f]) for column in rows.T])


REFERENCES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "multi-krum": _reference_krum,
    "trimmed-mean": _reference_trimmed,
    "coordinate-median": lambda rows, f: np.median(rows, axis=0),
    "mean": lambda rows, f: rows.mean(axis=0),
}


def _cases(seed: int, name: str, number: int) -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(number):
        f = int(rng.integers(0, 4))
        n = RULES[name].least(f) + int(rng.integers(0, 5))
        cases.append((rng.normal(size=(n, int(rng.integers(1, 20)))) * 10 ** rng.uniform(-3, 3), f))
    return cases


def test_a_rule_has_no_reference() -> None:
    assert set(REFERENCES) == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_differs_from_its_definition(name: str) -> None:
    for rows, f in _cases(0, name, count(100, 2000)):
        found = aggregate(torch.from_numpy(rows), name, f)
        np.testing.assert_allclose(found.vector.numpy(), REFERENCES[name](rows, f), rtol=1e-9, atol=1e-12)
        if found.weights is not None:
            assert float(found.weights.sum()) == pytest.approx(1)
            assert found.excluded == tuple(k for k in range(len(rows)) if found.weights[k] == 0)


@pytest.mark.parametrize("name", RULES)
def test_the_order_the_place_or_the_unit_of_rows_matters(name: str) -> None:
    rng = np.random.default_rng(1)
    for rows, f in _cases(1, name, count(50, 500)):
        plain = aggregate(torch.from_numpy(rows), name, f).vector.numpy()
        order, shift, scale = rng.permutation(len(rows)), rng.normal(size=rows.shape[1]), 10 ** rng.uniform(-3, 3)
        close = {"rtol": 1e-8, "atol": 1e-9 * float(np.abs(rows).max())}
        np.testing.assert_allclose(aggregate(torch.from_numpy(rows[order]), name, f).vector.numpy(), plain, **close)
        moved = aggregate(torch.from_numpy(rows + shift), name, f).vector.numpy()
        np.testing.assert_allclose(moved - shift, plain, rtol=1e-8, atol=1e-9 * float(np.abs(rows).max() + 9))
        for factor in (scale, -scale):
            grown = aggregate(torch.from_numpy(rows * factor), name, f).vector.numpy()
            np.testing.assert_allclose(grown / factor, plain, **close)


@pytest.mark.parametrize("name", AT_ZERO_THE_MEAN)
def test_a_rule_without_faults_is_not_the_mean(name: str) -> None:
    rows = np.random.default_rng(2).normal(size=(7, 11))
    np.testing.assert_allclose(aggregate(torch.from_numpy(rows), name, 0).vector.numpy(), rows.mean(axis=0), atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [1e6, -1e30, 1e38, np.nan, np.inf, -np.inf, 1e154, 1e308, "mixed"])
@pytest.mark.parametrize("name", ROBUST)
def test_f_rows_of_any_size_move_the_result(name: str, value: float | str, dtype: torch.dtype) -> None:
    """Krum keeps only honest rows of those that are far away; coordinate rules stay within the honest range."""
    rng = np.random.default_rng(3)
    for f in (1, 2, 3):
        n = RULES[name].least(f)
        rows = torch.from_numpy(rng.normal(size=(n, 6))).to(dtype)
        liars = sorted(rng.choice(n, f, replace=False).tolist())
        values = [1e154, -1e154, np.nan] if value == "mixed" else [value, value, value]
        for k, liar in enumerate(liars):
            rows[liar] = torch.tensor(values[k], dtype=torch.float64).to(dtype)
        honest = rows[[k for k in range(n) if k not in liars]].double()
        before = rows.clone()
        found = aggregate(rows, name, f)
        assert torch.equal(rows.nan_to_num(nan=7), before.nan_to_num(nan=7))
        assert found.vector.dtype == torch.float64
        assert bool((found.vector >= honest.min(dim=0).values - 1e-12).all())
        assert bool((found.vector <= honest.max(dim=0).values + 1e-12).all())
        if found.weights is not None:
            assert set(found.excluded) == set(liars)


def test_liars_near_the_honest_move_krum_beyond_its_bound() -> None:
    """κ = 6(1 + f/(n-2f)): the squared distance to the honest mean
    against the honest variance (Allouah et al. 2023).
    """
    rng = np.random.default_rng(4)
    kappas = {
        "multi-krum": lambda n, f: 6 * (1 + f / (n - 2 * f)),
        "coordinate-median": lambda n, f: 4 * (1 + f / (n - 2 * f)) ** 2,
        "trimmed-mean": lambda n, f: 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f)),
    }
    for name, kappa in kappas.items():
        for _ in range(count(200, 3000)):
            f = int(rng.integers(1, 4))
            n = RULES[name].least(f) + int(rng.integers(0, 3))
            honest = rng.normal(size=(n - f, 4))
            liars = honest.mean(axis=0) + rng.normal(size=4) * 10 ** rng.uniform(-1, 2) + 0.01 * rng.normal(size=(f, 4))
            result = aggregate(torch.from_numpy(np.concatenate([liars, honest])), name, f).vector.numpy()
            variance = ((honest - honest.mean(axis=0)) ** 2).sum(axis=1).mean()
            assert ((result - honest.mean(axis=0)) ** 2).sum() <= kappa(n, f) * variance


def test_nearly_equal_rows_with_a_large_offset_cancel() -> None:
    """Differences of 1e-4 on an offset of 1e6: squared norms alone would lose all digits of them."""
    rng = np.random.default_rng(5)
    small = rng.normal(size=(9, 40)) * 1e-4
    small[:2] += 0.01
    rows = small + 1e6
    found = aggregate(torch.from_numpy(rows), "multi-krum", 2)
    assert set(found.excluded) == {0, 1}
    np.testing.assert_allclose(found.vector.numpy(), _reference_krum(rows, 2), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_low_precision_rows_are_summed_in_low_precision(name: str) -> None:
    rows = torch.randn(9, 300, generator=torch.Generator().manual_seed(6))
    for dtype in (torch.bfloat16, torch.float32):
        low = rows.to(dtype)
        exact = REFERENCES[name](low.double().numpy(), 1)
        np.testing.assert_allclose(aggregate(low, name, 1).vector.numpy(), exact, atol=1e-12)


@pytest.mark.parametrize(("name", "n", "f", "largest"), [
    ("multi-krum", 6, 2, 1), ("multi-krum", 10, 4, 3), ("trimmed-mean", 4, 2, 1), ("coordinate-median", 10, 5, 4),
])  # fmt: skip
def test_a_rule_degrades_in_silence_outside_its_bound(name: str, n: int, f: int, largest: int) -> None:
    with pytest.raises(GuaranteeError, match=f"at most faulty = {largest}\\b"):
        aggregate(torch.zeros(n, 3), name, f)
    aggregate(torch.zeros(n, 3), name, largest)


def test_too_few_members_for_any_f() -> None:
    with pytest.raises(GuaranteeError, match="fewer than it needs"):
        aggregate(torch.zeros(2, 3), "multi-krum", 0)


def test_more_bad_rows_than_faults() -> None:
    rows = torch.ones(7, 2)
    rows[:2] = torch.nan
    assert aggregate(rows, "multi-krum", 2).not_finite == (0, 1)
    with pytest.raises(GuaranteeError, match="2 updates are not finite"):
        aggregate(rows, "multi-krum", 1)
    with pytest.raises(GuaranteeError, match="No update"):
        aggregate(rows * torch.nan, "mean", 0)


def test_a_misuse_is_computed() -> None:
    for updates, rule, faulty in (
        (torch.zeros(3), "mean", 0),
        (torch.zeros(0, 3), "mean", 0),
        (torch.zeros(5, 2), "mean", -1),
    ):
        with pytest.raises(MisuseError):
            aggregate(updates, rule, faulty)
    with pytest.raises(MisuseError, match="multi-krum, "):
        aggregate(torch.zeros(5, 2), "krumm", 0)
    with pytest.raises(MisuseError, match="coordinates"):
        weights_from_gram(torch.zeros(3, 3), RULES["trimmed-mean"], 0)


def test_a_rule_of_ones_own_is_refused() -> None:
    def first(gram: Tensor, faulty: int) -> Tensor:
        return torch.eye(len(gram), dtype=torch.float64)[0]

    mine = Rule("first", lambda f: f + 2, weigh=first)
    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(aggregate(rows, mine, 1).vector, rows[0].double())
    with pytest.raises(GuaranteeError, match="'first'"):
        aggregate(rows, mine, 2)


def test_an_auditor_gets_other_weights_from_the_gram_matrix() -> None:
    rows = torch.randn(9, 70_000, generator=torch.Generator().manual_seed(7))
    rows[4] = torch.inf
    found = aggregate(rows, "multi-krum", 2)
    again = weights_from_gram(found.gram, RULES["multi-krum"], 2, found.not_finite)
    assert found.weights is not None
    assert torch.equal(again, found.weights)
    assert 4 in found.excluded


@pytest.mark.parametrize("rule", ["multi-krum", "trimmed-mean", "coordinate-median"])
@pytest.mark.parametrize("members", range(3, 40))
def test_silent_members_within_f_leave_a_rule_that_cannot_be_run(rule: str, members: int) -> None:
    """n ≥ least(f) bears any m ≤ f silent members, with the f - m that remain; more than f silent may be too many."""
    for faulty in [f for f in range(members) if members >= RULES[rule].least(f)]:
        for silent in range(faulty + 1):
            left = faults_left(rule, members, faulty, members - silent)
            assert faulty - silent <= left <= faulty
            assert members - silent >= RULES[rule].least(left)
        if members - faulty - 1 < RULES[rule].least(faulty):
            with pytest.raises(GuaranteeError):
                faults_left(rule, members, faulty, members - faulty - 1)
