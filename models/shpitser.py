"""The algorithms ID and IDC on acyclic directed mixed graphs: complete for P(y | do(x)) and P(y | do(x), z).

Shpitser & Pearl, "Identification of joint interventional distributions in recursive semi-Markovian causal models" (AAAI
2006) and "Identification of conditional interventional distributions" (UAI 2006). The numbers in comments are those of
their lines. V are the observed variables, An(Y) ancestors with Y itself, G_X̄ the graph without arrows into X, G_X̲
that without arrows out of it. Districts (their C-components) are what bidirected edges join. P is the current
distribution over the current V, at first the observed one; as in the paper every variable of the data counts as having
all its values.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from causaldao.errors import NotIdentifiable
from causaldao.models.expression import Expression, Probability, product, quotient, tidy, total
from causaldao.models.graph import CausalGraph
from causaldao.models.hedge import Hedge, hedge_within
from causaldao.models.separators import districts, mutilated

Names = frozenset[str]


@dataclass(frozen=True)
class Found:
    """An expression for the effect, and how it was arrived at, in sentences."""

    expression: Expression
    steps: tuple[str, ...]


def idc(graph: CausalGraph, outcome: Names, treatment: Names, conditions: Names = frozenset()) -> Found:
    """P(outcome | do(treatment), conditions) from P(V), on an ADMG; the three sets are disjoint and outcome not empty.

    Complete: what it cannot identify nobody can without more assumptions. Its time is polynomial in the nodes.

    Raises:
        NotIdentifiable: with the `Hedge` that shows it.
    """
    steps: list[str] = []
    x, z = treatment, conditions
    while (moved := _by_rule_2(graph, outcome, x, z)) is not None:
        steps.append(f"Seeing {moved} is as good as setting it here (rule 2 of the do-calculus).")
        x, z = x | {moved}, z - {moved}
    run = _Run(graph, outcome | z, x, steps)
    joint = run.identify(outcome | z, x, frozenset(graph.nodes), Probability(frozenset(graph.nodes)))
    if z:
        steps.append(f"Bayes' rule conditions the effect on {_listed(outcome | z)} on {_listed(z)}.")
    return Found(tidy(quotient(joint, total(outcome, joint)) if z else joint), tuple(steps))


def _by_rule_2(graph: CausalGraph, outcome: Names, x: Names, z: Names) -> str | None:
    """A condition Z with (outcome ⫫ Z | x, z \\ Z) in G_X̄Z̲, if there is one."""
    return next((n for n in sorted(z) if mutilated(graph, x, {n}).d_separated(outcome, n, x | z - {n})), None)


@dataclass(frozen=True)
class _Run:
    """One question: graph, its outcome and treatment (for the hedge), and the steps so far."""

    graph: CausalGraph
    outcome: Names
    treatment: Names
    steps: list[str] = field(default_factory=list)

    def identify(self, y: Names, x: Names, v: Names, p: Expression) -> Expression:
        """ID(y, x, P, G) of the paper, where G is the subgraph over v."""
        if not x:  # 1
            return total(v - y, p)
        if rest := v - self._ancestors(y, v, frozenset()):  # 2
            self.steps.append(f"Summed out, since it cannot act on {_listed(y)}: {_listed(rest)}.")
            return self.identify(y, x - rest, v - rest, total(rest, p))
        if free := v - x - self._ancestors(y, v, x):  # 3
            self.steps.append(f"Once {_listed(x)} is set, any value may be set without effect: {_listed(free)}.")
            return self.identify(y, x | free, v, p)
        parts = districts(self.graph, v - x)
        if len(parts) > 1:  # 4
            told = " | ".join(map(_listed, parts))
            self.steps.append(f"Once {_listed(x)} is set, no latent cause joins these factors: {told}.")
            return total(v - y - x, product(self.identify(part, v - part, v, p) for part in parts))
        return self._one_district(y, x, v, p, parts[0])

    def _one_district(self, y: Names, x: Names, v: Names, p: Expression, s: Names) -> Expression:
        whole = next(district for district in districts(self.graph, v) if s <= district)
        if whole == v:  # 5
            raise _not_identifiable(hedge_within(self.graph, v, s, self.treatment, self.outcome))
        if whole == s:  # 6
            self.steps.append(f"Read off the data, since no latent cause ties it to the rest: {_listed(s)}.")
            return total(s - y, product(self._conditionals(s, v, p)))
        self.steps.append(f"In the factor of {_listed(whole)} alone, set in turn: {_listed(whole & x)}.")  # 7
        return self.identify(y, x & whole, whole, product(self._conditionals(whole, v, p)))

    def _conditionals(self, of: Names, v: Names, p: Expression) -> list[Expression]:
        """P(v_i | v_1 … v_{i-1}) for each v_i of ``of``, in a topological order of v."""
        order = [node for node in self.graph.topological_order() if node in v]
        before = {node: frozenset(order[:place]) for place, node in enumerate(order)}
        return [self._conditional(node, before[node], v, p) for node in order if node in of]

    def _conditional(self, node: str, before: Names, v: Names, p: Expression) -> Expression:
        if isinstance(p, Probability) and not p.given:  # a margin of the observed distribution, whose graph is known
            return Probability(frozenset({node}), self._needed(node, before))
        return quotient(total(v - before - {node}, p), total(v - before, p))

    def _needed(self, node: str, before: Names) -> Names:
        """``before`` without what m-separation shows to be of no use: fewer levels to divide by."""
        kept = before
        for other in sorted(before):
            if self.graph.d_separated(node, other, kept - {other}):
                kept -= {other}
        return kept

    def _ancestors(self, y: Names, v: Names, x: Names) -> Names:
        """An(y) in the subgraph over v without arrows into x."""
        reached, todo = set[str](), list(y)
        while todo:
            node = todo.pop()
            if node not in reached:
                reached.add(node)
                todo.extend(self.graph.parents(node) & v if node not in x else ())
        return frozenset(reached)


def _not_identifiable(hedge: Hedge) -> NotIdentifiable:
    arcs = " or ".join(f"{a} <-> {b}" for a, b in sorted(hedge.outer.bidirected))
    return NotIdentifiable(
        f"The effect of {_listed(hedge.treatment)} on {_listed(hedge.outcome)} cannot be told from this graph: "
        f"{hedge}. Measure a latent cause behind {arcs}, set {_listed(hedge.treatment)} by lot, or, if effects are "
        "linear, look for an instrument.",
        hedge=hedge,
    )


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
