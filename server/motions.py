"""Motions: what the members of a federation are asked to vote on, from the operator's command to the ledger's entry.

A motion is put in one epoch and is decided in it: when the last vote that it needs is in, whoever handles that vote
appends the entry at once, and the registry follows. When another change ends the epoch first, the motion is void; put
again it needs new votes, of those who are members then.

Who is to vote is shown the ledger first, as in a study's question: a vote names a checkpoint that its voter's witness
has cosigned since the last change, and that cosignature comes with it.

The ledger decides. What the registry says of a motion is brought in line with it (`Motions.settle`) whenever motions
are put, listed or voted on, so a process that dies between the two leaves nothing open for long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from causaldao import governance
from causaldao.errors import CausalDAOError, IdentityError, LedgerError, MisuseError, RefusedError
from causaldao.governance import Epoch
from causaldao.ledger.log import Log
from causaldao.ledger.merkle import EMPTY_ROOT
from causaldao.ledger.note import Checkpoint, Verifier, open_note
from causaldao.members import Member
from causaldao.server import membership
from causaldao.server.ballot_box import PASSED, VOID, VOTING, MotionRow
from causaldao.server.registry import REVOKED, Registry
from causaldao.server.witnessing import Witnessing
from causaldao.signing import VerifyKey, canonical, peek
from causaldao.trail import Word

_LOG = logging.getLogger(__name__)
MAX_BODY_BYTES = 8 << 10


@dataclass(frozen=True)
class Told:
    """The epoch in force, the motions that are open in it, oldest first, and the ledger's trail for who asked."""

    epoch: Epoch
    rows: tuple[MotionRow, ...]
    trail: str


