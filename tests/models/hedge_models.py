"""What a hedge claims, shown: two positive models of one graph that agree on P(v) and differ in P(y | do(x)).

The parity construction of Shpitser & Pearl (2006), made positive and carried over to the whole graph. Each variable of
F has a bit, the parity of its parents in F and of the latent bits at it; in the second model those of F' do not listen
to F \\ F'. In both the bits are uniform given the parity of R, which is 0; one root is then flipped at random. Under
do(x) the parity of R stays what it was in the second model and is a fair coin in the first. A second bit carries it
from R to y along directed paths past x, with noise, by the same mechanisms in both. All other variables are fair coins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from causaldao.models.graph import CausalGraph
from causaldao.models.hedge import Hedge

FLIP, NOISE = 0.2, 0.02


def paths_to_outcome(graph: CausalGraph, hedge: Hedge) -> dict[str, str]:
    """Of each variable between R and y: the next one on a shortest directed path to y that meets no treatment."""
    step: dict[str, str] = {}
    layer = set(hedge.outcome)
    reached = set(layer)
    while layer:
        before = {parent: node for node in sorted(layer) for parent in graph.parents(node)}
        layer = set(before) - reached - hedge.treatment
        step |= {parent: before[parent] for parent in layer}
        reached |= layer
    kept: dict[str, str] = {}
    for root in hedge.roots:
        while root in step and root not in kept:
            kept[root] = step[root]
            root = step[root]
    return kept


@dataclass(frozen=True)
class Pair:
    """Both models of a hedge; each observed variable has two levels, or four if it has both bits."""

    graph: CausalGraph
    hedge: Hedge
    step: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: CausalGraph, hedge: Hedge) -> Pair:
        return cls(graph, hedge, paths_to_outcome(graph, hedge))

    @cached_property
    def carriers(self) -> set[str]:
        return {*self.step, *self.step.values(), *self.hedge.roots}

    @cached_property
    def grid(self) -> dict[object, np.ndarray]:
        arcs = sorted(self.hedge.outer.bidirected)
        both = self.carriers & set(self.hedge.outer.nodes)
        sizes = [4 if node in both else 2 for node in self.graph.nodes] + [2] * len(arcs)
        return dict(zip([*self.graph.nodes, *arcs], np.indices(sizes, sparse=True), strict=True))

    def forest_bit(self, node: str) -> np.ndarray:
        return self.grid[node] & 1

    def carried_bit(self, node: str) -> np.ndarray:
        return self.grid[node] >> (1 if node in self.hedge.outer.nodes else 0)

    def factor(self, node: str, second: bool) -> np.ndarray:
        """P(node | its causes) in the first or in the second model."""
        result = np.ones((1,) * len(self.grid))
        if node in self.hedge.outer.nodes:
            forest = self.hedge.inner if second and node in self.hedge.inner.nodes else self.hedge.outer
            told = self.forest_bit(node)
            for parent in forest.parents(node):
                told = told ^ self.forest_bit(parent)
            for arc in forest.bidirected:
                told = told ^ (self.grid[arc] if node in arc else 0)
            flip = FLIP if node == min(self.hedge.roots) else 0.0
            result = result * np.where(told == 0, 1 - flip, flip)
        if node in self.carriers:
            told = self.carried_bit(node)
            if node in self.hedge.roots:
                told = told ^ self.forest_bit(node)
            for parent, following in self.step.items():
                told = told ^ (self.carried_bit(parent) if following == node else 0)
            result = result * np.where(told == 0, 1 - NOISE, NOISE)
        if node not in self.carriers and node not in self.hedge.outer.nodes:
            result = result / 2
        return result

    def distribution(self, second: bool, treatment: frozenset[str] = frozenset()) -> np.ndarray:
        """P(v without x | do(x)) over the axes of the graph's nodes."""
        arcs = len(self.hedge.outer.bidirected)
        values = np.full((1,) * len(self.grid), 0.5**arcs)
        for node in self.graph.nodes:
            if node not in treatment:
                values = values * self.factor(node, second)
        shape = [max(array.shape) for array in self.grid.values()]
        width = len(self.graph.nodes)
        result: np.ndarray = np.broadcast_to(values, shape).sum(axis=tuple(range(width, width + arcs)))
        return result

    def effect(self, second: bool) -> np.ndarray:
        """P(y | do(x)) over the axes of x and y."""
        asked = self.hedge.treatment | self.hedge.outcome
        others = tuple(k for k, node in enumerate(self.graph.nodes) if node not in asked)
        result: np.ndarray = self.distribution(second, self.hedge.treatment).sum(axis=others)
        return result
