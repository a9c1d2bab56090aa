"""What the questions read and write: tables of numbers, JSON, text; errors name the file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.files import parse_json

if TYPE_CHECKING:
    import pandas as pd
    import torch


def read_table(path: Path, *, numbers: bool = True) -> pd.DataFrame:
    """A table; DataError as `columns_of`."""
    from causaldao.client.data.sources import read

    return columns_of(read(path), path, numbers=numbers)


def columns_of(
    frame: pd.DataFrame, path: Path, names: Collection[str] | None = None, *, numbers: bool = True
) -> pd.DataFrame:
    """Those columns of the table in ``path`` that are named, or all, in its order; others may hold what they like.

    DataError: one is there twice, or is no numbers, where all have to be.
    """
    kept = [str(name) for name in frame.columns if names is None or name in names]
    if twice := sorted({name for name in kept if kept.count(name) > 1}):
        raise DataError(f"{path} has the columns {', '.join(twice)} more than once: rename all but one of each.")
    wrong = [name for name in kept if numbers and frame[name].dtype.kind not in "iufb"]
    if wrong:
        raise DataError(f"The columns {wrong} of {path} are not numbers: drop them, or code them as 0 and 1.")
    return frame[kept]


def seeded(seed: int) -> torch.Generator:
    """A generator with that seed; MisuseError if it can have none such."""
    import torch

    try:
        return torch.Generator().manual_seed(seed)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise MisuseError(f"--seed {seed}: expected a whole number from 0 to {2**63 - 1}.") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; ConfigurationError if it is none."""
    try:
        return parse_json(read_text(path))
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
