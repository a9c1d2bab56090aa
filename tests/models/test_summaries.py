"""Summaries: no record weighs more than the stated sensitivity, whatever the nuisances; estimands find their truth."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldao.client.data.checks import conform
from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Dictionary, Evidence, Variable
from causaldao.models.estimation import estimate_effect
from causaldao.models.summaries import (
    LATTICE,
    SENSITIVITY,
    Estimand,
    Nuisances,
    Target,
    contributions,
    exact_sums,
    influence_values,
    nuisances,
    summary,
)
from tests.counts import count
from tests.models.planted import CONFOUNDED, expit
from tests.models.planted_sites import BOUNDS, sites

DICTIONARY = Dictionary(tuple(Variable(name, bounds=BOUNDS[name]) for name in ("c", "w", "t", "y")), 5.0)
TARGET = Target("t", "y", ("c", "w"))
ODD = [0.0, -0.0, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan, 0.5, 1.0, 4.0, -8.0, 1 - 2**-53]


def shared(
    tables: dict[str, pd.DataFrame], target: Target = TARGET, **options: Any
) -> tuple[dict[str, Nuisances], dict[str, str]]:
    evidence = {name: Evidence.from_data(table, DICTIONARY) for name, table in tables.items()}
    total = sum(one.count for one in evidence.values())
    return nuisances(target, evidence, {name: one.count / total for name, one in evidence.items()}, **options)


def _adversarial(rng: np.random.Generator, member: Nuisances) -> Nuisances:
    """Nuisances that no evidence gives, as liars might wish them."""
    scale = 10.0 ** rng.integers(-3, 160)
    return replace(
        member, mean=rng.normal(size=4) * scale, score=rng.normal(size=2) * scale, slopes=rng.normal(size=3) * scale,
        clip=float(10.0 ** rng.integers(-200, 3)),
    )  # fmt: skip


@pytest.mark.parametrize("estimand", ["ate", "att", "plm"])
def test_a_record_weighs_more_than_the_sensitivity(estimand: Estimand) -> None:
    """Exactly, in Python's integers: for odd records, and under nuisances made to do harm."""
    rng = np.random.default_rng(1)
    tables = sites(rng, rows=(50, 90)).tables
    target = replace(TARGET, estimand=estimand)
    member = shared(tables, target)[0]["site-0"]
    bound = round(SENSITIVITY**2)
    for case in range(count(60, 2000)):
        scale = 10.0 ** rng.integers(-9, 1)
        frame = conform(pd.DataFrame(rng.choice(ODD, (20, 4)) * scale, columns=["c", "w", "t", "y"]), DICTIONARY)
        used = _adversarial(rng, member) if case % 2 else replace(member, clip=float(10.0 ** rng.integers(-9, 2)))
        rows = contributions(frame, DICTIONARY, used).astype(object)
        assert max((row * row).sum() for row in rows) <= bound
        whole = exact_sums(frame, DICTIONARY, used)
        for place in (0, 7, 19):  # removed, and so added, a record moves the sums by its own vector and nothing else
            assert (whole - exact_sums(frame.drop(index=[place]), DICTIONARY, used) == rows[place]).all()
    assert (rows == np.clip(rows, -LATTICE, LATTICE)).all()


@pytest.mark.parametrize("estimand", ["ate", "att", "plm"])
def test_a_record_counts_otherwise_beside_other_records(estimand: Estimand) -> None:
    """To the last bit: where rounding hangs on a record's place, one that goes moves the lattice vectors of others."""
    rng, names = np.random.default_rng(3), tuple(f"c{k}" for k in range(12))  # of three, no product rounds otherwise
    dictionary = Dictionary(tuple(Variable(name, bounds=(0.0, 1.0)) for name in (*names, "t", "y")), 15.0)
    target = replace(TARGET, covariates=names, estimand=estimand)
    member = replace(
        shared(sites(rng, rows=(50, 90)).tables)[0]["site-0"], target=target, mean=rng.normal(size=14),
        score=rng.normal(size=12), slopes=rng.normal(size=13),
    )  # fmt: skip
    frame = pd.DataFrame(rng.uniform(size=(101, 14)), columns=[*names, "t", "y"])
    whole = influence_values(frame, dictionary, member)
    for first in range(1, 20):
        assert np.array_equal(influence_values(frame.iloc[first:], dictionary, member), whole[first:])
    alone = [influence_values(frame.iloc[k : k + 1], dictionary, member) for k in range(20)]
    assert np.array_equal(np.concatenate(alone), whole[:20])


