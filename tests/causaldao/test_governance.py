"""Who may change a federation: votes that do not count, changes nobody may make, an operator with its own members."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest

from causaldao import governance
from causaldao.errors import CausalDAOError, GuaranteeError, IdentityError, LedgerError
from causaldao.governance import Epoch, advance, check_votes, make_vote, motion
from causaldao.members import Member, quorum
from causaldao.signing import SigningKey, Statement, digest, seal, sha256
from tests.counts import count

NAMES = ("ada", "bob", "cy", "dan", "eve")
PROPOSED = ("study.proposed", {"study": "0" * 64})


def key(name: str, what: str = "s") -> SigningKey:
    return SigningKey.from_seed(sha256(f"{what} {name}".encode()).encode()[:32])


def member(name: str, signs: str = "", sees: str = "", epoch: int = 0) -> Member:
    return Member(name, key(signs or name).public, key(sees or name, "w").public, epoch)


def admission(name: str, number: int, signs: str = "", sees: str = "") -> dict[str, Any]:
    return governance.admission(member(name, signs, sees), number)


def root(size: int) -> str:
    """The root of the one history there is; `other` is another's."""
    return sha256(f"root {size}".encode())


def other(size: int) -> str:
    return sha256(f"other {size}".encode())


class Ledger:
    """Entries one after another, and the epoch after them: the rule as every reader applies it."""

    def __init__(self, names: Sequence[str] = NAMES, faulty: int = 0, *, founding: bool = False) -> None:
        self.size = 0
        self.epoch: Epoch | None = None
        self.add("genesis", {"federation": "north", "faulty": faulty})
        for number, name in enumerate(names):
            self.add("member.admit", admission(name, number))
        if not founding:
            self.add(*PROPOSED)

    @property
    def now(self) -> Epoch:
        assert self.epoch is not None
        return self.epoch

    def add(self, kind: str, body: dict[str, Any]) -> None:
        self.epoch = advance(self.epoch, self.size, kind, body, root)
        self.size += 1

    def vote(self, name: str, kind: str, body: dict[str, Any], **changes: Any) -> dict[str, str]:
        said = {
            "federation": "north", "member": name, "epoch": self.now.number, "motion": motion(kind, body),
            "size": self.size, "root": root(changes.get("size", self.size)), **changes,
        }  # fmt: skip
        signing = said.pop("key", key(name))
        return {"member": name, "envelope": make_vote(signing, **said)}

    def voted(self, kind: str, body: dict[str, Any], voters: Sequence[str]) -> dict[str, Any]:
        return {**body, "votes": [self.vote(name, kind, body) for name in voters]}

    def decide(self, kind: str, body: dict[str, Any], voters: Sequence[str]) -> None:
        self.add(kind, self.voted(kind, body, voters))

    def refuses(self, kind: str, body: dict[str, Any], error: type[CausalDAOError], match: str | None = None) -> None:
        before = self.now
        with pytest.raises(error, match=match):
            self.add(kind, body)
        assert self.now == before


FAULTY: tuple[str, dict[str, Any]] = ("federation.faulty", {"faulty": 1})


# the founding


def test_the_operator_founds_a_federation_with_nobody_asked() -> None:
    ledger = Ledger(NAMES[:3], 1, founding=True)
    ledger.add("member.revoke", {"member": "cy", "reason": "a slip"})
    ledger.add("federation.faulty", {"faulty": 0})
    assert (ledger.now.number, ledger.now.last_change, ledger.now.founding) == (5, 5, True)
    assert ledger.now.roster.names == ("ada", "bob")
    ledger.add(*PROPOSED)
    assert not ledger.now.founding
    assert ledger.now.number == 5, "a proposal is no change of the membership"
    ledger.add(*PROPOSED)
    ledger.refuses(*FAULTY, GuaranteeError, "nobody voted")


def test_a_ledger_is_founded_twice_or_not_at_all() -> None:
    ledger = Ledger()
    ledger.refuses("genesis", {"federation": "south", "faulty": 0}, LedgerError, "genesis")
    with pytest.raises(LedgerError, match="no genesis"):
        advance(None, 0, "member.admit", admission("ada", 0), root)
    for body in ({"federation": "north"}, {"federation": 1, "faulty": 0}, {"federation": "north", "faulty": True}):
        with pytest.raises(LedgerError, match="how many may lie"):
            advance(None, 0, "genesis", body, root)


def test_other_entries_change_an_epoch() -> None:
    ledger = Ledger()
    before = ledger.now
    for kind in ("evidence", "study.approved", "study.closed", "release", "erasure"):
        ledger.add(kind, {"study": "0" * 64, "votes": "not looked at"})
    assert ledger.now is before


