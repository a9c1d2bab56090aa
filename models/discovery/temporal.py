"""Graphs over time: lagged second moments, and PCMCI on them (Runge et al., 2019; PCMCI+: Runge, 2020).

A window of a series z is (z_t, z_{t-1}, ..., z_{t-K}). The evidence of all windows is a second moment like any other,
so it adds over series and institutions (`evidence.add`), and time orders it: what comes later causes nothing before.
Nodes are named ``x[t]`` and ``x[t-3]``; an edge into ``x[t]`` stands for the same edge at every time.

PCMCI has two stages. PC1 finds, for each variable, a superset of its lagged parents: at step p each candidate left is
tested given the p strongest others only, and those that are independent go. MCI then tests each x[t-τ] -> y[t]
given the parents of y *and* those of x, moved back by τ. The first set takes the past of y away, the second that of
x[t-τ]: what is left of both is news, also where PC1 missed a parent.

PC1 can lose a parent whose effects by two ways cancel, such as the last of many lags beside the effect's own past, and
MCI then takes its neighbours for causes. So, unlike the paper, the links that MCI finds join the parents and it is run
again until none is new: of 20 planted runs of ten lags (2,000 rows) 18 came out exactly without this, all with it.

Assumed: linear effects, the same at all times (stationary), and no unmeasured common causes. A row stands in up to
K + 1 windows, so these moments are not the record-level release that `Evidence.from_release` reads: a release of them
would have to count a record K + 1 times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from scipy.stats import false_discovery_control, norm

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.discovery.evidence import Dictionary, Evidence, Partial, moments_of, partial
from causaldao.models.discovery.pc import pattern_of
from causaldao.models.discovery.score import refuse_dependent
from causaldao.models.discovery.skeleton import Answer, Oracle, PartialCorrelations, Question, Skeleton, stable_skeleton
from causaldao.models.graph import CausalGraph, Pair, Triple
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.rules import CausalRule, CausalRuleSet

Correction = Literal["none", "bonferroni", "fdr"]
Parents = Mapping[str, tuple[str, ...]]
Positions = np.ndarray[Any, np.dtype[np.int64]]

_NODE = re.compile(r"(.+)\[t(?:-([1-9]\d*))?\]")
_PC_ALPHA = 0.2  # a false parent costs MCI a degree of freedom, a missed one its level: so generous, as in the paper


@dataclass(frozen=True, order=True)
class Link:
    """``cause`` at t - ``lag`` acts on ``effect`` at t.

    ``strength`` is the partial correlation in the test that decided, ``p`` its two-sided p-value, corrected for the
    number of links if that was asked.
    """

    cause: str
    effect: str
    lag: int
    strength: float
    p: float


@dataclass(frozen=True)
class Temporal:
    """What a search over time found.

    Attributes
    ----------
    graph : over ``x[t-lags]`` ... ``x[t]`` of all variables; edges end at t. PCMCI+ may leave edges at t undirected.
    links : the directed edges, in order of cause, effect and lag.
    conflicts : the unshielded colliders on which tests and graph disagree (PCMCI+; else empty).
    """

    graph: CausalGraph
    links: tuple[Link, ...]
    conflicts: frozenset[Triple] = frozenset()

    def rules(self) -> CausalRuleSet:
        """A rule for each run of consecutive lags of one sign: offset is its first lag, duration the number of its
        lags, strength the partial correlation of the strongest. Times are in steps of the series.
        """
        return CausalRuleSet(tuple(_rule(run) for run in _runs(self.links)))


def at(name: str, lag: int = 0) -> str:
    """The node of a variable ``lag`` steps before t."""
    return f"{name}[t-{lag}]" if lag else f"{name}[t]"


def lagged(
    frame: pd.DataFrame,
    lags: int,
    *,
    series: str | None = None,
    time: str | None = None,
    dictionary: Dictionary | None = None,
) -> Evidence:
    """The moments of all windows of lags + 1 consecutive rows: names ``x[t]``, ..., ``x[t-lags]`` for each variable.

    Rows are in order of time. A window never crosses from one series to another (``series`` names the column of its
    id), nor a step of the integer column ``time`` that is not 1. With a dictionary values are clipped and scaled to
    public bounds, without one standardised over all rows; all lags of a variable have one scale.

    Raises:
        MisuseError: lags below 1.
        DataError: no window at all; rows of a series apart, or times not whole or not rising; a variable that is
            missing, constant or not finite.
    """
    if lags < 1:
        raise MisuseError(f"lags is {lags}. Give 1 or more: how far back a window reaches.")
    values = frame.drop(columns=[column for column in (series, time) if column in frame.columns])
    whole = Evidence.from_data(values, dictionary)
    scale = (whole.centre.numpy(), whole.half.numpy())
    z = dictionary.encode(values) if dictionary else (values.to_numpy(np.float64) - scale[0]) / scale[1]
    ends = _window_ends(frame, lags, series, time)
    names = tuple(at(name, lag) for lag in range(lags + 1) for name in whole.names)
    moments = moments_of(np.concatenate([z[ends - lag] for lag in range(lags + 1)], axis=1))
    return Evidence(names, moments, 0.0, whole.centre.repeat(lags + 1), whole.half.repeat(lags + 1))


def pcmci(
    evidence: Evidence,
    alpha: float = 0.01,
    correction: Correction = "fdr",
    lags: int | None = None,
    pc_alpha: float = _PC_ALPHA,
    knowledge: Knowledge = NONE,
) -> Temporal:
    """Find the lagged links by PCMCI: those whose MCI test has p ≤ ``alpha`` after the correction.

    ``evidence`` comes from `lagged` with at least twice the ``lags`` searched (by default half of what it has), since
    the cause's own parents lie before the cause. ``correction`` over all links tested: "bonferroni" bounds the
    chance of any false link by alpha, "fdr" the expected share of false ones (Benjamini & Hochberg, 1995), "none" the
    chance of each. Effects within one step are not looked for, and what passes through one shows as lagged: if
    there are such, use `pcmci_plus`. Knowledge speaks of nodes: ``("x[t-1]", "y[t]")``. A forbidden link is never
    tested; a required one always stands.

    Raises:
        MisuseError: a level outside (0, 1), a correction of no such name, more lags than the evidence bears, names
            that are no nodes of a window.
        DataError: too few windows for their columns, or a variable without variance.
        ConfigurationError: the knowledge names unknown nodes, or asks for an effect before its cause.
    """
    if correction not in get_args(Correction):
        raise MisuseError(f"correction is {correction!r}. Choose one of {', '.join(get_args(Correction))}.")
    windows = _Windows.of(evidence, lags, alpha, pc_alpha, knowledge)
    pairs = [(node, at(effect)) for effect in windows.variables for node in windows.candidates(effect)]
    parents, links = windows.parents(pc_alpha), []
    while True:
        tests = [windows.mci(cause, effect, parents) for cause, effect in pairs]
        p = _corrected([_p(test) for test in tests], correction)
        decided = list(zip(pairs, tests, p, strict=True))
        links = [_link(pair, t.correlation, v) for pair, t, v in decided if v <= alpha or pair in knowledge.required]
        wider = _with_links(parents, links)
        if wider == parents:
            break
        parents = wider
    edges = [(at(link.cause, link.lag), at(link.effect)) for link in links]
    return Temporal(CausalGraph.dag(edges, windows.nodes), tuple(sorted(links)))


def pcmci_plus(
    evidence: Evidence,
    alpha: float = 0.01,
    lags: int | None = None,
    pc_alpha: float = _PC_ALPHA,
    knowledge: Knowledge = NONE,
) -> Temporal:
    """Find lagged links and effects within one step, by PCMCI+: PC1, then PC-stable among what happens at t.

    Each pair is tested given its parents by PC1 and sets of its adjacencies at t; colliders, time, knowledge and
    Meek's rules direct. What stays undirected no test can direct. Each test has level ``alpha``; of a link the
    strength and p are those of the test nearest to separating it. Arguments and errors as `pcmci`.
    """
    windows = _Windows.of(evidence, lags, alpha, pc_alpha, knowledge)
    parents = windows.parents(pc_alpha)
    weakest: dict[Pair, Partial] = {}

    def run(questions: Iterator[Question], level: int) -> Iterator[Answer]:
        for pair, given in questions:
            cause, effect = windows.ordered(pair)
            test = windows.mci(cause, effect, parents, given)
            if pair not in weakest or _statistic(test) < _statistic(weakest[pair]):
                weakest[pair] = test
            yield Answer(pair, given, _statistic(test))

    now = [at(name) for name in windows.variables]
    oracle = Oracle(windows.nodes, run, float(norm.isf(alpha / 2)), len(now))
    lagged_pairs = [_in_order((node, at(name))) for name in windows.variables for node in parents[at(name)]]
    pairs = [pair for pair in combinations(now, 2) if not windows.knowledge.adjacency_excluded(*pair)]

    def usable(a: str, _: str, c: str) -> bool:
        return a in now and c in now and windows.knowledge.conditioning_allowed(a, c)

    found = stable_skeleton(oracle, [*lagged_pairs, *pairs], windows.knowledge.requires, usable)
    separated = {pair: Answer(pair, (), 0.0) for pair in map(_in_order, windows.left(parents))}
    for pair, answer in found.separated.items():
        conditions = windows.conditions(*windows.ordered(pair), parents, answer.given)
        separated[pair] = Answer(pair, tuple(conditions), answer.statistic)
    graph, conflicts = pattern_of(windows.nodes, Skeleton(found.pairs, separated), windows.knowledge)
    links = []
    for cause, effect in graph.directed:
        test = weakest.get(_in_order((cause, effect))) or windows.mci(cause, effect, parents)
        links.append(_link((cause, effect), test.correlation, _p(test)))
    return Temporal(graph, tuple(sorted(links)), conflicts)


@dataclass(frozen=True)
class _Windows:
    """The evidence of windows, how far back causes are looked for, and the knowledge with the order of time."""

    evidence: Evidence
    variables: tuple[str, ...]
    lags: int
    knowledge: Knowledge

    @classmethod
    def of(cls, evidence: Evidence, lags: int | None, alpha: float, pc_alpha: float, knowledge: Knowledge) -> _Windows:
        for name, level in (("alpha", alpha), ("pc_alpha", pc_alpha)):
            if not 0 < level < 1:
                raise MisuseError(f"{name} is {level}. Give a level in (0, 1), such as 0.01.")
        places = {name: _place(name) for name in evidence.names}
        variables, deepest = tuple(sorted({name for name, _ in places.values()})), _deepest(places)
        lags = deepest // 2 if lags is None else lags
        if not 1 <= lags <= deepest // 2:
            raise MisuseError(
                f"lags is {lags}, and the evidence reaches {deepest} steps back. Give 1 to {deepest // 2}, or evidence "
                "of twice as many: MCI needs the parents of a cause, which lie before it."
            )
        columns, count = evidence.d, evidence.count
        if evidence.noise == 0 and count <= columns + 3:
            raise DataError(
                f"There are {count:.6g} windows of {columns} columns. Give more than {columns + 3}: longer or more "
                "series, or fewer lags."
            )
        refuse_dependent(evidence, evidence.correlation().numpy())
        nodes = [at(name, lag) for lag in range(lags + 1) for name in variables]
        knowledge.check(nodes)
        time = {node: -places[node][1] for node in nodes}
        if late := sorted(pair for pair in knowledge.required if time[pair[1]] < 0):
            raise ConfigurationError(f"{late[0][0]} -> {late[0][1]} is required. Require edges into t only.")
        return cls(evidence, variables, lags, knowledge.merge(Knowledge(tiers=time)))

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(at(name, lag) for lag in range(self.lags + 1) for name in self.variables)

    def candidates(self, effect: str) -> list[str]:
        """The nodes before t that the knowledge lets cause the effect at t."""
        before = self.nodes[len(self.variables) :]
        return [node for node in before if self.knowledge.allows(node, at(effect))]

    def parents(self, pc_alpha: float) -> Parents:
        """PC1: of each node at t a superset of its lagged parents, strongest first."""
        tests, critical = PartialCorrelations.of(self.evidence), float(norm.isf(pc_alpha / 2))
        return {at(effect): self._pc1(tests, effect, critical) for effect in self.variables}

    def _pc1(self, tests: PartialCorrelations, effect: str, critical: float) -> tuple[str, ...]:
        left, target = self.candidates(effect), self.evidence.index(at(effect))
        weakest = dict.fromkeys(left, math.inf)
        size = 0
        while size < len(left):
            chosen = [[other for other in left if other != node][:size] for node in left]
            rows = [[self.evidence.index(n) for n in (node, *given)] for node, given in zip(left, chosen, strict=True)]
            statistics = tests.statistics(torch.tensor([[first, target, *rest] for first, *rest in rows]))
            for node, statistic in zip(left, statistics.tolist(), strict=True):
                weakest[node] = min(weakest[node], statistic)
            kept = [n for n in left if weakest[n] > critical or (n, at(effect)) in self.knowledge.required]
            left = sorted(kept, key=lambda node: (-weakest[node], node))
            size += 1
        return tuple(left)

    def left(self, parents: Parents) -> Iterator[Pair]:
        """The pairs (node before t, node at t) that PC1 separated."""
        for name in self.variables:
            yield from ((node, at(name)) for node in self.candidates(name) if node not in parents[at(name)])

    def ordered(self, pair: Pair) -> Pair:
        """The earlier node first."""
        a, b = pair
        return pair if self.knowledge.tiers[a] <= self.knowledge.tiers[b] else (b, a)

    def mci(self, cause: str, effect: str, parents: Parents, given: Iterable[str] = ()) -> Partial:
        """The test of cause and effect given `conditions`."""
        return partial(self.evidence, cause, effect, self.conditions(cause, effect, parents, given))

    def conditions(self, cause: str, effect: str, parents: Parents, given: Iterable[str] = ()) -> list[str]:
        """``given``, the effect's parents, and the cause's parents before it."""
        name, lag = _place(cause)
        moved = [at(other, before + lag) for other, before in map(_place, parents[at(name)])]
        nodes = dict.fromkeys([*given, *parents[effect], *moved])
        return [node for node in nodes if node not in (cause, effect)]


def _window_ends(frame: pd.DataFrame, lags: int, series: str | None, time: str | None) -> Positions:
    """The rows that end a window: at least ``lags`` rows of the same unbroken run stand before them."""
    breaks = np.zeros(len(frame), dtype=np.bool_)
    breaks[:1] = True
    if series is not None:
        ids = _column(frame, series)
        breaks[1:] |= ids[1:] != ids[:-1]
        if breaks.sum() != len(pd.unique(ids)):
            raise DataError(
                f"The rows of some series in {series!r} stand apart, or lack an id. Sort by series, then time."
            )
    if time is not None:
        steps = _steps(frame, time)
        if bool(((steps <= 0) & ~breaks[1:]).any()):
            raise DataError(f"The times in {time!r} do not rise within a series. Sort the rows by time, each once.")
        breaks[1:] |= steps != 1
    rows = np.arange(len(frame))
    begun = np.maximum.accumulate(np.where(breaks, rows, 0))
    ends: Positions = np.flatnonzero(rows - begun >= lags)
    if not len(ends):
        longest = int((rows - begun).max()) + 1
        raise DataError(f"No window of {lags + 1} rows fits: the longest unbroken run has {longest}. Use fewer lags.")
    return ends


def _steps(frame: pd.DataFrame, time: str) -> np.ndarray[Any, Any]:
    times = pd.to_numeric(pd.Series(_column(frame, time)), errors="coerce").to_numpy(np.float64)
    if not np.isfinite(times).all() or (times != np.floor(times)).any():
        raise DataError(f"The column {time!r} of times must hold whole numbers. Count the steps, such as days.")
    return np.diff(times)


def _column(frame: pd.DataFrame, name: str) -> np.ndarray[Any, Any]:
    if name not in frame.columns:
        raise DataError(f"The column {name!r} is missing; the data have {', '.join(map(str, frame.columns))}.")
    return frame[name].to_numpy()


def _place(node: str) -> tuple[str, int]:
    """(variable, lag) of a node's name."""
    match = _NODE.fullmatch(node)
    if match is None:
        raise MisuseError(
            f"{node!r} is no node of a window, such as 'x[t-3]' or 'x[t]'. Make the evidence by `lagged`."
        )
    return match[1], int(match[2] or 0)


