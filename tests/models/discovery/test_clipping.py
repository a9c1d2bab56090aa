"""Putting back what a clip took: for Gaussian records exactly, and nothing where nothing was taken."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.errors import MisuseError
from causaldao.models.discovery.boss import boss
from causaldao.models.discovery.clipping import restoration, restored
from causaldao.models.discovery.evidence import Dictionary, Evidence, Variable
from causaldao.models.pattern import cpdag_of
from tests.models.random_models import dag_of, noisy, sample, weights

D = 10


def _clipped(rows: pd.DataFrame, share: float, shift: float = 0.0) -> tuple[Evidence, float]:
    """Evidence under bounds of four standard deviations and a clip at ``share`` of the mean squared length."""
    bounds = {name: (shift * sd - 4 * sd, shift * sd + 4 * sd) for name, sd in rows.std().items()}
    clip = min(1 + share * D / 16, D + 1.0)
    words = Dictionary(tuple(Variable(str(name), bounds=pair) for name, pair in bounds.items()), clip)
    return Evidence.from_data(rows, words), clip


def test_the_clip_leaves_edges_behind() -> None:
    """40,000 records, clipped at .5 of their mean square: correlations come back, and with them the graph."""
    rng = np.random.default_rng(0)
    matrix = weights(rng, D, 4.0, 0.5, 1.2)
    rows = sample(rng, matrix, 40_000)
    evidence, clip = _clipped(rows, 0.5)
    back = restored(evidence, restoration(evidence, clip))
    exact = torch.from_numpy(rows.corr().to_numpy().copy())
    off = [float((one.correlation() - exact).abs().max()) for one in (evidence, back)]
    assert off[1] < 0.01 < off[0]
    assert boss(back).graph == cpdag_of(dag_of(matrix)) != boss(evidence).graph


def test_what_was_not_clipped_is_changed() -> None:
    rng = np.random.default_rng(1)
    evidence, _ = _clipped(sample(rng, weights(rng, D, 2.0), 2000), 16.0)
    torch.testing.assert_close(restoration(evidence, D + 1.0), torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-6)


def test_noise_that_drowns_a_direction_is_blown_up() -> None:
    """Where noise leaves a negative eigenvalue the map stays finite and moderate: it never divides by it."""
    rng = np.random.default_rng(2)
    evidence, clip = _clipped(sample(rng, weights(rng, D, 4.0), 500), 0.7)
    drowned = noisy(Evidence(evidence.names, evidence.moments), 30.0, rng)
    assert float(torch.linalg.eigvalsh(drowned.covariance())[0]) < 0
    stretch = torch.linalg.eigvalsh(restoration(drowned, clip))
    assert 1 <= float(stretch[0]) <= float(stretch[-1]) < 4


def test_a_mean_away_from_the_centre_is_put_back() -> None:
    rng = np.random.default_rng(3)
    evidence, clip = _clipped(sample(rng, weights(rng, D, 2.0), 2000), 0.7, shift=1.0)
    with pytest.raises(MisuseError, match=r"standard deviations from the centre of its bounds"):
        restoration(evidence, clip)
    with pytest.raises(MisuseError, match="C² is 1"):
        restoration(evidence, 1.0)
