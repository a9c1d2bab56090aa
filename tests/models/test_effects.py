"""Effects from moments against least squares on rows, and their errors against simulation."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.errors import CausalDAOError, DataError, MisuseError
from causaldao.models.discovery.evidence import Dictionary, Evidence, Variable
from causaldao.models.effects import (
    Effect,
    average_effect,
    effect_set,
    influence,
    least_squares,
    robust_share,
    robustness,
)
from causaldao.models.graph import CausalGraph
from causaldao.models.pattern import cpdag_of
from tests.counts import count
from tests.models.test_adjustment import members


def rows_of(rng: np.random.Generator, n: int) -> np.ndarray:
    """c -> t, c -> y, t -> y with effect 0.5, and an idle w; columns c, t, y, w."""
    c = rng.normal(size=n)
    t = 0.8 * c + rng.normal(size=n)
    y = 1.0 + 0.5 * t - 0.7 * c + rng.normal(size=n)
    return np.stack([c, t, y, rng.normal(size=n)], axis=1)


def evidence_of(rows: np.ndarray, half: float = 4.0, noise: float = 0.0) -> Evidence:
    x = np.concatenate([np.ones((len(rows), 1)), rows / half], axis=1)
    sides = torch.zeros(4, dtype=torch.float64), torch.full((4,), half, dtype=torch.float64)
    return Evidence(("c", "t", "y", "w"), torch.from_numpy(x.T @ x), noise, *sides)


def noisy(evidence: Evidence, sigma: float, rng: np.random.Generator) -> Evidence:
    """Symmetric noise on every cell, the count's too: sd sigma on the diagonal, sigma / √2 off it."""
    draw = rng.normal(scale=sigma, size=evidence.moments.shape)
    return dataclasses.replace(evidence, moments=evidence.moments + torch.from_numpy(draw + draw.T) / 2, noise=sigma)


def ordinary_least_squares(rows: np.ndarray, y: int, columns: list[int]) -> tuple[float, float]:
    """(coefficient, standard error) of the first column, from the rows."""
    x = np.column_stack([np.ones(len(rows)), rows[:, columns]])
    coefficients, rss, *_ = np.linalg.lstsq(x, rows[:, y], rcond=None)
    variance = rss[0] / (len(rows) - x.shape[1])
    return float(coefficients[1]), math.sqrt(variance * np.linalg.inv(x.T @ x)[1, 1])


@pytest.mark.parametrize("adjustment", [(), ("c",), ("w", "c")])
def test_exact_evidence_gives_least_squares_on_the_rows(adjustment: tuple[str, ...]) -> None:
    rows = rows_of(np.random.default_rng(0), 400) * [1.0, 30.0, 0.02, 1.0] + [5.0, -70.0, 0.3, 0.0]
    frame = pd.DataFrame(rows, columns=["c", "t", "y", "w"])
    effect = average_effect(Evidence.from_data(frame), "t", "y", adjustment)
    expected, error = ordinary_least_squares(rows, 2, [1, *("ctyw".index(name) for name in adjustment)])
    assert effect.estimate == pytest.approx(expected, rel=1e-9)
    assert effect.standard_error == pytest.approx(error, rel=1e-9)
    assert (effect.privacy_error, effect.sampling_error) == (0.0, effect.standard_error)
    assert effect.interval == pytest.approx((expected - 1.959964 * error, expected + 1.959964 * error), rel=1e-6)


def test_the_unit_is_the_transformed_variable_not_the_scaled_one() -> None:
    rng = np.random.default_rng(1)
    visits = rng.poisson(4, size=5000)
    cost = 100 - 20 * np.log1p(visits) + rng.normal(size=5000)
    variables = (
        Variable("visits", "count", (0, 60), transform="log1p"),
        Variable("cost", bounds=(-100, 200)),
    )
    frame = pd.DataFrame({"visits": visits, "cost": cost})
    effect = average_effect(Evidence.from_data(frame, Dictionary(variables, clip=3.0)), "visits", "cost")
    assert effect.estimate == pytest.approx(-20, abs=0.1)


def test_the_privacy_error_is_the_spread_that_the_noise_causes() -> None:
    rng = np.random.default_rng(2)
    exact, sigma = evidence_of(rows_of(rng, 4000)), 5.0
    truth = average_effect(exact, "t", "y", ["c"])
    draws = [average_effect(noisy(exact, sigma, rng), "t", "y", ["c"]) for _ in range(count(400, 4000))]
    spread = float(np.std([draw.estimate for draw in draws]))
    reported = float(np.mean([draw.privacy_error for draw in draws]))
    # The relative error of a standard deviation over 400 draws is 3.5 %.
    assert spread / reported == pytest.approx(1, abs=0.12)
    assert np.mean([draw.estimate for draw in draws]) == pytest.approx(truth.estimate, abs=0.15 * spread + 0.01)
    assert draws[0].privacy_error > truth.sampling_error  # noise decides here, or the test shows little


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_cover_at_their_level_under_sampling_and_noise(level: float) -> None:
    rng, repeats = np.random.default_rng(3), count(500, 5000)
    draws = []
    for _ in range(repeats):
        evidence = noisy(evidence_of(rows_of(rng, 1000)), 2.5, rng)
        draws.append(average_effect(evidence, "t", "y", ["c"], level))
    spread = float(np.std([draw.estimate for draw in draws]))
    assert spread / np.mean([draw.standard_error for draw in draws]) == pytest.approx(1, abs=0.15)
    covered = np.mean([draw.interval[0] <= 0.5 <= draw.interval[1] for draw in draws])
    # Four binomial standard deviations, and one point for what the first order leaves out.
    assert covered == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / repeats) + 0.01)


