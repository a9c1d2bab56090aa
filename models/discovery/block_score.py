"""The Gaussian score of a block of columns given the blocks of its parents, through the interface of `score.py`.

Of variable j with p directions (`blocks.py`) and parents with q_k each, it is that of a multivariate regression::

    -n · log det Σ(j | pa) - c · log n · Σ (p·q_k + V_k)   over k in pa

For one-hot blocks it is the degenerate Gaussian score (Andrews, Ramsey & Cooper, 2019); blocks of one column give the
score of `score.py` back. All DAGs of a class score alike without noise. V_k is again the noise variance of k's
coefficients over their sampling variance, summed over the p·q_k of them: with u and w the residuals of k and of j given
the other parents, of variances A and B and with products G of their coefficients on (1, z)::

    V_k = σ²/2n · (tr A^-1 G_uu · tr B^-1 G_ww + tr A^-1 G_uw B^-1 G_uwᵀ)

Directions are the broad ones of `blocks.py`. c = 1, the BIC, by default: a parent brings p·q_k parameters, and the
double price that suits numbers would leave weak curved edges out. F1 of BOSS's skeletons, mechanisms that are random
networks, 20 variables and 40 edges, mean of the seeds 100 to 102, on which c was chosen::

    records   c=.5   c=.7   c=1
    1000      .81    .79    .76
    5000      .79    .83    .83
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from causaldao.models.discovery.blocks import Whitened
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.score import Floats, Order, allowed_masks, members_of, refuse_dependent
from causaldao.models.knowledge import Knowledge

BLOCK_PENALTY = 1.0
_SINGULAR = 1e-10

Real = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class BlockScore:
    """The score of each variable's block given any parents; what was computed is kept in ``known``."""

    evidence: Whitened
    matrix: Floats
    gram: Floats
    cost: float
    allowed: Sequence[int]
    required: Sequence[int]
    known: dict[tuple[int, int], float] = field(default_factory=dict)

    @staticmethod
    def of(evidence: Evidence, penalty: float, knowledge: Knowledge) -> BlockScore:
        """The score on the evidence, in the order of its variables.

        Raises:
            DataError: fewer records than columns, a variable without variance or drowned in noise, exact evidence whose
                blocks are linearly dependent.
        """
        whitened = Whitened.of(evidence).broad()
        matrix, gram = whitened.matrix.numpy(), whitened.gram.numpy()
        refuse_dependent(evidence, matrix)
        return BlockScore(
            whitened, matrix, gram, penalty * math.log(evidence.count), *allowed_masks(evidence.names, knowledge)
        )

    @property
    def names(self) -> tuple[str, ...]:
        return self.evidence.names

    def of_parents(self, j: int, parents: int) -> float:
        """The score of j with exactly these parents; -inf where they leave no residual variance."""
        found = self.known.get((j, parents))
        if found is None:
            found = self.known[j, parents] = self._score(j, members_of(parents))
        return found

    def gains(self, j: int, parents: int, among: int) -> tuple[Order, Floats]:
        """(candidates, the gain of each as one more parent of j); only what is allowed is looked at."""
        columns = members_of(among & self.allowed[j] & ~parents)
        return columns, self._beyond(j, parents, [parents | 1 << i for i in columns])

    def losses(self, j: int, parents: int) -> tuple[Order, Floats]:
        """(parents that are not required, the gain of leaving each out)."""
        free = members_of(parents & ~self.required[j])
        return free, self._beyond(j, parents, [parents & ~(1 << i) for i in free])

    def notes(self) -> tuple[str, ...]:
        """Nothing: all parents can be scored."""
        return ()

    def _beyond(self, j: int, parents: int, others: Sequence[int]) -> Floats:
        now = self.of_parents(j, parents)
        if now == -math.inf:
            return np.full(len(others), -np.inf)
        return np.array([self.of_parents(j, mask) for mask in others]) - now

    def _score(self, j: int, members: Order) -> float:
        own, owned = list(self.evidence.places[j]), [list(self.evidence.places[k]) for k in members]
        given = [c for columns in owned for c in columns]
        cross = self.matrix[np.ix_(given, own)]
        try:
            inverse = np.linalg.inv(self.matrix[np.ix_(given, given)])
            weights = inverse @ cross
            residual = self.matrix[np.ix_(own, own)] - cross.T @ weights
            roots = np.linalg.cholesky(residual).diagonal()
        except np.linalg.LinAlgError:
            return -math.inf
        if roots.min() ** 2 <= _SINGULAR:
            return -math.inf
        parameters = float(len(own) * len(given))
        if self.evidence.noise:
            parameters += self._noise(own, given, list(map(len, owned)), inverse, weights, residual)
        fit: float = -2 * self.evidence.count * float(np.log(roots).sum())
        return fit - self.cost * parameters

    def _noise(
        self, own: Order, given: Order, sizes: Sequence[int], inverse: Real, weights: Real, residual: Real
    ) -> float:
        """Σ V_k over the parents, blocks of ``sizes`` in ``given``; ∞ where noise leaves one no variance.

        With r the residual of j given all, that without k is w = r + u b_k, and r has no part in u's variance.
        """
        gram = self.gram[np.ix_(given, given)]
        along = self.gram[np.ix_(given, own)] - gram @ weights
        within = self.gram[np.ix_(own, own)] - weights.T @ self.gram[np.ix_(given, own)] - along.T @ weights
        spread, mixed = inverse @ gram @ inverse, inverse @ along
        total, start = 0.0, 0
        for size in sizes:
            k = slice(start, start + size)
            start += size
            variance, b = np.linalg.inv(inverse[k, k]), weights[k]
            uu, ur = variance @ spread[k, k] @ variance, variance @ mixed[k]
            uw, without = ur + uu @ b, residual + b.T @ variance @ b
            ww = within + b.T @ ur + ur.T @ b + b.T @ uu @ b
            if min(np.linalg.eigvalsh(variance)[0], np.linalg.eigvalsh(without)[0]) <= 0:
                return math.inf
            back = np.linalg.inv(without)
            total += float(np.trace(inverse[k, k] @ uu) * np.trace(back @ ww))
            total += float(np.trace(inverse[k, k] @ uw @ back @ uw.T))
        return self.evidence.noise**2 / (2 * self.evidence.count) * total
