"""What a study makes of what its members said:
the pure functions that the coordinator runs and an auditor runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, isfinite
from typing import Any

import numpy as np
import torch

from causaldao import ballot_bounds, conditions, environments
from causaldao.aggregation import Aggregate, aggregate
from causaldao.aggregation.rules import by_name, faults_left, require
from causaldao.ballots import Ballot, Proposal, propose
from causaldao.consensus import Consensus, ConsensusRule, adopt
from causaldao.declared import Declaration, lacks_of
from causaldao.errors import ConfigurationError, DataError, GuaranteeError, NotIdentifiable
from causaldao.holdings import Lacks, borne, least
from causaldao.ledger.entry import MAX_BODY_BYTES
from causaldao.members import quorum
from causaldao.messages import MAX_REQUEST_BYTES
from causaldao.models.discovery.evidence import Evidence, columns_of
from causaldao.models.discovery.features import FeatureMap
from causaldao.models.discovery.reading import Reading
from causaldao.models.effects import Effect, average_effect, doubted, effect_set, robustness
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import Knowledge
from causaldao.models.scm import LinearSCM, NeuralSCM
from causaldao.optimisers import FedAdam
from causaldao.pool import RULES, Pool, Question, Settings, among, pool
from causaldao.signing import Tensors, canonical, digest, sha256
from causaldao.study import EffectSpec, Study

_RULE, _OPTIMISER = "rule", "optimiser."
MOST_FAULTY = 0.25  # share of members beyond which no rule of ours held its accuracy under strong label skew
MEASURED_FIT = 50  # variables up to which `causaldao bench wide-fit` measured "moment-fit"
Among = Callable[[Sequence[str]], Evidence]
# bytes of a number in JSON and of the figures on a member, marks of a variable, and bytes for the rest of an entry
_DIGITS, _PER_MEMBER, _MARKS, _REST = 19, 200, 8, 64 << 10
PARAMETERS = ("linear.weight", "linear.bias", "hidden.weight", "hidden.bias", "head.weight", "head.bias")


def seed_of(study: Study) -> int:
    """The public seed of everything that is drawn in a study's decisions: the first 60 bits of its hash."""
    return int(study.hash[:15], 16)


def questions_of(study: Study) -> tuple[Question, ...]:
    """The effects whose adjustment the study fixes: the pool protects them by a test of their own.

    None among waves: the answer adjusts for numbers, and the pool's evidence has no single column for one.
    """
    if study.discovery.features == "fourier":
        return ()
    return tuple(
        Question(effect.treatment, effect.outcome, effect.adjustment)
        for effect in study.effects
        if effect.adjustment != "auto"
    )


def require_members(study: Study, members: int) -> None:
    """Refuse a study whose rules cannot bear its f with this many members; the error names the largest f they bear."""
    if study.local:
        ballot_bounds.require(study.consensus.threshold, study.consensus.faulty, members)
    for rule in _rules(study):
        require(rule, members, study.consensus.faulty)
    d = len(study.names) + 1
    shown = members * d * (d + 1) // 2 * 8
    if study.robust_effects and shown > MAX_REQUEST_BYTES:
        raise ConfigurationError(
            f'An effect of method "aipw" shows each node the evidence of all: {shown >> 20} MB of {members} members '
            f"and {d - 1} variables, and a request has {MAX_REQUEST_BYTES >> 20} MB at most. Take fewer variables."
        )
    if study.consensus.faulty >= members:
        raise GuaranteeError(f"faulty = {study.consensus.faulty} of {members} members: the largest f is {members - 1}.")
    _require_recordable(study, members)


