"""Patterns: what a Markov equivalence class of DAGs shares, and how to complete, extend and compare it.

Two DAGs are equivalent iff they have one skeleton and the same unshielded colliders (Verma & Pearl, 1990).
The CPDAG shows the class: an edge is directed iff all members direct it so. Meek (1995) gives the four rules
that complete a pattern, also beside background knowledge; Dor & Tarsi (1992) extend a pattern to a member of
its class.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import combinations

from causaldao.errors import ConfigurationError, MisuseError
from causaldao.models.graph import CIRCLE, TAIL, CausalGraph, Edge, Pair, Triple

Neighbours = dict[str, set[str]]


def meek(graph: CausalGraph, ambiguous: Collection[Triple] = ()) -> CausalGraph:
    """Close a partially directed graph under Meek's four rules. Directed edges stay as they are.

    Started from a skeleton with its unshielded colliders this gives the CPDAG; with background knowledge that
    some member of the class obeys, the maximally oriented graph. Started from marks that no DAG has, the
    outcome may hold colliders that were not there, and a directed cycle raises ConfigurationError. Nothing is
    concluded from the ``ambiguous`` unshielded triples (a, c, b), a < b, which may be colliders or not.
    """
    work = _Partial.of(graph, ambiguous)
    for a, b, _ in _closing(work):
        work.orient(a, b)
    return work.graph(graph.nodes)


@dataclass(frozen=True)
class Derivation:
    """Why Meek's rules direct an edge: the number of the rule, 1 to 4, and the other variables of its premise."""

    rule: int
    others: tuple[str, ...]


def derivations(graph: CausalGraph) -> dict[Pair, Derivation]:
    """What `meek` would direct in a partially directed graph, each arrow (a, b) by the first rule that gives it."""
    work, found = _Partial.of(graph), dict[Pair, Derivation]()
    for a, b, rule in _closing(work):
        found[a, b] = Derivation(rule, min(_RULES[rule - 1](work, a, b)))
        work.orient(a, b)
    return found


def pattern(
    skeleton_pairs: Iterable[Pair],
    colliders: Iterable[Triple],
    nodes: Sequence[str] = (),
    directed: Iterable[Pair] = (),
) -> CausalGraph:
    """Orient colliders (a, c, b) as a -> c <- b and the background ``directed`` on a skeleton, then close it
    (Meek).

    Raises:
        ConfigurationError: a collider's edges are missing or its ends adjacent, two marks direct one edge
            both ways, the marks make a directed cycle, or they force a further unshielded collider.
    """
    pairs = {(min(pair), max(pair)) for pair in skeleton_pairs}
    arrows: dict[Pair, str] = {}
    for pair in sorted(set(directed)):
        _direct(arrows, pairs, pair, f"the directed edge {pair[0]} -> {pair[1]}")
    for a, c, b in sorted(set(colliders)):
        if (min(a, b), max(a, b)) in pairs:
            raise ConfigurationError(f"{a} and {b} are adjacent, so ({a}, {c}, {b}) is no unshielded collider.")
        for end in (a, b):
            _direct(arrows, pairs, (end, c), f"the collider ({a}, {c}, {b})")
    return _complete(pairs, arrows, nodes)


def cpdag_of(dag: CausalGraph, targets: Iterable[Collection[str]] = ()) -> CausalGraph:
    """The CPDAG of the Markov equivalence class of a DAG; with sets of intervention ``targets`` the interventional one.

    An intervention tells the direction of an edge of which it holds one end and not the other: the edge is cut, or it
    is not (Hauser & Bühlmann, 2012, theorem 10, if each variable is outside one set at
    least).
    """
    if not dag.is_dag:
        raise MisuseError("cpdag_of takes a DAG, and this graph has edges that are not directed. Extend it first.")
    arrows = {(end, c) for a, c, b in dag.unshielded_colliders() for end in (a, b)}
    for held in targets:
        arrows |= {(a, b) for a, b in dag.directed if (a in held) != (b in held)}
    lines = [pair for pair in dag.skeleton() if pair not in arrows and pair[::-1] not in arrows]
    return meek(CausalGraph.cpdag(arrows, lines, dag.nodes))


def extension(graph: CausalGraph) -> CausalGraph | None:
    """A DAG with the same skeleton, directed edges and unshielded colliders; None iff there is none.

    Dor & Tarsi (1992): take away a sink whose undirected neighbours see all its other neighbours, sinks tried
    in the order of the names, so that the answer depends on nothing but the graph.
    """
    edges, left = _taken_apart(graph)
    return None if left else CausalGraph.dag(edges, graph.nodes)


def in_the_way(graph: CausalGraph) -> frozenset[str]:
    """The nodes among which no DAG extends the graph: those that `extension` cannot take away, whatever it takes first.
    Empty iff there is an extension; an edge that has not both ends among them has no part in it."""
    return _taken_apart(graph)[1]


