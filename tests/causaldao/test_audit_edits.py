"""Edits by vote in a bundle: what members could not have meant passes, and an auditor sees another graph, or other
effects, than the coordinator shows."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from causaldao.__main__ import app
from causaldao.audit import audit
from causaldao.audit.edits import text
from causaldao.edits import KIND, Edit, standing
from causaldao.errors import ConfigurationError, GuaranteeError, LedgerError
from causaldao.ledger.bundle import export
from causaldao.ledger.entry import Entry
from causaldao.ledger.log import Log
from causaldao.ledger.verify import Policy, Report, verify
from causaldao.models.graph import CausalGraph
from causaldao.server import edited, edits, membership
from tests.causaldao.cases import study
from tests.causaldao.test_audit import Case, _named, _simulated
from tests.client.test_votes import without_witnesses
from tests.ledger.forge import TIME
from tests.server.votes import votes

ASKED = study(
    study={"name": "edits"}, training={"rounds": 0}, consensus={"faulty": 0}, privacy={"epsilon": 1.0},
    effects=[
        {"treatment": "dose", "outcome": "pain", "adjustment": "auto"},
        {"treatment": "dose", "outcome": "pain", "adjustment": ["age"]},
    ],
)  # fmt: skip
EDITS = [
    {"edge": ["dose", "age"], "change": "reverse", "reason": "age comes first"},
    {"edge": ["pain", "age"], "change": "reverse", "reason": "age comes \x1b[2J first"},
    {"edge": ["dose", "pain"], "change": "add", "reason": "given before"},
]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A study that adopts dose -> age <- pain: age raises both, dose lowers pain, and the two nearly cancel."""
    return _simulated(tmp_path_factory.mktemp("runs") / "run", ASKED, 3)


@pytest.fixture
def log(case: Case, tmp_path: Path) -> Iterator[Log]:
    shutil.copy(case.folder / "ledger.db", tmp_path / "ledger.db")
    with Log.open(f"sqlite:///{tmp_path / 'ledger.db'}", case.coordinator) as log:
        yield log


def body(edit: dict[str, Any], proposer: str = "") -> dict[str, Any]:
    return {"study": ASKED.hash, **edit, **({"proposer": proposer} if proposer else {})}


def decide(log: Log, case: Case, edit: dict[str, Any], proposer: str = "") -> None:
    voted = body(edit, proposer)
    voted["does"] = edits.stands(log, ASKED.hash).step(Edit.of(voted)).digest
    membership.decide(log, KIND, voted, votes(log, KIND, voted, case.members))


def report(log: Log, case: Case) -> Report:
    """As an auditor verifies it, whose policy asks for no witness: nobody cosigned since the edits."""
    return verify(export(log), Policy.parse(without_witnesses((case.folder / "policy").read_text())))


def test_an_edited_graph_is_not_the_one_that_an_auditor_computes(log: Log, case: Case) -> None:
    """Voted, recorded, and seen alike by the coordinator and by who has the bundle alone; with the effects under it."""
    before = audit(report(log, case))
    assert (before.edited, before.faults) == ([], [])
    proposer = min(case.members)
    for edit in EDITS:
        decide(log, case, edit, proposer)
    found = audit(report(log, case))
    assert [str(fault) for fault in found.faults] == []
    assert [what for what in found.checked if "voted by the members" in what] == [
        f"study 'edits' {ASKED.hash[:12]}: 3 edits voted by the members: dose -> age became age -> dose (proposed by "
        f"{proposer}); pain -> age became age -> pain (proposed by {proposer}); no edge between dose and pain became "
        f"dose -> pain (proposed by {proposer})"
    ]
    (told,) = found.edited
    assert CausalGraph.from_json(told["graph"]["pattern"]).directed == {
        ("age", "dose"),
        ("age", "pain"),
        ("dose", "pain"),
    }
    assert told["edits"][0] | {"before": "", "index": 0} == {
        "index": 0, "edge": ["dose", "age"], "change": "reverse", "reason": "age comes first", "proposer": proposer,
        "votes": sorted(case.members), "before": "", "after": "age -> dose", "also": told["edits"][0]["also"],
        "problem": "",
    }  # fmt: skip
    (effect,) = told["effects"]
    (new,) = effect["edited"]
    assert new["adjustment"] == ["age"]
    fixed = next(line for line in report(log, case).entries if line.kind == "adopt").body["effects"][-1]
    assert new["estimate"] == pytest.approx(fixed["estimate"], rel=1e-9), "the same evidence, adjusted for the same"
    assert [old["graph_implies_zero"] for old in effect["adopted"]] == [True, False], "as it was, and the fixed one"
    shown, _ = edited.read(log, ASKED.hash)
    assert shown == told
    assert tomllib.loads(told["knowledge"])["knowledge"]["required"] == [
        ["age", "dose"],
        ["age", "pain"],
        ["dose", "pain"],
    ]
    assert not any("\x1b" in line for line in text(told))


def test_a_picture_of_an_edited_graph_does_not_say_so(log: Log, case: Case, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in case.folder.iterdir() if path.is_file()}
    decide(log, case, EDITS[0], min(case.members))
    decide(log, case, {"edge": ["age", "pain"], "change": "remove", "reason": "<script>\x00\u202e"})
    shown, found = edited.read(log, ASKED.hash)
    ballots = edited.ballots(log, ASKED.hash)
    assert set(ballots) == set(case.members)
    files = edited.write(tmp_path / "study", shown, found, ballots)
    assert [path.name for path in files] == ["edited.json", "graph-edited.svg", "graph-edited.html"]
    assert json.loads(files[0].read_text()) == shown
    picture, html = files[1].read_text(), files[2].read_text()
    assert "edited by vote: reverse dose -&gt; age, proposed by " in picture
    assert "edited by vote: remove age -&gt; pain, put by the operator: &lt;script&gt;" in picture
    assert "the graph after 2 edits by vote" in html
    assert f"proposed by {min(case.members)}: age comes first (votes: {', '.join(sorted(case.members))})" in html
    assert "put by the operator: &lt;script&gt;" in html
    assert not {"\x00", "\u202e"} & {*picture, *html}, "a browser turns round or cuts off what follows"
    assert "edited by vote" in html
    assert {path.name: path.read_bytes() for path in case.folder.iterdir() if path.is_file()} == before


