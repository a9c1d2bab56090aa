from __future__ import annotations

from collections import defaultdict
from itertools import combinations, product

import numpy as np
import pytest

from causaldao.errors import ConfigurationError, MisuseError
from causaldao.models.graph import CausalGraph
from causaldao.models.pattern import cpdag_of, extension, extensions, meek, nearest_extension, pattern, shd
from tests.counts import count
from tests.models.random_models import names, orientations, random_dag


def _pdags(d: int) -> list[CausalGraph]:
    """Every partially directed graph on d nodes whose directed part is acyclic."""
    nodes, found = names(d), []
    pairs = list(combinations(nodes, 2))
    for marks in product(range(4), repeat=len(pairs)):
        directed = [p if m == 1 else p[::-1] for p, m in zip(pairs, marks, strict=True) if m in (1, 2)]
        lines = [p for p, m in zip(pairs, marks, strict=True) if m == 3]
        try:
            found.append(CausalGraph.cpdag(directed, lines, nodes))
        except ConfigurationError:
            continue
    return found


def _extensions(graph: CausalGraph, cache: dict[tuple, list[CausalGraph]]) -> list[CausalGraph]:
    """All consistent extensions, by brute force: same skeleton, directed edges and unshielded colliders."""
    key = (graph.nodes, graph.skeleton())
    if key not in cache:
        cache[key] = orientations(sorted(key[1]), list(graph.nodes))
    colliders = graph.unshielded_colliders()
    return [d for d in cache[key] if graph.directed <= d.directed and d.unshielded_colliders() == colliders]


def test_extension_and_closure_agree_with_brute_force_on_every_pdag_of_up_to_four_nodes() -> None:
    cache: dict[tuple, list[CausalGraph]] = {}
    graphs = [graph for d in range(1, 5) for graph in _pdags(d)]
    refused = 0
    for graph in graphs:
        members, got = _extensions(graph, cache), extension(graph)
        nearest, added = nearest_extension(graph)
        refused += got is None
        if not members:
            assert got is None, graph
            assert added
            assert nearest.skeleton() == graph.skeleton()
            assert graph.directed <= nearest.directed
            continue
        assert got in members, graph
        assert (nearest, added) == (got, frozenset())
        # Meek (1995): complete, also with background knowledge, which every mark here may be
        assert meek(graph).directed == frozenset.intersection(*(member.directed for member in members)), graph
    assert len(graphs) > 3600
    assert refused > 100


def test_the_dags_of_a_class_are_others_than_brute_force_finds() -> None:
    cache: dict[tuple, list[CausalGraph]] = {}
    for graph in _pdags(3) + [cpdag_of(random_dag(np.random.default_rng(seed), 5)) for seed in range(20)]:
        found = extensions(graph, 1000)
        assert len(set(found)) == len(found)
        assert set(found) == set(_extensions(graph, cache)), graph
        assert extensions(graph, 1) == found[:1]


def test_the_cpdag_is_what_the_equivalence_class_shares_by_brute_force() -> None:
    for seed in range(count(60, 600)):
        rng = np.random.default_rng(seed)
        dag = random_dag(rng, int(rng.integers(2, 6)), degree=2.5)
        members = _extensions(cpdag_of(dag), {})
        shared = frozenset.intersection(*(member.directed for member in members))
        cpdag = cpdag_of(dag)
        assert dag in members
        assert cpdag.directed == shared
        assert cpdag.skeleton() == dag.skeleton()
        assert all(cpdag_of(member) == cpdag for member in members)


def test_the_interventional_cpdag_is_what_dags_with_the_same_cuts_share_by_brute_force() -> None:
    more = 0
    for seed in range(count(20, 400)):
        rng = np.random.default_rng(seed)
        dag = random_dag(rng, 5, degree=2.5)
        targets = [frozenset(n for n in dag.nodes if rng.random() < 0.3) for _ in range(int(rng.integers(1, 4)))]

        def cut(member: CausalGraph, sets: list[frozenset[str]]) -> list[frozenset[tuple[str, str]]]:
            """The skeletons that are left without the edges into each set of targets."""
            left = [[(min(a, b), max(a, b)) for a, b in member.directed if b not in held] for held in sets]
            return [frozenset(pairs) for pairs in left]

        members = [d for d in orientations(sorted(dag.skeleton()), list(dag.nodes)) if cpdag_of(d) == cpdag_of(dag)]
        same = [member for member in members if cut(member, targets) == cut(dag, targets)]
        shared = frozenset.intersection(*(member.directed for member in same))
        assert cpdag_of(dag, targets).directed == shared, seed
        assert cpdag_of(dag, [frozenset()]) == cpdag_of(dag)
        more += len(shared) > len(cpdag_of(dag).directed)
    assert more > 5


