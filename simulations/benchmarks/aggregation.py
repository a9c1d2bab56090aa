"""Robust aggregation beside byzfl and Flower: milliseconds, extra memory, and how many reads of the matrix that is.

For each rule, our call, those of the peers that have it, and one read of the matrix take turns; ratios are the medians
over these turns. Each matrix and number of threads has a process of its own (`aggregation_worker`). A peer is tried
once before: one that fails, for want of memory (``memory_limit_mib``) or otherwise, or does not end within `CALL`
seconds, is left out and the reason stands in its place. It is not helped and not held back: byzfl gets the tensor,
Flower the NumPy rows or the records of its replies, already made. Flower works on the CPU on every device.

* ``ms``: median milliseconds. ``reads``: median ratio to one read, the sum of all entries, PyTorch's fastest pass.
* ``extra_mib``: the most memory held during the first call beyond the input and a float32 result (how it is measured:
  `aggregation_worker.measured`); ``extra_share``: of the input.
* ``ratio``, at a peer: median of its time over ours. Ours includes the check that the rows are finite, theirs has none.

A call of more than `SLOW` milliseconds is not repeated: the first is its only measure.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from causaldao.errors import MisuseError
from causaldao.simulations.benchmarks import byzfl

SIZES = ((20, 100_000), (50, 100_000), (100, 100_000), (20, 1_000_000), (50, 1_000_000), (100, 1_000_000))
LARGEST = (20, 10_000_000)
RULES = (
    "mean", "coordinate-median", "trimmed-mean", "meamed", "krum", "multi-krum", "geometric-median", "caf", "arc+caf",
    "nnm+mean", "nnm+trimmed-mean",
)  # fmt: skip
CALL = 45.0  # seconds that one call of a peer may take
SLOW = 2000.0  # milliseconds
SHARE = 0.8  # of the memory that is free, which a process may take beyond its matrix: more would fell the machine
_START = 120.0  # seconds for a process to make its matrix


def measure(
    *,
    sizes: Sequence[tuple[int, int]] = (*SIZES, LARGEST),
    rules: Sequence[str] = RULES,
    threads: Sequence[int] = (),
    repeats: int = 5,
    device: str = "cpu",
    budget: float = 780.0,
) -> dict[str, Any]:
    """The table over ``sizes``, (n, d) pairs with f = n // 5, and ``threads`` (one and all, if left out; on CUDA one).

    Peers are no longer called when ``budget`` seconds have passed, and the result says so in their place.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise MisuseError(f"--device {device}: PyTorch sees no CUDA device here. Leave --device out for the CPU.")
    every = os.cpu_count() or 1
    counts = tuple(threads) or ((1,) if device != "cpu" or every == 1 else (1, every))
    ends = time.perf_counter() + budget
    cells = [_Cell(n, d, count, device, repeats, ends).run(rules) for n, d in sizes for count in counts]
    return {
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "cores": every,
        "repeats": repeats,
        "call_limit_seconds": CALL,
        "peers": {"byzfl": byzfl.installed(), "flwr": version("flwr")},
        "cells": cells,
    }


