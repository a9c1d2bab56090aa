"""Who belongs to a federation, as its ledger says: founded once, changed by entries.

The ledger is the one source of envelope keys. A study's roster is the membership when it was proposed; whoever is
revoked later is barred from then on, and counts as silent.

During the founding the operator records changes alone. From the first proposed study on they need the members' votes
(see `causaldao.governance`): a change without them is refused before it is recorded.

Each change looks at the ledger first, decides, and is recorded only if nobody changed the membership in between; else
it looks again. So two processes cannot admit one key under two names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from causaldao import governance
from causaldao.errors import GuaranteeError, LedgerError
from causaldao.governance import Epoch
from causaldao.ledger.bundle import write_policy
from causaldao.ledger.entry import Entry
from causaldao.ledger.log import Log
from causaldao.ledger.note import MAX_SIGNATURES
from causaldao.members import Member, Roster
from causaldao.server import edits
from causaldao.signing import VerifyKey

ATTEMPTS = 10
MAX_MEMBERS = MAX_SIGNATURES - 1  # beside the log's own, on one note

Vote = Mapping[str, str]
Change = tuple[str, dict[str, Any]]


def found(log: Log, federation: str, faulty: int = 0) -> None:
    """Write the genesis; once. The same again changes nothing.

    Raises
    ------
    LedgerError
        the ledger is another federation's, or was founded with another ``faulty``.
    """
    genesis = Entry("genesis", {"federation": federation, "faulty": faulty}, key="genesis")
    _record(log, lambda: ([genesis], False))


def admit(log: Log, *members: Member, votes: Sequence[Vote] = ()) -> None:
    """Record members; the same member with the same keys again changes nothing. Its epoch is the ledger's to say.

    Raises
    ------
    GuaranteeError
        the founding is over, and too few voted.
    IdentityError
        the name was revoked, or a key or the name belongs to another member: a key is one institution's, for ever; or
        a vote does not count. None of the members is recorded then.
    """

    def admissions(now: Epoch) -> list[Change]:
        new = [member for member in members if not _stands(now, member)]
        if len(now.members) + len(new) > MAX_MEMBERS:
            raise GuaranteeError(
                f"{len(now.members)} + {len(new)} members are more than the {MAX_MEMBERS} whose cosignatures fit one "
                "checkpoint: nobody was admitted."
            )
        return [("member.admit", governance.admission(member, now.number + place)) for place, member in enumerate(new)]

    _change(log, admissions, votes)


def rotate(log: Log, member: Member, votes: Sequence[Vote] = ()) -> None:
    """Record a member's new keys, of which one may be the old one. Errors as of `admit`."""

    def rotation(now: Epoch) -> list[Change]:
        return [] if _stands(now, member) else [("member.rotate", governance.admission(member, now.number))]

    _change(log, rotation, votes)


def revoke(log: Log, name: str, reason: str, votes: Sequence[Vote] = ()) -> None:
    """Record that a member's key is no longer heard; again changes nothing, and the first reason stands.

    Raises
    ------
    GuaranteeError
        the founding is over, and too few voted, or too few members would be left.
    IdentityError
        there is no such member, or a vote does not count.
    """

    def revocation(now: Epoch) -> list[Change]:
        return [] if name in now.revoked else [("member.revoke", {"member": name, "reason": reason})]

    _change(log, revocation, votes)


def set_faulty(log: Log, faulty: int, votes: Sequence[Vote] = ()) -> None:
    """Record how many members may lie from now on; the same as it is changes nothing. Errors as of `revoke`."""

    def setting(now: Epoch) -> list[Change]:
        return [] if now.faulty == faulty else [("federation.faulty", {"faulty": faulty})]

    _change(log, setting, votes)


def decide(log: Log, kind: str, body: Mapping[str, Any], votes: Sequence[Vote] = ()) -> None:
    """Record any entry that members vote on (`causaldao.governance.VOTED`). Errors as of `revoke`; an edit also has to
    fit its study's graph as it is when it is recorded (`causaldao.server.edits.require_fit`)."""

    def decision(now: Epoch) -> list[Change]:
        if kind == governance.EDIT:
            edits.require_fit(log, body)
        return [(kind, dict(body))]

    _change(log, decision, votes)