def _taken_apart(graph: CausalGraph) -> tuple[list[Pair], frozenset[str]]:
    work, edges = _Partial.of(graph), list[Pair]()
    while work.parents:
        sink = next((node for node in sorted(work.parents) if not work.children[node] and _is_free(work, node)), None)
        if sink is None:
            break
        edges += [(other, sink) for other in work.around(sink)]
        work.remove(sink)
    return edges, frozenset(work.parents)


def nearest_extension(graph: CausalGraph) -> tuple[CausalGraph, frozenset[Triple]]:
    """A DAG with the same skeleton and directed edges, and the unshielded colliders that it had to add.

    Where a consistent extension exists it is `extension` and nothing is added; elsewhere each step takes the
    sink that adds the fewest colliders (a heuristic: the number is not claimed to be least).
    """
    dag, _ = _extend(graph)
    return dag, dag.unshielded_colliders() - graph.unshielded_colliders()


def extensions(graph: CausalGraph, limit: int) -> tuple[CausalGraph, ...]:
    """The DAGs of a pattern's class, the first ``limit`` of them: those that keep its skeleton, its directed edges and
    its unshielded colliders. Empty iff there is none.

    One line after the other is oriented both ways, in the order of the names, and closed by Meek's rules.
    """
    found: list[CausalGraph] = []
    waiting = [meek(graph)] if extension(graph) is not None else []
    while waiting and len(found) < limit:
        now = waiting.pop()
        if now.is_dag:
            found.append(now)
            continue
        a, b = min(now.undirected)
        for pair in ((b, a), (a, b)):
            lines = now.undirected - {(a, b)}
            waiting.append(meek(CausalGraph.cpdag({*now.directed, pair}, lines, graph.nodes)))
    return tuple(found)


def f1(found: Set[Hashable], true: Set[Hashable]) -> float:
    """Twice what both hold over what each holds: of edges found and true; 1 where there is nothing to find."""
    both = len(found) + len(true)
    return 2 * len(found & true) / both if both else 1.0


def shd(a: CausalGraph, b: CausalGraph) -> int:
    """Structural Hamming distance: the number of pairs whose edge is missing, extra, or differs in a mark."""
    if set(a.nodes) != set(b.nodes):
        odd = sorted(set(a.nodes) ^ set(b.nodes))
        raise MisuseError(f"the graphs have different nodes: {odd} stand in only one. Use with_nodes to align them.")
    return len({(min(e.a, e.b), max(e.a, e.b)) for e in a.edges ^ b.edges})


@dataclass
class _Partial:
    """A partially directed graph to work on: the parents, children and undirected neighbours of each node."""

    parents: Neighbours
    children: Neighbours
    neighbours: Neighbours
    ambiguous: frozenset[Triple] = frozenset()

    @classmethod
    def of(cls, graph: CausalGraph, ambiguous: Collection[Triple] = ()) -> _Partial:
        if other := graph.edges - partial_edges(graph):
            raise MisuseError(f"{min(other)} is neither directed nor undirected. Give a DAG, CPDAG or pattern.")
        maps = (graph.parents, graph.children, graph.neighbours)
        parents, children, neighbours = ({node: set(of(node)) for node in graph.nodes} for of in maps)
        return cls(parents, children, neighbours, frozenset(ambiguous))

    def adjacent(self, a: str, b: str) -> bool:
        return b in self.parents[a] or b in self.children[a] or b in self.neighbours[a]

    def no_collider(self, a: str, c: str, b: str) -> bool:
        """Whether a and b are not adjacent, and c is known to be no collider between them unless it is marked so."""
        return not self.adjacent(a, b) and (min(a, b), c, max(a, b)) not in self.ambiguous

    def around(self, a: str) -> set[str]:
        return self.parents[a] | self.children[a] | self.neighbours[a]

    def lines(self) -> list[Pair]:
        """Each undirected edge in both directions, sorted."""
        return sorted((a, b) for a, others in self.neighbours.items() for b in others)

    def orient(self, a: str, b: str) -> None:
        self.neighbours[a].remove(b)
        self.neighbours[b].remove(a)
        self.children[a].add(b)
        self.parents[b].add(a)

    def remove(self, node: str) -> None:
        around = self.around(node)
        for table in (self.parents, self.children, self.neighbours):
            del table[node]
            for other in around:
                table[other].discard(node)

    def graph(self, nodes: Sequence[str]) -> CausalGraph:
        directed = [(a, b) for a, others in self.children.items() for b in others]
        return CausalGraph.cpdag(directed, [(a, b) for a, b in self.lines() if a < b], nodes)


