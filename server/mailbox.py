"""Requests out, checked replies in: what the coordinator sees of Flower.

Replies are matched by the message they answer, never by who they say they are, and each is checked by itself: see
`causaldao.server.replies`.

Nothing here blocks: an `Exchange` is one question under way, and whoever holds it polls it. A node that left is lost at
once and asked again when it is back; one that is silent is asked again too, since a SuperNode that was killed after it
took a message never answers it. Nodes answer a repeated question with the same bytes, so the answer to any of its
messages is the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from causaldao.errors import CausalDAOError, NetworkError
from causaldao.members import Roster
from causaldao.server.clock import Clock, SystemClock
from causaldao.server.replies import (
    Accepted,
    Check,
    Checker,
    Equivocation,
    Heard,
    Question,
    Rejected,
    Replies,
    Shows,
    shown,
)
from causaldao.wire import to_records, with_trail

__all__ = [
    "LOST", "Accepted", "Check", "Equivocation", "Exchange", "Heard", "Mailbox", "Question", "Rejected", "Replies",
]  # fmt: skip

T = TypeVar("T")
LOST = "network"  # the code of a member whose node did not answer
POLL_SECONDS, POLL_SECONDS_MOST = 0.25, 1.0  # between two looks for replies: at first, and after a while without any
NODES_SECONDS = 2.0  # between two looks at which nodes are connected
RENEWALS = 5  # in vain: a node says that it has seen more, and there is no more
RESEND_SECONDS = 20.0  # after which a silent node is asked again; doubled each time
_OFFLINE = 5  # Flower's error code for a node that is unavailable: its reply may still come
_GONE = frozenset({3, 4, _OFFLINE})  # and for a message or its reply being unavailable
_AWAY = "did not answer: its node is not connected"
_LOG = logging.getLogger(__name__)


class Mailbox:
    """Flower's grid, and the roster whose keys replies are checked with."""

    def __init__(self, grid: Grid, roster: Roster, clock: Clock | None = None) -> None:
        self._grid = grid
        self._roster = roster
        self._clock = SystemClock() if clock is None else clock

    def nodes(self) -> list[int]:
        """The nodes that are connected now."""
        return sorted(self._grid.get_node_ids())

    def exchange(
        self,
        question: Question,
        ends: float,
        clock: Clock | None = None,
        check: Check = lambda statement, parcel: None,
        heard: Heard | None = None,
        view: Shows | None = None,
    ) -> Exchange:
        """A question that ends at ``ends`` on the clock's monotonic time; nobody is asked yet. ``view`` is what
        it shows of the ledger."""
        clock = self._clock if clock is None else clock
        return Exchange(_Line(self._grid, clock), Checker(self._roster, question, check, heard, view), ends, view)

    def ask(
        self,
        question: Question,
        nodes: Iterable[int],
        timeout: float,
        bound: Mapping[int, str] | None = None,
        check: Check = lambda statement, parcel: None,
        heard: Heard | None = None,
        enough: Callable[[Replies], bool] = lambda replies: False,
    ) -> Replies:
        """Send a question to nodes and check each reply alone; wait until none can answer any more, it is ``enough``,
        or for ``timeout`` seconds.

        ``bound`` says whose node each is (known after the roll call); ``check`` is the step's own and raises a
        CausalDAOError for a reply that it will not have; ``heard`` is what was signed for the same slots before.

        Raises
        ------
        NetworkError
            Flower's grid could not be reached until the end.
        """
        exchange = self.exchange(question, self._clock.monotonic() + timeout, check=check, heard=heard)
        exchange.include({node: (bound or {}).get(node) for node in nodes})
        while exchange.poll() and not enough(exchange.replies):
            exchange.pause()
        if exchange.open():
            exchange.require()
        return exchange.close()


