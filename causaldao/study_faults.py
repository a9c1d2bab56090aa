"""What cannot stand together in a study, each with its remedy: all that no single key shows.

`causaldao.study` asks for it when a study is read, and tells every fault at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from causaldao.aggregation.rules import by_name
from causaldao.errors import MisuseError

if TYPE_CHECKING:
    from causaldao.study import AggregationSpec, EffectSpec, Study

_NEEDS = {
    "reference": "compares with an update that is trusted beforehand; in a study no member's is, and none that the "
    "coordinator made could be computed again by an auditor. Choose a rule that needs none, such as 'arc+caf'"
}  # what a rule may need and a study cannot give
_DIGITS, _MOST_POOLED = 24, 3 << 20  # bytes of a number in JSON, and of a pool's entry that leave room for the rest
MOST_TO_LACK = 60  # variables of a study whose members may lack some: what its pool is worth takes their sixth power
WAVED = ("waves", "width", "seed")  # settings of the Fourier map alone
ROBUST = ("method", "estimand", "overlap", "clip", "spread")  # keys of an effect that stand in no study without "aipw"


def faults(study: Study) -> list[str]:
    """Every fault of a study whose keys are right one by one; none if it can be run."""
    return [*_name_faults(study), *_range_faults(study)]


def _name_faults(study: Study) -> list[str]:
    names = set(study.names)
    faults = [] if len(names) == len(study.names) else [f"variable names must differ, but are {list(study.names)}"]
    used = {name for pair in (*study.knowledge.required, *study.knowledge.forbidden) for name in pair}
    used |= {name for environment in study.environments for name in environment.targets} | {*study.members.may_lack}
    for effect in study.effects:
        roles = [effect.treatment, effect.outcome, *(() if effect.adjustment == "auto" else effect.adjustment)]
        used |= set(roles)
        twice = sorted({name for name in roles if roles.count(name) > 1})
        if twice:
            faults.append(f"an effect gives {twice} two roles; treatment, outcome and adjustment must differ")
        faults += _method_faults(study, effect)
    unknown = sorted(used - names)
    return faults + ([f"{unknown} are not among the variables {sorted(names)}"] if unknown else [])


def _method_faults(study: Study, effect: EffectSpec) -> list[str]:
    """What an effect of this method cannot have."""
    asked = f"the effect of {effect.treatment} on {effect.outcome}"
    if effect.method == "moments":
        given = sorted(effect.model_fields_set & set(ROBUST) - {"method"})
        return [f'{asked} has {", ".join(given)}, which only method = "aipw" has'] if given else []
    if study.discovery.features != "identity":
        return [
            f'{asked} has method = "aipw", which reads evidence of numbers, but discovery.features is '
            f'{study.discovery.features!r}: leave it out, or take method = "moments"'
        ]
    kinds = [variable.kind for variable in study.variables if variable.name == effect.treatment]
    if kinds and kinds != ["binary"]:
        return [
            f'{asked} has method = "aipw", which compares two arms, but {effect.treatment!r} is {kinds[0]}: declare it '
            'binary, or take method = "moments"'
        ]
    return []


def _range_faults(study: Study) -> list[str]:
    split, faults = study.privacy.split, []
    total = split.evidence + split.training + split.evaluation + split.effects
    if abs(total - 1) > 1e-9:
        parts = "evidence + training + evaluation" + (" + effects" if split.effects else "")
        faults.append(f"privacy.split must sum to 1, but {parts} = {total:g}")
    if study.robust_effects and not split.effects:
        faults.append(
            'an effect has method = "aipw", for which each member releases noisy sums, but privacy.split.effects is 0: '
            'give it a share of epsilon, such as 0.3, and the others less, or take method = "moments"'
        )
    if split.effects and not study.robust_effects:
        faults.append(
            f'privacy.split.effects = {split.effects:g} is spent on effects of method = "aipw" alone, and there is '
            "none: give that share to another part"
        )
    if study.training.rounds and not (split.training > 0 and split.evaluation > 0):
        faults.append("training.rounds > 0 needs privacy.split.training and .evaluation above 0")
    faults += _aggregation_faults(study.aggregation)
    stretch = study.training.rate * study.training.proximal
    if stretch > 1:
        faults.append(
            f"training.proximal: rate × proximal = {stretch:g} must be at most 1, or a step overshoots the shared model"
        )
    if study.members.n_min > study.members.n_max:
        faults.append(f"members.n_min {study.members.n_min} exceeds n_max {study.members.n_max}")
    if len(study.variables) < 2:
        faults.append(f"variables: a study needs 2 at least to ask what causes what, but has {len(study.variables)}")
    faults += [*_feature_faults(study), *_declaration_faults(study), *_environment_faults(study)]
    faults += _local_faults(study) if study.local else []
    for variable in study.variables:
        low, high = variable.bounds
        if variable.kind == "binary" and (low, high) != (0, 1):
            faults.append(f"the binary variable {variable.name!r} needs bounds [0, 1], not [{low:g}, {high:g}]")
        if variable.kind == "count" and low < 0:
            faults.append(f"the count {variable.name!r} needs a lower bound of 0 or more, not {low:g}")
    return faults


def _feature_faults(study: Study) -> list[str]:
    """What features and restoration do not go with, each with its remedy."""
    spec, faults = study.discovery, []
    categorical = [v.name for v in study.variables if v.kind == "categorical"]
    if categorical and study.training.rounds:
        faults.append(
            f"training: the model takes numbers, and {categorical} are categorical: set training.rounds = 0 (with "
            "split = { evidence = 1.0, training = 0.0, evaluation = 0.0 })"
        )
    if asked := sorted({n for e in study.effects for n in (e.treatment, e.outcome)} & set(categorical)):
        faults.append(
            f"effects: {asked} are categorical, and an effect is that of one number on another: declare the level in "
            "question as a binary variable (a categorical one may be adjusted for)"
        )
    if spec.method == "moment-fit" and spec.features != "identity":
        faults.append(
            f"discovery.method 'moment-fit' fits one number for each variable, and features is {spec.features!r}: take "
            "boss, ges or pc"
        )
    given = [name for name in WAVED if getattr(spec, name) is not None]
    if given and spec.features != "fourier":
        faults.append(f"discovery: {given} are of features = 'fourier', not of {spec.features!r}: leave them out")
    return [*faults, *_restoration_faults(study)]


def _local_faults(study: Study) -> list[str]:
    """What a study of local ballots cannot have, each with its remedy: all that reads a pool, and there is none."""
    shared, faults = 'or take discovery.evidence = "shared"', []
    if study.training.rounds:
        faults.append(
            f'discovery.evidence = "local" pools nothing that a model could start from, and training.rounds = '
            f"{study.training.rounds}: set training.rounds = 0, {shared}"
        )
    if study.effects:
        faults.append(
            f'discovery.evidence = "local" pools nothing that an effect could be read from, and {len(study.effects)} '
            f"are asked for: leave [[effects]] out, {shared}"
        )
    if study.privacy.split.evidence < 1:
        faults.append(
            f'discovery.evidence = "local" spends all of epsilon on the ballot, and privacy.split.evidence is '
            f"{study.privacy.split.evidence:g}: set split = {{ evidence = 1.0, training = 0.0, evaluation = 0.0 }}"
        )
    if study.discovery.restore:
        faults.append(
            'discovery.restore: with evidence = "local" each member would decide by its own noisy means whether '
            f"anything is put back, and the graphs would be of different things: leave restore out, {shared}"
        )
    if study.aggregation.pool != "multi-krum":
        faults.append(
            f'aggregation.pool = {study.aggregation.pool!r}: with discovery.evidence = "local" nothing is pooled: '
            f"leave the key out, {shared}"
        )
    if study.consensus.threshold == 1 and study.consensus.faulty:
        faults.append(
            'consensus.threshold = 1: with discovery.evidence = "local" a single member that withholds its support '
            f"keeps out any mark, and faulty = {study.consensus.faulty}: take a threshold of 0.6 or so, or faulty = 0"
        )
    return faults


def _restoration_faults(study: Study) -> list[str]:
    spec, faults, whole = study.discovery, [], len(study.variables) + 1
    if not spec.restore:
        return []
    if spec.features != "identity":
        faults.append(f"discovery.restore: only numbers can be put back, and features is {spec.features!r}")
    if other := [v.name for v in study.variables if v.kind != "continuous"]:
        faults.append(
            f"discovery.restore: it holds for records that are elliptical around the centre of their bounds, which "
            f"{other} cannot be, being binary, counts or categorical: leave it out, or study the continuous variables"
        )
    if spec.clip is None or spec.clip >= whole:
        faults.append(
            f"discovery.restore: there is nothing to put back, for a clip of {whole} (the default) takes nothing: give "
            "a smaller clip, or leave restore out"
        )
    return faults


def _declaration_faults(study: Study) -> list[str]:
    """What goes with neither environments nor lacking variables: all that takes every member's records for alike."""
    asked = [
        *(["environments"] if study.environments else []), *(["members.may_lack"] if study.members.may_lack else []),
    ]  # fmt: skip
    if not asked:
        return []
    what, faults = " and ".join(asked), []
    if study.local:
        faults.append(
            f'{what}: they say how members\' evidence is compared, and with discovery.evidence = "local" none is: '
            'leave them out, or take discovery.evidence = "shared"'
        )
    if len(asked) == 2:
        faults.append(f"{what}: a study has one or the other; ask two studies, or only members who have every variable")
    if study.discovery.features != "identity":
        faults.append(f"{what}: evidence must be of numbers, and discovery.features is {study.discovery.features!r}")
    if study.discovery.restore:
        faults.append(f"{what}: what the clip took cannot be put back there; leave discovery.restore out")
    if study.training.rounds:
        faults.append(
            f"{what}: one model cannot be trained on records that are not alike: set training.rounds = 0 (with split = "
            "{ evidence = 1.0, training = 0.0, evaluation = 0.0 })"
        )
    if study.robust_effects:
        faults.append(f'{what}: an effect of method "aipw" takes all members\' records for alike: take "moments"')
    return [*faults, *_lack_faults(study)] if study.members.may_lack else faults


