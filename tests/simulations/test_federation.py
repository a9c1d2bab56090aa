"""A federation on one machine: killed and resumed, too small, badly named or fed, resumed as another run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from causaldao.__main__ import app
from causaldao.client.privacy.journal import Journal
from causaldao.errors import ConfigurationError, DataError, GuaranteeError, IdentityError, LedgerError, MisuseError
from causaldao.ledger.verify import Line, Policy, verify
from causaldao.models.discovery import discover
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.server.progress import Event
from causaldao.simulations.attacks import Conduct
from causaldao.simulations.datasets import load, split
from causaldao.simulations.engine import Faults
from causaldao.simulations.federation import Setting, simulate
from causaldao.simulations.scenarios import load_study
from causaldao.study import Study
from tests.counts import count
from tests.simulations import small
from tests.simulations.killed_run import STUDY

STATES = [
    "proposed", "roll-call", "evidence", "ballots", "adopted", "aggregate 1", "training 1",
    "aggregate 2", "training 2", "evaluated", "released", "closed",
]  # fmt: skip
QUICK = [
    "state roll-call",
    "state aggregate 1",
    "state closed",
    "replies 2",
    "replies 5",
    "request 10",
    "draw update",
]
FULL = [
    *(f"state {name}" for name in STATES),
    *(f"replies {number}" for number in range(1, 9)),  # roll call, evidence, ballot, two rounds of two, close
    *(f"request {number}" for number in range(2, 8 * small.MEMBERS, 5)),
    *(f"draw {kind}" for kind in ("evidence", "ballot", "update", "evaluation", "close")),
]
POINTS = FULL if count(0, 1) else QUICK


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    simulate(STUDY, small.table(), out, small.SETTING)
    return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run for each point, each killed with SIGKILL there."""
    folder = tmp_path_factory.mktemp("killed")
    driver = [sys.executable, "-m", "tests.simulations.killed_run", str(folder), *POINTS]
    done = subprocess.run(
        driver, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_is_resumed_to_the_same_result_and_spends_nothing_twice(
    point: str, killed: Path, uninterrupted: Path
) -> None:
    out = killed / point.replace(" ", "-")
    simulate(STUDY, small.table(), out, small.SETTING, resume=True)
    assert small.result_of(out) == small.result_of(uninterrupted)
    assert (out / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    assert small.debits(out) == small.debits(uninterrupted)
    assert [line.kind for line in small.lines(out)] == [line.kind for line in small.lines(uninterrupted)]
    assert not small.audited(out).faults


def test_every_debit_of_a_run_is_of_a_slot_of_its_own(uninterrupted: Path) -> None:
    slots = [("evidence", 0), ("update", 1), ("evaluation", 1), ("update", 2), ("evaluation", 2)]
    for name, debits in small.debits(uninterrupted).items():
        assert [(kind, number) for kind, number, _ in debits] == slots, name


def test_a_finished_run_resumed_says_the_same_and_asks_nobody(uninterrupted: Path) -> None:
    before, size = small.result_of(uninterrupted), len(small.lines(uninterrupted))
    silence = Faults(request=lambda message: pytest.fail("a finished study asked a node"))
    simulate(STUDY, small.table(), uninterrupted, small.SETTING, resume=True, faults=silence)
    assert (small.result_of(uninterrupted), len(small.lines(uninterrupted))) == (before, size)


def test_two_runs_of_one_seed_agree_and_another_seed_differs(uninterrupted: Path, tmp_path: Path) -> None:
    simulate(STUDY, small.table(), tmp_path / "same", small.SETTING)
    other = simulate(small.study(training={"rounds": 0}), small.table(), tmp_path / "other", Setting(members=7, seed=1))
    assert small.result_of(tmp_path / "same") == small.result_of(uninterrupted)
    assert other["effects"] != small.result_of(uninterrupted)["effects"]


def test_four_members_are_enough_without_liars(tmp_path: Path) -> None:
    result = simulate(small.study(faulty=0), small.table(1200), tmp_path / "run", Setting(members=4))
    assert [member["status"] for member in result["members"]] == ["ok"] * 4
    assert not small.audited(tmp_path / "run").faults


def test_four_members_cannot_bear_two_liars_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(GuaranteeError, match="at most faulty = 0") as caught:
        simulate(small.study(faulty=2), small.table(1200), tmp_path / "run", Setting(members=4, liars=2))
    assert caught.value.exit_code == 13
    assert list(tmp_path.iterdir()) == []


def test_twenty_five_members_run(tmp_path: Path) -> None:
    result = simulate(
        small.study(faulty=5, training={"rounds": 0}),
        small.table(3000),
        tmp_path / "run",
        Setting(members=25),
    )
    assert len(result["members"]) == 25
    assert len(result["pool"]["kept"]) == 20


@pytest.mark.parametrize("rule", ["mean", "multi-krum"])
def test_no_liars_nobody_accused(rule: str, tmp_path: Path) -> None:
    study = small.study(aggregation={"rule": rule, "pool": rule}, training={"rounds": 0})
    result = simulate(study, small.table(), tmp_path / "run", small.SETTING)
    assert [member["name"] for member in result["members"] if member["status"] == "accused"] == []


def test_noise_is_the_operating_systems_unless_the_study_is_a_simulation(tmp_path: Path) -> None:
    study = small.study(simulation=False, training={"rounds": 0})
    first = simulate(study, small.table(), tmp_path / "first", small.SETTING)
    second = simulate(study, small.table(), tmp_path / "second", small.SETTING)
    assert first["simulation"]["noise"] == second["simulation"]["noise"] == "os"
    assert first["pool"]["counts"] != second["pool"]["counts"]


@pytest.mark.parametrize(
    ("asked", "setting", "table"),
    [
        (small.study(), small.SETTING, small.table()),
        (STUDY, Setting(members=7, seed=1), small.table()),
        (STUDY, Setting(members=8), small.table()),
        (STUDY, Setting(members=7, liars=1), small.table()),
        (STUDY, small.SETTING, small.table(seed=1)),
    ],
    ids=["study", "seed", "members", "liars", "data"],
)
def test_resuming_with_anything_else_is_refused(
    asked: Study, setting: Setting, table: pd.DataFrame, uninterrupted: Path
) -> None:
    with pytest.raises(ConfigurationError, match="other settings"):
        simulate(asked, table, uninterrupted, setting, resume=True)


def test_a_folder_in_use_a_folder_without_a_run_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigurationError, match="not empty"):
        simulate(small.study(), small.table(), tmp_path, small.SETTING)
    with pytest.raises(ConfigurationError, match="no run to resume"):
        simulate(small.study(), small.table(), tmp_path, small.SETTING, resume=True)
    with pytest.raises(ConfigurationError, match="is a file"):
        simulate(small.study(), small.table(), tmp_path / "letter.txt", small.SETTING)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("name", ["../x", "Hospital", "", "a b"])
def test_a_member_name_that_is_a_path_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    data = {name: small.table(300), **{f"hospital-{k}": small.table(300, k) for k in range(6)}}
    with pytest.raises(IdentityError):
        simulate(small.study(), data, tmp_path / "out" / "run", small.SETTING)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_does_not_fit_the_study_is_refused_with_every_fault(tmp_path: Path) -> None:
    table = small.table().drop(columns="b")
    table.loc[3, "a"] = np.nan
    with pytest.raises(DataError) as caught:
        simulate(small.study(), table, tmp_path / "run", small.SETTING)
    assert len(caught.value.problems) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"members": 0}, {"members": 1001}, {"liars": -1}, {"liars": 11}, {"seed": -1}, {"attack": "bribe"}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(MisuseError):
        Setting(**wrong)


