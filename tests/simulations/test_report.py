"""What would mislead a reader of a run: a lost section, a false comfort, a name that runs as code."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from causaldao.errors import ConfigurationError, MisuseError
from causaldao.models.graph import CausalGraph
from causaldao.simulations import picture, report

_VOID = {"meta", "br", "hr", "img", "link", "input"}
_HOSTILE = "<script>alert('x')</script>\"&"
_SVG = "{http://www.w3.org/2000/svg}"

_DIRECTED = [
    ("log_coinsurance", "visits"),
    ("log_max_expenditure", "visits"),
    ("chronic_diseases", "visits"),
    ("physical_limitation", "visits"),
    ("chronic_diseases", "physical_limitation"),
    ("health_poor", "visits"),
]
_UNDIRECTED = [
    ("log_coinsurance", "deductible_plan"),
    ("log_coinsurance", "log_max_expenditure"),
    ("health_poor", "chronic_diseases"),
]
_NODES = (
    "visits",
    "log_coinsurance",
    "deductible_plan",
    "log_incentive",
    "log_max_expenditure",
    "physical_limitation",
    "chronic_diseases",
    "health_poor",
)


def a_pattern() -> CausalGraph:
    return CausalGraph.cpdag(directed=_DIRECTED, undirected=_UNDIRECTED, nodes=_NODES)


def a_mark(*nodes: str, support: int = 8, oppose: int = 0, status: str = "adopted") -> dict[str, Any]:
    return {
        "kind": "adjacency" if len(nodes) == 2 else "collider",
        "nodes": list(nodes),
        "support": support,
        "oppose": oppose,
        "abstain": 10 - support - oppose,
        "status": status,
    }


def a_result() -> dict[str, Any]:
    names = [f"clinic-{i}" for i in range(10)]
    liars = names[8:]
    kept = names[:8]
    marks = [a_mark(*pair, support=5 + i % 6) for i, pair in enumerate(_DIRECTED + _UNDIRECTED)]
    marks.append(a_mark("deductible_plan", "log_incentive", support=2, oppose=6, status="contested"))
    marks.append(a_mark("log_coinsurance", "visits", "chronic_diseases", support=9))
    marks.append(a_mark("log_coinsurance", "visits", "health_poor", support=3, oppose=5, status="contested"))
    members = [
        {
            "name": name,
            "noisy_count": 3894.0 - 300 * i,
            "status": "accused" if name in liars else "ok",
            "reason": "distance 41.3 is beyond 3.1, the test's bound at .05/10" if name in liars else "",
        }
        for i, name in enumerate(names)
    ]
    return {
        "study": {
            "name": "rand-hie",
            "hash": "9f" * 32,
            "question": "Do patients who pay more themselves see a doctor less often?",
            "purpose": "health services research",
        },
        "members": members,
        "simulation": {"seed": 0, "liars": liars, "noise": "simulated", "attack": "mimic"},
        "graph": {"pattern": a_pattern().to_json(), "dag": {}},
        "marks": marks,
        "contested": [mark for mark in marks if mark["status"] == "contested"],
        "effects": [
            {
                "treatment": "log_coinsurance",
                "outcome": "visits",
                "adjustment": [],
                "estimate": -0.04412,
                "standard_error": 0.00713,
                "sampling_error": 0.00302,
                "privacy_error": 0.00646,
                "interval": [-0.05809, -0.03014],
                "unit": "log(1 + visits)",
                "pooled": -0.0432577,
            }
        ],
        "privacy": {
            "unit": "one record",
            "adjacency": "add or remove one record",
            "epsilon": 3.0,
            "delta": 1e-6,
            "split": {"evidence": 0.5, "training": 0.4, "evaluation": 0.1},
            "spent": {name: 2.87 if name in kept else 1.5 for name in names},
        },
        "ledger": {"size": 87, "root": "3c" * 32, "cosigners": []},
        "rounds": [
            {"round": i, "loss": 0.5 + 0.4 / i, "rule": "caf", "excluded": liars[: i % 3], "kept": kept}
            for i in range(1, 11)
        ],
        "pool": {
            "rule": "multi-krum",
            "kept": kept,
            "excluded": [],
            "accused": liars,
            "distances": {name: 41.3 if name in liars else 1.1 for name in names},
            "weights": {name: 0.125 if name in kept else 0.0 for name in names},
        },
        "seconds": {"evidence": 3.2, "ballots": 0.8, "training": 12.4, "evaluate": 0.6},
    }


def a_graph(result: dict[str, Any]) -> str:
    return picture.draw(a_pattern(), result["marks"], treatment="log_coinsurance", outcome="visits")


class _Page(HTMLParser):
    """The elements of a page, in order; `faults` lists what is not closed by its own end tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.faults: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.faults += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in {"style", "title", "desc"}:
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))


