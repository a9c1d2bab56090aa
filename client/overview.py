"""What a node's owner wants to see at a glance: the budget as a meter, the state of the node, a study to decide on.

Everything here reads the node's own folder and sends nothing.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from causaldao.budget import epsilon_of, plan
from causaldao.children import born
from causaldao.client import approvals
from causaldao.client.answers import Answers
from causaldao.client.config import FEDERATION_FILE, NODE_FILE, NodeConfig, read_text
from causaldao.client.fit import declaration, study_mismatches
from causaldao.client.node import Node
from causaldao.client.privacy.journal import Journal
from causaldao.client.receipts import Receipts
from causaldao.client.witnessing import open_witness
from causaldao.declared import Declaration
from causaldao.errors import CausalDAOError, ConfigurationError
from causaldao.signing import VerifyKey
from causaldao.study import Study

_PARTS = (
    "signing.pem", "witness.pem", "tls.pem", NODE_FILE, FEDERATION_FILE, "certificate.pem", "journal.db", "witness.db",
)  # fmt: skip


def meter(config: NodeConfig, folder: Path) -> dict[str, Any]:
    """What each study, and all together, spent of the data set's lifetime cap, at the cap's δ."""
    path, cap = folder / "journal.db", config.lifetime
    debits = Journal.open(path).debits(config.dataset) if path.exists() else ()
    studies = [
        {
            "study": study,
            "name": _name(folder, study),
            "epsilon": epsilon_of([s for d in debits if d.key.study == study for s in d.spends], cap.delta),
        }
        for study in dict.fromkeys(debit.key.study for debit in debits)
    ]
    spent = epsilon_of([spend for debit in debits for spend in debit.spends], cap.delta)
    return {"dataset": config.dataset, "spent": spent, **cap.model_dump(), "studies": studies}


def review(config: NodeConfig, folder: Path, study: Study) -> dict[str, Any]:
    """What an owner must know before deciding: what is asked, what would be released to whom, what it costs."""
    planned, cap = plan(study), config.lifetime
    path = folder / "journal.db"
    debits = Journal.open(path).debits(config.dataset) if path.exists() else ()
    others = [spend for debit in debits if debit.key.study != study.hash for spend in debit.spends]
    after = epsilon_of([*others, *planned.spends], cap.delta)
    about, unfit = study.study, list(study_mismatches(config, study))
    declares: Declaration | None = None
    try:
        declares = declaration(config, study)
    except ConfigurationError as error:
        unfit.append(str(error))
    return {
        "study": study.name, "hash": study.hash, "question": about.question, "purpose": about.purpose,
        "retention": about.retention, "variables": [variable.model_dump(mode="json") for variable in study.variables],
        "federation": config.federation, "coordinator": _coordinator(config), "simulation": about.simulation,
        "releases": approvals.releases(study), "epsilon": planned.epsilon, "delta": planned.delta,
        "lifetime": {"dataset": config.dataset, "after": after, **cap.model_dump(), "fits": after <= cap.epsilon},
        "declares": [] if declares is None else declares.words(study),
        "mismatches": unfit, "decision": decision(config, folder, study.hash),
    }  # fmt: skip


def decision(config: NodeConfig, folder: Path, study: str) -> str:
    """approved, declined, pending, or altered if the record of it no longer holds."""
    try:
        approvals.require(folder, study, config.approved)
    except CausalDAOError as error:
        if error.code == "declined":
            return approvals.DECLINED
        return "altered" if (folder / approvals.FOLDER / f"{study}.json").exists() else "pending"
    return approvals.APPROVED


def status(folder: Path) -> dict[str, Any]:
    """Whether the node has joined, is admitted and is running, and what was decided."""
    config = NodeConfig.load(folder, joined=False)
    files = sorted((folder / approvals.FOLDER).glob("*.json"))
    known = dict.fromkeys([*(file.stem for file in files), *config.approved])
    return {
        "name": config.name, "dataset": config.dataset, "joined": bool(config.federation),
        "federation": config.federation, "coordinator": _coordinator(config),
        "certificate_until": _certificate_until(folder / "certificate.pem"), "process": _process(folder),
        "witness": _witness(folder, config),
        "studies": [
            {"hash": study, "name": _name(folder, study), "decision": decision(config, folder, study)}
            for study in known
        ],
    }  # fmt: skip


def _witness(folder: Path, config: NodeConfig) -> dict[str, Any] | None:
    """What this node saw of the ledger, and whether its words have receipts; None before it joined."""
    if not config.federation:
        return None
    words = Receipts(folder).words() if (folder / "receipts.db").exists() else []
    without = [word for word in words if word.entry is None]
    told = {
        "words": len(words), "without_receipt": len(without),
        "oldest_without_receipt": min((word.given for word in without), default=None),
    }  # fmt: skip
    try:
        witness = open_witness(Node.open(folder))
    except CausalDAOError as error:
        return {"status": "retired", "reason": str(error), "size": 0, "root": "", **told}
    seen = witness.seen
    return {"status": witness.status, "reason": witness.reason, "size": seen.size, "root": seen.root, **told}


def there(folder: Path) -> list[str]:
    """The files of a node that are in a folder."""
    return [name for name in _PARTS if (folder / name).exists()]


def _coordinator(config: NodeConfig) -> str:
    """The id of the coordinator's key, empty before joining."""
    return VerifyKey.from_text(config.coordinator)[1].id if config.coordinator else ""


def _name(folder: Path, study: str) -> str:
    """A study's name, as far as the node was told: by its approval, or by a roll call that it answered."""
    try:
        value = json.loads((folder / approvals.FOLDER / f"{study}.json").read_text(encoding="utf-8"))
        return str(value["study"]["study"]["name"])
    except (OSError, ValueError, KeyError, TypeError):  # that a record was altered is told by `decision`
        answers = folder / "answers.db"
        document = Answers(answers).study(study) if answers.exists() else None
        return "" if document is None else str(document["study"]["name"])


def _certificate_until(path: Path) -> str | None:
    """When the node's certificate ends; None before the operator admitted it."""
    if not path.exists():
        return None
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is no certificate ({error}): delete it and start the node.") from error
    ends: datetime = certificate.not_valid_after_utc
    return ends.isoformat(timespec="seconds")


def _process(folder: Path) -> dict[str, Any]:
    """What the running process wrote of itself, and whether it is still there."""
    path = folder / "run" / "status.json"
    if not path.exists():
        return {"running": False, "state": "stopped", "error": ""}
    try:
        value = json.loads(read_text(path))
        found = {
            "state": str(value["state"]),
            "error": str(value.get("error", "")),
            "since": str(value.get("since", "")),
        }
        return {**found, "pid": int(value["pid"]), "running": _alive(int(value["pid"]), value.get("born"))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error}): delete it; a node that runs writes it anew."
        ) from error


def _alive(process: int, since: int | None) -> bool:
    """Whether the process that wrote of itself is still there, and not another under its number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return since in (None, born(process))
