"""Marks of a PAG from its skeleton and its colliders: the rules R1 to R10 of Zhang (2008).

A partial ancestral graph shows what the maximal ancestral graphs of a Markov equivalence class share: a mark
is a tail or an arrowhead iff all of them have it there, else a circle. a -> b says that a causes b, directly or
through others; an arrowhead at a says that a does not cause the other end; a <-> b that something unmeasured
causes both. The rules find all marks that independence settles (Zhang, 2008, theorem 4), R5 to R7 those of
selection into the data: a - b. With knowledge what they find is right, but may not be all.

In the rules' statements ``*`` is any mark, ``a *-> b`` has an arrowhead at b.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise, permutations

from causaldao.models.graph import ARROW, CIRCLE, TAIL, CausalGraph, Pair, Triple
from causaldao.models.knowledge import Knowledge

Path = tuple[str, ...]
Sets = Mapping[Pair, Collection[str]]


class Vetoed(Exception):
    """A discriminating path was refused; the orientation must begin again."""


@dataclass(frozen=True)
class Marks:
    """The marks so far: ``at[a][b]`` is the mark at b of the edge between a and b.

    A mark once set is never changed, and an arrow that would close a directed cycle is not drawn: either, which
    only errors of tests bring about, is listed in ``conflicts``.
    """

    at: dict[str, dict[str, str]]
    conflicts: set[Triple] = field(default_factory=set)

    @classmethod
    def of(cls, names: Sequence[str], pairs: Iterable[Pair], knowledge: Knowledge) -> Marks:
        """Circles but where the knowledge speaks: a -> b if required, an arrowhead at a if a -> b may not be."""
        marks = cls({name: {} for name in sorted(names)})
        for pair in sorted(pairs):
            for a, b in (pair, pair[::-1]):
                marks.at[b][a] = CIRCLE if knowledge.allows(a, b) else ARROW
                if (a, b) in knowledge.required:
                    marks.at[b][a] = TAIL
        return marks

    def adjacent(self, a: str, b: str) -> bool:
        return b in self.at[a]

    def around(self, a: str) -> list[str]:
        """The adjacencies of a, sorted."""
        return sorted(self.at[a])

    def edge(self, a: str, b: str, ends: str) -> bool:
        """Whether a and b are joined with these marks at a and b; ``*`` stands for any."""
        return b in self.at[a] and ends[0] in (self.at[b][a], "*") and ends[1] in (self.at[a][b], "*")

    def set(self, a: str, b: str, mark: str, why: str) -> bool:
        """Set the circle at b of the edge from a; whether it was one. ``why`` is a third variable, for conflicts."""
        if self.at[a][b] == mark:
            return False
        below = self._closing(a, b, mark)
        if self.at[a][b] != CIRCLE or below is not None:
            self.conflicts.add((min(a, b), below or why, max(a, b)))
            return False
        self.at[a][b] = mark
        return True

    def set_all(self, marks: Iterable[tuple[str, str, str]], why: str) -> bool:
        """`set` each; whether any was a circle."""
        changed = False
        for a, b, mark in marks:
            changed |= self.set(a, b, mark, why)
        return changed

    def collide(self, a: str, c: str, b: str) -> None:
        """a *-> c <-* b, unless it contradicts a tail that is known."""
        if TAIL in (self.at[a][c], self.at[b][c]):
            self.conflicts.add((min(a, b), c, max(a, b)))
            return
        self.set(a, c, ARROW, b)
        self.set(b, c, ARROW, a)

    def graph(self, nodes: Sequence[str]) -> CausalGraph:
        pairs = [(a, b) for a, others in self.at.items() for b in others if a < b]
        return CausalGraph.pag({(a, b): (self.at[b][a], self.at[a][b]) for a, b in pairs}, nodes)

    def unshielded(self) -> list[Triple]:
        """The paths (a, c, b), a < b, whose ends are not adjacent."""
        return [(a, c, b) for c in self.at for a, b in combinations(self.around(c), 2) if not self.adjacent(a, b)]

    def _closing(self, a: str, b: str, mark: str) -> str | None:
        """The last but one of a directed path that the mark at b of the edge from a would close to a cycle."""
        if mark == ARROW and self.at[b][a] == TAIL:
            start, end = b, a
        elif mark == TAIL and self.at[b][a] == ARROW:
            start, end = a, b
        else:
            return None
        seen, todo = {start}, [start]
        while todo:
            node = todo.pop()
            children = [c for c in self.around(node) if self.edge(node, c, "->")]
            if end in children and node != start:
                return node
            todo += [c for c in children if c not in seen and c != end]
            seen |= set(todo)
        return None


def close(marks: Marks, separating: Sets, stands: Callable[[Path, Collection[str]], bool] | None = None) -> None:
    """Apply R1 to R10 until none applies.

    ``separating`` has a set for each pair that is not adjacent. ``stands`` may refuse a discriminating path
    and the set that separates its ends.

    Raises:
        Vetoed: a discriminating path was refused.
    """

    def settle(marks: Marks) -> bool:
        return _discriminate(marks, separating, stands)

    stages = [(_heads, settle), (_circle_cycles,), (_beside_lines,), (_tails,)]
    changed = True
    while changed:
        changed = False
        for stage in stages:
            while _apply(marks, stage):
                changed = True


def _apply(marks: Marks, rules: Sequence[Callable[[Marks], bool]]) -> bool:
    changed = False
    for rule in rules:
        changed |= rule(marks)
    return changed


def _heads(marks: Marks) -> bool:
    """R1 to R3."""
    changed = False
    for b in marks.at:
        for a, c in permutations(marks.around(b), 2):
            changed |= _r1(marks, a, b, c) or _r2(marks, a, b, c)
        for a, c in combinations(marks.around(b), 2):
            changed |= _r3(marks, a, b, c)
    return changed


def _r1(marks: Marks, a: str, b: str, c: str) -> bool:
    """a *-> b o-* c, a and c not adjacent: b -> c, since else b were a collider."""
    if not (marks.edge(a, b, "*>") and marks.edge(b, c, "o*") and not marks.adjacent(a, c)):
        return False
    return marks.set_all([(b, c, ARROW), (c, b, TAIL)], a)


def _r2(marks: Marks, a: str, b: str, c: str) -> bool:
    """a -> b *-> c or a *-> b -> c, and a *-o c: a *-> c, since else there were an (almost) directed cycle."""
    path = (marks.edge(a, b, "->") and marks.edge(b, c, "*>")) or (marks.edge(a, b, "*>") and marks.edge(b, c, "->"))
    return path and marks.edge(a, c, "*o") and marks.set(a, c, ARROW, b)


def _r3(marks: Marks, a: str, b: str, c: str) -> bool:
    """a *-> b <-* c, a *-o t o-* c, a and c not adjacent, t *-o b: t *-> b."""
    if marks.adjacent(a, c) or not (marks.edge(a, b, "*>") and marks.edge(c, b, "*>")):
        return False
    found = [t for t in marks.around(b) if marks.edge(t, b, "*o") and marks.edge(a, t, "*o") and marks.edge(c, t, "*o")]
    return marks.set_all([(t, b, ARROW) for t in found], a)


def _discriminate(marks: Marks, separating: Sets, stands: Callable[[Path, Collection[str]], bool] | None) -> bool:
    """R4: a path discriminates between its ends for b, its last but one, and b o-* c, c its last: b -> c if b
    stands in the set that separates the ends, else a <-> b <-> c.
    """
    changed = False
    for b in marks.at:
        for c in marks.around(b):
            path = _discriminating_path(marks, b, c) if marks.edge(b, c, "o*") else None
            if path is None:
                continue
            given = separating[min(path[0], c), max(path[0], c)]
            if stands is not None and not stands(path, given):
                raise Vetoed
            a = path[-3]
            if b in given:
                changed |= marks.set_all([(b, c, ARROW), (c, b, TAIL)], a)
            else:
                changed |= marks.set_all([(a, b, ARROW), (c, b, ARROW), (b, c, ARROW)], a)
    return changed


def _discriminating_path(marks: Marks, b: str, c: str) -> Path | None:
    """A shortest path (t, ..., a, b, c): t and c not adjacent, all between t and b colliders and parents of c."""
    todo: list[Path] = [(a, b, c) for a in marks.around(b) if marks.edge(a, b, ">*") and marks.edge(a, c, "->")]
    seen = {b, c, *(path[0] for path in todo)}
    for path in todo:
        for t in marks.around(path[0]):
            if t in seen or not marks.edge(t, path[0], "*>"):
                continue
            if not marks.adjacent(t, c):
                return t, *path
            if marks.edge(t, path[0], ">>") and marks.edge(t, c, "->"):
                seen.add(t)
                todo.append((t, *path))
    return None


def _circle_cycles(marks: Marks) -> bool:
    """R5: a o-o b and an uncovered path (a, c, ..., d, b) of such edges, a and d not adjacent, nor b and c: all
    of these edges are undirected.
    """
    changed = False
    for a, b in combinations(marks.at, 2):
        if not marks.edge(a, b, "oo"):
            continue
        path = _circle_path(marks, a, b)
        around = [*pairwise(path), (a, b)] if path else []
        changed |= marks.set_all([(x, y, TAIL) for pair in around for x, y in (pair, pair[::-1])], a)
    return changed


def _circle_path(marks: Marks, a: str, b: str) -> Path | None:
    starts = [c for c in marks.around(a) if marks.edge(a, c, "oo") and c != b and not marks.adjacent(c, b)]
    paths = (path for c in starts for path in _uncovered(marks, (a, c), b, ("oo",)))
    return next((path for path in paths if not marks.adjacent(path[-2], a)), None)


def _beside_lines(marks: Marks) -> bool:
    """R6: a - b o-* c: b -* c. R7: a -o b o-* c, a and c not adjacent: b -* c."""
    changed = False
    for b in marks.at:
        for a, c in permutations(marks.around(b), 2):
            line = marks.edge(a, b, "--") or (marks.edge(a, b, "-o") and not marks.adjacent(a, c))
            if line and marks.edge(b, c, "o*"):
                changed |= marks.set(c, b, TAIL, a)
    return changed


def _tails(marks: Marks) -> bool:
    """R8 to R10: a o-> c becomes a -> c."""
    changed = False
    for a in marks.at:
        for c in marks.around(a):
            if marks.edge(a, c, "o>"):
                why = _r8(marks, a, c) or _r9(marks, a, c) or _r10(marks, a, c)
                changed |= why is not None and marks.set(c, a, TAIL, why)
    return changed


def _r8(marks: Marks, a: str, c: str) -> str | None:
    """a -> b -> c or a -o b -> c."""
    between = (
        b for b in marks.around(a) if (marks.edge(a, b, "->") or marks.edge(a, b, "-o")) and marks.edge(b, c, "->")
    )
    return next(between, None)


def _r9(marks: Marks, a: str, c: str) -> str | None:
    """An uncovered path (a, b, ..., c) that may be directed, b and c not adjacent."""
    starts = [b for b in marks.around(a) if b != c and _onward(marks, a, b) and not marks.adjacent(b, c)]
    return next((b for b in starts if any(_uncovered(marks, (a, b), c, _ONWARD))), None)


def _r10(marks: Marks, a: str, c: str) -> str | None:
    """b -> c <- d, and uncovered paths that may be directed from a to b and to d, whose first steps m, n differ and
    are not adjacent.
    """
    causes = [b for b in marks.around(c) if b != a and marks.edge(b, c, "->")]
    firsts = {b: _first_steps(marks, a, b) for b in causes}
    for b, d in combinations(causes, 2):
        if any(m != n and not marks.adjacent(m, n) for m in firsts[b] for n in firsts[d]):
            return b
    return None


def _first_steps(marks: Marks, a: str, b: str) -> list[str]:
    """The first steps of the uncovered paths from a to b that may be directed."""
    onward = [m for m in marks.around(a) if _onward(marks, a, m)]
    return [m for m in onward if m == b or any(_uncovered(marks, (a, m), b, _ONWARD))]


_ONWARD = ("->", "o>", "-o", "oo")


def _onward(marks: Marks, a: str, b: str) -> bool:
    return any(marks.edge(a, b, ends) for ends in _ONWARD)


def _uncovered(marks: Marks, path: Path, end: str, kinds: Sequence[str]) -> Iterator[Path]:
    """The paths from ``path`` on to ``end`` along edges of these kinds, no node adjacent to the next but one."""
    for node in marks.around(path[-1]):
        if node in path or marks.adjacent(path[-2], node):
            continue
        if any(marks.edge(path[-1], node, ends) for ends in kinds):
            if node == end:
                yield (*path, node)
            else:
                yield from _uncovered(marks, (*path, node), end, kinds)
