"""Edits by vote at the coordinator: what makes no sense is put, one overtakes another, one member floods the others."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from causaldao import governance
from causaldao.__main__ import app
from causaldao.edits import KIND, standing
from causaldao.errors import ConfigurationError, IdentityError, MisuseError, RefusedError
from causaldao.ledger.entry import Entry
from causaldao.ledger.note import LOG, Verifier, cosign, open_note
from causaldao.server import edits, membership
from causaldao.server.ballot_box import MotionRow
from causaldao.server.home import Home
from causaldao.server.motions import EDIT_DAYS, EDITS_OF_ONE
from causaldao.trail import Trail, Word
from tests.server import homes, votes
from tests.server.graphs import GRAPH, STUDY, adopt, edit
from tests.server.homes import NOW
from tests.server.test_motions import ballot, check_whole, only, opened, vote

NAMES = ("ada", "bob", "cy", "dan")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation of four, of whom three decide, and a study with a graph."""
    home = homes.create(tmp_path_factory.mktemp("made") / "home", faulty=1)
    homes.admit(home, *NAMES)
    adopt(home)
    home.registry.close()
    return home.folder


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Home:
    return Home.open(shutil.copytree(made, tmp_path / "home"))


def word(home: Home, name: str) -> str:
    with home.log() as log:
        note = log.head.note
    checkpoint = open_note(note, Verifier.of(home.origin, home.key.public, LOG))
    return Word(note, cosign(checkpoint, name, homes.witness(name), 1)).pack().decode()


def propose(home: Home, body: dict[str, Any], name: str = "", now: Any = NOW) -> MotionRow:
    name = name or body["proposer"]
    row = MotionRow(governance.motion(KIND, body), KIND, body, 0, 0, now, "voting", {})
    return home.motions.propose(name, body, ballot(home, name, row), word(home, name), now)


def put(home: Home, body: dict[str, Any]) -> MotionRow:
    return home.motions.put(KIND, body, NOW)


def arrows(home: Home) -> set[tuple[str, str]]:
    with home.log() as log:
        return set(edits.stands(log, STUDY.hash).edited.pattern.directed)


# from the proposal to the graph


def test_a_member_proposes_and_nobody_knows_who_it_was(home: Home) -> None:
    row = propose(home, edit("reverse", "age", "dose", "ada"))
    assert (row.state, list(row.votes), row.body["proposer"]) == ("voting", ["ada"], "ada")
    assert propose(home, edit("reverse", "age", "dose", "ada")) == row, "the same again is another"
    vote(home, row, "bob")
    assert arrows(home) == GRAPH.directed
    assert vote(home, row, "cy").state == "passed"
    assert arrows(home) == {("dose", "age"), ("smoking", "dose"), ("dose", "response")}
    with home.log() as log:
        (entry,) = log.entries(kinds=(KIND,))
        found = standing(STUDY.hash, log.entries()).to_json()
    assert [one["member"] for one in entry.body["votes"]] == ["ada", "bob", "cy"]
    assert (found["edits"][0]["proposer"], found["edits"][0]["votes"]) == ("ada", ["ada", "bob", "cy"])
    check_whole(home)


def test_an_edit_passes_without_its_proposers_vote(home: Home) -> None:
    """The process died between the motion and the vote that came with it: others' votes alone do not name anybody."""
    body = edit("remove", "age", "dose", "ada")
    row = put(home, body)
    assert vote(home, row, "bob", "cy", "dan").state == "voting"
    assert propose(home, body).state == "passed"
    check_whole(home)


