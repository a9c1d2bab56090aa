from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2, chi2_contingency, norm

from causaldao.errors import DataError
from causaldao.models.discovery import search
from causaldao.models.discovery.gsquare import g_square, noisy_square, normal_score
from causaldao.models.discovery.skeleton import Answer, CountTests
from causaldao.models.discovery.tables import LocalTables, SharedTables, Tables, share
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import Knowledge
from causaldao.models.pattern import cpdag_of
from tests.counts import count
from tests.models.discovery.test_tables import Source
from tests.models.random_models import names, random_dag
from tests.models.random_tables import joint, levels_of, population, rows


def _reference(frame: pd.DataFrame, a: str, b: str, given: list[str]) -> tuple[float, int]:
    """G² and its degrees of freedom, one stratum and one cell at a time."""
    strata: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for u, v, *where in frame[[a, b, *given]].to_numpy().tolist():
        strata.setdefault(tuple(where), []).append((u, v))
    statistic, free = 0.0, 0
    for pairs in strata.values():
        cells, rows, columns = Counter(pairs), Counter(u for u, _ in pairs), Counter(v for _, v in pairs)
        free += (len(rows) - 1) * (len(columns) - 1)
        for (u, v), seen in cells.items():
            statistic += 2 * seen * math.log(seen * len(pairs) / (rows[u] * columns[v]))
    return statistic, free


def _frame(seed: int, n: int = 150) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, [2, 3, 4, 2, 3], (n, 5))
    codes[:, 1] = (codes[:, 0] + codes[:, 1] * (rng.random(n) < 0.6)) % 3
    return pd.DataFrame(codes, columns=list("abcde"))


def _answers(tables: Tables, questions: list[tuple[Pair, tuple[str, ...]]]) -> list[Answer]:
    (level,) = {len(given) for _, given in questions}
    return list(CountTests.of(tables).run(iter(questions), level))


def test_statistics_are_those_of_scipy_where_nothing_is_given() -> None:
    for seed in range(4):
        frame = _frame(seed)
        tables = LocalTables.from_data(frame)
        for a, b in combinations(frame.columns, 2):
            expected = chi2_contingency(pd.crosstab(frame[a], frame[b]), correction=False, lambda_="log-likelihood")
            counts = tables.table([a, b])
            statistic, free = g_square(counts[None], [counts.shape[1]])
            assert float(statistic[0]) == pytest.approx(float(expected.statistic), rel=1e-9, abs=1e-9)
            assert float(free[0]) == expected.dof


def test_answers_are_those_of_a_sum_over_strata_with_impossible_levels_left_out() -> None:
    fewer = 0
    for seed in range(count(4, 30)):
        frame = _frame(seed)
        tables = LocalTables.from_data(frame, {"c": 6})  # two levels never occur
        for level in range(4):
            questions = [
                ((a, b), given)
                for a, b in combinations("abcde", 2)
                for given in combinations([c for c in "abcde" if c not in (a, b)], level)
            ]
            for answer in _answers(tables, questions):
                statistic, free = _reference(frame, *answer.pair, list(answer.given))
                expected = norm.isf(chi2.sf(statistic, free) / 2) if free else math.inf
                assert answer.statistic == pytest.approx(expected, rel=1e-6, abs=1e-9), answer
                sizes = dict(zip(tables.names, tables.levels, strict=True))
                a, b = answer.pair
                fewer += free < (sizes[a] - 1) * (sizes[b] - 1) * math.prod(sizes[c] for c in answer.given)
    assert fewer > 50, "structural zeros were met"


def test_a_test_without_degrees_of_freedom_separates_nothing_and_is_told() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 500))
    frame = pd.DataFrame({"a": a, "b": b, "either": a | b, "seen": (a | b) ^ (rng.random(500) < 0.1)})
    found = search(LocalTables.from_data(frame), "pc")
    assert found.graph.adjacent("either", "seen"), "a and b decide `either`: given them it never varies"
    assert any("no power" in note and "either, seen given a, b" in note for note in found.notes)


def test_shared_tables_that_are_too_small_stop_the_search_and_it_says_so() -> None:
    dag = CausalGraph.dag([("v0", "v2"), ("v1", "v2"), ("v0", "v3"), ("v1", "v3")])
    whole = joint(np.random.default_rng(3), dag, dict.fromkeys(dag.nodes, 2))
    full = population(whole, dag.nodes, 1e8)
    assert search(full, "pc").graph == cpdag_of(dag)
    assert search(full, "pc").notes == ()
    found = search(share(full, 3), "pc")
    assert found.graph.adjacent("v2", "v3"), "separating them takes two variables"
    assert "no set of more than 1 variables was tested" in found.notes[0]


