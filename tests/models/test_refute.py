"""Refuters: each catches a planted fault and lets a sound effect pass; sensitivities agree with published numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from causaldao.errors import DataError, MisuseError
from causaldao.models.estimation import TableEffect, answer
from causaldao.models.graph import CausalGraph
from causaldao.models.plan import Question, asked
from causaldao.models.refute import (
    Refutation,
    e_value,
    e_value_of,
    implied_independences,
    negative_control,
    placebo_treatment,
    random_common_cause,
    random_subset,
    refute,
    robustness_value,
    robustness_values,
)
from tests.counts import count
from tests.models import planted

ONE = CausalGraph.dag([("c", "t"), ("c", "y"), ("t", "y")])


def curved(n: int = 1500) -> pd.DataFrame:
    """Treatment and outcome both hang on the square of c."""
    rng = np.random.default_rng(0)
    c = rng.normal(size=n)
    t = rng.binomial(1, planted.expit(0.8 * (c**2 - 1)))
    return pd.DataFrame({"c": c, "t": t, "y": t + 1.5 * c**2 + rng.normal(size=n)})


def ask(data: pd.DataFrame, graph: CausalGraph, **options: object) -> tuple[pd.DataFrame, Question, TableEffect]:
    question = asked(graph, "t", "y", **options)
    return data, question, answer(data, question)


def test_a_sound_effect_is_refuted() -> None:
    failed = 0
    for seed in range(repeats := count(8, 60)):
        problem = planted.arms(np.random.default_rng(seed))
        effect, found = refute(problem.data, problem.graph, "t", "y", repeats=10, seed=seed)
        json.dumps([effect.to_json(), *(one.to_json() for one in found)], allow_nan=False)
        assert [one.name for one in found] == [
            "placebo treatment", "random common cause", "random subset", "E-value", "robustness value",
            "implied independences",
        ]  # fmt: skip
        failed += sum(one.passed is False for one in found)
    # One test at .05 (two with an independence), the rest far from their bounds.
    assert failed <= 0.1 * repeats + 4 * math.sqrt(0.1 * repeats)


def test_a_placebo_does_not_see_what_the_adjustment_leaves() -> None:
    bad = placebo_treatment(*ask(curved(), ONE, method="g-formula"))
    good = placebo_treatment(*ask(curved(), ONE, method="g-formula", degree=2))
    assert (bad.passed, good.passed) == (False, True)
    assert abs(bad.number) > 5 * abs(good.number)


def test_a_placebo_of_a_dose_keeps_the_effect() -> None:
    problem = planted.dose(np.random.default_rng(1))
    found = placebo_treatment(*ask(problem.data, problem.graph))
    assert found.passed
    assert abs(found.number) < 0.1


def test_a_random_cause_moves_nothing_where_there_are_hardly_more_rows_than_columns() -> None:
    rng = np.random.default_rng(2)
    names = [f"c{j}" for j in range(36)]
    data = pd.DataFrame(rng.normal(size=(40, 36)), columns=names)
    data = data.assign(t=rng.normal(size=40), y=rng.normal(size=40))
    graph = CausalGraph.dag([("t", "y"), *((name, end) for name in names for end in ("t", "y"))])
    bad = random_common_cause(*ask(data, graph, method="g-formula"))
    problem = planted.arms(np.random.default_rng(3))
    good = random_common_cause(*ask(problem.data, problem.graph))
    assert (bad.passed, good.passed) == (False, True)
    assert good.number < 0.6


def test_subsets_agree_where_the_instrument_is_weak() -> None:
    """A weak instrument's estimate is a ratio of two noises, which the subset tells in many tables, not in all."""

    def failed(strength: float) -> int:
        problems = [planted.instrument(np.random.default_rng(seed), strength=strength) for seed in range(12)]
        found = [random_subset(*ask(p.data, p.graph, assume="linear")) for p in problems]
        return sum(not one.passed for one in found)

    assert failed(0.6) == 0
    assert failed(0.02) >= 4


def test_the_e_value_is_not_the_published_one() -> None:
    """VanderWeele & Ding (2017): formula feeding and deaths of infants, RR 3.9 [1.8, 8.7]: 7.26, the limit 3.0."""
    assert e_value_of(3.9) == pytest.approx(7.26, abs=0.005)
    assert e_value_of(1.8) == pytest.approx(3.0, abs=0.005)
    assert e_value_of(1 / 3.9) == pytest.approx(e_value_of(3.9))
    assert e_value_of(1) == 1
    with pytest.raises(MisuseError, match="positive"):
        e_value_of(-1)


