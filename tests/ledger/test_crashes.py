"""The log against sudden death, faults of the disk and a race: real processes, a real file system, a real server.

Writers are killed at random moments, also while they recover from the death before. And strace lets one system call of
an append fail with EIO or ENOSPC, or kills the process as it enters it, for one file call after the other; each time
its own trace must show that the fault was met.

What this does not show: a loss of power, a disk that says it has written and has not, a sector written by halves, bytes
that rot. After a kill the kernel still writes what it was given, so a missing sync would cost nothing here; only that
SQLite asks for one before `append` returns is seen, in the trace. Of PostgreSQL only the client dies.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from causaldao.ledger import Log, export
from causaldao.ledger.verify import verify
from tests.counts import count
from tests.ledger import cases
from tests.ledger.conftest import Database
from tests.ledger.crashing import END, GO, batch, state
from tests.ledger.postgres import Server

PROGRAM = Path(__file__).with_name("crashing.py")
KILLS = {"sqlite": count(15, 520), "postgresql": count(5, 60)}
LIVES = 20  # deaths in one ledger before the next one
FAULTS = count(2, 10**6)  # of each kind
RACES = count(3, 40)
KINDS = [("error=EIO", "retry"), ("error=EIO", "once"), ("error=ENOSPC", "retry"), ("error=ENOSPC", "once")]
KINDS += [("signal=KILL", "once")]


@dataclass(frozen=True)
class Writers:
    """The program that forks writers, one at a time."""

    process: subprocess.Popen[str]

    def start(self, mode: str, url: str) -> int:
        """Begin a writer; its process number."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{mode} {url}\n")
        self.process.stdin.flush()
        said, number = self.word()
        assert said == "pid"
        return int(number)

    def word(self) -> list[str]:
        """The next line that is said."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def words(self) -> list[list[str]]:
        """All lines to the writer's end."""
        said = [self.word()]
        while said[-1] and said[-1][0] != "end":
            said.append(self.word())
        return said