@dataclass
class _Sent:
    """What one node was sent: the messages that it has not answered, and when it is sent the question again."""

    name: str | None
    due: float
    wait: float = RESEND_SECONDS
    ids: set[str] = field(default_factory=set)
    answered: bool = False
    away: bool = False  # by the list of nodes
    renewed: int = 0
    offline: str = ""  # Flower's word on its messages, if it says that the node cannot be reached

    @property
    def open(self) -> bool:
        """Whether it can be expected to answer what it was sent."""
        return not (self.answered or self.away or self.offline)


class Exchange:
    """One question under way: whom it was sent to, and what came back. Poll it until it returns False, with a `pause`
    between; then `close` it."""

    def __init__(self, line: _Line, checker: Checker, ends: float, view: Shows | None = None) -> None:
        self._line = line
        self._view = view
        self._checker = checker
        self._ends = ends
        self._sent: dict[int, _Sent] = {}
        self._look = line.clock.monotonic()
        self._pause = POLL_SECONDS
        self._content = to_records(checker.question.parcel)
        self.connected: frozenset[int] = frozenset()
        """The nodes that were connected when they were last looked at."""

    @property
    def replies(self) -> Replies:
        return self._checker.replies

    def include(self, nodes: Mapping[int, str | None]) -> None:
        """Ask these nodes too, whose members are named where they are known; who is asked already is not asked anew."""
        now = self._line.clock.monotonic()
        for node, name in nodes.items():
            self._sent.setdefault(node, _Sent(name, now))

    def repeat(self, node: int) -> None:
        """Ask a node again that has answered: what it refused for may have been mended."""
        sent = self._sent[node]
        sent.answered, sent.due, sent.wait = False, self._line.clock.monotonic(), RESEND_SECONDS

    def renew(self, node: int) -> bool:
        """Ask a node again that had seen more of the ledger than it was shown; False if it said so often enough while
        there was no more to show."""
        sent = self._sent[node]
        if self._view is None:
            return False
        sent.renewed = 0 if self._view.renew() else sent.renewed + 1
        if sent.renewed > RENEWALS:
            return False
        self.repeat(node)
        return True

    def leave_out(self, name: str, nodes: Iterable[int]) -> None:
        """Ask a member's nodes no more, and take back what it answered."""
        self.replies.accepted.pop(name, None)
        for node in nodes:
            if node in self._sent:
                self._sent[node].answered = True

    def open(self) -> dict[int, str | None]:
        """The nodes that can be expected to answer, and whose they are."""
        return {node: sent.name for node, sent in self._sent.items() if sent.open}

    def poll(self) -> bool:
        """Look once for what came, and ask whom is due; False once nobody can be expected to answer, or at the end."""
        now = self._line.clock.monotonic()
        if now >= self._look:
            self.look()
        before = sum(sent.answered for sent in self._sent.values())
        self._push(now)
        self._pull()
        came = sum(sent.answered for sent in self._sent.values()) > before
        self._pause = POLL_SECONDS if came else min(1.3 * self._pause, POLL_SECONDS_MOST)
        return bool(self.open()) and now < self._ends

    def look(self) -> frozenset[int]:
        """See who is connected: who left is lost at once, who is back is asked at once."""
        now = self._line.clock.monotonic()
        self._look = now + NODES_SECONDS
        connected = self._line.nodes()
        if connected is None:
            return self.connected
        self.connected = connected
        for node, sent in self._sent.items():
            away = node not in connected
            if sent.away and not away:
                sent.due = now
            sent.away = away
        return connected

    def pause(self) -> None:
        """Wait until it is worth looking again."""
        left = self._ends - self._line.clock.monotonic()
        self._line.clock.sleep(max(min(self._pause, left), 0.01))

    def close(self) -> Replies:
        """What came; whoever did not answer, and has no other node that did, is among the rejected as lost."""
        for node, sent in self._sent.items():
            if not sent.answered and sent.name not in self.replies.accepted:
                self.replies.rejected.append(Rejected(sent.name, node, LOST, _silence(sent)))
        return self.replies

    def require(self) -> None:
        """Raise a NetworkError if Flower's grid cannot be reached: then nobody's silence says anything of its node."""
        self._line.require()

    def _push(self, now: float) -> None:
        due = [node for node, sent in self._sent.items() if not sent.answered and not sent.away and now >= sent.due]
        if not due:
            return
        question, left = self._checker.question, max(self._ends - now, 1.0)
        messages = [
            Message(self._for(node), node, question.message_type, ttl=left, group_id=str(question.round))
            for node in due
        ]
        ids = self._line.push(messages)
        for node, name in zip(due, ids or [], strict=False):
            sent = self._sent[node]
            sent.due, sent.wait, sent.offline = now + sent.wait, 2 * sent.wait, ""
            if name is None:
                sent.offline = "did not answer: Flower does not know its node"
            else:
                sent.ids.add(name)

    def _for(self, node: int) -> RecordDict:
        if self._view is None:
            return self._content
        return with_trail(self._content, self._view.trail(self._sent[node].name))

    def _pull(self) -> None:
        asked = {name: node for node, sent in self._sent.items() if not sent.answered for name in sent.ids}
        messages = self._line.pull(asked)
        if messages is None:
            return
        for node in set(asked.values()):
            self._sent[node].offline = ""
        for message in messages:
            # Who answered is known by the message that is answered alone: a source can be forged.
            name = message.metadata.reply_to_message_id
            if name in asked:
                self._take(message, name, asked[name])

    def _take(self, message: Message, name: str, node: int) -> None:
        sent = self._sent[node]
        number = message.error.code if message.has_error() else None
        if number in _GONE:
            sent.offline = _AWAY if number == _OFFLINE else f"did not answer (Flower error {number})"
            if number != _OFFLINE:
                sent.ids.discard(name)
            return
        self._checker.take(message, node, sent.name)
        sent.answered, sent.offline = True, ""
        sent.ids.clear()


