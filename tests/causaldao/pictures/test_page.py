"""The interactive page: what would mislead in it, reach out of it, or run in it, and what a real browser makes of it.

The browser's tests need Debian's ``chromium``, or another of that name on PATH; where there is none, the others stand
alone: they read the page as a parser does and compare the hashes that a browser would.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from base64 import b64encode
from functools import cache
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causaldao.errors import ConfigurationError
from causaldao.models.discovery import METHODS, search
from causaldao.models.discovery.bootstrap import bootstrap, of_rows
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.explain import explain
from causaldao.models.graph import CausalGraph
from causaldao.pictures.page import page, payload
from tests.models.random_models import random_dag, sample, weights
from tests.server.result_cases import HOSTILE, NODES, a_mark, a_pattern, a_result

VENDOR = files("causaldao.pictures").joinpath("vendor")
BREAKING = (
    "</script><script>document.documentElement.dataset.owned=1</script>",
    "<!--<script>",
    "</script ",
    "<!--<script ",
    "\u2028",
    HOSTILE,
)


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.scripts[-1][1] == "":
            self.scripts[-1] = (self.scripts[-1][0], data)


def votes_of(result: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Votes that add up to the marks' counts, by member and key."""
    votes: dict[str, dict[str, int]] = {member["name"]: {} for member in result["members"]}
    for mark in result["marks"]:
        key = " - ".join(mark["nodes"]) if mark["kind"] == "adjacency" else "{} -> {} <- {}".format(*mark["nodes"])
        for place, own in enumerate(votes.values()):
            own[key] = 1 if place < mark["support"] else -1 if place < mark["support"] + mark["oppose"] else 0
    return votes


def a_page() -> str:
    result = a_result()
    return page(
        a_pattern(), title="rand-hie", subtitle="Do patients who pay more see a doctor less?", marks=result["marks"],
        votes=votes_of(result), treatment="log_coinsurance", outcome="visits", report=True,
    )  # fmt: skip


def a_hostile_page() -> str:
    names = (*BREAKING, "x")
    graph = CausalGraph.dag([(names[0], names[1]), (names[2], names[3])], nodes=names)
    mark = a_mark(names[0], names[1], support=1, oppose=1, status="contested")
    votes = {BREAKING[0]: {" - ".join(names[:2]): 1}}
    return page(graph, title=BREAKING[0], subtitle=BREAKING[1], marks=[mark], votes=votes)


def data_of(text: str) -> Any:
    (content,) = [body for attributes, body in _Page(text).scripts if attributes.get("id") == "data"]
    return json.loads(content)


def test_a_link_a_mark_or_a_vote_is_left_out() -> None:
    result = a_result()
    data = data_of(a_page())
    assert [node["name"] for node in data["nodes"]] == list(NODES)
    assert len(data["edges"]) == len(a_pattern().edges) + 1
    by_pair = {frozenset((edge["from"], edge["to"])): edge for edge in data["edges"]}
    for mark in (m for m in result["marks"] if m["kind"] == "adjacency"):
        edge = by_pair[frozenset(mark["nodes"])]
        assert {kind: edge["votes"][kind] for kind in ("support", "oppose", "abstain")} == {
            kind: mark[kind] for kind in ("support", "oppose", "abstain")
        }
        assert edge["weight"] == mark["support"] / 10
        for kind, names in edge["votes"]["members"].items():
            assert len(names) == mark[kind]
    struck = by_pair[frozenset(("deductible_plan", "log_incentive"))]
    assert (struck["status"], struck["votes"]["members"]["oppose"][0]) == ("struck", "clinic-2")
    assert [mark["name"] for mark in data["contested"]] == [
        "deductible_plan - log_incentive", "log_coinsurance → visits ← health_poor",
    ]  # fmt: skip
    assert {key["text"] for key in data["legend"]} >= {
        "cause → effect",
        "direction not settled",
        "struck: too many opposed",
    }


def test_a_discovery_shows_no_probability_and_no_reason() -> None:
    rng = np.random.default_rng(0)
    frame = sample(rng, weights(rng, 6, 2.5), 300)
    evidence = Evidence.from_data(frame)
    found = search(evidence, "pc")
    shares = bootstrap(of_rows(frame), METHODS["pc"], draws=10)
    data = payload(found.graph, probabilities=shares, explanations=explain(evidence, found))
    assert data["weightName"] == "probability"
    for edge in data["edges"]:
        pair = shares.pair(edge["from"], edge["to"])
        assert edge["weight"] == pair.adjacent
        assert edge["facts"][0] == ["Linked in", f"{pair.adjacent:.0%} of 10 draws"]
        assert "neighbours" in edge["why"][0] or "weak edge" in edge["why"][0]
    bare = payload(found.graph)
    assert (bare["weighed"], bare["contested"]) == (False, [])


