"""Work shared with other processes, and given back in order. Nothing here decides anything."""

from __future__ import annotations

import gc
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import NamedTuple, TypeVar

from causaldao.errors import LedgerError

_AHEAD = 4  # parts that wait for each process

Part = TypeVar("Part")
Result = TypeVar("Result")


class Help(NamedTuple):
    """Other processes, and how many parts may wait for them."""

    pool: Executor
    ahead: int


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of cycles: it would walk through a million entries again and again, and they have none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def helped(processes: int) -> Iterator[Help | None]:
    if processes < 2:
        yield None
        return
    # Fresh processes: a fork of one that has threads may never come back. They make no cycles either.
    with ProcessPoolExecutor(processes - 1, get_context("spawn"), gc.disable) as pool:
        yield Help(pool, _AHEAD * (processes - 1))


def spread(
    task: Callable[[Part], Result], away: Callable[[Part], Result], parts: Iterator[Part], helpers: Help | None
) -> Iterator[tuple[Part, Result]]:
    """Each part with its result, in order: made ``away`` by those who help, and here while they have enough to do."""
    waiting = deque[tuple[Part, Future[Result]]]()
    try:
        for part in parts:
            if helpers is not None and sum(not future.done() for _, future in waiting) < helpers.ahead:
                waiting.append((part, helpers.pool.submit(away, part)))
            else:
                waiting.append((part, _made(task, part)))
            while waiting and waiting[0][1].done():
                yield waiting[0][0], waiting.popleft()[1].result()
        while waiting:
            yield waiting[0][0], waiting.popleft()[1].result()
    except BrokenExecutor as error:
        raise LedgerError("A process that helped to verify died: verify again with processes = 1.") from error
    finally:
        for _, future in waiting:
            future.cancel()


def _made(task: Callable[[Part], Result], part: Part) -> Future[Result]:
    future = Future[Result]()
    try:
        future.set_result(task(part))
    except LedgerError as error:  # raised in its turn: of several faults the first is told
        future.set_exception(error)
    return future


def parts(things: Iterator[Part], size: int) -> Iterator[list[Part]]:
    """The same in lists of ``size``, the last of what is left."""
    while part := list(itertools.islice(things, size)):
        yield part
