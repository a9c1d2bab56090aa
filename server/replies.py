"""What came back on one question, each reply checked by itself.

Size and shape before a byte is copied, signature under the admitted key, slot, tensors against the signed digest,
finiteness, and last the step's own check. A bad reply is quarantined with a reason and the others go on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.app import Message

from causaldao.errors import CausalDAOError, IdentityError
from causaldao.members import Roster
from causaldao.messages import REFUSAL, Parcel, Shape, check_finite, check_shapes, check_tensors
from causaldao.signing import Statement, peek
from causaldao.wire import from_records

Heard = dict[str, tuple[str, bytes]]
Check = Callable[[Statement, Parcel], Any]


class Shows(Protocol):
    """What a question shows of the ledger: see `causaldao.server.witnessing.View`."""

    def trail(self, name: str | None) -> bytes:
        """The record for the node of a member; None: a node that may be anybody's."""

    def take(self, name: str, word: bytes, *, refused: bool) -> None:
        """Check what a member's reply says of the ledger; a CausalDAOError for a reply that cannot be taken."""

    def renew(self) -> bool:
        """Show the ledger as it is now; whether that is another than before."""


TYPES = {"update": "train", "evaluation": "evaluate"}
FAILED = "error"  # the code of a reply that says nothing: the node's app raised, or what it sent cannot be read
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
    """A reply that was not taken, and why. ``member`` is None when nobody's signature vouches for it; ``refused`` says
    that the code is the node's own word."""

    member: str | None
    node: int
    code: str
    reason: str
    refused: bool = False


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


class Checker:
    """What came back on one question, each reply checked by itself."""

    def __init__(
        self, roster: Roster, question: Question, check: Check, heard: Heard | None, view: Shows | None = None
    ) -> None:
        self._roster = roster
        self._check = check
        self._view = view
        self.question = question
        self.replies = Replies(heard={} if heard is None else heard)

    def take(self, message: Message, node: int, expected: str | None) -> None:
        """Check a reply that ``node`` brought; ``expected`` is the member whose node it is, if that is known."""
        replies, question = self.replies, self.question
        try:
            parcel = _parcel(question, message)
            statement = self._verify(question, parcel, expected)
            if self._heard_before(replies, statement, parcel):
                return
            check_shapes(parcel.tensors, question.tensors)
            check_finite(parcel.tensors)
            self._check(statement, parcel)
            if self._view is not None:
                self._view.take(statement.member, parcel.trail, refused=False)
        except CausalDAOError as error:
            replies.rejected.append(Rejected(expected, node, error.code, shown(error.message)))
        except _Refused as refusal:
            reason = f"the node refused: {refusal.code}"
            replies.rejected.append(Rejected(refusal.member or expected, node, refusal.code, reason, refused=True))
        except _Failed as failure:
            replies.rejected.append(Rejected(expected, node, FAILED, str(failure)))
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
            self._hear_refusal(statement.member, parcel.trail)
            raise _Refused(statement.member, _code(statement.body.get("code")))
        return statement

    def _hear_refusal(self, member: str, word: bytes) -> None:
        if self._view is not None:
            with suppress(CausalDAOError):  # a refusal is one, whatever it says besides
                self._view.take(member, word, refused=True)

    @staticmethod
    def _heard_before(replies: Replies, statement: Statement, parcel: Parcel) -> bool:
        """The same content again is the same answer; another content in one slot is equivocation.

        What is not taken for its content counts too: it was signed all the same.
        """
        heard = replies.heard.setdefault(statement.member, (statement.content, parcel.envelope))
        if heard[0] != statement.content:
            replies.equivocations.append(Equivocation(statement.member, heard[1], parcel.envelope))
            replies.accepted.pop(statement.member, None)
        equivocated = any(found.member == statement.member for found in replies.equivocations)
        # What was not taken for what it said of the ledger may come again, and say it better.
        return heard[1] is not parcel.envelope and (equivocated or statement.member in replies.accepted)


class _Refused(Exception):
    """A refusal; ``member`` is None if nobody signed it."""

    def __init__(self, member: str | None, code: str) -> None:
        super().__init__(code)
        self.member = member
        self.code = code


class _Failed(Exception):
    """Flower's own word that the node's app failed."""


def _parcel(question: Question, message: Message) -> Parcel:
    if message.has_error():
        raise _Failed(f"the node's app failed (Flower error {message.error.code})")
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


def shown(reason: str) -> str:
    """A reason as it may be recorded: some quote what a member sent."""
    return reason.encode("utf-8", "replace").decode()[:_MAX_REASON]
