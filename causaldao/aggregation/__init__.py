"""Byzantine-robust aggregation of member updates: finite check, then one rule, perhaps after pre-aggregations.

One pass over the (n, d) updates finds norms and what is not finite, one their inner products, one the weighted mean;
all between is algebra of n × n matrices, which an auditor can repeat.

>>> import torch
>>> honest = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
>>> updates = torch.cat([honest, torch.full((2, 5), 1e6)])
>>> aggregate(updates, "multi-krum", faulty=2).weights.tolist()[-2:]
[0.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causaldao.aggregation import passes
from causaldao.aggregation.geometry import Geometry
from causaldao.aggregation.rules import (
    DEFAULT,
    PRE,
    RULES,
    Rule,
    by_name,
    faults_left,
    is_rule,
    krum_scores,
    prepared,
    require,
)
from causaldao.errors import GuaranteeError, MisuseError

__all__ = [
    "DEFAULT",
    "PRE",
    "RULES",
    "Aggregate",
    "Rule",
    "aggregate",
    "by_name",
    "faults_left",
    "gram",
    "is_rule",
    "krum_scores",
    "require",
    "weights_from_gram",
]


@dataclass(frozen=True)
class Aggregate:
    """The result over n rows.

    Attributes
    ----------
    vector : (d,) float32, float64 if the updates are; on their device.
    weights : (n,) float64 weights of the rows, or None for coordinate rules. They sum to 1 less what the origin (a
        clipped row's other part) and the reference weigh.
    excluded : indices of rows that were not finite (never given to the rule) or that got weight 0.
    not_finite : the non-finite among the excluded.
    norms : (n,) float64, 0 for non-finite rows.
    gram : (m, m) float64 Gram matrix of the rows, the origin and the reference (if the rule took one), centred on a
        row; zeros for non-finite rows. None for a coordinate rule that needed none: `gram` makes it.
    reference_weight : the weight of the reference, which is the state for a rule that has one.
    state : what to give to the next call; None for rules without.
    """

    vector: Tensor
    weights: Tensor | None
    excluded: tuple[int, ...]
    not_finite: tuple[int, ...]
    norms: Tensor
    gram: Tensor | None
    reference_weight: float = 0.0
    state: Tensor | None = None


def aggregate(
    updates: Tensor,
    rule: str | Rule = DEFAULT,
    faulty: int = 0,
    *,
    generator: torch.Generator | None = None,
    reference: Tensor | None = None,
    state: Tensor | None = None,
) -> Aggregate:
    """Aggregate an (n, d) tensor, never changed, of which ``faulty`` rows may be anything at all.

    Rows that hold NaN or an infinity (or, in float64, a norm over 2^500) are excluded and count against ``faulty``.
    Every other row has one weight: a member's size is never its claim. The same rows in the same order give the same
    bits on one machine; callers order rows by member name.

    Parameters
    ----------
    updates : any float type, in memory or mapped, on any device that has float64.
    generator : for rules that deal at random (on the CPU, seeded with what an auditor can know).
    reference : (d,) a trusted update, for rules that compare with one.
    state : the last call's `Aggregate.state`, or None in the first round. Rules that need none of these ignore them.

    Raises
    ------
    GuaranteeError
        n and f outside the rule's bound, or more non-finite rows than ``faulty``.
    MisuseError
        not a 2-d tensor of floats, an unknown rule, or something that the rule needs is missing.
    """
    chosen = by_name(rule) if isinstance(rule, str) else rule
    _check(updates)
    require(chosen, len(updates), faulty)
    point = _reference(chosen, updates, reference, state)
    products = vector = None
    if chosen.uses_gram:
        survey, products = passes.gram(updates, point, "signs" in chosen.needs)
    else:
        assert chosen.combine is not None
        survey, vector = passes.surveyed_by_columns(updates, chosen.combine, faulty)
    bad = tuple(k for k in range(len(updates)) if k not in survey.finite)
    if len(bad) > faulty and chosen.name != "mean":
        raise GuaranteeError(f"{len(bad)} updates are not finite, more than faulty = {faulty}: nothing is aggregated.")
    if not survey.finite:
        raise GuaranteeError("No update is finite: nothing is aggregated.")
    left = max(faulty - len(bad), 0)
    if products is None:
        if vector is None:
            assert chosen.combine is not None
            vector = passes.by_columns(updates, survey, None, chosen.combine, left)
        return Aggregate(vector, None, bad, bad, survey.norms, None)
    rows = list(survey.finite)
    signs = None if survey.signs is None else survey.signs[rows]
    geometry = Geometry(products, len(rows), survey.norms[rows], point is not None, signs)
    whole = _embedded(products, rows, len(updates))
    if chosen.combine is not None:
        mixture = prepared(chosen, geometry, left, generator)[0]
        made = mixture[: len(mixture) - len(products) + len(rows), : len(rows)]
        vector = passes.by_columns(updates, survey, made, chosen.combine, left)
        return Aggregate(vector, None, bad, bad, survey.norms, whole)
    points = _weights(chosen, geometry, left, generator)
    weights = _spread(points, rows, len(updates))
    anchor = float(points[geometry.reference]) if point is not None else 0.0
    vector = passes.weighted(updates, weights, survey)
    if point is not None and anchor != 0:
        vector += (anchor * point).to(vector)
    excluded = tuple(k for k, weight in enumerate(weights.tolist()) if weight == 0)
    return Aggregate(
        vector, weights, excluded, bad, survey.norms, whole, anchor, vector if "state" in chosen.needs else None
    )


def weights_from_gram(
    gram: Tensor,
    norms: Tensor,
    rule: str | Rule,
    faulty: int,
    not_finite: Sequence[int] = (),
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(n,) weights of the rows by a Gram rule: what an auditor recomputes from the logged matrix (m, m) and norms (n,).

    Whether there was a reference is told by m - n, 1 or 2. ``generator`` is seeded as it was in the round.

    Raises
    ------
    MisuseError
        a coordinate rule or one that needs more than the Gram matrix, or matrices that do not fit one another.
    """
    chosen = by_name(rule) if isinstance(rule, str) else rule
    if chosen.weigh is None:
        raise MisuseError(
            f"The rule {chosen.name!r} works on coordinates: its weights cannot be had from a Gram matrix."
        )
    if not chosen.recomputable:
        raise MisuseError(f"The rule {chosen.name!r} counts signs: its weights cannot be had from a Gram matrix.")
    n = len(norms)
    if gram.shape not in ((n + 1, n + 1), (n + 2, n + 2)):
        raise MisuseError(
            f"A Gram matrix of {n} rows and the origin, and perhaps a reference, is not {tuple(gram.shape)}."
        )
    if not bool(torch.isfinite(gram).all() and torch.isfinite(norms).all()):
        raise MisuseError("A Gram matrix and norms are finite numbers; here some are not.")
    rows = [k for k in range(n) if k not in not_finite]
    points = rows + list(range(n, len(gram)))
    geometry = Geometry(gram[points][:, points].double(), len(rows), norms[rows].double(), len(gram) == n + 2)
    return _spread(_weights(chosen, geometry, max(faulty - len(not_finite), 0), generator), rows, n)


def gram(updates: Tensor, reference: Tensor | None = None) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """The Gram matrix (m, m), the norms (n,) and the non-finite rows of any updates: as in `Aggregate`."""
    _check(updates)
    survey, products = passes.gram(updates, reference)
    if not survey.finite:
        raise GuaranteeError("No update is finite: there is no Gram matrix.")
    bad = tuple(k for k in range(len(updates)) if k not in survey.finite)
    return _embedded(products, survey.finite, len(updates)), survey.norms, bad


def _check(updates: Tensor) -> None:
    if updates.ndim != 2 or updates.shape[0] == 0:
        raise MisuseError(f"Expected updates of shape (n, d) with n > 0, but got {tuple(updates.shape)}.")
    if not updates.is_floating_point():
        raise MisuseError(f"Expected updates of a float type, but got {updates.dtype}.")


def _reference(rule: Rule, updates: Tensor, reference: Tensor | None, state: Tensor | None) -> Tensor | None:
    """The reference point of a rule that takes one, checked: it is trusted, so it must be what it should be."""
    point = reference if "reference" in rule.needs else state if "state" in rule.needs else None
    if point is None:
        if "reference" in rule.needs:
            raise MisuseError(f"The rule {rule.name!r} compares updates with a trusted one: give a reference.")
        return None
    if point.shape != updates.shape[1:]:
        raise MisuseError(f"Expected a reference of shape {tuple(updates.shape[1:])}, but got {tuple(point.shape)}.")
    if not bool(torch.isfinite(point).all()):
        raise MisuseError("A reference is a trusted update, but this one is not finite.")
    return point


def _weights(rule: Rule, geometry: Geometry, faulty: int, generator: torch.Generator | None) -> Tensor:
    """(m,) weights of the points by a rule and the steps before it."""
    assert rule.weigh is not None
    mixture, mixed = prepared(rule, geometry, faulty, generator)
    return rule.weigh(mixed, faulty) @ mixture


def _spread(points: Tensor, rows: Sequence[int], members: int) -> Tensor:
    """(n,) weights of all rows, 0 for those that the rule did not see."""
    weights = torch.zeros(members, dtype=torch.float64)
    weights[list(rows)] = points[: len(rows)]
    return weights


def _embedded(products: Tensor, rows: Sequence[int], members: int) -> Tensor:
    """The Gram matrix with zeros for the rows that are left out."""
    places = torch.tensor([*rows, *range(members, members + len(products) - len(rows))])
    whole = torch.zeros(members + len(products) - len(rows), members + len(products) - len(rows), dtype=torch.float64)
    whole[places[:, None], places] = products
    return whole
