"""Attribution: how much of an outcome's change, or of one strange record, each mechanism answers for.

Shares are Shapley values (Shapley, 1953): the mean, over all orders, of what a player adds to those before it. They sum
to the whole, are equal for players that add the same, and 0 for one that never adds anything.

`attribute_change` and `root_cause` ask of two data sets which mechanisms changed and what that did to the target
(Budhathoki, Janzing, Blöbaum & Ng, AISTATS 2021); `attribute_anomaly` asks of one record whose noise made its target
strange (Budhathoki, Minorics, Blöbaum & Janzing, ICML 2022). Both rest on the graph and on the fitted mechanisms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import pandas as pd
import torch
from torch import Tensor

from causaldao.errors import MisuseError
from causaldao.models.fitting import Training, fit, kinds_of, shared_units
from causaldao.models.graph import CausalGraph
from causaldao.models.structural import StructuralModel

EXACT = 10  # players up to which every coalition is tried
_TESTED = 0.2  # share of each table's rows kept to compare mechanisms on
_BINS = 20
_MOST = 1.0  # nats that one row may tell of a mechanism: a row far outside tells of the density's tail

Coalition = frozenset[str]
Summary = Callable[[Tensor], float]


@dataclass(frozen=True)
class Shares:
    """Each player's share; they sum to ``total`` = value(all) - value(none).

    errors: standard errors from sampling orders, 0 where every coalition was tried (``exact``).
    """

    shares: Mapping[str, float]
    errors: Mapping[str, float]
    total: float
    exact: bool

    @property
    def ranked(self) -> tuple[str, ...]:
        """The players, largest share (in absolute value) first."""
        return tuple(sorted(self.shares, key=lambda name: -abs(self.shares[name])))


@dataclass(frozen=True)
class RootCause:
    """What changed between two tables.

    changed: the mechanisms whose difference chance does not explain; divergence: of each mechanism, the mean log
    density that its own table's fit wins over the other's on rows that neither saw, both ways added (nats, a row
    counting for 1 at most; around 0 if nothing changed), with ``errors``. shares: of the change of the target's
    summary.
    """

    target: str
    changed: tuple[str, ...]
    divergence: Mapping[str, float]
    errors: Mapping[str, float]
    shares: Shares


def shapley(
    players: Sequence[str],
    value: Callable[[Coalition], float],
    *,
    generator: torch.Generator | None = None,
    permutations: int = 200,
) -> Shares:
    """Shapley values: exact for at most 10 players, else from that many random orders, each also taken backwards.

    A coalition's value is asked for once. Raises MisuseError: no players, or too many and no generator.
    """
    if not players or len(set(players)) < len(players):
        raise MisuseError(f"players={list(players)}: expected names, at least one and each once.")
    known: dict[Coalition, float] = {}

    def worth(coalition: Coalition) -> float:
        if coalition not in known:
            known[coalition] = value(coalition)
        return known[coalition]

    everyone = frozenset(players)
    total = worth(everyone) - worth(frozenset())
    if len(players) <= EXACT:
        return Shares(
            {name: _exact(name, players, worth) for name in players}, dict.fromkeys(players, 0.0), total, True
        )
    if generator is None or permutations < 2:
        raise MisuseError(
            f"{len(players)} players are more than {EXACT}, so orders are sampled: give a generator, and at least 2 "
            f"permutations instead of {permutations}."
        )
    return _sampled(players, worth, total, generator, permutations)


def _exact(name: str, players: Sequence[str], worth: Callable[[Coalition], float]) -> float:
    others, k = [player for player in players if player != name], len(players)
    share = 0.0
    for size in range(k):
        weight = 1 / (k * math.comb(k - 1, size))
        for before in map(frozenset, combinations(others, size)):
            share += weight * (worth(before | {name}) - worth(before))
    return share


def _sampled(
    players: Sequence[str], worth: Callable[[Coalition], float], total: float, generator: torch.Generator, number: int
) -> Shares:
    gains = torch.zeros(number, len(players), dtype=torch.float64)
    for row in gains:
        order = torch.randperm(len(players), generator=generator).tolist()
        for one in (order, order[::-1]):
            before: Coalition = frozenset()
            for place in one:
                after = before | {players[place]}
                row[place] += (worth(after) - worth(before)) / 2
                before = after
    mean, error = gains.mean(0), gains.std(0) / math.sqrt(number)
    return Shares(
        dict(zip(players, mean.tolist(), strict=True)), dict(zip(players, error.tolist(), strict=True)), total, False
    )


def attribute_change(
    before: StructuralModel,
    after: StructuralModel,
    target: str,
    summary: str | Summary = "mean",
    *,
    n: int = 5000,
    generator: torch.Generator,
    permutations: int = 200,
) -> Shares:
    """How much each mechanism's change did to a summary of the target: mean, variance, kl, or a function of rows (n,).

    The value of a coalition is the summary where its mechanisms are those of ``after`` and the others those of
    ``before``, all over the same n draws of noise. kl is the divergence of the target's law from the one before, over
    20 bins of equal weight; its shares may be negative where one change hides another.

    Raises:
        MisuseError: the models differ in graph or in a category's levels, or there is no such target or summary.
    """
    _require_alike(before, after)
    players = _ancestors(before, target)
    noise = before.draw(n, generator)

    def mechanism(name: str, changed: bool, columns: Mapping[str, Tensor]) -> Tensor:
        return (after if changed else before).apply(name, columns, noise[before.names.index(name)])

    solved = _Coalitions(before.graph, target, mechanism)
    measured = _summary(summary, solved(frozenset()))
    return shapley(players, lambda s: measured(solved(s)), generator=generator, permutations=permutations)


def attribute_anomaly(
    model: StructuralModel,
    record: Mapping[str, float],
    target: str,
    *,
    n: int = 5000,
    generator: torch.Generator,
    permutations: int = 200,
) -> Shares:
    """How much each variable's own noise did to make the target of one record strange.

    The whole is the record's surprise -log P(|X - median| >= |x - median|), at most log(n + 1) as n rows can tell. A
    coalition explains the part that goes away when its noise is the record's and the rest is drawn.
    """
    if odd := sorted(set(record) ^ set(model.names)):
        raise MisuseError(f"The record and the model name different variables: {', '.join(odd)}. Name each in both.")
    players = _ancestors(model, target)
    factual = torch.tensor([[record[name] for name in model.names]], dtype=torch.float64)
    own, drawn = model.noise(factual, generator), model.draw(n, generator)

    def mechanism(name: str, fixed: bool, columns: Mapping[str, Tensor]) -> Tensor:
        j = model.names.index(name)
        return model.apply(name, columns, own[j].expand(-1, n) if fixed else drawn[j])

    solved = _Coalitions(model.graph, target, mechanism)
    usual = solved(frozenset())
    median, spread = usual.median(), usual.std()
    strange = (factual[0, model.names.index(target)] - median).abs() - 1e-6 * spread  # what rounding may take away

    def surprise(coalition: Coalition) -> float:
        as_strange = ((solved(coalition) - median).abs() >= strange).sum()
        return -math.log((1 + float(as_strange)) / (n + 1))

    return shapley(players, lambda s: -surprise(s), generator=generator, permutations=permutations)


def root_cause(
    before: pd.DataFrame,
    after: pd.DataFrame,
    graph: CausalGraph,
    target: str,
    kinds: str | Mapping[str, str] | None = None,
    summary: str | Summary = "mean",
    *,
    generator: torch.Generator,
    training: Training | None = None,
    level: float = 0.01,
    n: int = 5000,
) -> RootCause:
    """Which mechanisms differ between two tables, and how much each did to the target.

    A fifth of each table's rows is kept to compare the mechanisms on. ``changed`` are those whose divergence is above 0
    at ``level``, divided by the number of variables (Bonferroni). Raises as `fitting.fit` does.
    """
    if list(before.columns) != list(after.columns):
        odd = sorted({*map(str, before.columns)} ^ {*map(str, after.columns)}) or ["their order"]
        raise MisuseError(f"The two tables differ in their columns: {', '.join(odd)}. Give both the same.")
    if not 0 < level < 1:
        raise MisuseError(f"level={level}: expected more than 0 and less than 1.")
    both = pd.concat([before, after], ignore_index=True)
    chosen = kinds if isinstance(kinds, str) else {**kinds_of(both), **(kinds or {})}
    units = shared_units(both, chosen)
    models, tests = [], []
    for table in (before, after):
        order = torch.randperm(len(table), generator=generator).numpy()
        cut = max(round(_TESTED * len(table)), 1)
        fitted = fit(table.iloc[order[cut:]], graph, chosen, generator=generator, training=training, units=units)
        models.append(fitted.model)
        tests.append(table.iloc[order[:cut]])
    divergence, errors = _divergence(models, tests)
    bound = NormalDist().inv_cdf(1 - level / len(units))
    changed = tuple(name for name in divergence if divergence[name] > bound * errors[name])
    shares = attribute_change(models[0], models[1], target, summary, n=n, generator=generator)
    return RootCause(target, changed, divergence, errors, shares)


def _divergence(
    models: Sequence[StructuralModel], tests: Sequence[pd.DataFrame]
) -> tuple[dict[str, float], dict[str, float]]:
    divergence, errors = {}, {}
    for name in models[0].names:
        mean, variance = 0.0, 0.0
        for own, other, table in ((models[0], models[1], tests[0]), (models[1], models[0], tests[1])):
            columns = {one: torch.from_numpy(table[one].to_numpy(dtype=float, copy=True)) for one in own.names}
            won = own.log_prob(name, columns, columns[name]) - other.log_prob(name, columns, columns[name])
            won = won.clamp(-_MOST, _MOST)
            mean += float(won.mean())
            variance += float(won.var()) / len(won)
        divergence[name], errors[name] = mean, math.sqrt(variance)
    return divergence, errors


class _Coalitions:
    """The target's values (n,) for each coalition; a variable is solved once for each part among its ancestors."""

    def __init__(
        self, graph: CausalGraph, target: str, mechanism: Callable[[str, bool, Mapping[str, Tensor]], Tensor]
    ) -> None:
        self._graph, self._target, self._mechanism = graph, target, mechanism
        self._above = {name: graph.ancestors(name) for name in graph.nodes}
        self._known: dict[tuple[str, Coalition], Tensor] = {}

    def __call__(self, coalition: Coalition) -> Tensor:
        columns = {name: self._value(name, coalition) for name in self._graph.parents(self._target)}
        return self._mechanism(self._target, self._target in coalition, columns)

    def _value(self, name: str, coalition: Coalition) -> Tensor:
        key = (name, coalition & self._above[name])
        if key not in self._known:
            columns = {parent: self._value(parent, coalition) for parent in self._graph.parents(name)}
            self._known[key] = self._mechanism(name, name in coalition, columns)
        return self._known[key]


