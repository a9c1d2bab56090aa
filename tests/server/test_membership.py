"""Who belongs: found once, admitted once, revoked for good, by vote once there are studies; two at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from causaldao import governance
from causaldao.errors import GuaranteeError, IdentityError, LedgerError
from causaldao.ledger import Entry, Log
from causaldao.ledger.bundle import export, write_policy
from causaldao.ledger.verify import Policy, verify
from causaldao.members import Member
from causaldao.server import membership
from causaldao.signing import SigningKey, sha256
from tests.server import votes

KEY = SigningKey.from_seed(b"L" * 32)
STUDY = sha256(b"a study")


def key(name: str, fill: bytes = b".") -> SigningKey:
    return SigningKey.from_seed(name.encode().ljust(32, fill))


def member(name: str, signs: str = "", epoch: int = 0) -> Member:
    return Member(name, key(signs or name).public, key(name, b"w").public, epoch)


ADA, BOB, CY = (member(name, epoch=epoch) for epoch, name in enumerate(("ada", "bob", "cy")))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def log(url: str) -> Iterator[Log]:
    with Log.create(url, "north", KEY) as log:
        membership.found(log, "north", 1)
        yield log


def keys(*names: str) -> dict[str, SigningKey]:
    return {name: key(name) for name in names}


def admit(log: Log, new: Member, *voters: str) -> None:
    """After the founding: by vote."""
    body = governance.admission(new, membership.epoch(log).number)
    membership.admit(log, new, votes=votes.votes(log, "member.admit", body, keys(*voters)))


def policy(log: Log) -> Policy:
    return Policy.parse(write_policy("north", KEY, membership.keys(log)))


def propose(log: Log, study: str = STUDY) -> int:
    (index,) = log.append([Entry("study.proposed", {"study": study}, key=f"proposed {study}")])
    return index


def test_a_federation_is_founded_once(log: Log) -> None:
    membership.found(log, "north", 1)
    assert log.head.size == 1
    for federation, faulty in (("south", 1), ("north", 2)):
        with pytest.raises(LedgerError, match="'genesis' stands at entry 0 with another content"):
            membership.found(log, federation, faulty)
    membership.admit(log, ADA, BOB)
    assert (membership.roster(log).federation, membership.roster(log).faulty) == ("north", 1)


def test_a_federation_that_was_not_founded(url: str) -> None:
    with Log.create(url, "north", KEY) as log:
        with pytest.raises(LedgerError, match="found the federation"):
            membership.roster(log)
        with pytest.raises(LedgerError, match="found the federation"):
            membership.admit(log, ADA)


def test_a_member_is_admitted_once(log: Log) -> None:
    membership.admit(log, ADA, BOB)
    before = log.head
    membership.admit(log, BOB)
    membership.admit(log, BOB, ADA)
    membership.admit(log)
    assert log.head == before
    membership.admit(log, ADA, CY)
    assert membership.roster(log).members == (ADA, BOB, CY)
    assert membership.keys(log) == {m.name: (m.key,) for m in (ADA, BOB, CY)}
    assert membership.witnesses(log) == {m.name: m.witness for m in (ADA, BOB, CY)}


@pytest.mark.parametrize(
    "wrong", [[member("ada", "other")], [member("dan", "ada")], [member("dan"), member("eve", "dan")]]
)
def test_a_changed_key_or_a_second_name_is_refused_with_all_that_came_with_it(log: Log, wrong: list[Member]) -> None:
    membership.admit(log, ADA, BOB)
    with pytest.raises(IdentityError, match="One institution has one name and one key"):
        membership.admit(log, CY, *wrong)
    assert membership.roster(log).names == ("ada", "bob")


def test_a_member_says_in_which_epoch_it_was_admitted(log: Log) -> None:
    """The ledger does: by the changes before."""
    membership.admit(log, member("ada", epoch=7))
    before = log.head
    membership.admit(log, member("ada", epoch=1))
    assert log.head == before
    membership.admit(log, member("bob", epoch=7), member("cy"))
    assert [m.epoch for m in membership.roster(log).members] == [0, 1, 2]


def test_who_was_revoked_never_comes_back(log: Log) -> None:
    membership.admit(log, ADA, BOB, CY)
    membership.revoke(log, "bob", "key lost")
    before = log.head
    membership.revoke(log, "bob", "another reason")
    assert log.head == before
    assert log.entries()[-1].body == {"member": "bob", "reason": "key lost"}
    assert membership.revoked(log) == {"bob"}
    assert membership.roster(log).names == ("ada", "cy")
    with pytest.raises(IdentityError, match="'bob' was revoked and cannot be admitted again"):
        membership.admit(log, BOB)
    with pytest.raises(IdentityError, match="in use by 'bob'"):
        membership.admit(log, member("robert", "bob"))
    assert membership.keys(log)["bob"] == (BOB.key,)
    assert set(membership.witnesses(log)) == {"ada", "cy"}


def test_a_stranger_is_revoked(log: Log) -> None:
    with pytest.raises(IdentityError, match="'bob' is not a member"):
        membership.revoke(log, "bob", "who?")


def test_a_studys_roster_is_the_membership_at_its_proposal(log: Log) -> None:
    membership.admit(log, ADA, BOB)
    index = propose(log)
    admit(log, CY, "ada", "bob")
    votes.revoke(log, "bob", "left", keys("ada", "bob", "cy"))
    later = propose(log, "0" * 64)
    assert membership.proposed_at(log, STUDY) == index == 3
    assert membership.proposed_at(log, "1" * 64) is None
    assert membership.roster(log, index).names == ("ada", "bob")
    assert membership.revoked(log, index) == frozenset()
    assert membership.roster(log, later).names == membership.roster(log).names == ("ada", "cy")
    assert membership.revoked(log, 5) == frozenset()
    assert membership.revoked(log, 6) == {"bob"}


def test_fewer_members_than_may_be_faulty(log: Log) -> None:
    membership.admit(log, ADA)
    with pytest.raises(GuaranteeError, match="faulty = 1"):
        membership.roster(log)


def test_what_is_recorded_is_what_the_verifier_and_the_policy_take(log: Log) -> None:
    membership.admit(log, ADA, BOB)
    membership.revoke(log, "ada", "left")
    assert verify(export(log), policy(log)).members == ("bob",)


# Several who change it


def test_changes_of_another_process_are_seen(log: Log, url: str) -> None:
    with Log.open(url, KEY) as other:
        membership.admit(other, ADA, BOB)
        membership.admit(log, BOB, CY)
        membership.revoke(other, "cy", "left")
        with pytest.raises(IdentityError, match="'cy' was revoked"):
            membership.admit(log, CY)
    assert membership.roster(log).names == ("ada", "bob")


def test_a_running_study_and_its_operator_take_turns(log: Log, url: str) -> None:
    membership.admit(log, ADA, BOB)
    with Log.open(url, KEY) as study:
        propose(study)
        admit(log, CY, "ada", "bob")
        study.append([Entry("study.roll-call", {"study": STUDY})], {f"study {STUDY}": 1})
        votes.revoke(log, "ada", "left", keys("ada", "bob", "cy"))
        study.append([Entry("study.evidence", {"study": STUDY})])
        assert membership.revoked(study) == {"ada"}


def _racing(monkeypatch: pytest.MonkeyPatch, race: Any, times: int) -> None:
    """Let somebody else write just before each of the next appends."""
    append, races = Log.append, iter(range(times))

    def raced(log: Log, *arguments: Any, **options: Any) -> list[int]:
        number = next(races, None)
        if number is not None:
            with monkeypatch.context() as patch:
                patch.setattr(Log, "append", append)
                race(number)
        return append(log, *arguments, **options)

    monkeypatch.setattr(Log, "append", raced)


def test_one_key_is_admitted_under_two_names_at_once(log: Log, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Log.open(url, KEY) as other:
        _racing(monkeypatch, lambda number: membership.admit(other, member("dan", "ada")), 1)
        with pytest.raises(IdentityError, match="in use by 'dan'"):
            membership.admit(log, ADA)


def test_a_change_that_came_in_between_is_decided_upon_again(
    log: Log, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Log.open(url, KEY) as other:
        _racing(monkeypatch, lambda number: membership.admit(other, member(f"m{number}")), 3)
        membership.admit(log, ADA)
    assert membership.roster(log).names == ("ada", "m0", "m1", "m2")


def test_a_change_that_never_gets_its_turn_is_said_to_be_one(
    log: Log, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Log.open(url, KEY) as other:
        _racing(monkeypatch, lambda number: membership.admit(other, member(f"m{number}")), 100)
        with pytest.raises(LedgerError, match="another writer came first, with the members"):
            membership.admit(log, ADA)
    assert len(membership.roster(log).members) == membership.ATTEMPTS


def test_a_question_about_members_reads_what_studies_did(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that there was one: it ended the founding."""
    membership.admit(log, ADA, BOB)
    propose(log)
    log.append([Entry("study.evidence", {"study": STUDY}), Entry("study.closed", {"study": STUDY})])
    read: list[str] = []
    entries = Log.entries

    def noted(log: Log, *arguments: Any, **options: Any) -> Any:
        found = entries(log, *arguments, **options)
        read.extend(entry.kind for entry in found)
        return found

    monkeypatch.setattr(Log, "entries", noted)
    membership.roster(log)
    admit(log, CY, "ada", "bob")
    assert set(read) == {"genesis", "member.admit", "study.proposed"}


