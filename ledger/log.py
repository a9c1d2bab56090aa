"""The log: append-only, hash-chained, signed, with the coordinators' state in the same transaction.

Duties a caller may rely on:

- **All or nothing.** The entries, their payloads, the state and the signed head of one `Log.append` become
  durable together or not at all, wherever the process dies. `append` returns after the commit.
- **One line of history, many writers.** Writers take turns, and the head is compared and swapped. If others wrote since
  this object last saw the head, what they wrote is checked (it goes on from what was seen, and the log's own key signed
  its head) and adopted, and the entries go behind it.
- **One writer for each affair.** A study is one affair; what names no study (genesis, admissions, revocations), or is
  of the federation (``federation.*``), is one too. A write fails with LedgerError and records nothing if others wrote
  to its affair: to its study since this object was opened, or to the members since it last looked (`refresh`). So two
  coordinators of one study stop at the first write of the second, also if its commit failed and it cannot know the
  outcome, while two studies and the operator's admissions do not hinder one another. State belongs to the affair it is
  written with; name its keys by the study.
- **No word after revocation.** Words of a member ("envelope" with "member" in a body) whose `member.revoke` is
  recorded are refused with LedgerError, however shortly before it was recorded: the step has to be decided again.
- **No second time.** An entry with a key is recorded once, so a step may be repeated after a crash.
- **Nothing is changed or removed** by this program; the database's triggers refuse it too. The one exception are the
  payloads that an entry of kind ``erasure`` names: their bytes are deleted in that entry's transaction and never come
  back. All proofs stay valid, because records hold hashes only (salt what could be guessed: `entry.salted`).
- **Many callers, one commit.** Threads that append through one object while a commit is under way are committed
  together by the next (`causaldao.ledger.group`), as if one had come after the other: a call that is refused takes no
  other with it, and if the transaction fails each call of it is tried alone.

The head is a C2SP checkpoint: the RFC 6962 root of the Merkle tree over the leaves (`causaldao.ledger.tree`), signed by
the log's key. Tree, entries and head are written in one transaction, and must agree when the log is opened.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from causaldao.errors import ConfigurationError, IdentityError, LedgerError
from causaldao.ledger import cosignatures, tree
from causaldao.ledger.draft import Call, Draft, Past, affair, key_of
from causaldao.ledger.entry import Entry, first_link, next_link
from causaldao.ledger.group import Group
from causaldao.ledger.head import Head, Seen, check_signer, sign_head
from causaldao.ledger.merkle import EMPTY_ROOT, leaf_hash
from causaldao.ledger.note import Checkpoint, Verifier, proof_text, signer, with_cosignatures
from causaldao.ledger.receipt import Pending, Receipt
from causaldao.ledger.store import (
    ENTRIES,
    ERASED,
    HEAD,
    NODES,
    PAYLOADS,
    STATE,
    connect,
    insert,
    insert_rows,
    migrate,
    place,
    scrub,
    transaction,
)
from causaldao.ledger.tree import ALTERED, Edge, Row
from causaldao.signing import SigningKey, canonical, sha256

MAX_TOGETHER = 256  # entries that several callers' appends may have in one commit

__all__ = ["Clock", "Head", "Log", "Recorded", "Snapshot", "utc_now"]

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The system clock. Times in a ledger inform; its order is that of the indices."""
    return datetime.now(UTC)


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
    """A head, and all that it covers, read in one transaction: its ``cosignatures`` are lines by member.

    Payloads that were erased are not among the ``payloads``.
    """

    head: Head
    entries: tuple[Recorded, ...]
    payloads: Mapping[str, bytes]
    cosignatures: Mapping[str, str]

    @property
    def note(self) -> str:
        """The head's signed note with the members' cosignatures."""
        return with_cosignatures(self.head.note, self.cosignatures.values())


