"""What a study with environments makes of them: whether they can be compared, the pool, the proposal and its marks.

The proposal rests on the pools of the environments that could be compared. Directions that only interventions show are
its `arrows`: a comparison of several environments, which no member's evidence holds, so no ballot speaks of them, and
adoption carries them wherever the votes leave the adjacency (`causaldao.consensus`).

A mark is tested in the environments that act on none of its variables, where its edges are as the graph has them. What
a ballot is held against is the pool of the voter's own environment: a variable that was acted on changes the strength
of edges far below it, and an honest member must not seem to contradict them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

import torch

from causaldao.ballots import Mark, Proposal, marks_of, propose
from causaldao.declared import Declaration
from causaldao.environments import Environments, borne_by, least, merged, pool_environments
from causaldao.errors import GuaranteeError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.interventional import Environment, Kind, interventional
from causaldao.models.discovery.reading import Reading
from causaldao.models.discovery.within import within
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import Knowledge
from causaldao.models.pattern import extension
from causaldao.pool import Pool, Settings
from causaldao.study import Study

Targets = Mapping[str, frozenset[str]]


def targets_of(study: Study) -> dict[str, frozenset[str]]:
    """The variables that are acted on, by environment."""
    return {one.name: frozenset(one.targets) for one in study.environments}


def observing(study: Study, names: Iterable[str]) -> list[str]:
    """Those of the environments in which nothing is acted on: there an effect is what it is anywhere else."""
    acted_on = targets_of(study)
    return sorted(name for name in names if not acted_on[name])


def require_comparable(
    study: Study, settings: Settings, declared: Mapping[str, Declaration], members: int, needed: int
) -> None:
    """Refuse to go on where the environments of those who are here cannot carry the study: asked after the roll call,
    before any privacy is spent, and of those who gave evidence again.

    ``needed`` of the ``members`` must be in environments that can be compared, as many as a step's answers.

    Raises
    ------
    GuaranteeError
        they are not; or what is left acts on some variable everywhere, or on something everywhere though effects, or
        soft interventions, need to be seen where nothing is acted on.
    """
    if not study.environments:
        return
    here = Counter(one.environment for one in declared.values())
    silent = members - len(declared)
    compared = sorted(name for name, count in here.items() if _comparable(settings, count, silent))
    counted = ", ".join(f"{here[one.name]} in {one.name!r}" for one in study.environments)
    remedy = f"Here are {counted}; an environment needs {least(settings, silent)} members to be compared within it."
    if not compared:
        raise GuaranteeError(f"No environment has enough members to be compared. {remedy}")
    total, acted_on = sum(here[name] for name in compared), targets_of(study)
    if total < needed:
        raise GuaranteeError(
            f"Only {total} of {members} members are in an environment that can be compared; {needed} are needed. "
            f"{remedy}"
        )
    if always := sorted(frozenset.intersection(*(acted_on[name] for name in compared))):
        raise GuaranteeError(
            f"{', '.join(always)}: acted on in every environment that can be compared ({', '.join(compared)}), so that "
            f"nothing shows what causes it. {remedy}"
        )
    if (study.effects or study.discovery.interventions == "soft") and not observing(study, compared):
        what = "effects are asked for" if study.effects else "interventions are soft"
        raise GuaranteeError(
            f"{what[0].upper()}{what[1:]}, and no environment without targets can be compared. {remedy}"
        )


def _comparable(settings: Settings, members: int, silent: int) -> bool:
    try:
        borne_by(settings, members, silent)
    except GuaranteeError:
        return False
    return members > 0


def pool_declared(
    study: Study,
    settings: Settings,
    evidence: Mapping[str, Evidence],
    declared: Mapping[str, Declaration],
    members: int,
) -> Pool:
    """Pool each environment by itself; the study's questions are protected where nothing is acted on.

    The bounds on liars are those of the one environment without targets; of several read together none is stated.
    """
    environments = {name: declared[name].environment for name in evidence}
    answering = observing(study, targets_of(study))
    found: Environments = pool_environments(
        evidence, environments, settings, silent=members - len(evidence), answering=answering, set_aside=True
    )
    read = [found.pools[name] for name in observing(study, found.pools)]
    bounds = read[0].bounds if len(read) == 1 else (None,) * len(settings.questions)
    return merged(found, bounds)


def read_for_effects(study: Study, own: Mapping[str, Evidence], pooled: Evidence) -> Evidence:
    """The evidence that effects are read from, of the pools' by environment: of those in which nothing is acted on.
    Where members declare none, or no such one was compared, and so no effect is asked for, it is the whole pool's."""
    read = observing(study, own) if study.environments else []
    return within([own[name] for name in read]) if read else pooled


