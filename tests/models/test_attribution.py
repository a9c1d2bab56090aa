"""Attribution: the axioms of Shapley on games whose values are written down, and planted causes found again."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.errors import MisuseError
from causaldao.models.attribution import attribute_anomaly, attribute_change, root_cause, shapley
from causaldao.models.fitting import Training, fit
from causaldao.models.graph import CausalGraph
from causaldao.models.intervention import Intervention
from tests.counts import count
from tests.models.structural_models import GRAPH, NAMES, bits, line

TRIPLE = CausalGraph.dag([("a", "b"), ("b", "c"), ("a", "c")])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def game(players: tuple[str, ...], seed: int) -> dict[frozenset[str], float]:
    rng = np.random.default_rng(seed)
    found = {frozenset[str](): 0.0}
    for player in players:
        found |= {coalition | {player}: 0.0 for coalition in found}
    return {coalition: float(rng.normal()) for coalition in found}


def test_shares_are_not_the_mean_over_all_orders() -> None:
    players = ("a", "b", "c", "d")
    value = game(players, 0)
    found = shapley(players, value.__getitem__)
    for player in players:
        gains = []
        for order in permutations(players):
            before = frozenset(order[: order.index(player)])
            gains.append(value[before | {player}] - value[before])
        assert found.shares[player] == pytest.approx(np.mean(gains), abs=1e-12)
    assert found.exact


@pytest.mark.parametrize("size", [1, 2, 6, 11])
def test_shares_do_not_sum_to_the_whole(size: int) -> None:
    players = tuple(f"p{k}" for k in range(size))
    value = game(players, size)
    found = shapley(players, value.__getitem__, generator=generator())
    assert sum(found.shares.values()) == pytest.approx(found.total, abs=1e-9)
    assert found.total == pytest.approx(value[frozenset(players)] - value[frozenset()])
    assert found.exact == (size <= 10)


@pytest.mark.parametrize("size", [4, 12])
def test_twins_differ_or_a_null_player_gets_a_share(size: int) -> None:
    players = ("twin", "twain", "null", *(f"p{k}" for k in range(size - 3)))
    weight = {player: k + 1.0 for k, player in enumerate(players)} | {"twin": 3.0, "twain": 3.0, "null": 0.0}

    def value(coalition: frozenset[str]) -> float:
        total = sum(weight[player] for player in coalition)
        return math.sin(total) + total**2

    found = shapley(players, value, generator=generator(), permutations=400)
    assert found.shares["null"] == pytest.approx(0.0, abs=1e-9)
    apart = found.shares["twin"] - found.shares["twain"]
    assert abs(apart) <= 1e-9 + 4 * math.hypot(found.errors["twin"], found.errors["twain"])


def test_sampled_shares_stray_from_exact_ones_by_more_than_their_error() -> None:
    players = tuple(f"p{k}" for k in range(11))
    weight = {player: (k - 4.0) for k, player in enumerate(players)}

    def value(coalition: frozenset[str]) -> float:
        return sum(weight[p] for p in coalition) + 0.3 * sum(weight[p] for p in coalition) ** 2

    found = shapley(players, value, generator=generator(), permutations=100)
    whole = sum(weight.values())
    for player in players:  # of (Σ w)²: w_j times the whole sum
        exact = weight[player] + 0.3 * weight[player] * whole
        assert abs(found.shares[player] - exact) <= 4 * found.errors[player] + 1e-9
    with pytest.raises(MisuseError, match="11 players are more than 10"):
        shapley(players, value)
    with pytest.raises(MisuseError, match="each once"):
        shapley(("a", "a"), value)


def shifted(deltas: dict[str, float]) -> pd.DataFrame:
    rows = line().sample(3000, Intervention.shift(**deltas), generator(7))
    return pd.DataFrame(rows.numpy(), columns=list(NAMES))


def test_a_change_is_laid_at_another_door() -> None:
    """On a line, the share of a shift of one mechanism's mean is that shift times its total effect."""
    before = fit(shifted({}), GRAPH, "linear", generator=generator()).model
    after = fit(shifted({"x": 1.0, "y": -2.0}), GRAPH, "linear", generator=generator()).model
    found = attribute_change(before, after, "w", generator=generator())
    assert found.shares["x"] == pytest.approx(1.0 * -1.5 * 2.0 * -0.4, abs=0.02)
    assert found.shares["y"] == pytest.approx(-2.0 * -0.4, abs=0.02)
    assert found.shares["z"] == pytest.approx(0.0, abs=0.02)
    assert sum(found.shares.values()) == pytest.approx(found.total)
    same = attribute_change(before, before, "w", "variance", generator=generator())
    assert set(same.shares.values()) == {0.0}
    assert "w" not in attribute_change(before, after, "y", generator=generator()).shares  # it is no ancestor


