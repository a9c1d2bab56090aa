"""Adjustment against oracles that share nothing with it: population regression, and all DAGs of a class."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, product

import numpy as np
import pytest

from causaldao.errors import ConfigurationError, MisuseError, NotIdentifiable
from causaldao.models.graph import CausalGraph
from causaldao.models.identification import (
    adjustment_set,
    is_adjustment_set,
    is_amenable,
    orientations_at,
    possible_descendants,
)
from causaldao.models.pattern import cpdag_of, meek
from tests.counts import count


def random_dag(rng: np.random.Generator, d: int, density: float) -> CausalGraph:
    order = [f"v{i}" for i in rng.permutation(d)]
    edges = [pair for pair in combinations(order, 2) if rng.random() < density]
    return CausalGraph.dag(edges, sorted(order))


def subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, k) for k in range(len(names) + 1))


def members(pattern: CausalGraph) -> list[CausalGraph]:
    """Every DAG of the class, by trying every direction of every undirected edge."""
    found = []
    lines = sorted(pattern.undirected)
    for flips in product((False, True), repeat=len(lines)):
        chosen = [(b, a) if flip else (a, b) for (a, b), flip in zip(lines, flips, strict=True)]
        try:
            dag = CausalGraph.dag([*pattern.directed, *chosen], pattern.nodes)
        except ConfigurationError:
            continue
        if dag.unshielded_colliders() == pattern.unshielded_colliders():
            found.append(dag)
    return found


def random_pattern(rng: np.random.Generator, d: int) -> CausalGraph:
    """A CPDAG, in half of the draws with background knowledge taken from a DAG of its class."""
    dag = random_dag(rng, d, rng.uniform(0.3, 0.9))
    pattern = cpdag_of(dag)
    if not pattern.undirected or rng.random() < 0.5:
        return pattern
    a, b = sorted(pattern.undirected)[rng.integers(len(pattern.undirected))]
    known = (a, b) if (a, b) in dag.directed else (b, a)
    rest = pattern.undirected - {(a, b)}
    return meek(CausalGraph.cpdag(pattern.directed | {known}, rest, pattern.nodes))


def population(dag: CausalGraph, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(covariance, total effects [i, j] of i on j) of a linear model with generic weights."""
    d = len(dag.nodes)
    weights = dag.adjacency().T * rng.uniform(0.5, 1.5, (d, d)) * rng.choice([-1, 1], (d, d))
    total = np.linalg.inv(np.eye(d) - weights)
    return total @ np.diag(rng.uniform(0.5, 2, d)) @ total.T, total.T


def regression(covariance: np.ndarray, x: int, y: int, z: list[int]) -> tuple[float, float]:
    """(coefficient of x in y ~ x + z, its asymptotic variance)."""
    block = [x, *z]
    inverse = np.linalg.inv(covariance[np.ix_(block, block)])
    coefficients = inverse @ covariance[block, y]
    residual = covariance[y, y] - covariance[y, block] @ coefficients
    return float(coefficients[0]), float(residual * inverse[0, 0])


def test_a_set_is_valid_exactly_when_population_regression_gives_the_total_effect() -> None:
    rng = np.random.default_rng(1)
    for _ in range(count(25, 400)):
        dag = random_dag(rng, int(rng.integers(3, 6)), rng.uniform(0.3, 0.9))
        covariance, effects = population(dag, rng)
        index = {name: i for i, name in enumerate(dag.nodes)}
        x, y = (str(name) for name in rng.choice(dag.nodes, 2, replace=False))
        for z in subsets([name for name in dag.nodes if name not in (x, y)]):
            found, _ = regression(covariance, index[x], index[y], [index[name] for name in z])
            right = abs(found - effects[index[x], index[y]]) < 1e-9
            assert is_adjustment_set(dag, x, y, z) == right, (dag, x, y, z)


def test_the_optimal_set_is_valid_and_none_has_a_smaller_asymptotic_variance() -> None:
    rng = np.random.default_rng(2)
    compared = 0
    for _ in range(count(40, 600)):
        dag = random_dag(rng, 5, rng.uniform(0.3, 0.9))
        x, y = (str(name) for name in rng.choice(dag.nodes, 2, replace=False))
        if x == y or y not in dag.descendants(x):
            continue
        covariance, _ = population(dag, rng)
        index = {name: i for i, name in enumerate(dag.nodes)}
        chosen = adjustment_set(dag, x, y)
        assert is_adjustment_set(dag, x, y, chosen)
        others = [name for name in dag.nodes if name not in (x, y)]
        valid = [z for z in subsets(others) if is_adjustment_set(dag, x, y, z)]
        variances = [regression(covariance, index[x], index[y], [index[n] for n in z])[1] for z in valid]
        _, own = regression(covariance, index[x], index[y], [index[n] for n in chosen])
        assert own <= min(variances) * (1 + 1e-9), (dag, x, y, chosen)
        compared += len(valid) > 1
    assert compared >= 5


def test_in_a_class_a_set_is_valid_exactly_when_it_is_in_every_member_and_the_effect_is_one() -> None:
    rng = np.random.default_rng(3)
    verdicts = set()
    for _ in range(count(40, 1500)):
        pattern = random_pattern(rng, int(rng.integers(3, 6)))
        dags = members(pattern)
        x, y = (str(name) for name in rng.choice(pattern.nodes, 2, replace=False))
        for z in subsets([name for name in pattern.nodes if name not in (x, y)]):
            everywhere = all(is_adjustment_set(dag, x, y, z) for dag in dags)
            assert is_adjustment_set(pattern, x, y, z) == everywhere, (pattern, x, y, z)
            verdicts.add((pattern.is_dag, everywhere))
    assert {(False, True), (False, False)} <= verdicts


