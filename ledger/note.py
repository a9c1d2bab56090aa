"""Checkpoints in signed notes, cosignatures and receipts: the text formats of C2SP, which other programs read too.

- signed-note: a text, an empty line, then a line ``— NAME base64(key id || signature)`` for each signature.
- tlog-checkpoint: the text of a log's head: its origin, its size and its Merkle root (base64), a line each.
- tlog-cosignature: a witness's word that the checkpoint goes on from all it saw before, with the POSIX second. Here
  always Ed25519 (type 0x04), over ``cosignature/v1``, the time and the checkpoint's text, a line each.
- tlog-proof: an index, an inclusion proof and the checkpoint it leads to: a receipt.

What is read is measured before it is parsed, and read strictly: of one content there is one spelling (base64 with its
padding, decimals without leading zeros), so nothing unsigned can be hidden in a note. Signatures of unknown keys are
ignored, as C2SP demands. A key that is known must sign once, and well.

Times of cosignatures lie between 1 and 2^63 - 1: C2SP's bound, and a witness must not leave its time out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from causaldao.errors import IdentityError, LedgerError
from causaldao.ledger.merkle import HASH_BYTES, MAX_SIZE
from causaldao.signing import SigningKey, VerifyKey

LOG, COSIGNER = 1, 4
MAX_NOTE_BYTES = 1 << 20
MAX_SIGNATURES = 256
MAX_PROOF_HASHES = 64
MAX_PROOF_BYTES = MAX_NOTE_BYTES + (1 << 13)
MAX_TIME = 2**63 - 1

_KINDS = {LOG: "a log's signature (0x01)", COSIGNER: "cosignatures (0x04)"}
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_PROOF_HEADER = "c2sp.org/tlog-proof@v1"
_DASH = "— "
_ID_BYTES, _TIME_BYTES = 4, 8


@dataclass(frozen=True)
class Verifier:
    """A public key as a note's reader knows it: with its name and the kind of its signatures (`LOG`, `COSIGNER`).

    Raises
    ------
    IdentityError
        a name that no signature line can carry, another kind, a key that has not 32 bytes.
    """

    name: str
    kind: int
    key: bytes

    def __post_init__(self) -> None:
        if not _is_key_name(self.name):
            raise IdentityError(f"The key name {self.name!r} is empty or has spaces, '+' or control characters.")
        if self.kind not in _KINDS:
            raise IdentityError(
                f"The key {self.name!r} is of type {self.kind:#04x}; read here are {', '.join(_KINDS.values())}."
            )
        VerifyKey(self.key)

    @property
    def id(self) -> bytes:
        """The 4 bytes that name the key in a signature line, together with its name."""
        return hashlib.sha256(f"{self.name}\n".encode() + self._typed).digest()[:_ID_BYTES]

    @property
    def by(self) -> tuple[str, bytes]:
        """Name and id: what a signature line says of its key (`signer`)."""
        return self.name, self.id

    @property
    def text(self) -> str:
        """The C2SP verifier key ``name+id+base64(kind || key)``."""
        return f"{self.name}+{self.id.hex()}+{_base64(self._typed)}"

    @classmethod
    def parse(cls, text: str, kinds: Collection[int] = (LOG, COSIGNER)) -> Verifier:
        """Read a verifier key of one of these kinds, in its one spelling.

        Raises
        ------
        IdentityError
            it is none, its id is not that of its name and key, or it is of another kind.
        """
        name, _, encoded = text.partition("+")
        typed = _from_base64(encoded[2 * _ID_BYTES + 1 :]) or b"\x00"
        if typed[0] not in kinds:
            raise IdentityError(
                f"Expected a verifier key 'name+hash+key' of type {' or '.join(f'{kind:#04x}' for kind in kinds)}, "
                f"but got {text[:200]!r}."
            )
        verifier = cls(name, typed[0], typed[1:])
        if verifier.text != text:
            raise IdentityError(
                f"The verifier key of {name!r} does not carry its own hash: it was altered or mistyped."
            )
        return verifier

    @classmethod
    def of(cls, name: str, key: VerifyKey, kind: int) -> Verifier:
        """The verifier of an Ed25519 key under a name."""
        return cls(name, kind, key.raw)

    @property
    def _typed(self) -> bytes:
        return bytes([self.kind]) + self.key


@dataclass(frozen=True)
class Checkpoint:
    """The head of a log: ``size`` leaves under ``root`` (32 bytes). Extension lines are read, never written by us.

    Raises
    ------
    LedgerError
        an empty origin or extension line, control characters in one, a size beyond 0 to 2^63 - 1, a root of another
        length.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE:
            raise LedgerError(f"A checkpoint's size is 0 to {MAX_SIZE}, not {self.size}.")
        if len(self.root) != HASH_BYTES:
            raise LedgerError(f"A checkpoint's root has {HASH_BYTES} bytes, not {len(self.root)}.")
        for line in (self.origin, *self.extensions):
            if not line or "\n" in line:
                raise LedgerError(f"A checkpoint's origin and extensions are lines that are not empty, not {line!r}.")
        _check_text(self.text, MAX_NOTE_BYTES, "checkpoint")

    @property
    def text(self) -> str:
        """What is signed: each part on a line of its own."""
        return "\n".join([self.origin, str(self.size), _base64(self.root), *self.extensions, ""])

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a checkpoint's text, in its one spelling.

        Raises
        ------
        LedgerError
            it is none.
        """
        _check_text(text, MAX_NOTE_BYTES, "checkpoint")
        origin, *rest = text.split("\n")
        if len(rest) < 3 or rest[-1]:
            raise LedgerError("A checkpoint has at least three lines, each ended by a newline: origin, size and root.")
        size, root, *extensions = rest[:-1]
        return cls(origin, _number(size, "size of a checkpoint"), _hash(root), tuple(extensions))


@dataclass(frozen=True)
class _Line:
    """One signature line: ``id`` are the key's 4 bytes, ``signature`` what follows them."""

    name: str
    id: bytes
    signature: bytes

    @property
    def by(self) -> tuple[str, bytes]:
        return self.name, self.id

    @property
    def text(self) -> str:
        return f"{_DASH}{self.name} {_base64(self.id + self.signature)}"


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> str:
    """The signed note of a checkpoint, with the log's own signature under its origin as the key's name.

    Raises
    ------
    IdentityError
        the origin cannot be a key's name: it has spaces or '+'.
    """
    log = Verifier.of(checkpoint.origin, key.public, LOG)
    line = _Line(log.name, log.id, key.sign(checkpoint.text.encode()))
    return f"{checkpoint.text}\n{line.text}\n"


