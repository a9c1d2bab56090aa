"""Joining: a token that is not whole, a coordinator that is not the pinned one, a network that is not there."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from causaldao import enrolment as wire
from causaldao.client import enrolment
from causaldao.client.enrolment import Patience
from causaldao.dictionary import Offered, SiteDictionary, make
from causaldao.enrolment import Token
from causaldao.errors import CausalDAOError, ConfigurationError, IdentityError, NetworkError, RefusedError
from causaldao.ledger.log import Log
from causaldao.ledger.note import LOG, Verifier
from causaldao.ledger.witness import Witness
from causaldao.members import Member, Roster
from causaldao.server.authority import Authority
from causaldao.server.enrolment import Enrolment, Facts, start
from causaldao.server.motions import Motions
from causaldao.server.registry import Registry
from causaldao.signing import SigningKey, canonical, peek, sha256

NOW = datetime.now(UTC)  # TLS itself has no clock to move
COORDINATOR = SigningKey.from_seed(b"c" * 32).public.to_text("coordinator")
FACTS = Facts("north", COORDINATOR, "hub.example.org:9092", "ab" * 32, "north.example/log")
QUICK = Patience(attempts=2, seconds=5, pause=0.01)


class Hub:
    """A coordinator's enrolment service on a loopback port, in a thread; its answers can be bent."""

    def __init__(self, folder: Path) -> None:
        url = f"sqlite:///{folder / 'coordinator.db'}"
        self.registry = Registry(url, create=True)
        self.authority = Authority.create(folder, "north", NOW)
        issued = self.authority.issue_server(["127.0.0.1"], NOW)
        self.requests: list[bytes] = []
        self.now = NOW
        motions = Motions(self.registry, lambda: Log.open(url, SigningKey.generate()), lambda log: None)
        self.service = Enrolment(self.registry, self.authority, FACTS, self.roster, motions, lambda: self.now)
        for method in ("join", "renew", "announce", "studies"):
            self._listen(method)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server, self.port = self.run(start(self.service, "127.0.0.1:0", lambda: issued))

    def show(self, issued: tuple[bytes, bytes]) -> None:
        """Open the port anew, with another key and certificate."""
        self.run(self._server.stop(0))
        self._server, _ = self.run(start(self.service, f"127.0.0.1:{self.port}", lambda: issued))

    def _listen(self, method: str) -> None:
        answer = getattr(self.service, method)

        def recorded(request: bytes, now: datetime) -> bytes:
            self.requests.append(request)
            return bytes(answer(request, now))

        setattr(self.service, method, recorded)

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def roster(self) -> Roster:
        admitted = (m for m in self.registry.members() if m.state == "admitted")
        return Roster("north", tuple(Member(m.name, m.key, m.witness_key) for m in admitted))

    def token(self, invited: str = "alpha", **changes: Any) -> str:
        secret = self.registry.invite(invited, NOW)
        token = Token("north", invited, f"127.0.0.1:{self.port}", secret, self.authority.certificate_der)
        return replace(token, **changes).to_text()

    def bend(self, method: str, **changes: Any) -> None:
        """From now on an answer has other contents."""
        answer = getattr(self.service, method)

        def bent(request: bytes, now: datetime) -> bytes:
            return canonical({**json.loads(answer(request, now)), **changes})

        setattr(self.service, method, bent)

    def lose_first(self, method: str) -> list[bytes]:
        """Answers that are lost on their way: the first of those to come; the list has it then."""
        answer, lost = getattr(self.service, method), list[bytes]()

        def losing(request: bytes, now: datetime) -> bytes:
            response = bytes(answer(request, now))
            if not lost:
                lost.append(response)
                raise NetworkError("the answer is lost")
            return response

        setattr(self.service, method, losing)
        return lost

    def close(self) -> None:
        self.run(self._server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.registry.close()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    hub = Hub(tmp_path / "hub")
    yield hub
    hub.close()


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


@pytest.fixture
def admitted(hub: Hub, node: Path) -> Path:
    enrolment.join(node, hub.token(), NOW, patience=QUICK)
    hub.registry.admit("alpha", NOW)
    return node


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(call: Any, *arguments: Any, kind: type[CausalDAOError] = IdentityError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments, **{"patience": QUICK, **options})
    return caught.value.message


# keys


def test_keys_are_overwritten_or_shared(node: Path) -> None:
    keys = enrolment.make_keys(node)
    before = files(node)
    assert set(before) == {"signing.pem", "witness.pem", "tls.pem"}
    assert {path.stat().st_mode & 0o777 for path in node.iterdir()} == {0o600}
    assert keys.signing != keys.witness
    (node / "witness.pem").unlink()
    again = enrolment.make_keys(node)
    assert again.signing == keys.signing
    assert {name: data for name, data in files(node).items() if name != "witness.pem"} == {
        name: data for name, data in before.items() if name != "witness.pem"
    }
    tls: Any = serialization.load_pem_private_key(before["tls.pem"], None)
    assert tls.curve.name == "secp384r1"


@pytest.mark.parametrize("file", ["signing.pem", "tls.pem"])
def test_others_read_a_key(hub: Hub, node: Path, file: str) -> None:
    enrolment.make_keys(node)
    (node / file).chmod(0o644)
    assert "chmod 600" in refused(enrolment.join, node, hub.token(), NOW)
    assert hub.requests == []


# joining


def test_joining_leaves_something_out(hub: Hub, node: Path) -> None:
    token = hub.token()
    state = enrolment.join(node, token, NOW, name="alpha", patience=QUICK)
    assert state == {
        "federation": "north", "name": "alpha", "coordinator": COORDINATOR, "origin": "north.example/log",
        "fleet": "hub.example.org:9092", "enrolment": f"127.0.0.1:{hub.port}", "bundle": "ab" * 32,
        "joined": NOW.isoformat(),
    }  # fmt: skip
    assert enrolment.read_federation(node) == state
    assert (node / "authority.crt").read_bytes() == hub.authority.certificate_pem
    keys = {"signing.pem", "witness.pem", "tls.pem"}
    assert set(files(node)) == {*keys, "authority.crt", "federation.json", "witness.db"}
    assert enrolment.join(node, token, NOW, patience=QUICK) == state, "a lost answer is asked for again"


def open_witness(node: Path) -> Witness:
    log = Verifier.of("north.example/log", SigningKey.from_seed(b"c" * 32).public, LOG)
    return Witness.open(node / "witness.db", "alpha", SigningKey.load(node / "witness.pem"), log, lambda: 1)


def test_a_node_that_joined_is_no_witness_of_the_ledger(hub: Hub, node: Path) -> None:
    enrolment.join(node, hub.token(), NOW, patience=QUICK)
    assert (open_witness(node).seen.size, open_witness(node).status) == (0, "witnessing")
    member = hub.registry.member("alpha")
    assert member is not None
    assert member.witness_key == SigningKey.load(node / "witness.pem").public


def test_joining_again_makes_a_lost_witness_anew(hub: Hub, node: Path) -> None:
    """A witness that forgot what it saw could cosign a second history: an empty one never takes its place."""
    token = hub.token()
    enrolment.join(node, token, NOW, patience=QUICK)
    before = (node / "witness.db").read_bytes()
    enrolment.join(node, token, NOW, patience=QUICK)
    assert (node / "witness.db").read_bytes() == before
    (node / "witness.db").unlink()
    enrolment.join(node, token, NOW, patience=QUICK)
    assert not (node / "witness.db").exists()


def test_a_join_that_was_cut_short_cannot_be_completed(hub: Hub, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = hub.token()
    with monkeypatch.context() as patch:
        patch.setattr(enrolment, "_write_federation", lambda folder, value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            enrolment.join(node, token, NOW, patience=QUICK)
    assert "federation.json" not in files(node)
    enrolment.join(node, token, NOW, patience=QUICK)
    assert open_witness(node).status == "witnessing"


def test_a_private_key_is_sent(hub: Hub, admitted: Path) -> None:
    enrolment.renew(admitted, NOW, patience=QUICK)
    enrolment.studies(admitted, NOW, patience=QUICK)
    sent = b"".join(hub.requests)
    assert len(hub.requests) == 3
    for name in ("signing.pem", "witness.pem", "tls.pem"):
        pem = (admitted / name).read_bytes()
        private: Any = serialization.load_pem_private_key(pem, None)
        der = private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        assert pem.splitlines()[1] not in sent
        for secret in _secrets(private, der):
            assert not any(form in sent for form in _forms(secret))
    assert b"PRIVATE" not in sent


def _secrets(private: Any, der: bytes) -> list[bytes]:
    if hasattr(private, "private_numbers"):
        return [der, private.private_numbers().private_value.to_bytes(48, "big")]
    return [der, private.private_bytes_raw()]


def _forms(secret: bytes) -> list[bytes]:
    return [secret, secret.hex().encode(), base64.b64encode(secret)[:-4], base64.urlsafe_b64encode(secret)[:-4]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-1],
        lambda text: text[:200],
        lambda text: text[:100] + ("A" if text[100] != "A" else "B") + text[101:],
        lambda text: "",
        lambda text: "cdao1.",
        lambda text: "cdao1..",
        lambda text: text.removeprefix("cdao1."),
        lambda text: text.replace("cdao1", "cdao2"),
        lambda text: text + "x" * 9000,
        lambda text: text + "é",
    ],
)
def test_a_damaged_token_is_sent(hub: Hub, node: Path, damage: Any) -> None:
    assert "token" in refused(enrolment.join, node, damage(hub.token()), NOW)
    assert hub.requests == []
    assert files(node) == {}


@pytest.mark.parametrize(
    "changes",
    [{"address": "hub"}, {"address": "hub:0"}, {"address": "hub:99999"}, {"address": "unix:/tmp/x"},
     {"address": "dns:///hub:1"}, {"address": "[::g]:1"}, {"name": "../x"}, {"federation": "North"},
     {"secret": "short"}, {"authority": b"no certificate"}, {"authority": b""}],
)  # fmt: skip
def test_a_token_leads_astray(hub: Hub, node: Path, changes: dict[str, Any]) -> None:
    refused(enrolment.join, node, hub.token(**changes), NOW)
    assert files(node) == {}


def test_an_authority_was_altered(hub: Hub) -> None:
    der = bytearray(hub.authority.certificate_der)
    der[120] ^= 1
    with pytest.raises(IdentityError, match="token cannot be read"):
        Token.from_text(hub.token(authority=bytes(der)))


def test_a_mail_breaks_the_token(hub: Hub) -> None:
    text = hub.token()
    assert Token.from_text("\n> ".join([text[:70], text[70:]]).replace(">", " ")) == Token.from_text(text)
    assert Token.from_text(Token.from_text(text).to_text()) == Token.from_text(text)


@pytest.mark.parametrize("address", ["hub.example.org:9443", "192.0.2.1:1", "[2001:db8::1]:65535", "hub:9"])
def test_an_address_is_refused(address: str) -> None:
    assert wire.check_address(address) == address


def test_a_token_for_another_node_is_burnt(hub: Hub, node: Path) -> None:
    token = hub.token("beta")
    assert "'alpha'" in refused(enrolment.join, node, token, NOW, name="alpha")
    assert hub.requests == []
    assert enrolment.join(node, token, NOW, name="beta", patience=QUICK)["name"] == "beta"


def test_a_node_joins_two_federations(hub: Hub, admitted: Path) -> None:
    before = files(admitted)
    assert "'north' already" in refused(enrolment.join, admitted, hub.token("beta"), NOW)
    assert "'north' already" in refused(enrolment.join, admitted, hub.token("gamma", federation="south"), NOW)
    assert files(admitted) == before


def test_a_refusal_leaves_a_node_half_joined(hub: Hub, node: Path) -> None:
    assert "unknown" in refused(enrolment.join, node, hub.token(secret="x" * 43), NOW)
    assert "'south'" in refused(enrolment.join, node, hub.token(federation="south"), NOW)
    hub.now = NOW + timedelta(minutes=16)
    assert "expired" in refused(enrolment.join, node, hub.token(), hub.now)
    assert set(files(node)) == {"signing.pem", "witness.pem", "tls.pem"}
    assert enrolment.certificate_expiry(node) is None
    assert "node join" in refused(enrolment.renew, node, NOW)


def test_a_coordinator_of_another_authority_is_believed(hub: Hub, node: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    pinned = Authority.create(other, "north", NOW).certificate_der
    message = refused(enrolment.join, node, hub.token(authority=pinned), NOW)
    assert "is not the coordinator" in message
    assert f"127.0.0.1:{hub.port}" in message
    assert hub.requests == []


def test_a_certificate_of_the_authority_for_another_host_is_believed(hub: Hub, node: Path) -> None:
    hub.show(hub.authority.issue_server(["192.0.2.1"], NOW))
    assert "is not the coordinator" in refused(enrolment.join, node, hub.token(), NOW)
    hub.show(hub.authority.issue_server(["127.0.0.1"], NOW))
    assert enrolment.join(node, hub.token(), NOW, patience=QUICK)


def test_a_member_poses_as_the_coordinator(hub: Hub, admitted: Path) -> None:
    """A member's certificate is of the same authority, but for clients only."""
    enrolment.renew(admitted, NOW, patience=QUICK)
    hub.show(((admitted / "tls.pem").read_bytes(), (admitted / "certificate.pem").read_bytes()))
    hub.requests.clear()
    assert "is not the coordinator" in refused(enrolment.renew, admitted, NOW)
    assert hub.requests == []


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "south"},
        {"coordinator": "x"},
        {"fleet": "unix:/tmp/x"},
        {"bundle": "x"},
        {"origin": "a b"},
        {"more": "x"},
    ],
)
def test_an_answer_that_is_none_is_written(hub: Hub, node: Path, changes: dict[str, str]) -> None:
    hub.bend("join", **changes)
    refused(enrolment.join, node, hub.token(), NOW)
    assert not {"federation.json", "witness.db"} & set(files(node))


