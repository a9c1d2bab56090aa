"""PC-stable on second moments or tables: a skeleton by tests of independence, then colliders, then Meek.

Spirtes & Glymour (1991); the order-independent skeleton is Colombo & Maathuis (2014), in `skeleton.py`, as are
majority colliders; conservative ones are Ramsey, Spirtes & Zhang (2006).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations

from causaldao.errors import MisuseError
from causaldao.models.discovery.blocks import standardised
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import Discovery
from causaldao.models.discovery.score import refuse_dependent
from causaldao.models.discovery.skeleton import Oracle, Skeleton, Usable, all_separating_sets, stable_skeleton
from causaldao.models.discovery.tables import Tables
from causaldao.models.graph import CausalGraph, Pair, Triple
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import meek, nearest_extension

Verdicts = dict[Triple, bool | None]

COLLIDERS = ("stable", "unanimous", "conservative", "majority")
PRIORITIES = ("independence", "name")


def pc(
    evidence: Evidence | Tables,
    alpha: float = 0.01,
    knowledge: Knowledge = NONE,
    colliders: str = COLLIDERS[0],
    priority: str = PRIORITIES[0],
) -> Discovery:
    """Find the CPDAG by PC-stable at level ``alpha``: two-sided Fisher z tests, on tables G² tests.

    At each level every pair still adjacent is tested given all sets of that size from the adjacencies, at the
    start of the level, of either end; it is separated if a test does not reject, and the set of the least
    statistic separates it. So neither the columns' order nor that of the tests matters. Knowledge prunes:
    pairs it excludes or requires are never tested, and what cannot be a parent is never conditioned on.

    ``colliders`` says when a - c - b, a and b not adjacent, is taken for a collider: if c is not in the set that
    separates a and b ("stable"); if c is in none of the sets of the level that separated them ("unanimous", the
    rule of causal-learn); or by all subsets of the final adjacencies of a and of b that separate them: a collider
    if c is in none, none if it is in all, else ambiguous ("conservative"); a collider if c is in less than half,
    none if in more, ambiguous at exactly half ("majority"). The last two run a number of tests that is
    exponential in the adjacencies. From ambiguous triples nothing is concluded; they are listed.

    Colliders enter in order of how independent their ends are, or, with ``priority`` "name", in that of their
    middles' names and then their ends'; one that contradicts an edge directed before it is left out and listed in
    ``conflicts``.

    With no more records than variables no test has a set larger than n - 4. Under noise that leaves a residual
    without positive variance a test has no power: it separates nothing, and the edge stays.

    Raises:
        MisuseError: alpha is not in (0, 1), or there is no such rule for colliders or for their priority.
        DataError: fewer than four records; exact evidence whose variables are linearly dependent, though it has
            more records than variables, or of which a test that is asked for does not exist.
        ConfigurationError: the knowledge names unknown variables.
    """
    if colliders not in COLLIDERS:
        raise MisuseError(f"colliders is {colliders!r}. The rules are {', '.join(COLLIDERS)}.")
    if priority not in PRIORITIES:
        raise MisuseError(f"priority is {priority!r}. Colliders enter by {' or by '.join(PRIORITIES)}.")
    found = _search(Oracle.of(evidence, alpha, "PC"), evidence.names, knowledge, colliders, priority)
    # after the search, which names the set if a test meets it
    if isinstance(evidence, Evidence) and evidence.count > evidence.d:
        refuse_dependent(evidence, standardised(evidence))
    return found


def _search(
    oracle: Oracle, names: Sequence[str], knowledge: Knowledge, colliders: str, priority: str = PRIORITIES[0]
) -> Discovery:
    knowledge.check(names)

    pairs = list(combinations(oracle.names, 2))
    if knowledge:
        pairs = [pair for pair in pairs if not knowledge.adjacency_excluded(*pair)]
    usable: Usable | None = (lambda a, b, c: knowledge.conditioning_allowed(a, c)) if knowledge else None
    found = stable_skeleton(oracle, pairs, knowledge.requires if knowledge else None, usable)
    bare = CausalGraph.cpdag(undirected=found.pairs, nodes=names)
    triples = [triple for triple in bare.unshielded_triples() if (triple[0], triple[2]) in found.separated]
    verdicts = _verdicts(colliders, oracle, found, triples, usable)
    graph, conflicts = _orient(bare, found, verdicts, knowledge, priority)
    kept = {given: frozenset(given) for given in {test.given for test in found.separated.values()}}
    sets = {pair: kept[test.given] for pair, test in found.separated.items()}
    ambiguous = frozenset(triple for triple, verdict in verdicts.items() if verdict is None)
    return Discovery(graph, frozenset(found.near), sets, conflicts, ambiguous, oracle.notes())


def pattern_of(names: Sequence[str], skeleton: Skeleton, knowledge: Knowledge) -> tuple[CausalGraph, frozenset[Triple]]:
    """The CPDAG of a skeleton by its separating sets (the rule "stable"), and its conflicts, as in `pc`."""
    bare = CausalGraph.cpdag(undirected=skeleton.pairs, nodes=names)
    ends = skeleton.separated
    verdicts: Verdicts = {
        (a, c, b): c not in ends[a, b].given for a, c, b in bare.unshielded_triples() if (a, b) in ends
    }
    return _orient(bare, skeleton, verdicts, knowledge, PRIORITIES[0])


def _verdicts(rule: str, oracle: Oracle, found: Skeleton, triples: Iterable[Triple], usable: Usable | None) -> Verdicts:
    """Of each unshielded triple whether it is a collider, None if that is ambiguous.

    A pair that no subset of its final adjacencies separates is judged by the set that separated it.
    """
    asked = list(triples)
    sets: dict[Pair, list[tuple[str, ...]]] = {}
    if rule == "unanimous":
        sets = found.several()
    elif rule != "stable":
        sets = all_separating_sets(oracle, found, {(a, b) for a, _, b in asked}, usable)
    verdicts: Verdicts = {}
    for a, c, b in asked:
        holds = [c in given for given in sets.get((a, b)) or [found.separated[a, b].given]]
        within, half = sum(holds), len(holds) / 2
        if rule == "unanimous" or within in (0, len(holds)):
            verdicts[a, c, b] = not within
        else:
            verdicts[a, c, b] = None if rule == "conservative" or within == half else within < half
    return verdicts


def _orient(
    bare: CausalGraph, skeleton: Skeleton, verdicts: Verdicts, knowledge: Knowledge, priority: str
) -> tuple[CausalGraph, frozenset[Triple]]:
    """Direct by knowledge, then by colliders, then close, so that some DAG has all arrows and what is not open."""
    arrows = {(a, b) for p in skeleton.pairs for a, b in (p, p[::-1]) if not knowledge.allows(b, a)}
    ambiguous = {triple for triple, verdict in verdicts.items() if verdict is None}
    wanted = {triple for triple, verdict in verdicts.items() if verdict}
    if priority == "name":
        ranked = sorted(wanted, key=lambda triple: (triple[1], triple))
    else:
        ranked = sorted(wanted, key=lambda triple: (skeleton.separated[triple[0], triple[2]].statistic, triple))
    graph = _completed(_admit(bare, arrows, ranked), arrows, ambiguous)
    found = {triple for triple in graph.unshielded_colliders() if triple in verdicts} - ambiguous
    return graph, frozenset(found ^ wanted)


def _admit(bare: CausalGraph, arrows: set[Pair], colliders: Iterable[Triple]) -> CausalGraph:
    """Direct the knowledge's arrows, then each collider that neither reverses an arrow nor closes a cycle."""
    held = set(arrows)
    below: dict[str, set[str]] = {node: set() for node in bare.nodes}
    for a, b in held:
        below[a].add(b)
    for a, c, b in colliders:
        new = {(a, c), (b, c)} - held
        if (c, a) not in held and (c, b) not in held and not _reaches(below, c, {end for end, _ in new}):
            held |= new
            below[a].add(c)
            below[b].add(c)
    return _directed(bare, held)


def _reaches(below: Mapping[str, set[str]], c: str, ends: set[str]) -> bool:
    """Whether a directed path leads from c to one of the ends."""
    seen, todo = {c}, [c]
    while todo:
        found = below[todo.pop()] - seen
        if found & ends:
            return True
        seen |= found
        todo.extend(found)
    return False


def _directed(bare: CausalGraph, arrows: set[Pair]) -> CausalGraph:
    lines = [pair for pair in bare.skeleton() if pair not in arrows and pair[::-1] not in arrows]
    return CausalGraph.cpdag(arrows, lines, bare.nodes)


def _completed(marked: CausalGraph, arrows: set[Pair], ambiguous: Collection[Triple]) -> CausalGraph:
    """Close the marks. If no DAG has exactly them, the colliders of the nearest one take their place."""
    dag, added = nearest_extension(marked)
    kept = dag.unshielded_colliders() - (added & frozenset(ambiguous))
    colliders = {(end, c) for a, c, b in kept for end in (a, b)}
    return meek(_directed(marked, colliders | arrows), ambiguous)
