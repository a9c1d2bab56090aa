"""A small, fast study over synthetic tables: a -> b -> c, seven members that bear two liars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from causaldao.audit import Audit, audit
from causaldao.client.privacy.journal import Journal
from causaldao.ledger.verify import Line, Policy, verify
from causaldao.simulations.datasets import linear_gaussian
from causaldao.simulations.federation import Setting
from causaldao.study import Study

MEMBERS = 7
SETTING = Setting(members=MEMBERS)
WEIGHTS = {("a", "b"): 0.9, ("b", "c"): 0.8}


def study(*, faulty: int = 2, rounds: int = 1, simulation: bool = True, **tables: Any) -> Study:
    """The study, with whole tables replaced by ``tables``."""
    about = {"name": "small", "question": "Does a move c?", "purpose": "A test.", "retention": "A day."}
    split = {"evidence": 0.5, "training": 0.4, "evaluation": 0.1}
    value = {
        "study": {**about, "simulation": simulation},
        "variables": [{"name": name, "kind": "continuous", "bounds": [-6.0, 6.0]} for name in "abc"],
        "discovery": {"method": "boss", "restarts": 2},
        "consensus": {"faulty": faulty},
        "training": {"hidden": 2, "rounds": rounds, "steps": 2, "sample_rate": 0.1},
        "privacy": {"epsilon": 40.0, "delta": 1e-5, "split": split},
        "members": {"n_min": 50, "n_max": 2000, "deadline": 60.0},
        "effects": [{"treatment": "a", "outcome": "c", "adjustment": []}],
        **tables,
    }
    return Study.from_mapping(value)


def table(rows: int = 300 * MEMBERS, seed: int = 0) -> pd.DataFrame:
    """(rows, 3) records of the chain."""
    return linear_gaussian(WEIGHTS, rows, np.random.default_rng(seed))


def result_of(out: Path) -> dict[str, Any]:
    """What a run wrote, without what two runs of one seed need not share: times, keys and so the root, and at which
    sizes a run that was killed had its cosignatures kept."""
    value: dict[str, Any] = json.loads((out / "result.json").read_text())
    del value["seconds"]
    for name in ("root", "checkpoint", "checkpoints"):
        del value["ledger"][name]
    return value


def status(result: dict[str, Any], name: str) -> tuple[str, str]:
    """Status and reason of a member in a result."""
    (member,) = [member for member in result["members"] if member["name"] == name]
    return member["status"], member["reason"]


def lines(out: Path) -> tuple[Line, ...]:
    """The entries of a run's bundle, verified under its policy."""
    policy = Policy.parse((out / "policy").read_text())
    return verify((out / "ledger.bundle").read_bytes(), policy).entries


def audited(out: Path) -> Audit:
    """The audit of a run's bundle."""
    return audit(verify((out / "ledger.bundle").read_bytes(), Policy.parse((out / "policy").read_text())))


def debits(out: Path) -> dict[str, list[tuple[str, int, tuple[Any, ...]]]]:
    """By member: kind, round and cost of every line of its privacy journal."""
    return {
        folder.name: [(d.key.kind, d.key.round, d.spends) for d in Journal.open(folder / "journal.db").debits()]
        for folder in sorted((out / "nodes").iterdir())
    }
