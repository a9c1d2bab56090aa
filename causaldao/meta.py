"""Robust meta-analysis: the effects that members report, of which up to f may be forged, as one.

A member k reports an estimate, its variance per record and its noisy count; the noise's share p_k of the variance comes
from the study's scale and the member's denominator. The scale by which it is judged is s_k² = v_k/n_k + p_k + τ²: v_k
is drawn to the members' median as far as it is noise, and held within a factor of four of it and above the study's
public floor, p_k·n_k² below four times its median, n_k within the study's clamp, so neither a claim of certainty nor
one of ignorance buys anything. The median of v_k itself is held above half of what the pooled evidence foretells.

The estimate μ solves Σ w_k ψ_k = 0, ψ_k the deviation from μ held within ±K·s_k (Huber, Annals of Mathematical
Statistics 35, 1964), K = 1.5: a member's pull is at most w_k·K·s_k, whatever it says, and never more than twice the
median of these; a claim of precision makes its own pull smaller. Where normal scales are right this costs 3.7 % of
variance, which the interval counts. With f = 0, K is infinite and μ the weighted mean. Models:

    fixed    w_k ∝ n_k, at most twice the median: the mean over the records of these members; its error is theirs.
    random   w_k ∝ 1/s_k², at most twice the median: the mean over members like these; Hartung-Knapp's error (Statistics
             in Medicine 20, 2001), never below the fixed kind's, and Student's quantile.

τ² solves Σ (ψ_k/s_k)² = (n - 1)·E ψ(Z)²: Paule & Mandel's (1982) equation in the form of Huber's proposal 2. Where the
study states the ``spread`` that honest members may have, τ is that, and a test of deviation has a normal critical
value; else τ is estimated from the others and the critical value is Student's, several times as large: eight members
cannot tell a liar a few errors away from an unusual institution.

*Accused* is who deviates from the estimate of the kept others by more than the critical value, at family-wise level α
over members. The accused are dropped, worst first, at most f of them; beyond f they stay, and there is no bound.

Guarantee. Let the scales be as they are, and let any f' of the kept be liars, f' = f less those dropped or malformed.
What the honest kept alone would answer by the same rule lies within ``honest``: its ends are the roots without the f'
largest and the f' smallest pulls, since the sum of the smallest n - f' decreasing functions is decreasing. That is
exact, not a bound in the mean; ``bound`` is the larger distance of an end from the estimate, and ``worst`` the interval
drawn out by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2
from scipy.stats import t as student

from causaldao.aggregation.rules import require
from causaldao.errors import GuaranteeError, MisuseError
from causaldao.models.nuisance import Floats
from causaldao.models.summaries import Summary

Model = Literal["fixed", "random"]
MODELS: tuple[Model, ...] = ("fixed", "random")
_PULL = 1.5  # K: Huber's; smaller bounds liars more and costs more variance
_WEIGHT_CAP = 2.0  # times the median, as in the pool of evidence
_TRUSTED = 4.0  # times the median, and its inverse: how far a variance per record is believed
_HALVINGS = 60


@dataclass(frozen=True)
class Settings:
    """What the study fixes.

    faulty: f; rows: the clamp of counts; floor: the least variance per record that is believed, in squared units of the
    effect; spread: the standard deviation of honest members' effects, None: estimated; accusation: α.
    """

    faulty: int = 0
    model: Model = "fixed"
    level: float = 0.95
    accusation: float = 0.01
    rows: tuple[float, float] = (10, 1_000_000)
    floor: float = 0.0
    spread: float | None = None

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise MisuseError(f"There is no model {self.model!r}; choose one of {', '.join(MODELS)}.")
        for name, value in (("level", self.level), ("accusation", self.accusation)):
            if not 0 < value < 1:
                raise MisuseError(f"{name}={value}: expected a number between 0 and 1.")
        if self.faulty < 0 or not 0 < self.rows[0] <= self.rows[1]:
            raise MisuseError(
                f"Expected faulty = {self.faulty} >= 0 and 0 < rows[0] <= rows[1], but rows = {self.rows}."
            )
        for name, bound in (("floor", self.floor), ("spread", self.spread or 0.0)):
            if not 0 <= bound < math.inf:
                raise MisuseError(f"{name}={bound}: expected a finite number of at least 0.")


@dataclass(frozen=True)
class Heterogeneity:
    """Q of the kept members, its p-value (χ², n - 1), I² = max(0, 1 - (n - 1)/Q), and τ in the unit of the effect."""

    q: float
    p: float
    i2: float
    tau: float


@dataclass(frozen=True)
class Meta:
    """One answer from many.

    standard_error² = sampling_error² + privacy_error² + nuisance_error² in the fixed model; in the random one it also
    counts members. nuisance_error: what noise left of the shared nuisances' errors, the same for all members.
    deviations: of each from the kept others, in their standard deviations; above ``critical`` it is an accusation.
    quarantined: why a summary was not taken. honest, bound, worst: see the module; None while a kept member is accused.
    """

    estimate: float
    standard_error: float
    sampling_error: float
    privacy_error: float
    nuisance_error: float
    interval: tuple[float, float]
    level: float
    model: Model
    faulty: int
    weights: Mapping[str, float]
    deviations: Mapping[str, float]
    critical: float
    accused: tuple[str, ...]
    quarantined: Mapping[str, str]
    heterogeneity: Heterogeneity
    honest: tuple[float, float] | None
    bound: float | None
    worst: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        return {
            **plain,
            **{name: dict(plain[name]) for name in ("weights", "deviations", "quarantined")},
            "heterogeneity": vars(self.heterogeneity),
        }


def combine(summaries: Mapping[str, Summary], settings: Settings) -> Meta:
    """The effect from n members' summaries, of which ``settings.faulty`` may be forged.

    The order of members is irrelevant. A summary that is not finite is quarantined by name and counts among the f.

    Raises:
        MisuseError: no member, or the random model with fewer than three.
        GuaranteeError: with f > 0, n < 2f + 3, more than f malformed, or f members who together pull as hard as all
            others. With f = 0 nobody is judged: what is malformed is only set aside by name.
    """
    n, f = len(summaries), settings.faulty
    if f:
        require("multi-krum", n, f)  # as many as the pool of their evidence needs
    quarantined = {name: reason for name in sorted(summaries) if (reason := _malformed(summaries[name]))}
    if f and len(quarantined) > f:
        told = [f"{name}: {reason}" for name, reason in quarantined.items()]
        raise GuaranteeError(
            f"{len(quarantined)} of {n} summaries are malformed, and the study bears {f}: find out why.", problems=told
        )
    names = [name for name in sorted(summaries) if name not in quarantined]
    if len(names) < (3 if settings.model == "random" else 1):
        raise MisuseError(
            f"{len(names)} members answered: the {settings.model} model needs "
            f"{3 if settings.model == 'random' else 1}. Wait for more, or take the fixed model."
        )
    members = _Members.of([summaries[name] for name in names], settings)
    keep, possible = np.ones(len(names), dtype=np.bool_), f - len(quarantined)
    shared = float(np.median([summaries[name].shared for name in names]))
    critical = _critical(settings, n, len(names))
    while True:
        deviations = members.deviations(keep)
        worst = int(np.argmax(np.where(keep, deviations, -1.0)))
        if not possible or deviations[worst] <= critical:
            break
        keep[worst], possible = False, possible - 1
    accused = deviations > critical if f else np.zeros(len(names), dtype=np.bool_)
    found = members.fit(keep)
    return _told(members, found, keep, accused, possible, names, deviations, critical, quarantined, shared)


def _malformed(one: Summary) -> str:
    numbers = (one.count, one.estimate, one.variance, one.privacy, one.shared, one.doubt, one.typical)
    if not all(math.isfinite(number) and abs(number) < 1e150 for number in numbers):
        return f"it holds a number that is none, or beyond 1e150: {numbers}"
    return f"it counts {one.count:.4g} records" if one.count <= 0 else ""


def _critical(settings: Settings, members: int, kept: int) -> float:
    """Two-sided quantile at level α/n: normal where τ is stated; else Student's with the freedom that the others' scale
    has, less that of members whose deviations are held."""
    chance = 1 - settings.accusation / (2 * members)
    if settings.spread is not None:
        return NormalDist().inv_cdf(chance)
    return float(student.ppf(chance, max(1, kept - 2 - settings.faulty)))


@dataclass(frozen=True)
class _Fit:
    weights: Floats
    scale: Floats
    reach: Floats
    tau2: float
    estimate: float


@dataclass(frozen=True, eq=False)
class _Members:
    """estimates, counts, sampling variance and noise's variance of each member (n,), as far as they are believed."""

    settings: Settings
    estimates: Floats
    counts: Floats
    sampling: Floats
    privacy: Floats

    @staticmethod
    def of(summaries: list[Summary], settings: Settings) -> _Members:
        counts = np.clip([one.count for one in summaries], *settings.rows)
        stated = np.array([one.variance for one in summaries])
        typical = float(np.median([one.typical for one in summaries])) / 2
        middle = max(float(np.median(stated)), typical, settings.floor, 1e-300)
        doubt = np.array([one.doubt for one in summaries]) / (middle / 2)
        variances = np.clip(
            middle + (stated - middle) / (1 + doubt**2), max(middle / _TRUSTED, settings.floor), middle * _TRUSTED
        )
        estimates = np.array([one.estimate for one in summaries])
        per_record = np.array([one.privacy for one in summaries]) * counts**2
        privacy = np.clip(per_record, 0.0, _TRUSTED * max(float(np.median(per_record)), 0.0)) / counts**2
        return _Members(settings, estimates, counts, variances / counts, privacy)

    @property
    def pull(self) -> float:
        return _PULL if self.settings.faulty else math.inf

    def fit(self, keep: Any, *, tau2: float | None = None) -> _Fit:
        """μ of the kept, weights that sum to 1 over them, their scales and τ²."""
        spread = self.settings.spread
        if tau2 is None:
            tau2 = self._between(keep) if spread is None else spread**2
        scale = np.sqrt(self.sampling + self.privacy + tau2)
        raw = self.counts if self.settings.model == "fixed" else scale**-2
        capped = np.where(keep, np.minimum(raw, _WEIGHT_CAP * float(np.median(raw[keep]))), 0.0)
        weights = capped / capped.sum()
        middle = float(np.median((weights * scale)[keep]))
        most = np.divide(_WEIGHT_CAP * middle, weights, out=scale.copy(), where=weights > 0)
        reach = self.pull * np.minimum(scale, most)
        return _Fit(weights, scale, reach, tau2, self._root(weights, reach))

    def held(self, estimate: float | Floats, reach: Floats) -> Floats:
        """ψ: deviations from an estimate, held within ±reach."""
        return np.clip(self.estimates - estimate, -reach, reach)

    def _root(self, weights: Floats, reach: Floats) -> float:
        """μ by its breakpoints, between which the sum of pulls is a line."""
        mean = float(weights @ self.estimates)
        if not self.settings.faulty:
            return mean
        used = weights > 0
        points = np.sort(np.concatenate([self.estimates + reach, self.estimates - reach])[
            np.concatenate([used, used])
        ])  # fmt: skip
        pulls = self.held(points[:, None], reach) @ weights
        right = int(np.argmax(pulls <= 0))
        left = max(right - 1, 0)
        drop = pulls[left] - pulls[right]
        share = pulls[left] / drop if drop > 0 else 0.5
        return float(points[left] + share * (points[right] - points[left]))

    def _between(self, keep: Any) -> float:
        """τ² of the kept, by Brent's method."""
        if int(keep.sum()) < 2:
            return 0.0
        expected = (int(keep.sum()) - 1) * _squared(self.pull)

        def excess(tau2: float) -> float:
            found = self.fit(keep, tau2=tau2)
            return float((((self.held(found.estimate, found.reach) / found.scale) ** 2)[keep]).sum()) - expected

        if excess(0.0) <= 0:
            return 0.0
        high = float(np.ptp(self.estimates[keep])) ** 2
        while excess(high) > 0:
            high *= 2
        return float(brentq(excess, 0.0, high, xtol=1e-12 * high, rtol=1e-12))

    def deviations(self, keep: Any) -> Floats:
        """(n,): |estimate - that of the kept others| in standard deviations of the difference."""
        found = np.zeros(len(self.estimates))
        for k in range(len(found)):
            others = keep.copy()
            others[k] = False
            if others.any():
                fit = self.fit(others)
                variance = fit.scale[k] ** 2 + _cost(self.pull) * float((fit.weights**2 * fit.scale**2).sum())
                found[k] = abs(self.estimates[k] - fit.estimate) / math.sqrt(variance)
        return found

    def ends(self, fit: _Fit, liars: int) -> tuple[float, float]:
        """The least and the largest root when any ``liars`` of the kept are left out."""
        if not liars:
            return fit.estimate, fit.estimate
        used = fit.weights > 0
        pulls = np.sort((fit.weights * fit.reach)[used])
        if float(pulls[-liars:].sum()) >= float(pulls[:-liars].sum()):
            raise GuaranteeError(
                f"{liars} members pull as hard as all others of the {int(used.sum())} left: no rule bears them. "
                "Admit more members, or state a smaller f."
            )

        def without(estimate: float, largest: bool) -> float:
            pulls = np.sort((fit.weights * self.held(estimate, fit.reach))[used])
            return float(pulls[:-liars].sum() if largest else pulls[liars:].sum())

        reach = fit.reach[used]
        span = float((self.estimates[used] - reach).min()), float((self.estimates[used] + reach).max())
        low, high = (_halved(lambda m, side=side: without(m, side), *span) for side in (True, False))
        return low, high