def cosign(checkpoint: Checkpoint, name: str, key: SigningKey, time: int) -> str:
    """The signature line, without a newline, of the witness ``name`` at ``time``, a POSIX second.

    Raises
    ------
    LedgerError
        a time outside 1 to 2^63 - 1.
    IdentityError
        a name that no signature line can carry.
    """
    _check_time(time)
    witness = Verifier.of(name, key.public, COSIGNER)
    signature = time.to_bytes(_TIME_BYTES, "big") + key.sign(_cosigned(checkpoint, time))
    return _Line(name, witness.id, signature).text


def check_cosignature(checkpoint: Checkpoint, line: str, verifier: Verifier) -> int:
    """The time of a cosignature, given as its line without a newline, that ``verifier`` holds good for ``checkpoint``.

    Raises
    ------
    LedgerError
        another key's line, one that does not verify, or not a signature line at all.
    """
    _check_text(line, MAX_NOTE_BYTES, "signature line")
    return _time_of(checkpoint, _line(line), verifier)


def signer(line: str) -> tuple[str, bytes]:
    """The name on a signature line, and the 4 bytes of its key's id (`Verifier.id`). Nothing is verified.

    Raises
    ------
    LedgerError
        it is no signature line.
    """
    return _line(line).by


def signed_text(note: str, log: Verifier) -> str:
    """The text of a signed note that ``log`` signed, whatever it says. Other signatures are ignored.

    Raises
    ------
    LedgerError
        too large or too many lines, not a signed note, or ``log``'s signature lacks, comes twice or does not verify.
    """
    _check_kind(log, LOG)
    text, lines = _parts(note)
    line = _known(lines, [log]).get(log.name)
    if line is None:
        raise LedgerError(f"The note has no signature of the key {log.text}: it is another's, or it was altered.")
    _verify(log, line.signature, text.encode())
    return text


def open_note(note: str, log: Verifier) -> Checkpoint:
    """The checkpoint of a signed note that ``log`` signed. Other signatures are ignored: see `cosigners`.

    Raises
    ------
    LedgerError
        what `signed_text` says, no checkpoint, or one of another origin than the log's name.
    """
    checkpoint = Checkpoint.parse(signed_text(note, log))
    if checkpoint.origin != log.name:
        raise LedgerError(f"The checkpoint is of {checkpoint.origin!r}, but the key that signed it is of {log.name!r}.")
    return checkpoint


