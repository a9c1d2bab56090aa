"""An effect across institutions, on DataFrames, in one process: evidence, shared nuisances, summaries, one answer.

>>> found = federated_effect(tables, {"age": (18, 90), "quit": (0, 1), "gain": (-40, 50)}, "quit", "gain", ["age"],
...                          faulty=1, epsilon=4)  # doctest: +SKIP
>>> found.meta.estimate, found.meta.interval, found.meta.accused  # doctest: +SKIP

Each member makes two releases: its evidence (noisy moments), and then the noisy sums of its influence values under
nuisances made of everybody's evidence (`causaldao.models.summaries`). `causaldao.meta` judges and joins them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from causaldao import pool as pools
from causaldao.budget import Spend, calibrate, epsilon_of
from causaldao.client.data.checks import conform
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import release_evidence, release_summary
from causaldao.errors import DataError, GuaranteeError, MisuseError
from causaldao.estimates import floor_of, read, remarks
from causaldao.meta import Meta, Settings, combine
from causaldao.models.discovery.evidence import Dictionary, Evidence, Variable
from causaldao.models.estimation import numbers
from causaldao.models.nuisance import Integers
from causaldao.models.summaries import (
    SENSITIVITY,
    Estimand,
    Nuisances,
    Summary,
    Target,
    exact_sums,
    nuisances,
)


@dataclass(frozen=True)
class Protocol:
    """What the members agree on before any row is read. ``sigma``: scales of the two releases' noise, None: exact."""

    target: Target
    dictionary: Dictionary
    settings: Settings
    sigma: tuple[int, int] | None = None
    spends: tuple[Spend, ...] = ()
    delta: float = 1e-5

    @property
    def epsilon(self) -> float | None:
        """What each member's records spend, None without noise."""
        return epsilon_of(self.spends, self.delta) if self.spends else None


@dataclass(frozen=True)
class FederatedEffect:
    """The answer, what each member told, and what must be known to read it.

    evidence: excluded and accused by the pool of evidence (they only lose their part in the nuisances); aside: members
    who could not answer, with the reason; epsilon: spent by each member, None without privacy.
    """

    meta: Meta
    summaries: Mapping[str, Summary]
    evidence: Mapping[str, tuple[str, ...]]
    aside: Mapping[str, str]
    epsilon: float | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **self.meta.to_json(),
            "members": {name: {**vars(one), "clipped": list(one.clipped)} for name, one in self.summaries.items()},
            "evidence": {name: list(members) for name, members in self.evidence.items()},
            "aside": dict(self.aside),
            "epsilon": self.epsilon,
            "notes": list(self.notes),
        }


def federated_effect(
    tables: Mapping[str, pd.DataFrame],
    bounds: Mapping[str, tuple[float, float]],
    treatment: str,
    outcome: str,
    covariates: Sequence[str] = (),
    *,
    estimand: Estimand = "ate",
    faulty: int = 0,
    epsilon: float | None = None,
    delta: float = 1e-5,
    share: float = 0.6,
    overlap: float = 0.05,
    clip: float | None = None,
    norm: float | None = None,
    seed: int | None = None,
    **options: Any,
) -> FederatedEffect:
    """The effect of treatment on outcome across institutions, adjusted for ``covariates``, of which f may lie.

    bounds: the public bounds of every variable; those of a treatment of two values are the two values. Levels as
    columns of 0 and 1 cost less noise with bounds (-1, 1), which put 0 in the middle.
    estimand: "ate", "att", or "plm": a treatment of any kind, linear. epsilon, delta: of each record, over both
    releases, of which the evidence gets ``share``; None: no noise, and nothing is private. overlap: scores are kept in
    [overlap, 1 - overlap]. clip: of an influence value, in the outcome's unit; norm: C² of a record's evidence
    (default: the variables and one). seed: simulated noise, which protects nobody; None: the operating system's
    entropy.
    options: of `causaldao.meta.Settings`: model, level, accusation, rows, floor, spread.

    Raises:
        MisuseError: an unknown name or option, one in two roles, no bounds for a variable.
        DataError: missing or infinite values, a treatment of more than two values where it must have two; all
            variation drowned in noise.
        GuaranteeError: fewer than 2f + 3 members, or fewer left when those who cannot answer are set aside.
        BudgetError: no noise keeps to epsilon.
    """
    names = (*covariates, treatment, outcome)
    if lacking := [name for name in names if name not in bounds]:
        raise MisuseError(
            f"No bounds for {', '.join(lacking)}: they must be public, so they cannot come from the rows."
        )
    if odd := sorted(set(options) - set(Settings.__dataclass_fields__) | {"faulty"} & set(options)):
        raise MisuseError(f"There is no option {', '.join(odd)}; there are {', '.join(Settings.__dataclass_fields__)}.")
    target = Target(treatment, outcome, tuple(covariates), estimand, overlap, clip)
    dictionary = Dictionary(tuple(Variable(name, bounds=bounds[name]) for name in names), norm or float(len(names) + 1))
    low, high = bounds[outcome]
    settings = Settings(**{"faulty": faulty, "floor": floor_of(high - low), **options})
    protocol = planned(target, dictionary, settings, epsilon, delta, share)
    noise = NoiseSource.from_os() if seed is None else seeded(seed)
    for name, table in tables.items():
        _require(name, table, protocol)
    return run(tables, protocol, noise)


