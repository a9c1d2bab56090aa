"""Skeletons by tests of partial correlation on second moments, shared by the methods that rest on such tests.

The order-independent skeleton of Colombo & Maathuis (2014). All tests of a level run in one batch on the
correlation matrix: Fisher's z of the partial correlation, whose standard error joins the sampling error
1/√(n - |S| - 3) with the privacy error of noisy evidence (the delta method of `evidence.partial`, batched).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice

import torch
from scipy.stats import norm
from torch import Tensor

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.blocks import BlockTests, Whitened
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import NEAR
from causaldao.models.graph import Pair

_CHUNK = 1 << 17
_BLOCK_CHUNK = 1 << 11
_SINGULAR = 1e-12
_NO_POWER = math.inf

Question = tuple[Pair, tuple[str, ...]]


@dataclass(frozen=True)
class Answer:
    """A test of a, b given S: |z| in units of its standard error, infinite where it cannot separate."""

    pair: Pair
    given: tuple[str, ...]
    statistic: float


@dataclass(frozen=True)
class Oracle:
    """What answers a search's questions of independence.

    ``run`` answers questions whose sets all have the size it is given, ``largest`` at most; an answer
    separates its pair if the statistic is at most ``critical``.
    """

    names: tuple[str, ...]
    run: Callable[[Iterator[Question], int], Iterator[Answer]]
    critical: float
    largest: int

    @classmethod
    def of(cls, evidence: Evidence, alpha: float, method: str) -> Oracle:
        """Tests at level ``alpha`` over the sorted names: two-sided Fisher z tests, or Wilks' tests between blocks of
        features (`blocks.py`); ``method`` is named in errors.

        Raises:
            MisuseError: alpha is not in (0, 1).
            DataError: fewer than four records, no more records than columns of features, or a variable without
                variance.
        """
        if not 0 < alpha < 1:
            raise MisuseError(f"alpha is {alpha}. Give a level in (0, 1), such as 0.01.")
        if evidence.count <= 3:
            raise DataError(f"{method} needs more than 3 records, and the evidence counts {evidence.count:.4g}.")
        names = tuple(sorted(evidence.names))
        largest = min(len(names) - 2, math.ceil(evidence.count) - 4)
        chosen = evidence.select(names)
        run = _blocks(chosen) if evidence.blocks else PartialCorrelations.of(chosen).run
        return cls(names, run, float(norm.isf(alpha / 2)), largest)


@dataclass(frozen=True)
class Skeleton:
    """The pairs still adjacent, the test that separated each other tested pair, the near ties."""

    pairs: set[Pair]
    separated: dict[Pair, Answer] = field(default_factory=dict)
    near: set[Pair] = field(default_factory=set)

    def test(self, oracle: Oracle, questions: Iterator[Question], level: int) -> None:
        """Ask all questions; a pair that a test separates is taken away, with the test of the least statistic."""
        found: dict[Pair, Answer] = {}
        for answer in oracle.run(questions, level):
            if abs(answer.statistic - oracle.critical) < NEAR:
                self.near.add(answer.pair)
            if answer.statistic <= oracle.critical and _beats(answer, found.get(answer.pair)):
                found[answer.pair] = answer
        self.separated.update(found)
        self.pairs.difference_update(found)

    def around(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The sorted adjacencies of each name."""
        around: dict[str, list[str]] = {name: [] for name in names}
        for a, b in sorted(self.pairs):
            around[a].append(b)
            around[b].append(a)
        return {name: sorted(others) for name, others in around.items()}


def stable_skeleton(
    oracle: Oracle, pairs: Iterable[Pair], certain: Callable[[str, str], bool], usable: Callable[[str, str, str], bool]
) -> Skeleton:
    """The skeleton among ``pairs`` by PC-stable: level by level, on the adjacencies at the start of the level.

    Pairs that are ``certain`` are not tested; in a test of a, b from the side of a, the sets hold adjacencies
    c of a with ``usable(a, b, c)`` only.
    """
    found = Skeleton(set(pairs))
    certainly = {pair for pair in found.pairs if certain(*pair)}
    for level in range(oracle.largest + 1):
        around = found.around(oracle.names)
        found.test(oracle, _questions(sorted(found.pairs - certainly), around, level, usable), level)
        if all(len(others) <= level + 1 for others in found.around(oracle.names).values()):
            break
    return found


def _beats(answer: Answer, other: Answer | None) -> bool:
    """Whether a separating test shows less dependence; on a tie the first set in name order wins."""
    return other is None or (answer.statistic, answer.given) < (other.statistic, other.given)


def _questions(
    pairs: Sequence[Pair], around: Mapping[str, Sequence[str]], level: int, usable: Callable[[str, str, str], bool]
) -> Iterator[Question]:
    """Each pair with each set of ``level`` usable adjacencies of one of its ends, none twice."""
    for pair in pairs:
        sides = [
            combinations([c for c in around[a] if c != b and usable(a, b, c)], level) for a, b in (pair, pair[::-1])
        ]
        yield from ((pair, given) for given in dict.fromkeys(given for side in sides for given in side))


@dataclass(frozen=True)
class PartialCorrelations:
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
    def of(cls, evidence: Evidence) -> PartialCorrelations:
        scale = evidence.covariance().diagonal().clamp_min(0).sqrt()
        correlation, mean = evidence.correlation(), evidence.mean()
        return cls(evidence.names, correlation, scale, mean, evidence.count, evidence.noise)

    def run(self, questions: Iterator[Question], level: int) -> Iterator[Answer]:
        """Answer the questions, all with sets of size ``level``, in batches."""
        index = {name: i for i, name in enumerate(self.names)}
        while batch := list(islice(questions, _CHUNK)):
            rows = torch.tensor([[index[n] for n in (*pair, *given)] for pair, given in batch])
            statistics = self.statistics(rows)
            yield from _answered(batch, statistics.tolist(), self.noise)

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


def _blocks(evidence: Evidence) -> Callable[[Iterator[Question], int], Iterator[Answer]]:
    """What answers questions on evidence of blocks."""
    tests = BlockTests(Whitened.of(evidence))

    def run(questions: Iterator[Question], _: int) -> Iterator[Answer]:
        while batch := list(islice(questions, _BLOCK_CHUNK)):
            yield from _answered(batch, tests.answers(batch), evidence.noise)

    return run


def _answered(batch: Sequence[Question], statistics: Sequence[float], noise: float) -> Iterator[Answer]:
    """The answers; an infinite statistic of exact evidence is refused, for only dependent variables have it."""
    for (pair, given), statistic in zip(batch, statistics, strict=True):
        if not noise and math.isinf(statistic):
            raise DataError(
                f"{', '.join(sorted([*pair, *given]))} are linearly dependent in the evidence, so their partial "
                "correlations do not exist. Drop one of them."
            )
        yield Answer(pair, given, statistic)


def _regress(block: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """(weights (B, s, 2), whether the block was positive definite (B,)); for s < 2 the block is [] or [1]."""
    if block.shape[1] < 2:
        return cross, torch.ones(len(block), dtype=torch.bool)
    factor, failed = torch.linalg.cholesky_ex(block)
    good = failed == 0
    factor = torch.where(good[:, None, None], factor, torch.eye(block.shape[1], dtype=block.dtype))
    return torch.cholesky_solve(cross, factor), good
