"""Structural models against matrix algebra written out here, hand calculations and large samples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.scm import LinearSCM, NeuralSCM, NodeLinear

# a -> b -> d, a -> c -> d, c -> e, and f alone; the columns are not in causal order.
NAMES = ("d", "b", "f", "a", "e", "c")
EDGES = {("a", "b"): 0.8, ("a", "c"): -1.5, ("b", "d"): 2.0, ("c", "d"): 0.7, ("c", "e"): -0.4}
GRAPH = CausalGraph.dag(EDGES, ("f", "a", "b", "c", "d", "e"))
INTERCEPT = np.array([3.0, -1.0, 40.0, 5.0, 0.5, -2.0])
SPREAD = np.array([0.5, 1.0, 9.0, 2.0, 0.3, 1.2])
CENTRE, HALF = np.array([10.0, 0.0, 35.0, 4.0, 1.0, -9.0]), np.array([30.0, 8.0, 50.0, 10.0, 6.0, 20.0])

INTERVENTIONS: list[dict[str, float]] = [
    {},
    {"a": 7.0},  # a root
    {"d": -3.0},  # a leaf
    {"c": 2.5},  # the middle of a fork and of a chain
    {"f": 0.0},
    {"b": 1.0, "c": -1.0},
    {"a": 1.0, "c": 2.0, "e": 30.0},
]


def weights() -> np.ndarray:
    matrix = np.zeros((6, 6))
    for (cause, effect), weight in EDGES.items():
        matrix[NAMES.index(effect), NAMES.index(cause)] = weight
    return matrix


def algebra(do: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance in natural units: x = (I - B)^-1 (b + e), the rows of do replaced."""
    matrix, intercept, spread = weights(), INTERCEPT.copy(), SPREAD.copy()
    for name, value in do.items():
        j = NAMES.index(name)
        matrix[j], intercept[j], spread[j] = 0.0, value, 0.0
    system = np.eye(6) - matrix
    mixed = np.linalg.solve(system, np.diag(spread))
    return np.linalg.solve(system, intercept), mixed @ mixed.T


def linear() -> LinearSCM:
    """Fitted to the exact moments of the model above, over public bounds."""
    mean, covariance = algebra({})
    mean, covariance = (mean - CENTRE) / HALF, covariance / np.outer(HALF, HALF)
    moments = np.block([[np.ones((1, 1)), mean[None]], [mean[:, None], covariance + np.outer(mean, mean)]])
    sides = torch.from_numpy(CENTRE), torch.from_numpy(HALF)
    return LinearSCM.from_evidence(Evidence(NAMES, torch.from_numpy(500 * moments), 0.0, *sides), GRAPH)


def neural(seed: int = 0, dtype: torch.dtype = torch.float32, bend: float = 0.0) -> NeuralSCM:
    generator = torch.Generator().manual_seed(seed)
    model = NeuralSCM.from_linear(linear(), hidden=5, generator=generator, dtype=dtype)
    with torch.no_grad():
        model.head.weight.add_(bend * torch.randn(model.head.weight.shape, generator=generator, dtype=dtype))
    return model