class Motions:
    """The motions of a registry on its ledger. ``open_log`` gives the ledger to write; ``recorded`` is told of a ledger
    on which something was decided."""

    def __init__(
        self, registry: Registry, open_log: Callable[[], AbstractContextManager[Log]], recorded: Callable[[Log], None]
    ) -> None:
        self._registry = registry
        self._open_log = open_log
        self._recorded = recorded

    def put(self, kind: str, body: Mapping[str, Any], now: datetime) -> MotionRow:
        """Put a motion to the vote. While one of this kind is open for the same member, that one stays as it is.

        Raises
        ------
        MisuseError
            it is still the founding, where the operator decides, or the motion is too large.
        IdentityError, GuaranteeError
            the change could not be recorded, whoever votes for it.
        """
        if len(canonical(dict(body))) > MAX_BODY_BYTES:
            raise MisuseError(f"The motion is larger than {MAX_BODY_BYTES} bytes: give a shorter reason.")
        with self._open_log() as log:
            epoch = self._settle(log, now)
            if epoch.founding:
                raise MisuseError("No study was proposed yet: until then the operator decides, without a vote.")
            for standing in self._about(kind, body.get("member")):
                return standing
            governance.changed(epoch, log.head.size, kind, body)
            id = governance.motion(kind, body)
            return self._registry.ballots.put(id, kind, body, epoch.number, log.head.size, now)

    def rotate(self, member: Member, now: datetime) -> MotionRow | None:
        """Put a member's new keys to the vote, in the place of others that it asked for; None if they are recorded now:
        in the founding, or since the members decided so."""
        with self._open_log() as log:
            epoch = self._settle(log, now)
            known = epoch.members.get(member.name)
            if epoch.founding or (known is not None and known.keys == member.keys):
                membership.rotate(log, member)
                self._registry.rekey(member.name, member.key.to_text(member.name), member.witness_text, now)
                self._recorded(log)
                return None
        body = governance.admission(member, epoch.number)
        if any(row.body != body for row in self._about("member.rotate", member.name)):
            self.withdraw("member.rotate", member.name)
        return self.put("member.rotate", body, now)

    def tell(self, member: str, known: int | None, word: str, now: datetime) -> Told:
        """The motions that are open, for a member; with the ledger's trail if it says what it has ``known`` of it: the
        last entry on the members, -1 for none. ``word`` is its own on what it saw last (`causaldao.trail.Word`).

        Raises
        ------
        IdentityError
            no member asks, or with a word that is not its own.
        """
        with self._open_log() as log:
            epoch = self._settle(log, now)
            _require_member(epoch, member)
            rows = self._registry.ballots.motions(VOTING)
            if known is None or epoch.founding:
                return Told(epoch, rows, "")
            witnessing = _witnessing(log, epoch)
            _heard(witnessing, member, word)
            if witnessing.fault is not None:  # its own node will tell it so, by what it is shown
                _LOG.error("%s", witnessing.fault)
            witnessing.took(member, known, ())
            return Told(epoch, rows, witnessing.view().trail(member).decode())

    def hear(self, member: str, word: str, envelope: str) -> None:
        """Keep the cosignature of the checkpoint that a member's vote names. The vote itself is for `vote` to check.

        Raises
        ------
        IdentityError
            the word is none, not the member's, or of another checkpoint.
        LedgerError
            the member saw a history of this log that this ledger does not have.
        """
        with self._open_log() as log:
            epoch = membership.epoch(log)
            _require_member(epoch, member)
            witnessing, voted = _witnessing(log, epoch), peek(envelope.encode())
            line, seen = _heard(witnessing, member, word)
            if not seen.size or (seen.size, seen.root.hex()) != (voted.body.get("size"), voted.parent):
                raise IdentityError(
                    f"The vote of {member} names another checkpoint than came with it, cosigned: it would be of a "
                    "history that its witness does not vouch for."
                )
            witnessing.require_whole()
            log.keep_cosignatures(seen.size, {member: line})

    def vote(self, member: str, id: str, envelope: str, now: datetime) -> MotionRow:
        """Keep a member's vote, and record the motion if it was the last one needed. The first vote of a member stands.

        Raises
        ------
        IdentityError
            there is no such motion, or the vote does not count: see `causaldao.governance.check_vote`.
        RefusedError
            the motion is void, or was decided without this vote.
        """
        with self._open_log() as log:
            epoch, row = self._settle(log, now), self._registry.ballots.motion(id)
            if member in row.votes:
                return row
            if row.state != VOTING:
                raise RefusedError(f"Motion {row.id[:12]} is {row.state}: {_OVER[row.state]}")
            governance.check_vote(epoch, row.id, member, envelope, log.head.size, partial(membership.root_at, log))
            self._registry.ballots.add_vote(row.id, member, envelope)
            _LOG.info("%s voted for motion %s (%s)", member, row.id[:12], row.kind)
            self._settle(log, now)
        return self._registry.ballots.motion(row.id)

    def withdraw(self, kind: str, member: str) -> None:
        """Take back what was put about a member, as far as it is not decided."""
        for row in self._about(kind, member):
            self._registry.ballots.close(row.id, VOID)

    def settle(self, now: datetime) -> tuple[Epoch, tuple[MotionRow, ...]]:
        """Bring every open motion in line with the ledger; the epoch in force, and all motions, oldest first."""
        with self._open_log() as log:
            return self._settle(log, now), self._registry.ballots.motions()

    def _about(self, kind: str, member: str | None) -> list[MotionRow]:
        """The open motions of this kind about a member."""
        rows = self._registry.ballots.motions(VOTING)
        return [row for row in rows if member is not None and (row.kind, row.body.get("member")) == (kind, member)]

    def _settle(self, log: Log, now: datetime) -> Epoch:
        log.refresh()
        epoch = membership.epoch(log)
        for row in self._registry.ballots.motions(VOTING):
            state = self._state(log, epoch, row)
            if state == PASSED:
                self._follow(row, now)
                self._recorded(log)
                epoch = membership.epoch(log)
            if state != VOTING:
                self._registry.ballots.close(row.id, state)
                _LOG.info("motion %s (%s) is %s", row.id[:12], row.kind, state)
        return epoch

    def _state(self, log: Log, epoch: Epoch, row: MotionRow) -> str:
        """What has become of a motion; one that has its votes is recorded."""
        if membership.decided(log, row.id, row.since) is not None:
            return PASSED
        if epoch.number != row.epoch:
            return VOID
        if len(row.votes) < epoch.quorum:
            return VOTING
        votes = [{"member": member, "envelope": envelope} for member, envelope in row.votes.items()]
        try:
            membership.decide(log, row.kind, row.body, votes)
        except CausalDAOError:
            if membership.decided(log, row.id, row.since) is None:  # else another process was as quick
                raise
        return PASSED

    def _follow(self, row: MotionRow, now: datetime) -> None:
        """The registry follows the ledger; but whom the operator bars stays barred."""
        name = row.body.get("member", "")
        known = self._registry.member(name) if name else None
        if known is None:
            return
        if row.kind == "member.admit" and known.state != REVOKED:
            self._registry.admit(name, now)
        elif row.kind == "member.revoke":
            self._registry.revoke(name, now)
        elif row.kind == "member.rotate":
            self._registry.rekey(name, row.body["key"], row.body["witness"], now)


def _require_member(epoch: Epoch, name: str) -> None:
    if name not in epoch.members:
        raise IdentityError(f"{name!r} is no member by the ledger, and only members vote: ask the operator.")


def _witnessing(log: Log, epoch: Epoch) -> Witnessing:
    """What is shown and heard of the ledger outside of any study."""
    return Witnessing(log, VerifyKey(Verifier.parse(log.head.key).key), epoch.roster, "")


def _heard(witnessing: Witnessing, member: str, word: str) -> tuple[str, Checkpoint]:
    """Take a member's word on what it saw: its cosignature, and the checkpoint of it; of size 0 if it saw none."""
    said, head = Word.unpack(word.encode()), witnessing.log.head
    try:
        witnessing.heard(member, replace(said, complaints=()), None)
        seen = open_note(said.note, Verifier.parse(head.key)) if said.note else Checkpoint(head.origin, 0, EMPTY_ROOT)
        return said.line, seen
    except LedgerError as error:
        raise IdentityError(f"The word of {member} on the ledger is not its cosignature: {error.message}") from error


_OVER = {
    PASSED: "enough others voted for it, so nothing is left to vote on.",
    VOID: "it was withdrawn, or the members changed before it was decided. The operator may put it again.",
}
