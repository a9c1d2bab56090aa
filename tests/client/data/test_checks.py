"""What would go wrong with data: a fault found only after the first was mended, a record that stops a
running study.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from causaldao.client.data.checks import Problem, check, conform, require
from causaldao.client.data.sources import read
from causaldao.errors import DataError
from causaldao.models.discovery.evidence import Dictionary, Variable

DICTIONARY = Dictionary(
    (
        Variable("age", "continuous", (0, 120), "years"),
        Variable("bmi", "continuous", (10, 60)),
        Variable("smoker", "binary", (0, 1)),
        Variable("visits", "count", (0, 400), transform="log1p"),
        Variable("dose", "continuous", (0, 1)),
    ),
    clip=6.0,
)
GOOD: dict[str, list[float]] = {
    "age": [30.0, 120.0],
    "bmi": [10.0, 60.0],
    "smoker": [0, 1],
    "visits": [0, 400],
    "dose": [0.0, 1.0],
}


def faults(frame: pd.DataFrame) -> set[tuple[str, str, tuple[int, ...], int]]:
    return {(p.column, p.fault, p.rows, p.count) for p in check(frame, DICTIONARY)}


def test_good_data_at_the_bounds_have_no_problem() -> None:
    frame = pd.DataFrame({**GOOD, "unused": ["x", "y"]})
    assert check(frame, DICTIONARY) == []
    assert require(frame, DICTIONARY) == ()


def test_every_problem_is_reported_at_once_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("Age,bmi,bmi,smoker,visits,dose\n1,2,3,0,1.5,0.5\n1,2,3,2,inf,\n1,2,3,yes,-3,7\n1,2,3,,x,0.5\n")
    assert faults(read(path)) == {
        ("age", "the column is missing", (), 0),
        ("bmi", "the column is there 2 times", (), 0),
        ("smoker", "no number", (3,), 1),
        ("smoker", "no value", (4,), 1),
        ("smoker", "a value other than 0 and 1", (2,), 1),
        ("visits", "no number", (4,), 1),
        ("visits", "an infinite value", (2,), 1),
        ("visits", "a value that is no count", (1,), 1),
        ("visits", "a value out of bounds", (3,), 1),
        ("dose", "no value", (2,), 1),
        ("dose", "a value out of bounds", (3,), 1),
    }


def test_a_problem_names_value_bound_and_remedy() -> None:
    (problem,) = check(pd.DataFrame({**GOOD, "age": [30.0, 300.0]}), DICTIONARY)
    assert (problem.value, problem.bound, problem.warning) == ("300.0", "a value in [0, 120] years", True)
    assert str(problem) == (
        "warning: column 'age': a value out of bounds in 1 record(s), first row(s) 2, such as 300.0; "
        "expected a value in [0, 120] years. It will be clipped: check the unit, or ask for wider public "
        "bounds."
    )


def test_only_the_first_rows_are_listed_but_all_are_counted() -> None:
    frame = pd.DataFrame({name: np.full(1000, value[0]) for name, value in GOOD.items()})
    frame.loc[99:, "dose"] = math.nan
    (problem,) = check(frame, DICTIONARY)
    assert (problem.rows, problem.count, problem.value) == ((100, 101, 102, 103, 104), 901, "")


def test_out_of_bounds_is_a_warning_and_the_rest_are_errors() -> None:
    warned = require(pd.DataFrame({**GOOD, "bmi": [9.0, 61.0]}), DICTIONARY)
    assert [(p.column, p.count) for p in warned] == [("bmi", 2)]
    with pytest.raises(DataError, match=r"2 problem\(s\)") as caught:
        require(pd.DataFrame({**GOOD, "bmi": [9.0, math.nan], "smoker": [0.5, 1]}), DICTIONARY)
    assert len(caught.value.problems) == 3


def test_a_table_without_records_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("age,bmi,smoker,visits,dose\n")
    assert [(p.column, p.fault) for p in check(read(path), DICTIONARY)] == [("*", "the table has no records")]


def test_a_missing_column_is_matched_with_its_nearest_name() -> None:
    frame = pd.DataFrame(GOOD).rename(columns={"smoker": "smokers"})
    (problem,) = check(frame, DICTIONARY)
    assert problem.remedy == "Rename 'smokers'?"


@pytest.mark.parametrize("cell", ["n/a", "1_0", "", None, pd.Timestamp("2020-01-01"), [1.0], b"1"])
def test_what_is_no_number_is_found_in_any_kind_of_column(cell: object) -> None:
    frame = pd.DataFrame({**GOOD, "dose": pd.Series([0.5, cell], dtype=object)})
    assert [(p.column, p.rows) for p in check(frame, DICTIONARY)] == [("dose", (2,))]


def test_nullable_columns_are_read_as_numbers() -> None:
    frame = pd.DataFrame({**GOOD, "visits": pd.array([3, None], dtype="Int64"), "smoker": [True, False]})
    assert [(p.column, p.fault) for p in check(frame, DICTIONARY)] == [("visits", "no value")]


def test_conform_maps_any_record_into_the_bounds_and_leaves_good_ones() -> None:
    cells = [5.0, -0.0, math.inf, -math.inf, math.nan, "x", None, 1e308, "7"]
    frame = pd.DataFrame({name: pd.Series(cells, dtype=object) for name in GOOD}).set_axis(range(50, 59))
    fitted = conform(frame, DICTIONARY)
    assert fitted["age"].tolist() == [5.0, 0.0, 120.0, 0.0, 60.0, 60.0, 60.0, 120.0, 7.0]
    assert fitted.columns.tolist() == list(DICTIONARY.names)
    assert np.abs(DICTIONARY.encode(fitted)).max() <= 1.0
    good = pd.DataFrame(GOOD)
    assert (conform(good, DICTIONARY) == good).all(axis=None)


def test_conform_treats_each_record_alone() -> None:
    frame = pd.DataFrame({name: pd.Series([value[0], "x", value[1]], dtype=object) for name, value in GOOD.items()})
    whole = conform(frame, DICTIONARY)
    for place in range(3):
        assert (conform(frame.iloc[[place]], DICTIONARY).to_numpy() == whole.iloc[[place]].to_numpy()).all()


def test_conform_refuses_a_table_that_lacks_a_column_or_has_it_twice() -> None:
    good = pd.DataFrame(GOOD)
    with pytest.raises(DataError, match="'dose' is there 0 times"):
        conform(good.drop(columns="dose"), DICTIONARY)
    with pytest.raises(DataError, match="'age' is there 2 times"):
        conform(pd.concat([good, good[["age"]]], axis=1), DICTIONARY)


def test_a_problem_is_plain_text() -> None:
    assert str(Problem("x", "no value", "numbers", "Drop it.")) == "column 'x': no value; expected numbers. Drop it."
