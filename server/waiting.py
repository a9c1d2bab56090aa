"""How long is waited for whom.

A question goes on until enough members have answered, and then for as long again as that took, so that whoever is a
little slower is heard too; who is later than that is absent in this step and can answer in the next. If too few answer,
their nodes have until the study's deadline to come. The roll call waits for people: a node that refuses has not
approved *yet*, and is asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from causaldao.errors import GuaranteeError, RefusedError, StaleError, by_code
from causaldao.messages import names_of
from causaldao.server.asking import NOT_YET, REVOKED, Asker, Call, abstains
from causaldao.server.mailbox import LOST, NODES_SECONDS, Accepted, Exchange, Rejected
from causaldao.server.progress import QUARANTINE, WAITING, Event
from causaldao.server.standing import Standing, why

GRACE_SECONDS = 10.0  # at least so long is waited for the others once enough have answered
ROLLCALL_SECONDS = 15.0  # after which a node that refused, or whose answer was not taken, is asked again
TELL_SECONDS = 15.0  # nobody waits longer than that without a word
_TOLD_BY_ROUND = ("training", "evaluate")  # a complete round has a line of its own


def collect(asker: Asker, call: Call) -> dict[str, Accepted]:
    """The accepted replies of enough members; what was not taken is noted in the book.

    Raises
    ------
    GuaranteeError
        too few answered within the study's deadline.
    NetworkError
        too few answered, and Flower's grid could not be reached at the end.
    """
    asker.begin(call)
    return _Waiting(asker, call).answers()


class _Waiting:
    """One call under way."""

    def __init__(self, asker: Asker, call: Call) -> None:
        self._asker, self._call, self._clock = asker, call, asker.clock
        self._began = self._latest = self._clock.monotonic()
        self._ends = self._began + asker.book.study.members.deadline
        self._exchange = asker.exchange(call, self._ends)
        self._search: Exchange | None = None
        self._before = dict(asker.book.state.statuses)
        self._accepted: dict[str, Accepted] = {}
        self._words: dict[str | int, Rejected] = {}  # the last that was not taken of a member, or of a nameless node
        self._again: dict[int, float] = {}  # nodes to be asked again, and when
        self._read = self._sought = self._convicted = 0
        self._enough: float | None = None
        self._next_watch = self._next_word = self._began
        self._said = self._announced = ""

    def answers(self) -> dict[str, Accepted]:
        while True:
            self._watch()
            self._exchange.poll()
            self._hear()
            if self._over():
                self._bar()  # what is decided next must not rest on who was revoked a moment ago
                if self._over():
                    break
            self._tell()
            self._exchange.pause()
        return self._close()

    # who is asked

    @property
    def _statuses(self) -> dict[str, dict[str, str]]:
        return self._asker.book.state.statuses

    def _barred(self, name: str) -> bool:
        return self._statuses.get(name, {}).get("status") == "excluded"

    @property
    def _eligible(self) -> list[str]:
        return [name for name in self._call.members if not self._barred(name)]

    @property
    def _missing(self) -> list[str]:
        return [name for name in self._eligible if name not in self._accepted]

    def _watch(self) -> None:
        """Every other second: who was revoked, who is connected, whose the new nodes are, who is asked again."""
        now = self._clock.monotonic()
        if now >= self._next_watch:
            self._next_watch = now + NODES_SECONDS
            self._bar()
            connected = self._exchange.look()
            if self._call.roll:
                self._exchange.include({node: None for node in sorted(connected) if not self._stranger(node)})
            else:
                self._find(connected)
            self._repeat(now)
        if self._search is not None:
            self._search.poll()
            self._located(self._search)

    def _stranger(self, node: int) -> bool:
        """Whether a node is that of a member who is not asked any more."""
        name = self._asker.nodes.get(node)
        return name is not None and self._barred(name)

    def _bar(self) -> None:
        for name in self._asker.bar_revoked():
            self._leave_out(name)
        self._tally(self._clock.monotonic())

    def _leave_out(self, name: str) -> None:
        nodes = [node for node, whose in self._asker.nodes.items() if whose == name]
        self._exchange.leave_out(name, nodes)
        self._accepted.pop(name, None)
        for node in nodes:
            self._again.pop(node, None)

    def _find(self, connected: frozenset[int]) -> None:
        """Ask the nodes of those who are missing; look for the nodes of those who have none."""
        missing, nodes = set(self._missing), self._asker.nodes
        # Of two nodes of one member that which was found last: the other may be a ghost that Flower has not missed yet.
        bound = {name: node for node, name in nodes.items() if node in connected and name in missing}
        self._exchange.include({node: name for name, node in bound.items()})
        unknown = sorted(connected - nodes.keys())
        if missing <= set(bound) or not unknown:
            return
        if self._search is None:
            self._search = self._asker.search(self._ends)
        self._search.include(dict.fromkeys(unknown))

    def _located(self, search: Exchange) -> None:
        missing = set(self._missing)
        while self._sought < len(search.replies.rejected):
            rejected = search.replies.rejected[self._sought]
            self._sought += 1
            if _stale(rejected) and search.renew(rejected.node):
                continue
            if rejected.refused and rejected.member is not None:  # a member that is not in this study: asked once
                self._asker.nodes.setdefault(rejected.node, rejected.member)
        for name, reply in search.replies.accepted.items():
            if name in self._asker.book.state.present and reply.node not in self._asker.nodes:
                self._asker.nodes[reply.node] = name
                if name in missing:
                    self._exchange.include({reply.node: name})

    def _repeat(self, now: float) -> None:
        """Ask again where what was refused may have been mended: at the roll call always, later if answers lack."""
        if not self._call.roll and self._enough is not None:
            return
        for node, due in list(self._again.items()):
            if now >= due:
                del self._again[node]
                self._exchange.repeat(node)

    # what is heard

    def _hear(self) -> None:
        replies, now = self._exchange.replies, self._clock.monotonic()
        self._asker.witnessing.require_whole()
        for rejected in replies.rejected[self._read :]:
            if not (_stale(rejected) and self._exchange.renew(rejected.node)):
                self._reject(rejected, now)
        self._read = len(replies.rejected)
        for equivocation in replies.equivocations[self._convicted :]:
            if not self._barred(equivocation.member):
                self._asker.book.convict(self._call.kind, self._call.round, equivocation)
                reason = self._statuses[equivocation.member]["reason"]
                self._asker.progress(Event(QUARANTINE, f"{equivocation.member}: excluded, {reason}"))
            self._leave_out(equivocation.member)
        self._convicted = len(replies.equivocations)
        missing = self._missing
        for name in [name for name in missing if name in replies.accepted]:
            self._accept(name, replies.accepted[name], now)
        self._tally(now)

    def _tally(self, now: float) -> None:
        """Since when there are enough; a revocation may take that back."""
        if len(self._accepted) < self._call.needed:
            self._enough = None
        elif self._enough is None:
            self._enough = now

    def _accept(self, name: str, reply: Accepted, now: float) -> None:
        self._accepted[name], self._asker.nodes[reply.node], self._latest = reply, name, now
        self._words.pop(reply.node, None)
        if self._words.pop(name, None) is not None:  # a retry that succeeded leaves no stain
            self._statuses.pop(name, None)
            self._statuses.update({name: self._before[name]} if name in self._before else {})

    def _reject(self, rejected: Rejected, now: float) -> None:
        name = rejected.member
        if name is not None and self._barred(name):
            self._leave_out(name)
            return
        if rejected.refused and name is not None:  # signed: whose node it is, is known
            self._asker.nodes[rejected.node] = name
        if name not in self._accepted:
            self._words[rejected.node if name is None else name] = rejected
            self._again[rejected.node] = now + ROLLCALL_SECONDS
        if not self._not_yet(rejected):  # who has not approved yet did nothing that is to be complained of
            self._asker.note(self._call.kind, self._call.round, rejected)

    def _not_yet(self, rejected: Rejected) -> bool:
        return self._call.roll and rejected.refused and rejected.code == RefusedError.code

    # how long is waited

    def _over(self) -> bool:
        now, missing = self._clock.monotonic(), self._missing
        if now >= self._ends or not missing or len(self._eligible) < self._call.needed:
            return True
        if self._enough is None:
            return False
        since = self._latest if self._call.roll else self._enough
        if now >= since + max(GRACE_SECONDS, since - self._began):
            return True
        return not self._call.roll and not self._hoped(missing)

    def _hoped(self, missing: Sequence[str]) -> list[str | int]:
        """Of those who are missing: who can be expected to answer, by name, or by node where that is not known."""
        hoped: list[str | int] = [
            node if name is None else name
            for node, name in self._exchange.open().items()
            if name is None or name in missing
        ]
        return [*hoped, *(self._search.open() if self._search is not None else [])]

    # what is said

    def _tell(self) -> None:
        now, call = self._clock.monotonic(), self._call
        changed = self._asker.observed(self._standings())
        reached = len(self._accepted) + len(self._hoped(self._missing))
        if reached < call.needed:
            self._announce(reached)
        line = self._line()
        if changed or line != self._said or now >= self._next_word:
            self._said, self._next_word = line, now + TELL_SECONDS
            self._asker.progress(Event(call.phase, line, len(self._accepted), len(call.members)))

    def _announce(self, reached: int) -> None:
        connected, call = self._exchange.connected, self._call
        known = {name for node, name in self._asker.nodes.items() if node in connected}
        missing = [] if call.roll else [name for name in self._missing if name not in known or name in self._words]
        who = f"; missing: {names_of(missing)}" if missing else ""
        message = f"{reached} of {call.needed} members for {call.kind}{who}"
        if message != self._announced:
            self._announced = message
            self._asker.progress(Event(WAITING, message))

    def _line(self) -> str:
        call, told = self._call, self._count()
        if not call.roll:
            return f"{told}; waiting for {names_of(self._missing)}"
        parts = [f"{len(self._accepted)} of {len(call.members)} approved"]
        declined = [word for word in self._words.values() if word.code != LOST and not self._not_yet(word)]
        if declined:
            parts.append(f"{len(declined)} declined{why(word.code for word in declined)}")
        pending = sum(self._not_yet(word) for word in self._words.values())
        return ", ".join([*parts, *([f"{pending} pending"] if pending else [])])

    def _count(self) -> str:
        return f"{len(self._accepted)} of {len(self._call.members)} members, {self._call.needed} needed"

    def _standings(self) -> dict[str, Standing]:
        connected = self._exchange.connected
        spoken = {word.node for word in self._words.values()} | {reply.node for reply in self._accepted.values()}
        known = {name for node, name in self._asker.nodes.items() if node in connected}
        silent = bool(connected - spoken - self._asker.nodes.keys())
        return {name: self._standing(name, name in known, silent) for name in self._call.members}

    def _standing(self, name: str, connected: bool, silent: bool) -> Standing:
        """``silent``: whether there are nodes of which it is not known yet whose they are."""
        roll, word = self._call.roll, self._words.get(name)
        if name in self._asker.gone:
            return Standing(REVOKED, REVOKED)
        if self._barred(name):
            return Standing("excluded", self._statuses[name]["reason"])
        if name in self._accepted:
            return Standing("approved" if roll else "answered")
        if word is None:
            return Standing(
                ("pending" if roll else "asked") if connected else "unknown" if roll and silent else "not connected"
            )
        code = by_code(word.code).exit_code
        if self._not_yet(word):
            return Standing("pending", NOT_YET, word.code, code)
        if roll and word.refused:
            return Standing("declined", word.reason, word.code, code)
        return Standing("absent" if word.code == LOST else "quarantined", word.reason, word.code, code)

    # the end

    def _close(self) -> dict[str, Accepted]:
        call, count = self._call, len(self._accepted)
        self._asker.witnessing.flush()
        if count < call.needed:
            self._exchange.require()
        self._note_missing()
        self._asker.observed(self._standings())
        if call.phase not in _TOLD_BY_ROUND or count < len(call.members):
            self._asker.progress(Event(call.phase, self._count(), count, len(call.members)))
        if count < call.needed:
            raise self._too_few()
        return {name: self._accepted[name] for name in sorted(self._accepted)}

    def _note_missing(self) -> None:
        """Say of each that is missing why: it is pending, its node did not answer, it has none, or it was revoked."""
        call, note = self._call, self._asker.note
        for word in [word for word in self._words.values() if self._not_yet(word)]:
            note(call.kind, call.round, Rejected(word.member, word.node, word.code, NOT_YET, refused=True))
        known = self._asker.book.complained(call.kind, call.round)
        for rejected in self._exchange.close().rejected[self._read :]:
            name = rejected.member or self._asker.nodes.get(rejected.node)
            if name is None or (name in self._missing and name not in known):
                lost = replace(rejected, member=name)
                note(call.kind, call.round, lost)
                self._words.setdefault(lost.node if name is None else name, lost)
        known = self._asker.book.complained(call.kind, call.round)
        known |= {name for name in self._missing if (said := self._words.get(name)) and abstains(call.kind, said)}
        for name in [name for name in self._missing if name not in known]:
            self._words[name] = Rejected(name, 0, LOST, "none of its nodes answered")
            note(call.kind, call.round, self._words[name])
        for name in sorted(self._asker.gone & set(call.members)):
            self._asker.book.complain(call.kind, call.round, Rejected(name, 0, REVOKED, REVOKED))

    def _too_few(self) -> GuaranteeError:
        call, missing = self._call, [name for name in self._call.members if name not in self._accepted]
        reasons = "; ".join(f"{name}: {self._statuses[name]['reason']}" for name in missing if name in self._statuses)
        return GuaranteeError(
            f"Only {len(self._accepted)} of the {call.needed} members that {call.kind!r} needs answered within "
            f"{self._asker.book.study.members.deadline:g} s; missing: {names_of(missing)}. {reasons}. "
            "Bring their nodes up and resume, or declare a smaller faulty."
        )


def _stale(rejected: Rejected) -> bool:
    """Whether a node has seen more of the ledger than it was shown: not its fault, and mended by showing it more."""
    return rejected.refused and rejected.member is not None and rejected.code == StaleError.code
