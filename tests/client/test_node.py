"""What a node must never do: speak to a stranger, read rows for an unapproved study, say two things in one
slot, spend twice, let a text or a count of its records out."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message, RecordDict

from causaldao.budget import Spend, plan
from causaldao.client.app import client_app
from causaldao.client.approvals import approve, decline, withdraw
from causaldao.client.fit import check_study
from causaldao.client.node import Lifetime, Node, NodeConfig
from causaldao.client.privacy.journal import Cap, ReleaseKey
from causaldao.client.training import train
from causaldao.decisions import decide_pool, decide_proposal, first_model
from causaldao.errors import BudgetError, ConfigurationError, DataError, IdentityError
from causaldao.messages import COORDINATOR, REFUSAL, Parcel, make
from causaldao.models.discovery.evidence import Evidence
from causaldao.signing import SigningKey, Statement, digest, peek, unseal
from causaldao.simulations.attacks import Conduct, LyingNode
from causaldao.simulations.engine import identity
from causaldao.study import Study
from causaldao.wire import from_records, to_records
from tests.simulations import small

COORD = SigningKey.from_seed(b"C" * 32)
KEY = SigningKey.from_seed(b"N" * 32)
STUDY = small.study(faulty=0, rounds=2)


def node(folder: Path, table: pd.DataFrame | None = None, *, conduct: Conduct | None = None, **config: Any) -> Node:
    """A node in a fresh folder, with its study approved and simulated noise unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    (small.table(300) if table is None else table).to_parquet(folder / "data.parquet")
    value = {
        "name": "north",
        "federation": "fed",
        "coordinator": COORD.public.to_text("coordinator"),
        "data": "data.parquet",
        "dataset": "rows",
        "approved": [STUDY.hash],
        "insecure_seed": 1,
        "lifetime": {"epsilon": 50.0},
        **config,
    }
    return LyingNode(NodeConfig.parse(value, "node.toml"), KEY, folder, conduct or Conduct())


def request(
    kind: str,
    body: dict[str, Any] | None = None,
    *,
    key: SigningKey = COORD,
    tensors: Any = None,
    round: int = 0,
    **changed: Any,
) -> Parcel:
    given: dict[str, Any] = {
        "federation": "fed",
        "study": STUDY.hash,
        "member": COORDINATOR,
        "nonce": "q",
        "parent": "",
        **changed,
    }
    return make(key, kind=kind, body=body or {}, tensors=tensors, round=round, **given)


def rollcall(document: Study = STUDY, **changed: Any) -> Parcel:
    return request("rollcall", {"study": document.to_json()}, **changed)


def said(parcel: Parcel) -> Statement:
    """What the node signed."""
    return unseal(parcel.envelope, KEY.public)


def code(parcel: Parcel) -> str:
    """The code of a refusal that says nothing else."""
    statement = said(parcel)
    assert statement.kind.startswith(REFUSAL)
    assert set(statement.body) == {"code"}
    assert dict(parcel.tensors) == {}
    return str(statement.body["code"])


def refused(member: Node, parcel: Parcel) -> str:
    return code(member.answer(parcel))


def present(folder: Path, table: pd.DataFrame | None = None, **config: Any) -> Node:
    """A node that has answered the roll call."""
    member = node(folder, table, **config)
    assert said(member.answer(rollcall())).kind == "rollcall"
    return member


def training(member: Node) -> tuple[dict[str, Any], Any]:
    """Meta and tensors of the first model, from the node's own evidence."""
    triangle = member.answer(request("evidence")).tensors["moments"]
    evidence = {"north": Evidence.from_release(triangle, STUDY.dictionary, plan(STUDY).sigma)}
    pooled = decide_pool(replace_pool(STUDY), evidence, len(evidence))
    dag = decide_proposal(STUDY, pooled).pattern
    from causaldao.models.pattern import extension

    graph = extension(dag)
    assert graph is not None
    tensors, meta = first_model(STUDY, pooled.evidence, graph).state()
    return dict(meta), tensors


def replace_pool(study: Study) -> Study:
    """The study with the mean as its pool: one member's evidence is enough."""
    return Study.from_mapping({**study.to_json(), "aggregation": {"rule": "mean", "pool": "mean"}})