def some_rows(n: int = 50) -> torch.Tensor:
    return linear().sample(n, None, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("do", INTERVENTIONS, ids=str)
def test_linear_moments_under_do_are_those_of_matrix_algebra(do: dict[str, float]) -> None:
    mean, covariance = linear().moments(do)
    expected_mean, expected_covariance = algebra(do)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(covariance, expected_covariance, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("do", INTERVENTIONS, ids=str)
@pytest.mark.parametrize("kind", ["linear", "neural"])
def test_samples_under_do_have_the_moments_of_matrix_algebra(kind: str, do: dict[str, float]) -> None:
    model: LinearSCM | NeuralSCM = linear() if kind == "linear" else neural()
    rows = model.sample(20_000, do, torch.Generator().manual_seed(2)).numpy()
    mean, covariance = algebra(do)
    deviation = np.sqrt(covariance.diagonal())
    # Five standard errors of a mean; covariances within 5 % of the product of deviations.
    np.testing.assert_array_less(np.abs(rows.mean(0) - mean), 5 * deviation / np.sqrt(len(rows)) + 1e-4)
    off = np.abs(np.cov(rows.T) - covariance)
    np.testing.assert_array_less(off, 0.05 * np.outer(deviation, deviation) + 1e-4)
    for name, value in do.items():
        assert (rows[:, NAMES.index(name)] == value).all()


def test_do_cuts_the_edges_into_its_node_and_no_others() -> None:
    _, observed = linear().moments()
    _, cut = linear().moments({"c": 1.0})
    position = {name: i for i, name in enumerate(NAMES)}
    assert observed[position["a"], position["e"]].abs() > 0.1
    assert cut[position["a"], position["e"]] == 0  # a reached e by c alone
    assert torch.equal(cut[position["c"]], torch.zeros(6, dtype=torch.float64))
    for kept in (("a", "a"), ("a", "b"), ("b", "b")):
        i, j = (position[name] for name in kept)
        assert cut[i, j] == pytest.approx(float(observed[i, j]), rel=1e-12)
    assert cut[position["a"], position["d"]] == pytest.approx(0.8 * 2.0 * 4.0, rel=1e-6)  # by b, var(a) = 4


def test_a_chain_and_a_fork_by_hand() -> None:
    position = {name: i for i, name in enumerate(NAMES)}
    mean = linear().moments({"a": 10.0})[0]
    b, c = -1 + 0.8 * 10, -2 - 1.5 * 10
    expected = {"a": 10.0, "b": b, "c": c, "d": 3 + 2 * b + 0.7 * c, "e": 0.5 - 0.4 * c, "f": 40.0}
    assert {name: float(mean[i]) for name, i in position.items()} == pytest.approx(expected, rel=1e-9)


def by_hand(row: dict[str, float], do: Mapping[str, float]) -> dict[str, float]:
    """Abduction, action and prediction of one row, node by node."""
    noise = {}
    for name in NAMES:
        parents = sum(weight * row[cause] for (cause, effect), weight in EDGES.items() if effect == name)
        noise[name] = row[name] - INTERCEPT[NAMES.index(name)] - parents
    world: dict[str, float] = {}
    for name in ("f", "a", "b", "c", "d", "e"):
        parents = sum(weight * world[cause] for (cause, effect), weight in EDGES.items() if effect == name)
        world[name] = do.get(name, INTERCEPT[NAMES.index(name)] + parents + noise[name])
    return world


@pytest.mark.parametrize("do", INTERVENTIONS, ids=str)
@pytest.mark.parametrize("kind", ["linear", "neural"])
def test_counterfactuals_are_abduction_action_and_prediction(kind: str, do: dict[str, float]) -> None:
    model: LinearSCM | NeuralSCM = linear() if kind == "linear" else neural(dtype=torch.float64)
    rows = some_rows(20)
    found = model.counterfactual(rows, do)
    for row, other in zip(rows.tolist(), found.tolist(), strict=True):
        expected = by_hand(dict(zip(NAMES, row, strict=True)), do)
        assert dict(zip(NAMES, other, strict=True)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("do", INTERVENTIONS, ids=str)
@pytest.mark.parametrize("kind", ["linear", "neural", "bent"])
def test_what_does_not_descend_from_the_held_nodes_is_unchanged_to_the_bit(kind: str, do: dict[str, float]) -> None:
    model = {"linear": linear, "neural": neural, "bent": lambda: neural(bend=0.3)}[kind]()
    rows = some_rows()
    found = model.counterfactual(rows, do)
    moved = GRAPH.descendants(do.keys())
    for j, name in enumerate(NAMES):
        same = torch.equal(found[:, j], rows[:, j])
        assert same == (name not in moved), name


@pytest.mark.parametrize("kind", ["linear", "bent"])
def test_a_counterfactual_that_changes_nothing_returns_the_row_to_the_bit(kind: str) -> None:
    model: LinearSCM | NeuralSCM = linear() if kind == "linear" else neural(bend=0.3)
    for row in some_rows(10):
        do = {name: float(row[NAMES.index(name)]) for name in ("a", "c")}
        assert torch.equal(model.counterfactual(row[None], do), row[None])


def test_a_counterfactual_leaves_the_factual_rows_alone() -> None:
    rows = some_rows()
    kept = rows.clone()
    for model in (linear(), neural()):
        model.counterfactual(rows, {"a": 0.0})
    assert torch.equal(rows, kept)


def test_sampling_is_decided_by_the_generator_alone() -> None:
    for model in (linear(), neural(bend=0.3)):
        torch.manual_seed(0)
        first = model.sample(100, {"a": 1.0}, torch.Generator().manual_seed(3))
        torch.manual_seed(1)
        assert torch.equal(first, model.sample(100, {"a": 1.0}, torch.Generator().manual_seed(3)))
        assert not torch.equal(first, model.sample(100, {"a": 1.0}, torch.Generator().manual_seed(4)))


def test_samples_beyond_one_chunk_go_through_the_mechanisms_like_the_first() -> None:
    model = neural(bend=0.3, dtype=torch.float64)
    rows = model.sample(10_000, {"f": 1.0}, torch.Generator().manual_seed(5))
    noise = (rows - model.centre) / model.half_range
    residual = noise - model(noise)
    free = [j for j, name in enumerate(NAMES) if name != "f"]
    deviation = (residual[8500:] / model.scale).std(0)[free]
    assert torch.allclose(deviation, torch.ones(5, dtype=torch.float64), atol=0.1)


def test_on_a_complete_dag_the_model_has_the_moments_of_the_evidence() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(40), rng.normal(size=(40, 3)) @ rng.normal(size=(3, 3)) + 2])
    evidence = Evidence(("a", "b", "c"), torch.from_numpy(x.T @ x))
    mean, covariance = LinearSCM.from_evidence(
        evidence, CausalGraph.dag([("c", "a"), ("c", "b"), ("a", "b")])
    ).moments()
    assert torch.allclose(mean, evidence.mean(), atol=1e-9)
    assert torch.allclose(covariance, evidence.covariance(), atol=1e-9)


def test_a_node_without_variation_of_its_own_is_refused() -> None:
    x = np.column_stack([np.ones(50), np.arange(50.0), 2 * np.arange(50.0)])
    evidence = Evidence(("a", "b"), torch.from_numpy(x.T @ x))
    with pytest.raises(DataError, match=r"b has residual variance .* given a"):
        LinearSCM.from_evidence(evidence, CausalGraph.dag([("a", "b")]))


def test_noise_that_eats_a_variance_is_refused_with_the_remedy() -> None:
    moments = torch.tensor([[50.0, 0.0, 0.0], [0.0, 9.0, 1.0], [0.0, 1.0, -2.0]], dtype=torch.float64)
    with pytest.raises(DataError, match="larger epsilon"):
        LinearSCM.from_evidence(Evidence(("a", "b"), moments, noise=5.0), CausalGraph.dag([("a", "b")]))


def test_a_graph_that_is_no_dag_over_the_columns_is_refused() -> None:
    evidence = Evidence(("a", "b"), torch.eye(3, dtype=torch.float64) * 9)
    with pytest.raises(MisuseError, match="needs a DAG"):
        LinearSCM.from_evidence(evidence, CausalGraph.cpdag(undirected=[("a", "b")]))
    with pytest.raises(MisuseError, match="different variables: b, c"):
        LinearSCM.from_evidence(evidence, CausalGraph.dag([("a", "c")]))


def test_the_neural_model_starts_exactly_at_the_linear_one() -> None:
    scaled = (some_rows() - torch.from_numpy(CENTRE)) / torch.from_numpy(HALF)
    assert torch.allclose(neural(dtype=torch.float64)(scaled), linear().predict(scaled), rtol=0, atol=1e-15)
    assert torch.allclose(neural(dtype=torch.float64).loss(scaled), linear().loss(scaled), rtol=1e-12)
    # In single precision too the network adds nothing: the prediction is that of the linear layer alone.
    model = neural()
    masked = scaled.to(torch.float32).unsqueeze(1) * model.mask
    assert torch.equal(model(scaled), model.linear(masked).squeeze(2))


def test_the_loss_is_the_mean_over_nodes_of_half_the_squared_standardised_residual() -> None:
    rows = some_rows()
    residual = rows.numpy() - INTERCEPT - rows.numpy() @ weights().T
    expected = ((residual / SPREAD) ** 2).mean(1) / 2
    scaled = (rows - torch.from_numpy(CENTRE)) / torch.from_numpy(HALF)
    np.testing.assert_allclose(linear().loss(scaled), expected, rtol=1e-6)
    np.testing.assert_allclose(neural().loss(scaled).detach(), expected, rtol=1e-3)


def test_gradients_at_masked_weights_are_exactly_zero_and_all_parameters_are_in_the_layers() -> None:
    model = neural(bend=0.3)
    model.loss((some_rows() - model.centre) / model.half_range).mean().backward()
    absent = ~torch.from_numpy(GRAPH.adjacency(NAMES).T.copy())
    for layer in (model.linear, model.hidden):
        assert layer.weight.grad is not None
        gradient = layer.weight.grad.transpose(1, 2)  # (d, in, out)
        assert (gradient[absent] == 0).all()
        assert (gradient[~absent] != 0).any()
    owned = {id(parameter) for layer in model.layers() for parameter in layer.parameters()}
    assert owned == {id(parameter) for parameter in model.parameters()}
    assert all(type(layer) is NodeLinear for layer in model.layers())


def test_a_record_gradient_has_the_closed_form_that_the_layer_states() -> None:
    torch.manual_seed(0)
    layer = NodeLinear(3, 4, 2, torch.float64)
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    g = torch.randn(1, 3, 2, dtype=torch.float64)
    (layer(x) * g).sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    assert torch.allclose(layer.weight.grad, g[0, :, :, None] * x[0, :, None, :])
    norm = layer.weight.grad.square().sum() + layer.bias.grad.square().sum()
    assert float(norm) == pytest.approx(float((g.square().sum(2) * (x.square().sum(2) + 1)).sum()))


def test_a_bent_mechanism_is_learnt_better_than_by_a_line() -> None:
    rng = np.random.default_rng(1)
    a = rng.uniform(-1, 1, 600)
    rows = np.column_stack([a, np.cos(3 * a) + 0.1 * rng.normal(size=600)])
    x = np.column_stack([np.ones(600), rows])
    line = LinearSCM.from_evidence(Evidence(("a", "b"), torch.from_numpy(x.T @ x)), CausalGraph.dag([("a", "b")]))
    model = NeuralSCM.from_linear(line, generator=torch.Generator().manual_seed(0))
    batch = torch.from_numpy(rows)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(150):
        optimiser.zero_grad()
        model.loss(batch).mean().backward()
        optimiser.step()
    residual = batch - model(batch).detach()
    assert residual[:, 1].std() < 0.3 * line.scale[1]
    assert residual[:, 0].std() == pytest.approx(float(line.scale[0]), rel=0.05)  # a root stays a constant and noise
    effect = model.counterfactual(torch.tensor([[0.0, 1.0]]), {"a": 1.0})[0, 1]
    assert float(effect) == pytest.approx(np.cos(3), abs=0.25)  # the line, nearly flat, would leave it at about 1


@pytest.mark.parametrize("model", [linear(), neural()], ids=["linear", "neural"])
def test_wrong_questions_are_named(model: LinearSCM | NeuralSCM) -> None:
    rows, generator = some_rows(5), torch.Generator()
    with pytest.raises(MisuseError, match="names q, x, which the model lacks"):
        model.sample(3, {"x": 1.0, "a": 1.0, "q": 2.0}, generator)
    with pytest.raises(MisuseError, match=r"do\(a=nan\)"):
        model.counterfactual(rows, {"a": float("nan")})
    with pytest.raises(MisuseError, match="n=0 rows"):
        model.sample(0, None, generator)
    for wrong in (rows[:, :5], rows[0]):
        with pytest.raises(DataError, match=r"expected \(n, 6\)"):
            model.counterfactual(wrong, {"a": 1.0})
        with pytest.raises(DataError, match=r"expected \(n, 6\)"):
            model.loss(wrong)
    rows[2, 3] = float("inf")
    with pytest.raises(DataError, match="Row 2, column 3 is inf"):
        model.counterfactual(rows, {"a": 1.0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = neural(dtype=dtype, bend=0.3)
    model.save(tmp_path / "model.safetensors")
    again = NeuralSCM.load(tmp_path / "model.safetensors")
    assert (again.names, again.graph, again.mask.dtype) == (model.names, model.graph, dtype)
    tensors, meta = model.state()
    found, description = again.state()
    assert description == meta == json.loads(json.dumps(meta))
    assert found.keys() == tensors.keys()
    assert all(found[name].tobytes() == tensors[name].tobytes() for name in tensors)
    rows = some_rows()
    assert torch.equal(again.counterfactual(rows, {"c": 0.0}), model.counterfactual(rows, {"c": 0.0}))


def test_a_state_does_not_change_with_the_model_it_was_taken_from() -> None:
    model = neural()
    tensors, meta = model.state()
    before = {name: array.copy() for name, array in tensors.items()}
    again = NeuralSCM.from_state(tensors, meta)
    with torch.no_grad():
        for each in (model, again):
            each.linear.weight.add_(1.0)
    assert all((tensors[name] == before[name]).all() for name in tensors)


def _without(tensors: dict[str, Any]) -> None:
    del tensors["hidden.bias"]


def _extra(tensors: dict[str, Any]) -> None:
    tensors["hidden.surprise"] = np.zeros(3, np.float32)


def _reshaped(tensors: dict[str, Any]) -> None:
    tensors["hidden.bias"] = tensors["hidden.bias"].T


def _retyped(tensors: dict[str, Any]) -> None:
    tensors["hidden.bias"] = tensors["hidden.bias"].astype(np.float64)


def _infinite(tensors: dict[str, Any]) -> None:
    tensors["hidden.bias"][0, 0] = np.inf


def _flat(tensors: dict[str, Any]) -> None:
    tensors["scale"][1] = 0.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without, "hidden.bias: missing"),
        (_extra, "hidden.surprise: not expected"),
        (_reshaped, r"hidden.bias: float32\(5, 6\), expected float32\(6, 5\)"),
        (_retyped, "hidden.bias: float64.*expected float32"),
        (_infinite, "hidden.bias: holds values that are not finite"),
        (_flat, "scale: smallest value 0, expected > 0"),
    ],
)
def test_a_foreign_state_is_refused_by_the_name_of_its_tensor(spoil: Any, message: str) -> None:
    tensors, meta = neural().state()
    spoil(tensors)
    with pytest.raises(DataError, match=message):
        NeuralSCM.from_state(tensors, meta)


