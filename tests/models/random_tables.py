"""Random discrete models: exact tables of their population, and rows drawn from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from causaldao.models.discovery.tables import SharedTables
from causaldao.models.graph import CausalGraph

Floats = np.ndarray[Any, np.dtype[np.float64]]


def joint(rng: np.random.Generator, dag: CausalGraph, levels: dict[str, int], least: float = 0.1) -> Floats:
    """The joint probabilities of a random model, an axis per node of ``dag``; no level has less than ``least`` / levels
    under any parents, so that nothing is impossible.
    """
    names = list(dag.nodes)
    whole = np.ones([1] * len(names))
    for name in names:
        parents = sorted(dag.parents(name), key=names.index)
        shape = [levels[p] for p in parents]
        table = rng.dirichlet(np.full(levels[name], 0.7), size=shape) * (1 - least) + least / levels[name]
        axes = [*parents, name]
        order = sorted(range(len(axes)), key=lambda k: names.index(axes[k]))
        spread = table.transpose(order)
        wide = [levels[n] if n in axes else 1 for n in names]
        whole = whole * spread.reshape(wide)
    return np.asarray(whole, dtype=np.float64)


def levels_of(rng: np.random.Generator, dag: CausalGraph, most: int = 3) -> dict[str, int]:
    return {name: int(rng.integers(2, most + 1)) for name in dag.nodes}


def population(whole: Floats, names: tuple[str, ...], count: float) -> SharedTables:
    """Tables in which every probability is met exactly by ``count`` records."""
    return SharedTables(names, whole.shape, len(names), {tuple(range(len(names))): whole * count})


def rows(rng: np.random.Generator, whole: Floats, names: tuple[str, ...], n: int) -> pd.DataFrame:
    cells = rng.choice(whole.size, size=n, p=whole.ravel() / whole.sum())
    return pd.DataFrame(dict(zip(names, np.unravel_index(cells, whole.shape), strict=True)))
