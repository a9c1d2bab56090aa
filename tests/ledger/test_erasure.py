"""Erasure: the bytes are gone from the database and its files, the record and every proof stay, nothing comes back."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from causaldao.errors import LedgerError
from causaldao.ledger import Entry, Log, export, store
from causaldao.ledger.entry import salted
from causaldao.ledger.verify import verify
from causaldao.signing import sha256
from tests.ledger import cases
from tests.ledger.conftest import Database, PostgreSQL, SQLite

SECRET = b"the patient's diary " * 500  # more than a page
NAME, PAYLOAD = salted(SECRET, b"s" * 32)
OTHER = b"another"


def told() -> Entry:
    return Entry("pool", {"number": 1}, {NAME: PAYLOAD, sha256(OTHER): OTHER}, "told")


def create(database: Database) -> Log:
    return cases.create(database.url, [cases.genesis(), told()])


def test_an_erased_payload_says_when_it_went_and_the_rest_stays(database: Database) -> None:
    with create(database) as log:
        head, proof = log.head, log.inclusion_proof(1, 2)
        assert (log.payload(NAME), log.erased(NAME)) == (PAYLOAD, None)
        assert log.erase([NAME], "asked for") == 2
        with pytest.raises(LedgerError, match=f"The payload {NAME} was erased: entry 2 says why"):
            log.payload(NAME)
        assert (log.erased(NAME), log.erased(sha256(OTHER)), log.payload(sha256(OTHER))) == (2, None, OTHER)
        assert log.entries(2)[0].body == {"payloads": [NAME], "reason": "asked for"}
        assert log.entries(1)[0].payloads == tuple(sorted([NAME, sha256(OTHER)]))
        assert (log.root_at(2).hex(), log.inclusion_proof(1, 2)) == (head.root, proof)
        assert list(log.snapshot().payloads) == [sha256(OTHER)]
        report = verify(export(log), cases.policy())
        assert (report.size, report.erased) == (3, (NAME,))
    with Log.open(database.url, cases.LOG_KEY) as log:
        assert log.erased(NAME) == 2


def files(database: Database) -> list[Path]:
    """The files of the database; of a server's, those of the payloads."""
    if isinstance(database, SQLite):
        return list(database.path.parent.glob("ledger.db*"))
    database.sql("CHECKPOINT")
    found = database.sql(
        "SELECT current_setting('data_directory') || '/' || pg_relation_filepath(oid) FROM pg_class WHERE oid IN "
        "('payloads'::regclass, (SELECT reltoastrelid FROM pg_class WHERE oid = 'payloads'::regclass))"
    )
    return [Path(str(path)) for (path,) in found]


def test_an_erased_payloads_bytes_are_in_no_file_of_the_database(database: Database) -> None:
    def pieces(of: bytes) -> list[bytes]:
        return [hashlib.sha256(of + bytes([number])).digest() for number in range(256)]  # nothing to compress

    def found() -> int:
        data = [path.read_bytes() for path in files(database)]
        return sum(any(piece in part for part in data) for piece in pieces(b"secret"))

    name, payload = salted(b"".join(pieces(b"secret")))
    others = dict(salted(b"".join(pieces(bytes([number])))) for number in range(3))
    with cases.create(database.url, [cases.genesis(), Entry("pool", {}, {name: payload})]) as log:
        assert found() > 200
        log.append([Entry("pool", {}, others)])  # behind it: the end of a file may be cut off by itself
        log.erase([name], "asked for")
        assert found() == 0
        assert log.snapshot().payloads == others


def test_a_reader_that_keeps_the_old_bytes_in_the_log_is_named(sqlite: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.1)
    with create(sqlite) as log, Log.read(sqlite.url) as reader:
        for engine in (log._engine, reader._engine):
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA busy_timeout = 50")
        with store.transaction(reader._engine, "read", write=False) as connection:
            connection.scalar(sa.select(store.HEAD.c.size))
            with pytest.raises(LedgerError, match=r"as entry 2 says, but: .*write-ahead log.*erase the same payloads"):
                log.erase([NAME], "asked for")
        assert log.erased(NAME) == 2
        assert [path for path in files(sqlite) if PAYLOAD[:1000] in path.read_bytes()]
        assert log.erase([NAME], "asked for") == 2  # no second entry, and now it is gone
        assert log.head.size == 3
        assert not [path for path in files(sqlite) if PAYLOAD[:1000] in path.read_bytes()]


