"""What a ledger's entries may say: who is a member, who must have voted or spoken, and with which key.

The verifier's own reading of these rules; it shares no code with what decides and writes.

- **Keys.** Each admitted or rotated signing key is one that the policy gives that member. A key, of either kind, has
  one holder and does not come back; who was revoked is not admitted again. Whose cosignatures count is for the policy
  alone to say, not for the witness keys recorded here.
- **Epochs.** Every ``member.*`` and ``federation.faulty`` ends one; they are numbered by the ends before them. A quorum
  of an epoch are q = ⌊(n + f) / 2⌋ + 1 of its n members, f of whom may lie.
- **Votes.** Up to the first ``study.proposed`` the operator alone records members. From then on what is in `VOTED`
  holds the votes of a quorum of the epoch that it may end: each a member's word for this motion, in this epoch, on a
  root of this tree behind the last change and behind the last entry with the same motion.
- **Edits.** The ``proposer`` of a ``federation.edit``, if it names one, is among its voters: what they sign names it.
- **Agreement.** ``study.approved`` and ``release`` hold the words of a quorum of those who were members at the study's
  proposal; what they release is what they signed.
- **Words.** Each text under ``"envelope"`` in a body is a DSSE envelope signed by the member it names; federation and
  study are those of the ledger; a ``"manifest"`` beside it is the one the member signed. Where an entry records
  members' own words (`SPOKEN`), the key is the one that stood at that index, so nothing is said after a revocation; the
  study is the entry's; no slot is filled twice.
- **Erasure.** What is erased was named before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

from causaldao.ledger.policy import LOG, WITNESS, Key, Policy
from causaldao.ledger.strict import encode, fault, fields, read, unbase64

PAYLOAD_TYPE = "application/vnd.causaldao+json"
STATEMENT = {
    "body": dict, "digest": str, "epoch": int, "federation": str, "kind": str, "member": str, "nonce": str,
    "parent": str, "round": int, "study": str, "v": int,
}  # fmt: skip
VOTED: dict[str, dict[str, type]] = {  # what the members decide, and the body that they vote on
    "member.admit": {"member": str, "key": str, "witness": str, "epoch": int},
    "member.rotate": {"member": str, "key": str, "witness": str, "epoch": int},
    "member.revoke": {"member": str, "reason": str},
    "federation.faulty": {"faulty": int},
    "federation.edit": {"study": str, "edge": list, "change": str, "reason": str},
    "federation.policy": {"name": str, "sha256": str},
}
MAY = {"does": str, "proposer": str}  # what the body of an edit may say beside
# Entries of members' own words, and the kind that each member signed: its key stands at that index, a slot is filled
# once (but for votes, which are told apart by their motions). The WORDS are nothing but the word.
SPOKEN = {
    "evidence": "evidence", "ballot": "ballot", "effects": "effects", "update": "update",
    "privacy.spend": "evaluation",
    "study.approved": "rollcall", "release": "release", **dict.fromkeys(VOTED, "vote"),
}  # fmt: skip
WORDS = ("evidence", "ballot", "effects", "update")
_NO_TENSORS = sha256(b"[]").hexdigest()


@dataclass(slots=True)  # not frozen: a million are made four times as soon
class Line:
    """One verified entry; ``payloads`` are the SHA-256 of the bytes it speaks of."""

    index: int
    time: str
    kind: str
    body: Mapping[str, Any]
    payloads: tuple[str, ...]


class Job(NamedTuple):
    """One of ``keys`` must have signed ``text``, or ``what`` is wrong with that entry."""

    entry: int
    what: str
    keys: tuple[bytes, ...]
    signature: bytes
    text: bytes


@dataclass
class Known:
    """What the entries so far have established; ``jobs`` are the members' signatures, still to be checked."""

    policy: Policy
    root: Callable[[int], bytes]
    federation: str = ""
    faulty: int = 0
    founding: bool = True
    epoch: int = 0
    changed: int = 0
    studies: set[str] = field(default_factory=set)
    proposed: dict[str, tuple[frozenset[str], int]] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    witnesses: dict[str, bytes] = field(default_factory=dict)
    holders: dict[bytes, str] = field(default_factory=dict)
    revoked: dict[str, int] = field(default_factory=dict)
    slots: dict[tuple[Any, ...], str] = field(default_factory=dict)
    decided: dict[str, int] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    erased: set[str] = field(default_factory=set)
    jobs: list[Job] = field(default_factory=list)

    @property
    def quorum(self) -> int:
        return (len(self.keys) + self.faulty) // 2 + 1


