"""The database: durable settings read back, versions refused, the past guarded."""

from __future__ import annotations

import base64
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations

from causaldao.errors import ConfigurationError, LedgerError
from causaldao.ledger import Entry, Log, merkle, store
from causaldao.ledger.migrations.versions import v0001, v0002, v0003
from causaldao.ledger.note import cosign
from causaldao.signing import sha256
from tests.ledger import cases
from tests.ledger.conftest import Database, PostgreSQL, SQLite
from tests.ledger.postgres import Server


def test_write_ahead_logging_and_full_sync_are_in_force(tmp_path: Path) -> None:
    with cases.create(tmp_path / "ledger.db") as log, log._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1


@pytest.mark.parametrize("pragma", ["synchronous", "secure_delete"])
def test_a_setting_that_is_refused_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pragma: str
) -> None:
    wanted = [(name, "OFF" if name == pragma else value, *rest) for name, value, *rest in store._PRAGMAS]
    monkeypatch.setattr(store, "_PRAGMAS", wanted)
    with pytest.raises(LedgerError, match=f"would not set {pragma}"):
        cases.create(tmp_path / "ledger.db")


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
        ("mysql://host/ledger", "only SQLite and PostgreSQL"),
        ("postgresql+psycopg2://host/ledger", r"'postgresql\+psycopg2'.*use"),
        ("nonsense", "Could not open.*cannot be read"),
        ("postgresql://host:port/ledger", "Could not open.*cannot be read"),
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


def test_a_database_without_a_ledger(database: Database) -> None:
    database.sql("CREATE TABLE others (x INTEGER)")
    for opened in (lambda url: Log.open(url, cases.LOG_KEY), Log.read):
        with pytest.raises(LedgerError, match="holds no ledger"):
            opened(database.url)


def test_a_ledger_lies_beside_other_tables(database: Database) -> None:
    database.sql("CREATE TABLE others (x INTEGER)")
    cases.create(database.url).close()
    with Log.read(database.url) as log:
        assert log.head.size == len(cases.entries())
    assert database.sql("SELECT count(*) FROM others") == [(0,)]


def test_a_database_of_an_unknown_newer_version_is_refused_and_left_alone(database: Database) -> None:
    cases.create(database.url).close()
    database.sql("UPDATE alembic_version SET version_num = '9999'")
    for opened in (lambda url: Log.open(url, cases.LOG_KEY), Log.read):
        with pytest.raises(LedgerError, match=r"'9999'.*newer"):
            opened(database.url)
    assert database.sql("SELECT version_num FROM alembic_version") == [("9999",)]


def old_ledger(database: Database, upto: int, tmp_path: Path) -> None:
    """A ledger as the program of that version of the schema left it: no tree, the head's root is the last link."""
    columns = [column for column in store.ENTRIES.columns if upto > 1 or column.name not in ("kind", "study")]
    with cases.create(tmp_path / "new.db") as log, log._engine.connect() as connection:
        head, link = log.head, log.entries()[-1].link
        recorded = [dict(row) for row in connection.execute(sa.select(*columns)).mappings()]
    text = f"causaldao-head/1\n{head.origin}\n{head.size}\n{link}\n{head.time}\n"
    signature = base64.b64encode(cases.LOG_KEY.sign(text.encode())).decode()
    engine = store.connect(database.url, create=True)
    with store.transaction(engine, "make an old ledger", write=True) as connection:
        context = MigrationContext.configure(connection)
        with Operations.context(context):
            for revision in (v0001, v0002)[:upto]:
                revision.upgrade()
        context._ensure_version_table()
        connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('000{upto}')")
        entries = sa.table("entries", *(sa.column(column.name) for column in columns))
        connection.execute(sa.insert(entries), recorded)
        old = sa.table("head", *map(sa.column, ("id", "origin", "size", "root", "time", "signature")))
        values = {"id": 1, "origin": head.origin, "size": head.size, "root": link, "time": head.time}
        connection.execute(sa.insert(old), {**values, "signature": signature})
    engine.dispose()


@pytest.mark.parametrize("upto", [1, 2])
def test_a_ledger_of_an_older_version_is_brought_to_this_one(database: Database, upto: int, tmp_path: Path) -> None:
    old_ledger(database, upto, tmp_path)
    with Log.open(database.url, cases.LOG_KEY, cases.clock()) as log, Log.read(cases.url(tmp_path / "new.db")) as new:
        assert (log.head.root, log.head.note) == (new.head.root, new.head.note)
        assert log.entries() == new.entries()
        assert [entry.index for entry in log.entries(kinds=("member.admit", "ballot"))] == [1, 2, 7, 8]
        assert [entry.index for entry in log.entries(study=cases.STUDY)] == [3, 9]
        assert log.append([Entry("pool", {})]) == [10]
        assert log.root_at(10).hex() == new.head.root
        for statement in ("UPDATE entries SET kind = 'pool'", "DELETE FROM nodes"):
            with log._engine.connect() as connection, pytest.raises(sa.exc.IntegrityError, match="append-only"):
                connection.exec_driver_sql(statement)
    with Log.open(database.url, cases.LOG_KEY) as log, Log.read(database.url) as reader:
        assert log.head == reader.head
        assert reader.root_at(3) == merkle.root(merkle.leaf_hash(entry.record) for entry in reader.entries(0, 3))


