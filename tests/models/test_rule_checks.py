"""What would mislead in the check of declared rules: a verdict that the model which made the data denies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.errors import MisuseError
from causaldao.models.discovery import discover
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.rule_checks import RuleCheck, check_rules
from causaldao.models.rules import CausalRule, CausalRuleSet
from causaldao.models.scm import LinearSCM
from tests.counts import count
from tests.models.random_models import dag_of, noisy, population, sample, weights

# a -> b <- z, b -> c, and w -> v without further edges, so that the data leave w - v open
STRENGTHS = {("a", "b"): 0.6, ("z", "b"): 0.6, ("b", "c"): -0.5, ("w", "v"): 0.7}
GRAPH = CausalGraph.dag(STRENGTHS, nodes=("a", "b", "c", "v", "w", "z"))


def evidence_of(n: int, seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {}
    for name in GRAPH.topological_order():
        drive = sum((STRENGTHS[p, name] * columns[p] for p in GRAPH.parents(name)), np.zeros(n))
        columns[name] = drive + rng.normal(size=n)
    return Evidence.from_data(pd.DataFrame({name: columns[name] for name in GRAPH.nodes}) * 10 + 3)


EVIDENCE = evidence_of(3000)
PATTERN = discover(EVIDENCE)


def checked(*rules: CausalRule, evidence: Evidence = EVIDENCE, graph: CausalGraph = PATTERN) -> list[RuleCheck]:
    return list(check_rules(CausalRuleSet(rules), evidence, graph))


@pytest.mark.parametrize(
    ("rule", "verdict", "ancestor", "size"),
    [
        (CausalRule("a", "b", 0.46), "supported", "yes", "compatible"),
        (CausalRule("a", "b", 1.0), "supported", "yes", "weaker"),
        (CausalRule("b", "c", -0.1), "supported", "yes", "stronger"),
        (CausalRule("a", "c", -0.25), "supported", "yes", "compatible"),  # through b
        (CausalRule("b", "c", 0.55), "contradicted", "yes", None),  # the other sign
        (CausalRule("c", "a", 0.5), "contradicted", "no", None),  # backwards
        (CausalRule("a", "z", 0.5), "contradicted", "no", None),  # nothing there
        (CausalRule("w", "v", 0.57), "no power", "possible", None),  # undirected
        (CausalRule("a", "c", 0.0), "supported", "yes", None),  # not directly
        (CausalRule("a", "b", 0.0), "contradicted", "yes", None),
        (CausalRule("c", "b", 0.0), "supported", "no", None),  # backwards
        (CausalRule("a", "b", 0.5, offset=2), "no power", "possible", None),
    ],
    ids=str,
)
def test_a_rule_is_judged_against_what_made_the_data(
    rule: CausalRule, verdict: str, ancestor: str, size: str | None
) -> None:
    (check,) = checked(rule)
    assert (check.verdict, check.ancestor, check.size) == (verdict, ancestor, size), check.text
    assert check.verdict in check.text
    assert check.to_json()["rule"] == rule.__dict__


def test_knowledge_that_directs_the_edge_gives_no_power_to_the_rule() -> None:
    arrows = PATTERN.directed | {("w", "v")}
    (check,) = checked(CausalRule("w", "v", 0.57), graph=CausalGraph.cpdag(arrows, nodes=GRAPH.nodes))
    assert (check.verdict, check.size) == ("supported", "compatible")


def test_little_or_noisy_evidence_contradicts_a_true_rule() -> None:
    """A rule that holds is contradicted in one of forty small tables at most: the interval's own error, on one side."""
    verdicts = []
    for seed in range(100):
        small, noise = evidence_of(25, seed), noisy(EVIDENCE, 1000.0, np.random.default_rng(seed))
        for evidence in (small, noise):
            (check,) = checked(CausalRule("a", "b", 0.46), evidence=evidence, graph=GRAPH)
            verdicts.append(check.verdict)
    assert verdicts.count("contradicted") <= 5
    assert verdicts.count("no power") >= 40


def test_a_pag_decides_more_than_its_marks() -> None:
    pag = CausalGraph.pag({("a", "b"): "o>", ("z", "b"): "o>", ("b", "c"): "->", ("w", "v"): "oo"})
    found = checked(*(CausalRule(*pair, 0.5) for pair in [("a", "b"), ("b", "a"), ("c", "b")]), graph=pag)
    verdicts = {(check.rule.cause, check.rule.effect): (check.verdict, check.ancestor) for check in found}
    assert verdicts == {
        ("a", "b"): ("no power", "possible"), ("b", "a"): ("contradicted", "no"), ("c", "b"): ("contradicted", "no"),
    }  # fmt: skip


def test_true_rules_are_contradicted_more_often_than_the_level_says() -> None:
    """Rules with the true standardised direct effects of a known graph: the interval of the direct effect misses one in
    twenty."""
    missed, asked, wrong = 0, 0, 0
    for seed in range(count(30, 400)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 5, 2.5, 0.4, 0.9)
        graph, frame = dag_of(matrix), sample(rng, matrix, 400)
        deviation = np.sqrt(np.diag(np.linalg.inv(np.eye(5) - matrix).T @ np.linalg.inv(np.eye(5) - matrix)))
        index = {name: i for i, name in enumerate(graph.nodes)}
        true = {
            (a, b): matrix[index[a], index[b]] * deviation[index[a]] / deviation[index[b]] for a, b in graph.directed
        }
        true = {pair: strength for pair, strength in true.items() if abs(strength) <= 1}
        rules = CausalRuleSet(tuple(CausalRule(*pair, float(strength)) for pair, strength in true.items()))
        for check in check_rules(rules, Evidence.from_data(frame), graph):
            low, high = check.direct[0].interval
            asked += 1
            missed += not low <= check.rule.strength <= high
            wrong += check.verdict == "contradicted"
    # the standard deviations are those of the sample, which narrows what the intervals miss by: 5 % is the bound
    assert missed <= 0.05 * asked + 3 * (0.05 * 0.95 * asked) ** 0.5
    assert wrong <= 0.01 * asked


def test_standard_effects_are_not_those_of_the_model() -> None:
    rng = np.random.default_rng(3)
    matrix = weights(rng, 6, 2.5)
    graph, evidence = dag_of(matrix), population(matrix)
    model = LinearSCM.from_evidence(evidence, graph)
    total = torch.linalg.inv(torch.eye(6, dtype=torch.float64) - model.weight)
    for check in check_rules(CausalRuleSet(tuple(CausalRule(*p) for p in graph.directed)), evidence, graph):
        i, j = graph.nodes.index(check.rule.cause), graph.nodes.index(check.rule.effect)
        assert check.total[0].estimate == pytest.approx(float(total[j, i]), abs=1e-6)
        assert check.direct[0].estimate == pytest.approx(float(model.weight[j, i]), abs=1e-6)


def test_an_unknown_name_is_judged() -> None:
    with pytest.raises(MisuseError, match=r"The rules name ghost\. The variables are a, b"):
        checked(CausalRule("ghost", "a"))
    with pytest.raises(MisuseError, match="level=1"):
        check_rules(CausalRuleSet((CausalRule("a", "b"),)), EVIDENCE, PATTERN, 1.0)
