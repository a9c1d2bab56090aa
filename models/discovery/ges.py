"""GES: greedy equivalence search (Chickering, 2002), with a turning phase (Hauser & Bühlmann, 2012).

A search over Markov equivalence classes, each held as its CPDAG and one of its DAGs. The forward phase joins
two variables by the operator Insert(x, y, T) that raises the score most, until none does; the backward phase
takes edges away by Delete(x, y, H); the turning phase reverses them by Turn(x, y, C), and while it finds
something the phases go on in turn. An operator stands for one edge added to, taken from or reversed in some
DAG of the class, and between them they reach all of these. Each changes the parents of y (and, turning, of x)
alone, so its gain is a difference of local scores: those are computed for all x at once, kept by (y, parents),
and an operator is looked at anew only when the surroundings of y have changed.

In the large-sample limit forward and backward phase end in the true class (Chickering, 2002, theorem 17). The
score is that of `score.py`, on tables that of `table_score.py`. Under noise it gives the DAGs of a class
slightly different scores, and knowledge may leave no DAG in which y has exactly the parents that an operator
supposes. So a step is taken only if the score of the DAG at hand rises by it: the search ends, and never in a
worse graph than it met.

With knowledge a class is the pattern that the knowledge directs further, and the operators are those of its
undirected edges. That they then still reach every neighbour is not claimed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge

import numpy as np

from causaldao.errors import ConfigurationError, DataError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import NEAR, Discovery
from causaldao.models.discovery.local_score import local_score
from causaldao.models.discovery.score import NO_START, Floats, LocalScore, members_of
from causaldao.models.discovery.table_score import Kind
from causaldao.models.discovery.tables import Tables
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of, extension


def ges(
    evidence: Evidence | Tables,
    penalty: float | None = None,
    knowledge: Knowledge = NONE,
    turning: bool = False,
    score: Kind | None = None,
    sample_size: float | None = None,
) -> Discovery:
    """Find the CPDAG that greedy equivalence search ends in, with the Gaussian BIC, or on tables with ``score``.

    ``penalty`` is the c of the Gaussian BIC, in units of log n for each parent (2 by default; on evidence of blocks for
    each parameter, and 1), or of ``score`` "bic" on tables, in units of log n / 2 for each parameter (1 by default: the
    BIC itself); ``sample_size`` is the equivalent sample size of "bdeu", the default on tables (1 by default).
    ``turning`` adds the turning phase,
    which GES proper lacks. The outcome depends on nothing but the arguments, and the order of the columns
    does not matter. Knowledge prunes: a parent it rules out is never scored, a required edge stands from the
    start and is never taken away. Listed as near ties are the pairs whose operator would change the outcome's
    score by less than 1e-6, and those that tied with another pair for a step.

    Raises:
        MisuseError: a penalty or sample size that is not positive, or an option that the score does not have.
        DataError: exact evidence whose variables are linearly dependent, evidence worth fewer than 3 records,
            noise that leaves no residual variance beside the required parents, or noisy tables that
            `noisy_tables.denoised` refuses.
        ConfigurationError: the knowledge names unknown variables.
    """
    knowledge.check(evidence.names)
    names = sorted(evidence.names)
    scores = local_score(evidence, knowledge, "GES", penalty=penalty, score=score, sample_size=sample_size)
    search = _Search(scores, knowledge)
    place = search.start()
    turned = True
    while turned:
        place, _ = search.climb(place, search.inserts)
        place, _ = search.climb(place, search.deletes)
        turned = False
        if turning:
            place, turned = search.climb(place, search.turns)
    last = [move for y in range(len(names)) for move in (*search.inserts(place, y), *search.deletes(place, y))]
    search.near.update(_pair(names, move) for move in last if abs(move.gain) < NEAR)
    return Discovery(place.pattern.with_nodes(evidence.names), frozenset(search.near), notes=scores.notes())


@dataclass(frozen=True)
class _Move:
    """An operator on x and y that makes x a parent of y, or takes the edge away.

    ``heads`` are pairs (i, j): the edge i - j becomes i -> j. ``blocks`` is what every path from y along
    undirected and directed edges to x must meet, or None where no path matters.
    """

    gain: float
    x: int
    y: int
    joins: bool
    heads: frozenset[tuple[int, int]]
    blocks: int | None

    @property
    def rank(self) -> tuple[float, int, int, list[tuple[int, int]]]:
        """Best gain first; those within rounding by their pair, so that no machine's last digit decides."""
        return -round(self.gain, 6), min(self.x, self.y), max(self.x, self.y), sorted(self.heads)


