"""Mechanisms: how one variable answers to its parents and to noise of its own, x_j = F_j(pa_j, u_j).

A kind of mechanism is data plus functions in `KINDS`; adding one is its functions here and one line there. All
functions work on g nodes of one kind at once: parents (g, p, n), targets and noise scores in columns of n rows. A
number is in units z = (x - mean) / deviation of the table; a count is natural; a category is the index of its level.

Noise u is standard normal and scalar, but for a category: there it is one Gumbel variable for each level, and the level
with the largest logit + noise is taken (Gumbel-max: Oberst & Sontag, ICML 2019). A count is the quantile of its law at
Φ(u): the monotone coupling. Of these two a row does not settle u, and `abduct` draws it from its posterior. The flow is
a rational-quadratic spline (Durkan et al., NeurIPS 2019) of u, conditioned on the parents like its place and scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from causaldao.errors import MisuseError

Params = dict[str, Tensor]
Domain = Literal["number", "count", "category"]

ABSENT = -1e9  # the logit of a level that another node of the group has and this one lacks
_KNOTS = 65  # of the noise's quantile function
_FLOOR = 1e-6  # least slope of a quantile function, as a share of the residual's deviation
_BENDS = 0.1  # of the spline by the parents, beside its place and scale: noise of one shape is the likelier guess
_BINS, _REACH = 8, 4.0  # of the spline, which is straight beyond ±reach
_LOG_2PI = math.log(2 * math.pi)
_LARGEST_LOG = 30.0  # of a count's mean


@dataclass(frozen=True)
class Size:
    """Of a node: columns of its parents, hidden units, levels (0 unless it is a category)."""

    parents: int
    hidden: int
    levels: int


@dataclass(frozen=True)
class Kind:
    """A kind of mechanism.

    ``layout`` gives the shape of each parameter of one node; those in ``trained`` follow the gradient of ``loss``
    (parameters, parents, target) -> (g, n) from ``start``; ``finish`` completes them from the rows that trained.
    Without ``trained``, ``start`` is the whole fit. ``mean`` is E[x | parents] (g, n), of a category the probabilities
    (g, levels, n). ``solve`` takes noise (g, w, n) to the target (g, n), ``abduct`` draws noise given target and
    parents, and ``log_prob`` is the log density of the target. ``settled``: without parents the start is the whole fit.
    ``additive``: target = mean + noise, whatever the parents. ``averaged``: several narrow networks are
    trained, and their mean is the mechanism.
    """

    name: str
    says: str
    domain: Domain
    invertible: bool
    layout: Callable[[Size], dict[str, tuple[int, ...]]]
    start: Callable[[Params, Tensor, Tensor], Params]
    mean: Callable[[Params, Tensor], Tensor]
    solve: Callable[[Params, Tensor, Tensor], Tensor]
    abduct: Callable[[Params, Tensor, Tensor, torch.Generator], Tensor]
    log_prob: Callable[[Params, Tensor, Tensor], Tensor]
    loss: Callable[[Params, Tensor, Tensor], Tensor]
    finish: Callable[[Params, Tensor, Tensor], Params] = lambda params, x, y: params
    trained: tuple[str, ...] = ()
    settled: bool = False
    additive: bool = False
    averaged: bool = False


def kind(name: str) -> Kind:
    """The kind of that name. MisuseError lists the names."""
    if name not in KINDS:
        raise MisuseError(f"There is no kind of mechanism {name!r}. The kinds are {', '.join(KINDS)}.")
    return KINDS[name]


def hidden_start(size: Size, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Params:
    """Zeros of a node's shapes, but for hidden units: weights of variance 2 / parents, biases uniform on [-2, 2]."""
    double = "hidden" not in shapes
    params = {
        name: torch.zeros(shape, dtype=torch.float64 if double else torch.float32) for name, shape in shapes.items()
    }
    if not double:
        params["hidden"] = torch.randn(shapes["hidden"], generator=generator) * math.sqrt(2 / max(size.parents, 1))
        params["hidden_bias"] = 4 * torch.rand(shapes["hidden_bias"], generator=generator) - 2
    return params


