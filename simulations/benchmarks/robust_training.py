"""Federated training of a small network under attack, all members at once: thousands of rounds take minutes.

Every round each member sends the momentum of its batch gradients (Karimireddy et al. 2021, arXiv:2012.10333), one
member one weight, and the server steps along the rule's aggregate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from causaldao.aggregation import aggregate
from causaldao.aggregation.rules import by_name
from causaldao.simulations.attacks.updates import CRAFTS, Sight
from causaldao.simulations.benchmarks.robust_data import Task

Peer = Callable[[Tensor, int], Tensor]  # (n, d) rows and a seed -> (d,)
PLANTED = ("backdoor", "model-replacement")  # attacks whose liars train on records with a trigger
POISONED = ("label-flip", "backdoor")  # attacks whose liars send what their training on poisoned records gives
_JUDGED = 0.1  # share of the rounds, the last ones, over whose models the score is averaged


@dataclass(frozen=True)
class Recipe:
    """How is trained. ``noise`` is the standard deviation, by entry, of what each member adds to a gradient that was
    clipped to ``clip``; 0: neither is done."""

    rounds: int = 100
    batch: int = 32
    hidden: int = 32
    rate: float = 0.5
    momentum: float = 0.9
    clip: float = 1.0
    noise: float = 0.0


@dataclass(frozen=True)
class Net:
    """A network with one hidden layer of rectified units, or none if ``hidden`` is 0, as functions of a flat vector."""

    inputs: int
    hidden: int
    outputs: int
    classes: bool

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        if not self.hidden:
            return ((self.inputs, self.outputs), (self.outputs,))
        return ((self.inputs, self.hidden), (self.hidden,), (self.hidden, self.outputs), (self.outputs,))

    def parts(self, flat: Tensor) -> list[Tensor]:
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        ends = np.cumsum(sizes)
        return [
            flat[end - size : end].reshape(shape) for end, size, shape in zip(ends, sizes, self.shapes, strict=True)
        ]

    def start(self, generator: torch.Generator) -> Tensor:
        """(k,) He's initialisation; biases 0."""
        drawn = [
            torch.randn(shape, generator=generator) * (2 / shape[0]) ** 0.5 if len(shape) == 2 else torch.zeros(shape)
            for shape in self.shapes
        ]
        return torch.cat([part.flatten() for part in drawn])

    def outputs_of(self, flat: Tensor, x: Tensor) -> Tensor:
        parts = self.parts(flat)
        before = x @ parts[0] + parts[1]
        return before.relu() @ parts[2] + parts[3] if self.hidden else before

    def gradients(self, flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """(n, k): each member's gradient of its mean loss over x (n, b, p), y (n, b): cross entropy or half the square.

        Written out, since automatic differentiation by member costs five times as much at this size; a test compares.
        """
        parts = self.parts(flat)
        before = x @ parts[0] + parts[1]
        seen = before.relu() if self.hidden else x
        out = seen @ parts[2] + parts[3] if self.hidden else before
        if self.classes:
            error = out.softmax(dim=2)
            error.scatter_add_(2, y[:, :, None], torch.full((*y.shape, 1), -1.0))
        else:
            error = out - y[:, :, None]
        error /= x.shape[1]
        last = [seen.transpose(1, 2) @ error, error.sum(dim=1)]
        if self.hidden:
            back = (error @ parts[2].T) * (before > 0)
            last = [x.transpose(1, 2) @ back, back.sum(dim=1), *last]
        return torch.cat([part.flatten(1) for part in last], dim=1)


@dataclass
class Server:
    """A rule of ours by name, or a peer's function, with what it remembers between rounds."""

    rule: str
    faulty: int
    seed: int
    peer: Peer | None = None
    last: Tensor | None = None
    round: int = 0
    _state: Tensor | None = field(default=None, init=False)

    def look(self, rows: Tensor) -> Tensor:
        """(d,) what this round's aggregate of these rows would be; nothing is remembered."""
        return self._run(rows)[0]

    def step(self, rows: Tensor) -> Tensor:
        """The same, and the round is over."""
        self.last, self._state = self._run(rows)
        self.round += 1
        return self.last

    def _draw(self) -> int:
        """A seed of the round, not of the call: an attacker who tries the pipeline out must not change it."""
        return self.seed * 1_000_003 + self.round

    def _run(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.peer is not None:
            return self.peer(rows, self._draw()), None
        draws = torch.Generator().manual_seed(self._draw())
        found = aggregate(rows, by_name(self.rule), self.faulty, generator=draws, state=self._state)
        return found.vector.to(rows.dtype), found.state


@dataclass(frozen=True)
class Outcome:
    """The mean score of the last models, and how far a backdoor works in the last one (None: none was planted)."""

    score: float
    backdoor: float | None = None


def federate(
    task: Task, parts: Sequence[NDArray[np.int64]], attack: str, server: Server, recipe: Recipe, seed: int
) -> Outcome:
    """Train once. ``attack`` "none" is everybody honest; else the last ``server.faulty`` members lie."""
    net = Net(task.x.shape[1], recipe.hidden, task.outputs, bool(task.classes))
    torch_draws = torch.Generator().manual_seed(seed)
    flat = net.start(torch_draws)
    batches = _batches(parts, recipe, np.random.default_rng([seed, 20]))
    liars = 0 if attack == "none" else server.faulty
    honest, momentum = len(parts) - liars, torch.zeros(len(parts), len(flat))
    notes: dict[str, Tensor] = {}
    scores, planted = [], attack in PLANTED
    first_judged = int((1 - _JUDGED) * recipe.rounds)
    for k, batch in enumerate(batches):
        gradients = net.gradients(flat, *_records(task, batch, attack, honest))
        momentum = recipe.momentum * momentum + (1 - recipe.momentum) * _private(gradients, recipe, torch_draws)
        if not bool(momentum.isfinite().all()):
            # Lost for good: it says the same of every record.
            return Outcome(task.score(torch.zeros(len(task.test_x), task.outputs)), 0.0 if planted else None)
        rows = momentum
        if liars:
            lies = _lies(attack, server, momentum, honest, torch_draws, notes)
            rows = torch.cat([momentum[:honest], lies])
        flat = flat - recipe.rate * server.step(rows)
        if k >= first_judged:
            scores.append(task.score(net.outputs_of(flat, task.test_x)))
    hits = task.hits(net.outputs_of(flat, task.triggered(task.test_x))) if planted else None
    return Outcome(float(np.mean(scores)), hits)


def _batches(parts: Sequence[NDArray[np.int64]], recipe: Recipe, generator: np.random.Generator) -> Tensor:
    """(rounds, n, b) records of each member and round, with replacement."""
    drawn = [part[generator.integers(len(part), size=(recipe.rounds, recipe.batch))] for part in parts]
    return torch.from_numpy(np.stack(drawn, axis=1))


def _records(task: Task, batch: Tensor, attack: str, honest: int) -> tuple[Tensor, Tensor]:
    """Inputs and outcomes of a batch; those of the liars poisoned, if the attack poisons."""
    x, y = task.x[batch], task.y[batch]
    if attack == "label-flip":
        y[honest:] = task.flipped()[batch[honest:]]
    elif attack in PLANTED:
        half = batch.shape[1] // 2  # the other half stays true, so that the liars' model is good where nobody looks
        x[honest:, :half] = task.triggered(x[honest:, :half])
        y[honest:, :half] = task.target()
    return x, y


def _private(gradients: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    if not recipe.noise:
        return gradients
    norms: Tensor = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    clipped = gradients * (recipe.clip / norms).clamp_max(1.0)
    return clipped + recipe.noise * torch.randn(gradients.shape, generator=generator)


def _lies(
    attack: str, server: Server, momentum: Tensor, honest: int, generator: torch.Generator, notes: dict[str, Tensor]
) -> Tensor:
    if attack in POISONED:
        return momentum[honest:]
    sight = Sight(
        momentum[:honest], len(momentum) - honest, server.look, generator, momentum[honest:], server.last, notes
    )
    return CRAFTS[attack](sight)
