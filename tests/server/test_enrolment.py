"""The enrolment desk: whoever is not who they say, too late, too big or too slow gets a reason and no more."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from causaldao import enrolment as wire
from causaldao.dictionary import Offered, SiteDictionary, make
from causaldao.enrolment import MAX_REQUEST_BYTES, SERVICE, prove
from causaldao.errors import CausalDAOError, ConfigurationError, IdentityError, LedgerError, RefusedError
from causaldao.ledger.log import Log
from causaldao.members import Member, Roster, witness_text
from causaldao.server import enrolment as desk
from causaldao.server.authority import Authority
from causaldao.server.enrolment import Enrolment, Facts
from causaldao.server.motions import Motions
from causaldao.server.registry import Registry
from causaldao.signing import SigningKey, canonical, sha256

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
COORDINATOR = SigningKey.from_seed(b"c" * 32).public.to_text("coordinator")
FACTS = Facts("north", COORDINATOR, "hub.example.org:9092", "ab" * 32, "north.example/log")


@dataclass(frozen=True)
class Site:
    """An institution's keys, and what it would send."""

    name: str
    signing: SigningKey
    witness: SigningKey
    tls: ec.EllipticCurvePrivateKey

    @staticmethod
    def make(name: str) -> Site:
        return Site(name, SigningKey.generate(), SigningKey.generate(), ec.generate_private_key(ec.SECP384R1()))

    def csr(self, name: str | None = None) -> str:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name or self.name)])
        request = x509.CertificateSigningRequestBuilder(subject).sign(self.tls, hashes.SHA384())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def proof(self, kind: str, body: dict[str, Any], now: datetime = NOW, **changes: Any) -> str:
        options = {"federation": "north", "name": self.name, "nonce": SigningKey.generate().public.raw.hex()[:32]}
        return prove(kind, body, changes.pop("key", self.signing), **{**options, **changes}, now=now)

    def join(self, secret: str, now: datetime = NOW, **changes: Any) -> bytes:
        csr, witness = self.csr(), witness_text(self.name, self.witness.public)
        body = {"csr": sha256(csr.encode()), "secret": sha256(secret.encode()), "witness": witness}
        value = {
            "name": self.name, "secret": secret, "csr": csr, "signing": self.signing.public.to_text(self.name),
            "witness": witness, "version": "0.1.0", "dictionary": None, "proof": self.proof("join", body, now),
        }  # fmt: skip
        return canonical({**value, **changes})

    def renew(self, now: datetime = NOW, **changes: Any) -> bytes:
        return self.ask("renew", {"csr": self.csr(), "version": "0.1.0"}, now, **changes)

    def ask(self, kind: str, body: dict[str, Any], now: datetime = NOW, **changes: Any) -> bytes:
        return canonical({"proof": self.proof(kind, body, now, **changes)})

    def dictionary(self, federation: str = "north", name: str | None = None) -> str:
        site = SiteDictionary(federation, name or self.name, (Offered("age", "continuous", "years"),))
        return make(site, self.signing, "n").decode()


class Desk:
    """A service, and the operator beside it."""

    def __init__(self, folder: Path) -> None:
        url = f"sqlite:///{folder / 'coordinator.db'}"
        self.registry = Registry(url, create=True)
        self.authority = Authority.create(folder, "north", NOW)
        self.now = NOW
        self.motions = Motions(self.registry, lambda: Log.open(url, SigningKey.generate()), lambda log: None)
        self.struck: set[str] = set()
        self.service = Enrolment(self.registry, self.authority, FACTS, self.roster, self.motions, lambda: self.now)

    def roster(self) -> Roster:
        admitted = [m for m in self.registry.members() if m.state == "admitted" and m.name not in self.struck]
        return Roster("north", tuple(Member(m.name, m.key, m.witness_key) for m in admitted))

    def joined(self, name: str = "alpha") -> Site:
        site = Site.make(name)
        self.service.join(site.join(self.registry.invite(name, NOW)), NOW)
        return site

    def admitted(self, name: str = "alpha") -> Site:
        site = self.joined(name)
        self.registry.admit(name, NOW)
        return site


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.registry.close()


def refused(answer: Any, request: bytes, now: datetime = NOW) -> str:
    with pytest.raises(IdentityError) as caught:
        answer(request, now)
    return caught.value.message


# joining


