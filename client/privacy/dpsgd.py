"""Differentially private stochastic gradient descent on networks of `NodeLinear` layers.

Sources: M. Abadi et al., "Deep learning with differential privacy" (CCS 2016); I. Goodfellow, "Efficient
per-example gradient computations" (2015), for norms in closed form. With input a (n, d, in) and output
gradient g (n, d, out), record r has the gradient g[r, j] ⊗ a[r, j] in weight[j] and g[r, j] in bias[j], so
its squared norm is Σ_j ‖g[r, j]‖² (‖a[r, j]‖² + 1). One forward and one backward pass give all norms; no
per-record gradient is ever stored.

Guarantee, per step: a Poisson-subsampled Gaussian mechanism (add or remove one record) of noise multiplier
z and rate q. The sum of clipped gradients moves by at most `clip` in L2 (to the rounding of
float64) when a record comes or goes; the divisor, the number of steps and every shape are public.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from causaldao.client.privacy.noise import NoiseSource
from causaldao.errors import MisuseError
from causaldao.models.scm import NodeLinear

Penalty = Callable[[Mapping[str, Tensor]], Tensor]


class Trainable(Protocol):
    """What the trainer asks of an `nn.Module`: all its parameters in `NodeLinear` layers, each used once in
    `loss`.
    """

    def layers(self) -> Iterable[NodeLinear]: ...

    def loss(self, batch: Tensor) -> Tensor:
        """Loss of each record, of that record alone: (n, d) -> (n,)."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


@dataclass(frozen=True)
class PrivateSteps:
    """The public settings of one round of training.

    `count` steps, Poisson sampling at `rate` q, gradients clipped to `clip` in L2, noise of standard
    deviation `noise_multiplier * clip` on their sum, divided by `denominator` (q times the *noisy* count,
    never the private n).
    """

    count: int
    rate: float
    clip: float
    noise_multiplier: float
    denominator: float
    learning_rate: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise MisuseError(f"Expected 0 < {name} = {value} < inf: private training has no such setting.")
        if self.rate > 1:
            raise MisuseError(f"Expected rate = {self.rate} <= 1: it is the probability that a step takes a record.")


