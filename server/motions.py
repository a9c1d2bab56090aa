"""Motions: what the members of a federation are asked to vote on, from the operator's command to the ledger's entry.

A motion is put in one epoch and is decided in it: when the last vote that it needs is in, whoever handles that vote
appends the entry at once, and the registry follows. When another change ends the epoch first, the motion is void; put
again it needs new votes, of those who are members then.

Who is to vote is shown the ledger first, as in a study's question: a vote names a checkpoint that its voter's witness
has cosigned since the last change, and that cosignature comes with it.

An edit of a study's graph may be put by a member too, with its own vote (`Motions.propose`). It is put, and recorded,
only if it fits the graph as it is then: one that another edit overtakes is void. So is one that nobody decided in
`EDIT_DAYS`; and a member has at most `EDITS_OF_ONE` of them open, one for each link, so that none can flood the others.

The ledger decides. What the registry says of a motion is brought in line with it (`Motions.settle`) whenever motions
are put, listed or voted on, so a process that dies between the two leaves nothing open for long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from causaldao import governance
from causaldao.errors import (
    CausalDAOError,
    ConfigurationError,
    IdentityError,
    LedgerError,
    MisuseError,
    RefusedError,
)
from causaldao.governance import Epoch
from causaldao.ledger.log import Log
from causaldao.ledger.merkle import EMPTY_ROOT
from causaldao.ledger.note import Checkpoint, Verifier, open_note
from causaldao.members import Member
from causaldao.server import edits, membership
from causaldao.server.ballot_box import PASSED, VOID, VOTING, MotionRow
from causaldao.server.registry import REVOKED, Registry
from causaldao.server.witnessing import Witnessing
from causaldao.signing import VerifyKey, canonical, peek
from causaldao.trail import Word

_LOG = logging.getLogger(__name__)
MAX_BODY_BYTES = 8 << 10
EDITS_OF_ONE = 3  # open edits that one member proposed
EDIT_DAYS = 30  # that an edit is open
_MISFITS = (ConfigurationError, IdentityError, MisuseError)  # for which an edit can never be recorded


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
        ConfigurationError
            an edit that does not fit its study's graph.
        """
        _require_small(body)
        with self._open_log() as log:
            epoch = self._settle(log, now)
            _require_founded(epoch)
            for standing in self._about(kind, body.get("member")):
                return standing
            return self._open(log, epoch, kind, body, now)

    def propose(self, member: str, body: Mapping[str, Any], envelope: str, word: str, now: datetime) -> MotionRow:
        """Put an edit that a member proposes, with its vote for it and the cosignature that the vote names.

        The same again gets the same answer. Another one on the same link takes the place of the member's first; those
        of others stand beside it, and the members decide.

        Raises
        ------
        IdentityError
            no member, one that names somebody else as the proposer, or a vote that does not count.
        MisuseError, ConfigurationError
            it is still the founding, or the edit does not fit its study's graph.
        RefusedError
            the member has `EDITS_OF_ONE` edits open.
        """
        _require_small(body)
        if body.get("proposer") != member:
            raise IdentityError(f"{member!r} proposes an edit in the name of {str(body.get('proposer'))[:64]!r}.")
        id = governance.motion(governance.EDIT, body)
        self.hear(member, word, envelope)
        with self._open_log() as log:
            epoch = self._settle(log, now)
            _require_founded(epoch)
            governance.check_vote(epoch, id, member, envelope, log.head.size, partial(membership.root_at, log))
            row = self._open(log, epoch, governance.EDIT, body, now)
            self._registry.ballots.add_vote(row.id, member, envelope)
            _LOG.info("%s proposed the edit %s", member, row.id[:12])
            self._settle(log, now)
        return self._registry.ballots.motion(id)

    def graph(self, member: str, study: str, size: int) -> str:
        """What the ledger's first ``size`` entries (0: all) say of a study's graph, for a member: a trail, see
        `causaldao.server.edits.trail`. IdentityError: no member asks."""
        with self._open_log() as log:
            _require_member(membership.epoch(log), member)
            if size > log.refresh().size:
                raise IdentityError(f"{member!r} asks for {size} entries, the ledger has {log.head.size}.")
            return edits.trail(log, study, size).pack().decode()

    def _open(self, log: Log, epoch: Epoch, kind: str, body: Mapping[str, Any], now: datetime) -> MotionRow:
        governance.changed(epoch, log.head.size, kind, body)
        if kind == governance.EDIT:
            edits.require_fit(log, body)
            self._make_room(body)
        id = governance.motion(kind, body)
        return self._registry.ballots.put(id, kind, body, epoch.number, log.head.size, now)

    def _make_room(self, body: Mapping[str, Any]) -> None:
        """One open edit of each proposer for a link, and so many of a member in all."""
        rows = [row for row in self._registry.ballots.motions(VOTING) if row.kind == governance.EDIT]
        own = [row for row in rows if row.body.get("proposer") == body.get("proposer") and row.body != body]
        same = [row for row in own if _link(row.body) == _link(body)]
        if "proposer" in body and len(own) - len(same) >= EDITS_OF_ONE:
            open_ = ", ".join(row.id[:12] for row in own)
            raise RefusedError(
                f"{body['proposer']!r} has {len(own)} edits open ({open_}), and a member has {EDITS_OF_ONE} at most: "
                f"wait until one is decided; after {EDIT_DAYS} days it is void."
            )
        for row in same:
            self._registry.ballots.forget(row.id)
            _LOG.info("the edit %s takes the place of motion %s", body["change"], row.id[:12])

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
                why = f" Of the edit itself: {edits.words(log, row.body)}" if row.kind == governance.EDIT else ""
                raise RefusedError(f"Motion {row.id[:12]} is {row.state}: {_OVER[row.state]}{why}")
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
        epoch, edited = membership.epoch(log), set[str]()
        for row in self._registry.ballots.motions(VOTING):
            state = self._state(log, epoch, row, now)
            if state == PASSED:
                self._follow(row, now)
                self._recorded(log)
                epoch = membership.epoch(log)
                edited |= {row.body["study"]} if row.kind == governance.EDIT else set()
            self._close(row, state)
        self._void_misfits(log, edited)
        return epoch

    def _close(self, row: MotionRow, state: str) -> None:
        if state != VOTING:
            self._registry.ballots.close(row.id, state)
            _LOG.info("motion %s (%s) is %s", row.id[:12], row.kind, state)

    def _state(self, log: Log, epoch: Epoch, row: MotionRow, now: datetime) -> str:
        """What has become of a motion; one that has its votes is recorded."""
        if membership.decided(log, row.id, row.since) is not None:
            return PASSED
        if epoch.number != row.epoch or (row.kind == governance.EDIT and now - row.opened > timedelta(days=EDIT_DAYS)):
            return VOID
        if len(row.votes) < epoch.quorum or row.body.get("proposer", "") not in ("", *row.votes):
            return VOTING
        votes = [{"member": member, "envelope": envelope} for member, envelope in row.votes.items()]
        try:
            membership.decide(log, row.kind, row.body, votes)
        except CausalDAOError as error:
            if membership.decided(log, row.id, row.since) is None:  # else another process was as quick
                if row.kind == governance.EDIT and isinstance(error, _MISFITS):  # another edit came between
                    _LOG.warning("motion %s has its votes, but cannot be recorded: %s", row.id[:12], error.message)
                    return VOID
                raise
        return PASSED

    def _void_misfits(self, log: Log, studies: Collection[str]) -> None:
        """Of these studies, whose graph was edited just now, close the edits that do not fit it any more."""
        for row in self._registry.ballots.motions(VOTING) if studies else ():
            if row.kind == governance.EDIT and row.body["study"] in studies:
                try:
                    edits.require_fit(log, row.body)
                except _MISFITS as error:
                    _LOG.info("%s", error.message)
                    self._close(row, VOID)

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


def _require_small(body: Mapping[str, Any]) -> None:
    if "votes" in body:  # no part of what is voted on: two motions of one id would differ in it
        raise IdentityError("A motion holds no votes yet: those of members come with the entry that records it.")
    if len(canonical(dict(body))) > MAX_BODY_BYTES:
        raise MisuseError(f"The motion is larger than {MAX_BODY_BYTES} bytes: give a shorter reason.")


def _require_founded(epoch: Epoch) -> None:
    if epoch.founding:
        raise MisuseError("No study was proposed yet: until then the operator decides, without a vote.")


def _link(edit: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    return edit["study"], frozenset(edit["edge"])


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
