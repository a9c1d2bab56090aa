"""How sure an edge is: the search again on draws of the evidence that the same population might have given instead.

Two kinds of draw (Efron & Tibshirani, 1993; for graphs Friedman, Goldszmidt & Wyner, 1999). From evidence alone, the
parametric one: the moments of as many records from a normal distribution with the mean and the covariance of the
evidence (a Wishart matrix, by the decomposition of Bartlett, 1933), plus a fresh matrix of the privacy noise, so that
it costs no privacy. From rows, the other one: as many rows drawn with replacement, which assumes no distribution.

A probability here is the share of the draws in which the search finds the edge. It says how far the outcome hangs on
the records that happened to be drawn and on the noise. It is not the probability that the edge is real: what the
method assumes (linear mechanisms, no unmeasured causes for a DAG) is assumed in every draw alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import pandas as pd
import torch

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import Discovery
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge

Search = Callable[..., Discovery]
_FAILING = 0.1  # the share of the draws that may be unfit for the method


@dataclass(frozen=True)
class EdgeProbability:
    """The shares of the draws in which a pair, a < b, is adjacent and its edge has these marks at (a, b).

    ``marks`` has the marks that occurred: ``"->"`` is a -> b, ``">-"`` b -> a, ``"--"`` a - b, and of a PAG
    ``">>"``, ``"oo"``, ``"o>"`` and so on. They add up to ``adjacent``.
    """

    a: str
    b: str
    adjacent: float
    marks: Mapping[str, float]

    def of(self, marks: str) -> float:
        """The share of the draws with these marks at a and b."""
        return self.marks.get(marks, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Stable keys: pair [a, b], adjacent, forward (a -> b), backward (b -> a), undirected, and all marks."""
        return {
            "pair": [self.a, self.b], "adjacent": self.adjacent, "forward": self.of("->"), "backward": self.of(">-"),
            "undirected": self.of("--"), "marks": dict(sorted(self.marks.items())),
        }  # fmt: skip


@dataclass(frozen=True)
class Bootstrap:
    """The probabilities of all pairs that were adjacent in some draw, in name order; the others have 0.

    ``draws`` is how many were searched. ``failed`` more could not be, because their moments cannot bear the method
    (noise left a variable no variance, say); they are in no share.
    """

    names: tuple[str, ...]
    draws: int
    failed: int
    kind: str
    edges: tuple[EdgeProbability, ...]

    def pair(self, a: str, b: str) -> EdgeProbability:
        """The probabilities of a pair, in name order, whichever way round it is asked for."""
        a, b = min(a, b), max(a, b)
        return next((edge for edge in self.edges if (edge.a, edge.b) == (a, b)), EdgeProbability(a, b, 0.0, {}))

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "draws": self.draws, "failed": self.failed,
            "edges": [edge.to_json() for edge in self.edges],
        }  # fmt: skip


