"""The audit: recompute from a bundle what the coordinator decided, and name what does not follow.

`ledger verify` shows that nothing was altered after it was signed; it cannot show that what was signed is right. Here
the pool, the proposal, each ballot, the adoption, the effects, the Gram-rule aggregates and the losses are computed
again from what the members said, and the study must have taken its course: who was at the roll call, spoke, voted and
spent is who signed. Limits, said plainly: an aggregate is checked from the logged Gram matrix to its weights (with the
updates in the bundle, from the updates to the Gram matrix), not to the model that it makes; a coordinate rule without
the updates is reported as not checked, and so is a member who is missing with no complaint that says why: that a word
was withheld can be known only to the member who gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
import torch

from causaldao.aggregation import RULES, aggregate, weights_from_gram
from causaldao.aggregation.rules import faults_left, require
from causaldao.ballots import Ballot, Mark, Proposal, marks_of, recheck
from causaldao.budget import plan
from causaldao.decisions import (
    answers_needed,
    decide_adoption,
    decide_pool,
    decide_proposal,
    estimate_effects,
    first_model,
    moved,
    update_size,
)
from causaldao.errors import CausalDAOError, Finding
from causaldao.ledger.verify import Line, Report
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.pool import Pool
from causaldao.signing import Statement, Tensors, digest, peek
from causaldao.study import Study

TOLERANCE = 1e-6  # relative: linear algebra of another machine may differ in the last digits, a decision may not
ROUNDING = 1e-9  # absolute, for values that cancel to about zero
BEFORE, AFTER = (
    ("proposed", "approved", "roll-call", "evidence", "ballots", "adopted"),
    ("evaluated", "released", "closed"),
)
ORDER = (
    "study.approved",
    "evidence",
    "pool",
    "ballot",
    "study.ballots",
    "adopt",
    "update",
    "release",
)  # none before what it rests on
DECISIONS = {"evidence": "pool", "adopted": "adopt", "training": "aggregate", "released": "release"}


@dataclass(frozen=True)
class Fault:
    """One thing that does not follow: the entry that holds it, what it is and whose it is."""

    index: int
    what: str

    def __str__(self) -> str:
        return f"entry {self.index}: {self.what}"


@dataclass
class Audit:
    """What was recomputed, what could not be, and the faults."""

    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def require(self) -> None:
        """Raise a Finding that lists every fault, if there is one."""
        if self.faults:
            raise Finding(
                f"The audit found {len(self.faults)} decision(s) that do not follow from what was recorded:",
                problems=[str(fault) for fault in self.faults],
            )


def audit(report: Report) -> Audit:
    """Audit a verified bundle. Never raises for what the bundle holds: everything wrong becomes a fault."""
    result = Audit()
    case = _Case(report)
    try:
        known = case.study is not None
    except CausalDAOError:
        known = False
    if not known:
        result.faults.append(Fault(case.last, "no entry carries the study that its hash names"))
        return result
    for check in (_course, _people, _budget, _pool, _proposal, _ballots, _adoption, _aggregates, _losses):
        try:
            check(case, result)
        except (CausalDAOError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            line = case.last
            result.faults.append(Fault(line, f"{check.__name__.strip('_')} cannot be recomputed: {error}"))
    return result


@dataclass
class _Case:
    """The entries of a study, found by kind; ``last`` is the entry being looked at."""

    report: Report
    last: int = 0
    model: Tensors | None = None  # as recomputed so far; None once it cannot be told from rounding

    def lines(self, kind: str) -> Iterator[Line]:
        for line in self.report.entries:
            if line.kind == kind:
                self.last = line.index
                yield line

    def words(self, kind: str, round: int | None = None) -> dict[str, tuple[Line, Statement]]:
        """What members said under a kind, by member: the entry and the statement, which must be one of that kind, round
        and study; the verifier has checked the signature."""
        entries = self.lines("privacy.spend" if kind == "evaluation" else kind)
        found = {}
        for line in [entry for entry in entries if "envelope" in entry.body]:
            self.last, body = line.index, line.body
            said = peek(body["envelope"].encode())
            if (said.member, said.kind, said.round, said.study) != (
                body["member"],
                kind,
                body["round"],
                self.given.hash,
            ):
                raise ValueError(
                    f"{said.member} signed {said.kind!r} of round {said.round}: another word than the entry's"
                )
            if round in (None, said.round):
                found[said.member] = (line, said)
        return found

    def one(self, kind: str) -> Line | None:
        """The only entry of a kind; two are a fault of their own."""
        found = list(self.lines(kind))
        if len(found) > 1:
            raise ValueError(f"{len(found)} entries of kind {kind!r}, expected one")
        return found[0] if found else None

    @cached_property
    def study(self) -> Study | None:
        for line in self.lines("study.proposed"):
            study = Study.from_mapping(line.body.get("document"))
            return study if study.hash == line.body["study"] else None
        return None

    @property
    def given(self) -> Study:
        assert self.study is not None
        return self.study

    @cached_property
    def evidence(self) -> dict[str, Evidence]:
        study = self.given
        sigma = plan(study).sigma
        found = {}
        for line in self.lines("evidence"):
            (entry,) = line.body["manifest"]
            triangle = np.frombuffer(self.report.payloads[entry["sha256"]], dtype="<i8")
            found[str(line.body["member"])] = Evidence.from_release(triangle, study.dictionary, sigma)
        return found

    @cached_property
    def pool(self) -> Pool:
        return decide_pool(self.given, self.evidence, len(self.report.members))

    @cached_property
    def proposal(self) -> Proposal | None:
        line = self.one("pool")
        return None if line is None else Proposal.from_json(line.body["proposal"])

    @cached_property
    def ballots(self) -> dict[str, tuple[int, Ballot]]:
        """By member: the entry and the ballot its member signed; those that are no ballots on the proposal left out."""
        assert self.proposal is not None
        found = {}
        for member, (line, said) in self.words("ballot").items():
            with suppress(CausalDAOError):
                found[member] = (line.index, Ballot.from_json(said.body, self.proposal))
        return found


def _course(case: _Case, result: Audit) -> None:
    """The states follow one another as the study says, each after the decision it stands for;
    nothing is of another study.
    """
    study, states = case.given, [line for line in case.report.entries if line.kind.startswith("study.")]
    states = [line for line in states if line.kind != "study.aborted"]  # resumed later, or the last word
    rounds = [f"training {number}" for number in range(1, study.training.rounds + 1)]
    for line, expected in zip_longest(states, [*BEFORE, *rounds, *AFTER]):
        if line is None:
            break
        state = line.kind.removeprefix("study.")
        found = f"training {line.body['round']}" if state == "training" else state
        if found != expected:
            result.faults.append(Fault(line.index, f"the study is {found}, where its course has {expected}"))
            break
        if state in DECISIONS and not _decided(case, line, DECISIONS[state]):
            result.faults.append(
                Fault(line.index, f"the study is {found}, but no {DECISIONS[state]!r} before it says how")
            )
    for line in case.report.entries:
        if line.body.get("study", study.hash) != study.hash:
            result.faults.append(Fault(line.index, f"it is of study {line.body['study']!r}, not of {study.hash}"))
    for earlier, later in pairwise(ORDER):
        first = min(
            (line.index for kind in ORDER[ORDER.index(later) :] for line in case.lines(kind)), default=case.report.size
        )
        late = [line.index for line in case.lines(earlier) if line.index > first]
        result.faults += [
            Fault(index, f"the {earlier!r} comes after entry {first}, which rests on it") for index in late
        ]
    result.checked.append(f"course of the study, {len(states)} states")


def _decided(case: _Case, state: Line, kind: str) -> bool:
    found = [line for line in case.lines(kind) if line.index < state.index]
    return any("round" not in state.body or line.body["round"] == state.body["round"] for line in found)


def _people(case: _Case, result: Audit) -> None:
    """The roll call is those who signed it; evidence, ballots and training are theirs, and enough of them spoke."""
    called, present = case.one("study.roll-call"), _approvals(case, result)
    if called is None:
        return
    if list(called.body["present"]) != present:
        what = f"the roll call says {list(called.body['present'])}, but {present} signed it"
        result.faults.append(Fault(called.index, what))
    for name in case.report.unadmitted:
        result.unchecked.append(f"why {name}, whom the policy names, was never admitted: ask {name}")
    voted = case.one("study.ballots")
    _enough(case, result, "rollcall", 0, called, set(present), set(case.report.members))
    allowed = set(present)
    for kind, round, decided in _answered(case):
        words = case.words(kind, round)
        for line, said in words.values():
            if said.member not in allowed:
                result.faults.append(
                    Fault(line.index, f"{said.member} gives {kind}, but had no part in what came before")
                )
        _enough(case, result, kind, round, decided, set(words), allowed)
        allowed = set(words) if kind == "evidence" else allowed
    if voted is not None and list(voted.body["voters"]) != sorted(case.words("ballot")):
        what = f"it says that {list(voted.body['voters'])} voted, but the ballots are of {sorted(case.words('ballot'))}"
        result.faults.append(Fault(voted.index, what))
    result.checked.append(f"roll call of {len(present)} members, and who spoke after it")


def _answered(case: _Case) -> Iterator[tuple[str, int, Line]]:
    """Each question after the roll call that a decision rests on: kind, round, and the entry of the decision."""
    for kind, decision in (("evidence", "pool"), ("ballot", "adopt")):
        line = case.one(decision)
        if line is not None:
            yield kind, 0, line
    for kind, decision in (("update", "aggregate"), ("evaluation", "study.training")):
        for line in list(case.lines(decision)):
            yield kind, int(line.body["round"]), line


def _enough(case: _Case, result: Audit, kind: str, round: int, decided: Line, spoke: set[str], asked: set[str]) -> None:
    """Enough members answered, and of each that did not a complaint says why; else its silence is the coordinator's."""
    needed, members = answers_needed(case.given, len(case.report.members)), len(case.report.members)
    if len(spoke) < needed:
        what = f"it rests on {kind} of {len(spoke)} members; {needed} are needed of {members}"
        result.faults.append(Fault(decided.index, what))
    complaints = {
        line.body["member"]
        for line in case.lines("complaint")
        if (line.body["kind"], line.body["round"]) == (kind, round)
    }
    named = complaints | {line.body["member"] for line in case.lines("equivocation")}
    for member in sorted(asked - spoke - named):
        result.unchecked.append(
            f"why there is no {kind} of {member} in round {round}: no complaint says so; ask {member}"
        )
    case.last = decided.index


