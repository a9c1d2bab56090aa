"""The DAG that fits all second moments at once: a search for evidence under noise.

The score of `score.py` regresses each variable on its parents, and reads noisy moments of the parents as if they were
their own. But a DAG says what those moments are: its other equations determine them. Here a DAG with weights W
(i -> j) and error variances D is fitted to the whole covariance S by generalised least squares (Browne 1974, 1984):

    F = Σ_{i≤j} [Uᵀ(S - Σ(W, D))U]²_ij / v_ij,    Σ = Aᵀ D A,  A = (I - W)⁻¹,
    v_ij = (1 + δ_ij) (λ_i λ_j / n + σ² / 2n²),

with U, λ the eigenvectors and eigenvalues of S, in whose basis both the sampling of Gaussian records and the noise of
the release are independent entry by entry. At the true DAG F is χ² of d(d+1)/2 - d - edges degrees of freedom. A DAG
is scored by F + c · log n_eff · edges, less being better; DAGs of one class have one score.

The score is of a whole DAG, so no search by single variables serves it. It starts where `boss` ends. One move turns an
edge i -> j and whatever else keeps j after i (a tuck, Lam, Andrews & Ramsey 2022), each edge made covered first so that
nothing that fitted is lost, and then leaves out and puts in single edges while the score improves; how much each would
change F is read off the derivatives at the fit (Wald and score tests), and only the best are fitted anew. Where no move
helps, another DAG of the class is tried, and after that a few random moves (iterated local search).

What it takes from the data are numbers that a rounding may tip, so another machine may end in another optimum; there
are no near ties in the result to tell of it. `rated` tells whether a graph that another machine found is as good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from causaldao.errors import MisuseError
from causaldao.models.discovery.boss import boss, check_options
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import Discovery
from causaldao.models.discovery.score import allowed_masks
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of, extension

PENALTY = 1.5
ALIKE = 0.1  # scores as near as that are one: fits end within less
_FLOOR = 0.02  # of the mean eigenvalue: what noise left of a direction is taken for this much at least
_STARTS = 1  # orders of boss: the moves mend what more would
_STEPS, _TRIES, _SETTLED = 12, 5, 0.03  # of a fit; F matters to about a tenth of a penalty
_SLACK = 1.5  # penalties by which an estimate may miss before a move is given up
_WIDER = 1.3  # penalties: an estimate up to here is looked at exactly
_KICK = 4  # random moves of a new start
_BETTER = 1e-2
_TINY = 1e-300

Floats = NDArray[np.float64]
Edges = NDArray[np.bool_]


def moment_fit(
    evidence: Evidence,
    penalty: float = PENALTY,
    knowledge: Knowledge = NONE,
    generator: torch.Generator | None = None,
    restarts: int = 8,
) -> Discovery:
    """The CPDAG of the best-fitting DAG that the search meets.

    ``penalty`` is c, in units of log n_eff for each edge. The search ends when ``restarts`` new starts in a row, from
    random moves by ``generator`` (seeded with 0 by default), found nothing better. Parents that knowledge rules out are
    never fitted, those that it requires always. Without noise it is slower than `boss` and finds no more.

    Raises:
        MisuseError: evidence of blocks, restarts below 1, a penalty that is not positive.
        DataError, ConfigurationError: as `boss`.
    """
    check_options(penalty, restarts)
    if evidence.blocks:
        raise MisuseError(
            "moment-fit fits one number for each variable, and this evidence has several columns of some. Use boss."
        )
    chosen = evidence.select(sorted(evidence.names))
    draw = generator or torch.Generator().manual_seed(0)
    start = extension(boss(chosen, None, knowledge, draw, _STARTS).graph)
    names = chosen.names
    if start is None or not names:
        return Discovery(knowledge.orient(CausalGraph.dag([], evidence.names)))
    rng = np.random.default_rng(int(torch.randint(1 << 62, (1,), generator=draw)))
    search = _Search(_Moments.of(chosen), penalty * math.log(chosen.n_eff), *_masks(names, knowledge), rng)
    with np.errstate(all="ignore"):  # a step too far overflows, and is then not taken
        best = search.run(np.array([[(a, b) in start.directed for b in names] for a in names]), restarts)
    edges = [(names[i], names[j]) for i, j in np.argwhere(best)]
    return Discovery(knowledge.orient(cpdag_of(CausalGraph.dag(edges, evidence.names))))


def rated(evidence: Evidence, pattern: CausalGraph, penalty: float = PENALTY, knowledge: Knowledge = NONE) -> float:
    """The score of a pattern, less being better, to about `ALIKE`; infinite for what knowledge rules out, and for a
    graph of other variables or without a DAG in its class."""
    chosen, dag = evidence.select(sorted(evidence.names)), extension(pattern)
    if dag is None or set(dag.nodes) != set(chosen.names):
        return math.inf
    edges = np.array([[(a, b) in dag.directed for b in chosen.names] for a in chosen.names])
    allowed, required = _masks(chosen.names, knowledge)
    if (edges & ~allowed).any() or (required & ~edges).any():
        return math.inf
    with np.errstate(all="ignore"):
        fitted = _Moments.of(chosen).fit(edges)
    return fitted.loss + penalty * math.log(chosen.n_eff) * float(edges.sum())


def _masks(names: tuple[str, ...], knowledge: Knowledge) -> tuple[Edges, Edges]:
    """(d, d) of what may be, and of what must be: [i, j] is of i -> j."""
    allowed, required = (
        np.array([[bool(mask >> i & 1) for mask in masks] for i in range(len(names))])
        for masks in allowed_masks(names, knowledge)
    )
    return allowed, required


@dataclass(frozen=True)
class _Fitted:
    """A DAG's weights and error variances, F, and what it implies: A, Σ and the standardised residuals."""

    loss: float
    weights: Floats
    errors: Floats
    mixing: Floats
    covariance: Floats
    residuals: Floats


