"""What would go wrong with private training: a norm that is not the gradient's, a step that tells how many
records there are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import cast

import pytest
import torch
from opacus import GradSampleModule
from opacus.grad_sample import (
    GradSampleModuleFastGradientClipping,
    register_grad_sampler,
    register_norm_sampler,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from causaldao.client.privacy.dpsgd import PrivateSteps, clipped_gradient, private_steps
from causaldao.client.privacy.noise import NoiseSource
from causaldao.errors import MisuseError
from causaldao.models.graph import CausalGraph
from causaldao.models.scm import NeuralSCM, NodeLinear

SEED = b"causaldao dpsgd tests, seed 0001"
D = 5
STEPS = PrivateSteps(count=4, rate=0.3, clip=0.7, noise_multiplier=1.1, denominator=6.0, learning_rate=0.2)


def model(dtype: torch.dtype = torch.float64) -> NeuralSCM:
    """A network with random weights everywhere, on the masked entries too."""
    names = [f"v{j}" for j in range(D)]
    graph = CausalGraph.dag([("v0", "v1"), ("v0", "v2"), ("v1", "v3"), ("v2", "v3")], nodes=names)
    one = torch.ones(D, dtype=torch.float64)
    network = NeuralSCM(graph, names, 4, scale=one * 0.3, centre=one * 0, half=one, dtype=dtype)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return network


def rows(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.rand(n, D, generator=torch.Generator().manual_seed(12), dtype=dtype) - 1


def per_record(network: NeuralSCM, batch: Tensor) -> Tensor:
    """(n, k): every record's own gradient, by torch.func."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, record: Tensor) -> Tensor:
            return network.loss(record[None])[0]

    loss = Loss()

    def of_one(p: dict[str, Tensor], record: Tensor) -> Tensor:
        value: Tensor = functional_call(loss, {f"network.{name}": t for name, t in p.items()}, (record,))
        return value

    grads = vmap(grad(of_one), in_dims=(None, 0))(parameters, batch)
    return torch.cat([grads[name].flatten(1) for name in parameters], dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("clip", [0.05, 1.0, 1e6])
def test_the_closed_form_is_the_sum_of_clipped_per_record_gradients(
    dtype: torch.dtype, tolerance: float, clip: float
) -> None:
    network, batch = model(dtype), rows(40, dtype)
    each = per_record(network, batch)
    lengths = each.norm(dim=1)
    expected = (each * (clip / lengths).clamp(max=1.0)[:, None]).sum(0)
    total, norms = clipped_gradient(network, batch, clip)
    torch.testing.assert_close(norms, lengths.double(), rtol=tolerance, atol=0)
    assert float((total - expected).norm()) <= tolerance * float(expected.norm()) * (1 if dtype == torch.float64 else 3)


def test_units_are_a_change_of_parameters() -> None:
    network, batch = model(), rows(40)
    units = [torch.linspace(0.1, 2.0, D, dtype=torch.float64), torch.ones(D), torch.linspace(3.0, 0.2, D)]
    entries = torch.cat(
        [
            u.double().repeat_interleave(p.numel() // D)
            for u, layer in zip(units, network.layers(), strict=True)
            for p in (layer.weight, layer.bias)
        ]
    )
    each = per_record(network, batch) * entries
    expected = (each * (0.4 / each.norm(dim=1)).clamp(max=1.0)[:, None]).sum(0)
    total, norms = clipped_gradient(network, batch, 0.4, units)
    torch.testing.assert_close(norms, each.norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-9)
    one = PrivateSteps(1, 1.0, 0.4, 0.5, 6.0, 0.2)
    source = NoiseSource.simulated(SEED)
    source.poisson_mask(1.0, 40)
    step = entries * (total + 0.2 * source.normal((len(total),))) * (-0.2 / 6.0)
    delta = private_steps(network, batch, one, NoiseSource.simulated(SEED), units=units)
    torch.testing.assert_close(delta, step.float(), rtol=1e-5, atol=1e-8)


def test_masked_weights_have_no_gradient_and_enter_no_norm() -> None:
    network = model()
    total, _ = clipped_gradient(network, rows(20), 1.0)
    parts = dict(
        zip(
            dict(network.named_parameters()),
            torch.split(total, [p.numel() for p in network.parameters()]),
            strict=True,
        )
    )
    masked = network.mask[:, None, :].expand_as(network.hidden.weight) == 0
    assert masked.any()
    assert (parts["hidden.weight"].reshape(masked.shape)[masked] == 0).all()
    assert (parts["hidden.weight"].reshape(masked.shape)[~masked] != 0).any()


def _samples(layer: NodeLinear, inputs: list[Tensor], slopes: Tensor) -> dict[nn.Parameter, Tensor]:
    return {layer.weight: torch.einsum("ndo,ndi->ndoi", slopes, inputs[0]), layer.bias: slopes}


def _norms(layer: NodeLinear, inputs: list[Tensor], slopes: Tensor) -> dict[nn.Parameter, Tensor]:
    return {parameter: sample.flatten(1).norm(dim=1) for parameter, sample in _samples(layer, inputs, slopes).items()}


def test_the_closed_form_is_what_opacus_computes() -> None:
    register_grad_sampler(NodeLinear)(_samples)
    register_norm_sampler(NodeLinear)(_norms)
    network, batch = model(), rows(30).requires_grad_()  # opacus's hooks warn where no input has a gradient
    wrapped = GradSampleModule(copy.deepcopy(network), loss_reduction="sum", strict=False)
    ((batch - wrapped(batch)) / network.scale).square().mean(1).div(2).sum().backward()
    samples = [cast(Tensor, vars(p)["grad_sample"]) for p in wrapped.parameters()]
    each = torch.cat([sample.flatten(1) for sample in samples], dim=1)
    ghost = GradSampleModuleFastGradientClipping(
        copy.deepcopy(network), max_grad_norm=0.5, use_ghost_clipping=True, loss_reduction="sum", strict=False
    )
    ((batch - ghost(batch)) / network.scale).square().mean(1).div(2).sum().backward()
    total, norms = clipped_gradient(network, batch.detach(), 0.5)
    torch.testing.assert_close(norms, ghost.get_norm_sample(), rtol=1e-10, atol=0)
    torch.testing.assert_close(norms, each.norm(dim=1), rtol=1e-10, atol=0)
    expected = (each * (0.5 / each.norm(dim=1)).clamp(max=1.0)[:, None]).sum(0)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)


def test_adding_a_record_moves_the_sum_by_at_most_the_clip() -> None:
    network, batch = model(torch.float32), rows(30, torch.float32)
    batch[0] *= 1e6
    batch[1] *= 1e30
    whole, _ = clipped_gradient(network, batch, 0.3)
    for place in range(30):
        without, _ = clipped_gradient(network, torch.cat([batch[:place], batch[place + 1 :]]), 0.3)
        assert float((whole - without).norm()) <= 0.3 * (1 + 1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_record_without_a_finite_gradient_contributes_nothing(value: float) -> None:
    network, batch = model(torch.float32), rows(6, torch.float32)
    clean, _ = clipped_gradient(network, batch[1:], 0.5)
    batch[0] = value
    dirty, _ = clipped_gradient(network, batch, 0.5)
    torch.testing.assert_close(dirty, clean)


def test_no_record_at_all_gives_a_zero_sum() -> None:
    total, norms = clipped_gradient(model(), rows(0), 1.0)
    assert (total == 0).all()
    assert total.shape == (sum(p.numel() for p in model().parameters()),)
    assert norms.shape == (0,)


class Outside(NeuralSCM):
    def layers(self) -> Iterator[NodeLinear]:
        yield from (self.linear, self.head)


class Twice(NeuralSCM):
    def forward(self, scaled: Tensor) -> Tensor:
        return super().forward(scaled) + super().forward(-scaled)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Outside, "hidden.weight, hidden.bias are in no NodeLinear"), (Twice, "used 2 times")],
)
def test_a_model_whose_norms_would_be_wrong_is_refused(kind: type[NeuralSCM], reason: str) -> None:
    network = model()
    network.__class__ = kind
    with pytest.raises(MisuseError, match=reason):
        clipped_gradient(network, rows(3), 1.0)


