"""Motions: an operator who decides alone after the founding, votes that are lost or count twice, half-made changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from causaldao import governance
from causaldao.errors import GuaranteeError, IdentityError, LedgerError, MisuseError, RefusedError
from causaldao.ledger.bundle import export
from causaldao.ledger.entry import Entry
from causaldao.ledger.note import LOG, Checkpoint, Verifier, cosign, open_note, sign_checkpoint
from causaldao.ledger.verify import Policy, verify
from causaldao.members import Member
from causaldao.server import membership
from causaldao.server.ballot_box import BallotBox, MotionRow
from causaldao.server.conduct import _Revocations
from causaldao.server.home import Home
from causaldao.server.registry import Registry
from causaldao.trail import Trail, Word
from tests.server import homes, votes
from tests.server.homes import NOW
from tests.server.power import power_cut

NAMES = ("ada", "bob", "cy", "dan")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A federation of four that was founded: three votes decide."""
    home = homes.create(tmp_path / "home", faulty=1)
    homes.admit(home, *NAMES)
    propose(home)
    return home


def propose(home: Home) -> None:
    with home.log() as log:
        log.append([Entry("study.proposed", {"study": "0" * 64})])


def vote(home: Home, row: MotionRow, *names: str) -> MotionRow:
    for name in names:
        with home.log() as log:
            (given,) = votes.votes(log, row.kind, row.body, {name: homes.key(name)})
        row = home.motions.vote(name, row.id, given["envelope"], NOW)
    return row


def opened(home: Home) -> list[MotionRow]:
    return [row for row in home.motions.settle(NOW)[1] if row.state == "voting"]


def only(home: Home) -> MotionRow:
    (row,) = opened(home)
    return row


def now(home: Home) -> governance.Epoch:
    with home.log() as log:
        return membership.epoch(log)


def states(home: Home) -> dict[str, str]:
    return {member.name: member.state for member in home.registry.members()}


def check_whole(home: Home) -> None:
    """Ledger and policy agree, as anybody checks them; who would have cosigned is not looked at here."""
    with home.log() as log:
        text = (home.folder / "policy").read_text()
        policy = Policy.parse(
            "\n".join(line for line in text.splitlines() if not line.startswith(("quorum", "group")))
            + "\nquorum none\n"
        )
        assert verify(export(log), policy).members == tuple(sorted(membership.epoch(log).members))


# admitting


def test_the_operator_admits_whom_it_likes(home: Home) -> None:
    homes.join(home, "eve")
    assert home.admit("eve", NOW).state == "pending"
    row = only(home)
    assert (row.kind, row.body["member"], row.epoch, row.votes) == ("member.admit", "eve", 4, {})
    for count, name in enumerate(("dan", "ada"), start=1):
        assert vote(home, row, name).state == "voting"
        assert (len(only(home).votes), states(home)["eve"]) == (count, "pending")
        assert "eve" not in now(home).members
    assert vote(home, row, "cy").state == "passed"
    assert states(home)["eve"] == "admitted"
    assert now(home).members["eve"] == Member("eve", homes.key("eve").public, homes.witness("eve").public, 4)
    assert (now(home).number, now(home).quorum) == (5, 4)
    assert set(Policy.parse((home.folder / "policy").read_text()).witnesses) == {*NAMES, "eve"}
    check_whole(home)


def test_a_motion_that_is_put_again_loses_its_votes(home: Home) -> None:
    homes.join(home, "eve")
    home.admit("eve", NOW)
    row = vote(home, only(home), "ada", "bob")
    home.admit("eve", NOW)
    assert only(home) == row
    vote(home, row, "cy")
    assert home.admit("eve", NOW).state == "admitted"
    assert opened(home) == []
    with home.log() as log:
        assert len(log.entries(kinds=("member.admit",))) == 5


def test_one_member_votes_for_all(home: Home) -> None:
    homes.join(home, "eve")
    home.admit("eve", NOW)
    row = vote(home, only(home), "ada", "ada", "ada")
    assert list(row.votes) == ["ada"]
    with home.log() as log:
        (given,) = votes.votes(log, row.kind, row.body, {"ada": homes.key("ada")})
        (own,) = votes.votes(log, row.kind, row.body, {"eve": homes.key("eve")})
    for name in ("bob", "cy"):
        with pytest.raises(IdentityError):
            home.motions.vote(name, row.id, given["envelope"], NOW)
    with pytest.raises(IdentityError, match="'eve' does not belong to epoch"):
        home.motions.vote("eve", row.id, own["envelope"], NOW)
    assert list(only(home).votes) == ["ada"]


