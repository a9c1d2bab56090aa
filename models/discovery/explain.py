"""Why an edge is there, why one is not, and why an arrow points as it does: in words, each with the test behind it.

An explanation is made afterwards, from the evidence and the graph, and holds for whatever method found it. An edge is
shown by the test that came nearest to taking it away, over the sets of up to three of its neighbours; an absent one by
the set that separates its ends; an arrow by background knowledge, by a collider, or by the rule of Meek (1995) that
follows from those. Where a score was maximised its change is told as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any, Literal

from causaldao.errors import MisuseError
from causaldao.models.discovery.evidence import Evidence, partial
from causaldao.models.discovery.found import Discovery
from causaldao.models.discovery.score import Score
from causaldao.models.discovery.skeleton import PartialCorrelations, Question
from causaldao.models.graph import ARROW, CIRCLE, TAIL, CausalGraph, Edge, Pair, Triple
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import Derivation, derivations, extension, partial_edges
from causaldao.models.separators import minimal_separators

Kind = Literal["knowledge", "collider", "meek", "rules", "stated", "open"]

_LARGEST = 3  # the most neighbours that an edge's tests hold fixed
_LEAST_P = 1e-300  # smaller ones are rounding
_SEPARATORS = 32  # how many of the minimal separators of a pair are compared


@dataclass(frozen=True)
class Dependence:
    """A test of a pair given a set: the partial correlation and its two-sided p-value, which counts the noise."""

    given: tuple[str, ...]
    correlation: float
    p_value: float

    def __str__(self) -> str:
        p = f"p = {self.p_value:.2g}" if self.p_value >= _LEAST_P else f"p < {_LEAST_P:g}"
        return f"partial correlation {self.correlation:.3g}, {p}"

    def to_json(self) -> dict[str, Any]:
        return {"given": list(self.given), "correlation": self.correlation, "p_value": self.p_value}


@dataclass(frozen=True)
class Reason:
    """Why one end of an edge has its mark, or both.

    ``kind``: *knowledge* says so; it is a *collider* of the data; one of *Meek*'s rules forces it; the *rules* of
    Zhang (2008) for PAGs do; it was *stated* by a graph that goes beyond the evidence; or it is *open*, since both
    directions fit. ``others`` are the variables that the reason rests on beside the pair.
    """

    kind: Kind
    others: tuple[str, ...]
    text: str

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "others": list(self.others), "text": self.text}


@dataclass(frozen=True)
class Explanation:
    """Why a pair, in name order, is joined by ``edge``, or why it is not (None).

    Attributes
    ----------
    test : of an edge, the one with the largest p-value of ``tried`` sets; of an absent edge, that of the separating
        set; None where knowledge excludes the pair, so that nothing is tested.
    score : what the score loses without the edge, or what it would lose with it if it is absent; None where no score
        was maximised or the graph has no DAG.
    reasons : of the marks of an edge.
    text : all of it in words.
    """

    pair: Pair
    edge: Edge | None
    test: Dependence | None
    tried: int
    score: float | None
    reasons: tuple[Reason, ...]
    text: str

    def to_json(self) -> dict[str, Any]:
        return {
            "pair": list(self.pair), "edge": None if self.edge is None else str(self.edge),
            "test": None if self.test is None else self.test.to_json(), "tried": self.tried, "score": self.score,
            "reasons": [reason.to_json() for reason in self.reasons], "text": self.text,
        }  # fmt: skip


def explain(
    evidence: Evidence,
    found: Discovery | CausalGraph,
    knowledge: Knowledge = NONE,
    *,
    alpha: float = 0.01,
    penalty: float | None = None,
) -> list[Explanation]:
    """Explain each edge of what was found in the evidence, then each pair that is not adjacent, both in name order.

    ``found`` is best the `Discovery`, whose separating sets are those of the search; of a graph alone they are found
    anew: the minimal separators of its DAG, or sets of up to three neighbours of a PAG. ``knowledge`` is what the
    search was told, ``alpha`` the level at which a dependence is called significant, ``penalty`` that of the score, if
    the method maximised one.

    Raises:
        MisuseError: the graph and the evidence have different variables, or alpha is not in (0, 1).
        ConfigurationError: the knowledge names unknown variables.
        DataError: exact evidence whose variables are linearly dependent.
    """
    graph = found.graph if isinstance(found, Discovery) else found
    if odd := sorted(set(graph.nodes) ^ set(evidence.names)):
        raise MisuseError(
            f"{', '.join(odd)} stand only in the graph or only in the evidence. Explain a graph by the evidence of "
            "exactly its variables."
        )
    if not 0 < alpha < 1:
        raise MisuseError(f"alpha is {alpha}. Give a level in (0, 1), such as 0.01.")
    knowledge.check(evidence.names)
    sets = found.separating_sets if isinstance(found, Discovery) else {}
    case = _Case.of(evidence, graph, knowledge, sets, alpha, penalty)
    edges = sorted(graph.edges, key=lambda edge: (_pair(edge), edge))
    absent = [pair for pair in combinations(sorted(graph.nodes), 2) if not graph.adjacent(*pair)]
    return [*map(case.of_edge, edges), *map(case.of_absence, absent)]


@dataclass(frozen=True)
class _Case:
    """What explanations rest on. ``directional``: all edges are a -> b or a - b; ``dag`` is then a DAG of the class."""

    evidence: Evidence
    graph: CausalGraph
    knowledge: Knowledge
    sets: Mapping[Pair, frozenset[str]]
    alpha: float
    directional: bool
    dag: CausalGraph | None
    score: Score | None
    correlations: PartialCorrelations
    derived: Mapping[Pair, Derivation]

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        graph: CausalGraph,
        knowledge: Knowledge,
        sets: Mapping[Pair, frozenset[str]],
        alpha: float,
        penalty: float | None,
    ) -> _Case:
        directional = graph.edges == partial_edges(graph)
        dag = extension(graph) if directional else None
        scored = penalty is not None and dag is not None
        score = Score.of(evidence, penalty, NONE, "A score") if scored and penalty is not None else None
        derived = derivations(_begun(graph, knowledge)) if directional else {}
        correlations = PartialCorrelations.of(evidence)
        return cls(evidence, graph, knowledge, sets, alpha, directional, dag, score, correlations, derived)

    def of_edge(self, edge: Edge) -> Explanation:
        pair = _pair(edge)
        test, tried = self._weakest(pair)
        loss = self._loss(pair)
        reasons = tuple(self._marks(edge))
        text = [f"{edge}: {self._kept(pair, test, tried)}"]
        if loss is not None:
            text.append(f"Without it the score {_moves(loss)}.")
        return Explanation(pair, edge, test, tried, loss, reasons, " ".join([*text, *(r.text for r in reasons)]))

    def of_absence(self, pair: Pair) -> Explanation:
        a, b = pair
        if self.knowledge.adjacency_excluded(a, b):
            text = f"{a}, {b}: no edge, because the knowledge rules out both directions. It was not tested."
            return Explanation(pair, None, None, 0, None, (), text)
        test, tried = self._separating(pair)
        loss = self._loss(pair)
        if test.p_value > self.alpha:
            text = f"{a}, {b}: no edge, because {_set(test.given)} separates them: {test}."
        else:
            text = (
                f"{a}, {b}: no edge, although given {_set(test.given)} a dependence is left: {test}, below "
                f"{self.alpha:g}. The method asks for more than this test before it draws an edge."
            )
        if loss is not None:
            text += f" With it the score {_moves(loss)}."
        return Explanation(pair, None, test, tried, loss, (), text)

    def _kept(self, pair: Pair, test: Dependence, tried: int) -> str:
        if self.knowledge.requires(*pair):
            return f"the knowledge requires it. The weakest of {tried} tests, given {_set(test.given)}: {test}."
        if test.p_value <= self.alpha:
            return (
                f"kept because it does not vanish given any of {tried} sets of up to {_LARGEST} neighbours. The "
                f"weakest set is {_set(test.given)}: {test}."
            )
        why = "The score keeps it." if self.score is not None else "The method did not try this set, or weighs it less."
        return f"a weak edge: given {_set(test.given)} it is not significant at {self.alpha:g}: {test}. {why}"

    def _weakest(self, pair: Pair) -> tuple[Dependence, int]:
        """The test with the least statistic given sets of up to three neighbours of one end, and how many were
        tried."""
        best: tuple[float, tuple[str, ...]] = (math.inf, ())
        tried = 0
        for level in range(min(_LARGEST, math.ceil(self.evidence.count) - 4) + 1):
            asked = list(self._questions(pair, level))
            tried += len(asked)
            answers = self.correlations.run(iter(asked), level)
            best = min([best, *((answer.statistic, answer.given) for answer in answers)])
        return self._test(pair, best[1]), tried

    def _questions(self, pair: Pair, level: int) -> Iterator[Question]:
        around = [sorted(self.graph.adjacencies(end) - set(pair)) for end in pair]
        sets = (given for side in around for given in combinations(side, level))
        return ((pair, given) for given in dict.fromkeys(sets))

    def _separating(self, pair: Pair) -> tuple[Dependence, int]:
        """The test by the search's own separating set, else by the best of the separators that the graph has."""
        if pair in self.sets:
            return self._test(pair, tuple(sorted(self.sets[pair]))), 1
        if self.dag is None:
            return self._weakest(pair)
        others = frozenset(self.graph.nodes) - set(pair)
        sets = [tuple(sorted(s)) for s in islice(minimal_separators(self.dag, *pair, others), _SEPARATORS)]
        return max((self._test(pair, s) for s in sets), key=lambda test: test.p_value), len(sets)

    def _test(self, pair: Pair, given: Sequence[str]) -> Dependence:
        found = partial(self.evidence, *pair, given)
        size = abs(found.z) / found.standard_error / math.sqrt(2)
        return Dependence(tuple(given), found.correlation, math.erfc(size))

    def _loss(self, pair: Pair) -> float | None:
        """What the score of the DAG loses if the pair's edge is taken away, or added along the DAG's order."""
        if self.score is None or self.dag is None:
            return None
        order = self.dag.topological_order()
        cause, effect = sorted(pair, key=order.index)
        index = self.score.names.index
        j, i = index(effect), 1 << index(cause)
        parents = sum(1 << index(name) for name in self.dag.parents(effect))
        loss = self.score.of_parents(j, parents) - self.score.of_parents(j, parents ^ i)
        return loss if math.isfinite(loss) else None

    def _marks(self, edge: Edge) -> Iterator[Reason]:
        ends = edge.at_a + edge.at_b
        if self.directional:
            yield self._arrow(edge.a, edge.b) if ends == TAIL + ARROW else _open(edge)
            return
        yield self._end(edge.b, edge.a, edge.at_a)
        yield self._end(edge.a, edge.b, edge.at_b)

    def _arrow(self, a: str, b: str) -> Reason:
        """Why a -> b in a DAG or CPDAG."""
        if not self.knowledge.allows(b, a):
            return _known(a, b, self.knowledge)
        if triple := _collider(self.graph, a, b):
            return self._collides(a, b, triple)
        if (a, b) in self.derived:
            return _meek(a, b, self.derived[a, b])
        return Reason("stated", (), f"{a} -> {b} is how this graph has it: the evidence alone fits {b} -> {a} as well.")

    def _end(self, a: str, b: str, mark: str) -> Reason:
        """Why the edge of a PAG has this mark at b."""
        if mark == CIRCLE:
            return Reason("open", (), f"Whether {b} causes {a} is not settled.")
        if mark == TAIL:
            if (b, a) in self.knowledge.required:
                return _known(b, a, self.knowledge)
            return Reason("rules", (), f"{b} causes {a}, directly or through others: by the rules of Zhang (2008).")
        if not self.knowledge.allows(b, a):
            return Reason("knowledge", (), f"{b} does not cause {a}: the knowledge rules it out.")
        if triple := _collider(self.graph, a, b):
            return self._collides(a, b, triple)
        return Reason("rules", (), f"{b} does not cause {a}: by the rules of Zhang (2008).")

    def _collides(self, a: str, b: str, triple: Triple) -> Reason:
        c = triple[2] if triple[0] == a else triple[0]
        ends = (triple[0], triple[2])
        text = f"{b} is a collider between {a} and {c}, which are not adjacent"
        if self.knowledge.adjacency_excluded(*ends):
            return Reason("collider", (c,), f"{text}: the knowledge keeps them apart.")
        given = self._separating(ends)[0].given
        if b in given:
            return Reason("collider", (c,), f"{text}; the tests disagree, for {_set(given)} separated them.")
        opened = self._test(ends, (*given, b))
        return Reason(
            "collider", (c,),
            f"{text}: {_set(given)}, which separates them, lacks {b}, and given {b} as well they are "
            f"{'dependent' if opened.p_value <= self.alpha else 'not clearly dependent'} ({opened}).",
        )  # fmt: skip


