"""Entries, payloads, head and state; triggers keep the past as it is.

The triggers guard against mistakes and against our own code. Whoever owns the file or the
tables can drop them: it is the hash chain and the signatures that make such a change evident.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SQLITE = (
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
_ROW, _TABLE = "FOR EACH ROW", "FOR EACH STATEMENT"
_POSTGRESQL = (
    ("entries_update", f"BEFORE UPDATE ON entries {_ROW}"),
    ("entries_delete", f"BEFORE DELETE ON entries {_ROW}"),
    ("entries_truncate", f"BEFORE TRUNCATE ON entries {_TABLE}"),
    ("payloads_update", f"BEFORE UPDATE ON payloads {_ROW}"),
    ("payloads_delete", f"BEFORE DELETE ON payloads {_ROW}"),
    ("payloads_truncate", f"BEFORE TRUNCATE ON payloads {_TABLE}"),
    ("head_shrink", f"BEFORE UPDATE ON head {_ROW} WHEN (NEW.size < OLD.size OR NEW.origin <> OLD.origin)"),
    ("head_delete", f"BEFORE DELETE ON head {_ROW}"),
    ("head_truncate", f"BEFORE TRUNCATE ON head {_TABLE}"),
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
    guard = _guard_sqlite if op.get_bind().dialect.name == "sqlite" else _guard_postgresql
    guard()


def _guard_sqlite() -> None:
    for name, when in _SQLITE:
        refusal = f"RAISE(ABORT, 'the ledger is append-only ({name})')"
        op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT {refusal}; END")


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'the ledger is append-only (%)', TG_NAME USING ERRCODE = 'integrity_constraint_violation'; "
        "END $$"
    )
    for name, when in _POSTGRESQL:
        op.execute(f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION ledger_is_append_only()")