def _approvals(case: _Case, result: Audit) -> list[str]:
    """Who signed the roll call of this study."""
    line, present = case.one("study.approved"), []
    for approval in [] if line is None else line.body["approvals"]:
        said = peek(approval["envelope"].encode())
        if (said.kind, said.round, said.study, said.member) != ("rollcall", 0, case.given.hash, approval["member"]):
            result.faults.append(
                Fault(case.last, f"the approval of {approval['member']} is not a word of its on this study")
            )
        present.append(said.member)
    return sorted(present)


def _budget(case: _Case, result: Audit) -> None:
    """No member was asked for more than the study's plan allows, and each release is accounted."""
    study, spent = case.given, dict[str, list[tuple[str, int]]]()
    for line in case.lines("privacy.spend"):
        slots = spent.setdefault(line.body["member"], [])
        if (line.body["kind"], line.body["round"]) in slots or not _planned(study, line.body):
            result.faults.append(Fault(line.index, f"the spending of {line.body['member']} is not in the study's plan"))
        slots.append((line.body["kind"], line.body["round"]))
    for kind in ("evidence", "update"):
        for line in case.lines(kind):
            if (kind, line.body["round"]) not in spent.get(line.body["member"], []):
                result.faults.append(
                    Fault(line.index, f"the {kind} of {line.body['member']} is not in its privacy account")
                )
    result.checked.append(f"privacy spending of {len(spent)} members against the study's plan")