def _begun(graph: CausalGraph, knowledge: Knowledge) -> CausalGraph:
    """The graph's skeleton with nothing but the arrows of knowledge and of its unshielded colliders."""
    arrows = {(a, b) for a, b in graph.directed if not knowledge.allows(b, a)}
    arrows |= {(end, c) for a, c, b in graph.unshielded_colliders() for end in (a, b)}
    lines = [pair for pair in graph.skeleton() if pair not in arrows and pair[::-1] not in arrows]
    return CausalGraph.cpdag(arrows, lines, graph.nodes)


def _collider(graph: CausalGraph, a: str, b: str) -> Triple | None:
    """The first unshielded collider at b that a is an end of."""
    return min((t for t in graph.unshielded_colliders() if t[1] == b and a in t), default=None)


def _known(a: str, b: str, knowledge: Knowledge) -> Reason:
    if (a, b) in knowledge.required:
        why = "requires it"
    elif not knowledge.in_time(b, a):
        why = f"puts {a} in tier {knowledge.tiers[a]} and {b} in tier {knowledge.tiers[b]}"
    else:
        why = f"forbids {b} -> {a}"
    return Reason("knowledge", (), f"{a} -> {b} because the knowledge {why}.")


_BY_RULE: Mapping[int, Callable[..., str]] = {
    1: lambda a, b, p: (
        f"{p} -> {a} and {p}, {b} are not adjacent; {b} -> {a} would make {a} a collider that the data lack"
    ),
    2: lambda a, b, c: f"{a} -> {c} -> {b}; {b} -> {a} would close a cycle",
    3: lambda a, b, c, d: f"{c} -> {b} <- {d} and both are joined to {a}; {b} -> {a} would make {a} a new collider",
    4: lambda a, b, c, d: f"{c} -> {d} -> {b} beside {a}; {b} -> {a} would force a collider that the data lack",
}


def _meek(a: str, b: str, derivation: Derivation) -> Reason:
    why = _BY_RULE[derivation.rule](a, b, *derivation.others)
    return Reason("meek", derivation.others, f"{a} -> {b} because {why} (Meek's rule {derivation.rule}).")


def _open(edge: Edge) -> Reason:
    text = f"Undetermined: {edge.a} -> {edge.b} and {edge.b} -> {edge.a} both fit, with the same independencies."
    return Reason("open", (), text)


def _moves(loss: float) -> str:
    return f"falls by {loss:.4g}" if loss >= 0 else f"rises by {-loss:.4g}"


def _set(given: Sequence[str]) -> str:
    return f"{{{', '.join(given)}}}" if given else "the empty set"


def _pair(edge: Edge) -> Pair:
    return min(edge.a, edge.b), max(edge.a, edge.b)
