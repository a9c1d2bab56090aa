"""The member as a witness of the ledger: what it checks of a request's trail before it answers, and what it says.

Every request shows the coordinator's checkpoint, and proves that it goes on from the one that this member cosigned
last. What does not prove it is refused, with the study it is for. What does is kept durably, and only then cosigned in
the reply (C2SP tlog-witness, carried inside the study's own messages). Beyond that the member checks, by itself:

- **who the members are**: at its first look it is shown the whole founding, up to the first study; every change after
  that counts only with the votes of the members before it (`causaldao.governance`), so that a coordinator cannot admit
  its own witnesses;
- **that the others see the same**: before it releases anything it must be shown a checkpoint that a quorum cosigned,
  no older than what it saw two questions ago in the study (with n ≤ 3f: than the roll call's, since those who answer
  may be fewer than a quorum then). A member that is shown a history of its own stops there;
- **that its words stand on the ledger**: it keeps a receipt of each, and complains, signed, of one that does not come.

Nothing of what it is shown is remembered before the checkpoint that it belongs to was cosigned.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from causaldao import governance
from causaldao.client import approvals
from causaldao.client.enrolment import WITNESS_FILE
from causaldao.client.node import Node
from causaldao.client.receipts import Receipts
from causaldao.client.receipts import Word as Said
from causaldao.errors import CausalDAOError, IdentityError, LedgerError, StaleError
from causaldao.governance import Epoch
from causaldao.ledger import merkle
from causaldao.ledger.bundle import write_policy
from causaldao.ledger.note import LOG, Checkpoint, Verifier, cosigners, open_note, proof_text
from causaldao.ledger.verify import Policy, verify_receipt
from causaldao.ledger.witness import Witness
from causaldao.members import Member
from causaldao.messages import COORDINATOR, Parcel, fields, open_request
from causaldao.signing import SigningKey, Statement, peek, sha256
from causaldao.trail import REFUSALS, WORDS, Shown, Trail, Word

STATE_FILE = "witness.db"
_ASK_QUORUM = ("evidence", "ballot", "effects", "update", "evaluation", "release")
_KINDS = frozenset({*_ASK_QUORUM, "rollcall", "locate", "close", "cosign"})
_ENTRIES = {
    "evidence": "evidence", "ballot": "ballot", "effects": "effects", "update": "update", "evaluation": "privacy.spend",
}  # fmt: skip
_STUDY = re.compile(r"[0-9a-f]{64}")
_MAX_ROUND = 1_000_000
_PROPOSED = "study.proposed"
_LOG = logging.getLogger(__name__)


def open_witness(node: Node, clock: Callable[[], int] = lambda: int(time.time())) -> Witness:
    """The witness of a node: its key, its state, and the log that it watches.

    Raises
    ------
    LedgerError
        its state is lost: it is retired, and does not silently start over.
    """
    log = Verifier(node.config.origin, LOG, node.coordinator.raw)
    key = SigningKey.load(node.folder / WITNESS_FILE)
    return Witness.open(node.folder / STATE_FILE, node.config.name, key, log, clock)


@dataclass(frozen=True)
class _Heard:
    """What became of a trail: the word on it, the size that was cosigned, the size that a quorum did, the members."""

    word: Word
    size: int
    agreed: int
    epoch: Epoch


@dataclass(frozen=True)
class _Electors:
    """Whose cosignatures count, and how many are a quorum."""

    members: Mapping[str, Member]
    quorum: int

    @property
    def verifiers(self) -> list[Verifier]:
        return [member.verifier for member in self.members.values()]


class Attendant:
    """Answers the requests to a node, and attends to the ledger that they show."""

    def __init__(self, node: Node, clock: Callable[[], int] = lambda: int(time.time())) -> None:
        self._node = node
        self._clock = clock
        self._receipts = Receipts(node.folder)

    def answer(self, parcel: Parcel) -> Parcel:
        """The node's reply with this witness's cosignature, or the node's refusal of a history that does not hold.

        Raises
        ------
        IdentityError
            the request is not the coordinator's: a stranger gets no signed word at all.
        """
        node = self._node
        request = open_request(parcel, node.coordinator, node.config.federation)
        _require_question(request)
        try:
            witness = open_witness(node, self._clock)
            try:
                heard = self._hear(witness, Trail.unpack(parcel.trail), request)
                self._require_agreed(heard, request)
            except StaleError as error:
                # It has seen more than it is shown, or less is agreed on than it asks for: both are told, and mended.
                _LOG.info("%s of study %s: %s", request.kind, request.study[:12], error)
                seen = witness.seen
                return node.refuse(request, error.code, Word(seen.note, seen.line).pack())
        except CausalDAOError as error:
            _LOG.error("%s of study %s refused (%s): %s", request.kind, request.study[:12], error.code, error)
            return node.refuse(request, error.code)
        if self._approved(request.study):
            self._receipts.asked(request.study, request.kind, request.round, heard.size)
        if request.kind == "cosign":
            return self._cosigned(request, heard.word)
        reply = node.answer(parcel)
        self._note(request, reply)
        return replace(reply, trail=heard.word.pack())

    def attend(self, trail: Trail) -> Word:
        """This member's cosignature of what it is shown outside of any study, checked as a request's trail is.

        Raises
        ------
        StaleError, ProofError
            it does not go on from what this node's witness saw.
        CausalDAOError
            it is not this log's, a member was changed without the others' votes, or the witness cosigns no more.
        """
        return self._hear(open_witness(self._node, self._clock), trail, None).word

    def known(self) -> tuple[int, Word]:
        """What need not be shown again: the last entry on the members that this node knows, -1 for none, and its
        cosignature of the checkpoint that it saw last."""
        witness = open_witness(self._node, self._clock)
        seen = witness.seen
        if seen.note and not seen.line:  # the power went between the two
            seen = witness.cosign(seen.note, {})
        entries = self._receipts.members()
        return entries[-1][0] if entries else -1, Word(seen.note, seen.line)

    def epoch(self, last: int | None = None) -> Epoch | None:
        """The federation by the entries that this node was shown, and checked, up to ``last``; None without any."""
        return self._receipts.epoch(last)

    def _hear(self, witness: Witness, trail: Trail, request: Statement | None) -> _Heard:
        own = trail.last.get(self._node.config.name)
        if own is not None and _is_by(own.line, witness.verifier):  # of a key that it had before it knows nothing
            witness.remember(own.line, own.size, own.root)
        checkpoint = witness.check(trail.checkpoint, trail.proofs)
        try:
            epoch, learned = self._follow(trail, checkpoint, witness)
        except (ValueError, RecursionError) as error:  # of what stands in entries that others wrote
            raise IdentityError("An entry on the members that the request shows cannot be read.") from error
        electorates = [_Electors(epoch.members, epoch.quorum), *self._electors_of(request, epoch)]
        agreed, electors = self._agreed(trail, checkpoint, electorates)
        receipts = [] if agreed is None else self._receipted(trail, agreed, electors)
        seen = witness.cosign(trail.checkpoint, trail.proofs)
        self._receipts.learn(learned)
        for word, entry in receipts:
            receipt = proof_text(entry.index, list(entry.proof), trail.agreed)
            self._receipts.keep(word, entry.index, receipt, entry.record)
        return _Heard(Word(seen.note, seen.line), seen.size, 0 if agreed is None else agreed.size, epoch)

    # who the members are

    def _approved(self, study: str) -> bool:
        try:
            approvals.require(self._node.folder, study, self._node.config.approved)
        except CausalDAOError:
            return False
        return True

    def _follow(self, trail: Trail, checkpoint: Checkpoint, witness: Witness) -> tuple[Epoch, list[tuple[int, bytes]]]:
        """The federation as it is now, by the entries known before and those shown now; and which of them to learn."""
        known, epoch = self._receipts.members(), self.epoch()
        last = known[-1][0] if known else -1
        new = [entry for entry in trail.members if entry.index > last]
        _require_order(new, first=not known)
        learned = []
        for entry in new:
            _require_included(entry, checkpoint)
            kind, body = _entry(entry.record)
            if epoch is not None and not epoch.founding and kind not in governance.CHANGES:
                raise LedgerError(f"Entry {entry.index}, a {kind!r}, changes no member: it is not to be shown here.")
            roots = _roots(body, trail, checkpoint)
            epoch = governance.advance(epoch, entry.index, kind, body, partial(_proven, roots))
            if kind in governance.READ:
                learned.append((entry.index, entry.record))
        if epoch is None:
            raise LedgerError("The request shows nobody's admission: a witness cosigns for a federation it knows.")
        self._require_own(epoch, witness)
        return epoch, learned

    def _require_own(self, epoch: Epoch, witness: Witness) -> None:
        """The ledger has this node's own keys under its name: else others would speak for it."""
        node = self._node
        member = epoch.members.get(node.config.name)
        if member is None or (member.key, member.witness.raw) != (node.key.public, witness.verifier.key):
            found = "nobody" if member is None else f"keys {member.key.id} and {member.witness.id}"
            raise LedgerError(
                f"The ledger's member {node.config.name!r} is {found}, not this node with its key "
                f"{node.key.public.id}: it was revoked, its keys were changed, or the coordinator admitted another."
            )

    # that the others see the same

    def _electors_of(self, request: Statement | None, now: Epoch) -> list[_Electors]:
        """The members as this node knew them when a study asked first, as far as they are members still: it is those
        that the study asks, however many were admitted since."""
        known = None if request is None else self._receipts.known_at(request.study)
        epoch = None if known is None else self.epoch(known)
        if epoch is None:
            return []
        still = {
            name: member
            for name, member in epoch.members.items()
            if name in now.members and now.members[name].witness == member.witness
        }
        return [_Electors(still, epoch.quorum)]

    def _agreed(
        self, trail: Trail, checkpoint: Checkpoint, electorates: Sequence[_Electors]
    ) -> tuple[Checkpoint | None, _Electors]:
        """The checkpoint that a quorum of one of these electorates cosigned, if one is shown, and which; it must lead
        to the one at hand."""
        first = electorates[0]
        if not trail.agreed:
            return None, first
        node = self._node
        agreed = open_note(trail.agreed, Verifier(node.config.origin, LOG, node.coordinator.raw))
        for electors in electorates:
            if len(cosigners(trail.agreed, electors.verifiers)) >= electors.quorum:
                merkle.verify_consistency(
                    agreed.size, agreed.root, checkpoint.size, checkpoint.root, list(trail.agreed_proof)
                )
                return agreed, electors
        # As if none were shown: it goes on to cosign, so that a quorum can come together, but releases nothing.
        _LOG.warning(
            "the checkpoint of %d entries is shown as agreed on, but fewer than %d of %d members cosigned it",
            agreed.size, first.quorum, len(first.members),
        )  # fmt: skip
        return None, first

    def _require_agreed(self, heard: _Heard, request: Statement) -> None:
        """Refuse to release anything on a history that no quorum has confirmed; it was cosigned all the same, so that
        a quorum can come together."""
        if request.kind not in _ASK_QUORUM:
            return
        sizes = self._receipts.sizes(request.study, request.kind, request.round)
        # With n ≤ 3f the members who answer may be fewer than a quorum; a quorum was needed at the roll call.
        many = len(heard.epoch.members) > 3 * heard.epoch.faulty
        needed = sizes[-2] if len(sizes) > 1 and many else [*sizes, 1][0]
        if heard.agreed < needed:
            raise StaleError(
                f"{request.kind!r} shows a quorum's cosignatures of {heard.agreed} entries, but this node saw {needed} "
                "two questions ago: the others have not confirmed the history that it is shown, which may be its "
                "alone. Nothing was released."
            )

    # that its words stand on the ledger

    def _receipted(self, trail: Trail, agreed: Checkpoint, electors: _Electors) -> list[tuple[Said, Shown]]:
        """The words of this node of which the trail proves what became of them, as an outsider would judge it."""
        wanted = [word for word in self._receipts.words() if word.entry is None]
        if not wanted or not trail.receipts:
            return []
        policy, found = self._policy(electors), []
        for entry in trail.receipts:
            kind, body = _entry(entry.record)
            for word in wanted:
                if self._answers(kind, body, word):
                    receipt = proof_text(entry.index, list(entry.proof), trail.agreed)
                    verify_receipt(receipt, entry.record, policy)
                    found.append((word, entry))
        return found

    def _policy(self, electors: _Electors) -> Policy:
        """What somebody would hold a receipt to who trusts the members that this node knows."""
        members = electors.members.values()
        keys = {member.name: member.key for member in members}
        witnesses = {member.name: member.witness for member in members}
        return Policy.parse(
            write_policy(self._node.config.origin, self._node.coordinator, keys, witnesses, electors.quorum)
        )

    def _answers(self, kind: str, body: Mapping[str, Any], word: Said) -> bool:
        """Whether an entry is that of a word of this node, or says why the word was not taken."""
        slot = {"member": self._node.config.name, "study": word.study, "round": word.round}
        if any(type(body.get(name)) is not type(value) or body[name] != value for name, value in slot.items()):
            return False
        if kind in REFUSALS:
            return body.get("kind") == word.kind and body.get("by", COORDINATOR) == COORDINATOR
        envelope = body.get("envelope")
        return kind == _ENTRIES[word.kind] and isinstance(envelope, str) and sha256(envelope.encode()) == word.envelope

    def _note(self, request: Statement, reply: Parcel) -> None:
        said = peek(reply.envelope)
        if request.kind in WORDS and said.kind == request.kind:
            envelope = sha256(reply.envelope)
            self._receipts.given(Said(envelope, request.study, request.kind, request.round, self._clock()))

    def _cosigned(self, request: Statement, word: Word) -> Parcel:
        """The answer to a request for a cosignature alone; at the study's end, complaints of words without receipt."""
        try:
            fields(request.body, {"end": int})
        except IdentityError as error:
            return self._node.refuse(request, error.code)
        complaints = self._complaints(request) if request.body["end"] else ()
        return replace(self._node.say(request, request.body), trail=replace(word, complaints=complaints).pack())

    def _complaints(self, request: Statement) -> tuple[str, ...]:
        complaints = []
        for word in self._receipts.words(request.study):
            if word.entry is not None:
                continue
            text = word.complaint
            if text is None:
                given = datetime.fromtimestamp(word.given, UTC).isoformat()
                body = {"kind": word.kind, "round": word.round, "given": given, "word": word.envelope}
                text = self._node.say(request, body, "complaint").envelope.decode()
                self._receipts.complain(word, text)
                _LOG.warning(
                    "no receipt came of this node's %s of round %d, given at %s: complained",
                    word.kind,
                    word.round,
                    given,
                )
            complaints.append(text)
        return tuple(complaints)


