"""What one member tells of an effect: a bounded sum of influence values under nuisances that everybody knows.

Nuisances that a member fits to its private rows would change with every row, and a noised sum of influence values under
them would not be private by the bound of one value. So here they are made of evidence that is released already: slopes
shared by all, from what varies *within* members in the pool's weights, shrunk
as far as their noise calls for, and an intercept of each member as far as its
own noisy means show that it has one. They cost no privacy, and all influence values aim at the same thing.

Estimands. e(z) is the score, m(t, z) the outcome's regression, c a public guess of the effect (its coefficient in m).
The estimate is c + Σ v_i / D, which is not far from the truth if e or m is right (Robins, Rotnitzky & Zhao, JASA 89,
1994; for the treated Hahn, Econometrica 66, 1998; "plm": Robinson, Econometrica 56, 1988):

    ate   v = (t / e - (1 - t) / (1 - e)) (y - m(t, z))       D = the noisy count of records
    att   v = (t - (1 - t) e / (1 - e)) (y - m(t, z))         D = the noisy count of the treated
    plm   v = (t - e(z)) (y - m(t, z)), e linear              D = the noisy sum of squares of t - e(z)

m has one slope on t, so m(1, z) - m(0, z) = c for each record. e is logistic with Fisher's discriminant slopes (1936),
which second moments give, kept within [p, 1 - p].

Formal guarantee. A record counts as u = v / B, clipped to [-1, 1], in the integer vector (q, s, k): q = u·L rounded,
s = u²·L/2 rounded, k = L/4 where |v| > B, L = `LATTICE`. Its squared norm is at most L²(1 + 1/4 + 1/16), whatever the
record holds and **whatever the nuisances are**, even if liars chose them: they are fixed before the rows are read again
and no rows enter them but through a release. So adding or removing one record moves the sum by at most `SENSITIVITY`,
exactly, and discrete Gaussian noise of scale σ is one Gaussian release of noise multiplier σ/`SENSITIVITY`. It composes
adaptively with the release of evidence before it (Mironov 2017; Canonne, Kamath & Steinke 2020), D is read from that
release, and everything else is post-processing.

Clipping biases the estimate by less than the clipped share times (largest |v| - B), B/D per record; the noised share of
clipped records is part of the summary, and above `CLIPPED` it is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Dictionary, Evidence
from causaldao.models.nuisance import Floats, Integers

Estimand = Literal["ate", "att", "plm"]
ESTIMANDS: tuple[Estimand, ...] = ("ate", "att", "plm")

LATTICE = 1 << 20
_PARTS = (1.0, 1 / 2, 1 / 4)  # of u, u² and the flag: the estimate gets most of the noise's room
SENSITIVITY = LATTICE * math.sqrt(sum(part**2 for part in _PARTS))
CLIPPED = 0.01
_REACH = 4.5  # spreads of v at which it is clipped
_LEAST = 0.01  # variance of what is left of a variable, in scaled units: a twentieth of its range is its least spread
_DISTINCT = 3.0  # standard deviations of its noise that a denominator must exceed
_LOGIT_NORMAL = math.pi / 8  # E expit(a + N(0, s²)) is near expit(a / √(1 + s²π/8)) (MacKay, 1992)
_MAD = 1.4826


@dataclass(frozen=True)
class Target:
    """What is asked. ``covariates`` is an adjustment set; ``overlap`` the public p: scores are kept in [p, 1 - p];
    ``clip`` the public B in the outcome's unit, None: `_REACH` spreads of v as the pooled evidence tells them."""

    treatment: str
    outcome: str
    covariates: tuple[str, ...] = ()
    estimand: Estimand = "ate"
    overlap: float = 0.05
    clip: float | None = None

    def __post_init__(self) -> None:
        roles = [self.treatment, self.outcome, *self.covariates]
        if twice := sorted({name for name in roles if roles.count(name) > 1}):
            raise MisuseError(f"{', '.join(twice)} has two roles; treatment, outcome and covariates must differ.")
        if self.estimand not in ESTIMANDS:
            raise MisuseError(f"There is no estimand {self.estimand!r}; choose one of {', '.join(ESTIMANDS)}.")
        if not 0 < self.overlap < 0.5:
            raise MisuseError(f"overlap={self.overlap}: expected a score between 0 and 0.5, such as 0.05.")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise MisuseError(f"clip={self.clip}: expected a finite number above 0, in the outcome's unit.")


