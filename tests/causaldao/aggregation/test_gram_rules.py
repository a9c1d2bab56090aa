"""Rules of Gram space against float64 definitions on whole vectors, and what any f rows can do to them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from causaldao.aggregation import RULES, aggregate, by_name, filters, gram_rules, passes
from causaldao.aggregation.geometry import Geometry
from tests.causaldao.aggregation import references
from tests.causaldao.aggregation.references import REFERENCES, WITH_REFERENCE, Rows
from tests.counts import count

SEARCHES = ("mda", "smea")


def cases(seed: int, name: str, number: int, faults: int = 4) -> list[tuple[Rows, int]]:
    """Rows of every scale and with an offset, some of them far away from the rest, n from 1 to 50."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        f = int(rng.integers(0, faults))
        least = by_name(name).least(f)
        most = least + 5 if name.split("+")[-1] in SEARCHES else max(least + 3, int(rng.integers(5, 51)))
        n, d = int(rng.integers(least, most)), int(rng.integers(1, 20))
        if "geometric-median" in name:  # on a line any point between two is a median
            n, d = max(n, 3), max(d, 2)
        if "centred-clipping" in name:  # of two rows it takes the first
            n = max(n, 3)
        if "signguard" in name:  # shares of few coordinates lie on a lattice, where groups are mirror images
            d += 10_000
        rows = rng.normal(size=(n, d)) + rng.normal(size=1)
        rows[:f] += rng.normal(size=rows.shape[1]) * 10 ** rng.uniform(-1, 2)
        made.append((rng.permutation(rows) * 10 ** rng.uniform(-3, 3), f))
    return made


@pytest.mark.parametrize("name", REFERENCES)
def test_a_rule_differs_from_its_definition(name: str) -> None:
    for rows, f in cases(0, name, count(12, 300)):
        found = aggregate(torch.from_numpy(rows), name, f)
        close = 1e-5 if name == "geometric-median" else 1e-9  # the general optimiser is no better
        scale = float(np.abs(rows).max())
        np.testing.assert_allclose(found.vector.numpy(), REFERENCES[name](rows, f), rtol=0, atol=close * scale)
        if found.weights is not None:
            np.testing.assert_allclose(found.weights.numpy() @ rows, found.vector.numpy(), rtol=0, atol=1e-12 * scale)
            assert found.excluded == tuple(k for k in range(len(rows)) if found.weights[k] == 0)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_a_rule_with_a_reference_differs_from_its_definition(name: str) -> None:
    rng = np.random.default_rng(1)
    for rows, f in cases(1, name, count(12, 300)):
        trusted = rows.mean(axis=0) + rng.normal(size=rows.shape[1])
        found = aggregate(torch.from_numpy(rows), name, f, reference=torch.from_numpy(trusted))
        expected = WITH_REFERENCE[name](rows, f, trusted)
        np.testing.assert_allclose(found.vector.numpy(), expected, rtol=0, atol=1e-9 * float(np.abs(rows).max()))


def test_clipping_forgets_where_it_was() -> None:
    rng = np.random.default_rng(2)
    for rows, f in cases(2, "centred-clipping", count(12, 300)):
        before = rng.normal(size=rows.shape[1])
        found = aggregate(torch.from_numpy(rows), "centred-clipping", f, state=torch.from_numpy(before))
        close = 1e-9 * float(np.abs(rows).max() + np.abs(before).max())
        expected = references.centred_clipping(rows, f, before)
        np.testing.assert_allclose(found.vector.numpy(), expected, rtol=0, atol=close)
        assert found.weights is not None
        assert float(found.weights.sum()) + found.reference_weight == pytest.approx(1)
        assert found.state is found.vector


def test_a_rule_has_no_definition() -> None:
    assert {*REFERENCES, *WITH_REFERENCE} == set(RULES)