# the quorum


@pytest.mark.parametrize(("members", "faulty"), [(1, 0), (2, 0), (2, 1), (3, 0), (4, 1), (5, 1), (5, 2), (5, 4)])
def test_one_vote_too_few_decides(members: int, faulty: int) -> None:
    ledger = Ledger(NAMES[:members], faulty)
    needed = quorum(members, faulty)
    assert ledger.now.quorum == needed
    kind, body = "member.admit", admission("new", members)
    few = ledger.voted(kind, body, NAMES[: needed - 1])
    ledger.refuses(kind, few, GuaranteeError, rf"has {needed - 1} of the {needed} votes it needs from the {members} ")
    ledger.decide(kind, body, NAMES[:needed])
    assert "new" in ledger.now.members
    assert (ledger.now.number, ledger.now.last_change) == (members + 1, ledger.size - 1)


def test_it_is_not_told_who_voted_and_how_many_are_missing() -> None:
    ledger = Ledger(NAMES, 1)
    body = ledger.voted(*FAULTY, ("bob", "ada"))
    ledger.refuses("federation.faulty", body, GuaranteeError, re.escape("2 of the 4 votes"))
    ledger.refuses("federation.faulty", body, GuaranteeError, re.escape("(bob, ada)"))
    whole = ledger.voted(*FAULTY, NAMES[:4])
    assert check_votes(ledger.now, "federation.faulty", whole, ledger.size, root) == NAMES[:4]


def test_votes_of_the_new_members_count() -> None:
    """An operator that admits members of its own making, to outvote the others."""
    ledger = Ledger(NAMES[:3])
    sybil, number = admission("sybil", 3), ledger.now.number
    ledger.refuses("member.admit", sybil, GuaranteeError, "nobody voted")
    own = {**sybil, "votes": [ledger.vote("sybil", "member.admit", sybil)]}
    ledger.refuses("member.admit", own, IdentityError, "'sybil' does not belong to epoch 3")
    forged = [ledger.vote(name, "member.admit", sybil, key=key("sybil")) for name in NAMES[:3]]
    ledger.refuses("member.admit", {**sybil, "votes": forged}, IdentityError, "signature|another key")
    renamed = [{"member": name, "envelope": forged[0]["envelope"]} for name in NAMES[:3]]
    ledger.refuses("member.admit", {**sybil, "votes": renamed}, IdentityError, "signature|another key")
    assert ledger.now.number == number


def test_a_federation_that_was_founded_small_is_taken_over_one_by_one() -> None:
    """Each change needs the quorum of those before it, so nobody comes in by the votes of those who come in."""
    ledger = Ledger(NAMES[:2])
    for number, name in enumerate(("x1", "x2", "x3"), start=2):
        body = admission(name, number)
        ledger.refuses("member.admit", ledger.voted("member.admit", body, ("ada",)), GuaranteeError, "1 of the 2")
    assert set(ledger.now.members) == {"ada", "bob"}


# votes that do not count


def test_a_member_votes_twice() -> None:
    ledger = Ledger(NAMES[:3])
    again = [ledger.vote("ada", *FAULTY), ledger.vote("ada", *FAULTY, size=ledger.size - 1)]
    ledger.refuses("federation.faulty", {"faulty": 1, "votes": again}, IdentityError, "ada votes twice")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"federation": "south"}, "federation"),
    ({"member": "ada"}, "member"),
    ({"epoch": 4}, "epoch"),
    ({"epoch": 6}, "epoch"),
    ({"motion": motion("federation.faulty", {"faulty": 2})}, "another motion"),
    ({"motion": motion("member.revoke", {"faulty": 1})}, "another motion"),
    ({"size": 5}, "seen 5 entries, but only a vote from 6 to 7"),
    ({"size": 0}, "seen 0 entries"),
    ({"size": 8}, "seen 8 entries"),
    ({"size": -1}, "seen -1 entries"),
    ({"root": other(7)}, "two histories"),
    ({"key": SigningKey.from_seed(b"x" * 32)}, "signature|another key"),
]


@pytest.mark.parametrize(("change", "match"), WRONG, ids=range(len(WRONG)))
def test_a_vote_for_something_else_counts(change: dict[str, Any], match: str) -> None:
    """Of another federation, member, epoch, motion, time, history or key; also if there are enough others."""
    ledger = Ledger()
    assert (ledger.now.number, ledger.now.last_change, ledger.size) == (5, 5, 7)
    votes = [ledger.vote(name, *FAULTY) for name in NAMES[:4]] + [ledger.vote("eve", *FAULTY, **change)]
    ledger.refuses("federation.faulty", {"faulty": 1, "votes": votes}, IdentityError, match)