def clipped_gradient(
    model: Trainable, batch: Tensor, clip: float, units: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of the records' gradients, each clipped to L2 norm `clip`, and their norms before that.

    `units`, one (d,) tensor of positive scales for each layer, measures the parameters of node j in
    units[j]: gradients, and so norms, are those in these units. Badly scaled nodes then neither drown the
    others nor diverge.

    Shapes: batch (n, d), sum (k,) in the order of `named_parameters`, norms (n,), both float64 so that the
    bound does not suffer from rounding. n = 0 gives zeros. A record whose norm is not finite contributes
    nothing. Raises MisuseError for a model with parameters outside `NodeLinear` layers, or with a layer
    that a forward pass uses more or less than once: the closed form would be wrong.
    """
    layers = _layers(model)
    if len(batch) == 0:
        return torch.zeros_like(_vector(model)), torch.zeros(0, dtype=torch.float64)
    inputs, slopes = _backward(model, layers, batch)
    scales = units if units is not None else [torch.ones(1)] * len(layers)
    pairs = [(a.double(), g.double() * u.double()[:, None]) for a, g, u in zip(inputs, slopes, scales, strict=True)]
    squares = [(g.square().sum(2) * (a.square().sum(2) + 1)).sum(1) for a, g in pairs]
    norms = torch.stack(squares).sum(0).sqrt()
    finite = torch.isfinite(norms)[:, None, None]
    factor = (clip / norms).clamp(max=1.0)[:, None, None]
    parts: dict[int, Tensor] = {}
    for layer, (a, g) in zip(layers, pairs, strict=True):
        clipped = torch.where(finite, g * factor, 0.0)
        parts[id(layer.weight)] = torch.einsum("ndo,ndi->doi", clipped, torch.where(finite, a, 0.0))
        parts[id(layer.bias)] = clipped.sum(0)
    return torch.cat([parts[id(p)].flatten() for _, p in model.named_parameters()]), norms


def private_steps(
    model: Trainable,
    rows: Tensor,
    steps: PrivateSteps,
    noise: NoiseSource | None = None,
    *,
    units: Sequence[Tensor] | None = None,
    support: Mapping[str, Tensor] | None = None,
    penalty: Penalty | None = None,
) -> Tensor:
    """The change of the parameters after `steps.count` noised steps, float32 (k,).

    The order is that of `named_parameters`; `model` is left as it was. `rows` is (n, d) in the model's
    units, for any n including 0; a step whose sample is empty is noised like any other. `noise` defaults to
    the operating system's entropy. `units` are those of `clipped_gradient`: public scales in which
    gradients are clipped, noised and stepped. `support` names, for some parameters, the entries (bool, of
    their shape) that data can move at all; the others get no noise either, and stay. `penalty` is a
    function of the parameters alone; its gradient is applied after each noised step, and costs no privacy.
    """
    noise, model = noise or NoiseSource.from_os(), copy.deepcopy(model)
    start, live, unit = _vector(model), _live(model, support or {}), _unit(model, units)
    for _ in range(steps.count):
        batch = rows[noise.poisson_mask(steps.rate, len(rows))]
        total, _norms = clipped_gradient(model, batch, steps.clip, units)
        drawn = noise.normal((int(live.sum()),)) * (steps.noise_multiplier * steps.clip)
        total = torch.where(live, total, 0.0)
        total[live] += drawn
        _move(model, -steps.learning_rate / steps.denominator * unit * total)
        if penalty is not None:
            _move(model, -steps.learning_rate * torch.where(live, unit**2 * _slope(model, penalty), 0.0))
    return (_vector(model) - start).float()


def _layers(model: Trainable) -> list[NodeLinear]:
    layers = list(model.layers())
    covered = {id(p) for layer in layers for p in (layer.weight, layer.bias)}
    outside = [name for name, p in model.named_parameters() if id(p) not in covered]
    if outside:
        raise MisuseError(
            f"The parameters {', '.join(outside)} are in no NodeLinear layer, so their gradient cannot be "
            "clipped by record: yield their layer from layers(), or make them plain attributes."
        )
    return layers


def _backward(model: Trainable, layers: list[NodeLinear], batch: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Inputs and output gradients of the layers; the loss of a record must not look at other records."""
    with _recorded(layers) as calls:
        loss = model.loss(batch).sum()
    if uneven := [len(call) for call in calls if len(call) != 1]:
        raise MisuseError(
            f"A NodeLinear layer is used {uneven[0]} times in one loss, expected once: give each use its own layer."
        )
    slopes = torch.autograd.grad(loss, [call[0][1] for call in calls])
    return [call[0][0].detach() for call in calls], slopes


@contextmanager
def _recorded(layers: list[NodeLinear]) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
    calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]

    def hook(call: list[tuple[Tensor, Tensor]]) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _layer, inputs, output: call.append((inputs[0], output))

    handles = [layer.register_forward_hook(hook(call)) for layer, call in zip(layers, calls, strict=True)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _vector(model: Trainable) -> Tensor:
    return torch.cat([p.detach().double().flatten() for _, p in model.named_parameters()])


def _live(model: Trainable, support: Mapping[str, Tensor]) -> Tensor:
    parameters = dict(model.named_parameters())
    if wrong := [name for name, m in support.items() if name not in parameters or m.shape != parameters[name].shape]:
        raise MisuseError(
            f"The support of {', '.join(wrong)} fits no parameter: expected the names and shapes of the model's."
        )
    masks = [support.get(name, torch.ones(p.shape, dtype=torch.bool)) for name, p in parameters.items()]
    return torch.cat([mask.bool().flatten() for mask in masks])


def _unit(model: Trainable, units: Sequence[Tensor] | None) -> Tensor:
    """(k,) float64: the unit of every parameter's entry."""
    layers = list(model.layers())
    scales = units if units is not None else [torch.ones(len(layer.bias)) for layer in layers]
    of = {id(p): scale for layer, scale in zip(layers, scales, strict=True) for p in (layer.weight, layer.bias)}
    parts = [(p, of[id(p)].double()) for _, p in model.named_parameters()]
    return torch.cat([scale.repeat_interleave(p[0].numel()) for p, scale in parts])


@torch.no_grad()
def _move(model: Trainable, change: Tensor) -> None:
    parameters = [p for _, p in model.named_parameters()]
    for parameter, part in zip(parameters, torch.split(change, [p.numel() for p in parameters]), strict=True):
        parameter.add_(part.reshape(parameter.shape).to(parameter.dtype))


def _slope(model: Trainable, penalty: Penalty) -> Tensor:
    parameters = dict(model.named_parameters())
    slopes = torch.autograd.grad(
        penalty(parameters), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([slope.double().flatten() for slope in slopes])
