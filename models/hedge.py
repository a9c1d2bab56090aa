"""Hedges: why an effect cannot be told from the observed distribution, whatever the data.

Shpitser & Pearl (AAAI 2006; JMLR 9, 2008). A C-forest with root set R is a graph whose bidirected edges join all its
nodes in a tree, in which each node has at most one child, and whose nodes without a child are R. Two C-forests F' ⊂ F
with one root set R form a hedge for P(y | do(x)) if F meets x, F' does not, and each root has a directed path to y that
no arrow into x is part of. Then two models with this graph agree on P(v) and differ in P(y | do(x)).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from causaldao.models.graph import CausalGraph, Pair

Names = frozenset[str]


@dataclass(frozen=True)
class Hedge:
    """The witness: ``outer`` is F, ``inner`` is F', both with the root set ``roots``.

    It stands for P(outcome | do(treatment)). Where the question had conditions, those that rule 2 of the do-calculus
    turns into interventions count among ``treatment`` and the others among ``outcome``: P(y | do(x), z) is as
    identifiable as that (Shpitser & Pearl, UAI 2006).
    """

    treatment: Names
    outcome: Names
    outer: CausalGraph
    inner: CausalGraph
    roots: Names

    def __str__(self) -> str:
        hit = _listed(self.treatment & set(self.outer.nodes))
        arcs = ", ".join(f"{a} <-> {b}" for a, b in sorted(self.outer.bidirected))
        apart = f", and {_listed(self.inner.nodes)} even without {hit}" if len(self.inner.nodes) > 1 else ""
        ends = "" if self.roots <= self.outcome else f", on which {_listed(self.outcome)} depends"
        return (
            f"latent common causes ({arcs}) tie {_listed(self.outer.nodes)} together{apart}; all of it leads to "
            f"{_listed(self.roots)}{ends}. What goes with {hit} in the data can come from these latent causes as "
            "well as from an effect, and no number of records tells which"
        )

    def to_json(self) -> dict[str, Any]:
        """The two forests, their roots and the intervention they speak of, as plain data."""
        return {
            "treatment": sorted(self.treatment),
            "outcome": sorted(self.outcome),
            "outer": self.outer.to_json(),
            "inner": self.inner.to_json(),
            "roots": sorted(self.roots),
        }


def hedge_within(
    graph: CausalGraph, district: Names, inner: Names, treatment: Collection[str], outcome: Collection[str]
) -> Hedge:
    """The hedge in the subgraph over ``district`` where line 5 of ID fails, with ``inner`` = district without x.

    Both are joined by bidirected edges, and every node of ``inner`` has in it a directed path to the local outcome. The
    roots are the nodes of ``inner`` without a child there. Each other node keeps one child: those of ``inner`` one in
    it, so that F' is part of F and no node leads elsewhere than to the roots.
    """
    roots = frozenset(node for node in inner if not graph.children(node) & inner)
    child_of = {node: min(graph.children(node) & inner) for node in inner - roots}
    child_of |= {node: min(graph.children(node) & district) for node in district - inner}
    tree = _spanning(graph, inner, frozenset())
    arrows = sorted(child_of.items())
    return Hedge(
        frozenset(treatment),
        frozenset(outcome),
        CausalGraph.admg(arrows, _spanning(graph, district, tree), sorted(district)),
        CausalGraph.admg([pair for pair in arrows if pair[0] in inner], tree, sorted(inner)),
        roots,
    )


def _spanning(graph: CausalGraph, nodes: Names, tree: frozenset[Pair]) -> frozenset[Pair]:
    """A tree of bidirected edges over nodes that they join, grown from ``tree``."""
    inside = sorted(pair for pair in graph.bidirected if set(pair) <= nodes)
    reached, kept = {name for pair in tree for name in pair} or {min(nodes)}, set(tree)
    while len(reached) < len(nodes):
        pair = next(pair for pair in inside if len(reached & set(pair)) == 1)
        kept.add(pair)
        reached |= set(pair)
    return frozenset(kept)


def _listed(names: Collection[str]) -> str:
    *first, last = sorted(names)
    return f"{', '.join(first)} and {last}" if first else last
