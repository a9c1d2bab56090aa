"""Scores of noisy tables: the planted graph is found, and independence is left alone."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pandas as pd
import pytest

from causaldao import budget
from causaldao.models.discovery import LocalTables, discover
from causaldao.models.discovery.noisy_tables import denoised, effective
from causaldao.models.discovery.tables import SharedTables, share
from causaldao.models.pattern import cpdag_of, f1
from causaldao.simulations.benchmarks.networks import discrete, shared_tables
from tests.counts import count
from tests.models.discovery.test_tables import Source
from tests.models.random_models import random_dag
from tests.models.random_tables import joint, levels_of, rows

multiplier = cache(budget.multiplier)


def _noisy(frame: pd.DataFrame, levels: dict[str, int], epsilon: float, seed: int) -> SharedTables:
    return shared_tables(frame, levels, multiplier(epsilon, 1e-5), lambda site: Source(100 * seed + site))


def test_a_planted_graph_is_lost_under_noise_of_epsilon_3() -> None:
    """Ten sites of 5,000 rows, 6 to 8 variables; other seeds than those on which the records of worth were chosen."""
    found: dict[str, list[tuple[float, float]]] = {"ges": [], "boss": []}
    for seed in range(count(4, 40)):
        frame, levels, dag = discrete(500 + seed, 6 + seed % 3, 50_000, 2.0)
        shared, exact = _noisy(frame, levels, 3.0, seed), LocalTables.from_data(frame, levels)
        for method, both in found.items():
            noisy, pooled = (f1(discover(one, method).skeleton(), dag.skeleton()) for one in (shared, exact))
            both.append((noisy, pooled))
    for method, both in found.items():
        noisy, pooled = np.mean(both, axis=0)
        assert noisy > 0.95, method
        assert noisy > pooled - 0.05, method


@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_noise_is_taken_for_edges_where_nothing_depends_on_anything(epsilon: float) -> None:
    """In more than one run of twenty, beyond two standard deviations."""
    runs, wrong = count(6, 200), 0
    for seed in range(runs):
        frame, levels, _ = discrete(900 + seed, 6, 20_000, 0.0)
        wrong += bool(discover(_noisy(frame, levels, epsilon, seed), "boss").edges)
    assert wrong <= 0.05 * runs + 2 * math.sqrt(0.05 * 0.95 * runs)


def test_the_table_found_has_negative_cells_or_lies_farther_off_than_the_noisy_ones() -> None:
    for seed in range(count(3, 30)):
        rng = np.random.default_rng(seed)
        dag = random_dag(rng, 5, degree=2)
        whole = joint(rng, dag, levels_of(rng, dag))
        levels = dict(zip(dag.nodes, whole.shape, strict=True))
        exact = share(LocalTables.from_data(rows(rng, whole, dag.nodes, 4000), levels), 3)
        noisy = share(exact, 3, sigma=30, noise=Source(seed))
        made = denoised(noisy, "BOSS")
        assert made.count == pytest.approx(effective(noisy))
        assert made.count < noisy.count
        joint_table = made.table(dag.nodes)
        assert joint_table.min() >= 0
        far = [0.0, 0.0]
        for key, true in exact.tables.items():
            axes = tuple(i for i in range(5) if i not in key)
            far[0] += float(np.abs(joint_table.sum(axis=axes) / made.count - true / exact.count).sum())
            far[1] += float(np.abs(noisy.tables[key] / noisy.count - true / exact.count).sum())
        assert far[0] < 0.8 * far[1], seed


def test_one_table_of_all_variables_is_changed_though_its_noise_is_next_to_nothing() -> None:
    frame, levels, _ = discrete(3, 4, 20_000, 2.0)
    exact = LocalTables.from_data(frame, levels)
    made = denoised(share(exact, 4, sigma=1, noise=Source(0)), "GES")
    assert made.table(exact.names) / made.count == pytest.approx(exact.table(exact.names) / exact.count, abs=1e-3)
    for method in ("ges", "boss", "pc"):
        assert discover(share(exact, 4, sigma=1, noise=Source(0)), method) == discover(exact, method)


def test_the_order_of_variables_changes_the_graph_of_noisy_tables() -> None:
    frame, levels, dag = discrete(11, 5, 30_000, 2.0)
    shared = _noisy(frame, levels, 3.0, 0)
    turned = denoised(shared, "BOSS").table(shared.names[::-1])
    assert np.allclose(turned.T, denoised(shared, "BOSS").table(shared.names))
    assert discover(shared, "boss").skeleton() == cpdag_of(dag).skeleton()
