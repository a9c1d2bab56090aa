"""The passes over the matrix: what they find, what they must not change, and what liars do to their digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from causaldao.aggregation import passes
from causaldao.aggregation.coordinates import coordinate_median, trimmed_mean

WIDE = 50_003  # several chunks, the last one shorter


def _rows(n: int = 7, d: int = WIDE, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 0.5


def _exact(rows: Tensor, centre: int, reference: Tensor | None = None) -> Tensor:
    points = torch.cat([rows.double(), torch.zeros(1, rows.shape[1], dtype=torch.float64)])
    if reference is not None:
        points = torch.cat([points, reference.double()[None]])
    away = points - rows[centre].double()
    return away @ away.T


def _centre(gram: Tensor, n: int) -> int:
    return int((gram.diagonal()[:n] == 0).nonzero()[0])


@pytest.mark.parametrize("columns", [0, 1, 7, 1_023, 1_024, 20_481, WIDE, 1_000_000])
def test_chunks_miss_columns_or_hold_more_than_a_twentieth(columns: int) -> None:
    spans = list(passes.spans(columns))
    assert [k for span in spans for k in range(span.start, span.stop)] == list(range(columns))
    assert all(span.stop - span.start <= max(columns / 20, 1_024) for span in spans)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reference", [False, True])
def test_the_gram_matrix_is_another(dtype: torch.dtype, reference: bool) -> None:
    rows = _rows().to(dtype)
    before = rows.clone()
    trusted = _rows(1, seed=1)[0].to(dtype) if reference else None
    survey, gram = passes.gram(rows, trusted)
    exact = _exact(rows, _centre(gram, 7), trusted)
    np.testing.assert_allclose(gram.numpy(), exact.numpy(), atol=1e-6 * float(exact.max()))
    np.testing.assert_allclose(survey.norms.numpy(), rows.double().norm(dim=1).numpy(), rtol=1e-6)
    assert torch.equal(gram, gram.T)
    assert torch.equal(rows, before)


def test_signs_are_miscounted() -> None:
    rows = _rows()
    rows[:, ::3] = 0
    rows[2] = -0.0
    expected = torch.stack([(rows > 0), (rows == 0), (rows < 0)], dim=2).double().mean(dim=1)
    found = passes.gram(rows, signs=True)[0].signs
    assert found is not None
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12)


@pytest.mark.parametrize("value", [1e-40, 1e-25, 1e-12, 1e12, 1e18, 1e30, 3e38])
def test_float32_rows_of_any_size_lose_their_norms_or_hide_the_others(value: float) -> None:
    rows = _rows()
    rows[3] = value
    survey, gram = passes.gram(rows)
    np.testing.assert_allclose(survey.norms.numpy(), rows.double().norm(dim=1).numpy(), rtol=1e-6)
    assert survey.finite == tuple(range(7))
    exact = _exact(rows, _centre(gram, 7))
    size = exact.diagonal().sqrt()
    assert float(((gram - exact).abs() / (size[:, None] * size).clamp_min(1e-300)).max()) < 1e-5


def test_norms_read_off_the_gram_matrix_lose_digits() -> None:
    """Rows of a thousandth to a thousand times the length of the centre, and a chunk as long as one can be."""
    rows = _rows(d=700_000)
    for lengths in (torch.ones(7), torch.logspace(-3, 3, 7), torch.tensor([1, 1, 1, 1, 1, 0.6, 0.0])):
        stretched = rows * lengths[:, None]
        survey, _ = passes.gram(stretched)
        np.testing.assert_allclose(survey.norms.numpy(), stretched.double().norm(dim=1).numpy(), rtol=1e-6)


def test_all_rows_tiny() -> None:
    rows = _rows() * 1e-25
    _, gram = passes.gram(rows)
    exact = _exact(rows, _centre(gram, 7))
    np.testing.assert_allclose(gram.numpy(), exact.numpy(), atol=1e-6 * float(exact.max()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_gets_into_the_gram_matrix(bad: float) -> None:
    rows = _rows()
    rows[0, 40_000] = bad  # behind the first chunk, from which the centre is guessed
    rows[5, 3] = bad
    survey, gram = passes.gram(rows)
    assert survey.finite == (1, 2, 3, 4, 6)
    assert survey.norms[[0, 5]].tolist() == [0, 0]
    kept = rows[[1, 2, 3, 4, 6]]
    exact = _exact(kept, _centre(gram, 5))
    np.testing.assert_allclose(gram.numpy(), exact.numpy(), atol=1e-6 * float(exact.max()))
    survey, gram = passes.gram(rows * bad)
    assert survey.finite == ()
    assert gram.shape == (0, 0)


def test_float64_rows_beyond_all_squares_count_as_finite() -> None:
    rows = _rows(4, 30).double()
    rows[0], rows[1], rows[2, 0] = 1e154, 1e308, 1e149
    survey, vector = passes.surveyed_by_columns(rows, coordinate_median, 1)
    assert survey.finite == passes.gram(rows)[0].finite == (2, 3)
    assert vector is None


def test_a_liar_of_median_norm_costs_the_digits_of_the_others() -> None:
    """Honest rows differ by 1e-2 on an offset of norm 1e3; the liar has their norm and lies opposite."""
    offset = _rows(1, 5_000, seed=3)
    offset *= 1e3 / offset.norm()
    rows = offset + 1e-2 / 70 * _rows(7, 5_000, seed=4)
    rows[2] = -rows[3:].mean(dim=0)
    _, gram = passes.gram(rows)
    assert _centre(gram, 7) != 2
    exact = _exact(rows, _centre(gram, 7))
    honest = [0, 1, 3, 4, 5, 6]
    close = 1e-4 * float(exact[honest][:, honest].max())
    np.testing.assert_allclose(gram[honest][:, honest].numpy(), exact[honest][:, honest].numpy(), atol=close)


def test_a_liar_looks_short_in_the_first_chunk() -> None:
    """Its norm is that of 1e8 others: as a centre it would leave nothing of them."""
    rows = _rows()
    rows[:, :1000] *= torch.linspace(0.5, 1.5, 7)[:, None]
    rows[3, -1] = 1e10
    _, gram = passes.gram(rows)
    centre = _centre(gram, 7)
    assert centre != 3
    exact = _exact(rows, centre)
    others = [0, 1, 2, 4, 5, 6, 7]
    close = 1e-6 * float(exact[others][:, others].max())
    np.testing.assert_allclose(gram[others][:, others].numpy(), exact[others][:, others].numpy(), atol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_weighted_sum_or_a_mixture_is_another(dtype: torch.dtype) -> None:
    rows = _rows().to(dtype)
    rows[4, 77] = torch.nan
    survey, _ = passes.gram(rows)
    weights = torch.tensor([0.1, 0.2, 0, 0.3, 0, 0.4, 1e-30], dtype=torch.float64)
    kept = rows[[0, 1, 2, 3, 5, 6]].double()
    expected = weights[[0, 1, 2, 3, 5, 6]] @ kept
    found = passes.weighted(rows, weights, survey)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close = 1e-12 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=close)
    mixing = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for given, chunk in ((None, kept), (mixing, mixing @ kept)):
        combined = passes.by_columns(rows, survey, given, trimmed_mean, 1)
        np.testing.assert_allclose(combined.numpy(), trimmed_mean(chunk.clone(), 1).numpy(), atol=10 * close)


def test_a_file_of_updates_is_read_whole_or_written(tmp_path: Path) -> None:
    rows = _rows()
    path = tmp_path / "updates"
    rows.numpy().tofile(path)
    mapped = torch.from_numpy(np.memmap(path, dtype=np.float32, mode="c", shape=(7, WIDE)))
    for found, expected in zip(passes.gram(mapped)[0].norms, passes.gram(rows)[0].norms, strict=True):
        assert found == expected
    assert torch.equal(passes.gram(mapped)[1], passes.gram(rows)[1])
    assert path.read_bytes() == rows.numpy().tobytes()


def test_the_same_rows_give_other_bits() -> None:
    for rows in (_rows(20, 100_000), _rows(20, 100_000).T.contiguous().T):
        first, again = passes.gram(rows), passes.gram(rows.clone())
        assert torch.equal(first[1], again[1])
        assert torch.equal(first[0].norms, again[0].norms)
