"""The robust pool: many members' evidence, of which up to f may be forged, as one.

Each site's moments are divided by its noisy count. The difference of two sites is measured entry by entry in units of
its own standard deviation: sampling (for x in [-1, 1]^p the variance of x_i x_j is at most min(m_ii, m_jj) - m_ij², for
every distribution) plus the study's noise, never a scale that a site declares. Multi-Krum (Blanchard et al. 2017) on
these distances keeps n - f sites.

The rule `sieve` (`causaldao.sieve`) keeps n - f or more, judged by what
sites say together.

*Excluded by rank* is not *accused*. An accusation is a test, at family-wise level α over members, that a site's entry
or its answer to one of the study's questions differs from the pool of the kept others.

A kept member that is accused is dropped, worst first and at most f of them, and the rest is compared again.

Where members lack variables (`causaldao.holdings`), each entry is tested and averaged among those who have both of its
variables, with weights anew; the distance of two sites is over the entries that both have, and where there is none that
of the two that are farthest apart, so that nobody comes near by withholding. A question is tested and bounded among
those who have all its variables.

Guarantee. Let A be the gradient of a question's answer at the coordinate-wise median of the kept sites, and let the
pool be S = Σ w_k S_k. A kept member k that is not accused has |⟨A, S_k - S⟩| ≤ (1 - w_k)·c·s_k, with c the critical
value and s_k the standard deviation of its difference from the other kept. So f such liars L, whatever they agree on,
move the answer from that of the honest kept, to first order, by at most c·Σ_L w_k (1 - w_k) s_k / (1 - Σ_L w_k);
`Pool.bounds` is its value at the f largest terms and weights, None while a kept site is accused. Second order is left
out. Where sites are small and noisy it counts: liars optimised on 300 noisy records a site moved the answer by 1.5
times the bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist, median
from typing import Any

import torch
from torch import Tensor

from causaldao.aggregation.rules import krum_scores, require
from causaldao.errors import DataError, GuaranteeError, MisuseError
from causaldao.holdings import Lacks, discount, holders, least, patterns
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.effects import influence
from causaldao.sieve import sieve

# each rule beside the one of the updates that has its bound on n and f
RULES = {"multi-krum": "multi-krum", "mean": "mean", "sieve": "multi-krum"}
_WORTH_MORE = 1.25  # whole records must be, to be pooled without those who lack something: that has a larger error
_WEIGHT_CAP = 2.0  # times the median: a large site helps, but does not decide


@dataclass(frozen=True)
class Question:
    """A treatment, an outcome and the adjustment set under which its effect is read from the pool."""

    treatment: str
    outcome: str
    adjustment: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What the study fixes: rule, f, the clamp of counts, the level of accusations, the questions to protect.

    ``doubt`` counts liars who stay unseen into the precision of the pool: f of the kept are taken to be off in every
    entry, all the same way, by so many of their own standard deviations. The pool is then worth fewer records.
    """

    faulty: int
    rule: str = "multi-krum"
    rows: tuple[float, float] = (10, 1_000_000)
    level: float = 0.01
    questions: tuple[Question, ...] = ()
    doubt: float = 0.0


@dataclass(frozen=True)
class Aside:
    """Members of an environment that nobody can be compared with: fewer than the ``needs`` of the rule."""

    members: tuple[str, ...]
    needs: int

    def to_json(self) -> dict[str, Any]:
        return {"members": list(self.members), "needs": self.needs}


