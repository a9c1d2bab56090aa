"""The commands: what they print, and the status they leave with."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from causaldao.errors import NetworkError
from causaldao.ledger import Entry, Log
from causaldao.ledger import cli as cli_module
from causaldao.ledger.cli import app
from causaldao.ledger.note import LOG, Verifier, cosign, open_note
from causaldao.ledger.reader import Local
from causaldao.signing import sha256
from tests.ledger import cases, forge, shelf
from tests.ledger.conftest import PostgreSQL
from tests.ledger.test_service import World

NAMES = ("ada", "bob")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger that ada and bob cosigned, its bundle, and a policy that asks for both."""
    with cases.create(tmp_path / "ledger.db") as log:
        cosigned(log)
    (tmp_path / "policy").write_text(forge.policy_text(NAMES, NAMES, 2))
    assert run("export", tmp_path / "ledger.db", "--out", tmp_path / "bundle").exit_code == 0
    return tmp_path


def cosigned(log: Log, *names: str) -> None:
    """The newest checkpoint is cosigned by these, or by ada and bob."""
    checkpoint = open_note(log.head.note, Verifier.of(cases.ORIGIN, cases.LOG_KEY.public, LOG))
    lines = {name: cosign(checkpoint, name, cases.witness(name), 1_800_000_000) for name in names or NAMES}
    log.keep_cosignatures(checkpoint.size, lines)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def envelope(result: Result) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(result.stdout)
    assert value["schema_version"] == 1
    return value


def records(folder: Path) -> list[bytes]:
    with Log.read(f"sqlite:///{folder / 'ledger.db'}") as log:
        return [entry.record for entry in log.entries()]


# bundles


def test_a_true_bundle_leaves_with_0_and_says_on_whose_word(folder: Path) -> None:
    result = run("verify", folder / "bundle", "--policy", folder / "policy")
    assert result.exit_code == 0
    fingerprint = sha256((folder / "policy").read_bytes())
    for words in (fingerprint, "members    2: ada, bob; 2 of them decide, 0 may lie", "cosigners  2: ada, bob"):
        assert words in result.stdout
    assert result.stderr == ""
    data = envelope(run("verify", folder / "bundle", "--policy", folder / "policy", "--json"))["data"]
    assert data["policy_fingerprint"] == fingerprint
    assert (data["size"], data["members"], data["cosigners"]) == (len(cases.entries()), ["ada", "bob"], ["ada", "bob"])
    assert (data["quorum"], data["faulty"], data["strangers"], data["erased"]) == (2, 0, [], 0)


def test_a_bundle_that_too_few_cosigned_verifies(folder: Path) -> None:
    (folder / "policy").write_text(forge.policy_text(NAMES, [*NAMES, "eve"], 3))
    for command in ("verify", "show"):
        result = run(command, folder / "bundle", "--policy", folder / "policy")
        assert (result.exit_code, result.stdout) == (1, "")


def test_a_cosigner_that_the_policy_does_not_know_counts(folder: Path) -> None:
    (folder / "policy").write_text(forge.policy_text(NAMES, ["ada"], 1))
    result = run("verify", folder / "bundle", "--policy", folder / "policy")
    assert "cosigners  1: ada; not counted, since the policy does not know them: bob" in result.stdout


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


def test_a_large_bundle_says_nothing_for_minutes_or_says_it_on_stdout(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_module, "LARGE", 0)
    result = run("verify", folder / "bundle", "--policy", folder / "policy", "--json")
    assert envelope(result)["status"] == "ok"
    assert result.stderr.splitlines()[-1] == "100 % verified"


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


def test_a_ledger_in_postgresql_is_exported_by_its_url(tmp_path: Path, postgresql: PostgreSQL) -> None:
    cases.create(postgresql.url).close()
    cases.create(tmp_path / "ledger.db").close()
    for number, database in enumerate((postgresql.url, tmp_path / "ledger.db")):
        assert run("export", database, "--out", tmp_path / f"bundle{number}").exit_code == 0
    assert (tmp_path / "bundle0").read_bytes() == (tmp_path / "bundle1").read_bytes()


