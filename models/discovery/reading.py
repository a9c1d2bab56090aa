"""How released evidence is read where a variable is not simply its own column: public linear functions of the columns.

Two things make one necessary. Where the clip is put back (`clipping.py`), a variable is a mix of all columns. Where
features give a variable a block of columns (`features.py`), it is the few broad directions of that block (`blocks.py`).
Both are made from the pool, once, and then hold for the pool and for each member's own evidence: a test of two numbers
again, that everybody can repeat. The privacy error of such a test is exact to first order, as the noise is still that
of the released matrix.

Of two blocks the pool's first pair of canonical directions given the others is compared (Hotelling, 1936). What
depends along other directions alone is seen by discovery, but no ballot speaks of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from causaldao.errors import IdentityError
from causaldao.models.discovery.blocks import Whitened, roots
from causaldao.models.discovery.clipping import restored
from causaldao.models.discovery.evidence import Evidence, Partial, correlated

Row = tuple[float, ...]
Along = tuple[Row, Row] | tuple[()]


@dataclass(frozen=True)
class Reading:
    """Each variable's directions: coefficients on the columns of its block, or on all columns of z.

    Without any, each variable is its own column.
    """

    directions: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.directions)

    @staticmethod
    def of_blocks(evidence: Evidence) -> Reading:
        """The broad directions of each variable's block, by falling variance, the largest coefficient positive.

        Raises:
            DataError: as `Whitened.of`.
        """
        broad = Whitened.of(evidence).broad()
        found = {}
        for name, place in zip(evidence.names, broad.places, strict=True):
            own = broad.coefficients[list(place)][:, [c + 1 for c in evidence.columns(name)]]
            found[name] = tuple(tuple(_signed(row).tolist()) for row in own)
        return Reading(found)

    @staticmethod
    def of_map(names: Sequence[str], grow: Tensor) -> Reading:
        """Of `clipping.restoration`: each variable is a row of the map."""
        return Reading({name: (tuple(row.tolist()),) for name, row in zip(names, grow, strict=True)})

    def applied(self, evidence: Evidence) -> Evidence:
        """The evidence of the variables as they are read; blocks stay as they are, for what takes them whole."""
        if not self.directions or evidence.blocks:
            return evidence
        return restored(evidence, torch.tensor([self.directions[n][0] for n in evidence.names], dtype=torch.float64))

    def rows(self, evidence: Evidence, name: str) -> Tensor:
        """(r, k+1) coefficients of the variable's directions on x = (1, z)."""
        columns = list(evidence.columns(name))
        if name not in self.directions:
            columns, own = [evidence.index(name)], torch.ones(1, 1, dtype=torch.float64)
        else:
            own = torch.tensor(self.directions[name], dtype=torch.float64)
        rows = torch.zeros(len(own), evidence.d + 1, dtype=torch.float64)
        rows[:, [1 + c for c in (columns if own.shape[1] == len(columns) else range(evidence.d))]] = own
        return rows

    def test(self, evidence: Evidence, a: str, b: str, given: Sequence[str], along: Along = ()) -> Partial:
        """The partial correlation of a and b given all directions of the others.

        ``along`` are the weights of a's and b's own directions; () where both have one.
        """
        ends = [self.rows(evidence, name) for name in (a, b)]
        if along:
            ends = [
                torch.tensor([weights], dtype=torch.float64) @ rows for weights, rows in zip(along, ends, strict=True)
            ]
        return correlated(evidence, torch.cat(ends), self._basis(evidence, given))

    def along(self, evidence: Evidence, a: str, b: str, given: Sequence[str]) -> Along:
        """The weights of the first canonical pair of a and b given the others; () where each has one direction."""
        first, second = self.rows(evidence, a), self.rows(evidence, b)
        p, q = len(first), len(second)
        if p == q == 1:
            return ()
        basis = self._basis(evidence, given)
        every = torch.cat([first, second, basis])
        whole = every @ evidence.moments @ every.T / evidence.count
        size = p + q
        factor, failed = torch.linalg.cholesky_ex(whole[size:, size:])
        residual = whole[:size, :size]
        if not int(failed):
            residual = residual - whole[:size, size:] @ torch.cholesky_solve(whole[size:, :size], factor)
        (left,), _ = roots(residual[None, :p, :p])
        (right,), _ = roots(residual[None, p:, p:])
        u, _, v = torch.linalg.svd(left @ residual[:p, p:] @ right.mT)
        one, other = left.mT @ u[:, 0], right.mT @ v[0]
        sign = 1.0 if float(one[one.abs().argmax()]) > 0 else -1.0
        return tuple((sign * one).tolist()), tuple((sign * other).tolist())

    def _basis(self, evidence: Evidence, given: Sequence[str]) -> Tensor:
        constant = torch.zeros(1, evidence.d + 1, dtype=torch.float64)
        constant[0, 0] = 1.0
        return torch.cat([constant, *(self.rows(evidence, name) for name in given)])

    def require(self, names: Sequence[str], blocks: Sequence[int], *, mixed: bool) -> None:
        """Refuse a reading that evidence of these blocks cannot have: of blocks one of each, no more directions than
        columns; of single columns none, or where ``mixed`` may be one row of all columns for each.

        Raises:
            IdentityError: it is another.
        """
        if not self.directions and not blocks:
            return
        sizes = dict(zip(names, blocks, strict=True)) if blocks else dict.fromkeys(names, len(names))
        fits = set(self.directions) == set(names) and all(
            0 < len(rows) <= (sizes[name] if blocks else 1) and {len(row) for row in rows} == {sizes[name]}
            for name, rows in self.directions.items()
        )
        if not fits or not (blocks or mixed):
            raise IdentityError(
                f"The proposal reads evidence of {len(names)} variables in directions that the study's features do not "
                "have."
            )

    def to_json(self) -> dict[str, Any]:
        return {name: [list(row) for row in rows] for name, rows in self.directions.items()}

    @staticmethod
    def from_json(value: Any) -> Reading:
        """Read a reading; anything but finite numbers is an IdentityError."""
        if not isinstance(value, dict):
            raise IdentityError(f"Expected directions by variable, but got a {type(value).__name__}.")
        return Reading({str(name): tuple(row_of(row) for row in rows) for name, rows in value.items()})


def row_of(value: Any) -> Row:
    """A list of finite numbers; IdentityError for anything else."""
    good = isinstance(value, list) and all(type(number) in (int, float) and math.isfinite(number) for number in value)
    if not good or not value:
        raise IdentityError("The coefficients of a direction are a list of finite numbers, one or more.")
    return tuple(map(float, value))


def _signed(row: Tensor) -> Tensor:
    """An eigenvector has no sign of its own, and libraries differ in the one they give it."""
    return row if float(row[row.abs().argmax()]) > 0 else -row