def partial_edges(graph: CausalGraph) -> frozenset[Edge]:
    """The edges a -> b and a - b. Told by their marks, since a <-> b may stand beside a -> b on the same pair."""
    return frozenset(e for e in graph.edges if e.at_a == TAIL and e.at_b != CIRCLE)


def _closing(work: _Partial) -> Iterator[tuple[str, str, int]]:
    """The arrows that the rules give, one by one, each with the number of its rule; the caller orients it at once."""
    found = True
    while found:
        found = False
        for a, b in work.lines():
            if b not in work.neighbours[a]:
                continue
            if number := next((i for i, rule in enumerate(_RULES, 1) if next(rule(work, a, b), None)), 0):
                yield a, b, number
                found = True


# Each rule yields the other variables of its premises for a -> b, in any order: one is enough.


def _away_from_collider(work: _Partial, a: str, b: str) -> Iterator[tuple[str, ...]]:
    """R1: p -> a - b with p, b not adjacent; b -> a would be a new collider."""
    return ((p,) for p in work.parents[a] if work.no_collider(p, a, b))


def _away_from_cycle(work: _Partial, a: str, b: str) -> Iterator[tuple[str, ...]]:
    """R2: a -> c -> b; b -> a would close a cycle."""
    return ((c,) for c in work.children[a] & work.parents[b])


def _two_chains(work: _Partial, a: str, b: str) -> Iterator[tuple[str, ...]]:
    """R3: a - c -> b and a - d -> b with c, d not adjacent; b -> a would make c -> a <- d."""
    pairs = combinations(sorted(work.neighbours[a] & work.parents[b]), 2)
    return ((c, d) for c, d in pairs if work.no_collider(c, a, d))


def _around_knowledge(work: _Partial, a: str, b: str) -> Iterator[tuple[str, ...]]:
    """R4: a - c -> d -> b with a, d adjacent and c, b not; arises only with background knowledge."""
    for d in work.parents[b]:
        if work.adjacent(a, d):
            around = work.parents[d] & (work.neighbours[a] - {b})
            yield from ((c, d) for c in around if work.no_collider(c, a, b))


_RULES = (_away_from_collider, _away_from_cycle, _two_chains, _around_knowledge)


def _direct(arrows: dict[Pair, str], pairs: set[Pair], arrow: Pair, why: str) -> None:
    a, b = arrow
    if (min(a, b), max(a, b)) not in pairs:
        raise ConfigurationError(f"{why} needs an edge between {a} and {b}, which the skeleton lacks. Add it there.")
    if (b, a) in arrows:
        raise ConfigurationError(f"{why} says {a} -> {b}, but {arrows[b, a]} says {b} -> {a}. Give up one of them.")
    arrows.setdefault(arrow, why)


def _complete(pairs: set[Pair], arrows: dict[Pair, str], nodes: Sequence[str]) -> CausalGraph:
    lines = [pair for pair in pairs if pair not in arrows and pair[::-1] not in arrows]
    marked = CausalGraph.cpdag(arrows, lines, nodes)
    closed = meek(marked)
    if forced := closed.unshielded_colliders() - marked.unshielded_colliders():
        a, c, b = min(forced)
        raise ConfigurationError(
            f"the marks force a further unshielded collider {a} -> {c} <- {b}, so no DAG has exactly these. "
            "Give up a mark beside it, or list it too."
        )
    return closed


def _extend(graph: CausalGraph) -> tuple[CausalGraph, int]:
    """Orient all edges by taking sinks away, and count the unshielded colliders that this adds."""
    work, edges, added = _Partial.of(graph), [], 0
    left = sorted(work.parents)
    while left:
        cost, sink = _best_sink(work, left)
        left.remove(sink)
        edges += [(other, sink) for other in work.around(sink)]
        work.remove(sink)
        added += cost
    return CausalGraph.dag(edges, graph.nodes), added


def _best_sink(work: _Partial, left: Iterable[str]) -> tuple[int, str]:
    """The sink that adds the fewest colliders, and their number; the first of ``left`` among equals."""
    best: tuple[int, str] | None = None
    for node in left:
        if not work.children[node]:
            cost = _cost(work, node)
            if not cost:
                return cost, node
            best = min(best or (cost, node), (cost, node))
    assert best is not None  # directed edges without a cycle always leave a sink
    return best


def _is_free(work: _Partial, node: str) -> bool:
    """Whether all edges may point to the node and no unshielded collider arise."""
    lines, around = work.neighbours[node], work.around(node)
    return all(y == z or work.adjacent(y, z) for y in lines for z in around)


def _cost(work: _Partial, node: str) -> int:
    """How many unshielded colliders at ``node`` arise if all its edges point to it: pairs with an undirected
    edge.
    """
    lines = work.neighbours[node]
    if not lines:
        return 0
    pairs = combinations(work.around(node), 2)
    return sum((y in lines or z in lines) and not work.adjacent(y, z) for y, z in pairs)
