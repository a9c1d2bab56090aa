"""What the tests of score-based methods share."""

from __future__ import annotations

from typing import Any

import pytest

from causaldao.models.discovery.score import Score, members_of


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, int]]:
    """Every (parent, child) that a score was computed for."""
    seen: set[tuple[int, int]] = set()
    given = Score._given

    def spy(self: Any, j: int, parents: int, columns: list[int]) -> Any:
        seen.update((i, j) for i in [*members_of(parents), *columns])
        return given(self, j, parents, columns)

    monkeypatch.setattr(Score, "_given", spy)
    return seen
