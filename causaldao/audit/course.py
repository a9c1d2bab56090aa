"""Whether a study took its course: who was to be heard and was, in what order, and what they spent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise, zip_longest
from typing import Any

from causaldao.audit.case import Audit, Case, Fault
from causaldao.budget import Spend, plan
from causaldao.decisions import (
    answers_needed,
    effects_needed,
    graphs_needed,
    require_held,
)
from causaldao.errors import GuaranteeError
from causaldao.ledger.verify import Line
from causaldao.signing import peek
from causaldao.study import Study

BEFORE, AFTER = (
    ("proposed", "approved", "roll-call", "evidence", "ballots", "adopted"),
    ("evaluated", "released", "closed"),
)
LOCAL = ("proposed", "approved", "roll-call", "ballots", "adopted", "released", "closed")  # of a study of local ballots
ORDER = (
    "study.approved",
    "evidence",
    "pool",
    "ballot",
    "study.ballots",
    "adopt",
    "effects",
    "estimate",
    "update",
    "release",
)  # none before what it rests on
# What an entry says, besides "study": the rest of the audit recomputes these and looks at nothing else.
SAYS = {
    "pool": ("pool", "proposal"),
    "adopt": ("consensus", "effects"),
    "estimate": ("base", "asked", "effects"),
    "aggregate": (
        "round", "rule", "faulty", "members", "weights", "excluded", "norms", "base", "result", "gram", "gram_payload",
    ),
    "release": ("model", "dag", "votes"),
    "study.approved": ("approvals",), "study.roll-call": ("present",), "study.evidence": ("noise",),
    "study.ballots": ("voters",), "study.adopted": (), "study.training": ("round", "loss"),
    "study.evaluated": ("rounds",), "study.released": (), "study.closed": ("heard",),
    "study.aborted": ("code", "exit_code", "reason"),
    **dict.fromkeys(("evidence", "ballot", "effects"), ("member", "round", "envelope", "manifest")),
    "update": ("member", "round", "envelope", "manifest", "norm"),
    "privacy.spend": ("member", "kind", "round", *(one.name for one in fields(Spend)), "envelope", "manifest"),
}  # fmt: skip
DECISIONS = {"evidence": "pool", "adopted": "adopt", "training": "aggregate", "released": "release"}


def course(case: Case, result: Audit) -> None:
    """The states follow one another as the study says, each after the decision it stands for."""
    study, states = case.given, [line for line in case.entries if line.kind.startswith("study.")]
    states = [line for line in states if line.kind != "study.aborted"]  # resumed later, or the last word
    rounds = [f"training {number}" for number in range(1, study.training.rounds + 1)]
    for line, expected in zip_longest(states, LOCAL if study.local else [*BEFORE, *rounds, *AFTER]):
        if line is None:
            break
        state = line.kind.removeprefix("study.")
        found = f"training {line.body['round']}" if state == "training" else state
        if found != expected:
            result.faults.append(Fault(line.index, f"the study is {found}, where its course has {expected}"))
            break
        if state == AFTER[0] and study.robust_effects and not _decided(case, line, "estimate"):
            result.faults.append(
                Fault(line.index, "the study asks for effects by members' sums, but none is estimated")
            )
        if state in DECISIONS and not _decided(case, line, DECISIONS[state]):
            result.faults.append(
                Fault(line.index, f"the study is {found}, but no {DECISIONS[state]!r} before it says how")
            )
    for earlier, later in pairwise(ORDER):
        first = min(
            (line.index for kind in ORDER[ORDER.index(later) :] for line in case.lines(kind)), default=case.report.size
        )
        late = [line.index for line in case.lines(earlier) if line.index > first]
        result.faults += [
            Fault(index, f"the {earlier!r} comes after entry {first}, which rests on it") for index in late
        ]
    result.checked.append(f"course of the study, {len(states)} states")


def bodies(case: Case, result: Audit) -> None:
    """No entry says more than its kind does: what nothing is computed of would stand there signed and unchecked."""
    for line in case.entries:
        case.last, also = line.index, ("study", *(("resumed_after",) if line.kind.startswith("study.") else ()))
        if case.given.local and line.kind == "study.ballots":  # the one release of such a study, as evidence else
            also = (*also, "noise")
        if line.kind in SAYS and (odd := sorted(set(line.body) - {*SAYS[line.kind], *also})):
            what = f"the {line.kind!r} also says {', '.join(map(ascii, odd))}, which follows from nothing"
            result.faults.append(Fault(line.index, what))


def _decided(case: Case, state: Line, kind: str) -> bool:
    found = [line for line in case.lines(kind) if line.index < state.index]
    return any("round" not in state.body or line.body["round"] == state.body["round"] for line in found)


def people(case: Case, result: Audit) -> None:
    """The roll call is those who signed it; evidence, ballots and training are theirs, and enough of them spoke."""
    called, present = case.one("study.roll-call"), _approvals(case, result)
    if called is None:
        return
    if list(called.body["present"]) != present:
        what = f"the roll call says {list(called.body['present'])}, but {present} signed it"
        result.faults.append(Fault(called.index, what))
    voted = case.one("study.ballots")
    _enough(case, result, "rollcall", 0, called, set(present), set(case.members))
    try:
        require_held(case.given, case.lacks, present, len(case.members))
    except GuaranteeError as error:
        result.faults.append(Fault(called.index, f"the study went on, and should have ended there: {error}"))
    allowed = set(present)
    for kind, round, decided in _answered(case):
        words = case.words(kind, round)
        asked = set(decided.body["asked"]) & allowed if kind == "effects" else allowed
        for line, said in words.values():
            if said.member not in allowed:
                result.faults.append(
                    Fault(line.index, f"{said.member} gives {kind}, but had no part in what came before")
                )
        _enough(case, result, kind, round, decided, set(words), asked)
        allowed = set(words) if kind == "evidence" else allowed
    if voted is not None and list(voted.body["voters"]) != sorted(case.words("ballot")):
        what = f"it says that {list(voted.body['voters'])} voted, but the ballots are of {sorted(case.words('ballot'))}"
        result.faults.append(Fault(voted.index, what))
    result.checked.append(f"roll call of {len(present)} members, and who spoke after it")


def _answered(case: Case) -> Iterator[tuple[str, int, Line]]:
    """Each question after the roll call that a decision rests on: kind, round, and the entry of the decision."""
    for kind, decision in (("evidence", "pool"), ("ballot", "adopt"), ("effects", "estimate")):
        line = case.one(decision)
        if line is not None:
            yield kind, 0, line
    for kind, decision in (("update", "aggregate"), ("evaluation", "study.training")):
        for line in list(case.lines(decision)):
            yield kind, int(line.body["round"]), line


def _enough(case: Case, result: Audit, kind: str, round: int, decided: Line, spoke: set[str], asked: set[str]) -> None:
    """Enough members answered, and of each that did not a complaint or its revocation says why; else its silence is the
    coordinator's.
    """
    needed, members = answers_needed(case.given, len(case.members)), len(case.members)
    if kind == "effects":  # only those are asked whose evidence can answer
        needed = effects_needed(case.given, len(case.members), len(asked))
    if kind == "ballot" and case.given.local:
        needed = graphs_needed(case.given, len(case.members), len(asked))
    if len(spoke) < needed:
        what = f"it rests on {kind} of {len(spoke)} members; {needed} are needed of {members}"
        result.faults.append(Fault(decided.index, what))
    complaints = {
        line.body["member"]
        for line in case.lines("complaint")
        if (line.body["kind"], line.body["round"]) == (kind, round)
    }
    named = complaints | {line.body["member"] for line in case.lines("equivocation")}
    for member in sorted(asked - spoke - named - case.revoked(decided.index)):
        result.unchecked.append(
            f"why there is no {kind} of {member} in round {round}: no complaint says so; ask {member}"
        )
    case.last = decided.index


def _approvals(case: Case, result: Audit) -> list[str]:
    """Who signed the roll call of this study."""
    line, present = case.one("study.approved"), []
    for approval in [] if line is None else line.body["approvals"]:
        said = peek(approval["envelope"].encode())
        if (said.kind, said.round, said.study, said.member) != ("rollcall", 0, case.given.hash, approval["member"]):
            result.faults.append(
                Fault(case.last, f"the approval of {approval['member']} is not a word of its on this study")
            )
        if said.member in present:  # counted twice it would raise what it takes to oppose, and who has a variable
            result.faults.append(Fault(case.last, f"{said.member} approves the study twice"))
            continue
        present.append(said.member)
    return sorted(present)


def budget(case: Case, result: Audit) -> None:
    """No member was asked for more than the study's plan allows, and each release is accounted."""
    study, spent, called = case.given, dict[str, dict[tuple[str, int], Line]](), case.one("study.roll-call")
    aborted = [line.index for line in case.lines("study.aborted")]
    for line in list(case.lines("privacy.spend")):
        case.last, slots = line.index, spent.setdefault(line.body["member"], {})
        slot = (line.body["kind"], line.body["round"])
        twice = slot in slots and not _word_after_abort(slots[slot], line, aborted)
        if twice or not _planned(study, line.body):
            result.faults.append(Fault(line.index, f"the spending of {line.body['member']} is not in the study's plan"))
        if called is None or line.body["member"] not in called.body["present"]:
            result.faults.append(Fault(line.index, f"{line.body['member']} spends, but is not in the roll call"))
        slots[slot] = slots[slot] if twice else line
    for kind in ("ballot",) if study.local else ("evidence", "effects", "update"):
        for line in case.lines(kind):
            if (kind, line.body["round"]) not in spent.get(line.body["member"], {}):
                result.faults.append(
                    Fault(line.index, f"the {kind} of {line.body['member']} is not in its privacy account")
                )
    result.checked.append(f"privacy spending of {len(spent)} members against the study's plan")


def _word_after_abort(first: Line, second: Line, aborted: Sequence[int]) -> bool:
    """Whether it is one spending in two entries: the study was aborted once it was asked for, and the entry with the
    member's word, which stands nowhere else, came when it went on."""
    between = any(first.index < index < second.index for index in aborted)
    return between and "envelope" in second.body and "envelope" not in first.body


def _planned(study: Study, body: Mapping[str, Any]) -> bool:
    spend = plan(study).of(body["kind"])
    rounds = range(1, study.training.rounds + 1) if body["kind"] in ("update", "evaluation") else (0,)
    return spend is not None and body["round"] in rounds and all(body[k] == v for k, v in vars(spend).items())


CHECKS = (course, bodies, people, budget)
