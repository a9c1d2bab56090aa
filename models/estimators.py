"""Effect estimators on arrays: each gives a number and how every row moves it.

To first order estimate - truth = mean(influence), so the standard error is that of a mean; this counts the error of all
fitted coefficients (M-estimation: Stefanski & Boos, 2002) or, with cross-fitting, needs not to (Chernozhukov et al.,
The Econometrics Journal 21, 2018). Nothing here knows a graph: which columns are z, m or w is for `estimation` to say.

Shapes: t, y (n,), t in {0, 1} where it says binary; z (n, p) covariates as `nuisance.features` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from causaldao.models.nuisance import (
    RIDGES,
    Bools,
    Family,
    Floats,
    Integers,
    Regression,
    cross_fitted,
    fit,
    folds,
    require_rank,
    with_constant,
)


@dataclass(frozen=True, eq=False)
class Fit:
    """values (q,), influence (n, q) with column means 0 up to rounding; coefficients: how many the fit spent.

    scores (n,) are the fitted P(t = 1 | z) where the method has them.
    """

    values: Floats
    influence: Floats
    coefficients: int = 1
    scores: Floats | None = None

    def combined(self, weights: Floats) -> tuple[float, float]:
        """weightsᵀ values and its standard error; √(n / (n - coefficients)) as in HC1 (MacKinnon & White, 1985)."""
        psi = self.influence @ weights
        n = len(psi)
        return float(self.values @ weights), math.sqrt(float(psi @ psi) / (n * max(n - self.coefficients, 1)))


def g_formula(t: Floats, y: Floats, z: Floats, family: Family, treated_only: bool) -> Fit:
    """Means of y under t = 0 and t = 1, standardised over all rows or those treated; each arm has its own regression.

    Robins (Mathematical Modelling 7, 1986).
    """
    x = with_constant(z)
    weight = t / t.mean() if treated_only else np.ones(len(t))
    found = [_standardised(_arm(x, y, family, t == arm), x, weight) for arm in ((0,) if treated_only else (0, 1))]
    if treated_only:
        mean = float(np.average(y, weights=t))
        found.append((mean, weight * (y - mean)))
    return Fit(np.array([mean for mean, _ in found]), np.stack([psi for _, psi in found], axis=1), 2 * x.shape[1])


def _arm(x: Floats, y: Floats, family: Family, inside: Bools) -> Regression:
    """A fit to some of the rows, with the influence of all of them."""
    model = fit(x[inside], y[inside], family)
    influence = np.zeros(x.shape)
    influence[inside] = model.influence * (len(x) / int(inside.sum()))
    return Regression(family, model.coefficients, influence)


def _standardised(model: Regression, x: Floats, weight: Floats) -> tuple[float, Floats]:
    """The weighted mean of a regression's mean over the rows x, and its influence; the weights have mean 1."""
    means = model.mean(x)
    mean = float(np.mean(weight * means))
    return mean, weight * (means - mean) + model.influence @ np.mean(weight[:, None] * model.gradient(x), axis=0)


def g_formula_dose(t: Floats, y: Floats, z: Floats, family: Family, settings: tuple[Floats, Floats]) -> Fit:
    """Means of y under two settings (n,) of a treatment of many values, which stands in the regression as a line."""
    x = with_constant(t, z)
    model, ones = fit(x, y, family), np.ones(len(t))
    found = [_standardised(model, with_constant(setting, z), ones) for setting in settings]
    return Fit(np.array([mean for mean, _ in found]), np.stack([psi for _, psi in found], axis=1), x.shape[1])


def scores(t: Floats, z: Floats) -> Floats:
    """P(t = 1 | z) by logistic regression, (n,)."""
    x = with_constant(z)
    return fit(x, t, "binary").mean(x)


