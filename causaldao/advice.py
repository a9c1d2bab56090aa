"""How to share ε between evidence and training: what each share would let the federation see, before anything is spent.

A correlation of two variables of variance v (scaled to [-1, 1]), read from n records with evidence noise σ, errs by
s = σ/(√2·n·v) through privacy and by 1/√n through sampling; a pool of K such members by √K less. Fisher's z of a
partial correlation ρ is found at the two-sided level α with chance p if atanh ρ ≥ (z_{1-α/2} + z_p)·√(1/n + s²).
v is not public, so it is taken as that of a variable whose standard deviation is a quarter of the width of its bounds;
clipping and conditioning, which both cost more, are left out. It is a guide to the order of size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import NormalDist

from causaldao.budget import plan
from causaldao.errors import BudgetError, MisuseError
from causaldao.study import Study

CHANCE = 0.9
DEVIATION = 0.25  # of the width of the bounds
_SHARES = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class View:
    """What a share of ε for the evidence buys.

    ``pool`` and ``member`` are the smallest correlations that the pool and one member's ballot find with chance
    `CHANCE`; ``pool`` is None in a study of local ballots. ``training`` is the noise multiplier of a training step,
    None in a study without training.
    """

    evidence: float
    pool: float | None
    member: float
    training: float | None


def view(study: Study, members: int, records: int) -> View:
    """What the study's own split buys, with ``members`` of ``records`` each.

    Raises
    ------
    MisuseError
        fewer than 1 member or 4 records.
    """
    if members < 1 or records < 4:
        raise MisuseError(f"{members} members of {records} records see nothing: give 1 member and 4 records at least.")
    planned = plan(study)
    noise = planned.evidence.noise_multiplier * study.encoding.clip
    variance = 1 / records + (noise / (math.sqrt(2) * records * (2 * DEVIATION) ** 2)) ** 2
    normal = NormalDist()
    reach = normal.inv_cdf(1 - study.consensus.level / 2) + normal.inv_cdf(CHANCE)
    return View(
        study.privacy.split.evidence,
        None if study.local else math.tanh(reach * math.sqrt(variance / members)),
        math.tanh(reach * math.sqrt(variance)),
        planned.training.noise_multiplier if planned.training else None,
    )


def views(study: Study, members: int, records: int) -> tuple[View, ...]:
    """What other shares would buy, the rest going to effects, training and evaluation in the study's proportion.

    A study that neither trains nor asks for an effect of method "aipw" has nothing to share: all of ε belongs to the
    evidence. A share that leaves the rest too little for any noise that may be drawn is left out.
    """
    if not study.training.rounds and not study.robust_effects:
        return (view(_resplit(study, 1.0), members, records),)
    found = []
    for share in _SHARES:
        with suppress(BudgetError):
            found.append(view(_resplit(study, share), members, records))
    return tuple(found)


def advised(found: Sequence[View], wanted: float) -> View | None:
    """The view of the smallest share for the evidence whose pool, or with local ballots whose single member, finds a
    correlation of ``wanted``; None if none does.

    Training takes what the evidence can spare: without the graph there is nothing to train.
    """
    return next((one for one in found if (one.member if one.pool is None else one.pool) <= wanted), None)


def _resplit(study: Study, share: float) -> Study:
    split, value = study.privacy.split, study.to_json()
    others = {"training": split.training, "evaluation": split.evaluation, "effects": split.effects}
    whole = sum(others.values())
    rest = {name: (1 - share) * part / whole if whole else 0.0 for name, part in others.items()}
    value["privacy"]["split"] = {"evidence": share, **rest}
    return Study.from_mapping(value)
