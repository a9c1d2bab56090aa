"""Scores of a discrete variable given its parents, on tables: BDeu and the BIC.

With N_ijk the records whose variable j has level k under the i-th of the q joint levels of its parents, N_ij their
sum and r the levels of j, BDeu (Heckerman, Geiger & Chickering, 1995) is the log marginal likelihood under the uniform
Dirichlet prior that is worth s records in all (the equivalent sample size)::

    Σ_i [ lnΓ(s/q) - lnΓ(s/q + N_ij) + Σ_k ( lnΓ(s/rq + N_ijk) - lnΓ(s/rq) ) ]

on top of a prior over graphs in which every edge counts 1 / (d - 1) with d variables, as if each expected one parent;
and the BIC (Schwarz, 1978) is Σ N_ijk ln(N_ijk / N_ij) - c/2 · ln n · (r - 1)·q, c = 1. Both give equivalent DAGs one
score. q counts all joint levels of the parents, whether they occur or not.

Tables with noise are first made into the one table of all variables that they tell of, worth fewer records
(`noisy_tables.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.special import gammaln, xlogy

from causaldao.errors import MisuseError
from causaldao.models.discovery.noisy_tables import denoised
from causaldao.models.discovery.score import Order, allowed_masks, members_of
from causaldao.models.discovery.tables import Floats, SharedTables, Tables, refuse_unusable
from causaldao.models.knowledge import Knowledge

Kind = Literal["bdeu", "bic"]
SAMPLE_SIZE = 1.0
_BIC = 1.0


@dataclass(frozen=True)
class TableScore:
    """The score of each variable given any parents; the interface of `score.Score`.

    ``weight`` is the equivalent sample size of BDeu, the c of the BIC; ``edge`` what each parent costs beside that.
    ``skipped`` holds the (variable, parents) whose table could not be made: they are not considered. ``told`` is what
    else a result should say of the tables.
    """

    names: tuple[str, ...]
    tables: Tables
    kind: Kind
    weight: float
    edge: float
    allowed: Sequence[int]
    required: Sequence[int]
    told: tuple[str, ...] = ()
    skipped: set[tuple[int, int]] = field(default_factory=set)
    _known: dict[tuple[int, int], float] = field(default_factory=dict)

    @staticmethod
    def of(tables: Tables, kind: Kind, weight: float | None, knowledge: Knowledge, method: str) -> TableScore:
        """The score over the sorted names; a weight of None is 1.

        Raises:
            MisuseError: no such score, or a weight that is not positive.
            DataError: as `refuse_unusable`, and for noisy tables as `noisy_tables.denoised`.
        """
        if kind not in ("bdeu", "bic"):
            raise MisuseError(f"There is no score {kind!r} of tables. The scores are bdeu and bic.")
        weight = (SAMPLE_SIZE if kind == "bdeu" else _BIC) if weight is None else weight
        if not 0 < weight < math.inf:
            what = "sample_size" if kind == "bdeu" else "penalty"
            raise MisuseError(f"{what} is {weight}. Give a number > 0, such as 1.")
        told: tuple[str, ...] = ()
        if isinstance(tables, SharedTables) and tables.sigma:
            noisy, tables = tables, denoised(tables, method)
            told = (
                f"{noisy.count:.6g} records under noise of {noisy.sigma:.4g} were scored as {tables.count:.6g}, and "
                f"what more than {noisy.m} variables do only together was not seen",
            )
        refuse_unusable(tables)
        names = tuple(sorted(tables.names))
        edge = math.log(max(1, len(names) - 1)) if kind == "bdeu" else 0.0
        return TableScore(names, tables, kind, weight, edge, *allowed_masks(names, knowledge), told=told)

    def of_parents(self, j: int, parents: int) -> float:
        """The score of j with exactly these parents; -inf where their table is too large to count."""
        known = self._known.get((j, parents))
        if known is None:
            counts = self.tables.strata(self._named(parents), [], [self.names[j]])
            if counts is None:
                self.skipped.add((j, parents))
                known = -math.inf
            else:
                q = math.prod(self._levels(i) for i in members_of(parents))
                known = self._total(counts[:, 0, :, None], np.array([float(q)]), [1], parents.bit_count())[0]
            self._known[j, parents] = known
        return known

    def gains(self, j: int, parents: int, among: int) -> tuple[Order, Floats]:
        """(candidates, the gain of each as one more parent of j); only what is allowed is looked at."""
        columns = members_of(among & self.allowed[j] & ~parents)
        here = self.of_parents(j, parents)
        if here == -math.inf:
            return columns, np.full(len(columns), -np.inf)
        new = [i for i in columns if (j, parents | 1 << i) not in self._known]
        counts = (
            self.tables.strata(self._named(parents), [self.names[j]], [self.names[i] for i in new]) if new else None
        )
        if counts is not None:
            sizes = [self._levels(i) for i in new]
            q = math.prod(self._levels(i) for i in members_of(parents)) * np.array(sizes, dtype=np.float64)
            scores = self._total(counts, q, sizes, parents.bit_count() + 1)
            self._known.update({(j, parents | 1 << i): s for i, s in zip(new, scores, strict=True)})
        return columns, np.array([self.of_parents(j, parents | 1 << i) - here for i in columns])

    def losses(self, j: int, parents: int) -> tuple[Order, Floats]:
        """(parents that are not required, the gain of leaving each out)."""
        here = self.of_parents(j, parents)
        free = members_of(parents & ~self.required[j])
        if here == -math.inf:
            return [], np.empty(0)
        return free, np.array([self.of_parents(j, parents & ~(1 << i)) - here for i in free])

    def notes(self) -> tuple[str, ...]:
        """What could not be scored, for the result."""
        if not self.skipped:
            return self.told
        j, parents = min(self.skipped, key=lambda one: (len(members_of(one[1])), one))
        return (
            *self.told,
            f"{len(self.skipped)} sets of parents were not considered, for their tables have more variables or cells "
            f"than can be counted, such as {self.names[j]} given {', '.join(self._named(parents))}",
        )

    def _named(self, mask: int) -> list[str]:
        return [self.names[i] for i in members_of(mask)]

    def _levels(self, i: int) -> int:
        return self.tables.levels[self.tables.names.index(self.names[i])]

    def _total(self, counts: Floats, q: Floats, sizes: Sequence[int], parents: int) -> list[float]:
        """The k scores from counts (strata, r, sum of ``sizes``), the k candidates' levels one after another, each
        with ``q`` joint levels of as many ``parents`` in all.
        """
        r = counts.shape[1]
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        whole = counts.sum(axis=1)
        if self.kind == "bic":
            cells = xlogy(counts, counts).sum(axis=(0, 1)) - xlogy(whole, whole).sum(axis=0)
            cost = self.weight / 2 * math.log(self.tables.count) * (r - 1) * q
            return [float(score) for score in np.add.reduceat(cells, starts) - cost]
        prior = np.repeat(self.weight / q, sizes)
        cells = _log_rising(counts, prior / r).sum(axis=(0, 1)) - _log_rising(whole, prior).sum(axis=0)
        return [float(score) - parents * self.edge for score in np.add.reduceat(cells, starts)]


def _log_rising(counts: Floats, prior: Floats) -> Floats:
    """lnΓ(prior + count) - lnΓ(prior), the priors along the last axis; 0 where nothing was counted."""
    found: Floats = np.zeros(counts.shape)
    where = counts > 0
    wide: Any = np.broadcast_to(prior, counts.shape)[where]
    found[where] = gammaln(counts[where] + wide)
    found -= where * gammaln(prior)
    return found
