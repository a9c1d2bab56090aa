"""A ledger read from its database: what it answers must prove itself, and what it has not must not be made up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from causaldao.errors import MisuseError
from causaldao.ledger import Entry, Log, merkle
from causaldao.ledger.log import Recorded
from causaldao.ledger.merkle import verify_consistency, verify_inclusion
from causaldao.ledger.note import COSIGNER, LOG, Verifier, cosign, open_note
from causaldao.ledger.reader import Local
from causaldao.ledger.receipt import Pending, Receipt
from causaldao.ledger.verify import Policy, verify_receipt
from tests.ledger import cases, forge
from tests.ledger.conftest import Database

NAMES = ("ada", "bob")
WITNESSES = [Verifier.of(name, cases.witness(name).public, COSIGNER) for name in NAMES]
LOG_VERIFIER = Verifier.of(cases.ORIGIN, cases.LOG_KEY.public, LOG)


def cosigned(log: Log, size: int, *names: str) -> None:
    """Members' cosignatures of a size come in."""
    checkpoint = open_note(log.note_at(size), LOG_VERIFIER)
    log.keep_cosignatures(size, {name: cosign(checkpoint, name, cases.witness(name), 1_800_000_000) for name in names})


@pytest.fixture
def writer(database: Database) -> Iterator[Log]:
    with cases.create(database.url) as log:
        yield log


@pytest.fixture
def reader(writer: Log, database: Database) -> Iterator[Local]:
    with Log.read(database.url) as log:
        yield Local(log, lambda: (WITNESSES, 2))


def test_an_answer_does_not_prove_itself(writer: Log, reader: Local) -> None:
    size = writer.head.size
    cosigned(writer, 7, *NAMES)
    cosigned(writer, 9, "ada")
    told = list(reader.entries(0, size))
    leaves = [merkle.leaf_hash(entry.record) for entry in told]
    assert [entry.index for entry in told] == list(range(size))
    assert [entry.signature for entry in told] == [entry.signature for entry in writer.entries()]
    head = open_note(reader.checkpoint(head=True).note, LOG_VERIFIER)
    assert (head.size, head.root) == (size, merkle.root(leaves))
    agreed = reader.checkpoint()
    assert (open_note(agreed.note, LOG_VERIFIER).size, agreed.agreed, agreed.log_size) == (7, True, size)
    assert agreed.note.count("\n— ") == 3
    one = reader.checkpoint(9)
    assert (open_note(one.note, LOG_VERIFIER).size, one.agreed, one.note.count("\n— ")) == (9, False, 2)
    for old in range(1, size):
        root = merkle.root(leaves[:old])
        verify_consistency(old, root, size, head.root, reader.consistency(old, size))
        verify_inclusion(leaves[old], old, size, reader.inclusion(old, size), head.root)
    assert reader.cosignatures(7) == tuple(agreed.note.splitlines()[-2:])


def test_a_receipt_does_not_verify_or_comes_before_its_time(writer: Log, reader: Local) -> None:
    assert reader.receipt(0) == Pending(0)
    cosigned(writer, 7, "ada")
    assert reader.receipt(0) == Pending(0)
    cosigned(writer, 7, "bob")
    policy = Policy.parse(forge.policy_text(NAMES, NAMES, 2))
    for index in range(7):
        found = reader.receipt(index)
        assert isinstance(found, Receipt)
        assert verify_receipt(found.text, found.record, policy).index == index
    assert reader.receipt(7) == Pending(7)


def test_what_others_wrote_since_is_not_there(writer: Log, reader: Local) -> None:
    size = writer.head.size
    assert reader.checkpoint().log_size == size
    writer.append([Entry("complaint", {"why": "late"})])
    assert reader.checkpoint(head=True).log_size == size + 1
    assert next(reader.entries(size, size + 1)).record == writer.entries(size)[0].record
    assert reader.consistency(size, size + 1)


def test_what_is_not_there_is_made_up(writer: Log, reader: Local) -> None:
    size = writer.head.size
    for ask in (
        lambda: reader.checkpoint(size + 1), lambda: reader.checkpoint(5), lambda: list(reader.entries(0, size + 1)),
        lambda: list(reader.entries(3, 2)), lambda: reader.inclusion(5, 5), lambda: reader.inclusion(0, size + 1),
        lambda: reader.consistency(5, 4), lambda: reader.consistency(1, size + 1), lambda: reader.receipt(size),
        lambda: reader.cosignatures(size + 1),
    ):  # fmt: skip
        with pytest.raises(MisuseError):
            ask()
    assert reader.cosignatures(5) == ()


def test_a_ledger_that_nobody_cosigns_shows_nothing(writer: Log, database: Database) -> None:
    with Log.read(database.url) as log:
        shown = Local(log, lambda: ((), 0)).checkpoint()
        assert (open_note(shown.note, LOG_VERIFIER).size, shown.agreed) == (writer.head.size, True)
        shown = Local(log, lambda: (WITNESSES, 2)).checkpoint()
        assert (open_note(shown.note, LOG_VERIFIER).size, shown.agreed) == (writer.head.size, False)


def test_large_records_are_read_many_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record may have 4 MiB: a hundred of them at once would be a member's way to fill the coordinator's memory."""
    entries = [cases.genesis(), *(Entry("complaint", {"n": n, "why": "x" * 700_000}) for n in range(12))]
    with cases.create(tmp_path / "ledger.db", entries) as log:
        plain, many = Log.entries, list[int]()

        def counted(self: Log, start: int, stop: int) -> tuple[Recorded, ...]:
            many.append(stop - start)
            return plain(self, start, stop)

        monkeypatch.setattr(Log, "entries", counted)
        told = list(Local(log, lambda: ((), 0)).entries(0, 13))
    assert [entry.index for entry in told] == list(range(13))
    assert many == [8, 1, 1, 1, 1, 1]