def test_the_steps_are_those_of_dp_sgd_written_out() -> None:
    network, data, source = model(), rows(20), NoiseSource.simulated(SEED)
    vector = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    expected = vector.clone()
    for _ in range(STEPS.count):
        batch = data[source.poisson_mask(STEPS.rate, 20)]
        current = copy.deepcopy(network)
        torch.nn.utils.vector_to_parameters(expected, current.parameters())
        each = per_record(current, batch)
        clipped = (each * (STEPS.clip / each.norm(dim=1)).clamp(max=1.0)[:, None]).sum(0)
        noisy = clipped + STEPS.clip * STEPS.noise_multiplier * source.normal(tuple(vector.shape))
        expected = expected - STEPS.learning_rate * noisy / STEPS.denominator
    delta = private_steps(network, data, STEPS, NoiseSource.simulated(SEED))
    assert delta.dtype == torch.float32
    torch.testing.assert_close(delta, (expected - vector).float(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n", [0, 1, 50])
def test_steps_and_shapes_do_not_depend_on_the_number_of_records(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []
    normal = NoiseSource.normal

    def recorded(self: NoiseSource, shape: tuple[int, ...]) -> Tensor:
        drawn.append(shape)
        return normal(self, shape)

    monkeypatch.setattr(NoiseSource, "normal", recorded)
    delta = private_steps(model(), rows(n), STEPS, NoiseSource.simulated(SEED))
    size = sum(p.numel() for p in model().parameters())
    assert delta.shape == (size,)
    assert drawn == [(size,)] * STEPS.count


def test_an_empty_sample_still_makes_a_noised_step() -> None:
    delta = private_steps(model(), rows(0), STEPS, NoiseSource.simulated(SEED))
    scale = STEPS.learning_rate * STEPS.clip * STEPS.noise_multiplier * math.sqrt(STEPS.count) / STEPS.denominator
    assert (delta != 0).all()
    assert float(delta.std()) == pytest.approx(scale, rel=0.25)


def test_the_model_is_left_as_it_was() -> None:
    network = model()
    before = [p.clone() for p in network.parameters()]
    private_steps(network, rows(10), STEPS, NoiseSource.simulated(SEED))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(not layer._forward_hooks for layer in network.layers())


def test_entries_outside_the_support_stay_and_get_no_noise() -> None:
    network = model()
    support = {"linear.weight": network.mask.bool()[:, None, :]}
    delta = private_steps(network, rows(10), STEPS, NoiseSource.simulated(SEED), support=support)
    part = delta[: D * D].reshape(D, D)
    assert (part[network.mask == 0] == 0).all()
    assert (part[network.mask == 1] != 0).all()
    assert (delta[D * D :] != 0).all()
    with pytest.raises(MisuseError, match=r"linear\.wait"):
        private_steps(network, rows(1), STEPS, support={"linear.wait": network.mask})


def test_a_penalty_is_a_step_of_its_own_that_sees_no_data() -> None:
    network, one = model(), PrivateSteps(1, 0.3, 0.7, 1.1, 6.0, 0.2)
    plain = private_steps(network, rows(10), one, NoiseSource.simulated(SEED))
    pulled = private_steps(
        network,
        rows(10),
        one,
        NoiseSource.simulated(SEED),
        penalty=lambda p: p["head.bias"].square().sum() / 2,
    )
    after = network.head.bias.flatten().detach() + plain[-D:]
    torch.testing.assert_close((pulled - plain)[-D:].double(), -0.2 * after, rtol=1e-5, atol=1e-7)
    assert (pulled[:-D] == plain[:-D]).all()


def test_the_default_noise_is_fresh_entropy() -> None:
    first, second = (private_steps(model(), rows(3), STEPS) for _ in range(2))
    assert (first != second).all()


@pytest.mark.parametrize(
    "change",
    [
        {"rate": 1.5},
        {"rate": 0},
        {"noise_multiplier": 0},
        {"clip": math.inf},
        {"denominator": -3.0},
        {"count": 0},
        {"learning_rate": math.nan},
    ],
)
def test_settings_without_privacy_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(MisuseError, match=next(iter(change))):
        PrivateSteps(**{**vars(STEPS), **change})
