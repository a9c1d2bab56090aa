"""Structural models beside dowhy's gcm: time, held-out error, the same answers, and planted truths found again.

Two planted models of six variables, amount, mismatch -> risk -> friction -> churn <- tenure: one nonlinear, with a
binary cause and additive noise, fitted by the peer with gradient boosting (histograms) and by us with networks; one
linear and Gaussian, fitted by both with lines. Times are medians of pairs, one thread; a ratio is the median of the
peer's time over ours. The peer keeps mechanisms on the graph object, so that each of its models gets a copy.

Truths: counterfactuals of invertible mechanisms on random graphs, whose noise is known (``r2`` about the mean of the
true values, ``r2_change`` about no change, over the variables that the action moves), on the true graph and on the
one that `discover` finds; and tables between which one planted mechanism changes. Settings were chosen on seeds below
100.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from statistics import fmean, median
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch

from causaldao.errors import MisuseError
from causaldao.models.attribution import root_cause
from causaldao.models.discovery import discover
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.fitting import Fitted, fit
from causaldao.models.graph import CausalGraph
from causaldao.models.pattern import extension, shd
from causaldao.models.structural import StructuralModel

REMEDY = 'pip install "dowhy==0.14"'
PARTS = ("times", "agreement", "counterfactuals", "root-cause")
AIMS = {
    "do_50_ms": 1.0, "do_100k_nonlinear": 20.0, "do_100k_linear": 5.0, "counterfactual_nonlinear": 20.0, "fit": 1.0,
    "r2": 0.95, "algebra": 1e-5, "within_two": 0.95,
}  # fmt: skip
EDGES = (
    ("amount", "risk"), ("mismatch", "risk"), ("risk", "friction"), ("friction", "churn"), ("tenure", "churn"),
)  # fmt: skip
GRAPH = CausalGraph.dag(EDGES, ("amount", "mismatch", "risk", "friction", "tenure", "churn"))
KINDS = ("additive", "heteroscedastic", "flow")
_CHANGES = ("risk", "friction", "tenure", "churn")

Rng = np.random.Generator


def measure(
    *,
    seeds: int = 10,
    parts: Sequence[str] = PARTS,
    kinds: Sequence[str] = KINDS,
    first_seed: int = 100,
    rows: int = 5000,
    many: int = 100_000,
    repeats: int = 7,
) -> dict[str, Any]:
    """The parts asked for, beside the aims.

    Raises:
        MisuseError: an unknown part or kind of mechanism, fewer than two seeds or one repeat, or no dowhy where a part
            compares with it.
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise MisuseError(f"There is no part {', '.join(unknown)}; choose among {', '.join(PARTS)}.")
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise MisuseError(f"No truths of kind {', '.join(unknown)} are planted; choose among {', '.join(KINDS)}.")
    if seeds < 2 or repeats < 1:
        raise MisuseError(f"seeds={seeds}, repeats={repeats}: expected at least 2 seeds and 1 repeat.")
    gcm = _peer() if {"times", "agreement"} & set(parts) else None
    began, chosen = time.perf_counter(), range(first_seed, first_seed + seeds)
    result: dict[str, Any] = {"rows": rows, "many": many, "seeds": seeds, "repeats": repeats, "aims": AIMS}
    if "times" in parts:
        result["nonlinear"] = _times(gcm, "nonlinear", rows, many, repeats)
        result["linear"] = _times(gcm, "linear", rows, many, repeats)
    if "agreement" in parts:
        result["agreement"] = _agreement(gcm, rows, many, seeds)
    if "counterfactuals" in parts:
        result["counterfactuals"] = {kind: _counterfactuals(kind, chosen, rows) for kind in kinds}
    if "root-cause" in parts:
        result["root_cause"] = _root_causes(chosen, rows)
    return {**result, "seconds": time.perf_counter() - began}


def nonlinear(rng: Rng, n: int) -> pd.DataFrame:
    """The nonlinear table."""
    amount, mismatch = rng.gamma(2.0, 1.0, n), (rng.random(n) < 0.3).astype(float)
    tenure, noise = rng.normal(size=n), rng.normal(0, 0.3, (3, n))
    risk = np.tanh(amount - 1.5) + 0.8 * mismatch * np.log1p(amount) + noise[0]
    friction = 1.5 * risk**2 / (1 + risk**2) + 0.3 * risk + noise[1]
    churn = np.sin(1.5 * friction) + 0.5 * friction * tenure / (1 + tenure**2) - 0.6 * tenure + noise[2]
    return _table(amount, mismatch, risk, friction, tenure, churn)


