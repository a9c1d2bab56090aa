"""Identification: can the graph and the observed distribution answer what an intervention would do, and by what
formula?

`identify` decides it completely on DAGs and ADMGs (Shpitser & Pearl, 2006), and on CPDAGs by the rule that an effect is
the same in all members iff every possibly causal path leaves the treatment by an arrow (Perković, UAI 2020).
Adjustment, front doors and instruments can be asked for by themselves. Nothing here sees data: an `Estimand` is
evaluated on a joint table by whoever has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from causaldao.errors import MisuseError, NotIdentifiable
from causaldao.models.adjustment import (
    adjustment_set,
    checked,
    is_adjustment_set,
    is_amenable,
    joint_adjustment_set,
    minimal_adjustment_sets,
    orientations_at,
    possible_descendants,
    require_settled,
)
from causaldao.models.criteria import Instrument, front_door_set, instruments, is_front_door_set
from causaldao.models.estimand import Estimand, Table
from causaldao.models.expression import Expression, Probability, product, total
from causaldao.models.graph import CausalGraph
from causaldao.models.hedge import Hedge
from causaldao.models.shpitser import idc

__all__ = [
    "Estimand",
    "Hedge",
    "Instrument",
    "Table",
    "adjustment_set",
    "front_door_set",
    "identify",
    "instruments",
    "is_adjustment_set",
    "is_amenable",
    "is_front_door_set",
    "minimal_adjustment_sets",
    "orientations_at",
    "possible_descendants",
]

Names = frozenset[str]


def identify(
    graph: CausalGraph,
    treatment: str | Iterable[str],
    outcome: str | Iterable[str],
    conditions: str | Iterable[str] = (),
) -> Estimand:
    """P(outcome | do(treatment), conditions) as a formula in observed probabilities; a string is one name.

    On DAGs and ADMGs complete: NotIdentifiable means that two models with this graph agree on everything observed and
    differ in the effect. On a CPDAG (or one with knowledge) an answer holds for every DAG of the class; without
    ``conditions`` complete as well, with them it also wants the effect on the conditions to be settled. Where several
    formulas hold, adjustment is preferred, then the front door, then what ID and IDC find.

    Raises:
        NotIdentifiable: with the `Hedge` as ``hedge``, or for a CPDAG with the undirected edge in its message.
        MisuseError: no treatment or outcome, an unknown name, one in two roles, or a graph with circle marks.
        ConfigurationError: no DAG is consistent with the pattern.
    """
    x, y, z = _roles(graph, treatment, outcome, conditions)
    closed, whole = checked(graph, *x, *y, *z)
    told: tuple[str, ...] = ()
    if closed.undirected:
        for name in x:
            for end in (*y, *z):
                require_settled(closed, name, end, frozenset(x) - {name})
        told = ("Every possibly causal path leaves the treatment by an arrow, so all DAGs of the class agree.",)
    found = idc(whole, frozenset(y), frozenset(x), frozenset(z))
    estimand = Estimand(x, y, z, found.expression, "ID", found.steps)
    simpler = _by_criteria(whole, estimand) if not z else estimand
    return replace(simpler, why=(*told, *simpler.why))


def _by_criteria(graph: CausalGraph, found: Estimand) -> Estimand:
    """The formula of a criterion, with its reason, where one is met; else what was found."""
    x, y = frozenset(found.treatment), frozenset(found.outcome)
    if y.isdisjoint(graph.descendants(x)):
        why = f"No directed path leads from {_listed(x)} to {_listed(y)}: setting the one does not move the other."
        return replace(found, expression=Probability(y), method="none", why=(why,))
    if (adjusted := _adjustment(graph, x, y)) is not None:
        why = (
            f"Adjustment criterion, with {_listed(adjusted) or 'nothing'} to adjust for: every path between "
            f"{_listed(x)} and {_listed(y)} that is not causal is blocked, and nothing adjusted for follows from the "
            "causal paths."
        )
        return replace(found, expression=_adjustment_formula(adjusted, x, y), method="adjustment", why=(why,))
    if len(x) == len(y) == 1 and (mediators := _front_door(graph, *x, *y)):
        why = (
            f"Front-door criterion, with {_listed(mediators)} between: every directed path from {_listed(x)} to "
            f"{_listed(y)} goes through there, no latent cause is shared with {_listed(x)}, and given {_listed(x)} no "
            f"other path to {_listed(y)} is open."
        )
        return replace(found, expression=_front_door_formula(mediators, x, y), method="front-door", why=(why,))
    return found


def _adjustment(graph: CausalGraph, x: Names, y: Names) -> Names | None:
    if len(x) > 1 or len(y) > 1:
        return joint_adjustment_set(graph, x, y)
    try:
        return adjustment_set(graph, *x, *y)
    except NotIdentifiable:
        return None


def _front_door(graph: CausalGraph, x: str, y: str) -> Names | None:
    try:
        return front_door_set(graph, x, y)
    except NotIdentifiable:
        return None


def _adjustment_formula(adjusted: Names, x: Names, y: Names) -> Expression:
    if not adjusted:
        return Probability(y, x)
    return total(adjusted, product([Probability(y, x | adjusted), Probability(adjusted)]))


def _front_door_formula(mediators: Names, x: Names, y: Names) -> Expression:
    inner = total(x, product([Probability(y, mediators | x), Probability(x)]))
    return total(mediators, product([Probability(mediators, x), inner]))


def _roles(graph: CausalGraph, *roles: str | Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    treatment, outcome, conditions = ((role,) if isinstance(role, str) else tuple(sorted(set(role))) for role in roles)
    for name, role in (("treatment", treatment), ("outcome", outcome)):
        if not role:
            raise MisuseError(f"{name}=(): expected a node, or several, of {', '.join(graph.nodes)}.")
    if same := sorted(set(treatment) & set(outcome)):
        raise MisuseError(
            f"{', '.join(same)} is both treatment and outcome: a variable that is set to a value has it. "
            "Name another outcome."
        )
    return treatment, outcome, conditions


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