@pytest.mark.parametrize("method", ["pc", "fci", "rfci"])
def test_the_exact_tables_of_a_model_give_its_graph(method: str) -> None:
    for seed in range(count(12, 100)):
        rng = np.random.default_rng(seed)
        dag = random_dag(rng, int(rng.integers(3, 7)), degree=2)
        tables = population(joint(rng, dag, levels_of(rng, dag)), dag.nodes, 1e9)
        found = search(tables, method)
        assert found.graph.skeleton() == dag.skeleton(), seed
        if method == "pc":
            assert found.graph == cpdag_of(dag), seed
            assert found.graph == search(tables, "pc", colliders="conservative").graph
            assert found.graph == search(tables, "pc", colliders="majority").graph


def _null(rng: np.random.Generator, shape: tuple[int, int, int], n: int, concentration: float) -> Any:
    q, r, s = shape
    strata = rng.dirichlet(np.full(q, concentration))[:, None, None]
    rows = rng.dirichlet(np.full(r, concentration), q)[:, :, None]
    columns = rng.dirichlet(np.full(s, concentration), q)[:, None, :]
    return rng.multinomial(n, (strata * rows * columns).ravel()).reshape(shape).astype(float)


@pytest.mark.parametrize("sigma", [0.5, 5.0, 40.0])
@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 3, 2)])
def test_under_independence_noisy_tests_reject_at_their_level(sigma: float, shape: tuple[int, int, int]) -> None:
    times, rng = count(800, 20000), np.random.default_rng(7)
    tested, rejected = 0, {0.05: 0, 0.01: 0}
    for _ in range(times):
        counts = _null(rng, shape, 3000, concentration=2)
        statistic, free = noisy_square(counts + sigma * rng.normal(size=shape), sigma)
        tested += free > 0
        score = float(normal_score(np.array([statistic]), np.array([free]))[0])
        for alpha in rejected:
            rejected[alpha] += free > 0 and score > norm.isf(alpha / 2)
    assert tested > 0.8 * times
    for alpha, many in rejected.items():
        assert abs(many / tested - alpha) < 4 * math.sqrt(alpha / tested), "about nominal, to sampling error"


def test_the_exact_test_of_noisy_tables_would_find_edges_where_none_are() -> None:
    exact = noisy = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        local = LocalTables.from_data(pd.DataFrame(rng.integers(0, 3, (2000, 6)), columns=names(6)))
        shared = share(local, 3, sigma=30, noise=Source(seed))
        noisy += len(search(shared, "pc").graph.edges)
        pretended = {key: counts.clip(0) for key, counts in shared.tables.items()}
        exact += len(search(SharedTables(shared.names, shared.levels, 3, pretended), "pc").graph.edges)
    assert noisy <= 5, "8 graphs of 15 pairs at level .01 expect 1.2"
    assert exact > 40


def test_little_noise_leaves_the_graph_of_exact_tables() -> None:
    rng = np.random.default_rng(2)
    dag = CausalGraph.dag([("v0", "v2"), ("v1", "v2"), ("v2", "v3")], ["v0", "v1", "v2", "v3"])
    frame = rows(rng, joint(rng, dag, dict.fromkeys(dag.nodes, 2)), dag.nodes, 50_000)
    shared = share(LocalTables.from_data(frame), 3, sigma=20, noise=Source(1))
    for method in ("pc", "fci"):
        assert search(shared, method).graph.skeleton() == dag.skeleton()
    assert search(shared, "pc").graph == cpdag_of(dag)


def test_a_variable_drowned_in_noise_is_named() -> None:
    frame = _frame(0).assign(e=lambda f: (np.arange(len(f)) < 3).astype(int))
    with pytest.raises(DataError, match=r"Variable 'e' has 1 levels.*drowned in noise"):
        search(share(LocalTables.from_data(frame), 2, sigma=3, noise=Source(0)), "pc")


def test_what_knowledge_settles_is_never_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Pair, tuple[str, ...]]] = []
    run = CountTests.run

    def spy(self: Any, questions: Any, level: int) -> Any:
        listed = list(questions)
        asked.extend(listed)
        return run(self, iter(listed), level)

    monkeypatch.setattr(CountTests, "run", spy)
    frame = _frame(0, n=2000)
    knowledge = Knowledge(forbidden={("a", "b"), ("b", "a")}, required={("d", "e")}, tiers={"c": 2, "a": 1, "b": 1})
    found = search(LocalTables.from_data(frame), "pc", knowledge)
    assert ("d", "e") in found.graph.directed
    assert not found.graph.adjacent("a", "b")
    assert asked
    assert not {("a", "b"), ("d", "e")} & {pair for pair, _ in asked}


def test_the_tails_of_large_statistics_stay_finite_or_say_infinite() -> None:
    scores = normal_score(np.array([0.0, 3.841458820694124, 1000.0, 1e6]), np.ones(4))
    assert scores[0] == 0
    assert scores[1] == pytest.approx(1.959963984540054, rel=1e-9)
    assert scores[2] == pytest.approx(math.sqrt(1000), rel=1e-6)
    assert math.isinf(scores[3])
