"""Tests of independence between blocks of columns, on the second moments of a feature map.

Each block is first written in principal directions of its own, of unit variance: directions with less than `FINE`
of a standardised column's variance are left out, and of noisy evidence those with less than `FLOOR` or whose variance
is below three standard deviations of the noise on it. (Noisy columns are divided by a little more than their standard
deviations first, lest one that hardly varies lend its noise to all directions.) That does the work of a ridge: Fourier
features of one number are nearly collinear, and inverting what is left costs neither precision nor much noise. What
remains is the matrix K of all directions, whose diagonal blocks are identities, and their coefficients T on (1, z),
K = T M Tᵀ / n.

A variable in S is regressed on with all its directions; of a and b only the broad ones are tested, those with `BROAD`
of their block's variance or as much as an average column. So RCoT (Strobl, Zhang & Visweswaran, 2019) takes 5 features
of a and b and 100 of S: what the regressions cannot fit is taken for dependence, and few directions have more power.

Given S, regression on its directions leaves residuals of a and b with covariances A, B and cross-covariance C; the
canonical correlations r of the residuals are the singular values of A^-½ C B^-½. Wilks' statistic with Bartlett's
correction (Bartlett, 1947) is

    -(n - 1 - s - (p + q + 1)/2) · Σ log(1 - r²),   chi² with p·q degrees of freedom

if a and b are independent given S, the regressions hold all of S that matters to a and b, and the residuals' spreads
do not change together with S. It is invariant under any change of basis inside a block, so of a categorical variable
it does not matter which level is left out. Noise moves an entry of A^-½ C B^-½ by ⟨E, sym(u wᵀ)⟩/n, u and
w the residuals' coefficients; with V the covariance of these, the statistic is cᵀ (I/ν + V)^-1 c, where c is the
matrix with r replaced by √(-log(1 - r²)) and ν the factor above. Without noise that is Wilks' statistic again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from scipy.special import gammaincc, gammaln, ndtri_exp
from torch import Tensor

from causaldao.errors import DataError
from causaldao.models.discovery.evidence import Evidence, Floats
from causaldao.models.graph import Pair

FINE = 1e-6  # faint directions tell how S curves in its tails: at 1e-3 these curves counted as dependence
FLOOR = 1e-3
BROAD = 0.05
_CLEAR = 3.0
_DAMPING = 10.0
_SINGULAR = 1e-10
_UNDERFLOW = -600.0


@dataclass(frozen=True)
class Whitened:
    """Evidence in principal directions of each variable: k of them in all.

    Attributes
    ----------
    names : the variables.
    places : the directions of each, by falling variance.
    tested : how many of them, the first, are broad enough to be tested and scored.
    matrix : (k, k) K, the correlations, with identities on the diagonal.
    coefficients : (k, c+1) of the directions on (1, z), c columns.
    gram : (k, k) the products of the directions' coefficients.
    count, noise : of the evidence.
    """

    names: tuple[str, ...]
    places: tuple[range, ...]
    tested: tuple[int, ...]
    matrix: Tensor
    coefficients: Tensor
    gram: Tensor
    count: float
    noise: float

    @staticmethod
    def of(evidence: Evidence) -> Whitened:
        """The whitened evidence.

        Raises:
            DataError: no more records than columns; a column of exact evidence that does not vary; a variable that is
                drowned in noise.
        """
        if evidence.count <= evidence.d + 1:
            raise DataError(
                f"The evidence counts {evidence.count:.4g} records for {evidence.d} columns of features: give more "
                f"than {evidence.d + 1}, or a map of fewer features."
            )
        parts, places, tested, start = [], [], [], 0
        for name in evidence.names:
            part, broad = _directions(evidence, name)
            parts.append(part)
            places.append(range(start, start + len(part)))
            tested.append(broad)
            start += len(part)
        to = torch.cat(parts)
        matrix = to @ evidence.moments @ to.T / evidence.count
        return Whitened(
            evidence.names, tuple(places), tuple(tested), matrix, to, to @ to.T, evidence.count, evidence.noise
        )

    def broad(self) -> Whitened:
        """The tested directions alone."""
        kept = [c for place, most in zip(self.places, self.tested, strict=True) for c in place[:most]]
        ends = accumulate(self.tested)
        places = tuple(range(end - most, end) for end, most in zip(ends, self.tested, strict=True))
        matrix, gram = self.matrix[kept][:, kept], self.gram[kept][:, kept]
        return replace(self, places=places, matrix=matrix, coefficients=self.coefficients[kept], gram=gram)


def _directions(evidence: Evidence, name: str) -> tuple[Tensor, int]:
    """(r, k+1) coefficients on (1, z) of the principal directions of the variable's block, with unit variances, and how
    many of them are to be tested.
    """
    columns = list(evidence.columns(name))
    variances = evidence.covariance().diagonal()[columns]
    if evidence.noise == 0 and bool((variances <= _SINGULAR).any()):
        place = int(variances.argmin())
        raise DataError(
            f"Column {place + 1} of {len(columns)} of {name!r} has variance {float(variances.min()):.3g} in "
            f"{evidence.count:.6g} records: it is constant, a level that no record has, or a wave too wide. Drop it."
        )
    mean, covariance = evidence.mean()[columns], evidence.covariance()[columns][:, columns]
    error = evidence.noise / evidence.count
    deviations = (variances + _DAMPING * error * (1 + mean.square())).clamp_min(_SINGULAR).sqrt()
    values, vectors = torch.linalg.eigh(covariance / torch.outer(deviations, deviations))
    values, directions = values.flip(0), vectors.T.flip(0) / deviations
    shift = -directions @ mean
    unclear = _CLEAR * error * (directions.square().sum(dim=1) + shift.square())
    kept = values > unclear.clamp_min(FLOOR if evidence.noise else FINE)
    if not bool(kept.any()):
        raise DataError(
            f"Variable {name!r} is drowned in the noise of {evidence.noise:.4g} on {evidence.count:.6g} records. Drop "
            "it, or use more records or a larger epsilon."
        )
    found = torch.zeros(int(kept.sum()), evidence.d + 1, dtype=torch.float64)
    scale = values[kept].rsqrt()
    found[:, [c + 1 for c in columns]] = directions[kept] * scale[:, None]
    found[:, 0] = shift[kept] * scale
    return found, max(1, int((values[kept] >= min(1.0, BROAD * len(columns))).sum()))


def standardised(evidence: Evidence) -> Floats:
    """The matrix that regressions rest on: correlations of the variables, or of the directions of their blocks."""
    matrix: Floats = (Whitened.of(evidence).matrix if evidence.blocks else evidence.correlation()).numpy()
    return matrix


@dataclass(frozen=True)
class BlockTests:
    """Wilks' tests between the variables of whitened evidence, in batches of equal shapes."""

    evidence: Whitened

    def answers(self, questions: Sequence[tuple[Pair, tuple[str, ...]]]) -> list[float]:
        """Of each (a, b), S: the two-sided normal |z| of the same p-value as the test's; infinite where a residual
        covariance is not positive.
        """
        own = dict(zip(self.evidence.names, map(list, self.evidence.places), strict=True))
        first = {n: own[n][:most] for n, most in zip(self.evidence.names, self.evidence.tested, strict=True)}
        groups: defaultdict[tuple[int, int], list[tuple[int, list[int]]]] = defaultdict(list)
        for number, ((a, b), given) in enumerate(questions):
            columns = [*first[a], *first[b], *(c for name in given for c in own[name])]
            groups[len(first[a]), len(first[b])].append((number, columns))
        found = [math.inf] * len(questions)
        for (p, q), asked in groups.items():
            for size in sorted({len(columns) for _, columns in asked}):
                part = [(number, columns) for number, columns in asked if len(columns) == size]
                statistics = self.statistics(torch.tensor([columns for _, columns in part]), p, q)
                for (number, _), statistic in zip(part, normal(statistics, p * q).tolist(), strict=True):
                    found[number] = statistic
        return found

    def statistics(self, columns: Tensor, p: int, q: int) -> Tensor:
        """(B, p + q + s) directions of a, b and S -> (B,) chi² statistics; infinite where there is none."""
        matrix, size = self.evidence.matrix, p + q
        whole = matrix[columns[:, :, None], columns[:, None, :]]
        factor, failed = torch.linalg.cholesky_ex(whole[:, size:, size:])
        good = failed == 0
        eye = torch.eye(columns.shape[1], dtype=matrix.dtype)
        factor = torch.where(good[:, None, None], factor, eye[size:, size:])
        weights = torch.cholesky_solve(whole[:, size:, :size], factor)
        residual = whole[:, :size, :size] - whole[:, :size, size:] @ weights
        left, fine = roots(residual[:, :p, :p])
        right, well = roots(residual[:, p:, p:])
        cross = left @ residual[:, :p, p:] @ right.mT
        u, r, v = torch.linalg.svd(cross, full_matrices=False)
        good &= fine & well & (r.amax(dim=1) ** 2 < 1 - _SINGULAR)
        free = self.evidence.count - 1 - (columns.shape[1] - size) - (size + 1) / 2
        bent = (-torch.log1p(-r.square().clamp_max(1 - _SINGULAR))).sqrt()
        statistic = free * bent.square().sum(dim=1)
        if self.evidence.noise:
            coefficients = torch.cat([eye[:size, :size].expand(len(columns), size, size), -weights.mT], dim=2)
            error = self._privacy(left @ coefficients[:, :p], right @ coefficients[:, p:], columns)
            error += torch.eye(p * q, dtype=matrix.dtype) / free
            c = ((u * bent[:, None, :]) @ v).flatten(1)[:, :, None]
            statistic = (c * torch.linalg.solve(error, c)).sum(dim=(1, 2))
        return torch.where(good & (free > 0), statistic, math.inf)

    def _privacy(self, u: Tensor, w: Tensor, columns: Tensor) -> Tensor:
        """(B, pq, pq) covariance that noise gives the entries of the whitened cross-covariance uᵀMw / n: that of
        ⟨E, sym(u wᵀ)⟩ and ⟨E, sym(x yᵀ)⟩ is σ²/2·((u·x)(w·y) + (u·y)(w·x)).
        """
        gram = self.evidence.gram[columns[:, :, None], columns[:, None, :]]
        uu, ww, uw = u @ gram @ u.mT, w @ gram @ w.mT, u @ gram @ w.mT
        both = torch.einsum("zik,zjl->zijkl", uu, ww) + torch.einsum("zil,zkj->zijkl", uw, uw)
        size = both.shape[1] * both.shape[2]
        return both.reshape(-1, size, size) * (self.evidence.noise**2 / (2 * self.evidence.count**2))


def roots(block: Tensor) -> tuple[Tensor, Tensor]:
    """(B, p, p) -> L^-1 of block = L Lᵀ, and whether the block was safely positive definite (B,)."""
    factor, failed = torch.linalg.cholesky_ex(block)
    eye = torch.eye(block.shape[1], dtype=block.dtype)
    good = (failed == 0) & (factor.diagonal(dim1=1, dim2=2).square() > _SINGULAR).all(dim=1)
    return torch.linalg.solve_triangular(torch.where(good[:, None, None], factor, eye), eye, upper=False), good


def normal(statistics: Tensor, df: int) -> Tensor:
    """(B,) chi² statistics -> (B,) the |z| whose two-sided normal p-value is the same, beyond any underflow."""
    half, shape = statistics.numpy() / 2, df / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = np.log(gammaincc(shape, half))
        # the first terms of the asymptotic series of the upper incomplete gamma function
        far = (shape - 1) * np.log(half) - half - gammaln(shape) + np.log1p((shape - 1) / half)
        z = -ndtri_exp(np.where(tail < _UNDERFLOW, far, tail) - math.log(2))
    return torch.from_numpy(np.where(np.isinf(half), np.inf, z))
