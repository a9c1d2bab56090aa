"""From a table and a graph to an effect: identification says what to compare, an estimator compares it.

Every standard error here is conditional on the graph: it counts the sampling of rows, and not the doubt whether the
graph is right. `refute` has checks that bear on that doubt. For released moments instead of rows see `effects`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, cast

import numpy as np
import pandas as pd

from causaldao.errors import DataError, MisuseError
from causaldao.models import estimators
from causaldao.models.adjustment import checked
from causaldao.models.estimand import Table
from causaldao.models.estimators import Fit
from causaldao.models.graph import CausalGraph
from causaldao.models.nuisance import Family, Floats, features
from causaldao.models.plan import ADJUST, ADJUSTING, Plan, Question, asked, planned
from causaldao.models.positivity import Positivity, diagnose, require_arms, require_scores

CONDITIONAL = "Standard error and interval hold if the graph is right; the doubt about the graph is not in them."
_WEAK = 10.0  # first-stage F (Staiger & Stock, Econometrica 65, 1997)
_SPARSE = 50.0  # effective rows of an arm below which a normal interval is a hope
_CELLS = 4096  # of the joint table of the plug-in
_SOURCES = {
    "g-formula": "The outcome is regressed on treatment and adjustment, and its predictions are averaged under each.",
    "ipw": "Each row is weighted by the inverse of its chance to be in its arm; weights sum to one in each arm.",
    "aipw": "Regression of the outcome, corrected by inverse weights, fitted on other folds: right if either model is.",
    "plm": "What the adjustment tells of treatment and outcome is taken out, fitted on other folds, and the rests are "
    "regressed: linear in the treatment.",
    "front-door": "Linear: slopes of the mediators on the treatment, times theirs on the outcome given the treatment.",
    "2sls": "Only that variation of the treatment is used which the instrument brings. This assumes linear effects.",
    "mediation": "The outcome is compared as if the treatment moved, and the mediators stayed as without it, and v. v.",
    "plug-in": "The formula is evaluated on the shares of the cells of the table.",
}


@dataclass(frozen=True)
class TableEffect:
    """The mean of the outcome under one setting of the treatment minus that under another, from rows.

    kind: ate, att (among those treated), nde or nie (natural direct, indirect); contrast: the settings in words;
    estimand: the formula, or the criterion in words; arms: the means under the two settings where the method has them;
    risk_ratio: (ratio, low, high) of the arms where both are positive; first_stage: F of the instruments.
    standard_error and interval are conditional on the graph, and normal at ``level``.
    """

    treatment: str
    outcome: str
    kind: str
    method: str
    contrast: str
    estimate: float
    standard_error: float
    interval: tuple[float, float]
    level: float
    n: int
    adjustment: tuple[str, ...]
    estimand: str
    why: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    arms: tuple[float, float] | None = None
    risk_ratio: tuple[float, float, float] | None = None
    positivity: Positivity | None = None
    first_stage: float | None = None
    implied: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        plain["positivity"] = None if self.positivity is None else self.positivity.to_json()
        plain["graph_implies_zero"] = plain.pop("implied")
        return {**plain, "conditional_on": "the graph"}


def estimate_effect(
    data: pd.DataFrame,
    graph: CausalGraph,
    treatment: str,
    outcome: str,
    *,
    method: str = "auto",
    estimand: str = "ate",
    **options: Any,
) -> TableEffect:
    """The effect of treatment on outcome in the population of the rows of ``data``, identified by ``graph``.

    method: "auto" takes what identifies the effect: adjustment by "aipw" where the treatment has two values, else by
    "plm" (also "g-formula", "ipw"); then "front-door" (linear), "plug-in" where all columns are discrete, and, with
    ``assume="linear"``, "2sls". "mediation" goes with nde and nie.
    estimand: "ate", "att", "nde", "nie".
    options: adjustment (a set of your own, checked against the graph); mediators (else all); instrument (else all with
    the same conditions); assume; family of the outcome ("auto": binary if 0 and 1, else linear; "count": a log-linear
    mean); contrast (from, to) of the treatment (else its two values, or one unit more); degree 2 adds squares and
    products of what is adjusted for; folds, seed of the cross-fitting; level of the interval; overlap, the score below
    which rows are counted as poorly matched; trim, the score outside which rows are left out, which changes the
    population and is said in the warnings.

    The standard error is conditional on the graph. Where the graph has no causal path, what is estimated is adjusted
    for the treatment's parents, and `implied` is true.

    Raises:
        NotIdentifiable: the graph does not settle it, with the reason, and the hedge where there is one.
        MisuseError: an unknown name, one in two roles, an option that does not exist or does not fit.
        DataError: missing or infinite values, text, a constant column, positivity violated (the strata are named), no
            more rows than coefficients.
    """
    return answer(data, asked(graph, treatment, outcome, method=method, estimand=estimand, **options))


def answer(data: pd.DataFrame, question: Question) -> TableEffect:
    """`estimate_effect` of a question."""
    checked(question.graph, question.treatment, question.outcome)
    plan = planned(question)
    table = rows_of(data, question, plan)
    if question.trim:
        if plan.method not in (ADJUST, *ADJUSTING):
            raise MisuseError(f"trim is for {', '.join(ADJUSTING)}; {plan.method} has no scores: leave it out.")
        table = trimmed(table, question, plan)
    return _RUN[plan.method](table, question, plan)


@dataclass(frozen=True, eq=False)
class Rows:
    """The table as numbers. t is 0/1 where the treatment has two values; family: that of the outcome."""

    frame: pd.DataFrame
    t: Floats
    y: Floats
    binary: bool
    levels: tuple[float, float]
    family: Family
    notes: tuple[str, ...] = ()

    def columns(self, names: Sequence[str]) -> Floats:
        return self.frame[list(names)].to_numpy(dtype=np.float64)


def numbers(data: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The named columns as float64. DataError: text, missing or infinite values (with their number), no rows."""
    if lacking := [name for name in names if name not in data.columns]:
        raise DataError(
            f"The table has no column {', '.join(lacking)}, which the answer needs. Add it; or, if nobody measured it, "
            "take it out of the graph and draw its effects as two-headed edges between what it causes."
        )
    if twice := [name for name in names if list(data.columns).count(name) > 1]:
        raise DataError(f"The columns {', '.join(twice)} are there more than once: rename all but one of each.")
    columns, problems = {}, []
    for name in names:
        try:
            columns[name] = data[name].to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError):
            problems.append(f"{name}: it holds text; code it as numbers, one column of 0 and 1 for each level but one")
            continue
        if bad := int((~np.isfinite(columns[name])).sum()):
            problems.append(f"{name}: {bad} of {len(data)} values are missing or infinite")
    if problems:
        raise DataError(
            "The table cannot be used as it is: impute the values, or drop these rows if their absence has nothing to "
            "do with the answer.",
            problems=problems,
        )
    if len(data) == 0:
        raise DataError("The table has no rows.")
    return pd.DataFrame(columns)


