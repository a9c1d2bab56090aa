"""Fitting a structural model to a table: all nodes of one kind at once, each stopped by itself.

The likelihood of a structural model is a product over its nodes, so each mechanism is a regression of its own. Those of
one kind are trained as one batch of networks by Adam (Kingma & Ba, 2015) over minibatches common to all. Each keeps the
parameters that did best on held-out rows and stops when they have not improved for a while; what the others do has no
part in it, so that a batch fits what single nodes would (up to rounding).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from causaldao.errors import DataError, MisuseError
from causaldao.models.design import Column, Design, Node, stack, unstack
from causaldao.models.graph import CausalGraph
from causaldao.models.mechanisms import KINDS, Kind, Params, Size, hidden_start, kind
from causaldao.models.scm import require_dag
from causaldao.models.structural import StructuralModel

_FEWEST = 20  # rows
_MOST_LEVELS = 50  # of a category; and distinct counts that `kinds_of` still takes for counts
_VARIES = 1e-10  # least residual variance of a number, as a share of its own


@dataclass(frozen=True)
class Training:
    """How networks are trained: for ``epochs``, or as many as make ``steps`` minibatches if that is more.

    An additive or heteroscedastic mechanism is the mean of ``networks`` that share its ``hidden`` units and differ in
    their start: where rows are few such networks disagree, and their mean errs less. ``held_out`` is a share of the
    rows; a network stops after ``patience``, a share of the epochs, without improvement.
    """

    hidden: int = 24
    epochs: int = 30
    steps: int = 300
    batch: int = 512
    rate: float = 0.03
    held_out: float = 0.1
    patience: float = 0.3
    networks: int = 3

    def __post_init__(self) -> None:
        names = ("hidden", "networks", "epochs", "steps", "batch")
        whole = {name: getattr(self, name) for name in names}
        if wrong := [f"{name}={value}" for name, value in whole.items() if value < 1]:
            raise MisuseError(f"{', '.join(wrong)}: expected at least 1.")
        if not 0 < self.held_out <= 0.5 or not 0 < self.rate < math.inf or not 0 < self.patience <= 1:
            raise MisuseError(
                f"held_out={self.held_out}, rate={self.rate}, patience={self.patience}: expected at most .5, "
                "a positive number, and at most 1; all more than 0."
            )

    def epochs_of(self, rows: int) -> int:
        """Epochs over so many rows."""
        return max(self.epochs, math.ceil(self.steps / math.ceil(rows / self.batch)))


@dataclass(frozen=True)
class NodeReport:
    """How well a mechanism foretells held-out rows.

    error: root mean square error of E[x | parents], natural units; of a category the share of rows whose likeliest
    level is another. explained: 1 - error² / variance; of a category 1 - error / error without parents. log_prob: mean
    log density, natural units. epochs: after which the kept parameters stood; 0 where nothing is trained.
    """

    name: str
    kind: str
    error: float
    explained: float
    log_prob: float
    epochs: int


@dataclass(frozen=True, eq=False)
class Fitted:
    """The model, and a report for each node in the order of its names."""

    model: StructuralModel
    reports: tuple[NodeReport, ...]


def kinds_of(frame: pd.DataFrame, number: str = "additive") -> dict[str, str]:
    """A kind for each column, by its values: two values are a category; whole numbers from 0 on, more than 2 and at
    most 50 different ones, are counts; the rest is of the kind ``number``."""
    if kind(number).domain != "number":
        numbers = [name for name, one in KINDS.items() if one.domain == "number"]
        raise MisuseError(f"{number!r} is no kind for numbers; those are {', '.join(numbers)}.")
    found = {}
    for name in frame.columns:
        values = np.unique(frame[name].to_numpy(dtype=np.float64))
        whole = bool((values >= 0).all() and (values == np.floor(values)).all())
        if len(values) == 2:
            found[str(name)] = "categorical"
        else:
            found[str(name)] = "negative-binomial" if whole and len(values) <= _MOST_LEVELS else number
    return found


def fit(
    frame: pd.DataFrame,
    graph: CausalGraph,
    kinds: str | Mapping[str, str] | None = None,
    *,
    generator: torch.Generator,
    training: Training | None = None,
    units: Sequence[Column] | None = None,
) -> Fitted:
    """A structural model of the table on a DAG over its columns.

    ``kinds`` is a kind of mechanism for all columns or for each; columns that it leaves out, or all of them, go by
    `kinds_of`. The generator draws the held-out rows, the networks' start and the minibatches. ``units`` are those of
    another table, so that two models agree on levels. Where held-out rows choose nothing, they judge, and then the
    mechanism is fitted to all rows.

    Raises:
        MisuseError: no DAG over these columns, an unknown kind or column.
        DataError: fewer than 20 rows, values that are not finite numbers, a column that does not vary or has more than
            50 levels, a count that is none, a number that its parents settle exactly.
    """
    task = _task(frame, graph, kinds, training, units, generator, resample=False)
    seeds = _seeds(task, generator)
    judged = _fitted(task, _alike(task), seeds)
    model = _model(task, judged)
    reports = _reports(model, task.held, [judged[j][1] for j in range(len(model.names))])
    return Fitted(_model(task, judged | _fitted(_whole(task), _closed(task), seeds)), reports)


def ensemble(
    frame: pd.DataFrame,
    graph: CausalGraph,
    kinds: str | Mapping[str, str] | None = None,
    *,
    members: int,
    generator: torch.Generator,
    training: Training | None = None,
) -> tuple[StructuralModel, ...]:
    """Models of bootstrap samples of the table (Efron, 1979): they differ as far as its rows leave parameters open.

    Training and held-out rows are resampled apart, so that no row is in both. Raises as `fit` does.
    """
    if members < 2:
        raise MisuseError(f"members={members} of an ensemble: expected at least 2.")
    units, found = shared_units(frame, kinds), []
    for _ in range(members):
        task = _task(frame, graph, kinds, training, units, generator, resample=True)
        seeds, closed = _seeds(task, generator), _closed(task)
        trained = _fitted(task, [group for group in _alike(task) if group not in closed], seeds)
        found.append(_model(task, trained | _fitted(_whole(task), closed, seeds)))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Task:
    graph: CausalGraph
    design: Design
    kinds: tuple[str, ...]
    kept: Tensor  # (d, n) natural
    held: Tensor
    training: Training

    def parents(self, j: int) -> list[int]:
        """The places of a node's parents."""
        found = self.graph.parents(self.design.names[j])
        return [i for i, name in enumerate(self.design.names) if name in found]

    def size(self, j: int) -> Size:
        """Of a node."""
        width = len(self.design.index(self.parents(j)))
        return Size(width, self.training.hidden, len(self.design.columns[j].levels))

    def encoded(self, rows: Tensor) -> Tensor:
        """The design (columns + 1, n) of natural rows (d, n)."""
        design = self.design.empty(rows.shape[1])
        for j, values in enumerate(rows):
            self.design.write(design, j, values)
        return design

    def target(self, j: int, rows: Tensor) -> Tensor:
        """What a node's mechanism is to give: (n,)."""
        one = self.design.columns[j]
        if KINDS[self.kinds[j]].domain == "number":
            return (rows[j] - one.centre) / one.half
        return self.design.target(j, rows[j])


