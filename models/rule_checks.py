"""Declared causal rules held against the evidence: supported, contradicted, or beyond what it can show.

A rule "cause brings about effect, with this strength" is compared with two effects that the graph and the evidence
give, both in standard deviations of the effect per standard deviation of the cause: the total one, adjusted for the
parents of the cause, and the direct one, adjusted for the other parents of the effect (Pearl, *Causality*, 2009, ch. 3
and 5). Where the evidence leaves edges undirected there is one pair of effects for each way of directing them at both
ends (Maathuis, Kalisch & Bühlmann, 2009), and a verdict needs all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

from causaldao.errors import DataError, MisuseError
from causaldao.models.adjustment import orientations_at, possible_descendants
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.effects import average_effect
from causaldao.models.graph import ARROW, CausalGraph
from causaldao.models.pattern import partial_edges
from causaldao.models.rules import CausalRule, CausalRuleSet

Verdict = Literal["supported", "contradicted", "no power"]
Answer = Literal["yes", "possible", "no"]
Size = Literal["compatible", "weaker", "stronger"]

NEGLIGIBLE = 0.1
"""A direct effect of fewer standard deviations than this counts as none, for rules of strength 0."""


@dataclass(frozen=True)
class StandardEffect:
    """An effect in standard deviations per standard deviation, with its normal interval and its p-value against 0.

    The standard deviations are those of the evidence, taken as known.
    """

    estimate: float
    standard_error: float
    interval: tuple[float, float]
    p_value: float
    adjustment: tuple[str, ...]

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0, else 0."""
        return (self.interval[0] > 0) - (self.interval[1] < 0)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.estimate:.3g} [{low:.3g}, {high:.3g}], p = {self.p_value:.2g}"

    def to_json(self) -> dict[str, Any]:
        return {
            "estimate": self.estimate, "standard_error": self.standard_error, "interval": list(self.interval),
            "p_value": self.p_value, "adjustment": list(self.adjustment),
        }  # fmt: skip


@dataclass(frozen=True)
class RuleCheck:
    """What the evidence says of one rule.

    Attributes
    ----------
    verdict : *supported*: in every DAG of the class the cause acts on the effect, and the interval of the total or
        of the direct effect lies on the strength's side of 0. *contradicted*: in every DAG the effect causes the
        cause, or the intervals leave out even half the strength (another sign included). Of strength 0, which speaks of
        the direct effect: *supported* if its intervals lie within ±0.1, *contradicted* if they leave out 0.
        *no power*: neither.
    adjacent : whether an edge of the graph joins the two.
    ancestor : whether the graph has the cause cause the effect: in all DAGs of the class, in some, in none.
    size : of a supported rule, whether an interval of an effect of its sign holds its strength, or the effects are
        weaker or stronger.
    total, direct : the effects, one for each way of directing what is undirected at the two.
    text : all of it in words.
    """

    rule: CausalRule
    verdict: Verdict
    adjacent: bool
    ancestor: Answer
    size: Size | None
    total: tuple[StandardEffect, ...]
    direct: tuple[StandardEffect, ...]
    text: str

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": {"cause": self.rule.cause, "effect": self.rule.effect, "strength": self.rule.strength,
                     "offset": self.rule.offset, "duration": self.rule.duration},
            "verdict": self.verdict, "adjacent": self.adjacent, "ancestor": self.ancestor, "size": self.size,
            "total": [effect.to_json() for effect in self.total],
            "direct": [effect.to_json() for effect in self.direct], "text": self.text,
        }  # fmt: skip