@dataclass(frozen=True)
class Pool:
    """The pooled evidence and everything needed to check how it came about.

    ``distances`` are Krum scores in noise units per entry (about 1 for honest sites), under ``sieve`` mean squared
    distances from the kept in such units, ``deviations`` the largest
    standardised deviation of each site from the others, ``critical`` the value above which it is an accusation,
    ``bounds`` how far f unaccused liars can move each question's answer (natural units), None for one that is too noisy
    to be answered. ``lacks`` are the variables that members do not have, and ``discount`` is by how many times fewer
    records the pool is worth for it; ``used`` are the kept whose evidence it is, all or those who lack nothing.

    Where members declare environments, ``environments`` are the pools within each, ``aside`` those of too few members
    to be compared, and the rest is that of all pools together (`causaldao.environments`).
    """

    evidence: Evidence
    rule: str
    faulty: int
    weights: Mapping[str, float]
    distances: Mapping[str, float]
    deviations: Mapping[str, float]
    critical: float
    kept: tuple[str, ...]
    excluded: tuple[str, ...]
    accused: tuple[str, ...]
    bounds: tuple[float | None, ...] = ()
    environments: Mapping[str, Pool] = field(default_factory=dict)
    aside: Mapping[str, Aside] = field(default_factory=dict)
    lacks: Lacks = field(default_factory=dict)
    discount: float = 1.0
    used: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if self.environments:
            told["environments"] = {name: one.to_json() for name, one in sorted(self.environments.items())}
            told["aside"] = {name: one.to_json() for name, one in sorted(self.aside.items())}
        return {
            "evidence": self.evidence.to_json(),
            "rule": self.rule,
            "faulty": self.faulty,
            "weights": dict(self.weights),
            "distances": dict(self.distances),
            "deviations": dict(self.deviations),
            "critical": self.critical,
            "kept": list(self.kept),
            "excluded": list(self.excluded),
            "accused": list(self.accused),
            "bounds": list(self.bounds),
            **told,
            **(self._lacks_to_json() if self.lacks else {}),
        }

    def _lacks_to_json(self) -> dict[str, Any]:
        lacks = {name: list(lacking) for name, lacking in self.lacks.items()}
        return {"lacks": lacks, "discount": self.discount, "used": list(self.used)}


def pool(evidence: Mapping[str, Evidence], settings: Settings, lacks: Lacks | None = None) -> Pool:
    """Pool the evidence of n members, of which ``settings.faulty`` may be forged and some ``lacks`` variables.

    Raises
    ------
    GuaranteeError
        multi-Krum with n < 2f + 3: names the largest f that n members can bear; a pair of variables that too few have.
    MisuseError
        members' evidence of different variables, an unknown rule, or one that takes no lacking variables.
    """
    names = sorted(evidence)
    if settings.rule not in RULES:
        raise MisuseError(f"There is no pool rule {settings.rule!r}; choose one of {', '.join(RULES)}.")
    robust = settings.rule != "mean"
    if robust:
        require(RULES[settings.rule], len(names), settings.faulty)
    lacking = {name: tuple(lacks[name]) for name in names if lacks and lacks.get(name)}
    if lacking and settings.rule == "sieve":
        raise MisuseError("The sieve compares whole matrices, and some members lack variables: take multi-krum.")
    sites = _Sites.of([evidence[name] for name in names], settings.rows, names, lacking)
    sites.require(range(len(names)), least(RULES[settings.rule], settings.faulty))
    scores = krum_scores(sites.distances(), settings.faulty) if len(names) > 2 else torch.zeros(len(names))
    keep = _smallest(scores, len(names) - settings.faulty) if robust else list(range(len(names)))
    if settings.rule == "sieve":
        sifted = sieve(sites.moments, sites.counts, sites.sigma, settings.faulty)
        keep, scores = list(sifted.kept), sifted.scores
    critical = _critical(settings, len(names), sites.entries + len(settings.questions))
    while True:
        deviations, bounds = sites.compare(keep, settings, critical)
        worst = max(keep, key=lambda k: float(deviations[k]))
        if not robust or float(deviations[worst]) <= critical or len(keep) <= len(names) - 2 * settings.faulty:
            break
        keep.remove(worst)
    accused = [k for k in range(len(names)) if robust and float(deviations[k]) > critical]
    sites.require(keep, settings.faulty + 1)
    weights = sites.weights(keep)
    pooled, worth, used = sites.pooled(keep, settings.faulty)
    return Pool(
        evidence=_discounted(pooled, sites.groups(used), settings),
        rule=settings.rule,
        faulty=settings.faulty,
        weights={names[k]: float(weights[k]) for k in keep},
        distances={name: float(score) for name, score in zip(names, scores, strict=True)},
        deviations={name: float(value) for name, value in zip(names, deviations, strict=True)},
        critical=critical,
        kept=tuple(names[k] for k in keep),
        excluded=tuple(name for k, name in enumerate(names) if k not in keep),
        accused=tuple(names[k] for k in accused),
        bounds=bounds if robust and not set(accused) & set(keep) else (None,) * len(bounds),
        lacks=lacking,
        discount=worth,
        used=tuple(names[k] for k in used) if lacking else (),
    )


