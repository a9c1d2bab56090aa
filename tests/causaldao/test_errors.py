"""The tree of errors: codes and exit statuses are a contract."""

from __future__ import annotations

import json

import pytest

from causaldao import errors
from causaldao.console import command

CONTRACT = {
    "finding": 1, "misuse": 2, "configuration": 10, "data": 11, "budget": 12, "guarantee": 13, "identity": 14,
    "ledger": 15, "stale": 15, "not-identifiable": 16, "network": 17, "refused": 18, "declined": 18,
}  # fmt: skip


def _classes() -> list[type[errors.CausalDAOError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.CausalDAOError) and value is not errors.CausalDAOError
    ]


def test_a_code_or_an_exit_status_changes() -> None:
    assert {error.code: error.exit_code for error in _classes()} == CONTRACT


def test_an_error_is_missing_from_the_tree_at_the_top_of_its_file() -> None:
    for error in _classes():
        assert f"─ {error.__name__} " in str(errors.__doc__)


def test_only_the_first_of_many_problems_is_shown() -> None:
    error = errors.DataError("The table has 2 faults:", problems=["age is text", "sex is missing"])
    assert str(error) == "The table has 2 faults:\n  - age is text\n  - sex is missing"
    assert error.problems == ("age is text", "sex is missing")


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.code)
def test_a_command_fails_with_another_status_than_its_error(
    kind: type[errors.CausalDAOError], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving, command(as_json=True):
        raise kind("Bad é.", problems=["a", "b"])
    assert leaving.value.code == kind.exit_code
    out, err = capsys.readouterr()
    envelope = json.loads(out)
    assert err == ""
    assert envelope["schema_version"] == 1
    assert envelope["status"] == "error"
    assert envelope["error"] == {
        "code": kind.code, "exit_code": kind.exit_code, "message": "Bad é.", "problems": ["a", "b"],
        "help": f"docs/errors/{kind('').page}.md",
    }  # fmt: skip


def test_a_person_gets_the_error_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), command(as_json=False):
        raise errors.DataError("Bad.", problems=["worse"])
    out, err = capsys.readouterr()
    assert out == ""
    assert "Bad." in err
    assert "worse" in err
    assert "docs/errors/data.md" in err


def test_a_result_is_not_one_json_envelope(capsys: pytest.CaptureFixture[str]) -> None:
    with command(as_json=True) as output:
        output.emit({"a": 1}, "for people")
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "status": "ok", "data": {"a": 1}}
    with command(as_json=False) as output:
        output.emit({"a": 1}, lambda: "for people\n")
    assert capsys.readouterr().out == "for people\n"


def test_a_programming_error_is_hidden_by_the_console() -> None:
    with pytest.raises(ZeroDivisionError), command(as_json=True):
        raise ZeroDivisionError