def epoch(log: Log, upto: int | None = None) -> Epoch:
    """What holds after the first ``upto`` entries; None: now.

    Raises
    ------
    LedgerError
        the federation was not founded yet.
    """
    now: Epoch | None = None
    for record in log.entries(0, upto, kinds=governance.READ):  # their votes were checked when they were recorded
        now = governance.changed(now, record.index, record.kind, record.body)
    if now is None:
        raise LedgerError("The ledger has no genesis: found the federation before its members are asked for.")
    return now


def roster(log: Log, upto: int | None = None) -> Roster:
    """The membership after the first ``upto`` entries; None: now. LedgerError: the federation was not founded yet."""
    return epoch(log, upto).roster


def revoked(log: Log, upto: int | None = None) -> frozenset[str]:
    """The members that were revoked among the first ``upto`` entries; None: all."""
    return frozenset(record.body["member"] for record in log.entries(0, upto, kinds=("member.revoke",)))


def keys(log: Log) -> dict[str, tuple[VerifyKey, ...]]:
    """Every signing key that a member ever had, oldest first: what was said with it still has to be verified."""
    found: dict[str, tuple[VerifyKey, ...]] = {}
    for record in log.entries(kinds=("member.admit", "member.rotate")):
        member = governance.admitted(record.body)
        before = found.get(member.name, ())
        found[member.name] = before if member.key in before else (*before, member.key)
    return dict(sorted(found.items()))


def witnesses(log: Log) -> dict[str, VerifyKey]:
    """The witness keys of those who are members now."""
    return {name: member.witness for name, member in sorted(epoch(log).members.items())}


def policy(log: Log, key: VerifyKey) -> str:
    """The policy under which the ledger verifies: the signing keys of all who were ever admitted, and the witnesses of
    now, of whom a quorum must have cosigned; nobody's cosignature while there are too few for a quorum."""
    now = epoch(log)
    quorum = now.quorum if now.quorum <= len(now.members) else 0
    return write_policy(log.head.origin, key, keys(log), witnesses(log), quorum)


def proposed_at(log: Log, study: str) -> int | None:
    """The entry that proposed a study of this hash, where its roster is taken; None if none did."""
    proposals = log.entries(kinds=("study.proposed",), study=study)
    return proposals[0].index if proposals else None


def decided(log: Log, motion: str, since: int) -> int | None:
    """The entry at ``since`` or later that records a motion, None if none does."""
    for record in log.entries(since, kinds=governance.VOTED):
        if governance.motion(record.kind, record.body) == motion:
            return record.index
    return None


def root_at(log: Log, size: int) -> str:
    """The Merkle root of a ledger's first entries, 64 hexadecimal digits: what a vote names."""
    return log.root_at(size).hex()


def _change(log: Log, changes: Callable[[Epoch], list[Change]], votes: Sequence[Vote]) -> None:
    """Record changes to the federation as it is now, each checked as every reader of the ledger will check it."""

    def draft() -> tuple[list[Entry], bool]:
        now = epoch(log)
        founding, entries = now.founding, list[Entry]()
        for kind, unvoted in changes(now):
            body = unvoted if founding else {**unvoted, "votes": [dict(vote) for vote in votes]}
            index = log.head.size + len(entries)
            now = governance.advance(now, index, kind, body, partial(root_at, log))
            entries.append(Entry(kind, body))
        return entries, founding

    _record(log, draft)


def _record(log: Log, draft: Callable[[], tuple[list[Entry], bool]]) -> None:
    """Record what ``draft`` makes of the membership as it is now; when another writer came in between, again.

    ``draft`` also says whether nothing at all may come in between: in the founding, whose end is a study's affair, a
    change needs no votes; one entry later it might.
    """
    for attempt in range(1, ATTEMPTS + 1):
        seen = log.refresh()
        entries, exactly = draft()
        if not entries:
            return
        try:
            log.append(entries, at=seen.size if exactly else None)
        except LedgerError:
            if log.refresh() == seen or attempt == ATTEMPTS:
                raise
        else:
            return


def _stands(now: Epoch, member: Member) -> bool:
    known = now.members.get(member.name)
    return known is not None and known.keys == member.keys
