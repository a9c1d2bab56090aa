"""The federation's certificate authority: who may open a connection, for how long.

One P-256 key signs two sorts of leaf and nothing else. A *member's* certificate is for clients only, carries the
member's name as its one common name, and lasts a day: a revoked member's runs out by itself, besides being refused at
the door. A *server's* is for servers only, under a common name that no member can have. A member asks with a signing
request; its public key is taken, and everything else that it asks for is ignored. The authority may sign no further
authority.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from causaldao.errors import IdentityError, MisuseError
from causaldao.signing import check_name, sha256

KEY_FILE = "authority.key"
CERTIFICATE_FILE = "authority.crt"
YEARS = 10
MEMBER_HOURS = 24
SERVER_HOURS = 24 * 30
SKEW = timedelta(minutes=5)  # a clock that is a little behind still takes a certificate made now
SERVER_NAME = "causaldao server"  # with a space: no member can have it
_CURVES = ("secp256r1", "secp384r1")
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_MAX_REQUEST = 16 << 10


class Authority:
    """A key and the certificate that members pin."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, folder: Path, federation: str, now: datetime) -> Authority:
        """Make ``authority.key`` (mode 0600) and ``authority.crt``; a key that a crash left alone is used.

        Raises
        ------
        IdentityError
            there is an authority already: it is never overwritten.
        """
        check_name(federation)
        if (folder / CERTIFICATE_FILE).exists():
            raise IdentityError(
                f"The folder {folder} has an authority already: members pin it, so it is never overwritten."
            )
        if not (folder / KEY_FILE).exists():
            _write_key(folder / KEY_FILE, ec.generate_private_key(ec.SECP256R1()))
        key = _load_key(folder / KEY_FILE)
        authority = cls(key, _root(key, federation, now))
        _write(folder / CERTIFICATE_FILE, authority.certificate_pem)
        return authority

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Read both files; IdentityError if one is missing, readable by others, or not the other's."""
        key = _load_key(folder / KEY_FILE)
        path = folder / CERTIFICATE_FILE
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError) as error:
            raise IdentityError(f"The authority's certificate {path} cannot be read: {error}.") from error
        if certificate.public_key() != key.public_key():
            raise IdentityError(f"{path} is not the certificate of the key beside it: restore both from one backup.")
        return cls(key, certificate)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the certificate's DER form."""
        return sha256(self.certificate_der)

    def issue_member(self, name: str, csr_pem: str, now: datetime, hours: int = MEMBER_HOURS) -> str:
        """A client certificate (PEM) for the key of a signing request whose common name is ``name``.

        Raises
        ------
        IdentityError
            the request is not signed by its own key, is for another name, or its key is not on P-256 or P-384.
        """
        key = request_key(csr_pem, check_name(name))
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        return self._issue(name, key, usage, [], now, hours).public_bytes(serialization.Encoding.PEM).decode()

    def issue_server(
        self, names: Sequence[str], now: datetime, hours: int = SERVER_HOURS, key_pem: bytes | None = None
    ) -> tuple[bytes, bytes]:
        """Key (PKCS#8 PEM) and chain (PEM: server, then authority) for the host names and addresses given.

        ``key_pem`` is used if given, else a P-256 key is made. MisuseError for a name that no host can have.
        """
        if not names:
            raise MisuseError("A server's certificate needs at least one host name or IP address.")
        key = _private(key_pem, "the server's key") if key_pem else ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        leaf = self._issue(SERVER_NAME, key.public_key(), usage, [_host(name) for name in names], now, hours)
        return _pem(key), leaf.public_bytes(serialization.Encoding.PEM) + self.certificate_pem

    def _issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        usage: x509.ObjectIdentifier,
        hosts: Sequence[x509.GeneralName],
        now: datetime,
        hours: int,
    ) -> x509.Certificate:
        root = self.certificate
        if not root.not_valid_before_utc <= now <= root.not_valid_after_utc:
            raise IdentityError(
                f"It is {now.isoformat()} here, but the authority's certificate is valid from "
                f"{root.not_valid_before_utc.isoformat()} to {root.not_valid_after_utc.isoformat()}: check the clock."
            )
        builder = (
            x509.CertificateBuilder(root.subject, _name(name), key, x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(min(now + timedelta(hours=hours), root.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def request_key(csr_pem: str, name: str) -> ec.EllipticCurvePublicKey:
    """The public key of a signing request that its own key signed, for ``name`` alone. IdentityError otherwise."""
    if len(csr_pem) > _MAX_REQUEST:
        raise IdentityError(f"The signing request has {len(csr_pem)} characters, the bound is {_MAX_REQUEST}.")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key, signed = request.public_key(), request.is_signature_valid
        names = [str(attribute.value) for attribute in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError("The signing request is not PKCS#10 in PEM, or its key is of an unknown sort.") from error
    if not signed:
        raise IdentityError(f"The signing request of {name!r} is not signed by the key that it names.")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise IdentityError(
            f"The signing request of {name!r} has a key that is not on P-256 or P-384: make tls.pem anew."
        )
    if names != [name]:
        raise IdentityError(f"The signing request is for {names!r}, but {name!r} sent it.")
    return key


def _root(key: ec.EllipticCurvePrivateKey, federation: str, now: datetime) -> x509.Certificate:
    name, public = _name(f"causaldao {federation}"), key.public_key()
    return (
        x509.CertificateBuilder(name, name, public, x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=365 * YEARS + YEARS // 4))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _name(common_name: str) -> x509.Name:
    # X.509 bounds a common name at 64 characters; a federation's may have 64 itself, and its prefix comes on top.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _HOST.fullmatch(name.lower()):
            raise MisuseError(
                f"{name!r} is neither a host name nor an IP address: use one that nodes connect to."
            ) from None
        return x509.DNSName(name.lower())


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        mode, data = path.stat().st_mode & 0o777, path.read_bytes()
    except OSError as error:
        raise IdentityError(f"The key file {path} cannot be read: {error.strerror}.") from error
    if mode & 0o077:
        raise IdentityError(f"The key file {path} has mode {mode:04o}: others can read it. Run: chmod 600 {path}")
    return _private(data, str(path))


def _private(pem: bytes, source: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{source} is not a private key in unencrypted PEM: {error}.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{source} holds a {type(key).__name__}, not an elliptic-curve key.")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise IdentityError(f"The key file {path} cannot be written: {error.strerror}.") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(_pem(key))


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".new")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise IdentityError(f"The file {path} cannot be written: {error.strerror}.") from error