def among(
    evidence: Mapping[str, Evidence], lacks: Lacks, kept: Sequence[str], settings: Settings, names: Sequence[str]
) -> Evidence:
    """The evidence of these variables, pooled of the ``kept`` members who have all of them: of whole records, so that
    it is worth what they are.

    Raises
    ------
    GuaranteeError
        they are not more than ``settings.faulty``.
    """
    having = [k for k in sorted(kept) if not set(names) & set(lacks.get(k, ()))]
    if len(having) <= settings.faulty:
        raise GuaranteeError(
            f"{len(having)} of the pooled members have all of {', '.join(names)}, and faulty = {settings.faulty} of "
            "them may lie: it takes more."
        )
    sites = _Sites.of([evidence[k].select(names) for k in having], settings.rows, having, {})
    return _discounted(*sites.whole(range(len(having))), settings)


def _discounted(pooled: Evidence, groups: Sequence[_Group], settings: Settings) -> Evidence:
    """The pool as if its error were larger by what f unseen liars add: variance times 1 + (doubt·Σ w)² / Σ w², the
    first sum over the f largest weights; of the entries where that is most."""
    if not settings.doubt:
        return pooled
    moved = [(settings.doubt * _largest(one.weights, settings.faulty), one.weights) for one in groups]
    factor = max(1 + shift**2 / float((weights**2).sum()) for shift, weights in moved)
    return replace(pooled, moments=pooled.moments / factor, noise=pooled.noise / factor**0.5)


def _largest(values: Tensor, number: int) -> float:
    """The sum of the largest values."""
    return float(values.sort(descending=True).values[:number].sum())


def _smallest(scores: Tensor, number: int) -> list[int]:
    """Indices of the smallest scores, ties by position (members are in name order)."""
    return sorted(sorted(range(len(scores)), key=lambda k: (float(scores[k]), k))[:number])


def _critical(settings: Settings, members: int, tests: int) -> float:
    """Two-sided normal quantile at level α/(n·tests): Bonferroni over members and entries."""
    return NormalDist().inv_cdf(1 - settings.level / (2 * members * tests))


@dataclass(frozen=True)
class _Group:
    """Entries of the upper triangle that the same members have: their places, those members, and the (n,) weights of
    the kept of them."""

    columns: Tensor
    members: list[int]
    weights: Tensor