_Found = dict[int, tuple[Node, int]]  # by place: the mechanism, and the epoch of its parameters


def _task(
    frame: pd.DataFrame, graph: CausalGraph, kinds: str | Mapping[str, str] | None, training: Training | None,
    units: Sequence[Column] | None, generator: torch.Generator, resample: bool,
) -> _Task:  # fmt: skip
    training = Training() if training is None else training
    names = tuple(str(name) for name in frame.columns)
    require_dag(graph, names)
    rows, chosen = _rows(frame, names), _chosen(frame, names, kinds)
    columns = shared_units(frame, chosen) if units is None else tuple(units)
    order = torch.randperm(rows.shape[1], generator=generator)
    held = order[: max(round(training.held_out * rows.shape[1]), 1)]
    kept = order[len(held) :]
    if resample:
        held, kept = (one[torch.randint(len(one), (len(one),), generator=generator)] for one in (held, kept))
    made = tuple(chosen[name] for name in names)
    return _Task(graph, Design(names, columns), made, rows[:, kept], rows[:, held], training)


def _seeds(task: _Task, generator: torch.Generator) -> list[int]:
    """One for each node's start, and one for the minibatches."""
    seeds: list[int] = torch.randint(1 << 62, (len(task.kinds) + 1,), generator=generator).tolist()
    return seeds


