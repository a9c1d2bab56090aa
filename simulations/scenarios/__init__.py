"""Studies that come with the package, and the way from a name or a file to a study and a table."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from causaldao.aggregation.rules import by_name
from causaldao.client.data.sources import read
from causaldao.errors import ConfigurationError
from causaldao.simulations.datasets import load
from causaldao.study import Study


def scenario_names() -> list[str]:
    """The studies that come with the package."""
    return sorted(item.name.removesuffix(".toml") for item in files(__name__).iterdir() if item.name.endswith(".toml"))


def load_study(source: Path, *, rule: str | None = None, faulty: int | None = None) -> Study:
    """The study in a file, or the scenario of that name, with an aggregation rule or fault bound of the caller's.

    ``rule`` replaces the rule of the updates, and that of the pool where the pool has one of that name ("mean",
    "multi-krum"); an unknown one is a MisuseError. A changed study is another study: it has another hash.
    """
    if rule is not None:
        by_name(rule)
    text, name = _text(source)
    study = Study.from_toml(text, name)
    if rule is None and faulty is None:
        return study
    changed: dict[str, Any] = study.to_json()
    if rule is not None:
        changed["aggregation"] |= {"rule": rule, "pool": rule if rule in ("mean", "multi-krum") else "multi-krum"}
    if faulty is not None:
        changed["consensus"]["faulty"] = faulty
    return Study.from_mapping(changed, f"{name} with the options given")


def read_scenario(name: str) -> str:
    """The TOML of a study that comes with the package."""
    return (files(__name__) / f"{name}.toml").read_text(encoding="utf-8")


def load_table(source: str) -> pd.DataFrame:
    """A table by the name of a data set, or from a CSV or Parquet file."""
    return read(Path(source)) if Path(source).suffix else load(source)


def _text(source: Path) -> tuple[str, str]:
    if source.suffix != ".toml" and str(source) in scenario_names():
        return read_scenario(str(source)), str(source)
    try:
        return source.read_text(encoding="utf-8"), source.name
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The study {source} cannot be read ({error}). Give a TOML file, or one of: {', '.join(scenario_names())}."
        ) from error