def ipw(t: Floats, y: Floats, z: Floats, treated_only: bool) -> Fit:
    """Means of the two arms, each row weighted by the inverse of its chance to be in its arm, weights summing to 1.

    Hájek's form, which weights that are stabilised do not change. For the treated: weights 1 and e/(1 - e).
    Lunceford & Davidian (Statistics in Medicine 23, 2004), whose influence counts that e is fitted.
    """
    x = with_constant(z)
    model = fit(x, t, "binary")
    e = model.mean(x)
    odds = e / (1 - e)
    w1 = t if treated_only else t / e
    w0 = (1 - t) * odds if treated_only else (1 - t) / (1 - e)
    values, columns = [], []
    for w, slope in ((w0, (1 - t) * odds), (w1, 0 * t if treated_only else -t / odds)):
        mean = float(np.average(y, weights=w))
        gradient = np.mean((slope * (y - mean))[:, None] * x, axis=0)
        columns.append((w * (y - mean) + model.influence @ gradient) / w.mean())
        values.append(mean)
    return Fit(np.array(values), np.stack(columns, axis=1), x.shape[1], e)


def aipw(
    t: Floats, y: Floats, z: Floats, family: Family, treated_only: bool, number: int, rng: np.random.Generator
) -> Fit:
    """Means of the two arms by the efficient influence function, nuisances cross-fitted over ``number`` folds.

    Consistent if the outcome's regression or the score is right. Robins, Rotnitzky & Zhao (JASA 89, 1994); for the
    treated Hahn (Econometrica 66, 1998).
    """
    fold, x = folds(t, number, rng), with_constant(z)
    e = cross_fitted(x, t, fold, "binary")
    m0 = cross_fitted(x, y, fold, family, among=t == 0)
    if treated_only:
        p = float(t.mean())
        untreated = (t * m0 + (1 - t) * e / (1 - e) * (y - m0)) / p
        values = np.array([untreated.mean(), float((t * y).mean()) / p])
        psi = np.stack([untreated, t * y / p], axis=1) - t[:, None] * values / p
        return Fit(values, psi, 1, e)
    m1 = cross_fitted(x, y, fold, family, among=t == 1)
    psi = np.stack([m0 + (1 - t) * (y - m0) / (1 - e), m1 + t * (y - m1) / e], axis=1)
    return Fit(psi.mean(axis=0), psi - psi.mean(axis=0), 1, e)


def partially_linear(basis: Floats, y: Floats, z: Floats, family: Family, number: int, rng: np.random.Generator) -> Fit:
    """The coefficients of y = basis·β + g(z) + noise, (q,): what z tells of both sides is taken out by cross-fitting.

    Robinson (Econometrica 56, 1988); Chernozhukov et al. (2018). basis (n, q): functions of the treatment, perhaps
    times covariates.
    """
    fold, x = folds(np.zeros(len(y)), number, rng), with_constant(z)
    rest = y - cross_fitted(x, y, fold, family)
    left = np.stack([b - cross_fitted(x, b, fold) for b in basis.T], axis=1)
    require_rank(left)
    spread = left.T @ left
    beta = np.linalg.solve(spread, left.T @ rest)
    psi = len(y) * np.linalg.solve(spread, ((rest - left @ beta)[:, None] * left).T).T
    return Fit(beta, psi, basis.shape[1])


def front_door(t: Floats, y: Floats, m: Floats) -> Fit:
    """Σ_j a_j b_j: a_j the slope of mediator j (n, J) on t, b_j that of y on mediator j given t and the others.

    Pearl (*Causality*, 2009, §3.3.2) for linear models: what `linear_natural_effects` finds to pass through m.
    """
    found = linear_natural_effects(t, y, m, np.empty((len(t), 0)))
    return Fit(found.values[1:], found.influence[:, 1:], found.coefficients)


def two_stage(t: Floats, y: Floats, instruments: Floats, w: Floats) -> tuple[Fit, float]:
    """The slope of y on t by instruments (n, q) given w (n, p), and the F of the instruments in the first stage.

    Two-stage least squares (Theil, 1953; Basmann, 1957), errors robust to unequal variances.
    """
    x, z = with_constant(t, w), with_constant(instruments, w)
    require_rank(z)
    fitted = z @ np.linalg.lstsq(z, x, rcond=None)[0]
    short = with_constant(w)
    within, without = _squares(z, t), _squares(short, t)
    f = (without - within) / instruments.shape[1] / (max(within, 1e-300) / (len(t) - z.shape[1]))
    require_rank(fitted)
    beta = np.linalg.solve(fitted.T @ x, fitted.T @ y)
    psi = len(y) * np.linalg.solve(fitted.T @ fitted, ((y - x @ beta)[:, None] * fitted).T).T
    return Fit(np.asarray(beta[1:2], dtype=np.float64), psi[:, 1:2], x.shape[1]), float(f)


