"""The Merkle tree over the entries, the checkpoints that members cosigned, and payloads that may be erased.

The tree of a ledger that is there already is made from its records. Its head is not signed anew here: that takes the
log's key (see `Log.open`); until then the head's new column is empty.
"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

from causaldao.ledger.merkle import grown, leaf_hash

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_CHUNK = 4096
_ENTRIES = sa.table("entries", sa.column("position"), sa.column("record"))
_NODES = sa.table("nodes", sa.column("level"), sa.column("position"), sa.column("hash", sa.LargeBinary))

_KEPT = {
    "nodes": "level = NEW.level AND position = NEW.position",
    "checkpoints": "size = NEW.size",
    "cosignatures": "size = NEW.size AND name = NEW.name",
    "erased": "sha256 = NEW.sha256",
}
_NO_ERASURE = "NOT EXISTS (SELECT 1 FROM erased WHERE sha256 = OLD.sha256)"
_IS_ERASED = "EXISTS (SELECT 1 FROM erased WHERE sha256 = NEW.sha256)"
_NO_ENTRY = "NOT EXISTS (SELECT 1 FROM entries WHERE position = NEW.position AND kind = 'erasure' AND {names})"
_NAMES_IN_SQLITE = "instr(record, CAST(NEW.sha256 AS BLOB)) > 0"
_NAMES_IN_POSTGRESQL = "position(convert_to(NEW.sha256, 'UTF8') IN record) > 0"


def upgrade() -> None:
    _create_tables()
    op.add_column("head", sa.Column("key", sa.Text, nullable=False, server_default=""))
    _fill(op.get_bind())
    guard = _guard_sqlite if op.get_bind().dialect.name == "sqlite" else _guard_postgresql
    guard()


def _create_tables() -> None:
    op.create_table(
        "nodes",
        sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "checkpoints",
        sa.Column("size", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("root", sa.String(64), nullable=False),
        sa.Column("time", sa.Text, nullable=False),
        sa.Column("signature", sa.String(88), nullable=False),
        sa.Column("key", sa.Text, nullable=False),
    )
    op.create_table(
        "cosignatures",
        sa.Column("size", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("line", sa.Text, nullable=False),
    )
    op.create_index("ix_cosignatures_name", "cosignatures", ["name", "size"])
    op.create_table(
        "erased",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
    )


def _fill(connection: sa.Connection) -> None:
    latest: dict[int, bytes] = {}  # the last node of each level: all that growing asks for
    size = 0
    for leaves in _leaves(connection):
        added = grown(size, leaves, lambda level, _: latest[level])
        rows = [{"level": level, "position": position, "hash": hash} for level, position, hash in added]
        connection.execute(sa.insert(_NODES), rows)
        latest.update((level, hash) for level, _, hash in added)
        size += len(leaves)


def _leaves(connection: sa.Connection) -> Iterator[list[bytes]]:
    query = sa.select(_ENTRIES.c.record).order_by(_ENTRIES.c.position)
    start = 0
    while records := connection.scalars(
        query.where(_ENTRIES.c.position >= start, _ENTRIES.c.position < start + _CHUNK)
    ).all():
        yield [leaf_hash(bytes(record)) for record in records]
        start += _CHUNK


def _guard_sqlite() -> None:
    guards = {"payloads_delete": f"BEFORE DELETE ON payloads WHEN {_NO_ERASURE}"}
    guards["payloads_return"] = f"BEFORE INSERT ON payloads WHEN {_IS_ERASED}"
    guards["erased_insert"] = f"BEFORE INSERT ON erased WHEN {_NO_ENTRY.format(names=_NAMES_IN_SQLITE)}"
    for table, same in _KEPT.items():
        guards[f"{table}_update"] = f"BEFORE UPDATE ON {table}"
        guards[f"{table}_delete"] = f"BEFORE DELETE ON {table}"
        # INSERT OR REPLACE deletes without firing a delete trigger.
        guards[f"{table}_replace"] = f"BEFORE INSERT ON {table} WHEN EXISTS (SELECT 1 FROM {table} WHERE {same})"
    op.execute("DROP TRIGGER payloads_delete")
    for name, when in guards.items():
        op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, 'the ledger is append-only ({name})'); END")


def _guard_postgresql() -> None:
    op.execute("DROP TRIGGER payloads_delete ON payloads")
    _conditional("payloads_delete", "BEFORE DELETE ON payloads", _NO_ERASURE, "OLD")
    _conditional("payloads_return", "BEFORE INSERT ON payloads", _IS_ERASED, "NEW")
    _conditional("erased_insert", "BEFORE INSERT ON erased", _NO_ENTRY.format(names=_NAMES_IN_POSTGRESQL), "NEW")
    for table in _KEPT:
        for word, each in (("UPDATE", "ROW"), ("DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
            op.execute(
                f"CREATE TRIGGER {table}_{word.lower()} BEFORE {word} ON {table} FOR EACH {each} "
                "EXECUTE FUNCTION ledger_is_append_only()"
            )


def _conditional(name: str, when: str, refused: str, passed: str) -> None:
    """PostgreSQL's WHEN takes no subquery: the condition stands in a function of its own."""
    op.execute(
        f"CREATE FUNCTION ledger_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {refused} THEN "
        "RAISE EXCEPTION 'the ledger is append-only (%)', TG_NAME USING ERRCODE = 'integrity_constraint_violation'; "
        f"END IF; RETURN {passed}; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} {when} FOR EACH ROW EXECUTE FUNCTION ledger_{name}()")
