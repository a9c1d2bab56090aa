"""Two ways to vote: by tests of what the pool shows, and by each member's own graph.

Random linear Gaussian models as in the benchmark of federated discovery; K members of n records each, moments through
the release of a node at ε (infinite: exact). Ways: ``shared`` is what a study does by default: multi-Krum, BOSS on the
pool, a ballot of each member, adoption. ``sieve`` is the best of shared mode at small ε: the sieve, with a smaller clip
whose work is put back. ``local`` is a study with discovery.evidence = "local": BOSS on each member's own moments, and
the count of the graphs; its moments are those of ``shared``. ``local-clip`` has the moments of ``sieve``, and nothing
is put back. Beside them ``member``, one honest member's own graph in ``local-clip`` (the mean over members), and
``pooled``, BOSS on all honest rows in one place. The declared f is the largest of ``liars`` throughout.

Liars in shared mode agree on the moments of the true model with every arrow turned around; in local mode each votes for
what its own rows do not show, and for nothing that they do. Reported: structural Hamming distance to the true CPDAG,
and the true links that are missing and the false ones that are there. Means over seeds with standard errors.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from causaldao.ballots import cast, propose
from causaldao.consensus import ConsensusRule, adopt
from causaldao.errors import MisuseError
from causaldao.graph_ballots import GraphBallot, ballot_from, decide_local_adoption
from causaldao.models.discovery.clipping import restoration, restored
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE
from causaldao.models.pattern import cpdag_of, shd
from causaldao.pool import Pool, Settings, pool
from causaldao.simulations.attacks.graphs import opposite
from causaldao.simulations.benchmarks.federated_worlds import World, lies, releases
from causaldao.study import Study

THRESHOLD = 0.6


def measure(
    *,
    seeds: int = 5,
    first_seed: int = 0,
    members: int = 20,
    sizes: Sequence[int] = (10, 20),
    rows: Sequence[int] = (1000, 5000),
    epsilons: Sequence[float] = (math.inf, 3.0),
    liars: Sequence[int] = (0, 4),
    graph: str = "ER1",
    weights: str = "moderate",
) -> dict[str, Any]:
    """Every combination; ``graph`` and ``weights`` are those of `federated_worlds`.

    Raises
    ------
    MisuseError
        fewer than two seeds, which have no standard error.
    """
    if seeds < 2:
        raise MisuseError(f"seeds = {seeds}: two at least, for a standard error.")
    began, found = time.perf_counter(), list[dict[str, Any]]()
    torch.set_num_threads(1)
    for d in sizes:
        for n in rows:
            for epsilon in epsilons:
                runs = [
                    _runs(World.draw(graph, weights, d, seed), n, epsilon, members, liars, seed)
                    for seed in range(first_seed, first_seed + seeds)
                ]
                for number in liars:
                    what = {"d": d, "rows": n, "epsilon": None if math.isinf(epsilon) else epsilon, "liars": number}
                    found.append({**what, **_means([run[number] for run in runs])})
                    told = {name: found[-1][name]["shd"]["mean"] for name in runs[0][number]}
                    sys.stderr.write(f"local-ballots: {what} {told}\n")
    return {
        "members": members, "faulty": max(liars), "seeds": seeds, "first_seed": first_seed, "graph": graph,
        "weights": weights, "settings": found, "seconds": time.perf_counter() - began,
    }  # fmt: skip


Scores = dict[str, dict[str, float]]


def _runs(world: World, n: int, epsilon: float, members: int, liars: Sequence[int], seed: int) -> dict[int, Scores]:
    """By number of liars and way to vote: the scores."""
    names, faulty = [f"site-{k:02}" for k in range(members)], max(liars)
    table = world.rows(n * members, np.random.default_rng([seed, 32]))
    parts = {name: table.iloc[k * n : (k + 1) * n].reset_index(drop=True) for k, name in enumerate(names)}
    whole = replace(world, dictionary=replace(world.dictionary, clip=float(len(world.names) + 1)))
    moments, clipped = (releases(parts, one.dictionary, epsilon, seed) for one in (whole, world))
    asked, truth = _study(whole, faulty), cpdag_of(world.dag)
    ballots = {name: ballot_from(asked, own) for name, own in moments.items()}
    shorter = {name: ballot_from(asked, own) for name, own in clipped.items()}
    found = {}
    for number in liars:
        lying, honest = names[:number], names[number:]
        pooled = Evidence.from_data(table.iloc[number * n :])
        own = [_scored(shorter[name].graph, truth) for name in honest]
        found[number] = {
            "shared": _scored(_shared(whole, moments, lying, Settings(faulty, "multi-krum"), seed), truth),
            "sieve": _scored(_shared(world, clipped, lying, Settings(faulty, "sieve"), seed), truth),
            "local": _scored(_local(asked, ballots, lying), truth),
            "local-clip": _scored(_local(asked, shorter, lying), truth),
            "member": {key: fmean(score[key] for score in own) for key in own[0]},
            "pooled": _scored(propose(pooled, "boss", NONE, seed=seed).pattern, truth),
        }
    return found


def _shared(
    world: World, moments: Mapping[str, Evidence], lying: Sequence[str], settings: Settings, seed: int
) -> CausalGraph:
    """The graph that a study adopts from these moments; what a clip below the default took is put back."""

    def look(evidence: Mapping[str, Evidence]) -> Pool:
        return pool(evidence, settings)

    sent, clip = dict(lies(world, "reversed", moments, lying, look, seed)), world.dictionary.clip
    pooled = look(sent).evidence
    grow = None if clip > len(world.names) else restoration(pooled, clip)

    def see(one: Evidence) -> Evidence:
        return one if grow is None else restored(one, grow)

    proposal = propose(see(pooled), "boss", NONE, seed=seed)
    ballots = {name: cast(proposal, see(own)) for name, own in sent.items()}
    return adopt(proposal, ballots, ConsensusRule(THRESHOLD, settings.faulty, len(sent))).pattern


def _local(asked: Study, ballots: Mapping[str, GraphBallot], lying: Sequence[str]) -> CausalGraph:
    forged = {name: GraphBallot(opposite(ballots[name].graph, asked)) for name in lying}
    return decide_local_adoption(asked, {**ballots, **forged}, len(ballots)).pattern


def _study(world: World, faulty: int) -> Study:
    """A study of local ballots over the world's variables; ε, which the moments have already, decides nothing in it."""
    words = world.dictionary
    return Study.from_mapping({
        "study": {"name": "local-ballots", "question": "?", "purpose": "benchmark", "retention": "none"},
        "variables": [{"name": v.name, "kind": "continuous", "bounds": list(v.bounds)} for v in words.variables],
        "discovery": {"evidence": "local", "clip": words.clip},
        "consensus": {"threshold": THRESHOLD, "faulty": faulty},
        "training": {"rounds": 0},
        "privacy": {
            "epsilon": 3.0, "delta": 1e-5, "split": {"evidence": 1.0, "training": 0.0, "evaluation": 0.0},
        },
    })  # fmt: skip


def _scored(found: CausalGraph, truth: CausalGraph) -> dict[str, float]:
    links, true = found.skeleton(), truth.skeleton()
    return {
        "shd": float(shd(found, truth)), "missing": float(len(true - links)), "false": float(len(links - true)),
    }  # fmt: skip


def _means(runs: Sequence[Scores]) -> dict[str, Any]:
    return {
        way: {key: _mean([run[way][key] for run in runs]) for key in runs[0][way]}
        for way in runs[0]
    }  # fmt: skip


def _mean(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "standard_error": stdev(values) / math.sqrt(len(values))}
