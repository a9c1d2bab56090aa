"""How a question is going to be answered, from the graph alone: the formula, the method, and the columns it needs."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from causaldao.errors import MisuseError, NotIdentifiable
from causaldao.models.adjustment import adjustment_set, checked, is_adjustment_set, proper_causal_nodes
from causaldao.models.criteria import Instrument, front_door_set, instruments, is_front_door_set
from causaldao.models.estimand import Estimand
from causaldao.models.graph import CausalGraph
from causaldao.models.identification import identify
from causaldao.models.nuisance import Family
from causaldao.models.separators import mutilated

Method = Literal["g-formula", "ipw", "aipw", "plm", "front-door", "2sls", "mediation", "plug-in"]
Kind = Literal["ate", "att", "nde", "nie"]
METHODS: tuple[str, ...] = get_args(Method)
KINDS: tuple[str, ...] = get_args(Kind)
FAMILIES: tuple[str, ...] = get_args(Family)
ADJUST = "adjustment"  # by a method that the treatment's kind decides
ADJUSTING = ("g-formula", "ipw", "aipw", "plm")
NO_PATH = (
    "The graph has no causal path from treatment to outcome, which would make the effect zero; the number is what the "
    "data give, adjusted for the treatment's causes. The graph may lack an edge for want of data."
)


@dataclass(frozen=True)
class Question:
    """What is asked, beside the table; the keywords of `estimate_effect`, of which it says what they mean."""

    graph: CausalGraph
    treatment: str
    outcome: str
    method: str = "auto"
    estimand: str = "ate"
    adjustment: tuple[str, ...] | None = None
    mediators: tuple[str, ...] = ()
    instrument: str = ""
    assume: str = ""
    family: str = "auto"
    contrast: tuple[float, float] | None = None
    degree: int = 1
    folds: int = 5
    seed: int = 0
    level: float = 0.95
    overlap: float = 0.01
    trim: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("method", ("auto", *METHODS)),
            ("estimand", KINDS),
            ("family", ("auto", *FAMILIES)),
            ("assume", ("", "linear")),
            ("degree", (1, 2)),
        ):
            if getattr(self, name) not in allowed:
                listed = ", ".join(repr(value) for value in allowed)
                raise MisuseError(f"{name}={getattr(self, name)!r}: expected one of {listed}.")
        if not 0 < self.level < 1:
            raise MisuseError(f"level={self.level}: expected a number between 0 and 1.")
        if not (0 <= self.trim < 0.5 and 0 <= self.overlap < 0.5):
            raise MisuseError(f"trim={self.trim}, overlap={self.overlap}: expected numbers in [0, 0.5).")
        if self.seed < 0:
            raise MisuseError(f"seed={self.seed}: expected 0 or more.")
        if self.folds < 2:
            raise MisuseError(f"folds={self.folds}: expected 2 or more.")
        if self.contrast is not None and not all(map(math.isfinite, self.contrast)):
            raise MisuseError(f"contrast={self.contrast}: expected two finite values of the treatment.")


def asked(graph: CausalGraph, treatment: str, outcome: str, **options: Any) -> Question:
    """The question; MisuseError for an option that there is not."""
    if odd := sorted(set(options) - set(Question.__dataclass_fields__)):
        raise MisuseError(f"There is no option {', '.join(odd)}; see estimate_effect.")
    for name in ("adjustment", "mediators"):
        if options.get(name) is not None:
            if isinstance(options[name], str):
                raise MisuseError(f"{name}={options[name]!r}: expected a sequence, such as ({options[name]!r},).")
            options[name] = tuple(options[name])
    return Question(graph, treatment, outcome, **options)


@dataclass(frozen=True)
class Plan:
    """How a question is going to be answered, before any row is seen. ADJUST waits for the treatment's kind."""

    method: str
    estimand: str
    why: tuple[str, ...]
    z: tuple[str, ...] = ()
    m: tuple[str, ...] = ()
    instruments: tuple[str, ...] = ()
    formula: Estimand | None = None
    implied: bool = False
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        formula = () if self.formula is None else sorted(self.formula.variables)
        return tuple(dict.fromkeys((*self.z, *self.m, *self.instruments, *formula)))


