"""Random ADMGs, and positive binary models of them with each bidirected edge as an explicit latent cause."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from causaldao.models.estimand import Table
from causaldao.models.graph import CausalGraph


def random_admg(rng: np.random.Generator, d: int, arrows: float, arcs: float) -> CausalGraph:
    """A random order, each arrow and each bidirected edge by its own chance; at most seven of the latter."""
    order = [f"v{i}" for i in rng.permutation(d)]
    pairs = list(combinations(order, 2))
    bidirected = [pair for pair in pairs if rng.random() < arcs][:7]
    return CausalGraph.admg([pair for pair in pairs if rng.random() < arrows], bidirected, sorted(order))


@dataclass(frozen=True)
class BinaryModel:
    """Axes: the variables of the graph, then one for each bidirected edge. factors[node]: P(node | its causes)."""

    names: tuple[str, ...]
    factors: dict[str, np.ndarray]
    latent: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, graph: CausalGraph) -> BinaryModel:
        arcs = sorted(graph.bidirected)
        axes, width = [*graph.nodes, *arcs], len(graph.nodes)
        latent = np.ones((1,) * len(axes))
        for place in range(width, len(axes)):
            p = rng.uniform(0.2, 0.8)
            latent = latent * np.array([p, 1 - p]).reshape([2 if k == place else 1 for k in range(len(axes))])
        factors = {}
        for place, node in enumerate(graph.nodes):
            causes = {*graph.parents(node), *(arc for arc in arcs if node in arc)}
            shape = [2 if axis in causes else 1 for axis in axes]
            p = rng.uniform(0.1, 0.9, shape)
            factors[node] = np.concatenate([p, 1 - p], axis=place)
        return cls(graph.nodes, factors, latent)

    def under(self, treatment: frozenset[str] = frozenset()) -> Table:
        """P(v without x | do(x)), with the value that x is set to on its own axes; nothing set: P(v)."""
        values = self.latent
        for node in self.names:
            if node not in treatment:
                values = values * self.factors[node]
        values = np.broadcast_to(values, [2] * values.ndim)
        return Table(self.names, values.sum(axis=tuple(range(len(self.names), values.ndim))))

    def effect(self, treatment: tuple[str, ...], outcome: tuple[str, ...], conditions: tuple[str, ...]) -> np.ndarray:
        """P(outcome | do(treatment), conditions) by enumeration, axes in the order (treatment, conditions, outcome)."""
        order = (*treatment, *conditions, *outcome)
        values = self.under(frozenset(treatment)).values
        values = values.sum(axis=tuple(k for k, name in enumerate(self.names) if name not in order))
        kept = [name for name in self.names if name in order]
        values = values.transpose([kept.index(name) for name in order])
        last = tuple(range(values.ndim - len(outcome), values.ndim))
        result: np.ndarray = values / values.sum(axis=last, keepdims=True)
        return result
