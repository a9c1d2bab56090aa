"""Identification by covariate adjustment in DAGs, CPDAGs and CPDAGs with background knowledge; no latents.

The generalised adjustment criterion: Perković, Textor, Kalisch & Maathuis, JMLR 18 (2018), and Perković,
Kalisch & Maathuis, UAI 2017, for background knowledge. The optimal set O(x, y) = pa(cn) \\ forb, of least
asymptotic variance among all valid sets: Henckel, Perković & Maathuis, JRSS B 84 (2022). cn: the nodes other
than x on causal paths from x to y; forb: x and what may descend from cn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from causaldao.errors import ConfigurationError, MisuseError, NotIdentifiable
from causaldao.models.graph import CausalGraph
from causaldao.models.pattern import extension, meek

Names = frozenset[str]


def possible_descendants(graph: CausalGraph, node: str, avoiding: Collection[str] = ()) -> Names:
    """node and all that descend from it in some DAG of the class, by paths clear of `avoiding`.

    An unshielded path with no edge against its direction suffices and is enough (Perković et al., 2017, lemma
    3.6), so the search walks over edges, not paths: O(edges × degree).
    """
    reached, seen, stack = {node}, set[tuple[str, str]](), [("", node)]
    while stack:
        previous, current = stack.pop()
        for following in (graph.children(current) | graph.neighbours(current)) - set(avoiding) - {previous}:
            shielded = previous != "" and graph.adjacent(previous, following)
            if not shielded and (current, following) not in seen:
                seen.add((current, following))
                reached.add(following)
                stack.append((current, following))
    return frozenset(reached)


def is_amenable(graph: CausalGraph, treatment: str, outcome: str) -> bool:
    """Whether every possibly causal path from treatment to outcome leaves treatment by a directed edge.

    Only then is the total effect the same function of the data in all DAGs of the class. Raises MisuseError
    for unknown names and graphs with latent marks, ConfigurationError when no DAG is in the class.
    """
    graph, _ = _checked(graph, treatment, outcome)
    return _undirected_start(graph, treatment, outcome) is None


def is_adjustment_set(graph: CausalGraph, treatment: str, outcome: str, adjustment: Collection[str]) -> bool:
    """Whether adjusting for `adjustment` gives the total effect in every DAG of the class: amenable, nothing
    forbidden in it, and every non-causal path blocked. Raises as `is_amenable`."""
    graph, dag = _checked(graph, treatment, outcome, adjustment)
    if _undirected_start(graph, treatment, outcome) is not None:
        return False
    return not _forbidden(graph, treatment, outcome) & set(adjustment) and _blocks(dag, treatment, outcome, adjustment)


def adjustment_set(graph: CausalGraph, treatment: str, outcome: str) -> Names:
    """The optimal valid set; where outcome cannot descend from treatment, the parents of treatment.

    Raises NotIdentifiable when the class does not settle the effect (an undirected edge begins a path), and
    when outcome is a parent of treatment: no set separates them, but by the graph the effect is zero.
    """
    graph, dag = _checked(graph, treatment, outcome)
    if (start := _undirected_start(graph, treatment, outcome)) is not None:
        raise NotIdentifiable(
            f"The effect of {treatment} on {outcome} differs within the class: the edge {treatment} - "
            f"{start} is undirected and may begin a causal path. Declare its direction as knowledge, or "
            "ask for the set of effects over the class."
        )
    if outcome in graph.parents(treatment):
        raise NotIdentifiable(
            f"{outcome} is a direct cause of {treatment}, so no adjustment separates them; by the graph "
            f"the effect of {treatment} on {outcome} is zero."
        )
    causal = _causal_nodes(dag, treatment, outcome)
    if not causal:
        return frozenset(dag.parents(treatment))
    return frozenset().union(*(dag.parents(node) for node in causal)) - dag.descendants(causal) - {treatment}


def orientations_at(graph: CausalGraph, node: str) -> tuple[CausalGraph, ...]:
    """One pattern for each set of parents that `node` has in some DAG of the class, fewest first.

    Every edge at node is directed and Meek's rules are applied; equally many new parents come in name order.
    New parents must be adjacent to each other and to the old ones, else they would make a new unshielded
    collider; Dor and Tarsi's extension tells whether a DAG of the class is left (semi-local IDA, Perković et
    al., 2017).
    """
    graph, _ = _checked(graph, node)
    chosen = sorted(_cliques(graph, sorted(graph.neighbours(node))), key=lambda parents: (len(parents), parents))
    oriented = (_oriented(graph, node, parents) for parents in chosen)
    return tuple(candidate for candidate in oriented if candidate is not None)


def _checked(graph: CausalGraph, treatment: str, *others: str | Collection[str]) -> tuple[CausalGraph, CausalGraph]:
    """The pattern closed under Meek's rules and one DAG of its class."""
    names = [treatment]
    for other in others:
        names.extend([other] if isinstance(other, str) else other)
    if unknown := sorted(set(names) - set(graph.nodes)):
        raise MisuseError(f"The graph has no node {', '.join(unknown)}. It has {', '.join(graph.nodes)}.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MisuseError(f"{', '.join(twice)} stands in two roles; treatment, outcome and adjustment must differ.")
    if graph.is_dag:
        return graph, graph
    if len(graph.directed) + len(graph.undirected) != len(graph.edges):
        raise MisuseError("Adjustment is decided here in DAGs and CPDAGs; this graph has bidirected or circle marks.")
    closed = meek(graph)
    if (dag := extension(closed)) is None:
        raise ConfigurationError(
            "No DAG is consistent with the pattern: its undirected edges cannot all be directed "
            "without a cycle or a new collider. Remove contradicting knowledge."
        )
    return closed, dag


def _undirected_start(graph: CausalGraph, treatment: str, outcome: str) -> str | None:
    avoiding = graph.parents(treatment) | {treatment}
    starts = sorted(graph.neighbours(treatment))
    return next((s for s in starts if outcome in possible_descendants(graph, s, avoiding)), None)


def _forbidden(graph: CausalGraph, treatment: str, outcome: str) -> Names:
    # A parent of treatment lies on no possibly causal path from it, though background knowledge may leave the
    # edges along such a path undirected.
    avoiding = graph.parents(treatment) | {treatment}
    between = possible_descendants(graph, treatment, avoiding - {treatment}) - {treatment}
    causal = [node for node in between if outcome in possible_descendants(graph, node, avoiding)]
    return frozenset[str]().union(*(possible_descendants(graph, node) for node in causal))


def _causal_nodes(dag: CausalGraph, treatment: str, outcome: str) -> Names:
    return frozenset((dag.descendants([treatment]) & dag.ancestors([outcome])) - {treatment})


def _blocks(dag: CausalGraph, treatment: str, outcome: str, adjustment: Collection[str]) -> bool:
    # Amenable and nothing forbidden: then blocking in one DAG of the class is blocking in all of them.
    causal = _causal_nodes(dag, treatment, outcome)
    kept = [(a, b) for a, b in dag.directed if not (a == treatment and b in causal)]
    return CausalGraph.dag(kept, dag.nodes).d_separated([treatment], [outcome], adjustment)


def _cliques(graph: CausalGraph, candidates: list[str]) -> Iterator[tuple[str, ...]]:
    yield ()
    for index, first in enumerate(candidates):
        rest = [other for other in candidates[index + 1 :] if graph.adjacent(first, other)]
        yield from ((first, *clique) for clique in _cliques(graph, rest))


def _oriented(graph: CausalGraph, node: str, parents: tuple[str, ...]) -> CausalGraph | None:
    here = {(p, node) if p in parents else (node, p) for p in graph.neighbours(node)}
    undirected = [pair for pair in graph.undirected if node not in pair]
    try:
        candidate = meek(CausalGraph.cpdag(graph.directed | here, undirected, graph.nodes))
    except ConfigurationError:
        return None  # the orientation closes a directed cycle
    # The class is defined by its colliders: compared here, so that nothing rests on the choice of candidates.
    if candidate.unshielded_colliders() != graph.unshielded_colliders() or extension(candidate) is None:
        return None
    return candidate
