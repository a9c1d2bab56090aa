"""The table of all variables that noisy tables tell of: what a score of noisy counts is read off.

A score compares sets of parents, and what one more parent adds is the difference of two likelihoods. Read off noisy
tables as they come, these lie in two tables whose margins differ by their noise, and so does all of the likelihood, by
far more than an edge is worth. In one table of all variables they cannot differ. So the noisy m-way tables t are first
made into the joint table p that is nearest to them, none of whose cells is negative::

    minimise  ½ Σ (margin of p - t)²   over the cells of all tables

which is what estimates a table from Gaussian noise of one scale on all cells (McKenna, Sheldon & Miklau, 2019), by
exponentiated gradients (Kivinen & Warmuth, 1997) from the uniform table: what m variables do not tell of more is left
as random as can be. This uses what was released and nothing else, and costs no privacy.

Noise that is left moves the cells of a margin by about its own variance where sampling moves them by their count. With
c cells to an m-way table on average, that is 1 + σ²·c/n of the sampling variance, so the table is worth
n / (1 + σ²·c/n) records, and is scaled to them before a score sees it.
"""

from __future__ import annotations

import math

import numpy as np

from causaldao.errors import DataError
from causaldao.models.discovery.tables import Floats, Key, SharedTables

MOST_CELLS = 1 << 16
LEAST = 10.0  # records
_STEPS = 500
_STILL = 1e-6
_HALVINGS = 40


def denoised(tables: SharedTables, method: str) -> SharedTables:
    """Exact tables of all d variables, of as many records as the noisy ``tables`` are worth; ``method`` is named in
    errors.

    Raises:
        DataError: a joint table of more than 2^16 cells, or noise that leaves the worth of fewer than ten records.
    """
    cells = math.prod(tables.levels)
    if cells > MOST_CELLS:
        raise DataError(
            f"{method} scores noisy tables by way of the table of all {len(tables.names)} variables, which has {cells} "
            f"cells, of at most {MOST_CELLS}. Take pc, fci or rfci, whose tests count the noise in each table, or "
            "share fewer variables or levels."
        )
    worth = effective(tables)
    if worth < LEAST:
        raise DataError(
            f"The tables are worth {worth:.3g} records after their noise of {tables.sigma:.4g} on {tables.count:.4g}. "
            f"{method} needs {LEAST:g}: use more records, fewer or smaller tables, or a larger epsilon."
        )
    joint = _nearest(tables) * worth
    return SharedTables(tables.names, tables.levels, len(tables.names), {tuple(range(len(tables.names))): joint})


def effective(tables: SharedTables) -> float:
    """n / (1 + σ²·c/n): the records' worth of the tables, c the mean number of their cells."""
    mean = sum(table.size for table in tables.tables.values()) / len(tables.tables)
    return tables.count / (1 + tables.sigma**2 * mean / tables.count)


def _nearest(tables: SharedTables) -> Floats:
    """The probabilities whose margins are nearest to the tables: a step is halved until it helps, and each that does
    is tried a little longer the next time.
    """
    shares = {key: table / tables.count for key, table in tables.tables.items()}
    now: Floats = np.full(tables.levels, 1 / math.prod(tables.levels))
    loss, slope = _loss(now, shares)
    step = 1.0
    for _ in range(_STEPS):
        for _ in range(_HALVINGS):
            following = _along(now, slope, step)
            lower, steeper = _loss(following, shares)
            if lower < loss:
                break
            step /= 2
        else:
            return now
        gained, now, loss, slope, step = loss - lower, following, lower, steeper, step * 1.5
        if gained <= _STILL * loss:
            return now
    return now


def _along(now: Floats, slope: Floats, step: float) -> Floats:
    moved = now * np.exp(-step * (slope - slope.min()))
    return np.asarray(moved / moved.sum(), dtype=np.float64)


def _loss(now: Floats, shares: dict[Key, Floats]) -> tuple[float, Floats]:
    loss, slope = 0.0, np.zeros(now.shape)
    for key, share in shares.items():
        others = tuple(i for i in range(now.ndim) if i not in key)
        beyond = now.sum(axis=others) - share
        loss += float((beyond**2).sum()) / 2
        slope += np.expand_dims(beyond, others)
    return loss, slope
