"""A causal graph as one interactive HTML page that holds everything it needs and reaches for nothing.

The drawing is cytoscape.js (`vendor/`), laid out as `svg` lays it out. The page forbids itself all connections by its
own content security policy, which names its two scripts by their hashes. Names of variables and members may come from
anyone: they travel as JSON in which no character can end the element, and the script puts them in as text only.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from types import MappingProxyType
from typing import Any

from causaldao.models.discovery.bootstrap import Bootstrap
from causaldao.models.discovery.explain import Explanation
from causaldao.models.graph import CIRCLE, TAIL, CausalGraph, Edge, Pair
from causaldao.pictures.svg import Place, places, wrapped

Marks = Sequence[Mapping[str, Any]]
Votes = Mapping[str, Mapping[str, int]]

_VOTES = {1: "support", -1: "oppose", 0: "abstain"}
_SAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(
    graph: CausalGraph,
    *,
    title: str,
    subtitle: str = "",
    marks: Marks = (),
    votes: Votes | None = None,
    probabilities: Bootstrap | None = None,
    explanations: Iterable[Explanation] = (),
    treatment: str | None = None,
    outcome: str | None = None,
    report: bool = False,
    notes: Mapping[Pair, str] = MappingProxyType({}),
    directed: Mapping[Pair, str] = MappingProxyType({}),
) -> str:
    """The text of the page; the same arguments give the same text.

    ``marks`` are the votes as `result.json` holds them, ``votes`` each member's own by the key of the mark (+1, 0, -1),
    so that a click tells who voted how. Of a discovery, ``probabilities`` and ``explanations`` are shown instead. A
    link's width is its support, or its probability. ``report`` links back to `report.html` beside it. ``notes`` are
    said of a link, by its sorted pair, beside all else; ``directed`` says likewise what a direction rests on.

    Raises:
        ConfigurationError: a mark, the treatment or the outcome names a variable that the graph lacks.
    """
    content = payload(graph, marks, votes, probabilities, explanations, treatment, outcome, notes, directed) | {
        "file": "graph"
    }
    library, script = _asset("vendor/cytoscape.min.js"), _asset("graph.js")
    return Template(_asset("graph.html")).substitute(
        hashes=" ".join(map(_hash, (library, script))),
        title=escape(title),
        subtitle=escape(subtitle),
        back=' · <a href="report.html">the report</a>' if report else "",
        style=_asset("graph.css"),
        data=_embedded(content),
        library=library,
        script=script,
    )


def payload(
    graph: CausalGraph,
    marks: Marks = (),
    votes: Votes | None = None,
    probabilities: Bootstrap | None = None,
    explanations: Iterable[Explanation] = (),
    treatment: str | None = None,
    outcome: str | None = None,
    notes: Mapping[Pair, str] = MappingProxyType({}),
    directed: Mapping[Pair, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """What the page shows, as plain data: nodes, edges, colliders, what is contested, and the legend."""
    boxes, bends = places(graph, marks, treatment=treatment, outcome=outcome)
    roles = {treatment: "treatment", outcome: "outcome"}
    nodes = [_node(name, boxes[name], roles.get(name)) for name in graph.nodes]
    found = _Found(graph, marks, votes or {}, probabilities, {e.pair: e for e in explanations}, notes)
    edges = list(found.edges())
    for edge in edges:
        ends = edge["from"], edge["to"]
        edge["why"] += [directed[pair] for pair in [(min(ends), max(ends))] if pair in directed]
    for edge in edges:
        edge["bends"] = _bent(boxes, bends.get(frozenset((edge["from"], edge["to"])), ()), edge)
    colliders = [
        {"node": mark["nodes"][1], "name": _collider(mark), "status": mark["status"], "votes": found.tally(mark)}
        for mark in marks
        if mark["kind"] == "collider"
    ]
    few = any("needed" in mark for mark in marks)  # local mode
    return {
        "nodes": nodes, "edges": edges, "colliders": colliders, "contested": list(_contested(edges, colliders, few)),
        "weighed": any(edge["weight"] is not None for edge in edges), "weightName": found.weight_name,
        "legend": list(_legend(edges, found.weight_name, few)), "hint": found.hint,
    }  # fmt: skip


class _Found:
    """What is known of each link: its votes, or its probability and its explanation."""

    def __init__(
        self,
        graph: CausalGraph,
        marks: Marks,
        votes: Votes,
        probabilities: Bootstrap | None,
        explanations: Mapping[Pair, Explanation],
        notes: Mapping[Pair, str],
    ) -> None:
        self.graph = graph
        self.votes = votes
        self.probabilities = probabilities
        self.explanations = explanations
        self.notes = notes
        self.adjacencies = {frozenset(m["nodes"]): m for m in marks if m["kind"] == "adjacency"}

    @property
    def weight_name(self) -> str:
        return "support" if self.adjacencies else "probability" if self.probabilities else ""

    @property
    def hint(self) -> str:
        told = "who voted how" if self.votes else "the votes" if self.adjacencies else "why it is there"
        return f"Choose a link, in the graph or in the list, to see {told}. Choose a variable to see its links."

    def edges(self) -> Iterator[dict[str, Any]]:
        for edge in sorted(self.graph.edges):
            mark = self.adjacencies.get(frozenset((edge.a, edge.b)))
            contested = mark is not None and mark["status"] == "contested"
            yield self._edge(edge, str(edge), "contested" if contested else "adopted", mark)
        for pair, mark in self.adjacencies.items():
            a, b = sorted(pair)
            if mark["status"] == "contested" and not self.graph.adjacent(a, b):
                yield self._edge(Edge(a, b, TAIL, TAIL), f"{a} - {b}", "struck", mark)

    def tally(self, mark: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers of a mark's votes and, where each member's are known, the names."""
        counts: dict[str, Any] = {kind: mark[kind] for kind in _VOTES.values()}
        if self.votes:
            key = _collider_key(mark) if mark["kind"] == "collider" else " - ".join(mark["nodes"])
            said = {name: _VOTES[own[key]] for name, own in sorted(self.votes.items()) if key in own}
            counts["members"] = {kind: [n for n, v in said.items() if v == kind] for kind in _VOTES.values()}
        return counts

    def _edge(self, edge: Edge, name: str, status: str, mark: Mapping[str, Any] | None) -> dict[str, Any]:
        pair = min(edge.a, edge.b), max(edge.a, edge.b)
        facts: list[list[str]] = [["Status", _status(status, mark)]] if mark else []
        weight, label = None, ""
        if mark:
            asked = mark["support"] + mark["oppose"] + mark["abstain"]
            weight, label = mark["support"] / asked if asked else 0.0, f"{mark['support']}/{asked}"
            if "strength" in mark:
                facts.append(["Partial correlation", f"{mark['strength']:.3g}"])
        elif self.probabilities:
            shares = self.probabilities.pair(*pair)
            weight, label = shares.adjacent, f"{shares.adjacent:.2f}"
            facts.append(["Linked in", f"{shares.adjacent:.0%} of {self.probabilities.draws} draws"])
            facts += [[_marked(pair, marks), f"{share:.0%}"] for marks, share in sorted(shares.marks.items())]
        why = [self.explanations[pair].text] if pair in self.explanations else []
        why += [self.notes[pair]] if pair in self.notes else []
        word = "" if status == "adopted" else _FEW if status == "struck" and mark and "needed" in mark else status
        noted = "edited by vote" if pair in self.notes else ""
        short = ", ".join(part for part in (label, word, noted) if part)
        shown = " ".join(part for part in (label, word, noted) if part)
        return {
            "from": edge.a, "to": edge.b, "marks": [edge.at_a, edge.at_b], "name": name, "short": short,
            "label": shown, "weight": weight, "status": status,
            "votes": self.tally(mark) if mark else None, "facts": facts, "why": why,
        }  # fmt: skip