def check_members(
    lines: Sequence[Line], speaking: Collection[int], root: Callable[[int], bytes], policy: Policy
) -> Known:
    """Hold every entry to the rules; ``speaking`` are the indices of those with a text under "envelope".

    ``root`` is the Merkle root of so many leaves, from 1 to their number. Raises LedgerError at the first fault.
    """
    known = Known(policy, root)
    for line in lines:
        if line.kind.startswith("study."):
            _learn_study(line, known)
        said = []
        if line.kind in WORDS:
            _text(line.body, "envelope", f"entry {line.index}")
        if line.index in speaking:
            said = [_check_envelope(holder, line, known) for holder in _holders(line.body)]
        if line.kind in VOTED:
            _check_votes(line, said, known)
            _learn_change(line, known)
        elif line.kind in ("study.approved", "release"):
            _check_agreed(line, said, known)
        elif line.kind in ("genesis", "erasure"):
            _learn_other(line, known)
        known.named.update(line.payloads)
    return known


def _learn_study(line: Line, known: Known) -> None:
    study = _text(line.body, "study", f"entry {line.index}")
    known.studies.add(study)
    if line.kind not in ("study.proposed", "study.draft") and study not in known.proposed:
        raise fault(f"entry {line.index}", f"a {line.kind!r} of study {study[:12]}, which no entry before it proposes")
    if line.kind == "study.proposed":
        known.founding = False
        known.proposed.setdefault(study, (frozenset(known.keys), known.quorum))


def _learn_other(line: Line, known: Known) -> None:
    place, body = f"entry {line.index}", line.body
    if line.kind == "genesis":
        known.federation, known.faulty = _text(body, "federation", place), body.get("faulty", -1)
        if type(known.faulty) is not int or known.faulty < 0:
            raise fault(place, "its body does not say how many members may be 'faulty', 0 or more")
        return
    fields(body, {"payloads": list, "reason": str}, place)
    strange = [name for name in body["payloads"] if not isinstance(name, str) or name not in known.named]
    if strange:
        raise fault(place, f"it erases {strange[0]!r}, which no entry before it names")
    known.erased.update(body["payloads"])


def _learn_change(line: Line, known: Known) -> None:
    """An entry of the members', whose votes were checked, takes effect."""
    place, body = f"entry {line.index}", line.body
    if line.kind == "federation.faulty":
        known.faulty = body["faulty"]
    elif line.kind.startswith("member."):
        _learn_member(line, body["member"], known)
    else:
        return
    gathering = known.founding and line.kind != "federation.faulty"  # the operator has not admitted everybody yet
    if known.faulty < 0 or (known.faulty >= len(known.keys) and not gathering):
        raise fault(place, f"{known.faulty} of {len(known.keys)} members may lie then: no quorum could be had any more")
    known.epoch, known.changed = known.epoch + 1, line.index


def _learn_member(line: Line, member: str, known: Known) -> None:
    place = f"entry {line.index}"
    if line.kind == "member.admit" and member in known.revoked:
        raise fault(place, f"{line.kind} of {member!r}, who was revoked by entry {known.revoked[member]}")
    if (line.kind == "member.admit") == (member in known.keys):
        raise fault(place, f"{line.kind} of {member!r}, who is {'' if member in known.keys else 'not '}a member")
    if line.kind == "member.revoke":
        known.revoked[member] = line.index
        del known.keys[member], known.witnesses[member]
        return
    if line.body["epoch"] != known.epoch:
        raise fault(place, f"its body says epoch {line.body['epoch']}, it is epoch {known.epoch}")
    key, witness = (_key(line.body, name, member, place) for name in ("key", "witness"))
    if key not in known.policy.members.get(member, ()):
        there = "no member" if member not in known.policy.members else "another key for the member"
        raise fault(place, f"the key recorded for {member!r} is not the one in the policy: it has {there} {member!r}")
    before = {known.keys.get(member), known.witnesses.get(member)}
    for new in {key, witness} - before:
        if new in known.holders:
            raise fault(place, f"the key recorded for {member!r} is or was the one of {known.holders[new]!r}")
        known.holders[new] = member
    known.keys[member], known.witnesses[member] = key, witness


