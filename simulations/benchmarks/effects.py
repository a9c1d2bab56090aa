"""Effects from real rows, beside what is known of them: NHEFS, and LaLonde's comparison of a survey with an experiment.

Hernán & Robins find that quitting smoking added 3.4 kg by weighting and 3.5 kg by standardisation, about [2.4, 4.5].
In the National Supported Work experiment training added 1,794 dollars; the survey's rows, adjusted, are set beside
that, whatever they show. Every number is conditional on the graph in which all covariates move treatment and outcome.
"""

from __future__ import annotations

import time
from itertools import combinations
from typing import Any

import pandas as pd

from causaldao.errors import DataError
from causaldao.models.estimation import TableEffect, answer, estimate_effect
from causaldao.models.graph import CausalGraph
from causaldao.models.plan import asked
from causaldao.models.refute import refute
from causaldao.simulations.datasets import load

TEXTBOOK = {"ipw": [3.4, 2.4, 4.5], "g-formula": [3.5, 2.6, 4.5]}
EXPERIMENT = 1794.0
_METHODS = (("g-formula", 1), ("ipw", 1), ("aipw", 1), ("g-formula", 2), ("ipw", 2), ("aipw", 2))


def measure(*, repeats: int = 20) -> dict[str, Any]:
    """Both data sets by each method, without and with curves and products (degree 2), with refuters."""
    return {"nhefs": _nhefs(repeats), "lalonde": _lalonde()}


def _nhefs(repeats: int) -> dict[str, Any]:
    table = load("nhefs")
    graph = confounded(table, "quit", "weight_gain")
    found = {
        f"{method} {degree}": _timed(table, graph, "quit", "weight_gain", method=method, degree=degree)
        for method, degree in _METHODS
    }
    _, tried = refute(table, graph, "quit", "weight_gain", method="aipw", repeats=repeats)
    refutations = {one.name: {"number": one.number, "passed": one.passed, "means": one.means} for one in tried}
    return {
        "rows": len(table), "textbook": TEXTBOOK, "unadjusted": _difference(table, "quit", "weight_gain"), **found,
        "refutations": refutations,
    }  # fmt: skip


def _lalonde() -> dict[str, Any]:
    trial, survey = load("nsw"), load("cps")
    table = pd.concat([trial[trial["treat"] == 1], survey], ignore_index=True)
    graph = confounded(table, "treat", "re78")
    found = {}
    for method, degree in _METHODS:
        found[f"{method} {degree}"] = _timed(
            table, graph, "treat", "re78", method=method, degree=degree, estimand="att"
        )
    before = table.drop(columns="re78")
    past = confounded(before, "treat", "re75")
    placebo = estimate_effect(before, past, "treat", "re75", estimand="att")
    return {
        "treated": int(table["treat"].sum()), "controls": len(survey), "experiment": EXPERIMENT,
        "experiment_here": _timed(trial, confounded(trial, "treat", "re78"), "treat", "re78", method="aipw"),
        "unadjusted": _difference(table, "treat", "re78"), **found,
        "earnings_before_training": _numbers(placebo),
    }  # fmt: skip


def confounded(table: pd.DataFrame, treatment: str, outcome: str) -> CausalGraph:
    """Every covariate moves treatment and outcome, and the covariates hang together in any way."""
    covariates = [name for name in table.columns if name not in (treatment, outcome)]
    order = [*covariates, treatment, outcome]
    return CausalGraph.dag(list(combinations(order, 2)))


def _timed(table: pd.DataFrame, graph: CausalGraph, treatment: str, outcome: str, **options: Any) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        found = answer(table, asked(graph, treatment, outcome, **options))
    except DataError as error:  # an honest refusal is a result here
        return {"refused": str(error)}
    return {**_numbers(found), "seconds": time.perf_counter() - began}


def _numbers(found: TableEffect) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "estimate": found.estimate, "standard_error": found.standard_error, "interval": list(found.interval),
        "warnings": list(found.warnings),
    }  # fmt: skip
    return numbers


def _difference(table: pd.DataFrame, treatment: str, outcome: str) -> float:
    arms = table.groupby(treatment)[outcome].mean()
    return float(arms.loc[1.0] - arms.loc[0.0])
