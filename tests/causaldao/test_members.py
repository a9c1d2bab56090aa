"""The roster: who may speak, and for which slot."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from causaldao.errors import GuaranteeError, IdentityError
from causaldao.members import Member, Roster, quorum, read_witness, witness_text
from causaldao.signing import SigningKey, Statement, digest, seal

KEYS = {name: SigningKey.from_seed(name.encode().ljust(32, b".")) for name in ("ada", "bob", "eve")}
WITNESSES = {name: SigningKey.from_seed(name.encode().ljust(32, b"w")) for name in KEYS}
ADA, BOB, EVE = (Member(name, key.public, WITNESSES[name].public) for name, key in KEYS.items())
ROSTER = Roster("north", (ADA, BOB), 1)


def _envelope(key: SigningKey = KEYS["ada"], **changes: Any) -> bytes:
    fields = {
        "federation": "north", "study": "s", "round": 3, "member": "ada", "kind": "update", "body": {}, "nonce": "n",
        "parent": "", "digest": digest({}),
    }  # fmt: skip
    return seal(Statement(**{**fields, **changes}), key)


def test_a_member_is_not_heard() -> None:
    assert ROSTER.open(_envelope(), study="s", round=3, kind="update").member == "ada"
    assert ROSTER.names == ("ada", "bob")


@pytest.mark.parametrize("changes", [
    {"federation": "south"}, {"study": "t"}, {"round": 2}, {"kind": "ballot"}, {"round": 4}, {"kind": "refusal.update"},
])  # fmt: skip
def test_an_answer_to_another_question_is_replayed(changes: dict[str, Any]) -> None:
    with pytest.raises(IdentityError, match=re.escape(f"signed {next(iter(changes))} ")):
        ROSTER.open(_envelope(**changes), study="s", round=3, kind="update")


def test_a_stranger_or_another_members_key_is_heard() -> None:
    with pytest.raises(IdentityError, match="not a member"):
        ROSTER.open(_envelope(KEYS["eve"], member="eve"), study="s", round=3, kind="update")
    for key in (KEYS["bob"], KEYS["eve"]):
        with pytest.raises(IdentityError, match="signature"):
            ROSTER.open(_envelope(key), study="s", round=3, kind="update")


def test_one_institution_has_two_votes() -> None:
    others = [
        ADA, replace(BOB, key=ADA.key), replace(BOB, name="ada"), replace(BOB, witness=ADA.witness),
        replace(BOB, key=ADA.witness), replace(BOB, witness=ADA.key),
    ]  # fmt: skip
    for other in others:
        with pytest.raises(IdentityError, match="one vote"):
            Roster("north", (ADA, other))


def test_a_key_that_signs_witnesses() -> None:
    with pytest.raises(IdentityError, match="to sign and to witness: it needs two keys"):
        Member("ada", ADA.key, ADA.key)


def test_a_witness_is_another_members() -> None:
    assert [ROSTER.member(name).witness for name in ("ada", "bob")] == [
        WITNESSES[name].public for name in ("ada", "bob")
    ]


@pytest.mark.parametrize("faulty", [-1, 2, 3])
def test_a_fault_bound_that_no_roster_bears(faulty: int) -> None:
    with pytest.raises(GuaranteeError, match=re.escape("[0, 1]")):
        Roster("north", ROSTER.members, faulty)


def test_a_member_is_read_under_another_name() -> None:
    member = replace(ADA, epoch=4)
    assert Member.from_json(member.to_json()) == member
    for change in ({"name": "bob"}, {"key": BOB.key.to_text("bob")}, {"witness": BOB.witness_text}):
        with pytest.raises(IdentityError, match="'bob'"):
            Member.from_json({**member.to_json(), **change})
    with pytest.raises(IdentityError):
        replace(ADA, name="../ada")


def test_a_key_of_another_kind_is_taken_for_a_witness() -> None:
    """Types 0x01 and 0x04 sign different texts: a key's text says which."""
    assert read_witness(ADA.witness_text) == ("ada", ADA.witness)
    assert witness_text("ada", ADA.witness) == ADA.witness_text
    for text in (ADA.witness.to_text("ada"), ADA.witness_text[:-4], "", "ada"):
        with pytest.raises(IdentityError):
            read_witness(text)
    with pytest.raises(IdentityError):
        Member.from_json({**ADA.to_json(), "key": witness_text("ada", ADA.key)})


def test_two_quorums_need_not_share_an_honest_member() -> None:
    for n in range(1, 40):
        for f in range((n + 2) // 3):
            q = quorum(n, f)
            assert 2 * q - n > f
            assert 2 * (q - 1) - n <= f
