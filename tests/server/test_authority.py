"""The authority gives nobody more than a name that was checked, for a key that was shown, for one use."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from causaldao.errors import IdentityError, MisuseError
from causaldao.server.authority import Authority

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path, "north", NOW)


def request(name: str = "alpha", key: Any = None, *extensions: x509.ExtensionType) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    key = key or ec.generate_private_key(ec.SECP384R1())
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA384()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def issued(authority: Authority, csr: str, **options: Any) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.issue_member("alpha", csr, NOW, **options).encode())


def usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_the_authority_signs_another_authority(authority: Authority) -> None:
    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert authority.certificate.subject.rfc4514_string() == "CN=causaldao north"
    assert authority.certificate.not_valid_after_utc - NOW > timedelta(days=3650)


def test_an_authority_is_overwritten(authority: Authority, tmp_path: Path) -> None:
    before = (tmp_path / "authority.key").read_bytes()
    with pytest.raises(IdentityError, match="never overwritten"):
        Authority.create(tmp_path, "north", NOW)
    assert (tmp_path / "authority.key").read_bytes() == before


def test_a_crash_between_key_and_certificate_needs_another_key(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "authority.crt").unlink()
    again = Authority.create(tmp_path, "north", NOW)
    assert again.certificate.public_key() == authority.certificate.public_key()


def test_others_read_the_key(authority: Authority, tmp_path: Path) -> None:
    assert (tmp_path / "authority.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "authority.key").chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        Authority.open(tmp_path)


def test_a_certificate_of_another_key_is_opened(authority: Authority, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Authority.create(other, "north", NOW)
    assert Authority.open(tmp_path).fingerprint == authority.fingerprint
    (other / "authority.crt").rename(tmp_path / "authority.crt")
    with pytest.raises(IdentityError, match="not the certificate of the key"):
        Authority.open(tmp_path)


@pytest.mark.parametrize("file", ["authority.key", "authority.crt"])
def test_a_missing_or_broken_file_is_a_traceback(authority: Authority, tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(b"-----BEGIN NOTHING-----")
    with pytest.raises(IdentityError, match=file):
        Authority.open(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(IdentityError, match=file):
        Authority.open(tmp_path)


def test_a_member_is_given_what_it_asks_for(authority: Authority) -> None:
    """Names, a CA bit and usages of the request are ignored."""
    key = ec.generate_private_key(ec.SECP256R1())
    asked = (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName([x509.DNSName("hub.example.org")]),
    )
    certificate = issued(authority, request("alpha", key, *asked))
    assert usages(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert certificate.subject.rfc4514_string() == "CN=alpha"
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(authority.certificate)


def test_a_certificate_lasts_longer_than_asked(authority: Authority) -> None:
    certificate = issued(authority, request(), hours=2)
    assert certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == NOW + timedelta(hours=2)
    late = authority.certificate.not_valid_after_utc - timedelta(hours=1)
    last = x509.load_pem_x509_certificate(authority.issue_member("alpha", request(), late).encode())
    assert last.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_two_certificates_have_one_serial(authority: Authority) -> None:
    csr = request()
    assert issued(authority, csr).serial_number != issued(authority, csr).serial_number


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), id="rsa"),
        pytest.param(ed25519.Ed25519PrivateKey.generate, id="ed25519"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP521R1()), id="p521"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP256K1()), id="secp256k1"),
    ],
)
def test_a_key_of_another_sort_is_certified(authority: Authority, key: Any) -> None:
    with pytest.raises(IdentityError, match="P-256 or P-384"):
        authority.issue_member("alpha", request("alpha", key()), NOW)


def test_a_member_is_certified_under_another_name(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="'beta'"):
        authority.issue_member("alpha", request("beta"), NOW)
    with pytest.raises(IdentityError, match="not allowed"):
        authority.issue_member("Alpha/..", request("Alpha/.."), NOW)


def test_a_request_with_two_names_has_one_of_them_checked(authority: Authority) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in ("alpha", "beta")])
    csr = x509.CertificateSigningRequestBuilder(subject).sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    with pytest.raises(IdentityError, match="'beta'"):
        authority.issue_member("alpha", csr.public_bytes(serialization.Encoding.PEM).decode(), NOW)


def test_a_key_that_the_requester_does_not_hold_is_certified(authority: Authority) -> None:
    mine, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    points = [
        key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        for key in (mine, theirs)
    ]
    der = x509.load_pem_x509_csr(request("alpha", mine).encode()).public_bytes(serialization.Encoding.DER)
    stolen = x509.load_der_x509_csr(der.replace(*points)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(IdentityError, match="not signed by the key"):
        authority.issue_member("alpha", stolen, NOW)


@pytest.mark.parametrize("csr", ["", "no request", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", "x" * 20_000])
def test_something_else_is_read_as_a_request(authority: Authority, csr: str) -> None:
    with pytest.raises(IdentityError, match="signing request"):
        authority.issue_member("alpha", csr, NOW)


def test_a_server_serves_as_a_client(authority: Authority) -> None:
    key_pem, chain = authority.issue_server(["Hub.example.org", "192.0.2.7", "2001:db8::1"], NOW, hours=48)
    leaf, root = x509.load_pem_x509_certificates(chain)
    hosts = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert usages(leaf) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert hosts.get_values_for_type(x509.DNSName) == ["hub.example.org"]
    assert hosts.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("192.0.2.7"),
        ipaddress.ip_address("2001:db8::1"),
    ]
    assert " " in str(leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    assert root == authority.certificate
    key = serialization.load_pem_private_key(key_pem, None)
    assert key.public_key() == leaf.public_key()
    again = x509.load_pem_x509_certificates(authority.issue_server(["hub"], NOW, key_pem=key_pem)[1])[0]
    assert again.public_key() == leaf.public_key()


@pytest.mark.parametrize("names", [[], ["*.example.org"], ["hub:9443"], ["https://hub"], ["a b"], ["-a"], ["x" * 64]])
def test_a_server_has_a_name_that_no_host_has(authority: Authority, names: list[str]) -> None:
    with pytest.raises(MisuseError):
        authority.issue_server(names, NOW)


def test_an_expired_authority_issues(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="clock"):
        authority.issue_member("alpha", request(), NOW + timedelta(days=3660))
    with pytest.raises(IdentityError, match="clock"):
        authority.issue_member("alpha", request(), NOW - timedelta(days=1))


def test_a_federation_with_the_longest_name_has_no_authority(tmp_path: Path) -> None:
    assert Authority.create(tmp_path, "a" * 64, NOW).fingerprint
