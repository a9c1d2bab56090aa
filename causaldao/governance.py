"""Who may change a federation, as its ledger's entries follow one another: the rule for one entry after another.

*Founding*: from the genesis to the first study that is proposed, the operator alone records members. From then on a
change (`VOTED`) carries ``votes``: those of a quorum, ⌊(n + f) / 2⌋ + 1, of the n members that there were before it. So
an operator can neither add members of its own making, nor take away those that disagree.

*Epoch*: what holds between two changes of the membership (`CHANGES`); epochs are numbered by the changes before them.

*Vote*: a member's signed statement, DSSE as all its others, of kind ``vote``:

    body     {"motion": SHA-256 of the canonical {"kind", "body" without "votes"}, "size": s}
    epoch    the number of the epoch in force
    parent   the Merkle root (64 hex digits) of the first s entries, a checkpoint that the member's witness cosigned

An edit of a graph may name its ``proposer``: then that member's own vote is among the votes. What a vote signs names
the proposer, so nobody is named for an edit that it did not sign as its own.

It counts for this motion in this epoch, only on a ledger with that root (so not on another history that the operator
shows to somebody else), and only if s lies behind the last change, and behind the entry that decided the same motion
before.

Pure: entries in, epochs out. The writer asks before it records, a member's node before it cosigns; the ledger's
verifier has its own code for the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from causaldao.errors import CausalDAOError, GuaranteeError, IdentityError, LedgerError
from causaldao.members import Member, Roster, quorum
from causaldao.messages import fields
from causaldao.signing import SigningKey, Statement, VerifyKey, canonical, digest, seal, sha256, unseal

CHANGES = frozenset({"member.admit", "member.rotate", "member.revoke", "federation.faulty"})
VOTED = CHANGES | {"federation.edit", "federation.policy"}
READ = VOTED | {"genesis", "study.proposed"}  # all other kinds leave an epoch as it is
VOTE = "vote"
MAX_VOTE_BYTES = 4 << 10

RootAt = Callable[[int], str]

_SHAPES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "member.admit": {"member": str, "key": str, "witness": str, "epoch": int},
    "member.rotate": {"member": str, "key": str, "witness": str, "epoch": int},
    "member.revoke": {"member": str, "reason": str},
    "federation.faulty": {"faulty": int},
    "federation.edit": {"study": str, "edge": list, "change": str, "reason": str},
    "federation.policy": {"name": str, "sha256": str},
}
EDIT, _PROPOSER = "federation.edit", "proposer"
_MAY = {_PROPOSER: str, "does": str}  # what the body of an edit may say beside; ``does``: see `causaldao.edits`


@dataclass(frozen=True)
class Epoch:
    """The federation between two changes.

    ``number`` counts the changes before it, ``last_change`` is the index of the last of them, or of the genesis.
    ``holders`` says whose each key ever recorded is, by its raw bytes; ``decided`` at which index each motion stands
    that was decided in this epoch.
    """

    number: int
    federation: str
    members: Mapping[str, Member]
    faulty: int
    founding: bool
    last_change: int
    revoked: frozenset[str] = frozenset()
    holders: Mapping[bytes, str] = field(default_factory=dict)
    decided: Mapping[str, int] = field(default_factory=dict)

    @property
    def quorum(self) -> int:
        """How many votes a change needs."""
        return quorum(len(self.members), self.faulty)

    @property
    def roster(self) -> Roster:
        """The members, by name; a GuaranteeError if they are too few for ``faulty`` of them to lie."""
        return Roster(self.federation, tuple(member for _, member in sorted(self.members.items())), self.faulty)


def motion(kind: str, body: Mapping[str, Any]) -> str:
    """What is voted on: the SHA-256 of an entry's kind and of its body without the votes."""
    return sha256(canonical({"kind": kind, "body": _unvoted(body)}))


def make_vote(key: SigningKey, *, federation: str, member: str, epoch: int, motion: str, size: int, root: str) -> str:
    """A member's vote, an envelope; ``size`` and ``root`` (64 hex digits) are of the checkpoint it cosigned last.

    Made again it is the same, so that a member has one vote however often it sends it.
    """
    statement = Statement(
        federation=federation, study="", round=0, member=member, kind=VOTE, nonce="", parent=root, digest=digest({}),
        body={"motion": motion, "size": size}, epoch=epoch,
    )  # fmt: skip
    return seal(statement, key).decode()