def test_a_vote_on_another_history_is_kept(home: Home) -> None:
    homes.join(home, "eve")
    home.admit("eve", NOW)
    row = only(home)
    said: dict[str, Any] = {
        "federation": "test",
        "member": "ada",
        "epoch": row.epoch,
        "motion": row.id,
        "size": now(home).last_change + 2,
    }
    given = governance.make_vote(homes.key("ada"), **said, root="0" * 64)
    with pytest.raises(IdentityError, match="two histories"):
        home.motions.vote("ada", row.id, given, NOW)
    with pytest.raises(IdentityError, match="no motion"):
        home.motions.vote("ada", "0" * 64, given, NOW)
    assert only(home).votes == {}


def test_a_motion_outlives_its_epoch(home: Home) -> None:
    homes.join(home, "eve", "fay")
    home.admit("eve", NOW)
    home.admit("fay", NOW)
    eve, fay = opened(home)
    vote(home, fay, "ada", "bob")
    vote(home, eve, "ada", "bob", "cy")
    assert opened(home) == []
    with pytest.raises(RefusedError, match="is void: it was withdrawn, or the members changed"):
        vote(home, fay, "cy")
    with pytest.raises(RefusedError, match="is passed: enough others"):
        vote(home, eve, "dan")
    assert states(home)["fay"] == "pending"
    home.admit("fay", NOW)
    again = only(home)
    assert (again.id != fay.id, again.epoch, again.votes) == (True, 5, {})
    vote(home, again, "ada", "bob", "cy", "eve")
    assert states(home)["fay"] == "admitted"
    check_whole(home)


def test_a_change_that_can_never_be_is_put_to_the_vote(home: Home) -> None:
    with pytest.raises(GuaranteeError, match="below the 4 members"):
        home.set_faulty(4, NOW)
    with pytest.raises(IdentityError, match="is not a member"):
        home.motions.put("member.revoke", {"member": "zoe", "reason": "?"}, NOW)
    with pytest.raises(MisuseError, match="shorter reason"):
        home.motions.put("member.revoke", {"member": "ada", "reason": "x" * 10_000}, NOW)
    assert home.motions.settle(NOW)[1] == ()


def test_a_vote_is_held_while_the_operator_still_decides(tmp_path: Path) -> None:
    home = homes.create(tmp_path / "home")
    homes.admit(home, "ada", "bob")
    assert home.set_faulty(1, NOW) is None
    with pytest.raises(MisuseError, match="No study was proposed yet"):
        home.motions.put("federation.faulty", {"faulty": 0}, NOW)
    assert (now(home).faulty, now(home).founding) == (1, True)


# what a member is shown of the ledger, and what it says of it


def word(home: Home, name: str, size: int | None = None, key: str = "") -> str:
    """A member's cosignature of the ledger's first entries, as it sends it."""
    with home.log() as log:
        note = log.note_at(log.head.size if size is None else size)
    checkpoint = open_note(note, Verifier.of(home.origin, home.key.public, LOG))
    return Word(note, cosign(checkpoint, name, homes.witness(key or name), 1)).pack().decode()


def ballot(home: Home, name: str, row: MotionRow) -> str:
    with home.log() as log:
        (given,) = votes.votes(log, row.kind, row.body, {name: homes.key(name)})
    return given["envelope"]


def test_a_member_is_shown_what_it_knows(home: Home) -> None:
    """Nothing to who only looks; what is new to who says what it knows, with a proof from what it saw."""
    homes.join(home, "eve")
    home.admit("eve", NOW)
    told = home.motions.tell("ada", None, "", NOW)
    assert (told.trail, [row.body["member"] for row in told.rows]) == ("", ["eve"])
    nothing = Word().pack().decode()
    first = Trail.unpack(home.motions.tell("ada", -1, nothing, NOW).trail.encode())
    assert [entry.index for entry in first.members] == [0, 1, 2, 3, 4, 5]
    assert (first.last, first.proofs, first.receipts) == ({}, {}, ())
    saw = word(home, "ada")
    vote(home, only(home), "ada", "bob", "cy")
    later = Trail.unpack(home.motions.tell("ada", 5, saw, NOW).trail.encode())
    assert ([entry.index for entry in later.members], set(later.proofs)) == ([6], {6})
    assert later.last["ada"].size == 6
    with pytest.raises(IdentityError, match="no member by the ledger"):
        home.motions.tell("zoe", None, "", NOW)


def test_in_the_founding_the_ledger_is_shown_for_votes(tmp_path: Path) -> None:
    home = homes.create(tmp_path / "home")
    homes.admit(home, "ada", "bob")
    assert home.motions.tell("ada", -1, Word().pack().decode(), NOW).trail == ""