def test_the_timeline_has_a_line_for_each_entry(folder: Path) -> None:
    lines = run("show", folder / "bundle", "--policy", folder / "policy").stdout.splitlines()
    for number, entry in enumerate(cases.entries()):
        assert lines[number].split()[0] == str(number)
        assert entry.kind in lines[number]
    assert lines[4].endswith("ada gave evidence")
    data = envelope(run("show", folder / "bundle", "--policy", folder / "policy", "--json"))["data"]
    assert [line["body"] for line in data["timeline"]] == [entry.body for entry in cases.entries()]


def test_what_was_recorded_cannot_move_the_readers_cursor(tmp_path: Path) -> None:
    hostile = Entry("complaint", {"why\x1b[2J\n": "\x1b[1A all is well\u202e"})
    cases.create(tmp_path / "ledger.db", [cases.genesis(), hostile]).close()
    (tmp_path / "policy").write_text(forge.policy_text(NAMES))
    run("export", tmp_path / "ledger.db", "--out", tmp_path / "bundle")
    for source in (("show", tmp_path / "bundle"), ("watch", tmp_path / "ledger.db", "--once")):
        shown = run(*source, "--policy", tmp_path / "policy").stdout
        assert "complaint" in shown
        assert not set(shown) & {"\x1b", "\u202e"}
        assert len(shown.splitlines()[1].split("complaint")) == 2


# receipts


def receipt(folder: Path, index: int, *more: object) -> Result:
    where = ("--from", folder / "ledger.db", "--policy", folder / "policy", "--out", folder)
    return run("receipt", index, *where, *more)


def check(folder: Path, proof: str, record: str, *more: object) -> Result:
    return run("check-receipt", folder / proof, "--record", folder / record, "--policy", folder / "policy", *more)


def test_a_receipt_needs_the_ledger_to_be_checked(folder: Path) -> None:
    result = receipt(folder, 4)
    assert result.exit_code == 0, result.stderr
    assert "ada gave evidence" in result.stdout
    assert (folder / "4.record").read_bytes() == records(folder)[4]
    data = envelope(receipt(folder, 7, "--json"))["data"]
    assert data["entry"]["body"]["member"] == "ada"
    assert (data["tlog_proof"], data["record"]) == (str(folder / "7.tlog-proof"), str(folder / "7.record"))
    (folder / "ledger.db").unlink()
    for index in (4, 7):
        assert check(folder, f"{index}.tlog-proof", f"{index}.record").exit_code == 0
    assert envelope(check(folder, "4.tlog-proof", "4.record", "--json"))["data"]["entry"]["index"] == 4


def test_a_receipt_proves_another_record_or_under_other_keys(folder: Path) -> None:
    for index in (4, 5):
        assert receipt(folder, index).exit_code == 0
    result = check(folder, "4.tlog-proof", "5.record")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "does not verify" in result.stderr
    proof = (folder / "4.tlog-proof").read_bytes()
    for altered in (
        proof.replace(b"index 4", b"index 5"),
        proof[:-10],
        b"",
        b"\xff",
        proof.replace(b"\n10\n", b"\n11\n"),
    ):
        (folder / "altered").write_bytes(altered)
        result = check(folder, "altered", "4.record", "--json")
        assert (result.exit_code, envelope(result)["error"]["code"]) == (1, "finding")
    (folder / "policy").write_text(forge.policy_text(NAMES, [*NAMES, "eve"], 3))
    assert check(folder, "4.tlog-proof", "4.record").exit_code == 1
    assert check(folder, "none", "4.record").exit_code == 2


def test_an_entry_that_nobody_cosigned_has_a_receipt(folder: Path) -> None:
    with Log.open(f"sqlite:///{folder / 'ledger.db'}", cases.LOG_KEY) as log:
        log.append([Entry("complaint", {"why": "late"})])
        cosigned(log, "ada")
    result = receipt(folder, 10, "--json")
    assert (result.exit_code, envelope(result)["error"]["code"]) == (13, "guarantee")
    assert "size 10" in envelope(result)["error"]["message"]
    assert not list(folder.glob("10.*"))
    assert receipt(folder, 11).exit_code == 2  # there is no such entry