def _key(body: Mapping[str, Any], name: str, member: str, place: str) -> bytes:
    try:
        key = Key.parse(body[name], LOG if name == "key" else WITNESS)
    except ValueError as error:
        raise fault(place, f"the {name} of {member!r} is not a verifier key: {error}") from error
    if key.name != member:
        raise fault(place, f"the {name} recorded for {member!r} is one of {key.name!r}")
    return key.raw


def _check_votes(line: Line, said: list[dict[str, Any]], known: Known) -> None:
    """A quorum voted for exactly this, in this epoch, on a tree that had what the entries before it have."""
    place, motion = f"entry {line.index}", {name: item for name, item in line.body.items() if name != "votes"}
    proposer = motion.get("proposer") if line.kind == "federation.edit" else None
    more = {name: text for name, text in MAY.items() if line.kind == "federation.edit" and name in motion}
    fields(motion, {**VOTED[line.kind], **more}, place)
    if line.kind == "federation.edit":
        _check_edge(motion, place)
    digest = sha256(encode({"kind": line.kind, "body": motion})).hexdigest()
    votes, voters = line.body.get("votes", []), {vote["member"] for vote in said}
    if not isinstance(votes, list) or len(votes) != len(said):
        raise fault(place, "its votes are not a list, or an envelope stands elsewhere")
    for holder in votes:
        fields(holder, {"envelope": str, "member": str}, f"{place}, votes")
    for vote in said:
        _check_vote(vote, digest, line.index, known)
    if len(voters) < len(said):
        raise fault(place, "a member votes twice")
    if proposer is not None and proposer not in voters:
        raise fault(place, f"it names {proposer!r} as its proposer, of whom it has no vote")
    if len(voters) < known.quorum and not known.founding:
        have = f"it has {len(voters)} votes ({', '.join(sorted(voters)) or 'nobody'})"
        raise fault(
            place, f"{have} of the {known.quorum} it needs from {len(known.keys)} members, {known.faulty} faulty"
        )
    known.decided[digest] = line.index


def _check_edge(edit: Mapping[str, Any], place: str) -> None:
    edge = edit["edge"]
    if [*map(type, edge)] != [str, str] or edge[0] == edge[1] or edit["change"] not in ("add", "remove", "reverse"):
        raise fault(place, "its 'edge' is not two different names, or its 'change' not one of add, remove, reverse")


def _check_vote(vote: dict[str, Any], motion: str, index: int, known: Known) -> None:
    place, body = f"entry {index}, vote of {vote['member']!r}", vote["body"]
    fields(body, {"motion": str, "size": int}, place)
    if body["motion"] != motion:
        raise fault(place, "it is for another motion")
    if (vote["epoch"], vote["round"], vote["digest"]) != (known.epoch, 0, _NO_TENSORS):
        raise fault(place, f"it is of epoch {vote['epoch']}, it is epoch {known.epoch}; or it has a round or tensors")
    since = max(known.changed, known.decided.get(motion, 0))
    if not since < body["size"] <= index:
        what = f"it rests on a checkpoint of {body['size']} entries, only one of {since + 1} to {index} counts here"
        raise fault(place, what)
    if vote["parent"] != known.root(body["size"]).hex():
        raise fault(place, f"the first {body['size']} entries do not have the root on which it rests")


