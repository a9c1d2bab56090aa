"""Gram rules that search or filter: minimum diameter, smallest largest eigenvalue, CAF and DnC.

Symbols as in `gram_rules`; λ is the largest eigenvalue of the honest rows' covariance, at most V. The d × d
covariance of weighted rows has the eigenvalues of an n × n matrix: with B the centred rows' inner products and c
their weights, those of √c B √c / Σc. So everything here is exact without any of the d coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, islice

import torch
from torch import Tensor

from causaldao.aggregation.geometry import Geometry
from causaldao.aggregation.gram_rules import equal

_ONE_POINT = 1e-12  # a top eigenvalue that is nothing but rounding, in squared distances from the centre
_HARMLESS = 4.0  # η: how many times the smallest top eigenvalue a step of CAF may have whose mean counts
_MDA_FAULTS = 14  # 2^14 leaves of the search, a third of a second
_SMEA_SUBSETS = 20_000  # eigenvalues of so many matrices of 20 rows take about a second


def caf(geometry: Geometry, faulty: int) -> Tensor:
    """Covariance-bound-agnostic filter (Allouah et al. 2025, arXiv:2505.01874), with exact top eigenvectors.

    All rows have c = 1. While Σc > n - 2f: find the top eigenvector of the weighted covariance; take from every c the
    share that the row's squared projection has of the largest one. The farthest row loses all its weight, so at most
    2f steps are made whatever the norms. The paper answers with the weighted mean whose covariance had the smallest
    top eigenvalue, which is mostly the last: by then 2f rows' weight is gone, honest members' who differ with it. Here
    the answer is the mean of all those weighted means whose top eigenvalue was at most η = 4 times the smallest, so
    that a row keeps weight for every step which it stayed in without harm (docs/adr/0027-the-answer-of-caf.md).

    n ≥ 2f + 1. Bounded in spectral norm, free of dimension: for n > 3f, ‖F - x̄‖² ≤ κλ with
    κ = (√(2η(n - f)f / ((n - 2f)(n - 3f))) + √(2f/(n - 3f)))². (Ours: at the first step where the honest lose more
    than the liars, the top eigenvalue is at most 2(n - f)/(n - 2f)·λ, and each mean's in the answer is at most η times
    that; two weighted means whose weights overlap are as near as their covariances say; a mean of points in a ball is
    in it.) For 2f < n ≤ 3f we have no constant. O(f n³). Nothing to tune.
    """
    return _caf(geometry, faulty)[0]


def caf_kappa(n: int, f: int) -> float | None:
    """The κ of `caf`, None for 0 < n ≤ 3f."""
    if n <= 3 * f:
        return None
    return (math.sqrt(2 * _HARMLESS * (n - f) * f / ((n - 2 * f) * (n - 3 * f))) + math.sqrt(2 * f / (n - 3 * f))) ** 2


def _caf(geometry: Geometry, faulty: int) -> tuple[Tensor, int]:
    """CAF's weights and the number of eigenvectors that it took."""
    n = geometry.rows
    share = torch.ones(n, dtype=torch.float64)
    tops, means = list[float](), list[Tensor]()
    while float(share.sum()) > n - 2 * faulty:
        rows = share.nonzero()[:, 0]
        value, spread = _top(geometry.gram[rows][:, rows], share[rows])
        tops.append(value)
        means.append(share / share.sum())
        # By weight: of two equal liars rounding may leave one a trace, whose size alone would make all else one point.
        if value <= _ONE_POINT * float((share * geometry.gram.diagonal()[:n]).max() / share.sum()):
            break
        share[rows] *= 1 - spread / spread.max()
    weights = torch.zeros(len(geometry.gram), dtype=torch.float64)
    harmless = [mean for top, mean in zip(tops, means, strict=True) if top <= _HARMLESS * min(tops)]
    weights[:n] = torch.stack(harmless).mean(dim=0) if harmless else share / n
    return weights, len(tops)


def _top(gram: Tensor, share: Tensor) -> tuple[float, Tensor]:
    """The largest eigenvalue of the covariance of weighted rows, and their squared projections on its vector."""
    centred = _centred(gram, share / share.sum())
    root = share.sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * centred * root / share.sum())
    value = max(float(values[-1]), 0.0)
    length = (value * float(share.sum())) ** 0.5 or 1.0  # of the eigenvector, as this mixture of the centred rows
    return value, (centred @ (root * vectors[:, -1]) / length).square()


def _centred(gram: Tensor, weights: Tensor) -> Tensor:
    """Inner products of the rows minus their weighted mean."""
    products = gram @ weights
    centred: Tensor = gram - products[:, None] - products + weights @ products
    return centred