def _deepest(places: Mapping[str, tuple[str, int]]) -> int:
    """How far back the windows reach. MisuseError: a variable lacks a lag."""
    deepest = max((lag for _, lag in places.values()), default=0)
    wanted = {at(name, lag) for name, _ in places.values() for lag in range(deepest + 1)}
    if missing := sorted(wanted - set(places)):
        raise MisuseError(f"The windows lack {missing[0]}: each variable needs all lags from 0 to {deepest}.")
    return deepest


def _statistic(test: Partial) -> float:
    """|z| in units of its standard error; infinite where the test has no power to separate."""
    return abs(test.z) / test.standard_error if test.standard_error < math.inf else math.inf


def _p(test: Partial) -> float:
    """The two-sided p-value; 1 where the test has no power to show a link."""
    return float(2 * norm.sf(abs(test.z) / test.standard_error))


def _corrected(p: Sequence[float], correction: Correction) -> list[float]:
    if correction == "fdr" and p:
        return [float(value) for value in false_discovery_control(p)]
    return [min(1.0, value * (len(p) if correction == "bonferroni" else 1)) for value in p]


def _with_links(parents: Parents, links: Iterable[Link]) -> Parents:
    """The parents with those of the links that they lack."""
    wider = {effect: list(nodes) for effect, nodes in parents.items()}
    for link in links:
        if (node := at(link.cause, link.lag)) not in wider[at(link.effect)]:
            wider[at(link.effect)].append(node)
    return {effect: tuple(nodes) for effect, nodes in wider.items()}


def _link(pair: Pair, strength: float, p: float) -> Link:
    (cause, lag), (effect, _) = _place(pair[0]), _place(pair[1])
    return Link(cause, effect, lag, strength, p)


def _runs(links: Iterable[Link]) -> list[list[Link]]:
    """Links of one cause, effect and sign at consecutive lags."""
    runs: list[list[Link]] = []
    for link in sorted(links):
        last = runs[-1][-1] if runs else None
        follows = last is not None and (last.cause, last.effect, last.lag + 1) == (link.cause, link.effect, link.lag)
        if last is not None and follows and (last.strength > 0) == (link.strength > 0):
            runs[-1].append(link)
        else:
            runs.append([link])
    return runs


def _rule(run: Sequence[Link]) -> CausalRule:
    strongest = max(run, key=lambda link: abs(link.strength))
    return CausalRule(run[0].cause, run[0].effect, strongest.strength, run[0].lag, len(run))


def _in_order(pair: Pair) -> Pair:
    return min(pair), max(pair)
