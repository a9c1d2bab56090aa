"""What may not be recorded, even by whoever holds the log's key and signs it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from causaldao.errors import LedgerError
from causaldao.ledger.verify import Policy, Report, verify
from causaldao.members import quorum
from causaldao.signing import canonical, sha256
from tests.ledger import forge
from tests.ledger.forge import MEMBERS, NEW_KEY, STUDY, Forge, policy_text, signing, vkey, witness, word

EVERYBODY = (*MEMBERS, "dan", "eve", "fay", "sybil")
POLICY = Policy.parse(policy_text(EVERYBODY) + f"# causaldao member {vkey('ada', NEW_KEY)}\n")
SOUTH = sha256(b"another study")


def verified(ledger: Forge, policy: Policy = POLICY) -> Report:
    return verify(ledger.bundle(), policy)


def refusal(ledger: Forge, policy: Policy = POLICY, entry: int | None = None) -> str:
    """The verifier's words about a ledger that it must refuse for its last entry, or for another one."""
    with pytest.raises(LedgerError) as caught:
        verified(ledger, policy)
    place = re.search(r": entry (\d+)[:,]", caught.value.message)
    assert place, caught.value.message
    assert int(place[1]) == (ledger.size - 1 if entry is None else entry), caught.value.message
    return caught.value.message


def founding(*members: str, faulty: int = 0) -> Forge:
    return Forge().genesis(faulty).admit(*(members or MEMBERS))


def running(*members: str, faulty: int = 0) -> Forge:
    """A federation that has proposed its first study: from here on the members decide."""
    return founding(*members, faulty=faulty).propose()


def test_a_true_history_is_refused() -> None:
    report = verify(forge.history().bundle(["ada", "dan"]), Policy.parse(forge.history_policy()))
    assert report.members == ("ada", "bob", "dan")
    assert (report.faulty, report.quorum) == (0, 2)
    assert len(report.erased) == 1


# Votes


def newcomer(ledger: Forge) -> dict[str, Any]:
    return ledger.admission("dan")


CHANGES: dict[str, Callable[[Forge], dict[str, Any]]] = {
    "member.admit": newcomer,
    "member.rotate": lambda ledger: ledger.admission("ada", NEW_KEY),
    "member.revoke": lambda ledger: {"member": "cyd", "reason": "left"},
    "federation.faulty": lambda ledger: {"faulty": 1},
    "federation.policy": lambda ledger: {"name": "privacy", "sha256": "1" * 64},
    "federation.edit": lambda ledger: {"study": STUDY, "edge": ["a", "b"], "change": "add", "reason": "known"},
}


@pytest.mark.parametrize("kind", CHANGES)
def test_the_operator_changes_the_federation_alone(kind: str) -> None:
    """During the founding it may; afterwards a quorum must have voted, and not one vote less."""
    alone = founding()
    alone.add(kind, CHANGES[kind](alone))
    assert verified(alone).size == 5

    few: list[tuple[str, ...]] = [(), ("ada",)]
    for voters in few:
        ledger = running()
        body = CHANGES[kind](ledger)
        ledger.decide(kind, body, voters)
        who = ", ".join(voters) or "nobody"
        assert f"it has {len(voters)} votes ({who}) of the 2 it needs from 3 members, 0 faulty" in refusal(ledger)

    unvoted = running()
    unvoted.add(kind, CHANGES[kind](unvoted))
    assert "0 votes" in refusal(unvoted)

    for voters in [("ada", "bob"), MEMBERS]:
        ledger = running()
        ledger.decide(kind, CHANGES[kind](ledger), voters)
        assert verified(ledger).size == 6


