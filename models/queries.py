"""Three questions to a structural model, which are not one (Pearl, *Causality*, 2009, §1.4 and 7.1).

`distribution`: P(y | do(x)), what all units would show. `conditional`: P(y | do(x), z = c), what those would show who,
*after* the action, have z = c; by likelihood weighting (Fung & Chang, 1990; Shachter & Peot, 1990): z is clamped and a
row weighs the density of c given its parents, so nothing is rejected and no tolerance is chosen; it is refused where
too few effective rows are left. `counterfactual_interval`: what one unit, of which a row is known, would have shown.
`explain` says in words which paths carry an effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import Tensor

from causaldao.errors import DataError, MisuseError
from causaldao.models.graph import CausalGraph
from causaldao.models.intervention import Intervention, Law, Set, Shift, intervention
from causaldao.models.mechanisms import KINDS
from causaldao.models.structural import Do, StructuralModel

_FEWEST = 100.0  # effective rows of a conditional answer
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_PATHS = 12  # that are listed; more are counted up to a thousand
_COUNTED = 1000


@dataclass(frozen=True)
class Answer:
    """The law of a target under an intervention, from ``rows`` drawn.

    error: Monte Carlo error of the mean: of the drawing alone. effective: rows that weigh as much as equal ones would
    (Kish): (Σw)² / Σw². quantiles: by their level.
    """

    target: str
    mean: float
    error: float
    quantiles: Mapping[float, float]
    rows: int
    effective: float


@dataclass(frozen=True)
class Counterfactual:
    """What a unit would have shown: by variable the factual value, the counterfactual one, and its interval.

    covers: what the interval is for, in words.
    """

    factual: Mapping[str, float]
    value: Mapping[str, float]
    interval: Mapping[str, tuple[float, float]]
    level: float
    covers: str


def distribution(model: StructuralModel, target: str, do: Do, *, n: int = 10_000, generator: torch.Generator) -> Answer:
    """P(target | do). MisuseError: no such target, or the target itself is set."""
    act = intervention(do)
    _require_target(model, target, act)
    values = model.sample(n, act, generator)[:, model.names.index(target)]
    return _answer(target, values, torch.full((n,), 1 / n, dtype=torch.float64))


def conditional(
    model: StructuralModel,
    target: str,
    do: Do,
    given: Mapping[str, float],
    *,
    n: int = 10_000,
    generator: torch.Generator,
    least_effective: float = _FEWEST,
) -> Answer:
    """P(target | do, given): among those who have these values once the action is done.

    Raises:
        MisuseError: an unknown name; the target is set or given; fewer effective rows than ``least_effective``, which
            counts those of n drawn that the condition leaves.
        DataError: a given value that is not finite, or is no level of its category.
    """
    act = intervention(do)
    _require_target(model, target, act)
    _require_given(model, target, given, n)
    log_weight = torch.zeros(n, dtype=torch.float64)
    values = model.solve(model.draw(n, generator), act, given, log_weight)[model.names.index(target)]
    top = float(log_weight.max())
    weight = torch.exp(log_weight - top) if math.isfinite(top) else torch.zeros(n, dtype=torch.float64)
    effective = float(weight.sum().square() / weight.square().sum()) if math.isfinite(top) else 0.0
    if not effective >= least_effective:
        seen = ", ".join(f"{name} = {value:g}" for name, value in given.items())
        raise MisuseError(
            f"Given {seen}, {n} drawn rows are worth {effective:.1f} equal ones, expected {least_effective:g} or more: "
            "under this intervention it hardly ever happens. Draw more rows, or ask about values that occur."
        )
    return _answer(target, values, weight / weight.sum())


def counterfactual_interval(
    model: StructuralModel,
    record: Mapping[str, float],
    do: Do,
    *,
    others: Sequence[StructuralModel] = (),
    draws: int = 200,
    level: float = 0.9,
    generator: torch.Generator,
) -> Counterfactual:
    """What a unit would have shown under an intervention, with an interval for what is left open.

    ``others`` are models of bootstrap samples (`fitting.ensemble`): with them the interval also covers parameters that
    the table leaves open. Where a row does not settle its noise (categories, counts), ``draws`` draws of the posterior
    are taken in each model. Value and interval are of all draws in ``model``: their mean, of a category its likeliest
    level; quantiles of all draws in ``others``, else in ``model``. Neither covers a wrong graph or kind of mechanism.

    Raises:
        MisuseError: the record names other variables; draws, level or an ensemble out of bounds.
        DataError: a value that is not finite, no level or no count.
    """
    if odd := sorted(set(record) ^ set(model.names)):
        raise MisuseError(f"The record and the model name different variables: {', '.join(odd)}. Name each in both.")
    if not 0 < level < 1 or draws < 2 or len(others) == 1:
        raise MisuseError(
            f"level={level}, draws={draws}, {len(others)} other models: expected a level between 0 and 1, at least 2 "
            "draws, and none or at least 2 models."
        )
    act = intervention(do)
    open_noise = _open(model, act)
    repeats = draws if open_noise else 1
    factual = torch.tensor([[float(record[name]) for name in model.names]], dtype=torch.float64).expand(repeats, -1)
    main = model.counterfactual(factual, act, generator)
    pooled = torch.cat([one.counterfactual(factual, act, generator) for one in others]) if others else main
    low, high = torch.quantile(pooled, _ends(level, len(others)), dim=0)
    value = [
        float(values.mode().values) if column.levels else float(values.mean())
        for column, values in zip(model.columns, main.T, strict=True)
    ]
    return Counterfactual(
        dict(zip(model.names, factual[0].tolist(), strict=True)), dict(zip(model.names, value, strict=True)),
        {name: (float(low[j]), float(high[j])) for j, name in enumerate(model.names)}, level,
        _covers(open_noise, len(others)),
    )  # fmt: skip


def explain(graph: CausalGraph, do: Do, target: str, given: Sequence[str] = ()) -> tuple[str, ...]:
    """Why the target moves, in words: the directed paths that carry an effect or are cut, and what causes both.

    Raises MisuseError: the graph is no DAG, or lacks a variable.
    """
    act = intervention(do)
    after = act.graph(graph)
    graph.topological_order()
    lines = []
    for name in act.actions:
        lines += _of_action(graph, after, act, name, target)
    if given:
        lines.append(
            f"Given {', '.join(given)}: only units that have these values after the action count, so that what causes "
            "them, too, is seen and not only done."
        )
    return tuple(lines)


def _of_action(graph: CausalGraph, after: CausalGraph, act: Intervention, name: str, target: str) -> list[str]:
    others = set(act.of_kind(Set)) - {name}
    paths = [path for path in islice(_paths(graph, name, target), _COUNTED) if len(path) > 1]
    open_paths = [path for path in paths if others.isdisjoint(path) and _stands(after, path)]
    lines = [f"{name} moves {target} along {' -> '.join(path)}." for path in open_paths[:_PATHS]]
    if len(open_paths) > _PATHS:
        lines.append(f"So do {len(open_paths) - _PATHS} other paths.")
    for path in [path for path in paths if path not in open_paths][:_PATHS]:
        at = sorted(set(path[1:]) & set(act.actions)) or [path[-1]]
        lines.append(f"{' -> '.join(path)} carries nothing from {name}: it is cut at {', '.join(at)}.")
    if not open_paths:
        lines.append(f"No directed path leads from {name} to {target} under this action: it moves nothing there.")
    both = sorted(graph.ancestors(name) & graph.ancestors(target) - {name} - others)
    both = [one for one in both if _avoids(graph, one, target, name)]
    if both and not isinstance(act.actions[name], Shift):
        lines.append(
            f"{_cause(both)} both {name} and {target}. That makes them go together in the table and is no part of the "
            f"answer: the action cuts the arrows into {name}."
        )
    elif both:
        lines.append(
            f"{', '.join(both)} cause{'s' if len(both) == 1 else ''} both and stay as they are: {name} is shifted."
        )
    return lines


def _cause(names: Sequence[str]) -> str:
    return f"{', '.join(names)} cause{'s' if len(names) == 1 else ''}"


def _paths(graph: CausalGraph, start: str, end: str) -> Iterator[tuple[str, ...]]:
    """Directed paths, in the order of the names; those that cannot arrive are not followed."""
    above = graph.ancestors(end)
    waiting: list[tuple[str, ...]] = [(start,)]
    while waiting:
        path = waiting.pop()
        if path[-1] == end:
            yield path
        else:
            waiting += [(*path, child) for child in sorted(graph.children(path[-1]) & above, reverse=True)]


def _stands(after: CausalGraph, path: Sequence[str]) -> bool:
    return all((a, b) in after.directed for a, b in pairwise(path))


def _avoids(graph: CausalGraph, start: str, end: str, barrier: str) -> bool:
    """Whether a directed path leads from start to end past the barrier."""
    waiting, seen = [start], {start, barrier}
    while waiting:
        for child in graph.children(waiting.pop()) - seen:
            if child == end:
                return True
            seen.add(child)
            waiting.append(child)
    return False


def _open(model: StructuralModel, act: Intervention) -> list[str]:
    """Variables below an action whose noise a row does not settle."""
    below = act.graph(model.graph).descendants(list(act.actions)) - set(act.of_kind(Set))
    laws = set(act.of_kind(Law))
    return [
        name
        for name, node in zip(model.names, model.nodes, strict=True)
        if name in below | laws and not KINDS[node.kind].invertible
    ]


def _ends(level: float, models: int) -> Tensor:
    """The levels of the interval's ends; with m models those at which a further one would lie within with ``level``
    (Weibull's positions p (m + 1)), as far as m can tell: with fewer than 19 a 90 % interval is their whole range."""
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return ends if not models else ((ends * (models + 1) - 1) / (models - 1)).clamp(0, 1)


def _covers(open_noise: Sequence[str], models: int) -> str:
    parts = []
    if open_noise:
        parts.append(f"what the record leaves open of the noise of {', '.join(open_noise)}")
    if models:
        parts.append(f"what the table leaves open of the parameters (bootstrap, {models} models)")
    if not parts:
        return "Nothing is open: the record settles its noise, and the parameters are taken as fitted."
    return f"The interval covers {' and '.join(parts)}; not a wrong graph or a wrong kind of mechanism."


def _answer(target: str, values: Tensor, weight: Tensor) -> Answer:
    mean = float(weight @ values)
    spread = (values - mean).square()
    error = float((weight.square() @ spread).sqrt())
    ordered, order = values.sort()
    reached = weight[order].cumsum(0)
    places = torch.searchsorted(reached, torch.tensor(_LEVELS, dtype=torch.float64) * float(reached[-1]))
    found = ordered[places.clamp(max=len(values) - 1)].tolist()
    effective = float(1 / weight.square().sum())
    return Answer(target, mean, error, dict(zip(_LEVELS, found, strict=True)), len(values), effective)


def _require_target(model: StructuralModel, target: str, act: Intervention) -> None:
    if target not in model.names:
        raise MisuseError(f"There is no variable {target!r}; the model has {', '.join(model.names)}.")
    if target in act.of_kind(Set):
        raise MisuseError(f"{target} is set and asked for: its value is what it is set to. Ask about another variable.")


def _require_given(model: StructuralModel, target: str, given: Mapping[str, float], n: int) -> None:
    if n < 2:
        raise MisuseError(f"n={n} rows: expected at least 2.")
    if unknown := sorted(set(given) - set(model.names)):
        raise MisuseError(f"The condition names {', '.join(unknown)}; the model has {', '.join(model.names)}.")
    if target in given:
        raise MisuseError(f"{target} is given and asked for: it is what it is. Ask about another variable.")
    if wrong := [name for name, value in given.items() if not math.isfinite(value)]:
        raise DataError(f"The condition on {', '.join(wrong)} is not a finite number.")
