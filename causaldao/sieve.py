"""The rule `sieve`: which sites stay, judged in the metric of the evidence itself.

Multi-Krum on single entries is blind in two ways. Its variance is a bound for every distribution, many times what
Gaussian records have; and liars who all send the honest mean with a little of a lie are closer to everybody than
honest sites are to one another. Here moments are turned into the eigenbasis of the covariance of those that are kept.
There sampling and noise are independent entry by entry, of variance

    (1 + δ_ij) (λ_i λ_j / n + σ² / 2n²)     for Gaussian records, λ the eigenvalues, n the count, σ the study's noise,

so a lie about a direction in which records hardly vary stands out as much as it harms discovery, which divides by λ.
Three steps leave out at most f sites in all:

1. Copies. Two sites nearer to each other than their own sampling and noise allow (χ² at `COPIES` standard deviations,
   and half of what is between most) do not speak for themselves; of such a group only one stays.
2. Strangers. Sites farther from the coordinate-wise median than the (n - f)-th nearest by more than χ² at `FAR`
   standard deviations. If nobody lies, nobody need go: multi-Krum always loses f honest sites.
3. Conspiracies. What liars agree on shows in all of them at once. While the largest eigenvalue of the sites' Gram
   matrix is more than chance gives (level 1 %: Johnstone 2001, at the scale of the other eigenvalues), the sites are
   split in two along its eigenvector, and the smaller part leaves. A common shift of b standard deviations in each of E
   entries stands out if b² f (n - f) / n > about √(n / E): b = .3 with E = 230, n = 20, f = 7, where distances alone
   need .7.

What remains unseen is a lie in few entries: see `pool.Settings.doubt`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

COPIES, FAR = -4.5, 3.5
_TRACY_WIDOM = 2.0234  # its 99 % quantile for real matrices
_ROUNDS = 4  # of finding a metric by those who are kept in the last one
_FLAT = 1e-9  # of the largest eigenvalue: a direction in which the centre says that nothing varies


@dataclass(frozen=True)
class Sifted:
    """The kept sites, in order, and each site's mean squared distance from them in its own standard deviations."""

    kept: tuple[int, ...]
    scores: Tensor


def sieve(moments: Tensor, counts: Tensor, noise: Tensor, faulty: int) -> Sifted:
    """Leave out at most ``faulty`` of n sites.

    moments : (n, p, p) per record, constant first; counts, noise : (n,), noise in the units of the sums.
    """
    # the first metric is the median's of all: of the n - f that another rule keeps, as many as half may lie
    kept, values = list(range(len(moments))), torch.empty(0)
    for _ in range(_ROUNDS):
        values = _whitened(moments, counts, noise, moments[kept].median(dim=0).values)
        before, kept = kept, _left(values, faulty)
        if kept == before:
            break
    centre = values[kept].mean(dim=0)
    return Sifted(tuple(kept), (values - centre).square().mean(dim=1))


def _left(values: Tensor, faulty: int) -> list[int]:
    """Who is left of (n, E) standardised sites after the three steps."""
    copies = _copies(values, faulty)
    kept = [k for k in range(len(values)) if k not in copies]
    distances = (values - values[kept].median(dim=0).values).square().mean(dim=1)
    room = faulty - (len(values) - len(kept))
    limit = _mean_square(values.shape[1], FAR) * float(distances[kept].sort().values[len(kept) - room - 1])
    kept = [k for k in kept if float(distances[k]) <= limit]
    room = faulty - (len(values) - len(kept))
    while room > 0 and (leaving := _conspiracy(values[kept], room)):
        room -= len(leaving)
        kept = [site for position, site in enumerate(kept) if position not in leaving]
    return kept


def _copies(values: Tensor, most: int) -> list[int]:
    """At most ``most`` of the sites that are too near to one before them: independent sites differ by 2 an entry."""
    n, allowed = len(values), _mean_square(values.shape[1], COPIES)
    between = (values[:, None] - values[None]).square().mean(dim=2)
    pairs = torch.triu_indices(n, n, 1)
    near = min(2 * allowed, float(between[pairs[0], pairs[1]].median()) / 2) if n > 2 else 0.0
    found: list[int] = []
    for k in range(n):
        if any(float(between[k, j]) < near for j in range(k) if j not in found):
            found.append(k)
    return found[:most]


def _whitened(moments: Tensor, counts: Tensor, noise: Tensor, centre: Tensor) -> Tensor:
    """(n, E) moments about the centre, in the eigenbasis of its covariance, in each site's standard deviations."""
    p = len(centre)
    mean = centre[0, 1:]
    eigenvalues, basis = torch.linalg.eigh(centre[1:, 1:] - torch.outer(mean, mean))
    turn = torch.zeros(p, p, dtype=torch.float64)
    turn[0, 0] = 1.0
    turn[1:, 0], turn[1:, 1:] = -basis.T @ mean, basis.T
    spread = torch.cat([torch.ones(1, dtype=torch.float64), eigenvalues.clamp_min(float(eigenvalues[-1]) * _FLAT)])
    gram = turn @ turn.T
    rows, columns = (index[1:] for index in torch.triu_indices(p, p))
    twice = 1.0 + (rows == columns).double()
    sampling = twice * spread[rows] * spread[columns]
    drawn = (gram[rows, rows] * gram[columns, columns] + gram[rows, columns] ** 2) / 2
    drawn = drawn + (rows == columns) * spread[rows] ** 2  # the count is noisy too, and every moment is divided by it
    relative = (noise / counts) ** 2
    values = (turn @ (moments - centre) @ turn.T)[:, rows, columns]
    scaled: Tensor = values / (sampling / counts[:, None] + drawn * relative[:, None]).sqrt()
    return scaled


def _mean_square(entries: int, deviations: float) -> float:
    """A quantile of χ² with so many degrees of freedom, over their number, by a normal one (Wilson & Hilferty 1931)."""
    root = 1 - 2 / (9 * entries) + deviations * math.sqrt(2 / (9 * entries))
    return max(0.0, root) ** 3


def _conspiracy(sites: Tensor, most: int) -> list[int]:
    """The positions of at most ``most`` of (m, E) standardised sites that share a direction more than chance lets
    sites do, whose scale is that of all other directions; [] if there is no such direction."""
    m, entries = sites.shape
    if m < 4:
        return []
    centred = sites - sites.mean(dim=0)
    eigenvalues, vectors = torch.linalg.eigh(centred @ centred.T)
    typical, highest = _largest_by_chance(m, entries)
    scale = float(eigenvalues[:-1].sum()) / ((m - 1) * entries - typical)
    if float(eigenvalues[-1]) <= scale * highest:
        return []
    place = vectors[:, -1]
    order = place.argsort().tolist()
    parts = [part for k in range(1, m) for part in (order[:k], order[k:]) if len(part) <= min(most, (m - 1) // 2)]
    return max(parts, key=lambda part: float(place[part].sum() ** 2) / (len(part) * (m - len(part))), default=[])


def _largest_by_chance(m: int, entries: int) -> tuple[float, float]:
    """The centre and 99 % quantile of the largest eigenvalue of m centred sites' Gram matrix, entries of variance 1."""
    rows, columns = (entries - 0.5) ** 0.5, (m - 1.5) ** 0.5
    centre, width = (rows + columns) ** 2, (rows + columns) * (1 / rows + 1 / columns) ** (1 / 3)
    return centre, centre + _TRACY_WIDOM * width
