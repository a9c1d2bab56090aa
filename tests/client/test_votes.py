"""Votes from the node to the ledger, over a real service: what an owner is shown, and what its yes is good for."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from causaldao.__main__ import app
from causaldao.client import enrolment, rotation, votes
from causaldao.client.enrolment import Patience
from causaldao.enrolment import MAX_RESPONSE_BYTES, Token
from causaldao.errors import CausalDAOError, IdentityError, LedgerError, MisuseError, RefusedError
from causaldao.files import hold
from causaldao.governance import admission, make_vote
from causaldao.ledger.bundle import export
from causaldao.ledger.entry import Entry
from causaldao.ledger.note import LOG, Checkpoint, Verifier, cosign, open_note, sign_checkpoint
from causaldao.ledger.verify import Policy, verify
from causaldao.ledger.witness import Witness
from causaldao.members import Member, Roster
from causaldao.server import enrolment as desk
from causaldao.server import membership
from causaldao.server.ballot_box import MotionRow
from causaldao.server.enrolment import Enrolment, start
from causaldao.server.home import utc_now
from causaldao.signing import SigningKey, canonical
from causaldao.trail import Trail, Word
from tests.server import homes
from tests.server.homes import NOW

NAMES = ("ada", "bob", "cy", "dan")
QUICK = Patience(attempts=2, seconds=5, pause=0.01)


class Federation:
    """A coordinator's folder, its enrolment service on a loopback port, and the folders of nodes that have joined."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = homes.create(folder / "home", faulty=1)
        issued = self.home.authority.issue_server(["127.0.0.1"], NOW)
        self.service = Enrolment(
            self.home.registry, self.home.authority, self.home.facts, self.roster, self.home.motions, utc_now
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server, self.port = self._run(start(self.service, "127.0.0.1:0", lambda: issued))

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def close(self) -> None:
        self._run(self._server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.home.registry.close()

    def roster(self) -> Roster:
        with self.home.log() as log:
            return membership.roster(log)

    def node(self, name: str) -> Path:
        return self.folder / name

    def join(self, *names: str) -> None:
        for name in names:
            self.node(name).mkdir()
            (self.node(name) / "node.toml").write_text(f'name = "{name}"\ndata = "data.csv"\ndataset = "small"\n')
            secret = self.home.registry.invite(name, utc_now())
            authority = self.home.authority.certificate_der
            token = Token("test", name, f"127.0.0.1:{self.port}", secret, authority).to_text()
            enrolment.join(self.node(name), token, utc_now(), patience=QUICK)

    def found(self) -> None:
        self.join(*NAMES)
        for name in NAMES:
            self.home.admit(name, NOW)
        with self.home.log() as log:
            log.append([Entry("study.proposed", {"study": "0" * 64})])

    def witness(self, name: str) -> Witness:
        log = Verifier.of(self.home.origin, self.home.key.public, LOG)
        node = self.node(name)
        return Witness.open(node / "witness.db", name, SigningKey.load(node / "witness.pem"), log, lambda: 1)

    def put(self, faulty: int) -> MotionRow:
        """A motion that is about nobody."""
        row = self.home.set_faulty(faulty, NOW)
        assert row is not None
        return row

    def admit(self, name: str, *voters: str) -> None:
        """Somebody more, by these members' votes."""
        self.join(name)
        self.home.admit(name, NOW)
        row = self.open_()
        assert [self.vote(voter, row) for voter in voters][-1] == "passed"
        assert self.home.admit(name, NOW).state == "admitted"

    def copy(self, name: str) -> Path:
        """A copy of the coordinator's database, as a backup makes one."""
        copied = self.folder / name
        with (
            closing(sqlite3.connect(self.home.folder / "coordinator.db")) as old,
            closing(sqlite3.connect(copied)) as new,
        ):
            old.backup(new)
        return copied

    def restore(self, copied: Path) -> None:
        with (
            closing(sqlite3.connect(copied)) as old,
            closing(sqlite3.connect(self.home.folder / "coordinator.db")) as new,
        ):
            old.backup(new)

    def cosigned(self) -> dict[int, tuple[str, ...]]:
        with self.home.log() as log:
            return log.checkpoints()

    def open_(self) -> MotionRow:
        (row,) = [row for row in self.home.motions.settle(NOW)[1] if row.state == "voting"]
        return row

    def vote(self, name: str, row: MotionRow) -> str:
        chosen = votes.chosen(votes.motions(self.node(name), utc_now(), patience=QUICK), row.id)
        return str(votes.vote(self.node(name), chosen, utc_now(), patience=QUICK)["state"])


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    federation = Federation(tmp_path)
    try:
        yield federation
    finally:
        federation.close()


@pytest.fixture
def founded(federation: Federation) -> Federation:
    federation.found()
    return federation


def run(*arguments: Any) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    envelope = json.loads(result.stdout)
    return result.exit_code, envelope["data" if result.exit_code == 0 else "error"]


def said(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def without_witnesses(policy: str) -> str:
    """A policy that asks for nobody's cosignature: for a ledger as it is right after a change."""
    lines = [line for line in policy.splitlines() if not line.startswith(("group ", "quorum "))]
    return "\n".join([*lines, "quorum none", ""])


# from the operator's command to the ledger


def test_a_member_is_admitted_by_commands_alone(founded: Federation) -> None:
    """Three of four say yes; in the ledger that leaves, anybody can check that they did."""
    home = founded.home
    founded.join("eve")
    text = said("coordinator", "admit", home.folder, "eve")
    row = founded.open_()
    assert f"motion {row.id[:12]} (admit eve, with signing key " in text
    assert "needs 3 of 4 votes\n  each owner runs: causaldao node vote DIR" in text
    eve = home.registry.member("eve")
    assert eve is not None
    asked = said("node", "motions", founded.node("ada"))
    assert f"admit eve, with signing key {eve.key.id} and witness key {eve.witness_key.id}" in asked
    for name in ("ada", "bob"):
        assert run("node", "vote", founded.node(name), row.id[:8], "--yes")[1]["state"] == "voting"
    assert "so far: ada, bob" in said("coordinator", "motions", home.folder)
    assert "it has 3 of 3 votes and is passed" in said("node", "vote", founded.node("cy"), row.id, "--yes")
    assert said("coordinator", "motions", home.folder).endswith(": passed\n")
    assert "no motion is open" in said("node", "motions", founded.node("dan"))
    with home.log() as log:
        text = without_witnesses((home.folder / "policy").read_text())
        assert verify(export(log), Policy.parse(text)).members == ("ada", "bob", "cy", "dan", "eve")
    assert run("coordinator", "admit", home.folder, "eve")[1]["admitted"][0]["name"] == "eve"


def test_a_member_is_barred_at_once_and_revoked_by_vote(founded: Federation) -> None:
    home = founded.home
    status, data = run("coordinator", "revoke", home.folder, "dan", "--reason", "key \x1b[2J lost")
    assert (status, data["state"], len(data["motions"])) == (0, "revoked", 1)
    with pytest.raises(IdentityError, match="revoked"):
        enrolment.renew(founded.node("dan"), utc_now(), patience=QUICK)
    row = founded.open_()
    assert "\x1b" not in said("node", "motions", founded.node("ada"))
    assert founded.vote("ada", row) == founded.vote("bob", row) == "voting"
    assert founded.vote("dan", row) == "passed", "who is barred has its vote, as long as it is a member"
    assert founded.roster().names == ("ada", "bob", "cy")
    with pytest.raises(IdentityError, match="no member by the ledger"):
        votes.motions(founded.node("dan"), utc_now(), patience=QUICK)


def test_how_many_may_lie_is_changed_by_the_operator(founded: Federation) -> None:
    status, data = run("coordinator", "faulty", founded.home.folder, 0)
    assert (status, data["motions"][0]["words"]) == (0, "change how many members may lie from 1 to 0")
    assert run("coordinator", "faulty", founded.home.folder, 0)[1] == data
    assert run("coordinator", "faulty", founded.home.folder, 4)[1]["code"] == "guarantee"
    for name in ("ada", "bob", "cy"):
        founded.vote(name, founded.open_())
    assert run("coordinator", "faulty", founded.home.folder, 0)[1]["motions"] == []
    assert founded.roster().faulty == 0


def test_in_the_founding_somebody_is_asked(federation: Federation) -> None:
    federation.join("ada", "bob")
    status, data = run("coordinator", "admit", federation.home.folder, "--all")
    assert (status, len(data["admitted"]), data["motions"]) == (0, 2, [])
    assert run("coordinator", "faulty", federation.home.folder, 0)[1]["motions"] == []
    assert said("coordinator", "motions", federation.home.folder) == "no motion was put\n"
    assert federation.roster().faulty == 0


# what a node votes on


def test_a_member_has_no_vote_before_its_first_study(founded: Federation) -> None:
    """First contact: its witness believes what it is shown, and from then on only what goes on from there."""
    row = founded.put(0)
    assert founded.witness("ada").seen.size == 0
    votes.motions(founded.node("ada"), utc_now(), patience=QUICK)
    assert founded.witness("ada").seen.size == 0, "to look is not to vouch"
    assert founded.vote("ada", row) == "voting"
    assert (founded.witness("ada").seen.size, founded.cosigned()) == (6, {6: ("ada",)})
    assert founded.vote("bob", row) == "voting"
    assert founded.cosigned() == {6: ("ada", "bob")}


def test_one_member_more_needs_a_study_before_the_next(founded: Federation) -> None:
    """Three in a row, each voted in by members of whom some came just before, and none of them in any study."""
    founded.admit("eve", "ada", "bob", "cy")
    founded.admit("fay", "ada", "bob", "cy", "eve")
    founded.admit("gil", "fay", "eve", "dan", "bob")
    assert founded.roster().names == (*NAMES, "eve", "fay", "gil")
    assert founded.cosigned() == {
        6: ("ada", "bob", "cy"), 7: ("ada", "bob", "cy", "eve"), 8: ("bob", "dan", "eve", "fay"),
    }  # fmt: skip
    with founded.home.log() as log:
        policy = Policy.parse(without_witnesses((founded.home.folder / "policy").read_text()))
        assert verify(export(log), policy).members == founded.roster().names


def test_whoever_votes_often_is_shown_everything_again(founded: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, answer = list[tuple[int, ...]](), founded.service.motions

    def listening(request: bytes, now: Any) -> bytes:
        value = json.loads(given := answer(request, now))
        if value["trail"]:
            shown.append(tuple(entry.index for entry in Trail.unpack(value["trail"].encode()).members))
        return given

    monkeypatch.setattr(founded.service, "motions", listening)
    founded.admit("eve", "dan", "bob", "cy")
    founded.vote("dan", founded.put(0))
    founded.vote("eve", founded.open_())
    assert shown == [(0, 1, 2, 3, 4, 5)] * 3 + [(6,), (0, 1, 2, 3, 4, 5, 6)]


def test_a_node_that_answers_a_study_meanwhile_cannot_vote(
    founded: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its witness has seen more than the coordinator just showed: it is asked once more, and shown that too."""
    row, answer, late = founded.put(0), founded.service.motions, [True]

    def slow(request: bytes, now: Any) -> bytes:
        given = answer(request, now)
        if json.loads(given)["trail"] and late.pop():
            with founded.home.log() as log:
                log.append([Entry("study.closed", {"study": "0" * 64})])
                founded.witness("ada").cosign(log.head.note, {})
            late.append(False)
        return given

    monkeypatch.setattr(founded.service, "motions", slow)
    assert founded.vote("ada", row) == "voting"
    assert founded.cosigned() == {7: ("ada",)}


def test_a_vote_is_of_a_checkpoint_that_nobody_cosigned(founded: Federation) -> None:
    """The voter's own cosignature of just that checkpoint comes with it, or the vote is not looked at."""
    row, other = founded.put(0), founded.open_()
    founded.vote("bob", row)
    with founded.home.log() as log:
        log.append([Entry("study.closed", {"study": "0" * 64})])
        note, root, (_, bobs) = (
            log.head.note,
            log.head.root,
            log.last_cosigned(membership.epoch(log).members["bob"].verifier) or (0, ""),
        )
        early, younger = log.note_at(3), log.root_at(3).hex()
    key = SigningKey.load(founded.node("ada") / "witness.pem")
    log_key = Verifier.of(founded.home.origin, founded.home.key.public, LOG)
    line = cosign(open_note(note, log_key), "ada", key, 1)
    old = cosign(open_note(early, log_key), "ada", key, 1)
    stranger = SigningKey.generate()
    foreign = sign_checkpoint(Checkpoint(founded.home.origin, 7, bytes(32)), stranger)
    words = [
        Word(), Word(note, ""), Word(note, bobs), Word(note, cosign(open_note(note, log_key), "bob", key, 1)),
        Word(foreign, line), Word("", line), Word(early, old), Word(early, line),
    ]  # fmt: skip
    given: dict[str, Any] = {
        "federation": "test", "member": "ada", "epoch": other.epoch, "motion": other.id,
    }  # fmt: skip
    envelope = make_vote(SigningKey.load(founded.node("ada") / "signing.pem"), **given, size=7, root=root)
    for word in ("", "x", "[]", "{}", *(word.pack().decode() for word in words)):
        with pytest.raises(IdentityError):
            enrolment.vote(founded.node("ada"), row.id, envelope, word, utc_now(), patience=QUICK)
    before = make_vote(SigningKey.load(founded.node("ada") / "signing.pem"), **given, size=3, root=younger)
    with pytest.raises(IdentityError, match="only a vote from 5 to 7 entries counts"):
        enrolment.vote(founded.node("ada"), row.id, before, Word(early, old).pack().decode(), utc_now(), patience=QUICK)
    assert set(founded.open_().votes) == {"bob"}
    word = Word(note, line).pack().decode()
    assert enrolment.vote(founded.node("ada"), row.id, envelope, word, utc_now(), patience=QUICK)["state"] == "voting"
    assert founded.cosigned() == {3: ("ada",), 6: ("bob",), 7: ("ada",)}


# what a node does not vote for


def test_a_witness_that_lost_its_state_votes(founded: Federation) -> None:
    """By itself it sees a missing file; what it forgot it learns from its own cosignatures, which it is shown."""
    row = founded.put(0)
    (founded.node("ada") / "witness.db").unlink()
    with pytest.raises(LedgerError, match="no witness state"):
        founded.vote("ada", row)
    node = founded.node("bob")
    (node / "witness.db").rename(node / "older.db")
    Witness.create(node / "witness.db", founded.home.origin)
    founded.vote("bob", row)
    founded.home.revoke("dan", "left", NOW)
    (node / "older.db").replace(node / "witness.db")
    (motion,) = (one for one in votes.motions(node, utc_now(), patience=QUICK) if one.id != row.id)
    with pytest.raises(LedgerError, match=r"does not know of it.*is retired: rotate its key"):
        votes.vote(node, motion, utc_now(), patience=QUICK)
    with pytest.raises(LedgerError, match=r"is retired, it vouches for no ledger now: nothing was voted"):
        votes.vote(node, motion, utc_now(), patience=QUICK)
    status, error = run("node", "vote", node, motion.id, "--yes")
    assert (status, error["code"]) == (15, "ledger")
    assert founded.home.registry.ballots.motion(motion.id).votes == {}


@pytest.mark.parametrize("more", [0, 1, 2], ids=["shorter", "as long", "longer"])
def test_a_history_that_does_not_go_on_gets_votes(
    founded: Federation, more: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A database from a backup, with other entries since or none: who saw more says so, and votes for nothing there."""
    backup = founded.copy("backup.db")
    row = founded.put(0)
    for name in ("ada", "bob", "cy"):
        founded.vote(name, row)
    founded.vote("ada", founded.put(1))
    seen = founded.witness("ada").seen
    assert seen.size == 7
    founded.restore(backup)
    with founded.home.log() as log:
        log.append([Entry("study.closed", {"study": f"{number}" * 64}) for number in range(more)])
    row = founded.put(0)
    said = {1: f"signed two histories.*has seen size 7 with root {seen.root}"}.get(
        more,
        f"Nothing was voted: .*does not go on from what this node's witness saw, 7 entries with the root {seen.root}",
    )
    with pytest.raises(LedgerError, match=said):
        founded.vote("ada", row)
    assert founded.open_().votes == {}
    assert founded.witness("ada").seen == seen
    assert "cosigned a checkpoint of this log's own key with 7 entries" in caplog.text
    if more == 1:
        with pytest.raises(LedgerError, match=r"is alarmed, .* It saw 7 entries .* signed two histories"):
            founded.vote("ada", row)
    assert founded.vote("dan", row) == "voting", "who saw nothing before cannot know"


def test_a_proof_that_proves_nothing_gets_votes(founded: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    founded.vote("ada", founded.put(0))
    for name in ("bob", "cy"):
        founded.vote(name, founded.open_())
    row, answer = founded.put(1), founded.service.motions

    def bent(request: bytes, now: Any) -> bytes:
        value = json.loads(answer(request, now))
        if value["trail"]:
            trail = Trail.unpack(value["trail"].encode())
            proofs = {size: (bytes(32),) * len(proof) for size, proof in trail.proofs.items()}
            value["trail"] = replace(trail, proofs=proofs).pack().decode()
        return canonical(value)

    monkeypatch.setattr(founded.service, "motions", bent)
    with pytest.raises(LedgerError, match=r"Nothing was voted: .* is not shown to go on from size 6"):
        founded.vote("ada", row)
    assert founded.witness("ada").suspicion is not None
    assert row.votes == founded.open_().votes == {}


def test_members_for_whom_nobody_voted_get_votes(founded: Federation) -> None:
    """A coordinator with a member of its own making on the ledger: whoever knew the federation before sees it."""
    founded.vote("ada", founded.put(0))
    founded.join("eve")
    eve = founded.home.registry.member("eve")
    assert eve is not None
    with founded.home.log() as log:
        log.append([Entry("member.admit", admission(Member("eve", eve.key, eve.witness_key), 4))])
    founded.home.revoke("dan", "left", NOW)
    status, error = run("node", "vote", founded.node("ada"), founded.open_().id, "--yes")
    assert (status, error["code"]) == (13, "guarantee")
    assert "has 0 of the 3 votes it needs" in error["message"]
    assert founded.open_().votes == {}
    assert founded.witness("ada").seen.size == 6


def test_a_coordinator_shows_nothing_of_the_ledger(founded: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it where the changes are more than an answer holds; then a roll call shows them."""
    monkeypatch.setattr(desk, "_ROOM", 2000)
    row = founded.put(0)
    assert len(votes.motions(founded.node("ada"), utc_now(), patience=QUICK)) == 1
    with pytest.raises(LedgerError, match=r"larger than one answer of the coordinator.*roll call first"):
        founded.vote("ada", row)
    assert founded.open_().votes == {}


def test_more_members_than_an_answer_holds(federation: Federation) -> None:
    """A hundred of the founding are shown in a twentieth of what an answer may hold."""
    keys = [(SigningKey.generate().public, SigningKey.generate().public) for _ in range(100)]
    members = [Member(f"m-{number:03}", key, witness) for number, (key, witness) in enumerate(keys)]
    with federation.home.log() as log:
        membership.admit(log, *members)
        log.append([Entry("study.proposed", {"study": "0" * 64})])
    told = federation.home.motions.tell("m-007", -1, Word().pack().decode(), NOW)
    assert len(Trail.unpack(told.trail.encode()).members) == 102
    assert len(canonical(told.trail)) < MAX_RESPONSE_BYTES // 20


FALSE: list[dict[str, Any]] = [
    {"body": {"faulty": 0}}, {"kind": "federation.policy"}, {"id": "0" * 64}, {"id": "x"}, {"votes": [1]},
    {"body": {"member": "dan", "reason": "left", "more": "hidden"}}, {"kind": "release"}, {"more": 1}, {"body": {}},
]  # fmt: skip


def test_an_owner_says_yes_to_something_else(founded: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown is what is signed; nothing is sent for what cannot be shown."""
    founded.home.revoke("dan", "left", NOW)
    answer, row = founded.service.motions, founded.open_()
    for change in FALSE:

        def bent(request: bytes, now: Any, change: dict[str, Any] = change) -> bytes:
            value = json.loads(answer(request, now))
            value["motions"][0] |= change
            return canonical(value)

        monkeypatch.setattr(founded.service, "motions", bent)
        with pytest.raises(IdentityError):
            votes.motions(founded.node("ada"), utc_now(), patience=QUICK)
    status, error = run("node", "vote", founded.node("ada"), row.id, "--yes")
    assert (status, error["code"]) == (14, "identity")
    assert founded.open_().votes == {}


def test_a_coordinator_asks_for_a_vote_in_another_epoch(founded: Federation) -> None:
    founded.home.revoke("dan", "left", NOW)
    (motion,) = votes.motions(founded.node("ada"), utc_now(), patience=QUICK)
    for wrong in (replace(motion, epoch=motion.epoch + 1), replace(motion, id="0" * 64)):
        with pytest.raises(IdentityError):
            votes.vote(founded.node("ada"), wrong, utc_now(), patience=QUICK)
    assert founded.open_().votes == {}


def test_nobody_said_yes(founded: Federation) -> None:
    founded.home.revoke("dan", "left", NOW)
    row = founded.open_()
    status, error = run("node", "vote", founded.node("ada"), row.id)
    assert (status, error["code"]) == (18, "refused")
    status, error = run("node", "vote", founded.node("ada"), "00000000", "--yes")
    assert (status, error["code"]) == (2, "misuse")
    assert row.id[:12] in error["message"]
    with pytest.raises(MisuseError):
        votes.chosen(votes.motions(founded.node("ada"), utc_now(), patience=QUICK), row.id[:7])
    assert founded.open_().votes == {}


def test_a_stranger_or_a_pending_member_hears_of_motions(founded: Federation) -> None:
    founded.join("eve")
    founded.home.revoke("dan", "left", NOW)
    with pytest.raises(IdentityError, match="'eve' is no member by the ledger"):
        votes.motions(founded.node("eve"), utc_now(), patience=QUICK)
    (motion,) = votes.motions(founded.node("ada"), utc_now(), patience=QUICK)
    with pytest.raises(IdentityError, match="'eve' is no member by the ledger"):
        votes.vote(founded.node("eve"), motion, utc_now(), patience=QUICK)


def test_a_vote_is_as_large_as_it_likes(founded: Federation) -> None:
    founded.home.revoke("dan", "left", NOW)
    row = founded.open_()
    for envelope in ("x" * 5000, "", "x", "é"):
        with pytest.raises(CausalDAOError):
            enrolment.vote(founded.node("ada"), row.id, envelope, Word().pack().decode(), utc_now(), patience=QUICK)
    assert founded.open_().votes == {}


# new keys


def keys(node: Path) -> tuple[str, str]:
    signing, witness = (SigningKey.load(node / name).public.id for name in ("signing.pem", "witness.pem"))
    return signing, witness


def test_a_member_loses_its_vote_with_its_old_keys(founded: Federation) -> None:
    """New keys are voted on, hold when they are voted for, and not before; the ledger verifies with both."""
    node = founded.node("ada")
    old = keys(node)
    status, data = run("node", "rotate", node, "--yes")
    assert (status, data["changed"]) == (0, False)
    row = founded.open_()
    assert (data["motion"], row.kind, row.body["member"]) == (row.id, "member.rotate", "ada")
    assert run("node", "rotate", node, "--yes")[1] == data, "asked again it is the same motion"
    assert keys(node) == old
    assert [founded.vote(name, row) for name in ("ada", "bob", "cy")] == ["voting", "voting", "passed"]
    assert said("node", "rotate", node, "--yes") == "the new keys are in place\n"
    new = founded.roster().members[0]
    assert (new.key.id, new.witness.id) == keys(node) != old
    assert not list(node.glob("*.next.pem"))
    assert [path.name for path in node.glob("witness-*.db")] == [f"witness-{old[1]}.db"]
    assert founded.witness("ada").seen.size == 0, "what the old key saw is the old key's"
    enrolment.renew(node, utc_now(), patience=QUICK)
    row = founded.put(0)
    assert [founded.vote(name, row) for name in ("ada", "bob", "ada", "dan")] == ["voting"] * 3 + ["passed"]
    assert founded.cosigned() == {6: ("ada", "bob", "cy"), 7: ("ada", "bob", "dan")}


def test_new_keys_are_taken_up_under_a_running_node(founded: Federation) -> None:
    node = founded.node("ada")
    old = keys(node)
    (node / "run").mkdir()
    lock = hold(node / "run" / "lock")
    assert lock is not None
    rotation.rotate(node, utc_now(), patience=QUICK)
    for name in ("bob", "cy", "dan"):
        founded.vote(name, founded.open_())
    with lock, pytest.raises(RefusedError, match="stop it"):
        rotation.rotate(node, utc_now(), patience=QUICK)
    assert keys(node) == old
    assert rotation.rotate(node, utc_now(), patience=QUICK) == ""
    assert keys(node) != old


@pytest.mark.parametrize("step", range(3))
def test_a_change_of_keys_is_cut_short(federation: Federation, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The power goes before each file is put in its place; the same command again goes on. In the founding, at once."""
    federation.join("ada", "bob")
    for name in ("ada", "bob"):
        federation.home.admit(name, NOW)
    node, moves, replace_ = federation.node("ada"), iter(range(9)), os.replace
    old = keys(node)

    def cut(source: Any, target: Any) -> None:
        if Path(target).parent == node and next(moves) == step:
            raise KeyboardInterrupt
        replace_(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", cut)
        with pytest.raises(KeyboardInterrupt):
            rotation.rotate(node, utc_now(), patience=QUICK)
    assert rotation.rotate(node, utc_now(), patience=QUICK) == ""
    new = federation.roster().members[0]
    assert (new.key.id, new.witness.id) == keys(node)
    assert not set(keys(node)) & set(old)
    assert federation.witness("ada").seen.size == 0
    assert (node / f"witness-{old[1]}.db").exists()
    enrolment.renew(node, utc_now(), patience=QUICK)


def test_keys_that_a_member_does_not_hold_are_put_to_the_vote(founded: Federation) -> None:
    node, bob = founded.node("ada"), SigningKey.load(founded.node("bob") / "signing.pem")
    with pytest.raises(IdentityError, match="in use by 'bob'"):
        enrolment.rotate(node, bob, SigningKey.generate().public, utc_now(), patience=QUICK)
    same = SigningKey.generate()
    with pytest.raises(IdentityError, match="to sign and to witness"):
        enrolment.rotate(node, same, same.public, utc_now(), patience=QUICK)
    assert not [row for row in founded.home.motions.settle(NOW)[1] if row.state == "voting"]


def test_keys_that_were_lost_are_voted_in(founded: Federation) -> None:
    """Asked for others, the first ones are not voted on any more: nobody might hold them."""
    node = founded.node("ada")
    first = rotation.rotate(node, utc_now(), patience=QUICK)
    for path in node.glob("*.next.pem"):
        path.unlink()
    second = rotation.rotate(node, utc_now(), patience=QUICK)
    assert (founded.open_().id, founded.home.registry.ballots.motion(first).state) == (second, "void")
