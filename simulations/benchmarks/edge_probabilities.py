"""Whether the probabilities of edges keep their word: planted models, and how many of the edges of each share are real.

Random DAGs of ten variables and two neighbours each, weights of .1 to .8 and either sign, unit normal noise. Many weak
edges are meant to be there: without them every share is 0 or 1, and nothing is learnt.
"""

from __future__ import annotations

import sys
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd

from causaldao.errors import MisuseError
from causaldao.models.discovery import METHODS
from causaldao.models.discovery.bootstrap import bootstrap, of_evidence, of_rows
from causaldao.models.discovery.evidence import Evidence

_BINS = (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
_D = 10


def measure(
    *,
    method: str = "boss",
    kind: str = "parametric",
    models: int = 60,
    draws: int = 60,
    records: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """For each bin of the share of draws: how many pairs and arrows, their mean share, and the share that is real."""
    if method not in METHODS or kind not in ("parametric", "rows"):
        raise MisuseError(f"{method}, {kind}: choose a method of {', '.join(METHODS)}, and parametric or rows.")
    options: dict[str, Any] = {"restarts": 3} if method == "boss" else {}
    seen: dict[str, list[tuple[float, bool]]] = {"adjacent": [], "directed": []}
    for model in range(models):
        rng = np.random.default_rng([seed, model])
        weights = _weights(rng)
        names = [f"v{i}" for i in range(_D)]
        rows = rng.normal(size=(records, _D)) @ np.linalg.inv(np.eye(_D) - weights)
        frame = pd.DataFrame(rows, columns=names)
        draw = of_rows(frame) if kind == "rows" else of_evidence(Evidence.from_data(frame))
        found = bootstrap(draw, METHODS[method], draws=draws, **options)
        for i, j in combinations(range(_D), 2):
            pair = found.pair(names[i], names[j])
            seen["adjacent"].append((pair.adjacent, bool(weights[i, j] or weights[j, i])))
            seen["directed"] += [(pair.of("->"), bool(weights[i, j])), (pair.of(">-"), bool(weights[j, i]))]
        sys.stderr.write(f"edge-probabilities: {model + 1} of {models} models\n")
    return {
        "method": method, "kind": kind, "models": models, "draws": draws, "records": records,
        **{what: _table(shares) for what, shares in seen.items()},
    }  # fmt: skip


def _weights(rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(d, d): [i, j] is the weight of i -> j in a random order."""
    order = rng.permutation(_D)
    present = np.triu(rng.random((_D, _D)) < 2 / (_D - 1), k=1)
    matrix = np.zeros((_D, _D))
    matrix[np.ix_(order, order)] = present * rng.uniform(0.1, 0.8, (_D, _D)) * rng.choice([-1, 1], (_D, _D))
    return matrix


def _table(seen: list[tuple[float, bool]]) -> list[dict[str, Any]]:
    """One row for each bin (low, high]; the first holds 0 as well."""
    shares, real = np.array([share for share, _ in seen]), np.array([true for _, true in seen])
    rows = []
    for place, (low, high) in enumerate(pairwise(_BINS)):
        inside = (shares > low) & (shares <= high) | (shares == 0) & (place == 0)
        told = {"mean_share": float(shares[inside].mean()), "real": float(real[inside].mean())} if inside.any() else {}
        rows.append({"above": low, "up_to": high, "count": int(inside.sum()), **told})
    return rows
