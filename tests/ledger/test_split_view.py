"""A coordinator that tells two histories, and members who lie for it: it never gets a quorum for both.

Two quorums of q = ⌊(n + f)/2⌋ + 1 of n members share more than f, so an honest one; and an honest witness cosigns one
history. The simulations here give the coordinator everything it could have: forks at will, delays, replays, rollbacks,
proofs made for the moment, crashes at every word, f members that sign anything. What it holds against that, the same
harness must lose with one liar more, or with witnesses that forget.
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import cast

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine.interfaces import DBAPIConnection

from causaldao.errors import LedgerError
from causaldao.ledger import merkle, witness
from causaldao.ledger.note import COSIGNER, LOG, Checkpoint, Verifier, check_cosignature, cosign, sign_checkpoint
from causaldao.ledger.witness import Witness
from causaldao.members import quorum
from causaldao.signing import SigningKey
from tests.counts import count

ORIGIN = "causaldao.example/north"
LOG_KEY = SigningKey.from_seed(b"L" * 32)
VERIFIER = Verifier.of(ORIGIN, LOG_KEY.public, LOG)
NOW = 1_750_000_000

History = tuple[bytes, ...]  # leaf hashes: what a checkpoint stands for


def told(story: str, size: int) -> History:
    """``size`` leaves: of story "abbb", leaf 0 is of a and the others, also those beyond, are of b."""
    return tuple(merkle.leaf_hash(f"{number} {story[min(number, len(story) - 1)]}".encode()) for number in range(size))


def checkpoint(history: History) -> Checkpoint:
    return Checkpoint(ORIGIN, len(history), merkle.root(history))


def signed(history: History) -> str:
    return sign_checkpoint(checkpoint(history), LOG_KEY)


def proof(history: History, old: int) -> list[bytes]:
    return merkle.consistency_proof(history, old)


def agree(one: History, other: History) -> bool:
    """Whether the shorter is a prefix of the longer."""
    return all(left == right for left, right in zip(one, other, strict=False))


# The number


SIZES = [(members, faulty) for members in range(1, 13) for faulty in range(members)]


@pytest.mark.parametrize(("members", "faulty"), SIZES)
def test_two_quorums_share_liars_only(members: int, faulty: int) -> None:
    q = quorum(members, faulty)
    assert (members + faulty) / 2 < q <= members
    one = set(range(q))  # any other choice of the first is this one with other names
    assert all(len(one & set(other)) > faulty for other in combinations(range(members), q))


@pytest.mark.parametrize(("members", "faulty"), SIZES)
def test_a_smaller_quorum_would_do(members: int, faulty: int) -> None:
    fewer = quorum(members, faulty) - 1
    assert len(set(range(fewer)) & set(range(members - fewer, members))) <= faulty


# The machine: real witnesses over databases in memory, whose power can be cut


class Crash(Exception):
    """The power is cut."""


CUTS = ("before the first commit", "after the first commit", "while signing", "before the second commit", "answering")


class Disk(sqlite3.Connection):
    """The database of one witness. Its power is cut at one of `CUTS` of the next request; what is committed stays."""

    cut: str | None = None
    commits = 0

    def armed(self, cut: str | None) -> None:
        self.cut, self.commits = cut, 0

    def clock(self) -> int:
        if self.cut == "while signing":
            raise Crash
        return NOW

    def commit(self) -> None:
        self.commits += 1
        if self.cut == ("", "before the first commit", "before the second commit")[min(self.commits, 2)]:
            raise Crash
        super().commit()
        if (self.cut, self.commits) == ("after the first commit", 1):
            raise Crash

    def __del__(self) -> None:
        self.close()  # newer Pythons warn of a connection that is not


SQLITE = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
SQLITE.connect().close()  # its dialect knows its version now
COMPILED: dict[object, object] = {}  # statements are compiled once for all disks


def mounted(disk: Disk) -> sa.Engine:
    engine = sa.Engine(sa.StaticPool(lambda _: cast(DBAPIConnection, disk)), SQLITE.dialect, SQLITE.url)
    engine.update_execution_options(compiled_cache=COMPILED)
    return witness._locking(engine)


def blank() -> Disk:
    """The disk of a witness that has seen nothing."""
    disk = sqlite3.connect(":memory:", isolation_level=None, factory=Disk)
    EMPTY.backup(disk)
    return disk


EMPTY = sqlite3.connect(":memory:", isolation_level=None, factory=Disk)
with mounted(EMPTY).begin() as connection:
    witness._found(connection, ORIGIN)


class Member:
    """One honest member; it starts anew from its disk for each request."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = SigningKey.from_seed(name.encode().ljust(32, b"."))
        self.verifier = Verifier.of(name, self.key.public, COSIGNER)
        self.disk = blank()

    @property
    def witness(self) -> Witness:
        return Witness(mounted(self.disk), "memory", self.name, self.key, VERIFIER, self.disk.clock)

    def asked(self, note: str, proofs: dict[int, list[bytes]], cut: str | None = None) -> str | None:
        """Its cosignature, as far as it comes to the coordinator."""
        self.disk.armed(cut)
        try:
            line = self.witness.cosign(note, proofs).line
        finally:
            self.disk.armed(None)
        return None if cut == "answering" else line


