"""Evidence about each part's own mean: shifts leave no trace, and noise is counted as large as it is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from causaldao.errors import MisuseError
from causaldao.models.discovery.evidence import Evidence, add, moments_of, partial
from causaldao.models.discovery.interventional import Environment, interventional, score_of
from causaldao.models.discovery.score import PENALTY
from causaldao.models.discovery.within import within
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE
from tests.counts import count

NAMES = ("a", "b", "c")


def _part(rng: np.random.Generator, mean: float, n: int = 2000, noise: float = 0.0) -> Evidence:
    """a -> b -> c in scaled units, all about ``mean``."""
    a, e, d = 0.15 * rng.normal(size=(3, n))
    b = 0.6 * a + e
    z = np.stack([a, b, 0.6 * b + d], axis=1) + mean
    return Evidence(NAMES, moments_of(z), noise)


def _noised(part: Evidence, rng: np.random.Generator, noise: float) -> Evidence:
    """Noise of standard deviation ``noise`` on the diagonal and noise/√2 off it."""
    drawn = rng.normal(size=part.moments.shape) * noise
    return replace(part, moments=part.moments + torch.from_numpy((drawn + drawn.T) / 2), noise=noise)


def test_one_part_is_itself_and_shifts_of_means_leave_no_trace() -> None:
    rng = np.random.default_rng(0)
    first, second = _part(rng, 0.0), _part(rng, 0.0)
    shift = torch.eye(4, dtype=torch.float64)
    shift[1:, 0] = torch.tensor([0.5, 0.0, -0.3], dtype=torch.float64)
    moved = replace(second, moments=shift @ second.moments @ shift.T)
    assert within([first]) is first
    torch.testing.assert_close(within([first, moved]).moments, within([first, second]).moments)
    exact = first.count * first.covariance() + second.count * second.covariance()
    torch.testing.assert_close(within([first, moved]).moments[1:, 1:], exact)
    assert float((add([first, moved]).covariance() - within([first, moved]).covariance()).abs().max()) > 0.01


@pytest.mark.parametrize("given", [(), ("b",)])
@pytest.mark.parametrize("means", [(0.0, 0.0), (0.7, 0.7), (-0.8, 0.3)])
def test_noise_away_from_the_centre_is_counted_for_less_than_it_is(
    means: tuple[float, float], given: tuple[str, ...]
) -> None:
    """The spread of z over draws of the noise is what its privacy error says, wherever the means are."""
    rng = np.random.default_rng(1)
    parts = [_part(rng, mean) for mean in means]
    drawn, told = [], []
    for _ in range(count(200, 4000)):
        found = within([_noised(part, rng, size) for part, size in zip(parts, (2.0, 3.0), strict=True)])
        tested = partial(found, "a", "c", given)
        drawn.append(tested.z)
        told.append(tested.privacy_error)
    assert float(np.std(drawn)) == pytest.approx(float(np.mean(told)), rel=0.13)


def test_the_score_forgets_the_noise_of_what_adds() -> None:
    """Each variable's evidence has the noise of the parts that score it, whichever way means are taken."""
    rng = np.random.default_rng(2)
    parts = [Environment(_part(rng, 0.2, noise=3.0)), Environment(_part(rng, -0.2, noise=4.0), frozenset("b"))]
    for shared in (True, False):
        scores = score_of(parts, PENALTY, NONE, means="shared" if shared else "own").parts
        (a,), (b,) = scores[0], scores[1]
        assert (a.count, b.count) == (4000, 2000)
        assert a.noise == pytest.approx(5.0**2 / (2 * 4000))
        assert b.noise == pytest.approx(3.0**2 / (2 * 2000))
        assert a.cost == b.cost == PENALTY * math.log(4000)


def test_noise_becomes_an_edge_where_nothing_causes_anything() -> None:
    false, runs = 0, count(25, 200)
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        parts = [
            Environment(
                _noised(Evidence(tuple("abcd"), moments_of(0.25 * rng.normal(size=(1500, 4)) + mean)), rng, 12.0), held
            )
            for mean, held in ((0.7, frozenset[str]()), (-0.6, frozenset("b")), (0.8, frozenset("d")))
        ]
        false += len(interventional(parts, restarts=2, means="own").graph.edges) > 0
    assert false <= 1 + runs // 25


def test_a_mean_that_moves_elsewhere_becomes_an_edge() -> None:
    """A machine shifts c while b is held: with one intercept for all this is an edge, with own ones it is nothing."""
    rng = np.random.default_rng(3)
    free = 0.2 * rng.normal(size=(2000, 3))
    held = 0.2 * rng.normal(size=(2000, 3)) + np.array([0.0, 0.4, 0.3])
    parts = [
        Environment(Evidence(NAMES, moments_of(free))), Environment(Evidence(NAMES, moments_of(held)), frozenset("b")),
    ]  # fmt: skip
    assert interventional(parts).graph.edges
    assert interventional(parts, means="own").graph == CausalGraph.cpdag(nodes=NAMES)


def test_what_cannot_be_put_together_is_refused() -> None:
    part = _part(np.random.default_rng(0), 0.0)
    odd: Any = "odd"  # what a caller without types may pass
    with pytest.raises(MisuseError, match="no evidence"):
        within([])
    for other in (part.select(["b", "a", "c"]), replace(part, half=2 * part.half)):
        with pytest.raises(MisuseError, match="under one dictionary"):
            within([part, other])
    with pytest.raises(MisuseError, match="means is 'odd'"):
        interventional([Environment(part)], means=odd)
