"""What the inline engine and a round cost, beside bare Flower messages over the same bytes.

* ``message``: one round trip of a signed, digested, checked parcel of ``parameters`` float32, against the same array in
  a bare Flower message through the same serialisation, in alternating pairs.
* ``round``: ``members`` members, each with a 10-variable ballot and an update of ``parameters``: asking and checking
  both, adopting, aggregating (multi-Krum, f a fifth), and one ledger transaction; against the same two exchanges bare.
  The members' own work is prepared beforehand: this is the coordinator's and the engine's cost.
* ``first_round``: seconds from the start of a fresh process to the end of a real study's first training round.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from causaldao.aggregation import aggregate
from causaldao.ballots import Ballot, Proposal, cast, marks_of
from causaldao.consensus import ConsensusRule, adopt
from causaldao.ledger.entry import Entry
from causaldao.ledger.log import Log
from causaldao.members import Member, Roster
from causaldao.messages import Parcel, Shape, make
from causaldao.models.discovery import discover
from causaldao.models.discovery.evidence import Evidence
from causaldao.server.clock import SimulatedClock
from causaldao.server.mailbox import Accepted, Mailbox, Question
from causaldao.signing import SigningKey, Statement, manifest
from causaldao.simulations.datasets import linear_gaussian
from causaldao.simulations.engine import SERVER, InlineGrid, identity
from causaldao.wire import to_records

_STUDY = "0" * 64
_FIRST_ROUND = """
import sys, time
from pathlib import Path
from causaldao.simulations.federation import Setting, simulate
from causaldao.simulations.scenarios import load_study, load_table
class Done(Exception): pass
def stop(state):
    if state == "training 1": raise Done