def cosigners(note: str, witnesses: Iterable[Verifier]) -> dict[str, int]:
    """Who of ``witnesses`` cosigned the note's checkpoint: the time by name. The log's signature is not looked at.

    Ed25519 cosignatures do not cover the witness's name. So one key under two names would count twice; it is refused.

    Raises
    ------
    LedgerError
        two witnesses with one name or one key; a witness's line that does not verify or comes twice; what `signed_text`
        says of the note's form.
    """
    known = list(witnesses)
    for witness in known:
        _check_kind(witness, COSIGNER)
    if len({witness.name for witness in known}) < len(known) or len({witness.key for witness in known}) < len(known):
        raise LedgerError("Two witnesses have the same name or the same key: each may count once only.")
    text, lines = _parts(note)
    signed, checkpoint = _known(lines, known), Checkpoint.parse(text)
    return {
        witness.name: _time_of(checkpoint, signed[witness.name], witness) for witness in known if witness.name in signed
    }


def with_cosignatures(note: str, lines: Iterable[str]) -> str:
    """The note with these signature lines too: first the log's, under the origin's name, the others sorted by name.

    So it is the same text in whatever order the lines came. A line that is there already is not added again. Nothing
    is verified: `check_cosignature` does that.

    Raises
    ------
    LedgerError
        not signature lines, two different ones of one key, more than a note may have.
    """
    text, present = _parts(note)
    origin = Checkpoint.parse(text).origin
    kept: dict[tuple[str, bytes], _Line] = {}
    for line in [*present, *map(_line, lines)]:
        if kept.setdefault(line.by, line) != line:
            raise LedgerError(
                f"The key {line.name}+{line.id.hex()} has two different signatures here: keep one of them."
            )
    ordered = sorted(kept.values(), key=lambda line: (line.name != origin, line.by))
    signed = "".join([text, "\n", *(f"{line.text}\n" for line in ordered)])
    _parts(signed)
    return signed


def proof_text(index: int, hashes: Sequence[bytes], note: str) -> str:
    """A receipt (C2SP tlog-proof, no extra data): leaf ``index`` is under the note's root by these hashes.

    Raises
    ------
    LedgerError
        more than 64 hashes or one of another length than 32 bytes, an index beyond 0 to 2^63 - 1, no note of a
        checkpoint.
    """
    lines = [_PROOF_HEADER, f"index {index}", *map(_base64, hashes)]
    text = "\n".join([*lines, "", note])
    parse_proof(text)
    return text


def parse_proof(text: str) -> tuple[int, tuple[bytes, ...], str]:
    """Index, inclusion proof and signed note of a receipt. Nothing is verified: neither signatures nor the proof.

    Extra data, which the standard allows and does not authenticate, are passed over.

    Raises
    ------
    LedgerError
        it is none, is too large, or has more than 64 hashes.
    """
    _check_text(text, MAX_PROOF_BYTES, "proof")
    head, _, note = text.partition("\n\n")
    # the bound is on lines: `split` makes no more than one piece beyond it
    header, *lines = head.split("\n", MAX_PROOF_HASHES + 3)
    if lines and lines[0].startswith("extra "):
        _bytes(lines.pop(0).removeprefix("extra "), "extra data of a proof")
    if header != _PROOF_HEADER or not lines or not lines[0].startswith("index "):
        raise LedgerError(f"A proof begins with the lines {_PROOF_HEADER!r} and 'index' with a number.")
    index = _number(lines.pop(0).removeprefix("index "), "index of a proof")
    if len(lines) > MAX_PROOF_HASHES:
        raise LedgerError(f"A proof has at most {MAX_PROOF_HASHES} hashes, this one has more: it was not read.")
    Checkpoint.parse(_parts(note)[0])
    return index, tuple(map(_hash, lines)), note


def _parts(note: str) -> tuple[str, list[_Line]]:
    """The text and the signature lines, at least one, of a signed note. The last empty line parts them."""
    _check_text(note, MAX_NOTE_BYTES, "note")
    text, found, block = note.rpartition("\n\n")
    if not found or not block.endswith("\n"):
        raise LedgerError("A signed note is a text, an empty line and signature lines, each ended by a newline.")
    if block.count("\n") > MAX_SIGNATURES:
        raise LedgerError(f"A note has at most {MAX_SIGNATURES} signatures, this one has more: it was not read.")
    return f"{text}\n", [_line(line) for line in block[:-1].split("\n")]


