"""The demo's study over many seeds: does the answer stand, are the liars found,
and what would the plain mean have done.

Each seed deals the 20,190 person-years anew, draws other liars and other (simulated) noise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from causaldao.simulations.federation import Setting, simulate
from causaldao.simulations.scenarios import load_study, load_table

VARIANTS = {
    "rule": {"liars": 2, "attack": "forge", "rule": None},
    "mean": {"liars": 2, "attack": "forge", "rule": "mean"},
    "honest": {"liars": 0, "attack": "forge", "rule": None},
    "quiet": {"liars": 2, "attack": "quiet", "rule": None},
}


def measure(
    *, seeds: int = 20, variants: Sequence[str] = tuple(VARIANTS), scenario: str = "rand-hie"
) -> dict[str, Any]:
    """For each variant: the runs, and what they come to."""
    found = {name: _variant(scenario, seeds, VARIANTS[name]) for name in variants}
    if {"honest", "quiet"} <= set(found):
        found["quiet"] |= _moved(found["honest"]["runs"], found["quiet"]["runs"])
    return {"scenario": scenario, "seeds": seeds, **found}


def _variant(scenario: str, seeds: int, options: dict[str, Any]) -> dict[str, Any]:
    study = load_study(Path(scenario), rule=options["rule"])
    table = load_table(study.name)
    runs = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(10, options["liars"], options["attack"], seed)
            runs.append(line(seed, simulate(study, table, Path(folder) / "run", setting)))
    return {**_summary(runs), "runs": runs}


def _moved(honest: list[dict[str, Any]], quiet: list[dict[str, Any]]) -> dict[str, Any]:
    """How far the quiet liars move the answer: the same seeds, so the same split and the same noise,
    with and without.
    """
    moved = [abs(q["estimate"] - h["estimate"]) for h, q in zip(honest, quiet, strict=True)]
    within = sum(distance <= run["bound"] for distance, run in zip(moved, quiet, strict=True))
    return {"moved_median": median(moved), "moved_most": max(moved), "moved_within_bound": within}


def line(seed: int, result: dict[str, Any]) -> dict[str, Any]:
    """What a run of the demo's study came to: its one effect beside the pooled one, its accused beside its liars."""
    (effect,) = result["effects"]
    low, high = effect["interval"]
    return {
        "seed": seed,
        "estimate": effect["estimate"],
        "half_width": (high - low) / 2,
        "pooled": effect["pooled"],
        "covers": low <= effect["pooled"] <= high,
        "bound": effect["bound"],
        "accused": result["pool"]["accused"],
        "liars": result["simulation"]["liars"],
        "epsilon": max(result["privacy"]["spent"].values()),
        "edges": len(result["graph"]["pattern"]["edges"]),
        "contested": len(result["contested"]),
        "last_loss": result["rounds"][-1]["loss"],
        "seconds": sum(result["seconds"].values()),
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    estimates = [run["estimate"] for run in runs]
    bounds = [run["bound"] for run in runs if run["bound"] is not None]
    return {
        "negative": sum(estimate < 0 for estimate in estimates),
        "estimate_range": [min(estimates), max(estimates)],
        "estimate_median": median(estimates),
        "largest_distance_from_pooled": max(abs(run["estimate"] - run["pooled"]) for run in runs),
        "interval_covers_pooled": sum(run["covers"] for run in runs),
        "half_width_median": median(run["half_width"] for run in runs),
        "bound_median": median(bounds) if bounds else None,
        "accused_are_the_liars": sum(run["accused"] == run["liars"] for run in runs),
        "no_honest_accused": sum(set(run["accused"]) <= set(run["liars"]) for run in runs),
        "last_loss_median": median(run["last_loss"] for run in runs),
        "epsilon_largest": max(run["epsilon"] for run in runs),
        "seconds_median": median(run["seconds"] for run in runs),
    }