def test_weiszfeld_is_not_the_smoothed_iteration_of_byzfl() -> None:
    """Its ν and its number of steps, from the origin, whose place is the last."""
    for rows, _ in cases(3, "geometric-median", count(12, 300)):
        points = np.vstack([rows, np.zeros(rows.shape[1])])
        start = np.eye(len(points))[-1]
        for smoothing, steps in ((0.1, 3), (1e-6, 10)):
            weights = gram_rules._weiszfeld(points @ points.T, start, len(rows), smoothing, steps)
            expected = references.smoothed_weiszfeld(rows, smoothing, steps)
            np.testing.assert_allclose(weights @ points, expected, rtol=0, atol=1e-6 * float(np.abs(rows).max()))


def test_a_row_that_is_the_median_is_missed() -> None:
    """Weiszfeld's iteration never gets to a row; a star's middle, and a point of most rows, are found exactly."""
    star = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0.0, 0], [30, 40]])
    assert torch.equal(aggregate(star, "geometric-median", 1).vector, torch.zeros(2))
    heap = torch.cat([torch.full((4, 3), 2.5), torch.randn(3, 3, generator=torch.Generator().manual_seed(0))])
    assert torch.equal(aggregate(heap, "geometric-median", 3).vector, heap[0])


def test_a_giant_hides_which_row_is_the_medoid() -> None:
    """In its 1e30 all other distances are lost, so that another liar may pass for the middle of the rows."""
    rows = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows[0], rows[1], rows[3] = 1e11, 1e4, 1e30
    for order in (list(range(8)), list(range(7, -1, -1))):
        assert float(aggregate(rows[order], "geometric-median", 3).vector.norm()) < 5


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e5, 1e30])
def test_caf_takes_more_steps_than_there_are_liars_to_remove(scale: float) -> None:
    rng = np.random.default_rng(4)
    for _ in range(count(12, 300)):
        f = int(rng.integers(0, 8))
        n = 2 * f + 1 + int(rng.integers(0, 10))
        rows = torch.from_numpy(rng.normal(size=(n, 5)))
        rows[:f] *= scale * torch.from_numpy(10 ** rng.uniform(0, 6, size=(f, 1)))
        survey, gram = passes.gram(rows)
        weights, steps = filters._caf(Geometry(gram, n, survey.norms), f)
        assert steps <= 2 * f + 1
        assert bool(torch.isfinite(weights).all())
        assert float(weights.sum()) == pytest.approx(1)


def test_the_trace_of_a_liar_that_rounding_left_ends_a_filter() -> None:
    """Of two equal liars the second may keep 1e-16 of its weight. Beside its square all else looks like one point."""
    rng = np.random.default_rng(12)
    for _ in range(count(40, 400)):
        rows = torch.from_numpy(rng.normal(size=(7, 6)))
        rows[rng.choice(7, 2, replace=False)] = 3e38
        assert float(aggregate(rows, "caf", 2).vector.norm()) < 10


def test_rows_that_are_all_one_point_break_a_filter() -> None:
    rows = torch.full((9, 4), 0.1)
    for name in RULES:
        f = next(f for f in (2, 1) if len(rows) >= RULES[name].least(f))
        found = aggregate(rows, name, f, reference=rows[0], state=rows[0])
        np.testing.assert_allclose(found.vector.numpy(), rows[0].numpy(), rtol=1e-6)


def _attacked(rng: np.random.Generator, name: str, far: bool) -> tuple[Rows, Rows, int]:
    """All rows, the honest ones, f: liars beside the honest, or of any size, along one line or each its own way."""
    f = int(rng.integers(1, 4))
    n = by_name(name).least(f) + int(rng.integers(0, 6))
    honest = rng.normal(size=(n - f, 4)) * rng.uniform(0.1, 3, size=4) + rng.normal(size=4)
    size = 10 ** rng.uniform(3, 30, size=(f, 1)) if far else 10 ** rng.uniform(-1, 2)
    way = rng.normal(size=4) if rng.random() < 0.5 else rng.normal(size=(f, 4))
    liars = honest.mean(axis=0) + way * size + 0.01 * rng.normal(size=(f, 4))
    return rng.permutation(np.vstack([liars, honest])), honest, f


