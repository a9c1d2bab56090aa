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

from causaldao.errors import MisuseError
from causaldao.server import report
from tests.server.result_cases import HOSTILE, a_graph, a_result

_VOID = {"meta", "br", "hr", "img", "link", "input"}


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
    return value + HOSTILE if isinstance(value, str) and value not in chosen else value


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


def test_a_deployment_is_called_a_simulation() -> None:
    result = a_result() | {"simulation": None}
    for effect in result["effects"]:
        del effect["pooled"]
    text, page = rendered(result)
    assert "Nothing: the members ran on machines of their own." in page.words
    assert "reference" not in page.words
    assert 'class="pooled"' not in text
    assert "not private" not in page.words
    result["privacy"]["noise"] = "simulated"
    words = rendered(result)[1].words
    assert "Simulated noise: not private" in words
    assert "Nothing: the members" not in words


def test_a_run_without_noise_passes_for_privacy() -> None:
    result = a_result()
    result["privacy"]["epsilon"] = None
    assert "No noise: not private" in rendered(result)[1].words
    assert "No noise: not private" in rendered(bare_result())[1].words


def test_a_chain_without_witnesses_passes_for_a_witnessed_one() -> None:
    result = a_result()
    assert "nobody cosigned it" in rendered(result)[1].words
    result["ledger"]["cosigners"] = ["clinic-1", "clinic-2"]
    words = rendered(result)[1].words
    assert "nobody cosigned" not in words
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


def test_a_warning_or_the_bound_is_left_out() -> None:
    result = copy.deepcopy(a_result())
    result["warnings"] = ["The plain mean bears <b>no</b> liar."]
    result["effects"][0] |= {
        "bound": 0.0234, "interval_with_liars": [-0.0815, -0.0067], "graph_implies_zero": True,
        "robustness": [0.096, 0.0767],
    }  # fmt: skip
    variables = {"<i>age": {"drawn": 61.0, "counterfactual": 61.0}, "visits": {"drawn": 1.25, "counterfactual": 0.75}}
    result["example"] = {"treatment": "log_coinsurance", "value": 4.36, "variables": variables}
    page = report.render(result, "<svg/>")
    assert "The plain mean bears &lt;b&gt;no&lt;/b&gt; liar." in page
    assert "0.023" in page
    assert "−0.0815 to −0.0067" in page
    assert "no causal path between the two" in page
    assert "have to explain 10% of what is left" in page
    assert "and 8% to bring the interval to zero" in page
    assert "&lt;i&gt;age" in page
    assert re.search(r"1.25</td><td class=\"n\"><b>0.75</b>", page)


def test_who_was_left_out_or_weighed_less_in_a_round_is_not_named() -> None:
    text, page = rendered(a_result())
    (row,) = re.findall(r'<tr><th scope="row">5</th>(.*?)</tr>', text)
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == ["clinic-8, clinic-9", "clinic-0 (0.03)", "0.13"]
    assert "That is no accusation" in page.words
    assert text.count('<circle class="light"') == 5 + 1  # every other of ten rounds, and the legend


def test_a_coordinate_rule_that_weighs_nobody_passes_for_one_that_weighed_all() -> None:
    result = a_result()
    result["rounds"] = [
        {**r, "rule": "trimmed-mean", "excluded": [], "down_weighted": [], "weights": None} for r in result["rounds"]
    ]
    assert "it works entry by entry" in rendered(result)[1].words
    result["rounds"] = [{**r, "weights": {"clinic-0": 0.1}} for r in result["rounds"]]
    assert "gave nobody less than half" in rendered(result)[1].words


def by_sums(**changes: Any) -> dict[str, Any]:
    """A result with an effect by members' sums, one of whom lies."""
    result = a_result()
    result["members"][7] |= {"status": "accused", "reason": "its sums for t on y deviate by 9.0 standard deviations"}
    result["effects"].append(
        {
            **result["effects"][0], "treatment": "t", "outcome": "y", "method": "aipw", "estimand": "att",
            "bound": 0.012, "interval_with_liars": [-0.07, -0.01], "accused": ["clinic-7"], "faulty": 2,
            "aside": {"clinic-2": "clinic-2: positivity is violated"},
            "quarantined": {"clinic-3": "it counts 0 records"},
            **changes,
        }
    )  # fmt: skip
    return result


def test_who_lied_with_its_sums_goes_unnamed_or_is_said_to_have_forged_its_evidence() -> None:
    words = rendered(by_sums())[1].words
    assert "clinic-7, accused: its sums fail the test against the others: its sums for t on y deviate" in words
    assert "clinic-9, accused: its evidence fails the test against the pool" in words
    assert "Accused, as its sums differ from the others' by more than chance explains: clinic-7" in words
    assert "Set aside: clinic-2: positivity is violated." in words
    assert "Not taken: clinic-3, it counts 0 records." in words
    assert "AIPW, among the treated" in words
    assert "moved the answer by 0.0120 at most: with them it is −0.0700 to −0.0100" in words
    worse = hostile(by_sums())
    worse["effects"][1]["method"] = "aipw"
    text = report.render(worse, a_graph(a_result()))
    assert "positivity is violated&lt;script&gt;" in text
    assert "<script" not in text


@pytest.mark.parametrize(
    ("code", "why"),
    [("guarantee", "Fewer members could answer"), ("not-identifiable", "does not settle what to adjust for"),
     ("data", "cannot carry this estimate")],
)  # fmt: skip
def test_an_effect_by_sums_without_an_answer_gives_no_reason(code: str, why: str) -> None:
    words = rendered(by_sums(estimate=None, no_answer=code))[1].words
    assert why in words
    assert "clinic-2: positivity is violated" in words
