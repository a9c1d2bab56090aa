"""Tests of conditional independence on counts: the likelihood-ratio test G², and one that counts the noise of tables.

Within each stratum of the set S the counts of a and b are those of independent variables if a and b are independent
given S. G² = 2 Σ O log(O / E), with E from the margins of the stratum, is then chi-squared (Spirtes et al., 2000,
section 5.5). Its degrees of freedom are, summed over strata, (rows that occur - 1) · (columns that occur - 1): a
level that does not occur in a stratum is taken as impossible there.

Noisy counts O = T + σξ have no G²: cells may be negative, and where few records fall the noise is all there is. The
test of them is the least of Σ (O - E)² / (V + σ²) over the tables E of independent variables, to first order around
those of the margins, whose expected counts are V: counts vary as V and the noise adds σ² (Kifer & Rogers, 2017). So it
is chi-squared with as many degrees of freedom, whatever σ is. Levels and strata whose margin is less than three
standard deviations of its noise are left out, as those that do not occur: of them the margin decides, which
says nothing of dependence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import chdtrc, ndtri, xlogy

Floats = np.ndarray[Any, np.dtype[np.float64]]
_SEEN = 3.0  # standard deviations


def g_square(counts: Floats, sizes: Sequence[int]) -> tuple[Floats, Floats]:
    """(G², degrees of freedom), each (k,), of one variable with k others in exact counts (q, r, sum of ``sizes``)."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    columns, rows = counts.sum(axis=1), counts[:, :, : sizes[0]].sum(axis=2)
    cells = xlogy(counts, counts).sum(axis=(0, 1)) - xlogy(columns, columns).sum(axis=0)
    total = rows.sum(axis=1)
    shared = float(xlogy(total, total).sum() - xlogy(rows, rows).sum())
    seen = np.add.reduceat(columns > 0, starts, axis=1, dtype=np.int64)
    free = (np.count_nonzero(rows, axis=1) - 1).clip(0) @ (seen - 1).clip(0)
    return (2 * (np.add.reduceat(cells, starts) + shared)).clip(0), free.astype(np.float64)


def noisy_square(counts: Floats, sigma: float) -> tuple[float, float]:
    """(statistic, degrees of freedom) of counts (q, r, s) whose cells have noise of scale ``sigma`` > 0."""
    _, r, s = counts.shape
    bound = _SEEN * sigma
    counts = counts[counts.sum(axis=(1, 2)) > bound * np.sqrt(r * s)]
    rows, columns = counts.sum(axis=2), counts.sum(axis=1)
    row_seen, column_seen = rows > bound * np.sqrt(s), columns > bound * np.sqrt(r)
    free = float(((row_seen.sum(axis=1) - 1).clip(0) * (column_seen.sum(axis=1) - 1).clip(0)).sum())
    if not free:
        return 0.0, 0.0
    seen = row_seen[:, :, None] & column_seen[:, None, :]
    kept = np.where(seen, counts, 0.0)
    rows, columns = kept.sum(axis=2).clip(0), kept.sum(axis=1).clip(0)
    total = np.maximum(kept.sum(axis=(1, 2)), bound)[:, None]
    expected = rows[:, :, None] * columns[:, None, :] / total[:, :, None]
    weight = np.where(seen, 1 / np.sqrt(expected + sigma**2), 0.0)
    residual = ((kept - expected) * weight).reshape(len(kept), -1, 1)
    # the derivatives of E = αβ by the α and by the β, up to scale
    by_row = np.eye(r)[None, :, None, :] * columns[:, None, :, None]
    by_column = np.eye(s)[None, None, :, :] * rows[:, :, None, None]
    both = np.concatenate([by_row, by_column], axis=3)
    tangent = (both * weight[:, :, :, None] / total[:, :, None, None]).reshape(len(kept), r * s, r + s)
    fitted = tangent @ (np.linalg.pinv(tangent, rcond=1e-10) @ residual)
    return float(((residual - fitted) ** 2).sum()), free


def normal_score(statistic: Floats, free: Floats) -> Floats:
    """|z| of a two-sided normal test with the p-value of each chi-squared statistic; infinite below 1e-300."""
    with np.errstate(divide="ignore"):
        scores: Floats = -ndtri(chdtrc(np.maximum(free, 1.0), statistic) / 2)
    return scores + 0.0
