"""One round of a member's part in training and evaluation: from the shared model to what may leave the
node.

Both are one release each of the sampled Gaussian mechanism and are to be called inside `Journal.release`,
which counts them. Counts, rates, steps and scales are the study's or noisy; what is returned has a shape
that the model alone decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    penalty: Penalty | None = None,
) -> dict[str, NDArray[np.float32]]:
    """{"delta": (k,) float32}: the noised change of the model's parameters, in the order of
    `named_parameters`.

    `base` and `meta` are those of `NeuralSCM.from_state`. Weights that the graph masks have no gradient,
    and get no noise.
    """
    model, rows = _prepared(base, meta, frame, dictionary)
    support = {name: model.mask.bool()[:, None, :].expand_as(p) for name, p in _masked(model).items()}
    delta = private_steps(model, rows, steps, noise, units=_units(model), support=support, penalty=penalty)
    return {"delta": delta.numpy()}


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


def _masked(model: NeuralSCM) -> dict[str, Tensor]:
    """The weights that read the masked parents: (d, outputs, d)."""
    return {name: getattr(model, name.split(".")[0]).weight for name in ("linear.weight", "hidden.weight")}