def test_a_confounder_below_the_e_value_explains_the_effect_away() -> None:
    """A latent cause with risk ratios R to both moves a null to R²/(2R - 1) at most: the E-value gives R back."""
    ratio = 2.5
    bias = ratio**2 / (2 * ratio - 1)
    assert e_value_of(bias) == pytest.approx(ratio)


def test_the_e_value_of_a_table_is_of_another_effect() -> None:
    problem = planted.arms(np.random.default_rng(5), family="binary")
    data, _, effect = ask(problem.data, problem.graph)
    found = e_value(data, effect)
    assert effect.risk_ratio is not None
    assert found.number == pytest.approx(e_value_of(effect.risk_ratio[0]))
    covers = effect.risk_ratio[1] <= 1 <= effect.risk_ratio[2]
    assert found.details["limit"] == 1 if covers else 1 < found.details["limit"] < found.number
    assert found.passed is None
    linear = planted.arms(np.random.default_rng(6))
    data, _, effect = ask(linear.data, linear.graph)
    d = effect.estimate / data["y"].std()
    assert e_value(data, effect).number == pytest.approx(e_value_of(math.exp(0.91 * d)))


def test_the_robustness_value_is_not_the_published_one() -> None:
    """Cinelli & Hazlett (2020), Darfur: estimate .097, error .023, 783 degrees of freedom; RV 13.9 %, 7.6 % at .05."""
    t = 0.09731582 / 0.02325654
    value, significant = robustness_values(t, 783)
    assert value == pytest.approx(0.139, abs=0.0005)
    assert significant == pytest.approx(0.076, abs=0.0005)
    assert t**2 / (t**2 + 783) == pytest.approx(0.022, abs=0.0005)
    assert robustness_values(1.0, 783)[1] == 0


def test_a_cause_as_strong_as_the_robustness_value_leaves_some_of_the_estimate() -> None:
    """Planted: a latent cause orthogonal to the rest that explains just RV of both rest variances takes it to zero."""
    rng, n = np.random.default_rng(7), 4000
    problem = planted.dose(rng)
    data, _, effect = ask(problem.data, problem.graph)
    found = robustness_value(data, effect)
    x = sm.add_constant(data[["c", "w"]])
    t, y = data["t"].to_numpy(float), data["y"].to_numpy(float)
    whole = sm.OLS(y, sm.add_constant(data[["t", "c", "w"]])).fit()
    assert found.details["t"] == pytest.approx(whole.tvalues["t"], rel=1e-8)
    assert found.details["partial_r2"] == pytest.approx(t_share(whole.tvalues["t"], whole.df_resid), rel=1e-8)
    # their bias formula: |bias| = se·√df·√(R²_y R²_t / (1 - R²_t)), at both equal to RV
    rv = found.number
    bias = whole.bse["t"] * math.sqrt(whole.df_resid) * math.sqrt(rv**2 / (1 - rv))
    assert bias == pytest.approx(abs(whole.params["t"]), rel=1e-8)
    # and by a table: u made of the two rests, with these two partial R²
    rest_t, rest_y = (v - x.to_numpy() @ np.linalg.lstsq(x.to_numpy(), v, rcond=None)[0] for v in (t, y))
    given = rest_y - rest_t * (rest_t @ rest_y) / (rest_t @ rest_t)
    e_t, e_y = rest_t / np.linalg.norm(rest_t), given / np.linalg.norm(given)
    e_o = rng.normal(size=len(t))
    basis = np.column_stack([x, e_t, e_y])
    e_o -= basis @ np.linalg.lstsq(basis, e_o, rcond=None)[0]
    e_o /= np.linalg.norm(e_o)
    sign = math.copysign(1.0, float(rest_t @ rest_y))
    u = math.sqrt(rv) * e_t + math.sqrt(1 - rv) * (sign * math.sqrt(rv) * e_y + math.sqrt(1 - rv) * e_o)
    longer = sm.OLS(y, np.column_stack([x, t, u])).fit()
    assert longer.params[3] == pytest.approx(0, abs=1e-8 * abs(whole.params["t"]))
    assert n


def t_share(t: float, df: float) -> float:
    return t**2 / (t**2 + df)


