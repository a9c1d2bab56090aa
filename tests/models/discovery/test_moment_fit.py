"""The fit of all moments at once: its numbers are those of refits, its moves lose nothing, noise misleads it less."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from causaldao.errors import MisuseError
from causaldao.models.discovery.boss import boss
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.moment_fit import (
    ALIKE,
    Edges,
    Floats,
    _Moments,
    _reach,
    _Search,
    moment_fit,
    rated,
)
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import Knowledge
from causaldao.models.pattern import cpdag_of, extension, extensions, shd
from tests.counts import count
from tests.models.random_models import dag_of, names, noisy, population, sample, weights

DENSE = 4.0  # edges at each variable


def _noisy(rng: np.random.Generator, matrix: Floats, n: int, sigma: float) -> Evidence:
    x = sample(rng, matrix, n).to_numpy()
    rows = np.concatenate([np.ones((n, 1)), x / x.std(axis=0) * 0.4], axis=1)
    return noisy(Evidence(tuple(names(len(matrix))), torch.from_numpy(rows.T @ rows)), sigma, rng)


def _case(seed: int, d: int = 8) -> tuple[_Moments, Edges, np.random.Generator]:
    rng = np.random.default_rng(seed)
    matrix = weights(rng, d, DENSE, 0.4, 0.9)
    return _Moments.of(_noisy(rng, matrix, 20_000, 20.0)), matrix != 0, rng


def _search(moments: _Moments, rng: np.random.Generator) -> _Search:
    d = len(moments.basis)
    return _Search(moments, 12.0, ~np.eye(d, dtype=bool), np.zeros((d, d), dtype=bool), rng)


def test_noise_misleads_the_fit_as_it_misleads_boss() -> None:
    """Two edges for each of 10 variables, and noise by which 20,000 records are worth 8,000."""
    lost = {"boss": 0, "fit": 0}
    for seed in range(count(6, 30)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 10, DENSE, 0.4, 0.9)
        evidence, truth = _noisy(rng, matrix, 20_000, 40.0), cpdag_of(dag_of(matrix))
        lost["boss"] += shd(boss(evidence, restarts=3).graph, truth)
        lost["fit"] += shd(moment_fit(evidence, restarts=2).graph, truth)
    assert lost["fit"] < lost["boss"] / 2, lost


def test_the_misfit_of_the_truth_is_not_chi_square() -> None:
    """Its mean is the degrees of freedom: then sampling and noise are counted once, and in the right entries."""
    excess = []
    for seed in range(count(40, 400)):
        moments, truth, _ = _case(seed)
        freedom = 8 * 9 / 2 - 8 - truth.sum()
        excess.append((moments.fit(truth).loss - freedom) / np.sqrt(2 * freedom))
    assert abs(np.mean(excess)) < 4 / np.sqrt(len(excess))
    assert 0.6 < np.std(excess) < 1.5


def test_slopes_are_not_those_of_the_residuals() -> None:
    moments, truth, _ = _case(0)
    fit, step = moments.fit(truth), 1e-6
    causes, effects = np.nonzero(np.ones((8, 8), dtype=bool) & ~_reach(truth).T)
    slopes = moments._slopes(fit, causes, effects)
    for column, (i, j) in enumerate(zip(causes, effects, strict=True)):
        moved = fit.weights.copy()
        moved[i, j] += step
        difference = (fit.residuals - moments._at(moved, fit.errors).residuals) / step
        np.testing.assert_allclose(slopes[:, column], difference, rtol=1e-3, atol=1e-2)
    for j in range(8):
        errors = fit.errors * np.exp(step * (np.arange(8) == j))
        difference = (fit.residuals - moments._at(fit.weights, errors).residuals) / step
        np.testing.assert_allclose(slopes[:, len(causes) + j], difference, rtol=1e-3, atol=1e-2)


def test_what_an_edge_is_worth_is_not_what_a_refit_says() -> None:
    moments, truth, _ = _case(1)
    fit = moments.fit(truth)
    among = ~truth & ~_reach(truth).T
    gains, checked = moments.gains(truth, fit, among), 0
    for i, j in np.argwhere(among):
        more = truth.copy()
        more[i, j] = True
        refitted = moments.fit(more)
        assert fit.loss - refitted.loss == pytest.approx(gains[i, j], rel=0.2, abs=0.3)
        # put in a weak edge that is not true, and leave it out again
        assert moments.walds(more, refitted)[i, j] == pytest.approx(gains[i, j], rel=0.2, abs=0.3)
        checked += gains[i, j] > 1
    assert checked > 2


def test_the_dags_of_a_class_have_different_scores() -> None:
    for seed in range(count(5, 30)):
        moments, truth, rng = _case(seed)
        other = _search(moments, rng)._another(truth)
        assert cpdag_of(dag_of(other.astype(float))) == cpdag_of(dag_of(truth.astype(float)))
        assert moments.fit(other).loss == pytest.approx(moments.fit(truth).loss, abs=0.2)


def test_a_turn_loses_what_fitted_or_makes_a_circle() -> None:
    for seed in range(count(5, 30)):
        moments, truth, rng = _case(seed)
        search, fit = _search(moments, rng), moments.fit(truth)
        for i, j in np.argwhere(truth)[:6]:
            turned = search._turned(truth, i, j)
            reach = _reach(turned)
            assert not (reach & reach.T & ~np.eye(8, dtype=bool)).any()
            assert reach[j, i]
            assert not reach[i, j]
            assert moments.fit(turned).loss < fit.loss + 0.2


def test_knowledge_is_forgotten_in_the_search() -> None:
    for seed in range(count(3, 20)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 8, DENSE, 0.4, 0.9)
        evidence, dag = _noisy(rng, matrix, 5000, 20.0), dag_of(matrix)
        first, last = dag.topological_order()[0], dag.topological_order()[-1]
        wrong = Knowledge(required={(last, first)}, tiers={name: int(name != last) for name in dag.nodes})
        found = moment_fit(evidence, knowledge=wrong, restarts=1).graph
        assert (last, first) in found.directed
        assert all(wrong.allows(a, b) for a, b in found.directed)
        assert not any(last in pair for pair in found.undirected)


def test_exact_moments_have_another_graph_than_their_model() -> None:
    for seed in range(count(3, 20)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 7, 3.0)
        assert moment_fit(population(matrix), restarts=1).graph == cpdag_of(dag_of(matrix))


def test_a_run_has_no_other_outcome_by_the_order_of_columns_or_the_global_generator() -> None:
    rng = np.random.default_rng(3)
    evidence = _noisy(rng, weights(rng, 6, 3.0, 0.4, 0.9), 2000, 20.0)
    before = torch.random.get_rng_state()
    found = moment_fit(evidence, restarts=1).graph
    assert found.edges == moment_fit(evidence.select(evidence.names[::-1]), restarts=1).graph.edges
    assert torch.equal(before, torch.random.get_rng_state())


def test_one_variable_or_none_has_an_edge() -> None:
    evidence = population(np.zeros((2, 2)))
    assert not moment_fit(evidence.select(["v00"])).graph.edges
    assert not moment_fit(evidence).graph.edges


def test_blocks_and_slips_are_taken() -> None:
    rng = np.random.default_rng(0)
    frame = sample(rng, weights(rng, 3, 2.0), 200)
    with pytest.raises(MisuseError, match="several columns"):
        moment_fit(Evidence(("a", "b"), torch.eye(4, dtype=torch.float64), blocks=(1, 2)))
    for options in ({"restarts": 0}, {"penalty": 0.0}):
        with pytest.raises(MisuseError, match="restarts is"):
            moment_fit(Evidence.from_data(frame), **options)


def test_a_graph_is_rated_by_other_than_its_class_and_knowledge() -> None:
    rng = np.random.default_rng(8)
    matrix = weights(rng, 6, DENSE, 0.4, 0.9)
    evidence, truth = _noisy(rng, matrix, 20_000, 20.0), cpdag_of(dag_of(matrix))
    found = moment_fit(evidence).graph
    best = rated(evidence, found)
    for member in extensions(found, 20):
        assert rated(evidence, member) == pytest.approx(best, abs=ALIKE)
    assert best <= rated(evidence, truth) + ALIKE
    dag = extension(found)
    assert dag is not None
    for edge in dag.directed:
        fewer = CausalGraph.dag(sorted(set(dag.directed) - {edge}), dag.nodes)
        assert rated(evidence, fewer) > best + ALIKE
    (cause, effect), other = next(iter(sorted(dag.directed))), CausalGraph.dag([], names(3))
    assert rated(evidence, dag, knowledge=Knowledge(forbidden=frozenset({(cause, effect)}))) == np.inf
    assert rated(evidence, CausalGraph.dag([], dag.nodes), knowledge=Knowledge(frozenset({(cause, effect)}))) == np.inf
    assert rated(evidence, other) == np.inf
