"""A member's witness: it remembers how far it has seen a log grow, and cosigns only what goes on from there.

It answers as a witness of C2SP tlog-witness does and writes cosignatures of C2SP tlog-cosignature (Ed25519, type 0x04).
Its word means: the largest tree that I have seen of this log has this root. Duties a caller may rely on:

- **Persist, then sign.** A checkpoint is durable (`synchronous = FULL`, read back) before it is signed, wherever the
  process dies. Asked again for what was persisted and not signed, it signs; for what was signed, it repeats that line.
- **One history.** What it cosigned are prefixes of one log, in rising sizes, also if several processes share its file:
  look, decision and write are one transaction that holds the write lock, and so are the last look and the signature.
- **The first checkpoint is believed.** From size 0 any checkpoint of the log is consistent: nothing was seen before it.
- **Nothing is forgotten quietly.** A witness without its state is *retired*: it could cosign a second history, so it is
  replaced by one with another key. It learns that it lost state from a missing file, or from its own cosignatures that
  it does not remember (`Witness.remember`).
- **Two notes of one size with two roots, both signed by the log,** prove that the log lied. The witness keeps both and
  cosigns nothing more (*alarmed*). A larger checkpoint with a proof that does not hold proves nothing, since whoever
  carries it could have spoilt the proof: it is refused and kept as a suspicion.

The last `HISTORY` cosigned notes and up to `SUSPICIONS` others are kept to be compared with what comes, each with no
signature but the log's. So a log can make this file a few MiB large, no larger.
"""

from __future__ import annotations

import base64
import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import SQLAlchemyError

from causaldao.errors import LedgerError, ProofError, StaleError
from causaldao.ledger.merkle import EMPTY_ROOT, verify_consistency
from causaldao.ledger.note import COSIGNER, Checkpoint, Verifier, check_cosignature, cosign, open_note
from causaldao.signing import SigningKey

_LOG = logging.getLogger(__name__)

HISTORY = 1000
SUSPICIONS = 100
MAX_TEXT_BYTES = 4096  # of a checkpoint: extension lines are the log's to write and the witness's to keep
Status = Literal["witnessing", "retired", "alarmed"]

_FORMAT = 1
_FULL = 2  # SQLite's number for synchronous = FULL
_WAIT_SECONDS = 60.0

