"""BOSS: best order score search on second moments (Andrews et al., 2023).

A search over orders of the variables. Of an order, each variable takes its parents from those before it by
growing a set while the score rises and then shrinking it; a grow-shrink tree remembers every set it met. One
move takes a variable out and puts it where the whole order scores best; moves go on until none helps. Local
optima decide how good the outcome is, so the search starts anew from random orders and keeps the best; all
starts share the trees. Greedy growth cannot see parents that help together but none of them alone.

The score of j with parents pa is the Gaussian BIC (Schwarz, 1978), read off the correlation matrix, in which
a parameter counts by how much its estimate varies::

    -n · log σ²(j | pa) - c · log n · Σ (1 + V_k)   over k in pa

V_k is the noise variance of the coefficient of k over its sampling variance, both as they are if k is no
cause, that is as the score test of k sees them. With M the moments and u, w the coefficients on (1, z) of the
residuals of k and j given the other parents, the test reads uᵀMw, whose noise is <E, sym(u wᵀ)>, so

    V_k = σ²·(‖u‖²‖w‖² + (u·w)²)/2 / (uᵀMu · wᵀMw / n)

and Σ (1 + V_k) counts parameters as Takeuchi (1976) does: variance of the score over information, a sandwich.
To leave k out costs n·log(1 + t²/n), about t² for t = coefficient / sampling error, so k enters if about

    z² = t² / (1 + V_k) > c · log n

with z in units of both errors. So noise moves the line by what it moves the estimate, edge by edge and set by
set, most where parents are nearly collinear or a residual is small. Exact evidence has V = 0: the BIC. A
parent set under which noise leaves no positive residual variance is not considered.

c = 2 serves both. SHD on 20 variables, mean of 6 seeds; N records at 20 sites, scaled by public bounds to
standard deviations of .12 to .45, each site's noise 1.2 (ε = 4) or 4 (ε = 1) times the clip of 3.6. "Flat" is
8·log n_eff for each parent with no V, n_eff = 1 / (1/n + mean noise variance of a correlation). The form of V
and c were chosen on the first seeds; the two columns on the right are of 6 others::

    weights       N       ε     c=1    c=1.5   c=2    flat     c=2    flat
    ER1 U(.4,.9)  100000  4     0      0       0      0        0      0
    ER1 U(.4,.9)  20000   1     4.0    5.0     5.5    17.0     7.2    25.3
    ER1 U(.5,2)   100000  1     7.3    3.8     3.7    40.5     2.2    35.7
    ER1 U(.5,2)   20000   4     4.3    2.5     2.8    45.7     7.3    68.5
    ER2 U(.4,.9)  100000  4     5.2    5.3     5.3    .7       2.2    2.0
    ER2 U(.4,.9)  100000  1     12.0   7.2     7.2    7.5      13.8   7.2
    ER2 U(.4,.9)  20000   1     29.0   28.0    25.0   62.7     19.7   66.8
    ER2 U(.5,2)   100000  4     25.8   21.5    21.5   91.7     28.7   86.5

Where nothing causes anything, c = 2 finds an edge in under 2 % of runs, c = 1 in up to half. V at the fitted
coefficient instead differs at the two ends of an edge: over 16 settings on the other seeds it has a mean SHD
of 15.3 against 13.4 here, but 6.5 against 7.0 where all variances are equal. The trace over all parameters
gives equivalent graphs one score, which V under noise does not, but charges strong edges more and lost.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.pc import NEAR, Discovery
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of

PENALTY = 2.0
_SINGULAR = 1e-10

Floats = np.ndarray[Any, np.dtype[np.float64]]
Order = list[int]
Scored = tuple[float, int]


def boss(
    evidence: Evidence,
    penalty: float = PENALTY,
    knowledge: Knowledge = NONE,
    generator: torch.Generator | None = None,
    restarts: int = 12,
) -> Discovery:
    """Find the CPDAG whose DAGs have the best Gaussian BIC that the search meets.

    ``penalty`` is the c of the score, in units of log n for each parent: 2 by default (twice the BIC's own
    1), on exact and on noisy evidence alike, since noise is counted by the score. An edge needs a z of about
    √(c·log n): 4.0 for 3,000 records, 4.8 for 100,000. ``restarts`` orders are tried: the sorted names, then
    random ones from ``generator`` (seeded with 0 by default). The order of the columns does not matter.
    Knowledge prunes: a parent it rules out is never scored, a required one never left out.

    Raises:
        MisuseError: restarts below 1 or a penalty that is not positive.
        DataError: exact evidence whose variables are linearly dependent, evidence worth fewer than 3 records,
            or noise that leaves no residual variance beside the required parents.
        ConfigurationError: the knowledge names unknown variables.
    """
    if restarts < 1 or not 0 < penalty < math.inf:
        raise MisuseError(f"restarts is {restarts} and penalty {penalty}. Give one restart or more, a penalty > 0.")
    knowledge.check(evidence.names)
    names = sorted(evidence.names)
    scores = _scores(evidence.select(names), penalty, knowledge)
    draw = generator or torch.Generator().manual_seed(0)
    best, best_score = list(range(len(names))), -math.inf
    for start in _starts(names, knowledge, draw, restarts):
        order, score = _climb(scores, start)
        if score > best_score + NEAR:
            best, best_score = order, score
    if names and best_score == -math.inf:
        raise DataError(
            "Noise leaves no residual variance beside the required parents. Require fewer, or use more records."
        )
    return _discovery(scores, best, names, evidence.names, knowledge)


@dataclass
class _Scores:
    """The score and its trees; sets of variables are bit masks of positions in the sorted names.

    ``noise`` is σ²/2n, and ``gram`` (d, d) holds the products of the standardised variables' coefficient
    vectors on (1, z). ``allowed`` and ``required`` hold, for each variable, the mask of what may and must be
    its parents.
    """

    correlation: Floats
    count: float
    cost: float
    noise: float
    gram: Floats
    allowed: Sequence[int]
    required: Sequence[int]
    trees: defaultdict[int, dict[int, list[int]]] = field(default_factory=lambda: defaultdict(dict))
    shrunk: defaultdict[int, dict[int, Scored]] = field(default_factory=lambda: defaultdict(dict))
    projected: defaultdict[int, dict[int, Scored]] = field(default_factory=lambda: defaultdict(dict))

    def project(self, j: int, before: int) -> Scored:
        """(score, parents) of j by growing and shrinking among the variables ``before`` it."""
        before &= self.allowed[j]
        known = self.projected[j].get(before)
        if known is None:
            known = self.projected[j][before] = self._shrink(j, self._grow(j, before))
        return known

    def score(self, j: int, parents: int) -> float:
        variance, _, _ = self._given(j, parents, [])
        if variance <= _SINGULAR:
            return -math.inf
        return -self.count * math.log(variance) - self.cost * float(self._weigh(j, [_members(parents)])[0])

    def gains(self, j: int, parents: int, among: int) -> tuple[Order, Floats]:
        """(candidates, the gain of each as one more parent of j); only what is allowed is looked at."""
        columns = _members(among & self.allowed[j] & ~parents)
        variance, rows, diagonal = self._given(j, parents, columns)
        with np.errstate(divide="ignore", invalid="ignore"):
            after = 1 - rows**2 / (diagonal * variance)
            gain = -self.count * np.log(after)
        usable = (diagonal > _SINGULAR) & (after * variance > _SINGULAR) & (variance > _SINGULAR)
        members, worth = _members(parents), np.flatnonzero(usable)
        if worth.size:
            wider = self._weigh(j, [[*members, columns[i]] for i in worth])
            gain[worth] -= self.cost * (wider - self._weigh(j, [members]))
        return columns, np.where(usable, gain, -np.inf)

    def losses(self, j: int, parents: int) -> tuple[Order, Floats]:
        """(parents that are not required, the gain of leaving each out)."""
        members = _members(parents)
        if not members:
            return [], np.empty(0)
        inverse = np.linalg.inv(self.correlation[np.ix_(members, members)])
        weights = inverse @ self.correlation[members, j]
        variance = float(1 - self.correlation[members, j] @ weights)
        if variance <= _SINGULAR:
            return [], np.empty(0)
        fewer = self._weigh(j, [[m for m in members if m != left_out] for left_out in members])
        gain = self.cost * (self._weigh(j, [members]) - fewer)
        gain -= self.count * np.log1p(weights**2 / (inverse.diagonal() * variance))
        free = [i for i, member in enumerate(members) if not self.required[j] >> member & 1]
        return [members[i] for i in free], gain[free]

    def _grow(self, j: int, before: int) -> int:
        """Walk down the tree of j, each time by the best candidate that stands before it."""
        tree, parents = self.trees[j], self.required[j]
        while True:
            branches = tree.get(parents)
            if branches is None:
                branches = tree[parents] = self._branches(j, parents)
            bit = next((bit for bit in branches if bit & before), 0)
            if not bit:
                return parents
            parents |= bit

    def _branches(self, j: int, parents: int) -> list[int]:
        """The candidates that raise the score, best first; those within rounding keep their order."""
        columns, gains = self.gains(j, parents, -1)
        return [1 << columns[i] for i in np.argsort(-gains.round(6), kind="stable") if gains[i] > 0]

    def _shrink(self, j: int, grown: int) -> Scored:
        known = self.shrunk[j].get(grown)
        if known is None:
            members, gains = self.losses(j, grown)
            if len(members) and gains.max() > 0:
                known = self._shrink(j, grown & ~(1 << members[int(gains.round(6).argmax())]))
            else:
                known = self.score(j, grown), grown
            self.shrunk[j][grown] = known
        return known

    def _given(self, j: int, parents: int, columns: Order) -> tuple[float, Floats, Floats]:
        """Given the parents: (variance of j, its covariances with ``columns``, their variances)."""
        members, corr = _members(parents), self.correlation
        if not members:
            return 1.0, corr[j, columns], np.ones(len(columns))
        targets = [j, *columns]
        cross = corr[np.ix_(members, targets)]
        weights = np.linalg.solve(corr[np.ix_(members, members)], cross)
        covariances = corr[j, targets] - cross[:, 0] @ weights
        diagonal = 1 - (cross * weights).sum(axis=0)
        return float(diagonal[0]), covariances[1:], diagonal[1:]

    def _weigh(self, j: int, sets: Sequence[Order]) -> Floats:
        """(c,) the Σ (1 + V_k) of c sets of parents of j, all of one size.

        Coefficient vectors are written in those of the standardised variables, so that ``gram`` holds all
        their products and u, w have variances 1 / K_kk and σ²(j | pa) + b_k² / K_kk, with K the inverse of
        the set's block of correlations and b = K · its correlations with j.
        """
        size = len(sets[0])
        if not (self.noise and size):
            return np.full(len(sets), float(size))
        pa = np.array(sets)
        square, gram = (pa[:, :, None], pa[:, None, :]), self.gram
        inverse, cross = np.linalg.inv(self.correlation[square]), self.correlation[pa, j]
        b = (inverse @ cross[:, :, None])[:, :, 0]
        kk = inverse.diagonal(axis1=1, axis2=2)
        variance = (1 - (b * cross).sum(axis=1))[:, None]
        # r = w with k among the parents, so w = r + b_k u
        along = gram[pa, j] - (gram[square] @ b[:, :, None])[:, :, 0]
        r2 = gram[j, j] - (b * (gram[pa, j] + along)).sum(axis=1)
        u2 = ((inverse @ gram[square]) * inverse).sum(axis=2) / kk**2
        ru = (inverse @ along[:, :, None])[:, :, 0] / kk
        w2, uw = r2[:, None] + 2 * b * ru + b**2 * u2, ru + b * u2
        extra = self.noise * (u2 * w2 + uw**2) * kk / (variance + b**2 / kk)
        possible = (kk > 0).all(axis=1) & (variance > 0).all(axis=1)
        return np.where(possible, size + extra.sum(axis=1), np.inf)


def _scores(evidence: Evidence, penalty: float, knowledge: Knowledge) -> _Scores:
    correlation = evidence.correlation().numpy()
    if evidence.n_eff < 3:
        raise DataError(
            f"The evidence is worth {evidence.n_eff:.3g} records after noise. BOSS needs 3: use more records."
        )
    if evidence.noise == 0 and np.linalg.eigvalsh(correlation).min(initial=1.0) < _SINGULAR:
        raise DataError(
            f"Some of {', '.join(evidence.names)} are linearly dependent in {evidence.count:.6g} records. "
            "Drop variables that others determine, or use more records than variables."
        )
    names = evidence.names
    allowed = [_mask(a != b and knowledge.allows(a, b) for a in names) for b in names]
    required = [_mask((a, b) in knowledge.required for a in names) for b in names]
    count, scale = evidence.count, evidence.covariance().diagonal().rsqrt()
    shift = evidence.mean() * scale
    gram = (torch.outer(shift, shift) + scale.square().diag()).numpy()
    cost, noise = penalty * math.log(count), evidence.noise**2 / (2 * count)
    return _Scores(correlation, count, cost, noise, gram, allowed, required)


def _starts(names: Sequence[str], knowledge: Knowledge, generator: torch.Generator, restarts: int) -> Iterator[Order]:
    """The sorted names, then random orders; required causes are moved before their effects."""
    index = {name: i for i, name in enumerate(names)}
    for number in range(restarts):
        shuffled = torch.randperm(len(names), generator=generator).tolist() if number else range(len(names))
        order = CausalGraph.dag(knowledge.required, [names[i] for i in shuffled] or ()).topological_order()
        yield [index[name] for name in order]


def _climb(scores: _Scores, start: Order) -> tuple[Order, float]:
    """Move each variable to its best place, over and over, until no move raises the score."""
    order, score, improved = start, _total(scores, start), True
    while improved:
        improved = False
        for j in start:
            moved, value = _best_move(scores, order, j)
            if value > score + NEAR:
                order, score, improved = moved, value, True
    return order, score


def _total(scores: _Scores, order: Order) -> float:
    before = accumulate((1 << i for i in order), int.__or__, initial=0)
    return sum(scores.project(i, mask)[0] for i, mask in zip(order, before, strict=False))


def _best_move(scores: _Scores, order: Order, j: int) -> tuple[Order, float]:
    """(order, score) with j at the first of its best places; the places respect what is required."""
    rest = [i for i in order if i != j]
    masks = list(accumulate((1 << i for i in rest), int.__or__, initial=0))
    bit, project = 1 << j, scores.project
    pairs = list(zip(rest, masks, strict=False))
    head = list(accumulate((project(i, mask)[0] for i, mask in pairs), initial=0.0))
    tail = list(accumulate((project(i, mask | bit)[0] for i, mask in reversed(pairs)), initial=0.0))[::-1]
    places = _places(scores, rest, masks, j)
    totals = [head[k] + tail[k] + project(j, masks[k])[0] for k in places]
    place = places[next(k for k, total in enumerate(totals) if total >= max(totals) - NEAR)]
    return [*rest[:place], j, *rest[place:]], totals[place - places[0]]


def _places(scores: _Scores, rest: Order, masks: list[int], j: int) -> range:
    """Where j may stand: after all that must cause it, before all that it must cause."""
    first = next(k for k, mask in enumerate(masks) if not scores.required[j] & ~mask)
    last = next((k for k, i in enumerate(rest) if scores.required[i] >> j & 1), len(rest))
    return range(first, last + 1)


def _discovery(
    scores: _Scores, order: Order, names: Sequence[str], columns: Sequence[str], knowledge: Knowledge
) -> Discovery:
    edges: list[Pair] = []
    near: set[Pair] = set()
    before = 0
    for j in order:
        parents = scores.project(j, before)[1]
        edges += [(names[i], names[j]) for i in _members(parents)]
        near |= {(min(a, b), max(a, b)) for a, b in _near_ties(scores, j, parents, before, names)}
        before |= 1 << j
    graph = cpdag_of(CausalGraph.dag(edges, columns))
    return Discovery(knowledge.orient(graph), frozenset(near))


def _near_ties(scores: _Scores, j: int, parents: int, before: int, names: Sequence[str]) -> Iterator[Pair]:
    """The edges into j that adding or leaving out would change the score by less than `NEAR`."""
    for others, gains in (scores.gains(j, parents, before), scores.losses(j, parents)):
        yield from ((names[i], names[j]) for i, gain in zip(others, gains, strict=True) if abs(gain) < NEAR)


def _mask(flags: Iterator[bool]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def _members(mask: int) -> Order:
    members = []
    while mask:
        low = mask & -mask
        members.append(low.bit_length() - 1)
        mask ^= low
    return members