def test_a_receipt_is_written_before_it_verifies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Local.receipt
    monkeypatch.setattr(Local, "receipt", lambda self, index: plain(self, index + 1))
    result = receipt(folder, 4)
    assert result.exit_code == 1
    assert "entry 5 in place of 4" in result.stderr
    monkeypatch.undo()
    (folder / "policy").write_text(forge.policy_text(NAMES, NAMES, 2, log=cases.OTHER_KEY))
    assert receipt(folder, 4).exit_code == 1
    assert not list(folder.glob("4.*"))


# over the wire


@contextmanager
def served(world: World) -> Iterator[str]:
    """The URL of a coordinator, in a thread of its own."""
    up, down, loops = threading.Event(), asyncio.Event(), list[asyncio.AbstractEventLoop]()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        async with world.up():
            up.set()
            await down.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert up.wait(10)
    try:
        yield f"ledger://{world.address}"
    finally:
        loops[0].call_soon_threadsafe(down.set)
        thread.join()


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "policy").write_text(shelf.policy_text())
    return World(tmp_path)


def test_a_member_needs_a_file_to_read_the_ledger(world: World, tmp_path: Path) -> None:
    common = ("--policy", tmp_path / "policy", "--node", world.node("north"))
    with served(world) as url:
        data = envelope(run("show", url, *common, "--json"))["data"]
        assert (data["size"], data["log_size"], data["cosigners"]) == (12, 20, ["ada", "bob"])
        assert [line["index"] for line in data["timeline"]] == list(range(12))
        text = run("show", url, *common).stdout
        assert "hospital-03 gave evidence" in text
        assert "8 newer ones wait for cosignatures" in text
        seen = run("watch", url, *common, "--once").stdout.splitlines()
        assert len(seen) == 21
        assert "seen 20 entries" in seen[-1]
        assert "cosigned up to 12 by ada, bob: as the policy asks" in seen[-1]
        result = run("receipt", 3, "--from", url, *common, "--out", tmp_path)
        assert result.exit_code == 0, result.stderr
    assert check(tmp_path, "3.tlog-proof", "3.record").exit_code == 0


def test_what_too_few_cosigned_is_shown(world: World, tmp_path: Path) -> None:
    world.shelf.agreed = 0
    common = ("--policy", tmp_path / "policy", "--node", world.node("north"))
    with served(world) as url:
        result = run("show", url, *common)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "cosigned by nobody, but the policy asks for 2 of" in result.stderr
        assert "NOT enough for the policy" in run("watch", url, *common, "--once").stdout


def test_a_ledger_that_cannot_be_asked_is_a_finding_or_a_traceback(world: World, tmp_path: Path) -> None:
    policy, node = ("--policy", tmp_path / "policy"), ("--node", world.node("north"))
    with served(world) as url:
        assert run("show", url, *policy).exit_code == 2
        assert run("show", url, *policy, "--node", tmp_path / "none").exit_code == 14
        world.rows["north"].state = "revoked"
        result = run("watch", url, *policy, *node, "--once")
        assert result.exit_code == 14
        assert "revoked" in result.stderr
    for command in (("show", url), ("watch", url, "--once")):
        assert run(*command, *policy, *node).exit_code == 17
    for url in ("ledger://", "ledger://hub", "ledger://hub:x"):
        assert run("show", url, *policy, *node).exit_code == 2


# watching


class Stop(Exception):
    """Ends a watch, which goes on for ever."""


def watched(monkeypatch: pytest.MonkeyPatch, book: shelf.Shelf, changes: Iterator[Any], *arguments: object) -> Result:
    """A watch of a shelf; between two looks the next change happens, after the last it is ended."""

    @contextmanager
    def reading(*_: object) -> Iterator[shelf.Shelf]:
        yield book

    def sleep(seconds: float) -> None:
        change = next(changes, None)
        if change is None:
            raise Stop
        change()

    monkeypatch.setattr(cli_module, "_reading", reading)
    monkeypatch.setattr("time.sleep", sleep)
    return run("watch", "anywhere", *arguments)


