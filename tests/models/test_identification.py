"""Identification against enumeration: models with explicit latents, and for each refusal two models that force it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import networkx as nx
import numpy as np
import pytest

import causaldao
from causaldao.errors import ConfigurationError, MisuseError, NotIdentifiable
from causaldao.models.estimand import Estimand, Table
from causaldao.models.graph import CausalGraph
from causaldao.models.hedge import Hedge
from causaldao.models.identification import adjustment_set, identify
from causaldao.models.pattern import cpdag_of
from causaldao.models.shpitser import idc
from tests.counts import count
from tests.models.hedge_models import Pair
from tests.models.latent_models import BinaryModel, random_admg
from tests.models.test_adjustment import members, random_pattern

BOW = CausalGraph.admg([("x", "y")], [("x", "y")])
FRONT_DOOR = CausalGraph.admg([("x", "m"), ("m", "y")], [("x", "y")])
TWO_MEDIATORS = CausalGraph.admg([("x", "a"), ("x", "b"), ("a", "y"), ("b", "y")], [("x", "y")])
NAPKIN = CausalGraph.admg([("w", "z"), ("z", "x"), ("x", "y")], [("w", "x"), ("w", "y")])

Question = tuple[CausalGraph, tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def questions(seed: int, number: int, conditions: bool) -> Iterator[Question]:
    """Random ADMGs of up to six nodes, each with disjoint sets of treatments, outcomes and conditions."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        d = int(rng.integers(2 + conditions, 7))
        graph = random_admg(rng, d, rng.uniform(0.3, 0.8), rng.uniform(0.05, 0.45))
        mixed = [str(name) for name in rng.permutation(graph.nodes)]
        x, y = (min(int(rng.choice([1, 1, 1, 2])), d - 1 - conditions) for _ in range(2))
        y = min(y, d - x - conditions)
        z = int(rng.integers(1, min(2, d - x - y) + 1)) if conditions else 0
        yield graph, tuple(mixed[:x]), tuple(mixed[x : x + y]), tuple(mixed[x + y : x + y + z])


def refusal(graph: CausalGraph, x: tuple[str, ...], y: tuple[str, ...], z: tuple[str, ...]) -> Hedge | None:
    try:
        identify(graph, x, y, z)
    except NotIdentifiable as error:
        hedge = error.hedge
    else:
        return None
    assert isinstance(hedge, Hedge)
    return hedge


def assert_right(estimand: Estimand, model: BinaryModel) -> None:
    right = model.effect(estimand.treatment, estimand.outcome, estimand.conditions)
    np.testing.assert_allclose(estimand.evaluate(model.under()).values, right, atol=1e-9, rtol=0, err_msg=str(estimand))


def raw(graph: CausalGraph, estimand: Estimand) -> Estimand:
    """What IDC alone finds, where identify may have taken the formula of a criterion."""
    x, y, z = estimand.treatment, estimand.outcome, estimand.conditions
    return Estimand(x, y, z, idc(graph, frozenset(y), frozenset(x), frozenset(z)).expression, "ID")


@pytest.mark.parametrize("conditions", [False, True], ids=["do", "do and see"])
def test_an_estimand_has_another_value_than_the_intervention(conditions: bool) -> None:
    rng = np.random.default_rng(1)
    methods: dict[str, int] = {}
    for graph, x, y, z in questions(10 + conditions, count(100, 2000), conditions):
        if refusal(graph, x, y, z) is None:
            estimand, model = identify(graph, x, y, z), BinaryModel.draw(rng, graph)
            assert_right(estimand, model)
            assert_right(raw(graph, estimand), model)
            assert estimand.latex.count("{") == estimand.latex.count("}")
            methods[estimand.method] = methods.get(estimand.method, 0) + 1
    assert set(methods) >= ({"ID"} if conditions else {"ID", "adjustment", "none"}), methods


def is_forest(forest: CausalGraph, roots: frozenset[str]) -> bool:
    """A C-forest by its definition: a tree of bidirected edges, at most one child each, the childless are the roots."""
    tree = nx.Graph(list(forest.bidirected))
    tree.add_nodes_from(forest.nodes)
    children = {node: sum(a == node for a, _ in forest.directed) for node in forest.nodes}
    return (
        nx.is_tree(tree)
        and max(children.values()) <= 1
        and {node for node, number in children.items() if number == 0} == roots
        and len(forest.edges) == len(forest.directed) + len(forest.bidirected)
    )


def is_hedge(graph: CausalGraph, hedge: Hedge) -> bool:
    """The definition of Shpitser & Pearl, with networkx, sharing nothing with what is tested."""
    outer, inner = hedge.outer, hedge.inner
    past = nx.DiGraph([(a, b) for a, b in graph.directed if b not in hedge.treatment])
    past.add_nodes_from(graph.nodes)
    above = set(hedge.outcome).union(*(nx.ancestors(past, name) for name in hedge.outcome))
    return (
        outer.edges <= graph.edges
        and inner.edges <= outer.edges
        and set(inner.nodes) <= set(outer.nodes)
        and is_forest(outer, hedge.roots)
        and is_forest(inner, hedge.roots)
        and bool(hedge.treatment & set(outer.nodes))
        and not hedge.treatment & set(inner.nodes)
        and hedge.roots <= above
    )