def test_what_was_erased_is_not_erased_twice(database: Database) -> None:
    with create(database) as log:
        log.erase([NAME], "asked for")
        assert log.erase([NAME], "again") == 2
        assert log.erase([NAME, sha256(OTHER)], "the rest too") == 3
        assert log.entries(3)[0].body["payloads"] == [sha256(OTHER)]
        assert log.erase([NAME, sha256(OTHER)], "again") == 3
        assert log.head.size == 4


def test_what_the_ledger_never_held(database: Database) -> None:
    with create(database) as log:
        before = log.snapshot()
        for names in ([sha256(b"never")], [NAME, sha256(b"never")]):
            with pytest.raises(LedgerError, match=f"holds no payload {sha256(b'never')}"):
                log.erase(names, "asked for")
        with pytest.raises(LedgerError, match="needs 'payloads', 1 to 1024"):
            log.erase([], "asked for")
        with pytest.raises(LedgerError, match="needs 'payloads', 1 to 1024"):
            log.erase([f"{number:064x}" for number in range(1025)], "too many")
        assert log.snapshot() == before
    with Log.read(database.url) as reader, pytest.raises(LedgerError, match="opened to be read"):
        reader.erase([NAME], "asked for")


def test_an_erased_payload_does_not_come_back(database: Database) -> None:
    with create(database) as log:
        log.erase([NAME], "asked for")
        with pytest.raises(LedgerError, match=f"The payload {NAME} was erased by entry 2 and cannot come back"):
            log.append([Entry("pool", {}, {NAME: PAYLOAD})], {"state": 1})
        assert (log.head.size, log.state("state")) == (3, None)
        assert log.append([told()]) == [1]  # a step that is repeated after a crash brings nothing
        assert NAME not in log.snapshot().payloads


def test_an_erasure_is_an_entry_like_others(database: Database) -> None:
    """In one append: what comes before it may be erased, what comes behind it may not bring the same."""
    name = sha256(b"x")
    erasure = Entry("erasure", {"payloads": [name], "reason": "a mistake"})
    with create(database) as log:
        with pytest.raises(LedgerError, match="holds no payload"):
            log.append([erasure, Entry("pool", {}, {name: b"x"})])
        with pytest.raises(LedgerError, match="was erased by entry 3 and cannot come back"):
            log.append([Entry("pool", {}, {name: b"x"}), erasure, Entry("pool", {}, {name: b"x"})])
        assert log.append([Entry("pool", {}, {name: b"x"}), erasure, erasure], {"state": 1}) == [2, 3, 4]
        assert (log.erased(name), log.state("state")) == (3, 1)
        assert verify(export(log), cases.policy()).erased == (name,)


def test_two_threads_erase_the_same(database: Database) -> None:
    start = threading.Barrier(2)

    def erase(_: int) -> int:
        start.wait(10)
        return log.erase([NAME], "asked for")

    with create(database) as log:
        with ThreadPoolExecutor(2) as pool:
            places = set(pool.map(erase, range(2)))
        assert places <= {2, 3}
        assert log.erased(NAME) == 2
        assert verify(export(log), cases.policy()).size == log.head.size


def test_a_deletion_that_fails_leaves_no_erasure(database: Database) -> None:
    with create(database) as log:
        if isinstance(database, PostgreSQL):
            database.sql("ALTER TABLE erased ADD CONSTRAINT disk_full CHECK (false)")
        else:
            database.sql(
                "CREATE TRIGGER disk_full BEFORE DELETE ON payloads BEGIN SELECT RAISE(ABORT, 'disk_full'); END"
            )
        before = log.snapshot()
        with pytest.raises(LedgerError, match="disk_full"):
            log.erase([NAME], "asked for")
        assert log.snapshot() == before
        assert (log.payload(NAME), log.erased(NAME)) == (PAYLOAD, None)
