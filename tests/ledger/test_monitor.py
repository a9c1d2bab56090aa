"""A monitor: what a log could show it that is not one history under one key, and what it must not call a lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from causaldao.errors import ConfigurationError, Finding, LedgerError
from causaldao.ledger import merkle, monitor
from causaldao.ledger.monitor import Monitor
from causaldao.ledger.note import Checkpoint, cosign, sign_checkpoint, with_cosignatures
from causaldao.ledger.reader import Told
from causaldao.signing import SigningKey
from tests.ledger.shelf import LOG_KEY, ORIGIN, WITNESSES, Shelf, policy, record


def follow(watch: Monitor, note: str) -> list[int]:
    return [line.index for page in watch.follow(note) for line in page]


def records(count: int, tail: str = "") -> list[bytes]:
    """A history; with a ``tail`` its second half is another one."""
    return [record(index, why=tail) if tail and index >= count // 2 else record(index) for index in range(count)]


@pytest.mark.parametrize("page", [1, 2, 3, 7, 1000])
def test_a_tree_that_grows_is_told_twice_or_with_holes(monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr(monitor, "PAGE", page)
    shelf = Shelf(records(35))
    watch, told = Monitor(shelf, policy()), list[int]()
    for size in (0, 1, 2, 3, 4, 7, 8, 16, 17, 31, 32, 35, 35):
        told += follow(watch, shelf.note(size))
        assert watch.seen.root == merkle.root(shelf.leaves(size))
        assert len(watch.seen.edge) == size.bit_count()
    assert told == list(range(35))


def test_what_was_seen_is_forgotten_when_the_watch_ends(tmp_path: Path) -> None:
    shelf, state = Shelf(records(20)), tmp_path / "seen"
    assert follow(Monitor(shelf, policy(), state), shelf.note(13)) == list(range(13))
    assert follow(Monitor(shelf, policy(), state), shelf.note(20)) == list(range(13, 20))
    assert follow(Monitor(shelf, policy(), state), shelf.note(20)) == []


def test_a_watch_that_is_killed_loses_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "PAGE", 4)
    shelf, state = Shelf(records(20)), tmp_path / "seen"
    killed: Any = Monitor(shelf, policy(), state).follow(shelf.note(20))
    assert next(killed)[0].index == 0
    killed.close()
    assert follow(Monitor(shelf, policy(), state), shelf.note(20)) == list(range(20))


@pytest.mark.parametrize(("seen", "shown"), [(10, 10), (10, 20), (20, 10), (1, 20), (19, 20)])
def test_a_fork_is_believed(tmp_path: Path, seen: int, shown: int) -> None:
    """Both checkpoints are signed; whoever holds both can prove the lie to anybody."""
    honest, state = Shelf(records(20)), tmp_path / "seen"
    liar = Shelf([record(index, why="another") for index in range(20)])
    follow(Monitor(honest, policy(), state), honest.note(seen))
    before = state.read_bytes()
    with pytest.raises(Finding, match="contradicts itself") as found:
        follow(Monitor(liar, policy(), state), liar.note(shown))
    assert found.value.problems == (honest.note(seen), liar.note(shown))
    kept = json.loads((tmp_path / "seen.evidence").read_text())
    assert kept == {"seen": honest.note(seen), "shown": liar.note(shown)}
    assert state.read_bytes() == before  # and it is found again the next time
    with pytest.raises(Finding, match="contradicts itself"):
        follow(Monitor(liar, policy(), state), liar.note(shown))


def test_a_log_that_was_put_back_is_believed() -> None:
    """It has fewer entries than it signed, so it cannot prove that they are still there."""
    shelf = Shelf(records(20))
    watch = Monitor(shelf, policy())
    follow(watch, shelf.note(20))
    watch.reader = restored = Shelf(records(20)[:12])
    with pytest.raises(Finding, match="contradicts itself"):
        follow(watch, restored.note(12))


def test_an_older_checkpoint_of_the_same_history_is_called_a_lie() -> None:
    """The quorum's lags behind the head, and a look may come from a replica."""
    shelf = Shelf(records(20), agreed=12)
    watch = Monitor(shelf, policy())
    follow(watch, shelf.note(20))
    assert follow(watch, shelf.note(12)) == []
    assert watch.fits(shelf.note(12)).size == 12
    assert watch.seen.size == 20
    ahead = Monitor(shelf, policy())
    assert ahead.fits(shelf.note(12)).size == 12  # before anything was seen


@dataclass
class Forger(Shelf):
    """Shows another record than the one in its tree."""

    forged: int = 5

    def entries(self, start: int, stop: int) -> Iterator[Told]:
        for told in super().entries(start, stop):
            yield Told(told.index, record(told.index, why="x"), "") if told.index == self.forged else told


@pytest.mark.parametrize("page", [3, 6, 1000])
@pytest.mark.parametrize("forged", [0, 5, 19])
def test_an_entry_that_is_not_in_the_tree_is_told(monkeypatch: pytest.MonkeyPatch, forged: int, page: int) -> None:
    monkeypatch.setattr(monitor, "PAGE", page)
    liar = Forger(records(20), forged=forged)
    watch = Monitor(liar, policy())
    told = list[int]()
    pages = watch.follow(liar.note(20))
    with pytest.raises(Finding, match="not those under its checkpoint"):
        told.extend(line.index for lines in pages for line in lines)
    assert forged not in told
    assert watch.seen.size == 0