@dataclass(frozen=True, eq=False)
class Nuisances:
    """The public functions under which one member's records are read, in scaled units of the dictionary.

    mean (d,): the pool's means of (covariates, treatment, outcome), the member's own intercepts added to the last two;
    score (d-2,): slopes of logit e, or of e itself in "plm"; intercept: logit e at ``mean``; slopes (d-1,): of m on
    (covariates, treatment); guess c, clip B and ``unit`` in natural units, one unit of y per unit of treatment.
    denominator D and its noise, in records; product: the root mean square of E δη·δm, δη and δm the errors of the log
    odds and of the regression, as far as chance and noise in the pooled evidence make them: to second order that is
    what they leave in the estimate. typical: the spread of v that the pooled evidence foretells.
    """

    target: Target
    mean: Floats
    score: Floats
    intercept: float
    slopes: Floats
    guess: float
    clip: float
    unit: float
    count: float
    count_noise: float
    denominator: float
    denominator_noise: float
    product: float
    typical: float


@dataclass(frozen=True)
class Summary:
    """What a member's release says: ``variance`` is that of the estimate times the count, without noise's part.

    privacy: the variance of the estimate that noise brings; clipped: the noised share of clipped records, and the
    standard deviation of its noise; shared: the mean square of what errors of score and regression together leave in
    the estimate, and typical: the variance per record that the pooled evidence foretells, both the same for all
    members; doubt: the standard deviation of the noise in ``variance``. Natural units. ``variance`` may come out below
    0 under noise: a floor is the reader's affair.
    """

    count: float
    estimate: float
    variance: float
    privacy: float
    clipped: tuple[float, float] = (0.0, 0.0)
    shared: float = 0.0
    doubt: float = 0.0
    typical: float = 0.0


def nuisances(
    target: Target, evidence: Mapping[str, Evidence], weights: Mapping[str, float], *, noiseless_clip: bool = False
) -> tuple[dict[str, Nuisances], dict[str, str]]:
    """The public functions of each member, and why a member has none: what its evidence says rules an answer out.

    weights: the robust pool's (`causaldao.pool`), over some of the members. A member is set aside, by name, where its
    released count is drowned in noise, or where (nearly) all or none of its records are treated: positivity is
    violated there. ``noiseless_clip``: B as large as v can get, for a federation without privacy.

    Raises:
        MisuseError: an unknown name; a weight of a member without evidence.
        DataError: the pooled treatment or outcome has no variation left, or not more than the noise.
    """
    shared = _Shared.of(target, evidence, weights, noiseless_clip)
    residuals = {name: shared.residuals(one) for name, one in evidence.items()}
    shrunk = [_shrunk([residuals[name][j] for name in evidence]) for j in range(2)]
    found, aside = {}, {}
    for place, (name, one) in enumerate(evidence.items()):
        if reason := shared.unusable(one):
            aside[name] = f"{name}: {reason}"
        else:
            found[name] = shared.member(one, shrunk[0][place], shrunk[1][place])
    return found, aside