def bootstrap(
    draw: Callable[[np.random.Generator], Evidence],
    search: Search,
    knowledge: Knowledge = NONE,
    *,
    draws: int = 100,
    generator: torch.Generator | None = None,
    kind: str = "parametric",
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Bootstrap:
    """Search ``draws`` times, each time on what ``draw`` returns: `of_evidence(evidence)` or `of_rows(frame, ...)`.

    ``search`` is a method of `discovery.METHODS`, ``options`` its own; one that takes a generator gets a fresh one for
    each draw. All randomness comes from ``generator`` (seeded with 0 by default): the same one gives the same shares,
    and the first draws of a longer bootstrap are those of a shorter one. ``progress`` is told (done, draws).

    Raises:
        MisuseError: draws below 1.
        DataError: more than a tenth of the draws are unfit for the method; the message has the last reason.
    """
    if draws < 1:
        raise MisuseError(f"draws is {draws}. Give 1 or more: 100 make an error of .05 or less.")
    seeder = generator or torch.Generator().manual_seed(0)
    counts: Counter[tuple[str, str, str]] = Counter()
    names: tuple[str, ...] = ()
    failed, reason = 0, ""
    for done in range(draws):
        seed = int(torch.randint(2**62, (), generator=seeder))
        try:
            evidence = draw(np.random.default_rng(seed))
            found = search(evidence, knowledge=knowledge, **_seeded(search, options, seed))
        except DataError as error:
            failed, reason = failed + 1, error.message
        else:
            names = found.graph.nodes
            counts.update(_marked(found.graph))
        if progress is not None:
            progress(done + 1, draws)
    if failed > _FAILING * draws:
        raise DataError(
            f"{failed} of {draws} draws of the evidence cannot bear the method; {_FAILING:.0%} may fail. Use more "
            f"records or fewer variables. The last said: {reason}"
        )
    return Bootstrap(names, draws - failed, failed, kind, tuple(_shares(counts, draws - failed)))


def of_evidence(evidence: Evidence) -> Callable[[np.random.Generator], Evidence]:
    """Draws from the sampling distribution of the moments: of as many normal records with the evidence's own mean and
    covariance, and, where it is noisy, of its noise.

    M of (1, z) is n times the mean's and the scatter's part: z̄ ~ N(m, Σ/n), scatter ~ Wishart(n - 1, Σ). A draw is M
    plus the departure of such moments from their expectation, plus the noise: where noise left Σ with negative
    eigenvalues, only the departure takes them for zero.

    Raises:
        DataError: the evidence counts no more records than it has variables.
    """
    d, n = evidence.d, evidence.count
    if n - 1 < d:
        raise DataError(f"A draw of {d} variables needs more than {d} records, but the evidence counts {n:.4g}.")
    mean, covariance = evidence.mean().numpy(), evidence.covariance()
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp_min(0).sqrt()).numpy()

    def draw(rng: np.random.Generator) -> Evidence:
        departure = np.zeros((d + 1, d + 1))
        shift = root @ rng.standard_normal(d) / np.sqrt(n)
        factor = root @ _bartlett(rng, d, n - 1)
        departure[1:, 1:] = factor @ factor.T - n * (root @ root.T) + n * np.outer(shift, shift)
        along = n * np.outer(mean, shift)
        departure[1:, 1:] += along + along.T
        departure[0, 1:] = departure[1:, 0] = n * shift
        moments = evidence.moments + torch.from_numpy(departure + evidence.noise * _symmetric(rng, d + 1))
        return Evidence(evidence.names, moments, evidence.noise, evidence.centre, evidence.half)

    return draw


def of_rows(
    frame: pd.DataFrame, evidence: Callable[[pd.DataFrame], Evidence] = Evidence.from_data
) -> Callable[[np.random.Generator], Evidence]:
    """Draws of as many rows, with replacement; ``evidence`` makes evidence of them, of whatever features."""

    def draw(rng: np.random.Generator) -> Evidence:
        return evidence(frame.iloc[rng.integers(len(frame), size=len(frame))])

    return draw


def _seeded(search: Search, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    if "generator" not in signature(search).parameters:
        return dict(options)
    return {**options, "generator": torch.Generator().manual_seed(seed)}


def _bartlett(rng: np.random.Generator, d: int, freedom: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(d, d) A, lower triangular, with A Aᵀ ~ Wishart(freedom, I)."""
    lower = np.tril(rng.standard_normal((d, d)), -1)
    lower[np.diag_indices(d)] = np.sqrt(rng.chisquare(freedom - np.arange(d)))
    return lower


def _symmetric(rng: np.random.Generator, p: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(p, p) symmetric noise of unit scale: standard deviation 1 on the diagonal, 1/√2 off it."""
    upper = np.triu(rng.standard_normal((p, p)), 1) / np.sqrt(2)
    noise: np.ndarray[Any, np.dtype[np.float64]] = upper + upper.T + np.diag(rng.standard_normal(p))
    return noise


def _marked(graph: CausalGraph) -> Iterator[tuple[str, str, str]]:
    """(a, b, the marks at a and b) of each edge, a < b."""
    for a, b, at_a, at_b in graph.edges:
        yield (a, b, at_a + at_b) if a < b else (b, a, at_b + at_a)


def _shares(counts: Mapping[tuple[str, str, str], int], draws: int) -> Iterator[EdgeProbability]:
    of_pair: dict[tuple[str, str], dict[str, float]] = {}
    for a, b, marks in sorted(counts):
        of_pair.setdefault((a, b), {})[marks] = counts[a, b, marks] / draws
    for (a, b), shares in of_pair.items():
        found = sum(counts[a, b, marks] for marks in shares)
        yield EdgeProbability(a, b, found / draws, shares)
