"""Agreement with byzfl to 1e-5 of the largest coordinate, on what byzfl computes exactly.

Not asked: its CAF and SMEA, which take one step of power iteration from a random start in place of the largest
eigenvalue (errors up to .92 of the result), and its centred clipping, whose documented argument raises. Those rules are
compared with exact references of our own. Its geometric median is three smoothed steps from the origin (ν = .1, T = 3):
our iteration is set to the same.

Rules that choose among rows get float64, in which nearly equal distances are the same choice for both: in float32 a
difference of one rounding is, now and then, another row. byzfl gets NumPy arrays, as its tensors are always float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from causaldao.aggregation import Rule, aggregate
from causaldao.aggregation.geometry import Geometry
from causaldao.aggregation.gram_rules import _weiszfeld
from causaldao.simulations.benchmarks import byzfl
from tests.counts import count

Values = NDArray[np.float64]
Theirs = Callable[[Any, int], list[Any]]  # byzfl's module, f -> its steps

THEIRS: dict[str, Theirs] = {
    "coordinate-median": lambda b, f: [b.Median()],
    "trimmed-mean": lambda b, f: [b.TrMean(f)],
    "meamed": lambda b, f: [b.Meamed(f)],
    "krum": lambda b, f: [b.Krum(f)],
    "multi-krum": lambda b, f: [b.MultiKrum(f)],
    "nnm+mean": lambda b, f: [b.NNM(f), b.Average()],
    "nnm+coordinate-median": lambda b, f: [b.NNM(f), b.Median()],  # sees every mixture, as their mean does not
    "nnm+trimmed-mean": lambda b, f: [b.NNM(f), b.TrMean(f)],
    "nnm+multi-krum": lambda b, f: [b.NNM(f), b.MultiKrum(f)],
    "arc+mean": lambda b, f: [b.ARC(f), b.Average()],
    "arc+coordinate-median": lambda b, f: [b.ARC(f), b.Median()],
    "arc+nnm+trimmed-mean": lambda b, f: [b.ARC(f), b.NNM(f), b.TrMean(f)],
}
CHOOSING = ("krum", "nnm")
SIZES = ((5, 1), (9, 2), (11, 4), (20, 4), (23, 5), (50, 5), (50, 10), (50, 23))
DIMENSIONS = (1, 7, 300)


def drawn(kind: str, n: int, d: int, f: int, generator: np.random.Generator) -> Values:
    """Updates of one direction; the last f turned round and ten times as long; heavy: noise without a mean."""
    noise = generator.standard_normal((n, d)) if kind == "normal" else generator.standard_cauchy((n, d))
    values = noise + generator.standard_normal(d)
    values[n - f :] *= -10
    return values


def asked(steps: list[Any], values: NDArray[np.floating]) -> Values:
    found = values.copy()  # ARC writes into its argument
    for step in steps:
        found = step(found)
    return np.asarray(found, dtype=np.float64)


def agree(ours: torch.Tensor, theirs: Values, given: NDArray[np.floating]) -> None:
    """To 1e-5 of the largest coordinate. Where all of a sum cancels, as it may with one coordinate, what is left is
    rounding: then the size of its addends is the measure, for float64 a billionth of it."""
    addends = np.median(np.abs(given)) * (1 if given.dtype == np.float32 else 1e-9)
    assert np.abs(ours.double().numpy() - theirs).max() <= 1e-5 * max(np.abs(theirs).max(), addends)


@pytest.fixture(scope="module")
def oracle() -> Any:
    module = byzfl.load()
    assert module is not None, f"byzfl is {byzfl.REMEDY}"
    return module


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("name", THEIRS)
def test_a_rule_differs_from_byzfl(name: str, kind: str, oracle: Any) -> None:
    generator = np.random.default_rng(0)
    for (n, f), d in [(size, d) for size in SIZES for d in DIMENSIONS] * count(1, 20):
        if "krum" in name and n < 2 * f + 3:
            continue
        values = drawn(kind, n, d, f, generator).astype(np.float32)
        for given in (values.astype(np.float64), values)[: 1 if any(rule in name for rule in CHOOSING) else 2]:
            agree(aggregate(torch.from_numpy(given), name, f).vector, asked(THEIRS[name](oracle, f), given), given)


@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_the_geometric_median_differs_from_byzfl_with_its_smoothing_and_steps(kind: str, oracle: Any) -> None:
    def three_steps(geometry: Geometry, f: int) -> torch.Tensor:
        start = np.zeros(len(geometry.gram))
        start[geometry.origin] = 1
        return torch.from_numpy(_weiszfeld(geometry.gram.numpy(), start, geometry.rows, 0.1, 3))

    rule, generator = Rule("byzfl's geometric median", lambda f: 2 * f + 1, weigh=three_steps), np.random.default_rng(0)
    for (n, f), d in [(size, d) for size in SIZES for d in DIMENSIONS] * count(1, 20):
        values = drawn(kind, n, d, f, generator).astype(np.float32)
        # beside rows a thousand times as long float32 keeps few digits of a distance, in their sums as in ours
        for given in (values.astype(np.float64), values)[: 1 if kind == "heavy" else 2]:
            agree(aggregate(torch.from_numpy(given), rule, f).vector, asked([oracle.GeometricMedian()], given), given)
