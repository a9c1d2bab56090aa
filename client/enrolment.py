"""The institution's end of enrolment: make keys, join with a token, keep the certificate, hear of studies and motions.

Private keys are made in the node's folder and never leave it; what goes out is public keys, a signing request and
proofs. Whom the node talks to is settled by the authority that the token pins. Files appear whole or not at all.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import causaldao
from causaldao.enrolment import (
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    SERVICE,
    Token,
    check_address,
    check_hash,
    check_origin,
    decode,
    error_from_text,
    prove,
    visible,
)
from causaldao.errors import ConfigurationError, IdentityError, NetworkError
from causaldao.ledger.witness import Witness
from causaldao.members import witness_text
from causaldao.messages import fields
from causaldao.signing import SigningKey, VerifyKey, canonical, check_name, sha256

SIGNING_FILE, WITNESS_FILE, TLS_FILE = "signing.pem", "witness.pem", "tls.pem"
AUTHORITY_FILE, CERTIFICATE_FILE = "authority.crt", "certificate.pem"
FEDERATION_FILE, DICTIONARY_FILE = "federation.json", "dictionary.dsse"
WITNESS_STATE = "witness.db"
_FEDERATION = dict.fromkeys(
    ("federation", "name", "coordinator", "origin", "fleet", "enrolment", "bundle", "joined"), str
)
_FACTS = {"federation": str, "coordinator": str, "fleet": str, "bundle": str, "origin": str}
_MOTIONS: dict[str, type | tuple[type, ...]] = {
    "epoch": int, "members": int, "faulty": int, "needed": int, "since": int, "motions": list, "trail": str,
}  # fmt: skip
_MOTION = {"id": str, "kind": str, "body": dict, "opened": str, "votes": list}
_STUDY: dict[str, type | tuple[type, ...]] = {"hash": str, "name": str, "state": str, "document": (dict, type(None))}
# What may be another moment's; anything else would be refused again.
_PASSING = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
)
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # each attempt connects anew
)


_DISTRUST = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification")  # what gRPC says of a certificate it will not have


@dataclass(frozen=True)
class Patience:
    """How often and how long to try: the pause doubles after each of ``attempts``."""

    attempts: int = 4
    seconds: float = 10.0
    pause: float = 0.5
    sleep: Callable[[float], None] = time.sleep


PATIENCE = Patience()


@dataclass(frozen=True)
class Keys:
    """The public halves of a node's envelope keys."""

    signing: VerifyKey
    witness: VerifyKey


@dataclass(frozen=True)
class Renewal:
    """What a renewal brought; the certificate itself is in the folder."""

    expires: datetime
    fleet: str
    bundle: str
    coordinator: str


def make_keys(folder: Path) -> Keys:
    """Make the keys that are missing (mode 0600): ``signing.pem``, ``witness.pem`` (Ed25519), ``tls.pem`` (P-384).

    Raises
    ------
    IdentityError
        a key cannot be written, or one that is there cannot be read.
    """
    for name in (SIGNING_FILE, WITNESS_FILE):
        if not (folder / name).exists():
            SigningKey.generate().save(folder / name)
    if not (folder / TLS_FILE).exists():
        pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write(folder / TLS_FILE, pem, 0o600)
    return Keys(SigningKey.load(folder / SIGNING_FILE).public, SigningKey.load(folder / WITNESS_FILE).public)


def join(
    folder: Path, token_text: str, now: datetime, *, name: str | None = None, patience: Patience = PATIENCE
) -> dict[str, Any]:
    """Redeem a token; writes ``authority.crt``, ``witness.db`` and ``federation.json`` and returns what the last holds.

    If the answer is lost, the same call again gets it. ``name`` is the one of ``node.toml``.

    Raises
    ------
    IdentityError
        the token is damaged, for another name, or refused; the node has joined another federation; or whoever answers
        is not whom the token pins.
    NetworkError
        the coordinator cannot be reached.
    """
    token = Token.from_text(token_text)
    if name is not None and name != token.name:
        raise IdentityError(
            f"The token is for {token.name!r}, but this node is called {name!r}: ask for one of its own."
        )
    if (folder / FEDERATION_FILE).exists() and _identity(read_federation(folder)) != (token.federation, token.name):
        raise IdentityError(
            f"The node in {folder} has joined {read_federation(folder)['federation']!r} already: make another node for "
            f"{token.federation!r}."
        )
    joining = _joining(folder, token, now)
    response = _call(token.address, token.authority_pem, "Join", lambda: joining, patience)
    fields(response, {**_FACTS, "state": str})
    _check_facts(response, token.federation)
    federation = {
        "federation": token.federation, "name": token.name, "coordinator": response["coordinator"],
        "origin": response["origin"], "fleet": response["fleet"], "enrolment": token.address,
        "bundle": response["bundle"], "joined": now.isoformat(),
    }  # fmt: skip
    _write(folder / AUTHORITY_FILE, token.authority_pem)
    if not (folder / FEDERATION_FILE).exists() and not (folder / WITNESS_STATE).exists():
        Witness.create(folder / WITNESS_STATE, response["origin"])  # before the node has joined, and never again after
    _write_federation(folder, federation)
    return federation