def _planned(study: Study, body: Mapping[str, Any]) -> bool:
    planned = plan(study)
    spend = {"evidence": planned.evidence, "update": planned.training, "evaluation": planned.evaluation}.get(
        body["kind"]
    )
    rounds = (0,) if body["kind"] == "evidence" else range(1, study.training.rounds + 1)
    return spend is not None and body["round"] in rounds and all(body[k] == v for k, v in vars(spend).items())


def _pool(case: _Case, result: Audit) -> None:
    line = case.one("pool")
    if line is None:
        return
    wrong = _differences(line.body["pool"], case.pool.to_json())
    result.checked.append(f"pool of {len(case.evidence)} members' evidence")
    if wrong:
        result.faults.append(Fault(line.index, f"the pool does not follow from the evidence: {wrong}"))


def _proposal(case: _Case, result: Audit) -> None:
    line = case.one("pool")
    if line is None:
        return
    expected = decide_proposal(case.given, case.pool)
    assert case.proposal is not None
    pattern, ties = case.proposal.pattern, set(expected.near_ties)
    differing = {Mark(pair).key for pair in pattern.skeleton() ^ expected.pattern.skeleton()}
    if differing and differing <= ties:
        what = f"proposal: whether {', '.join(sorted(differing))} hangs on less than 1e-6, and is taken as recorded"
        result.unchecked.append(what)
        expected = Proposal(pattern, marks_of(pattern, case.pool.evidence), expected.near_ties)
    else:
        result.checked.append("proposal by discovery in the pool")
    wrong = _differences(line.body["proposal"], expected.to_json())
    if wrong:
        result.faults.append(Fault(line.index, f"the proposal does not follow from the pool: {wrong}"))


