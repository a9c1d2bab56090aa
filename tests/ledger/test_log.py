"""The log against crashes, second writers, second times and altered databases."""

from __future__ import annotations

import base64
import shutil
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
from causaldao.ledger import Entry, Log, export, merkle, store
from causaldao.ledger.entry import MAX_BODY_BYTES, MAX_BODY_DEPTH, MAX_ERASED, record_bytes, salted
from causaldao.ledger.verify import verify
from causaldao.signing import canonical, sha256
from tests.counts import count
from tests.ledger import cases
from tests.ledger.conftest import Database, SQLite


def note(number: int, key: str | None = None, **payloads: bytes) -> Entry:
    return Entry("pool", {"number": number}, {sha256(data): data for data in payloads.values()}, key)


def merkle_root(log: Log) -> bytes:
    """The root made anew from the records."""
    return merkle.root(merkle.leaf_hash(entry.record) for entry in log.entries())


def test_what_was_appended_is_there_after_opening_again(database: Database) -> None:
    with cases.create(database.url, [cases.genesis(), note(1, data=b"bytes")]) as log:
        head = log.head
    with Log.open(database.url, cases.LOG_KEY, cases.clock()) as log:
        assert log.head == head
        assert log.append([note(2)]) == [2]
        assert [entry.body.get("number") for entry in log.entries(start=1)] == [1, 2]
        assert log.payload(sha256(b"bytes")) == b"bytes"
        assert log.head.root == log.root_at(3).hex() == merkle_root(log).hex()
        assert log.state("none") is None