def _silence(sent: _Sent) -> str:
    return _AWAY if sent.away else sent.offline or "did not answer in time"


class _Line:
    """The grid behind a guard: what it raises is kept, to be tried again, and is an error only if it lasts."""

    def __init__(self, grid: Grid, clock: Clock) -> None:
        self._grid = grid
        self._trouble: Exception | None = None
        self.clock = clock

    def nodes(self) -> frozenset[int] | None:
        return self._try(lambda: frozenset(self._grid.get_node_ids()))

    def push(self, messages: list[Message]) -> list[str | None] | None:
        """The id of each message, None for one that could not be pushed; None for all if the grid failed."""
        ids = self._try(partial(self._pushed, messages))
        if ids is None or len(ids) == len(messages):
            return ids
        # Flower takes none of what is together too large for one request: they go one by one.
        singly = [self._try(partial(self._pushed, [message])) for message in messages]
        return [found[0] if found else None for found in singly]

    def _pushed(self, messages: list[Message]) -> list[str | None]:
        return list(self._grid.push_messages(messages))

    def pull(self, ids: Iterable[str]) -> list[Message] | None:
        names = list(ids)
        return self._try(lambda: list(self._grid.pull_messages(names))) if names else []

    def require(self) -> None:
        """Raise what the grid raised last, unless it has worked since."""
        if self._trouble is not None:
            raise NetworkError(
                f"Flower's grid cannot be reached ({type(self._trouble).__name__}: {shown(str(self._trouble))}): see "
                "that the SuperLink runs, and run the study again; it goes on where it stopped."
            ) from self._trouble

    def _try(self, act: Callable[[], T]) -> T | None:
        try:
            value = act()
        except CausalDAOError:
            raise
        except Exception as error:
            # Flower's transport raises what it likes. Nothing is lost by trying again until the question's end.
            _LOG.warning("Flower's grid failed and is tried again: %s: %s", type(error).__name__, error)
            self._trouble = error
            return None
        self._trouble = None
        return value
