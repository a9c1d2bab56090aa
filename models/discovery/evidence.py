"""Evidence: the sufficient statistics that discovery, ballots and effects are made from. Rows go in here only.

A record z is mapped to x = (1, φ(z)) by the public dictionary: transformed, clipped to public bounds, scaled to
[-1, 1]. The evidence of n records is M = Σ x xᵀ, (d+1, d+1), and M[0, 0] = n. What a member releases is M plus a
symmetric Gaussian noise matrix E of standard deviation σ on the diagonal and σ/√2 off it. That shape makes one identity
do all the error propagation: for a symmetric A, ⟨E, A⟩ has standard deviation σ·‖A‖_F (`Evidence.noise_of`), so the
privacy error of any smooth f(M) is σ·‖∇f‖_F.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from causaldao.errors import ConfigurationError, DataError, MisuseError

Kind = Literal["continuous", "binary", "count", "categorical"]
Transform = Literal["identity", "log1p"]
_CELLS = 1 << 20
Integers = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Variable:
    """One line of the public dictionary. ``bounds`` are in the unit of the data, before ``transform``."""

    name: str
    kind: Kind = "continuous"
    bounds: tuple[float, float] = (0.0, 1.0)
    unit: str = ""
    transform: Transform = "identity"
    tier: int | None = None
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not (low < high and math.isfinite(abs(low) + abs(high))):
            raise ConfigurationError(
                f"Variable {self.name!r} has bounds [{low}, {high}]: give two finite numbers, low < high."
            )
        if self.transform == "log1p" and low <= -1:
            raise ConfigurationError(
                f"Variable {self.name!r} has transform log1p, so its low bound {low} must exceed -1."
            )

    def transformed(self, values: Floats) -> Floats:
        """Clip to the bounds, then transform; (n,) in, (n,) out."""
        clipped = np.clip(values, *self.bounds)
        return np.log1p(clipped) if self.transform == "log1p" else clipped

    @property
    def centre(self) -> float:
        low, high = self.transformed(np.array(self.bounds))
        return float(low + high) / 2

    @property
    def half(self) -> float:
        low, high = self.transformed(np.array(self.bounds))
        return float(high - low) / 2


@dataclass(frozen=True)
class Dictionary:
    """The public feature map of a study.

    ``clip`` is C², the bound on ‖x‖² of a record x = (1, φ(z)); ``lattice`` the steps per scaled unit. One record
    added or removed moves M by at most C² in Frobenius norm, on the lattice as in the reals.
    """

    variables: tuple[Variable, ...]
    clip: float
    lattice: int = 1024

    def __post_init__(self) -> None:
        categorical = [v.name for v in self.variables if v.kind == "categorical"]
        if categorical:
            raise ConfigurationError(
                f"Variables {categorical} are categorical, but the identity feature map takes numbers only: "
                "take the features one-hot, or declare one binary variable for each level but one."
            )
        if not 1 < self.clip <= len(self.variables) + 1:
            raise ConfigurationError(
                f"The clip C² is {self.clip}, but must lie in (1, {len(self.variables) + 1}]: x = (1, φ) has norm 1 at "
                f"least, and at most {len(self.variables) + 1} with {len(self.variables)} variables in [-1, 1]."
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variable.name for variable in self.variables)

    @property
    def blocks(self) -> tuple[int, ...]:
        return ()

    @property
    def centre(self) -> Tensor:
        return torch.tensor([v.centre for v in self.variables], dtype=torch.float64)

    @property
    def half(self) -> Tensor:
        return torch.tensor([v.half for v in self.variables], dtype=torch.float64)

    def encode(self, frame: pd.DataFrame) -> Floats:
        """(n, d) float64 in [-1, 1]: transformed, clipped to public bounds and scaled, columns in `names` order."""
        columns = [(v.transformed(numbers(frame, v.name)) - v.centre) / v.half for v in self.variables]
        return np.clip(np.stack(columns, axis=1), -1.0, 1.0) if columns else np.empty((len(frame), 0))

    def lattice_rows(self, frame: pd.DataFrame) -> Integers:
        """(n, d+1) int64: x in steps of the lattice, with ‖row‖² ≤ C²·lattice² exactly.

        The constant stays whole so that M[0, 0] counts records; the rest of a record that is too long is scaled down
        and truncated towards zero, which can only shorten it.
        """
        return on_lattice(self.encode(frame), self.clip, self.lattice)


def on_lattice(features: Floats, clip: float, steps: int) -> Integers:
    """(n, k) features φ -> (n, k+1) int64: x = (1, φ) in ``steps`` per unit, with ‖row‖² ≤ clip·steps² exactly."""
    rows = np.rint(features * steps).astype(np.int64)
    room = math.floor(clip * steps * steps) - steps * steps
    squared = (rows * rows).sum(axis=1)
    shrink = np.sqrt(room / np.maximum(squared, 1))
    too_long = squared > room
    rows[too_long] = np.trunc(rows[too_long] * shrink[too_long, None] * (1 - 1e-12)).astype(np.int64)
    return np.concatenate([np.full((len(rows), 1), steps, dtype=np.int64), rows], axis=1)


class FeatureRows(Protocol):
    """A public map of records to bounded rows on a lattice: a `Dictionary`, or a `features.FeatureMap`.

    ``clip`` is C², and ``blocks`` the columns of each variable, empty where each has one.
    """

    @property
    def variables(self) -> tuple[Variable, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def blocks(self) -> tuple[int, ...]: ...
    @property
    def clip(self) -> float: ...
    @property
    def lattice(self) -> int: ...
    @property
    def centre(self) -> Tensor: ...
    @property
    def half(self) -> Tensor: ...
    def lattice_rows(self, frame: pd.DataFrame) -> Integers: ...


@dataclass(frozen=True)
class Evidence:
    """Second moments of x = (1, z) over n records, in scaled units; ``noise`` is σ of the matrix E added to them.

    Attributes
    ----------
    names : d variable names, in the order of the columns of z.
    moments : (k+1, k+1) float64, Σ x xᵀ, with k the columns of z: d, one of each variable, if there are no blocks.
    noise : σ ≥ 0 in the units of ``moments``; 0 for exact evidence.
    centre, half : (k,) float64; a value in natural units is ``centre + half * z``.
    blocks : the number of columns of each variable, where a feature map gives it several (`features.py`); else ().
    """

    names: tuple[str, ...]
    moments: Tensor
    noise: float = 0.0
    centre: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    half: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        d = len(self.names)
        if len(set(self.names)) != d:
            raise ConfigurationError(f"Variable names must differ, but are {self.names}.")
        if self.blocks and (len(self.blocks) != d or min(self.blocks) < 1):
            raise ConfigurationError(
                f"Evidence of {d} variables has blocks of {self.blocks} columns: give each variable one column or more."
            )
        if set(self.blocks) == {1}:
            object.__setattr__(self, "blocks", ())
        k = self.d
        if self.centre.numel() == 0 and k:
            object.__setattr__(self, "centre", torch.zeros(k, dtype=torch.float64))
            object.__setattr__(self, "half", torch.ones(k, dtype=torch.float64))
        if self.moments.shape != (k + 1, k + 1) or self.moments.dtype != torch.float64:
            raise ConfigurationError(
                f"Evidence of {d} variables in {k} columns needs float64 moments of shape {(k + 1, k + 1)}, but they "
                f"are {self.moments.dtype} {tuple(self.moments.shape)}."
            )
        if not bool(torch.isfinite(self.moments).all()) or not math.isfinite(self.noise) or self.noise < 0:
            raise DataError(f"Evidence must be finite and its noise ≥ 0, but the noise is {self.noise}.")
        if bool(((self.moments - self.moments.T).abs() > 1e-6 * self.moments.abs().max()).any()):
            raise DataError(
                "Second moments are symmetric, and these are not: entries (i, j) and (j, i) differ by up to "
                f"{float((self.moments - self.moments.T).abs().max()):.3g}. Give both halves of the same matrix."
            )
        if self.count <= 0:
            raise DataError(
                f"The evidence counts {self.count:.4g} records: too few for its noise of {self.noise:.4g}. "
                "Use more records or a larger epsilon."
            )

    @staticmethod
    def from_data(frame: pd.DataFrame, dictionary: FeatureRows | None = None) -> Evidence:
        """Exact evidence of the rows of ``frame``: on the study's lattice with a dictionary, standardised without."""
        if dictionary is None:
            return _standardised(frame)
        rows = dictionary.lattice_rows(frame)
        moments = torch.from_numpy(rows.T @ rows).double() / dictionary.lattice**2
        return Evidence(dictionary.names, moments, 0.0, dictionary.centre, dictionary.half, dictionary.blocks)

    @staticmethod
    def from_release(triangle: Integers, dictionary: FeatureRows, sigma: int) -> Evidence:
        """What a member released: the upper triangle of the noisy integer M, row-major, and the study's σ."""
        p = columns_of(dictionary) + 1
        if triangle.shape != (p * (p + 1) // 2,):
            raise DataError(f"Evidence of {p - 1} columns has {p * (p + 1) // 2} entries, but {triangle.shape} came.")
        moments = torch.zeros(p, p, dtype=torch.float64)
        rows, columns = np.triu_indices(p)
        values = torch.from_numpy(triangle.astype(np.float64)) / dictionary.lattice**2
        moments[rows, columns] = values
        moments[columns, rows] = values
        noise = sigma / dictionary.lattice**2
        return Evidence(dictionary.names, moments, noise, dictionary.centre, dictionary.half, dictionary.blocks)

    @property
    def d(self) -> int:
        """The columns of z: one of each variable, or those of its block."""
        return sum(self.blocks) if self.blocks else len(self.names)

    @property
    def count(self) -> float:
        """The (noisy) number of records: M[0, 0]."""
        return float(self.moments[0, 0])

    def mean(self) -> Tensor:
        """(k,) mean in scaled units."""
        return self.moments[0, 1:] / self.count

    def covariance(self) -> Tensor:
        """(k, k) covariance in scaled units (divisor n); with noise it need not be positive definite."""
        mean = self.mean()
        return self.moments[1:, 1:] / self.count - torch.outer(mean, mean)

    def correlation(self) -> Tensor:
        """(k, k) correlation; a variance that noise made non-positive is a DataError naming the variable."""
        covariance = self.covariance()
        variances = covariance.diagonal()
        if bool((variances <= 0).any()):
            name = [n for n in self.names for _ in self.columns(n)][int(variances.argmin())]
            raise DataError(
                f"Variable {name!r} has variance {float(variances.min()):.3g} in the evidence: it is constant or "
                "drowned in noise. Drop it, widen nothing, or use more records or a larger epsilon."
            )
        scale = variances.rsqrt()
        return covariance * torch.outer(scale, scale)

    @property
    def n_eff(self) -> float:
        """1 / (1/n + s²), with s² the mean noise variance of a correlation entry:
        the records' worth of the evidence.
        """
        if self.noise == 0 or self.d < 2:
            return self.count
        variances = self.covariance().diagonal()
        floor = self.noise / self.count
        inverse = 1 / variances.clamp_min(floor)
        pairs = torch.triu(torch.outer(inverse, inverse), diagonal=1).sum() / (self.d * (self.d - 1) / 2)
        s2 = 0.5 * (self.noise / self.count) ** 2 * float(pairs)
        return 1 / (1 / self.count + s2)

    def columns(self, name: str) -> range:
        """The columns of z that are the variable's."""
        try:
            place = self.names.index(name)
        except ValueError:
            raise MisuseError(f"There is no variable {name!r}; the evidence has {', '.join(self.names)}.") from None
        if not self.blocks:
            return range(place, place + 1)
        start = sum(self.blocks[:place])
        return range(start, start + self.blocks[place])

    def index(self, name: str) -> int:
        """The column of a variable that has one."""
        columns = self.columns(name)
        if len(columns) != 1:
            raise MisuseError(
                f"{name!r} has {len(columns)} columns in this evidence of features, where one number was asked for. "
                "Use evidence of the identity feature map here."
            )
        return columns[0]

    def select(self, names: Sequence[str]) -> Evidence:
        """The evidence of some of the variables, in the order given."""
        owned = [self.columns(name) for name in names]
        columns = [c for own in owned for c in own]
        cells = [0, *(c + 1 for c in columns)]
        return Evidence(
            tuple(names),
            self.moments[cells][:, cells],
            self.noise,
            self.centre[columns],
            self.half[columns],
            tuple(map(len, owned)),
        )

    def noise_of(self, gradient: Tensor) -> float:
        """Standard deviation of ⟨E, A⟩ = σ·‖A‖_F for a symmetric A = ``gradient`` of shape (k+1, k+1)."""
        return self.noise * float(torch.linalg.matrix_norm(gradient))

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "moments": self.moments.tolist(),
            "noise": self.noise,
            "centre": self.centre.tolist(),
            "half": self.half.tolist(),
            **({"blocks": list(self.blocks)} if self.blocks else {}),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Evidence:
        def tensor(name: str) -> Tensor:
            return torch.tensor(value[name], dtype=torch.float64)

        try:
            return Evidence(
                tuple(value["names"]),
                tensor("moments"),
                float(value["noise"]),
                tensor("centre"),
                tensor("half"),
                tuple(map(int, value.get("blocks", ()))),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"The evidence is not in its JSON form: {error}.") from error


def columns_of(rows: FeatureRows) -> int:
    """How many features the map makes of a record, without the constant."""
    return sum(rows.blocks) if rows.blocks else len(rows.names)


@dataclass(frozen=True)
class Partial:
    """A partial correlation and Fisher's z of it, with the two parts of its standard error (both on the z scale)."""

    correlation: float
    z: float
    sampling_error: float
    privacy_error: float

    @property
    def standard_error(self) -> float:
        return math.hypot(self.sampling_error, self.privacy_error)


NO_POWER = Partial(0.0, 0.0, math.inf, math.inf)


def partial(evidence: Evidence, a: str, b: str, given: Sequence[str] = ()) -> Partial:
    """The partial correlation of a and b given a set, each one column: see `correlated`."""
    rows = [_unit(evidence, name) for name in (a, b, *given)]
    return correlated(evidence, torch.stack(rows[:2]), torch.stack([_unit(evidence), *rows[2:]]))


def correlated(evidence: Evidence, pair: Tensor, basis: Tensor) -> Partial:
    """The partial correlation of two linear functions of x given others, by Fisher's z (Fisher 1924) with noise-aware
    standard error. ``pair`` (2, k+1), ``basis`` (s, k+1): coefficients on x = (1, z), the constant first in the basis.

    Sampling: 1/√(n - |S| - 3). Privacy: with u, w the residual coefficient vectors of a and b on (1, S), normalised to
    uᵀMu = wᵀMw = 1, the gradient of ρ = uᵀMw is sym(u wᵀ) - ρ/2·(u uᵀ + w wᵀ), because residuals are orthogonal to S.
    Evidence too noisy to have positive residual variances has no power: z = 0 with an infinite standard error.
    """
    free = evidence.count - (len(basis) - 1) - 3
    residuals = _residual_vectors(evidence.moments, pair, basis)
    if residuals is None or free <= 0:
        return NO_POWER
    u, w = residuals
    rho = float(u @ evidence.moments @ w)
    if abs(rho) >= 1:
        return NO_POWER
    cross = torch.outer(u, w)
    gradient = (cross + cross.T) / 2 - rho / 2 * (torch.outer(u, u) + torch.outer(w, w))
    return Partial(rho, math.atanh(rho), free**-0.5, evidence.noise_of(gradient) / (1 - rho * rho))


def _unit(evidence: Evidence, name: str | None = None) -> Tensor:
    """(k+1,) the coefficients of a variable of one column, or of the constant."""
    row = torch.zeros(evidence.d + 1, dtype=torch.float64)
    row[0 if name is None else evidence.index(name) + 1] = 1.0
    return row


def moments_of(z: Floats) -> Tensor:
    """(d+1, d+1): Σ x xᵀ of the rows x = (1, z), z (n, d)."""
    x = np.concatenate([np.ones((len(z), 1)), z], axis=1)
    return torch.from_numpy(x.T @ x)


def add(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of all records together: moments add. The scale and the order of names are those of the first part.

    Parts may have scales of their own if they are exact: x' = T x gives M' = T M Tᵀ. Noise, which that would deform,
    adds in squares where the scales are one.

    Raises:
        MisuseError: no part, or parts of different variables or feature maps.
        DataError: noisy parts of different scales.
    """
    if not parts:
        raise MisuseError("There is no evidence to add. Give one part or more.")
    first, moments = parts[0], torch.zeros_like(parts[0].moments)
    for part in parts:
        if odd := sorted(set(part.names) ^ set(first.names)):
            raise MisuseError(
                f"Evidence of different variables does not add: {', '.join(odd)} stand in some parts only."
            )
        own = part.select(first.names)
        if own.blocks != first.blocks:
            raise MisuseError(
                f"Evidence of different feature maps does not add: columns {own.blocks or 'one each'} and "
                f"{first.blocks or 'one each'}. Make all parts by one map."
            )
        moments += _rescaled(own, first)
    noise = math.sqrt(sum(part.noise**2 for part in parts))
    return Evidence(first.names, moments, noise, first.centre, first.half, first.blocks)


def _rescaled(part: Evidence, like: Evidence) -> Tensor:
    """The moments of ``part`` in the scale of ``like``."""
    if torch.equal(part.centre, like.centre) and torch.equal(part.half, like.half):
        return part.moments
    if part.noise:
        raise DataError("Noisy evidence of different scales does not add. Release both under one dictionary.")
    change = torch.eye(part.d + 1, dtype=torch.float64)
    change[1:, 0] = (part.centre - like.centre) / like.half
    change[1:, 1:] = (part.half / like.half).diag()
    return change @ part.moments @ change.T


def _residual_vectors(moments: Tensor, pair: Tensor, basis: Tensor) -> Tensor | None:
    """(2, p): the coefficients of the residuals of ``pair`` on ``basis``, with unit residual variance."""
    held = basis @ moments
    factor, failed = torch.linalg.cholesky_ex(held @ basis.T)
    if int(failed):
        return None
    vectors = pair - torch.cholesky_solve(held @ pair.T, factor).T @ basis
    variances = ((vectors @ moments) * vectors).sum(dim=1)
    if not bool((variances > 0).all()):
        return None
    return vectors * variances.rsqrt()[:, None]


def _standardised(frame: pd.DataFrame) -> Evidence:
    names = tuple(str(name) for name in frame.columns)
    x = np.ones((len(names) + 1, len(frame)))  # a variable's values side by side, and no copy of them all
    z = x[1:]
    _fill(z, frame)
    constant = [name for name, row in zip(names, z, strict=True) if row[0] == row[-1] and np.ptp(row) == 0]
    if constant:
        raise DataError(f"Columns {constant} are constant: they carry no evidence. Drop them.")
    centre = z.mean(axis=1)
    z -= centre[:, None]
    half = np.sqrt(np.einsum("ij,ij->i", z, z) / len(frame))
    z /= half[:, None]
    return Evidence(names, torch.from_numpy(x @ x.T), 0.0, torch.from_numpy(centre), torch.from_numpy(half))


def _fill(z: Floats, frame: pd.DataFrame) -> None:
    """The columns of the frame, as `numbers` gives them, into the rows of z (d, n)."""
    if frame.columns.is_unique and all(dtype == np.float64 for dtype in frame.dtypes):
        step = max(1, _CELLS // max(1, len(z)))
        for start in range(0, len(frame), step):  # many columns at once, and no copy of them all
            z[:, start : start + step] = frame.iloc[start : start + step].to_numpy().T
        with np.errstate(all="ignore"):  # what is not finite has no finite sum
            if len(frame) and np.isfinite(z.sum(axis=1)).all():
                return
    for row, name in zip(z, frame.columns, strict=True):
        row[:] = numbers(frame, name)


def numbers(frame: pd.DataFrame, name: str) -> Floats:
    if name not in frame.columns:
        raise DataError(f"The column {name!r} is missing; the data have {', '.join(map(str, frame.columns))}.")
    try:
        values = frame[name].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"The column {name!r} holds something that is not a number.") from error
    if values.ndim > 1:
        raise DataError(
            f"{list(frame.columns).count(name)} columns are named {name!r}. Give each column a name of its own."
        )
    if len(values) == 0:
        raise DataError(f"The column {name!r} has no rows.")
    if not np.isfinite(values).all():
        raise DataError(f"The column {name!r} holds missing or infinite values: impute or drop those records first.")
    return values
