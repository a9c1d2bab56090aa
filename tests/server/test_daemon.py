"""The coordinator's process: two in one folder, a port that is taken, an old certificate, a dead SuperLink.

Flower's SuperLink is a process that sleeps here; what it is told over its Control API is kept.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from causaldao.children import Child
from causaldao.errors import ConfigurationError, IdentityError, NetworkError
from causaldao.ledger.note import cosign
from causaldao.ledger.reader import FILES, Remote, credentials
from causaldao.ledger.receipt import Pending, Receipt
from causaldao.ledger.verify import Policy, verify_receipt
from causaldao.relay import PREFIX
from causaldao.server import daemon as daemon_module
from causaldao.server import superlink
from causaldao.server.daemon import Daemon, _claim
from causaldao.server.home import Home
from tests.server import homes
from tests.server.homes import LOOPBACK, NOW

PORTS = ("fleet_port", "enrolment_port", "ledger_port")


@dataclass
class Control:
    """The SuperLink's Control API."""

    registered: dict[str, int] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)
    up: bool = True
    asked: int = 0

    def ready(self) -> bool:
        return self.up

    def register(self, key: str, name: str) -> int:
        self.asked += 1
        if not self.up:
            raise NetworkError("The SuperLink is starting again.")
        return self.registered.setdefault(key, 100 + self.asked)

    def nodes(self) -> dict[bytes, int]:
        if not self.up:
            raise NetworkError("The SuperLink is starting again.")
        return {key.encode(): node for key, node in self.registered.items()}

    def unregister(self, node: int) -> None:
        self.gone.append(node)


@dataclass
class World:
    home: Home
    control: Control
    children: list[Child]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    ports = {name: free() for name in PORTS}
    found = World(homes.create(tmp_path / "home", **ports), Control(), [])

    def child(folder: Path, *_: Any) -> Child:
        folder.mkdir(exist_ok=True)
        found.children.append(Child("flower-superlink", ["sleep", "60"], folder / "superlink.log"))
        return found.children[-1]

    monkeypatch.setattr(superlink, "child", child)
    monkeypatch.setattr(superlink, "Control", lambda *_: found.control)
    monkeypatch.setattr(daemon_module, "TEND_SECONDS", 0.05)
    monkeypatch.setattr("causaldao.children._BACKOFF", (0.1,))
    return found


def free() -> int:
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        return int(found.getsockname()[1])


