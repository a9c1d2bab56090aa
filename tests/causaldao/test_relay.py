"""Calls that are passed on and should not be, or not as they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from flwr.proto import fleet_pb2

from causaldao.relay import CHUNK_BYTES, MAX_CALL_BYTES, METHODS, OPTIONS, PREFIX, SERVER_OPTIONS, Relay, forwarded

LOOPBACK = "127.0.0.1"


@dataclass
class Behind:
    """What stands behind a relay: it keeps what reaches it, and answers with its name."""

    name: bytes
    heard: list[tuple[str, bytes, dict[str, Any], float | None]] = field(default_factory=list)
    wait: float = 0.0

    def handler(self) -> grpc.GenericRpcHandler:
        class Handler(grpc.GenericRpcHandler):
            def service(_, details: grpc.HandlerCallDetails) -> Any:
                async def answer(request: bytes, context: Any) -> bytes:
                    metadata = dict(context.invocation_metadata())
                    self.heard.append((details.method, request, metadata, context.time_remaining()))
                    await asyncio.sleep(self.wait)
                    return self.name

                return grpc.unary_unary_rpc_method_handler(answer)

        return Handler()


@asynccontextmanager
async def serving(handler: grpc.GenericRpcHandler, options: Any = OPTIONS) -> AsyncIterator[int]:
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@asynccontextmanager
async def relayed(behind: Behind, handle: Any = None) -> AsyncIterator[tuple[Relay, grpc.aio.Channel]]:
    """A relay before ``behind``, and a caller's channel to it."""
    async with (
        serving(behind.handler()) as inner,
        grpc.aio.insecure_channel(f"{LOOPBACK}:{inner}", options=OPTIONS) as channel,
    ):
        relay = Relay(channel, handle)
        async with (
            serving(relay, SERVER_OPTIONS) as outer,
            grpc.aio.insecure_channel(f"{LOOPBACK}:{outer}") as caller,
        ):
            yield relay, caller


async def ask(caller: grpc.aio.Channel, method: str, request: bytes = b"", **how: Any) -> bytes:
    call: Any = caller.unary_unary(PREFIX + method)
    answer: bytes = await call(request, **{"timeout": 5, **how})
    return answer


def test_a_method_that_flower_added_is_passed_on_unseen() -> None:
    """What a node needs is passed; what changes the coordinator's list of nodes, or is new, is not."""
    known = {method.name for method in fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].methods}
    passed = {name.removeprefix(PREFIX) for name in METHODS}
    assert passed <= known
    assert known - passed == {"RegisterNode", "UnregisterNode"}


@pytest.mark.parametrize("method", ["RegisterNode", "UnregisterNode", "Nonsense"])
def test_a_method_that_no_node_needs_gets_through(method: str) -> None:
    async def run() -> None:
        behind = Behind(b"one")
        async with relayed(behind) as (_, caller):
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await ask(caller, method)
            assert found.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert not behind.heard

    asyncio.run(run())


def test_a_call_arrives_altered_or_without_flowers_signature() -> None:
    async def run() -> None:
        behind = Behind(b"one")
        async with relayed(behind) as (_, caller):
            own = (("flwr-signature-bin", b"\x00\xff"), ("flwr-public-key", "abc"))
            assert await ask(caller, "GetRun", b"\x00\x01", metadata=own) == b"one"
        ((method, request, metadata, _),) = behind.heard
        assert (method, request) == (PREFIX + "GetRun", b"\x00\x01")
        assert (metadata["flwr-signature-bin"], metadata["flwr-public-key"]) == (b"\x00\xff", "abc")

    asyncio.run(run())


def test_headers_of_the_transport_are_passed_on() -> None:
    given = [("user-agent", "x"), ("grpc-timeout", "1S"), (":path", "/"), ("flwr-timestamp", "now")]
    assert forwarded(given) == (("flwr-timestamp", "now"),)
    assert forwarded(None) == ()


def test_a_call_over_the_bound_reaches_what_is_behind() -> None:
    async def run() -> None:
        behind = Behind(b"one")
        async with relayed(behind) as (_, caller):
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await ask(caller, "PushObject", bytes(MAX_CALL_BYTES + 1))
            assert found.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert not behind.heard
            await ask(caller, "PushObject", bytes(CHUNK_BYTES + 4096))  # a whole chunk and what is around it
        assert len(behind.heard) == 1

    asyncio.run(run())


def test_an_answer_over_the_bound_reaches_the_caller() -> None:
    async def run() -> None:
        async with relayed(Behind(bytes(MAX_CALL_BYTES + 1))) as (_, caller):
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await ask(caller, "PullObject")
            assert found.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(run())


def test_a_replaced_channel_is_still_used() -> None:
    async def run() -> None:
        old, new = Behind(b"old"), Behind(b"new")
        async with relayed(old) as (relay, caller), serving(new.handler()) as port:
            assert await ask(caller, "PullMessages") == b"old"
            async with grpc.aio.insecure_channel(f"{LOOPBACK}:{port}") as channel:
                relay.channel = channel
                assert await ask(caller, "PullMessages") == b"new"
        assert (len(old.heard), len(new.heard)) == (1, 1)

    asyncio.run(run())


def test_a_call_waits_longer_than_its_caller() -> None:
    async def run() -> None:
        behind = Behind(b"one", wait=30)
        async with relayed(behind) as (_, caller):
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await ask(caller, "PullMessages", timeout=0.5)
            assert found.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        (remaining,) = [left for *_, left in behind.heard]
        assert remaining is not None
        assert remaining <= 0.51  # gRPC says it in whole milliseconds

    asyncio.run(run())


def test_a_call_without_a_deadline_may_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causaldao.relay.CALL_SECONDS", 0.3)

    async def run() -> None:
        async with relayed(Behind(b"one", wait=30)) as (_, caller):
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await ask(caller, "PullMessages", timeout=None)
            assert found.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(run())


def test_a_call_that_its_handler_keeps_is_passed_on() -> None:
    """The handler decides: it may answer by itself, refuse, or pass on; it is told the method's short name."""
    methods: list[str] = []

    async def run() -> None:
        behind = Behind(b"one")

        async def handle(method: str, request: bytes, context: Any) -> bytes:
            methods.append(method)
            if request == b"bad":
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
            return b"kept" if request == b"mine" else await relay.forward(method, request, context)

        async with relayed(behind, handle) as (relay, caller):
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await ask(caller, "GetRun", b"bad")
            assert (found.value.code(), found.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, "no")
            assert await ask(caller, "GetRun", b"mine") == b"kept"
            assert await ask(caller, "GetFab", b"good") == b"one"
        assert [(method, request) for method, request, *_ in behind.heard] == [(PREFIX + "GetFab", b"good")]

    asyncio.run(run())
    assert methods == ["GetRun", "GetRun", "GetFab"]
