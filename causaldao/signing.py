"""Keys, canonical bytes and signed envelopes: the ground of every message and of every ledger entry.

Canonical JSON is RFC 8785; signatures are Ed25519 (RFC 8032); envelopes are DSSE v1; public keys are written in the
C2SP signed-note notation ``name+hash+key``. Keys lie in PKCS#8 files of mode 0600.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from causaldao.errors import ConfigurationError, IdentityError

Tensors = Mapping[str, np.ndarray[Any, np.dtype[Any]]]

NAME = re.compile(r"[a-z0-9-]{1,64}")
PAYLOAD_TYPE = "application/vnd.causaldao+json"
MAX_ENVELOPE_BYTES = 1 << 20
MAX_DEPTH = 32  # of a statement: less than what a ledger's verifier reads
VERSION = 1
_ED25519 = b"\x01"  # C2SP signed-note algorithm byte
_FIELDS = {
    "v": int, "federation": str, "study": str, "round": int, "member": str, "epoch": int, "kind": str,
    "nonce": str, "parent": str, "digest": str, "body": dict,
}  # fmt: skip


def canonical(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value; refuses what JSON cannot say (NaN, infinities, integers beyond 2^53)."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise ConfigurationError(f"Expected a JSON value that RFC 8785 can write, but: {error}.") from error


def sha256(data: bytes) -> str:
    """SHA-256 as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def check_name(name: str) -> str:
    """A member's or federation's name, ``[a-z0-9-]{1,64}``; the charset keeps paths and markup out of names."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise IdentityError(
            f"The name {name!r} is not allowed: use 1 to 64 of a-z, 0-9 and '-', for example 'st-mary-hospital'."
        )
    return name


@dataclass(frozen=True)
class VerifyKey:
    """An Ed25519 public key, 32 raw bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise IdentityError(f"An Ed25519 public key has 32 bytes, but this one has {len(self.raw)}.")

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the key's SHA-256."""
        return sha256(self.raw)[:16]

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return None if ``signature`` is this key's over ``data``; raise IdentityError otherwise."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except (InvalidSignature, ValueError) as error:
            raise IdentityError(f"The signature is not one of key {self.id} over this content.") from error

    def to_text(self, name: str) -> str:
        """The C2SP verifier key ``name+hash+base64(0x01 || key)``."""
        typed = _ED25519 + self.raw
        return f"{name}+{_note_key_hash(name, typed)}+{base64.b64encode(typed).decode()}"

    @staticmethod
    def from_text(text: str) -> tuple[str, VerifyKey]:
        """Read a C2SP verifier key; the hash must be the one of its name and key."""
        parts = text.strip().split("+", 2)
        if len(parts) != 3:
            raise IdentityError(f"Expected a verifier key 'name+hash+key', but got {text.strip()!r}.")
        name, key_hash, encoded = parts
        try:
            typed = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise IdentityError(f"The verifier key of {name!r} is not base64: {error}.") from error
        if typed[:1] != _ED25519 or key_hash != _note_key_hash(name, typed):
            raise IdentityError(
                f"The verifier key of {name!r} does not carry its own hash: it was altered or mistyped."
            )
        return name, VerifyKey(typed[1:])


def _note_key_hash(name: str, typed_key: bytes) -> str:
    return hashlib.sha256(name.encode() + b"\n" + typed_key).hexdigest()[:8]


class SigningKey:
    """An Ed25519 private key. It never appears in a message, a log line or a repr."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = VerifyKey(
            private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        )

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key of a 32-byte seed (RFC 8032, 5.1.5): for tests and simulations."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None) -> SigningKey:
        """Read a PKCS#8 PEM file; refuses one that others may read."""
        try:
            mode = path.stat().st_mode & 0o777
            data = path.read_bytes()
        except OSError as error:
            raise IdentityError(f"The key file {path} cannot be read: {error.strerror}.") from error
        if mode & 0o077:
            raise IdentityError(f"The key file {path} has mode {mode:04o}: others can read it. Run: chmod 600 {path}")
        try:
            private = serialization.load_pem_private_key(data, passphrase)
        except (ValueError, TypeError) as error:
            raise IdentityError(f"The key file {path} cannot be opened ({error}): check the passphrase.") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise IdentityError(f"The key file {path} holds a {type(private).__name__}, not an Ed25519 key.")
        return cls(private)

    def save(self, path: Path, passphrase: bytes | None = None) -> None:
        """Write a PKCS#8 PEM file, mode 0600; refuses to overwrite."""
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            encryption = serialization.BestAvailableEncryption(passphrase)
        pem = self._private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise IdentityError(f"The key file {path} exists already and is never overwritten.") from error
        except OSError as error:
            raise IdentityError(f"The key file {path} cannot be written: {error.strerror}.") from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(descriptor)

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


