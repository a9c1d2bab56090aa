"""Children that outlive their parent, that are not brought back, or are ended without a word."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from causaldao import children
from causaldao.children import FLOWER, Child, script, stop_all
from causaldao.errors import ConfigurationError, NetworkError

PARENT = """
import sys, time
from pathlib import Path
from causaldao.children import Child
child = Child("sleeper", ["sleep", "60"], Path(sys.argv[1]))
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""
COUNTS_SIGNALS = """
import signal, sys, time
from pathlib import Path
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
Path(sys.argv[1]).touch()
while not heard:
    time.sleep(0.01)
time.sleep(float(sys.argv[2]))
Path(sys.argv[1]).write_text(str(len(heard)))
"""
DEAF = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(sys.argv[1]).touch()
time.sleep(60)
"""


@pytest.fixture
def started() -> Iterator[list[Child]]:
    """Children to be ended after the test, whatever becomes of it."""
    found: list[Child] = []
    yield found
    for child in found:
        child.stop(0)


def wait_for(ready: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def there(pid: int) -> bool:
    """Whether a process lives; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


def test_a_child_outlives_a_parent_that_is_killed_outright(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_for(lambda: command_of(child) == "sleep 60")  # what the kernel was asked for survives the exec
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not there(child))


def test_a_child_whose_parent_went_before_it_could_ask_stays(tmp_path: Path) -> None:
    """It is told who its parent was, and finds another one."""
    other = os.getppid()
    done = subprocess.run([sys.executable, "-m", "causaldao.children", str(other), "touch", str(tmp_path / "ran")])
    assert done.returncode == 1
    assert not (tmp_path / "ran").exists()


def test_a_dead_child_stays_dead_or_is_restarted_without_a_pause(
    tmp_path: Path, started: list[Child], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    monkeypatch.setattr(children.time, "monotonic", lambda: now[0])
    child = Child("short", ["false"], tmp_path / "log")
    started.append(child)
    waits = []
    child.start()
    with caplog.at_level(logging.ERROR, "causaldao.children"):
        for _ in range(7):
            assert child._process is not None
            child._process.wait(10)
            assert not child.tend()  # says when, and waits
            began = now[0]
            while not child.tend():
                now[0] += 0.5
            waits.append(now[0] - began)
    assert waits == [1, 2, 5, 10, 30, 30, 30]
    assert child.restarts == 7
    assert "short ended with status 1; it is started again in 30 s" in caplog.text
    assert str(tmp_path / "log") in caplog.text


def test_a_child_that_lived_long_waits_as_if_it_never_had(
    tmp_path: Path, started: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(children.time, "monotonic", lambda: now[0])
    child = Child("steady", ["false"], tmp_path / "log", _failures=4)
    started.append(child)
    child.start()
    assert child._process is not None
    child._process.wait(10)
    now[0] += 61
    assert not child.tend()
    now[0] += 1
    assert child.tend()


def test_a_living_child_is_started_twice(tmp_path: Path, started: list[Child]) -> None:
    child = Child("sleeper", ["sleep", "60"], tmp_path / "log")
    started.append(child)
    child.start()
    pid = child.pid
    assert not child.tend()
    assert (child.pid, child.restarts) == (pid, 0)


def test_a_log_grows_without_end_or_forgets_what_is_recent(
    tmp_path: Path, started: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "MAX_LOG_BYTES", 100)
    child = Child("speaker", ["echo", "hello"], tmp_path / "log")
    started.append(child)

    def run() -> str:
        child.start()
        assert child._process is not None
        child._process.wait(10)
        return child.log.read_text()

    child.log.write_text("x" * 100)
    assert run() == "x" * 100 + "hello\n"  # not over the bound yet
    assert run() == "hello\n"
    assert run() == "hello\nhello\n"


def test_a_child_that_would_have_ended_by_itself_is_killed(tmp_path: Path, started: list[Child]) -> None:
    """It is asked once: a second SIGTERM makes Flower's processes drop what they are doing."""
    marks = {tmp_path / "quick": "0.1", tmp_path / "slow": "0.8"}
    for mark, takes in marks.items():
        started.append(Child("polite", [sys.executable, "-c", COUNTS_SIGNALS, str(mark), takes], tmp_path / "log"))
        started[-1].start()
    wait_for(lambda: all(mark.exists() for mark in marks))
    stop_all(started)
    assert [mark.read_text() for mark in marks] == ["1", "1"]
    assert not any(child.alive() for child in started)


def test_a_child_that_does_not_listen_stays(tmp_path: Path, started: list[Child]) -> None:
    mark = tmp_path / "deaf"
    child = Child("deaf", [sys.executable, "-c", DEAF, str(mark)], tmp_path / "log")
    started.append(child)
    child.start()
    wait_for(mark.exists)
    child.stop(0.2)
    assert not child.alive()
    assert child._process is not None
    assert child._process.returncode == -signal.SIGKILL


def test_stopping_a_child_that_never_started_is_an_error(tmp_path: Path) -> None:
    child = Child("never", ["true"], tmp_path / "log")
    stop_all([child])
    assert (child.pid, child.alive()) == (None, False)


def test_why_a_child_did_not_start_is_left_in_its_log(tmp_path: Path, started: list[Child]) -> None:
    child = Child("broken", ["sh", "-c", "echo no such database >&2; exit 3"], tmp_path / "log")
    started.append(child)
    (tmp_path / "log").write_text("long ago " * 1000)
    child.start()
    wait_for(lambda: not child.alive())
    with pytest.raises(NetworkError, match="no such database") as found:
        child.require()
    assert "broken ended with status 3" in found.value.message
    assert len(found.value.message) < 2500
    alive = Child("sleeper", ["sleep", "60"], tmp_path / "other")
    started.append(alive)
    alive.start()
    alive.require()


def test_a_child_has_another_environment_than_it_was_given(
    tmp_path: Path, started: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given wins over what is inherited, and Flower's own commands are found beside this Python."""
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("PATH", "/nowhere:/usr/bin:/bin")
    child = Child("speaker", ["sh", "-c", "echo $FLWR_TELEMETRY_ENABLED $PATH"], tmp_path / "log", FLOWER)
    started.append(child)
    child.start()
    wait_for(lambda: not child.alive())
    telemetry, path = child.log.read_text().split()
    assert telemetry == "0"
    assert path.split(os.pathsep)[:2] == [str(Path(sys.executable).parent), "/nowhere"]


def test_a_missing_command_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(script("flower-superlink")).parent == Path(sys.executable).parent
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigurationError, match="flower-nosuch"):
        script("flower-nosuch")