@pytest.mark.parametrize("faulty", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("members", [5, 6])
def test_one_vote_less_than_a_quorum_is_enough(members: int, faulty: int) -> None:
    names, needed = EVERYBODY[:members], quorum(members, faulty)
    for votes in (needed - 1, needed):
        ledger = running(*names, faulty=faulty)
        ledger.decide("federation.policy", {"name": "p", "sha256": "1" * 64}, names[:votes])
        if votes < needed:
            assert f"{votes} votes" in refusal(ledger)
            assert f"of the {needed} it needs from {members} members, {faulty} faulty" in refusal(ledger)
        else:
            assert verified(ledger).quorum == needed


def test_a_change_of_faulty_is_not_counted_with() -> None:
    ledger = running(*EVERYBODY[:5], faulty=0)
    ledger.decide("federation.faulty", {"faulty": 2}, EVERYBODY[:3])
    assert verified(ledger).quorum == quorum(5, 2) == 4
    ledger.decide("member.admit", ledger.admission("fay"), EVERYBODY[:3])
    assert "3 votes (ada, bob, cyd) of the 4 it needs from 5 members, 2 faulty" in refusal(ledger)


@pytest.mark.parametrize("faulty", [-1, 3, 4])
def test_more_may_lie_than_a_quorum_can_bear(faulty: int) -> None:
    ledger = running()
    ledger.decide("federation.faulty", {"faulty": faulty}, MEMBERS)
    assert f"{faulty} of 3 members may lie" in refusal(ledger)
    gone = running(faulty=2)
    gone.decide("member.revoke", {"member": "cyd", "reason": "left"}, MEMBERS)
    assert "2 of 2 members may lie" in refusal(gone)


def forged_vote(**changes: Any) -> Callable[[Forge, dict[str, Any]], list[dict[str, Any]]]:
    """Two votes for an admission, the second with something else in its statement."""

    def votes(ledger: Forge, body: dict[str, Any]) -> list[dict[str, Any]]:
        asked = {name: value(ledger) if callable(value) else value for name, value in changes.items()}
        return [ledger.vote("ada", "member.admit", body), ledger.vote("bob", "member.admit", body, **asked)]

    return votes


@pytest.mark.parametrize(
    ("votes", "fault"),
    [
        (forged_vote(content={"motion": "0" * 64}), "vote of 'bob': it is for another motion"),
        (forged_vote(epoch=2), "it is of epoch 2, it is epoch 3"),
        (forged_vote(epoch=4), "it is of epoch 4"),
        (forged_vote(round=1), "or it has a round"),
        (forged_vote(digest="0" * 64), "or it has a round or tensors"),
        (forged_vote(parent="0" * 64), "do not have the root"),
        (forged_vote(parent=lambda ledger: ledger.root(4)), "the first 5 entries do not have the root"),
        (forged_vote(parent=""), "do not have the root"),
        (forged_vote(size=3), "a checkpoint of 3 entries, only one of 4 to 5 counts"),
        (forged_vote(size=0), "a checkpoint of 0 entries"),
        (forged_vote(size=6), "a checkpoint of 6 entries"),
        (forged_vote(size=-1), "a checkpoint of -1 entries"),
        (forged_vote(size=2**53 - 1), "entries, only one of 4 to 5"),
        (forged_vote(content={"size": "5"}), "'size' is not a int"),
        (forged_vote(content={"size": True}), "'size' is not a int"),
        (forged_vote(content={"more": 1}), "expected an object with exactly"),
        (forged_vote(study=STUDY), f"of study {STUDY!r}, the entry says otherwise"),
        (forged_vote(kind="ballot"), "the envelope is a 'ballot' of 'bob'"),
        (forged_vote(federation="south"), "federation 'south'"),
        (forged_vote(key=signing("ada")), "'bob' is not signed by that member's key"),
        (forged_vote(member="sybil", key=signing("sybil")), "'sybil' speaks, but is not a member"),
        (forged_vote(member="dan", key=signing("dan")), "'dan' speaks, but is not a member at this index"),
        (lambda f, b: [f.vote("ada", "member.admit", b)] * 2, "a member votes twice"),
        (
            lambda f, b: [f.vote("ada", "member.admit", b), f.vote("ada", "member.admit", b, nonce="again")],
            "a member votes twice",
        ),
        (
            lambda f, b: [f.vote("ada", "member.admit", b), f.vote("bob", "member.rotate", b)],
            "it is for another motion",
        ),
        (
            lambda f, b: [f.vote("ada", "member.admit", b), f.vote("bob", "member.admit", {**b, "epoch": 2})],
            "it is for another motion",
        ),
        (
            lambda f, b: [{**f.vote("ada", "member.admit", b), "member": "bob"}, f.vote("bob", "member.admit", b)],
            "the entry says otherwise",
        ),
        (lambda f, b: [f.vote("ada", "member.admit", b), {"member": "bob"}], "its votes are not a list"),
        (lambda f, b: [f.vote("ada", "member.admit", b), "bob"], "its votes are not a list"),
        (lambda f, b: [{**f.vote("ada", "member.admit", b), "weight": 2}], "expected an object with exactly"),
        (lambda f, b: [[f.vote("ada", "member.admit", b)]], "expected an object"),
        (lambda f, b: {"ada": f.vote("ada", "member.admit", b)}, "its votes are not a list"),
        (lambda f, b: None, "its votes are not a list"),
        (lambda f, b: 2, "its votes are not a list"),
    ],
)
def test_a_vote_that_was_not_given_for_this(votes: Callable[[Forge, dict[str, Any]], Any], fault: str) -> None:
    ledger = running()
    body = ledger.admission("dan")
    ledger.add("member.admit", {**body, "votes": votes(ledger, body)})
    assert fault in refusal(ledger)


def test_one_bad_vote_among_enough_is_passed_over() -> None:
    ledger = running()
    body = ledger.admission("dan")
    votes = [ledger.vote(name, "member.admit", body) for name in MEMBERS]
    ledger.add("member.admit", {**body, "votes": [*votes[:2], ledger.vote("cyd", "member.admit", body, epoch=0)]})
    assert "vote of 'cyd'" in refusal(ledger)


def test_a_vote_during_the_founding_is_not_looked_at() -> None:
    ledger = founding()
    body = ledger.admission("dan")
    ledger.add("member.admit", {**body, "votes": [ledger.vote("ada", "member.admit", body)]})
    assert verified(ledger).members == ("ada", "bob", "cyd", "dan")
    ledger.add("member.admit", {**ledger.admission("eve"), "votes": [ledger.vote("ada", "member.admit", body)]})
    assert "another motion" in refusal(ledger)


def test_a_sybil_is_admitted_and_votes_in_the_same_breath() -> None:
    """Its votes count from the checkpoint behind its admission on, and it never counts for its own."""
    ledger = running("ada", "bob")
    own = ledger.admission("sybil")
    ledger.add(
        "member.admit",
        {**own, "votes": [ledger.vote("ada", "member.admit", own), ledger.vote("sybil", "member.admit", own)]},
    )
    assert "'sybil' speaks, but is not a member at this index" in refusal(ledger)

    ledger = running("ada", "bob")
    body, early = {"member": "bob", "reason": "in the way"}, ledger.size
    ledger.decide("member.admit", ledger.admission("sybil"), ("ada", "bob"))
    votes = [ledger.vote("ada", "member.revoke", body), ledger.vote("sybil", "member.revoke", body, size=early)]
    ledger.add("member.revoke", {**body, "votes": votes})
    assert "vote of 'sybil': it rests on a checkpoint of 4 entries, only one of 5 to 5 counts" in refusal(ledger)


def test_a_vote_of_another_epoch_is_kept_for_later() -> None:
    ledger = running()
    body = {"member": "cyd", "reason": "left"}
    kept = [ledger.vote(name, "member.revoke", body) for name in ("ada", "bob")]
    ledger.decide("member.admit", ledger.admission("dan"), MEMBERS)
    ledger.add("member.revoke", {**body, "votes": kept})
    assert "vote of 'ada': it is of epoch 3, it is epoch 4" in refusal(ledger)


@pytest.mark.parametrize("kind", ["federation.policy", "federation.edit"])
def test_votes_are_used_a_second_time(kind: str) -> None:
    """Without an epoch between them, two entries look alike; the votes behind the first one are needed anew."""
    ledger = running()
    body, other = CHANGES[kind](ledger), {"name": "other", "sha256": "2" * 64}
    voted = {**body, "votes": [ledger.vote(name, kind, body) for name in MEMBERS]}
    first = ledger.add(kind, voted)
    ledger.decide("federation.policy", other, MEMBERS)
    ledger.add(kind, voted)
    assert f"rests on a checkpoint of {first} entries, only one of {first + 1} to" in refusal(ledger)

    ledger = running()
    for motion in (body, other, body):
        ledger.decide(kind if motion is body else "federation.policy", motion, MEMBERS)
    assert verified(ledger).size == 8


def test_a_revoked_member_votes_but_it_may_vote_on_its_own_revocation() -> None:
    ledger = running()
    revoke = {"member": "cyd", "reason": "left"}
    ledger.decide("member.revoke", revoke, ("ada", "cyd"))
    assert verified(ledger).members == ("ada", "bob")
    ledger.decide("member.admit", ledger.admission("dan"), ("ada", "cyd"))
    assert "'cyd' speaks, but was revoked by entry 5" in refusal(ledger)


def test_a_member_votes_with_the_key_it_had_before() -> None:
    ledger = running()
    ledger.decide("member.rotate", ledger.admission("ada", NEW_KEY), MEMBERS)
    for key, right in ((signing("ada"), False), (NEW_KEY, True)):
        after = running()
        after.decide("member.rotate", after.admission("ada", NEW_KEY), MEMBERS)
        body = after.admission("dan")
        votes = [after.vote("ada", "member.admit", body, key), after.vote("bob", "member.admit", body)]
        after.add("member.admit", {**body, "votes": votes})
        if right:
            assert verified(after).members == ("ada", "bob", "cyd", "dan")
        else:
            assert "'ada' is not signed by that member's key" in refusal(after)


def test_a_vote_on_another_history_counts() -> None:
    """Two histories that the operator shows to two members: the votes of one are void in the other."""
    ours, theirs = running(), running()
    ours.add("complaint", {"study": STUDY, "text": "ours"})
    theirs.add("complaint", {"study": STUDY, "text": "theirs"})
    body = ours.admission("dan")
    votes = [ours.vote("ada", "member.admit", body), theirs.vote("bob", "member.admit", body)]
    ours.add("member.admit", {**body, "votes": votes})
    assert "vote of 'bob': the first 6 entries do not have the root on which it rests" in refusal(ours)


def test_every_root_behind_the_last_change_is_one_to_vote_on() -> None:
    for size in range(4, 12):
        ledger = running()
        for number in range(6):
            ledger.add("complaint", {"study": STUDY, "number": number})
        body = ledger.admission("dan")
        ledger.add(
            "member.admit", {**body, "votes": [ledger.vote(name, "member.admit", body, size=size) for name in MEMBERS]}
        )
        assert verified(ledger).size == 12


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("member.admit", {"member": "dan", "key": vkey("dan", signing("dan")), "epoch": 3}),
        ("member.admit", {"member": 7, "key": "", "witness": "", "epoch": 3}),
        ("member.revoke", {"member": "cyd"}),
        ("member.revoke", {"member": "cyd", "reason": "left", "more": 1}),
        ("federation.faulty", {"faulty": True}),
        ("federation.faulty", {"faulty": "1"}),
        ("federation.faulty", {}),
        ("federation.policy", {"name": "p"}),
        ("federation.edit", {"study": STUDY, "edge": "ab", "change": "add", "reason": ""}),
    ],
)
def test_a_change_without_what_it_changes(kind: str, body: dict[str, Any]) -> None:
    ledger = founding()
    ledger.add(kind, body)
    assert re.search("expected an object with exactly|is not a", refusal(ledger))


