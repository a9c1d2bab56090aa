"""Evidence of several conditions put together about each one's own mean, with its noise counted as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from causaldao.errors import MisuseError
from causaldao.models.discovery.evidence import Evidence


def within(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of all records, each about the mean of its own part: what parts differ by in their means leaves no
    trace. Counts add, noise adds in squares; one part alone is returned as it is.

    With n_e, m_e, C_e, σ_e the count, mean, covariance and noise of part e the answer counts n = Σ n_e and has the
    covariance Σ n_e C_e / n. The noise of Σ n_e C_e along residuals u, w of the variables is <E, sym(u wᵀ)> with the
    intercepts -u·m_e and -w·m_e, part by part: away from the centre of its bounds a variable carries more of it. One
    mean stands for all: of each variable the root mean square of the m_e, weighted by σ_e², with the sign of its mean.
    That counts the noise of a variable exactly, of a combination of several exactly where the means are alike. Without
    noise the mean is nobody's business, and is 0.

    Raises:
        MisuseError: no part, or parts of different variables, scales or feature maps.
    """
    if not parts:
        raise MisuseError("There is no evidence to put together. Give one part or more.")
    first = parts[0]
    for part in parts[1:]:
        if (part.names, part.blocks) != (first.names, first.blocks) or not (
            torch.equal(part.centre, first.centre) and torch.equal(part.half, first.half)
        ):
            raise MisuseError("Evidence can be pooled only under one dictionary.")
    if len(parts) == 1:
        return first
    counts = torch.tensor([part.count for part in parts], dtype=torch.float64)
    squares = torch.tensor([part.noise**2 for part in parts], dtype=torch.float64)
    means = torch.stack([part.mean() for part in parts])
    scatter = sum((part.count * part.covariance() for part in parts), torch.zeros(first.d, first.d).double())
    count, noise = float(counts.sum()), math.sqrt(float(squares.sum()))
    mean = torch.zeros(first.d, dtype=torch.float64)
    if noise:
        size = ((squares / squares.sum()) @ means**2).sqrt()
        mean = torch.where(counts @ means < 0, -size, size)
    moments = torch.zeros_like(first.moments)
    moments[0, 0] = count
    moments[0, 1:] = moments[1:, 0] = count * mean
    moments[1:, 1:] = scatter + count * torch.outer(mean, mean)
    return Evidence(first.names, moments, noise, first.centre, first.half, first.blocks)
