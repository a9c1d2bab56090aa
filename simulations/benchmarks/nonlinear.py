"""Feature maps beside Gaussian evidence, in one run on the same records: curved mechanisms, variables of mixed kinds.

`nonlinear`: each variable is a random network of its causes, 100 sigmoid units with weights from ±[.5, 2], and standard
normal noise, on random graphs of 20 variables and 40 edges (the NOTEARS-MLP setting: Zheng et al., 2020). One
institution, columns standardised; and 20 sites of 5,000 records, where each site releases its moments once under ε = 3,
δ = 1e-5, by the node's own code with simulated noise. Bounds are four standard deviations about the mean of other
records of the same model, as a dictionary would declare them, and a record's squared norm is clipped.

`mixed`: continuous, binary and categorical variables (3 or 4 levels) with linear, logistic and softmax mechanisms, on
random graphs of 10 variables and 20 edges.

What is scored is the skeleton: precision, recall and their harmonic mean F1, means over seeds. Settings were chosen on
seeds from 100 on; the defaults run seeds 0 to 9.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd

from causaldao.budget import multiplier
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import release_evidence
from causaldao.models.discovery import discover
from causaldao.models.discovery.evidence import Dictionary, Evidence, FeatureRows, Floats, Variable
from causaldao.models.discovery.features import FeatureMap, from_data, variables_of
from causaldao.models.graph import CausalGraph
from causaldao.models.pattern import f1

METHODS: Mapping[str, dict[str, Any]] = {"pc": {"alpha": 0.01}, "boss": {"restarts": 3}, "ges": {}}
_UNITS = 100
_SITES, _ROWS = 20, 5000
_EPSILON, _DELTA = 3.0, 1e-5
_LEVELS = (0, 0, 0, 0, 2, 2, 2, 3, 3, 4)  # of the mixed variables; 0: continuous

Scores = dict[str, list[dict[str, float]]]


def measure(
    *,
    seeds: int = 10,
    first: int = 0,
    records: Sequence[int] = (1000, 5000),
    parts: Sequence[str] = ("nonlinear", "private", "mixed"),
) -> dict[str, Any]:
    """Each part's mean scores, by evidence and method."""
    run: dict[str, Callable[[int], Mapping[str, tuple[Evidence, CausalGraph]]]] = {}
    if "nonlinear" in parts:
        run |= {f"nonlinear {n}": partial(_nonlinear, records=n) for n in records}
    run |= {name: make for name, make in (("private", _private), ("mixed", _mixed)) if name in parts}
    return {
        "seeds": [first, first + seeds - 1],
        **{name: _part(name, make, first, seeds) for name, make in run.items()},
    }


def _part(
    name: str, make: Callable[[int], Mapping[str, tuple[Evidence, CausalGraph]]], first: int, seeds: int
) -> dict[str, Any]:
    scores: Scores = defaultdict(list)
    for seed in range(first, first + seeds):
        for evidence, (moments, truth) in make(seed).items():
            for method, options in METHODS.items():
                began = time.perf_counter()
                found = discover(moments, method, **options).skeleton()
                seconds = time.perf_counter() - began
                scores[f"{evidence}, {method}"].append({**_scored(found, truth.skeleton()), "seconds": seconds})
        sys.stderr.write(f"{name}: seed {seed}\n")
    return {key: _summary(runs) for key, runs in scores.items()}


def _scored(found: frozenset[tuple[str, str]], truth: frozenset[tuple[str, str]]) -> dict[str, float]:
    right = len(found & truth)
    return {
        "f1": f1(found, truth),
        "precision": right / max(len(found), 1),
        "recall": right / max(len(truth), 1),
    }


def _summary(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    means = {key: mean(run[key] for run in runs) for key in runs[0]}
    spread = stdev(run["f1"] for run in runs) if len(runs) > 1 else 0.0
    return {**means, "f1_sd": spread, "f1_least": min(run["f1"] for run in runs)}


def _nonlinear(seed: int, records: int) -> dict[str, tuple[Evidence, CausalGraph]]:
    frame, graph = mlp(np.random.default_rng(seed), 20, records)
    fourier = from_data(frame, FeatureMap(variables_of(frame)))
    return {"gaussian": (Evidence.from_data(frame), graph), "fourier": (fourier, graph)}


def _private(seed: int) -> dict[str, tuple[Evidence, CausalGraph]]:
    frame, graph = mlp(np.random.default_rng(seed), 20, _ROWS * (_SITES + 1))
    known, rows = frame[:_ROWS], frame[_ROWS:]
    variables = tuple(
        Variable(name, bounds=(float(m - 4 * s), float(m + 4 * s)))
        for name, m, s in zip(known.columns, known.mean(), known.std(), strict=True)
    )
    maps: dict[str, FeatureRows] = {
        "gaussian": Dictionary(variables, 2.5),
        "fourier": FeatureMap(variables, waves=8, width=0.25, clip=22.5),
    }
    sites = [rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS)]
    return {name: (_pooled(sites, chosen, f"{seed} {name}"), graph) for name, chosen in maps.items()}