def killed(mode: str, database: Database, step: int = 1) -> int:
    """At which word of its own a writer was not killed, each at another; the program checks what each left."""
    program = Path(__file__).with_name("killed_writer.py")
    done = subprocess.run(
        [sys.executable, str(program), mode, database.url, str(step)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_kill_at_any_statement_leaves_all_or_nothing(database: Database) -> None:
    with cases.create(database.url, [cases.genesis()]) as log:
        log.append([], {"state": "before"})
    # BEGIN, head, known keys, erasures, swap, entries, nodes, payloads, state, COMMIT; between two words nothing
    # reaches the database.
    assert killed("append", database) >= 10
    blobs = (b"one", b"two", b"three")
    repeated = [Entry("pool", {"round": n}, {sha256(d): d}, f"pool/{n}") for n, d in enumerate(blobs)]
    with Log.open(database.url, cases.LOG_KEY, cases.clock()) as log:
        assert log.append(repeated) == [1, 2, 3]
        assert log.state("more") == [1, 2]
        assert verify(export(log), cases.policy()).size == 4


def test_a_kill_during_creation_leaves_a_ledger_or_nothing(database: Database) -> None:
    # BEGIN, eight tables, twenty triggers or more, three columns, three indices, versions, head, COMMIT.
    assert killed("create", database, count(7, 1)) >= 40
    with Log.open(database.url, cases.LOG_KEY) as log:
        assert log.append([cases.genesis()]) == [0]


def test_a_second_writer_with_a_stale_head_loses_and_writes_nothing(database: Database) -> None:
    with cases.create(database.url, [cases.genesis()]) as first, Log.open(database.url, cases.LOG_KEY) as second:
        first.append([note(1)], {"writer": "first"})
        before = first.snapshot()
        with pytest.raises(LedgerError, match="another writer"):
            second.append([note(2, data=b"lost")], {"writer": "second"})
        with pytest.raises(LedgerError, match="another writer"):
            second.append([], {"writer": "second"})
        assert first.snapshot() == before
        assert first.state("writer") == "first"
        assert first.append([note(3)]) == [2]
    with Log.open(database.url, cases.LOG_KEY) as again:
        assert again.append([note(2)]) == [3]


def of(study: str, number: int, **body: Any) -> Entry:
    return Entry("pool", {"study": study, "number": number, **body})


@contextmanager
def two_writers(database: Database) -> Iterator[tuple[Log, Log]]:
    with (
        cases.create(database.url, [cases.genesis(), *cases.admissions()]) as one,
        Log.open(database.url, cases.LOG_KEY, cases.clock()) as two,
    ):
        yield one, two


def test_two_studies_and_the_operator_do_not_hinder_one_another(database: Database) -> None:
    with two_writers(database) as (one, two), Log.open(database.url, cases.LOG_KEY) as operator:
        assert one.append([of("a", 1)], {"a": 1}) == [3]
        assert two.append([of("b", 1)], {"b": 1}) == [4]
        assert operator.append([cases.revoke("bob")]) == [5]
        assert one.append([of("a", 2)], {"a": 2}) == [6]
        assert two.append([], {"b": 2}, own="b") == []
        assert two.append([of("b", 2)]) == [7]
        assert (one.state("a"), one.state("b")) == (2, 2)
        assert verify(export(one), cases.policy()).size == 8


def test_two_coordinators_of_one_study(database: Database) -> None:
    with two_writers(database) as (one, two):
        one.append([of("a", 1)], {"a": 1})
        before = one.snapshot()
        for _ in range(2):  # once refused, refused for good
            with pytest.raises(LedgerError, match="another writer came first, with study a"):
                two.append([of("a", 2)], {"a": 2})
            with pytest.raises(LedgerError, match="another writer"):
                two.append([], {"a": 2}, own="a")
            with pytest.raises(LedgerError, match="another writer"):
                two.append([of("b", 1), of("a", 2)])
        assert one.snapshot() == before
        assert two.append([of("b", 1)]) == [4]
        assert one.append([of("a", 2)]) == [5]
    with Log.open(database.url, cases.LOG_KEY) as again:
        assert again.append([of("a", 3)]) == [6]


def test_looking_again_does_not_make_a_writer_of_anothers_study(database: Database) -> None:
    with two_writers(database) as (one, two):
        one.append([of("a", 1)])
        assert two.refresh() == two.head == one.head
        with pytest.raises(LedgerError, match="another writer"):
            two.append([of("a", 2)])
        two.append([of("b", 1)])
        with pytest.raises(LedgerError, match="another writer"):
            two.append([of("a", 2)])


def test_members_are_changed_by_one_who_has_seen_the_last_change(database: Database) -> None:
    with two_writers(database) as (one, two):
        one.append([cases.revoke("bob")])
        with pytest.raises(LedgerError, match="with the members"):
            two.append([cases.admit("cy")])
        two.append([of("a", 1)])  # adopts the revocation, yet has not decided on it
        with pytest.raises(LedgerError, match="with the members"):
            two.append([cases.admit("cy")])
        two.refresh()
        assert two.append([cases.admit("cy")]) == [5]


@pytest.mark.parametrize("kind", ["ballot", "study.approved"])
def test_a_word_is_not_recorded_after_its_speakers_revocation(database: Database, kind: str) -> None:
    """The coordinator took the word, the operator revoked its speaker, the coordinator records."""

    def entry(member: str) -> Entry:
        said = dict(cases.spoken(member, "ballot", {}).body)
        return Entry(kind, {"study": cases.STUDY, **(said if kind == "ballot" else {"approvals": [said]})})

    with two_writers(database) as (one, two):
        two.append([cases.revoke("bob")])
        for _ in range(2):
            with pytest.raises(LedgerError, match="bob was revoked by entry 3"):
                one.append([entry("ada"), entry("bob")])
        assert one.append([entry("ada")]) == [4]


def test_a_word_behind_its_speakers_revocation_in_one_append(database: Database) -> None:
    revocation, word = cases.revoke("bob"), cases.spoken("bob", "ballot", {})
    with two_writers(database) as (one, _):
        with pytest.raises(LedgerError, match="bob was revoked by entry 3"):
            one.append([revocation, word])
        assert one.append([word, revocation]) == [3, 4]


def test_a_decision_that_stands_on_another_size(database: Database) -> None:
    """In the founding the operator admits alone: a study proposed in between would make that invalid for ever."""
    with two_writers(database) as (one, two):
        one.append([Entry("study.proposed", {"study": "a"})])
        before = one.snapshot()
        with pytest.raises(LedgerError, match="has 4 entries, but this step was decided at size 3"):
            two.append([cases.admit("cy")], {"x": 1}, at=3)
        assert one.snapshot() == before
        assert two.append([cases.admit("cy")], at=4) == [4]
        with pytest.raises(LedgerError, match="decided at size 6"):
            two.append([], at=6)


def test_an_edit_of_a_study_is_the_members_affair(database: Database) -> None:
    edit = Entry("federation.edit", {"study": "a", "edge": ["x", "y"], "change": "add", "reason": "known"})
    with two_writers(database) as (one, two):
        one.append([of("a", 1)])
        two.append([edit])
        assert one.append([of("a", 2)]) == [5]
        with pytest.raises(LedgerError, match="with the members"):
            one.append([cases.admit("cy")])


def test_a_reader_looks_again(database: Database) -> None:
    with cases.create(database.url, [cases.genesis()]) as writer, Log.read(database.url) as reader:
        writer.append([of("a", 1), of("b", 1)])
        assert reader.head.size == 1
        assert reader.refresh() == reader.head == writer.head
        assert reader.refresh() == writer.head


@pytest.mark.parametrize("refreshed", [False, True])
def test_what_others_wrote_does_not_go_on_from_what_was_seen(database: Database, refreshed: bool) -> None:
    with two_writers(database) as (one, two):
        one.append([of("a", 1)])
        ((record,),) = database.sql("SELECT record FROM entries WHERE position = 3")
        changed = database.bytes(bytes(record).replace(b'"number":1', b'"number":2'))
        database.unguarded(f"UPDATE entries SET record = {changed} WHERE position = 3")
        with pytest.raises(LedgerError, match="does not go on"):
            two.refresh() if refreshed else two.append([of("b", 1)])


def test_a_history_that_became_shorter(database: Database) -> None:
    with two_writers(database) as (one, two):
        old = one.head
        one.append([of("a", 1)])
        two.refresh()
        database.unguarded(
            "DELETE FROM entries WHERE position = 3",
            f"UPDATE head SET size = 3, root = '{old.root}', time = '{old.time}', signature = '{old.signature}'",
        )
        with pytest.raises(LedgerError, match="does not go on"):
            two.refresh()
        with pytest.raises(LedgerError, match="does not go on"):
            two.append([of("b", 1)])


def test_others_entries_under_a_head_that_the_logs_key_did_not_sign(database: Database) -> None:
    with two_writers(database) as (one, two):
        one.append([of("a", 1)])
        database.unguarded(f"UPDATE head SET signature = '{base64.b64encode(b'x' * 64).decode()}'")
        with pytest.raises(LedgerError, match="was not signed by key"):
            two.append([of("b", 1)])


def test_a_head_that_is_not_swapped(sqlite: SQLite) -> None:
    with cases.create(sqlite.url, [cases.genesis()]) as log:
        sqlite.sql("CREATE TRIGGER stuck BEFORE UPDATE ON head BEGIN SELECT RAISE(IGNORE); END")
        with pytest.raises(LedgerError, match="head moved during a write"):
            log.append([note(1)], {"state": 1})
        assert (log.head.size, len(log.entries()), log.state("state")) == (1, 1, None)


def test_entries_are_found_by_place_kind_and_study(database: Database) -> None:
    recorded = [cases.genesis(), of("a", 1), of("b", 2), Entry("adopt", {"study": "a"}), of("a", 3)]
    with cases.create(database.url, recorded) as log:
        found = [
            [entry.index for entry in log.entries(*place, **words)]
            for place, words in [
                ((), {}), ((3,), {}), ((1, 3), {}), ((0, 0), {}), ((), {"kinds": ("pool",)}), ((), {"study": "a"}),
                ((2,), {"kinds": {"pool", "adopt"}, "study": "a"}), ((), {"kinds": ()}),
            ]
        ]  # fmt: skip
    assert found == [[0, 1, 2, 3, 4], [3, 4], [1, 2], [], [1, 2, 4], [1, 3, 4], [3, 4], []]


def test_many_processes_write_at_once_and_nothing_is_lost(database: Database) -> None:
    cases.create(database.url, [cases.genesis()]).close()
    script = (
        "import sys; from causaldao.ledger import Entry, Log; from causaldao.signing import SigningKey\n"
        "with Log.open(sys.argv[1], SigningKey.from_seed(b'L' * 32)) as log:\n"
        "    for n in range(15): log.append([Entry('pool', {'study': sys.argv[2], 'n': n})], {sys.argv[2]: n})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, database.url, study]) for study in ("a", "b", "c")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with Log.open(database.url, cases.LOG_KEY) as log:
        assert verify(export(log), cases.policy()).size == 46
        assert [log.state(study) for study in ("a", "b", "c")] == [14, 14, 14]
        for study in ("a", "b", "c"):
            assert [entry.body["n"] for entry in log.entries(study=study)] == list(range(15))


def test_a_writer_whose_database_fails_keeps_its_head_and_can_go_on(database: Database) -> None:
    with cases.create(database.url, [cases.genesis()]) as log:
        head = log.head
        database.fail()
        with pytest.raises(LedgerError, match=r"Could not append to the ledger: .*disk_full"):
            log.append([note(1, data=b"x")], {"state": 1})
        assert (log.head, len(log.entries()), log.state("state")) == (head, 1, None)
        database.mend()
        assert log.append([note(1, data=b"x")]) == [1]


def test_a_state_that_is_no_json_rolls_everything_back(database: Database) -> None:
    with cases.create(database.url, [cases.genesis()]) as log:
        with pytest.raises(LedgerError, match="state 'bad'"):
            log.append([note(1)], {"bad": float("nan")})
        assert log.head.size == len(log.entries()) == 1


def test_a_keyed_entry_is_recorded_once(database: Database) -> None:
    with cases.create(database.url, [cases.genesis()]) as log:
        assert log.append([note(1, "a"), note(2, "b"), note(1, "a")]) == [1, 2, 1]
        head = log.head
        assert log.append([note(1, "a")], {"step": 1}) == [1]
        assert log.head == head
        assert log.state("step") == 1
        assert log.append([note(3), note(2, "b"), note(3)]) == [3, 2, 4]


@pytest.mark.parametrize("other", [note(9, "a"), note(1, "a", data=b"x"), Entry("adopt", {"number": 1}, key="a")])
def test_a_key_with_another_content_is_refused(database: Database, other: Entry) -> None:
    with cases.create(database.url, [cases.genesis(), note(1, "a")]) as log:
        with pytest.raises(LedgerError, match="'a' stands at entry 1 with another content"):
            log.append([note(5), other])
        assert log.head.size == 2


def test_more_keys_than_one_statement_can_name(database: Database) -> None:
    with cases.create(database.url, [cases.genesis()]) as log:
        batch = [note(number, f"key/{number}") for number in range(1100)]
        assert log.append(batch) == log.append(batch) == list(range(1, 1101))


@pytest.mark.parametrize("recorded", [[note(1)], [cases.genesis(), cases.genesis()]])
def test_a_log_begins_with_one_genesis(database: Database, recorded: list[Entry]) -> None:
    with Log.create(database.url, cases.ORIGIN, cases.LOG_KEY) as log:
        with pytest.raises(LedgerError, match="one genesis"):
            log.append(recorded)
        assert log.head.size == 0
        with pytest.raises(LedgerError, match="is empty"):
            export(log)


def test_reload_with_the_wrong_key(database: Database) -> None:
    cases.create(database.url).close()
    with pytest.raises(LedgerError, match="was not signed by key"):
        Log.open(database.url, cases.OTHER_KEY)


def test_a_log_opened_to_be_read_cannot_append(database: Database) -> None:
    cases.create(database.url).close()
    with Log.read(database.url) as log:
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


def test_creating_over_a_ledger(database: Database) -> None:
    cases.create(database.url).close()
    with pytest.raises(LedgerError, match="already"):
        Log.create(database.url, cases.ORIGIN, cases.LOG_KEY)
    with Log.read(database.url) as log:
        assert log.head.size == len(cases.entries())


# A database altered behind the program's back


def test_the_last_entry_deleted_in_the_database(database: Database) -> None:
    cases.create(database.url).close()
    database.unguarded("DELETE FROM entries WHERE position = 9")
    with pytest.raises(LedgerError, match="altered outside"):
        Log.open(database.url, cases.LOG_KEY)


def test_the_head_rolled_back_with_its_entries_gone(database: Database) -> None:
    with cases.create(database.url, cases.entries()[:5]) as log:
        old = log.head
        log.append(cases.entries()[5:])
    database.unguarded(
        f"UPDATE head SET size = 5, root = '{old.root}', signature = '{old.signature}'",
    )
    with pytest.raises(LedgerError, match="altered outside"):
        Log.open(database.url, cases.LOG_KEY)


def test_an_old_entry_rewritten_is_found_in_the_bundle(database: Database) -> None:
    cases.create(database.url).close()
    ((record,),) = database.sql("SELECT record FROM entries WHERE position = 3")
    changed = database.bytes(bytes(record).replace(b"what causes", b"who causes"))
    database.unguarded(f"UPDATE entries SET record = {changed} WHERE position = 3")
    with (
        Log.open(database.url, cases.LOG_KEY) as log,
        pytest.raises(LedgerError, match="entry 3"),
    ):
        verify(export(log), cases.policy())


def test_a_damaged_payload_is_not_handed_out(database: Database) -> None:
    name = sha256(b"data")
    with cases.create(database.url, [cases.genesis(), note(1, data=b"data")]) as log:
        database.unguarded(f"UPDATE payloads SET data = {database.bytes(b'x')}")
        with pytest.raises(LedgerError, match="damaged"):
            log.payload(name)
        with pytest.raises(LedgerError, match="no payload"):
            log.payload("0" * 64)


def test_a_last_record_that_was_rewritten(database: Database) -> None:
    cases.create(database.url).close()
    ((record,),) = database.sql("SELECT record FROM entries WHERE position = 9")
    changed = database.bytes(bytes(record).replace(b"study.closed", b"study.closeD"))
    database.unguarded(f"UPDATE entries SET record = {changed} WHERE position = 9")
    for opened in (lambda url: Log.open(url, cases.LOG_KEY), Log.read):
        with pytest.raises(LedgerError, match="altered outside"):
            opened(database.url)


def test_a_last_link_that_was_rewritten(database: Database) -> None:
    cases.create(database.url).close()
    database.unguarded(f"UPDATE entries SET link = '{'0' * 64}' WHERE position = 9")
    with pytest.raises(LedgerError, match=r"The last link is 0000.*altered outside"):
        Log.open(database.url, cases.LOG_KEY)


def test_an_entry_behind_the_head(database: Database) -> None:
    with cases.create(database.url) as log:
        old = log.head
        log.append([note(1)])
    database.unguarded(f"UPDATE head SET size = {old.size}, root = '{old.root}', signature = '{old.signature}'")
    with pytest.raises(LedgerError, match="there are 11 entries: the database was altered outside"):
        Log.open(database.url, cases.LOG_KEY)


# Entries


@pytest.mark.parametrize(
    ("kind", "body", "fault"),
    [
        ("vote", {}, "no entry kind 'vote'"),
        ("study.paused", {"study": "x"}, "no entry kind"),
        ("genesis", {}, r"needs the texts \['federation'\]"),
        ("genesis", {"federation": "north"}, "needs 'faulty'"),
        ("member.admit", {"member": "ada", "key": "k", "witness": "w"}, "needs 'epoch'"),
        ("member.revoke", {"member": "ada"}, r"needs the texts \['reason'\]"),
        ("member.admit", {"member": "ada"}, r"needs the texts \['key', 'witness'\]"),
        ("member.rotate", {"member": "ada", "key": "k"}, r"needs the texts \['witness'\]"),
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


EDIT = {"study": "s", "edge": ["a", "b"], "change": "add", "reason": "known"}
POLICY = {"name": "retention", "sha256": "0" * 64}
ERASURE = {"payloads": ["0" * 64, "1" * 64], "reason": "asked for"}


@pytest.mark.parametrize(
    ("kind", "good", "change"),
    [
        ("federation.faulty", {"faulty": 0}, {"faulty": value}) for value in (-1, True, 1.0, "1", None)
    ] + [
        ("federation.edit", EDIT, change)
        for change in (
            {"edge": ["a"]}, {"edge": ["a", "a"]}, {"edge": ["a", "b", "c"]}, {"edge": "ab"}, {"edge": ["a", 1]},
            {"edge": None}, {"change": "turn"}, {"change": ""}, {"reason": 1}, {"study": None},
        )
    ] + [
        ("federation.policy", POLICY, change) for change in ({"sha256": "0" * 63}, {"sha256": "A" * 64}, {"name": None})
    ] + [
        ("erasure", ERASURE, change)
        for change in (
            {"payloads": []}, {"payloads": ["1" * 64, "0" * 64]}, {"payloads": ["0" * 64] * 2}, {"payloads": ["0"]},
            {"payloads": "0" * 64}, {"payloads": [f"{n:064x}" for n in range(MAX_ERASED + 1)]}, {"reason": None},
        )
    ],
)  # fmt: skip
def test_a_change_of_the_federation_that_says_nothing_definite(
    kind: str, good: dict[str, Any], change: dict[str, Any]
) -> None:
    assert Entry(kind, good).body == good
    with pytest.raises(LedgerError, match="needs"):
        Entry(kind, {**good, **change})


@pytest.mark.parametrize("entry", [*cases.entries(), note(1, "ü", b=b"2", a=b"1")])
def test_records_are_put_together_as_rfc_8785_would_write_them(entry: Entry) -> None:
    """What is spliced for speed has to be what a verifier makes of the parsed record."""
    told = {"body": dict(entry.body), "kind": entry.kind, "payloads": sorted(entry.payloads)}
    assert entry.content == sha256(canonical(told))
    record = canonical({**told, "index": 7, "previous": "0" * 64, "time": "2025-01-31T12:00:00.000Z"})
    assert record_bytes(entry, 7, "0" * 64, "2025-01-31T12:00:00.000Z") == record


def test_a_body_that_is_changed_after_the_entry_was_checked(database: Database) -> None:
    body: dict[str, Any] = {"number": 1}
    entry = Entry("pool", body)
    body["number"] = float("nan")
    with cases.create(database.url, [cases.genesis(), entry]) as log:
        assert log.entries()[1].body == {"number": 1}


def test_a_salt_that_hides_nothing() -> None:
    name, payload = salted(b"42", b"s" * 32)
    assert (name, payload) == (sha256(b"s" * 32 + b"42"), b"s" * 32 + b"42")
    assert salted(b"42")[0] != salted(b"42")[0]
    for salt in (b"", b"s" * 31, b"s" * 33):
        with pytest.raises(LedgerError, match="32 random bytes"):
            salted(b"42", salt)


def test_the_deepest_body_the_writer_takes_is_one_the_verifier_reads(database: Database) -> None:
    def nested(levels: int) -> Any:
        return [] if levels == 1 else [nested(levels - 1)]

    deepest = Entry("pool", {"x": nested(MAX_BODY_DEPTH - 1)})
    with cases.create(database.url, [cases.genesis(), deepest]) as log:
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


def test_the_bundle_holds_what_another_process_has_written_since(database: Database) -> None:
    with cases.create(database.url, [cases.genesis()]) as writer, Log.read(database.url) as reader:
        writer.append([note(1)])
        assert verify(export(reader), cases.policy()).size == 2


def test_a_bundle_no_verifier_would_read_is_not_written(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causaldao.ledger.bundle.MAX_BUNDLE_BYTES", 100)
    with cases.create(database.url) as log, pytest.raises(LedgerError, match="reads at most"):
        export(log)


def test_two_threads_of_one_log_do_not_lose_entries(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def slow(*arguments: Any, **options: Any) -> Iterator[sa.Connection]:
        with store.transaction(*arguments, **options) as connection:
            yield connection
        time.sleep(0.005)  # between the commit and what the object remembers of it

    monkeypatch.setattr("causaldao.ledger.log.transaction", slow)
    with cases.create(database.url, [cases.genesis()]) as log:
        with ThreadPoolExecutor(4) as pool:
            indices = list(pool.map(lambda number: log.append([note(number)])[0], range(20)))
        assert sorted(indices) == list(range(1, 21))
        assert verify(export(log), cases.policy()).size == 21


def test_the_engine_is_closed_when_opening_fails(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.create(database.url).close()
    closed: list[sa.Engine] = []
    dispose = sa.Engine.dispose

    def noted(engine: sa.Engine) -> None:
        closed.append(engine)
        dispose(engine)

    monkeypatch.setattr(sa.Engine, "dispose", noted)
    with pytest.raises(LedgerError):
        Log.open(database.url, cases.OTHER_KEY)
    assert len(closed) == 1