def test_the_sensitivity_is_reached() -> None:
    """A bound that no record comes near would be noise for nothing, and a test of it could not fail."""
    member = shared(sites(np.random.default_rng(2), rows=(50, 90)).tables)[0]["site-0"]
    frame = pd.DataFrame({"c": [0.0], "w": [0.0], "t": [1.0], "y": [8.0]})
    row = contributions(frame, DICTIONARY, replace(member, clip=1e-3)).astype(float)
    assert np.linalg.norm(row) == pytest.approx(SENSITIVITY, rel=1e-9)


@pytest.mark.parametrize("estimand", ["ate", "att", "plm"])
def test_the_estimate_differs_from_one_table_of_all_rows(estimand: Estimand) -> None:
    rng, apart = np.random.default_rng(3), []
    for _ in range(count(3, 40)):
        tables = sites(rng, curve=0.3).tables
        found = shared(tables, replace(TARGET, estimand=estimand), noiseless_clip=True)[0]
        told = [summary(exact_sums(table, DICTIONARY, found[name]), found[name], 0) for name, table in tables.items()]
        weight = np.array([found[name].denominator for name in tables])
        estimate = float(np.average([one.estimate for one in told], weights=weight))
        method = {"estimand": "ate", "method": "plm"} if estimand == "plm" else {"estimand": estimand, "method": "aipw"}
        pooled = estimate_effect(pd.concat(tables.values(), ignore_index=True), CONFOUNDED, "t", "y", **method)
        apart.append((estimate - pooled.estimate) / pooled.standard_error)
        share = weight / weight.sum()
        variances = [w**2 * one.variance / one.count for w, one in zip(share, told, strict=True)]
        spread = math.sqrt(sum(variances))
        assert spread == pytest.approx(pooled.standard_error, rel=0.15)
    # two estimates of one effect: apart by chance, no more than a small part of their error, and on no side
    assert np.quantile(np.abs(apart), 0.95) < 0.3
    assert math.sqrt(np.mean(np.square(apart))) < 0.2
    assert max(map(abs, apart)) < 4 * 0.2
    assert abs(np.mean(apart)) < 4 * 0.2 / math.sqrt(len(apart))


@pytest.mark.parametrize(("outcome", "score"), [(True, False), (False, True)], ids=["outcome right", "score right"])
def test_both_models_must_be_right(outcome: bool, score: bool) -> None:
    """A curve in one of the two alone does no harm; in both it must, or this shows nothing."""

    def miss(in_outcome: bool, in_score: bool) -> float:
        rng, tables = np.random.default_rng(4), {}
        for k in range(4):
            c, w = rng.uniform(-1.7, 1.7, 4000), rng.binomial(1, 0.4, 4000)
            curve = c**2 - 1
            t = rng.binomial(1, expit(0.9 * (curve if in_score else c)))
            y = t + (curve if in_outcome else c) + rng.normal(size=4000)
            tables[f"site-{k}"] = pd.DataFrame({"c": c, "w": w, "t": t, "y": y})
        found = shared(tables)[0]
        told = [summary(exact_sums(table, DICTIONARY, found[name]), found[name], 0) for name, table in tables.items()]
        error = math.sqrt(np.mean([one.variance for one in told]) / 16_000)
        return abs(float(np.mean([one.estimate for one in told])) - 1) / error

    assert miss(not outcome, not score) < 4
    assert miss(True, True) > 8


