"""Sachs et al. 2005 (Science 308): eleven proteins of immune cells under nine conditions, as nine institutions.

The table comes with the package cdt; it is read, nothing of the package is run. It has no column that says a cell's
condition: the rows stand in the order of the published data sets, whose sizes add up to those of the table. The two
general stimuli are observational; the other seven also hold a reagent that acts on one protein or so.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from causaldao.ballots import cast, propose
from causaldao.consensus import ConsensusRule, adopt
from causaldao.decisions import decide_adoption, decide_pool, decide_proposal
from causaldao.declared import Declaration
from causaldao.environments import centred, pool_environments
from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery import search
from causaldao.models.discovery.evidence import Dictionary, Evidence, Variable
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE
from causaldao.models.pattern import f1
from causaldao.pool import Settings, pool
from causaldao.study import Study

CONDITIONS = {
    "cd3cd28": 853, "icam2": 902, "aktinhib": 911, "g0076": 723, "psitect": 810, "u0126": 799, "ly": 848, "pma": 913,
    "b2camp": 707,
}  # fmt: skip
NETWORK = (
    "plcg PIP2", "plcg PIP3", "PIP3 PIP2", "PKC praf", "PKC pmek", "PKC pjnk", "PKC P38", "PKA praf", "PKA pmek",
    "PKA p44/42", "PKA pakts473", "PKA pjnk", "PKA P38", "praf pmek", "pmek p44/42", "p44/42 pakts473", "PIP3 pakts473",
)  # fmt: skip
TARGETS = {
    "aktinhib": ("pakts473",), "g0076": ("PKC",), "psitect": ("PIP2",), "u0126": ("pmek",), "ly": ("pakts473",),
    "pma": ("PKC",), "b2camp": ("PKA",),
}  # fmt: skip
BOUNDS = (-1.0, 10.0)  # of a logarithm of fluorescence
REMEDY = "The data of Sachs et al. come with the package cdt: pip install --no-deps cdt==0.6.0."


def conditions() -> dict[str, pd.DataFrame]:
    """The cells of each condition, in logarithms: (n, 11).

    Raises
    ------
    MisuseError
        cdt is not installed.
    DataError
        its table is another one.
    """
    found = find_spec("cdt")
    if found is None or found.origin is None:
        raise MisuseError(REMEDY)
    table = pd.read_csv(Path(found.origin).parent / "data" / "resources" / "cyto_full_data.csv")
    if len(table) != sum(CONDITIONS.values()):
        raise DataError(f"The table has {len(table)} rows, expected {sum(CONDITIONS.values())}: use cdt 0.6.0.")
    ends = np.cumsum(list(CONDITIONS.values()))
    return {
        name: pd.DataFrame(np.log(table.to_numpy()[end - size : end]), columns=table.columns)
        for (name, size), end in zip(CONDITIONS.items(), ends, strict=True)
    }


def sachs() -> dict[str, Any]:
    """Skeleton F1 against the 17 edges: all rows in one table, without and with each condition's means taken out, and
    the federation of nine: exact evidence through a public dictionary, each condition an environment of its own; and
    the decisions of a whole study with the same environments, whose proposal knows what they act on.

    With one member in an environment there is nobody to compare it with: f is 0, and nobody can be accused.
    """
    parts = conditions()
    table = pd.concat(parts.values(), ignore_index=True)
    words = Dictionary(tuple(Variable(str(name), bounds=BOUNDS) for name in table.columns), len(table.columns) + 1.0)
    evidence = {name: Evidence.from_data(part, words) for name, part in parts.items()}
    pooled = pool_environments(evidence, {name: name for name in parts}, Settings(0, "mean"))
    proposal = propose(pooled.evidence, "boss", NONE, seed=0)
    ballots = {name: cast(proposal, centred(one), targets=TARGETS.get(name, ())) for name, one in evidence.items()}
    adopted = adopt(proposal, ballots, ConsensusRule(0.6, 0, len(parts)))
    accused = sorted(name for each in pooled.pools.values() for name in each.accused)
    compared = pool(evidence, Settings(1))
    return {
        "pooled_rows": _skeleton_f1(search(Evidence.from_data(table), "boss").graph),
        "pooled_rows_centred": _skeleton_f1(search(Evidence.from_data(_centred(parts)), "boss").graph),
        "federation": _skeleton_f1(adopted.pattern),
        "proposal": _skeleton_f1(proposal.pattern),
        "contested": [mark.key for mark in adopted.contested],
        "accused": accused,
        "compared_across_conditions": {
            "federation": _skeleton_f1(search(compared.evidence, "boss").graph), "accused": list(compared.accused),
        },
        "study": {kind: _as_study(parts, kind) for kind in ("hard", "soft")},
    }  # fmt: skip


def _as_study(parts: dict[str, pd.DataFrame], kind: str) -> dict[str, Any]:
    """What a study with these environments decides, if what they act on was set or only changed: the skeleton F1 of
    proposal and adoption, how many directed edges are as published, turned round or none of the 17, and what the
    ballots contest."""
    study = Study.from_mapping({
        "study": {"name": "sachs", "question": "What moves what?", "purpose": "A measurement.", "retention": "None."},
        "variables": [{"name": _word(n), "kind": "continuous", "bounds": BOUNDS} for n in parts["cd3cd28"].columns],
        "discovery": {"interventions": kind},
        "environments": [{"name": name, "targets": [_word(t) for t in TARGETS.get(name, ())]} for name in parts],
        "aggregation": {"pool": "mean"}, "training": {"rounds": 0},
        "privacy": {
            "epsilon": 1.0, "delta": 1e-6, "split": {"evidence": 1.0, "training": 0.0, "evaluation": 0.0},
        },
    })  # fmt: skip
    evidence = {name: Evidence.from_data(part.rename(columns=_word), study.encoding) for name, part in parts.items()}
    declared = {name: Declaration(name) for name in parts}
    proposal = decide_proposal(study, decide_pool(study, evidence, len(parts), declared))
    level = study.consensus.level
    ballots = {name: cast(proposal, one, level=level, **declared[name].voting(study)) for name, one in evidence.items()}
    adopted = decide_adoption(study, proposal, ballots, len(parts))
    true = {tuple(map(_word, edge.split())) for edge in NETWORK}
    found, turned = adopted.pattern.directed, {(b, a) for a, b in adopted.pattern.directed}
    return {
        "federation": _skeleton_f1(adopted.pattern), "proposal": _skeleton_f1(proposal.pattern),
        "directed_as_published": len(found & true), "turned_round": len(turned & true),
        "of_none": len(found) - len(found & true) - len(turned & true), "undirected": len(adopted.pattern.undirected),
        "arrows": len(adopted.arrows), "contested": [mark.key for mark in adopted.contested],
    }  # fmt: skip


def _word(name: str) -> str:
    """A name that a study can have."""
    return str(name).replace("/", "_")


def _centred(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([part - part.mean() for part in parts.values()], ignore_index=True)


def _skeleton_f1(graph: CausalGraph) -> float:
    found, true = (
        {frozenset(map(_word, pair)) for pair in graph.skeleton()},
        {frozenset(_word(edge).split()) for edge in NETWORK},
    )
    return f1(found, true)
