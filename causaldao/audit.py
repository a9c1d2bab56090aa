"""The audit: recompute from a bundle what the coordinator decided, and name what does not follow.

`ledger verify` shows that nothing was altered after it was signed; it cannot show that what was signed is right. Here the
pool, the proposal, each ballot, the adoption, the effects and the Gram-rule aggregates are computed again from what the
members said. Limits, said plainly: an aggregate is checked from the logged Gram matrix to its weights (with the updates
in the bundle, from the updates to the Gram matrix and the model too); a coordinate rule without the updates is reported
as not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from causaldao.aggregation import RULES, aggregate, weights_from_gram
from causaldao.ballots import Ballot, Proposal, recheck
from causaldao.budget import plan
from causaldao.decisions import decide_adoption, decide_pool, decide_proposal, estimate_effects, update_size
from causaldao.errors import CausalDAOError, Finding
from causaldao.ledger.verify import Line, Report
from causaldao.models.discovery.evidence import Evidence
from causaldao.pool import Pool
from causaldao.signing import peek
from causaldao.study import Study

TOLERANCE = 1e-6  # relative: linear algebra of another machine may differ in the last digits, a decision may not


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
    if case.study is None:
        result.faults.append(Fault(0, "no entry carries the study that its hash names"))
        return result
    for check in (_budget, _pool, _proposal, _ballots, _adoption, _aggregates):
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

    def lines(self, kind: str) -> Iterator[Line]:
        for line in self.report.entries:
            if line.kind == kind:
                self.last = line.index
                yield line

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
        return decide_pool(self.given, self.evidence)

    @cached_property
    def proposal(self) -> Proposal | None:
        line = self.one("pool")
        return None if line is None else Proposal.from_json(line.body["proposal"])

    @cached_property
    def ballots(self) -> dict[str, tuple[int, Ballot]]:
        """By member: the entry and the ballot its member signed."""
        assert self.proposal is not None
        found = {}
        for line in self.lines("ballot"):
            statement = peek(line.body["envelope"].encode())
            found[statement.member] = (line.index, Ballot.from_json(statement.body, self.proposal))
        return found


def _budget(case: _Case, result: Audit) -> None:
    """No member was asked for more than the study's plan allows."""
    study, spent = case.given, dict[str, list[tuple[str, int]]]()
    for line in case.lines("privacy.spend"):
        slots = spent.setdefault(line.body["member"], [])
        if (line.body["kind"], line.body["round"]) in slots or not _planned(study, line.body):
            result.faults.append(Fault(line.index, f"the spending of {line.body['member']} is not in the study's plan"))
        slots.append((line.body["kind"], line.body["round"]))
    result.checked.append(f"privacy spending of {len(spent)} members against the study's plan")


def _planned(study: Study, body: Mapping[str, Any]) -> bool:
    planned = plan(study)
    spend = {"evidence": planned.evidence, "update": planned.training, "evaluation": planned.evaluation}.get(body["kind"])
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
    result.checked.append("proposal by discovery in the pool")
    if expected.near_ties:
        result.unchecked.append(f"proposal: {len(expected.near_ties)} near-ties taken as recorded")
        return
    wrong = _differences(line.body["proposal"], expected.to_json())
    if wrong:
        result.faults.append(Fault(line.index, f"the proposal does not follow from the pool: {wrong}"))


def _ballots(case: _Case, result: Audit) -> None:
    proposal = case.proposal
    if proposal is None:
        return
    for member, (index, ballot) in case.ballots.items():
        wrong = recheck(ballot, proposal, case.evidence[member], case.given.consensus.level)
        if wrong:
            result.faults.append(Fault(index, f"the ballot of {member} does not follow from its evidence on {', '.join(wrong)}"))
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
    for what, recorded, expected in (
        ("adoption does not follow from the ballots", line.body["consensus"], consensus.to_json()),
        ("effects do not follow from the pool", line.body["effects"], effects),
    ):
        wrong = _differences(recorded, expected)
        if wrong:
            result.faults.append(Fault(line.index, f"the {what}: {wrong}"))
    released = case.one("release")
    if released is not None and released.body["dag"] != line.body["consensus"]["dag"]:
        result.faults.append(Fault(released.index, "the released graph is not the adopted one"))


def _aggregates(case: _Case, result: Audit) -> None:
    model = None
    for line in list(case.lines("aggregate")):
        case.last = line.index
        for wrong in _aggregate_faults(case, line, model):
            result.faults.append(Fault(line.index, f"the aggregate of round {line.body['round']} {wrong}"))
        model = line.body["result"]
        rule = RULES[line.body["rule"]]
        if rule.weigh is None and _updates(case, line) is None:
            result.unchecked.append(f"aggregate of round {line.body['round']}: {rule.name} needs the updates (--with-updates)")
        else:
            result.checked.append(f"aggregate of round {line.body['round']}")
    released = case.one("release")
    if released is not None and model is not None and released.body["model"] != model:
        result.faults.append(Fault(released.index, "the released model is not the result of the last aggregate"))


def _aggregate_faults(case: _Case, line: Line, before: str | None) -> Iterator[str]:
    body, study = line.body, case.given
    if (body["rule"], body["faulty"]) != (study.aggregation.rule, study.consensus.faulty):
        yield "was not made by the study's rule and fault bound"
    if before is not None and body["base"] != before:
        yield "starts from another model than the round before ended with"
    said = {m.body["member"]: m.body for m in case.lines("update") if m.body["round"] == body["round"]}
    case.last = line.index
    if sorted(said) != list(body["members"]):
        yield f"is over {list(body['members'])}, but the recorded updates are of {sorted(said)}"
    for member, update in sorted(said.items()):
        if peek(update["envelope"].encode()).body.get("base") != body["base"]:
            yield f"uses an update that {member} made against another model"
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
    updates = _updates(case, line)
    if updates is not None and _differences(body["gram"], aggregate(updates, rule, body["faulty"]).gram.tolist()):
        yield "has a Gram matrix that is not that of the recorded updates"


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


def _differences(recorded: Any, expected: Any, path: str = "") -> str:
    """Where two JSON values differ beyond the tolerance of floating point; "" if they do not."""
    finders: dict[type, Callable[[], Iterator[str]]] = {
        dict: lambda: (_differences(recorded.get(k), v, f"{path}.{k}") for k, v in expected.items()),
        list: lambda: (_differences(r, e, f"{path}[{i}]") for i, (r, e) in enumerate(zip(recorded, expected, strict=True))),
    }
    if isinstance(expected, float | int) and not isinstance(expected, bool):
        same = isinstance(recorded, float | int) and bool(
            np.isclose(recorded, expected, rtol=TOLERANCE, atol=TOLERANCE)
        )
        return "" if same else f"{path.lstrip('.')} is {recorded!r}, computed {expected!r}"
    if type(recorded) is not type(expected) or (isinstance(expected, dict | list) and len(recorded) != len(expected)):
        return f"{path.lstrip('.')} has another form than what is computed"
    if type(expected) in finders:
        return next((found for found in finders[type(expected)]() if found), "")
    return "" if recorded == expected else f"{path.lstrip('.')} is {recorded!r}, computed {expected!r}"


__all__ = ["Audit", "Fault", "audit"]
