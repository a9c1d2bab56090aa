"""A graph solved level by level, against the same equations swept until nothing moves."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from causaldao.models.levels import Schedule
from causaldao.models.unit import CausalUnit, CausalUnitNetwork
from tests.counts import count

D = 7


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_dag(seed: int) -> Tensor:
    """Over columns that are not in causal order."""
    order = torch.randperm(D, generator=rng(seed))
    upper = (torch.rand(D, D, generator=rng(seed + 1)) < 0.4).float().triu(1)
    return upper[order][:, order]


def random_unit(seed: int) -> CausalUnit:
    unit = CausalUnit([f"v{j}" for j in range(D)], 3, adjacency=random_dag(seed), generator=rng(seed)).double()
    unit.offset.data.normal_(generator=rng(seed + 2))
    unit.centre.normal_(generator=rng(seed + 3))
    unit.spread.uniform_(0.5, 2, generator=rng(seed + 4))
    return unit


def random_do(seed: int, n: int = 9) -> tuple[Tensor, Tensor]:
    value = torch.randn(n, D, generator=rng(seed + 5), dtype=torch.float64)
    return torch.rand(n, D, generator=rng(seed + 6)) < 0.3, value


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_level_forgets_a_parent(kind: str) -> None:
    for seed in range(count(15, 300)):
        unit, (held, value) = random_unit(seed), random_do(seed)
        rows = torch.randn(9, D, generator=rng(seed + 7), dtype=torch.float64)
        mask = held if kind == "hard" else held * torch.rand(9, D, generator=rng(seed), dtype=torch.float64)
        for grad in (True, False):
            unit.train(grad)
            with torch.set_grad_enabled(grad):
                for method in (unit.forward, unit.counterfactual):
                    torch.testing.assert_close(method(rows, mask, value), method(rows, mask, value, unit.graph))
                torch.testing.assert_close(unit(rows), unit(rows, adjacency=unit.graph))


def test_below_a_few_held_nodes_is_not_below_all_of_them() -> None:
    """The network plans for the nodes that are named, the unit for any."""
    for seed in range(count(20, 300)):
        model = CausalUnitNetwork(D, [4], 1, False, adjacency=random_dag(seed), generator=rng(seed)).double()
        names = [model.unit.names[j] for j in torch.randperm(D, generator=rng(seed))[: 1 + seed % 3].tolist()]
        for n in (1, 9, 300):  # many rows: those that hold nothing are set apart
            held, value = random_do(seed, n)
            rows = torch.randn(n, D, generator=rng(seed + 7), dtype=torch.float64)
            places = [model.unit.names.index(name) for name in names]
            do = [{name: (held[:, j], value[:, j])} for name, j in zip(names, places, strict=True)]
            with torch.set_grad_enabled(seed % 2 == 0):
                world = model.unit.counterfactual(rows, *model.held(rows, do))
                torch.testing.assert_close(model(rows, do), model(world))
            still = ~held[:, places].any(1)
            assert torch.equal(model(rows, do)[still], model(rows)[still])
            reach = model.unit.graph.double() + torch.eye(D, dtype=torch.float64)
            below = torch.linalg.matrix_power(reach, D)[places] > 0
            fixed = ~(held[:, places].double() @ below.double() > 0)
            assert torch.equal(world[fixed], rows[fixed])


def test_gradients_of_levels_are_invented() -> None:
    unit, (held, value) = random_unit(3), random_do(3, 4)
    rows = torch.randn(4, D, generator=rng(0), dtype=torch.float64).requires_grad_()
    inputs = (rows, value.requires_grad_(), unit.weight, unit.bias, unit.head)
    assert torch.autograd.gradcheck(lambda rows, value, *_: unit.counterfactual(rows, held, value), inputs)
    assert torch.autograd.gradcheck(lambda rows, value, *_: unit(rows, held, value), (*inputs, unit.offset))


def test_an_order_puts_an_effect_before_its_cause_or_a_bystander_into_a_level() -> None:
    for seed in range(count(30, 500)):
        graph = random_dag(seed)
        held = torch.randperm(D, generator=rng(seed))[: seed % 4].tolist()
        found = Schedule.of(graph, held)
        assert sorted(found.order) == list(range(D))
        moved = [j for level in found.levels for j in level]
        assert found.order == (*found.order[: found.given], *found.starts, *moved)
        below = torch.linalg.matrix_power(graph + torch.eye(D), D)[held] > 0
        assert {*moved, *found.starts} == set(below.any(0).nonzero().squeeze(1).tolist())
        for earlier, later in pairwise((found.starts, *found.levels)):
            assert all(graph[:, j].any() for j in later)
            assert not graph[list(later)][:, list(earlier)].any()
            assert not graph[list(later)][:, list(later)].any()


def test_a_kept_plan_outlives_the_parameters_it_was_made_of() -> None:
    def answers(model: CausalUnitNetwork) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(rows, do)
            return found

    model = CausalUnitNetwork(D, [4], 1, False, adjacency=random_dag(1), generator=rng(1)).eval()
    rows, do = torch.randn(5, D, generator=rng(2)), [{"x1": (torch.ones(5, dtype=torch.bool), 1.0)}]
    assert model.unit.graph[0].any()
    seen = [answers(model)]
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    model(rows, do).sum().backward()
    changes = [
        optimiser.step,
        lambda: model.unit.weight.detach().mul_(1.5),
        lambda: model.load_state_dict(CausalUnitNetwork(D, [4], 1, False, generator=rng(4)).state_dict()),
        lambda: model.unit.settle(random_dag(5)),
        lambda: (model.unit.head.data.mul_(2), model.eval()),
    ]
    for change in changes:
        change()
        seen.append(answers(model))
        assert not torch.equal(seen[-1], seen[-2])
        torch.testing.assert_close(seen[-1], model(rows, do).detach())  # with gradients nothing is kept
