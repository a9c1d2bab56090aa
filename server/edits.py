"""Edits of a study's graph, as a coordinator's ledger has them: what stands, whether one more fits, and the proof of
it for a member."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from causaldao.edits import ENTRIES, MAX_REASON, Standing, Step, standing
from causaldao.errors import CausalDAOError, MisuseError
from causaldao.ledger.log import Log, Recorded
from causaldao.trail import Shown, Trail


def stands(log: Log, study: str) -> Standing:
    """The graph of a study after its edits. Errors as of `causaldao.edits.standing`."""
    return standing(study, _entries(log, study))


def require_fit(log: Log, body: Mapping[str, Any]) -> Step:
    """What an edit would change, by its entry's body; it makes sense for the study's graph as it stands now.

    Raises
    ------
    MisuseError
        the study is not on this ledger or has no graph yet, or there is no reason, or one too long.
    ConfigurationError
        it does not fit the graph, or would not do what it says that it does.
    """
    if not 0 < len(body["reason"].strip()) <= len(body["reason"]) <= MAX_REASON:
        raise MisuseError(f"An edit has a reason of 1 to {MAX_REASON} characters: say why, in a sentence or two.")
    return stands(log, body["study"]).require(body)


def words(log: Log, body: Mapping[str, Any]) -> str:
    """What an edit would change now, or why it cannot be."""
    try:
        return stands(log, body["study"]).told(body)
    except CausalDAOError as error:
        return f"it does not fit: {error.message}"


def trail(log: Log, study: str, size: int) -> Trail:
    """The checkpoint of ``size`` entries (0: of all) and what stands in it of the study's graph, each entry proven.

    Errors as of `stands`, and a LedgerError for a size that the ledger never had.
    """
    standing(study, entries := _entries(log, study, size or None))
    size = size or log.head.size
    shown = tuple(Shown(one.index, one.record, tuple(log.inclusion_proof(one.index, size))) for one in entries)
    return Trail(log.note_at(size), members=shown)


def _entries(log: Log, study: str, upto: int | None = None) -> tuple[Recorded, ...]:
    return log.entries(0, upto, kinds=ENTRIES, study=study)
