"""NOTEARS and DAGMA on random linear models: in the units of the data and standardised, beside BOSS and gcastle.

ER2: 20 variables, four neighbours each on average, weights ±U(.5, 2), unit noise, 1,000 rows. ``directed_f1`` is of the
edges of the DAG of a continuous method; BOSS ends in a class, of which it counts the directed edges only.
``varsortability`` is that of the graph found, in the units of the data. Seconds are of the processor; gcastle's NOTEARS
takes its turn on the same rows and reads them, where ours reads second moments.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd

from causaldao.errors import MisuseError
from causaldao.models.discovery import search
from causaldao.models.discovery.evidence import Evidence, Floats
from causaldao.models.graph import Pair
from causaldao.models.pattern import f1

RECORDS, DEGREE, WEIGHTS = 1000, 4.0, (0.5, 2.0)
REMEDY = "not installed: pip install gcastle==1.0.4"
_RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "notears raw": ("notears", {"standardise": False}),
    "notears standardised": ("notears", {}),
    "dagma raw": ("dagma", {"standardise": False}),
    "dagma standardised": ("dagma", {}),
    "boss": ("boss", {}),
}


def measure(*, seeds: int = 10, variables: int = 20) -> dict[str, Any]:
    """Means over the seeds; the ratio of times is the median of pairs."""
    if seeds < 1 or variables < 2:
        raise MisuseError(f"seeds={seeds}, variables={variables}: expected one seed and two variables at least.")
    peer = _gcastle()
    found: dict[str, list[dict[str, float | None]]] = {name: [] for name in _RUNS}
    for seed in range(seeds):
        sys.stderr.write(f"continuous: seed {seed + 1} of {seeds}\n")
        frame, truth = _drawn(np.random.default_rng(seed), variables)
        for name, (method, options) in _RUNS.items():
            found[name].append(_ours(frame, truth, method, options))
        for name, rows in (("gcastle notears raw", frame), ("gcastle notears standardised", frame / frame.std(ddof=0))):
            if peer is not None:
                found.setdefault(name, []).append(_theirs(peer, rows, truth))
    result: dict[str, Any] = {name: _means(runs) for name, runs in found.items()}
    return {
        "setting": {"variables": variables, "records": RECORDS, "degree": DEGREE, "seeds": seeds},
        "gcastle": REMEDY if peer is None else version("gcastle"),
        **result,
        **({} if peer is None else {"seconds_gcastle_over_ours": _ratio(found)}),
    }


def _drawn(rng: np.random.Generator, d: int) -> tuple[pd.DataFrame, frozenset[Pair]]:
    """Rows of a random model, and its edges; columns in an order that tells nothing."""
    names = [f"v{i:02}" for i in range(d)]
    order = rng.permutation(d)
    matrix = np.zeros((d, d))
    present = np.triu(rng.random((d, d)) < min(1.0, DEGREE / (d - 1)), k=1)
    matrix[np.ix_(order, order)] = present * rng.uniform(*WEIGHTS, (d, d)) * rng.choice([-1, 1], (d, d))
    rows = rng.normal(size=(RECORDS, d)) @ np.linalg.inv(np.eye(d) - matrix)
    edges = frozenset((names[i], names[j]) for i, j in zip(*np.nonzero(matrix), strict=True))
    return pd.DataFrame(rows, columns=names), edges


def _ours(frame: pd.DataFrame, truth: frozenset[Pair], method: str, options: dict[str, Any]) -> dict[str, float | None]:
    began = time.process_time()
    found = search(Evidence.from_data(frame), method, **options)
    seconds = time.process_time() - began
    edges = frozenset(found.weights) or found.graph.directed
    return {"directed_f1": f1(edges, truth), "varsortability": found.varsortability, "seconds": seconds}


def _theirs(learn: Callable[[Floats], Floats], frame: pd.DataFrame, truth: frozenset[Pair]) -> dict[str, float | None]:
    rows = (frame - frame.mean()).to_numpy()
    began = time.process_time()
    matrix = learn(rows)
    seconds = time.process_time() - began
    names = list(frame.columns)
    edges = frozenset((names[i], names[j]) for i, j in zip(*np.nonzero(matrix), strict=True))
    return {"directed_f1": f1(edges, truth), "varsortability": None, "seconds": seconds}


def _gcastle() -> Callable[[Floats], Floats] | None:
    """gcastle's NOTEARS with its own defaults, which are those of `notears`; None where it is not installed."""
    if find_spec("castle") is None:
        return None
    algorithms = import_module("castle.algorithms")

    def learn(rows: Floats) -> Floats:
        model = algorithms.Notears()
        model.learn(rows)
        return np.asarray(model.causal_matrix, dtype=np.float64)

    return learn


def _means(runs: list[dict[str, float | None]]) -> dict[str, float | None]:
    values = {key: [run[key] for run in runs if run[key] is not None] for key in runs[0]}
    return {key: fmean(v for v in known if v is not None) if known else None for key, known in values.items()}


def _ratio(found: dict[str, list[dict[str, float | None]]]) -> float:
    pairs = zip(found["gcastle notears raw"], found["notears raw"], strict=True)
    return median(float(theirs["seconds"] or 0) / float(ours["seconds"] or 1) for theirs, ours in pairs)
