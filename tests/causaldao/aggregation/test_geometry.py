"""Affine mixtures of points, seen through inner products only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from causaldao.aggregation import passes
from causaldao.aggregation.geometry import Geometry
from causaldao.errors import MisuseError


def _made(seed: int, reference: bool) -> tuple[Tensor, Geometry]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(7, 5, dtype=torch.float64, generator=generator) + 3
    trusted = torch.randn(5, dtype=torch.float64, generator=generator) if reference else None
    survey, gram = passes.gram(rows, trusted, signs=True)
    points = torch.cat([rows, torch.zeros(1, 5, dtype=torch.float64), *([] if trusted is None else [trusted[None]])])
    return points, Geometry(gram, 7, survey.norms, reference, survey.signs)


@pytest.mark.parametrize("reference", [False, True])
def test_distances_are_not_those_of_the_points(reference: bool) -> None:
    points, geometry = _made(0, reference)
    np.testing.assert_allclose(geometry.squared.sqrt().numpy(), torch.cdist(points, points).numpy(), atol=1e-7)
    np.testing.assert_allclose(geometry.norms.numpy(), points[:7].norm(dim=1).numpy(), rtol=1e-12)
    assert torch.equal(geometry.squared.diagonal(), torch.zeros(len(points), dtype=torch.float64))
    assert geometry.origin == 7
    if reference:
        assert geometry.reference == 8
    else:
        with pytest.raises(MisuseError, match="reference"):
            _ = geometry.reference


@pytest.mark.parametrize("reference", [False, True])
def test_a_mixture_is_not_where_its_weights_put_it(reference: bool) -> None:
    points, geometry = _made(1, reference)
    mixing = torch.rand(4, len(points), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mixing /= mixing.sum(dim=1, keepdim=True)
    after = geometry.mixed(mixing)
    made = torch.cat([mixing @ points, points[7:]])
    assert after.rows == 4
    assert after.signs is None  # signs of a mixture do not follow from those of its parts
    assert torch.equal(geometry.lifted(mixing) @ points, made)
    np.testing.assert_allclose(after.squared.sqrt().numpy(), torch.cdist(made, made).numpy(), atol=1e-7)
    np.testing.assert_allclose(after.norms.numpy(), made[:4].norm(dim=1).numpy(), atol=1e-9)


def test_rows_that_only_shrink_lose_their_signs_or_the_digits_of_their_norms() -> None:
    points, geometry = _made(3, False)
    mixing = torch.zeros(7, 8, dtype=torch.float64)
    factors = torch.linspace(1e-30, 1, 7, dtype=torch.float64)
    mixing.diagonal()[:] = factors
    mixing[:, 7] = 1 - factors
    after = geometry.mixed(mixing)
    assert after.signs is geometry.signs
    np.testing.assert_allclose(after.norms.numpy(), (factors * points[:7].norm(dim=1)).numpy(), rtol=1e-12)


def test_what_overflows_is_near() -> None:
    gram = torch.tensor([[1e300, 0, 0], [0, 1e308, -1e308], [0, -1e308, 1e308]], dtype=torch.float64)
    squared = Geometry(gram, 2, gram.diagonal()[:2].sqrt()).squared
    assert squared[1, 2] == torch.inf
    assert not bool(squared.isnan().any())