def _status(status: str, mark: Mapping[str, Any]) -> str:
    if status == "struck" and "needed" in mark:  # local mode: nothing was proposed that could be struck
        return f"not adopted: fewer than the {mark['needed']} members that it takes support it"
    return _STATUS[status]


_FEW = "too few support it"
_STATUS = {"adopted": "adopted", "contested": "contested by members", "struck": "struck: too many opposed it"}


def _node(name: str, box: Place, role: str | None) -> dict[str, Any]:
    lines = [*wrapped(name), *([f"({role})"] if role else [])]
    return {
        "name": name, "lines": lines, "role": role, "x": round(box.x, 1), "y": round(box.y, 1),
        "width": round(box.width, 1), "height": box.height,
    }  # fmt: skip


def _bent(
    boxes: Mapping[str, Place], points: Sequence[tuple[str, float, float]], edge: Mapping[str, Any]
) -> dict[str, list[float]] | None:
    """The points that a link passes, as cytoscape wants them: how far along from its source to its target, and how far
    to the side."""
    if not points:
        return None
    source, target = boxes[edge["from"]], boxes[edge["to"]]
    dx, dy = target.x - source.x, target.y - source.y
    length = (dx * dx + dy * dy) ** 0.5
    if points[0][0] != edge["from"]:
        points = points[::-1]
    along = [((x - source.x) * dx + (y - source.y) * dy) / length**2 for _, x, y in points]
    aside = [((x - source.x) * -dy + (y - source.y) * dx) / length for _, x, y in points]
    return {"weights": [round(w, 4) for w in along], "distances": [round(d, 1) for d in aside]}