@pytest.mark.parametrize("upto", [1, 2])
def test_an_older_ledger_is_left_alone_by_who_cannot_sign_it(database: Database, upto: int, tmp_path: Path) -> None:
    old_ledger(database, upto, tmp_path)
    with pytest.raises(LedgerError, match="open it once with the coordinator"):
        Log.read(database.url)
    with pytest.raises(LedgerError, match="was not signed by key"):
        Log.open(database.url, cases.OTHER_KEY)
    assert database.sql("SELECT version_num FROM alembic_version") == [(f"000{upto}",)]
    Log.open(database.url, cases.LOG_KEY).close()


def test_an_older_ledger_that_was_altered_is_not_signed_anew(database: Database, tmp_path: Path) -> None:
    old_ledger(database, 2, tmp_path)
    ((record,),) = database.sql("SELECT record FROM entries WHERE position = 3")
    changed = database.bytes(bytes(record).replace(b"what causes", b"who causes"))
    off, on = "DROP TRIGGER entries_update", "SELECT 1"
    if isinstance(database, PostgreSQL):
        off, on = (f"ALTER TABLE entries {word} TRIGGER ALL" for word in ("DISABLE", "ENABLE"))
    database.sql(off, f"UPDATE entries SET record = {changed} WHERE position = 3", on)
    with pytest.raises(LedgerError, match="the 10 records make it"):
        Log.open(database.url, cases.LOG_KEY)
    assert database.sql("SELECT version_num FROM alembic_version") == [("0002",)]


def test_a_tree_is_filled_in_pieces(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v0003, "_CHUNK", 3)
    old_ledger(database, 2, tmp_path)
    with Log.open(database.url, cases.LOG_KEY) as log, Log.read(cases.url(tmp_path / "new.db")) as new:
        assert log.head.root == new.head.root
        assert [log.root_at(size) for size in range(11)] == [new.root_at(size) for size in range(11)]


def test_the_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    with cases.create(database.url) as log, log._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, store.ENTRIES.metadata) == []


