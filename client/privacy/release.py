"""The releases of evidence and of effects: integer sums over clipped records under exact discrete Gaussian noise.

Sensitivity. A record is an integer row x with ‖x‖² ≤ C²·L² on a lattice of L steps per unit, so adding or
removing it moves M = Σ x xᵀ by x xᵀ, whose Frobenius norm is ‖x‖² ≤ C²·L². Noise of variance σ² on the
diagonal and σ²/2 above it makes the upper triangle one Gaussian release of that sensitivity, because Σᵢ
xᵢ⁴/σ² + Σᵢ<ⱼ (xᵢxⱼ)²/(σ²/2) = ‖x‖⁴/σ²: its noise multiplier is σ/(C²·L²). Everything up to the noise is
integer arithmetic, so no rounding of floats enlarges the sensitivity (I. Mironov, "On significance of the
least significant bits for differential privacy", CCS 2012).
"""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causaldao.client.data.checks import conform
from causaldao.client.privacy.noise import NoiseSource
from causaldao.declared import held
from causaldao.errors import GuaranteeError, MisuseError
from causaldao.models.discovery.evidence import Dictionary, FeatureRows, columns_of
from causaldao.models.summaries import Nuisances, exact_sums

_EXACT = 1 << 53  # float64 adds and multiplies integers exactly up to here


def release_evidence(
    frame: pd.DataFrame,
    dictionary: FeatureRows,
    sigma: int,
    noise: NoiseSource | None = None,
    lacks: Collection[str] = (),
) -> NDArray[np.int64]:
    """The noisy upper triangle of M, row-major with the diagonal: int64 `(p(p+1)/2,)`, with p the features and 1.

    Entries are in lattice units, and so is `sigma`, a positive integer. `noise` defaults to a fresh source
    of the operating system's entropy. The shape depends on the dictionary alone, and no single record can
    make the release fail: values outside the bounds, missing or unreadable are mapped into them
    (`conform`). A missing column is a DataError.

    A variable that the institution ``lacks`` is not read. The rest of a record is a shorter row, so the sensitivity
    holds; the entries of that variable are exactly 0, with no noise on them, for they are a public function of what was
    declared before: nothing of a record is in them.
    """
    if sigma < 1:
        raise MisuseError(f"Expected sigma = {sigma} >= 1 lattice unit: evidence is never released without noise.")
    p = columns_of(dictionary) + 1
    upper = np.triu_indices(p)
    drawn = _symmetric_noise(p, sigma, noise or NoiseSource.from_os())
    if not lacks:
        return exact_moments(frame, dictionary)[upper] + drawn[upper]
    there = np.flatnonzero([True, *(name not in lacks for name in dictionary.names)])
    block, released = np.ix_(there, there), np.zeros((p, p), dtype=np.int64)
    released[block] = exact_moments(frame, held(dictionary, lacks)) + drawn[block]
    return released[upper]


def release_summary(
    frame: pd.DataFrame, dictionary: Dictionary, member: Nuisances, sigma: int, noise: NoiseSource | None = None
) -> NDArray[np.int64]:
    """The noisy sums of an effect's influence values: int64 (3,), in lattice units of `causaldao.models.summaries`.

    ``sigma`` is a positive integer in those units; the noise multiplier is sigma/`SENSITIVITY`. No single record can
    make the release fail. A missing column is a DataError.
    """
    if sigma < 1:
        raise MisuseError(f"Expected sigma = {sigma} >= 1 lattice unit: a summary is never released without noise.")
    sums = exact_sums(conform(frame, dictionary), dictionary, member)
    return sums + (noise or NoiseSource.from_os()).discrete_gaussian(Fraction(sigma**2), len(sums))


def exact_moments(frame: pd.DataFrame, dictionary: FeatureRows) -> NDArray[np.int64]:
    """M = Σ x xᵀ over the clipped lattice rows, exactly: int64 `(p, p)`.

    Private: it must not leave the node without noise. No records give zeros.
    """
    p, bound = columns_of(dictionary) + 1, dictionary.clip * dictionary.lattice**2
    moments = np.zeros((p, p), dtype=np.int64)
    if len(frame) == 0:
        return moments
    rows = dictionary.lattice_rows(conform(frame, dictionary))
    if int((rows * rows).sum(axis=1).max()) > bound:
        raise GuaranteeError(
            f"A clipped record exceeds the squared norm {bound:g}: the feature map breaks its own bound."
        )
    block = max(1, int(_EXACT // bound))  # rows that cannot sum past 2^53: the fast float product is exact
    for start in range(0, len(rows), block):
        part = rows[start : start + block].astype(np.float64)
        moments += (part.T @ part).astype(np.int64)
    return moments


def _symmetric_noise(p: int, sigma: int, noise: NoiseSource) -> NDArray[np.int64]:
    """(p, p) int64 with variance σ² on the diagonal and σ²/2 above it; nothing below."""
    drawn = np.zeros((p, p), dtype=np.int64)
    drawn[np.diag_indices(p)] = noise.discrete_gaussian(Fraction(sigma**2), p)
    drawn[np.triu_indices(p, 1)] = noise.discrete_gaussian(Fraction(sigma**2, 2), p * (p - 1) // 2)
    return drawn
