"""Group commit: what waits is done together, what fails fails alone, and nobody is forgotten."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from causaldao.errors import LedgerError
from causaldao.ledger import Entry, Log, export, merkle, store
from causaldao.ledger.group import Group
from causaldao.ledger.verify import verify
from causaldao.signing import sha256
from tests.ledger import cases
from tests.ledger.conftest import Database

SECONDS = 20.0


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true() and time.monotonic() < end:
        time.sleep(0.001)
    assert true()


def until_waiting(group: Group[Any, Any], count: int) -> None:
    until(lambda: len(group._waiting) == count)


class Work:
    """Doubles numbers; what it was given is noted. Until `free` is set it does not go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.fail: Callable[[Sequence[int]], None] = lambda items: None
        self.refused: set[int] = set()

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        assert self.free.wait(SECONDS)
        self.fail(items)
        return [ValueError(str(item)) if item in self.refused else 2 * item for item in items]


@contextmanager
def busy(work: Work, first: int, *others: int, most: int = 100) -> Iterator[tuple[Group[int, int], list[Future[int]]]]:
    """A group at work on one item, while others wait in this order; their weights are their values."""
    group = Group(work, lambda item: item, most)
    with ThreadPoolExecutor(1 + len(others)) as pool:
        asked = [pool.submit(group.do, first)]
        until(lambda: bool(work.batches))
        for number, other in enumerate(others, 1):
            asked.append(pool.submit(group.do, other))
            until_waiting(group, number)
        try:
            yield group, asked
        finally:
            work.free.set()


def test_a_call_that_finds_nothing_at_work_waits_for_nobody() -> None:
    work = Work()
    work.free.set()
    group = Group(work, lambda item: item, 100)
    assert [group.do(1), group.do(2)] == [2, 4]
    assert work.batches == [[1], [2]]


def test_what_waits_is_done_together_in_its_order() -> None:
    work = Work()
    with busy(work, 1, 2, 3, 4) as (_, asked):
        work.free.set()
        assert [call.result(SECONDS) for call in asked] == [2, 4, 6, 8]
    assert work.batches == [[1], [2, 3, 4]]


def test_no_more_is_done_together_than_the_bound() -> None:
    work = Work()
    with busy(work, 1, 4, 5, 2, 50, 9, 1, most=10) as (_, asked):
        work.free.set()
        assert [call.result(SECONDS) for call in asked] == [2, 8, 10, 4, 100, 18, 2]
    assert work.batches == [[1], [4, 5], [2], [50], [9, 1]]  # what is heavier than the bound is done alone


def test_a_refused_item_takes_no_other_with_it() -> None:
    work = Work()
    work.refused = {3}
    with busy(work, 1, 2, 3, 4) as (_, asked):
        work.free.set()
        with pytest.raises(ValueError, match="3"):
            asked[2].result(SECONDS)
        assert [asked[place].result(SECONDS) for place in (0, 1, 3)] == [2, 4, 8]


def test_work_that_fails_is_tried_again_for_each_alone() -> None:
    work = Work()

    def fail(items: Sequence[int]) -> None:
        if 3 in items:
            raise LedgerError("disk full")

    work.fail = fail
    with busy(work, 1, 2, 3, 4) as (_, asked):
        work.free.set()
        with pytest.raises(LedgerError, match="disk full"):
            asked[2].result(SECONDS)
        assert [asked[place].result(SECONDS) for place in (0, 1, 3)] == [2, 4, 8]
    assert work.batches == [[1], [2, 3, 4], [2], [3], [4]]


class Interrupted(BaseException):
    pass


def test_a_leader_that_is_interrupted_leaves_the_others_to_the_next() -> None:
    work = Work()

    def interrupt(items: Sequence[int]) -> None:
        if len(items) > 1:
            work.fail = lambda items: None
            raise Interrupted

    with busy(work, 1, 2, 3, 4) as (group, asked):
        work.fail = interrupt
        work.free.set()
        outcomes = [call.exception(SECONDS) for call in asked]
    # One of the three that waited led, and does not learn of its own; which of them it was is nobody's business.
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Interrupted", *["NoneType"] * 3]
    led = outcomes.index(next(outcome for outcome in outcomes if outcome))
    assert led + 1 not in {item for batch in work.batches[2:] for item in batch}
    assert not group._waiting