def contributions(frame: pd.DataFrame, dictionary: Dictionary, member: Nuisances) -> Integers:
    """(n, 3) int64: the vector (q, s, k) of each record; rows must be numbers (`client.data.checks.conform`).

    A record's vector depends on that record and on public things alone. What is not finite counts as 0.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        u = influence_values(frame, dictionary, member) / member.clip
    u = np.nan_to_num(u, nan=0.0, posinf=2.0, neginf=-2.0)
    beyond, u = np.abs(u) > 1, np.clip(u, -1.0, 1.0)
    columns = (u, u**2, beyond.astype(np.float64))
    scaled = [np.rint(column * (part * LATTICE)) for column, part in zip(columns, _PARTS, strict=True)]
    return np.stack(scaled, axis=1).astype(np.int64)


def exact_sums(frame: pd.DataFrame, dictionary: Dictionary, member: Nuisances) -> Integers:
    """(3,) int64: the sum of `contributions`. Private: it must not leave the node without noise."""
    return np.asarray(contributions(frame, dictionary, member).sum(axis=0), dtype=np.int64)


def influence_values(frame: pd.DataFrame, dictionary: Dictionary, member: Nuisances) -> Floats:
    """(n,) v of each record, in natural units, before it is clipped: to the last bit the same beside other records."""
    target = member.target
    names = [*target.covariates, target.treatment, target.outcome]
    if unknown := [name for name in names if name not in dictionary.names]:
        raise MisuseError(
            f"There is no variable {', '.join(unknown)}; the dictionary has {', '.join(dictionary.names)}."
        )
    x = dictionary.encode(frame[list(dictionary.names)])[:, [dictionary.names.index(name) for name in names]]
    centred = x - member.mean
    rest, scored = centred[:, -1] - _along(centred[:, :-1], member.slopes), _along(centred[:, :-2], member.score)
    if target.estimand == "plm":
        return np.asarray(member.unit * (centred[:, -2] - scored) * rest)
    p, treated = target.overlap, (x[:, -2] > 0).astype(np.float64)
    e = np.clip(1 / (1 + np.exp(-np.clip(member.intercept + scored, -30, 30))), p, 1 - p)
    weight = (
        treated - (1 - treated) * e / (1 - e) if target.estimand == "att" else treated / e - (1 - treated) / (1 - e)
    )
    return np.asarray(member.unit * weight * rest)


def _along(columns: Floats, weights: Floats) -> Floats:
    """(n,) columns @ weights, one column after the other. A matrix product rounds a row otherwise at another place of
    the table, so that a record that comes or goes would also move what others count as."""
    total = np.zeros(len(columns))
    for column, weight in zip(columns.T, weights, strict=True):
        total += column * weight
    return total


def summary(sums: Sequence[float] | Integers, member: Nuisances, sigma: float) -> Summary:
    """Read what was released, (3,) in lattice units, with the *study's* σ; the scale is never one that a member states.

    Raises DataError where it is not three finite numbers, or more than the count of records can add up to.
    """
    values = np.asarray(sums, dtype=np.float64)
    if values.shape != (3,) or not np.isfinite(values).all():
        raise DataError(f"A summary has 3 finite numbers, but {values.tolist()} came.")
    total, squares, beyond = values / (LATTICE * np.array(_PARTS))
    count, d, b, noise = member.count, member.denominator, member.clip, sigma / LATTICE
    room = count + 6 * (member.count_noise + 2 * noise) + 1
    slack = [6 * noise / part + 1 for part in _PARTS]
    if abs(total) > room or not (-slack[1] <= squares <= room + slack[1] and -slack[2] <= beyond <= room + slack[2]):
        raise DataError(
            f"The summary adds up to {total:.4g} with squares {squares:.4g}, {beyond:.4g} of them clipped: "
            f"{count:.4g} records in [-1, 1] cannot."
        )
    step = b * total / d
    variance = (b * count / d) ** 2 * (squares / count - (total / count) ** 2)
    privacy = (b * noise / d) ** 2 + (step * member.denominator_noise / d) ** 2
    clipped = (beyond / count, noise / _PARTS[2] / count)
    doubt = b**2 * count / d**2 * noise / _PARTS[1]
    return Summary(
        count, member.guess + step, variance, privacy, clipped, member.product**2, doubt, member.typical**2
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Shared:
    """What the pool says, in scaled units; columns are (covariates, treatment, outcome), d of them.

    t01: half the distance of the treatment's two values is 1 scaled unit, so a share is (1 + mean) / 2.
    residual (2, d): the vectors that take from a mean what the covariates (and, for y, the treatment) say of it.
    """

    target: Target
    cells: tuple[int, ...]
    mean: Floats
    within: Floats
    score: Floats
    slopes: Floats
    guess: float
    clip: float
    unit: float
    spread: Floats
    residual: Floats
    product: float
    typical: float

    @staticmethod
    def of(
        target: Target, evidence: Mapping[str, Evidence], weights: Mapping[str, float], noiseless_clip: bool
    ) -> _Shared:
        if strangers := sorted(set(weights) - set(evidence)):
            raise MisuseError(f"{', '.join(strangers)} has a weight but no evidence.")
        first = next(iter(evidence.values()))
        names = [*target.covariates, target.treatment, target.outcome]
        cells = tuple(first.index(name) + 1 for name in names)
        mean, within, noise = _pooled(evidence, weights, cells)
        t, y = len(cells) - 2, len(cells) - 1
        half = first.half.numpy()
        if within[t, t] <= _DISTINCT * noise + 1e-12:
            raise DataError(
                f"{target.treatment} varies within members by {within[t, t]:.3g} (variance, scaled units), expected "
                f"more than {_DISTINCT:g} times its noise of {noise:.3g}: use more records or a larger epsilon."
            )
        if within[y, y] <= 0 and noise == 0:
            raise DataError(f"{target.outcome} does not vary within any member: there is nothing to estimate.")
        records = sum(weight**2 / evidence[name].count for name, weight in weights.items())
        arms = _Arms.of(within, t, noise, records)
        residual = np.zeros((2, len(cells)))
        residual[0, :t], residual[0, t] = -arms.line, 1.0
        residual[1, :y], residual[1, y] = -arms.slopes, 1.0
        noisy = math.sqrt(2) * noise * (residual**2).sum(axis=1)
        spread = np.maximum(np.einsum("ij,jk,ik->i", residual, within, residual) + noisy, _LEAST)
        plain = target.estimand == "plm"
        unit = float(half[cells[y] - 1]) / (float(half[cells[t] - 1]) if plain else 1.0)
        guess = unit * float(arms.slopes[t]) * (1.0 if plain else 2.0)
        clip = target.clip or _clip(target, unit, spread, float(mean[t]), arms.slopes, noiseless_clip)
        typical = _typical(target, unit, np.maximum(spread - noisy, _LEAST), float(mean[t]))
        product = unit * arms.product * (within[t, t] / 2 / max(float(spread[0]), 1e-9) if plain else 1.0)
        return _Shared(
            target, cells, mean, within, arms.line if plain else arms.score, arms.slopes, guess, clip, unit, spread,
            residual, product, typical,
        )  # fmt: skip

    def residuals(self, one: Evidence) -> Floats:
        """(2, 2): of treatment and outcome, the member's own intercept beside the pool's, and its error's variance."""
        s = one.moments[0, list(self.cells)].numpy() / one.count - self.mean
        noise = one.noise / one.count
        own = self.residual @ s
        error = self.spread / one.count + noise**2 * (self.residual**2).sum(axis=1) / 2
        return np.stack([own, error], axis=1)

    def unusable(self, one: Evidence) -> str:
        """Why a member cannot answer, as its released evidence tells; "" where it can."""
        if one.count < max(_DISTINCT * one.noise, 2.0):
            return (
                f"it counts {one.count:.4g} records with noise {one.noise:.3g}, expected {_DISTINCT:g} times as much: "
                "use more records or a larger epsilon"
            )
        denominator, noise = self.denominator(one)
        if self.target.estimand == "plm":
            if denominator <= _DISTINCT * noise:
                return (
                    f"{self.target.treatment} varies by {denominator:.4g} (sum of squares, given the covariates) with "
                    f"noise {noise:.3g}, expected {_DISTINCT:g} times as much: use more records or a larger epsilon"
                )
            return ""
        treated, noisy = self._treated(one)
        for arm, number in (("treated", treated), ("untreated", one.count - treated)):
            if number < max(2.0, self.target.overlap * one.count / 2, noisy):
                return (
                    f"positivity is violated: about {max(number, 0):.3g} of {one.count:.4g} records are {arm} "
                    f"(noise {noisy:.3g}), so nothing tells what the other choice does there"
                )
        if denominator <= _DISTINCT * noise:
            return (
                f"about {denominator:.3g} treated records with noise {noise:.3g}, expected {_DISTINCT:g} times as "
                "much: use more records or a larger epsilon"
            )
        return ""

    def denominator(self, one: Evidence) -> tuple[float, float]:
        """D of the member's released evidence, and the standard deviation of its noise, in records."""
        if self.target.estimand == "ate":
            return one.count, one.noise
        if self.target.estimand == "att":
            return self._treated(one)
        vector = np.zeros(len(one.moments))
        vector[list(self.cells)] = self.residual[0]
        vector[0] = -self.residual[0] @ self.mean
        return float(vector @ one.moments.numpy() @ vector), one.noise * float(vector @ vector)

    def _treated(self, one: Evidence) -> tuple[float, float]:
        """The noisy count of the treated, (n + Σ x_t) / 2, and its noise."""
        return float(one.count + one.moments[0, self.cells[-2]]) / 2, one.noise * math.sqrt(1.5) / 2

    def member(self, one: Evidence, in_treatment: float, in_outcome: float) -> Nuisances:
        mean, p = self.mean.copy(), self.target.overlap
        mean[-1] += in_outcome
        if self.target.estimand == "plm":
            mean[-2] += in_treatment
            intercept = 0.0
            mean[-1] += self.slopes[-1] * in_treatment  # m is centred at the pool's treatment, not at the member's
        else:
            share = min(max((1 + mean[-2] + in_treatment) / 2, p), 1 - p)
            wide = 1 + _LOGIT_NORMAL * float(self.score @ self.within[:-2, :-2] @ self.score)
            intercept = math.log(share / (1 - share)) * math.sqrt(max(wide, 1.0))
        denominator, noise = self.denominator(one)
        return Nuisances(
            self.target, mean, self.score, intercept, self.slopes, self.guess, self.clip, self.unit, one.count,
            one.noise, denominator, noise, self.product, self.typical,
        )  # fmt: skip


