"""What a search for a graph found, and when a decision of it counts as a near tie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from causaldao.models.graph import CausalGraph, Pair, Triple

NEAR = 1e-6


@dataclass(frozen=True)
class Discovery:
    """What a search found.

    Attributes
    ----------
    graph : the CPDAG, with what the knowledge directs, and, unless triples are ambiguous, always with a consistent
        extension; or the PAG (FCI).
    near_ties : pairs whose edge hung on a statistic or a score within 1e-6 of the line; the rounding of
        another machine may decide them otherwise, so a replay takes these as given.
    separating_sets : of each pair that tests separated, the set with the least dependence (PC, FCI; else empty).
    conflicts : the unshielded colliders on which the tests and the graph disagree, because no DAG has
        them all (PC; else empty); of FCI also (a, c, b) whose a and b cannot be marked as the rules ask, for
        the mark there is another already or the edge would close a directed cycle through c.
    ambiguous : the unshielded triples (a, c, b), a < b, that conservative and majority colliders leave open (PC;
        else empty). The graph concludes nothing from them, and a DAG with its arrows may need colliders there.
    notes : what the search could not do with this evidence, in words; empty if nothing was left out.
    weights : of each edge (cause, effect) of the one DAG that a continuous method ends in, its coefficient, shrunk
        as the method shrinks it (NOTEARS, DAGMA; else empty).
    varsortability : how far the variances in the data's own units rise along that DAG, in [0, 1] (NOTEARS, DAGMA,
        if the DAG has an edge; else None). Near 1, the order may be one of units, not of causes.
    """

    graph: CausalGraph
    near_ties: frozenset[Pair] = frozenset()
    separating_sets: Mapping[Pair, frozenset[str]] = field(default_factory=dict)
    conflicts: frozenset[Triple] = frozenset()
    ambiguous: frozenset[Triple] = frozenset()
    notes: tuple[str, ...] = ()
    weights: Mapping[Pair, float] = field(default_factory=dict)
    varsortability: float | None = None
