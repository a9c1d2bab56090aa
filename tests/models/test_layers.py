"""Layers shaped by a graph: what is absent stays absent."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.graph import CausalGraph
from causaldao.models.layers import CausalAttentionBias, CausalLinear, TemporalCausalConv

MASK = torch.tensor([[1, 0, 1], [0, 0, 1]])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_absent_input_reaches_an_output_or_its_weight_learns() -> None:
    layer = CausalLinear(2, 3, MASK, generator=rng())
    x = torch.randn(5, 2, generator=rng(1), requires_grad=True)
    for j in range(3):
        gradient = torch.autograd.grad(layer(x)[:, j].sum(), x, retain_graph=True, allow_unused=True)[0]
        assert torch.equal(gradient[0] != 0, MASK[:, j] != 0)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad != 0, MASK.T != 0)
    with torch.no_grad():
        layer.weight.fill_(9.0)
    assert torch.equal(layer(x)[:, 1], torch.zeros(5))


@pytest.mark.parametrize("present", [1, 10, 200])
def test_a_sparse_layer_starts_fainter_than_a_dense_one(present: int) -> None:
    mask = torch.zeros(200, 500)
    mask[:present] = 1
    x = torch.randn(400, 200, generator=rng(1))
    assert float(CausalLinear(200, 500, mask, gain=1.0, generator=rng())(x).detach().std()) == pytest.approx(
        1, rel=0.12
    )


def test_a_layer_draws_from_the_global_generator() -> None:
    first, second = (CausalLinear(4, 3, generator=rng(7)).weight for _ in range(2))
    assert torch.equal(first, second)


def test_the_future_is_seen() -> None:
    layer = TemporalCausalConv(2, 3, 4, generator=rng())
    x = torch.randn(1, 2, 10, generator=rng(1))
    later = x.clone()
    later[:, :, 6] += 1
    before, after = layer(x), layer(later)
    assert before.shape == (1, 3, 10)
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert (before[:, :, 6] != after[:, :, 6]).all()
    assert (before[:, :, 9] != after[:, :, 9]).all()


def test_a_lag_is_counted_from_the_wrong_end() -> None:
    mask = torch.zeros(2, 1, 3)
    mask[0, 0, 2] = 1
    layer = TemporalCausalConv(2, 1, 3, mask, generator=rng())
    x = torch.randn(4, 2, 8, generator=rng(1))
    expected = torch.cat([torch.zeros(4, 2), x[:, 0, :-2]], 1) * layer.weight[0, 0, 2]
    torch.testing.assert_close(layer(x)[:, 0], expected)
    by_hand = TemporalCausalConv(2, 1, 3, generator=rng())
    now = by_hand.bias + sum(by_hand.weight[0, i, lag] * x[:, i, 5 - lag] for i in range(2) for lag in range(3))
    torch.testing.assert_close(by_hand(x)[:, 0, 5], now)


CHAIN = CausalGraph.dag([("c", "a"), ("a", "b")], ("a", "b", "c"))


def attend(bias: Tensor, scores: Tensor) -> Tensor:
    """The weights of attention, read off by values that are the identity."""
    eye = torch.eye(3)
    return scaled_dot_product_attention(scores[None], math.sqrt(3) * eye[None], eye[None], attn_mask=bias)[0]


def test_a_large_score_opens_what_the_graph_closes() -> None:
    scores = torch.full((3, 3), -1e6)
    scores[0, 1] = scores[2, 0] = 1e6
    bias = CausalAttentionBias(CHAIN)
    with torch.no_grad():
        bias.strength.fill_(-50.0)
        bias.strength[0, 1] = 1e9
    weights = attend(bias(), scores).detach()
    open_ = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 1]])  # a: itself and c; b: itself and a; c: itself
    assert torch.equal(weights != 0, open_ != 0)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))


def test_an_ancestor_is_closed_or_a_bias_cannot_be_learnt() -> None:
    bias = CausalAttentionBias(CHAIN, ancestors=True)
    assert bias()[1].tolist() == [0, 0, 0]
    assert repr(bias) == "CausalAttentionBias(variables=3, open=6)"
    attend(bias(), torch.zeros(3, 3))[1, 2].backward()
    assert bias.strength.grad is not None
    assert (bias.strength.grad[1] != 0).all()
    assert not bias.strength.grad[[0, 2]].any()
    same = CausalAttentionBias.of(torch.tensor(CHAIN.adjacency()), ancestors=True)
    assert torch.equal(same.closed, bias.closed)


def test_a_layer_takes_what_does_not_fit() -> None:
    with pytest.raises(MisuseError, match=r"\(3, 2\): expected \(2, 3\)"):
        CausalLinear(2, 3, MASK.T)
    with pytest.raises(MisuseError, match="0 inputs and 3 outputs"):
        CausalLinear(0, 3)
    with pytest.raises(DataError, match="expected 2 columns"):
        CausalLinear(2, 3)(torch.zeros(5, 3))
    with pytest.raises(MisuseError, match="0 lags"):
        TemporalCausalConv(1, 1, 0)
    with pytest.raises(DataError, match=r"expected \(n, 2, time\)"):
        TemporalCausalConv(2, 1, 3)(torch.zeros(5, 3, 8))
    with pytest.raises(MisuseError, match="needs a DAG"):
        CausalAttentionBias(CausalGraph.cpdag(undirected=[("a", "b")]))
    with pytest.raises(ConfigurationError, match="cycle"):
        CausalAttentionBias.of(torch.tensor([[0, 1], [1, 0]]))
