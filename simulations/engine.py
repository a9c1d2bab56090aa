"""The inline engine: Flower's `Grid` in one process, without Ray. Seeded, with faults on demand.

Every message goes through Flower's own bytes and back, so that what works here works on the wire; each member's Context
is its own. Flower keeps the identity of the running task in a process-wide place: it is swapped for each delivery and
restored after it, here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from causaldao.server.clock import Clock

SERVER = 1  # Flower's id for the ServerApp
RUN = 1
_RAISED = 2  # Flower's error code for a ClientApp that raised
_FIRST_NODE = 1000


@dataclass(frozen=True)
class Faults:
    """What may happen to messages. ``request`` answers whether a request reaches its node; ``replies`` may drop,
    duplicate, reorder or replace what is pulled together: here all that comes back on one question, since nodes answer
    as soon as they are asked."""

    request: Callable[[Message], bool] = lambda message: True
    replies: Callable[[list[Message]], list[Message]] = lambda messages: messages


NO_FAULTS = Faults()


@dataclass
class InlineGrid(Grid):
    """A grid over ClientApps in this process; node ids are 1000, 1001, … in the order of ``apps``."""

    apps: Mapping[str, ClientApp]
    clock: Clock
    faults: Faults = NO_FAULTS
    node_config: Mapping[str, Mapping[str, bool | float | int | str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._contexts = {
            _FIRST_NODE + k: Context(RUN, _FIRST_NODE + k, dict(self.node_config.get(name, {})), RecordDict(), {})
            for k, name in enumerate(self.apps)
        }
        self._clients = dict(zip(self._contexts, self.apps.values(), strict=True))
        self._run = Run.create_empty(RUN)
        self._sent = 0
        self._inbox: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """What came back, through ``faults.replies``; each message once."""
        found = [self._inbox.pop(name) for name in message_ids if name in self._inbox]
        return self.faults.replies(found) if found else []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver in order. A message that is lost costs the whole timeout, on the injected clock."""
        ids = list(self.push_messages(messages))
        replies = list(self.pull_messages(ids))
        if timeout is not None and len({reply.metadata.src_node_id for reply in replies}) < len(ids):
            self.clock.sleep(timeout)
        return replies

    def _deliver(self, message: Message) -> str:
        self._sent += 1
        message_id = f"message-{self._sent}"
        message.metadata.__dict__["_message_id"] = message_id
        if self.faults.request(message):
            node = message.metadata.dst_node_id
            with identity(node):
                reply = self._handle(node, through_bytes(message))
            self._inbox[message_id] = reply
        return message_id

    def _handle(self, node: int, message: Message) -> Message:
        try:
            return self._numbered(self._clients[node](message, self._contexts[node]))
        except Exception as error:
            # What a ClientApp raises, or returns in place of a message, must not end the round: it is a code.
            return self._numbered(Message(Error(_RAISED, type(error).__name__), reply_to=message))

    def _numbered(self, reply: Message) -> Message:
        reply.metadata.__dict__["_message_id"] = f"reply-{self._sent}"
        return through_bytes(reply)


def through_bytes(message: Message) -> Message:
    """A message as it comes out of Flower's own serialisation."""
    data = message_to_proto(message).SerializeToString()
    return message_from_proto(ProtoMessage.FromString(data))


def run(app: ServerApp, grid: InlineGrid, run_config: dict[str, bool | float | int | str] | None = None) -> None:
    """Run a ServerApp on an inline grid."""
    with identity(SERVER):
        app(grid, Context(RUN, SERVER, {}, RecordDict(), run_config or {}))


@contextmanager
def identity(node: int) -> Iterator[None]:
    """Flower's task identity for the time of one delivery."""
    identity: Any = TaskIdentity
    names = ("_run_id", "_node_id", "_task_id")
    before = [getattr(identity, name) for name in names]
    for name, value in zip(names, (RUN, node, node), strict=True):
        setattr(identity, name, value)
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(identity, name, value)