@pytest.mark.parametrize("false", ["", "x", "[]", "{}", "another's", "another key's"])
def test_a_word_is_taken_for_somebody_elses(home: Home, false: str) -> None:
    row = home.set_faulty(0, NOW)
    assert row is not None
    given = {"another's": word(home, "bob"), "another key's": word(home, "ada", key="bob")}.get(false, false)
    with pytest.raises(IdentityError):
        home.motions.tell("ada", -1, given, NOW)
    with pytest.raises(IdentityError):
        home.motions.hear("ada", given, ballot(home, "ada", row))
    with home.log() as log:
        assert log.checkpoints() == {}


def test_a_cosignature_is_lost_with_a_vote_that_does_not_count(home: Home) -> None:
    """It is kept before the vote is looked at: what a witness saw is so whatever its owner votes."""
    row = home.set_faulty(0, NOW)
    assert row is not None
    for envelope in (ballot(home, "ada", row), ballot(home, "ada", row)):
        home.motions.hear("ada", word(home, "ada"), envelope)
    with pytest.raises(IdentityError, match="names another checkpoint than came with it"):
        home.motions.hear("bob", word(home, "bob", 3), ballot(home, "bob", row))
    with pytest.raises(IdentityError, match="no member by the ledger"):
        home.motions.hear("zoe", word(home, "zoe"), ballot(home, "ada", row))
    with home.log() as log:
        assert log.checkpoints() == {6: ("ada",)}
    assert only(home).votes == {}