def _pooled(
    evidence: Mapping[str, Evidence], weights: Mapping[str, float], cells: Sequence[int]
) -> tuple[Floats, Floats, float]:
    """Means (d,), covariance within members (d, d), and the standard deviation of the noise of one of its entries.

    A noisy mean squared is too large by its noise's variance, which is taken off.
    """
    d, mean, variance = len(cells), np.zeros(len(cells)), 0.0
    within = np.zeros((d, d))
    for name, weight in weights.items():
        one = evidence[name]
        s, noise = one.moments[0, list(cells)].numpy() / one.count, one.noise / one.count
        block = one.moments[list(cells)][:, list(cells)].numpy() / one.count
        mean += weight * s
        within += weight * (block - np.outer(s, s) + noise**2 / 2 * np.eye(d))
        variance += weight**2 * noise**2 / 2
    return mean, within, math.sqrt(variance)


@dataclass(frozen=True, eq=False)
class _Arms:
    """Slopes from the covariance of the covariates within arms, whose eigenvectors treatment and outcome share.

    score (t,): Σ⁻¹(μ₁ - μ₀), those of logit P(treated | z) (Fisher 1936); line (t,): of the treatment itself; slopes
    (t + 1,): of the outcome on (covariates, treatment); product: the standard deviation of E δη·δm, which the errors of
    score and regression leave in the estimate, in scaled units of the outcome.
    """

    score: Floats
    line: Floats
    slopes: Floats
    product: float

    @staticmethod
    def of(within: Floats, t: int, noise: float, records: float) -> _Arms:
        """records: 1 over the effective number of records."""
        cross, own, outcome = within[:t, t], float(within[t, t]), within[:t, t + 1]
        arms = within[:t, :t] - np.outer(cross, cross) / own
        values, vectors = np.linalg.eigh((arms + arms.T) / 2) if t else (np.zeros(0), np.zeros((0, 0)))
        values = np.maximum(values, max(2 * noise, 1e-9 * float(values.max(initial=0.0)), 1e-12))
        rest = max(float(within[t + 1, t + 1] - within[t, t + 1] ** 2 / own), _LEAST)
        score, first = _filtered(values, vectors.T @ (2 * cross / own), 2 * noise / own, noise, 4 * records / own, 1.0)
        slopes, second = _filtered(
            values, vectors.T @ (outcome - cross * within[t, t + 1] / own), noise, noise, records * rest, rest / 2
        )
        product = math.sqrt(float((values**2 * first * second).sum()))
        score, slopes = vectors @ score, vectors @ slopes
        line = score * own / 2 / (1 + max(float(cross @ score) / 2, 0.0))
        on_treatment = (float(within[t, t + 1]) - float(cross @ slopes)) / own
        return _Arms(score, line, np.concatenate([slopes, [on_treatment]]), product)


