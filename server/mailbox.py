"""Requests out, checked replies in: what the coordinator sees of Flower.

Each reply is checked by itself: size and shape before a byte is copied, signature under the admitted key, slot, tensors
against the signed digest, finiteness, and last the step's own check. A bad reply is quarantined with a reason and the
others go on. Replies are matched by the message they answer, never by who they say they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from causaldao.errors import CausalDAOError, IdentityError
from causaldao.members import Roster
from causaldao.messages import REFUSAL, Parcel, Shape, check_finite, check_shapes, check_tensors
from causaldao.signing import Statement, peek
from causaldao.wire import from_records, to_records

Heard = dict[str, tuple[str, bytes]]
TYPES = {"update": "train", "evaluation": "evaluate"}
LOST = "network"  # the code of a member whose node did not answer
FAILED = "error"  # the code of a reply that says nothing: the node's app raised, or what it sent cannot be read
_GONE = frozenset({3, 4, 5})  # Flower's error codes for a message, its reply or its node being unavailable
_MAX_WORD = 64  # characters of a statement's nonce and parent
_MAX_REASON = 300  # characters of a reason: a member must not fill the ledger with its own text
_CODE = re.compile(r"[a-z-]{1,32}")
# What a crafted reply can make a parser raise. One member's reply must never end the study.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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
    heard: Heard = field(default_factory=dict)
    """By member: content and envelope of what it signed for the slot first, whether it was taken or not."""


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
        heard: Heard | None = None,
    ) -> Replies:
        """Send a question to nodes and check each reply alone.

        ``bound`` says whose node each is (known after the roll call); ``check`` is the step's own and raises a
        CausalDAOError for a reply that it will not have; ``heard`` is what was signed for the same slots before.
        """
        messages = [
            Message(to_records(question.parcel), node, question.message_type, ttl=timeout, group_id=str(question.round))
            for node in nodes
        ]
        if not messages:
            return Replies(heard={} if heard is None else heard)
        received = list(self._grid.send_and_receive(messages, timeout=timeout))
        # The grid gives each request its id; who answered is known by it alone: a source can be forged.
        asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        replies, answered = Replies(heard={} if heard is None else heard), set()
        for message in received:
            node = asked.get(message.metadata.reply_to_message_id)
            if node is not None:
                answered.add(node)
                self._take(replies, question, message, node, (bound or {}).get(node), check)
        for node in asked.values():
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
        node: int,
        expected: str | None,
        check: Callable[[Statement, Parcel], Any],
    ) -> None:
        try:
            parcel = _parcel(question, message)
            statement = self._verify(question, parcel, expected)
            if self._heard_before(replies, statement, parcel):
                return
            check_shapes(parcel.tensors, question.tensors)
            check_finite(parcel.tensors)
            check(statement, parcel)
        except CausalDAOError as error:
            replies.rejected.append(Rejected(expected, node, error.code, _shown(error.message)))
        except _Refused as refusal:
            reason = f"the node refused: {refusal.code}"
            replies.rejected.append(Rejected(refusal.member or expected, node, refusal.code, reason))
        except _Failed as failure:
            replies.rejected.append(Rejected(expected, node, failure.code, str(failure)))
        except _MALFORMED as error:
            reason = f"the reply cannot be read ({type(error).__name__})"
            replies.rejected.append(Rejected(expected, node, FAILED, reason))
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
        if max(len(statement.nonce), len(statement.parent)) > _MAX_WORD:
            raise IdentityError(f"A nonce and a parent have at most {_MAX_WORD} characters: this reply has more.")
        check_tensors(parcel, statement)
        if refused:
            raise _Refused(statement.member, _code(statement.body.get("code")))
        return statement

    @staticmethod
    def _heard_before(replies: Replies, statement: Statement, parcel: Parcel) -> bool:
        """The same content again is the same answer; another content in one slot is equivocation.

        What is not taken for its content counts too: it was signed all the same.
        """
        heard = replies.heard.setdefault(statement.member, (statement.content, parcel.envelope))
        if heard[0] != statement.content:
            replies.equivocations.append(Equivocation(statement.member, heard[1], parcel.envelope))
        return heard[1] is not parcel.envelope


class _Refused(Exception):
    """A refusal; ``member`` is None if nobody signed it."""

    def __init__(self, member: str | None, code: str) -> None:
        super().__init__(code)
        self.member = member
        self.code = code


class _Failed(Exception):
    """Flower's own word that there is no answer: the node is gone, or its app raised."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def _parcel(question: Question, message: Message) -> Parcel:
    if message.has_error():
        number = message.error.code
        if number in _GONE:
            raise _Failed(LOST, f"the node did not answer (Flower error {number})")
        raise _Failed(FAILED, f"the node's app failed (Flower error {number})")
    if "refused" in message.content.config_records:
        raise _Refused(None, _code(message.content.config_records["refused"].get("code")))
    return from_records(message.content, question.tensors if _answers(message) else {})


def _answers(message: Message) -> bool:
    """Whether a reply carries tensors at all: a refusal has none, whatever the question expects."""
    arrays = message.content.array_records.get("tensors")
    return arrays is not None and len(arrays) > 0


def _code(value: object) -> str:
    """A member's error code, if it is one: free text has no way into the ledger."""
    return value if isinstance(value, str) and _CODE.fullmatch(value) else FAILED


def _shown(reason: str) -> str:
    """A reason as it may be recorded: some quote what a member sent."""
    return reason.encode("utf-8", "replace").decode()[:_MAX_REASON]
