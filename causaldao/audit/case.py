"""A study's entries as the checks of an audit look at them, and what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from causaldao.ballots import Ballot, Proposal
from causaldao.budget import plan
from causaldao.conditions import read_for_effects
from causaldao.decisions import (
    Among,
    Learnt,
    among_holders,
    decide_pool,
    evidence_of_answers,
)
from causaldao.declared import Declaration, expected, lacks_of
from causaldao.errors import CausalDAOError, Finding
from causaldao.ledger.verify import Line, Report
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.reading import Reading
from causaldao.pool import Pool
from causaldao.signing import Statement, peek
from causaldao.study import Study

TOLERANCE = 1e-6  # relative: linear algebra of another machine may differ in the last digits, a decision may not
ROUNDING = 1e-9  # absolute, for values that cancel to about zero


@dataclass(frozen=True)
class Fault:
    """One thing that does not follow: the entry that holds it, what it is and whose it is."""

    index: int
    what: str

    def __str__(self) -> str:
        return f"entry {self.index}: {self.what}"


@dataclass
class Audit:
    """What was recomputed, what could not be, and the faults; ``edited`` are the graphs that members edited by vote,
    with the effects under them (`causaldao.audit.edits.told`)."""

    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    edited: list[dict[str, Any]] = field(default_factory=list)

    def require(self) -> None:
        """Raise a Finding that lists every fault, if there is one."""
        if self.faults:
            raise Finding(
                f"The audit found {len(self.faults)} decision(s) that do not follow from what was recorded:",
                problems=[str(fault) for fault in self.faults],
            )


class ErasedError(Exception):
    """A payload is missing because an entry of the ledger erased it."""


@dataclass
class Case:
    """A study and its entries, found by kind; ``proposed`` is the entry where its members are counted, ``last`` the
    entry being looked at.
    """

    report: Report
    given: Study
    proposed: int
    last: int = 0
    learnt: Learnt | None = None  # the model as recomputed so far; None once it cannot be told from rounding

    @cached_property
    def entries(self) -> tuple[Line, ...]:
        """The study's entries, in order."""
        return tuple(line for line in self.report.entries if line.body.get("study") == self.given.hash)

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The membership when the study was proposed."""
        found = set[str]()
        for line in self.report.entries[: self.proposed]:
            if line.kind == "member.admit":
                found.add(line.body["member"])
            elif line.kind == "member.revoke":
                found.discard(line.body["member"])
        return tuple(sorted(found))

    def revoked(self, before: int) -> set[str]:
        """Those revoked before an entry."""
        return {line.body["member"] for line in self.report.entries[:before] if line.kind == "member.revoke"}

    def payload(self, name: str) -> bytes:
        if name in self.report.erased:
            raise ErasedError(f"payload {name[:12]} of entry {self.last} was erased, so this cannot be recomputed")
        return self.report.payloads[name]

    def lines(self, kind: str) -> Iterator[Line]:
        for line in self.entries:
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
    def evidence(self) -> dict[str, Evidence]:
        study = self.given
        sigma = plan(study).sigma
        found = {}
        for line in self.lines("evidence"):
            (entry,) = line.body["manifest"]
            triangle = np.frombuffer(self.payload(entry["sha256"]), dtype="<i8")
            found[str(line.body["member"])] = Evidence.from_release(triangle, study.encoding, sigma)
        return found

    @cached_property
    def declared(self) -> dict[str, Declaration]:
        """What each member declared in its signed approval, where the study asks; nothing else is looked at."""
        line = self.one("study.approved") if expected(self.given) else None
        said = [] if line is None else [peek(one["envelope"].encode()) for one in line.body["approvals"]]
        return {one.member: Declaration.from_json(self.given, one.body) for one in said}

    @property
    def lacks(self) -> dict[str, tuple[str, ...]]:
        """What each member said at the roll call that it does not have."""
        return lacks_of(self.declared)

    @cached_property
    def pool(self) -> Pool:
        return decide_pool(self.given, self.evidence, len(self.members), self.declared)

    @cached_property
    def among_holders(self) -> Among | None:
        """What effects are read from where members lack variables."""
        return among_holders(self.given, self.evidence, self.pool.kept, self.pool.faulty, self.pool.lacks)

    @cached_property
    def answers(self) -> tuple[Evidence, tuple[float | None, ...]]:
        """The evidence that effects and the first model are read from, with the pool's bounds."""
        reading = Reading() if self.proposal is None else self.proposal.reading
        own = {name: one.evidence for name, one in self.pool.environments.items()}
        pooled = read_for_effects(self.given, own, self.pool.evidence)
        return evidence_of_answers(self.given, pooled, self.pool.bounds, reading)

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


def differences(recorded: Any, expected: Any, path: str = "", rounding: float = ROUNDING) -> str:
    """Where two JSON values differ beyond the tolerance of floating point; "" if they do not."""
    finders: dict[type, Callable[[], Iterator[str]]] = {
        dict: lambda: (differences(recorded.get(k), v, f"{path}.{k}", rounding) for k, v in expected.items()),
        list: lambda: (
            differences(r, e, f"{path}[{i}]", rounding) for i, (r, e) in enumerate(zip(recorded, expected, strict=True))
        ),
    }
    if isinstance(expected, float | int) and not isinstance(expected, bool):
        same = isinstance(recorded, float | int) and bool(np.isclose(recorded, expected, rtol=TOLERANCE, atol=rounding))
        return "" if same else f"{path.lstrip('.')} is {recorded!r}, computed {expected!r}"
    if isinstance(expected, dict) and isinstance(recorded, dict) and recorded.keys() != expected.keys():
        odd = ", ".join(sorted(map(ascii, recorded.keys() ^ expected.keys())))
        return f"{path.lstrip('.')} has other names than what is computed: {odd}".lstrip()
    if type(recorded) is not type(expected) or (isinstance(expected, list) and len(recorded) != len(expected)):
        return f"{path.lstrip('.')} has another form than what is computed"
    if type(expected) in finders:
        return next((found for found in finders[type(expected)]() if found), "")
    return "" if recorded == expected else f"{path.lstrip('.')} is {recorded!r}, computed {expected!r}"
