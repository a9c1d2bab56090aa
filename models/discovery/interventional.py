"""Graphs from experiments: second moments of several environments, each with the variables that were intervened on.

The score of Hauser & Bühlmann (2012): a mechanism is one and the same, intercept included, wherever its variable is no
target, so each variable is scored on the moments of just these environments, which add. The search is BOSS's, over
orders; the outcome is the interventional CPDAG (`pattern.cpdag_of` with targets).

Two kinds of intervention, and the score differs:

- "hard": the variable is set, to a value or to a draw, and listens to none of its causes. Where it is a target it is
  not scored: that term is the same for all graphs.
- "soft": the variable still listens to (some of) its causes, otherwise than before. Where it is a target it is scored
  by a mechanism of that environment alone, with the same parents. To score a soft intervention as a hard one can prefer
  a reversed edge. An environment without targets is needed (Yang, Katcoff & Uhler, 2018).

Targets must be declared: unknown ones are refused, not guessed. A change that spares the declared targets, such as a
shift of another variable's mean, breaks the assumption and is not noticed. With ``means`` "own" the intercept is each
environment's own (`within`): shifts of means then tell nothing, neither of edges nor, which costs power, of directions.
Noise is counted either way, as `Score` does for one evidence: parts add with theirs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.boss import best_dag, check_options
from causaldao.models.discovery.evidence import Dictionary, Evidence, add, moments_of
from causaldao.models.discovery.found import Discovery
from causaldao.models.discovery.score import PENALTY, Floats, Order, Score
from causaldao.models.discovery.within import within
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of

Kind = Literal["hard", "soft"]
Means = Literal["shared", "own"]


@dataclass(frozen=True)
class Environment:
    """Evidence gathered while the ``targets`` were intervened on; none for observation.

    Raises:
        MisuseError: a target that is no variable of the evidence.
    """

    evidence: Evidence
    targets: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):
            raise MisuseError(f"targets is {self.targets!r}. Give a collection of names, such as [{self.targets!r}].")
        object.__setattr__(self, "targets", frozenset(self.targets))
        if unknown := sorted(self.targets - set(self.evidence.names)):
            raise MisuseError(
                f"The targets {unknown} are no variables of the evidence, which has {', '.join(self.evidence.names)}."
            )


def environments_of(
    frame: pd.DataFrame, column: str, targets: Mapping[str, Collection[str]], dictionary: Dictionary | None = None
) -> list[Environment]:
    """One environment for each value of ``column``, in order of appearance, with its declared ``targets``.

    All have one scale: that of the dictionary, or standardised over all rows. So a variable may be constant in an
    environment.

    Raises:
        DataError: the column is missing, or a variable is constant throughout, missing or not finite.
        MisuseError: an environment without declared targets, or declared ones without rows.
    """
    if column not in frame.columns:
        raise DataError(f"The column {column!r} is missing; the data have {', '.join(map(str, frame.columns))}.")
    labels = frame[column].astype(str)
    if undeclared := sorted(set(labels) ^ set(targets)):
        raise MisuseError(
            f"The environments {undeclared} have rows or declared targets, but not both. Declare the targets of each "
            "environment, [] where nothing was intervened on. Unknown targets are not guessed: leave such rows out."
        )
    values = frame.drop(columns=[column])
    whole = Evidence.from_data(values, dictionary)

    def part(rows: pd.DataFrame) -> Evidence:
        if dictionary is not None:
            return Evidence.from_data(rows, dictionary)
        z = (rows.to_numpy(np.float64) - whole.centre.numpy()) / whole.half.numpy()
        return Evidence(whole.names, moments_of(z), 0.0, whole.centre, whole.half)

    return [Environment(part(values[labels == label]), frozenset(targets[label])) for label in pd.unique(labels)]


def interventional(
    environments: Sequence[Environment],
    penalty: float = PENALTY,
    knowledge: Knowledge = NONE,
    generator: torch.Generator | None = None,
    restarts: int = 12,
    kind: Kind = "hard",
    means: Means = "shared",
) -> Discovery:
    """Find the interventional CPDAG whose DAGs have the best score that the search meets.

    Options as `boss`; the penalty is in units of log n for each parent, n being all records. ``kind`` says what the
    interventions were, ``means`` whose the intercepts are (see the module). Environments that intervene on nothing add
    up to the observational data. The knowledge directs further.

    Raises:
        MisuseError: no environment, a kind or means of no such name, restarts below 1, a penalty that is not positive,
            environments of different variables, a variable that is a target everywhere, or soft interventions without
            an environment that has no targets.
        DataError: variables that are linearly dependent or constant over the environments that score a variable.
        ConfigurationError: the knowledge names unknown variables.
    """
    check_options(penalty, restarts)
    if kind not in get_args(Kind):
        raise MisuseError(f"kind is {kind!r}. Choose one of {', '.join(get_args(Kind))}.")
    if means not in get_args(Means):
        raise MisuseError(f"means is {means!r}. Choose one of {', '.join(get_args(Means))}.")
    if not environments:
        raise MisuseError("There is no environment. Give one or more.")
    columns = environments[0].evidence.names
    knowledge.check(columns)
    targets = [environment.targets for environment in environments]
    _check_targets(columns, targets, kind)
    score = score_of(environments, penalty, knowledge, kind, means)
    dag, near = best_dag(score, columns, knowledge, generator, restarts)
    return Discovery(knowledge.orient(cpdag_of(dag, targets)), near)


@dataclass(frozen=True)
class Scores:
    """A `LocalScore`: of each variable the sum of scores on different evidence, with the same parents."""

    names: tuple[str, ...]
    parts: tuple[tuple[Score, ...], ...]

    @property
    def allowed(self) -> Sequence[int]:
        return self.parts[0][0].allowed

    @property
    def required(self) -> Sequence[int]:
        return self.parts[0][0].required

    def of_parents(self, j: int, parents: int) -> float:
        return sum(part.of_parents(j, parents) for part in self.parts[j])

    def gains(self, j: int, parents: int, among: int) -> tuple[Order, Floats]:
        found = [part.gains(j, parents, among) for part in self.parts[j]]
        return found[0][0], np.sum([gains for _, gains in found], axis=0)

    def losses(self, j: int, parents: int) -> tuple[Order, Floats]:
        found = [part.losses(j, parents) for part in self.parts[j]]
        if not all(members for members, _ in found):
            return [], np.empty(0)
        return found[0][0], np.sum([gains for _, gains in found], axis=0)

    def notes(self) -> tuple[str, ...]:
        return ()


def score_of(
    environments: Sequence[Environment],
    penalty: float,
    knowledge: Knowledge,
    kind: Kind = "hard",
    means: Means = "shared",
) -> Scores:
    """The score over the sorted names: each variable where it is no target, and where it is one by itself if soft."""
    names = tuple(sorted(environments[0].evidence.names))
    total = sum(environment.evidence.count for environment in environments)
    known: dict[tuple[int, ...], Score] = {}

    def scored(members: tuple[int, ...]) -> Score:
        if members not in known:
            own = [environments[i].evidence.select(names) for i in members]
            evidence = within(own) if means == "own" else add(own)
            score = Score.of(evidence, penalty, knowledge, "The search")
            known[members] = replace(score, cost=penalty * math.log(total))
        return known[members]

    parts = []
    for name in names:
        free = tuple(i for i, environment in enumerate(environments) if name not in environment.targets)
        held = [(i,) for i, environment in enumerate(environments) if name in environment.targets]
        parts.append((scored(free), *(scored(members) for members in held if kind == "soft")))
    return Scores(names, tuple(parts))


def _check_targets(names: Sequence[str], targets: Sequence[frozenset[str]], kind: Kind) -> None:
    held = Counter(name for some in targets for name in some)
    if always := sorted(name for name in names if held[name] == len(targets)):
        raise MisuseError(
            f"{', '.join(always)}: a target in every environment, so that no evidence shows what causes it. Add an "
            "environment in which it is left alone, or leave it out."
        )
    if kind == "soft" and all(targets):
        raise MisuseError("Soft interventions need an environment without targets beside them. Add the observations.")