@pytest.mark.parametrize("change", [{"edge": ["a"]}, {"edge": ["a", "a"]}, {"edge": ["a", 1]}, {"change": "melt"}])
def test_an_edit_of_no_edge(change: dict[str, Any]) -> None:
    ledger = running()
    ledger.decide("federation.edit", {**CHANGES["federation.edit"](ledger), **change}, MEMBERS)
    assert "is not two different names, or its 'change' not one of" in refusal(ledger)


def test_a_member_is_named_for_an_edit_that_it_did_not_propose() -> None:
    """Its vote, which names the proposer, must be there; nobody's word that it was, and nobody else's vote."""
    body = {"study": STUDY, "edge": ["a", "b"], "change": "add", "reason": "known", "proposer": "ada", "does": "0" * 64}
    ledger = running()
    ledger.decide("federation.edit", body, MEMBERS)
    assert verified(ledger).entries[-1].body["proposer"] == "ada"
    ledger = running()
    ledger.decide("federation.edit", body, ("bob", "cyd"))
    assert "it names 'ada' as its proposer, of whom it has no vote" in refusal(ledger)
    ledger = running()
    other = [ledger.vote("ada", "federation.edit", {**body, "proposer": "bob"})]
    votes = [*other, *(ledger.vote(name, "federation.edit", body) for name in ("bob", "cyd"))]
    ledger.add("federation.edit", {**body, "votes": votes})
    assert "vote of 'ada': it is for another motion" in refusal(ledger)
    for kind, name, value in (
        ("federation.edit", "proposer", None), ("federation.edit", "proposer", 1), ("federation.edit", "does", 1),
        ("federation.edit", "more", "x"), ("federation.policy", "proposer", "ada"),
    ):  # fmt: skip
        ledger = running()
        ledger.decide(kind, {**CHANGES[kind](ledger), name: value}, MEMBERS)
        assert re.search("expected an object with exactly|is not a", refusal(ledger))