@dataclass(frozen=True)
class _Moments:
    """The covariance (d, d) with the basis U (rows: eigenvectors), and its entries i ≤ j there, in their standard
    deviations."""

    covariance: Floats
    basis: Floats
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    spread: Floats
    target: Floats

    @staticmethod
    def of(evidence: Evidence) -> _Moments:
        observed = evidence.covariance().numpy()
        values, vectors = np.linalg.eigh(observed)
        values = np.maximum(values, _FLOOR * values.mean())
        rows, columns = np.triu_indices(len(values))
        sampling = values[rows] * values[columns] / evidence.count
        spread = np.sqrt((1.0 + (rows == columns)) * (sampling + (evidence.noise / evidence.count) ** 2 / 2))
        target = (vectors.T @ observed @ vectors)[rows, columns] / spread
        return _Moments((vectors * values) @ vectors.T, vectors.T, rows, columns, spread, target)

    def fit(self, edges: Edges, near: _Fitted | None = None) -> _Fitted:
        """The weights of these edges that make F least, by Levenberg and Marquardt's steps from those of ``near``, or
        from each variable's regression."""
        found = self._at(*(self._regressions(edges) if near is None else (near.weights * edges, near.errors)))
        causes, effects = np.nonzero(edges)
        damping = 1e-3
        for _ in range(_STEPS):
            slopes = self._slopes(found, causes, effects)
            square, downhill = slopes.T @ slopes, slopes.T @ found.residuals
            before = found.loss
            for _ in range(_TRIES):
                step = np.linalg.solve(square + np.diag(damping * square.diagonal() + _TINY), downhill)
                weights = found.weights.copy()
                weights[causes, effects] += step[: len(causes)]
                tried = self._at(weights, found.errors * np.exp(step[len(causes) :].clip(-1, 1)))
                if tried.loss < found.loss:
                    found, damping = tried, max(damping / 10, 1e-9)
                    break
                damping *= 10
            if not found.loss < before - _SETTLED:
                break
        return found

    def walds(self, edges: Edges, fit: _Fitted) -> Floats:
        """(d, d): by about how much F rises if an edge is left out; 0 where there is none."""
        causes, effects = np.nonzero(edges)
        variances = _inverse(self._slopes(fit, causes, effects)).diagonal()[: len(causes)]
        found = np.zeros(edges.shape)
        found[causes, effects] = fit.weights[causes, effects] ** 2 / np.maximum(variances, _TINY)
        return found

    def gains(self, edges: Edges, fit: _Fitted, among: Edges) -> Floats:
        """(d, d): by about how much F falls if an edge of ``among`` is put in; 0 elsewhere."""
        inside = self._slopes(fit, *np.nonzero(edges))
        causes, effects = np.nonzero(among)
        left, right = self.basis @ fit.covariance, self.basis @ fit.mixing.T
        # the derivative by W_ij is l_r m_c + m_r l_c over the spread, with l, m columns of left and right: sums over
        # the entries r <= c are forms lᵀYm, so the derivatives themselves, d² columns of d²/2, are never written down
        cross = (left.T @ self._form(inside.T) @ right)[:, causes, effects]
        downhill = (left.T @ self._form(fit.residuals) @ right)[causes, effects]
        weight, both = self._form(1 / self.spread), left[:, causes] * right[:, effects]
        whole = ((left**2).T @ weight @ right**2)[causes, effects] + (both * (weight @ both)).sum(axis=0)
        free = whole - (cross * (_inverse(inside) @ cross)).sum(axis=0)
        found = np.zeros(edges.shape)
        gain = downhill**2 / np.maximum(free, _TINY)
        found[causes, effects] = np.where(free > 1e-6 * whole, gain, 0.0)
        return found

    def _form(self, entries: Floats) -> Floats:
        """(..., d, d): the symmetric Y with lᵀYm = Σ_{r≤c} (l_r m_c + m_r l_c) x_rc / spread, of entries x (..., P)."""
        d = len(self.basis)
        form = np.zeros((*entries.shape[:-1], d, d))
        form[..., self.rows, self.columns] = entries / self.spread
        return form + form.swapaxes(-1, -2)

    def _regressions(self, edges: Edges) -> tuple[Floats, Floats]:
        weights, errors = np.zeros(edges.shape), self.covariance.diagonal().copy()
        for j, mine in enumerate(edges.T):
            if mine.any():
                cross = self.covariance[mine, j]
                weights[mine, j] = np.linalg.solve(self.covariance[np.ix_(mine, mine)], cross)
                errors[j] -= cross @ weights[mine, j]
        return weights, errors

    def _at(self, weights: Floats, errors: Floats) -> _Fitted:
        mixing: Floats = np.linalg.inv(np.eye(len(weights)) - weights).astype(np.float64)
        covariance: Floats = mixing.T @ (errors[:, None] * mixing)
        implied = (self.basis @ covariance @ self.basis.T)[self.rows, self.columns]
        residuals = self.target - implied / self.spread
        return _Fitted(float(residuals @ residuals), weights, errors, mixing, covariance, residuals)

    def _slopes(self, fit: _Fitted, causes: NDArray[np.int64], effects: NDArray[np.int64]) -> Floats:
        """The derivatives of the standardised entries by these edges' weights and by the logarithms of D, in columns:
        by W_ij it is Σe_i (e_jᵀA) and its transpose, by log D_j it is D_j Aᵀe_j (e_jᵀA)."""
        left, right = self.basis @ fit.covariance[:, causes], self.basis @ fit.mixing.T
        mine = right[:, effects]
        weights = left[self.rows] * mine[self.columns] + mine[self.rows] * left[self.columns]
        errors = right[self.rows] * right[self.columns] * fit.errors
        slopes: Floats = np.hstack([weights, errors]) / self.spread[:, None]
        return slopes


