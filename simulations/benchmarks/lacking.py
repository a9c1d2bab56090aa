"""Members who lack variables: random linear models of ten members, of whom five lack one or both of two variables.

Three federations on the same records: ``lacking``, as they are; ``whole``, had everybody everything; ``complete``, the
five who have everything alone. Releases are by the node's own code, noise is simulated. ``shd`` is that of the proposed
pattern from the true one, None where noise left no evidence to search in in some run; ``discount`` is by how many times
fewer records the pool counts, ``accused`` the honest members accused.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import numpy as np
import pandas as pd

from causaldao.budget import plan
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import release_evidence
from causaldao.decisions import decide_pool, decide_proposal
from causaldao.declared import Declaration
from causaldao.errors import DataError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.pattern import cpdag_of, shd
from causaldao.simulations.datasets import linear_gaussian
from causaldao.study import Study

SITES = tuple(f"site-{k}" for k in range(10))
MAY_LACK = ("v2", "v3")
LACKS = {SITES[0]: ("v2",), SITES[1]: ("v2",), SITES[2]: MAY_LACK, SITES[3]: ("v3",), SITES[4]: ("v3",)}
_REACH = 4.0  # standard deviations from the centre of the bounds to their ends


def measure(
    *,
    seeds: int = 20,
    first: int = 0,
    variables: int = 6,
    edges: int = 6,
    records: Sequence[int] = (400, 2000),
    epsilons: Sequence[float] = (4.0, 16.0),
) -> dict[str, Any]:
    """Mean SHD of each federation, by ε and the records of each member."""
    rows = []
    for epsilon in epsilons:
        for size in records:
            runs = [_run(seed, variables, edges, size, epsilon) for seed in range(first, first + seeds)]
            row: dict[str, Any] = {"epsilon": epsilon, "records": size}
            for arm in ("lacking", "whole", "complete"):
                found = [run[arm] for run in runs]
                row[arm] = None if None in found else mean(value for value in found if value is not None)
            row["discount"], row["accused"] = median(run["discount"] for run in runs), mean(r["accused"] for r in runs)
            rows.append(row)
            sys.stderr.write(f"epsilon {epsilon:g}, {size} records: SHD {row['lacking']}, whole {row['whole']}\n")
    seen = [first, first + seeds - 1]
    return {"sites": len(SITES), "variables": variables, "edges": edges, "seeds": seen, "rows": rows}


def _run(seed: int, variables: int, edges: int, records: int, epsilon: float) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    names = [f"v{k}" for k in range(variables)]
    pairs = [(a, b) for j, b in enumerate(names) for a in names[:j]]
    chosen = [pairs[k] for k in sorted(rng.choice(len(pairs), edges, replace=False))]
    weights = {pair: float(rng.uniform(0.4, 0.9) * rng.choice([-1, 1])) for pair in chosen}
    tables = {site: linear_gaussian(weights, records, rng, names) for site in SITES}
    study = Study.from_mapping(_study(tables[SITES[0]], epsilon))
    truth = cpdag_of(CausalGraph.dag(chosen, tuple(names)))
    whole = {site: _released(table, study, f"{seed} {site}") for site, table in tables.items()}
    own = {site: _released(table, study, f"{seed} {site}", LACKS.get(site, ())) for site, table in tables.items()}
    complete = {site: one for site, one in whole.items() if site not in LACKS}
    declared = {site: Declaration(lacks=tuple(sorted(lacks))) for site, lacks in LACKS.items()}
    arms: dict[str, tuple[dict[str, Evidence], dict[str, Declaration]]] = {
        "lacking": (own, declared), "whole": (whole, {}), "complete": (complete, {}),
    }  # fmt: skip
    pools = {arm: decide_pool(study, evidence, len(evidence), said) for arm, (evidence, said) in arms.items()}
    found: dict[str, Any] = {arm: _shd(study, pool, truth) for arm, pool in pools.items()}
    return {**found, "discount": pools["lacking"].discount, "accused": float(len(pools["lacking"].accused))}


def _shd(study: Study, pool: Any, truth: CausalGraph) -> int | None:
    try:
        return shd(decide_proposal(study, pool).pattern, truth)
    except DataError:  # a variable is drowned in noise
        return None


def _study(known: pd.DataFrame, epsilon: float) -> Mapping[str, Any]:
    text = "Measured on made-up records."
    reach = {name: _REACH * float(known[name].std()) for name in known.columns}
    return {
        "study": {"name": "lacking", "question": text, "purpose": text, "retention": text, "simulation": True},
        "variables": [{"name": n, "kind": "continuous", "bounds": [-end, end]} for n, end in reach.items()],
        "consensus": {"faulty": 1},
        "training": {"rounds": 0},
        "privacy": {"epsilon": epsilon, "delta": 1e-5, "split": {"evidence": 1.0, "training": 0.0, "evaluation": 0.0}},
        "members": {"may_lack": list(MAY_LACK)},
    }


def _released(rows: pd.DataFrame, study: Study, label: str, lacks: Sequence[str] = ()) -> Evidence:
    sigma, source = plan(study).sigma, NoiseSource.simulated(hashlib.sha256(label.encode()).digest())
    return Evidence.from_release(release_evidence(rows, study.encoding, sigma, source, lacks), study.encoding, sigma)
