"""Random linear-Gaussian models, and the evidence of their population and of samples from them."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pandas as pd
import torch

from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph, Pair


def names(d: int) -> list[str]:
    return [f"v{i:02}" for i in range(d)]


def weights(rng: np.random.Generator, d: int, degree: float, low: float = 0.5, high: float = 1.5) -> np.ndarray:
    """(d, d) of a random DAG in a random order: [i, j] is the weight of i -> j; ``degree`` is the mean."""
    order = rng.permutation(d)
    present = np.triu(rng.random((d, d)) < degree / max(d - 1, 1), k=1)
    matrix = np.zeros((d, d))
    matrix[np.ix_(order, order)] = present * rng.uniform(low, high, (d, d)) * rng.choice([-1, 1], (d, d))
    return matrix


def dag_of(matrix: np.ndarray) -> CausalGraph:
    labels = names(len(matrix))
    return CausalGraph.dag([(labels[i], labels[j]) for i, j in zip(*np.nonzero(matrix), strict=True)], labels)


def random_dag(rng: np.random.Generator, d: int, degree: float = 2.0) -> CausalGraph:
    return dag_of(weights(rng, d, degree))


def population(matrix: np.ndarray, count: float = 1e8) -> Evidence:
    """The evidence of ``count`` records whose moments are exactly those of the model with unit noise."""
    d = len(matrix)
    mixing = np.linalg.inv(np.eye(d) - matrix)
    covariance = mixing.T @ mixing
    scale = 1 / np.sqrt(covariance.diagonal())
    moments = np.zeros((d + 1, d + 1))
    moments[0, 0] = count
    moments[1:, 1:] = count * covariance * np.outer(scale, scale)
    return Evidence(tuple(names(d)), torch.from_numpy(moments))


def sample(rng: np.random.Generator, matrix: np.ndarray, n: int) -> pd.DataFrame:
    d = len(matrix)
    return pd.DataFrame(rng.normal(size=(n, d)) @ np.linalg.inv(np.eye(d) - matrix), columns=names(d))


def noisy(evidence: Evidence, sigma: float, rng: np.random.Generator) -> Evidence:
    """The evidence with symmetric noise: sigma on the diagonal, sigma / sqrt 2 off it."""
    p = evidence.d + 1
    draw = rng.normal(size=(p, p)) * sigma
    noise = (draw + draw.T) / 2
    noise[np.diag_indices(p)] = rng.normal(size=p) * sigma
    return Evidence(evidence.names, evidence.moments + torch.from_numpy(noise), sigma)


def orientations(pairs: list[Pair], nodes: list[str]) -> list[CausalGraph]:
    """Every DAG on a skeleton, by brute force."""
    found = []
    for flips in product((False, True), repeat=len(pairs)):
        edges = [pair[::-1] if flip else pair for pair, flip in zip(pairs, flips, strict=True)]
        if _acyclic(edges, nodes):
            found.append(CausalGraph.dag(edges, nodes))
    return found


def _acyclic(edges: list[Pair], nodes: list[str]) -> bool:
    reach = np.zeros((len(nodes), len(nodes)), dtype=np.int64)
    for a, b in edges:
        reach[nodes.index(a), nodes.index(b)] = 1
    return not np.linalg.matrix_power(reach, len(nodes)).any()


def chain(*labels: str) -> list[Pair]:
    return list(pairwise(labels))