def test_a_member_that_saw_another_history_is_not_believed(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """What this log's own key signed and this ledger does not have: the operator is told; the ledger takes no vote."""
    row = home.set_faulty(0, NOW)
    assert row is not None
    note = sign_checkpoint(Checkpoint(home.origin, 9, b"?" * 32), home.key)
    checkpoint = open_note(note, Verifier.of(home.origin, home.key.public, LOG))
    given = Word(note, cosign(checkpoint, "ada", homes.witness("ada"), 1)).pack().decode()
    shown = Trail.unpack(home.motions.tell("ada", -1, given, NOW).trail.encode())
    assert shown.last == {}, "its own witness sees that this does not go on"
    assert "cosigned a checkpoint of this log's own key with 9 entries" in caplog.text
    said: dict[str, Any] = {"federation": "test", "member": "ada", "epoch": 4, "motion": row.id}
    envelope = governance.make_vote(homes.key("ada"), **said, size=9, root=(b"?" * 32).hex())
    with pytest.raises(LedgerError, match="rolled back or replaced"):
        home.motions.hear("ada", given, envelope)
    assert only(home).votes == {}


# revoking


def test_a_member_goes_on_until_the_votes_are_in(home: Home) -> None:
    """It is barred at once, and counts as revoked in a study that runs; its key is void when the members say so."""
    with home.log() as log:
        revoked = _Revocations(log, home.registry)
        assert revoked() == frozenset()
        home.revoke("dan", "a test", NOW)
        revoked._due = 0.0
        assert revoked() == {"dan"}
    assert states(home)["dan"] == "revoked"
    row = only(home)
    assert "dan" in now(home).members
    home.revoke("dan", "another reason", NOW)
    assert only(home) == row
    vote(home, row, "ada", "bob", "dan")  # its vote counts as any other's, until then
    assert (set(now(home).members), now(home).revoked) == ({"ada", "bob", "cy"}, frozenset({"dan"}))
    with home.log() as log:
        (entry,) = log.entries(kinds=("member.revoke",))
        assert (entry.body["reason"], len(entry.body["votes"])) == ("a test", 3)
    home.revoke("dan", "again", NOW)
    assert opened(home) == []
    check_whole(home)


def test_somebody_turned_away_is_admitted_by_vote(home: Home) -> None:
    homes.join(home, "eve")
    home.admit("eve", NOW)
    row = vote(home, only(home), "ada", "bob")
    home.revoke("eve", "not whom it says", NOW)
    assert opened(home) == []
    with pytest.raises(RefusedError, match="void"):
        vote(home, row, "cy")
    assert "eve" not in now(home).members


def test_whom_the_operator_bars_is_let_in_by_a_late_vote(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last vote and the operator's word come at once: the door stays shut, and a motion can still be put."""
    homes.join(home, "eve")
    home.admit("eve", NOW)
    row = vote(home, only(home), "ada", "bob")
    home.registry.revoke("eve", NOW)
    assert vote(home, row, "cy").state == "passed"
    assert states(home)["eve"] == "revoked"
    home.revoke("eve", "not whom it says", NOW)
    assert (only(home).kind, only(home).body["member"]) == ("member.revoke", "eve")


# how many may lie


def test_the_operator_lowers_how_many_votes_it_needs(home: Home) -> None:
    put = home.set_faulty(0, NOW)
    assert put is not None
    assert home.set_faulty(0, NOW) == put
    vote(home, put, "ada", "bob")
    assert (now(home).faulty, now(home).quorum) == (1, 3)
    vote(home, put, "cy")
    assert (now(home).faulty, now(home).quorum) == (0, 3)
    assert home.set_faulty(0, NOW) is None
    back = home.set_faulty(1, NOW)
    assert back is not None
    vote(home, back, "ada", "bob", "cy")
    again = home.set_faulty(0, NOW)
    assert again is not None
    assert (again.id, again.votes, again.state) == (put.id, {}, "voting"), "the same motion, in another epoch"
    check_whole(home)


def test_the_same_policy_is_taken_twice_by_one_vote(home: Home) -> None:
    named = {"name": "retention", "sha256": "a" * 64}
    first = home.motions.put("federation.policy", named, NOW)
    assert vote(home, first, "ada", "bob", "cy").state == "passed"
    again = home.motions.put("federation.policy", named, NOW)
    assert (again.id, again.state, again.votes, again.epoch) == (first.id, "voting", {}, first.epoch)
    with pytest.raises(IdentityError, match="only a vote from"):
        home.motions.vote("ada", again.id, first_vote(home, first), NOW)
    assert vote(home, again, "ada", "bob", "cy").state == "passed"
    check_whole(home)


def first_vote(home: Home, row: MotionRow) -> str:
    """A vote as it was given before the motion was recorded first."""
    with home.log() as log:
        size = row.since
        root = membership.root_at(log, size)
    key = homes.key("ada")
    return governance.make_vote(
        key, federation="test", member="ada", epoch=row.epoch, motion=row.id, size=size, root=root
    )


# changing keys


def test_new_keys_stand_on_the_ledger_only(home: Home) -> None:
    changed = Member("ada", homes.key("ada-2").public, homes.witness("ada-2").public)
    row = home.motions.put("member.rotate", governance.admission(changed, 4), NOW)
    vote(home, row, "ada", "bob", "cy")
    found = home.registry.member("ada")
    assert found is not None
    assert (found.key, found.witness_key) == (changed.key, changed.witness)
    with home.log() as log:
        assert membership.keys(log)["ada"] == (homes.key("ada").public, changed.key)
        assert membership.witnesses(log)["ada"] == changed.witness
    check_whole(home)


# cut short


@pytest.mark.parametrize(
    ("where", "step"),
    [
        (BallotBox, "add_vote"),
        (membership, "decide"),
        (Registry, "admit"),
        (Home, "write_policy"),
        (BallotBox, "close"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_last_vote_is_lost_half_way(
    home: Home, monkeypatch: pytest.MonkeyPatch, where: Any, step: str, when: str
) -> None:
    """The power goes before or after each step; the same vote again, or the operator's look, goes on."""
    homes.join(home, "eve")
    home.admit("eve", NOW)
    row = vote(home, only(home), "ada", "bob")
    with power_cut(monkeypatch, where, step, when):
        vote(home, row, "cy")
    opened(home)  # what any look does
    if home.registry.ballots.motion(row.id).state == "voting":
        vote(home, row, "cy")
    assert (states(home)["eve"], opened(home)) == ("admitted", [])
    with home.log() as log:
        assert len(log.entries(kinds=("member.admit",))) == 5
    check_whole(home)


def test_two_processes_record_the_last_vote(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    homes.join(home, "eve")
    home.admit("eve", NOW)
    row = vote(home, only(home), "ada", "bob")
    decide, raced = membership.decide, list[bool]()

    def race(*arguments: Any, **named: Any) -> None:
        if not raced:
            raced.append(True)
            home.motions.settle(NOW)
        decide(*arguments, **named)

    monkeypatch.setattr(membership, "decide", race)
    assert vote(home, row, "cy").state == "passed"
    with home.log() as log:
        assert len(log.entries(kinds=("member.admit",))) == 5
    check_whole(home)


def test_a_study_that_is_proposed_meanwhile_lets_the_operator_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = homes.create(tmp_path / "home")
    homes.admit(home, "ada", "bob")
    homes.join(home, "cy")
    admit = membership.admit

    def late(*arguments: Any, **named: Any) -> None:
        propose(home)
        admit(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(membership, "admit", late)
        with pytest.raises(GuaranteeError, match="0 of the 2 votes"):
            home.admit("cy", NOW)
    assert home.admit("cy", NOW).state == "pending"
    assert only(home).body["member"] == "cy"
