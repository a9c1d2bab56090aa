"""Members whose conditions differ by design: each declares its environment, such as a reagent that was given.

A change of conditions moves means and mechanisms, so members of two environments must not be compared: an honest
laboratory with an inhibitor would be accused, or averaged away. Each environment is pooled by itself, under the whole
fault bound, since all liars may declare the same one. What is put together are second moments about each environment's
own mean (`within`). Differences of means between environments, which are no edges, leave no trace.

An environment of too few members to be compared is set aside: nobody in it is believed, for a liar could declare one of
its own, and nobody in it is accused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch

from causaldao.aggregation.rules import by_name, faults_left
from causaldao.errors import GuaranteeError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.within import within
from causaldao.pool import RULES, Aside, Pool, Settings, pool


@dataclass(frozen=True)
class Environments:
    """The evidence of all environments together, about their own means, the pool of each by its name, and those that
    were set aside."""

    evidence: Evidence
    pools: Mapping[str, Pool]
    aside: Mapping[str, Aside] = field(default_factory=dict)


def pool_environments(
    evidence: Mapping[str, Evidence],
    environments: Mapping[str, str],
    settings: Settings,
    *,
    silent: int = 0,
    answering: Collection[str] | None = None,
    set_aside: bool = False,
) -> Environments:
    """Pool members within the environment that each declares.

    ``silent`` members gave no evidence: where an environment has too few members for all f they are counted among the
    f, whatever they declared. The study's ``questions`` are protected in the environments that are ``answering`` (all,
    if None). With ``set_aside``, environments that cannot be compared are left out and named; else they are refused.
    Accusations have the level of the settings over the members of all environments together.

    Raises
    ------
    GuaranteeError
        an environment has too few members for the rule and f: names it; or none has enough.
    MisuseError
        a member without an environment, or evidence of different variables.
    """
    if missing := sorted(set(evidence) - set(environments)):
        raise MisuseError(f"{', '.join(missing)} declared no environment: give one for each member.")
    members = {
        environment: [name for name in sorted(evidence) if environments[name] == environment]
        for environment in sorted({environments[name] for name in evidence})
    }
    borne, aside = dict[str, int](), dict[str, Aside]()
    for environment, names in members.items():
        try:
            borne[environment] = borne_by(settings, len(names), silent)
        except GuaranteeError as error:
            if not set_aside:
                raise GuaranteeError(
                    f"The environment {environment!r} is compared only within itself. {error}"
                ) from error
            aside[environment] = Aside(tuple(names), least(settings, silent))
    if not borne:
        raise GuaranteeError(
            f"No environment has the {least(settings, silent)} members that its comparison needs: {_counted(members)}."
        )
    compared, pools = sum(len(members[environment]) for environment in borne), dict[str, Pool]()
    for environment, faulty in borne.items():
        names = members[environment]
        asked = settings.questions if answering is None or environment in answering else ()
        own = replace(settings, faulty=faulty, level=settings.level * (len(names) / compared), questions=asked)
        pools[environment] = pool({name: evidence[name] for name in names}, own)
    return Environments(within([found.evidence for found in pools.values()]), pools, aside)


def borne_by(settings: Settings, members: int, silent: int) -> int:
    """How many liars the rule bears among the members of one environment: f, or f less those who are silent.

    Raises
    ------
    GuaranteeError
        neither: these members cannot be compared.
    """
    if settings.rule == "mean" or settings.rule not in RULES:  # the mean has no bound; `pool` refuses an unknown rule
        return settings.faulty
    return faults_left(RULES[settings.rule], members + silent, settings.faulty, members)


def least(settings: Settings, silent: int = 0) -> int:
    """The fewest members of one environment that can be compared, while ``silent`` of all give nothing."""
    left = settings.faulty - silent if silent <= settings.faulty else settings.faulty
    return 1 if settings.rule == "mean" else by_name(RULES[settings.rule]).least(left)


def merged(found: Environments, bounds: tuple[float | None, ...]) -> Pool:
    """All environments in the form of one pool: its evidence is about each one's own mean, who was set aside counts as
    excluded, the weights are over all environments, ``faulty`` and ``critical`` the least and the largest of theirs.
    """
    pools = found.pools
    total = sum(one.evidence.count for one in pools.values())
    first = next(iter(pools.values()))
    lone = [name for one in found.aside.values() for name in one.members]
    return Pool(
        evidence=found.evidence,
        rule=first.rule,
        faulty=min(one.faulty for one in pools.values()),
        weights={
            name: weight * one.evidence.count / total for one in pools.values() for name, weight in one.weights.items()
        },
        distances={name: value for one in pools.values() for name, value in one.distances.items()},
        deviations={name: value for one in pools.values() for name, value in one.deviations.items()},
        critical=max(one.critical for one in pools.values()),
        kept=tuple(sorted(name for one in pools.values() for name in one.kept)),
        excluded=tuple(sorted([*(name for one in pools.values() for name in one.excluded), *lone])),
        accused=tuple(sorted(name for one in pools.values() for name in one.accused)),
        bounds=bounds,
        environments=pools,
        aside=found.aside,
    )


def _counted(members: Mapping[str, Collection[str]]) -> str:
    return ", ".join(f"{len(names)} declared {environment!r}" for environment, names in members.items()) or "none came"


def centred(evidence: Evidence) -> Evidence:
    """The evidence about its own mean: the covariance at the same count and noise, means 0 (in scaled units).

    The noise of the mean is left out, and with it a share of the covariance's noise that grows with the distance of the
    mean from 0: for exact evidence, or means near 0. `within` counts it.
    """
    moments = torch.zeros_like(evidence.moments)
    moments[0, 0] = evidence.count
    moments[1:, 1:] = evidence.count * evidence.covariance()
    return replace(evidence, moments=moments)
