"""What one study has on the ledger and beside it: its state, its entries, and what became of its members.

A ledger holds many studies. Everything here is kept and read under the study's hash. Each step of a study is one
transaction: its entries, and the state to go on from. Only the proof that a member signed two contents does not wait
for its step.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from causaldao.aggregation import Aggregate
from causaldao.budget import RELEASES, plan
from causaldao.decisions import Learnt
from causaldao.declared import Declaration
from causaldao.errors import CausalDAOError, ConfigurationError
from causaldao.ledger.entry import STUDY_STATES, Entry
from causaldao.ledger.log import Log, Recorded
from causaldao.members import Roster
from causaldao.messages import COORDINATOR, Parcel, names_of
from causaldao.models.discovery.evidence import Evidence
from causaldao.server import membership
from causaldao.server.replies import Accepted, Equivocation, Rejected
from causaldao.signing import Tensors, manifest, peek, raw_bytes, sha256
from causaldao.study import Study

GRAM_IN_BODY = 102  # points up to which an aggregate's Gram matrix stands in its entry's body, which is bounded
_PROPOSED, _ABORTED = "study.proposed", "study.aborted"


@dataclass
class State:
    """What the next step needs, saved with the entries of the last one. Model tensors stand beside it."""

    study: str
    done: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    statuses: dict[str, dict[str, str]] = field(default_factory=dict)
    noise: dict[str, str] = field(default_factory=dict)
    declared: dict[str, dict[str, Any]] = field(default_factory=dict)
    pool: dict[str, Any] = field(default_factory=dict)
    proposal: dict[str, Any] = field(default_factory=dict)
    consensus: dict[str, Any] = field(default_factory=dict)
    effects: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    spent: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def propose(log: Log, study: Study) -> None:
    """Record that a study is proposed, with its whole document; again changes nothing."""
    if log.state(state_key(study.hash)) is None:
        body = {"study": study.hash, "document": study.to_json()}
        state = State(study.hash, done=["proposed"])
        log.append([Entry(_PROPOSED, body, key=f"proposed {study.hash}")], {state_key(study.hash): asdict(state)})


def proposed(log: Log) -> dict[str, str]:
    """The studies on a ledger: their names by their hashes, in the order in which they were proposed."""
    return {
        str(record.body["study"]): str(record.body["document"]["study"]["name"])
        for record in log.entries(kinds=(_PROPOSED,))
    }


def find(log: Log, study: str) -> Study:
    """The study of that hash, as it was proposed.

    Raises
    ------
    ConfigurationError
        the ledger has no such study; the error names those that it has.
    """
    for record in log.entries(kinds=(_PROPOSED,), study=study):
        return Study.from_mapping(record.body["document"])
    known = [f"{hash[:12]} ({name})" for hash, name in proposed(log).items()]
    raise ConfigurationError(
        f"This ledger knows no study {study[:12]}; it has {names_of(known)}. A study that was altered has another hash "
        "and is another study: propose it, or go on with the one that was proposed."
    )


def found_if_new(log: Log, roster: Roster) -> None:
    """Found the federation and admit its members on a ledger that has none: a simulation's way. Elsewhere the operator
    did so before, and nothing changes."""
    if not log.entries(kinds=("member.admit",)):
        membership.found(log, roster.federation, roster.faulty)
        membership.admit(log, *roster.members)


def state_key(study: str) -> str:
    """The key of a study's state."""
    return f"study {study}"


def model_key(study: str) -> str:
    """The key of a study's model as last aggregated."""
    return f"model {study}"


def memory_key(study: str) -> str:
    """The key of what rule and optimiser keep from one round to the next."""
    return f"memory {study}"


