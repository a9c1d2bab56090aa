"""The kind and the study of each entry as columns, so that a few entries can be found without reading all records."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ENTRIES = sa.table("entries", sa.column("position"), sa.column("record"), sa.column("kind"), sa.column("study"))


def upgrade() -> None:
    op.add_column("entries", sa.Column("kind", sa.Text, nullable=False, server_default=""))
    op.add_column("entries", sa.Column("study", sa.Text))
    connection = op.get_bind()
    recorded = connection.execute(sa.select(_ENTRIES.c.position, _ENTRIES.c.record)).all()
    if recorded:
        _fill(connection, [_words(row.position, row.record) for row in recorded])
    op.create_index("ix_entries_kind", "entries", ["kind"])
    op.create_index("ix_entries_study", "entries", ["study"])


def _fill(connection: sa.Connection, rows: list[dict[str, object]]) -> None:
    """Fill the new columns; the guard of updates steps aside for this one statement, within its transaction."""
    where = _ENTRIES.c.position == sa.bindparam("at")
    fill = sa.update(_ENTRIES).where(where).values(kind=sa.bindparam("of_kind"), study=sa.bindparam("of_study"))
    if connection.dialect.name == "sqlite":
        guard = connection.scalar(sa.text("SELECT sql FROM sqlite_master WHERE name = 'entries_update'"))
        op.execute("DROP TRIGGER entries_update")
        connection.execute(fill, rows)
        op.execute(guard)
    else:
        op.execute("ALTER TABLE entries DISABLE TRIGGER entries_update")
        connection.execute(fill, rows)
        op.execute("ALTER TABLE entries ENABLE TRIGGER entries_update")


def _words(position: int, record: bytes) -> dict[str, object]:
    value = json.loads(record)
    study = value["body"].get("study")
    return {"at": position, "of_kind": value["kind"], "of_study": study if isinstance(study, str) else None}