def test_institutions_that_differ_confound_the_effect() -> None:
    """Who treats more has better outcomes anyway: between institutions that would be read as an effect."""
    rng, misses, naive = np.random.default_rng(5), [], []
    for _ in range(count(6, 100)):
        tables, truth = sites(rng, apart=0.8)
        found, _ = shared(tables, noiseless_clip=True)
        told = [summary(exact_sums(table, DICTIONARY, found[name]), found[name], 0) for name, table in tables.items()]
        n = np.array([one.count for one in told])
        misses.append(float(np.average([one.estimate for one in told], weights=n)) - truth)
        pooled = estimate_effect(pd.concat(tables.values(), ignore_index=True), CONFOUNDED, "t", "y", method="aipw")
        naive.append(pooled.estimate - truth)
    assert np.std(misses) < 0.07
    assert np.std(naive) > 2 * np.std(misses)


def test_a_share_that_is_clipped_is_not_said() -> None:
    tables = sites(np.random.default_rng(6)).tables
    member = shared(tables, replace(TARGET, clip=0.5))[0]["site-0"]
    share, noise = summary(exact_sums(tables["site-0"], DICTIONARY, member), member, 0).clipped
    values = np.abs(influence_values(tables["site-0"], DICTIONARY, member))
    assert share == pytest.approx((values > 0.5).mean())
    assert share > 0.5
    assert noise == 0


def test_a_site_without_one_arm_answers() -> None:
    tables = sites(np.random.default_rng(7)).tables
    tables["site-3"] = tables["site-3"].assign(t=1.0)
    tables["site-4"] = tables["site-4"].assign(t=0.0)
    found, aside = shared(tables)
    assert set(aside) == {"site-3", "site-4"}
    assert "site-3: positivity is violated" in aside["site-3"]
    assert "untreated" in aside["site-3"]
    assert set(found) == set(tables) - set(aside)


def test_a_count_drowned_in_noise_answers() -> None:
    tables = sites(np.random.default_rng(8), rows=(300, 400)).tables
    evidence = {name: Evidence.from_data(table, DICTIONARY) for name, table in tables.items()}
    evidence["site-0"] = replace(evidence["site-0"], noise=200.0)
    weights = {name: 1 / 7 for name in tables if name != "site-0"}
    _, aside = nuisances(TARGET, evidence, weights)
    assert set(aside) == {"site-0"}
    assert "larger epsilon" in aside["site-0"]


@pytest.mark.parametrize("wrong", [
    {"treatment": "y"}, {"covariates": ("c", "c")}, {"estimand": "late"}, {"overlap": 0.5}, {"overlap": 0.0},
    {"clip": 0.0}, {"clip": math.inf}, {"clip": math.nan},
])  # fmt: skip
def test_a_target_that_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(MisuseError):
        replace(TARGET, **wrong)


def test_unknown_names_and_a_weight_of_nobody() -> None:
    tables = sites(np.random.default_rng(9), rows=(50, 90)).tables
    with pytest.raises(MisuseError, match="no variable 'd'"):
        shared(tables, replace(TARGET, covariates=("c", "d")))
    evidence = {name: Evidence.from_data(table, DICTIONARY) for name, table in tables.items()}
    with pytest.raises(MisuseError, match="nobody"):
        nuisances(TARGET, evidence, {"nobody": 1.0})


def test_a_treatment_that_never_varies() -> None:
    tables = {
        name: table.assign(t=1.0) for name, table in sites(np.random.default_rng(9), rows=(50, 90)).tables.items()
    }
    with pytest.raises(DataError, match="t varies"):
        shared(tables)


@pytest.mark.parametrize("sums", [
    [1e30, 0, 0], [math.nan, 0, 0], [math.inf, 0, 0], [0, 1e30, 0], [0, -1e9, 0], [0, 0, 1e30], [0, 0, -1e9], [0, 0],
    [0, 0, 0, 0],
])  # fmt: skip
def test_sums_that_no_records_add_up_to(sums: list[float]) -> None:
    member = shared(sites(np.random.default_rng(10), rows=(50, 90)).tables)[0]["site-0"]
    with pytest.raises(DataError):
        summary(sums, member, 1000)
