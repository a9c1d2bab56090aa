"""Check a ledger's bundle against a policy. This file trusts nothing of the program that wrote the bundle.

It shares no code with the writer: its own JSON reader, hashes and signature checks are all below, so that
it can be read, or rewritten in another language, in one sitting. Ed25519 is that of `cryptography`.
Standards: RFC 8785 (canonical JSON), RFC 6962 2.1 (leaf hash), RFC 8032 (Ed25519), DSSE v1 (members'
envelopes), C2SP signed note (keys).

What is checked, in this order; the first fault is raised with its place:

1. **Bytes.** At most ``max_bytes``; strict JSON (no duplicate names, no NaN, bounded depth); and
   *canonical*: written anew it gives the same bytes, so no byte can be changed without changing a value.
2. **Log.** The origin is the policy's. Record i names its index and the link before it; its own link is
   signed: ``leaf = H(0x00 || record)``, ``link' = H(0x02 || uint64(i) || link || leaf)``, first link
   ``H(0x03 || origin)``.
3. **Members.** Each admitted or rotated key is one that the policy gives that member. Each text under
   ``"envelope"`` in a body is a DSSE envelope by the member it names, with a key that stood at that index;
   federation and study are those of the ledger; a ``"manifest"`` beside it is the one the member signed; no
   slot is filled twice.
4. **Head.** Size, root and time are signed by the log's key, and are those of the entries.
5. **Payloads.** Exactly those that the records name, each with its hash.
6. **Quorum.** As many cosigners as the policy asks for. This version knows no cosignatures: the list must
   be empty.

What is *not* shown: that there is no later entry. A bundle of an older head is a true bundle of the ledger
as it was then. Whether decisions follow from what is recorded is for `causaldao audit`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from causaldao.errors import ConfigurationError, LedgerError

FORMAT = "causaldao-bundle/1"
MAX_BYTES = 256 << 20
MAX_DEPTH = 48
SECTIONS = ("cosignatures", "entries", "format", "head", "origin", "payloads")
PAYLOAD_TYPE = "application/vnd.causaldao+json"
STATEMENT = {
    "v": int, "federation": str, "study": str, "round": int, "member": str, "epoch": int, "kind": str,
    "nonce": str, "parent": str, "digest": str, "body": dict,
}  # fmt: skip
KINDS = re.compile(
    r"genesis|member\.(admit|rotate|revoke)|evidence|pool|ballot|adopt|update|aggregate|release|privacy\.spend"
    r"|complaint|equivocation|study\.(draft|proposed|approved|roll-call|evidence|ballots|adopted|training"
    r"|evaluated|released|closed|aborted)"
)
# A member's own words: the entry carries the envelope, the key stands at that index, a slot is filled once.
SPOKEN = ("evidence", "ballot", "update")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Policy:
    """Whom to trust: the log's name and key, each member's keys, and how many cosigners a head needs."""

    origin: str
    log: bytes
    members: Mapping[str, tuple[bytes, ...]]
    quorum: int
    fingerprint: str

    @staticmethod
    def parse(text: str) -> Policy:
        """Read a policy: lines ``log VKEY``, ``member VKEY`` (again for a rotated key), ``quorum N``; #
        comments.

        ``fingerprint`` is the SHA-256 of the text's UTF-8 bytes. Raises ConfigurationError naming the line.
        """
        logs: list[tuple[str, bytes]] = []
        quorums: list[int] = []
        members: dict[str, tuple[bytes, ...]] = {}
        for number, line in enumerate(text.split("\n"), start=1):
            words = line.split("#", 1)[0].split()
            match words:
                case []:
                    pass
                case ["log", key]:
                    logs.append(_verifier_key(key, number))
                case ["member", key]:
                    name, raw = _verifier_key(key, number)
                    members[name] = (*members.get(name, ()), raw)
                case ["quorum", count] if count.isascii() and count.isdigit():
                    quorums.append(int(count))
                case _:
                    raise _policy_fault(number, f"expected 'log KEY', 'member KEY' or 'quorum N', found {line!r}")
        if len(logs) != 1 or len(quorums) != 1:
            raise ConfigurationError(
                f"The policy has {len(logs)} 'log' and {len(quorums)} 'quorum' lines; write exactly one of each."
            )
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        return Policy(*logs[0], members, quorums[0], fingerprint)


@dataclass(frozen=True)
class Line:
    """One verified entry; ``payloads`` are the SHA-256 of the bytes it speaks of."""

    index: int
    time: str
    kind: str
    body: Mapping[str, Any]
    payloads: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What was verified. ``members`` are those admitted and not revoked at the end; ``unadmitted`` those whom the
    policy names and no entry ever admits.
    """

    origin: str
    size: int
    root: str
    time: str
    entries: tuple[Line, ...]
    payloads: Mapping[str, bytes]
    members: tuple[str, ...]
    cosigners: tuple[str, ...]
    policy_fingerprint: str
    unadmitted: tuple[str, ...] = ()


