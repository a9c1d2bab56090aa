"""How a simulated liar acts: through the client, as a real one would. On its own rows before the release, on its own
words and tensors before they are signed, and with nothing but what a client sees. So it runs on every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causaldao.client.node import Node, Table
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.training import train
from causaldao.errors import RefusedError
from causaldao.messages import Parcel, open_request
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.signing import Statement, Tensors, canonical, sha256
from causaldao.study import Study


@dataclass(frozen=True)
class View:
    """What a liar has at hand when it answers: its node, what it was asked, and the tensors that came with it."""

    node: LyingNode
    request: Statement
    sent: Tensors

    @property
    def kind(self) -> str:
        return self.request.kind

    def trained(self, study: Study, rows: Table, noise: NoiseSource) -> NDArray[np.float32]:
        """(k,) the update of this round, before momentum, as an honest node with other rows would make it."""
        return self.node.trained(study, self.request, self.sent, rows, noise)

    def noise(self, study: Study, label: str) -> NoiseSource:
        """Noise as an honest node would draw it; another stream for each ``label`` if the study is a simulation."""
        return self.node.noise(study, self.request, label)


Words = tuple[Mapping[str, Any], Tensors]
"""The body and the tensors of a reply, before it is signed."""


def _same_rows(frame: Table) -> Table:
    return frame


def _same_tensors(kind: str, tensors: Tensors) -> Tensors:
    return tensors


def _same_body(kind: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return body


def _same_words(view: View, words: Words) -> Words:
    return words


@dataclass(frozen=True)
class Conduct:
    """How the owner of a simulated node treats its rows before they are read, and its words before they are signed.

    ``tensors`` and ``body`` are given the kind of the question and what an honest node would say. ``act``, which comes
    last, is given all that the liar sees. ``knowledge`` is what the owner falsely declares to know, and votes by.
    ``silent`` names the questions that get no signed word at all.
    """

    rows: Callable[[Table], Table] = _same_rows
    tensors: Callable[[str, Tensors], Tensors] = _same_tensors
    body: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = _same_body
    act: Callable[[View, Words], Words] = _same_words
    knowledge: Knowledge = NONE
    silent: frozenset[str] = frozenset()


@dataclass
class LyingNode(Node):
    """A node whose owner has another conduct than the honest one. Its key is its own, so its signatures are good."""

    conduct: Conduct = field(default_factory=Conduct)

    def __post_init__(self) -> None:
        self._sent: Tensors = {}

    @cached_property
    def table(self) -> Table:
        return self.conduct.rows(super().table)

    @cached_property
    def knowledge(self) -> Knowledge:
        return super().knowledge.merge(self.conduct.knowledge)

    def answer(self, parcel: Parcel) -> Parcel:
        """As an honest node's; a RefusedError that leaves unsigned if this owner says nothing to such a question."""
        request = open_request(parcel, self.coordinator, self.config.federation)
        if request.kind in self.conduct.silent:
            raise RefusedError(f"The owner of this simulated node is silent when asked for {request.kind!r}.")
        self._sent = parcel.tensors
        return super().answer(parcel)

    def reply(self, request: Statement, body: Mapping[str, Any], tensors: Tensors) -> bytes:
        said, carried = self.conduct.body(request.kind, body), self.conduct.tensors(request.kind, tensors)
        return super().reply(request, *self.conduct.act(View(self, request, self._sent), (said, carried)))

    def trained(
        self, study: Study, request: Statement, sent: Tensors, rows: Table, noise: NoiseSource
    ) -> NDArray[np.float32]:
        """(k,) what an honest node with these rows would have trained, before momentum."""
        steps, proximal = self._steps(study), study.training.proximal
        return train(sent, request.body["model"], rows, study.dictionary, steps, noise, proximal=proximal)["delta"]

    def noise(self, study: Study, request: Statement, label: str) -> NoiseSource:
        """The node's kind of noise, in a stream that its honest answers do not use."""
        if self._noise_kind(study) == "os":
            return NoiseSource.from_os()
        named = [label, self.config.insecure_seed, self.config.name, study.hash, request.kind, request.round]
        return NoiseSource.simulated(bytes.fromhex(sha256(canonical(named))))


@dataclass(frozen=True)
class Attack:
    """How liars act in a study; ``rows`` and ``act`` are given the study, so that they know what is asked.

    ``malformed`` says that the coordinator does not take the liars' reply, whatever the rule. ``local`` attacks act on
    the graphs that are ballots where discovery.evidence is "local", and all others on what only shared studies ask for.
    """

    name: str
    summary: str
    rows: Callable[[Study, pd.DataFrame], pd.DataFrame] = lambda study, frame: frame
    tensors: Callable[[str, Tensors], Tensors] = _same_tensors
    act: Callable[[Study, View, Words], Words] = lambda study, view, words: words
    knowledge: Callable[[Study], Knowledge] = lambda study: NONE
    silent: frozenset[str] = frozenset()
    malformed: bool = False
    local: bool = False

    def conduct(self, study: Study) -> Conduct:
        """The conduct of a node that attacks this study."""
        return Conduct(
            rows=lambda frame: self.rows(study, frame),
            tensors=self.tensors,
            act=lambda view, words: self.act(study, view, words),
            knowledge=self.knowledge(study),
            silent=self.silent,
        )
