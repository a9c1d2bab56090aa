"""What the node's owner decided about studies: one file for each study, and nothing is approved by default.

``approvals/<hash>.json`` holds the study itself, so that what was approved can be read later and cannot be altered
without its hash telling. Files are written whole and read again each time the node answers: a decision acts at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from causaldao.budget import epsilon_of, plan
from causaldao.errors import CausalDAOError, ConfigurationError, DeclinedError, RefusedError
from causaldao.files import write_text
from causaldao.study import Study

FOLDER = "approvals"
APPROVED, DECLINED = "approved", "declined"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Decision:
    """What was decided about a study, when (ISO 8601) and by whom."""

    study: Study
    decision: str
    at: str
    by: str


def releases(study: Study) -> list[dict[str, Any]]:
    """What the node would release in a study, each with its ε at the study's δ if it were alone.

    Costs compose, so their sum exceeds the study's ε; what all of them spend together is the plan's.
    """
    planned = plan(study)
    rounds = f"in each of {planned.rounds} rounds"
    asked = ", ".join(f"{effect.treatment} on {effect.outcome}" for effect in study.robust_effects)
    what = [
        "ballot, once: a causal graph that the node finds in noisy second moments of the variables, which it keeps"
        if study.local
        else "evidence, once: noisy second moments of the variables",
        *([f"effects, once: for each of {asked}, three noisy sums over the records"] if asked else []),
        f"training, {rounds}: the noisy change of the model's parameters",
        f"evaluation, {rounds}: one noisy mean loss",
    ]
    return [
        {"what": text, "epsilon": epsilon_of([spend], planned.delta), "delta": planned.delta}
        for text, spend in zip(what, planned.spends, strict=False)
    ]


def approve(folder: Path, study: Study, now: datetime, by: str = "") -> Path:
    """Record that the owner approves a study; returns the file. A study that was declined is no longer so."""
    return _record(folder, study, APPROVED, now, by)


def decline(folder: Path, study: Study, now: datetime, by: str = "") -> Path:
    """Record that the owner declines a study, so that its operator need not wait; returns the file."""
    return _record(folder, study, DECLINED, now, by)


def withdraw(folder: Path, study: str) -> None:
    """Take back the decision about a study, by its hash: the node answers nothing more in it.

    Raises
    ------
    ConfigurationError
        nothing was decided about that study.
    """
    try:
        _path(folder, study).unlink()
    except FileNotFoundError as error:
        raise ConfigurationError(f"Nothing is recorded about study {study[:12]} in {folder / FOLDER}.") from error


def decisions(folder: Path) -> tuple[Decision, ...]:
    """Every decision, the latest first; a file that was altered is a RefusedError that names it."""
    files = sorted((folder / FOLDER).glob("*.json"))
    found = [decision for file in files if (decision := _decision(folder, file.stem)) is not None]
    return tuple(sorted(found, key=lambda decision: decision.at, reverse=True))


def approved(folder: Path) -> frozenset[str]:
    """Hashes of the approved studies, read now; errors as for `decisions`."""
    return frozenset(d.study.hash for d in decisions(folder) if d.decision == APPROVED)


def declined(folder: Path) -> frozenset[str]:
    """Hashes of the declined studies, read now; errors as for `decisions`."""
    return frozenset(d.study.hash for d in decisions(folder) if d.decision == DECLINED)


def require(folder: Path, study: str, listed: Collection[str] = ()) -> None:
    """Return if the study of this hash is approved, by its file or by being ``listed`` in the node's own file.

    Raises
    ------
    DeclinedError
        its owner declined it.
    RefusedError
        nobody approved it, or its file was altered since.
    """
    decision = _decision(folder, study)
    if decision is not None and decision.decision == DECLINED:
        raise DeclinedError(f"Study {study[:12]} was declined here on {decision.at}.")
    if decision is None and study not in listed:
        raise RefusedError(
            f"Study {study[:12]} is not approved here: its owner must approve that hash before any row is read."
        )


def _record(folder: Path, study: Study, decision: str, now: datetime, by: str) -> Path:
    path = _path(folder, study.hash)
    value = {
        "v": 1, "decision": decision, "hash": study.hash, "at": now.isoformat(timespec="seconds"), "by": by,
        "releases": releases(study), "study": study.to_json(),
    }  # fmt: skip
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_text(path, json.dumps(value, indent=1, ensure_ascii=False), 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}. Nothing was decided.") from error
    return path


def _decision(folder: Path, study: str) -> Decision | None:
    path = _path(folder, study)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        document = Study.from_mapping(value["study"], path.name)
        decision, at, by = value["decision"], str(value["at"]), str(value["by"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, CausalDAOError) as error:
        raise RefusedError(
            f"{path} cannot be read ({error}), so nothing is answered in that study: {_AGAIN}"
        ) from error
    if document.hash != study or decision not in (APPROVED, DECLINED):
        raise RefusedError(
            f"{path} was altered after approval: the study in it has hash {document.hash[:12]}, its name says "
            f"{study[:12]}, its decision is {decision!r}. Nothing is answered in that study: {_AGAIN}"
        )
    return Decision(document, decision, at, by)


_AGAIN = "withdraw it, read the study, and approve it again."


def _path(folder: Path, study: str) -> Path:
    if not _HASH.fullmatch(study):
        raise RefusedError(f"{study[:80]!r} is no hash of a study: expected 64 hexadecimal digits.")
    return folder / FOLDER / f"{study}.json"