def test_votes_of_an_earlier_epoch_are_counted_again() -> None:
    ledger = Ledger()
    old = ledger.voted("federation.faulty", {"faulty": 1}, NAMES)
    ledger.add("federation.faulty", old)
    ledger.decide("federation.faulty", {"faulty": 0}, NAMES)
    ledger.refuses("federation.faulty", old, IdentityError, "epoch")
    ledger.decide("federation.faulty", {"faulty": 1}, NAMES)


def test_one_vote_decides_the_same_edit_over_and_over() -> None:
    """Edits and policies change no epoch, so their votes stay those of the epoch: each decides once."""
    ledger = Ledger()
    kind, body = "federation.policy", {"name": "retention", "sha256": "a" * 64}
    voted, number = ledger.voted(kind, body, NAMES[:3]), ledger.now.number
    ledger.add(kind, voted)
    ledger.decide(kind, {**body, "sha256": "b" * 64}, NAMES[:3])
    assert ledger.now.number == number
    ledger.refuses(kind, voted, IdentityError, "only a vote from 8 to 9")
    ledger.decide(kind, body, NAMES[:3])


def test_what_is_voted_on_is_changed_after_the_votes() -> None:
    ledger = Ledger()
    voted = ledger.voted("member.revoke", {"member": "eve", "reason": "left"}, NAMES)
    ledger.refuses("member.revoke", {**voted, "member": "dan"}, IdentityError, "another motion")
    ledger.refuses("member.revoke", {**voted, "reason": "lied"}, IdentityError, "another motion")
    ledger.refuses("federation.policy", voted, IdentityError, "another motion")


@pytest.mark.parametrize(
    "votes",
    ["x", {}, ["x"], [{}], [{"member": "ada"}], [{"member": "ada", "envelope": 5}],
     [{"member": "ada", "envelope": "x", "more": 1}], [{"member": "ada", "envelope": "x" * 5000}], [["ada", "x"]],
     [{"member": "ada", "envelope": "x"}] * 6],
    ids=range(10),
)  # fmt: skip
def test_votes_that_are_none(votes: Any) -> None:
    Ledger().refuses("federation.faulty", {"faulty": 1, "votes": votes}, IdentityError)


@pytest.mark.parametrize(
    "change",
    [{"kind": "approval"}, {"study": "s"}, {"round": 1}, {"digest": "0" * 64}, {"body": {}}, {"body": {"size": 7}},
     {"body": {"motion": motion(*FAULTY), "size": "7"}}, {"body": {"motion": motion(*FAULTY), "size": True}},
     {"body": {"motion": motion(*FAULTY), "size": 7, "more": 1}}],
    ids=range(9),
)  # fmt: skip
def test_another_word_of_a_member_is_taken_for_its_vote(change: dict[str, Any]) -> None:
    ledger = Ledger()
    said = Statement(
        federation="north", study="", round=0, member="eve", kind="vote", nonce="", parent=root(7), digest=digest({}),
        body={"motion": motion(*FAULTY), "size": 7}, epoch=5,
    )  # fmt: skip
    bent = Statement(**{**asdict(said), **change})
    for statement, holds in ((said, True), (bent, False)):
        votes = [ledger.vote(name, *FAULTY) for name in NAMES[:4]]
        votes.append({"member": "eve", "envelope": seal(statement, key("eve")).decode()})
        if holds:
            assert len(check_votes(ledger.now, *FAULTY[:1], {**FAULTY[1], "votes": votes}, 7, root)) == 5
        else:
            ledger.refuses("federation.faulty", {"faulty": 1, "votes": votes}, IdentityError)


def test_votes_in_the_founding_need_not_hold() -> None:
    """None is asked for; but what stands there is true."""
    ledger = Ledger(NAMES[:3], founding=True)
    ledger.refuses("federation.faulty", {"faulty": 1, "votes": ["x"]}, IdentityError, "not one")
    ledger.decide("federation.faulty", {"faulty": 1}, ("ada",))


# changes that nobody may make


