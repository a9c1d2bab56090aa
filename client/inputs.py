"""What the questions read and write: tables of numbers, JSON, text; errors name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causaldao.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import pandas as pd


def read_table(path: Path, *, numbers: bool = True) -> pd.DataFrame:
    """A table; DataError names the columns that are no numbers, where all have to be."""
    from causaldao.client.data.sources import read

    frame = read(path)
    if not numbers:
        return frame
    wrong = [str(name) for name in frame.columns if frame[name].dtype.kind not in "iufb"]
    if wrong:
        raise DataError(f"The columns {wrong} of {path} are not numbers: drop them, or code them as 0 and 1.")
    return frame


def read_json(path: Path) -> Any:
    """The content of a JSON file; ConfigurationError if it is none."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid JSON: {error}.") from error


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error


def write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from error