@dataclass
class Book:
    """One study's part of a ledger. ``notes`` are complaints that wait for the transaction of the step at hand."""

    log: Log
    study: Study
    keep_updates: bool = False
    state: State = field(init=False)
    notes: list[Entry] = field(init=False, default_factory=list)
    convicted: dict[str, tuple[str, int]] = field(init=False, default_factory=dict)
    """By member that signed two contents: the kind and round of its slot."""

    def __post_init__(self) -> None:
        self.load()

    def load(self) -> None:
        """Start from what is durable, also after a step that failed half-way."""
        hash = self.study.hash
        saved = self.log.state(state_key(hash))
        self.state = State(**saved) if saved else State(hash)
        self.notes, self.convicted = [], {}
        states = self.entries(*(f"study.{state}" for state in STUDY_STATES))
        last = states[-1] if states and states[-1].kind == _ABORTED else None
        self._aborted = None if last is None else {"entry": last.index, "code": last.body["code"]}
        self._debited = self._slots() if any(record.kind == _ABORTED for record in states) else frozenset()
        for record in self.entries("equivocation"):
            self._convict(str(record.body["member"]), str(record.body["kind"]), int(record.body["round"]))

    def entries(self, *kinds: str) -> tuple[Recorded, ...]:
        """The study's entries of these kinds."""
        return self.log.entries(kinds=kinds, study=self.study.hash)

    # writing

    def commit(self, name: str, entries: Sequence[Entry], learnt: Learnt | None = None) -> None:
        """Entries and state become durable together, and after a round of training what was learnt in it."""
        self.state.done.append(name)
        saved: dict[str, Any] = {state_key(self.study.hash): asdict(self.state)}
        if learnt is not None:
            saved[model_key(self.study.hash)] = _packed(learnt.model)
            saved[memory_key(self.study.hash)] = _packed(learnt.memory)
        self.log.append([*self.notes, *entries], saved)
        self.notes.clear()
        if any(entry.kind.startswith("study.") for entry in entries):
            self._aborted = None

    def abort(self, error: CausalDAOError, kind: str, round: int, asked: Iterable[str]) -> None:
        """Record why, and what was seen of the step that failed, with what its question may have cost whoever was
        asked; its half-made state is left behind."""
        body = {"code": error.code, "exit_code": error.exit_code, "reason": error.message}
        notes = list(self.notes)
        self.load()
        self._debited = self._slots()  # the step of that question may be done, and another have failed
        spends = self.spends(kind, round, asked) if kind in RELEASES and plan(self.study).of(kind) else []
        saved = {state_key(self.study.hash): asdict(self.state)}
        self.log.append([*notes, *spends, self.transition("aborted", body)], saved)
        self.load()

    def _slots(self) -> frozenset[tuple[str, str, int]]:
        """Member, kind and round of all that is debited."""
        return frozenset(
            (str(record.body["member"]), str(record.body["kind"]), int(record.body["round"]))
            for record in self.entries("privacy.spend")
        )

    def complain(self, kind: str, round: int, rejected: Rejected) -> bool:
        """Note why an answer was not taken; False if that is noted already: a fault at each retry is one complaint."""
        body = {
            "study": self.study.hash, "by": COORDINATOR, "kind": kind, "round": round, "code": rejected.code,
            "member": rejected.member or "", "reason": rejected.reason,
        }  # fmt: skip
        complaint = Entry("complaint", body)
        if complaint in self.notes:
            return False
        self.notes.append(complaint)
        return True

    def complained(self, kind: str, round: int) -> set[str]:
        """The members of whom it is noted why there is no answer of theirs."""
        return {
            str(note.body["member"]) for note in self.notes if (note.body["kind"], note.body["round"]) == (kind, round)
        }

    def convict(self, kind: str, round: int, equivocation: Equivocation) -> None:
        """Record at once that a member signed two contents for one slot: the proof must survive a crash."""
        body = {
            "study": self.study.hash, "round": round, "kind": kind, "member": equivocation.member,
            "exhibits": [equivocation.first.decode(), equivocation.second.decode()],
        }  # fmt: skip
        key = f"equivocation {self.study.hash} {kind} {round} {equivocation.member}"
        self.log.append([Entry("equivocation", body, key=key)])
        self._convict(equivocation.member, kind, round)

    def _convict(self, member: str, kind: str, round: int) -> None:
        self.convicted[member] = (kind, round)
        self.state.statuses[member] = {"status": "excluded", "reason": f"signed two contents for one {kind}"}

    # entries

    def transition(self, state: str, body: Mapping[str, Any]) -> Entry:
        """The entry of a state that the study has reached; the first after an abort says so."""
        resumed = {} if self._aborted is None else {"resumed_after": self._aborted}
        return Entry(f"study.{state}", {**body, **resumed, "study": self.study.hash})

    def spoken(self, kind: str, replies: Mapping[str, Accepted]) -> list[Entry]:
        """The entries of members' own words; the bytes of evidence and of sums go in, those of updates if they
        are to be kept."""
        entries = []
        for name in sorted(replies):
            reply = replies[name]
            body = {"study": self.study.hash, "member": name, "round": reply.statement.round, **_envelope(reply)}
            if kind == "update":
                body["norm"] = float(np.linalg.norm(reply.parcel.tensors["delta"].astype(np.float64)))
            keep = kind in ("evidence", "effects") or (kind == "update" and self.keep_updates)
            entries.append(Entry(kind, body, _payloads(reply) if keep else {}))
        return entries

    def spends(
        self, kind: str, round: int, asked: Iterable[str], words: Mapping[str, Accepted] | None = None
    ) -> list[Entry]:
        """Debit everyone who was asked: a release that was lost, or not taken, was made all the same. ``words`` are
        answers that stand nowhere else.

        Who was debited when the study was aborted is not debited again when it goes on, for its node answers with the
        same bytes; its word, if it has no entry of its own, is recorded then.
        """
        spend = plan(self.study).of(kind)
        if spend is None:
            raise ConfigurationError("The study's plan has no such release, yet one was asked for.")
        entries = []
        for name in asked:
            debited, reply = (name, kind, round) in self._debited, (words or {}).get(name)
            if not debited:
                self.state.spent.setdefault(name, []).append(asdict(spend))
            body = {"study": self.study.hash, "member": name, "kind": kind, "round": round, **asdict(spend)}
            if reply is None and not debited:
                entries.append(Entry("privacy.spend", body))
            elif reply is not None:
                entries.append(Entry("privacy.spend", {**body, **_envelope(reply)}, _payloads(reply)))
        return entries

    def aggregate(
        self, round: int, names: Sequence[str], faulty: int, found: Aggregate, base: str, result: str
    ) -> Entry:
        """The entry of an aggregate of the updates of ``names``, from the model ``base`` to the model ``result``
        (digests).

        Its Gram matrix, (m, m) over the rows and the points behind them, is a payload, little-endian float64 in C
        order, where it is large; a coordinate rule that needs none has none.
        """
        body: dict[str, Any] = {
            "study": self.study.hash, "round": round, "rule": self.study.aggregation.rule, "faulty": faulty,
            "members": list(names), "weights": None if found.weights is None else found.weights.tolist(),
            "excluded": [names[k] for k in found.excluded], "norms": found.norms.tolist(), "base": base,
            "result": result,
        }  # fmt: skip
        if found.gram is None:
            return Entry("aggregate", {**body, "gram": None})
        if len(found.gram) <= GRAM_IN_BODY:
            return Entry("aggregate", {**body, "gram": found.gram.tolist()})
        data = np.ascontiguousarray(found.gram.numpy(), dtype="<f8").tobytes()
        return Entry("aggregate", {**body, "gram_payload": sha256(data)}, {sha256(data): data})

    # reading

    def evidence(self) -> dict[str, Evidence]:
        """Each member's evidence as the ledger holds it."""
        return {name: self.evidence_of(triangle) for name, (_, triangle) in self.signed_evidence().items()}

    def signed_evidence(self) -> dict[str, tuple[str, Any]]:
        """Each member's envelope around its evidence, and the int64 (m,) triangle that it signed."""
        found = {}
        for record in self.entries("evidence"):
            (entry,) = record.body["manifest"]
            triangle = np.frombuffer(self.log.payload(entry["sha256"]), dtype="<i8")
            found[str(record.body["member"])] = (str(record.body["envelope"]), triangle)
        return found

    @property
    def declared(self) -> dict[str, Declaration]:
        """What each member declared at the roll call."""
        said = self.state.declared
        return {name: Declaration.from_json(self.study, said.get(name, {})) for name in self.state.present}

    def evidence_of(self, triangle: Any) -> Evidence:
        """The evidence in a released upper triangle."""
        return Evidence.from_release(triangle, self.study.encoding, plan(self.study).sigma)

    def ballots(self) -> dict[str, Any]:
        """What each member's recorded ballot says."""
        return {
            str(record.body["member"]): peek(record.body["envelope"].encode()).body for record in self.entries("ballot")
        }

    def learnt(self) -> Learnt | None:
        """The model as last aggregated, and what rule and optimiser remember; None before the first round."""
        model, memory = (self.log.state(key(self.study.hash)) for key in (model_key, memory_key))
        return None if model is None else Learnt(_unpacked(model), {} if memory is None else _unpacked(memory))

    def released(self) -> str:
        """SHA-256 of the entry with which the study was released: the same however often its members are asked to
        close, whatever other studies write meanwhile."""
        return sha256(self.entries("study.released")[-1].record)


