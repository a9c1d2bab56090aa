"""What one member, or bad luck on the wire, must not do to a coordinator that collects its members' cosignatures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from causaldao import governance
from causaldao.client.node import Node
from causaldao.client.witnessing import Attendant
from causaldao.errors import CausalDAOError, GuaranteeError
from causaldao.ledger.bundle import export
from causaldao.ledger.entry import Entry
from causaldao.ledger.log import Log
from causaldao.ledger.note import COSIGNER as WITNESSING
from causaldao.ledger.note import LOG, Checkpoint, Verifier, cosign, cosigners, open_note, sign_checkpoint
from causaldao.ledger.verify import Policy, verify
from causaldao.members import Member
from causaldao.messages import Parcel, make
from causaldao.server import membership
from causaldao.server.asking import Asker, Call
from causaldao.server.clock import SimulatedClock
from causaldao.server.coordinator import Coordinator
from causaldao.server.mailbox import RENEWALS, Accepted, Mailbox
from causaldao.server.progress import Event
from causaldao.server.recording import Book, found_if_new, propose
from causaldao.server.waiting import collect
from causaldao.server.witnessing import Agreed, View, Witnessing
from causaldao.signing import SigningKey, Statement
from causaldao.simulations.engine import identity
from causaldao.simulations.federation import simulate
from causaldao.trail import Trail, Word
from tests.counts import count
from tests.server import votes
from tests.server.test_asking import COORDINATOR, KEYS, NAMES, NODE, ROSTER, STUDY, WITNESSES, refusal, word
from tests.server.test_coordinator import BAD, _audited, _coordinator, _keys
from tests.server.wire import Answer, Behaviour, FakeClock, Wire, says
from tests.simulations import small

ORIGIN = "test/log"
SMALL = small.study(faulty=1)
LOG_VERIFIER = Verifier.of(ORIGIN, COORDINATOR.public, LOG)


class Watcher:
    """A member on the wire: it cosigns what goes on from what it saw, and says "stale" of what does not."""

    def __init__(self, name: str, clock: FakeClock, kind: str = "evidence", delay: float = 0.5) -> None:
        self.name, self.clock, self.kind, self.delay = name, clock, kind, delay
        self.seen, self.note = 0, ""
        self.approves = 0.0  # from when on it does not refuse
        self.complaints: tuple[str, ...] = ()

    def sees(self, note: str) -> Word:
        checkpoint = open_note(note, LOG_VERIFIER)
        if checkpoint.size >= self.seen:
            self.seen, self.note = checkpoint.size, note
        return self.word()

    def word(self) -> Word:
        checkpoint = open_note(self.note, LOG_VERIFIER)
        return Word(self.note, cosign(checkpoint, self.name, WITNESSES[self.name], 1), self.complaints)

    def __call__(self, parcel: Parcel) -> list[Answer]:
        note = Trail.unpack(parcel.trail).checkpoint
        if open_note(note, LOG_VERIFIER).size < self.seen:
            return [(self.delay, replace(refusal(self.name, "stale", self.kind), trail=self.word().pack()))]
        said = self.sees(note)
        if self.clock.monotonic() < self.approves:
            answer = refusal(self.name, "refused", self.kind)
        else:
            answer = word(self.name, self.kind)
        return [(self.delay, replace(answer, trail=said.pack()))]


class Federation:
    """Five members, of whom one may lie, on a wire, and a ledger that others may write to."""

    def __init__(self, path: Path, clock: FakeClock, kind: str = "evidence") -> None:
        self.clock, self.kind, self.url = clock, kind, f"sqlite:///{path / 'ledger.db'}"
        self.log = Log.create(self.url, ORIGIN, COORDINATOR, clock.now)
        found_if_new(self.log, ROSTER)
        propose(self.log, STUDY)
        self.members = {name: Watcher(name, clock, kind) for name in NAMES}
        self.wire = Wire(clock, {NODE[name]: act for name, act in self.members.items()})
        self.witnessing = Witnessing(self.log, COORDINATOR.public, ROSTER, STUDY.hash)
        self.book = Book(self.log, STUDY)
        self.asker = Asker(
            ROSTER, COORDINATOR, self.book, Mailbox(self.wire, ROSTER), clock, lambda event: None,
            lambda standings: None, frozenset, self.witnessing,
        )  # fmt: skip
        if kind != "rollcall":
            self.book.state.present = list(NAMES)
            self.asker.nodes = {node: name for name, node in NODE.items()}

    def collect(self, needed: int = 4) -> dict[str, Accepted]:
        phase = "roll call" if self.kind == "rollcall" else self.kind
        return collect(self.asker, Call(self.kind, 0, NAMES, needed, phase, {}))

    def grow(self) -> str:
        """Another study's coordinator records something; the note of that."""
        with Log.open(self.url, COORDINATOR, self.clock.now) as other:
            other.append([Entry("study.draft", {"study": f"another at {other.head.size}"})])
            return other.head.note

    def behave(self, name: str, act: Behaviour) -> None:
        self.wire.nodes[NODE[name]] = act


