"""Edits by vote from the node to the ledger, over a real service: who proposed one, what an owner is shown of it, and
what a lying coordinator makes of either."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from causaldao import governance
from causaldao.client import edits, enrolment, votes
from causaldao.edits import KIND, Edit
from causaldao.enrolment import MAX_RESPONSE_BYTES
from causaldao.errors import CausalDAOError, IdentityError, LedgerError, MisuseError, RefusedError
from causaldao.ledger.bundle import export
from causaldao.ledger.verify import Policy, verify
from causaldao.server import edits as servers
from causaldao.server import enrolment as desk
from causaldao.server import membership
from causaldao.server.home import utc_now
from causaldao.server.motions import Motions
from causaldao.signing import SigningKey, canonical
from causaldao.trail import Trail
from tests.client.test_votes import NAMES, QUICK, Federation, run, said, without_witnesses
from tests.server.graphs import STUDY, adopt, edit
from tests.server.homes import NOW
from tests.server.votes import votes as signed


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation of four, of whom three decide, and a study with a graph; no test leaves an edit or motion behind."""
    federation = Federation(tmp_path_factory.mktemp("edits"))
    try:
        federation.join(*NAMES)
        for name in NAMES:
            federation.home.admit(name, NOW)
        adopt(federation.home)
        yield federation
    finally:
        federation.close()


@pytest.fixture
def founded(adopted: Federation) -> Iterator[Federation]:
    copied = adopted.copy("before.db")
    kept = {name: (adopted.node(name) / "witness.db").read_bytes() for name in NAMES}
    known = {name: adopted.node(name) / "receipts.db" for name in NAMES}
    yield adopted
    adopted.restore(copied)
    copied.unlink()
    for name in NAMES:
        (adopted.node(name) / "witness.db").write_bytes(kept[name])
        known[name].unlink(missing_ok=True)


def propose(founded: Federation, name: str, *given: str, reason: str = "known") -> dict[str, Any]:
    change, cause, effect = given
    body = {**edit(change, cause, effect, name, reason)}
    return votes.propose(founded.node(name), body, utc_now(), patience=QUICK)


def test_a_member_cannot_edit_a_graph_by_commands_alone(founded: Federation) -> None:
    """Proposed by one, shown to all with what it would change, decided by three; who it was stands on the ledger."""
    home, asked = founded.home, ["--edge", "age", "dose", "--change", "reverse", "--reason", "dose \x1b[2J comes first"]
    status, told = run("node", "propose-edit", founded.node("ada"), STUDY.hash, *asked, "--yes")
    assert (status, told["state"], told["votes"], told["edit"]["proposer"]) == (0, "voting", ["ada"], "ada")
    shown = said("node", "motions", founded.node("bob"))
    assert f"reverse the edge age -> dose (afterwards dose -> age) in study {STUDY.hash[:12]}, proposed by ada" in shown
    assert "now: age -> dose, a link that 3 of 4 ballots support and 1 oppose; afterwards: dose -> age" in shown
    assert "\x1b" not in shown
    (listed,) = run("node", "motions", founded.node("bob"))[1]["motions"]
    assert (listed["proposer"], listed["edit"]["edge"]) == ("ada", ["age", "dose"])
    assert "proposed by ada" in said("coordinator", "motions", home.folder)
    for name in ("bob", "cy"):
        state = run("node", "vote", founded.node(name), told["motion"][:8], "--yes")[1]["state"]
    assert state == "passed"
    with home.log() as log:
        assert set(servers.stands(log, STUDY.hash).edited.pattern.directed) == {
            ("dose", "age"), ("smoking", "dose"), ("dose", "response"),
        }  # fmt: skip
        (entry,) = log.entries(kinds=(KIND,))
        text = without_witnesses((home.folder / "policy").read_text())
        assert verify(export(log), Policy.parse(text)).entries[-1].body["proposer"] == "ada"
    assert [vote["member"] for vote in entry.body["votes"]] == ["ada", "bob", "cy"]


