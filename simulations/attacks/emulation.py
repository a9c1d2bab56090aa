"""What a client can know of the others, so that the attacks on aggregation run from a client too.

A liar does not see the others' updates, and liars share nothing while the study runs: each may be a process of its own.
But a liar has records much like the others', and the model that all are sent. So it trains on bootstrap samples of its
own rows, with noise as an honest node draws it, takes what comes out for the updates of honest members, and crafts its
own against them and against the study's rule. What it misses is how members differ in truth: the attacks of
`causaldao.simulations.attacks.updates` are the stronger for knowing that.

Liars agree before the study: all draw from one stream, named by study and round, and each takes the row that its name
falls on. What a liar remembers between rounds stands in its own folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load, save
from torch import Tensor

from causaldao.aggregation import aggregate
from causaldao.aggregation.rules import by_name
from causaldao.client.training import Momentum, averaged
from causaldao.decisions import model_shapes
from causaldao.signing import Tensors, canonical, sha256
from causaldao.simulations.attacks.conduct import View, Words
from causaldao.simulations.attacks.updates import CRAFTS, Pipeline, Sight
from causaldao.study import Study

_MEMORY = "liar-{study}-{round:05d}.safetensors"
_LEAST = 3  # emulated members: fewer have no spread worth the name
Poison = Callable[[Study, pd.DataFrame], pd.DataFrame]


def crafted(name: str, poison: Poison | None = None) -> Callable[[Study, View, Words], Words]:
    """The attack ``name`` of `updates.CRAFTS` as a client can carry it out; it touches updates and nothing else.

    With ``poison`` the liar's own training, which some attacks go by, is on rows that were poisoned.
    """

    def act(study: Study, view: View, words: Words) -> Words:
        if view.kind != "update":
            return words
        body, tensors = words
        return body, {key: _row(name, poison, study, view, array) for key, array in tensors.items()}

    return act


def poisoned(poison: Poison) -> Callable[[Study, View, Words], Words]:
    """The update of a node whose training rows are poisoned; its evidence and its votes stay honest."""

    def act(study: Study, view: View, words: Words) -> Words:
        if view.kind != "update":
            return words
        body, tensors = words
        return body, {key: _trained(study, view, poison).astype(array.dtype) for key, array in tensors.items()}

    return act


def _row(name: str, poison: Poison | None, study: Study, view: View, honest: np.ndarray) -> np.ndarray:
    faulty = max(study.consensus.faulty, 1)
    notes = _remembered(view, study)
    peers, memory = _emulated(study, view, notes, faulty)
    own = honest if poison is None else _trained(study, view, poison)
    place = int(sha256(view.node.config.name.encode()), 16) % faulty
    kept = {key.removeprefix("note."): torch.from_numpy(v.copy()) for key, v in notes.items() if key[:5] == "note."}
    sight = Sight(
        honest=torch.from_numpy(peers),
        faulty=faulty,
        pipeline=_pipeline(study, faulty),
        generator=torch.Generator().manual_seed(_seed(study, view, "liars")),
        own=torch.from_numpy(own.astype(np.float32)).repeat(faulty, 1),
        last=_last(view, notes),
        notes=kept,
    )
    row = CRAFTS[name](sight)[place].numpy().astype(honest.dtype)
    _remember(view, study, {**memory, **{f"note.{key}": v.numpy() for key, v in sight.notes.items()}})
    return row


def _emulated(study: Study, view: View, notes: Tensors, faulty: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(h, k) float32 what honest members might send, momentum included; and what to remember of it."""
    count = max(by_name(study.aggregation.rule).least(faulty) - faulty, _LEAST)
    rows = view.node.rows(study)
    rounds = int(notes["rounds"][0]) if "rounds" in notes else 0
    sent = []
    for k in range(count):
        chosen = np.random.default_rng(_seed(study, view, f"{view.node.config.name} {k}")).integers(
            len(rows), size=len(rows)
        )
        update = view.trained(study, rows.iloc[chosen].reset_index(drop=True), view.noise(study, f"emulated {k}"))
        before = Momentum(notes["averages"][k], rounds) if rounds else None
        sent.append(averaged(update, before, study.training.momentum).average)
    averages = np.stack(sent)
    model = _flat(view.sent)
    return averages, {"averages": averages, "rounds": np.array([rounds + 1]), "model": model}


def _trained(study: Study, view: View, poison: Poison) -> np.ndarray:
    return view.trained(study, poison(study, view.node.rows(study)), view.noise(study, "poisoned"))


def _pipeline(study: Study, faulty: int) -> Pipeline:
    """The study's rule, as a liar can run it: without the server's memory, and with draws of its own."""
    rule = by_name(study.aggregation.rule)

    def run(rows: Tensor) -> Tensor:
        return aggregate(rows, rule, faulty, generator=torch.Generator().manual_seed(0)).vector

    return run


def _last(view: View, notes: Mapping[str, np.ndarray]) -> Tensor | None:
    """(k,) what the model moved by since the round that this liar saw before; None in its first."""
    if "model" not in notes:
        return None
    return torch.from_numpy((_flat(view.sent).astype(np.float64) - notes["model"]).astype(np.float32))


def _flat(model: Tensors) -> np.ndarray:
    """(k,) the parameters of a model in the order of an update."""
    return np.concatenate([model[name].ravel() for name in model_shapes(model)])


def _seed(study: Study, view: View, label: str) -> int:
    """Of what the liars agreed on, or of one liar's own draws if the label names it."""
    return int(sha256(canonical([label, study.hash, view.request.round])), 16) % 2**63


def _remembered(view: View, study: Study) -> Tensors:
    """What was written down in the last earlier round, so that a round asked twice is answered alike."""
    for earlier in reversed(range(1, view.request.round)):
        path = _memory(view, study, earlier)
        if path.exists():
            return load(path.read_bytes())
    return {}


def _remember(view: View, study: Study, notes: Mapping[str, np.ndarray]) -> None:
    path = _memory(view, study, view.request.round)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(save({name: np.ascontiguousarray(array) for name, array in notes.items()}))
    os.replace(temporary, path)


def _memory(view: View, study: Study, round: int) -> Path:
    return view.node.folder / _MEMORY.format(study=study.hash[:16], round=round)
