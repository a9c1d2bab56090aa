"""The ledger's database, SQLite or PostgreSQL through SQLAlchemy Core, made durable and told apart from what it is not.

Duties, all kept here:

- **Durable commits.** SQLite: write-ahead logging and ``synchronous=FULL`` are asked for *and read back* (it answers a
  refused ``journal_mode`` with the old mode and no error). PostgreSQL: ``fsync`` and ``synchronous_commit`` are read,
  and a server or role that turned one off is refused by its name.
- **One writer at a time.** A writing transaction takes the write lock when it begins, so that what it reads is still so
  when it writes: ``BEGIN IMMEDIATE`` there, an advisory lock here, which also stands before there is any row to lock.
  Who waits longer than `LOCK_SECONDS` fails, and has written nothing.
- **One moment.** What a reading transaction reads is the database at one moment.
- **DDL inside transactions**, so that a creation or an upgrade is whole or not at all.
- **What is deleted is gone** from the database's own files: SQLite's ``secure_delete`` is asked for and read back, and
  `scrub` empties the write-ahead log and writes PostgreSQL's table anew. Backups, replicas and PostgreSQL's own log
  segments are the operator's to let go of.
- **No password is told.** Errors name a database by `place`.

What the two do in their own way is a `Dialect`; the triggers of each stand in the migrations, which never change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from causaldao.errors import ConfigurationError, LedgerError

LOCK_SECONDS = 30
_LOCK = 0x6C6564676572  # "ledger": PostgreSQL's advisory locks are numbers, one set for each database

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
    # Two words of the record, so that it need not be read to be passed over.
    sa.Column("kind", sa.Text, nullable=False, server_default="", index=True),
    sa.Column("study", sa.Text, index=True),
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
    # The verifier key of who signed; "" in a ledger from before the checkpoints, which `Log.open` signs anew.
    sa.Column("key", sa.Text, nullable=False, server_default=""),
)
STATE = sa.Table(
    "state",
    _METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
# All complete subtrees of the Merkle tree: `position` is the index within its level, level 0 are the leaves.
NODES = sa.Table(
    "nodes",
    _METADATA,
    sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
# The heads that members cosigned: any is signed once, and may be handed out where the log's key is not.
CHECKPOINTS = sa.Table(
    "checkpoints",
    _METADATA,
    sa.Column("size", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("root", sa.String(64), nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("signature", sa.String(88), nullable=False),
    sa.Column("key", sa.Text, nullable=False),
)
COSIGNATURES = sa.Table(
    "cosignatures",
    _METADATA,
    sa.Column("size", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("line", sa.Text, nullable=False),
    sa.Index("ix_cosignatures_name", "name", "size"),
)
# The payloads whose bytes were deleted, and the entry that says so: without a row here a payload cannot be deleted.
ERASED = sa.Table(
    "erased",
    _METADATA,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
)


@dataclass(frozen=True)
class Dialect:
    """What one kind of database does in its own way.

    ``driver`` is SQLAlchemy's name of it, ``insert`` its insert with ON CONFLICT, ``options`` are those of the engine;
    ``prepare(connection)`` makes a new connection durable or refuses it, ``begin(connection, write)`` opens a
    transaction, ``scrub(connection)``, outside of one, takes the deleted payloads' bytes out of the files.
    """

    driver: str
    insert: Callable[[sa.Table], Any]
    options: Mapping[str, Any]
    prepare: Callable[[Any], None]
    begin: Callable[[sa.Connection, bool], None]
    scrub: Callable[[sa.Connection], None]


def connect(url: str, *, create: bool = False) -> sa.Engine:
    """An engine on the database at ``url``: ``sqlite:///PATH``, which must exist unless ``create``, or
    ``postgresql+psycopg://USER:PASSWORD@HOST/DATABASE``, a database that always must.

    Raises
    ------
    LedgerError
        another kind of database, or a missing file. A server that cannot be reached, a file that is no database, or one
        that cannot be made durable is refused by the first transaction.
    ConfigurationError
        the driver for PostgreSQL is not installed.
    """
    with _wrapped("open the ledger's database"):
        parsed = _parsed(url)
        dialect = _DIALECTS[parsed.get_backend_name()]
        if parsed.get_backend_name() == "sqlite":
            path = Path((parsed.database or ":memory:").removeprefix("file:"))
            if not create and not path.exists():
                raise LedgerError(f"There is no ledger at {path}: check the path, or create one first.")
        engine = _engine(parsed, dialect)
        sa.event.listen(engine, "connect", lambda connection, _: dialect.prepare(connection))
        sa.event.listen(engine, "begin", lambda connection: _begin(dialect, connection))
        return engine


def place(engine: sa.Engine) -> str:
    """The database's name for an error: the file, or the server's URL without password and options."""
    if engine.dialect.name == "sqlite":
        return str(engine.url.database)
    return engine.url.set(query={}).render_as_string(hide_password=True)


def insert(connection: sa.Connection, table: sa.Table) -> Any:
    """The connected database's own ``INSERT``, which has ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    return _DIALECTS[connection.dialect.name].insert(table)