@contextmanager
def running() -> Iterator[Writers]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Writers(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    with running() as program:
        yield program


@pytest.fixture(scope="module")
def rivals() -> Iterator[Writers]:
    with running() as program:
        yield program


def new(url: str, batches: int = 0) -> str:
    """A ledger of a few batches; its URL."""
    with cases.create(url, [cases.genesis()]) as log:
        log.append([], {"batch": 0})
        for number in range(1, batches + 1):
            log.append(batch(number), state(number))
    return url


def check(url: str, told: Iterable[list[str]]) -> int:
    """Open a ledger whose writer died, look at all of it, and go on; the number of the last batch that was there."""
    with Log.open(url, cases.LOG_KEY) as log:
        last: int = log.state("batch")
        snapshot, entries = log.snapshot(), [entry for number in range(1, last + 1) for entry in batch(number)]
        assert [entry.body for entry in snapshot.entries[1:]] == [entry.body for entry in entries]
        assert snapshot.payloads == {name: data for entry in entries for name, data in entry.payloads.items()}
        for number in range(max(1, last - 2), last + 1):
            assert {name: log.state(name) for name in state(number)} == {**state(number), "batch": last}
        for spoken, first, final, size, root in told:
            found = snapshot.entries[int(first) : int(size)]
            assert [entry.body for entry in found] == [entry.body for entry in batch(int(spoken))]
            assert (found[-1].index, log.root_at(int(size)).hex()) == (int(final), root)
        report = verify(export(log), cases.policy())
        assert (report.size, report.root) == (1 + len(entries), log.head.root)
        assert log.append(batch(last + 1), state(last + 1))[0] == report.size
    return last


def done(said: Iterable[list[str]]) -> list[list[str]]:
    """What a writer was told by `append`."""
    return [words[1:] for words in said if words[0] == "done"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(
    writers: Writers, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    def place(number: int) -> str:
        if kind == "sqlite":
            return cases.url(tmp_path / f"{number}.db")
        server: Server = request.getfixturevalue("server")
        return server.url(server.schema())

    source, moments = random.Random(4), Counter[str]()
    for death in range(KILLS[kind]):
        if death % LIVES == 0:
            url, told = new(place(death)), list[list[str]]()
        # Now and then there is a second one, which finds what the first left and may die of it.
        for _ in range(source.choice((1, 1, 2))):
            pid = writers.start("write", url)
            said = [writers.word() for _ in range(source.choice((0, 1, 1, 2, 5, 20)))]
            time.sleep(source.uniform(0, 0.006))
            os.kill(pid, signal.SIGKILL)
            said += writers.words()
            assert said[-1] == ["end", "-9"]
            told += done(said)
            moments["opening" if len(said) == 1 else "appending" if said[-2][0] == "begun" else "between"] += 1
        check(url, told)
    assert moments["appending"] > KILLS[kind] // 8, moments


def test_two_writers_of_one_study_race_and_one_wins(writers: Writers, rivals: Writers, database: Database) -> None:
    url = new(database.url)
    for number in range(1, RACES + 1):
        pids = [program.start("race", url) for program in (writers, rivals)]
        assert [program.word()[0] for program in (writers, rivals)] == ["ready", "ready"]
        for pid in pids:
            os.kill(pid, GO)
        said = {pid: program.words() for pid, program in zip(pids, (writers, rivals), strict=True)}
        assert [words[1:] for words in said.values()] == [[["end", "0"]]] * 2
        (winner,) = (pid for pid in pids if said[pid][0] == ["won", str(number)])
        (loser,) = (pid for pid in pids if said[pid][0][0] == "lost")
        assert "another writer came first, with study a" in " ".join(said[loser][0])
        with Log.open(url, cases.LOG_KEY) as log:
            assert [entry.body["writer"] for entry in log.entries(start=number)] == [winner]
            assert log.state("writer") == winner
            assert verify(export(log), cases.policy()).size == number + 1


# Faults of the file calls of one append


@dataclass(frozen=True)
class Call:
    """A file call, the number among those of its name, and the line of the trace."""

    name: str
    number: int
    line: str


@contextmanager
def scratch(template: Path) -> Iterator[Path]:
    """A copy of a ledger that nobody has open."""
    copy = template.with_name("copy.db")
    shutil.copyfile(template, copy)
    yield copy
    for left in template.parent.glob("copy.db*"):
        left.unlink()


def traced(writers: Writers, mode: str, path: Path, *options: str) -> tuple[list[list[str]], list[str]]:
    """What a writer says whose append is traced, and the trace from the signal to go to its end, a call a line."""
    tracer = shutil.which("strace")
    if tracer is None:
        pytest.fail("These tests let file calls fail with strace: install the package strace.")
    pid, out = writers.start(mode, cases.url(path)), path.with_name("trace")
    assert writers.word()[0] == "ready"
    command = [tracer, "-f", "-y", "-p", str(pid), "-o", str(out), "-e", "trace=%file,%desc", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        attached = process.stderr.readline()
        if "attached" not in attached:
            os.kill(pid, signal.SIGKILL)
            writers.words()
            pytest.fail(f"strace may not trace here: {attached.strip()}. A container needs the capability SYS_PTRACE.")
        os.kill(pid, GO)
        said = writers.words()
    return said, [re.sub(r"^\d+ +", "", line) for line in out.read_text(errors="replace").splitlines()]


def calls(trace: Iterable[str]) -> list[Call]:
    seen, found = Counter[str](), list[Call]()
    for line in trace:
        named = re.match(r"(\w+)\(", line)
        if named:
            seen[named[1]] += 1
            found.append(Call(named[1], seen[named[1]], line))
    return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "template.db"
    new(cases.url(path), 3)
    return path


def without_fault(writers: Writers, mode: str, template: Path) -> list[Call]:
    """The file calls of an append."""
    with scratch(template) as path:
        said, trace = traced(writers, mode, path)
        assert [words[0] for words in said] == ["done", "end"]
    (end,) = (place for place, line in enumerate(trace) if END in line)
    return calls(trace[:end])


@pytest.fixture(scope="module")
def append(writers: Writers, template: Path) -> list[Call]:
    return without_fault(writers, "once", template)


def test_what_is_acknowledged_was_synced_before(writers: Writers, template: Path) -> None:
    made = without_fault(writers, "plain", template)

    def last(names: str) -> int:
        return max(place for place, call in enumerate(made) if re.match(rf"({names})\(\d+<[^>]*-wal>", call.line))

    assert last("pwrite64|pwrite|write") < last("fdatasync|fsync")


# What writers may say: with an error that SQLite can live with, with one that made `append` raise, and with a failed
# unlock, after which this connection is of no use any more.
STORIES = {
    "once": [["done", "end"], ["refused", "end"]],
    "retry": [
        ["done", "done", "end"],
        ["refused", "done", "done", "end"],
        ["refused", "refused", "done", "done", "end"],
    ],
}


@pytest.mark.parametrize(("fault", "mode"), KINDS)
def test_a_fault_of_any_file_call_of_an_append(
    writers: Writers, template: Path, append: list[Call], fault: str, mode: str
) -> None:
    assert len(append) >= 40
    for call in random.Random(f"{fault} {mode}").sample(append, min(FAULTS, len(append))):
        with scratch(template) as path:
            said, trace = traced(writers, mode, path, "-e", f"inject={call.name}:{fault}:when={call.number}")
            context = (call, said)
            if fault == "signal=KILL":
                (*_, reached) = calls(trace)
                assert (reached.name, reached.number, said) == (call.name, call.number, [["end", "-9"]]), context
            else:
                (injected,) = (reached for reached in calls(trace) if "(INJECTED)" in reached.line)
                assert (injected.name, injected.number) == (call.name, call.number), context
                assert [words[0] for words in said] in STORIES[mode], context
                assert said[-1] == ["end", "-9" if said[-2][0] == "refused" else "0"], context
            told = done(said)
            assert 3 <= check(cases.url(path), told) - len(told) <= 4, context
