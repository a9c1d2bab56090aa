"""Reading an institution's table, strictly: nothing is guessed, and no fault is passed over in silence.

A source is a file or a query to a database (`query`). CSV is RFC 4180 in UTF-8 with a header; only an empty cell is a
missing value. A column becomes numbers if all of its cells are numbers, else it stays text for the check to report.
Columns keep their names, even twice the same.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, Field, model_validator

from causaldao.client.data.query import PERSON, frames, require_select, require_url, require_view
from causaldao.errors import ConfigurationError, DataError

_BLOCK = 1 << 22  # bytes of a CSV file in memory at a time, while it is profiled


class Source(BaseModel):
    """Where an institution's table is: a file (``path``), or a database (``url``, ``query`` or ``cohort_view``).

    A cohort view is one of OMOP: one row for each person, whose `person_id` is read and dropped. The password of a
    database is that of the environment variable ``password_env``, never part of the URL.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: Annotated[str, Field(min_length=1)] | None = None
    url: str | None = None
    query: str | None = None
    cohort_view: str | None = None
    password_env: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        asked = [name for name in ("query", "cohort_view") if getattr(self, name) is not None]
        if self.path is not None and (self.url is not None or asked or self.password_env is not None):
            raise ValueError("path is a file: leave out url, query, cohort_view and password_env")
        if self.path is None and (self.url is None or len(asked) != 1):
            raise ValueError("give path, or url with one of query and cohort_view")
        if self.url is not None:
            self._check(self.url)
        return self

    def _check(self, url: str) -> None:
        try:
            require_url(url)
            require_select(self.statement)
        except ConfigurationError as error:
            raise ValueError(error.message) from None  # not the URL: it may hold a password

    @property
    def statement(self) -> str:
        """The query, or the one over the cohort view."""
        return require_view(self.cohort_view) if self.cohort_view is not None else self.query or ""


def load(source: Source, folder: Path) -> pd.DataFrame:
    """The table of a source; a file is relative to ``folder``. Everything is read into memory.

    Raises
    ------
    ConfigurationError
        a query that does more than read, a URL with a password in it.
    DataError
        the file or the database cannot be read.
    """
    if source.path is not None:
        return read(folder / source.path)
    parts = list(_query(source, folder))
    whole = pd.concat(parts, ignore_index=True)
    settled = [_settled(whole.iloc[:, place]) for place in range(whole.shape[1])]
    frame = pd.concat(settled, axis=1) if settled else pd.DataFrame()
    frame.columns = whole.columns
    return frame.drop(columns=_persons(frame)) if source.cohort_view else frame


def persons_twice(source: Source, folder: Path) -> int:
    """How many rows of a cohort view are a further row of somebody: privacy is that of a row, and must be a person's.

    DataError if the view has no `person_id`. It tells of records, so it is for the institution's own eyes.
    """
    seen: set[object] = set()
    rows = 0
    for frame in _query(source, folder):
        named = _persons(frame)
        if len(named) != 1:
            raise DataError(
                f"The cohort view {source.cohort_view!r} has {len(named)} columns {PERSON!r}, expected one: add it "
                "to the view, so that each row is known to be one person. It is dropped when the view is read."
            )
        seen.update(frame[named[0]])
        rows += len(frame)
    return rows - len(seen)


def batches(source: Source, folder: Path) -> Iterator[pd.DataFrame]:
    """The table in parts, so that a large file is never whole in memory; columns settle part by part.

    Columns of one name are refused here, since nobody could map them.
    """
    for frame in _query(source, folder) if source.path is None else _file_batches(folder / source.path):
        twice = sorted({str(name) for name in frame.columns if list(frame.columns).count(name) > 1})
        if twice:
            raise DataError(f"The columns {twice} are there more than once: rename all but one of each.")
        yield frame.drop(columns=_persons(frame)) if source.cohort_view else frame


def _query(source: Source, folder: Path) -> Iterator[pd.DataFrame]:
    return frames(source.url or "", source.statement, folder, source.password_env)


