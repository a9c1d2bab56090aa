"""Separation and separators against their definitions, by trying every path and every set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, permutations, product

import numpy as np
import pytest

from causaldao.errors import ConfigurationError
from causaldao.models.graph import CausalGraph
from causaldao.models.separators import districts, minimal_separators, mutilated
from tests.counts import count
from tests.models.latent_models import random_admg
from tests.models.test_adjustment import subsets

NODES = ("a", "b", "c", "d")


def all_dags() -> Iterator[CausalGraph]:
    """The 543 DAGs on four named nodes."""
    pairs = list(combinations(NODES, 2))
    for kinds in product((0, 1, 2), repeat=len(pairs)):
        edges = [pair if kind == 1 else pair[::-1] for pair, kind in zip(pairs, kinds, strict=True) if kind]
        try:
            yield CausalGraph.dag(edges, NODES)
        except ConfigurationError:
            continue


def open_path(graph: CausalGraph, x: str, y: str, given: frozenset[str]) -> bool:
    """Whether a path is open by the definition of d-separation (Pearl, 1988), every path tried."""
    others = [node for node in graph.nodes if node not in (x, y)]
    for size in range(len(others) + 1):
        for inner in permutations(others, size):
            path = (x, *inner, y)
            if all(graph.adjacent(a, b) for a, b in pairwise(path)) and all(
                bool(graph.descendants(node) & given) if {before, after} <= graph.parents(node) else node not in given
                for before, node, after in zip(path, path[1:], path[2:], strict=False)
            ):
                return True
    return False


def test_d_separation_differs_from_its_definition_on_a_dag_of_four_nodes() -> None:
    dags = list(all_dags())
    assert len(dags) == 543
    for dag in dags[:: count(5, 1)]:
        for x, y in combinations(NODES, 2):
            for given in subsets([node for node in NODES if node not in (x, y)]):
                assert dag.d_separated(x, y, given) != open_path(dag, x, y, frozenset(given)), (dag, x, y, given)


def test_a_minimal_separator_is_missed_or_is_none() -> None:
    rng = np.random.default_rng(1)
    numbers = set()
    for _ in range(count(60, 1500)):
        graph = random_admg(rng, int(rng.integers(3, 8)), rng.uniform(0.2, 0.5), rng.uniform(0, 0.25))
        x, y = (str(name) for name in rng.choice(graph.nodes, 2, replace=False))
        others = [name for name in graph.nodes if name not in (x, y)]
        allowed = frozenset(name for name in others if rng.random() < 0.8)
        separating = [frozenset(z) for z in subsets(sorted(allowed)) if graph.d_separated(x, y, z)]
        expected = [z for z in separating if not any(other < z for other in separating)]
        found = list(minimal_separators(graph, x, y, allowed))
        assert len(found) == len(set(found))
        assert set(found) == set(expected), (graph, x, y, allowed)
        numbers.add(len(found))
    assert numbers >= {0, 1}
    ladder = CausalGraph.dag([("a", "x"), ("a", "b"), ("b", "y"), ("c", "x"), ("c", "d"), ("d", "y")])
    either = {frozenset({one, other}) for one in "ab" for other in "cd"}
    assert set(minimal_separators(ladder, "x", "y", frozenset("abcd"))) == either
    assert set(minimal_separators(ladder, "x", "y", frozenset("bcd"))) == {frozenset("bc"), frozenset("bd")}


def test_districts_are_torn_or_joined() -> None:
    graph = CausalGraph.admg([("a", "b"), ("c", "d")], [("a", "c"), ("c", "d"), ("b", "e")])
    assert districts(graph, frozenset("abcde")) == ({"a", "c", "d"}, {"b", "e"})
    assert districts(graph, frozenset("abde")) == ({"a"}, {"b", "e"}, {"d"})


@pytest.mark.parametrize(
    ("into", "out_of", "left"),
    [("", "", "ab bc a~b"), ("b", "", "bc"), ("", "b", "ab a~b"), ("c", "a", "a~b")],
)
def test_another_arrow_is_removed(into: str, out_of: str, left: str) -> None:
    graph = CausalGraph.admg([("a", "b"), ("b", "c")], [("a", "b")])
    kept = mutilated(graph, into, out_of)
    edges = {f"{a}{b}" for a, b in kept.directed} | {f"{a}~{b}" for a, b in kept.bidirected}
    assert edges == set(left.split())