def test_somebody_who_was_revoked_or_a_key_comes_back() -> None:
    ledger = Ledger()
    ledger.decide("member.revoke", {"member": "eve", "reason": "left"}, NAMES[:4])
    number, four = ledger.now.number, NAMES[:4]
    assert (ledger.now.quorum, ledger.now.revoked) == (3, frozenset({"eve"}))
    bodies = {
        "'eve' was revoked": admission("eve", number, "new", "new"),
        "in use by 'eve'": admission("fay", number, "eve", "fay"),
        "is or was in use by 'eve'": admission("fay", number, "fay", "eve"),
        "'ada' is a member already": admission("ada", number, "new", "new"),
        "in use by 'bob'": admission("fay", number, "bob", "fay"),
    }
    for match, body in bodies.items():
        ledger.refuses("member.admit", ledger.voted("member.admit", body, four), IdentityError, match)
    for name in ("eve", "fay"):
        body = {"member": name, "reason": "?"}
        ledger.refuses("member.revoke", ledger.voted("member.revoke", body, four), IdentityError, "not a member")
    voted = ledger.voted("member.admit", admission("fay", number - 1), four)
    ledger.refuses("member.admit", voted, IdentityError, rf"epoch {number - 1}, but it is epoch {number}")


def test_a_key_to_witness_signs() -> None:
    ledger = Ledger()
    swapped = Member("fay", key("fay").public, key("ada").public)
    body = governance.admission(swapped, 5)
    ledger.refuses("member.admit", ledger.voted("member.admit", body, NAMES), IdentityError, "in use by 'ada'")


def test_a_member_changes_its_keys() -> None:
    ledger = Ledger()
    ledger.decide("member.rotate", admission("ada", 5, "ada-2", "ada"), NAMES[:3])
    assert ledger.now.members["ada"] == member("ada", "ada-2", "ada", 5)
    assert ledger.now.number == 6
    stale = ledger.voted(*FAULTY, NAMES)
    ledger.refuses("federation.faulty", stale, IdentityError, "signature|another key")
    votes = [ledger.vote("ada", *FAULTY, key=key("ada-2")), *(ledger.vote(name, *FAULTY) for name in NAMES[1:])]
    ledger.add("federation.faulty", {"faulty": 1, "votes": votes})


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (admission("ada", 6, "ada", "ada-3"), "was in use by 'ada'"),  # the key that was given up
        (admission("ada", 6, "ada-2", "bob"), "in use by 'bob'"),
        (admission("ada", 6, "ada-2", "ada"), "has these keys already"),
        (admission("fay", 6), "'fay' is not a member"),
    ],
    ids=range(4),
)
def test_a_stolen_key_is_changed_back(body: dict[str, Any], match: str) -> None:
    ledger = Ledger()
    ledger.decide("member.rotate", admission("ada", 5, "ada-2", "ada"), NAMES[:3])
    voted = ledger.voted("member.rotate", body, NAMES[1:])
    ledger.refuses("member.rotate", voted, IdentityError, match)


def test_a_change_leaves_no_quorum() -> None:
    ledger = Ledger(NAMES[:3], 2)
    body = {"member": "cy", "reason": "left"}
    ledger.refuses(
        "member.revoke", ledger.voted("member.revoke", body, NAMES[:3]), GuaranteeError, "2 members of whom 2"
    )
    for faulty in (3, -1):
        voted = ledger.voted("federation.faulty", {"faulty": faulty}, NAMES[:3])
        ledger.refuses("federation.faulty", voted, GuaranteeError, "below the 3 members")
    ledger.decide("federation.faulty", {"faulty": 1}, NAMES[:3])
    ledger.decide("member.revoke", body, NAMES[:3])
    assert ledger.now.quorum == 2
    last = Ledger(NAMES[:1])
    only = {"member": "ada", "reason": "the last"}
    last.refuses("member.revoke", last.voted("member.revoke", only, ("ada",)), GuaranteeError, "0 members")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("federation.faulty", {"faulty": True}), ("federation.faulty", {"faulty": 1.0}), ("federation.faulty", {}),
        ("federation.faulty", {"faulty": 1, "note": "hidden"}), ("member.revoke", {"member": "eve"}),
        ("member.revoke", {"member": 5, "reason": "x"}), ("member.admit", {"member": "fay"}),
        ("member.admit", {**admission("fay", 5), "witness": key("fay", "w").public.to_text("fay")}),
        ("member.admit", {**admission("fay", 5), "member": "gus"}),
        ("member.admit", {**admission("fay", 5), "key": key("fay").public.to_text("gus")}),
        ("federation.edit", {"study": "0" * 64, "edge": ["a"], "change": "add", "reason": "x"}),
        ("federation.edit", {"study": "0" * 64, "edge": ["a", 2], "change": "add", "reason": "x"}),
        ("federation.edit", {"study": "0" * 64, "edge": ["a", "b"], "change": "melt", "reason": "x"}),
        ("federation.edit", {"study": "0" * 64, "edge": ["a", "b"], "change": "add", "reason": "x", "proposer": None}),
        ("federation.edit", {"study": "0" * 64, "edge": ["a", "b"], "change": "add", "reason": "x", "does": 1}),
        ("federation.policy", {"name": "x"}),
        ("federation.policy", {"name": "x", "sha256": "a" * 64, "proposer": "ada"}),
    ],
    ids=range(17),
)  # fmt: skip
def test_a_body_that_is_none_is_voted_on(kind: str, body: dict[str, Any]) -> None:
    ledger = Ledger()
    ledger.refuses(kind, ledger.voted(kind, body, NAMES), IdentityError)
    with pytest.raises(IdentityError):
        governance.describe(kind, body)


