"""PC-stable on second moments: a skeleton by tests of partial correlation, then colliders, then Meek.

Spirtes & Glymour (1991); the order-independent skeleton is Colombo & Maathuis (2014). All tests of a level
run in one batch on the correlation matrix: Fisher's z of the partial correlation, whose standard error joins
the sampling error 1/√(n - |S| - 3) with the privacy error of noisy evidence (the delta method of
`evidence.partial`, batched).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice

import torch
from scipy.stats import norm
from torch import Tensor

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph, Pair, Triple
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import meek, nearest_extension

NEAR = 1e-6
_CHUNK = 1 << 17
_SINGULAR = 1e-12
_NO_POWER = math.inf


@dataclass(frozen=True)
class Discovery:
    """What a search found.

    Attributes
    ----------
    graph : the CPDAG, with what the knowledge directs; it always has a consistent extension.
    near_ties : pairs whose edge hung on a statistic or a score within 1e-6 of the line; the rounding of
        another machine may decide them otherwise, so a replay takes these as given.
    separating_sets : of each pair that tests separated, the set with the least dependence (PC; else empty).
    conflicts : the unshielded colliders on which the tests and the graph disagree, because no DAG has
        them all (PC; else empty).
    """

    graph: CausalGraph
    near_ties: frozenset[Pair] = frozenset()
    separating_sets: Mapping[Pair, frozenset[str]] = field(default_factory=dict)
    conflicts: frozenset[Triple] = frozenset()


@dataclass(frozen=True)
class _Answer:
    """A test of a, b given S: |z| in units of its standard error, infinite where it cannot separate."""

    pair: Pair
    given: tuple[str, ...]
    statistic: float


def pc(evidence: Evidence, alpha: float = 0.01, knowledge: Knowledge = NONE) -> Discovery:
    """Find the CPDAG by PC-stable with two-sided Fisher z tests at level ``alpha``.

    At each level every pair still adjacent is tested given all sets of that size from the adjacencies, at the
    start of the level, of either end; it is separated if a test does not reject, and the set of the least
    statistic separates it. So neither the columns' order nor that of the tests matters. Knowledge prunes:
    pairs it excludes or requires are never tested, and what cannot be a parent is never conditioned on.
    Colliders enter in order of how independent their ends are; one that contradicts an edge directed before
    it is left out and listed in ``conflicts``.

    Raises:
        MisuseError: alpha is not in (0, 1).
        DataError: fewer than four records, or exact evidence whose variables are linearly dependent.
        ConfigurationError: the knowledge names unknown variables.
    """
    if not 0 < alpha < 1:
        raise MisuseError(f"alpha is {alpha}. Give a level in (0, 1), such as 0.01.")
    if evidence.count <= 3:
        raise DataError(f"PC needs more than 3 records, and the evidence counts {evidence.count:.4g}.")
    knowledge.check(evidence.names)
    critical = float(norm.isf(alpha / 2))
    skeleton, separated, near = _skeleton(evidence.select(sorted(evidence.names)), critical, knowledge)
    graph, conflicts = _orient(evidence.names, skeleton, separated, knowledge)
    sets = {pair: frozenset(test.given) for pair, test in separated.items()}
    return Discovery(graph, frozenset(near), sets, conflicts)


def _skeleton(
    evidence: Evidence, critical: float, knowledge: Knowledge
) -> tuple[set[Pair], dict[Pair, _Answer], set[Pair]]:
    """(the adjacent pairs, the test that separated each other tested pair, the pairs of near ties)."""
    tester = _Tester.of(evidence)
    pairs = {p for p in combinations(evidence.names, 2) if not knowledge.adjacency_excluded(*p)}
    open_pairs = {p for p in pairs if not knowledge.requires(*p)}
    separated: dict[Pair, _Answer] = {}
    near: set[Pair] = set()
    for level in range(min(len(evidence.names) - 1, math.ceil(evidence.count) - 3)):
        around = _around(evidence.names, pairs)
        for test in tester.run(_questions(sorted(open_pairs), around, level, knowledge), level):
            if abs(test.statistic - critical) < NEAR:
                near.add(test.pair)
            if test.statistic <= critical and _beats(test, separated.get(test.pair)):
                separated[test.pair] = test
        pairs -= separated.keys()
        open_pairs -= separated.keys()
        if all(len(others) <= level + 1 for others in _around(evidence.names, pairs).values()):
            break
    return pairs, separated, near


def _beats(test: _Answer, other: _Answer | None) -> bool:
    """Whether a separating test shows less dependence; on a tie the first set in name order wins."""
    return other is None or (test.statistic, test.given) < (other.statistic, other.given)


def _around(names: Sequence[str], pairs: Iterable[Pair]) -> dict[str, list[str]]:
    around: dict[str, list[str]] = {name: [] for name in names}
    for a, b in sorted(pairs):
        around[a].append(b)
        around[b].append(a)
    return {name: sorted(others) for name, others in around.items()}


def _questions(
    pairs: Sequence[Pair], around: Mapping[str, Sequence[str]], level: int, knowledge: Knowledge
) -> Iterator[tuple[Pair, tuple[str, ...]]]:
    """Each pair with each set of ``level`` variables from the possible parents of one of its ends, none
    twice.
    """
    for pair in pairs:
        sides = [
            combinations([c for c in around[a] if c != b and knowledge.conditioning_allowed(a, c)], level)
            for a, b in (pair, pair[::-1])
        ]
        yield from ((pair, given) for given in dict.fromkeys(given for side in sides for given in side))


@dataclass(frozen=True)
class _Tester:
    """Partial correlations from the correlation matrix (d, d), with the scaled standard deviations and means
    (d,).
    """

    names: tuple[str, ...]
    correlation: Tensor
    scale: Tensor
    mean: Tensor
    count: float
    noise: float

    @classmethod
    def of(cls, evidence: Evidence) -> _Tester:
        scale = evidence.covariance().diagonal().clamp_min(0).sqrt()
        correlation, mean = evidence.correlation(), evidence.mean()
        return cls(evidence.names, correlation, scale, mean, evidence.count, evidence.noise)

    def run(self, questions: Iterator[tuple[Pair, tuple[str, ...]]], level: int) -> Iterator[_Answer]:
        """Answer the questions, all with sets of size ``level``, in batches."""
        index = {name: i for i, name in enumerate(self.names)}
        while batch := list(islice(questions, _CHUNK)):
            rows = torch.tensor([[index[n] for n in (*pair, *given)] for pair, given in batch])
            statistics = self.statistics(rows)
            if not self.noise and bool(statistics.isinf().any()):
                self._refuse(batch[int(statistics.isinf().nonzero()[0])])
            for (pair, given), statistic in zip(batch, statistics.tolist(), strict=True):
                yield _Answer(pair, given, statistic)

    def statistics(self, rows: Tensor) -> Tensor:
        """(B, 2 + |S|) indices (a, b, S) -> (B,) |z| / se; infinite where no positive variance is left."""
        level = rows.shape[1] - 2
        pair, given = rows[:, :2], rows[:, 2:]
        cross = self._block(given, pair)
        weights, ok = _regress(self._block(given, given), cross)
        residual = self._block(pair, pair) - cross.mT @ weights
        variances = residual.diagonal(dim1=1, dim2=2)
        ok &= (variances > _SINGULAR).all(dim=1)
        deviations = variances.clamp_min(_SINGULAR).sqrt()
        rho = residual[:, 0, 1] / deviations.prod(dim=1)
        ok &= rho.abs() < 1
        rho = torch.where(ok, rho, 0.0)
        vectors = torch.cat([torch.eye(2, dtype=rho.dtype).expand(len(rows), 2, 2), -weights.mT], dim=2)
        privacy = self._privacy(vectors / deviations[:, :, None], rows, rho)
        error = (1 / (self.count - level - 3) + privacy**2).sqrt()
        return torch.where(ok, rho.atanh().abs() / error, _NO_POWER)

    def _privacy(self, vectors: Tensor, rows: Tensor, rho: Tensor) -> Tensor:
        """(B,) standard deviation of z that the noise brings: σ‖A‖_F / (1 - ρ²), A = sym(u wᵀ) - ρ/2 (u uᵀ +
        w wᵀ).

        ``vectors`` (B, 2, 2 + |S|) are u and w, the residuals' coefficients in units of correlation, uᵀRu =
        1; on the moments Σ x xᵀ they become coefficients of (1, z) with an entry for the mean, over √n.
        """
        if not self.noise:
            return torch.zeros_like(rho)
        scaled = vectors / self.scale[rows][:, None, :]
        constant = (scaled * self.mean[rows][:, None, :]).sum(dim=2, keepdim=True)
        vectors = torch.cat([constant, scaled], dim=2)
        gram = vectors @ vectors.mT / self.count
        p, q, s = gram[:, 0, 0], gram[:, 1, 1], gram[:, 0, 1]
        norm2 = (p * q + s * s) / 2 - rho * s * (p + q) + rho**2 / 4 * (p * p + q * q + 2 * s * s)
        return self.noise * norm2.clamp_min(0).sqrt() / (1 - rho * rho)

    def _block(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.correlation[rows[:, :, None], columns[:, None, :]]

    def _refuse(self, question: tuple[Pair, tuple[str, ...]]) -> None:
        names = sorted([*question[0], *question[1]])
        raise DataError(
            f"{', '.join(names)} are linearly dependent in the evidence, so their partial correlations do "
            "not exist. Drop one of them."
        )


def _regress(block: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """(weights (B, s, 2), whether the block was positive definite (B,)); for s < 2 the block is [] or [1]."""
    if block.shape[1] < 2:
        return cross, torch.ones(len(block), dtype=torch.bool)
    factor, failed = torch.linalg.cholesky_ex(block)
    good = failed == 0
    factor = torch.where(good[:, None, None], factor, torch.eye(block.shape[1], dtype=block.dtype))
    return torch.cholesky_solve(cross, factor), good


def _orient(
    names: Sequence[str], skeleton: set[Pair], separated: Mapping[Pair, _Answer], knowledge: Knowledge
) -> tuple[CausalGraph, frozenset[Triple]]:
    """Direct by knowledge, then by colliders, then close, so that the outcome always has an extension."""
    bare = CausalGraph.cpdag(undirected=skeleton, nodes=names)
    arrows = {(a, b) for p in skeleton for a, b in (p, p[::-1]) if not knowledge.allows(b, a)}
    wanted = [
        (separated[a, b].statistic, (a, c, b))
        for a, c, b in bare.unshielded_triples()
        if (a, b) in separated and c not in separated[a, b].given
    ]
    marked = _admit(bare, arrows, [triple for _, triple in sorted(wanted)])
    graph = _completed(marked, arrows)
    found = {t for t in graph.unshielded_colliders() if (t[0], t[2]) in separated}
    return graph, frozenset(found ^ {triple for _, triple in wanted})


def _admit(bare: CausalGraph, arrows: set[Pair], colliders: Iterable[Triple]) -> CausalGraph:
    """Direct the knowledge's arrows, then each collider that neither reverses an arrow nor closes a cycle."""
    held = set(arrows)
    for a, c, b in colliders:
        new = {(a, c), (b, c)} - held
        if (c, a) not in held and (c, b) not in held and not _closes_cycle(held, new, c):
            held |= new
    return _directed(bare, held)


def _closes_cycle(arrows: set[Pair], new: set[Pair], c: str) -> bool:
    """Whether a directed path leads from c to the tail of a new arrow into c."""
    below, todo = {c}, [c]
    while todo:
        node = todo.pop()
        found = {b for a, b in arrows if a == node} - below
        below |= found
        todo.extend(found)
    return any(a in below for a, _ in new)


def _directed(bare: CausalGraph, arrows: set[Pair]) -> CausalGraph:
    lines = [pair for pair in bare.skeleton() if pair not in arrows and pair[::-1] not in arrows]
    return CausalGraph.cpdag(arrows, lines, bare.nodes)


def _completed(marked: CausalGraph, arrows: set[Pair]) -> CausalGraph:
    """Close the marks. If no DAG has exactly them, the colliders of the nearest one take their place."""
    dag, _ = nearest_extension(marked)
    colliders = {(end, c) for a, c, b in dag.unshielded_colliders() for end in (a, b)}
    return meek(_directed(marked, colliders | arrows))