def test_news_are_told_twice_late_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy").write_text(shelf.policy_text())
    book = shelf.Shelf([shelf.record(0)])

    def grow() -> None:
        book.records += [shelf.record(book.size), shelf.record(book.size + 1)]

    def agree() -> None:
        book.agreed = book.size

    changes = iter([lambda: None, grow, lambda: None, agree, lambda: None])
    arguments = ("--policy", tmp_path / "policy", "--state", tmp_path / "seen")
    result = watched(monkeypatch, book, changes, *arguments)
    assert isinstance(result.exception, Stop)
    lines = result.stdout.splitlines()
    assert [line[:8].strip() for line in lines] == ["0", "# seen 1", "1", "2", "# seen 3", "# seen 3"]
    assert "cosigned up to 3 by ada, bob" in lines[-1]
    result = watched(monkeypatch, book, iter([grow]), *arguments, "--json")
    looks = [json.loads(line)["data"] for line in result.stdout.splitlines()]
    assert [(look["size"], len(look["timeline"])) for look in looks] == [(3, 0), (5, 2)]
    assert looks[1]["cosigned"]["size"] == 3


@pytest.mark.parametrize("as_json", [True, False])
def test_a_fork_is_told_without_its_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    (tmp_path / "policy").write_text(shelf.policy_text())
    book = shelf.Shelf()
    before = book.note(20)

    def fork() -> None:
        book.records = [shelf.record(index, why="another") for index in range(25)]

    arguments = ("--policy", tmp_path / "policy", "--state", tmp_path / "seen", *(["--json"] if as_json else []))
    for attempt in range(2):  # whoever starts it again is told again
        result = watched(monkeypatch, book, iter([fork, lambda: pytest.fail("it went on")]), *arguments)
        assert result.exit_code == 1, attempt
        if as_json:
            error = json.loads(result.stdout.splitlines()[-1])["error"]
            assert (error["code"], error["problems"]) == ("finding", [before, book.note(25)])
        else:
            assert all(line in result.stderr for line in (before + book.note(25)).splitlines())
    assert json.loads((tmp_path / "seen.evidence").read_text()) == {"seen": before, "shown": book.note(25)}


def test_a_coordinator_that_is_down_ends_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy").write_text(shelf.policy_text())
    book = shelf.Shelf([shelf.record(0)])
    plain = book.checkpoint

    def down(*_: Any, **__: Any) -> Any:
        raise NetworkError("nobody at hub:9094.")

    def fall() -> None:
        monkeypatch.setattr(book, "checkpoint", down)

    def rise() -> None:
        monkeypatch.setattr(book, "checkpoint", plain)
        book.records.append(shelf.record(1))

    changes = iter([fall, lambda: None, rise, fall])
    result = watched(monkeypatch, book, changes, "--policy", tmp_path / "policy")
    assert isinstance(result.exception, Stop)
    assert result.stderr == "# nobody at hub:9094. Trying again.\n" * 2  # once each time
    assert "# seen 2" in result.stdout


def test_a_ledger_that_was_put_back_from_a_backup_goes_unnoticed(folder: Path) -> None:
    arguments = ("watch", folder / "ledger.db", "--policy", folder / "policy", "--state", folder / "seen", "--once")
    backup = folder / "backup.db"
    with Log.open(f"sqlite:///{folder / 'ledger.db'}", cases.LOG_KEY):
        pass
    with sqlite3.connect(folder / "ledger.db") as old, sqlite3.connect(backup) as copy:
        old.backup(copy)
    old.close()
    copy.close()
    with Log.open(f"sqlite:///{folder / 'ledger.db'}", cases.LOG_KEY) as log:
        log.append([Entry("complaint", {"why": "late"})])
    assert run(*arguments).exit_code == 0
    with Log.open(f"sqlite:///{backup}", cases.LOG_KEY) as log:
        log.append([Entry("complaint", {"why": "another"})])
    result = run("watch", backup, *arguments[2:])
    assert result.exit_code == 1
    assert "contradicts itself" in result.stderr
    assert run(*arguments).exit_code == 0


def test_the_help_waits_for_no_database_and_no_cryptography() -> None:
    script = (
        "import sys; import causaldao.ledger.cli; "
        "slow = ('sqlalchemy', 'alembic', 'numpy', 'torch', 'cryptography', 'grpc', 'google.protobuf'); "
        "print([m for m in slow if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
