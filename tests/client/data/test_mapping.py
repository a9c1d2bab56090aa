"""What would go wrong with a mapping: a code for "missing" taken as a value, a word read the wrong way round, months
taken as years.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from causaldao.client.data.checks import check, conform
from causaldao.client.data.mapping import Column, apply, faults, mismatches
from causaldao.models.discovery.evidence import Dictionary, Variable
from causaldao.models.discovery.features import FeatureMap

DICTIONARY = Dictionary(
    (
        Variable("age", "continuous", (0, 120), "years"),
        Variable("smoker", "binary", (0, 1)),
        Variable("visits", "count", (0, 400), "visits"),
    ),
    clip=4.0,
)
MAPPING = {
    "age": Column(column="AGE_M", kind="continuous", unit="Years ", scale=1 / 12),
    "smoker": Column(column="smokes", kind="binary", levels={"no": 0, "yes": 1}),
    "visits": Column(column="n", kind="count", unit="visits", missing=(-9, "NA")),
}


def frame(**columns: Any) -> pd.DataFrame:
    good = {"AGE_M": [120.0, 240.0], "smokes": ["no", "yes"], "n": [0.0, 3.0]}
    return pd.DataFrame({**good, **columns})


def said(column: dict[str, Any], variable: str = "age") -> list[str]:
    changed = {**MAPPING, variable: Column.model_validate({**MAPPING[variable].model_dump(), **column})}
    return [str(mismatch) for mismatch in mismatches(changed, DICTIONARY)]


def test_a_good_mapping_gives_the_studys_variables_in_its_units() -> None:
    assert mismatches(MAPPING, DICTIONARY) == []
    assert faults(list(frame().columns), MAPPING, DICTIONARY) == {}
    mapped = apply(frame(extra=[1, 2]), MAPPING, DICTIONARY)
    assert mapped.to_dict("list") == {"age": [10.0, 20.0], "smoker": [0.0, 1.0], "visits": [0.0, 3.0]}
    assert all(mapped[name].dtype == np.float64 for name in DICTIONARY.names)
    assert check(mapped, DICTIONARY) == []


def test_without_a_mapping_columns_are_taken_by_their_own_names() -> None:
    table = pd.DataFrame({"age": [1.0]})
    assert apply(table, {}, DICTIONARY) is table
    assert mismatches({}, DICTIONARY) == []


@pytest.mark.parametrize("cells", [[-9.0, 3.0], ["-9", "3"], ["-9.0", 3], ["NA", "3"], [None, 3.0], [math.nan, 3.0]])
def test_a_code_for_missing_is_not_a_value(cells: list[Any]) -> None:
    mapped = apply(
        frame(n=pd.Series(cells, dtype=None if isinstance(cells[0], float) else object)), MAPPING, DICTIONARY
    )
    assert math.isnan(mapped["visits"][0])
    assert mapped["visits"][1] == 3.0
    assert [(p.column, p.fault, p.rows) for p in check(mapped, DICTIONARY)] == [("visits", "no value", (1,))]


def test_missing_values_are_not_scaled_into_values() -> None:
    aged = {**MAPPING, "age": MAPPING["age"].model_copy(update={"missing": (-12.0,), "offset": 1.0})}
    mapped = apply(frame(AGE_M=[-12.0, 120.0]), aged, DICTIONARY)
    assert math.isnan(mapped["age"][0])
    assert mapped["age"][1] == 11.0


@pytest.mark.parametrize("cells", [["no", "maybe"], [0.0, 9.0], ["0", "9"], ["no", 1]])
def test_a_cell_that_is_no_level_is_reported_and_not_taken_as_a_number(cells: list[Any]) -> None:
    codes = Column(column="smokes", kind="binary", levels={"no": 0, "yes": 1, "0": 0})
    mapped = apply(frame(smokes=cells), {**MAPPING, "smoker": codes}, DICTIONARY)
    assert mapped["smoker"][0] == 0.0
    assert [(p.column, p.fault, p.rows) for p in check(mapped, DICTIONARY)] == [("smoker", "no number", (2,))]
    assert "not among the levels" in str(check(mapped, DICTIONARY)[0])
    assert conform(mapped, DICTIONARY)["smoker"].tolist() == [0.0, 0.5]


def test_levels_of_numbers_are_found_however_they_are_written() -> None:
    column = Column(column="smokes", kind="binary", levels={"8507": 0, "08532": 1})
    for cells in ([8507.0, 8532.0], ["8507", "8532"], [8507, 8532]):
        mapped = apply(frame(smokes=cells), {**MAPPING, "smoker": column}, DICTIONARY)
        assert mapped["smoker"].tolist() == [0.0, 1.0]


def test_a_number_too_large_to_scale_stops_nothing() -> None:
    large = {**MAPPING, "age": MAPPING["age"].model_copy(update={"scale": 1e10})}
    for cells in ([1e308, -1e308], ["1e308", "-1e308"]):
        mapped = apply(frame(AGE_M=cells), large, DICTIONARY)
        assert mapped["age"].tolist() == [math.inf, -math.inf]
        assert conform(mapped, DICTIONARY)["age"].tolist() == [120.0, 0.0]


def test_rows_are_mapped_one_by_one() -> None:
    table = frame(AGE_M=[1.0, -9.0], n=["NA", "4"])
    whole = apply(table, MAPPING, DICTIONARY)
    for place in range(2):
        alone = apply(table.iloc[[place]], MAPPING, DICTIONARY)
        assert np.array_equal(alone.to_numpy(dtype=float), whole.iloc[[place]].to_numpy(dtype=float), equal_nan=True)


def test_a_mapping_to_an_unknown_column_names_the_nearest() -> None:
    found = faults(["AGE_MO", "smokes", "n", "n"], MAPPING, DICTIONARY)
    assert "no column 'AGE_M'" in found["age"]
    assert "Did you mean 'AGE_MO'?" in found["age"]
    assert "2 columns 'n'" in found["visits"]
    assert "smoker" not in found
    assert list(apply(frame().drop(columns="AGE_M"), MAPPING, DICTIONARY).columns) == ["smoker", "visits"]


def test_months_are_not_years() -> None:
    (problem,) = said({"unit": "months"})
    assert "'months'" in problem
    assert "'years'" in problem
    assert 'scale = 0.08333333333333333 and unit = "years"' in problem


def test_every_mismatch_is_found_at_once() -> None:
    wrong = {
        "age": Column(column="a", kind="binary", unit="fortnights"),
        "visits": Column(column="n", kind="continuous", unit="VISITS"),
    }
    found = [(m.variable, m.what) for m in mismatches(wrong, DICTIONARY)]
    assert found == [("age", "kind"), ("age", "unit"), ("smoker", "missing"), ("visits", "kind")]


def test_a_unit_that_was_not_filled_in_is_asked_for_and_case_is_not() -> None:
    assert said({"unit": "YEARS"}) == []
    assert 'Write unit = "years"' in said({"unit": ""})[0]


def test_a_study_without_a_unit_asks_for_none() -> None:
    assert said({"unit": "cigarettes"}, "smoker") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": {"M": "male"}},
        {"levels": {"M": math.inf}},
        {"levels": {"M": True}},
        {"levels": {"1": 0, "1.0": 1}},
        {"missing": [True]},
        {"scale": 0},
        {"scale": "12"},
        {"kind": "number"},
        {"colum": "x"},
        {"column": ""},
    ],
    ids=str,
)
def test_a_mapping_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Column.model_validate({"column": "x", "kind": "binary", **wrong})


LEVELLED = FeatureMap((Variable("ward", "categorical", levels=("north", "7")),), "one-hot")


@pytest.mark.parametrize(
    ("cells", "levels"),
    [
        (["Nord", "Süd", "West", None], {"Nord": 0, "Süd": 1}),
        ([1.0, 2.0, 3.0, math.nan], {"1": 0, "2": 1}),
    ],
)
def test_words_of_an_institution_become_the_levels_of_the_study(cells: list[Any], levels: dict[str, float]) -> None:
    column = Column.model_validate({"column": "w", "kind": "categorical", "levels": levels})
    found = apply(pd.DataFrame({"w": cells}), {"ward": column}, LEVELLED)["ward"].tolist()
    assert found[:2] == ["north", "7"]
    assert conform(pd.DataFrame({"ward": found}), LEVELLED)["ward"].tolist() == ["north", "7", "north", "north"]
    wrong = check(pd.DataFrame({"ward": found}), LEVELLED)
    told = [(problem.fault, problem.rows) for problem in wrong]
    assert told == [("no value", (4,)), ("a value that is no level", (3,))]
    assert "north, 7" in str(wrong[1])


@pytest.mark.parametrize("cells", [["north", "7", " 7 "], ["north", 7, 7.0]])
def test_levels_that_are_numbers_are_found_however_they_are_written(cells: list[Any]) -> None:
    frame = pd.DataFrame({"ward": pd.Series(cells, dtype=object)})
    assert check(frame, LEVELLED) == []
    assert conform(frame, LEVELLED)["ward"].tolist() == ["north", "7", "7"]
