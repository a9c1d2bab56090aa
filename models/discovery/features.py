"""Feature maps: blocks of bounded columns whose second moments are evidence of nonlinear and of mixed dependence.

A map is public: it is made from the dictionary of the variables and from options, never from rows. It gives each
variable a block of columns:

- ``identity``: the number itself, scaled;
- ``one-hot``: of a categorical variable an indicator of each level but the first; numbers as they are;
- ``fourier``: of a number z, m Fourier features √(2/m)·cos(ω z + b) of the Gaussian kernel exp(-(z - z')²/2w²) with w
  the ``width`` (Rahimi & Recht, 2007), and with ``linear`` z too; categorical variables as in one-hot, binary ones as
  numbers. Frequencies come in pairs of a sine and a cosine, one pair drawn from each of m/2 equally likely ranges.

If two variables are independent, products of functions of one with functions of the other average to the products of
the averages; with enough features only then. So tests and scores on the moments of blocks (`blocks.py`,
`block_score.py`) see what those on numbers miss. Few features see smooth dependence alone, and what a sum of functions
of single variables does not explain (x·y, say) is not partialled out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from torch import Tensor

from causaldao.errors import ConfigurationError, DataError
from causaldao.models.discovery.evidence import Evidence, Floats, Integers, Variable, numbers, on_lattice

_SAME = 1e-10

Features = Literal["identity", "one-hot", "fourier"]
_CHANCE = 1e-9  # that noise alone makes evidence look impossible
_ROUNDING = 1e-9


@dataclass(frozen=True)
class FeatureMap:
    """A public map of records to blocks of features. It can stand where a `Dictionary` makes evidence.

    Attributes
    ----------
    variables : the dictionary; ``levels`` of a categorical variable are all that it may take, at least two.
    features : the kind of map, see the module.
    waves : m, the Fourier features of a number.
    width : w, in the unit of the scaled number: in `from_data` its standard deviation; on the lattice half the distance
        of its bounds, of which most data lie in a small part: take less there.
    linear : whether a Fourier block has the number itself as well.
    seed : of the frequencies; public, and one for all members of a study.
    clip : C², the bound on ‖x‖² of a row x = (1, φ) on the lattice; ∞ stands for the least that shortens no row.
    lattice : steps per unit of a feature.
    """

    variables: tuple[Variable, ...]
    features: Features = "fourier"
    waves: int = 20
    width: float = 0.5
    linear: bool = True
    seed: int = 0
    clip: float = math.inf
    lattice: int = 1024

    def __post_init__(self) -> None:
        if self.features not in get_args(Features):
            raise ConfigurationError(f"features is {self.features!r}. Give one of {', '.join(get_args(Features))}.")
        if self.waves < 1 or not 0 < self.width < math.inf or self.lattice < 1:
            raise ConfigurationError(
                f"waves is {self.waves}, width {self.width} and lattice {self.lattice}: give 1 wave or more, a finite "
                "width above 0 and 1 step or more."
            )
        for variable in self.variables:
            self._check(variable)
        if math.isinf(self.clip):
            object.__setattr__(self, "clip", self._most())
        if not 1 < self.clip <= self._most():
            raise ConfigurationError(
                f"The clip C² is {self.clip}, but must lie in (1, {self._most():.6g}]: x = (1, φ) has norm 1 at least, "
                f"and no more than that with these {sum(self.blocks)} features."
            )

    def _check(self, variable: Variable) -> None:
        if variable.kind != "categorical":
            return
        if self.features == "identity":
            raise ConfigurationError(
                f"Variable {variable.name!r} is categorical, but the identity feature map takes numbers only: take "
                "one-hot or fourier."
            )
        if len(variable.levels) < 2 or len(set(variable.levels)) != len(variable.levels):
            raise ConfigurationError(
                f"Variable {variable.name!r} is categorical and has the levels {list(variable.levels)}: give all its "
                "levels, two or more, each once."
            )

    def _most(self) -> float:
        """The largest ‖x‖² there is, and room for the rounding of every feature to the lattice.

        A pair of waves has (2/m)·(sin² + cos²), so the waves of a number have 1, or a little more if m is odd.
        """
        waves = 2.0 * -(-self.waves // 2) / self.waves
        most = 1.0 + sum(waves + self.linear if self._waved(variable) else 1.0 for variable in self.variables)
        return most + 2 * math.sqrt(most * sum(self.blocks)) / self.lattice

    @property
    def least(self) -> float:
        """The smallest ‖x‖² that a record can have: where the clip is below it, every record is shortened."""
        return 1.0 + sum(2 * (self.waves // 2) / self.waves for v in self.variables if self._waved(v))

    def _waved(self, variable: Variable) -> bool:
        return self.features == "fourier" and variable.kind in ("continuous", "count")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variable.name for variable in self.variables)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The number of columns of each variable."""
        return tuple(
            len(v.levels) - 1 if v.kind == "categorical" else self.waves + self.linear if self._waved(v) else 1
            for v in self.variables
        )

    @property
    def centre(self) -> Tensor:
        """(k,) a number's own, in its first column if its waves have it there; 0 of features, which have no other unit
        than their own."""
        return self._by_column([v.centre for v in self.variables], 0.0)

    @property
    def half(self) -> Tensor:
        """(k,) likewise; 1 of features."""
        return self._by_column([v.half for v in self.variables], 1.0)

    def _by_column(self, own: Sequence[float], other: float) -> Tensor:
        found = []
        for variable, size, value in zip(self.variables, self.blocks, own, strict=True):
            number = variable.kind != "categorical" and (self.linear or not self._waved(variable))
            found += [value if number else other, *[other] * (size - 1)]
        return torch.tensor(found, dtype=torch.float64)

    def plain(self, evidence: Evidence) -> Evidence:
        """The evidence of this map with the waves left out: a number is one column again; levels keep theirs.

        Raises:
            ConfigurationError: a map of waves without the number itself.
        """
        waved = {variable.name for variable in self.variables if self._waved(variable)}
        if waved and not self.linear:
            raise ConfigurationError("Waves without the number itself have no plain evidence: take linear = True.")
        owned = [list(evidence.columns(name))[: 1 if name in waved else None] for name in evidence.names]
        columns = [c for own in owned for c in own]
        cells = [0, *(c + 1 for c in columns)]
        return replace(
            evidence, moments=evidence.moments[cells][:, cells], centre=evidence.centre[columns],
            half=evidence.half[columns], blocks=tuple(map(len, owned)),
        )  # fmt: skip

    def impossible(self, evidence: Evidence) -> str:
        """Why no records at all make this evidence, whatever its noise; "" if some may.

        A record has one level, so two indicators of a variable never meet, and an indicator is its own square. The
        waves of a number have a known norm. A record that was shortened has less of each. What noise of the declared
        scale does once in a billion times is let pass.
        """
        sigma, most = evidence.noise, NormalDist().inv_cdf(1 - _CHANCE / (2 * max(1, evidence.d**2)))
        for name, wrong, excess, parts in self._limits(evidence):
            if excess > most * sigma * math.sqrt(parts) + _ROUNDING * evidence.count:
                return (
                    f"{wrong.format(repr(name))} by {excess:.4g} records, where noise of {sigma:.4g} allows "
                    f"{most * sigma * math.sqrt(parts):.4g}"
                )
        return ""

    def _limits(self, evidence: Evidence) -> Iterator[tuple[str, str, float, float]]:
        """(variable, what is exceeded, by how much, the noise variance of that in σ²)."""
        count, whole = evidence.count, self.clip >= self._most() * (1 - 1e-9)
        for variable in self.variables:
            cells = [1 + c for c in evidence.columns(variable.name)]
            sums, own = evidence.moments[0, cells], evidence.moments[cells][:, cells]
            name, squares = variable.name, own.diagonal()
            if variable.kind == "categorical":
                both, size = own - squares.diag(), len(cells)
                beyond = squares - sums
                yield name, "two levels of {} are taken at once", float(both.abs().max()), 0.5
                yield (
                    name,
                    "a level of {} differs from its square",
                    float((beyond.abs() if whole else beyond).max()),
                    1.5,
                )
                yield name, "a level of {} is negative", float((-sums).max()), 0.5
                yield name, "the levels of {} exceed the records", float(sums.sum()) - count, 1 + size / 2
                continue
            waves = squares[int(self.linear) :] if self._waved(variable) else squares[:0]
            yield name, "the square of {} exceeds its bounds", float(squares[0]) - count, 2.0
            if len(waves):
                norm = 2.0 * -(-self.waves // 2) / self.waves
                room = 2 * math.sqrt(norm * len(waves)) / self.lattice * count
                beyond = waves.sum() - norm * count
                two = whole and self.waves % 2 == 0
                excess = float(beyond.abs() if two else beyond) - room
                yield name, "the waves of {} have another norm", excess, len(waves) + norm**2

    def lattice_rows(self, frame: pd.DataFrame) -> Integers:
        """(n, k+1) int64: (1, φ) in lattice steps, numbers clipped to their bounds; ‖row‖² ≤ C²·lattice² exactly.

        Raises:
            DataError: a missing column, no rows, a value that is no finite number or no declared level.
        """
        scaled = {
            v.name: np.clip((v.transformed(numbers(frame, v.name)) - v.centre) / v.half, -1.0, 1.0)
            for v in self.variables
            if v.kind != "categorical"
        }
        return on_lattice(self._encode(frame, scaled), self.clip, self.lattice)

    def _encode(self, frame: pd.DataFrame, scaled: Mapping[str, Floats]) -> Floats:
        """(n, k) features of the scaled numbers, and of the levels in the frame."""
        parts = [self._block(v, scaled[v.name]) if v.name in scaled else _indicators(frame, v) for v in self.variables]
        return np.concatenate(parts, axis=1) if parts else np.empty((len(frame), 0))

    def _block(self, variable: Variable, z: Floats) -> Floats:
        if not self._waved(variable):
            return z[:, None]
        frequencies, phases = _waves(self.seed, variable.name, self.waves)
        waves = math.sqrt(2 / self.waves) * np.cos(np.outer(z, frequencies / self.width) + phases)
        return np.concatenate([z[:, None], waves], axis=1) if self.linear else waves


def from_data(frame: pd.DataFrame, feature_map: FeatureMap) -> Evidence:
    """Exact evidence of an institution's own rows, through a public map: each number transformed (log1p, if it is
    declared so) and then standardised by the rows' mean and standard deviation, whatever its bounds.

    Raises:
        DataError: a missing or constant column, a value that is no finite number or no declared level, a level that no
            row has, no more rows than columns of features.
    """
    scaled = {v.name: _standard(frame, v) for v in feature_map.variables if v.kind != "categorical"}
    _refuse_copies(scaled)
    features = feature_map._encode(frame, scaled)
    n, k = features.shape
    if n <= k + 1:
        most = max(feature_map.variables, key=lambda variable: len(variable.levels))
        wide = f" ({most.name!r} alone has {len(most.levels)} levels: is it a name, a number, a date?)"
        raise DataError(
            f"{n} rows make {k} columns of features: give more than {k + 1} rows, or fewer features"
            f"{wide if len(most.levels) > n / 2 else ''}."
        )
    for variable in feature_map.variables:
        if variable.kind == "categorical":
            _require_levels(frame, variable)
    x = np.concatenate([np.ones((n, 1)), features], axis=1)
    return Evidence(feature_map.names, torch.from_numpy(x.T @ x), blocks=feature_map.blocks)


def _refuse_copies(scaled: Mapping[str, Floats]) -> None:
    """Two numbers of which one is the other but for its unit: their waves differ, so no matrix of features tells."""
    if len(scaled) < 2:
        return
    values = np.stack([*scaled.values()])
    alike = np.triu(np.abs(values @ values.T) / values.shape[1] > 1 - _SAME, k=1)
    if alike.any():
        a, b = (list(scaled)[place] for place in np.argwhere(alike)[0])
        raise DataError(
            f"The columns {a!r} and {b!r} are one number in two units: beside one of them nothing depends on the "
            "other. Drop one."
        )


def variables_of(frame: pd.DataFrame) -> tuple[Variable, ...]:
    """What the columns of a table look like: text is categorical, its levels those seen, the most frequent first;
    columns of two numbers are binary, others continuous. For `from_data` only: it reads rows, where a study declares.
    DataError for text that is the same in all rows.
    """
    return tuple(_guessed(str(name), frame[name]) for name in frame.columns)


def _guessed(name: str, column: pd.Series) -> Variable:
    if column.dtype.kind in "biuf":
        return Variable(name, "binary" if column.nunique() == 2 else "continuous")
    levels = tuple(map(str, column.dropna().value_counts().index))
    if len(levels) < 2:
        raise DataError(f"The column {name!r} is constant at {', '.join(levels)}: it carries no evidence. Drop it.")
    return Variable(name, "categorical", levels=levels)


def _standard(frame: pd.DataFrame, variable: Variable) -> Floats:
    values = numbers(frame, variable.name)
    if variable.transform == "log1p":
        if values.min() <= -1:
            raise DataError(f"The column {variable.name!r} has {values.min():g}, and log1p takes more than -1.")
        values = np.log1p(values)
    if np.ptp(values) == 0:
        raise DataError(f"The column {variable.name!r} is constant at {values[0]:g}: it carries no evidence. Drop it.")
    standard: Floats = (values - values.mean()) / values.std()
    return standard


def _indicators(frame: pd.DataFrame, variable: Variable) -> Floats:
    """(n, levels - 1) of 0 and 1; none for the first level."""
    values = _levels(frame, variable)
    return np.stack([values == level for level in variable.levels[1:]], axis=1).astype(np.float64)


def _levels(frame: pd.DataFrame, variable: Variable) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    if variable.name not in frame.columns:
        raise DataError(f"The column {variable.name!r} is missing; the data have {', '.join(map(str, frame.columns))}.")
    column = frame[variable.name]
    if len(column) == 0 or column.isna().any():
        raise DataError(
            f"The column {variable.name!r} has missing values or no rows: drop those records or make it a level."
        )
    values = column.astype(str).to_numpy(dtype=object)
    if unknown := sorted(set(values) - set(variable.levels)):
        raise DataError(
            f"The column {variable.name!r} holds {unknown[:3]}, and its levels are {list(variable.levels)}: declare "
            "every level, or mend the values."
        )
    return values


def _require_levels(frame: pd.DataFrame, variable: Variable) -> None:
    seen = set(_levels(frame, variable))
    if absent := [level for level in variable.levels if level not in seen]:
        raise DataError(
            f"No row of {len(frame)} has level {absent[0]!r} of {variable.name!r}: here declare the levels there are."
        )


def _waves(seed: int, name: str, count: int) -> tuple[Floats, Floats]:
    """(frequencies, phases), (count,) each, from a hash: the same on every machine and with every version of NumPy.

    Frequencies of a standard normal law, positive, for the sign of ω only turns the phase.
    """
    pairs = -(-count // 2)
    bits = hashlib.shake_256(f"{seed}\0{name}".encode()).digest(16 * pairs)
    uniform = (np.frombuffer(bits, dtype="<u8").astype(np.float64) / 2**64).clip(0, 1 - 2**-53)
    shares = (np.arange(pairs) + uniform[:pairs]) / pairs
    frequencies, phases = norm.ppf((1 + shares) / 2), 2 * math.pi * uniform[pairs:]
    both = np.stack([phases, phases - math.pi / 2], axis=1)
    return np.repeat(frequencies, 2)[:count], both.ravel()[:count]