def planned(question: Question) -> Plan:
    if question.estimand in ("nde", "nie"):
        return _mediation_plan(question)
    if question.method == "mediation":
        raise MisuseError("method='mediation' is for estimand='nde' or 'nie'.")
    if question.adjustment is not None:
        return _own_adjustment(question, question.adjustment)
    if question.method == "2sls":
        return _instrument_plan(question)
    if question.method == "front-door":
        return _front_door_plan(question)
    try:
        found = identify(question.graph, question.treatment, question.outcome)
    except NotIdentifiable:
        directed = not question.graph.undirected
        if question.method == "auto" and question.assume == "linear" and directed and _instruments(question):
            return _instrument_plan(question)
        raise
    return _identified_plan(question, found)


def _identified_plan(question: Question, found: Estimand) -> Plan:
    graph, t, y = question.graph, question.treatment, question.outcome
    if question.method == "plug-in":
        return Plan("plug-in", str(found), found.why, formula=found)
    if found.method == "none":
        return _implied_plan(question, found)
    if found.method == "adjustment":
        method = ADJUST if question.method == "auto" else question.method
        return Plan(method, str(found), found.why, z=tuple(sorted(adjustment_set(graph, t, y))))
    if question.method in ADJUSTING:
        adjustment_set(graph, t, y)  # raises, with the reason
    if found.method == "front-door":
        return replace(_front_door_plan(question), estimand=str(found), why=found.why)
    return Plan("plug-in", str(found), found.why, formula=found)


def _implied_plan(question: Question, found: Estimand) -> Plan:
    z = adjustment_set(question.graph, question.treatment, question.outcome)  # raises if the outcome is a parent
    method = ADJUST if question.method == "auto" else question.method
    return Plan(method, str(found), found.why, z=tuple(sorted(z)), implied=True, notes=(NO_PATH,))


def _own_adjustment(question: Question, adjustment: tuple[str, ...]) -> Plan:
    if question.method not in ("auto", *ADJUSTING):
        raise MisuseError(
            f"adjustment is for {', '.join(ADJUSTING)}; method={question.method!r} has none: leave it out."
        )
    graph, t, y = question.graph, question.treatment, question.outcome
    if not is_adjustment_set(graph, t, y, adjustment):
        raise NotIdentifiable(
            f"By the graph, adjusting for {', '.join(adjustment) or 'nothing'} does not give the effect of {t} on {y}: "
            "it leaves a path open that is not causal, or takes in what follows from the treatment. Leave adjustment "
            "out to have a valid set chosen."
        )
    why = f"The graph allows to adjust for {', '.join(adjustment) or 'nothing'}, as was asked."
    method = ADJUST if question.method == "auto" else question.method
    return Plan(method, f"adjustment for {', '.join(adjustment) or 'nothing'}", (why,), z=adjustment)


def _front_door_plan(question: Question) -> Plan:
    graph, t, y = question.graph, question.treatment, question.outcome
    if question.mediators and not is_front_door_set(graph, t, y, question.mediators):
        raise NotIdentifiable(
            f"By the graph {', '.join(question.mediators)} is no front door from {t} to {y}: it misses a directed "
            "path, or is confounded. Leave mediators out to have a valid set looked for."
        )
    mediators = question.mediators or tuple(sorted(front_door_set(graph, t, y)))
    why = f"Front door through {', '.join(mediators)}: linear, so the effect is a sum of products of slopes."
    return Plan("front-door", f"Σ_m a_m b_m over m in {{{', '.join(mediators)}}}", (why,), m=mediators)


def _instruments(question: Question) -> tuple[Instrument, ...]:
    graph = question.graph
    return instruments(graph, question.treatment, question.outcome, assume=question.assume)