def test_a_cpdag_comes_back_from_its_extension_and_from_its_pattern() -> None:
    for seed in range(count(40, 400)):
        rng = np.random.default_rng(seed)
        cpdag = cpdag_of(random_dag(rng, int(rng.integers(2, 13)), degree=3))
        dag = extension(cpdag)
        assert dag is not None
        assert cpdag_of(dag) == cpdag
        assert pattern(cpdag.skeleton(), cpdag.unshielded_colliders(), cpdag.nodes) == cpdag
        assert meek(cpdag) == cpdag


def test_the_extension_does_not_depend_on_the_order_of_nodes() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cpdag = cpdag_of(random_dag(rng, 8, degree=3))
        shuffled = CausalGraph.cpdag(cpdag.directed, cpdag.undirected, list(rng.permutation(cpdag.nodes)))
        assert extension(shuffled) == extension(cpdag)


def test_the_extension_takes_sinks_in_the_order_of_the_names() -> None:
    assert extension(CausalGraph.cpdag(undirected=[("a", "b")])) == CausalGraph.dag([("b", "a")])


def test_a_square_without_colliders_has_no_extension_and_the_nearest_adds_one() -> None:
    square = CausalGraph.cpdag(undirected=[("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")])
    assert extension(square) is None
    dag, added = nearest_extension(square)
    assert added == dag.unshielded_colliders()
    assert len(added) == 1


def test_rule_four_acts_on_background_knowledge() -> None:
    edges = [("a", "b"), ("a", "c"), ("a", "d")]
    graph = CausalGraph.cpdag([("c", "d"), ("d", "b")], edges)
    assert ("a", "b") in meek(graph).directed


@pytest.mark.parametrize(
    ("colliders", "directed", "words"),
    [
        ([("a", "b", "c"), ("b", "c", "d")], (), ["(b, c, d)", "b -> c", "(a, b, c)", "c -> b"]),
        ([("a", "b", "c")], [("b", "a")], ["(a, b, c)", "directed edge b -> a"]),
        ([("a", "b", "d")], (), ["b", "d", "skeleton lacks"]),
        ((), [("a", "d")], ["a -> d", "skeleton lacks"]),
        ((), [("b", "c"), ("c", "b")], ["b -> c", "c -> b"]),
        ((), [("a", "b"), ("d", "c")], ["further unshielded collider"]),
    ],
)
def test_marks_that_clash_are_named(colliders, directed, words) -> None:
    with pytest.raises(ConfigurationError) as caught:
        pattern([("a", "b"), ("b", "c"), ("c", "d")], colliders, "abcd", directed)
    for word in words:
        assert word in str(caught.value)


def test_a_shielded_collider_and_a_cycle_are_refused() -> None:
    triangle = [("a", "b"), ("b", "c"), ("c", "a")]
    with pytest.raises(ConfigurationError, match="adjacent"):
        pattern(triangle, [("a", "b", "c")])
    with pytest.raises(ConfigurationError, match="cycle: a -> b -> c -> a"):
        pattern(triangle, [], directed=triangle)


def test_graphs_with_other_marks_are_refused() -> None:
    with pytest.raises(MisuseError, match="a <-> b"):
        meek(CausalGraph.admg([], [("a", "b")]))
    with pytest.raises(MisuseError, match="Extend it first"):
        cpdag_of(CausalGraph.cpdag(undirected=[("a", "b")]))


def test_shd_counts_each_pair_that_differs_once() -> None:
    one = CausalGraph.cpdag([("a", "b"), ("b", "c")], [("c", "d")])
    two = CausalGraph.cpdag([("b", "a"), ("c", "d")], [("a", "c")], "abcd")
    assert shd(one, two) == shd(two, one) == 4
    assert shd(one, one) == 0
    with pytest.raises(MisuseError, match=r"\['d'\]"):
        shd(one, CausalGraph.dag([], nodes="abc"))


def test_equivalent_dags_have_one_cpdag_and_others_another() -> None:
    classes = defaultdict(set)
    for dag in (d for p in _pdags(3) if p.is_dag for d in [p]):
        classes[cpdag_of(dag)].add((dag.skeleton(), dag.unshielded_colliders()))
    assert len(classes) == 11
    assert all(len(members) == 1 for members in classes.values())


def test_nothing_is_concluded_from_an_ambiguous_triple() -> None:
    chain = CausalGraph.cpdag([("a", "b")], [("b", "c")])
    assert meek(chain).directed == {("a", "b"), ("b", "c")}
    assert meek(chain, [("a", "b", "c")]) == chain
    assert meek(chain, [("a", "c", "b")]).directed == {("a", "b"), ("b", "c")}, "another triple"
    kite = CausalGraph.cpdag([("c", "b"), ("d", "b")], [("a", "c"), ("a", "d"), ("a", "b")])
    assert ("a", "b") in meek(kite).directed
    assert meek(kite, [("c", "a", "d")]) == kite