STRANGERS: dict[str, Callable[[], Parcel]] = {
    "another key": lambda: rollcall(key=SigningKey.generate()),
    "a member's name": lambda: rollcall(member="south"),
    "another federation": lambda: rollcall(federation="other"),
    "altered tensors": lambda: Parcel(rollcall().envelope, {"x": np.zeros(1)}),
    "no envelope": lambda: Parcel(b"{}", {}),
    "an altered body": lambda: Parcel(rollcall().envelope.replace(b"A", b"B", 1), {}),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_what_the_pinned_coordinator_did_not_sign_gets_no_signed_word(case: str, tmp_path: Path) -> None:
    member = node(tmp_path / "n")
    with pytest.raises(IdentityError):
        member.answer(STRANGERS[case]())
    reply = through_app(member, STRANGERS[case]())
    assert list(reply.content.config_records) == ["refused"]
    assert dict(reply.content.config_records["refused"]) == {"code": "identity"}
    assert not reply.content.array_records


def through_app(member: Node, parcel: Parcel) -> Message:
    context = Context(1, 1000, {}, RecordDict(), {})
    with identity(1000):
        message = Message(to_records(parcel), 1000, "query.rollcall")
        message.metadata.__dict__["_message_id"] = "m"
        return client_app(lambda context: member)(message, context)


def test_a_study_that_is_not_approved_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    def rows(frame: pd.DataFrame) -> pd.DataFrame:
        pytest.fail("rows were read")

    member = node(tmp_path / "n", approved=[], conduct=Conduct(rows=rows))
    for parcel in (
        rollcall(),
        request("evidence"),
        request("ballot", {"proposal": {}}),
        request("close", {"result": ""}),
    ):
        assert refused(member, parcel) == "refused"
    assert not (tmp_path / "n" / "journal.db").exists()


def test_a_study_altered_after_approval_is_refused(tmp_path: Path) -> None:
    altered = small.study(faulty=0, rounds=2, effects=[])
    assert refused(node(tmp_path / "a"), rollcall(altered, study=altered.hash)) == "refused"
    member = node(tmp_path / "b")
    assert refused(member, rollcall(altered)) == "refused"
    assert refused(member, request("evidence")) == "refused"  # it is still at no roll call
    assert said(member.answer(rollcall())).kind == "rollcall"  # and the altered one did not take the slot


def test_nothing_is_answered_before_the_roll_call(tmp_path: Path) -> None:
    assert refused(node(tmp_path / "n"), request("evidence")) == "refused"


@pytest.mark.parametrize(
    "parcel",
    [
        request("evidence", {"seed": 7}),
        request("evidence", {"insecure_seed": 7}),
        request("rollcall", {"study": STUDY.to_json(), "seed": 7}),
        request("update", {"model": {}, "seed": 7}, round=1),
        request("evaluation", {"model": {}, "noise": "simulated"}, round=1),
        request("ballot", {"proposal": {}, "seed": 7}),
        request("close", {"result": "", "seed": 7}),
    ],
    ids=lambda parcel: peek(parcel.envelope).kind,
)
def test_a_seed_in_a_message_is_refused(parcel: Parcel, tmp_path: Path) -> None:
    asks = peek(parcel.envelope).kind
    member = (node if asks == "rollcall" else present)(tmp_path / "n")
    assert refused(member, parcel) == "identity"
    assert member.journal.debits() == ()


@pytest.mark.parametrize("kind", ["secret", "refusal.evidence", "", "rollcall "])
def test_a_request_of_an_unknown_kind_is_refused(kind: str, tmp_path: Path) -> None:
    assert refused(present(tmp_path / "n"), request(kind)) == "identity"


def test_a_repeated_request_gets_the_same_bytes_and_spends_nothing_more(tmp_path: Path) -> None:
    member = present(tmp_path / "n", insecure_seed=None)  # noise of the operating system would differ
    first = member.answer(request("evidence"))
    again = member.answer(request("evidence", nonce="another", parent="another"))
    restarted = Node(member.config, KEY, member.folder).answer(request("evidence"))
    assert first.pack() == again.pack() == restarted.pack()
    assert len(member.journal.debits()) == 1
    assert said(member.answer(rollcall(nonce="x"))).nonce == said(member.answer(rollcall())).nonce


def test_another_request_for_the_same_slot_is_refused(tmp_path: Path) -> None:
    member = present(tmp_path / "n")
    meta, tensors = training(member)
    assert said(member.answer(request("update", {"model": meta}, tensors=tensors, round=1))).kind == "update"
    other = {**tensors, "linear.bias": tensors["linear.bias"] + np.float32(1)}
    assert refused(member, request("update", {"model": meta}, tensors=other, round=1)) == "refused"
    pattern = {"nodes": ["a", "b", "c"], "edges": []}
    proposal = {"pattern": pattern, "marks": [], "near_ties": []}
    assert said(member.answer(request("ballot", {"proposal": proposal}))).kind == "ballot"
    assert refused(member, request("ballot", {"proposal": {**proposal, "near_ties": ["x"]}})) == "refused"
    assert [debit.key.kind for debit in member.journal.debits()] == ["evidence", "update"]


def test_evidence_is_read_in_no_direction_that_the_study_does_not_have(tmp_path: Path) -> None:
    member = present(tmp_path / "n")
    member.answer(request("evidence"))
    pattern = {"nodes": ["a", "b", "c"], "edges": []}
    proposal = {"pattern": pattern, "marks": [], "near_ties": []}
    reading = {name: [[1.0, 0.0, 0.0]] for name in "abc"}
    for crooked in (reading, {"a": [[1.0]]}, {"a": "x"}, {"d": [[1.0]]}, []):
        assert refused(member, request("ballot", {"proposal": {**proposal, "reading": crooked}})) == "identity"
    assert said(member.answer(request("ballot", {"proposal": {**proposal, "reading": {}}}))).kind == "ballot"


def test_a_round_outside_the_study_is_refused(tmp_path: Path) -> None:
    member = present(tmp_path / "n")
    meta, tensors = training(member)
    for number in (0, 3, 2**31):
        assert refused(member, request("update", {"model": meta}, tensors=tensors, round=number)) == "refused"
        assert refused(member, request("evaluation", {"model": meta}, tensors=tensors, round=number)) == "refused"
    assert refused(member, request("evidence", round=1)) == "refused"


def test_training_before_evidence_is_refused(tmp_path: Path) -> None:
    meta, tensors = training(present(tmp_path / "a"))
    assert refused(present(tmp_path / "b"), request("update", {"model": meta}, tensors=tensors, round=1)) == "refused"


@pytest.mark.parametrize(
    ("seeded", "simulation", "kind"),
    [(True, True, "simulated"), (True, False, "os"), (False, True, "os"), (False, False, "os")],
)
def test_noise_is_simulated_only_if_node_and_study_both_say_so(
    seeded: bool, simulation: bool, kind: str, tmp_path: Path
) -> None:
    study = small.study(faulty=0, simulation=simulation)
    releases = []
    for name in ("one", "two"):
        member = node(tmp_path / name, approved=[study.hash], insecure_seed=1 if seeded else None)
        answer = member.answer(rollcall(study, study=study.hash))
        evidence = member.answer(request("evidence", study=study.hash))
        assert said(answer).body["noise"] == said(evidence).body["noise"] == kind
        releases.append(evidence.tensors["moments"])
    assert np.array_equal(*releases) == (kind == "simulated")


def test_a_node_draws_from_the_operating_system_by_default(tmp_path: Path) -> None:
    value = {
        "name": "north",
        "federation": "fed",
        "coordinator": COORD.public.to_text("coordinator"),
        "data": "d.csv",
        "dataset": "rows",
    }
    config = NodeConfig.parse(value, "node.toml")
    assert config.insecure_seed is None
    assert config.approved == ()


SECRET = "4711-secret"
FAILURES: dict[str, tuple[Callable[..., Any], str]] = {
    "data": (lambda *_: _raise(DataError(f"row {SECRET}", problems=[SECRET])), "data"),
    "ours": (lambda *_: _raise(ConfigurationError(SECRET)), "configuration"),
    "a bug": (lambda *_: _raise(KeyError(SECRET)), "error"),
    "memory": (lambda *_: _raise(MemoryError(SECRET)), "error"),
}


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("where", ["rows", "tensors"])
def test_only_the_code_of_a_failure_crosses_the_wire(where: str, failure: str, tmp_path: Path) -> None:
    act, expected = FAILURES[failure]
    conduct = Conduct(**{where: act})
    member = node(tmp_path / "n", conduct=conduct)
    parcel = rollcall()
    if where == "tensors":
        member.answer(parcel)
        parcel = request("evidence")
    assert refused(member, parcel) == expected
    data = through_app(member, parcel).content
    everything = b"".join(bytes(str(record), "utf8") for record in data.values()) + from_records(data, {}).envelope
    assert SECRET.encode() not in everything + member.answer(parcel).pack()


def test_a_failure_outside_the_node_sends_no_text_either(tmp_path: Path) -> None:
    """Flower would send what an app raises to the server, word for word."""
    app = client_app(lambda context: _raise(OSError(f"/data/{SECRET}.csv")))
    with identity(1000):
        message = Message(to_records(rollcall()), 1000, "query.rollcall")
        message.metadata.__dict__["_message_id"] = "m"
        reply = app(message, Context(1, 1000, {}, RecordDict(), {}))
    assert dict(reply.content.config_records["refused"]) == {"code": "error"}
    assert SECRET not in str(reply.content)


def test_the_text_of_a_failure_stays_in_the_nodes_own_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    member = node(tmp_path / "n", conduct=Conduct(rows=lambda frame: _raise(DataError(SECRET))))
    refused(member, rollcall())
    assert SECRET in caplog.text


@pytest.mark.parametrize("cell", [np.nan, np.inf, 99.0])
def test_one_odd_record_does_not_change_what_is_answered(cell: float, tmp_path: Path) -> None:
    """Refusing a study over one record would tell of that record: values are made to fit instead."""
    odd = small.table(300)
    odd.loc[17, "b"] = cell
    answers = [present(tmp_path / name, frame).answer(request("evidence")) for name, frame in (("a", None), ("b", odd))]
    assert [said(answer).kind for answer in answers] == ["evidence", "evidence"]


def test_a_missing_column_is_refused_at_the_roll_call(tmp_path: Path) -> None:
    assert refused(node(tmp_path / "n", small.table(300).drop(columns="b")), rollcall()) == "data"


def sizes(parcel: Parcel) -> tuple[Any, ...]:
    tensors = {name: (array.dtype.name, array.shape) for name, array in parcel.tensors.items()}
    return len(parcel.envelope), tensors, sorted(said(parcel).body)


def test_nothing_but_the_noisy_releases_depends_on_the_number_of_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """n and n + 1 records, one seed, one noisy count: sizes, shapes, steps and denominators agree."""
    steps: list[Any] = []
    monkeypatch.setattr("causaldao.client.node.train", lambda *a, **k: steps.append(a[4]) or train(*a, **k))
    table, seen = small.table(301), []
    first = present(tmp_path / "first", table.iloc[:300])
    meta, tensors = training(first)
    count = first._released_count(STUDY)
    monkeypatch.setattr(Node, "_released_count", lambda self, study: count)  # not the same records, the same n̂
    for name, frame in (("n", table.iloc[:300]), ("more", table)):
        member = present(tmp_path / name, frame)
        replies = [member.answer(rollcall()), member.answer(request("evidence"))]
        for number in (1, 2):
            replies.append(member.answer(request("update", {"model": meta}, tensors=tensors, round=number)))
            replies.append(member.answer(request("evaluation", {"model": meta}, tensors=tensors, round=number)))
        proposal = {"pattern": {"nodes": ["a", "b", "c"], "edges": []}, "marks": [], "near_ties": []}
        replies += [
            member.answer(request("ballot", {"proposal": proposal})),
            member.answer(request("close", {"result": ""})),
        ]
        seen.append(([sizes(reply) for reply in replies], [d.spends for d in member.journal.debits()]))
    assert seen[0] == seen[1]
    assert steps[:2] == steps[2:]
    assert steps[0].denominator == pytest.approx(STUDY.training.sample_rate * count)
    assert count != 300


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_node_with_hardly_any_records_answers_like_any_other(rows: int, tmp_path: Path) -> None:
    """Whether there are records at all is not told either: refusing would."""
    member = present(tmp_path / "few", small.table(300).iloc[:rows])
    whole = present(tmp_path / "many")
    meta, tensors = training(whole)
    for parcel in (
        request("evidence"),
        request("update", {"model": meta}, tensors=tensors, round=1),
        request("evaluation", {"model": meta}, tensors=tensors, round=1),
    ):
        few, many = member.answer(parcel), whole.answer(parcel)
        assert said(few).kind == said(many).kind
        assert sizes(few) == sizes(many)


def test_a_study_past_the_lifetime_cap_is_refused_at_the_roll_call_and_nothing_is_spent(
    tmp_path: Path,
) -> None:
    member = node(tmp_path / "n", lifetime={"epsilon": 39.0})
    assert refused(member, rollcall()) == "budget"
    assert member.journal.debits() == ()


def test_another_file_under_the_same_data_sets_name_is_no_fresh_budget(tmp_path: Path) -> None:
    member = node(tmp_path / "n", lifetime={"epsilon": 41.0, "delta": 1e-5})
    spend = Spend(0.3, 1.0, 1)
    member.journal.release(
        ReleaseKey("0" * 64, "rows", "evidence"), [spend], Cap(90, 1e-5), Cap(90, 1e-5), lambda: b"x"
    )
    small.table(300, seed=9).to_parquet(tmp_path / "n" / "data.parquet")
    assert refused(Node(member.config, KEY, member.folder), rollcall()) == "budget"
    renamed = Node(member.config.model_copy(update={"dataset": "others"}), KEY, member.folder)
    assert said(renamed.answer(rollcall())).kind == "rollcall"


def test_the_whole_study_stays_within_its_epsilon_in_the_nodes_own_journal(tmp_path: Path) -> None:
    member = present(tmp_path / "n")
    meta, tensors = training(member)
    for number in (1, 2):
        member.answer(request("update", {"model": meta}, tensors=tensors, round=number))
        member.answer(request("evaluation", {"model": meta}, tensors=tensors, round=number))
    privacy = STUDY.privacy
    assert 0.95 * privacy.epsilon < member.journal.spent("rows", privacy.delta, STUDY.hash) <= privacy.epsilon


def test_a_deleted_cache_of_answers_does_not_buy_a_second_draw(tmp_path: Path) -> None:
    member = present(tmp_path / "n", insecure_seed=None)
    first = member.answer(request("evidence"))
    (tmp_path / "n" / "answers.db").unlink()
    again = Node(member.config, KEY, member.folder)
    again.answer(rollcall())
    assert again.answer(request("evidence")).pack() == first.pack()


def test_a_model_made_to_overflow_on_some_records_gets_a_finite_update(tmp_path: Path) -> None:
    """A coordinator could else learn from a NaN whether such a record is there."""
    member = present(tmp_path / "n")
    meta, tensors = training(member)
    evil = {**tensors, "linear.weight": np.full_like(tensors["linear.weight"], 3e38)}
    for kind in ("update", "evaluation"):
        reply = member.answer(request(kind, {"model": meta}, tensors=evil, round=1))
        if said(reply).kind == kind:
            assert all(np.isfinite(array).all() for array in reply.tensors.values())


# Momentum


def updates(member: Node, *rounds: int) -> list[np.ndarray]:
    """What a node answers to updates of the same model in these rounds."""
    meta, tensors = training(member)
    return [
        member.answer(request("update", {"model": meta}, tensors=tensors, round=number)).tensors["delta"]
        for number in rounds
    ]


def test_what_a_node_keeps_for_itself_is_sent(tmp_path: Path) -> None:
    member = present(tmp_path / "n")
    meta, tensors = training(member)
    for _ in range(2):  # drawn, and read back
        reply = member.answer(request("update", {"model": meta}, tensors=tensors, round=1))
        assert list(reply.tensors) == ["delta"]
        assert said(reply).digest == digest(reply.tensors)


def test_a_restarted_node_forgets_its_momentum(tmp_path: Path) -> None:
    whole, first = (updates(present(tmp_path / name), 1, 2) for name in ("whole", "again"))
    assert np.array_equal(whole, first)
    member = present(tmp_path / "torn")
    one = updates(member, 1)
    restarted = Node(member.config, KEY, member.folder)
    two = updates(restarted, 2)
    assert np.array_equal([*one, *two], whole)
    assert np.array_equal(updates(Node(member.config, KEY, member.folder), 1, 2), whole)  # asked again: the same bytes


def test_a_member_that_missed_a_round_sends_an_average_over_it(tmp_path: Path) -> None:
    """The second round's update alone, were it the first that the node takes part in."""
    both, late = updates(present(tmp_path / "both"), 1, 2), updates(present(tmp_path / "late"), 2)
    beta = STUDY.training.momentum
    share = (1 - beta) / (1 - beta**2)
    np.testing.assert_allclose(both[1], (1 - share) * both[0] + share * late[0], rtol=1e-5, atol=1e-7)
    assert beta == 0 or not np.array_equal(both[1], late[0])


def test_a_lie_flows_into_the_liars_own_momentum(tmp_path: Path) -> None:
    """A simulated liar changes what it signs; what it would have sent honestly next time it still knows."""
    lie = Conduct(tensors=lambda kind, t: {"delta": np.full_like(t["delta"], np.nan)} if kind == "update" else t)
    honest, liar = present(tmp_path / "honest"), present(tmp_path / "liar", conduct=lie)
    assert np.isnan(updates(liar, 1)[0]).all()
    reformed = Node(liar.config, KEY, liar.folder)
    assert np.array_equal(updates(reformed, 2)[0], updates(honest, 1, 2)[1])


def test_what_was_drawn_and_lost_flows_into_a_later_answer(tmp_path: Path) -> None:
    """A draw that was never stored was never paid for but once: the round is drawn again, the first draw is nowhere."""
    member = present(
        tmp_path / "n", conduct=Conduct(tensors=lambda kind, t: _raise(KeyError()) if kind == "update" else t)
    )
    meta, tensors = training(member)
    assert refused(member, request("update", {"model": meta}, tensors=tensors, round=1)) == "error"
    healed = Node(member.config, KEY, member.folder)
    assert np.array_equal(updates(healed, 1, 2), updates(present(tmp_path / "whole"), 1, 2))


@pytest.mark.parametrize("name", ["../x", "", "North", "a/b", "x" * 65, "a\n"])
def test_a_name_that_is_no_slug_is_refused(name: str) -> None:
    value = {"name": name, "federation": "fed", "coordinator": "k", "data": "d.csv", "dataset": "rows"}
    with pytest.raises(ConfigurationError):
        NodeConfig.parse(value, "node.toml")


def test_every_fault_of_a_nodes_file_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        NodeConfig.parse({"name": "X", "federation": "fed", "sed": 1, "lifetime": {"epsilon": 0}}, "node.toml")
    text = str(caught.value)
    for key in ("name", "coordinator", "data", "dataset", "sed", "lifetime.epsilon"):
        assert f"node.toml: {key}" in text


def test_the_dry_check_writes_nothing_and_says_what_a_study_would_clip(tmp_path: Path) -> None:
    table = small.table(300)
    table.loc[4, "a"] = 7.5
    member = node(tmp_path / "n", table)
    before = sorted(path.name for path in member.folder.iterdir())
    (warning,) = check_study(member.config, member.folder, STUDY)
    assert "7.5" in warning
    assert sorted(path.name for path in member.folder.iterdir()) == before
    with pytest.raises(BudgetError):
        check_study(member.config.model_copy(update={"lifetime": Lifetime(epsilon=1.0)}), member.folder, STUDY)


def test_a_copied_folder_answers_with_the_same_bytes(tmp_path: Path) -> None:
    """What a slot was answered with stands on the disk, not in the process."""
    member = present(tmp_path / "n", insecure_seed=None)
    first = member.answer(request("evidence"))
    shutil.copytree(tmp_path / "n", tmp_path / "copy")
    copy = replace(member, folder=tmp_path / "copy")
    assert copy.answer(request("evidence")).pack() == first.pack()
    assert digest(first.tensors) == said(first).digest


def test_a_node_is_located_by_an_answer_that_another_could_replay(tmp_path: Path) -> None:
    """It signs each fresh challenge, takes no slot for it, and signs nothing of a study that it did not approve."""
    member = present(tmp_path / "n")
    for challenge in ("first", "second"):
        reply = member.answer(request("locate", {"challenge": challenge}))
        assert unseal(reply.envelope, member.key.public).body == {"challenge": challenge}
    refused = member.answer(request("locate", {"challenge": "x"}, study="0" * 64))
    assert unseal(refused.envelope, member.key.public).body == {"code": "refused"}


def mapped(folder: Path, table: pd.DataFrame | None = None, **changed: Any) -> Node:
    """A node whose table has columns of its own, in tenths."""
    frame = (small.table(300) if table is None else table).mul(10).add_prefix("col_")
    mapping = {name: {"column": f"col_{name}", "kind": "continuous", "scale": 0.1} for name in "abc"}
    return node(folder, frame, mapping={**mapping, **changed})


def test_a_mapped_table_gives_another_evidence(tmp_path: Path) -> None:
    plain, other = present(tmp_path / "plain"), mapped(tmp_path / "mapped")
    assert said(other.answer(rollcall())).kind == "rollcall"
    assert np.array_equal(
        plain.answer(request("evidence")).tensors["moments"], other.answer(request("evidence")).tensors["moments"]
    )


MISFITS: dict[str, dict[str, Any]] = {
    "another kind": {"a": {"column": "col_a", "kind": "binary"}},
    "an unknown column": {"a": {"column": "col_z", "kind": "continuous"}},
    "another unit": {"a": {"column": "col_a", "kind": "continuous", "unit": "months"}},
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_mapping_that_does_not_fit_is_refused_at_the_roll_call_by_its_code(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    variables = [
        {"name": name, "kind": "continuous", "bounds": [-6.0, 6.0], "unit": "years" if name == "a" else ""}
        for name in "abc"
    ]
    study = small.study(faulty=0, variables=variables)
    unit = {"a": {"column": "col_a", "kind": "continuous", "scale": 0.1, "unit": "years"}}
    for extra, expected in ((MISFITS[case], "data"), (unit, "")):
        member = mapped(tmp_path / (expected or "good"), **extra)
        member = Node(member.config.model_copy(update={"approved": (study.hash,)}), KEY, member.folder)
        answer = member.answer(rollcall(study, study=study.hash))
        assert (code(answer) if expected else said(answer).kind) == (expected or "rollcall")
    assert "variable 'a'" in caplog.text or "mapping.a" in caplog.text


def test_a_variable_that_is_not_mapped_is_not_offered(tmp_path: Path) -> None:
    member = mapped(tmp_path / "n")
    config = member.config.model_copy(update={"mapping": {k: v for k, v in member.config.mapping.items() if k != "c"}})
    assert refused(Node(config, KEY, member.folder), rollcall()) == "data"


def test_a_dry_run_reports_mapping_and_data_at_once(tmp_path: Path) -> None:
    table = small.table(300)
    table.loc[3, "b"] = np.nan
    member = mapped(tmp_path / "n", table, a={"column": "col_z", "kind": "binary"})
    with pytest.raises(DataError, match=r"3 problem\(s\)") as caught:
        check_study(member.config, member.folder, STUDY)
    kind, column, value = caught.value.problems
    assert "kind: here 'binary'" in kind
    assert "no column 'col_z'" in column
    assert "column 'b': no value" in value


NOW = datetime(2026, 11, 21, tzinfo=UTC)


def test_a_decision_acts_while_the_node_runs(tmp_path: Path) -> None:
    member = node(tmp_path / "n", approved=[])
    assert refused(member, rollcall()) == "refused"
    approve(member.folder, STUDY, NOW)
    assert said(member.answer(rollcall())).kind == "rollcall"
    withdraw(member.folder, STUDY.hash)
    assert refused(member, request("evidence")) == "refused"
    assert refused(member, rollcall()) == "refused"  # not even what was answered before
    decline(member.folder, STUDY, NOW)
    assert refused(member, rollcall()) == "declined"
    assert member.journal.debits() == ()


def test_an_approval_that_was_altered_opens_nothing(tmp_path: Path) -> None:
    member = node(tmp_path / "n", approved=[])
    path = approve(member.folder, STUDY, NOW)
    path.write_text(path.read_text().replace('"epsilon": 40.0', '"epsilon": 90.0'))
    assert refused(member, rollcall()) == "refused"
    altered = small.study(faulty=0, rounds=2, privacy={**STUDY.to_json()["privacy"], "epsilon": 90.0})
    assert refused(member, rollcall(altered, study=altered.hash)) == "refused"


def test_rows_come_from_a_database_as_from_a_file(tmp_path: Path) -> None:
    plain = present(tmp_path / "file")
    with sqlite3.connect(tmp_path / "rows.db") as connection:
        small.table(300).to_sql("rows", connection, index=False)
    connection.close()
    source = {"url": f"sqlite:///{tmp_path / 'rows.db'}", "query": "SELECT a, b, c FROM rows"}
    value = plain.config.model_dump(mode="json", exclude={"data"}) | {"source": source}
    (tmp_path / "sql").mkdir()
    other = Node(NodeConfig.parse(value, "node.toml"), KEY, tmp_path / "sql")
    assert said(other.answer(rollcall())).kind == "rollcall"
    assert np.array_equal(
        plain.answer(request("evidence")).tensors["moments"], other.answer(request("evidence")).tensors["moments"]
    )