def test_parts_of_the_error_add_in_squares() -> None:
    effect = average_effect(
        noisy(evidence_of(rows_of(np.random.default_rng(4), 1000)), 1.0, np.random.default_rng(5)), "t", "y"
    )
    assert effect.standard_error == pytest.approx(math.hypot(effect.sampling_error, effect.privacy_error))
    assert min(effect.sampling_error, effect.privacy_error) > 0


def test_the_residual_vector_leaves_nothing_that_the_predictors_explain() -> None:
    evidence = evidence_of(rows_of(np.random.default_rng(6), 300))
    fit = least_squares(evidence, "y", ("t", "c"))
    assert torch.allclose((evidence.moments @ fit.residual)[[0, 1, 2]], torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert fit.residual_squares == pytest.approx(float(fit.residual @ evidence.moments @ fit.residual))


def test_the_influence_is_the_derivative_of_the_estimate_in_the_moments() -> None:
    rng = np.random.default_rng(17)
    evidence = evidence_of(rows_of(rng, 400))
    evidence = dataclasses.replace(evidence, half=torch.tensor([4.0, 0.5, 30.0, 1.0], dtype=torch.float64))
    found, draw = influence(evidence, "t", "y", ["c"]), torch.from_numpy(rng.normal(size=(5, 5)))
    step = 1e-5 * (draw + draw.T)
    up, down = (
        average_effect(dataclasses.replace(evidence, moments=evidence.moments + sign * step), "t", "y", ["c"])
        for sign in (1, -1)
    )
    assert float((found.gradient * step).sum()) == pytest.approx((up.estimate - down.estimate) / 2, rel=1e-5)
    sampling = average_effect(evidence, "t", "y", ["c"]).sampling_error
    assert found.variance_per_record == pytest.approx(400 * sampling**2)


def test_a_constant_treatment_is_refused_with_its_eigenvalue() -> None:
    rows = rows_of(np.random.default_rng(7), 300)
    rows[:, 1] = 2.0
    with pytest.raises(DataError, match=r"\(1, t, c\) are not positive definite: least eigenvalue .* per record"):
        average_effect(evidence_of(rows), "t", "y", ["c"])


def test_noise_that_makes_the_moments_indefinite_is_refused_with_the_remedy() -> None:
    evidence = evidence_of(rows_of(np.random.default_rng(8), 300))
    moments = evidence.moments.clone()
    moments[2, 2] = -3.0
    with pytest.raises(DataError, match="more records or a larger epsilon"):
        average_effect(dataclasses.replace(evidence, moments=moments, noise=20.0), "t", "y", ["c"])


def test_a_treatment_drowned_in_noise_is_refused_rather_than_given_a_finite_interval() -> None:
    rows = rows_of(np.random.default_rng(9), 300)
    rows[:, 1] *= 0.3
    drowned = dataclasses.replace(evidence_of(rows), noise=5.0)
    with pytest.raises(DataError, match=r"variation of t given the adjustment.*not distinct"):
        average_effect(drowned, "t", "y", ["c"])
    assert average_effect(dataclasses.replace(drowned, noise=0.1), "t", "y", ["c"]).privacy_error > 0


def test_a_negative_residual_variance_is_refused_under_noise_and_rounding_is_not() -> None:
    rows = rows_of(np.random.default_rng(10), 300)
    rows[:, 2] = 3 * rows[:, 1]
    exact = evidence_of(rows)
    assert average_effect(exact, "t", "y").standard_error == pytest.approx(0, abs=1e-6)
    moments = exact.moments.clone()
    moments[3, 3] -= 1.0
    with pytest.raises(DataError, match="y has residual sum of squares -1"):
        average_effect(dataclasses.replace(exact, moments=moments, noise=0.5), "t", "y")


def test_more_coefficients_than_records_are_refused() -> None:
    with pytest.raises(DataError, match="3 records for 3 coefficients"):
        average_effect(evidence_of(rows_of(np.random.default_rng(11), 3)), "t", "y", ["c"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("q", "y", ()), "q"),
        (("t", "q", ()), "q"),
        (("t", "y", ("q",)), "q"),
        (("t", "t", ()), "t has two roles"),
        (("t", "y", ("y",)), "y has two roles"),
        (("t", "y", ("c", "c")), "c has two roles"),
        (("t", "y", "c"), "expected a sequence"),
        (("t", "y", (), 1.0), "level=1.0"),
    ],
)
def test_wrong_calls_are_named(arguments: tuple[Any, ...], message: str) -> None:
    evidence = evidence_of(rows_of(np.random.default_rng(12), 50))
    with pytest.raises(MisuseError, match=message):
        average_effect(evidence, *arguments)