def _ballots(case: _Case, result: Audit) -> None:
    proposal = case.proposal
    if proposal is None:
        return
    for member, (line, _) in case.words("ballot").items():
        if member not in case.ballots:
            result.faults.append(Fault(line.index, f"the ballot of {member} is none on the recorded proposal"))
    for member, (index, ballot) in case.ballots.items():
        if member not in case.evidence:
            continue  # named by `_people`
        wrong = recheck(ballot, proposal, case.evidence[member], case.given.consensus.level)
        if wrong:
            result.faults.append(
                Fault(index, f"the ballot of {member} does not follow from its evidence on {', '.join(wrong)}")
            )
    result.checked.append(f"{len(case.ballots)} ballots against their voters' evidence")


def _adoption(case: _Case, result: Audit) -> None:
    line = case.one("adopt")
    called = case.one("study.roll-call")
    if line is None or called is None or case.proposal is None:
        return
    ballots = {member: ballot for member, (_, ballot) in case.ballots.items()}
    consensus = decide_adoption(case.given, case.proposal, ballots, len(called.body["present"]))
    effects = estimate_effects(case.given, case.pool.evidence, consensus, case.pool.bounds)
    result.checked.append("adoption by the ballots, and the effects")
    case.last = line.index
    wrong = _differences(line.body["consensus"], consensus.to_json())
    if wrong:
        result.faults.append(Fault(line.index, f"the adoption does not follow from the ballots: {wrong}"))
    if len(line.body["effects"]) != len(effects):
        result.faults.append(
            Fault(line.index, f"it has {len(line.body['effects'])} effects, the pool gives {len(effects)}")
        )
    for recorded, expected in zip(line.body["effects"], effects, strict=False):
        # an effect may be small in its units: what counts as zero is measured by its own standard error
        wrong = _differences(recorded, expected, rounding=ROUNDING * (expected["standard_error"] or 1.0))
        if wrong:
            result.faults.append(Fault(line.index, f"the effects do not follow from the pool: {wrong}"))
    released = case.one("release")
    if released is not None and released.body["dag"] != line.body["consensus"]["dag"]:
        result.faults.append(Fault(released.index, "the released graph is not the adopted one"))


