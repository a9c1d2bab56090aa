"""One bad reply among good ones: each kind is refused with its reason, and the others are taken."""

from __future__ import annotations

import dataclasses
import re
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from causaldao.errors import ConfigurationError
from causaldao.members import Member, Roster
from causaldao.messages import REFUSAL, Parcel, Shape, make
from causaldao.server.clock import SimulatedClock
from causaldao.server.mailbox import Mailbox, Question, Replies
from causaldao.signing import SigningKey
from causaldao.simulations.engine import Faults, InlineGrid, identity
from causaldao.wire import to_records

KEYS = {name: SigningKey.from_seed(name.encode() * 8) for name in ("ann0", "bob0", "cat0")}
STRANGER = SigningKey.from_seed(b"S" * 32)
WITNESSES = {name: SigningKey.from_seed(name.encode().ljust(32, b"w")) for name in KEYS}
ROSTER = Roster("fed", tuple(Member(name, key.public, WITNESSES[name].public) for name, key in KEYS.items()), 0)
STUDY = "5" * 64
GOOD = {"x": np.array([1.0, 2.0, 3.0])}
BOUND = {1000: "ann0", 1001: "bob0", 1002: "cat0"}
App = Callable[[Message, Context], Any]


def parcel(name: str = "bob0", *, key: SigningKey | None = None, tensors: Any = None, **changed: Any) -> Parcel:
    """A member's reply, with anything about it changed."""
    given: dict[str, Any] = {
        "federation": "fed",
        "study": STUDY,
        "round": 1,
        "member": name,
        "kind": "update",
        "body": {},
        "nonce": "n",
        "parent": "p",
        **changed,
    }
    return make(key or KEYS[name], tensors=GOOD if tensors is None else tensors, **given)


def app(reply: Parcel) -> App:
    return lambda message, context: Message(to_records(reply), reply_to=message)


def ask(bob: App, faults: Faults | None = None, bound: Mapping[int, str] | None = BOUND, **options: Any) -> Replies:
    """Ask all three; ann0 and cat0 answer well."""
    apps: dict[str, Any] = {"ann0": app(parcel("ann0")), "bob0": bob, "cat0": app(parcel("cat0"))}
    clock = SimulatedClock()
    grid = InlineGrid(apps, clock, faults or Faults())
    body: dict[str, Any] = {}
    request = make(
        STRANGER,
        federation="fed",
        study=STUDY,
        round=1,
        member="coordinator",
        kind="update",
        body=body,
        nonce="q",
        parent="",
    )
    question = Question("update", STUDY, 1, request, {"x": Shape("float64", (3,))})
    with identity(1):
        return Mailbox(grid, ROSTER, clock).ask(question, sorted(BOUND), 60.0, bound, **options)


def tampered(reply: Parcel, tensors: Mapping[str, Any]) -> Parcel:
    return Parcel(reply.envelope, dict(tensors))


def records(message: Message, arrays: Mapping[str, Array], envelope: bytes) -> Message:
    content = RecordDict({"causaldao": ConfigRecord({"envelope": envelope}), "tensors": ArrayRecord(dict(arrays))})
    return Message(content, reply_to=message)


def claim_gigabytes(message: Message, context: Context) -> Message:
    return records(message, {"x": Array("float64", (1 << 30,), "raw.le", b"\0" * 24)}, parcel().envelope)


def pickled(message: Message, context: Context) -> Message:
    return records(message, {"x": Array("float64", (3,), "numpy.ndarray", b"\0" * 24)}, parcel().envelope)


def third_record(message: Message, context: Context) -> Message:
    content = to_records(parcel())
    content["more"] = ConfigRecord({"seed": 7})
    return Message(content, reply_to=message)


def empty(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)


def surrogate() -> Parcel:
    """Valid base64, JSON with half a character: no canonical form exists."""
    good = parcel()
    return Parcel(good.envelope.replace(b'"payloadType"', b'"\\ud800"'), good.tensors)


