"""The process that aggregates for `causaldao bench aggregation`: one matrix, one number of threads.

It is a process of its own so that a peer may run out of memory or never end without ending the benchmark. It reads one
JSON object a line on stdin and answers each with one on stdout:

* first the setting: rows, columns, faulty, threads, device, memory (bytes that it may take; 0 for no limit);
* ``{"first": who, "rule": name}``: one call, its milliseconds and its extra memory;
* ``{"pairs": [who, ...], "rule": name, "count": k}``: k times all of these and a read, one after another, and their
  milliseconds.

The matrix is that of an ordinary round: rows of one direction and unit noise, the last ``faulty`` with the sign turned,
which no rule of a peer finds hard.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causaldao.aggregation import aggregate
from causaldao.simulations.benchmarks import byzfl

Call = Callable[[], object]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def calls(rule: str, updates: Tensor, faulty: int) -> dict[str, Callable[[], Call]]:
    """Who has the rule, and how: each prepares its own input, which is not timed, and returns the call that is."""
    found: dict[str, Callable[[], Call]] = {"ours": lambda: lambda: aggregate(updates, rule, faulty)}
    if (theirs := _byzfl(rule, faulty)) is not None:
        # ARC writes into what it is given
        found["byzfl"] = lambda: _of(theirs, updates.clone() if "arc" in rule else updates)
    return found | _flwr(rule, updates, faulty)


def _of(act: Callable[[Tensor], object], updates: Tensor) -> Call:
    return lambda: act(updates)


def _byzfl(rule: str, faulty: int) -> Callable[[Tensor], object] | None:
    module = byzfl.load()
    if module is None:
        return None
    last: dict[str, Callable[[], Any]] = {
        "mean": module.Average,
        "coordinate-median": module.Median,
        "trimmed-mean": lambda: module.TrMean(faulty),
        "meamed": lambda: module.Meamed(faulty),
        "krum": lambda: module.Krum(faulty),
        "multi-krum": lambda: module.MultiKrum(faulty),
        "geometric-median": module.GeometricMedian,
        "caf": lambda: module.CAF(faulty),
        "nnm": lambda: module.NNM(faulty),
        "arc": lambda: module.ARC(faulty),
    }
    steps = rule.split("+")
    if not set(steps) <= set(last):
        return None
    chain = [last[step]() for step in steps]

    def act(updates: Tensor) -> object:
        for step in chain:
            updates = step(updates)
        return updates

    return act


def _flwr(rule: str, updates: Tensor, faulty: int) -> dict[str, Callable[[], Call]]:
    """Flower's functions under its strategies: of ``server.strategy``, and multi-Krum's other one of ``serverapp``."""
    from flwr.server.strategy import aggregate as server

    n = len(updates)
    results = [([row], 1) for row in updates.cpu().numpy()]
    if rule == "coordinate-median":
        return {"flwr": lambda: lambda: server.aggregate_median(results)}
    if rule == "trimmed-mean":  # the half keeps int(share * n) from rounding f down to f - 1
        return {"flwr": lambda: lambda: server.aggregate_trimmed_avg(results, (faulty + 0.5) / n)}
    if rule == "multi-krum":
        return {
            "flwr": lambda: lambda: server.aggregate_krum(results, faulty, n - faulty),
            "flwr_serverapp": lambda: _serverapp(updates, faulty),
        }
    return {}


def _serverapp(updates: Tensor, faulty: int) -> Call:
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.multikrum import select_multikrum
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    weight = MetricRecord({"num-examples": 1})
    rows = [ArrayRecord({"delta": Array(row)}) for row in updates.cpu().numpy()]
    replies = [RecordDict({"arrays": row, "metrics": weight}) for row in rows]
    kept = len(replies) - faulty
    return lambda: aggregate_arrayrecords(select_multikrum(replies, faulty, kept), "num-examples")


def matrix(rows: int, columns: int, faulty: int, device: str) -> Tensor:
    """(rows, columns) float32, as the module's docstring says."""
    generator = np.random.default_rng(0)
    updates = generator.standard_normal((rows, columns), dtype=np.float32)
    updates += generator.standard_normal(columns, dtype=np.float32)
    updates[rows - faulty :] *= -1
    return torch.from_numpy(updates).to(device)


def timed(call: Call, device: str) -> float:
    """Milliseconds of one call, to the end of what it started on the device."""
    _wait(device)
    began = time.perf_counter()
    kept = call()
    _wait(device)
    took = time.perf_counter() - began
    del kept
    return 1e3 * took


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def measured(call: Call, device: str, columns: int) -> tuple[float, float | None]:
    """Milliseconds of one call, and the MiB it held at most beyond its input and a float32 result; None if unknown.

    On the CPU it is the peak of the process's resident memory, less what it was before, when the allocator had given
    back all it could; on CUDA the peak of what PyTorch has allocated.
    """
    gc.collect()
    before = _before(device)
    took = timed(call, device)
    if before is None:
        return took, None
    after = torch.cuda.max_memory_allocated(device) if device != "cpu" else _status("VmHWM")
    return took, max(after - before - 4 * columns, 0) / 2**20


def _before(device: str) -> int | None:
    """Bytes that are held now, from which the peak is counted anew."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else what earlier calls gave back to the allocator alone would not be seen
        _CLEAR.write_text("5", encoding="ascii")
        return _status("VmRSS")
    return None


def _status(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}.")


def answer(asked: dict[str, Any], updates: Tensor, faulty: int, device: str) -> dict[str, Any]:
    """What is measured for one question; a peer's own error is an answer too."""
    known = calls(asked["rule"], updates, faulty)
    if "first" in asked:
        try:
            took, extra = measured(known[asked["first"]](), device, updates.shape[1])
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}"}
        return {"ms": took, "extra_mib": extra}
    found: dict[str, list[float]] = {who: [] for who in ("read", *asked["pairs"])}
    for _ in range(asked["count"]):
        found["read"].append(timed(updates.sum, device))
        for who in asked["pairs"]:
            found[who].append(timed(known[who](), device))
    return found


def main() -> None:
    setting = json.loads(sys.stdin.readline())
    device, faulty = setting["device"], setting["faulty"]
    torch.set_num_threads(setting["threads"])
    updates = matrix(setting["rows"], setting["columns"], faulty, device)
    few = updates[:, :1000].contiguous()
    for rule in setting["rules"]:  # what is loaded or planned once is neither time nor memory of a call
        for prepare in calls(rule, few, faulty).values():
            with suppress(Exception):
                prepare()()
    if setting["memory"]:
        held = _status("VmSize") + setting["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (held, resource.getrlimit(resource.RLIMIT_AS)[1]))
    who = {rule: list(calls(rule, updates[:, :1], faulty)) for rule in setting["rules"]}
    sys.stdout.write(json.dumps({"who": who}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line), updates, faulty, device)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