@pytest.mark.parametrize("conditions", [False, True], ids=["do", "do and see"])
def test_a_refusal_comes_without_a_hedge(conditions: bool) -> None:
    found = 0
    for graph, x, y, z in questions(10 + conditions, count(100, 2000), conditions):
        if (hedge := refusal(graph, x, y, z)) is not None:
            assert is_hedge(graph, hedge), (graph, x, y, z)
            assert set(x) <= hedge.treatment <= {*x, *z}
            assert hedge.treatment | hedge.outcome == {*x, *y, *z}
            found += 1
    assert found >= 10


def test_a_refused_effect_could_have_been_told_from_the_data() -> None:
    """Two positive models, equal in all that is observed, different under the intervention: no formula can be right."""
    shown = 0
    for graph, x, y, _ in questions(12, count(60, 1500), conditions=False):
        if (hedge := refusal(graph, x, y, ())) is not None:
            pair = Pair.of(graph, hedge)
            first, second = pair.distribution(False), pair.distribution(True)
            assert first.min() > 0
            assert first.sum() == pytest.approx(1, abs=1e-12)
            np.testing.assert_allclose(first, second, atol=1e-12, rtol=0, err_msg=str(graph))
            assert np.abs(pair.effect(False) - pair.effect(True)).max() > 1e-3, (graph, x, y)
            shown += 1
    assert shown >= count(5, 100)


def test_the_bow_arc_passes_for_identified() -> None:
    with pytest.raises(NotIdentifiable, match=r"x <-> y.*by lot") as caught:
        identify(BOW, "x", "y")
    hedge = caught.value.hedge
    assert isinstance(hedge, Hedge)
    assert (hedge.outer, set(hedge.inner.nodes), hedge.roots) == (BOW, {"y"}, {"y"})
    assert caught.value.details["hedge"]["roots"] == ["y"]


def test_the_front_door_prints_as_another_formula_than_the_textbook() -> None:
    estimand = identify(FRONT_DOOR, "x", "y")
    assert str(estimand) == "P(y | do(x)) = Σ_m P(m | x) Σ_x' P(y | m, x') P(x')"
    assert estimand.latex == (r"P(y \mid \mathrm{do}(x)) = \sum_{m} P(m \mid x) \sum_{x'} P(y \mid m, x') P(x')")
    assert estimand.method == "front-door"
    assert raw(FRONT_DOOR, estimand).text == estimand.text


def test_two_mediators_close_the_front_door() -> None:
    estimand = identify(TWO_MEDIATORS, "x", "y")
    assert estimand.text == "Σ_{a, b} P(a, b | x) Σ_x' P(y | a, b, x') P(x')"
    confounded = CausalGraph.admg(TWO_MEDIATORS.directed, [("x", "y"), ("a", "b")])
    for seed, graph in enumerate([TWO_MEDIATORS, confounded]):
        found = identify(graph, "x", "y")
        model = BinaryModel.draw(np.random.default_rng(seed), graph)
        assert found.method == "front-door"
        assert_right(found, model)
        assert_right(raw(graph, found), model)


def test_the_napkin_has_the_wrong_ratio() -> None:
    estimand = identify(NAPKIN, "x", "y")
    assert str(estimand) == "P(y | do(x)) = [Σ_w P(x, y | w, z) P(w)] / [Σ_w P(x | w, z) P(w)]  for any z"
    model = BinaryModel.draw(np.random.default_rng(3), NAPKIN)
    assert_right(estimand, model)
    joint = model.under()  # by hand, at each z by itself: axes w, x, y, z
    assert joint.names == ("w", "x", "y", "z")
    w = joint.values.sum(axis=(1, 2, 3))
    given = joint.values / joint.values.sum(axis=(1, 2), keepdims=True)
    ratio = np.einsum("wxyz,w->xyz", given, w) / np.einsum("wxyz,w->xz", given, w)[:, None]
    for level in range(2):
        np.testing.assert_allclose(ratio[..., level], estimand.evaluate(joint).values, atol=1e-12)


def test_adjustment_is_not_preferred_where_it_serves() -> None:
    estimand = identify(CausalGraph.dag([("c", "x"), ("c", "y"), ("x", "y")]), "x", "y")
    assert estimand.text == "Σ_c P(y | c, x) P(c)"
    assert estimand.method == "adjustment"
    assert any("c" in sentence for sentence in estimand.why)


