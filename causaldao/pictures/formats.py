"""A causal graph for other programs: DOT for graphviz, GraphML for networkx, yEd, Gephi and Cytoscape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from causaldao.errors import ConfigurationError, MisuseError
from causaldao.models.graph import ARROW, CIRCLE, TAIL, CausalGraph

Shares = Mapping[frozenset[str], float]

FORMATS: Mapping[str, tuple[str, ...]] = {
    "json": (".json",),
    "graphml": (".graphml",),
    "dot": (".dot", ".gv"),
    "svg": (".svg",),
    "html": (".html", ".htm"),
}
"""The formats that a graph is written in, and the suffixes of their files."""

_ENDS = {TAIL: "none", ARROW: "normal", CIRCLE: "odot"}


def format_of(suffix: str, asked: str | None = None) -> str:
    """The format ``asked`` for, else that of a file's suffix; a file without one holds JSON.

    Raises:
        MisuseError: there is no such format, or none of that suffix; the choices are listed.
    """
    if asked is not None:
        if asked not in FORMATS:
            raise MisuseError(f"There is no format {asked!r}. The formats are {', '.join(FORMATS)}.")
        return asked
    if not suffix:
        return "json"
    found = next((name for name, suffixes in FORMATS.items() if suffix.lower() in suffixes), None)
    if found is None:
        known = ", ".join(s for suffixes in FORMATS.values() for s in suffixes)
        raise MisuseError(f"No format has the suffix {suffix!r}; known are {known}. Rename the file, or give --format.")
    return found


def dot(graph: CausalGraph, shares: Shares | None = None) -> str:
    """The graph in DOT. Arrowheads and circles are graphviz's ``normal`` and ``odot``; ``shares`` label the links."""
    number = {name: f"n{index}" for index, name in enumerate(graph.nodes)}
    lines = [f"  {number[name]} [label={_quoted(name)}];" for name in graph.nodes]
    for e in sorted(graph.edges):
        share = (shares or {}).get(frozenset((e.a, e.b)))
        labelled = "" if share is None else f', label="{share:.2f}", penwidth="{1 + 3 * share:.2f}"'
        marks = f'dir=both, arrowtail="{_ENDS[e.at_a]}", arrowhead="{_ENDS[e.at_b]}"'
        lines.append(f"  {number[e.a]} -> {number[e.b]} [{marks}{labelled}];")
    return "\n".join(["digraph causal {", '  node [shape=box, style=rounded, fontname="sans-serif"];', *lines, "}\n"])


def graphml(graph: CausalGraph, shares: Shares | None = None) -> str:
    """The graph in GraphML, as networkx reads it: of each edge ``mark_at_source`` and ``mark_at_target`` (tail, arrow,
    circle), and ``probability`` from ``shares``. An undirected edge is one with two tails.

    Raises:
        ConfigurationError: a name holds a character that XML cannot hold.
    """
    import networkx as nx

    if odd := [name for name in graph.nodes if not all(map(_fits_xml, name))]:
        raise ConfigurationError(f"{odd[0]!r} holds a character that XML cannot hold. Rename it, or write JSON or DOT.")
    words = {TAIL: "tail", ARROW: "arrow", CIRCLE: "circle"}
    made: Any = nx.MultiDiGraph() if len(graph.skeleton()) < len(graph.edges) else nx.DiGraph()
    made.add_nodes_from(graph.nodes)
    for e in sorted(graph.edges):
        share = (shares or {}).get(frozenset((e.a, e.b)))
        weighed = {} if share is None else {"probability": float(share)}
        made.add_edge(e.a, e.b, mark_at_source=words[e.at_a], mark_at_target=words[e.at_b], **weighed)
    return "\n".join(nx.generate_graphml(made)) + "\n"


def _quoted(name: str) -> str:
    """A label in DOT: a backslash would begin an escape, a quotation mark end it."""
    text = name.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text) + '"'


def _fits_xml(character: str) -> bool:
    code = ord(character)
    return character in "\t\n\r" or (0x20 <= code <= 0xFFFD and not 0xD800 <= code <= 0xDFFF) or code >= 0x10000
