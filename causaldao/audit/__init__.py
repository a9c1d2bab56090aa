"""The audit: recompute from a bundle what the coordinator decided, and name what does not follow.

`ledger verify` shows that nothing was altered after it was signed; it cannot show that what was signed is right. Here
the pool, the proposal, each ballot, the adoption, the effects, the aggregates and the losses are computed again from
what the members said, and the study must have taken its course: who was at the roll call, spoke, voted and spent is who
signed. Limits, said plainly: without the updates an aggregate is checked from the logged Gram matrix and norms to its
weights, not to the model that it makes; with the updates in the bundle, from the updates through rule and server
optimiser to the model, whose digest has no tolerance for another machine's rounding. Reported as not checked are,
without the updates, a rule whose weights no Gram matrix gives, what rests on an erased payload, and a member who is
missing with neither a complaint that says why nor a revocation: that a word was withheld can be known only to the
member who gave it. Of a study of local ballots the count is checked, and that each ballot is a graph which can be
counted; whether it is what its member's rows say is reported as not checked.

A ledger holds a federation's studies. Each is audited by itself, on the entries that name it and the membership at its
proposal; what was found is said with its name. Who was revoked later is silent from then on, and a decision after the
revocation may rest on that member's earlier words or leave them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from causaldao.audit import course, edits, effects, graph, training
from causaldao.audit.case import Audit, Case, ErasedError, Fault
from causaldao.errors import CausalDAOError, MisuseError
from causaldao.ledger.verify import Line, Report
from causaldao.study import Study

__all__ = ["Audit", "Fault", "audit"]

MIN_PREFIX = 8  # digits of a hash that name a study
OF_NO_STUDY = (
    "genesis", "member.admit", "member.rotate", "member.revoke", "federation.faulty", "federation.policy", "erasure",
)  # fmt: skip
# What a forged body can make the recomputation raise: linear algebra on anything raises a RuntimeError.
_UNREADABLE = (CausalDAOError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def audit(report: Report, only: str | None = None) -> Audit:
    """Audit the studies of a verified bundle, or those that ``only`` names or whose hash begins with it.

    Never raises for what the bundle holds: everything wrong becomes a fault. What belongs to no study is checked in any
    case.

    Raises
    ------
    MisuseError
        no study of the bundle is ``only``.
    """
    result = Audit()
    proposals: dict[str, Line] = {}
    for line in report.entries:
        if line.kind == "study.proposed":
            proposals.setdefault(line.body["study"], line)
    result.faults += _strays(report, proposals)
    for name in report.unadmitted:
        result.unchecked.append(f"why {name}, whom the policy names, was never admitted: ask {name}")
    if not proposals:
        result.unchecked.append("no study: none was proposed yet")
    for line in _chosen(proposals, only):
        part = _audit_study(report, line)
        label = f"study {_label(line)}"
        result.checked += [f"{label}: {what}" for what in part.checked]
        result.unchecked += [f"{label}: {what}" for what in part.unchecked]
        result.edited += part.edited
        result.faults += [Fault(fault.index, f"{label}: {fault.what}") for fault in part.faults]
    return result


def _audit_study(report: Report, proposed: Line) -> Audit:
    result = Audit()
    try:
        study = Study.from_mapping(proposed.body.get("document"))
        known = study.hash == proposed.body["study"]
    except CausalDAOError:
        known = False
    if not known:
        result.faults.append(Fault(proposed.index, "no entry carries the study that its hash names"))
        return result
    case = Case(report, study, proposed.index, last=proposed.index)
    voted = graph.LOCAL if study.local else graph.CHECKS
    for check in (*course.CHECKS, *voted, *effects.CHECKS, *training.CHECKS, *edits.CHECKS):
        try:
            check(case, result)
        except ErasedError as error:
            result.unchecked.append(f"{check.__name__}: {error}")
        except _UNREADABLE as error:
            line = case.last
            result.faults.append(Fault(line, f"{check.__name__} cannot be recomputed: {error}"))
    return result


def _strays(report: Report, proposals: Mapping[str, Line]) -> Iterator[Fault]:
    """Entries that belong to no study, or to one that was not proposed before them: no audit of a study sees them."""
    for line in report.entries:
        if line.kind in OF_NO_STUDY:
            continue
        study = line.body.get("study")
        if not isinstance(study, str):
            yield Fault(line.index, f"the {line.kind!r} names no study")
        elif study not in proposals or line.index < proposals[study].index:
            yield Fault(line.index, f"it is of study {study!r}, which no entry before it proposes")


def _chosen(proposals: Mapping[str, Line], only: str | None) -> list[Line]:
    lines = list(proposals.values())
    if only is None:
        return lines
    chosen = [line for line in lines if only in (_name(line), line.body["study"])]
    if not chosen and len(only) >= MIN_PREFIX:
        chosen = [line for line in lines if line.body["study"].startswith(only)]
    if not chosen:
        there = ", ".join(map(_label, lines)) or "none"
        raise MisuseError(
            f"The bundle has no study {only!r}; it has: {there}. Give a name, or {MIN_PREFIX} digits or more of a hash."
        )
    return chosen


def _name(proposed: Line) -> str:
    document = proposed.body.get("document")
    table = document.get("study") if isinstance(document, dict) else None
    return str(table.get("name", "")) if isinstance(table, dict) else ""


def _label(proposed: Line) -> str:
    """A study in words: its name, as far as it is one, and the beginning of its hash."""
    return f"{_name(proposed)[:64]!a} {proposed.body['study'][:12]}".removeprefix("'' ")
