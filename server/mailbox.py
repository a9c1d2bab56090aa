"""Requests out, checked replies in: what the coordinator sees of Flower.

Each reply is checked by itself: size and shape before a byte is copied, signature under the admitted key, slot, tensors
against the signed digest, finiteness, and last the step's own check. A bad reply is quarantined with a reason and the
others go on. Replies are matched by the message they answer, never by who they say they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from causaldao.errors import CausalDAOError, IdentityError
from causaldao.members import Roster
from causaldao.messages import REFUSAL, Parcel, Shape, check_finite, check_tensors
from causaldao.signing import Statement, peek
from causaldao.wire import from_records, to_records

T = TypeVar("T")
TYPES = {"update": "train", "evaluation": "evaluate"}
LOST = "network"  # the code of a member whose node did not answer


@dataclass(frozen=True)
class Question:
    """One request to many: its slot, and what a reply to it must look like."""

    kind: str
    study: str
    round: int
    parcel: Parcel
    tensors: Mapping[str, Shape] = field(default_factory=dict)

    @property
    def message_type(self) -> str:
        return TYPES.get(self.kind, f"query.{self.kind}")


@dataclass(frozen=True)
class Accepted:
    """A verified reply: what it says, its parcel, and the node that brought it."""

    statement: Statement
    parcel: Parcel
    node: int


@dataclass(frozen=True)
class Rejected:
    """A reply that was not taken, and why. ``member`` is None when nobody's signature vouches for it."""

    member: str | None
    node: int
    code: str
    reason: str


@dataclass(frozen=True)
class Equivocation:
    """Two contents that one member signed for one slot: the envelopes are the proof."""

    member: str
    first: bytes
    second: bytes


@dataclass
class Replies:
    """What came back on a question."""

    accepted: dict[str, Accepted] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    equivocations: list[Equivocation] = field(default_factory=list)


class Mailbox:
    """Flower's grid, and the roster whose keys replies are checked with."""

    def __init__(self, grid: Grid, roster: Roster) -> None:
        self._grid = grid
        self._roster = roster

    def nodes(self) -> list[int]:
        """The nodes that are connected now."""
        return sorted(self._grid.get_node_ids())

    def ask(
        self,
        question: Question,
        nodes: Iterable[int],
        timeout: float,
        bound: Mapping[int, str] | None = None,
        check: Callable[[Statement, Parcel], Any] = lambda statement, parcel: None,
    ) -> Replies:
        """Send a question to nodes and check each reply alone.

        ``bound`` says whose node each is (known after the roll call); ``check`` is the step's own and raises a
        CausalDAOError for a reply that it will not have.
        """
        messages = [
            Message(
                to_records(question.parcel), node, question.message_type, ttl=timeout, group_id=str(question.round)
            )
            for node in nodes
        ]
        asked = [message.metadata.dst_node_id for message in messages]
        replies, answered = Replies(), set()
        for message in self._grid.send_and_receive(messages, timeout=timeout):
            node = message.metadata.src_node_id
            if not message.has_error():
                answered.add(node)
                self._take(replies, question, message, (bound or {}).get(node), check)
        for node in asked:
            if node not in answered:
                name = (bound or {}).get(node)
                replies.rejected.append(Rejected(name, node, LOST, "the node did not answer"))
        for equivocation in replies.equivocations:
            replies.accepted.pop(equivocation.member, None)
        return replies

    def _take(
        self,
        replies: Replies,
        question: Question,
        message: Message,
        expected: str | None,
        check: Callable[[Statement, Parcel], Any],
    ) -> None:
        node = message.metadata.src_node_id
        try:
            parcel = from_records(message.content, question.tensors if _answers(message) else {})
            statement = self._verify(question, parcel, expected)
            earlier = replies.accepted.get(statement.member)
            if earlier is not None:
                self._compare(replies, earlier, parcel, statement)
                return
            check_finite(parcel.tensors)
            check(statement, parcel)
        except CausalDAOError as error:
            replies.rejected.append(Rejected(expected, node, error.code, error.message))
        except _Refused as refusal:
            replies.rejected.append(Rejected(refusal.member, node, refusal.code, f"the node refused: {refusal.code}"))
        else:
            replies.accepted[statement.member] = Accepted(statement, parcel, node)

    def _verify(self, question: Question, parcel: Parcel, expected: str | None) -> Statement:
        kind = question.kind
        refused = peek(parcel.envelope).kind == REFUSAL + kind
        statement = self._roster.open(
            parcel.envelope, study=question.study, round=question.round, kind=REFUSAL + kind if refused else kind
        )
        if expected is not None and statement.member != expected:
            raise IdentityError(f"The node of {expected} brought what {statement.member} signed.")
        check_tensors(parcel, statement)
        if refused:
            raise _Refused(statement.member, str(statement.body.get("code", "error"))[:32])
        return statement

    @staticmethod
    def _compare(replies: Replies, earlier: Accepted, parcel: Parcel, statement: Statement) -> None:
        """The same content again is the same answer; another content in one slot is equivocation."""
        if statement.content != earlier.statement.content:
            replies.equivocations.append(
                Equivocation(statement.member, earlier.parcel.envelope, parcel.envelope)
            )


class _Refused(Exception):
    def __init__(self, member: str, code: str) -> None:
        super().__init__(code)
        self.member = member
        self.code = code


def _answers(message: Message) -> bool:
    """Whether a reply carries tensors at all: a refusal has none, whatever the question expects."""
    arrays = message.content.array_records.get("tensors")
    return arrays is not None and len(arrays) > 0
