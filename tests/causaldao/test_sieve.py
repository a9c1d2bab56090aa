"""The sieve: honest sites stay, agreed lies leave that single entries do not show, and never more than f go."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from causaldao.errors import GuaranteeError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.pool import Settings, pool
from causaldao.sieve import _left, _whitened
from tests.counts import count
from tests.models.random_models import names, noisy, weights

D, SITES, FAULTY, ROWS = 8, 12, 4, 500
SIEVE = Settings(FAULTY, "sieve")


def _site(rng: np.random.Generator, mixing: np.ndarray, noise: float) -> Evidence:
    """Evidence of rows of a linear model, scaled to standard deviations of a third."""
    rows = rng.normal(size=(ROWS, D)) @ mixing
    rows = rows / (3 * np.sqrt((mixing.T @ mixing).diagonal()))
    x = np.concatenate([np.ones((ROWS, 1)), rows], axis=1)
    return noisy(Evidence(tuple(names(D)), torch.from_numpy(x.T @ x)), noise, rng)


def _federation(
    rng: np.random.Generator, liars: int, share: float = 1.0, noise: float = 2.0
) -> tuple[dict[str, Evidence], tuple[str, ...]]:
    """Sites of one model; liars, first in name order, move their own evidence by a share towards the reversed model."""
    matrix = weights(rng, D, 3.0)
    honest, reverse = (np.linalg.inv(np.eye(D) - one) for one in (matrix, matrix.T))
    found = {f"site-{k:02}": _site(rng, honest, noise) for k in range(SITES)}
    lying = tuple(sorted(found)[:liars])
    for name in lying:
        told = _site(rng, reverse, noise)
        found[name] = replace(found[name], moments=(1 - share) * found[name].moments + share * told.moments)
    return found, lying


def test_honest_sites_are_left_out() -> None:
    """Each of two tests is at about 1 %; multi-Krum would leave out f in every study."""
    rng, studies = np.random.default_rng(0), count(60, 600)
    left_out = sum(bool(pool(_federation(rng, 0)[0], SIEVE).excluded) for _ in range(studies))
    assert left_out <= binom.ppf(0.9999, studies, 0.05)


def _agreed(found: dict[str, Evidence], liars: tuple[str, ...]) -> float:
    """b of the module: what liars agree on, in an honest site's standard deviations, root mean square over entries."""
    moments = torch.stack([one.moments / one.count for one in found.values()])
    counts, noise = (torch.tensor([getattr(one, what) for one in found.values()]) for what in ("count", "noise"))
    lying = torch.tensor([name in liars for name in found])
    values = _whitened(moments, counts.double(), noise.double(), moments[~lying].mean(dim=0))
    apart = (values[lying].mean(dim=0) - values[~lying].mean(dim=0)).square().mean()
    return math.sqrt(max(0.0, float(apart) - 1 / len(liars) - 1 / (len(found) - len(liars))))


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_a_lie_that_single_entries_hide_is_pooled(noise: float) -> None:
    """A third of the lie: multi-Krum keeps liars, the sieve none, unless what they agree on is near the least that
    shows, b² f (n - f) / n = √(n / E), of which it promises nothing. Noise makes a few of these lies as small."""
    rng, kept, plain = np.random.default_rng(1), {"sieve": 0, "multi-krum": 0}, 0
    least = (SITES / 44) ** 0.25 / math.sqrt(FAULTY * (SITES - FAULTY) / SITES)
    studies = count(8, 80)
    for _ in range(studies):
        found, liars = _federation(rng, FAULTY, 0.35, noise)
        if _agreed(found, liars) < 1.75 * least:
            continue
        plain += 1
        for rule in kept:
            kept[rule] += len(set(pool(found, Settings(FAULTY, rule)).kept) & set(liars))
    assert plain >= 0.8 * studies
    assert kept["sieve"] <= count(1, 10)
    assert kept["multi-krum"] > 5 * max(1, kept["sieve"])


