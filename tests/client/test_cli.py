"""`causaldao node`: every fault at once, the right exit status, one JSON envelope, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from causaldao.__main__ import app
from causaldao.budget import Spend
from causaldao.client.privacy.journal import Cap, Journal, ReleaseKey
from causaldao.signing import SigningKey
from causaldao.study import Study

STUDY = """
[study]
name = "small"
question = "Does a move c?"
purpose = "A test."
retention = "A day."
[[variables]]
name = "a"
kind = "continuous"
bounds = [-6.0, 6.0]
[[variables]]
name = "b"
kind = "binary"
bounds = [0, 1]
[[variables]]
name = "c"
kind = "count"
bounds = [0, 9]
[privacy]
epsilon = 4.0
delta = 1e-6
[training]
rounds = 1
[members]
n_min = 20
"""
ROWS = "a,b,c\n" + "0.5,1,3\n-0.5,0,4\n" * 20
NODE = """
name = "{name}"
federation = "fed"
coordinator = "{key}"
data = "data.csv"
dataset = "admissions"
approved = []
[lifetime]
epsilon = {epsilon}
delta = 1e-6
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A node's folder, and the study beside it."""
    (tmp_path / "node").mkdir()
    (tmp_path / "study.toml").write_text(STUDY)
    write_node(tmp_path / "node")
    (tmp_path / "node" / "data.csv").write_text(ROWS)
    return tmp_path / "node"


def write_node(folder: Path, name: str = "north", epsilon: float = 10.0) -> None:
    key = SigningKey.from_seed(b"C" * 32).public.to_text("coordinator")
    (folder / "node.toml").write_text(NODE.format(name=name, key=key, epsilon=epsilon))


