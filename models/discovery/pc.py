"""PC-stable on second moments: a skeleton by tests of partial correlation, then colliders, then Meek.

Spirtes & Glymour (1991); the order-independent skeleton is Colombo & Maathuis (2014), in `skeleton.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import Discovery
from causaldao.models.discovery.skeleton import Answer, Oracle, stable_skeleton
from causaldao.models.graph import CausalGraph, Pair, Triple
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import meek, nearest_extension


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
    oracle = Oracle.of(evidence, alpha, "PC")
    knowledge.check(evidence.names)
    pairs = [pair for pair in combinations(oracle.names, 2) if not knowledge.adjacency_excluded(*pair)]
    found = stable_skeleton(oracle, pairs, knowledge.requires, lambda a, b, c: knowledge.conditioning_allowed(a, c))
    graph, conflicts = orient(evidence.names, found.pairs, found.separated, knowledge)
    sets = {pair: frozenset(test.given) for pair, test in found.separated.items()}
    return Discovery(graph, frozenset(found.near), sets, conflicts)


def orient(
    names: Sequence[str], skeleton: set[Pair], separated: Mapping[Pair, Answer], knowledge: Knowledge
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
