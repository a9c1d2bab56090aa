"""Replies that no honest node would send: other shapes, no numbers, counts that were never counted, keys left out.

All are signed with a good key. A coordinator that takes one of them has no check there; one that ends the study over
one lets any member stop it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from causaldao.simulations.attacks.conduct import Attack, View, Words
from causaldao.study import Study

_HUGE = 2**62  # of a count: its square no longer fits, and its sum with another does not either
_CLAIM = 10**9  # examples that an update declares: in a weighted mean it would own the result


def _at(kind: str, change: Callable[[Words], Words]) -> Callable[[Study, View, Words], Words]:
    def act(study: Study, view: View, words: Words) -> Words:
        return change(words) if view.kind == kind else words

    return act


def _wrong_shape(words: Words) -> Words:
    body, tensors = words
    return body, {name: np.append(array, array[:1]) for name, array in tensors.items()}


def _no_tensors(words: Words) -> Words:
    return words[0], {}


def _no_keys(words: Words) -> Words:
    return {}, words[1]


def _declaring(count: int) -> Callable[[Words], Words]:
    def change(words: Words) -> Words:
        body: Mapping[str, Any] = {**words[0], "num_examples": count}
        return body, words[1]

    return change


def _counting(count: int) -> Callable[[Words], Words]:
    """Evidence whose first moment, the number of records times the lattice squared, is ``count``."""

    def change(words: Words) -> Words:
        body, tensors = words
        moments = tensors["moments"].copy()
        moments[0] = count
        return body, {**tensors, "moments": moments}

    return change


def _contrary(words: Words) -> Words:
    body, tensors = words
    return {**body, "votes": {key: -1 if vote == 1 else 1 for key, vote in body["votes"].items()}}, tensors


MALFORMED = tuple(
    Attack(name, summary, act=_at(kind, change), malformed=True)
    for name, summary, kind, change in (
        ("wrong-shape", "an update with one entry too many", "update", _wrong_shape),
        ("missing-tensors", "an update without its tensor", "update", _no_tensors),
        ("missing-keys", "an update that does not say of which model it is", "update", _no_keys),
        ("declared-count", "an update that claims 10⁹ examples", "update", _declaring(_CLAIM)),
        ("declared-negative", "an update that claims -1 examples", "update", _declaring(-1)),
        ("negative-count", "evidence of fewer records than none", "evidence", _counting(-_HUGE)),
        ("huge-count", "evidence of more records than there can be", "evidence", _counting(_HUGE)),
        ("false-ballots", "votes that do not follow from the own evidence", "ballot", _contrary),
    )
)