# the network


def test_nobody_answers(node: Path, hub: Hub) -> None:
    pauses: list[float] = []
    patient = Patience(attempts=4, seconds=5, pause=0.5, sleep=pauses.append)
    token = hub.token(address="127.0.0.1:1")
    message = refused(enrolment.join, node, token, NOW, patience=patient, kind=NetworkError)
    assert "127.0.0.1:1 in 4 attempts" in message
    assert "firewall" in message
    assert pauses == [0.5, 1.0, 2.0]


def test_a_fault_that_passes_ends_the_join(hub: Hub, node: Path) -> None:
    """The answer to the first attempt is lost after the token was redeemed."""
    lost = hub.lose_first("join")
    assert enrolment.join(node, hub.token(), NOW, patience=QUICK)["federation"] == "north"
    assert len(lost) == 1


def test_a_retried_renewal_is_a_replay(hub: Hub, admitted: Path) -> None:
    lost = hub.lose_first("renew")
    assert enrolment.renew(admitted, NOW, patience=QUICK).expires > NOW
    assert len(lost) == 1


def test_another_service_answers(hub: Hub, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment, "SERVICE", "other.Service")
    assert "no enrolment service" in refused(enrolment.join, node, hub.token(), NOW, kind=NetworkError)


# the certificate


