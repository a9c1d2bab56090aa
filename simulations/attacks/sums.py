"""Lies in the sums that effects of method "aipw" are estimated from: evidence, ballots and updates stay honest."""

from __future__ import annotations

import numpy as np

from causaldao.models.nuisance import Integers
from causaldao.models.summaries import LATTICE
from causaldao.simulations.attacks.conduct import View, Words
from causaldao.study import Study

_SHIFT = 0.05  # of the bound on an influence value: about a fifth of the values' spread


def shift_sums(study: Study, view: View, words: Words) -> Words:
    """Answer for an effect as if it were larger, on one's own noisy sums."""
    if view.kind != "effects":
        return words
    body, tensors = words
    return body, {name: shifted(array, len(view.node.table)) for name, array in tensors.items()}


def shifted(sums: Integers, count: int) -> Integers:
    """Sums (k, 3) of ``count`` records as they would be if each record's influence value were larger by `_SHIFT` of its
    bound, squares and all, so that they add up; a row of zeros, of an effect that is not asked, stays."""
    moved, asked = sums.copy(), sums.any(axis=1)
    total = sums[asked, 0]
    moved[asked, 0] += round(_SHIFT * count * LATTICE)
    moved[asked, 1] += np.rint(_SHIFT * total + _SHIFT**2 * count * LATTICE / 2).astype(moved.dtype)
    return moved
