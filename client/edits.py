"""Edits of a study's graph, as a member sees and proposes them.

What the coordinator tells of a graph is not believed: the entries from which it follows (the study, its adoption and
the edits since) are each proven to stand in a checkpoint that the pinned key of the log signed, and the graph is
computed here (`causaldao.edits`). When a vote is signed that checkpoint is the one that this member's witness has just
cosigned. What is not shown is that no edit was left out; with one missing, what is voted may not fit the ledger, and is
then not recorded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from causaldao.client import enrolment
from causaldao.client.enrolment import PATIENCE, Patience
from causaldao.edits import ENTRIES, Standing, standing
from causaldao.errors import IdentityError, LedgerError, ProofError
from causaldao.ledger import merkle
from causaldao.ledger.note import LOG, Checkpoint, Verifier, open_note
from causaldao.signing import VerifyKey
from causaldao.trail import Shown, Trail


@dataclass(frozen=True)
class _Line:
    index: int
    kind: str
    body: Mapping[str, Any]


def look(
    folder: Path, study: str, now: datetime, seen: Checkpoint | None = None, *, patience: Patience = PATIENCE
) -> Standing:
    """The graph of a study after its edits, by what the coordinator shows of the ledger, checked.

    ``seen`` is the checkpoint in which it must stand; None: any that the log signed, for whoever only looks.

    Raises
    ------
    IdentityError, LedgerError
        what is shown is not of this log, or does not stand in the checkpoint.
    MisuseError
        the study is not on this ledger, or has adopted no graph yet.
    NetworkError
        the coordinator cannot be reached.
    """
    federation = enrolment.read_federation(folder)
    text = enrolment.graph(folder, study, 0 if seen is None else seen.size, now, patience=patience)
    trail = Trail.unpack(text.encode())
    key = Verifier(federation["origin"], LOG, VerifyKey.from_text(federation["coordinator"])[1].raw)
    checkpoint = open_note(trail.checkpoint, key)
    if seen is not None and (checkpoint.size, checkpoint.root) != (seen.size, seen.root):
        raise LedgerError(
            f"The coordinator shows the graph in a ledger of {checkpoint.size} entries, root "
            f"{checkpoint.root.hex()[:16]}, but this node's witness has just seen {seen.size}, root "
            f"{seen.root.hex()[:16]}: nothing was signed. Ask the operator, and compare with the other members."
        )
    lines = [_proven(entry, checkpoint) for entry in trail.members]
    if [line.index for line in lines] != sorted({line.index for line in lines}):
        raise IdentityError("The entries on the graph are not shown in the ledger's order.")
    return standing(study, lines)


def _proven(entry: Shown, checkpoint: Checkpoint) -> _Line:
    """An entry that stands in the checkpoint."""
    try:
        merkle.verify_inclusion(
            merkle.leaf_hash(entry.record), entry.index, checkpoint.size, list(entry.proof), checkpoint.root
        )
        value = json.loads(entry.record)
        line = _Line(value["index"], value["kind"], value["body"])
        fits = line.index == entry.index and line.kind in ENTRIES and isinstance(line.body, dict)
    except (ProofError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise IdentityError(f"Entry {entry.index} is shown as one on the graph, and is not proven: {error}.") from error
    if not fits:
        raise IdentityError(f"Entry {entry.index} is not one on a study's graph.")
    return line