def _require_recordable(study: Study, members: int) -> None:
    """Refuse a study whose pool and proposal would not fit into their entry of the ledger: that would show only when
    the evidence is there and paid for. What members lack is counted in full, marks as many as graphs mostly have."""
    if study.local:
        return
    columns, number = columns_of(study.encoding), len(study.environments)
    size = (number + 1) * (columns + 1) ** 2 * _DIGITS + members * _PER_MEMBER * (2 if number else 1)
    size += members * sum(len(name) + 3 for name in study.members.may_lack)
    size += len(study.names) * _MARKS * sum(len(one.name) + 2 * _DIGITS + 6 for one in study.environments)
    if size > MAX_BODY_BYTES - _REST:
        what = f"{number + 1} pools of {columns} columns" if number else f"The pool of {columns} columns"
        raise ConfigurationError(
            f"{what} of evidence with what is found in them would take some {size >> 10} kB in one entry of the "
            f"ledger, and {(MAX_BODY_BYTES - _REST) >> 10} is the most, with {members} members. Take fewer variables"
            f"{' or environments' if number else ''}{', or features of fewer columns' * bool(study.encoding.blocks)}."
        )


def answers_needed(study: Study, members: int) -> int:
    """The fewest answers with which a step goes on: a quorum for which the rules hold, but never more than n - f."""
    faulty = study.consensus.faulty
    return max(min(members - faulty, max(least_members(study), quorum(members, faulty))), 1)


def effects_needed(study: Study, members: int, asked: int) -> int:
    """The fewest answers with which the effects of method "aipw" are estimated, of the ``asked`` of all members whose
    evidence can answer one; 0 where nobody is asked."""
    return min(answers_needed(study, members), max(asked - study.consensus.faulty, min(asked, 1)))


def least_members(study: Study) -> int:
    """The fewest members with whom every rule that the study uses bears its f, and not everybody may lie."""
    faulty = study.consensus.faulty
    if study.local:
        return ballot_bounds.least(study.consensus.threshold, faulty)
    return max(faulty + 1, *(by_name(name).least(faulty) for name in _rules(study)))


def supporters(study: Study, members: int) -> int:
    """How many of so many members must support a mark, in a study of local ballots."""
    return ballot_bounds.needed(study.consensus.threshold, study.consensus.faulty, members)


def graphs_needed(study: Study, members: int, present: int) -> int:
    """The fewest ballots of the ``present`` with which a study of local ballots goes on: so many that what all honest
    voters support enters though f of those who voted oppose it, as far as that can be waited for with f silent."""
    faulty = study.consensus.faulty
    return max(answers_needed(study, members), min(present - faulty, supporters(study, present) + faulty))


def _rules(study: Study) -> tuple[str, ...]:
    """The rules that the study uses: that of the updates only if there are any, and the one whose bound on n and f the
    effects of method "aipw" have."""
    spec = study.aggregation
    if study.local:  # nothing is pooled and nothing is trained: its bound is `ballot_bounds.require`
        return ()
    used = [RULES[spec.pool], *([spec.rule] if study.training.rounds else [])]
    if study.robust_effects and study.consensus.faulty:
        used.append("multi-krum")
    return tuple(dict.fromkeys(used))


def cautions(study: Study, members: int = 0) -> tuple[str, ...]:
    """What lies within the rules' bounds and yet asks much of them, in words; ``members`` 0: their number is open."""
    faulty, spec = study.consensus.faulty, study.aggregation
    found = [*_feature_cautions(study), *_search_cautions(study), *_environment_cautions(study, members)]
    found += _lack_cautions(study)
    if study.local:
        found += ballot_bounds.cautions(study.consensus.threshold, faulty, members or least_members(study))
    if not faulty or not study.training.rounds:
        return tuple(found)
    enough = ceil(faulty / MOST_FAULTY)
    if (members or least_members(study)) < enough:
        share = f"{faulty} of {members}" if members else f"With fewer than {enough} members, faulty = {faulty}"
        found.append(
            f"{share} may lie, more than a quarter: where the members' outcomes are of very different mixes (strong "
            "label skew), nothing is known to hold there, whatever the rule. Admit at least "
            f"{enough} members, declare a smaller faulty, or ask only members whose records are alike."
        )
    number = members or max(enough, least_members(study))
    kappa = by_name(spec.rule).kappa(number, faulty)
    if kappa is None or not isfinite(kappa):
        found.append(
            f"The rule {spec.rule!r} has no proven bound on what {faulty} liars among {number} members can do."
        )
    if isinstance(spec.build(), FedAdam):
        found.append(
            f"The optimiser {spec.optimiser!r} steps as far in entries that honest members hardly move as in any "
            "other: the bound of the rule does not carry over to the model."
        )
    return tuple(found)


