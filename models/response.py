"""Effects that are more than one number: how they change with a covariate (CATE), and with the dose.

Errors are conditional on the graph, as in `estimation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from causaldao.errors import MisuseError, NotIdentifiable
from causaldao.models import estimators
from causaldao.models.adjustment import adjustment_set, checked, possible_descendants
from causaldao.models.estimation import judged, plain_scores, require_folds, rows_of, trimmed
from causaldao.models.estimators import Fit
from causaldao.models.graph import CausalGraph
from causaldao.models.nuisance import Floats, features, fit
from causaldao.models.plan import Question, asked, planned


@dataclass(frozen=True)
class Coefficient:
    """A number with its standard error and interval, conditional on the graph."""

    value: float
    standard_error: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class EffectLine:
    """The effect as a line in covariates: ``effect`` at their means, ``slopes`` for one unit of each; ``warnings`` say
    what must be known to read them."""

    effect: Coefficient
    slopes: dict[str, Coefficient]
    adjustment: tuple[str, ...]
    n: int
    level: float
    warnings: tuple[str, ...] = ()


_OPTIONS = ("adjustment", "family", "degree", "folds", "seed", "level", "overlap", "trim")


def _asked(graph: CausalGraph, treatment: str, outcome: str, options: dict[str, Any]) -> Question:
    """The question; MisuseError for an option of `estimate_effect` that means nothing where more than one number is
    asked for, rather than an answer that leaves it out."""
    if odd := sorted(set(options) - set(_OPTIONS)):
        raise MisuseError(f"There is no option {', '.join(odd)} here; there are {', '.join(_OPTIONS)}.")
    return asked(graph, treatment, outcome, **options)


def effect_modification(
    data: pd.DataFrame, graph: CausalGraph, treatment: str, outcome: str, modifiers: Sequence[str], **options: Any
) -> EffectLine:
    """CATE as a line: the effect at the modifiers' means, and a slope for each of them.

    Binary treatment: the efficient scores of AIPW are regressed on the modifiers (Semenova & Chernozhukov, The
    Econometrics Journal 24, 2021); else a partially linear model with treatment × modifiers. Where the effect is no
    line, it is the best line. Of the options of `estimate_effect` it has adjustment, family, degree, folds, seed,
    level, overlap and trim; errors as there, and besides NotIdentifiable if adjusting for the modifiers too is not
    allowed by the graph (one follows from the treatment, or opens a path).
    """
    question = _asked(graph, treatment, outcome, options)
    names = tuple(modifiers)
    if not names or isinstance(modifiers, str):
        raise MisuseError(f"modifiers={modifiers!r}: expected a sequence of names, such as ('age',).")
    closed, _ = checked(graph, treatment, outcome, names)
    if after := sorted(possible_descendants(closed, treatment) & set(names)):
        raise NotIdentifiable(
            f"{', '.join(after)} may follow from {treatment}: an effect has no value among rows so chosen."
        )
    chosen = question.adjustment if question.adjustment is not None else adjustment_set(graph, treatment, outcome)
    question = replace(question, adjustment=tuple(sorted({*chosen, *names})), method="auto", estimand="ate")
    plan = planned(question)
    rows = rows_of(data, question, plan)
    if question.trim:
        rows = trimmed(rows, question, plan)
    z, rng = features(rows.columns(plan.z), question.degree), np.random.default_rng(question.seed)
    v = rows.columns(names)
    x = np.column_stack([np.ones(len(v)), v - v.mean(axis=0)])
    if rows.binary:
        require_folds(rows, question)
        plain = plain_scores(rows, plan.z, False)
        arms = estimators.aipw(rows.t, rows.y, z, rows.family, False, question.folds, rng)
        rows, _ = judged(rows, question, plan, plain if arms.scores is None else arms.scores, False)
        scores = arms.influence[:, 1] - arms.influence[:, 0] + arms.values[1] - arms.values[0]
        line = fit(x, scores)
        found = Fit(line.coefficients, line.influence, x.shape[1])
    else:
        found = estimators.partially_linear(rows.t[:, None] * x, rows.y, z, rows.family, question.folds, rng)
    effect, *slopes = [_coefficient(found, unit, question.level) for unit in np.eye(x.shape[1])]
    slope_of = dict(zip(names, slopes, strict=True))
    return EffectLine(effect, slope_of, plan.z, len(v), question.level, rows.notes)


def _coefficient(found: Fit, weights: Floats, level: float) -> Coefficient:
    value, error = found.combined(weights)
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return Coefficient(value, error, (value - reach, value + reach))


@dataclass(frozen=True)
class Dose:
    """The mean outcome at a dose minus that at the reference; the interval is for this dose alone."""

    dose: float
    effect: Coefficient


def dose_response(
    data: pd.DataFrame,
    graph: CausalGraph,
    treatment: str,
    outcome: str,
    doses: Sequence[float],
    *,
    reference: float | None = None,
    powers: int = 3,
    **options: Any,
) -> tuple[Dose, ...]:
    """E[Y | do(dose)] - E[Y | do(reference)] at each dose, for a treatment of many values; reference: its mean.

    y = f(t) + g(z) + noise, f a polynomial of degree ``powers``, g taken out by cross-fitting (Robinson, 1988): the
    curve is the same for all rows. Of the options of `estimate_effect` it has adjustment, family, degree, folds, seed
    and level; errors as there, and MisuseError for a dose outside the rows' range, where the polynomial would be a
    guess.
    """
    question = replace(_asked(graph, treatment, outcome, options), method="plm", estimand="ate")
    plan = planned(question)
    rows = rows_of(data, question, plan)
    if question.trim:
        raise MisuseError("trim leaves rows out by their score, which a treatment of many values has not.")
    at = float(rows.t.mean()) if reference is None else float(reference)
    least, most = float(rows.t.min()), float(rows.t.max())
    if out := [dose for dose in (*doses, at) if not least <= dose <= most]:
        raise MisuseError(f"dose {out[0]:g} lies outside the rows' range [{least:g}, {most:g}]: ask within it.")
    if rows.frame[treatment].nunique() <= powers:
        raise MisuseError(
            f"powers={powers}, but {treatment} has {rows.frame[treatment].nunique()} values: a curve of that degree "
            "needs more. Take fewer, or compare two values at a time (contrast)."
        )
    centre, spread = float(rows.t.mean()), float(rows.t.std())

    def basis(values: Floats) -> Floats:
        return np.stack([((values - centre) / spread) ** k for k in range(1, powers + 1)], axis=-1)

    z, rng = features(rows.columns(plan.z), question.degree), np.random.default_rng(question.seed)
    curve = estimators.partially_linear(basis(rows.t), rows.y, z, rows.family, question.folds, rng)
    start = basis(np.asarray(at))
    return tuple(
        Dose(float(dose), _coefficient(curve, basis(np.asarray(float(dose))) - start, question.level)) for dose in doses
    )
