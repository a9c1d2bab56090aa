"""The small regressions that effect estimates rest on: generalised linear models by Newton's method.

Linear, logistic and Poisson means serve continuous, binary and count variables. Each fit knows how every row moves its
coefficients (the influence of an M-estimator: Huber, 1967; Stefanski & Boos, The American Statistician 56, 2002), so
that what is computed from it carries the error of its coefficients. NumPy alone: a member's node needs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Literal

import numpy as np

from causaldao.errors import DataError

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Family = Literal["linear", "binary", "count"]

RIDGES = (1.0, 10.0, 100.0, 1000.0)  # on columns of spread 1; the first is one pseudo-observation's worth
_ROWS_PER_COLUMN = 10
_STEPS, _HALVINGS = 100, 30
_IMPROVED = 1e-11  # of the log-likelihood of a row: Newton converges quadratically, so what is left is rounding
_TRACE = 1e-6  # of a column's length
_FAR = 30.0  # a linear predictor beyond it is a probability of 0 or 1 to within 1e-13


def _expit(eta: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(eta, -_FAR, _FAR))))


def _exp(eta: Floats) -> Floats:
    return np.asarray(np.exp(np.clip(eta, -_FAR, _FAR)))


@dataclass(frozen=True)
class _Link:
    mean: Callable[[Floats], Floats]
    slope: Callable[[Floats], Floats]
    likelihood: Callable[[Floats, Floats], Floats]  # of (outcome, linear predictor), up to a constant


_LINKS: dict[str, _Link] = {
    "linear": _Link(lambda eta: eta, np.ones_like, lambda y, eta: -((y - eta) ** 2) / 2),
    "binary": _Link(
        _expit, lambda eta: _expit(eta) * (1 - _expit(eta)), lambda y, eta: y * eta - np.logaddexp(0.0, eta)
    ),
    "count": _Link(_exp, _exp, lambda y, eta: y * eta - _exp(eta)),
}


@dataclass(frozen=True, eq=False)
class Regression:
    """E[y | x] = g(xᵀβ), g by the family. coefficients (k,); influence (n, k), row i's share in β - β₀ times n."""

    family: Family
    coefficients: Floats
    influence: Floats

    def mean(self, x: Floats) -> Floats:
        """(m, k) -> (m,): the mean at each row."""
        return _LINKS[self.family].mean(x @ self.coefficients)

    def gradient(self, x: Floats) -> Floats:
        """(m, k) -> (m, k): the derivative of `mean` by the coefficients."""
        return np.asarray(_LINKS[self.family].slope(x @ self.coefficients)[:, None] * x)


def fit(x: Floats, y: Floats, family: Family = "linear", *, ridge: float = 0.0) -> Regression:
    """Maximum likelihood of y (n,) on x (n, k), whose first column is constant; with ``ridge`` r the penalty
    r/2·Σ s_j²β_j², s_j the spread of column j, so that it does not depend on units.

    Where a combination of columns separates a binary y the likelihood has no maximum: then means of 0 or 1, to within
    1e-6 or less, come back, and it is the caller who must not divide by them.

    Raises:
        DataError: without a ridge, as many coefficients as rows or more, or a column that is a combination of others.
    """
    if ridge == 0:
        require_rank(x)
    link, penalty = _LINKS[family], ridge * np.var(x, axis=0)
    beta = np.zeros(x.shape[1])
    if family == "count":
        beta[0] = np.log(max(float(y.mean()), 1e-3)) / x[0, 0]

    def value(b: Floats) -> float:
        return float(link.likelihood(y, x @ b).sum() - penalty @ b**2 / 2)

    best = value(beta)
    for _ in range(_STEPS):
        curvature = _curvature(x, link.slope(x @ beta), penalty)
        step = np.linalg.solve(curvature, x.T @ (y - link.mean(x @ beta)) - penalty * beta)
        for _ in range(_HALVINGS):
            if (reached := value(beta + step)) >= best:
                break
            step = step / 2
        else:
            break
        beta, gained, best = beta + step, reached - best, reached
        if gained <= _IMPROVED * len(y):
            break
    curvature = _curvature(x, link.slope(x @ beta), penalty)
    scores = (y - link.mean(x @ beta))[:, None] * x
    return Regression(family, beta, np.asarray(len(y) * np.linalg.solve(curvature, scores.T).T, dtype=np.float64))


