"""Moments of clipped records, put back to what they were: for elliptical data, as Gaussian data are.

A dictionary shortens a record z that is longer than R to length R (‖z‖² ≤ C² - 1 = R²). Partial correlations that are
zero are then a little different from zero, and where there are many records discovery takes that for edges. If z is
Gaussian around the centre of its bounds, shortening leaves the eigenvectors of Σ as they are and turns an eigenvalue
λ_i into

    E[ λ_i w_i² min(1, R² / Σ λ_k w_k²) ],   w standard normal,

which is solved for λ (compare the spatial sign covariance matrix: Dürre, Tyler, Vogel 2016). What undoes it is a linear
map of the records, the same for everybody who shares the dictionary: post-processing, made from the pool and applied to
the pool and to each member's own evidence alike.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from causaldao.errors import MisuseError
from causaldao.models.discovery.evidence import Evidence

_DRAWS = 2048
_ROUNDS = 100
_FULLEST = 0.95  # of R²: records that are all longer than R tell nothing of their length
_CENTRED = 0.1  # squared standard deviations that a mean may be from the centre of its bounds


def restoration(evidence: Evidence, clip: float) -> Tensor:
    """(d, d) symmetric: the map of scaled records z whose moments are those before the clip ``clip`` = C².

    The expectation is over 2,048 fixed points of a Sobol sequence.

    Raises
    ------
    MisuseError
        the clip leaves records no length; a variable's mean is far from the centre of its bounds, where the
        equation above does not hold.
    """
    if clip <= 1:
        raise MisuseError(f"The clip C² is {clip}, but a record's constant alone has square 1: give the dictionary's.")
    covariance = evidence.covariance()
    if found := off_centre(evidence):
        name, distance = found
        raise MisuseError(
            f"The mean of {name!r} is {distance:.2g} standard deviations from the centre of its bounds; "
            f"at most {_CENTRED**0.5:.2g} can be put back. Centre its bounds on its mean, or do without."
        )
    shortened, basis = torch.linalg.eigh(covariance)
    room = min(float(covariance.trace()), _FULLEST * (clip - 1))
    shortened = shortened.clamp_min(1e-9 * float(shortened[-1]))
    shortened = shortened * min(1.0, room / float(shortened.sum()))  # noise below zero is noise above it, too
    squares = _squares(evidence.d)
    lengths = shortened.clone()
    for _ in range(_ROUNDS):
        kept = ((clip - 1) / (squares @ lengths)).clamp_max(1.0)
        share = (squares * kept[:, None]).mean(dim=0) / squares.mean(dim=0)
        step = shortened / (lengths * share)
        lengths = lengths * step
        if float((step - 1).abs().max()) < 1e-12:
            break
    grown: Tensor = basis @ torch.diag((lengths / shortened).sqrt()) @ basis.T
    return grown


def off_centre(evidence: Evidence) -> tuple[str, float] | None:
    """The variable whose mean is too far from the centre of its bounds for a `restoration`, and how far in its standard
    deviations; None if there is none. What noise alone may do to a mean is allowed for."""
    mean, covariance = evidence.mean(), evidence.covariance()
    doubt = evidence.noise / evidence.count  # √2 standard deviations of a mean, one of a variance
    off = (mean.abs() - 3 * doubt).clamp_min(0).square() / covariance.diagonal().clamp_min(max(doubt, 1e-12))
    if evidence.d == 0 or float(off.max()) <= _CENTRED:
        return None
    return evidence.names[int(off.argmax())], float(off.max()) ** 0.5


def restored(evidence: Evidence, grow: Tensor) -> Evidence:
    """The evidence of records z mapped by ``grow``.

    Its noise is no longer alike in all directions: σ is multiplied by the mean over them, too small by at most the
    ratio of the largest to the mean where records vary most, and there it matters least.
    """
    full = torch.eye(evidence.d + 1, dtype=torch.float64)
    full[1:, 1:] = grow
    by = float((grow @ grow).diagonal().mean()) if evidence.d else 1.0
    return replace(evidence, moments=full @ evidence.moments @ full, noise=evidence.noise * by)


def _squares(d: int) -> Tensor:
    """(2048, d) squares of normal points that fill space evenly, the same everywhere."""
    engine = torch.quasirandom.SobolEngine(d, scramble=True, seed=0)
    uniform: Tensor = engine.draw(_DRAWS, dtype=torch.float64)
    return torch.erfinv(2 * uniform.clamp(1e-9, 1 - 1e-9) - 1).square() * 2