BAD: dict[str, tuple[App, str]] = {
    "NaN": (app(parcel(tensors={"x": np.array([1.0, np.nan, 3.0])})), "NaN or an infinity"),
    "infinity": (app(parcel(tensors={"x": np.array([1.0, np.inf, 3.0])})), "NaN or an infinity"),
    "wrong shape": (app(parcel(tensors={"x": np.zeros((1, 3))})), r"\(1, 3\)"),
    "too short": (app(parcel(tensors={"x": np.zeros(2)})), r"\(2,\)"),
    "wrong dtype": (app(parcel(tensors={"x": np.zeros(3, np.float32)})), "float32"),
    "wrong name": (app(parcel(tensors={"y": np.zeros(3)})), "Expected the tensors"),
    "one more tensor": (app(parcel(tensors={**GOOD, "y": np.zeros(0)})), "Expected the tensors"),
    "no tensor at all": (app(parcel(tensors={})), "Expected the tensors"),
    "a name of a megabyte": (app(parcel(tensors={"y" * (1 << 20): np.zeros(3)})), "Expected the tensors"),
    "gigabytes claimed": (claim_gigabytes, "float64"),
    "another encoding": (pickled, "raw little-endian"),
    "a third record": (third_record, "the records 'causaldao' and 'tensors'"),
    "an empty message": (empty, "the records 'causaldao' and 'tensors'"),
    "an envelope that is no JSON": (app(Parcel(b"\xff\xfe{", GOOD)), "not JSON"),
    "an envelope nested without end": (app(Parcel(b"[" * 100_000, GOOD)), "not JSON"),
    "half a character": (app(surrogate()), "DSSE"),
    "altered tensor": (
        app(tampered(parcel(), {"x": np.array([1.0, 2.0, 4.0])})),
        "not those that were signed",
    ),
    "forged signature": (app(parcel(key=STRANGER)), "signature"),
    "a stranger's name": (app(parcel("dan0", key=STRANGER)), "not a member"),
    "another member's reply": (app(parcel("ann0")), "brought what ann0 signed"),
    "another member's name": (app(parcel("ann0", key=KEYS["bob0"])), "signature"),
    "replay of another round": (app(parcel(round=2)), "signed round 2"),
    "replay of another kind": (app(parcel(kind="evaluation")), "signed kind"),
    "replay of another study": (app(parcel(study="6" * 64)), "signed study"),
    "replay of another federation": (app(parcel(federation="other")), "signed federation"),
    "a novel as a nonce": (app(parcel(nonce="n" * 500_000)), "at most 64 characters"),
    "a novel as a parent": (app(parcel(parent="p" * 500_000)), "at most 64 characters"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_reply_is_rejected_with_its_reason_and_the_others_are_taken(case: str) -> None:
    bob, reason = BAD[case]
    replies = ask(bob)
    assert sorted(replies.accepted) == ["ann0", "cat0"]
    (rejected,) = replies.rejected
    assert (rejected.member, rejected.node) == ("bob0", 1001)
    assert re.search(reason, rejected.reason)
    assert len(rejected.reason) <= 300


def test_good_replies_are_all_taken_whatever_the_arrays_endianness() -> None:
    replies = ask(app(parcel(tensors={"x": GOOD["x"].astype(">f8")})))
    assert sorted(replies.accepted) == ["ann0", "bob0", "cat0"]
    assert not replies.rejected
    np.testing.assert_array_equal(replies.accepted["bob0"].parcel.tensors["x"], GOOD["x"])


def test_400_megabytes_are_refused_before_they_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own bytes are left out here: they copy what they carry, before we see it."""
    huge = bytes(400 << 20)
    monkeypatch.setattr("causaldao.simulations.engine.through_bytes", lambda message: message)

    def bob(message: Message, context: Context) -> Message:
        return records(message, {"x": Array("float64", (len(huge) // 8,), "raw.le", huge)}, parcel().envelope)

    tracemalloc.start()
    replies = ask(bob)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "it was not read" in replies.rejected[0].reason
    assert peak < 20 << 20


def test_an_oversized_envelope_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causaldao.signing.json.loads", lambda data: pytest.fail("parsed"))
    monkeypatch.setattr("causaldao.members.peek", lambda data: pytest.fail("peeked"))
    apps: dict[str, Any] = {"bob0": app(Parcel(b"{" + b" " * (2 << 20), GOOD))}
    grid = InlineGrid(apps, SimulatedClock())
    question = Question("update", STUDY, 1, parcel(), {"x": Shape("float64", (3,))})
    with identity(1):
        replies = Mailbox(grid, ROSTER).ask(question, [1000], 60.0)
    assert "it was not read" in replies.rejected[0].reason


def test_a_node_that_raises_fails_and_one_that_is_silent_is_lost() -> None:
    def raising(message: Message, context: Context) -> Message:
        raise KeyError("hospital number 4711")

    failed, lost = ask(raising), ask(app(parcel()), Faults(request=lambda m: m.metadata.dst_node_id != 1001))
    assert [(r.member, r.code) for r in failed.rejected] == [("bob0", "error")]
    assert [(r.member, r.code) for r in lost.rejected] == [("bob0", "network")]
    assert "4711" not in str(failed)
    assert sorted(failed.accepted) == sorted(lost.accepted) == ["ann0", "cat0"]


def test_flowers_word_that_a_node_is_gone_counts_as_no_answer() -> None:
    replies = ask(lambda message, context: Message(Error(5, "gone"), reply_to=message))
    assert [(r.member, r.code) for r in replies.rejected] == [("bob0", "network")]


def test_a_signed_refusal_names_its_member_and_its_code_only() -> None:
    refusal = parcel(kind=REFUSAL + "update", body={"code": "budget", "text": "4711"}, tensors={})
    replies = ask(app(refusal), bound=None)
    (rejected,) = replies.rejected
    assert (rejected.member, rejected.code) == ("bob0", "budget")
    assert "4711" not in rejected.reason


@pytest.mark.parametrize("code", ["no such patient: Müller", 7, None, ["budget"], "x" * 33, ""])
def test_a_refusals_code_has_no_room_for_text(code: Any) -> None:
    replies = ask(app(parcel(kind=REFUSAL + "update", body={"code": code}, tensors={})))
    assert [(r.member, r.code, r.reason) for r in replies.rejected] == [("bob0", "error", "the node refused: error")]


def test_a_nodes_unsigned_word_is_attributed_to_its_node_only() -> None:
    content = RecordDict({"refused": ConfigRecord({"code": "identity"})})

    def unsigned(message: Message, context: Context) -> Message:
        return Message(content, reply_to=message)

    assert [(r.member, r.code) for r in ask(unsigned).rejected] == [("bob0", "identity")]
    assert [(r.member, r.code) for r in ask(unsigned, bound=None).rejected] == [(None, "identity")]


def duplicated(messages: list[Message]) -> list[Message]:
    return [*reversed(messages), *messages]


def test_duplicates_in_any_order_are_one_answer() -> None:
    replies = ask(app(parcel()), Faults(replies=duplicated))
    assert sorted(replies.accepted) == ["ann0", "bob0", "cat0"]
    assert not replies.rejected
    assert not replies.equivocations


def second(reply: Parcel) -> Faults:
    """bob0's node answers twice: what its app said, and this."""

    def replies(messages: list[Message]) -> list[Message]:
        (bobs,) = [message for message in messages if message.metadata.src_node_id == 1001]
        more = Message(to_records(parcel()), reply_to=bobs)
        more.metadata.__dict__["_reply_to_message_id"] = bobs.metadata.reply_to_message_id
        more.content = to_records(reply)
        return [*messages, more]

    return Faults(replies=replies)


def test_two_contents_in_one_slot_are_equivocation_with_both_envelopes() -> None:
    other = parcel(tensors={"x": np.array([9.0, 9.0, 9.0])})
    replies = ask(app(parcel()), second(other))
    (equivocation,) = replies.equivocations
    assert equivocation.member == "bob0"
    assert {equivocation.first, equivocation.second} == {parcel().envelope, other.envelope}
    assert sorted(replies.accepted) == ["ann0", "cat0"]


def test_a_content_that_was_not_taken_still_convicts() -> None:
    """Signing NaN first, and something better when that fails, is saying two things in one place."""
    nan = parcel(tensors={"x": np.array([np.nan, 0.0, 0.0])})
    replies = ask(app(nan), second(parcel()))
    assert [e.member for e in replies.equivocations] == ["bob0"]
    assert "bob0" not in replies.accepted


def test_the_same_content_under_another_nonce_is_no_equivocation() -> None:
    replies = ask(app(parcel()), second(parcel(nonce="another", parent="another")))
    assert not replies.equivocations
    assert sorted(replies.accepted) == ["ann0", "bob0", "cat0"]


def test_another_members_word_cannot_convict_it() -> None:
    """Only what bob0's own key signed is held against bob0."""
    forged = parcel(key=STRANGER, tensors={"x": np.zeros(3)})
    replies = ask(app(parcel()), second(forged))
    assert not replies.equivocations
    assert "bob0" in replies.accepted


def test_a_forged_source_puts_nothing_on_another_members_account() -> None:
    """A reply is matched by the request it answers: Flower does not bind its source to its sender."""

    def forge(messages: list[Message]) -> list[Message]:
        for message in messages:
            if message.metadata.src_node_id == 1001:
                message.metadata.__dict__["_src_node_id"] = 1000
        return messages

    replies = ask(app(parcel(key=STRANGER)), Faults(replies=forge))
    assert [(r.member, r.node) for r in replies.rejected] == [("bob0", 1001)]
    assert sorted(replies.accepted) == ["ann0", "cat0"]


def test_an_answer_to_nothing_that_was_asked_is_not_looked_at() -> None:
    def stray(messages: list[Message]) -> list[Message]:
        messages[1].metadata.__dict__["_reply_to_message_id"] = "message-77"
        return messages

    replies = ask(app(parcel()), Faults(replies=stray))
    assert [(r.member, r.code) for r in replies.rejected] == [("bob0", "network")]


@pytest.mark.parametrize(
    "error", [KeyError("x"), ValueError("x"), OverflowError("x"), RecursionError("x"), TypeError()]
)
def test_a_reply_that_upsets_the_steps_check_is_rejected_not_raised(error: Exception) -> None:
    def check(statement: Any, parcel: Any) -> None:
        if statement.member == "bob0":
            raise error

    replies = ask(app(parcel()), check=check)
    assert [(r.member, r.code) for r in replies.rejected] == [("bob0", "error")]
    assert sorted(replies.accepted) == ["ann0", "cat0"]


def test_the_steps_own_refusal_keeps_its_code() -> None:
    def check(statement: Any, parcel: Any) -> None:
        if statement.member == "bob0":
            raise ConfigurationError("not this")

    assert [(r.code, r.reason) for r in ask(app(parcel()), check=check).rejected] == [("configuration", "not this")]


def test_asking_nobody_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = InlineGrid({}, SimulatedClock())
    monkeypatch.setattr(grid, "push_messages", lambda messages: pytest.fail("sent"))
    with identity(1):
        replies = Mailbox(grid, ROSTER).ask(Question("update", STUDY, 1, parcel()), [], 60.0)
    assert dataclasses.asdict(replies) == dataclasses.asdict(Replies())
