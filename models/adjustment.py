"""Identification by covariate adjustment in DAGs, ADMGs, CPDAGs and CPDAGs with background knowledge.

The generalised adjustment criterion: Perković, Textor, Kalisch & Maathuis, JMLR 18 (2018), and Perković,
Kalisch & Maathuis, UAI 2017, for background knowledge. It speaks of m-separation in the proper back-door graph, so
it holds for ADMGs as it stands (van der Zander, Liśkiewicz & Textor, Artificial Intelligence 270, 2019). The
optimal set O(x, y) = pa(cn) \\ forb, of least asymptotic variance among all valid sets: Henckel, Perković &
Maathuis, JRSS B 84 (2022). cn: the nodes other than x on causal paths from x to y; forb: x and what may descend
from cn. With latent causes O also takes in what lies behind bidirected edges: Runge, NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from causaldao.errors import ConfigurationError, MisuseError, NotIdentifiable
from causaldao.models.graph import CausalGraph
from causaldao.models.pattern import extension, meek, partial_edges
from causaldao.models.separators import minimal_separators, mutilated

Names = frozenset[str]


def possible_descendants(graph: CausalGraph, node: str, avoiding: Collection[str] = ()) -> Names:
    """node and all that descend from it in some DAG of the class, by paths clear of `avoiding`.

    An unshielded path with no edge against its direction suffices and is enough (Perković et al., 2017, lemma
    3.6), so the search walks over edges, not paths: O(edges × degree). A latent common cause shields no path: it is no
    way from one end to the other.
    """
    reached, seen, stack = {node}, set[tuple[str, str]](), [("", node)]
    while stack:
        previous, current = stack.pop()
        for following in (graph.children(current) | graph.neighbours(current)) - set(avoiding) - {previous}:
            shielded = previous != "" and following in (
                graph.children(previous) | graph.parents(previous) | graph.neighbours(previous)
            )
            if not shielded and (current, following) not in seen:
                seen.add((current, following))
                reached.add(following)
                stack.append((current, following))
    return frozenset(reached)


def is_amenable(graph: CausalGraph, treatment: str, outcome: str) -> bool:
    """Whether every possibly causal path from treatment to outcome leaves treatment by a directed edge.

    Only then is the total effect the same function of the data in all DAGs of the class. Raises MisuseError
    for unknown names and graphs with circle marks, ConfigurationError when no DAG is in the class. In a DAG and in
    an ADMG every direction is known, so all effects are amenable.
    """
    graph, _ = checked(graph, treatment, outcome)
    return _undirected_start(graph, treatment, outcome) is None


def is_adjustment_set(graph: CausalGraph, treatment: str, outcome: str, adjustment: Collection[str]) -> bool:
    """Whether adjusting for `adjustment` gives the total effect in every DAG of the class: amenable, nothing
    forbidden in it, and every non-causal path blocked. Raises as `is_amenable`."""
    graph, dag = checked(graph, treatment, outcome, adjustment)
    if _undirected_start(graph, treatment, outcome) is not None:
        return False
    return not _forbidden(graph, treatment, outcome) & set(adjustment) and _blocks(dag, treatment, outcome, adjustment)


def adjustment_set(graph: CausalGraph, treatment: str, outcome: str) -> Names:
    """The optimal valid set; where outcome cannot descend from treatment, the parents of treatment.

    In an ADMG Runge's set: valid if any set is, and of least variance among the valid ones if one set is that for all
    models of the graph (in some ADMGs none is). Without a causal path a minimal separating set there.

    Raises NotIdentifiable when the class does not settle the effect (an undirected edge begins a path), when
    outcome is a parent of treatment (no set separates them, but by the graph the effect is zero), and when latent
    causes leave no valid set; `identify` may know another way then.
    """
    graph, dag = checked(graph, treatment, outcome)
    require_settled(graph, treatment, outcome)
    if outcome in graph.parents(treatment):
        raise NotIdentifiable(
            f"{outcome} is a direct cause of {treatment}, so no adjustment separates them; by the graph "
            f"the effect of {treatment} on {outcome} is zero."
        )
    causal = _causal_nodes(dag, treatment, outcome)
    if dag.bidirected:
        return _with_latents(dag, treatment, outcome)
    if not causal:
        return frozenset(dag.parents(treatment))
    return frozenset().union(*(dag.parents(node) for node in causal)) - dag.descendants(causal) - {treatment}


def minimal_adjustment_sets(graph: CausalGraph, treatment: str, outcome: str) -> Iterator[Names]:
    """Every valid set of which no proper subset is valid, each once; none if there is no valid set.

    The time between one and the next is polynomial, their number need not be. Raises as `is_amenable`.
    """
    graph, dag = checked(graph, treatment, outcome)
    if _undirected_start(graph, treatment, outcome) is None:
        allowed = frozenset(graph.nodes) - _forbidden(graph, treatment, outcome) - {treatment, outcome}
        yield from minimal_separators(proper_back_door(dag, {treatment}, {outcome}), treatment, outcome, allowed)


def joint_adjustment_set(graph: CausalGraph, treatments: Names, outcomes: Names) -> Names | None:
    """A valid set for the effect of several treatments at once, in a DAG or ADMG; None iff there is none.

    No single member of it can be left out. Its existence is decided by the largest candidate, An(x ∪ y) without x, y
    and forb (Perković et al., 2018, corollary 4.4).
    """
    proper = proper_back_door(graph, treatments, outcomes)
    forbidden = graph.descendants(proper_causal_nodes(graph, treatments, outcomes))
    chosen = graph.ancestors(treatments | outcomes) - treatments - outcomes - forbidden
    if not proper.d_separated(treatments, outcomes, chosen):
        return None
    for name in sorted(chosen):
        if proper.d_separated(treatments, outcomes, chosen - {name}):
            chosen -= {name}
    return chosen


def orientations_at(graph: CausalGraph, node: str) -> tuple[CausalGraph, ...]:
    """One pattern for each set of parents that `node` has in some DAG of the class, fewest first.

    Every edge at node is directed and Meek's rules are applied; equally many new parents come in name order.
    New parents must be adjacent to each other and to the old ones, else they would make a new unshielded
    collider; Dor and Tarsi's extension tells whether a DAG of the class is left (semi-local IDA, Perković et
    al., 2017).
    """
    graph, _ = checked(graph, node)
    chosen = sorted(_cliques(graph, sorted(graph.neighbours(node))), key=lambda parents: (len(parents), parents))
    oriented = (_oriented(graph, node, parents) for parents in chosen)
    return tuple(candidate for candidate in oriented if candidate is not None)


def checked(graph: CausalGraph, treatment: str, *others: str | Collection[str]) -> tuple[CausalGraph, CausalGraph]:
    """The pattern closed under Meek's rules and one DAG of its class."""
    names = [treatment]
    for other in others:
        names.extend([other] if isinstance(other, str) else other)
    if unknown := sorted(set(names) - set(graph.nodes)):
        raise MisuseError(f"The graph has no node {', '.join(unknown)}. It has {', '.join(graph.nodes)}.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MisuseError(f"{', '.join(twice)} stands in two roles; treatment, outcome and adjustment must differ.")
    if len(graph.directed) + len(graph.bidirected) == len(graph.edges):
        return graph, graph
    if odd := graph.edges - partial_edges(graph):
        raise MisuseError(
            f"Effects are decided here in DAGs, ADMGs and CPDAGs, but {min(odd)} leaves room for an unmeasured cause "
            "beside edges whose direction is open. Find the graph by a method without circles (boss, ges, pc), or "
            "direct its edges as you know them."
        )
    closed = meek(graph)
    if (dag := extension(closed)) is None:
        raise ConfigurationError(
            "No DAG is consistent with the pattern: its undirected edges cannot all be directed "
            "without a cycle or a new collider. Remove contradicting knowledge."
        )
    return closed, dag


def require_settled(graph: CausalGraph, treatment: str, outcome: str, others: Names = frozenset()) -> None:
    """Raise NotIdentifiable, naming the edge, if the class of a pattern does not settle the effect; ``others`` are
    treatments beside this one."""
    if (start := _undirected_start(graph, treatment, outcome, others)) is not None:
        raise NotIdentifiable(
            f"The effect of {treatment} on {outcome} differs within the class: the edge {treatment} - "
            f"{start} is undirected and may begin a causal path. Declare its direction as knowledge, or "
            "ask for the set of effects over the class."
        )


def _undirected_start(graph: CausalGraph, treatment: str, outcome: str, others: Names = frozenset()) -> str | None:
    """The first node of a possibly causal path that leaves treatment by an undirected edge and meets no ``others``."""
    avoiding = graph.parents(treatment) | {treatment} | others
    starts = sorted(graph.neighbours(treatment) - others)
    return next((s for s in starts if outcome in possible_descendants(graph, s, avoiding)), None)


def _forbidden(graph: CausalGraph, treatment: str, outcome: str) -> Names:
    # A parent of treatment lies on no possibly causal path from it, though background knowledge may leave the
    # edges along such a path undirected.
    avoiding = graph.parents(treatment) | {treatment}
    between = possible_descendants(graph, treatment, avoiding - {treatment}) - {treatment}
    causal = [node for node in between if outcome in possible_descendants(graph, node, avoiding)]
    return frozenset[str]().union(*(possible_descendants(graph, node) for node in causal))


def _causal_nodes(dag: CausalGraph, treatment: str, outcome: str) -> Names:
    return proper_causal_nodes(dag, {treatment}, {outcome})


def proper_causal_nodes(dag: CausalGraph, treatments: Collection[str], outcomes: Collection[str]) -> Names:
    """The nodes outside treatments on directed paths from them to outcomes that meet them at their start only."""
    into = mutilated(dag, into=treatments).ancestors(outcomes)
    return (mutilated(dag, into=treatments).descendants(treatments) & into) - set(treatments)


def proper_back_door(dag: CausalGraph, treatments: Collection[str], outcomes: Collection[str]) -> CausalGraph:
    causal = proper_causal_nodes(dag, treatments, outcomes)
    kept = [(a, b) for a, b in dag.directed if not (a in treatments and b in causal)]
    return CausalGraph.admg(kept, dag.bidirected, dag.nodes)


def _blocks(dag: CausalGraph, treatment: str, outcome: str, adjustment: Collection[str]) -> bool:
    # Amenable and nothing forbidden: then blocking in one DAG of the class is blocking in all of them.
    return proper_back_door(dag, {treatment}, {outcome}).d_separated([treatment], [outcome], adjustment)


def _with_latents(admg: CausalGraph, treatment: str, outcome: str) -> Names:
    """Runge's O = P ∪ C ∪ pa(C): P the parents of cn, C what collider paths from cn lead to."""
    causal = _causal_nodes(admg, treatment, outcome)
    chosen: Names | None
    if causal:
        forbidden = admg.descendants(causal) | {treatment}
        behind = _collider_nodes(admg, treatment, causal, forbidden, admg.ancestors([treatment, outcome]) - forbidden)
        chosen = _parents(admg, causal | behind) - forbidden | behind
        chosen = chosen if _blocks(admg, treatment, outcome, chosen) else None
    else:
        chosen = next(minimal_adjustment_sets(admg, treatment, outcome), None)
    if chosen is None:
        raise NotIdentifiable(
            f"No set of the graph's variables can be adjusted for to give the effect of {treatment} on {outcome}: "
            "latent common causes keep a path open. Ask identify, which knows more than adjustment, or measure one of "
            "them."
        )
    return chosen


def _collider_nodes(admg: CausalGraph, treatment: str, causal: Names, forbidden: Names, ancestral: Names) -> Names:
    """The nodes of valid collider paths w <-> c1 <-> … <-> ck, w in cn: each is outside forb and an ancestor of x
    or y, or else separated from x by those ancestors (Runge, 2021, definition 2)."""
    spouses: dict[str, set[str]] = {node: set() for node in admg.nodes}
    for a, b in admg.bidirected:
        spouses[a].add(b)
        spouses[b].add(a)
    reached, todo = set[str](), list(causal)
    while todo:
        for node in sorted(spouses[todo.pop()] - reached - forbidden):
            if node in ancestral or admg.d_separated(node, treatment, ancestral):
                reached.add(node)
                todo.append(node)
    return frozenset(reached)


def _parents(graph: CausalGraph, nodes: Collection[str]) -> Names:
    return frozenset[str]().union(*(graph.parents(node) for node in nodes))


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
