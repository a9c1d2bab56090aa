"""Reading an institution's table, strictly: nothing is guessed, and no fault is passed over in silence.

CSV is RFC 4180 in UTF-8 with a header; only an empty cell is a missing value. A column becomes numbers if
all of its cells are numbers, else it stays text for the check to report. Columns keep their names, even
twice the same.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from causaldao.errors import DataError


def read(path: str | Path, *, text: Collection[str] = ()) -> pd.DataFrame:
    """The table at `path`, a row for each record; the format is that of the suffix (.csv or .parquet).

    `text` names columns to keep as text although they look like numbers (the levels of a category). Raises
    DataError for a file that is absent, unreadable, empty, without a header, ragged or of an unknown
    suffix. A table with a header and no rows is returned as it is.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path.name} has the suffix {path.suffix!r}, expected one of {', '.join(_READERS)}: export the table so."
        )
    if not path.is_file():
        raise DataError(f"There is no data file {path}: check the path.")
    try:
        table = reader(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}. Export the table again.") from error
    columns = [_column(column, name in text) for name, column in zip(table.column_names, table.columns, strict=True)]
    frame = pd.concat(columns, axis=1) if columns else pd.DataFrame()
    frame.columns = pd.Index(table.column_names)
    return frame


def _csv(path: Path) -> pa.Table:
    line, _, body = path.read_bytes().partition(b"\n")
    header = next(csv.reader([line.decode("utf-8-sig").strip("\r")], strict=True), [])
    if not any(name.strip() for name in header):
        raise DataError(f"{path} is empty: expected a header line and one line for each record.")
    if body.count(b'"') % 2:
        # Arrow would take the rest of the file for one cell, without saying so
        raise csv.Error("a quotation mark is opened and never closed")
    names = [name.strip() for name in header]
    places = [str(place) for place in range(len(header))]  # Arrow wants names that differ; the file's may not
    strings = pa.schema([(place, pa.string()) for place in places])
    if not body.strip():
        return strings.empty_table().rename_columns(names)
    table = pyarrow.csv.read_csv(
        pa.BufferReader(body),
        pyarrow.csv.ReadOptions(column_names=places),
        pyarrow.csv.ParseOptions(newlines_in_values=True),
        pyarrow.csv.ConvertOptions(column_types=strings, null_values=[""], strings_can_be_null=True),
    )
    return table.rename_columns(names)


def _parquet(path: Path) -> pa.Table:
    # read_table would refuse a table with one name twice before the check can tell what is wrong with it
    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read()


def _column(column: pa.ChunkedArray, text: bool) -> pd.Series:
    """Numbers as float64 if every cell is one, Parquet's integers and Booleans too."""
    if text:
        return pd.Series(column.cast(pa.string()).to_pandas(), dtype=object)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
    try:
        return pd.Series(column.cast(pa.float64(), safe=False).to_numpy(), dtype="float64")
    except pa.ArrowException:
        return pd.Series(column.to_pylist(), dtype=object)


_READERS: Mapping[str, Callable[[Path], pa.Table]] = {".csv": _csv, ".parquet": _parquet}