study = load_study(Path("rand-hie"))
try: simulate(study, load_table("rand-hie"), Path(sys.argv[1]), Setting(10, 2), on_state=stop)
except Done: pass
"""


def measure(*, members: int = 100, parameters: int = 100_000, repeats: int = 5) -> dict[str, Any]:
    """Medians in milliseconds and seconds, and ratios to the bare exchange of the same run."""
    torch.set_num_threads(1)
    bench = _Bench(members, parameters)
    with identity(SERVER):
        pairs = [(bench.exchange(bench.update, 1), bench.bare(1)) for _ in range(repeats * 5)]
        rounds = [(bench.round(), 2 * bench.bare(members)) for _ in range(repeats)]
    message, bare = (median(pair[k] for pair in pairs) for k in (0, 1))
    parts = {name: median(parts[name] for parts, _ in rounds) for name in rounds[0][0]}
    whole, bare_round = sum(parts.values()), median(peer for _, peer in rounds)
    return {
        "members": members,
        "parameters": parameters,
        "repeats": repeats,
        "message": {"ms": 1e3 * message, "bare_flower_ms": 1e3 * bare, "ratio": message / bare},
        "round": {"seconds": whole, "bare_flower_seconds": bare_round, "ratio": whole / bare_round, "parts": parts},
        "first_round": {"seconds": median(_first_round() for _ in range(min(repeats, 3)))},
    }


class _Bench:
    """A federation whose members' replies are made beforehand."""

    def __init__(self, members: int, parameters: int) -> None:
        self.members = members
        names = [f"m-{k:03d}" for k in range(members)]
        self.keys = {name: SigningKey.from_seed(k.to_bytes(32, "big")) for k, name in enumerate(names)}
        witnesses = [SigningKey.from_seed((members + k).to_bytes(32, "big")).public for k in range(members)]
        admitted = zip(self.keys.items(), witnesses, strict=True)
        self.roster = Roster("bench", tuple(Member(name, key.public, witness) for (name, key), witness in admitted))
        self.proposal = _proposal()
        self.ballot = cast(self.proposal, _evidence(1), level=0.01)
        generator = np.random.default_rng(0)
        self.deltas = {name: generator.normal(size=parameters).astype(np.float32) for name in names}
        self.replies = {
            "ballot": {name: self._reply(name, "ballot") for name in names},
            "update": {name: self._reply(name, "update") for name in names},
        }
        self.clock = SimulatedClock()
        self.grid = InlineGrid({name: self._app(name) for name in names}, self.clock)
        self.mailbox = Mailbox(self.grid, self.roster)
        self.update = Question("update", _STUDY, 1, self._request("update"), {"delta": Shape("float32", (parameters,))})
        self.vote = Question("ballot", _STUDY, 1, self._request("ballot"))

    def exchange(self, question: Question, members: int) -> float:
        """Seconds to ask ``members`` members and check what they reply."""
        return _timed(lambda: self.mailbox.ask(question, self.mailbox.nodes()[:members], 60.0))[0]

    def bare(self, members: int) -> float:
        """Seconds for the same arrays in bare Flower messages through the same engine."""
        nodes = self.mailbox.nodes()[:members]
        messages = [Message(RecordDict({"bare": ConfigRecord({"x": 1})}), node, "evaluate") for node in nodes]
        return _timed(lambda: [_raw(m) for m in self.grid.send_and_receive(messages)])[0]

    def round(self) -> dict[str, float]:
        """Seconds of each part of a whole round."""
        nodes = self.mailbox.nodes()
        ask_votes, votes = _timed(lambda: self.mailbox.ask(self.vote, nodes, 60.0, check=self._check_ballot).accepted)
        ask_updates, updates = _timed(lambda: self.mailbox.ask(self.update, nodes, 60.0).accepted)
        ballots = {name: Ballot.from_json(reply.statement.body, self.proposal) for name, reply in votes.items()}
        rule = ConsensusRule(0.6, self.members // 5, self.members)
        adopting, _ = _timed(lambda: adopt(self.proposal, ballots, rule))
        stack = torch.from_numpy(np.stack([updates[name].parcel.tensors["delta"] for name in sorted(updates)]))
        aggregating, _ = _timed(lambda: aggregate(stack, "multi-krum", self.members // 5))
        recording, _ = _timed(lambda: self._record([*votes.values(), *updates.values()]))
        return {
            "ballots": ask_votes, "updates": ask_updates, "adopt": adopting, "aggregate": aggregating,
            "ledger": recording,
        }  # fmt: skip

    def _check_ballot(self, statement: Statement, parcel: Parcel) -> None:
        Ballot.from_json(statement.body, self.proposal)

    def _record(self, replies: list[Accepted]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            key = SigningKey.from_seed(b"\xff" * 32)
            with Log.create(f"sqlite:///{Path(folder) / 'ledger.db'}", "bench", key, self.clock.now) as log:
                log.append([Entry("genesis", {"faulty": 0, "federation": "bench"}), *map(_entry, replies)])

    def _reply(self, name: str, kind: str) -> RecordDict:
        body = self.ballot.to_json() if kind == "ballot" else {"base": ""}
        tensors = {"delta": self.deltas[name]} if kind == "update" else {}
        return to_records(
            make(
                self.keys[name], federation="bench", study=_STUDY, round=1, member=name, kind=kind, body=body,
                nonce="n", parent="p", tensors=tensors,
            )
        )  # fmt: skip

    def _request(self, kind: str) -> Parcel:
        return make(
            SigningKey.from_seed(b"\xff" * 32), federation="bench", study=_STUDY, round=1, member="coordinator",
            kind=kind, body={}, nonce="n", parent="p",
        )  # fmt: skip

    def _app(self, name: str) -> ClientApp:
        app = ClientApp()
        bare = Array(dtype="float32", shape=self.deltas[name].shape, stype="raw.le", data=self.deltas[name].tobytes())

        @app.train()
        def train(message: Message, context: Context) -> Message:
            return Message(self.replies["update"][name], reply_to=message)

        @app.query("ballot")
        def query(message: Message, context: Context) -> Message:
            return Message(self.replies["ballot"][name], reply_to=message)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            return Message(RecordDict({"arrays": ArrayRecord({"delta": bare})}), reply_to=message)

        return app


def _entry(reply: Accepted) -> Entry:
    kind = reply.statement.kind
    body = {"envelope": reply.parcel.envelope.decode(), "manifest": manifest(reply.parcel.tensors)}
    return Entry(kind, {"study": _STUDY, "member": reply.statement.member, "round": 1, **body})


def _evidence(seed: int) -> Evidence:
    weights = {(f"v{a}", f"v{b}"): 0.5 for a in range(10) for b in range(a + 1, 10) if (a + b) % 3 == 0}
    nodes = [f"v{k}" for k in range(10)]
    return Evidence.from_data(linear_gaussian(weights, 2000, np.random.default_rng(seed), nodes))


def _proposal() -> Proposal:
    evidence = _evidence(0)
    graph = discover(evidence, "boss", generator=torch.Generator().manual_seed(0))
    return Proposal(graph, marks_of(graph, evidence))


def _first_round() -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", _FIRST_ROUND, str(Path(folder) / "run")], check=True)
        return time.perf_counter() - began


def _raw(message: Message) -> Any:
    return np.frombuffer(message.content.array_records["arrays"]["delta"].data, dtype="<f4")


def _timed(act: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = act()
    return time.perf_counter() - began, result