def _squares(x: Floats, y: Floats) -> float:
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(rest @ rest)


def natural_effects(
    t: Floats, y: Floats, m: Floats, w: Floats, family: Family, number: int, rng: np.random.Generator
) -> Fit:
    """E[Y(0, M(0))], E[Y(1, M(0))] and E[Y(1, M(1))] for binary t, by efficient influence functions, cross-fitted.

    The mediators m (n, J) may be of any kind: their density ratio is that of P(t | m, w) to P(t | w), by Bayes.
    Tchetgen Tchetgen & Shpitser (Annals of Statistics 40, 2012).
    """
    fold, x, xm = folds(t, number, rng), with_constant(w), with_constant(m, w)
    e = cross_fitted(x, t, fold, "binary")
    em = cross_fitted(xm, t, fold, "binary")
    y0 = cross_fitted(x, y, fold, family, among=t == 0)
    y1 = cross_fitted(x, y, fold, family, among=t == 1)
    inner, crossed = _nested(t, y, x, xm, fold, family)
    psi = np.stack(
        [
            y0 + (1 - t) * (y - y0) / (1 - e),
            crossed + t * (1 - em) / (em * (1 - e)) * (y - inner) + (1 - t) * (inner - crossed) / (1 - e),
            y1 + t * (y - y1) / e,
        ],
        axis=1,
    )
    return Fit(psi.mean(axis=0), psi - psi.mean(axis=0), 1, e)


def _nested(t: Floats, y: Floats, x: Floats, xm: Floats, fold: Integers, family: Family) -> tuple[Floats, Floats]:
    """E[y | t=1, m, w] at each row, and its mean over m given t=0, w, from the other folds' rows alone."""
    inner, crossed = np.empty(len(y)), np.empty(len(y))
    for k in np.unique(fold):
        trained, left = fold != k, fold == k
        treated, others = trained & (t == 1), trained & (t == 0)
        outcome = fit(xm[treated], y[treated], family, ridge=RIDGES[0])
        inner[left] = outcome.mean(xm[left])
        crossed[left] = fit(x[others], outcome.mean(xm[others]), ridge=RIDGES[0]).mean(x[left])
    return inner, crossed


def linear_natural_effects(t: Floats, y: Floats, m: Floats, w: Floats) -> Fit:
    """(direct, indirect) per unit of t in a linear model without t·m: c and Σ a_j b_j. Baron & Kenny (1986), with the
    delta method's errors."""
    first, x = with_constant(t, w), with_constant(t, m, w)
    last = fit(x, y)
    indirect, psi = 0.0, np.zeros(len(y))
    for j, column in enumerate(m.T):
        model = fit(first, column)
        a, b = model.coefficients[1], last.coefficients[2 + j]
        indirect += float(a * b)
        psi = psi + model.influence[:, 1] * b + last.influence[:, 2 + j] * a
    values = np.array([float(last.coefficients[1]), indirect])
    return Fit(values, np.stack([last.influence[:, 1], psi], axis=1), x.shape[1])


def plug_in(value: Callable[[Floats], float], cells: Integers, number: int) -> Fit:
    """A function of cell probabilities (number,) at the observed shares; cells (n,) says where each row lies.

    The influence of a cell is the function's derivative as that cell's share grows (von Mises, 1947), by differences.
    """
    shares = np.bincount(cells, minlength=number) / len(cells)
    step, slopes = min(1e-6, float(shares[shares > 0].min()) / 2), np.zeros(number)
    for cell in np.flatnonzero(shares):
        toward = -shares * step
        toward[cell] += step
        slopes[cell] = (value(shares + toward) - value(shares - toward)) / (2 * step)
    psi = slopes[cells]
    return Fit(np.array([value(shares)]), (psi - psi.mean())[:, None])