@pytest.fixture(autouse=True)
def server() -> Iterator[None]:
    with identity(1):
        yield


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def federation(tmp_path: Path, clock: FakeClock) -> Federation:
    return Federation(tmp_path, clock)


# the ledger grows while a question is under way: two studies on one ledger, an admission, a motion


def test_answers_on_their_way_are_not_lost_when_somebody_has_seen_more(
    federation: Federation, clock: FakeClock
) -> None:
    """One member has answered the other study in between. What the others cosigned is true, and they say it once."""
    eve = federation.members["eve"]
    for name in ("ann", "bob", "cat", "dan"):
        federation.members[name].delay = 5.0

    def busy(parcel: Parcel) -> list[Answer]:
        if clock.monotonic() < 0.1:  # the other study's question came first
            eve.sees(federation.grow())
        return eve(parcel)

    federation.behave("eve", busy)
    assert sorted(federation.collect()) == list(NAMES)
    assert clock.monotonic() < 60.0
    assert federation.book.notes == []


def test_an_answer_that_came_with_an_old_cosignature_is_taken_when_it_comes_with_a_new_one(
    federation: Federation, clock: FakeClock
) -> None:
    """The same answer again: its content was heard, but it was not taken."""
    bob, turn = federation.members["bob"], list[int]()

    def forgetful(parcel: Parcel) -> list[Answer]:
        turn.append(1)
        ((delay, answer),) = bob(parcel)
        assert isinstance(answer, Parcel)
        return [(delay, answer if len(turn) > 1 else replace(answer, trail=b""))]

    federation.behave("bob", forgetful)
    federation.behave("cat", lambda parcel: [])  # so that bob is needed
    clock.at(1.0, lambda: federation.wire.connected.discard(NODE["cat"]))
    assert sorted(federation.collect()) == ["ann", "bob", "dan", "eve"]
    assert clock.monotonic() < 60.0


def test_a_roll_call_of_days_hears_a_member_that_other_studies_ask_meanwhile(tmp_path: Path, clock: FakeClock) -> None:
    """Each time it is asked again it has seen more than it was shown: that is no reason to give it up."""
    federation = Federation(tmp_path, clock, "rollcall")
    bob = federation.members["bob"]
    bob.approves = 300.0
    for second in range(10, 320, 10):
        clock.at(float(second), lambda: bob.sees(federation.grow()))
    assert sorted(federation.collect(needed=5)) == list(NAMES)


