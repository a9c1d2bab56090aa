"""From a table to evidence: the feature maps that are known by name.

A feature map takes the table, a row for each record, and options of its own, and returns evidence; adding one is one
line of `FEATURES`. Which methods can read its evidence is for the methods to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import pandas as pd

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.features import FeatureMap, from_data, variables_of
from causaldao.models.discovery.tables import LocalTables


def identity(frame: pd.DataFrame) -> Evidence:
    """The second moments of the columns as they are, standardised: what linear mechanisms need."""
    return Evidence.from_data(frame)


def one_hot(frame: pd.DataFrame) -> Evidence:
    """Numbers standardised, text as an indicator of each level but one: what linear mechanisms of levels need."""
    return from_data(frame, FeatureMap(variables_of(frame), "one-hot"))


def fourier(frame: pd.DataFrame) -> Evidence:
    """Random Fourier features of the numbers, indicators of the levels: for curved mechanisms."""
    return from_data(frame, FeatureMap(variables_of(frame), "fourier"))


def table(frame: pd.DataFrame, bins: int = 4) -> LocalTables:
    """The counts of levels; text and codes are levels as they are, other numbers are cut at their quantiles."""
    levels = {name: frame[name].astype("category") for name in frame.columns if frame[name].dtype.kind not in "biuf"}
    return LocalTables.from_data(frame.assign(**levels), bins=bins)


FEATURES: Mapping[str, Callable[..., Any]] = {
    "identity": identity, "one-hot": one_hot, "fourier": fourier, "table": table,
}  # fmt: skip


def evidence_of(data: Any, features: str = "identity", **options: Any) -> Any:
    """The evidence of a table by the feature map of that name; evidence itself is returned as it is.

    Raises:
        MisuseError: no feature map or option of that name, or evidence with another map than the one it was made by.
        DataError: the map cannot take the table: one without rows or columns, two columns of one name, or what the map
            itself refuses.
    """
    if features not in FEATURES:
        raise MisuseError(f"There is no feature map {features!r}. The feature maps are {', '.join(FEATURES)}.")
    choices = list(signature(FEATURES[features]).parameters)[1:]
    if unknown := sorted(set(options) - set(choices)):
        raise MisuseError(f"{features} has no options {unknown}. Its options are {', '.join(choices) or 'none'}.")
    if isinstance(data, pd.DataFrame):
        _require_columns(data)
        return FEATURES[features](data, **options)
    if features != "identity":
        raise MisuseError(f"features is {features!r}, but evidence has its feature map already. Give the table.")
    return data


def _require_columns(frame: pd.DataFrame) -> None:
    """What holds for every map: rows, and columns of numbers or levels, each with a name of its own as text."""
    if not frame.size:
        raise DataError(f"The table has {len(frame)} rows of {frame.shape[1]} columns: there is nothing to learn from.")
    names = [str(name) for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{names.count(twice[0])} columns are named {twice[0]!r}. Give each column a name of its own.")
    for name, kind in zip(names, frame.dtypes, strict=True):
        if kind.kind in "cmM":
            raise DataError(
                f"The column {name!r} is of type {kind}, which is neither a number nor a level: give one number for "
                "it, such as days since a day, or drop it."
            )
