"""The database of a coordinator's working state: the ledger's own, in tables that are not the ledger's.

A writer waits for the others, the ledger's among them, and sees what they wrote (`causaldao.ledger.store`), so that
what may happen once happens once, whatever number of processes ask.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import UTC, datetime

import sqlalchemy as sa

from causaldao.errors import LedgerError, MisuseError
from causaldao.ledger.store import connect, transaction

METADATA = sa.MetaData()
MIN_PREFIX = 8  # digits of a hash by which a study or a motion may be named


class Database:
    """The database at ``url`` (SQLite or PostgreSQL), for several processes at once.

    Raises
    ------
    LedgerError
        it cannot be opened, does not exist (a SQLite file, unless ``create``), or is one process's own. Each
        transaction raises it when the database fails, with the ``action`` that it was for.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        self._engine = connect(url, create=create)
        if self._engine.dialect.name == "sqlite" and self._engine.url.database in (None, "", ":memory:"):
            raise LedgerError(
                "The registry's database must be one that several processes can open, not one in memory: "
                "sqlite:///PATH or postgresql://…"
            )

    def close(self) -> None:
        self._engine.dispose()

    def write(self, action: str) -> AbstractContextManager[sa.Connection]:
        """One transaction that waits for other writers; it is undone if the block raises."""
        return transaction(self._engine, action, write=True)

    def read(self, action: str) -> AbstractContextManager[sa.Connection]:
        """One transaction that sees one state of the database."""
        return transaction(self._engine, action, write=False)


def to_text(now: datetime) -> str:
    """ISO 8601 in UTC, of one width: the order of texts is the order of times."""
    if now.tzinfo is None:
        raise MisuseError(f"The time {now.isoformat()} has no zone: give an aware one.")
    return now.astimezone(UTC).isoformat(timespec="milliseconds")


def to_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def maybe(text: str | None) -> datetime | None:
    return None if text is None else to_time(text)
