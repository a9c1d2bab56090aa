"""The privacy account of an institution: what was released about each data set, and what it cost.

A release happens once. Its cost is debited durably *before* any noise is drawn, its bytes are stored before
they are sent, and whoever asks again gets the stored bytes. So, with the process killed at any point:

- before the debit: nothing was spent and nothing was drawn;
- between debit and store: the cost stays spent. What was drawn never left the node, so the same key may
  draw again at no further cost: one draw, and only one, becomes the release;
- after the store: the same bytes, for ever.

The account is Rényi differential privacy (`causaldao.budget.epsilon_of`, opacus's accountant), add or
remove one record. Costs may be chosen adaptively: stopping at a fixed cap of composed Rényi divergence is a
valid privacy filter (V. Feldman, T. Zrnic, "Individual privacy accounting via a Rényi filter", NeurIPS
2021).

Accounts belong to the *name* of a data set, so that a changed file is not a fresh budget. The journal is
the only memory of what was spent: restoring an old copy, or deleting it, would refund what cannot be taken
back.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    NullPool,
    Table,
    Text,
    UniqueConstraint,
    and_,
    create_engine,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError

from causaldao.budget import Spend, epsilon_of
from causaldao.errors import BudgetError, ConfigurationError, MisuseError

_FORMAT = 1
_EXTRA = 3  # SQLite's number for synchronous = EXTRA
_WAIT_SECONDS = 60.0
_KEY = ("study", "dataset", "kind", "round", "base")

_releases = Table(
    "releases",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("study", Text, nullable=False),
    Column("dataset", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("round", Integer, nullable=False),
    Column("base", Text, nullable=False),
    Column("spends", Text, nullable=False),
    Column("payload", LargeBinary, nullable=True),
    UniqueConstraint(*_KEY),
)


@dataclass(frozen=True)
class ReleaseKey:
    """What makes two requests the same release: study hash, data set *name*, kind, round, digest of the
    base state.
    """

    study: str
    dataset: str
    kind: str
    round: int = 0
    base: str = ""


@dataclass(frozen=True)
class Cap:
    """The most that may be spent: ``epsilon`` at ``delta``."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < math.inf and 0 < self.delta < 1):
            raise ConfigurationError(
                f"A budget needs 0 < epsilon < inf and 0 < delta < 1, got epsilon = {self.epsilon}, delta "
                f"= {self.delta}."
            )


@dataclass(frozen=True)
class Debit:
    """One line of the journal; ``stored`` is False where a crash came between the debit and its release."""

    key: ReleaseKey
    spends: tuple[Spend, ...]
    stored: bool


class Journal:
    """A journal in one SQLite file (rollback journal, synchronous = EXTRA: a commit has reached the disk).

    Processes may share the file: debits are serialised, and of two that draw for one key the first to store
    wins and both return its bytes. Raises BudgetError whenever the file cannot be read or written, since
    then nothing may be released.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self._path = path

    @classmethod
    def open(cls, path: str | Path) -> Journal:
        """Open the journal at ``path``, creating it (mode 0600) if it is not there; its folder must exist."""
        path = Path(path)
        if not path.parent.is_dir():
            raise ConfigurationError(f"The folder of the privacy journal {path} does not exist: create it first.")
        journal = cls(_engine(path), path)
        with journal._connection() as connection:
            _prepare(connection, path)
        return journal

    def release(
        self,
        key: ReleaseKey,
        spends: Sequence[Spend],
        cap: Cap,
        lifetime: Cap,
        draw: Callable[[], bytes],
    ) -> bytes:
        """The one release of ``key``: the stored bytes if there are any, else debit, draw, store.

        ``cap`` bounds the key's study on its data set, ``lifetime`` the data set over all studies. Raises
        BudgetError, before ``draw`` is called and with nothing debited, if either would be passed, and if
        ``key`` was debited with other spends than these. Whatever ``draw`` raises passes through, and the
        debit stays.
        """
        stored = self._debit(key, _validated(spends), cap, lifetime)
        return stored if stored is not None else self._store(key, draw())

    def spent(self, dataset: str, delta: float, study: str | None = None) -> float:
        """The ε at ``delta`` spent on a data set, by one study or (None) by all; 0 if nothing was."""
        return epsilon_of(_spends(self._debits(dataset, study)), delta)

    def debits(self, dataset: str | None = None) -> tuple[Debit, ...]:
        """Every debit in order, of one data set or of all."""
        return self._debits(dataset, None)

    def _debit(self, key: ReleaseKey, spends: tuple[Spend, ...], cap: Cap, lifetime: Cap) -> bytes | None:
        """The stored bytes of ``key``; else None, with its cost durably debited once."""
        with self._connection() as connection:
            row = connection.execute(select(_releases).where(_matches(key))).one_or_none()
            if row is not None:
                _require_same(key, _decode(row.spends), spends)
                return None if row.payload is None else bytes(row.payload)
            before = _read(connection, key.dataset, None)
            mine = [debit for debit in before if debit.key.study == key.study]
            _require_within(f"study {key.study[:12]} on data set {key.dataset!r}", mine, spends, cap)
            _require_within(f"data set {key.dataset!r} over its lifetime", before, spends, lifetime)
            connection.execute(insert(_releases).values(**asdict(key), spends=_encode(spends)))
        return None

    def _store(self, key: ReleaseKey, payload: bytes) -> bytes:
        with self._connection() as connection:
            empty = and_(_matches(key), _releases.c.payload.is_(None))
            connection.execute(update(_releases).where(empty).values(payload=payload))
            return bytes(connection.execute(select(_releases.c.payload).where(_matches(key))).scalar_one())

    def _debits(self, dataset: str | None, study: str | None) -> tuple[Debit, ...]:
        with self._connection() as connection:
            return _read(connection, dataset, study)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """One write transaction, committed at the end; the database's failures become a BudgetError."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DatabaseError, sqlite3.DatabaseError) as error:
            reason = error.orig if isinstance(error, DatabaseError) else error
            raise BudgetError(
                f"The privacy journal {self._path} cannot be read or written ({reason}), so nothing is "
                "released. Free or "
                "mend the disk, or restore the file from its latest copy; never start an empty one in its "
                "place."
            ) from error


