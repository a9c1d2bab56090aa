"""PC-stable on second moments or tables: a skeleton by tests of independence, then colliders, then Meek.

Spirtes & Glymour (1991); the order-independent skeleton is Colombo & Maathuis (2014), in `skeleton.py`. The
conservative rule for colliders is Ramsey et al. (2006), the majority rule Colombo & Maathuis (2014).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal, get_args

from causaldao.errors import MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import NEAR, Discovery
from causaldao.models.discovery.skeleton import Answer, Oracle, Skeleton, stable_skeleton
from causaldao.models.discovery.tables import Tables
from causaldao.models.graph import CausalGraph, Pair, Triple
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import meek, nearest_extension

Colliders = Literal["least", "conservative", "majority"]


def pc(
    evidence: Evidence | Tables, alpha: float = 0.01, knowledge: Knowledge = NONE, colliders: Colliders = "least"
) -> Discovery:
    """Find the CPDAG by PC-stable at level ``alpha``: two-sided Fisher z tests, on tables G² tests.

    At each level every pair still adjacent is tested given all sets of that size from the adjacencies, at the
    start of the level, of either end; it is separated if a test does not reject, and the set of the least
    statistic separates it. So neither the columns' order nor that of the tests matters. Knowledge prunes:
    pairs it excludes or requires are never tested, and what cannot be a parent is never conditioned on.
    Colliders enter in order of how independent their ends are; one that contradicts an edge directed before
    it is left out and listed in ``conflicts``.

    An unshielded a - c - b is a collider by the rule ``colliders``: "least" if c is not in the set that separates a
    and b; else all sets of the adjacencies of a, and of b, are tried, of which those that separate a and b must hold
    c never ("conservative") or in less than half of them ("majority"). What then is neither a collider nor the
    opposite, by the same rule, is listed in ``ambiguous`` and directed as if it were no collider.

    Raises:
        MisuseError: alpha is not in (0, 1), or no such rule.
        DataError: fewer than four records, or exact evidence whose variables are linearly dependent.
        ConfigurationError: the knowledge names unknown variables.
    """
    if colliders not in get_args(Colliders):
        raise MisuseError(f"There is no rule {colliders!r} for colliders. They are {', '.join(get_args(Colliders))}.")
    oracle = Oracle.of(evidence, alpha, "PC")
    knowledge.check(evidence.names)
    pairs = [pair for pair in combinations(oracle.names, 2) if not knowledge.adjacency_excluded(*pair)]
    found = stable_skeleton(oracle, pairs, knowledge.requires, lambda a, b, c: knowledge.conditioning_allowed(a, c))
    holding = _holding(oracle, found, knowledge, colliders)
    wanted = [triple for triple, share in holding.items() if _collides(share, colliders)]
    graph, conflicts = _orient(evidence.names, found.pairs, found.separated, wanted, knowledge)
    sets = {pair: frozenset(test.given) for pair, test in found.separated.items()}
    ambiguous = frozenset(triple for triple, share in holding.items() if _undecided(share, colliders))
    return Discovery(graph, frozenset(found.near), sets, conflicts, ambiguous, oracle.notes())


def _holding(oracle: Oracle, found: Skeleton, knowledge: Knowledge, rule: Colliders) -> dict[Triple, float]:
    """Of each unshielded triple (a, c, b) whose ends tests separated: how large a share of the separating sets hold c.

    Of the rule "least" the one set is meant. Where no set of the final adjacencies separates, it is that set too.
    """
    bare = CausalGraph.cpdag(undirected=found.pairs, nodes=oracle.names)
    triples = [(a, c, b) for a, c, b in bare.unshielded_triples() if (a, b) in found.separated]
    sets = {(a, b): [found.separated[a, b].given] for a, _, b in triples}
    if rule != "least":
        sets |= {pair: tried for pair, tried in _all_separating(oracle, found, knowledge, set(sets)).items() if tried}
    return {(a, c, b): sum(c in given for given in sets[a, b]) / len(sets[a, b]) for a, c, b in triples}


def _all_separating(
    oracle: Oracle, found: Skeleton, knowledge: Knowledge, pairs: set[Pair]
) -> dict[Pair, list[tuple[str, ...]]]:
    """All sets, of the adjacencies that may cause either end, that separate each of the pairs."""
    around = found.around(oracle.names)
    sides = {
        (a, b): [[c for c in around[end] if knowledge.conditioning_allowed(end, c)] for end in (a, b)]
        for a, b in sorted(pairs)
    }
    most = max((len(side) for both in sides.values() for side in both), default=-1)
    separating: dict[Pair, list[tuple[str, ...]]] = {pair: [] for pair in sides}
    for level in range(min(most, oracle.largest) + 1):
        questions = (
            (pair, given)
            for pair, both in sides.items()
            for given in dict.fromkeys(given for side in both for given in combinations(side, level))
        )
        for answer in oracle.run(questions, level):
            if abs(answer.statistic - oracle.critical) < NEAR:
                found.near.add(answer.pair)
            if answer.statistic <= oracle.critical:
                separating[answer.pair].append(answer.given)
    return separating


def _collides(share: float, rule: Colliders) -> bool:
    return share < 0.5 if rule == "majority" else share == 0


def _undecided(share: float, rule: Colliders) -> bool:
    return share == 0.5 if rule == "majority" else 0 < share < 1


def _orient(
    names: Sequence[str],
    skeleton: set[Pair],
    separated: Mapping[Pair, Answer],
    colliders: Iterable[Triple],
    knowledge: Knowledge,
) -> tuple[CausalGraph, frozenset[Triple]]:
    """Direct by knowledge, then by colliders, then close, so that the outcome always has an extension."""
    bare = CausalGraph.cpdag(undirected=skeleton, nodes=names)
    arrows = {(a, b) for p in skeleton for a, b in (p, p[::-1]) if not knowledge.allows(b, a)}
    wanted = [(separated[a, b].statistic, (a, c, b)) for a, c, b in colliders]
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