# After the founding


def test_an_operator_changes_the_members_alone(log: Log) -> None:
    membership.admit(log, ADA, BOB)
    propose(log)
    before = log.head
    changes: list[Any] = [
        lambda: membership.admit(log, CY),
        lambda: membership.revoke(log, "ada", "in the way"),
        lambda: membership.set_faulty(log, 0),
        lambda: membership.rotate(log, member("ada", "ada-2")),
        lambda: membership.decide(log, "federation.policy", {"name": "p", "sha256": "0" * 64}),
    ]
    for change in changes:
        with pytest.raises(GuaranteeError, match=r"has 0 of the 2 votes it needs from the 2 members"):
            change()
    assert log.refresh() == before


def test_an_operators_own_members_vote(log: Log) -> None:
    membership.admit(log, ADA, BOB)
    propose(log)
    new = member("sybil", epoch=2)
    body = governance.admission(new, 2)
    for voters in ({"ada": key("ada"), "sybil": key("sybil")}, {"ada": key("ada"), "bob": key("sybil")}):
        with pytest.raises(IdentityError):
            membership.admit(log, new, votes=votes.votes(log, "member.admit", body, voters))
    assert membership.roster(log).names == ("ada", "bob")


def test_what_is_voted_is_not_what_the_verifier_takes(log: Log) -> None:
    membership.admit(log, ADA, BOB, CY)
    propose(log)
    two = {"ada": key("ada"), "bob": key("bob")}
    admit(log, member("dan"), "ada", "bob", "cy")
    rotated = member("ada", "ada-2")
    body = governance.admission(rotated, 4)
    membership.rotate(log, rotated, votes.votes(log, "member.rotate", body, keys("ada", "bob", "dan")))
    two["ada"] = key("ada-2")
    faulty = {"faulty": 0}
    membership.set_faulty(log, 0, votes.votes(log, "federation.faulty", faulty, {**two, "cy": key("cy")}))
    named = {"name": "retention", "sha256": "0" * 64}
    membership.decide(
        log, "federation.policy", named, votes.votes(log, "federation.policy", named, {**two, "dan": key("dan")})
    )
    votes.revoke(log, "dan", "left", {**two, "cy": key("cy")})
    now = membership.epoch(log)
    assert (now.number, now.faulty, now.quorum) == (7, 0, 2)
    assert membership.keys(log)["ada"] == (ADA.key, rotated.key)
    report = verify(export(log), policy(log))
    assert report.members == ("ada", "bob", "cy") == membership.roster(log).names


