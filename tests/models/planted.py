"""Problems with a known answer: a table drawn from a model, that model's graph, and the truth in the population."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from causaldao.models.graph import CausalGraph
from tests.models.latent_models import BinaryModel

CONFOUNDED = CausalGraph.dag([("c", "t"), ("w", "t"), ("c", "y"), ("w", "y"), ("t", "y")])
FRONT_DOOR = CausalGraph.admg([("t", "m"), ("m", "y")], [("t", "y")])
INSTRUMENT = CausalGraph.admg([("z", "t"), ("t", "y"), ("w", "t"), ("w", "y")], [("t", "y")])
MEDIATED = CausalGraph.dag([("c", "t"), ("c", "m"), ("c", "y"), ("t", "m"), ("t", "y"), ("m", "y")])
NAPKIN = CausalGraph.admg([("w", "z"), ("z", "t"), ("t", "y")], [("w", "t"), ("w", "y")])

# Of a standard normal variable: E[f(c)] = Σ weight·f(node), exact for polynomials of degree 79.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class Problem(NamedTuple):
    data: pd.DataFrame
    graph: CausalGraph
    truth: float
    options: dict[str, Any]


def expit(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def normal_mean(f: Callable[[Any], Any]) -> float:
    return float(_WEIGHTS @ f(_NODES))


def rows_of(rng: np.random.Generator) -> int:
    return int(rng.integers(500, 1200))


def arms(rng: np.random.Generator, *, family: str = "linear", estimand: str = "ate", **options: Any) -> Problem:
    """Two confounders, c normal and w of two values; the effect of a binary t grows with c."""
    n = rows_of(rng)
    into, start, effect, slope, growth = rng.uniform(-0.8, 0.8, 5)
    c, w = rng.normal(size=n), rng.binomial(1, 0.4, n)
    t = rng.binomial(1, expit(into * c + 0.5 * w - 0.2))

    def linear(t: Any, c: Any, w: Any) -> Any:
        return start + effect * t + slope * c + (growth * t * c if family == "linear" else 0) - 0.4 * w

    mean = {"linear": lambda eta: eta, "binary": expit, "count": np.exp}[family]
    mu = mean(linear(t, c, w))
    draws = {
        "linear": lambda: mu + rng.normal(size=n) * (1 + 0.5 * w),
        "binary": lambda: rng.binomial(1, mu),
        "count": lambda: rng.poisson(mu),
    }

    def over(w: int, c: Any) -> Any:
        weight = expit(into * c + 0.5 * w - 0.2) if estimand == "att" else 1.0
        return weight * (mean(linear(1, c, w)) - mean(linear(0, c, w)))

    def share(w: int, c: Any) -> Any:
        return expit(into * c + 0.5 * w - 0.2) if estimand == "att" else np.ones_like(c)

    above, below = (
        sum(p * normal_mean(lambda c, w=w, f=f: f(w, c)) for w, p in ((0, 0.6), (1, 0.4))) for f in (over, share)
    )
    data = pd.DataFrame({"c": c, "w": w, "t": t, "y": draws[family]()})
    return Problem(data, CONFOUNDED, above / below, {"family": family, "estimand": estimand, **options})


def dose(rng: np.random.Generator, *, count: bool = False, **options: Any) -> Problem:
    """A treatment of many values, continuous or a count, with unequal variances of the outcome."""
    n = rows_of(rng)
    a, b, effect, slope = rng.uniform(-0.8, 0.8, 4)
    c, w = rng.normal(size=n), rng.binomial(1, 0.4, n)
    t = rng.poisson(np.exp(0.5 * a * c + 0.3 * w + 0.5)) if count else a * c + b * w + rng.normal(size=n)
    y = effect * t + slope * c - w + rng.normal(size=n) * np.exp(0.3 * c)
    return Problem(pd.DataFrame({"c": c, "w": w, "t": t, "y": y}), CONFOUNDED, effect, options)


def front_door(rng: np.random.Generator, **options: Any) -> Problem:
    n = rows_of(rng)
    a, b = rng.uniform(-1, 1, 2)
    u = rng.normal(size=n)
    t = u + rng.normal(size=n)
    m = a * t + rng.normal(size=n)
    y = b * m - 1.5 * u + rng.normal(size=n)
    return Problem(pd.DataFrame({"t": t, "m": m, "y": y}), FRONT_DOOR, a * b, options)


def instrument(rng: np.random.Generator, *, strength: float = 0.6, **options: Any) -> Problem:
    n = rows_of(rng)
    effect = float(rng.uniform(-1, 1))
    u, z, w = rng.normal(size=(3, n))
    t = strength * z + 0.5 * w + u + rng.normal(size=n)
    y = effect * t + w - 1.5 * u + rng.normal(size=n)
    data = pd.DataFrame({"z": z, "w": w, "t": t, "y": y})
    return Problem(data, INSTRUMENT, effect, {"assume": "linear", **options})


def mediated(rng: np.random.Generator, *, estimand: str, binary: bool = True, **options: Any) -> Problem:
    """y has t·m, so that direct and indirect effects depend on the other's setting; m is of two values."""
    n = rows_of(rng)
    a, b, direct, both, slope = rng.uniform(-0.8, 0.8, 5)
    c = rng.normal(size=n)
    if not binary:
        t = 0.6 * c + rng.normal(size=n)
        m = a * t + 0.5 * c + rng.normal(size=n)
        y = direct * t + b * m + slope * c + rng.normal(size=n)
        truth = direct if estimand == "nde" else a * b
    else:
        t = rng.binomial(1, expit(0.5 * c))
        m = rng.binomial(1, expit(a * t + 0.5 * c))
        y = direct * t + b * m + both * t * m + slope * c + rng.normal(size=n)
        low, high = (normal_mean(lambda c, t=t: expit(a * t + 0.5 * c)) for t in (0, 1))
        truth = direct + both * low if estimand == "nde" else (b + both) * (high - low)
    return Problem(
        pd.DataFrame({"c": c, "t": t, "m": m, "y": y}), MEDIATED, float(truth), {"estimand": estimand, **options}
    )


def discrete(rng: np.random.Generator, graph: CausalGraph, n: int, **options: Any) -> Problem:
    """Binary columns from a random positive model of the graph; the truth by enumeration."""
    model = BinaryModel.draw(rng, graph)
    joint = model.under().values
    cells = rng.choice(joint.size, n, p=joint.ravel())
    data = pd.DataFrame(dict(zip(graph.nodes, np.unravel_index(cells, joint.shape), strict=True)))
    effect = model.effect(("t",), ("y",), ())
    return Problem(data, graph, float(effect[1, 1] - effect[0, 1]), options)
