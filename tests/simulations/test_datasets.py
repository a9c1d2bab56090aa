"""What would make a demonstration wrong: other rows than the source's, rows lost or dealt twice."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.simulations import datasets


def numbered(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"record": np.arange(rows), "value": np.arange(rows) / 7})


def slope(x: pd.Series, y: pd.Series) -> float:
    return float(np.cov(x, y)[0, 1] / np.var(x, ddof=1))


def test_the_rand_rows_are_not_those_of_the_source() -> None:
    frame = datasets.load("rand-hie")
    assert frame.shape == (20190, 10)
    assert list(frame.columns) == [
        "visits",
        "log_coinsurance",
        "deductible_plan",
        "log_incentive",
        "log_max_expenditure",
        "physical_limitation",
        "chronic_diseases",
        "health_good",
        "health_fair",
        "health_poor",
    ]
    assert not frame.isna().any().any()


def test_the_reference_answer_has_changed() -> None:
    frame = datasets.load("rand-hie")
    assert slope(frame["log_coinsurance"], np.log1p(frame["visits"])) == pytest.approx(-0.0433, abs=5e-5)


def test_physical_limitation_is_taken_for_a_flag() -> None:
    limitation = datasets.load("rand-hie")["physical_limitation"]
    assert limitation.between(0, 1).all()
    assert int((~limitation.isin([0, 1])).sum()) == 1052


def test_two_loads_share_one_frame() -> None:
    frame = datasets.load("rand-hie")
    frame.loc[0, "visits"] = 10_000
    assert datasets.load("rand-hie")["visits"].max() == 77


def test_an_unknown_name_does_not_list_the_choices() -> None:
    with pytest.raises(MisuseError, match=r"'rand'.*rand-hie"):
        datasets.load("rand")


def test_a_missing_library_does_not_say_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels.datasets.randhie", None)
    with pytest.raises(ConfigurationError, match=r"causaldao\[demo\]"):
        datasets.load("rand-hie")


def test_the_tables_of_causaldata_are_looked_for_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install causaldata"):
        datasets.load("nhefs")


@pytest.mark.skipif(find_spec("causaldata") is None, reason="causaldata, which has the tables, is in the extra `dev`")
def test_the_rows_of_causaldata_are_not_those_of_the_source() -> None:
    frame = datasets.load("nhefs")
    assert frame.shape == (1566, 16)
    assert frame.groupby("quit")["weight_gain"].mean().to_list() == pytest.approx([1.98, 4.53], abs=0.005)
    trial = datasets.load("nsw")
    assert (trial.shape, datasets.load("cps").shape) == ((445, 10), (15992, 10))
    arms = trial.groupby("treat")["re78"].mean()
    assert arms[1] - arms[0] == pytest.approx(1794.34, abs=0.01)


@pytest.mark.parametrize(("rows", "members", "ratio"), [(20190, 10, 4.0), (997, 7, 2.5), (100, 1, 4.0), (90, 3, 1.0)])
def test_a_row_is_lost_or_dealt_twice(rows: int, members: int, ratio: float) -> None:
    frame = numbered(rows)
    parts = datasets.split(frame, members, ratio=ratio, generator=np.random.default_rng(1))
    assert len(parts) == members
    together = pd.concat(parts).sort_values("record").reset_index(drop=True)
    pd.testing.assert_frame_equal(together, frame)
    assert all(list(part.index) == list(range(len(part))) for part in parts)


@pytest.mark.parametrize(("rows", "members", "ratio"), [(20190, 10, 4.0), (997, 7, 2.5), (5003, 4, 8.0)])
def test_the_largest_member_is_too_large(rows: int, members: int, ratio: float) -> None:
    parts = datasets.split(numbered(rows), members, ratio=ratio, generator=np.random.default_rng(1))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= ratio * min(sizes)
    assert max(sizes) > 0.95 * ratio * min(sizes)
    assert sizes == sorted(sizes, reverse=True)
    steps = np.array(sizes[:-1]) / np.array(sizes[1:])
    assert steps == pytest.approx(ratio ** (1 / (members - 1)), rel=0.02)


def test_the_rows_are_dealt_in_the_order_of_the_file() -> None:
    parts = datasets.split(numbered(2000), 4, generator=np.random.default_rng(1))
    means = [part["record"].mean() for part in parts]
    assert means == pytest.approx([1000] * 4, abs=120)


def test_the_same_seed_deals_otherwise() -> None:
    def dealt(seed: int) -> list[list[int]]:
        parts = datasets.split(numbered(300), 3, generator=np.random.default_rng(seed))
        return [part["record"].tolist() for part in parts]

    assert dealt(5) == dealt(5)
    assert dealt(5) != dealt(6)


def test_stated_sizes_are_not_kept() -> None:
    parts = datasets.split(numbered(100), [50, 20, 30], generator=np.random.default_rng(1))
    assert [len(part) for part in parts] == [50, 20, 30]


def test_a_member_too_small_to_take_part_is_dealt() -> None:
    with pytest.raises(DataError, match=r"have 15 rows of 100, fewer than the minimum of 20"):
        datasets.split(numbered(100), 3, generator=np.random.default_rng(1))


@pytest.mark.parametrize("members", [0, -1, [], [50, 49], [101, -1]])
def test_an_impossible_dealing_is_tried(members: int | list[int]) -> None:
    with pytest.raises(MisuseError):
        datasets.split(numbered(100), members, generator=np.random.default_rng(1), minimum=0)


@pytest.mark.parametrize("ratio", [0.5, float("inf"), float("nan")])
def test_an_impossible_ratio_is_tried(ratio: float) -> None:
    with pytest.raises(MisuseError, match="ratio"):
        datasets.split(numbered(100), 2, ratio=ratio, generator=np.random.default_rng(1))


def test_the_linear_model_has_other_coefficients() -> None:
    weights = {("x", "m"): 0.8, ("m", "y"): -0.5, ("x", "y"): 0.3}
    frame = datasets.linear_gaussian(weights, 40_000, np.random.default_rng(2), nodes=("y", "m", "x", "lone"))
    assert list(frame.columns) == ["y", "m", "x", "lone"]
    assert slope(frame["x"], frame["m"]) == pytest.approx(0.8, abs=0.02)
    assert slope(frame["x"], frame["y"]) == pytest.approx(0.3 - 0.4, abs=0.02)
    covariance = frame.cov().to_numpy()
    assert covariance[2, 2] == pytest.approx(1.0, abs=0.03)
    assert covariance[3, :3] == pytest.approx([0, 0, 0], abs=0.03)


def test_a_linear_model_with_a_cycle_is_drawn_from() -> None:
    with pytest.raises(ConfigurationError):
        datasets.linear_gaussian({("a", "b"): 1.0, ("b", "a"): 1.0}, 10, np.random.default_rng(1))
    with pytest.raises(MisuseError, match="n=0"):
        datasets.linear_gaussian({("a", "b"): 1.0}, 0, np.random.default_rng(1))