# Members and their keys


def test_a_policy_that_lacks_the_member() -> None:
    policy = Policy.parse(policy_text(["ada"]))
    assert "the policy: it has no member 'bob'" in refusal(founding("ada", "bob"), policy)


def test_a_policy_that_has_another_key_for_the_member() -> None:
    policy = Policy.parse(policy_text(["ada"]) + f"# causaldao member {vkey('bob', NEW_KEY)}\n")
    assert "the key recorded for 'bob' is not the one in the policy" in refusal(founding("ada", "bob"), policy)


def test_a_policy_of_today_refuses_the_bundle_of_yesterday() -> None:
    """Before ada's witness got another key. Whose cosignatures count is for the policy to say, not for the ledger."""
    policy = Policy.parse(policy_text(EVERYBODY, ["bob"], 1) + f"witness ada {vkey('ada', NEW_KEY, 4)}\n")
    ledger = founding("ada", "bob")
    assert verify(ledger.bundle(["ada", "bob"]), policy).cosigners == ("bob",)
    ledger.add("member.rotate", ledger.admission("ada", watch=NEW_KEY))
    assert verify(ledger.bundle(["bob"]), policy).cosigners == ("bob",)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"key": "bob+00000000+AAAA"}, "the key of 'bob' is not a verifier key"),
        ({"key": "bob"}, "the key of 'bob' is not a verifier key"),
        ({"key": vkey("bob", signing("bob"), 4)}, "the key of 'bob' is not a verifier key"),
        ({"witness": vkey("bob", witness("bob"), 1)}, "the witness of 'bob' is not a verifier key"),
        ({"witness": ""}, "the witness of 'bob' is not a verifier key"),
        ({"witness": vkey("ada", witness("bob"), 4)}, "the witness recorded for 'bob' is one of 'ada'"),
        ({"key": vkey("ada", signing("ada"))}, "the key recorded for 'bob' is one of 'ada'"),
        ({"witness": vkey("bob", witness("ada"), 4)}, "is or was the one of 'ada'"),
        ({"witness": vkey("bob", signing("ada"), 4)}, "is or was the one of 'ada'"),
        ({"epoch": 0}, "its body says epoch 0, it is epoch 1"),
        ({"epoch": 2}, "its body says epoch 2, it is epoch 1"),
    ],
)
def test_an_admission_with_a_key_that_is_none_or_anothers(change: dict[str, Any], fault: str) -> None:
    ledger = founding("ada")
    ledger.add("member.admit", ledger.admission("bob") | change)
    assert fault in refusal(ledger)


