"""The institution's node: it answers the coordinator's signed requests, and enforces what its owner approved.

A request is answered only if the pinned coordinator signed it, for a study that the owner approved. Rows are read here
and never leave; what leaves is noised, debited in the privacy journal first, stored, then sent. Any error stops the
processing and leaves as a signed refusal that holds the error's code and nothing else; its text stays in the node's own
log.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causaldao import __version__
from causaldao.ballots import Ballot, Proposal, cast
from causaldao.budget import Spend, plan
from causaldao.client import approvals, influence
from causaldao.client.answers import Answers, Slot
from causaldao.client.config import Lifetime, NodeConfig
from causaldao.client.data.checks import conform
from causaldao.client.data.mapping import apply
from causaldao.client.data.sources import load
from causaldao.client.dictionary import key_path
from causaldao.client.fit import Table, declaration, declared_knowledge, require_budget, unfit
from causaldao.client.privacy.dpsgd import PrivateSteps
from causaldao.client.privacy.journal import Cap, Journal, ReleaseKey
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import release_evidence
from causaldao.client.receipts import Receipts
from causaldao.client.training import Momentum, averaged, evaluate, train
from causaldao.declared import Declaration, expected, held
from causaldao.errors import CausalDAOError, DataError, IdentityError, RefusedError
from causaldao.estimates import of_member
from causaldao.graph_ballots import GraphBallot, abstention, ballot_from, known
from causaldao.members import Roster
from causaldao.messages import REFUSAL, Parcel, fields, make, open_request
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.knowledge import Knowledge
from causaldao.signing import SigningKey, Statement, Tensors, VerifyKey, canonical, peek, sha256
from causaldao.study import Study

__all__ = ["Lifetime", "Node", "NodeConfig", "Table"]

_LOG = logging.getLogger(__name__)
_PER_ROUND = ("update", "evaluation")
_AVERAGE, _ROUNDS = _OWN = ("own.average", "own.rounds")  # stored beside an update, and never sent
_ABSTAINS = "its own noisy moments bear no graph; more records, a larger epsilon or fewer variables would help"
_UNEXPECTED = "error"  # the code of a failure that is none of ours


@dataclass
class Node:
    """A node in its folder: configuration, signing key, journal, answers."""

    config: NodeConfig
    key: SigningKey
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Node:
        """The node of a folder that has joined a federation, with the key that lies there.

        Raises
        ------
        ConfigurationError
            a file of the node is absent or wrong, or it has not joined.
        IdentityError
            the key cannot be read, or others can read it.
        """
        return cls(NodeConfig.load(folder), SigningKey.load(key_path(folder)), folder)

    @cached_property
    def journal(self) -> Journal:
        return Journal.open(self.folder / "journal.db")

    @cached_property
    def answers(self) -> Answers:
        return Answers(self.folder / "answers.db")

    @cached_property
    def coordinator(self) -> VerifyKey:
        """The pinned key of the coordinator: requests signed by any other are not read."""
        return VerifyKey.from_text(self.config.coordinator)[1]

    @cached_property
    def table(self) -> Table:
        """The institution's rows, as its owner would have them read."""
        return load(self.config.table, self.folder)

    def rows(self, study: Study) -> Table:
        """The rows as the study's variables: the owner's mapping applied."""
        return apply(self.table, self.config.mapping, held(study.encoding, self._said(study).lacks))

    @cached_property
    def knowledge(self) -> Knowledge:
        """What the institution declares to know, overriding its evidence in its ballots."""
        return declared_knowledge(self.config, self.folder)

    def answer(self, parcel: Parcel) -> Parcel:
        """The reply to a request, or the signed refusal of it.

        Raises
        ------
        IdentityError
            the request is not the coordinator's: a stranger gets no signed word at all.
        """
        request = open_request(parcel, self.coordinator, self.config.federation)
        try:
            return self._answer(request, parcel.tensors)
        except CausalDAOError as error:
            _LOG.warning("%s of study %s refused (%s): %s", request.kind, request.study[:12], error.code, error)
            code = error.code
        except Exception:
            # Flower would send the text of an exception, and with it values of records, to the server.
            _LOG.exception("%s of study %s failed", request.kind, request.study[:12])
            code = _UNEXPECTED
        return self.refuse(request, code)

    def refuse(self, request: Statement, code: str, trail: bytes = b"") -> Parcel:
        """The signed refusal of a request."""
        parcel = self._seal(request, REFUSAL + request.kind, {"code": code}, {}, nonce=request.nonce)
        return replace(parcel, trail=trail)

    def say(self, request: Statement, body: Mapping[str, Any], kind: str = "") -> Parcel:
        """A signed word in a request's study and round that takes no slot; ``kind`` is the request's unless given."""
        return self._seal(request, kind or request.kind, body, {})

    def _answer(self, request: Statement, tensors: Tensors) -> Parcel:
        steps = {
            "rollcall": self._rollcall,
            "evidence": self._evidence,
            "ballot": self._ballot,
            "effects": self._effects,
            "update": self._update,
            "evaluation": self._evaluation,
            "release": self._vote_release,
            "close": self._close,
        }
        if request.kind not in (*steps, "locate"):
            raise IdentityError(f"There is no request of kind {request.kind!r}.")
        approvals.require(self.folder, request.study, self.config.approved)
        if request.kind not in _PER_ROUND and request.round != 0:
            raise RefusedError(f"A {request.kind!r} is asked for once, in round 0, not in round {request.round}.")
        if request.kind == "locate":
            return self._locate(request)
        base = sha256(canonical({"body": _asked_for(request), "digest": request.digest}))
        slot = Slot(request.study, request.round, request.kind)
        stored = self.answers.once(slot, base, lambda: steps[request.kind](request, tensors, base))
        return _signed_part(Parcel.unpack(stored))

    def _locate(self, request: Statement) -> Parcel:
        """Say which node this is, by signing the coordinator's fresh challenge: a stored answer could be replayed by
        another. Not an answer of the study, so no slot is taken."""
        fields(request.body, {"challenge": str})
        return self.say(request, request.body)

    def _rollcall(self, request: Statement, tensors: Tensors, base: str) -> bytes:
        fields(request.body, {"study": dict})
        study = Study.from_mapping(request.body["study"])
        if study.hash != request.study:
            raise RefusedError("The study that came does not have the hash that was approved.")
        # Columns and budget only: to refuse over what one record holds would tell of that record.
        head = self.table.head(0)
        wrong = unfit(self.config, head, study)
        if wrong:
            raise DataError(
                f"The mapping in node.toml does not fit study {study.name!r}:", problems=tuple(wrong.values())
            )
        wanted = held(study.encoding, declaration(self.config, study).lacks)
        conform(apply(head, self.config.mapping, wanted), wanted)
        require_budget(self.config, self.folder, study)
        if study.local:
            known(study, self.knowledge)
        self.answers.keep_study(study.hash, study.to_json())
        body = {
            "version": __version__,
            "noise": self._noise_kind(study),
            **declaration(self.config, study).to_json(study),
        }
        return self._seal(request, "rollcall", body, {}).pack()

    def _evidence(self, request: Statement, tensors: Tensors, base: str) -> bytes:
        fields(request.body, {})
        study = self._study(request)
        if study.local:
            raise RefusedError("Members of this study release a graph each (evidence = 'local'), and no evidence.")
        spending = plan(study)

        def draw() -> bytes:
            noise = self._noise(study, request)
            lacks = self._said(study).lacks
            moments = release_evidence(self.rows(study), study.encoding, spending.sigma, noise, lacks)
            return self.reply(request, {"noise": noise.kind}, {"moments": moments})

        return self._release(study, request, base, spending.evidence, draw)

    def _ballot(self, request: Statement, tensors: Tensors, base: str) -> bytes:
        study = self._study(request)
        if study.local:
            return self._graph_ballot(study, request, base)
        fields(request.body, {"proposal": dict})
        proposal = _proposal(request.body["proposal"], study)
        released = self._own(study).tensors["moments"]
        own = Evidence.from_release(released, study.encoding, plan(study).sigma)
        said = self._said(study).voting(study)
        ballot: Ballot = cast(proposal, own, self.knowledge, study.consensus.level, **said)
        return self.reply(request, ballot.to_json(), {})

    def _graph_ballot(self, study: Study, request: Statement, base: str) -> bytes:
        """The graph that this node finds in its own noisy moments. They are drawn once, as evidence is, live in memory
        while discovery runs, and are gone: what is stored and sent is the graph."""
        fields(request.body, {})
        known(study, self.knowledge)  # before anything is spent
        spending = plan(study)

        def draw() -> bytes:
            noise = self._noise(study, request)
            moments = release_evidence(self.rows(study), study.encoding, spending.sigma, noise)
            ballot = replace(_ballot_of(moments, study, self.knowledge), noise=noise.kind)
            if ballot.abstains:
                _LOG.warning("ballot of study %s abstains (%s): %s", study.hash[:12], ballot.abstains, _ABSTAINS)
            return self.reply(request, ballot.to_json(study), {})

        return self._release(study, request, base, spending.evidence, draw)

    def _effects(self, request: Statement, tensors: Tensors, base: str) -> bytes:
        """The noisy sums of influence values, under functions that this node computes itself from the signed evidence;
        whatever they are, one record moves the sums by no more than `causaldao.models.summaries` states."""
        study = self._study(request)
        spend = _required(plan(study).effects, "It has no effect for which members give sums.")
        found, question = influence.asked(study, request.body, tensors, self._members(request.study), self._own(study))
        mine = of_member(found, self.config.name)
        if not any(mine):
            raise RefusedError(
                "This node's own evidence has nothing to say to any effect of the study: it adds nothing."
            )

        def draw() -> bytes:
            noise, rows = self._noise(study, request), self.rows(study)
            sums = influence.released(rows, study.dictionary, mine, plan(study).effects_sigma, noise)
            return self.reply(request, {"base": question}, {"sums": sums})

        return self._release(study, request, base, spend, draw)

    def _update(self, request: Statement, tensors: Tensors, base: str) -> bytes:
        fields(request.body, {"model": dict})
        study = self._study(request)
        spend = _required(plan(study).training)
        self._require_round(study, request)

        def draw() -> bytes:
            noise = self._noise(study, request)
            trained = train(
                tensors, request.body["model"], self.rows(study), study.dictionary, self._steps(study), noise,
                proximal=study.training.proximal,
            )  # fmt: skip
            momentum = averaged(trained["delta"], self._momentum(study, request.round), study.training.momentum)
            reply = self.reply(request, {"base": request.digest}, {"delta": momentum.average})
            return _keeping(reply, momentum)

        return self._release(study, request, base, spend, draw)

    def _momentum(self, study: Study, round: int) -> Momentum | None:
        """The momentum of the last earlier round that this node answered; None before its first.

        It is read from the stored answers, the very bytes that were released and debited: nothing that was drawn and
        then lost can flow into a later answer, and a node that was restarted goes on as if nothing had been.
        """
        for earlier in reversed(range(1, round)):
            stored = self.answers.reply(Slot(study.hash, earlier, "update"))
            if stored is not None:
                kept = Parcel.unpack(stored).tensors
                return Momentum(kept[_AVERAGE], int(kept[_ROUNDS][0]))
        return None

    def _evaluation(self, request: Statement, tensors: Tensors, base: str) -> bytes:
        fields(request.body, {"model": dict})
        study = self._study(request)
        spend = _required(plan(study).evaluation)
        self._require_round(study, request)

        def draw() -> bytes:
            loss = evaluate(
                tensors, request.body["model"], self.rows(study), study.dictionary, bound=study.privacy.loss_bound,
                noise_multiplier=spend.noise_multiplier, count=self._count(study), noise=self._noise(study, request),
            )  # fmt: skip
            return self.reply(request, {"base": request.digest}, dict(loss))

        return self._release(study, request, base, spend, draw)

    def _vote_release(self, request: Statement, tensors: Tensors, base: str) -> bytes:
        """A vote for the release of the model that this node evaluated last, on a graph over the study's variables."""
        fields(request.body, {"model": str, "dag": dict})
        study = self._study(request)
        last = self.answers.reply(Slot(study.hash, study.training.rounds, "evaluation"))
        model = "" if last is None else peek(Parcel.unpack(last).envelope).body["base"]
        if request.body["model"] != model:
            raise RefusedError(
                f"The release is of model {request.body['model'][:12] or 'none'}, but this node evaluated "
                f"{model[:12] or 'none'} last."
            )
        influence.graph_of(request.body["dag"], study)
        return self.reply(request, request.body, {})

    def _close(self, request: Statement, tensors: Tensors, base: str) -> bytes:
        fields(request.body, {"result": str})
        return self.reply(request, {"result": request.body["result"]}, {})

    def _release(self, study: Study, request: Statement, base: str, spend: Spend, draw: Callable[[], bytes]) -> bytes:
        privacy, lifetime = study.privacy, self.config.lifetime
        self.answers.claim(Slot(study.hash, request.round, request.kind), base)
        return self.journal.release(
            ReleaseKey(study.hash, self.config.dataset, request.kind, request.round, base),
            [spend],
            Cap(privacy.epsilon, privacy.delta),
            Cap(lifetime.epsilon, lifetime.delta),
            draw,
        )

    def _study(self, request: Statement) -> Study:
        document = self.answers.study(request.study)
        if document is None:
            raise RefusedError("This node was not at the study's roll call: it answers nothing else first.")
        return Study.from_mapping(document)

    @staticmethod
    def _require_round(study: Study, request: Statement) -> None:
        if not 1 <= request.round <= study.training.rounds:
            raise RefusedError(f"Round {request.round} is outside the study's 1 to {study.training.rounds}.")

    def _own(self, study: Study) -> Parcel:
        """The evidence that this node released, as everyone else holds it."""
        stored = self.answers.reply(Slot(study.hash, 0, "evidence"))
        if stored is None:
            raise RefusedError("No evidence was released in this study: there is nothing to say in it from.")
        return Parcel.unpack(stored)

    def _said(self, study: Study) -> Declaration:
        """What this node declared at the roll call: its file may say something else by now."""
        if not expected(study):
            return Declaration()
        stored = self.answers.reply(Slot(study.hash, 0, "rollcall"))
        if stored is None:
            raise RefusedError("This node was not at the study's roll call: it answers nothing else first.")
        return Declaration.from_json(study, peek(Parcel.unpack(stored).envelope).body)

    def _members(self, study: str) -> Roster:
        """The members as this node was shown them when the study asked first, whose keys signed the evidence."""
        receipts = Receipts(self.folder)
        epoch = receipts.epoch(receipts.known_at(study))
        if epoch is None:
            raise RefusedError("This node was shown no members, so it cannot tell whose evidence it is shown.")
        return epoch.roster

    def _count(self, study: Study) -> float:
        """The noisy, public count, within the study's bounds: never the private n."""
        members = study.members
        stored = self._released_count(study)
        return float(min(max(stored, members.n_min), members.n_max))

    def _released_count(self, study: Study) -> float:
        stored = self.answers.reply(Slot(study.hash, 0, "evidence"))
        if stored is None:
            raise RefusedError("No evidence was released in this study: training would have no public denominator.")
        return float(Parcel.unpack(stored).tensors["moments"][0]) / study.encoding.lattice**2

    def _steps(self, study: Study) -> PrivateSteps:
        training, spend = study.training, _required(plan(study).training)
        return PrivateSteps(
            count=training.steps,
            rate=training.sample_rate,
            clip=training.clip,
            noise_multiplier=spend.noise_multiplier,
            denominator=training.sample_rate * self._count(study),
            learning_rate=training.rate,
        )

    def _noise_kind(self, study: Study) -> str:
        return "simulated" if self.config.insecure_seed is not None and study.study.simulation else "os"

    def _noise(self, study: Study, request: Statement) -> NoiseSource:
        """OS entropy; a seeded stream only if this node's own file and the study both say that it is a simulation."""
        if self._noise_kind(study) == "os":
            return NoiseSource.from_os()
        label = [self.config.insecure_seed, self.config.name, study.hash, request.kind, request.round]
        return NoiseSource.simulated(bytes.fromhex(sha256(canonical(label))))

    def reply(self, request: Statement, body: Mapping[str, Any], tensors: Tensors) -> bytes:
        """The signed, packed reply to a request: what is stored, and then sent."""
        return self._seal(request, request.kind, body, tensors).pack()

    def _seal(
        self, request: Statement, kind: str, body: Mapping[str, Any], tensors: Tensors, nonce: str | None = None
    ) -> Parcel:
        return make(
            self.key, federation=self.config.federation, study=request.study, round=request.round,
            member=self.config.name, kind=kind, body=body, nonce=nonce or secrets.token_hex(16), parent=request.parent,
            tensors=tensors,
        )  # fmt: skip