def rows_of(data: pd.DataFrame, question: Question, plan: Plan) -> Rows:
    t, y = question.treatment, question.outcome
    names = tuple(dict.fromkeys((t, y, *plan.needed)))
    for name, role in ((t, "treatment"), (y, "outcome")):
        if name not in data.columns:
            raise MisuseError(f"The {role} {name!r} is no column; the table has {', '.join(map(str, data.columns))}.")
    frame = numbers(data, names)
    levels = np.unique(frame[t])
    for name in names:
        if frame[name].nunique() == 1:
            remedy = "leave it out of the graph" if name not in (t, y) else "an effect needs rows of either kind"
            raise DataError(f"{name} is constant: it is {frame[name].iloc[0]:g} in all {len(frame)} rows; {remedy}.")
    binary = len(levels) == 2
    values = frame[t].to_numpy(dtype=np.float64)
    low, high = (float(levels[0]), float(levels[1])) if binary else (0.0, 1.0)
    treated = (values == high).astype(np.float64) if binary else values
    if binary and question.contrast is not None and question.contrast != (low, high):
        raise MisuseError(f"{t} has the values {low:g} and {high:g} only: leave contrast={question.contrast} out.")
    outcome = frame[y].to_numpy(dtype=np.float64)
    return Rows(frame, treated, outcome, binary, (low, high), _family(outcome, question), plan.notes)


