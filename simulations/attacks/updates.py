"""Attacks on aggregation, as pure functions: from everything the strongest liar could know to the rows that it sends.

The attacker sees every honest row of the round, knows the very pipeline that the server runs, and remembers what it
wrote down in earlier rounds. No client has that much (`causaldao.simulations.attacks.emulation` says what one has), so
what a rule bears here it bears from any client.

Shapes: h honest rows and f liars, n = h + f rows of d entries; the server stacks the honest rows first. Symbols: μ and
σ are the mean and the standard deviation of the honest rows, by coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist

import torch
from torch import Tensor

from causaldao.errors import MisuseError

Pipeline = Callable[[Tensor], Tensor]
"""(n, d) rows, honest first -> (d,): what the server would add to the model."""

_SPREAD = 100.0  # of a Gaussian row, in root mean squares of the honest entries
_LARGE = 1e6  # how many times as long as the honest mean a large row is
_EPSILON = 0.5  # of inner product manipulation with a fixed strength
_STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # where the search for a strength begins
_HALVINGS = 2  # steps in which it then closes in on the best
_AFRESH = 5  # rounds after which a search forgets what it found before
_BEYOND = 2.0  # how far outside the honest range Fang's attack draws, as a factor
_FANG_HALVINGS = 8  # to 1/128 of their upper bound: the sizes that any rule here lets pass lie within


@dataclass(frozen=True)
class Sight:
    """What the attacker knows in one round.

    honest : (h, d) the honest rows, h > 0; float32 or float64, finite, never changed.
    faulty : f > 0, how many rows the liars send.
    pipeline : the rule in use, with whatever stands before it and the server's present state.
    generator : every random draw comes from it.
    own : (f, d) what the liars' own training gave, or None; on poisoned records if the attack poisons them.
    last : (d,) the last aggregate, or None in the first round.
    notes : what the attack wrote down in earlier rounds, to be changed by it.
    """

    honest: Tensor
    faulty: int
    pipeline: Pipeline
    generator: torch.Generator
    own: Tensor | None = None
    last: Tensor | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.honest.ndim != 2 or len(self.honest) == 0:
            raise MisuseError(f"Expected honest rows of shape (h, d) with h > 0, but got {tuple(self.honest.shape)}.")
        if self.faulty < 1:
            raise MisuseError(f"faulty = {self.faulty} must be 1 or more: without liars there is no attack.")

    @cached_property
    def mean(self) -> Tensor:
        return self.honest.mean(dim=0)

    @cached_property
    def deviation(self) -> Tensor:
        """(d,) σ with divisor h - 1; zero for a single honest row."""
        return self.honest.std(dim=0) if len(self.honest) > 1 else torch.zeros_like(self.mean)

    def rows(self, row: Tensor) -> Tensor:
        """(f, d): every liar sends this row."""
        return row.to(self.honest.dtype).repeat(self.faulty, 1)

    def aggregate(self, row: Tensor) -> Tensor:
        """(d,) what the pipeline makes of the round if every liar sends ``row``."""
        return self.pipeline(torch.cat([self.honest, self.rows(row)])).to(self.honest.dtype)

    def moved(self, row: Tensor) -> float:
        """How far the aggregate comes to lie from μ, Euclidean; a pipeline that breaks down is moved infinitely far."""
        distance = float(torch.linalg.vector_norm((self.aggregate(row) - self.mean).double()))
        return distance if math.isfinite(distance) else math.inf

    def remembered(self, name: str) -> Tensor | None:
        """What a search found in the round before; None in every fifth, where it is to begin anew."""
        return self.notes.get(name) if int(self.notes.get(f"{name}.age", torch.zeros(()))) % _AFRESH else None

    def remember(self, name: str, found: Tensor) -> None:
        age = self.notes.get(f"{name}.age", torch.zeros(()))
        self.notes.update({name: found, f"{name}.age": age + 1})


Craft = Callable[[Sight], Tensor]
"""From what the attacker knows to the (f, d) rows that the liars send, of the dtype of the honest rows."""


def sign_flip(sight: Sight) -> Tensor:
    """-μ: the honest step, backwards (Li et al. 2019, arXiv:1811.03761)."""
    return sight.rows(-sight.mean)


def gaussian(sight: Sight) -> Tensor:
    """Each liar its own draw of N(0, s²), s a hundred times the root mean square of the honest entries: far outside,
    and independent of one another (Blanchard et al. 2017 take a fixed 200)."""
    scale = _SPREAD * sight.honest.square().mean().sqrt()
    shape = (sight.faulty, sight.honest.shape[1])
    return torch.randn(shape, generator=sight.generator, dtype=sight.honest.dtype) * scale


def zero(sight: Sight) -> Tensor:
    """Nothing at all: free riders, who slow the model down."""
    return torch.zeros_like(sight.rows(sight.mean))


def large_norm(sight: Sight) -> Tensor:
    """-10⁶ μ: one row of it owns a mean, and its square leaves the digits of the honest rows behind."""
    return sight.rows(-_LARGE * sight.mean)


def not_a_number(sight: Sight) -> Tensor:
    """NaN throughout."""
    return torch.full_like(sight.rows(sight.mean), math.nan)


def infinite(sight: Sight) -> Tensor:
    """Infinities, against the sign of μ."""
    return sight.rows(torch.where(sight.mean > 0, -math.inf, math.inf))


def alie(sight: Sight) -> Tensor:
    """A little is enough (Baruch et al. 2019, arXiv:1902.06156): μ - zσ, with the largest z at which the liars still
    find the s = ⌊n/2⌋ + 1 - f honest supporters that make them a majority: Φ(z) = (h - s)/h."""
    return sight.rows(sight.mean - alie_strength(len(sight.honest), sight.faulty) * sight.deviation)


def alie_strength(honest: int, faulty: int) -> float:
    """The z of `alie`; 0 when as many supporters as h - 1 are needed or more, and at most that of one supporter."""
    supporters = max((honest + faulty) // 2 + 1 - faulty, 1)
    share = (honest - supporters) / honest
    return max(NormalDist().inv_cdf(share), 0.0) if share > 0 else 0.0


def foe(sight: Sight) -> Tensor:
    """Fall of empires, or inner product manipulation (Xie et al. 2020, arXiv:1903.03936): -εμ with ε = ½.

    Written as `strongest` writes it, so that the optimised attack can find this very row, bit by bit.
    """
    return sight.rows(sight.mean + (1 + _EPSILON) * -sight.mean)


def alie_optimised(sight: Sight) -> Tensor:
    """μ + sσ with the s, of either sign, that moves the very pipeline in use the most."""
    fixed = alie_strength(len(sight.honest), sight.faulty)
    return sight.rows(strongest(sight, [sight.deviation, -sight.deviation], [fixed] if fixed else []))


def foe_optimised(sight: Sight) -> Tensor:
    """μ - sμ with the s > 0 that moves the very pipeline in use the most; s = 1 + ε is `foe`."""
    return sight.rows(strongest(sight, [-sight.mean], [1 + _EPSILON]))


def strongest(sight: Sight, directions: Sequence[Tensor], also: Sequence[float] = ()) -> Tensor:
    """(d,) the row μ + s·v that moves the pipeline most: over all directions v and s in powers of two and ``also``,
    then by ever smaller steps of s along the best v.

    The best changes little from round to round: in four rounds of five it is sought about the last one only.
    """

    def score(strength: float, place: int) -> tuple[float, float, int]:
        return sight.moved(sight.mean + strength * directions[place]), strength, place

    before = sight.remembered("strength")
    if before is None:
        best = max(score(strength, place) for place in range(len(directions)) for strength in (*_STRENGTHS, *also))
        factors = [2 ** (0.5**step) for step in range(1, _HALVINGS + 1)]
    else:
        place = int(before[1])
        best = max(score(strength, place) for strength in (float(before[0]), *also))
        factors = [2**0.5]
    for factor in factors:
        _, strength, place = best
        best = max(best, score(strength / factor, place), score(strength * factor, place))
    sight.remember("strength", torch.tensor([best[1], best[2]]))
    return sight.mean + best[1] * directions[best[2]]


def min_max(sight: Sight) -> Tensor:
    """Min-Max (Shejwalkar and Houmansadr 2021, NDSS): as far along a direction as keeps the row at most as far from
    every honest row as the two honest rows that are farthest apart; of their three directions the one that moves the
    pipeline most."""
    apart = torch.cdist(sight.honest.double(), sight.honest.double()).square().max()
    return sight.rows(_within(sight, lambda offsets, v: _furthest(offsets, v, apart)))


def min_sum(sight: Sight) -> Tensor:
    """Min-Sum, of the same paper: the sum of squared distances to the honest rows is at most that of any honest row."""
    sums = torch.cdist(sight.honest.double(), sight.honest.double()).square().sum(dim=1)
    return sight.rows(_within(sight, lambda offsets, v: _sum_bound(offsets, v, sums.max())))


def _within(sight: Sight, reach: Callable[[Tensor, Tensor], float]) -> Tensor:
    """The row μ + γv of the most harmful v, γ as large as ``reach`` says."""
    offsets = (sight.mean - sight.honest).double()
    rows = []
    for direction in (-_unit(sight.mean), -torch.sign(sight.mean), -sight.deviation):
        if bool(direction.any()):
            rows.append(sight.mean + reach(offsets, direction.double()) * direction)
    return max(rows, key=sight.moved, default=sight.mean)


def _furthest(offsets: Tensor, direction: Tensor, bound: Tensor) -> float:
    """The largest γ with ‖δᵢ + γv‖² ≤ bound for all i: the least of the larger roots of as many quadratics."""
    a, b = direction.square().sum(), offsets @ direction
    c = offsets.square().sum(dim=1) - bound
    return float(((-b + (b.square() - a * c).clamp_min(0).sqrt()) / a).min().clamp_min(0))


def _sum_bound(offsets: Tensor, direction: Tensor, bound: Tensor) -> float:
    """The largest γ with Σᵢ‖δᵢ + γv‖² = Σᵢ‖δᵢ‖² + hγ²‖v‖² ≤ bound: the δᵢ sum to zero."""
    left = (bound - offsets.square().sum()).clamp_min(0)
    return float((left / (len(offsets) * direction.square().sum())).sqrt())


def mimic(sight: Sight) -> Tensor:
    """Mimic (Karimireddy et al. 2022, arXiv:2006.09365): all liars copy one honest row, and so silence the others.

    The victim is who lies furthest along z, the direction in which honest rows differ most, over all rounds so far; z
    is learned by Oja's rule from the rounds seen.
    """
    offsets = (sight.honest - sight.mean).double()
    seen = float(sight.notes.get("rounds", torch.zeros(())))
    before = sight.notes.get("direction")
    z = _unit(_principal(offsets) if before is None else seen * before + _unit(offsets.T @ (offsets @ before)))
    places = sight.notes.get("places", torch.zeros(len(offsets), dtype=torch.float64)) + offsets @ z
    sight.notes.update(direction=z, places=places, rounds=torch.tensor(seen + 1))
    return sight.rows(sight.honest[int(places.abs().argmax())])


def _principal(offsets: Tensor) -> Tensor:
    """(d,) the first right singular vector, by the h×h Gram matrix."""
    vectors: Tensor = torch.linalg.eigh(offsets @ offsets.T).eigenvectors
    return offsets.T @ vectors[:, -1]


def fang(sight: Sight) -> Tensor:
    """Fang et al. (2020, arXiv:1911.11815), full knowledge: the directed deviation of both their attacks, adapted.

    Against coordinate rules each liar draws, by coordinate, just outside the honest range on the side that μ does not
    go to. Against Krum all send -λ sign(μ), λ halved from their upper bound. Sent is what moves the aggregate most
    against the sign of μ in the pipeline in use.
    """
    signs = torch.sign(sight.mean)
    bound = _krum_bound(sight)
    before = sight.remembered("halvings")
    # None of them is the attack on coordinate rules.
    tried: list[int | None] = [None, *range(_FANG_HALVINGS)] if before is None else _beside(int(before))

    def rows(halvings: int | None) -> Tensor:
        return _outside(sight, signs) if halvings is None else sight.rows(-bound / 2**halvings * signs)

    def backwards(lies: Tensor) -> float:
        result = sight.pipeline(torch.cat([sight.honest, lies])).to(signs.dtype)
        return float((signs * (sight.mean - result)).double().sum().nan_to_num(nan=math.inf))

    candidates = [(halvings, rows(halvings)) for halvings in tried]
    halvings, best = max(candidates, key=lambda one: backwards(one[1]))
    sight.remember("halvings", torch.tensor(-1.0 if halvings is None else float(halvings)))
    return best


def _beside(before: int) -> list[int | None]:
    """What is tried after a round in which so many halvings were best; -1 stands for the attack on coordinate rules."""
    return [None] if before < 0 else [None, max(before - 1, 0), before, before + 1]


def _outside(sight: Sight, signs: Tensor) -> Tensor:
    low, high = sight.honest.min(dim=0).values, sight.honest.max(dim=0).values
    edge = torch.where(signs > 0, low, high)
    # Away from the range: a positive minimum is divided by the factor, a negative one multiplied; so for the maximum.
    outward = (edge > 0) == (signs > 0)
    far = torch.where(outward, edge / _BEYOND, edge * _BEYOND)
    share = torch.rand((sight.faulty, len(edge)), generator=sight.generator, dtype=edge.dtype)
    return edge + share * (far - edge)


def _krum_bound(sight: Sight) -> float:
    """Their upper bound of λ, of the honest distances and the honest sizes."""
    h, d = sight.honest.shape
    distances = torch.cdist(sight.honest.double(), sight.honest.double()).square()
    nearest = distances.sort(dim=1).values[:, : max(h - 1, 1)].sum(dim=1)  # the zero to itself, and h - 2 others
    size = float(torch.linalg.vector_norm(sight.honest.double(), dim=1).max())
    n = h + sight.faulty
    return math.sqrt(float(nearest.min()) / (max(n - 2 * sight.faulty - 1, 1) * d)) + size / math.sqrt(d)


def clip_history(sight: Sight) -> Tensor:
    """Against (centred) clipping, with what earlier rounds tell (Özfatura et al. 2022, arXiv:2208.09894).

    Clipping measures from the last aggregate, so a row is left whole that lies as far from there as honest rows do. The
    liars put all of that distance into one direction which is orthogonal to the reference, keep it over the rounds, and
    so pile up a drift that momentum remembers and no single round shows.
    """
    last = torch.zeros_like(sight.mean) if sight.last is None else sight.last.to(sight.mean.dtype)
    reference = (sight.mean + last) / 2
    drift = sight.notes.get("drift")
    if drift is None:
        drift = torch.randn(len(reference), generator=sight.generator, dtype=torch.float64)
    heading = _unit(reference.double())
    drift = _unit(drift - (drift @ heading) * heading)
    sight.notes["drift"] = drift
    radius = torch.linalg.vector_norm((sight.honest - last).double(), dim=1).median()
    spare = (radius.square() - (reference - last).double().square().sum()).clamp_min(0).sqrt()
    return sight.rows(reference + (spare * drift).to(reference.dtype))


def model_replacement(sight: Sight) -> Tensor:
    """Bagdasaryan et al. (2020, arXiv:1807.00459): scaled so that the mean of all rows is the liars' own update.

    (nX - hμ)/f, with X the mean of ``own``; without ``own``, -μ: the honest step undone.
    """
    target = -sight.mean if sight.own is None else sight.own.mean(dim=0).to(sight.mean.dtype)
    h, f = len(sight.honest), sight.faulty
    return sight.rows(((h + f) * target - h * sight.mean) / f)


def _unit(vector: Tensor) -> Tensor:
    """Of length 1; zero stays zero."""
    length = float(torch.linalg.vector_norm(vector))
    return vector / length if length > 0 else vector


CRAFTS: dict[str, Craft] = {
    "sign-flip": sign_flip,
    "gaussian": gaussian,
    "zero": zero,
    "large-norm": large_norm,
    "nan": not_a_number,
    "inf": infinite,
    "alie": alie,
    "alie-optimised": alie_optimised,
    "foe": foe,
    "foe-optimised": foe_optimised,
    "min-max": min_max,
    "min-sum": min_sum,
    "mimic": mimic,
    "fang": fang,
    "clip-history": clip_history,
    "model-replacement": model_replacement,
}