def _ballot_of(moments: NDArray[np.int64], study: Study, knowledge: Knowledge) -> GraphBallot:
    """The ballot in a node's own noisy moments; noise that leaves nothing to read makes an abstention, for the ballot
    is paid for already."""
    try:
        own = Evidence.from_release(moments, study.encoding, plan(study).sigma)
    except DataError as error:
        return abstention(study, knowledge, error.code)
    return ballot_from(study, own, knowledge)


def _keeping(reply: bytes, momentum: Momentum) -> bytes:
    """A packed reply, and beside it what the node keeps for its next round: stored as one, so never one without the
    other."""
    signed = Parcel.unpack(reply)
    own: Tensors = {_AVERAGE: momentum.average, _ROUNDS: np.array([momentum.rounds], dtype=np.int64)}
    return replace(signed, tensors={**signed.tensors, **own}).pack()


def _signed_part(stored: Parcel) -> Parcel:
    """A stored answer without what the node keeps for itself."""
    return replace(stored, tensors={name: array for name, array in stored.tensors.items() if name not in _OWN})


def _required(spend: Spend | None, otherwise: str = "It votes on the graph only: nothing is trained.") -> Spend:
    if spend is None:
        raise RefusedError(f"This study's plan has no such release. {otherwise}")
    return spend


def _asked_for(request: Statement) -> dict[str, Any]:
    """What makes two requests the same. The functions of a question for effects follow from the rest of it, up to the
    rounding of the machine that sent it: a coordinator that goes on elsewhere asks the same."""
    return {key: value for key, value in request.body.items() if (request.kind, key) != ("effects", "functions")}


def _proposal(value: Mapping[str, Any], study: Study) -> Proposal:
    try:
        proposal = Proposal.from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise IdentityError("The proposal is not in its JSON form.") from error
    if set(proposal.pattern.nodes) != set(study.names):
        raise IdentityError("The proposal speaks of other variables than the study.")
    proposal.reading.require(study.encoding.names, study.encoding.blocks, mixed=study.discovery.restore)
    return proposal