def test_unsigned_words_that_a_node_has_seen_more_are_not_heard_without_end(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    renew = View.renew

    def counted(self: View) -> bool:
        shown.append(1)
        return renew(self)

    monkeypatch.setattr(View, "renew", counted)
    federation.behave("eve", lambda parcel: [(0.1, RecordDict({"refused": ConfigRecord({"code": "stale"})}))])
    assert len(federation.collect()) == 4
    assert len(shown) <= RENEWALS + 2  # the first is the view's own


def test_a_member_that_is_always_stale_delays_nobody(federation: Federation, clock: FakeClock) -> None:
    eve = federation.members["eve"]
    eve.sees(federation.log.head.note)
    liar = replace(refusal("eve", "stale", "evidence"), trail=eve.word().pack())
    federation.behave("eve", lambda parcel: [(0.1, liar)])
    assert sorted(federation.collect()) == ["ann", "bob", "cat", "dan"]
    assert clock.monotonic() < 15.0
    assert federation.witnessing.agreed() is not None


# what a member says of the ledger


def heard(federation: Federation, name: str, said: Word, *, refused: bool = True) -> None:
    federation.witnessing.heard(name, said, None if refused else {said.note})


def complaint(name: str, kind: str = "evidence", round: int = 0, **changed: Any) -> str:
    body = {"kind": kind, "round": round, "given": "2026-01-01T00:00:00+00:00", "word": "0" * 64, **changed}
    given: dict[str, Any] = {
        "federation": "fed", "study": STUDY.hash, "round": 0, "member": name, "nonce": "n", "parent": "p",
    }  # fmt: skip
    return make(KEYS[name], kind="complaint", body=body, **given).envelope.decode()


def with_complaints(federation: Federation, name: str, *texts: str) -> Word:
    member = federation.members[name]
    member.complaints = texts
    return member.sees(federation.log.head.note)


def recorded(federation: Federation) -> list[Any]:
    """What the study's end does with them."""
    made = federation.witnessing.complaints()
    if made:
        federation.log.append(made)
    return list(federation.log.entries(kinds=("complaint",)))


def test_two_wordings_of_one_complaint_do_not_end_the_study(federation: Federation) -> None:
    said = with_complaints(federation, "eve", complaint("eve"), complaint("eve", given="yesterday"))
    heard(federation, "eve", said)
    assert len(recorded(federation)) == 1
    heard(federation, "eve", with_complaints(federation, "eve", complaint("eve", given="tomorrow")))
    assert len(recorded(federation)) == 1


def test_complaints_of_words_that_no_question_asked_for_are_not_recorded(federation: Federation) -> None:
    """The study has one round: evidence, a ballot, an update and an evaluation are all that can be withheld."""
    made = [
        complaint("eve", kind, round) for kind in ("evidence", "ballot", "update", "evaluation") for round in range(60)
    ]
    for start in range(0, len(made), 20):
        heard(federation, "eve", with_complaints(federation, "eve", *made[start : start + 20]))
    assert len(recorded(federation)) <= 4


def test_a_complaint_brings_no_text_of_its_own_into_the_ledger(federation: Federation) -> None:
    heard(federation, "eve", with_complaints(federation, "eve", complaint("eve", novel="x" * 100_000)))
    heard(federation, "eve", with_complaints(federation, "eve", complaint("eve", given="x" * 100_000)))
    assert sum(len(entry.record) for entry in recorded(federation)) < 10_000


def test_a_complaint_of_a_word_that_stands_on_the_ledger_is_not_recorded(federation: Federation) -> None:
    federation.log.append(
        [Entry("evidence", {"study": STUDY.hash, "member": "eve", "round": 0, "envelope": "x"})], own=STUDY.hash
    )
    heard(federation, "eve", with_complaints(federation, "eve", complaint("eve")))
    assert recorded(federation) == []


def test_a_complaint_in_anothers_name_is_not_recorded(federation: Federation) -> None:
    heard(federation, "eve", with_complaints(federation, "eve", complaint("ann")))
    assert recorded(federation) == []


def test_a_cosignature_of_the_empty_ledger_does_not_end_the_question(federation: Federation) -> None:
    """The log's own key signed it when the ledger was made, and its service shows it until the founding."""
    empty = federation.log.note_at(0)
    line = cosign(open_note(empty, LOG_VERIFIER), "eve", WITNESSES["eve"], 1)
    heard(federation, "eve", Word(empty, line))
    heard(federation, "ann", federation.members["ann"].sees(federation.log.head.note))
    federation.witnessing.flush()
    assert list(federation.log.cosignatures(federation.log.head.size)) == ["ann"]


STRANGE: dict[str, Callable[[Federation], Checkpoint]] = {
    "a future checkpoint": lambda f: Checkpoint(ORIGIN, 10_000, b"\1" * 32),
    "another history": lambda f: Checkpoint(ORIGIN, 3, b"\1" * 32),
    "another log": lambda f: Checkpoint("test/other", 3, b"\1" * 32),
}


@pytest.mark.parametrize("case", STRANGE)
@pytest.mark.parametrize("key", [COORDINATOR, SigningKey.from_seed(b"L" * 32)])
def test_one_liar_cannot_say_that_the_ledger_was_rolled_back(
    case: str, key: SigningKey, federation: Federation
) -> None:
    """Only what the log's own key signed, under this log's name, says so."""
    checkpoint = STRANGE[case](federation)
    if key is COORDINATOR and checkpoint.origin == ORIGIN:
        key = SigningKey.from_seed(b"K" * 32)
    note = sign_checkpoint(checkpoint, key)
    with suppress(CausalDAOError):
        heard(federation, "eve", Word(note, cosign(checkpoint, "eve", WITNESSES["eve"], 1)))
    federation.witnessing.require_whole()


GARBAGE: dict[str, bytes] = {
    "no JSON": b"{", "deep": b"[" * 100_000, "a list": b"[]", "numbers": b'{"note":1,"line":1,"complaints":1}',
    "half a surrogate pair": b'{"note":"\\ud800","line":"","complaints":[]}',
    "a complaint with half a surrogate pair": b'{"note":"","line":"","complaints":["\\ud800"]}',
    "too long": b" " * (1 << 20),
    "a note of many lines": b'{"complaints":[],"line":"","note":"%s"}' % (b"a\\n" * 60_000),
}  # fmt: skip


@pytest.mark.parametrize("case", GARBAGE)
def test_a_word_of_garbage_costs_nobody_but_its_member(case: str, federation: Federation) -> None:
    for kind in ("refusal.evidence", "evidence"):
        eve = replace(word("eve", kind, body={"code": "ledger"} if "." in kind else {}), trail=GARBAGE[case])
        federation.behave("eve", says(eve, 0.1))
        assert sorted(federation.collect()) == ["ann", "bob", "cat", "dan"]


# keys that changed


def rotated(federation: Federation, *names: str) -> dict[str, SigningKey]:
    """New witness keys, by everybody's votes."""
    keys = {}
    for name in names:
        keys[name] = SigningKey.from_seed(name.encode().ljust(32, b"2"))
        now = membership.epoch(federation.log)
        member = Member(name, KEYS[name].public, keys[name].public, now.number)
        body = governance.admission(member, now.number)
        membership.rotate(federation.log, member, votes.votes(federation.log, "member.rotate", body, KEYS))
    return keys


def test_what_was_cosigned_with_old_keys_is_shown_as_agreed_to_nobody(federation: Federation) -> None:
    """The members count keys: shown too few, they refuse all, and could never cosign what would mend it."""
    federation.collect()
    rotated(federation, "ann", "bob", "cat")
    epoch = membership.epoch(federation.log)
    current = [Verifier.of(name, member.witness, WITNESSING) for name, member in epoch.members.items()]
    trail = Trail.unpack(federation.witnessing.view().trail("dan"))
    assert trail.agreed == "" or len(cosigners(trail.agreed, current)) >= epoch.quorum


def test_a_cosignature_by_a_key_that_was_given_up_is_not_kept(federation: Federation) -> None:
    """Its holder is heard in the studies that were proposed before: one name more, where the members count keys."""
    federation.witnessing.view()
    rotated(federation, "ann")
    federation.grow()
    head = federation.log.refresh()
    with suppress(CausalDAOError):
        heard(federation, "ann", Word(head.note, cosign(head.checkpoint, "ann", WITNESSES["ann"], 1)))
    federation.witnessing.flush()
    assert federation.log.cosignatures(head.size) == {}


def test_a_cosignature_by_the_key_that_a_member_has_now_is_kept(federation: Federation) -> None:
    federation.witnessing.view()
    new = rotated(federation, "ann")["ann"]
    head = federation.log.refresh()
    heard(federation, "ann", Word(head.note, cosign(head.checkpoint, "ann", new, 1)), refused=False)
    federation.witnessing.flush()
    assert list(federation.log.cosignatures(head.size)) == ["ann"]


def test_a_line_of_an_old_key_is_not_shown_as_a_members_own(federation: Federation) -> None:
    federation.collect()
    rotated(federation, "ann")
    # another study, proposed since: its roster has the new key
    now = membership.roster(federation.log)
    later = Witnessing(federation.log, COORDINATOR.public, now, "f" * 64)
    assert "ann" not in Trail.unpack(later.view().trail("ann")).last


def test_more_members_than_a_note_can_carry_are_admitted(tmp_path: Path, clock: FakeClock) -> None:
    with Log.create(f"sqlite:///{tmp_path / 'ledger.db'}", ORIGIN, COORDINATOR, clock.now) as log:
        membership.found(log, "fed")
        keys = [(f"m-{n:04d}", *(SigningKey.from_seed(f"{n}{use}".encode().ljust(32, b".")).public for use in "sw"))
                for n in range(membership.MAX_MEMBERS + 1)]  # fmt: skip
        with pytest.raises(GuaranteeError, match="more than the 255"):
            membership.admit(log, *(Member(name, key, witness) for name, key, witness in keys))
        assert log.head.size == 1


# whole studies, with real nodes


def run(path: Path, **options: Any) -> dict[str, Any]:
    return simulate(SMALL, small.table(), path / "run", small.SETTING, **options)


def lying(monkeypatch: pytest.MonkeyPatch, made: Callable[[Node, Statement], tuple[str, ...]]) -> None:
    """The bad member complains as it likes."""
    honest = Attendant._complaints

    def complaints(self: Attendant, request: Statement) -> tuple[str, ...]:
        return made(self._node, request) if self._node.config.name == BAD else honest(self, request)

    monkeypatch.setattr(Attendant, "_complaints", complaints)


def test_a_liar_that_complains_twice_of_one_word_cannot_withhold_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(node: Node, request: Statement) -> tuple[str, ...]:
        body = {"kind": "evidence", "round": 0, "word": "0" * 64}
        return tuple(
            node.say(request, {**body, "given": given}, "complaint").envelope.decode() for given in ("now", "then")
        )

    lying(monkeypatch, twice)
    assert run(tmp_path)["members"]


def test_a_member_revoked_after_its_complaint_cannot_withhold_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger takes no word of it any more, and the study is at its end."""

    def once(node: Node, request: Statement) -> tuple[str, ...]:
        body = {"kind": "evidence", "round": 0, "word": "0" * 64, "given": "2026-01-01T00:00:00+00:00"}
        return (node.say(request, body, "complaint").envelope.decode(),)

    lying(monkeypatch, once)
    ask = Coordinator._ask_for_cosignatures
    gone: list[str] = []

    def ask_then_revoke(self: Coordinator, *, end: bool) -> None:
        ask(self, end=end)
        if end and not gone:
            gone.append(BAD)
            with Log.open(self.log._engine.url.render_as_string(), self.key) as operator:
                votes.revoke(operator, BAD, "left the federation", _keys())

    monkeypatch.setattr(Coordinator, "_ask_for_cosignatures", ask_then_revoke)
    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, arrive):
        arrive()
        # the end is asked for at least once
        monkeypatch.setattr(Coordinator, "_cosigned", lambda self, size: False)
        assert coordinator.run().done[-1] == "closed"


def test_members_admitted_while_a_study_runs_do_not_stop_it(tmp_path: Path) -> None:
    """They raise the quorum, and this study never asks them: its own members would refuse for ever."""
    admitted: list[str] = []

    def admit(coordinator: Coordinator) -> None:
        with Log.open(coordinator.log._engine.url.render_as_string(), coordinator.key) as operator:
            for number in range(7):
                name, now = f"new-{number}", membership.epoch(operator)
                keys = [SigningKey.from_seed(name.encode().ljust(32, letter)) for letter in (b"s", b"w")]
                member = Member(name, keys[0].public, keys[1].public, now.number)
                body = governance.admission(member, now.number)
                everybody = {**_keys(), **{n: SigningKey.from_seed(n.encode().ljust(32, b"s")) for n in admitted}}
                membership.admit(operator, member, votes=votes.votes(operator, "member.admit", body, everybody))
                admitted.append(name)

    def on_state(state: str) -> None:
        if state == "evidence" and not admitted:
            admit(coordinator)

    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, arrive):
        arrive()
        coordinator.on_state = on_state
        assert coordinator.run().done[-1] == "closed"


def rotate_signing(coordinator: Coordinator, name: str) -> None:
    """Another signing key for a member, by everybody's votes, written by the operator's process."""
    with Log.open(coordinator.log._engine.url.render_as_string(), coordinator.key) as operator:
        now = membership.epoch(operator)
        new = SigningKey.from_seed(b"3" * 32).public
        member = Member(name, new, now.members[name].witness, now.number)
        body = governance.admission(member, now.number)
        membership.rotate(operator, member, votes.votes(operator, "member.rotate", body, _keys()))


def verifies(coordinator: Coordinator) -> None:
    """The ledger, whatever the witnesses say of its end."""
    text = membership.policy(coordinator.log, coordinator.key.public)
    lines = [line if not line.startswith("quorum") else "quorum none" for line in text.split("\n")]
    verify(export(coordinator.log), Policy.parse("\n".join(lines)))


def test_a_member_that_goes_on_with_the_key_it_gave_up_does_not_spoil_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stolen key, or a liar that had its own rotated: a word of the old key behind the rotation never verifies."""
    honest = Attendant._require_own
    monkeypatch.setattr(
        Attendant, "_require_own", lambda s, *given: None if s._node.config.name == BAD else honest(s, *given)
    )
    turned: list[str] = []

    def on_state(state: str) -> None:
        if state == "evidence" and not turned:
            turned.append(BAD)
            rotate_signing(coordinator, BAD)

    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, arrive):
        arrive()
        coordinator.on_state = on_state
        coordinator.run()
        verifies(coordinator)


