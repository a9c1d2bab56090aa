from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.discovery import tables as module
from causaldao.models.discovery.tables import LocalTables, SharedTables, Tables, sensitivity, share


class Source:
    """Noise of a seed; a rounded Gaussian stands for the discrete one, which the node's own tests check."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def discrete_gaussian(self, variance: Fraction, size: int) -> Any:
        return np.rint(self.rng.normal(size=size) * math.sqrt(variance)).astype(np.int64)


def _frame(seed: int = 0, n: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"b": rng.integers(0, 3, n), "a": rng.integers(0, 2, n), "d": rng.integers(0, 4, n)})


def test_counts_are_those_of_the_rows_in_any_order_of_the_variables() -> None:
    frame = _frame()
    tables = LocalTables.from_data(frame, {"d": 5})
    assert tables.levels == (3, 2, 5)
    assert tables.count == 300
    for size in range(4):
        for variables in permutations(frame.columns, size):
            counts = tables.table(variables)
            expected = np.zeros([dict(zip(tables.names, tables.levels, strict=True))[v] for v in variables])
            for row in frame[list(variables)].itertuples(index=False):
                expected[tuple(row)] += 1
            assert counts.dtype == np.float64
            assert (counts == expected).all(), variables


@pytest.mark.parametrize("dense", [1 << 16, 1])
def test_strata_are_the_tables_without_empty_ones(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DENSE", dense)
    tables = LocalTables.from_data(_frame(n=20), {"d": 5})
    sizes = dict(zip(tables.names, tables.levels, strict=True))
    for given, within, others in (([], ["a"], ["b", "d"]), (["d"], ["a"], ["b"]), (["b", "d"], [], ["a"])):
        strata = tables.strata(given, within, others)
        assert strata is not None
        r = math.prod(sizes[name] for name in within)
        parts = [tables.table([*given, *within, other]).reshape(-1, r, sizes[other]) for other in others]
        whole, kept = np.concatenate(parts, axis=2), strata[strata.sum(axis=(1, 2)) > 0]
        assert (kept == whole[whole.sum(axis=(1, 2)) > 0]).all()
        assert dense > 1 or not given or len(strata) == len(kept)


def test_shared_tables_without_noise_are_the_local_ones() -> None:
    local = LocalTables.from_data(_frame())
    for m in (1, 2, 3):
        shared = share(local, m)
        assert shared.count == local.count
        for size in range(m + 1):
            for variables in permutations(local.names, size):
                assert (shared.table(variables) == local.table(variables)).all()
                assert shared.noise(variables) == 0
        given, within = list(local.names[1:m]), [] if m < 2 else [local.names[1]]
        given = given[1:]
        ours, theirs = (t.strata(given, within, [local.names[0]]) for t in (shared, local))
        assert ours is not None
        assert theirs is not None
        assert (ours == theirs).all()


def test_a_table_larger_than_what_was_shared_is_refused_naming_m() -> None:
    shared = share(LocalTables.from_data(_frame()), 2)
    with pytest.raises(DataError, match=r"m = 2 .* b, a, d are 3"):
        shared.table(["b", "a", "d"])
    assert shared.strata(["b"], ["a"], ["d"]) is None
    assert shared.most == 2


def test_one_record_moves_the_release_by_exactly_its_sensitivity() -> None:
    frame = _frame()
    for m in (1, 2, 3):
        levels = {"b": 3, "a": 2, "d": 4}
        with_it = share(LocalTables.from_data(frame, levels), m)
        without = share(LocalTables.from_data(frame.iloc[:-1], levels), m)
        moved = sum(((with_it.tables[key] - without.tables[key]) ** 2).sum() for key in with_it.tables)
        assert math.sqrt(moved) == pytest.approx(sensitivity(3, m), rel=1e-12)
        assert sensitivity(3, m) == math.sqrt(math.comb(3, m))


def test_the_stated_noise_is_the_noise_of_every_margin() -> None:
    frame = _frame()
    exact = LocalTables.from_data(frame)
    drawn: dict[tuple[str, ...], list[Any]] = {}
    for seed in range(150):
        noisy = share(exact, 2, sigma=8, noise=Source(seed))
        for size in range(3):
            for variables in combinations(exact.names, size):
                error = noisy.table(variables) - exact.table(variables)
                drawn.setdefault(variables, []).append(error / noisy.noise(variables))
    for variables, errors in drawn.items():
        squares = np.square(errors)
        assert abs(squares.mean() - 1) < 4 * math.sqrt(2 / squares.size), variables


def test_averaging_uses_every_table_that_holds_a_variable() -> None:
    noisy = share(LocalTables.from_data(_frame()), 2, sigma=8, noise=Source(0))
    # a cell of b is a sum of 2 cells of (b, a) and of 4 of (b, d)
    assert noisy.noise(["b"]) == pytest.approx(8 / math.sqrt(1 / 2 + 1 / 4))
    assert noisy.noise(["a", "b"]) == 8


def test_columns_that_are_not_codes_are_cut_and_bounds_make_equal_widths() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=4000)
    frame = pd.DataFrame({"x": values, "y": values, "k": rng.integers(0, 2, 4000)})
    tables = LocalTables.from_data(frame, bins=4, bounds={"y": (-2.0, 2.0)})
    assert tables.levels == (4, 4, 2)
    assert tables.table(["x"]).tolist() == [1000] * 4
    assert tables.table(["y"]).tolist() == np.histogram(values.clip(-1.99, 1.99), np.linspace(-2, 2, 5))[0].tolist()
    many_zeros = pd.DataFrame({"z": np.where(values < 0.5, 0.0, values), "k": frame["k"]})
    assert LocalTables.from_data(many_zeros, bins=4).levels[0] == 2, "quantiles that coincide are one cut"


def test_categories_and_truth_values_are_codes() -> None:
    frame = pd.DataFrame({
        "c": pd.Categorical(["u", "v", "u", "u"], categories=["u", "v", "w"]), "t": [True, False, True, True],
    })  # fmt: skip
    tables = LocalTables.from_data(frame)
    assert tables.levels == (3, 2)
    assert tables.table(["c", "t"]).tolist() == [[0, 3], [1, 0], [0, 0]]


def test_the_rows_take_one_or_two_bytes_a_value_and_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHED", 100)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"v{i}": rng.integers(0, 4, 200) for i in range(8)})
    tables = LocalTables.from_data(frame, {"v0": 300})
    assert [codes.dtype.itemsize for codes in tables.codes] == [2] + [1] * 7
    for pair in combinations(tables.names, 2):
        tables.table(pair)
    assert tables._tables.size <= 100


@pytest.mark.parametrize(
    ("column", "levels", "expected"),
    [
        ([0.0, 1.0, np.nan, 1.0], None, "missing or infinite"),
        ([0, 1, None, 1], None, "missing or infinite"),
        ([1, 1, 1, 1], None, "constant"),
        ([1, 1, 1, 1], 2, "constant"),
        ([0, 1, 3, 1], 3, r"level 3, but 3 levels \(0 to 2\)"),
        ([0.5, 1.0, 0.0, 1.0], None, r"such as 0\.5.*give bins"),
        ([-1, 1, 0, 1], None, "such as -1"),
        ([0, 1, 5000, 1], None, "such as 5000"),
        (["u", "v", "u", "u"], None, "not a number"),
        (pd.Categorical(["u", None, "v", "u"]), None, "missing or infinite"),
    ],
)
def test_a_bad_column_is_refused_by_name(column: Any, levels: int | None, expected: str) -> None:
    frame = pd.DataFrame({"good": [0, 1, 0, 1], "odd": column})
    with pytest.raises(DataError, match=f"'odd'.*{expected}"):
        LocalTables.from_data(frame, None if levels is None else {"odd": levels})


def test_bad_options_are_refused_with_the_choices() -> None:
    frame = _frame()
    with pytest.raises(MisuseError, match=r"no columns \['zz'\].*b, a, d"):
        LocalTables.from_data(frame, {"zz": 2})
    with pytest.raises(MisuseError, match="'a' is declared with 1 levels"):
        LocalTables.from_data(frame, {"a": 1})
    with pytest.raises(MisuseError, match="bins is 1"):
        LocalTables.from_data(frame, bins=1)
    with pytest.raises(MisuseError, match="low < high"):
        LocalTables.from_data(frame, bins=3, bounds={"a": (1.0, 1.0)})
    with pytest.raises(MisuseError, match="'a' has bounds, but bins is not given"):
        LocalTables.from_data(frame, bounds={"a": (0.0, 1.0)})
    with pytest.raises(MisuseError, match="'a' has levels and bounds"):
        LocalTables.from_data(frame, {"a": 2}, bins=3, bounds={"a": (0.0, 1.0)})
    with pytest.raises(ConfigurationError, match="must differ"):
        LocalTables.from_data(frame.set_axis(["a", "a", "d"], axis=1))
    with pytest.raises(DataError, match="no rows"):
        LocalTables.from_data(frame.iloc[:0])
    tables = LocalTables.from_data(frame)
    with pytest.raises(MisuseError, match="no variable 'zz'"):
        tables.table(["zz"])
    with pytest.raises(MisuseError, match="names one twice"):
        tables.table(["a", "a"])
    with pytest.raises(MisuseError, match=r"m is 4.*1 to 3"):
        share(tables, 4)
    with pytest.raises(MisuseError, match="a source of noise"):
        share(tables, 2, sigma=1)


def test_too_many_cells_are_refused_naming_the_bound() -> None:
    rng = np.random.default_rng(0)
    wide = LocalTables.from_data(pd.DataFrame(rng.integers(0, 40, (5000, 4))))
    with pytest.raises(DataError, match=r"2560000 cells, of at most 1048576"):
        wide.table(["0", "1", "2", "3"])
    assert wide.strata(["0", "1"], ["2"], ["3"]) is None
    with pytest.raises(DataError, match="of at most 16777216"):
        share(LocalTables.from_data(pd.DataFrame(rng.integers(0, 300, (900, 20)))), 2)


def test_shared_tables_that_do_not_fit_are_refused() -> None:
    good: Tables = share(LocalTables.from_data(_frame()), 2)
    assert isinstance(good, SharedTables)
    fewer = dict(list(good.tables.items())[1:])
    with pytest.raises(DataError, match="3 tables of 2 of 3"):
        SharedTables(good.names, good.levels, 2, fewer)
    with pytest.raises(DataError, match=r"table of b, a must be finite float64 of shape \(3, 2\)"):
        SharedTables(good.names, good.levels, 2, good.tables | {(0, 1): np.full((3, 2), np.nan)})
    with pytest.raises(DataError, match="noise of the tables is -1"):
        SharedTables(good.names, good.levels, 2, good.tables, -1.0)
    with pytest.raises(ConfigurationError, match="2 levels or more"):
        SharedTables(good.names, (3, 2, 1), 2, good.tables)
    with pytest.raises(DataError, match="too few for their noise"):
        SharedTables(good.names, good.levels, 2, {k: v - 100 for k, v in good.tables.items()}, 50.0)
