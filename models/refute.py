"""What could be wrong with an effect, asked one by one: each refuter says what it did, a number, and what that means.

None of them can prove a graph. Placebo, random cause and subset try the estimate's machinery; E-value and robustness
value say how strong an unmeasured cause would have to be; implied independences and negative controls test the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from causaldao.errors import DataError, MisuseError
from causaldao.models.adjustment import checked
from causaldao.models.discovery.evidence import Evidence, partial
from causaldao.models.effects import robust_share
from causaldao.models.estimation import TableEffect, answer, numbers
from causaldao.models.graph import CausalGraph
from causaldao.models.nuisance import Floats, features, fit, with_constant
from causaldao.models.plan import ADJUSTING, Question, asked
from causaldao.models.separators import minimal_separators

_ALPHA = 0.05
_NEAR = NormalDist().inv_cdf(1 - _ALPHA / 2)


@dataclass(frozen=True)
class Refutation:
    """name; done: what was tried; number: what came out; means: how to read it; passed: None where it is for the reader
    to weigh, as with a sensitivity; details: further numbers."""

    name: str
    done: str
    number: float
    means: str
    passed: bool | None
    details: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def refute(
    data: pd.DataFrame,
    graph: CausalGraph,
    treatment: str,
    outcome: str,
    *,
    repeats: int = 20,
    controls: Sequence[str] = (),
    **options: Any,
) -> tuple[TableEffect, tuple[Refutation, ...]]:
    """The effect, and all refuters that fit it; ``options`` as for `estimate_effect`, ``controls``: negative-control
    outcomes. With a fixed seed it repeats. Errors as `estimate_effect`."""
    question = asked(graph, treatment, outcome, **options)
    effect = answer(data, question)
    found = [random_subset(data, question, effect, repeats=repeats)]
    if effect.method in ADJUSTING:
        found = [
            placebo_treatment(data, question, effect, repeats=repeats),
            random_common_cause(data, question, effect, repeats=repeats),
            *found,
            e_value(data, effect),
            robustness_value(data, effect),
        ]
    found += [negative_control(data, question, effect, control) for control in controls]
    return effect, (*found, implied_independences(data, graph))


def placebo_treatment(data: pd.DataFrame, question: Question, effect: TableEffect, *, repeats: int = 20) -> Refutation:
    """The same estimate with a treatment drawn anew from what the adjustment tells of it: it cannot have an effect.

    A binary treatment is drawn from its score, another is its regression plus permuted rests, both with squares and
    products of the adjustment. So what is adjusted for still goes with the placebo, and an estimator that does not
    remove it fails. The mean over the draws is held against the effect's standard error. It does not see causes that
    nobody measured. `passed` unless it differs from 0 at level .05.
    """
    _require_adjusted(effect)
    frame = numbers(data, (*dict.fromkeys((effect.treatment, effect.outcome, *effect.adjustment)),))
    draw = _placebos(frame, effect, np.random.default_rng([question.seed, 1]))
    fixed = replace(question, method=effect.method, adjustment=effect.adjustment)
    found = _again(repeats, lambda: answer(frame.assign(**{effect.treatment: draw()}), fixed).estimate)
    mean = float(np.mean(found.estimates))
    z = mean / _error(effect)
    return Refutation(
        "placebo treatment",
        f"{found} placebos in the treatment's place, drawn from what {_listed(effect.adjustment)} tells of it",
        mean,
        f"it should be 0; it is {z:+.2f} of the effect's standard errors. Away from 0, the adjustment does not "
        "remove what it should: allow for curves (degree=2) or take aipw",
        abs(z) < _NEAR,
        {"standard_errors": z, "spread": float(np.std(found.estimates)), "repeats": repeats},
    )


@dataclass(frozen=True)
class _Draws:
    """What came of asking again: the estimates, and how many draws of rows or columns could not be answered."""

    estimates: tuple[float, ...]
    refused: int

    def __str__(self) -> str:
        answered = f"{len(self.estimates)}"
        return answered if not self.refused else f"{answered} ({self.refused} more could not be answered)"


def _again(repeats: int, ask: Callable[[], float]) -> _Draws:
    """DataError, the first one, if more than half of the draws have no answer."""
    estimates, refusals = [], []
    for _ in range(repeats):
        try:
            estimates.append(ask())
        except DataError as error:
            refusals.append(error)
    if len(refusals) > repeats / 2 or not estimates:
        raise refusals[0] if refusals else MisuseError(f"repeats={repeats}: expected 1 or more.")
    return _Draws(tuple(estimates), len(refusals))


def _error(effect: TableEffect) -> float:
    """The standard error; DataError where it is nothing but rounding, so that nothing can be measured by it."""
    if effect.standard_error <= 1e-12 * max(abs(effect.estimate), 1e-300):
        raise DataError(
            f"The standard error is {effect.standard_error:.3g}: {effect.outcome} follows from the other columns "
            "without noise, so there is nothing to refute. Is it computed from them?"
        )
    return effect.standard_error


def _placebos(frame: pd.DataFrame, effect: TableEffect, rng: np.random.Generator) -> Any:
    t = frame[effect.treatment].to_numpy(dtype=np.float64)
    levels = np.unique(t)
    x = with_constant(features(frame[list(effect.adjustment)].to_numpy(dtype=np.float64), 2))
    if len(levels) == 2:
        score = fit(x, (t == levels[1]).astype(np.float64), "binary", ridge=1.0).mean(x)
        return lambda: np.where(rng.random(len(t)) < score, levels[1], levels[0])
    mean = fit(x, t, ridge=1.0).mean(x)
    return lambda: mean + rng.permutation(t - mean)


def random_common_cause(
    data: pd.DataFrame, question: Question, effect: TableEffect, *, repeats: int = 20
) -> Refutation:
    """The same estimate with one more column of standard normal noise to adjust for: it should not move.

    The number is the largest move, in standard errors of the effect; above 1 the estimate hangs on an accident of its
    columns or folds, as where there are hardly more rows than coefficients.
    """
    _require_adjusted(effect)
    name = "random cause"
    while name in data.columns or name in question.graph.nodes:
        name += "'"
    _, whole = checked(question.graph, effect.treatment)  # one DAG of a class: the adjustment is valid in each
    edges = CausalGraph.dag([(name, effect.treatment), (name, effect.outcome)]).edges
    wider = CausalGraph((*whole.nodes, name), whole.edges | edges)
    rng = np.random.default_rng([question.seed, 2])
    asked_again = replace(question, graph=wider, method=effect.method, adjustment=(*effect.adjustment, name))
    found = _again(repeats, lambda: answer(data.assign(**{name: rng.standard_normal(len(data))}), asked_again).estimate)
    moves = [estimate - effect.estimate for estimate in found.estimates]
    most = max(map(abs, moves)) / _error(effect)
    return Refutation(
        "random common cause",
        f"{found} columns of noise, one at a time, beside what is adjusted for",
        most,
        "the largest move in standard errors; it should be far below 1. Else the estimate hangs on accidents: too many "
        "columns for these rows, or too few rows like some",
        most < 1,
        {"moves": moves},
    )


def random_subset(
    data: pd.DataFrame, question: Question, effect: TableEffect, *, repeats: int = 20, share: float = 0.8
) -> Refutation:
    """The same estimate on random shares of the rows, drawn without replacement.

    An estimate that is a mean of independent rows moves by standard_error·√(1/share - 1); the number is the observed
    spread over that. `passed` within the range that it would leave once in a thousand times: outside, the estimate is
    no such mean, as with a weak instrument or scores near 0 and 1, and the interval is not to be trusted.
    """
    rng, size = np.random.default_rng([question.seed, 3]), round(share * len(data))
    fixed = replace(question, method=effect.method)
    found = _again(repeats, lambda: answer(data.iloc[np.sort(rng.permutation(len(data))[:size])], fixed).estimate)
    moves = [estimate - effect.estimate for estimate in found.estimates]
    expected = _error(effect) * math.sqrt(1 / share - 1)
    ratio = math.sqrt(sum(move**2 for move in moves) / len(moves)) / expected
    low, high = (math.sqrt(float(stats.chi2.ppf(p, len(moves))) / len(moves)) for p in (0.0005, 0.9995))
    return Refutation(
        "random subset",
        f"{found} random {share:.0%} of the rows",
        ratio,
        f"the spread over what the standard error says; it should be near 1, in [{low:.2f}, {high:.2f}]. Outside, "
        "single rows or a weak instrument decide, and the interval is not to be trusted",
        low < ratio < high,
        {"moves": moves, "bounds": [low, high]},
    )


def e_value(data: pd.DataFrame, effect: TableEffect) -> Refutation:
    """How strong an unmeasured cause would have to be, as a risk ratio with both treatment and outcome, beyond what is
    adjusted for, to explain the effect away: E = RR + √(RR(RR - 1)).

    VanderWeele & Ding (Annals of Internal Medicine 167, 2017). Of a difference of means RR ≈ exp(.91 d), d in standard
    deviations of the outcome, for a contrast of two settings. details: the same for the limit nearer to no effect.
    """
    if effect.risk_ratio is not None:
        ratio, low, high = effect.risk_ratio
        how = f"risk ratio {ratio:.3g}"
    else:
        spread = float(numbers(data, [effect.outcome])[effect.outcome].std())
        ratio, low, high = (math.exp(0.91 * value / spread) for value in (effect.estimate, *effect.interval))
        how = f"risk ratio {ratio:.3g}, by exp(.91 d) with d = {effect.estimate / spread:.3g}"
    near = 1.0 if low <= 1 <= high else min((low, high), key=lambda limit: abs(math.log(limit)))
    found, limit = e_value_of(ratio), e_value_of(near)
    return Refutation(
        "E-value",
        f"{how} for {effect.contrast}",
        found,
        f"an unmeasured cause tied to both treatment and outcome by risk ratios of {found:.3g} each could explain the "
        f"estimate away, and of {limit:.3g} make its interval reach no effect; weaker ones could not",
        None,
        {"risk_ratio": ratio, "limit": limit},
    )


def e_value_of(risk_ratio: float) -> float:
    """RR + √(RR(RR - 1)), of 1/RR below 1; 1 for no effect. MisuseError unless it is positive and finite."""
    if not (risk_ratio > 0 and math.isfinite(risk_ratio)):
        raise MisuseError(f"risk_ratio={risk_ratio}: expected a positive number.")
    above = max(risk_ratio, 1 / risk_ratio)
    return above + math.sqrt(above * (above - 1))


def robustness_value(data: pd.DataFrame, effect: TableEffect, *, q: float = 1.0) -> Refutation:
    """The share of the rest variance of both treatment and outcome that an unmeasured cause must explain to reduce the
    linear estimate by 100q %, beside the same to make it insignificant, and the strongest measured covariate.

    Cinelli & Hazlett (JRSS B 82, 2020), from least squares of the outcome on treatment and adjustment.
    """
    _require_adjusted(effect)
    _error(effect)
    names = (effect.treatment, *effect.adjustment)
    frame = numbers(data, (effect.outcome, *names))
    y = frame[effect.outcome].to_numpy(dtype=np.float64)
    columns = frame[list(names)].to_numpy(dtype=np.float64)
    t_values, df = _t_values(columns, y)
    towards, df_towards = _t_values(columns[:, 1:], columns[:, 0])
    value, significant = robustness_values(float(t_values[0]), df, q=q)
    r2 = t_values**2 / (t_values**2 + df)
    rivals = {
        name: {"with_outcome": float(r2[1 + j]), "with_treatment": float(t**2 / (t**2 + df_towards))}
        for j, (name, t) in enumerate(zip(effect.adjustment, towards, strict=True))
    }
    strongest = max(rivals, key=lambda name: min(rivals[name].values()), default="")
    beside = ""
    if strongest:
        both = rivals[strongest]
        beside = (
            f"; of what was measured {strongest} comes nearest, with {both['with_treatment']:.1%} of the "
            f"treatment's and {both['with_outcome']:.1%} of the outcome's"
        )
    return Refutation(
        "robustness value",
        f"least squares of {effect.outcome} on {effect.treatment} given {_listed(effect.adjustment)}",
        value,
        f"an unmeasured cause that explains {value:.1%} of the rest variance of both treatment and outcome could "
        f"explain the linear estimate away, and {significant:.1%} make it insignificant{beside}",
        None,
        {"significant": significant, "partial_r2": float(r2[0]), "t": float(t_values[0]), "df": df, "measured": rivals},
    )


def robustness_values(t: float, df: int, *, q: float = 1.0, alpha: float = _ALPHA) -> tuple[float, float]:
    """RV_q and RV_{q,α} of a t value: of f = q|t|/√df, less t*_{α,df-1}/√(df-1) for the second, ½(√(f⁴ + 4f²) - f²)."""
    f = q * abs(t) / math.sqrt(df)
    critical = float(stats.t.ppf(1 - alpha / 2, df - 1)) / math.sqrt(df - 1)
    reduced = f - critical
    if reduced <= 0:
        return robust_share(f), 0.0
    # Where a cause of the outcome alone would be enough, the bound is that of the outcome (their appendix).
    extreme = (f**2 - critical**2) / (1 + f**2)
    return robust_share(f), extreme if f > 1 / critical else robust_share(reduced)


def _t_values(columns: Floats, y: Floats) -> tuple[Floats, int]:
    """Of each column in least squares of y on (1, columns), and the degrees of freedom."""
    x = with_constant(columns)
    df = len(y) - x.shape[1]
    beta = fit(x, y).coefficients
    rest = y - x @ beta
    errors = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * float(rest @ rest) / df)
    return (beta / errors)[1:], df


def negative_control(data: pd.DataFrame, question: Question, effect: TableEffect, control: str) -> Refutation:
    """The same estimate with an outcome that the treatment cannot move, but that shares its confounding (Lipsitch,
    Tchetgen Tchetgen & Cohen, Epidemiology 21, 2010): it should be 0.

    A control may be missing in the graph; one that the graph lets the treatment move, or that is adjusted for, is a
    MisuseError. `passed` unless the interval leaves 0 out.
    """
    graph = question.graph
    if control in (effect.treatment, effect.outcome, *effect.adjustment):
        raise MisuseError(f"{control} has a role in the effect already: a negative control is another outcome.")
    if effect.method not in ADJUSTING:
        raise MisuseError(f"A negative control outcome needs an adjustment; {effect.method} has none.")
    if control in graph.nodes and control in graph.descendants(effect.treatment):
        raise MisuseError(f"By the graph {effect.treatment} moves {control}: it is no negative control.")
    causes = [(name, end) for name in effect.adjustment for end in (effect.treatment, control)]
    assumed = CausalGraph.dag(causes, tuple(dict.fromkeys((effect.treatment, control, *effect.adjustment))))
    again = replace(
        question, graph=assumed, outcome=control, method=effect.method, adjustment=effect.adjustment, family="auto"
    )
    found = answer(data, again)
    z = found.estimate / found.standard_error
    return Refutation(
        "negative control outcome",
        f"the effect of {effect.treatment} on {control}, adjusted for {_listed(effect.adjustment)}",
        found.estimate,
        f"it should be 0; it is {z:+.2f} of its standard errors. Away from 0, something unmeasured goes with both, and "
        f"perhaps with {effect.outcome} too",
        found.interval[0] <= 0 <= found.interval[1],
        {"control": control, "interval": list(found.interval)},
    )


def implied_independences(data: pd.DataFrame, graph: CausalGraph, *, alpha: float = _ALPHA) -> Refutation:
    """Each pair that the graph does not join, given a set that separates it, tested by partial correlation.

    A DAG, or one of a CPDAG's, or an ADMG; columns that the table lacks are left out. The number is the least p-value
    times the number of tests (Bonferroni); `passed` if it exceeds ``alpha``. Only linear dependence is seen.
    """
    present = [name for name in graph.nodes if name in data.columns]
    tests = list(_independences(graph, present))
    evidence = Evidence.from_data(numbers(data, present))
    found: list[dict[str, Any]] = []
    for a, b, given in tests:
        rho = partial(evidence, a, b, given)
        p = 2 * NormalDist().cdf(-abs(rho.z) / rho.standard_error)
        found.append({"a": a, "b": b, "given": list(given), "correlation": rho.correlation, "p": p})
    found.sort(key=lambda test: test["p"])
    least = min(1.0, found[0]["p"] * len(found)) if found else 1.0
    broken = [test for test in found if test["p"] * len(found) <= alpha]
    worst = "".join(
        f"; {test['a']} and {test['b']} given {_listed(test['given'])} correlate by {test['correlation']:.3f}"
        for test in broken[:3]
    )
    means = "the graph implies none that can be tested" if not found else (
        f"the least p-value, times the number of tests; {len(broken)} of {len(found)} fail{worst}. One that fails says "
        "that an edge, or a common cause, is missing"
    )  # fmt: skip
    return Refutation(
        "implied independences",
        f"{len(found)} independences of the graph, by partial correlation",
        least,
        means,
        None if not found else least > alpha,
        {"tests": found},
    )


def _independences(graph: CausalGraph, present: Sequence[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    if not present:
        return
    _, whole = checked(graph, present[0])
    for a, b in combinations(present, 2):
        if not whole.adjacent(a, b):
            allowed = frozenset(present) - {a, b}
            for given in islice(minimal_separators(whole, a, b, allowed), 1):
                yield a, b, tuple(sorted(given))


def _require_adjusted(effect: TableEffect) -> None:
    if effect.method not in ADJUSTING:
        raise MisuseError(
            f"This refuter works on an adjustment, and the effect was found by {effect.method}. Try random_subset and "
            "implied_independences."
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