def linear(rng: Rng, n: int, coefficients: Sequence[float] = (0.8, 0.5, -0.9, 0.7, -0.5)) -> pd.DataFrame:
    """The linear and Gaussian table; coefficients in the order of `EDGES`."""
    a, b, c, d, e = coefficients
    amount, mismatch, tenure = rng.normal(size=(3, n))
    noise = rng.normal(0, 0.5, (3, n))
    risk = a * amount + b * mismatch + noise[0]
    friction = c * risk + noise[1]
    return _table(amount, mismatch, risk, friction, tenure, d * friction + e * tenure + noise[2])


def _table(*columns: Any) -> pd.DataFrame:
    return pd.DataFrame(dict(zip(GRAPH.nodes, columns, strict=True)))


def _times(gcm: Any, name: str, rows: int, many: int, repeats: int) -> dict[str, Any]:
    frame, fresh = (_PLANTED[name](np.random.default_rng(seed), rows) for seed in (0, 1))
    values = torch.from_numpy(frame.to_numpy(copy=True))
    generator = torch.Generator().manual_seed(0)
    ours, theirs = _ours(name, frame), _theirs(gcm, name, frame)
    _say(f"{name}: fit")
    found: dict[str, Any] = {
        "fit": _pairs(lambda: _ours(name, frame), lambda: _theirs(gcm, name, frame), repeats),
        "error": _errors(ours, theirs, fresh),
    }
    model = ours.model
    for label, count in (("do_50", 50), (f"do_{many}", many)):
        _say(f"{name}: {label}")
        found[label] = _pairs(
            partial(model.sample, count, {"risk": 1.0}, generator),
            partial(gcm.interventional_samples, theirs, {"risk": lambda _: 1.0}, num_samples_to_draw=count),
            repeats if count > 50 else 5 * repeats,
        )
    _say(f"{name}: counterfactuals")
    found["counterfactual"] = _pairs(
        lambda: model.counterfactual(values, {"amount": 1.0}),
        lambda: gcm.counterfactual_samples(theirs, {"amount": lambda _: 1.0}, observed_data=frame),
        repeats,
    )
    return found


