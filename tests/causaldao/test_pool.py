"""The pool: forged evidence is excluded and accused, honest evidence is not accused, quiet liars move it little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from causaldao.errors import DataError, GuaranteeError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.effects import average_effect, influence
from causaldao.pool import Pool, Question, Settings, pool
from tests.causaldao.cases import released, rows, sites, study
from tests.counts import count

STUDY = study()
QUESTION = Question("dose", "pain", ("age",))
SETTINGS = Settings(2, rows=(100, 5000), questions=(QUESTION,))


def _effect(found: Pool) -> float:
    return average_effect(found.evidence, "dose", "pain", ("age",)).estimate


def test_honest_sites_are_accused() -> None:
    """At family-wise level .05 an accusation of anyone may come in one study of twenty, not more."""
    rng = np.random.default_rng(0)
    studies, level = count(60, 1000), 0.05
    accused = sum(
        bool(pool(sites(rng, STUDY, 8, int(rng.integers(300, 4000))), replace(SETTINGS, level=level)).accused)
        for _ in range(studies)
    )
    assert accused <= binom.ppf(0.9999, studies, level)


def test_a_large_honest_site_is_accused() -> None:
    """The clamp bounds what a site weighs; it must not make the site's own moments per record wrong."""
    rng = np.random.default_rng(1)
    found = sites(rng, STUDY, 7)
    found["large"] = released(rng, rows(rng, 12_000), STUDY)
    result = pool(found, SETTINGS)
    assert result.accused == ()
    assert max(result.weights.values()) <= 2 * 1500 / sum([1500 * 6]) * 1.4


@pytest.mark.parametrize("effect", [3.0, 1.0, -4.0])
def test_forged_evidence_is_pooled(effect: float) -> None:
    rng = np.random.default_rng(2)
    found = sites(rng, STUDY, 10)
    for name in ("site-3", "site-7"):
        found[name] = released(rng, rows(rng, 1500, effect), STUDY)
    result = pool(found, SETTINGS)
    assert result.accused == ("site-3", "site-7")
    assert set(result.excluded) == {"site-3", "site-7"}
    assert set(result.weights) == set(result.kept) == set(found) - {"site-3", "site-7"}
    assert _effect(result) == pytest.approx(-1, abs=0.1)


def test_an_accused_site_stays_in_the_pool() -> None:
    """A forgery of one entry hides in the mean over many entries: not far by rank, but accused, and then dropped."""
    rng = np.random.default_rng(3)
    d, n = 20, 1000
    names = tuple(f"v{k:02}" for k in range(d))
    found = {}
    for k in range(9):
        x = np.concatenate([np.ones((n, 1)), rng.uniform(-1, 1, size=(n, d))], axis=1)
        found[f"site-{k}"] = Evidence(names, torch.from_numpy(x.T @ x))
    forged = found["site-8"].moments.clone()
    forged[1, 2] += 0.19 * n
    forged[2, 1] += 0.19 * n
    found["site-8"] = Evidence(names, forged)
    result = pool(found, Settings(1, rows=(10, 5000)))
    assert result.accused == ("site-8",)
    assert "site-8" not in result.kept
    assert "site-8" in result.excluded


@pytest.mark.parametrize("forge", [
    lambda m: m * 1e15, lambda m: m * 1e150, lambda m: m.fill_(1e15), lambda m: -m + 2 * m[0, 0] * torch.eye(4),
    lambda m: m * 1e-12, lambda m: m.fill_(1e-300),
])  # fmt: skip
def test_absurd_entries_move_the_pool(forge: Callable[[torch.Tensor], torch.Tensor]) -> None:
    rng = np.random.default_rng(4)
    found = sites(rng, STUDY, 8)
    for name in ("site-0", "site-1"):
        found[name] = replace(found[name], moments=forge(found[name].moments.clone()))
    result = pool(found, SETTINGS)
    assert _effect(result) == pytest.approx(-1, abs=0.15)


@pytest.mark.parametrize("declared", [1e15, 1e-9])
def test_a_declared_count_outweighs_the_others(declared: float) -> None:
    rng = np.random.default_rng(5)
    found = sites(rng, STUDY, 8)
    moments = found["site-0"].moments.clone()
    moments[0, 0] = declared
    found["site-0"] = replace(found["site-0"], moments=moments)
    result = pool(found, SETTINGS)
    assert "site-0" in result.accused
    scaled = replace(found["site-1"], moments=found["site-1"].moments * 1e6)  # consistent, but a million times as large
    result = pool({**found, "site-0": scaled}, SETTINGS)
    assert result.weights.get("site-0", 0) <= 2 / 7 + 1e-9


def test_a_count_below_nothing() -> None:
    moments = sites(np.random.default_rng(6), STUDY, 1)["site-0"].moments.clone()
    moments[0, 0] = -5.0
    with pytest.raises(DataError, match="counts -5"):
        Evidence(("age", "dose", "pain"), moments)


def test_the_noise_is_a_scale_that_a_site_declares() -> None:
    """`Evidence.from_release` takes σ from the study: a release has no field for it."""
    rng = np.random.default_rng(7)
    assert {e.noise for e in sites(rng, STUDY, 3).values()} == {released(rng, rows(rng, 200), STUDY).noise}