@dataclass
class Skipper(Shelf):
    """Leaves entries out, or sends them twice."""

    extra: int = -1

    def entries(self, start: int, stop: int) -> Iterator[Told]:
        told = list(super().entries(start, stop))
        yield from told[: self.extra] if self.extra < 0 else [*told, told[0]]


@pytest.mark.parametrize("extra", [-1, 1])
def test_too_few_or_too_many_entries(extra: int) -> None:
    liar = Skipper(records(20), extra=extra)
    with pytest.raises(LedgerError, match="other entries than 0 to 19"):
        follow(Monitor(liar, policy()), liar.note(20))


@pytest.mark.parametrize(
    "bad",
    [b"{}", b"\xff", b"[" * 10**5, record(7), record(3).replace(b'"time"', b'"thyme"'), record(3) + b" "],
    ids=range(6),
)
def test_a_record_that_is_none_is_a_traceback(bad: bytes) -> None:
    """The log signed the tree that it stands in, so only the record's own form can be wrong."""
    shelf = Shelf([*records(3), bad])
    with pytest.raises(LedgerError, match="entry 3"):
        follow(Monitor(shelf, policy()), shelf.note(4))


def notes_of_others(shelf: Shelf) -> dict[str, str]:
    checkpoint, stranger = shelf.checkpoint_at(10), SigningKey.from_seed(b"X" * 32)
    return {
        "another's key": sign_checkpoint(checkpoint, stranger),
        "another's log": sign_checkpoint(Checkpoint("causaldao.example/other", 10, checkpoint.root), LOG_KEY),
        "altered": shelf.note(10).replace("\n10\n", "\n11\n"),
        "no note": "\x1b[2Jhello",
        "nothing": "",
    }


@pytest.mark.parametrize("which", ["another's key", "another's log", "altered", "no note", "nothing"])
def test_a_checkpoint_of_another_is_followed(which: str) -> None:
    shelf = Shelf(records(20))
    watch = Monitor(shelf, policy())
    for look in (lambda note: follow(watch, note), watch.fits, watch.cosigners):
        with pytest.raises(Finding, match="no checkpoint") as found:
            look(notes_of_others(shelf)[which])
        assert "\x1b" not in str(found.value)


def test_a_bad_cosignature_counts_or_a_strangers_does() -> None:
    shelf = Shelf(records(20), agreed=10)
    watch = Monitor(shelf, policy())
    assert watch.cosigners(shelf.note(10)) == ("ada", "bob")
    assert watch.cosigners(shelf.note(20)) == ()
    stranger = cosign(shelf.checkpoint_at(20), "eve", SigningKey.from_seed(b"e" * 32), 1)
    assert watch.cosigners(with_cosignatures(shelf.note(20), [stranger])) == ()
    other = cosign(shelf.checkpoint_at(19), "ada", WITNESSES["ada"], 1)
    with pytest.raises(Finding, match="cosignature"):
        watch.cosigners(with_cosignatures(shelf.note(20), [other]))


def spoilt(state: dict[str, Any]) -> dict[str, Any]:
    shelf = Shelf(records(20))
    return {
        "another node": {**state, "edge": ["00" * 32, *state["edge"][1:]]},
        "a node less": {**state, "edge": state["edge"][1:]},
        "a node more": {**state, "edge": [*state["edge"], "00" * 32]},
        "no hex": {**state, "edge": ["x", "y"]},
        "no texts": {**state, "edge": [1, 2]},
        "another note": {**state, "note": shelf.note(7)},
        "no note": {**state, "note": "x"},
        "another form": {**state, "format": "causaldao-watch/0"},
        "a field more": {**state, "more": 1},
        "a list": [],
    }


@pytest.mark.parametrize("how", list(spoilt({"edge": ["", ""]})))
def test_an_altered_state_makes_another_history_fit(tmp_path: Path, how: str) -> None:
    shelf, state = Shelf(records(20)), tmp_path / "seen"
    follow(Monitor(shelf, policy(), state), shelf.note(12))
    state.write_text(json.dumps(spoilt(json.loads(state.read_text()))[how]))
    with pytest.raises(ConfigurationError, match="seen is not what a watch"):
        Monitor(shelf, policy(), state)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 10**5, b" " * (monitor.MAX_STATE_BYTES + 1)], ids=range(5))
def test_a_state_that_is_none_is_a_traceback(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "seen").write_bytes(text)
    with pytest.raises(ConfigurationError, match="seen is not what a watch"):
        Monitor(Shelf(), policy(), tmp_path / "seen")


def test_the_state_of_another_log_is_taken(tmp_path: Path) -> None:
    shelf = Shelf(records(20), key=SigningKey.from_seed(b"X" * 32))
    note = shelf.note(3)
    edge = [merkle.root(shelf.leaves(2)).hex(), shelf.leaves(3)[2].hex()]
    (tmp_path / "seen").write_text(json.dumps({"format": monitor.FORMAT, "note": note, "edge": edge}))
    with pytest.raises(ConfigurationError, match=ORIGIN):
        Monitor(shelf, policy(), tmp_path / "seen")
