"""A study among members that lie, break and vanish: each is named and logged, the rest goes on and audits."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from causaldao.audit import Audit, audit
from causaldao.client.app import client_app
from causaldao.client.enrolment import WITNESS_FILE
from causaldao.client.node import Lifetime, Node, NodeConfig
from causaldao.client.witnessing import create_state
from causaldao.errors import ConfigurationError, GuaranteeError, LedgerError, NetworkError
from causaldao.ledger.bundle import export
from causaldao.ledger.log import Log
from causaldao.ledger.verify import Policy, verify
from causaldao.members import Member, Roster
from causaldao.messages import Parcel, make
from causaldao.server import membership
from causaldao.server.clock import SimulatedClock
from causaldao.server.coordinator import Coordinator
from causaldao.server.mailbox import Mailbox
from causaldao.server.progress import Event
from causaldao.server.recording import find, found_if_new, propose, proposed
from causaldao.server.standing import Standing
from causaldao.signing import SigningKey, Tensors, digest, peek
from causaldao.simulations.attacks import Conduct
from causaldao.simulations.engine import Faults, InlineGrid, identity
from causaldao.simulations.federation import simulate
from causaldao.simulations.members import ORIGIN, witness_key
from causaldao.wire import from_records, to_records
from tests.counts import count
from tests.server import votes
from tests.simulations import small

BAD = small.SETTING.names[2]
NODE = 1002
STUDY = small.study(faulty=1)
OTHER = small.study(faulty=1, rounds=2)
KINDS = {
    "rollcall": "query.rollcall",
    "evidence": "query.evidence",
    "ballot": "query.ballot",
    "update": "train",
    "evaluation": "evaluate",
    "close": "query.close",
}


def run(tmp_path: Path, **options: Any) -> dict[str, Any]:
    """The small study, which needs five of its seven; checks what must hold whatever one member does."""
    result = simulate(options.pop("study", STUDY), small.table(), tmp_path / "run", small.SETTING, **options)
    assert not small.audited(tmp_path / "run").faults
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == json.loads(json.dumps(result))
    others = [small.status(result, name)[0] for name in small.SETTING.names if name != BAD]
    assert set(others) <= {"ok", "excluded"}
    return result


def complaints(tmp_path: Path) -> list[dict[str, Any]]:
    return [dict(line.body) for line in small.lines(tmp_path / "run") if line.kind == "complaint"]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same study when the bad member's evidence never comes."""
    away = Faults(request=lambda m: (m.metadata.dst_node_id, m.metadata.message_type) != (NODE, KINDS["evidence"]))
    return simulate(STUDY, small.table(), tmp_path_factory.mktemp("without") / "run", small.SETTING, faults=away)


def on(kind: str, act: Callable[[Tensors], Tensors]) -> dict[str, Conduct]:
    """The bad member's conduct: ``act`` on its tensors of one kind."""
    return {BAD: Conduct(tensors=lambda what, tensors: act(tensors) if what == kind else tensors)}


def filled(value: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: np.full_like(array, value) for name, array in tensors.items()}


def broken(tensors: Tensors) -> Tensors:
    raise RuntimeError("patient 4711 is out of memory")


