"""The coordinate rules are those of the papers, whatever the values and whichever way the rows are put in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from causaldao.aggregation import coordinates
from causaldao.aggregation.coordinates import bulyan_combine, coordinate_median, meamed, merge_exchange, trimmed_mean
from tests.counts import count

Rule = Callable[[Tensor, int], Tensor]
RULES: tuple[Rule, ...] = (coordinate_median, trimmed_mean, meamed, bulyan_combine)
DTYPES = (torch.float32, torch.float64)


def reference(rule: Rule, values: NDArray[np.floating], f: int) -> NDArray[np.float64]:
    """What the papers say, a column at a time in float64; only which values are near is told as the dtype rounds."""
    found = []
    for column in np.sort(values, axis=0).T:
        r = len(column)
        median = (column[(r - 1) // 2] / 2 + column[r // 2] / 2).astype(values.dtype)
        if rule is coordinate_median:
            kept = column[[(r - 1) // 2, r // 2]]
        elif rule is trimmed_mean:
            kept = column[f : r - f]
        else:
            wide = np.abs(column / 2 - median / 2)  # halves: no difference of finite values overflows
            nearest = sorted(range(r), key=lambda k: (wide[k], column[k]))
            kept = column[nearest[: r - (f if rule is meamed else 2 * f)]]
        found.append(np.mean(kept.astype(np.float64)))
    return np.array(found)


def borne(rule: Rule, r: int) -> int:
    """The largest f that so many rows bear; after Bulyan's selection, whose r is n - 2f with n ≥ 4f + 3."""
    return (r - 3) // 2 if rule is bulyan_combine else (r - 1) // 2


def checked(rule: Rule, values: NDArray[np.floating], f: int) -> None:
    found = rule(torch.from_numpy(values.copy()), f)
    expected = reference(rule, values, f)
    assert found.dtype == torch.from_numpy(values).dtype
    assert bool(torch.isfinite(found).all())
    assert (np.abs(found.numpy().astype(np.float64) - expected) <= rounding(values)).all(), (rule, values.shape, f)


