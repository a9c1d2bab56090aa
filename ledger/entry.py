"""Ledger entries: what may be recorded, and the exact bytes that are hashed and signed.

With `||` for concatenation, H for SHA-256 and R_i for the RFC 8785 bytes of record i
``{"body", "index", "kind", "payloads", "previous", "time"}``:

    leaf_i = H(0x00 || R_i)                                  the leaf hash of RFC 6962, 2.1
    link_0 = H(0x03 || origin)                               binds the chain to its log
    link_{i+1} = H(0x02 || uint64(i) || link_i || leaf_i)    the chain; record i names link_i as `previous`

0x01 stays free for the interior nodes of RFC 6962: a Merkle tree over the same leaves needs no new hashes.
The log's key signs a text for each entry and one for each head; the texts begin with words of their own, so
that a signature of one can never be shown as one of the other.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from causaldao.errors import ConfigurationError, LedgerError
from causaldao.signing import canonical, sha256

STUDY_STATES = (
    "draft", "proposed", "approved", "roll-call", "evidence", "ballots", "adopted", "training", "evaluated",
    "released", "closed", "aborted",
)  # fmt: skip
KINDS = frozenset({
    "genesis", "member.admit", "member.rotate", "member.revoke", "evidence", "pool", "ballot", "adopt",
    "update", "aggregate", "release", "privacy.spend", "complaint", "equivocation",
    *(f"study.{state}" for state in STUDY_STATES),
})  # fmt: skip
MAX_BODY_BYTES = 4 << 20
MAX_PAYLOAD_BYTES = 64 << 20
MAX_BODY_DEPTH = 32

# What an auditor must find in the body, whoever wrote it.
_REQUIRED = {
    "genesis": ("federation",),
    "member.admit": ("key", "member"),
    "member.rotate": ("key", "member"),
    "member.revoke": ("member",),
    "evidence": ("envelope",),
    "ballot": ("envelope",),
    "update": ("envelope",),
    **{f"study.{state}": ("study",) for state in STUDY_STATES},
}
_ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


@dataclass(frozen=True)
class Entry:
    """One decision to be recorded.

    ``body`` is a JSON object; ``payloads`` are the bytes it speaks of, by their SHA-256. An entry with a
    ``key`` is recorded once: appended again with the same content it keeps its index, with another content
    it is refused.

    A member's message goes into the body under ``"envelope"`` (its DSSE text), and ``"manifest"`` beside it
    if it has tensors: the verifier then holds the ledger to that member's signature. An envelope that is
    recorded *because* it is bad belongs under another name, ``"exhibit"``.

    Raises
    ------
    LedgerError
        a kind outside the contract, a body that is not JSON, is too large or too deep or lacks what its kind
        requires, a payload under a wrong hash.
    """

    kind: str
    body: Mapping[str, Any]
    payloads: Mapping[str, bytes] = field(default_factory=dict)
    key: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LedgerError(f"There is no entry kind {self.kind!r}; the contract has {', '.join(sorted(KINDS))}.")
        missing = [name for name in _REQUIRED.get(self.kind, ()) if not isinstance(self.body.get(name), str)]
        if missing:
            raise LedgerError(
                f"The body of a {self.kind!r} entry needs the texts {missing}, or no auditor can check it."
            )
        _check_body(self.kind, self.body)
        for name, data in self.payloads.items():
            _check_payload(name, data)

    @property
    def content(self) -> str:
        """SHA-256 of all that is recorded but place and time: what must agree when a key comes again."""
        return sha256(canonical({"kind": self.kind, "body": dict(self.body), "payloads": sorted(self.payloads)}))


def record_bytes(entry: Entry, index: int, previous: str, time: str) -> bytes:
    """R_i, the canonical bytes that are stored, hashed and exported without ever being written anew."""
    return canonical(
        {
            "index": index,
            "previous": previous,
            "kind": entry.kind,
            "time": time,
            "body": dict(entry.body),
            "payloads": sorted(entry.payloads),
        }
    )


def first_link(origin: str) -> str:
    """link_0 of a log; refuses an origin that a verifier key or a signed text could not carry."""
    if not _ORIGIN.fullmatch(origin):
        raise LedgerError(
            f"The origin {origin!r} is not allowed: use up to 128 of letters, digits and . _ : / -, "
            "for example 'causaldao.example/north'."
        )
    return sha256(b"\x03" + origin.encode())


def next_link(index: int, previous: str, record: bytes) -> str:
    """link_{i+1} from i, link_i and R_i."""
    leaf = sha256(b"\x00" + record)
    return sha256(b"\x02" + struct.pack(">Q", index) + bytes.fromhex(previous) + bytes.fromhex(leaf))


def entry_text(origin: str, index: int, link: str) -> bytes:
    """What the log's key signs for entry i: its origin, i and link_{i+1}."""
    return f"causaldao-entry/1\n{origin}\n{index}\n{link}\n".encode()


def head_text(origin: str, size: int, root: str, time: str) -> bytes:
    """What the log's key signs for a head."""
    return f"causaldao-head/1\n{origin}\n{size}\n{root}\n{time}\n".encode()


def _check_body(kind: str, body: Mapping[str, Any]) -> None:
    try:
        size = len(canonical(dict(body)))
    except ConfigurationError as error:
        raise LedgerError(f"The body of a {kind!r} entry cannot be recorded: {error}") from error
    if size > MAX_BODY_BYTES:
        raise LedgerError(
            f"The body of a {kind!r} entry has {size} bytes, the bound is {MAX_BODY_BYTES}: put the bulk in a payload."
        )
    if _deeper_than(body, MAX_BODY_DEPTH):
        raise LedgerError(f"The body of a {kind!r} entry is nested deeper than {MAX_BODY_DEPTH} levels: flatten it.")


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, (Mapping, list, tuple)):
        return False
    items = value.values() if isinstance(value, Mapping) else value
    return levels == 0 or any(_deeper_than(item, levels - 1) for item in items)


def _check_payload(name: str, data: bytes) -> None:
    if len(data) > MAX_PAYLOAD_BYTES:
        raise LedgerError(f"The payload {name} has {len(data)} bytes, the bound is {MAX_PAYLOAD_BYTES}.")
    if sha256(data) != name:
        raise LedgerError(f"The payload named {name!r} has the SHA-256 {sha256(data)}: name it by that.")
