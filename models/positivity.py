"""Positivity: does every kind of row occur in each arm that an effect compares?

Without it no weighting can help, and a regression only extrapolates (Petersen et al., Statistical Methods in Medical
Research 21, 2012). Violations are named by their strata, near ones by the range of the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from causaldao.errors import DataError
from causaldao.models.nuisance import Floats

_LEVELS = 12  # a column with at most as many values is taken to define strata
_CHANCE = 1e-3  # an empty arm as unlikely as this, over all strata, is no accident
_CERTAIN = 1e-6  # a score nearer than this to 0 or 1 is one
_SHOWN = 5
NONE = ", none treated"  # how the words of a stratum end in which the treated are missing


@dataclass(frozen=True)
class Positivity:
    """What the scores P(t = 1 | z) say.

    range: the least and the largest; outside: rows whose score is nearer to 0 or 1, where it matters, than ``bound``;
    effective: Kish's effective rows (Σw)²/Σw² of the untreated and the treated arm under inverse weights.
    """

    range: tuple[float, float]
    bound: float
    outside: int
    effective: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "score_range": list(self.range),
            "bound": self.bound,
            "rows_outside": self.outside,
            "effective_rows": list(self.effective),
        }


def empty_strata(frame: pd.DataFrame, t: Floats, names: tuple[str, ...], treated_only: bool) -> list[str]:
    """The strata of the discrete columns among ``names``, in words, in which an arm that is needed has no row, where
    chance does not explain it."""
    discrete = [name for name in names if frame[name].nunique() <= _LEVELS]
    groups = [[name] for name in discrete] + ([discrete] if len(discrete) > 1 else [])
    found: list[str] = []
    for columns in groups:
        if not found:  # a joint stratum is news only if no single column tells it
            found = _empty(frame[columns], t, treated_only)
        elif len(columns) == 1:
            found += _empty(frame[columns], t, treated_only)
    return found


def require_arms(frame: pd.DataFrame, t: Floats, names: tuple[str, ...], treated_only: bool) -> None:
    """DataError naming the `empty_strata`."""
    if found := empty_strata(frame, t, names, treated_only):
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise DataError(
            f"Positivity is violated in {len(found)} stratum(s): there the treatment never varies, so nothing in the "
            "data says what the other choice would do. Leave these rows out (and say so), merge levels, "
            "or ask for another population (att).",
            problems=[*found[:_SHOWN], *more],
        )


def _empty(columns: pd.DataFrame, t: Floats, treated_only: bool) -> list[str]:
    share, names = float(t.mean()), [str(name) for name in columns.columns]
    values, place = np.unique(columns.to_numpy(dtype=np.float64), axis=0, return_inverse=True)
    rows, treated = np.bincount(place.ravel()), np.bincount(place.ravel(), weights=t)
    found = []
    for level, n, k in zip(values, rows, treated, strict=True):
        chance = (1 - share) ** n if k == 0 else share**n if k == n else 1.0
        if chance * len(rows) < _CHANCE and not (treated_only and k == 0):
            where = ", ".join(f"{name} = {value:g}" for name, value in zip(names, level, strict=True))
            found.append(f"{where}: {n} rows{NONE if k == 0 else ', all treated'}")
    return found


def require_scores(frame: pd.DataFrame, t: Floats, scores: Floats, names: tuple[str, ...], treated_only: bool) -> None:
    """DataError where a score is 0 or 1: a combination of columns tells the arm for certain."""
    certain = scores > 1 - _CERTAIN
    if not treated_only:
        certain |= scores < _CERTAIN
    if certain.any():
        apart = [told for name in names if (told := _apart(name, frame[name].to_numpy(dtype=np.float64), t))]
        raise DataError(
            f"Positivity is violated: in {int(certain.sum())} of {len(t)} rows the score P(treated | "
            f"{', '.join(names)}) is 0 or 1 (range [{scores.min():.3g}, {scores.max():.3g}]), so they have no "
            "counterpart in the other arm. Give trim=0.01 to answer for the rest, adjust for fewer columns if the "
            "graph allows, or ask for another population (att).",
            problems=apart,
        )


def _apart(name: str, column: Floats, t: Floats) -> str:
    treated, others = column[t == 1], column[t == 0]
    if treated.min() > others.max() or others.min() > treated.max():
        return (
            f"{name}: [{treated.min():g}, {treated.max():g}] among the treated, "
            f"[{others.min():g}, {others.max():g}] among the others"
        )
    return ""


def diagnose(t: Floats, scores: Floats, bound: float, treated_only: bool) -> Positivity:
    """The diagnostics of scores that are no violation."""
    outside = scores > 1 - bound
    if not treated_only:
        outside |= scores < bound
    w0 = (1 - t) * (scores / (1 - scores) if treated_only else 1 / (1 - scores))
    w1 = t if treated_only else t / scores
    effective = tuple(float(w.sum() ** 2 / (w**2).sum()) for w in (w0, w1))
    return Positivity(
        (float(scores.min()), float(scores.max())), bound, int(outside.sum()), (effective[0], effective[1])
    )
