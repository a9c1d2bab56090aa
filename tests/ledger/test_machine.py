"""The log and its witnesses, driven at random through appends, cosignatures, erasures and crashes, against a list.

What is checked after each step needs no knowledge of how the log is kept: its entries are the list's, its root is that
of a Merkle tree made anew over them, every receipt verifies, and no witness is told anything but a longer list.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from causaldao.errors import LedgerError, StaleError
from causaldao.ledger import Entry, Log, merkle
from causaldao.ledger.note import LOG, Checkpoint, Verifier, check_cosignature, cosigners, open_note, parse_proof
from causaldao.ledger.receipt import Pending, Receipt
from causaldao.ledger.witness import Witness
from causaldao.members import quorum
from causaldao.signing import SigningKey, sha256
from tests.counts import count
from tests.ledger.conftest import SQLite

ORIGIN = "causaldao.example/north"
LOG_KEY = SigningKey.from_seed(b"L" * 32)
VERIFIER = Verifier.of(ORIGIN, LOG_KEY.public, LOG)
GENESIS = Entry("genesis", {"federation": "north", "faulty": 0})
MEMBERS = 3
NOW = 1_750_000_000

ANY = st.integers(0, 10**6)  # an index or a size, modulo how many there are


class Crash(Exception):
    """The power is cut."""


def now() -> datetime:
    return datetime(2025, 6, 15, 15, tzinfo=UTC)


def cut() -> int:
    raise Crash


@dataclass
class Member:
    """One witness, and what it must have seen; ``copy`` is a backup of its state and the size in it."""

    name: str
    path: Path
    size: int = 0
    copy: tuple[Path, int] | None = None

    @property
    def key(self) -> SigningKey:
        return SigningKey.from_seed(self.name.encode().ljust(32, b"."))

    def opened(self, clock: Any = lambda: NOW) -> Witness:
        return Witness.open(self.path, self.name, self.key, VERIFIER, clock)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.database = SQLite(self.folder / "ledger.db")
        self.entries: list[tuple[str, dict[str, Any], tuple[str, ...]]] = []
        self.leaves: list[bytes] = []
        self.keys: dict[str, tuple[Entry, int]] = {}
        self.payloads: dict[str, bytes] = {}
        self.erased: dict[str, int] = {}
        self.state: dict[str, int] = {}
        self.cosigned: dict[int, set[str]] = {}
        self.members = [self.newcomer(number) for number in range(MEMBERS)]
        self.joined = MEMBERS

    @initialize()
    def begin(self) -> None:
        self.log = Log.create(self.database.url, ORIGIN, LOG_KEY, now)
        self.append([GENESIS])

    def teardown(self) -> None:
        self.log.close()
        shutil.rmtree(self.folder)

    def newcomer(self, number: int) -> Member:
        path = self.folder / f"witness-{number}.db"
        Witness.create(path, ORIGIN)
        return Member(f"member-{number}", path)

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.members]

    # What the list does

    def recorded(self, entries: Sequence[Entry], state: dict[str, int]) -> list[int]:
        """Append to the list; the indices that the log must give."""
        indices = []
        for entry in entries:
            if entry.key is not None and entry.key in self.keys:
                indices.append(self.keys[entry.key][1])
                continue
            indices.append(len(self.entries))
            self.entries.append((entry.kind, dict(entry.body), tuple(sorted(entry.payloads))))
            self.payloads |= entry.payloads
            if entry.key is not None:
                self.keys[entry.key] = (entry, indices[-1])
        self.state |= state
        return indices

    def entry(self, number: int, *, payload: bool, keyed: bool) -> Entry:
        data = f"payload {number}".encode()
        payload = number % 2 == 0 if keyed else payload  # one key, one content
        payloads = {sha256(data): data} if payload and sha256(data) not in self.erased else {}
        key = f"key/{number}" if keyed else None
        if key in self.keys:
            return self.keys[key][0]
        return Entry("pool", {"number": number}, payloads, key)

    BATCHES = st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans()), min_size=1, max_size=9)

    def batch(self, batch: list[tuple[int, bool, bool]]) -> list[Entry]:
        return [self.entry(number, payload=payload, keyed=keyed) for number, payload, keyed in batch]

    # What is done to the log

    def append(self, entries: list[Entry], state: dict[str, int] | None = None) -> None:
        assert self.log.append(entries, state) == self.recorded(entries, state or {})

    @rule(batch=BATCHES, state=st.dictionaries(st.sampled_from("ab"), st.integers(0, 9)))
    def append_batch(self, batch: list[tuple[int, bool, bool]], state: dict[str, int]) -> None:
        self.append(self.batch(batch), state)

    @precondition(lambda self: self.erased)
    @rule(which=ANY)
    def bring_an_erased_payload_back(self, which: int) -> None:
        name = list(self.erased)[which % len(self.erased)]
        with pytest.raises(LedgerError, match="was erased"):
            self.log.append([Entry("pool", {}), Entry("pool", {}, {name: self.payloads[name]})], {"a": -1})

    @precondition(lambda self: self.keys)
    @rule(which=ANY)
    def change_what_is_keyed(self, which: int) -> None:
        key, (entry, _) = list(self.keys.items())[which % len(self.keys)]
        changed = Entry("pool", {**entry.body, "changed": True}, {}, key)
        with pytest.raises(LedgerError, match="another content"):
            self.log.append([Entry("pool", {"number": -1}), changed], {"a": -1})

    @rule(batch=BATCHES, which=ANY)
    def append_while_the_disk_fails(self, batch: list[tuple[int, bool, bool]], which: int) -> None:
        data = f"never recorded {which}".encode()
        self.database.fail()
        with pytest.raises(LedgerError, match="disk_full"):
            self.log.append([*self.batch(batch), Entry("pool", {}, {sha256(data): data})], {"a": -1})
        self.database.mend()

    @rule(batch=BATCHES, late=st.booleans())
    def cut_the_power(self, batch: list[tuple[int, bool, bool]], late: bool) -> None:
        """Right before or right after a commit; then everything is opened again."""
        commit = self.log._engine.dialect.do_commit

        def cut_commit(connection: Any) -> None:
            if late:
                commit(connection)
            raise Crash

        entries = [Entry("pool", {"crash": number}) for number, _, _ in batch]
        self.log._engine.dialect.__dict__["do_commit"] = cut_commit
        with pytest.raises(Crash):
            self.log.append(entries, {"a": 7})
        if late:
            self.recorded(entries, {"a": 7})
        self.restart()

    @rule()
    def restart(self) -> None:
        self.log.close()
        self.log = Log.open(self.database.url, LOG_KEY, now)

    @precondition(lambda self: self.payloads)
    @rule(which=st.lists(ANY, min_size=1, max_size=3))
    def erase(self, which: list[int]) -> None:
        names = {list(self.payloads)[number % len(self.payloads)] for number in which}
        new = sorted(names - set(self.erased))
        index = self.log.erase(names, "asked for")
        if not new:
            assert index == max(self.erased[name] for name in names)
            return
        assert [index] == self.recorded([Entry("erasure", {"payloads": new, "reason": "asked for"})], {})
        self.erased |= dict.fromkeys(new, index)

    # What the witnesses do

    def offer(self, member: Member, size: int, clock: Any = lambda: NOW) -> str:
        proofs = {member.size: self.log.consistency_proof(member.size, size)} if 0 < member.size <= size else {}
        return member.opened(clock).cosign(self.log.note_at(size), proofs).line

    @rule(which=ANY, back=st.sampled_from([0, 0, 0, 1, 5]))
    def cosign(self, which: int, back: int) -> None:
        member, size = self.members[which % MEMBERS], max(1, len(self.entries) - back)
        if size < member.size:
            with pytest.raises(StaleError):
                self.offer(member, size)
            return
        line = self.offer(member, size)
        member.size = size
        check_cosignature(open_note(self.log.note_at(size), VERIFIER), line, member.opened().verifier)
        self.log.keep_cosignatures(size, {member.name: line})
        self.cosigned.setdefault(size, set()).add(member.name)

    @rule(which=ANY)
    def cosign_and_crash(self, which: int) -> None:
        """Between persisting and signing; nothing if this size is signed already."""
        member, size = self.members[which % MEMBERS], len(self.entries)
        if size > member.size:
            with pytest.raises(Crash):
                self.offer(member, size, cut)
            member.size = size

    @rule(which=ANY)
    def back_up(self, which: int) -> None:
        member = self.members[which % MEMBERS]
        path = member.path.with_suffix(".copy")
        shutil.copy(member.path, path)
        member.copy = (path, member.size)

    @precondition(lambda self: any(member.copy for member in self.members))
    @rule(which=ANY)
    def restore(self, which: int) -> None:
        """An old copy in the state's place: found out by the last of its own cosignatures, and replaced."""
        backed = [member for member in self.members if member.copy]
        member = backed[which % len(backed)]
        assert member.copy is not None
        path, member.size = member.copy
        shutil.copy(path, member.path)
        last = self.log.last_cosigned(member.opened().verifier)
        if last is None:
            return
        shown = (last[1], last[0], merkle.root(self.leaves[: last[0]]).hex())
        if last[0] <= member.size:
            member.opened().remember(*shown)
            return
        with pytest.raises(LedgerError, match="is retired"):
            member.opened().remember(*shown)
        with pytest.raises(LedgerError, match="is retired"):
            self.offer(member, len(self.entries))
        self.members[self.members.index(member)] = self.newcomer(self.joined)
        self.joined += 1

    # What can be proved

    @rule(one=ANY, other=ANY)
    def prove(self, one: int, other: int) -> None:
        old, new = sorted((one % (len(self.leaves) + 1), other % (len(self.leaves) + 1)))
        roots = merkle.root(self.leaves[:old]), merkle.root(self.leaves[:new])
        assert (self.log.root_at(old), self.log.root_at(new)) == roots
        merkle.verify_consistency(old, roots[0], new, roots[1], self.log.consistency_proof(old, new))
        if new:
            index = one % new
            merkle.verify_inclusion(self.leaves[index], index, new, self.log.inclusion_proof(index, new), roots[1])

    @rule(which=ANY)
    def ask_for_a_receipt(self, which: int) -> None:
        index, needed = which % len(self.entries), quorum(MEMBERS, 0)
        agreed = max((size for size, by in self.cosigned.items() if len(by & set(self.names)) >= needed), default=0)
        found = self.log.receipt(index, [member.opened().verifier for member in self.members], needed)
        if index >= agreed:
            assert found == Pending(agreed)
            return
        assert isinstance(found, Receipt)
        place, proof, note = parse_proof(found.text)
        checkpoint = open_note(note, VERIFIER)
        assert (place, checkpoint) == (index, Checkpoint(ORIGIN, agreed, merkle.root(self.leaves[:agreed])))
        merkle.verify_inclusion(merkle.leaf_hash(found.record), index, agreed, proof, checkpoint.root)
        witnesses = [member.opened().verifier for member in self.members]
        assert set(cosigners(note, witnesses)) == self.cosigned[agreed] & set(self.names)

    # What always holds

    @invariant()
    def entries_are_the_lists(self) -> None:
        entries = self.log.entries()
        assert [(entry.kind, entry.body, entry.payloads) for entry in entries] == self.entries
        leaves = [merkle.leaf_hash(entry.record) for entry in entries]
        assert leaves[: len(self.leaves)] == self.leaves  # not a byte of what is recorded changes
        self.leaves = leaves
        head = open_note(self.log.head.note, VERIFIER)
        assert head == Checkpoint(ORIGIN, len(self.entries), merkle.root(leaves))
        assert {name: self.log.state(name) for name in self.state} == self.state

    @invariant()
    def payloads_are_there_until_they_are_erased(self) -> None:
        held = {name: data for name, data in self.payloads.items() if name not in self.erased}
        assert self.log.snapshot().payloads == held
        for name, index in self.erased.items():
            assert self.log.erased(name) == index

    @invariant()
    def witnesses_go_on(self) -> None:
        for member in self.members:
            seen = member.opened().seen
            assert (seen.size, seen.root) == (member.size, merkle.root(self.leaves[: member.size]).hex())


def test_the_log_and_its_witnesses_against_a_list() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=count(10, 80),
            stateful_step_count=count(20, 40),
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