def _family(y: Floats, question: Question) -> Family:
    two = bool(np.isin(y, (0.0, 1.0)).all())
    if question.family == "binary" and not two:
        raise MisuseError(f"family='binary', but {question.outcome} has other values than 0 and 1: code it so.")
    if question.family == "count" and bool((y < 0).any()):
        raise MisuseError(f"family='count', but {question.outcome} has negative values: take family='linear'.")
    if question.family == "auto":
        return "binary" if two else "linear"
    return cast(Family, question.family)


def trimmed(rows: Rows, question: Question, plan: Plan) -> Rows:
    if not rows.binary:
        raise MisuseError("trim leaves rows out by their score, which a treatment of more than two values has not.")
    score = estimators.scores(rows.t, features(rows.columns(plan.z)))
    keep = (score >= question.trim) & (score <= 1 - question.trim)
    if rows.t[keep].sum() in (0, keep.sum()):
        raise DataError(f"trim={question.trim} leaves rows of one arm only, {int(keep.sum())} in all: trim less.")
    note = (
        f"{int((~keep).sum())} of {len(keep)} rows with a score outside [{question.trim:g}, {1 - question.trim:g}] "
        "were left out: the answer is for the others."
    )
    frame = rows.frame[keep].reset_index(drop=True)
    return replace(rows, frame=frame, t=rows.t[keep], y=rows.y[keep], notes=(*rows.notes, note))


def _adjusted(rows: Rows, question: Question, plan: Plan) -> TableEffect:
    method = plan.method if plan.method != ADJUST else ("aipw" if rows.binary else "plm")
    treated_only = question.estimand == "att"
    if not rows.binary and (method in ("ipw", "aipw") or treated_only):
        what = f"method={method!r}" if method in ("ipw", "aipw") else "estimand='att'"
        raise MisuseError(
            f"{what} compares two arms, but {question.treatment} has {rows.frame[question.treatment].nunique()} "
            "values: take method='plm' or 'g-formula', or cut it in two."
        )
    if method == "plm" and treated_only:
        raise MisuseError("method='plm' takes one effect for all; for the treated take 'aipw', 'ipw' or 'g-formula'.")
    z, rng = features(rows.columns(plan.z), question.degree), np.random.default_rng(question.seed)
    scores = plain_scores(rows, plan.z, treated_only) if rows.binary else None
    weights = np.array([-1.0, 1.0])
    if method == "plm":
        fit = estimators.partially_linear(rows.t[:, None], rows.y, z, rows.family, question.folds, rng)
        weights = np.array([_step(rows, question)])
    elif method == "g-formula" and rows.binary:
        fit = estimators.g_formula(rows.t, rows.y, z, rows.family, treated_only)
    elif method == "g-formula":
        fit = estimators.g_formula_dose(rows.t, rows.y, z, rows.family, _settings(rows, question))
    elif method == "ipw":
        fit = estimators.ipw(rows.t, rows.y, z, treated_only)
    else:
        require_folds(rows, question)
        fit = estimators.aipw(rows.t, rows.y, z, rows.family, treated_only, question.folds, rng)
    if scores is None:
        return _effect(rows, question, plan, method, fit, weights)
    return _diagnosed(rows, question, plan, method, fit, weights, scores, treated_only)


def plain_scores(rows: Rows, names: tuple[str, ...], treated_only: bool) -> Floats:
    """Scores of a logistic regression on the columns as they are; DataError where they, or strata, show that an arm has
    no rows that it needs."""
    require_arms(rows.frame, rows.t, names, treated_only)
    scores = estimators.scores(rows.t, features(rows.columns(names)))
    require_scores(rows.frame, rows.t, scores, names, treated_only)
    return scores


def _diagnosed(
    rows: Rows, question: Question, plan: Plan, method: str, fit: Fit, weights: Floats, scores: Floats,
    treated_only: bool,
) -> TableEffect:  # fmt: skip
    """The effect with the diagnostics of the scores that were used, or else of the plain ones."""
    rows, found = judged(rows, question, plan, scores if fit.scores is None else fit.scores, treated_only)
    return _effect(rows, question, plan, method, fit, weights, found)