def test_a_member_learns_too_little(here: Desk) -> None:
    site = Site.make("alpha")
    secret = here.registry.invite("alpha", NOW)
    answer = json.loads(here.service.join(site.join(secret, dictionary=site.dictionary()), NOW))
    assert answer == {
        "federation": "north", "coordinator": COORDINATOR, "fleet": "hub.example.org:9092", "bundle": "ab" * 32,
        "origin": "north.example/log", "state": "pending",
    }  # fmt: skip
    member = here.registry.member("alpha")
    assert member is not None
    assert member.key == site.signing.public
    assert member.dictionary == site.dictionary()
    public = site.tls.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert member.tls == public.decode()


def test_a_lost_answer_costs_the_token(here: Desk) -> None:
    site, secret = Site.make("alpha"), here.registry.invite("alpha", NOW)
    first = here.service.join(site.join(secret), NOW)
    assert here.service.join(site.join(secret, LATER), LATER) == first
    thief = Site.make("alpha")
    assert "used already" in refused(here.service.join, thief.join(secret))


def test_a_stolen_request_joins_other_keys(here: Desk) -> None:
    """The proof binds all three keys and the secret: none can be changed on the way."""
    site, thief, secret = Site.make("alpha"), Site.make("alpha"), here.registry.invite("alpha", NOW)
    swaps: list[dict[str, str]] = [
        {"csr": thief.csr()},
        {"witness": witness_text("alpha", thief.witness.public)},
        {"secret": "x" * 43},
        {"signing": thief.signing.public.to_text("alpha")},
        {"proof": thief.proof("join", {})},
    ]
    for swap in swaps:
        whole = json.loads(site.join(secret))
        refused(here.service.join, canonical({**whole, **swap}))
    assert here.registry.members() == ()
    assert json.loads(here.service.join(site.join(secret), NOW))["state"] == "pending"


def test_a_proof_of_something_else_joins(here: Desk) -> None:
    site, secret = Site.make("alpha"), here.registry.invite("alpha", NOW)
    csr, witness = site.csr(), witness_text("alpha", site.witness.public)
    body = {"csr": sha256(csr.encode()), "secret": sha256(secret.encode()), "witness": witness}
    for kind, changes in (("renew", {}), ("join", {"federation": "south"}), ("join", {"name": "beta"})):
        message = refused(here.service.join, site.join(secret, csr=csr, proof=site.proof(kind, body, **changes)))
        assert "was asked for" in message


def test_a_wrong_clock_burns_the_token(here: Desk) -> None:
    site, secret = Site.make("alpha"), here.registry.invite("alpha", NOW)
    message = refused(here.service.join, site.join(secret, NOW - timedelta(hours=2)))
    assert "2027-03-01 10:00:00 UTC" in message
    assert "2027-03-01 12:00:00 UTC" in message
    assert here.service.join(site.join(secret), NOW)


@pytest.mark.parametrize(
    ("now", "secret", "word"),
    [(LATER, "x" * 43, "unknown"), (NOW + timedelta(minutes=16), None, "expired at 2027-03-01T12:15")],
)
def test_a_token_that_is_none(here: Desk, now: datetime, secret: str | None, word: str) -> None:
    given = here.registry.invite("alpha", NOW)
    assert word in refused(here.service.join, Site.make("alpha").join(secret or given, now), now)


def test_a_token_serves_another_name(here: Desk) -> None:
    secret = here.registry.invite("alpha", NOW)
    assert "for 'alpha', not for 'beta'" in refused(here.service.join, Site.make("beta").join(secret))


def test_a_key_stands_under_another_name(here: Desk) -> None:
    site, secret = Site.make("alpha"), here.registry.invite("alpha", NOW)
    assert "'beta'" in refused(here.service.join, site.join(secret, signing=site.signing.public.to_text("beta")))
    assert "'beta'" in refused(here.service.join, site.join(secret, witness=witness_text("beta", site.witness.public)))
    assert "0x04" in refused(here.service.join, site.join(secret, witness=site.witness.public.to_text("alpha")))


@pytest.mark.parametrize(
    "request_",
    [b"", b"[]", b"\xff", b"{}", b'{"name":"alpha"}', b'{"a": 1}', b'{"a":1,"a":1}', b"[" * 100_000, b'{"a":NaN}',
     b'{"a":"\\ud800"}', b'{"proof":5}', b'{"proof":"x"}', b"x" * (MAX_REQUEST_BYTES + 1)],
    ids=range(13),
)  # fmt: skip
def test_a_request_that_is_none(here: Desk, request_: bytes) -> None:
    service = here.service
    for answer in (service.join, service.renew, service.announce, service.studies, service.motions, service.vote):
        refused(answer, request_)