def test_a_pending_node_is_told_nothing(hub: Hub, node: Path) -> None:
    enrolment.join(node, hub.token(), NOW, patience=QUICK)
    assert "not admitted yet: ask the operator" in refused(enrolment.renew, node, NOW, kind=RefusedError)
    assert enrolment.certificate_expiry(node) is None


def test_a_revoked_node_is_told_nothing(hub: Hub, admitted: Path) -> None:
    hub.registry.revoke("alpha", NOW)
    assert "revoked" in refused(enrolment.renew, admitted, NOW)


def test_an_expired_certificate_locks_a_node_out(hub: Hub, admitted: Path) -> None:
    first = enrolment.renew(admitted, NOW, patience=QUICK)
    assert enrolment.certificate_expiry(admitted) == first.expires
    hub.now = NOW + timedelta(days=30)
    second = enrolment.renew(admitted, hub.now, patience=QUICK)
    assert second.expires > hub.now
    assert (second.fleet, second.bundle, second.coordinator) == (FACTS.fleet, FACTS.bundle, COORDINATOR)
    certificate = x509.load_pem_x509_certificate((admitted / "certificate.pem").read_bytes())
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "alpha"
    (admitted / "certificate.pem").write_bytes(b"broken")
    with pytest.raises(IdentityError, match=r"certificate\.pem"):
        enrolment.certificate_expiry(admitted)