SPECTRAL = ("caf", "smea")  # κ holds for the largest eigenvalue, not only for the variance
BOUNDED_BY_KAPPA = ("krum", "multi-krum", "geometric-median", "coordinate-median", "trimmed-mean", "mda", "caf", "smea",
                    "nnm+trimmed-mean", "nnm+krum", "nnm+geometric-median", "arc+trimmed-mean", "arc+caf", "arc+mda",
                    "arc+nnm+trimmed-mean", "nnm+caf")  # fmt: skip


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("name", BOUNDED_BY_KAPPA)
def test_liars_move_a_rule_beyond_its_kappa(name: str, far: bool) -> None:
    rng = np.random.default_rng(5)
    tried = 0
    for _ in range(count(40, 800)):
        rows, honest, f = _attacked(rng, name, far)
        kappa = by_name(name).kappa(len(rows), f)
        if kappa is None:  # CAF has none for n ≤ 3f
            continue
        tried += 1
        moved = ((aggregate(torch.from_numpy(rows), name, f).vector.numpy() - honest.mean(axis=0)) ** 2).sum()
        spread = np.linalg.eigvalsh(np.cov(honest.T, bias=True))
        assert moved <= kappa * float(spread[-1] if name in SPECTRAL else spread.sum()) * (1 + 1e-9)
    assert tried > count(10, 200)


def _radius(honest: Rows) -> float:
    return float(np.linalg.norm(honest - honest.mean(axis=0), axis=1).max())


@pytest.mark.parametrize("far", [False, True])
def test_liars_move_clipping_or_dnc_beyond_their_bounds(far: bool) -> None:
    rng = np.random.default_rng(6)
    for _ in range(count(40, 800)):
        rows, honest, f = _attacked(rng, "centred-clipping", far)
        n, moved = len(rows), partial(_moved, honest=honest)
        assert moved(rows, "centred-clipping", f) <= max(3, n / (n - 4 * f)) * _radius(honest)
        rows, honest, f = _attacked(rng, "dnc", far)
        n = len(rows)
        assert _moved(rows, "dnc", f, honest) <= (1 + 2 * np.sqrt(n) * n / (n - 2 * f)) * _radius(honest)


def _moved(rows: Rows, name: str, f: int, honest: Rows, **given: Any) -> float:
    return float(
        np.linalg.norm(aggregate(torch.from_numpy(rows), name, f, **given).vector.numpy() - honest.mean(axis=0))
    )


def test_a_state_far_away_is_never_left() -> None:
    """D' ≤ R/2 + (1/2 + 2δ)D: five steps from D = 1000 R at δ = 1/10 leave less than 1.7 % of it, and 1.7 R."""
    rng = np.random.default_rng(7)
    for _ in range(count(30, 500)):
        honest = rng.normal(size=(18, 4))
        start = honest.mean(axis=0) + 1000 * _radius(honest) * np.array([0.6, 0, 0.8, 0])
        rows = np.vstack([honest, start + rng.normal(size=(2, 4)) * 10 ** rng.uniform(-2, 6)])
        moved = _moved(rows, "centred-clipping", 2, honest, state=torch.from_numpy(start))
        assert moved <= (1000 * 0.7**5 + 0.5 / 0.3) * _radius(honest)


@pytest.mark.parametrize("far", [False, True])
def test_liars_move_a_rule_beyond_what_its_reference_or_its_norms_allow(far: bool) -> None:
    rng = np.random.default_rng(8)
    for _ in range(count(40, 800)):
        rows, honest, f = _attacked(rng, "monna", far)
        trusted = honest.mean(axis=0) + 0.1 * rng.normal(size=4)
        given: dict[str, Any] = {"reference": torch.from_numpy(trusted)}
        nearest = aggregate(torch.from_numpy(rows), "monna", f, **given).vector.numpy()
        assert np.linalg.norm(nearest - trusted) <= np.linalg.norm(honest - trusted, axis=1).max() * (1 + 1e-9)
        trust = aggregate(torch.from_numpy(rows), "fltrust", f, **given).vector.numpy()
        assert np.linalg.norm(trust) <= np.linalg.norm(trusted) * (1 + 1e-9)
        assert trust @ trusted >= -1e-12
        longest = np.linalg.norm(honest, axis=1).max() * (1 + 1e-9)
        for name in ("signguard", "clip+mean", "arc+mean", "clip+signguard"):
            assert np.linalg.norm(aggregate(torch.from_numpy(rows), name, f).vector.numpy()) <= longest


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("name", ["meamed", "bulyan", "nnm+meamed"])
def test_liars_move_a_coordinate_beyond_twice_the_honest_range(name: str, far: bool) -> None:
    """|F - median| ≤ the honest range, and so is |median - honest mean|; NNM adds at most a diameter to each row."""
    rng = np.random.default_rng(9)
    for _ in range(count(40, 600)):
        rows, honest, f = _attacked(rng, name, far)
        moved = np.abs(aggregate(torch.from_numpy(rows), name, f).vector.numpy() - honest.mean(axis=0))
        if name == "nnm+meamed":
            assert moved.max() <= 12 * _radius(honest)
        else:
            assert (moved <= 2 * np.ptp(honest, axis=0) * (1 + 1e-9)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [1e6, -1e30, 3e38, np.nan, np.inf, -np.inf, 1e154, 1e308, "mixed"])
