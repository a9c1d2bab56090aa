"""The rules of aggregation by name: each is its bound on n and f, its κ, and one function, perhaps after other steps.

A Gram rule sees inner products only and answers with weights, so anyone who holds the Gram matrix can check it. A
coordinate rule sees the columns. Write κ for (f, κ)-robustness: ‖F - mean of any n - f honest‖² ≤ κ × their variance
(Allouah et al. 2023, arXiv:2302.01772). What each rule promises stands in its function's docstring.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from causaldao.aggregation import coordinates, filters, gram_rules, mixing
from causaldao.aggregation.geometry import Geometry
from causaldao.aggregation.gram_rules import krum_scores
from causaldao.aggregation.passes import Combine
from causaldao.errors import GuaranteeError, MisuseError

__all__ = ["DEFAULT", "PRE", "RULES", "Rule", "Step", "by_name", "faults_left", "is_rule", "krum_scores", "require"]

Weigh = Callable[[Geometry, int], Tensor]
Mix = Callable[[Geometry, int, torch.Generator | None], Tensor]
Need = Literal["reference", "state", "generator", "signs"]

DEFAULT = "arc+caf"


@dataclass(frozen=True)
class Step:
    """A pre-aggregation: what it makes of the rows, and what that costs the rule after it.

    mix : geometry, f, generator -> (r, m) mixing.
    members : the rows that the next rule needs -> the n that make as many.
    kappa : n, f, κ of the rule after it -> κ of both, None where nobody has proved one.
    bounded : whether the step needs n ≥ 2f + 1 of itself.
    shrinks : whether it does nothing but scale rows, so that their signs stay.
    """

    name: str
    mix: Mix
    members: Callable[[int], int] = lambda rows: rows
    kappa: Callable[[int, int, float], float | None] = lambda n, f, kappa: None
    bounded: bool = True
    shrinks: bool = False
    needs: frozenset[Need] = frozenset()


@dataclass(frozen=True)
class Rule:
    """A rule by name. ``least(f)`` is the smallest n that bears f faults; exactly one of the two functions is given.

    weigh : geometry, f -> (m,) float64 weights of the points that sum to 1.
    combine : columns (r, c), f, None -> (c,), with the columns as scratch; or scratch, f, columns.
    before : the steps before it, in order.
    kappa : n, f -> κ, None where there is none.
    needs : "reference", a trusted update; "state", the aggregate of the round before (may be left out in the first);
        "generator"; "signs", which a Gram matrix does not hold.
    search : n, f -> why an exact search over subsets is refused, or nothing.
    """

    name: str
    least: Callable[[int], int]
    weigh: Weigh | None = None
    combine: Combine | None = None
    before: tuple[Step, ...] = ()
    kappa: Callable[[int, int], float | None] = lambda n, f: None
    needs: frozenset[Need] = frozenset()
    search: Callable[[int, int], str] = lambda n, f: ""

    @property
    def recomputable(self) -> bool:
        """Whether its weights follow from the Gram matrix, the norms and, where it deals at random, the seed."""
        return self.weigh is not None and "signs" not in self.needs

    @property
    def uses_gram(self) -> bool:
        """Whether it or a step before it looks at the Gram matrix."""
        return self.weigh is not None or bool(self.before)


def require(chosen: str | Rule, members: int, faulty: int) -> None:
    """Refuse n and f outside a rule's guarantee, naming the largest f that n members bear."""
    rule = by_name(chosen) if isinstance(chosen, str) else chosen
    name = rule.name
    if faulty < 0:
        raise MisuseError(f"faulty = {faulty} must be 0 or more.")
    if members >= rule.least(faulty):
        if reason := rule.search(members, faulty):
            raise GuaranteeError(
                f"The rule {name!r} with {members} members and faulty = {faulty} {reason}. "
                f"Declare a smaller faulty, or choose another rule: {DEFAULT!r} has no such limit."
            )
        return
    largest = max((f for f in range(members) if members >= rule.least(f)), default=None)
    bears = f"bear at most faulty = {largest}" if largest is not None else f"are fewer than it needs ({rule.least(0)})"
    raise GuaranteeError(
        f"The rule {name!r} with faulty = {faulty} needs at least {rule.least(faulty)} members; {members} {bears}. "
        "Declare a smaller faulty, admit more members, or choose another rule."
    )


def faults_left(chosen: str | Rule, members: int, faulty: int, answered: int) -> int:
    """How many of the ``answered`` may still be faulty, of ``members`` with at most ``faulty``.

    Silence is a fault like any other. While the answers suffice for all f, all f are borne; with fewer, those who are
    silent are counted among the f, so that f silent members stall nothing: n ≥ 2f + 3 gives n - m ≥ 2(f - m) + 3.

    Raises
    ------
    GuaranteeError
        more than ``faulty`` are silent, and those who answered do not suffice.
    """
    rule = by_name(chosen) if isinstance(chosen, str) else chosen
    if answered >= rule.least(faulty):
        return faulty
    silent = members - answered
    if silent > faulty:
        require(rule, answered, faulty)
    require(rule, answered, faulty - silent)
    return faulty - silent