def test_a_path_that_returns_by_a_parent_of_the_treatment_forbids_nothing() -> None:
    """Knowledge v -> x leaves x - w - v undirected, but no member has that path causal: v stays allowed."""
    pattern = CausalGraph.cpdag([("v", "x")], [("x", "w"), ("w", "v"), ("u", "y"), ("u", "v"), ("y", "v")])
    assert all(is_adjustment_set(dag, "x", "y", {"v"}) for dag in members(pattern))
    assert is_adjustment_set(pattern, "x", "y", {"v"})


def test_amenable_means_that_one_regression_serves_every_member() -> None:
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(count(60, 1500)):
        pattern = random_pattern(rng, int(rng.integers(3, 6)))
        x, y = (str(name) for name in rng.choice(pattern.nodes, 2, replace=False))
        dags = members(pattern)
        causal = {y in dag.descendants(x) for dag in dags}
        seen.add(is_amenable(pattern, x, y))
        if not is_amenable(pattern, x, y):
            # The path of the undirected edge is causal in one member and not in another: the effects differ.
            sets = {tuple(sorted(adjustment_set(d, x, y))) if y in d.descendants(x) else None for d in dags}
            assert len(sets) > 1, (pattern, x, y)
        elif causal == {True}:
            assert all(adjustment_set(dag, x, y) == adjustment_set(pattern, x, y) for dag in dags)
        else:
            assert causal == {False}, (pattern, x, y)
    assert seen == {True, False}


def test_possible_descendants_are_those_of_some_member() -> None:
    rng = np.random.default_rng(5)
    for _ in range(count(60, 500)):
        pattern = random_pattern(rng, int(rng.integers(3, 7)))
        dags = members(pattern)
        for node in pattern.nodes:
            union = frozenset[str]().union(*(dag.descendants(node) for dag in dags))
            assert possible_descendants(pattern, node) == union, (pattern, node)


def test_orientations_are_one_for_each_parent_set_of_the_class() -> None:
    rng = np.random.default_rng(6)
    for _ in range(count(60, 500)):
        pattern = random_pattern(rng, int(rng.integers(3, 7)))
        for node in pattern.nodes:
            oriented = orientations_at(pattern, node)
            expected = {dag.parents(node) for dag in members(pattern)}
            assert {graph.parents(node) for graph in oriented} == expected, (pattern, node)
            assert len(oriented) == len(expected)
            assert all(not graph.neighbours(node) for graph in oriented)


def test_without_a_causal_path_the_parents_of_the_treatment_are_valid() -> None:
    dag = CausalGraph.dag([("c", "x"), ("c", "y"), ("x", "m")])
    assert adjustment_set(dag, "x", "y") == {"c"}
    assert is_adjustment_set(dag, "x", "y", {"c"})
    pattern = CausalGraph.cpdag(undirected=[("x", "c")], nodes=["c", "x", "y"])
    assert is_adjustment_set(pattern, "x", "y", adjustment_set(pattern, "x", "y"))


def test_an_outcome_that_causes_the_treatment_is_named_and_no_set_passes() -> None:
    dag = CausalGraph.dag([("y", "x"), ("c", "x")])
    assert not is_adjustment_set(dag, "x", "y", {"c"})
    with pytest.raises(NotIdentifiable, match=r"y is a direct cause of x.*zero"):
        adjustment_set(dag, "x", "y")


def test_an_undirected_first_edge_is_named_with_the_remedy() -> None:
    pattern = CausalGraph.cpdag(undirected=[("x", "m"), ("m", "y")])
    assert not is_amenable(pattern, "x", "y")
    assert not is_adjustment_set(pattern, "x", "y", ())
    with pytest.raises(NotIdentifiable, match=r"x - m is undirected.*knowledge"):
        adjustment_set(pattern, "x", "y")


def test_a_mediator_and_its_descendants_are_forbidden() -> None:
    dag = CausalGraph.dag([("x", "m"), ("m", "y"), ("m", "w"), ("c", "x"), ("c", "y")])
    assert is_adjustment_set(dag, "x", "y", {"c"})
    assert not is_adjustment_set(dag, "x", "y", {"c", "m"})
    assert not is_adjustment_set(dag, "x", "y", {"c", "w"})
    assert not is_adjustment_set(dag, "x", "y", ())


def test_a_pattern_without_a_member_is_refused() -> None:
    square = CausalGraph.cpdag(undirected=[("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")])
    with pytest.raises(ConfigurationError, match="No DAG is consistent"):
        adjustment_set(square, "a", "c")


@pytest.mark.parametrize(
    ("treatment", "outcome", "adjustment", "message"),
    [
        ("q", "y", (), "no node q"),
        ("x", "x", (), "two roles"),
        ("x", "y", ("y",), "two roles"),
        ("x", "y", ("q",), "no node q"),
    ],
)
def test_wrong_roles_are_named(treatment: str, outcome: str, adjustment: tuple[str, ...], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        is_adjustment_set(CausalGraph.dag([("x", "y")]), treatment, outcome, adjustment)


def test_latent_marks_are_refused_rather_than_ignored() -> None:
    with pytest.raises(MisuseError, match="bidirected or circle"):
        adjustment_set(CausalGraph.admg([("x", "y")], [("x", "y")]), "x", "y")
