"""Standardised residuals: 1 in 20 beyond 2 where the mechanism holds, far more where it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.consistency import causal_consistency, model_of_rules
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.rules import CausalRule, CausalRuleSet
from causaldao.models.scm import LinearSCM, NeuralSCM
from tests.models.random_models import dag_of, sample, weights

RNG = np.random.default_rng(5)
MATRIX = weights(RNG, 6, 2.5)
GRAPH = dag_of(MATRIX)
TABLE = sample(RNG, MATRIX, 4000) * 7 + 2
EVIDENCE = Evidence.from_data(TABLE)
MODEL = LinearSCM.from_evidence(EVIDENCE, GRAPH)
FRESH = torch.from_numpy((sample(RNG, MATRIX, 4000) * 7 + 2).to_numpy(copy=True))


def test_rows_of_the_same_mechanisms_are_called_inconsistent() -> None:
    found = causal_consistency(FRESH, MODEL)
    assert found.residuals.shape == (4000, 6)
    assert float((found.residuals.abs() > 1.96).double().mean()) == pytest.approx(0.05, abs=0.01)
    assert float(found.shift.abs().max()) < 4.5
    assert found.spread.tolist() == pytest.approx([1.0] * 6, abs=0.06)


def test_the_residual_is_not_the_noise_that_made_the_row() -> None:
    d = len(MATRIX)
    rows = FRESH.numpy()
    noise = ((rows - 2) / 7) @ (np.eye(d) - MATRIX)
    found = causal_consistency(FRESH, MODEL).residuals.numpy()
    assert np.corrcoef(noise.T, found.T)[:d, d:].diagonal() == pytest.approx(np.ones(d), abs=0.01)


def test_a_mechanism_that_changed_is_not_found_or_one_that_did_not_is() -> None:
    place = int(np.argmax((MATRIX**2).sum(0) * (MATRIX != 0).any(1)))  # has causes, and effects
    broken = MATRIX.copy()
    broken[:, place] *= -1
    rows = torch.from_numpy((sample(np.random.default_rng(1), broken, 4000) * 7 + 2).to_numpy(copy=True))
    spread = causal_consistency(rows, MODEL).spread
    assert float(spread[place]) > 1.3
    others = [float(s) for i, s in enumerate(spread) if i != place]
    assert others == pytest.approx([1.0] * 5, abs=0.06)


def test_a_forged_row_hides() -> None:
    rows = FRESH[:50].clone()
    _, effect = min(GRAPH.directed)
    rows[7, GRAPH.nodes.index(effect)] += 40
    assert int(causal_consistency(rows, MODEL).worst.argmax()) == 7
    assert float(causal_consistency(rows[7:8], MODEL).worst) > 4


def test_a_neural_model_that_is_linear_gives_other_residuals() -> None:
    neural = NeuralSCM.from_linear(MODEL, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = causal_consistency(FRESH, MODEL).residuals, causal_consistency(FRESH, neural).residuals
    assert torch.allclose(*both)


def test_true_rules_give_other_residuals_than_the_model() -> None:
    deviation = TABLE.std(ddof=0).to_numpy()
    rules = tuple(
        CausalRule(a, b, float(MODEL.weight[GRAPH.nodes.index(b), GRAPH.nodes.index(a)])) for a, b in GRAPH.directed
    )
    found = causal_consistency(FRESH, model_of_rules(CausalRuleSet(rules), EVIDENCE))
    assert deviation.min() > 0
    assert torch.allclose(found.residuals, causal_consistency(FRESH, MODEL).residuals, atol=1e-6)


def test_a_false_rule_leaves_a_residual_of_the_wrong_size_unseen() -> None:
    rules = CausalRuleSet((CausalRule("v00", "v01", 0.9),))
    fitted = model_of_rules(rules, EVIDENCE)
    odd = EVIDENCE.correlation()[0, 1]
    assert float(fitted.scale[1]) ** 2 == pytest.approx(float(1 - 2 * 0.9 * odd + 0.81), rel=1e-9)


def test_nonsense_gets_an_answer() -> None:
    with pytest.raises(DataError, match=r"shape \(3, 2\)"):
        causal_consistency(torch.zeros(3, 2), MODEL)
    with pytest.raises(DataError, match="not finite"):
        causal_consistency(torch.full((1, 6), float("nan")), MODEL)
    with pytest.raises(MisuseError, match="ghost"):
        model_of_rules(CausalRuleSet((CausalRule("ghost", "v00"),)), EVIDENCE)
    with pytest.raises(ConfigurationError, match="cycle"):
        model_of_rules(CausalRuleSet((CausalRule("v00", "v01"), CausalRule("v01", "v00"))), EVIDENCE)
    copy = Evidence.from_data(TABLE.assign(v01=TABLE["v00"]))
    with pytest.raises(DataError, match="residual variance"):
        model_of_rules(CausalRuleSet((CausalRule("v00", "v01", 1.0),)), copy)