_METADATA = sa.MetaData()
_STATE = sa.Table(
    "state",
    _METADATA,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("root", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("time", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("alarm_first", sa.Text),
    sa.Column("alarm_second", sa.Text),
    sa.Column("suspicions", sa.Integer, nullable=False),
    sa.Column("suspicion", sa.Text),
    sa.Column("forgotten", sa.Integer, nullable=False),  # the largest size that fell out of the history
)
_NOTES = sa.Table(
    "notes",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("root", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("cosigned", sa.Boolean, nullable=False),
    sa.UniqueConstraint("size", "root"),
)


@dataclass(frozen=True)
class Seen:
    """The largest checkpoint that a witness has accepted.

    ``root`` is 64 hex digits, ``note`` the log's signed note, ``line`` the witness's own cosignature, ``time`` that
    cosignature's, in POSIX seconds. The note is "" until there is a first one; line and time are "" and 0 where a crash
    came between persisting and signing.
    """

    size: int
    root: str
    note: str
    line: str
    time: int


@dataclass(frozen=True)
class Suspicion:
    """How many checkpoints came with a proof that did not hold, and the log's signed note of the latest."""

    count: int
    note: str


@dataclass(frozen=True)
class _Standing:
    """The state file's one row, as its reader needs it."""

    seen: Seen
    status: Status
    reason: str
    alarm: tuple[str, str] | None
    suspicion: Suspicion | None
    forgotten: int


class Witness:
    """One member's witness of one log, from `open`. Threads and processes may share its file.

    Nothing is kept in memory but the key: each call reads the file anew.
    """

    def __init__(
        self, engine: sa.Engine, place: str, name: str, key: SigningKey, log: Verifier, clock: Callable[[], int]
    ) -> None:
        self._engine = engine
        self._place = place
        self._name = name
        self._key = key
        self._log = log
        self._clock = clock
        self._verifier = Verifier.of(name, key.public, COSIGNER)

    @classmethod
    def create(cls, path: str | Path, origin: str) -> None:
        """Make the state file of a witness that has seen nothing (mode 0600, whole or not at all); once, at joining.

        Raises
        ------
        LedgerError
            there is a file already, or it cannot be written.
        """
        path = Path(path)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # linked into its place: never half a file there
        try:
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with _transaction(_engine(draft), str(path)) as connection:
                _found(connection, origin)
            os.link(draft, path)
            _sync_folder(path.parent)
        except FileExistsError as error:
            raise LedgerError(
                f"There is a witness state at {path} already, and a new one would forget what it saw: open it, or use "
                "another path for another key."
            ) from error
        except OSError as error:
            raise LedgerError(f"The witness state {path} cannot be made: {error.strerror or error}.") from error
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: str | Path, name: str, key: SigningKey, log: Verifier, clock: Callable[[], int]) -> Self:
        """The witness ``name`` with its state at ``path``; ``clock`` gives POSIX seconds. Opens in any status.

        Raises
        ------
        LedgerError
            no file (the state is lost, so this key may not witness any more), a damaged one, one of another log or of
            another format.
        """
        path = Path(path)
        if not path.is_file():
            raise LedgerError(
                f"There is no witness state at {path}. If {name!r} ever cosigned {log.name!r}, its state is lost and "
                "it is retired: rotate its witness key and make a new state with that. Never start an empty one under "
                "the same key."
            )
        witness = cls(_engine(path), str(path), name, key, log, clock)
        with witness._write() as connection:
            _require_readable(connection, path, log.name)
        return witness

    @property
    def seen(self) -> Seen:
        return self._standing().seen

    @property
    def verifier(self) -> Verifier:
        """What others check its cosignatures with."""
        return self._verifier

    @property
    def status(self) -> Status:
        return self._standing().status

    @property
    def reason(self) -> str:
        """Why it does not witness any more; "" while it does."""
        return self._standing().reason

    @property
    def alarm(self) -> tuple[str, str] | None:
        """The evidence against the log: two notes that it signed, of one size with two roots, the known one first."""
        return self._standing().alarm

    @property
    def suspicion(self) -> Suspicion | None:
        return self._standing().suspicion

    def check(self, note: str, proofs: Mapping[int, Sequence[bytes]]) -> Checkpoint:
        """The checkpoint of a note that `cosign` would cosign now; goes no step forward itself.

        ``proofs`` are consistency proofs to this checkpoint by the size that they start from. Raises as `cosign` does,
        and like it keeps what speaks against the log.
        """
        return self._weigh(note, proofs, keep=False)[0]

    def cosign(self, note: str, proofs: Mapping[int, Sequence[bytes]]) -> Seen:
        """Check, persist, and only then sign: the checkpoint of ``note`` as the largest seen, with its cosignature.

        Raises
        ------
        StaleError
            the checkpoint is smaller than the one seen, or larger and ``proofs`` has none from the size seen, which the
            error names. Nothing is persisted.
        ProofError
            larger, and the proof does not hold: kept as the suspicion.
        LedgerError
            not signed by the log, of another origin, longer than `MAX_TEXT_BYTES`; or the file fails. Nothing is
            cosigned.
        LedgerError
            another root than a note of the same size that the log signed before: the alarm is raised, for good. Or the
            witness is retired or alarmed already.
        """
        checkpoint, seen = self._weigh(note, proofs, keep=True)
        return seen if seen.line else self._sign(checkpoint)

    def remember(self, line: str, size: int, root: str) -> None:
        """Compare with this witness's own cosignature of ``size`` and ``root`` (64 hex) that others hold.

        Every cosignature was persisted before it was made. One under this key that is not in the history means that the
        state is an old copy, or of another machine: the witness retires, durably.

        Raises
        ------
        LedgerError
            the witness is retired now, or was retired or alarmed before; or ``line`` is not its own cosignature of
            this, which changes nothing.
        """
        checkpoint = Checkpoint(self._log.name, size, _root_bytes(root))
        check_cosignature(checkpoint, line, self._verifier)
        with self._write() as connection:
            standing = _standing(connection)
            _require_witnessing(standing)
            lost = not _is_explained(connection, standing, checkpoint)
            reason = (
                f"The witness {self._name!r} has cosigned size {size} with root {checkpoint.root.hex()}, but its state "
                f"{self._place}, now at size {standing.seen.size} with root {standing.seen.root}, does not know of it: "
                "the state was restored from an old copy, or two copies are in use. The witness is retired: rotate "
                "its key and make a new state with that."
            )
            if lost:
                _update(connection, status="retired", reason=reason)
        if lost:
            _LOG.error("%s", reason)
            raise LedgerError(reason)

    def _weigh(self, note: str, proofs: Mapping[int, Sequence[bytes]], *, keep: bool) -> tuple[Checkpoint, Seen]:
        """Judge a note in one transaction with what is kept of it; raise only when that is committed."""
        checkpoint = open_note(note, self._log)
        note = _bare(note, checkpoint, self._log)
        problem: LedgerError | None = None
        with self._write() as connection:
            standing = _standing(connection)
            _require_witnessing(standing)
            seen = standing.seen
            earlier = _contradicting(connection, checkpoint)
            if earlier is not None:
                problem = _contradiction(seen, earlier, checkpoint)
                _update(connection, status="alarmed", reason=str(problem), alarm_first=earlier.note, alarm_second=note)
            else:
                problem = _refusal(seen, checkpoint, proofs)
                if isinstance(problem, ProofError):
                    _suspect(connection, checkpoint, note)
                if problem is None and keep:
                    seen = self._keep(connection, seen, checkpoint, note)
        if problem is not None:
            if not isinstance(problem, StaleError):
                _LOG.error("%s: %s", self._name, problem)
            raise problem
        return checkpoint, seen

    def _keep(self, connection: sa.Connection, seen: Seen, checkpoint: Checkpoint, note: str) -> Seen:
        if _is_of(seen, checkpoint) and (not seen.line or self._is_own(checkpoint, seen.line)):
            return seen
        root = checkpoint.root.hex()
        values = {"size": checkpoint.size, "root": root, "note": note}
        _update(connection, **values, line="", time=0)
        known = insert(_NOTES).values(**values, cosigned=True)
        connection.execute(known.on_conflict_do_update(index_elements=["size", "root"], set_={"cosigned": True}))
        _forget_cosigned(connection)
        return Seen(checkpoint.size, root, note, "", 0)

    def _is_own(self, checkpoint: Checkpoint, line: str) -> bool:
        """Whether a kept line was made with this key: the key may have been rotated over the same file."""
        try:
            check_cosignature(checkpoint, line, self._verifier)
        except LedgerError:
            return False
        return True

    def _sign(self, checkpoint: Checkpoint) -> Seen:
        """Sign what is durable already, with the write lock held: nobody goes on meanwhile."""
        with self._write() as connection:
            standing = _standing(connection)
            _require_witnessing(standing)
            seen = standing.seen
            if not _is_of(seen, checkpoint):
                raise _stale(seen, checkpoint)
            if seen.line:
                return seen
            time = self._clock()
            line = cosign(checkpoint, self._name, self._key, time)
            _update(connection, line=line, time=time)
        return Seen(seen.size, seen.root, seen.note, line, time)

    def _standing(self) -> _Standing:
        with self._write() as connection:
            return _standing(connection)

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with _transaction(self._engine, self._place) as connection:
            yield connection


def _bare(note: str, checkpoint: Checkpoint, log: Verifier) -> str:
    """An opened note with no signature but the log's."""
    size = len(checkpoint.text.encode())
    if size > MAX_TEXT_BYTES:
        raise LedgerError(
            f"The checkpoint of size {checkpoint.size} has {size} bytes, a witness keeps at most {MAX_TEXT_BYTES}: let "
            "the log write fewer extension lines."
        )
    lines = (line.split(" ") for line in note.rpartition("\n\n")[2].split("\n")[:-1])
    own = next(line for line in lines if line[1] == log.name and base64.b64decode(line[2]).startswith(log.id))
    return f"{checkpoint.text}\n{' '.join(own)}\n"


def _refusal(seen: Seen, checkpoint: Checkpoint, proofs: Mapping[int, Sequence[bytes]]) -> LedgerError | None:
    """Why a checkpoint that contradicts no known note does not go on from what was seen; None if it does."""
    if checkpoint.size < seen.size:
        return _stale(seen, checkpoint)
    needs_none = checkpoint.size == seen.size or seen.size == 0
    proof = [] if needs_none else proofs.get(seen.size)
    if proof is None:
        return _stale(seen, checkpoint)
    try:
        verify_consistency(seen.size, bytes.fromhex(seen.root), checkpoint.size, checkpoint.root, proof)
    except ProofError as error:
        return ProofError(
            f"The checkpoint of size {checkpoint.size} with root {checkpoint.root.hex()} is not shown to go on from "
            f"size {seen.size} with root {seen.root}: {error} It was not cosigned. If another proof does not hold "
            "either, compare checkpoints with the other members."
        )
    return None


def _stale(seen: Seen, checkpoint: Checkpoint) -> StaleError:
    if checkpoint.size <= seen.size:
        return StaleError(
            f"The checkpoint has size {checkpoint.size}, but this witness has seen size {seen.size}: show it one that "
            "is as large."
        )
    return StaleError(
        f"The checkpoint has size {checkpoint.size}, but no consistency proof from size {seen.size}, which this "
        "witness has seen, came with it: send one."
    )


def _contradiction(seen: Seen, earlier: sa.Row[Any], checkpoint: Checkpoint) -> LedgerError:
    return LedgerError(
        f"The log {checkpoint.origin!r} signed two histories: size {earlier.size} with root {earlier.root}, and now "
        f"size {checkpoint.size} with root {checkpoint.root.hex()}; this witness has seen size {seen.size} with root "
        f"{seen.root}. Both notes are kept, and nothing more is cosigned: show them to the other members. Once it is "
        "settled, go on with a rotated witness key and a new state."
    )


def _require_witnessing(standing: _Standing) -> None:
    if standing.status != "witnessing":
        raise LedgerError(f"This witness is {standing.status}, and it cosigns nothing. {standing.reason}")


def _is_of(seen: Seen, checkpoint: Checkpoint) -> bool:
    """Whether the note seen is of this very text: extension lines are signed too, and may differ at one root."""
    return seen.note.startswith(checkpoint.text + "\n")


def _root_bytes(root: str) -> bytes:
    try:
        return bytes.fromhex(root)
    except ValueError as error:
        raise LedgerError(f"Expected a root of 64 hexadecimal digits, but got {root!r}.") from error


# The state file


def _standing(connection: sa.Connection) -> _Standing:
    row = connection.execute(sa.select(_STATE)).one()
    return _Standing(
        Seen(row.size, row.root, row.note, row.line, row.time),
        row.status,
        row.reason,
        None if row.alarm_first is None else (row.alarm_first, row.alarm_second),
        None if row.suspicion is None else Suspicion(row.suspicions, row.suspicion),
        row.forgotten,
    )


def _update(connection: sa.Connection, **values: Any) -> None:
    connection.execute(sa.update(_STATE).values(**values))


def _contradicting(connection: sa.Connection, checkpoint: Checkpoint) -> sa.Row[Any] | None:
    """The row of a known note of the same size with another root, or None."""
    other = (_NOTES.c.size == checkpoint.size) & (_NOTES.c.root != checkpoint.root.hex())
    return connection.execute(sa.select(_NOTES).where(other).order_by(_NOTES.c.cosigned.desc()).limit(1)).one_or_none()


def _suspect(connection: sa.Connection, checkpoint: Checkpoint, note: str) -> None:
    values = {"size": checkpoint.size, "root": checkpoint.root.hex(), "note": note, "cosigned": False}
    connection.execute(insert(_NOTES).values(**values).on_conflict_do_nothing())
    _update(connection, suspicions=_STATE.c.suspicions + 1, suspicion=note)
    suspected = sa.select(_NOTES.c.id).where(~_NOTES.c.cosigned).order_by(_NOTES.c.id.desc())
    connection.execute(sa.delete(_NOTES).where(_NOTES.c.id.in_(suspected.offset(SUSPICIONS))))


def _forget_cosigned(connection: sa.Connection) -> None:
    cosigned = sa.select(_NOTES.c.size).where(_NOTES.c.cosigned).order_by(_NOTES.c.size.desc())
    last = connection.scalar(cosigned.offset(HISTORY).limit(1))
    if last is not None:
        connection.execute(sa.delete(_NOTES).where(_NOTES.c.cosigned, _NOTES.c.size <= last))
        _update(connection, forgotten=last)


def _is_explained(connection: sa.Connection, standing: _Standing, checkpoint: Checkpoint) -> bool:
    """Whether the history holds a cosigned checkpoint, or is too short to say."""
    same = _NOTES.c.cosigned & (_NOTES.c.size == checkpoint.size) & (_NOTES.c.root == checkpoint.root.hex())
    held = connection.scalar(sa.select(_NOTES.c.id).where(same)) is not None
    return held or checkpoint.size <= standing.forgotten


def _engine(path: Path) -> sa.Engine:
    """Connections that never make a file, and that a fork cannot share.

    The last one to be closed folds the write-ahead log back, so that the file is whole by itself between two calls.
    """
    uri = f"{path.absolute().as_uri()}?mode=rw"

    def opened() -> sqlite3.Connection:
        connection = sqlite3.connect(uri, uri=True, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            _make_durable(connection)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    return _locking(sa.create_engine("sqlite://", creator=opened, poolclass=sa.NullPool))


def _locking(engine: sa.Engine) -> sa.Engine:
    """Every transaction begins with the write lock: what it reads is still so when it writes."""
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _make_durable(connection: sqlite3.Connection) -> None:
    for pragma, value, expected in (("journal_mode", "WAL", "wal"), ("synchronous", "FULL", _FULL)):
        connection.execute(f"PRAGMA {pragma} = {value}")
        (found,) = connection.execute(f"PRAGMA {pragma}").fetchone()
        if found != expected:
            raise sqlite3.OperationalError(f"{pragma} = {value} was refused, it is {found!r}: use a local disk")


@contextmanager
def _transaction(engine: sa.Engine, place: str) -> Iterator[sa.Connection]:
    """One transaction, committed at the end; the database's failures become a LedgerError."""
    try:
        with engine.begin() as connection:
            yield connection
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = " ".join(str(getattr(error, "orig", None) or error).split())
        raise LedgerError(
            f"The witness state {place} cannot be read or written ({cause}), so nothing is cosigned. Free or mend the "
            "disk. Never put an older copy or an empty file in its place: if it is lost, rotate the witness key."
        ) from error


def _found(connection: sa.Connection, origin: str) -> None:
    """The state of a witness that has seen nothing of this log."""
    _METADATA.create_all(connection)
    nothing = dict(zip(("size", "root", "note", "line", "time"), astuple(_NOTHING), strict=True))
    row = {"id": 1, "origin": origin, "status": "witnessing", "reason": "", "suspicions": 0, "forgotten": -1}
    connection.execute(sa.insert(_STATE).values(**row, **nothing))
    connection.exec_driver_sql(f"PRAGMA user_version = {_FORMAT}")


def _require_readable(connection: sa.Connection, path: Path, origin: str) -> None:
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version != _FORMAT:
        raise LedgerError(
            f"The witness state {path} has format {version}, this version reads format {_FORMAT}: it is another file, "
            "or a newer causaldao wrote it."
        )
    health = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if health != "ok":
        raise sqlite3.DatabaseError(str(health))
    found = connection.scalar(sa.select(_STATE.c.origin))
    if found != origin:
        raise LedgerError(f"The witness state {path} is of the log {found!r}, not of {origin!r}: each log has its own.")


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_NOTHING = Seen(0, EMPTY_ROOT.hex(), "", "", 0)
