"""Discovery in a federation of which some members lie: how near it comes to all honest rows in one place.

Random linear Gaussian models; each site's evidence goes through the release of a node; the graph is made by the
functions that a study runs: pool, propose, ballots, adopt. ``multi-krum`` is that as a study has it by default;
``sieve`` is the pool's other rule, with what the clip took put back (`models.discovery.clipping`); ``sieve+doubt`` also
counts unseen liars into the precision of the pool; ``sieve+fit`` searches by the fit of all moments at once
(`models.discovery.moment_fit`) instead of BOSS. Beside them: BOSS on all honest rows (no privacy, no liars), which
``extra`` is measured from; and where ε is infinite, BOSS on the mean of all evidence and the edge-wise majority of the
sites' own graphs. Scores are of CPDAGs: the structural Hamming distance to the truth, less that of the pooled rows
(``extra``), and F1 of moral graph and skeleton. Means over seeds with 95 % intervals (Student's t).

f is 35 % of the members, or as many as lie. Settings in which the rules cannot bear it (n ≥ 2f + 3) are listed as such
and not run. The settings of the rules were chosen on seeds from 100 up, not on those that are reported.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from itertools import combinations, product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from causaldao.aggregation.rules import RULES
from causaldao.ballots import Proposal, cast, propose
from causaldao.consensus import ConsensusRule, adopt
from causaldao.errors import MisuseError
from causaldao.files import write_text
from causaldao.models.discovery.clipping import restoration, restored
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import ARROW, TAIL, Edge
from causaldao.models.knowledge import NONE
from causaldao.models.pattern import cpdag_of, f1
from causaldao.pool import Pool, Settings, pool
from causaldao.simulations.benchmarks.federated_sachs import sachs
from causaldao.simulations.benchmarks.federated_tables import chart, markdown
from causaldao.simulations.benchmarks.federated_worlds import World, lies, releases

THRESHOLD = 0.6
PUBLISHED = {
    "method": "NOTEARS-ADMM, 10 sites, n = 100, d = 10",
    "source": "Ng & Zhang, Towards Federated Bayesian Network Structure Learning with Continuous Optimization, AISTATS "
    "2022. The method assumes honest sites; the figures with malicious ones are of a run of it outside this benchmark.",
    "f1": {"0": 0.97, "1": 0.90, "3": 0.70},
}
Edges = frozenset[Edge]


@dataclass(frozen=True)
class Setting:
    """A federation: the model, its sites, their rows and ε, how many lie and how."""

    graph: str
    weights: str
    members: int
    rows: int
    epsilon: float
    liars: int = 0
    attack: str = "none"
    d: int = 20

    @property
    def faulty(self) -> int:
        return max(self.liars, int(0.35 * self.members))

    @property
    def borne(self) -> bool:
        return self.members >= RULES["multi-krum"].least(self.faulty)

    @property
    def name(self) -> str:
        return (
            f"{self.graph}/{self.weights}/d{self.d}/K{self.members}/n{self.rows}/eps{self.epsilon:g}/"
            f"liars{self.liars}/{self.attack}"
        )


@dataclass(frozen=True)
class Method:
    """A rule of the pool, whether what the clip took is put back, the doubt that the pool is charged with, and the
    method of discovery."""

    rule: str
    restore: bool = False
    doubt: float = 0.0
    search: str = "boss"


METHODS = {
    "multi-krum": Method("multi-krum"),
    "sieve": Method("sieve", restore=True),
    "sieve+doubt": Method("sieve", restore=True, doubt=1.0),
    "sieve+fit": Method("sieve", restore=True, search="moment-fit"),
}
PEERS = ("mean", "majority")


def _lied(
    graph: str, weights: str, members: int, rows: int, epsilon: float, liars: int, attacks: str, d: int = 20
) -> list[Setting]:
    named = attacks.split() if liars else ["none"]
    return [Setting(graph, weights, members, rows, epsilon, liars, attack, d) for attack in named]


SETTINGS = (
    *(
        one
        for graph, weights, rows, epsilon, liars in product(
            ("ER1", "ER2"), ("moderate", "strong"), (1000, 5000), (math.inf, 1.0), (0, 7)
        )
        for one in _lied(graph, weights, 20, rows, epsilon, liars, "reversed stealthy quiet")
    ),
    *_lied("ER1", "moderate", 20, 5000, 1.0, 4, "reversed quiet"),
    *_lied("ER1", "moderate", 20, 5000, 1.0, 8, "reversed quiet"),
    *(one for epsilon in (8.0, 4.0, 2.0) for one in _lied("ER1", "moderate", 20, 1000, epsilon, 7, "reversed")),
    *(
        one
        for rows, epsilon in ((200, math.inf), (200, 1.0))
        for one in _lied("ER1", "moderate", 20, rows, epsilon, 7, "reversed random")
    ),
    *(
        one
        for members, liars in ((5, 0), (5, 1), (5, 2), (10, 0), (10, 3), (10, 4))
        for one in _lied("ER1", "moderate", members, 5000, 1.0, liars, "reversed")
    ),
    *(one for liars in (0, 1, 3) for one in _lied("ER1", "strong", 10, 100, math.inf, liars, "reversed", 10)),
)


def measure(
    *,
    seeds: int = 12,
    settings: str = "*",
    first_seed: int = 0,
    methods: Sequence[str] = tuple(METHODS),
    peers: Sequence[str] = PEERS,
    processes: int = 2,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """The settings whose names match the pattern ``settings`` ("ER1/*/eps1/*"; "sachs" is the real data).

    With ``out``, also ``federated.json``, ``.md`` and ``.svg`` there. The numbers do not depend on ``processes``.

    Raises
    ------
    MisuseError
        fewer than two seeds, no process, a pattern that nothing matches, an unknown method or peer; the package
        that holds Sachs' data is not there.
    """
    _require(seeds, processes, methods, peers)
    began = time.perf_counter()
    chosen = [setting for setting in SETTINGS if fnmatch(setting.name, settings)]
    real = fnmatch("sachs", settings) and settings != "*"
    if not chosen and not real:
        raise MisuseError(f"No setting matches {settings!r}: they are called {SETTINGS[0].name!r} or so, and 'sachs'.")
    works = _works([s for s in chosen if s.borne], range(first_seed, first_seed + seeds), tuple(methods), tuple(peers))
    found: dict[Setting, dict[str, list[dict[str, float]]]] = {}
    for number, (work, outcome) in enumerate(zip(works, _results(works, processes), strict=True), 1):
        for setting, scores in outcome:
            for method, score in scores.items():
                found.setdefault(setting, {}).setdefault(method, []).append(score)
        sys.stderr.write(f"federated: {number} of {len(works)}, {work.settings[0].name} seed {work.seed}\n")
    described = [_described(setting, found.get(setting, {})) for setting in chosen]
    result: dict[str, Any] = {"seeds": seeds, "first_seed": first_seed, "settings": described, "published": PUBLISHED}
    result |= {"sachs": sachs()} if real else {}
    result["seconds"] = time.perf_counter() - began
    if out is not None:
        _write(Path(out), result)
    return result


@dataclass(frozen=True)
class _Work:
    """The settings that share rows and releases, with one seed: what a process does at a time."""

    settings: tuple[Setting, ...]
    seed: int
    methods: tuple[str, ...]
    peers: tuple[str, ...]


def _works(settings: Sequence[Setting], seeds: range, methods: tuple[str, ...], peers: tuple[str, ...]) -> list[_Work]:
    shared: dict[tuple[Any, ...], list[Setting]] = {}
    for s in settings:
        shared.setdefault((s.graph, s.weights, s.d, s.members, s.rows, s.epsilon), []).append(s)
    return [_Work(tuple(group), seed, methods, peers) for group in shared.values() for seed in seeds]


def _results(works: Sequence[_Work], processes: int) -> Iterator[list[tuple[Setting, dict[str, dict[str, float]]]]]:
    if processes == 1:
        yield from map(_done, works)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as executor:
        yield from executor.map(_done, works)


def _done(work: _Work) -> list[tuple[Setting, dict[str, dict[str, float]]]]:
    """By setting and method, the scores."""
    torch.set_num_threads(1)
    first = work.settings[0]
    world = World.draw(first.graph, first.weights, first.d, work.seed)
    rows = world.rows(first.rows * first.members, np.random.default_rng([work.seed, 32]))
    names = [f"site-{k:02}" for k in range(first.members)]
    parts = {
        name: rows.iloc[k * first.rows : (k + 1) * first.rows].reset_index(drop=True) for k, name in enumerate(names)
    }
    released = releases(parts, world.dictionary, first.epsilon, work.seed)
    truth, cache = cpdag_of(world.dag).edges, _Cache(work.seed)
    found = []
    for setting in work.settings:
        liars = names[: setting.liars]  # first in the order of names, which is how the rules break ties
        honest = Evidence.from_data(rows.iloc[setting.liars * setting.rows :])
        pooled = scored(cache.proposal(honest).pattern.edges, truth)
        scores = {"pooled": pooled | {"extra": 0.0}}
        for name in work.methods:
            scores[name] = _federated(world, setting, METHODS[name], released, liars, truth, cache)
        if math.isinf(setting.epsilon) and setting.attack in ("none", "reversed"):
            sent = lies(world, setting.attack, released, liars, _nothing, work.seed)
            scores |= {peer: scored(_PEERS[peer](sent, cache), truth) for peer in work.peers}
        for score in scores.values():
            score["extra"] = score["shd"] - pooled["shd"]
        found.append((setting, scores))
    return found


@dataclass
class _Cache:
    """Proposals by their evidence: attacks that are seen through leave the same pool."""

    seed: int
    found: dict[bytes, Proposal] = field(default_factory=dict)

    def proposal(self, evidence: Evidence, search: str = "boss") -> Proposal:
        key = evidence.moments.numpy().tobytes() + f"{evidence.noise} {search}".encode()
        if key not in self.found:
            self.found[key] = propose(evidence, search, NONE, seed=self.seed)
        return self.found[key]


def _federated(
    world: World,
    setting: Setting,
    method: Method,
    released: Mapping[str, Evidence],
    liars: Sequence[str],
    truth: Edges,
    cache: _Cache,
) -> dict[str, float]:
    """What a study does: pool, propose, a ballot of each member, adopt."""

    def look(evidence: Mapping[str, Evidence]) -> Pool:
        return pool(evidence, Settings(setting.faulty, method.rule, doubt=method.doubt))

    evidence = lies(world, setting.attack, released, liars, look, cache.seed)
    pooled = look(evidence)
    grow = restoration(pooled.evidence, world.dictionary.clip) if method.restore else None

    def see(one: Evidence) -> Evidence:
        return one if grow is None else restored(one, grow)

    proposal = cache.proposal(see(pooled.evidence), method.search)
    ballots = {name: cast(proposal, see(own)) for name, own in evidence.items()}
    rule = ConsensusRule(THRESHOLD, setting.faulty, len(evidence))
    found = adopt(proposal, ballots, rule).pattern
    return scored(found.edges, truth) | {
        "kept": float(len(pooled.kept)),
        "liars_kept": float(len(set(pooled.kept) & set(liars))),
        "honest_accused": float(len(set(pooled.accused) - set(liars))),
        "liars_accused": float(len(set(pooled.accused) & set(liars))),
    }


def _nothing(_: Mapping[str, Evidence]) -> Pool:
    raise AssertionError("only the quiet attack looks at the pool")


def _mean_graph(evidence: Mapping[str, Evidence], cache: _Cache) -> Edges:
    return cache.proposal(pool(evidence, Settings(0, "mean")).evidence).pattern.edges


def _majority(evidence: Mapping[str, Evidence], cache: _Cache) -> Edges:
    """Pairs that more than half of the sites' own graphs join, directed as more than half direct them, else not."""
    votes = Counter(edge for own in evidence.values() for edge in cache.proposal(own).pattern.edges)
    joined = Counter[tuple[str, str]]()
    for edge, count in votes.items():
        joined[min(edge.a, edge.b), max(edge.a, edge.b)] += count
    half = len(evidence) / 2
    chosen = {(min(e.a, e.b), max(e.a, e.b)): e for e, count in votes.items() if count > half}
    return frozenset(chosen.get(p, Edge(*p, TAIL, TAIL)) for p, count in joined.items() if count > half)


