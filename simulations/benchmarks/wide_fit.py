"""`moment-fit` beyond twenty variables: time, memory and graph, beside BOSS in the same pool.

The worlds are those of `causaldao bench federated`: 20 sites of 5,000 records at ε = 1, nobody lies, pooled by the
sieve with what the clip took put back. Graphs are the proposals, compared with the true CPDAG; ``rows`` is BOSS on all
rows in one place, without noise. Times are CPU seconds of one thread; ``more_mib`` is by how much the search raised
what the process had held at most. Each world is a process of its own, ended after ``limit`` seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from causaldao.ballots import propose
from causaldao.models.discovery.clipping import restoration, restored
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.knowledge import NONE
from causaldao.models.pattern import cpdag_of
from causaldao.pool import Settings, pool
from causaldao.simulations.benchmarks.federated import scored
from causaldao.simulations.benchmarks.federated_worlds import World, releases
from causaldao.simulations.benchmarks.memory import most_held

SITES, ROWS, EPSILON, FAULTY = 20, 5000, 1.0, 7
_MODULE = "causaldao.simulations.benchmarks.wide_fit"


def measure(
    *,
    sizes: Sequence[int] = (20, 30, 40, 50),
    graphs: Sequence[str] = ("ER1", "ER2"),
    weights: Sequence[str] = ("moderate",),
    seeds: int = 5,
    limit: float = 900.0,
) -> dict[str, Any]:
    """For each size, graph and range of weights the means over the seeds from 0 on; of the times also the most."""
    return {
        "seeds": seeds,
        "settings": [
            _setting(graph, weight, d, seeds, limit) for d in sizes for graph in graphs for weight in weights
        ],
    }  # fmt: skip


def _setting(graph: str, weights: str, d: int, seeds: int, limit: float) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {}
    late = 0
    for seed in range(seeds):
        sys.stderr.write(f"wide-fit: {graph}/{weights}, d {d}, seed {seed}\n")
        command = [sys.executable, "-m", _MODULE, graph, weights, str(d), str(seed)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit)
        except subprocess.TimeoutExpired:
            late += 1
            continue
        for name, found in json.loads(done.stdout).items():
            runs.setdefault(name, []).append(found)
    methods = {
        name: {key: fmean(run[key] for run in found) for key in found[0]}
        | {"seconds_median": median(run["seconds"] for run in found), "seconds_most": max(r["seconds"] for r in found)}
        for name, found in runs.items()
    }
    return {"graph": graph, "weights": weights, "d": d, "over_limit": late, "methods": methods}


def once(graph: str, weights: str, d: int, seed: int) -> dict[str, dict[str, float]]:
    """One world: by method what it found, how long it took and how much memory it added."""
    import torch

    torch.set_num_threads(1)
    world = World.draw(graph, weights, d, seed)
    rows = world.rows(ROWS * SITES, np.random.default_rng([seed, 32]))
    parts = {f"site-{k:02}": rows.iloc[k * ROWS : (k + 1) * ROWS].reset_index(drop=True) for k in range(SITES)}
    pooled = pool(releases(parts, world.dictionary, EPSILON, seed), Settings(FAULTY, "sieve")).evidence
    seen = restored(pooled, restoration(pooled, world.dictionary.clip))
    truth, found = cpdag_of(world.dag).edges, {}
    for name, evidence, search in (
        ("rows", Evidence.from_data(rows), "boss"), ("sieve", seen, "boss"), ("sieve+fit", seen, "moment-fit"),
    ):  # fmt: skip
        before, began = most_held(), time.process_time()
        proposal = propose(evidence, search, NONE, seed=seed)
        seconds, more = time.process_time() - began, (most_held() - before) / 2**20
        found[name] = scored(proposal.pattern.edges, truth) | {"seconds": seconds, "more_mib": more}
    return found


if __name__ == "__main__":
    json.dump(once(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])), sys.stdout)
