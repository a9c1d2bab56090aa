"""Adjustment against oracles that share nothing with it: population regression, and all DAGs of a class."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, product

import numpy as np
import pytest

from causaldao.errors import ConfigurationError, MisuseError, NotIdentifiable
from causaldao.models.adjustment import joint_adjustment_set
from causaldao.models.estimand import Estimand
from causaldao.models.expression import Expression, Probability, total
from causaldao.models.expression import product as product_of
from causaldao.models.graph import CausalGraph, Edge
from causaldao.models.identification import (
    adjustment_set,
    is_adjustment_set,
    is_amenable,
    minimal_adjustment_sets,
    orientations_at,
    possible_descendants,
)
from causaldao.models.pattern import cpdag_of, meek
from tests.counts import count
from tests.models.latent_models import BinaryModel, random_admg


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


def test_circle_marks_are_refused_rather_than_ignored() -> None:
    with pytest.raises(MisuseError, match=r"x o-> y leaves room.*direct its edges"):
        adjustment_set(CausalGraph.pag({("x", "y"): "o>"}), "x", "y")


def test_a_latent_cause_beside_an_arrow_is_forgotten_where_another_edge_is_undirected() -> None:
    arrow, head = ("-", ">"), (">", ">")
    edges = [("x", "y", *arrow), ("x", "y", *head), ("y", "z", "-", "-")]
    bow = CausalGraph(("x", "y", "z"), frozenset(Edge(*edge) for edge in edges))
    with pytest.raises(MisuseError, match="x <-> y leaves room"):
        adjustment_set(bow, "x", "y")
    with pytest.raises(MisuseError, match="x <-> y is neither"):
        meek(bow)


def linear(admg: CausalGraph, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """As `population`, for the graph with a latent cause in the place of each bidirected edge; of the observed."""
    latents = [(f"{a}~{b}", end) for a, b in sorted(admg.bidirected) for end in (a, b)]
    hidden = sorted({name for name, _ in latents})
    covariance, effects = population(CausalGraph.dag([*admg.directed, *latents], [*admg.nodes, *hidden]), rng)
    d = len(admg.nodes)
    return covariance[:d, :d], effects[:d, :d]


def test_with_latent_causes_a_set_is_valid_exactly_when_population_regression_gives_the_total_effect() -> None:
    rng = np.random.default_rng(7)
    verdicts = {True: 0, False: 0}
    for _ in range(count(25, 500)):
        admg = random_admg(rng, int(rng.integers(3, 6)), rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.4))
        covariance, effects = linear(admg, rng)
        index = {name: i for i, name in enumerate(admg.nodes)}
        x, y = (str(name) for name in rng.choice(admg.nodes, 2, replace=False))
        for z in subsets([name for name in admg.nodes if name not in (x, y)]):
            found, _ = regression(covariance, index[x], index[y], [index[name] for name in z])
            right = abs(found - effects[index[x], index[y]]) < 1e-9
            assert is_adjustment_set(admg, x, y, z) == right, (admg, x, y, z)
            verdicts[right] += 1
    assert min(verdicts.values()) > 10


def test_a_latent_cause_hides_what_lies_on_a_causal_path() -> None:
    """m and y share a cause, so that m, n, y is a triangle; y follows from m all the same."""
    graph = CausalGraph.admg([("x", "m"), ("m", "n"), ("n", "y"), ("x", "y")], [("m", "y")])
    assert possible_descendants(graph, "m") == {"m", "n", "y"}
    assert not is_adjustment_set(graph, "x", "y", ["m"])
    for seed in range(count(20, 300)):
        admg = random_admg(np.random.default_rng([seed, 11]), 6, 0.6, 0.4)
        for name in admg.nodes:
            assert possible_descendants(admg, name) == admg.descendants(name), (admg, name)


@pytest.mark.parametrize("latents", [False, True], ids=["pattern", "admg"])
def test_a_minimal_adjustment_set_is_missed_or_has_a_member_too_many(latents: bool) -> None:
    rng = np.random.default_rng(8)
    numbers = set()
    for _ in range(count(60, 1000)):
        d = int(rng.integers(3, 7))
        graph = random_admg(rng, d, rng.uniform(0.3, 0.7), 0.2) if latents else random_pattern(rng, d)
        x, y = (str(name) for name in rng.choice(graph.nodes, 2, replace=False))
        others = [name for name in graph.nodes if name not in (x, y)]
        valid = [frozenset(z) for z in subsets(others) if is_adjustment_set(graph, x, y, z)]
        found = list(minimal_adjustment_sets(graph, x, y))
        assert set(found) == {z for z in valid if not any(other < z for other in valid)}, (graph, x, y)
        assert len(found) == len(set(found))
        numbers.add(len(found))
    assert numbers >= {0, 1}


def test_with_latent_causes_the_chosen_set_is_invalid_though_one_is_valid_or_beaten_in_every_model() -> None:
    """Runge's set: where one set is best in each of many models, it is this one, or as good."""
    rng = np.random.default_rng(9)
    compared = refused = 0
    for _ in range(count(60, 1000)):
        admg = random_admg(rng, int(rng.integers(3, 6)), rng.uniform(0.3, 0.7), 0.25)
        x, y = (str(name) for name in rng.choice(admg.nodes, 2, replace=False))
        others = [name for name in admg.nodes if name not in (x, y)]
        valid = [z for z in subsets(others) if is_adjustment_set(admg, x, y, z)]
        try:
            chosen = adjustment_set(admg, x, y)
        except NotIdentifiable:
            assert not valid, (admg, x, y)
            refused += 1
            continue
        assert is_adjustment_set(admg, x, y, chosen), (admg, x, y)
        if y not in admg.descendants(x) or len(valid) == 1:
            continue
        index = {name: i for i, name in enumerate(admg.nodes)}
        beaten = np.zeros(len(valid), dtype=int)
        for _ in range(8):
            covariance, _ = linear(admg, rng)
            variances = [regression(covariance, index[x], index[y], [index[n] for n in z])[1] for z in (*valid, chosen)]
            beaten += np.array(variances[:-1]) < variances[-1] * (1 - 1e-9)
        assert beaten.max() < 8, (admg, x, y, chosen, valid[int(beaten.argmax())])
        compared += 1
    assert min(compared, refused) >= count(3, 50)


