"""Evidence: the lattice keeps its bound, moments read back, and a partial correlation knows its errors."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.discovery import evidence
from causaldao.models.discovery.evidence import NO_POWER, Dictionary, Evidence, Variable, add, partial
from causaldao.signing import canonical
from tests.counts import count
from tests.models.random_models import names, noisy, population, sample, weights

DICTIONARY = Dictionary(
    (
        Variable("age", "continuous", (0, 100)),
        Variable("sick", "binary", (0, 1)),
        Variable("visits", "count", (0, 77), transform="log1p"),
    ),
    clip=2.5,
)


def _frame(rng: np.random.Generator, n: int) -> pd.DataFrame:
    return pd.DataFrame({
        "visits": rng.poisson(20, n), "age": rng.normal(50, 60, n), "sick": rng.integers(0, 2, n), "unused": "x",
    })  # fmt: skip


def test_a_record_is_longer_than_the_clip() -> None:
    """The sensitivity of the release: ‖x‖² ≤ C² on the lattice exactly, for any record at all."""
    rng = np.random.default_rng(0)
    for lattice in (16, 1000, 65536):
        for clip in (1.001, 1.5, 2.5, 3.999, 4.0):
            dictionary = Dictionary(DICTIONARY.variables, clip, lattice)
            frame = pd.concat([_frame(rng, 500), _corners()], ignore_index=True)
            found = dictionary.lattice_rows(frame)
            assert found.dtype == np.int64
            assert bool((found[:, 0] == lattice).all())
            squared = [sum(int(v) ** 2 for v in row) for row in found]
            assert max(squared) <= clip * lattice**2


def _corners() -> pd.DataFrame:
    low, high = {"age": 0, "sick": 0, "visits": 0}, {"age": 100, "sick": 1, "visits": 77}
    return pd.DataFrame([low, high, {**low, "age": 1e300}, {**high, "age": -1e300}])


def test_a_value_out_of_bounds_leaves_the_box() -> None:
    encoded = DICTIONARY.encode(_corners())
    assert np.abs(encoded).max() <= 1
    np.testing.assert_allclose(encoded[0], [-1, -1, -1])
    np.testing.assert_allclose(encoded[1], [1, 1, 1])
    middle = DICTIONARY.encode(pd.DataFrame({"age": [25.0], "sick": [1], "visits": [np.sqrt(78) - 1]}))
    np.testing.assert_allclose(middle, [[-0.5, 1, 0]], atol=1e-12)


def test_moments_are_not_those_of_the_rows() -> None:
    wide = Dictionary(DICTIONARY.variables, 4.0, 65536)
    frame = _frame(np.random.default_rng(1), 300)
    x = np.concatenate([np.ones((300, 1)), wide.encode(frame)], axis=1)
    exact = Evidence.from_data(frame, wide)
    np.testing.assert_allclose(exact.moments.numpy(), x.T @ x, atol=300 * 2 / 65536)
    assert exact.count == 300
    np.testing.assert_allclose(exact.mean().numpy(), x[:, 1:].mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(exact.covariance().numpy(), np.cov(x[:, 1:].T, bias=True), atol=1e-4)


def test_a_release_does_not_read_back() -> None:
    rng = np.random.default_rng(2)
    rows = DICTIONARY.lattice_rows(_frame(rng, 200))
    moments = rows.T @ rows
    found = Evidence.from_release(moments[np.triu_indices(4)], DICTIONARY, 5000)
    np.testing.assert_array_equal(found.moments.numpy() * DICTIONARY.lattice**2, moments)
    assert found.noise == 5000 / DICTIONARY.lattice**2
    assert found.count == 200
    for wrong in (moments[np.triu_indices(4)][:-1], moments):
        with pytest.raises(DataError, match="10 entries"):
            Evidence.from_release(wrong, DICTIONARY, 5000)
    with pytest.raises(DataError, match="counts -"):
        Evidence.from_release(-moments[np.triu_indices(4)], DICTIONARY, 5000)


def test_evidence_changes_in_json() -> None:
    found = noisy(population(weights(np.random.default_rng(3), 4, 2)), 3.0, np.random.default_rng(3))
    again = Evidence.from_json(json.loads(canonical(found.to_json())))
    assert again.to_json() == found.to_json()
    for change in ({"moments": [[1]]}, {"moments": "x"}, {"noise": None}, {"noise": -1}, {"names": ["a"]}):
        with pytest.raises((DataError, ConfigurationError)):
            Evidence.from_json({**found.to_json(), **change})


@pytest.mark.parametrize("size", [0, 1, 2, 4])
def test_a_partial_correlation_differs_from_the_inverse(size: int) -> None:
    rng = np.random.default_rng(4)
    for _ in range(count(50, 1000)):
        data = sample(rng, weights(rng, 7, 3.0), 60) + rng.normal(size=7) * 3
        labels = [str(name) for name in rng.permutation(names(7))][: size + 2]
        found = partial(Evidence.from_data(data), labels[0], labels[1], labels[2:])
        precision = np.linalg.inv(np.cov(data[labels].to_numpy().T))
        expected = -precision[0, 1] / math.sqrt(precision[0, 0] * precision[1, 1])
        assert found.correlation == pytest.approx(expected, abs=1e-9)
        assert found.z == pytest.approx(math.atanh(expected), rel=1e-7, abs=1e-9)
        assert found.sampling_error == pytest.approx((60 - size - 3) ** -0.5)
        assert found.privacy_error == 0


def test_the_privacy_error_is_not_that_of_noise() -> None:
    rng = np.random.default_rng(5)
    for _ in range(5):
        matrix = weights(rng, 5, 2.5)
        exact = population(matrix, 2000)
        labels = [str(name) for name in rng.permutation(names(5))]
        a, b, given = labels[0], labels[1], labels[2 : 2 + int(rng.integers(0, 4))]
        sigma = 4.0
        draws = [partial(noisy(exact, sigma, rng), a, b, given).z for _ in range(1500)]
        told = partial(Evidence(exact.names, exact.moments, sigma), a, b, given).privacy_error
        assert np.std(draws) == pytest.approx(told, rel=0.12)


def test_the_error_of_a_linear_map_is_not_that_of_noise() -> None:
    rng = np.random.default_rng(6)
    exact = population(weights(rng, 3, 2), 1000)
    root = rng.normal(size=(4, 4))
    gradient = torch.from_numpy(root + root.T)
    values = [float((gradient * (noisy(exact, 2.0, rng).moments - exact.moments)).sum()) for _ in range(4000)]
    assert np.std(values) == pytest.approx(Evidence(exact.names, exact.moments, 2.0).noise_of(gradient), rel=0.05)


def test_evidence_drowned_in_noise_has_power() -> None:
    moments = torch.diag(torch.tensor([100.0, -5.0, 50.0, 50.0], dtype=torch.float64))
    drowned = Evidence(("a", "b", "c"), moments, 60.0)
    assert partial(drowned, "a", "b") == NO_POWER
    assert partial(drowned, "b", "c", ["a"]) == NO_POWER
    assert partial(drowned, "b", "c").standard_error < math.inf
    few = Evidence(("a", "b"), torch.eye(3, dtype=torch.float64) * 3)
    assert partial(few, "a", "b") == NO_POWER
    with pytest.raises(DataError, match="'a'"):
        drowned.correlation()


def test_noise_is_worth_no_records() -> None:
    exact = population(weights(np.random.default_rng(7), 4, 1), 1000)
    worth = [Evidence(exact.names, exact.moments, sigma).n_eff for sigma in (0.0, 1.0, 10.0, 100.0)]
    assert worth[0] == pytest.approx(1000)
    assert worth == sorted(worth, reverse=True)
    assert worth[-1] < 200


def test_a_selection_is_of_other_variables() -> None:
    whole = Evidence.from_data(_frame(np.random.default_rng(8), 100)[["age", "sick", "visits"]])
    part = whole.select(["visits", "age"])
    assert part.names == ("visits", "age")
    assert partial(part, "age", "visits") == partial(whole, "age", "visits")
    assert float(part.centre[0]) == float(whole.centre[2])
    with pytest.raises(MisuseError, match="age, sick, visits"):
        whole.select(["height"])


@pytest.mark.parametrize("clip", [1.0, 0.5, 4.1, -1, float("nan")])
def test_a_clip_that_bounds_nothing(clip: float) -> None:
    with pytest.raises(ConfigurationError, match="clip"):
        Dictionary(DICTIONARY.variables, clip)


def test_a_variable_without_a_scale() -> None:
    for bounds in ((1, 1), (2, 1), (0, math.inf), (math.nan, 1), (-1.7e308, 1.7e308)):
        with pytest.raises(ConfigurationError, match="'x'"):
            Variable("x", bounds=bounds)
    with pytest.raises(ConfigurationError, match="log1p"):
        Variable("x", bounds=(-1, 1), transform="log1p")
    with pytest.raises(ConfigurationError, match="binary variable for each level"):
        Dictionary((Variable("x", "categorical", (0, 1), levels=("a", "b")),), 2.0)


@pytest.mark.parametrize(("frame", "words"), [
    (pd.DataFrame({"age": [1.0]}), "missing"),
    (pd.DataFrame({"age": ["x"], "sick": [1], "visits": [1]}), "not a number"),
    (pd.DataFrame({"age": [np.nan], "sick": [1], "visits": [1]}), "missing or infinite"),
    (pd.DataFrame({"age": [], "sick": [], "visits": []}), "no rows"),
])  # fmt: skip
def test_rows_that_are_no_numbers(frame: pd.DataFrame, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Evidence.from_data(frame, DICTIONARY)


def test_columns_that_are_read_together_and_in_parts_give_other_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = _frame(np.random.default_rng(6), 50)[["age", "visits"]].astype(float)
    monkeypatch.setattr(evidence, "_CELLS", 15)  # seven rows at once, and one at the end
    together, each = Evidence.from_data(frame), Evidence.from_data(frame.astype("Float64"))
    assert together.names == each.names
    for name in ("moments", "centre", "half"):
        assert torch.equal(getattr(together, name), getattr(each, name)), name


def test_a_constant_column() -> None:
    with pytest.raises(DataError, match="'b'"):
        Evidence.from_data(pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 3.0]}))


@pytest.mark.parametrize("moments", [
    torch.eye(2, dtype=torch.float64), torch.eye(3), torch.full((3, 3), torch.nan, dtype=torch.float64),
    -torch.eye(3, dtype=torch.float64),
])  # fmt: skip
def test_moments_that_are_none(moments: torch.Tensor) -> None:
    with pytest.raises((ConfigurationError, DataError)):
        Evidence(("a", "b"), moments)
    with pytest.raises(ConfigurationError, match="differ"):
        Evidence(("a", "a"), torch.eye(3, dtype=torch.float64))


def test_moments_whose_halves_differ() -> None:
    moments = 9 * torch.eye(3, dtype=torch.float64)
    moments[1, 2] = 5
    with pytest.raises(DataError, match=r"symmetric.*differ by up to 5.*both halves"):
        Evidence(("a", "b"), moments)


def test_two_columns_of_one_name() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(9, 3)), columns=["a", "b", "a"])
    with pytest.raises(DataError, match="2 columns are named 'a'"):
        Evidence.from_data(frame)


def test_parts_add_to_the_evidence_of_all_rows_whatever_their_scales_and_orders() -> None:
    rng = np.random.default_rng(3)
    frames = [sample(rng, weights(rng, 4, 2), n) * 10.0**k + k for k, n in enumerate((50, 80, 30))]
    mixed = [frames[0], frames[1][frames[1].columns[::-1]], frames[2]]
    parts = [Evidence.from_data(frame) for frame in mixed]
    added = add(parts)
    z = (pd.concat(frames).to_numpy() - parts[0].centre.numpy()) / parts[0].half.numpy()
    rows = np.concatenate([np.ones((160, 1)), z], axis=1)
    assert added.names == tuple(names(4))
    assert added.moments.numpy() == pytest.approx(rows.T @ rows)


def test_noise_of_parts_adds_in_squares_and_only_on_one_scale() -> None:
    moments = 100 * torch.eye(3, dtype=torch.float64)
    parts = [Evidence(("a", "b"), moments, sigma) for sigma in (3.0, 4.0)]
    assert add(parts).noise == 5.0
    elsewhere = Evidence(("a", "b"), moments, 1.0, torch.ones(2).double(), torch.ones(2).double())
    with pytest.raises(DataError, match="under one dictionary"):
        add([*parts, elsewhere])
    with pytest.raises(MisuseError, match="a, c stand in some"):
        add([parts[0], Evidence(("c", "b"), moments)])
    with pytest.raises(MisuseError, match="no evidence to add"):
        add([])
