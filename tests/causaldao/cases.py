"""A small study, rows for it, and noisy evidence as members would release it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from causaldao.budget import plan
from causaldao.models.discovery.evidence import Evidence
from causaldao.study import Study

STUDY_TOML = """
[study]
name = "small"
question = "Does dose change pain?"
purpose = "A test."
retention = "None."
simulation = true

[[variables]]
name = "age"
kind = "continuous"
bounds = [-4, 4]
tier = 0

[[variables]]
name = "dose"
kind = "binary"
bounds = [0, 1]

[[variables]]
name = "pain"
kind = "continuous"
bounds = [-6.0, 6.0]

[discovery]
restarts = 2

[consensus]
faulty = 1

[training]
hidden = 2
rounds = 2
steps = 2

[aggregation]
rule = "multi-krum"

[privacy]
epsilon = 4.0
delta = 1e-5

[members]
n_min = 100
n_max = 5000

[[effects]]
treatment = "dose"
outcome = "pain"
adjustment = ["age"]
"""


def study(**changes: Mapping[str, Any] | list[Any]) -> Study:
    """The small study, some keys of its tables changed, or a list of tables replaced."""
    value = Study.from_toml(STUDY_TOML).to_json()
    for table, keys in changes.items():
        value[table] = {**value[table], **keys} if isinstance(keys, Mapping) else keys
    return Study.from_mapping(value)


def rows(rng: np.random.Generator, n: int, effect: float = -1.0) -> pd.DataFrame:
    """Age moves dose and pain, dose moves pain by ``effect``."""
    age = rng.normal(size=n)
    dose = (rng.random(n) < 1 / (1 + np.exp(-age))).astype(float)
    pain = age + effect * dose + rng.normal(size=n)
    return pd.DataFrame({"age": age, "dose": dose, "pain": pain})


def released(rng: np.random.Generator, frame: pd.DataFrame, asked: Study) -> Evidence:
    """The evidence of a member, with the study's noise."""
    exact = Evidence.from_data(frame, asked.encoding)
    lattice = asked.encoding.lattice**2
    sigma = plan(asked).sigma
    p = exact.d + 1
    upper = np.triu_indices(p)
    scale = np.where(upper[0] == upper[1], sigma, sigma / np.sqrt(2))
    noise = np.rint(rng.normal(size=len(scale)) * scale).astype(np.int64)
    triangle = np.rint(exact.moments.numpy()[upper] * lattice).astype(np.int64) + noise
    return Evidence.from_release(triangle, asked.encoding, sigma)


def sites(rng: np.random.Generator, asked: Study, members: int, n: int = 1500) -> dict[str, Evidence]:
    """Evidence of honest members, iid."""
    return {f"site-{k}": released(rng, rows(rng, n), asked) for k in range(members)}