def test_one_key_under_two_names() -> None:
    """Also of one who was revoked."""
    policy = Policy.parse(policy_text(["ada"]) + f"# causaldao member {vkey('bob', signing('ada'))}\n")
    for gone in (False, True):
        ledger = founding("ada")
        if gone:
            ledger.add("member.revoke", {"member": "ada", "reason": "left"})
        ledger.add("member.admit", ledger.admission("bob", signing("ada")))
        assert "the key recorded for 'bob' is or was the one of 'ada'" in refusal(ledger, policy)


def test_a_key_that_was_given_up_comes_back() -> None:
    ledger = founding("ada")
    ledger.add("member.rotate", ledger.admission("ada", NEW_KEY))
    assert verified(ledger).size == 3
    ledger.add("member.rotate", ledger.admission("ada", signing("ada")))
    assert "is or was the one of 'ada'" in refusal(ledger)


def test_a_rotation_of_one_key_alone_is_refused() -> None:
    ledger = founding("ada")
    ledger.add("member.rotate", ledger.admission("ada", watch=witness("new")))
    ledger.add("member.rotate", ledger.admission("ada", NEW_KEY, witness("new")))
    assert verified(ledger).size == 4


@pytest.mark.parametrize("kind", ["member.admit", "member.rotate", "member.revoke"])
def test_a_revoked_member_comes_back(kind: str) -> None:
    ledger = founding()
    revoke = {"member": "cyd", "reason": "left"}
    ledger.add("member.revoke", revoke)
    ledger.add(kind, revoke if kind == "member.revoke" else ledger.admission("cyd"))
    assert re.search("revoked by entry 4|who is not a member", refusal(ledger))


@pytest.mark.parametrize(
    ("kind", "member", "fault"),
    [
        ("member.admit", "ada", "who is a member"),
        ("member.rotate", "dan", "who is not a member"),
        ("member.revoke", "dan", "who is not a member"),
    ],
)
def test_a_change_of_somebody_else(kind: str, member: str, fault: str) -> None:
    ledger = founding()
    ledger.add(kind, {"member": member, "reason": ""} if kind == "member.revoke" else ledger.admission(member))
    assert fault in refusal(ledger)


def test_whom_the_policy_names_and_nobody_admits_is_not_said() -> None:
    assert verified(founding("ada", "bob")).unadmitted == ("cyd", "dan", "eve", "fay", "sybil")
    gone = founding("ada", "bob")
    gone.add("member.revoke", {"member": "bob", "reason": "left"})
    assert verified(gone).unadmitted == ("cyd", "dan", "eve", "fay", "sybil")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"federation": 7, "faulty": 0},
        {"federation": "n"},
        *({"federation": "n", "faulty": faulty} for faulty in (-1, True, 0.5, "0", None)),
    ],
)
def test_a_genesis_that_founds_nothing(body: dict[str, Any]) -> None:
    ledger = Forge()
    ledger.add("genesis", body)
    assert "its body" in refusal(ledger)


# Agreement of a study's members