def _inverse(slopes: Floats) -> Floats:
    """(SᵀS)⁻¹, its columns scaled to one length before, which keeps what is nearly collinear apart."""
    length = np.maximum(np.sqrt((slopes**2).sum(axis=0)), _TINY**0.5)
    scaled = slopes / length
    inverse: Floats = np.linalg.inv(scaled.T @ scaled + 1e-12 * np.eye(len(length))) / np.outer(length, length)
    return inverse


@dataclass(frozen=True)
class _Found:
    edges: Edges
    fit: _Fitted
    score: float


@dataclass(frozen=True)
class _Search:
    moments: _Moments
    price: float
    allowed: Edges
    required: Edges
    rng: np.random.Generator

    def run(self, start: Edges, restarts: int) -> Edges:
        best, idle = self._climb(start), 0
        while idle < restarts:
            edges, idle = self._another(best.edges), idle + 1
            for _ in range(_KICK):
                edges = self._turned(edges, *self._any(edges)) if edges.any() else edges
            found = self._climb(edges)
            if found.score < best.score - _BETTER:
                best, idle = found, 0
        return best.edges

    def _climb(self, edges: Edges) -> _Found:
        """Moves from DAGs of one class while one helps; two DAGs of the last class are gone through."""
        best, seen, lasts = self._settle(edges, math.inf), set[bytes](), 0
        edges = best.edges
        while lasts < 2:
            for i, j in self.rng.permutation(np.argwhere(edges)).tolist():
                turned = self._turned(edges, i, j)
                if turned.tobytes() in seen:
                    continue
                seen.add(turned.tobytes())
                found = self._settle(turned, best.score + _SLACK * self.price)
                if found.score < best.score - _BETTER:
                    best, edges, lasts = found, found.edges, -1
                    break
            lasts += 1
            edges = self._another(edges) if lasts else edges
        return best

    def _settle(self, edges: Edges, limit: float) -> _Found:
        """Leave out and put in single edges while that helps; a score of infinity if it will hardly be below
        ``limit``."""
        fit, score = self.moments.fit(edges), math.inf
        while True:
            edges, fit = self._pruned(edges, fit, limit)
            now = fit.loss + self.price * edges.sum()
            if not now < min(score - _BETTER, limit):
                return _Found(edges, fit, now if now < limit else math.inf)
            score = now
            edges, fit = self._grown(edges, fit)

    def _pruned(self, edges: Edges, fit: _Fitted, limit: float) -> tuple[Edges, _Fitted]:
        while True:
            walds = np.where(edges & ~self.required, self.moments.walds(edges, fit), math.inf)
            if fit.loss + np.minimum(walds[edges], self.price).sum() > limit:
                return edges, fit
            for place in np.argsort(walds, axis=None)[:2]:
                if not walds.flat[place] < _WIDER * self.price:
                    return edges, fit
                fewer = edges.copy()
                fewer.flat[place] = False
                tried = self.moments.fit(fewer, fit)
                if tried.loss < fit.loss + self.price:
                    edges, fit = fewer, tried
                    break
            else:
                return edges, fit

    def _grown(self, edges: Edges, fit: _Fitted) -> tuple[Edges, _Fitted]:
        while True:
            gains = self.moments.gains(edges, fit, self.allowed & ~edges & ~_reach(edges).T)
            for place in np.argsort(-gains, axis=None)[:2]:
                if not gains.flat[place] > self.price / _WIDER:
                    return edges, fit
                more = edges.copy()
                more.flat[place] = True
                tried = self.moments.fit(more, fit)
                if tried.loss < fit.loss - self.price:
                    edges, fit = more, tried
                    break
            else:
                return edges, fit

    def _any(self, edges: Edges) -> tuple[int, int]:
        i, j = self.rng.choice(np.argwhere(edges)).tolist()
        return i, j

    def _turned(self, edges: Edges, i: int, j: int) -> Edges:
        """i moved behind j and behind what leads from it to j; as it was, if knowledge forbids that."""
        reach, turned = _reach(edges), edges.copy()
        between = [x for x in np.argsort(reach.sum(axis=0), kind="stable") if x != i and reach[i, x] and reach[x, j]]
        for x in between:
            if turned[i, x]:
                turned[i, x] = False
                both = turned[:, i] | turned[:, x]
                turned[:, i] = turned[:, x] = both
                turned[x, i] = True
        turned &= self.allowed
        return edges if (self.required & ~turned).any() else turned

    def _another(self, edges: Edges) -> Edges:
        """Another DAG of the class, by turning covered edges at random (Chickering 1995)."""
        found = edges.copy()
        for _ in range(3 * len(edges) if edges.any() else 0):
            i, j = self._any(found)
            others = found[:, j].copy()
            others[i] = False
            if (found[:, i] == others).all() and self.allowed[j, i] and not self.required[i, j]:
                found[i, j], found[j, i] = False, True
        return found


def _reach(edges: Edges) -> Edges:
    """(d, d): [i, j] if j is i or comes after it."""
    reach = edges | np.eye(len(edges), dtype=bool)
    for _ in range(max(1, len(edges) - 1).bit_length()):
        reach = reach @ reach
    return reach