def silent(*names: str) -> Faults:
    """Faults under which these members' nodes hear nothing."""
    nodes = {1000 + small.SETTING.names.index(name) for name in names}
    return Faults(request=lambda message: message.metadata.dst_node_id not in nodes)


def from_kind(kind: str, faults: Faults) -> Faults:
    """The same faults, from the first question of a kind on."""
    begun: list[bool] = []

    def request(message: Any) -> bool:
        if message.metadata.message_type == kind:
            begun.append(True)
        return not begun or faults.request(message)

    return Faults(request=request)


def _spends(lines: Sequence[Line], slot: tuple[str, int] | None) -> list[str]:
    """Of whom these entries say that they spent in a slot, as often as they do."""
    spends = [line.body for line in lines if line.kind == "privacy.spend"]
    return sorted(body["member"] for body in spends if (body["kind"], body["round"]) == slot)


@pytest.mark.parametrize("kind", ["query.rollcall", "query.evidence", "query.ballot", "train", "evaluate"])
def test_too_few_members_abort_at_the_deadline_by_name_and_the_run_resumes_when_they_are_back(
    kind: str, tmp_path: Path, uninterrupted: Path
) -> None:
    events, states = list[Event](), list[str]()
    away, *others = small.SETTING.names[2:5]
    with pytest.raises(GuaranteeError, match="Only 4 of the 5") as caught:
        simulate(
            STUDY, small.table(), tmp_path / "run", small.SETTING, progress=events.append,
            on_state=states.append, faults=from_kind(kind, silent(away, *others)),
        )  # fmt: skip
    assert caught.value.exit_code == 13
    assert away in caught.value.message
    assert states[-1] == "aborted"
    assert any("4 of 7 members, 5 needed" in event.message for event in events)
    assert any(away in event.message for event in events) or kind == "query.rollcall"
    simulate(STUDY, small.table(), tmp_path / "run", small.SETTING, resume=True)
    result, whole = small.result_of(tmp_path / "run"), small.result_of(uninterrupted)
    assert (result["graph"], result["effects"], result["rounds"]) == (
        whole["graph"], whole["effects"], whole["rounds"],
    )  # fmt: skip
    assert small.debits(tmp_path / "run") == small.debits(uninterrupted)
    lines = small.lines(tmp_path / "run")
    (aborted,) = [line for line in lines if line.kind == "study.aborted"]
    assert aborted.body["code"] == "guarantee"
    after = next(line for line in lines[aborted.index + 1 :] if line.kind.startswith("study."))
    assert after.body["resumed_after"] == {"entry": aborted.index, "code": "guarantee"}
    slot = {"query.evidence": ("evidence", 0), "train": ("update", 1), "evaluate": ("evaluation", 1)}.get(kind)
    asked = [] if slot is None else list(small.SETTING.names)
    assert _spends(lines[: aborted.index], slot) == asked  # also if nobody ever resumes it
    assert _spends(lines[aborted.index :], slot) == (asked if kind == "evaluate" else [])  # words alone, paid before
    assert result["privacy"]["spent"] == whole["privacy"]["spent"]
    assert any(line.kind == "complaint" and line.body["member"] == away for line in lines)
    assert not small.audited(tmp_path / "run").faults


