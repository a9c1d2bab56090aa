"""Structural models written down by hand, so that answers can be had without them: by algebra, or by enumeration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product

import numpy as np
import torch

from causaldao.models.design import Column, Node
from causaldao.models.graph import CausalGraph
from causaldao.models.structural import StructuralModel

# z -> x, z -> y, x -> m -> y, y -> w; the columns are not in causal order.
NAMES = ("y", "m", "x", "w", "z")
SLOPES = {("z", "x"): 0.8, ("x", "m"): -1.5, ("m", "y"): 2.0, ("z", "y"): 0.7, ("y", "w"): -0.4}
GRAPH = CausalGraph.dag(SLOPES, NAMES)
INTERCEPT = np.array([3.0, -1.0, 40.0, 5.0, 0.5])
SPREAD = np.array([0.5, 1.0, 3.0, 2.0, 1.3])
CENTRE, HALF = np.array([-10.0, 3.0, 38.0, 9.0, 1.0]), np.array([7.0, 4.0, 5.0, 3.0, 2.0])


def line() -> StructuralModel:
    """x = B x + INTERCEPT + SPREAD · u in natural units, held in standardised ones."""
    nodes = []
    for j, name in enumerate(NAMES):
        parents = [i for i, one in enumerate(NAMES) if (one, name) in SLOPES]
        slopes = np.array([SLOPES[NAMES[i], name] for i in parents])
        bias = (INTERCEPT[j] + slopes @ CENTRE[parents] - CENTRE[j]) / HALF[j]
        params = {"linear": [slopes * HALF[parents] / HALF[j]], "bias": [[bias]], "scale": [[SPREAD[j] / HALF[j]]]}
        nodes.append(Node("linear", 1, {key: torch.tensor(np.array(value)).double() for key, value in params.items()}))
    columns = tuple(
        Column(float(c), float(h), float(c - 3 * h), float(c + 3 * h)) for c, h in zip(CENTRE, HALF, strict=True)
    )
    return StructuralModel(GRAPH, NAMES, columns, tuple(nodes))


def algebra(do: Mapping[str, float], shift: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance: x = (I - B)^-1 (b + e), the rows of do replaced, the shifts added to b."""
    matrix, intercept, spread = np.zeros((5, 5)), INTERCEPT.copy(), SPREAD.copy()
    for (cause, effect), slope in SLOPES.items():
        matrix[NAMES.index(effect), NAMES.index(cause)] = slope
    for name, delta in shift.items():
        intercept[NAMES.index(name)] += delta
    for name, value in do.items():
        j = NAMES.index(name)
        matrix[j], intercept[j], spread[j] = 0.0, value, 0.0
    mixed = np.linalg.solve(np.eye(5) - matrix, np.diag(spread))
    return np.linalg.solve(np.eye(5) - matrix, intercept), mixed @ mixed.T


# a -> b -> c, a -> c, c -> d, all 0 or 1.
BITS = ("a", "b", "c", "d")
ARROWS = [("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")]
LOGITS: dict[str, tuple[float, dict[str, float]]] = {
    "a": (-0.4, {}), "b": (-1.0, {"a": 2.0}), "c": (0.3, {"a": -1.5, "b": 1.2}), "d": (-0.7, {"c": 1.8}),
}  # fmt: skip


def bits() -> StructuralModel:
    """Each is 1 with probability 1 / (1 + exp(-(bias + Σ weights of parents that are 1)))."""
    nodes = []
    for name in BITS:
        bias, weights = LOGITS[name]
        parents = [one for one in BITS if one in weights]
        params = {
            "linear": torch.tensor([[0.0] * len(parents), [weights[one] for one in parents]]).reshape(2, len(parents)),
            "bias": torch.tensor([[0.0], [bias]]), "hidden": torch.zeros(1, len(parents)),
            "hidden_bias": torch.zeros(1, 1), "head": torch.zeros(2, 1),
        }  # fmt: skip
        nodes.append(Node("categorical", 1, params))
    column = Column(0.5, 0.5, 0.0, 1.0, (0.0, 1.0))
    return StructuralModel(CausalGraph.dag(ARROWS, BITS), BITS, (column,) * 4, tuple(nodes))


def enumerated(target: str, do: Mapping[str, float], given: Mapping[str, float]) -> float:
    """P(target = 1 | do, given), summed over the sixteen worlds."""
    both = {True: 0.0, False: 0.0}
    for values in product((0, 1), repeat=4):
        world = dict(zip(BITS, values, strict=True))
        weight = float(all(world[name] == value for name, value in {**do, **given}.items()))
        for name in set(BITS) - set(do):
            bias, weights = LOGITS[name]
            one = 1 / (1 + math.exp(-bias - sum(weights[parent] * world[parent] for parent in weights)))
            weight *= one if world[name] else 1 - one
        both[world[target] == 1] += weight
    return both[True] / (both[True] + both[False])
