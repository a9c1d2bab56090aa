"""Byzantine-robust aggregation of member updates: finite check, then one rule.

>>> import torch
>>> honest = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
>>> updates = torch.cat([honest, torch.full((2, 5), 1e6)])
>>> aggregate(updates, "multi-krum", faulty=2).weights.tolist()[-2:]
[0.0, 0.0]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from causaldao.aggregation.rules import RULES, Rule, by_name, krum_scores, require
from causaldao.errors import GuaranteeError, MisuseError

__all__ = ["RULES", "Aggregate", "Rule", "aggregate", "krum_scores", "require", "weights_from_gram"]

_CHUNK = 1 << 16  # columns of a pass: bounds the extra memory


@dataclass(frozen=True)
class Aggregate:
    """The result over n rows.

    Attributes
    ----------
    vector : (d,) float64.
    weights : (n,) float64 summing to 1, or None for coordinate rules.
    excluded : indices of rows that were not finite (never given to the rule) or that got weight 0.
    gram : (n, n) float64 Gram matrix of the rows centred on one of them; zero rows for non-finite ones.
    not_finite : the non-finite among the excluded.
    """

    vector: Tensor
    weights: Tensor | None
    excluded: tuple[int, ...]
    gram: Tensor
    not_finite: tuple[int, ...] = ()


def aggregate(
    updates: Tensor,
    rule: str | Rule = "multi-krum",
    faulty: int = 0,
    *,
    generator: torch.Generator | None = None,
    reference: Tensor | None = None,
) -> Aggregate:
    """Aggregate an (n, d) tensor, never mutated, of which ``faulty`` rows may be anything at all.

    Rows that hold NaN or an infinity are excluded and count against ``faulty``. Every other row has one weight: a
    member's size is never its claim. ``generator`` and ``reference`` serve rules that sample or compare with a trusted
    update; none of the present rules does.

    Raises
    ------
    GuaranteeError
        n and f outside the rule's bound, or more non-finite rows than ``faulty``.
    MisuseError
        not a 2-d tensor, or an unknown rule.
    """
    if updates.ndim != 2 or updates.shape[0] == 0:
        raise MisuseError(f"Expected updates of shape (n, d) with n > 0, but got {tuple(updates.shape)}.")
    chosen = by_name(rule) if isinstance(rule, str) else rule
    require(chosen, len(updates), faulty)
    finite = _finite_rows(updates)
    bad = [k for k in range(len(updates)) if k not in finite]
    if len(bad) > faulty and chosen.name != "mean":
        raise GuaranteeError(f"{len(bad)} updates are not finite, more than faulty = {faulty}: nothing is aggregated.")
    if not finite:
        raise GuaranteeError("No update is finite: nothing is aggregated.")
    gram = _gram(updates, finite)
    if chosen.weigh is None:
        return Aggregate(_by_columns(updates, finite, chosen, faulty - len(bad)), None, tuple(bad), gram, tuple(bad))
    weights = weights_from_gram(gram, chosen, faulty, tuple(bad))
    excluded = tuple(k for k in range(len(updates)) if float(weights[k]) == 0)
    return Aggregate(_weighted(updates, weights), weights, excluded, gram, tuple(bad))


def weights_from_gram(gram: Tensor, rule: Rule, faulty: int, not_finite: tuple[int, ...] = ()) -> Tensor:
    """(n,) weights of a Gram rule: what an auditor recomputes from the logged Gram matrix."""
    if rule.weigh is None:
        raise MisuseError(f"The rule {rule.name!r} works on coordinates: its weights cannot be had from a Gram matrix.")
    rows = [k for k in range(len(gram)) if k not in not_finite]
    weights = torch.zeros(len(gram), dtype=torch.float64)
    weights[rows] = rule.weigh(gram[rows][:, rows], max(faulty - len(not_finite), 0))
    return weights


def _finite_rows(updates: Tensor) -> list[int]:
    """Rows whose every entry and whose squared norm are finite."""
    squared = torch.zeros(len(updates), dtype=torch.float64)
    for start in range(0, updates.shape[1], _CHUNK):
        squared += updates[:, start : start + _CHUNK].double().square().sum(dim=1)
    return [k for k in range(len(updates)) if bool(torch.isfinite(squared[k]))]


def _gram(updates: Tensor, finite: list[int]) -> Tensor:
    """Centred on the row of median norm: differences of close rows then do not cancel, and a liar is not the centre."""
    norms = [(float(updates[k].double().square().sum()), k) for k in finite]
    centre = sorted(norms)[len(norms) // 2][1]
    gram = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for start in range(0, updates.shape[1], _CHUNK):
        chunk = updates[:, start : start + _CHUNK].double()
        rows = torch.zeros_like(chunk)
        rows[finite] = chunk[finite] - chunk[centre]
        gram += rows @ rows.T
    return gram


def _by_columns(updates: Tensor, finite: list[int], rule: Rule, faulty: int) -> Tensor:
    assert rule.combine is not None
    chunks = _columns(updates)
    return torch.cat([rule.combine(chunk[finite].double(), max(faulty, 0)) for chunk in chunks])


def _columns(updates: Tensor) -> list[Tensor]:
    return [updates[:, start : start + _CHUNK] for start in range(0, max(updates.shape[1], 1), _CHUNK)]


def _weighted(updates: Tensor, weights: Tensor) -> Tensor:
    kept = [k for k in range(len(updates)) if float(weights[k]) > 0]
    return torch.cat([weights[kept] @ chunk[kept].double() for chunk in _columns(updates)])