def renew(folder: Path, now: datetime, *, patience: Patience = PATIENCE) -> Renewal:
    """Get a new certificate for ``tls.pem`` into ``certificate.pem``; also if the old one expired or there is none.

    Raises
    ------
    RefusedError
        the operator has not admitted this node yet.
    IdentityError
        the node is revoked, its clock is wrong, or what came back is not its certificate.
    NetworkError
        the coordinator cannot be reached.
    """
    federation, key = read_federation(folder), _load_tls(folder)
    body = {"csr": _request(key, federation["name"]), "version": causaldao.__version__}
    response = _ask(folder, federation, "Renew", body, now, patience)
    fields(response, {**_FACTS, "certificate": str, "expires": str})
    _check_facts(response, federation["federation"])
    if (response["coordinator"], response["origin"]) != (federation["coordinator"], federation["origin"]):
        raise IdentityError(
            f"The coordinator of {federation['federation']!r} shows another key, or another ledger, than this node "
            "pinned when it joined: nothing was taken from it. Ask the operator what happened."
        )
    certificate = _check_certificate(response["certificate"], folder, federation["name"], key, now)
    _write(folder / CERTIFICATE_FILE, certificate.public_bytes(serialization.Encoding.PEM))
    if response["fleet"] != federation["fleet"]:
        _write_federation(folder, {**federation, "fleet": response["fleet"]})
    return Renewal(certificate.not_valid_after_utc, response["fleet"], response["bundle"], response["coordinator"])


def announce(folder: Path, now: datetime, *, patience: Patience = PATIENCE) -> None:
    """Send the signed dictionary, ``dictionary.dsse``. Errors as of `renew`; a pending node may announce as well."""
    federation, envelope = read_federation(folder), _dictionary(folder)
    if envelope is None:
        raise ConfigurationError(
            f"There is no {DICTIONARY_FILE} in {folder}: it is signed when a node joins or starts."
        )
    response = _ask(folder, federation, "Announce", {"dictionary": envelope}, now, patience)
    fields(response, {"dictionary": str})
    if response["dictionary"] != sha256(envelope.encode()):
        raise IdentityError("The coordinator confirmed another dictionary than the one that was sent.")


def studies(
    folder: Path, now: datetime, known: Collection[str] = (), *, patience: Patience = PATIENCE
) -> list[dict[str, Any]]:
    """The open studies: hash, name, state, and the document, None for those that are ``known`` (by hash).

    A document is returned only if it has its hash. Errors as of `renew`.
    """
    response = _ask(folder, read_federation(folder), "Studies", {"known": sorted(known)}, now, patience)
    fields(response, {"studies": list})
    for study in response["studies"]:
        if not isinstance(study, dict):
            raise IdentityError("The coordinator's list of studies is not one.")
        fields(study, _STUDY)
        check_hash(study["hash"])
        if study["document"] is not None and sha256(canonical(study["document"])) != study["hash"]:
            raise IdentityError(
                f"The study {visible(study['name'])!r} is not the one of its hash {study['hash'][:16]}."
            )
    return list(response["studies"])


def motions(
    folder: Path, now: datetime, known: int | None = None, word: str = "", *, patience: Patience = PATIENCE
) -> dict[str, Any]:
    """What the members are asked to vote on, as the coordinator tells it; see `causaldao.client.votes`.

    ``epoch``, ``members``, ``faulty``, ``needed`` (votes) and ``since`` (the entry of the last change) are the
    federation's now; each of ``motions`` has id, kind, body, opened and the names of those who voted. ``trail`` is the
    ledger's (`causaldao.trail`) for whoever says what is ``known`` of the members already, the index of an entry, with
    the ``word`` on what it saw; "" if it does not fit the answer. Errors as of `renew`.
    """
    response = _ask(folder, read_federation(folder), "Motions", {"known": known, "word": word}, now, patience)
    fields(response, _MOTIONS)
    for motion in response["motions"]:
        if not isinstance(motion, dict):
            raise IdentityError("The coordinator's list of motions is not one.")
        fields(motion, _MOTION)
        check_hash(motion["id"])
        if not all(isinstance(name, str) for name in motion["votes"]):
            raise IdentityError("The votes on a motion are not the names of members.")
    return response


