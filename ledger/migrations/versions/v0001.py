"""Entries, payloads, head and state; triggers keep the past as it is.

The triggers guard against mistakes and against our own code. Whoever owns the file can drop them: it is
the hash chain and the signatures that make such a change evident.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_GUARDS = (
    ("entries_update", "BEFORE UPDATE ON entries"),
    ("entries_delete", "BEFORE DELETE ON entries"),
    # INSERT OR REPLACE deletes without firing a delete trigger.
    (
        "entries_replace",
        "BEFORE INSERT ON entries WHEN EXISTS "
        '(SELECT 1 FROM entries WHERE position = NEW.position OR "key" = NEW."key")',
    ),
    ("payloads_update", "BEFORE UPDATE ON payloads"),
    ("payloads_delete", "BEFORE DELETE ON payloads"),
    ("head_shrink", "BEFORE UPDATE ON head WHEN NEW.size < OLD.size OR NEW.origin <> OLD.origin"),
    ("head_delete", "BEFORE DELETE ON head"),
)


def upgrade() -> None:
    op.create_table(
        "entries",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.Column("link", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(88), nullable=False),
        sa.Column("content", sa.String(64), nullable=False),
        sa.Column("key", sa.Text, unique=True),
    )
    op.create_table(
        "payloads",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "head",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("root", sa.String(64), nullable=False),
        sa.Column("time", sa.Text, nullable=False),
        sa.Column("signature", sa.String(88), nullable=False),
    )
    op.create_table(
        "state",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    for name, when in _GUARDS:
        refusal = f"RAISE(ABORT, 'the ledger is append-only ({name})')"
        op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT {refusal}; END")