def _halved(decreasing: Any, low: float, high: float) -> float:
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if decreasing(middle) > 0 else (low, middle)
    return (low + high) / 2


def _squared(pull: float) -> float:
    """E ψ(Z)² of a standard normal Z held within ±pull."""
    if math.isinf(pull):
        return 1.0
    inside = 2 * NormalDist().cdf(pull) - 1
    return inside - 2 * pull * NormalDist().pdf(pull) + pull**2 * (1 - inside)


def _cost(pull: float) -> float:
    """The variance of μ beside that of the mean, for normal errors: E ψ² / P(|Z| < pull)²."""
    return 1.0 if math.isinf(pull) else _squared(pull) / (2 * NormalDist().cdf(pull) - 1) ** 2


def _told(
    members: _Members, fit: _Fit, keep: Any, accused: Any, possible: int, names: list[str], deviations: Floats,
    critical: float, quarantined: Mapping[str, str], shared: float,
) -> Meta:  # fmt: skip
    settings, squared = members.settings, fit.weights**2 * _cost(members.pull)
    sampling, privacy = math.sqrt(squared @ members.sampling), math.sqrt(squared @ members.privacy)
    error, quantile = math.hypot(sampling, privacy), NormalDist().inv_cdf((1 + settings.level) / 2)
    kept = int(keep.sum())
    if settings.model == "random":
        held = float(fit.weights @ members.held(fit.estimate, fit.reach) ** 2) / _squared(members.pull)
        error = math.sqrt(max(held * _cost(members.pull) / (kept - 1), error**2))
        quantile = float(student.ppf((1 + settings.level) / 2, kept - 1))
    error = math.sqrt(error**2 + shared)
    ends = members.ends(fit, possible) if settings.faulty and not (accused & keep).any() else None
    interval = (fit.estimate - quantile * error, fit.estimate + quantile * error)
    found = Meta(
        estimate=fit.estimate, standard_error=error, sampling_error=sampling, privacy_error=privacy,
        nuisance_error=math.sqrt(shared), interval=interval,
        level=settings.level, model=settings.model, faulty=settings.faulty,
        weights={name: float(w) for name, w, k in zip(names, fit.weights, keep, strict=True) if k},
        deviations={name: float(value) for name, value in zip(names, deviations, strict=True)}, critical=critical,
        accused=tuple(name for name, one in zip(names, accused, strict=True) if one), quarantined=quarantined,
        heterogeneity=_heterogeneity(members, fit, keep), honest=None, bound=None, worst=None,
    )  # fmt: skip
    if ends is None and settings.faulty:
        return found
    low, high = ends or (fit.estimate, fit.estimate)
    bound = max(fit.estimate - low, high - fit.estimate)
    return replace(found, honest=(low, high), bound=bound, worst=(interval[0] - bound, interval[1] + bound))


def _heterogeneity(members: _Members, fit: _Fit, keep: Any) -> Heterogeneity:
    variance = (members.sampling + members.privacy)[keep]
    estimates, free = members.estimates[keep], int(keep.sum()) - 1
    centre = float(np.average(estimates, weights=1 / variance))
    q = float(((estimates - centre) ** 2 / variance).sum())
    p = float(chi2.sf(q, free)) if free else 1.0
    return Heterogeneity(q, p, max(0.0, 1 - free / q) if q > 0 else 0.0, math.sqrt(fit.tau2))