@dataclass(frozen=True)
class _Place:
    """A class: its pattern, one of its DAGs and that one's score; sets are bit masks of positions."""

    pattern: CausalGraph
    dag: CausalGraph
    score: float
    parents: list[int]
    children: list[int]
    lines: list[int]
    adjacent: list[int]

    def surroundings(self, y: int) -> tuple[int, ...]:
        """All that the operators into y and their gains depend on, but for the paths from y."""
        around = (self.adjacent[t] for t in members_of(self.lines[y]))
        return self.parents[y], self.lines[y], self.adjacent[y], *around

    def reaches(self, y: int, x: int, blocked: int, but: Callable[[int, int], bool]) -> bool:
        """Whether a path clear of ``blocked`` leads from y to x, along lines and directed edges other than ``but``."""
        seen, todo = 1 << y | blocked, [y]
        while todo:
            node = todo.pop()
            for following in members_of((self.lines[node] | self.children[node]) & ~seen):
                if but(node, following):
                    continue
                if following == x:
                    return True
                seen |= 1 << following
                todo.append(following)
        return False

    def cliques(self, base: int, candidates: int) -> Iterator[int]:
        """``base`` with each set of candidates that makes it a clique, if it is one itself."""
        members = members_of(base)
        if any(base & ~self.adjacent[i] & ~(1 << i) for i in members):
            return
        yield from self._wider(base, [c for c in members_of(candidates) if not base & ~self.adjacent[c]])

    def _wider(self, clique: int, candidates: list[int]) -> Iterator[int]:
        yield clique
        for k, c in enumerate(candidates):
            yield from self._wider(clique | 1 << c, [o for o in candidates[k + 1 :] if self.adjacent[c] >> o & 1])