def check_rules(
    rules: CausalRuleSet, evidence: Evidence, graph: CausalGraph, level: float = 0.95
) -> tuple[RuleCheck, ...]:
    """Check each rule, in the order of the set, against the evidence and the graph found in it.

    ``graph`` is a DAG, a CPDAG, or one with knowledge. Of a PAG only what its marks say is used: it settles no
    effect. A rule with an offset is never decided by records without time. The tests are not corrected for their
    number.

    Raises:
        MisuseError: a rule names a variable that the evidence or the graph lacks, or level is not in (0, 1).
    """
    known = sorted(set(evidence.names) & set(graph.nodes))
    if unknown := sorted(set(rules.names) - set(known)):
        raise MisuseError(f"The rules name {', '.join(unknown)}. The variables are {', '.join(known)}.")
    if not 0 < level < 1:
        raise MisuseError(f"level={level}: expected a number between 0 and 1.")
    return tuple(_check(rule, evidence, graph, level) for rule in rules)


def _check(rule: CausalRule, evidence: Evidence, graph: CausalGraph, level: float) -> RuleCheck:
    if rule.offset or rule.cause == rule.effect:
        why = f"it speaks of what comes {rule.offset:g} later, and the records have no time"
        return RuleCheck(rule, "no power", False, "possible", None, (), (), _worded(rule, "no power", why))
    adjacent = graph.adjacent(rule.cause, rule.effect)
    if graph.edges != partial_edges(graph):
        return _by_marks(rule, graph, adjacent)
    members = _members(graph, rule)
    reaches = [rule.effect in possible_descendants(member, rule.cause) for member in members]
    ancestor: Answer = "yes" if all(reaches) else "possible" if any(reaches) else "no"
    if all(rule.effect in member.ancestors(rule.cause) for member in members):
        verdict: Verdict = "contradicted" if rule.strength else "supported"
        why = f"the graph has {rule.effect} cause {rule.cause}"
        return RuleCheck(rule, verdict, adjacent, "no", None, (), (), _worded(rule, verdict, why))
    try:
        total = tuple(_distinct(_total(rule, member, evidence, level) for member in members))
        direct = tuple(_distinct(_direct(rule, member, evidence, level) for member in members))
    except DataError as error:
        text = _worded(rule, "no power", error.message)
        return RuleCheck(rule, "no power", adjacent, ancestor, None, (), (), text)
    if rule.strength:
        verdict, why = _of_effect(rule, ancestor, total, direct)
    else:
        verdict, why = _of_none(adjacent, ancestor, direct)
    agreeing = [effect for effect in (*total, *direct) if effect.sign * rule.strength > 0]
    size = _size(rule, agreeing) if verdict == "supported" and rule.strength else None
    if size in ("weaker", "stronger"):
        why += f". It is {size} than the stated {rule.strength:g}"
    return RuleCheck(rule, verdict, adjacent, ancestor, size, total, direct, _worded(rule, verdict, why))


def _members(graph: CausalGraph, rule: CausalRule) -> list[CausalGraph]:
    """The graph with everything directed at cause and effect, in each way that some DAG of the class has."""
    found = [both for one in orientations_at(graph, rule.cause) for both in orientations_at(one, rule.effect)]
    return list(dict.fromkeys(found))


def _total(rule: CausalRule, member: CausalGraph, evidence: Evidence, level: float) -> StandardEffect | None:
    """Adjusted for the cause's parents, which is valid whether or not the effect is among its descendants."""
    parents = member.parents(rule.cause)
    return None if rule.effect in parents else _standard(rule, parents, evidence, level)


def _direct(rule: CausalRule, member: CausalGraph, evidence: Evidence, level: float) -> StandardEffect | None:
    """Adjusted for the effect's other parents; none where the effect causes the cause."""
    if rule.effect in member.ancestors(rule.cause):
        return None
    return _standard(rule, member.parents(rule.effect) - {rule.cause}, evidence, level)


