"""Rules that work on each coordinate alone: median, trimmed mean, MeaMed, and the second half of Bulyan.

Each takes a chunk of shape (r, c), finite, float32 or float64, whose rows are contiguous, and f, and returns a new
tensor (c,) of the same dtype. The chunk is scratch: it is overwritten. What stands in it counts, or if ``source`` is
given, (r, c) of the same dtype, what stands there, which is only read: that spares a copy. n and f are checked before,
by `rules.require`.

Rows are put in order by a sorting network, whose comparators are elementwise minima and maxima of whole rows: no
branch, no index, and the same steps whatever the values. On one thread of the CPU NumPy makes them, in a sixth less
time than PyTorch. Of Batcher's merge exchange (Batcher 1968; Knuth, The Art of
Computer Programming 3, 5.2.2, algorithm M) those comparators are left out that no needed result can feel. On the CPU,
many rows of few columns (from about 60 rows of 10,000 columns) are instead sorted column by column, in a transposed
copy of some columns at a time. The two differ in the order in which a mean's values are added up, and in nothing else.

Accuracy: sums are taken of values scaled down by a power of two, so no sum of finite values overflows; a mean of k
values errs by at most k roundings of the largest among them, or a few of the smallest numbers above zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

COLUMNS = 32_768  # of a chunk, for each thread: with fewer, calls cost more than the work; PyTorch splits no fewer
_COLUMNS_A_STEP = 14  # measured on the CPU: with fewer columns for each step of a network, sorting is faster
_ROWS_OF_NETWORK = 100  # on the CPU: with more, sorting is faster whatever the columns
_COLUMNS_OF_SORT = 1000  # of a transposed copy: it stays in the cache, and is no power of two, which caches share badly

Comparator = tuple[int, int, bool, bool]  # lower rank, higher rank, and which of the two are needed


def coordinate_median(chunk: Tensor, f: int, source: Tensor | None = None) -> Tensor:
    """Median of each coordinate, the mean of the two middle values for even r (Yin et al. 2018); f is not used."""
    r = len(chunk)
    middle = {(r - 1) // 2, r // 2}
    rows = _ordered(chunk, tuple(int(rank in middle) for rank in range(r)), source)
    return _mean([rows[rank] for rank in sorted(middle)])


def trimmed_mean(chunk: Tensor, f: int, source: Tensor | None = None) -> Tensor:
    """Mean of each coordinate without its f smallest and f largest values (Yin et al. 2018). r > 2f.

    Among equal values it makes no difference which are left out.
    """
    r = len(chunk)
    rows = _ordered(chunk, tuple(int(f <= rank < r - f) for rank in range(r)), source)
    return _mean(rows[f : r - f])


def meamed(chunk: Tensor, f: int, source: Tensor | None = None) -> Tensor:
    """Mean of the r - f values nearest to the median of each coordinate (Xie et al. 2018). r > 2f.

    Of two values equally far from the median, as the chunk's dtype rounds the differences, the smaller is taken.
    """
    return _mean_nearest(chunk, len(chunk) - f, source)


def bulyan_combine(chunk: Tensor, f: int, source: Tensor | None = None) -> Tensor:
    """Mean of the r - 2f values nearest to the median of each coordinate, over the r selected rows. r > 2f.

    The second half of Bulyan (El Mhamdi, Guerraoui, Rouault 2018), which selects r = n - 2f. Ties as in `meamed`.
    """
    return _mean_nearest(chunk, len(chunk) - 2 * f, source)


def _mean_nearest(chunk: Tensor, kept: int, source: Tensor | None) -> Tensor:
    """Mean of the ``kept`` values nearest to the median.

    In order, they are neighbours: s[j] to s[j + kept - 1] for some j. So of all values whose ranks are equal modulo
    ``kept`` exactly one is among them, the one nearest to the median; those without such a rival need no order. The
    rivals are halved, which makes the difference of any two finite values finite; a choice is an interpolation by 0 or
    1, because PyTorch's `where` takes four times as long.
    """
    r = len(chunk)
    if kept == r:
        return _mean(list((chunk if source is None else source).unbind(0)))
    middle = {(r - 1) // 2, r // 2}
    alone = range(r - kept, kept)
    rows = _ordered(chunk, tuple(1 + (rank in middle) if rank in alone else 3 + rank for rank in range(r)), source)
    half = _mean([rows[rank] for rank in sorted(middle)]).mul_(0.5)
    below, above, nearer = (torch.empty_like(half) for _ in range(3))
    for rank in set(range(r)).difference(alone):
        rows[rank].mul_(0.5)
    for rank in range(r - kept):
        low, high = rows[rank], rows[rank + kept]
        torch.sub(half, low, out=below)
        torch.sub(high, half, out=above)
        torch.lt(above, below, out=nearer)
        torch.lerp(low, high, nearer, out=high)
    return _mean([rows[rank] for rank in alone], [rows[rank] for rank in range(max(kept, r - kept), r)])


def _mean(rows: Sequence[Tensor], halves: Sequence[Tensor] = ()) -> Tensor:
    """The mean of rows and of twice the halves, a new tensor. A power of two, exact, makes room for the whole sum."""
    count = len(rows) + len(halves)
    room = 1 << (count - 1).bit_length()
    total = torch.zeros_like((*rows, *halves)[0])
    for row in rows:
        total.add_(row, alpha=1 / room)
    for row in halves:
        total.add_(row, alpha=2 / room)
    return total.mul_(room / count)


def _ordered(chunk: Tensor, labels: tuple[int, ...], source: Tensor | None = None) -> list[Tensor]:
    """The chunk's rows by rank: at place k the k-th smallest of each column, in so far as ``labels`` asks for it.

    ``labels`` gives each rank a number. What stands at ranks labelled 0 is not needed and is undefined; ranks of one
    label hold the right values as a set, in any order. Needed rows are the chunk's or new, never the source's.
    """
    values = chunk if source is None else source
    if _sorting_is_faster(chunk, labels):
        _sort(values, chunk)
        return list(chunk.unbind(0))
    if chunk.device.type == "cpu" and torch.get_num_threads() == 1:
        own = chunk.numpy()
        held = own if source is None else source.numpy()
        rows = _merged(labels, held, own, np.empty_like(own[0]), np.minimum, np.maximum)
        return [torch.from_numpy(row) for row in rows]
    return _merged(labels, values, chunk, torch.empty_like(chunk[0]), torch.minimum, torch.maximum)


def _merged(labels: tuple[int, ...], values: Any, chunk: Any, spare: Any, lesser: Any, greater: Any) -> list[Any]:
    """`_ordered` by the network, alike for tensors and arrays: read from ``values`` at first, written to ``chunk``."""
    own = list(chunk)
    rows = own.copy() if values is chunk else list(values)
    for low, high, low_needed, high_needed in network(labels):
        a, b = rows[low], rows[high]
        if low_needed and high_needed:
            lesser(a, b, out=spare)
            greater(a, b, out=own[high])
            rows[low], rows[high] = spare, own[high]
            own[low], spare = spare, own[low]
        elif low_needed:
            lesser(a, b, out=own[low])
            rows[low] = own[low]
        else:
            greater(a, b, out=own[high])
            rows[high] = own[high]
    for place in range(len(labels)):
        if labels[place] and rows[place] is not own[place]:
            own[place][:] = rows[place]
            rows[place] = own[place]
    return rows


def _sorting_is_faster(chunk: Tensor, labels: tuple[int, ...]) -> bool:
    """Whether `_sort` beats the network, whose every step is a call. Other devices have the network only."""
    if chunk.device.type != "cpu":
        return False
    if len(chunk) > _ROWS_OF_NETWORK:
        return True
    steps = sum(1 + (low and high) for _, _, low, high in network(labels))
    return chunk.shape[1] < _COLUMNS_A_STEP * steps


def _sort(values: Tensor, chunk: Tensor) -> None:
    """Sort each column into the chunk. NumPy sorts short contiguous rows ten times as fast as PyTorch."""
    for start in range(0, chunk.shape[1], _COLUMNS_OF_SORT):
        span = slice(start, start + _COLUMNS_OF_SORT)
        transposed = values[:, span].T.clone(memory_format=torch.contiguous_format)
        transposed.numpy().sort(axis=1)
        chunk[:, span] = transposed.T


@lru_cache(maxsize=256)
def network(labels: tuple[int, ...]) -> tuple[Comparator, ...]:
    """Comparators that bring the values of as many rows as ``labels`` has to the ranks that `_ordered` promises.

    From the last comparator to the first, one is left out if what it orders is never looked at again and ends under one
    label, and one of whose two results only one is needed is halved.
    """
    settled: list[int | None] = list(labels)  # the label under which a row ends untouched, from here on
    needed = [label != 0 for label in labels]
    kept: list[Comparator] = []
    for low, high in reversed(merge_exchange(len(labels))):
        if settled[low] is not None and settled[low] == settled[high]:
            continue
        kept.append((low, high, needed[low], needed[high]))
        needed[low] = needed[high] = True
        settled[low] = settled[high] = None
    return tuple(reversed(kept))


def merge_exchange(rows: int) -> list[tuple[int, int]]:
    """Batcher's merge exchange: pairs of places that, put in order one after another, sort so many values."""
    if rows < 2:
        return []
    pairs = []
    top = 1 << ((rows - 1).bit_length() - 1)
    p = top
    while p:
        q, r, distance = top, 0, p
        while True:
            pairs += [(i, i + distance) for i in range(rows - distance) if i & p == r]
            if q == p:
                break
            distance, q, r = q - p, q // 2, p
        p //= 2
    return pairs
