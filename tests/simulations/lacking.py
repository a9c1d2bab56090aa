"""A study over six variables, of which members may lack c and d, and members of whom some do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from causaldao.budget import plan
from causaldao.client.privacy.release import exact_moments
from causaldao.declared import held
from causaldao.models.discovery.evidence import Evidence
from causaldao.simulations.datasets import linear_gaussian
from causaldao.study import Study

NAMES = "abcdef"
WEIGHTS = {
    ("a", "b"): 0.8, ("b", "c"): 0.7, ("a", "d"): 0.6, ("c", "e"): 0.8, ("d", "e"): 0.5, ("e", "f"): 0.7,
}  # fmt: skip
MEMBERS = tuple(f"site-{k:02}" for k in range(10))
LACKS = {MEMBERS[0]: ("c",), MEMBERS[1]: ("c",), MEMBERS[2]: ("c", "d"), MEMBERS[3]: ("d",), MEMBERS[4]: ("d",)}


def study(*, faulty: int = 1, epsilon: float = 8.0, may_lack: Sequence[str] = ("c", "d"), **tables: Any) -> Study:
    """The study, with whole tables replaced by ``tables``."""
    about = {"name": "lacking", "question": "Does d move e?", "purpose": "A test.", "retention": "A day."}
    value = {
        "study": {**about, "simulation": True},
        "variables": [{"name": name, "kind": "continuous", "bounds": [-6.0, 6.0]} for name in NAMES],
        "discovery": {"restarts": 2},
        "consensus": {"faulty": faulty},
        "training": {"rounds": 0},
        "privacy": {
            "epsilon": epsilon, "delta": 1e-5, "split": {"evidence": 1.0, "training": 0.0, "evaluation": 0.0},
        },
        "members": {"n_min": 50, "n_max": 5000, "deadline": 60.0, "may_lack": list(may_lack)},
        "effects": [
            {"treatment": "d", "outcome": "e", "adjustment": ["a"]}, {"treatment": "a", "outcome": "f"},
        ],
        **tables,
    }  # fmt: skip
    return Study.from_mapping(value)


def tables(
    rng: np.random.Generator, lacks: Mapping[str, Sequence[str]], rows: int = 1000, names: Sequence[str] = MEMBERS
) -> dict[str, pd.DataFrame]:
    """Each member's records, without the columns that it lacks."""
    return {name: linear_gaussian(WEIGHTS, rows, rng).drop(columns=list(lacks.get(name, ()))) for name in names}


def released(
    rng: np.random.Generator, asked: Study, data: Mapping[str, pd.DataFrame], lacks: Mapping[str, Sequence[str]]
) -> dict[str, Evidence]:
    """What members of these tables release, but for the way in which the noise is drawn."""
    sigma, found, size = plan(asked).sigma, {}, len(NAMES) + 1
    rows, columns = np.triu_indices(size)
    for name, table in data.items():
        there = [0, *(k for k, v in enumerate(NAMES, start=1) if v not in lacks.get(name, ()))]
        exact, noise = np.zeros((size, size), dtype=np.int64), np.zeros((size, size), dtype=np.int64)
        exact[np.ix_(there, there)] = exact_moments(table, held(asked.encoding, lacks.get(name, ())))
        drawn = np.rint(rng.normal(size=len(rows)) * np.where(rows == columns, sigma, sigma / np.sqrt(2)))
        noise[rows, columns] = drawn.astype(np.int64)
        noise[np.setdiff1d(range(size), there)] = noise[:, np.setdiff1d(range(size), there)] = 0
        found[name] = Evidence.from_release((exact + noise)[rows, columns], asked.encoding, sigma)
    return found


def sites(
    rng: np.random.Generator, asked: Study, lacks: Mapping[str, Sequence[str]], rows: int = 1000
) -> dict[str, Evidence]:
    """The evidence of honest members."""
    return released(rng, asked, tables(rng, lacks, rows), lacks)
