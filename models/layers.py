"""Layers that a causal graph shapes: what the graph does not allow, no weight can bring back.

An adjacency here has causes in rows and effects in columns, as `CausalGraph.adjacency` writes it.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from causaldao.errors import DataError, MisuseError
from causaldao.models.graph import CausalGraph


class CausalLinear(nn.Module):
    """An affine map whose output j sees only the inputs i with mask[i, j]: (..., inputs) -> (..., outputs).

    weight (outputs, inputs) starts as N(0, gain² / fan-in of its output) with fan-in counted over the inputs that
    are present, so a sparse graph does not shrink the signal (He et al., ICCV 2015, has the count over all); bias
    (outputs,) starts at zero. An output without inputs is its bias. The gradient at an absent weight is exactly zero.

    Raises:
        MisuseError: fewer than one input or output, or a mask that is not (inputs, outputs).
        DataError: x does not have `inputs` columns.
    """

    mask: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        mask: Tensor | None = None,
        *,
        gain: float = math.sqrt(2),
        generator: torch.Generator | None = None,
    ) -> None:
        """mask (inputs, outputs), nonzero where present; None: all are."""
        super().__init__()
        if min(inputs, outputs) < 1:
            raise MisuseError(f"A layer of {inputs} inputs and {outputs} outputs: expected at least 1 of each.")
        present = torch.ones(inputs, outputs) if mask is None else _shaped(mask, (inputs, outputs)).ne(0).float()
        self.register_buffer("mask", None if mask is None else present.T.contiguous())
        self.weight = nn.Parameter(fan_in_normal(present.T, present.sum(0)[:, None], gain, generator))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        weight, mask = self.weight, self.mask
        if x.shape[-1:] != weight.shape[1:]:
            raise DataError(f"Rows of shape {tuple(x.shape)}: expected {weight.shape[1]} columns.")
        return functional.linear(x, weight if mask is None else weight * mask, self.bias)


class TemporalCausalConv(nn.Module):
    """A convolution over time that never looks ahead: (n, inputs, time) -> (n, outputs, time).

    y[:, o, t] = bias[o] + Σ_i Σ_l weight[o, i, l] x[:, i, t - l] over lags l = 0..lags-1, with zeros before the
    start (van den Oord et al., WaveNet, 2016). mask (inputs, outputs, lags), nonzero where i at lag l may cause o,
    is a lagged causal graph; without it all are. Initialised like `CausalLinear`.

    Raises:
        MisuseError: fewer than one input, output or lag, or a mask of another shape.
        DataError: x is not (n, inputs, time).
    """

    mask: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        lags: int,
        mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(inputs, outputs, lags) < 1:
            raise MisuseError(f"{inputs} inputs, {outputs} outputs and {lags} lags: expected at least 1 of each.")
        shape = (inputs, outputs, lags)
        present = (torch.ones(shape) if mask is None else _shaped(mask, shape).ne(0).float()).transpose(0, 1)
        self.register_buffer("mask", None if mask is None else present.contiguous())
        fan_in = present.sum((1, 2))[:, None, None]
        self.weight = nn.Parameter(fan_in_normal(present, fan_in, math.sqrt(2), generator))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[1] != self.weight.shape[1]:
            raise DataError(f"A series of shape {tuple(x.shape)}: expected (n, {self.weight.shape[1]}, time).")
        weight = self.weight if self.mask is None else self.weight * self.mask
        past = functional.pad(x, (weight.shape[2] - 1, 0))
        return functional.conv1d(past, weight.flip(2), self.bias)


class CausalAttentionBias(nn.Module):
    """What is added to attention scores among a graph's variables, queries in rows and keys in columns: (d, d).

    A variable attends to itself and its parents, or with `ancestors` to all its ancestors; everything else gets -inf,
    not a large finite number, so that it has weight zero whatever the scores. Pass it as the ``attn_mask`` of
    `torch.nn.functional.scaled_dot_product_attention`. `strength` (one learnable number per allowed pair, zero at
    first) may weigh the edges against each other and cannot open a closed one.

    Raises:
        MisuseError: the graph is not a DAG.
    """

    closed: Tensor

    def __init__(self, graph: CausalGraph, *, ancestors: bool = False) -> None:
        super().__init__()
        if not graph.is_dag:
            raise MisuseError("An attention bias needs a DAG; take an extension of the pattern.")
        index = {name: i for i, name in enumerate(graph.nodes)}
        closed = torch.ones(len(index), len(index), dtype=torch.bool)
        for effect, row in index.items():
            causes = graph.ancestors(effect) if ancestors else graph.parents(effect) | {effect}
            closed[row, [index[cause] for cause in causes]] = False
        self.register_buffer("closed", closed)
        self.strength = nn.Parameter(torch.zeros(closed.shape))

    def forward(self) -> Tensor:
        return self.strength.masked_fill(self.closed, -math.inf)

    def extra_repr(self) -> str:
        return f"variables={len(self.closed)}, open={int((~self.closed).sum())}"

    @classmethod
    def of(cls, adjacency: Tensor, *, ancestors: bool = False) -> Self:
        """From a (d, d) adjacency, nonzero where row causes column. ConfigurationError: it has a cycle."""
        size = len(adjacency)
        pairs = _shaped(adjacency, (size, size)).nonzero().tolist()
        nodes = [f"x{i + 1}" for i in range(size)]
        return cls(CausalGraph.dag([(nodes[i], nodes[j]) for i, j in pairs], nodes), ancestors=ancestors)


def fan_in_normal(present: Tensor, fan_in: Tensor, gain: float, generator: torch.Generator | None) -> Tensor:
    """N(0, gain² / fan_in) where present is 1, else 0; fan_in broadcasts against present, and 0 counts as 1."""
    draw = torch.randn(present.shape, generator=generator, dtype=present.dtype)
    return gain * draw * present / fan_in.clamp(min=1).sqrt()


def _shaped(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(mask.shape) != shape:
        raise MisuseError(f"A mask of shape {tuple(mask.shape)}: expected {shape}, causes before effects.")
    return mask