def vote(
    folder: Path, motion: str, envelope: str, word: str, now: datetime, *, patience: Patience = PATIENCE
) -> dict[str, Any]:
    """Send a vote on a motion, with the cosignature of the checkpoint that it names; what has become of the motion: its
    state, and who voted. Errors as of `renew`."""
    body = {"motion": motion, "envelope": envelope, "word": word}
    response = _ask(folder, read_federation(folder), "Vote", body, now, patience)
    fields(response, {"motion": str, "state": str, "votes": list})
    return response


def propose(
    folder: Path, edit: Mapping[str, Any], envelope: str, word: str, now: datetime, *, patience: Patience = PATIENCE
) -> dict[str, Any]:
    """Propose an edit of a graph, with this member's vote for it and the cosignature that it names; the motion's id,
    state and votes. Errors as of `renew`."""
    body = {"edit": dict(edit), "envelope": envelope, "word": word}
    response = _ask(folder, read_federation(folder), "Propose", body, now, patience)
    fields(response, {"motion": str, "state": str, "votes": list})
    return response


def graph(folder: Path, study: str, size: int, now: datetime, *, patience: Patience = PATIENCE) -> str:
    """What the ledger's first ``size`` entries (0: all) say of a study's graph, as a trail that is still to be checked:
    see `causaldao.client.edits`. Errors as of `renew`."""
    response = _ask(folder, read_federation(folder), "Graph", {"study": study, "size": size}, now, patience)
    fields(response, {"trail": str})
    return str(response["trail"])


def rotate(
    folder: Path, signing: SigningKey, witness: VerifyKey, now: datetime, *, patience: Patience = PATIENCE
) -> str:
    """Ask for new keys in the place of this member's; the id of the motion, "" if they hold at once. Errors as of
    `renew`."""
    federation, text = read_federation(folder), witness_text(read_federation(folder)["name"], witness)
    held = prove(
        "rotate", {"witness": text}, signing, federation=federation["federation"], name=federation["name"],
        nonce=secrets.token_hex(16), now=now,
    )  # fmt: skip
    body = {"signing": signing.public.to_text(federation["name"]), "witness": text, "held": held}
    response = _ask(folder, federation, "Rotate", body, now, patience)
    fields(response, {"motion": str})
    return str(response["motion"])


def is_known(folder: Path, signing: SigningKey, now: datetime, *, patience: Patience = PATIENCE) -> bool:
    """Whether the coordinator hears this member by the key ``signing``."""
    try:
        _ask(folder, read_federation(folder), "Motions", {"known": None, "word": ""}, now, patience, signing)
    except IdentityError:
        return False
    return True


def certificate_expiry(folder: Path) -> datetime | None:
    """When the node's certificate expires, None if there is none."""
    path = folder / CERTIFICATE_FILE
    return _load_certificate(path).not_valid_after_utc if path.exists() else None


def due(folder: Path, now: datetime) -> bool:
    """Whether the certificate is missing, or has less than a third of its life left."""
    path = folder / CERTIFICATE_FILE
    if not path.exists():
        return True
    certificate = _load_certificate(path)
    return (
        certificate.not_valid_after_utc - now < (certificate.not_valid_after_utc - certificate.not_valid_before_utc) / 3
    )


def read_federation(folder: Path) -> dict[str, str]:
    """What `join` wrote. IdentityError if the node has not joined, or the file is not what was written."""
    path = folder / FEDERATION_FILE
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise IdentityError(
            f"The node in {folder} belongs to no federation yet: run causaldao node join {folder} TOKEN."
        ) from error
    except (OSError, ValueError) as error:
        raise IdentityError(f"{path} cannot be read ({error}): restore it, or join again with a new token.") from error
    if not isinstance(value, dict):
        raise IdentityError(f"{path} holds no JSON object: restore it, or join again with a new token.")
    fields(value, _FEDERATION)
    return {name: str(text) for name, text in value.items()}


def _identity(federation: Mapping[str, str]) -> tuple[str, str]:
    return federation["federation"], federation["name"]


def _joining(folder: Path, token: Token, now: datetime) -> bytes:
    keys, signing = make_keys(folder), SigningKey.load(folder / SIGNING_FILE)
    csr, witness = _request(_load_tls(folder), token.name), witness_text(token.name, keys.witness)
    body = {"csr": sha256(csr.encode()), "secret": sha256(token.secret.encode()), "witness": witness}
    proof = prove(
        "join", body, signing, federation=token.federation, name=token.name, nonce=secrets.token_hex(16), now=now
    )
    return canonical(
        {
            "name": token.name, "secret": token.secret, "csr": csr, "signing": keys.signing.to_text(token.name),
            "witness": witness, "version": causaldao.__version__, "dictionary": _dictionary(folder), "proof": proof,
        }
    )  # fmt: skip


