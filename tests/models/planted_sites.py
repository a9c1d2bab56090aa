"""Institutions whose rows are drawn from one model with a known effect: for effects that are found across them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from tests.models.planted import expit

COVARIATES = ("c", "w")
BOUNDS = {"c": (-4.0, 4.0), "w": (-1.0, 1.0), "t": (0.0, 1.0), "y": (-8.0, 8.0)}


class Sites(NamedTuple):
    tables: dict[str, pd.DataFrame]
    truth: float


def sites(
    rng: np.random.Generator, *, curve: float = 0.0, apart: float = 0.0, rows: tuple[int, int] = (200, 800),
    members: int = 8,
) -> Sites:  # fmt: skip
    """Two confounders; the effect of a binary t grows with c (of mean 0), as far as ``curve`` the outcome bends with
    it. apart: the spread of what institutions add to the log odds and to the outcome, which confounds between them."""
    into, start, effect, slope, growth = rng.uniform(-0.8, 0.8, 5)
    bend, tables = curve * rng.uniform(-1, 1), {}
    for k in range(members):
        n, (a, b) = int(rng.integers(*rows)), apart * rng.normal(size=2)
        c, w = rng.normal(size=n), rng.binomial(1, 0.4, n)
        t = rng.binomial(1, expit(into * c + 0.5 * w - 0.2 + a))
        mean = start + b + effect * t + slope * c + growth * t * c + bend * (c**2 - 1) - 0.4 * w
        y = mean + rng.normal(size=n) * (1 + 0.5 * w)
        tables[f"site-{k}"] = pd.DataFrame({"c": c, "w": w, "t": t, "y": y})
    return Sites(tables, float(effect))
