"""A planted model of continuous, binary and categorical variables, and a study of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from causaldao.study import Study

EDGES = frozenset({
    ("age", "ward"), ("age", "dose"), ("ward", "pain"), ("dose", "stay"), ("pain", "stay"), ("blood", "dose"),
    ("smoker", "pain"),
})  # fmt: skip
SKELETON = {tuple(sorted(edge)) for edge in EDGES}
WARDS, BLOODS = ("north", "east", "south"), ("a", "b", "ab", "zero")
EFFECT = -0.8  # of dose on stay


def rows(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """(n, 6) records. What ward and blood do has no order: numbers given to their levels would not show it."""
    age, smoker = rng.normal(size=n), (rng.random(n) < 0.4).astype(float)
    ward = _chosen(rng, np.stack([np.zeros(n), 1.4 * age, -1.4 * age], axis=1))
    blood = rng.integers(0, 4, n)
    pain = np.array([0.0, 1.3, 0.2])[ward] + 0.9 * smoker + rng.normal(size=n)
    dose = 0.8 * age + np.array([0.0, 1.4, 0.1, 1.2])[blood] + rng.normal(size=n)
    stay = 0.8 * pain + EFFECT * dose + rng.normal(size=n)
    words = {"ward": np.array(WARDS, object)[ward], "blood": np.array(BLOODS, object)[blood]}
    return pd.DataFrame({"age": age, "smoker": smoker, **words, "pain": pain, "dose": dose, "stay": stay})


def _chosen(rng: np.random.Generator, towards: Any) -> Any:
    return (towards + rng.gumbel(size=towards.shape)).argmax(axis=1)


def study(epsilon: float = 10.0, faulty: int = 2, **tables: Any) -> Study:
    """The study by one-hot features; keys of its tables are replaced by ``tables``."""
    numbers = {"age": 4.0, "pain": 5.0, "dose": 6.0, "stay": 8.0}
    value: dict[str, Any] = {
        "study": {"name": "mixed", "question": "?", "purpose": "A test.", "retention": "A day.", "simulation": True},
        "variables": [
            *({"name": name, "kind": "continuous", "bounds": [-bound, bound]} for name, bound in numbers.items()),
            {"name": "smoker", "kind": "binary", "bounds": [0, 1]},
            {"name": "ward", "kind": "categorical", "levels": list(WARDS)},
            {"name": "blood", "kind": "categorical", "levels": list(BLOODS)},
        ],
        "discovery": {"features": "one-hot", "restarts": 2},
        "consensus": {"faulty": faulty},
        "training": {"rounds": 0},
        "privacy": {
            "epsilon": epsilon, "delta": 1e-5, "split": {"evidence": 1.0, "training": 0.0, "evaluation": 0.0},
        },
        "members": {"n_min": 50, "n_max": 5000, "deadline": 60.0},
        "effects": [{"treatment": "dose", "outcome": "stay", "adjustment": ["age", "blood"]}],
    }  # fmt: skip
    for table, keys in tables.items():
        value[table] = {**value[table], **keys} if isinstance(keys, dict) else keys
    return Study.from_mapping(value)
