"""One round of a member's part in training and evaluation: from the shared model to what may leave the
node.

Both are one release each of the sampled Gaussian mechanism and are to be called inside `Journal.release`,
which counts them. Counts, rates, steps and scales are the study's or noisy; what is returned has a shape
that the model alone decides.

FedProx (Li et al. 2020, arXiv:1812.06127) and the momentum of Karimireddy et al. (2021, arXiv:2012.10333) cost
no ε. The proximal term is a function of the parameters and of the public model that training started from, and
is stepped along after the noise; the momentum is an average of updates that were noised, and paid for, each in
its own round. Neither looks at a record, so both are post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from causaldao.client.data.checks import conform
from causaldao.client.privacy.dpsgd import Penalty, PrivateSteps, private_steps
from causaldao.client.privacy.noise import NoiseSource
from causaldao.errors import ConfigurationError, MisuseError
from causaldao.models.discovery.evidence import Dictionary
from causaldao.models.scm import NeuralSCM

Array = NDArray[Any]

_LOSS_STEPS = 1 << 20  # lattice steps in [0, L]: rounding is far below the noise, and integers have no low bits to leak


def train(
    base: Mapping[str, Array],
    meta: Mapping[str, Any],
    frame: pd.DataFrame,
    dictionary: Dictionary,
    steps: PrivateSteps,
    noise: NoiseSource | None = None,
    *,
    proximal: float = 0.0,
) -> dict[str, NDArray[np.float32]]:
    """{"delta": (k,) float32}: the noised change of the model's parameters, in the order of
    `named_parameters`.

    `base` and `meta` are those of `NeuralSCM.from_state`. Weights that the graph masks have no gradient,
    and get no noise. `proximal` is μ of FedProx: μ/2 ‖w - w_base‖² is added to the loss, each parameter measured
    in its node's units as in clipping, so that a step draws every entry back by the same share, learning rate × μ,
    and is stable while that is at most 1.
    """
    model, rows = _prepared(base, meta, frame, dictionary)
    penalty = _proximal(model, proximal) if proximal else None
    support = {name: model.mask.bool()[:, None, :].expand_as(p) for name, p in _masked(model).items()}
    delta = private_steps(model, rows, steps, noise, units=_units(model), support=support, penalty=penalty)
    return {"delta": delta.numpy()}


@dataclass(frozen=True)
class Momentum:
    """What a node sends instead of a round's update: the average (k,) float32 of its updates so far, of which there
    were `rounds`, the last one weighing most."""

    average: NDArray[np.float32]
    rounds: int


def averaged(update: NDArray[np.float32], before: Momentum | None, beta: float) -> Momentum:
    """Momentum β over the rounds in which a node took part: m ← βm + (1 - β)u, divided by 1 - β^t as in Adam.

    Without the division the first of t updates would count 1 - β only, and a study of a few rounds would hardly
    train. Divided, the weights of the t updates sum to 1: the first is sent as it is, and with β = 0 every one is.

    What is averaged are changes, each of the model that was shared in its round. A node that misses rounds goes on
    from the average it has, over the rounds in which it did take part: β^t counts those, not the study's rounds.
    An average that is not finite, of a round that diverged and was not taken, is forgotten: one such round must not
    shut a member out of all that follow.
    """
    if before is None or not np.isfinite(before.average).all():
        return Momentum(update, 1)
    rounds = before.rounds + 1
    share = (1 - beta) / (1 - beta**rounds)
    mixed = (1 - share) * before.average.astype(np.float64) + share * update.astype(np.float64)
    return Momentum(mixed.astype(np.float32), rounds)


def evaluate(
    base: Mapping[str, Array],
    meta: Mapping[str, Any],
    frame: pd.DataFrame,
    dictionary: Dictionary,
    *,
    bound: float,
    noise_multiplier: float,
    count: float,
    noise: NoiseSource | None = None,
) -> dict[str, NDArray[np.float64]]:
    """{"loss": (1,) float64}: the noised sum of record losses clipped to [0, bound], divided by the public
    `count`.

    Adding or removing a record moves the sum by at most `bound`; the sum is taken on a lattice, under exact
    discrete Gaussian noise of standard deviation `noise_multiplier * bound`. A loss that is not finite
    counts as `bound`.
    """
    for name, value in (("bound", bound), ("noise_multiplier", noise_multiplier), ("count", count)):
        if not 0 < value < math.inf:
            raise MisuseError(f"Expected 0 < {name} = {value} < inf: a loss is not released without it.")
    model, rows = _prepared(base, meta, frame, dictionary)
    with torch.no_grad():
        share = torch.nan_to_num(model.loss(rows).double() / bound, nan=1.0, posinf=1.0).clamp(0.0, 1.0)
    total = int((share * _LOSS_STEPS).round().long().sum())
    variance = (Fraction(noise_multiplier) * _LOSS_STEPS) ** 2
    drawn = (noise or NoiseSource.from_os()).discrete_gaussian(variance, 1)
    return {"loss": (total + drawn) / _LOSS_STEPS * bound / count}


def _prepared(
    base: Mapping[str, Array], meta: Mapping[str, Any], frame: pd.DataFrame, dictionary: Dictionary
) -> tuple[NeuralSCM, Tensor]:
    model = NeuralSCM.from_state(base, meta)
    if model.names != dictionary.names:
        raise ConfigurationError(
            f"The model has the variables {', '.join(model.names)}, the study "
            f"{', '.join(dictionary.names)}: expected the "
            "same in the same order."
        )
    if len(frame) == 0:
        return model, torch.zeros(0, len(model.names), dtype=model.mask.dtype)
    return model, torch.from_numpy(dictionary.encode(conform(frame, dictionary))).to(model.mask.dtype)


def _units(model: NeuralSCM) -> list[Tensor]:
    """A node's output in units of its noise: its loss then has a curvature near 1, whatever its scale."""
    return [torch.ones_like(model.scale) if layer is model.hidden else model.scale for layer in model.layers()]


def _proximal(model: NeuralSCM, strength: float) -> Penalty:
    """μ/2 ‖(w - w_base) / unit‖², with w_base the parameters of `model` now."""
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    units = dict(zip(("linear", "hidden", "head"), _units(model), strict=True))

    def penalty(parameters: Mapping[str, Tensor]) -> Tensor:
        moved = [
            (p - start[name]) / units[name.split(".")[0]].reshape(-1, *[1] * (p.ndim - 1))
            for name, p in parameters.items()
        ]
        return strength / 2 * torch.stack([change.double().square().sum() for change in moved]).sum()

    return penalty


def _masked(model: NeuralSCM) -> dict[str, Tensor]:
    """The weights that read the masked parents: (d, outputs, d)."""
    return {name: getattr(model, name.split(".")[0]).weight for name in ("linear.weight", "hidden.weight")}
