"""One study with many members, on both engines: time and memory side by side.

A synthetic study of six variables with evidence, ballots and two rounds of private training runs once inline and once
on Ray, each in a process of its own. ``peak_mib`` is the most memory that the process and all its children held at
once, sampled from Linux's ``smaps_rollup``: a page that several share counts once (PSS). Where there is no such file it
is the largest single process, and ``memory`` says so.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from causaldao.simulations.datasets import linear_gaussian
from causaldao.simulations.federation import ENGINES, Setting, simulate
from causaldao.simulations.ray_engine import require_ray
from causaldao.study import Study

_ROWS = 200  # of each member
_ROUNDS = 2
_SAMPLE = 0.25  # seconds
_NAMES = "abcdef"
_WEIGHTS = {("a", "b"): 0.9, ("b", "c"): 0.8, ("a", "d"): 0.7, ("d", "e"): 0.8, ("c", "f"): 0.6, ("e", "f"): 0.6}
_CHILD = """
import sys
from causaldao.simulations.benchmarks.scale import child
child(sys.argv[1], int(sys.argv[2]), sys.argv[3])
"""


def measure(*, members: int = 100, engines: Sequence[str] = ENGINES) -> dict[str, Any]:
    """Per engine: wall seconds of the whole process, seconds of the study's phases, and peak memory in MiB."""
    if "ray" in engines:
        require_ray()
    found = {engine: _measured(engine, members) for engine in engines}
    return {"members": members, "rounds": _ROUNDS, "rows": _ROWS * members, "cores": os.cpu_count(), **found}


def child(engine: str, members: int, out: str) -> None:
    """Run the study; what the measured process does."""
    import torch

    torch.set_num_threads(1)
    table = linear_gaussian(_WEIGHTS, _ROWS * members, np.random.default_rng(0))
    simulate(_study(members), table, Path(out), Setting(members), engine=engine)


def _study(members: int) -> Study:
    split = {"evidence": 0.5, "training": 0.4, "evaluation": 0.1}
    return Study.from_mapping({
        "study": {
            "name": "scale", "question": "Does a move f?", "purpose": "A benchmark.", "retention": "A day.",
            "simulation": True,
        },
        "variables": [{"name": name, "kind": "continuous", "bounds": [-8.0, 8.0]} for name in _NAMES],
        "consensus": {"faulty": max(0, (members - 3) // 5)},
        "training": {"rounds": _ROUNDS, "steps": 10},
        "privacy": {"epsilon": 20.0, "delta": 1e-5, "split": split},
        "members": {"n_min": 20, "n_max": 2000, "deadline": 1800.0},
        "effects": [{"treatment": "a", "outcome": "f", "adjustment": []}],
    })  # fmt: skip


def _measured(engine: str, members: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", _CHILD, engine, str(members), str(out)])
        memory = _Memory(process.pid)
        code = process.wait()
        seconds = time.perf_counter() - began
        peak = memory.stop()
        if code:
            raise subprocess.CalledProcessError(code, process.args)
        phases = json.loads((out / "result.json").read_text(encoding="utf-8"))["seconds"]
    return {"seconds": seconds, "study_seconds": sum(phases.values()), "phases": phases, **peak}


class _Memory:
    """Samples the memory of a process and its descendants until it is stopped."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._most = pid, 0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        self._done.set()
        self._thread.join()
        if self._peak:
            return {"peak_mib": self._peak / 2**20, "processes": self._most, "memory": "whole tree, shared pages once"}
        # Kilobytes on Linux, bytes on macOS, where alone this line is reached.
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return {"peak_mib": largest / 2**20, "processes": None, "memory": "largest process"}

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE):
            held = [size for pid in descendants(self._pid) if (size := _held(pid))]
            self._peak, self._most = max(self._peak, sum(held)), max(self._most, len(held))


def descendants(pid: int) -> list[int]:
    """A process and everything it started, directly or not, from ``/proc``; empty where there is none."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything: state and parent come after the last one.
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid] if children else []
    for one in found:
        found += children.get(one, [])
    return found


def _held(pid: int) -> int:
    """Bytes of a process's proportional set; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
