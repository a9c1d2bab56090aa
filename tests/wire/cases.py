"""What the tests over the wire share: a study of five members that bears one, and its answer from the inline engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from causaldao.audit import audit
from causaldao.client.overview import status
from causaldao.client.receipts import Receipts
from causaldao.ledger.verify import Policy, Report, verify, verify_receipt
from causaldao.signing import sha256
from causaldao.simulations.federation import Setting, simulate
from causaldao.study import Study
from tests.simulations import small

MEMBERS = 5
SEED = 7
NAMES = tuple(f"hospital-{k + 1:02d}" for k in range(MEMBERS))


def study(*, rounds: int = 1, faulty: int = 1, deadline: float = 120.0, **tables: Any) -> Study:
    return small.study(
        faulty=faulty, rounds=rounds, members={"n_min": 50, "n_max": 2000, "deadline": deadline}, **tables
    )


def tables(members: int = MEMBERS) -> dict[str, pd.DataFrame]:
    """Each member's rows: the chain, and a treatment ``t`` of two values that a moves."""
    table = small.table(rows=300 * members, seed=SEED)
    table["t"] = (table["a"] + np.random.default_rng(SEED).normal(size=len(table)) > 0).astype(np.float64)
    return {name: table.iloc[k::members].reset_index(drop=True) for k, name in enumerate(NAMES[:members])}


def with_sums() -> dict[str, Any]:
    """The tables of a study that asks for the effect of ``t`` on c by members' sums too, whatever it trains."""
    chain = study()
    effect = {"treatment": "t", "outcome": "c", "adjustment": ["a"], "method": "aipw", "spread": 0.0}
    split = {"evidence": 0.4, "training": 0.3, "evaluation": 0.1, "effects": 0.2}
    return {
        "variables": [
            *(variable.model_dump(mode="json") for variable in chain.variables),
            {"name": "t", "kind": "binary", "bounds": [0, 1]},
        ],
        "privacy": {"epsilon": 40.0, "delta": 1e-5, "split": split},
        "effects": [*chain.to_json()["effects"], effect],
    }


def answer(result: dict[str, Any]) -> dict[str, Any]:
    """What two runs of a study with the same noise share."""
    effects = [{key: value for key, value in effect.items() if key != "pooled"} for effect in result["effects"]]
    return {"graph": result["graph"], "marks": result["marks"], "effects": effects}


def inline(asked: Study, out: Path, members: int = MEMBERS) -> dict[str, Any]:
    """The result of the same study and rows on the inline engine."""
    return simulate(asked, tables(members), out, Setting(members=members, seed=SEED))


def written(folder: Path) -> dict[str, Any]:
    """A run folder's result."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def audited(folder: Path) -> Report:
    """A run folder's bundle, verified with the cosignatures that its policy asks for; all decisions hold."""
    policy = Policy.parse((folder / "policy").read_text())
    report = verify((folder / "ledger.bundle").read_bytes(), policy)
    assert not policy.satisfied([])  # it asks for some
    assert len(report.cosigners) >= report.quorum
    assert not audit(report).faults
    return report


def receipted(node: Path, asked: Study, policy: Policy) -> set[tuple[str, int]]:
    """Kind and round of a node's words in a study; it has a receipt of each, which is of that word and holds."""
    words = Receipts(node).words(asked.hash)
    for word in words:
        receipt, record = (node / "receipts" / f"{word.name}.{end}" for end in ("tlog-proof", "record"))
        line = verify_receipt(receipt.read_text(), record.read_bytes(), policy)
        assert (line.index, line.body["member"]) == (word.entry, node.name)
        assert sha256(line.body["envelope"].encode()) == word.envelope
    assert status(node)["witness"]["status"] == "witnessing"
    return {(word.kind, word.round) for word in words}
