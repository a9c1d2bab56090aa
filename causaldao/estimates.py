"""A study's effects of method "aipw": what is asked, the functions under which members read their rows, the answer.

Everything is computed from the study, the members' signed evidence and the adopted graph: by the coordinator that asks,
by the node before it spends anything, and by an auditor. `causaldao.models.summaries` states what the sums are and why
one record moves them by a bound that no function can change; `causaldao.meta` how they are judged and joined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from causaldao.aggregation.rules import by_name, faults_left
from causaldao.budget import plan
from causaldao.decisions import effect_unit, unanswered
from causaldao.errors import DataError, GuaranteeError, MisuseError, NotIdentifiable
from causaldao.meta import Meta, Settings, combine
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.identification import adjustment_set, possible_descendants
from causaldao.models.nuisance import Integers
from causaldao.models.pattern import meek
from causaldao.models.summaries import CLIPPED, Nuisances, Summary, Target, nuisances, summary
from causaldao.signing import canonical, sha256
from causaldao.study import EffectSpec, Study

Sums = Mapping[str, Integers]
"""By member: int64 (k, 3), a row for each effect of method "aipw" in the study's order; a row of zeros where the member
is not asked."""

_FLOOR = 0.01  # of the outcome's range: the least spread of influence values that is believed
_RULE = "multi-krum"  # whose bound on n and f the meta-analysis has


@dataclass(frozen=True)
class Asked:
    """An effect of the study as the adopted graph identifies it; without a ``target``, ``code`` says why there is none.
    ``implied``: the graph has no causal path, and the treatment's parents are adjusted for."""

    spec: EffectSpec
    target: Target | None
    implied: bool = False
    code: str = ""


@dataclass(frozen=True, eq=False)
class Functions:
    """The public functions of one effect, by the members that can answer it; ``aside``: by member why it cannot;
    ``code``: why nobody is asked."""

    members: Mapping[str, Nuisances] = field(default_factory=dict)
    aside: Mapping[str, str] = field(default_factory=dict)
    code: str = ""


def targets(study: Study, pattern: CausalGraph, dag: CausalGraph) -> tuple[Asked, ...]:
    """The effects of method "aipw", in the study's order. One whose adjustment the graph leaves open is not asked: what
    is released must be known beforehand, and would be as many answers as the class has."""
    found = []
    for spec in study.robust_effects:
        try:
            names, implied = _adjustment(spec, pattern, dag)
        except NotIdentifiable as error:
            found.append(Asked(spec, None, code=error.code))
            continue
        target = Target(spec.treatment, spec.outcome, names, spec.estimand, spec.overlap, spec.clip)
        found.append(Asked(spec, target, implied))
    return tuple(found)


def _adjustment(spec: EffectSpec, pattern: CausalGraph, dag: CausalGraph) -> tuple[tuple[str, ...], bool]:
    if spec.adjustment != "auto":
        return tuple(spec.adjustment), False
    if spec.outcome in possible_descendants(pattern, spec.treatment):
        return tuple(sorted(adjustment_set(meek(pattern), spec.treatment, spec.outcome))), False
    parents = dag.parents(spec.treatment)
    if spec.outcome in parents:
        raise NotIdentifiable(f"{spec.outcome} is a direct cause of {spec.treatment}: by the graph the effect is zero.")
    return tuple(sorted(parents)), True


def functions(
    study: Study, asked: Sequence[Asked], evidence: Mapping[str, Evidence], weights: Mapping[str, float]
) -> tuple[Functions, ...]:
    """The functions of each effect, from the members' evidence and the pool's weights.

    Where fewer members can answer than the fault bound needs, nobody is asked, and nothing is spent.
    """
    faulty = study.consensus.faulty
    least = by_name(_RULE).least(faulty) if faulty else 1
    found = []
    for one in asked:
        if one.target is None:
            found.append(Functions(code=one.code))
            continue
        try:
            able, aside = nuisances(one.target, evidence, weights)
        except DataError as error:
            found.append(Functions(code=error.code))
            continue
        code = GuaranteeError.code if len(able) < least else ""
        found.append(Functions(able, aside, code))
    return tuple(found)


def respondents(found: Sequence[Functions]) -> tuple[str, ...]:
    """The members that are asked: those who can answer some effect."""
    return tuple(sorted({name for one in found if not one.code for name in one.members}))


def of_member(found: Sequence[Functions], name: str) -> tuple[Nuisances | None, ...]:
    """What a member is asked, by effect; None where it is not."""
    return tuple(None if one.code else one.members.get(name) for one in found)


def figures(found: Sequence[Nuisances | None]) -> list[list[float]]:
    """Functions as numbers, to be compared: an empty list for each that is None."""
    return [
        []
        if one is None
        else [
            *one.mean.tolist(), *one.score.tolist(), one.intercept, *one.slopes.tolist(), one.guess, one.clip, one.unit,
            one.count, one.count_noise, one.denominator, one.denominator_noise,
        ]
        for one in found
    ]  # fmt: skip