class Liar(Member):
    def asked(self, note: str, proofs: dict[int, list[bytes]], cut: str | None = None) -> str | None:
        return cosign(Checkpoint.parse(note.partition("\n\n")[0] + "\n"), self.name, self.key, NOW)


@dataclass
class Federation:
    """n members of which the last are liars, and all cosignatures that the coordinator has."""

    members: list[Member]
    faulty: int
    cosigned: dict[History, dict[str, str]] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, members: int, faulty: int, liars: int) -> Federation:
        honest = [Member(f"m{number}") for number in range(members - liars)]
        return cls([*honest, *(Liar(f"liar{number}") for number in range(liars))], faulty)

    @property
    def honest(self) -> list[Member]:
        return [member for member in self.members if not isinstance(member, Liar)]

    def ask(self, member: Member, history: History, proofs: dict[int, list[bytes]], cut: str | None = None) -> None:
        try:
            line = member.asked(signed(history), proofs, cut)
        except (Crash, LedgerError) as error:
            self.happened[type(error).__name__] += 1
            return
        if line is not None:
            check_cosignature(checkpoint(history), line, member.verifier)
            self.cosigned.setdefault(history, {})[member.name] = line

    def offer(self, member: Member, history: History, cut: str | None = None) -> None:
        """Ask with the one proof that could help: from what the member has seen to this history."""
        size = member.witness.seen.size
        self.ask(member, history, {size: proof(history, size)} if size <= len(history) else {}, cut)

    @property
    def agreed(self) -> list[History]:
        """What has a quorum."""
        q = quorum(len(self.members), self.faulty)
        return [history for history, lines in self.cosigned.items() if len(lines) >= q]

    @property
    def conflicts(self) -> list[tuple[History, History]]:
        return [pair for pair in combinations(self.agreed, 2) if not agree(*pair)]


def split(federation: Federation, common: int = 3, size: int = 5) -> None:
    """The best of attacks: a common past, then honest members divided evenly, and liars for both sides."""
    one, other = told("a", size), told("a" * common + "b", size)
    for member in federation.members:
        federation.offer(member, one[:common])
    half = (len(federation.honest) + 1) // 2
    for history, honest in ((one, federation.honest[:half]), (other, federation.honest[half:])):
        for member in [*honest, *(member for member in federation.members if isinstance(member, Liar))]:
            federation.offer(member, history)


SPLITS = [(members, faulty) for members, faulty in SIZES if members <= count(6, 12)]


@pytest.mark.parametrize(("members", "faulty"), SPLITS)
def test_an_even_split_gets_two_quorums(members: int, faulty: int) -> None:
    """With f liars never; with one more if n - f is odd: that the harness can lose is by construction, not by luck."""
    held = Federation.of(members, faulty, faulty)
    split(held)
    assert held.conflicts == []
    broken = Federation.of(members, faulty, faulty + 1)
    split(broken)
    assert len(broken.conflicts) == (members - faulty) % 2


@pytest.mark.parametrize("shown", [False, True])
def test_witnesses_that_forget_are_liars_unless_they_are_told(shown: bool) -> None:
    """Three of nine lose their states where f = 2: a quorum for both histories, unless they see their own words."""
    federation = Federation.of(9, 2, 0)
    one, other = told("a", 5), told("b", 5)
    for member in federation.members[:6]:
        federation.offer(member, one)
    for member in federation.members[3:6]:
        member.disk = blank()
        if shown:
            with pytest.raises(LedgerError, match="retired"):
                member.witness.remember(federation.cosigned[one][member.name], 5, merkle.root(one).hex())
    for member in federation.members[3:]:
        federation.offer(member, other)
    assert federation.agreed == ([one] if shown else [one, other])
    assert len(federation.conflicts) == (0 if shown else 1)


# The adversary


