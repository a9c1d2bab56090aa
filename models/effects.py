"""Average causal effects by linear adjustment, from second moments alone, with the error that privacy adds.

With x = (1, z) and M = Σ x xᵀ, the effect of t on y given adjustment Z is one coefficient of θ = M_zz⁻¹ M_zy
over (1, t, Z): the g-formula of a linear model (Pearl, *Causality*, 2009, §3.3). Released moments carry
symmetric Gaussian noise E, and to first order θ_t moves by ⟨E, A⟩ with A = (a rᵀ + r aᵀ) / 2, a = M_zz⁻¹ e_t
and r = e_y - θ (zero outside their block), whose standard deviation is σ‖A‖_F. Over an equivalence class of
graphs the effect is a set of values: IDA (Maathuis, Kalisch & Bühlmann, 2009) with optimal adjustment (Witte
et al., 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Tensor

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.identification import adjustment_set, is_amenable, orientations_at, possible_descendants
from causaldao.models.pattern import meek

_SINGULAR = 1e-11  # smallest eigenvalue of M_zz / n: below it the normal equations lose too many digits


@dataclass(frozen=True)
class Effect:
    """The change of the outcome's mean per unit of treatment, each in its natural unit after its transform.

    standard_error² = sampling_error² + privacy_error²; interval = estimate ± z·standard_error at `level`.
    `implied` is true where the graph has no possibly causal path: the effect is zero without an estimate.
    """

    treatment: str
    outcome: str
    adjustment: tuple[str, ...]
    estimate: float
    standard_error: float
    sampling_error: float
    privacy_error: float
    interval: tuple[float, float]
    level: float
    implied: bool = False


def robust_share(f: float) -> float:
    """The share of the rest variance of both treatment and outcome that an unmeasured cause must explain to take away
    an estimate whose |t|/√df is f: ½(√(f⁴ + 4f²) - f²) (Cinelli & Hazlett, JRSS B 82, 2020)."""
    return (math.sqrt(f**4 + 4 * f**2) - f**2) / 2


def robustness(effect: Effect, records: float) -> tuple[float, float] | None:
    """The `robust_share` of the estimate, and of the interval's end nearer to zero: 0 if zero lies inside.

    f is the distance from zero over (sampling error · √df), as privacy noise is no property of the records; ``records``
    is their number. None without a sampling error or a degree of freedom.
    """
    df = records - len(effect.adjustment) - 2
    if effect.sampling_error <= 0 or df <= 0:
        return None
    low, high = effect.interval
    scale = effect.sampling_error * math.sqrt(df)
    return robust_share(abs(effect.estimate) / scale), robust_share(max(low, -high, 0.0) / scale)


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """A regression in scaled units, k coefficients of (1, predictors).

    coefficients (k,); inverse (k, k) of the moment block of (1, predictors); residual (d+1,), the vector r
    with rᵀx the residual of a record x; residual_squares rᵀMr, which privacy noise can make negative.
    """

    coefficients: Tensor
    inverse: Tensor
    residual: Tensor
    residual_squares: float


def least_squares(evidence: Evidence, outcome: str, predictors: Sequence[str]) -> LeastSquares:
    """Regress outcome on (1, predictors) from moments; a predictor with several columns (levels) is held with all.

    Raises MisuseError for an unknown name, DataError when the block of (1, predictors) is not positive
    definite or there are no more records than coefficients.
    """
    cells, y = _cells(evidence, predictors), 1 + evidence.index(outcome)
    block = evidence.moments[cells][:, cells]
    _require_definite(evidence, block, predictors)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(block))
    coefficients = inverse @ evidence.moments[cells, y]
    residual = torch.zeros(evidence.d + 1, dtype=torch.float64)
    residual[y] = 1.0
    residual[cells] -= coefficients
    return LeastSquares(coefficients, inverse, residual, float(residual @ evidence.moments @ residual))


def average_effect(
    evidence: Evidence, treatment: str, outcome: str, adjustment: Sequence[str] = (), level: float = 0.95
) -> Effect:
    """The effect of one unit of treatment on outcome, adjusted linearly for `adjustment`.

    sampling_error is that of ordinary least squares (equal variances, n = evidence.count); privacy_error is
    the delta method's, exact to first order in the noise. The interval is normal.

    Raises:
        MisuseError: a name is unknown, repeated, or in two roles; level outside (0, 1).
        DataError: the moments cannot carry the estimate: their block is not positive definite (a constant
            treatment, too much noise), the noise leaves the outcome no residual variance, or the treatment's
            own variation is not distinct from the noise at `level`.
    """
    _require_roles(treatment, outcome, adjustment, level)
    evidence.index(treatment)  # an effect is that of one number
    fit = least_squares(evidence, outcome, (treatment, *adjustment))
    a = _weights(evidence, (treatment, *adjustment), fit)
    _require_variation(evidence, treatment, a, level)
    unit = _unit(evidence, treatment, outcome)
    sampling = unit * math.sqrt(_residual_variance(evidence, outcome, fit) * float(fit.inverse[1, 1]))
    privacy = unit * evidence.noise_of(_gradient(a, fit))
    estimate, total = unit * float(fit.coefficients[1]), math.hypot(sampling, privacy)
    reach = NormalDist().inv_cdf((1 + level) / 2) * total
    interval = (estimate - reach, estimate + reach)
    return Effect(treatment, outcome, tuple(adjustment), estimate, total, sampling, privacy, interval, level)


def doubted(implied: Effect, evidence: Evidence, dag: CausalGraph) -> Effect:
    """A zero that follows from the graph, as an estimate that can be wrong; `implied` stays true.

    A graph found in little or noisy evidence lacks edges for want of power, and "exactly zero" would be a false
    certainty. Adjusting for the parents of the treatment is valid whether or not the missing path exists. Where the
    outcome is such a parent no estimate can be had, and the zero stands.
    """
    parents = tuple(sorted(dag.parents(implied.treatment)))
    if implied.outcome in parents:
        return implied
    estimate = average_effect(evidence, implied.treatment, implied.outcome, parents, implied.level)
    return replace(estimate, implied=True)


def effect_set(
    evidence: Evidence, graph: CausalGraph, treatment: str, outcome: str, level: float = 0.95
) -> tuple[Effect, ...]:
    """The effects that the DAGs of a class ascribe to treatment: of a DAG, a CPDAG, or one with knowledge.

    One effect where the class settles it; otherwise one for each adjustment set that some of its DAGs calls
    for, in order of size and name. Where a DAG of the class has no causal path to outcome the effect is zero,
    `implied`, and stands first. Raises as `average_effect` and `adjustment_set` do.
    """
    _require_roles(treatment, outcome, (), level)
    settled = is_amenable(graph, treatment, outcome)
    graphs = (meek(graph),) if settled else orientations_at(graph, treatment)
    causal = [g for g in graphs if outcome in possible_descendants(g, treatment)]
    chosen = {tuple(sorted(adjustment_set(g, treatment, outcome))) for g in causal}
    ordered = sorted(chosen, key=lambda names: (len(names), names))
    if lacking := sorted({name for names in ordered for name in names} - set(evidence.names)):
        raise DataError(
            f"The graph says to adjust for {', '.join(lacking)}, and the data have no such column. Add it; or, if "
            "nobody measured it, take it out of the graph and draw its effects as two-headed edges between what it "
            "causes."
        )
    effects = [average_effect(evidence, treatment, outcome, names, level) for names in ordered]
    return tuple(effects if len(causal) == len(graphs) else [_zero(evidence, treatment, outcome, level), *effects])


def _zero(evidence: Evidence, treatment: str, outcome: str, level: float) -> Effect:
    _cells(evidence, (treatment, outcome))
    return Effect(treatment, outcome, (), 0.0, 0.0, 0.0, 0.0, (0.0, 0.0), level, implied=True)


def _cells(evidence: Evidence, names: Sequence[str]) -> list[int]:
    """Rows of the moments that hold (1, names), all columns of a name that has several."""
    return [0, *(1 + column for name in names for column in evidence.columns(name))]


def _weights(evidence: Evidence, names: Sequence[str], fit: LeastSquares) -> Tensor:
    """a = M_zz⁻¹ e_t over all cells, (d+1,); the treatment is the first of names."""
    a = torch.zeros(evidence.d + 1, dtype=torch.float64)
    a[_cells(evidence, names)] = fit.inverse[1]
    return a


def _gradient(a: Tensor, fit: LeastSquares) -> Tensor:
    cross = torch.outer(a, fit.residual)
    return (cross + cross.T) / 2


def _unit(evidence: Evidence, treatment: str, outcome: str) -> float:
    """Natural units of an effect in one scaled unit."""
    return float(evidence.half[evidence.index(outcome)] / evidence.half[evidence.index(treatment)])


def _residual_variance(evidence: Evidence, outcome: str, fit: LeastSquares) -> float:
    # Without noise a negative sum is the rounding of an exact fit; with noise it must not pass for one.
    if evidence.noise > 0 and fit.residual_squares <= 0:
        raise DataError(
            f"{outcome} has residual sum of squares {fit.residual_squares:.3g} (scaled units), expected > 0: "
            "the privacy noise exceeds it. Use more records or a larger epsilon."
        )
    return max(fit.residual_squares, 0.0) / (evidence.count - len(fit.coefficients))


def _require_variation(evidence: Evidence, treatment: str, a: Tensor, level: float) -> None:
    """Fieller (1954): a ratio has a bounded interval only if its denominator is distinct from 0 at the level.

    The denominator is the treatment's own sum of squares, S = 1 / a_t; its noise is ⟨E, S² aaᵀ⟩.
    """
    own = 1 / float(a[1 + evidence.index(treatment)])
    noise = evidence.noise_of(torch.outer(a, a) * own**2)
    if own <= NormalDist().inv_cdf((1 + level) / 2) * noise:
        raise DataError(
            f"The variation of {treatment} given the adjustment, {own:.3g} (sum of squares, scaled units), "
            f"is not distinct from its privacy noise of standard deviation {noise:.3g} at level {level:g}. "
            "Use more records, a larger epsilon or a smaller adjustment set."
        )


def _require_definite(evidence: Evidence, block: Tensor, predictors: Sequence[str]) -> None:
    if evidence.count <= len(block):
        raise DataError(f"{evidence.count:.6g} records for {len(block)} coefficients: expected more than that.")
    least = float(torch.linalg.eigvalsh(block / evidence.count)[0])
    if least <= _SINGULAR:
        raise DataError(
            f"The moments of ({', '.join(('1', *predictors))}) are not positive definite: least eigenvalue "
            f"{least:.3g} per record, expected > {_SINGULAR:g}. A variable may be constant or a "
            "combination of others; under privacy noise use more records or a larger epsilon."
        )


def _require_roles(treatment: str, outcome: str, adjustment: Sequence[str], level: float) -> None:
    if isinstance(adjustment, str):
        raise MisuseError(f"adjustment={adjustment!r}: expected a sequence, such as ({adjustment!r},).")
    roles = [treatment, outcome, *adjustment]
    if twice := sorted({name for name in roles if roles.count(name) > 1}):
        raise MisuseError(f"{', '.join(twice)} has two roles; treatment, outcome and adjustment must differ.")
    if not 0 < level < 1:
        raise MisuseError(f"level={level}: expected a number between 0 and 1.")


@dataclass(frozen=True, eq=False)
class Influence:
    """How an estimate hangs on the moments: to first order a change D of M moves it by ⟨D, gradient⟩.

    Both are in natural units of the effect, for moments in scaled units.
    gradient: (d+1, d+1), symmetric; variance_per_record: the estimate's sampling variance times the records.
    """

    gradient: Tensor
    variance_per_record: float


def influence(evidence: Evidence, treatment: str, outcome: str, adjustment: Sequence[str] = ()) -> Influence:
    """The influence of the moments on `average_effect`; raises as that does."""
    effect = average_effect(evidence, treatment, outcome, adjustment)
    fit = least_squares(evidence, outcome, (treatment, *adjustment))
    gradient = _gradient(_weights(evidence, (treatment, *adjustment), fit), fit)
    return Influence(_unit(evidence, treatment, outcome) * gradient, effect.sampling_error**2 * evidence.count)