UNFIT: dict[str, Callable[[Tensors], Tensors]] = {
    "nothing at all": lambda tensors: {},
    "one entry more": lambda tensors: {name: np.append(array, array[:1]) for name, array in tensors.items()},
    "another shape": lambda tensors: {name: array.reshape(1, -1) for name, array in tensors.items()},
    "one name more": lambda tensors: {**tensors, "more": np.zeros(1)},
    "another name": lambda tensors: dict.fromkeys(["zzz"], *tensors.values()),
    "another type": lambda tensors: {
        name: array.astype(np.int64 if array.dtype.kind == "f" else np.float64) for name, array in tensors.items()
    },
    "a failure": broken,
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_unfit_evidence_is_quarantined_and_the_result_is_that_of_the_others(
    unfit: str, tmp_path: Path, without: dict[str, Any]
) -> None:
    result = run(tmp_path, conducts=on("evidence", UNFIT[unfit]))
    assert small.status(result, BAD)[0] == "quarantined"
    assert BAD not in result["pool"]["counts"]
    for part in ("effects", "graph", "rounds"):
        assert result[part] == without[part], part
    (complaint,) = complaints(tmp_path)
    assert (complaint["member"], complaint["kind"], complaint["round"]) == (BAD, "evidence", 0)
    assert "patient 4711" not in (tmp_path / "run" / "ledger.bundle").read_text()


@pytest.mark.parametrize("kind", ["update", "evaluation"])
@pytest.mark.parametrize(
    "unfit",
    [
        filled(np.nan),
        broken,
        UNFIT["nothing at all"],
        *([filled(np.inf), *UNFIT.values()] if count(0, 1) else []),
    ],
)
def test_unfit_updates_and_losses_are_quarantined(
    unfit: Callable[[Tensors], Tensors], kind: str, tmp_path: Path
) -> None:
    result = run(tmp_path, conducts=on(kind, unfit))
    assert small.status(result, BAD)[0] == "quarantined"
    assert [(c["member"], c["kind"], c["round"]) for c in complaints(tmp_path)] == [(BAD, kind, 1)]
    assert (BAD in result["rounds"][0]["kept"] + result["rounds"][0]["excluded"]) == (kind == "evaluation")


@pytest.mark.parametrize(("records", "taken"), [(-300.0, False), (-1e9, False), (1e5, True), (1e9, False)])
def test_a_count_that_nobody_can_have_buys_weight(
    records: float, taken: bool, tmp_path: Path, without: dict[str, Any]
) -> None:
    """A negative one, or a huge one beside honest sums or sums as huge; in training a member has one weight anyhow."""
    lattice = STUDY.dictionary.lattice**2

    def declared(tensors: Tensors) -> Tensors:
        moments = tensors["moments"].copy()
        moments[0] = round(records * lattice)
        return {"moments": moments}

    def scaled(tensors: Tensors) -> Tensors:
        moments = tensors["moments"] * (records * lattice / tensors["moments"][0])
        return {"moments": moments.clip(-(2.0**62), 2.0**62).astype(np.int64)}

    for k, act in enumerate((declared, scaled)[: count(1, 2)]):
        result = run(tmp_path / str(k), conducts=on("evidence", act))
        weights = result["pool"]["weights"]
        assert (small.status(result, BAD)[0] != "quarantined") == taken
        assert weights.get(BAD, 0.0) <= 2 * np.median(list(weights.values())) + 1e-9
        assert abs(result["effects"][0]["estimate"] - without["effects"][0]["estimate"]) < 0.3


EXTREMES = [0, np.iinfo(np.int64).max, np.iinfo(np.int64).min, 1, -1, 2**62, -(2**62)][: count(3, 7)]


@pytest.mark.parametrize("value", EXTREMES)
def test_evidence_of_absurd_numbers_cannot_end_the_study(value: int, tmp_path: Path, without: dict[str, Any]) -> None:
    result = run(tmp_path, conducts=on("evidence", lambda t: {"moments": np.full_like(t["moments"], value)}))
    assert BAD not in result["pool"]["kept"]
    assert all(np.isfinite(e["estimate"]) for e in result["effects"])
    assert abs(result["effects"][0]["estimate"] - without["effects"][0]["estimate"]) < 0.3


@pytest.mark.parametrize(
    ("kind", "value"), [("update", 3e38), ("update", -3e38), ("evaluation", 1e308), ("evaluation", -1e308)]
)
def test_finite_but_enormous_updates_and_losses_cannot_end_the_study(kind: str, value: float, tmp_path: Path) -> None:
    result = run(tmp_path, conducts=on(kind, filled(value)))
    (entry,) = result["rounds"]
    assert 0 <= entry["loss"] <= STUDY.privacy.loss_bound
    # clipped to the length of an honest update: what is left of it is its direction, and it is said that it was
    assert kind == "evaluation" or BAD in entry["excluded"] + entry["down_weighted"]
    assert kind == "evaluation" or entry["weights"][BAD] < 1e-30


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_dies_at_a_step_is_absent_from_then_on(kind: str, tmp_path: Path) -> None:
    dead: list[bool] = []

    def request(message: Message) -> bool:
        if (message.metadata.dst_node_id, message.metadata.message_type) == (NODE, KINDS[kind]):
            dead.append(True)
        return not dead or message.metadata.dst_node_id != NODE

    result = run(tmp_path, faults=Faults(request=request))
    status, reason = small.status(result, BAD)
    assert status == "absent"
    assert "did not answer" in reason or "none of its nodes answered" in reason
    assert {c["code"] for c in complaints(tmp_path)} == {"network"}


def test_duplicated_and_reordered_replies_change_nothing(tmp_path: Path) -> None:
    shuffle = Faults(replies=lambda messages: [*reversed(messages), *messages])
    study = small.study(faulty=1, rounds=2, aggregation={"rule": "bucketing+caf", "optimiser": "fedyogi"})
    run(tmp_path / "a", faults=shuffle, study=study)
    run(tmp_path / "b", study=study)
    assert small.result_of(tmp_path / "a" / "run") == small.result_of(tmp_path / "b" / "run")
    one, other = (tmp_path / name / "run" / "model.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


class Forger:
    """Holds the bad member's key, and replaces or adds to what its node answers to one kind of question."""

    def __init__(self, folder: Path, kind: str, add: bool, forge: Callable[[Forger, Parcel], Parcel]) -> None:
        self.folder, self.kind, self.add, self.forge = folder, kind, add, forge
        self.seen: dict[str, Parcel] = {}

    def resigned(self, parcel: Parcel, **changed: Any) -> Parcel:
        """The same statement with some things changed, signed by the member itself."""
        said = peek(parcel.envelope)
        key = SigningKey.load(self.folder / "nodes" / BAD / "key.pem")
        given: dict[str, Any] = {
            "federation": said.federation,
            "study": said.study,
            "round": said.round,
            "member": said.member,
            "kind": said.kind,
            "body": said.body,
            "nonce": said.nonce,
            "parent": said.parent,
            "tensors": parcel.tensors,
            **changed,
        }
        return dataclasses.replace(make(given.pop("key", key), **given), trail=parcel.trail)

    def __call__(self, messages: list[Message]) -> list[Message]:
        changed = []
        for message in messages:
            parcel = from_records(message.content)
            said = peek(parcel.envelope)
            self.seen[f"{said.member} {said.kind} {said.round}"] = parcel
            if (said.member, said.kind) != (BAD, self.kind):
                changed.append(message)
                continue
            other = Message(to_records(self.forge(self, parcel)), reply_to=message)
            other.metadata.__dict__["_reply_to_message_id"] = message.metadata.reply_to_message_id
            changed += [message, other] if self.add else [other]
        return changed


FORGERIES: dict[str, tuple[str, Callable[[Forger, Parcel], Parcel], str]] = {
    "another's key": ("evidence", lambda f, p: f.resigned(p, key=SigningKey.generate()), "signature"),
    "another's envelope": (
        "evidence",
        lambda f, p: f.seen[f"{small.SETTING.names[0]} evidence 0"],
        "brought what",
    ),
    "an altered tensor": (
        "evidence",
        lambda f, p: Parcel(p.envelope, {"moments": p.tensors["moments"] + 1}, p.trail),
        "not those",
    ),
    "a reply of another kind": ("ballot", lambda f, p: f.seen[f"{BAD} evidence 0"], "it was not read"),
    "a reply of another round": ("update", lambda f, p: f.seen[f"{BAD} update 1"], "signed round 1"),
    "an update of another model": (
        "update",
        lambda f, p: f.resigned(p, body={"base": "0" * 64}),
        "another model",
    ),
    "a ballot with a vote of five": ("ballot", lambda f, p: f.resigned(p, body=_voted(p, 5)), "votes"),
    "a ballot without its votes": ("ballot", lambda f, p: f.resigned(p, body={}), "votes"),
    "noise of a new kind": (
        "evidence",
        lambda f, p: f.resigned(p, body={"noise": "trust me " * 9}),
        "must be one of",
    ),
    "a roll call with a novel": ("rollcall", lambda f, p: f.resigned(p, body=_novel(p)), "at most 64"),
}


def _voted(parcel: Parcel, vote: int) -> dict[str, Any]:
    body = dict(peek(parcel.envelope).body)
    return {**body, "votes": dict.fromkeys(body["votes"], vote)}


def _novel(parcel: Parcel) -> dict[str, Any]:
    return {**peek(parcel.envelope).body, "version": "v" * 500_000}


@pytest.mark.parametrize("case", FORGERIES)
def test_a_forgery_is_quarantined_with_its_reason_and_the_study_goes_on(case: str, tmp_path: Path) -> None:
    kind, forge, reason = FORGERIES[case]
    rounds = 2 if "another round" in case else 1

    def from_second(forger: Forger, parcel: Parcel) -> Parcel:
        return forge(forger, parcel) if peek(parcel.envelope).round == rounds or rounds == 1 else parcel

    forger = Forger(tmp_path / "run", kind, False, from_second)
    result = run(tmp_path, study=small.study(faulty=1, rounds=rounds), faults=Faults(replies=forger))
    said = [c for c in complaints(tmp_path) if c["kind"] == kind]
    assert [c["round"] for c in said if reason in c["reason"]] == [0 if kind != "update" else rounds], said
    assert small.status(result, BAD)[0] in ("quarantined", "absent")


@pytest.mark.parametrize("kind", ["rollcall", "evidence", "ballot", "update", "evaluation", "close"])
def test_a_second_content_in_one_slot_is_logged_with_both_exhibits_and_the_member_is_out(
    kind: str, tmp_path: Path
) -> None:
    """Its own key signed both: anyone can check the proof in the bundle."""
    other: dict[str, Callable[[Forger, Parcel], Parcel]] = {
        "rollcall": lambda f, p: f.resigned(p, body={**peek(p.envelope).body, "version": "0.0.0"}),
        "evidence": lambda f, p: f.resigned(p, tensors={"moments": p.tensors["moments"] + 1}),
        "ballot": lambda f, p: f.resigned(p, body={**peek(p.envelope).body, "near_ties": ["none such"]}),
        "update": lambda f, p: f.resigned(p, tensors={"delta": p.tensors["delta"] + 1}),
        "evaluation": lambda f, p: f.resigned(p, tensors={"loss": p.tensors["loss"] + 1}),
        "close": lambda f, p: f.resigned(p, body={"result": "0" * 64}),
    }
    forger = Forger(tmp_path / "run", kind, True, other[kind])
    result = run(tmp_path, faults=Faults(replies=forger))
    assert small.status(result, BAD) == ("excluded", f"signed two contents for one {kind}")
    lines = small.lines(tmp_path / "run")
    (proof,) = [line for line in lines if line.kind == "equivocation"]
    folder = tmp_path / "run" / "nodes" / BAD
    key, witness = (SigningKey.load(folder / file).public for file in ("key.pem", "witness.pem"))
    roster = Roster("simulation", (Member(BAD, key, witness),))
    first, second = (
        roster.open(e.encode(), study=STUDY.hash, round=proof.body["round"], kind=kind) for e in proof.body["exhibits"]
    )
    assert first.slot == second.slot
    assert first.content != second.content
    later = [line for line in lines if line.index > proof.index and line.body.get("member") == BAD]
    if kind in (
        "evidence",
        "update",
        "evaluation",
    ):  # what it was asked for when it lied was released, and is accounted
        accounted = later.pop(0)
        assert (accounted.kind, accounted.body["kind"]) == ("privacy.spend", kind)
    assert later == []
    assert kind in ("ballot", "update", "evaluation", "close") or BAD not in result["pool"]["counts"]


def test_who_signed_two_contents_stays_out_though_that_step_was_aborted(tmp_path: Path) -> None:
    """Two others were away, so the ballots failed; when they are back, the proof still stands."""
    away = {1004, 1005}
    forger = Forger(tmp_path / "run", "ballot", True, lambda f, p: f.resigned(p, body=_voted(p, 5)))
    faults = Faults(lambda m: m.metadata.message_type != KINDS["ballot"] or m.metadata.dst_node_id not in away, forger)
    with pytest.raises(GuaranteeError):
        run(tmp_path, faults=faults)
    result = run(tmp_path, resume=True)
    assert small.status(result, BAD) == ("excluded", "signed two contents for one ballot")
    lines = small.lines(tmp_path / "run")
    assert [line.body["member"] for line in lines if line.kind == "equivocation"] == [BAD]
    assert BAD not in [line.body["member"] for line in lines if line.kind in ("ballot", "update")]


def test_too_many_missing_are_named_at_once_and_given_up_at_the_deadline_not_before(tmp_path: Path) -> None:
    """Nodes that are not even connected: nothing to wait for, yet they get the whole deadline to come."""
    clock, events = SimulatedClock(), list[Event]()
    with _coordinator(tmp_path, clock, {}, events.append) as (coordinator, _):
        began = clock.monotonic()
        with pytest.raises(GuaranteeError, match="Only 0 of the 5"):
            coordinator.run()
        assert STUDY.members.deadline <= clock.monotonic() - began < STUDY.members.deadline + 10
    assert "0 of 5 members for rollcall" in events[0].message


def test_members_that_come_within_the_deadline_are_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimulatedClock()
    apps: dict[str, ClientApp] = {}
    with _coordinator(tmp_path, clock, apps, lambda event: None) as (coordinator, nodes):
        began = clock.monotonic()

        def sleep(seconds: float) -> None:
            SimulatedClock.sleep(clock, seconds)
            if clock.monotonic() - began > 20 and not apps:
                nodes()

        monkeypatch.setattr(clock, "sleep", sleep)
        coordinator.run()
    assert coordinator.state.done[-1] == "closed"
    assert coordinator.state.present == list(small.SETTING.names)


def test_the_same_fault_at_every_retry_is_one_complaint(tmp_path: Path) -> None:
    def raising(message: Message, context: Context) -> Message:
        raise ZeroDivisionError

    apps: dict[str, Any] = dict.fromkeys(small.SETTING.names, raising)
    with _coordinator(tmp_path, SimulatedClock(), apps, lambda event: None) as (coordinator, _):
        with pytest.raises(GuaranteeError):
            coordinator.run()
        kinds = [entry.kind for entry in coordinator.log.entries()]
    assert 7 <= kinds.count("complaint") <= 14  # each node, and each member of whom no node is known


def test_the_second_study_on_a_ledger_meets_the_state_of_the_first(tmp_path: Path) -> None:
    """Two studies, one after the other, on one ledger: each with its own state, model and course; both audit."""
    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (first, arrive):
        arrive()
        first.run()
        second = dataclasses.replace(first, study=OTHER)
        second.run()
        assert [first.state.done[-1], second.state.done[-1]] == ["closed", "closed"]
        assert (len(first.state.rounds), len(second.state.rounds)) == (1, 2)
        assert Coordinator.run(first).done == first.state.done  # asked again, the first still knows that it is over
        assert digest(first._tensors()) != digest(second._tensors())
        assert proposed(first.log) == {STUDY.hash: STUDY.name, OTHER.hash: OTHER.name}
        kinds = [entry.kind for entry in first.log.entries()]
        assert (kinds.count("genesis"), kinds.count("member.admit")) == (1, small.MEMBERS)
        assert _audited(first).faults == []


def test_two_studies_at_once_take_each_others_entries_for_their_own(tmp_path: Path) -> None:
    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (first, arrive):
        arrive()
        url = first.log._engine.url.render_as_string()
        with Log.open(url, first.key) as log:
            second = dataclasses.replace(first, study=OTHER, log=log)

            def meanwhile(state: str) -> None:
                if state == "roll-call":
                    second.run()

            first.on_state = meanwhile
            first.run()
        assert [first.state.done[-1], second.state.done[-1]] == ["closed", "closed"]
        assert _audited(first).faults == []


def test_a_study_that_the_ledger_does_not_know_is_named_with_those_that_it_knows(tmp_path: Path) -> None:
    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, _):
        found_if_new(coordinator.log, coordinator.roster)
        propose(coordinator.log, STUDY)
        assert find(coordinator.log, STUDY.hash).hash == STUDY.hash
        with pytest.raises(ConfigurationError, match=rf"knows no study {OTHER.hash[:12]}; it has {STUDY.hash[:12]}"):
            find(coordinator.log, OTHER.hash)


def test_a_study_proposed_twice_starts_again(tmp_path: Path) -> None:
    """`study propose` before the coordinator runs, and once more when it is over."""
    states: list[str] = []
    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, arrive):
        arrive()
        found_if_new(coordinator.log, coordinator.roster)
        propose(coordinator.log, STUDY)
        coordinator.on_state = states.append
        coordinator.run()
        size = coordinator.log.head.size
        propose(coordinator.log, STUDY)
        assert coordinator.log.head.size == size
        assert coordinator.run().done[-1] == "closed"
        kinds = [entry.kind for entry in coordinator.log.entries()]
    assert states[0] == "roll-call"
    assert kinds.count("study.proposed") == 1


