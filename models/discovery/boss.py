"""BOSS: best order score search on second moments or tables (Andrews et al., 2023).

A search over orders of the variables. Of an order, each variable takes its parents from those before it by
growing a set while the score rises and then shrinking it; a grow-shrink tree remembers every set it met. One
move takes a variable out and puts it where the whole order scores best; moves go on until none helps. Of most
variables the parents are the same wherever another one stands, and the walk down the tree tells of which: it passed
over that one nowhere and took it nowhere. So a move asks anew only for the few others. Local optima decide how good
the outcome is, so the search starts anew from random orders and keeps the best; all starts share the trees. Greedy
growth cannot see parents that help together but none of them alone.

The score and its default penalty are those of `score.py`, on tables those of `table_score.py`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import NEAR, Discovery
from causaldao.models.discovery.local_score import local_score
from causaldao.models.discovery.score import NO_START, LocalScore, Order, members_of
from causaldao.models.discovery.table_score import Kind
from causaldao.models.discovery.tables import Tables
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of

Scored = tuple[float, int]


class _Placed(NamedTuple):
    """A variable among those before it: its score and parents, the set it grew, and what it would have grown by
    first, had that stood before it.
    """

    score: float
    parents: int
    grown: int
    missed: int


def boss(
    evidence: Evidence | Tables,
    penalty: float | None = None,
    knowledge: Knowledge = NONE,
    generator: torch.Generator | None = None,
    restarts: int = 12,
    score: Kind | None = None,
    sample_size: float | None = None,
) -> Discovery:
    """Find the CPDAG whose DAGs have the best score that the search meets: the Gaussian BIC, or on tables ``score``.

    ``penalty`` is the c of the score, in units of log n for each parent: 2 by default (twice the BIC's own
    1), on exact and on noisy evidence alike, since noise is counted by the score; for each parameter, and 1 by
    default, on evidence of blocks. An edge needs a z of about √(c·log n): 4.0 for 3,000 records, 4.8 for 100,000. On
    tables ``score``, ``sample_size`` and ``penalty`` are those of `ges`. ``restarts`` orders are tried: the sorted
    names, then
    random ones from ``generator`` (seeded with 0 by default). The order of the columns does not matter.
    Knowledge prunes: a parent it rules out is never scored, a required one never left out.

    Raises:
        MisuseError: restarts below 1, a penalty or sample size that is not positive, or an option that the score
            does not have.
        DataError: exact evidence whose variables are linearly dependent, evidence worth fewer than 3 records,
            noise that leaves no residual variance beside the required parents, or noisy tables that
            `noisy_tables.denoised` refuses.
        ConfigurationError: the knowledge names unknown variables.
    """
    check_options(penalty, restarts)
    knowledge.check(evidence.names)
    scores = local_score(evidence, knowledge, "BOSS", penalty=penalty, score=score, sample_size=sample_size)
    dag, near = best_dag(scores, evidence.names, knowledge, generator, restarts)
    return Discovery(knowledge.orient(cpdag_of(dag)), near, notes=scores.notes())


def best_dag(
    score: LocalScore,
    columns: Sequence[str],
    knowledge: Knowledge,
    generator: torch.Generator | None = None,
    restarts: int = 12,
) -> tuple[CausalGraph, frozenset[Pair]]:
    """The DAG over ``columns`` of the best order that the search meets, and its near ties; `boss` on any score.

    Raises:
        DataError: noise leaves no residual variance beside the required parents.
    """
    search, names = _Search(score), score.names
    draw = generator or torch.Generator().manual_seed(0)
    best, best_score = list(range(len(names))), -math.inf
    for start in _starts(names, knowledge, draw, restarts):
        order, value = _climb(search, start)
        if value > best_score + NEAR:
            best, best_score = order, value
    if names and best_score == -math.inf:
        raise DataError(NO_START)
    return _dag(search, best, columns)


def check_options(penalty: float | None, restarts: int) -> None:
    """MisuseError: restarts below 1 or a penalty that is not positive."""
    if restarts < 1 or (penalty is not None and not 0 < penalty < math.inf):
        raise MisuseError(f"restarts is {restarts} and penalty {penalty}. Give one restart or more, a penalty > 0.")


@dataclass
class _Search:
    """The score, whose sets are bit masks of positions in the sorted names, with its grow-shrink trees."""

    score: LocalScore
    trees: defaultdict[int, dict[int, tuple[list[int], int]]] = field(default_factory=lambda: defaultdict(dict))
    shrunk: defaultdict[int, dict[int, Scored]] = field(default_factory=lambda: defaultdict(dict))

    def project(self, j: int, before: int) -> _Placed:
        """The parents of j by growing and shrinking among the variables ``before`` it: walk down the tree of j, each
        time by the best candidate that stands before it.
        """
        tree, grown, missed = self.trees[j], self.score.required[j], 0
        while True:
            node = tree.get(grown)
            if node is None:
                branches = self._branches(j, grown)
                node = tree[grown] = branches, sum(branches)
            branches, every = node
            if not every & before:
                return _Placed(*self._shrink(j, grown), grown, missed | every)
            for bit in branches:
                if bit & before:
                    break
                missed |= bit
            grown |= bit

    def _branches(self, j: int, parents: int) -> list[int]:
        """The candidates that raise the score, best first; those within rounding keep their order."""
        columns, gains = self.score.gains(j, parents, -1)
        order = np.argsort(-gains.round(6), kind="stable")
        return [1 << columns[i] for i in order[gains[order] > 0].tolist()]

    def _shrink(self, j: int, grown: int) -> Scored:
        known = self.shrunk[j].get(grown)
        if known is None:
            members, gains = self.score.losses(j, grown)
            if len(members) and gains.max() > 0:
                known = self._shrink(j, grown & ~(1 << members[int(gains.round(6).argmax())]))
            else:
                known = self.score.of_parents(j, grown), grown
            self.shrunk[j][grown] = known
        return known


def _starts(names: Sequence[str], knowledge: Knowledge, generator: torch.Generator, restarts: int) -> Iterator[Order]:
    """The sorted names, then random orders; required causes are moved before their effects."""
    index = {name: i for i, name in enumerate(names)}
    for number in range(restarts):
        shuffled = torch.randperm(len(names), generator=generator).tolist() if number else range(len(names))
        order = CausalGraph.dag(knowledge.required, [names[i] for i in shuffled] or ()).topological_order()
        yield [index[name] for name in order]


def _climb(search: _Search, start: Order) -> tuple[Order, float]:
    """Move each variable to its best place, over and over, until no move raises the score."""
    order, placed, improved = start, _placed(search, start), True
    score = sum(one.score for one in placed.values())
    while improved:
        improved = False
        for j in start:
            moved, value, following = _best_move(search, order, placed, j)
            if value > score + NEAR:
                order, score, placed, improved = moved, value, following, True
    return order, score


def _placed(search: _Search, order: Order) -> dict[int, _Placed]:
    before = accumulate((1 << i for i in order), int.__or__, initial=0)
    return {i: search.project(i, mask) for i, mask in zip(order, before, strict=False)}


def _best_move(
    search: _Search, order: Order, placed: Mapping[int, _Placed], j: int
) -> tuple[Order, float, dict[int, _Placed]]:
    """(order, score, all as placed in it) with j at the first of its best places; the places respect what is required.

    ``placed`` holds each variable as it is placed in ``order``.
    """
    stood, bit, project = order.index(j), 1 << j, search.project
    rest = [i for i in order if i != j]
    masks = list(accumulate((1 << i for i in rest), int.__or__, initial=0))
    without = [placed[i] for i in rest]
    beside = without.copy()
    for k, (i, now) in enumerate(zip(rest, without, strict=True)):
        if k < stood and now.missed & bit:
            beside[k] = project(i, masks[k] | bit)
        elif k >= stood and now.grown & bit:
            without[k] = project(i, masks[k])
    head = list(accumulate((one.score for one in without), initial=0.0))
    tail = list(accumulate((one.score for one in reversed(beside)), initial=0.0))[::-1]
    places = _places(search, rest, masks, j)
    own = [project(j, masks[places[0]])]
    for k in places[1:]:
        own.append(project(j, masks[k]) if own[-1].missed >> rest[k - 1] & 1 else own[-1])
    totals = [head[k] + tail[k] + one.score for k, one in zip(places, own, strict=True)]
    best = max(totals)
    chosen = next(k for k, total in enumerate(totals) if total >= best - NEAR)
    place = places[chosen]
    following = dict(zip(rest, [*without[:place], *beside[place:]], strict=True))
    following[j] = own[chosen]
    return [*rest[:place], j, *rest[place:]], totals[chosen], following


def _places(search: _Search, rest: Order, masks: list[int], j: int) -> range:
    """Where j may stand: after all that must cause it, before all that it must cause."""
    first = next(k for k, mask in enumerate(masks) if not search.score.required[j] & ~mask)
    last = next((k for k, i in enumerate(rest) if search.score.required[i] >> j & 1), len(rest))
    return range(first, last + 1)


def _dag(search: _Search, order: Order, columns: Sequence[str]) -> tuple[CausalGraph, frozenset[Pair]]:
    edges: list[Pair] = []
    near: set[Pair] = set()
    names, before = search.score.names, 0
    for j in order:
        parents = search.project(j, before).parents
        edges += [(names[i], names[j]) for i in members_of(parents)]
        near |= {(min(a, b), max(a, b)) for a, b in _near_ties(search, j, parents, before, names)}
        before |= 1 << j
    return CausalGraph.dag(edges, columns), frozenset(near)


def _near_ties(search: _Search, j: int, parents: int, before: int, names: Sequence[str]) -> Iterator[Pair]:
    """The edges into j that adding or leaving out would change the score by less than `NEAR`."""
    for others, gains in (search.score.gains(j, parents, before), search.score.losses(j, parents)):
        yield from ((names[i], names[j]) for i, gain in zip(others, gains, strict=True) if abs(gain) < NEAR)