def population_of(dag: CausalGraph, rng: np.random.Generator) -> Evidence:
    d, n = len(dag.nodes), 1000.0
    weights = dag.adjacency().T * rng.uniform(0.5, 1.5, (d, d)) * rng.choice([-1, 1], (d, d))
    total = np.linalg.inv(np.eye(d) - weights)
    moments = np.eye(d + 1)
    moments[1:, 1:] = total @ np.diag(rng.uniform(0.5, 2, d)) @ total.T
    return Evidence(dag.nodes, torch.from_numpy(n * moments))


def effect_in(dag: CausalGraph, evidence: Evidence, x: str, y: str) -> float:
    """The total effect in one DAG: regression on x and its parents, or zero where y is one of them."""
    if y in dag.parents(x):
        return 0.0
    covariance = evidence.covariance().numpy()
    block = [evidence.index(name) for name in (x, *sorted(dag.parents(x)))]
    return float(np.linalg.solve(covariance[np.ix_(block, block)], covariance[block, evidence.index(y)])[0])


def test_the_set_over_a_class_is_that_of_all_its_members() -> None:
    rng, sizes = np.random.default_rng(13), set()
    for _ in range(count(60, 1000)):
        names = [f"v{i}" for i in range(int(rng.integers(3, 6)))]
        density = rng.uniform(0.3, 0.9)
        dag = CausalGraph.dag([pair for pair in combinations(names, 2) if rng.random() < density], names)
        evidence, pattern = population_of(dag, rng), cpdag_of(dag)
        x, y = (str(name) for name in rng.choice(names, 2, replace=False))
        expected = sorted({round(effect_in(member, evidence, x, y), 9) + 0.0 for member in members(pattern)})
        found = effect_set(evidence, pattern, x, y)
        assert sorted({round(effect.estimate, 9) + 0.0 for effect in found}) == expected, (pattern, x, y)
        sizes.add(len(found))
    assert {1, 2} <= sizes


def test_a_settled_effect_is_one_effect_with_the_optimal_adjustment() -> None:
    dag = CausalGraph.dag([("c", "t"), ("c", "y"), ("t", "y")], ("c", "t", "y", "w"))
    evidence = evidence_of(rows_of(np.random.default_rng(14), 500))
    assert effect_set(evidence, dag, "t", "y") == (average_effect(evidence, "t", "y", ("c",)),)


def test_no_causal_path_is_an_implied_zero_not_an_estimate() -> None:
    dag = CausalGraph.dag([("c", "t"), ("c", "y"), ("t", "y")], ("c", "t", "y", "w"))
    evidence = evidence_of(rows_of(np.random.default_rng(15), 500))
    assert effect_set(evidence, dag, "y", "t") == (
        Effect("y", "t", (), 0.0, 0.0, 0.0, 0.0, (0.0, 0.0), 0.95, implied=True),
    )


def test_a_zero_for_a_variable_that_the_evidence_lacks_is_refused() -> None:
    dag = CausalGraph.dag([], ("c", "q"))
    with pytest.raises(CausalDAOError, match="q"):
        effect_set(evidence_of(rows_of(np.random.default_rng(16), 50)), dag, "c", "q")


def test_an_unmeasured_cause_of_the_stated_strength_leaves_some_of_the_estimate() -> None:
    """A cause with partial shares R of both biases the estimate by se·√df·√(R·R/(1 - R)) (Cinelli and Hazlett 2020,
    equation 7); se here is that of the sandwich."""
    rows = rows_of(np.random.default_rng(5), 20_000)
    effect = average_effect(evidence_of(rows), "t", "y", ("w",))
    found = robustness(effect, len(rows))
    assert found is not None
    share = found[0]
    df = len(rows) - 3
    bias = effect.sampling_error * math.sqrt(df) * math.sqrt(share * share / (1 - share))
    assert bias == pytest.approx(abs(effect.estimate), rel=1e-9)
    assert 0 < found[1] < share


def test_robustness_grows_with_privacy_noise_or_is_claimed_for_an_interval_around_zero() -> None:
    rng = np.random.default_rng(6)
    evidence = evidence_of(rows_of(rng, 3000))
    effect = average_effect(evidence, "t", "y", ("c",))
    doubtful = dataclasses.replace(effect, privacy_error=1.0, standard_error=1.0, interval=(-1.0, 2.0))
    sure, doubted = robustness(effect, 3000), robustness(doubtful, 3000)
    assert sure is not None
    assert doubted is not None
    assert doubted[0] == sure[0]
    assert (doubted[1], sure[1] > 0) == (0.0, True)
    assert robustness(dataclasses.replace(effect, sampling_error=0.0), 3000) is None
    assert robustness(effect, 3.0) is None
    assert robust_share(0.0) == 0.0