def test_a_coordinator_killed_right_after_it_saw_two_contents_forgets_the_proof(tmp_path: Path) -> None:
    def die(event: Event) -> None:
        if "signed two contents" in event.message:
            raise KeyboardInterrupt

    forger = Forger(
        tmp_path / "run", "evidence", True, lambda f, p: f.resigned(p, tensors={"moments": p.tensors["moments"] + 1})
    )
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, faults=Faults(replies=forger), progress=die)
    result = run(tmp_path, resume=True)  # the node now says one thing, as if nothing had been
    assert small.status(result, BAD) == ("excluded", "signed two contents for one evidence")
    assert BAD not in result["pool"]["counts"]
    lines = small.lines(tmp_path / "run")
    assert [line.body["member"] for line in lines if line.kind == "equivocation"] == [BAD]
    spends = [line.body["kind"] for line in lines if line.kind == "privacy.spend" and line.body["member"] == BAD]
    assert spends == ["evidence"]  # it was asked before the crash, so its release is accounted


def test_a_member_revoked_between_its_answer_and_the_record_of_it_is_heard(tmp_path: Path) -> None:
    """The ledger refuses its word, and the step is decided again without it."""
    revoked: list[str] = []

    def progress(event: Event) -> None:
        if event.phase == "pool" and not revoked:
            revoked.append(BAD)
            with Log.open(coordinator.log._engine.url.render_as_string(), coordinator.key) as operator:
                votes.revoke(operator, BAD, "left the federation", _keys())

    with _coordinator(tmp_path, SimulatedClock(), {}, progress) as (coordinator, arrive):
        arrive()
        coordinator.run()
        spoke = {entry.body["member"] for entry in coordinator.log.entries(kinds=("evidence", "ballot", "update"))}
        assert spoke == set(small.SETTING.names) - {BAD}
        assert coordinator.state.statuses[BAD] == {"status": "excluded", "reason": "revoked"}
        assert _audited(coordinator).faults == []