def test_a_line_cuts_a_box_that_it_passes() -> None:
    """The points that a link bends at, back in the plane, are as far beside their rank's boxes as a lane is."""
    graph = random_dag(np.random.default_rng(2), 16, 3.0)
    data = payload(graph)
    nodes = {node["name"]: node for node in data["nodes"]}
    bent = [edge for edge in data["edges"] if edge["bends"]]
    assert len(bent) >= 5
    for edge in bent:
        a, b = nodes[edge["from"]], nodes[edge["to"]]
        dx, dy = b["x"] - a["x"], b["y"] - a["y"]
        length = (dx * dx + dy * dy) ** 0.5
        for along, aside in zip(edge["bends"]["weights"], edge["bends"]["distances"], strict=True):
            x = a["x"] + along * dx - aside * dy / length
            y = a["y"] + along * dy + aside * dx / length
            for other in nodes.values():
                if abs(other["y"] - y) < other["height"] / 2 + 8:
                    assert abs(other["x"] - x) >= other["width"] / 2 + 5


def test_the_page_may_reach_the_network_or_run_a_script_that_is_not_ours() -> None:
    for text in (a_page(), a_hostile_page()):
        found = _Page(text)
        (policy,) = [a["content"] or "" for tag, a in found.tags if tag == "meta" and a.get("http-equiv")]
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
        code = [body for attributes, body in found.scripts if attributes.get("type") != "application/json"]
        hashes = [f"'sha256-{b64encode(sha256(body.encode()).digest()).decode()}'" for body in code]
        assert rules["script-src"].split() == hashes
        assert len(code) == 2
        assert not [a for _, a in found.tags if "src" in a or any(name.startswith("on") for name in a)]
        assert {a["href"] for tag, a in found.tags if "href" in a} <= {"report.html"}
        assert "link" not in {tag for tag, _ in found.tags}


def test_a_name_becomes_markup() -> None:
    text = a_hostile_page()
    found = _Page(text)
    assert [tag for tag, _ in found.tags if tag == "script"] == ["script"] * 3
    assert [node["name"] for node in data_of(text)["nodes"]] == [*BREAKING, "x"]
    assert "<script>document" not in text
    body = text.partition('id="data">')[2].partition("</script>")[0]
    assert not {*"<>&\u2028\u2029"} & {*body}
    assert "innerHTML" not in text.partition('id="data"')[2].rpartition("<script>")[2]


def test_the_vendored_library_is_another_than_its_record_says() -> None:
    record = VENDOR.joinpath("README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `([^`]+)` \|.*\| (\d+\.\d+\.\d+) \| `([0-9a-f]{64})` \|", record)
    assert [name for name, *_ in rows] == ["cytoscape.min.js", "cytoscape.LICENSE"]
    for name, version, digest in rows:
        content = VENDOR.joinpath(name).read_bytes()
        assert sha256(content).hexdigest() == digest
        assert name.endswith("LICENSE") or f'"{version}"' in content.decode()
    assert "Permission is hereby granted, free of charge" in VENDOR.joinpath("cytoscape.LICENSE").read_text("utf-8")


def test_the_same_graph_gives_another_page() -> None:
    assert a_page() == a_page()
    with pytest.raises(ConfigurationError, match="'ghost'"):
        page(a_pattern(), title="", marks=[a_mark("visits", "ghost")])


