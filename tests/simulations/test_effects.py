"""An effect across institutions: the noise is the accountant's, intervals cover, liars are named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from causaldao.budget import epsilon_of
from causaldao.client.privacy.noise import NoiseSource
from causaldao.errors import DataError, GuaranteeError, MisuseError
from causaldao.meta import Settings
from causaldao.models.discovery.evidence import Dictionary, Variable
from causaldao.models.summaries import LATTICE, SENSITIVITY, Target, exact_sums
from causaldao.simulations.effects import (
    Protocol,
    conclude,
    federated_effect,
    planned,
    run,
    seeded,
    share_nuisances,
    tell_evidence,
    tell_sums,
)
from tests.counts import count
from tests.models.planted_sites import BOUNDS, COVARIATES, sites

DICTIONARY = Dictionary(tuple(Variable(name, bounds=BOUNDS[name]) for name in (*COVARIATES, "t", "y")), 4.2)
TARGET = Target("t", "y", COVARIATES)


def _effect(tables: dict[str, pd.DataFrame], **options: Any) -> Any:
    return federated_effect(tables, BOUNDS, "t", "y", COVARIATES, **options)


@pytest.mark.parametrize("epsilon", [None, 8.0, 3.0])
@pytest.mark.parametrize("faulty", [0, 2])
def test_intervals_miss_the_planted_truth_too_often_or_too_rarely(epsilon: float | None, faulty: int) -> None:
    """Every second problem bends with a confounder."""
    protocol = planned(TARGET, DICTIONARY, Settings(faulty, spread=0.0), epsilon, 1e-5, 0.6)
    repeats, covered = count(10, 2000), 0
    for seed in range(repeats):
        tables, truth = sites(np.random.default_rng([seed, 8]), curve=0.3 * (seed % 2))
        found = run(tables, protocol, seeded(seed)).meta
        covered += found.interval[0] <= truth <= found.interval[1]
    share = covered / repeats
    if count(0, 1):
        assert 0.935 <= share <= 0.965, share
    else:
        assert covered >= binom.ppf(1e-4, repeats, 0.95), share


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 8.0])
def test_the_two_releases_spend_more_than_epsilon(epsilon: float) -> None:
    protocol = planned(TARGET, DICTIONARY, Settings(), epsilon, 1e-5, 0.6)
    assert protocol.sigma is not None
    assert protocol.epsilon is not None
    assert 0.99 * epsilon < protocol.epsilon <= epsilon
    assert protocol.epsilon == epsilon_of(protocol.spends, 1e-5)
    assert protocol.sigma[0] >= protocol.spends[0].noise_multiplier * DICTIONARY.clip * DICTIONARY.lattice**2
    assert protocol.sigma[1] >= protocol.spends[1].noise_multiplier * SENSITIVITY
    assert epsilon_of(protocol.spends[:1], 1e-5) <= 0.6 * epsilon


def test_the_noise_is_not_the_stated_one() -> None:
    protocol = planned(TARGET, DICTIONARY, Settings(), 4.0, 1e-5, 0.6)
    assert protocol.sigma is not None
    tables = sites(np.random.default_rng(1), rows=(200, 300)).tables
    noise = seeded(1)
    evidence = {name: tell_evidence(table, protocol, noise) for name, table in tables.items()}
    member = share_nuisances(evidence, protocol)[0]["site-0"]
    exact = exact_sums(tables["site-0"], DICTIONARY, member)
    drawn = np.stack([tell_sums(tables["site-0"], protocol, member, noise) - exact for _ in range(200)])
    spread = drawn / protocol.sigma[1]
    assert spread.std(axis=0) == pytest.approx(np.ones(3), rel=0.2)
    assert np.abs(spread.mean(axis=0)).max() < 5 / math.sqrt(200)


def test_the_default_noise_repeats() -> None:
    tables = sites(np.random.default_rng(2), rows=(300, 400)).tables
    first, second = (_effect(tables, epsilon=8.0) for _ in range(2))
    assert first.meta.estimate != second.meta.estimate
    assert not any("simulated" in note for note in first.notes)
    again = [_effect(tables, epsilon=8.0, seed=3) for _ in range(2)]
    assert again[0].to_json() == again[1].to_json()
    assert any("simulated" in note for note in again[0].notes)
    turned = _effect(dict(reversed(tables.items())), epsilon=8.0, seed=3)
    assert turned.to_json() == again[0].to_json()


@pytest.mark.parametrize("lie", [
    [1e30, 0, 0], [math.nan, math.nan, 0], [math.inf, 0, 0], [LATTICE * 250, LATTICE * 125, 0],
    [-LATTICE * 250, LATTICE * 125, 0],
])  # fmt: skip
def test_liars_are_believed(lie: list[float]) -> None:
    """Whatever they send in place of their sums, they are named, and the answer is that of the others."""
    tables, truth = sites(np.random.default_rng(3), rows=(300, 400))
    protocol = planned(TARGET, DICTIONARY, Settings(2, spread=0.0), 8.0, 1e-5, 0.6)
    noise = seeded(4)
    evidence = {name: tell_evidence(table, protocol, noise) for name, table in tables.items()}
    functions, aside, pool = share_nuisances(evidence, protocol)
    sums: dict[str, Any] = {name: tell_sums(tables[name], protocol, one, noise) for name, one in functions.items()}
    found = conclude({**sums, "site-1": lie, "site-6": lie}, functions, aside, pool, protocol, "os").meta
    assert {*found.accused, *found.quarantined} == {"site-1", "site-6"}
    assert found.bound == 0
    assert abs(found.estimate - truth) < 4 * found.standard_error


def test_a_site_where_nobody_is_treated_spoils_the_study() -> None:
    tables, truth = sites(np.random.default_rng(5))
    tables["site-2"] = tables["site-2"].assign(t=0.0)
    found = _effect(tables, faulty=1, spread=0.0)
    assert set(found.aside) == {"site-2"}
    assert any("site-2: positivity is violated" in note for note in found.notes)
    assert "site-2" not in found.meta.weights
    assert abs(found.meta.estimate - truth) < 4 * found.meta.standard_error
    with pytest.raises(GuaranteeError, match="7 of 9 members can answer, but faulty = 3 needs 9"):
        _effect({**tables, "site-8": tables["site-2"]}, faulty=3)


def test_noise_drowns_the_counts() -> None:
    tables = sites(np.random.default_rng(6), rows=(20, 30)).tables
    with pytest.raises((GuaranteeError, DataError), match="larger epsilon"):
        _effect(tables, epsilon=0.3, seed=1)


@pytest.mark.parametrize(("changes", "error", "said"), [
    ({"covariates": ("c", "d")}, MisuseError, "No bounds for d"),
    ({"treatment": "y"}, MisuseError, "two roles"),
    ({"estimand": "late"}, MisuseError, "no estimand"),
    ({"fault": 2}, MisuseError, "no option fault"),
    ({"epsilon": -1.0}, MisuseError, "epsilon"),
    ({"share": 1.0, "epsilon": 1.0}, MisuseError, "share"),
    ({"faulty": 3}, GuaranteeError, "at most faulty = 2"),
    ({"treatment": "c", "covariates": ("w",)}, DataError, "site-0: c has other values"),
])  # fmt: skip
def test_a_question_that_makes_no_sense(changes: dict[str, Any], error: type[Exception], said: str) -> None:
    tables = sites(np.random.default_rng(7), rows=(50, 60)).tables
    asked = {"treatment": "t", "outcome": "y", "covariates": COVARIATES, **changes}
    with pytest.raises(error, match=said):
        federated_effect(tables, BOUNDS, **asked)


def test_rows_that_are_no_numbers_name_their_member() -> None:
    tables = sites(np.random.default_rng(8), rows=(50, 60)).tables
    tables["site-4"] = tables["site-4"].assign(c=np.nan)
    with pytest.raises(DataError, match="site-4"):
        _effect(tables)


def test_a_protocol_without_noise_claims_an_epsilon() -> None:
    assert Protocol(TARGET, DICTIONARY, Settings()).epsilon is None
    assert NoiseSource.from_os().kind == "os"
