"""Group commit: calls of several threads that come while one is at work are done together by the next.

Nobody waits on purpose: a call that finds nothing at work begins at once, alone. The calls that come in the meantime
wait for it; then the first of them leads, and does the work of all that wait, in the order in which they came.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class _Call(Generic[T, R]):
    item: T
    outcome: R | Exception | None = None


class Group(Generic[T, R]):
    """``work(items)`` returns the result of each item, or the error that is its own. No result is None.

    If ``work`` itself raises, it must have done nothing; then each item is tried alone, so that one that cannot be
    done takes no other with it. ``weight(item)`` is an item's share of ``most``, the bound of what is done together;
    an item that is heavier is done alone.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Sequence[R | Exception]], weight: Callable[[T], int], most: int
    ) -> None:
        self._work = work
        self._weight = weight
        self._most = most
        self._changed = threading.Condition()
        self._waiting: deque[_Call[T, R]] = deque()
        self._at_work = False

    def do(self, item: T) -> R:
        """The item's result, or its error raised.

        A thread that is interrupted while another does its item does not learn of the outcome.
        """
        call: _Call[T, R] = _Call(item)
        with self._changed:
            self._waiting.append(call)
        try:
            while batch := self._next(call):
                self._lead(batch, call)
        except BaseException:
            with self._changed:
                if call in self._waiting:
                    self._waiting.remove(call)
            raise
        if isinstance(call.outcome, Exception):
            raise call.outcome
        assert call.outcome is not None
        return call.outcome

    def _next(self, call: _Call[T, R]) -> list[_Call[T, R]]:
        """Wait until nothing is at work and take what waits; nothing if the call was done meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: call.outcome is not None or not self._at_work)
            if call.outcome is not None:
                return []
            self._at_work = True
            batch = [self._waiting.popleft()]
            total = self._weight(batch[0].item)
            while self._waiting and (total := total + self._weight(self._waiting[0].item)) <= self._most:
                batch.append(self._waiting.popleft())
            return batch

    def _lead(self, batch: list[_Call[T, R]], own: _Call[T, R]) -> None:
        try:
            self._do(batch)
        finally:
            with self._changed:
                # An interrupted leader leaves the others' calls to the next.
                undone = [call for call in batch if call.outcome is None and call is not own]
                self._waiting.extendleft(reversed(undone))
                self._at_work = False
                self._changed.notify_all()

    def _do(self, batch: list[_Call[T, R]]) -> None:
        try:
            outcomes = self._work([call.item for call in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].outcome = error
                return
            for call in batch:
                self._do([call])
        else:
            for call, outcome in zip(batch, outcomes, strict=True):
                call.outcome = outcome
