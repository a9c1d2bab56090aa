"""The motions that members vote on, and their votes: working state in the registry's database.

The ledger decides what passed; `causaldao.server.motions` brings what stands here in line with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from causaldao.errors import IdentityError, MisuseError
from causaldao.server.database import METADATA, MIN_PREFIX, Database, to_text, to_time
from causaldao.signing import canonical

VOTING, PASSED, VOID = "voting", "passed", "void"

_MOTIONS = sa.Table(
    "registry_motions",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("since", sa.Integer, nullable=False),
    sa.Column("opened", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
)
_VOTES = sa.Table(
    "registry_votes",
    METADATA,
    sa.Column("motion", sa.String(64), primary_key=True),
    sa.Column("member", sa.Text, primary_key=True),
    sa.Column("envelope", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class MotionRow:
    """What the members were asked to vote on in an epoch, when the ledger had ``since`` entries.

    ``id`` is its digest, ``body`` that of the entry without votes, ``votes`` the envelopes by member, ``state`` voting,
    passed or void.
    """

    id: str
    kind: str
    body: dict[str, Any]
    epoch: int
    since: int
    opened: datetime
    state: str
    votes: dict[str, str]


class BallotBox:
    """The motions in a database; a method is one transaction. Each raises a LedgerError when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, id: str, kind: str, body: Mapping[str, Any], epoch: int, since: int, now: datetime) -> MotionRow:
        """Put a motion to the vote; while it is voted on in this epoch, the same again changes nothing."""
        row = {
            "kind": kind, "body": canonical(dict(body)).decode(), "epoch": epoch, "since": since,
            "opened": to_text(now), "state": VOTING,
        }  # fmt: skip
        with self._database.write(f"put the motion {id[:12]!r}") as connection:
            before = _motion(connection, id)
            if before is None or (before.state, before.epoch) != (VOTING, epoch):
                connection.execute(
                    sa.delete(_VOTES).where(_VOTES.c.motion == id)
                )  # of its last time: they count no more
                connection.execute(sa.delete(_MOTIONS).where(_MOTIONS.c.id == id))
                connection.execute(sa.insert(_MOTIONS).values(id=id, **row))
            return _known_motion(connection, id)

    def motion(self, reference: str) -> MotionRow:
        """A motion by its digest, or by at least eight first digits of it. IdentityError: there is none, or several."""
        with self._database.read(f"read the motion {reference!r}") as connection:
            exact = _motion(connection, reference)
            if exact is not None:
                return exact
            named = sa.select(_MOTIONS.c.id).where(_MOTIONS.c.id.startswith(reference, autoescape=True)).limit(2)
            found = connection.scalars(named).all() if len(reference) >= MIN_PREFIX else []
            if len(found) == 1:
                return _known_motion(connection, found[0])
        raise IdentityError(
            f"There is {'no' if not found else 'more than one'} motion {reference!r}: give its whole id."
        )

    def motions(self, state: str | None = None) -> tuple[MotionRow, ...]:
        """The motions in a state, or all, oldest first."""
        chosen = sa.select(_MOTIONS.c.id).order_by(_MOTIONS.c.opened, _MOTIONS.c.id)
        with self._database.read("read the motions") as connection:
            ids = connection.scalars(chosen if state is None else chosen.where(_MOTIONS.c.state == state)).all()
            return tuple(_known_motion(connection, id) for id in ids)

    def add_vote(self, id: str, member: str, envelope: str) -> MotionRow:
        """Keep a member's vote on a motion; its first one stands. IdentityError: there is no such motion."""
        with self._database.write(f"keep the vote of {member!r}") as connection:
            if member not in _known_motion(connection, id).votes:
                connection.execute(sa.insert(_VOTES).values(motion=id, member=member, envelope=envelope))
            return _known_motion(connection, id)

    def forget(self, id: str) -> None:
        """Take a motion away as if it had never been put, with its votes."""
        with self._database.write(f"take back the motion {id[:12]!r}") as connection:
            connection.execute(sa.delete(_VOTES).where(_VOTES.c.motion == id))
            connection.execute(sa.delete(_MOTIONS).where(_MOTIONS.c.id == id))

    def close(self, id: str, state: str) -> None:
        """Say what became of a motion."""
        if state not in (PASSED, VOID):
            raise MisuseError(f"A motion ends as {PASSED} or {VOID}, not {state!r}.")
        with self._database.write(f"close the motion {id[:12]!r}") as connection:
            connection.execute(sa.update(_MOTIONS).where(_MOTIONS.c.id == id).values(state=state))


def _motion(connection: sa.Connection, id: str) -> MotionRow | None:
    row = connection.execute(sa.select(_MOTIONS).where(_MOTIONS.c.id == id)).one_or_none()
    if row is None:
        return None
    votes = connection.execute(sa.select(_VOTES).where(_VOTES.c.motion == id).order_by(_VOTES.c.member))
    return MotionRow(
        row.id, row.kind, json.loads(row.body), row.epoch, row.since, to_time(row.opened), row.state,
        {vote.member: vote.envelope for vote in votes},
    )  # fmt: skip


def _known_motion(connection: sa.Connection, id: str) -> MotionRow:
    found = _motion(connection, id)
    if found is None:
        raise IdentityError(f"There is no motion {id[:12]!r}: put it first.")
    return found
