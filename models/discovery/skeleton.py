"""Skeletons by tests of conditional independence, shared by the methods that rest on such tests.

The order-independent skeleton of Colombo & Maathuis (2014). On second moments all tests of a level run in one batch
on the correlation matrix: Fisher's z of the partial correlation, whose standard error joins the sampling error
1/√(n - |S| - 3) with the privacy error of noisy evidence (the delta method of `evidence.partial`, batched). On
tables they are the tests of `gsquare.py`, in batches that share a set and one end of the pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, combinations, islice, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.blocks import BlockTests, Whitened
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import NEAR
from causaldao.models.discovery.gsquare import g_square, noisy_square, normal_score
from causaldao.models.discovery.tables import Floats, Tables, refuse_unusable
from causaldao.models.graph import Pair

_CHUNK = 1 << 17
_SMALL = 1 << 12
_BLOCK_CHUNK = 1 << 11
_FLAGS = 1 << 24
_SINGULAR = 1e-12
_NO_POWER = math.inf
_DEPENDENT = "{} are linearly dependent in the evidence, so their partial correlations do not exist. Drop one of them."

Question = tuple[Pair, tuple[str, ...]]
Usable = Callable[[str, str, str], bool]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


class Answer(NamedTuple):
    """A test of a, b given S: |z| in units of its standard error, infinite where it cannot separate."""

    pair: Pair
    given: tuple[str, ...]
    statistic: float


_ANSWER = partial(tuple.__new__, Answer)  # of a triple at once: there are many


class Ask(NamedTuple):
    """A pair to be tested given each set of names of one of the ``pools``, none twice.

    Beside each pool stand the pools that were offered before: a set wholly within one of them is left out.
    """

    pair: Pair
    pools: Sequence[tuple[Sequence[str], Sequence[Collection[str]]]]


@dataclass(frozen=True)
class Oracle:
    """What answers a search's questions of independence.

    ``run`` answers questions whose sets all have the size it is given, ``largest`` at most; an answer
    separates its pair if the statistic is at most ``critical``. ``statistics``, if given, does so for many at once:
    rows of positions (a, b, S) among the names, which are then sorted, (B, 2 + |S|), to their statistics, (B,).
    ``notes`` tells, after a search, what could not be tested.
    """

    names: tuple[str, ...]
    run: Callable[[Iterator[Question], int], Iterator[Answer]]
    critical: float
    largest: int
    statistics: Callable[[Tensor], Tensor] | None = None
    notes: Callable[[], tuple[str, ...]] = tuple

    @classmethod
    def of(cls, evidence: Evidence | Tables, alpha: float, method: str) -> Oracle:
        """Tests at level ``alpha`` over the sorted names: on moments two-sided Fisher z tests, or Wilks' tests between
        blocks of features (`blocks.py`); on tables G² tests. ``method`` is named in errors.

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
        if not isinstance(evidence, Evidence):
            counts, largest = CountTests.of(evidence), min(len(names), evidence.most) - 2
            return cls(names, counts.run, float(norm.isf(alpha / 2)), largest, notes=counts.notes)
        largest = min(len(names) - 2, math.ceil(evidence.count) - 4)
        notes = partial(_few, evidence.count, largest) if largest < len(names) - 2 else tuple
        chosen = evidence.select(names)
        if evidence.blocks:
            return cls(names, _blocks(chosen), float(norm.isf(alpha / 2)), largest, notes=notes)
        tests = PartialCorrelations.of(chosen)
        return cls(names, tests.run, float(norm.isf(alpha / 2)), largest, tests.checked, notes)

    def telling(self, blocks: Iterable[Integers], level: int) -> Iterator[tuple[Integers, Floats]]:
        """The questions that separate their pair or are nearly on the line, and their statistics, of questions given
        as positions (a, b, S) among the sorted names, in blocks (m, 2 + level).
        """
        for batch in _batches(blocks):
            statistics = self._asked(batch, level)
            told = np.flatnonzero(statistics < self.critical + NEAR)
            yield batch[told], statistics[told]

    def _asked(self, batch: Integers, level: int) -> Floats:
        if self.statistics is not None:
            found: Floats = self.statistics(torch.from_numpy(batch)).numpy()
            return found
        names = sorted(self.names)
        questions = (((names[a], names[b]), tuple([names[c] for c in given])) for a, b, *given in batch.tolist())
        return np.fromiter((one.statistic for one in self.run(questions, level)), np.float64, len(batch))


def _few(count: float, largest: int) -> tuple[str, ...]:
    return (
        f"no set of more than {largest} variables was tested, for there are {count:.4g} records: edges may stand that "
        "larger sets would separate, and few true ones can be seen",
    )


