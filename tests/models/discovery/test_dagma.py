from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise, product

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.discovery import discover
from causaldao.models.discovery.dagma import (
    Valued,
    _augmented,
    _central,
    _dagma,
    _exponential,
    _log_determinant,
    _notears,
    _Problem,
    dagma,
    notears,
    varsortability,
)
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import Discovery
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import Knowledge
from causaldao.models.pattern import cpdag_of
from tests.counts import count
from tests.models.random_models import dag_of, names, population, sample, weights

BOTH = [notears, dagma]
Method = Callable[..., Discovery]


def _case(seed: int, d: int = 8, n: int = 1000) -> tuple[np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    matrix = weights(rng, d, 3, 0.5, 2.0)
    return matrix, sample(rng, matrix, n)


def _problem(seed: int, d: int = 6) -> _Problem:
    _, frame = _case(seed, d)
    covariance = np.cov(frame.to_numpy().T, bias=True)
    return _Problem(covariance, ~np.eye(d, dtype=np.bool_), np.full((d, d), 0.1))


def _slope(function: Callable[[np.ndarray], Valued], w: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient by central differences."""
    slope = np.zeros_like(w)
    for cell in product(range(len(w)), repeat=2):
        moved = np.zeros_like(w)
        moved[cell] = step
        slope[cell] = (function(w + moved)[0] - function(w - moved)[0]) / (2 * step)
    return slope


def _f1(found: Discovery, matrix: np.ndarray) -> float:
    truth, edges = dag_of(matrix).directed, set(found.weights)
    return 2 * len(edges & truth) / (len(edges) + len(truth))


def test_gradients_are_those_of_finite_differences() -> None:
    for seed in range(3):
        problem = _problem(seed)
        w = np.random.default_rng(seed).uniform(-0.3, 0.3, (6, 6)) * problem.free
        functions = [problem.loss, _exponential, _augmented(problem, 3.0, 2.0), _central(problem, 0.1, 0.9)]
        for function in functions:
            assert function(w)[1] == pytest.approx(_slope(function, w), rel=1e-5, abs=1e-5)


def test_the_loss_on_moments_is_the_squared_error_of_the_rows() -> None:
    _, frame = _case(0, 6)
    rows = (frame - frame.mean()).to_numpy()
    w = np.random.default_rng(1).normal(size=(6, 6))
    assert _problem(0).loss(w)[0] == pytest.approx(((rows - rows @ w) ** 2).sum() / (2 * len(rows)))


def test_both_penalties_are_zero_without_a_cycle_positive_with_one_and_dagmas_has_a_wall() -> None:
    chain, cycle = np.zeros((3, 3)), np.zeros((3, 3))
    chain[0, 1] = chain[1, 2] = chain[0, 2] = 5.0
    cycle[0, 1] = cycle[1, 0] = 0.5
    for penalty in (_exponential, lambda w: _log_determinant(w, 1.0)):
        assert penalty(chain)[0] == pytest.approx(0, abs=1e-12)
        assert penalty(cycle)[0] > 0.05
    assert _log_determinant(2 * cycle + 0.01, 1.0)[0] > 1e9


@pytest.mark.parametrize("solve", [_notears, _dagma])
def test_no_cycle_is_left_before_any_threshold(solve: Callable[[_Problem], np.ndarray]) -> None:
    for seed in range(count(2, 20)):
        assert _exponential(solve(_problem(seed)))[0] < 1e-5, seed


@pytest.mark.parametrize("method", BOTH)
def test_where_variances_tell_the_order_the_dag_is_found_and_from_correlations_it_is_not(method: Method) -> None:
    raw, scaled, told = [], [], []
    for seed in range(count(2, 30)):
        matrix, frame = _case(seed)
        evidence = Evidence.from_data(frame)
        found = method(evidence, standardise=False)
        raw.append(_f1(found, matrix))
        told.append(found.varsortability)
        scaled.append(_f1(method(evidence), matrix))
    assert np.mean(raw) > 0.9
    assert np.mean(scaled) < 0.7, "if correlations were enough, the warning in the module would be wrong"
    assert np.mean(told) > 0.9


@pytest.mark.parametrize("method", BOTH)
def test_units_do_not_matter_unless_they_are_asked_for(method: Method) -> None:
    _, frame = _case(3, 4)
    rescaled = frame * np.array([2.0, 0.5, 3.0, 1.0])
    one, other = Evidence.from_data(frame), Evidence.from_data(rescaled)
    assert method(one).graph == method(other).graph
    assert method(one, standardise=False).weights != method(other, standardise=False).weights


@pytest.mark.parametrize("method", BOTH)
def test_the_graph_is_the_class_of_a_dag_and_the_order_of_columns_does_not_matter(method: Method) -> None:
    _, frame = _case(4)
    found = method(Evidence.from_data(frame))
    assert found.graph == cpdag_of(CausalGraph.dag(found.weights, list(frame.columns)))
    assert all(abs(weight) > 0.3 for weight in found.weights.values())
    assert method(Evidence.from_data(frame[frame.columns[::-1]])).graph == found.graph
    assert found.graph.nodes == tuple(frame.columns)


@pytest.mark.parametrize("method", BOTH)
def test_a_forbidden_edge_is_never_present_and_a_required_one_always(method: Method) -> None:
    for seed in range(count(2, 20)):
        matrix, frame = _case(seed, 6)
        truth = dag_of(matrix)
        apart = min(p for p in combinations(truth.topological_order(), 2) if not truth.adjacent(*p))
        tiers = {name: int(name not in apart) for name in names(6)}
        knowledge = Knowledge({apart}, {min(truth.directed)}, tiers)
        found = method(Evidence.from_data(frame), knowledge=knowledge, standardise=False)
        assert apart in found.weights
        assert apart in found.graph.directed
        assert all(knowledge.allows(a, b) for a, b in [*found.weights, *found.graph.directed]), seed


def test_a_required_edge_bears_no_price() -> None:
    evidence = Evidence(("a", "b"), population(np.array([[0.0, 1.0], [0.0, 0.0]])).moments)
    assert dagma(evidence, 0.2, knowledge=Knowledge({("a", "b")})).weights["a", "b"] == pytest.approx(
        0.5**0.5, abs=1e-4
    )
    priced = dagma(evidence, 0.2, knowledge=Knowledge(forbidden={("b", "a")})).weights["a", "b"]
    assert priced == pytest.approx(0.5**0.5 - 0.2, abs=1e-4)


def _brute(evidence: Evidence, dag: CausalGraph) -> float:
    """Varsortability over all sequences of nodes that are paths, ends told apart by length."""
    variances = dict(zip(evidence.names, (evidence.covariance().diagonal() * evidence.half**2).tolist(), strict=True))
    paths: list[list[str]] = [[a, b] for a, b in dag.directed]
    ends: set[tuple[str, str, int]] = set()
    while paths:
        ends |= {(path[0], path[-1], len(path)) for path in paths}
        paths = [[*path, c] for path in paths for c in dag.children(path[-1])]
    return sum(variances[a] < variances[b] for a, b, _ in ends) / len(ends)


def test_varsortability_counts_paths_in_the_units_of_the_data() -> None:
    for seed in range(5):
        matrix, frame = _case(seed, 7)
        evidence, dag = Evidence.from_data(frame * np.arange(1, 8)), dag_of(matrix)
        assert varsortability(evidence, dag) == pytest.approx(_brute(evidence, dag))
    rng = np.random.default_rng(0)
    chain = CausalGraph.dag(pairwise(names(4)), names(4))
    frame = pd.DataFrame(rng.normal(size=(400, 4)), columns=names(4))
    assert varsortability(Evidence.from_data(frame * [1, 10, 100, 1000]), chain) == 1
    assert varsortability(Evidence.from_data(frame * [1000, 100, 10, 1]), chain) == 0
    equal = Evidence(tuple(names(4)), 100 * torch.eye(5, dtype=torch.float64))
    assert varsortability(equal, chain) == 0.5
    assert varsortability(equal, CausalGraph.dag((), names(4))) is None


def test_what_cannot_be_used_is_refused() -> None:
    _, frame = _case(0, 4)
    evidence = Evidence.from_data(frame)
    with pytest.raises(MisuseError, match="sparsity is -1"):
        notears(evidence, sparsity=-1)
    with pytest.raises(MisuseError, match="threshold 0"):
        dagma(evidence, threshold=0)
    with pytest.raises(MisuseError, match=r"dagma has no options \['alpha'\].*sparsity, threshold, standardise"):
        discover(evidence, "dagma", alpha=0.1)
    with pytest.raises(ConfigurationError, match=r"\['zz'\]"):
        notears(evidence, knowledge=Knowledge({("zz", "v00")}))
    with pytest.raises(DataError, match="linearly dependent"):
        dagma(Evidence.from_data(frame.assign(sum=frame["v00"] + frame["v01"])))
    impossible = torch.tensor([[100.0, 0, 0], [0, 100, 120], [0, 120, 100]], dtype=torch.float64)
    with pytest.raises(DataError, match="Use boss"):
        notears(Evidence(("a", "b"), impossible, noise=30.0))
    with pytest.raises(DataError, match="constant"):
        dagma(Evidence(("a", "b"), torch.diag(torch.tensor([9.0, 9.0, 0.0], dtype=torch.float64))))


def test_one_variable_and_none_have_no_edge() -> None:
    for d in (0, 1):
        found = discover(population(np.zeros((d, d))), "notears")
        assert found == CausalGraph.dag((), names(d)) if d else not found.nodes