def _check_agreed(line: Line, said: list[dict[str, Any]], known: Known) -> None:
    """A study is approved, and its result released, by a quorum of those who were members when it was proposed."""
    place, body = f"entry {line.index}", line.body
    study = _text(body, "study", place)
    if study not in known.proposed:
        raise fault(place, f"it is of study {study!r}, which no entry before it proposes")
    members, quorum = known.proposed[study]
    if line.kind == "release":
        released = encode({name: body.get(name) for name in ("dag", "model")})
        other = [word["member"] for word in said if encode(word["body"]) != released]
        if other:
            raise fault(place, f"the model and dag that {other[0]!r} signed are not the ones released")
    voices = {word["member"] for word in said} & members
    if len(voices) < quorum:
        what = f"it holds the words of {len(voices)} members ({', '.join(sorted(voices)) or 'nobody'})"
        raise fault(place, f"{what}; a quorum of the {len(members)} at the study's proposal are {quorum}")


def _holders(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a body that has an "envelope"."""
    if isinstance(value, dict):
        if "envelope" in value:
            yield value
        for item in value.values():
            yield from _holders(item)
    elif isinstance(value, list):
        for item in value:
            yield from _holders(item)


def _check_envelope(holder: Mapping[str, Any], line: Line, known: Known) -> dict[str, Any]:
    """The statement of an envelope; its signature becomes a job."""
    place = f"entry {line.index}"
    payload, signature = _open(_text(holder, "envelope", place), place)
    statement: dict[str, Any] = read(payload, f"{place}, statement")
    fields(statement, STATEMENT, f"{place}, statement")
    member, kind = statement["member"], PAYLOAD_TYPE.encode()
    keys = known.policy.members.get(member, ())
    if line.kind in SPOKEN:
        _check_spoken(statement, holder, line, known)
        keys = (known.keys[member],)
    if statement["federation"] != known.federation:
        raise fault(place, f"the envelope is of federation {statement['federation']!r}, not {known.federation!r}")
    if statement["study"] not in known.studies and (statement["study"] or SPOKEN.get(line.kind, "vote") != "vote"):
        raise fault(place, f"the envelope is of study {statement['study']!r}, which no entry before it names")
    if "manifest" in holder and sha256(encode(holder["manifest"])).hexdigest() != statement["digest"]:
        raise fault(place, "the manifest is not the one whose digest the member signed")
    text = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    what = f"the envelope in the name of {member!r} is not signed by that member's key"
    known.jobs.append(Job(line.index, what, keys, signature, text))
    return statement


def _check_spoken(statement: Mapping[str, Any], holder: Mapping[str, Any], line: Line, known: Known) -> None:
    place, member, kind = f"entry {line.index}", statement["member"], SPOKEN[line.kind]
    if member not in known.keys:
        gone = member in known.revoked
        why = f"was revoked by entry {known.revoked[member]}" if gone else "is not a member at this index"
        raise fault(place, f"{member!r} speaks, but {why}")
    if statement["kind"] != kind or holder.get("member", member) != member:
        raise fault(place, f"the envelope is a {statement['kind']!r} of {member!r}, the entry says otherwise")
    if statement["study"] != ("" if kind == "vote" else line.body.get("study", statement["study"])):
        raise fault(place, f"the envelope is of study {statement['study']!r}, the entry says otherwise")
    if kind == "vote":
        return
    if statement["study"] not in known.proposed:
        raise fault(place, f"the envelope is of study {statement['study']!r}, which no entry before it names")
    slot = tuple(statement[name] for name in ("study", "round", "member", "kind"))
    content = sha256(encode({name: statement[name] for name in ("body", "digest", "epoch")})).hexdigest()
    if known.slots.setdefault(slot, content) != content:
        raise fault(place, f"the slot (study, round, member, kind) = {slot} was filled before with another content")


def _open(text: str, place: str) -> tuple[bytes, bytes]:
    """Payload and signature of a DSSE envelope."""
    envelope = read(text.encode(), f"{place}, envelope")
    fields(envelope, {"payload": str, "payloadType": str, "signatures": list}, place)
    if envelope["payloadType"] != PAYLOAD_TYPE or len(envelope["signatures"]) != 1:
        raise fault(place, f"the envelope is not one of type {PAYLOAD_TYPE!r} with one signature")
    fields(envelope["signatures"][0], {"keyid": str, "sig": str}, place)
    return unbase64(envelope["payload"], place), unbase64(envelope["signatures"][0]["sig"], place)


def _text(body: Mapping[str, Any], name: str, place: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise fault(place, f"its body lacks the text {name!r}")
    return value