def insert_rows(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Many new rows, each with all columns in the table's order, as the driver takes them.

    For an append's hundreds of rows SQLAlchemy's own way would cost more than the database.
    """
    mark = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    marks = ", ".join(mark for _ in table.columns)
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", list(rows))


@contextmanager
def transaction(engine: sa.Engine, action: str, *, write: bool) -> Iterator[sa.Connection]:
    """One transaction; database errors come out as LedgerError("Could not {action}: …") and undo all."""
    with _wrapped(action), engine.connect() as connection:
        options = connection.execution_options(ledger_writes=write)
        with options.begin():
            yield options


def scrub(engine: sa.Engine) -> None:
    """Take the bytes of deleted payloads out of the database's own files; call it after the deletion's commit.

    Raises
    ------
    LedgerError
        others used the database all the time; it may be done again.
    """
    with _wrapped("take deleted bytes out of the ledger's files"), engine.connect() as connection:
        _DIALECTS[engine.dialect.name].scrub(connection.execution_options(ledger_transaction=False))


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


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        backend, driver = parsed.get_backend_name(), parsed.drivername
    except (SQLAlchemyError, ValueError):
        raise LedgerError(
            "Could not open the ledger's database: its URL cannot be read. Write sqlite:///PATH or "
            "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, with % and @ in a password as %25 and %40."
        ) from None  # the reader's error may repeat a piece of the password
    if backend not in _DIALECTS or driver not in (backend, _DIALECTS[backend].driver):
        raise LedgerError(
            f"The ledger's database is {driver!r}, but only SQLite and PostgreSQL keep the ledger's promises: use "
            "sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE."
        )
    return parsed.set(drivername=_DIALECTS[backend].driver)


def _engine(url: sa.URL, dialect: Dialect) -> sa.Engine:
    try:
        return sa.create_engine(url, **dialect.options)
    except ImportError as error:
        raise ConfigurationError(
            f"The ledger's database is a PostgreSQL, but its driver cannot be loaded ({error}): "
            'pip install "causaldao[postgres]".'
        ) from error


def _begin(dialect: Dialect, connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if options.get("ledger_transaction", True):
        dialect.begin(connection, bool(options.get("ledger_writes", False)))


# SQLite


_PRAGMAS = (
    ("journal_mode", "WAL", "wal", "a crash could lose entries"),
    ("synchronous", "FULL", 2, "a crash could lose entries"),
    ("secure_delete", "ON", 1, "erased payloads would stay in the file"),
)


def _prepare_sqlite(connection: Any) -> None:
    # The driver's own transaction control commits before DDL; `_begin_sqlite` takes its place.
    connection.isolation_level = None
    for pragma, value, expected, harm in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}={value}")
        (found,) = connection.execute(f"PRAGMA {pragma}").fetchone()
        if found != expected:
            connection.close()
            raise LedgerError(
                f"SQLite would not set {pragma}={value} (it says {found!r}), so {harm}: put the ledger on a local "
                "disk, in a file."
            )


def _begin_sqlite(connection: sa.Connection, write: bool) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN DEFERRED")


def _scrub_sqlite(connection: sa.Connection) -> None:
    until = time.monotonic() + LOCK_SECONDS
    # It waits for readers by itself, but not for another checkpoint, which any commit may begin.
    while connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]:
        if time.monotonic() < until:
            time.sleep(0.01)
            continue
        raise LedgerError(
            "The deleted bytes may still lie in the ledger's write-ahead log, because others read it for "
            f"{LOCK_SECONDS} seconds: end the other programs that use it, and erase the same payloads again."
        )


# PostgreSQL


def _prepare_postgresql(connection: Any) -> None:
    connection.autocommit = True  # what is asked here is no part of a transaction
    for setting in ("fsync", "synchronous_commit"):
        (found,) = connection.execute(f"SHOW {setting}").fetchone()
        if found == "off":
            connection.close()
            raise LedgerError(
                f"The PostgreSQL server has {setting} = off, so a crash could lose entries: set {setting} = on for "
                "this server, database and role."
            )
    connection.autocommit = False


def _begin_postgresql(connection: sa.Connection, write: bool) -> None:
    if not write:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return
    # Once the lock is held each statement must see what the writer before committed: no older snapshot.
    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")


def _scrub_postgresql(connection: sa.Connection) -> None:
    alone = connection.execution_options(isolation_level="AUTOCOMMIT")
    alone.exec_driver_sql(f"SET lock_timeout = '{LOCK_SECONDS}s'")
    try:
        # A plain VACUUM would leave the bytes where they are until something is written over them.
        alone.exec_driver_sql("VACUUM (FULL) payloads")
    finally:
        alone.exec_driver_sql("RESET lock_timeout")


_DIALECTS = {
    "sqlite": Dialect(
        "sqlite",
        sqlite.insert,
        {"connect_args": {"timeout": LOCK_SECONDS}},
        _prepare_sqlite,
        _begin_sqlite,
        _scrub_sqlite,
    ),
    # A server may be restarted while a coordinator runs: a pooled connection is tried before it is used.
    "postgresql": Dialect(
        "postgresql+psycopg",
        postgresql.insert,
        {"pool_pre_ping": True},
        _prepare_postgresql,
        _begin_postgresql,
        _scrub_postgresql,
    ),
}


@contextmanager
def _wrapped(action: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise LedgerError(f"Could not {action}: {' '.join(str(cause).split())}.") from error
