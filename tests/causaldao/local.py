"""A small study of local ballots, and the moments that its members would keep to themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.simulations.datasets import linear_gaussian
from causaldao.study import Study
from tests.causaldao.cases import released

WHOLE = {"evidence": 1.0, "training": 0.0, "evaluation": 0.0}


def local_study(names: str = "abcd", faulty: int = 0, **tables: Any) -> Study:
    """Continuous variables within ±6, and whole tables replaced by ``tables``."""
    value = {
        "study": {"name": "local", "question": "What moves d?", "purpose": "A test.", "retention": "A day."},
        "variables": [{"name": name, "kind": "continuous", "bounds": [-6.0, 6.0]} for name in names],
        "discovery": {"evidence": "local", "restarts": 2},
        "consensus": {"faulty": faulty},
        "training": {"rounds": 0},
        "privacy": {"epsilon": 40.0, "delta": 1e-5, "split": WHOLE},
        "members": {"n_min": 50, "n_max": 5000},
        **tables,
    }
    value["study"] = {**value["study"], "simulation": True}
    return Study.from_mapping(value)


def moments(rng: np.random.Generator, asked: Study, graph: CausalGraph, n: int = 2000) -> Evidence:
    """The noisy moments of n records of a linear model on a DAG, each weight 0.8 and each error of variance 1."""
    rows = linear_gaussian(dict.fromkeys(sorted(graph.directed), 0.8), n, rng, asked.names)
    return released(rng, rows, asked)