def test_a_key_given_up_between_an_answer_and_the_record_of_it_does_not_spoil_the_ledger(tmp_path: Path) -> None:
    """Nobody lies here: the votes for the rotation come together while the study's step is decided."""
    turned: list[str] = []

    def progress(event: Event) -> None:
        if event.phase == "pool" and not turned:
            turned.append(BAD)
            rotate_signing(coordinator, BAD)

    with _coordinator(tmp_path, SimulatedClock(), {}, progress) as (coordinator, arrive):
        arrive()
        coordinator.run()
        verifies(coordinator)


def test_a_resumed_study_asks_for_the_cosignatures_that_its_members_will_want(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cosignatures of two questions fell on several sizes, then the coordinator was killed: what it had shown is
    forgotten, what its members cosigned is not."""
    keep = Log.keep_cosignatures

    def on_state(state: str) -> None:
        if state == "ballots":
            raise KeyboardInterrupt

    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, arrive):
        arrive()
        monkeypatch.setattr(Log, "keep_cosignatures", lambda self, size, lines: None)
        coordinator.on_state = on_state
        # the members of this coordinator's first run ask for no quorum: what is tested comes behind it
        demand = Attendant._require_agreed
        monkeypatch.setattr(Attendant, "_require_agreed", lambda *given: None)
        with pytest.raises(KeyboardInterrupt):
            coordinator.run()
        monkeypatch.setattr(Log, "keep_cosignatures", keep)
        monkeypatch.setattr(Attendant, "_require_agreed", demand)
        coordinator.on_state = lambda state: None
        assert coordinator.run().done[-1] == "closed"


def test_an_admission_while_a_question_is_put_together_does_not_stop_the_study(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entries are read behind the head: what came in between has no place in the head's tree yet."""
    shown = Witnessing.agreed

    def meanwhile(self: Witnessing) -> Agreed | None:
        if membership.epoch(federation.log).number == len(NAMES):
            with Log.open(federation.url, COORDINATOR, federation.clock.now) as operator:
                now = membership.epoch(operator)
                member = Member(
                    "fay", SigningKey.from_seed(b"f" * 32).public, SigningKey.from_seed(b"g" * 32).public, now.number
                )
                body = governance.admission(member, now.number)
                membership.admit(operator, member, votes=votes.votes(operator, "member.admit", body, KEYS))
        return shown(self)

    monkeypatch.setattr(Witnessing, "agreed", meanwhile)
    assert sorted(federation.collect()) == list(NAMES)


def test_a_member_rotated_while_a_study_runs_does_not_stop_it(tmp_path: Path) -> None:
    turned: list[str] = []

    def on_state(state: str) -> None:
        if state == "evidence" and not turned:
            turned.append(BAD)
            with Log.open(coordinator.log._engine.url.render_as_string(), coordinator.key) as operator:
                now = membership.epoch(operator)
                member = Member(BAD, now.members[BAD].key, SigningKey.from_seed(b"2" * 32).public, now.number)
                body = governance.admission(member, now.number)
                membership.rotate(operator, member, votes.votes(operator, "member.rotate", body, _keys()))

    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, arrive):
        arrive()
        coordinator.on_state = on_state
        assert coordinator.run().done[-1] == "closed"


@pytest.mark.parametrize("call", [2, 9, 5, 11][: count(1, 4)])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_coordinator_killed_while_it_keeps_cosignatures_goes_on(
    when: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members have cosigned more than the ledger knows of, or the ledger knows of more than was decided with it."""
    keep, calls = Log.keep_cosignatures, list[int]()

    def dying(self: Log, size: int, lines: Any) -> None:
        calls.append(size)
        if when == "after":
            keep(self, size, lines)
        if len(calls) == call:
            raise KeyboardInterrupt
        if when == "before":
            keep(self, size, lines)

    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, arrive):
        arrive()
        monkeypatch.setattr(Log, "keep_cosignatures", dying)
        with suppress(KeyboardInterrupt):
            coordinator.run()
        monkeypatch.setattr(Log, "keep_cosignatures", keep)
        assert coordinator.run().done[-1] == "closed"
        assert _audited(coordinator).faults == []
        agreed = coordinator._witnessing.agreed()
        assert agreed is not None
        assert agreed.checkpoint.size > coordinator.log.entries(kinds=("study.closed",))[0].index
