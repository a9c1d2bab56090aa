"""Server optimisers: what the model makes of a round's aggregate, whatever rule it came from.

An optimiser is a frozen dataclass of its settings and two functions, ``init(size) -> state`` and
``apply(state, change) -> (state, step)``: ``change`` is the aggregated update Δ (k,), ``step`` what is added to the
model, and ``state`` what must be kept for the next round, named float64 tensors (k,). All is entry by entry and in
float64, so the same changes give the same bits on one machine, and an auditor who has the updates can follow.

Sources: McMahan et al. 2017 (FedAvg); Hsu, Qi and Brown 2019, arXiv:1909.06335 (FedAvgM); Reddi et al. 2021,
arXiv:2003.00295, algorithm 2 (FedAdam, FedYogi). As there, m and v are not corrected for their start: v begins at τ².

What it means for robustness: an optimiser sees the aggregate alone. FedAvg and FedAvgM are linear in it, so the error
that a rule lets liars cause is scaled by the rate, in FedAvgM by up to rate / (1 - β). FedAdam and FedYogi divide each
entry by its own size: an entry that honest members hardly move then moves by as much as any other, and liars gain there
what a rule's bound in the Euclidean norm would have denied them.

>>> import torch
>>> rule = FedAvgM(momentum=0.5)
>>> state, step = rule.apply(rule.init(2), torch.tensor([1.0, -2.0]))
>>> rule.apply(state, torch.tensor([1.0, -2.0]))[1].tolist()
[1.5, -3.0]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from causaldao.errors import MisuseError

Memory = Mapping[str, Tensor]


class Optimiser(Protocol):
    """The two functions of every optimiser."""

    def init(self, size: int) -> Memory:
        """The state before the first round of a model with ``size`` trainable entries."""

    def apply(self, state: Memory, change: Tensor) -> tuple[Memory, Tensor]:
        """The state after a round whose aggregate is ``change`` (k,), and the step (k,) float64 of the model."""


@dataclass(frozen=True)
class FedAvg:
    """The aggregate itself, times ``rate``: no state."""

    name: ClassVar[str] = "fedavg"
    rate: float = 1.0

    def init(self, size: int) -> Memory:
        return {}

    def apply(self, state: Memory, change: Tensor) -> tuple[Memory, Tensor]:
        return {}, self.rate * change.double()


@dataclass(frozen=True)
class FedAvgM:
    """Heavy ball: m ← βm + Δ, step = rate·m, which tends to rate / (1 - β) times a change that stays."""

    name: ClassVar[str] = "fedavgm"
    rate: float = 1.0
    momentum: float = 0.9

    def init(self, size: int) -> Memory:
        return {"m": _filled(size, 0.0)}

    def apply(self, state: Memory, change: Tensor) -> tuple[Memory, Tensor]:
        m = self.momentum * state["m"] + change.double()
        return {"m": m}, self.rate * m


@dataclass(frozen=True)
class FedAdam:
    """m ← β₁m + (1 - β₁)Δ, v ← β₂v + (1 - β₂)Δ², step = rate·m / (√v + τ), with β₁ ``momentum``, β₂ ``second`` and τ
    ``floor``. A step is of the order of ``rate`` in each entry, whatever the size of Δ."""

    name: ClassVar[str] = "fedadam"
    rate: float = 0.01
    momentum: float = 0.9
    second: float = 0.99
    floor: float = 1e-3

    def init(self, size: int) -> Memory:
        return {"m": _filled(size, 0.0), "v": _filled(size, self.floor**2)}

    def apply(self, state: Memory, change: Tensor) -> tuple[Memory, Tensor]:
        delta = change.double()
        m = self.momentum * state["m"] + (1 - self.momentum) * delta
        v = self._second(state["v"], delta.square())
        return {"m": m, "v": v}, self.rate * m / (v.sqrt() + self.floor)

    def _second(self, v: Tensor, squares: Tensor) -> Tensor:
        return self.second * v + (1 - self.second) * squares


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """FedAdam with v ← v - (1 - β₂)Δ² sign(v - Δ²): v moves by what the last change says, not by what v was, and so
    forgets a large change more slowly."""

    name: ClassVar[str] = "fedyogi"

    def _second(self, v: Tensor, squares: Tensor) -> Tensor:
        return v - (1 - self.second) * squares * torch.sign(v - squares)


OPTIMISERS: Mapping[str, type[FedAvg | FedAvgM | FedAdam]] = {
    kind.name: kind for kind in (FedAvg, FedAvgM, FedAdam, FedYogi)
}


def build(name: str, settings: Mapping[str, float | None]) -> FedAvg | FedAvgM | FedAdam:
    """The optimiser of that name; a setting that is None takes its default.

    Raises
    ------
    MisuseError
        an unknown name, or a setting that this optimiser does not have: it would change nothing.
    """
    if name not in OPTIMISERS:
        raise MisuseError(f"There is no optimiser {name!r}; choose one of {', '.join(OPTIMISERS)}.")
    kind = OPTIMISERS[name]
    given = {key: value for key, value in settings.items() if value is not None}
    known = [field.name for field in fields(kind)]
    if odd := [key for key in given if key not in known]:
        raise MisuseError(f"The optimiser {name!r} has no {', '.join(odd)}; it has {', '.join(known)}.")
    return kind(**given)


def _filled(size: int, value: float) -> Tensor:
    return torch.full((size,), value, dtype=torch.float64)