def test_a_creation_that_fails_leaves_no_half_made_tables(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(MigrationContext, "stamp", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            Log.create(database.url, cases.ORIGIN, cases.LOG_KEY)
    engine = store.connect(database.url)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()
    cases.create(database.url).close()


# PostgreSQL


def test_a_role_that_commits_without_waiting_for_the_disk(postgresql: PostgreSQL) -> None:
    cases.create(postgresql.url).close()
    postgresql.sql("CREATE ROLE lazy LOGIN SUPERUSER", "ALTER ROLE lazy SET synchronous_commit = off")
    url = postgresql.server.url(postgresql.schema, user="lazy")
    for opened in (lambda url: Log.open(url, cases.LOG_KEY), Log.read):
        with pytest.raises(LedgerError, match="synchronous_commit = off"):
            opened(url)
    postgresql.sql("ALTER ROLE lazy SET synchronous_commit = local")
    Log.read(url).close()


@contextmanager
def unsynced(server: Server) -> Iterator[None]:
    """The whole server with fsync = off."""

    def say(setting: str) -> None:
        server.run(f"ALTER SYSTEM SET fsync = {setting}", "SELECT pg_reload_conf()")
        until = time.monotonic() + 10
        while server.run("SHOW fsync") != [(setting,)] and time.monotonic() < until:
            time.sleep(0.01)

    say("off")
    try:
        yield
    finally:
        say("on")


def test_a_server_that_does_not_sync_its_files(postgresql: PostgreSQL) -> None:
    with unsynced(postgresql.server), pytest.raises(LedgerError, match="fsync = off"):
        cases.create(postgresql.url)
    cases.create(postgresql.url).close()


def test_a_password_is_in_no_error_and_no_log(
    postgresql: PostgreSQL, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hunter2"
    caplog.set_level(logging.DEBUG)
    nobody = postgresql.server.url(postgresql.schema, user="nobody", password=secret)
    somebody = postgresql.server.url(postgresql.schema, password=secret)
    cases.create(somebody).close()
    shown = []
    for url, attempt in (
        (nobody, Log.read),
        (nobody.replace("?host=", "?sslmode=disable&host=/none"), Log.read),
        (nobody.replace("@/", "@host:port/"), Log.read),
        (nobody.replace(secret, f"p@ss:{secret}"), Log.read),
        (somebody.replace("?", f"?password={secret}&"), cases.create),
        (somebody, cases.create),
        (somebody.replace("psycopg", "other"), Log.read),
    ):
        with pytest.raises(LedgerError) as caught:
            attempt(url)
        shown += traceback.format_exception(caught.value, limit=0)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError) as driver:
        Log.read(somebody)
    shown += traceback.format_exception(driver.value, limit=0)
    assert any("role" in text for text in shown)
    assert any("There is a ledger at postgresql+psycopg://causaldao:***@/postgres already" in text for text in shown)
    assert not [text for text in [*shown, caplog.text] if secret in text]


def test_the_driver_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r'pip install "causaldao\[postgres\]"'):
        Log.open("postgresql://host/ledger", cases.LOG_KEY)


def test_a_url_without_a_driver_means_the_one_we_use(postgresql: PostgreSQL) -> None:
    cases.create(postgresql.url.replace("+psycopg", "")).close()
    Log.read(postgresql.url).close()


def test_a_writer_waits_for_another_and_then_gives_up(postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> None:
    with cases.create(postgresql.url) as log:
        monkeypatch.setattr(store, "LOCK_SECONDS", 0.2)
        with (
            store.transaction(log._engine, "hold the lock", write=True),
            pytest.raises(LedgerError, match=r"Could not append to the ledger: .*lock timeout"),
        ):
            log.append([Entry("pool", {})])
        assert log.append([Entry("pool", {})]) == [len(cases.entries())]


def test_a_server_that_was_restarted_is_connected_again(postgresql: PostgreSQL) -> None:
    with cases.create(postgresql.url) as log:
        postgresql.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        assert log.append([Entry("pool", {})]) == [len(cases.entries())]


# The past

KEPT = (("nodes", "hash"), ("checkpoints", "root"), ("cosignatures", "line"), ("erased", "position"))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET record = x'00' WHERE position = 1",
        "UPDATE entries SET position = 99 WHERE position = 1",
        "DELETE FROM entries WHERE position = 1",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries SELECT * FROM entries WHERE position = 1",
        "INSERT OR REPLACE INTO entries SELECT 99, record, link, signature, content, 'a', kind, study FROM entries",
        "UPDATE payloads SET data = x'00'",
        "DELETE FROM payloads",
        "UPDATE head SET size = 1",
        "UPDATE head SET origin = 'other'",
        "DELETE FROM head",
        "DELETE FROM payloads WHERE sha256 = '{held}'",
        "INSERT INTO payloads VALUES ('{gone}', x'01')",
        "INSERT INTO erased VALUES ('{held}', 2)",
        "INSERT INTO erased VALUES ('{held}', 1)",
        *(f"UPDATE {table} SET {column} = 0" for table, column in KEPT),
        *(f"DELETE FROM {table}" for table, _ in KEPT),
        *(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}" for table, _ in KEPT),
    ],
)
def test_the_past_cannot_be_changed_by_mistake(sqlite: SQLite, statement: str) -> None:
    refuses(sqlite, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET record = '\\x00' WHERE position = 1",
        "UPDATE entries SET position = 99 WHERE position = 1",
        "DELETE FROM entries WHERE position = 1",
        "DELETE FROM entries",
        "TRUNCATE entries",
        "INSERT INTO entries SELECT * FROM entries WHERE position = 1 ON CONFLICT (position) DO UPDATE SET kind = ''",
        "UPDATE payloads SET data = '\\x00'",
        "DELETE FROM payloads",
        "TRUNCATE payloads",
        "UPDATE head SET size = 1",
        "UPDATE head SET origin = 'other'",
        "DELETE FROM head",
        "TRUNCATE head",
        "DELETE FROM payloads WHERE sha256 = '{held}'",
        "INSERT INTO payloads VALUES ('{gone}', '\\x01')",
        "INSERT INTO erased VALUES ('{held}', 2)",
        "INSERT INTO erased VALUES ('{held}', 1)",
        *(f"UPDATE {table} SET {column} = {column}" for table, column in KEPT),
        *(f"DELETE FROM {table}" for table, _ in KEPT),
        *(f"TRUNCATE {table}" for table, _ in KEPT),
    ],
)
def test_the_past_cannot_be_changed_by_mistake_in_postgresql(postgresql: PostgreSQL, statement: str) -> None:
    refuses(postgresql, statement)


def refuses(database: Database, statement: str) -> None:
    held, gone = sha256(b"x"), sha256(b"y")
    erasure = Entry("erasure", {"payloads": [gone], "reason": ""})
    recorded = [cases.genesis(), Entry("pool", {}, {held: b"x", gone: b"y"}, "a"), erasure]
    with cases.create(database.url, recorded) as log:
        log.keep_cosignatures(3, {"ada": cosign(log.head.checkpoint, "ada", cases.witness("ada"), 1)})
        before = log.snapshot()
        with log._engine.connect() as connection, pytest.raises(sa.exc.IntegrityError, match="append-only"):
            connection.exec_driver_sql(statement.replace("{held}", held).replace("{gone}", gone))
        assert log.snapshot() == before
        assert log.root_at(2) == merkle.root(map(log.leaf, range(2)))