def _fitted(task: _Task, groups: Sequence[Sequence[int]], seeds: Sequence[int]) -> _Found:
    found: _Found = {}
    for members in groups:
        found |= dict(zip(members, _fit_group(task, members, seeds), strict=True))
    return found


def _model(task: _Task, found: _Found) -> StructuralModel:
    nodes = tuple(found[j][0] for j in range(len(task.kinds)))
    return StructuralModel(task.graph, task.design.names, task.design.columns, nodes)


def _whole(task: _Task) -> _Task:
    """The same with all rows to fit to."""
    return replace(task, kept=torch.cat([task.kept, task.held], 1))


def _closed(task: _Task) -> list[list[int]]:
    """The groups in which nothing is trained, so that held-out rows have nothing to choose."""
    return [
        group for group in _alike(task) if not _is_trained(KINDS[task.kinds[group[0]]], task.size(group[0]).parents)
    ]


def _alike(task: _Task) -> list[list[int]]:
    """Nodes of one kind, those without parents apart: they need no hidden layer."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for j, name in enumerate(task.kinds):
        groups.setdefault((name, not task.parents(j)), []).append(j)
    return list(groups.values())


def _is_trained(made: Kind, parents: int) -> bool:
    """Whether its parameters follow a gradient, and held-out rows choose among them; else the fit is closed."""
    return bool(made.trained) and not (made.settled and parents == 0)


def _fit_group(task: _Task, members: Sequence[int], seeds: Sequence[int]) -> list[tuple[Node, int]]:
    made, sizes = KINDS[task.kinds[members[0]]], [task.size(j) for j in members]
    size = Size(max(one.parents for one in sizes), task.training.hidden, max(one.levels for one in sizes))
    indices = [task.design.index(task.parents(j)) for j in members]
    index = torch.tensor([one + [task.design.width] * (size.parents - len(one)) for one in indices], dtype=torch.long)
    (x, y), (x_held, y_held) = (
        (task.encoded(rows)[index], torch.stack([task.target(j, rows) for j in members]))
        for rows in (task.kept, task.held)
    )
    trained = _is_trained(made, size.parents)
    widths = _widths(task.training, many=trained and made.averaged and size.parents > 0)
    copies = [replace(one, hidden=width) for width in widths for one in sizes]
    starts = [
        hidden_start(one, made.layout(one), torch.Generator().manual_seed(seeds[j] + copy))
        for (copy, j), one in zip(product(range(len(widths)), members), copies, strict=True)
    ]
    kept, held = ((a.repeat(len(widths), 1, 1), b.repeat(len(widths), 1)) for a, b in ((x, y), (x_held, y_held)))
    params = made.start(stack(made, starts, replace(size, hidden=widths[0])), *kept)
    epochs = [0] * len(copies)
    if trained:
        minibatches = torch.Generator().manual_seed(seeds[-1])
        params, epochs = _train(made, params, kept, held, task.training, minibatches)
    each = unstack(made, params, copies)
    params = stack(made, [_averaged(each[place :: len(members)]) for place in range(len(members))], size)
    params = made.finish(params, x, y)
    if made.domain == "number":
        _require_noise(task, members, y - made.mean(params, x))
    nodes = [Node(made.name, task.training.hidden, one) for one in unstack(made, params, sizes)]
    return [(node, max(epochs[place :: len(members)])) for place, node in enumerate(nodes)]


def _widths(training: Training, many: bool) -> list[int]:
    """Hidden units of each network that is averaged: together those of one, the first widest."""
    copies = min(training.networks, training.hidden) if many else 1
    return [(training.hidden + copies - 1 - copy) // copies for copy in range(copies)]


def _averaged(networks: Sequence[Params]) -> Params:
    """The mean of networks is one network: it has the hidden units of all, each with its share of the head."""
    joined = {
        name: torch.stack([one[name] for one in networks]).mean(0)
        for name in networks[0] if name not in ("hidden", "hidden_bias", "head")
    }  # fmt: skip
    if "hidden" in networks[0]:
        joined["hidden"], joined["hidden_bias"] = (
            torch.cat([one[name] for one in networks]) for name in ("hidden", "hidden_bias")
        )
        joined["head"] = torch.cat([one["head"] / len(networks) for one in networks], 1)
    return joined


def _train(
    made: Kind, params: Params, kept: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], training: Training,
    minibatches: torch.Generator,
) -> tuple[Params, list[int]]:  # fmt: skip
    """The parameters of each node that lost least on held-out rows, and the epoch of it."""
    x, y = (part.float() for part in kept)
    fixed = (held[0].float(), held[1].float())
    trained = [name for name in made.trained if x.shape[1] or not name.startswith(("hidden", "head", "linear"))]
    best = dict(params)
    least = made.loss(params, *fixed).mean(1)
    waited, epochs = torch.zeros(len(y)), torch.zeros(len(y), dtype=torch.long)
    moving = {name: params[name].clone().requires_grad_() for name in trained}
    step = _Adam([moving[name] for name in trained])
    rounds = training.epochs_of(y.shape[1])
    patience = max(training.patience * rounds, 1)
    for epoch in range(1, rounds + 1):
        order = torch.randperm(y.shape[1], generator=minibatches)
        x_epoch, y_epoch = x[..., order], y[:, order]
        rate = training.rate * (1 + math.cos(math.pi * (epoch - 1) / rounds)) / 2
        for start in range(0, y.shape[1], training.batch):
            part = slice(start, start + training.batch)
            loss = made.loss({**params, **moving}, x_epoch[..., part], y_epoch[:, part]).mean(1).sum()
            step(torch.autograd.grad(loss, step.parameters), rate)
        with torch.no_grad():
            now = made.loss({**params, **moving}, *fixed).mean(1)
            better = (now < least) & (waited < patience)
            least = torch.where(better, now, least)
            for name in trained:
                shaped = better.reshape(-1, *[1] * (params[name].ndim - 1))
                best[name] = torch.where(shaped, moving[name].detach(), best[name])
            epochs = torch.where(better, epoch, epochs)
            waited = torch.where(waited >= patience, waited, torch.where(better, 0.0, waited + 1))
        if bool((waited >= patience).all()):
            break
    return best, epochs.tolist()


class _Adam:
    """Adam, its first and second moments decayed by .9 and .99; every number of a parameter for itself."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self._first = [torch.zeros_like(one) for one in parameters]
        self._second = [torch.zeros_like(one) for one in parameters]
        self._steps = 0

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor], rate: float) -> None:
        self._steps += 1
        torch._foreach_lerp_(self._first, list(gradients), 0.1)
        torch._foreach_mul_(self._second, 0.99)
        torch._foreach_addcmul_(self._second, list(gradients), list(gradients), 0.01)
        unbiased = math.sqrt(1 - 0.99**self._steps)
        below = torch._foreach_sqrt(self._second)
        torch._foreach_add_(below, 1e-8 * unbiased)
        torch._foreach_addcdiv_(self.parameters, self._first, below, -rate * unbiased / (1 - 0.9**self._steps))


