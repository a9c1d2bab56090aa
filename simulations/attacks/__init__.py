"""Simulated liars: what attacks do, in two layers.

`CRAFTS` are the attacks on aggregation as pure functions on arrays, by an attacker who sees every honest update: the
strongest there are, for benchmarks of rules. `ATTACKS` act through the client, as a real one would: on its own rows
before the release, and on its own words before they are signed. So they run on every engine, with what a client knows.
"""

from __future__ import annotations

from causaldao.errors import MisuseError
from causaldao.signing import Tensors
from causaldao.simulations.attacks.conduct import Attack, Conduct, LyingNode, View
from causaldao.simulations.attacks.emulation import crafted, poisoned
from causaldao.simulations.attacks.graphs import forge_graph
from causaldao.simulations.attacks.malformed import MALFORMED
from causaldao.simulations.attacks.records import (
    deny_effect,
    deny_knowledge,
    flip_outcome,
    forge_rows,
    plant_trigger,
    shift_quietly,
)
from causaldao.simulations.attacks.sums import shift_sums
from causaldao.simulations.attacks.updates import CRAFTS, Craft, Pipeline, Sight

__all__ = [
    "ATTACKS", "CRAFTS", "Attack", "Conduct", "Craft", "LyingNode", "Pipeline", "Sight", "View", "attack",
    "flip_updates", "forge_rows", "shift_quietly",
]  # fmt: skip

_SCALE = -10.0  # of a flipped update: the plain mean of eight honest and two such points the wrong way
_TRAINING = frozenset({"update", "evaluation"})


def attack(name: str) -> Attack:
    """An attack by name; an unknown one is a MisuseError that lists the choices."""
    if name not in ATTACKS:
        raise MisuseError(f"There is no attack {name!r}; choose one of {', '.join(ATTACKS)}.")
    return ATTACKS[name]


def flip_updates(kind: str, tensors: Tensors) -> Tensors:
    """Send the update of the opposite direction, ten times as large."""
    if kind != "update":
        return tensors
    return {name: (_SCALE * array).astype(array.dtype) for name, array in tensors.items()}


_CRAFTED = {
    "sign-flip": "the honest step, backwards",
    "gaussian": "noise a hundred times as large as the honest updates",
    "zero": "updates of nothing",
    "large-norm": "the honest step backwards, a million times as long",
    "nan": "updates of NaN",
    "inf": "updates of infinities",
    "alie": "a little is enough: just inside the honest spread",
    "alie-optimised": "the same, as far out as moves the study's own rule most",
    "foe": "fall of empires: a little of the honest step, backwards",
    "foe-optimised": "the same, as strong as moves the study's own rule most",
    "min-max": "as far out as honest updates are from one another",
    "min-sum": "as far out as honest updates are from one another in sum",
    "mimic": "all liars send what one honest member would",
    "fang": "the directed deviation of Fang et al., adapted to the study's rule",
    "clip-history": "a drift that clipping leaves whole, the same in every round",
}

ATTACKS = {
    one.name: one
    for one in (
        Attack("forge", "forged rows and flipped updates: the demo's liars", forge_rows, flip_updates),
        Attack("forge-rows", "the treatment's effect reversed and strong, forged before the release", forge_rows),
        Attack("flip-updates", "updates of the opposite sign, ten times as large", tensors=flip_updates),
        Attack("quiet", "an effect shifted by 2.5 standard errors: within the noise", shift_quietly),
        Attack("label-flip", "the outcome mirrored in its bounds, in evidence and training", flip_outcome),
        *(
            Attack(name, summary, act=crafted(name), malformed=name in ("nan", "inf"))
            for name, summary in _CRAFTED.items()
        ),
        Attack("backdoor", "training on a trigger with the outcome at its bound", act=poisoned(plant_trigger)),
        Attack(
            "model-replacement", "the same, scaled so that a mean would take it for the model",
            act=crafted("model-replacement", plant_trigger),
        ),
        Attack(
            "collude", "one agreed story in evidence and ballots: nothing moves the outcome", deny_effect,
            knowledge=deny_knowledge,
        ),
        Attack("shift-sums", "honest evidence, then sums for an effect as if it were larger", act=shift_sums),
        Attack("drop-out", "silence from the first round of training on", silent=_TRAINING),
        Attack(
            "forge-graph", "a ballot with each link that the own rows do not show, and none that they do",
            act=forge_graph, local=True,
        ),
        *MALFORMED,
    )
}  # fmt: skip
