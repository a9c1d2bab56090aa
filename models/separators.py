"""Parts of ADMGs that questions of identification rest on: graphs with arrows removed, districts, minimal separators.

Z is a minimal separator of x and y if it m-separates them and no proper subset does. Such a set lies in An(x, y), and
within it m-separation is separation in the augmented graph, the undirected graph in which a and b are joined if a path
of colliders joins them (Richardson, Scandinavian Journal of Statistics 30, 2003; van der Zander, Liśkiewicz & Textor,
2019).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import combinations

from causaldao.models.graph import CausalGraph

Names = frozenset[str]
Undirected = dict[str, set[str]]


def mutilated(graph: CausalGraph, into: Collection[str] = (), out_of: Collection[str] = ()) -> CausalGraph:
    """The graph without the arrowheads at ``into`` and without the directed edges out of ``out_of``."""
    directed = [(a, b) for a, b in graph.directed if b not in into and a not in out_of]
    return CausalGraph.admg(directed, [pair for pair in graph.bidirected if not set(pair) & set(into)], graph.nodes)


def districts(graph: CausalGraph, within: Names) -> tuple[Names, ...]:
    """The sets of nodes that bidirected edges join in the subgraph over ``within``, in the order of their least
    names."""
    spouses: dict[str, set[str]] = {node: set() for node in within}
    for a, b in graph.bidirected:
        if a in within and b in within:
            spouses[a].add(b)
            spouses[b].add(a)
    left, found = set(within), []
    while left:
        reached, todo = set[str](), [min(left)]
        while todo:
            node = todo.pop()
            if node not in reached:
                reached.add(node)
                todo.extend(spouses[node])
        found.append(frozenset(reached))
        left -= reached
    return tuple(found)


def minimal_separators(graph: CausalGraph, x: str, y: str, allowed: Names) -> Iterator[Names]:
    """Every minimal separator of x and y within ``allowed``, each once, those close to x first.

    From one to the next the time is polynomial: Berry, Bordat & Cogis (WG 1999), who step over each node of a separator
    in turn. For ADMGs, and so for DAGs.
    """
    around = _augmented(graph, frozenset({x, y}), allowed)
    if y in around[x]:
        return
    first = _boundary(around, around[x], y)
    seen, todo = {first}, [first]
    while todo:
        current = todo.pop(0)
        yield current
        for node in sorted(current):
            if y not in around[node]:
                following = _boundary(around, current | around[node], y)
                if following not in seen:
                    seen.add(following)
                    todo.append(following)


def _augmented(graph: CausalGraph, ends: Names, allowed: Names) -> Undirected:
    """The augmented graph over An(ends); nodes that are not allowed are taken out, and those around them joined."""
    ancestral = graph.ancestors(ends)
    around: Undirected = {node: set() for node in ancestral}
    for district in districts(graph, ancestral):
        _join(around, district.union(*(graph.parents(node) for node in district)))
    for node in sorted(ancestral - allowed - ends):
        others = around.pop(node)
        for other in others:
            around[other].discard(node)
        _join(around, others)
    return around


def _join(around: Undirected, nodes: Collection[str]) -> None:
    for a, b in combinations(nodes, 2):
        around[a].add(b)
        around[b].add(a)


def _boundary(around: Undirected, removed: Collection[str], y: str) -> Names:
    """The nodes beside the component of y that is left once ``removed`` is gone."""
    inside, todo, edge = set[str](), [y], set[str]()
    while todo:
        node = todo.pop()
        inside.add(node)
        edge |= around[node] & set(removed)
        todo.extend(around[node] - set(removed) - inside)
    return frozenset(edge)
