"""Files that are half there, and two processes that each think a folder is theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from causaldao import files
from causaldao.files import hold, write_text

HOLDER = """
import sys, time
from pathlib import Path
from causaldao.files import hold
held = hold(Path(sys.argv[1]))
print("free" if held is None else "held", flush=True)
time.sleep(60)
"""


def test_a_text_ends_in_one_line_break_and_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_text(path, "old, and longer than what follows")
    write_text(path, "né\n\n\n")
    assert path.read_bytes() == "né\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_half_way_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old\n"


def test_the_new_name_appears_before_its_bytes_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut between the two would leave an empty file under the name."""
    done: list[str] = []
    synced, replaced = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        done.append(f"sync {os.fstat(descriptor).st_size}")
        synced(descriptor)

    def replace(old: Path, new: Path) -> None:
        done.append("replace")
        replaced(old, new)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(files.os, "replace", replace)
    write_text(tmp_path / "policy", "12345")
    assert done == ["sync 6", "replace"]


def test_a_lock_is_taken_twice_by_one_process_too(tmp_path: Path) -> None:
    first = hold(tmp_path / "lock")
    assert first is not None
    assert hold(tmp_path / "lock") is None
    first.close()
    again = hold(tmp_path / "lock")
    assert again is not None
    again.close()


def test_two_processes_hold_a_lock_or_a_dead_one_keeps_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert hold(lock) is None
        other.send_signal(signal.SIGKILL)
        other.wait()
    mine = hold(lock)
    assert mine is not None
    mine.close()


def test_a_lock_goes_on_in_the_children_of_a_dead_process(tmp_path: Path) -> None:
    """The descriptor is not inherited: a child that outlives its parent would keep the folder shut."""
    held = hold(tmp_path / "lock")
    assert held is not None
    with subprocess.Popen(["sleep", "60"]) as child:
        held.close()
        again = hold(tmp_path / "lock")
        child.kill()
    assert again is not None
    again.close()