def planned(
    target: Target, dictionary: Dictionary, settings: Settings, epsilon: float | None, delta: float, share: float
) -> Protocol:
    """The noise that spends ε: the evidence its share alone, the summary on the composition with it."""
    if epsilon is None:
        return Protocol(target, dictionary, settings)
    if not (0 < share < 1 and epsilon > 0 and 0 < delta < 1):
        raise MisuseError(f"Expected epsilon = {epsilon} > 0, and delta = {delta} and share = {share} between 0 and 1.")
    first = calibrate([], 1.0, 1, epsilon * share, delta)
    second = calibrate([first], 1.0, 1, epsilon, delta)
    sigma = (
        math.ceil(first.noise_multiplier * dictionary.clip * dictionary.lattice**2),
        math.ceil(second.noise_multiplier * SENSITIVITY),
    )
    return Protocol(target, dictionary, settings, sigma, (first, second), delta)


def seeded(seed: int) -> NoiseSource:
    """Noise that a seed repeats, for simulations."""
    return NoiseSource.simulated(hashlib.sha256(f"federated-effect {seed}".encode()).digest())


def run(tables: Mapping[str, pd.DataFrame], protocol: Protocol, noise: NoiseSource) -> FederatedEffect:
    """All four steps, every member honest."""
    evidence = {name: tell_evidence(table, protocol, noise) for name, table in sorted(tables.items())}
    functions, aside, pool = share_nuisances(evidence, protocol)
    sums = {name: tell_sums(tables[name], protocol, one, noise) for name, one in functions.items()}
    return conclude(sums, functions, aside, pool, protocol, noise.kind)


def tell_evidence(table: pd.DataFrame, protocol: Protocol, noise: NoiseSource) -> Evidence:
    """A member's first release."""
    dictionary = protocol.dictionary
    if protocol.sigma is None:
        return Evidence.from_data(conform(table, dictionary), dictionary)
    return Evidence.from_release(
        release_evidence(table, dictionary, protocol.sigma[0], noise), dictionary, protocol.sigma[0]
    )


def share_nuisances(
    evidence: Mapping[str, Evidence], protocol: Protocol
) -> tuple[dict[str, Nuisances], dict[str, str], pools.Pool]:
    """What the coordinator makes of the evidence, and anyone can make again; GuaranteeError: too few can answer."""
    settings, target = protocol.settings, protocol.target
    pool = pools.pool(
        evidence,
        pools.Settings(
            settings.faulty, "multi-krum" if settings.faulty else "mean", settings.rows, settings.accusation
        ),
    )
    found, aside = nuisances(target, evidence, pool.weights, noiseless_clip=protocol.sigma is None)
    least = 2 * settings.faulty + 3 if settings.faulty else 1
    if len(found) < least:
        raise GuaranteeError(
            f"{len(found)} of {len(evidence)} members can answer, but faulty = {settings.faulty} needs {least}: mend "
            "what is said of the others, admit more members, or state a smaller f.",
            problems=list(aside.values()),
        )
    return found, aside, pool


def tell_sums(table: pd.DataFrame, protocol: Protocol, member: Nuisances, noise: NoiseSource) -> Integers:
    """A member's second release."""
    if protocol.sigma is None:
        return exact_sums(conform(table, protocol.dictionary), protocol.dictionary, member)
    return release_summary(table, protocol.dictionary, member, protocol.sigma[1], noise)


def conclude(
    sums: Mapping[str, Sequence[float] | Integers], functions: Mapping[str, Nuisances], aside: Mapping[str, str],
    pool: pools.Pool, protocol: Protocol, noise: str,
) -> FederatedEffect:  # fmt: skip
    """Read, judge and join the members' sums; one that cannot be is quarantined by name and counts among the f."""
    sigma = protocol.sigma[1] if protocol.sigma else 0
    said = {name: read(one, functions[name], sigma) for name, one in sums.items()}
    meta = combine(said, protocol.settings)
    told = {name: one for name, one in said.items() if name not in meta.quarantined}
    notes = remarks(told, aside)
    if protocol.sigma is not None and noise != "os":
        notes.append("The noise is simulated: it protects nobody.")
    evidence = {"excluded": pool.excluded, "accused": pool.accused}
    return FederatedEffect(meta, told, evidence, dict(aside), protocol.epsilon, tuple(notes))


def _require(name: str, table: pd.DataFrame, protocol: Protocol) -> None:
    """What a member checks of its own rows, alone: its texts are for local eyes."""
    target = protocol.target
    try:
        values = numbers(table, protocol.dictionary.names)[target.treatment].unique()
    except DataError as error:
        raise DataError(f"{name}: {error.message}", problems=error.problems) from error
    ends = protocol.dictionary.variables[protocol.dictionary.names.index(target.treatment)].bounds
    if target.estimand != "plm" and not set(np.asarray(values, dtype=np.float64).tolist()) <= set(ends):
        raise DataError(
            f"{name}: {target.treatment} has other values than {ends[0]:g} and {ends[1]:g}, its bounds. Give the two "
            "values as its bounds, or ask for estimand='plm', which is linear in the treatment."
        )
