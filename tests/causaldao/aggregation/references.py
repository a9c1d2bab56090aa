"""Slow, obvious float64 definitions of the rules, on whole vectors and full covariance matrices: no Gram matrix."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Rows = NDArray[np.float64]
Reference = Callable[[Rows, int], Rows]


def distances(rows: Rows) -> Rows:
    return np.array([[np.linalg.norm(a - b) for b in rows] for a in rows])


def krum_order(rows: Rows, f: int) -> list[int]:
    """Allouah et al. 2023: squared distances to the n - f nearest, the row itself among them."""
    scores = [float(np.sort(line**2)[: len(rows) - f].sum()) for line in distances(rows)]
    return sorted(range(len(rows)), key=lambda k: (scores[k], k))


def krum(rows: Rows, f: int) -> Rows:
    return rows[krum_order(rows, f)[0]]


def multi_krum(rows: Rows, f: int) -> Rows:
    return np.asarray(rows[krum_order(rows, f)[: len(rows) - f]].mean(axis=0))


def blanchard_order(rows: Rows, f: int) -> list[int]:
    """Blanchard et al. 2017: squared distances to the n - f - 2 nearest others, at least one; ties by those to all."""
    squares = distances(rows) ** 2
    scores = [float(np.sort(line)[1 : 1 + max(len(rows) - f - 2, 1)].sum()) for line in squares]
    return sorted(range(len(rows)), key=lambda k: (scores[k], float(squares[k].sum()), k))


def bulyan(rows: Rows, f: int) -> Rows:
    left, chosen = list(range(len(rows))), []
    while len(chosen) < len(rows) - 2 * f:
        chosen.append(left.pop(blanchard_order(rows[left], f)[0]))
    return np.array([_nearest_to_median(column, len(chosen) - 2 * f) for column in rows[chosen].T])


def _nearest_to_median(column: Rows, number: int) -> float:
    return float(np.mean(sorted(column, key=lambda value: (abs(value - np.median(column)), value))[:number]))


def meamed(rows: Rows, f: int) -> Rows:
    return np.array([_nearest_to_median(column, len(rows) - f) for column in rows.T])


def trimmed_mean(rows: Rows, f: int) -> Rows:
    return np.array([np.mean(sorted(column)[f : len(column) - f]) for column in rows.T])


def geometric_median(rows: Rows, f: int) -> Rows:
    """The minimum of the sum of distances by a general optimiser, from the best row."""

    def total(point: Rows) -> tuple[float, Rows]:
        away = point - rows
        lengths = np.maximum(np.linalg.norm(away, axis=1), 1e-300)
        return float(lengths.sum()), np.asarray((away / lengths[:, None]).sum(axis=0))

    best = min(rows, key=lambda row: total(row)[0])
    found = minimize(total, rows.mean(axis=0), jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 10_000}).x
    return np.asarray(found if total(found)[0] < total(best)[0] else best)


def smoothed_weiszfeld(rows: Rows, smoothing: float, steps: int) -> Rows:
    """From the origin, as byzfl does it."""
    point = np.zeros(rows.shape[1])
    for _ in range(steps):
        pulls = 1 / np.maximum(np.linalg.norm(rows - point, axis=1), smoothing)
        point = (pulls[:, None] * rows).sum(axis=0) / pulls.sum()
    return point


def centred_clipping(rows: Rows, f: int, state: Rows | None = None) -> Rows:
    n = len(rows)
    starts = [(float(np.sort(line)[(n - 1) // 2]), float((line**2).sum())) for line in distances(rows)]
    point = rows[starts.index(min(starts))] if state is None else state
    for _ in range(5):
        away = rows - point
        lengths = np.linalg.norm(away, axis=1)
        radius = sorted(lengths)[(n - 1) // 2]
        point = point + np.mean(
            [v * min(1, radius / s) if s > 0 else v for v, s in zip(away, lengths, strict=True)], axis=0
        )
    return np.asarray(point)


def mda(rows: Rows, f: int) -> Rows:
    away = distances(rows)

    def spread(kept: tuple[int, ...]) -> tuple[float, float]:
        inside = away[np.ix_(kept, kept)]
        return float(inside.max()), float((inside**2).sum())

    return np.asarray(rows[list(min(combinations(range(len(rows)), len(rows) - f), key=spread))].mean(axis=0))


def smea(rows: Rows, f: int) -> Rows:
    def top(kept: tuple[int, ...]) -> float:
        return float(np.linalg.eigvalsh(np.cov(rows[list(kept)].T, bias=True).reshape(rows.shape[1], -1))[-1])

    return np.asarray(rows[list(min(combinations(range(len(rows)), len(rows) - f), key=top))].mean(axis=0))


def caf(rows: Rows, f: int) -> Rows:
    """Allouah et al. 2025 with the full d × d covariance and its exact eigenvectors; the answer as ours."""
    share = np.ones(len(rows))
    steps = list[tuple[float, Rows]]()
    while share.sum() > len(rows) - 2 * f:
        mean = share @ rows / share.sum()
        away = rows - mean
        values, vectors = np.linalg.eigh((share[:, None] * away).T @ away / share.sum())
        steps.append((float(values[-1]), mean))
        spread = (away @ vectors[:, -1]) ** 2
        sizes = share * ((rows - rows[0]) ** 2).sum(axis=1)
        if values[-1] <= 1e-12 * sizes.max() / share.sum():  # one point, but for rounding
            break
        share = share * np.clip(1 - spread / spread[share > 0].max(), 0, None)
    smallest = min((top for top, _ in steps), default=0.0)
    return np.asarray(np.mean([mean for top, mean in steps if top <= 4 * smallest] or [rows.mean(axis=0)], axis=0))


def dnc(rows: Rows, f: int) -> Rows:
    for _ in range(f):
        away = rows - rows.mean(axis=0)
        rows = np.delete(rows, np.argmax(np.abs(away @ np.linalg.svd(away)[2][0])), axis=0)
    return np.asarray(rows.mean(axis=0))


def monna(rows: Rows, f: int, reference: Rows) -> Rows:
    order = sorted(range(len(rows)), key=lambda k: float(np.linalg.norm(rows[k] - reference)))
    return np.asarray(rows[order[: len(rows) - f]].mean(axis=0))


def fltrust(rows: Rows, f: int, reference: Rows) -> Rows:
    length = np.linalg.norm(reference)
    norms = np.linalg.norm(rows, axis=1)
    trust = np.maximum(rows @ reference / (norms * length), 0)
    if trust.sum() == 0:
        return np.zeros_like(reference)
    return np.asarray((trust[:, None] * rows / norms[:, None] * length).sum(axis=0) / trust.sum())


def signguard(rows: Rows, f: int) -> Rows:
    norms = np.linalg.norm(rows, axis=1)
    median = sorted(norms)[(len(rows) - 1) // 2]
    sound = [k for k in range(len(rows)) if 0.1 * median <= norms[k] <= 3 * median]
    signs = np.array([[np.mean(rows[k] > 0), np.mean(rows[k] == 0), np.mean(rows[k] < 0)] for k in sound])
    reach = [sorted(np.linalg.norm(signs - s, axis=1))[len(sound) // 2] for s in signs]
    width = sorted(reach)[(len(sound) - 1) // 2] + 1e-12
    modes, before = signs, np.zeros_like(signs)
    while not np.array_equal(modes, before):
        modes, before = np.array([signs[np.linalg.norm(signs - m, axis=1) <= width].mean(axis=0) for m in modes]), modes
    groups = [[k for k, other in zip(sound, modes, strict=True) if np.linalg.norm(other - m) <= width] for m in modes]

    def key(group: list[int]) -> tuple[int, float]:
        inside = signs[[sound.index(k) for k in group]]
        return -len(group), float(distances(inside).sum())

    return np.mean([rows[k] * min(1, median / norms[k]) for k in min(groups, key=key)], axis=0)


def nnm(rows: Rows, f: int) -> Rows:
    return np.array([rows[np.argsort(line, kind="stable")[: len(rows) - f]].mean(axis=0) for line in distances(rows)])


def arc(rows: Rows, f: int) -> Rows:
    norms = np.linalg.norm(rows, axis=1)
    clipped = int(2 * f / len(rows) * (len(rows) - f) + 1e-9)
    bound = sorted(norms)[len(rows) - clipped - 1]
    return np.array([row * min(1, bound / norm) for row, norm in zip(rows, norms, strict=True)])


def clip(rows: Rows, f: int) -> Rows:
    norms = np.linalg.norm(rows, axis=1)
    bound = sorted(norms)[(len(rows) - 1) // 2]
    return np.array([row * min(1, bound / norm) for row, norm in zip(rows, norms, strict=True)])


REFERENCES: dict[str, Reference] = {
    "mean": lambda rows, f: rows.mean(axis=0),
    "coordinate-median": lambda rows, f: np.median(rows, axis=0),
    "trimmed-mean": trimmed_mean,
    "meamed": meamed,
    "krum": krum,
    "multi-krum": multi_krum,
    "bulyan": bulyan,
    "geometric-median": geometric_median,
    "centred-clipping": centred_clipping,
    "mda": mda,
    "smea": smea,
    "caf": caf,
    "dnc": dnc,
    "signguard": signguard,
}
WITH_REFERENCE: dict[str, Callable[[Rows, int, Rows], Rows]] = {"monna": monna, "fltrust": fltrust}
STEPS: dict[str, Reference] = {"nnm": nnm, "arc": arc, "clip": clip}
