"""What would go wrong between the shared model and the wire: noise on masked weights, a loss that tells, a
wrong order.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.client.privacy.dpsgd import PrivateSteps
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.training import Momentum, averaged, evaluate, train
from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.discovery.evidence import Dictionary, Evidence, Variable
from causaldao.models.graph import CausalGraph
from causaldao.models.scm import LinearSCM, NeuralSCM

SEED = b"causaldao training tests, seed 1"
DICTIONARY = Dictionary(
    (Variable("x", bounds=(-3, 3)), Variable("y", bounds=(-6, 6)), Variable("z", bounds=(-9, 9))), 4.0
)
STEPS = PrivateSteps(count=5, rate=0.2, clip=1.0, noise_multiplier=0.5, denominator=400.0, learning_rate=1.0)


def table(n: int = 2000) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    x = rng.normal(size=n)
    y = np.sin(2 * x) * 3 + rng.normal(size=n) * 0.5
    return pd.DataFrame({"x": x, "y": y, "z": y + rng.normal(size=n)})


@pytest.fixture(scope="module")
def start() -> NeuralSCM:
    graph = CausalGraph.dag([("x", "y"), ("y", "z")])
    linear = LinearSCM.from_evidence(Evidence.from_data(table(), DICTIONARY), graph)
    return NeuralSCM.from_linear(linear, 8, generator=torch.Generator().manual_seed(0))


def moved(start: NeuralSCM, delta: np.ndarray) -> NeuralSCM:
    model = NeuralSCM.from_state(*start.state())
    vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.nn.utils.vector_to_parameters(vector + torch.from_numpy(delta), model.parameters())
    return model


def test_training_lowers_the_loss_of_the_shared_model(start: NeuralSCM) -> None:
    longer = replace(STEPS, count=200)
    delta = train(*start.state(), table(), DICTIONARY, longer, NoiseSource.simulated(SEED))["delta"]
    assert delta.dtype == np.float32
    rows = torch.from_numpy(DICTIONARY.encode(table())).float()
    with torch.no_grad():
        assert float(moved(start, delta).loss(rows).mean()) < float(start.loss(rows).mean()) - 0.03


def test_a_node_with_little_noise_does_not_make_training_diverge() -> None:
    frame = table()
    frame["z"] = (
        frame["y"] + 0.01 * frame["z"]
    )  # its residual scale is a hundredth: the plain curvature is in the thousands
    graph = CausalGraph.dag([("x", "y"), ("y", "z")])
    linear = LinearSCM.from_evidence(Evidence.from_data(frame, DICTIONARY), graph)
    model = NeuralSCM.from_linear(linear, 8, generator=torch.Generator().manual_seed(0))
    delta = train(*model.state(), frame, DICTIONARY, replace(STEPS, count=50), NoiseSource.simulated(SEED))["delta"]
    rows = torch.from_numpy(DICTIONARY.encode(frame)).float()
    with torch.no_grad():
        assert float(moved(model, delta).loss(rows).mean()) < 1.1 * float(model.loss(rows).mean())


def test_masked_weights_stay_where_they_are(start: NeuralSCM) -> None:
    model = moved(start, train(*start.state(), table(), DICTIONARY, STEPS, NoiseSource.simulated(SEED))["delta"])
    for before, after in ((start.linear, model.linear), (start.hidden, model.hidden)):
        masked = (start.mask == 0)[:, None, :].expand_as(before.weight)
        assert torch.equal(before.weight[masked], after.weight[masked])
        assert (before.weight[~masked] != after.weight[~masked]).all()


@pytest.mark.parametrize("n", [0, 1, 500])
def test_the_message_has_one_size_for_any_number_of_records(start: NeuralSCM, n: int) -> None:
    delta = train(*start.state(), table().iloc[:n], DICTIONARY, STEPS, NoiseSource.simulated(SEED))["delta"]
    loss = evaluate(*start.state(), table().iloc[:n], DICTIONARY, bound=4.0, noise_multiplier=1.0, count=500.0)["loss"]
    assert delta.shape == (sum(p.numel() for p in start.parameters()),)
    assert loss.shape == (1,)
    assert np.isfinite(delta).all()
    assert np.isfinite(loss).all()


def test_one_record_moves_the_loss_by_at_most_its_bound(start: NeuralSCM) -> None:
    def released(frame: pd.DataFrame) -> float:
        loss = evaluate(
            *start.state(),
            frame,
            DICTIONARY,
            bound=2.0,
            noise_multiplier=3.0,
            count=1.0,
            noise=NoiseSource.simulated(SEED),
        )
        return float(loss["loss"][0])

    odd = pd.DataFrame({"x": [3.0, math.nan, 0.0], "y": [-6.0, 1e300, 0.0], "z": ["no", math.inf, 0.0]})
    without = released(table(50))
    for place in range(3):
        step = released(pd.concat([table(50), odd.iloc[[place]]])) - without
        assert 0 <= step <= 2.0 + 1e-9


def test_the_released_loss_is_the_mean_within_its_noise(start: NeuralSCM) -> None:
    rows = torch.from_numpy(DICTIONARY.encode(table())).float()
    with torch.no_grad():
        exact = float(start.loss(rows).clamp(0, 4).mean())
    drawn = [
        float(evaluate(*start.state(), table(), DICTIONARY, bound=4.0, noise_multiplier=2.0, count=2000.0)["loss"][0])
        for _ in range(20)
    ]
    assert len(set(drawn)) == 20
    assert max(abs(loss - exact) for loss in drawn) < 8 * 2.0 * 4.0 / 2000


@pytest.mark.parametrize("change", [{"bound": 0.0}, {"noise_multiplier": 0.0}, {"count": -5.0}, {"count": math.nan}])
def test_a_loss_without_bound_or_noise_is_not_released(start: NeuralSCM, change: dict[str, float]) -> None:
    setting = {"bound": 4.0, "noise_multiplier": 1.0, "count": 9.0, **change}
    bound, noise, records = setting["bound"], setting["noise_multiplier"], setting["count"]
    with pytest.raises(MisuseError, match=next(iter(change))):
        evaluate(*start.state(), table(), DICTIONARY, bound=bound, noise_multiplier=noise, count=records)


def test_a_model_of_other_variables_is_refused(start: NeuralSCM) -> None:
    other = Dictionary(DICTIONARY.variables[::-1], 4.0)
    with pytest.raises(ConfigurationError, match="same order"):
        train(*start.state(), table(), other, STEPS)


def test_a_base_that_is_no_model_is_refused(start: NeuralSCM) -> None:
    tensors, meta = start.state()
    tensors["hidden.weight"][0] = math.nan
    with pytest.raises(DataError, match="not finite"):
        train(tensors, meta, table(), DICTIONARY, STEPS)


# FedProx


def distance(start: NeuralSCM, delta: np.ndarray) -> float:
    """How far training moved, each parameter in its node's units."""
    units = {name: p.clone() for name, p in start.named_parameters()}
    parts = [
        torch.ones_like(p) if name.startswith("hidden") else start.scale.reshape(-1, *[1] * (p.ndim - 1)).expand_as(p)
        for name, p in units.items()
    ]
    return float((torch.from_numpy(delta) / torch.cat([part.flatten() for part in parts])).norm())