async def until(ready: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not ready():
        assert asyncio.get_running_loop().time() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running(world: World) -> AsyncIterator[Daemon]:
    """A daemon that is ready; it is told to stop afterwards, as `kill` does."""
    daemon = Daemon(world.home)
    task = asyncio.create_task(daemon.run())
    try:
        await until(lambda: task.done() or world.home.status() is not None)
        if task.done():
            await task
        yield daemon
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task


def test_two_processes_serve_one_folder(world: World) -> None:
    lock = _claim(world.home)
    with pytest.raises(ConfigurationError, match="running already"):
        asyncio.run(Daemon(world.home).run())
    assert not world.children
    lock.close()
    _claim(world.home).close()


@pytest.mark.parametrize("port", PORTS)
def test_a_port_that_is_taken_is_shared_or_leaves_half_a_coordinator(world: World, port: str) -> None:
    *others, taken = (getattr(world.home.settings, name) for name in sorted(PORTS, key=port.__eq__))
    with socket.socket() as holder:
        holder.bind((LOOPBACK, taken))
        holder.listen()
        with pytest.raises(ConfigurationError, match=str(taken)):
            asyncio.run(Daemon(world.home).run())
    assert [child.alive() for child in world.children] == [False]
    assert world.home.status() is None
    for other in others:
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind((LOOPBACK, other))  # what did start was ended


def test_the_process_does_not_say_where_it_is_or_says_so_when_it_is_gone(world: World) -> None:
    async def run() -> None:
        async with running(world):
            status = world.home.require_running()
            assert status["pid"] == os.getpid()
            assert status["ports"]["fleet"] == world.home.settings.fleet_port
            assert status["ports"]["enrolment"] == world.home.settings.enrolment_port
            assert status["ports"]["ledger"] == world.home.settings.ledger_port
            assert status["ledger"] == world.home.ledger == f"{LOOPBACK}:{world.home.settings.ledger_port}"
            assert status["control"] == f"127.0.0.1:{status['ports']['control']}"
            assert world.children[-1].alive()

    asyncio.run(run())
    assert not (world.home.run_folder / "status.json").exists()
    assert not world.children[-1].alive()
    asyncio.run(run())  # the folder is free again


def test_a_superlink_that_ends_as_it_starts_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.control.up = False
    log = world.home.folder / "superlink.log"
    broken = Child("flower-superlink", ["sh", "-c", "echo address in use; exit 2"], log)
    monkeypatch.setattr(superlink, "child", lambda *_: broken)
    with pytest.raises(NetworkError, match="address in use"):
        asyncio.run(Daemon(world.home).run())
    assert world.home.status() is None


def test_a_superlink_that_is_never_ready_is_waited_for_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.control.up = False
    monkeypatch.setattr(daemon_module, "READY_SECONDS", 0.3)
    with pytest.raises(NetworkError, match=r"superlink\.log"):
        asyncio.run(Daemon(world.home).run())
    assert not world.children[0].alive()


def test_a_superlink_that_dies_stays_dead(world: World) -> None:
    async def run() -> None:
        async with running(world):
            (child,) = world.children
            first = child.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await until(lambda: child.restarts == 1 and child.alive())
            assert child.pid != first

    asyncio.run(run())


def node(world: World, name: str) -> int | None:
    return next(member.node_id for member in world.home.registry.members() if member.name == name)


def test_the_superlinks_list_of_nodes_is_another_than_the_registrys(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Admitted: registered, once. Revoked: taken off, once. While the SuperLink starts again: nothing breaks."""
    monkeypatch.setattr(daemon_module, "_LOOK_SECONDS", 0.0)
    homes.join(world.home, "north", "south")

    async def run() -> None:
        async with running(world):
            world.home.admit("north", NOW)
            await until(lambda: node(world, "north") == 101)
            world.control.up = False
            world.home.admit("south", NOW)
            await asyncio.sleep(0.3)
            assert node(world, "south") is None
            world.control.up = True
            await until(lambda: node(world, "south") is not None)
            asked = world.control.asked
            world.home.revoke("north", "a test", NOW)
            await until(lambda: node(world, "north") is None)
            await asyncio.sleep(0.3)
            assert (world.control.asked, world.control.gone) == (asked, [101])

    asyncio.run(run())
    assert set(world.control.registered) == {"tls key of north", "tls key of south"}


def test_members_are_forgotten_by_a_superlink_that_lost_its_state(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "_LOOK_SECONDS", 0.0)
    homes.admit(world.home, "north")

    async def run() -> None:
        async with running(world):
            await until(lambda: node(world, "north") == 101)
            world.control.registered.clear()
            await until(lambda: node(world, "north") == 102)

    asyncio.run(run())
    assert world.control.registered == {"tls key of north": 102}


def test_the_first_members_cannot_connect_for_they_are_too_few(world: World, tmp_path: Path) -> None:
    """A federation that is to bear two liars has one member at first, and again after revocations."""
    home = homes.create(tmp_path / "strict", faulty=2)
    homes.admit(home, "north", "south")
    daemon = Daemon(home)
    assert daemon._roster().names == ("north", "south")
    home.revoke("north", "a test", NOW)
    assert daemon._roster().names == ("south",)
    assert daemon._roster().key("south") == homes.key("south").public


# certificates


def leaf(chain: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain)[0]


def hosts(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def test_a_certificate_is_kept_until_it_has_run_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [datetime.now(UTC)]
    monkeypatch.setattr(daemon_module, "utc_now", lambda: now[0])
    daemon = Daemon(world.home)
    first = daemon._certificate()
    now[0] += timedelta(hours=12)
    assert daemon._certificate() == first
    now[0] += timedelta(minutes=1)
    second = daemon._certificate()
    assert second != first
    assert leaf(second[1]).not_valid_after_utc > leaf(first[1]).not_valid_after_utc
    assert leaf(first[1]).not_valid_after_utc - now[0] > timedelta(hours=11)  # members hold connections for hours


def test_a_name_under_which_members_come_is_not_in_the_certificate(tmp_path: Path) -> None:
    home = homes.create(tmp_path / "home", host="inner.example.org", public_fleet="fleet.example.org:443")
    _, chain = Daemon(home)._certificate()
    assert hosts(leaf(chain)) == {"inner.example.org", "fleet.example.org", "127.0.0.1", "localhost"}
    leaf(chain).verify_directly_issued_by(home.authority.certificate)


def test_a_renewed_certificate_is_shown_after_a_restart_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = [timedelta()]
    monkeypatch.setattr(daemon_module, "utc_now", lambda: datetime.now(UTC) + ahead[0])

    async def shown() -> int:
        """The serial number of what the enrolment port shows."""
        address = (LOOPBACK, world.home.settings.enrolment_port)
        pem = await asyncio.to_thread(ssl.get_server_certificate, address)
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    async def run() -> None:
        async with running(world):
            first = await shown()
            assert await shown() == first
            ahead[0] = timedelta(hours=13)
            serial, ends = first, asyncio.get_running_loop().time() + 15
            while serial == first and asyncio.get_running_loop().time() < ends:
                with suppress(OSError):  # the port is opened anew
                    serial = await shown()
                await asyncio.sleep(0.1)
            assert serial != first

    asyncio.run(run())


def test_a_caller_without_a_certificate_gets_through_the_fleet_port(world: World) -> None:
    async def run() -> None:
        async with running(world):
            trust = grpc.ssl_channel_credentials(world.home.authority.certificate_pem)
            async with grpc.aio.secure_channel(f"{LOOPBACK}:{world.home.settings.fleet_port}", trust) as channel:
                call: Any = channel.unary_unary(PREFIX + "PullMessages")
                with pytest.raises(grpc.aio.AioRpcError) as found:
                    await call(b"", timeout=5)
            assert found.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

    asyncio.run(run())


# the ledger


def node_folder(world: World, folder: Path, name: str) -> Path:
    """The folder of a member that has joined, was admitted and has its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    tls = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    homes.join(world.home, name, tls=tls)
    world.home.admit(name, NOW)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    authority = world.home.authority
    issued = authority.issue_member(name, request.public_bytes(Encoding.PEM).decode(), datetime.now(UTC))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    folder.mkdir()
    for file, data in zip(FILES, (authority.certificate_pem, private, issued.encode()), strict=True):
        (folder / file).write_bytes(data)
    return folder


def test_a_member_cannot_read_the_ledger_or_a_revoked_one_can(world: World, tmp_path: Path) -> None:
    """What it reads is what was recorded last, also while the service runs, with the cosignatures that count now."""
    folder = node_folder(world, tmp_path / "node", "north")
    policy = Policy.parse((world.home.folder / "policy").read_text())

    def read() -> None:
        with Remote(world.home.ledger, credentials(folder)) as ledger:
            assert [entry.index for entry in ledger.entries(0, 2)] == [0, 1]
            assert (ledger.checkpoint().agreed, ledger.receipt(1)) == (False, Pending(0))
            with world.home.log() as log:
                checkpoint = log.head.checkpoint
                line = cosign(checkpoint, "north", homes.witness("north"), 1_800_000_000)
                log.keep_cosignatures(checkpoint.size, {"north": line})
            found = ledger.receipt(1)
            assert isinstance(found, Receipt)
            assert verify_receipt(found.text, found.record, policy).body["member"] == "north"
            homes.admit(world.home, "south")  # of two, both must agree: the receipts are no longer given
            assert (ledger.checkpoint().agreed, ledger.receipt(1)) == (False, Pending(0))
            world.home.revoke("north", "a test", NOW)
            with pytest.raises(IdentityError, match="revoked"):
                ledger.checkpoint()

    async def run() -> None:
        async with running(world):
            await asyncio.to_thread(read)

    asyncio.run(run())


def test_a_ledger_that_is_not_to_be_served_is(tmp_path: Path, world: World) -> None:
    world.home = homes.create(tmp_path / "quiet", fleet_port=free(), enrolment_port=free(), ledger_port=0)

    async def run() -> None:
        async with running(world):
            status = world.home.require_running()
            assert (status["ledger"], status["ports"]["ledger"]) == ("", 0)

    asyncio.run(run())


def test_a_members_last_call_is_written_at_each_call(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [datetime.now(UTC)]
    monkeypatch.setattr(daemon_module, "utc_now", lambda: now[0])
    homes.admit(world.home, "north")
    daemon = Daemon(world.home)
    seen = []
    for seconds in (0, 1, 3, 2):
        now[0] += timedelta(seconds=seconds)
        daemon._note_seen("north")
        daemon._write_seen()
        (member,) = world.home.registry.members()
        seen.append(member.last_seen)
    assert seen[0] == seen[1] == seen[2] != seen[3]