def test_a_member_proposes_in_the_name_of_another(home: Home) -> None:
    with pytest.raises(IdentityError, match="'bob' proposes an edit in the name of 'ada'"):
        propose(home, edit("remove", "age", "dose", "ada"), "bob")
    with pytest.raises(IdentityError, match="in the name of 'None'"):
        propose(home, edit("remove", "age", "dose"), "bob")
    with pytest.raises(IdentityError, match="no member by the ledger"):
        propose(home, edit("remove", "age", "dose", "zoe"))
    body, other = edit("remove", "age", "dose", "ada"), edit("add", "age", "response", "ada")
    row = MotionRow(governance.motion(KIND, other), KIND, other, 0, 0, NOW, "voting", {})
    with pytest.raises(IdentityError, match="another motion"):
        home.motions.propose("ada", body, ballot(home, "ada", row), word(home, "ada"), NOW)
    assert opened(home) == []


SENSELESS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (edit("add", "age", "dose", "ada"), ConfigurationError, "age -> dose stands already"),
    (edit("add", "response", "age", "ada"), ConfigurationError, "cycle"),
    (edit("remove", "age", "weight", "ada"), ConfigurationError, "is no variable of the study"),
    ({**edit("remove", "age", "dose", "ada"), "study": "1" * 64}, MisuseError, "No entry of the ledger proposes"),
    ({**edit("remove", "age", "dose", "ada"), "edge": ["age"]}, IdentityError, "not one of two variables"),
    ({**edit("remove", "age", "dose", "ada"), "more": 1}, IdentityError, "not one that members can vote on"),
    (edit("remove", "age", "dose", "ada", reason=" "), MisuseError, "a reason of 1 to 1000 characters"),
    (edit("remove", "age", "dose", "ada", reason="x" * 1001), MisuseError, "a reason of 1 to 1000 characters"),
    (edit("remove", "age", "dose", "ada", reason="x" * 9000), MisuseError, "larger than"),
]


def test_an_edit_brings_votes_of_its_own(home: Home) -> None:
    """They are no part of its id, so that others' votes went when it was put again with other ones."""
    row = propose(home, edit("reverse", "age", "dose", "ada"))
    vote(home, row, "bob")
    with pytest.raises(IdentityError, match="holds no votes"):
        propose(home, {**row.body, "votes": []})
    assert list(only(home).votes) == ["ada", "bob"]


def test_an_edit_that_makes_no_sense_is_put(home: Home) -> None:
    for body, error, match in SENSELESS:
        with pytest.raises(error, match=match):
            propose(home, body)
    operators = {name: value for name, value in SENSELESS[0][0].items() if name != "proposer"}
    with pytest.raises(ConfigurationError, match="age -> dose stands already"):
        put(home, operators)
    assert home.motions.settle(NOW)[1] == ()


def test_an_edit_that_does_not_fit_is_recorded(home: Home) -> None:
    """Whoever brings the votes: what writes the ledger looks again."""
    body = edit("add", "response", "age")
    with home.log() as log:
        given = votes.votes(log, KIND, body, {name: homes.key(name) for name in NAMES})
        with pytest.raises(ConfigurationError, match="does not fit the graph of study 'graphs'"):
            membership.decide(log, KIND, body, given)
        assert log.entries(kinds=(KIND,)) == ()


# edits that meet


def test_an_edit_that_another_overtakes_stays_open(home: Home) -> None:
    """Both have their support; the one that is decided first leaves the other nothing to change."""
    removed = vote(home, propose(home, edit("remove", "age", "dose", "ada")), "bob")
    turned = vote(home, propose(home, edit("reverse", "age", "dose", "cy")), "dan")
    other = put(home, edit("add", "age", "response"))
    assert {row.id for row in opened(home)} == {removed.id, turned.id, other.id}, "contrary ones stand side by side"
    assert vote(home, removed, "cy").state == "passed"
    assert [row.id for row in opened(home)] == [other.id]
    with pytest.raises(RefusedError, match=r"is void: .* nothing is there to reverse"):
        vote(home, turned, "ada")
    check_whole(home)