def _filtered(
    values: Floats, right: Floats, noise: float, noise_within: float, sampling: float, most: float
) -> tuple[Floats, Floats]:
    """Coefficients β of Λβ = right in eigen-directions, and the mean squared error of each.

    Under a prior of variance b² for each they are Wiener's (1949): right·λb² / (λ²b² + v). v is the variance of right:
    noise², sampling·λ, and what the noise of Λ itself makes of β. b² comes from the right sides by moments, one
    standard error up, so that what is drowned is not taken for known to be zero, and such that β explains at most
    ``most``: the variance of the outcome, or of the log odds. Without noise this is the plain regression.
    """
    if len(values) == 0:
        return np.zeros(0), np.zeros(0)
    plain = noise**2 + sampling * values
    weight = 1 / plain**2
    room = float(weight @ values**2)
    found = max(float(weight @ (right**2 - plain)) / room, 0.0)
    error = math.sqrt(2 * float(weight**2 @ (values**2 * found + plain) ** 2)) / room
    prior = min(found + error, most / float(values.sum()))
    variance = plain + noise_within**2 * len(values) * prior
    total = values**2 * prior + variance
    return right * values * prior / total, prior * variance / total


def _clip(target: Target, unit: float, spread: Floats, mean: float, slopes: Floats, noiseless: bool) -> float:
    """B in natural units: the most that v can be, or `_REACH` of its spreads if that is less."""
    most = 2.0 * (1 + float(np.abs(slopes).sum()))  # of |y - m|
    largest = abs(unit) * (4 * most if target.estimand == "plm" else most / target.overlap)
    return largest if noiseless else min(largest, _REACH * _typical(target, unit, spread, mean))


def _typical(target: Target, unit: float, spread: Floats, mean: float) -> float:
    """The spread of v that is to be expected, in natural units."""
    if target.estimand == "plm":
        return abs(unit) * math.sqrt(float(spread[0] * spread[1]))
    share = min(max((1 + mean) / 2, target.overlap), 1 - target.overlap)
    weight = max(share / (1 - share), 1.0) if target.estimand == "att" else 1 / math.sqrt(share * (1 - share))
    return abs(unit) * weight * math.sqrt(float(spread[1]))


def _shrunk(own: Sequence[Floats]) -> Floats:
    """(n,) intercepts drawn to the pool's as far as chance and noise explain them: δ·V / (V + error).

    V, the variance between members, from the median absolute value, which a minority cannot set; an intercept counts
    for no more than three of its spreads.
    """
    values, errors = np.stack(own).T
    between = max(0.0, (_MAD * float(np.median(np.abs(values)))) ** 2 - float(np.median(errors)))
    reach = 3 * np.sqrt(between + errors)
    return np.asarray(np.clip(values, -reach, reach) * between / (between + errors))
