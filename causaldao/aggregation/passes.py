"""The passes over an (n, d) matrix of updates, which is read by chunks of columns and never changed.

Chunks hold at most a twentieth of the columns, so that the extra memory stays under a tenth of the input, and stay in
the processor's cache. Sums across chunks are kept in float64; within a chunk float32 rows are multiplied in float32
where their norms allow it, which costs 1e-6 of the norms of the *centred* rows and halves the time, and in float64
where they do not. The same rows in the same order give the same bits on one machine with one
number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from causaldao.aggregation.coordinates import COLUMNS

_CHUNK = 1 << 15  # columns: 20 rows of float32 fill three megabytes; half as many take a twentieth longer
_LEAST_CHUNK = 1 << 10  # below it calls cost more than the work, and a tenth of the input is nothing
_LARGEST_NORM = 2.0**500  # 3e150: squares and their sums over the points stay finite in float64
_FEW = 16  # rows
_FAR = 4.0  # times as far or as long as it could be: then the centre of the Gram matrix is another row
_SHORT = 0.5  # of the centre's norm: a shorter row's is the difference of much larger numbers
_SINGLE = (1e-9, 1e15)  # norms whose products neither vanish nor overflow in float32


Combine = Callable[[Tensor, int, Tensor | None], Tensor]


@dataclass(frozen=True)
class Survey:
    """What one look at every row tells.

    norms : (n,) float64 Euclidean norms, 0 for a row that is not finite.
    finite : the rows that are: no NaN, no infinity, and a norm of at most 2^500 (a float32 row always has).
    signs : (n, 3) float64 shares of positive, zero and negative coordinates, if asked for.
    """

    norms: Tensor
    finite: tuple[int, ...]
    signs: Tensor | None = None

    @property
    def single(self) -> bool:
        """Whether float32 products of the rows are safe: a liar's 1e30 must not overflow, nor hide the others."""
        kept = self.norms[list(self.finite)].sort().values
        return bool(kept[-1] <= _SINGLE[1]) and bool(kept[(len(kept) - 1) // 2] >= _SINGLE[0])


def spans(columns: int, largest: int = _CHUNK) -> Iterator[slice]:
    """Slices over the columns; at least one, also of no columns at all."""
    width = max(min(columns // 20, largest), _LEAST_CHUNK)
    return (slice(start, min(start + width, columns)) for start in range(0, max(columns, 1), width))


def gram(updates: Tensor, reference: Tensor | None = None, signs: bool = False) -> tuple[Survey, Tensor]:
    """The survey, and the (m, m) float64 Gram matrix of the finite rows, the origin and the reference.

    It is centred on a row, so that differences of close rows do not cancel: a row of median norm, which no row of a
    liar's size can be. Norms are known only after the pass, so the first chunk's median is taken, and a second pass is
    made if the first shows it to be too long, or rows that are not finite. A liar may have the median norm and lie
    elsewhere: then another row is much nearer to most rows, and is taken instead. So liars can cost passes, but no
    accuracy. A matrix without a finite row has no Gram matrix: m = 0.
    """
    counts = _Counts(updates, signs)
    first = counts.norms(updates[:, next(spans(updates.shape[1]))])
    middle = _median_place(first)
    everything = tuple(range(len(updates)))
    look = signs or updates.dtype != torch.float32  # the coarse values of bfloat16 round alike, so their errors add up
    found = _centred(updates, everything, reference, middle, updates.dtype != torch.float64, counts if look else None)
    survey = counts.survey(updates) if look else _told(found, len(updates)) or _counted(updates)
    if not survey.finite:
        return survey, torch.zeros(0, 0, dtype=torch.float64)
    norms = survey.norms[list(survey.finite)]
    single = survey.single and updates.dtype != torch.float64
    if reference is not None:
        single = single and float(torch.linalg.vector_norm(reference.float())) <= _SINGLE[1]
    as_guessed = survey.finite == everything and single == (updates.dtype != torch.float64)
    median = _median_place(norms)
    if not as_guessed or norms[middle] > _FAR * norms[median]:
        middle = median
        found = _centred(updates, survey.finite, reference, middle, single)
    best = _most_central(found[: len(norms), : len(norms)], middle)
    return survey, found if best == middle else _centred(updates, survey.finite, reference, best, single)


def _median_place(norms: Tensor) -> int:
    return int(norms.argsort(stable=True)[(len(norms) - 1) // 2])


def _most_central(rows: Tensor, middle: int) -> int:
    """``middle``, unless another row is much nearer to most of the rows than it is."""
    squared = rows.diagonal()[:, None] + rows.diagonal()[None] - 2 * rows
    typical = squared.clamp_min(0).fill_diagonal_(0).sort(dim=1).values[:, len(rows) // 2]
    best = int(typical.argmin())
    return middle if typical[middle] <= _FAR**2 * typical[best] else best


def _told(found: Tensor, rows: int) -> Survey | None:
    """The survey as the Gram matrix of all rows tells it, which spares a look at each.

    None where it may not know: a row is not finite, not safe in float32, or so much shorter than the centre that its
    norm is lost in the centre's.
    """
    origin = float(found[rows, rows])
    squares = found.diagonal()[:rows] - 2 * found[:rows, rows] + origin
    least, most = max(_SINGLE[0] ** 2, _SHORT**2 * origin), _SINGLE[1] ** 2
    known = bool((squares >= least).all()) and bool((squares <= most).all())
    return Survey(squares.sqrt(), tuple(range(rows))) if known else None


def _counted(updates: Tensor) -> Survey:
    """The survey from a look at every row."""
    counts = _Counts(updates, signs=False)
    for span in spans(updates.shape[1]):
        counts.add(updates[:, span])
    return counts.survey(updates)


class _Counts:
    """Sums over the chunks of a matrix: squared norms, and signs if asked for."""

    def __init__(self, updates: Tensor, signs: bool) -> None:
        self._dtype = torch.float64 if updates.dtype == torch.float64 else torch.float32
        self._squares = torch.zeros(len(updates), dtype=torch.float64)
        self._signs = torch.zeros(len(updates), 3, dtype=torch.float64) if signs else None

    def norms(self, chunk: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(chunk, dim=1, dtype=self._dtype)
        return found.cpu().double()

    def add(self, chunk: Tensor) -> None:
        self._squares += self.norms(chunk).square()
        if self._signs is not None:
            signs = chunk.sign().to(self._dtype)  # sums of them are exact in float32 for any chunk
            surplus, used = signs.sum(dim=1), signs.abs().sum(dim=1)
            shares = [(used + surplus) / 2, chunk.shape[1] - used, (used - surplus) / 2]
            self._signs += torch.stack(shares, dim=1).cpu().double()

    def survey(self, updates: Tensor) -> Survey:
        """What the chunks told; rows whose squares float32 may not hold are read once more."""
        low, high = (_SINGLE[0] ** 2, _SINGLE[1] ** 2) if self._dtype == torch.float32 else (0.0, torch.inf)
        unsure = [k for k, square in enumerate(self._squares.tolist()) if not low <= square <= high]
        if unsure and self._dtype == torch.float32:
            self._dtype = torch.float64
            self._squares[unsure] = 0
            for span in spans(updates.shape[1]):
                self._squares[unsure] += self.norms(updates[unsure, span]).square()
        norms = self._squares.sqrt()
        finite = tuple(k for k, norm in enumerate(norms.tolist()) if norm <= _LARGEST_NORM)
        norms[[k for k in range(len(norms)) if k not in finite]] = 0
        return Survey(norms, finite, None if self._signs is None else self._signs / max(updates.shape[1], 1))


def _centred(
    updates: Tensor,
    kept: Sequence[int],
    reference: Tensor | None,
    middle: int,
    single: bool,
    counts: _Counts | None = None,
) -> Tensor:
    """The Gram matrix centred on one kept row, whose own place in the buffer the origin takes, as it is zero.

    ``counts`` looks at the same chunks while they are in the cache.
    """
    n, extra = len(kept), int(reference is not None)
    padded = -(-(n + extra) // 4) * 4  # rows by fours: a product of 21 rows takes half as long again as one of 20
    width = next(spans(updates.shape[1])).stop
    dtype = torch.float32 if single else torch.float64
    buffer = torch.zeros(padded, width, dtype=dtype, device=updates.device)
    total = torch.zeros(padded, padded, dtype=torch.float64)
    for span in spans(updates.shape[1]):
        chunk = updates[:, span]
        if counts is not None:
            counts.add(chunk)
        points, rows = buffer[:, : chunk.shape[1]], _rows(chunk, kept).to(dtype)
        torch.sub(rows, rows[middle], out=points[:n])
        torch.neg(rows[middle], out=points[middle])
        if reference is not None:
            torch.sub(reference[span].to(rows), rows[middle], out=points[n])
        total += _squared(points).double()
    places = torch.tensor([n if k == middle else k for k in range(n)] + [n + 1] * extra)
    found = torch.zeros(n + 1 + extra, n + 1 + extra, dtype=torch.float64)
    found[places[:, None], places] = total[: n + extra, : n + extra]
    return (found + found.T) / 2


def _squared(points: Tensor) -> Tensor:
    """points @ pointsᵀ, on the CPU. NumPy sees that both are one matrix and has BLAS make one triangle only (syrk): a
    quarter less time at 20 rows, half at 100; up to 16 PyTorch is about as fast. With more threads those of the two
    libraries would wait for each other, thirty times as long as the work takes. What overflows, the survey tells."""
    if points.device.type == "cpu" and len(points) > _FEW and torch.get_num_threads() == 1:
        held = points.numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            return torch.from_numpy(held @ held.T)
    return (points @ points.T).cpu()


def weighted(updates: Tensor, weights: Tensor, survey: Survey) -> Tensor:
    """``weights`` (n,) float64 @ updates: (d,) float32, or float64 if the updates are.

    A clipped row of 1e30 has a weight of 1e-30: float32 holds neither much more nor much less, so such are summed in
    float64.
    """
    kept = survey.finite  # also those of weight 0: to leave some out costs a copy, to add nothing costs nothing
    single = updates.dtype != torch.float64 and survey.single
    dtype = torch.float32 if single else torch.float64
    chosen = weights[list(kept)].to(updates.device, dtype)
    return _gathered(updates, spans(updates.shape[1]), lambda chunk: chosen @ _rows(chunk, kept).to(dtype))


def by_columns(
    updates: Tensor, survey: Survey, mixing: Tensor | None, combine: Combine, faulty: int, counts: _Counts | None = None
) -> Tensor:
    """``combine`` of each coordinate over the finite rows, or over their (r, n) mixtures, made chunk by chunk.

    ``counts`` looks at the same chunks.
    """
    dtype = torch.float32 if updates.dtype != torch.float64 and survey.single else torch.float64
    mixer = None if mixing is None else mixing.to(updates.device, dtype)
    rows = len(survey.finite) if mixing is None else len(mixing)
    largest = COLUMNS * torch.get_num_threads()
    if mixer is not None:  # a product packs its operands, and so holds twice as much
        largest = min(largest, updates.shape[1] // 32)
    buffer = torch.empty(rows, next(spans(updates.shape[1], largest)).stop, dtype=dtype, device=updates.device)

    def combined(chunk: Tensor) -> Tensor:
        if counts is not None:
            counts.add(chunk)
        kept, own = _rows(chunk, survey.finite), buffer[:, : chunk.shape[1]]
        if mixer is not None:
            return combine(torch.mm(mixer, kept.to(dtype), out=own), faulty, None)
        if kept.dtype == dtype and kept.stride(1) == 1:
            return combine(own, faulty, kept)
        return combine(own.copy_(kept), faulty, None)

    return _gathered(updates, spans(updates.shape[1], largest), combined)


def surveyed_by_columns(updates: Tensor, combine: Combine, faulty: int) -> tuple[Survey, Tensor | None]:
    """The survey and ``combine`` of each coordinate in one pass; None for the latter if a row is not finite, or too
    long for float32, and all was in vain."""
    every = torch.ones(len(updates), dtype=torch.float64)
    hoped = Survey(every, tuple(range(len(updates))))
    counts = _Counts(updates, signs=False)
    vector = by_columns(updates, hoped, None, combine, faulty, counts)
    survey = counts.survey(updates)
    held = survey.finite == hoped.finite and (survey.single or updates.dtype == torch.float64)
    return survey, vector if held else None


def _gathered(updates: Tensor, chunks: Iterator[slice], make: Callable[[Tensor], Tensor]) -> Tensor:
    """The (d,) result whose parts are made chunk by chunk."""
    dtype = torch.float64 if updates.dtype == torch.float64 else torch.float32
    result = torch.empty(updates.shape[1], dtype=dtype, device=updates.device)
    for span in chunks:
        result[span] = make(updates[:, span])
    return result


def _rows(chunk: Tensor, kept: Sequence[int]) -> Tensor:
    """The kept rows: a view where all are kept."""
    return chunk if len(kept) == len(chunk) else chunk[list(kept)]
