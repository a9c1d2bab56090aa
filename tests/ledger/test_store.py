"""The database: durable settings read back, versions refused, the past guarded."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from causaldao.errors import LedgerError
from causaldao.ledger import Entry, Log, store
from causaldao.signing import sha256
from tests.ledger import cases


def test_write_ahead_logging_and_full_sync_are_in_force(tmp_path: Path) -> None:
    with cases.create(tmp_path / "ledger.db") as log, log._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_database_that_cannot_be_write_ahead_logged(tmp_path: Path) -> None:
    # This VFS has no shared memory: SQLite answers the pragma with the old mode and no error.
    url = f"sqlite:///file:{tmp_path / 'ledger.db'}?vfs=unix-dotfile&uri=true"
    with pytest.raises(LedgerError, match="journal_mode=WAL"):
        Log.create(url, cases.ORIGIN, cases.LOG_KEY)
    with pytest.raises(LedgerError, match="journal_mode=WAL"):
        Log.create("sqlite://", cases.ORIGIN, cases.LOG_KEY)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("postgresql://host/ledger", "only SQLite"),
        ("nonsense", "Could not open"),
        ("sqlite:///no/such/folder/ledger.db", "There is no ledger at no/such/folder/ledger.db"),
    ],
)
def test_urls_that_cannot_be_opened(url: str, fault: str) -> None:
    with pytest.raises(LedgerError, match=fault):
        Log.open(url, cases.LOG_KEY)


def test_a_missing_file_is_not_created_by_opening_it(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="There is no ledger"):
        Log.read(cases.url(tmp_path / "ledger.db"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        Log.read(cases.url(tmp_path / "ledger.db"))


def test_another_programs_database(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "other.db").close()
    with pytest.raises(LedgerError, match="holds no ledger"):
        Log.read(cases.url(tmp_path / "other.db"))


def test_a_database_of_an_unknown_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    cases.create(tmp_path / "ledger.db").close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for opened in (lambda url: Log.open(url, cases.LOG_KEY), Log.read):
        with pytest.raises(LedgerError, match=r"'9999'.*newer"):
            opened(cases.url(tmp_path / "ledger.db"))
    assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
    connection.close()


def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    with cases.create(tmp_path / "ledger.db") as log, log._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, store.ENTRIES.metadata) == []


def test_a_creation_that_fails_leaves_no_half_made_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(MigrationContext, "stamp", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            Log.create(cases.url(tmp_path / "ledger.db"), cases.ORIGIN, cases.LOG_KEY)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    connection.close()
    cases.create(tmp_path / "ledger.db").close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET record = x'00' WHERE position = 1",
        "UPDATE entries SET position = 99 WHERE position = 1",
        "DELETE FROM entries WHERE position = 1",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries SELECT * FROM entries WHERE position = 1",
        "INSERT OR REPLACE INTO entries SELECT 99, record, link, signature, content, 'a' FROM entries",
        "UPDATE payloads SET data = x'00'",
        "DELETE FROM payloads",
        "UPDATE head SET size = 1",
        "UPDATE head SET origin = 'other'",
        "DELETE FROM head",
    ],
)
def test_the_past_cannot_be_changed_by_mistake(tmp_path: Path, statement: str) -> None:
    recorded = [cases.genesis(), Entry("pool", {}, {sha256(b"x"): b"x"}, "a")]
    with cases.create(tmp_path / "ledger.db", recorded) as log:
        before = log.snapshot()
        with log._engine.connect() as connection, pytest.raises(sa.exc.IntegrityError, match="append-only"):
            connection.exec_driver_sql(statement)
        assert log.snapshot() == before
