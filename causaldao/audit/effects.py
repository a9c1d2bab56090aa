"""The effects of method "aipw": the functions, the question and the answers, computed again from evidence and sums."""

from __future__ import annotations

import numpy as np

from causaldao import estimates
from causaldao.audit.case import ROUNDING, Audit, Case, Fault, differences
from causaldao.models.graph import CausalGraph
from causaldao.signing import peek


def answers(case: Case, result: Audit) -> None:
    """Who was asked, that each answered this question, and that the estimates follow from the sums."""
    study, line, adopted = case.given, case.one("estimate"), case.one("adopt")
    words = case.words("effects")
    if not study.robust_effects:
        odd = [line for line in (line, *(entry for entry, _ in words.values())) if line is not None]
        result.faults += [Fault(entry.index, "the study asks for no effect of this method") for entry in odd]
        return
    if line is None or adopted is None:
        return
    case.last = line.index
    pattern, dag = (CausalGraph.from_json(adopted.body["consensus"][name]) for name in ("pattern", "dag"))
    asked = estimates.targets(study, pattern, dag)
    found = estimates.functions(study, asked, case.evidence, case.pool.weights)
    digests = {
        str(entry.body["member"]): peek(entry.body["envelope"].encode()).digest for entry in case.lines("evidence")
    }
    base, names = estimates.base_of(study, asked, digests, len(case.members)), estimates.respondents(found)
    case.last = line.index
    if line.body["base"] != base or list(line.body["asked"]) != list(names):
        result.faults.append(Fault(line.index, "the question or who was asked does not follow from graph and evidence"))
    sums = {}
    for member, (entry, said) in words.items():
        if said.body != {"base": base}:
            result.faults.append(Fault(entry.index, f"the sums of {member} answer another question"))
        if member not in names:
            result.faults.append(Fault(entry.index, f"{member} gives sums, but its evidence can answer nothing"))
            continue
        (payload,) = entry.body["manifest"]
        sums[member] = np.frombuffer(case.payload(payload["sha256"]), dtype="<i8").reshape(len(asked), 3)
    expected = estimates.estimate(study, asked, found, sums)
    case.last = line.index
    result.checked.append(f"{len(expected)} effects from the sums of {len(sums)} members")
    if len(line.body["effects"]) != len(expected):
        result.faults.append(Fault(line.index, f"it has {len(line.body['effects'])} effects, not {len(expected)}"))
    for recorded, effect in zip(line.body["effects"], expected, strict=False):
        wrong = differences(recorded, effect, rounding=ROUNDING * (effect["standard_error"] or 1.0))
        if wrong:
            result.faults.append(Fault(line.index, f"the effects do not follow from the members' sums: {wrong}"))


CHECKS = (answers,)