def test_a_proximal_term_does_not_hold_the_model_near_its_base(start: NeuralSCM) -> None:
    longer = replace(STEPS, count=60, learning_rate=0.5)
    moved = [
        distance(
            start,
            train(*start.state(), table(), DICTIONARY, longer, NoiseSource.simulated(SEED), proximal=strength)["delta"],
        )
        for strength in (0.0, 0.2, 2.0)
    ]
    assert moved[0] > 1.1 * moved[1] > 1.1 * moved[2] > 0


def test_a_proximal_term_of_zero_is_a_term(start: NeuralSCM) -> None:
    plain, zero = (
        train(*start.state(), table(), DICTIONARY, STEPS, NoiseSource.simulated(SEED), **more)["delta"]
        for more in ({}, {"proximal": 0.0})
    )
    assert np.array_equal(plain, zero)


def test_a_step_of_the_full_pull_overshoots_the_base(start: NeuralSCM) -> None:
    """Rate × μ = 1, the most that a study may ask for: every step ends where the last gradient alone would."""
    full = {"proximal": 1 / STEPS.learning_rate}
    ended = train(*start.state(), table(), DICTIONARY, STEPS, NoiseSource.simulated(SEED), **full)["delta"]
    assert np.abs(ended).max() < 1e-6


def test_a_proximal_term_looks_at_records(start: NeuralSCM) -> None:
    """What it adds to a round is the same whatever the rows: with none at all it only draws the noise's way back."""
    steps, nothing = replace(STEPS, count=1), table().iloc[:0]
    plain, pulled = (
        train(*start.state(), nothing, DICTIONARY, steps, NoiseSource.simulated(SEED), proximal=strength)["delta"]
        for strength in (0.0, 0.25)
    )
    rows = table()
    seen, drawn = (
        train(*start.state(), rows, DICTIONARY, steps, NoiseSource.simulated(SEED), proximal=strength)["delta"]
        for strength in (0.0, 0.25)
    )
    np.testing.assert_allclose(pulled, 0.75 * plain, atol=1e-6)
    np.testing.assert_allclose(drawn, 0.75 * seen, atol=1e-6)


# Momentum


def sent(updates: np.ndarray, beta: float) -> list[np.ndarray]:
    found, last = [], None
    for update in updates:
        last = averaged(update, last, beta)
        found.append(last.average)
    return found


UPDATES = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999])
def test_momentum_is_not_adams(beta: float) -> None:
    m = np.zeros(4)
    for t, (update, average) in enumerate(zip(UPDATES, sent(UPDATES, beta), strict=True), start=1):
        m = beta * m + (1 - beta) * update
        np.testing.assert_allclose(average, m / (1 - beta**t), rtol=1e-5, atol=1e-6)


def test_the_first_update_is_shrunk() -> None:
    assert np.array_equal(sent(UPDATES, 0.9)[0], UPDATES[0])
    same = np.repeat(UPDATES[:1], 6, axis=0)
    for average in sent(same, 0.9):
        np.testing.assert_allclose(average, same[0], rtol=1e-6)


def test_without_momentum_a_round_remembers_the_last() -> None:
    assert np.array_equal(np.stack(sent(UPDATES, 0.0)), UPDATES)


def test_one_round_that_diverged_shuts_a_member_out_of_all_that_follow() -> None:
    broken = np.full(4, np.nan, dtype=np.float32)
    last = averaged(broken, averaged(UPDATES[0], None, 0.9), 0.9)
    assert not np.isfinite(last.average).any()
    again = averaged(UPDATES[1], last, 0.9)
    assert np.array_equal(again.average, UPDATES[1])
    assert again.rounds == 1


def test_the_average_of_a_long_study_is_not_finite() -> None:
    last = Momentum(UPDATES[0], 10_000)
    assert np.isfinite(averaged(UPDATES[1], last, 0.9).average).all()