def base_of(study: Study, asked: Sequence[Asked], digests: Mapping[str, str], members: int) -> str:
    """SHA-256 of all that the functions are made of: the study, what is asked, each member's evidence by the digest
    that it signed, and of how many members these are, which says how many liars the pool may leave out. A reply names
    it, so that it answers this question and no other; unlike the functions themselves it has no rounding."""
    told = [None if one.target is None else asdict(one.target) for one in asked]
    return sha256(canonical(["effects", study.hash, told, dict(digests), members]))


def estimate(study: Study, asked: Sequence[Asked], found: Sequence[Functions], sums: Sums) -> list[dict[str, Any]]:
    """The answers, from the sums of those who answered; an effect without one takes nothing from the others."""
    return [_estimate(study, one, having, sums, k) for k, (one, having) in enumerate(zip(asked, found, strict=True))]


def read(sums: Sequence[float] | Integers, member: Nuisances, sigma: float) -> Summary:
    """`summary`; of sums that no records add up to one that `combine` names and quarantines."""
    try:
        return summary(sums, member, sigma)
    except DataError:
        return Summary(member.count, math.nan, math.nan, math.nan)


def floor_of(width: float) -> float:
    """The least variance of an influence value that is believed, of an outcome whose bounds are so far apart."""
    return (_FLOOR * width) ** 2


def remarks(told: Mapping[str, Summary], aside: Mapping[str, str]) -> list[str]:
    """What must be known to read an answer: who is set aside, and whose influence values were clipped often."""
    return [
        *(f"{reason}; this member is set aside." for reason in aside.values()),
        *(
            f"{name}: {one.clipped[0]:.1%} of its influence values were clipped: the estimate leans towards the linear "
            "one. Give a larger clip."
            for name, one in told.items()
            if one.clipped[0] - 3 * one.clipped[1] > CLIPPED
        ),
    ]


def _estimate(study: Study, asked: Asked, found: Functions, sums: Sums, k: int) -> dict[str, Any]:
    if found.code:
        return _told(study, asked, unanswered(study, asked.spec, found.code), found)
    sigma, faulty = plan(study).effects_sigma, study.consensus.faulty
    told = {name: read(sums[name][k], one, sigma) for name, one in found.members.items() if name in sums}
    unit = next(iter(found.members.values())).unit
    try:
        settings = Settings(
            faulty=faults_left(_RULE, len(found.members), faulty, len(told)) if faulty else 0,
            accusation=study.consensus.level, rows=(study.members.n_min, study.members.n_max),
            floor=floor_of(2 * unit), spread=asked.spec.spread,
        )  # fmt: skip
        meta = combine(told, settings)
    except (GuaranteeError, MisuseError) as error:  # too few answered, or more than f sent what no records add up to
        return _told(study, asked, unanswered(study, asked.spec, error.code), found)
    return _told(study, asked, _answer(study, asked, meta, told, found), found)


def _told(study: Study, asked: Asked, said: dict[str, Any], found: Functions) -> dict[str, Any]:
    """What an effect of this method says beside what every effect does."""
    adjustment = [] if asked.target is None else list(asked.target.covariates)
    return {**said, "adjustment": adjustment, "method": asked.spec.method, "estimand": asked.spec.estimand,
            "aside": dict(found.aside)}  # fmt: skip


def _answer(study: Study, asked: Asked, meta: Meta, told: Mapping[str, Summary], found: Functions) -> dict[str, Any]:
    kept = {name: one for name, one in told.items() if name not in meta.quarantined}
    return {
        "treatment": asked.spec.treatment,
        "outcome": asked.spec.outcome,
        "estimate": meta.estimate,
        "standard_error": meta.standard_error,
        "sampling_error": meta.sampling_error,
        "privacy_error": meta.privacy_error,
        "nuisance_error": meta.nuisance_error,
        "interval": list(meta.interval),
        "unit": effect_unit(study, asked.spec),
        "graph_implies_zero": asked.implied,
        "pooled": None,
        "bound": meta.bound,
        "interval_with_liars": None if meta.worst is None else list(meta.worst),
        "robustness": None,
        "faulty": meta.faulty,
        "accused": list(meta.accused),
        "quarantined": dict(meta.quarantined),
        "weights": dict(meta.weights),
        "deviations": dict(meta.deviations),
        "critical": meta.critical,
        "heterogeneity": dict(vars(meta.heterogeneity)),
        "members": {
            name: {"count": one.count, "estimate": one.estimate, "clipped": list(one.clipped)}
            for name, one in kept.items()
        },
        "notes": remarks({name: one for name, one in kept.items() if name not in meta.accused}, found.aside),
    }


def in_order(study: Study, effects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Effects of both methods in the study's order."""
    places = [(spec.treatment, spec.outcome, spec.method) for spec in study.effects]
    return sorted(
        map(dict, effects),
        key=lambda one: places.index((one["treatment"], one["outcome"], one.get("method", "moments"))),
    )


def same_figures(told: Any, expected: list[list[float]]) -> bool:
    """Whether functions that somebody sent are these, up to the rounding of another machine's linear algebra."""
    if not isinstance(told, list) or len(told) != len(expected):
        return False
    for one, mine in zip(told, expected, strict=True):
        if not isinstance(one, list) or len(one) != len(mine) or not all(type(value) in (int, float) for value in one):
            return False
        if not np.allclose(np.array(one, dtype=np.float64), np.array(mine), rtol=1e-6, atol=1e-9):
            return False
    return True