def test_all_faults_of_a_foreign_state_are_listed_at_once() -> None:
    tensors, meta = neural().state()
    _without(tensors)
    _extra(tensors)
    _flat(tensors)
    with pytest.raises(DataError) as caught:
        NeuralSCM.from_state(tensors, meta)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other/1"},
        {"hidden": 0},
        {"hidden": True},
        {"hidden": 10**12},
        {"dtype": "float16"},
        {"names": ["a", "b"]},
        {"names": "abcdef"},
        {"graph": {"nodes": list(NAMES)}},
        {"graph": CausalGraph.cpdag(undirected=[("a", "b")], nodes=NAMES).to_json()},
        {"graph": 3},
        {"more": 1},
    ],
    ids=str,
)
def test_a_foreign_description_is_refused(change: dict[str, Any]) -> None:
    tensors, meta = neural().state()
    with pytest.raises(DataError):
        NeuralSCM.from_state(tensors, {**meta, **change})


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(DataError, match="Couldn't read a model"):
        NeuralSCM.load(path)
    path.write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(DataError, match="Couldn't read a model"):
        NeuralSCM.load(path)
    path.write_bytes(safetensors.numpy.save({"x": np.zeros(2)}))
    with pytest.raises(DataError, match="Couldn't read a model"):
        NeuralSCM.load(path)


def test_a_linear_model_is_frozen_and_lists_its_state() -> None:
    model: Any = linear()  # the types forbid the last line, but not to everybody
    assert set(model.state_dict()) == {"weight", "intercept", "scale", "centre", "half"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.scale = model.half
