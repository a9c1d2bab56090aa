"""`causaldao simulate` and `study check`: exit statuses, one envelope, nothing written by a refused run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from causaldao.__main__ import app
from causaldao.errors import ConfigurationError, MisuseError
from causaldao.simulations.scenarios import load_study, load_table, scenario_names
from tests.simulations import small

STUDY = """
[study]
name = "small"
question = "Does a move c?"
purpose = "A test."
retention = "A day."
simulation = true
[[variables]]
name = "a"
kind = "continuous"
bounds = [-6.0, 6.0]
[[variables]]
name = "c"
kind = "continuous"
bounds = [-6.0, 6.0]
[discovery]
restarts = 2
[consensus]
faulty = 2
[training]
rounds = 0
[privacy]
epsilon = 40.0
delta = 1e-5
[members]
n_min = 50
n_max = 2000
deadline = 30.0
[[effects]]
treatment = "a"
outcome = "c"
adjustment = []
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study file, its table beside it."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY)
    small.table(1400)[["a", "c"]].to_csv(folder / "table.csv", index=False)
    return folder / "study.toml"


def run(*arguments: Any) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert not isinstance(result.exception, Exception), result.exception
    envelope = json.loads(result.stdout)
    assert envelope["schema_version"] == 1
    assert envelope["status"] == ("ok" if result.exit_code == 0 else "error")
    return result.exit_code, envelope["data" if result.exit_code == 0 else "error"]


def simulate(study: Path, out: Path, *options: Any) -> tuple[int, dict[str, Any]]:
    return run("simulate", study, "--data", study.with_name("table.csv"), "--members", 7, "--out", out, *options)


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    code, data = simulate(study, out, "--liars", 2)
    assert (code, data["out"]) == (0, str(out))
    return out


def test_a_run_leaves_its_files_and_a_verifiable_bundle(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "result.json", "graph.json", "graph.svg", "graph.html", "ledger.db", "ledger.bundle", "policy", "report.html",
        "nodes",
    }  # fmt: skip
    assert not [name for name in names if name.endswith(".tmp")]
    for command in (["ledger", "verify"], ["audit"]):
        code, _ = run(*command, finished / "ledger.bundle", "--policy", finished / "policy")
        assert code == 0, command


def test_private_keys_and_journals_are_for_their_owner_only(finished: Path) -> None:
    secret = [
        finished / "coordinator.pem",
        *finished.glob("nodes/*/key.pem"),
        *finished.glob("nodes/*/journal.db"),
    ]
    assert len(secret) == 15
    assert {path.stat().st_mode & 0o077 for path in secret} == {0}


def test_the_result_in_the_envelope_is_the_one_in_the_folder(finished: Path, study: Path) -> None:
    code, data = simulate(study, finished, "--liars", 2, "--resume")
    assert code == 0
    written = json.loads((finished / "result.json").read_text())
    assert data["result"] == written
    assert written["simulation"]["liars"] == [m["name"] for m in written["members"] if m["status"] == "accused"]


def test_people_get_a_summary_on_stdout_and_progress_on_stderr(study: Path, tmp_path: Path) -> None:
    arguments = [
        "simulate",
        study,
        "--data",
        study.with_name("table.csv"),
        "--members",
        7,
        "--out",
        tmp_path / "run",
    ]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0
    assert "a -> c" in result.stdout
    assert "simulated noise: not private" in result.stdout
    assert "roll call 7/7" in result.stderr


REFUSED: list[tuple[list[Any], int]] = [
    (["--members", 4], 13),
    (["--members", 4, "--liars", 2], 13),
    (["--faulty", 3], 13),
    (["--faulty", -1], 10),
    (["--members", 0], 2),
    (["--liars", 8], 2),
    (["--seed", -1], 2),
    (["--attack", "bribe"], 2),
    (["--attack", "bribe", "--liars", 2], 2),
    (["--rule", "majority"], 2),
    (["--engine", "warp"], 2),
    (["--data", "atlantis"], 2),
    (["--data", "nothing.csv"], 11),
    (["--members", 255], 11),
    (["--members", 256], 2),
]