class _Cell:
    """One matrix and number of threads."""

    def __init__(self, n: int, d: int, threads: int, device: str, repeats: int, ends: float) -> None:
        self.n, self.d, self.threads = n, d, threads
        self.setting: dict[str, Any] = {
            "rows": n, "columns": d, "faulty": n // 5, "threads": threads, "device": device,
            "memory": _memory() if device == "cpu" else 0,
        }  # fmt: skip
        self.repeats, self.ends = repeats, ends
        self.worker: _Worker | None = None

    def run(self, rules: Sequence[str]) -> dict[str, Any]:
        n, d = self.n, self.d
        _say(f"aggregation: n = {n}, d = {d}, threads = {self.threads}")
        self.setting["rules"] = list(rules)
        reads: list[float] = []
        try:
            found = {rule: self._rule(rule, reads) for rule in rules}
        finally:
            self._stop()
        for ours in found.values():
            if ours["extra_mib"] is not None:
                ours["extra_share"] = ours["extra_mib"] * 2**20 / (4 * n * d)
        return {
            "n": n, "d": d, "faulty": n // 5, "threads": self.threads, "input_mib": 4 * n * d / 2**20,
            "memory_limit_mib": self.setting["memory"] / 2**20, "read_ms": median(reads), "rules": found,
        }  # fmt: skip

    def _rule(self, rule: str, reads: list[float]) -> dict[str, Any]:
        first = {who: self._first(who, rule) for who in self._who(rule)}
        if "failed" in first["ours"]:
            raise MisuseError(f"The rule {rule!r} cannot be measured: {first['ours']['failed']}.")
        quick = [who for who, found in first.items() if found.get("ms", SLOW) < SLOW]
        turns = self._turns(rule, first, quick)
        reads += turns["read"]
        ours = turns.get("ours", [first["ours"]["ms"]] * self.repeats)
        result = {
            "ms": median(ours), "extra_mib": first["ours"]["extra_mib"],
            "reads": median(a / b for a, b in zip(ours, turns["read"], strict=True)),
        }  # fmt: skip
        for who, found in first.items():
            if who != "ours":
                result[who] = _beside(ours, turns.get(who), found)
        if byzfl.load() is None:
            result["byzfl"] = {"skipped": byzfl.REMEDY}
        _say(f"  {rule}: {result['ms']:.1f} ms" + "".join(_said(who, result[who]) for who in first if who != "ours"))
        return result

    def _turns(self, rule: str, first: dict[str, dict[str, Any]], quick: list[str]) -> dict[str, list[float]]:
        """Milliseconds of all that are quick, in turn. A peer that ends the process now is out, after all."""
        longest = sum(first[who]["ms"] for who in quick) * self.repeats / 1e3
        asked = {"pairs": quick, "rule": rule, "count": self.repeats}
        try:
            return self._running().ask(asked, _START + 4 * longest)
        except (TimeoutError, EOFError) as error:
            self._stop()
            peers = [who for who in quick if who != "ours"]
            if not peers:
                raise
            first.update({who: {"failed": f"in a later call of one of {', '.join(peers)}: {error}"} for who in peers})
            return self._turns(rule, first, [who for who in quick if who == "ours"])

    def _first(self, who: str, rule: str) -> dict[str, Any]:
        """One call, and its memory; or ``failed`` and why. A process that fell silent is ended and another started."""
        if who != "ours" and time.perf_counter() > self.ends:
            return {"failed": "not tried: the time of the benchmark was spent"}
        try:
            return self._running().ask({"first": who, "rule": rule}, CALL)
        except TimeoutError:
            self._stop()
            return {"failed": f"did not end within {CALL:.0f} s"}
        except EOFError as error:
            self._stop()
            return {"failed": str(error)}

    def _who(self, rule: str) -> list[str]:
        found: list[str] = self._running().who[rule]
        return found

    def _running(self) -> _Worker:
        if self.worker is None:
            self.worker = _Worker(self.setting)
        return self.worker

    def _stop(self) -> None:
        if self.worker is not None:
            self.worker.stop()
        self.worker = None


class _Worker:
    """A process that answers one question at a time."""

    def __init__(self, setting: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "causaldao.simulations.benchmarks.aggregation_worker"]
        # OMP_NUM_THREADS would bound the threads that the setting asks for
        environment = {**os.environ, "OMP_NUM_THREADS": str(setting["threads"])}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            self.who: dict[str, list[str]] = self.ask(setting, _START)["who"]
        except (TimeoutError, EOFError) as error:
            self.stop()
            raise MisuseError(
                f"No process could make a matrix of {setting['rows']} × {setting['columns']}: {error}. "
                "What it said is above; if nothing, this machine has too little memory for it."
            ) from error

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer; TimeoutError if none comes in time, EOFError if the process ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # then there is no line to read either
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"No answer within {seconds} s.")
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f"the process ended with status {self.process.wait()}, such as for lack of memory")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def _beside(ours: list[float], theirs: list[float] | None, first: dict[str, Any]) -> dict[str, Any]:
    """A peer's column: its time, memory and ratio to ours, or why there is none."""
    if "failed" in first:
        return {"skipped": first["failed"]}
    times = [first["ms"]] * len(ours) if theirs is None else theirs
    ratio = median(b / a for a, b in zip(ours, times, strict=True))
    return {"ms": median(times), "extra_mib": first["extra_mib"], "ratio": ratio}


def _said(who: str, found: dict[str, Any]) -> str:
    return f"; {who} {found['skipped']}" if "skipped" in found else f"; {who} × {found['ratio']:.1f}"


def _memory() -> int:
    """Bytes that a process may take beyond its matrix; 0, no limit, where the kernel does not say what is free."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(SHARE * 1024 * int(line.split()[1]))
    return 0


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")