def verify(bundle: bytes, policy: Policy, max_bytes: int = MAX_BYTES) -> Report:
    """Verify a bundle; return what it holds, or raise LedgerError with the place of the first fault.

    The place is the index of an entry, or a section and the offset of a byte in the file.
    """
    document, pieces = _read(bundle, max_bytes)
    if document["origin"] != policy.origin:
        what = f"the log is {document['origin']!r}, the policy trusts {policy.origin!r}"
        raise _fault(pieces.section("origin"), what)
    lines, link = _check_chain(document["entries"], pieces, policy)
    members = _check_members(lines, policy)
    _check_head(document["head"], len(lines), link, policy, pieces)
    payloads = _check_payloads(document["payloads"], lines, pieces)
    if document["cosignatures"]:
        raise _fault(pieces.section("cosignatures"), "this version knows no cosignatures, so it cannot check them")
    if policy.quorum > 0:
        what = f"the policy asks for {policy.quorum} cosigners of the head, the bundle has 0"
        raise _fault(pieces.section("cosignatures"), what)
    head = document["head"]
    return Report(
        policy.origin,
        len(lines),
        head["root"],
        head["time"],
        lines,
        payloads,
        members,
        (),
        policy.fingerprint,
        tuple(sorted(set(policy.members) - {line.body["member"] for line in lines if line.kind == "member.admit"})),
    )


# 1. Bytes


@dataclass(frozen=True)
class _Pieces:
    """Where sections begin in the file, and the canonical bytes of each record."""

    offsets: Mapping[str, int]
    records: tuple[bytes, ...]

    def section(self, name: str) -> str:
        return f"section {name}, byte {self.offsets[name]}"


def _read(bundle: bytes, max_bytes: int) -> tuple[dict[str, Any], _Pieces]:
    if len(bundle) > max_bytes:
        raise _fault("whole file", f"it has {len(bundle)} bytes, the bound is {max_bytes}; it was not parsed")
    document = _strict_json(bundle)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise _fault(_section(bundle, "format"), f"expected {FORMAT!r}, found {found!r}")
    if set(document) != set(SECTIONS):
        names = sorted(set(document) ^ set(SECTIONS))
        raise _fault("whole file, byte 0", f"sections are missing or unknown: {names}")
    _check_shapes(document, bundle)
    written, pieces = _write(document)
    if written != bundle:
        offset = next((i for i, (a, b) in enumerate(zip(bundle, written, strict=False)) if a != b), len(written))
        raise _fault(_place(bundle, offset), "the file is not in its one canonical form (RFC 8785)")
    return document, pieces


def _strict_json(data: bytes) -> Any:
    """Parse JSON, refusing what two readers could read differently."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _fault(_place(data, error.start), "the bytes are not UTF-8") from error
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_int=_number,
            parse_float=_number,
        )
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        raise _fault(_place(data, offset), f"not JSON: {error.msg}") from error
    except _TwiceError as error:
        raise _fault(_twice_place(data), str(error)) from error
    except _NumberError as error:
        raise _fault(_word_place(data, str(error).encode()), f"{str(error)[:40]} is not a double") from error
    except RecursionError as error:
        raise _fault(_deep_place(data), f"nested deeper than {MAX_DEPTH} levels") from error


class _TwiceError(Exception):
    pass


class _NumberError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _TwiceError("a name stands twice in one object")
    return value


def _no_constant(text: str) -> Any:
    raise _NumberError(text)


def _number(text: str) -> int | float:
    """RFC 8785 numbers are IEEE doubles; small integers stay integers so that shapes can be told apart."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _NumberError(text)
    is_small_integer = abs(value) <= 2**53 and text.lstrip("-").isdigit()
    return int(value) if is_small_integer else value


