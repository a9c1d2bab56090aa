"""FCI and RFCI on second moments: a PAG, where variables may share causes that were not measured.

FCI (Spirtes et al., 1999) begins with the skeleton of PC-stable, with circles at all ends and with the unshielded
colliders. Latent causes can hide what separates two variables from their adjacencies, so each edge is tested
again given subsets of *possible d-separating sets*; both steps are order-independent (Colombo & Maathuis, 2014).
Then colliders are found anew and the rules of Zhang (2008) close the marks.

RFCI (Colombo et al., 2012) leaves those tests out, which are many, and instead tests each edge of an unshielded triple
and of a discriminating path before it relies on it. It is much faster; its graph may have more edges, and what its
marks say of causes holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import combinations, pairwise

from causaldao.models.discovery.blocks import standardised
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import NEAR, Discovery
from causaldao.models.discovery.orientation import Marks, Path, Vetoed, close
from causaldao.models.discovery.score import refuse_dependent
from causaldao.models.discovery.skeleton import Oracle, Question, Skeleton, stable_skeleton
from causaldao.models.graph import ARROW, Pair, Triple
from causaldao.models.knowledge import NONE, Knowledge


def fci(evidence: Evidence, alpha: float = 0.01, knowledge: Knowledge = NONE) -> Discovery:
    """Find the PAG by FCI with two-sided Fisher z tests at level ``alpha``.

    Knowledge is of the graph that is found. A required a -> b is there, and never tested. Where a -> b may not
    be, an edge has an arrowhead at a; where neither may be, it is a <-> b, since a latent cause is not
    ruled out. What comes in a later tier than both variables of a test is never conditioned on. The number of
    tests grows exponentially with the size of the possible d-separating sets: with more than some twenty
    densely joined variables take `rfci`. Listed as conflicts are colliders and arrows that knowledge or the rest
    of the graph contradicts; their ends keep the marks they had.

    Raises:
        MisuseError: alpha is not in (0, 1).
        DataError: fewer than four records, or exact evidence whose variables are linearly dependent.
        ConfigurationError: the knowledge names unknown variables.
    """
    return _search(_oracle(evidence, alpha, knowledge, "FCI"), evidence.names, knowledge)


def rfci(evidence: Evidence, alpha: float = 0.01, knowledge: Knowledge = NONE) -> Discovery:
    """As `fci`, by the fewer tests of RFCI."""
    return _search_fast(_oracle(evidence, alpha, knowledge, "RFCI"), evidence.names, knowledge)


def _oracle(evidence: Evidence, alpha: float, knowledge: Knowledge, method: str) -> Oracle:
    oracle = Oracle.of(evidence, alpha, method)
    knowledge.check(evidence.names)
    refuse_dependent(evidence, standardised(evidence))
    return oracle


def _search(oracle: Oracle, names: tuple[str, ...], knowledge: Knowledge) -> Discovery:
    found = _skeleton(oracle, knowledge)
    marks = Marks.of(oracle.names, found.pairs, knowledge)
    for triple in _colliders(marks, found):
        marks.collide(*triple)
    _separate_further(oracle, found, marks, knowledge)
    marks = Marks.of(oracle.names, found.pairs, knowledge)
    for triple in _colliders(marks, found):
        marks.collide(*triple)
    close(marks, _sets(found))
    return _discovery(marks, found, names)


def _skeleton(oracle: Oracle, knowledge: Knowledge) -> Skeleton:
    return stable_skeleton(
        oracle,
        combinations(oracle.names, 2),
        knowledge.requires,
        lambda a, b, c: knowledge.in_time(c, a) or knowledge.in_time(c, b),
    )


def _colliders(marks: Marks, found: Skeleton) -> list[Triple]:
    """R0: the unshielded triples whose middle is not in the set that separates the ends."""
    return [(a, c, b) for a, c, b in marks.unshielded() if c not in found.separated[a, b].given]


def _sets(found: Skeleton) -> dict[Pair, frozenset[str]]:
    return {pair: frozenset(answer.given) for pair, answer in found.separated.items()}


def _discovery(marks: Marks, found: Skeleton, names: tuple[str, ...]) -> Discovery:
    return Discovery(marks.graph(names), frozenset(found.near), _sets(found), frozenset(marks.conflicts))


def _separate_further(oracle: Oracle, found: Skeleton, marks: Marks, knowledge: Knowledge) -> None:
    """Test each edge given the subsets of its possible d-separating sets, level by level."""
    around = {name: frozenset(others) for name, others in found.around(oracle.names).items()}
    possible = {name: _possible_d_sep(marks, name) for name in oracle.names}
    beyond: dict[Pair, list[tuple[list[str], frozenset[str]]]] = {}
    for pair in sorted(found.pairs):
        sides = []
        for a, b in (pair, pair[::-1]):
            usable = [c for c in possible[a] - {b} if knowledge.in_time(c, a) or knowledge.in_time(c, b)]
            if not around[a].issuperset(usable):
                sides.append((sorted(usable), around[a]))
        if sides and not knowledge.requires(*pair):
            beyond[pair] = sides
    for level in range(1, oracle.largest + 1):
        left = {pair: sides for pair, sides in beyond.items() if pair in found.pairs}
        if all(len(usable) < level for sides in left.values() for usable, _ in sides):
            break
        found.test(oracle, _further_questions(left, level), level)


def _further_questions(beyond: Mapping[Pair, list[tuple[list[str], frozenset[str]]]], level: int) -> Iterator[Question]:
    """Each pair with each set of that size, none twice, and none that the adjacencies of its end offered before."""
    for pair, sides in beyond.items():
        sets = (
            given for usable, known in sides for given in combinations(usable, level) if not known.issuperset(given)
        )
        yield from ((pair, given) for given in dict.fromkeys(sets))


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
        for triple in _colliders(marks, found):
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
        found.test(oracle, ((pair, given) for given in combinations(sorted(among), level)), level)
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
