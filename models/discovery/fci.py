"""FCI and RFCI on second moments or tables: a PAG, where variables may share causes that were not measured.

FCI (Spirtes et al., 1999) begins with the skeleton of PC-stable, with circles at all ends and with the unshielded
colliders. Latent causes can hide what separates two variables from their adjacencies, so each edge is tested
again given subsets of *possible d-separating sets*; both steps are order-independent (Colombo & Maathuis, 2014).
Then colliders are found anew and the rules of Zhang (2008) close the marks.

RFCI (Colombo et al., 2012) leaves those tests out, which are many, and instead tests each edge of an unshielded triple
and of a discriminating path before it relies on it. It is much faster; its graph may have more edges, and what its
marks say of causes holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import combinations, pairwise

from causaldao.errors import MisuseError
from causaldao.models.discovery.blocks import standardised
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import NEAR, Discovery
from causaldao.models.discovery.orientation import Marks, Path, Sets, Vetoed, close
from causaldao.models.discovery.score import refuse_dependent
from causaldao.models.discovery.skeleton import Ask, Oracle, Skeleton, stable_skeleton
from causaldao.models.discovery.tables import Tables
from causaldao.models.graph import ARROW, Pair, Triple
from causaldao.models.knowledge import NONE, Knowledge

COLLIDERS = ("stable", "unanimous")


def fci(
    evidence: Evidence | Tables, alpha: float = 0.01, knowledge: Knowledge = NONE, colliders: str = COLLIDERS[0]
) -> Discovery:
    """Find the PAG by FCI at level ``alpha``: two-sided Fisher z tests, on tables G² tests.

    Knowledge is of the graph that is found. A required a -> b is there, and never tested. Where a -> b may not
    be, an edge has an arrowhead at a; where neither may be, it is a <-> b, since a latent cause is not
    ruled out. What comes in a later tier than both variables of a test is never conditioned on. The number of
    tests grows exponentially with the size of the possible d-separating sets: with more than some twenty
    densely joined variables take `rfci`. Of a and b that are not adjacent the set of least dependence decides what is
    a collider between them ("stable") or whether any set of the size that separated them holds it ("unanimous", the
    rule of causal-learn). A test to which noise leaves no positive variance separates nothing. Listed as conflicts
    are colliders and arrows that knowledge or the rest of the graph contradicts; their ends keep the marks they had.

    Raises:
        MisuseError: alpha is not in (0, 1), or there is no such rule for colliders.
        DataError: fewer than four records, or exact evidence whose variables are linearly dependent.
        ConfigurationError: the knowledge names unknown variables.
    """
    if colliders not in COLLIDERS:
        raise MisuseError(f"colliders is {colliders!r}. The rules of FCI are {', '.join(COLLIDERS)}.")
    oracle = _oracle(evidence, alpha, knowledge, "FCI")
    return replace(_search(oracle, evidence.names, knowledge, colliders), notes=oracle.notes())


def rfci(evidence: Evidence | Tables, alpha: float = 0.01, knowledge: Knowledge = NONE) -> Discovery:
    """As `fci`, by the fewer tests of RFCI."""
    oracle = _oracle(evidence, alpha, knowledge, "RFCI")
    return replace(_search_fast(oracle, evidence.names, knowledge), notes=oracle.notes())


def _oracle(evidence: Evidence | Tables, alpha: float, knowledge: Knowledge, method: str) -> Oracle:
    oracle = Oracle.of(evidence, alpha, method)
    knowledge.check(evidence.names)
    if isinstance(evidence, Evidence):
        refuse_dependent(evidence, standardised(evidence))
    return oracle


def _search(oracle: Oracle, names: tuple[str, ...], knowledge: Knowledge, colliders: str = COLLIDERS[0]) -> Discovery:
    found = _skeleton(oracle, knowledge)
    marks = Marks.of(oracle.names, found.pairs, knowledge)
    for triple in _colliders(marks, _sets(found, colliders)):
        marks.collide(*triple)
    _separate_further(oracle, found, marks, knowledge)
    marks, sets = Marks.of(oracle.names, found.pairs, knowledge), _sets(found, colliders)
    for triple in _colliders(marks, sets):
        marks.collide(*triple)
    close(marks, sets)
    return _discovery(marks, found, names)


def _skeleton(oracle: Oracle, knowledge: Knowledge) -> Skeleton:
    return stable_skeleton(
        oracle,
        combinations(oracle.names, 2),
        knowledge.requires,
        lambda a, b, c: knowledge.in_time(c, a) or knowledge.in_time(c, b),
    )


def _colliders(marks: Marks, sets: Sets) -> list[Triple]:
    """R0: the unshielded triples whose middle is not in the set that separates the ends."""
    return [(a, c, b) for a, c, b in marks.unshielded() if c not in sets[a, b]]


def _sets(found: Skeleton, colliders: str = COLLIDERS[0]) -> dict[Pair, frozenset[str]]:
    """Of each pair the set that separates it, or the union of all that did."""
    if colliders == "unanimous":
        several = found.several()
        return {pair: frozenset(a.given).union(*several.get(pair, ())) for pair, a in found.separated.items()}
    return {pair: frozenset(answer.given) for pair, answer in found.separated.items()}


def _discovery(marks: Marks, found: Skeleton, names: tuple[str, ...]) -> Discovery:
    return Discovery(marks.graph(names), frozenset(found.near), _sets(found), frozenset(marks.conflicts))


def _separate_further(oracle: Oracle, found: Skeleton, marks: Marks, knowledge: Knowledge) -> None:
    """Test each edge given the subsets of its possible d-separating sets, level by level; not given those that the
    adjacencies of one of its ends offered before.
    """
    around = {name: frozenset(others) for name, others in found.around(oracle.names).items()}
    possible = {name: _possible_d_sep(marks, name) for name in oracle.names}
    beyond: dict[Pair, list[tuple[list[str], list[frozenset[str]]]]] = {}
    for pair in sorted(found.pairs):
        sides: list[tuple[list[str], list[frozenset[str]]]] = []
        offered = [around[name] for name in pair]
        for a, b in (pair, pair[::-1]):
            usable = frozenset(c for c in possible[a] - {b} if knowledge.in_time(c, a) or knowledge.in_time(c, b))
            if not any(one.issuperset(usable) for one in offered):
                sides.append((sorted(usable), list(offered)))
            offered.append(usable)
        if sides and not knowledge.requires(*pair):
            beyond[pair] = sides
    for level in range(1, oracle.largest + 1):
        left = {pair: sides for pair, sides in beyond.items() if pair in found.pairs}
        if all(len(usable) < level for sides in left.values() for usable, _ in sides):
            break
        found.test(oracle, [Ask(pair, sides) for pair, sides in left.items()], level)


def _possible_d_sep(marks: Marks, a: str) -> frozenset[str]:
    """The nodes that a path joins to a on which each inner node is a collider or in a triangle with its neighbours."""
    todo = [(a, b) for b in marks.around(a)]
    seen = set(todo)
    for before, node in todo:
        for following in marks.around(node):
            step = (node, following)
            if following in (a, before) or step in seen:
                continue
            collider = marks.at[before][node] == ARROW == marks.at[following][node]
            if collider or marks.adjacent(before, following):
                seen.add(step)
                todo.append(step)
    return frozenset(node for _, node in seen) - {a}


def _search_fast(oracle: Oracle, names: tuple[str, ...], knowledge: Knowledge) -> Discovery:
    found = _skeleton(oracle, knowledge)
    while True:
        _check_triples(oracle, found, knowledge)
        marks = Marks.of(oracle.names, found.pairs, knowledge)
        for triple in _colliders(marks, _sets(found)):
            marks.collide(*triple)
        try:
            close(marks, _sets(found), lambda path, given: not _break(oracle, found, knowledge, path, given))
        except Vetoed:
            continue
        return _discovery(marks, found, names)


def _check_triples(oracle: Oracle, found: Skeleton, knowledge: Knowledge) -> None:
    """Take away each edge of an unshielded triple that the set of its ends, without its middle, separates
    (Colombo et al., 2012, lemma 3.1), until all triples pass.
    """
    checked: set[Triple] = set()
    while True:
        marks = Marks.of(oracle.names, found.pairs, NONE)
        new = [triple for triple in marks.unshielded() if triple not in checked]
        if not new:
            return
        checked.update(new)
        for a, c, b in new:
            if not {_sorted(a, c), _sorted(b, c)} <= found.pairs:
                continue
            given = frozenset(found.separated[a, b].given) - {c}
            for end in (a, b):
                _separate_within(oracle, found, knowledge, _sorted(end, c), [given], given)


def _break(oracle: Oracle, found: Skeleton, knowledge: Knowledge, path: Path, given: Collection[str]) -> bool:
    """Take away the edges of a discriminating path that a subset of the set of its ends separates (lemma 3.2);
    whether there is one.
    """
    before = set(found.pairs)
    for a, b in pairwise(path):
        rest = frozenset(given) - {a, b}
        _separate_within(oracle, found, knowledge, _sorted(a, b), _subsets(rest), rest)
    return found.pairs != before


def _separate_within(
    oracle: Oracle,
    found: Skeleton,
    knowledge: Knowledge,
    pair: Pair,
    tried: Iterable[frozenset[str]],
    among: frozenset[str],
) -> None:
    """If one of the sets tried separates the pair, separate it by the best of the smallest such sets ``among``."""
    if pair not in found.pairs or knowledge.requires(*pair):
        return
    if not any(_independent(oracle, found, pair, given) for given in tried):
        return
    for level in range(len(among) + 1):
        found.test(oracle, [Ask(pair, [(sorted(among), ())])], level)
        if pair not in found.pairs:
            return


def _independent(oracle: Oracle, found: Skeleton, pair: Pair, given: Collection[str]) -> bool:
    if len(given) > oracle.largest:
        return False
    (answer,) = oracle.run(iter([(pair, tuple(sorted(given)))]), len(given))
    if abs(answer.statistic - oracle.critical) < NEAR:
        found.near.add(pair)
    return answer.statistic <= oracle.critical


def _subsets(names: frozenset[str]) -> Iterator[frozenset[str]]:
    return (frozenset(chosen) for level in range(len(names) + 1) for chosen in combinations(sorted(names), level))


def _sorted(a: str, b: str) -> Pair:
    return min(a, b), max(a, b)