def test_f_rows_of_any_size_move_the_result(value: float | str, dtype: torch.dtype) -> None:
    """In every robust rule, three honest radii at most."""
    rng = np.random.default_rng(10)
    for name in [*RULES, "arc+caf", "nnm+trimmed-mean", "bucketing+caf", "clip+signguard", "arc+nnm+geometric-median"]:
        if name == "mean":
            continue
        for f in (1, 2):
            n = max(by_name(name).least(f), 3 * f + 1)  # from 3f + 1 on CAF has a bound
            rows = torch.from_numpy(rng.normal(size=(n, 6))).to(dtype)
            liars = sorted(rng.choice(len(rows), f, replace=False).tolist())
            for k, liar in enumerate(liars):
                rows[liar] = torch.tensor([1e154, -1e154][k] if value == "mixed" else value, dtype=torch.float64).to(
                    dtype
                )
            honest = rows[[k for k in range(len(rows)) if k not in liars]].double()
            before = rows.clone()
            given: dict[str, Any] = {
                "generator": torch.Generator().manual_seed(f),
                "reference": honest.mean(dim=0).to(dtype),
            }
            found = aggregate(rows, name, f, **given)
            assert torch.equal(rows.nan_to_num(nan=7), before.nan_to_num(nan=7))
            assert found.vector.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert float((found.vector.double() - honest.mean(dim=0)).norm()) <= 3 * _radius(honest.numpy()), name
            if not torch.isfinite(rows).all():
                assert set(found.not_finite) == set(liars)


def test_two_liars_of_different_size_hide_one_another() -> None:
    """Dropping both in one look along the longer's direction would leave the shorter: 1e10 in the mean."""
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    rows[0, 0], rows[1, 1] = 1e30, 1e10
    for name in ("dnc", "caf", "mda", "smea", "arc+caf", "geometric-median"):
        assert float(aggregate(rows, name, 2).vector.norm()) < 3


def test_mda_lets_the_order_of_rows_choose_among_equal_diameters() -> None:
    """A pair far apart: either may go, and the diameter of the rest is the same."""
    line = torch.tensor([[0.0], [1.0], [2.0], [10.0], [-7.5], [-2.0], [-2.2]])
    for seed in range(20):
        order = torch.randperm(len(line), generator=torch.Generator().manual_seed(seed))
        assert float(aggregate(line[order], "mda", 2).vector) == pytest.approx(float(aggregate(line, "mda", 2).vector))


def test_krum_counts_the_row_itself() -> None:
    """The pool's scores: the mean of the n - f - 2 smallest distances to the others, whatever the diagonal."""
    away = torch.tensor(
        [[9.0, 1, 2, 3, 4], [1, 9, 5, 6, 7], [2, 5, 9, 8, 1], [3, 6, 8, 9, 2], [4, 7, 1, 2, 9]]
    ).double()
    assert gram_rules.krum_scores(away, 1).tolist() == [1.5, 3.0, 1.5, 2.5, 1.5]
    assert gram_rules.krum_scores(away, 1, 3).tolist() == [2.0, 4.0, 8 / 3, 11 / 3, 7 / 3]