def test_a_question_that_noise_drowns_ends_the_study() -> None:
    """The graph and the other questions are still worth having: this one has no bound, and no part in accusations."""
    rng = np.random.default_rng(11)
    found = {name: replace(e, noise=e.noise * 1e3) for name, e in sites(rng, STUDY, 5, 300).items()}
    assert pool(found, replace(SETTINGS, faulty=1)).bounds == (None,)


def test_quiet_liars_move_an_answer_beyond_the_bound() -> None:
    """f liars just under the critical value, all in one direction: the worst that the docstring allows."""
    rng = np.random.default_rng(8)
    for _ in range(count(20, 300)):
        honest = sites(rng, STUDY, 9, int(rng.integers(500, 3000)))
        settings = replace(SETTINGS, faulty=2)
        liars = ("site-0", "site-1")
        clean = pool(
            {name: e for name, e in honest.items() if name not in liars}, replace(settings, rule="mean", faulty=0)
        )
        answer = influence(clean.evidence, *vars(QUESTION).values())
        gradient = answer.gradient / torch.linalg.matrix_norm(answer.gradient)
        best = None
        for step in np.linspace(0, 0.2, 41):  # the largest joint shift along the gradient that no test notices
            shifted = {
                name: replace(
                    clean.evidence,
                    noise=honest[name].noise,
                    moments=_shift(clean.evidence, honest[name], gradient * step),
                )
                for name in liars
            }
            found = pool({**honest, **shifted}, settings)
            if not set(liars) & set(found.accused) and set(liars) <= set(found.kept):
                best, best_sites = found, {**honest, **shifted}
        assert best is not None
        kept = {name: honest[name] for name in best.kept if name not in liars}
        truth = pool(kept, replace(settings, rule="mean", faulty=0))
        kept_moments = [best_sites[name].moments / best_sites[name].count for name in best.kept]
        centre = torch.stack(kept_moments).median(dim=0).values
        middle = replace(best.evidence, moments=best.evidence.count * centre / centre[0, 0])
        gradient = influence(middle, *vars(QUESTION).values()).gradient * best.evidence.count
        moved = best.evidence.moments / best.evidence.count - truth.evidence.moments / truth.evidence.count
        first_order = abs(float((gradient * moved).sum()))
        assert best.bounds[0] is not None
        assert first_order <= best.bounds[0] * (1 + 1e-9)


def _shift(base: Evidence, own: Evidence, change: torch.Tensor) -> torch.Tensor:
    """The pool's moments per record, moved by ``change`` but for the count, at the count of ``own``."""
    change = change.clone()
    change[0, 0] = 0
    return (base.moments / base.count + change) * own.count


def test_the_bound_is_far_too_large() -> None:
    found = pool(sites(np.random.default_rng(9), STUDY, 9), SETTINGS)
    assert 0 < found.bounds[0] < 1
    assert pool(sites(np.random.default_rng(9), STUDY, 9), replace(SETTINGS, faulty=0)).bounds == (0.0,)


def test_the_pool_depends_on_the_order_of_sites() -> None:
    found = sites(np.random.default_rng(10), STUDY, 8)
    assert pool(dict(reversed(found.items())), SETTINGS).to_json() == pool(found, SETTINGS).to_json()


def test_the_pool_is_not_the_sum_when_all_are_kept() -> None:
    found = sites(np.random.default_rng(11), STUDY, 5, 1000)
    mean = pool(found, Settings(0, rule="mean", rows=(10, 10**6)))
    total = sum((e.moments for e in found.values()), torch.zeros(4, 4, dtype=torch.float64))
    torch.testing.assert_close(mean.evidence.moments / mean.evidence.count, total / total[0, 0], rtol=0.02, atol=0.02)
    assert mean.evidence.count == pytest.approx(5000, rel=0.05)
    assert mean.evidence.noise == pytest.approx(found["site-0"].noise * 5**0.5, rel=0.05)
    assert mean.excluded == mean.accused == mean.bounds == ()


@pytest.mark.parametrize(("members", "faulty", "largest"), [(6, 2, 1), (10, 4, 3)])
def test_a_quorum_error_without_a_remedy(members: int, faulty: int, largest: int) -> None:
    with pytest.raises(GuaranteeError, match=f"at most faulty = {largest}\\b"):
        pool(sites(np.random.default_rng(12), STUDY, members), replace(SETTINGS, faulty=faulty))


def test_evidence_of_another_dictionary_is_pooled() -> None:
    found = sites(np.random.default_rng(13), STUDY, 5)
    other = found["site-0"].select(("dose", "age", "pain"))
    with pytest.raises(MisuseError, match="one dictionary"):
        pool({**found, "site-0": other}, Settings(1))
    with pytest.raises(MisuseError, match="multi-krum, mean"):
        pool(found, Settings(1, rule="median"))


def test_one_site_alone() -> None:
    found = pool(sites(np.random.default_rng(14), STUDY, 1), Settings(0, rule="mean"))
    assert found.weights == {"site-0": 1.0}


def test_a_claim_of_many_records_buys_precision() -> None:
    """A capped site adds no weight beyond the cap, and its claim must not narrow the interval either."""
    rng = np.random.default_rng(12)
    honest = sites(rng, STUDY, 7, 1000)
    boast = replace(honest["site-0"], moments=honest["site-0"].moments * 500)
    counts = pool(honest, SETTINGS).evidence.count, pool({**honest, "site-0": boast}, SETTINGS).evidence.count
    assert counts[1] <= counts[0] * 1.3
