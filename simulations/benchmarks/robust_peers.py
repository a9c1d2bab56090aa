"""The peer's rules in the benchmark of robustness: byzfl's, as its own documentation composes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from types import ModuleType

import torch
from torch import Tensor

from causaldao.simulations.benchmarks.byzfl import REMEDY, load
from causaldao.simulations.benchmarks.robust_training import Peer

__all__ = ["REMEDY", "peer", "peers"]

_Chain = Callable[[ModuleType, int], list[Callable[[Tensor], Tensor]]]
# Its best under label skew in our own trials.
_CHAINS: dict[str, _Chain] = {
    "byzfl caf": lambda byzfl, f: [byzfl.CAF(f)],
    "byzfl arc+caf": lambda byzfl, f: [byzfl.ARC(f), byzfl.CAF(f)],
    "byzfl nnm+trimmed-mean": lambda byzfl, f: [byzfl.NNM(f), byzfl.TrMean(f)],
}


def peers() -> tuple[str, ...]:
    """The names of the peer's rules; none if it is not installed."""
    return tuple(_CHAINS) if load() is not None else ()


def peer(name: str, faulty: int) -> Peer | None:
    """The rule of the peer's of that name, as a function of (n, d) rows and a seed; None for a rule of ours.

    Its CAF starts from PyTorch's global generator, which is seeded for the call, and put back.
    """
    if name not in _CHAINS:
        return None
    byzfl = load()
    assert byzfl is not None  # only `peers` names its rules
    steps = _CHAINS[name](byzfl, faulty)

    def run(rows: Tensor, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # ARC alters its input.
            return reduce(lambda result, step: step(result), steps, rows.clone())

    return run