def test_liars_whom_multi_krum_keeps_set_the_metric() -> None:
    """All four lie along a direction in which honest records hardly vary; they are half of what multi-Krum keeps."""
    rng = np.random.default_rng(1)
    for _ in range(10):
        found, liars = _federation(rng, FAULTY, 0.35, 0.0)
    assert set(liars) <= set(pool(found, Settings(FAULTY)).kept)
    assert not set(liars) & set(pool(found, SIEVE).kept)


def test_copies_of_the_honest_mean_are_the_centre() -> None:
    """Four times nine tenths of the mean, without noise: nearer to all than honest sites are. One of them stays."""
    rng = np.random.default_rng(2)
    found, liars = _federation(rng, FAULTY)
    lie = found[liars[0]].moments / found[liars[0]].count
    honest = {name: one for name, one in found.items() if name not in liars}
    mean = torch.stack([one.moments / one.count for one in honest.values()]).mean(dim=0)
    sent = replace(found[liars[0]], moments=ROWS * (0.9 * mean + 0.1 * lie))
    result = pool({**honest, **dict.fromkeys(liars, sent)}, SIEVE)
    assert len(set(result.kept) & set(liars)) == 1
    assert set(honest) <= set(result.kept)


@pytest.mark.parametrize("sent", [0.0, 1e150, -1e15, 1e-300])
def test_absurd_entries_get_honest_sites_left_out(sent: float) -> None:
    rng = np.random.default_rng(3)
    found, liars = _federation(rng, 3)
    for k, name in enumerate(liars):
        moments = found[name].moments.clone()
        moments[1:, 1:] = sent * (k + 1)
        found[name] = replace(found[name], moments=moments)
    result = pool(found, SIEVE)
    assert set(result.excluded) >= set(liars)
    assert len(result.excluded) <= FAULTY


def test_more_than_f_are_left_out() -> None:
    """Half of the sites are of another population: at most f may go, whatever stands out."""
    rng = np.random.default_rng(4)
    for share in (0.2, 0.5, 1.0):
        found, _ = _federation(rng, SITES // 2, share, 0.0)
        result = pool(found, replace(SIEVE, level=1e-12))  # so that nobody is dropped for an accusation besides
        assert len(result.excluded) <= FAULTY


def test_the_sieve_depends_on_the_order_of_sites() -> None:
    found, _ = _federation(np.random.default_rng(5), 3)
    assert pool(dict(reversed(found.items())), SIEVE).to_json() == pool(found, SIEVE).to_json()


def test_the_sieve_bears_more_liars_than_multi_krum() -> None:
    found, _ = _federation(np.random.default_rng(6), 0)
    with pytest.raises(GuaranteeError, match="at most faulty = 4"):
        pool(found, Settings(5, "sieve"))
    with pytest.raises(MisuseError, match="multi-krum, mean, sieve"):
        pool(found, Settings(1, "median"))


def test_doubt_makes_the_pool_more_precise() -> None:
    """With equal weights the variance is multiplied by 1 + (doubt · f)² / kept, sampling and noise alike."""
    found, _ = _federation(np.random.default_rng(7), 0)
    plain, doubted = (pool(found, replace(SIEVE, doubt=doubt)) for doubt in (0.0, 0.5))
    factor = plain.evidence.count / doubted.evidence.count
    assert factor == pytest.approx(1 + (0.5 * FAULTY) ** 2 / len(plain.kept), rel=0.05)
    ratio = [(one.evidence.noise / one.evidence.count) ** 2 for one in (doubted, plain)]
    assert ratio[0] / ratio[1] == pytest.approx(factor)
    torch.testing.assert_close(doubted.evidence.correlation(), plain.evidence.correlation())


def test_liars_who_each_tell_another_story_hide_one_another() -> None:
    """No direction is shared, and none stands out of the others: without the test of distances half of them stay."""
    generator, studies, kept = torch.Generator().manual_seed(8), count(40, 400), 0
    for _ in range(studies):
        values = torch.randn(20, 230, generator=generator, dtype=torch.float64)
        values[:7] *= 1.3
        kept += sum(site < 7 for site in _left(values, 7))
    assert kept <= 0.35 * 7 * studies