def _curvature(x: Floats, slope: Floats, penalty: Floats) -> Floats:
    """Minus the Hessian, with enough on the diagonal to be solved where a separated fit has gone flat."""
    matrix = (x * slope[:, None]).T @ x + np.diag(penalty)
    return np.asarray(matrix + np.diag(1e-12 * (np.mean(x**2, axis=0) + 1e-300) * len(x)))


def require_rank(x: Floats, names: Sequence[str] = ()) -> None:
    """DataError unless x (n, k) has more rows than columns and no column is a combination of the others."""
    n, k = x.shape
    if n <= k:
        raise DataError(f"{n} rows for {k} coefficients: expected more rows. Add rows, or adjust for fewer columns.")
    scaled = x / np.maximum(np.sqrt(np.mean(x**2, axis=0)), 1e-300)
    if (rank := int(np.linalg.matrix_rank(scaled, tol=1e-9 * np.sqrt(n * k)))) < k:
        told = f" ({', '.join(names)})" if names else ""
        raise DataError(
            f"Of {k} coefficients only {rank} can be told apart: a column{told} is constant or a combination of "
            "others. Drop one of those that say the same."
        )


def features(z: Floats, degree: int = 1) -> Floats:
    """(n, d) covariates -> (n, p) columns of mean 0 and spread 1; with degree 2 also squares and products.

    Columns that are constant are left out, and so are squares and products that others make up, as that of two levels
    of one category.
    """
    columns = [scaled for column in z.T if (scaled := _scaled(column)) is not None]
    if degree == 2:
        spanned: list[Floats] = []
        for column in columns:
            _add_direction(spanned, column)
        for a, b in combinations_with_replacement(tuple(columns), 2):
            product = _scaled(a * b)
            if product is not None and _add_direction(spanned, product):
                columns.append(product)
    return np.stack(columns, axis=1) if columns else np.empty((len(z), 0))


def _add_direction(spanned: list[Floats], column: Floats) -> bool:
    """Whether a column of mean 0 has more than a trace outside the orthonormal ``spanned``, which then takes it in."""
    rest = column / np.linalg.norm(column)
    for _ in range(2):  # twice is enough (Kahan & Parlett)
        for direction in spanned:
            rest = rest - direction * float(direction @ rest)
    left = float(np.linalg.norm(rest))
    if left > _TRACE:
        spanned.append(rest / left)
    return left > _TRACE


def _scaled(column: Floats) -> Floats | None:
    centred = column - column.mean()
    spread = float(centred.std())
    return None if spread <= 1e-12 * (1 + float(np.abs(column).max(initial=0.0))) else np.asarray(centred / spread)


def with_constant(*columns: Floats) -> Floats:
    """A first column of ones, then what is given: (n,) or (n, p) each."""
    n = len(columns[0])
    return np.concatenate([np.ones((n, 1)), *(c.reshape(n, -1) for c in columns)], axis=1)


def folds(strata: Floats, number: int, rng: np.random.Generator) -> Integers:
    """The fold in 0..number-1 of each row, drawn so that each value of ``strata`` (n,) is spread evenly."""
    drawn = np.empty(len(strata), dtype=np.int64)
    start = 0
    for value in np.unique(strata):
        rows = np.flatnonzero(strata == value)
        drawn[rng.permutation(rows)] = (start + np.arange(len(rows))) % number
        start += len(rows)
    return drawn


def cross_fitted(
    x: Floats, y: Floats, fold: Integers, family: Family = "linear", *, among: Bools | None = None
) -> Floats:
    """The mean of y at each row, (n,), from a fit on the other folds' rows (of those, where ``among`` is true).

    The ridge is 1. With fewer than ten rows (of the rarer value of a binary y) for each column it is chosen among
    `RIDGES` by the likelihood of the rows left out; ten are what Peduzzi et al. (1996) found needed without one.
    """
    inside = np.ones(len(y), dtype=np.bool_) if among is None else among
    size = int(inside.sum())
    if family == "binary":
        size = int(min(y[inside].sum(), size - y[inside].sum()))
    ridges = RIDGES if size < _ROWS_PER_COLUMN * x.shape[1] else RIDGES[:1]
    link, found = _LINKS[family], []
    for ridge in ridges:
        predictor = np.empty(len(y))
        for k in np.unique(fold):
            trained, left = inside & (fold != k), fold == k
            predictor[left] = x[left] @ fit(x[trained], y[trained], family, ridge=ridge).coefficients
        found.append((float(link.likelihood(y[inside], predictor[inside]).sum()), predictor))
    return link.mean(max(found, key=lambda one: one[0])[1])
