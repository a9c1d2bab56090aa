"""The privacy plan of a study, computed by everyone from the study alone.

Unit: one record; neighbours: add or remove one record. Every release is a (Poisson-subsampled) Gaussian; the account is
Rényi differential privacy (Mironov 2017; Mironov, Talwar, Zhang 2019) by opacus's accountant. The discrete Gaussian
obeys the same bound as the continuous one (Canonne, Kamath, Steinke 2020).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from causaldao.errors import BudgetError
from causaldao.models.summaries import SENSITIVITY
from causaldao.study import Study

# opacus's own orders, and larger ones so that small budgets are not charged for a missing order
ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 72, 96, 128, 192, 256, 512, 1024)
_STEP = 1e-4
_LARGEST = 1e4
RELEASES = ("evidence", "ballot", "effects", "update", "evaluation")  # the kinds of answers that may spend anything


@dataclass(frozen=True)
class Spend:
    """``steps`` Gaussian releases of this noise multiplier (σ over sensitivity), each at a Poisson sampling rate."""

    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1


@dataclass(frozen=True)
class Plan:
    """What each member spends: one evidence release, one of the sums of each effect of method "aipw" (``effects``,
    which counts them), and per round one training and one evaluation release.

    ``sigma`` is the scale of the evidence noise in lattice units (an integer, so that sampling is exact), and
    ``effects_sigma`` that of the sums, in the lattice of `causaldao.models.summaries`; 0 where nothing asks for them.
    In a ``local`` study that noise stays with the member, and what spends it is the ballot.
    """

    evidence: Spend
    training: Spend | None
    evaluation: Spend | None
    rounds: int
    sigma: int
    epsilon: float
    delta: float
    effects: Spend | None = None
    effects_sigma: int = 0
    local: bool = False

    def of(self, kind: str) -> Spend | None:
        """What an answer of a kind spends; None for one that spends nothing, or that the study does not ask for."""
        first = "ballot" if self.local else "evidence"
        of = {first: self.evidence, "effects": self.effects, "update": self.training, "evaluation": self.evaluation}
        return of.get(kind)

    @property
    def spends(self) -> tuple[Spend, ...]:
        """Everything a member spends in the whole study."""
        each = tuple(spend for spend in (self.training, self.evaluation) if spend)
        once = (self.evidence, *((self.effects,) if self.effects else ()))
        return (*once, *(Spend(s.noise_multiplier, s.sample_rate, s.steps * self.rounds) for s in each))


def epsilon_of(spends: Sequence[Spend], delta: float) -> float:
    """The ε at ``delta`` of a composition, by opacus's RDP accountant; 0 for no release at all."""
    from opacus.accountants.analysis import rdp

    if not spends:
        return 0.0
    total = sum(spend.steps * _curve(spend.noise_multiplier, spend.sample_rate) for spend in spends)
    with warnings.catch_warnings():
        # opacus warns when the best order is the first or last: the bound holds at every order, there it is only looser
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        epsilon, _ = rdp.get_privacy_spent(orders=list(ORDERS), rdp=total, delta=delta)
    return float(epsilon)


@lru_cache(maxsize=1024)
def _curve(noise_multiplier: float, sample_rate: float) -> Any:
    """The Rényi divergence of one step at each of `ORDERS`; that of a composition is the sum (Mironov 2017)."""
    from opacus.accountants.analysis import rdp

    return np.array(rdp.compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(ORDERS)))


@lru_cache(maxsize=64)
def plan(study: Study) -> Plan:
    """The noise multipliers that spend exactly the study's shares of ε, rounded up so that ε is never exceeded.

    Evidence takes its share alone; effects, training and evaluation are then calibrated on the composition with what
    came before, so the whole stays below ε although the shares of a composition do not add up.
    """
    privacy, training = study.privacy, study.training
    budget = privacy.epsilon * privacy.split.evidence
    spends = [calibrate([], 1.0, 1, budget, privacy.delta)]
    effects = None
    if study.robust_effects:
        budget = min(budget + privacy.epsilon * privacy.split.effects, privacy.epsilon)
        effects = calibrate(spends, 1.0, len(study.robust_effects), budget, privacy.delta)
        spends.append(effects)
    once = len(spends)
    for share, rate, steps in (
        (privacy.split.training, training.sample_rate, training.steps * training.rounds),
        (privacy.split.evaluation, 1.0, training.rounds),
    ):
        if training.rounds:
            budget = min(budget + privacy.epsilon * share, privacy.epsilon)
            spends.append(calibrate(spends, rate, steps, budget, privacy.delta))
    each = [Spend(s.noise_multiplier, s.sample_rate, s.steps // training.rounds) for s in spends[once:]]
    encoding = study.encoding
    sigma = math.ceil(spends[0].noise_multiplier * encoding.clip * encoding.lattice**2)
    return Plan(
        spends[0],
        each[0] if each else None,
        each[1] if each else None,
        training.rounds,
        sigma,
        epsilon_of(spends, privacy.delta),
        privacy.delta,
        effects,
        0 if effects is None else math.ceil(effects.noise_multiplier * SENSITIVITY),
        study.local,
    )


def calibrate(before: Sequence[Spend], rate: float, steps: int, budget: float, delta: float) -> Spend:
    """The smallest multiplier on a grid of 1e-4 that keeps the composition of ``before`` and ``steps`` releases at this
    sampling rate within ``budget``, an ε at ``delta``. BudgetError: none below a multiplier of 10,000 does."""

    def within(ticks: int) -> bool:
        return epsilon_of([*before, Spend(ticks * _STEP, rate, steps)], delta) <= budget

    low, high = 0, 1 << 10
    while not within(high):
        low, high = high, 2 * high
        if high * _STEP > _LARGEST:
            raise BudgetError(
                f"No noise below a multiplier of {_LARGEST:g} keeps {steps} release(s) at rate {rate:g} within "
                f"epsilon {budget:.4g} at delta {delta:g}: raise epsilon or its share, or take fewer rounds or steps."
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return Spend(round(high * _STEP, 4), rate, steps)


def multiplier(epsilon: float, delta: float) -> float:
    """The noise multiplier of a single Gaussian release that costs at most ε at ``delta``."""
    return calibrate([], 1.0, 1, epsilon, delta).noise_multiplier