def test_several_treatments_find_no_valid_set_though_there_is_one_or_an_invalid_one() -> None:
    rng = np.random.default_rng(10)
    seen = set()
    for _ in range(count(60, 1000)):
        admg = random_admg(rng, int(rng.integers(4, 7)), rng.uniform(0.3, 0.7), 0.15)
        mixed = [str(name) for name in rng.permutation(admg.nodes)]
        x, y = frozenset(mixed[:2]), frozenset(mixed[2:3])
        covered = [frozenset(z) for z in subsets(mixed[3:]) if _adjusts(admg, x, y, frozenset(z))]
        found = joint_adjustment_set(admg, x, y)
        assert (found is None) == (not covered), (admg, x, y)
        assert found is None or found in covered, (admg, x, y, found)
        seen.add(found is None)
    assert seen == {True, False}


def _adjusts(admg: CausalGraph, x: frozenset[str], y: frozenset[str], z: frozenset[str]) -> bool:
    """Whether the adjustment formula has the value of the intervention in a random binary model."""
    model = BinaryModel.draw(np.random.default_rng(0), admg)
    terms: list[Expression] = [Probability(y, x | z), *([Probability(z)] if z else [])]
    estimand = Estimand(tuple(sorted(x)), tuple(sorted(y)), (), total(z, product_of(terms)), "adjustment")
    right = model.effect(estimand.treatment, estimand.outcome, ())
    return bool(np.abs(estimand.evaluate(model.under()).values - right).max() < 1e-9)