@dataclass(frozen=True)
class _Sites:
    """All sites' normalised moments S (n, p, p) and the variance of every entry, sampling and noise apart; ``held``
    (n, p): who has which variable, the constant first."""

    names: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    moments: Tensor
    counts: Tensor
    sigma: Tensor
    sampling: Tensor
    noise: Tensor
    held: Tensor

    @staticmethod
    def of(evidence: Sequence[Evidence], rows: tuple[float, float], names: Sequence[str], lacks: Lacks) -> _Sites:
        first = evidence[0]
        for other in evidence[1:]:
            if other.names != first.names or not torch.equal(other.half, first.half):
                raise MisuseError("Evidence can be pooled only under one dictionary.")
        # a site's moments are per record of its own count; the clamp is for what a declared count may weigh
        counts = torch.tensor([min(max(e.count, rows[0]), rows[1]) for e in evidence], dtype=torch.float64)
        held = holders(lacks, names, first.names) if lacks else torch.ones(len(names), first.d + 1, dtype=torch.bool)
        moments = torch.where(_both(held), torch.stack([e.moments / e.count for e in evidence]), 0.0)
        centre = _median(moments, held)
        diagonal = centre.diagonal().clamp_min(0)
        bound = (torch.minimum(diagonal[:, None], diagonal[None, :]) - centre**2).clamp_min(1e-6)
        shape = torch.full_like(bound, 0.5).fill_diagonal_(1.0)
        sigma = torch.tensor([e.noise for e in evidence], dtype=torch.float64)
        noise = (sigma / counts)[:, None, None] ** 2 * (shape + centre**2)
        sampling = bound / counts[:, None, None]
        return _Sites(tuple(names), tuple(evidence), moments, counts, sigma, sampling, noise, held)

    @property
    def variance(self) -> Tensor:
        return self.sampling + self.noise

    @property
    def upper(self) -> tuple[Tensor, Tensor]:
        """Row and column indices of the tested entries: the upper triangle without the count."""
        p = self.moments.shape[1]
        rows, columns = torch.triu_indices(p, p)
        return rows[1:], columns[1:]

    @property
    def entries(self) -> int:
        return len(self.upper[0])

    @property
    def having(self) -> Tensor:
        """(n, entries) bool: who has both variables of an entry."""
        r, c = self.upper
        return self.held[:, r] & self.held[:, c]

    def groups(self, keep: Sequence[int]) -> list[_Group]:
        """The entries by who has them; one group if nobody lacks anything."""
        found = patterns(self.having)
        return [_Group(at, who, self.weights([k for k in keep if k in set(who)])) for at, who in found]

    def require(self, keep: Sequence[int], number: int) -> None:
        """Refuse a pair of variables that fewer of these members have."""
        for columns, who in patterns(self.having):
            if (have := len(set(who) & set(keep))) < number and len(who) < len(self.names):
                r, c = (int(index[columns[0]]) for index in self.upper)
                pair = sorted({(*self.evidence[0].names,)[k - 1] for k in (r, c) if k})
                raise GuaranteeError(
                    f"{have} members have {' and '.join(pair)} and are left to pool, and it takes {number}. Admit more "
                    "members who have them, leave the variables out, or declare a smaller faulty."
                )

    def distances(self) -> Tensor:
        """(n, n) mean squared standardised difference per entry that both sites have."""
        r, c = self.upper
        values, variance, having = self.moments[:, r, c], self.variance[:, r, c], self.having
        difference = (values[:, None] - values[None]) ** 2
        both = having[:, None] & having[None]
        differing = difference / (variance[:, None] + variance[None])
        number = both.sum(dim=2)
        found = torch.where(both, differing, 0.0).sum(dim=2) / number.clamp_min(1)
        return torch.where(number > 0, found, found.max())

    def weights(self, keep: Sequence[int]) -> Tensor:
        """(n,) weights that sum to 1 over the kept: clamped counts, capped at twice their median; 0 if none is kept."""
        weights = torch.zeros_like(self.counts)
        if keep:
            weights[list(keep)] = self.counts[list(keep)].clamp_max(self._cap(keep))
        return weights / weights.sum() if keep else weights

    def _cap(self, keep: Sequence[int]) -> float:
        return _WEIGHT_CAP * median(float(self.counts[k]) for k in keep)

    def centre(self, weights: Tensor, pooled: Evidence) -> Evidence:
        """The coordinate-wise median of those with a weight, at the pool's count: the point at which answers are
        differentiated.

        At the pool itself, liars could choose the gradient by which they are judged.
        """
        kept = _median(self.moments[weights > 0], self.held[weights > 0])
        return replace(pooled, moments=pooled.count * kept / kept[0, 0])

    def pooled(self, keep: Sequence[int], faulty: int) -> tuple[Evidence, float, list[int]]:
        """The pool of the kept, entry by entry among those who have it, and by how much the lacking discounts it.

        Of those alone who lack nothing where they are worth that much more and most of them honest: little noise makes
        moments of different members err far more than their counts say. Whose it is comes last.
        """
        whole, groups = self.combine(self.weights(keep)), self.groups(keep)
        if bool(self.held.all()):
            return whole, 1.0, list(keep)
        r, c = self.upper
        shares = torch.zeros(len(self.counts), self.entries, dtype=torch.float64)
        for group in groups:
            shares[:, group.columns] = group.weights[:, None]
        mean = torch.eye(len(whole.moments), dtype=torch.float64)
        mean[r, c] = mean[c, r] = (shares * self.moments[:, r, c]).sum(dim=0)
        counts = self.counts.clamp_max(self._cap(keep))
        ratio, centre = whole.noise / whole.count, self.centre(self.weights(keep), whole).moments / whole.count
        worth = discount(centre, shares, counts, self.sigma / counts, (whole.count, ratio))
        count, complete = whole.count / worth, [k for k in keep if bool(self.held[k].all())]
        if len(complete) > 2 * faulty:
            alone = self.combine(self.weights(complete))
            least = max(whole.count / alone.count, (alone.noise / alone.count / ratio) ** 2 if ratio else 1.0)
            if worth > _WORTH_MORE * least:
                return alone, least, complete
        return replace(whole, moments=count * mean, noise=count * ratio * worth**0.5), worth, list(keep)

    def whole(self, keep: Sequence[int]) -> tuple[Evidence, list[_Group]]:
        """The pool of sites that lack nothing."""
        return self.combine(self.weights(keep)), self.groups(keep)

    def combine(self, weights: Tensor) -> Evidence:
        """Σ w_k S_k at its effective count 1/Σ(w_k²/n_k), with the noise that the combination carries."""
        kept = [k for k in range(len(weights)) if float(weights[k]) > 0]
        counts = self.counts.clamp_max(self._cap(kept))  # records beyond the cap are a claim that buys no precision
        count = float(1 / (weights**2 / counts).sum())
        noise = count * float(((weights * self.sigma / counts) ** 2).sum().sqrt())
        mean = (weights[:, None, None] * self.moments).sum(dim=0)
        first = self.evidence[0]
        return Evidence(first.names, count * mean / mean[0, 0], noise, first.centre, first.half, first.blocks)

    def compare(
        self, keep: Sequence[int], settings: Settings, critical: float
    ) -> tuple[Tensor, tuple[float | None, ...]]:
        """Largest standardised deviation of each site from the kept others who have the entry, and the bound for each
        question."""
        r, c = self.upper
        values, variance = self.moments[:, r, c], self.variance[:, r, c]
        largest = torch.zeros(len(values), dtype=torch.float64)
        for group in self.groups(keep):
            found = self._against_others(values[:, group.columns], variance[:, group.columns], group.weights)[0]
            if len(group.members) < len(found) and int((group.weights > 0).sum()) == 1:
                found[group.weights > 0] = 0.0  # nobody else who is kept has these
            largest[group.members] = torch.maximum(largest, found)[group.members]
        bounds: list[float | None] = []
        for question in settings.questions:
            asked = [0, *(1 + k for name in _roles(question) for k in self.evidence[0].columns(name))]
            members = self.held[:, asked].all(dim=1).nonzero()[:, 0].tolist()
            weights = self.weights([k for k in keep if k in set(members)])
            try:
                if not float(weights.sum()):
                    raise DataError("Nobody who is kept has all variables of the question.")
                pooled = self.combine(weights)
                centre = self.centre(weights, pooled)
                answer = influence(centre, question.treatment, question.outcome, question.adjustment)
            except DataError:  # too noisy to be answered, so there is no answer to protect
                bounds.append(None)
                continue
            gradient = answer.gradient * pooled.count
            scores = (gradient * self.moments).sum(dim=(1, 2))[:, None]
            spread = self._answer_variance(answer.variance_per_record, gradient)[:, None]
            deviations, spreads = self._against_others(scores, spread, weights)
            largest[members] = torch.maximum(largest, deviations)[members]
            moved = _largest(weights * (1 - weights) * spreads[:, 0], settings.faulty)
            bounds.append(critical * moved / (1 - _largest(weights, settings.faulty)))
        return largest, tuple(bounds)

    @staticmethod
    def _against_others(values: Tensor, variance: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(n,): max over the columns of |value - mean of the kept others| in standard deviations;
        (n, columns): those.
        """
        worst, spreads = [], []
        for k in range(len(values)):
            others = weights.clone()
            others[k] = 0
            others = others / others.sum() if float(others.sum()) > 0 else others
            centre = (others[:, None] * values).sum(dim=0)
            spread = (variance[k] + (others[:, None] ** 2 * variance).sum(dim=0)).sqrt()
            worst.append(((values[k] - centre).abs() / spread).max())
            spreads.append(spread)
        return torch.stack(worst), torch.stack(spreads)

    def _answer_variance(self, per_record: float, gradient: Tensor) -> Tensor:
        """(n,): variance of ⟨A, S_k⟩, sampling and noise."""
        noise: Tensor = self.sigma / self.counts * torch.linalg.matrix_norm(gradient)
        return per_record / self.counts + noise**2


def _median(moments: Tensor, held: Tensor) -> Tensor:
    """(p, p): the coordinate-wise median of (n, p, p) among those who have both variables; 0 where nobody has."""
    return torch.where(_both(held), moments, torch.nan).nanmedian(dim=0).values.nan_to_num(0.0)


def _both(held: Tensor) -> Tensor:
    """(n, p, p): whether a site has both variables of an entry."""
    return held[:, :, None] & held[:, None, :]


def _roles(question: Question) -> tuple[str, ...]:
    return (question.treatment, question.outcome, *question.adjustment)