def judged(rows: Rows, question: Question, plan: Plan, scores: Floats, treated_only: bool) -> tuple[Rows, Positivity]:
    """The rows with notes on their scores, and the diagnostics; DataError where a score is 0 or 1."""
    require_scores(rows.frame, rows.t, scores, plan.z, treated_only)
    found = diagnose(rows.t, scores, question.overlap, treated_only)
    return replace(rows, notes=(*rows.notes, *_overlap_notes(found))), found


def _overlap_notes(found: Positivity) -> tuple[str, ...]:
    notes = []
    if found.outside:
        notes.append(
            f"{found.outside} rows have a score beyond {found.bound:g} of 0 or 1 (range [{found.range[0]:.3g}, "
            f"{found.range[1]:.3g}]): few rows of the other arm are like them. See how the answer moves with trim."
        )
    if min(found.effective) < _SPARSE:
        notes.append(
            f"Weighted, the arms count as {found.effective[0]:.0f} and {found.effective[1]:.0f} rows: too few to trust "
            "a normal interval."
        )
    return tuple(notes)


def require_folds(rows: Rows, question: Question) -> None:
    smaller = int(min(rows.t.sum(), (1 - rows.t).sum()))
    if smaller < 2 * question.folds:
        raise DataError(
            f"The smaller arm has {smaller} rows, for {question.folds} folds: expected at least {2 * question.folds}. "
            "Use fewer folds, or method='g-formula'."
        )


def _settings(rows: Rows, question: Question) -> tuple[Floats, Floats]:
    if question.contrast is not None:
        return np.full(len(rows.t), question.contrast[0]), np.full(len(rows.t), question.contrast[1])
    return rows.t, rows.t + 1


def _step(rows: Rows, question: Question) -> float:
    """Units of (recoded) treatment between the two settings."""
    return 1.0 if rows.binary or question.contrast is None else question.contrast[1] - question.contrast[0]


def _by_front_door(rows: Rows, question: Question, plan: Plan) -> TableEffect:
    if question.estimand == "att":
        raise MisuseError("method='front-door' is linear: one effect for all. Ask for the ate.")
    fit = estimators.front_door(rows.t, rows.y, rows.columns(plan.m))
    return _effect(rows, question, plan, "front-door", fit, np.array([_step(rows, question)]))


def _by_instrument(rows: Rows, question: Question, plan: Plan) -> TableEffect:
    if question.estimand == "att":
        raise MisuseError("method='2sls' assumes one effect for all. Ask for the ate.")
    fit, strength = estimators.two_stage(rows.t, rows.y, rows.columns(plan.instruments), rows.columns(plan.z))
    if strength < _WEAK:
        note = (
            f"The instrument is weak: first-stage F = {strength:.3g}, expected {_WEAK:g} or more. Estimate and "
            "interval are not to be trusted; find a stronger instrument or more rows."
        )
        rows = replace(rows, notes=(*rows.notes, note))
    found = _effect(rows, question, plan, "2sls", fit, np.array([_step(rows, question)]))
    return replace(found, first_stage=strength)


def _by_mediation(rows: Rows, question: Question, plan: Plan) -> TableEffect:
    m, w = rows.columns(plan.m), rows.columns(plan.z)
    direct = question.estimand == "nde"
    if rows.binary:
        require_folds(rows, question)
        scores = plain_scores(rows, plan.z, False)
        plain_scores(rows, (*plan.m, *plan.z), False)
        z, rng = features(w, question.degree), np.random.default_rng(question.seed)
        fit = estimators.natural_effects(rows.t, rows.y, features(m), z, rows.family, question.folds, rng)
        weights = np.array([-1.0, 1.0, 0.0] if direct else [0.0, -1.0, 1.0])
        return _diagnosed(rows, question, plan, "mediation", fit, weights, scores, False)
    fit = estimators.linear_natural_effects(rows.t, rows.y, m, w)
    linear = "For a treatment of many values the models are linear, without the product of treatment and mediator."
    plan = replace(plan, why=(*plan.why, linear))
    return _effect(rows, question, plan, "mediation", fit, np.array([direct, not direct]) * _step(rows, question))


