"""The stored tree against the one made anew from the records, and against a database altered behind the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from causaldao.errors import LedgerError
from causaldao.ledger import Entry, Log, merkle
from causaldao.ledger.note import LOG, Verifier, open_note
from tests.ledger import cases
from tests.ledger.conftest import Database

WATCHED = Verifier.of(cases.ORIGIN, cases.LOG_KEY.public, LOG)


def pool(*numbers: int) -> list[Entry]:
    return [Entry("pool", {"number": number}) for number in numbers]


def leaves(log: Log) -> list[bytes]:
    return [merkle.leaf_hash(entry.record) for entry in log.entries()]


@contextmanager
def of_size(database: Database, size: int) -> Iterator[Log]:
    with cases.create(database.url, [cases.genesis(), *pool(*range(1, size))]) as log:
        yield log


def test_roots_and_proofs_of_every_size(database: Database) -> None:
    with of_size(database, 13) as log:
        whole = leaves(log)
        assert [log.leaf(index) for index in range(13)] == whole
        for size in range(14):
            root = log.root_at(size)
            assert root == merkle.root(whole[:size])
            assert log.consistency_proof(size, 13) == merkle.consistency_proof(whole, size)
            for index in range(size):
                proof = log.inclusion_proof(index, size)
                merkle.verify_inclusion(whole[index], index, size, proof, root)
        assert log.consistency_proof(3, 7) == merkle.consistency_proof(whole[:7], 3)


def test_the_tree_is_the_same_however_it_grew(database: Database) -> None:
    """In appends of one entry, of many, of none, by two writers and after opening again."""
    with cases.create(database.url, [cases.genesis()]) as log:
        for start, end in ((1, 2), (2, 9), (9, 9), (9, 12)):
            log.append(pool(*range(start, end)), {"at": end}, own="a")
        with Log.open(database.url, cases.LOG_KEY) as other:
            other.append([Entry("pool", {"study": "b"}), *pool(12)])
        log.append([Entry("pool", {"study": "a"})])
        whole = leaves(log)
        assert log.head.root == merkle.root(whole).hex()
        with log._engine.connect() as connection:
            stored = {(row.level, row.position): row.hash for row in connection.execute(sa.text("SELECT * FROM nodes"))}
        expected = merkle.grown(0, whole, lambda *_: b"")
        assert stored == {(level, position): hash for level, position, hash in expected}


def test_an_append_reads_no_tree_and_a_proof_few_rows(database: Database) -> None:
    asked: list[str] = []
    with of_size(database, 300) as log:
        sa.event.listen(log._engine, "before_cursor_execute", lambda *words: asked.append(words[2]))
        log.append(pool(1))
        assert not [statement for statement in asked if statement.startswith("SELECT") and "nodes" in statement]
        asked.clear()
        log.inclusion_proof(77, 299)
        assert len([statement for statement in asked if "nodes" in statement]) < 40


def test_a_head_is_a_checkpoint_that_others_can_read(database: Database) -> None:
    with of_size(database, 5) as log:
        checkpoint = open_note(log.head.note, WATCHED)
        assert (checkpoint.origin, checkpoint.size, checkpoint.root) == (cases.ORIGIN, 5, merkle.root(leaves(log)))
        assert log.head.checkpoint == checkpoint
        for size in range(6):
            assert open_note(log.note_at(size), WATCHED).root == merkle.root(leaves(log)[:size])


def test_the_head_of_an_empty_log(database: Database) -> None:
    with Log.create(database.url, "x", cases.LOG_KEY) as empty:
        assert empty.head.note.startswith("x\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n— x ")


@pytest.mark.parametrize(
    "ask",
    [
        lambda log: log.leaf(5), lambda log: log.leaf(-1), lambda log: log.root_at(6), lambda log: log.root_at(-1),
        lambda log: log.inclusion_proof(5, 5), lambda log: log.inclusion_proof(3, 3),
        lambda log: log.inclusion_proof(0, 6), lambda log: log.consistency_proof(4, 3),
        lambda log: log.consistency_proof(2, 6), lambda log: log.consistency_proof(-1, 3),
        lambda log: log.note_at(6), lambda log: log.snapshot(6), lambda log: log.receipt(5, [], 0),
    ],
)  # fmt: skip
def test_places_that_are_not_in_the_log(database: Database, ask: Callable[[Log], object]) -> None:
    with of_size(database, 5) as log, pytest.raises(LedgerError, match=r"no entry|no root|no leaf|no earlier size"):
        ask(log)


def test_a_reader_does_not_sign_what_was_not_kept(database: Database) -> None:
    with of_size(database, 5) as log, Log.read(database.url) as reader:
        assert reader.note_at(5) == log.head.note
        with pytest.raises(LedgerError, match="head of size 4 is not stored"):
            reader.note_at(4)


# A database altered behind the program's back


def alter(database: Database, level: int, position: int) -> None:
    database.unguarded(
        f"UPDATE nodes SET hash = {database.bytes(b'x' * 32)} WHERE level = {level} AND position = {position}"
    )


@pytest.mark.parametrize(("level", "position"), [(0, 12), (2, 2), (3, 0)])
def test_a_node_of_the_edge_that_was_altered(database: Database, level: int, position: int) -> None:
    with of_size(database, 13):
        pass
    alter(database, level, position)
    for opened in (lambda url: Log.open(url, cases.LOG_KEY), Log.read):
        with pytest.raises(LedgerError, match="altered outside"):
            opened(database.url)


def test_a_node_that_is_gone(database: Database) -> None:
    with of_size(database, 13):
        pass
    database.unguarded("DELETE FROM nodes WHERE level = 3")
    with pytest.raises(LedgerError, match="lacks node 0 of level 3"):
        Log.open(database.url, cases.LOG_KEY)


@pytest.mark.parametrize(
    "ask",
    [
        lambda log: log.root_at(5), lambda log: log.note_at(5), lambda log: log.inclusion_proof(5, 13),
        lambda log: log.inclusion_proof(4, 5), lambda log: log.consistency_proof(5, 13),
        lambda log: log.consistency_proof(3, 5), lambda log: log.snapshot(5), lambda log: log.receipt(4, [], 0),
    ],
)  # fmt: skip
def test_nothing_is_signed_or_proved_from_a_node_that_was_altered(
    database: Database, ask: Callable[[Log], object]
) -> None:
    """The log would sign a second history itself. Neither node is of the right edge, which is checked at the start."""
    with of_size(database, 13):
        pass
    alter(database, 2, 0)
    alter(database, 0, 4)
    with Log.open(database.url, cases.LOG_KEY) as log, pytest.raises(LedgerError, match="does not agree with its head"):
        ask(log)


def test_others_entries_that_are_not_under_their_head(database: Database) -> None:
    with of_size(database, 3) as log, Log.open(database.url, cases.LOG_KEY) as other:
        other.append(pool(7))
        before = log.head
        wrong = bytes.fromhex(other.head.root)[::-1].hex()
        database.unguarded(f"UPDATE head SET root = '{wrong}'")
        with pytest.raises(LedgerError, match="does not go on"):
            log.refresh()
        assert log.head == before
