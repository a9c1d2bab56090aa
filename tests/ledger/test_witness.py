"""What would make a witness's word worthless: two histories cosigned, a cosignature for what a crash then forgets,
a state that was lost or restored and goes on as if nothing had been, evidence thrown away.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import select
import shutil
import signal
import sqlite3
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from causaldao.errors import LedgerError, ProofError, StaleError
from causaldao.ledger import merkle, witness
from causaldao.ledger.note import (
    LOG,
    Checkpoint,
    Verifier,
    check_cosignature,
    cosign,
    open_note,
    sign_checkpoint,
    with_cosignatures,
)
from causaldao.ledger.witness import Seen, Witness
from causaldao.signing import SigningKey
from tests.counts import count

ORIGIN = "causaldao.example/north"
LOG_KEY = SigningKey.from_seed(b"L" * 32)
KEY = SigningKey.from_seed(b"a" * 32)
OTHER_KEY = SigningKey.from_seed(b"x" * 32)
VERIFIER = Verifier.of(ORIGIN, LOG_KEY.public, LOG)
NOW = 1_750_000_000


class Tree:
    """A log as its coordinator has it; from leaf ``fork`` on it tells another story than the others."""

    def __init__(self, size: int, fork: int | None = None, story: str = "other") -> None:
        self.fork = size if fork is None else fork
        words = (f"leaf {number}" + (f" {story}" if number >= self.fork else "") for number in range(size))
        self.leaves = [merkle.leaf_hash(word.encode()) for word in words]

    def checkpoint(self, size: int, *extensions: str) -> Checkpoint:
        return Checkpoint(ORIGIN, size, merkle.root(self.leaves[:size]), extensions)

    def root(self, size: int) -> str:
        return self.checkpoint(size).root.hex()

    def note(self, size: int, *extensions: str, key: SigningKey = LOG_KEY) -> str:
        return sign_checkpoint(self.checkpoint(size, *extensions), key)

    def proofs(self, size: int, *olds: int) -> dict[int, list[bytes]]:
        """Consistency proofs to ``size`` from these sizes, or from all below."""
        return {old: merkle.consistency_proof(self.leaves[:size], old) for old in olds or range(size)}


TRUE = Tree(24)
FORKED = Tree(24, fork=4)


def clock() -> int:
    return NOW


def stopped() -> int:
    raise AssertionError("a new cosignature was made")


def opened(path: Path, key: SigningKey = KEY, log: Verifier = VERIFIER, now: Callable[[], int] = clock) -> Witness:
    return Witness.open(path, "ada", key, log, now)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Witness.create(tmp_path / "witness.db", ORIGIN)
    return tmp_path / "witness.db"


@pytest.fixture
def ada(path: Path) -> Witness:
    return opened(path)


def rows(path: Path, query: str = "SELECT size, root FROM notes WHERE cosigned ORDER BY size") -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def contents(path: Path) -> list[Any]:
    return rows(path, "SELECT * FROM state") + rows(path, "SELECT * FROM notes")


def grow(ada: Witness, *sizes: int, tree: Tree = TRUE) -> Seen:
    return [ada.cosign(tree.note(size), tree.proofs(size)) for size in sizes][-1]


# What it cosigns


def test_a_log_that_grows_is_not_cosigned(ada: Witness, path: Path) -> None:
    assert ada.seen == Seen(0, merkle.EMPTY_ROOT.hex(), "", "", 0)
    for size in (3, 4, 11, 24):
        seen = ada.cosign(TRUE.note(size), TRUE.proofs(size))
        assert check_cosignature(TRUE.checkpoint(size), seen.line, ada.verifier) == NOW == seen.time
        assert seen == Seen(size, TRUE.root(size), TRUE.note(size), seen.line, NOW) == ada.seen == opened(path).seen
    assert rows(path) == [(size, TRUE.root(size)) for size in (3, 4, 11, 24)]
    assert (ada.status, ada.reason, ada.alarm, ada.suspicion) == ("witnessing", "", None, None)


def test_the_same_checkpoint_again_gets_another_cosignature(path: Path) -> None:
    first = grow(opened(path), 3, 8)
    again = opened(path, now=stopped)
    assert again.cosign(TRUE.note(8), {}) == again.cosign(TRUE.note(8), {8: []}) == first


def test_an_empty_log(ada: Witness) -> None:
    seen = ada.cosign(TRUE.note(0), {})
    assert (seen.size, check_cosignature(TRUE.checkpoint(0), seen.line, ada.verifier)) == (0, NOW)
    assert grow(ada, 5).size == 5
    with pytest.raises(StaleError):
        grow(ada, 0)


def test_an_empty_log_with_leaves(ada: Witness) -> None:
    full = sign_checkpoint(Checkpoint(ORIGIN, 0, b"r" * 32), LOG_KEY)
    with pytest.raises(ProofError):
        ada.cosign(full, {})
    assert ada.seen == Seen(0, merkle.EMPTY_ROOT.hex(), "", "", 0)
    with pytest.raises(LedgerError, match="two histories"):
        grow(ada, 0)
    assert ada.alarm == (full, TRUE.note(0))


def test_extension_lines_are_cosigned_but_never_under_an_old_line(ada: Witness, path: Path) -> None:
    plain = grow(ada, 5)
    longer = ada.cosign(TRUE.note(5, "an extension"), {})
    check_cosignature(TRUE.checkpoint(5, "an extension"), longer.line, ada.verifier)
    assert longer.line != plain.line
    assert rows(path) == [(5, TRUE.root(5))]
    with pytest.raises(LedgerError, match="4096"):
        ada.cosign(TRUE.note(6, "x" * 4096), TRUE.proofs(6))
    ada.remember(plain.line, 5, TRUE.root(5))
    assert grow(ada, 6).size == 6


def test_others_signatures_fill_the_disk(ada: Witness, path: Path) -> None:
    lines = [cosign(TRUE.checkpoint(5), f"member-{n}", SigningKey.from_seed(bytes([n]) * 32), 1) for n in range(200)]
    impostor = TRUE.note(5, key=OTHER_KEY).split("\n")[-2]  # the log's name over another key
    ada.cosign(with_cosignatures(TRUE.note(5), [*lines, impostor]), {})
    assert ada.seen.note == TRUE.note(5)
    assert rows(path, "SELECT note FROM notes") == [(TRUE.note(5),)]


def test_a_stored_line_of_an_old_key_is_repeated_after_a_rotation(path: Path) -> None:
    old = grow(opened(path), 5)
    rotated = opened(path, key=OTHER_KEY)
    new = rotated.cosign(TRUE.note(5), {})
    assert new.line != old.line
    check_cosignature(TRUE.checkpoint(5), new.line, rotated.verifier)


# What it refuses


def other_log() -> str:
    return sign_checkpoint(Checkpoint("causaldao.example/south", 9, TRUE.checkpoint(9).root), LOG_KEY)


REFUSED: Mapping[str, tuple[str, Mapping[int, Sequence[bytes]], type[LedgerError], str]] = {
    "another key": (TRUE.note(9, key=OTHER_KEY), TRUE.proofs(9), LedgerError, "signature"),
    "altered": (TRUE.note(9).replace("\n9\n", "\n10\n"), TRUE.proofs(9), LedgerError, "does not verify"),
    "another origin": (other_log(), TRUE.proofs(9), LedgerError, "no signature of the"),
    "not a note": ("garbage", {}, LedgerError, "note"),
    "no signature": (TRUE.checkpoint(9).text, {}, LedgerError, "note"),
    "smaller": (TRUE.note(7), TRUE.proofs(7), StaleError, "size 7, but this witness has seen size 8"),
    "smaller, unknown and forked": (FORKED.note(6), FORKED.proofs(6), StaleError, "has seen size 8"),
    "smaller, with a proof": (TRUE.note(7), {8: TRUE.proofs(8)[7]}, StaleError, "has seen size 8"),
    "no proof": (TRUE.note(9), {}, StaleError, "size 9, but no consistency proof from size 8"),
    "a proof from elsewhere": (TRUE.note(9), TRUE.proofs(9, 7), StaleError, "from size 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_checkpoint_leaves_a_trace(case: str, ada: Witness, path: Path) -> None:
    note, proofs, error, words = REFUSED[case]
    grow(ada, 5, 8)
    before = contents(path)
    for act in (ada.check, ada.cosign):
        with pytest.raises(error, match=words) as caught:
            act(note, proofs)
        assert type(caught.value) is error
    assert contents(path) == before
    assert grow(ada, 9).size == 9


BAD_PROOFS: Mapping[str, Callable[[list[bytes]], list[bytes]]] = {
    "empty": lambda proof: [],
    "one hash too many": lambda proof: [*proof, proof[0]],
    "one hash too few": lambda proof: proof[:-1],
    "another hash": lambda proof: [bytes(32), *proof[1:]],
    "a short hash": lambda proof: [proof[0][:-1], *proof[1:]],
    "without end": lambda proof: proof * 10_000,
}


@pytest.mark.parametrize("case", BAD_PROOFS)
def test_a_proof_that_does_not_hold_is_taken_or_ends_the_witness(case: str, ada: Witness) -> None:
    before = grow(ada, 5)
    proofs = TRUE.proofs(11)
    for times in (1, 2):
        with pytest.raises(ProofError) as caught:
            ada.cosign(TRUE.note(11), {**proofs, 5: BAD_PROOFS[case](proofs[5])})
        for told in ("size 11", TRUE.root(11), "size 5", TRUE.root(5)):
            assert told in str(caught.value)
        assert ada.suspicion == witness.Suspicion(times, TRUE.note(11))
    assert (ada.seen, ada.status) == (before, "witnessing")
    line = ada.cosign(TRUE.note(11), proofs).line
    ada.remember(line, 11, TRUE.root(11))  # it is of the history now
    assert ada.seen.size == 11


def test_a_forked_log_is_cosigned(ada: Witness) -> None:
    grow(ada, 3, 5)
    with pytest.raises(ProofError):
        grow(ada, 11, tree=FORKED)
    assert ada.suspicion == witness.Suspicion(1, FORKED.note(11))
    assert grow(ada, 9).size == 9


def require_alarmed(ada: Witness, path: Path, size: int, first: Tree, second: Tree) -> None:
    """In this process and after a restart: the evidence is whole, and nothing is cosigned."""
    for held in (ada, opened(path)):
        assert held.status == "alarmed"
        assert held.alarm == (first.note(size), second.note(size))
        assert [open_note(note, VERIFIER).root.hex() for note in held.alarm] == [first.root(size), second.root(size)]
        for told in (f"size {size}", first.root(size), second.root(size), f"size {held.seen.size}", held.seen.root):
            assert told in held.reason
        before = held.seen
        for note, proofs in ((held.seen.note, {}), (TRUE.note(20), TRUE.proofs(20))):
            with pytest.raises(LedgerError, match="is alarmed"):
                held.cosign(note, proofs)
            with pytest.raises(LedgerError, match="is alarmed"):
                held.check(note, proofs)
        with pytest.raises(LedgerError, match="is alarmed"):
            held.remember(cosign(TRUE.checkpoint(20), "ada", KEY, NOW), 20, TRUE.root(20))
        assert held.status == "alarmed"
        assert held.seen == before


@pytest.mark.parametrize("act", ["cosign", "check"])
def test_two_roots_of_one_size_are_forgiven(act: str, ada: Witness, path: Path) -> None:
    grow(ada, 3, 8)
    with pytest.raises(LedgerError, match="two histories"):
        getattr(ada, act)(FORKED.note(8), {})
    require_alarmed(ada, path, 8, TRUE, FORKED)


def test_two_roots_of_a_size_cosigned_long_ago_are_taken_for_staleness(ada: Witness, path: Path) -> None:
    grow(ada, 3, 8, 11)
    with pytest.raises(StaleError):
        grow(ada, 8)
    with pytest.raises(LedgerError, match="two histories"):
        grow(ada, 8, tree=FORKED)
    require_alarmed(ada, path, 8, TRUE, FORKED)


def test_a_suspicion_that_becomes_a_proof_is_missed(ada: Witness, path: Path) -> None:
    grow(ada, 5)
    with pytest.raises(ProofError):
        grow(ada, 11, tree=FORKED)
    with pytest.raises(LedgerError, match="two histories"):
        grow(ada, 11)
    require_alarmed(ada, path, 11, FORKED, TRUE)


def test_a_rolled_back_log_gets_another_cosignature(ada: Witness) -> None:
    grow(ada, 3, 11)
    back = Tree(24, fork=9, story="after a rollback")
    for size in (9, 10):
        with pytest.raises(StaleError):
            grow(ada, size, tree=back)
    with pytest.raises(ProofError):
        grow(ada, 12, tree=back)
    assert ada.seen.root == TRUE.root(11)


def test_history_and_suspicions_grow_without_end(ada: Witness, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "HISTORY", 5)
    monkeypatch.setattr(witness, "SUSPICIONS", 3)
    for size in range(1, 11):
        grow(ada, size)
        with pytest.raises(ProofError):
            ada.cosign(TRUE.note(size + 10), {size: []})
    assert rows(path) == [(size, TRUE.root(size)) for size in range(6, 11)]
    assert [size for (size,) in rows(path, "SELECT size FROM notes WHERE NOT cosigned")] == [18, 19, 20]
    assert ada.suspicion == witness.Suspicion(10, TRUE.note(20))


# The state file


def test_others_can_read_or_a_new_state_replaces_one(path: Path, tmp_path: Path) -> None:
    grow(opened(path), 5)
    before = contents(path)
    with pytest.raises(LedgerError, match="already"):
        Witness.create(path, ORIGIN)
    assert contents(path) == before
    old = os.umask(0)
    try:
        Witness.create(tmp_path / "open.db", ORIGIN)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "open.db").stat().st_mode) == 0o600
    assert sorted(file.name for file in tmp_path.iterdir()) == ["open.db", "witness.db"]


def test_a_failed_creation_leaves_half_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LedgerError, match="cannot be made"):
        Witness.create(tmp_path / "nowhere" / "witness.db", ORIGIN)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(witness, "_found", full)
    with pytest.raises(LedgerError, match="full"):
        Witness.create(tmp_path / "witness.db", ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_state_starts_anew(ada: Witness, path: Path) -> None:
    grow(ada, 5)
    path.unlink()
    for act in (lambda: opened(path), lambda: ada.seen, lambda: grow(ada, 9)):
        with pytest.raises(LedgerError, match=r"rotate (its|the) witness key"):
            act()
    assert not path.exists()


def test_another_file_is_taken_for_the_state(ada: Witness, path: Path, tmp_path: Path) -> None:
    south = Verifier.of("causaldao.example/south", LOG_KEY.public, LOG)
    with pytest.raises(LedgerError, match=r"'causaldao\.example/north', not of"):
        opened(path, log=south)
    text, empty = tmp_path / "text.db", tmp_path / "empty.db"
    text.write_text("not a database, but long enough to be read as one " * 10)
    empty.touch()
    for file in (text, empty):
        with pytest.raises(LedgerError, match=r"not a database|format 0"):
            opened(file)
    grow(ada, 5)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(LedgerError, match="malformed"):
        opened(path)


def test_a_page_of_the_history_rots(ada: Witness, path: Path) -> None:
    grow(ada, *range(1, 25))
    data = bytearray(path.read_bytes())
    pages = rows(path, "SELECT rootpage FROM sqlite_schema WHERE name = 'notes'")[0][0]
    size = rows(path, "PRAGMA page_size")[0][0]
    data[(pages - 1) * size : pages * size] = bytes(size)
    path.write_bytes(data)
    with pytest.raises(LedgerError, match=r"cannot be read or written \(.*Page"):
        opened(path)


def test_a_path_is_read_as_an_address(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=memory#%41.db"
    Witness.create(path, ORIGIN)
    assert grow(opened(path), 5).size == opened(path).seen.size == 5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_commit_that_does_not_reach_the_disk(ada: Witness) -> None:
    with ada._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
    memory = sqlite3.connect(":memory:")  # the one kind that will not have WAL
    with pytest.raises(sqlite3.OperationalError, match="journal_mode = WAL was refused, it is 'memory'"):
        witness._make_durable(memory)
    memory.close()


# A state that went back in time


def test_a_backup_restored_goes_unnoticed(ada: Witness, path: Path, tmp_path: Path) -> None:
    grow(ada, 5)
    shutil.copy(path, tmp_path / "backup.db")
    line = grow(ada, 9).line
    ada.remember(line, 9, TRUE.root(9))
    shutil.copy(tmp_path / "backup.db", path)
    with pytest.raises(LedgerError, match="restored") as caught:
        ada.remember(line, 9, TRUE.root(9))
    for held in (ada, opened(path)):
        assert (held.status, held.reason, held.seen.size) == ("retired", str(caught.value), 5)
        with pytest.raises(LedgerError, match="is retired"):
            grow(held, 9)
        with pytest.raises(LedgerError, match="is retired"):
            held.remember(line, 9, TRUE.root(9))


@pytest.mark.parametrize("size", [5, 7, 9])
def test_a_line_of_a_second_copy_goes_unnoticed(size: int, ada: Witness) -> None:
    """Larger than what is seen, of the same size, or smaller: this state did not make it."""
    grow(ada, 3, 5, 7)
    with pytest.raises(LedgerError, match="two copies"):
        ada.remember(cosign(FORKED.checkpoint(size), "ada", KEY, NOW), size, FORKED.root(size))
    assert ada.status == "retired"


def test_a_line_of_a_size_that_was_passed_over_goes_unnoticed(ada: Witness) -> None:
    grow(ada, 3, 7)
    with pytest.raises(LedgerError, match="does not know of it"):
        ada.remember(cosign(TRUE.checkpoint(5), "ada", KEY, NOW), 5, TRUE.root(5))


def test_a_faithful_witness_is_retired(ada: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "HISTORY", 3)
    lines = {size: grow(ada, size).line for size in range(1, 9)}
    for size, line in lines.items():  # 1 to 5 are not in the history any more
        ada.remember(line, size, TRUE.root(size))
    others = cosign(TRUE.checkpoint(20), "ada", OTHER_KEY, NOW)
    wrong: list[tuple[str, int, str]] = [
        (others, 20, TRUE.root(20)),
        (lines[8], 20, TRUE.root(20)),
        ("garbage", 20, TRUE.root(20)),
        (lines[8], 8, "zz"),
        (lines[8], -8, TRUE.root(8)),
    ]
    for line, size, root in wrong:
        with pytest.raises(LedgerError):
            ada.remember(line, size, root)
    assert ada.status == "witnessing"
    assert grow(ada, 20).size == 20


# Crashes


class Crash(Exception):
    """The machine stops here."""


class Spy(SigningKey):
    """A key that asks, whenever it signs, what another process would find in the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(Ed25519PrivateKey.from_private_bytes(b"a" * 32))
        self.path = path
        self.durable: list[tuple[int, str]] = []

    def sign(self, data: bytes) -> bytes:
        self.durable += rows(self.path, "SELECT size, root FROM state")
        return super().sign(data)