def _engine(path: Path) -> Engine:
    """Connections that begin every transaction with the write lock, and know that their pragmas took hold.

    No pool: each transaction has its own connection, which a fork cannot share. With WAL, a copied file
    without its side file would lose debits; the rollback journal keeps a committed state in the one file.
    """
    options: dict[str, Any] = {"timeout": _WAIT_SECONDS, "isolation_level": None}
    engine = create_engine(URL.create("sqlite", database=os.fspath(path)), poolclass=NullPool, connect_args=options)

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, _record: Any) -> None:
        mode = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
        connection.execute("PRAGMA synchronous = EXTRA")
        if (mode, connection.execute("PRAGMA synchronous").fetchone()[0]) != ("delete", _EXTRA):
            raise sqlite3.OperationalError("the disk does not grant durable commits")

    @event.listens_for(engine, "begin")
    def _lock(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _prepare(connection: Connection, path: Path) -> None:
    os.chmod(path, 0o600)
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version not in (0, _FORMAT):
        raise ConfigurationError(
            f"The privacy journal {path} has format {version}, this version writes format {_FORMAT}: "
            "install the newer "
            "version that wrote it."
        )
    health = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if health != "ok":
        raise sqlite3.DatabaseError(str(health))
    _releases.create(connection, checkfirst=True)
    connection.exec_driver_sql(f"PRAGMA user_version = {_FORMAT}")


def _read(connection: Connection, dataset: str | None, study: str | None) -> tuple[Debit, ...]:
    rows = select(_releases).order_by(_releases.c.id)
    if dataset is not None:
        rows = rows.where(_releases.c.dataset == dataset)
    if study is not None:
        rows = rows.where(_releases.c.study == study)
    return tuple(
        Debit(ReleaseKey(*(getattr(row, name) for name in _KEY)), _decode(row.spends), row.payload is not None)
        for row in connection.execute(rows)
    )


def _matches(key: ReleaseKey) -> ColumnElement[bool]:
    return and_(*(_releases.c[name] == value for name, value in asdict(key).items()))


def _spends(debits: Sequence[Debit]) -> list[Spend]:
    return [spend for debit in debits for spend in debit.spends]


def _require_within(what: str, debits: Sequence[Debit], spends: tuple[Spend, ...], cap: Cap) -> None:
    after = epsilon_of([*_spends(debits), *spends], cap.delta)
    if not after <= cap.epsilon:
        before = epsilon_of(_spends(debits), cap.delta)
        raise BudgetError(
            f"This release would take {what} from epsilon {before:.4g} to {after:.4g} at delta "
            f"{cap.delta:g}, past the cap of "
            f"{cap.epsilon:.4g}. Nothing was drawn. Let the study use more noise or fewer steps, or raise "
            "the cap knowingly."
        )


def _require_same(key: ReleaseKey, debited: tuple[Spend, ...], asked: tuple[Spend, ...]) -> None:
    if debited != asked:
        raise BudgetError(
            f"Release {key.kind} of round {key.round} in study {key.study[:12]} was debited as {debited}, "
            "but is now asked "
            f"for as {asked}. A release has one cost: ask for it as it was debited."
        )


def _validated(spends: Sequence[Spend]) -> tuple[Spend, ...]:
    for spend in spends:
        if not (0 < spend.noise_multiplier < math.inf and 0 < spend.sample_rate <= 1 and spend.steps >= 1):
            raise MisuseError(
                f"Expected a finite noise multiplier > 0, a sampling rate in (0, 1] and at least one step, "
                f"got {spend}: a "
                "release without noise has no finite cost."
            )
    if not spends:
        raise MisuseError("A release costs at least one spend: what costs nothing needs no journal.")
    return tuple(spends)


def _encode(spends: Sequence[Spend]) -> str:
    return json.dumps([asdict(spend) for spend in spends], sort_keys=True)


def _decode(text: str) -> tuple[Spend, ...]:
    return tuple(Spend(**fields) for fields in json.loads(text))