def _pairs(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> dict[str, float]:
    ours(), theirs()
    times = [(_seconds(ours), _seconds(theirs)) for _ in range(repeats)]
    return {
        "ms": 1e3 * median(ours for ours, _ in times), "peer_ms": 1e3 * median(theirs for _, theirs in times),
        "ratio": median(theirs / ours for ours, theirs in times),
    }  # fmt: skip


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _ours(name: str, frame: pd.DataFrame) -> Fitted:
    kinds = "linear" if name == "linear" else None
    return fit(frame, GRAPH, kinds, generator=torch.Generator().manual_seed(0))


def _theirs(gcm: Any, name: str, frame: pd.DataFrame) -> Any:
    model = gcm.InvertibleStructuralCausalModel(nx.DiGraph(sorted(GRAPH.directed)))  # a graph of its own
    for node in GRAPH.nodes:
        if GRAPH.parents(node):
            make = gcm.ml.create_linear_regressor if name == "linear" else gcm.ml.create_hist_gradient_boost_regressor
            model.set_causal_mechanism(node, gcm.AdditiveNoiseModel(make()))
        else:
            model.set_causal_mechanism(node, gcm.EmpiricalDistribution())
    gcm.fit(model, frame)
    return model


def _errors(ours: Fitted, theirs: Any, fresh: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Root mean square error on rows that neither has seen, of the variables that have parents."""
    expected = ours.model.expected(torch.from_numpy(fresh.to_numpy(copy=True)))
    found = {}
    for node in [node for node in GRAPH.nodes if GRAPH.parents(node)]:
        parents = list(theirs.graph.predecessors(node))
        order = sorted(parents)  # the order in which the peer reads them
        predicted = theirs.causal_mechanism(node).prediction_model.predict(fresh[order].to_numpy())[:, 0]
        truth = fresh[node].to_numpy()
        found[node] = {
            "error": float(np.sqrt(np.mean((truth - expected[node].numpy()) ** 2))),
            "peer": float(np.sqrt(np.mean((truth - predicted) ** 2))),
        }
    return found


def _agreement(gcm: Any, rows: int, many: int, seeds: int) -> dict[str, Any]:
    """The linear table. Means under do() of both, in standard errors of their difference: one model would have 95 % of
    these scores within ±2, and a mean score of 0 ± 1 / √seeds. Counterfactuals by algebra."""
    _say("agreement")
    frame = linear(np.random.default_rng(0), rows)
    model, peer = _ours("linear", frame).model, _theirs(gcm, "linear", frame)
    gcm.util.general.set_random_seed(0)
    apart: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(0)
    for _ in range(seeds):
        for name, value in (("amount", 1.0), ("risk", -1.0), ("friction", 2.0)):
            drawn = gcm.interventional_samples(peer, {name: lambda _, value=value: value}, num_samples_to_draw=many)
            mine = model.sample(many, {name: value}, generator)
            for node in sorted(GRAPH.descendants(name) - {name}):
                column = mine[:, model.names.index(node)].numpy()
                error = np.sqrt(column.var() / many + drawn[node].var() / many)
                score = float((column.mean() - drawn[node].mean()) / error)
                apart.setdefault(f"{node} | do({name})", []).append(score)
    scores = [score for one in apart.values() for score in one]
    values = torch.from_numpy(frame.to_numpy(copy=True))
    changed = model.counterfactual(values, {"amount": 1.0}).numpy()
    theirs = gcm.counterfactual_samples(peer, {"amount": lambda _: 1.0}, observed_data=frame)[list(model.names)]
    return {
        "mean_score": {name: fmean(one) for name, one in apart.items()},
        "within_two": fmean(abs(score) <= 2 for score in scores), "comparisons": len(scores),
        "from_algebra": float(np.abs(changed - _algebra(frame, 1.0)).max()),
        "counterfactuals_apart": float(np.abs(changed - theirs.to_numpy()).max()),
    }  # fmt: skip


def _algebra(frame: pd.DataFrame, value: float) -> Any:
    """Least squares and forward substitution, written out: the rows had amount been ``value``."""
    slopes: dict[str, dict[str, float]] = {}
    for node in GRAPH.nodes:
        if parents := sorted(GRAPH.parents(node)):
            columns = np.column_stack([np.ones(len(frame)), frame[parents]])
            slopes[node] = dict(zip(parents, np.linalg.lstsq(columns, frame[node], rcond=None)[0][1:], strict=True))
    change: dict[str, Any] = dict.fromkeys(GRAPH.nodes, np.zeros(len(frame)))
    change["amount"] = value - frame["amount"].to_numpy()
    for node in GRAPH.topological_order():
        for parent, slope in slopes.get(node, {}).items():
            change[node] = change[node] + slope * change[parent]
    return np.column_stack([frame[node] + change[node] for node in GRAPH.nodes])


class _Truth:
    """A random model of six variables, each x = F(place, scale, noise), invertible in its noise; unit-scale values."""

    def __init__(self, kind: str, rng: Rng) -> None:
        self.kind, self.order = kind, rng.permutation(6)
        chosen = np.triu(rng.random((6, 6)) < 0.5, 1) * rng.uniform(0.6, 1.2, (6, 6)) * rng.choice([-1, 1], (6, 6))
        chosen[0, 1] = chosen[0, 1] or 1.0  # the first in order causes the second: an action on it moves something
        self.weight, self.bend = chosen, rng.uniform(0.5, 1.5, (6, 6))
        self.names = tuple(f"v{j}" for j in range(6))
        self.graph = CausalGraph.dag(
            [(self.name(i), self.name(j)) for i, j in zip(*chosen.nonzero(), strict=True)], self.names
        )

    def name(self, place: int) -> str:
        """Of the variable at a place of the causal order."""
        return self.names[int(self.order[place])]

    def solve(self, noise: Any, held: dict[int, float] | None = None) -> pd.DataFrame:
        """Rows from noise (6, n), by place; ``held`` sets some."""
        rows = np.zeros_like(noise)
        for j in range(6):
            rows[j] = self._one(rows, noise, j) if j not in (held or {}) else (held or {})[j]
        return pd.DataFrame({self.name(j): rows[j] for j in range(6)})[list(self.names)]

    def _one(self, rows: Any, noise: Any, j: int) -> Any:
        place = sum(self.weight[i, j] * (np.tanh(self.bend[i, j] * rows[i]) + 0.4 * rows[i]) for i in range(j))
        scale = 0.5 * np.ones_like(noise[j])
        if self.kind != "additive":
            scale = 0.25 + 0.5 / (
                1 + np.exp(-sum((1.5 * self.weight[i, j] * rows[i] for i in range(j)), 0.0 * rows[0]))
            )
        bent = np.sinh(0.8 * noise[j]) if self.kind == "flow" else noise[j]
        return place + scale * bent


def _counterfactuals(kind: str, seeds: range, rows: int) -> dict[str, Any]:
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        _say(f"counterfactuals, {kind}, seed {seed}")
        rng = np.random.default_rng(seed)
        truth = _Truth(kind, rng)
        frame = truth.solve(rng.normal(size=(6, rows)))
        noise = rng.normal(size=(6, 2000))
        factual, value = truth.solve(noise), float(rng.uniform(-1.5, 1.5))
        changed = truth.solve(noise, {0: value})
        task = (frame, factual, changed, truth.name(0), value, kind)
        learnt = extension(discover(Evidence.from_data(frame), generator=torch.Generator().manual_seed(seed)))
        given = _scored(truth.graph, truth.graph, *task)
        found = None if learnt is None else {"shd": shd(learnt, truth.graph), **_scored(learnt, truth.graph, *task)}
        runs.append({"given": given, "learnt": found})
    given_scores = [run["given"]["r2"] for run in runs]
    learnt_scores = [run["learnt"]["r2"] for run in runs if run["learnt"] is not None]
    return {
        "least_r2": min(given_scores), "mean_r2": fmean(given_scores),
        "mean_r2_change": fmean(run["given"]["r2_change"] for run in runs),
        "mean_r2_learnt_graph": fmean(learnt_scores) if learnt_scores else None, "runs": runs,
    }  # fmt: skip


def _scored(
    graph: CausalGraph, true: CausalGraph, frame: pd.DataFrame, factual: pd.DataFrame, changed: pd.DataFrame, name: str,
    value: float, kind: str,
) -> dict[str, float]:  # fmt: skip
    model = fit(frame, graph, kind, generator=torch.Generator().manual_seed(0)).model
    guess = _changed(model, factual, {name: value})
    moved = sorted(true.descendants(name) - {name})
    spread = factual[moved].std()
    missed = float((((guess - changed)[moved] / spread) ** 2).to_numpy().mean())
    about_mean = float((((changed - changed.mean())[moved] / spread) ** 2).to_numpy().mean())
    about_none = float((((factual - changed)[moved] / spread) ** 2).to_numpy().mean())
    return {"r2": 1 - missed / about_mean, "r2_change": 1 - missed / about_none}


def _changed(model: StructuralModel, factual: pd.DataFrame, do: dict[str, float]) -> pd.DataFrame:
    rows = torch.from_numpy(factual[list(model.names)].to_numpy(copy=True))
    return pd.DataFrame(model.counterfactual(rows, do).numpy(), columns=list(model.names))


def _root_causes(seeds: range, rows: int) -> dict[str, Any]:
    """Seeds in which the one planted change has the largest share of churn's, is flagged, is alone in that."""
    largest = flagged = alone = 0
    runs = []
    for seed in seeds:
        _say(f"root cause, seed {seed}")
        rng = np.random.default_rng(seed)
        planted = _CHANGES[seed % len(_CHANGES)]
        before, after = linear(rng, rows), _moved(rng, rows, planted)
        found = root_cause(before, after, GRAPH, "churn", generator=torch.Generator().manual_seed(seed))
        largest += found.shares.ranked[0] == planted
        flagged += planted in found.changed
        alone += found.changed == (planted,)
        runs.append(
            {
                "planted": planted,
                "changed": list(found.changed),
                "shares": dict(found.shares.shares),
                "total": found.shares.total,
            }
        )
    return {"of": len(seeds), "largest_share": largest, "flagged": flagged, "flagged_alone": alone, "runs": runs}


def _moved(rng: Rng, n: int, planted: str) -> pd.DataFrame:
    """The linear table once one mechanism has moved: its mean goes up by half a deviation of its noise."""
    amount, mismatch, tenure = rng.normal(size=(3, n))
    noise = rng.normal(0, 0.5, (3, n))
    up = {name: 0.5 * (name == planted) for name in _CHANGES}
    risk = 0.8 * amount + 0.5 * mismatch + noise[0] + 0.5 * up["risk"]
    friction = -0.9 * risk + noise[1] + 0.5 * up["friction"]
    tenure = tenure + up["tenure"]
    return _table(
        amount, mismatch, risk, friction, tenure, 0.7 * friction - 0.5 * tenure + noise[2] + 0.5 * up["churn"]
    )


def _peer() -> Any:
    try:
        gcm = import_module("dowhy.gcm")
        import_module("dowhy.gcm.config").disable_progress_bars()
    except ImportError as error:
        raise MisuseError(f"This benchmark compares with dowhy's gcm: {REMEDY}, or leave out its parts.") from error
    return gcm


def _say(what: str) -> None:
    sys.stderr.write(f"scm: {what}\n")


_PLANTED: dict[str, Callable[[Rng, int], pd.DataFrame]] = {"nonlinear": nonlinear, "linear": linear}
