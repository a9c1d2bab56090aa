"""Discovery on tables: known networks of discrete variables beside causal-learn, and mixed data from planted models.

Of ``asia`` (8 variables, 8 edges) and ``alarm`` (37, 46), as bundled with pgmpy, 5,000 rows are drawn for each seed.
Our PC (G² tests), GES and BOSS (BDeu) and causal-learn's PC (gsq) and GES (BDeu) see the same rows, columns in
the order of their names, tests at level .01. Both BDeu have an equivalent sample size of 1 and a prior of about one
parent for each variable. Scores are of the skeleton (F1) and of the pattern (SHD: pairs whose edge is missing, extra
or marked otherwise) against the CPDAG of the network. Ratios of time are medians over seeds, of runs one after another.

Where our PC and causal-learn's find different skeletons, ours runs once more with tests without degrees of freedom
taken as independence, as causal-learn takes them: ``alike_by_their_rule`` says whether the skeletons then agree.

Mixed data: ten variables in an order of causes, four continuous, three binary, three with 3 or 4 levels; each pair is
an edge with probability 2/9. A cause enters a linear predictor in standard units, its levels in a random order of equal
steps, with a weight of .6 to 1.2 and a random sign; a continuous variable adds standard normal noise, another takes
a level by a (multinomial) logit. Continuous columns are cut into four bins, at quantiles or (``public``) into equal
widths of the bounds -4 to 4. The settings were looked at on seeds from 100 up, not on those that judge.

Noisy tables: of 6 or 8 variables of 2 or 3 levels in a random order, each pair is an edge with a probability that gives
two to a variable ("planted") or none ("independent"); each level of a cause draws its effect's probabilities from a
Dirichlet law of .7, of which a tenth is uniform. Ten sites of as many rows share all their tables of three variables
under simulated noise of ε = 3 at δ = 1e-5, and the tables are added up. Beside them stands BOSS on all rows in one
place.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from fractions import Fraction
from functools import partial
from importlib import import_module
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from causaldao.budget import multiplier
from causaldao.client.privacy.noise import NoiseSource
from causaldao.errors import MisuseError
from causaldao.models.discovery import LocalTables, SharedTables, discover
from causaldao.models.discovery.skeleton import Answer, CountTests, Oracle, stable_skeleton
from causaldao.models.discovery.tables import NoiseSource as Noise
from causaldao.models.discovery.tables import sensitivity, share
from causaldao.models.graph import ARROW, TAIL, CausalGraph, Pair
from causaldao.models.pattern import cpdag_of, f1, shd

ALPHA = 0.01
OURS: dict[str, dict[str, Any]] = {"pc": {"alpha": ALPHA}, "ges": {}, "boss": {}}
PEERS = {"pc": "causal-learn pc", "ges": "causal-learn ges", "boss": "causal-learn ges"}
REMEDY = "not installed: pip install pgmpy==1.1.2 causal-learn==0.1.4.8 (the extra `bench`)"
BINS = 4
BOUNDS = (-4.0, 4.0)
SITES, WAYS, EPSILON, DELTA = 10, 3, 3.0, 1e-5


def measure(
    *,
    networks: Sequence[str] = ("asia", "alarm"),
    seeds: int = 5,
    large_seeds: int = 3,
    mixed_seeds: int = 20,
    noisy_seeds: int = 10,
    rows: int = 5000,
) -> dict[str, Any]:
    """Each network over ``seeds`` (``alarm`` over ``large_seeds``), mixed data over ``mixed_seeds`` and noisy tables
    over ``noisy_seeds``.

    Raises:
        MisuseError: pgmpy or causal-learn is not installed.
    """
    return {
        "rows": rows,
        "networks": {name: _network(name, large_seeds if name == "alarm" else seeds, rows) for name in networks},
        "mixed": _mixed(mixed_seeds, rows),
        "noisy": _noisy(noisy_seeds, rows),
    }


def _network(name: str, seeds: int, rows: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {}
    differing = []
    for seed in range(seeds):
        frame, levels, dag = sampled(name, seed, rows)
        truth, tables = cpdag_of(dag), LocalTables.from_data(frame, levels)
        graphs = {}
        for method, find in _methods(tables, frame).items():
            sys.stderr.write(f"{name}, seed {seed}: {method}\n")
            began = time.perf_counter()
            graphs[method] = find()
            seconds = time.perf_counter() - began
            found.setdefault(method, []).append(_judged(graphs[method], truth) | {"seconds": seconds})
        differing += _differing(seed, tables, graphs["pc"], graphs["causal-learn pc"])
    ratios = {
        method: median(
            theirs["seconds"] / ours["seconds"] for ours, theirs in zip(found[method], found[peer], strict=True)
        )
        for method, peer in PEERS.items()
    }
    return {"variables": len(truth.nodes), "edges": len(truth.skeleton()), "methods": _summary(found), "ratios": ratios,
            "pc_differs": differing}  # fmt: skip


def _ratio(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> float:
    return float(median(there["seconds"] / here["seconds"] for there, here in zip(theirs, ours, strict=True)))


def _methods(tables: LocalTables, frame: pd.DataFrame) -> dict[str, Callable[[], CausalGraph]]:
    """What finds a graph; all that is imported for it is imported before the clock starts."""
    ours = {name: partial(discover, tables, name, **options) for name, options in OURS.items()}
    pc = _causal_learn("causallearn.search.ConstraintBased.PC")
    ges = _causal_learn("causallearn.search.ScoreBased.GES")
    return {
        **ours,
        "causal-learn pc": lambda: _their_pc(pc, frame),
        "causal-learn ges": lambda: _their_ges(ges, frame),
    }


def sampled(name: str, seed: int, rows: int) -> tuple[pd.DataFrame, dict[str, int], CausalGraph]:
    """(rows of a bundled network as codes, how many levels each variable has, its DAG); columns in name order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = import_module("pgmpy.utils").get_example_model(name)
            drawn = model.simulate(rows, seed=seed, show_progress=False)
    except ImportError as error:
        raise MisuseError(f"The benchmark networks samples pgmpy's networks, and pgmpy is {REMEDY}.") from error
    states = {node: list(model.get_cpds(node).state_names[node]) for node in sorted(model.nodes())}
    coded = {node: pd.Categorical(drawn[node], categories=names).codes.astype(int) for node, names in states.items()}
    sizes = {node: len(names) for node, names in states.items()}
    return pd.DataFrame(coded), sizes, CausalGraph.dag(list(model.edges()), list(states))