def run(*arguments: Any) -> tuple[int, dict[str, Any]]:
    """Exit status and envelope; stdout holds nothing else."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    envelope = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert envelope["schema_version"] == 1
    assert envelope["status"] == ("ok" if result.exit_code == 0 else "error")
    return result.exit_code, envelope["data" if result.exit_code == 0 else "error"]


def dry_run(folder: Path) -> tuple[int, dict[str, Any]]:
    before = contents(folder)
    found = run("node", "dry-run", folder, "--study", folder.parent / "study.toml")
    assert contents(folder) == before
    return found


def contents(folder: Path) -> dict[str, Any]:
    """What each file says; of a journal its debits, since SQLite counts its openings in the file."""
    return {
        path.name: Journal.open(path).debits() if path.name == "journal.db" else path.read_bytes()
        for path in sorted(folder.iterdir())
    }


def test_a_dry_run_says_what_would_be_spent_and_that_the_study_is_not_approved(folder: Path) -> None:
    code, data = dry_run(folder)
    study = Study.from_toml(STUDY)
    assert (code, data["hash"], data["approved"], data["warnings"]) == (0, study.hash, False, [])
    assert 3.5 < data["would_spend"]["epsilon"] <= 4.0


def test_an_approved_study_is_said_to_be(folder: Path) -> None:
    text = (folder / "node.toml").read_text()
    (folder / "node.toml").write_text(text.replace("approved = []", f'approved = ["{Study.from_toml(STUDY).hash}"]'))
    assert dry_run(folder)[1]["approved"] is True


def test_out_of_bounds_is_a_warning_that_names_the_row(folder: Path) -> None:
    (folder / "data.csv").write_text(ROWS + "7.5,1,3\n")
    code, data = dry_run(folder)
    assert code == 0
    assert "'a'" in data["warnings"][0]
    assert "41" in data["warnings"][0]


def test_all_faults_of_the_data_are_reported_at_once(folder: Path) -> None:
    (folder / "data.csv").write_text("a,c\n0.5,3\nmany,4.5\n,2\n1.0,1\n")
    code, error = dry_run(folder)
    assert (code, error["code"], error["exit_code"], error["help"]) == (11, "data", 11, "docs/errors/data.md")
    text = "\n".join(error["problems"])
    for part in ("'many'", "no value", "'b': the column is missing", "4.5"):
        assert part in text


FILES: dict[str, Callable[[Path], Any]] = {
    "missing column": lambda path: path.write_text("a,b\n1,1\n"),
    "wrong kind": lambda path: path.write_text("a,b,c\n1,2,3\n"),
    "NaN": lambda path: path.write_text("a,b,c\n1,1,3\n,1,3\n"),
    "text in numbers": lambda path: path.write_text("a,b,c\n1,1,three\n"),
    "a header only": lambda path: path.write_text("a,b,c\n"),
    "an empty file": lambda path: path.write_text(""),
    "a ragged line": lambda path: path.write_text("a,b,c\n1,1\n"),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "no file": lambda path: path.unlink(),
}


@pytest.mark.parametrize("case", FILES)
def test_unfit_data_end_with_11_and_write_nothing(case: str, folder: Path) -> None:
    FILES[case](folder / "data.csv")
    code, error = dry_run(folder)
    assert (code, error["code"]) == (11, "data")


def test_a_budget_too_small_ends_with_12(folder: Path) -> None:
    write_node(folder, epsilon=3.0)
    code, error = dry_run(folder)
    assert (code, error["code"]) == (12, "budget")
    assert "lifetime cap of 3" in error["message"]


def test_what_other_studies_spent_on_the_same_data_set_counts(folder: Path) -> None:
    write_node(folder, epsilon=4.5)
    cap = Cap(9.0, 1e-6)
    Journal.open(folder / "journal.db").release(
        ReleaseKey("0" * 64, "admissions", "evidence"), [Spend(2.0)], cap, cap, lambda: b"x"
    )
    assert dry_run(folder)[0] == 12


def test_a_mistyped_study_ends_with_10_and_all_its_faults(folder: Path) -> None:
    wrong = (
        STUDY.replace("epsilon = 4.0", "epsilon = -4.0")
        .replace("rounds = 1", "round = 1")
        .replace('"binary"', '"boolean"')
    )
    (folder.parent / "study.toml").write_text(wrong)
    code, error = dry_run(folder)
    assert (code, error["code"]) == (10, "configuration")
    assert len(error["problems"]) == 3
    for key in ("privacy.epsilon", "training.round", "variables.1.kind"):
        assert any(key in problem for problem in error["problems"])


@pytest.mark.parametrize("name", ["../x", "North", "", "a b"])
def test_a_member_name_that_is_no_slug_ends_with_10(name: str, folder: Path) -> None:
    write_node(folder, name=name)
    code, error = dry_run(folder)
    assert code == 10
    assert any("name" in problem for problem in error["problems"])


@pytest.mark.parametrize("text", ["name = ", "\x00", "name = 'x'\nseed = 7"])
def test_a_broken_node_file_ends_with_10(text: str, folder: Path) -> None:
    (folder / "node.toml").write_text(text)
    assert dry_run(folder)[0] == 10


def test_missing_files_end_with_10(folder: Path, tmp_path: Path) -> None:
    assert run("node", "dry-run", tmp_path / "nowhere", "--study", tmp_path / "study.toml")[0] == 10
    assert run("node", "dry-run", folder, "--study", tmp_path / "nothing.toml")[0] == 10


def test_people_read_the_same_on_stderr_and_stdout_stays_empty(folder: Path) -> None:
    (folder / "data.csv").write_text("a,b\n1,1\n")
    result = CliRunner().invoke(app, ["node", "dry-run", str(folder), "--study", str(folder.parent / "study.toml")])
    assert (result.exit_code, result.stdout) == (11, "")
    assert "the column is missing" in result.stderr


def test_the_budget_is_told_before_and_after_there_is_a_journal(folder: Path) -> None:
    code, data = run("node", "budget", folder)
    assert (code, data["spent"]) == (0, 0.0)
    assert not (folder / "journal.db").exists()
    cap = Cap(9.0, 1e-6)
    Journal.open(folder / "journal.db").release(
        ReleaseKey("0" * 64, "admissions", "evidence"), [Spend(2.0)], cap, cap, lambda: b"x"
    )
    code, data = run("node", "budget", folder)
    assert code == 0
    assert (data["dataset"], data["epsilon"]) == ("admissions", 10.0)
    assert 1.5 < data["spent"] < 4.0