def check_vote(epoch: Epoch, motion: str, member: str, envelope: str, index: int, root_at: RootAt) -> None:
    """Return if ``member`` voted for the motion, as it would stand at ``index`` of the ledger.

    ``root_at`` gives the Merkle root of the first so many leaves, 64 hex digits.

    Raises
    ------
    IdentityError
        not a member of this epoch, another's signature, or a vote for something else.
    """
    if member not in epoch.members:
        raise IdentityError(
            f"{member!r} does not belong to epoch {epoch.number}: only {', '.join(sorted(epoch.members))} have a vote."
        )
    said = unseal(envelope.encode(), epoch.members[member].key, MAX_VOTE_BYTES)
    fields(said.body, {"motion": str, "size": int})
    asked = {
        "federation": epoch.federation, "study": "", "round": 0, "member": member, "kind": VOTE, "epoch": epoch.number,
        "digest": digest({}),
    }  # fmt: skip
    wrong = [name for name, value in asked.items() if getattr(said, name) != value]
    if wrong or said.body["motion"] != motion:
        raise IdentityError(
            f"{member} signed something else than a vote for motion {motion[:12]} in epoch {epoch.number}: "
            f"{', '.join(wrong) or 'another motion'}. A vote counts once, for what it was given for."
        )
    _check_seen(epoch, motion, member, said, index, root_at)


def _check_seen(epoch: Epoch, motion: str, member: str, said: Statement, index: int, root_at: RootAt) -> None:
    size, since = said.body["size"], max(epoch.last_change, epoch.decided.get(motion, -1))
    if not since < size <= index:
        raise IdentityError(
            f"{member} voted when its witness had seen {size} entries, but only a vote from {since + 1} to {index} "
            "entries counts here: let its witness see the ledger as it is now, and vote again."
        )
    if said.parent != root_at(size):
        raise IdentityError(
            f"{member} voted on a ledger whose first {size} entries have the root {said.parent[:16]}, not this one's "
            f"{root_at(size)[:16]}: two histories were shown. Ask the operator, and compare receipts."
        )


def check_votes(epoch: Epoch, kind: str, body: Mapping[str, Any], index: int, root_at: RootAt) -> tuple[str, ...]:
    """The names of those who voted for an entry at ``index``: a quorum of the epoch before it.

    Raises
    ------
    GuaranteeError
        too few votes.
    IdentityError
        one of them is not a valid vote, or a member's second; all must hold, not only as many as are needed.
    """
    voters = _voters(epoch, kind, body, index, root_at)
    _require_proposer(epoch, kind, body, voters)
    return _require_quorum(epoch, kind, voters)


def _voters(epoch: Epoch, kind: str, body: Mapping[str, Any], index: int, root_at: RootAt) -> tuple[str, ...]:
    votes, asked, voters = body.get("votes", []), motion(kind, body), list[str]()
    if not isinstance(votes, list) or len(votes) > len(epoch.members):
        raise IdentityError(
            f"The votes for {kind} are not a list of at most {len(epoch.members)}, the members' number."
        )
    for vote in votes:
        if not isinstance(vote, Mapping):
            raise IdentityError(f"A vote for {kind} is not one: expected a member and its envelope.")
        fields(vote, {"member": str, "envelope": str})
        if vote["member"] in voters:
            raise IdentityError(f"{vote['member']} votes twice for {kind}: a member has one vote.")
        check_vote(epoch, asked, vote["member"], vote["envelope"], index, root_at)
        voters.append(vote["member"])
    return tuple(voters)


def _require_proposer(epoch: Epoch, kind: str, body: Mapping[str, Any], voters: tuple[str, ...]) -> None:
    proposer = body.get(_PROPOSER) if kind == EDIT else None
    if proposer is not None and proposer not in voters:
        raise IdentityError(
            f"{kind} names {proposer!r} as its proposer, but has no vote of that member: nobody is named for what it "
            "did not sign. The owner proposes with causaldao node propose-edit."
        )