def _their_pc(module: Any, frame: pd.DataFrame) -> CausalGraph:
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        found = module.pc(frame.to_numpy(), ALPHA, "gsq", True, 0, 2, show_progress=False)
    return _read(found.G.graph, list(frame.columns))


def _their_ges(module: Any, frame: pd.DataFrame) -> CausalGraph:
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        found = module.ges(frame.to_numpy(), "local_score_BDeu")
    return _read(found["G"].graph, list(frame.columns))


def _causal_learn(module: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise MisuseError(f"The benchmark networks compares with causal-learn, which is {REMEDY}.") from error


def _read(marks: Any, labels: list[str]) -> CausalGraph:
    """causal-learn's matrix, in which [i, j] is the mark at i of the edge with j: -1 a tail, 1 an arrowhead."""
    ends = {-1: TAIL, 1: ARROW}
    pairs = [(i, j) for i, j in combinations(range(len(labels)), 2) if marks[i, j]]
    return CausalGraph.pag({(labels[i], labels[j]): (ends[marks[i, j]], ends[marks[j, i]]) for i, j in pairs}, labels)


def _judged(graph: CausalGraph, truth: CausalGraph) -> dict[str, float]:
    return {"skeleton_f1": f1(graph.skeleton(), truth.skeleton()), "shd": shd(graph, truth)}


def _summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Of each method the mean of each number, and the numbers of the seeds."""
    return {
        method: {
            **{key: fmean(one[key] for one in each) for key in each[0]},
            "seeds": [{key: round(value, 3) for key, value in one.items()} for one in each],
        }
        for method, each in found.items()
    }


def _differing(seed: int, tables: LocalTables, ours: CausalGraph, theirs: CausalGraph) -> list[dict[str, Any]]:
    mine, other = ours.skeleton(), theirs.skeleton()
    if mine == other:
        return []
    return [{"seed": seed, "ours_only": sorted(mine - other), "theirs_only": sorted(other - mine),
             "alike_by_their_rule": _powerless_separate(tables) == other}]  # fmt: skip


def _powerless_separate(tables: LocalTables) -> frozenset[Pair]:
    """The skeleton of our PC if a test without degrees of freedom counted as independence."""
    tests, names = CountTests.of(tables), tuple(sorted(tables.names))

    def run(questions: Any, level: int) -> Any:
        for answer in tests.run(questions, level):
            powerless = (answer.pair, answer.given) in tests.powerless
            yield Answer(answer.pair, answer.given, 0.0) if powerless else answer

    oracle = Oracle(names, run, float(norm.isf(ALPHA / 2)), len(names) - 2)
    pairs = combinations(names, 2)
    return frozenset(stable_skeleton(oracle, pairs, lambda a, b: False, lambda a, b, c: True).pairs)


def _mixed(seeds: int, rows: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        frame, dag = planted(seed, rows)
        continuous = [name for name in frame.columns if frame[name].dtype.kind == "f"]
        for cut, bounds in (("quantiles", None), ("public", dict.fromkeys(continuous, BOUNDS))):
            tables = LocalTables.from_data(frame, bins=BINS, bounds=bounds)
            for method, options in OURS.items():
                began = time.perf_counter()
                graph = discover(tables, method, **options)
                seconds = time.perf_counter() - began
                judged = _judged(graph, cpdag_of(dag)) | {"seconds": seconds}
                found.setdefault(f"{method} {cut}", []).append(judged)
    return {
        method: {**{key: fmean(one[key] for one in each) for key in each[0]},
                 "lowest_f1": min(one["skeleton_f1"] for one in each)}
        for method, each in found.items()
    }  # fmt: skip


def planted(seed: int, rows: int) -> tuple[pd.DataFrame, CausalGraph]:
    """(rows of a planted mixed model, its DAG); the columns' order says nothing of causes."""
    rng = np.random.default_rng(seed)
    names = [f"v{i}" for i in range(10)]
    kinds = dict(zip(names, rng.permutation(["continuous"] * 4 + ["binary"] * 3 + ["categorical"] * 3), strict=True))
    edges = [pair for pair in combinations(names, 2) if rng.random() < 2 / 9]
    dag = CausalGraph.dag(edges, names)
    columns: dict[str, Any] = {}
    for name in names:
        causes = [_in_units(columns[cause], rng) for cause in sorted(dag.parents(name))]
        levels = {"continuous": 1, "binary": 2, "categorical": int(rng.integers(3, 5))}[kinds[name]]
        weights = rng.uniform(0.6, 1.2, (len(causes), max(1, levels - 1))) * rng.choice([-1, 1], (len(causes), 1))
        weights = weights * (rng.choice([-1, 1], weights.shape) if levels > 2 else 1)
        predictor = np.stack(causes, axis=1) @ weights if causes else np.zeros((rows, max(1, levels - 1)))
        if levels == 1:
            columns[name] = predictor[:, 0] + rng.normal(size=rows)
        else:
            logits = np.concatenate([predictor, np.zeros((rows, 1))], axis=1)
            columns[name] = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return pd.DataFrame(columns)[list(rng.permutation(names))], dag


def _noisy(seeds: int, rows: int) -> dict[str, Any]:
    """Of each setting and method: means of the skeleton's F1, its false edges and the pattern's SHD, and the share of
    seeds with a false edge.
    """
    scale, summary = multiplier(EPSILON, DELTA), dict[str, Any]()
    for d in (6, 8):
        for kind, degree in (("planted", 2.0), ("independent", 0.0)):
            sys.stderr.write(f"noisy tables: {d} variables, {kind}\n")
            found: dict[str, list[dict[str, float]]] = {}
            for seed in range(seeds):
                frame, levels, dag = discrete(seed, d, SITES * rows, degree)
                shared = shared_tables(frame, levels, scale, partial(_source, seed))
                runs = {method: discover(shared, method, **options) for method, options in OURS.items()}
                runs["all rows"] = discover(LocalTables.from_data(frame, levels), "boss")
                for method, graph in runs.items():
                    false = len(graph.skeleton() - dag.skeleton())
                    judged = _judged(graph, cpdag_of(dag)) | {"false_edges": false, "any_false": float(false > 0)}
                    found.setdefault(method, []).append(judged)
            summary[f"{d} {kind}"] = {
                method: {key: fmean(one[key] for one in each) for key in each[0]} for method, each in found.items()
            }
    return {"sites": SITES, "epsilon": EPSILON, "delta": DELTA, "multiplier": scale, "settings": summary}


def discrete(seed: int, d: int, rows: int, degree: float) -> tuple[pd.DataFrame, dict[str, int], CausalGraph]:
    """(rows of a planted discrete model, how many levels each variable has, its DAG)."""
    rng = np.random.default_rng(seed)
    names = [f"v{i}" for i in rng.permutation(d)]
    dag = CausalGraph.dag([pair for pair in combinations(names, 2) if rng.random() < degree / (d - 1)], names)
    levels = {name: int(rng.integers(2, 4)) for name in names}
    columns: dict[str, Any] = {}
    for name in names:
        causes = sorted(dag.parents(name))
        table = 0.9 * rng.dirichlet(np.full(levels[name], 0.7), [levels[c] for c in causes]) + 0.1 / levels[name]
        chances = table[tuple(columns[c] for c in causes)] if causes else np.broadcast_to(table, (rows, levels[name]))
        columns[name] = (chances.cumsum(axis=1)[:, :-1] < rng.random((rows, 1))).sum(axis=1)
    return pd.DataFrame(columns)[sorted(names)], levels, dag


def _source(seed: int, site: int) -> NoiseSource:
    return NoiseSource.simulated(hashlib.sha256(f"{seed} {site}".encode()).digest())


def shared_tables(
    frame: pd.DataFrame, levels: dict[str, int], scale: float, source: Callable[[int], Noise]
) -> SharedTables:
    """The sum of the tables of three variables that ten sites share, each of its part of the rows under noise of its
    own ``source``, whose multiplier is ``scale`` or a little more.
    """
    sigma = Fraction(math.ceil(scale * sensitivity(frame.shape[1], WAYS)))
    parts = []
    for site in range(SITES):
        parts.append(share(LocalTables.from_data(frame[site::SITES], levels), WAYS, sigma, source(site)))
    added = {key: np.sum([part.tables[key] for part in parts], axis=0) for key in parts[0].tables}
    return SharedTables(parts[0].names, parts[0].levels, WAYS, added, float(sigma) * SITES**0.5)


def _in_units(column: Any, rng: np.random.Generator) -> Any:
    """A cause with mean 0 and standard deviation 1; levels first stand in a random order."""
    if column.dtype.kind == "i":
        column = rng.permutation(int(column.max()) + 1)[column]
    return (column - column.mean()) / column.std()
