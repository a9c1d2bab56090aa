"""From the evidence to the graph: the pool, the proposal, each ballot, the adoption and the effects, computed again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from causaldao.audit.case import ROUNDING, Audit, Case, Fault, differences
from causaldao.ballots import Mark, Proposal, recheck
from causaldao.conditions import rested_on
from causaldao.consensus import Consensus
from causaldao.decisions import (
    decide_adoption,
    decide_proposal,
    estimate_effects,
)
from causaldao.declared import Declaration, misplaced
from causaldao.errors import CausalDAOError
from causaldao.graph_ballots import GraphBallot, decide_local_adoption
from causaldao.ledger.verify import Line
from causaldao.models.discovery.features import FeatureMap
from causaldao.models.discovery.moment_fit import ALIKE, rated
from causaldao.models.graph import CausalGraph


def pool(case: Case, result: Audit) -> None:
    line = case.one("pool")
    if line is None:
        return
    given, said = case.evidence, case.declared  # read first: what is wrong with them is told of their own entries
    case.last = line.index
    wrong = differences(line.body["pool"], case.pool.to_json())
    within = f", each within one of {len({one.environment for one in said.values()})} environments" if said else ""
    result.checked.append(f"pool of {len(given)} members' evidence{within if case.given.environments else ''}")
    if wrong:
        result.faults.append(Fault(line.index, f"the pool does not follow from the evidence: {wrong}"))
    for member, lacks in case.lacks.items():
        if member in case.evidence and (there := misplaced(case.evidence[member], lacks)):
            index = case.words("evidence")[member][0].index
            what = f"the evidence of {member} has moments of {', '.join(there)}, which it said it lacks"
            result.faults.append(Fault(index, what))
    encoding = case.given.encoding
    if isinstance(encoding, FeatureMap):
        for member, (spoken, _) in case.words("evidence").items():
            if impossible := encoding.impossible(case.evidence[member]):
                result.faults.append(Fault(spoken.index, f"the evidence of {member} should not be taken: {impossible}"))


def proposal(case: Case, result: Audit) -> None:
    line = case.one("pool")
    if line is None:
        return
    expected = decide_proposal(case.given, case.pool)
    assert case.proposal is not None
    pattern, ties = case.proposal.pattern, set(expected.near_ties)
    differing = {Mark(pair).key for pair in pattern.skeleton() ^ expected.pattern.skeleton()}
    what = ""
    if differing and differing <= ties:
        what = f"proposal: whether {', '.join(sorted(differing))} hangs on less than 1e-6, and is taken as recorded"
    elif pattern != expected.pattern and _as_good(case, pattern, expected):
        what = "proposal: the search ended elsewhere here; the recorded graph fits as well or better, and is taken"
    if what:
        result.unchecked.append(what)
        expected = rested_on(case.given, case.pool, expected, pattern)
    else:
        result.checked.append("proposal by discovery in the pool")
    wrong = differences(line.body["proposal"], expected.to_json())
    if wrong:
        result.faults.append(Fault(line.index, f"the proposal does not follow from the pool: {wrong}"))


def _as_good(case: Case, recorded: CausalGraph, expected: Proposal) -> bool:
    """Whether the recorded graph is one that the search might have found: by its score no worse than what it found
    here. Only for the search whose end hangs on rounding and that tells of no ties."""
    study = case.given
    if study.discovery.method != "moment-fit":
        return False
    evidence = expected.reading.applied(case.pool.evidence)
    theirs, ours = (rated(evidence, one, study.penalty, study.prior) for one in (recorded, expected.pattern))
    return theirs <= ours + ALIKE


def ballots(case: Case, result: Audit) -> None:
    proposal = case.proposal
    if proposal is None:
        return
    for member, (line, _) in case.words("ballot").items():
        if member not in case.ballots:
            result.faults.append(Fault(line.index, f"the ballot of {member} is none on the recorded proposal"))
    for member, (index, ballot) in case.ballots.items():
        if member not in case.evidence:
            continue  # named by `_people`
        said = case.declared.get(member, Declaration()).voting(case.given)
        wrong = recheck(ballot, proposal, case.evidence[member], case.given.consensus.level, **said)
        if wrong:
            result.faults.append(
                Fault(index, f"the ballot of {member} does not follow from its evidence on {', '.join(wrong)}")
            )
    result.checked.append(f"{len(case.ballots)} ballots against their voters' evidence")


def adoption(case: Case, result: Audit) -> None:
    line = case.one("adopt")
    called = case.one("study.roll-call")
    if line is None or called is None or case.proposal is None:
        return
    consensus = _recorded_or_first(line.body["consensus"], _adoptions(case, line, len(called.body["present"])))
    effects = estimate_effects(case.given, case.answers[0], consensus, case.answers[1], case.among_holders)
    result.checked.append("adoption by the ballots, and the effects")
    case.last = line.index
    wrong = differences(line.body["consensus"], consensus.to_json())
    if wrong:
        result.faults.append(Fault(line.index, f"the adoption does not follow from the ballots: {wrong}"))
    if len(line.body["effects"]) != len(effects):
        result.faults.append(
            Fault(line.index, f"it has {len(line.body['effects'])} effects, the pool gives {len(effects)}")
        )
    for recorded, expected in zip(line.body["effects"], effects, strict=False):
        # an effect may be small in its units: what counts as zero is measured by its own standard error
        wrong = differences(recorded, expected, rounding=ROUNDING * (expected["standard_error"] or 1.0))
        if wrong:
            result.faults.append(Fault(line.index, f"the effects do not follow from the pool: {wrong}"))
    _same_released(case, line, result)


def _adoptions(case: Case, adopted: Line, eligible: int) -> Iterator[Consensus]:
    """What the ballots adopt: of all who voted, and of those alone who were not revoked since."""
    assert case.proposal is not None
    gone = case.revoked(adopted.index)
    ballots = {member: ballot for member, (_, ballot) in case.ballots.items()}
    yield decide_adoption(case.given, case.proposal, ballots, eligible)
    if gone & set(ballots):
        left = {member: ballot for member, ballot in ballots.items() if member not in gone}
        yield decide_adoption(case.given, case.proposal, left, eligible)


def _recorded_or_first(recorded: Any, possible: Iterator[Consensus]) -> Consensus:
    """That of the possible results which was recorded; the first if none was."""
    results = list(possible)
    return next((found for found in results if not differences(recorded, found.to_json())), results[0])


def local(case: Case, result: Audit) -> None:
    """A study of local ballots: each is a graph that can be counted, nothing was pooled, and the adoption is their
    count."""
    for kind in ("evidence", "pool", "effects", "estimate", "update", "aggregate"):
        odd = [line.index for line in case.lines(kind)]
        result.faults += [Fault(index, f"the study is of local ballots: it has no {kind}") for index in odd]
    found: dict[str, GraphBallot] = {}
    for member, (spoken, said) in case.words("ballot").items():
        case.last = spoken.index
        try:
            found[member] = GraphBallot.from_json(said.body, case.given)
        except CausalDAOError as error:
            result.faults.append(Fault(spoken.index, f"the ballot of {member} should not be taken: {error}"))
    result.checked.append(f"{len(found)} ballots as graphs of the study's variables under what is known")
    result.unchecked.append("whether a ballot follows from its member's rows: they are private, and nobody can tell")
    line, called = case.one("adopt"), case.one("study.roll-call")
    if line is None or called is None:
        return
    case.last = line.index
    eligible, gone = len(called.body["present"]), case.revoked(line.index)
    left = {member: ballot for member, ballot in found.items() if member not in gone}
    possible = (decide_local_adoption(case.given, ballots, eligible) for ballots in (found, left))
    consensus = _recorded_or_first(line.body["consensus"], possible)
    result.checked.append("adoption by the ballots")
    if wrong := differences(line.body["consensus"], consensus.to_json()):
        result.faults.append(Fault(line.index, f"the adoption does not follow from the ballots: {wrong}"))
    if line.body["effects"]:
        result.faults.append(Fault(line.index, "it has effects, and the study has nothing to read one from"))
    _same_released(case, line, result)


def _same_released(case: Case, adopted: Line, result: Audit) -> None:
    released = case.one("release")
    if released is not None and released.body["dag"] != adopted.body["consensus"]["dag"]:
        result.faults.append(Fault(released.index, "the released graph is not the adopted one"))


CHECKS, LOCAL = (pool, proposal, ballots, adoption), (local,)  # of the two ways to vote