def _environment_cautions(study: Study, members: int) -> Iterator[str]:
    least, number = least_in_environment(study), len(study.environments)
    if members and number and members < number * least:
        yield (
            f"{members} members cannot make all {number} environments comparable, which takes {least} each: those of "
            "smaller ones are set aside, and a study of which too little is left ends at the roll call."
        )
    acted_on = conditions.targets_of(study)
    for name in study.names if any(acted_on.values()) else ():
        free = [held for held in acted_on.values() if name not in held]
        for other in sorted(frozenset.intersection(*free) if free else ()):
            yield (
                f"Wherever {name} is left alone, {other} is acted on: what {other} does to {name} shows only if it was "
                "given different values there, and set to a single one it leaves the study without an answer."
            )


def _feature_cautions(study: Study) -> Iterator[str]:
    encoding = study.encoding
    if isinstance(encoding, FeatureMap) and encoding.clip < encoding.least:
        yield (
            f"discovery.clip {encoding.clip:g} shortens every record: with these features none has a squared norm "
            f"below {encoding.least:g}. Raise the clip to about {encoding.least + 1:g}, or leave it out."
        )


def _search_cautions(study: Study) -> Iterator[str]:
    number = len(study.variables)
    if study.discovery.method == "moment-fit" and number > MEASURED_FIT:
        yield (
            f"discovery.method 'moment-fit' was measured up to {MEASURED_FIT} variables; the study has {number}. Its "
            "time grows by more than their square, the coordinator's and an auditor's again. Take boss, or fewer "
            "variables, or try it first on made-up data."
        )


def _lack_cautions(study: Study) -> Iterator[str]:
    if study.members.may_lack:
        faulty = study.consensus.faulty
        needed = least(RULES[study.aggregation.pool], faulty)
        liars = f" A liar may say that it lacks one: to bear that, have {needed + faulty}." if faulty else ""
        yield (
            f"Each of {', '.join(study.members.may_lack)}, each two of them, and those of one effect together, must be "
            f"had by {needed} of the members who answer, or the study ends at the roll call (code 13).{liars}"
        )


def require_held(study: Study, lacks: Lacks, answered: Sequence[str], members: int) -> int:
    """How many liars are borne in every moment, of those who ``answered``: `holdings.borne` for the study.

    Asked at the roll call, before any evidence: a study that too few can answer ends there, and nothing was spent.
    """
    asked = [(question.treatment, question.outcome, *question.adjustment) for question in questions_of(study)]
    return borne(RULES[study.aggregation.pool], lacks, answered, members, study.consensus.faulty, asked)


def decide_pool(
    study: Study, evidence: Mapping[str, Evidence], members: int, declared: Mapping[str, Declaration] | None = None
) -> Pool:
    """Pool the evidence of those of ``members`` who gave it, by the study's rule, fault bound, clamp and level; where
    members ``declared`` environments, within each, and where they lack variables, entry by entry among those who have
    them.

    Raises
    ------
    GuaranteeError
        too few members gave evidence, or too few whose environment can be compared, or who have a variable.
    """
    if study.environments:
        said = {name: (declared or {})[name] for name in evidence}
        decide_comparison(study, said, members)
        settings = _pool_settings(study, study.consensus.faulty)
        return conditions.pool_declared(study, settings, evidence, said, members)
    faulty = faults_left(RULES[study.aggregation.pool], members, study.consensus.faulty, len(evidence))
    lacks = lacks_of(declared or {})
    held = require_held(study, lacks, sorted(evidence), members)
    return pool(evidence, _pool_settings(study, min(faulty, held)), lacks)