def _rows(frame: pd.DataFrame, names: Sequence[str]) -> Tensor:
    """(d, n) float64, natural."""
    if len(set(names)) < len(names):
        raise DataError(f"The table has columns of one name: {', '.join(names)}. Give each a name of its own.")
    if wrong := [str(name) for name in frame.columns if frame[name].dtype.kind not in "iufb"]:
        raise DataError(f"The columns {', '.join(wrong)} are not numbers: code their levels as 0, 1, 2.")
    if len(frame) < _FEWEST:
        raise DataError(f"{len(frame)} rows: expected at least {_FEWEST} to fit mechanisms to.")
    values = np.array(frame.to_numpy(dtype=np.float64).T, order="C")
    if not np.isfinite(values).all():
        j, row = np.argwhere(~np.isfinite(values))[0]
        raise DataError(
            f"{names[j]} is {values[j, row]} in row {row}: expected finite numbers. Leave out such rows, or "
            "fill them in."
        )
    return torch.from_numpy(values)


def _chosen(frame: pd.DataFrame, names: Sequence[str], kinds: str | Mapping[str, str] | None) -> dict[str, str]:
    if isinstance(kinds, str):
        return dict.fromkeys(names, kind(kinds).name)
    given = dict(kinds or {})
    if unknown := sorted(set(given) - set(names)):
        raise MisuseError(
            f"Kinds are given for {', '.join(unknown)}, which the table lacks. It has {', '.join(names)}."
        )
    return {**kinds_of(frame), **{name: kind(one).name for name, one in given.items()}}