def test_the_owner_is_not_told_what_a_motion_does() -> None:
    told = {
        ("member.admit", 0): (admission("fay", 5), ("fay", key("fay").public.id, key("fay", "w").public.id)),
        ("member.rotate", 0): (admission("ada", 5, "ada-2"), ("ada", key("ada-2").public.id)),
        ("member.revoke", 0): ({"member": "eve", "reason": "left"}, ("revoke eve", "left")),
        ("federation.faulty", 0): ({"faulty": 2}, ("from 1 to 2",)),
        ("federation.edit", 0): (
            {"study": "f" * 64, "edge": ["a", "b"], "change": "reverse", "reason": "time"},
            ("reverse", "a -> b", "time", "f" * 12),
        ),
        ("federation.policy", 0): ({"name": "retention", "sha256": "a" * 64}, ("retention", "a" * 64)),
    }
    for (kind, _), (body, words) in told.items():
        said = governance.describe(kind, body, 1)
        assert all(word in said for word in words), said
    with pytest.raises(IdentityError, match="do not vote on"):
        governance.describe("release", {}, 1)


def test_a_member_is_named_for_an_edit_that_it_did_not_propose() -> None:
    """What each voter signs names the proposer; so the proposer's own vote says that it is."""
    kind, body = "federation.edit", {"study": "f" * 64, "edge": ["a", "b"], "change": "reverse", "reason": "time"}
    own = {**body, "proposer": "ada"}
    ledger = Ledger(NAMES[:4], 1)
    ledger.refuses(kind, ledger.voted(kind, own, ("bob", "cy", "dan")), IdentityError, "has no vote of that member")
    borrowed = [ledger.vote("ada", kind, body), *(ledger.vote(name, kind, own) for name in ("bob", "cy", "dan"))]
    ledger.refuses(kind, {**own, "votes": borrowed}, IdentityError, "ada signed something else")
    stranger = {**body, "proposer": "zoe"}
    ledger.refuses(
        kind, ledger.voted(kind, stranger, ("ada", "bob", "cy")), IdentityError, "has no vote of that member"
    )
    ledger.decide(kind, own, ("ada", "bob", "cy"))
    ledger.decide(kind, body, ("bob", "cy", "dan"))
    said = governance.describe(kind, own)
    assert said == f"reverse the edge a -> b (afterwards b -> a) in study {'f' * 12}, proposed by ada: time"
    founding = Ledger(NAMES[:3], 1, founding=True)
    founding.refuses(kind, own, IdentityError, "has no vote of that member")


def test_a_made_up_history_of_changes_is_taken_or_a_true_one_is_not() -> None:
    """Many changes at random, each tried with one vote too few first: the epoch is always that of the entries."""
    import random

    draw = random.Random(7)
    for _ in range(count(3, 60)):
        members = list(NAMES[: draw.randint(2, 5)])
        ledger = Ledger(members, draw.randint(0, len(members) - 1))
        for step in range(8):
            kind, body = _any_change(draw, ledger, members, step)
            voters = draw.sample(members, ledger.now.quorum)
            few = ledger.voted(kind, body, voters[1:])
            with pytest.raises(GuaranteeError):
                ledger.add(kind, few)
            after = ledger.now.number + 1
            try:
                ledger.decide(kind, body, voters)
            except GuaranteeError:
                assert kind != "member.admit"
                continue
            members = sorted(ledger.now.members)
            assert ledger.now.number == after
            assert 1 <= ledger.now.quorum <= len(members)


def _any_change(draw: Any, ledger: Ledger, members: list[str], step: int) -> tuple[str, dict[str, Any]]:
    kind = draw.choice(("member.admit", "member.revoke", "federation.faulty"))
    if kind == "member.admit":
        return kind, admission(f"m{ledger.size}", ledger.now.number)
    if kind == "member.revoke":
        return kind, {"member": draw.choice(members), "reason": f"{step}"}
    return kind, {"faulty": draw.randint(0, 5)}