def dnc(geometry: Geometry, faulty: int) -> Tensor:
    """Divide and conquer (Shejwalkar and Houmansadr 2021): drop f rows that stand out along the top singular vector.

    n ≥ 2f + 1. In f rounds the row with the largest projection on the top eigenvector of the remaining rows'
    covariance is dropped. The paper drops all at once: then a liar of norm 1e30 hides another that lies elsewhere,
    and the result has no bound. It also samples coordinates, to be quick; the Gram matrix holds them all for one
    pass, and an auditor can recompute what it says, so here nothing is sampled.

    Guarantee (ours): until an honest row is dropped only liars were, and in the round where one is, all rows are
    within √n·R/(1 - 2δ) of their mean: ‖F - x̄‖ ≤ (1 + 2√n/(1 - 2δ))·R. No κ is known. O(f n³). Nothing to tune.
    """
    kept = list(range(geometry.rows))
    for _ in range(faulty):
        _, spread = _top(geometry.gram[kept][:, kept], torch.ones(len(kept), dtype=torch.float64))
        kept.pop(int(spread.argmax()))
    return equal(geometry, kept)


def smea(geometry: Geometry, faulty: int) -> Tensor:
    """Smallest maximum eigenvalue averaging (Allouah et al. 2023, arXiv:2302.04787), exact.

    The mean of the n - f rows whose covariance has the smallest top eigenvalue. n ≥ 2f + 1; ‖F - x̄‖² ≤ κλ with
    κ = 4f/(n - 2f). Every subset is tried: C(n, f) ≤ 20,000, else refused; O(C(n, f) n³). Nothing to tune.
    """
    size = geometry.rows - faulty
    best, smallest = list(range(size)), math.inf
    for subsets in _batches(geometry.rows, size):
        places = torch.tensor(subsets)
        grams = geometry.gram[places[:, :, None], places[:, None, :]]
        centred = grams - grams.mean(dim=1, keepdim=True)
        centred = centred - centred.mean(dim=2, keepdim=True)
        tops = torch.linalg.eigvalsh(centred)[:, -1]
        first = int(tops.argmin())
        if float(tops[first]) < smallest:
            best, smallest = list(subsets[first]), float(tops[first])
    return equal(geometry, best)


def smea_search(n: int, f: int) -> str:
    """Why SMEA refuses n and f, or nothing."""
    number = math.comb(n, f)
    return f"tries every subset, here {number:,} of at most {_SMEA_SUBSETS:,}" if number > _SMEA_SUBSETS else ""


def _batches(n: int, size: int, number: int = 1_000) -> Iterator[list[tuple[int, ...]]]:
    subsets = combinations(range(n), size)
    while batch := list(islice(subsets, number)):
        yield batch


def mda(geometry: Geometry, faulty: int) -> Tensor:
    """Minimum diameter averaging (El Mhamdi et al. 2020, arXiv:1905.03853), exact: the mean of the n - f closest rows.

    n ≥ 2f + 1; κ = 8f²/(n - f) (ours: the set's diameter is at most that of the honest, so each liar in it is within
    two such diameters of the honest row that it stands for, and a squared diameter is at most 2(n - f)V). Many sets
    may have the smallest diameter; of those the one with the smallest sum of squared distances is taken, so that the
    order of the rows does not choose. The rows to leave out are a smallest vertex cover of the pairs that are too far
    apart: 2^f leaves, so f ≤ 14, else refused. Nothing to tune.
    """
    n = geometry.rows
    squared = geometry.squared[:n, :n]
    pairs = [(float(squared[i, j]), i, j) for i in range(n) for j in range(i)]
    pairs.sort(key=lambda pair: -pair[0])
    best: tuple[float, float] = (math.inf, math.inf)
    chosen: list[int] = []
    waiting = [(frozenset[int](), 0)]
    while waiting:
        out, place = waiting.pop()
        while place < len(pairs) and (pairs[place][1] in out or pairs[place][2] in out):
            place += 1
        diameter = pairs[place][0] if place < len(pairs) else 0.0
        if len(out) < faulty and place < len(pairs):
            waiting += [(out | {pairs[place][2]}, place + 1), (out | {pairs[place][1]}, place + 1)]
        elif diameter <= best[0]:
            kept = [k for k in range(n) if k not in out][: n - faulty]
            spread = float(squared[kept][:, kept].sum())
            if (diameter, spread) < best:
                best, chosen = (diameter, spread), kept
    return equal(geometry, chosen)


def mda_search(n: int, f: int) -> str:
    """Why MDA refuses n and f, or nothing."""
    return f"searches 2^f sets and bears faulty = {_MDA_FAULTS} at most" if f > _MDA_FAULTS else ""
