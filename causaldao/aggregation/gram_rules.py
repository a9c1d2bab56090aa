"""Rules that see the geometry of n updates and answer with a weight for every point, the weights summing to 1.

Written throughout: δ = f/n; x̄ the mean of the n - f honest rows, R the largest distance of one of them from x̄, V
their variance (the mean squared distance from x̄). κ: ‖F - x̄‖² ≤ κV (Allouah et al. 2023, arXiv:2302.01772). Ties go
to the row that stands first; callers order rows by member name. Cost is beyond the pass that makes the Gram matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from causaldao.aggregation.geometry import Geometry

_CLIPPING_STEPS = 5
_WEISZFELD_STEPS = 5_000
_WEISZFELD_CLOSE = 1e-13  # change of the weights at which Weiszfeld's iteration has converged
_SMOOTHING = 1e-9  # ν as a share of the median distance from the medoid
_NORM_RANGE = (0.1, 3.0)  # Xu et al. 2022: L and R, in median norms


def krum_scores(distances: Tensor, faulty: int, nearest: int | None = None) -> Tensor:
    """(n,) Krum scores: the mean distance of each row to its nearest others.

    ``distances`` is (n, n), symmetric, squared, with any diagonal. ``nearest`` others count, n - f - 2 as Blanchard
    et al. 2017 have it if it is not given.
    """
    n = len(distances)
    others = distances.clone().fill_diagonal_(torch.inf).sort(dim=1).values
    number = max(n - faulty - 2 if nearest is None else nearest, 1)
    return others[:, :number].sum(dim=1) / number


def ranked(scores: Tensor, number: int) -> list[int]:
    """The places of the ``number`` smallest scores, ties to the first row."""
    chosen: list[int] = scores.argsort(stable=True)[:number].tolist()
    return chosen


def most_central(scores: Tensor, distances: Tensor) -> int:
    """The place of the smallest score; of one score, as rows have that are each other's nearest, the nearer to all."""
    totals = distances.sum(dim=1)
    return min(range(len(scores)), key=lambda k: (float(scores[k]), float(totals[k])))


def equal(geometry: Geometry, kept: list[int]) -> Tensor:
    """Weights of the mean of the kept rows."""
    weights = torch.zeros(len(geometry.gram), dtype=torch.float64)
    weights[kept] = 1 / len(kept)
    return weights


def mean(geometry: Geometry, faulty: int) -> Tensor:
    """The plain mean. Breakdown point 0: one row owns the result (κ = ∞ for f > 0); the yardstick, not a choice."""
    return equal(geometry, list(range(geometry.rows)))


def krum(geometry: Geometry, faulty: int) -> Tensor:
    """Krum: the row whose n - f - 1 nearest others are nearest (Blanchard et al. 2017, arXiv:1703.02757).

    n ≥ 2f + 3. κ = 6(1 + f/(n - 2f)), which Allouah et al. 2023 prove with n - f neighbours, the row among them;
    Blanchard takes one fewer. O(n² log n). Nothing to tune. It keeps one row: without liars it has the variance of
    one member.
    """
    return equal(geometry, ranked(_scores(geometry, faulty), 1))


def multi_krum(geometry: Geometry, faulty: int) -> Tensor:
    """Multi-Krum: the mean of the n - f rows with the smallest Krum scores (Blanchard et al. 2017).

    n ≥ 2f + 3. κ = 6(1 + f/(n - 2f)), scores as in `krum`. O(n² log n). Nothing to tune.
    """
    return equal(geometry, ranked(_scores(geometry, faulty), geometry.rows - faulty))


def _scores(geometry: Geometry, faulty: int) -> Tensor:
    n = geometry.rows
    return krum_scores(geometry.squared[:n, :n], faulty, n - faulty - 1)


def monna(geometry: Geometry, faulty: int) -> Tensor:
    """The mean of the n - f rows nearest to a trusted reference r (Farhadkhani et al. 2023, arXiv:2209.10931).

    n ≥ 2f + 1, and a reference that is honest. ‖F - r‖ ≤ the largest distance of an honest row from r, so f liars buy
    no more than the honest spread about r; no κ free of r. O(n log n). The reference is all there is to tune.
    """
    distances = geometry.squared[geometry.reference, : geometry.rows]
    return equal(geometry, ranked(distances, geometry.rows - faulty))