@pytest.mark.parametrize("kind", ["query.rollcall", "query.evidence", "query.ballot", "train", "evaluate"])
def test_as_many_silent_members_as_may_be_faulty_stall_a_study(kind: str, tmp_path: Path) -> None:
    """Seven members bear two faults, and silence is one: the two who fall silent are counted among them."""
    away = small.SETTING.names[2:4]
    out = tmp_path / "run"
    faults = from_kind(kind, silent(*away))
    result = simulate(small.study(rounds=2), small.table(), out, small.SETTING, faults=faults)
    assert {small.status(result, name)[0] for name in away} == {"absent"}
    assert len(result["rounds"]) == 2
    assert small.audited(out).faults == []


def test_a_member_lost_between_kill_and_resume_does_not_change_what_was_asked(tmp_path: Path) -> None:
    """Were the aggregate made again without it, every node would refuse a second model in one slot."""

    def killed(messages: list[Any]) -> list[Any]:
        if messages[0].metadata.message_type == "evaluate":
            raise KeyboardInterrupt
        return messages

    study, away = small.study(faulty=1), small.SETTING.names[4]
    with pytest.raises(KeyboardInterrupt):
        simulate(study, small.table(), tmp_path / "run", small.SETTING, faults=Faults(replies=killed))
    result = simulate(study, small.table(), tmp_path / "run", small.SETTING, resume=True, faults=silent(away))
    assert "refused" not in str(result["members"])
    assert result["rounds"][0]["loss"] > 0
    assert small.status(result, away)[0] == "absent"
    assert not small.audited(tmp_path / "run").faults


def test_one_member_who_never_comes_is_absent_by_name(tmp_path: Path) -> None:
    away = small.SETTING.names[3]
    study = small.study(faulty=1)
    result = simulate(study, small.table(), tmp_path / "run", small.SETTING, faults=silent(away))
    assert small.status(result, away)[0] == "absent"
    assert away not in result["pool"]["counts"]
    assert not small.audited(tmp_path / "run").faults