@dataclass(frozen=True)
class Skeleton:
    """The pairs still adjacent, the test that separated each other tested pair, the near ties.

    ``groups`` holds, by positions among the names, the questions of pairs that several sets separated of those asked
    about together.
    """

    pairs: set[Pair]
    separated: dict[Pair, Answer] = field(default_factory=dict)
    near: set[Pair] = field(default_factory=set)
    groups: list[tuple[list[str], Integers]] = field(default_factory=list)

    def test(self, oracle: Oracle, asks: Iterable[Ask], level: int) -> None:
        """Ask all, given sets of that size; a pair that a test separates is taken away, with the test of the least
        statistic.
        """
        names = sorted(oracle.names)
        settled = self.settle(oracle, _rows(asks, _places(names), level), level)
        self.pairs.difference_update((names[a], names[b]) for a, b in settled.tolist())

    def settle(self, oracle: Oracle, blocks: Iterable[Integers], level: int) -> Integers:
        """Ask questions in blocks of positions (`Oracle.telling`), and keep of each pair that a test separates the test
        of the least statistic. These pairs, (m, 2); the caller takes them away.
        """
        told = list(oracle.telling(blocks, level))
        if not told:
            return np.empty((0, 2), dtype=np.int64)
        names = sorted(oracle.names)
        rows, statistics = (np.concatenate(parts) for parts in zip(*told, strict=True))
        near = rows[np.abs(statistics - oracle.critical) < NEAR]
        self.near.update((names[a], names[b]) for a, b in near[:, :2].tolist())
        below = np.flatnonzero(statistics <= oracle.critical)
        rows, statistics = rows[below], statistics[below]
        if level:  # by pairs, of each the least dependence first; on a tie the first set in name order
            order = np.lexsort((*rows[:, :1:-1].T, statistics, rows[:, 0] * len(names) + rows[:, 1]))
            rows, statistics = rows[order], statistics[order]
            starts = np.flatnonzero(np.r_[True, (rows[1:, :2] != rows[:-1, :2]).any(axis=1)][: len(rows)])
            sizes = np.diff(starts, append=len(rows))
            self.groups.append((names, rows[np.repeat(sizes > 1, sizes)]))
            rows, statistics = rows[starts], statistics[starts]
        first, second, *columns = (map(names.__getitem__, column) for column in rows.T.tolist())
        pairs = list(zip(first, second, strict=True))
        sets: Iterable[tuple[str, ...]] = zip(*columns, strict=True) if level else repeat(())
        answers = map(_ANSWER, zip(pairs, sets, statistics.tolist(), strict=False))
        self.separated.update(zip(pairs, answers, strict=True))
        return rows[:, :2]

    def several(self) -> dict[Pair, list[tuple[str, ...]]]:
        """Of each pair that several sets separated of those asked about together, all of these."""
        several: dict[Pair, list[tuple[str, ...]]] = {}
        for names, rows in self.groups:
            for a, b, *given in rows.tolist():
                several.setdefault((names[a], names[b]), []).append(tuple([names[c] for c in given]))
        return several

    def around(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The sorted adjacencies of each name."""
        around: dict[str, list[str]] = {name: [] for name in names}
        for a, b in sorted(self.pairs):
            around[a].append(b)
            around[b].append(a)
        return {name: sorted(others) for name, others in around.items()}


def stable_skeleton(
    oracle: Oracle, pairs: Iterable[Pair], certain: Callable[[str, str], bool] | None, usable: Usable | None = None
) -> Skeleton:
    """The skeleton among ``pairs`` by PC-stable: level by level, on the adjacencies at the start of the level.

    Pairs that are ``certain``, if that is given, are not tested; in a test of a, b from the side of a, the sets hold
    adjacencies c of a with ``usable(a, b, c)`` only; without it any.
    """
    listed, names = list(pairs), sorted(oracle.names)
    found, ends = Skeleton(set()), _ends(listed, _places(names))
    adjacent = _adjacent(ends, len(names))
    asked = ends[np.array([not certain(*pair) for pair in listed], dtype=np.bool_)] if certain else ends
    for level in range(oracle.largest + 1):
        a, b = found.settle(oracle, _around(asked, names, adjacent, level, usable), level).T
        adjacent[a, b] = adjacent[b, a] = False
        asked = asked[adjacent[asked[:, 0], asked[:, 1]]]
        if adjacent.sum(axis=1).max(initial=0) <= level + 1:
            break
    found.pairs.update(listed[place] for place in np.flatnonzero(adjacent[ends[:, 0], ends[:, 1]]).tolist())
    return found


def all_separating_sets(
    oracle: Oracle, found: Skeleton, pairs: Collection[Pair], usable: Usable | None
) -> dict[Pair, list[tuple[str, ...]]]:
    """Of each of the pairs, which are not adjacent, all sets that separate it among the final adjacencies of one of
    its ends: exponentially many tests in their number. Near ties are added to ``found``.
    """
    names = sorted(oracle.names)
    places = _places(names)
    sets: dict[Pair, list[tuple[str, ...]]] = {pair: [] for pair in sorted(pairs)}
    asked, adjacent = _ends(sets, places), _adjacent(_ends(found.pairs, places), len(places))
    widest = int(adjacent[asked].sum(axis=2).max(initial=-1))
    for level in range(min(widest, oracle.largest) + 1):
        for rows, statistics in oracle.telling(_around(asked, names, adjacent, level, usable), level):
            for row, statistic in zip(rows.tolist(), statistics.tolist(), strict=True):
                a, b, *given = [names[place] for place in row]
                if abs(statistic - oracle.critical) < NEAR:
                    found.near.add((a, b))
                if statistic <= oracle.critical:
                    sets[a, b].append(tuple(given))
    return sets


def _places(names: Iterable[str]) -> dict[str, int]:
    """The positions of names among them all, sorted."""
    return {name: i for i, name in enumerate(sorted(names))}


def _adjacent(ends: Integers, d: int) -> Flags:
    """(d, d): which of the sorted names are adjacent, from the pairs (m, 2) that are."""
    adjacent = np.zeros((d, d), dtype=np.bool_)
    a, b = ends.T
    adjacent[a, b] = adjacent[b, a] = True
    return adjacent


def _ends(pairs: Collection[Pair], places: Mapping[str, int]) -> Integers:
    ends = np.fromiter(map(places.__getitem__, chain.from_iterable(pairs)), np.int64, 2 * len(pairs))
    return ends.reshape(-1, 2)


def _around(
    ends: Integers, names: Sequence[str], adjacent: Flags, level: int, usable: Usable | None
) -> Iterator[Integers]:
    """Each pair (m, 2) with each set of ``level`` usable adjacencies of one of its ends, none twice; as `_rows`, from
    the (d, d) adjacencies of the sorted names. A list for each pair would cost more than the tests.
    """
    step = max(1, _FLAGS // max(1, len(names))) if level else _CHUNK
    for start in range(0, len(ends), step):
        part = ends[start : start + step]
        if not level:
            yield part
            continue
        offered = np.zeros((len(part), len(names)), dtype=np.bool_)
        for side in (part, part[:, ::-1]):
            pools = adjacent[side[:, 0]]
            pools[np.arange(len(side)), side[:, 1]] = False
            if usable is not None:
                for row, c in np.argwhere(pools):
                    a, b = side[row]
                    pools[row, c] = usable(names[a], names[b], names[c])
            yield from _of_pools(part, pools, offered, level)
            offered = pools


def _of_pools(ends: Integers, pools: Flags, offered: Flags, level: int) -> Iterator[Integers]:
    """Each pair (m, 2) with each set of ``level`` of its pool (m, d) that is not wholly within what was offered."""
    sizes = pools.sum(axis=1)
    for size in np.unique(sizes[sizes >= level]).tolist():
        which = np.flatnonzero(sizes == size)
        places = np.nonzero(pools[which])[1].reshape(-1, size)
        new = ~offered[which[:, None], places]
        for chosen in _subsets(size, level):
            step = max(1, _CHUNK // len(chosen))
            for start in range(0, len(which), step):
                part = slice(start, start + step)
                rows = np.empty((len(which[part]), len(chosen), 2 + level), dtype=np.int64)
                rows[:, :, :2], rows[:, :, 2:] = ends[which[part], None], places[part][:, chosen]
                yield rows[new[part][:, chosen].any(axis=2)]


def _rows(asks: Iterable[Ask], places: Mapping[str, int], level: int) -> Iterator[Integers]:
    """The questions as positions (a, b, S), in blocks (m, 2 + level) of at most `_CHUNK`."""
    for (a, b), pools in asks:
        for pool, known in pools:
            if len(pool) < level:
                continue
            members = np.array([places[name] for name in pool], dtype=np.int64)
            new = [np.array([name not in one for name in pool], dtype=np.bool_) for one in known]
            for chosen in _subsets(len(pool), level):
                kept = chosen[np.logical_and.reduce([one[chosen].any(axis=1) for one in new])] if new else chosen
                rows = np.empty((len(kept), 2 + level), dtype=np.int64)
                rows[:, 0], rows[:, 1], rows[:, 2:] = places[a], places[b], members[kept]
                yield rows


def _batches(blocks: Iterable[Integers]) -> Iterator[Integers]:
    """Blocks joined until they hold `_CHUNK` rows."""
    held: list[Integers] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += len(block)
        if size >= _CHUNK:
            yield np.concatenate(held)
            held, size = [], 0
    if size:
        yield np.concatenate(held)


def _subsets(n: int, size: int) -> Iterator[Integers]:
    """All subsets of range(n) of a size, (m, size), in lexicographic order and blocks of at most `_CHUNK`."""
    if math.comb(n, size) <= _SMALL:
        yield _all_subsets(n, size)
        return
    chosen = combinations(range(n), size)
    while block := list(islice(chosen, _CHUNK)):
        yield np.array(block, dtype=np.int64)


@lru_cache(maxsize=1024)
def _all_subsets(n: int, size: int) -> Integers:
    return np.array(list(combinations(range(n), size)), dtype=np.int64).reshape(math.comb(n, size), size)


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
            statistics = self.checked(rows)
            for (pair, given), statistic in zip(batch, statistics.tolist(), strict=True):
                yield Answer(pair, given, statistic)

    def checked(self, rows: Tensor) -> Tensor:
        """`statistics`, refusing exact evidence in which a test does not exist."""
        statistics = self.statistics(rows)
        if not self.noise and bool(statistics.isinf().any()):
            self._refuse(rows[int(statistics.isinf().nonzero()[0])].tolist())
        return statistics

    def statistics(self, rows: Tensor) -> Tensor:
        """(B, 2 + |S|) indices (a, b, S) -> (B,) |z| / se; infinite where no positive variance is left."""
        weights, (first, second, cross), ok = self._residuals(rows)
        ok &= (first > _SINGULAR) & (second > _SINGULAR)
        deviations = torch.stack([first, second], dim=1).clamp_min(_SINGULAR).sqrt()
        rho = cross / (deviations[:, 0] * deviations[:, 1])
        ok &= rho.abs() < 1
        rho = torch.where(ok, rho, 0.0)
        error = torch.tensor(1 / (self.count - rows.shape[1] - 1), dtype=rho.dtype)
        if self.noise:
            vectors = torch.cat([torch.eye(2, dtype=rho.dtype).expand(len(rows), 2, 2), -weights.mT], dim=2)
            error = error + self._privacy(vectors / deviations[:, :, None], rows, rho) ** 2
        return torch.where(ok, rho.atanh().abs() / error.sqrt(), _NO_POWER)

    def _residuals(self, rows: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
        """The weights (B, |S|, 2) of S in the regressions of a and b, the residuals' two variances and covariance, (B,)
        each, and whether there is such a regression, (B,).
        """
        pair, given = rows[:, :2], rows[:, 2:]
        if given.shape[1] < 2:  # without a matrix for each row
            a, b = pair.T
            own = (self.correlation[a, a], self.correlation[b, b], self.correlation[a, b])
            cross = self._block(given, pair)
            if given.shape[1]:
                u, w = cross[:, 0].T
                own = (own[0] - u * u, own[1] - w * w, own[2] - u * w)
            return cross, own, torch.ones(len(rows), dtype=torch.bool)
        cross = self._block(given, pair)
        weights, ok = _regress(self._block(given, given), cross)
        left = self._block(pair, pair) - cross.mT @ weights
        return weights, (left[:, 0, 0], left[:, 1, 1], left[:, 0, 1]), ok

    def _privacy(self, vectors: Tensor, rows: Tensor, rho: Tensor) -> Tensor:
        """(B,) standard deviation of z that the noise brings: σ‖A‖_F / (1 - ρ²), A = sym(u wᵀ) - ρ/2 (u uᵀ +
        w wᵀ).

        ``vectors`` (B, 2, 2 + |S|) are u and w, the residuals' coefficients in units of correlation, uᵀRu =
        1; on the moments Σ x xᵀ they become coefficients of (1, z) with an entry for the mean, over √n.
        """
        scaled = vectors / self.scale[rows][:, None, :]
        constant = (scaled * self.mean[rows][:, None, :]).sum(dim=2, keepdim=True)
        vectors = torch.cat([constant, scaled], dim=2)
        gram = vectors @ vectors.mT / self.count
        p, q, s = gram[:, 0, 0], gram[:, 1, 1], gram[:, 0, 1]
        norm2 = (p * q + s * s) / 2 - rho * s * (p + q) + rho**2 / 4 * (p * p + q * q + 2 * s * s)
        return self.noise * norm2.clamp_min(0).sqrt() / (1 - rho * rho)

    def _block(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.correlation[rows[:, :, None], columns[:, None, :]]

    def _refuse(self, places: Sequence[int]) -> None:
        raise DataError(_DEPENDENT.format(", ".join(sorted(self.names[i] for i in places))))


def _blocks(evidence: Evidence) -> Callable[[Iterator[Question], int], Iterator[Answer]]:
    """What answers questions on evidence of blocks."""
    tests = BlockTests(Whitened.of(evidence))

    def run(questions: Iterator[Question], _: int) -> Iterator[Answer]:
        while batch := list(islice(questions, _BLOCK_CHUNK)):
            for (pair, given), statistic in zip(batch, tests.answers(batch), strict=True):
                if not evidence.noise and math.isinf(statistic):
                    raise DataError(_DEPENDENT.format(", ".join(sorted([*pair, *given]))))
                yield Answer(pair, given, statistic)

    return run


@dataclass(frozen=True)
class CountTests:
    """Tests of independence on tables.

    A test without degrees of freedom (in every stratum one of the two has a single level, or no record), or of a
    table too large to count, has no power: it never separates, and `notes` tells how many there were.
    """

    tables: Tables
    sizes: Mapping[str, int]
    noisy: bool
    powerless: set[Question] = field(default_factory=set)

    @classmethod
    def of(cls, tables: Tables) -> CountTests:
        """Raises DataError for a variable of which fewer than two levels can be seen, and as `refuse_unusable`."""
        for name in tables.names:
            seen = tables.table([name]) > 3 * tables.noise([name])
            if np.count_nonzero(seen) < 2:
                raise DataError(
                    f"Variable {name!r} has {np.count_nonzero(seen)} levels that occur in the tables: it is constant "
                    "or drowned in noise. Drop it, or use more records or a larger epsilon."
                )
        refuse_unusable(tables)
        sizes = dict(zip(tables.names, tables.levels, strict=True))
        return cls(tables, sizes, any(tables.noise([name]) for name in tables.names))

    def run(self, questions: Iterator[Question], level: int) -> Iterator[Answer]:
        """Answer the questions, all with sets of size ``level``, in batches."""
        while batch := list(islice(questions, _CHUNK)):
            groups: dict[tuple[tuple[str, ...], str], list[int]] = {}
            for place, ((a, _), given) in enumerate(batch):
                groups.setdefault((given, a), []).append(place)
            statistic, free = np.zeros(len(batch)), np.zeros(len(batch))
            for (given, a), places in groups.items():
                others = [batch[place][0][1] for place in places]
                statistic[places], free[places] = self._test(given, a, others)
            self.powerless.update(batch[place] for place in np.flatnonzero(free == 0))
            scores = np.where(free > 0, normal_score(statistic, free), _NO_POWER)
            for (pair, given), score in zip(batch, scores.tolist(), strict=True):
                yield Answer(pair, given, score)

    def notes(self) -> tuple[str, ...]:
        """What could not be tested, for the result."""
        told = []
        if self.tables.most < len(self.tables.names):
            told.append(
                f"no set of more than {self.tables.most - 2} variables was tested, for the tables have "
                f"{self.tables.most} variables: edges may stand that larger sets would separate"
            )
        if self.powerless:
            pair, given = min(self.powerless)
            told.append(
                f"{len(self.powerless)} tests had no power and separated nothing, such as {pair[0]}, {pair[1]} given "
                f"{', '.join(given) or 'nothing'}"
            )
        return tuple(told)

    def _test(self, given: tuple[str, ...], a: str, others: list[str]) -> tuple[Floats, Floats]:
        counts = self.tables.strata(given, [a], others)
        if counts is None and len(others) > 1:  # one of them may be too large
            parts = [self._test(given, a, [b]) for b in others]
            return np.concatenate([s for s, _ in parts]), np.concatenate([f for _, f in parts])
        if counts is None:
            return np.zeros(1), np.zeros(1)
        sizes = [self.sizes[b] for b in others]
        if not self.noisy:
            return g_square(counts, sizes)
        tested = [
            noisy_square(part, self.tables.noise([*given, a, b]))
            for b, part in zip(others, np.split(counts, np.cumsum(sizes)[:-1], axis=2), strict=True)
        ]
        return np.array([s for s, _ in tested]), np.array([f for _, f in tested])


def _regress(block: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """(weights (B, s, 2), whether the block was positive definite (B,))."""
    factor, failed = torch.linalg.cholesky_ex(block)
    good = failed == 0
    factor = torch.where(good[:, None, None], factor, torch.eye(block.shape[1], dtype=block.dtype))
    return torch.cholesky_solve(cross, factor), good
