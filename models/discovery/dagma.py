"""Graphs by continuous optimisation on second moments: NOTEARS (Zheng et al., 2018), DAGMA (Bello et al., 2022).

Both look for weights W (d, d), W[i, j] of i on j, with the least squared error, a price λ for each |W[i, j]| and no
cycle. The loss needs no rows: with S the covariance, ½ tr((I - W)ᵀ S (I - W)), with gradient -S (I - W). They differ in
what keeps cycles out: NOTEARS drives tr(exp(W∘W)) - d to 0 by an augmented Lagrangian; DAGMA follows a central path
along which its log-determinant (`acyclicity`) outweighs the loss more and more. The nonsmooth |W| is split into
W = W₊ - W₋, both ≥ 0, for L-BFGS-B, which starts from W = 0: no randomness. DAGMA's authors use Adam; on the same
problems L-BFGS-B ends in weights of the same F1 after a tenth of the gradients.

**What they read.** Least squares with equal weights reads the causal order off the variances, which grow along causal
paths in most simulations, and off the units of measurement in data (Reisach, Seiler & Weichwald, 2021). So here both
work on the correlation matrix unless told otherwise, and always say the `varsortability` of what they found. On
correlations they are weak: use BOSS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import expm
from scipy.optimize import minimize

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import NEAR, Discovery
from causaldao.models.discovery.score import refuse_dependent
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of
from causaldao.models.unit import acyclicity, strongest_dag

Floats = np.ndarray[Any, np.dtype[np.float64]]
Valued = tuple[float, Floats]  # a function's value and its gradient

_PATH = ((1.0, 1.0), (0.1, 0.9), (0.01, 0.8), (0.001, 0.7), (0.0001, 0.6))  # DAGMA's weights of the loss, and its s
_ITERATIONS = 10_000  # of one minimisation; a few hundred are usual
_OUTSIDE = 1e10  # DAGMA's objective where h is infinite
_CYCLES_LEFT, _STEEPEST, _PROGRESS = 1e-8, 1e16, 0.25  # NOTEARS: when h is zero, the last rho, the fall of h it wants


def notears(
    evidence: Evidence,
    sparsity: float = 0.1,
    threshold: float = 0.3,
    standardise: bool = True,
    knowledge: Knowledge = NONE,
) -> Discovery:
    """The CPDAG of the DAG that NOTEARS finds, linear, with least squares.

    ``sparsity`` is λ, ``threshold`` the least |W| that counts as an edge. ``standardise`` works on correlations;
    without it on the covariances in the data's own units, and the outcome depends on these units. Of edges above the
    threshold that close a cycle the weakest is left out. Forbidden edges are held at zero, required ones are kept
    whatever their weight and bear no price. The order of the columns does not matter but by rounding.

    Raises:
        MisuseError: a sparsity that is negative, a threshold that is not positive.
        DataError: variables that are linearly dependent, or noise that makes the covariance indefinite.
        ConfigurationError: the knowledge names unknown variables.
    """
    return _found(evidence, _notears, sparsity, threshold, standardise, knowledge)


def dagma(
    evidence: Evidence,
    sparsity: float = 0.03,
    threshold: float = 0.3,
    standardise: bool = True,
    knowledge: Knowledge = NONE,
) -> Discovery:
    """The CPDAG of the DAG that DAGMA finds, linear, with least squares. Options, errors and care as `notears`."""
    return _found(evidence, _dagma, sparsity, threshold, standardise, knowledge)


def varsortability(evidence: Evidence, dag: CausalGraph) -> float | None:
    """The share of directed paths of the DAG along which the variance rises, in the data's own units, in [0, 1].

    Of each length, each pair of ends counts once, and a tie as half (Reisach, Seiler & Weichwald, 2021). 1: sorting
    by variance gives the order; ½: the variances say nothing of it. None of a DAG without edges.
    """
    variances = _covariance(evidence.select(dag.nodes), standardise=False).diagonal()
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = variances[None, :] / variances[:, None]
    worth = np.where(np.abs(rise - 1) < 1e-9, 0.5, (rise > 1).astype(np.float64))
    reach = edges = dag.adjacency()
    paths = risen = 0.0
    while reach.any():
        paths, risen = paths + float(reach.sum()), risen + float(worth[reach].sum())
        reach = reach @ edges
    return risen / paths if paths else None


@dataclass(frozen=True)
class _Problem:
    """The covariance (d, d), and of each W[i, j] whether it may differ from zero and its price."""

    covariance: Floats
    free: np.ndarray[Any, np.dtype[np.bool_]]
    price: Floats

    def loss(self, w: Floats) -> Valued:
        """½ tr((I - W)ᵀ S (I - W)): half the squared error per record."""
        residual = np.eye(len(w)) - w
        product = self.covariance @ residual
        return 0.5 * float((residual * product).sum()), -product

    def minimised(self, smooth: Callable[[Floats], Valued], start: Floats, scale: float = 1.0) -> Floats:
        """The W near ``start`` that minimises smooth(W) + scale · Σ price |W|."""
        free, price = self.free, scale * self.price[self.free]

        def whole(halves: Floats) -> Valued:
            value, gradient = smooth(self._joined(halves))
            return value + float(price @ (halves[: len(price)] + halves[len(price) :])), np.concatenate(
                [price + gradient[free], price - gradient[free]]
            )

        halves = np.concatenate([start[free].clip(min=0), (-start[free]).clip(min=0)])
        options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "maxcor": 20}
        bounds = [(0.0, None)] * len(halves)
        if not len(halves):
            return start
        return self._joined(minimize(whole, halves, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x)

    def _joined(self, halves: Floats) -> Floats:
        w = np.zeros_like(self.covariance)
        w[self.free] = halves[: len(halves) // 2] - halves[len(halves) // 2 :]
        return w


def _notears(problem: _Problem) -> Floats:
    w = np.zeros_like(problem.covariance)
    rho, alpha, cycles = 1.0, 0.0, math.inf
    while cycles > _CYCLES_LEFT and rho < _STEEPEST:
        following = problem.minimised(_augmented(problem, rho, alpha), w)
        left, _ = _exponential(following)
        if left > _PROGRESS * cycles:
            rho *= 10
            continue
        w, cycles, alpha = following, left, alpha + rho * left
    return w


def _augmented(problem: _Problem, rho: float, alpha: float) -> Callable[[Floats], Valued]:
    def smooth(w: Floats) -> Valued:
        (value, gradient), (cycles, slope) = problem.loss(w), _exponential(w)
        return value + cycles * (alpha + rho / 2 * cycles), gradient + (alpha + rho * cycles) * slope

    return smooth


def _exponential(w: Floats) -> Valued:
    """tr(exp(W∘W)) - d ≥ 0, zero iff W has no cycle, and its gradient (Zheng et al., 2018, theorem 1)."""
    power: Floats = expm(w * w)
    return float(np.trace(power)) - len(w), 2 * power.T * w


def _dagma(problem: _Problem) -> Floats:
    w = np.zeros_like(problem.covariance)
    for weight, s in _PATH:
        # the last W must lie where h is finite; with hardly a cycle left it nearly always does
        radius = float(np.abs(np.linalg.eigvals(w * w)).max(initial=0.0))
        w = problem.minimised(_central(problem, weight, max(s, 1.1 * radius)), w, weight)
    return w


def _central(problem: _Problem, weight: float, s: float) -> Callable[[Floats], Valued]:
    def smooth(w: Floats) -> Valued:
        (value, gradient), (cycles, slope) = problem.loss(w), _log_determinant(w, s)
        return weight * value + cycles, weight * gradient + slope

    return smooth


def _log_determinant(w: Floats, s: float) -> Valued:
    """DAGMA's h(W∘W) and its gradient; a wall where the spectral radius of W∘W reaches s.

    There sI - W∘W is no M-matrix: its inverse, the gradient of h in W∘W, has negative entries or does not exist.
    """
    squares = torch.from_numpy(w * w).requires_grad_()
    value = acyclicity(squares, s)
    (slope,) = torch.autograd.grad(value, squares)
    if not bool(torch.isfinite(value)) or float(slope.min()) < -1e-12:
        return _OUTSIDE, 2 * w
    return float(value.detach()), 2 * w * slope.numpy()


def _found(
    evidence: Evidence,
    solve: Callable[[_Problem], Floats],
    sparsity: float,
    threshold: float,
    standardise: bool,
    knowledge: Knowledge,
) -> Discovery:
    if not 0 <= sparsity < math.inf or not 0 < threshold < math.inf:
        raise MisuseError(f"sparsity is {sparsity} and threshold {threshold}. Give a sparsity ≥ 0, a threshold > 0.")
    knowledge.check(evidence.names)
    names = sorted(evidence.names)
    chosen = evidence.select(names)
    required = _matrix(names, lambda a, b: (a, b) in knowledge.required)
    free = _matrix(names, lambda a, b: a != b and knowledge.allows(a, b))
    w = solve(_Problem(_covariance(chosen, standardise), free, np.where(required, 0.0, sparsity)))
    ranked = torch.from_numpy(np.where(required, math.inf, np.abs(w)))
    edges = [(int(i), int(j)) for i, j in strongest_dag(ranked, threshold).nonzero().tolist()]
    dag = CausalGraph.dag([(names[i], names[j]) for i, j in edges], evidence.names)
    near = zip(*np.nonzero(np.abs(np.abs(w) - threshold) < NEAR), strict=True)
    return Discovery(
        knowledge.orient(cpdag_of(dag)),
        frozenset((min(names[i], names[j]), max(names[i], names[j])) for i, j in near),
        weights={(names[i], names[j]): float(w[i, j]) for i, j in edges},
        varsortability=varsortability(evidence, dag),
    )


def _matrix(names: list[str], holds: Callable[[str, str], bool]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    def row(a: str) -> Iterator[bool]:
        return (holds(a, b) for b in names)

    return np.array([list(row(a)) for a in names], dtype=np.bool_).reshape(len(names), len(names))


def _covariance(evidence: Evidence, standardise: bool) -> Floats:
    """(d, d) correlations, or covariances in the data's own units; refused unless positive definite."""
    correlation = evidence.correlation().numpy()
    refuse_dependent(evidence, correlation)
    if (least := float(np.linalg.eigvalsh(correlation).min(initial=1.0))) <= 0:
        raise DataError(
            f"The noise of {evidence.noise:.4g} makes the correlations indefinite (least eigenvalue {least:.3g}), so "
            "least squares have no minimum. Use boss, which counts the noise, or more records."
        )
    scale = (evidence.covariance().diagonal().sqrt() * evidence.half).numpy()
    return correlation if standardise else correlation * np.outer(scale, scale)
