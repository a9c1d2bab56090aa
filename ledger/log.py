"""The log: append-only, hash-chained, signed, with the coordinator's state in the same transaction.

Duties a caller may rely on:

- **All or nothing.** The entries, their payloads, the state and the signed head of one `Log.append` become
  durable together or not at all, wherever the process dies. `append` returns after the commit.
- **One line of history.** The head is compared and swapped: of two writers the second fails with
  LedgerError, writes nothing and has to open the log again. So does a writer whose commit failed and whose
  outcome it cannot know.
- **No second time.** An entry with a key is recorded once, so a step may be repeated after a crash.
- **Nothing is changed or removed** by this program; the database's triggers refuse it too.

The root of a head is the last link of the chain until a Merkle tree takes its place: see `_root`, the one
place.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from causaldao.errors import ConfigurationError, IdentityError, LedgerError
from causaldao.ledger.entry import Entry, entry_text, first_link, head_text, next_link, record_bytes
from causaldao.ledger.store import ENTRIES, HEAD, PAYLOADS, STATE, connect, migrate, transaction
from causaldao.signing import SigningKey, canonical, sha256

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The system clock. Times in a ledger inform; its order is that of the indices."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Head:
    """The signed state of a log: ``size`` entries under ``root`` (64 hex digits); ``signature`` in base64."""

    origin: str
    size: int
    root: str
    time: str
    signature: str


@dataclass(frozen=True)
class Recorded:
    """An entry as it stands in the log: ``record`` are its canonical bytes, ``link`` the chain to it."""

    index: int
    kind: str
    time: str
    body: Mapping[str, Any]
    payloads: tuple[str, ...]
    record: bytes
    link: str
    signature: str


@dataclass(frozen=True)
class Snapshot:
    """A head, and all that it covers, read in one transaction."""

    head: Head
    entries: tuple[Recorded, ...]
    payloads: Mapping[str, bytes]


class Log:
    """A ledger in a database, from `create`, `open` (to write) or `read`. Close it, or use it in a `with`."""

    def __init__(self, engine: sa.Engine, head: Head, link: str, key: SigningKey | None, clock: Clock) -> None:
        self._engine = engine
        self._head = head
        self._link = link
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()

    @classmethod
    def create(cls, url: str, origin: str, key: SigningKey, clock: Clock = utc_now) -> Log:
        """A new, empty log at ``url`` (``sqlite:///path``); refuses to touch one that exists."""
        link = first_link(origin)
        engine = connect(url, create=True)
        head = _sign_head(key, origin, 0, _root(link), _timestamp(clock))
        try:
            with transaction(engine, "create the ledger", write=True) as connection:
                if sa.inspect(connection).has_table("head"):
                    raise LedgerError(
                        f"There is a ledger at {engine.url.database} already: open it, or use another path."
                    )
                migrate(connection, create=True)
                connection.execute(sa.insert(HEAD).values(id=1, **vars(head)))
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, head, link, key, clock)

    @classmethod
    def open(cls, url: str, key: SigningKey, clock: Clock = utc_now) -> Log:
        """Go on with a log; refuses a key that did not sign its head, and a head that is not its end."""
        return cls._open(url, key, clock)

    @classmethod
    def read(cls, url: str) -> Log:
        """A log to read from, without its key; `append` refuses."""
        return cls._open(url, None, utc_now)

    @classmethod
    def _open(cls, url: str, key: SigningKey | None, clock: Clock) -> Log:
        engine = connect(url)
        try:
            with transaction(engine, "open the ledger", write=key is not None) as connection:
                migrate(connection)
                head = _head(connection)
                link = _last_link(connection, head)
            if key is not None:
                _check_signer(key, head)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, head, link, key, clock)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> Head:
        """The head as this object last wrote or read it."""
        return self._head

    def append(self, entries: Sequence[Entry], state: Mapping[str, Any] | None = None) -> list[int]:
        """Record entries and state in one transaction and return each entry's index.

        Raises
        ------
        LedgerError
            the head moved since this object saw it, a key with another content, a first entry that is not the
            genesis, a log opened to be read, or the database failed. Nothing was recorded then.
        """
        key = self._signer()
        with self._lock:
            time = _timestamp(self._clock)
            with transaction(self._engine, "append to the ledger", write=True) as connection:
                indices, rows, fresh = self._draft(key, entries, _known(connection, entries), time)
                head = self._grow(key, rows, time)
                _swap(connection, self._head, head)
                _insert(connection, rows, fresh, state or {})
            self._head, self._link = head, rows[-1]["link"] if rows else self._link
        return indices

    def entries(self, start: int = 0) -> tuple[Recorded, ...]:
        """The entries from index ``start`` on."""
        with transaction(self._engine, "read the ledger", write=False) as connection:
            return _entries(connection, start)

    def state(self, key: str) -> Any:
        """The coordinator's state under ``key``, as it was last committed; None if there is none."""
        with transaction(self._engine, "read the ledger's state", write=False) as connection:
            value = connection.scalar(sa.select(STATE.c.value).where(STATE.c.key == key))
        return None if value is None else json.loads(value)

    def payload(self, name: str) -> bytes:
        """The payload of that SHA-256; raises LedgerError if it is missing or no longer has that hash."""
        with transaction(self._engine, "read a payload", write=False) as connection:
            data = connection.scalar(sa.select(PAYLOADS.c.data).where(PAYLOADS.c.sha256 == name))
        if data is None:
            raise LedgerError(f"The ledger holds no payload {name}.")
        if sha256(data) != name:
            raise LedgerError(f"The payload {name} was damaged: its bytes now have the SHA-256 {sha256(data)}.")
        return bytes(data)

    def snapshot(self) -> Snapshot:
        """The database's own head (another process may have moved it) with all entries and payloads."""
        with transaction(self._engine, "read the ledger", write=False) as connection:
            rows = connection.execute(sa.select(PAYLOADS))
            return Snapshot(_head(connection), _entries(connection, 0), {row.sha256: bytes(row.data) for row in rows})

    def _signer(self) -> SigningKey:
        if self._key is None:
            raise LedgerError("This ledger was opened to be read: open it with the log's key to append.")
        return self._key

    def _draft(
        self, key: SigningKey, entries: Sequence[Entry], known: dict[str, tuple[int, str]], time: str
    ) -> tuple[list[int], list[dict[str, Any]], dict[str, bytes]]:
        """The index of each entry; rows and payloads of those that are not recorded yet."""
        indices: list[int] = []
        rows: list[dict[str, Any]] = []
        payloads: dict[str, bytes] = {}
        link = self._link
        for entry in entries:
            index = _recorded_index(entry, known)
            if index is None:
                index = self._head.size + len(rows)
                rows.append(_row(key, self._head.origin, entry, index, link, time))
                link = rows[-1]["link"]
                payloads.update(entry.payloads)
                if entry.key is not None:
                    known[entry.key] = (index, entry.content)
            indices.append(index)
        return indices, rows, payloads

    def _grow(self, key: SigningKey, rows: Sequence[Mapping[str, Any]], time: str) -> Head:
        if not rows:
            return self._head
        size = self._head.size + len(rows)
        return _sign_head(key, self._head.origin, size, _root(rows[-1]["link"]), time)


