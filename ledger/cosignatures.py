"""What members said of the log's heads: which checkpoints they cosigned, as the database keeps it.

A head that somebody cosigned is stored with the log's signature, so that it can be shown where the log's key is not.
Of one member and one size the first cosignature stays: a later one of the same checkpoint says nothing new.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from causaldao.ledger.note import Verifier, signer
from causaldao.ledger.store import CHECKPOINTS, COSIGNATURES

_COLUMNS = COSIGNATURES.c
_AT_ONCE = 64


def keep(connection: sa.Connection, head: Mapping[str, Any], lines: Mapping[str, str]) -> None:
    """Store a head (the columns of `CHECKPOINTS`) and the cosignature lines of it that are not there yet, by name."""
    size = head["size"]
    new = sorted(set(lines) - set(of(connection, size)))
    if connection.scalar(sa.select(CHECKPOINTS.c.size).where(CHECKPOINTS.c.size == size)) is None:
        connection.execute(sa.insert(CHECKPOINTS), dict(head))
    if new:
        connection.execute(sa.insert(COSIGNATURES), [{"size": size, "name": name, "line": lines[name]} for name in new])


def checkpoint(connection: sa.Connection, size: int) -> dict[str, Any] | None:
    """The stored head of that size."""
    row = connection.execute(sa.select(CHECKPOINTS).where(CHECKPOINTS.c.size == size)).one_or_none()
    return None if row is None else dict(row._mapping)


def of(connection: sa.Connection, size: int) -> dict[str, str]:
    """The cosignature lines of that size, by name."""
    rows = connection.execute(
        sa.select(_COLUMNS.name, _COLUMNS.line).where(_COLUMNS.size == size).order_by(_COLUMNS.name)
    )
    return {row.name: row.line for row in rows}


def last(connection: sa.Connection, witness: Verifier) -> tuple[int, str] | None:
    """The largest size that this key cosigned, and the line."""
    query = sa.select(_COLUMNS.size, _COLUMNS.line).where(_COLUMNS.name == witness.name)
    for row in connection.execute(query.order_by(_COLUMNS.size.desc())):
        if signer(row.line) == witness.by:
            return row.size, row.line
    return None


def all_of(connection: sa.Connection) -> dict[int, tuple[str, ...]]:
    """By size, in order: the names of whom a cosignature is kept."""
    found: dict[int, list[str]] = {}
    for row in connection.execute(sa.select(_COLUMNS.size, _COLUMNS.name).order_by(_COLUMNS.size, _COLUMNS.name)):
        found.setdefault(row.size, []).append(row.name)
    return {size: tuple(names) for size, names in found.items()}


def agreed(connection: sa.Connection, witnesses: Collection[Verifier], quorum: int, most: int) -> int | None:
    """The largest size up to ``most`` that at least ``quorum`` ≥ 1 of these witnesses cosigned, by these very keys.

    Looked for from the newest on, some checkpoints at a time: it lies near the end as long as the members are heard.
    """
    wanted, below = {witness.by for witness in witnesses}, most + 1
    newest = sa.select(CHECKPOINTS.c.size).order_by(CHECKPOINTS.c.size.desc()).limit(_AT_ONCE)
    while sizes := connection.scalars(newest.where(CHECKPOINTS.c.size < below)).all():
        below = sizes[-1]
        signed = Counter(
            row.size
            for row in connection.execute(sa.select(_COLUMNS.size, _COLUMNS.line).where(_COLUMNS.size.in_(sizes)))
            if signer(row.line) in wanted
        )
        found: int | None = next((size for size in sizes if signed[size] >= quorum), None)
        if found is not None:
            return found
    return None
