"""What the tests of methods share: which scores and which tests a search asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from causaldao.models.discovery.score import Score, members_of
from causaldao.models.discovery.skeleton import PartialCorrelations, Question


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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """Every test that a search runs, as ((a, b), S)."""
    seen: list[Question] = []
    statistics = PartialCorrelations.statistics

    def spy(self: Any, rows: torch.Tensor) -> torch.Tensor:
        for a, b, *given in rows.tolist():
            seen.append(((self.names[a], self.names[b]), tuple(self.names[c] for c in given)))
        return statistics(self, rows)

    monkeypatch.setattr(PartialCorrelations, "statistics", spy)
    return seen
