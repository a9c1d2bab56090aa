"""Two ways round a latent common cause: mediators (the front door) and instruments.

Front door: Pearl, *Causality* (2009), §3.3.2, for sets of mediators; the search for a set is that of Jeong, Tian &
Bareinboim (NeurIPS 2022). Instruments in linear models: Brito & Pearl (UAI 2002), with the search for a conditioning
set of van der Zander, Textor & Liśkiewicz (IJCAI 2015).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

from causaldao.errors import MisuseError, NotIdentifiable
from causaldao.models.adjustment import proper_back_door, proper_causal_nodes
from causaldao.models.graph import CausalGraph
from causaldao.models.separators import minimal_separators, mutilated

Names = frozenset[str]


@dataclass(frozen=True)
class Instrument:
    """In a linear model cov(name, y | given) / cov(name, x | given) is the total effect of x on y."""

    name: str
    given: Names


def is_front_door_set(graph: CausalGraph, treatment: str, outcome: str, mediators: Collection[str]) -> bool:
    """Whether Σ_m P(m | x) Σ_x' P(y | m, x') P(x') is the effect by the front-door criterion.

    The mediators M meet every directed path from x to y, nothing confounds x and M, and x blocks what confounds M and
    y. Empty mediators pass if there is no directed path. For DAGs and ADMGs; raises MisuseError for others, for unknown
    names and for a name in two roles.
    """
    _require(graph, treatment, outcome, *mediators)
    return _intercepts(graph, treatment, outcome, mediators) and not _doors(graph, treatment, outcome, mediators)


def front_door_set(graph: CausalGraph, treatment: str, outcome: str) -> Names:
    """Mediators by which the front-door formula gives the effect; no single one of them can be left out.

    Raises NotIdentifiable iff no set passes `is_front_door_set`, and MisuseError as that does.
    """
    _require(graph, treatment, outcome)
    mediators = frozenset(graph.nodes) - {treatment, outcome}
    # The sets without an open back door are closed under union, so taking offenders out ends in the largest of them.
    while offenders := _doors(graph, treatment, outcome, mediators):
        mediators -= offenders
    if not _intercepts(graph, treatment, outcome, mediators):
        raise NotIdentifiable(
            f"No set of mediators opens a front door from {treatment} to {outcome}: one must meet every directed path, "
            f"be unconfounded with {treatment}, and be unconfounded with {outcome} given {treatment}."
        )
    before: Names = frozenset()
    while before != mediators:  # one that was needed beside another may not be once that is gone
        before = mediators
        for name in sorted(mediators):
            if is_front_door_set(graph, treatment, outcome, mediators - {name}):
                mediators -= {name}
    return mediators


def instruments(graph: CausalGraph, treatment: str, outcome: str, *, assume: str = "") -> tuple[Instrument, ...]:
    """The variables that can serve as instruments for the total effect, in name order, each with what to condition on.

    z is one, given W, if neither descends from the causal path, W separates z from y once the first edges of the causal
    paths are gone, and z is connected with x given W. W is empty where that serves, else the separator nearest to y: it
    serves if any within An(y, z) does. Only in a linear model is the effect then identified, so ``assume`` must be
    "linear". For DAGs and ADMGs.

    Raises:
        MisuseError: assume is not "linear"; names or graph as for `is_front_door_set`.
    """
    if assume != "linear":
        raise MisuseError(
            f"assume={assume!r}: an instrument identifies an effect only under a further assumption. Say "
            "assume='linear' if the effects are linear, or ask identify, which assumes nothing."
        )
    _require(graph, treatment, outcome)
    cut = proper_back_door(graph, {treatment}, {outcome})
    follows = graph.descendants(proper_causal_nodes(graph, {treatment}, {outcome}))
    candidates = frozenset(graph.nodes) - follows - {treatment, outcome}
    found = []
    for name in sorted(candidates):
        given = _conditioning(cut, name, treatment, outcome, candidates - {name})
        if given is not None:
            found.append(Instrument(name, given))
    return tuple(found)


def _conditioning(cut: CausalGraph, name: str, treatment: str, outcome: str, allowed: Names) -> Names | None:
    tried: list[Names] = [frozenset(), *islice(minimal_separators(cut, outcome, name, allowed), 1)]
    for given in tried:
        if cut.d_separated(name, outcome, given) and not cut.d_separated(name, treatment, given):
            return given
    return None


def _doors(graph: CausalGraph, treatment: str, outcome: str, mediators: Collection[str]) -> Names:
    """The mediators with an open back door: to x, or to y past x on a path that leaves by no other mediator."""
    behind, before = mutilated(graph, out_of=mediators), mutilated(graph, out_of={treatment})
    return frozenset(
        name
        for name in mediators
        if not before.d_separated(treatment, name) or not behind.d_separated(name, outcome, treatment)
    )


def _intercepts(graph: CausalGraph, treatment: str, outcome: str, mediators: Collection[str]) -> bool:
    return outcome not in mutilated(graph, out_of=mediators).descendants(treatment)


def _require(graph: CausalGraph, *names: str) -> None:
    if unknown := sorted(set(names) - set(graph.nodes)):
        raise MisuseError(f"The graph has no node {', '.join(unknown)}. It has {', '.join(graph.nodes)}.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MisuseError(f"{', '.join(twice)} stands in two roles; treatment, outcome and mediators must differ.")
    if len(graph.directed) + len(graph.bidirected) != len(graph.edges):
        raise MisuseError("Front doors and instruments are found here in DAGs and ADMGs: direct every edge first.")
