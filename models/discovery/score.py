"""The Gaussian score of a variable given its parents, on second moments: a BIC that counts the noise of each parent.

The score of j with parents pa is the Gaussian BIC (Schwarz, 1978), read off the correlation matrix, in which
a parameter counts by how much its estimate varies::

    -n · log σ²(j | pa) - c · log n · Σ (1 + V_k)   over k in pa

V_k is the noise variance of the coefficient of k over its sampling variance, both as they are if k is no
cause, that is as the score test of k sees them. With M the moments and u, w the coefficients on (1, z) of the
residuals of k and j given the other parents, the test reads uᵀMw, whose noise is <E, sym(u wᵀ)>, so

    V_k = σ²·(‖u‖²‖w‖² + (u·w)²)/2 / (uᵀMu · wᵀMw / n)

and Σ (1 + V_k) counts parameters as Takeuchi (1976) does: variance of the score over information, a sandwich.
To leave k out costs n·log(1 + t²/n), about t² for t = coefficient / sampling error, so k enters if about

    z² = t² / (1 + V_k) > c · log n

with z in units of both errors. So noise moves the line by what it moves the estimate, edge by edge and set by
set, most where parents are nearly collinear or a residual is small. Exact evidence has V = 0: the BIC. A
parent set under which noise leaves no positive residual variance is not considered.

c = 2 serves both. SHD on 20 variables, mean of 6 seeds; N records at 20 sites, scaled by public bounds to
standard deviations of .12 to .45, each site's noise 1.2 (ε = 4) or 4 (ε = 1) times the clip of 3.6. "Flat" is
8·log n_eff for each parent with no V, n_eff = 1 / (1/n + mean noise variance of a correlation). The form of V
and c were chosen on the first seeds; the two columns on the right are of 6 others::

    weights       N       ε     c=1    c=1.5   c=2    flat     c=2    flat
    ER1 U(.4,.9)  100000  4     0      0       0      0        0      0
    ER1 U(.4,.9)  20000   1     4.0    5.0     5.5    17.0     7.2    25.3
    ER1 U(.5,2)   100000  1     7.3    3.8     3.7    40.5     2.2    35.7
    ER1 U(.5,2)   20000   4     4.3    2.5     2.8    45.7     7.3    68.5
    ER2 U(.4,.9)  100000  4     5.2    5.3     5.3    .7       2.2    2.0
    ER2 U(.4,.9)  100000  1     12.0   7.2     7.2    7.5      13.8   7.2
    ER2 U(.4,.9)  20000   1     29.0   28.0    25.0   62.7     19.7   66.8
    ER2 U(.5,2)   100000  4     25.8   21.5    21.5   91.7     28.7   86.5

Where nothing causes anything, c = 2 finds an edge in under 2 % of runs, c = 1 in up to half. V at the fitted
coefficient instead differs at the two ends of an edge: over 16 settings on the other seeds it has a mean SHD
of 15.3 against 13.4 here, but 6.5 against 7.0 where all variances are equal. The trace over all parameters
gives equivalent graphs one score, which V under noise does not, but charges strong edges more and lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from causaldao.errors import DataError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.knowledge import Knowledge

PENALTY = 2.0
NO_START = (
    "The required parents have no score: noise leaves no residual variance beside them, or their table is too large. "
    "Require fewer, or use more records."
)
_SINGULAR = 1e-10
_MANY = 40  # members, from which on NumPy lists them sooner

Floats = np.ndarray[Any, np.dtype[np.float64]]
Order = list[int]


class LocalScore(Protocol):
    """What a search for the best score asks: sets of variables are bit masks of positions in ``names``.

    ``allowed`` and ``required`` hold, for each variable, the mask of what may and must be its parents.
    """

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def allowed(self) -> Sequence[int]: ...
    @property
    def required(self) -> Sequence[int]: ...

    def of_parents(self, j: int, parents: int) -> float:
        """The score of j with exactly these parents; -inf where there is none."""
        ...

    def gains(self, j: int, parents: int, among: int) -> tuple[Order, Floats]:
        """(candidates, the gain of each as one more parent of j); only what is allowed is looked at."""
        ...

    def losses(self, j: int, parents: int) -> tuple[Order, Floats]:
        """(parents that are not required, the gain of leaving each out)."""
        ...

    def notes(self) -> tuple[str, ...]:
        """What could not be scored, for the result."""
        ...


@dataclass(frozen=True)
class Score:
    """The score of each variable given any parents; sets of variables are bit masks of positions in ``names``.

    ``noise`` is σ²/2n, and ``gram`` (d, d) holds the products of the standardised variables' coefficient
    vectors on (1, z). ``allowed`` and ``required`` hold, for each variable, the mask of what may and must be
    its parents.
    """

    names: tuple[str, ...]
    correlation: Floats
    count: float
    cost: float
    noise: float
    gram: Floats
    allowed: Sequence[int]
    required: Sequence[int]

    @staticmethod
    def of(evidence: Evidence, penalty: float, knowledge: Knowledge, method: str) -> Score:
        """The score on the evidence, in the order of its columns; ``method`` names the search in errors.

        Raises:
            DataError: exact evidence whose variables are linearly dependent, evidence worth fewer than 3
                records.
        """
        correlation = evidence.correlation().numpy()
        if evidence.n_eff < 3:
            raise DataError(
                f"The evidence is worth {evidence.n_eff:.3g} records after noise. {method} needs 3: use more records."
            )
        refuse_dependent(evidence, correlation)
        names = evidence.names
        allowed, required = allowed_masks(names, knowledge)
        count, scale = evidence.count, evidence.covariance().diagonal().rsqrt()
        shift = evidence.mean() * scale
        gram = (torch.outer(shift, shift) + scale.square().diag()).numpy()
        cost, noise = penalty * math.log(count), evidence.noise**2 / (2 * count)
        return Score(names, correlation, count, cost, noise, gram, allowed, required)

    def of_parents(self, j: int, parents: int) -> float:
        """The score of j with exactly these parents; -inf where they leave no residual variance, or noise made their
        own correlations no such matrix.
        """
        variance, _, _ = self._given(j, parents, [])
        if variance <= _SINGULAR or (self.noise and not self._positive(members_of(parents))):
            return -math.inf
        return -self.count * math.log(variance) - self.cost * float(self._weigh(j, [members_of(parents)])[0])

    def gains(self, j: int, parents: int, among: int) -> tuple[Order, Floats]:
        """(candidates, the gain of each as one more parent of j); only what is allowed is looked at."""
        columns = members_of(among & self.allowed[j] & ~parents)
        variance, rows, diagonal = self._given(j, parents, columns)
        with np.errstate(divide="ignore", invalid="ignore"):
            after = 1 - rows**2 / (diagonal * variance)
            gain = -self.count * np.log(after)
        usable = (diagonal > _SINGULAR) & (after * variance > _SINGULAR) & (variance > _SINGULAR)
        if not self.noise:
            gain -= self.cost
        elif (worth := np.flatnonzero(usable)).size:
            members = members_of(parents)
            wider = self._weigh(j, [[*members, columns[i]] for i in worth])
            gain[worth] -= self.cost * (wider - self._weigh(j, [members]))
        return columns, np.where(usable, gain, -np.inf)

    def losses(self, j: int, parents: int) -> tuple[Order, Floats]:
        """(parents that are not required, the gain of leaving each out)."""
        members = members_of(parents)
        if not members:
            return [], np.empty(0)
        inverse = np.linalg.inv(self.correlation[members][:, members])
        weights = inverse @ self.correlation[members, j]
        variance = float(1 - self.correlation[members, j] @ weights)
        if variance <= _SINGULAR:
            return [], np.empty(0)
        gain = np.full(len(members), self.cost)
        if self.noise:
            fewer = self._weigh(j, [[m for m in members if m != left_out] for left_out in members])
            gain = self.cost * (self._weigh(j, [members]) - fewer)
        gain -= self.count * np.log1p(weights**2 / (inverse.diagonal() * variance))
        free = [i for i, member in enumerate(members) if not self.required[j] >> member & 1]
        return [members[i] for i in free], gain[free]

    def notes(self) -> tuple[str, ...]:
        return ()

    def _given(self, j: int, parents: int, columns: Order) -> tuple[float, Floats, Floats]:
        """Given the parents: (variance of j, its covariances with ``columns``, their variances)."""
        members, corr = members_of(parents), self.correlation
        if not members:
            return 1.0, corr[j, columns], np.ones(len(columns))
        targets = [j, *columns]
        rows = corr[members]
        cross = rows[:, targets]
        weights = np.linalg.solve(rows[:, members], cross)
        covariances = corr[j, targets] - cross[:, 0] @ weights
        diagonal = 1 - (cross * weights).sum(axis=0)
        return float(diagonal[0]), covariances[1:], diagonal[1:]

    def _positive(self, members: Order) -> bool:
        block = self.correlation[np.ix_(members, members)]
        return not members or float(np.linalg.eigvalsh(block)[0]) > _SINGULAR

    def _weigh(self, j: int, sets: Sequence[Order]) -> Floats:
        """(c,) the Σ (1 + V_k) of c sets of parents of j, all of one size.

        Coefficient vectors are written in those of the standardised variables, so that ``gram`` holds all
        their products and u, w have variances 1 / K_kk and σ²(j | pa) + b_k² / K_kk, with K the inverse of
        the set's block of correlations and b = K · its correlations with j.
        """
        size = len(sets[0])
        if not (self.noise and size):
            return np.full(len(sets), float(size))
        pa = np.array(sets)
        square, gram = (pa[:, :, None], pa[:, None, :]), self.gram
        inverse, cross = np.linalg.inv(self.correlation[square]), self.correlation[pa, j]
        b = (inverse @ cross[:, :, None])[:, :, 0]
        kk = inverse.diagonal(axis1=1, axis2=2)
        variance = (1 - (b * cross).sum(axis=1))[:, None]
        # r = w with k among the parents, so w = r + b_k u
        along = gram[pa, j] - (gram[square] @ b[:, :, None])[:, :, 0]
        r2 = gram[j, j] - (b * (gram[pa, j] + along)).sum(axis=1)
        u2 = ((inverse @ gram[square]) * inverse).sum(axis=2) / kk**2
        ru = (inverse @ along[:, :, None])[:, :, 0] / kk
        w2, uw = r2[:, None] + 2 * b * ru + b**2 * u2, ru + b * u2
        extra = self.noise * (u2 * w2 + uw**2) * kk / (variance + b**2 / kk)
        possible = (kk > 0).all(axis=1) & (variance > 0).all(axis=1)
        return np.where(possible, size + extra.sum(axis=1), np.inf)


def refuse_dependent(evidence: Evidence, correlation: Floats) -> None:
    """Raise DataError where exact evidence cannot bear a regression on all other variables."""
    if evidence.noise == 0 and np.linalg.eigvalsh(correlation).min(initial=1.0) < _SINGULAR:
        raise DataError(
            f"Some of {', '.join(evidence.names)} are linearly dependent in {evidence.count:.6g} records. "
            "Drop variables that others determine, or use more records than variables."
        )


def allowed_masks(names: Sequence[str], knowledge: Knowledge) -> tuple[list[int], list[int]]:
    """For each name, the masks of what may and of what must be its parents."""
    allowed = [mask_of(a != b and knowledge.allows(a, b) for a in names) for b in names]
    return allowed, [mask_of((a, b) in knowledge.required for a in names) for b in names]


def mask_of(flags: Iterator[bool]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def members_of(mask: int) -> Order:
    if mask.bit_count() > _MANY:
        octets = np.frombuffer(mask.to_bytes(-(-mask.bit_length() // 8), "little"), dtype=np.uint8)
        return np.flatnonzero(np.unpackbits(octets, bitorder="little")).tolist()
    members = []
    while mask:
        low = mask & -mask
        members.append(low.bit_length() - 1)
        mask ^= low
    return members