def propose_within(
    study: Study, pooled: Pool, method: str, knowledge: Knowledge, *, seed: int, **options: Any
) -> Proposal:
    """What discovery finds in the pools of all compared environments.

    Where nothing is acted on anywhere, the method is asked about the evidence within environments; else BOSS with the
    interventional score, each environment with its own means.
    """
    acted_on = _compared(study, pooled)
    if not any(acted_on.values()):
        found = propose(pooled.evidence, method, knowledge, seed=seed, **options)
        return rested_on(study, pooled, found, found.pattern)
    kind: Kind = study.discovery.interventions
    parts = [Environment(pooled.environments[name].evidence, targets) for name, targets in acted_on.items()]
    generator = torch.Generator().manual_seed(seed)
    search = interventional(parts, knowledge=knowledge, generator=generator, kind=kind, means="own", **options)
    ties = tuple(Mark(pair).key for pair in sorted(search.near_ties))
    return rested_on(study, pooled, Proposal(search.graph, (), ties), search.graph)


def rested_on(study: Study, pooled: Pool, proposal: Proposal, pattern: CausalGraph) -> Proposal:
    """The proposal with another pattern, and that one's marks and arrows."""
    if not pooled.environments:
        marks = marks_of(pattern, pooled.evidence, proposal.reading)
        return replace(proposal, pattern=pattern, marks=marks)
    acted_on = _compared(study, pooled)
    own = {name: pooled.environments[name].evidence for name in acted_on}
    marks = marks_within(pattern, own, acted_on)
    return replace(proposal, pattern=pattern, marks=marks, arrows=arrows_of(pattern, acted_on))


def arrows_of(pattern: CausalGraph, acted_on: Targets) -> tuple[Pair, ...]:
    """The directed edges of which some environment acts on one end and not on the other: those it tells of."""
    told = (
        (a, b) for a, b in sorted(pattern.directed) if any((a in held) != (b in held) for held in acted_on.values())
    )
    return tuple(told)


def marks_within(pattern: CausalGraph, evidence: Mapping[str, Evidence], acted_on: Targets) -> tuple[Mark, ...]:
    """The marks of a pattern. Each is tested where none of its variables is acted on; if they are everywhere, where
    the one that the others cause is not. ``within`` holds the same test in each environment by itself."""
    drawn = marks_of(pattern, within(list(evidence.values())))
    reading, dag = Reading(), extension(pattern)
    marks = []
    for mark in drawn:
        a, b = mark.ends
        heart = mark.nodes[1] if mark.kind == "collider" else b if dag is not None and (a, b) in dag.directed else a
        alone = {name: reading.test(one, a, b, mark.given) for name, one in evidence.items()}
        free = [one for name, one in evidence.items() if not acted_on[name] & set(mark.nodes)]
        free = free or [one for name, one in evidence.items() if heart not in acted_on[name]]
        test = reading.test(within(free), a, b, mark.given)
        error = test.standard_error if isfinite(test.sampling_error) else 0.0
        own = tuple(
            (name, found.z, found.standard_error)
            for name, found in sorted(alone.items())
            if isfinite(found.standard_error)
        )
        marks.append(replace(mark, strength=test.correlation, z=test.z, error=error, within=own))
    return tuple(marks)


def _compared(study: Study, pooled: Pool) -> dict[str, frozenset[str]]:
    return {name: held for name, held in sorted(targets_of(study).items()) if name in pooled.environments}