@cache
def browser() -> str | None:
    """A chromium that starts here, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for found in map(shutil.which, names) if found), None)


def opened(text: str, folder: Path, *, act: str = "") -> dict[str, str]:
    """The ``data-`` attributes of the root once a browser has loaded the page and run ``act`` in it."""
    program = browser()
    assert program is not None
    if act:  # the page's own policy would refuse the test's script
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        text = text.replace("</body>", f"<script>{act}</script></body>")
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    done = subprocess.run(
        [program, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", str(file)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (root,) = re.findall(r"<html[^>]*>", done.stdout)[:1]
    return dict(re.findall(r'data-(\w+)="([^"]*)"', root))


in_a_browser = pytest.mark.skipif(browser() is None, reason="no chromium on PATH: apt-get install chromium")

ACT = """
const root = document.documentElement, details = document.getElementById("details");
const least = document.getElementById("least"), search = document.getElementById("search");
const contested = document.querySelectorAll("#contested button");
function put(input, value) { input.value = value; input.dispatchEvent(new Event("input")); }
function press(where, key) { where.dispatchEvent(new KeyboardEvent("keydown", { key: key })); }
put(least, 75);
root.dataset.high = root.dataset.shown;
put(least, 0);
put(search, "LOG_");
root.dataset.matches = root.dataset.found;
press(search, "Enter");
root.dataset.first = details.querySelector(".name").textContent;
put(search, "");
contested[0].click();
root.dataset.voters = details.querySelector("dl").textContent;
contested[1].click();
root.dataset.collider = details.textContent.includes("log_coinsurance → visits ← health_poor, contested");
press(document.getElementById("graph"), "Escape");
root.dataset.closed = details.querySelectorAll(".name").length;
document.getElementById("png").click();
const controls = [...document.querySelectorAll("button, input, #graph, a[href]")];
root.dataset.reachable = controls.every((control) => control.tabIndex === 0);
"""


@in_a_browser
def test_the_page_does_not_work_in_a_browser(tmp_path: Path) -> None:
    """Drawn under its own policy; then filtered, searched, asked who voted, by keys and clicks, and exported."""
    drawn = opened(a_page(), tmp_path)
    assert drawn == {"ready": "8 10", "shown": "10", "found": "0"}
    told = opened(a_page(), tmp_path, act=ACT)
    data = data_of(a_page())
    assert int(told["high"]) == sum(edge["weight"] >= 0.75 for edge in data["edges"]) > 0
    assert told["matches"] == str(sum("log_" in name for name in NODES))
    assert told["first"] == "log_coinsurance"
    assert "clinic-0, clinic-1" in told["voters"]
    assert "Oppose6: clinic-2" in told["voters"]
    assert (told["collider"], told["closed"], told["reachable"]) == ("true", "0", "true")
    assert int(told["png"]) > 5000
    assert "error" not in told


@in_a_browser
def test_a_hostile_name_runs_in_a_browser(tmp_path: Path) -> None:
    found = opened(a_hostile_page(), tmp_path)
    assert found == {"ready": "7 2", "shown": "2", "found": "0"}
    clicked = opened(
        a_hostile_page(), tmp_path, act="document.querySelectorAll('.list button').forEach((b) => b.click());"
    )
    assert not {"owned", "error"} & set(clicked)


@in_a_browser
def test_the_pages_policy_lets_a_script_of_another_run(tmp_path: Path) -> None:
    """The browser enforces what the page says: a script put into it is refused, and a picture from outside too."""
    added = "<script>document.documentElement.dataset.owned = 1</script></body>"
    found = opened(a_page().replace("</body>", added), tmp_path)
    assert "owned" not in found
    assert found["ready"] == "8 10"


def test_a_mark_that_nobody_proposed_is_struck() -> None:
    """In local mode a mark has too few supporters; there was no proposal, and no strength in a pool."""
    mark = {"kind": "adjacency", "nodes": ["a", "b"], "needed": 3, "support": 2, "oppose": 0, "abstain": 3}
    graph = CausalGraph.cpdag(nodes="ab")
    found = payload(graph, [{**mark, "status": "contested"}], {"x": {"a - b": 1}})
    (edge,) = found["edges"]
    assert (edge["status"], edge["short"]) == ("struck", "2/5, too few support it")
    assert edge["facts"] == [["Status", "not adopted: fewer than the 3 members that it takes support it"]]
    assert [
        entry["text"] for entry in found["legend"] if entry["status" if entry["marks"] else "text"] == "struck"
    ] == ["too few support it"]
    old = payload(graph, [{**{k: v for k, v in mark.items() if k != "needed"}, "strength": 0.1, "status": "contested"}])
    assert old["edges"][0]["short"] == "2/5, struck"
    spoken = {**mark, "kind": "collider", "nodes": ["a", "b", "a"], "status": "contested"}
    assert payload(graph, [spoken])["contested"][0]["short"] == "2/5, too few support it"
    assert "members whose graph has the link" in found["legend"][-1]["text"]
    assert "members whose evidence supports the link" in old["legend"][-1]["text"]