def test_kl_is_negative_or_blind_to_a_change_of_spread() -> None:
    wide = shifted({})
    wide["z"] = 2 * (wide["z"] - wide["z"].mean()) + wide["z"].mean()
    before = fit(shifted({}), GRAPH, "linear", generator=generator()).model
    after = fit(wide, GRAPH, {"z": "linear", **dict.fromkeys("xmyw", "linear")}, generator=generator()).model
    found = attribute_change(before, after, "z", "kl", generator=generator())
    assert found.total > 0.2
    assert found.shares["z"] == pytest.approx(found.total)
    assert attribute_change(before, after, "z", lambda rows: float(rows.median()), generator=generator()).total < 0.2
    with pytest.raises(MisuseError, match="choose mean, variance, kl"):
        attribute_change(before, after, "z", "mode", generator=generator())
    with pytest.raises(MisuseError, match="differ in graph"):
        attribute_change(before, bits(), "z", generator=generator())


@pytest.mark.parametrize("culprit", ["z", "x", "y", "w"])
def test_an_anomaly_is_laid_at_another_door(culprit: str) -> None:
    model = line()
    noise = [torch.full((1, 1), 0.1, dtype=torch.float64) for _ in NAMES]
    noise[NAMES.index(culprit)] += {"z": 35.0, "x": 8.0, "y": 150.0, "w": 15.0}[culprit]
    record = dict(zip(NAMES, model.solve(noise, None)[:, 0].tolist(), strict=True))
    found = attribute_anomaly(model, record, "w", n=1000, generator=generator())
    assert found.ranked[0] == culprit
    assert found.shares[culprit] > 0.6 * found.total
    assert sum(found.shares.values()) == pytest.approx(found.total)
    assert found.total == pytest.approx(math.log(1001), rel=0.15)


def _tables(seed: int, changed: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    found = []
    for moved in ("", changed):
        a, noise = rng.normal(size=1500) + 0.5 * (moved == "a"), rng.normal(size=(2, 1500))
        b = np.sin(a) + 0.5 * noise[0] + 0.4 * (moved == "b")
        c = (rng.random(1500) < 1 / (1 + np.exp(-2 * b - a - 1.0 * (moved == "c")))).astype(float)
        found.append(pd.DataFrame({"a": a, "b": b, "c": c}))
    return found[0], found[1]


def test_a_planted_change_is_not_found() -> None:
    tried = [(seed, name) for seed in range(count(1, 6)) for name in ("a", "b", "c", "")]
    for seed, changed in tried:
        before, after = _tables(seed, changed)
        short = None if count(0, 1) else Training(hidden=8, epochs=10, steps=100)  # too short for a fair share
        found = root_cause(before, after, TRIPLE, "c", generator=generator(seed), n=1000, training=short)
        assert found.changed == ((changed,) if changed else ()), (seed, changed, found)
        if changed:
            assert found.shares.ranked[0] == changed


def test_tables_that_do_not_match_pass() -> None:
    before, after = _tables(0, "a")
    with pytest.raises(MisuseError, match="c, d"):
        root_cause(before, after.rename(columns={"c": "d"}), TRIPLE, "c", generator=generator())
    with pytest.raises(MisuseError, match="no variable 'q'"):
        attribute_change(line(), line(), "q", generator=generator())
    with pytest.raises(MisuseError, match="different variables: m, w, y, z"):
        attribute_anomaly(line(), {"x": 1.0}, "x", generator=generator())
    lonely = after[after["c"] == 1]  # a level that only one table has: the units of both tables serve
    with pytest.raises(MisuseError, match="level=2"):
        root_cause(before, lonely, TRIPLE, "c", generator=generator(), level=2.0)
