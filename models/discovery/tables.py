"""Counts of discrete variables: what tests and scores of discrete data are made from, and what a member may share.

`LocalTables` counts any set of its variables on demand; its rows stay inside it, coded in one or two bytes a value.
`SharedTables` are all the m-way tables of d variables, as a member released them, perhaps noisy. A record falls in
one cell of each of the C(d, m) tables, so adding or removing it moves all of them together by sqrt(C(d, m)) in
Euclidean norm: Gaussian noise of scale σ on every cell has the noise multiplier σ / sqrt(C(d, m)).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, combinations
from typing import Any, Protocol

import numpy as np
import pandas as pd

from causaldao.errors import ConfigurationError, DataError, MisuseError

MAX_LEVELS = 1 << 10
MAX_CELLS = 1 << 20  # of one table that is counted
MAX_SHARED = 1 << 24  # of all tables that are shared
_CACHED = 1 << 22  # cells, and codes of records, that are kept
_BLOCK = 1 << 16  # codes that are counted at a time
_DENSE = 1 << 16  # strata that are counted by their number; more are numbered as they are met

Floats = np.ndarray[Any, np.dtype[np.float64]]
Codes = np.ndarray[Any, np.dtype[Any]]
Key = tuple[int, ...]


class Tables(Protocol):
    """Counts of discrete variables. Where they are noisy, the cells of a table have independent Gaussian noise.

    Attributes
    ----------
    names, levels : d names, and how many levels each variable has.
    count : the (noisy) number of records.
    most : how many variables a table may have.
    """

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def levels(self) -> tuple[int, ...]: ...
    @property
    def count(self) -> float: ...
    @property
    def most(self) -> int: ...

    def table(self, variables: Sequence[str]) -> Floats:
        """The counts, float64, an axis for each of the variables in the order given."""
        ...

    def strata(self, given: Sequence[str], within: Sequence[str], others: Sequence[str]) -> Floats | None:
        """(q, r, L): in each stratum of ``given`` and cell of ``within``, the counts of each level of each of the
        ``others``, one after another; L is the sum of their levels. Exact empty strata may be left out. None where
        the table with one of the others has more variables or cells than can be counted.
        """
        ...

    def noise(self, variables: Sequence[str]) -> float:
        """The standard deviation of the noise of each cell of `table`; 0 for exact counts."""
        ...


class NoiseSource(Protocol):
    """What draws the discrete Gaussian: ``size`` integers with P(x) proportional to exp(-x²/(2·variance))."""

    def discrete_gaussian(self, variance: Fraction, size: int) -> np.ndarray[Any, np.dtype[np.int64]]: ...


@dataclass(frozen=True, eq=False)
class LocalTables:
    """The counts of rows that do not leave this object; make it by `from_data`.

    ``codes`` holds a (n,) array for each variable, uint8 or uint16. A table may have any number of variables as
    long as it has at most 2^20 cells.
    """

    names: tuple[str, ...]
    levels: tuple[int, ...]
    codes: tuple[Codes, ...] = field(repr=False)
    _tables: _Cache = field(default_factory=lambda: _Cache(_CACHED), repr=False)
    _strata: _Cache = field(default_factory=lambda: _Cache(_CACHED), repr=False)

    @staticmethod
    def from_data(
        frame: pd.DataFrame,
        levels: Mapping[str, int] | None = None,
        bins: int | None = None,
        bounds: Mapping[str, tuple[float, float]] | None = None,
    ) -> LocalTables:
        """The tables of a frame whose columns are codes 0, 1, ..., true or false, or pandas categories.

        ``levels`` declares how many levels variables have; of the others that is the largest code + 1. With
        ``bins`` the columns that are not codes are cut into so many: into equal widths of their ``bounds``, or
        where none are given at quantiles. Quantiles are statistics of the rows that nothing accounts for, so
        tables that will be shared need bounds, which are public.

        Raises:
            DataError: a column that is constant, missing, or holds missing values, fractions (without bins) or
                levels that are not declared; more than 1024 levels; no rows.
            MisuseError: bins below 2; levels or bounds of a column that is not there, or that make no sense; bounds
            without bins, or of a column whose levels are declared.
        """
        _check_options(frame, levels or {}, bins, bounds or {})
        names = tuple(str(name) for name in frame.columns)
        if len(set(names)) != len(names):
            raise ConfigurationError(f"Variable names must differ, but are {names}.")
        if not len(frame):
            raise DataError("The data have no rows.")
        made = [
            _coded(frame[column], name, (levels or {}).get(name), bins, (bounds or {}).get(name))
            for column, name in zip(frame.columns, names, strict=True)
        ]
        return LocalTables(names, tuple(count for _, count in made), tuple(codes for codes, _ in made))

    @property
    def count(self) -> float:
        return float(len(self.codes[0])) if self.codes else 0.0

    @property
    def most(self) -> int:
        return len(self.names)

    def table(self, variables: Sequence[str]) -> Floats:
        """As `Tables.table`. Raises DataError if it had more than 2^20 cells."""
        where = _positions(self.names, variables)
        key = tuple(sorted(where))
        shape = [self.levels[i] for i in key]
        if math.prod(shape) > MAX_CELLS:
            raise DataError(
                f"The table of {', '.join(variables)} has {math.prod(shape)} cells, of at most {MAX_CELLS}. Ask for "
                "fewer variables, or join levels."
            )
        counts: Floats | None = self._tables.get(key)
        if counts is None:
            codes, _ = self._mixed(key)
            counts = np.bincount(codes, minlength=math.prod(shape)).reshape(shape).astype(np.float64)
            counts.flags.writeable = False
            self._tables.put(key, counts, counts.size)
        return counts.transpose([key.index(i) for i in where])

    def strata(self, given: Sequence[str], within: Sequence[str], others: Sequence[str]) -> Floats | None:
        """As `Tables.strata`; where there are many strata the empty ones are left out."""
        codes, q = self._numbered(tuple(sorted(_positions(self.names, given))))
        inner, last = _positions(self.names, within), _positions(self.names, others)
        sizes = [self.levels[i] for i in last]
        r, width = math.prod(self.levels[i] for i in inner), sum(sizes)
        if q * r * max(sizes) > MAX_CELLS:
            return None
        counts = np.zeros(q * r * width, dtype=np.int64)
        # so many records at a time that they stay in the processor's cache, unless the counts do not
        step = max(1, min(max(_BLOCK, 4 * counts.size), _CACHED) // len(last))
        for start in range(0, len(codes), step):
            group = codes[start : start + step]
            for i in inner:
                group = group * self.levels[i] + self.codes[i][start : start + step]
            group = group * width
            index = np.empty((len(last), len(group)), dtype=np.int64)
            for row, (i, first) in enumerate(zip(last, accumulate(sizes, initial=0), strict=False)):
                np.add(group, self.codes[i][start : start + step], out=index[row])
                index[row] += first
            counts += np.bincount(index.ravel(), minlength=counts.size)
        return counts.reshape(q, r, width).astype(np.float64)

    def noise(self, variables: Sequence[str]) -> float:
        return 0.0

    def _mixed(self, where: Key) -> tuple[Codes, int]:
        """((n,) int64 codes of the joint levels in mixed radix, their number)."""
        codes: Codes = np.zeros(len(self.codes[0]) if self.codes else 0, dtype=np.int64)
        size = 1
        for i in where:
            codes = codes * self.levels[i] + self.codes[i]
            size *= self.levels[i]
        return codes, size

    def _numbered(self, where: Key) -> tuple[Codes, int]:
        """As `_mixed`, but where there are many joint levels only those that occur are numbered."""
        known: tuple[Codes, int] | None = self._strata.get(where)
        if known is not None:
            return known
        if not where:
            return self._mixed(where)
        size = math.prod(self.levels[i] for i in where)
        if size <= min(_DENSE, 4 * len(self.codes[0])):
            found = self._mixed(where)
        else:
            before, _ = self._numbered(where[:-1])
            distinct, codes = np.unique(before * self.levels[where[-1]] + self.codes[where[-1]], return_inverse=True)
            found = codes, len(distinct)
        self._strata.put(where, found, len(found[0]))
        return found


@dataclass(frozen=True, eq=False)
class SharedTables:
    """What a member released: the ``m``-way tables of every m of its variables, with noise of scale ``sigma`` on cells.

    ``tables`` maps the positions of each m variables, ascending, to float64 counts of the shape of their levels. A
    smaller table is a margin; where there is noise, the mean of the margins of all tables that hold it, weighted
    by their precision: that of the margin of a table with r cells to each of its own is 1 / (r·σ²).
    """

    names: tuple[str, ...]
    levels: tuple[int, ...]
    m: int
    tables: Mapping[Key, Floats] = field(repr=False)
    sigma: float = 0.0
    _margins: _Cache = field(default_factory=lambda: _Cache(_CACHED), repr=False)

    def __post_init__(self) -> None:
        d = len(self.names)
        if len(set(self.names)) != d or len(self.levels) != d or any(r < 2 for r in self.levels):
            raise ConfigurationError(
                f"Tables need different names and 2 levels or more of each: {self.names}, {self.levels}."
            )
        _check_ways(d, self.m)
        if not (0 <= self.sigma < math.inf):
            raise DataError(f"The noise of the tables is {self.sigma}: it must be finite and ≥ 0.")
        if set(self.tables) != set(combinations(range(d), self.m)):
            raise DataError(f"{math.comb(d, self.m)} tables of {self.m} of {d} variables are needed, others came.")
        for key, counts in self.tables.items():
            shape = tuple(self.levels[i] for i in key)
            if counts.shape != shape or counts.dtype != np.float64 or not np.isfinite(counts).all():
                listed = ", ".join(self.names[i] for i in key)
                raise DataError(
                    f"The table of {listed} must be finite float64 of shape {shape}, but is {counts.dtype} "
                    f"{counts.shape}."
                )
        if self.count <= 0:
            raise DataError(
                f"The tables count {self.count:.4g} records: too few for their noise of {self.sigma:.4g}. Use more "
                "records, fewer or smaller tables, or a larger epsilon."
            )

    @property
    def count(self) -> float:
        return float(self.table(()))

    @property
    def most(self) -> int:
        return self.m

    def table(self, variables: Sequence[str]) -> Floats:
        """As `Tables.table`. Raises DataError for more than m variables."""
        where = _positions(self.names, variables)
        if len(where) > self.m:
            raise DataError(
                f"The tables that were shared have m = {self.m} variables each, and {', '.join(variables)} are "
                f"{len(where)}. Share larger tables, or ask for {self.m} at most."
            )
        key = tuple(sorted(where))
        counts: Floats | None = self._margins.get(key)
        if counts is None:
            counts = self._margin(key)
            counts.flags.writeable = False
            self._margins.put(key, counts, counts.size)
        return counts.transpose([key.index(i) for i in where])

    def strata(self, given: Sequence[str], within: Sequence[str], others: Sequence[str]) -> Floats | None:
        if len(given) + len(within) + 1 > self.m:
            return None
        r = math.prod(self.levels[i] for i in _positions(self.names, within))
        sizes = [self.levels[i] for i in _positions(self.names, others)]
        tables = [self.table([*given, *within, other]) for other in others]
        return np.concatenate([t.reshape(-1, r, size) for t, size in zip(tables, sizes, strict=True)], axis=2)

    def noise(self, variables: Sequence[str]) -> float:
        if not self.sigma:
            return 0.0
        key = tuple(sorted(_positions(self.names, variables)))
        return self.sigma / math.sqrt(sum(1 / rest for _, rest in self._holding(key)))

    def _margin(self, key: Key) -> Floats:
        holding = self._holding(key)
        if not self.sigma:
            holding = [(holding[0][0], 1)]  # they agree, and whole counts stay whole
        total = np.zeros([self.levels[i] for i in key])
        for found, rest in holding:
            total += self.tables[found].sum(axis=tuple(k for k, i in enumerate(found) if i not in key)) / rest
        return np.asarray(total / sum(1 / rest for _, rest in holding), dtype=np.float64)

    def _holding(self, key: Key) -> list[tuple[Key, int]]:
        """The m-way tables that hold these variables, and how many of their cells make one of the margin."""
        free = [i for i in range(len(self.names)) if i not in key]
        added = combinations(free, self.m - len(key))
        return [(tuple(sorted((*key, *more))), math.prod(self.levels[i] for i in more)) for more in added]


def refuse_unusable(tables: Tables) -> None:
    """Raise DataError for counts of rows that no test or score can be trusted with: a variable with fewer than two
    records to a level, which tells records apart and so determines whatever there is; two variables that are the
    same but for the names of their levels, one of which makes the other independent of everything.

    Tables that were shared are taken as they are: rows are needed to see it, and their noise would hide it.
    """
    if not isinstance(tables, LocalTables):
        return
    told: dict[bytes, str] = {}
    for name, codes in zip(tables.names, tables.codes, strict=True):
        _, first, same = np.unique(codes, return_index=True, return_inverse=True)
        if 2 * len(first) > len(codes):
            raise DataError(
                f"Variable {name!r} has {len(first)} levels in {len(codes)} records: with fewer than two records to a "
                "level it tells records apart and no more. Join levels, take fewer bins, or drop it."
            )
        partition = first[same].astype(np.int64).tobytes()  # each record as the first of its level
        if (other := told.setdefault(partition, name)) != name:
            raise DataError(
                f"Variables {other!r} and {name!r} are the same in all {len(codes)} records, but for the names of "
                "their levels: beside one of them nothing depends on the other. Drop one."
            )


def sensitivity(d: int, m: int) -> float:
    """How far, in Euclidean norm, one record added or removed moves all m-way tables of d variables: sqrt(C(d, m))."""
    _check_ways(d, m)
    return math.sqrt(math.comb(d, m))


def share(tables: Tables, m: int, sigma: Fraction | int = 0, noise: NoiseSource | None = None) -> SharedTables:
    """All m-way tables, with discrete Gaussian noise of scale ``sigma`` on every cell from the source ``noise``.

    The noise multiplier of the release is sigma / `sensitivity`. Names and levels are public; levels must be declared
    before the data are seen. Without noise (sigma 0) the tables protect nobody.

    Raises:
        MisuseError: an m that is not in 1..d, a negative sigma, or a positive one without a source.
        DataError: the tables together have more than 2^24 cells.
    """
    d = len(tables.names)
    _check_ways(d, m)
    if sigma < 0 or (sigma > 0 and noise is None):
        raise MisuseError(f"sigma is {sigma}. Give a number ≥ 0 and, if it is positive, a source of noise.")
    keys = list(combinations(range(d), m))
    cells = sum(math.prod(tables.levels[i] for i in key) for key in keys)
    if cells > MAX_SHARED:
        raise DataError(
            f"The {len(keys)} tables of {m} variables have {cells} cells, of at most {MAX_SHARED}. Share fewer "
            "variables or levels, or a smaller m."
        )
    made = {}
    for key in keys:
        counts = np.array(tables.table([tables.names[i] for i in key]))
        if sigma and noise is not None:
            counts += noise.discrete_gaussian(Fraction(sigma) ** 2, counts.size).reshape(counts.shape)
        made[key] = counts
    return SharedTables(tables.names, tables.levels, m, made, float(sigma))


@dataclass
class _Cache:
    """What was used last, of ``limit`` numbers together at most."""

    limit: int
    held: OrderedDict[Key, tuple[Any, int]] = field(default_factory=OrderedDict)
    size: int = 0

    def get(self, key: Key) -> Any:
        if key not in self.held:
            return None
        self.held.move_to_end(key)
        return self.held[key][0]

    def put(self, key: Key, value: Any, size: int) -> None:
        self.held[key] = value, size
        self.size += size
        while self.size > self.limit and len(self.held) > 1:
            self.size -= self.held.popitem(last=False)[1][1]


def _positions(names: tuple[str, ...], variables: Sequence[str]) -> Key:
    places = {name: i for i, name in enumerate(names)}
    if unknown := [name for name in variables if name not in places]:
        raise MisuseError(f"There is no variable {unknown[0]!r}; the tables have {', '.join(names)}.")
    where = tuple(places[name] for name in variables)
    if len(set(where)) != len(where):
        raise MisuseError(f"A table takes each variable once, and {list(variables)} names one twice.")
    return where


def _check_ways(d: int, m: int) -> None:
    if not 1 <= m <= d:
        raise MisuseError(f"m is {m}. Tables of {d} variables have 1 to {d} of them each.")


def _check_options(
    frame: pd.DataFrame,
    levels: Mapping[str, int],
    bins: int | None,
    bounds: Mapping[str, tuple[float, float]],
) -> None:
    names = [str(name) for name in frame.columns]
    if unknown := sorted((set(levels) | set(bounds)) - set(names)):
        raise MisuseError(f"There are no columns {unknown}; the data have {', '.join(names)}.")
    if bad := [name for name, count in levels.items() if not 2 <= count <= MAX_LEVELS]:
        raise MisuseError(f"{bad[0]!r} is declared with {levels[bad[0]]} levels. Give 2 to {MAX_LEVELS}.")
    if bins is not None and not 2 <= bins <= MAX_LEVELS:
        raise MisuseError(f"bins is {bins}. Give 2 to {MAX_LEVELS}, such as 4.")
    if bounds and bins is None:
        raise MisuseError(f"{min(bounds)!r} has bounds, but bins is not given: say into how many bins to cut it.")
    if both := sorted(set(levels) & set(bounds)):
        raise MisuseError(f"{both[0]!r} has levels and bounds. Give levels to what is coded, bounds to what is cut.")
    for name, (low, high) in bounds.items():
        if not (low < high and math.isfinite(abs(low) + abs(high))):
            raise MisuseError(f"{name!r} has bounds [{low}, {high}]: give two finite numbers, low < high.")


def _coded(
    column: pd.Series[Any], name: str, levels: int | None, bins: int | None, bounds: tuple[float, float] | None
) -> tuple[Codes, int]:
    """(the column's codes in one or two bytes, the number of its levels)."""
    values, declared = _values(column, name)
    if bins is not None and levels is None and declared is None and (bounds is not None or not _codes_already(values)):
        values, declared = _cut(values, bins, bounds)
    if not _codes_already(values):
        raise DataError(
            f"The column {name!r} holds values other than the codes 0, 1, ..., {MAX_LEVELS - 1}, such as "
            f"{_odd(values):g}: give bins to cut it, or code its levels."
        )
    highest = int(values.max())
    count = levels or declared or highest + 1
    if highest >= count:
        raise DataError(f"The column {name!r} has the level {highest}, but {count} levels (0 to {count - 1}) declared.")
    if values.min() == highest:
        raise DataError(f"The column {name!r} is constant: it carries no evidence. Drop it.")
    return values.astype(np.uint8 if count <= 256 else np.uint16), count


def _values(column: pd.Series[Any], name: str) -> tuple[Floats, int | None]:
    """The column as numbers, and how many categories it declares; DataError where a value is missing or no number."""
    declared: int | None = None
    values: Floats
    if isinstance(column.dtype, pd.CategoricalDtype):
        declared = max(2, len(column.cat.categories))
        values = np.array(column.cat.codes, dtype=np.float64)
        values[values < 0] = np.nan
    else:
        try:
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise DataError(f"The column {name!r} holds something that is not a number: code its levels.") from error
    if not np.isfinite(values).all():
        raise DataError(f"The column {name!r} holds missing or infinite values: impute or drop those records first.")
    return values, declared


def _codes_already(values: Floats) -> bool:
    return bool(values.min() >= 0 and values.max() < MAX_LEVELS and (values == np.rint(values)).all())


def _odd(values: Floats) -> float:
    return float(values[(values < 0) | (values >= MAX_LEVELS) | (values != np.rint(values))][0])


def _cut(values: Floats, bins: int, bounds: tuple[float, float] | None) -> tuple[Floats, int]:
    """Codes of the bins; those whose cuts coincide, where many values are equal, are one."""
    if bounds is not None:
        inner = np.linspace(*bounds, bins + 1)[1:-1]
    else:
        inner = np.unique(np.quantile(values, np.arange(1, bins) / bins))
        inner = inner[inner > values.min()]
    codes = np.searchsorted(inner, values, side="right").astype(np.float64)
    return codes, max(2, len(inner) + 1)