def test_a_dead_grid_aborts_the_study_for_its_members_silence(tmp_path: Path) -> None:
    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, arrive):
        arrive()
        grid: Any = coordinator.mailbox._grid
        real = grid.pull_messages

        def broken(message_ids: Any) -> Any:
            raise OSError("connection refused")

        coordinator.on_state = lambda state: setattr(grid, "pull_messages", broken) if state == "roll-call" else None
        with pytest.raises(NetworkError, match="connection refused"):
            coordinator.run()
        grid.pull_messages = real
        assert coordinator.run().done[-1] == "closed"
        kinds = {entry.kind for entry in coordinator.log.entries()}
        assert not kinds & {"study.aborted", "complaint"}


def test_who_was_left_out_or_weighed_down_in_a_round_is_not_said(tmp_path: Path) -> None:
    """The bad member sends its update backwards and ten times as large: it cannot weigh what an honest one does."""
    result = run(tmp_path, conducts=on("update", lambda t: {"delta": -10 * t["delta"]}))
    (entry,) = result["rounds"]
    assert set(entry) == {"round", "loss", "rule", "excluded", "kept", "down_weighted", "weights"}
    assert BAD in entry["excluded"] + entry["down_weighted"]
    heaviest = max(entry["weights"].values())
    assert entry["down_weighted"] == [name for name in small.SETTING.names if 0 < entry["weights"][name] < heaviest / 2]
    assert entry["excluded"] == [name for name in small.SETTING.names if entry["weights"][name] == 0]
    assert re.search("left out in 1 of 1|weighed down in 1 of 1", small.status(result, BAD)[1])
    assert BAD in re.sub("<[^>]*>", " ", (tmp_path / "run" / "report.html").read_text()).split("Left out")[1]


