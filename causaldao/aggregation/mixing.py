"""Pre-aggregations: each answers with r new rows as affine mixtures of the points, an (r, m) matrix of row sums 1.

Nothing of the size of the updates is made: the geometry of the new rows follows from the old, and a weight for each
new row is a weight for each old one. Symbols as in `gram_rules`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causaldao.aggregation.geometry import Geometry
from causaldao.aggregation.gram_rules import krum_scores, most_central, ranked
from causaldao.errors import MisuseError

BUCKET = 2  # rows of a bucket: Karimireddy et al. 2022 find 2 to do most of the good


def nearest_neighbours(geometry: Geometry, faulty: int, generator: torch.Generator | None = None) -> Tensor:
    """NNM: every row becomes the mean of the n - f rows nearest to it, itself among them (Allouah et al. 2023).

    arXiv:2302.01772. n ≥ 2f + 1. With a rule of κ after it, κ' = 8f/(n - f)·(κ + 1): of the order f/n, which no rule
    can better under heterogeneity. O(n² log n) and no memory: the paper's cost in d is gone. Nothing to tune. Rows
    with the same neighbours become equal: a rule that starts or chooses at one of them (centred clipping, Bulyan)
    then has ties, which rounding decides.
    """
    n = geometry.rows
    squared = geometry.squared[:n, :n]
    matrix = torch.zeros(n, len(geometry.gram), dtype=torch.float64)
    for k in range(n):
        matrix[k, ranked(squared[k], n - faulty)] = 1 / (n - faulty)
    return matrix


def bucketing(geometry: Geometry, faulty: int, generator: torch.Generator | None = None) -> Tensor:
    """Bucketing: the means of buckets of two rows, dealt at random, an odd row alone (Karimireddy et al. 2022).

    arXiv:2006.09365. Of ⌈n/2⌉ buckets f may hold a liar, so the rule after it must bear f of ⌈n/2⌉; the variance of
    the honest buckets is halved. No κ is composed here. The deal must not be known to the liars before they commit to
    their updates, and an auditor must be able to repeat it: there is no default, the caller gives a ``generator``
    that is seeded with something fixed afterwards, such as a ledger's head.
    """
    if generator is None:
        raise MisuseError(
            "Bucketing deals the updates at random: give a generator with a seed that an auditor can know."
        )
    n = geometry.rows
    matrix = torch.zeros(-(-n // BUCKET), len(geometry.gram), dtype=torch.float64)
    dealt = torch.randperm(n, generator=generator)
    for bucket in range(len(matrix)):
        rows = dealt[BUCKET * bucket : BUCKET * (bucket + 1)]
        matrix[bucket, rows] = 1 / len(rows)
    return matrix


def adaptive_clipping(geometry: Geometry, faulty: int, generator: torch.Generator | None = None) -> Tensor:
    """ARC: the ⌊2f(n - f)/n⌋ longest rows are clipped to the norm of the next one (Allouah et al. 2025).

    arXiv:2405.14432. n ≥ 2f + 1. A rule of κ becomes one of κ + 2f/(n - 2f), and no row exceeds the largest honest
    norm, so the aggregate is bounded wherever training starts. O(n log n). Nothing to tune. Scale but not translation
    equivariant.
    """
    clipped = 2 * faulty * (geometry.rows - faulty) // geometry.rows
    return _shrunk(geometry, float(geometry.norms.sort().values[geometry.rows - clipped - 1]))


def median_clipping(geometry: Geometry, faulty: int, generator: torch.Generator | None = None) -> Tensor:
    """Clipping to a bound that does not look at f: the median norm (the lower of two), at most the largest honest one.

    n ≥ 2f + 1. A fixed number, as in most systems, is right for one size of updates only; the median is scale
    equivariant. It clips half of the honest rows, also without liars, and so has no κ (a bias that no variance
    bounds); ARC has. O(n log n). Not translation equivariant.
    """
    return _shrunk(geometry, float(geometry.norms.sort().values[(geometry.rows - 1) // 2]))


def _shrunk(geometry: Geometry, bound: float) -> Tensor:
    """Rows longer than the bound at its length: the rest of their weight is the origin's."""
    factors = torch.where(geometry.norms > bound, bound / geometry.norms, torch.ones_like(geometry.norms))
    matrix = torch.zeros(geometry.rows, len(geometry.gram), dtype=torch.float64)
    matrix.diagonal()[: geometry.rows] = factors
    matrix[:, geometry.origin] = 1 - factors
    return matrix


def krum_selection(geometry: Geometry, faulty: int, generator: torch.Generator | None = None) -> Tensor:
    """Bulyan's first half: n - 2f rows, each Krum's choice among those that are left (El Mhamdi et al. 2018).

    arXiv:1802.07927. With r rows left a score counts the r - f - 2 nearest, at least one. Near the end that is one,
    and two rows have the same score, each other's distance: then the one that is nearer to all is chosen. O(n³).
    """
    left = list(range(geometry.rows))
    squared = geometry.squared[: geometry.rows, : geometry.rows]
    matrix = torch.zeros(geometry.rows - 2 * faulty, len(geometry.gram), dtype=torch.float64)
    for row in matrix:
        among = squared[left][:, left]
        row[left.pop(most_central(krum_scores(among, faulty), among))] = 1
    return matrix
