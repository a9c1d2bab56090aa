from __future__ import annotations

from typing import Any

import pytest

from causaldao.errors import ConfigurationError
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge


def test_what_is_allowed_follows_from_required_forbidden_and_tiers() -> None:
    knowledge = Knowledge(frozenset({("a", "b")}), frozenset({("c", "d")}), {"young": 0, "old": 2})
    assert knowledge.allows("a", "b")
    assert not knowledge.allows("b", "a")
    assert not knowledge.allows("c", "d")
    assert knowledge.allows("d", "c")
    assert knowledge.allows("young", "old")
    assert not knowledge.allows("old", "young")
    assert knowledge.allows("old", "a"), "a has no tier, so nothing is said"
    assert knowledge.allows("x", "y")


def test_a_pair_is_excluded_only_if_neither_direction_is_allowed() -> None:
    knowledge = Knowledge(forbidden=frozenset({("a", "b"), ("b", "a"), ("young", "old")}), tiers={"young": 0, "old": 1})
    assert knowledge.adjacency_excluded("a", "b")
    assert knowledge.adjacency_excluded("old", "young"), "one direction is forbidden, the other against time"
    assert not knowledge.adjacency_excluded("a", "old")


def test_only_possible_parents_are_conditioned_on() -> None:
    knowledge = Knowledge(tiers={"now": 0, "later": 1})
    assert knowledge.conditioning_allowed("later", "now")
    assert not knowledge.conditioning_allowed("now", "later")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Knowledge({("a", "b")}, {("a", "b")}), ["a -> b is both required and forbidden"]),
        (lambda: Knowledge({("a", "b"), ("b", "a")}), ["a -> b and b -> a are both required"]),
        (lambda: Knowledge({("a", "b"), ("b", "c"), ("c", "a")}), ["cycle", "a -> b -> c -> a"]),
        (lambda: Knowledge({("a", "b")}, tiers={"a": 3, "b": 1}), ["a -> b", "tier 3", "tier 1"]),
        (lambda: Knowledge({("a", "a")}), ["('a', 'a')", "two different names"]),
        (lambda: Knowledge({("a", "b", "c")}), ["'c'", "pairs"]),
        (lambda: Knowledge({"ab"}), ["'ab'", "pairs"]),
        (lambda: Knowledge("ab"), ["'ab'", "list of pairs"]),
        (lambda: Knowledge(tiers={"a": 0.5}), ["'a'", "0.5", "integer"]),
        (lambda: Knowledge(tiers=[("a", 0)]), ["table"]),
        (lambda: Knowledge.from_json({"tier": {}}), ["'tier'", "tiers"]),
        (lambda: Knowledge.from_toml("required = ["), ["TOML"]),
        (lambda: Knowledge.from_toml("required = 3"), ["required", "3"]),
    ],
)
def test_knowledge_that_contradicts_itself_is_refused_naming_the_clash(build, words) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build()
    for word in words:
        assert word in str(caught.value)


def test_all_clashes_are_listed_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Knowledge({("a", "b"), ("c", "d")}, {("a", "b"), ("c", "d")})
    assert len(caught.value.problems) == 2


def test_unknown_names_are_listed_together() -> None:
    knowledge = Knowledge({("a", "zz")}, {("yy", "a")}, {"xx": 0})
    with pytest.raises(ConfigurationError, match=r"\['xx', 'yy', 'zz'\].*a, b"):
        knowledge.check(["b", "a"])
    knowledge.check(["a", "xx", "yy", "zz"])


def test_merge_joins_and_names_clashes() -> None:
    one = Knowledge({("a", "b")}, tiers={"a": 0})
    both = one.merge(Knowledge(forbidden={("c", "a")}, tiers={"a": 0, "c": 1}))
    assert both == Knowledge({("a", "b")}, {("c", "a")}, {"a": 0, "c": 1})
    assert one.merge(NONE) == NONE.merge(one) == one
    with pytest.raises(ConfigurationError, match="both required and forbidden"):
        one.merge(Knowledge(forbidden={("a", "b")}))
    with pytest.raises(ConfigurationError, match="tier 0 and in tier 4"):
        one.merge(Knowledge(tiers={"a": 4}))


def test_toml_and_json_round_trips() -> None:
    text = 'required = [["smoking", "tar"]]\nforbidden = [["cancer", "age"]]\ntiers = { age = 0, cancer = 2 }\n'
    knowledge = Knowledge({("smoking", "tar")}, {("cancer", "age")}, {"age": 0, "cancer": 2})
    assert Knowledge.from_toml(text) == knowledge
    assert Knowledge.from_toml("[knowledge]\n" + text) == knowledge
    assert Knowledge.from_json(knowledge.to_json()) == knowledge
    assert hash(Knowledge.from_json(knowledge.to_json())) == hash(knowledge)
    assert Knowledge.from_toml("") == NONE
    assert not NONE


def test_tiers_cannot_be_changed() -> None:
    tiers = {"a": 0}
    knowledge: Any = Knowledge(tiers=tiers)  # the types forbid the last line, but not to everybody
    tiers["a"] = 5
    assert knowledge.tiers["a"] == 0
    with pytest.raises(TypeError):
        knowledge.tiers["a"] = 1


def test_orient_directs_what_is_forced_and_what_follows() -> None:
    graph = CausalGraph.cpdag(undirected=[("a", "b"), ("b", "c"), ("x", "y")])
    assert Knowledge({("a", "b")}).orient(graph) == CausalGraph.cpdag([("a", "b"), ("b", "c")], [("x", "y")])
    assert Knowledge(tiers={"x": 1, "y": 0}).orient(graph).directed == {("y", "x")}
    assert NONE.orient(graph) == graph


def test_orient_names_an_edge_that_the_knowledge_rules_out() -> None:
    graph = CausalGraph.cpdag([("a", "b")], [("b", "c")])
    with pytest.raises(ConfigurationError, match="a -> b, which the knowledge rules out"):
        Knowledge({("b", "a")}).orient(graph)
    with pytest.raises(ConfigurationError, match="b and c are adjacent"):
        Knowledge(forbidden={("b", "c"), ("c", "b")}).orient(graph)
    with pytest.raises(ConfigurationError, match="unknown"):
        Knowledge({("b", "q")}).orient(graph)