def _lack_faults(study: Study) -> list[str]:
    may, faults = study.members.may_lack, []
    if twice := sorted({name for name in may if may.count(name) > 1}):
        faults.append(f"members.may_lack: {twice} are named twice")
    if study.aggregation.pool == "sieve":
        faults.append(
            "members.may_lack: aggregation.pool 'sieve' compares whole matrices of evidence, which members who lack "
            "something do not have: take multi-krum"
        )
    if study.discovery.clip is not None and study.discovery.clip < len(study.variables) + 1:
        faults.append(
            "members.may_lack: records without a variable are shorter, so that a clip takes less of them and they are "
            "not like the others: leave discovery.clip out"
        )
    if len(study.variables) > MOST_TO_LACK:
        faults.append(
            f"members.may_lack: what the pool is worth is computed for {MOST_TO_LACK} variables at most, and the study "
            f"has {len(study.variables)}: take fewer, or invite only members who have every variable"
        )
    return faults


def _environment_faults(study: Study) -> list[str]:
    declared, faults = study.environments, []
    names = [environment.name for environment in declared]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"environments: {twice} are declared twice; each has one name and one list of targets")
    if twice := sorted({one.name for one in declared if len(set(one.targets)) < len(one.targets)}):
        faults.append(f"environments: {twice} name a target twice; name each once")
    if len(declared) == 1:
        faults.append(f"environments: {names[0]!r} is the only one; leave it out, or declare the others too")
    always = sorted(name for name in study.names if declared and all(name in one.targets for one in declared))
    if always:
        faults.append(
            f"environments: {always} are targets in every one, so that no evidence shows what causes them: declare one "
            "in which they are left alone, or leave them out"
        )
    observed = any(not environment.targets for environment in declared)
    if declared and study.effects and not observed:
        faults.append(
            "effects are those where nothing is acted on, and every environment has targets: declare one without, or "
            "leave the effects out"
        )
    if declared and study.discovery.interventions == "soft" and not observed:
        faults.append("discovery.interventions = 'soft' needs an environment without targets beside the others")
    if any(environment.targets for environment in declared) and study.discovery.method != "boss":
        faults.append(
            f"discovery.method = {study.discovery.method!r} knows nothing of interventions: take 'boss', or declare "
            "environments without targets, whose conditions only differ"
        )
    if declared and (size := (len(declared) + 1) * (len(study.names) + 1) ** 2 * _DIGITS) > _MOST_POOLED:
        faults.append(
            f"environments: {len(declared)} pools of {len(study.names)} variables take some {size >> 10} kB in one "
            f"entry of the ledger, and {_MOST_POOLED >> 10} is the most: declare fewer, or take fewer variables"
        )
    if not declared and "interventions" in study.discovery.model_fields_set:
        faults.append("discovery.interventions says what [[environments]] are, and there are none: leave it out")
    return faults


def _aggregation_faults(spec: AggregationSpec) -> list[str]:
    faults = []
    try:
        rule = by_name(spec.rule)
    except MisuseError as error:
        faults.append(f"aggregation.rule: {error}")
    else:
        faults += [f"aggregation.rule: {spec.rule!r} {_NEEDS[need]}" for need in sorted(rule.needs & set(_NEEDS))]
    try:
        spec.build()
    except MisuseError as error:
        faults.append(f"aggregation.optimiser: {error}")
    return faults
