"""What a coordinator and an auditor would decide otherwise: a round's randomness, who must answer, warnings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from causaldao.decisions import (
    PARAMETERS,
    Learnt,
    answers_needed,
    cautions,
    decide_round,
    generator_of,
    least_members,
    require_members,
    update_size,
)
from causaldao.errors import ConfigurationError, GuaranteeError
from causaldao.ledger.entry import MAX_BODY_BYTES
from causaldao.models.discovery.evidence import Evidence
from causaldao.signing import canonical, digest
from tests.causaldao.cases import study
from tests.simulations.planted_environments import study as declared

RULES = ["arc+caf", "bucketing+caf", "arc+centred-clipping", "nnm+trimmed-mean"]


def start(asked: Any) -> Learnt:
    d, hidden = len(asked.names), asked.training.hidden
    shapes = [(d, 1, d), (d, 1), (d, hidden, d), (d, hidden), (d, 1, hidden), (d, 1)]
    return Learnt({name: np.zeros(shape, np.float32) for name, shape in zip(PARAMETERS, shapes, strict=True)}, {})


def updates(asked: Any, round: int, members: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(round)
    return torch.randn(members, update_size(asked), generator=generator)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimiser", ["fedavgm", "fedyogi"])
def test_a_coordinator_that_was_killed_between_two_rounds_learns_another_model(rule: str, optimiser: str) -> None:
    """What it had on disk, copied, leads to the same bits as what it had in memory."""
    asked = study(aggregation={"rule": rule, "optimiser": optimiser})
    whole = torn = start(asked)
    for round in (1, 2, 3):
        _, whole = decide_round(asked, round, whole, updates(asked, round), 1)
        copied = Learnt(*({k: v.copy() for k, v in part.items()} for part in (torn.model, torn.memory)))
        _, torn = decide_round(asked, round, copied, updates(asked, round), 1)
        assert digest(whole.model) == digest(torn.model)
        assert digest(whole.memory) == digest(torn.memory)
    assert whole.memory


def test_a_round_changes_what_it_was_given() -> None:
    asked = study(aggregation={"rule": "arc+centred-clipping", "optimiser": "fedadam", "rate": 0.1})
    _, before = decide_round(asked, 1, start(asked), updates(asked, 1), 1)
    known, rows = (digest(before.model), digest(before.memory)), updates(asked, 2)
    decide_round(asked, 2, before, rows, 1)
    assert (digest(before.model), digest(before.memory)) == known
    assert torch.equal(rows, updates(asked, 2))


def test_the_rules_and_the_optimisers_memories_take_one_anothers_place() -> None:
    asked = study(aggregation={"rule": "arc+centred-clipping", "optimiser": "fedadam", "rate": 0.1})
    _, after = decide_round(asked, 1, start(asked), updates(asked, 1), 1)
    assert set(after.memory) == {"rule", "optimiser.m", "optimiser.v"}
    assert {array.shape for array in after.memory.values()} == {(update_size(asked),)}


def test_two_rounds_deal_alike() -> None:
    asked = study(aggregation={"rule": "bucketing+caf"})
    dealt = {
        tuple(torch.randperm(20, generator=generator_of(which, round, base)).tolist())
        for which in (asked, study(aggregation={"rule": "bucketing+krum"}))
        for round in (1, 2)
        for base in ("0" * 64, "1" * 64)
    }
    assert len(dealt) == 8
    again = [torch.randperm(20, generator=generator_of(asked, 1, "0" * 64)) for _ in range(2)]
    assert torch.equal(*again)


def test_a_rule_that_nothing_is_aggregated_by_counts() -> None:
    """Bulyan with f = 1 needs 7, the pool's multi-Krum 5."""
    trained = study(aggregation={"rule": "bulyan"})
    split = {"split": {"evidence": 1.0, "training": 0.0, "evaluation": 0.0}}
    voted = study(aggregation={"rule": "bulyan"}, training={"rounds": 0}, privacy=split)
    assert (least_members(trained), least_members(voted)) == (7, 5)
    require_members(voted, 5)
    with pytest.raises(GuaranteeError, match="at most faulty = 0"):
        require_members(trained, 6)
    assert answers_needed(trained, 8) == 7
    assert least_members(study(aggregation={"rule": "mean", "pool": "mean"}, consensus={"faulty": 3})) == 4


def test_evidence_is_paid_for_that_no_entry_can_hold() -> None:
    def wide(number: int, **tables: Any) -> Any:
        variables = [{"name": f"v{k}", "kind": "continuous", "bounds": [-1, 1]} for k in range(number)]
        return declared({}, variables=variables, effects=[], **tables)

    size, generator = 480, torch.Generator().manual_seed(0)
    drawn = torch.randn(size + 1, size + 1, generator=generator, dtype=torch.float64) / 3
    moments = drawn + drawn.T + 1e4 * torch.eye(size + 1, dtype=torch.float64)
    pooled = Evidence(tuple(f"v{k}" for k in range(size)), moments).to_json()
    assert len(canonical(pooled)) > MAX_BODY_BYTES
    require_members(wide(460), 5)
    require_members(wide(480, discovery={"evidence": "local"}), 8)  # nothing is pooled
    with pytest.raises(ConfigurationError, match="The pool of 480 columns"):
        require_members(wide(480), 5)
    with pytest.raises(ConfigurationError, match=r"The pool of 540 columns.*or features of fewer columns"):
        require_members(wide(60, discovery={"features": "fourier"}), 5)
    many = [{"name": f"e{k}".ljust(40, "x"), "targets": []} for k in range(100)]
    require_members(wide(20, environments=many), 300)
    with pytest.raises(ConfigurationError, match=r"101 pools of 34 columns.*or environments"):
        require_members(wide(34, environments=many), 300)


def test_a_study_without_liars_or_training_is_warned_of() -> None:
    split = {"split": {"evidence": 1.0, "training": 0.0, "evaluation": 0.0}}
    assert cautions(study(consensus={"faulty": 0}, aggregation={"rule": "mean"}), 4) == ()
    assert cautions(study(aggregation={"rule": "mean"}, training={"rounds": 0}, privacy=split), 5) == ()
    assert cautions(study(aggregation={"rule": "mean"}), 5)