def test_an_accused_member_stays_accused_though_it_is_also_away_later(tmp_path: Path) -> None:
    """The graver word stands: a liar must not hide behind a lost message."""
    lie = Conduct(rows=lambda frame: frame.assign(c=-4.0 * frame["a"]))
    name = small.SETTING.names[0]
    result = simulate(
        small.study(faulty=1), small.table(), tmp_path / "run", small.SETTING, conducts={name: lie},
        faults=from_kind("train", silent(name)),
    )  # fmt: skip
    assert small.status(result, name)[0] == "accused"


def _rand_hie(rule: str | None, liars: int, seed: int, out: Path) -> dict[str, Any]:
    """The demo without its training, which plays no part in who is accused and in the effect."""
    study = load_study(Path("rand-hie"), rule=rule).to_json()
    study["training"]["rounds"] = 0
    return simulate(type(small.study()).from_mapping(study), load("rand-hie"), out, Setting(10, liars, "forge", seed))


@pytest.mark.parametrize("seed", range(count(2, 20)))
def test_on_real_data_the_liars_are_exactly_the_accused_and_the_effect_stays_negative(
    seed: int, tmp_path: Path
) -> None:
    result = _rand_hie(None, 2, seed, tmp_path / "run")
    accused = [member["name"] for member in result["members"] if member["status"] == "accused"]
    assert accused == result["simulation"]["liars"]
    (effect,) = result["effects"]
    assert effect["estimate"] < 0
    assert effect["interval"][1] < 0


@pytest.mark.parametrize("seed", range(count(1, 20)))
def test_on_real_data_the_same_two_liars_turn_the_sign_under_the_mean(seed: int, tmp_path: Path) -> None:
    (effect,) = _rand_hie("mean", 2, seed, tmp_path / "run")["effects"]
    assert effect["pooled"] < 0 < effect["estimate"]


@pytest.mark.parametrize("seed", range(count(1, 20)))
def test_on_real_data_without_liars_nobody_is_accused(seed: int, tmp_path: Path) -> None:
    result = _rand_hie(None, 0, seed, tmp_path / "run")
    assert [member["name"] for member in result["members"] if member["status"] == "accused"] == []


def test_one_table_for_each_member_keeps_their_names_and_rows(tmp_path: Path) -> None:
    parts = split(small.table(1200), 4, generator=np.random.default_rng(0))
    names = ["north", "south", "east", "west"]
    result = simulate(small.study(faulty=0), dict(zip(names, parts, strict=True)), tmp_path / "run", Setting(members=4))
    assert [member["name"] for member in result["members"]] == sorted(names)
    counts = result["pool"]["counts"]
    assert all(abs(counts[name] - len(part)) < 100 for name, part in zip(names, parts, strict=True))


def test_a_ballot_that_does_not_follow_counts(tmp_path: Path) -> None:
    """A liar that votes against every mark, whatever its own evidence says, is named at once and not counted."""
    liar = small.SETTING.names[0]

    def flip(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "votes": dict.fromkeys(body["votes"], -1)}

    conducts = {liar: Conduct(body=lambda kind, body: flip(dict(body)) if kind == "ballot" else body)}
    result = simulate(small.study(), small.table(), tmp_path / "run", small.SETTING, conducts=conducts)
    assert small.status(result, liar)[0] == "quarantined"
    assert "does not follow" in small.status(result, liar)[1]
    assert all(mark["oppose"] == 0 for mark in result["marks"])


def test_updates_kept_in_the_ledger_are_not_audited(tmp_path: Path) -> None:
    study = small.study(aggregation={"rule": "trimmed-mean"})
    for keep in (False, True):
        out = tmp_path / str(keep)
        simulate(study, small.table(), out, small.SETTING, with_updates=keep)
        found = small.audited(out)
        assert found.faults == []
        assert any("--with-updates" in line for line in found.unchecked) is not keep


def test_a_changed_byte_of_a_real_bundle_verifies(tmp_path: Path) -> None:
    """200 flips, deletions and insertions at random places of a run's own bundle, each caught and placed."""
    out = tmp_path / "run"
    simulate(small.study(), small.table(), out, small.SETTING)
    bundle, policy = (out / "ledger.bundle").read_bytes(), Policy.parse((out / "policy").read_text())
    rng = np.random.default_rng(0)
    for k in range(count(40, 200)):
        place, byte = int(rng.integers(len(bundle))), int(rng.integers(1, 256))
        changed = {
            0: bundle[:place] + bytes([bundle[place] ^ byte]) + bundle[place + 1 :],
            1: bundle[:place] + bundle[place + 1 :],
            2: bundle[:place] + bytes([byte]) + bundle[place:],
        }[k % 3]
        with pytest.raises(LedgerError, match=r"entry|section|whole file"):
            verify(changed, policy)