def rendered(result: dict[str, Any]) -> tuple[str, _Page]:
    text = report.render(result, a_graph(result))
    return text, _Page(text)


def hostile(value: Any) -> Any:
    """`value` with every string made hostile, except the words the program itself chooses among."""
    chosen = {"adjacency", "collider", "adopted", "contested", "ok", "accused", "simulated"}
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return value + _HOSTILE if isinstance(value, str) and value not in chosen else value


def test_a_section_is_lost() -> None:
    _, page = rendered(a_result())
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    expected = ["answer", "graph", "effects", "marks", "members", "pool", "rounds", "privacy", "ledger"]
    assert sections == [*expected, "simulation", "seconds"]
    assert sum(tag == "svg" for tag, _ in page.tags) == 3


def test_the_page_is_not_well_formed() -> None:
    _, page = rendered(a_result())
    assert page.faults == []
    _, bare = rendered(bare_result())
    assert bare.faults == []


def test_the_inline_plots_are_not_xml() -> None:
    for result in (a_result(), bare_result()):
        for plot in re.findall(r"<svg.*?</svg>", rendered(result)[0], flags=re.S):
            ElementTree.fromstring(plot)


def test_the_answer_is_not_said_in_words() -> None:
    words = rendered(a_result())[1].words
    assert "Do patients who pay more themselves see a doctor less often?" in words
    assert "changes visits by −0.0441" in words
    assert "95 % interval −0.0581 to −0.0301, in log(1 + visits)" in words
    assert "Zero lies outside the interval" in words
    assert "without privacy would give −0.0433, which lies inside the interval" in words
    assert "8 of 10 members were counted; not counted:" in words
    assert "clinic-9, accused: its evidence fails the test against the pool: distance 41.3" in words


def test_an_interval_that_holds_zero_is_called_an_effect() -> None:
    result = a_result()
    result["effects"][0] |= {"interval": [-0.05, 0.01], "pooled": 0.2}
    words = rendered(result)[1].words
    assert "Zero lies inside the interval" in words
    assert "which lies outside the interval" in words


def test_excluded_by_rank_is_shown_as_an_accusation() -> None:
    result = a_result()
    result["members"][9] |= {"status": "excluded", "reason": ""}
    assert "clinic-9, excluded by rank (not an accusation)" in rendered(result)[1].words


@pytest.mark.parametrize(
    ("noise", "banner"), [("simulated", True), ("os", False)], ids=["simulated", "operating system"]
)
def test_simulated_noise_passes_for_privacy(noise: str, banner: bool) -> None:
    result = a_result()
    result["simulation"]["noise"] = noise
    words = rendered(result)[1].words
    assert ("Simulated noise: not private" in words) is banner


def test_a_run_without_noise_passes_for_privacy() -> None:
    result = a_result()
    result["privacy"]["epsilon"] = None
    assert "No noise: not private" in rendered(result)[1].words
    assert "No noise: not private" in rendered(bare_result())[1].words


def test_a_chain_without_witnesses_passes_for_a_witnessed_one() -> None:
    result = a_result()
    assert "chain only, no witnesses yet" in rendered(result)[1].words
    result["ledger"]["cosigners"] = ["clinic-1", "clinic-2"]
    words = rendered(result)[1].words
    assert "no witnesses" not in words
    assert "clinic-1, clinic-2" in words


def test_contested_marks_are_hidden_at_the_end() -> None:
    words = rendered(a_result())[1].words
    assert words.index("deductible_plan — log_incentive") < words.index("log_coinsurance — visits")
    assert "log_coinsurance → visits ← health_poor" in words


def test_a_hostile_string_runs_as_code() -> None:
    result = hostile(a_result())
    # The names in the picture must be those of the graph: its own escaping has a test of its own.
    text = report.render(result, a_graph(a_result()))
    page = _Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.faults == []
    assert "<script" not in text
    assert page.words.count("<script>alert('x')</script>\"&") > 50
    for plot in re.findall(r"<svg.*?</svg>", text, flags=re.S):
        ElementTree.fromstring(plot)