def test_a_caller_that_is_interrupted_while_it_waits_is_not_served_later() -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    work = Work()
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with busy(work, 1) as (group, asked):
            here = threading.main_thread().ident
            assert here is not None

            def send() -> None:
                until(lambda: bool(group._waiting))
                signal.pthread_kill(here, signal.SIGUSR1)

            sender = threading.Thread(target=send)
            sender.start()
            with pytest.raises(Interrupted):
                group.do(7)
            sender.join(SECONDS)
            work.free.set()
            assert asked[0].result(SECONDS) == 2
            assert group.do(8) == 16
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert work.batches == [[1], [8]]


# The log


def of(study: str, number: int, key: str | None = None, **payloads: bytes) -> Entry:
    return Entry("pool", {"study": study, "number": number}, {sha256(d): d for d in payloads.values()}, key)


class Appends:
    """Appends that wait in this order for one that is under way, and then go on together."""

    def __init__(self, log: Log, pool: ThreadPoolExecutor) -> None:
        self.log, self.pool, self.asked = log, pool, list[Future[list[int]]]()

    def __call__(self, *entries: Entry, **options: Any) -> None:
        waiting = len(self.log._group._waiting)
        self.asked.append(self.pool.submit(self.log.append, entries, **options))
        until_waiting(self.log._group, waiting + 1)

    def results(self) -> list[list[int] | str]:
        """The indices of each, or its error's text."""
        failed = [call.exception(SECONDS) for call in self.asked]
        return [str(error) if error else call.result() for call, error in zip(self.asked, failed, strict=True)]


@contextmanager
def together(log: Log) -> Iterator[Appends]:
    with ThreadPoolExecutor(16) as pool:
        log._lock.acquire()  # the first, which records nothing, stops inside its turn
        try:
            first = pool.submit(log.append, [], None, own="first")
            until(lambda: log._group._at_work)
            yield Appends(log, pool)
        finally:
            log._lock.release()
        assert first.result(SECONDS) == []


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The writing transactions, by what they did."""
    done: list[str] = []

    @contextmanager
    def counted(engine: sa.Engine, action: str, *, write: bool) -> Iterator[sa.Connection]:
        with store.transaction(engine, action, write=write) as connection:
            yield connection
        done.extend([action] * write)

    monkeypatch.setattr("causaldao.ledger.log.transaction", counted)
    return done


def check(log: Log) -> None:
    assert verify(export(log), cases.policy()).size == log.head.size
    check_head(log)


def check_head(log: Log) -> None:
    assert log.head.root == merkle.root(merkle.leaf_hash(entry.record) for entry in log.entries()).hex()
    with Log.read(str(log._engine.url.render_as_string(hide_password=False))) as reader:
        assert reader.head == log.head


def test_appends_that_wait_are_one_commit(database: Database, commits: list[str]) -> None:
    with cases.create(database.url, [cases.genesis()]) as log:
        with together(log) as append:
            append(of("a", 1, data=b"1"), of("a", 2), state={"a": 2})
            append(of("b", 1, data=b"1"), state={"b": 1})
            append(state={"c": 1}, own="c")
            append(of("a", 3), state={"a": 3})
            commits.clear()
        assert append.results() == [[1, 2], [3], [], [4]]
        assert commits == ["append to the ledger"] * 2  # that of the first, and one for the four
        assert [log.state(name) for name in "abc"] == [3, 1, 1]
        assert log.payload(sha256(b"1")) == b"1"
        check(log)


def test_an_append_that_is_refused_takes_no_other_with_it(database: Database, commits: list[str]) -> None:
    recorded = [cases.genesis(), *cases.admissions(), of("a", 1, "a1"), cases.revoke("bob")]
    with cases.create(database.url, recorded[:-1]) as log:
        with together(log) as append:
            append(of("a", 2))
            append(of("a", 9, "new"), of("a", 3, "a1"), state={"bad": 1})
            append(of("a", 4, "new"), state={"good": 1})
            append(cases.spoken("bob", "ballot", {"marks": []}))
            append(recorded[-1])
            append(of("a", 5), cases.spoken("bob", "ballot", {"marks": [1]}))
            append(of("a", 5), at=4)
            append(of("a", 6), at=7)
            append(of("a", 4, "new"), of("a", 7))
            append(of("a", 8, "new"))
            commits.clear()
        assert commits == ["append to the ledger"] * 2
        results = append.results()
        assert "'a1' stands at entry 3 with another content" in results[1]
        assert "bob was revoked by entry 7" in results[5]
        assert "has 8 entries, but this step was decided at size 4" in results[6]
        assert "has 8 entries, but this step was decided at size 7" in results[7]
        assert "'new' stands at entry 5 with another content" in results[9]
        assert [results[place] for place in (0, 2, 3, 4, 8)] == [[4], [5], [6], [7], [5, 8]]
        assert (log.state("bad"), log.state("good")) == (None, 1)
        check_head(log)


def test_an_append_that_the_database_refuses_takes_no_other_with_it(database: Database) -> None:
    with cases.create(database.url, [cases.genesis()]) as log:
        database.fail()
        with together(log) as append:
            append(of("a", 1), state={"a": 1})
            append(of("b", 1, data=b"x"), state={"b": 1})
            append(of("c", 1), state={"c": 1})
        results = append.results()
        assert "disk_full" in str(results[1])
        assert (results[0], results[2]) == ([1], [2])
        assert [log.state(name) for name in "abc"] == [1, None, 1]
        database.mend()
        assert log.append([of("b", 1, data=b"x")]) == [3]
        check(log)


def test_a_commit_of_unknown_outcome_is_not_repeated(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server committed and the answer was lost: tried again, each finds that its affair moved on."""
    lost = iter([False, True])

    @contextmanager
    def losing(engine: sa.Engine, action: str, *, write: bool) -> Iterator[sa.Connection]:
        with store.transaction(engine, action, write=write) as connection:
            yield connection
        if action.startswith("append") and next(lost, False):
            raise LedgerError("Could not append to the ledger: the connection was lost.")

    with cases.create(database.url, [cases.genesis()]) as log:
        monkeypatch.setattr("causaldao.ledger.log.transaction", losing)
        with together(log) as append:
            append(of("a", 1))
            append(of("b", 1))
        assert ["another writer came first" in str(result) for result in append.results()] == [True, True]
    with Log.open(database.url, cases.LOG_KEY) as log:
        assert [entry.body.get("study") for entry in log.entries()] == [None, "a", "b"]