class Log:
    """A ledger in a database, from `create`, `open` (to write) or `read`. Close it, or use it in a `with`."""

    def __init__(self, engine: sa.Engine, seen: Seen, key: SigningKey | None, clock: Clock) -> None:
        self._engine = engine
        self._seen = seen
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._group = Group(self._append, lambda call: len(call.items), MAX_TOGETHER)
        self._others: set[str | None] = set()  # affairs that others wrote to since this object was opened

    @classmethod
    def create(cls, url: str, origin: str, key: SigningKey, clock: Clock = utc_now) -> Log:
        """A new, empty log at ``url`` (see `store.connect`); refuses to touch one that exists."""
        link = first_link(origin)
        engine = connect(url, create=True)
        head = sign_head(key, Checkpoint(origin, 0, EMPTY_ROOT), _timestamp(clock))
        try:
            with transaction(engine, "create the ledger", write=True) as connection:
                if sa.inspect(connection).has_table("head"):
                    raise LedgerError(f"There is a ledger at {place(engine)} already: open it, or use another path.")
                migrate(connection, create=True)
                connection.execute(sa.insert(HEAD).values(id=1, **vars(head)))
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, Seen(head, link, Edge(0, {})), key, clock)

    @classmethod
    def open(cls, url: str, key: SigningKey, clock: Clock = utc_now) -> Log:
        """Go on with a log; refuses a key that did not sign its head, and a head that is not its end.

        The head of a log that an older version wrote is checked, and signed anew as a checkpoint.
        """
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
                if not head.key:
                    head = _renewed(connection, key, head, _timestamp(clock))
                seen = _end(connection, head)
            if key is not None:
                check_signer(key, head)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, seen, key, clock)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> Head:
        """The head as this object last wrote or read it."""
        return self._seen.head

    def refresh(self) -> Head:
        """Look again: adopt what others wrote since, and return the head.

        It never makes this object the writer of a study that others wrote to: for that, open the log again.

        Raises
        ------
        LedgerError
            what is there does not go on from what this object saw, or was not signed by the log's key.
        """
        with self._lock:
            with transaction(self._engine, "read the ledger", write=False) as connection:
                seen, foreign = self._behind(connection, _head(connection))
            self._seen = seen
            self._others = (self._others | foreign) - {None}
        return seen.head

    def append(
        self,
        entries: Sequence[Entry],
        state: Mapping[str, Any] | None = None,
        *,
        own: str | None = None,
        at: int | None = None,
    ) -> list[int]:
        """Record entries and state in one transaction and return each entry's index.

        ``own`` is the study on whose behalf is written; entries that name their study need no such word, a state
        without entries does. ``at`` is the size of the log that the entries were decided on, if they stand on no other.

        Raises
        ------
        LedgerError
            another writer came first in the same affair, the log has another size than ``at``, a word of a revoked
            member, a key with another content, a first entry that is not the genesis, an erased payload that comes
            back or an unknown one to be erased, a log opened to be read, or the database failed. Nothing was recorded
            then. Only where the commit itself failed, the database may show all of it once it is opened again.
        """
        self._signer()
        saved = {name: _state_bytes(name, value) for name, value in (state or {}).items()}
        return self._group.do(Call.of(entries, saved, own, at))

    def _append(self, calls: Sequence[Call]) -> list[list[int] | Exception]:
        """Record calls, one after the other, in one transaction: the indices of each, or why it was refused."""
        key = self._signer()
        drafting = False
        try:
            with self._lock:
                time = _timestamp(self._clock)
                with transaction(self._engine, "append to the ledger", write=True) as connection:
                    # The row is held too: against a writer who knows nothing of this program's lock.
                    seen, foreign = self._behind(connection, _head(connection, hold=True))
                    drafting = True
                    draft = Draft(key, seen, time, _past(connection, calls))
                    outcomes = [self._add(draft, call, foreign | self._others) for call in calls]
                    if all(isinstance(outcome, Exception) for outcome in outcomes):
                        return outcomes
                    grown, nodes = draft.end()
                    _swap(connection, seen.head, grown.head)
                    _insert(connection, draft, nodes)
                self._seen = grown
                self._others |= foreign
        except LedgerError as error:
            if drafting:
                raise  # something of one call may be at fault: `Group` tries each alone
            return [error] * len(calls)
        return outcomes

    def _add(self, draft: Draft, call: Call, others: set[str | None]) -> list[int] | Exception:
        try:
            self._require_turn(call.affairs, others, draft.before.head)
            return draft.add(call)
        except LedgerError as error:
            return error

    def entries(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        kinds: Collection[str] | None = None,
        study: str | None = None,
    ) -> tuple[Recorded, ...]:
        """The entries with start ≤ index < stop, of these kinds and of this study; None: all. Reads no other records.

        Read from the database: there may be more of them than in `head`.
        """
        with transaction(self._engine, "read the ledger", write=False) as connection:
            return _entries(connection, start, stop, kinds, study)

    def state(self, key: str) -> Any:
        """The coordinator's state under ``key``, as it was last committed; None if there is none."""
        with transaction(self._engine, "read the ledger's state", write=False) as connection:
            value = connection.scalar(sa.select(STATE.c.value).where(STATE.c.key == key))
        return None if value is None else json.loads(value)

    def payload(self, name: str) -> bytes:
        """The payload of that SHA-256; raises LedgerError if it is missing, was erased or has that hash no longer."""
        with transaction(self._engine, "read a payload", write=False) as connection:
            data = connection.scalar(sa.select(PAYLOADS.c.data).where(PAYLOADS.c.sha256 == name))
            erased = _erasures(connection, [name]) if data is None else {}
        if name in erased:
            raise LedgerError(f"The payload {name} was erased: entry {erased[name]} says why. Only its hash is left.")
        if data is None:
            raise LedgerError(f"The ledger holds no payload {name}.")
        if sha256(data) != name:
            raise LedgerError(f"The payload {name} was damaged: its bytes now have the SHA-256 {sha256(data)}.")
        return bytes(data)

    def snapshot(self, size: int | None = None) -> Snapshot:
        """All that the database's own head covers (another process may have moved it), or an earlier head of ``size``.

        Of an earlier size the payloads are those that its entries name; see `head_at` for what it needs.
        """
        with transaction(self._engine, "read the ledger", write=False) as connection:
            head = _head(connection) if size is None else self._head_at(connection, size)
            entries = _entries(connection, 0, head.size)
            query = sa.select(PAYLOADS)
            payloads = {row.sha256: bytes(row.data) for row in connection.execute(query)}
            if size is not None:
                named = {name for entry in entries for name in entry.payloads}
                payloads = {name: data for name, data in payloads.items() if name in named}
            return Snapshot(head, entries, payloads, cosignatures.of(connection, head.size))

    # The tree

    def leaf(self, index: int) -> bytes:
        """The Merkle leaf of an entry, 32 bytes; raises LedgerError if there is no such entry."""
        self._require_index(index)
        with transaction(self._engine, "read the ledger's tree", write=False) as connection:
            return tree.reader(connection)(0, index)

    def root_at(self, size: int) -> bytes:
        """The Merkle root of the first ``size`` entries, 32 bytes: ``size`` is at most that of `head`.

        This, and the proofs, are checked against `head` first; LedgerError if they do not agree with it.
        """
        with transaction(self._engine, "read the ledger's tree", write=False) as connection:
            return tree.root_at(tree.reader(connection), size, self.head.checkpoint)

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """The proof that entry ``index`` is in the tree of ``size`` entries (`merkle.verify_inclusion`)."""
        self._require_index(index)
        with transaction(self._engine, "read the ledger's tree", write=False) as connection:
            node = tree.reader(connection)
            return tree.inclusion(node, node(0, index), index, size, self.head.checkpoint)

    def consistency_proof(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of ``new`` entries begins with that of ``old`` (`merkle.verify_consistency`)."""
        with transaction(self._engine, "read the ledger's tree", write=False) as connection:
            return tree.consistency(tree.reader(connection), old, new, self.head.checkpoint)

    # The members' cosignatures

    def head_at(self, size: int) -> Head:
        """The head of an earlier size, signed by the log: `head` itself, a stored one, or one that is signed now.

        Raises
        ------
        LedgerError
            beyond `head`, or not stored, and the log was opened without its key.
        """
        with transaction(self._engine, "read the ledger", write=False) as connection:
            return self._head_at(connection, size)

    def note_at(self, size: int) -> str:
        """The signed note of that size with the log's signature alone; raises as `head_at`."""
        return self.head_at(size).note

    def keep_cosignatures(self, size: int, lines: Mapping[str, str]) -> None:
        """Store cosignature lines of the checkpoint of ``size`` by member, durably; what is there already stays.

        The caller has verified them (`note.check_cosignature`); here only their form is looked at.

        Raises
        ------
        LedgerError
            no such size, a log opened to be read, or lines of another form or name.
        """
        self._signer()
        if size < 1:
            raise LedgerError(f"An empty log, of size {size}, is cosigned by nobody: there is nothing to keep.")
        with transaction(self._engine, "keep cosignatures", write=True) as connection:
            head = self._head_at(connection, size)
            _check_lines(head, lines)
            row = {name: value for name, value in vars(head).items() if name != "origin"}
            cosignatures.keep(connection, row, lines)

    def cosignatures(self, size: int) -> dict[str, str]:
        """The lines kept of that size, by member."""
        with transaction(self._engine, "read cosignatures", write=False) as connection:
            return cosignatures.of(connection, size)

    def last_cosigned(self, witness: Verifier) -> tuple[int, str] | None:
        """The largest size of which a cosignature by this key is kept, with its line."""
        with transaction(self._engine, "read cosignatures", write=False) as connection:
            return cosignatures.last(connection, witness)

    def checkpoints(self) -> dict[int, tuple[str, ...]]:
        """By size: the members of whom a cosignature is kept."""
        with transaction(self._engine, "read cosignatures", write=False) as connection:
            return cosignatures.all_of(connection)

    def agreed(self, witnesses: Collection[Verifier], quorum: int) -> str | None:
        """The signed note of the largest size that at least ``quorum`` of ``witnesses`` cosigned, with their lines.

        None if there is none. With a ``quorum`` of 0 nobody is asked: it is the head's, if the log has entries.
        """
        with transaction(self._engine, "read cosignatures", write=False) as connection:
            size = self._agreed(connection, witnesses, quorum)
            return self._agreed_note(connection, size, witnesses) if size else None

    def receipt(self, index: int, witnesses: Collection[Verifier], quorum: int) -> Receipt | Pending:
        """The proof that entry ``index`` is under the checkpoint that `agreed` gives; LedgerError: no such entry."""
        self._require_index(index)
        with transaction(self._engine, "make a receipt", write=False) as connection:
            size = self._agreed(connection, witnesses, quorum)
            if size <= index:
                return Pending(size)
            (entry,) = _entries(connection, index, index + 1)
            leaf = leaf_hash(entry.record)
            proof = tree.inclusion(tree.reader(connection), leaf, index, size, self.head.checkpoint)
            return Receipt(proof_text(index, proof, self._agreed_note(connection, size, witnesses)), entry.record)

    # Erasure

    def erase(self, names: Collection[str], reason: str) -> int:
        """Delete payloads for good and record that it was done, in one transaction; the index of that entry.

        The bytes leave the database's own files too (`store.scrub`), not its backups. Payloads that are erased already
        are not recorded again; if that are all, the files are cleared once more, and the index is that of the latest.

        Raises
        ------
        LedgerError
            a payload that the ledger never held, no names, or more than `entry.MAX_ERASED`. If the files could not be
            cleared, the payloads are deleted and this is recorded: the error says so, and the call may be repeated.
        """
        self._signer()
        with transaction(self._engine, "read the ledger", write=False) as connection:
            erased = _erasures(connection, names)
        new = sorted(set(names) - set(erased))
        if new or not erased:
            (index,) = self.append([Entry("erasure", {"payloads": new, "reason": reason})])
        else:
            index = max(erased.values())
        try:
            scrub(self._engine)
        except LedgerError as error:
            raise LedgerError(f"The payloads are deleted, as entry {index} says, but: {error.message}") from error
        return index

    def erased(self, name: str) -> int | None:
        """The entry that erased this payload; None if none did."""
        with transaction(self._engine, "read the ledger", write=False) as connection:
            return _erasures(connection, [name]).get(name)

    def _head_at(self, connection: sa.Connection, size: int) -> Head:
        head = self.head
        if size == head.size:
            return head
        root = tree.root_at(tree.reader(connection), size, head.checkpoint).hex()
        stored = cosignatures.checkpoint(connection, size)
        if stored is not None:
            found = Head(origin=head.origin, **stored)
            if found.root != root:
                raise LedgerError(f"The stored checkpoint of size {size} is not one of this log's: {ALTERED}")
            return found
        if self._key is None:
            raise LedgerError(
                f"The head of size {size} is not stored, and this ledger was opened to be read: only with the log's "
                f"key it can be signed. Ask for the newest, of size {head.size}."
            )
        checkpoint = Checkpoint(head.origin, size, bytes.fromhex(root))
        return sign_head(self._key, checkpoint, _timestamp(self._clock))

    def _agreed(self, connection: sa.Connection, witnesses: Collection[Verifier], quorum: int) -> int:
        if quorum < 1:
            return self.head.size
        return cosignatures.agreed(connection, witnesses, quorum, self.head.size) or 0

    def _agreed_note(self, connection: sa.Connection, size: int, witnesses: Collection[Verifier]) -> str:
        known, lines = {witness.by for witness in witnesses}, cosignatures.of(connection, size).values()
        note = self._head_at(connection, size).note
        return with_cosignatures(note, [line for line in lines if signer(line) in known])

    def _require_index(self, index: int) -> None:
        if not 0 <= index < self.head.size:
            raise LedgerError(f"The log has {self.head.size} entries as last seen: there is no entry {index}.")

    def _signer(self) -> SigningKey:
        if self._key is None:
            raise LedgerError("This ledger was opened to be read: open it with the log's key to append.")
        return self._key

    def _behind(self, connection: sa.Connection, head: Head) -> tuple[Seen, set[str | None]]:
        """The log's end, and whose affairs the entries between it and the one last seen are."""
        seen = self._seen
        if head == seen.head:
            return seen, set()
        index, link, affairs, leaves = seen.head.size, seen.link, set[str | None](), []
        for entry in _entries(connection, index):
            link = next_link(index, link, entry.record)
            index += 1
            affairs.add(affair(entry.kind, entry.body))
            leaves.append(leaf_hash(entry.record))
        edge, _ = seen.edge.grow(leaves)
        if (head.origin, head.size, head.root) != (seen.head.origin, index, edge.root.hex()):
            raise LedgerError(
                f"The ledger's head, size {head.size} and root {head.root}, does not go on from size {seen.head.size} "
                f"and root {seen.head.root}: {ALTERED}"
            )
        if self._key is not None:
            check_signer(self._key, head)
        return Seen(head, link, edge), affairs

    def _require_turn(self, affairs: frozenset[str | None], others: set[str | None], head: Head) -> None:
        taken = affairs & others
        if taken:
            what = " and ".join(sorted("the members" if name is None else f"study {name}" for name in taken))
            raise LedgerError(
                f"The ledger has size {head.size}, this writer last saw {self.head.size}: another writer came first, "
                f"with {what}. Nothing was recorded; open the ledger again, and run one coordinator of a study at a "
                "time."
            )


def _past(connection: sa.Connection, calls: Sequence[Call]) -> Past:
    """Read for all calls together, and nothing that none of them asks for."""
    items = [item for call in calls for item in call.items]
    to_erase = {name for item in items for name in item.to_erase}
    late = ("member.revoke", "member.rotate")
    changes = _entries(connection, kinds=late) if any(item.words for item in items) else ()
    return Past(
        _known(connection, [item.entry for item in items]),
        {entry.body["member"]: entry.index for entry in changes if entry.kind == "member.revoke"},
        {entry.body["member"]: (entry.index, key_of(entry.body)) for entry in changes if entry.kind == "member.rotate"},
        _erasures(connection, to_erase.union(*(item.entry.payloads for item in items))),
        _held(connection, to_erase),
    )


def _timestamp(clock: Clock) -> str:
    moment = clock()
    if moment.tzinfo is None:
        raise LedgerError(f"The ledger's clock says {moment} without a time zone: give it an aware datetime.")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _known(connection: sa.Connection, entries: Iterable[Entry]) -> dict[str, tuple[int, str]]:
    query = sa.select(ENTRIES.c.key, ENTRIES.c.position, ENTRIES.c.content)
    keys = {entry.key for entry in entries if entry.key is not None}
    return {row.key: (row.position, row.content) for row in _named(connection, query, ENTRIES.c.key, keys)}


def _erasures(connection: sa.Connection, names: Collection[str]) -> dict[str, int]:
    """Those of the payloads that were erased, with the entry that did it."""
    return {row.sha256: row.position for row in _named(connection, sa.select(ERASED), ERASED.c.sha256, names)}


def _held(connection: sa.Connection, names: Collection[str]) -> set[str]:
    """Those of the payloads whose bytes are there."""
    return {row.sha256 for row in _named(connection, sa.select(PAYLOADS.c.sha256), PAYLOADS.c.sha256, names)}


def _named(
    connection: sa.Connection, query: sa.Select[Any], column: sa.Column[Any], names: Collection[str]
) -> Iterator[sa.Row[Any]]:
    ordered = sorted(names)
    for start in range(0, len(ordered), 500):  # below SQLite's bound on variables in a statement
        yield from connection.execute(query.where(column.in_(ordered[start : start + 500])))


def _swap(connection: sa.Connection, seen: Head, head: Head) -> None:
    where = (HEAD.c.id == 1) & (HEAD.c.size == seen.size) & (HEAD.c.root == seen.root)
    if connection.execute(sa.update(HEAD).where(where).values(**vars(head))).rowcount != 1:
        raise LedgerError("The ledger's head moved during a write: another program writes to it. Nothing was recorded.")


def _insert(connection: sa.Connection, draft: Draft, nodes: Sequence[Row]) -> None:
    if draft.rows:
        insert_rows(connection, ENTRIES, [tuple(row[column.name] for column in ENTRIES.columns) for row in draft.rows])
        insert_rows(connection, NODES, nodes)
    if draft.payloads:
        blobs = [{"sha256": name, "data": data} for name, data in draft.payloads.items()]
        connection.execute(insert(connection, PAYLOADS).on_conflict_do_nothing(), blobs)
    if draft.erased:
        names = [{"sha256": name, "position": index} for name, index in draft.erased.items()]
        connection.execute(sa.insert(ERASED), names)
        gone = sa.delete(PAYLOADS).where(PAYLOADS.c.sha256 == sa.bindparam("name"))
        connection.execute(gone, [{"name": name} for name in draft.erased])
    if draft.state:
        upsert = insert(connection, STATE)
        upsert = upsert.on_conflict_do_update(index_elements=["key"], set_={"value": upsert.excluded.value})
        connection.execute(upsert, [{"key": name, "value": value} for name, value in draft.state.items()])


def _state_bytes(name: str, value: Any) -> bytes:
    try:
        return canonical(value)
    except ConfigurationError as error:
        raise LedgerError(f"The state {name!r} cannot be saved: {error}") from error


def _head(connection: sa.Connection, *, hold: bool = False) -> Head:
    """The database's head; ``hold``: its row stays as it is until the transaction ends."""
    query = sa.select(HEAD).with_for_update() if hold else sa.select(HEAD)
    row = connection.execute(query).one()
    return Head(row.origin, row.size, row.root, row.time, row.signature, row.key)


def _end(connection: sa.Connection, head: Head) -> Seen:
    """The log's end, if its last entry, its tree and its head agree.

    The last link follows from the last record, which names the one before it; and the record is under the root.
    """
    start = max(head.size - 1, 0)
    found = _entries(connection, start)
    if len(found) != head.size - start:
        size = connection.scalar(sa.select(sa.func.count()).select_from(ENTRIES))
        raise LedgerError(
            f"The head says size {head.size} and root {head.root}, but there are {size} entries: {ALTERED}"
        )
    edge = Edge.read(connection, head.size)
    if edge.root.hex() != head.root:
        raise LedgerError(f"The head says root {head.root}, but the Merkle tree's is {edge.root.hex()}: {ALTERED}")
    if not found:
        return Seen(head, first_link(head.origin), edge)
    last = found[0]
    tree.inclusion(tree.reader(connection), leaf_hash(last.record), start, head.size, head.checkpoint)
    link = next_link(start, json.loads(last.record)["previous"], last.record)
    if link != last.link:
        raise LedgerError(f"The last link is {last.link}, but its record makes it {link}: {ALTERED}")
    return Seen(head, link, edge)


def _renewed(connection: sa.Connection, key: SigningKey | None, head: Head, time: str) -> Head:
    """The head of a log from before the checkpoints, signed anew as one once it is checked.

    Then the root was the chain's last link, and the key signed it as the text below. All records are read, because the
    Merkle root says no less of them than that link did.
    """
    if key is None:
        raise LedgerError(
            f"The ledger of {head.origin!r} was written by an older causaldao: open it once with the coordinator, "
            "which has the key to sign its head anew."
        )
    try:
        text = f"causaldao-head/1\n{head.origin}\n{head.size}\n{head.root}\n{head.time}\n"
        key.public.verify(base64.b64decode(head.signature), text.encode())
    except (IdentityError, ValueError) as error:
        raise LedgerError(
            f"The head of {head.origin!r} at size {head.size} was not signed by key {key.public.id}: "
            "this is another log's key, or the head was altered."
        ) from error
    link, size = first_link(head.origin), 0
    for record in connection.scalars(sa.select(ENTRIES.c.record).order_by(ENTRIES.c.position)):
        link, size = next_link(size, link, bytes(record)), size + 1
    if (size, link) != (head.size, head.root):
        raise LedgerError(
            f"The head says size {head.size} and link {head.root}, but the {size} records make it {link}: {ALTERED}"
        )
    renewed = sign_head(key, Checkpoint(head.origin, size, Edge.read(connection, size).root), time)
    _swap(connection, head, renewed)
    return renewed


def _check_lines(head: Head, lines: Mapping[str, str]) -> None:
    """Each a signature line of a note, under its own name."""
    for name, line in lines.items():
        if line.split(" ")[1:2] != [name]:
            raise LedgerError(f"The cosignature line {line[:100]!r} is not under the name {name!r}.")
    with_cosignatures(head.note, lines.values())


def _entries(
    connection: sa.Connection,
    start: int = 0,
    stop: int | None = None,
    kinds: Collection[str] | None = None,
    study: str | None = None,
) -> tuple[Recorded, ...]:
    query = sa.select(ENTRIES).where(ENTRIES.c.position >= start).order_by(ENTRIES.c.position)
    if stop is not None:
        query = query.where(ENTRIES.c.position < stop)
    if kinds is not None:
        query = query.where(ENTRIES.c.kind.in_(sorted(kinds)))
    if study is not None:
        query = query.where(ENTRIES.c.study == study)
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