def test_a_change_that_was_voted_is_repeated(log: Log) -> None:
    membership.admit(log, ADA, BOB)
    propose(log)
    admit(log, CY, "ada", "bob")
    votes.revoke(log, "bob", "left", keys("ada", "bob", "cy"))
    before = log.head
    membership.admit(log, CY)
    membership.revoke(log, "bob", "again")
    membership.set_faulty(log, 1)
    membership.rotate(log, CY)
    assert log.refresh() == before


def test_the_founding_ends_while_an_operator_decides(log: Log, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study is another affair than the members, but from its proposal on they must be asked."""
    membership.admit(log, ADA, BOB)
    with Log.open(url, KEY) as other:
        _racing(monkeypatch, lambda number: propose(other), 1)
        with pytest.raises(GuaranteeError, match="0 of the 2 votes"):
            membership.admit(log, CY)
    assert membership.roster(log).names == ("ada", "bob")
    assert verify(export(log), policy(log)).members == ("ada", "bob")


def test_two_motions_that_passed_are_recorded_at_once(log: Log, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The votes for the second are of the epoch that the first ended."""
    membership.admit(log, ADA, BOB)
    propose(log)
    body, four = governance.admission(CY, 2), keys("ada", "bob")
    given = votes.votes(log, "member.admit", body, four)
    with Log.open(url, KEY) as other:
        _racing(monkeypatch, lambda number: admit(other, member("dan"), "ada", "bob"), 1)
        with pytest.raises(IdentityError, match="epoch"):
            membership.admit(log, CY, votes=given)
    assert membership.roster(log).names == ("ada", "bob", "dan")
    found = governance.motion("member.admit", governance.admission(member("dan"), 2))
    assert membership.decided(log, found, 0) == 4
    assert membership.decided(log, found, 5) is None
