"""What the benchmark of federated discovery is played in: a random model, sites with rows of it, and liars.

A model is linear and Gaussian with unit noise over d variables in a random order; ER1 has d expected edges, ER2 2·d.
Each honest site draws its own rows and gives evidence of them as a node does: through the public dictionary, with
discrete Gaussian noise calibrated to ε at δ = 1e-5. Bounds are `BOUND` standard deviations, as somebody who knows the
field would give them. A liar sends what it likes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from causaldao.budget import multiplier
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import release_evidence
from causaldao.models.discovery.evidence import Dictionary, Evidence, Variable
from causaldao.models.graph import CausalGraph
from causaldao.pool import Pool
from causaldao.simulations.datasets import linear_gaussian

Floats = NDArray[np.float64]
Look = Callable[[Mapping[str, Evidence]], Pool]

DELTA = 1e-5
BOUND = 2.5  # standard deviations to each side
CLIP = 0.7  # of the mean squared length of a record: shorter takes more from records, longer costs more noise
WEIGHTS = {"moderate": (0.4, 0.9), "strong": (0.5, 2.0)}
EDGES = {"ER1": 1.0, "ER2": 2.0}  # expected, for each variable
STEALTH = 0.1  # share of the lie in what stealthy liars send
_CLAIMED = 20_000  # records of which liars make up their story
_SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.02)


@dataclass(frozen=True)
class World:
    """A model: ``weights[i, j]`` of i -> j, its covariance (d, d), and the dictionary of the study."""

    names: tuple[str, ...]
    weights: Floats
    covariance: Floats
    dictionary: Dictionary

    @staticmethod
    def draw(graph: str, weights: str, d: int, seed: int) -> World:
        rng = np.random.default_rng([seed, 30])
        matrix = _weights(rng, EDGES[graph], WEIGHTS[weights], d)
        covariance = _covariance(matrix)
        names = tuple(f"v{i:02}" for i in range(d))
        return World(names, matrix, covariance, dictionary(names, np.sqrt(covariance.diagonal())))

    @property
    def dag(self) -> CausalGraph:
        return CausalGraph.dag(list(self._edges()), self.names)

    def rows(self, n: int, rng: np.random.Generator) -> pd.DataFrame:
        return linear_gaussian(self._edges(), n, rng, self.names)

    def _edges(self) -> dict[tuple[str, str], float]:
        found = zip(*np.nonzero(self.weights), strict=True)
        return {(self.names[i], self.names[j]): float(self.weights[i, j]) for i, j in found}

    def claim(self, attack: str, seed: int) -> Tensor:
        """(d+1, d+1) moments per record of the false model that liars agree on, with the honest variances, clipped."""
        rng = np.random.default_rng([seed, 31])
        other = (
            self.weights.T if attack != "random" else _weights(rng, EDGES["ER1"], WEIGHTS["strong"], len(self.names))
        )
        liar = replace(self, weights=other)
        rows = liar.rows(_CLAIMED, rng) * np.sqrt(self.covariance.diagonal() / _covariance(other).diagonal())
        told = Evidence.from_data(rows, self.dictionary)
        return told.moments / told.count


def lies(
    world: World, attack: str, releases: Mapping[str, Evidence], liars: Sequence[str], look: Look, seed: int
) -> dict[str, Evidence]:
    """All members' evidence, that of ``liars`` replaced by what they send, all knowing everything, the rule too.

    ``reversed``: the moments, exact and all the same, of the true model with every arrow turned around. ``random``: of
    another model. ``stealthy``: nine tenths of the honest mean and a tenth of the reversed model. ``quiet``: each its
    own honest release, so that its noise is its own, moved towards the reversed model as far as the rule keeps them all
    and accuses none (or by 2 % if it never does).
    """
    honest = {name: one for name, one in releases.items() if name not in liars}
    if not liars:
        return honest
    claim = world.claim(attack, seed)
    mean = torch.stack([e.moments / e.count for e in honest.values()]).mean(dim=0)
    count = float(np.median([e.count for e in honest.values()]))

    def agreed(share: float) -> dict[str, Evidence]:
        moments = count * ((1 - share) * mean + share * claim)
        return honest | {name: replace(releases[name], moments=moments) for name in liars}

    def moved(share: float) -> dict[str, Evidence]:
        by = share * (claim - mean)
        by[0, 0] = 0.0
        return honest | {
            name: replace(releases[name], moments=releases[name].moments + releases[name].count * by) for name in liars
        }

    if attack != "quiet":
        return agreed(STEALTH if attack == "stealthy" else 1.0)
    return next(filter(lambda sent: _unseen(look(sent), liars), map(moved, _SHARES)), moved(_SHARES[-1]))


def _unseen(found: Pool, liars: Sequence[str]) -> bool:
    return set(liars) <= set(found.kept) and not set(liars) & set(found.accused)


def dictionary(names: Sequence[str], spread: Floats) -> Dictionary:
    """Public bounds of `BOUND` standard deviations, to two digits, and the clip."""
    bounds = [float(f"{BOUND * sd:.2g}") for sd in spread]
    variables = tuple(Variable(name, bounds=(-b, b)) for name, b in zip(names, bounds, strict=True))
    return Dictionary(variables, 1 + CLIP * len(names) / BOUND**2)


def releases(parts: Mapping[str, pd.DataFrame], words: Dictionary, epsilon: float, seed: int) -> dict[str, Evidence]:
    """The sites' evidence at ε; at infinity exact, but through the same dictionary."""
    if math.isinf(epsilon):
        return {name: Evidence.from_data(part, words) for name, part in parts.items()}
    sigma = math.ceil(multiplier(epsilon, DELTA) * words.clip * words.lattice**2)
    found = {}
    for name, part in parts.items():
        source = NoiseSource.simulated(hashlib.sha256(f"{seed} {name} {epsilon}".encode()).digest())
        found[name] = Evidence.from_release(release_evidence(part, words, sigma, source), words, sigma)
    return found


def _weights(rng: np.random.Generator, edges: float, span: tuple[float, float], d: int) -> Floats:
    """(d, d): [i, j] is the weight of i -> j, of either sign, in a random order."""
    order = rng.permutation(d)
    present = np.triu(rng.random((d, d)) < 2 * edges / (d - 1), k=1)
    matrix = np.zeros((d, d))
    matrix[np.ix_(order, order)] = present * rng.uniform(*span, (d, d)) * rng.choice([-1.0, 1.0], (d, d))
    return matrix


def _covariance(weights: Floats) -> Floats:
    mixing = np.linalg.inv(np.eye(len(weights)) - weights)
    covariance: Floats = mixing.T @ mixing
    return covariance
