"""Robust aggregation rules: each is its bound on n and f, and one function.

A Gram rule sees the (n, n) Gram matrix only and answers with weights, so anyone who holds the Gram matrix can check it.
A coordinate rule sees the columns. Write κ for (f, κ)-robustness: ‖F - mean of any n - f honest‖² ≤ κ × their variance
(Allouah et al. 2023, arXiv:2302.01772).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from causaldao.errors import GuaranteeError, MisuseError

Weigh = Callable[[Tensor, int], Tensor]
Combine = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Rule:
    """A rule by name. ``least(f)`` is the smallest n that bears f faults; exactly one of the two functions is given.

    weigh : Gram matrix (n, n) float64, f -> weights (n,) that sum to 1.
    combine : columns (n, c), f -> (c,).
    """

    name: str
    least: Callable[[int], int]
    weigh: Weigh | None = None
    combine: Combine | None = None


def require(chosen: str | Rule, members: int, faulty: int) -> None:
    """Refuse n and f outside a rule's guarantee, naming the largest f that n members bear."""
    rule = by_name(chosen) if isinstance(chosen, str) else chosen
    name = rule.name
    if faulty < 0:
        raise MisuseError(f"faulty = {faulty} must be 0 or more.")
    if members >= rule.least(faulty):
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
    """A rule by name; an unknown one is a MisuseError that lists the choices."""
    if name not in RULES:
        raise MisuseError(f"There is no aggregation rule {name!r}; choose one of {', '.join(RULES)}.")
    return RULES[name]


def krum_scores(distances: Tensor, faulty: int) -> Tensor:
    """(n,) Krum scores: the sum of each row's n - f - 2 smallest distances to the others (Blanchard et al. 2017).

    ``distances`` is (n, n), symmetric, squared, with any diagonal.
    """
    n = len(distances)
    others = distances.clone().fill_diagonal_(torch.inf).sort(dim=1).values
    nearest = max(n - faulty - 2, 1)
    return others[:, :nearest].sum(dim=1) / nearest


def _mean(gram: Tensor, faulty: int) -> Tensor:
    """The plain mean: no resilience at all (κ = ∞ for any f > 0); the yardstick, not a choice."""
    return torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)


def _multi_krum(gram: Tensor, faulty: int) -> Tensor:
    """Multi-Krum: the mean of the n - f rows with the smallest Krum scores. n ≥ 2f + 3; κ = 6(1 + f/(n - 2f)).

    Ties go to the row that stands first; callers order rows by member name.
    """
    norms = gram.diagonal()
    # rows so far out that their products overflow are infinitely far, also from one another
    distances = (norms[:, None] + norms[None] - 2 * gram).nan_to_num(nan=torch.inf, posinf=torch.inf).clamp_min(0)
    scores = krum_scores(distances, faulty)
    order = sorted(range(len(gram)), key=lambda k: (float(scores[k]), k))
    weights = torch.zeros(len(gram), dtype=torch.float64)
    kept = order[: len(gram) - faulty]
    weights[kept] = 1 / len(kept)
    return weights


def _coordinate_median(columns: Tensor, faulty: int) -> Tensor:
    """Median of each coordinate, the mean of the two middle ones for even n. n ≥ 2f + 1; κ = 4(1 + f/(n - 2f))²."""
    ordered = columns.sort(dim=0).values
    n = len(columns)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _trimmed_mean(columns: Tensor, faulty: int) -> Tensor:
    """Mean of each coordinate without its f largest and f smallest values (Yin et al. 2018). n ≥ 2f + 1.

    κ = 6f/(n - 2f)·(1 + f/(n - 2f)).
    """
    ordered = columns.sort(dim=0).values
    return ordered[faulty : len(columns) - faulty].mean(dim=0)


RULES = {
    rule.name: rule
    for rule in (
        Rule("multi-krum", lambda f: 2 * f + 3, weigh=_multi_krum),
        Rule("coordinate-median", lambda f: 2 * f + 1, combine=_coordinate_median),
        Rule("trimmed-mean", lambda f: 2 * f + 1, combine=_trimmed_mean),
        Rule("mean", lambda f: 1, weigh=_mean),
    )
}