def _aggregates(case: _Case, result: Audit) -> None:
    model = None
    for line in list(case.lines("aggregate")):
        case.last = line.index
        if model is None:
            _start(case, line, result)
        for wrong in _aggregate_faults(case, line, model):
            result.faults.append(Fault(line.index, f"the aggregate of round {line.body['round']} {wrong}"))
        model = line.body["result"]
        _result(case, line, result)
    released = case.one("release")
    if released is not None and model is not None and released.body["model"] != model:
        result.faults.append(Fault(released.index, "the released model is not the result of the last aggregate"))


def _result(case: _Case, line: Line, result: Audit) -> None:
    """How far an aggregate could be followed: to its weights, or with the updates to the model that came of it."""
    what, rule, updates = f"aggregate of round {line.body['round']}", RULES[line.body["rule"]], _updates(case, line)
    if updates is None:
        case.model = None
        needs = f"{what}: {rule.name} needs the updates (--with-updates)"
        (result.unchecked if rule.weigh is None else result.checked).append(needs if rule.weigh is None else what)
        return
    if case.model is not None:
        case.model = moved(case.model, aggregate(updates, rule, line.body["faulty"]).vector)
    if case.model is not None and digest(case.model) == line.body["result"]:
        result.checked.append(f"{what}, from the updates to the model")
        return
    case.model = None
    result.unchecked.append(f"{what}: the model that came of it has another digest, by rounding elsewhere or by design")


def _start(case: _Case, line: Line, result: Audit) -> None:
    """The first round starts from the linear solution of the pool.
    A digest has no tolerance, so another is no proof.
    """
    adopted = case.one("adopt")
    case.last = line.index
    if adopted is None:
        return
    dag = CausalGraph.from_json(adopted.body["consensus"]["dag"])
    first = first_model(case.given, case.pool.evidence, dag).state()[0]
    if line.body["base"] == digest(first):
        case.model = first
        result.checked.append("the model that training starts from")
    else:
        result.unchecked.append(
            "the model that training starts from: here it has another digest, "
            "by rounding on another machine or by design"
        )


def _aggregate_faults(case: _Case, line: Line, before: str | None) -> Iterator[str]:
    body, study = line.body, case.given
    members, answered = len(case.report.members), len(body["members"])
    faulty = faults_left(study.aggregation.rule, members, study.consensus.faulty, answered)
    if (body["rule"], body["faulty"]) != (study.aggregation.rule, faulty):
        yield "was not made by the study's rule and fault bound"
    if before is not None and body["base"] != before:
        yield "starts from another model than the round before ended with"
    said = case.words("update", body["round"])
    case.last = line.index
    require(body["rule"], len(said), body["faulty"])
    if sorted(said) != list(body["members"]):
        yield f"is over {list(body['members'])}, but the recorded updates are of {sorted(said)}"
    for member, (_, update) in sorted(said.items()):
        if update.body.get("base") != body["base"]:
            yield f"uses an update that {member} made against another model"
    updates = _updates(case, line)
    if updates is not None:
        for member, row in zip(sorted(said), updates.double().norm(dim=1).tolist(), strict=True):
            if _differences(said[member][0].body["norm"], row):
                yield f"has an update of {member} under another norm than its own"
    yield from _weight_faults(case, line)