def manifest(tensors: Tensors) -> list[dict[str, Any]]:
    """Name, dtype, shape and SHA-256 of the little-endian C-order bytes of each tensor, sorted by name."""
    return [
        {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "sha256": sha256(raw_bytes(array))}
        for name, array in sorted(tensors.items())
    ]


def raw_bytes(array: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    """Little-endian, C-order bytes of an array."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).tobytes()


def digest(tensors: Tensors) -> str:
    """SHA-256 of the canonical manifest; of no tensors, the SHA-256 of ``[]``."""
    return sha256(canonical(manifest(tensors)))


@dataclass(frozen=True)
class Statement:
    """What an envelope says, and to what it is bound. ``digest`` covers the tensors that travel beside it."""

    federation: str
    study: str
    round: int
    member: str
    kind: str
    body: dict[str, Any]
    nonce: str
    parent: str
    digest: str
    epoch: int = 0
    v: int = VERSION

    @property
    def slot(self) -> tuple[str, int, str, str]:
        """One slot holds one content: another content in it is equivocation."""
        return (self.study, self.round, self.member, self.kind)

    @property
    def content(self) -> str:
        """SHA-256 of what the slot holds: body and tensors, not nonce and parent."""
        return sha256(canonical({"body": self.body, "digest": self.digest, "epoch": self.epoch}))


def seal(statement: Statement, key: SigningKey) -> bytes:
    """A DSSE envelope over the canonical statement, itself canonical JSON."""
    payload = canonical(asdict(statement))
    return _dsse(payload, key.sign(_pae(payload)), key.public.id)


def unseal(data: bytes, key: VerifyKey, max_bytes: int = MAX_ENVELOPE_BYTES) -> Statement:
    """The statement of an envelope that ``key`` signed.

    Size is checked before anything is parsed, the signature before the payload is read.

    Raises
    ------
    IdentityError
        too large, not a DSSE envelope, another key's signature, a statement of another form.
    """
    payload, signature = _open(data, max_bytes)
    key.verify(signature, _pae(payload))
    if data != _dsse(payload, signature, key.id):
        raise IdentityError(f"The envelope names another key than {key.id}, which signed it.")
    return _statement(payload)


def peek(data: bytes, max_bytes: int = MAX_ENVELOPE_BYTES) -> Statement:
    """The statement of an envelope UNVERIFIED: only to learn who claims to speak, before `unseal`."""
    return _statement(_open(data, max_bytes)[0])


def _pae(payload: bytes) -> bytes:
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _dsse(payload: bytes, signature: bytes, keyid: str) -> bytes:
    return canonical(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}],
        }
    )


def _open(data: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    """Payload and signature of an envelope in its one form: a ledger's verifier would refuse any other for ever."""
    if len(data) > max_bytes:
        raise IdentityError(f"The envelope has {len(data)} bytes, the bound is {max_bytes}: it was not parsed.")
    envelope = _json(data)
    try:
        (signature,) = envelope["signatures"]
        payload, signed = (base64.b64decode(part, validate=True) for part in (envelope["payload"], signature["sig"]))
        if _dsse(payload, signed, str(signature["keyid"])) != data:
            raise ValueError("not in its canonical form")
    except (KeyError, TypeError, ValueError, ConfigurationError) as error:
        raise IdentityError("The envelope is not a DSSE envelope with one signature, in canonical JSON.") from error
    return payload, signed


def _statement(payload: bytes) -> Statement:
    value = _json(payload)
    wrong = sorted(set(value) ^ set(_FIELDS)) or [
        name for name, kind in _FIELDS.items() if type(value[name]) is not kind
    ]
    if wrong:
        raise IdentityError(f"The statement's fields {wrong} are missing, unknown or of the wrong type.")
    if not _is_canonical(value, payload):
        raise IdentityError("The statement is not in RFC 8785 form: two readers could read it differently.")
    if value["v"] != VERSION or _deeper_than(value, MAX_DEPTH):
        raise IdentityError(
            f"The statement is of version {value['v']}, not {VERSION}, or nested deeper than {MAX_DEPTH}."
        )
    return Statement(**{field.name: value[field.name] for field in fields(Statement)})


def _is_canonical(value: Any, data: bytes) -> bool:
    try:
        return canonical(value) == data
    except ConfigurationError:
        return False


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(
        _deeper_than(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IdentityError("The envelope or its statement is not JSON.") from error
    if not isinstance(value, dict):
        raise IdentityError(f"Expected a JSON object in the envelope, but got a {type(value).__name__}.")
    return value