def _standard(rule: CausalRule, given: Iterable[str], evidence: Evidence, level: float) -> StandardEffect:
    found = average_effect(evidence, rule.cause, rule.effect, tuple(sorted(given)), level)
    deviation = evidence.covariance().diagonal().clamp_min(0).sqrt() * evidence.half
    unit = float(deviation[evidence.index(rule.cause)] / deviation[evidence.index(rule.effect)])
    estimate, error = unit * found.estimate, unit * found.standard_error
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    p_value = math.erfc(abs(estimate) / error / math.sqrt(2)) if error else float(estimate == 0)
    return StandardEffect(estimate, error, (estimate - reach, estimate + reach), p_value, found.adjustment)


def _distinct(effects: Iterable[StandardEffect | None]) -> Iterator[StandardEffect]:
    """Those there are, one for each adjustment set."""
    yield from {effect.adjustment: effect for effect in effects if effect is not None}.values()


def _of_effect(
    rule: CausalRule, ancestor: Answer, total: tuple[StandardEffect, ...], direct: tuple[StandardEffect, ...]
) -> tuple[Verdict, str]:
    side = 1 if rule.strength > 0 else -1
    half = abs(rule.strength) / 2
    shown = [("total", total), ("direct", direct)]
    agreeing = [kind for kind, effects in shown if effects and all(e.sign == side for e in effects)]
    figures = "; ".join(f"{kind} {' or '.join(map(str, effects))}" for kind, effects in shown if effects)
    if agreeing and ancestor == "yes":
        return "supported", f"its sign is that of the {' and the '.join(agreeing)} effect: {figures}"
    if all(max(side * e.interval[0], side * e.interval[1]) < half for e in (*total, *direct)):
        return "contradicted", f"even half its strength lies outside the intervals: {figures}"
    if agreeing and ancestor == "possible":
        return "no power", f"the two are dependent, but the evidence does not direct the edge: {figures}"
    if agreeing:
        return "no power", f"the graph has no causal path, yet the estimate is not zero: {figures}"
    return "no power", f"the intervals hold both zero and half its strength or more: {figures}"


def _of_none(adjacent: bool, ancestor: Answer, direct: tuple[StandardEffect, ...]) -> tuple[Verdict, str]:
    figures = " or ".join(map(str, direct))
    if direct and all(effect.sign for effect in direct) and ancestor == "yes":
        return "contradicted", f"there is a direct effect: {figures}"
    if direct and all(max(map(abs, effect.interval)) < NEGLIGIBLE for effect in direct):
        return "supported", f"the direct effect lies within ±{NEGLIGIBLE:g}: {figures}"
    why = "the evidence does not direct the edge" if adjacent else f"the interval reaches beyond ±{NEGLIGIBLE:g}"
    return "no power", f"{why}: {figures}"


def _by_marks(rule: CausalRule, graph: CausalGraph, adjacent: bool) -> RuleCheck:
    """What a PAG says: an arrowhead at the cause, or a directed path from the effect, rules the effect out."""
    away = rule.effect in graph.ancestors(rule.cause) or any(
        {edge.a, edge.b} == {rule.cause, rule.effect} and (edge.at_a if edge.a == rule.cause else edge.at_b) == ARROW
        for edge in graph.edges
    )
    ancestor: Answer = "no" if away else "yes" if rule.effect in graph.descendants(rule.cause) else "possible"
    verdict: Verdict = "no power"
    why = "a PAG settles no effect; check the rule against a graph of boss, ges or pc"
    if away:
        verdict = "contradicted" if rule.strength else "supported"
        why = f"the PAG says that {rule.cause} does not cause {rule.effect}"
    return RuleCheck(rule, verdict, adjacent, ancestor, None, (), (), _worded(rule, verdict, why))


def _size(rule: CausalRule, effects: list[StandardEffect]) -> Size:
    if any(effect.interval[0] <= rule.strength <= effect.interval[1] for effect in effects):
        return "compatible"
    return "weaker" if max(abs(effect.estimate) for effect in effects) < abs(rule.strength) else "stronger"


def _worded(rule: CausalRule, verdict: Verdict, why: str) -> str:
    return f"{rule.cause} -> {rule.effect}, strength {rule.strength:g}: {verdict}, {why}."
