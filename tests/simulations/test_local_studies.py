"""A study of local ballots from end to end: liars that move its graph, kills that spend twice, files that lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from causaldao.budget import plan
from causaldao.edits import KIND
from causaldao.errors import GuaranteeError, MisuseError
from causaldao.ledger.entry import Entry
from causaldao.ledger.log import Log
from causaldao.messages import Parcel
from causaldao.models.graph import CausalGraph
from causaldao.server import edited
from causaldao.signing import SigningKey, peek
from causaldao.simulations.attacks import Conduct
from causaldao.simulations.engine import Faults
from causaldao.simulations.federation import Setting, simulate
from tests.causaldao.local import local_study
from tests.counts import count
from tests.server.test_coordinator import BAD, Forger
from tests.simulations import small

STUDY = local_study("abc", consensus={"faulty": 1, "threshold": 0.51})
MEMBERS, ENOUGH = 7, 4
SETTING = Setting(members=MEMBERS, liars=1, attack="forge-graph")
CYCLE = [{"from": a, "to": b, "marks": ["-", ">"]} for a, b in ("ab", "bc", "ca")]
FORGER, EMPTY = "hospital-01", "hospital-02"
STATES = ("proposed", "roll-call", "ballots", "adopted", "released", "closed") if count(0, 1) else ("ballots",)
TRUTH = CausalGraph.cpdag(undirected=[("a", "b"), ("b", "c")])


class _Killed(Exception):
    pass


def _circle(kind: str, body: Any) -> Any:
    return {**body, "graph": {**body["graph"], "edges": CYCLE}} if kind == "ballot" else body


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a liar whose ballot is taken, one whose ballot goes in a circle, and a member without records; killed
    on its way (in full: at every state)."""
    folder = tmp_path_factory.mktemp("local") / "run"
    conducts = {FORGER: Conduct(body=_circle), EMPTY: Conduct(rows=lambda frame: frame.iloc[:0])}
    assert not {FORGER, EMPTY} & set(SETTING.liar_names)

    def die(at: str) -> Callable[[str], None]:
        def on_state(state: str) -> None:
            if state == at:
                raise _Killed

        return on_state

    for number, state in enumerate(STATES):
        with pytest.raises(_Killed):
            simulate(STUDY, small.table(), folder, SETTING, resume=number > 0, conducts=conducts, on_state=die(state))
    simulate(STUDY, small.table(), folder, SETTING, resume=True, conducts=conducts)
    return folder


@pytest.fixture(scope="module")
def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def test_a_killed_run_spends_twice_or_takes_another_course(out: Path) -> None:
    ballot = ("ballot", 0, (plan(STUDY).evidence,))
    assert small.debits(out) == {name: [ballot] for name in SETTING.names}
    states = [line.kind.removeprefix("study.") for line in small.lines(out) if line.kind.startswith("study.")]
    assert states == ["proposed", "approved", "roll-call", "ballots", "adopted", "released", "closed"]
    kinds = {line.kind for line in small.lines(out)}
    assert not kinds & {"evidence", "pool", "update", "aggregate", "estimate"}


def test_liars_move_the_graph(result: dict[str, Any]) -> None:
    assert CausalGraph.from_json(result["graph"]["pattern"]) == TRUTH
    tallies = {tuple(mark["nodes"]): (mark["support"], mark["needed"], mark["status"]) for mark in result["marks"]}
    assert tallies[("a", "b")] == tallies[("b", "c")] == (4, ENOUGH, "adopted")
    assert tallies[("a", "c")] == (1, ENOUGH, "contested")
    assert ["a", "c"] in [mark["nodes"] for mark in result["contested"]]
    assert {mark["needed"] for mark in result["marks"]} == {ENOUGH}
    assert all("strength" not in mark for mark in result["marks"])


def test_a_malformed_graph_is_counted_or_ends_the_study(result: dict[str, Any], out: Path) -> None:
    status, reason = small.status(result, FORGER)
    assert status == "quarantined"
    assert "cycle" in reason
    (complaint,) = [line.body for line in small.lines(out) if line.kind == "complaint"]
    assert (complaint["member"], complaint["kind"], complaint["code"]) == (FORGER, "ballot", "identity")
    (liar,) = SETTING.liar_names
    assert small.status(result, liar) == ("ok", "")  # nobody can tell


def test_a_member_that_sees_nothing_is_a_liar_or_goes_unnamed(result: dict[str, Any]) -> None:
    assert small.status(result, EMPTY) == ("ok", "its ballot abstains: its noisy moments bore no graph (data)")
    assert f"Of 6 ballots 1 say nothing, as noisy moments bore no graph: {EMPTY}." in result["warnings"]
    assert not any("tells nothing" in warning for warning in result["warnings"])