@pytest.mark.parametrize(
    ("options", "code"),
    REFUSED,
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_a_refused_run_has_its_exit_status_and_writes_nothing(
    options: list[Any], code: int, study: Path, tmp_path: Path
) -> None:
    found, error = simulate(study, tmp_path / "run", *options)
    assert (found, error["exit_code"]) == (code, code), error
    assert list(tmp_path.iterdir()) == []


def test_ray_is_asked_for_where_there_is_none(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causaldao.simulations.ray_engine.find_spec", lambda name: None)
    code, error = simulate(study, tmp_path / "run", "--engine", "ray")
    assert (code, "causaldao[ray]" in error["message"]) == (10, True)
    assert list(tmp_path.iterdir()) == []
    assert run("bench", "scale")[0] == 10


def test_four_members_with_two_liars_are_told_the_largest_f(study: Path, tmp_path: Path) -> None:
    _, error = simulate(study, tmp_path / "run", "--members", 4, "--liars", 2)
    assert "4 bear at most faulty = 0" in error["message"]


@pytest.mark.parametrize(
    "options", [["--seed", 1], ["--liars", 1], ["--faulty", 1], ["--rule", "mean"], ["--data", "other.csv"]]
)
def test_resuming_with_other_options_is_refused(options: list[Any], finished: Path, study: Path) -> None:
    small.table(1400, seed=5)[["a", "c"]].to_csv(study.with_name("other.csv"), index=False)
    changed = [study.with_name("other.csv") if option == "other.csv" else option for option in options]
    before = (finished / "result.json").read_bytes()
    code, error = simulate(study, finished, "--liars", 2, "--resume", *changed)
    assert (code, error["code"]) == (10, "configuration")
    assert (finished / "result.json").read_bytes() == before


def test_a_used_folder_is_refused_without_resume_and_an_empty_one_with(
    finished: Path, study: Path, tmp_path: Path
) -> None:
    assert simulate(study, finished)[0] == 10
    assert simulate(study, tmp_path / "nothing", "--resume")[0] == 10
    assert not (tmp_path / "nothing").exists()


def test_a_study_that_is_neither_file_nor_scenario_names_the_scenarios(tmp_path: Path) -> None:
    code, error = run("simulate", "atlantis", "--out", tmp_path / "run")
    assert code == 10
    assert "rand-hie" in error["message"]


def test_a_mistyped_study_names_all_its_faults(study: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(
        STUDY.replace("epsilon = 40.0", "epsilon = 0").replace("faulty = 2", "faulti = 2").replace("deadline", "dead")
    )
    for command in (["simulate", wrong, "--out", tmp_path / "run"], ["study", "check", wrong]):
        code, error = run(*command)
        assert (code, len(error["problems"])) == (10, 3)


def test_a_study_check_says_what_it_costs_and_how_many_it_needs(study: Path) -> None:
    code, data = run("study", "check", study)
    assert (code, data["members_needed"]) == (0, 7)
    assert data["epsilon"] <= 40.0
    assert run("study", "check", study, "--members", 6)[0] == 13
    assert run("study", "check", study.with_name("none.toml"))[0] == 10


def test_a_rule_of_the_callers_makes_another_study() -> None:
    plain, mean = load_study(Path("rand-hie")), load_study(Path("rand-hie"), rule="mean")
    assert (mean.aggregation.rule, mean.aggregation.pool) == ("mean", "mean")
    assert load_study(Path("rand-hie"), rule="trimmed-mean").aggregation.pool == "multi-krum"
    assert plain.hash != mean.hash


def test_every_scenario_is_valid_and_has_its_table() -> None:
    assert scenario_names() == ["rand-hie"]
    for name in scenario_names():
        study = load_study(Path(name))
        assert study.name == name
        assert set(study.names) <= set(load_table(name).columns)
    with pytest.raises(MisuseError):
        load_table("atlantis")
    with pytest.raises(ConfigurationError):
        load_study(Path("atlantis.toml"))