def fltrust(geometry: Geometry, faulty: int) -> Tensor:
    """FLTrust: rows scaled to the norm of a trusted reference r and weighted by ReLU(cos(x, r)) (Cao et al. 2021).

    arXiv:2012.13995. Any f < n: ‖F‖ ≤ ‖r‖ and ⟨F, r⟩ ≥ 0 whatever the rows, by the trust in r alone; no κ. Without a
    row that points its way it gives 0. O(n). It moves with the origin (not translation equivariant).
    """
    origin, n = geometry.origin, geometry.rows
    away = geometry.gram - geometry.gram[origin] - geometry.gram[:, origin, None] + geometry.gram[origin, origin]
    length = float(away[geometry.reference, geometry.reference].clamp_min(0).sqrt())
    trust = (away[geometry.reference, :n] / (geometry.norms * length)).nan_to_num(nan=0, posinf=0).clamp(0, 1)
    weights = torch.zeros(len(geometry.gram), dtype=torch.float64)
    if float(trust.sum()) > 0:
        weights[:n] = (trust / trust.sum() * length / geometry.norms).nan_to_num(nan=0, posinf=0)
    weights[origin] = 1 - weights.sum()
    return weights


def centred_clipping(geometry: Geometry, faulty: int) -> Tensor:
    """Centred clipping (Karimireddy et al. 2021, arXiv:2012.10333): v ← v + mean of x - v clipped to length τ.

    n ≥ 4f + 1. Here τ is in each of 5 steps the median distance of the rows from v, so the rule is scale equivariant
    and needs no tuning; a fixed τ, as in the paper, is right for one size of updates only. v starts at the aggregate
    of the round before if one is given (`state`), else at the row that is nearest to half of the rows (of
    two rows, the first).

    Guarantee (ours): half the rows lie within τ ≤ D + R of v, where D = ‖v - x̄‖, so at least n/2 - f honest ones
    count in full, and a step leads to D' ≤ R/2 + (1/2 + 2δ)D while D ≥ R. From the start at a row, D ≤ 3R, hence
    always ‖F - x̄‖ ≤ max(3, 1/(1 - 4δ))·R; a start further off than that comes nearer by the factor in each step. No
    κ is known for this τ. O(n²) a step.
    """
    gram, n = geometry.gram.numpy(), geometry.rows
    weights = np.zeros(len(gram))
    if geometry.has_reference:
        weights[geometry.reference] = 1
    else:
        squared = geometry.squared[:n, :n]
        weights[most_central(squared.sort(dim=1).values[:, (n - 1) // 2], squared)] = 1
    for _ in range(_CLIPPING_STEPS):
        distances = _distances(gram, weights, n)
        radius = np.sort(distances)[(n - 1) // 2]
        factors = np.minimum(1, np.divide(radius, distances, out=np.ones(n), where=distances > 0)) / n
        weights *= 1 - factors.sum()
        weights[:n] += factors
    return torch.from_numpy(weights)


def geometric_median(geometry: Geometry, faulty: int) -> Tensor:
    """The point with the least sum of distances to the rows: breakdown point 1/2 (n ≥ 2f + 1).

    κ = 4(1 + f/(n - 2f))² (Allouah et al. 2023). A row that is the median is found by its optimality condition (Vardi
    and Zhang 2000); otherwise Weiszfeld's iteration runs from the mean of the nearer half of the rows until no weight
    changes by more than 1e-13. Distances under ν = 1e-9 of the median distance count as ν, which moves the result by
    at most ν. O(n²) a step, some tens of steps. Nothing to tune.
    """
    n = geometry.rows
    medoid = _medoid(geometry)
    distances = geometry.squared[medoid, :n].sqrt()
    smoothing = _SMOOTHING * float(distances.sort().values[n // 2])
    if _is_median(geometry, medoid, distances):
        return equal(geometry, [medoid])
    start = equal(geometry, ranked(distances, n // 2 + 1)).numpy()
    return torch.from_numpy(_weiszfeld(geometry.gram.numpy(), start, n, smoothing, _WEISZFELD_STEPS))


def _medoid(geometry: Geometry) -> int:
    """The row with the least sum of distances, by how much longer each is than that of one central row.

    The sums themselves would lose all honest distances in a liar's 1e30. a - b = (a² - b²) / (a + b) keeps them.
    """
    n = geometry.rows
    gram, squared = geometry.gram[:n, :n], geometry.squared[:n, :n]
    centre = int(squared.sort(dim=1).values[:, n // 2].argmin())
    longer = gram.diagonal()[:, None] - gram[centre, centre] - 2 * (gram - gram[centre])
    lengths = squared.sqrt() + squared[centre].sqrt()
    return int((longer / lengths).nan_to_num(nan=0).sum(dim=1).argmin())


def _is_median(geometry: Geometry, place: int, distances: Tensor) -> bool:
    """Whether the unit vectors from a row to the others sum to no more than the number of rows that equal it."""
    n = geometry.rows
    near = distances <= 0
    pull = torch.where(near, torch.zeros_like(distances), 1 / distances)
    rows = geometry.gram[:n, :n] - geometry.gram[:n, place, None] - geometry.gram[place, :n]
    rows = rows + geometry.gram[place, place]
    return float(pull @ rows @ pull) <= float(near.sum()) ** 2


def _weiszfeld(
    gram: NDArray[np.float64], weights: NDArray[np.float64], rows: int, smoothing: float, steps: int
) -> NDArray[np.float64]:
    """Weiszfeld's iteration on weights (m,) over the points: each row weighs 1/max(its distance, ν)."""
    for _ in range(steps):
        pulls = 1 / np.maximum(_distances(gram, weights, rows), max(smoothing, np.finfo(float).tiny))
        following = np.zeros_like(weights)
        following[:rows] = pulls / pulls.sum()
        change = np.abs(following - weights).max()
        weights = following
        if change <= _WEISZFELD_CLOSE:
            break
    return weights


def _distances(gram: NDArray[np.float64], weights: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """(n,) distances of the rows from the point that the weights make."""
    products = gram @ weights
    squared: NDArray[np.float64] = np.sqrt(np.maximum(gram.diagonal() - 2 * products + weights @ products, 0))
    return squared[:rows]


def signguard(geometry: Geometry, faulty: int) -> Tensor:
    """SignGuard (Xu et al. 2022, arXiv:2109.05872): drop rows of odd norm or odd signs, clip the rest, take their mean.

    Rows whose norm is within [.1, 3] of the median norm M are grouped by mean shift on their shares of positive, zero
    and negative coordinates; the largest group is clipped to M and averaged. n ≥ 2f + 1, and then ‖F‖ ≤ M ≤ the
    largest honest norm; no κ: liars with honest shares of signs and an honest norm pass. The paper counts signs on a
    random tenth of the coordinates and groups within all rows; here every coordinate counts, and the groups are made
    of rows of a good norm, so that one always remains. The shares are not in the Gram matrix: the weights cannot be
    recomputed from it. O(n²) a shift. It moves with the origin (not translation equivariant).
    """
    assert geometry.signs is not None  # the rule says that it needs them
    median = float(geometry.norms.sort().values[(geometry.rows - 1) // 2])
    low, high = _NORM_RANGE[0] * median, _NORM_RANGE[1] * median
    sound = [k for k, norm in enumerate(geometry.norms.tolist()) if low <= norm <= high]
    kept = [sound[k] for k in _largest_group(geometry.signs[sound])]
    weights = equal(geometry, kept)
    weights[: geometry.rows] *= (median / geometry.norms).nan_to_num(nan=1, posinf=1).clamp_max(1)
    weights[geometry.origin] = 1 - weights.sum()
    return weights


def _largest_group(features: Tensor) -> list[int]:
    """The group that most rows end in under mean shift; of two as large, the denser.

    Its kernel is flat and as wide as the typical row needs to reach half of the rows.
    """
    n = len(features)
    distances = _apart(features, features)
    width = float(distances.sort(dim=1).values[:, n // 2].sort().values[(n - 1) // 2]) + 1e-12
    modes = features
    for _ in range(100):
        near = (_apart(modes, features) <= width).double()
        shifted = near @ features / near.sum(dim=1, keepdim=True)
        if torch.equal(shifted, modes):
            break
        modes = shifted
    together = _apart(modes, modes) <= width
    groups: list[list[int]] = [row.nonzero()[:, 0].tolist() for row in together]
    return min(groups, key=lambda group: (-len(group), float(distances[group][:, group].sum())))


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Distances of rows from rows, by differences: shares of few coordinates are often exactly equally far apart."""
    apart: Tensor = torch.linalg.vector_norm(one[:, None] - other, dim=2)
    return apart