def _weight_faults(case: _Case, line: Line) -> Iterator[str]:
    body, rule = line.body, RULES[line.body["rule"]]
    gram = torch.tensor(body["gram"], dtype=torch.float64)
    if rule.weigh is not None:
        expected = weights_from_gram(gram, rule, body["faulty"])
        if _differences(body["weights"], expected.tolist()):
            yield "has weights that do not follow from its Gram matrix"
        excluded = [name for name, weight in zip(body["members"], expected.tolist(), strict=True) if weight == 0]
        if excluded != list(body["excluded"]):
            yield f"excludes {list(body['excluded'])}, its Gram matrix excludes {excluded}"
    elif body["weights"] is not None or list(body["excluded"]):
        yield f"has weights or exclusions, but {rule.name} works on coordinates and has none"
    updates = _updates(case, line)
    if updates is not None and _differences(body["gram"], aggregate(updates, rule, body["faulty"]).gram.tolist()):
        yield "has a Gram matrix that is not that of the recorded updates"


def _losses(case: _Case, result: Audit) -> None:
    """Each round's loss is the median of what the members released on the round's own model, within [0, L]."""
    models = {line.body["round"]: line.body["result"] for line in case.lines("aggregate")}
    for state in list(case.lines("study.training")):
        words = case.words("evaluation", state.body["round"])
        case.last = state.index
        values = [
            float(np.frombuffer(case.report.payloads[line.body["manifest"][0]["sha256"]], dtype="<f8")[0])
            for line, _ in words.values()
        ]
        expected = float(np.clip(np.median(values), 0.0, case.given.privacy.loss_bound)) if values else None
        if _differences(state.body["loss"], expected):
            what = f"the loss of round {state.body['round']} is {state.body['loss']!r}, the members' give {expected!r}"
            result.faults.append(Fault(state.index, what))
        for line, said in words.values():
            if said.body.get("base") != models.get(state.body["round"]):
                result.faults.append(Fault(line.index, f"{said.member} evaluated another model than the round's"))
        result.checked.append(f"loss of round {state.body['round']}")


def _updates(case: _Case, line: Line) -> torch.Tensor | None:
    """The (n, k) updates of a round, if the bundle carries them."""
    rows, here = [], case.last
    for update in list(case.lines("update")):
        if update.body["round"] == line.body["round"]:
            (entry,) = update.body["manifest"]
            data = case.report.payloads.get(entry["sha256"])
            rows.append(None if data is None else np.frombuffer(data, dtype="<f4"))
    case.last = here
    if any(row is None or row.shape != (update_size(case.given),) for row in rows):
        return None
    return torch.from_numpy(np.stack([row for row in rows if row is not None]).copy())


def _differences(recorded: Any, expected: Any, path: str = "", rounding: float = ROUNDING) -> str:
    """Where two JSON values differ beyond the tolerance of floating point; "" if they do not."""
    finders: dict[type, Callable[[], Iterator[str]]] = {
        dict: lambda: (_differences(recorded.get(k), v, f"{path}.{k}", rounding) for k, v in expected.items()),
        list: lambda: (
            _differences(r, e, f"{path}[{i}]", rounding)
            for i, (r, e) in enumerate(zip(recorded, expected, strict=True))
        ),
    }
    if isinstance(expected, float | int) and not isinstance(expected, bool):
        same = isinstance(recorded, float | int) and bool(np.isclose(recorded, expected, rtol=TOLERANCE, atol=rounding))
        return "" if same else f"{path.lstrip('.')} is {recorded!r}, computed {expected!r}"
    if type(recorded) is not type(expected) or (isinstance(expected, dict | list) and len(recorded) != len(expected)):
        return f"{path.lstrip('.')} has another form than what is computed"
    if type(expected) in finders:
        return next((found for found in finders[type(expected)]() if found), "")
    return "" if recorded == expected else f"{path.lstrip('.')} is {recorded!r}, computed {expected!r}"


__all__ = ["Audit", "Fault", "audit"]