def _root(link: str) -> str:
    # A Merkle root over the leaves will stand here; the chain's last link commits to the same entries.
    return link


def _timestamp(clock: Clock) -> str:
    moment = clock()
    if moment.tzinfo is None:
        raise LedgerError(f"The ledger's clock says {moment} without a time zone: give it an aware datetime.")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _sign_head(key: SigningKey, origin: str, size: int, root: str, time: str) -> Head:
    signature = base64.b64encode(key.sign(head_text(origin, size, root, time))).decode()
    return Head(origin, size, root, time, signature)


def _check_signer(key: SigningKey, head: Head) -> None:
    text = head_text(head.origin, head.size, head.root, head.time)
    try:
        key.public.verify(base64.b64decode(head.signature), text)
    except (IdentityError, ValueError) as error:
        raise LedgerError(
            f"The head of {head.origin!r} at size {head.size} was not signed by key {key.public.id}: "
            "this is another log's key, or the head was altered."
        ) from error


def _row(key: SigningKey, origin: str, entry: Entry, index: int, previous: str, time: str) -> dict[str, Any]:
    if (entry.kind == "genesis") != (index == 0):
        raise LedgerError(f"Entry {index} cannot be {entry.kind!r}: a log has one genesis, and it is entry 0.")
    record = record_bytes(entry, index, previous, time)
    link = next_link(index, previous, record)
    signature = base64.b64encode(key.sign(entry_text(origin, index, link))).decode()
    return {
        "position": index,
        "record": record,
        "link": link,
        "signature": signature,
        "content": entry.content,
        "key": entry.key,
    }