def test_a_database_that_cannot_be_written_to_is_not_asked_once_for_each(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock is waited for half a minute: for a hundred callers one after the other that would be an hour."""
    tried: list[str] = []

    @contextmanager
    def locked(engine: sa.Engine, action: str, *, write: bool) -> Iterator[sa.Connection]:
        tried.append(action)
        if len(tried) == 2:
            raise LedgerError("Could not append to the ledger: database is locked.")
        with store.transaction(engine, action, write=write) as connection:
            yield connection

    with cases.create(database.url, [cases.genesis()]) as log:
        monkeypatch.setattr("causaldao.ledger.log.transaction", locked)
        with together(log) as append:
            for study in "abc":
                append(of(study, 1))
        assert ["locked" in str(result) for result in append.results()] == [True] * 3
        assert len(tried) == 2
        assert log.append([of("a", 1)]) == [1]


def test_no_more_entries_than_the_bound_are_committed_together(database: Database, commits: list[str]) -> None:
    with cases.create(database.url, [cases.genesis()]) as log:
        with together(log) as append:
            append(*(of("a", number) for number in range(200)))
            append(*(of("b", number) for number in range(56)))
            append(of("c", 0))
            append(*(of("d", number) for number in range(300)))
            commits.clear()
        assert [len(result) for result in append.results()] == [200, 56, 1, 300]
        assert len(commits) == 4
        assert log.head.size == 558


def test_another_writers_study_is_refused_in_a_batch_too(database: Database) -> None:
    with cases.create(database.url, [cases.genesis()]) as log, Log.open(database.url, cases.LOG_KEY) as other:
        other.append([of("a", 1)])
        with together(log) as append:
            append(of("a", 2))
            append(of("b", 1))
        results = append.results()
        assert "another writer came first, with study a" in str(results[0])
        assert results[1] == [2]
        with pytest.raises(LedgerError, match="another writer came first, with study a"):
            log.append([of("a", 2)])


def test_many_threads_append_and_each_gets_its_own_indices(database: Database, commits: list[str]) -> None:
    with cases.create(database.url, [cases.genesis()]) as log:
        commits.clear()

        def write(study: int) -> list[int]:
            return [log.append([of(f"{study}", number), of(f"{study}", -number)])[0] for number in range(1, 11)]

        with ThreadPoolExecutor(8) as pool:
            places = list(pool.map(write, range(8)))
        assert len(commits) < 80
        recorded = log.entries()
        for study, indices in enumerate(places):
            said = [recorded[place].body for index in indices for place in (index, index + 1)]
            assert [body["number"] for body in said] == [sign * n for n in range(1, 11) for sign in (1, -1)]
            assert {body["study"] for body in said} == {f"{study}"}
        check(log)
