"""Explanations against planted graphs: each number is that of `partial` and of the score, each reason a true one."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from causaldao.errors import ConfigurationError, MisuseError
from causaldao.models.discovery import search
from causaldao.models.discovery.evidence import Evidence, partial
from causaldao.models.discovery.explain import Explanation, explain
from causaldao.models.discovery.found import Discovery
from causaldao.models.discovery.score import PENALTY, Score
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of, extension, meek
from causaldao.models.separators import minimal_separators
from tests.counts import count
from tests.models.random_models import dag_of, noisy, population, sample, weights

# y-structure: a -> c <- b, c -> d; and w - v apart
Y = CausalGraph.dag([("a", "c"), ("b", "c"), ("c", "d"), ("v", "w")])
PLANTED = np.zeros((6, 6))
for _pair in Y.directed:
    PLANTED[Y.nodes.index(_pair[0]), Y.nodes.index(_pair[1])] = 0.8


def planted(n: float = 1e4) -> Evidence:
    exact = population(PLANTED, n)
    return Evidence(Y.nodes, exact.moments)


def by_pair(explanations: list[Explanation]) -> dict[Pair, Explanation]:
    return {explanation.pair: explanation for explanation in explanations}


@pytest.mark.parametrize("method", ["boss", "pc", "ges"])
def test_the_reasons_of_a_planted_graph_are_others(method: str) -> None:
    found = by_pair(explain(planted(), search(planted(), method)))
    kinds = {pair: [reason.kind for reason in found[pair].reasons] for pair in found}
    assert kinds["a", "c"] == kinds["b", "c"] == ["collider"]
    assert kinds["c", "d"] == ["meek"]
    assert kinds["v", "w"] == ["open"]
    assert found["a", "c"].reasons[0].others == ("b",)
    assert (
        "the empty set, which separates them, lacks c, and given c as well they are dependent" in found["a", "c"].text
    )
    assert "c -> d because a -> c and a, d are not adjacent" in found["c", "d"].text
    assert "(Meek's rule 1)" in found["c", "d"].text
    assert "v -> w and w -> v both fit" in found["v", "w"].text
    assert "a, d: no edge, because {c} separates them: partial correlation" in found["a", "d"].text
    assert "a, b: no edge, because the empty set separates them" in found["a", "b"].text


def test_a_pag_is_explained_as_if_it_were_a_dag() -> None:
    found = by_pair(explain(planted(), search(planted(), "fci")))
    assert [reason.kind for reason in found["a", "c"].reasons] == ["open", "collider"]
    assert [reason.kind for reason in found["c", "d"].reasons] == ["rules", "rules"]
    assert "c causes d, directly or through others" in found["c", "d"].text
    assert "Whether a causes c is not settled" in found["a", "c"].text
    bare = by_pair(explain(planted(), search(planted(), "fci").graph))
    assert bare["a", "d"].test is not None
    assert bare["a", "d"].test.given == ("c",)


def test_knowledge_is_not_named() -> None:
    knowledge = Knowledge(forbidden={("w", "v"), ("a", "d"), ("d", "a")}, tiers={"a": 0, "c": 1})
    found = by_pair(explain(planted(), search(planted(), "boss", knowledge), knowledge))
    assert [reason.kind for reason in found["v", "w"].reasons] == ["knowledge"]
    assert "v -> w because the knowledge forbids w -> v" in found["v", "w"].text
    assert "a -> c because the knowledge puts a in tier 0 and c in tier 1" in found["a", "c"].text
    assert "the knowledge rules out both directions" in found["a", "d"].text
    assert found["a", "d"].test is None
    needed = Knowledge(required={("a", "b")})
    edge = by_pair(explain(planted(), search(planted(), "pc", needed), needed))["a", "b"]
    assert "a -> b: the knowledge requires it" in edge.text
    assert "because the knowledge requires it" in edge.text


def test_each_number_is_another_than_partial_gives() -> None:
    """The test shown is the weakest, by brute force, of those over the sets of up to three neighbours of one end."""
    for seed in range(count(4, 40)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 7, 3.0, 0.2, 0.9)
        evidence = Evidence.from_data(sample(rng, matrix, 400))
        if seed % 2:
            evidence = noisy(evidence, 5.0, rng)
        graph = cpdag_of(dag_of(matrix))
        for found in explain(evidence, graph):
            assert found.test is not None
            shown = partial(evidence, *found.pair, found.test.given)
            assert found.test.correlation == shown.correlation
            p = math.erfc(abs(shown.z) / shown.standard_error / math.sqrt(2))
            assert found.test.p_value == pytest.approx(p, rel=1e-12, abs=0.0)
            if found.edge is None:
                dag = extension(graph)
                assert dag is not None
                assert dag.d_separated(*found.pair, found.test.given)
                others = frozenset(graph.nodes) - set(found.pair)
                separators = [sorted(s) for s in minimal_separators(dag, *found.pair, others)]
                zs = [abs(t.z) / t.standard_error for t in (partial(evidence, *found.pair, s) for s in separators)]
                assert abs(shown.z) / shown.standard_error == pytest.approx(min(zs), rel=1e-9)
                continue
            sides = [sorted(graph.adjacencies(end) - set(found.pair)) for end in found.pair]
            sets = {given for side in sides for k in range(4) for given in combinations(side, k)}
            least = min(abs(t.z) / t.standard_error for t in (partial(evidence, *found.pair, s) for s in sets))
            assert found.tried == len(sets)
            assert abs(shown.z) / shown.standard_error == pytest.approx(least, rel=1e-9)


def test_the_loss_is_not_the_difference_of_two_scores() -> None:
    rng = np.random.default_rng(1)
    matrix = weights(rng, 6, 2.5, 0.3, 0.9)
    evidence = Evidence.from_data(sample(rng, matrix, 800))
    graph = search(evidence).graph
    dag = extension(graph)
    assert dag is not None
    score = Score.of(evidence, PENALTY, NONE, "test")

    def total(edges: set[Pair]) -> float:
        masks = {name: sum(1 << graph.nodes.index(a) for a, b in edges if b == name) for name in graph.nodes}
        return sum(score.of_parents(graph.nodes.index(name), mask) for name, mask in masks.items())

    order = dag.topological_order()
    for found in explain(evidence, graph, penalty=PENALTY):
        arrow = tuple(sorted(found.pair, key=order.index))
        changed = set(dag.directed) ^ {arrow}
        assert found.score == pytest.approx(total(set(dag.directed)) - total(changed), rel=1e-9)
        assert f"it the score falls by {found.score:.4g}" in found.text
        assert found.score > 0  # BOSS leaves nothing that one step mends
    assert all(found.score is None for found in explain(evidence, graph))


def test_an_arrow_is_explained_by_what_does_not_give_it() -> None:
    """On random graphs with random knowledge: each reason's premise stands in the graph, and no CPDAG needs
    'stated'."""
    rules = set()
    for seed in range(count(30, 600)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 6, 2.8)
        truth = dag_of(matrix)
        forced = {pair for pair in truth.directed if rng.random() < 0.25}
        knowledge = Knowledge(required=forced)
        graph = knowledge.orient(cpdag_of(truth))
        for found in explain(population(matrix, 1e5), graph, knowledge):
            if found.edge is None:
                continue
            (reason,) = found.reasons
            a, b = found.edge.a, found.edge.b
            if reason.kind == "knowledge":
                assert (a, b) in forced
            elif reason.kind == "collider":
                assert (min(a, *reason.others), b, max(a, *reason.others)) in cpdag_of(truth).unshielded_colliders()
            elif reason.kind == "meek":
                number = int(reason.text.split("Meek's rule ")[1][0])
                rules.add(number)
                first, last = reason.others[0], reason.others[-1]
                into_b = {(other, b) for other in reason.others}
                premise = {
                    1: (first, a) in graph.directed and not graph.adjacent(first, b),
                    2: {(a, first), (first, b)} <= graph.directed,
                    3: into_b <= graph.directed and not graph.adjacent(first, last),
                    4: {(first, last), (last, b)} <= graph.directed and not graph.adjacent(first, b),
                }
                assert premise[number], reason.text
            else:
                assert reason.kind == "open"
                assert (min(a, b), max(a, b)) in graph.undirected
    assert {1, 2} <= rules


def test_a_dag_is_explained_as_if_the_evidence_had_directed_it() -> None:
    (found,) = [e for e in explain(planted(), Y) if e.pair == ("v", "w")]
    assert [reason.kind for reason in found.reasons] == ["stated"]
    assert "the evidence alone fits w -> v as well" in found.text


def test_a_weak_edge_or_a_gap_that_the_test_denies_is_told_as_a_sure_one() -> None:
    rng = np.random.default_rng(0)
    evidence = Evidence.from_data(sample(rng, np.zeros((3, 3)), 200))
    chain = CausalGraph.dag([("v00", "v01")], nodes=("v00", "v01", "v02"))
    edge = by_pair(explain(evidence, chain))["v00", "v01"]
    assert "a weak edge: given the empty set it is not significant at 0.01" in edge.text
    gap = by_pair(explain(planted(), CausalGraph.dag([], nodes=Y.nodes)))["a", "c"]
    assert "no edge, although given the empty set a dependence is left" in gap.text
    assert "below 0.01" in gap.text


def test_tests_that_disagree_with_a_collider_are_not_told() -> None:
    odd = Discovery(cpdag_of(Y), separating_sets={("a", "b"): frozenset({"c"})})
    assert "the tests disagree, for {c} separated them" in by_pair(explain(planted(), odd))["a", "c"].text


def test_other_variables_are_explained() -> None:
    with pytest.raises(MisuseError, match="ghost stand only in the graph"):
        explain(planted(), CausalGraph.dag([], nodes=(*Y.nodes, "ghost")))
    with pytest.raises(MisuseError, match="alpha is 0"):
        explain(planted(), Y, alpha=0)
    with pytest.raises(ConfigurationError, match="ghost"):
        explain(planted(), meek(Y), Knowledge(tiers={"ghost": 1}))


def test_an_explanation_is_not_plain_data() -> None:
    found = explain(planted(), search(planted()), penalty=PENALTY)[0].to_json()
    assert sorted(found) == ["edge", "pair", "reasons", "score", "test", "text", "tried"]
    assert sorted(found["test"]) == ["correlation", "given", "p_value"]
    assert sorted(found["reasons"][0]) == ["kind", "others", "text"]
