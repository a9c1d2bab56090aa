"""Waiting on a wire: nodes that die, come back, are slow or not approved yet, and a grid that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Error, RecordDict

from causaldao.errors import GuaranteeError, LedgerError, NetworkError
from causaldao.ledger.log import Log
from causaldao.members import Member, Roster
from causaldao.messages import REFUSAL, Parcel, make
from causaldao.server.asking import Asker, Call
from causaldao.server.mailbox import Accepted, Mailbox, Question, Replies
from causaldao.server.progress import Event
from causaldao.server.recording import Book, found_if_new, propose
from causaldao.server.standing import Standing
from causaldao.server.waiting import collect
from causaldao.signing import SigningKey, peek
from causaldao.simulations.engine import identity
from tests.server import votes
from tests.server.wire import Answer, Behaviour, FakeClock, NoWitnesses, Wire, in_turn, says, silent
from tests.simulations import small

NAMES = ("ann", "bob", "cat", "dan", "eve")
KEYS = {name: SigningKey.from_seed((name * 11)[:32].encode()) for name in NAMES}
NODE = dict(zip(NAMES, range(1000, 1005), strict=True))
WITNESSES = {name: SigningKey.from_seed(name.encode().ljust(32, b"w")) for name in NAMES}
ROSTER = Roster("fed", tuple(Member(name, key.public, WITNESSES[name].public) for name, key in KEYS.items()), 1)
COORDINATOR = SigningKey.from_seed(b"C" * 32)
DEADLINE = 600.0
STUDY = small.study(faulty=1, members={"n_min": 50, "n_max": 2000, "deadline": DEADLINE})


def word(name: str, kind: str = "evidence", **changed: Any) -> Parcel:
    given: dict[str, Any] = {
        "federation": "fed", "study": STUDY.hash, "round": 0, "member": name, "kind": kind, "body": {}, "nonce": "n",
        "parent": "p", **changed,
    }  # fmt: skip
    return make(KEYS[name], **given)


def refusal(name: str, code: str, kind: str = "rollcall") -> Parcel:
    return word(name, REFUSAL + kind, body={"code": code})


def request() -> Question:
    parcel = make(
        COORDINATOR, federation="fed", study=STUDY.hash, round=0, member="coordinator", kind="evidence", body={},
        nonce="q", parent="",
    )  # fmt: skip
    return Question("evidence", STUDY.hash, 0, parcel)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(autouse=True)
def server() -> Iterator[None]:
    with identity(1):
        yield


# one exchange: `Mailbox.ask`


def wire(clock: FakeClock, **behaviours: Behaviour) -> Wire:
    """Everybody answers after half a second, but for those named."""
    return Wire(clock, {NODE[name]: behaviours.get(name, says(word(name))) for name in NAMES})


def ask(grid: Wire, timeout: float = 100.0, **options: Any) -> Replies:
    bound = {node: name for name, node in NODE.items()}
    return Mailbox(grid, ROSTER, grid.clock).ask(request(), sorted(bound), timeout, bound, **options)


def lost(replies: Replies) -> list[tuple[str | None, str, str]]:
    return [(rejected.member, rejected.code, rejected.reason) for rejected in replies.rejected]


def test_answers_are_waited_for_no_longer_than_they_take(clock: FakeClock) -> None:
    assert sorted(ask(wire(clock)).accepted) == list(NAMES)
    assert clock.monotonic() < 1.5


def test_a_node_that_leaves_is_lost_at_once_not_at_the_deadline(clock: FakeClock) -> None:
    grid = wire(clock, bob=silent)
    clock.at(3.0, lambda: grid.connected.discard(NODE["bob"]))
    replies = ask(grid)
    assert lost(replies) == [("bob", "network", "did not answer: its node is not connected")]
    assert clock.monotonic() < 6.0


def test_flowers_word_that_a_node_is_gone_is_taken_before_the_list_is_looked_at(clock: FakeClock) -> None:
    grid = wire(clock, bob=says(Error(5, "offline"), 1.0))
    assert [name for name, _, _ in lost(ask(grid))] == ["bob"]
    assert clock.monotonic() < 3.0


def test_a_node_that_flower_missed_for_a_moment_is_still_waited_for(clock: FakeClock) -> None:
    moment = (1.0, Error(5, "offline"))
    grid = wire(clock, bob=lambda parcel: [moment, (18.0, word("bob"))], cat=says(word("cat"), 12.0))
    assert sorted(ask(grid).accepted) == list(NAMES)
    assert clock.monotonic() < 20.0


def test_a_node_that_comes_back_is_asked_again_at_once(clock: FakeClock) -> None:
    grid = wire(clock, bob=in_turn(silent, says(word("bob"))), cat=says(word("cat"), 12.0))
    clock.at(3.0, lambda: grid.connected.discard(NODE["bob"]))
    clock.at(7.0, lambda: grid.connected.add(NODE["bob"]))
    assert sorted(ask(grid).accepted) == list(NAMES)
    first, again = grid.asked(NODE["bob"])
    assert first == 0.0
    assert 7.0 <= again < 10.0
    assert clock.monotonic() < 14.0


def test_a_supernode_killed_after_it_took_the_message_is_asked_again(clock: FakeClock) -> None:
    grid = wire(clock, bob=in_turn(silent, silent, says(word("bob"))))
    assert sorted(ask(grid).accepted) == list(NAMES)
    times = grid.asked(NODE["bob"])
    assert times == pytest.approx([0.0, 20.0, 60.0], abs=1.5)  # doubled each time
    assert [len(grid.asked(node)) for node in NODE.values()] == [1, 3, 1, 1, 1]
    assert clock.monotonic() < 62.0


def test_a_message_lives_no_longer_than_its_question(clock: FakeClock) -> None:
    grid = wire(clock, bob=silent)
    ask(grid, 90.0)
    assert all(0 < ttl <= max(90.0 - time, 1.0) for time, _, ttl in grid.pushed)
    assert 90.0 <= clock.monotonic() < 91.5


def test_a_late_answer_to_the_first_message_is_the_answer(clock: FakeClock) -> None:
    grid = wire(clock, bob=in_turn(says(word("bob"), 24.0), silent))
    assert sorted(ask(grid).accepted) == list(NAMES)
    assert len(grid.asked(NODE["bob"])) == 2
    assert clock.monotonic() < 26.0


def test_the_same_answer_to_both_messages_is_one(clock: FakeClock) -> None:
    grid = wire(clock, bob=in_turn(says(word("bob"), 21.0), says(word("bob"), 0.5)), cat=says(word("cat"), 30.0))
    replies = ask(grid)
    assert sorted(replies.accepted) == list(NAMES)
    assert (replies.rejected, replies.equivocations) == ([], [])


def test_another_answer_to_the_second_message_convicts(clock: FakeClock) -> None:
    def twice(parcel: Parcel) -> list[Answer]:
        return [(0.5, word("bob")), (0.5, word("bob", body={"other": 1}))]

    replies = ask(wire(clock, bob=twice))
    assert [equivocation.member for equivocation in replies.equivocations] == ["bob"]
    assert "bob" not in replies.accepted


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), OSError("no route")])
def test_a_grid_that_fails_for_a_while_is_asked_again(error: Exception, clock: FakeClock) -> None:
    grid = wire(clock, bob=says(word("bob"), 9.0))
    clock.at(2.0, lambda: setattr(grid, "fail", error))
    clock.at(20.0, lambda: setattr(grid, "fail", None))
    assert sorted(ask(grid).accepted) == list(NAMES)


def test_a_grid_that_fails_from_the_start_is_asked_again(clock: FakeClock) -> None:
    grid = wire(clock)
    grid.fail = httpx.ConnectError("refused")
    clock.at(15.0, lambda: setattr(grid, "fail", None))
    assert sorted(ask(grid).accepted) == list(NAMES)
    assert all(len(grid.asked(node)) == 1 for node in NODE.values())


def test_a_grid_that_fails_until_the_deadline_is_named_and_nobody_is_called_silent(clock: FakeClock) -> None:
    grid = wire(clock, bob=silent)
    clock.at(2.0, lambda: setattr(grid, "fail", httpx.ConnectError("connection refused")))
    with pytest.raises(NetworkError, match="ConnectError: connection refused"):
        ask(grid)
    assert 100.0 <= clock.monotonic() < 102.0


def test_an_error_of_ours_is_not_taken_for_the_networks(clock: FakeClock) -> None:
    grid = wire(clock)
    grid.fail = LedgerError("ours")
    with pytest.raises(LedgerError):
        ask(grid)
    assert clock.monotonic() == 0.0


def test_what_is_too_large_together_is_sent_one_by_one(clock: FakeClock) -> None:
    grid = wire(clock)
    grid.too_large = 1
    assert sorted(ask(grid).accepted) == list(NAMES)


def test_a_node_that_flower_does_not_know_is_lost_and_the_others_keep_their_messages(clock: FakeClock) -> None:
    grid = wire(clock)
    del grid.nodes[NODE["bob"]]
    assert lost(ask(grid)) == [("bob", "network", "did not answer: Flower does not know its node")]


def test_a_caller_that_has_enough_waits_for_nobody(clock: FakeClock) -> None:
    replies = ask(wire(clock, bob=silent), enough=lambda replies: len(replies.accepted) >= 3)
    assert sorted(replies.accepted) == ["ann", "cat", "dan", "eve"]
    assert clock.monotonic() < 2.0


def test_the_list_of_nodes_is_not_fetched_at_every_look(clock: FakeClock) -> None:
    grid = wire(clock, bob=silent)
    ask(grid)
    assert grid.looks <= 100 / 2 + 2


# a step: `collect`


class Federation:
    """Five members on a wire, a ledger, and all that is said."""

    def __init__(self, log: Log, clock: FakeClock, behaviours: Mapping[str, Behaviour], present: bool) -> None:
        self.clock, self.log = clock, log
        self.wire = Wire(clock, {NODE[name]: act for name, act in behaviours.items()})
        self.events: list[Event] = []
        self.seen: list[dict[str, Standing]] = []
        self.revoked: set[str] = set()
        found_if_new(log, ROSTER)
        propose(log, STUDY)
        self.book = Book(log, STUDY)
        self.asker = Asker(
            ROSTER, COORDINATOR, self.book, Mailbox(self.wire, ROSTER), clock, self.events.append,
            lambda standings: self.seen.append(dict(standings)), lambda: frozenset(self.revoked), NoWitnesses(),
        )  # fmt: skip
        if present:
            self.book.state.present = list(NAMES)
            self.asker.nodes = {node: name for name, node in NODE.items()}

    def collect(self, kind: str = "evidence", needed: int = 4, **options: Any) -> dict[str, Accepted]:
        phase = {"rollcall": "roll call"}.get(kind, kind)
        return collect(self.asker, Call(kind, 0, NAMES, needed, phase, {}, **options))

    def messages(self, phase: str) -> list[str]:
        return [event.message for event in self.events if event.phase == phase]

    def course(self, name: str) -> list[str]:
        """The states that the observer saw a member in."""
        states = [standings[name].state for standings in self.seen]
        return [state for k, state in enumerate(states) if k == 0 or states[k - 1] != state]

    def complaints(self) -> list[tuple[str, str]]:
        return [(note.body["member"], note.body["code"]) for note in self.book.notes]


@pytest.fixture
def federation(tmp_path: Path, clock: FakeClock) -> Iterator[Callable[..., Federation]]:
    """A maker of federations; everybody answers after half a second, but for those named."""
    logs = []

    def make(kind: str = "evidence", present: bool = True, **behaviours: Behaviour) -> Federation:
        log = Log.create(f"sqlite:///{tmp_path / f'{len(logs)}.db'}", "causaldao.test", COORDINATOR, clock.now)
        logs.append(log)
        given = {name: behaviours.get(name, says(word(name, kind))) for name in NAMES}
        return Federation(log, clock, given, present)

    yield make
    for log in logs:
        log.close()


def test_a_straggler_is_heard_within_the_grace(federation: Any, clock: FakeClock) -> None:
    case = federation(eve=says(word("eve"), 8.0))
    assert sorted(case.collect()) == list(NAMES)
    assert case.complaints() == []
    assert clock.monotonic() < 10.0


def test_nobody_waits_a_whole_deadline_for_a_straggler(federation: Any, clock: FakeClock) -> None:
    case = federation(eve=says(word("eve"), 40.0))
    assert sorted(case.collect()) == ["ann", "bob", "cat", "dan"]
    assert case.book.state.statuses == {"eve": {"status": "absent", "reason": "evidence: did not answer in time"}}
    assert case.complaints() == [("eve", "network")]
    assert 10.0 <= clock.monotonic() < 13.0
    assert case.course("eve") == ["asked", "absent"]
    assert case.course("ann")[-1] == "answered"


def test_who_was_late_once_can_answer_the_next_question(federation: Any) -> None:
    case = federation(eve=in_turn(silent, says(word("eve"))))
    assert "eve" not in case.collect()
    case.book.notes.clear()
    assert "eve" in case.collect()


def test_the_grace_is_as_long_again_as_enough_answers_took(federation: Any, clock: FakeClock) -> None:
    slow = {name: says(word(name), 60.0) for name in ("bob", "cat", "dan")}
    case = federation(eve=says(word("eve"), 110.0), **slow)
    assert sorted(case.collect()) == list(NAMES)
    assert clock.monotonic() < 113.0


def test_the_grace_ends_with_the_deadline(federation: Any, clock: FakeClock) -> None:
    case = federation(eve=silent, dan=says(word("dan"), DEADLINE - 30))
    assert sorted(case.collect()) == ["ann", "bob", "cat", "dan"]
    assert clock.monotonic() < DEADLINE + 2


def test_who_refused_or_left_is_not_waited_for_once_enough_answered(federation: Any, clock: FakeClock) -> None:
    case = federation(eve=says(refusal("eve", "budget", "evidence")))
    assert sorted(case.collect()) == ["ann", "bob", "cat", "dan"]
    assert clock.monotonic() < 2.0
    assert case.asker.standings["eve"] == Standing("quarantined", "the node refused: budget", "budget", 12)


def test_a_refusal_is_asked_again_while_answers_lack_and_leaves_one_complaint(federation: Any) -> None:
    again = in_turn(*[says(refusal("dan", "data", "evidence"))] * 3, says(word("dan")))
    case = federation(eve=silent, dan=again)
    assert "dan" in case.collect()
    assert case.wire.asked(NODE["dan"]) == pytest.approx([0.0, 16.0, 32.0, 48.0], abs=4.0)
    assert case.complaints().count(("dan", "data")) == 1
    assert "dan" not in case.book.state.statuses  # a retry that succeeded leaves no stain


def test_too_few_answers_end_at_the_deadline_by_name(federation: Any, clock: FakeClock) -> None:
    case = federation(eve=silent, dan=silent)
    with pytest.raises(GuaranteeError, match=r"Only 3 of the 4 .*dan, eve"):
        case.collect()
    assert DEADLINE <= clock.monotonic() < DEADLINE + 2
    assert {"dan", "eve"} == set(case.book.state.statuses)


def test_a_dead_grid_is_the_coordinators_trouble_and_no_members_fault(federation: Any, clock: FakeClock) -> None:
    case = federation(eve=silent, dan=silent)
    clock.at(5.0, lambda: setattr(case.wire, "fail", httpx.ConnectError("refused")))
    with pytest.raises(NetworkError, match="ConnectError"):
        case.collect()
    assert case.complaints() == []


def test_a_grid_that_dies_when_enough_have_answered_stops_nobody(federation: Any, clock: FakeClock) -> None:
    case = federation(eve=silent)
    clock.at(5.0, lambda: setattr(case.wire, "fail", httpx.ConnectError("refused")))
    assert sorted(case.collect()) == ["ann", "bob", "cat", "dan"]


def test_nobody_waits_in_silence(federation: Any, clock: FakeClock) -> None:
    told: list[float] = []
    case = federation(eve=silent, dan=silent)
    case.asker.progress = lambda event: told.append(clock.monotonic())
    with pytest.raises(GuaranteeError):
        case.collect()
    gaps = [later - earlier for earlier, later in zip([0.0, *told], told, strict=False)]
    assert max(gaps) < 15 + 2


def test_a_node_lost_while_too_few_answered_is_announced_by_name(federation: Any, clock: FakeClock) -> None:
    case = federation(eve=silent, dan=in_turn(silent, says(word("dan"))))
    clock.at(3.0, lambda: case.wire.connected.difference_update({NODE["dan"], NODE["eve"]}))
    clock.at(60.0, lambda: case.wire.connected.add(NODE["dan"]))
    assert "dan" in case.collect()
    assert "3 of 4 members for evidence; missing: dan, eve" in case.messages("waiting")
    assert case.course("dan") == ["asked", "not connected", "asked", "answered"]


def test_after_a_restart_it_is_found_out_whose_the_nodes_are_and_one_silent_node_holds_up_nobody(
    federation: Any, clock: FakeClock
) -> None:
    def node(name: str) -> Behaviour:
        def behave(parcel: Parcel) -> list[Answer]:
            asked = peek(parcel.envelope)
            return [(0.5, word(name, asked.kind, body=dict(asked.body) if asked.kind == "locate" else {}))]

        return behave

    case = federation(eve=silent, **{name: node(name) for name in NAMES[:4]})
    case.asker.nodes.clear()
    assert sorted(case.collect()) == ["ann", "bob", "cat", "dan"]
    assert clock.monotonic() < 15.0
    assert case.asker.nodes == {NODE[name]: name for name in NAMES[:4]}


def test_a_member_that_comes_back_with_another_node_is_found(federation: Any, clock: FakeClock) -> None:
    def other(parcel: Parcel) -> list[Answer]:
        asked = peek(parcel.envelope)
        return [(0.5, word("dan", asked.kind, body=dict(asked.body) if asked.kind == "locate" else {}))]

    case = federation(dan=silent, eve=silent)

    def move() -> None:
        case.wire.connected.discard(NODE["dan"])
        case.wire.nodes[2000] = other
        case.wire.connected.add(2000)

    clock.at(5.0, move)
    assert case.collect()["dan"].node == 2000
    assert clock.monotonic() < 25.0


def test_the_node_of_a_member_outside_the_study_is_asked_once_who_it_is(federation: Any) -> None:
    case = federation(ann=says(refusal("ann", "refused", "locate")), eve=silent)
    case.book.state.present = [name for name in NAMES if name != "ann"]
    del case.asker.nodes[NODE["ann"]]
    case.wire.connected.discard(NODE["eve"])  # so that somebody is looked for
    for _ in range(2):
        collect(case.asker, Call("evidence", 0, tuple(case.book.state.present), 3, "evidence", {}))
    assert len(case.wire.asked(NODE["ann"])) == 1


def test_an_old_answer_to_a_challenge_does_not_make_a_node_anothers(federation: Any) -> None:
    stolen = word("ann", "locate", body={"challenge": "0" * 32})
    case = federation(ann=silent, eve=says(stolen))
    case.asker.nodes = {NODE[name]: name for name in ("bob", "cat", "dan")}
    with pytest.raises(GuaranteeError):
        case.collect()
    assert NODE["eve"] not in case.asker.nodes


# the roll call


def roll(federation: Any, **behaviours: Behaviour) -> Federation:
    found: Federation = federation("rollcall", present=False, **behaviours)
    return found


def approves(name: str, after: int, before: Behaviour | None = None) -> Behaviour:
    """Refuses ``after`` times as not approved yet, then approves."""
    pending = says(refusal(name, "refused")) if before is None else before
    return in_turn(*[pending] * after, says(word(name, "rollcall")))


def test_who_has_not_approved_yet_is_pending_and_asked_until_it_does(federation: Any, clock: FakeClock) -> None:
    case = roll(federation, dan=approves("dan", 3), eve=approves("eve", 5))
    assert sorted(case.collect("rollcall")) == list(NAMES)
    assert case.wire.asked(NODE["dan"]) == pytest.approx([0.0, 16.0, 32.0, 48.0], abs=4.0)
    assert case.course("dan") == ["unknown", "pending", "approved"]
    assert case.complaints() == []  # who thinks it over did nothing wrong
    assert case.book.state.statuses == {}
    assert "3 of 5 approved, 2 pending" in case.messages("roll call")


def test_a_decline_is_shown_with_its_code_and_asked_again_in_case_it_is_mended(federation: Any) -> None:
    mended = approves("eve", 2, says(refusal("eve", "data")))
    case = roll(federation, bob=says(refusal("bob", "refused")), cat=says(refusal("cat", "refused")), eve=mended)
    with pytest.raises(GuaranteeError):
        case.collect("rollcall")
    assert "2 of 5 approved, 1 declined: data 11, 2 pending" in case.messages("roll call")
    declined = Standing("declined", "the node refused: data", "data", 11)
    assert any(standings["eve"] == declined for standings in case.seen)
    assert case.asker.standings["eve"].state == "approved"
    assert case.complaints().count(("eve", "data")) == 1
    assert sorted(case.complaints()) == [("bob", "refused"), ("cat", "refused"), ("eve", "data")]
    assert case.book.state.statuses["bob"]["reason"] == "rollcall: its owner has not approved the study"


def test_the_owners_no_is_a_decline_and_not_a_wait(federation: Any) -> None:
    case = roll(federation, eve=says(refusal("eve", "declined")))
    case.collect("rollcall")
    assert case.asker.standings["eve"] == Standing("declined", "the node refused: declined", "declined", 18)


def test_the_roll_call_goes_on_with_enough_when_the_grace_after_the_last_approval_is_over(
    federation: Any, clock: FakeClock
) -> None:
    case = roll(federation, dan=approves("dan", 4), eve=says(refusal("eve", "budget")))
    assert sorted(case.collect("rollcall")) == ["ann", "bob", "cat", "dan"]
    approved = case.wire.asked(NODE["dan"])[-1]
    assert approved < clock.monotonic() < 2 * approved + 5
    assert case.messages("roll call")[-1] == "4 of 5 members, 4 needed"


def test_each_approval_gives_the_others_time_again(federation: Any, clock: FakeClock) -> None:
    late = {name: says(word(name, "rollcall"), after) for name, after in (("dan", 8.0), ("eve", 17.0))}
    assert sorted(roll(federation, **late).collect("rollcall", needed=3)) == list(NAMES)
    assert clock.monotonic() < 19.0


def test_a_node_that_connects_during_the_roll_call_is_asked(federation: Any, clock: FakeClock) -> None:
    case = roll(federation, dan=says(refusal("dan", "refused")))
    case.wire.connected.discard(NODE["eve"])
    clock.at(33.0, lambda: case.wire.connected.add(NODE["eve"]))
    assert sorted(case.collect("rollcall")) == ["ann", "bob", "cat", "eve"]
    assert "not connected" in case.course("eve")
    assert case.messages("waiting")[0] == "3 of 4 members for rollcall"


def test_a_nodes_unsigned_word_is_counted_but_put_on_nobodys_account(federation: Any) -> None:
    case = roll(federation, eve=says(RecordDict({"refused": ConfigRecord({"code": "identity"})})))
    case.collect("rollcall")
    assert "4 of 5 approved, 1 declined: identity 14" in case.messages("roll call")
    assert case.asker.standings["eve"].state == "absent"
    assert ("", "identity") in case.complaints()


# revoked


def test_a_member_revoked_while_it_is_waited_for_is_dropped_with_its_answer(federation: Any, clock: FakeClock) -> None:
    case = federation(eve=says(word("eve"), 9.0))
    clock.at(3.0, lambda: case.revoked.add("ann"))  # it has answered already
    assert sorted(case.collect()) == ["bob", "cat", "dan", "eve"]
    assert case.book.state.statuses == {"ann": {"status": "excluded", "reason": "revoked"}}
    assert case.complaints() == [("ann", "revoked")]
    assert case.asker.standings["ann"] == Standing("revoked", "revoked")
    assert "ann" in case.asker.asked  # it may have made the release: that is accounted


def test_a_revoked_member_is_not_asked(federation: Any) -> None:
    case = federation()
    votes.revoke(case.log, "ann", "left", KEYS)  # the ledger's word is enough
    assert sorted(case.collect()) == ["bob", "cat", "dan", "eve"]
    assert case.wire.asked(NODE["ann"]) == []


def test_a_member_revoked_at_the_last_moment_is_out_of_the_decision(federation: Any, clock: FakeClock) -> None:
    case = federation(eve=says(word("eve"), 7.1))
    clock.at(7.0, lambda: case.revoked.add("ann"))  # between two looks at who is revoked
    assert sorted(case.collect()) == ["bob", "cat", "dan", "eve"]


@pytest.mark.parametrize("moment", [8.9, 9.9, 10.4, 10.9, 11.2])
def test_a_revocation_at_the_end_of_the_grace_makes_it_wait_for_the_straggler_again(
    moment: float, federation: Any, clock: FakeClock
) -> None:
    case = federation(eve=says(word("eve"), 30.0), dan=says(word("dan"), 1.4))
    real = case.asker.revoked
    case.asker.revoked = lambda: real() | ({"ann"} if clock.monotonic() > moment else set())
    assert sorted(case.collect()) == ["bob", "cat", "dan", "eve"]


def test_revocations_that_leave_too_few_are_not_waited_out(federation: Any, clock: FakeClock) -> None:
    case = federation(eve=silent)
    clock.at(3.0, lambda: case.revoked.update({"ann", "bob"}))
    with pytest.raises(GuaranteeError, match="ann: revoked"):
        case.collect()
    assert clock.monotonic() < 6.0


def test_a_revoked_member_is_not_asked_again_for_its_approval(federation: Any, clock: FakeClock) -> None:
    case = roll(federation, dan=says(refusal("dan", "refused")), eve=approves("eve", 4))
    clock.at(20.0, lambda: case.revoked.add("dan"))
    assert sorted(case.collect("rollcall")) == ["ann", "bob", "cat", "eve"]
    assert max(case.wire.asked(NODE["dan"])) < 23.0


# two contents


def test_the_proof_of_two_contents_is_on_the_ledger_before_the_step_is_over(federation: Any, clock: FakeClock) -> None:
    def twice(parcel: Parcel) -> list[Answer]:
        return [(0.5, word("ann")), (0.5, word("ann", body={"other": 1}))]

    case = federation(ann=twice, dan=says(word("dan"), 30.0))
    seen: list[list[str]] = []
    clock.at(5.0, lambda: seen.append([r.body["member"] for r in case.log.entries(kinds=("equivocation",))]))
    assert sorted(case.collect()) == ["bob", "cat", "dan", "eve"]
    assert seen == [["ann"]]
    resumed = Book(case.log, STUDY)  # as after kill -9
    assert resumed.state.statuses["ann"] == {"status": "excluded", "reason": "signed two contents for one evidence"}
    assert resumed.convicted == {"ann": ("evidence", 0)}