def _instrument_plan(question: Question) -> Plan:
    found = _instruments(question)
    if question.instrument:
        found = tuple(one for one in found if one.name == question.instrument)
    if not found:
        named = f"{question.instrument} is no instrument" if question.instrument else "There is no instrument"
        raise NotIdentifiable(
            f"{named} for the effect of {question.treatment} on {question.outcome} in this graph: one must move the "
            "treatment and be tied to the outcome through it alone, given what can be conditioned on."
        )
    given = min((one.given for one in found), key=lambda names: (len(names), sorted(names)))
    chosen = tuple(one.name for one in found if one.given == given)
    why = (
        f"{', '.join(chosen)} moves {question.treatment} and reaches {question.outcome} through it alone"
        f"{' given ' + ', '.join(sorted(given)) if given else ''}. "
        "Beyond the graph this takes linear effects, as assumed."
    )
    return Plan(
        "2sls", f"two-stage least squares by {', '.join(chosen)}", (why,), z=tuple(sorted(given)), instruments=chosen
    )


def _mediation_plan(question: Question) -> Plan:
    if question.method not in ("auto", "mediation"):
        raise MisuseError(f"estimand={question.estimand!r} goes with method='mediation', not {question.method!r}.")
    t, y = question.treatment, question.outcome
    closed, dag = checked(question.graph, t, y)
    if closed.undirected:
        a, b = min(closed.undirected)
        raise NotIdentifiable(
            f"Natural effects are asked of a graph with every direction known, and {a} - {b} has none: it decides what "
            "is between, and what is adjusted for. Declare its direction as knowledge, or ask for the ate."
        )
    m = frozenset(question.mediators) or proper_causal_nodes(dag, {t}, {y}) - {y}
    checked(question.graph, t, y, m)
    if not m:
        raise NotIdentifiable(
            f"No variable of the graph lies between {t} and {y}, so the whole effect is direct. Ask for the ate."
        )
    w = natural_effect_covariates(dag, t, y, m)
    why = (
        f"Given {', '.join(w) or 'nothing'}, no path is open between {t} and ({', '.join(sorted(m))}, {y}) that is not "
        f"causal, nor, given {t} too, between the mediators and {y}; nothing of it follows from {t}. Beyond the graph: "
        "no cause of a mediator's value under one setting is tied to the outcome's under the other."
    )
    between = ", ".join(sorted(m))
    formula = f"Σ_{{{', '.join([between, *w])}}} E[{y} | {t}, {', '.join([between, *w])}] P({between} | {t}'"
    formula += f", {', '.join(w)}) P({', '.join(w)})" if w else ")"
    return Plan("mediation", formula, (why,), z=w, m=tuple(sorted(m)))


def natural_effect_covariates(
    graph: CausalGraph, treatment: str, outcome: str, mediators: Collection[str]
) -> tuple[str, ...]:
    """Covariates that identify natural direct and indirect effects through ``mediators`` as a block, in a DAG or ADMG.

    W without descendants of the treatment, such that W blocks the back doors from treatment to (mediators, outcome),
    and (W, treatment) those from mediators to outcome (Pearl, Psychological Methods 19, 2014, assumption set A). It is
    looked for among the ancestors of all of them; NotIdentifiable if what is there does not do.
    """
    m = frozenset(mediators)
    ends = m | {treatment, outcome}
    w = graph.ancestors(ends) - graph.descendants(treatment) - ends
    first, second = mutilated(graph, out_of={treatment}), mutilated(graph, out_of=m)

    def serves(chosen: frozenset[str]) -> bool:
        return first.d_separated({treatment}, m | {outcome}, chosen) and second.d_separated(
            m, {outcome}, chosen | {treatment}
        )

    if not serves(w):
        raise NotIdentifiable(
            f"Natural effects of {treatment} on {outcome} through {', '.join(sorted(m))} are not identified by "
            "covariates: a common cause of treatment, mediators and outcome is unmeasured, or follows from the "
            "treatment. Measure it, or ask for the ate."
        )
    for name in sorted(w):
        if serves(w - {name}):
            w -= {name}
    return tuple(sorted(w))