def _by_plug_in(rows: Rows, question: Question, plan: Plan) -> TableEffect:
    formula = plan.formula
    if formula is None or question.estimand != "ate":
        raise MisuseError("method='plug-in' evaluates the formula of an average effect: ask for the ate.")
    names = sorted(formula.variables)
    levels, codes = zip(*(np.unique(rows.frame[name], return_inverse=True) for name in names), strict=True)
    shape = tuple(len(level) for level in levels)
    if math.prod(shape) > _CELLS:
        raise MisuseError(
            f"{formula} is what the graph says, and this estimates it only where the columns have few values: here "
            f"{math.prod(shape)} cells, expected at most {_CELLS}. Cut {', '.join(names)} into fewer levels"
            ", or, if effects are linear, look for an instrument with assume='linear'."
        )
    treatment, outcome = levels[names.index(question.treatment)], levels[names.index(question.outcome)]
    low, high = question.contrast or (float(treatment[0]), float(treatment[-1]))
    if not {low, high} <= set(treatment.tolist()):
        raise MisuseError(f"contrast=({low:g}, {high:g}): {question.treatment} has {treatment.tolist()}.")
    ends = [int(np.searchsorted(treatment, end)) for end in (low, high)]

    def value(shares: Floats) -> float:
        under = formula.evaluate(Table(tuple(names), shares.reshape(shape))).values
        means = under @ outcome
        return float(means[ends[1]] - means[ends[0]])

    cells = np.asarray(np.ravel_multi_index(codes, shape), dtype=np.int64)
    fit = estimators.plug_in(value, cells, math.prod(shape))
    found = _effect(rows, question, plan, "plug-in", fit, np.ones(1))
    return replace(found, contrast=_contrast_text(question.treatment, low, high))


_RUN: dict[str, Callable[[Rows, Question, Plan], TableEffect]] = {
    **dict.fromkeys((ADJUST, *ADJUSTING), _adjusted),
    "front-door": _by_front_door,
    "2sls": _by_instrument,
    "mediation": _by_mediation,
    "plug-in": _by_plug_in,
}


def _contrast_text(name: str, low: float, high: float) -> str:
    return f"{name} from {low:g} to {high:g}"


def _effect(
    rows: Rows, question: Question, plan: Plan, method: str, fit: Fit, weights: Floats,
    positivity: Positivity | None = None,
) -> TableEffect:  # fmt: skip
    estimate, error = fit.combined(weights)
    reach = NormalDist().inv_cdf((1 + question.level) / 2)
    low, high = rows.levels if rows.binary else question.contrast or (0.0, 0.0)
    contrast = (
        _contrast_text(question.treatment, low, high) if low != high else f"one unit more of {question.treatment}"
    )
    arms = (float(fit.values[0]), float(fit.values[1])) if len(weights) == 2 and method in ADJUSTING else None
    return TableEffect(
        treatment=question.treatment, outcome=question.outcome, kind=question.estimand, method=method,
        contrast=contrast, estimate=estimate, standard_error=error,
        interval=(estimate - reach * error, estimate + reach * error), level=question.level, n=len(rows.t),
        adjustment=plan.z, estimand=plan.estimand, why=(*plan.why, _SOURCES[method]), warnings=rows.notes, arms=arms,
        risk_ratio=_risk_ratio(fit, arms, rows, reach), positivity=positivity, implied=plan.implied,
    )  # fmt: skip


def _risk_ratio(
    fit: Fit, arms: tuple[float, float] | None, rows: Rows, reach: float
) -> tuple[float, float, float] | None:
    if arms is None or min(arms) <= 0 or rows.family == "linear":
        return None
    _, error = fit.combined(np.array([-1 / arms[0], 1 / arms[1]]))  # of the logarithm, by the delta method
    log = math.log(arms[1] / arms[0])
    return math.exp(log), math.exp(log - reach * error), math.exp(log + reach * error)
