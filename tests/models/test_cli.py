"""`causaldao identify`: the formula, the reason, and status 16 with the hedge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from causaldao.__main__ import app
from causaldao.models.graph import CausalGraph

FRONT_DOOR = CausalGraph.admg([("x", "m"), ("m", "y")], [("x", "y")])
BOW = CausalGraph.admg([("x", "y")], [("x", "y")])
CHAIN = CausalGraph.cpdag([], [("x", "m"), ("m", "y")])


def written(folder: Path, graph: CausalGraph) -> Path:
    path = folder / "graph.json"
    path.write_text(json.dumps(graph.to_json()))
    return path


def run(*arguments: Any) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["identify", *map(str, arguments), "--json"])
    assert not isinstance(result.exception, Exception), result.exception
    envelope = json.loads(result.stdout)
    return result.exit_code, envelope["data" if envelope["status"] == "ok" else "error"]


def shown(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["identify", *map(str, arguments)])
    assert not isinstance(result.exception, Exception), result.exception
    return result.exit_code, result.output


def test_the_formula_or_its_reason_is_not_printed(tmp_path: Path) -> None:
    graph = written(tmp_path, FRONT_DOOR)
    equation = "P(y | do(x)) = Σ_m P(m | x) Σ_x' P(y | m, x') P(x')"
    assert shown(graph, "--treatment", "x", "--outcome", "y") == (0, f"{equation}\n")
    code, text = shown(graph, "--treatment", "x", "--outcome", "y", "--explain")
    assert (code, text.splitlines()[0]) == (0, equation)
    assert "Front-door criterion, with m between" in text
    code, data = run(graph, "--treatment", "x", "--outcome", "y")
    assert (code, data["equation"], data["method"]) == (0, equation, "front-door")
    assert data["latex"].startswith(r"P(y \mid \mathrm{do}(x)) = \sum_{m}")


def test_conditions_and_several_variables_are_dropped(tmp_path: Path) -> None:
    graph = written(tmp_path, CausalGraph.dag([("c", "x"), ("c", "y"), ("x", "y"), ("x", "w")]))
    _, data = run(graph, "--treatment", "x", "--outcome", "y", "--outcome", "w", "--given", "c")
    assert (data["treatment"], data["outcome"], data["conditions"]) == (["x"], ["w", "y"], ["c"])
    assert data["equation"].startswith("P(w, y | do(x), c) = ")


def test_a_refusal_has_another_status_or_no_hedge(tmp_path: Path) -> None:
    graph = written(tmp_path, BOW)
    code, error = run(graph, "--treatment", "x", "--outcome", "y")
    assert (code, error["code"], error["exit_code"]) == (16, "not-identifiable", 16)
    assert CausalGraph.from_json(error["hedge"]["outer"]) == BOW
    assert error["hedge"]["inner"]["nodes"] == error["hedge"]["roots"] == ["y"]
    code, text = shown(graph, "--treatment", "x", "--outcome", "y")
    assert code == 16
    assert "latent common causes (x <-> y)" in text
    assert "docs/errors/not-identifiable.md" in text


def test_an_undirected_edge_comes_with_a_hedge_or_unnamed(tmp_path: Path) -> None:
    code, error = run(written(tmp_path, CHAIN), "--treatment", "x", "--outcome", "y")
    assert code == 16
    assert "x - m is undirected" in error["message"]
    assert "hedge" not in error


@pytest.mark.parametrize("form", ["folder", "both graphs", "envelope"])
def test_a_graph_that_we_wrote_cannot_be_read(form: str, tmp_path: Path) -> None:
    graph = FRONT_DOOR.to_json()
    value = {"folder": {"pattern": graph, "dag": {}}, "both graphs": {"pattern": graph, "dag": {}},
             "envelope": {"data": {"method": "boss", "graph": graph}}}[form]  # fmt: skip
    (tmp_path / "graph.json").write_text(json.dumps(value))
    path = tmp_path if form == "folder" else tmp_path / "graph.json"
    assert run(path, "--treatment", "x", "--outcome", "y")[0] == 0


@pytest.mark.parametrize(
    ("content", "names", "code", "message"),
    [
        (json.dumps(FRONT_DOOR.to_json()), ("x", "x"), 2, "both treatment and outcome"),
        (json.dumps(FRONT_DOOR.to_json()), ("q", "y"), 2, "no node q"),
        ("[1, 2]", ("x", "y"), 10, "holds no graph"),
        ("{", ("x", "y"), 10, "not valid JSON"),
        (None, ("x", "y"), 10, "cannot be read"),
        (
            json.dumps({"nodes": ["x", "y"], "edges": [{"from": "x", "to": "y", "marks": ["-", ">"]},
                                                       {"from": "y", "to": "x", "marks": ["-", ">"]}]}),
            ("x", "y"), 10, "cycle",
        ),
    ],
    ids=["itself", "unknown", "list", "text", "nothing", "cycle"],
)  # fmt: skip
def test_a_wrong_question_is_a_traceback(
    content: str | None, names: tuple[str, str], code: int, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "graph.json").write_text(content)
    found, error = run(tmp_path / "graph.json", "--treatment", names[0], "--outcome", names[1])
    assert (found, error["exit_code"]) == (code, code)
    assert message in error["message"]