def rounding(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """By how much a mean of some of each column may err: a rounding of the largest, and the smallest number, each."""
    info, largest = np.finfo(values.dtype), np.abs(values.astype(np.float64)).max(axis=0)
    room: NDArray[np.float64] = len(values) * (float(info.eps) * largest + float(info.smallest_subnormal))
    return room


def drawn(kind: str, r: int, c: int, generator: np.random.Generator) -> NDArray[np.float64]:
    normal: NDArray[np.float64] = generator.standard_normal((r, c))
    if kind == "ties":
        return generator.integers(-3, 4, (r, c)).astype(np.float64)
    if kind == "equal":
        normal[:] = normal[0]
    if kind == "huge":
        return np.where(generator.random((r, c)) < 0.3, np.sign(normal) * 1e30, normal)
    if kind == "largest":
        return np.sign(normal) * 3.4e38
    if kind == "denormal":
        return generator.integers(-9, 10, (r, c)).astype(np.float64) * np.float64(2.0**-140)
    if kind == "heavy":
        return normal / np.abs(generator.standard_normal((r, c)))
    return normal


KINDS = ("normal", "ties", "equal", "huge", "largest", "denormal", "heavy")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_differs_from_the_plain_reference(rule: Rule, kind: str) -> None:
    generator = np.random.default_rng(0)
    sizes = range(1, 111) if count(0, 1) else (1, 2, 3, 4, 5, 8, 11, 20, 33, 64, 110)  # odd, even, powers of two
    for r in sizes:
        for f in sorted({0, 1, r // 5, borne(rule, r)}):
            if 0 <= f <= borne(rule, r):
                values = drawn(kind, r, 7, generator)
                for dtype in (np.float32, np.float64):
                    checked(rule, values.astype(dtype), f)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("r", [2, 9, 20, 50, 101])
def test_the_network_and_the_sort_disagree(rule: Rule, r: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    values = torch.from_numpy(np.concatenate([drawn(kind, r, 400, generator) for kind in KINDS], axis=1)).float()
    found = []
    for sorts in (True, False):
        monkeypatch.setattr(coordinates, "_sorting_is_faster", lambda chunk, labels, sorts=sorts: sorts)
        found.append([rule(values.clone(), f) for f in range(max(borne(rule, r), 0) + 1)])
    for by_sort, by_network in zip(*found, strict=True):
        apart = (by_sort.double() - by_network.double()).abs().numpy()
        assert (apart <= rounding(values.numpy())).all()
    assert torch.equal(found[0][0], found[1][0]) or rule is not coordinate_median


@pytest.mark.parametrize("rule", RULES)
def test_a_column_depends_on_its_neighbours(rule: Rule) -> None:
    values = torch.from_numpy(drawn("heavy", 21, 30_000, np.random.default_rng(0))).float()
    whole = rule(values.clone(), 4)
    by_parts = torch.cat([rule(part.clone(), 4) for part in torch.split(values, 10_007, dim=1)])
    assert torch.equal(whole, by_parts)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("c", [1, 30_000])
def test_the_result_is_lost_with_the_chunk(rule: Rule, c: int) -> None:
    chunk = torch.from_numpy(drawn("normal", 21, c, np.random.default_rng(0))).float()
    found = rule(chunk, 4)
    kept = found.clone()
    chunk.fill_(torch.nan)
    assert torch.equal(found, kept)


@pytest.mark.parametrize("rule", RULES)
def test_a_chunk_that_is_part_of_a_wider_buffer_is_read_wrongly(rule: Rule) -> None:
    values = torch.from_numpy(drawn("normal", 20, 30_000, np.random.default_rng(0))).float()
    buffer = torch.full((20, 40_000), torch.nan)
    part = buffer[:, 5_000:35_000]
    part.copy_(values)
    assert torch.equal(rule(part, 4), rule(values.clone(), 4))
    assert bool(buffer[:, :5_000].isnan().all())
    assert bool(buffer[:, 35_000:].isnan().all())


@pytest.mark.parametrize("r", [*range(2, 13), 13])
def test_the_whole_network_leaves_some_zeros_and_ones_unsorted(r: int) -> None:
    """The 0-1 principle (Knuth 5.3.4): a network that sorts every sequence of zeros and ones sorts everything."""
    columns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=r))).T.contiguous()
    for low, high in merge_exchange(r):
        columns[[low, high]] = torch.stack([columns[low].minimum(columns[high]), columns[low].maximum(columns[high])])
    assert bool((columns[1:] >= columns[:-1]).all())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_a_source_is_written_to_or_gives_another_answer(rule: Rule, threads: int) -> None:
    """NumPy's network on one thread, PyTorch's on two, and sorting where columns are few."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for r in (*range(1, 14), 33, 101):
            for columns in (3, 7000):
                source = torch.randn(r, columns, generator=torch.Generator().manual_seed(r))
                for f in range(0, borne(rule, r) + 1, 3):
                    kept, scratch = source.clone(), torch.full_like(source, torch.nan)
                    found = rule(scratch, f, source)
                    assert torch.equal(source, kept)
                    assert torch.equal(found, rule(kept.clone(), f))
    finally:
        torch.set_num_threads(before)


def labelled(r: int, f: int) -> list[tuple[int, ...]]:
    """The labels that the rules ask for, as seen by `_ordered`."""
    asked: list[tuple[int, ...]] = []

    def spy(chunk: Tensor, labels: tuple[int, ...], source: Tensor | None = None) -> list[Tensor]:
        asked.append(labels)
        return list(chunk.sort(dim=0).values.unbind(0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinates, "_ordered", spy)
        for rule in RULES:
            if f <= borne(rule, r):
                rule(torch.randn(r, 3), f)
    return asked


def promised(columns: Tensor, labels: tuple[int, ...]) -> None:
    """`_ordered` keeps its word: at the ranks of one label stand, as a set, the values that belong there."""
    expected = columns.sort(dim=0).values
    rows = coordinates._ordered(columns.clone(), labels)
    for label in set(labels) - {0}:
        ranks = [rank for rank in range(len(labels)) if labels[rank] == label]
        found = torch.stack([rows[rank] for rank in ranks]).sort(dim=0).values
        assert torch.equal(found, expected[ranks]), (labels, label)


@pytest.mark.parametrize("r", range(2, 13))
def test_a_pruned_network_lost_a_comparator_that_mattered(r: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the 0-1 principle too: a minimum, a maximum and the sum of a set all commute with a threshold."""
    monkeypatch.setattr(coordinates, "_sorting_is_faster", lambda chunk, labels: False)
    columns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=r))).T.contiguous()
    for f in range(1, (r - 1) // 2 + 1):
        for labels in labelled(r, f):
            promised(columns, labels)


@pytest.mark.parametrize("r", [13, 20, 27, 32, 50, 64, 110])
def test_a_larger_pruned_network_lost_a_comparator_that_mattered(r: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinates, "_sorting_is_faster", lambda chunk, labels: False)
    generator = np.random.default_rng(0)
    random = generator.standard_normal((r, count(200, 5000)))
    # zeros and ones with the border near every rank, which is where a missing comparator shows
    ones = np.argsort(generator.random((r, count(1000, 50_000))), axis=0) >= generator.integers(0, r + 1)
    columns = torch.from_numpy(np.concatenate([random, ones.astype(float)], axis=1)).float()
    for f in {1, r // 5, (r - 1) // 4, (r - 1) // 2}:
        for labels in labelled(r, f):
            promised(columns, labels)


def test_pruning_leaves_nothing_out() -> None:
    """Of 20 rows the median needs 80 of 97 comparators, and 142 minima and maxima instead of 194."""
    labels = tuple(int(rank in (9, 10)) for rank in range(20))
    kept = coordinates.network(labels)
    assert (len(merge_exchange(20)), len(kept), sum(low + high for _, _, low, high in kept)) == (97, 80, 142)


def test_many_rows_or_few_columns_go_through_the_network() -> None:
    labels = {r: tuple(int(rank in ((r - 1) // 2, r // 2)) for rank in range(r)) for r in (20, 101)}
    sorts = {
        (r, c): coordinates._sorting_is_faster(torch.empty(r, c), labels[r]) for r in (20, 101) for c in (500, 32_768)
    }
    assert sorts == {(20, 500): True, (20, 32_768): False, (101, 500): True, (101, 32_768): True}


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_two_values_equally_far_the_larger_is_taken(dtype: torch.dtype) -> None:
    column = torch.tensor([[-2.0], [0.0], [2.0]], dtype=dtype)
    assert meamed(column.clone(), 1).item() == -1
    assert meamed(-column, 1).item() == -1
