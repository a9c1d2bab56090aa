"""The node's way out: who it shows itself to, with which certificate, and who is not let in."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from causaldao.client import enrolment
from causaldao.client.connector import LOOPBACK, Connector, Identity
from causaldao.relay import PREFIX, SERVER_OPTIONS
from causaldao.server.authority import Authority

NOW = datetime.now(UTC)


@dataclass
class Gateway:
    """What the coordinator's end heard: the method, and the serial number of the certificate that was shown."""

    heard: list[tuple[str, int]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    hold: asyncio.Event | None = None
    error: grpc.StatusCode | None = None

    def handler(self) -> grpc.GenericRpcHandler:
        class Handler(grpc.GenericRpcHandler):
            def service(_, details: grpc.HandlerCallDetails) -> Any:
                async def answer(request: bytes, context: Any) -> bytes:
                    (pem,) = context.auth_context()["x509_pem_cert"]
                    serial = x509.load_pem_x509_certificate(pem).serial_number
                    self.heard.append((details.method.removeprefix(PREFIX), serial))
                    self.metadata = dict(context.invocation_metadata())
                    if self.error is not None:
                        await context.abort(self.error, "said the gateway")
                    if self.hold is not None:
                        await self.hold.wait()
                    return b"answer to " + request

                return grpc.unary_unary_rpc_method_handler(answer)

        return Handler()


class World:
    """An authority, a node's folder with keys and certificate, and a gateway that asks for one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "node"
        self.folder.mkdir()
        (folder / "hub").mkdir()
        self.authority = Authority.create(folder / "hub", "test", NOW - timedelta(days=1))
        enrolment.make_keys(self.folder)
        (self.folder / "authority.crt").write_bytes(self.authority.certificate_pem)
        self.gateway = Gateway()
        self.told = 0
        self.serial = self.renew()

    def renew(self) -> int:
        """A new certificate in the node's folder; its serial number."""
        request = enrolment._request(enrolment._load_tls(self.folder), "north")
        pem = self.authority.issue_member("north", request, NOW)
        (self.folder / "certificate.pem").write_text(pem)
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    def heard(self) -> None:
        self.told += 1

    @asynccontextmanager
    async def up(self, *, issuer: Authority | None = None, host: str = LOOPBACK) -> AsyncIterator[Connector]:
        """A connector before a gateway whose own certificate is of ``issuer``, for ``host``."""
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((self.gateway.handler(),))
        pair = (issuer or self.authority).issue_server([host], NOW)
        credentials = grpc.ssl_server_credentials([pair], self.authority.certificate_pem, True)
        port = server.add_secure_port(f"{LOOPBACK}:0", credentials)
        await server.start()
        connector = Connector(
            f"{LOOPBACK}:{port}", Identity.read(self.folder), self.folder / "loopback.crt", self.heard
        )
        await connector.start()
        try:
            yield connector
        finally:
            await connector.stop()
            await server.stop(0)

    async def ask(self, connector: Connector, method: str = "PullMessages", **how: Any) -> bytes:
        """As the SuperNode calls: with TLS, knowing the connector by the file that it wrote."""
        trust = grpc.ssl_channel_credentials((self.folder / "loopback.crt").read_bytes())
        async with grpc.aio.secure_channel(f"{LOOPBACK}:{connector.port}", trust) as channel:
            call: Any = channel.unary_unary(PREFIX + method)
            answer: bytes = await call(b"question", **{"timeout": 5, **how})
            return answer


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(world: World, act: Callable[[Connector], Any], **how: Any) -> None:
    async def whole() -> None:
        async with world.up(**how) as connector:
            await act(connector)

    asyncio.run(whole())


def test_a_call_arrives_without_the_nodes_certificate_or_flowers_signature(world: World) -> None:
    async def act(connector: Connector) -> None:
        assert await world.ask(connector, metadata=(("flwr-signature-bin", b"\0\1"),)) == b"answer to question"
        assert await world.ask(connector, "PushMessages") == b"answer to question"

    run(world, act)
    assert world.gateway.heard == [("PullMessages", world.serial), ("PushMessages", world.serial)]
    assert "flwr-signature-bin" not in world.gateway.metadata  # of the first call only
    assert world.told == 2


def test_an_error_of_the_gateway_is_hidden_or_counts_as_contact(world: World) -> None:
    world.gateway.error = grpc.StatusCode.UNAUTHENTICATED

    async def act(connector: Connector) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as found:
            await world.ask(connector)
        assert (found.value.code(), found.value.details()) == (grpc.StatusCode.UNAUTHENTICATED, "said the gateway")

    run(world, act)
    assert world.told == 0


def test_a_renewed_certificate_is_not_shown_or_calls_in_flight_are_cut(world: World) -> None:
    async def act(connector: Connector) -> None:
        world.gateway.hold = asyncio.Event()
        slow = asyncio.create_task(world.ask(connector, "GetFab"))
        while not world.gateway.heard:
            await asyncio.sleep(0.01)
        fresh = world.renew()
        renewing = asyncio.create_task(connector.renew(Identity.read(world.folder)))
        await asyncio.sleep(0.1)
        world.gateway.hold.set()
        assert await slow == b"answer to question"
        await renewing
        await world.ask(connector)
        assert world.gateway.heard == [("GetFab", world.serial), ("PullMessages", fresh)]
        assert fresh != world.serial

    run(world, act)


def test_a_coordinator_of_another_authority_is_talked_to(world: World, tmp_path: Path) -> None:
    (tmp_path / "thief").mkdir()
    thief = Authority.create(tmp_path / "thief", "test", NOW)

    async def act(connector: Connector) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as found:
            await world.ask(connector, timeout=3)
        assert found.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

    run(world, act, issuer=thief)
    assert not world.gateway.heard


def test_a_certificate_for_another_host_is_taken_for_the_coordinators(world: World) -> None:
    async def act(connector: Connector) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await world.ask(connector, timeout=3)

    run(world, act, host="elsewhere.example.org")
    assert not world.gateway.heard


def test_another_members_certificate_passes_for_a_servers(world: World) -> None:
    """A member holds a certificate of the same authority; it is for clients only."""

    async def act(connector: Connector) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await world.ask(connector, timeout=3)

    class Member:
        def issue_server(self, names: Any, now: datetime) -> tuple[bytes, bytes]:
            return (world.folder / "tls.pem").read_bytes(), (world.folder / "certificate.pem").read_bytes()

    run(world, act, issuer=Member())
    assert not world.gateway.heard


def test_the_loopback_port_is_open_to_the_house_or_to_plain_text(world: World) -> None:
    async def act(connector: Connector) -> None:
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{connector.port}") as channel:
            call: Any = channel.unary_unary(PREFIX + "PullMessages")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"question", timeout=2)
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        lines = [line.split() for line in listening.splitlines() if f":{connector.port:04X} " in line]
        listeners = {line[1] for line in lines if line[3] == "0A"}
        assert listeners
        assert all(place.endswith(f"0100007F:{connector.port:04X}") for place in listeners)  # 127.0.0.1

    run(world, act)
    assert not world.gateway.heard


def test_the_loopback_certificate_is_the_same_at_each_start_or_its_key_is_written(world: World) -> None:
    seen: list[str] = []

    async def act(connector: Connector) -> None:
        pem = await asyncio.to_thread(ssl.get_server_certificate, (LOOPBACK, connector.port))
        seen.append(pem.strip())
        assert (world.folder / "loopback.crt").read_text().strip() == pem.strip()

    run(world, act)
    run(world, act)
    assert len(set(seen)) == 2
    keys = {path.name for path in world.folder.iterdir() if b"PRIVATE KEY" in path.read_bytes()}
    assert keys == {"signing.pem", "witness.pem", "tls.pem"}