def _pooled(sites: Sequence[pd.DataFrame], chosen: FeatureRows, label: str) -> Evidence:
    """The sum of what the sites release under the budget."""
    sigma = math.ceil(multiplier(_EPSILON, _DELTA) * chosen.clip * chosen.lattice**2)
    source = NoiseSource.simulated(hashlib.sha256(label.encode()).digest())
    total = sum(release_evidence(site, chosen, sigma, source) for site in sites)
    one = Evidence.from_release(np.asarray(total), chosen, sigma)
    noise = one.noise * math.sqrt(len(sites))
    return Evidence(one.names, one.moments, noise, one.centre, one.half, one.blocks)


def _mixed(seed: int) -> dict[str, tuple[Evidence, CausalGraph]]:
    frame, graph = mixed(np.random.default_rng(seed), _LEVELS, 5000)
    numbers = frame.apply(lambda column: column if column.dtype.kind == "f" else column.astype("category").cat.codes)
    one_hot, fourier = (from_data(frame, FeatureMap(variables_of(frame), kind)) for kind in ("one-hot", "fourier"))
    found = {"identity (level numbers)": Evidence.from_data(numbers), "one-hot": one_hot, "fourier": fourier}
    return {name: (evidence, graph) for name, evidence in found.items()}


def random_graph(rng: np.random.Generator, d: int, edges: int) -> CausalGraph:
    """That many of the pairs, at random, directed along a random order."""
    names = [f"v{i:02}" for i in range(d)]
    order = rng.permutation(d)
    pairs = [(names[order[i]], names[order[j]]) for i in range(d) for j in range(i + 1, d)]
    return CausalGraph.dag([pairs[k] for k in rng.choice(len(pairs), edges, replace=False)], names)


def mlp(rng: np.random.Generator, d: int, n: int) -> tuple[pd.DataFrame, CausalGraph]:
    """(n, d) records of random networks with additive standard normal noise, and their graph of 2·d edges."""
    graph = random_graph(rng, d, 2 * d)
    columns: dict[str, Floats] = {}
    for node in graph.topological_order():
        columns[node] = rng.standard_normal(n)
        if parents := sorted(graph.parents(node)):
            into, out = _weights(rng, (len(parents), _UNITS)), _weights(rng, (_UNITS,))
            inputs = np.stack([columns[parent] for parent in parents], axis=1)
            columns[node] = columns[node] + (1 / (1 + np.exp(-inputs @ into))) @ out
    return pd.DataFrame({name: columns[name] for name in graph.nodes}), graph


def mixed(rng: np.random.Generator, levels: Sequence[int], n: int) -> tuple[pd.DataFrame, CausalGraph]:
    """(n, d) records of variables with so many levels each, 0 for a continuous one; and their graph of 2·d edges.

    A cause acts through a score: its value if continuous, else one number for each level, from -1 to 1 in a random
    order. A continuous effect is their weighted sum plus standard normal noise, a binary one logistic, a
    categorical one softmax in it with weights for each level; weights are from ±[.8, 1.6].
    """
    graph = random_graph(rng, len(levels), 2 * len(levels))
    kinds = dict(zip(graph.nodes, rng.permutation(levels).tolist(), strict=True))
    columns: dict[str, Any] = {}
    scores: dict[str, Floats] = {}
    for node in graph.topological_order():
        size, parents = kinds[node], sorted(graph.parents(node))
        inputs = np.stack([np.zeros(n), *(scores[parent] for parent in parents)], axis=1)
        if size == 0:
            values = inputs @ _weights(rng, (1 + len(parents),), 0.8, 1.6) + rng.standard_normal(n)
            columns[node], scores[node] = values, (values - values.mean()) / values.std()
            continue
        towards = inputs @ _weights(rng, (1 + len(parents), size), 0.8, 1.6)
        chosen = (towards + rng.gumbel(size=(n, size))).argmax(axis=1)
        columns[node] = np.array([f"l{i}" for i in range(size)])[chosen] if size > 2 else chosen.astype(np.float64)
        scores[node] = rng.permutation(np.linspace(-1, 1, size))[chosen]
    return pd.DataFrame({name: columns[name] for name in graph.nodes}), graph


def _weights(rng: np.random.Generator, shape: tuple[int, ...], low: float = 0.5, high: float = 2.0) -> Floats:
    drawn: Floats = rng.uniform(low, high, shape) * rng.choice([-1.0, 1.0], shape)
    return drawn