def _line(text: str) -> _Line:
    name, found, encoded = text.removeprefix(_DASH).partition(" ")
    if not text.startswith(_DASH) or not found or not _is_key_name(name):
        raise LedgerError(
            f"A signature line is '{_DASH}NAME BASE64', the name without spaces and '+', not {text[:200]!r}."
        )
    data = _bytes(encoded, f"signature of {name!r}")
    if len(data) <= _ID_BYTES:
        raise LedgerError(f"The signature of {name!r} has {len(data)} bytes: too few for a key's id and a signature.")
    return _Line(name, data[:_ID_BYTES], data[_ID_BYTES:])


def _known(lines: Sequence[_Line], verifiers: Iterable[Verifier]) -> dict[str, _Line]:
    """The line of each verifier that has one, by name."""
    wanted = {(verifier.name, verifier.id) for verifier in verifiers}
    found: dict[str, _Line] = {}
    for line in lines:
        if line.by not in wanted:
            continue
        if line.name in found:
            raise LedgerError(f"The key {line.name}+{line.id.hex()} signed the note twice: one signature is allowed.")
        found[line.name] = line
    return found


def _time_of(checkpoint: Checkpoint, line: _Line, verifier: Verifier) -> int:
    _check_kind(verifier, COSIGNER)
    if line.by != (verifier.name, verifier.id):
        raise LedgerError(f"The signature line is of {line.name}+{line.id.hex()}, not of {verifier.text}.")
    time = int.from_bytes(line.signature[:_TIME_BYTES], "big")
    _check_time(time)
    _verify(verifier, line.signature[_TIME_BYTES:], _cosigned(checkpoint, time))
    return time


def _cosigned(checkpoint: Checkpoint, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{checkpoint.text}".encode()


def _verify(verifier: Verifier, signature: bytes, data: bytes) -> None:
    try:
        VerifyKey(verifier.key).verify(signature, data)
    except IdentityError as error:
        raise LedgerError(
            f"The signature of {verifier.name}+{verifier.id.hex()} does not verify: it or the text was altered."
        ) from error


def _check_kind(verifier: Verifier, kind: int) -> None:
    if verifier.kind != kind:
        raise LedgerError(
            f"The key {verifier.text} makes {_KINDS[verifier.kind]}; one for {_KINDS[kind]} is needed here."
        )


def _check_time(time: int) -> None:
    if not 1 <= time <= MAX_TIME:
        raise LedgerError(f"A cosignature's time is a POSIX second from 1 to {MAX_TIME}, not {time}.")


def _check_text(text: str, most: int, what: str) -> None:
    """Refuses before anything is parsed: what is too long, is not UTF-8, or has control characters but newlines."""
    size = len(text)
    if size <= most:  # a character has at least one byte: only what may fit is encoded
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise LedgerError(f"The {what} has characters that UTF-8 cannot write.") from error
    if size > most:
        raise LedgerError(f"The {what} has {size} bytes or more, the bound is {most}: it was not parsed.")
    if any(character < " " and character != "\n" for character in set(text)):
        raise LedgerError(f"The {what} has control characters; only newlines are allowed.")


def _is_key_name(name: str) -> bool:
    return bool(name) and not any(
        character == "+" or character < " " or character.isspace() or "\ud800" <= character <= "\udfff"
        for character in name
    )


def _number(text: str, what: str) -> int:
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_SIZE:
        raise LedgerError(f"The {what} is a decimal from 0 to {MAX_SIZE} without leading zeros, not {text[:40]!r}.")
    return int(text)


def _hash(text: str) -> bytes:
    data = _bytes(text, "hash")
    if len(data) != HASH_BYTES:
        raise LedgerError(f"A hash of the tree has {HASH_BYTES} bytes, but one here has {len(data)}.")
    return data


def _bytes(text: str, what: str) -> bytes:
    data = _from_base64(text)
    if data is None:
        raise LedgerError(f"The {what} is not base64 in its canonical form, with padding: {text[:100]!r}.")
    return data


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_base64(text: str) -> bytes | None:
    """The bytes, or None if this is not the one spelling of them."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if _base64(data) == text else None
