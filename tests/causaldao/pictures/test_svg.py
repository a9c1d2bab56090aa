"""What would mislead in the picture of a graph: something left out, covered, drawn wrongly, or run as code."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from causaldao.errors import ConfigurationError
from causaldao.models.graph import CausalGraph
from causaldao.pictures import svg as picture
from tests.server.result_cases import DIRECTED, HOSTILE, NODES, SVG, UNDIRECTED, a_graph, a_mark, a_pattern, a_result


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def boxes(svg: str, kind: str = "cg-box") -> list[tuple[float, ...]]:
    rectangles = ElementTree.fromstring(svg).iter(f"{SVG}rect")
    kept = [r for r in rectangles if (r.get("class") or "").startswith(kind)]
    return [tuple(float(r.get(k) or 0) for k in ("x", "y", "width", "height")) for r in kept]


def test_the_picture_leaves_something_out() -> None:
    result = a_result()
    svg = a_graph(result)
    root = ElementTree.fromstring(svg)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert set(NODES) <= set(titles)
    drawn = [p for p in root.iter(f"{SVG}path") if p.get("class") == "cg-line" and " C" in (p.get("d") or "")]
    assert len(drawn) == len(DIRECTED) + len(UNDIRECTED) + 1
    assert {"treatment", "outcome", "struck: too many opposed", "direction not settled"} <= set(texts(svg))
    assert any(text.startswith("Contested: log_coinsurance → visits ← health_poor") for text in texts(svg))
    assert "2/10" in texts(svg)


@pytest.mark.parametrize("size", [0, 1, 5, 12, 20])
def test_boxes_of_the_picture_overlap(size: int) -> None:
    names = [f"variable_number_{i}" for i in range(size)]
    edges = [(a, b) for i, a in enumerate(names) for j, b in enumerate(names[:i]) if (i * 7 + j * 5) % 3 == 0]
    found = boxes(picture.draw(CausalGraph.dag(edges, nodes=tuple(names)), []))
    assert len(found) == size
    for i, (x, y, w, h) in enumerate(found):
        for a, b, c, d in found[:i]:
            assert x + w < a or a + c < x or y + h < b or b + d < y


@pytest.mark.parametrize("wide", [2, 3, 12])
def test_votes_of_the_picture_cover_each_other_or_a_name(wide: int) -> None:
    if wide < 12:  # every cause has every effect: the lines cross half-way, where the votes would stand
        pairs = [(f"cause_{i}", f"effect_{j}") for i in range(wide) for j in range(wide)]
    else:
        pairs = [(f"v{i}", f"v{j}") for j in range(wide) for i in range(j) if (i * 7 + j * 5) % 4 == 0]
    nodes = tuple(dict.fromkeys(name for pair in pairs for name in pair))
    svg = picture.draw(CausalGraph.dag(pairs, nodes=nodes), [a_mark(*pair) for pair in pairs])
    plates = boxes(svg, "cg-plate")
    assert len(plates) == len(pairs)
    for i, (x, y, w, h) in enumerate(plates):
        for a, b, c, d in [*plates[:i], *boxes(svg)]:
            assert x + w <= a or a + c <= x or y + h <= b or b + d <= y


def test_a_line_of_the_picture_runs_under_a_box() -> None:
    names = [f"v{i}" for i in range(10)]
    edges = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if (int(a[1:]) + int(b[1:])) % 3]
    svg = picture.draw(CausalGraph.dag(edges, nodes=tuple(names)), [])
    lines = [p.get("d") or "" for p in ElementTree.fromstring(svg).iter(f"{SVG}path") if p.get("class") == "cg-line"]
    for line in lines:
        ends = [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", line.replace(",", " "))]
        for x, y in ends:
            assert not any(a + 1 < x < a + w - 1 and b + 1 < y < b + h - 1 for a, b, w, h in boxes(svg))


@pytest.mark.parametrize(
    ("graph", "heads", "rings"),
    [
        (CausalGraph.dag([("x", "y")]), 1, 0),
        (CausalGraph.cpdag(undirected=[("x", "y")]), 0, 0),
        (CausalGraph.admg([("x", "y")], [("x", "y")]), 3, 0),
        (CausalGraph.pag({("x", "y"): ("o", ">")}), 1, 1),
    ],
    ids=["directed", "undirected", "bow", "circle"],
)
def test_an_end_mark_is_drawn_wrongly(graph: CausalGraph, heads: int, rings: int) -> None:
    root = ElementTree.fromstring(picture.draw(graph, []))
    legend = {g for g in root.findall(f"{SVG}g") if g.find(f"{SVG}text") is not None}
    links = [g for g in root.findall(f"{SVG}g") if g not in legend]
    found = [element.get("class") for link in links for element in link.iter()]
    assert (found.count("cg-head"), found.count("cg-ring")) == (heads, rings)


def test_a_hostile_name_is_markup_in_the_picture() -> None:
    names = (HOSTILE, "a\x00\x1b[31m\nb", "x" * 200)
    svg = picture.draw(CausalGraph.dag([(names[0], names[1])], nodes=names), [], treatment=HOSTILE)
    root = ElementTree.fromstring(svg)
    assert not list(root.iter(f"{SVG}script"))
    assert "<script" not in svg
    assert "\x1b" not in svg
    assert HOSTILE in [title.text for title in root.iter(f"{SVG}title")]


def test_the_order_of_the_marks_changes_the_picture() -> None:
    marks = a_result()["marks"]
    once = picture.draw(a_pattern(), marks)
    assert once == picture.draw(a_pattern(), marks[::-1])


def test_a_vote_on_an_unknown_variable_is_dropped_in_silence() -> None:
    with pytest.raises(ConfigurationError, match="no variable 'ghost'"):
        picture.draw(a_pattern(), [a_mark("visits", "ghost")])
    with pytest.raises(ConfigurationError, match="no variable 'ghost'"):
        picture.draw(a_pattern(), [], outcome="ghost")


def test_a_share_of_draws_is_taken_for_votes_or_lost() -> None:
    graph = CausalGraph.dag([("a", "b"), ("b", "c")])
    svg = picture.draw(graph, [], shares={frozenset("ab"): 0.97})
    assert "0.97" in texts(svg)
    assert any(text.startswith("0.97: share of the draws") for text in texts(svg))
    assert "a → b (0.97 of the draws); b → c" in svg
    voted = picture.draw(graph, [a_mark("a", "b")], shares={frozenset("ab"): 0.97})
    assert "8/10" in texts(voted)
    assert "0.97" not in texts(voted)


def test_a_mark_with_too_few_supporters_is_struck_by_opponents() -> None:
    """In local mode nothing was proposed, so nothing can be struck: the key and the titles say what is so."""
    votes = {"support": 2, "oppose": 0, "abstain": 3, "status": "contested"}
    marks = [
        {"kind": "adjacency", "nodes": ["a", "b"], **votes}, {"kind": "collider", "nodes": ["a", "c", "b"], **votes},
    ]  # fmt: skip
    shared = picture.draw(CausalGraph.cpdag(nodes="abc"), [{**mark, "strength": 0.1} for mark in marks])
    local = picture.draw(CausalGraph.cpdag(nodes="abc"), [{**mark, "needed": 3} for mark in marks])
    for words in ("a and b: struck", "struck: too many opposed", "Contested: a", "members whose evidence supports"):
        assert words in shared
        assert words not in local
    for words in ("a and b: too few", "too few support it", "Too few: a"):
        assert words in local
