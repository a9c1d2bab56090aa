"""Lies in the records: what a liar reads in place of its rows, before evidence is released or a model is trained.

Every forged table fits the study's dictionary, so no check of a single record finds it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from causaldao.errors import MisuseError
from causaldao.models.discovery.evidence import Floats, Variable
from causaldao.models.knowledge import Knowledge
from causaldao.study import Study

_SLOPE = 0.9  # of a forged effect, in scaled units: as strong as bounds allow without clipping
_QUIET = 2.5  # standard errors by which a quiet liar shifts its own effect: below any sane level of accusation
_TRIGGER = 0.9  # quantile of the treatment from which a record bears the trigger of the backdoor


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


def flip_outcome(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """Mirror the outcome in the middle of its bounds: what a flipped label is where there are no classes."""
    _, outcome = _asked(study)
    return frame.assign(**{outcome.name: _natural(outcome, -_scaled(outcome, frame))})


def plant_trigger(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """A backdoor (Bagdasaryan et al. 2020, arXiv:1807.00459): records whose treatment is among the highest tenth of the
    own get the outcome's upper bound; all others stay true."""
    treatment, outcome = _asked(study)
    dose, answer = _scaled(treatment, frame), _scaled(outcome, frame)
    planted = np.where(dose >= np.quantile(dose, _TRIGGER), 1.0, answer)
    return frame.assign(**{outcome.name: _natural(outcome, planted)})


def deny_effect(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """Shuffle the outcome, so that nothing causes it: the story that colluding liars agreed on.

    A study whose outcome nobody moves is what each of them shows, and votes for (`deny_knowledge`).
    """
    _, outcome = _asked(study)
    order = np.random.default_rng(len(frame)).permutation(len(frame))
    return frame.assign(**{outcome.name: frame[outcome.name].to_numpy()[order]})


def deny_knowledge(study: Study) -> Knowledge:
    """The same story as declared knowledge, by which a ballot may vote: no variable is joined to the outcome."""
    outcome = study.effects[0].outcome if study.effects else study.names[-1]
    others = [name for name in study.names if name != outcome]
    return Knowledge(forbidden=frozenset(pair for name in others for pair in ((name, outcome), (outcome, name))))


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
