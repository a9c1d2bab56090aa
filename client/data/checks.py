"""Whether an institution's table fits a study's dictionary, said in full before the study starts.

`check` and `require` speak to the institution alone (`causaldao node dry-run`): their texts name rows and
values, and must never be sent. Once a study runs, `conform` makes any table of the right columns fit,
because refusing over one record would tell of that record.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causaldao.errors import DataError
from causaldao.models.discovery.evidence import FeatureRows, Variable

_SHOWN = 5
_TEXT, _ABSENT, _INFINITE = "no number", "no value", "an infinite value"
_NOT_BINARY, _NOT_COUNT = "a value other than 0 and 1", "a value that is no count"
_CLIPPED, _NO_LEVEL = "a value out of bounds", "a value that is no level"
_TEXTS = {  # fault: what was expected, and the remedy
    _TEXT: ("numbers", "Code the text as numbers, or give its levels in node.toml."),
    _ABSENT: ("a value in {range}", "Impute the values or drop those records."),
    _INFINITE: ("a value in {range}", "Correct the values or drop those records."),
    _NOT_BINARY: ("0 or 1", "Recode the variable, or ask for a study that declares it continuous."),
    _NOT_COUNT: (
        "a whole number in {range}",
        "Round at the source, or ask for a study that declares it continuous.",
    ),
    _NO_LEVEL: ("one of {levels}", "Correct the values, or list your words in the levels of node.toml."),
    _CLIPPED: ("a value in {range}", "It will be clipped: check the unit, or ask for wider public bounds."),
}


@dataclass(frozen=True)
class Problem:
    """One fault of one column. `rows` are the first affected records, counted from 1 below the header;
    `count` is how many.

    `value` is the first offending value, `bound` what was expected. A `warning` does not stop a study.
    """

    column: str
    fault: str
    bound: str
    remedy: str
    rows: tuple[int, ...] = ()
    count: int = 0
    value: str = ""
    warning: bool = False

    def __str__(self) -> str:
        where = f" in {self.count} record(s), first row(s) {', '.join(map(str, self.rows))}" if self.rows else ""
        value = f", such as {self.value}" if self.value else ""
        level = "warning: " if self.warning else ""
        return f"{level}column {self.column!r}: {self.fault}{where}{value}; expected {self.bound}. {self.remedy}"


def check(frame: pd.DataFrame, dictionary: FeatureRows) -> list[Problem]:
    """Every problem of the table at once, in the order of the dictionary; an empty list if there is none."""
    problems = [problem for variable in dictionary.variables for problem in _column_problems(frame, variable)]
    if len(frame) == 0:
        remedy = "Check that the export wrote its records."
        problems.insert(0, Problem("*", "the table has no records", "at least one record", remedy))
    return problems


def require(frame: pd.DataFrame, dictionary: FeatureRows) -> tuple[Problem, ...]:
    """The warnings, if there is nothing worse; else a DataError that lists every problem, for local eyes."""
    problems = check(frame, dictionary)
    errors = [problem for problem in problems if not problem.warning]
    if errors:
        raise DataError(
            f"The data do not fit the study's dictionary: {len(errors)} problem(s). Mend them and run the check again.",
            problems=[str(problem) for problem in problems],
        )
    return tuple(problems)


def conform(frame: pd.DataFrame, dictionary: FeatureRows) -> pd.DataFrame:
    """The dictionary's columns as finite float64 within their bounds, whatever the records hold.

    What is no number becomes the middle of its bounds; what lies outside them goes to the nearer one. Of a categorical
    variable what is no declared level becomes the first.
    Record by record, so that one record changes one row. Raises DataError only for a column that is missing
    or there twice.
    """
    columns = {}
    for variable in dictionary.variables:
        shape = list(frame.columns).count(variable.name)
        if shape != 1:
            raise DataError(
                f"The column {variable.name!r} is there {shape} times, expected once: run the check of the data."
            )
        if variable.kind == "categorical":
            levels = _levels(frame[variable.name], variable)
            columns[variable.name] = np.array([variable.levels[0] if one is None else one for one in levels], object)
            continue
        low, high = variable.bounds
        values = _numbers(frame[variable.name])
        columns[variable.name] = np.clip(np.where(np.isnan(values), low / 2 + high / 2, values), low, high)
    return pd.DataFrame(columns, index=range(len(frame)), columns=list(dictionary.names))


def _column_problems(frame: pd.DataFrame, variable: Variable) -> Iterator[Problem]:
    found = list(frame.columns).count(variable.name)
    if found == 0:
        near = difflib.get_close_matches(variable.name, [str(name) for name in frame.columns], n=1)
        remedy = (
            f"Rename {near[0]!r}?" if near else f"The table has {', '.join(map(str, frame.columns)) or 'no columns'}."
        )
        yield Problem(variable.name, "the column is missing", "one column of that name", remedy)
    elif found > 1:
        remedy = "Keep the right one and rename the others."
        yield Problem(variable.name, f"the column is there {found} times", "one column of that name", remedy)
    else:
        yield from _value_problems(frame[variable.name], variable)


def _value_problems(column: pd.Series, variable: Variable) -> Iterator[Problem]:
    unit = f" {variable.unit}" if variable.unit else ""
    low, high = variable.bounds
    for fault, bad in _masks(column, variable).items():
        if not bad.any():
            continue
        places = np.flatnonzero(bad)
        expected, remedy = _TEXTS[fault]
        yield Problem(
            variable.name,
            fault,
            expected.format(range=f"[{low:g}, {high:g}]{unit}", levels=", ".join(variable.levels)),
            remedy,
            rows=tuple(int(place) + 1 for place in places[:_SHOWN]),
            count=len(places),
            value="" if fault == _ABSENT else _shown(column.iloc[int(places[0])]),
            warning=fault == _CLIPPED,
        )


def _masks(column: pd.Series, variable: Variable) -> dict[str, NDArray[np.bool_]]:
    """Which records have which fault; the keys are those of `_TEXTS`."""
    absent = column.isna().to_numpy(dtype=np.bool_)
    if variable.kind == "categorical":
        return {_ABSENT: absent, _NO_LEVEL: ~absent & np.array([one is None for one in _levels(column, variable)])}
    values = _numbers(column)
    finite, (low, high) = np.isfinite(values), variable.bounds
    binary, count = variable.kind == "binary", variable.kind == "count"
    return {
        _TEXT: np.isnan(values) & ~absent,
        _ABSENT: absent,
        _INFINITE: np.isinf(values),
        _NOT_BINARY: finite & binary & (values != 0) & (values != 1),
        _NOT_COUNT: finite & count & (values != np.rint(values)),
        _CLIPPED: finite & (not binary) & ((values < low) | (values > high)),
    }


def _levels(column: pd.Series, variable: Variable) -> list[str | None]:
    """Each cell's declared level, None where it has none; 1, 1.0 and "1" are one."""
    known = {as_key(level): level for level in reversed(variable.levels)}
    absent = column.isna()
    return [None if gone else known.get(as_key(cell)) for cell, gone in zip(column, absent, strict=True)]


def _shown(cell: object) -> str:
    return repr(cell.item() if isinstance(cell, np.generic) else cell)


def _numbers(column: pd.Series) -> NDArray[np.float64]:
    """(n,) float64, NaN where a cell is missing or no number."""
    if column.dtype.kind in "biuf":
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.asarray([number(cell) for cell in column], dtype=np.float64)


def number(cell: object) -> float:
    """A cell's number, NaN if it has none: what Arrow's reader takes for one; Python alone would also take 1_000."""
    if not isinstance(cell, str | int | float | np.number) or (isinstance(cell, str) and "_" in cell):
        return float("nan")
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return float("nan")


def as_key(cell: object) -> str:
    """One text for all ways to write a number, a text as it is."""
    value = number(cell)
    return str(cell).strip() if math.isnan(value) else f"{value + 0.0:.15g}"
