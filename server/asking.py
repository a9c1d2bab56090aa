"""Asking members: what is asked, whose the nodes are, how each member stands, and what is said of those who did not
answer. How long is waited for whom is in `causaldao.server.waiting`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from causaldao.members import Roster
from causaldao.messages import COORDINATOR, Shape, make
from causaldao.server import checks, membership
from causaldao.server.clock import Clock
from causaldao.server.mailbox import LOST, Check, Exchange, Mailbox, Question, Rejected
from causaldao.server.progress import QUARANTINE, Event
from causaldao.server.recording import Book
from causaldao.server.standing import Standing
from causaldao.server.witnessing import Witnessing
from causaldao.signing import SigningKey, Tensors

REVOKED = "revoked"
NOT_YET = "its owner has not approved the study"


@dataclass(frozen=True)
class Call:
    """What is asked of whom: ``members`` in a slot, of whom ``needed`` must answer."""

    kind: str
    round: int
    members: tuple[str, ...]
    needed: int
    phase: str
    body: Mapping[str, Any]
    tensors: Tensors | None = None
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    check: Check = lambda statement, parcel: None

    @property
    def roll(self) -> bool:
        """Whether it is the roll call, where nobody's node is known yet and people decide."""
        return self.kind == "rollcall"


@dataclass
class Asker:
    """Asks the members of one study, and remembers whose the nodes are and how each member stands."""

    roster: Roster
    key: SigningKey
    book: Book
    mailbox: Mailbox
    clock: Clock
    progress: Callable[[Event], None]
    observe: Callable[[Mapping[str, Standing]], None]
    revoked: Callable[[], frozenset[str]]
    witnessing: Witnessing
    nodes: dict[int, str] = field(init=False, default_factory=dict)
    """By node: the member that it has shown to be the node of."""
    standings: dict[str, Standing] = field(init=False)
    gone: frozenset[str] = field(init=False, default=frozenset())
    """The members that were revoked when it was looked last."""
    asked: list[str] = field(init=False, default_factory=list)
    """Of the question at hand: whoever may have made the release that it asks for."""
    slot: tuple[str, int] = field(init=False, default=("", 0))
    """Of the question at hand: its kind and round."""

    def __post_init__(self) -> None:
        self.standings = {name: Standing("unknown") for name in self.roster.names}
        self._told: dict[str, Standing] = {}

    def begin(self, call: Call) -> None:
        """Fix whom a call is for. Who was convicted in this very slot was asked too, before a crash."""
        barred = {name for name, status in self.book.state.statuses.items() if status["status"] == "excluded"}
        here = {name for name, slot in self.book.convicted.items() if slot == (call.kind, call.round)}
        self.asked = [name for name in call.members if name not in barred - here]
        self.slot = (call.kind, call.round)

    def exchange(self, call: Call, ends: float) -> Exchange:
        """The signed question of a call; nobody is asked yet."""
        study = self.book.study.hash
        parcel = make(
            self.key, federation=self.roster.federation, study=study, round=call.round, member=COORDINATOR,
            kind=call.kind, body=call.body, nonce=secrets.token_hex(16), parent=self.book.log.head.root,
            tensors=call.tensors,
        )  # fmt: skip
        question = Question(call.kind, study, call.round, parcel, call.shapes)
        return self.mailbox.exchange(question, ends, self.clock, call.check, view=self.witnessing.view())

    def search(self, ends: float) -> Exchange:
        """After a resume, or when nodes came back: which node is whose, by each signing a fresh challenge.

        The roll call's answers stand on the ledger, where another member could take one and bring it as its own.
        """
        challenge = secrets.token_hex(16)
        check = checks.challenge(challenge)
        return self.exchange(Call("locate", 0, (), 0, "locate", {"challenge": challenge}, check=check), ends)

    def revocations(self) -> frozenset[str]:
        """The members of the roster that are not heard any more: revoked by the ledger, or by what the caller knows
        besides, or with another key than the one that the study knows them by."""
        now = membership.epoch(self.book.log).members
        rekeyed = {name for name in self.roster.names if name in now and now[name].key != self.roster.key(name)}
        return (self.revoked() | membership.revoked(self.book.log) | rekeyed) & frozenset(self.roster.names)

    def bar_revoked(self) -> frozenset[str]:
        """Exclude who was revoked since, and say so; returns all that are revoked."""
        now = self.revocations()
        for name in sorted(now):
            status = self.book.state.statuses.get(name)
            if status is None or status["status"] != "excluded":
                self.book.state.statuses[name] = {"status": "excluded", "reason": REVOKED}
                self.progress(Event(QUARANTINE, f"{name}: excluded, {REVOKED}"))
        self.gone = now
        return now

    def note(self, kind: str, round: int, rejected: Rejected) -> None:
        """Complaint and status for an answer that was not taken; a member's own text never enters, only codes and our
        reasons."""
        if abstains(kind, rejected):
            self.progress(Event(QUARANTINE, f"{rejected.member}: no vote for the release ({rejected.code})"))
            return
        if not self.book.complain(kind, round, rejected):
            return
        name, statuses = rejected.member, self.book.state.statuses
        if name is not None and statuses.get(name, {}).get("status") != "excluded":
            status = "absent" if rejected.code == LOST or rejected.reason == NOT_YET else "quarantined"
            statuses[name] = {"status": status, "reason": f"{kind}: {rejected.reason}"}
        who = name or f"node {rejected.node}"
        self.progress(Event(QUARANTINE, f"{who}: {kind} not taken ({rejected.code}): {rejected.reason}"))

    def observed(self, standings: Mapping[str, Standing]) -> bool:
        """Tell the observer if somebody stands otherwise than it was told."""
        self.standings.update(standings)
        if self._told == self.standings:
            return False
        self._told = dict(self.standings)
        self.observe(dict(self.standings))
        return True


def abstains(kind: str, rejected: Rejected) -> bool:
    """Whether a member does not vote for a release: its right, and no fault."""
    return kind == "release" and rejected.refused