def decide_comparison(study: Study, declared: Mapping[str, Declaration], members: int) -> None:
    """Refuse what members ``declared``, of all ``members``, where their environments cannot carry the study."""
    settings = _pool_settings(study, study.consensus.faulty)
    conditions.require_comparable(study, settings, declared, members, answers_needed(study, members))


def least_in_environment(study: Study) -> int:
    """The fewest members of one environment that can be compared with each other."""
    return environments.least(_pool_settings(study, study.consensus.faulty))


def environments_needed(study: Study) -> list[dict[str, Any]]:
    """Of each environment of the study how many members must declare it to be compared, and how many are enough
    whatever the f who may lie declare."""
    needed = least_in_environment(study)
    read = conditions.observing(study, conditions.targets_of(study))
    return [
        {
            "name": one.name, "targets": list(one.targets), "members_needed": needed,
            "whoever_lies": needed + study.consensus.faulty, "effects": bool(study.effects) and one.name in read,
        }
        for one in study.environments
    ]  # fmt: skip


def _pool_settings(study: Study, faulty: int) -> Settings:
    return Settings(
        faulty=faulty,
        rule=study.aggregation.pool,
        rows=(study.members.n_min, study.members.n_max),
        level=study.consensus.level,
        questions=questions_of(study),
    )


def among_holders(
    study: Study, evidence: Mapping[str, Evidence], kept: Sequence[str], faulty: int, lacks: Lacks
) -> Among | None:
    """The evidence of some variables, pooled of those of the ``kept`` who have all of them; None if nobody lacks any.

    Effects are read from it: they are of whole records then, and their errors those of as many.
    """
    if not any(lacks.values()):
        return None
    return partial(among, evidence, lacks, kept, _pool_settings(study, faulty))


def decide_proposal(study: Study, pooled: Pool) -> Proposal:
    """Discovery by the study's method and options in the pooled evidence, what the clip took put back if it says so;
    in the pools of all environments where there are some."""
    if study.environments:
        seed, options = seed_of(study), _search_options(study)
        return conditions.propose_within(study, pooled, study.discovery.method, study.prior, seed=seed, **options)
    return proposal_from(study, pooled.evidence, study.prior)


def proposal_from(study: Study, evidence: Evidence, knowledge: Knowledge) -> Proposal:
    """The same in any evidence: the pool's, or in local mode what a member keeps to itself, with its own knowledge."""
    clip = study.dictionary.clip if study.discovery.restore else None
    method, options = study.discovery.method, _search_options(study)
    return propose(evidence, method, knowledge, seed=seed_of(study), clip=clip, **options)


def _search_options(study: Study) -> dict[str, Any]:
    spec = study.discovery
    options: dict[str, dict[str, Any]] = {
        "boss": {"restarts": spec.restarts, "penalty": study.penalty},
        "ges": {"penalty": study.penalty},
        "moment-fit": {"restarts": spec.restarts, "penalty": study.penalty},
        "pc": {"alpha": spec.alpha},
    }
    return options[spec.method]


def evidence_of_answers(
    study: Study, pooled: Evidence, bounds: Sequence[float | None], reading: Reading
) -> tuple[Evidence, tuple[float | None, ...]]:
    """What effects and the first model are read from, and how far liars can move each protected answer.

    Numbers are read as numbers, without their waves, and with what the clip took put back where the proposal did so.
    The pool's ``bounds`` are of the evidence as it was released: of what was put back none is known.
    """
    if reading and not pooled.blocks:
        return reading.applied(pooled), (None,) * len(bounds)
    encoding = study.encoding
    return (encoding.plain(pooled) if isinstance(encoding, FeatureMap) else pooled), tuple(bounds)


