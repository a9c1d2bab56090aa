"""What a Gram rule sees of n updates: the inner products of the points, and nothing of their d coordinates.

The points are the n rows, the origin, and the reference if there is one. A pre-aggregation replaces the rows by
affine mixtures of the points, so its geometry follows from the old one, and a rule's answer is a weight for every
point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from causaldao.errors import MisuseError


@dataclass(frozen=True)
class Geometry:
    """The geometry of ``rows`` updates, m = rows + 1 points, or rows + 2 with a reference.

    Attributes
    ----------
    gram : (m, m) float64 inner products of the points in the order rows, origin, reference, centred on one row.
    rows : n.
    norms : (n,) float64 distances of the rows from the origin, found without centring.
    has_reference : whether the last point is a reference: a trusted update, or the aggregate of the round before.
    signs : (n, 3) float64 shares of positive, zero and negative coordinates of each row, where a rule asked for them.
    """

    gram: Tensor
    rows: int
    norms: Tensor
    has_reference: bool = False
    signs: Tensor | None = None

    @property
    def origin(self) -> int:
        """The place of the origin among the points."""
        return self.rows

    @property
    def reference(self) -> int:
        """The place of the reference; a MisuseError without one."""
        if not self.has_reference:
            raise MisuseError("This rule compares the updates with a reference, but none was given.")
        return self.rows + 1

    @property
    def squared(self) -> Tensor:
        """(m, m) float64 squared distances: at least 0, a diagonal of zeros; what overflows is infinitely far."""
        norms = self.gram.diagonal()
        distances = norms[:, None] + norms[None] - 2 * self.gram
        return distances.nan_to_num(nan=torch.inf, posinf=torch.inf).clamp_min(0).fill_diagonal_(0)

    def lifted(self, matrix: Tensor) -> Tensor:
        """(r + m - n, m): an (r, m) mixing and, below it, the origin and the reference, which stay what they are."""
        fixed = torch.eye(len(self.gram), dtype=torch.float64)[self.rows :]
        return torch.cat([matrix, fixed])

    def mixed(self, matrix: Tensor) -> Geometry:
        """The geometry of r new rows, each an affine mixture of the points: ``matrix`` (r, m), every row sums to 1."""
        lifted = self.lifted(matrix)
        gram = lifted @ self.gram @ lifted.T
        gram = (gram + gram.T) / 2
        rows, origin = len(matrix), len(matrix)
        squares = gram.diagonal()[:rows] - 2 * gram[:rows, origin] + gram[origin, origin]
        scaled = _only_scaled(matrix, self.rows)
        norms = squares.clamp_min(0).sqrt() if scaled is None else scaled * self.norms
        return Geometry(gram, rows, norms, self.has_reference, None if scaled is None else self.signs)


def _only_scaled(matrix: Tensor, rows: int) -> Tensor | None:
    """The (n,) factors of a mixing that does nothing but shrink each row, so that signs stay and norms are exact."""
    factors = matrix.diagonal()[:rows]
    if len(matrix) != rows or bool((factors <= 0).any()):
        return None
    return factors if torch.equal(matrix[:, :rows], torch.diag(factors)) else None
