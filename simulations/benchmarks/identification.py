"""Separation and adjustment on random graphs with latent causes, beside pgmpy and dowhy where they answer.

A random DAG over observed variables gets a latent common cause for some pairs. pgmpy judges d-separation in that DAG,
ours m-separation in the ADMG, where each latent cause is a two-headed edge. dowhy looks for the adjustment set of least
variance (Smucler, Sapienza & Rotnitzky, Biometrika, 2022), which it promises only under a condition on the graph; ours
is the parents of the causal nodes without latents, and Runge's set (NeurIPS, 2021) with them.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations
from typing import Any, TypeVar

import networkx as nx
import numpy as np

from causaldao.errors import MisuseError, NotIdentifiable
from causaldao.models.adjustment import adjustment_set
from causaldao.models.graph import CausalGraph, Pair

T = TypeVar("T")
PEERS = {"dowhy": "dowhy==0.14", "pgmpy": "pgmpy==1.1.2"}


def measure(*, problems: int = 300, seed: int = 0) -> dict[str, Any]:
    """How often ours and theirs agree on ``problems`` graphs of 4 to 6 variables, half of them with latent causes.

    Raises MisuseError where a peer is not installed.
    """
    if missing := [need for name, need in PEERS.items() if find_spec(name) is None]:
        raise MisuseError(
            f"This benchmark compares with peers that are not installed: pip install {' '.join(missing)}."
        )
    sys.stderr.write("identification: importing dowhy and pgmpy\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best_of_dowhy = import_module("dowhy.causal_identifier.efficient_backdoor").EfficientBackdoor
        graph_of_pgmpy = import_module("pgmpy.base").DAG
        rng = np.random.default_rng(seed)
        separation, optimal, seconds = (
            Counter[str](),
            {"dag": Counter[str](), "admg": Counter[str]()},
            defaultdict[str, float](float),
        )
        for k in range(problems):
            world = _World.draw(rng, latents=bool(k % 2))
            separation[_separation(world, rng, graph_of_pgmpy, seconds)] += 1
            optimal["admg" if k % 2 else "dag"][_optimal(world, best_of_dowhy, seconds)] += 1
    return {
        "problems": problems, "seed": seed, "separation": dict(separation),
        "optimal_adjustment": {kind: dict(found) for kind, found in optimal.items()}, "seconds": dict(seconds),
    }  # fmt: skip


@dataclass(frozen=True)
class _World:
    """A DAG with its latent variables, the ADMG of the observed ones, and a treatment that can move the outcome."""

    whole: nx.DiGraph[str]
    graph: CausalGraph
    treatment: str
    outcome: str

    @staticmethod
    def draw(rng: np.random.Generator, latents: bool) -> _World:
        names = [f"v{i}" for i in rng.permutation(int(rng.integers(4, 7)))]
        pairs = list(combinations(names, 2))
        edges = [pair for pair in pairs if rng.random() < 2.5 / (len(names) - 1)]
        arcs = [pair for pair in pairs if latents and rng.random() < 0.8 / (len(names) - 1)]
        graph = CausalGraph.admg(edges, arcs, sorted(names))
        whole: nx.DiGraph[str] = nx.DiGraph()
        whole.add_nodes_from(sorted(names))
        whole.add_edges_from(edges)
        whole.add_edges_from((f"u_{a}_{b}", end) for a, b in arcs for end in (a, b))
        moved = [(a, b) for a, b in pairs if b in graph.descendants([a])] or pairs
        treatment, outcome = moved[int(rng.integers(len(moved)))]
        return _World(whole, graph, treatment, outcome)


def _separation(world: _World, rng: np.random.Generator, pgmpy: Any, seconds: dict[str, float]) -> str:
    names = [str(name) for name in rng.permutation(world.graph.nodes)]
    a, b, *given = names[: 2 + int(rng.integers(len(names) - 1))]
    theirs = pgmpy()
    theirs.add_nodes_from(world.whole.nodes)
    theirs.add_edges_from(world.whole.edges)
    ours = _timed("ours: separation", seconds, lambda: world.graph.d_separated(a, b, given))
    other = _timed("pgmpy: separation", seconds, lambda: not theirs.is_dconnected(a, b, observed=given))
    return "agree" if ours == other else "differ"


def _optimal(world: _World, dowhy: Any, seconds: dict[str, float]) -> str:
    """What became of one question; both may find that there is no set."""
    if world.outcome not in world.graph.descendants([world.treatment]):
        return "no effect"
    observed, pair = list(world.graph.nodes), (world.treatment, world.outcome)
    ours = _timed("ours: optimal set", seconds, lambda: _ours(world.graph, pair))
    peer = dowhy(world.whole.copy(), [pair[0]], [pair[1]], observed)
    try:
        theirs = _timed("dowhy: optimal set", seconds, lambda: frozenset(peer.optimal_adj_set()))
    except nx.NetworkXError:  # it takes an edge away twice where two causal paths begin with it
        return "dowhy fails"
    except ValueError as error:
        if "conditions" in str(error).lower():
            return "dowhy promises none"
        return "agree: there is none" if ours is None else "differ"
    return "agree" if theirs == ours else "differ"


def _ours(graph: CausalGraph, pair: Pair) -> frozenset[str] | None:
    try:
        return frozenset(adjustment_set(graph, *pair))
    except NotIdentifiable:
        return None


def _timed(name: str, seconds: dict[str, float], call: Callable[[], T]) -> T:
    began = time.perf_counter()
    try:
        return call()
    finally:
        seconds[name] += time.perf_counter() - began