def test_a_wrong_clock_is_not_told(hub: Hub, admitted: Path) -> None:
    message = refused(enrolment.renew, admitted, NOW - timedelta(hours=1))
    assert "the coordinator's says" in message
    assert "NTP" in message


def test_a_certificate_of_another_is_installed(hub: Hub, admitted: Path, tmp_path: Path) -> None:
    other = tmp_path / "beta"
    other.mkdir()
    enrolment.join(other, hub.token("beta"), NOW, patience=QUICK)
    hub.registry.admit("beta", NOW)
    enrolment.renew(other, NOW, patience=QUICK)
    enrolment.renew(admitted, NOW, patience=QUICK)
    before = files(admitted)
    theirs = (other / "certificate.pem").read_text()
    csr = peek(json.loads(hub.requests[-1])["proof"].encode()).body["csr"]
    (other / "own").mkdir()
    forged = Authority.create(other / "own", "north", NOW).issue_member("alpha", csr, NOW)
    stale = hub.authority.issue_member("alpha", csr, NOW + timedelta(hours=1))
    for wrong in (theirs, forged, stale, hub.authority.certificate_pem.decode(), "text"):
        hub.bend("renew", certificate=wrong)
        refused(enrolment.renew, admitted, NOW)
    assert files(admitted) == before