@pytest.mark.parametrize("version", ["", "1 2", "1\n2", "\x1b[31m", "x" * 65])
def test_a_version_draws_on_the_terminal(here: Desk, version: str) -> None:
    site, secret = Site.make("alpha"), here.registry.invite("alpha", NOW)
    assert "\x1b" not in refused(here.service.join, site.join(secret, version=version))


def test_a_dictionary_of_another_is_kept(here: Desk) -> None:
    site, other, secret = Site.make("alpha"), Site.make("beta"), here.registry.invite("alpha", NOW)
    for wrong in (other.dictionary(), site.dictionary("south"), site.dictionary("north", "beta"), "text"):
        refused(here.service.join, site.join(secret, dictionary=wrong))
    here.service.join(site.join(secret), NOW)
    for wrong in (other.dictionary(), site.dictionary("south"), "text"):
        refused(here.service.announce, site.ask("announce", {"dictionary": wrong}))
    here.service.announce(site.ask("announce", {"dictionary": site.dictionary()}), NOW)
    member = here.registry.member("alpha")
    assert member is not None
    assert member.dictionary == site.dictionary()


# renewing


def test_a_renewal_brings_no_certificate(here: Desk) -> None:
    site = here.admitted()
    answer = json.loads(here.service.renew(site.renew(), NOW))
    certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
    certificate.verify_directly_issued_by(here.authority.certificate)
    assert certificate.public_key() == site.tls.public_key()
    assert datetime.fromisoformat(answer["expires"]) == NOW + timedelta(hours=24) == certificate.not_valid_after_utc
    assert (answer["fleet"], answer["bundle"], answer["coordinator"]) == (FACTS.fleet, FACTS.bundle, COORDINATOR)
    member = here.registry.member("alpha")
    assert member is not None
    assert member.last_seen == NOW


def test_a_pending_member_gets_in(here: Desk) -> None:
    site = here.joined()
    with pytest.raises(RefusedError, match="not admitted yet: ask the operator"):
        here.service.renew(site.renew(), NOW)
    with pytest.raises(RefusedError, match="not admitted yet"):
        here.service.studies(site.ask("studies", {"known": []}), NOW)


def test_a_revoked_member_gets_in(here: Desk) -> None:
    site = here.admitted()
    here.registry.revoke("alpha", NOW)
    assert "revoked" in refused(here.service.renew, site.renew())
    assert "revoked" in refused(here.service.studies, site.ask("studies", {"known": []}))
    assert "revoked" in refused(here.service.announce, site.ask("announce", {"dictionary": site.dictionary()}))


def test_a_member_that_only_the_ledger_revoked_gets_in(here: Desk) -> None:
    """A crash between the two writes of a revocation must not leave the door open."""
    site = here.admitted()
    here.struck.add("alpha")
    assert "ledger" in refused(here.service.renew, site.renew())


def test_a_stranger_gets_in(here: Desk) -> None:
    here.admitted()
    assert "has not joined" in refused(here.service.renew, Site.make("beta").renew())
    assert "not one of key" in refused(here.service.renew, Site.make("alpha").renew())


def test_a_proof_is_used_twice(here: Desk) -> None:
    site = here.admitted()
    request = site.renew()
    here.service.renew(request, NOW)
    assert "used before" in refused(here.service.renew, request, NOW)
    assert "used before" in refused(here.service.renew, request, NOW + timedelta(seconds=300))
    assert "clock" in refused(here.service.renew, request, NOW + timedelta(seconds=301))
    future = site.renew(NOW + timedelta(seconds=300))
    here.service.renew(future, NOW)
    assert "used before" in refused(here.service.renew, future, NOW + timedelta(seconds=600))


def test_a_proof_serves_another_request(here: Desk) -> None:
    site = here.admitted()
    assert "'announce'" in refused(here.service.renew, site.ask("announce", {"dictionary": site.dictionary()}))
    assert "'south'" in refused(here.service.renew, site.renew(federation="south"))
    assert "fields" in refused(here.service.renew, site.ask("renew", {"csr": site.csr()}))
    assert "nonce" in refused(here.service.renew, site.renew(nonce="n"))


@pytest.mark.parametrize("seconds", [-301, 301, -(10**9), 10**11])
def test_a_stale_clock_is_not_told(here: Desk, seconds: int) -> None:
    site = here.admitted()
    body = {"csr": site.csr(), "version": "0.1.0"}
    wrong = int(NOW.timestamp()) + seconds
    late = type("Late", (), {"timestamp": lambda self: wrong})()
    message = refused(here.service.renew, site.ask("renew", body, late))
    assert "the coordinator's says 2027-03-01 12:00:00 UTC" in message
    assert "300 seconds" in message
    assert here.service.renew(site.renew(NOW - timedelta(seconds=300)), NOW)