@pytest.mark.parametrize("kind", ["study.approved", "release"])
@pytest.mark.parametrize("faulty", [0, 1, 2])
def test_fewer_agree_than_a_quorum(kind: str, faulty: int) -> None:
    needed = quorum(4, faulty)
    for voices in range(5):
        ledger = running("ada", "bob", "cyd", "dan", faulty=faulty)
        agree = ledger.approve if kind == "study.approved" else ledger.release
        agree(*("ada", "bob", "cyd", "dan")[:voices])
        if voices < needed:
            assert f"words of {voices} members" in refusal(ledger)
            assert f"a quorum of the 4 at the study's proposal are {needed}" in refusal(ledger)
        else:
            assert verified(ledger).size == 7


@pytest.mark.parametrize("kind", ["study.approved", "release"])
def test_one_member_agrees_twice_or_newcomers_agree(kind: str) -> None:
    ledger = running()
    agree = ledger.approve if kind == "study.approved" else ledger.release
    agree("ada", "ada")
    assert "words of 1 members (ada)" in refusal(ledger)

    ledger = running("ada", "bob")
    ledger.decide("member.admit", ledger.admission("dan"), ("ada", "bob"))
    agree = ledger.approve if kind == "study.approved" else ledger.release
    agree("ada", "dan")
    assert "words of 1 members (ada); a quorum of the 2 at the study's proposal are 2" in refusal(ledger)


@pytest.mark.parametrize("kind", ["study.approved", "release"])
def test_an_agreement_on_a_study_that_nobody_proposed(kind: str) -> None:
    ledger = running()
    agree = ledger.approve if kind == "study.approved" else ledger.release
    agree(*MEMBERS, study=SOUTH)
    assert re.search("which no entry before it (proposes|names)", refusal(ledger))


@pytest.mark.parametrize("kind", ["study.approved", "release"])
def test_the_revoked_agree(kind: str) -> None:
    ledger = running()
    ledger.decide("member.revoke", {"member": "cyd", "reason": "left"}, MEMBERS)
    agree = ledger.approve if kind == "study.approved" else ledger.release
    agree("ada", "cyd")
    assert "'cyd' speaks, but was revoked by entry 5" in refusal(ledger)


def test_a_quorum_changes_while_a_study_runs() -> None:
    """The study's own members count, as many as there were at its proposal."""
    ledger = running("ada", "bob")
    for name in ("cyd", "dan", "eve"):
        ledger.decide("member.admit", ledger.admission(name), [*MEMBERS, "dan"][: ledger.epoch])
    ledger.release("ada", "bob")
    assert verified(ledger).quorum == 3


@pytest.mark.parametrize("said", [{"model": "1" * 64}, {"dag": {"edges": []}}, {"more": 1}])
def test_a_release_of_something_else_than_was_agreed(said: dict[str, Any]) -> None:
    ledger = running()
    ledger.release(*MEMBERS, **said)
    assert "the model and dag that 'ada' signed are not the ones released" in refusal(ledger)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"kind": "vote"}, "the envelope is a 'vote'"),
        ({"kind": "rollcall"}, "the envelope is a 'rollcall'"),
        ({"study": SOUTH}, "the entry says otherwise"),
        ({"study": ""}, "the entry says otherwise"),
        ({"federation": "south"}, "federation 'south'"),
        ({"key": NEW_KEY}, "not signed by that member's key"),
    ],
)
def test_a_release_with_a_vote_on_something_else(changes: dict[str, Any], fault: str) -> None:
    ledger = running().propose(SOUTH)
    released = {"model": "0" * 64, "dag": {}}
    votes = [
        word(name, **{"kind": "release", "body": released, **(changes if name == "bob" else {})}) for name in MEMBERS
    ]
    ledger.add("release", {"study": STUDY, **released, "votes": votes})
    assert fault in refusal(ledger)


def test_two_releases_of_one_study_that_differ() -> None:
    ledger = running()
    ledger.release(*MEMBERS)
    released = {"model": "1" * 64, "dag": {}}
    votes = [word(name, kind="release", body=released) for name in MEMBERS]
    ledger.add("release", {"study": STUDY, **released, "votes": votes})
    assert "the slot (study, round, member, kind)" in refusal(ledger)


# Words


def opening() -> Forge:
    return running("ada")


def ballot(member: str = "ada", **changes: Any) -> dict[str, Any]:
    return word(member, **{"kind": "ballot", **changes})


