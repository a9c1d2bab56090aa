"""The log against crashes, second writers, second times and altered databases."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from causaldao.errors import LedgerError
from causaldao.ledger import Entry, Log, export, store
from causaldao.ledger.entry import MAX_BODY_BYTES, MAX_BODY_DEPTH
from causaldao.ledger.verify import verify
from causaldao.signing import sha256
from tests.ledger import cases


def note(number: int, key: str | None = None, **payloads: bytes) -> Entry:
    return Entry("pool", {"number": number}, {sha256(data): data for data in payloads.values()}, key)


def sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_what_was_appended_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with cases.create(path, [cases.genesis(), note(1, data=b"bytes")]) as log:
        head = log.head
    with Log.open(cases.url(path), cases.LOG_KEY, cases.clock()) as log:
        assert log.head == head
        assert log.append([note(2)]) == [2]
        assert [entry.body.get("number") for entry in log.entries(start=1)] == [1, 2]
        assert log.payload(sha256(b"bytes")) == b"bytes"
        assert log.entries()[-1].link == log.head.root
        assert log.state("none") is None


def test_a_kill_at_any_statement_leaves_all_or_nothing(tmp_path: Path) -> None:
    path, copies = tmp_path / "ledger.db", tmp_path / "copies"
    copies.mkdir()
    with cases.create(path, [cases.genesis()]) as log:
        log.append([], {"state": "before"})
    program = Path(__file__).with_name("killed_writer.py")
    done = subprocess.run(
        [sys.executable, str(program), str(path), str(copies)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    deaths = int(done.stdout)
    # BEGIN, known keys, swap, entries, payloads and state, each before and after, and COMMIT.
    assert deaths >= 13
    outcomes = [_outcome(copies / f"{fatal:03}.db") for fatal in range(deaths + 1)]
    assert outcomes[:-1] == ["nothing"] * deaths
    assert outcomes[-1] == "all"


def _outcome(path: Path) -> str:
    """Say if "nothing" or "all" is there; either way the step, repeated, takes the same indices."""
    with Log.open(cases.url(path), cases.LOG_KEY, cases.clock()) as log:
        found = (
            log.head.size,
            len(log.entries()),
            log.state("state"),
            log.state("more"),
            len(log.snapshot().payloads),
        )
        repeated = [Entry("pool", {"round": n}, {sha256(d): d}, f"pool/{n}") for n, d in enumerate(_BLOBS)]
        assert log.append(repeated) == [1, 2, 3]
        assert verify(export(log), cases.policy()).size == 4
    return {(1, 1, "before", None, 0): "nothing", (4, 4, "after", (1, 2), 3): "all"}[
        (*found[:3], tuple(found[3]) if found[3] else None, found[4])
    ]


_BLOBS = (b"one", b"two", b"three")


def test_a_second_writer_with_a_stale_head_loses_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with cases.create(path, [cases.genesis()]) as first, Log.open(cases.url(path), cases.LOG_KEY) as second:
        first.append([note(1)], {"writer": "first"})
        before = first.snapshot()
        with pytest.raises(LedgerError, match="another writer"):
            second.append([note(2, data=b"lost")], {"writer": "second"})
        with pytest.raises(LedgerError, match="another writer"):
            second.append([], {"writer": "second"})
        assert first.snapshot() == before
        assert first.state("writer") == "first"
        assert first.append([note(3)]) == [2]
    with Log.open(cases.url(path), cases.LOG_KEY) as again:
        assert again.append([note(2)]) == [3]


def test_a_writer_whose_database_fails_keeps_its_head_and_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with cases.create(path, [cases.genesis()]) as log:
        head = log.head
        sql(path, "CREATE TRIGGER full BEFORE INSERT ON payloads BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        with pytest.raises(LedgerError, match=r"Could not append to the ledger: disk full"):
            log.append([note(1, data=b"x")], {"state": 1})
        assert (log.head, len(log.entries()), log.state("state")) == (head, 1, None)
        sql(path, "DROP TRIGGER full")
        assert log.append([note(1, data=b"x")]) == [1]


def test_a_state_that_is_no_json_rolls_everything_back(tmp_path: Path) -> None:
    with cases.create(tmp_path / "ledger.db", [cases.genesis()]) as log:
        with pytest.raises(LedgerError, match="state 'bad'"):
            log.append([note(1)], {"bad": float("nan")})
        assert log.head.size == len(log.entries()) == 1


def test_a_keyed_entry_is_recorded_once(tmp_path: Path) -> None:
    with cases.create(tmp_path / "ledger.db", [cases.genesis()]) as log:
        assert log.append([note(1, "a"), note(2, "b"), note(1, "a")]) == [1, 2, 1]
        head = log.head
        assert log.append([note(1, "a")], {"step": 1}) == [1]
        assert log.head == head
        assert log.state("step") == 1
        assert log.append([note(3), note(2, "b"), note(3)]) == [3, 2, 4]


@pytest.mark.parametrize("other", [note(9, "a"), note(1, "a", data=b"x"), Entry("adopt", {"number": 1}, key="a")])
def test_a_key_with_another_content_is_refused(tmp_path: Path, other: Entry) -> None:
    with cases.create(tmp_path / "ledger.db", [cases.genesis(), note(1, "a")]) as log:
        with pytest.raises(LedgerError, match="'a' stands at entry 1 with another content"):
            log.append([note(5), other])
        assert log.head.size == 2


def test_more_keys_than_one_statement_can_name(tmp_path: Path) -> None:
    with cases.create(tmp_path / "ledger.db", [cases.genesis()]) as log:
        batch = [note(number, f"key/{number}") for number in range(1100)]
        assert log.append(batch) == log.append(batch) == list(range(1, 1101))


@pytest.mark.parametrize("recorded", [[note(1)], [cases.genesis(), cases.genesis()]])
def test_a_log_begins_with_one_genesis(tmp_path: Path, recorded: list[Entry]) -> None:
    with Log.create(cases.url(tmp_path / "l.db"), cases.ORIGIN, cases.LOG_KEY) as log:
        with pytest.raises(LedgerError, match="one genesis"):
            log.append(recorded)
        assert log.head.size == 0
        with pytest.raises(LedgerError, match="is empty"):
            export(log)


def test_reload_with_the_wrong_key(tmp_path: Path) -> None:
    cases.create(tmp_path / "ledger.db").close()
    with pytest.raises(LedgerError, match="was not signed by key"):
        Log.open(cases.url(tmp_path / "ledger.db"), cases.OTHER_KEY)


def test_a_log_opened_to_be_read_cannot_append(tmp_path: Path) -> None:
    cases.create(tmp_path / "ledger.db").close()
    with Log.read(cases.url(tmp_path / "ledger.db")) as log:
        assert log.head.size == len(cases.entries())
        with pytest.raises(LedgerError, match="opened to be read"):
            log.append([note(1)])


def test_a_clock_without_a_time_zone(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="time zone"):
        Log.create(cases.url(tmp_path / "l.db"), cases.ORIGIN, cases.LOG_KEY, lambda: datetime(2025, 1, 31))


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\n1", "ü", "x" * 129, " a"])
def test_an_origin_that_a_key_or_a_signed_text_cannot_carry(tmp_path: Path, origin: str) -> None:
    with pytest.raises(LedgerError, match="origin"):
        Log.create(cases.url(tmp_path / "l.db"), origin, cases.LOG_KEY)
    assert not (tmp_path / "l.db").exists()


def test_creating_over_a_ledger(tmp_path: Path) -> None:
    cases.create(tmp_path / "ledger.db").close()
    with pytest.raises(LedgerError, match="already"):
        Log.create(cases.url(tmp_path / "ledger.db"), cases.ORIGIN, cases.LOG_KEY)
    with Log.read(cases.url(tmp_path / "ledger.db")) as log:
        assert log.head.size == len(cases.entries())


# A database altered behind the program's back


def unguarded(path: Path, *statements: str) -> None:
    guards = ("entries_update", "entries_delete", "head_shrink", "payloads_update")
    sql(path, *(f"DROP TRIGGER {guard}" for guard in guards), *statements)


def test_the_last_entry_deleted_in_the_database(tmp_path: Path) -> None:
    cases.create(tmp_path / "ledger.db").close()
    unguarded(tmp_path / "ledger.db", "DELETE FROM entries WHERE position = 9")
    with pytest.raises(LedgerError, match="altered outside"):
        Log.open(cases.url(tmp_path / "ledger.db"), cases.LOG_KEY)


def test_the_head_rolled_back_with_its_entries_gone(tmp_path: Path) -> None:
    with cases.create(tmp_path / "ledger.db", cases.entries()[:5]) as log:
        old = log.head
        log.append(cases.entries()[5:])
    unguarded(
        tmp_path / "ledger.db",
        f"UPDATE head SET size = 5, root = '{old.root}', signature = '{old.signature}'",
    )
    with pytest.raises(LedgerError, match="altered outside"):
        Log.open(cases.url(tmp_path / "ledger.db"), cases.LOG_KEY)


def test_an_old_entry_rewritten_is_found_in_the_bundle(tmp_path: Path) -> None:
    cases.create(tmp_path / "ledger.db").close()
    change = "UPDATE entries SET record = CAST(replace(CAST(record AS TEXT), 'what causes', 'who causes') AS BLOB)"
    unguarded(tmp_path / "ledger.db", f"{change} WHERE position = 3")
    with (
        Log.open(cases.url(tmp_path / "ledger.db"), cases.LOG_KEY) as log,
        pytest.raises(LedgerError, match="entry 3"),
    ):
        verify(export(log), cases.policy())


def test_a_damaged_payload_is_not_handed_out(tmp_path: Path) -> None:
    name = sha256(b"data")
    with cases.create(tmp_path / "ledger.db", [cases.genesis(), note(1, data=b"data")]) as log:
        unguarded(tmp_path / "ledger.db", "UPDATE payloads SET data = x'00'")
        with pytest.raises(LedgerError, match="damaged"):
            log.payload(name)
        with pytest.raises(LedgerError, match="no payload"):
            log.payload("0" * 64)


# Entries


@pytest.mark.parametrize(
    ("kind", "body", "fault"),
    [
        ("vote", {}, "no entry kind 'vote'"),
        ("study.paused", {"study": "x"}, "no entry kind"),
        ("genesis", {}, r"needs the texts \['federation'\]"),
        ("member.admit", {"member": "ada"}, r"needs the texts \['key'\]"),
        ("study.closed", {}, r"needs the texts \['study'\]"),
        ("ballot", {"marks": []}, r"needs the texts \['envelope'\]"),
        ("pool", {"x": float("nan")}, "cannot be recorded"),
        ("pool", {"x": 2**53 + 1}, "cannot be recorded"),
        ("pool", {"x": b"bytes"}, "cannot be recorded"),
        ("pool", {"x": "\ud800"}, "cannot be recorded"),
        ("pool", {"x": "x" * MAX_BODY_BYTES}, "the bound is"),
    ],
)
def test_entries_that_no_auditor_could_check(kind: str, body: dict[str, Any], fault: str) -> None:
    with pytest.raises(LedgerError, match=fault):
        Entry(kind, body)


def test_the_deepest_body_the_writer_takes_is_one_the_verifier_reads(tmp_path: Path) -> None:
    def nested(levels: int) -> Any:
        return [] if levels == 1 else [nested(levels - 1)]

    deepest = Entry("pool", {"x": nested(MAX_BODY_DEPTH - 1)})
    with cases.create(tmp_path / "ledger.db", [cases.genesis(), deepest]) as log:
        assert verify(export(log), cases.policy()).size == 2
    with pytest.raises(LedgerError, match="nested deeper"):
        Entry("pool", {"x": nested(MAX_BODY_DEPTH)})


def test_a_payload_under_a_wrong_name() -> None:
    with pytest.raises(LedgerError, match="name it by that"):
        Entry("pool", {}, {"0" * 64: b"data"})


# The bundle


def test_the_bundle_is_the_same_for_the_same_ledger(tmp_path: Path) -> None:
    with cases.create(tmp_path / "one.db") as one, cases.create(tmp_path / "two.db") as two:
        assert export(one) == export(two) == export(one)
    shutil.copyfile(tmp_path / "one.db", tmp_path / "copy.db")
    with Log.read(cases.url(tmp_path / "copy.db")) as copy, Log.read(cases.url(tmp_path / "one.db")) as one:
        assert export(copy) == export(one)


def test_the_bundle_holds_what_another_process_has_written_since(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with cases.create(path, [cases.genesis()]) as writer, Log.read(cases.url(path)) as reader:
        writer.append([note(1)])
        assert verify(export(reader), cases.policy()).size == 2


def test_a_bundle_no_verifier_would_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causaldao.ledger.bundle.MAX_BUNDLE_BYTES", 100)
    with cases.create(tmp_path / "ledger.db") as log, pytest.raises(LedgerError, match="reads at most"):
        export(log)


def test_two_threads_of_one_log_do_not_lose_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def slow(*arguments: Any, **options: Any) -> Iterator[sa.Connection]:
        with store.transaction(*arguments, **options) as connection:
            yield connection
        time.sleep(0.005)  # between the commit and what the object remembers of it

    monkeypatch.setattr("causaldao.ledger.log.transaction", slow)
    with cases.create(tmp_path / "ledger.db", [cases.genesis()]) as log:
        with ThreadPoolExecutor(4) as pool:
            indices = list(pool.map(lambda number: log.append([note(number)])[0], range(20)))
        assert sorted(indices) == list(range(1, 21))
        assert verify(export(log), cases.policy()).size == 21


def test_the_engine_is_closed_when_opening_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.create(tmp_path / "ledger.db").close()
    closed: list[sa.Engine] = []
    dispose = sa.Engine.dispose

    def noted(engine: sa.Engine) -> None:
        closed.append(engine)
        dispose(engine)

    monkeypatch.setattr(sa.Engine, "dispose", noted)
    with pytest.raises(LedgerError):
        Log.open(cases.url(tmp_path / "ledger.db"), cases.OTHER_KEY)
    assert len(closed) == 1
