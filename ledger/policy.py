"""Whom an auditor trusts, and the checkpoints that these have signed: the verifier's own reader of C2SP's texts.

Standards: signed-note (keys, signatures), tlog-policy, tlog-checkpoint, tlog-cosignature (Ed25519). It shares no code
with what writes them. A policy is C2SP's as it stands, with one log; in its comments, which other readers pass over, it
has the keys with which members sign what the entries hold: those are outside that standard.

    log ORIGIN+hash+key
    witness ada ada+hash+key
    group members 1 ada
    quorum members
    # causaldao member ada+hash+key
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from causaldao.errors import ConfigurationError, LedgerError
from causaldao.ledger.strict import fault, unbase64

LOG, WITNESS = 1, 4  # C2SP signature types: Ed25519, timestamped Ed25519 cosignature
MAX_NOTE = 1 << 20  # bytes of a checkpoint with its signatures, or of a receipt
MAX_TIME = 2**63 - 1  # POSIX seconds of a cosignature, leaves of a tree
MAX_NAMES = 1024  # witnesses and groups of a policy
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/=]+)")
_FORMS = "log KEY, witness NAME KEY, group NAME all|any|K NAME..., quorum NAME (once), # causaldao member KEY"


def signed(key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether an Ed25519 signature (RFC 8032) over ``data`` is that of a 32-byte public key."""
    try:
        _public(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=1024)
