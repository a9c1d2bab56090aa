"""The coordinator walks a study through its states, checks every reply by itself, and logs every decision.

    proposed → approved → roll-call → evidence → ballots → adopted → training ×R → evaluated → released → closed

Each step ends in one transaction: its ledger entries and the state to go on from. Killed anywhere, it repeats at most
the step it was in; nodes answer a repeated request with the same bytes, so nothing is spent twice. What a step decides
is computed by the pure functions of `causaldao`, which an auditor calls again on the same entries.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from causaldao.aggregation import aggregate
from causaldao.aggregation.rules import faults_left
from causaldao.ballots import Ballot, Proposal, recheck
from causaldao.budget import Spend, epsilon_of, plan
from causaldao.decisions import (
    answers_needed,
    decide_adoption,
    decide_pool,
    decide_proposal,
    estimate_effects,
    first_model,
    moved,
    require_members,
    update_size,
)
from causaldao.errors import CausalDAOError, ConfigurationError, GuaranteeError, IdentityError, LedgerError
from causaldao.ledger.entry import Entry
from causaldao.ledger.log import Log
from causaldao.members import Roster
from causaldao.messages import COORDINATOR, Parcel, Shape, fields, make, names_of
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.scm import NeuralSCM
from causaldao.server.clock import Clock
from causaldao.server.mailbox import LOST, Accepted, Mailbox, Question, Rejected, Replies
from causaldao.server.progress import QUARANTINE, Event
from causaldao.signing import SigningKey, Statement, Tensors, digest, manifest, peek, raw_bytes, sha256
from causaldao.study import Study

RETRY_SECONDS = 5.0
STATE = "study"
ABORTED = "aborted"
_TOLD_BY_ROUND = ("training", "evaluate")  # a complete round has a line of its own
_NO_ABORT = (ConfigurationError, LedgerError)  # the study was not at fault, or the ledger cannot take the entry


@dataclass
class State:
    """What the next step needs, saved with the entries of the last one. Model tensors stand beside it."""

    study: str
    done: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    statuses: dict[str, dict[str, str]] = field(default_factory=dict)
    noise: dict[str, str] = field(default_factory=dict)
    pool: dict[str, Any] = field(default_factory=dict)
    proposal: dict[str, Any] = field(default_factory=dict)
    consensus: dict[str, Any] = field(default_factory=dict)
    effects: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    spent: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Coordinator:
    """One study on one ledger. ``progress`` is told what happens, ``on_state`` each state right after it is durable."""

    study: Study
    roster: Roster
    key: SigningKey
    log: Log
    mailbox: Mailbox
    clock: Clock
    progress: Callable[[Event], None] = lambda event: None
    on_state: Callable[[str], None] = lambda state: None
    keep_updates: bool = False

    def __post_init__(self) -> None:
        self._load()

    def _load(self) -> None:
        """Start from what is durable, also after a step that failed half-way."""
        saved = self.log.state(STATE)
        self.state = State(**saved) if saved else State(self.study.hash)
        if self.state.study != self.study.hash:
            raise ConfigurationError(
                f"This ledger belongs to study {self.state.study[:12]}, not to {self.study.hash[:12]}: the study was "
                "altered. Use the study it was started with, or a new ledger."
            )
        self._nodes: dict[str, int] = {}
        self._asked: list[str] = []  # of the question at hand: whoever may have made the release it asks for
        self._aborted: dict[str, Any] | None = self.log.state(ABORTED)
        self._notes: list[Entry] = []  # complaints and equivocations that wait for the step's transaction
        self._model: Tensors | None = None

    def run(self) -> State:
        """Walk the study to its end, from wherever it stands.

        Raises
        ------
        GuaranteeError
            too few members answered before the deadline, or f is more than the rules bear; the study is then aborted
            on the ledger, and its code is 13. Run again, it goes on from there, and its next transition says so.
        """
        self._load()
        try:
            require_members(self.study, len(self.roster.members))
            self._step("proposed", self._propose_study)
            self._step("roll-call", self._call_roll)
            self._step("evidence", self._gather_evidence)
            self._step("ballots", self._gather_ballots)
            self._step("adopted", self._adopt)
            for number in range(1, self.study.training.rounds + 1):
                self._step(f"aggregate {number}", partial(self._train, number))
                self._step(f"training {number}", partial(self._evaluate, number))
            self._step("evaluated", self._evaluated)
            self._step("released", self._release)
            self._step("closed", self._close)
        except CausalDAOError as error:
            if not isinstance(error, _NO_ABORT) and "proposed" in self.state.done:
                self._abort(error)
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
        act()
        phase = name.split()[0]
        self.state.seconds[phase] = self.state.seconds.get(phase, 0.0) + self.clock.monotonic() - began
        self.on_state(name)

    def _propose_study(self) -> None:
        genesis = Entry("genesis", {"federation": self.roster.federation, "faulty": self.roster.faulty}, key="genesis")
        admitted = [
            Entry(
                "member.admit",
                {"member": m.name, "key": m.key.to_text(m.name), "epoch": m.epoch},
                key=f"admit {m.name}",
            )
            for m in self.roster.members
        ]
        body = {"study": self.study.hash, "document": self.study.to_json()}
        self._commit("proposed", [genesis, *admitted, self._transition("proposed", body)])

    def _call_roll(self) -> None:
        body = {"study": self.study.to_json()}
        accepted = self._collect("rollcall", 0, body, check=self._check_roll, phase="roll call")
        self._nodes = {name: reply.node for name, reply in accepted.items()}
        present = sorted(accepted)
        self.state.present = present
        self.state.noise = {name: accepted[name].statement.body["noise"] for name in present}
        approvals = [{"member": name, "envelope": accepted[name].parcel.envelope.decode()} for name in present]
        self._commit(
            "roll-call",
            [
                self._transition("approved", {"approvals": approvals}),
                self._transition("roll-call", {"present": present}),
            ],
        )

    def _check_roll(self, statement: Statement, parcel: Parcel) -> None:
        fields(statement.body, {"version": str, "noise": str})
        if len(statement.body["version"]) > 64:
            raise IdentityError("A node's version has at most 64 characters.")
        self._check_noise(statement)

    def _check_noise(self, statement: Statement) -> None:
        """A member says where its noise comes from; only a study that is a simulation may have it seeded."""
        allowed = ("os", "simulated") if self.study.study.simulation else ("os",)
        if statement.body["noise"] not in allowed:
            raise IdentityError(f"The node's noise must be one of {', '.join(allowed)}, but it declares another.")

    def _locate(self) -> None:
        """After a resume, or when nodes came back: which node is whose, by each signing a fresh challenge.

        The roll call's answers stand on the ledger, where another member could take one and bring it as its own.
        """
        connected = self.mailbox.nodes()
        self._nodes = {name: node for name, node in self._nodes.items() if node in connected}
        unknown = [node for node in connected if node not in self._nodes.values()]
        if set(self.state.present) <= set(self._nodes) or not unknown:
            return
        challenge = secrets.token_hex(16)

        def check(statement: Statement, parcel: Parcel) -> None:
            if statement.body != {"challenge": challenge}:
                raise IdentityError("The node signed another challenge than the one it was sent.")

        question = self._question("locate", 0, {"challenge": challenge})
        replies = self.mailbox.ask(question, unknown, self._deadline, check=check)
        found = {name: reply.node for name, reply in replies.accepted.items() if name in self.state.present}
        self._nodes = {**found, **self._nodes}

    def _gather_evidence(self) -> None:
        d = len(self.study.names) + 1
        shapes = {"moments": Shape("int64", (d * (d + 1) // 2,))}

        def check(statement: Statement, parcel: Parcel) -> None:
            fields(statement.body, {"noise": str})
            self._check_noise(statement)
            self._evidence_of(parcel.tensors["moments"])

        accepted = self._collect("evidence", 0, {}, shapes=shapes, members=self.state.present, check=check)
        evidence = {name: self._evidence_of(reply.parcel.tensors["moments"]) for name, reply in accepted.items()}
        for name, reply in accepted.items():
            self.state.noise[name] = reply.statement.body["noise"]
        entries = [self._spoken("evidence", accepted[name], keep=True) for name in sorted(accepted)]
        spends = self._spends("evidence", 0, plan(self.study).evidence)
        decided = decide_pool(self.study, evidence, len(self.roster.members))
        proposal = decide_proposal(self.study, decided)
        self.progress(Event("pool", f"kept {len(decided.kept)}, accused {names_of(decided.accused)}", 1, 1))
        self.state.pool = {**decided.to_json(), "counts": {name: e.count for name, e in sorted(evidence.items())}}
        self.state.proposal = proposal.to_json()
        pooled = Entry("pool", {"study": self.study.hash, "pool": decided.to_json(), "proposal": proposal.to_json()})
        self._commit("evidence", [*entries, *spends, pooled, self._transition("evidence", {"noise": self.noise})])

    def _gather_ballots(self) -> None:
        voters = sorted(self.state.pool["counts"])
        proposal, level = self._proposal, self.study.consensus.level
        evidence = self._recorded_evidence()

        def check(statement: Statement, parcel: Parcel) -> None:
            ballot = Ballot.from_json(statement.body, proposal)
            wrong = recheck(ballot, proposal, evidence[statement.member], level)
            if wrong:
                raise IdentityError(f"The ballot does not follow from its voter's evidence on {names_of(wrong)}.")

        body = {"proposal": self.state.proposal}
        accepted = self._collect("ballot", 0, body, members=voters, check=check, phase="ballots")
        entries = [self._spoken("ballot", accepted[name]) for name in sorted(accepted)]
        self._commit("ballots", [*entries, self._transition("ballots", {"voters": sorted(accepted)})])

    def _adopt(self) -> None:
        proposal = self._proposal
        ballots = {
            record.body["member"]: Ballot.from_json(self._said(record.body["envelope"]), proposal)
            for record in self.log.entries()
            if record.kind == "ballot"
        }
        consensus = decide_adoption(self.study, proposal, ballots, len(self.state.present))
        self.state.consensus = consensus.to_json()
        self.state.effects = estimate_effects(self.study, self._pooled, consensus, self.state.pool["bounds"])
        self.progress(
            Event("adopt", f"{len(consensus.pattern.edges)} edges, {len(consensus.contested)} marks contested", 1, 1)
        )
        adopted = Entry(
            "adopt", {"study": self.study.hash, "consensus": consensus.to_json(), "effects": self.state.effects}
        )
        self._commit("adopted", [adopted, self._transition("adopted", {})])

    def _train(self, number: int) -> None:
        model = self._tensors()
        _, meta = self._first_model().state()
        size = update_size(self.study)
        base = digest(model)

        def check(statement: Statement, parcel: Parcel) -> None:
            if statement.body != {"base": base}:
                raise IdentityError("The update was made against another model than the one that was sent.")

        accepted = self._collect(
            "update", number, {"model": meta}, tensors=model, shapes={"delta": Shape("float32", (size,))},
            members=sorted(self.state.pool["counts"]), check=check, phase="training",
        )  # fmt: skip
        names = sorted(accepted)
        stack = torch.from_numpy(np.stack([accepted[name].parcel.tensors["delta"] for name in names]).copy())
        rule, members = self.study.aggregation.rule, len(self.roster.members)
        faulty = faults_left(rule, members, self.study.consensus.faulty, len(names))
        result = aggregate(stack, rule, faulty)
        changed = moved(model, result.vector)
        excluded = [names[k] for k in result.excluded]
        entries = [self._spoken("update", accepted[name], keep=self.keep_updates) for name in names]
        entries += self._spends("update", number, _given(plan(self.study).training))
        entries.append(
            Entry("aggregate", {
                "study": self.study.hash,
                "round": number,
                "rule": self.study.aggregation.rule,
                "faulty": faulty,
                "members": names,
                "gram": result.gram.tolist(),
                "weights": None if result.weights is None else result.weights.tolist(),
                "excluded": excluded,
                "base": base,
                "result": digest(changed),
            })
        )  # fmt: skip
        entry = {"round": number, "loss": None, "rule": self.study.aggregation.rule, "excluded": excluded}
        self.state.rounds.append({**entry, "kept": [name for name in names if name not in excluded]})
        self._commit(f"aggregate {number}", entries, model=changed)
        self._model = changed

    def _evaluate(self, number: int) -> None:
        """The median of the members' noised losses: f liars among 2f + 1 cannot move it out of the honest range.

        A step of its own: resumed, it must ask about the model that was asked about before, or no node would answer.
        """
        model = self._tensors()
        _, meta = self._first_model().state()
        base = digest(model)
        bound = self.study.privacy.loss_bound

        def check(statement: Statement, parcel: Parcel) -> None:
            if statement.body != {"base": base}:
                raise IdentityError("The evaluation is of another model than the one that was sent.")

        accepted = self._collect(
            "evaluation", number, {"model": meta}, tensors=model, shapes={"loss": Shape("float64", (1,))},
            members=sorted(self.state.pool["counts"]), check=check, phase="evaluate",
        )  # fmt: skip
        names = sorted(accepted)
        losses = [float(accepted[name].parcel.tensors["loss"][0]) for name in names]
        loss = float(np.clip(np.median(losses), 0.0, bound))
        spend = _given(plan(self.study).evaluation)
        spoken = [
            Entry(entry.kind, {**entry.body, **self._envelope(accepted[name])}, self._payloads(accepted[name]))
            if (name := str(entry.body["member"])) in accepted
            else entry
            for entry in self._spends("evaluation", number, spend)
        ]
        self.state.rounds[-1]["loss"] = loss
        excluded, total = names_of(self.state.rounds[-1]["excluded"]), self.study.training.rounds
        self.progress(Event("training", f"round {number}: loss {loss:.3f}, excluded {excluded}", number, total))
        transition = self._transition("training", {"round": number, "loss": loss})
        self._commit(f"training {number}", [*spoken, transition])

    def _evaluated(self) -> None:
        self._commit("evaluated", [self._transition("evaluated", {"rounds": len(self.state.rounds)})])

    def _release(self) -> None:
        model = digest(self._tensors()) if self.study.training.rounds else ""
        body = {"study": self.study.hash, "model": model, "dag": self.state.consensus["dag"]}
        self.progress(Event("release", "effects and model released", 1, 1))
        self._commit("released", [Entry("release", body), self._transition("released", {})])

    def _close(self) -> None:
        result = sha256(self.log.head.root.encode())
        accepted = self._collect("close", 0, {"result": result}, members=self.state.present, minimum=0)
        self._commit("closed", [self._transition("closed", {"heard": sorted(accepted)})])

    def _abort(self, error: CausalDAOError) -> None:
        """Record why, and what was seen of the step that failed.

        Its half-made state is left behind, but for those whom it excluded: proof of that is on the ledger now.
        """
        body = {"code": error.code, "exit_code": error.exit_code, "reason": error.message}
        entries = [*self._notes, self._transition("aborted", body)]
        saved = self.log.state(STATE)
        excluded = {name: s for name, s in self.state.statuses.items() if s["status"] == "excluded"}
        saved["statuses"] = {**saved["statuses"], **excluded}
        aborted = {"entry": self.log.head.size + len(entries) - 1, "code": error.code}
        self.log.append(entries, {ABORTED: aborted, STATE: saved})
        self.on_state("aborted")

    # asking

    @property
    def _deadline(self) -> float:
        return self.study.members.deadline

    def _question(
        self, kind: str, round: int, body: Mapping[str, Any], tensors: Tensors | None = None,
        shapes: Mapping[str, Shape] | None = None,
    ) -> Question:  # fmt: skip
        parcel = make(
            self.key, federation=self.roster.federation, study=self.study.hash, round=round, member=COORDINATOR,
            kind=kind, body=body, nonce=secrets.token_hex(16), parent=self.log.head.root, tensors=tensors,
        )  # fmt: skip
        return Question(kind, self.study.hash, round, parcel, shapes or {})

    def _collect(
        self,
        kind: str,
        round: int,
        body: Mapping[str, Any],
        *,
        tensors: Tensors | None = None,
        shapes: Mapping[str, Shape] | None = None,
        members: Sequence[str] | None = None,
        minimum: int | None = None,
        check: Callable[[Statement, Parcel], Any] = lambda statement, parcel: None,
        phase: str = "",
    ) -> dict[str, Accepted]:
        """The accepted replies: ask until enough members have answered, give up at the deadline.

        Who is missing is named at once. What was not taken waits in ``_notes`` for the step's transaction.
        """
        wanted = list(self.roster.names) if members is None else list(members)
        barred = {name for name, status in self.state.statuses.items() if status["status"] == "excluded"}
        needed = answers_needed(self.study, len(self.roster.members)) if minimum is None else minimum
        self._asked = [name for name in wanted if name not in barred]
        question = self._question(kind, round, body, tensors, shapes)
        began, accepted, heard = self.clock.monotonic(), dict[str, Accepted](), dict[str, tuple[str, bytes]]()
        before = dict(self.state.statuses)
        while True:
            if self.state.present:
                self._locate()
            missing = [name for name in wanted if name not in accepted and name not in barred]
            bound = {self._nodes[name]: name for name in missing if name in self._nodes}
            nodes = sorted(bound) if self.state.present else self.mailbox.nodes()
            if len(accepted) + len(nodes) < needed:
                absent = [name for name in missing if name not in self._nodes] if self.state.present else []
                self._announce(kind, needed, len(accepted) + len(nodes), absent)
            replies = self.mailbox.ask(question, nodes, self._deadline, bound, check, heard)
            taken = {name: reply for name, reply in replies.accepted.items() if name in missing}
            accepted.update(taken)
            for name in set(taken) & set(self.state.statuses):  # a retry that succeeded leaves no stain
                self.state.statuses.pop(name)
                self.state.statuses.update({name: before[name]} if name in before else {})
            barred |= {equivocation.member for equivocation in replies.equivocations}
            self._note(kind, round, replies)
            self._note_lost(kind, round, [name for name in missing if name not in {*accepted, *barred, *self._nodes}])
            if phase not in _TOLD_BY_ROUND or len(accepted) < len(wanted):
                message = f"{len(accepted)} of {len(wanted)} members, {needed} needed"
                self.progress(Event(phase or kind, message, len(accepted), len(wanted)))
            if len(accepted) >= needed:
                return {name: accepted[name] for name in sorted(accepted)}
            self._wait(kind, needed, accepted, wanted, began)

    def _announce(self, kind: str, needed: int, reached: int, missing: Sequence[str]) -> None:
        who = f"; missing: {names_of(missing)}" if missing else ""
        self.progress(Event(QUARANTINE, f"waiting: {reached} of {needed} members for {kind}{who}"))

    def _wait(self, kind: str, needed: int, accepted: Mapping[str, Any], wanted: Sequence[str], began: float) -> None:
        missing = [name for name in wanted if name not in accepted]
        reasons = "; ".join(
            f"{name}: {self.state.statuses[name]['reason']}" for name in missing if name in self.state.statuses
        )
        waited = self.clock.monotonic() - began
        if waited >= self._deadline:
            raise GuaranteeError(
                f"Only {len(accepted)} of the {needed} members that {kind!r} needs answered within "
                f"{self._deadline:g} s; missing: {names_of(missing)}. {reasons}. "
                "Bring their nodes up and resume, or declare a smaller faulty."
            )
        self._announce(kind, needed, len(accepted), missing)
        self.clock.sleep(RETRY_SECONDS)

    def _note(self, kind: str, round: int, replies: Replies) -> None:
        """Entries and statuses for what was not taken; a member's own text never enters, only codes and our reasons."""
        for rejected in replies.rejected:
            complaint = self._complaint(kind, round, rejected)
            if complaint in self._notes:
                continue  # the same fault at each retry is one complaint
            self._notes.append(complaint)
            name = rejected.member
            if name is not None and self.state.statuses.get(name, {}).get("status") != "excluded":
                status = "absent" if rejected.code == LOST else "quarantined"
                self.state.statuses[name] = {"status": status, "reason": f"{kind}: {rejected.reason}"}
            who = name or f"node {rejected.node}"
            self.progress(Event(QUARANTINE, f"{who}: {kind} not taken ({rejected.code}): {rejected.reason}"))
        for equivocation in replies.equivocations:
            body = {
                "study": self.study.hash, "round": round, "kind": kind, "member": equivocation.member,
                "exhibits": [equivocation.first.decode(), equivocation.second.decode()],
            }  # fmt: skip
            self._notes.append(Entry("equivocation", body))
            reason = f"signed two contents for one {kind}"
            self.state.statuses[equivocation.member] = {"status": "excluded", "reason": reason}
            self.progress(Event(QUARANTINE, f"{equivocation.member}: excluded, {reason}"))

    def _note_lost(self, kind: str, round: int, names: Sequence[str]) -> None:
        """Members of whom no node is known: nobody could be asked, and nobody spoke for them."""
        known = {entry.body["member"] for entry in self._notes if entry.body["kind"] == kind}
        lost = [Rejected(name, 0, LOST, "none of its nodes answered") for name in names if name not in known]
        self._note(kind, round, Replies(rejected=lost))

    def _complaint(self, kind: str, round: int, rejected: Rejected) -> Entry:
        body = {
            "study": self.study.hash, "by": COORDINATOR, "kind": kind, "round": round, "code": rejected.code,
            "member": rejected.member or "", "reason": rejected.reason,
        }  # fmt: skip
        return Entry("complaint", body)

    # recording

    def _commit(self, name: str, entries: Sequence[Entry], model: Tensors | None = None) -> None:
        """Entries and state become durable together."""
        self.state.done.append(name)
        saved: dict[str, Any] = {STATE: asdict(self.state)}
        if any(entry.kind.startswith("study.") for entry in entries):
            saved[ABORTED] = self._aborted = None
        if model is not None:
            saved["model"] = base64.b64encode(Parcel(b"", model).pack()).decode()
        self.log.append([*self._notes, *entries], saved)
        self._notes.clear()

    def _transition(self, state: str, body: Mapping[str, Any]) -> Entry:
        resumed = {} if self._aborted is None else {"resumed_after": self._aborted}
        return Entry(f"study.{state}", {**body, **resumed, "study": self.study.hash})

    def _envelope(self, reply: Accepted) -> dict[str, Any]:
        return {"envelope": reply.parcel.envelope.decode(), "manifest": manifest(reply.parcel.tensors)}

    @staticmethod
    def _payloads(reply: Accepted) -> dict[str, bytes]:
        return {sha256(raw_bytes(array)): raw_bytes(array) for array in reply.parcel.tensors.values()}

    def _spoken(self, kind: str, reply: Accepted, keep: bool = False) -> Entry:
        """The entry of a member's own word; the tensors' bytes go in if ``keep``."""
        body = {
            "study": self.study.hash, "member": reply.statement.member, "round": reply.statement.round,
            **self._envelope(reply),
        }  # fmt: skip
        if kind == "update":
            body["norm"] = float(np.linalg.norm(reply.parcel.tensors["delta"].astype(np.float64)))
        return Entry(kind, body, self._payloads(reply) if keep else {})

    def _spends(self, kind: str, round: int, spend: Spend) -> list[Entry]:
        """Debit everyone who was asked: a release that was lost, or not taken, was made all the same."""
        for name in self._asked:
            self.state.spent.setdefault(name, []).append(asdict(spend))
        return [
            Entry(
                "privacy.spend",
                {"study": self.study.hash, "member": name, "kind": kind, "round": round, **asdict(spend)},
            )
            for name in self._asked
        ]

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
    def _pooled(self) -> Evidence:
        return Evidence.from_json(self.state.pool["evidence"])

    def _recorded_evidence(self) -> dict[str, Evidence]:
        """Each member's evidence as the ledger holds it."""
        found = {}
        for record in self.log.entries():
            if record.kind == "evidence":
                (entry,) = record.body["manifest"]
                triangle = np.frombuffer(self.log.payload(entry["sha256"]), dtype="<i8")
                found[str(record.body["member"])] = self._evidence_of(triangle)
        return found

    def _evidence_of(self, triangle: Any) -> Evidence:
        return Evidence.from_release(triangle, self.study.dictionary, plan(self.study).sigma)

    @staticmethod
    def _said(envelope: str) -> Any:
        return peek(envelope.encode()).body

    def _first_model(self) -> NeuralSCM:
        return first_model(self.study, self._pooled, CausalGraph.from_json(self.state.consensus["dag"]))

    def _tensors(self) -> Tensors:
        """The current model's tensors: the last aggregate, or the linear start."""
        if self._model is None:
            saved = self.log.state("model")
            self._model = (
                self._first_model().state()[0] if saved is None else Parcel.unpack(base64.b64decode(saved)).tensors
            )
        return self._model


def _given(spend: Spend | None) -> Spend:
    if spend is None:
        raise ConfigurationError("The study trains nothing, yet a round was asked for.")
    return spend