def test_the_audit_claims_more_than_it_can_or_finds_a_fault(out: Path) -> None:
    found = small.audited(out)
    assert found.faults == []
    (unchecked,) = found.unchecked
    assert "nobody can tell" in unchecked
    assert any("6 ballots as graphs" in what for what in found.checked)


def test_moments_are_kept_or_leave_the_node(out: Path) -> None:
    """Nothing that a node stores has the moments, and its ballot has no tensors at all."""
    for line in small.lines(out):
        if line.kind == "ballot":
            assert line.body["manifest"] == []
            assert set(peek(line.body["envelope"].encode()).body) == {
                "graph", "absent", "knowledge", "abstains", "noise",
            }  # fmt: skip
    for folder in (out / "nodes").iterdir():
        for stored in ("journal.db", "answers.db"):
            assert b"moments" not in (folder / stored).read_bytes()


def test_what_is_written_for_people_speaks_of_a_pool(result: dict[str, Any], out: Path) -> None:
    assert result["pool"] is None
    assert result["study"]["evidence"] == "local"
    assert (result["effects"], result["rounds"], result["example"]) == ([], [], None)
    assert {member["noisy_count"] for member in result["members"]} == {None}
    assert "Nobody can recompute a ballot" in result["warnings"][0]
    assert "4 or more of 7" in result["warnings"][0]
    report = (out / "report.html").read_text()
    for words in ("Nobody can recompute it", "local ballots give no effect", "4 supporters", "too few", "<svg"):
        assert words in report
    for words in ("own released evidence", "No effect was released", "None was asked for"):
        assert words not in report
    page, svg = (out / "graph.html").read_text(), (out / "graph.svg").read_text()
    assert '"members":{"support":["hospital-' in page
    assert "Partial correlation" not in page
    assert "struck: too many opposed" not in page + svg
    assert ">a and c" not in svg  # one supporter of the four that it takes: in the report, and not in the picture


def test_its_graph_cannot_be_edited_or_shown(result: dict[str, Any], out: Path, tmp_path: Path) -> None:
    """Ballots of this mode hold a graph, and no votes on marks."""
    key = SigningKey.load(out / "coordinator.pem")
    edit = Entry(KIND, {"study": STUDY.hash, "edge": ["a", "b"], "change": "remove", "reason": "A test.", "votes": []})
    shutil.copy(out / "ledger.db", tmp_path / "ledger.db")
    with Log.open(f"sqlite:///{tmp_path / 'ledger.db'}", key) as log:
        log.append([edit])
        shown, found = edited.read(log, STUDY.hash)
        votes = edited.ballots(log, STUDY.hash)
        edited.write(tmp_path / "study", shown, found, votes)
    support = {mark: [own[mark] for own in votes.values()].count(1) for mark in votes[EMPTY]}
    assert support == {" - ".join(mark["nodes"]): mark["support"] for mark in result["marks"]}
    assert (shown["edits"][0]["after"], shown["effects"]) == ("no edge between a and b", [])
    assert "the graph after 1 edit by vote" in (tmp_path / "study" / "graph-edited.html").read_text()


def test_an_attack_that_does_nothing_there_is_run(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="choose one of forge-graph"):
        simulate(STUDY, small.table(), tmp_path / "run", Setting(members=7, liars=1))
    with pytest.raises(MisuseError, match="'forge-graph' does nothing"):
        simulate(small.study(faulty=1), small.table(), tmp_path / "run", SETTING)
    with pytest.raises(GuaranteeError, match="largest f is 0"):
        simulate(STUDY, small.table(), tmp_path / "run", Setting(members=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not count(0, 1), reason="another whole run")
@pytest.mark.parametrize("other", ["another graph", "the same graph, other knowledge"])
def test_two_ballots_of_one_member_are_both_counted(other: str, tmp_path: Path) -> None:
    def again(forger: Forger, parcel: Parcel) -> Parcel:
        body = dict(peek(parcel.envelope).body)
        if other == "another graph":
            body["graph"] = {**body["graph"], "edges": []}
        else:
            body["knowledge"] = {**body["knowledge"], "tiers": {"a": 0}}
        return forger.resigned(parcel, body=body)

    folder = tmp_path / "run"
    faults = Faults(replies=Forger(folder, "ballot", True, again))
    found = simulate(STUDY, small.table(), folder, small.SETTING, faults=faults)
    assert small.status(found, BAD) == ("excluded", "signed two contents for one ballot")
    assert [line.body["member"] for line in small.lines(folder) if line.kind == "equivocation"] == [BAD]
    assert BAD not in [line.body["member"] for line in small.lines(folder) if line.kind == "ballot"]
    assert {mark["support"] for mark in found["marks"] if mark["status"] == "adopted"} == {6}
    assert small.audited(folder).faults == []
