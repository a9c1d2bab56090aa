"""The edits that members voted: each must fit the graph that it was voted on, and what they make of it is computed.

An entry of an edit holds the votes of a quorum, its proposer's among them: that is the verifier's to check. Here its
sense is: see `causaldao.edits`. The study's effects are history and stay; those that the graph decides (method
"moments", adjustment "auto") are read anew from the same pooled evidence under the edited graph. It is post-processing:
no privacy is spent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from causaldao.audit.case import Audit, Case, ErasedError, Fault
from causaldao.consensus import Consensus
from causaldao.decisions import estimate_effects
from causaldao.edits import KIND, Standing, standing
from causaldao.enrolment import visible

_LONGEST = 10_000  # characters of a line
RESTS = "these rest on a graph that members edited by vote, not on the evidence alone"


def voted(case: Case, result: Audit) -> None:
    lines = list(case.lines(KIND))
    adopted = case.one("adopt")
    early = [line for line in lines if adopted is None or line.index < adopted.index]
    result.faults += [Fault(line.index, "it edits a graph before one was adopted") for line in early]
    if adopted is None or len(early) == len(lines):
        return
    case.last = adopted.index
    found = standing(case.given.hash, case.entries)
    for one, step in zip(found.voted, found.edited.steps, strict=True):
        if step.problem:
            what = f"the edit to {one.edit.change} {one.edit.cause} -> {one.edit.effect}"
            result.faults.append(
                Fault(one.index, f"{what} does not fit the graph that it was voted on: {step.problem}")
            )
        elif one.does not in (None, step.digest):
            does = "; ".join([f"{step.before} becomes {step.after}", *step.also])
            result.faults.append(Fault(one.index, f"the edit does something else than what was voted on: {does}"))
    made = [(one, step) for one, step in zip(found.voted, found.edited.steps, strict=True) if not step.problem]
    words = "; ".join(f"{step.before} became {step.after} ({_whose(one.proposer)})" for one, step in made)
    result.checked.append(f"{_count(len(made), 'edit')} voted by the members: {words or 'none that fits'}")
    try:
        result.edited.append(told(case, found))
    except ErasedError as error:
        result.edited.append({**found.to_json(), "effects": None})
        result.unchecked.append(f"effects under the edited graph: {error}")


def told(case: Case, found: Standing) -> dict[str, Any]:
    """The edited graph (`causaldao.edits.Standing.to_json`) with the ``effects`` that it decides: each question, the
    answers ``adopted`` with the study, and those read anew under the edited graph.

    Raises
    ------
    ErasedError
        the evidence of a member was erased.
    """
    asked = [spec for spec in case.given.effects if spec.method == "moments" and spec.adjustment == "auto"]
    consensus, effects = Consensus(found.edited.pattern, found.edited.dag, ()), []
    for spec in asked:
        question = {"treatment": spec.treatment, "outcome": spec.outcome}
        old = [effect for effect in found.effects if all(effect[name] == question[name] for name in question)]
        new = estimate_effects(case.given, case.answers[0], consensus, case.answers[1], case.among_holders, [spec])
        effects.append({**question, "adopted": old, "edited": new, "note": RESTS})
    return {**found.to_json(), "effects": effects}


def text(told: Mapping[str, Any]) -> Iterator[str]:
    """What `told` says, for people: the edits, the graph after them, and the effects next to the old ones."""
    return (visible(line, _LONGEST) for line in _text(told))


def _text(told: Mapping[str, Any]) -> Iterator[str]:
    study, edits = told["study"], told["edits"]
    yield f"graph of study {study['name']} ({study['hash'][:12]}) after {_count(len(edits), 'edit')} by vote:"
    for edit in edits:
        change = f"  entry {edit['index']}: {edit['change']} {' -> '.join(edit['edge'])}, {_whose(edit['proposer'])}"
        yield f"{change}: {edit['reason']} (votes: {', '.join(edit['votes'])})"
        also = f"; with it {', '.join(edit['also'])}" if edit["also"] else ""
        yield (
            f"    NOT made: {edit['problem']}"
            if edit["problem"]
            else f"    {edit['before']} became {edit['after']}{also}"
        )
    for edge in told["graph"]["pattern"]["edges"]:
        yield f"  {edge['from']} {'->' if edge['marks'] == ['-', '>'] else '-'} {edge['to']}"
    if told["effects"] is None:
        yield "effects under the edited graph: none, since evidence that they would rest on was erased"
    if told["effects"]:
        yield f"effects read anew under the edited graph, from the same evidence (no privacy is spent); {RESTS}:"
    for effect in told["effects"] or ():
        yield f"  {effect['treatment']} on {effect['outcome']}: {_answers(effect['edited'])}"
        yield f"    under the adopted graph: {_answers(effect['adopted'])}"


def _answers(effects: list[dict[str, Any]]) -> str:
    said = [
        f"no answer ({effect['no_answer']})"
        if effect["estimate"] is None
        else f"{effect['estimate']:.4g} [{effect['interval'][0]:.4g}, {effect['interval'][1]:.4g}] {effect['unit']}"
        f", adjusted for {', '.join(effect['adjustment']) or 'nothing'}"
        + (" (the graph has no causal path)" if effect["graph_implies_zero"] else "")
        for effect in effects
    ]
    return "; or ".join(said) or "none"


def _whose(proposer: str | None) -> str:
    return f"proposed by {proposer}" if proposer else "put by the operator"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


CHECKS = (voted,)
