"""The made-up record of a report: drawn outside the bounds, changed where it may not be, or somebody's choice."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.models.discovery.evidence import Dictionary, Evidence, Variable
from causaldao.models.graph import CausalGraph
from causaldao.models.scm import LinearSCM, NeuralSCM
from causaldao.server.example import example

NAMES = ("age", "dose", "pain", "weight")


@pytest.fixture(scope="module")
def model() -> NeuralSCM:
    """age -> dose -> pain, age -> pain, and weight, which nothing moves; dose moves pain by -2."""
    rng = np.random.default_rng(0)
    age = rng.normal(size=2000)
    dose = 0.5 * age + rng.normal(size=2000)
    frame = pd.DataFrame({"age": age, "dose": dose, "pain": age - 2 * dose + rng.normal(size=2000)})
    frame["weight"] = rng.normal(size=2000)
    dictionary = Dictionary(tuple(Variable(name, bounds=(-4.0, 4.0)) for name in NAMES), 5.0)
    dag = CausalGraph.dag([("age", "dose"), ("age", "pain"), ("dose", "pain")], NAMES)
    linear = LinearSCM.from_evidence(Evidence.from_data(frame, dictionary), dag)
    return NeuralSCM.from_linear(linear, 4, generator=torch.Generator().manual_seed(0))


def test_the_record_leaves_the_bounds_or_changes_where_the_treatment_does_not_reach(model: NeuralSCM) -> None:
    found = example(model, [{"treatment": "dose", "outcome": "pain"}])
    assert found is not None
    assert all(abs(value) <= 4 for values in found["variables"].values() for value in values.values())
    for name in ("age", "weight"):
        assert found["variables"][name]["drawn"] == found["variables"][name]["counterfactual"]
    moved = {name: v["counterfactual"] - v["drawn"] for name, v in found["variables"].items()}
    assert found["variables"]["dose"]["counterfactual"] == found["value"]
    assert abs(moved["dose"]) > 0.5
    assert moved["pain"] == pytest.approx(-2 * moved["dose"], rel=0.1)
    assert example(model, [{"treatment": "dose", "outcome": "pain"}]) == found


def test_a_record_is_shown_that_answers_nothing(model: NeuralSCM) -> None:
    assert example(model, []) is None