def _encode(value: Any, depth: int = MAX_DEPTH) -> bytes:
    """RFC 8785 of a parsed value."""
    if depth < 0:
        raise LedgerError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return b"{" + b",".join(_encode_text(n) + b":" + _encode(value[n], depth - 1) for n in names) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(_encode(item, depth - 1) for item in value) + b"]"
    if isinstance(value, str):
        return _encode_text(value)
    if value is None or isinstance(value, bool):
        return {None: b"null", True: b"true", False: b"false"}[value]
    return str(value).encode() if isinstance(value, int) else _encode_float(value)


def _encode_text(text: str) -> bytes:
    try:
        return json.dumps(text, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise LedgerError("a text holds half of a surrogate pair") from error


def _encode_float(value: float) -> bytes:
    """ECMAScript's Number::toString: the shortest digits that read back, exponents outside 1e-6 … 1e21."""
    if value == 0:
        return b"0"
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    point = len(digits) + int(exponent)  # of the decimal point, counted from the first digit
    text = "".join(map(str, digits)).rstrip("0")
    if len(text) <= point <= 21:
        body = text + "0" * (point - len(text))
    elif 0 < point <= 21:
        body = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        body = "0." + "0" * -point + text
    else:
        body = f"{text[0]}{'.' if text[1:] else ''}{text[1:]}e{point - 1:+d}"
    return ("-" * sign + body).encode()


def _check_shapes(document: Mapping[str, Any], bundle: bytes) -> None:
    """The outer shape, down to the fields of records and head; bodies are free."""
    sections = {"cosignatures": list, "entries": list, "head": dict, "origin": str, "payloads": dict}
    for name, kind in sections.items():
        if not isinstance(document[name], kind):
            raise _fault(_section(bundle, name), f"expected a {kind.__name__}")
    if not document["entries"]:
        raise _fault(_section(bundle, "entries"), "there is no entry, not even a genesis")
    head = {"root": str, "signature": str, "size": int, "time": str}
    _fields(document["head"], head, _section(bundle, "head"))
    record = {"body": dict, "index": int, "kind": str, "payloads": list, "previous": str, "time": str}
    for position, item in enumerate(document["entries"]):
        _fields(item, {"record": dict, "signature": str}, f"entry {position}")
        _fields(item["record"], record, f"entry {position}")
        if not all(isinstance(name, str) for name in item["record"]["payloads"]):
            raise _fault(f"entry {position}", "its payloads are not a list of hashes")


def _fields(value: Any, kinds: Mapping[str, type], place: str) -> None:
    if not isinstance(value, dict) or set(value) != set(kinds):
        raise _fault(place, f"expected an object with exactly {sorted(kinds)}")
    for name, kind in kinds.items():
        if type(value[name]) is not kind:
            raise _fault(place, f"{name!r} is not a {kind.__name__}")


def _write(document: Mapping[str, Any]) -> tuple[bytes, _Pieces]:
    records = []
    for position, item in enumerate(document["entries"]):
        try:
            records.append(_encode(item["record"]))
        except LedgerError as error:
            raise _fault(f"entry {position}", str(error)) from error
    entries = (
        b'{"record":' + record + b',"signature":' + _encode_text(item["signature"]) + b"}"
        for record, item in zip(records, document["entries"], strict=True)
    )
    written, offsets = bytearray(b"{"), {}
    for name in SECTIONS:
        offsets[name] = len(written)
        try:
            value = b"[" + b",".join(entries) + b"]" if name == "entries" else _encode(document[name])
        except LedgerError as error:
            raise _fault(f"section {name}, byte {len(written)}", str(error)) from error
        written += _encode_text(name) + b":" + value + b","
    written[-1:] = b"}"
    return bytes(written), _Pieces(offsets, tuple(records))


# A string without an end runs to the end of the file, so that one pass over hostile bytes stays one pass.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[{}\[\]]|[^\s{}\[\],:"]++', re.DOTALL)
_COLON = re.compile(rb"\s*:")


def _walk(data: bytes) -> Iterator[tuple[int, int, bool, bytes]]:
    """Offset, depth, whether it is a name, and bytes of each token of a file that may be broken."""
    depth = 0
    for token in _TOKEN.finditer(data):
        word = token[0]
        depth += word in (b"{", b"[")
        yield token.start(), depth, _COLON.match(data, token.end()) is not None, word
        depth -= word in (b"}", b"]")


def _place(data: bytes, offset: int) -> str:
    """The section, and the entry if it is in one, of a byte."""
    section, entry = "start", -1
    for start, depth, is_name, word in _walk(data):
        if start >= offset:
            break
        entry += section == "entries" and depth == 3 and word == b"{"
        if depth == 1 and is_name:
            section = next((name for name in SECTIONS if word[1:-1] == name.encode()), "unknown")
    inside = f", entry {entry}" if section == "entries" and entry >= 0 else ""
    return f"section {section}{inside}, byte {offset}"


def _section(data: bytes, name: str) -> str:
    """Where a section begins in a file that is JSON."""
    named = (start for start, depth, is_name, word in _walk(data) if depth == 1 and is_name)
    offsets = (start for start in named if data.startswith(b'"%b"' % name.encode(), start))
    return f"section {name}, byte {next(offsets, 0)}"


def _deep_place(data: bytes) -> str:
    return _place(data, next((start for start, depth, _, _ in _walk(data) if depth > MAX_DEPTH), 0))


def _word_place(data: bytes, refused: bytes) -> str:
    return _place(data, next((start for start, _, _, word in _walk(data) if word == refused), 0))


def _twice_place(data: bytes) -> str:
    names: dict[int, set[str]] = {}
    for start, depth, is_name, word in _walk(data):
        if word == b"{":
            names[depth] = set()
        elif is_name:
            name = json.loads(word)
            if name in names[depth]:
                return _place(data, start)
            names[depth].add(name)
    return _place(data, 0)


# 2. Log


def _check_chain(items: list[dict[str, Any]], pieces: _Pieces, policy: Policy) -> tuple[tuple[Line, ...], str]:
    link = hashlib.sha256(b"\x03" + policy.origin.encode()).hexdigest()
    lines = []
    for position, (item, record) in enumerate(zip(items, pieces.records, strict=True)):
        place = f"entry {position}"
        line = _line(item["record"], position, link, place)
        leaf = hashlib.sha256(b"\x00" + record).digest()
        joined = b"\x02" + struct.pack(">Q", position) + bytes.fromhex(link) + leaf
        link = hashlib.sha256(joined).hexdigest()
        text = f"causaldao-entry/1\n{policy.origin}\n{position}\n{link}\n".encode()
        if not _signed(policy.log, _base64(item["signature"], place), text):
            raise _fault(place, "its signature is not one by the policy's log key over this entry")
        lines.append(line)
    return tuple(lines), link


def _line(record: Mapping[str, Any], position: int, link: str, place: str) -> Line:
    if record["index"] != position:
        raise _fault(place, f"its record says index {record['index']}: an entry was removed, added or moved")
    if record["previous"] != link:
        raise _fault(place, "it does not follow the entry before it: the link it names is another")
    if not KINDS.fullmatch(record["kind"]) or (record["kind"] == "genesis") != (position == 0):
        raise _fault(place, f"the kind {record['kind']!r} is unknown, or not allowed here (entry 0 is the genesis)")
    if not _TIME.fullmatch(record["time"]):
        raise _fault(place, f"the time {record['time']!r} is not of the form 2025-01-31T12:00:00.000Z")
    if record["payloads"] != sorted(set(record["payloads"])):
        raise _fault(place, "its list of payloads is not sorted, or names one twice")
    return Line(position, record["time"], record["kind"], record["body"], tuple(record["payloads"]))


# 3. Members


@dataclass
class _Members:
    """What the entries so far have established."""

    federation: str = ""
    studies: set[str] = field(default_factory=set)
    keys: dict[str, bytes] = field(default_factory=dict)
    slots: dict[tuple[Any, ...], str] = field(default_factory=dict)


def _check_members(lines: tuple[Line, ...], policy: Policy) -> tuple[str, ...]:
    known = _Members()
    for line in lines:
        _learn(line, policy, known)
        if line.kind in SPOKEN:
            _text(line.body, "envelope", f"entry {line.index}")
        for holder in _holders(line.body):
            _check_envelope(holder, line, policy, known)
    return tuple(sorted(known.keys))


def _learn(line: Line, policy: Policy, known: _Members) -> None:
    place, body = f"entry {line.index}", line.body
    if line.kind == "genesis":
        known.federation = _text(body, "federation", place)
    elif line.kind.startswith("study."):
        known.studies.add(_text(body, "study", place))
    elif line.kind.startswith("member."):
        member = _text(body, "member", place)
        if (line.kind == "member.admit") == (member in known.keys):
            raise _fault(place, f"{line.kind} of {member!r}, who is {'' if member in known.keys else 'not '}a member")
        if line.kind == "member.revoke":
            del known.keys[member]
        else:
            known.keys[member] = _admitted_key(_text(body, "key", place), member, policy, place)


def _admitted_key(text: str, member: str, policy: Policy, place: str) -> bytes:
    if member not in policy.members:
        raise _fault(place, f"the policy has no member {member!r}")
    try:
        name, raw = _verifier_key(text, 0)
    except ConfigurationError as error:
        raise _fault(place, f"the key of {member!r} is not a verifier key") from error
    if name != member or raw not in policy.members[member]:
        raise _fault(place, f"the key recorded for {member!r} is not the one in the policy")
    return raw


def _holders(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a body that has an "envelope"."""
    if isinstance(value, dict):
        if "envelope" in value:
            yield value
        for item in value.values():
            yield from _holders(item)
    elif isinstance(value, list):
        for item in value:
            yield from _holders(item)


def _check_envelope(holder: Mapping[str, Any], line: Line, policy: Policy, known: _Members) -> None:
    place = f"entry {line.index}"
    payload, signature = _open(_text(holder, "envelope", place), place)
    statement = _canonical_object(payload, "the member's statement", place)
    _fields(statement, STATEMENT, place)
    member, kind = statement["member"], PAYLOAD_TYPE.encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    keys = policy.members.get(member, ())
    if line.kind in SPOKEN:
        _check_spoken(statement, holder, line, known)
        keys = tuple(key for key in keys if key == known.keys[member])
    if not any(_signed(key, signature, signed) for key in keys):
        raise _fault(place, f"the envelope in the name of {member!r} is not signed by that member's key")
    if statement["federation"] != known.federation:
        raise _fault(place, f"the envelope is of federation {statement['federation']!r}, not {known.federation!r}")
    if statement["study"] not in known.studies and (statement["study"] or line.kind in SPOKEN):
        raise _fault(place, f"the envelope is of study {statement['study']!r}, which no entry before it names")
    if "manifest" in holder and hashlib.sha256(_encode(holder["manifest"])).hexdigest() != statement["digest"]:
        raise _fault(place, "the manifest is not the one whose digest the member signed")


def _check_spoken(statement: Mapping[str, Any], holder: Mapping[str, Any], line: Line, known: _Members) -> None:
    place, member = f"entry {line.index}", statement["member"]
    if member not in known.keys:
        raise _fault(place, f"{member!r} speaks, but is not a member at this index")
    if statement["kind"] != line.kind or holder.get("member", member) != member:
        raise _fault(place, f"the envelope is a {statement['kind']!r} of {member!r}, the entry says otherwise")
    slot = tuple(statement[name] for name in ("study", "round", "member", "kind"))
    content = hashlib.sha256(_encode({name: statement[name] for name in ("body", "digest", "epoch")})).hexdigest()
    if known.slots.setdefault(slot, content) != content:
        raise _fault(place, f"the slot (study, round, member, kind) = {slot} was filled before with another content")


def _open(text: str, place: str) -> tuple[bytes, bytes]:
    envelope = _canonical_object(text.encode(), "the envelope", place)
    _fields(envelope, {"payload": str, "payloadType": str, "signatures": list}, place)
    if envelope["payloadType"] != PAYLOAD_TYPE or len(envelope["signatures"]) != 1:
        raise _fault(place, f"the envelope is not one of type {PAYLOAD_TYPE!r} with one signature")
    _fields(envelope["signatures"][0], {"keyid": str, "sig": str}, place)
    return _base64(envelope["payload"], place), _base64(envelope["signatures"][0]["sig"], place)


def _canonical_object(data: bytes, what: str, place: str) -> dict[str, Any]:
    try:
        value = _strict_json(data)
        written = _encode(value)
    except LedgerError as error:
        raise _fault(place, f"{what} cannot be read: {error}") from error
    if written != data or not isinstance(value, dict):
        raise _fault(place, f"{what} is not an object in canonical JSON (RFC 8785)")
    return value


def _text(body: Mapping[str, Any], name: str, place: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise _fault(place, f"its body lacks the text {name!r}")
    return value


# 4. Head, 5. payloads


def _check_head(head: Mapping[str, Any], size: int, root: str, policy: Policy, pieces: _Pieces) -> None:
    place = pieces.section("head")
    text = f"causaldao-head/1\n{policy.origin}\n{head['size']}\n{head['root']}\n{head['time']}\n".encode()
    if not _signed(policy.log, _base64(head["signature"], place), text):
        raise _fault(place, "its signature is not one by the policy's log key")
    if head["size"] != size:
        raise _fault(place, f"it is of {head['size']} entries, the file has {size}")
    if head["root"] != root:
        raise _fault(place, f"its root is {head['root']}, the entries give {root}")


def _check_payloads(encoded: Mapping[str, Any], lines: tuple[Line, ...], pieces: _Pieces) -> dict[str, bytes]:
    payloads = {}
    offset = pieces.offsets["payloads"] + len('"payloads":{')
    for name in sorted(encoded):
        place = f"section payloads, byte {offset}"
        if not _HEX.fullmatch(name) or not isinstance(encoded[name], str):
            raise _fault(place, "expected a text under a SHA-256")
        payloads[name] = _base64(encoded[name], place)
        found = hashlib.sha256(payloads[name]).hexdigest()
        if found != name:
            raise _fault(place, f"the payload named {name} has the SHA-256 {found}")
        offset += len(name) + len(encoded[name]) + 6  # "name":"value",
    missing = [(line.index, name) for line in lines for name in line.payloads if name not in payloads]
    if missing:
        raise _fault(f"entry {missing[0][0]}", f"its payload {missing[0][1]} is not in the file")
    stray = sorted(set(payloads) - {name for line in lines for name in line.payloads})
    if stray:
        raise _fault(pieces.section("payloads"), f"no entry speaks of the payload {stray[0]}")
    return payloads


# Small tools


def _signed(key: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _base64(text: str, place: str) -> bytes:
    """Strict: the one encoding of these bytes (stray bits in the last digit are refused too)."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _fault(place, f"not base64: {error}") from error
    if base64.b64encode(data).decode() != text:
        raise _fault(place, "not the canonical base64 of its bytes")
    return data


def _verifier_key(text: str, number: int) -> tuple[str, bytes]:
    """A C2SP verifier key ``name+hash+base64(0x01 || key)``: its name and the 32 bytes."""
    name, _, rest = text.partition("+")
    key_hash, _, encoded = rest.partition("+")
    try:
        typed = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise _policy_fault(number, f"the key of {name!r} is not base64") from error
    expected = hashlib.sha256(name.encode() + b"\n" + typed).hexdigest()[:8]
    if not name or key_hash != expected or typed[:1] != b"\x01" or len(typed) != 33:
        raise _policy_fault(number, f"the key of {name!r} was altered or mistyped, or is not an Ed25519 key")
    return name, typed[1:]


def _fault(place: str, what: str) -> LedgerError:
    return LedgerError(f"The ledger does not verify: {place}: {what}.")


def _policy_fault(number: int, what: str) -> ConfigurationError:
    return ConfigurationError(f"The policy's line {number} cannot be used: {what}.")