def _require_quorum(epoch: Epoch, kind: str, voters: tuple[str, ...]) -> tuple[str, ...]:
    if len(voters) < epoch.quorum:
        raise GuaranteeError(
            f"{kind} has {len(voters)} of the {epoch.quorum} votes it needs from the {len(epoch.members)} members of "
            f"epoch {epoch.number} ({', '.join(voters) or 'nobody voted'}): since the first study was proposed, the "
            "members decide. Each owner votes with causaldao node vote."
        )
    return voters


def advance(epoch: Epoch | None, index: int, kind: str, body: Mapping[str, Any], root_at: RootAt) -> Epoch:
    """The epoch after the entry at ``index``; None stands before the genesis.

    Raises
    ------
    GuaranteeError
        too few votes, or members left who could not bear ``faulty`` liars among them.
    IdentityError
        a vote that does not count, a member or key that is not what the entry makes of it.
    LedgerError
        there is no genesis before it, or a second one.
    """
    if epoch is not None and kind in VOTED:
        voters = _voters(epoch, kind, body, index, root_at)
        _require_proposer(epoch, kind, body, voters)
        if not epoch.founding:
            _require_quorum(epoch, kind, voters)
    return changed(epoch, index, kind, body)


def changed(epoch: Epoch | None, index: int, kind: str, body: Mapping[str, Any]) -> Epoch:
    """As `advance`, of a change whose votes were checked before, or are still to come."""
    if (epoch is None) != (kind == "genesis"):
        what = "there is a genesis before it" if epoch is not None else "no genesis stands before it"
        raise LedgerError(f"Entry {index}, {kind}, founds no federation, or a second one: {what}.")
    if epoch is None:
        return _founded(index, body)
    if kind == "study.proposed":
        return replace(epoch, founding=False) if epoch.founding else epoch
    if kind not in VOTED:
        return epoch
    _check_shape(kind, body)
    after = replace(epoch, decided={**epoch.decided, motion(kind, body): index})
    if kind in CHANGES:
        after = replace(_CHANGED[kind](epoch, body), number=epoch.number + 1, last_change=index, decided={})
    if not epoch.founding and not after.faulty < len(after.members):
        raise GuaranteeError(
            f"{kind} would leave {len(after.members)} members of whom {after.faulty} may lie: no quorum could be had "
            f"any more. Lower faulty below {len(after.members)} first, or keep more members."
        )
    return after


def admission(member: Member, number: int) -> dict[str, Any]:
    """The body of the entry that admits a member, or gives it new keys, in epoch ``number``."""
    return {
        "member": member.name, "key": member.key.to_text(member.name), "witness": member.witness_text, "epoch": number,
    }  # fmt: skip


def admitted(body: Mapping[str, Any]) -> Member:
    """The member of such a body."""
    return Member.from_json({"name": body["member"], **{part: body[part] for part in ("key", "witness", "epoch")}})


def describe(kind: str, body: Mapping[str, Any], faulty: int | None = None) -> str:
    """A motion in words, all it says; ``faulty`` is how many may lie while it is decided. Its texts are another's.

    IdentityError: its body says more, less or something else than one of its kind does.
    """
    _check_shape(kind, body)
    if kind in ("member.admit", "member.rotate"):
        member = admitted(body)
        keys = f"signing key {member.key.id} and witness key {member.witness.id}"
        return f"admit {member.name}, with {keys}" if kind == "member.admit" else f"give {member.name} the {keys}"
    if kind == "member.revoke":
        return f"revoke {body['member']}, for this reason: {body['reason']}"
    if kind == "federation.faulty":
        return f"change how many members may lie{'' if faulty is None else f' from {faulty}'} to {body['faulty']}"
    if kind == "federation.edit":
        turned = f" (afterwards {' -> '.join(reversed(body['edge']))})" if body["change"] == "reverse" else ""
        whose = f", proposed by {body[_PROPOSER]}" if _PROPOSER in body else ""
        return (
            f"{body['change']} the edge {' -> '.join(body['edge'])}{turned} in study {body['study'][:12]}{whose}: "
            f"{body['reason']}"
        )
    return f"take the policy {body['name']}, SHA-256 {body['sha256']}"


def _unvoted(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "votes"}


