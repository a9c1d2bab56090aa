"""Advice on the split: what it promises is what noisy evidence shows, and what it asks for is possible."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from causaldao.advice import advised, view, views
from causaldao.budget import Plan, plan
from causaldao.errors import BudgetError, MisuseError
from causaldao.models.discovery.evidence import Evidence, partial
from causaldao.study import Study
from tests.causaldao.cases import study
from tests.counts import count

MEMBERS, RECORDS = 4, 2000


def _released(rho: float, noise: float, rng: np.random.Generator) -> Evidence:
    """The pool of `MEMBERS` members' exact second moments of two variables of deviation 1/2, with their noise."""
    n = MEMBERS * RECORDS
    rows = rng.multivariate_normal([0, 0], 0.25 * np.array([[1, rho], [rho, 1]]), size=n)
    x = np.concatenate([np.ones((n, 1)), rows], axis=1)
    error = rng.normal(size=(3, 3)) * noise * math.sqrt(MEMBERS)
    error = np.triu(error, 1) / math.sqrt(2)
    moments = torch.from_numpy(x.T @ x + error + error.T)
    return Evidence(("a", "b"), moments, noise * math.sqrt(MEMBERS))


def test_a_correlation_that_is_promised_in_nine_of_ten_is_found_less_often() -> None:
    asked = study()
    promised, rng = view(asked, MEMBERS, RECORDS), np.random.default_rng(0)
    noise = plan(asked).evidence.noise_multiplier * asked.dictionary.clip
    runs = count(200, 2000)
    critical = 2.5758293035489004  # two-sided, the study's level of .01
    found = 0
    for _ in range(runs):
        test = partial(_released(promised.pool, noise, rng), "a", "b")
        found += test.z / test.standard_error >= critical
    assert asked.consensus.level == 0.01
    assert abs(found / runs - 0.9) < 4 * math.sqrt(0.09 / runs)


def test_more_for_the_evidence_shows_less_or_costs_training_nothing() -> None:
    found = views(study(), 5, 1000)
    assert [one.evidence for one in found] == sorted(one.evidence for one in found)
    for one, more in pairwise(found):
        assert more.pool < one.pool < one.member
        assert one.training is not None
        assert more.training is not None
        assert more.training > one.training


def test_the_advised_share_is_larger_than_it_need_be_or_finds_too_little() -> None:
    found = views(study(), 5, 1000)
    between = (found[1].pool + found[2].pool) / 2
    assert advised(found, between) == found[2]
    assert advised(found, 0.999) == found[0]
    assert advised(found, found[-1].pool / 2) is None


def test_a_study_that_trains_nothing_is_advised_to_keep_some_for_training() -> None:
    split = {"split": {"evidence": 0.5, "training": 0.4, "evaluation": 0.1}}
    (only,) = views(study(training={"rounds": 0}, privacy=split), 5, 1000)
    assert (only.evidence, only.training) == (1.0, None)


def test_a_share_that_starves_training_ends_the_check_of_a_study_that_is_possible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as .9 of a small epsilon, where the study's own split leaves training what it needs."""

    def planned(asked: Study) -> Plan:
        if asked.privacy.split.evidence > 0.8:
            raise BudgetError("No noise is enough.")
        return plan(asked)

    monkeypatch.setattr("causaldao.advice.plan", planned)
    assert [one.evidence for one in views(study(), 5, 1000)] == [0.3, 0.5, 0.7]


@pytest.mark.parametrize(("members", "records"), [(0, 100), (3, 3)])
def test_nobody_is_promised_something(members: int, records: int) -> None:
    with pytest.raises(MisuseError, match=f"{members} members of {records} records"):
        view(study(), members, records)
