"""The coordinator walks a study through its states, checks every reply by itself, and logs every decision.

    proposed → approved → roll-call → evidence → ballots → adopted → training ×R → evaluated → released → closed

Effects of method "aipw" are asked for between adopted and training; no state stands for that. A study of local ballots
has no evidence, and nothing to evaluate:

    proposed → approved → roll-call → ballots → adopted → released → closed

Each step ends in one transaction: its ledger entries and the state to go on from. Killed anywhere, it repeats at most
the step it was in; nodes answer a repeated request with the same bytes, so nothing is spent twice. What a step decides
is computed by the pure functions of `causaldao`, which an auditor calls again on the same entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from causaldao import estimates
from causaldao.aggregation.rules import faults_left
from causaldao.ballots import Ballot, Proposal
from causaldao.budget import Spend, epsilon_of, plan
from causaldao.conditions import read_for_effects
from causaldao.decisions import (
    Among,
    Learnt,
    among_holders,
    answers_needed,
    decide_adoption,
    decide_comparison,
    decide_pool,
    decide_proposal,
    decide_round,
    effects_needed,
    estimate_effects,
    evidence_of_answers,
    first_model,
    graphs_needed,
    require_held,
    require_members,
    update_size,
)
from causaldao.declared import Declaration, expected, lacks_of
from causaldao.errors import (
    CausalDAOError,
    ConfigurationError,
    LedgerError,
    NetworkError,
)
from causaldao.graph_ballots import GraphBallot, decide_local_adoption, votes_cast
from causaldao.ledger.entry import Entry
from causaldao.ledger.log import Log
from causaldao.members import Roster, quorum
from causaldao.messages import Shape, names_of
from causaldao.models.discovery.evidence import Evidence, columns_of
from causaldao.models.graph import CausalGraph
from causaldao.models.scm import NeuralSCM
from causaldao.server import checks, membership
from causaldao.server.asking import Asker, Call
from causaldao.server.clock import Clock
from causaldao.server.mailbox import Accepted, Check, Mailbox
from causaldao.server.progress import QUARANTINE, Event
from causaldao.server.recording import Book, State, found_if_new, propose, summary
from causaldao.server.standing import Standing
from causaldao.server.waiting import collect
from causaldao.server.witnessing import Witnessing
from causaldao.signing import SigningKey, Tensors, digest, peek
from causaldao.study import Study

__all__ = ["Coordinator", "State", "propose"]

# The study was not at fault, or the ledger cannot take the entry: it goes on from where it stands when run again.
_CLOSING_QUESTIONS = 3
_NO_ABORT = (ConfigurationError, LedgerError, NetworkError)


@dataclass
class Coordinator:
    """One study on one ledger.

    ``progress`` is told what happens, ``on_state`` each state right after it is durable, ``observe`` how each member
    stands whenever that changes. ``revoked`` says who was revoked by now: those are not asked, and what they answered
    to the question at hand is dropped.
    """

    study: Study
    roster: Roster
    key: SigningKey
    log: Log
    mailbox: Mailbox
    clock: Clock
    progress: Callable[[Event], None] = lambda event: None
    on_state: Callable[[str], None] = lambda state: None
    keep_updates: bool = False
    observe: Callable[[Mapping[str, Standing]], None] = lambda standings: None
    revoked: Callable[[], frozenset[str]] = frozenset

    def __post_init__(self) -> None:
        self._load()

    def _load(self) -> None:
        """Start from what is durable, also after a step that failed half-way."""
        self._book = Book(self.log, self.study, self.keep_updates)
        rounds = self.study.training.rounds
        self._witnessing = Witnessing(self.log, self.key.public, self.roster, self.study.hash, rounds)
        self._asker = Asker(
            self.roster, self.key, self._book, self.mailbox, self.clock, self.progress, self.observe, self.revoked,
            self._witnessing,
        )  # fmt: skip
        self._known: Learnt | None = None

    @property
    def state(self) -> State:
        """What is known so far; as saved, but for the step at hand."""
        return self._book.state

    def run(self) -> State:
        """Walk the study to its end, from wherever it stands.

        Raises
        ------
        GuaranteeError
            too few members answered before the deadline, or f is more than the rules bear; the study is then aborted
            on the ledger, and its code is 13. Run again, it goes on from there, and its next transition says so.
        NetworkError
            Flower's grid could not be reached until the deadline. Run again, it goes on as if nothing had been.
        """
        self._load()
        try:
            require_members(self.study, len(self.roster.members))
            self._step("proposed", self._propose_study)
            self._step("roll-call", self._call_roll)
            if self.study.local:
                self._step("ballots", self._gather_graphs)
                self._step("adopted", self._adopt_graphs)
            else:
                self._step("evidence", self._gather_evidence)
                self._step("ballots", self._gather_ballots)
                self._step("adopted", self._adopt)
            if self.study.robust_effects:
                self._step("effects", self._ask_effects)
            for number in range(1, self.study.training.rounds + 1):
                self._step(f"aggregate {number}", partial(self._train, number))
                self._step(f"training {number}", partial(self._evaluate, number))
            if not self.study.local:
                self._step("evaluated", self._evaluated)
            self._step("released", self._release)
            self._step("closed", self._close)
            self._have_end_witnessed()
        except CausalDAOError as error:
            if not isinstance(error, _NO_ABORT) and "proposed" in self.state.done:
                self._book.abort(error, *self._asker.slot, self._asker.asked)
                self.on_state("aborted")
            raise
        return self.state

    def model(self) -> NeuralSCM | None:
        """The model as last aggregated; None in a study that does not train."""
        if not self.study.training.rounds or not self.state.consensus:
            return None
        _, meta = self._first_model().state()
        return NeuralSCM.from_state(self._tensors(), meta)

    # steps

    def _step(self, name: str, act: Callable[[], None]) -> None:
        if name in self.state.done:
            return
        began = self.clock.monotonic()
        self._decided(act)
        phase = name.split()[0]
        self.state.seconds[phase] = self.state.seconds.get(phase, 0.0) + self.clock.monotonic() - began
        self.on_state(name)

    def _decided(self, act: Callable[[], None]) -> None:
        """Do a step; if a member is revoked between the last look and the step's transaction, the ledger does not take
        its word, and the step is decided again without it."""
        while True:
            try:
                return act()
            except LedgerError:
                known = self._asker.gone
                if self._asker.bar_revoked() == known:
                    raise
                self._book.load()

    def _propose_study(self) -> None:
        found_if_new(self.log, self.roster)
        propose(self.log, self.study)
        self._book.load()

    def _call_roll(self) -> None:
        body = {"study": self.study.to_json()}
        accepted = self._collect(
            "rollcall", 0, body, self.roster.names, minimum=self._votes_needed, check=checks.approval(self.study),
            phase="roll call",
        )  # fmt: skip
        present = sorted(accepted)
        self.state.present = present
        self.state.noise = {name: accepted[name].statement.body["noise"] for name in present}
        if expected(self.study):
            said = {name: Declaration.from_json(self.study, accepted[name].statement.body) for name in present}
            decide_comparison(self.study, said, len(self.roster.members))  # before any privacy is spent
            self.state.declared = {name: one.to_json(self.study) for name, one in said.items()}
            require_held(self.study, lacks_of(said), present, len(self.roster.members))
        approvals = [{"member": name, "envelope": accepted[name].parcel.envelope.decode()} for name in present]
        approved = self._book.transition("approved", {"approvals": approvals})
        self._book.commit("roll-call", [approved, self._book.transition("roll-call", {"present": present})])

    def _gather_evidence(self) -> None:
        p = columns_of(self.study.encoding) + 1
        shapes = {"moments": Shape("int64", (p * (p + 1) // 2,))}
        check = checks.evidence(self._book)
        accepted = self._collect("evidence", 0, {}, self.state.present, shapes=shapes, check=check)
        evidence = {name: self._book.evidence_of(reply.parcel.tensors["moments"]) for name, reply in accepted.items()}
        for name, reply in accepted.items():
            self.state.noise[name] = reply.statement.body["noise"]
        entries = self._book.spoken("evidence", accepted)
        spends = self._book.spends("evidence", 0, self._asker.asked)
        decided = decide_pool(self.study, evidence, len(self.roster.members), self._book.declared)
        proposal = decide_proposal(self.study, decided)
        self.progress(Event("pool", f"kept {len(decided.kept)}, accused {names_of(decided.accused)}", 1, 1))
        self.state.pool = {**decided.to_json(), "counts": {name: e.count for name, e in sorted(evidence.items())}}
        self.state.proposal = proposal.to_json()
        pooled = Entry("pool", {"study": self.study.hash, "pool": decided.to_json(), "proposal": proposal.to_json()})
        transition = self._book.transition("evidence", {"noise": self.noise})
        self._book.commit("evidence", [*entries, *spends, pooled, transition])

    def _gather_ballots(self) -> None:
        voters = sorted(self.state.pool["counts"])
        voting = {name: said.voting(self.study) for name, said in self._book.declared.items()}
        check = checks.ballot(self._proposal, self._book.evidence(), self.study.consensus.level, voting)
        body = {"proposal": self.state.proposal}
        accepted = self._collect("ballot", 0, body, voters, check=check, phase="ballots")
        entries = self._book.spoken("ballot", accepted)
        self._book.commit("ballots", [*entries, self._book.transition("ballots", {"voters": sorted(accepted)})])

    def _gather_graphs(self) -> None:
        present = self.state.present
        accepted = self._collect(
            "ballot", 0, {}, present, minimum=graphs_needed(self.study, len(self.roster.members), len(present)),
            check=checks.graph_ballot(self.study), phase="ballots",
        )  # fmt: skip
        for name, reply in accepted.items():
            self.state.noise[name] = reply.statement.body["noise"]
        entries = self._book.spoken("ballot", accepted)
        spends = self._book.spends("ballot", 0, self._asker.asked)
        transition = self._book.transition("ballots", {"voters": sorted(accepted), "noise": self.noise})
        self._book.commit("ballots", [*entries, *spends, transition])

    def _adopt_graphs(self) -> None:
        """The members' graphs, counted. There is nothing else to read an answer from."""
        consensus = decide_local_adoption(self.study, self.graphs(), len(self.state.present))
        self.state.consensus = consensus.to_json()
        told = f"{len(consensus.pattern.edges)} edges, {len(consensus.contested)} marks with too few supporters"
        self.progress(Event("adopt", told, 1, 1))
        adopted = Entry("adopt", {"study": self.study.hash, "consensus": consensus.to_json(), "effects": []})
        self._book.commit("adopted", [adopted, self._book.transition("adopted", {})])

    def graphs(self) -> dict[str, GraphBallot]:
        """The graph that each member signed, in a study of local ballots."""
        return {name: GraphBallot.from_json(said, self.study) for name, said in self._book.ballots().items()}

    def votes(self) -> dict[str, dict[str, int]]:
        """How each member voted, by the key of the mark: +1, 0 or -1. Ballots are public."""
        return votes_cast(self.study, self._book.ballots(), len(self.state.present))

    def _adopt(self) -> None:
        proposal = self._proposal
        ballots = {name: Ballot.from_json(said, proposal) for name, said in self._book.ballots().items()}
        consensus = decide_adoption(self.study, proposal, ballots, len(self.state.present))
        self.state.consensus = consensus.to_json()
        answers, bounds = self._answers
        self.state.effects = estimate_effects(self.study, answers, consensus, bounds, self._among_holders)
        self.progress(
            Event("adopt", f"{len(consensus.pattern.edges)} edges, {len(consensus.contested)} marks contested", 1, 1)
        )
        adopted = Entry(
            "adopt", {"study": self.study.hash, "consensus": consensus.to_json(), "effects": self.state.effects}
        )
        self._book.commit("adopted", [adopted, self._book.transition("adopted", {})])

    def _ask_effects(self) -> None:
        """The effects of method "aipw". What a node is asked is a function of what stands on the ledger, so that it is
        the same question after a resume."""
        study, evidence = self.study, self._book.signed_evidence()
        pattern, dag = (CausalGraph.from_json(self.state.consensus[name]) for name in ("pattern", "dag"))
        asked = estimates.targets(study, pattern, dag)
        found = estimates.functions(study, asked, self._book.evidence(), self.state.pool["weights"])
        digests = {name: peek(said.encode()).digest for name, (said, _) in evidence.items()}
        base = estimates.base_of(study, asked, digests, len(self.roster.members))
        names, accepted = estimates.respondents(found), dict[str, Accepted]()
        entries: list[Entry] = []
        if names:
            body = {
                "members": list(self.roster.names), "evidence": {name: said for name, (said, _) in evidence.items()},
                "pattern": pattern.to_json(), "dag": dag.to_json(),
                "functions": {name: estimates.figures(estimates.of_member(found, name)) for name in names},
            }  # fmt: skip
            accepted = self._collect(
                "effects", 0, body, names,
                tensors={"moments": np.stack([evidence[name][1] for name in sorted(evidence)])},
                shapes={"sums": Shape("int64", (len(asked), 3))},
                minimum=effects_needed(study, len(self.roster.members), len(names)),
                check=checks.effects(base, found, plan(study).effects_sigma),
            )  # fmt: skip
            entries = self._book.spoken("effects", accepted)
            entries += self._book.spends("effects", 0, self._asker.asked)
        sums = {name: reply.parcel.tensors["sums"] for name, reply in accepted.items()}
        effects = estimates.estimate(study, asked, found, sums)
        self.state.effects = estimates.in_order(study, [*self.state.effects, *effects])
        accused = sorted({name for effect in effects for name in effect.get("accused", ())})
        told = f"{sum(effect['estimate'] is not None for effect in effects)} of {len(effects)} answered"
        self.progress(Event("effects", f"{told}, accused {names_of(accused)}", 1, 1))
        answer = Entry("estimate", {"study": study.hash, "base": base, "asked": list(names), "effects": effects})
        self._book.commit("effects", [*entries, answer])

    def _train(self, number: int) -> None:
        before = self._learnt()
        _, meta = self._first_model().state()
        base = digest(before.model)
        check = checks.based_on(base, "update was made against")
        accepted = self._collect(
            "update", number, {"model": meta}, sorted(self.state.pool["counts"]), tensors=before.model,
            shapes={"delta": Shape("float32", (update_size(self.study),))}, check=check, phase="training",
        )  # fmt: skip
        names = sorted(accepted)
        stack = torch.from_numpy(np.stack([accepted[name].parcel.tensors["delta"] for name in names]).copy())
        rule, members = self.study.aggregation.rule, len(self.roster.members)
        faulty = faults_left(rule, members, self.study.consensus.faulty, len(names))
        result, after = decide_round(self.study, number, before, stack, faulty)
        entries = self._book.spoken("update", accepted)
        entries += self._book.spends("update", number, self._asker.asked)
        entries.append(self._book.aggregate(number, names, faulty, result, base, digest(after.model)))
        self.state.rounds.append({"round": number, "loss": None, **summary(rule, names, result)})
        self._book.commit(f"aggregate {number}", entries, after)
        self._known = after

    def _evaluate(self, number: int) -> None:
        """The median of the members' noised losses: f liars among 2f + 1 cannot move it out of the honest range.

        A step of its own: resumed, it must ask about the model that was asked about before, or no node would answer.
        """
        model = self._tensors()
        _, meta = self._first_model().state()
        base = digest(model)
        bound = self.study.privacy.loss_bound
        check = checks.based_on(base, "evaluation is of")
        accepted = self._collect(
            "evaluation", number, {"model": meta}, sorted(self.state.pool["counts"]), tensors=model,
            shapes={"loss": Shape("float64", (1,))}, check=check, phase="evaluate",
        )  # fmt: skip
        names = sorted(accepted)
        losses = [float(accepted[name].parcel.tensors["loss"][0]) for name in names]
        loss = float(np.clip(np.median(losses), 0.0, bound))
        spoken = self._book.spends("evaluation", number, self._asker.asked, accepted)
        self.state.rounds[-1]["loss"] = loss
        excluded, total = names_of(self.state.rounds[-1]["excluded"]), self.study.training.rounds
        self.progress(Event("training", f"round {number}: loss {loss:.3f}, excluded {excluded}", number, total))
        transition = self._book.transition("training", {"round": number, "loss": loss})
        self._book.commit(f"training {number}", [*spoken, transition])

    def _evaluated(self) -> None:
        self._book.commit("evaluated", [self._book.transition("evaluated", {"rounds": len(self.state.rounds)})])

    def _release(self) -> None:
        model = digest(self._tensors()) if self.study.training.rounds else ""
        body = {"model": model, "dag": self.state.consensus["dag"]}
        accepted = self._collect(
            "release", 0, body, self.state.present, minimum=self._votes_needed, check=checks.vote(body)
        )
        votes = [{"member": name, "envelope": accepted[name].parcel.envelope.decode()} for name in sorted(accepted)]
        release = Entry("release", {"study": self.study.hash, **body, "votes": votes})
        what = "graph" if self.study.local else "effects and model"
        self.progress(Event("release", f"{what} released, {len(votes)} votes", 1, 1))
        self._book.commit("released", [release, self._book.transition("released", {})])

    def _close(self) -> None:
        accepted = self._collect("close", 0, {"result": self._book.released()}, self.state.present, minimum=0)
        self._book.commit("closed", [self._book.transition("closed", {"heard": sorted(accepted)})])

    # the ledger's witnesses

    @property
    def _votes_needed(self) -> int:
        """What a study's approval and its release need: a quorum of the members."""
        members = self.roster.members
        return max(answers_needed(self.study, len(members)), quorum(len(members), self.roster.faulty))

    def _have_end_witnessed(self) -> None:
        """Ask for cosignatures until a quorum has cosigned the study's end, members' last complaints included."""
        closed = self._book.entries("study.closed")[-1].index
        for _ in range(_CLOSING_QUESTIONS):
            if self._cosigned(closed + 1):
                return
            self._ask_for_cosignatures(end=True)
            for complaint in self._witnessing.complaints():
                try:
                    (closed,) = self.log.append([complaint])
                except LedgerError as error:  # of somebody who was revoked meanwhile, say: it ends nobody's study
                    self.progress(Event(QUARANTINE, f"a complaint was not recorded: {error.message}"))
        needed = membership.epoch(self.log).quorum
        self.progress(
            Event(QUARANTINE, f"fewer than {needed} members cosigned the study's end: its bundle will not verify yet")
        )

    def _cosigned(self, size: int) -> bool:
        """Whether a quorum has cosigned the ledger's first ``size`` entries, or more of it."""
        agreed = self._witnessing.agreed()
        return agreed is not None and agreed.checkpoint.size >= size

    def _ask_for_cosignatures(self, *, end: bool) -> None:
        statuses = dict(self.state.statuses)
        self._ask(Call("cosign", 0, tuple(self.state.present), 0, "witnesses", {"end": int(end)}))
        self.state.statuses.update(statuses)  # who does not cosign is no absentee of the study

    # asking

    def _collect(
        self,
        kind: str,
        round: int,
        body: Mapping[str, Any],
        members: Sequence[str],
        *,
        tensors: Tensors | None = None,
        shapes: Mapping[str, Shape] | None = None,
        minimum: int | None = None,
        check: Check = lambda statement, parcel: None,
        phase: str = "",
    ) -> dict[str, Accepted]:
        needed = answers_needed(self.study, len(self.roster.members)) if minimum is None else minimum
        call = Call(kind, round, tuple(members), needed, phase or kind, body, tensors, shapes or {}, check)
        self.log.refresh()
        if kind != "rollcall" and not self._cosigned(self._witnessing.shown):
            # Members release nothing before a quorum has cosigned what they saw: some were shown more than others.
            self._ask_for_cosignatures(end=False)
        return self._ask(call)

    def _ask(self, call: Call) -> dict[str, Accepted]:
        return collect(self._asker, call)

    # what is known

    @property
    def noise(self) -> str:
        """ "simulated" if any member's noise is seeded: then nothing in the study is private."""
        return "simulated" if "simulated" in self.state.noise.values() else "os"

    def spent(self) -> dict[str, float]:
        """The ε at the study's δ that each member has spent, by the releases it made."""
        delta = self.study.privacy.delta
        return {
            name: epsilon_of([Spend(**spend) for spend in spends], delta)
            for name, spends in sorted(self.state.spent.items())
        }

    @property
    def _proposal(self) -> Proposal:
        return Proposal.from_json(self.state.proposal)

    @property
    def _answers(self) -> tuple[Evidence, tuple[float | None, ...]]:
        """The evidence that effects and the first model are read from, with the pool's bounds."""
        pool = self.state.pool
        own = {name: Evidence.from_json(one["evidence"]) for name, one in pool.get("environments", {}).items()}
        pooled = read_for_effects(self.study, own, Evidence.from_json(pool["evidence"]))
        return evidence_of_answers(self.study, pooled, tuple(self.state.pool["bounds"]), self._proposal.reading)

    @property
    def _among_holders(self) -> Among | None:
        pool = self.state.pool
        return among_holders(self.study, self._book.evidence(), pool["kept"], pool["faulty"], pool.get("lacks", {}))

    def _first_model(self) -> NeuralSCM:
        return first_model(self.study, self._answers[0], CausalGraph.from_json(self.state.consensus["dag"]))

    def _tensors(self) -> Tensors:
        """The current model's tensors: the last aggregate, or the linear start."""
        return self._learnt().model

    def _learnt(self) -> Learnt:
        """The current model, and what rule and optimiser remember of the rounds before."""
        if self._known is None:
            self._known = self._book.learnt() or Learnt(self._first_model().state()[0], {})
        return self._known
