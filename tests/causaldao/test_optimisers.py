"""What would go wrong between aggregate and model: another formula than the paper's, a setting that does nothing."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from causaldao.errors import MisuseError
from causaldao.optimisers import OPTIMISERS, FedAdam, FedAvg, FedAvgM, FedYogi, build

CHANGES = [[0.5, -2.0, 0.0], [0.25, 1.0, -1e-6], [-3.0, 0.5, 4.0], [0.1, 0.1, 0.1]]


def steps(optimiser: Any, changes: list[list[float]]) -> list[Tensor]:
    state, found = optimiser.init(len(changes[0])), []
    for change in changes:
        state, step = optimiser.apply(state, torch.tensor(change))
        found.append(step)
    return found


def by_hand(name: str, changes: list[float], rate: float, b1: float, b2: float, tau: float) -> list[float]:
    """Algorithm 2 of Reddi et al. 2021 for one entry, in Python's floats."""
    m, v, found = 0.0, tau**2, []
    for delta in changes:
        m = b1 * m + (1 - b1) * delta
        square = delta**2
        v = b2 * v + (1 - b2) * square if name == "fedadam" else v - (1 - b2) * square * ((v > square) - (v < square))
        found.append(rate * m / (math.sqrt(v) + tau))
    return found


@pytest.mark.parametrize("kind", [FedAdam, FedYogi])
def test_an_adaptive_optimiser_is_not_the_papers(kind: type[FedAdam]) -> None:
    changes = [[float(torch.tensor(value)) for value in row] for row in CHANGES]
    optimiser = kind(rate=0.05, momentum=0.8, second=0.95, floor=0.01)
    found = torch.stack(steps(optimiser, changes))
    for column in range(3):
        expected = by_hand(kind.name, [row[column] for row in changes], 0.05, 0.8, 0.95, 0.01)
        torch.testing.assert_close(found[:, column], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_fedavg_changes_the_aggregate() -> None:
    for change, step in zip(CHANGES, steps(FedAvg(), CHANGES), strict=True):
        assert torch.equal(step, torch.tensor(change).double())


def test_momentum_without_memory_is_another_rule_than_fedavg() -> None:
    for plain, heavy in zip(steps(FedAvg(0.5), CHANGES), steps(FedAvgM(0.5, 0.0), CHANGES), strict=True):
        assert torch.equal(plain, heavy)


def test_a_lasting_change_is_not_sped_up_by_momentum() -> None:
    last = steps(FedAvgM(1.0, 0.5), [[1.0]] * 60)[-1]
    assert float(last[0]) == pytest.approx(2.0, rel=1e-12)


def test_a_step_of_an_adaptive_optimiser_grows_with_the_change() -> None:
    """Its size is of the order of the rate whatever a liar that got through would send."""
    for kind in (FedAdam, FedYogi):
        small, large = (float(steps(kind(), [[size]])[0][0]) for size in (1.0, 1e30))
        assert large == pytest.approx(small, rel=0.05)
        assert large == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_state_that_came_back_from_disk_makes_another_step(name: str) -> None:
    optimiser, torn = build(name, {}), None
    state = optimiser.init(3)
    for change in CHANGES:
        copied = {key: torch.from_numpy(value.numpy().copy()) for key, value in state.items()}
        torn = optimiser.apply(copied, torch.tensor(change))
        state, step = optimiser.apply(state, torch.tensor(change))
        assert torch.equal(step, torn[1])
        assert step.dtype == torch.float64
    assert all(torch.equal(state[key], value) for key, value in torn[0].items()) if torn else False


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_writes_into_what_it_was_given(name: str) -> None:
    optimiser, change = build(name, {}), torch.tensor(CHANGES[0])
    state, _ = optimiser.apply(optimiser.init(3), change)
    before = {key: value.clone() for key, value in state.items()}
    optimiser.apply(state, change)
    assert torch.equal(change, torch.tensor(CHANGES[0]))
    assert all(torch.equal(state[key], value) for key, value in before.items())


def test_a_setting_that_changes_nothing_is_taken() -> None:
    with pytest.raises(MisuseError, match="'fedavg' has no momentum; it has rate"):
        build("fedavg", {"rate": 1.0, "momentum": 0.9, "second": None})
    with pytest.raises(MisuseError, match="choose one of fedavg, fedavgm, fedadam, fedyogi"):
        build("fedprox", {})
    for name, kind in OPTIMISERS.items():
        given = {field.name: 0.5 for field in fields(kind)}
        assert build(name, given) == kind(**given)