def _public(key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(key)


class Key(NamedTuple):
    """A C2SP verifier key: its name, signature type and 32 bytes."""

    name: str
    kind: int
    raw: bytes

    @property
    def id(self) -> bytes:
        """The 4 bytes by which a signature names it."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.raw).digest()[:4]

    @staticmethod
    def parse(text: str, kind: int) -> Key:
        """``name+hash+base64(kind || key)`` of that type; ValueError if it is anything else."""
        name, _, rest = text.partition("+")
        key_hash, _, encoded = rest.partition("+")
        try:
            typed = unbase64(encoded, "", 33)
            key = Key(name, typed[0], typed[1:])
            altered = key_hash != key.id.hex()
        except (LedgerError, UnicodeEncodeError) as error:
            raise ValueError(f"{text[:200]!r} is not a key, name+hash+base64 of 33 bytes") from error
        if altered or not name or any(character.isspace() for character in name):
            raise ValueError(f"the key of {name!r} does not carry its own hash: it was altered or mistyped")
        if key.kind != kind:
            raise ValueError(f"the key of {name!r} is of type 0x{key.kind:02x}, expected 0x{kind:02x}")
        return key


@dataclass(frozen=True)
class Policy:
    """Whom to trust: the log's name and key, the members' signing keys, the witnesses and which of them are enough.

    ``witnesses`` and ``groups`` are by their names in the policy; a group is (least number, names defined before it);
    ``quorum`` is the name of one of them, or ``none``.
    """

    origin: str
    log: bytes
    members: Mapping[str, tuple[bytes, ...]]
    witnesses: Mapping[str, Key]
    groups: Mapping[str, tuple[int, tuple[str, ...]]]
    quorum: str
    fingerprint: str

    def satisfied(self, names: Collection[str]) -> bool:
        """Whether the cosignatures of these witnesses are enough."""
        met = {"none", *(name for name in names if name in self.witnesses)}
        for name, (least, inside) in self.groups.items():
            if sum(one in met for one in inside) >= least:
                met.add(name)
        return self.quorum in met

    @property
    def asked(self) -> str:
        """The quorum in words."""
        words = {"none": "none", **{name: name for name in self.witnesses}}
        for name, (least, inside) in self.groups.items():
            words[name] = f"{least} of {name} ({', '.join(words[one] for one in inside)})"
        return words[self.quorum]

    @staticmethod
    def parse(text: str) -> Policy:
        """Read a policy file; ``fingerprint`` is the SHA-256 of its UTF-8 bytes.

        Raises ConfigurationError naming the line.
        """
        draft = _Draft()
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                draft.take(line)
            except ValueError as error:
                raise ConfigurationError(f"The policy's line {number} cannot be used: {error}.") from error
        if len(draft.logs) != 1 or draft.quorum is None:
            found = f"{len(draft.logs)} 'log' and {int(draft.quorum is not None)} 'quorum' lines"
            raise ConfigurationError(f"The policy has {found}; write exactly one of each: a ledger has one log.")
        (log,), fingerprint = draft.logs, hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        return Policy(log.name, log.raw, draft.members, draft.witnesses, draft.groups, draft.quorum, fingerprint)


@dataclass
class _Draft:
    """The lines of a policy so far; one that cannot be used raises ValueError."""

    logs: list[Key] = field(default_factory=list)
    members: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    witnesses: dict[str, Key] = field(default_factory=dict)
    groups: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    quorum: str | None = None

    def take(self, line: str) -> None:
        if any((character < " " and character != "\t") or character == "\x7f" for character in line):
            raise ValueError("it holds a control character; only spaces and tabs separate words")
        words = [word for word in re.split("[ \t]+", line) if word]
        if words[:3] == ["#", "causaldao", "member"]:
            words = ["member", *words[3:]]
        elif not words or words[0].startswith("#"):
            return
        match words:
            case ["log", key] | ["log", key, _]:
                self.logs.append(Key.parse(key, LOG))
            case ["witness", name, key] | ["witness", name, key, _]:
                self._witness(name, Key.parse(key, WITNESS))
            case ["group", name, least, *inside] if inside:
                self._group(name, least, tuple(inside))
            case ["quorum", name] if self.quorum is None:
                self.quorum = name if name == "none" else self._defined(name)
            case ["member", key] if line.lstrip(" \t").startswith("#"):
                member = Key.parse(key, LOG)
                self.members[member.name] = (*self.members.get(member.name, ()), member.raw)
            case _:
                raise ValueError(f"expected one of: {_FORMS}; found {line[:200]!r}")

    def _new(self, name: str) -> None:
        if name == "none" or name in self.witnesses or name in self.groups:
            raise ValueError(f"the name {name!r} is taken")
        if len(self.witnesses) + len(self.groups) >= MAX_NAMES:
            raise ValueError(f"it names more than {MAX_NAMES} witnesses and groups")

    def _defined(self, name: str) -> str:
        if name not in self.witnesses and name not in self.groups:
            raise ValueError(f"no line before it defines {name!r}")
        return name

    def _witness(self, name: str, key: Key) -> None:
        self._new(name)
        if any(key.raw == other.raw for other in self.witnesses.values()):
            raise ValueError(f"the key of {name!r} is another witness's too: one key would count twice")
        self.witnesses[name] = key

    def _group(self, name: str, least: str, inside: tuple[str, ...]) -> None:
        self._new(name)
        for one in inside:
            if self._defined(one) in self.grouped:
                raise ValueError(f"{one!r} stands in a group already: it would count twice")
            self.grouped.add(one)
        number = {"any": "1", "all": str(len(inside))}.get(least, least)
        if not re.fullmatch("[0-9]{1,9}", number) or not 1 <= int(number) <= len(inside):
            raise ValueError(f"{least[:20]} of {len(inside)} is no quorum: ask for any, all, or 1 to {len(inside)}")
        self.groups[name] = (int(number), inside)


@dataclass(frozen=True)
class Checkpoint:
    """A tree's size and root that the log signed and enough witnesses cosigned.

    ``cosigners`` are the policy's names of those who cosigned; ``strangers`` signed too, with keys that it does not
    know.
    """

    size: int
    root: bytes
    cosigners: tuple[str, ...]
    strangers: tuple[str, ...]


class _Signature(NamedTuple):
    name: str
    id: bytes
    raw: bytes


def open_checkpoint(note: bytes, policy: Policy, place: str, *, ordered: bool) -> Checkpoint:
    """The checkpoint of a signed note.

    ``ordered``: its lines must have the one order in which a bundle has them, so that none can be moved or doubled.

    Raises
    ------
    LedgerError
        not a checkpoint of the policy's log, a bad signature of a known key, cosigners that are not enough.
    """
    text, signatures = _parse_note(note, place)
    log = Key(policy.origin, LOG, policy.log)
    if ordered:
        _require_order(signatures, log, place)
    if (log.name, log.id) not in {(one.name, one.id) for one in signatures}:
        raise fault(place, "the policy's log has not signed it")
    known = {(key.name, key.id): name for name, key in policy.witnesses.items()}
    cosigners, strangers = set[str](), set[str]()
    for one in signatures:
        name = known.get((one.name, one.id))
        if (one.name, one.id) == (log.name, log.id):
            if not signed(policy.log, one.raw, text.encode()):
                raise fault(place, "its signature is not one by the policy's log key")
        elif name is None:
            strangers.add(one.name)
        else:
            _require_cosigned(one, policy.witnesses[name], text, place)
            cosigners.add(name)
    size, root = _parse_checkpoint(text, policy, place)
    if not policy.satisfied(cosigners):
        cosigned = ", ".join(sorted(cosigners)) or "nobody"
        raise fault(place, f"the policy asks for the cosignatures of {policy.asked}; cosigned by {cosigned}")
    return Checkpoint(size, root, tuple(sorted(cosigners)), tuple(sorted(strangers)))


def _parse_note(note: bytes, place: str) -> tuple[str, list[_Signature]]:
    if len(note) > MAX_NOTE:
        raise fault(place, f"it has {len(note)} bytes, the bound is {MAX_NOTE}; it was not parsed")
    try:
        whole = note.decode("utf-8")
    except UnicodeDecodeError as error:
        raise fault(place, "the bytes are not UTF-8") from error
    text, empty, lines = whole.rpartition("\n\n")
    if not empty or not lines.endswith("\n") or any(c < " " and c != "\n" for c in whole):
        raise fault(place, "it is not a signed note: a text, an empty line and signatures")
    signatures = []
    for line in lines[:-1].split("\n"):
        form = _SIGNATURE.fullmatch(line)
        raw = unbase64(form[2], place) if form else b""
        if form is None or len(raw) < 5:
            raise fault(place, f"{line[:80]!r} is not a signature, '— NAME BASE64'")
        signatures.append(_Signature(form[1], raw[:4], raw[4:]))
    return text + "\n", signatures


def _parse_checkpoint(text: str, policy: Policy, place: str) -> tuple[int, bytes]:
    lines = text[:-1].split("\n")
    if len(lines) < 3 or not all(lines) or not _SIZE.fullmatch(lines[1]) or int(lines[1]) > MAX_TIME:
        raise fault(place, "it is not a checkpoint: origin, size, root, and no empty line")
    if lines[0] != policy.origin:
        raise fault(place, f"it is of the log {lines[0]!r}, the policy trusts {policy.origin!r}")
    return int(lines[1]), unbase64(lines[2], place, 32)


def _require_order(signatures: list[_Signature], log: Key, place: str) -> None:
    first, rest = signatures[0], [(one.name, one.id) for one in signatures[1:]]
    if (first.name, first.id) != (log.name, log.id):
        raise fault(place, "the first signature is not by the policy's log key")
    if any(earlier >= later for earlier, later in pairwise(rest)):
        raise fault(place, "its cosignatures are not sorted by name, or one stands there twice")


def _require_cosigned(one: _Signature, key: Key, text: str, place: str) -> None:
    """timestamped_signature of tlog-cosignature: 8 bytes of time, 64 of signature over time and text."""
    time = int.from_bytes(one.raw[:8], "big")
    message = f"cosignature/v1\ntime {time}\n{text}".encode()
    if len(one.raw) != 72 or time > MAX_TIME or not signed(key.raw, one.raw[8:], message):
        raise fault(place, f"the cosignature of {one.name!r} is not one by that witness's key")