def _founded(index: int, body: Mapping[str, Any]) -> Epoch:
    federation, faulty = body.get("federation"), body.get("faulty")
    if not isinstance(federation, str) or type(faulty) is not int or faulty < 0:
        raise LedgerError(f"The genesis names no federation, or not how many may lie: {federation!r}, {faulty!r}.")
    return Epoch(0, federation, {}, faulty, True, index)


def _check_shape(kind: str, body: Mapping[str, Any]) -> None:
    if kind not in _SHAPES:
        raise IdentityError(f"Members do not vote on {kind!r}, only on {', '.join(sorted(_SHAPES))}.")
    try:
        more = {name: text for name, text in _MAY.items() if kind == EDIT and name in body}
        fields(_unvoted(body), {**_SHAPES[kind], **more})
    except CausalDAOError as error:
        raise IdentityError(f"The body of {kind} is not one that members can vote on: {error.message}") from error
    edge = body.get("edge", ["", ""])
    if len(edge) != 2 or not all(isinstance(end, str) for end in edge):
        raise IdentityError(f"The edge of {kind} is not one of two variables.")
    if kind == "federation.edit" and body["change"] not in ("add", "remove", "reverse"):
        raise IdentityError(f"{body['change']!r} is no change of an edge: add, remove or reverse it.")


def _admit(epoch: Epoch, body: Mapping[str, Any]) -> Epoch:
    member = _entering(epoch, body)
    if member.name in epoch.revoked:
        raise IdentityError(f"{member.name!r} was revoked and cannot be admitted again: invite it by another name.")
    if member.name in epoch.members:
        raise IdentityError(
            f"{member.name!r} is a member already, with signing key {epoch.members[member.name].key.id}. One "
            "institution has one name and one key for each purpose."
        )
    return _with(epoch, member, member.keys)


def _rotate(epoch: Epoch, body: Mapping[str, Any]) -> Epoch:
    member = _entering(epoch, body)
    before = _known(epoch, member.name, "change its keys")
    new = [key for key, old in zip(member.keys, before.keys, strict=True) if key != old]
    if not new:
        raise IdentityError(f"{member.name!r} has these keys already: nothing would change.")
    return _with(epoch, member, new)


def _revoke(epoch: Epoch, body: Mapping[str, Any]) -> Epoch:
    gone = _known(epoch, body["member"], "be revoked").name
    left = {name: member for name, member in epoch.members.items() if name != gone}
    return replace(epoch, members=left, revoked=epoch.revoked | {gone})


def _set_faulty(epoch: Epoch, body: Mapping[str, Any]) -> Epoch:
    if not 0 <= body["faulty"] < len(epoch.members):
        raise GuaranteeError(
            f"faulty = {body['faulty']} must be 0 or more, and below the {len(epoch.members)} members."
        )
    return replace(epoch, faulty=body["faulty"])


_CHANGED: dict[str, Callable[[Epoch, Mapping[str, Any]], Epoch]] = {
    "member.admit": _admit, "member.rotate": _rotate, "member.revoke": _revoke, "federation.faulty": _set_faulty,
}  # fmt: skip


def _entering(epoch: Epoch, body: Mapping[str, Any]) -> Member:
    member = admitted(body)
    if member.epoch != epoch.number:
        raise IdentityError(
            f"{member.name!r} would get its keys in epoch {member.epoch}, but it is epoch {epoch.number}: put it anew."
        )
    return member


def _known(epoch: Epoch, name: str, what: str) -> Member:
    if name not in epoch.members:
        raise IdentityError(f"{name!r} is not a member: only an admitted member can {what}.")
    return epoch.members[name]


def _with(epoch: Epoch, member: Member, new: Collection[VerifyKey]) -> Epoch:
    """A key is one institution's and has one purpose, for ever: else one had two votes, or a stolen key came back."""
    for key in new:
        if key.raw in epoch.holders:
            raise IdentityError(
                f"{member.name!r} cannot have key {key.id}: it is or was in use by {epoch.holders[key.raw]!r}. One "
                "institution has one name and one key for each purpose, and a key that was given up does not come back."
            )
    holders = {**epoch.holders, **{key.raw: member.name for key in new}}
    return replace(epoch, members={**epoch.members, member.name: member}, holders=holders)
