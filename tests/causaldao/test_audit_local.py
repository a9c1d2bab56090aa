"""The audit of local ballots, against a coordinator that counts falsely and members whose graph cannot be counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from causaldao.graph_ballots import GraphBallot, decide_local_adoption
from causaldao.models.graph import CausalGraph
from causaldao.signing import peek
from tests.causaldao.cases import study
from tests.causaldao.local import WHOLE
from tests.causaldao.test_audit import Case, _named, _of, _simulated

STUDY = study(
    discovery={"evidence": "local"}, training={"rounds": 0}, effects=[], privacy={"split": WHOLE}, aggregation={}
)
EMPTY = CausalGraph.dag([], STUDY.names)
Records = list[dict[str, Any]]
Place = tuple[int, tuple[str, ...]]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _simulated(tmp_path_factory.mktemp("local") / "run", STUDY, 4)


def _body(record: dict[str, Any]) -> dict[str, Any]:
    return dict(peek(record["body"]["envelope"].encode()).body)


def _said(case: Case, **changes: Any) -> Callable[[Records], Place]:
    def change(records: Records) -> Place:
        entry = _of(records, "ballot")
        case.resign(entry, body={**_body(entry), **changes})
        return entry["index"], (entry["body"]["member"],)

    return change


def _tally(case: Case) -> Callable[[Records], Place]:
    def change(records: Records) -> Place:
        entry = _of(records, "adopt")
        entry["body"]["consensus"]["marks"][0]["support"] -= 1
        return entry["index"], ("adoption does not follow", "support")

    return change


def _counted(case: Case, without: int) -> Callable[[Records], Place]:
    """The count of all ballots but some that stand in the ledger."""

    def change(records: Records) -> Place:
        entry = _of(records, "adopt")
        ballots = [record for record in records if record["kind"] == "ballot"][without:]
        graphs = {record["body"]["member"]: GraphBallot.from_json(_body(record), STUDY) for record in ballots}
        entry["body"]["consensus"] = decide_local_adoption(STUDY, graphs, 4).to_json()
        return entry["index"], ("adoption does not follow",)

    return change


def _effects(case: Case) -> Callable[[Records], Place]:
    def change(records: Records) -> Place:
        entry = _of(records, "adopt")
        entry["body"]["effects"] = [{"treatment": "dose"}]
        return entry["index"], ("nothing to read one from",)

    return change


def _renamed(case: Case, kind: str, other: str) -> Callable[[Records], Place]:
    def change(records: Records) -> Place:
        entry = _of(records, kind)
        entry["body"]["kind"] = other
        return entry["index"], ("not in the study's plan",)

    return change


def _released(case: Case) -> Callable[[Records], Place]:
    def change(records: Records) -> Place:
        entry = _of(records, "adopt")
        entry["body"]["consensus"]["dag"] = EMPTY.to_json()
        return _of(records, "release")["index"], ("not the adopted one",)

    return change


def _voters(case: Case) -> Callable[[Records], Place]:
    def change(records: Records) -> Place:
        entry = _of(records, "study.ballots")
        entry["body"]["voters"] = entry["body"]["voters"][1:]
        return entry["index"], ("voted, but the ballots are of",)

    return change


def _noise(case: Case) -> Callable[[Records], Place]:
    def change(records: Records) -> Place:
        entry = _of(records, "study.ballots")
        entry["body"]["noise"] = "os"
        return entry["index"], ("of the noise 'os', and its members signed 'simulated'",)

    return change


CYCLE = [{"from": a, "to": b, "marks": ["-", ">"]} for a, b in (("age", "dose"), ("dose", "pain"), ("pain", "age"))]
FORGED: dict[str, Callable[[Case], Callable[[Records], Place]]] = {
    "a forged tally": _tally,
    "a ballot left out": lambda case: _counted(case, 1),
    "a majority left out": lambda case: _counted(case, 3),
    "effects from nowhere": _effects,
    "another graph released": _released,
    "a voter unnamed": _voters,
    "noise that is said to be drawn in earnest": _noise,
    "a ballot over other variables": lambda case: _said(case, graph=CausalGraph.dag([("x", "y")]).to_json()),
    "a ballot in a circle": lambda case: _said(case, graph={"nodes": list(STUDY.names), "edges": CYCLE}),
    "a ballot against what is known": lambda case: _said(
        case, knowledge={"required": [["age", "pain"]], "forbidden": [], "tiers": {}}, graph=EMPTY.to_json(),
        absent="0",
    ),
    "noise of another kind": lambda case: _said(case, noise="none"),
    "a spend of another kind": lambda case: _renamed(case, "privacy.spend", "evidence"),
}  # fmt: skip


def test_an_honest_count_does_not_pass(case: Case) -> None:
    found = case.forge(lambda records: None)
    assert [str(fault) for fault in found.faults] == []
    assert [what for what in found.unchecked if "nobody can tell" not in what] == []
    assert any("4 ballots as graphs" in what for what in found.checked)


@pytest.mark.parametrize("forgery", FORGED)
def test_what_does_not_follow_passes(forgery: str, case: Case) -> None:
    place: list[Place] = []
    found = case.forge(lambda records: place.append(FORGED[forgery](case)(records)))
    (where,) = place
    _named(found, where[0], *where[1])


def _without(records: Records, *numbers: int) -> Records:
    """The records without some, numbered anew."""
    kept = [record for record in records if record["index"] not in numbers]
    for index, record in enumerate(kept):
        record["index"] = index
    return kept


def test_a_spend_that_is_missing_passes(case: Case) -> None:
    def change(records: Records) -> Records:
        return _without(records, _of(records, "privacy.spend")["index"])

    found = case.forge(change)
    assert ["is not in its privacy account" in str(fault) for fault in found.faults] == [True]


def test_a_ballot_that_vanishes_is_not_missed(case: Case) -> None:
    """From the ledger itself, with the adoption and the voters made anew: only its member can tell, and is named."""
    gone: list[str] = []

    def change(records: Records) -> Records:
        entry = _of(records, "ballot")
        gone.append(entry["body"]["member"])
        _counted(case, 1)(records)
        _of(records, "study.ballots")["body"]["voters"].remove(gone[0])
        return _without(records, entry["index"])

    found = case.forge(change)
    assert found.faults == []
    assert any(f"no ballot of {gone[0]}" in what for what in found.unchecked)


def test_what_a_study_of_local_ballots_never_has_passes(case: Case) -> None:
    def change(records: Records) -> None:
        entry = _of(records, "study.adopted")
        entry["kind"], entry["body"] = "pool", {"study": STUDY.hash, "pool": {}, "proposal": {}}

    found = case.forge(change)
    shown = [str(fault) for fault in found.faults]
    assert any("it has no pool" in text for text in shown)
    assert any("its course has adopted" in text for text in shown)