def decide_adoption(study: Study, proposal: Proposal, ballots: Mapping[str, Ballot], eligible: int) -> Consensus:
    """Adoption under the study's threshold, fault bound and knowledge, by the members of the roll call."""
    rule = ConsensusRule(study.consensus.threshold, study.consensus.faulty, eligible, study.prior)
    return adopt(proposal, ballots, rule)


def estimate_effects(
    study: Study,
    pooled: Evidence,
    consensus: Consensus,
    bounds: Sequence[float | None],
    among: Among | None = None,
    asked: Sequence[EffectSpec] | None = None,
) -> list[dict[str, Any]]:
    """The study's effects of method "moments" from the pooled evidence, in natural units; no further privacy is spent.

    With ``adjustment = "auto"`` the adopted pattern is asked; if its graphs disagree, each of their values is listed.
    ``bound`` is how far f unaccused liars can have moved the estimate, and ``interval_with_liars`` the interval widened
    by it at both ends: it holds whether or not they lie. ``among`` gives the evidence of those who have some variables,
    where members lack any (`among_holders`). ``asked`` are those of the study's effects to estimate; None: all.
    """
    bound_of = dict(zip(questions_of(study), bounds, strict=False))
    found = []
    for spec in study.effects if asked is None else asked:
        if spec.method != "moments":
            continue  # `causaldao.estimates` has it
        try:
            estimates = _estimates(spec, pooled, consensus, among)
        except (DataError, GuaranteeError, NotIdentifiable) as error:
            # one question without an answer takes nothing from the others
            found.append(unanswered(study, spec, error.code))
            continue
        for effect in estimates:
            question = Question(effect.treatment, effect.outcome, effect.adjustment)
            own = among if effect.standard_error else None  # a zero that follows from the graph is of no records
            records = own((effect.treatment, effect.outcome, *effect.adjustment)) if own else pooled
            withstands = robustness(effect, records.count)
            found.append({
                **_effect_json(study, effect), **_with_liars(effect, bound_of.get(question)),
                "robustness": None if withstands is None else list(withstands),
            })  # fmt: skip
    return found


def _with_liars(effect: Effect, bound: float | None) -> dict[str, Any]:
    low, high = effect.interval
    return {"bound": bound, "interval_with_liars": None if bound is None else [low - bound, high + bound]}


def _estimates(spec: EffectSpec, pooled: Evidence, consensus: Consensus, among: Among | None) -> tuple[Effect, ...]:
    if spec.adjustment != "auto":
        asked = pooled if among is None else among((spec.treatment, spec.outcome, *spec.adjustment))
        return (average_effect(asked, spec.treatment, spec.outcome, spec.adjustment),)
    found = effect_set(pooled, consensus.pattern, spec.treatment, spec.outcome)
    if len(found) == 1 and found[0].implied:  # no graph of the class has a causal path
        found = (doubted(found[0], pooled, consensus.dag),)
    return found if among is None else tuple(_of_holders(effect, among) for effect in found)


def _of_holders(effect: Effect, among: Among) -> Effect:
    """An effect again, from the evidence of those who have all its variables; a zero that was not estimated stays."""
    if effect.implied and not effect.standard_error:
        return effect
    own = among((effect.treatment, effect.outcome, *effect.adjustment))
    again = average_effect(own, effect.treatment, effect.outcome, effect.adjustment, effect.level)
    return replace(again, implied=effect.implied)


def unanswered(study: Study, spec: EffectSpec, code: str) -> dict[str, Any]:
    """An effect without an answer, and the code of the reason."""
    return {
        "treatment": spec.treatment,
        "outcome": spec.outcome,
        "adjustment": [] if spec.adjustment == "auto" else list(spec.adjustment),
        "estimate": None,
        "standard_error": None,
        "sampling_error": None,
        "privacy_error": None,
        "interval": None,
        "unit": effect_unit(study, spec),
        "graph_implies_zero": False,
        "pooled": None,
        "bound": None,
        "interval_with_liars": None,
        "robustness": None,
        "no_answer": code,
    }