def test_votes_count_for_what_their_members_were_not_shown(home: Home) -> None:
    """To remove age -> dose is another thing than to remove dose -> age, which stands since."""
    removed = vote(home, propose(home, edit("remove", "age", "dose", "ada")), "bob")
    vote(home, propose(home, edit("reverse", "age", "dose", "cy")), "dan", "bob")
    assert opened(home) == []
    with pytest.raises(RefusedError, match=r"is void: .* would not do what it was put for, .* now: dose -> age"):
        vote(home, removed, "cy")
    with pytest.raises(ConfigurationError, match=r"would not do what it was put for.*Propose it anew"):
        propose(home, edit("remove", "age", "dose", "ada"))
    with pytest.raises(ConfigurationError, match="would not do what it was put for"):
        put(home, {name: value for name, value in edit("remove", "dose", "response").items() if name != "does"})


def test_the_last_vote_comes_when_another_edit_was_just_recorded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the vote and the record: the motion is void, and every later look at the motions goes on."""
    row = vote(home, propose(home, edit("reverse", "age", "dose", "ada")), "bob")
    decide, body = membership.decide, edit("remove", "age", "dose")

    def late(*arguments: Any, **named: Any) -> None:
        monkeypatch.setattr(membership, "decide", decide)
        with home.log() as log:
            decide(log, KIND, body, votes.votes(log, KIND, body, {name: homes.key(name) for name in NAMES}))
        decide(*arguments, **named)

    monkeypatch.setattr(membership, "decide", late)
    assert vote(home, row, "cy").state == "void"
    assert opened(home) == []
    with home.log() as log:
        assert len(log.entries(kinds=(KIND,))) == 1
    check_whole(home)


def test_an_edit_is_open_for_ever(home: Home) -> None:
    row = propose(home, edit("remove", "age", "dose", "ada"))
    home.motions.settle(NOW + timedelta(days=EDIT_DAYS, seconds=-1))
    assert only(home) == row
    home.motions.settle(NOW + timedelta(days=EDIT_DAYS, seconds=1))
    assert opened(home) == []
    put(home, edit("remove", "age", "dose"))
    home.set_faulty(0, NOW)
    for name in ("ada", "bob", "cy"):
        vote(home, next(row for row in opened(home) if row.kind == "federation.faulty"), name)
    assert opened(home) == [], "the members changed"


# one member and the others


def test_one_member_floods_the_others(home: Home) -> None:
    graph = [("age", "dose"), ("smoking", "dose"), ("dose", "response")]
    rows = [propose(home, edit("remove", *pair, "ada")) for pair in graph[:EDITS_OF_ONE]]
    with pytest.raises(RefusedError, match=f"'ada' has {EDITS_OF_ONE} edits open"):
        propose(home, edit("add", "age", "response", "ada"))
    assert propose(home, edit("add", "age", "response", "bob")).state == "voting", "another's edits are its own"
    again = propose(home, edit("reverse", "age", "dose", "ada"))
    assert {row.id for row in opened(home) if row.body["proposer"] == "ada"} == {again.id, rows[1].id, rows[2].id}
    with pytest.raises(IdentityError, match="no motion"):
        vote(home, rows[0], "cy")
    assert len(home.motions.settle(NOW)[1]) == EDITS_OF_ONE + 1, "what was taken back fills the list"


def test_one_member_stands_in_the_way_of_an_edge(home: Home) -> None:
    """Its own edit of it, for which nobody votes, keeps nobody from another one, or from the same in their own name."""
    propose(home, edit("reverse", "age", "dose", "ada", reason="nonsense"))
    row = propose(home, edit("reverse", "age", "dose", "bob"))
    vote(home, row, "cy", "dan")
    assert ("dose", "age") in arrows(home)
    assert opened(home) == []


# what a member is shown of a graph


def test_a_member_is_shown_a_graph_without_proof(home: Home) -> None:
    propose(home, edit("remove", "age", "dose", "ada"))
    row = only(home)
    before = Trail.unpack(home.motions.graph("bob", STUDY.hash, 0).encode())
    assert [entry.index for entry in before.members] == [5, 6]
    vote(home, row, "bob", "cy")
    now = Trail.unpack(home.motions.graph("bob", STUDY.hash, 0).encode())
    assert [entry.index for entry in now.members] == [5, 6, 7]
    assert Trail.unpack(home.motions.graph("bob", STUDY.hash, 7).encode()) == before
    with pytest.raises(IdentityError, match="asks for 9 entries, the ledger has 8"):
        home.motions.graph("bob", STUDY.hash, 9)
    with pytest.raises(MisuseError, match="No entry of the ledger proposes"):
        home.motions.graph("bob", "1" * 64, 0)
    with pytest.raises(IdentityError, match="no member by the ledger"):
        home.motions.graph("zoe", STUDY.hash, 0)


# the operator's commands


def run(*arguments: Any) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    envelope = json.loads(result.stdout)
    return result.exit_code, envelope["data" if result.exit_code == 0 else "error"]


def said(*arguments: Any) -> str:
    return CliRunner().invoke(app, [*map(str, arguments)]).output


def test_an_operator_cannot_put_an_edit_or_see_the_graph(home: Home) -> None:
    folder, given = home.folder, ["--reason", "known \x1b[2J"]
    status, data = run("coordinator", "edit", folder, "graphs", "--edge", "age", "dose", "--change", "remove", *given)
    (motion,) = data["motions"]
    assert (status, motion["state"], motion["votes"], motion["needed"]) == (0, "voting", [], 3)
    assert "afterwards: no edge between age and dose" in motion["change"]
    text = said("coordinator", "motions", folder)
    assert f"remove the edge age -> dose in study {STUDY.hash[:12]}: known" in text
    assert "now: age -> dose, a link that 3 of 4 ballots support and 1 oppose" in text
    assert "\x1b" not in text
    turned = put(home, edit("reverse", "age", "dose"))
    assert [row.id for row in opened(home)] == [turned.id], "the operator's new one takes the place of its first"
    removed = vote(home, propose(home, edit("remove", "dose", "age", "ada")), "bob", "cy")
    assert removed.state == "passed"
    text = said("coordinator", "motions", folder)
    assert ": void\n  it does not fit the graph: there is no edge between age and dose" in text
    for study, more, code in (("graphs", ("add", "dose"), 10), ("nothing", ("remove", "dose"), 10)):
        change, cause = more
        asked = ["--edge", cause, "response", "--change", change, *given]
        assert run("coordinator", "edit", folder, study, *asked)[0] == code, study
    status, data = run("coordinator", "graph", folder, STUDY.hash[:10])
    assert (status, data["effects"]) == (0, [])
    assert (data["edits"][0]["proposer"], data["edits"][0]["votes"]) == ("ada", ["ada", "bob", "cy"])
    assert {Path(file).name for file in data["files"]} == {"edited.json", "graph-edited.svg", "graph-edited.html"}
    assert all(Path(file).is_file() for file in data["files"])
    shown = said("coordinator", "graph", folder, "graphs")
    assert "remove dose -> age, proposed by ada: known (votes: ada, bob, cy)" in shown
    assert '\nforbidden = [["age", "dose"], ["dose", "age"]]\n' in shown
    assert run("coordinator", "graph", folder, "nothing")[0] == 10


def test_a_study_without_a_graph_is_shown_one(tmp_path: Path) -> None:
    home = homes.create(tmp_path / "home")
    homes.admit(home, "ada", "bob")
    with home.log() as log:
        log.append([Entry("study.proposed", {"study": STUDY.hash, "document": STUDY.to_json()})])
    home.registry.propose(STUDY.hash, STUDY.name, STUDY.to_json(), NOW)
    status, error = run("coordinator", "graph", home.folder, "graphs")
    assert (status, "has adopted no graph yet" in error["message"]) == (2, True)
