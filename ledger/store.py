"""The ledger's database: SQLite through SQLAlchemy Core, made durable and told apart from what it is not.

Durability duties, all kept here: write-ahead logging and ``synchronous=FULL`` are asked for *and read
back* (SQLite answers a refused ``journal_mode`` with the old mode and no error); a writing transaction
takes the write lock when it begins, so that what it reads is still so when it writes; DDL runs inside
transactions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

from causaldao.errors import LedgerError

_METADATA = sa.MetaData()
ENTRIES = sa.Table(
    "entries",
    _METADATA,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Column("link", sa.String(64), nullable=False),
    sa.Column("signature", sa.String(88), nullable=False),
    sa.Column("content", sa.String(64), nullable=False),
    sa.Column("key", sa.Text, unique=True),
)
PAYLOADS = sa.Table(
    "payloads",
    _METADATA,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
HEAD = sa.Table(
    "head",
    _METADATA,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("root", sa.String(64), nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("signature", sa.String(88), nullable=False),
)
STATE = sa.Table(
    "state",
    _METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)


def connect(url: str, *, create: bool = False) -> sa.Engine:
    """An engine on the SQLite database at ``url`` (``sqlite:///path``); it must exist unless ``create``.

    Raises
    ------
    LedgerError
        another database than SQLite, a missing file, one that cannot be write-ahead logged or is not a
        database.
    """
    with _wrapped("open the ledger's database"):
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            raise LedgerError(
                f"The ledger's database is {parsed.get_backend_name()!r}, but only SQLite keeps the ledger's "
                "promises in this version: use sqlite:///PATH."
            )
        path = Path((parsed.database or ":memory:").removeprefix("file:"))
        if not create and not path.exists():
            raise LedgerError(f"There is no ledger at {path}: check the path, or create one first.")
        engine = sa.create_engine(parsed)
        sa.event.listen(engine, "connect", _prepare)
        sa.event.listen(engine, "begin", _begin)
        return engine


@contextmanager
def transaction(engine: sa.Engine, action: str, *, write: bool) -> Iterator[sa.Connection]:
    """One transaction; database errors come out as LedgerError("Could not {action}: …") and undo all."""
    with _wrapped(action), engine.connect() as connection:
        options = connection.execution_options(ledger_begin="IMMEDIATE" if write else "DEFERRED")
        with options.begin():
            yield options


def migrate(connection: sa.Connection, *, create: bool = False) -> None:
    """Bring the schema to this version, inside the caller's transaction.

    Raises
    ------
    LedgerError
        the database has no ledger (unless ``create``), or one of a version that this program does not know.
    """
    context = MigrationContext.configure(connection)
    current = context.get_current_revision()
    with as_file(files("causaldao.ledger.migrations")) as folder:
        script = ScriptDirectory(str(folder))
        known = {revision.revision for revision in script.walk_revisions()}
        if current is None and not create:
            raise LedgerError("The database holds no ledger: check the path, or create one first.")
        if current is not None and current not in known:
            raise LedgerError(
                f"The ledger's database has version {current!r}, this program knows {sorted(known)}: "
                "it was written by a newer causaldao; install that one."
            )
        _upgrade(context, script, current)


def _upgrade(context: MigrationContext, script: ScriptDirectory, current: str | None) -> None:
    for revision in reversed(list(script.iterate_revisions("head", current or "base"))):
        with Operations.context(context):
            revision.module.upgrade()
        context.stamp(script, revision.revision)


def _prepare(connection: Any, _record: Any) -> None:
    # The driver's own transaction control commits before DDL; `_begin` takes its place.
    connection.isolation_level = None
    for pragma, value, expected in (("journal_mode", "WAL", "wal"), ("synchronous", "FULL", 2)):
        connection.execute(f"PRAGMA {pragma}={value}")
        (found,) = connection.execute(f"PRAGMA {pragma}").fetchone()
        if found != expected:
            connection.close()
            raise LedgerError(
                f"SQLite would not set {pragma}={value} (it says {found!r}), so a crash could lose "
                "entries: put the ledger on a local disk, in a file."
            )


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('ledger_begin', 'DEFERRED')}")


@contextmanager
def _wrapped(action: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise LedgerError(f"Could not {action}: {cause}.") from error