def test_a_large_gram_matrix_is_a_payload_and_audits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causaldao.server.recording.GRAM_IN_BODY", small.MEMBERS)
    run(tmp_path)
    (line,) = [line for line in small.lines(tmp_path / "run") if line.kind == "aggregate"]
    assert "gram" not in line.body
    assert line.payloads == (line.body["gram_payload"],)


def test_the_operator_sees_where_each_member_stands(tmp_path: Path) -> None:
    seen: list[dict[str, Standing]] = []
    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, arrive):
        arrive()
        coordinator.observe = lambda standings: seen.append(dict(standings))
        coordinator.run()
    assert all(set(standings) == set(small.SETTING.names) for standings in seen)
    assert set(seen[0].values()) == {Standing("approved")}
    assert set(seen[-1].values()) == {Standing("answered")}


def test_a_coordinator_that_lost_its_ledger_to_another_stops_without_a_word(tmp_path: Path) -> None:
    """Two coordinators on one ledger: the second to write loses, and must not abort the other's study."""
    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, _):
        with Log.open(coordinator.log._engine.url.render_as_string(), coordinator.key) as other:
            rival = Coordinator(
                STUDY, coordinator.roster, coordinator.key, other, coordinator.mailbox, SimulatedClock()
            )
            rival._propose_study()
        with pytest.raises(LedgerError):
            coordinator.run()
        assert "study.aborted" not in [entry.kind for entry in coordinator.log.entries()]