def by_name(name: str) -> Rule:
    """A rule by name, "caf" or "arc+nnm+caf": the last is the rule, the others are steps before it, from the left.

    An unknown name is a MisuseError that lists the choices.
    """
    *steps, last = name.split("+")
    for step in steps:
        if step not in PRE:
            raise MisuseError(f"There is no pre-aggregation {step!r} in {name!r}; choose one of {', '.join(PRE)}.")
    if last not in RULES:
        raise MisuseError(
            f"There is no aggregation rule {last!r}; choose one of {', '.join(RULES)}, "
            f"alone or after {', '.join(f'{step}+' for step in PRE)}."
        )
    rule = RULES[last]
    for step in reversed(steps):
        rule = _after(PRE[step], rule)
    return rule


def is_rule(name: str) -> bool:
    """Whether `by_name` knows the name."""
    try:
        by_name(name)
    except MisuseError:
        return False
    return True


def prepared(rule: Rule, geometry: Geometry, faulty: int, generator: torch.Generator | None) -> tuple[Tensor, Geometry]:
    """The steps before a rule, all at once: the new points as mixtures (m', m) of the old, and their geometry."""
    total = torch.eye(len(geometry.gram), dtype=torch.float64)
    for step in rule.before:
        mixture = step.mix(geometry, faulty, generator)
        total = geometry.lifted(mixture) @ total
        geometry = geometry.mixed(mixture)
    return total, geometry


def _after(step: Step, rule: Rule) -> Rule:
    """The rule with a step before it, its guarantee and its needs those of both."""
    if "signs" in rule.needs and not step.shrinks:
        raise MisuseError(
            f"The rule {rule.name!r} counts signs of single updates: nothing that mixes them can stand before it."
        )

    def least(faulty: int) -> int:
        return max(step.members(rule.least(faulty)), 2 * faulty + 1 if step.bounded else 1)

    def kappa(n: int, f: int) -> float | None:
        after = rule.kappa(n, f)
        return None if after is None else step.kappa(n, f, after)

    def search(n: int, f: int) -> str:
        return rule.search(_made(step, n), f)

    return replace(
        rule,
        name=f"{step.name}+{rule.name}",
        least=least,
        before=(step, *rule.before),
        kappa=kappa,
        needs=rule.needs | step.needs,
        search=search,
    )


def _made(step: Step, members: int) -> int:
    """How many rows a step makes of n: the most for which n suffices."""
    return next(rows for rows in range(members, -1, -1) if step.members(rows) <= members)


def _krum_kappa(n: int, f: int) -> float:
    return 6 * (1 + f / (n - 2 * f))


def _median_kappa(n: int, f: int) -> float:
    return 4 * (1 + f / (n - 2 * f)) ** 2


def _majority(f: int) -> int:
    return 2 * f + 1


_REFERENCE: frozenset[Need] = frozenset({"reference"})

RULES = {
    rule.name: rule
    for rule in (
        Rule("multi-krum", lambda f: 2 * f + 3, weigh=gram_rules.multi_krum, kappa=_krum_kappa),
        Rule("coordinate-median", _majority, combine=coordinates.coordinate_median, kappa=_median_kappa),
        Rule(
            "trimmed-mean", _majority, combine=coordinates.trimmed_mean,
            kappa=lambda n, f: 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f)),
        ),
        Rule("mean", lambda f: 1, weigh=gram_rules.mean, kappa=lambda n, f: math.inf if f else 0.0),
        Rule("meamed", _majority, combine=coordinates.meamed),
        Rule("krum", lambda f: 2 * f + 3, weigh=gram_rules.krum, kappa=_krum_kappa),
        Rule(
            "bulyan", lambda f: 4 * f + 3, combine=coordinates.bulyan_combine,
            before=(Step("krum-selection", mixing.krum_selection),),
        ),
        Rule("geometric-median", _majority, weigh=gram_rules.geometric_median, kappa=_median_kappa),
        Rule("centred-clipping", lambda f: 4 * f + 1, weigh=gram_rules.centred_clipping, needs=frozenset({"state"})),
        Rule(
            "mda", _majority, weigh=filters.mda, kappa=lambda n, f: 8 * f * f / (n - f), search=filters.mda_search,
        ),
        Rule(
            "smea", _majority, weigh=filters.smea, kappa=lambda n, f: 4 * f / (n - 2 * f), search=filters.smea_search,
        ),
        Rule("caf", _majority, weigh=filters.caf, kappa=filters.caf_kappa),
        Rule("monna", _majority, weigh=gram_rules.monna, needs=_REFERENCE),
        Rule("fltrust", lambda f: f + 1, weigh=gram_rules.fltrust, needs=_REFERENCE),
        Rule("dnc", _majority, weigh=filters.dnc),
        Rule("signguard", _majority, weigh=gram_rules.signguard, needs=frozenset({"signs"})),
    )
}  # fmt: skip

PRE = {
    step.name: step
    for step in (
        Step("nnm", mixing.nearest_neighbours, kappa=lambda n, f, kappa: 8 * f / (n - f) * (kappa + 1)),
        Step(
            "bucketing", mixing.bucketing, members=lambda rows: mixing.BUCKET * (rows - 1) + 1, bounded=False,
            needs=frozenset({"generator"}),
        ),
        Step("arc", mixing.adaptive_clipping, kappa=lambda n, f, kappa: kappa + 2 * f / (n - 2 * f), shrinks=True),
        Step("clip", mixing.median_clipping, shrinks=True),
    )
}  # fmt: skip
