from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from causaldao.errors import ConfigurationError
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import Knowledge
from causaldao.models.rules import CausalRule, CausalRuleSet

SMOKING = CausalRule("smoking", "tar", 0.9)
RULES = CausalRuleSet(
    (
        SMOKING,
        CausalRule("tar", "cancer", 0.6),
        CausalRule("smoking", "cancer", -0.2),
        CausalRule("gene", "tar", 0.0),
    )
)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a", "b", 1.5), ["strength of a -> b is 1.5", "[-1, 1]"]),
        (("a", "b", math.nan), ["strength", "nan", "finite"]),
        (("a", "b", 1, -2), ["offset", "-2", "0 or more"]),
        (("a", "b", 1, 0, -1), ["duration", "-1"]),
        (("a", "b", True), ["strength", "True"]),
        (("", "b"), ["''", "not empty"]),
        (("a", "a"), ["a -> a", "positive offset"]),
    ],
)
def test_a_rule_out_of_bounds_is_refused_naming_value_and_bound(arguments: tuple[Any, ...], words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CausalRule(*arguments)
    for word in words:
        assert word in str(caught.value)


def test_a_set_holds_many_causes_and_many_effects_in_an_order_of_its_own() -> None:
    assert len(RULES) == 4
    assert CausalRuleSet(tuple(reversed(RULES.rules))) == RULES
    assert [rule.effect for rule in RULES if rule.cause == "smoking"] == ["cancer", "tar"]
    assert SMOKING in RULES


def test_adding_leaves_the_old_set_as_it_was() -> None:
    more = RULES.add(CausalRule("tar", "cough"))
    assert (len(RULES), len(more)) == (4, 5)
    assert more.add(SMOKING) == more


def test_two_strengths_for_one_cause_effect_and_offset_clash() -> None:
    with pytest.raises(ConfigurationError, match=r"smoking -> tar at offset 0.*0\.3.*0\.9"):
        RULES.add(CausalRule("smoking", "tar", 0.3))
    assert len(RULES.add(CausalRule("smoking", "tar", 0.3, offset=1))) == 5


def test_the_graph_has_the_rules_at_offset_zero_and_all_names() -> None:
    expected = CausalGraph.dag([("smoking", "tar"), ("tar", "cancer"), ("smoking", "cancer")], RULES.names)
    assert RULES.to_graph() == expected
    assert "gene" in RULES.to_graph().nodes, "strength 0 states that there is no effect"


def test_a_cycle_at_offset_zero_is_named_and_feedback_over_time_is_none() -> None:
    feedback = RULES.add(CausalRule("cancer", "smoking", -0.5, offset=3)).add(CausalRule("tar", "tar", 0.5, offset=1))
    assert feedback.to_graph() == RULES.to_graph()
    with pytest.raises(ConfigurationError, match=r"cycle: .*cancer -> smoking"):
        feedback.to_graph(lagged=True)
    with pytest.raises(ConfigurationError, match=r"cycle: .*cancer -> smoking"):
        RULES.add(CausalRule("cancer", "smoking")).to_graph()
    assert ("tar", "pain") in CausalRuleSet((CausalRule("tar", "pain", 1, 2),)).to_graph(lagged=True).directed


def test_strong_rules_become_required_and_rules_of_none_forbidden() -> None:
    required, forbidden = frozenset({("smoking", "tar"), ("tar", "cancer")}), frozenset({("gene", "tar")})
    assert RULES.to_knowledge() == Knowledge(required, forbidden)
    assert RULES.to_knowledge(0.2).required == RULES.to_graph().directed
    with pytest.raises(ConfigurationError, match=r"threshold is 0.*\(0, 1\]"):
        RULES.to_knowledge(0)


def test_adjacency_holds_strengths_by_name() -> None:
    matrix, names = RULES.add(CausalRule("tar", "pain", 0.4, offset=2)).adjacency()
    at = names.index
    assert matrix[at("smoking"), at("cancer")] == -0.2
    assert np.count_nonzero(matrix) == 3
    later, _ = RULES.add(CausalRule("tar", "pain", 0.4, offset=2)).adjacency(offset=2)
    assert later[at("tar"), at("pain")] == 0.4
    assert np.count_nonzero(later) == 1


def test_json_round_trip_and_its_errors() -> None:
    assert CausalRuleSet.from_json(json.loads(json.dumps(RULES.to_json()))) == RULES
    assert CausalRuleSet.from_json([{"cause": "a", "effect": "b"}]).rules == (CausalRule("a", "b"),)
    broken: list[Any] = [{"cause": "a"}, {"cause": "a", "effect": "b", "weight": 1}, "a -> b"]
    for bad in broken:
        with pytest.raises(ConfigurationError, match="not a rule"):
            CausalRuleSet.from_json([bad])
