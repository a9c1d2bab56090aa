"""Evidence read in public directions: the tests of numbers again, whatever the basis of a block, with exact noise."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.models.discovery.blocks import BlockTests, Whitened
from causaldao.models.discovery.evidence import Evidence, Variable, partial
from causaldao.models.discovery.features import FeatureMap
from causaldao.models.discovery.reading import Reading
from tests.counts import count

VARIABLES = (
    Variable("x", bounds=(-4, 4)),
    Variable("k", "categorical", levels=("a", "b", "c")),
    Variable("y", bounds=(-6, 6)),
)


def rows(rng: np.random.Generator, n: int) -> pd.DataFrame:
    k = rng.integers(0, 3, n)
    x = np.array([0.0, 1.0, 0.1])[k] + rng.normal(size=n)
    y = np.array([0.4, -0.5, 0.9])[k] + 0.3 * x + rng.normal(size=n)
    return pd.DataFrame({"x": x, "k": np.array(["a", "b", "c"], object)[k], "y": y})


def evidence(seed: int = 0, levels: tuple[str, ...] = ("a", "b", "c"), n: int = 4000) -> Evidence:
    variables = (VARIABLES[0], Variable("k", "categorical", levels=levels), VARIABLES[2])
    return Evidence.from_data(rows(np.random.default_rng(seed), n), FeatureMap(variables, "one-hot"))


def noised(exact: Evidence, sigma: float, rng: np.random.Generator) -> Evidence:
    drawn = torch.from_numpy(rng.normal(size=exact.moments.shape)) * sigma / math.sqrt(2)
    noise = torch.triu(drawn, 1)
    noise = noise + noise.T + torch.diag(drawn.diagonal() * math.sqrt(2))
    return Evidence(exact.names, exact.moments + noise, sigma, exact.centre, exact.half, exact.blocks)


def test_evidence_that_is_not_read_otherwise_is_tested_as_numbers() -> None:
    plain = Evidence.from_data(rows(np.random.default_rng(0), 500)[["x", "y"]])
    assert Reading().test(plain, "x", "y", ()) == partial(plain, "x", "y")
    assert Reading().along(plain, "x", "y", ()) == ()
    assert Reading().applied(plain) is plain


def test_the_first_canonical_pair_is_the_largest_correlation_that_any_directions_have() -> None:
    own = evidence()
    reading = Reading.of_blocks(own)
    best = reading.test(own, "k", "y", (), reading.along(own, "k", "y", ())).correlation
    angles = np.linspace(0, math.pi, 400)
    tried = [reading.test(own, "k", "y", (), ((math.cos(t), math.sin(t)), (1.0,))).correlation for t in angles]
    assert abs(best) == pytest.approx(max(map(abs, tried)), abs=1e-4)
    assert abs(best) >= max(map(abs, tried)) - 1e-12
    statistic = BlockTests(Whitened.of(own)).answers([(("k", "y"), ())])[0]
    assert statistic > 5  # and it is the dependence that discovery sees


def test_it_does_not_matter_which_level_is_left_out() -> None:
    found = []
    for levels in (("a", "b", "c"), ("c", "a", "b")):
        own = evidence(levels=levels)
        reading = Reading.of_blocks(own)
        for a, b, given in (("k", "y", ("x",)), ("x", "y", ("k",))):
            found.append(abs(reading.test(own, a, b, given, reading.along(own, a, b, given)).z))
    assert found[:2] == pytest.approx(found[2:], abs=1e-9)


def test_a_direction_has_one_sign_on_every_machine() -> None:
    for row in (row for rows in Reading.of_blocks(evidence()).directions.values() for row in rows):
        assert max(row, key=abs) > 0


def test_given_the_levels_an_effect_is_the_one_within_them() -> None:
    own, frame = evidence(), rows(np.random.default_rng(0), 4000)
    within = frame[["x", "y"]] - frame.groupby("k")[["x", "y"]].transform("mean")
    assert Reading.of_blocks(own).test(own, "x", "y", ("k",)).correlation == pytest.approx(
        np.corrcoef(within["x"], within["y"])[0, 1], abs=1e-3
    )


def test_the_error_that_noise_gives_a_test_of_directions_is_the_one_told() -> None:
    own, rng = evidence(n=20_000), np.random.default_rng(1)
    reading, sigma = Reading.of_blocks(own), 60.0
    along = reading.along(own, "k", "y", ("x",))
    told = reading.test(
        Evidence(own.names, own.moments, sigma, own.centre, own.half, own.blocks), "k", "y", ("x",), along
    ).privacy_error
    drawn = [reading.test(noised(own, sigma, rng), "k", "y", ("x",), along).z for _ in range(count(400, 4000))]
    assert np.std(drawn) == pytest.approx(told, rel=0.12)


def test_a_map_of_all_columns_is_read_with_exact_noise() -> None:
    exact = Evidence.from_data(rows(np.random.default_rng(2), 3000)[["x", "y"]])
    grow = torch.tensor([[1.4, 0.3], [0.3, 1.2]], dtype=torch.float64)
    reading = Reading.of_map(exact.names, grow)
    mapped = reading.applied(exact)
    assert reading.test(exact, "x", "y", ()).z == pytest.approx(partial(mapped, "x", "y").z, abs=1e-12)
    rng, sigma = np.random.default_rng(3), 40.0
    told = reading.test(Evidence(exact.names, exact.moments, sigma), "x", "y", ()).privacy_error
    drawn = [reading.test(noised(exact, sigma, rng), "x", "y", ()).z for _ in range(count(400, 4000))]
    assert np.std(drawn) == pytest.approx(told, rel=0.12)