def _recorded_index(entry: Entry, known: Mapping[str, tuple[int, str]]) -> int | None:
    if entry.key is None or entry.key not in known:
        return None
    index, content = known[entry.key]
    if content != entry.content:
        raise LedgerError(
            f"The key {entry.key!r} stands at entry {index} with another content "
            f"(SHA-256 {content}, now {entry.content}): what is recorded cannot be changed."
        )
    return index


def _known(connection: sa.Connection, entries: Iterable[Entry]) -> dict[str, tuple[int, str]]:
    keys = sorted({entry.key for entry in entries if entry.key is not None})
    known = {}
    for start in range(0, len(keys), 500):  # below SQLite's bound on variables in a statement
        query = sa.select(ENTRIES.c.key, ENTRIES.c.position, ENTRIES.c.content)
        for row in connection.execute(query.where(ENTRIES.c.key.in_(keys[start : start + 500]))):
            known[row.key] = (row.position, row.content)
    return known


def _swap(connection: sa.Connection, seen: Head, head: Head) -> None:
    where = (HEAD.c.id == 1) & (HEAD.c.size == seen.size) & (HEAD.c.root == seen.root)
    if connection.execute(sa.update(HEAD).where(where).values(**vars(head))).rowcount != 1:
        raise LedgerError(
            f"The ledger has size {_head(connection).size}, this writer last saw {seen.size}: another writer "
            "came first. Nothing was recorded; open the ledger again, and run one coordinator at a time."
        )


def _insert(
    connection: sa.Connection,
    rows: list[dict[str, Any]],
    payloads: Mapping[str, bytes],
    state: Mapping[str, Any],
) -> None:
    if rows:
        connection.execute(sa.insert(ENTRIES), rows)
    if payloads:
        blobs = [{"sha256": name, "data": data} for name, data in payloads.items()]
        connection.execute(insert(PAYLOADS).on_conflict_do_nothing(), blobs)
    if state:
        upsert = insert(STATE)
        upsert = upsert.on_conflict_do_update(index_elements=["key"], set_={"value": upsert.excluded.value})
        connection.execute(upsert, [{"key": name, "value": _state_bytes(name, state[name])} for name in state])


def _state_bytes(name: str, value: Any) -> bytes:
    try:
        return canonical(value)
    except ConfigurationError as error:
        raise LedgerError(f"The state {name!r} cannot be saved: {error}") from error


def _head(connection: sa.Connection) -> Head:
    row = connection.execute(sa.select(HEAD)).one()
    return Head(row.origin, row.size, row.root, row.time, row.signature)


def _last_link(connection: sa.Connection, head: Head) -> str:
    query = sa.select(ENTRIES.c.position, ENTRIES.c.link).order_by(ENTRIES.c.position.desc()).limit(1)
    last = connection.execute(query).one_or_none()
    size, link = (0, first_link(head.origin)) if last is None else (last.position + 1, last.link)
    if size != head.size or _root(link) != head.root:
        raise LedgerError(
            f"The head says size {head.size} and root {head.root}, but the entries end at size {size} with "
            f"{link}: the database was altered outside this program. Restore it from a backup."
        )
    return link


def _entries(connection: sa.Connection, start: int) -> tuple[Recorded, ...]:
    query = sa.select(ENTRIES).where(ENTRIES.c.position >= start).order_by(ENTRIES.c.position)
    return tuple(_recorded(row) for row in connection.execute(query))


def _recorded(row: sa.Row[Any]) -> Recorded:
    record = json.loads(row.record)
    return Recorded(
        index=row.position,
        kind=record["kind"],
        time=record["time"],
        body=record["body"],
        payloads=tuple(record["payloads"]),
        record=bytes(row.record),
        link=row.link,
        signature=row.signature,
    )