def _persons(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if str(name).casefold() == PERSON]


def _settled(cells: pd.Series) -> pd.Series:
    """A database's column as one of Parquet would be; objects where it mixes types."""
    try:
        return _column(pa.chunked_array([pa.array(cells.tolist())]), False)
    except pa.ArrowException:
        return cells


def read(path: str | Path, *, text: Collection[str] = ()) -> pd.DataFrame:
    """The table at `path`, a row for each record; the format is that of the suffix (.csv or .parquet).

    `text` names columns to keep as text although they look like numbers (the levels of a category). Raises
    DataError for a file that is absent, unreadable, empty, without a header, ragged or of an unknown
    suffix. A table with a header and no rows is returned as it is.
    """
    path = Path(path)
    _require_file(path)
    with _readable(path):
        table = _READERS[path.suffix.lower()](path)
    columns = [_column(column, name in text) for name, column in zip(table.column_names, table.columns, strict=True)]
    frame = pd.concat(columns, axis=1) if columns else pd.DataFrame()
    frame.columns = pd.Index(table.column_names)
    return frame


def _require_file(path: Path) -> None:
    if path.suffix.lower() not in _READERS:
        raise DataError(
            f"{path.name} has the suffix {path.suffix!r}, expected one of {', '.join(_READERS)}: export the table so."
        )
    if not path.is_file():
        raise DataError(f"There is no data file {path}: check the path.")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}. Export the table again.") from error


def _file_batches(path: Path) -> Iterator[pd.DataFrame]:
    _require_file(path)
    with _readable(path):
        for batch in (_csv_batches if path.suffix.lower() == ".csv" else _parquet_batches)(path):
            columns = [_column(pa.chunked_array([column]), False) for column in batch.columns]
            frame = pd.concat(columns, axis=1) if columns else pd.DataFrame()
            frame.columns = pd.Index(batch.schema.names)
            yield frame


def _csv_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with path.open("rb") as file:
        _require_closed(iter(partial(file.read, _BLOCK), b""))
        file.seek(0)
        names = _header(path, file.readline())
        strings = pa.schema([(str(place), pa.string()) for place in range(len(names))])
        if path.stat().st_size == file.tell():
            yield pa.RecordBatch.from_pylist([], strings).rename_columns(names)
            return
        reading = pyarrow.csv.open_csv(
            file,
            pyarrow.csv.ReadOptions(column_names=strings.names, block_size=_BLOCK),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            _strings(strings),
        )
        for batch in reading:
            yield batch.rename_columns(names)


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches()


def _header(path: Path, line: bytes) -> list[str]:
    header = next(csv.reader([line.decode("utf-8-sig").strip("\r\n")], strict=True), [])
    if not any(name.strip() for name in header):
        raise DataError(f"{path} is empty: expected a header line and one line for each record.")
    return [name.strip() for name in header]


def _require_closed(parts: Iterable[bytes]) -> None:
    if sum(part.count(b'"') for part in parts) % 2:
        # Arrow would take the rest of the file for one cell, without saying so
        raise csv.Error("a quotation mark is opened and never closed")


def _strings(schema: pa.Schema) -> pyarrow.csv.ConvertOptions:
    return pyarrow.csv.ConvertOptions(column_types=schema, null_values=[""], strings_can_be_null=True)


def _csv(path: Path) -> pa.Table:
    line, _, body = path.read_bytes().partition(b"\n")
    names = _header(path, line)
    _require_closed([body])
    places = [str(place) for place in range(len(names))]  # Arrow wants names that differ; the file's may not
    strings = pa.schema([(place, pa.string()) for place in places])
    if not body.strip():
        return strings.empty_table().rename_columns(names)
    table = pyarrow.csv.read_csv(
        pa.BufferReader(body),
        pyarrow.csv.ReadOptions(column_names=places),
        pyarrow.csv.ParseOptions(newlines_in_values=True),
        _strings(strings),
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
