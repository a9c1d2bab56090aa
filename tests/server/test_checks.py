"""Sums that no honest member gives: what the coordinator must not take, and what it keeps as a proof."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from causaldao.budget import plan
from causaldao.members import Member, Roster
from causaldao.messages import Parcel, Shape, make
from causaldao.server import checks
from causaldao.server.replies import Checker, Question
from causaldao.signing import SigningKey
from causaldao.wire import to_records
from tests.causaldao.test_estimates import FAULTY, found, honest, released

NAMES = tuple(sorted(released()))
KEYS = {name: SigningKey.from_seed(name.encode().ljust(32, b"k")) for name in NAMES}
ROSTER = Roster(
    "fed",
    tuple(
        Member(name, KEYS[name].public, SigningKey.from_seed(name.encode().ljust(32, b"w")).public) for name in NAMES
    ),
    2,
)
BASE = "b" * 64
FOUND = found(released(), FAULTY)
SUMS = honest(FOUND[0], FAULTY)


def sums(member: str, values: NDArray[Any], *, base: str = BASE, key: SigningKey | None = None, **said: Any) -> Parcel:
    given: dict[str, Any] = {"kind": "effects", "round": 0, "study": FAULTY.hash, "member": member, **said}
    return make(
        key or KEYS[member], federation="fed", body={"base": base}, nonce="n", parent="", tensors={"sums": values},
        **given,
    )  # fmt: skip


def checker() -> Checker:
    question = Question("effects", FAULTY.hash, 0, Parcel(b""), {"sums": Shape("int64", (1, 3))})
    return Checker(ROSTER, question, checks.effects(BASE, FOUND, plan(FAULTY).effects_sigma), None)


def brought(to: Checker, parcel: Parcel, member: str) -> None:
    message: Any = SimpleNamespace(content=to_records(parcel), has_error=lambda: False)
    to.take(message, NAMES.index(member), member)


def test_honest_sums_are_not_taken() -> None:
    taken = checker()
    for name in NAMES:
        brought(taken, sums(name, SUMS[name]), name)
        brought(taken, sums(name, SUMS[name]), name)  # again the same
    assert sorted(taken.replies.accepted) == list(NAMES)
    assert taken.replies.rejected == []
    assert taken.replies.equivocations == []


ONE, OTHER = NAMES[:2]
UNFIT: dict[str, tuple[str, Callable[[], Parcel]]] = {
    "more than the records add up to": ("data", lambda: sums(ONE, SUMS[ONE] * 1000)),
    "as much as an integer holds": ("data", lambda: sums(ONE, np.full((1, 3), 2**63 - 1))),
    "squares below zero": ("data", lambda: sums(ONE, SUMS[ONE] * np.array([1, -1, 1]))),
    "sums of another question": ("identity", lambda: sums(ONE, SUMS[ONE], base="c" * 64)),
    "sums of another study": ("identity", lambda: sums(ONE, SUMS[ONE], study="d" * 64)),
    "sums of another round": ("identity", lambda: sums(ONE, SUMS[ONE], round=1)),
    "another's sums": ("identity", lambda: sums(OTHER, SUMS[OTHER])),
    "sums that another signed": ("identity", lambda: sums(ONE, SUMS[ONE], key=KEYS[OTHER])),
    "sums of two effects": ("identity", lambda: sums(ONE, np.vstack([SUMS[ONE]] * 2))),
    "sums of floats": ("identity", lambda: sums(ONE, SUMS[ONE].astype(np.float64))),
    "its evidence": ("identity", lambda: sums(ONE, SUMS[ONE], kind="evidence")),
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_sums_that_do_not_fit_are_taken(unfit: str) -> None:
    code, parcel = UNFIT[unfit]
    taken = checker()
    brought(taken, parcel(), ONE)
    brought(taken, sums(OTHER, SUMS[OTHER]), OTHER)
    assert list(taken.replies.accepted) == [OTHER]
    assert [one.code for one in taken.replies.rejected] == [code]


def test_a_member_that_gives_two_sums_for_one_question_goes_without_proof() -> None:
    taken = checker()
    first, second = sums(ONE, SUMS[ONE]), sums(ONE, SUMS[ONE] + 1)
    brought(taken, first, ONE)
    brought(taken, second, ONE)
    (proof,) = taken.replies.equivocations
    assert (proof.member, proof.first, proof.second) == (ONE, first.envelope, second.envelope)
    assert ONE not in taken.replies.accepted


def test_somebody_who_is_not_asked_is_heard() -> None:
    """Its evidence cannot answer: what it gives for the effect is of no function that anybody knows."""
    (one,) = FOUND
    without = type(one)({name: member for name, member in one.members.items() if name != ONE}, one.aside)
    question = Question("effects", FAULTY.hash, 0, Parcel(b""), {"sums": Shape("int64", (1, 3))})
    for values, accepted in ((SUMS[ONE], []), (np.zeros((1, 3), dtype=np.int64), [ONE])):
        taken = Checker(ROSTER, question, checks.effects(BASE, (without,), plan(FAULTY).effects_sigma), None)
        brought(taken, sums(ONE, values), ONE)
        assert list(taken.replies.accepted) == accepted
