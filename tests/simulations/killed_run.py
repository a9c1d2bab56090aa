"""Run the small study in children that kill themselves.

``python -m tests.simulations.killed_run FOLDER POINT...``

A point is ``state NAME`` (right after that state is durable), ``replies N`` (the nodes have answered the N-th
question, the coordinator has heard nothing), ``request N`` (before the N-th request of all reaches its node)
or ``draw KIND`` (inside a member's release: debited and drawn, not stored).
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from causaldao.simulations.attacks import Conduct
from causaldao.simulations.engine import Faults
from causaldao.simulations.federation import simulate
from tests.simulations import small

LAST = small.SETTING.names[-1]
# what members, rule and server optimiser remember from round to round must all survive
STUDY = small.study(
    rounds=2,
    training={"hidden": 2, "rounds": 2, "steps": 2, "sample_rate": 0.1, "momentum": 0.5, "proximal": 1.0},
    aggregation={"rule": "arc+caf", "optimiser": "fedadam", "rate": 0.05},
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(number: int) -> Callable[[Any], None]:
    """A function that kills the process when it is called for the ``number``-th time."""
    calls = itertools.count(1)

    def call(_: Any) -> None:
        if next(calls) == number:
            die()

    return call


def options(point: str) -> dict[str, Any]:
    """What `simulate` is given so that it dies at a point."""
    what, _, where = point.partition(" ")
    if what == "state":
        return {"on_state": lambda state: die() if state == where else None}
    if what == "draw":
        return {"conducts": {LAST: Conduct(tensors=lambda kind, tensors: die() if kind == where else tensors)}}
    count = after(int(where))
    if what == "replies":
        return {"faults": Faults(replies=lambda messages: count(messages) or messages)}
    return {"faults": Faults(request=lambda message: count(message) is None)}


def main() -> None:
    torch.set_num_threads(1)
    folder, *points = sys.argv[1:]
    table = small.table()
    for point in points:
        child = os.fork()
        if child == 0:
            simulate(STUDY, table, Path(folder) / point.replace(" ", "-"), small.SETTING, **options(point))
            os._exit(0)  # not killed: the parent sees it
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"the run was not killed at {point!r}: status {status}")


if __name__ == "__main__":
    main()
