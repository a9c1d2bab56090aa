"""A planted chain under three conditions, whose directions no observation tells, as a study with environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from causaldao.study import Study

NAMES = "abcde"
TRUE = frozenset({("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")})  # a chain: observed, every direction is open
TARGETS: dict[str, list[str]] = {"plain": [], "held-b": ["b"], "held-d": ["d"]}
MEMBERS = 5


def study(targets: Mapping[str, list[str]] | None = None, **tables: Any) -> Study:
    """The study with one fault; ``targets`` {} leaves environments out."""
    declared = TARGETS if targets is None else targets
    value = {
        "study": {
            "name": "chain", "question": "What moves what?", "purpose": "A test.", "retention": "A day.",
            "simulation": True,
        },
        "variables": [{"name": name, "kind": "continuous", "bounds": [-6.0, 6.0]} for name in NAMES],
        "discovery": {"restarts": 2},
        "consensus": {"faulty": 1},
        "training": {"rounds": 0},
        "privacy": {
            "epsilon": 20.0, "delta": 1e-5, "split": {"evidence": 1.0, "training": 0.0, "evaluation": 0.0},
        },
        "members": {"n_min": 100, "n_max": 5000, "deadline": 60.0},
        "effects": [{"treatment": "b", "outcome": "d", "adjustment": []}],
        **({"environments": [{"name": name, "targets": held} for name, held in declared.items()]} if declared else {}),
        **tables,
    }  # fmt: skip
    return Study.from_mapping(value)


def rows(rng: np.random.Generator, environment: str, n: int = 600) -> pd.DataFrame:
    """(n, 5) records of the chain, .8 along each edge; what is held is drawn around 2, whatever its cause says. A
    condition also moves the mean of the last variable: of the machine, and no edge."""
    found = dict[str, np.ndarray[Any, Any]]()
    before: Any = 0.0
    for name in NAMES:
        drawn = 2.0 + 0.6 * rng.normal(size=n) if name in TARGETS[environment] else 0.8 * before + rng.normal(size=n)
        before = found[name] = drawn
    found["e"] = found["e"] + (0.0 if environment == "plain" else -1.0)
    return pd.DataFrame(found)


def federation(seed: int = 0, members: int = MEMBERS) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Each member's rows and the environment that it declares."""
    rng = np.random.default_rng(seed)
    declared = {f"{name}-{k}": name for name in TARGETS for k in range(members)}
    return {name: rows(rng, environment) for name, environment in declared.items()}, declared
