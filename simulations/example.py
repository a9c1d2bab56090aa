"""A study and hospitals' tables, to try a federation of real processes with."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from causaldao.errors import ConfigurationError, MisuseError
from causaldao.files import write_text
from causaldao.simulations.datasets import load, split
from causaldao.simulations.scenarios import read_scenario
from causaldao.study import Study

NAME = "rand-hie-small"
_CHANGES = (
    (r'^name = "rand-hie"$', f'name = "{NAME}"'),
    (r"^# 20,190 .*$", "# Records of the RAND Health Insurance Experiment, dealt to a few hospitals."),
    (r"^simulation = true.*\n", ""),
    (r"^unit = .*\n", ""),
    (r"^faulty = 2$", "faulty = 0"),
    (r"^rounds = 5$", "rounds = 2"),
    (r"^n_max = 10000$", "n_max = 20000"),
    (r"^deadline = 60.0$", "deadline = 600.0"),
)
HOSPITALS = ("north", "south", "west", "east", "centre", "harbour", "hill")


def write_example(folder: Path, members: int = 3) -> tuple[Study, list[Path]]:
    """Write ``study.toml`` and a CSV file for each of ``members`` hospitals; the study and the tables' paths.

    The study is the scenario ``rand-hie`` for a few hospitals that all tell the truth, without units, since nobody has
    written any into a mapping yet. The records are the experiment's, dealt at random.
    """
    if not 3 <= members <= len(HOSPITALS):
        raise MisuseError(f"members = {members} must lie in [3, {len(HOSPITALS)}].")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"The folder {folder} is not empty: choose another one.")
    folder.mkdir(parents=True, exist_ok=True)
    text = read_scenario("rand-hie")
    for line, other in _CHANGES:
        text = re.sub(line, other, text, flags=re.MULTILINE)
    study = Study.from_toml(text, "study.toml")
    write_text(folder / "study.toml", text)
    paths = []
    for name, rows in zip(
        HOSPITALS, split(load("rand-hie"), members, generator=np.random.default_rng(0)), strict=False
    ):
        paths.append(folder / f"{name}.csv")
        rows.to_csv(paths[-1], index=False)
    return study, paths