def test_a_new_tls_key_is_certified_for_the_old_node(here: Desk) -> None:
    site = here.admitted()
    here.registry.set_node("alpha", 7)
    here.service.renew(site.renew(), NOW)
    assert getattr(here.registry.member("alpha"), "node_id", None) == 7
    rotated = replace(site, tls=ec.generate_private_key(ec.SECP384R1()))
    certificate = json.loads(here.service.renew(rotated.renew(LATER), LATER))["certificate"]
    assert x509.load_pem_x509_certificate(certificate.encode()).public_key() == rotated.tls.public_key()
    assert getattr(here.registry.member("alpha"), "node_id", 7) is None


def test_a_certificate_for_another_name(here: Desk) -> None:
    site = here.admitted()
    body = {"csr": site.csr("beta"), "version": "0.1.0"}
    assert "'beta'" in refused(here.service.renew, site.ask("renew", body))


def test_one_member_fills_the_memory_of_nonces(here: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "_NONCES", 3)
    loud, quiet = here.joined("loud"), here.joined("quiet")
    ask = {"dictionary": loud.dictionary()}
    for _ in range(3):
        here.service.announce(loud.ask("announce", ask), NOW)
    with pytest.raises(RefusedError, match="wait"):
        here.service.announce(loud.ask("announce", ask), NOW)
    here.service.announce(quiet.ask("announce", {"dictionary": quiet.dictionary()}), NOW)
    later = NOW + timedelta(seconds=301)
    here.service.announce(loud.ask("announce", ask, later), later)


# studies


def propose(here: Desk, name: str, minutes: int, size: int = 1) -> str:
    document = {"name": name, "text": "x" * size}
    study = sha256(canonical(document))
    here.registry.propose(study, name, document, NOW + timedelta(minutes=minutes))
    return study


def listed(here: Desk, site: Site, known: list[str]) -> list[dict[str, Any]]:
    answer = here.service.studies(site.ask("studies", {"known": known}), NOW)
    assert len(answer) <= wire.MAX_RESPONSE_BYTES
    return list(json.loads(answer)["studies"])


def test_a_closed_study_is_offered(here: Desk) -> None:
    site, first, second, third = here.admitted(), *(propose(here, name, k) for k, name in enumerate("abc"))
    here.registry.set_state(first, "closed", NOW)
    here.registry.set_state(second, "running", NOW)
    assert [(study["hash"], study["state"]) for study in listed(here, site, [])] == [
        (second, "running"),
        (third, "proposed"),
    ]
    documents = {study["name"]: study["document"] for study in listed(here, site, [second])}
    assert documents == {"b": None, "c": {"name": "c", "text": "x"}}
    for wrong in ({"known": ["x"]}, {"known": [5]}, {"known": "x"}, {"known": ["0" * 64] * 2001}, {}):
        refused(here.service.studies, site.ask("studies", wrong))


def test_more_studies_than_fit_one_answer_are_lost(here: Desk) -> None:
    site = here.admitted()
    proposed = {propose(here, f"s{k}", k, 1_500_000) for k in range(4)}
    known: set[str] = set()
    for _ in range(3):
        answer = listed(here, site, sorted(known))
        assert {study["hash"] for study in answer} == proposed
        known |= {study["hash"] for study in answer if study["document"] is not None}
    assert known == proposed


# the wire


def call(port: int, root: bytes, data: bytes, method: str = "Join", seconds: float = 8) -> Any:
    with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(root)) as channel:
        ask: Any = channel.unary_unary(f"/{SERVICE}/{method}")
        return ask(data, timeout=seconds)


async def refusal(port: int, root: bytes, data: bytes, method: str = "Join") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.to_thread(call, port, root, data, method)
    error: Any = caught.value
    return error.code(), error.details()


def served(here: Desk, scenario: Any) -> None:
    """Run ``scenario(port)`` against a server on loopback."""

    async def run() -> None:
        issued = here.authority.issue_server(["127.0.0.1"], NOW_REAL)
        server, port = await desk.start(here.service, "127.0.0.1:0", lambda: issued)
        try:
            await scenario(port)
        finally:
            await server.stop(0)

    asyncio.run(run())


NOW_REAL = datetime.now(UTC)  # TLS itself has no clock to move


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    folder = tmp_path / "authority"
    folder.mkdir()
    desk.authority = Authority.create(folder, "north", NOW_REAL)
    desk.service = Enrolment(desk.registry, desk.authority, FACTS, desk.roster, desk.motions, lambda: desk.now)
    yield desk
    desk.registry.close()


