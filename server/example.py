"""One made-up record of a finished study, and what it would have been under another treatment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from causaldao.models.scm import NeuralSCM

_DRAWS, _SEED = 1000, 0
_ENDS = 0.1, 0.9


def example(model: NeuralSCM, effects: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A record drawn from the released model, so nobody's, and its counterfactual.

    The first effect's treatment is set to the tenth or the ninetieth of a hundred of its values in the model, whichever
    is further away; everything that does not descend from it stays (abduction, action, prediction). The record is the
    first of a fixed seed that lies within the study's bounds before and after, so nobody chose it. None if no effect
    was asked for, or no record of a thousand is such a one.
    """
    if not effects:
        return None
    treatment = effects[0]["treatment"]
    place = model.names.index(treatment)
    rows = model.sample(_DRAWS, None, torch.Generator().manual_seed(_SEED))
    rows = rows[_within(rows, model)]
    if not len(rows):
        return None
    low, high = torch.quantile(rows[:, place], torch.tensor(_ENDS, dtype=rows.dtype)).tolist()
    middle = (low + high) / 2
    for row in rows:
        chosen = low if float(row[place]) > middle else high
        changed = model.counterfactual(row[None], {treatment: chosen})
        if bool(_within(changed, model).all()):
            pairs = zip(model.names, row.tolist(), changed[0].tolist(), strict=True)
            variables = {name: {"drawn": was, "counterfactual": would} for name, was, would in pairs}
            return {"treatment": treatment, "value": chosen, "variables": variables}
    return None


def _within(rows: Tensor, model: NeuralSCM) -> Tensor:
    """(n,) whether each value of a row lies within its bounds."""
    inside: Tensor = ((rows - model.centre).abs() <= model.half_range * (1 + 1e-9)).all(dim=1)
    return inside