def _ask(
    folder: Path, federation: Mapping[str, str], method: str, body: Mapping[str, Any], now: datetime,
    patience: Patience, signing: SigningKey | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Ask something as a member that has joined, by its signing key or by another that is to take its place."""
    key, authority = signing or SigningKey.load(folder / SIGNING_FILE), _read(folder / AUTHORITY_FILE)

    def request() -> bytes:
        # An attempt whose answer was lost may have been heard, so each has a proof of its own.
        proof = prove(
            method.lower(), body, key, federation=federation["federation"], name=federation["name"],
            nonce=secrets.token_hex(16), now=now,
        )  # fmt: skip
        return canonical({"proof": proof})

    return _call(federation["enrolment"], authority, method, request, patience)


def _call(
    address: str, authority: bytes, method: str, request: Callable[[], bytes], patience: Patience
) -> dict[str, Any]:
    reason = ""
    for attempt in range(patience.attempts):
        if attempt:
            patience.sleep(patience.pause * 2 ** (attempt - 1))
        data = request()
        if len(data) > MAX_REQUEST_BYTES:
            raise ConfigurationError(
                f"The request to {method.lower()} has {len(data)} bytes, the bound is {MAX_REQUEST_BYTES}: the signed "
                "dictionary is too large. Map fewer variables, or shorten their texts."
            )
        try:
            return decode(_send(address, authority, method, data, patience.seconds), MAX_RESPONSE_BYTES)
        except grpc.RpcError as error:
            reason = _passing(error, address)
    raise NetworkError(
        f"The coordinator did not answer at {address} in {patience.attempts} attempts ({reason}): check that the "
        "address can be reached from here (firewall, proxy, DNS) and that its operator has started it."
    )


def _send(address: str, authority: bytes, method: str, data: bytes, seconds: float) -> bytes:
    with grpc.secure_channel(check_address(address), grpc.ssl_channel_credentials(authority), _OPTIONS) as channel:
        ask: Any = channel.unary_unary(f"/{SERVICE}/{method}")
        response: bytes = ask(data, timeout=seconds)
        return response


def _passing(error: grpc.RpcError, address: str) -> str:
    """Why an attempt failed, if another may not; raises what is settled."""
    status, details = error.code(), error.details() or ""
    told = error_from_text(details)
    if status in _PASSING:
        if any(word in details for word in _DISTRUST):
            raise IdentityError(
                f"Whoever answers at {address} is not the coordinator that this node trusts: its certificate is not "
                "one of the pinned authority for that address. Nothing was sent. Check the address with the operator."
            ) from error
        return visible(details) if told is None else told.message
    if told is not None:
        raise told from error
    raise NetworkError(
        f"What answers at {address} is no enrolment service of causaldao ({status.name}): check the address and port."
    ) from error


def _check_facts(response: Mapping[str, Any], federation: str) -> None:
    if response["federation"] != federation:
        raise IdentityError(f"The coordinator of {visible(response['federation'])!r} answered for {federation!r}.")
    VerifyKey.from_text(response["coordinator"])
    check_address(response["fleet"])
    check_hash(response["bundle"])
    check_origin(response["origin"])


def _check_certificate(
    pem: str, folder: Path, name: str, key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.Certificate:
    """The certificate, if it is this key's, for this name, of the pinned authority, and valid now."""
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        certificate.verify_directly_issued_by(_load_certificate(folder / AUTHORITY_FILE))
        names = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        own = certificate.public_key() == key.public_key() and names == [name]
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise IdentityError("The certificate that came back is not one of the pinned authority.") from error
    if not own:
        raise IdentityError(f"The certificate that came back is not for {name!r} and its key in {TLS_FILE}.")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise IdentityError(
            f"It is {now.isoformat()} here, but the new certificate is valid from "
            f"{certificate.not_valid_before_utc.isoformat()} to {certificate.not_valid_after_utc.isoformat()}: check "
            "this clock, and the coordinator's."
        )
    return certificate


def _request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """A signing request (PEM) for ``name``."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_name(name))])
    request = x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA384())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _load_tls(folder: Path) -> ec.EllipticCurvePrivateKey:
    path = folder / TLS_FILE
    data = _read(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise IdentityError(f"The key file {path} has mode {mode:04o}: others can read it. Run: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"The key file {path} is not a private key in unencrypted PEM: {error}.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"The key file {path} holds a {type(key).__name__}, not an elliptic-curve key.")
    return key


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise IdentityError(f"{path} is not a certificate in PEM: take it away, and renew or join again.") from error


def _dictionary(folder: Path) -> str | None:
    path = folder / DICTIONARY_FILE
    try:
        return path.read_bytes().decode("ascii") if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(
            f"{path} cannot be read: {error.strerror}. Has this node been made, and has it joined?"
        ) from error


def _write_federation(folder: Path, federation: Mapping[str, str]) -> None:
    _write(folder / FEDERATION_FILE, (json.dumps(federation, indent=2) + "\n").encode())


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file whole, or leave the old one."""
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, mode)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from error
