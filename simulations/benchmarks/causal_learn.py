"""causal-learn (MIT), the library that discovery is measured beside: its searches, on a table, as edges with marks.

Its FCI can be run with corrections, each in the place of one function, to show what a difference comes from:

``walk``   The search for possible d-separating sets looks one edge ahead only from the start: it queues the pair of
           the node before and the node after, where the next step needs the last two. So it misses sets beyond two
           edges, and edges stay that a set separates. Put right: the walk of Spirtes et al. (1999).
``still``  Edges are taken away while others are still to be tested on what remains, so that the outcome hangs on the
           order of the columns; single variables are never tried, and the first set found is kept. Put right: all
           edges are tested on the graph as it was, and all sets of the smallest size count (Colombo & Maathuis, 2014).
``sets``   Rule 4 tests the ends of a discriminating path anew, given the path. Zhang's (2008) reads the set that
           separated them.
"""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from causaldao.errors import MisuseError
from causaldao.models.graph import CausalGraph

NEEDED = "0.1.4.8"
CORRECTIONS = ("walk", "still", "sets")

Marked = frozenset[frozenset[tuple[str, str]]]
_MARKS = {-1: "-", 1: ">", 2: "o"}


def installed() -> str:
    """The version that is installed. MisuseError: none is."""
    if find_spec("causallearn") is None:
        raise MisuseError(f"The peer of this benchmark is not installed: pip install causal-learn=={NEEDED}.")
    return version("causal-learn")


def pc(table: pd.DataFrame, alpha: float = 0.01, rule: int = 0, priority: int = 2) -> Marked:
    """Its PC-stable; with its own rule for colliders, of which the first in the order of the columns stand."""
    run = _module("search.ConstraintBased.PC").pc
    with _quiet():
        return marked_by(run(table.to_numpy(), alpha, "fisherz", True, rule, priority, show_progress=False).G, table)


def ges(table: pd.DataFrame, penalty: float = 2.0) -> Marked:
    """Its GES; its lambda weighs n·log σ² by half."""
    with _quiet():
        found = _module("search.ScoreBased.GES").ges(
            table.to_numpy(), "local_score_BIC_from_cov", parameters={"lambda_value": penalty / 2}
        )
    return marked_by(found["G"], table)


def boss(table: pd.DataFrame, penalty: float = 2.0, starts: int = 1, seed: int = 0) -> list[Marked]:
    """What its BOSS finds from each of so many starts, the columns in their own order first, then in random ones."""
    run = _module("search.PermutationBased.BOSS").boss
    draw, state, found = np.random.default_rng(seed), random.getstate(), []
    try:
        random.seed(seed)  # its search draws from the global generator
        for start in range(starts):
            turned = table[list(draw.permutation(table.columns))] if start else table
            with _quiet():
                graph = run(
                    turned.to_numpy(),
                    "local_score_BIC_from_cov",
                    parameters={"lambda_value": penalty / 2},
                    verbose=False,
                )
            found.append(marked_by(graph, turned))
    finally:
        random.setstate(state)
    return found


def fci(table: pd.DataFrame, alpha: float = 0.01, corrections: Sequence[str] = (), **options: Any) -> Marked:
    """Its FCI, with those corrections; ``options`` go to its test, such as ``true_dag`` to that by d-separation."""
    run, test = _module("search.ConstraintBased.FCI").fci, "d_separation" if options else "fisherz"
    with _quiet(), _corrected(corrections):
        graph, _ = run(table.to_numpy(), test, alpha, show_progress=False, **options)
    return marked_by(graph, table)


def marked_by(graph: Any, table: pd.DataFrame) -> Marked:
    """The edges of one of its graphs over the columns of the table, each a set of (name, mark at it)."""
    at, names = graph.graph, list(table.columns)
    pairs = [(i, j) for i, j in combinations(range(len(names)), 2) if at[i, j] or at[j, i]]
    return frozenset(frozenset({(names[i], _MARKS[at[i, j]]), (names[j], _MARKS[at[j, i]])}) for i, j in pairs)


def marked(graph: CausalGraph) -> Marked:
    """The edges of one of our graphs in the same form."""
    return frozenset(frozenset({(edge.a, edge.at_a), (edge.b, edge.at_b)}) for edge in graph.edges)


def _module(name: str) -> Any:
    installed()
    return import_module(f"causallearn.{name}")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _corrected(corrections: Sequence[str]) -> Iterator[None]:
    module = _module("search.ConstraintBased.FCI")
    settle = module.doDdpOrientation
    places: dict[str, tuple[str, Callable[..., Any]]] = {
        "walk": ("getPossibleDsep", _possible_d_sep),
        "still": ("removeByPossibleDsep", _remove_on_the_graph_as_it_was),
        # a test that never separates leaves the set to decide
        "sets": ("doDdpOrientation", lambda *given: settle(*given[:7], lambda *_: 0.0, *given[8:])),
    }
    before = {name: getattr(module, name) for name, _ in places.values()}
    try:
        for correction in corrections:
            setattr(module, *places[correction])
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


def _possible_d_sep(start: Any, other: Any, graph: Any, _: int) -> list[Any]:
    todo = [(start, node) for node in graph.get_adjacent_nodes(start)]
    seen = set(todo)
    for before, node in todo:
        for after in graph.get_adjacent_nodes(node):
            if after in (start, before) or (node, after) in seen:
                continue
            if graph.is_def_collider(before, node, after) or graph.is_adjacent_to(before, after):
                seen.add((node, after))
                todo.append((node, after))
    return sorted({node for _, node in seen} - {start, other}, reverse=True)


def _remove_on_the_graph_as_it_was(graph: Any, test: Any, alpha: float, sets: dict[tuple[int, int], set[int]]) -> None:
    module, place = _module("search.ConstraintBased.FCI"), graph.get_node_map()
    asked = []
    for edge in graph.get_graph_edges():
        ends = (edge.get_node1(), edge.get_node2())
        pools = []
        for end, other in (ends, ends[::-1]):
            pool = sorted(place[node] for node in module.getPossibleDsep(end, other, graph, -1))
            pools.append((pool, {place[node] for node in graph.get_adjacent_nodes(end)}))
        asked.append((edge, place[ends[0]], place[ends[1]], pools))
    for edge, i, j, pools in asked:
        for size in range(1, 1 + max(len(pool) for pool, _ in pools)):
            tried = (s for pool, known in pools for s in combinations(pool, size) if not known.issuperset(s))
            if separating := [given for given in tried if test(i, j, given) > alpha]:
                graph.remove_edge(edge)
                sets[i, j] = sets[j, i] = set().union(*separating)
                break
