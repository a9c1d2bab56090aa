"""The causal unit against hand calculations, finite differences and the mutilated model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor

from causaldao.errors import CausalDAOError, ConfigurationError, DataError, MisuseError
from causaldao.models.unit import (
    CausalUnit,
    CausalUnitNetwork,
    acyclicity,
    mutilate,
    strongest_dag,
)
from causaldao.models.unit_training import CausalUnitTrainer, Experiments, energy_distance

FORK = {("X", "A"): 2.0, ("X", "B"): 1.5, ("B", "Y"): 2.0, ("A", "Y"): 4.0}
NAMES = ("Y", "A", "X", "B")  # not in causal order


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(names: tuple[str, ...], edges: Mapping[tuple[str, str], float]) -> CausalUnit:
    """silu(s) - silu(-s) = s: two hidden units make an exactly linear mechanism."""
    adjacency = torch.zeros(len(names), len(names))
    unit = CausalUnit(names, 2, adjacency=adjacency, generator=rng()).double()
    with torch.no_grad():
        for (cause, effect), weight in edges.items():
            i, j = names.index(cause), names.index(effect)
            adjacency[i, j] = 1
            unit.weight[i, j] = weight * torch.tensor([1.0, -1.0])
        unit.bias.zero_()
        unit.head.copy_(torch.tensor([1.0, -1.0]))
    unit.settle(adjacency)
    return unit


def bent(seed: int = 0) -> CausalUnit:
    """Nonlinear mechanisms over the fork's graph, in units that are not those of its rows."""
    adjacency = torch.zeros(4, 4)
    for cause, effect in FORK:
        adjacency[NAMES.index(cause), NAMES.index(effect)] = 1
    unit = CausalUnit(NAMES, 5, adjacency=adjacency, generator=rng(seed)).double()
    unit.centre.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    unit.spread.copy_(torch.tensor([2.0, 0.5, 1.5, 1.0]))
    return unit


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def some_do(n: int = 6, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Masks and values of their own for each row."""
    return torch.rand(n, 4, generator=rng(seed)) < 0.4, draw(n, 4, seed=seed + 1)


def only(name: str, n: int = 1) -> Tensor:
    return torch.tensor([each == name for each in NAMES]).expand(n, 4)


def test_do_blocks_more_than_the_edge_into_its_node() -> None:
    """X -> A, X -> B -> Y, and A -> Y: under do(A) the gradient is 3 by B, and nothing of it comes by A."""
    unit = linear(NAMES, FORK)
    noise, value = draw(1, 4).requires_grad_(), draw(1, 4).requires_grad_()
    rows = unit(noise, only("A"), value)
    by_noise, by_value = torch.autograd.grad(rows[0, NAMES.index("Y")], (noise, value))
    assert by_noise[0, NAMES.index("X")].item() == pytest.approx(3.0, abs=1e-12)
    assert by_noise[0, NAMES.index("A")].item() == 0.0
    assert by_value[0, NAMES.index("A")].item() == pytest.approx(4.0, abs=1e-12)
    free = torch.autograd.grad(unit(noise)[0, NAMES.index("Y")], noise)[0]
    assert free[0, NAMES.index("X")].item() == pytest.approx(3.0 + 2.0 * 4.0, abs=1e-12)


def test_a_gradient_leaks_through_the_cut_edge() -> None:
    noise = draw(3, 4).requires_grad_()
    held = bent()(noise, only("A", 3), torch.ones(3, 4))[:, NAMES.index("A")]
    assert torch.equal(held, torch.ones(3, dtype=torch.float64))
    gradient = torch.autograd.grad(held.sum(), noise, allow_unused=True)[0]
    assert gradient is None or not gradient.any()


@pytest.mark.parametrize("method", ["forward", "counterfactual"])
def test_gradients_through_do_are_invented(method: str) -> None:
    unit = bent()
    held, value = some_do()
    strength = (0.5 + torch.rand(4, 4, generator=rng(5), dtype=torch.float64)).requires_grad_()
    inputs = (draw(6, 4).requires_grad_(), value.requires_grad_(), strength, unit.weight, unit.head)

    def solve(rows: Tensor, value: Tensor, strength: Tensor, *_: Tensor) -> Tensor:
        adjacency = unit.graph * strength
        if method == "forward":
            solved: Tensor = unit(rows, held, value, adjacency)
            return solved
        return unit.counterfactual(rows, held, value, adjacency)

    assert torch.autograd.gradcheck(solve, inputs)


def test_one_rows_intervention_cuts_the_edges_of_another() -> None:
    unit, rows = bent(), draw(6, 4)
    held, value = some_do()
    assert held.any(0).all()
    assert not held.all(0).any()
    for method in (unit.forward, unit.counterfactual):
        together = method(rows, held, value)
        alone = torch.cat([method(rows[[i]], held[i], value[i]) for i in range(6)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_do_is_not_the_mutilated_model() -> None:
    """The graph without the edges into held nodes, whose own noise makes them what they were held at."""
    unit, noise = bent(), draw(6, 4).requires_grad_()
    held, value = some_do()
    graph = mutilate(unit.graph, held)
    assert graph.shape == (6, 4, 4)
    assert not (graph * held[:, None, :]).any()
    orphan = unit.mechanisms(torch.zeros(6, 4, dtype=torch.float64), torch.zeros(4, 4))
    stated = torch.where(held, value - orphan, noise)
    found = unit(noise, held, value)
    torch.testing.assert_close(found, unit(stated, adjacency=graph), rtol=0, atol=1e-12)
    step = 1e-6
    for row, node, by in product(range(6), range(4), range(4)):
        gradient = torch.autograd.grad(found[row, node], noise, retain_graph=True)[0][row, by]
        up, down = noise.detach().clone(), noise.detach().clone()
        up[row, by] += step
        down[row, by] -= step
        with torch.no_grad():
            ends = [unit(torch.where(held, value - orphan, each), adjacency=graph)[row, node] for each in (up, down)]
        assert float(gradient) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), abs=1e-7)


def test_a_rewired_graph_is_written_into_the_unit_or_has_no_gradient() -> None:
    unit = CausalUnit(NAMES, 4, generator=rng())
    before = unit.graph.clone()
    soft = unit.probabilities()
    torch.nn.functional.softplus(mutilate(soft, only("A")[0])).sum().backward()
    assert unit.logits is not None
    assert unit.logits.grad is not None
    assert unit.logits.grad[:, NAMES.index("B")].any()
    assert not unit.logits.grad[:, NAMES.index("A")].any()
    assert torch.equal(unit.graph, before)


@pytest.mark.parametrize("do", [{}, {"X": 1.0}, {"A": -2.0}, {"B": 0.5}, {"A": 1.0, "B": 2.0}, {"Y": 0.0}], ids=str)
def test_a_counterfactual_is_not_abduction_action_and_prediction(do: dict[str, float]) -> None:
    rows = draw(5, 4)
    held = torch.tensor([[name in do for name in NAMES]]).expand(5, 4)
    value = torch.tensor([[do.get(name, 0.0) for name in NAMES]]).expand(5, 4)
    found = linear(NAMES, FORK).counterfactual(rows, held, value)
    for row, other in zip(rows.tolist(), found.tolist(), strict=True):
        fact, world = dict(zip(NAMES, row, strict=True)), dict[str, float]()
        for node in ("X", "A", "B", "Y"):
            into = [(cause, weight) for (cause, effect), weight in FORK.items() if effect == node]
            noise = fact[node] - sum(weight * fact[cause] for cause, weight in into)
            world[node] = do.get(node, noise + sum(weight * world[cause] for cause, weight in into))
        assert dict(zip(NAMES, other, strict=True)) == pytest.approx(world, abs=1e-12)


def test_the_same_noise_gives_two_counterfactuals() -> None:
    unit, noise = bent(), draw(6, 4)
    held, value = some_do()
    torch.testing.assert_close(unit.counterfactual(unit(noise), held, value), unit(noise, held, value))


def test_what_does_not_descend_from_the_held_nodes_changes() -> None:
    rows = draw(5, 4).float()
    found = bent().float().counterfactual(rows, only("B", 5), torch.ones(5, 4))
    same = [NAMES.index(name) for name in ("X", "A")]
    assert torch.equal(found[:, same], rows[:, same])
    assert (found[:, NAMES.index("Y")] != rows[:, NAMES.index("Y")]).all()
    assert torch.equal(found[:, NAMES.index("B")], torch.ones(5))


def test_a_soft_intervention_is_hard() -> None:
    unit, noise = linear(NAMES, FORK), draw(3, 4)
    half = unit(noise, 0.5 * only("A", 3).double(), torch.ones(3, 4))
    natural = unit(noise)[:, NAMES.index("A")]
    torch.testing.assert_close(half[:, NAMES.index("A")], (natural + 1) / 2)


def test_a_cycle_has_no_price_or_a_dag_has_one() -> None:
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    for present in product((0.0, 1.0), repeat=len(pairs)):
        adjacency = torch.zeros(3, 3, dtype=torch.float64)
        for (i, j), edge in zip(pairs, present, strict=True):
            adjacency[i, j] = edge
        dag = nx.is_directed_acyclic_graph(nx.DiGraph(adjacency.numpy()))
        price = float(acyclicity(adjacency))
        assert math.isfinite(price)
        assert price == pytest.approx(0, abs=1e-12) if dag else price > 0.03
    assert torch.autograd.gradcheck(acyclicity, torch.rand(4, 4, generator=rng(), dtype=torch.float64).requires_grad_())


def test_the_threshold_leaves_a_cycle_or_takes_an_edge_that_closes_none() -> None:
    for seed in range(30):
        weights = torch.rand(5, 5, generator=rng(seed)) * (1 - torch.eye(5))
        graph = nx.DiGraph(strongest_dag(weights, 0.3).numpy())
        assert nx.is_directed_acyclic_graph(graph)
        for i, j in (weights > 0.3).nonzero().tolist():
            assert graph.has_edge(i, j) or nx.has_path(graph, j, i)
    upper = torch.rand(5, 5, generator=rng()).triu(1)
    assert torch.equal(strongest_dag(upper), (upper > 0.5).float())


def test_gates_are_not_drawn_for_each_row_or_pass_no_gradient() -> None:
    unit = CausalUnit(NAMES, 4, generator=rng())
    gates = unit.gates(500, 1.0, rng())
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert not gates.diagonal(dim1=1, dim2=2).any()
    torch.testing.assert_close(gates.mean(0), unit.probabilities(), atol=0.1, rtol=0)
    gates.sum().backward()
    assert unit.logits is not None
    assert unit.logits.grad is not None
    assert (unit.logits.grad + torch.eye(4)).all()


def network(**options: Any) -> CausalUnitNetwork:
    return CausalUnitNetwork(3, [8], 2, **{"enable_structure_learning": False, "generator": rng(), **options})


def test_do_x1_never_reaches_x2() -> None:
    model, x, y = network(), draw(4, 3).float(), draw(4, 2).float()
    mask = torch.tensor([True, False, True, True])
    do = [{"x1": (mask, torch.full((4,), 2.0))}]
    world, outcome = model.counterfactual(x, y, do)
    assert torch.equal(world[mask, 0], torch.full((3,), 2.0))
    assert (world[mask, 1] != x[mask, 1]).all()
    assert torch.equal(world[~mask], x[~mask])
    torch.testing.assert_close(outcome - y, model(x, do) - model(x))
    assert (model(x, do)[mask] != model(x)[mask]).all()
    assert torch.equal(model(x, do)[~mask], model(x)[~mask])
    upstream, _ = model.counterfactual(x, y, [{"x2": (mask, 2.0)}])
    assert torch.equal(upstream[:, 0], x[:, 0])


def test_interventions_in_two_dicts_do_not_act_together() -> None:
    model, x = network(), draw(4, 3).float()
    first, second = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    together = model(x, [{"x1": (first, 1.0), "x2": (second, torch.ones(4))}])
    assert torch.equal(together, model(x, [{"x1": (first, 1.0)}, {"x2": (second, 1.0)}]))
    split = [{"x1": (first & second, 1.0)}, {"x1": (first & ~second, 1.0)}]
    assert torch.equal(model(x, split), model(x, [{"x1": (first, 1.0)}]))


def test_a_saved_unit_forgets_its_graph() -> None:
    learnt = CausalUnitNetwork(3, [4], 1, generator=rng(1))
    learnt.unit.settle(torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 1, 0]]))
    other = CausalUnitNetwork(3, [4], 1, generator=rng(2))
    other.load_state_dict(learnt.state_dict())
    assert not other.unit.learns_structure
    assert other.unit.causal_graph().directed == {("x1", "x2"), ("x3", "x2")}
    x = draw(4, 3).float()
    do = [{"x1": (torch.ones(4, dtype=torch.bool), 1.0)}]
    assert torch.equal(learnt(x, do), other(x, do))


def planted(n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor, Experiments]:
    """x3 -> x1 -> x2, against the order of the columns, and an outcome of x2."""

    def solve(held: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        e, rows = draw(len(held), 4, seed=seed), torch.zeros(len(held), 3, dtype=torch.float64)
        at = 4 * torch.rand(len(held), 3, generator=rng(seed), dtype=torch.float64) - 2
        rows[:, 2] = torch.where(held[:, 2], at[:, 2], e[:, 2])
        rows[:, 0] = torch.where(held[:, 0], at[:, 0], 1.2 * rows[:, 2] + 0.6 * e[:, 0])
        rows[:, 1] = torch.where(held[:, 1], at[:, 1], 2 * torch.tanh(rows[:, 0]) + 0.6 * e[:, 1])
        return rows, rows[:, [1]] + 0.3 * e[:, [3]]

    rows, y = solve(torch.zeros(n, 3, dtype=torch.bool), seed)
    held = torch.eye(3, dtype=torch.bool).repeat_interleave(n // 4, 0)
    tried, outcome = solve(held, seed + 1)
    return rows, y, Experiments(tried, held, outcome)


def trained(
    steps: int = 40, structure: bool = True, **options: Any
) -> tuple[CausalUnitNetwork, list[dict[str, float]]]:
    rows, y, seen = planted()
    model = CausalUnitNetwork(3, [8], 1, structure, generator=rng(3))
    trainer = CausalUnitTrainer(model, **options, generator=rng(4))
    return model, trainer.train(rows, y, seen, steps=steps, batch=128)


def test_the_graph_is_guessed_from_the_order_of_the_columns() -> None:
    model, history = trained(500)
    assert model.unit.causal_graph().directed == {("x3", "x1"), ("x1", "x2")}
    assert sum(part["fit"] for part in history[-20:]) < sum(part["fit"] for part in history[:20])
    assert history[-1]["outcome"] < 0.3 < history[0]["outcome"]


@pytest.mark.parametrize(
    "switch",
    [
        {"intervention_prob": 0.0},
        {"intervention_prob": 0.8},
        {"counterfactual_weight": 0.0},
        {"structure_weight": 1.0},
        {"cut": False},
        {"structure": False},
        {"schedule": lambda progress: progress},
        {"sparsity": 0.0},
        {"acyclicity": 0.0},
        {"temperatures": (1.0, 1.0)},
    ],
    ids=lambda switch: next(iter(switch)),
)
def test_a_switch_of_the_trainer_does_nothing(switch: dict[str, Any]) -> None:
    usual, other = (dict(model.named_parameters()) for model, _ in (trained(), trained(**switch)))
    again = dict(trained()[0].named_parameters())
    assert all(torch.equal(usual[name], again[name]) for name in usual)
    assert any(not torch.equal(usual[name], other[name]) for name in usual if name in other)


def test_a_part_of_the_loss_stays_when_it_is_switched_off() -> None:
    history = trained()[1]
    assert set(history[0]) == {"fit", "structure", "outcome"}
    assert set(history[-1]) == {"fit", "outcome", "counterfactual"}
    off = trained(counterfactual_weight=0.0, structure_weight=0.0)[1]
    assert {name for parts in off for name in parts} == {"fit", "outcome"}


def test_the_schedule_is_not_asked_at_every_step() -> None:
    asked: list[float] = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return 1.0 if progress > 0.5 else 0.0

    _, history = trained(steps=10, structure=False, schedule=schedule)
    assert asked == pytest.approx([step / 10 for step in range(10)])
    assert not any("counterfactual" in parts for parts in history)  # never both sorts of rows in one batch


def test_a_model_that_ignores_the_intervention_has_no_counterfactual_loss() -> None:
    """The energy distance sees what a correlation of factual and counterfactual predictions calls perfect."""
    rows, _, seen = planted(2000)
    by_x1 = seen.rows[seen.held[:, 0]][:500]
    ignoring, true = rows[:500].clone(), rows[:500].clone()
    ignoring[:, 0] = true[:, 0] = by_x1[:, 0]
    true[:, 1] += 2 * torch.tanh(by_x1[:, 0]) - 2 * torch.tanh(rows[:500, 0])
    assert float(energy_distance(true, by_x1)) < 0.02 < 0.1 < float(energy_distance(ignoring, by_x1))
    line = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0]])
    assert float(energy_distance(*line)) == pytest.approx(2 * 1 - 1 - 0)


def _call(**options: Any) -> Callable[[], object]:
    return lambda: network(**options)


def _do(name: str, mask: Tensor, value: Any) -> Callable[[], object]:
    return lambda: network()(torch.zeros(4, 3), [{name: (mask, value)}])


def _train(rows: Tensor, experiments: Experiments | None = None, **options: Any) -> Callable[[], object]:
    return lambda: CausalUnitTrainer(network(), **options).train(rows, None, experiments, steps=2)


ALL = torch.ones(4, dtype=torch.bool)
CYCLE = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
BAD: dict[str, tuple[Callable[[], object], type[CausalDAOError], str]] = {
    "cycle": (_call(adjacency=CYCLE), ConfigurationError, "cycle through x1, x2, x3"),
    "loop": (_call(adjacency=torch.eye(3)), ConfigurationError, "cycle through x1, x2, x3: remove"),
    "adjacency shape": (_call(adjacency=torch.zeros(2, 3)), MisuseError, r"\(2, 3\): expected .*\(3, 3\)"),
    "adjacency NaN": (_call(adjacency=torch.full((3, 3), math.nan)), MisuseError, "finite"),
    "adjacency and learning": (
        _call(adjacency=CYCLE, enable_structure_learning=True), MisuseError, "enable_structure_learning=False",
    ),
    "names": (_call(names=["a", "b"]), MisuseError, "2 names for input_dim=3"),
    "name twice": (_call(names=["a", "b", "a"]), MisuseError, "each once"),
    "no outputs": (lambda: CausalUnitNetwork(3, [8], 0), MisuseError, r"\[3, 8, 0\]: expected at least 1"),
    "no units": (_call(mechanism_units=0), MisuseError, "hidden=0"),
    "unknown name": (_do("x9", ALL, 1.0), MisuseError, "x9, which the model lacks. It has x1, x2, x3"),
    "mask of floats": (_do("x1", ALL.float(), 1.0), DataError, "expected a bool mask"),
    "mask shape": (_do("x1", ALL[:2], 1.0), DataError, r"shape \(2,\)"),
    "value shape": (_do("x1", ALL, torch.ones(3)), DataError, r"values of shape \(3,\)"),
    "value NaN": (_do("x1", ALL, math.nan), DataError, "column 0 is nan"),
    "held twice": (
        lambda: network()(torch.zeros(4, 3), [{"x1": (ALL, 1.0)}, {"x1": (ALL, 2.0)}]), MisuseError, "twice in row 0",
    ),
    "rows shape": (lambda: network()(torch.zeros(4, 2)), DataError, r"\(4, 2\): expected \(n, 3\)"),
    "rows infinite": (lambda: network()(torch.full((4, 3), math.inf)), DataError, "row 0, column 0 is inf"),
    "mask alone": (lambda: bent()(draw(2, 4), only("A", 2)), MisuseError, "give both or neither"),
    "soft mask": (lambda: bent()(draw(2, 4), 2.0 * only("A", 2), draw(2, 4)), DataError, "from 0 to 2"),
    "cycle as argument": (
        lambda: bent()(draw(2, 4), adjacency=1 - torch.eye(4)), ConfigurationError, "cycle through Y, A, X, B",
    ),
    "argument shape": (lambda: bent()(draw(2, 4), adjacency=CYCLE), MisuseError, r"expected \(4, 4\) or \(2, 4, 4\)"),
    "gates of a given graph": (lambda: bent().gates(2, 1.0), MisuseError, "no gates"),
    "temperature": (lambda: CausalUnit(NAMES).probabilities(0.0), MisuseError, "temperature=0.0"),
    "probability": (_train(draw(9, 3), intervention_prob=1.5), MisuseError, r"intervention_prob=1.5.*\[0, 1\]"),
    "weight": (_train(draw(9, 3), structure_weight=math.nan), MisuseError, "structure_weight=nan"),
    "sparsity": (_train(draw(9, 3), sparsity=-1.0), MisuseError, r"sparsity=-1.0.*at least 0"),
    "gates": (_train(draw(9, 3), temperatures=(1.0, 0.0)), MisuseError, "temperatures=0.0"),
    "no experiments": (_train(draw(9, 3)), MisuseError, "pass experiments, or set intervention_prob=0"),
    "constant": (_train(torch.zeros(9, 3), intervention_prob=0.0), DataError, "x1, x2, x3 does not vary over 9 rows"),
    "held shape": (_train(draw(9, 3), Experiments(draw(9, 3), ALL)), DataError, "expected bool"),
    "schedule": (
        _train(draw(9, 3), Experiments(draw(9, 3), torch.ones(9, 3) > 0), schedule=lambda _: 2.0),
        MisuseError, "schedule gave 2.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_taken(case: str) -> None:
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()


def test_large_finite_rows_are_refused() -> None:
    assert network()(torch.full((4, 3), 3e38)).shape == (4, 2)
