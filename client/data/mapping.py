"""How an institution's columns become a study's variables: names, units, codes for missing values, words as numbers.

The mapping stands in ``node.toml``, one ``[mapping.NAME]`` for each variable that is offered; what is not mapped is not
offered. Without any mapping, columns are taken by their own names.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator

from causaldao.client.data.checks import as_key, number
from causaldao.dictionary import Mismatch, Offered
from causaldao.dictionary import mismatches as _mismatches
from causaldao.models.discovery.evidence import FeatureRows, Variable

Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Column(BaseModel):
    """One ``[mapping.NAME]``: a cell becomes ``number * scale + offset``, which is in ``unit``.

    ``levels`` reads words (or codes) as numbers; a cell that is none of them has no value. ``missing`` lists what
    stands for a missing value, such as -9 or "NA". Words are compared as written, numbers as numbers: 1, 1.0 and "01"
    are one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    column: Annotated[str, Field(min_length=1)]
    kind: Literal["continuous", "binary", "count", "categorical"]
    unit: Annotated[str, Field(max_length=200)] = ""
    scale: Finite = 1.0
    offset: Finite = 0.0
    levels: dict[str, Finite] = {}
    missing: tuple[Annotated[str, Field(strict=True)] | Finite, ...] = ()

    @field_validator("scale")
    @classmethod
    def _scales(cls, scale: float) -> float:
        if scale == 0:
            raise ValueError("scale = 0 would make every value the same; leave it out for 1")
        return scale

    @field_validator("levels")
    @classmethod
    def _one_number_for_each(cls, levels: dict[str, float]) -> dict[str, float]:
        seen: dict[str, tuple[str, float]] = {}
        for word, code in levels.items():
            other, known = seen.setdefault(as_key(word), (word, code))
            if known != code:
                raise ValueError(f"{other!r} and {word!r} are the same level, but stand for {known:g} and {code:g}")
        return levels

    def offered(self, name: str, *, share_column: bool = False) -> Offered:
        """What others may know of it; the words are those that its owner wrote into the file."""
        return Offered(name, self.kind, self.unit.strip(), dict(self.levels), self.column if share_column else None)


def apply(frame: pd.DataFrame, mapping: Mapping[str, Column], dictionary: FeatureRows) -> pd.DataFrame:
    """The study's variables, one row for each row of ``frame``; ``frame`` itself if there is no mapping.

    Row by row, and it never fails over what a row holds: a cell that is no number stays text for the check to report.
    A variable that is not mapped, or whose column is not there once, is left out: `faults` says so.
    """
    if not mapping:
        return frame
    columns = {
        variable.name: _named(_values(frame[mapping[variable.name].column], mapping[variable.name]), variable)
        for variable in dictionary.variables
        if variable.name in mapping and _count(frame.columns, mapping[variable.name].column) == 1
    }
    return pd.DataFrame(columns, index=range(len(frame)))


def _named(values: pd.Series, variable: Variable) -> pd.Series:
    """The study's words for the numbers that stand for a categorical variable's levels; what stands for none stays."""
    if variable.kind != "categorical":
        return values
    words = dict(enumerate(variable.levels))
    return pd.Series([words.get(value, value) for value in values], dtype=object)


def mismatches(mapping: Mapping[str, Column], dictionary: FeatureRows) -> list[Mismatch]:
    """Where the mapping does not fit a study, all at once; nothing is compared if there is no mapping."""
    return _mismatches([column.offered(name) for name, column in mapping.items()], dictionary) if mapping else []


def faults(columns: Iterable[str], mapping: Mapping[str, Column], dictionary: FeatureRows) -> dict[str, str]:
    """By variable of the study, why its column cannot be read from a table with these ``columns``."""
    found, known = {}, list(columns)
    for name in dictionary.names:
        column = mapping[name].column if name in mapping else ""
        if name in mapping and (there := _count(known, column)) != 1:
            near = difflib.get_close_matches(column, known, n=1)
            has = "no column" if there == 0 else f"{there} columns"
            remedy = f"Did you mean {near[0]!r}?" if near and there == 0 else "Correct column in node.toml."
            found[name] = f"mapping.{name}: the table has {has} {column!r}, expected one. {remedy}"
    return found


def _count(columns: Iterable[str], name: str) -> int:
    return list(columns).count(name)


def _values(cells: pd.Series, column: Column) -> pd.Series:
    """(n,) float64 if every cell is a number or missing, else objects."""
    words = {as_key(word): code for word, code in column.levels.items()}
    missing = frozenset(as_key(word) for word in column.missing)
    if cells.dtype.kind == "f" and not words:
        numbers = cells.to_numpy(dtype=np.float64)
        absent = np.isin(numbers, [number(word) for word in column.missing])
        with np.errstate(over="ignore"):  # a number too large becomes infinite, as cell by cell
            return pd.Series(np.where(absent, np.nan, numbers * column.scale + column.offset))
    if cells.dtype.kind == "f":  # each level once: a table has few of them and many rows
        distinct, place = np.unique(cells.to_numpy(dtype=np.float64), return_inverse=True)
        done = [_value(cell, column, words, missing) for cell in distinct.tolist()]
        mapped = [done[k] for k in place.tolist()]
    else:
        texts = {cell: _value(cell, column, words, missing) for cell in {c for c in cells if isinstance(c, str)}}
        mapped = [texts[c] if isinstance(c, str) else _value(c, column, words, missing) for c in cells]
    series = pd.Series(mapped, dtype=object)
    return series.astype(np.float64) if all(isinstance(value, float) for value in mapped) else series


def _value(cell: object, column: Column, words: Mapping[str, float], missing: frozenset[str]) -> object:
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and math.isnan(cell)):
        return math.nan
    key = as_key(cell)
    if key in missing:
        return math.nan
    if words:
        if key not in words:
            # Not the cell as it is: a code such as 9 would pass for a number.
            return f"{key} (not among the levels)"
        return words[key] * column.scale + column.offset
    value = number(cell)
    return cell if math.isnan(value) else value * column.scale + column.offset
