from __future__ import annotations

from dataclasses import FrozenInstanceError
from itertools import combinations, permutations
from typing import Any

import networkx as nx
import numpy as np
import pytest

from causaldao.errors import ConfigurationError, MisuseError
from causaldao.models.graph import CausalGraph, Edge, Pair
from tests.counts import count
from tests.models.random_models import names, random_dag


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CausalGraph.dag([("a", "b"), ("b", "c"), ("c", "a")]), ["a -> b -> c -> a", "reverse"]),
        (lambda: CausalGraph.dag([("a", "b"), ("b", "a")]), ["cycle: a -> b -> a", "reverse"]),
        (lambda: CausalGraph.admg([], [("a", "b"), ("b", "a")]), ["a <-> b", "twice"]),
        (lambda: CausalGraph.dag([("a", "a")]), ["a -> a", "self loop", "Remove"]),
        (lambda: CausalGraph.dag([("a", "zz")], nodes=["a"]), ["zz", "unknown", "Add them"]),
        (lambda: CausalGraph.dag([("a", "b"), ("a", "b")]), ["a -> b", "twice"]),
        (lambda: CausalGraph.cpdag([("a", "b")], [("b", "a")]), ["a - b", "a -> b", "Keep one"]),
        (lambda: CausalGraph.dag([], nodes=["a", "b", "a"]), ["a", "twice"]),
        (lambda: CausalGraph.dag([], nodes=[""]), ["''", "not empty"]),
        (lambda: CausalGraph.pag({("a", "b"): "x>"}), ["'x'", "arrow"]),
        (lambda: CausalGraph.pag({("a", "b"): ">"}), ["'>'", "two"]),
        (lambda: CausalGraph.from_json({"nodes": ["a"]}), ["edges", "nodes"]),
        (
            lambda: CausalGraph.from_json({"nodes": [], "edges": [{"from": "a", "to": "b", "marks": ["-"]}]}),
            ["marks"],
        ),
        (lambda: CausalGraph.from_json({"nodes": [1], "edges": []}), ["1", "strings"]),
    ],
)
def test_a_graph_that_is_none_is_refused_naming_the_value_and_the_remedy(build, words) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build()
    for word in words:
        assert word in str(caught.value)


def test_a_graph_cannot_be_changed() -> None:
    graph: Any = CausalGraph.dag([("a", "b")])  # the types forbid both, but not to everybody
    with pytest.raises(FrozenInstanceError):
        graph.nodes = ()
    with pytest.raises(AttributeError):
        graph.edges.add(Edge("b", "c", "-", ">"))


def test_equality_and_hash_do_not_depend_on_the_order_of_edges_or_nodes() -> None:
    edges = [("a", "b"), ("c", "b"), ("b", "d")]
    graphs = {CausalGraph.dag(order, nodes) for order in permutations(edges) for nodes in ((), "dcba")}
    assert len(graphs) == 1
    assert CausalGraph.dag(edges) != CausalGraph.dag(edges, nodes="abcde")
    assert CausalGraph.dag([("a", "b")]) != CausalGraph.dag([("b", "a")])
    assert CausalGraph.cpdag(undirected=[("a", "b")]) == CausalGraph.cpdag(undirected=[("b", "a")])
    assert CausalGraph.pag({("a", "b"): "o>"}) == CausalGraph.pag({("b", "a"): ">o"})


def test_queries_on_a_graph_with_every_kind_of_edge() -> None:
    graph = CausalGraph.pag({("a", "b"): "->", ("b", "c"): "--", ("d", "b"): ">>", ("e", "d"): "o>"}, nodes="edcba")
    assert graph.directed == {("a", "b")}
    assert graph.undirected == {("b", "c")}
    assert graph.bidirected == {("b", "d")}
    assert (graph.parents("b"), graph.children("a"), graph.neighbours("b")) == ({"a"}, {"b"}, {"c"})
    assert graph.adjacencies("b") == {"a", "c", "d"}
    assert graph.adjacent("d", "e")
    assert not graph.adjacent("a", "c")
    assert graph.skeleton() == {("a", "b"), ("b", "c"), ("b", "d"), ("d", "e")}
    assert graph.unshielded_triples() == {("a", "b", "c"), ("a", "b", "d"), ("c", "b", "d"), ("b", "d", "e")}
    assert graph.unshielded_colliders() == {("a", "b", "d"), ("b", "d", "e")}
    assert {str(edge) for edge in graph.edges} == {"a -> b", "b - c", "b <-> d", "e o-> d"}
    assert not graph.is_dag


def test_ancestors_and_descendants_include_the_nodes_themselves() -> None:
    graph = CausalGraph.dag([("a", "b"), ("b", "c"), ("x", "c")])
    assert graph.ancestors("b") == {"a", "b"}
    assert graph.descendants(["a", "x"]) == {"a", "b", "c", "x"}
    assert graph.ancestors([]) == frozenset()


def test_topological_order_breaks_ties_by_the_order_of_the_nodes() -> None:
    edges = [("z", "a"), ("b", "a")]
    assert CausalGraph.dag(edges, nodes="zcba").topological_order() == ("z", "c", "b", "a")
    assert CausalGraph.dag(edges).topological_order() == ("b", "z", "a")


