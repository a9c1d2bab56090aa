"""The members' cosignatures as the log keeps them, the checkpoint they agree on, and receipts under it."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import sqlalchemy as sa

from causaldao.errors import LedgerError
from causaldao.ledger import Entry, Log, merkle
from causaldao.ledger.note import COSIGNER, LOG, Checkpoint, Verifier, cosign, cosigners, open_note, parse_proof
from causaldao.ledger.receipt import Pending, Receipt
from tests.ledger import cases
from tests.ledger.conftest import Database

NAMES = ("ada", "bob", "cy", "dan")
WATCHED = Verifier.of(cases.ORIGIN, cases.LOG_KEY.public, LOG)
WITNESSES = {name: Verifier.of(name, cases.witness(name).public, COSIGNER) for name in NAMES}


def line(log: Log, size: int, name: str, time: int = 1) -> str:
    return cosign(Checkpoint(cases.ORIGIN, size, log.root_at(size)), name, cases.witness(name), time)


def keep(log: Log, size: int, *names: str) -> None:
    log.keep_cosignatures(size, {name: line(log, size, name) for name in names})


def create(database: Database, size: int = 10) -> Log:
    return cases.create(database.url, [cases.genesis(), *(Entry("pool", {"number": n}) for n in range(1, size))])


def keys(*names: str) -> list[Verifier]:
    return [WITNESSES[name] for name in names]


def agreed(log: Log, names: Collection[str], quorum: int) -> tuple[int, list[str]] | None:
    """Size and cosigners of what was agreed, with every signature verified."""
    note = log.agreed(keys(*names), quorum)
    if note is None:
        return None
    signed = cosigners(note, WITNESSES.values())
    return open_note(note, WATCHED).size, sorted(signed)


def test_the_largest_size_that_enough_members_cosigned(database: Database) -> None:
    with create(database) as log:
        assert agreed(log, NAMES, 1) is None
        keep(log, 3, "ada", "bob", "cy")
        keep(log, 5, "ada", "bob")
        keep(log, 8, "cy")
        keep(log, 7, "dan", "ada", "bob")
        found = {quorum: agreed(log, NAMES, quorum) for quorum in range(5)}
        assert found == {
            0: (10, []), 1: (8, ["cy"]), 2: (7, ["ada", "bob", "dan"]), 3: (7, ["ada", "bob", "dan"]), 4: None,
        }  # fmt: skip
        assert agreed(log, ("ada", "bob", "cy"), 3) == (3, ["ada", "bob", "cy"])
        assert agreed(log, ("ada", "bob"), 2) == (7, ["ada", "bob"])  # a stranger's line is left out
        assert agreed(log, (), 1) is None


def test_cosignatures_outlive_the_log_that_kept_them(database: Database) -> None:
    with create(database) as log:
        keep(log, 4, "ada", "bob")
        lines = log.cosignatures(4)
        assert lines == {name: line(log, 4, name) for name in ("ada", "bob")}
    with Log.read(database.url) as log:
        assert log.cosignatures(4) == lines
        assert agreed(log, NAMES, 2) == (4, ["ada", "bob"])  # without the log's key: the checkpoint is stored
        assert log.note_at(4) == log.head_at(4).note
        assert (log.last_cosigned(WITNESSES["ada"]), log.last_cosigned(WITNESSES["cy"])) == ((4, lines["ada"]), None)
        assert log.cosignatures(5) == {}
        assert log.checkpoints() == {4: ("ada", "bob")}


def test_the_first_cosignature_of_a_size_stays(database: Database) -> None:
    with create(database) as log:
        log.keep_cosignatures(4, {"ada": line(log, 4, "ada", time=1)})
        log.keep_cosignatures(4, {"ada": line(log, 4, "ada", time=2), "bob": line(log, 4, "bob", time=2)})
        log.keep_cosignatures(4, {"ada": line(log, 4, "ada", time=3)})
        log.keep_cosignatures(4, {})
        assert cosigners(log.agreed(keys(*NAMES), 2) or "", WITNESSES.values()) == {"ada": 1, "bob": 2}
        keep(log, 2, "ada")  # an older size that comes late
        assert log.last_cosigned(WITNESSES["ada"]) == (4, line(log, 4, "ada", time=1))


def test_cosignatures_of_a_head_that_moved_on_meanwhile(database: Database) -> None:
    with create(database, 4) as log:
        before = log.head
        signed = line(log, 4, "ada")
        log.append([Entry("pool", {})])
        log.keep_cosignatures(4, {"ada": signed})
        assert log.note_at(4) == before.note
        assert agreed(log, NAMES, 1) == (4, ["ada"])


def test_lines_that_no_note_could_hold(database: Database) -> None:
    with create(database) as log, Log.read(database.url) as reader:
        good = line(log, 4, "ada")
        for size, lines, fault in (
            (4, {"bob": good}, "not under the name 'bob'"),
            (4, {"ada": good + "\n"}, "canonical"),
            (4, {"ada": "ada"}, "not under the name"),
            (4, {"ada": "— ada ?"}, "canonical"),
            (11, {"ada": good}, "no root of size 11"),
            (0, {"ada": good}, "cosigned by nobody"),
        ):
            with pytest.raises(LedgerError, match=fault):
                log.keep_cosignatures(size, lines)
        with pytest.raises(LedgerError, match="opened to be read"):
            reader.keep_cosignatures(4, {"ada": good})
        assert [log.cosignatures(size) for size in (0, 4, 11)] == [{}, {}, {}]


def test_a_receipt_convinces_who_has_the_keys_only(database: Database) -> None:
    with create(database) as log, Log.read(database.url) as reader:
        keep(log, 7, "ada", "bob", "cy")
        for source in (log, reader):
            for index in range(7):
                receipt = source.receipt(index, keys(*NAMES), 3)
                assert isinstance(receipt, Receipt)
                place, proof, note = parse_proof(receipt.text)
                checkpoint = open_note(note, WATCHED)
                assert (place, sorted(cosigners(note, WITNESSES.values()))) == (index, ["ada", "bob", "cy"])
                leaf = merkle.leaf_hash(receipt.record)
                merkle.verify_inclusion(leaf, index, checkpoint.size, proof, checkpoint.root)
                assert receipt.record == log.entries(index, index + 1)[0].record


def test_no_receipt_before_enough_members_cosigned(database: Database) -> None:
    with create(database) as log:
        assert log.receipt(0, keys(*NAMES), 1) == Pending(0)
        keep(log, 3, "ada", "bob")
        keep(log, 8, "ada")
        assert log.receipt(3, keys(*NAMES), 2) == Pending(3)
        assert isinstance(log.receipt(2, keys(*NAMES), 2), Receipt)
        assert isinstance(log.receipt(7, keys(*NAMES), 1), Receipt)
        assert isinstance(log.receipt(9, (), 0), Receipt)  # nobody is asked: under the head
        for index in (-1, 10):
            with pytest.raises(LedgerError, match="there is no entry"):
                log.receipt(index, keys(*NAMES), 2)


def test_a_reader_that_has_not_looked_again_shows_what_it_knows(database: Database) -> None:
    with create(database, 4) as log, Log.read(database.url) as reader:
        keep(log, 3, "ada")
        log.append([Entry("pool", {})])
        keep(log, 5, "ada")
        assert agreed(reader, NAMES, 1) == (3, ["ada"])
        reader.refresh()
        assert agreed(reader, NAMES, 1) == (5, ["ada"])


def test_a_stored_checkpoint_that_was_altered(database: Database) -> None:
    with create(database) as log:
        keep(log, 4, "ada")
        database.unguarded(f"UPDATE checkpoints SET root = '{log.root_at(5).hex()}'")
        for ask in (log.note_at, lambda size: log.receipt(size - 1, keys(*NAMES), 1)):
            with pytest.raises(LedgerError, match="not one of this log's"):
                ask(4)


def test_a_snapshot_of_an_earlier_size_is_what_was_there_then(database: Database) -> None:
    recorded = cases.entries()
    with cases.create(database.url, recorded[:5]) as log:
        then = log.snapshot()
        log.append(recorded[5:])
        keep(log, 5, "ada", "bob")
        again = log.snapshot(5)
        assert (again.entries, again.payloads) == (then.entries, then.payloads)
        assert (again.head.note, sorted(cosigners(again.note, WITNESSES.values()))) == (then.note, ["ada", "bob"])
        assert then.payloads.keys() < log.snapshot().payloads.keys()
        with Log.read(database.url) as reader:
            assert reader.snapshot(5) == again


def test_the_agreed_size_is_found_without_reading_all_cosignatures(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log of years has a checkpoint a round: the newest are looked at first, the older ones when they must be."""
    monkeypatch.setattr("causaldao.ledger.cosignatures._AT_ONCE", 2)
    with create(database) as log:
        keep(log, 2, "ada", "bob", "cy")
        for size in range(3, 10):
            keep(log, size, *(("ada", "bob") if size % 2 else ("ada",)))
        asked: list[str] = []
        sa.event.listen(log._engine, "before_cursor_execute", lambda *words: asked.append(words[2]))
        assert agreed(log, NAMES, 2) == (9, ["ada", "bob"])
        assert len([statement for statement in asked if "FROM cosignatures" in statement]) == 2  # sizes, then lines
        assert agreed(log, NAMES, 3) == (2, ["ada", "bob", "cy"])
        assert agreed(log, NAMES, 4) is None


def test_a_key_that_a_member_gave_up_counts_for_the_one_it_has_now(database: Database) -> None:
    new = Verifier.of("ada", cases.witness("ada again").public, COSIGNER)
    with create(database) as log:
        keep(log, 4, "ada", "bob")
        keep(log, 6, "bob")
        assert log.last_cosigned(new) is None
        assert log.agreed([new, WITNESSES["bob"]], 2) is None
        assert log.receipt(3, [new, WITNESSES["bob"]], 2) == Pending(0)
        checkpoint = Checkpoint(cases.ORIGIN, 6, log.root_at(6))
        log.keep_cosignatures(6, {"ada": cosign(checkpoint, "ada", cases.witness("ada again"), 1)})
        assert (log.last_cosigned(new) or (0,))[0] == 6
        assert log.last_cosigned(WITNESSES["ada"]) == (4, line(log, 4, "ada"))
        note = log.agreed([new, WITNESSES["bob"]], 2)
        assert note is not None
        assert sorted(cosigners(note, [new, WITNESSES["bob"]])) == ["ada", "bob"]
        assert agreed(log, NAMES, 2) == (4, ["ada", "bob"])
        assert "ada" not in (log.agreed([WITNESSES["bob"]], 1) or "")
