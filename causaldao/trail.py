"""What a request shows of the ledger, and what a member says of it: the record that travels beside each envelope.

A request's *trail* shows a member the coordinator's checkpoint and proves that it goes on from what that member saw; a
reply's *word* holds the member's cosignature. Neither is signed as a whole: what each part says is proven by the log's,
the witness's or the member's signature in it. Both are canonical JSON, bounded before it is parsed, bytes as base64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from causaldao.errors import IdentityError
from causaldao.signing import canonical

MAX_TRAIL_BYTES = 8 << 20
MAX_WORD_BYTES = 256 << 10
WORDS = ("evidence", "ballot", "effects", "update", "evaluation")
"""The replies that have to stand on the ledger, each in an entry of its own."""
REFUSALS = ("complaint", "equivocation")
"""The entries that say of a member's word why it was not taken."""
_MAX_HASHES = 64  # of one proof: a tree of 2^64 leaves needs no more

Proof = tuple[bytes, ...]


@dataclass(frozen=True)
class Shown:
    """An entry of the ledger with its proof of inclusion: ``record`` are its canonical bytes."""

    index: int
    record: bytes
    proof: Proof


@dataclass(frozen=True)
class Own:
    """A witness's own last cosignature, as the coordinator holds it; ``root`` is 64 hex digits."""

    size: int
    root: str
    line: str


@dataclass(frozen=True)
class Trail:
    """What a request shows.

    ``checkpoint`` is the log's signed note. ``proofs`` are proofs of consistency to it, by the size they start from.
    ``agreed`` is the newest note that a quorum of witnesses cosigned ("" if there is none yet), ``agreed_proof`` its
    proof of consistency to the checkpoint. ``last`` are witnesses' own cosignatures, by name. ``members`` are the
    entries that changed the federation, each included in the checkpoint; ``receipts`` are entries of the member's own
    words, each included in ``agreed``.
    """

    checkpoint: str
    proofs: Mapping[int, Proof] = field(default_factory=dict)
    agreed: str = ""
    agreed_proof: Proof = ()
    last: Mapping[str, Own] = field(default_factory=dict)
    members: tuple[Shown, ...] = ()
    receipts: tuple[Shown, ...] = ()

    def pack(self) -> bytes:
        return canonical(
            {
                "checkpoint": self.checkpoint,
                "proofs": {str(size): _texts(proof) for size, proof in self.proofs.items()},
                "agreed": self.agreed,
                "agreed_proof": _texts(self.agreed_proof),
                "last": {name: [own.size, own.root, own.line] for name, own in self.last.items()},
                "members": [_shown(entry) for entry in self.members],
                "receipts": [_shown(entry) for entry in self.receipts],
            }
        )

    @staticmethod
    def unpack(data: bytes) -> Trail:
        """Read a trail without trust; an IdentityError if it is none."""
        value = _parsed(data, MAX_TRAIL_BYTES, "trail")
        try:
            return Trail(
                checkpoint=_text(value["checkpoint"]),
                proofs={int(size): _proof(proof) for size, proof in value["proofs"].items()},
                agreed=_text(value["agreed"]),
                agreed_proof=_proof(value["agreed_proof"]),
                last={name: Own(_size(one[0]), _text(one[1]), _text(one[2])) for name, one in value["last"].items()},
                members=tuple(map(_read, value["members"])),
                receipts=tuple(map(_read, value["receipts"])),
            )
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise IdentityError("The request's trail of the ledger is not in its form.") from error


@dataclass(frozen=True)
class Word:
    """What a member says of the ledger: the checkpoint it saw last (``note``, the log's own; "" if none yet), its
    cosignature of it, and complaints of words that were withheld (DSSE envelopes)."""

    note: str = ""
    line: str = ""
    complaints: tuple[str, ...] = ()

    def pack(self) -> bytes:
        return canonical({"note": self.note, "line": self.line, "complaints": list(self.complaints)})

    @staticmethod
    def unpack(data: bytes) -> Word:
        """Read a word without trust; an IdentityError if it is none."""
        value = _parsed(data, MAX_WORD_BYTES, "word")
        try:
            return Word(_text(value["note"]), _text(value["line"]), tuple(map(_text, value["complaints"])))
        except (KeyError, ValueError, TypeError) as error:
            raise IdentityError("The reply's word of the ledger is not in its form.") from error


def _parsed(data: bytes, bound: int, what: str) -> dict[str, Any]:
    if len(data) > bound:
        raise IdentityError(f"The {what} of the ledger has {len(data)} bytes, the bound is {bound}: it was not read.")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IdentityError(f"The {what} of the ledger is not JSON.") from error
    if not isinstance(value, dict):
        raise IdentityError(f"The {what} of the ledger is not an object.")
    return value


def _texts(proof: Proof) -> list[str]:
    return [base64.b64encode(hash).decode() for hash in proof]


def _shown(entry: Shown) -> dict[str, Any]:
    return {"index": entry.index, "record": entry.record.decode(), "proof": _texts(entry.proof)}


def _read(value: Mapping[str, Any]) -> Shown:
    return Shown(_size(value["index"]), _text(value["record"]).encode(), _proof(value["proof"]))


def _proof(value: Any) -> Proof:
    if not isinstance(value, list) or len(value) > _MAX_HASHES:
        raise ValueError("a proof is a list of at most 64 hashes")
    return tuple(base64.b64decode(_text(hash), validate=True) for hash in value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a text")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("expected a size or an index")
    return value