def test_a_coordinator_changes_its_key(hub: Hub, admitted: Path) -> None:
    before = files(admitted)
    for change in ({"coordinator": SigningKey.generate().public.to_text("coordinator")}, {"origin": "other"}):
        hub.bend("renew", **{"coordinator": COORDINATOR, **change})
        assert "another key, or another ledger" in refused(enrolment.renew, admitted, NOW)
    assert files(admitted) == before


def test_a_new_address_or_bundle_is_taken_without_asking(hub: Hub, admitted: Path) -> None:
    """The address is followed; the bundle is the owner's to approve."""
    hub.bend("renew", fleet="new.example.org:1", bundle="cd" * 32)
    assert enrolment.renew(admitted, NOW, patience=QUICK).bundle == "cd" * 32
    federation = enrolment.read_federation(admitted)
    assert (federation["fleet"], federation["bundle"]) == ("new.example.org:1", "ab" * 32)


def test_a_crash_while_writing_leaves_half_a_file(hub: Hub, admitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolment.renew(admitted, NOW, patience=QUICK)
    before = files(admitted)

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert "No space left" in refused(enrolment.renew, admitted, NOW, kind=ConfigurationError)
    assert files(admitted) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"federation": 5}', "\xff"])
def test_a_broken_federation_file(node: Path, text: str) -> None:
    (node / "federation.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(IdentityError):
        enrolment.read_federation(node)


# dictionary and studies


def test_a_dictionary_is_not_announced(hub: Hub, admitted: Path) -> None:
    assert "dictionary.dsse" in refused(enrolment.announce, admitted, NOW, kind=ConfigurationError)
    site = SiteDictionary("north", "alpha", (Offered("age", "continuous", "years"),))
    key = SigningKey.load(admitted / "signing.pem")
    (admitted / "dictionary.dsse").write_bytes(make(site, key, "n"))
    enrolment.announce(admitted, NOW, patience=QUICK)
    member = hub.registry.member("alpha")
    assert member is not None
    assert (member.dictionary or "").encode() == (admitted / "dictionary.dsse").read_bytes()
    hub.bend("announce", dictionary="0" * 64)
    assert "another dictionary" in refused(enrolment.announce, admitted, NOW)
    (admitted / "dictionary.dsse").write_bytes(b"x" * 300_000)
    assert "too large" in refused(enrolment.announce, admitted, NOW, kind=ConfigurationError)


def test_a_study_of_another_hash_is_read(hub: Hub, admitted: Path) -> None:
    document = {"study": {"name": "hearts"}, "threshold": 0.6}
    study = sha256(canonical(document))
    hub.registry.propose(study, "hearts", document, NOW)
    expected = {"hash": study, "name": "hearts", "state": "proposed", "document": document}
    assert enrolment.studies(admitted, NOW, patience=QUICK) == [expected]
    assert enrolment.studies(admitted, NOW, [study], patience=QUICK) == [{**expected, "document": None}]
    answers: list[Any] = [[{**expected, "document": {}}], [{**expected, "hash": "x"}], ["x"], [{}], "x"]
    for wrong in answers:
        hub.bend("studies", studies=wrong)
        refused(enrolment.studies, admitted, NOW)


# errors that cross


@pytest.mark.parametrize("text", ["", "{}", "no", '{"code":"identity","exit_code":"x","message":""}', "\ud800"])
def test_a_text_that_is_no_error_is_raised(text: str) -> None:
    assert wire.error_from_text(text) is None


def test_an_error_loses_its_kind_or_draws_on_the_terminal() -> None:
    told = wire.error_from_text(wire.error_to_text(RefusedError("a\x1b[31m\n" + "x" * 2000)))
    assert isinstance(told, RefusedError)
    assert told.message.startswith("a\\x1b[31m\\nxxx")
    assert len(told.message) < 700


def test_a_status_without_details(hub: Hub, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNAVAILABLE

        def details(self) -> None:
            return None

    def fail(*arguments: Any) -> bytes:
        raise Silent

    monkeypatch.setattr(enrolment, "_send", fail)
    assert "did not answer" in refused(enrolment.join, node, hub.token(), NOW, kind=NetworkError)