def test_half_open_connections_block_a_join(live: Desk) -> None:
    site, secret = Site.make("alpha"), live.registry.invite("alpha", NOW)

    async def scenario(port: int) -> None:
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        started = time.monotonic()
        answer = await asyncio.to_thread(call, port, live.authority.certificate_pem, site.join(secret), "Join", 5)
        assert json.loads(answer)["state"] == "pending"
        assert time.monotonic() - started < 5
        for half in sockets:
            half.close()

    served(live, scenario)


def test_a_half_open_connection_stays(live: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = tuple((k, 300 if k == "grpc.server_handshake_timeout_ms" else v) for k, v in desk.OPTIONS)
    assert ("grpc.server_handshake_timeout_ms", 5_000) in desk.OPTIONS
    monkeypatch.setattr(desk, "OPTIONS", quick)

    async def scenario(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as half:
            half.settimeout(4)
            assert await asyncio.to_thread(half.recv, 1) == b""

    served(live, scenario)


def test_calls_that_send_nothing_hold_every_place(live: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "ARRIVAL_SECONDS", 0.3)
    monkeypatch.setattr(desk, "CONCURRENT", 4)
    site, secret = Site.make("alpha"), live.registry.invite("alpha", NOW)

    async def scenario(port: int) -> None:
        trust = grpc.ssl_channel_credentials(live.authority.certificate_pem)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", trust) as channel:
            started = time.monotonic()
            idle: list[Any] = [channel.stream_unary(f"/{SERVICE}/Join")(timeout=20) for _ in range(4)]
            codes = [await silent.code() for silent in idle]
        assert time.monotonic() - started < 10
        assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED] * 4
        answer = await asyncio.to_thread(call, port, live.authority.certificate_pem, site.join(secret))
        assert json.loads(answer)["state"] == "pending"

    served(live, scenario)


def test_a_large_request_is_read(live: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[int] = []
    monkeypatch.setattr(live.service, "join", lambda request, now: reached.append(len(request)) or b"{}")

    async def scenario(port: int) -> None:
        code, _ = await refusal(port, live.authority.certificate_pem, b"x" * (MAX_REQUEST_BYTES + 1))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED

    served(live, scenario)
    assert reached == []


def test_a_refusal_has_no_reason(live: Desk, caplog: pytest.LogCaptureFixture) -> None:
    site = live.joined()

    async def scenario(port: int) -> None:
        root = live.authority.certificate_pem
        code, details = await refusal(port, root, site.renew(), "Renew")
        assert code == grpc.StatusCode.PERMISSION_DENIED
        told = wire.error_from_text(details)
        assert isinstance(told, RefusedError)
        assert told.message == "'alpha' is not admitted yet: ask the operator."
        code, details = await refusal(port, root, site.join("x" * 43, name="al\n\x1b[2Jpha"), "Join")
        assert code == grpc.StatusCode.UNAUTHENTICATED
        assert json.loads(details)["exit_code"] == IdentityError.exit_code

    with caplog.at_level(logging.WARNING, "causaldao.server.enrolment"):
        served(live, scenario)
    first, second = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert first.startswith("Renew refused to alpha at ipv4:127.0.0.1:")
    assert first.endswith("'alpha' is not admitted yet: ask the operator.")
    assert "Join refused to al\\n\\x1b[2Jpha at" in second
    assert not {"\n", "\x1b"} & set(second)


@pytest.mark.parametrize(
    ("fault", "code"),
    [(LedgerError("secret table registry_members"), grpc.StatusCode.UNAVAILABLE),
     (ZeroDivisionError("secret detail"), grpc.StatusCode.INTERNAL)],
)  # fmt: skip
def test_an_internal_fault_is_told_to_strangers(
    live: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception, code: Any
) -> None:
    def fail(request: bytes, now: datetime) -> bytes:
        raise fault

    monkeypatch.setattr(live.service, "join", fail)

    async def scenario(port: int) -> None:
        status, details = await refusal(port, live.authority.certificate_pem, b"{}")
        assert status == code
        assert "secret" not in details
        assert isinstance(wire.error_from_text(details), CausalDAOError)

    served(live, scenario)
    assert "secret" in caplog.text


def test_a_port_that_is_taken(here: Desk) -> None:
    issued = here.authority.issue_server(["127.0.0.1"], NOW)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=address):
            asyncio.run(desk.start(here.service, address, lambda: issued))