@pytest.mark.parametrize(
    ("kind", "body", "fault"),
    [
        ("ballot", ballot(key=NEW_KEY), "not signed by that member's key"),
        ("ballot", ballot("bob"), "'bob' speaks, but is not a member"),
        ("ballot", ballot("mallory"), "'mallory' speaks, but is not a member"),
        ("ballot", ballot(federation="south"), "federation 'south'"),
        ("ballot", ballot(study="0" * 64), "which no entry before it names"),
        ("ballot", ballot(study=""), "which no entry before it names"),
        ("evidence", ballot(), "the entry says otherwise"),
        ("ballot", ballot() | {"member": "bob"}, "the entry says otherwise"),
        ("ballot", ballot() | {"study": SOUTH}, "the envelope is of study"),
        ("ballot", {"envelope": "{}"}, "expected an object with exactly"),
        ("ballot", {"member": "ada"}, "lacks the text 'envelope'"),
        ("pool", {"envelope": 7}, "lacks the text 'envelope'"),
        ("complaint", {"deep": [{"envelope": "x"}]}, "envelope: not JSON"),
        ("complaint", {"deep": [{"envelope": ballot("mallory")["envelope"]}]}, "'mallory' is not signed by"),
        ("complaint", {"deep": [{"envelope": ballot(federation="south")["envelope"]}]}, "federation 'south'"),
        ("complaint", {"deep": [{"envelope": ballot(study=SOUTH)["envelope"]}]}, "which no entry before it names"),
    ],
)
def test_words_put_into_a_members_mouth(kind: str, body: dict[str, Any], fault: str) -> None:
    ledger = opening()
    ledger.add(kind, body)
    assert fault in refusal(ledger)


def test_an_envelope_of_another_form() -> None:
    """Every one of its fields counts, and there is one spelling."""
    whole = str(ballot()["envelope"])
    for found, put in (
        ('"payloadType":"application/vnd.causaldao+json"', '"payloadType":"application/json"'),
        ('"signatures":[', '"signatures":[{"keyid":"","sig":""},'),
        ('{"payload"', '{"more":1,"payload"'),
        ('{"payload"', '{ "payload"'),
        ('"keyid"', '"kid"'),
        ('"sig":"', '"sig":"A'),
    ):
        assert found in whole
        ledger = opening()
        ledger.add("ballot", {"member": "ada", "envelope": whole.replace(found, put, 1)})
        refusal(ledger)


def test_a_statement_of_another_form() -> None:
    payload_type = "application/vnd.causaldao+json"
    true = json.loads(base64.b64decode(json.loads(ballot()["envelope"])["payload"]))
    changes: list[dict[str, Any]] = [{"more": 1}, {"round": "0"}, {"round": True}, {"body": []}, {"v": 1.5}]
    for change in changes:
        payload = canonical({**true, **change})
        signed = b"DSSEv1 %d %b %d %b" % (len(payload_type), payload_type.encode(), len(payload), payload)
        signatures = [{"keyid": "", "sig": base64.b64encode(signing("ada").sign(signed)).decode()}]
        envelope = {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": signatures,
        }
        ledger = opening()
        ledger.add("ballot", {"member": "ada", "envelope": canonical(envelope).decode()})
        assert re.search("statement: expected an object|statement: .* is not a", refusal(ledger))


def test_a_manifest_the_member_did_not_sign() -> None:
    manifest = [{"dtype": "int64", "name": "moments", "sha256": "1" * 64, "shape": [6]}]
    said = word("ada", kind="evidence", digest=sha256(canonical(manifest)))
    ledger = opening()
    ledger.add("evidence", {**said, "manifest": manifest})
    assert verified(ledger).size == 4
    ledger = opening()
    ledger.add("evidence", {**said, "manifest": [{**manifest[0], "sha256": "0" * 64}]})
    assert "the manifest is not the one" in refusal(ledger)


def test_a_slot_filled_twice_with_different_content() -> None:
    ledger = opening()
    ledger.add("ballot", ballot(body={"marks": [1]}))
    ledger.add("ballot", ballot(body={"marks": [1]}, nonce="again"))
    assert verified(ledger).size == 5
    ledger.add("ballot", ballot(body={"marks": [-1]}))
    assert "the slot (study, round, member, kind)" in refusal(ledger)
    both = opening()
    both.add("equivocation", {"study": STUDY, "proof": [ballot(body={"marks": [mark]}) for mark in (1, -1)]})
    assert verified(both).size == 4


LATER: list[tuple[str, dict[str, Any]]] = [
    ("ballot", ballot(round=1)),
    ("update", word("ada", kind="update")),
    ("evidence", word("ada", kind="evidence")),
    ("privacy.spend", {"study": STUDY, **word("ada", kind="evaluation")}),
    ("study.approved", {"study": STUDY, "approvals": [word("ada", kind="rollcall")]}),
    ("release", {"study": STUDY, "model": 1, "dag": 2, "votes": [
        word("ada", kind="release", body={"model": 1, "dag": 2})]}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), LATER, ids=lambda value: value if isinstance(value, str) else "")