class Coordinator:
    """It tells histories, sends checkpoints when it likes, keeps what it sent, and aims two sides at two histories."""

    def __init__(self, seed: int, more: int = 0) -> None:
        """``more``: how many more liars there are than the f that the quorum is for."""
        self.random = random.Random(seed)
        members = self.random.randint(2, 10)
        faulty = self.random.randrange(min(members, 4))
        self.federation = Federation.of(members, faulty, faulty + more)
        self.stories = [told("a", 2)]
        self.sent: list[tuple[Member, History]] = []
        self.waiting: list[tuple[Member, History]] = []
        self.honesty = self.random.choice([0.0, 0.3, 0.8])  # how often it sends everybody the same
        self.restless = self.random.choice([0.0, 0.1, 0.3])  # how often a member's power fails
        self.side = {member.name: self.random.randrange(2) for member in self.federation.members}

    def run(self, steps: int) -> Federation:
        for _ in range(steps):
            self.random.choices([self.grow, self.fork, self.send, self.replay], [4, 1, 4, 1])[0]()
            self.random.shuffle(self.waiting)
            for _ in range(self.random.randrange(len(self.waiting) + 1)):
                self.deliver(*self.waiting.pop())
        while self.waiting:
            self.deliver(*self.waiting.pop())
        return self.federation

    def grow(self) -> None:
        number = self.random.randrange(len(self.stories))
        story = self.stories[number]
        self.stories[number] = (*story, *(self.random.randbytes(32) for _ in range(self.random.randint(1, 3))))

    def fork(self) -> None:
        story = self.random.choice(self.stories)
        past = story[: self.random.randrange(len(story))]
        self.stories.append((*past, *(self.random.randbytes(32) for _ in range(len(story) - len(past)))))
        self.stories = self.stories[-3:]
        self.federation.happened["fork"] += 1

    def send(self) -> None:
        """A checkpoint, of now or of the past, to all or to each side its own."""
        stories = [self.random.choice(self.stories)] if self.random.random() < self.honesty else self.stories[-2:]
        sides = [story[: len(story) - self.random.choice([0, 0, 0, 1, 3])] or story for story in stories]
        for member in self.federation.members:
            aims = sides if isinstance(member, Liar) else [sides[self.side[member.name] % len(sides)]]
            for history in aims:
                self.waiting.append((member, history))
                self.sent.append((member, history))

    def replay(self) -> None:
        """Old words again, to those who had them and to others."""
        if self.sent:
            _, history = self.random.choice(self.sent)
            self.waiting.append((self.random.choice(self.federation.members), history))

    def deliver(self, member: Member, history: History) -> None:
        cut = self.random.choice(CUTS) if self.random.random() < self.restless else None
        if self.random.random() < 0.9:
            self.federation.offer(member, history, cut)
            return
        sizes = range(len(history) + 1)
        self.federation.ask(member, history, {old: [self.random.randbytes(32)] for old in sizes}, cut)


def test_an_equivocating_coordinator_gets_two_quorums() -> None:
    happened: Counter[str] = Counter()
    seeds = count(100, 1500)
    for seed in range(seeds):
        federation = Coordinator(seed).run(steps=12)
        assert federation.conflicts == [], f"seed {seed}"
        for member in federation.honest:
            own = [history for history, lines in federation.cosigned.items() if member.name in lines]
            assert all(agree(*pair) for pair in combinations(own, 2)), f"seed {seed}: {member.name}"
        happened += federation.happened
        happened["agreed"] += bool(federation.agreed)
        happened["alarmed"] += sum(member.witness.status == "alarmed" for member in federation.honest)
        happened["divided"] += any(not agree(*pair) for pair in combinations(federation.cosigned, 2))
    # The attacks did take place, and were not all that took place.
    often = {
        name: happened[name] / seeds for name in ("agreed", "divided", "fork", "StaleError", "ProofError", "Crash")
    }
    assert all(frequency > 0.25 for frequency in often.values()), often
    assert happened["alarmed"] > 0


def test_the_same_coordinator_with_one_liar_more_gets_nowhere() -> None:
    """Then the adversary above would be too weak to prove anything."""
    assert any(Coordinator(seed, more=1).run(steps=12).conflicts for seed in range(30))


# One witness against everything


STORIES = ("a", "aaab", "aaaaaac", "aaabd")
OFFERS = st.tuples(
    st.sampled_from(STORIES),
    st.integers(0, 9),
    st.sampled_from(["right", "right", "right", "none", "wrong", "of another story"]),
    st.sampled_from([None, None, None, *CUTS]),
)


def offered(story: str, size: int, kind: str) -> Iterator[tuple[int, list[bytes]]]:
    for old in range(size):
        if kind == "right":
            yield old, proof(told(story, size), old)
        elif kind == "wrong":
            yield old, [bytes(32)]
        elif kind == "of another story":
            yield old, proof(told("z" * (old % 3) + story, size), old)


@settings(max_examples=count(60, 2000), deadline=None)
@given(st.lists(OFFERS, max_size=14))
def test_a_witness_cosigns_what_is_not_a_chain_of_prefixes(offers: list[tuple[str, int, str, str | None]]) -> None:
    member = Member("ada")
    cosigned: list[History] = []
    for story, size, kind, cut in offers:
        history = told(story, size)
        try:
            line = member.asked(signed(history), dict(offered(story, size, kind)), cut)
        except (Crash, LedgerError):
            continue
        if line is not None:
            check_cosignature(checkpoint(history), line, member.verifier)
            cosigned.append(history)
    assert all(agree(*pair) for pair in combinations(cosigned, 2))
    assert [len(history) for history in cosigned] == sorted(len(history) for history in cosigned)
    seen = member.witness.seen
    (held,) = {told(story, seen.size) for story in STORIES if merkle.root(told(story, seen.size)).hex() == seen.root}
    assert all(agree(held, history) for history in cosigned)
    if member.witness.status == "witnessing":  # it refuses what is wrong, and goes on with what is right
        further = (*held, bytes(32), bytes(32)) if len(held) > 8 else (*held, *(bytes([n]) * 32 for n in range(9)))
        assert member.asked(signed(further), {seen.size: proof(further, seen.size)}) is not None