def _collider(mark: Mapping[str, Any]) -> str:
    return "{} → {} ← {}".format(*mark["nodes"])


def _collider_key(mark: Mapping[str, Any]) -> str:
    return "{} -> {} <- {}".format(*mark["nodes"])


def _marked(pair: Pair, marks: str) -> str:
    """A pair with marks in the order of its names, as an edge is written."""
    return str(next(iter(CausalGraph.pag({pair: marks}).edges)))


def _contested(
    edges: Sequence[Mapping[str, Any]], colliders: Sequence[Mapping[str, Any]], few: bool
) -> Iterator[dict[str, Any]]:
    for index, edge in enumerate(edges):
        if edge["status"] != "adopted":
            yield {"name": edge["name"], "short": edge["short"], "edge": index, "node": None}
    for mark in colliders:
        if mark["status"] == "contested":
            votes = mark["votes"]
            asked = votes["support"] + votes["oppose"] + votes["abstain"]
            short = f"{votes['support']}/{asked}, {_FEW if few else 'contested'}"
            yield {"name": mark["name"], "short": short, "edge": None, "node": mark["node"]}


def _legend(edges: Sequence[Mapping[str, Any]], weight: str, few: bool) -> Iterator[dict[str, Any]]:
    kinds = {frozenset(edge["marks"]) for edge in edges if edge["status"] != "struck"}
    states = {edge["status"] for edge in edges}
    if frozenset("->") in kinds:
        yield {"marks": "->", "status": "adopted", "text": "cause → effect"}
    if frozenset("-") in kinds:
        yield {"marks": "--", "status": "adopted", "text": "direction not settled"}
    if frozenset(">") in kinds:
        yield {"marks": ">>", "status": "adopted", "text": "hidden common cause"}
    if any(CIRCLE in kind for kind in kinds):
        yield {"marks": "oo", "status": "adopted", "text": "end not settled"}
    if "contested" in states:
        yield {"marks": "->", "status": "contested", "text": "contested by members"}
    if "struck" in states:
        yield {"marks": "--", "status": "struck", "text": _FEW if few else "struck: too many opposed"}
    if weight == "support":
        whose = "graph has" if few else "evidence supports"
        yield {"marks": None, "text": f"8/10 and width: members whose {whose} the link / members asked"}
    if weight == "probability":
        yield {"marks": None, "text": "0.97 and width: share of the draws of the evidence in which the two are linked"}


@cache
def _asset(name: str) -> str:
    return files("causaldao.pictures").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def _embedded(content: Mapping[str, Any]) -> str:
    """JSON inside a script element: no character that could end the element, or a line of a script, is left."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return "".join(_SAFE.get(character, character) for character in text.encode("utf-8", "replace").decode())