def test_setting_a_consequence_is_thought_to_change_its_cause() -> None:
    estimand = identify(CausalGraph.admg([("x", "y")], [("x", "y")]), "y", "x")
    assert (estimand.text, estimand.method) == ("P(x)", "none")


def test_a_condition_is_taken_for_an_intervention_or_the_reverse() -> None:
    dag = CausalGraph.dag([("c", "x"), ("c", "y"), ("x", "y"), ("y", "s")])
    assert identify(dag, "x", "y", "c").text == "P(y | c, x)"
    selected = identify(dag, "x", "y", "s")  # a consequence of y is seen, not set
    assert {"c", "s", "x", "y"} <= set(selected.text)
    assert_right(selected, BinaryModel.draw(np.random.default_rng(4), dag))


def test_members_of_a_class_disagree_on_what_was_identified() -> None:
    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(count(40, 600)):
        pattern = random_pattern(rng, int(rng.integers(3, 6)))
        x, y = (str(name) for name in rng.choice(pattern.nodes, 2, replace=False))
        try:
            estimand = identify(pattern, x, y)
        except NotIdentifiable as error:
            named = [(a, b) for a, b in pattern.undirected if {f"{a} - {b}", f"{b} - {a}"} & _edges(error.message)]
            seen.add("refused" if named and error.hedge is None else f"refused without a reason: {error}")
            continue
        model = BinaryModel.draw(rng, (dags := members(pattern))[0])
        for dag in dags:  # each has other factors of the one observed distribution: its own identification tells them
            other = identify(dag, x, y)
            values = [found.evaluate(model.under()).values for found in (estimand, other)]
            np.testing.assert_allclose(*values, atol=1e-9, rtol=0)
        assert_right(estimand, model)
        seen.add("answered in a class" if pattern.undirected else "answered")
    assert seen == {"refused", "answered in a class", "answered"}


def _edges(message: str) -> set[str]:
    return set(re.findall(r"\w+ - \w+", message))


def test_an_undirected_edge_that_decides_is_not_named() -> None:
    pattern = cpdag_of(CausalGraph.dag([("x", "m"), ("m", "y")]))
    with pytest.raises(NotIdentifiable, match=r"x - m is undirected.*knowledge") as caught:
        identify(pattern, "x", "y")
    assert caught.value.hedge is None
    assert caught.value.details == {}
    joint = CausalGraph.cpdag([], [("a", "b")], ["a", "b", "y"])
    with pytest.raises(NotIdentifiable, match="a - b is undirected"):
        identify(joint, ["a", "y"], "b")


def test_what_adjustment_cannot_do_is_given_up() -> None:
    with pytest.raises(NotIdentifiable, match="Ask identify"):
        adjustment_set(FRONT_DOOR, "x", "y")
    assert identify(FRONT_DOOR, "x", "y").method == "front-door"


@pytest.mark.parametrize(
    ("x", "y", "z", "message"),
    [
        ("x", "x", (), "x is both treatment and outcome.*another outcome"),
        (["x", "m"], ["m", "y"], (), "m is both treatment and outcome"),
        ("q", "y", (), "no node q.*It has m, x, y"),
        ("x", "q", (), "no node q"),
        ("x", "y", "q", "no node q"),
        ("x", "y", "y", "y stands in two roles"),
        ("x", "y", ["m", "x"], "x stands in two roles"),
        ((), "y", (), r"treatment=\(\)"),
        ("x", (), (), r"outcome=\(\)"),
    ],
)
def test_a_wrong_question_is_answered(x: Any, y: Any, z: Any, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        identify(FRONT_DOOR, x, y, z)


@pytest.mark.parametrize(
    "graph",
    [
        CausalGraph.pag({("x", "y"): "o>"}),
        CausalGraph.pag({("x", "y"): "oo"}),
        CausalGraph.pag({("x", "m"): "--", ("m", "y"): ">>"}),
    ],
    ids=str,
)
def test_marks_that_are_left_open_are_read_as_arrows(graph: CausalGraph) -> None:
    with pytest.raises(MisuseError, match="direct its edges"):
        identify(graph, "x", "y")


def test_a_cycle_is_walked_round() -> None:
    with pytest.raises(ConfigurationError, match=r"cycle: .*remove or reverse"):
        identify(CausalGraph.admg([("x", "y"), ("y", "x")]), "x", "y")


def test_the_public_name_leads_elsewhere() -> None:
    assert causaldao.identify is identify


def test_a_joint_of_more_variables_or_in_another_order_changes_the_value() -> None:
    estimand = identify(FRONT_DOOR, "x", "y")
    joint = BinaryModel.draw(np.random.default_rng(6), FRONT_DOOR).under()
    turned = Table(("y", "u", "x", "m"), np.stack([joint.values.transpose(2, 1, 0) / 2] * 2, axis=1))
    np.testing.assert_allclose(estimand.evaluate(turned).values, estimand.evaluate(joint).values, atol=1e-15)
