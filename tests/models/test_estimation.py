"""Effects from rows: planted problems whose truth is known, least squares as an oracle, and wrong questions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from causaldao.errors import CausalDAOError, DataError, MisuseError, NotIdentifiable
from causaldao.models.estimation import estimate_effect
from causaldao.models.graph import CausalGraph
from causaldao.models.nuisance import Family, features, fit, folds, with_constant
from causaldao.models.plan import natural_effect_covariates
from causaldao.models.response import dose_response, effect_modification
from tests.counts import count
from tests.models import planted
from tests.models.planted import CONFOUNDED, Problem

PROBLEMS: dict[str, Callable[[np.random.Generator], Problem]] = {
    "g-formula": partial(planted.arms, method="g-formula"),
    "g-formula att": partial(planted.arms, method="g-formula", estimand="att"),
    "g-formula binary": partial(planted.arms, method="g-formula", family="binary"),
    "g-formula count": partial(planted.arms, method="g-formula", family="count"),
    "g-formula dose": partial(planted.dose, method="g-formula"),
    "ipw": partial(planted.arms, method="ipw"),
    "ipw att": partial(planted.arms, method="ipw", estimand="att"),
    "aipw": partial(planted.arms, method="aipw"),
    "aipw att": partial(planted.arms, method="aipw", estimand="att"),
    "aipw binary": partial(planted.arms, method="aipw", family="binary"),
    "aipw count": partial(planted.arms, method="aipw", family="count"),
    "plm": planted.dose,
    "plm count": partial(planted.dose, count=True),
    "front-door": planted.front_door,
    "2sls": planted.instrument,
    "nde": partial(planted.mediated, estimand="nde"),
    "nie": partial(planted.mediated, estimand="nie"),
    "nde linear": partial(planted.mediated, estimand="nde", binary=False),
    "nie linear": partial(planted.mediated, estimand="nie", binary=False),
    "plug-in napkin": lambda rng: planted.discrete(rng, planted.NAPKIN, 4000),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_intervals_miss_a_planted_truth_too_often_or_too_rarely(name: str) -> None:
    repeats, covered, misses = count(60, 2000), 0, []
    for seed in range(repeats):
        problem = PROBLEMS[name](np.random.default_rng([seed, len(name)]))
        found = estimate_effect(problem.data, problem.graph, "t", "y", **problem.options)
        covered += found.interval[0] <= problem.truth <= found.interval[1]
        misses.append((found.estimate - problem.truth) / found.standard_error)
    share = covered / repeats
    if count(0, 1):
        assert 0.935 <= share <= 0.965, share
    else:  # four binomial standard deviations
        assert share >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / repeats), share
    assert abs(np.mean(misses)) < 4 / math.sqrt(repeats) + 0.1  # a tenth of a standard error of bias is borne


@pytest.mark.parametrize(("outcome", "score"), [(True, False), (False, True)], ids=["outcome right", "score right"])
def test_aipw_needs_both_models_to_be_right(outcome: bool, score: bool) -> None:
    """With a curve in one of the two that degree 1 does not see; with the curve in both it must fail, or this shows
    nothing."""
    rng, n = np.random.default_rng(0), 20_000

    def estimated(in_outcome: bool, in_score: bool) -> tuple[float, float]:
        c = rng.normal(size=n)
        curve = c**2 - 1
        t = rng.binomial(1, planted.expit(0.7 * curve if in_score else 0.7 * c))
        y = 1.0 * t + (curve if in_outcome else c) + rng.normal(size=n)
        graph = CausalGraph.dag([("c", "t"), ("c", "y"), ("t", "y")])
        found = estimate_effect(pd.DataFrame({"c": c, "t": t, "y": y}), graph, "t", "y", method="aipw")
        return found.estimate, found.standard_error

    estimate, error = estimated(not outcome, not score)
    assert abs(estimate - 1) < 4 * error
    estimate, error = estimated(True, True)
    assert abs(estimate - 1) > 10 * error


def test_least_squares_has_another_answer_or_error() -> None:
    problem = planted.dose(np.random.default_rng(1), method="g-formula")
    found = estimate_effect(problem.data, problem.graph, "t", "y", **problem.options)
    columns = sm.add_constant(problem.data[["t", "c", "w"]])
    oracle = sm.OLS(problem.data["y"], columns).fit(cov_type="HC1")
    assert found.estimate == pytest.approx(oracle.params["t"], rel=1e-9)
    assert found.standard_error == pytest.approx(oracle.bse["t"], rel=1e-9)
    assert found.contrast == "one unit more of t"


@pytest.mark.parametrize("family", ["binary", "count"])
def test_a_generalised_linear_model_has_other_coefficients_or_errors(family: Family) -> None:
    problem = planted.arms(np.random.default_rng(2), family=family)
    x = with_constant(problem.data[["t", "c", "w"]].to_numpy(dtype=float))
    y = problem.data["y"].to_numpy(dtype=float)
    found = fit(x, y, family)
    link = sm.families.Binomial() if family == "binary" else sm.families.Poisson()
    oracle = sm.GLM(y, x, link).fit(cov_type="HC0", tol=1e-12)
    np.testing.assert_allclose(found.coefficients, oracle.params, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(np.sqrt((found.influence**2).sum(axis=0)) / len(y), oracle.bse, rtol=1e-5)


def test_two_stage_least_squares_is_not_its_algebra() -> None:
    problem = planted.instrument(np.random.default_rng(3))
    found = estimate_effect(problem.data, problem.graph, "t", "y", **problem.options)
    frame = problem.data.astype(float)
    ones = np.ones(len(frame))
    z, x = (np.column_stack([ones, frame[name], *([frame["w"]] if found.adjustment else [])]) for name in ("z", "t"))
    beta = np.linalg.solve(z.T @ x, z.T @ frame["y"])  # just identified
    rest = frame["y"].to_numpy() - x @ beta
    bread = np.linalg.inv(z.T @ x)
    variance = bread @ (z.T * rest**2) @ z @ bread.T * len(frame) / (len(frame) - x.shape[1])
    assert found.method == "2sls"
    assert found.estimate == pytest.approx(beta[1], rel=1e-8)
    assert found.standard_error == pytest.approx(math.sqrt(variance[1, 1]), rel=1e-8)
    first = sm.OLS(frame["t"], z).fit()
    assert found.first_stage == pytest.approx(float(first.tvalues.iloc[1]) ** 2, rel=1e-8)


def test_a_hajek_estimate_is_not_one_of_weighted_means() -> None:
    problem = planted.arms(np.random.default_rng(4), method="ipw")
    found = estimate_effect(problem.data, problem.graph, "t", "y", **problem.options)
    t, y = problem.data["t"].to_numpy(), problem.data["y"].to_numpy()
    e = sm.Logit(t, sm.add_constant(problem.data[["c", "w"]])).fit(disp=0).predict()
    treated, others = np.average(y, weights=t / e), np.average(y, weights=(1 - t) / (1 - e))
    assert found.arms == pytest.approx((others, treated), rel=1e-6)
    stabilised = np.average(y, weights=t * t.mean() / e) - np.average(y, weights=(1 - t) * (1 - t.mean()) / (1 - e))
    assert found.estimate == pytest.approx(stabilised, rel=1e-5)


def test_the_seed_or_the_unit_of_a_column_changes_the_answer() -> None:
    problem = planted.arms(np.random.default_rng(5))
    first, second = (estimate_effect(problem.data, problem.graph, "t", "y", seed=7) for _ in range(2))
    assert first == second
    rescaled = problem.data.assign(c=1000 * problem.data["c"] - 50, t=problem.data["t"] + 1)
    other = estimate_effect(rescaled, problem.graph, "t", "y", seed=7)
    assert other.estimate == pytest.approx(first.estimate, rel=1e-8)
    assert other.contrast == "t from 1 to 2"
    assert estimate_effect(problem.data, problem.graph, "t", "y", seed=8).estimate != first.estimate


def test_folds_leave_an_arm_out() -> None:
    strata = np.array([1.0] * 7 + [0.0] * 40)
    drawn = folds(strata, 5, np.random.default_rng(0))
    assert set(drawn[:7]) == set(drawn[7:]) == set(range(5))
    assert max(np.bincount(drawn)) - min(np.bincount(drawn)) <= 1


def test_features_hold_a_constant_or_the_square_of_a_binary_column() -> None:
    rng = np.random.default_rng(0)
    z = np.column_stack([rng.normal(size=50), rng.binomial(1, 0.5, 50), np.ones(50)])
    assert features(z, 1).shape == (50, 2)
    wide = features(z, 2)  # c, w, c², c·w
    assert wide.shape == (50, 4)
    np.testing.assert_allclose([wide.mean(axis=0), wide.std(axis=0)], [[0] * 4, [1] * 4], atol=1e-12)


def test_natural_effects_do_not_add_up_to_the_whole() -> None:
    problem = planted.mediated(np.random.default_rng(6), estimand="nde")
    parts = [estimate_effect(problem.data, problem.graph, "t", "y", estimand=kind) for kind in ("nde", "nie")]
    whole = estimate_effect(problem.data, problem.graph, "t", "y")
    assert sum(part.estimate for part in parts) == pytest.approx(whole.estimate, abs=1e-9)
    assert "P(m | t'" in parts[0].estimand


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (planted.MEDIATED, ("c",)),
        (CausalGraph.dag([("t", "m"), ("m", "y")]), ()),
        (CausalGraph.admg(planted.MEDIATED.directed, [("m", "y")]), None),
        (CausalGraph.admg(planted.MEDIATED.directed, [("t", "m")]), None),
        (CausalGraph.dag([*planted.MEDIATED.directed, ("t", "l"), ("l", "m"), ("l", "y")]), None),
    ],
    ids=["covariate", "none", "m <-> y", "t <-> m", "between"],
)
def test_natural_effects_are_identified_past_a_confounder_of_the_mediator(
    graph: CausalGraph, expected: tuple[str, ...] | None
) -> None:
    if expected is not None:
        assert natural_effect_covariates(graph, "t", "y", ["m"]) == expected
        return
    with pytest.raises(NotIdentifiable, match="through m are not identified"):
        natural_effect_covariates(graph, "t", "y", ["m"])


def test_what_is_left_out_of_the_front_door_goes_unseen() -> None:
    problem = planted.front_door(np.random.default_rng(7))
    found = estimate_effect(problem.data, problem.graph, "t", "y")
    assert found.method == "front-door"
    assert found.estimand.startswith("P(y | do(t)) = Σ_m")
    wrong = CausalGraph.admg([("t", "m"), ("m", "y"), ("t", "y")], [("t", "y")])
    with pytest.raises(NotIdentifiable) as caught:
        estimate_effect(problem.data, wrong, "t", "y")
    assert caught.value.hedge is not None
    with pytest.raises(NotIdentifiable, match="m is no front door"):
        estimate_effect(problem.data, wrong, "t", "y", method="front-door", mediators=["m"])


def test_a_napkin_is_answered_by_adjustment_or_on_columns_without_levels() -> None:
    problem = planted.discrete(np.random.default_rng(8), planted.NAPKIN, 50_000)
    found = estimate_effect(problem.data, problem.graph, "t", "y")
    assert (found.method, found.contrast) == ("plug-in", "t from 0 to 1")
    assert abs(found.estimate - problem.truth) < 4 * found.standard_error
    with pytest.raises(NotIdentifiable, match="No set of the graph's variables"):
        estimate_effect(problem.data, problem.graph, "t", "y", method="aipw")
    fine = problem.data.iloc[:3000].assign(w=np.random.default_rng(0).normal(size=3000))
    with pytest.raises(MisuseError, match=r"cells, expected at most 4096.*fewer levels"):
        estimate_effect(fine, problem.graph, "t", "y")


def test_an_instrument_serves_without_the_assumption_or_a_weak_one_without_a_warning() -> None:
    problem = planted.instrument(np.random.default_rng(9), strength=0.02)
    with pytest.raises(NotIdentifiable):
        estimate_effect(problem.data, problem.graph, "t", "y")
    with pytest.raises(MisuseError, match="assume='linear'"):
        estimate_effect(problem.data, problem.graph, "t", "y", method="2sls")
    found = estimate_effect(problem.data, problem.graph, "t", "y", assume="linear")
    assert found.first_stage is not None
    assert found.first_stage < 10
    assert "weak: first-stage F" in found.warnings[0]
    with pytest.raises(NotIdentifiable, match="w is no instrument"):
        estimate_effect(problem.data, problem.graph, "t", "y", assume="linear", instrument="w", method="2sls")


def test_the_effect_on_a_cause_is_a_certain_zero() -> None:
    rng = np.random.default_rng(10)
    a, b = rng.normal(size=(2, 500))
    graph = CausalGraph.dag([("b", "c")], nodes=("a", "b", "c"))
    found = estimate_effect(pd.DataFrame({"a": a, "b": b, "c": b + a}), graph, "a", "c")
    assert found.implied
    assert found.estimate == pytest.approx(1, abs=0.3)
    assert any("no causal path" in note for note in found.warnings)
    with pytest.raises(NotIdentifiable, match="by the graph the effect"):
        estimate_effect(pd.DataFrame({"a": a, "b": b, "c": b + a}), graph, "c", "b")


def test_a_pattern_that_leaves_the_effect_open_is_answered() -> None:
    problem = planted.dose(np.random.default_rng(11))
    graph = CausalGraph.cpdag([("t", "y"), ("c", "y"), ("w", "y")], [("c", "t"), ("w", "t"), ("c", "w")])
    with pytest.raises(NotIdentifiable, match="undirected"):
        estimate_effect(problem.data, graph, "t", "y", assume="linear")
    between = CausalGraph.cpdag([("t", "m"), ("t", "y"), ("m", "y"), ("c", "m"), ("c", "y")], [("c", "t")])
    with pytest.raises(NotIdentifiable, match="c - t has none"):
        estimate_effect(problem.data.assign(m=problem.data["y"]), between, "t", "y", estimand="nie")


def test_the_effect_does_not_grow_where_it_was_planted_to() -> None:
    rng, n = np.random.default_rng(12), 6000
    c, w = rng.normal(size=n), rng.binomial(1, 0.4, n)
    for binary in (True, False):
        t = rng.binomial(1, planted.expit(0.6 * c)) if binary else 0.6 * c + rng.normal(size=n)
        y = (1 + 0.5 * c - 0.8 * w) * t + c + w + rng.normal(size=n)
        frame = pd.DataFrame({"c": c, "w": w, "t": t, "y": y})
        line = effect_modification(frame, CONFOUNDED, "t", "y", ["c", "w"])
        for name, truth in (("c", 0.5), ("w", -0.8)):
            assert abs(line.slopes[name].value - truth) < 4 * line.slopes[name].standard_error, (binary, name)
            assert line.slopes[name].standard_error < 0.1
        assert abs(line.effect.value - (1 - 0.8 * 0.4)) < 4 * line.effect.standard_error + 0.8 * 4 * 0.49 / math.sqrt(n)
    with pytest.raises(NotIdentifiable, match="m may follow from t"):
        effect_modification(frame.assign(m=y), CausalGraph.dag([*CONFOUNDED.directed, ("t", "m")]), "t", "y", ["m"])


def test_a_curved_dose_is_answered_by_a_line() -> None:
    rng, n = np.random.default_rng(13), 6000
    c, w = rng.normal(size=n), rng.binomial(1, 0.4, n)
    t = np.clip(0.6 * c + rng.normal(size=n), -3, 3)
    y = t - 0.4 * t**2 + c + w + rng.normal(size=n)
    frame = pd.DataFrame({"c": c, "w": w, "t": t, "y": y})
    doses = [-1.0, 0.0, 0.5, 1.5]
    found = dose_response(frame, CONFOUNDED, "t", "y", doses, reference=0.0)
    assert (found[1].effect.value, found[1].effect.standard_error) == (0, 0)
    for one in found:
        truth = one.dose - 0.4 * one.dose**2
        assert abs(one.effect.value - truth) <= 4 * one.effect.standard_error
        assert one.effect.standard_error < 0.1
    with pytest.raises(MisuseError, match=r"dose 9 lies outside"):
        dose_response(frame, CONFOUNDED, "t", "y", [9.0])
    with pytest.raises(MisuseError, match="powers=3, but t has 2 values"):
        dose_response(frame.assign(t=(t > 0) * 1.0), CONFOUNDED, "t", "y", [1.0])


@pytest.mark.parametrize("option", [{"estimand": "att"}, {"contrast": (0.0, 1.0)}, {"method": "ipw"}])
def test_an_option_is_left_out_of_a_line_or_curve_in_silence(option: dict[str, Any]) -> None:
    with pytest.raises(MisuseError, match="no option"):
        effect_modification(frame(), CONFOUNDED, "t", "y", ["w"], **option)
    with pytest.raises(MisuseError, match="no option"):
        dose_response(planted.dose(np.random.default_rng(0)).data, CONFOUNDED, "t", "y", [0.0], **option)


def test_a_line_through_poorly_matched_rows_raises_no_warning() -> None:
    rng, n = np.random.default_rng(17), 2000
    c = rng.normal(size=n)
    t = rng.binomial(1, planted.expit(2 * c))
    data = pd.DataFrame({"c": c, "t": t, "y": t + c + rng.normal(size=n)})
    graph = CausalGraph.dag([("c", "t"), ("c", "y"), ("t", "y")])
    found = effect_modification(data, graph, "t", "y", ["c"], overlap=0.05)
    assert found.warnings == estimate_effect(data, graph, "t", "y", overlap=0.05).warnings
    assert "have a score beyond 0.05" in found.warnings[0]


def test_a_contrast_is_of_one_unit_whatever_is_asked() -> None:
    problem = planted.dose(np.random.default_rng(14))
    one, three = (
        estimate_effect(problem.data, problem.graph, "t", "y", contrast=contrast) for contrast in (None, (1.0, 4.0))
    )
    assert three.estimate == pytest.approx(3 * one.estimate)
    assert three.contrast == "t from 1 to 4"


def frame(n: int = 400) -> pd.DataFrame:
    return planted.arms(np.random.default_rng(15)).data.iloc[:n]


def strata(n: int = 400) -> pd.DataFrame:
    """Nobody with w = 1 is treated."""
    data = frame(n)
    return data.assign(t=data["t"] * (1 - data["w"]))


WRONG: list[tuple[Callable[[], pd.DataFrame], dict[str, Any], type[CausalDAOError], str]] = [
    (frame, {"outcome": "t"}, MisuseError, "t stands in two roles"),
    (frame, {"treatment": "q"}, MisuseError, "no node q"),
    (lambda: frame().drop(columns="y"), {}, MisuseError, "The outcome 'y' is no column"),
    (lambda: frame().drop(columns="c"), {}, DataError, "no column c.*two-headed"),
    (lambda: frame().assign(c=np.nan), {}, DataError, "c: 400 of 400 values are missing"),
    (lambda: frame().assign(w=frame()["w"].replace(1, np.inf)), {}, DataError, r"w: \d+ of 400 values are missing or"),
    (lambda: frame().assign(c="old"), {}, DataError, "c: it holds text; code it"),
    (lambda: frame().assign(t=1), {}, DataError, "t is constant: it is 1 in all 400 rows"),
    (lambda: frame().assign(y=2.5), {}, DataError, "y is constant"),
    (lambda: frame(4), {"method": "g-formula"}, DataError, "4 rows for [46] coefficients|constant|Positivity"),
    (lambda: frame(14), {}, DataError, r"smaller arm has \d+ rows, for 5 folds"),
    (lambda: frame().assign(w=frame()["c"]), {"method": "g-formula"}, DataError, "combination of others"),
    (strata, {}, DataError, "Positivity is violated in 1 stratum.*w = 1: .* none treated"),
    (lambda: frame().assign(t=lambda d: (d["c"] > 0) * 1), {}, DataError, "score P.treated | c, w. is 0 or 1.*c: "),
    (frame, {"method": "magic"}, MisuseError, "method='magic'"),
    (frame, {"estimand": "late"}, MisuseError, "estimand='late'"),
    (frame, {"level": 1.0}, MisuseError, "level=1.0"),
    (frame, {"folds": 1}, MisuseError, "folds=1"),
    (frame, {"trim": 0.1, "estimand": "nde"}, NotIdentifiable, "lies between"),
    (frame, {"trim": 0.7}, MisuseError, "trim=0.7"),
    (frame, {"wrong": 1}, MisuseError, "no option wrong"),
    (frame, {"family": "binary"}, MisuseError, "other values than 0 and 1"),
    (frame, {"family": "count"}, MisuseError, "negative values"),
    (frame, {"adjustment": ["c"]}, NotIdentifiable, "adjusting for c does not give"),
    (frame, {"adjustment": "c"}, MisuseError, "expected a sequence"),
    (frame, {"adjustment": ["c", "w"], "method": "2sls"}, MisuseError, "has none"),
    (frame, {"method": "mediation"}, MisuseError, "for estimand='nde'"),
    (frame, {"method": "plm", "estimand": "att"}, MisuseError, "one effect for all"),
    (frame, {"estimand": "nde"}, NotIdentifiable, "No variable of the graph lies between"),
    (frame, {"estimand": "nde", "method": "ipw"}, MisuseError, "goes with method='mediation'"),
    (frame, {"contrast": (0.0, 3.0)}, MisuseError, "the values 0 and 1 only"),
    (frame, {"method": "2sls", "assume": "linear"}, NotIdentifiable, "There is no instrument"),
    (lambda: frame().assign(t=frame()["c"]), {"method": "ipw"}, MisuseError, "compares two arms, but t has 400"),
    (lambda: frame().assign(t=frame()["c"]), {"estimand": "att"}, MisuseError, "estimand='att' compares two arms"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "options", "error", "message"), WRONG, ids=[case[3][:32] for case in WRONG])
def test_a_wrong_question_is_answered(
    make: Callable[[], pd.DataFrame], options: dict[str, Any], error: type[CausalDAOError], message: str
) -> None:
    names = {"treatment": "t", "outcome": "y"} | options
    with pytest.raises(error, match=f"(?s){message}"):
        estimate_effect(make(), CONFOUNDED, **names)


def test_strata_of_several_columns_or_small_ones_are_judged_as_large_ones() -> None:
    rng, n = np.random.default_rng(19), 1000
    a, b = rng.binomial(1, 0.5, (2, n))
    t = rng.binomial(1, 0.5, n) * (1 - a * b)
    data = pd.DataFrame({"c": a, "w": b, "t": t, "y": t + rng.normal(size=n)})
    with pytest.raises(DataError, match=r"c = 1, w = 1: \d+ rows, none treated"):
        estimate_effect(data, CONFOUNDED, "t", "y")
    few = data[(a * b == 0) | (np.arange(n) < 12)].reset_index(drop=True)  # some three such rows: that is chance
    assert ((few["c"] == 1) & (few["w"] == 1)).sum() in range(1, 9)
    assert math.isfinite(estimate_effect(few, CONFOUNDED, "t", "y").estimate)


def test_the_treated_cannot_be_asked_for_where_only_they_are_comparable() -> None:
    with pytest.raises(DataError, match="none treated"):
        estimate_effect(strata(), CONFOUNDED, "t", "y")
    found = estimate_effect(strata(), CONFOUNDED, "t", "y", estimand="att", method="g-formula")
    assert math.isfinite(found.standard_error)


def test_rows_are_trimmed_in_silence() -> None:
    rng, n = np.random.default_rng(16), 3000
    c = 3 * rng.normal(size=n)
    t = rng.binomial(1, planted.expit(2 * c))
    data = pd.DataFrame({"c": c, "t": t, "y": t + c + rng.normal(size=n)})
    graph = CausalGraph.dag([("c", "t"), ("c", "y"), ("t", "y")])
    with pytest.raises(DataError, match=r"Positivity is violated: in \d+ of 3000 rows"):
        estimate_effect(data, graph, "t", "y")
    found = estimate_effect(data, graph, "t", "y", trim=0.05)
    assert found.n < n
    assert "were left out: the answer is for the others" in found.warnings[0]
    assert abs(found.estimate - 1) < 4 * found.standard_error


def test_poorly_matched_rows_raise_no_warning() -> None:
    rng, n = np.random.default_rng(17), 2000
    c = rng.normal(size=n)
    t = rng.binomial(1, planted.expit(2 * c))
    data = pd.DataFrame({"c": c, "t": t, "y": t + c + rng.normal(size=n)})
    found = estimate_effect(data, CausalGraph.dag([("c", "t"), ("c", "y"), ("t", "y")]), "t", "y", overlap=0.05)
    assert found.positivity is not None
    assert found.positivity.outside > 50
    assert min(found.positivity.effective) < 0.5 * n / 2
    assert f"{found.positivity.outside} rows have a score beyond 0.05" in found.warnings[0]


def test_the_risk_ratio_is_not_that_of_the_arms() -> None:
    problem = planted.arms(np.random.default_rng(18), family="binary")
    found = estimate_effect(problem.data, problem.graph, "t", "y", **problem.options)
    assert found.arms is not None
    assert found.risk_ratio is not None
    ratio, low, high = found.risk_ratio
    assert ratio == pytest.approx(found.arms[1] / found.arms[0])
    assert low < ratio < high
    assert found.to_json()["conditional_on"] == "the graph"