def test_the_page_asks_the_network_for_something() -> None:
    text, page = rendered(a_result())
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [a for _, attributes in page.tags for a in attributes if a in {"src", "href"} or a.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def bare_result() -> dict[str, Any]:
    """The least a run can hold: nothing simulated, noised, pooled, trained or estimated."""
    result = a_result()
    del result["privacy"]
    del result["pool"]
    result |= {"simulation": None, "effects": [], "marks": [], "rounds": [], "seconds": {}, "members": []}
    return result


def test_what_is_missing_breaks_the_page() -> None:
    words = rendered(bare_result())[1].words
    assert "No effect was released." in words
    assert "Nothing: the members ran on machines of their own." in words
    assert "No evidence was pooled in this study." in words
    assert "No round was trained." in words


def test_a_null_inside_a_section_breaks_the_page() -> None:
    result = a_result()
    result["effects"][0]["pooled"] = None
    result["members"][3] |= {"noisy_count": None, "reason": None, "status": "absent"}
    result["pool"]["distances"]["clinic-3"] = None
    for entry in result["rounds"]:
        entry["loss"] = None
    words = rendered(result)[1].words
    assert "without privacy would give" not in words
    assert "No loss was released" in words
    assert "None" not in words


def test_a_loss_that_only_some_rounds_released_is_drawn_at_the_wrong_round() -> None:
    result = a_result()
    for entry in result["rounds"][:5]:
        entry["loss"] = None
    text, _ = rendered(result)
    line = re.search(r'class="loss" points="([^"]*)"', text)
    assert line is not None
    xs = [float(point.split(",")[0]) for point in line[1].split()]
    ticks = re.findall(r'class="tick" x="([\d.]+)" y="[\d.]+">(?:[6-9]|10)<', text)
    assert xs == [float(x) for x in ticks[-5:]]


def test_overspending_looks_like_a_full_meter() -> None:
    result = a_result()
    result["privacy"]["spent"]["clinic-0"] = 3.6
    assert "120 %, over the budget" in rendered(result)[1].words


def test_a_result_without_its_sections_fails_without_saying_which() -> None:
    result = a_result()
    del result["ledger"], result["rounds"]
    with pytest.raises(MisuseError, match="missing: ledger, rounds"):
        report.render(result, "")


def test_the_report_depends_on_more_than_its_arguments(tmp_path: Path) -> None:
    result = a_result()
    before = copy.deepcopy(result)
    for name in ("a", "b"):
        report.write(json.loads(json.dumps(result)), a_graph(result), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert result == before


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{_SVG}text")]


def boxes(svg: str, kind: str = "cg-box") -> list[tuple[float, float, float, float]]:
    rectangles = ElementTree.fromstring(svg).iter(f"{_SVG}rect")
    kept = [r for r in rectangles if (r.get("class") or "").startswith(kind)]
    return [tuple(float(r.get(k) or 0) for k in ("x", "y", "width", "height")) for r in kept]  # type: ignore[misc]


def test_the_picture_leaves_something_out() -> None:
    result = a_result()
    svg = a_graph(result)
    root = ElementTree.fromstring(svg)
    titles = [title.text for title in root.iter(f"{_SVG}title")]
    assert set(_NODES) <= set(titles)
    drawn = [p for p in root.iter(f"{_SVG}path") if p.get("class") == "cg-line" and " C" in (p.get("d") or "")]
    assert len(drawn) == len(_DIRECTED) + len(_UNDIRECTED) + 1
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
    lines = [p.get("d") or "" for p in ElementTree.fromstring(svg).iter(f"{_SVG}path") if p.get("class") == "cg-line"]
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
    legend = {g for g in root.findall(f"{_SVG}g") if g.find(f"{_SVG}text") is not None}
    links = [g for g in root.findall(f"{_SVG}g") if g not in legend]
    found = [element.get("class") for link in links for element in link.iter()]
    assert (found.count("cg-head"), found.count("cg-ring")) == (heads, rings)


def test_a_hostile_name_is_markup_in_the_picture() -> None:
    names = (_HOSTILE, "a\x00\x1b[31m\nb", "x" * 200)
    svg = picture.draw(CausalGraph.dag([(names[0], names[1])], nodes=names), [], treatment=_HOSTILE)
    root = ElementTree.fromstring(svg)
    assert not list(root.iter(f"{_SVG}script"))
    assert "<script" not in svg
    assert "\x1b" not in svg
    assert _HOSTILE in [title.text for title in root.iter(f"{_SVG}title")]


def test_the_order_of_the_marks_changes_the_picture() -> None:
    marks = a_result()["marks"]
    once = picture.draw(a_pattern(), marks)
    assert once == picture.draw(a_pattern(), marks[::-1])


def test_a_vote_on_an_unknown_variable_is_dropped_in_silence() -> None:
    with pytest.raises(ConfigurationError, match="no variable 'ghost'"):
        picture.draw(a_pattern(), [a_mark("visits", "ghost")])
    with pytest.raises(ConfigurationError, match="no variable 'ghost'"):
        picture.draw(a_pattern(), [], outcome="ghost")


def test_a_warning_or_the_bound_is_left_out() -> None:
    result = copy.deepcopy(a_result())
    result["warnings"] = ["The plain mean bears <b>no</b> liar."]
    result["effects"][0] |= {"bound": 0.0234, "graph_implies_zero": True}
    page = report.render(result, "<svg/>")
    assert "The plain mean bears &lt;b&gt;no&lt;/b&gt; liar." in page
    assert "0.023" in page
    assert "no causal path between the two" in page