def test_an_unknown_node_or_an_undefined_question_is_misuse() -> None:
    graph = CausalGraph.cpdag(undirected=[("a", "b")])
    with pytest.raises(MisuseError, match=r"'zz' is not a node.*a, b"):
        graph.parents("zz")
    with pytest.raises(MisuseError, match="separation is not defined for a - b"):
        graph.d_separated("a", "b")
    with pytest.raises(MisuseError, match="topological order"):
        graph.topological_order()
    with pytest.raises(MisuseError, match=r"disjoint.*\['a'\]"):
        CausalGraph.dag([("a", "b")]).d_separated("a", "b", "a")
    with pytest.raises(MisuseError, match="permutation"):
        graph.adjacency(["a"])


def test_adjacency_follows_the_order_asked_for() -> None:
    graph = CausalGraph.cpdag([("a", "b")], [("b", "c")])
    matrix = graph.adjacency(["b", "a", "c"])
    assert matrix.dtype == np.bool_
    assert np.argwhere(matrix).tolist() == [[1, 0]]


def test_with_nodes_adds_and_reorders_without_losing_any() -> None:
    graph = CausalGraph.dag([("a", "b")]).with_nodes(["c", "b"])
    assert graph.nodes == ("c", "b", "a")
    assert graph.directed == {("a", "b")}


@pytest.mark.parametrize(
    "graph",
    [
        CausalGraph.dag([("a", "b"), ("c", "b")], nodes="cbad"),
        CausalGraph.cpdag([("a", "b")], [("b", "c")]),
        CausalGraph.admg([("a", "b")], [("a", "b"), ("b", "c")]),
        CausalGraph.pag({("a", "b"): "oo", ("b", "c"): "o>", ("c", "d"): "-o"}),
        CausalGraph.dag([]),
    ],
)
def test_json_round_trip_keeps_nodes_marks_and_text(graph: CausalGraph) -> None:
    data = graph.to_json()
    assert CausalGraph.from_json(data) == graph
    assert CausalGraph.from_json(data).nodes == graph.nodes
    assert CausalGraph.from_json(data).to_json() == data


def test_json_has_the_documented_form() -> None:
    assert CausalGraph.dag([("b", "a")]).to_json() == {
        "nodes": ["a", "b"],
        "edges": [{"from": "b", "to": "a", "marks": ["-", ">"]}],
    }


def test_networkx_gets_a_digraph_of_a_dag_and_marks_of_the_rest() -> None:
    dag = CausalGraph.dag([("a", "b")], nodes="abc").to_networkx()
    assert type(dag) is nx.DiGraph
    assert set(dag.nodes) == set("abc")
    bow = CausalGraph.admg([("a", "b")], [("a", "b")]).to_networkx()
    assert isinstance(bow, nx.MultiDiGraph)
    assert sorted(marks for *_, marks in bow.edges(data="marks")) == [("-", ">"), (">", ">")]


def _questions(rng: np.random.Generator, nodes: list[str]) -> tuple[set[str], set[str], set[str]]:
    mixed = list(rng.permutation(nodes))
    cuts = sorted(rng.integers(1, len(nodes) + 1, size=2))
    x, y = mixed[: max(1, cuts[0] // 2)], mixed[max(1, cuts[0] // 2) : cuts[0] + 1]
    return set(x), set(y), set(mixed[len(x) + len(y) : max(cuts[1], len(x) + len(y))])


def test_d_separation_agrees_with_networkx_on_random_dags() -> None:
    separated = 0
    for seed in range(count(80, 1000)):
        rng = np.random.default_rng(seed)
        graph = random_dag(rng, int(rng.integers(3, 9)), degree=2.5)
        reference = graph.to_networkx()
        for _ in range(10):
            x, y, z = _questions(rng, list(graph.nodes))
            got = graph.d_separated(x, y, z)
            assert got == nx.is_d_separator(reference, x, y, z), (graph, x, y, z)
            assert got == graph.d_separated(y, x, z)
            separated += got and bool(y)
    assert separated > 30


def _random_admg(rng: np.random.Generator, d: int) -> CausalGraph:
    nodes = names(d)
    pairs = list(combinations(nodes, 2))
    directed = [pair for pair in pairs if rng.random() < 0.35]
    return CausalGraph.admg(directed, [pair for pair in pairs if rng.random() < 0.25], nodes)


def _with_latents(graph: CausalGraph) -> nx.DiGraph:
    """The DAG in which each a <-> b is a latent common parent, whose latent projection is the ADMG."""
    latents: list[Pair] = [(f"{a}~{b}", end) for a, b in graph.bidirected for end in (a, b)]
    dag = nx.DiGraph([*graph.directed, *latents])
    dag.add_nodes_from(graph.nodes)
    return dag


def test_m_separation_agrees_with_latent_projection_on_random_admgs() -> None:
    for seed in range(count(60, 600)):
        rng = np.random.default_rng(seed)
        graph = _random_admg(rng, int(rng.integers(3, 7)))
        reference = _with_latents(graph)
        for x, y in combinations(graph.nodes, 2):
            rest = [node for node in graph.nodes if node not in (x, y)]
            for size in range(len(rest) + 1):
                for z in combinations(rest, size):
                    expected = nx.is_d_separator(reference, {x}, {y}, set(z))
                    assert graph.d_separated(x, y, z) == expected, (graph, x, y, z)


def test_a_string_is_one_name_and_not_a_set_of_letters() -> None:
    graph = CausalGraph.dag([("ab", "c"), ("a", "d")])
    assert graph.ancestors("ab") == {"ab"}
    assert not graph.d_separated("ab", "c")
