"""The databases that the ledger's tests run on: a SQLite file and a PostgreSQL server."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.ledger import postgres


class Database(Protocol):
    """An empty place for one ledger."""

    url: str

    def sql(self, *statements: str) -> list[tuple[object, ...]]:
        """Run statements behind the program's back and commit them; the rows of the last."""

    def unguarded(self, *statements: str) -> None:
        """The same, with the triggers out of the way."""

    def bytes(self, data: bytes) -> str:
        """Bytes as a word of this database's SQL."""

    def fail(self) -> None:
        """Let every write of a payload fail, until `mend`."""

    def mend(self) -> None: ...


@dataclass(frozen=True)
class SQLite:
    path: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def sql(self, *statements: str) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(self.path)
        try:
            with connection:
                return [connection.execute(statement).fetchall() for statement in statements][-1]
        finally:
            connection.close()

    def unguarded(self, *statements: str) -> None:
        guards = ("entries_update", "entries_delete", "head_shrink", "payloads_update", "nodes_update", "nodes_delete")
        guards = (*guards, "checkpoints_update")
        self.sql(*(f"DROP TRIGGER IF EXISTS {guard}" for guard in guards), *statements)

    def bytes(self, data: bytes) -> str:
        return f"x'{data.hex()}'"

    def fail(self) -> None:
        self.sql("CREATE TRIGGER disk_full BEFORE INSERT ON payloads BEGIN SELECT RAISE(ABORT, 'disk_full'); END")

    def mend(self) -> None:
        self.sql("DROP TRIGGER disk_full")


@dataclass(frozen=True)
class PostgreSQL:
    server: postgres.Server
    schema: str

    @property
    def url(self) -> str:
        return self.server.url(self.schema)

    def sql(self, *statements: str) -> list[tuple[object, ...]]:
        return self.server.run(*statements, schema=self.schema)

    def unguarded(self, *statements: str) -> None:
        tables = ("entries", "payloads", "head", "nodes", "checkpoints")
        self.sql(*(f"ALTER TABLE {table} DISABLE TRIGGER ALL" for table in tables), *statements)

    def bytes(self, data: bytes) -> str:
        return f"'\\x{data.hex()}'"

    def fail(self) -> None:
        self.sql("ALTER TABLE payloads ADD CONSTRAINT disk_full CHECK (false)")

    def mend(self) -> None:
        self.sql("ALTER TABLE payloads DROP CONSTRAINT disk_full")


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    with postgres.server() as running:
        yield running


@pytest.fixture
def sqlite(tmp_path: Path) -> SQLite:
    return SQLite(tmp_path / "ledger.db")


@pytest.fixture
def postgresql(server: postgres.Server) -> PostgreSQL:
    return PostgreSQL(server, server.schema())


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    found: Database = request.getfixturevalue(request.param)
    return found