def _audited(coordinator: Coordinator) -> Audit:
    log = coordinator.log
    return audit(verify(export(log), Policy.parse(membership.policy(log, coordinator.key.public))))


@contextmanager
def _coordinator(
    tmp_path: Path, clock: SimulatedClock, apps: dict[str, Any], progress: Callable[[Event], None]
) -> Iterator[tuple[Coordinator, Callable[[], None]]]:
    """A coordinator of the small study over a grid of ``apps``, and a function that brings its nodes up."""
    key = SigningKey.from_seed(b"C" * 32)
    nodes = {name: _node(tmp_path, name, key, k) for k, name in enumerate(small.SETTING.names)}
    members = (Member(name, node.key.public, witness_key(node.folder)) for name, node in nodes.items())
    roster = Roster("simulation", tuple(members), 1)
    grid = InlineGrid(apps, clock)

    def arrive() -> None:
        apps.update({name: client_app(partial(_opened, node)) for name, node in nodes.items()})
        grid.__post_init__()

    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with Log.create(url, ORIGIN, key, clock.now) as log, identity(1):
        yield Coordinator(STUDY, roster, key, log, Mailbox(grid, roster), clock, progress), arrive


def _opened(node: Node, context: Context) -> Node:
    return node


def _node(tmp_path: Path, name: str, coordinator: SigningKey, seed: int) -> Node:
    folder = tmp_path / name
    folder.mkdir()
    small.table(200, seed).to_parquet(folder / "data.parquet")
    config = NodeConfig(
        name=name,
        federation="simulation",
        coordinator=coordinator.public.to_text("coordinator"),
        origin=ORIGIN,
        data="data.parquet",
        dataset="small",
        approved=(STUDY.hash, OTHER.hash),
        insecure_seed=0,
        lifetime=Lifetime(epsilon=100.0),
    )
    SigningKey.from_seed(bytes([100 + seed]) * 32).save(folder / WITNESS_FILE)
    create_state(folder, ORIGIN)
    return Node(config, _keys()[name], folder)


def _keys() -> dict[str, SigningKey]:
    """The members' signing keys."""
    return {name: SigningKey.from_seed(bytes([k]) * 32) for k, name in enumerate(small.SETTING.names)}
