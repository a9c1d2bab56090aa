"""Graphs for other programs: read back, they are the graph that was written, whatever its names are."""

from __future__ import annotations

import io
import re
import shutil
import subprocess

import networkx as nx
import numpy as np
import pytest

from causaldao.errors import ConfigurationError, MisuseError
from causaldao.models.graph import ARROW, CIRCLE, TAIL, CausalGraph
from causaldao.pictures.formats import FORMATS, dot, format_of, graphml
from tests.models.random_models import random_dag

ODD = ('a "quoted" <b>&\\', "back\\nslash", "ünïcödé → ✓", "a -> b; c", "]]>")
MIXED = CausalGraph.pag(
    {(ODD[0], ODD[1]): "o>", (ODD[1], ODD[2]): ">>", (ODD[2], ODD[3]): "-o", (ODD[3], ODD[4]): "--"}, nodes=ODD
)
SHARES = {frozenset(ODD[:2]): 0.125}
_MARKS = {"tail": TAIL, "arrow": ARROW, "circle": CIRCLE}


def read_graphml(text: str) -> CausalGraph:
    found = nx.read_graphml(io.BytesIO(text.encode()))
    marks = {(a, b): _MARKS[e["mark_at_source"]] + _MARKS[e["mark_at_target"]] for a, b, e in found.edges(data=True)}
    return CausalGraph.pag(marks, tuple(found.nodes))


@pytest.mark.parametrize("seed", range(5))
def test_networkx_reads_another_graph(seed: int) -> None:
    graph = random_dag(np.random.default_rng(seed), 9, 3.0)
    assert read_graphml(graphml(graph)) == graph


def test_a_name_or_a_mark_is_lost_in_graphml() -> None:
    text = graphml(MIXED, SHARES)
    assert read_graphml(text) == MIXED
    found = nx.read_graphml(io.BytesIO(text.encode()))
    assert [e["probability"] for *_, e in found.edges(data=True) if "probability" in e] == [0.125]


def test_a_name_that_xml_cannot_hold_makes_a_file_that_nothing_reads() -> None:
    with pytest.raises(ConfigurationError, match=r"'a\\x00' holds a character"):
        graphml(CausalGraph.dag([], nodes=("a\x00",)))


def test_two_edges_of_one_pair_become_one() -> None:
    bow = CausalGraph.admg([("a", "b")], [("a", "b")])
    assert len(nx.read_graphml(io.BytesIO(graphml(bow).encode())).edges) == 2


def test_a_name_ends_its_own_quotation_in_dot() -> None:
    text = dot(MIXED, SHARES)
    assert len(re.findall(r'^  n\d+ \[label="(?:[^"\\]|\\.)*"\];$', text, flags=re.M)) == len(ODD)
    assert len(re.findall(r"^  n\d+ -> n\d+ \[[^\]]*\];$", text, flags=re.M)) == len(MIXED.edges)
    assert 'n0 -> n1 [dir=both, arrowtail="odot", arrowhead="normal", label="0.12", penwidth="1.38"];' in text
    assert 'n1 -> n2 [dir=both, arrowtail="normal", arrowhead="normal"];' in text
    program = shutil.which("dot")
    if program is not None:  # where graphviz is; elsewhere the lines above stand alone
        done = subprocess.run([program, "-Tsvg"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_suffix_writes_another_format() -> None:
    for name, suffixes in FORMATS.items():
        assert {format_of(suffix) for suffix in suffixes} == {name}
        assert format_of(".png", name) == name
    assert (format_of(""), format_of(".SVG")) == ("json", "svg")
    with pytest.raises(MisuseError, match=r"suffix '\.png'; known are \.json"):
        format_of(".png")
    with pytest.raises(MisuseError, match="no format 'pdf'"):
        format_of(".json", "pdf")
