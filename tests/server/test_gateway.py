"""What a hostile member, or a stranger, can send to the fleet port; and what stops there."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
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
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node

from causaldao.relay import MAX_CALL_BYTES, OPTIONS, PREFIX, SERVER_OPTIONS, Relay
from causaldao.server.authority import Authority
from causaldao.server.gateway import Gateway
from tests.sockets import client_hello, closed

LOOPBACK = "127.0.0.1"
NODES = {"north": 11, "south": 22}
MAX_REPLY = 4 << 20


@dataclass
class Record:
    """A member as the gateway asks for it."""

    state: str
    tls: str


@dataclass
class Fleet:
    """A stand-in for the SuperLink: it answers, and keeps what reached it."""

    heard: list[tuple[str, bytes]] = field(default_factory=list)
    owed: int = 0
    failing: int = 0
    active: bool = False

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method.removeprefix(PREFIX)

        async def answer(request: bytes, context: Any) -> bytes:
            if method == "PushObject" and self.failing:
                self.failing -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "starting again")
            self.heard.append((method, request))
            if method == "ActivateNode" and self.active:  # as Flower does until it misses the node
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "Failed to activate SuperNode.")
            if method == "ActivateNode":
                self.active = True
                return ActivateNodeResponse(node_id=NODES["north"]).SerializeToString()
            if method == "PullMessages":
                return PullMessagesResponse(messages_list=[Message()] * self.owed).SerializeToString()
            if method == "PushMessages":
                (tree,) = PushMessagesRequest.FromString(request).message_object_trees
                wanted = [tree.object_id, *(child.object_id for child in tree.children)]
                return PushMessagesResponse(
                    session_id=f"session-{len(self.heard)}", objects_to_push=wanted
                ).SerializeToString()
            return PushObjectResponse(stored=True).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


class Handler(Fleet, grpc.GenericRpcHandler):
    pass


class World:
    """An authority, members' keys, a gateway before a stand-in fleet."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.create(folder, "test", datetime.now(UTC) - timedelta(days=1))
        self.keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in NODES}
        self.members = {name: Record("admitted", public(key)) for name, key in self.keys.items()}
        self.fleet = Handler()
        self.port = 0
        self.check: Any = lambda request, parts, size: None  # parts are any bytes here; tests/server/test_hostile.py

    def identity(self, name: str, *, hours: int = 24, now: datetime | None = None, key: Any = None) -> Any:
        key = key or self.keys[name]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384())
        pem = request.public_bytes(Encoding.PEM).decode()
        certificate = self.authority.issue_member(name, pem, now or datetime.now(UTC), hours)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return grpc.ssl_channel_credentials(self.authority.certificate_pem, private, certificate.encode())

    @asynccontextmanager
    async def up(self) -> AsyncIterator[World]:
        behind = grpc.aio.server(options=OPTIONS)
        behind.add_generic_rpc_handlers((self.fleet,))
        inner = behind.add_insecure_port(f"{LOOPBACK}:0")
        await behind.start()
        channel = grpc.aio.insecure_channel(f"{LOOPBACK}:{inner}", options=OPTIONS)
        gateway = Gateway(channel, self.members.get, max_reply=MAX_REPLY, check=self.check)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((gateway.relay,))
        pair = self.authority.issue_server([LOOPBACK, "localhost"], datetime.now(UTC))
        credentials = grpc.ssl_server_credentials([pair], self.authority.certificate_pem, True)
        self.port = server.add_secure_port(f"{LOOPBACK}:0", credentials)
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)
            await channel.close()
            await behind.stop(0)

    @asynccontextmanager
    async def member(self, name: str, **how: Any) -> AsyncIterator[Any]:
        async with grpc.aio.secure_channel(f"{LOOPBACK}:{self.port}", self.identity(name, **how)) as channel:

            async def call(method: str, message: Any) -> bytes:
                answer: bytes = await channel.unary_unary(PREFIX + method)(message.SerializeToString(), timeout=10)
                return answer

            yield call

    def reached(self, method: str) -> int:
        return sum(found == method for found, _ in self.fleet.heard)


