"""Causal graphs: immutable mixed graphs with a mark (tail, arrow, circle) at each end of each edge.

One class serves DAGs, CPDAGs, ADMGs and PAGs, since they differ only in which marks occur. In the notation of
Richardson & Spirtes (2002) and Zhang (2008): ``a -> b`` has a tail at a and an arrowhead at b, ``a - b`` two
tails, ``a <-> b`` two arrowheads (a latent common cause), and a circle is an end mark that the data leave
open. Separation is d-separation (Pearl, 1988) on a DAG and m-separation (Richardson, 2003) on an ADMG.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from causaldao.errors import ConfigurationError, MisuseError

if TYPE_CHECKING:
    import numpy.typing as npt

TAIL, CIRCLE, ARROW = "-", "o", ">"
_RANK = {TAIL: 0, CIRCLE: 1, ARROW: 2}
_NAMES = {TAIL: "tail '-'", CIRCLE: "circle 'o'", ARROW: "arrow '>'"}
# the bow arc; and a -> b beside b -> a, which is left to be named as the cycle that it is
_MAY_SHARE = (["->", ">>"], ["->", "->"])
_SYMBOLS = {"--": "-", "-o": "-o", "->": "->", "oo": "o-o", "o>": "o->", ">>": "<->"}

Pair = tuple[str, str]
Triple = tuple[str, str, str]


class Edge(NamedTuple):
    """An edge with the marks at its two ends; the blunter end comes first (``a -> b``: a, b, -, >)."""

    a: str
    b: str
    at_a: str
    at_b: str

    def __str__(self) -> str:
        return f"{self.a} {_SYMBOLS[self.at_a + self.at_b]} {self.b}"


@dataclass(frozen=True, eq=False, repr=False)
class CausalGraph:
    """A mixed graph. Two graphs are equal if their node *sets* and their edges are; orders do not matter.

    ``nodes`` keeps the order it was given in: it breaks ties in `topological_order` and orders `adjacency`.
    Without an explicit order the nodes are sorted by name. Build one with `dag`, `cpdag`, `admg` or `pag`.

    Raises:
        ConfigurationError: a node twice or without a name, an edge that names an unknown node, a self loop,
            two edges on a pair (only ``a -> b`` beside ``a <-> b`` may share one), an unknown mark, or a
            directed cycle.
    """

    nodes: tuple[str, ...]
    edges: frozenset[Edge]

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        object.__setattr__(self, "edges", frozenset(_canonical(*edge) for edge in self.edges))
        _check_nodes(self.nodes)
        _check_edges(self.nodes, self.edges)
        order, rest = _peel(self.nodes, self._parents)
        if rest:
            raise ConfigurationError(
                f"the directed edges hold a cycle: {' -> '.join(_cycle(rest, self._parents))}. "
                "A causal graph has none: remove or reverse one of these edges."
            )
        object.__setattr__(self, "_order", order)

    @classmethod
    def dag(cls, edges: Iterable[Pair], nodes: Sequence[str] = ()) -> CausalGraph:
        """A directed acyclic graph from pairs (cause, effect)."""
        return _build(((a, b, TAIL, ARROW) for a, b in edges), nodes)

    @classmethod
    def cpdag(
        cls, directed: Iterable[Pair] = (), undirected: Iterable[Pair] = (), nodes: Sequence[str] = ()
    ) -> CausalGraph:
        """A partially directed graph: a CPDAG, or any pattern on the way to one (closure is not checked)."""
        edges = [(a, b, TAIL, ARROW) for a, b in directed]
        return _build([*edges, *((a, b, TAIL, TAIL) for a, b in undirected)], nodes)

    @classmethod
    def admg(
        cls, directed: Iterable[Pair] = (), bidirected: Iterable[Pair] = (), nodes: Sequence[str] = ()
    ) -> CausalGraph:
        """An acyclic directed mixed graph: ``a <-> b`` says that a and b share a latent cause."""
        edges = [(a, b, TAIL, ARROW) for a, b in directed]
        return _build([*edges, *((a, b, ARROW, ARROW) for a, b in bidirected)], nodes)

    @classmethod
    def pag(cls, marks: Mapping[Pair, str | Sequence[str]], nodes: Sequence[str] = ()) -> CausalGraph:
        """A graph from the marks at both ends of each pair: ``pag({("a", "b"): "o>"})`` is a o-> b."""
        for pair, ends in marks.items():
            if len(ends) != 2:
                raise ConfigurationError(f"edge {pair} has marks {ends!r}. Give two, such as 'o>' or ('-', '>').")
        return _build(((a, b, ends[0], ends[1]) for (a, b), ends in marks.items()), nodes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CausalGraph):
            return NotImplemented
        return set(self.nodes) == set(other.nodes) and self.edges == other.edges

    def __hash__(self) -> int:
        return hash((frozenset(self.nodes), self.edges))

    def __repr__(self) -> str:
        return f"CausalGraph({', '.join([*self.nodes, *map(str, sorted(self.edges))])})"

    @cached_property
    def directed(self) -> frozenset[Pair]:
        """The pairs (a, b) with a -> b."""
        return frozenset((e.a, e.b) for e in self.edges if (e.at_a, e.at_b) == (TAIL, ARROW))

    @cached_property
    def undirected(self) -> frozenset[Pair]:
        """The sorted pairs with a - b."""
        return frozenset((e.a, e.b) for e in self.edges if (e.at_a, e.at_b) == (TAIL, TAIL))

    @cached_property
    def bidirected(self) -> frozenset[Pair]:
        """The sorted pairs with a <-> b."""
        return frozenset((e.a, e.b) for e in self.edges if (e.at_a, e.at_b) == (ARROW, ARROW))

    @property
    def is_dag(self) -> bool:
        """Whether every edge is directed (that none closes a cycle holds for every graph here)."""
        return len(self.directed) == len(self.edges)

    def parents(self, node: str) -> frozenset[str]:
        """The nodes p with p -> node."""
        return self._parents[self._known(node)]

    def children(self, node: str) -> frozenset[str]:
        """The nodes c with node -> c."""
        return self._children[self._known(node)]

    def neighbours(self, node: str) -> frozenset[str]:
        """The nodes joined to it by an undirected edge."""
        return self._neighbours[self._known(node)]

    def adjacencies(self, node: str) -> frozenset[str]:
        """The nodes joined to it by an edge of any kind."""
        return self._adjacencies[self._known(node)]

    def adjacent(self, a: str, b: str) -> bool:
        """Whether an edge of any kind joins a and b."""
        return self._known(b) in self.adjacencies(a)

    def ancestors(self, nodes: str | Iterable[str]) -> frozenset[str]:
        """The nodes themselves and all with a directed path into them."""
        return _reach(self._set(nodes), self._parents)

    def descendants(self, nodes: str | Iterable[str]) -> frozenset[str]:
        """The nodes themselves and all that a directed path from them leads to."""
        return _reach(self._set(nodes), self._children)

    def topological_order(self) -> tuple[str, ...]:
        """All nodes, causes before effects by the directed edges; ties in the order of ``nodes``.

        Raises:
            MisuseError: an edge is undirected or has a circle, so that no order is implied.
        """
        self._require_directions("a topological order")
        order: tuple[str, ...] = self.__dict__["_order"]
        return order

    def d_separated(self, xs: str | Iterable[str], ys: str | Iterable[str], given: str | Iterable[str] = ()) -> bool:
        """Whether ``given`` separates xs from ys: d-separation on a DAG, m-separation on an ADMG.

        A path is open if each of its colliders is an ancestor of ``given`` and no other inner node is in it.
        A string is one name. An empty xs or ys is separated from everything.

        Raises:
            MisuseError: the three sets overlap, name an unknown node, or the graph has undirected or circle
                ends.
        """
        self._require_directions("separation")
        x, y, z = self._set(xs), self._set(ys), self._set(given)
        if overlap := (x & y) | (x & z) | (y & z):
            raise MisuseError(f"separation needs disjoint sets, but {sorted(overlap)} stands in two of them.")
        return y.isdisjoint(self._connected(x, z))

    def skeleton(self) -> frozenset[Pair]:
        """The sorted pairs joined by an edge of any kind."""
        return frozenset((min(e.a, e.b), max(e.a, e.b)) for e in self.edges)

    def unshielded_triples(self) -> frozenset[Triple]:
        """The paths (a, c, b), a < b, whose ends are not adjacent."""
        return self._unshielded(self._adjacencies)

    def unshielded_colliders(self) -> frozenset[Triple]:
        """The unshielded triples (a, c, b), a < b, with an arrowhead at c on both edges."""
        return self._unshielded(self._into)

    def _unshielded(self, ends: Mapping[str, Collection[str]]) -> frozenset[Triple]:
        """The unshielded triples (a, c, b), a < b, with both a and b among the ends of c."""
        around = self._adjacencies
        several = ((c, sorted(own)) for c, own in ends.items() if len(own) > 1)
        return frozenset((a, c, b) for c, own in several for a, b in combinations(own, 2) if b not in around[a])

    def with_nodes(self, nodes: Sequence[str]) -> CausalGraph:
        """The same edges over ``nodes`` first, in that order, then the nodes of this graph that they lack."""
        listed = set(nodes)
        return CausalGraph((*nodes, *(node for node in self.nodes if node not in listed)), self.edges)

    def adjacency(self, order: Sequence[str] | None = None) -> npt.NDArray[np.bool_]:
        """Boolean (d, d) matrix: [i, j] is True iff i -> j; rows and columns by ``order``, else ``nodes``."""
        names = self.nodes if order is None else tuple(order)
        if sorted(names) != sorted(self.nodes):
            raise MisuseError(f"order {list(names)} is not a permutation of the nodes {list(self.nodes)}.")
        index = {name: i for i, name in enumerate(names)}
        matrix = np.zeros((len(names), len(names)), dtype=np.bool_)
        for a, b in self.directed:
            matrix[index[a], index[b]] = True
        return matrix

    def to_json(self) -> dict[str, Any]:
        """A plain dict: nodes in order, edges sorted, each {"from", "to", "marks": [at from, at to]}."""
        edges = [{"from": e.a, "to": e.b, "marks": [e.at_a, e.at_b]} for e in sorted(self.edges)]
        return {"nodes": list(self.nodes), "edges": edges}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CausalGraph:
        """The graph that `to_json` wrote. Raises ConfigurationError for anything else."""
        try:
            if isinstance(data["nodes"], str):
                raise TypeError("nodes is a text, whose letters would pass for names")
            nodes, edges = list(data["nodes"]), [(e["from"], e["to"], *e["marks"]) for e in data["edges"]]
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"not a graph: {error!r}. A graph is {{'nodes': [name], "
                "'edges': [{'from': name, 'to': name, 'marks': [mark, mark]}]}."
            ) from error
        if bad := [e for e in edges if len(e) != 4 or not all(isinstance(part, str) for part in e)]:
            raise ConfigurationError(f"edge {bad[0]} needs names 'from' and 'to' and two marks, such as ['-', '>'].")
        _check_nodes(nodes)
        return cls(tuple(nodes), frozenset(Edge(*edge) for edge in _without_duplicates(edges)))

    def to_networkx(self) -> Any:
        """A networkx ``DiGraph`` of a DAG, else a ``MultiDiGraph``; edges have ``marks=(at from, at to)``."""
        import networkx as nx

        graph: Any = nx.DiGraph() if self.is_dag else nx.MultiDiGraph()
        graph.add_nodes_from(self.nodes)
        for e in sorted(self.edges):
            graph.add_edge(e.a, e.b, marks=(e.at_a, e.at_b))
        return graph

    @cached_property
    def _ends(self) -> dict[str, list[tuple[str, str, str]]]:
        """Of each node: (the mark here, the mark there, the other node) of each edge."""
        ends: dict[str, list[tuple[str, str, str]]] = {node: [] for node in self.nodes}
        for a, b, at_a, at_b in sorted(self.edges):
            ends[a].append((at_a, at_b, b))
            ends[b].append((at_b, at_a, a))
        return ends

    def _by_marks(self, here: str, there: str) -> dict[str, frozenset[str]]:
        """Of each node, the others at edges whose marks (here, there) are in the two given strings."""
        found: dict[str, list[str]] = {node: [] for node in self.nodes}
        for a, b, at_a, at_b in self.edges:
            if at_a in here and at_b in there:
                found[a].append(b)
            if at_b in here and at_a in there:
                found[b].append(a)
        return {node: frozenset(others) for node, others in found.items()}

    @cached_property
    def _parents(self) -> dict[str, frozenset[str]]:
        return self._by_marks(ARROW, TAIL)

    @cached_property
    def _children(self) -> dict[str, frozenset[str]]:
        return self._by_marks(TAIL, ARROW)

    @cached_property
    def _neighbours(self) -> dict[str, frozenset[str]]:
        return self._by_marks(TAIL, TAIL)

    @cached_property
    def _adjacencies(self) -> dict[str, frozenset[str]]:
        return self._by_marks("-o>", "-o>")

    @cached_property
    def _into(self) -> dict[str, frozenset[str]]:
        return self._by_marks(ARROW, "-o>")

    def _known(self, node: str) -> str:
        if node not in self._ends:
            raise MisuseError(f"{node!r} is not a node of this graph. Its nodes are {', '.join(self.nodes) or 'none'}.")
        return node

    def _set(self, nodes: str | Iterable[str]) -> frozenset[str]:
        return frozenset(map(self._known, [nodes] if isinstance(nodes, str) else nodes))

    def _require_directions(self, what: str) -> None:
        if open_edges := self.edges - _directional(self.edges):
            raise MisuseError(
                f"{what} is not defined for {min(open_edges)}, whose direction is open. Choose a DAG first: "
                "an extension of a CPDAG is one of its members."
            )

    def _connected(self, xs: frozenset[str], given: frozenset[str]) -> set[str]:
        """All nodes that an open walk from xs reaches; a state is (node, whether it came by an arrowhead)."""
        opened = self.ancestors(given)
        todo = [(other, there == ARROW) for x in xs for _, there, other in self._ends[x]]
        seen = set(todo)
        while todo:
            node, came_by_head = todo.pop()
            for here, there, other in self._ends[node]:
                collider = came_by_head and here == ARROW
                state = (other, there == ARROW)
                if (node in opened if collider else node not in given) and state not in seen:
                    seen.add(state)
                    todo.append(state)
        return {node for node, _ in seen}


def _build(edges: Iterable[tuple[str, str, str, str]], nodes: Sequence[str]) -> CausalGraph:
    """The graph of the edges, none said twice; without nodes, over the sorted names of the edges."""
    listed = _without_duplicates([tuple(edge) for edge in edges])
    names = tuple(nodes) or tuple(sorted({name for edge in listed for name in edge[:2]}))
    return CausalGraph(names, frozenset(Edge(*edge) for edge in listed))


def _canonical(a: str, b: str, at_a: str, at_b: str) -> Edge:
    """The edge with its blunter end first; equal ends in the order of the names."""
    for mark in (at_a, at_b):
        if mark not in _RANK:
            raise ConfigurationError(f"unknown mark {mark!r} on {a}, {b}. Marks are {', '.join(_NAMES.values())}.")
    if (_RANK[at_a], a) <= (_RANK[at_b], b):
        return Edge(a, b, at_a, at_b)
    return Edge(b, a, at_b, at_a)


def _without_duplicates(edges: Sequence[tuple[str, ...]]) -> list[Edge]:
    """The edges in canonical form; one said twice is refused, since one of the two may be a slip."""
    seen: set[Edge] = set()
    for edge in (_canonical(*edge) for edge in edges):
        if edge in seen:
            raise ConfigurationError(f"the edge {edge} is given twice. Remove one of the two.")
        seen.add(edge)
    return sorted(seen)


def _directional(edges: Iterable[Edge]) -> frozenset[Edge]:
    return frozenset(e for e in edges if e.at_b == ARROW and e.at_a != CIRCLE)


def _check_nodes(nodes: Sequence[str]) -> None:
    if bad := [node for node in nodes if not isinstance(node, str) or not node]:
        raise ConfigurationError(f"a node is named {bad[0]!r}. Names are strings that are not empty.")
    if len(set(nodes)) < len(nodes):
        twice = sorted({node for node in nodes if nodes.count(node) > 1})
        raise ConfigurationError(f"nodes {twice} are listed twice. Each name stands for one variable.")


def _check_edges(nodes: Sequence[str], edges: Collection[Edge]) -> None:
    known = set(nodes)
    if unknown := sorted({name for e in edges for name in (e.a, e.b)} - known):
        raise ConfigurationError(f"edges name unknown nodes {unknown}. Add them to nodes, or correct the names.")
    if loops := sorted(e.a for e in edges if e.a == e.b):
        raise ConfigurationError(f"{loops[0]} -> {loops[0]} is a self loop. Remove it: no variable causes itself.")
    if len({(e.a, e.b) if e.a < e.b else (e.b, e.a) for e in edges}) == len(edges):
        return
    by_pair: dict[Pair, list[Edge]] = {}
    for e in sorted(edges):
        by_pair.setdefault((min(e.a, e.b), max(e.a, e.b)), []).append(e)
    for pair, shared in by_pair.items():
        if len(shared) > 1 and sorted(e.at_a + e.at_b for e in shared) not in _MAY_SHARE:
            listed = " and ".join(map(str, shared))
            raise ConfigurationError(f"{pair[0]} and {pair[1]} have two edges: {listed}. Keep one of them.")


def _peel(nodes: Sequence[str], parents: Mapping[str, frozenset[str]]) -> tuple[tuple[str, ...], list[str]]:
    """Kahn's algorithm: (nodes in topological order, least index first; nodes on or below a cycle)."""
    index = {node: i for i, node in enumerate(nodes)}
    missing = {node: len(parents[node]) for node in nodes}
    children: dict[str, list[str]] = {node: [] for node in nodes}
    for child in nodes:
        for parent in parents[child]:
            children[parent].append(child)
    ready = [index[node] for node in nodes if not missing[node]]
    order = list(_drain(ready, nodes, index, missing, children))
    return tuple(order), [node for node in nodes if missing[node]]


def _drain(
    ready: list[int],
    nodes: Sequence[str],
    index: Mapping[str, int],
    missing: dict[str, int],
    children: Mapping[str, list[str]],
) -> Iterator[str]:
    """Yield the ready nodes, least index first; a child is ready once all its parents are out."""
    heapq.heapify(ready)
    while ready:
        node = nodes[heapq.heappop(ready)]
        yield node
        for child in children[node]:
            missing[child] -= 1
            if not missing[child]:
                heapq.heappush(ready, index[child])


def _cycle(rest: Sequence[str], parents: Mapping[str, frozenset[str]]) -> list[str]:
    """A directed cycle among nodes that each have a parent in ``rest``, closed by its first node."""
    inside, path = set(rest), [rest[0]]
    while path[-1] not in path[:-1]:
        path.append(min(parents[path[-1]] & inside))
    return path[path.index(path[-1]) :][::-1]


def _reach(start: frozenset[str], step: Mapping[str, frozenset[str]]) -> frozenset[str]:
    seen, todo = set(start), list(start)
    while todo:
        new = step[todo.pop()] - seen
        seen |= new
        todo.extend(new)
    return frozenset(seen)