@dataclass(frozen=True)
class _Search:
    score: LocalScore
    knowledge: Knowledge
    near: set[Pair] = field(default_factory=set)
    local: dict[tuple[int, int], float] = field(default_factory=dict)
    gained: dict[tuple[int, int], Floats] = field(default_factory=dict)
    lost: dict[tuple[int, int], Floats] = field(default_factory=dict)

    def start(self) -> _Place:
        """The class of the required edges alone."""
        dag = CausalGraph.dag(self.knowledge.required, self.score.names)
        place = self._place(dag)
        if place.score == -math.inf:
            raise DataError(NO_START)
        return place

    def climb(self, place: _Place, moves: Callable[[_Place, int], list[_Move]]) -> tuple[_Place, bool]:
        """Take the best move over and over, until none raises the score; whether there was any."""
        known: dict[int, tuple[tuple[int, ...], list[_Move]]] = {}
        moved = False
        while True:
            for y in range(len(place.lines)):
                key = self._key(place, y, moves)
                if y not in known or known[y][0] != key:
                    known[y] = key, sorted(moves(place, y), key=lambda move: move.rank)
            following = self._best(place, merge(*(listed for _, listed in known.values()), key=lambda move: move.rank))
            if following is None:
                return place, moved
            place, moved = following, True

    def inserts(self, place: _Place, y: int) -> list[_Move]:
        """Insert(x, y, T): x -> y, and the undirected neighbours T of y become its parents.

        Valid iff T and the neighbours of y adjacent to x are a clique that every path from y to x meets
        (Chickering, 2002, theorem 15).
        """
        found = []
        for x in members_of(self.score.allowed[y] & ~place.adjacent[y]):
            shared = place.lines[y] & place.adjacent[x]
            for clique in place.cliques(shared, place.lines[y] & ~shared):
                gain = self._gain(y, place.parents[y] | clique, x)
                if gain > -NEAR:
                    heads = frozenset((t, y) for t in members_of(clique & ~shared))
                    found.append(_Move(gain, x, y, True, heads, clique))
        return found

    def deletes(self, place: _Place, y: int) -> list[_Move]:
        """Delete(x, y, H): no edge, and the undirected neighbours H of y that are adjacent to x become children.

        Valid iff the others of these neighbours are a clique (Chickering, 2002, theorem 17).
        """
        found = []
        for x in members_of((place.parents[y] | place.lines[y]) & ~self.score.required[y]):
            shared = place.lines[y] & place.adjacent[x]
            for clique in place.cliques(0, shared):
                gain = self._loss(y, place.parents[y] | clique | 1 << x, x)
                if gain > -NEAR:
                    below = members_of(shared & ~clique)
                    lines = [(x, h) for h in below if place.lines[x] >> h & 1]
                    found.append(_Move(gain, x, y, False, frozenset([(y, h) for h in below] + lines), None))
        return found

    def turns(self, place: _Place, y: int) -> list[_Move]:
        """Turn(x, y, C): x -> y in place of y -> x or x - y, with parents C among the undirected neighbours of y.

        Hauser & Bühlmann (2012), propositions 31 and 34.
        """
        found = []
        for x in members_of((place.children[y] | place.lines[y]) & self.score.allowed[y]):
            shared = place.lines[y] & place.adjacent[x]
            undirected = bool(place.lines[y] >> x & 1)
            base, others = (0, place.lines[y] & ~(1 << x)) if undirected else (shared, place.lines[y] & ~shared)
            for clique in place.cliques(base, others):
                if undirected and not _separates(place, y, x, clique, shared):
                    continue
                before = place.parents[x] | 1 << y | (clique & shared if undirected else 0)
                gain = self._gain(y, place.parents[y] | clique, x) + self._loss(x, before, y)
                if gain > NEAR:
                    upper = clique & shared if undirected else 0
                    heads = {(c, y) for c in members_of(clique)} | {(c, x) for c in members_of(upper)}
                    heads |= {(y, o) for o in members_of(place.lines[y] & ~clique & ~(1 << x))}
                    heads |= {(x, o) for o in members_of(place.lines[x] & ~upper & ~(1 << y))}
                    blocks = None if undirected else clique | place.lines[x]
                    found.append(_Move(gain, x, y, True, frozenset(heads), blocks))
        return found

    def _key(self, place: _Place, y: int, moves: Callable[[_Place, int], list[_Move]]) -> tuple[int, ...]:
        """What the moves into y depend on; turning looks beyond the surroundings of y, to the parents of others."""
        if moves != self.turns:
            return place.surroundings(y)
        return *place.parents, *place.lines

    def _best(self, place: _Place, moves: Iterable[_Move]) -> _Place | None:
        """Where the first move leads that is valid and raises the score; the pairs that tie with it are noted."""
        taken: _Move | None = None
        following = None
        for move in moves:
            if move.gain <= NEAR or (taken is not None and move.gain < taken.gain - NEAR):
                break
            if move.blocks is not None and self._open(place, move, move.blocks):
                continue
            if taken is None:
                following = self._follow(place, move)
                taken = move if following is not None else None
            elif {move.x, move.y} != {taken.x, taken.y}:
                self.near.update(_pair(self.score.names, tied) for tied in (move, taken))
        return following

    def _open(self, place: _Place, move: _Move, blocks: int) -> bool:
        """Whether a path from y to x that is clear of ``blocks`` would close a cycle."""
        return place.reaches(move.y, move.x, blocks & ~(1 << move.x), lambda a, b: (a, b) == (move.y, move.x))

    def _follow(self, place: _Place, move: _Move) -> _Place | None:
        """The class of the pattern after the move; None if no DAG has it or the score does not rise."""
        names = self.score.names
        pair = _pair(names, move)
        heads = {(names[i], names[j]) for i, j in move.heads}
        directed = {e for e in place.pattern.directed if pair not in (e, e[::-1])} | heads
        if move.joins:
            directed.add((names[move.x], names[move.y]))
        lines = [e for e in place.pattern.undirected if e != pair and e not in heads and e[::-1] not in heads]
        try:
            dag = extension(CausalGraph.cpdag(directed, lines, names))
        except ConfigurationError:  # among edges that knowledge directs, a turn can close a cycle
            return None
        if dag is None:
            return None
        following = self._place(dag)
        return following if following.score > place.score + NEAR else None

    def _place(self, dag: CausalGraph) -> _Place:
        names, graph = self.score.names, cpdag_of(dag)
        graph = self.knowledge.orient(graph) if self.knowledge else graph
        index = {name: i for i, name in enumerate(names)}

        def masks(of: Callable[[str], Iterable[str]]) -> list[int]:
            return [sum(1 << index[other] for other in of(name)) for name in names]

        score = sum(self._local(j, parents) for j, parents in enumerate(masks(dag.parents)))
        tables = (graph.parents, graph.children, graph.neighbours, graph.adjacencies)
        return _Place(graph, dag, score, *map(masks, tables))

    def _local(self, j: int, parents: int) -> float:
        known = self.local.get((j, parents))
        if known is None:
            known = self.local[j, parents] = self.score.of_parents(j, parents)
        return known

    def _gain(self, j: int, parents: int, x: int) -> float:
        """What x adds to the score of j as one more parent."""
        known = self.gained.get((j, parents))
        if known is None:
            known = self.gained[j, parents] = self._spread(*self.score.gains(j, parents, -1))
        return float(known[x])

    def _loss(self, j: int, parents: int, x: int) -> float:
        """What leaving the parent x out adds to the score of j."""
        known = self.lost.get((j, parents))
        if known is None:
            known = self.lost[j, parents] = self._spread(*self.score.losses(j, parents))
        return float(known[x])

    def _spread(self, columns: list[int], gains: Floats) -> Floats:
        spread = np.full(len(self.score.names), -np.inf)
        spread[columns] = gains
        return spread


def _separates(place: _Place, y: int, x: int, clique: int, shared: int) -> bool:
    """The condition on turning an undirected edge: C leaves the neighbours N that x and y share, and among the
    neighbours of y, C ∩ N separates the rest of C from the rest of N.
    """
    beyond, rest = clique & ~shared, shared & ~clique
    if not beyond:
        return False
    inside = place.lines[y] & ~(clique & shared)
    seen, todo = beyond, members_of(beyond)
    while todo:
        new = place.adjacent[todo.pop()] & inside & ~seen
        seen |= new
        todo.extend(members_of(new))
    return not seen & rest


def _pair(names: Iterable[str], move: _Move) -> Pair:
    listed = tuple(names)
    a, b = listed[move.x], listed[move.y]
    return min(a, b), max(a, b)
