"""`causaldao node`: every fault at once, the right exit status, one JSON envelope, nothing decided without a yes."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from causaldao.__main__ import app
from causaldao.budget import Spend
from causaldao.client import approvals
from causaldao.client.config import NodeConfig
from causaldao.client.dictionary import read
from causaldao.client.privacy.journal import Cap, Journal, ReleaseKey
from causaldao.enrolment import Token
from causaldao.errors import RefusedError
from causaldao.server.authority import Authority
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


COORDINATOR = SigningKey.from_seed(b"C" * 32).public.to_text("coordinator")


def write_node(folder: Path, name: str = "north", epsilon: float = 10.0) -> None:
    (folder / "node.toml").write_text(NODE.format(name=name, key=COORDINATOR, epsilon=epsilon))


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
        for path in sorted(folder.rglob("*"))
        if path.is_file()
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


CSV = "patient_id,age,sex\n" + "1,30,M\n2,41,F\n3,52,F\n" * 10
OFFERED = Study.from_toml(STUDY)
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def started(tmp_path: Path, *options: Any, data: str = CSV) -> tuple[int, dict[str, Any]]:
    """`node init` in a fresh folder, with a table unless the options name another source."""
    (tmp_path / "table.csv").write_text(data)
    source = options or ("--data", tmp_path / "table.csv", "--yes")
    return run("node", "init", tmp_path / "new", "--name", "north", "--dataset", "ward 3", *source)


def offers(monkeypatch: pytest.MonkeyPatch, *documents: Any) -> list[Any]:
    """A coordinator that offers these (hash, document) pairs; the calls that were made to it."""
    calls: list[Any] = []

    def studies(folder: Path, now: datetime) -> list[dict[str, Any]]:
        calls.append((folder, now))
        return [{"hash": digest, "name": d["study"]["name"], "document": d} for digest, d in documents]

    def join(folder: Path, token: str, now: datetime, *, name: str) -> dict[str, Any]:
        calls.append((folder, token, name))
        pinned = {"federation": "fed", "coordinator": COORDINATOR, "origin": "fed"}
        (folder / "federation.json").write_text(json.dumps(pinned))
        return {"name": name, **pinned}

    fake = SimpleNamespace(studies=studies, join=join, make_keys=lambda folder: None)
    monkeypatch.setitem(sys.modules, "causaldao.client.enrolment", fake)
    return calls


def invitation(tmp_path: Path) -> str:
    """A token of the federation."""
    authority = Authority.create(tmp_path, "fed", NOW)
    return Token("fed", "north", "localhost:1", "s" * 43, authority.certificate_der).to_text()


def test_a_node_is_begun_from_a_table(tmp_path: Path) -> None:
    code, data = started(tmp_path)
    assert code == 0
    assert (data["offered"], data["left_out"]) == (["age", "sex"], ["patient_id"])
    config = NodeConfig.load(tmp_path / "new", joined=False)
    assert config.mapping["sex"].levels == {"F": 0.0, "M": 1.0}
    assert config.mapping["age"].unit == ""
    assert config.lifetime.epsilon == 10.0
    for name in ("node.toml", "signing.pem", "witness.pem", "tls.pem"):
        assert (tmp_path / "new" / name).stat().st_mode & 0o077 == 0
    assert SigningKey.load(tmp_path / "new" / "signing.pem").public.id == data["keys"]["signing"]


def test_a_second_start_overwrites_nothing_and_says_what_is_there(tmp_path: Path) -> None:
    started(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    code, error = started(tmp_path)
    assert (code, error["code"]) == (10, "configuration")
    assert "signing.pem" in error["message"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == before


def test_a_start_that_was_cut_short_goes_on_with_the_keys_it_made(tmp_path: Path) -> None:
    _, data = started(tmp_path)
    (tmp_path / "new" / "node.toml").unlink()
    code, again = started(tmp_path)
    assert (code, again["keys"]) == (0, data["keys"])


def test_a_node_is_begun_from_a_database_and_from_omop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(tmp_path / "ward.db") as connection:
        connection.execute(
            "CREATE TABLE cohort AS SELECT 7 AS person_id, 1950 AS year_of_birth, 8507 gender_concept_id"
        )
    connection.close()
    monkeypatch.chdir(tmp_path)
    url = "sqlite:///ward.db"
    code, data = started(tmp_path, "--omop", url, "--cohort-view", "cohort", "--yes")
    assert (code, data["offered"], data["left_out"]) == (0, ["year_of_birth", "gender_concept_id"], [])
    source = NodeConfig.load(tmp_path / "new", joined=False).table
    assert (source.cohort_view, source.url) == ("cohort", f"sqlite:///{tmp_path / 'ward.db'}")
    (tmp_path / "new").rename(tmp_path / "old")
    code, data = started(tmp_path, "--sql", url, "--query", "SELECT year_of_birth FROM cohort", "--yes")
    assert (code, data["offered"]) == (0, ["year_of_birth"])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--yes",), 2),
        (("--sql", "sqlite:///a.db", "--yes"), 2),
        (("--data", "a.csv", "--omop", "sqlite:///a.db", "--cohort-view", "v", "--yes"), 2),
        (("--data", "a.csv", "--query", "SELECT 1", "--yes"), 2),
        (("--sql", "postgresql://me:secret@db/x", "--query", "SELECT 1", "--yes"), 10),
        (("--sql", "sqlite:///a.db", "--query", "DELETE FROM a", "--yes"), 10),
        (("--omop", "sqlite:///a.db", "--cohort-view", "a; DROP TABLE b", "--yes"), 10),
        (("--data", "a.csv", "--epsilon-cap", "0", "--yes"), 10),
        (("--data", "absent.csv", "--yes"), 11),
        (("--sql", "sqlite:///absent.db", "--query", "SELECT 1", "--yes"), 11),
    ],
    ids=str,
)
def test_a_start_that_cannot_be_meant_writes_nothing(options: tuple[str, ...], code: int, tmp_path: Path) -> None:
    found, error = started(tmp_path, *options)
    assert found == code
    assert "secret" not in str(error)
    assert not (tmp_path / "new").exists()


def test_two_rows_of_one_person_begin_no_node(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ward.db") as connection:
        connection.execute("CREATE TABLE cohort AS SELECT 7 AS person_id, 1.5 AS x UNION ALL SELECT 7, 2.5")
    connection.close()
    code, error = started(tmp_path, "--omop", f"sqlite:///{tmp_path / 'ward.db'}", "--cohort-view", "cohort", "--yes")
    assert code == 11
    assert "one row for each person" in error["message"]


def test_nobody_at_the_terminal_says_yes_to_nothing(folder: Path, tmp_path: Path) -> None:
    assert started(tmp_path, "--data", tmp_path / "table.csv")[0] == 18
    assert not (tmp_path / "new").exists()
    code, error = run("node", "approve", folder, folder.parent / "study.toml")
    assert (code, error["code"]) == (18, "refused")
    assert "--yes" in error["message"]
    assert not (folder / "approvals").exists()


@pytest.mark.parametrize(("answer", "code", "kept"), [("y\n", 0, True), ("n\n", 18, False), ("\n", 18, False)])
def test_a_person_is_asked(answer: str, code: int, kept: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "causaldao.client.cli.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True), stderr=sys.stderr)
    )
    result = CliRunner().invoke(app, ["node", "approve", str(folder), str(folder.parent / "study.toml")], input=answer)
    assert result.exit_code == code
    assert approvals.approved(folder) == ({OFFERED.hash} if kept else set())


def test_an_owner_reads_what_an_approval_means_before_it(folder: Path) -> None:
    code, data = run("node", "approve", folder, folder.parent / "study.toml", "--yes", "--by", "Dr Meyer")
    assert (code, data["decision"], data["by"]) == (0, "approved", "Dr Meyer")
    assert (data["question"], data["purpose"], data["retention"]) == ("Does a move c?", "A test.", "A day.")
    assert data["coordinator"] == SigningKey.from_seed(b"C" * 32).public.id
    assert [release["what"].split(",")[0] for release in data["releases"]] == ["evidence", "training", "evaluation"]
    assert 3.5 < data["lifetime"]["after"] <= 4.0
    assert data["lifetime"]["fits"] is True
    assert dry_run(folder)[1]["approved"] is True
    result = CliRunner().invoke(app, ["node", "approve", str(folder), str(folder.parent / "study.toml"), "--yes"])
    for part in ("Does a move c?", "A day.", "epsilon", "of 10 at delta", "federation fed"):
        assert part in result.stderr


def test_a_study_draws_no_screen_of_its_own_where_a_person_decides(folder: Path) -> None:
    (folder.parent / "study.toml").write_text(STUDY.replace("A day.", r"\u001b[2J\r\napproved: nothing is released"))
    result = CliRunner().invoke(app, ["node", "approve", str(folder), str(folder.parent / "study.toml"), "--yes"])
    assert result.exit_code == 0
    assert "\x1b" not in result.stderr
    assert not any(line.startswith("approved") for line in result.stderr.splitlines())


def test_an_owner_is_told_of_a_study_past_the_cap_and_of_units(folder: Path) -> None:
    write_node(folder, epsilon=1.0)
    mapping = '[mapping.a]\ncolumn = "a"\nkind = "binary"\n'
    (folder / "node.toml").write_text((folder / "node.toml").read_text() + mapping)
    result = CliRunner().invoke(app, ["node", "approve", str(folder), str(folder.parent / "study.toml"), "--yes"])
    assert result.exit_code == 0
    assert "PAST ITS CAP" in result.stderr
    assert "variable 'a': kind: here 'binary'" in result.stderr
    assert "variable 'b': missing" in result.stderr


def test_an_offered_study_is_approved_by_name_or_hash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offers(monkeypatch, (OFFERED.hash, OFFERED.to_json()))
    assert run("node", "studies", folder)[1]["studies"] == [
        {"hash": OFFERED.hash, "name": "small", "decision": "pending"}
    ]
    for text in ("small", OFFERED.hash, OFFERED.hash[:10]):
        assert run("node", "approve", folder, text, "--yes")[0] == 0
        assert run("node", "studies", folder)[1]["studies"][0]["decision"] == "approved"
        assert run("node", "withdraw", folder, text)[0] == 0
    for text in ("other", OFFERED.hash[:7], ""):
        code, error = run("node", "approve", folder, text, "--yes")
        assert code == 2
        assert "small" in error["message"]


def test_two_studies_of_one_name_are_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Study.from_toml(STUDY.replace("A day.", "A year."))
    offers(monkeypatch, (OFFERED.hash, OFFERED.to_json()), (other.hash, other.to_json()))
    assert run("node", "approve", folder, "small", "--yes")[0] == 2
    assert run("node", "approve", folder, other.hash[:12], "--yes")[1]["hash"] == other.hash


def test_an_offered_study_that_is_not_what_its_hash_says_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Study.from_toml(STUDY.replace("epsilon = 4.0", "epsilon = 9.0"))
    offers(monkeypatch, (OFFERED.hash, other.to_json()))
    code, error = run("node", "approve", folder, "small", "--yes")
    assert (code, error["code"]) == (14, "identity")
    assert approvals.approved(folder) == frozenset()


def test_a_study_file_is_decided_on_without_asking_anybody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = offers(monkeypatch)
    file = folder.parent / "study.toml"
    assert run("node", "decline", folder, file)[1]["decision"] == "declined"
    assert run("node", "status", folder)[1]["studies"] == [
        {"hash": OFFERED.hash, "name": "small", "decision": "declined"}
    ]
    assert run("node", "withdraw", folder, file)[0] == 0
    assert run("node", "withdraw", folder, file)[0] == 10
    assert calls == []


def test_what_stands_in_the_nodes_own_file_is_withdrawn_there(folder: Path) -> None:
    text = (folder / "node.toml").read_text()
    (folder / "node.toml").write_text(text.replace("approved = []", f'approved = ["{OFFERED.hash}"]'))
    code, error = run("node", "withdraw", folder, OFFERED.hash)
    assert code == 10
    assert "node.toml" in error["message"]


def test_an_altered_approval_is_seen_in_the_status(folder: Path) -> None:
    path = approvals.approve(folder, OFFERED, NOW)
    path.write_text(path.read_text().replace("A day.", "For ever."))
    assert run("node", "status", folder)[1]["studies"][0]["decision"] == "altered"


def test_the_status_tells_what_is_missing(tmp_path: Path, folder: Path) -> None:
    started(tmp_path)
    data = run("node", "status", tmp_path / "new")[1]
    assert (data["joined"], data["certificate_until"], data["process"]["running"]) == (False, None, False)
    (folder / "run").mkdir()
    (folder / "run" / "status.json").write_text(
        json.dumps({"pid": os.getpid(), "state": "waiting for admission", "since": "x", "error": "no route"})
    )
    data = run("node", "status", folder)[1]
    assert (data["joined"], data["process"]["running"], data["process"]["error"]) == (True, True, "no route")
    text = CliRunner().invoke(app, ["node", "status", str(folder)]).stdout
    assert "waiting for admission" in text
    assert "last error: no route" in text
    (folder / "run" / "status.json").write_text("[]")
    assert run("node", "status", folder)[0] == 10


def test_the_status_hides_what_the_witness_has_to_say(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(**given: Any) -> str:
        seen = {
            "status": "witnessing", "reason": "", "size": 64, "root": "", "words": 4, "without_receipt": 0,
            "oldest_without_receipt": None, **given,
        }  # fmt: skip
        monkeypatch.setattr("causaldao.client.overview._witness", lambda *_: seen)
        return CliRunner().invoke(app, ["node", "status", str(folder)]).stdout

    started(tmp_path)
    assert "witness" not in CliRunner().invoke(app, ["node", "status", str(tmp_path / "new")]).stdout
    lost = CliRunner().invoke(app, ["node", "status", str(folder)]).stdout  # it joined, and its state is gone
    assert "witness: RETIRED" in lost
    assert f"causaldao node rotate {folder}" in lost
    assert "witness: 64 entries seen, all words have a receipt" in told()
    assert "nothing was said yet" in told(words=0)
    since = int(datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp())
    assert "2 words without a receipt since 2026-11-21T12:00:00+00:00" in told(
        without_receipt=2, oldest_without_receipt=since
    )
    assert "1 word without" in told(without_receipt=1, oldest_without_receipt=since)
    alarmed = told(status="alarmed", reason="two histories")
    for part in ("ALARMED", "two histories", "witness.db", "tell the other members"):
        assert part in alarmed


def test_the_status_of_a_process_that_is_gone_is_not_running(folder: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (folder / "run").mkdir()
    (folder / "run" / "status.json").write_text(json.dumps({"pid": gone.pid, "state": "running"}))
    assert run("node", "status", folder)[1]["process"]["running"] is False


def test_the_dictionary_is_shown_before_joining_and_signed_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(tmp_path)
    new = tmp_path / "new"
    code, data = run("node", "dictionary", new)
    assert (code, data["signed"], [v["name"] for v in data["variables"]]) == (0, False, ["age", "sex"])
    assert not (new / "dictionary.dsse").exists()
    calls = offers(monkeypatch)
    token = invitation(tmp_path)
    code, data = run("node", "join", new, token)
    assert (code, data["federation"], data["variables"]) == (0, "fed", ["age", "sex"])
    assert calls == [(new, token, "north")]
    key = SigningKey.load(new / "signing.pem").public
    assert data["key"] == key.id
    assert read((new / "dictionary.dsse").read_bytes(), key).federation == "fed"
    assert run("node", "dictionary", new)[1]["signed"] is True


def test_a_token_that_was_cut_short_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(tmp_path)
    calls = offers(monkeypatch)
    token = invitation(tmp_path)
    assert run("node", "join", tmp_path / "new", token[:-3])[0] != 0
    assert calls == []


def test_a_node_is_started_with_its_options_and_its_errors_have_their_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def start(folder: Path, **options: Any) -> None:
        seen.append((folder, options))
        if options["metrics_port"] == 7:
            raise RefusedError("Another bundle.")

    monkeypatch.setitem(sys.modules, "causaldao.client.service", SimpleNamespace(start=start))
    assert run("node", "start", folder, "--log-format", "json")[0] == 0
    assert seen == [(folder, {"metrics_port": 0, "log_format": "json"})]
    assert run("node", "start", folder, "--metrics-port", 7)[0] == 18


def test_the_budget_is_a_meter_by_study(folder: Path) -> None:
    approvals.approve(folder, OFFERED, NOW)
    cap, journal = Cap(9.0, 1e-6), Journal.open(folder / "journal.db")
    for study in (OFFERED.hash, "0" * 64):
        journal.release(ReleaseKey(study, "admissions", "evidence"), [Spend(4.0)], cap, cap, lambda: b"x")
    journal.release(
        ReleaseKey("0" * 64, "another", "evidence"), [Spend(1.0)], Cap(90, 1e-6), Cap(90, 1e-6), lambda: b"x"
    )
    code, data = run("node", "budget", folder)
    assert (code, [(s["study"], s["name"]) for s in data["studies"]]) == (0, [(OFFERED.hash, "small"), ("0" * 64, "")])
    first, second = (study["epsilon"] for study in data["studies"])
    assert max(first, second) < data["spent"] < first + second
    text = CliRunner().invoke(app, ["node", "budget", str(folder)]).stdout
    assert f"[{'#' * round(30 * data['spent'] / 10)}." in text
    assert "small" in text
