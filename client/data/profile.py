"""A first look at a table, part by part, and the draft of ``node.toml`` that a person then edits.

What is seen is written as comments into the node's own file and goes nowhere else. Text is drafted as levels only if it
has two of them: a column of many words may hold names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

import numpy as np
import pandas as pd

from causaldao.client.data.checks import number
from causaldao.client.data.sources import Source
from causaldao.errors import DataError

T = TypeVar("T")
_MANY = 12  # distinct words beyond which a column is text, not a category
_ABSENT = frozenset({"na", "n/a", "nan", "null", "none", ".", "-", "?", "missing", "unknown"})
_IDENTIFIER = re.compile(r"(^|.*_)(id|mrn|uuid|guid)$|.*_source_value$", re.IGNORECASE)
_OMOP_LEVELS: Mapping[str, Mapping[str, float]] = {
    # gender: 8507 male, 8532 female; ethnicity: 38003564 not Hispanic or Latino, 38003563 Hispanic or Latino
    "gender_concept_id": {"8507": 0, "male": 0, "8532": 1, "female": 1},
    "ethnicity_concept_id": {"38003564": 0, "not hispanic or latino": 0, "38003563": 1, "hispanic or latino": 1},
}
_OMOP_UNITS = {"year_of_birth": "calendar year", "month_of_birth": "month", "day_of_birth": "day"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_ONE_OF = "to offer one level, add a mapping with levels, that one as 1 and each other as 0"
_WHICH = "check which level is 1"
_RACES = "8515 Asian, 8516 Black or African American, 8527 White, 8557 Native Hawaiian, 8657 American Indian"


@dataclass
class Seen:
    """What a column holds; of distinct words and numbers at most `_MANY` + 1 are kept."""

    name: str
    rows: int = 0
    missing: int = 0
    low: float = math.inf
    high: float = -math.inf
    whole: bool = True
    numbers: set[float] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    marks: set[str] = field(default_factory=set)  # words that usually mean a missing value
    other: str = ""  # the type of cells that are neither numbers nor text, such as dates

    def add(self, cells: pd.Series) -> None:
        """Take in some more rows."""
        self.rows += len(cells)
        if cells.dtype.kind == "f":
            values = cells.to_numpy(dtype=np.float64)
        else:
            values = np.asarray([self._object(cell) for cell in cells], dtype=np.float64)
        present = values[~np.isnan(values)]
        if cells.dtype.kind == "f":
            self.missing += len(values) - len(present)
        if len(present):
            self.low, self.high = min(self.low, float(present.min())), max(self.high, float(present.max()))
            self.whole = self.whole and bool((present == np.rint(present)).all())
            self.numbers = _few(self.numbers, np.unique(present).tolist())

    def _object(self, cell: object) -> float:
        value = number(cell)
        if not math.isnan(value):
            return value
        if cell is None or cell is pd.NA or cell is pd.NaT or isinstance(cell, float):
            self.missing += 1
        elif not isinstance(cell, str):
            self.other = type(cell).__name__
        elif cell.strip().casefold() in _ABSENT:
            self.missing += 1
            self.marks = _few(self.marks, [cell.strip()])
        else:
            self.words = _few(self.words, [cell.strip()])
        return math.nan


@dataclass(frozen=True)
class Guess:
    """What a column may be offered as; without a ``kind`` it is left out, and ``note`` says why."""

    column: str
    kind: str = ""
    unit: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    note: str = ""


def profile(parts: Iterable[pd.DataFrame]) -> tuple[Seen, ...]:
    """What the columns of a table hold, of which only one part is in memory at a time; DataError without any record."""
    seen: dict[str, Seen] = {}
    for frame in parts:
        for name in frame.columns:
            seen.setdefault(str(name), Seen(str(name))).add(frame[name])
    if not seen or not next(iter(seen.values())).rows:
        raise DataError("The table has no records: check that the export wrote them.")
    return tuple(seen.values())


def guess(seen: Seen, *, omop: bool = False) -> Guess:
    """A first guess, for a person to correct."""
    name, marks = seen.name, tuple(sorted(seen.marks))
    if omop and name in _OMOP_LEVELS:
        return Guess(name, "binary", levels=_OMOP_LEVELS[name], note=_counted(seen))
    if omop and name.endswith("_concept_id"):
        races = f" ({_RACES})" if name == "race_concept_id" else ""
        return Guess(name, note=f"concepts{races}: a study takes binary variables; {_ONE_OF}")
    if _IDENTIFIER.fullmatch(name):
        return Guess(name, note="looks like an identifier: it tells of a person, not of a cause")
    if seen.other or not (seen.numbers or seen.words):
        return Guess(name, note=f"holds cells of type {seen.other}" if seen.other else "holds no value at all")
    if not seen.words:
        guessed = _of_numbers(seen, marks)
        known = omop and name in _OMOP_UNITS
        return replace(guessed, kind="continuous", unit=_OMOP_UNITS[name]) if known else guessed
    if seen.numbers:
        return Guess(name, note=f"mixes numbers and words, such as {_shown(seen.words)}; {_ONE_OF}")
    return _of_words(seen, marks)


def draft(name: str, dataset: str, source: Source, guesses: Iterable[Guess], epsilon: float) -> str:
    """``node.toml`` for a person to edit: what is guessed is written out, what was seen stands in comments."""
    lines = [
        "# This file stays on this machine, and so does what its comments say about your records.",
        "# Others are told the names, kinds, units and levels below, nothing else: see `causaldao node dictionary`.",
        f"name = {_text(name)}",
        f"dataset = {_text(dataset)}  # your privacy budget is kept under this name: never change it",
        "share_columns = false  # true tells others the names of your columns as well",
        '# lacks = ["some-variable"]  # what these records do not have, for studies that let members lack it',
        "",
        "# A study under several conditions asks which of them these records are from:",
        "# [environments]",
        '# some-study = "some-condition"',
        "",
        "[lifetime]  # the most that this data set may ever spend, over all studies",
        f"epsilon = {float(epsilon)!r}",
        "delta = 1e-05",
        "",
        "[source]",
        *(f"{key} = {_text(value)}" for key, value in source.model_dump(exclude_none=True).items()),
        "",
        "# One table for each variable that you offer. Its name is the study's: rename it, or delete what you keep.",
        "# unit: as the study writes it, and true of value * scale + offset (1 and 0 if left out).",
        '# missing: what stands for a missing value, for example missing = [-9, "NA"].',
    ]
    used: set[str] = set()
    for found in guesses:
        lines += ["", *_mapping(found, used)]
    return "\n".join(lines) + "\n"


def _of_numbers(seen: Seen, marks: tuple[str, ...]) -> Guess:
    note = _counted(seen) + f", {_number(seen.low)} to {_number(seen.high)}"
    if seen.low < 0 and seen.low in (-1, -8, -9, -99, -999):
        note += f"; if {_number(seen.low)} stands for a missing value, write it into missing"
    if seen.numbers <= {0.0, 1.0}:
        return Guess(seen.name, "binary", missing=marks, note=note)
    if len(seen.numbers) == 2 and seen.whole and seen.high - seen.low == 1:  # two codes, such as 1 and 2
        codes = {_number(value): float(code) for code, value in enumerate(sorted(seen.numbers))}
        return Guess(seen.name, "binary", levels=codes, missing=marks, note=f"{note}; {_WHICH}")
    return Guess(seen.name, "count" if seen.whole and seen.low >= 0 else "continuous", missing=marks, note=note)


def _of_words(seen: Seen, marks: tuple[str, ...]) -> Guess:
    note = f"{_counted(seen)}, {len(seen.words)} words: {_shown(seen.words)}"
    if len(seen.words) == 2:
        codes = {word: float(code) for code, word in enumerate(sorted(seen.words))}
        return Guess(seen.name, "binary", levels=codes, missing=marks, note=f"{_counted(seen)}; {_WHICH}")
    if len(seen.words) <= _MANY:
        return Guess(seen.name, note=f"{note}; {_ONE_OF}")
    return Guess(seen.name, note=f"text, more than {_MANY} different words")


def _counted(seen: Seen) -> str:
    return f"{seen.rows} records, {seen.missing} without a value"


def _mapping(found: Guess, used: set[str]) -> list[str]:
    if not found.kind:
        return [f"# not offered: column {_text(found.column)}: {_comment(found.note)}"]
    name = _variable(found.column, used)
    levels = ", ".join(f"{_text(word)} = {_number(code)}" for word, code in found.levels.items())
    lines = [
        f"[mapping.{name}]",
        f"column = {_text(found.column)}",
        f"kind = {_text(found.kind)}",
        f"unit = {_text(found.unit)}" + ("" if found.unit or found.kind == "binary" else "  # fill in"),
    ]
    lines += [f"levels = {{ {levels} }}"] if levels else []
    lines += [f"missing = [{', '.join(map(_text, found.missing))}]"] if found.missing else []
    return [*lines, f"# seen here: {_comment(found.note)}"]


def _variable(column: str, used: set[str]) -> str:
    """A variable's name made of a column's: letters, digits and '_', all different."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", column).strip("_") if not _NAME.fullmatch(column) else column
    plain = (plain if plain[:1].isalpha() else f"v_{plain}")[:60]
    name, count = plain, 1
    while name in used:
        count += 1
        name = f"{plain}_{count}"
    used.add(name)
    return name


def _few(known: Iterable[T], more: Iterable[T]) -> set[T]:
    return set(islice({*known, *more}, _MANY + 1))


def _shown(words: Iterable[str]) -> str:
    return ", ".join(_text(word[:40]) for word in sorted(words)[:_MANY])


def _number(value: float) -> str:
    return f"{value:.15g}"


def _text(value: str) -> str:
    """A TOML string: JSON's, with the one control character that JSON would leave as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
