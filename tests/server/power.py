"""The power goes in the midst of what a coordinator does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def power_cut(monkeypatch: pytest.MonkeyPatch, where: Any, step: str, when: str) -> Iterator[None]:
    """It goes in the block: right "before" the function ``step`` of ``where``, or right "after" it."""
    real = getattr(where, step)

    def cut(*arguments: Any, **named: Any) -> Any:
        if when == "after":
            real(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, step, cut)
        with pytest.raises(KeyboardInterrupt):
            yield
