"""A study among members that lie, break and vanish: each is named and logged, the rest goes on and audits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from causaldao.client.app import client_app
from causaldao.client.node import Lifetime, Node, NodeConfig
from causaldao.errors import ConfigurationError, GuaranteeError, LedgerError
from causaldao.ledger.log import Log
from causaldao.members import Member, Roster
from causaldao.messages import Parcel, make
from causaldao.server.clock import SimulatedClock
from causaldao.server.coordinator import Coordinator
from causaldao.server.mailbox import Mailbox
from causaldao.server.progress import Event
from causaldao.signing import SigningKey, Tensors, peek
from causaldao.simulations.attacks import Conduct
from causaldao.simulations.engine import Faults, InlineGrid, identity
from causaldao.simulations.federation import simulate
from causaldao.wire import from_records, to_records
from tests.counts import count
from tests.simulations import small

BAD = small.SETTING.names[2]
NODE = 1002
STUDY = small.study(faulty=1)
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
    assert kind == "evaluation" or BAD in entry["excluded"]


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
    run(tmp_path / "a", faults=shuffle)
    run(tmp_path / "b")
    assert small.result_of(tmp_path / "a" / "run") == small.result_of(tmp_path / "b" / "run")


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
        return make(given.pop("key", key), **given)

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
        lambda f, p: Parcel(p.envelope, {"moments": p.tensors["moments"] + 1}),
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
    key = SigningKey.load(tmp_path / "run" / "nodes" / BAD / "key.pem").public
    roster = Roster("simulation", (Member(BAD, key),))
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
    assert "waiting: 0 of 5 members for rollcall" in events[0].message


def test_members_that_come_within_the_deadline_are_taken_in(tmp_path: Path) -> None:
    clock = SimulatedClock()
    apps: dict[str, ClientApp] = {}
    with _coordinator(tmp_path, clock, apps, lambda event: None) as (coordinator, nodes):
        began = clock.monotonic()

        def sleep(seconds: float) -> None:
            SimulatedClock.sleep(clock, seconds)
            if clock.monotonic() - began > 20 and not apps:
                nodes()

        clock.sleep = sleep  # type: ignore[method-assign]
        coordinator.run()
    assert coordinator.state.done[-1] == "closed"
    assert coordinator.state.present == list(small.SETTING.names)


def test_the_same_fault_at_every_retry_is_one_complaint(tmp_path: Path) -> None:
    raising: Any = lambda message, context: 1 / 0  # noqa: E731
    apps = dict.fromkeys(small.SETTING.names, raising)
    with _coordinator(tmp_path, SimulatedClock(), apps, lambda event: None) as (coordinator, _):
        with pytest.raises(GuaranteeError):
            coordinator.run()
        kinds = [entry.kind for entry in coordinator.log.entries()]
    assert 7 <= kinds.count("complaint") <= 14  # each node, and each member of whom no node is known


def test_a_ledger_of_another_study_is_refused(tmp_path: Path) -> None:
    with _coordinator(tmp_path, SimulatedClock(), {}, lambda event: None) as (coordinator, _):
        with pytest.raises(GuaranteeError):
            coordinator.run()
        other = small.study(faulty=1, rounds=2)
        with pytest.raises(ConfigurationError, match="the study was altered"):
            Coordinator(
                other,
                coordinator.roster,
                coordinator.key,
                coordinator.log,
                coordinator.mailbox,
                SimulatedClock(),
            )


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


@contextmanager
def _coordinator(
    tmp_path: Path, clock: SimulatedClock, apps: dict[str, Any], progress: Callable[[Event], None]
) -> Iterator[tuple[Coordinator, Callable[[], None]]]:
    """A coordinator of the small study over a grid of ``apps``, and a function that brings its nodes up."""
    key = SigningKey.from_seed(b"C" * 32)
    nodes = {name: _node(tmp_path, name, key, k) for k, name in enumerate(small.SETTING.names)}
    roster = Roster("simulation", tuple(Member(name, node.key.public) for name, node in nodes.items()), 1)
    grid = InlineGrid(apps, clock)

    def arrive() -> None:
        apps.update({name: client_app(lambda context, node=node: node) for name, node in nodes.items()})
        grid.__post_init__()

    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with Log.create(url, "causaldao.test", key, clock.now) as log, identity(1):
        yield Coordinator(STUDY, roster, key, log, Mailbox(grid, roster), clock, progress), arrive


def _node(tmp_path: Path, name: str, coordinator: SigningKey, seed: int) -> Node:
    folder = tmp_path / name
    folder.mkdir()
    small.table(200, seed).to_parquet(folder / "data.parquet")
    config = NodeConfig(
        name=name,
        federation="simulation",
        coordinator=coordinator.public.to_text("coordinator"),
        data="data.parquet",
        dataset="small",
        approved=(STUDY.hash,),
        insecure_seed=0,
        lifetime=Lifetime(epsilon=50.0),
    )
    return Node(config, SigningKey.from_seed(bytes([seed]) * 32), folder)