def public(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def pull(node: int = NODES["north"]) -> PullMessagesRequest:
    return PullMessagesRequest(node=Node(node_id=node))


def push(
    node: int = NODES["north"], source: int | None = None, parts: Sequence[bytes] = (b"part",)
) -> PushMessagesRequest:
    tree = ObjectTree(object_id=name(parts[0]), children=[ObjectTree(object_id=name(part)) for part in parts[1:]])
    message = Message(metadata=Metadata(src_node_id=node if source is None else source))
    return PushMessagesRequest(node=Node(node_id=node), messages_list=[message], message_object_trees=[tree])


def name(part: bytes) -> str:
    return hashlib.sha256(part).hexdigest()


def object_of(session: str, part: bytes, called: str | None = None) -> PushObjectRequest:
    node = Node(node_id=NODES["north"])
    return PushObjectRequest(node=node, session_id=session, object_id=called or name(part), object_content=part)


async def session_of(call: Any, request: PushMessagesRequest) -> str:
    return str(PushMessagesResponse.FromString(await call("PushMessages", request)).session_id)


async def reply(call: Any, parts: Sequence[bytes] = (b"part",)) -> None:
    session = await session_of(call, push(parts=parts))
    for part in parts:
        await call("PushObject", object_of(session, part))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def refused(call: Any, method: str, message: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as found:
        await call(method, message)
    return found.value


def test_an_admitted_members_calls_pass(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            await call("ActivateNode", ActivateNodeRequest(public_key=world.members["north"].tls.encode()))
            await call("PullMessages", pull())
        assert world.reached("PullMessages") == 1

    asyncio.run(run())


@pytest.mark.parametrize("state", ["pending", "revoked"])
def test_a_member_that_is_not_admitted_is_refused_at_its_next_call(
    world: World, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            await call("PullMessages", pull())
            world.members["north"] = Record(state, world.members["north"].tls)
            error = await refused(call, "PullMessages", pull())
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED
            assert state in (error.details() or "")
        assert world.reached("PullMessages") == 1

    with caplog.at_level(logging.WARNING, "causaldao.server.gateway"):
        asyncio.run(run())
    assert f"PullMessages of north refused: the member is {state}" in caplog.text


def test_a_stranger_with_a_certificate_of_no_member_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        async with world.up(), world.member("nobody", key=key) as call:
            await refused(call, "PullMessages", pull())
        assert not world.fleet.heard

    with caplog.at_level(logging.WARNING, "causaldao.server.gateway"):
        asyncio.run(run())
    assert "PullMessages of nobody refused: the member is not admitted" in caplog.text


def test_a_certificate_for_another_key_than_the_members_is_refused(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.member("north", key=ec.generate_private_key(ec.SECP384R1())) as call:
            error = await refused(call, "PullMessages", pull())
            assert "another key" in (error.details() or "")
        assert not world.fleet.heard

    asyncio.run(run())


def test_another_authoritys_certificate_does_not_get_through_tls(world: World, tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "other").mkdir()
        other = World(tmp_path / "other")
        other.keys = world.keys
        async with world.up():
            other.authority, mine = other.authority, world.authority
            key = world.keys["north"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
            request = x509.CertificateSigningRequestBuilder().subject_name(subject)
            pem = request.sign(world.keys["north"], hashes.SHA384()).public_bytes(Encoding.PEM).decode()
            forged = other.authority.issue_member("north", pem, datetime.now(UTC)).encode()
            credentials = grpc.ssl_channel_credentials(mine.certificate_pem, key, forged)
            async with grpc.aio.secure_channel(f"{LOOPBACK}:{world.port}", credentials) as channel:
                ask: Any = channel.unary_unary(PREFIX + "PullMessages")
                with pytest.raises(grpc.aio.AioRpcError) as found:
                    await ask(pull().SerializeToString(), timeout=5)
            assert found.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert not world.fleet.heard

    asyncio.run(run())


def test_an_expired_certificate_does_not_get_through_tls(world: World) -> None:
    async def run() -> None:
        past = datetime.now(UTC) - timedelta(hours=3)
        async with world.up(), world.member("north", hours=1, now=past) as call:
            error = await refused(call, "PullMessages", pull())
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert not world.fleet.heard

    asyncio.run(run())


def test_a_certificate_that_expires_on_an_open_connection_is_refused(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        past = datetime.now(UTC) - timedelta(hours=1) + timedelta(seconds=2)
        async with world.up(), world.member("north", hours=1, now=past) as call:
            await call("PullMessages", pull())
            await asyncio.sleep(2.5)
            error = await refused(call, "PullMessages", pull())
            assert "expired" in (error.details() or "")
        assert world.reached("PullMessages") == 1

    with caplog.at_level(logging.WARNING, "causaldao.server.gateway"):
        asyncio.run(run())
    assert "the certificate expired at" in caplog.text


def test_a_node_of_another_key_is_not_activated(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            theirs = ActivateNodeRequest(public_key=world.members["south"].tls.encode())
            error = await refused(call, "ActivateNode", theirs)
            assert "another key" in (error.details() or "")
        assert not world.fleet.heard

    asyncio.run(run())


def test_a_node_whose_activation_was_not_answered_is_told_its_number_again(world: World) -> None:
    async def run() -> None:
        own = ActivateNodeRequest(public_key=world.members["north"].tls.encode())
        async with world.up():
            for _ in range(3):  # its process ends and is started again as often as an answer is lost
                async with world.member("north") as call:
                    answer = ActivateNodeResponse.FromString(await call("ActivateNode", own))
                    assert answer.node_id == NODES["north"]
        assert world.fleet.active

    asyncio.run(run())


def test_a_second_process_of_a_node_that_has_spoken_is_not_activated(world: World) -> None:
    async def run() -> None:
        own = ActivateNodeRequest(public_key=world.members["north"].tls.encode())
        async with world.up(), world.member("north") as call:
            await call("ActivateNode", own)
            await call("PullMessages", pull())
            error = await refused(call, "ActivateNode", own)
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION

    asyncio.run(run())


def test_the_number_of_a_members_old_node_is_not_told_to_its_new_key(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            await call("ActivateNode", ActivateNodeRequest(public_key=world.members["north"].tls.encode()))
            other = ec.generate_private_key(ec.SECP384R1())
            world.members["north"].tls = public(other)
            async with world.member("north", key=other) as rekeyed:
                own = ActivateNodeRequest(public_key=public(other).encode())
                error = await refused(rekeyed, "ActivateNode", own)
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION

    asyncio.run(run())


def test_a_forged_source_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            await call("ActivateNode", ActivateNodeRequest(public_key=world.members["north"].tls.encode()))
            error = await refused(call, "PushMessages", push(source=NODES["south"]))
            assert "another node" in (error.details() or "")
            error = await refused(call, "PushMessages", push(node=NODES["south"]))
            assert "not its own" in (error.details() or "")
        assert world.reached("PushMessages") == 0

    with caplog.at_level(logging.WARNING, "causaldao.server.gateway"):
        asyncio.run(run())
    assert "names another node as its source" in caplog.text


def test_more_replies_than_requests_are_refused(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            world.fleet.owed = 1
            await call("PullMessages", pull())
            for _ in range(3):  # one was asked for, two may be owed from before
                await reply(call)
            for _ in range(7):
                assert (await refused(call, "PushMessages", push())).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert world.reached("PushMessages") == 3

    asyncio.run(run())


def test_a_reply_that_never_becomes_whole_reaches_nobody(world: World) -> None:
    """Flower's coordinator would wait for the part that is missing, up to two hours."""

    async def run() -> None:
        parts = [b"one", b"two", b"three"]
        async with world.up(), world.member("north") as call:
            session = await session_of(call, push(parts=parts))
            for part in parts[:2]:
                await call("PushObject", object_of(session, part))
            assert not world.fleet.heard
            await call("PushObject", object_of(session, parts[2]))
        assert (world.reached("PushMessages"), world.reached("PushObject")) == (1, 3)

    asyncio.run(run())


def test_a_reply_begun_again_starts_anew_and_goes_on_once(world: World) -> None:
    """Its first call was answered, but the answer was lost; so was that of its last part."""

    async def run() -> None:
        parts = [b"one", b"two"]
        async with world.up(), world.member("north") as call:
            old = await session_of(call, push(parts=parts))
            await call("PushObject", object_of(old, parts[0]))
            session = await session_of(call, push(parts=parts))
            assert "no reply of its own" in (
                (await refused(call, "PushObject", object_of(old, b"one"))).details() or ""
            )
            for part in (*parts, parts[1], parts[1]):
                await call("PushObject", object_of(session, part))
        assert (world.reached("PushMessages"), world.reached("PushObject")) == (1, 2)

    asyncio.run(run())


def test_a_reply_that_the_fleet_would_not_take_goes_on_when_its_last_part_comes_again(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            session = await session_of(call, push())
            world.fleet.failing = 1
            assert (
                await refused(call, "PushObject", object_of(session, b"part"))
            ).code() == grpc.StatusCode.UNAVAILABLE
            await call("PushObject", object_of(session, b"part"))
        assert world.reached("PushObject") == 1

    asyncio.run(run())


def test_a_reply_of_very_many_parts_is_refused(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            error = await refused(call, "PushMessages", push(parts=[str(k).encode() for k in range(2000)]))
            assert "parts" in (error.details() or "")

    asyncio.run(run())


def test_a_reply_over_the_bound_stops_there_in_parts_and_whole(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What it costs in memory is measured on real processes, in tests/wire."""

    async def run() -> None:
        parts = [bytes([k]) * (1 << 20) for k in range(24)]
        async with world.up(), world.member("north") as call:
            session = await session_of(call, push(parts=parts))
            for part in parts[: MAX_REPLY >> 20]:
                await call("PushObject", object_of(session, part))
            error = await refused(call, "PushObject", object_of(session, parts[MAX_REPLY >> 20]))
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            for part in parts[(MAX_REPLY >> 20) + 1 :]:
                await refused(call, "PushObject", object_of(session, part))
            whole = object_of(session, bytes(MAX_CALL_BYTES + 1))
            assert (await refused(call, "PushObject", whole)).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not world.fleet.heard

    with caplog.at_level(logging.WARNING, "causaldao.server.gateway"):
        asyncio.run(run())
    assert caplog.text.count("larger than") == 1
    assert caplog.text.count("no reply of its own") == 1  # said once, not nineteen times


def test_a_part_that_was_not_announced_is_refused(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            session = await session_of(call, push())
            for part in (object_of("another's", b"part"), object_of(session, b"other")):
                assert "no reply of its own" in ((await refused(call, "PushObject", part)).details() or "")
            forged = object_of(session, b"other", name(b"part"))
            assert "another part" in ((await refused(call, "PushObject", forged)).details() or "")
        assert not world.fleet.heard

    asyncio.run(run())


def test_methods_that_no_node_needs_do_not_exist(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            error = await refused(call, "RegisterNode", pull())
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED
        assert not world.fleet.heard

    asyncio.run(run())


def test_slow_connections_neither_stall_a_member_nor_stay(world: World) -> None:
    """Half of them say nothing at all, half begin TLS and stop."""

    async def run() -> None:
        async with world.up(), world.member("north") as call:
            slow = [socket.create_connection((LOOPBACK, world.port)) for _ in range(200)]
            hello = client_hello()
            for one in slow[::2]:
                one.sendall(hello[:40])
            began = time.monotonic()
            await call("PullMessages", pull())
            assert time.monotonic() - began < 5
            deadline = time.monotonic() + 15
            while slow and time.monotonic() < deadline:
                await asyncio.sleep(0.5)
                slow = [one for one in slow if not closed(one)]
            for one in slow:
                one.close()
            assert not slow, f"{len(slow)} connections were still held after 15 s"

    asyncio.run(run())


def test_the_relay_passes_the_error_of_the_other_side_on(world: World) -> None:
    class Failing(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            async def fail(request: bytes, context: Any) -> bytes:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such run")
                return b""

            return grpc.unary_unary_rpc_method_handler(fail)

    async def run() -> None:
        behind = grpc.aio.server()
        behind.add_generic_rpc_handlers((Failing(),))
        inner = behind.add_insecure_port(f"{LOOPBACK}:0")
        await behind.start()
        front = grpc.aio.server()
        channel = grpc.aio.insecure_channel(f"{LOOPBACK}:{inner}")
        front.add_generic_rpc_handlers((Relay(channel),))
        port = front.add_insecure_port(f"{LOOPBACK}:0")
        await front.start()
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{port}") as caller:
            ask: Any = caller.unary_unary(PREFIX + "GetRun")
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await ask(b"", timeout=5)
        await front.stop(0)
        await channel.close()
        await behind.stop(0)
        assert (found.value.code(), found.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such run")

    asyncio.run(run())
