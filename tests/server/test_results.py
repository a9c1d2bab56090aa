"""A run folder that says what nobody knows, or lacks what an auditor needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from causaldao.files import write_text
from causaldao.ledger.verify import Policy, verify
from causaldao.members import witness_text
from causaldao.server import results
from causaldao.server.coordinator import Coordinator
from causaldao.signing import SigningKey
from causaldao.simulations.federation import simulate
from tests.simulations import small

FILES = {
    "result.json",
    "graph.json",
    "graph.svg",
    "graph.html",
    "model.safetensors",
    "ledger.bundle",
    "policy",
    "report.html",
}


@dataclass
class Closed:
    """A closed study: the result as its simulation has it, and the folder that a deployment would write of it."""

    simulated: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Closed:
    """The coordinator is caught on its way out of a simulation, whose ledger is open until then."""
    folder = tmp_path_factory.mktemp("closed")
    caught: list[Closed] = []

    def catch(out: Path, result: Any, coordinator: Coordinator) -> None:
        caught.append(Closed(result, folder / "deployed"))
        caught[0].folder.mkdir()
        deployed = results.result(coordinator.study, coordinator, small.SETTING.names)
        results.write(caught[0].folder, deployed, coordinator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("causaldao.simulations.federation.write", catch)
        simulate(small.study(), small.table(), folder / "run", small.SETTING)
    return caught[0]


def test_a_deployment_claims_to_know_who_lied_or_what_all_rows_would_give(closed: Closed) -> None:
    result = json.loads((closed.folder / "result.json").read_text())
    assert result["simulation"] is None
    assert all(effect["pooled"] is None for effect in result["effects"])
    report = (closed.folder / "report.html").read_text()
    assert "pooled" not in report.partition("</style>")[2].lower().replace("pooled evidence", "")
    assert "Liars</dt>" not in report
    assert "Seed" not in report


def test_the_two_kinds_of_run_do_not_have_the_same_keys(closed: Closed) -> None:
    result = json.loads((closed.folder / "result.json").read_text())
    assert set(result) == set(closed.simulated)
    assert result["ledger"]["cosigners"] == list(small.SETTING.names)
    assert result["ledger"]["checkpoint"].count("\n— ") == 1 + len(small.SETTING.names)
    for part in set(result) - {"simulation", "effects"}:
        assert result[part] == json.loads(json.dumps(closed.simulated[part])), part
    for own, simulated in zip(result["effects"], closed.simulated["effects"], strict=True):
        assert {**own, "pooled": simulated["pooled"]} == simulated


def test_seeded_noise_passes_for_privacy_in_a_deployment(closed: Closed) -> None:
    """Its nodes may be set to seeded noise too, and then there is no simulation that could say so."""
    result = json.loads((closed.folder / "result.json").read_text())
    assert result["privacy"]["noise"] == "simulated"
    assert "Simulated noise: not private" in (closed.folder / "report.html").read_text()


def test_a_run_folder_lacks_a_file_or_does_not_verify(closed: Closed) -> None:
    assert {path.name for path in closed.folder.iterdir()} == FILES
    policy = Policy.parse((closed.folder / "policy").read_text())
    found = verify((closed.folder / "ledger.bundle").read_bytes(), policy)
    assert found.entries[-1].kind == "study.closed"


def test_the_policy_lacks_a_member(closed: Closed) -> None:
    policy = (closed.folder / "policy").read_text()
    for name in small.SETTING.names:
        folder = closed.folder.parent / "run" / "nodes" / name
        key, witness = (SigningKey.load(folder / file).public for file in ("key.pem", "witness.pem"))
        assert f"# causaldao member {key.to_text(name)}" in policy
        assert f"witness {name} {witness_text(name, witness)}" in policy


def test_a_file_that_is_there_stays_half_written(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("a much longer text than the new one")
    write_text(tmp_path / "note", "new")
    assert (tmp_path / "note").read_text() == "new\n"
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_the_graph_to_explore_tells_other_votes_than_the_result(closed: Closed) -> None:
    result = json.loads((closed.folder / "result.json").read_text())
    text = (closed.folder / "graph.html").read_text(encoding="utf-8")
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    marks = {frozenset(mark["nodes"]): mark for mark in result["marks"] if mark["kind"] == "adjacency"}
    assert len(data["edges"]) >= 2
    for edge in data["edges"]:
        mark, said = marks[frozenset((edge["from"], edge["to"]))], edge["votes"]["members"]
        # a member who cast no ballot counts as one who cannot tell, and is not named
        assert (len(said["support"]), len(said["oppose"])) == (mark["support"], mark["oppose"])
        assert len(said["abstain"]) <= mark["abstain"]
        assert {name for names in said.values() for name in names} <= set(small.SETTING.names)
    assert '<a href="graph.html">' in (closed.folder / "report.html").read_text()
    assert '<a href="report.html">' in text


def test_marks_that_liars_invent_are_all_drawn() -> None:
    """Of 190 links among 20 variables a layout took ten seconds, when the study was over and nothing written yet."""
    pairs = list(combinations([f"v{k:02}" for k in range(40)], 2))
    marks = [
        {"kind": "adjacency", "nodes": list(pair), "support": 7 if k < 39 else 3 + k % 2, "oppose": 0, "abstain": 0,
         "needed": 5, "status": "adopted" if k < 39 else "contested"}
        for k, pair in enumerate(pairs)
    ]  # fmt: skip
    shown = results.drawn(marks)
    assert [mark["support"] for mark in shown] == [7] * 39 + [4] * 20
    slips = [{**mark, "support": 2} for mark in marks if mark["status"] == "contested"]
    assert results.drawn(slips) == []
    shared = [{key: value for key, value in mark.items() if key != "needed"} for mark in marks]
    assert results.drawn(shared) == shared
