"""What an institution and a coordinator say to each other before, and outside, any study: joining, certificates, votes.

*Token*: what an operator hands to an institution, by another way than this one. It names the federation, the member and
the address, holds a secret that works once, and carries the authority's certificate: the node trusts that authority
and no other when it connects.

*Proof*: a signed statement that goes with each request. TLS tells the node whom it talks to; the proof tells the
coordinator who asks, by the member's signing key, with a nonce and the time, so that it cannot be used again.

Requests and responses are canonical JSON. Both ends are programs of ours, so any other form is refused.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from causaldao.errors import CausalDAOError, ConfigurationError, IdentityError, by_code
from causaldao.messages import fields
from causaldao.signing import SigningKey, Statement, VerifyKey, canonical, check_name, digest, seal, sha256, unseal

SERVICE = "causaldao.Enrolment"
METHODS = ("Join", "Renew", "Announce", "Studies", "Motions", "Vote", "Rotate", "Propose", "Graph")
MAX_REQUEST_BYTES = 256 << 10
MAX_RESPONSE_BYTES = 4 << 20  # `Studies` carries documents
FRESH_SECONDS = 300
TOKEN_MINUTES = 15
_PREFIX = "cdao1"
_MAX_TOKEN = 8 << 10
_TOKEN = {"federation": str, "name": str, "address": str, "secret": str, "authority": str}
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_NONCE = re.compile(r"[0-9a-f]{32}")
_HASH = re.compile(r"[0-9a-f]{64}")
_ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,64}")
_MAX_TEXT = 600


@dataclass(frozen=True)
class Token:
    """An invitation to join. ``authority`` is the DER form of the one certificate that the node will trust."""

    federation: str
    name: str
    address: str
    secret: str
    authority: bytes

    def to_text(self) -> str:
        """``cdao1.<base64url of JSON>.<first 8 hex digits of its SHA-256>``."""
        value = {
            "federation": self.federation, "name": self.name, "address": self.address, "secret": self.secret,
            "authority": base64.b64encode(self.authority).decode(),
        }  # fmt: skip
        payload = base64.urlsafe_b64encode(canonical(value)).decode().rstrip("=")
        return f"{_PREFIX}.{payload}.{sha256(payload.encode())[:8]}"

    @staticmethod
    def from_text(text: str) -> Token:
        """Read a token; blanks and line breaks that a mail put into it do not matter.

        Raises
        ------
        IdentityError
            it is not a token, was cut short or altered, or what it says cannot be.
        """
        compact = "".join(text.split())
        prefix, _, rest = compact.partition(".")
        payload, _, check = rest.rpartition(".")
        if prefix != _PREFIX or len(compact) > _MAX_TOKEN:
            raise IdentityError(f"This is not a token: one begins with '{_PREFIX}.' and is a single line.")
        if not payload or sha256(payload.encode())[:8] != check:
            raise IdentityError("The token is damaged: it was cut short or mistyped. Copy the whole line again.")
        try:
            value = decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), _MAX_TOKEN)
            fields(value, _TOKEN)
            value["authority"] = base64.b64decode(value["authority"], validate=True)
            token = Token(**value)
            _root(token.authority)
        except (IdentityError, binascii.Error, ValueError) as error:
            raise IdentityError(f"The token cannot be read ({error}): ask the operator for a new one.") from error
        token.check()
        return token

    def check(self) -> None:
        """Refuse names, an address or a secret that no coordinator would write."""
        check_name(self.federation)
        check_name(self.name)
        check_address(self.address)
        if not _SECRET.fullmatch(self.secret):
            raise IdentityError(
                "The token's secret is not one that a coordinator makes: ask the operator for a new one."
            )

    @property
    def authority_pem(self) -> bytes:
        """The pinned authority's certificate."""
        return _root(self.authority).public_bytes(Encoding.PEM)


def _root(der: bytes) -> x509.Certificate:
    """A certificate that signs itself: a byte that was altered shows here, not as a network that does not answer."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise IdentityError("its authority is not a certificate that signs itself") from error
    return certificate


def check_address(address: str) -> str:
    """``host:port``, the host a name or an IP address (IPv6 in brackets)."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isascii() and port.isdecimal() and 0 < int(port) < 65536 and _is_host(host)):
        raise IdentityError(
            f"{visible(address)!r} is not an address: expected host:port, such as hub.example.org:9443."
        )
    return address


