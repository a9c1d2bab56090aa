"""The privacy plan: never above the study's ε, close below it, and never below what tighter accountants find."""

from __future__ import annotations

import math

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import RDPAccountant

from causaldao.budget import ORDERS, Spend, epsilon_of, plan
from causaldao.errors import BudgetError
from causaldao.models.summaries import SENSITIVITY
from causaldao.study import Study
from tests.causaldao.cases import study

ROBUST = {"treatment": "dose", "outcome": "pain", "adjustment": ["age"], "method": "aipw"}
SUMS = {
    "privacy": {"split": {"evidence": 0.3, "training": 0.3, "evaluation": 0.1, "effects": 0.3}},
    "effects": [ROBUST, {**ROBUST, "estimand": "att"}],
}
PLANS = [
    {}, {"privacy": {"epsilon": 0.5}}, {"privacy": {"epsilon": 30.0}}, {"privacy": {"delta": 1e-9}},
    {"training": {"rounds": 40, "steps": 10, "sample_rate": 0.01}}, {"training": {"sample_rate": 1.0}},
    {"privacy": {"split": {"evidence": 0.1, "training": 0.8, "evaluation": 0.1}}},
    SUMS,
]  # fmt: skip


@pytest.mark.parametrize("changes", PLANS)
def test_a_plan_spends_more_than_the_study_allows(changes: dict[str, dict[str, object]]) -> None:
    asked = study(**changes)
    planned = plan(asked)
    assert planned.epsilon <= asked.privacy.epsilon
    assert planned.epsilon > 0.99 * asked.privacy.epsilon
    assert epsilon_of(planned.spends, asked.privacy.delta) == planned.epsilon
    share = asked.privacy.split.evidence * asked.privacy.epsilon
    assert epsilon_of([planned.evidence], asked.privacy.delta) <= share
    assert planned.sigma >= planned.evidence.noise_multiplier * asked.dictionary.clip * asked.dictionary.lattice**2


def test_the_sums_of_effects_spend_another_share_than_theirs() -> None:
    planned, without = plan(study(**SUMS)), plan(study())
    assert planned.effects is not None
    assert planned.effects.steps == 2  # one release for each effect
    assert planned.effects_sigma >= planned.effects.noise_multiplier * SENSITIVITY
    before = epsilon_of([planned.evidence, planned.effects], planned.delta)
    assert 0.99 * 0.6 * 4 < before <= 0.6 * 4  # of ε = 4, evidence and effects together
    assert planned.spends[1] == planned.effects
    assert (without.effects, without.effects_sigma) == (None, 0)


def test_the_account_differs_from_opacus() -> None:
    asked = study()
    accountant = RDPAccountant()
    for spend in plan(asked).spends:
        for _ in range(spend.steps):
            accountant.step(noise_multiplier=spend.noise_multiplier, sample_rate=spend.sample_rate)
    theirs = accountant.get_epsilon(asked.privacy.delta, alphas=list(ORDERS))
    assert plan(asked).epsilon == pytest.approx(theirs, rel=1e-9)


def test_the_account_is_below_a_tight_one() -> None:
    """The privacy-loss distribution is numerically tight: RDP may only lie above it."""
    asked = study()
    accountant = PLDAccountant()
    for spend in plan(asked).spends:
        event = GaussianDpEvent(spend.noise_multiplier)
        accountant.compose(
            event if spend.sample_rate == 1 else PoissonSampledDpEvent(spend.sample_rate, event), spend.steps
        )
    tight = accountant.get_epsilon(asked.privacy.delta)
    assert 0.5 * plan(asked).epsilon < tight <= plan(asked).epsilon


def test_a_study_that_does_not_train_has_no_plan() -> None:
    planned = plan(study(training={"rounds": 0}))
    assert planned.training is None
    assert planned.evaluation is None
    assert planned.spends == (planned.evidence,)
    assert planned.epsilon <= 4.0 * 0.5


def test_an_epsilon_that_no_noise_gives() -> None:
    with pytest.raises(BudgetError, match="raise epsilon") as caught:
        plan(study(privacy={"epsilon": 0.001}))
    assert caught.value.exit_code == 12


def test_more_noise_costs_more() -> None:
    delta = 1e-6
    costs = [epsilon_of([Spend(sigma, 0.1, 50)], delta) for sigma in (0.5, 1, 2, 4, 8, 100)]
    assert costs == sorted(costs, reverse=True)
    assert epsilon_of([], delta) == 0
    one, two = Spend(2.0), Spend(3.0, 0.1, 5)
    assert epsilon_of([one, two], delta) == epsilon_of([two, one], delta) > epsilon_of([one], delta)
    assert math.isclose(epsilon_of([Spend(2.0, 0.2, 6)], delta), epsilon_of([Spend(2.0, 0.2, 3)] * 2, delta))


def test_two_people_compute_two_plans() -> None:
    assert plan(study()) == plan(Study.from_mapping(study().to_json()))
