"""Simulated liars. An attack acts through the client, as a real one would: on its own rows before the release, and on
its own tensors before they are signed. So it runs on every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from causaldao.client.node import Node, Table
from causaldao.errors import MisuseError
from causaldao.models.discovery.evidence import Floats, Variable
from causaldao.signing import Statement, Tensors
from causaldao.study import Study

_SCALE = -10.0  # of a flipped update: the plain mean of eight honest and two such points the wrong way
_SLOPE = 0.9  # of a forged effect, in scaled units: as strong as bounds allow without clipping
_QUIET = 2.5  # standard errors by which a quiet liar shifts its own effect: below any sane level of accusation


def _same_rows(frame: Table) -> Table:
    return frame


def _same_tensors(kind: str, tensors: Tensors) -> Tensors:
    return tensors


def _same_body(kind: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return body


@dataclass(frozen=True)
class Conduct:
    """How the owner of a simulated node treats its rows before they are read, and its words before they are signed."""

    rows: Callable[[Table], Table] = _same_rows
    tensors: Callable[[str, Tensors], Tensors] = _same_tensors
    body: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = _same_body


@dataclass
class LyingNode(Node):
    """A node whose owner has another conduct than the honest one. Its key is its own, so its signatures are good."""

    conduct: Conduct = field(default_factory=Conduct)

    @cached_property
    def table(self) -> Table:
        return self.conduct.rows(super().table)

    def reply(self, request: Statement, body: Mapping[str, Any], tensors: Tensors) -> bytes:
        said, carried = self.conduct.body(request.kind, body), self.conduct.tensors(request.kind, tensors)
        return super().reply(request, said, carried)


@dataclass(frozen=True)
class Attack:
    """How liars treat rows and tensors; each function is given the study, so that it knows what is asked."""

    name: str
    summary: str
    rows: Callable[[Study, pd.DataFrame], pd.DataFrame] = lambda study, frame: frame
    tensors: Callable[[str, Tensors], Tensors] = lambda kind, tensors: tensors

    def conduct(self, study: Study) -> Conduct:
        """The conduct of a node that attacks this study."""
        return Conduct(rows=lambda frame: self.rows(study, frame), tensors=self.tensors)


def attack(name: str) -> Attack:
    """An attack by name; an unknown one is a MisuseError that lists the choices."""
    if name not in ATTACKS:
        raise MisuseError(f"There is no attack {name!r}; choose one of {', '.join(ATTACKS)}.")
    return ATTACKS[name]


def forge_rows(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """Replace the outcome so that the effect of the study's first question is reversed,
    and as strong as bounds allow.
    """
    treatment, outcome = _asked(study)
    dose = _scaled(treatment, frame)
    sign = -1.0 if _slope(dose, _scaled(outcome, frame)) > 0 else 1.0
    return frame.assign(**{outcome.name: _natural(outcome, sign * _SLOPE * dose)})


def shift_quietly(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """Shift the outcome along the treatment against the true effect, by a few standard errors of the own estimate."""
    treatment, outcome = _asked(study)
    dose, answer = _scaled(treatment, frame), _scaled(outcome, frame)
    slope = _slope(dose, answer)
    error = answer.std() / (dose.std() * np.sqrt(len(frame)))
    shifted = answer - np.sign(slope) * _QUIET * error * (dose - dose.mean())
    return frame.assign(**{outcome.name: _natural(outcome, shifted)})


def flip_updates(kind: str, tensors: Tensors) -> Tensors:
    """Send the update of the opposite direction, ten times as large."""
    if kind != "update":
        return tensors
    return {name: (_SCALE * array).astype(array.dtype) for name, array in tensors.items()}


def _asked(study: Study) -> tuple[Variable, Variable]:
    if not study.effects:
        raise MisuseError("The study asks for no effect, so there is none to forge: add [[effects]] or take liars = 0.")
    effect = study.effects[0]
    return study.variable(effect.treatment).build(), study.variable(effect.outcome).build()


def _scaled(variable: Variable, frame: pd.DataFrame) -> Floats:
    values = variable.transformed(frame[variable.name].to_numpy(dtype=np.float64))
    return np.asarray((values - variable.centre) / variable.half, dtype=np.float64)


def _natural(variable: Variable, scaled: Floats) -> Any:
    values = variable.centre + variable.half * np.clip(scaled, -1.0, 1.0)
    natural = np.expm1(values) if variable.transform == "log1p" else values
    if variable.kind == "continuous":
        return np.clip(natural, *variable.bounds)
    # Rounding at random keeps the mean: rounding to the nearest would undo a shift that is smaller than a half.
    dither = np.random.default_rng(len(scaled)).random(len(scaled))
    return np.clip(np.floor(natural + dither), *variable.bounds)


def _slope(dose: Floats, answer: Floats) -> float:
    return float(np.cov(dose, answer)[0, 1] / dose.var())


ATTACKS = {
    one.name: one
    for one in (
        Attack("forge", "forged rows and flipped updates: the demo's liars", forge_rows, flip_updates),
        Attack("forge-rows", "the treatment's effect reversed and strong, forged before the release", forge_rows),
        Attack("flip-updates", "updates of the opposite sign, ten times as large", tensors=flip_updates),
        Attack("quiet", "an effect shifted by 2.5 standard errors: within the noise", shift_quietly),
    )
}