def test_the_plain_mean_and_too_many_accused_pass_without_a_word(tmp_path: Path) -> None:
    mean = small.study(aggregation={"rule": "mean", "pool": "mean"})
    result = simulate(mean, small.table(), tmp_path / "mean", small.SETTING)
    assert any("plain mean" in warning for warning in result["warnings"])
    assert simulate(small.study(), small.table(), tmp_path / "fine", small.SETTING)["warnings"] == []


def test_a_simulated_node_cannot_be_asked_for_its_budget(tmp_path: Path) -> None:
    study, out = small.study(), tmp_path / "run"
    simulate(study, small.table(), out, small.SETTING)
    node = out / "nodes" / small.SETTING.names[0]
    found = CliRunner().invoke(app, ["node", "budget", str(node), "--json"])
    data = json.loads(found.stdout)["data"]
    assert (found.exit_code, data["dataset"]) == (0, study.name)
    assert 0.9 * study.privacy.epsilon < data["spent"] <= study.privacy.epsilon


def test_one_question_without_an_answer_ends_the_study(tmp_path: Path) -> None:
    """Its treatment is told apart from its adjustment by nothing: the other effect and the graph are still released."""
    table = small.table()
    table["d"] = table["a"]
    variables = [{"name": name, "kind": "continuous", "bounds": [-6.0, 6.0]} for name in "abcd"]
    effects = [
        {"treatment": "a", "outcome": "c", "adjustment": []},
        {"treatment": "a", "outcome": "b", "adjustment": ["d"]},
    ]
    study, out = small.study(variables=variables, effects=effects), tmp_path / "run"
    result = simulate(study, table, out, small.SETTING)
    answered, unanswered = result["effects"]
    (low, high), bound = answered["interval"], answered["bound"]
    assert answered["interval_with_liars"] == [low - bound, high + bound]
    assert (unanswered["estimate"], unanswered["no_answer"]) == (None, "data")
    assert "no answer" in (out / "report.html").read_text()
    assert small.audited(out).faults == []


def test_a_release_that_was_lost_on_the_way_is_not_accounted(tmp_path: Path) -> None:
    """The node made it, so the coordinator's account may not say less than the node's own journal."""
    lost = small.SETTING.names[2]
    node = 1000 + small.SETTING.names.index(lost)

    def lose(messages: list[Any]) -> list[Any]:
        return [m for m in messages if (m.metadata.message_type, m.metadata.src_node_id) != ("query.evidence", node)]

    out = tmp_path / "run"
    result = simulate(small.study(), small.table(), out, small.SETTING, faults=Faults(replies=lose))
    delta = result["privacy"]["delta"]
    for name in small.SETTING.names:
        own = Journal.open(out / "nodes" / name / "journal.db").spent("small", delta)
        assert own <= result["privacy"]["spent"][name] + 1e-9


@pytest.mark.parametrize("method", ["ges", "pc"])
def test_a_study_by_another_method_proposes_what_its_pool_does_not_show_or_cannot_be_audited(
    method: str, tmp_path: Path
) -> None:
    table, out = small.table(), tmp_path / "run"
    asked = small.study(rounds=0, discovery={"method": method})
    result = simulate(asked, table, out, small.SETTING)
    assert small.audited(out).faults == []
    found = CausalGraph.from_json(result["graph"]["pattern"])
    assert found.skeleton() == discover(Evidence.from_data(table), method).skeleton()


def test_a_study_pools_by_the_sieve_and_loses_an_honest_member_keeps_a_liar_or_cannot_be_audited(
    tmp_path: Path,
) -> None:
    asked = small.study(rounds=0, aggregation={"pool": "sieve"})
    honest, forged = tmp_path / "honest", tmp_path / "forged"
    table = small.table()
    kept = simulate(asked, table, honest, small.SETTING)["pool"]
    assert (kept["rule"], kept["excluded"], kept["accused"]) == ("sieve", [], [])
    found = simulate(asked, table, forged, Setting(small.MEMBERS, 2, "forge", 0))
    assert found["simulation"]["liars"] == found["pool"]["excluded"]
    for out in (honest, forged):
        assert small.audited(out).faults == []
