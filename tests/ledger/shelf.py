"""A ledger in memory, as a reader shows it: an honest one, and what a liar makes of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from causaldao.errors import MisuseError
from causaldao.ledger import merkle
from causaldao.ledger.note import COSIGNER, Checkpoint, Verifier, cosign, proof_text, sign_checkpoint, with_cosignatures
from causaldao.ledger.reader import Shown, Told
from causaldao.ledger.receipt import Pending, Receipt
from causaldao.ledger.verify import Policy
from causaldao.signing import SigningKey, canonical

ORIGIN = "causaldao.example/shelf"
LOG_KEY = SigningKey.from_seed(b"S" * 32)
WITNESSES = {name: SigningKey.from_seed(name.encode().ljust(32, b"w")) for name in ("ada", "bob")}
STUDY = "ab" * 32


def record(index: int, kind: str = "evidence", **body: Any) -> bytes:
    """An entry's canonical bytes. Chain and signatures are for the verifier; who reads a shelf looks at the tree."""
    value = {"index": index, "previous": "0" * 64, "kind": kind, "time": "2027-03-01T12:00:00.000Z", "payloads": []}
    return canonical({**value, "body": body or {"study": STUDY, "member": f"hospital-{index:02}"}})


def policy_text(quorum: int = 2) -> str:
    """Written by hand: what reads it must read C2SP's form, not ours."""
    lines = [f"log {LOG_KEY.public.to_text(ORIGIN)}"]
    lines += [f"witness {name} {Verifier.of(name, key.public, COSIGNER).text}" for name, key in WITNESSES.items()]
    group = [f"group members {quorum} {' '.join(WITNESSES)}", "quorum members"]
    return "\n".join([*lines, *(group if quorum else ["quorum none"]), ""])


def policy(quorum: int = 2) -> Policy:
    return Policy.parse(policy_text(quorum))


@dataclass
class Shelf:
    """Records under a log's key. ``agreed`` is the size that the witnesses cosigned; ``asked`` is who was asked what.
    A liar has other records, or an ``edge`` of its own: `Shelf.root` is what it signs."""

    records: list[bytes] = field(default_factory=lambda: [record(index) for index in range(20)])
    agreed: int = 0
    key: SigningKey = LOG_KEY
    asked: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.records)

    def leaves(self, size: int | None = None) -> list[bytes]:
        return [merkle.leaf_hash(one) for one in self.records[:size]]

    def checkpoint_at(self, size: int) -> Checkpoint:
        return Checkpoint(ORIGIN, size, merkle.root(self.leaves(size)))

    def note(self, size: int) -> str:
        note = sign_checkpoint(self.checkpoint_at(size), self.key)
        return with_cosignatures(note, self.lines(size))

    def lines(self, size: int) -> Sequence[str]:
        signers = WITNESSES.items() if size == self.agreed else ()
        return [cosign(self.checkpoint_at(size), name, key, 1_800_000_000) for name, key in signers]

    # what a reader is asked

    def checkpoint(self, size: int | None = None, *, head: bool = False) -> Shown:
        self.asked.append("checkpoint")
        wanted = size if size is not None else self.size if head or not self.agreed else self.agreed
        self._require(wanted)
        return Shown(self.note(wanted), wanted == self.agreed > 0, self.size)

    def entries(self, start: int, stop: int) -> Iterator[Told]:
        self.asked.append("entries")
        self._require(stop)
        for index in range(start, stop):
            yield Told(index, self.records[index], base64.b64encode(b"%064d" % index).decode())

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        self.asked.append("inclusion")
        self._require(size)
        return tuple(merkle.inclusion_proof(self.leaves(size), index))

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        self.asked.append("consistency")
        self._require(new)
        return tuple(merkle.consistency_proof(self.leaves(new), old))

    def receipt(self, index: int) -> Receipt | Pending:
        self.asked.append("receipt")
        self._require(index + 1)
        if index >= self.agreed:
            return Pending(self.agreed)
        hashes = merkle.inclusion_proof(self.leaves(self.agreed), index)
        return Receipt(proof_text(index, hashes, self.note(self.agreed)), self.records[index])

    def cosignatures(self, size: int) -> tuple[str, ...]:
        self.asked.append("cosignatures")
        self._require(size)
        return tuple(self.lines(size))

    def _require(self, size: int) -> None:
        if size > self.size:
            raise MisuseError(f"There is no size {size}: the log has {self.size} entries.")
