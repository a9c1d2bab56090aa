"""Rules against attacks on real data: what each rule keeps of the score, and what it costs when nobody lies.

Twenty members, f of them liars who see every honest update and know the rule (`causaldao.simulations.attacks.updates`),
train a small network with client momentum, one member one weight. Per rule: the clean score, the score under each
attack, and the worst of them, as means over seeds with 95 % intervals (Student's t). The noisy cells are those of
private updates. The peer is byzfl's best rule under the same attacks, optimised against that rule, in the same run.

A peer does not meet three attacks: NaN and infinities, which it has no check for, and rows a million times too long,
on which its CAF does not end. The comparison leaves them out for both sides; our rules face them besides.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from causaldao.aggregation.rules import require
from causaldao.errors import MisuseError
from causaldao.files import write_text
from causaldao.simulations.attacks.updates import CRAFTS
from causaldao.simulations.benchmarks.robust_data import Task, deal, task
from causaldao.simulations.benchmarks.robust_peers import REMEDY, peer, peers
from causaldao.simulations.benchmarks.robust_tables import heat_map, markdown
from causaldao.simulations.benchmarks.robust_training import Recipe, Server, federate

MEMBERS = 20
NOISE = 0.02  # standard deviation by entry beside gradients clipped to 1: of 2,410 entries together as long as they are
DEFAULT = "arc+caf"
RULES = (
    "mean", "coordinate-median", "trimmed-mean", "geometric-median", "multi-krum", "nnm+trimmed-mean", "caf", DEFAULT,
)  # fmt: skip
FEWER = ("mean", "multi-krum", "nnm+trimmed-mean", DEFAULT)
NONE = "none"
ATTACKS = (*CRAFTS, "label-flip", "backdoor")
UNMET = ("nan", "inf", "large-norm")  # by the peer
ALLOWED = 0.03  # by which the default's worst score may be below the peer's


@dataclass(frozen=True)
class Cell:
    """One setting, and the rules that are tried in it."""

    data: str
    alpha: float
    faulty: int
    noise: float = 0.0
    rules: tuple[str, ...] = RULES
    with_peer: bool = False


CELLS = (
    Cell("digits", 0.1, 4, with_peer=True),
    Cell("digits", 1.0, 4, with_peer=True),
    Cell("digits", 10.0, 4, rules=FEWER),
    Cell("digits", 1.0, 4, NOISE),
    Cell("digits", 0.1, 8, rules=FEWER),
    Cell("digits", 1.0, 8, rules=FEWER),
    *(Cell(data, alpha, 4, rules=FEWER) for data in ("breast-cancer", "rand-hie") for alpha in (0.1, 1.0, 10.0)),
)
RECIPES = {
    "digits": Recipe(),
    "breast-cancer": Recipe(rounds=60, batch=16, hidden=16, rate=0.2),
    "rand-hie": Recipe(rounds=60, hidden=0, rate=0.1),
}


def measure(
    *,
    seeds: int = 5,
    out: str | Path | None = None,
    cells: Sequence[Cell] = CELLS,
    attacks: Sequence[str] = ATTACKS,
    rounds: int | None = None,
    processes: int = 2,
) -> dict[str, Any]:
    """Every cell's rules under every attack; with ``out``, also ``robustness.json``, ``.md`` and ``.svg`` there.

    ``rounds`` replaces those of the recipes. The numbers do not depend on ``processes``.

    Raises
    ------
    MisuseError
        an unknown rule, attack or data set; seeds or processes below 1.
    ConfigurationError
        scikit-learn or statsmodels is needed and not installed: names the remedy.
    GuaranteeError
        a cell's f is more than a rule bears.
    """
    _require(seeds, processes, cells, attacks)
    began = time.perf_counter()
    works = [
        _Work(cell, rule, seed, tuple(attacks), rounds)
        for cell in cells
        for rule in (*cell.rules, *(peers() if cell.with_peer else ()))
        for seed in range(seeds)
    ]
    found = dict[_Work, dict[str, dict[str, float]]]()
    for work, outcome in zip(works, _results(works, processes), strict=True):
        found[work] = outcome
        sys.stderr.write(f"robustness: {len(found)} of {len(works)}, {work.cell.data} under {work.rule}\n")
    described = [_described(cell, seeds, attacks, rounds, found) for cell in cells]
    result = {
        "members": MEMBERS,
        "seeds": seeds,
        "attacks": list(attacks),
        "cells": described,
        "peer": {"installed": bool(peers()), "remedy": "" if peers() else REMEDY},
        "acceptance": [_compared(one) for one in described if one["peers"] and DEFAULT in one["rules"]],
        "seconds": time.perf_counter() - began,
    }
    if out is not None:
        _write(Path(out), result)
    return result


@dataclass(frozen=True)
class _Work:
    """One rule in one cell with one seed, under all attacks: what a process does at a time."""

    cell: Cell
    rule: str
    seed: int
    attacks: tuple[str, ...]
    rounds: int | None


def _require(seeds: int, processes: int, cells: Sequence[Cell], attacks: Sequence[str]) -> None:
    for name, value in (("seeds", seeds), ("processes", processes)):
        if value < 1:
            raise MisuseError(f"{name} = {value} must be 1 or more.")
    unknown = sorted(set(attacks) - set(ATTACKS))
    if unknown:
        raise MisuseError(f"There is no attack {unknown[0]!r} in this benchmark; choose of {', '.join(ATTACKS)}.")
    for cell in cells:
        task(cell.data, 0)
        for rule in cell.rules:
            require(rule, MEMBERS, cell.faulty)


def _results(works: Sequence[_Work], processes: int) -> Iterator[dict[str, dict[str, float]]]:
    if processes == 1:
        yield from map(_done, works)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_done, works)


def _done(work: _Work) -> dict[str, dict[str, float]]:
    """By attack: the score, and how far a backdoor that was planted works."""
    torch.set_num_threads(1)
    cell, seed = work.cell, work.seed
    learned = _task(cell.data, seed)
    parts = deal(learned.strata, MEMBERS, cell.alpha, np.random.default_rng([seed, 11]))
    recipe = replace(RECIPES[cell.data], noise=cell.noise)
    recipe = recipe if work.rounds is None else replace(recipe, rounds=work.rounds)
    function = peer(work.rule, cell.faulty)
    results = {}
    for attack in (NONE, *work.attacks):
        if function is not None and attack in UNMET:
            continue
        server = Server(work.rule, cell.faulty, seed, function)
        outcome = federate(learned, parts, attack, server, recipe, seed)
        results[attack] = {key: value for key, value in asdict(outcome).items() if value is not None}
    return results


@lru_cache(maxsize=2)
def _task(data: str, seed: int) -> Task:
    return task(data, seed)


def _described(
    cell: Cell, seeds: int, attacks: Sequence[str], rounds: int | None, found: Mapping[_Work, dict[str, Any]]
) -> dict[str, Any]:
    def runs(rule: str) -> list[dict[str, Any]]:
        return [found[_Work(cell, rule, seed, tuple(attacks), rounds)] for seed in range(seeds)]

    tried = peers() if cell.with_peer else ()
    setting = {"data": cell.data, "alpha": cell.alpha, "faulty": cell.faulty, "noise": cell.noise}
    return {
        **setting,
        "rules": {rule: _summed(runs(rule)) for rule in cell.rules},
        "peers": {rule: _summed(runs(rule)) for rule in tried},
    }


def _summed(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Of one rule: the clean score, each attack's, the worst of them, and the backdoors' success."""
    tried = [attack for attack in runs[0] if attack != NONE]
    scores = {attack: _mean([run[attack]["score"] for run in runs]) for attack in tried}
    planted = [attack for attack in tried if "backdoor" in runs[0][attack]]
    return {
        "clean": _mean([run[NONE]["score"] for run in runs]),
        "attacks": scores,
        "worst": _worst(scores),
        "worst_by_seed": [min(run[attack]["score"] for attack in tried) for run in runs] if tried else [],
        "backdoor": {attack: _mean([run[attack]["backdoor"] for run in runs]) for attack in planted},
    }


