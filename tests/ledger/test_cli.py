"""The commands: what they print, and the status they leave with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from causaldao.ledger import Entry
from causaldao.ledger.cli import app
from causaldao.signing import sha256
from tests.ledger import cases


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cases.create(tmp_path / "ledger.db").close()
    (tmp_path / "policy").write_text(cases.policy_text())
    assert run("export", tmp_path / "ledger.db", "--out", tmp_path / "bundle").exit_code == 0
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def envelope(result: Result) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(result.stdout)
    assert value["schema_version"] == 1
    return value


def test_a_true_bundle_leaves_with_0_and_prints_the_policys_fingerprint(folder: Path) -> None:
    result = run("verify", folder / "bundle", "--policy", folder / "policy")
    assert result.exit_code == 0
    fingerprint = sha256((folder / "policy").read_bytes())
    assert fingerprint in result.stdout
    data = envelope(run("verify", folder / "bundle", "--policy", folder / "policy", "--json"))["data"]
    assert data["policy_fingerprint"] == fingerprint
    assert (data["size"], data["members"], data["cosigners"]) == (len(cases.entries()), ["ada", "bob"], [])


@pytest.mark.parametrize("command", ["verify", "show"])
def test_an_altered_bundle_leaves_with_1_says_where_and_shows_nothing(folder: Path, command: str) -> None:
    text = (folder / "bundle").read_bytes().replace(b"what causes", b"who causes")
    (folder / "bundle").write_bytes(text)
    result = run(command, folder / "bundle", "--policy", folder / "policy")
    assert result.exit_code == 1
    assert "entry 3" in result.stderr
    assert sha256((folder / "policy").read_bytes()) in result.stderr
    assert result.stdout == ""
    error = envelope(run(command, folder / "bundle", "--policy", folder / "policy", "--json"))["error"]
    assert (error["code"], error["exit_code"]) == ("finding", 1)


def test_a_missing_or_wrong_file_is_not_a_finding(folder: Path) -> None:
    for arguments, name in ((("none", folder / "policy"), "bundle"), ((folder / "bundle", "none"), "policy")):
        result = run("verify", arguments[0], "--policy", arguments[1])
        assert result.exit_code == 2
        assert f"The {name} none cannot be read: No such file" in result.stderr
    assert run("verify", folder, "--policy", folder / "policy").exit_code == 2
    assert run("verify", folder / "bundle").exit_code == 2
    for text in (b"log x", b"\xff"):
        (folder / "policy").write_bytes(text)
        assert run("verify", folder / "bundle", "--policy", folder / "policy").exit_code == 10
    assert run("export", folder / "none.db", "--out", folder / "b").exit_code == 15
    assert run("export", folder / "ledger.db", "--out", folder / "no" / "b").exit_code == 2


def test_the_timeline_has_a_line_for_each_entry(folder: Path) -> None:
    lines = run("show", folder / "bundle", "--policy", folder / "policy").stdout.splitlines()
    for number, entry in enumerate(cases.entries()):
        assert lines[number].split()[0] == str(number)
        assert entry.kind in lines[number]
    data = envelope(run("show", folder / "bundle", "--policy", folder / "policy", "--json"))["data"]
    assert [line["body"] for line in data["timeline"]] == [entry.body for entry in cases.entries()]


def test_what_was_recorded_cannot_move_the_readers_cursor(tmp_path: Path) -> None:
    hostile = Entry("complaint", {"why\x1b[2J\n": "\x1b[1A all is well\u202e"})
    cases.create(tmp_path / "ledger.db", [cases.genesis(), hostile]).close()
    (tmp_path / "policy").write_text(cases.policy_text())
    run("export", tmp_path / "ledger.db", "--out", tmp_path / "bundle")
    shown = run("show", tmp_path / "bundle", "--policy", tmp_path / "policy").stdout
    assert "complaint" in shown
    assert not set(shown) & {"\x1b", "\u202e"}
    assert len(shown.splitlines()[1].split("complaint")) == 2


def test_the_help_waits_for_no_database_and_no_cryptography() -> None:
    script = (
        "import sys; import causaldao.ledger.cli; "
        "print([m for m in ('sqlalchemy', 'alembic', 'numpy', 'torch', 'cryptography') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
