"""Sampled data: graphs are those of causal-learn to the mark of every edge, or the difference has a known cause."""

from __future__ import annotations

import pytest

from causaldao.simulations.benchmarks.discovery import AGREED, compare_boss
from tests.counts import count


@pytest.mark.parametrize("method", list(AGREED))
def test_a_difference_has_no_cause(method: str) -> None:
    told = [AGREED[method](seed, "strong")[1] for seed in range(count(6, 100))]
    assert "unexplained" not in told


def test_boss_ends_below_what_causal_learn_reaches() -> None:
    assert min(compare_boss(seed, starts=12) for seed in range(count(2, 20))) > -1e-6