def test_a_wrong_word_ends_in_a_traceback(founded: Federation) -> None:
    """Exit statuses: misuse 2, a study that is not known; configuration 10, an edit that does not fit; refused 18."""
    node = founded.node("ada")

    def status(study: str, cause: str, effect: str, change: str, *more: str) -> tuple[int, str]:
        given = ["--edge", cause, effect, "--change", change, "--reason", "known", *more]
        code, error = run("node", "propose-edit", node, study, *given)
        return code, error["message"]

    assert status("nothing", "age", "dose", "remove", "--yes")[0] == 2
    assert status("1" * 64, "age", "dose", "remove", "--yes")[0] == 2
    code, message = status(STUDY.hash, "age", "dose", "add", "--yes")
    assert (code, "age -> dose stands already" in message) == (10, True)
    assert status(STUDY.hash, "age", "dose", "melt", "--yes")[0] == 10
    assert status(STUDY.hash, "age", "dose", "remove")[0] == 18, "nobody was there to ask"
    assert founded.home.motions.settle(NOW)[1] == ()


def test_an_edit_does_not_fit_and_gets_votes(founded: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that puts nonsense, or an edit that another one overtook, finds no node that votes for it."""
    body = edit("add", "response", "age")
    home, id = founded.home, governance.motion(KIND, body)
    home.registry.ballots.put(id, KIND, body, 4, 0, NOW)
    told = {one.id: one for one in votes.motions(founded.node("ada"), utc_now(), patience=QUICK)}
    assert "it does not fit the graph: the directed edges hold a cycle" in told[id].change
    with pytest.raises(RefusedError, match="Nothing was signed: The edit to add response -> age does not fit"):
        votes.vote(founded.node("ada"), told[id], utc_now(), patience=QUICK)
    with pytest.raises(RefusedError, match="Nothing was signed"):
        propose(founded, "ada", "add", "response", "age")
    row = propose(founded, "ada", "remove", "age", "dose")
    before = next(
        one for one in votes.motions(founded.node("bob"), utc_now(), patience=QUICK) if one.id == row["motion"]
    )
    with pytest.raises(IdentityError, match="would change is not what was shown before"):
        votes.vote(founded.node("bob"), replace(before, change="now: nothing"), utc_now(), patience=QUICK)
    assert votes.vote(founded.node("bob"), before, utc_now(), patience=QUICK)["votes"] == ["ada", "bob"]


def test_a_member_is_named_for_what_it_did_not_propose(founded: Federation) -> None:
    """Its own vote would say that it did: it is asked for none."""
    body = edit("remove", "age", "dose", "ada")
    founded.home.motions.put(KIND, body, NOW)
    (told,) = votes.motions(founded.node("ada"), utc_now(), patience=QUICK)
    with pytest.raises(IdentityError, match="names this member as its proposer"):
        votes.vote(founded.node("ada"), told, utc_now(), patience=QUICK)
    assert propose(founded, "ada", "remove", "age", "dose")["votes"] == ["ada"], "said again in its own words"


def test_the_same_again_is_another_motion(founded: Federation) -> None:
    first = propose(founded, "ada", "reverse", "age", "dose")
    assert propose(founded, "ada", "reverse", "age", "dose") == first
    (told,) = votes.motions(founded.node("cy"), utc_now(), patience=QUICK)
    assert told.votes == ("ada",)


# what a lying coordinator shows of a graph


def test_a_graph_is_shown_that_is_not_on_the_ledger(founded: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    node, graph = founded.node("ada"), Motions.graph
    forgeries: dict[str, Any] = {}

    def lying(self: Motions, member: str, study: str, size: int) -> str:
        value = json.loads(graph(self, member, study, size))
        forgeries[forged](value)
        return canonical(value).decode()

    def other_graph(value: dict[str, Any]) -> None:
        value["members"][1]["record"] = value["members"][1]["record"].replace('"support":3', '"support":4')

    forgeries |= {
        "another record": other_graph,
        "another index": lambda value: value["members"][1].update(index=4),
        "no proof": lambda value: value["members"][1].update(proof=[]),
        "no record": lambda value: value["members"][1].update(record="[]"),
        "deep": lambda value: value["members"][1].update(record="[" * 100_000),
        "another order": lambda value: value["members"].reverse(),
        "twice": lambda value: value["members"].append(value["members"][1]),
        "unsigned": lambda value: value.update(checkpoint=value["checkpoint"].replace("\n7\n", "\n8\n")),
        "nothing": lambda value: value.update(checkpoint=""),
        "no adoption": lambda value: value["members"].pop(),
        "no study": lambda value: value["members"].pop(0),
        "another kind": lambda value: value["members"].insert(0, shown(0)),
    }

    def shown(index: int) -> dict[str, Any]:
        with founded.home.log() as log:
            record, proof = log.entries(index, index + 1)[0].record, log.inclusion_proof(index, log.head.size)
        return json.loads(Trail("", members=(servers.Shown(index, record, tuple(proof)),)).pack())["members"][0]

    monkeypatch.setattr(Motions, "graph", lying)
    for forged in forgeries:
        with pytest.raises(CausalDAOError) as caught:
            edits.look(node, STUDY.hash, utc_now(), patience=QUICK)
        assert caught.value.code in ("identity", "ledger", "misuse"), forged
    with pytest.raises(CausalDAOError):
        propose(founded, "ada", "remove", "age", "dose")
    assert founded.home.motions.settle(NOW)[1] == ()


def test_an_edit_that_passed_before_is_hidden(founded: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is shown the graph of before votes for something else than is put: the digests differ, and it does not."""
    graph, node, passed = Motions.graph, founded.node("dan"), edit("reverse", "age", "dose")
    keys = {name: SigningKey.load(founded.node(name) / "signing.pem") for name in ("ada", "bob", "cy")}
    with founded.home.log() as log:
        membership.decide(log, KIND, passed, signed(log, KIND, passed, keys))
        does = servers.stands(log, STUDY.hash).step(Edit("dose", "age", "remove")).digest
    founded.home.motions.put(KIND, {**edit("remove", "dose", "age"), "does": does}, NOW)

    def hiding(self: Motions, member: str, study: str, size: int) -> str:
        value = json.loads(graph(self, member, study, size))
        value["members"] = value["members"][:2]
        return canonical(value).decode()

    (honest,) = votes.motions(node, utc_now(), patience=QUICK)
    assert honest.change.startswith("now: dose -> age")
    monkeypatch.setattr(Motions, "graph", hiding)
    (told,) = votes.motions(node, utc_now(), patience=QUICK)
    assert told.change.startswith("it would not do what it was put for")
    for shown in (honest, told):
        with pytest.raises(RefusedError, match="would not do what it was put for"):
            votes.vote(node, shown, utc_now(), patience=QUICK)
    monkeypatch.setattr(Motions, "graph", lambda self, member, study, size: graph(self, member, study, 7))
    with pytest.raises(LedgerError, match=r"in a ledger of 7 entries, .* this node's witness has just seen 8"):
        votes.vote(node, honest, utc_now(), patience=QUICK)


def test_a_graph_that_cannot_be_shown_hides_the_other_motions(
    founded: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    founded.put(0)
    propose(founded, "ada", "remove", "age", "dose")
    monkeypatch.setattr(desk, "_ROOM", 20_000)
    assert len(votes.motions(founded.node("bob"), utc_now(), patience=QUICK)) == 2
    monkeypatch.setattr(desk, "_ROOM", 3_000)
    told = votes.motions(founded.node("bob"), utc_now(), patience=QUICK)
    assert [one.change[:40] for one in told] == ["", "what it would change cannot be shown: Wh"]
    assert str(MAX_RESPONSE_BYTES) in told[1].change
    monkeypatch.setattr(desk, "_ROOM", 20_000)
    with pytest.raises(IdentityError, match="not what was shown before"):
        votes.vote(founded.node("bob"), told[1], utc_now(), patience=QUICK)


def test_a_barred_member_proposes(founded: Federation) -> None:
    founded.home.revoke("dan", "a test", NOW)
    with pytest.raises(IdentityError, match="revoked"):
        propose(founded, "dan", "remove", "age", "dose")
    with pytest.raises(MisuseError, match="No entry of the ledger proposes"):
        enrolment.graph(founded.node("dan"), "1" * 64, 0, utc_now(), patience=QUICK)