def _ancestors(model: StructuralModel, target: str) -> list[str]:
    if target not in model.names:
        raise MisuseError(f"There is no variable {target!r}; the model has {', '.join(model.names)}.")
    above = model.graph.ancestors(target)
    return [name for name in model.names if name in above]


def _require_alike(before: StructuralModel, after: StructuralModel) -> None:
    if before.graph != after.graph or before.names != after.names:
        raise MisuseError("The two models differ in graph or names: mechanisms can only be exchanged on one graph.")
    for name, a, b in zip(before.names, before.columns, after.columns, strict=True):
        if a.levels != b.levels:
            raise MisuseError(
                f"{name} has levels {list(a.levels)} before and {list(b.levels)} after: fit both with the same units."
            )


def _summary(summary: str | Summary, before: Tensor) -> Summary:
    if callable(summary):
        return summary
    if summary == "kl":
        edges = torch.quantile(before, torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)[1:-1])
        reference = _histogram(before, edges)
        return lambda rows: float((_histogram(rows, edges) * (_histogram(rows, edges) / reference).log()).sum())
    known: dict[str, Summary] = {"mean": lambda rows: float(rows.mean()), "variance": lambda rows: float(rows.var())}
    if summary not in known:
        raise MisuseError(f"There is no summary {summary!r}; choose mean, variance, kl, or give a function of rows.")
    return known[summary]


def _histogram(rows: Tensor, edges: Tensor) -> Tensor:
    counts = torch.bincount(torch.searchsorted(edges, rows), minlength=len(edges) + 1).double() + 0.5
    return counts / counts.sum()