def _worst(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The attack under which the mean over seeds is least."""
    if not scores:
        return None
    attack = min(scores, key=lambda name: scores[name]["mean"])
    return {"attack": attack, **scores[attack]}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval by Student's t; one value has no interval."""
    mean = fmean(values)
    if len(values) < 2:
        return {"mean": mean, "interval": None, "scores": list(values)}
    reach = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "interval": [mean - reach, mean + reach], "scores": list(values)}


def _compared(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The default beside the peer's best rule, by the worst score over the attacks that both met."""
    met = {a: s for a, s in cell["rules"][DEFAULT]["attacks"].items() if a not in UNMET}
    best = max(cell["peers"], key=lambda rule: cell["peers"][rule]["worst"]["mean"])
    ours, theirs = _worst(met), cell["peers"][best]["worst"]
    assert ours is not None  # a peer that was tried met an attack, and so did the default
    return {
        **{key: cell[key] for key in ("data", "alpha", "faulty", "noise")},
        "default": DEFAULT, "ours": ours["mean"], "under": ours["attack"],
        "peer": best, "theirs": theirs["mean"], "peer_under": theirs["attack"],
        "holds": ours["mean"] >= theirs["mean"] - ALLOWED,
    }  # fmt: skip


def _write(folder: Path, result: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "robustness.json", json.dumps(result, indent=1))
    write_text(folder / "robustness.md", markdown(result))
    write_text(folder / "robustness.svg", heat_map(result["cells"]))
