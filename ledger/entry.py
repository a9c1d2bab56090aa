"""Ledger entries: what may be recorded, and the exact bytes that are hashed and signed.

With `||` for concatenation, H for SHA-256 and R_i for the RFC 8785 bytes of record i
``{"body", "index", "kind", "payloads", "previous", "time"}``:

    leaf_i = H(0x00 || R_i)                                  the leaf hash of RFC 6962, 2.1
    link_0 = H(0x03 || origin)                               binds the chain to its log
    link_{i+1} = H(0x02 || uint64(i) || link_i || leaf_i)    the chain; record i names link_i as `previous`

0x01 belongs to the interior nodes of RFC 6962: a Merkle tree stands over the same leaves (`causaldao.ledger.merkle`).
The log's key signs a text for each entry, and a checkpoint (C2SP tlog-checkpoint) for each head. An entry's text has a
number where a checkpoint has its root, which is 44 characters of base64: the signature of one can never be shown as
one of the other.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeGuard

from causaldao.errors import ConfigurationError, LedgerError
from causaldao.ledger.merkle import leaf_hash
from causaldao.signing import canonical, sha256

STUDY_STATES = (
    "draft", "proposed", "approved", "roll-call", "evidence", "ballots", "adopted", "training", "evaluated",
    "released", "closed", "aborted",
)  # fmt: skip
KINDS = frozenset({
    "genesis", "member.admit", "member.rotate", "member.revoke", "evidence", "pool", "ballot", "adopt",
    "effects", "estimate", "update", "aggregate", "release", "privacy.spend", "complaint", "equivocation", "erasure",
    "federation.faulty", "federation.edit", "federation.policy",
    *(f"study.{state}" for state in STUDY_STATES),
})  # fmt: skip
MAX_BODY_BYTES = 4 << 20
MAX_PAYLOAD_BYTES = 64 << 20
MAX_BODY_DEPTH = 32
MAX_ERASED = 1024  # payloads that one entry erases
EDITS = frozenset({"add", "remove", "reverse"})
SALT_BYTES = 32

# What an auditor must find in the body, whoever wrote it.
_REQUIRED = {
    "genesis": ("federation",),
    "member.admit": ("key", "member", "witness"),
    "member.rotate": ("key", "member", "witness"),
    "member.revoke": ("member", "reason"),
    "federation.edit": ("study", "change", "reason"),
    "federation.policy": ("name", "sha256"),
    "erasure": ("reason",),
    "evidence": ("envelope",),
    "ballot": ("envelope",),
    "effects": ("envelope",),
    "update": ("envelope",),
    **{f"study.{state}": ("study",) for state in STUDY_STATES},
}
_ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One decision to be recorded.

    ``body`` is a JSON object; ``payloads`` are the bytes it speaks of, by their SHA-256. An entry with a
    ``key`` is recorded once: appended again with the same content it keeps its index, with another content
    it is refused.

    A member's message goes into the body under ``"envelope"`` (its DSSE text), and ``"manifest"`` beside it
    if it has tensors: the verifier then holds the ledger to that member's signature. An envelope that is
    recorded *because* it is bad belongs under another name, ``"exhibit"``.

    The body is read once, when the entry is made: what it holds then is what is recorded.

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
        _check_body(self)
        _check_kind(self.kind, self.body)
        for name, data in self.payloads.items():
            _check_payload(name, data)

    @cached_property
    def encoded(self) -> bytes:
        """The RFC 8785 bytes of the body."""
        return canonical(dict(self.body))

    @cached_property
    def content(self) -> str:
        """SHA-256 of all that is recorded but place and time: what must agree when a key comes again."""
        return sha256(b'{"body":%b,"kind":"%b","payloads":%b}' % (self.encoded, self.kind.encode(), _names(self)))


def record_bytes(entry: Entry, index: int, previous: str, time: str) -> bytes:
    """R_i, the canonical bytes that are stored, hashed and exported without ever being written anew.

    Put together from the body's bytes, with the names sorted as RFC 8785 wants: to write the body once more would be
    the costliest part of an append.
    """
    return b'{"body":%b,"index":%d,"kind":"%b","payloads":%b,"previous":"%b","time":"%b"}' % (
        entry.encoded,
        index,
        entry.kind.encode(),
        _names(entry),
        previous.encode(),
        time.encode(),
    )


def salted(data: bytes, salt: bytes | None = None) -> tuple[str, bytes]:
    """Name and bytes of a payload that hides ``data`` once it is erased: 32 random bytes, then the data.

    Without the salt, what can be guessed (a name, a small number) could be found again from the hash that stays.

    Raises
    ------
    LedgerError
        a ``salt`` (None: from the operating system) of another length.
    """
    salt = os.urandom(SALT_BYTES) if salt is None else salt
    if len(salt) != SALT_BYTES:
        raise LedgerError(f"A payload's salt has {SALT_BYTES} random bytes, not {len(salt)}.")
    return sha256(salt + data), salt + data


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
    return sha256(b"\x02" + struct.pack(">Q", index) + bytes.fromhex(previous) + leaf_hash(record))


def entry_text(origin: str, index: int, link: str) -> bytes:
    """What the log's key signs for entry i: its origin, i and link_{i+1}."""
    return f"causaldao-entry/1\n{origin}\n{index}\n{link}\n".encode()