def test_evidence_that_was_erased_hides_the_graph(log: Log, case: Case) -> None:
    decide(log, case, EDITS[0])
    names = sorted({name for entry in log.entries(kinds=("evidence",)) for name in entry.payloads})
    log.append([Entry("erasure", {"payloads": names[:1], "reason": "asked for"})])
    found = audit(report(log, case))
    assert any("effects under the edited graph" in what for what in found.unchecked)
    (told,) = found.edited
    assert (told["effects"], len(told["edits"])) == (None, 1)
    assert edited.read(log, ASKED.hash)[0] == told


# what nobody could have meant


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"edge": ["age", "weight"], "change": "remove"}, ("'weight' is no variable of the study",)),
        ({"edge": ["age", "dose"], "change": "add"}, ("to add age -> dose does not fit", "stands already")),
    ],
)
def test_an_edit_that_makes_no_sense_is_signed_by_all(case: Case, edit: dict[str, Any], words: tuple[str, ...]) -> None:
    voted = {"kind": KIND, "body": body({**edit, "reason": "x"}), "payloads": [], "time": TIME}
    given: list[int] = []

    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        given.append(len(records))
        return [*records, voted]

    found = case.forge(change)
    _named(found, given[0], *words)
    (told,) = found.edited
    assert told["graph"] == told["adopted"]
    assert "0 edits voted by the members: none that fits" in str(found.checked)


def test_an_edit_does_something_else_than_was_voted_on(case: Case) -> None:
    voted = {"kind": KIND, "body": body({**EDITS[0], "does": "0" * 64}), "payloads": [], "time": TIME}
    found = case.forge(lambda records: [*records, voted])
    assert [fault.what.partition(": ")[2] for fault in found.faults] == [
        "the edit does something else than what was voted on: dose -> age becomes age -> dose"
    ]


def test_edits_that_make_a_cycle_are_signed_by_all(case: Case) -> None:
    """Each would be fine alone; the last closes a ring, and leaves the first two as they are."""
    ring = [EDITS[0], EDITS[2]]  # age -> dose -> pain -> age
    more = [{"kind": KIND, "body": body(edit), "payloads": [], "time": TIME} for edit in ring]
    given: list[int] = []

    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        given.append(len(records))
        return [*records, *more]

    found = case.forge(change)
    _named(found, given[0] + 1, "does not fit the graph that it was voted on", "cycle", "dose -> pain")
    assert len(found.faults) == 1
    assert "1 edit voted by the members: dose -> age became age -> dose" in str(found.checked)


def test_an_edit_before_there_is_a_graph(case: Case) -> None:
    voted = {"kind": KIND, "body": body({**EDITS[0]}), "payloads": [], "time": TIME}

    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        place = [record["kind"] for record in records].index("adopt")
        given.append(place)
        return [*records[:place], voted, *records[place:]]

    given: list[int] = []
    _named(case.forge(change), given[0], "it edits a graph before one was adopted")


def test_an_edit_has_no_quorum(log: Log, case: Case) -> None:
    """Neither does the coordinator's writer take it, nor, where one writes past it, whoever verifies."""
    voted = body(EDITS[0]) | {"does": edits.stands(log, ASKED.hash).step(Edit.of(body(EDITS[0]))).digest}
    few = votes(log, KIND, voted, {name: case.members[name] for name in sorted(case.members)[:1]})
    with pytest.raises(GuaranteeError, match="has 1 of the 2 votes it needs"):
        membership.decide(log, KIND, voted, few)
    with pytest.raises(ConfigurationError, match="does not fit the graph of study 'edits'"):
        decide(log, case, {"edge": ["age", "dose"], "change": "add", "reason": "x"})
    log.append([Entry(KIND, {**voted, "votes": few})])
    with pytest.raises(LedgerError, match="it has 1 votes"):
        report(log, case)


def test_the_command_does_not_say_that_a_graph_was_edited(log: Log, case: Case, tmp_path: Path) -> None:
    decide(log, case, EDITS[0], min(case.members))
    policy = tmp_path / "policy"
    policy.write_text(without_witnesses((case.folder / "policy").read_text()))
    (tmp_path / "bundle").write_bytes(export(log))
    arguments = ["audit", str(tmp_path / "bundle"), "--policy", str(policy)]
    told = CliRunner().invoke(app, [*arguments, "--json"])
    assert told.exit_code == 0
    (graph,) = json.loads(told.stdout)["data"]["edited"]
    assert graph["edits"][0]["proposer"] == min(case.members)
    said = CliRunner().invoke(app, arguments).stdout
    assert "graph of study edits" in said
    assert "effects read anew under the edited graph, from the same evidence (no privacy is spent)" in said
    again = body(EDITS[0])
    log.append([Entry(KIND, {**again, "votes": votes(log, KIND, again, case.members)})])
    (tmp_path / "bundle").write_bytes(export(log))
    wrong = CliRunner().invoke(app, [*arguments, "--json"])
    assert (wrong.exit_code, json.loads(wrong.stdout)["error"]["code"]) == (1, "finding")
    assert standing(ASKED.hash, report(log, case).entries).edited.steps[-1].problem