def test_a_revoked_key_speaks_no_more_but_what_it_said_stands(kind: str, body: dict[str, Any]) -> None:
    revoke = {"member": "ada", "reason": "left"}

    def spoken(first: bool) -> Forge:
        ledger = Forge().genesis().admit("ada", "bob").propose()
        if first:
            ledger.add(kind, body)
        ledger.decide("member.revoke", revoke, ("ada", "bob"))
        if not first:
            ledger.add(kind, body)
        return ledger

    late = refusal(spoken(False))
    assert "'ada' speaks, but was revoked by entry 4" in late
    if kind in ("study.approved", "release"):
        assert "words of 1 members" in refusal(spoken(True), entry=4)
    else:
        assert verified(spoken(True)).members == ("bob",)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"study": STUDY, **word("ada", kind="update")}, "the envelope is a 'update' of 'ada'"),
        ({"study": STUDY, **word("ada", kind="evaluation", study="0" * 64)}, "the envelope is of study"),
        ({"study": STUDY, **word("ada", kind="evaluation"), "member": "bob"}, "the entry says otherwise"),
        ({"study": SOUTH, **word("ada", kind="evaluation")}, "the envelope is of study"),
        ({"study": STUDY, **word("bob", kind="evaluation")}, "'bob' speaks, but is not a member"),
    ],
)
def test_an_evaluation_is_not_held_to_its_speaker(body: dict[str, Any], fault: str) -> None:
    ledger = opening().propose(SOUTH)
    ledger.add("privacy.spend", body)
    assert fault in refusal(ledger)


def test_an_account_without_a_word_is_refused() -> None:
    ledger = opening()
    ledger.add("privacy.spend", {"study": STUDY, "member": "ada", "kind": "evidence"})
    assert verified(ledger).size == 4


def test_the_words_of_two_studies_collide() -> None:
    ledger = opening().propose(SOUTH)
    for study in (STUDY, SOUTH):
        for kind in ("evidence", "ballot", "update"):
            ledger.add(kind, word("ada", kind=kind, study=study, body={"of": study}))
    assert verified(ledger).size == 10
    late = opening()
    late.add("ballot", ballot(study=SOUTH))
    late.propose(SOUTH)
    assert "the envelope is of study" in refusal(late, entry=3)


def test_a_rotated_key_replaces_the_old_one_from_its_index_on() -> None:
    ledger = running()
    ledger.add("ballot", ballot())
    ledger.decide("member.rotate", ledger.admission("ada", NEW_KEY), MEMBERS)
    ledger.add("ballot", ballot(round=1, key=NEW_KEY))
    assert verified(ledger).size == 8
    ledger.add("complaint", {"said": ballot(round=2)})  # told again by another: any key of that member will do
    assert verified(ledger).size == 9
    ledger.add("ballot", ballot(round=2))
    assert "not signed by that member's key" in refusal(ledger)
    early = running()
    early.add("ballot", ballot(key=NEW_KEY))
    assert "not signed by that member's key" in refusal(early)


# Erasure


def with_payload() -> tuple[Forge, str]:
    ledger, data = opening(), b"salt and content"
    name, _ = forge.payload_name(data)
    ledger.add("pool", {"study": STUDY}, {name: data})
    return ledger, name


def test_an_erased_payload_is_missed_and_one_that_nobody_erased_is_not() -> None:
    ledger, name = with_payload()
    del ledger.payloads[name]
    assert f"its payload {name} is not in the file, and no entry erases it" in refusal(ledger)
    ledger.add("erasure", {"payloads": [name], "reason": "asked for"})
    assert verified(ledger).erased == (name,)


def test_a_payload_that_is_still_there_counts_as_erased() -> None:
    ledger, name = with_payload()
    ledger.add("erasure", {"payloads": [name], "reason": "asked for"})
    report = verified(ledger)
    assert (report.erased, report.payloads) == ((), {name: b"salt and content"})


@pytest.mark.parametrize(
    "body",
    [
        {"payloads": ["0" * 64], "reason": ""},
        {"payloads": [7], "reason": ""},
        {"payloads": [["0"]], "reason": ""},
        {"payloads": "0" * 64, "reason": ""},
        {"payloads": []},
        {"reason": ""},
    ],
)
def test_an_erasure_of_something_that_was_never_there(body: dict[str, Any]) -> None:
    ledger, _ = with_payload()
    ledger.add("erasure", body)
    assert re.search("which no entry before it names|expected an object|is not a list", refusal(ledger))


def test_a_payload_is_erased_before_it_is_recorded() -> None:
    data = b"later"
    name, _ = forge.payload_name(data)
    ledger = opening()
    ledger.add("erasure", {"payloads": [name], "reason": ""})
    ledger.add("pool", {"study": STUDY}, {name: data})
    assert "which no entry before it names" in refusal(ledger, entry=3)