_PEERS = {"mean": _mean_graph, "majority": _majority}


def scored(found: Edges, truth: Edges) -> dict[str, float]:
    """Of edges that need not be a graph: a majority may go in circles."""
    differ = {(min(e.a, e.b), max(e.a, e.b)) for e in found ^ truth}
    return {
        "shd": float(len(differ)),
        "moral_f1": f1(_moral(found), _moral(truth)),
        "skeleton_f1": f1({frozenset((e.a, e.b)) for e in found}, {frozenset((e.a, e.b)) for e in truth}),
    }


def _moral(edges: Edges) -> set[frozenset[str]]:
    """The moral graph of a CPDAG's class: in any of its DAGs, causes that share an effect without being joined are
    directed in it."""
    causes: dict[str, set[str]] = {}
    for edge in edges:
        if (edge.at_a, edge.at_b) == (TAIL, ARROW):
            causes.setdefault(edge.b, set()).add(edge.a)
    married = {frozenset(pair) for those in causes.values() for pair in combinations(sorted(those), 2)}
    return married | {frozenset((edge.a, edge.b)) for edge in edges}


def _described(setting: Setting, found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    what = {"name": setting.name, **asdict(setting), "faulty": setting.faulty}
    what["epsilon"] = None if math.isinf(setting.epsilon) else setting.epsilon
    if not setting.borne:
        return {**what, "outside": "n < 2f + 3: outside what the rules bear, not run"}
    return {
        **what,
        "methods": {m: {key: _mean([one[key] for one in runs]) for key in runs[0]} for m, runs in found.items()},
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    mean, reach = fmean(values), float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "interval": [mean - reach, mean + reach]}


def _require(seeds: int, processes: int, methods: Sequence[str], peers: Sequence[str]) -> None:
    if seeds < 2 or processes < 1:
        raise MisuseError(f"seeds={seeds}, processes={processes}: expected two seeds, for an interval, and a process.")
    for what, given, known in (("method", methods, METHODS), ("peer", peers, PEERS)):
        if odd := sorted(set(given) - set(known)):
            raise MisuseError(f"There is no {what} {', '.join(odd)}; choose among {', '.join(known)}.")


def _write(folder: Path, result: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "federated.json", json.dumps(result, indent=1))
    write_text(folder / "federated.md", markdown(result))
    write_text(folder / "federated.svg", chart(result))