def _is_host(host: str) -> bool:
    if not (host.startswith("[") and host.endswith("]")):
        return _HOST.fullmatch(host) is not None
    try:
        return ipaddress.ip_address(host[1:-1]).version == 6
    except ValueError:
        return False


def decode(data: bytes, max_bytes: int) -> dict[str, Any]:
    """A JSON object in its canonical form, of a size that is checked first. IdentityError otherwise."""
    if len(data) > max_bytes:
        raise IdentityError(f"The message has {len(data)} bytes, the bound is {max_bytes}: it was not parsed.")
    try:
        value = json.loads(data)
        plain = isinstance(value, dict) and canonical(value) == data
    except (ValueError, RecursionError, ConfigurationError) as error:
        raise IdentityError("The message is not JSON that RFC 8785 could have written.") from error
    if not plain:
        raise IdentityError("The message is not a JSON object in RFC 8785 form.")
    return dict(value)


def prove(
    kind: str, body: Mapping[str, Any], key: SigningKey, *, federation: str, name: str, nonce: str, now: datetime
) -> str:
    """An envelope (text) that says who asks for what, when. ``nonce`` is 32 hex digits that were never used before."""
    statement = Statement(
        federation=federation, study="", round=0, member=name, kind=kind, nonce=nonce, parent="", digest=digest({}),
        body={**body, "time": int(now.timestamp())},
    )  # fmt: skip
    return seal(statement, key).decode()


def check_proof(
    envelope: str, key: VerifyKey, *, federation: str, name: str, kind: str, expected: Mapping[str, Any], now: datetime
) -> Statement:
    """The statement of a proof that ``key`` signed for this request, less than `FRESH_SECONDS` from ``now``.

    Whether its nonce was used before is for the caller to know. ``expected`` are the body's fields and their types.

    Raises
    ------
    IdentityError
        another signer, federation, member or kind; other fields; too old or too new: the message tells both clocks.
    """
    statement = unseal(envelope.encode(), key, MAX_REQUEST_BYTES)
    if (statement.federation, statement.member, statement.kind) != (federation, name, kind):
        raise IdentityError(
            f"The proof says {visible(statement.kind)!r} of {visible(statement.member)!r} in "
            f"{visible(statement.federation)!r}, but {kind!r} of {name!r} in {federation!r} was asked for."
        )
    fields(statement.body, {**expected, "time": int})
    if not _NONCE.fullmatch(statement.nonce):
        raise IdentityError("The proof's nonce is not 32 hexadecimal digits.")
    theirs, ours = statement.body["time"], int(now.timestamp())
    if abs(theirs - ours) > FRESH_SECONDS:
        raise IdentityError(
            f"The clock of {name!r} says {_clock(theirs)}, the coordinator's says {_clock(ours)}: they may differ by "
            f"{FRESH_SECONDS} seconds. Set the clock that is wrong (for example with NTP)."
        )
    return statement


def _clock(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"


def check_hash(text: str) -> str:
    """A SHA-256 in 64 hexadecimal digits."""
    if not isinstance(text, str) or not _HASH.fullmatch(text):
        raise IdentityError(f"{visible(str(text), 80)!r} is not a SHA-256 in 64 hexadecimal digits.")
    return text


def check_origin(text: str) -> str:
    """The name of a federation's ledger."""
    if not _ORIGIN.fullmatch(text):
        raise IdentityError(f"{visible(text, 80)!r} is not the name of a ledger.")
    return text


def check_version(text: str) -> str:
    """A version of causaldao: it is shown to people, so it is nothing else."""
    if not _VERSION.fullmatch(text):
        raise IdentityError(f"{visible(text, 80)!r} is not a version.")
    return text


def error_to_text(error: CausalDAOError) -> str:
    """An error as it crosses to the other end: code, exit status and message."""
    value = {"code": error.code, "exit_code": error.exit_code, "message": visible(error.message, _MAX_TEXT)}
    return canonical(value).decode()


def error_from_text(text: str) -> CausalDAOError | None:
    """The error that `error_to_text` wrote, None if it is something else."""
    try:
        value = decode(text.encode(), 4 * _MAX_TEXT)
        fields(value, {"code": str, "exit_code": int, "message": str})
    except (IdentityError, UnicodeEncodeError):
        return None
    return by_code(value["code"])(visible(value["message"], _MAX_TEXT))


def visible(text: str, limit: int = 300) -> str:
    """A text from outside as a log or terminal may show it: control characters written out, cut at ``limit``."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text[:limit])
    return shown if len(text) <= limit else shown + "…"