def test_something_is_signed_before_it_is_durable(path: Path) -> None:
    spy = Spy(path)
    grow(opened(path, key=spy), 3, 8, 11)
    assert spy.durable == [(size, TRUE.root(size)) for size in (3, 8, 11)]


def test_a_commit_that_fails_still_gives_a_cosignature(
    ada: Witness, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(ada, 5)
    before, commit = contents(path), ada._engine.dialect.do_commit

    def fail(connection: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    def succeed_and_fail(connection: Any) -> None:
        commit(connection)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(ada._engine.dialect, "do_commit", fail)
    with pytest.raises(LedgerError, match="disk I/O error"):
        grow(ada, 8)
    assert contents(path) == before
    monkeypatch.setattr(ada._engine.dialect, "do_commit", succeed_and_fail)
    with pytest.raises(LedgerError, match="disk I/O error"):
        grow(ada, 8)
    again = opened(path)
    assert again.seen == Seen(8, TRUE.root(8), TRUE.note(8), "", 0)
    with pytest.raises(LedgerError, match="two histories"):
        grow(again, 8, tree=FORKED)


def test_a_crash_between_persisting_and_signing_loses_the_checkpoint(path: Path) -> None:
    def crash() -> int:
        raise Crash

    ada = opened(path, now=crash)
    with pytest.raises(Crash):
        grow(ada, 8)
    assert ada.seen == Seen(8, TRUE.root(8), TRUE.note(8), "", 0)
    with pytest.raises(StaleError):
        grow(ada, 5)
    seen = opened(path, now=lambda: NOW + 7).cosign(TRUE.note(8), {})
    assert check_cosignature(TRUE.checkpoint(8), seen.line, ada.verifier) == NOW + 7


def test_a_crash_before_signing_lets_a_line_stand_beside_another_note(path: Path) -> None:
    with pytest.raises(AssertionError):
        grow(opened(path, now=stopped), 8)
    longer = opened(path).cosign(TRUE.note(8, "an extension"), {})
    assert longer.note == TRUE.note(8, "an extension") == opened(path).seen.note
    check_cosignature(TRUE.checkpoint(8, "an extension"), longer.line, opened(path).verifier)


class Late(Witness):
    """Between persisting and signing, `meanwhile` happens in another process."""

    meanwhile: Callable[[], object]

    def _sign(self, checkpoint: Checkpoint) -> Seen:
        self.meanwhile()
        return super()._sign(checkpoint)


def test_another_process_acts_between_persisting_and_signing(path: Path) -> None:
    late, other = Late.open(path, "ada", KEY, VERIFIER, stopped), opened(path)
    late.meanwhile = lambda: grow(other, 5)
    assert grow(late, 5) == other.seen  # one line, the other's
    late.meanwhile = lambda: grow(other, 11)
    with pytest.raises(StaleError, match="has seen size 11"):
        grow(late, 8)

    def alarm() -> None:
        with pytest.raises(LedgerError, match="two histories"):
            grow(other, 12, tree=FORKED)

    late.meanwhile = alarm
    with pytest.raises(LedgerError, match="is alarmed"):
        grow(late, 12)
    assert (late.seen.size, late.seen.line) == (12, "")


class Hasty(Witness):
    """What a witness must not do: sign, show the cosignature, and persist only then."""

    def cosign(self, note: str, proofs: Mapping[int, Sequence[bytes]]) -> Seen:
        checkpoint = self.check(note, proofs)
        line = cosign(checkpoint, self._name, self._key, NOW)
        self._shown(Seen(checkpoint.size, checkpoint.root.hex(), note, line, NOW))
        return super().cosign(note, proofs)

    _shown: Callable[[Seen], None]


def show(pipe: int, seen: Seen) -> None:
    os.write(pipe, f"{seen.size} {seen.root} {seen.line}\n".encode())


def in_child(action: Callable[[int], None]) -> tuple[int, int]:
    """The pid of a forked process, and the pipe that it writes what it shows to."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            action(writer)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    return child, reader


def shown(child: int, reader: int) -> tuple[list[tuple[int, str, str]], int]:
    """What a process showed until it ended, and how it ended."""
    with os.fdopen(reader, encoding="utf-8") as file:
        lines = [line.rstrip("\n").split(" ", 2) for line in file]
    return [(int(size), root, line) for size, root, line in lines], os.waitpid(child, 0)[1]


def require_remembered(path: Path, lines: Sequence[tuple[int, str, str]]) -> None:
    """Every cosignature that left the process is of a state that is durable: no restart may contradict it."""
    ada = opened(path)
    for size, root, line in lines:
        ada.remember(line, size, root)
        assert ada.seen.size >= size


def killed_at(path: Path, fatal: int, kind: type[Witness]) -> tuple[list[tuple[int, str, str]], int]:
    """A process that kills itself before its word ``fatal`` to the database while it cosigns two checkpoints."""

    def act(pipe: int) -> None:
        ada = kind.open(path, "ada", KEY, VERIFIER, clock)
        if isinstance(ada, Hasty):
            ada._shown = lambda seen: show(pipe, seen)
        words = iter(range(10**6))

        def word(*_: Any) -> None:
            if next(words) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        sa.event.listen(ada._engine, "before_cursor_execute", word)
        sa.event.listen(ada._engine, "commit", word)
        for size in (8, 11):
            show(pipe, ada.cosign(TRUE.note(size), TRUE.proofs(size, 3, 8)))

    return shown(*in_child(act))


@pytest.mark.parametrize("kind", [Witness, Hasty])
def test_a_kill_before_any_word_to_the_database_loses_what_was_cosigned(kind: type[Witness], tmp_path: Path) -> None:
    """For the hasty witness, which persists too late, the same check must find it out."""
    caught = 0
    for fatal in range(1000):
        path = tmp_path / f"{fatal}.db"
        Witness.create(path, ORIGIN)
        grow(opened(path), 3)
        lines, status = killed_at(path, fatal, kind)
        try:
            require_remembered(path, lines)
            assert grow(opened(path), 11).size == 11  # whatever was left, it goes on from there
        except LedgerError:
            caught += 1
        if status == 0:
            break
        assert status == signal.SIGKILL
    assert fatal > 20
    assert (caught > 0) == (kind is Hasty)


def test_a_kill_at_any_moment_loses_what_was_cosigned(path: Path) -> None:
    random_ = random.Random(4)
    tree = Tree(3000)
    proved = 0
    for _ in range(count(8, 200)):

        def act(pipe: int) -> None:
            ada = opened(path)
            for size in range(ada.seen.size + 1, len(tree.leaves)):
                show(pipe, ada.cosign(tree.note(size), tree.proofs(size, max(size - 1, 1))))

        child, reader = in_child(act)
        select.select([reader], [], [], 10)
        select.select([], [], [], random_.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        lines, status = shown(child, reader)
        assert status == signal.SIGKILL
        require_remembered(path, lines)
        proved += len(lines)
    assert proved > 0
    assert [root for _, root in rows(path)] == [tree.root(size) for size, _ in rows(path)]


def race(file: Path, tree: Tree, together: Barrier, pipe: int) -> None:
    """Ask for one size after another, each at the same moment as the others."""
    ada = opened(file)
    for size in range(1, 9):
        together.wait(60)
        with suppress(LedgerError):
            show(pipe, ada.cosign(tree.note(size), tree.proofs(size)))


def test_two_processes_cosign_two_histories(tmp_path: Path) -> None:
    """They race for each size with a story of their own; whoever comes first, only one is ever cosigned."""
    for number in range(count(6, 100)):
        file, fork = tmp_path / f"{number}.db", 4 * (number % 2)
        trees = (TRUE, Tree(24, fork))
        Witness.create(file, ORIGIN)
        together = multiprocessing.get_context("fork").Barrier(len(trees))
        children = [in_child(partial(race, file, tree, together)) for tree in trees]
        (one, first), (two, second) = (shown(*child) for child in children)
        assert (first, second) == (0, 0)
        told = {(size, root) for size, root, _ in one + two}
        assert any(all(tree.root(size) == root for size, root in told) for tree in trees)
        common = [(size, TRUE.root(size)) for size in range(1, fork + 1)]
        assert [asked[:2] for asked in one[:fork]] == [asked[:2] for asked in two[:fork]] == common
        assert opened(file).status == "alarmed"
