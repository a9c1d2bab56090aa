"""What would go wrong with noise: another law than the accountant's, a repeated draw, a seed nobody asked
for.
"""

from __future__ import annotations

import copy
import math
import os
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from causaldao.client.privacy.noise import NoiseSource
from causaldao.errors import MisuseError
from tests.counts import count

SEED = b"causaldao noise tests, seed 0001"  # 32 bytes, fixed: a test of a law must not fail by chance
DRAWS = count(20_000, 1_000_000)


def chi_square(drawn: np.ndarray, variance: Fraction) -> float:
    """The p-value of draws against the exact probabilities, cells of fewer than 5 expected pooled into the
    tail.
    """
    reach = int(8 * math.sqrt(variance)) + 2
    support = np.arange(-reach, reach + 1)
    pmf = np.exp(-(support.astype(float) ** 2) / (2 * float(variance)))
    expected = pmf / pmf.sum() * drawn.size
    inside = expected >= 5
    seen = np.array([(drawn == value).sum() for value in support])
    observed = np.append(seen[inside], drawn.size - seen[inside].sum())
    wanted = np.append(expected[inside], drawn.size - expected[inside].sum())
    if wanted[-1] < 5:
        observed = np.append(observed[:-2], observed[-2:].sum())
        wanted = np.append(wanted[:-2], wanted[-2:].sum())
    return float(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


@pytest.mark.parametrize("variance", [Fraction(1, 3), Fraction(1, 2), Fraction(4), Fraction(37, 2), Fraction(100)])
def test_small_noise_has_the_exact_discrete_gaussian_law(variance: Fraction) -> None:
    drawn = NoiseSource.simulated(SEED).discrete_gaussian(variance, DRAWS)
    assert chi_square(drawn, variance) > 1e-3


def test_the_chi_square_sees_a_scale_that_is_wrong() -> None:
    drawn = NoiseSource.simulated(SEED).discrete_gaussian(Fraction(4), 100_000)
    assert chi_square(drawn, Fraction(4) * Fraction(97, 100) ** 2) < 1e-3


@pytest.mark.parametrize("sigma", [10**3, 10**7, 2**40])
def test_large_noise_has_the_right_variance_and_normal_shape(sigma: int) -> None:
    drawn = NoiseSource.simulated(SEED).discrete_gaussian(Fraction(sigma**2, 2), DRAWS)
    scaled = drawn / (sigma / math.sqrt(2))
    tail = stats.chi2.cdf(float((scaled**2).sum()), df=DRAWS)
    assert 1e-3 < tail < 1 - 1e-3
    assert stats.kstest(scaled, "norm").pvalue > 1e-3
    assert drawn.dtype == np.int64


def test_low_bits_of_large_noise_are_uniform() -> None:
    low = NoiseSource.simulated(SEED).discrete_gaussian(Fraction(10**14), DRAWS) % 16
    assert stats.chisquare(np.bincount(low, minlength=16)).pvalue > 1e-3


def test_large_matrices_are_drawn_in_good_time() -> None:
    source = NoiseSource.from_os()
    start = time.perf_counter()
    source.discrete_gaussian(Fraction(10**14, 2), 66)
    source.discrete_gaussian(Fraction(10**14, 2), 5151)
    assert time.perf_counter() - start < 3


def test_big_denominators_take_the_big_integer_path_exactly() -> None:
    # 2 a b t^2 is past 62 bits: the same law must come out as with the equal, reduced variance
    variance = Fraction(4 * 10**12 + 1, 10**12)
    assert chi_square(NoiseSource.simulated(SEED).discrete_gaussian(variance, DRAWS), Fraction(4)) > 1e-3


def test_the_same_seed_repeats_and_another_does_not() -> None:
    first, again, other = (
        NoiseSource.simulated(seed).discrete_gaussian(Fraction(10**6), 100) for seed in (SEED, SEED, SEED[::-1])
    )
    assert (first == again).all()
    assert (first != other).any()


def test_one_stream_never_repeats_itself_across_key_changes() -> None:
    source = NoiseSource.simulated(SEED)
    drawn = np.concatenate([source.discrete_gaussian(Fraction(10**24), 500) for _ in range(60)])
    assert len(np.unique(drawn)) == drawn.size


def test_os_noise_is_the_default_kind_and_differs_each_time() -> None:
    one, two = NoiseSource.from_os(), NoiseSource.from_os()
    assert (one.kind, two.kind, NoiseSource.simulated(SEED).kind) == ("os", "os", "simulated")
    assert (one.discrete_gaussian(Fraction(10**20), 8) != two.discrete_gaussian(Fraction(10**20), 8)).all()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_draws_other_noise_than_its_parent() -> None:
    source = NoiseSource.from_os()
    source.normal((4,))
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, source.discrete_gaussian(Fraction(10**20), 4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    told = np.frombuffer(os.read(ours, 64), dtype=np.int64)
    os.close(ours)
    os.close(theirs)
    assert (source.discrete_gaussian(Fraction(10**20), 4) != told).all()


def test_a_source_shows_no_key_and_cannot_be_copied() -> None:
    source = NoiseSource.simulated(SEED)
    assert repr(source) == "NoiseSource(simulated)"
    with pytest.raises(MisuseError, match="twice"):
        copy.deepcopy(source)


def test_normal_draws_are_normal_and_uncorrelated() -> None:
    drawn = NoiseSource.simulated(SEED).normal((DRAWS // 10, 10))
    assert drawn.dtype == torch.float64
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
    assert 1e-3 < stats.chi2.cdf(float(drawn.square().sum()), df=drawn.numel()) < 1 - 1e-3
    between = torch.corrcoef(drawn.T) - torch.eye(10)
    assert float(between.abs().max()) < 5 / math.sqrt(DRAWS / 10)


def test_normal_keeps_its_shape_when_empty_and_odd() -> None:
    source = NoiseSource.simulated(SEED)
    assert [tuple(source.normal(shape).shape) for shape in ((0,), (3,), (5, 1, 3), ())] == [
        (0,),
        (3,),
        (5, 1, 3),
        (),
    ]


@pytest.mark.parametrize("rate", [0.05, Fraction(1, 3), 1e-9, 1])
def test_poisson_sampling_takes_records_at_its_rate(rate: Fraction | float) -> None:
    taken = int(NoiseSource.simulated(SEED).poisson_mask(rate, DRAWS).sum())
    assert stats.binomtest(taken, DRAWS, float(rate)).pvalue > 1e-3


def test_poisson_sampling_of_no_records_is_empty() -> None:
    assert tuple(NoiseSource.simulated(SEED).poisson_mask(0.5, 0).shape) == (0,)


@pytest.mark.parametrize("variance", [Fraction(0), Fraction(-1), Fraction(2**96 + 1)])
def test_noise_without_a_scale_is_refused(variance: Fraction) -> None:
    with pytest.raises(MisuseError, match="variance"):
        NoiseSource.from_os().discrete_gaussian(variance, 1)


@pytest.mark.parametrize("rate", [0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(MisuseError, match="rate"):
        NoiseSource.from_os().poisson_mask(rate, 3)


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(MisuseError, match="32 bytes"):
        NoiseSource.simulated(b"0")
