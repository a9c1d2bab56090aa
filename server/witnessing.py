"""The coordinator's side of witnessing: what a question shows each member of the ledger, and what each says of it.

A question shows everybody one checkpoint, with proofs from what each of them cosigned last; the cosignatures in the
replies are checked, and kept in one transaction when the question ends. So a quorum of cosignatures of one size comes
together at each question.

A member that has seen more than it is shown says so, with the checkpoint that it saw. If that is the log's own and not
part of this ledger, then this ledger was rolled back or replaced: the coordinator stops, since no member will go on
with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from causaldao.errors import CausalDAOError, IdentityError, LedgerError
from causaldao.governance import CHANGES, Epoch
from causaldao.ledger.entry import Entry
from causaldao.ledger.log import Log, Recorded
from causaldao.ledger.note import LOG, Checkpoint, Verifier, check_cosignature, open_note
from causaldao.members import Roster, quorum
from causaldao.messages import fields
from causaldao.server import membership
from causaldao.signing import VerifyKey, peek
from causaldao.trail import REFUSALS, WORDS, Own, Proof, Shown, Trail, Word

_SPOKEN = ("evidence", "ballot", "effects", "update", "privacy.spend")
_MAX_COMPLAINTS = 1000  # of one word of a member
_MAX_COMPLAINT_BYTES = 4096
_MAX_RECEIPTS = 128  # shown at once; the others follow with the next question


class Witnessing:
    """What one study's members were shown of the ledger, and what they said."""

    def __init__(self, log: Log, key: VerifyKey, roster: Roster, study: str, rounds: int = 0) -> None:
        self.log = log
        self._rounds = rounds
        self.roster = roster
        self._study = study
        self._verifier = Verifier(log.head.origin, LOG, key.raw)
        self._known: tuple[int, Epoch] | None = None
        self._last: dict[Verifier, tuple[int, str]] = {}
        self._lines: dict[int, dict[str, str]] = {}
        self._told: dict[str, int] = {}
        self._receipted: dict[str, set[int]] = {}
        self.shown = 0
        """The size of the largest checkpoint that members were shown."""
        self._complaints: dict[tuple[str, str, int], Entry] = {}
        self.fault: LedgerError | None = None
        """What a member's word proves of this ledger: nothing can go on with it."""

    def view(self) -> View:
        """The ledger as a question shows it, with the head as it is now."""
        return View(self)

    def agreed(self) -> Agreed | None:
        """The newest checkpoint that a quorum cosigned: of the members of now, by the keys that they have now; or of
        those of the study, of whom a quorum is enough in it however many were admitted since
        (`causaldao.client.witnessing` counts likewise)."""
        epoch = self._epoch()
        # Of a checkpoint before the last change others decided.
        now = {member.verifier for member in epoch.members.values()}
        found = [self._agreed(now, epoch.quorum, epoch.last_change + 1)]
        if self._study:
            still = now.intersection(member.verifier for member in self.roster.members)
            found.append(self._agreed(still, quorum(len(self.roster.members), self.roster.faulty), 0))
        return max(filter(None, found), key=lambda one: one.checkpoint.size, default=None)

    def _agreed(self, witnesses: Collection[Verifier], least: int, size: int) -> Agreed | None:
        """The newest checkpoint that so many of these witnesses cosigned, if it has at least that size."""
        note = self.log.agreed(witnesses, least)
        found = None if note is None else Agreed(note, open_note(note, self._verifier))
        return found if found is not None and found.checkpoint.size >= size else None

    def _epoch(self) -> Epoch:
        """The federation at the head as last seen; it is asked for at every reply."""
        size = self.log.head.size
        if self._known is None or self._known[0] != size:
            self._known = (size, membership.epoch(self.log, size))
        return self._known[1]

    def require_whole(self) -> None:
        """Raise what was found of this ledger."""
        if self.fault is not None:
            raise self.fault

    def flush(self) -> None:
        """Keep what was cosigned since."""
        for size, lines in sorted(self._lines.items()):
            self.log.keep_cosignatures(size, lines)
        self._lines.clear()

    def last(self, name: str) -> tuple[int, str] | None:
        """Size and cosignature of the checkpoint that a member cosigned last, as far as is known."""
        witness = self._witness(name)
        return self._last.get(witness) or self.log.last_cosigned(witness)

    def _witness(self, name: str) -> Verifier:
        """The key by which a member cosigns now: not one that it gave up since the study was proposed."""
        member = self._epoch().members.get(name)
        return (self.roster.member(name) if member is None else member).verifier

    def heard(self, name: str, said: Word, shown: Collection[str] | None) -> None:
        """Check a member's word; ``shown`` are the notes of which its reply must cosign one, None for a refusal.

        Raises
        ------
        IdentityError
            no cosignature, or one of another checkpoint than was shown.
        """
        if shown is not None and said.note not in shown:
            raise IdentityError("The reply does not cosign the checkpoint that its request showed.")
        if not said.note:
            return
        checkpoint = open_note(said.note, self._verifier)
        check_cosignature(checkpoint, said.line, self._witness(name))
        if checkpoint.size == 0 or not self._ours(name, checkpoint):
            return
        known = self.last(name)
        if known is None or known[0] <= checkpoint.size:
            self._last[self._witness(name)] = (checkpoint.size, said.line)
            self._lines.setdefault(checkpoint.size, {})[name] = said.line
        for text in said.complaints[:_MAX_COMPLAINTS]:
            self._complain(name, text)

    def _ours(self, name: str, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint that a member saw, which the log's key signed, is one of this ledger."""
        head = self.log.refresh()
        if checkpoint.size <= head.size and self.log.root_at(checkpoint.size) == checkpoint.root:
            return True
        self.fault = LedgerError(
            f"{name} cosigned a checkpoint of this log's own key with {checkpoint.size} entries and root "
            f"{checkpoint.root.hex()}, but the database has {head.size} entries and another history: it was rolled "
            "back or replaced, and the members refuse it. Restore the newest copy of the database; nothing was asked "
            "of anybody meanwhile that is not on theirs."
        )
        return False

    def complaints(self) -> list[Entry]:
        """Members' complaints that are not on the ledger yet, to be recorded once: each of another word."""
        found, self._complaints = list(self._complaints.values()), {}
        return found

    def _complain(self, name: str, text: str) -> None:
        """Take note of a member's complaint that its word was withheld: of a word that the study asked for, and of
        which nothing stands on the ledger. What is none is passed over."""
        try:
            said = self.roster.open(text.encode(), study=self._study, round=peek(text.encode()).round, kind="complaint")
            fields(said.body, {"kind": str, "round": int, "given": str, "word": str})
        except (CausalDAOError, ValueError):
            return
        kind, round, slot = said.body["kind"], said.body["round"], (name, said.body["kind"], said.body["round"])
        asked = kind in WORDS and (1 <= round <= self._rounds if kind in ("update", "evaluation") else round == 0)
        if said.member != name or not asked or len(text) > _MAX_COMPLAINT_BYTES or slot in self._complaints:
            return
        if any(_slot(entry) == (kind, round) for entry in self.words(self.log.head.size).get(name, [])):
            return
        body = {
            "study": self._study, "by": name, "member": name, "kind": kind, "round": round, "code": "withheld",
            "reason": f"{name} has no receipt of its {kind}", "envelope": text,
        }  # fmt: skip
        self._complaints[slot] = Entry("complaint", body)

    # what is known of each, in memory: after a restart all of it is shown again

    def told(self, name: str | None) -> int:
        """The last entry on the members that one has been shown and answered to; -1 for nobody."""
        return -1 if name is None else self._told.get(name, -1)

    def took(self, name: str, last: int, receipts: tuple[int, ...]) -> None:
        """Take note that a member has seen the entries up to ``last`` on the members, and these receipts."""
        self._told[name] = max(last, self.told(name))
        self._receipted.setdefault(name, set()).update(receipts)

    def receipted(self, name: str) -> Collection[int]:
        """The entries of a member's words of which it has been shown the receipts, and answered."""
        return self._receipted.get(name, ())

    def words(self, below: int) -> Mapping[str, list[Recorded]]:
        """By member: what became of its words among the study's first ``below`` entries. A word has an entry of its
        own, or one that says why it was not taken."""
        found: dict[str, list[Recorded]] = {}
        for entry in self.log.entries(0, below, kinds=(*_SPOKEN, *REFUSALS), study=self._study):
            if "envelope" in entry.body or (entry.kind in REFUSALS and entry.body["kind"] in WORDS):
                found.setdefault(str(entry.body["member"]), []).append(entry)
        return found

    def changes(self, below: int) -> list[Recorded]:
        """Those of the first ``below`` entries that made the federation what it is: its whole founding, to the first
        study, and each change."""
        proposed = next((entry.index for entry in self.log.entries(0, below, kinds=("study.proposed",))), None)
        ends = 0 if proposed is None else proposed + 1
        return [*self.log.entries(0, ends), *self.log.entries(ends, below, kinds=tuple(CHANGES))]


@dataclass(frozen=True)
class Agreed:
    """A checkpoint that a quorum cosigned, and its signed note with the cosignatures."""

    note: str
    checkpoint: Checkpoint


class View:
    """What one question shows: a checkpoint that stays while the question is asked, unless a member has seen more."""

    def __init__(self, witnessing: Witnessing) -> None:
        self._witnessing = witnessing
        self._packed: dict[str | None, bytes] = {}
        self._sent: dict[str, dict[str | None, tuple[int, tuple[int, ...]]]] = {}
        """By note that was shown: to whom, with which last entry on the members and which receipts."""
        self._note = ""
        self.renew()

    def renew(self) -> bool:
        """Show the head as it is now, with what members have said meanwhile; whether it is another than before.

        Answers to what was shown before are answers still.
        """
        log, before = self._witnessing.log, self._note
        head = log.refresh()
        self._witnessing.flush()  # what came meanwhile may make a quorum
        self._note, self._size = head.note, head.size
        self._sent.setdefault(self._note, {})
        self._witnessing.shown = max(self._witnessing.shown, head.size)
        self._agreed = self._witnessing.agreed()
        self._words = {} if self._agreed is None else self._witnessing.words(self._agreed.checkpoint.size)
        self._changes = self._witnessing.changes(head.size)
        self._packed.clear()
        # One view proves one thing to many.
        self._proof = lru_cache(maxsize=None)(lambda old: tuple(log.consistency_proof(old, head.size)))
        self._included = lru_cache(maxsize=None)(lambda index, size: tuple(log.inclusion_proof(index, size)))
        return self._note != before

    def trail(self, name: str | None) -> bytes:
        """What the node of a member is shown; None: a node that may be anybody's."""
        if name not in self._packed:
            self._packed[name] = self._trail(name).pack()
        return self._packed[name]

    def take(self, name: str, word: bytes, *, refused: bool) -> None:
        """Check what a member's reply says of the ledger. IdentityError for a reply that does not cosign."""
        witnessing = self._witnessing
        if refused and not word:
            return
        said = Word.unpack(word) if word else Word()
        witnessing.heard(name, said, None if refused else self._sent)
        if not refused:
            sent = self._sent[said.note]
            shown = sent.get(name) or sent.get(None)
            if shown is not None:
                witnessing.took(name, *shown)

    def _trail(self, name: str | None) -> Trail:
        witnessing, log, agreed = self._witnessing, self._witnessing.log, self._agreed
        names = witnessing.roster.names if name is None else (name,)
        last = {one: seen for one in names if (seen := witnessing.last(one)) is not None and seen[0] <= self._size}
        changes = [entry for entry in self._changes if entry.index > witnessing.told(name)]
        sizes = {size for size, _ in last.values()} | {size for entry in changes for size in _vote_sizes(entry)}
        receipts = [] if name is None else self._unreceipted(name)
        self._sent[self._note][name] = (changes[-1].index if changes else -1, tuple(entry.index for entry in receipts))
        trail = Trail(
            self._note,
            proofs={size: self._proof(size) for size in sorted(sizes) if 0 < size <= self._size},
            last={one: Own(size, log.root_at(size).hex(), line) for one, (size, line) in last.items()},
            members=tuple(self._entry(entry, self._size) for entry in changes),
        )
        if agreed is None:
            return trail
        size = agreed.checkpoint.size
        shown = tuple(self._entry(entry, size) for entry in receipts)
        return replace(trail, agreed=agreed.note, agreed_proof=self._proof(size), receipts=shown)

    def _unreceipted(self, name: str) -> list[Recorded]:
        """What became of a member's words, as far as it is agreed on and the member has no receipt of it."""
        seen = self._witnessing.receipted(name)
        return [entry for entry in self._words.get(name, ()) if entry.index not in seen][:_MAX_RECEIPTS]

    def _entry(self, entry: Recorded, size: int) -> Shown:
        proof: Proof = self._included(entry.index, size)
        return Shown(entry.index, entry.record, proof)


def _slot(entry: Recorded) -> tuple[str, int]:
    """Kind and round of the word that an entry is, or says something of."""
    kind = entry.kind if entry.kind in WORDS else str(entry.body["kind"])
    return kind, int(entry.body["round"])


def _vote_sizes(entry: Recorded) -> set[int]:
    """The sizes of the checkpoints that an entry's votes name."""
    votes: list[Mapping[str, Any]] = entry.body.get("votes", [])
    return {int(peek(vote["envelope"].encode()).body["size"]) for vote in votes}