def _entry(record: bytes) -> tuple[str, Mapping[str, Any]]:
    try:
        value = json.loads(record)
        kind, body = value["kind"], value["body"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LedgerError("An entry that the request shows is not in its form.") from error
    if not isinstance(kind, str) or not isinstance(body, dict):
        raise LedgerError("An entry that the request shows is not in its form.")
    return kind, body


def _require_question(request: Statement) -> None:
    """Refuse what is no question of a study, before anything of it is kept."""
    if request.kind not in _KINDS or not _STUDY.fullmatch(request.study) or not 0 <= request.round <= _MAX_ROUND:
        raise IdentityError(
            f"{request.kind[:40]!r} in round {request.round} of study {request.study[:64]!r} is no question that a "
            "member answers."
        )


def _require_order(entries: Sequence[Shown], *, first: bool) -> None:
    """Entries come in the ledger's order; at the first look the founding comes whole, up to the first study."""
    indices = [entry.index for entry in entries]
    if indices != sorted(set(indices)):
        raise LedgerError("The entries on the members are not shown in the ledger's order.")
    if first:
        kinds = [_entry(entry.record)[0] for entry in entries]
        ends = kinds.index(_PROPOSED) + 1 if _PROPOSED in kinds else 0
        if not ends or indices[:ends] != list(range(ends)):
            raise LedgerError(
                "At a first look the whole founding is to be shown, from the genesis to the first study that was "
                f"proposed, but what is shown are entries {indices[:20]}."
            )


def _is_by(line: str, verifier: Verifier) -> bool:
    """Whether a cosignature claims to be by this key, and not by one that the member had before."""
    try:
        return base64.b64decode(line.rpartition(" ")[2], validate=True)[:4] == verifier.id
    except ValueError as error:
        raise IdentityError("The cosignature that the request shows as this node's is none.") from error


def _proven(roots: Mapping[int, str], size: int) -> str:
    """The root of the log's first ``size`` entries, if the trail proves it."""
    if size not in roots:
        raise IdentityError(f"A vote names a checkpoint of {size} entries that the request does not prove.")
    return roots[size]


def _require_included(entry: Shown, checkpoint: Checkpoint) -> None:
    leaf = merkle.leaf_hash(entry.record)
    merkle.verify_inclusion(leaf, entry.index, checkpoint.size, list(entry.proof), checkpoint.root)


def _roots(body: Mapping[str, Any], trail: Trail, checkpoint: Checkpoint) -> dict[int, str]:
    """The roots that an entry's votes name, as far as the trail proves that they are of this log."""
    roots: dict[int, str] = {}
    votes = body.get("votes", [])
    for vote in votes if isinstance(votes, list) else []:
        if not isinstance(vote, dict) or not isinstance(vote.get("envelope"), str):
            continue
        said = peek(vote["envelope"].encode())
        size = said.body.get("size")
        if type(size) is int and size in trail.proofs and size not in roots:
            root = bytes.fromhex(said.parent)
            merkle.verify_consistency(size, root, checkpoint.size, checkpoint.root, list(trail.proofs[size]))
            roots[size] = said.parent
    return roots


def create_state(folder: Path, origin: str) -> None:
    """Make a witness's empty state, once, when its node joins."""
    Witness.create(folder / STATE_FILE, origin)
