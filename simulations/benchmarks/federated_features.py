"""Studies on features: ten members release once, and pool, proposal, ballots and adoption are a study's own.

`mixed`: random graphs of continuous, binary and categorical variables, two edges each (`nonlinear.mixed`), one-hot.
`curved`: random networks of sigmoid units (`nonlinear.mlp`), by numbers and by waves. Bounds are four standard
deviations of other records of the same model. Releases are by the node's own code, noise is simulated. What is
scored is the skeleton that is adopted; ``against`` is the share of ballots that oppose a true adjacency, ``accused``
the members, all honest, who are accused.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd

from causaldao.ballots import cast
from causaldao.budget import plan
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import release_evidence
from causaldao.decisions import decide_adoption, decide_pool, decide_proposal
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.pattern import f1
from causaldao.simulations.benchmarks.nonlinear import mixed, mlp
from causaldao.study import Study

SITES, FAULTY, DELTA = 10, 2, 1e-5
_LEVELS = (0, 0, 0, 0, 2, 2, 3, 4)


def measure(
    *,
    seeds: int = 5,
    first: int = 0,
    records: int = 2000,
    epsilons: Sequence[float] = (3.0, 10.0),
    methods: Sequence[str] = ("boss", "ges", "pc"),
    parts: Sequence[str] = ("mixed", "curved"),
) -> dict[str, Any]:
    """Mean and least F1 by part, ε, features and method; ``records`` are those of each member."""
    found: dict[str, Any] = {}
    for part in parts:
        features = ("one-hot",) if part == "mixed" else ("identity", "fourier")
        for key in ((e, f, m) for e in epsilons for f in features for m in methods):
            runs = [_run(part, seed, records, *key) for seed in range(first, first + seeds)]
            row = {"f1": mean(r["f1"] for r in runs), "least": min(r["f1"] for r in runs)}
            row |= {name: mean(r[name] for r in runs) for name in ("against", "accused")}
            found.setdefault(part, []).append(dict(zip(("epsilon", "features", "method"), key, strict=True)) | row)
            sys.stderr.write(f"{part} epsilon {key[0]:g} {key[1]} {key[2]}: F1 {row['f1']:.2f}\n")
    return {"sites": SITES, "faulty": FAULTY, "records": records, "seeds": [first, first + seeds - 1], **found}


def _run(part: str, seed: int, records: int, epsilon: float, features: str, method: str) -> dict[str, float]:
    rng, d, n = np.random.default_rng(seed), len(_LEVELS), records * (SITES + 1)
    frame, graph = mixed(rng, _LEVELS, n) if part == "mixed" else mlp(rng, d, n)
    known, rows = frame[:records], frame[records:]
    study = Study.from_mapping(_study([_variable(known[name]) for name in known.columns], epsilon, features, method))
    sites = {f"site-{k}": rows[k * records : (k + 1) * records] for k in range(SITES)}
    evidence = {name: _released(table, study, f"{seed} {name}") for name, table in sites.items()}
    pool = decide_pool(study, evidence, SITES)
    proposal = decide_proposal(study, pool)
    ballots = {name: cast(proposal, own, level=study.consensus.level) for name, own in evidence.items()}
    adopted = decide_adoption(study, proposal, ballots, SITES).pattern.skeleton()
    true = [mark.key for mark in proposal.marks if mark.kind == "adjacency" and _in(graph, mark.ends)]
    votes = [ballot.votes[key] for ballot in ballots.values() for key in true]
    against = votes.count(-1) / max(1, len(votes))
    return {"f1": f1(adopted, graph.skeleton()), "against": against, "accused": float(len(pool.accused))}


def _in(graph: CausalGraph, ends: tuple[str, str]) -> bool:
    return ends in graph.skeleton()


def _variable(column: pd.Series) -> Mapping[str, Any]:
    """As a dictionary would declare it, from other records than those of the members."""
    name = str(column.name)
    if column.dtype.kind not in "biuf":
        return {"name": name, "kind": "categorical", "levels": sorted(set(column))}
    if column.nunique() == 2:
        return {"name": name, "kind": "binary", "bounds": [0, 1]}
    centre, reach = float(column.mean()), 4 * float(column.std())
    return {"name": name, "kind": "continuous", "bounds": [centre - reach, centre + reach]}


def _study(variables: Sequence[Mapping[str, Any]], epsilon: float, features: str, method: str) -> dict[str, Any]:
    text = "Measured on made-up records."
    return {
        "study": {"name": "features", "question": text, "purpose": text, "retention": text, "simulation": True},
        "variables": list(variables),
        "discovery": {"features": features, "method": method},
        "consensus": {"faulty": FAULTY},
        "training": {"rounds": 0},
        "privacy": {
            "epsilon": epsilon, "delta": DELTA, "split": {"evidence": 1.0, "training": 0.0, "evaluation": 0.0},
        },
    }  # fmt: skip


def _released(rows: pd.DataFrame, study: Study, label: str) -> Evidence:
    sigma, source = plan(study).sigma, NoiseSource.simulated(hashlib.sha256(label.encode()).digest())
    return Evidence.from_release(release_evidence(rows, study.encoding, sigma, source), study.encoding, sigma)
