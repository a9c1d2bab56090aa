"""Who has what, where members lack variables: how many must have it, and what a pool of unlike sites is worth.

Each second moment is then averaged among those who have both of its variables. How many they must be:

    for each variable and pair of variables, and the variables of each effect whose adjustment is stated,
    max(2f + 3, 3f + 1) members: the pool's rule leaves out f by rank and at most f by accusation, and f + 1 stay.

A silent member is a fault, and one of the f: where some are silent, fewer of the f are left to be borne, pair by pair.

What the pool is worth. A test or a score adds moments whose sampling errors cancel if all come from the same records:
of a strong dependence little is left. Where some moments come from other members than the rest, less cancels, and the
number of records behind the worst moment does not say what is left. So the covariance of all entries is compared with
the one they would have had if everybody had everything: with w_k the weights of member k's entries, n_k its count, σ_k
its noise, m the mean moments, all over the upper triangle without the count,

    Ω = Σ_k diag(w_k) (V / n_k + N σ_k²/n_k²) diag(w_k),    Ω₀ = V / n + N r²,

V the sampling covariance of one record's products for Gaussian records, V_(ij)(kl) = m_ik m_jl + m_il m_jk -
2 μ_i μ_j μ_k μ_l (Isserlis 1918), and N = diag(1 or 1/2) + m mᵀ, the noise of the entries and of the count they are
divided by. The pool is taken to be worth n / s records with noise r √s per record, s the largest eigenvalue of
Ω₀⁻¹ Ω. To first order no function of the moments then has a larger error than is claimed, and a single entry, with
fewer members and more noise, has not. Under much noise s is what the fewest members give; without any it can be many
times as much, and then those who lack nothing may be worth more alone: the pool is theirs if so, which also bounds what
a liar can take from it by saying that it lacks something (`docs/adr/0047-variables-that-a-member-lacks.md`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from causaldao.aggregation.rules import by_name
from causaldao.errors import GuaranteeError

Lacks = Mapping[str, Sequence[str]]
"""What each member said at the roll call that it does not have; who is not named lacks nothing."""

_FLAT = 1e-6  # of the largest eigenvalue: a direction in which noise says that nothing varies
_NAMED = 5  # sets of variables that an error lists


def least(rule: str, faulty: int) -> int:
    """How many members must have a variable, or a pair of them, under an aggregation rule with so many liars."""
    return max(by_name(rule).least(faulty), 3 * faulty + 1 if rule != "mean" else faulty + 1)


def borne(
    rule: str, lacks: Lacks, answered: Sequence[str], members: int, faulty: int, asked: Iterable[Sequence[str]] = ()
) -> int:
    """How many liars the rule bears among those who ``answered``, of ``members`` with at most ``faulty``, for every
    variable, every pair and each of the sets ``asked``.

    Raises
    ------
    GuaranteeError
        some set is held by too few; names them, how many have them, and how many it takes.
    """
    missing = {name: {k for k in answered if name in lacks.get(k, ())} for k in answered for name in lacks.get(k, ())}
    sets: list[tuple[str, ...]] = [(name,) for name in sorted(missing)]
    sets += combinations(sorted(missing), 2)
    sets += [some for names in asked if (some := tuple(sorted(set(names) & set(missing))))]  # of the rest all have all
    silent, left, short = members - len(answered), faulty, dict[tuple[str, ...], int]()
    for names in sets:
        have = len(answered) - len(set[str]().union(*(missing[name] for name in names)))
        if have >= least(rule, faulty):
            continue
        if silent <= faulty and have >= least(rule, faulty - silent):
            left = min(left, faulty - silent)
        elif not any(set(known) < set(names) for known in short):
            short[names] = have
    if short:
        needed, told = least(rule, faulty), [f"{' with '.join(names)}: {have}" for names, have in short.items()]
        more = f", and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
        raise GuaranteeError(
            f"Too few of the {len(answered)} members that answered have {'; '.join(told[:_NAMED])}{more}. It takes "
            f"{needed} for faulty = {faulty}. Admit more members who have them, leave the variables out, or declare a "
            "smaller faulty."
        )
    return left


def holders(lacks: Lacks, members: Sequence[str], names: Sequence[str]) -> Tensor:
    """(n, p) bool: whether a member has the constant, which all have, and each variable."""
    return torch.tensor([[True, *(name not in lacks.get(k, ()) for name in names)] for k in members])


def patterns(held: Tensor) -> list[tuple[Tensor, list[int]]]:
    """The columns of (n, E) flags in groups that the same members have: (columns, members) of each."""
    kinds, which = torch.unique(held, dim=1, return_inverse=True)
    return [((which == g).nonzero()[:, 0], kinds[:, g].nonzero()[:, 0].tolist()) for g in range(kinds.shape[1])]


def discount(centre: Tensor, shares: Tensor, counts: Tensor, noise: Tensor, whole: tuple[float, float]) -> float:
    """s ≥ 1: by how much more the entries err than if all members had them, in the worst direction.

    centre : (p, p) mean second moments, constant first; shares : (n, E) weights of the members' entries, upper triangle
    without the count, each column summing to 1; counts, noise : (n,), the noise per record; whole : count and noise per
    record if all had all.
    """
    rows, columns = (index[1:] for index in torch.triu_indices(len(centre), len(centre)))
    moments = _proper(centre)
    mean, entries = moments[0], moments[rows, columns]
    pair = mean[rows] * mean[columns]
    sampling = (
        moments[rows][:, rows] * moments[columns][:, columns] + moments[rows][:, columns] * moments[columns][:, rows]
    ) - 2 * torch.outer(pair, pair)
    drawn = torch.where(rows == columns, 1.0, 0.5).double().diag() + torch.outer(entries, entries)
    own = sampling * (shares.T @ (shares / counts[:, None])) + drawn * (shares.T @ (shares * noise[:, None] ** 2))
    base = sampling / whole[0] + drawn * whole[1] ** 2
    scale = base.diagonal().clamp_min(1e-300).rsqrt()
    base, own = (scale[:, None] * matrix * scale for matrix in (base, own))
    factor = torch.linalg.cholesky(base + 1e-11 * torch.eye(len(base), dtype=torch.float64))
    half = torch.linalg.solve_triangular(factor, own, upper=False)
    ratio = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return max(1.0, float(torch.linalg.eigvalsh((ratio + ratio.T) / 2)[-1]))


def _proper(centre: Tensor) -> Tensor:
    """The nearest moments that records can have, each direction with some variance."""
    mean = centre[0, 1:]
    values, vectors = torch.linalg.eigh(centre[1:, 1:] - torch.outer(mean, mean))
    values = values.clamp_min(max(float(values[-1]), 1e-12) * _FLAT)
    found = centre.clone()
    found[1:, 1:] = (vectors * values) @ vectors.T + torch.outer(mean, mean)
    return found