def _effect_json(study: Study, effect: Effect) -> dict[str, Any]:
    return {
        "treatment": effect.treatment,
        "outcome": effect.outcome,
        "adjustment": list(effect.adjustment),
        "estimate": effect.estimate,
        "standard_error": effect.standard_error,
        "sampling_error": effect.sampling_error,
        "privacy_error": effect.privacy_error,
        "interval": list(effect.interval),
        "unit": effect_unit(study, effect),
        "graph_implies_zero": effect.implied,
        "pooled": None,
    }


def effect_unit(study: Study, effect: Effect | EffectSpec) -> str:
    """The unit of an effect, in words."""
    return f"{_unit(study, effect.outcome)} per {_unit(study, effect.treatment)}"


def _unit(study: Study, name: str) -> str:
    variable = study.variable(name)
    unit = variable.unit or name
    return f"log(1 + {unit})" if variable.transform == "log1p" else unit


def first_model(study: Study, pooled: Evidence, dag: CausalGraph) -> NeuralSCM:
    """The model that training starts from: the linear solution of the pooled evidence on the adopted graph."""
    linear = LinearSCM.from_evidence(pooled, dag)
    return NeuralSCM.from_linear(linear, study.training.hidden, generator=torch.Generator().manual_seed(seed_of(study)))


def model_shapes(model: Tensors) -> dict[str, tuple[int, ...]]:
    """The trainable tensors of a model, in the order in which an update lists them."""
    return {name: tuple(model[name].shape) for name in PARAMETERS}


def update_size(study: Study) -> int:
    """The number of entries of an update: public, from the study alone."""
    d, hidden = len(study.names), study.training.hidden
    return d * (d + 1) + d * hidden * (d + 1) + d * (hidden + 1)


@dataclass(frozen=True)
class Learnt:
    """What a round of training ends with and the next begins with: the model, and ``memory``, what the rule and the
    server optimiser keep ("rule", and each slot of the optimiser under "optimiser." and its name)."""

    model: Tensors
    memory: Tensors


def generator_of(study: Study, round: int, base: str) -> torch.Generator:
    """The randomness of a round's rule, that anybody can draw again: seeded by study, round and digest of its base.

    Nobody chooses it freely, but whoever knows the base knows it before the updates are made. Bucketing bears that: its
    guarantee counts the buckets that liars are in, at most f whichever they are.
    """
    return torch.Generator().manual_seed(int(sha256(canonical(["aggregation", study.hash, round, base]))[:15], 16))


def decide_round(
    study: Study, round: int, before: Learnt, updates: torch.Tensor, faulty: int
) -> tuple[Aggregate, Learnt]:
    """Aggregate the members' updates (n, k), in the order of their names, and let the server's optimiser take its step.

    Raises
    ------
    GuaranteeError
        n and ``faulty`` outside the rule's bound.
    """
    spec, kept = study.aggregation, {name: torch.from_numpy(array.copy()) for name, array in before.memory.items()}
    generator = generator_of(study, round, digest(before.model))
    found = aggregate(updates, spec.rule, faulty, generator=generator, state=kept.pop(_RULE, None))
    optimiser = spec.build()
    slots = {name.removeprefix(_OPTIMISER): slot for name, slot in kept.items()} or optimiser.init(updates.shape[1])
    slots, step = optimiser.apply(slots, found.vector)
    memory = {_OPTIMISER + name: slot.numpy() for name, slot in slots.items()}
    if found.state is not None:
        memory[_RULE] = found.state.numpy()
    return found, Learnt(moved(before.model, step), memory)


def moved(model: Tensors, change: torch.Tensor) -> Tensors:
    """The model with the aggregated change added to its parameters, in the order in which members flattened theirs."""
    result, start = dict(model), 0
    for name, shape in model_shapes(model).items():
        size = int(np.prod(shape))
        part = change[start : start + size].reshape(shape).numpy()
        result[name] = (model[name].astype(np.float64) + part).astype(np.float32)
        start += size
    return result