def least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes (g, p) and intercepts (g,) of y (g, n) on x (g, p, n); the shortest where columns are dependent."""
    x, y = x.double(), y.double()
    columns = torch.cat([torch.ones_like(x[:, :1]), x], 1) if x.shape[1] else torch.ones_like(y)[:, None]
    inverse = torch.linalg.pinv(columns @ columns.mT, hermitian=True, rtol=1e-13)
    beta = (inverse @ (columns @ y[..., None]))[..., 0]
    return beta[:, 1:], beta[:, 0]


# Numbers: linear and Gaussian


def _affine(size: Size) -> dict[str, tuple[int, ...]]:
    return {"linear": (1, size.parents), "bias": (1, 1), "scale": (1, 1)}


def _linear_start(params: Params, x: Tensor, y: Tensor) -> Params:
    slopes, intercept = least_squares(x, y)
    found = {**params, "linear": slopes[:, None], "bias": intercept[:, None, None]}
    residual = y - _linear_mean(found, x)
    return {**found, "scale": residual.square().mean(1).sqrt()[:, None, None]}


def _linear_mean(params: Params, x: Tensor) -> Tensor:
    return torch.baddbmm(params["bias"], params["linear"], x)[:, 0]


def _linear_log_prob(params: Params, x: Tensor, y: Tensor) -> Tensor:
    scale = params["scale"][:, 0]
    return _normal_log_prob((y - _linear_mean(params, x)) / scale) - scale.log()


def _normal_log_prob(u: Tensor) -> Tensor:
    return -(u.square() + _LOG_2PI) / 2


# Networks: a linear part and one layer of tanh


def _network(outputs: int | None) -> Callable[[Size], dict[str, tuple[int, ...]]]:
    def layout(size: Size) -> dict[str, tuple[int, ...]]:
        out = size.levels if outputs is None else outputs
        return {
            "linear": (out, size.parents), "bias": (out, 1), "hidden": (size.hidden, size.parents),
            "hidden_bias": (size.hidden, 1), "head": (out, size.hidden),
        }  # fmt: skip

    return layout


_WEIGHTS = ("linear", "bias", "hidden", "hidden_bias", "head")


def _forward(params: Params, x: Tensor) -> Tensor:
    """(g, p, n) -> (g, outputs, n), in the precision of the parameters."""
    if not x.shape[1]:
        return params["bias"].expand(-1, -1, x.shape[2])
    x = x.to(params["bias"].dtype)
    hidden = torch.baddbmm(params["hidden_bias"], params["hidden"], x).tanh_()
    return torch.baddbmm(torch.baddbmm(params["bias"], params["linear"], x), params["head"], hidden)


def _from_least_squares(params: Params, x: Tensor, y: Tensor) -> Params:
    """The first output starts as the least-squares line; a second as the log of what the line leaves."""
    slopes, intercept = least_squares(x, y)
    spread = (y - torch.baddbmm(intercept[:, None, None], slopes[:, None], x.double())[:, 0]).std(1).clamp(min=_FLOOR)
    linear, bias = params["linear"].clone(), params["bias"].clone()
    linear[:, 0], bias[:, 0, 0] = slopes.to(linear.dtype), intercept.to(bias.dtype)
    if bias.shape[1] > 1:
        bias[:, 1, 0] = spread.log().to(bias.dtype)
    return {**params, "linear": linear, "bias": bias}


# Numbers: additive noise, and noise of a scale that depends on the parents; the noise has a law of any shape


def _with_noise(outputs: int) -> Callable[[Size], dict[str, tuple[int, ...]]]:
    return lambda size: {**_network(outputs)(size), "noise": (_KNOTS,), "reach": (1,), "noise_mean": (1,)}


def _additive_place(params: Params, x: Tensor) -> Tensor:
    return _forward(params, x)[:, 0].double()


def _additive_mean(params: Params, x: Tensor) -> Tensor:
    return _additive_place(params, x) + params["noise_mean"]


def _additive_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return (_forward(params, x)[:, 0] - y).square() / 2


def _additive_finish(params: Params, x: Tensor, y: Tensor) -> Params:
    return {**params, **_quantiles(y - _additive_place(params, x))}


def _additive_log_prob(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return _noise_log_prob(params, y - _additive_place(params, x))


def _place_and_scale(params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
    out = _forward(params, x)
    return out[:, 0], (8 * torch.tanh(out[:, 1] / 8)).exp()  # a scale within e^±8: a wild row cannot overflow it


def _scaled_mean(params: Params, x: Tensor) -> Tensor:
    place, scale = _place_and_scale(params, x)
    return place + scale * params["noise_mean"]


def _scaled_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    place, scale = _place_and_scale(params, x)
    return ((y - place) / scale).square() / 2 + scale.log()


def _scaled_finish(params: Params, x: Tensor, y: Tensor) -> Params:
    place, scale = _place_and_scale(params, x)
    return {**params, **_quantiles((y - place) / scale)}


def _scaled_solve(params: Params, x: Tensor, noise: Tensor) -> Tensor:
    place, scale = _place_and_scale(params, x)
    return place + scale * _noise_value(params, noise[:, 0])


def _scaled_abduct(params: Params, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    place, scale = _place_and_scale(params, x)
    return _noise_score(params, (y - place) / scale)[:, None]


def _scaled_log_prob(params: Params, x: Tensor, y: Tensor) -> Tensor:
    place, scale = _place_and_scale(params, x)
    return _noise_log_prob(params, (y - place) / scale) - scale.log()


def _quantiles(residual: Tensor) -> Params:
    """The noise as a function of its normal score u: straight between knots, strictly rising, with the residual's mean.

    residual (g, n); knots stand evenly in u within ± the score of the extreme rows.
    """
    n = residual.shape[1]
    reach = float(stats.norm.ppf(1 - 0.5 / n))
    scores = np.linspace(-reach, reach, _KNOTS)
    values = torch.quantile(residual.double(), torch.from_numpy(stats.norm.cdf(scores)), dim=1).T
    floor = _FLOOR * residual.double().std(1, keepdim=True).clamp(min=_FLOOR) * (scores[1] - scores[0])
    steps = values.diff(dim=1).clamp(min=floor)
    values = torch.cat([values[:, :1], values[:, :1] + steps.cumsum(1)], 1)
    params = {"noise": values, "reach": torch.full((len(values), 1), reach, dtype=torch.float64)}
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.softmax(-grid.square() / 2, 0)
    drawn = (_noise_value(params, grid.expand(len(values), -1)) * weight).sum(1, keepdim=True)
    mean = residual.double().mean(1, keepdim=True)
    return {**params, "noise": values + (mean - drawn), "noise_mean": mean}


def _noise_value(params: Params, u: Tensor) -> Tensor:
    values, reach = params["noise"], params["reach"]
    place = (u + reach) * ((_KNOTS - 1) / 2 / reach)
    left = place.clamp(0, _KNOTS - 2).long()
    low = values.gather(1, left)
    return low + (place - left) * (values.diff(dim=1).gather(1, left))


def _noise_score(params: Params, residual: Tensor) -> Tensor:
    values, reach = params["noise"], params["reach"]
    left = (torch.searchsorted(values, residual.double().contiguous()) - 1).clamp(0, _KNOTS - 2)
    low = values.gather(1, left)
    place = left + (residual - low) / values.diff(dim=1).gather(1, left)
    return place * (2 * reach / (_KNOTS - 1)) - reach


def _noise_log_prob(params: Params, residual: Tensor) -> Tensor:
    values, reach = params["noise"], params["reach"]
    left = (torch.searchsorted(values, residual.double().contiguous()) - 1).clamp(0, _KNOTS - 2)
    slope = values.diff(dim=1).gather(1, left) * ((_KNOTS - 1) / 2 / reach)
    return _normal_log_prob(_noise_score(params, residual)) - slope.log()


# Numbers: a monotone flow


def _flow_parts(params: Params, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    out = _forward(params, x).double()
    own = params["bias"].double()
    out = torch.cat([out[:, :2], own[:, 2:] + _BENDS * (out - own)[:, 2:]], 1)
    widths, heights = (
        2 * _REACH * (0.01 / _BINS + 0.99 * torch.softmax(part, 1))
        for part in (out[:, 2 : 2 + _BINS], out[:, 2 + _BINS : 2 + 2 * _BINS])
    )
    inner = 0.01 + functional.softplus(out[:, 2 + 2 * _BINS :] + math.log(math.expm1(0.99)))
    ones = torch.ones_like(inner[:, :1])
    return out[:, 0], (8 * torch.tanh(out[:, 1] / 8)).exp(), (widths, heights, torch.cat([ones, inner, ones], 1))


def _bin(edges: Tensor, value: Tensor) -> Tensor:
    """The bin (g, 1, n) of each value (g, n) among inner edges (g, bins - 1, n)."""
    return (value[:, None] >= edges).sum(1, keepdim=True)


def _spline(parts: tuple[Tensor, Tensor, Tensor], value: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
    """(The spline's value, or what it is the value of; log of the forward slope there): all (g, n)."""
    widths, heights, slopes = parts
    inside = value.abs() < _REACH
    clipped = value.clamp(-_REACH, _REACH)
    right, top = widths.cumsum(1) - _REACH, heights.cumsum(1) - _REACH
    k = _bin((top if backwards else right)[:, :-1], clipped)
    w, h = widths.gather(1, k)[:, 0], heights.gather(1, k)[:, 0]
    x0, y0 = right.gather(1, k)[:, 0] - w, top.gather(1, k)[:, 0] - h
    d0, d1, s = slopes.gather(1, k)[:, 0], slopes.gather(1, k + 1)[:, 0], h / w
    bend = d0 + d1 - 2 * s
    if backwards:
        rise = clipped - y0
        a, b, c = h * (s - d0) + rise * bend, h * d0 - rise * bend, -s * rise
        t = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        found = x0 + t * w
    else:
        t = (clipped - x0) / w
        found = y0 + h * (s * t.square() + d0 * t * (1 - t)) / (s + bend * t * (1 - t))
    slope = s.square() * (d1 * t.square() + 2 * s * t * (1 - t) + d0 * (1 - t).square())
    slope = slope / (s + bend * t * (1 - t)).square()
    return torch.where(inside, found, value), torch.where(inside, slope.log(), 0.0)


def _flow_log_prob(params: Params, x: Tensor, y: Tensor) -> Tensor:
    place, scale, parts = _flow_parts(params, x)
    u, log_slope = _spline(parts, (y - place) / scale, backwards=True)
    return _normal_log_prob(u) - log_slope - scale.log()


def _flow_solve(params: Params, x: Tensor, noise: Tensor) -> Tensor:
    place, scale, parts = _flow_parts(params, x)
    return place + scale * _spline(parts, noise[:, 0], backwards=False)[0]


def _flow_abduct(params: Params, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    place, scale, parts = _flow_parts(params, x)
    return _spline(parts, (y - place) / scale, backwards=True)[0][:, None]


def _flow_mean(params: Params, x: Tensor) -> Tensor:
    scores = stats.norm.ppf((np.arange(32) + 0.5) / 32)
    place, scale, parts = _flow_parts(params, x)
    values = [_spline(parts, torch.full_like(place, score), backwards=False)[0] for score in scores]
    return place + scale * torch.stack(values).mean(0)


# Categories


def _category_start(params: Params, x: Tensor, y: Tensor) -> Params:
    """Logits that give each level its share of the rows."""
    bias = params["bias"].clone()
    for j, codes in enumerate(y.long()):
        counts = torch.bincount(codes, minlength=bias.shape[1])[: bias.shape[1]]
        present = bias[j, :, 0] > ABSENT / 2
        bias[j, present, 0] = ((counts[present] + 0.5) / (counts.sum() + 0.5 * present.sum())).log().to(bias.dtype)
    return {**params, "bias": bias}


def _category_log_prob(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return _forward(params, x).log_softmax(1).gather(1, y.long()[:, None])[:, 0]


def _category_solve(params: Params, x: Tensor, noise: Tensor) -> Tensor:
    return (_forward(params, x) + noise).argmax(1).double()


def _category_abduct(params: Params, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Posterior Gumbel noise, from the top: the maximum first, then the others below it (Maddison et al., 2014)."""
    logits = _forward(params, x).log_softmax(1).double()
    shape = logits.shape
    top = gumbel((shape[0], 1, shape[2]), generator)  # Σ exp(logits) = 1: the maximum is a standard Gumbel
    free = gumbel(shape, generator) + logits
    below = -torch.logaddexp(-top, -free)
    chosen = torch.zeros(shape, dtype=torch.bool).scatter_(1, y.long()[:, None], True)
    return torch.where(chosen, top, below) - logits


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel variables, float64."""
    return -torch.empty(shape, dtype=torch.float64).exponential_(generator=generator).log()


# Counts, coupled monotonically: x is the quantile at Φ(u)


def _count_start(params: Params, x: Tensor, y: Tensor) -> Params:
    bias = params["bias"].clone()
    bias[:, 0, 0] = y.mean(1).clamp(min=1e-3).log().to(bias.dtype)
    return {**params, "bias": bias}


def _count_mean(params: Params, x: Tensor) -> Tensor:
    return _forward(params, x)[:, 0].clamp(max=_LARGEST_LOG).exp().double()


def _poisson_log_prob(params: Params, x: Tensor, y: Tensor) -> Tensor:
    log_mean = _forward(params, x)[:, 0].clamp(max=_LARGEST_LOG)
    return y * log_mean - log_mean.exp() - torch.lgamma(y + 1)


def _spread_layout(size: Size) -> dict[str, tuple[int, ...]]:
    return {**_network(1)(size), "log_dispersion": (1, 1)}


def _dispersion(params: Params) -> Tensor:
    return params["log_dispersion"][:, 0].clamp(-12, 6).exp()


def _negative_binomial_log_prob(params: Params, x: Tensor, y: Tensor) -> Tensor:
    log_mean, size = _forward(params, x)[:, 0].clamp(max=_LARGEST_LOG), 1 / _dispersion(params)
    total = torch.logaddexp(log_mean, size.log())
    return (
        torch.lgamma(y + size) - torch.lgamma(size) - torch.lgamma(y + 1)
        + size * (size.log() - total) + y * (log_mean - total)
    )  # fmt: skip


def _poisson(params: Params, x: Tensor) -> stats.rv_frozen:
    return stats.poisson(_count_mean(params, x).numpy())


def _negative_binomial(params: Params, x: Tensor) -> stats.rv_frozen:
    mean, size = _count_mean(params, x).numpy(), 1 / _dispersion(params).double().numpy()
    return stats.nbinom(size, size / (size + mean))


def _quantile_of(law: Callable[[Params, Tensor], stats.rv_frozen]) -> Callable[[Params, Tensor, Tensor], Tensor]:
    def solve(params: Params, x: Tensor, noise: Tensor) -> Tensor:
        u, found = noise[:, 0].double().numpy(), law(params, x)
        upper = u > 0  # from the nearer tail: Φ(u) rounds to 1 at u = 8.3
        value = np.where(upper, found.isf(stats.norm.cdf(-u)), found.ppf(stats.norm.cdf(u)))
        return torch.from_numpy(np.maximum(value, 0.0))

    return solve


def _score_of(
    law: Callable[[Params, Tensor], stats.rv_frozen],
) -> Callable[[Params, Tensor, Tensor, torch.Generator], Tensor]:
    def abduct(params: Params, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        found, count = law(params, x), y.numpy()
        share = torch.rand(y.shape, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9).numpy()
        below, upto = found.cdf(count - 1), found.cdf(count)
        above, beyond = found.sf(count - 1), found.sf(count)
        lower = stats.norm.ppf(below + share * (upto - below))
        upper = stats.norm.isf(beyond + (1 - share) * (above - beyond))
        return torch.from_numpy(np.where(below > 0.5, upper, lower))[:, None]

    return abduct


def _minus(log_prob: Callable[[Params, Tensor, Tensor], Tensor]) -> Callable[[Params, Tensor, Tensor], Tensor]:
    return lambda params, x, y: -log_prob(params, x, y)


_LINEAR = Kind(
    "linear", "linear in the parents, Gaussian noise", "number", True, _affine, _linear_start, _linear_mean,
    solve=lambda params, x, noise: _linear_mean(params, x) + params["scale"][:, 0] * noise[:, 0],
    abduct=lambda params, x, y, generator: ((y - _linear_mean(params, x)) / params["scale"][:, 0])[:, None],
    log_prob=_linear_log_prob, loss=_minus(_linear_log_prob), additive=True,
)  # fmt: skip
_ADDITIVE = Kind(
    "additive", "a network of the parents, plus noise of any shape", "number", True, _with_noise(1),
    _from_least_squares, _additive_mean,
    solve=lambda params, x, noise: _additive_place(params, x) + _noise_value(params, noise[:, 0]),
    abduct=lambda params, x, y, generator: _noise_score(params, y - _additive_place(params, x))[:, None],
    log_prob=_additive_log_prob, loss=_additive_loss, finish=_additive_finish, trained=_WEIGHTS, settled=True,
    additive=True, averaged=True,
)  # fmt: skip
_SCALED = Kind(
    "heteroscedastic", "place and scale are networks of the parents; noise of any shape", "number", True,
    _with_noise(2),
    _from_least_squares, _scaled_mean, _scaled_solve, _scaled_abduct, _scaled_log_prob, loss=_scaled_loss,
    finish=_scaled_finish, trained=_WEIGHTS, settled=True, averaged=True,
)  # fmt: skip
_FLOW = Kind(
    "flow", "a monotone spline of the noise, bent by the parents", "number", True, _network(3 * _BINS + 1),
    _from_least_squares, _flow_mean, _flow_solve, _flow_abduct, _flow_log_prob, loss=_minus(_flow_log_prob),
    trained=_WEIGHTS,
)  # fmt: skip
_CATEGORY = Kind(
    "categorical", "softmax of a network; Gumbel-max noise", "category", False, _network(None), _category_start,
    mean=lambda params, x: _forward(params, x).softmax(1).double(), solve=_category_solve, abduct=_category_abduct,
    log_prob=_category_log_prob, loss=_minus(_category_log_prob), trained=_WEIGHTS, settled=True,
)  # fmt: skip
_POISSON = Kind(
    "poisson", "Poisson counts, log mean a network; monotone coupling", "count", False, _network(1), _count_start,
    _count_mean, _quantile_of(_poisson), _score_of(_poisson), _poisson_log_prob, loss=_minus(_poisson_log_prob),
    trained=_WEIGHTS, settled=True,
)  # fmt: skip
_NEGATIVE_BINOMIAL = Kind(
    "negative-binomial", "overdispersed counts, log mean a network; monotone coupling", "count", False, _spread_layout,
    _count_start, _count_mean, _quantile_of(_negative_binomial), _score_of(_negative_binomial),
    _negative_binomial_log_prob, loss=_minus(_negative_binomial_log_prob), trained=(*_WEIGHTS, "log_dispersion"),
)  # fmt: skip

KINDS: Mapping[str, Kind] = MappingProxyType(
    {one.name: one for one in (_LINEAR, _ADDITIVE, _SCALED, _FLOW, _CATEGORY, _POISSON, _NEGATIVE_BINOMIAL)}
)