def test_a_missing_edge_or_a_latent_cause_stands_up_to_the_independences() -> None:
    rng, n = np.random.default_rng(8), 2000
    a, b, u = rng.normal(size=(3, n))
    data = pd.DataFrame({"a": a, "b": a + b, "c": a + b + rng.normal(size=n) + u, "d": u + rng.normal(size=n)})
    right = CausalGraph.admg([("a", "b"), ("b", "c")], [("c", "d")])
    found = implied_independences(data, right)
    assert found.passed
    assert {(test["a"], test["b"]) for test in found.details["tests"]} == {("a", "c"), ("a", "d"), ("b", "d")}
    wrong = implied_independences(data, CausalGraph.dag([("a", "b"), ("b", "c")], nodes=("a", "b", "c", "d")))
    assert wrong.passed is False
    assert "c and d" in wrong.means
    nothing = implied_independences(data[["a", "b"]], CausalGraph.dag([("a", "b")]))
    assert (nothing.passed, nothing.number) == (None, 1.0)


def test_a_negative_control_does_not_see_a_latent_cause() -> None:
    rng, n = np.random.default_rng(9), 2000
    c, u = rng.normal(size=(2, n))
    for seen in (True, False):
        t = rng.binomial(1, planted.expit(c + (0 if seen else 1.0) * u))
        data = pd.DataFrame({"c": c, "t": t, "y": t + c + u, "control": c + u + rng.normal(size=n)})
        found = negative_control(*ask(data, ONE), "control")
        assert found.passed is seen
    with pytest.raises(MisuseError, match="has a role"):
        negative_control(*ask(data, ONE), "c")
    moved = CausalGraph.dag([*ONE.directed, ("t", "control")])
    with pytest.raises(MisuseError, match="moves control"):
        negative_control(*ask(data, moved), "control")


def test_a_refuter_of_adjustment_answers_for_an_instrument() -> None:
    problem = planted.instrument(np.random.default_rng(10))
    _, found = refute(problem.data, problem.graph, "t", "y", assume="linear", repeats=5)
    assert [one.name for one in found] == ["random subset", "implied independences"]
    data, question, effect = ask(problem.data, problem.graph, assume="linear")
    refuters = (lambda: placebo_treatment(data, question, effect), lambda: robustness_value(data, effect))
    for refuter in refuters:
        with pytest.raises(MisuseError, match="found by 2sls"):
            refuter()


def test_the_same_seed_gives_another_refutation() -> None:
    problem = planted.arms(np.random.default_rng(11))
    asked_twice = [refute(problem.data, problem.graph, "t", "y", repeats=3, seed=5)[1] for _ in range(2)]
    assert asked_twice[0] == asked_twice[1]
    assert all(isinstance(one, Refutation) for one in asked_twice[0])


def test_an_outcome_without_noise_ends_in_a_division_by_zero() -> None:
    problem = planted.dose(np.random.default_rng(12))
    exact = problem.data.assign(y=2 * problem.data["t"] - problem.data["w"] + problem.data["c"])
    with pytest.raises(DataError, match="follows from the other columns without noise"):
        refute(exact, problem.graph, "t", "y", method="g-formula", repeats=2)


def test_a_draw_without_an_answer_ends_all_of_them() -> None:
    """Twelve treated rows and five folds: some random shares of the rows have too few of them."""
    rng, n = np.random.default_rng(13), 400
    c = rng.normal(size=n)
    t = np.repeat([1, 0], [12, n - 12])
    data = pd.DataFrame({"c": c, "t": t, "y": t + c + rng.normal(size=n)})
    found = random_subset(*ask(data, ONE))
    assert "more could not be answered" in found.done
    assert math.isfinite(found.number)
    with pytest.raises(MisuseError, match="repeats=0"):
        random_subset(*ask(data, ONE), repeats=0)


def test_a_random_cause_is_refused_in_a_class_of_graphs() -> None:
    rng, n = np.random.default_rng(14), 1000
    t, w = rng.normal(size=(2, n))
    data = pd.DataFrame({"t": t, "w": w, "after": t + rng.normal(size=n), "y": t + w + rng.normal(size=n)})
    graph = CausalGraph.cpdag([("t", "y"), ("w", "y")], [("t", "after")])
    assert random_common_cause(*ask(data, graph), repeats=3).passed