def _names(entry: Entry) -> bytes:
    return b"[%b]" % b",".join(b'"%b"' % name.encode() for name in sorted(entry.payloads))


def _check_body(entry: Entry) -> None:
    try:
        size = len(entry.encoded)
    except ConfigurationError as error:
        raise LedgerError(f"The body of a {entry.kind!r} entry cannot be recorded: {error}") from error
    if size > MAX_BODY_BYTES:
        raise LedgerError(
            f"The body of a {entry.kind!r} entry has {size} bytes, the bound is {MAX_BODY_BYTES}: "
            "put the bulk in a payload."
        )
    if _deeper_than(entry.body, MAX_BODY_DEPTH):
        raise LedgerError(
            f"The body of a {entry.kind!r} entry is nested deeper than {MAX_BODY_DEPTH} levels: flatten it."
        )


def _check_kind(kind: str, body: Mapping[str, Any]) -> None:
    fits, wanted = _SHAPES.get(kind, (None, ""))
    if fits is not None and not fits(body):
        raise LedgerError(f"The body of a {kind!r} entry needs {wanted}; it has {sorted(body)}.")


def _counts(name: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda body: type(body.get(name)) is int and body[name] >= 0


def _is_edit(body: Mapping[str, Any]) -> bool:
    edge = body.get("edge")
    may = all(isinstance(body.get(name, ""), str) for name in ("proposer", "does"))
    return may and _are_texts(edge) and len(edge) == len(set(edge)) == 2 and body["change"] in EDITS


def _is_erasure(body: Mapping[str, Any]) -> bool:
    names = body.get("payloads")
    return (
        _are_texts(names)
        and 0 < len(names) <= MAX_ERASED
        and list(names) == sorted(set(names))
        and all(map(_SHA256.fullmatch, names))
    )


# What is more than texts, of the kinds that change the federation or take payloads away.
_SHAPES: dict[str, tuple[Callable[[Mapping[str, Any]], bool], str]] = {
    "genesis": (_counts("faulty"), "'faulty', an integer of at least 0"),
    "member.admit": (_counts("epoch"), "'epoch', an integer of at least 0"),
    "member.rotate": (_counts("epoch"), "'epoch', an integer of at least 0"),
    "federation.faulty": (_counts("faulty"), "'faulty', an integer of at least 0"),
    "federation.edit": (_is_edit, f"'edge', two different names, and a 'change' of {', '.join(sorted(EDITS))}"),
    "federation.policy": (
        lambda body: bool(_SHA256.fullmatch(body["sha256"])),
        "'sha256', 64 lower-case hexadecimal digits",
    ),
    "erasure": (_is_erasure, f"'payloads', 1 to {MAX_ERASED} different SHA-256 in order"),
}


def _are_texts(value: Any) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


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
