"""A grid that is polled, as Flower's is on a network: nodes answer late, leave, come back, and the grid itself fails.

Time is a clock that only moves when somebody sleeps, and does on its way what is due.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from causaldao.messages import Parcel
from causaldao.simulations.engine import identity, through_bytes
from causaldao.wire import from_records, to_records

Answer = tuple[float, Parcel | Error | RecordDict]
"""How many seconds after it was asked a node says what."""
Behaviour = Callable[[Parcel], Iterable[Answer]]
_OFFLINE = Error(5, "the node is offline")


class FakeClock:
    """Moves only by sleeping; `at` plans what happens on the way."""

    def __init__(self) -> None:
        self._time = 0.0
        self._plans: list[tuple[float, int, Callable[[], Any]]] = []
        self._numbers = itertools.count()

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._time)

    def monotonic(self) -> float:
        return self._time

    def at(self, time: float, act: Callable[[], Any]) -> None:
        heapq.heappush(self._plans, (time, next(self._numbers), act))

    def sleep(self, seconds: float) -> None:
        assert seconds > 0, "a loop that does not wait burns a core"
        end = self._time + seconds
        while self._plans and self._plans[0][0] <= end:
            self._time, _, act = heapq.heappop(self._plans)
            act()
        self._time = end


@dataclass
class Wire(Grid):
    """Nodes by id with what they answer; ``connected`` are those that are there. ``fail`` is raised by every call of
    the grid while it is set."""

    clock: FakeClock
    nodes: dict[int, Behaviour]
    connected: set[int] = field(init=False)
    fail: Exception | None = field(init=False, default=None)
    too_large: int | None = field(init=False, default=None)
    """More messages than this in one push are refused whole, as Flower refuses a request that is too large."""
    pushed: list[tuple[float, int, float]] = field(init=False, default_factory=list)
    """When which node was sent a message that lives for how many seconds."""
    looks: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.connected = set(self.nodes)
        self._asked: dict[str, int] = {}
        self._ready: list[tuple[float, str, Message]] = []

    def asked(self, node: int) -> list[float]:
        """The times at which a node was sent something."""
        return [time for time, whom, _ in self.pushed if whom == node]

    def set_run(self, run: Run) -> None:
        raise AssertionError("not used")

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise AssertionError("not used")

    def send_and_receive(self, *_: Any, **__: Any) -> Iterable[Message]:
        raise AssertionError("it blocks until the last node has answered")

    def get_node_ids(self) -> Iterable[int]:
        self._work()
        self.looks += 1
        return sorted(self.connected)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[Any]:
        self._work()
        found = list(messages)
        if self.too_large is not None and len(found) > self.too_large:
            return []
        return [self._send(message) for message in found]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._work()
        ids, now = set(message_ids), self.clock.monotonic()
        came = [(name, message) for time, name, message in self._ready if name in ids and time <= now]
        self._ready = [item for item in self._ready if not (item[1] in ids and item[0] <= now)]
        answered = {name for name, _ in came}
        gone = [name for name in ids - answered if self._asked[name] not in self.connected]
        return [message for _, message in came] + [self._reply(name, _OFFLINE) for name in gone]

    def _work(self) -> None:
        if self.fail is not None:
            raise self.fail

    def _send(self, message: Message) -> str | None:
        node, now = message.metadata.dst_node_id, self.clock.monotonic()
        if node not in self.nodes:
            return None
        assert message.metadata.ttl > 0
        name = f"message-{len(self._asked) + 1}"
        message.metadata.__dict__["_message_id"] = name
        self._asked[name] = node
        self.pushed.append((now, node, message.metadata.ttl))
        parcel = from_records(through_bytes(message).content)
        for delay, answer in self.nodes[node](parcel):
            self._ready.append((now + delay, name, self._reply(name, answer)))
        return name

    def _reply(self, name: str, answer: Parcel | Error | RecordDict) -> Message:
        content: Any = to_records(answer) if isinstance(answer, Parcel) else answer
        with identity(1):
            question = Message(RecordDict(), self._asked[name], "query.x")
            question.metadata.__dict__["_message_id"] = name
            return Message(content, reply_to=question)


def silent(parcel: Parcel) -> Iterable[Answer]:
    """A node that takes what it is sent and says nothing."""
    return []


def says(answer: Parcel | Error | RecordDict, after: float = 0.5) -> Behaviour:
    """A node that always answers the same."""
    return lambda parcel: [(after, answer)]


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """A node that behaves otherwise each time it is asked; the last goes on."""
    times = itertools.count()
    return lambda parcel: behaviours[min(next(times), len(behaviours) - 1)](parcel)


class NoWitnesses:
    """In the place of `causaldao.server.witnessing.Witnessing`, where nodes know nothing of a ledger."""

    def view(self) -> None:
        return None

    def require_whole(self) -> None:
        return None

    def flush(self) -> None:
        return None