def _column(name: str, values: Tensor, made: Kind) -> Column:
    half, low, high = float(values.std(correction=0)), float(values.min()), float(values.max())
    if not high > low:
        raise DataError(f"{name} is {low:g} in every row: it has no mechanism. Drop it from table and graph.")
    levels: tuple[float, ...] = ()
    if made.domain == "category":
        levels = tuple(torch.unique(values).tolist())
        if len(levels) > _MOST_LEVELS:
            raise DataError(
                f"{name} has {len(levels)} levels: expected at most {_MOST_LEVELS}. Give it a kind for numbers."
            )
    if made.domain == "count" and bool(((values < 0) | (values != values.floor())).any()):
        odd = values[(values < 0) | (values != values.floor())][0].item()
        raise DataError(f"{name} has the value {odd:g}: expected counts, 0 or more. Give it a kind for numbers.")
    return Column(float(values.mean()), half, low, high, levels)


def _require_noise(task: _Task, members: Sequence[int], residual: Tensor) -> None:
    for j, left in zip(members, residual.square().mean(1).tolist(), strict=True):
        if not left > _VARIES:
            given = ", ".join(task.design.names[i] for i in task.parents(j)) or "nothing"
            raise DataError(
                f"{task.design.names[j]} has residual variance {left:.3g} of its own given {given}, expected more than "
                f"{_VARIES:g}: it has no noise. Drop a variable that others settle exactly."
            )


def _reports(model: StructuralModel, held: Tensor, epochs: Sequence[int]) -> tuple[NodeReport, ...]:
    expected, columns = model.expected(held.T), dict(zip(model.names, held, strict=True))
    reports = []
    for j, name in enumerate(model.names):
        log_prob = float(model.log_prob(name, columns, held[j]).mean())
        error, explained = _error(held[j], expected[name], model.columns[j].levels)
        reports.append(NodeReport(name, model.nodes[j].kind, error, explained, log_prob, epochs[j]))
    return tuple(reports)


def _error(values: Tensor, expected: Tensor, levels: tuple[float, ...]) -> tuple[float, float]:
    if levels:
        codes = torch.searchsorted(torch.tensor(levels, dtype=torch.float64), values.contiguous())
        error = float((expected.argmax(0) != codes).double().mean())
        without = 1 - float(torch.bincount(codes).max()) / len(codes)
        return error, 1 - error / without if without > 0 else 0.0
    error = float((values - expected).square().mean().sqrt())
    spread = float(values.std(correction=0))
    return error, 1 - (error / spread) ** 2 if spread > 0 else 0.0


def described(reports: Sequence[NodeReport]) -> list[dict[str, Any]]:
    """Reports as plain data."""
    return [asdict(report) for report in reports]


def shared_units(frame: pd.DataFrame, kinds: str | Mapping[str, str] | None = None) -> tuple[Column, ...]:
    """Units and levels of a table's columns, for models of parts of it. Raises as `fit` does."""
    names = tuple(str(name) for name in frame.columns)
    rows, chosen = _rows(frame, names), _chosen(frame, names, kinds)
    return tuple(_column(name, rows[j], kind(chosen[name])) for j, name in enumerate(names))