def summary(rule: str, names: Sequence[str], found: Aggregate) -> dict[str, Any]:
    """A round in a result: its rule, who was kept and left out, and who weighed less than half of the heaviest.

    A coordinate rule gives nobody a weight: it may leave out each member in some coordinates and none in all.
    """
    weights = None if found.weights is None else dict(zip(names, found.weights.tolist(), strict=True))
    heaviest = max((weights or {}).values(), default=0.0)
    excluded = [names[k] for k in found.excluded]
    kept = [name for name in names if name not in excluded]
    lighter = [name for name in kept if weights is not None and weights[name] < heaviest / 2]
    return {"rule": rule, "excluded": excluded, "kept": kept, "down_weighted": lighter, "weights": weights}


def _packed(tensors: Tensors) -> str:
    return base64.b64encode(Parcel(b"", tensors).pack()).decode()


def _unpacked(text: str) -> Tensors:
    return Parcel.unpack(base64.b64decode(text)).tensors


def _envelope(reply: Accepted) -> dict[str, Any]:
    return {"envelope": reply.parcel.envelope.decode(), "manifest": manifest(reply.parcel.tensors)}


def _payloads(reply: Accepted) -> dict[str, bytes]:
    return {sha256(raw_bytes(array)): raw_bytes(array) for array in reply.parcel.tensors.values()}
