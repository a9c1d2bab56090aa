"""`causaldao effect` on rows: each method answers, says on what condition, and refuses what makes no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from causaldao.__main__ import app
from causaldao.models.graph import CausalGraph
from tests.models import planted
from tests.models.planted import Problem

PROBLEMS = {
    "arms": planted.arms(np.random.default_rng(0)),
    "binary": planted.arms(np.random.default_rng(1), family="binary"),
    "front-door": planted.front_door(np.random.default_rng(2)),
    "instrument": planted.instrument(np.random.default_rng(3)),
    "mediated": planted.mediated(np.random.default_rng(4), estimand="nie"),
    "napkin": planted.discrete(np.random.default_rng(5), planted.NAPKIN, 20_000),
    "dose": planted.dose(np.random.default_rng(6)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("effects")
    for name, problem in PROBLEMS.items():
        problem.data.to_csv(path / f"{name}.csv", index=False)
        problem.data.to_parquet(path / f"{name}.parquet", index=False)
        (path / f"{name}.json").write_text(json.dumps(problem.graph.to_json()))
    return path


def run(*arguments: Any, as_json: bool = True) -> tuple[int, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), *(["--json"] if as_json else [])])
    assert not isinstance(result.exception, Exception), result.exception
    if not as_json:
        return result.exit_code, result.stdout
    envelope = json.loads(result.stdout)
    return result.exit_code, envelope["data" if envelope["status"] == "ok" else "error"]


def asked(folder: Path, name: str, *options: str, suffix: str = "csv", as_json: bool = True) -> tuple[int, Any]:
    files = folder / f"{name}.{suffix}", "--graph", folder / f"{name}.json"
    return run("effect", *files, "--treatment", "t", "--outcome", "y", *options, as_json=as_json)


@pytest.mark.parametrize(
    ("name", "options", "method"),
    [
        ("arms", "", None),
        ("arms", "--method auto", "aipw"),
        ("arms", "--method ipw --seed 3", "ipw"),
        ("binary", "--method g-formula --family binary", "g-formula"),
        ("dose", "--method auto --degree 2 --contrast 1,2", "plm"),
        ("front-door", "", "front-door"),
        ("front-door", "--method front-door --mediator m", "front-door"),
        ("instrument", "--assume linear", "2sls"),
        ("mediated", "--estimand nie", "mediation"),
        ("napkin", "", "plug-in"),
    ],
)
def test_a_method_misses_the_planted_truth(name: str, options: str, method: str | None, folder: Path) -> None:
    problem: Problem = PROBLEMS[name]
    code, found = asked(folder, name, *options.split(), suffix="parquet")
    (effect,) = found["effects"]
    assert (code, effect.get("method")) == (0, method)
    if method is not None:  # the old way answers by a line, which this table is not
        assert abs(effect["estimate"] - problem.truth) < 4 * effect["standard_error"]
        assert effect["conditional_on"] == "the graph"
        assert "if the graph is right" in found["notes"][-1]


def test_people_are_told_neither_why_nor_on_what_condition(folder: Path) -> None:
    code, text = asked(folder, "binary", "--method", "auto", "--explain", "--refute", as_json=False)
    assert code == 0
    assert "t -> y given c, w: " in text
    assert "(ate by aipw; t from 0 to 1; n = " in text
    assert "risk ratio" in text
    assert "Adjustment criterion" in text
    assert "the doubt about the graph is not in them" in text
    for name in ("placebo treatment", "E-value", "robustness value", "implied independences"):
        assert name in text


def test_refutations_are_left_out_of_the_envelope(folder: Path) -> None:
    code, found = asked(folder, "instrument", "--assume", "linear", "--refute")
    assert code == 0
    assert [one["name"] for one in found["effects"][0]["refutations"]] == ["random subset", "implied independences"]
    assert found["effects"][0]["first_stage"] > 10


def test_a_negative_control_is_not_tried(folder: Path, tmp_path: Path) -> None:
    problem = PROBLEMS["arms"]
    table = tmp_path / "table.csv"
    problem.data.assign(control=problem.data["c"] + np.random.default_rng(7).normal(size=len(problem.data))).to_csv(
        table
    )
    names = "--treatment", "t", "--outcome", "y", "--graph", folder / "arms.json"
    code, found = run("effect", table, *names, "--refute", "--control", "control")
    assert code == 0
    (control,) = [one for one in found["effects"][0]["refutations"] if one["name"] == "negative control outcome"]
    low, high = control["details"]["interval"]
    assert low < control["number"] < high
    assert control["passed"] == (low <= 0 <= high)
    assert abs(control["number"]) < 4 * (high - low) / 3.92


def test_an_effect_that_changes_with_a_covariate_is_one_number(folder: Path) -> None:
    code, found = asked(folder, "arms", "--by", "c", "--by", "w")
    (line,) = found["effects"]
    assert (code, list(line["slopes"])) == (0, ["c", "w"])
    rng = np.random.default_rng(0)
    planted.rows_of(rng)
    growth = rng.uniform(-0.8, 0.8, 5)[4]  # as `planted.arms` draws it
    low, high = line["slopes"]["c"]["interval"]
    assert abs(line["slopes"]["c"]["value"] - growth) < 4 * (high - low) / 3.92
    assert not low < 0 < high
    _, text = asked(folder, "arms", "--by", "c", as_json=False)
    assert "t -> y at the mean of c: " in text
    assert "for one unit of c" in text
    assert "the doubt about the graph is not in them" in text


def test_a_dose_is_answered_as_another_or_against_another(folder: Path) -> None:
    truth = PROBLEMS["dose"].truth
    code, found = asked(folder, "dose", "--dose", "-1,0.5,1", "--reference", "0")
    (curve,) = found["effects"]
    assert (code, [one["dose"] for one in curve["doses"]]) == (0, [-1.0, 0.5, 1.0])
    for one in curve["doses"]:
        low, high = one["effect"]["interval"]
        assert abs(one["effect"]["value"] - truth * one["dose"]) < 4 * (high - low) / 3.92
    _, text = asked(folder, "dose", "--dose", "1", as_json=False)
    assert "each dose against the mean dose" in text
    code, error = asked(folder, "dose", "--dose", "1,99")
    assert (code, "dose 99 lies outside the rows' range" in error["message"]) == (2, True)


def test_least_squares_bridges_an_empty_stratum_in_silence(folder: Path) -> None:
    """By default the answer is a straight line, which runs on where nobody is treated: the stratum is named."""
    assert asked(folder, "arms")[1]["notes"] == []
    data = PROBLEMS["arms"].data
    data.assign(t=data["t"] * (1 - data["w"])).to_csv(folder / "empty.csv", index=False)
    (folder / "empty.json").write_text((folder / "arms.json").read_text())
    code, found = asked(folder, "empty")
    assert (code, len(found["notes"])) == (0, 1)
    assert "positivity is violated (w = 1: " in found["notes"][0]
    assert "none treated" in found["notes"][0]


def test_rows_are_left_out_of_a_line_or_kept_in_it_in_silence(folder: Path) -> None:
    plain, trimmed = (asked(folder, "arms", "--by", "w", *more.split())[1] for more in ("", "--trim 0.3"))
    assert trimmed["effects"][0]["n"] < plain["effects"][0]["n"]
    assert any("were left out: the answer is for the others" in note for note in trimmed["notes"])
    code, error = asked(folder, "dose", "--dose", "1", "--trim", "0.3")
    assert (code, "trim" in error["message"]) == (2, True)


def test_a_column_that_the_graph_has_and_the_table_lacks_is_misuse(folder: Path) -> None:
    (folder / "more.json").write_text(json.dumps(
        CausalGraph.dag([("t", "y"), ("c", "t"), ("c", "y"), ("income", "t"), ("income", "y")]).to_json()
    ))  # fmt: skip
    source = ("effect", folder / "arms.csv", "--graph", folder / "more.json")
    code, error = run(*source, "--treatment", "t", "--outcome", "y")
    assert (code, "adjust for income" in error["message"]) == (11, True)
    assert run(*source, "--treatment", "q", "--outcome", "y")[0] == 2


BOW = CausalGraph.admg([("t", "y")], [("t", "y")])


@pytest.mark.parametrize(
    ("source", "graph", "options", "code"),
    [
        ("{f}/arms.csv", None, "--method aipw", 2),
        ("{f}/arms.csv", None, "--refute", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--method linear --estimand att", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--method linear --refute", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--method magic", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--contrast much", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--contrast 1,2,3", 2),
        ("{f}/arms.csv", None, "--by c", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--by t", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--by c --dose 1", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--by c --refute", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--dose 1,nan", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--reference 1", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--control c", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--estimand nde", 16),
        ("{f}/arms.csv", "{f}/front-door.json", "--method auto", 11),
        ("{f}/arms.csv", "{f}/bow.json", "", 16),
        ("{f}/arms.csv", "{f}/bow.json", "--method auto", 16),
        ("{f}/arms.csv", "{f}/bow.json", "--method linear", 2),
        ("{f}/arms.csv", "{f}/arms.json", "--seed -1", 2),
        ("{f}/nan.csv", "{f}/arms.json", "--method auto", 11),
        ("{f}/strata.csv", "{f}/arms.json", "--method auto", 11),
        ("{f}", None, "--method auto", 2),
    ],
)
def test_a_question_without_sense_is_answered(
    source: str, graph: str | None, options: str, code: int, folder: Path
) -> None:
    data = PROBLEMS["arms"].data
    data.assign(c=data["c"].where(data["c"] < 1)).to_csv(folder / "nan.csv", index=False)
    data.assign(t=data["t"] * data["w"]).to_csv(folder / "strata.csv", index=False)
    (folder / "bow.json").write_text(json.dumps(BOW.to_json()))
    given = [] if graph is None else ["--graph", graph.format(f=folder)]
    names = ["--treatment", "t", "--outcome", "y"]
    found, error = run("effect", source.format(f=folder), *names, *given, *options.split())
    assert (found, error["exit_code"]) == (code, code), error
    told = {"nan": "c: ", "strata": "w = 0"}
    for name, problem in told.items():
        if name in source:
            assert any(problem in line for line in error["problems"])
