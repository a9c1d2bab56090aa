"""One effect in real rows (NHEFS), dealt to eight institutions: without noise, under a budget, and with two liars.

Hernán & Robins find that quitting smoking added 3.4 or 3.5 kg; cross-fitted AIPW on all rows in one place
(`causaldao bench effects`) is what the federation is set beside. The rows are dealt by lot, and in the order of age and
of education, so that institutions differ. Members lie about their summaries; "rows" forges everything.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from causaldao.errors import DataError, GuaranteeError, MisuseError
from causaldao.meta import Settings
from causaldao.models.discovery.evidence import Dictionary, Variable
from causaldao.models.estimation import estimate_effect
from causaldao.models.nuisance import Floats
from causaldao.models.summaries import LATTICE, Nuisances, Target
from causaldao.simulations.benchmarks.effects import confounded
from causaldao.simulations.datasets import load, split
from causaldao.simulations.effects import (
    FederatedEffect,
    Protocol,
    conclude,
    planned,
    seeded,
    share_nuisances,
    tell_evidence,
    tell_sums,
)

MEMBERS, LIARS = 8, 2
SPLITS = ("lot", "age", "education")
EPSILONS = (None, 8.0, 3.0)
_T, _Y = "quit", "weight_gain"
# public bounds, set from what such people are like; levels as 0 and 1 lie in [-1, 1], which costs less noise
_BOUNDS = {
    _T: (0.0, 1.0), _Y: (-45.0, 50.0), "age": (25.0, 75.0), "weight": (35.0, 155.0), "cigarettes": (0.0, 80.0),
    "years_smoked": (0.0, 65.0),
}  # fmt: skip
_NORM = 7.0  # C²: the few records with more are scaled down
_FLOOR = 1.0  # kg², per record


def measure(
    *, seeds: int = 20, splits: tuple[str, ...] = SPLITS, epsilons: tuple[float | None, ...] = EPSILONS
) -> dict[str, Any]:
    """Every split at every ε over ``seeds`` draws of the noise, honest and with each lie, f = 0 and f = 2.

    Raises:
        MisuseError: fewer than two seeds, or an unknown split.
    """
    if seeds < 2:
        raise MisuseError(f"seeds={seeds}: expected at least 2, for a spread.")
    if odd := sorted(set(splits) - set(SPLITS)):
        raise MisuseError(f"There is no split {', '.join(odd)}; choose among {', '.join(SPLITS)}.")
    began, table = time.perf_counter(), load("nhefs")
    pooled = estimate_effect(table, confounded(table, _T, _Y), _T, _Y, method="aipw")
    aim = {"estimate": pooled.estimate, "standard_error": pooled.standard_error, "interval": list(pooled.interval)}
    found: dict[str, Any] = {}
    for name in splits:
        parts = _dealt(table, name)
        found[name] = {
            str(epsilon): _at(parts, epsilon, seeds if epsilon else 1, pooled.estimate, pooled.standard_error, name)
            for epsilon in epsilons
        }
    return {
        "rows": len(table), "members": MEMBERS, "liars": LIARS, "pooled_aipw": aim, "seeds": seeds, **found,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def _at(
    parts: Mapping[str, pd.DataFrame], epsilon: float | None, seeds: int, truth: float, error: float, split_name: str
) -> dict[str, Any]:
    """spread: by lot honest members have one effect, and the study may say so; else it is estimated."""
    result: dict[str, Any] = {}
    for faulty in (0, LIARS):
        protocol = _protocol(parts, epsilon, faulty, 0.0 if split_name == "lot" else None)
        runs = [_Run.of(parts, protocol, seed) for seed in range(seeds)]
        honest = [run.conclude() for run in runs]
        result[f"f={faulty}"] = _honest(honest, truth, error)
        if faulty:
            result["lies"] = {lie: _lied(runs, honest, lie, parts, protocol, truth) for lie in (*LIES, "rows")}
        sys.stderr.write(f"{split_name}, epsilon {epsilon}, f = {faulty}\n")
    return result


class _Run:
    """One draw of the noise: what is released in it, so that honest and lying runs share it."""

    def __init__(self, parts: Mapping[str, pd.DataFrame], protocol: Protocol, seed: int) -> None:
        noise = seeded(seed)
        self.protocol, self.failed = protocol, ""
        try:
            evidence = {name: tell_evidence(table, protocol, noise) for name, table in parts.items()}
            self.functions, self.aside, self.pool = share_nuisances(evidence, protocol)
            self.sums = {name: tell_sums(parts[name], protocol, one, noise) for name, one in self.functions.items()}
        except (DataError, GuaranteeError) as error:  # an honest refusal is a result here
            self.failed = str(error)

    @staticmethod
    def of(parts: Mapping[str, pd.DataFrame], protocol: Protocol, seed: int) -> _Run:
        return _Run(parts, protocol, seed)

    def conclude(self, lie: str = "") -> FederatedEffect | None:
        if self.failed:
            return None
        sums: dict[str, Any] = dict(self.sums)
        if lie:
            truthful = conclude(sums, self.functions, self.aside, self.pool, self.protocol, "os")
            for name in list(sums)[:LIARS]:
                one = truthful.summaries[name]
                error = float(np.sqrt(max(one.variance, _FLOOR) / one.count + one.privacy))
                sums[name] = LIES[lie](np.asarray(sums[name], dtype=np.float64), self.functions[name], error)
        return conclude(sums, self.functions, self.aside, self.pool, self.protocol, "os")


def _claimed(estimate: float, member: Nuisances) -> float:
    return (estimate - member.guess) * member.denominator / member.clip * LATTICE


def _told(sums: Floats, member: Nuisances) -> float:
    return float(member.guess + member.clip * sums[0] / LATTICE / member.denominator)


def _shift(sums: Floats, member: Nuisances, error: float, errors: float, squares: float | None = None) -> Floats:
    shifted = sums.copy()
    shifted[0] = _claimed(_told(sums, member) + errors * error, member)
    if squares is not None:
        shifted[1] = squares
    return shifted


LIES: dict[str, Callable[[Floats, Nuisances, float], Floats]] = {
    "sign": lambda sums, member, error: np.array([_claimed(-_told(sums, member), member), *sums[1:]]),
    "huge": lambda sums, member, error: np.array([member.count * LATTICE, member.count * LATTICE / 2, 0.0]),
    "absurd": lambda sums, member, error: np.array([1e30, np.nan, 0.0]),
    "quiet": lambda sums, member, error: _shift(sums, member, error, 2.5),
    "certain": lambda sums, member, error: _shift(sums, member, error, 5.0, squares=0.0),
}


def _honest(found: list[FederatedEffect | None], truth: float, error: float) -> dict[str, Any]:
    answers = [one.meta for one in found if one is not None]
    if not answers:
        return {"refused": len(found)}
    estimates = np.array([one.estimate for one in answers])
    result: dict[str, Any] = {
        "refused": len(found) - len(answers), "estimate": float(estimates.mean()), "spread": float(estimates.std()),
        "standard_error": _mean([one.standard_error for one in answers]),
        "sampling_error": _mean([one.sampling_error for one in answers]),
        "privacy_error": _mean([one.privacy_error for one in answers]),
        "nuisance_error": _mean([one.nuisance_error for one in answers]),
        "width": _mean([one.interval[1] - one.interval[0] for one in answers]),
        "covers_pooled": _mean([float(one.interval[0] <= truth <= one.interval[1]) for one in answers]),
        "within_one_error": _mean([float(abs(one.estimate - truth) <= error) for one in answers]),
        "accused": _mean([len(one.accused) for one in answers]),
        "tau": _mean([one.heterogeneity.tau for one in answers]),
        "i2": _mean([one.heterogeneity.i2 for one in answers]),
    }  # fmt: skip
    bounds = [one.bound for one in answers if one.bound is not None]
    return {**result, "bound": _mean(bounds)} if bounds and answers[0].faulty else result


def _lied(
    runs: list[_Run], honest: list[FederatedEffect | None], lie: str, parts: Mapping[str, pd.DataFrame],
    protocol: Protocol, truth: float,
) -> dict[str, Any]:  # fmt: skip
    """shift: of the answer from that of the same noise without lies; within: how often at most the bound; caught: liars
    accused or quarantined; blamed: honest members accused; worst: how often the interval drawn out holds the truth."""
    liars = set(list(parts)[:LIARS])
    if lie == "rows":
        runs = [
            _Run.of({**parts, **{name: _forged(parts[name]) for name in liars}}, protocol, k) for k in range(len(runs))
        ]
    pairs = [(run.conclude("" if lie == "rows" else lie), other) for run, other in zip(runs, honest, strict=True)]
    both = [(one.meta, other.meta) for one, other in pairs if one is not None and other is not None]
    if not both:
        return {"refused": len(pairs)}
    shifts = np.array([one.estimate - other.estimate for one, other in both])
    bounds = [np.inf if one.bound is None else one.bound for one, _ in both]
    return {
        "estimate": _mean([one.estimate for one, _ in both]), "shift": float(np.abs(shifts).mean()),
        "largest_shift": float(np.abs(shifts).max()), "bound": _mean([b for b in bounds if np.isfinite(b)]),
        "caught": _mean([len(liars & {*one.accused, *one.quarantined}) for one, _ in both]),
        "blamed": _mean([len(set(one.accused) - liars) for one, _ in both]),
        "covers_pooled": _mean([float(one.interval[0] <= truth <= one.interval[1]) for one, _ in both]),
        "worst_covers": _mean(
            [float(one.worst[0] <= truth <= one.worst[1]) if one.worst else 0.0 for one, _ in both]
        ),
    }  # fmt: skip


def _mean(values: list[float] | list[int]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _forged(table: pd.DataFrame) -> pd.DataFrame:
    """Rows in which quitting takes off 15 kg more."""
    return table.assign(**{_Y: table[_Y] - 15 * table[_T]})


def _protocol(parts: Mapping[str, pd.DataFrame], epsilon: float | None, faulty: int, spread: float | None) -> Protocol:
    names = [name for name in next(iter(parts.values())).columns if name not in (_T, _Y)]
    variables = tuple(Variable(name, bounds=_BOUNDS.get(name, (-1.0, 1.0))) for name in (*names, _T, _Y))
    settings = Settings(faulty, floor=_FLOOR, spread=spread)
    return planned(Target(_T, _Y, tuple(names)), Dictionary(variables, _NORM), settings, epsilon, 1e-5, 0.6)


def _dealt(table: pd.DataFrame, name: str) -> dict[str, pd.DataFrame]:
    if name == "lot":
        parts = split(table, MEMBERS, generator=np.random.default_rng(0), ratio=1.0)
    else:
        key = table["age"] if name == "age" else sum(level * table[f"education_{level}"] for level in range(1, 5))
        order = np.argsort(np.asarray(key), kind="stable")
        parts = [table.iloc[part].reset_index(drop=True) for part in np.array_split(order, MEMBERS)]
    return {f"site-{k}": part for k, part in enumerate(parts)}
