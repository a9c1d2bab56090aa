"""Members whose conditions differ by design: each declares its environment, such as a reagent that was given.

A change of conditions moves means and mechanisms, so members of two environments must not be compared: an honest
laboratory with an inhibitor would be accused, or averaged away. Each environment is pooled by itself, under the whole
fault bound, since all liars may declare the same one. What is put together are second moments about each environment's
own mean. Differences of means between environments, which are no edges, leave no trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from causaldao.errors import GuaranteeError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.pool import Pool, Settings, pool


@dataclass(frozen=True)
class Environments:
    """The evidence of all environments together, about their own means, and the pool of each by its name."""

    evidence: Evidence
    pools: Mapping[str, Pool]


def pool_environments(
    evidence: Mapping[str, Evidence], environments: Mapping[str, str], settings: Settings
) -> Environments:
    """Pool members within the environment that each declares.

    Raises
    ------
    GuaranteeError
        an environment has too few members for the rule and f: names it.
    MisuseError
        a member without an environment, or evidence of different variables.
    """
    if missing := sorted(set(evidence) - set(environments)):
        raise MisuseError(f"{', '.join(missing)} declared no environment: give one for each member.")
    pools = {}
    for environment in sorted({environments[name] for name in evidence}):
        own = {name: one for name, one in evidence.items() if environments[name] == environment}
        try:
            pools[environment] = pool(own, settings)
        except GuaranteeError as error:
            raise GuaranteeError(f"The environment {environment!r} is compared only within itself. {error}") from error
    parts = [centred(found.evidence) for found in pools.values()]
    if any(part.names != parts[0].names or not torch.equal(part.half, parts[0].half) for part in parts):
        raise MisuseError("Evidence can be pooled only under one dictionary.")
    total = torch.stack([part.moments for part in parts]).sum(dim=0)
    noise = sum(part.noise**2 for part in parts) ** 0.5
    return Environments(replace(parts[0], moments=total, noise=noise), pools)


def centred(evidence: Evidence) -> Evidence:
    """The evidence about its own mean: the covariance at the same count and noise, means 0 (in scaled units).

    The noise of the mean enters in second order only and is left out.
    """
    moments = torch.zeros_like(evidence.moments)
    moments[0, 0] = evidence.count
    moments[1:, 1:] = evidence.count * evidence.covariance()
    return replace(evidence, moments=moments)
