"""A relay for Flower's Fleet API over gRPC: both ends of the wire stand behind one.

Flower's own ends take messages of 2 GiB from whoever connects, and its SuperNode cannot show a client certificate. So
the coordinator's gateway and the node's connector each pass the calls on, and each looks at them first. Calls are
passed as the bytes they are; their size is bounded before they are read. This is the one module of this floor that
knows a network, since both floors above need the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeAlias

import grpc

PREFIX = "/flwr.proto.Fleet/"
METHODS = frozenset(
    PREFIX + name
    for name in (
        "ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages", "PushMessages", "GetRun", "GetFab",
        "PushObject", "PullObject", "ConfirmMessageReceived",
    )
)  # fmt: skip
MAX_CALL_BYTES = 5 << 20
"""Of one call. Tensors travel in chunks (`CHUNK_BYTES`), so that no call comes near it."""
CHUNK_BYTES = 4 << 20
CHUNK_VARIABLE = "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"  # how Flower is told
CALL_SECONDS = 60.0  # that a call may take to arrive, and then to be answered
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_CALL_BYTES),
    ("grpc.max_send_message_length", MAX_CALL_BYTES),
    ("grpc.so_reuseport", 0),  # two servers on one port would share it in silence
)
SERVER_OPTIONS = (
    *OPTIONS,
    ("grpc.server_handshake_timeout_ms", 5000),  # a connection that does not get through TLS is closed
    ("grpc.max_concurrent_streams", 16),
    ("grpc.keepalive_time_ms", 60_000),  # whoever stops to answer is let go
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_metadata_size", 16 << 10),
)

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"  # generic for the type checker only
Handle: TypeAlias = Callable[[str, bytes, Context], Awaitable[bytes]]
Door: TypeAlias = Callable[[Context], AbstractAsyncContextManager[None]]


class Refused(Exception):
    """A call that is not passed on: what its caller is told."""

    def __init__(self, status: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Relay(grpc.GenericRpcHandler):
    """Takes Fleet calls and passes them on to ``channel``, which may be replaced at any time.

    ``handle`` is given each call (its method, without the service's name) and returns the answer, most often that of
    `forward`; None: always that. ``door`` is entered before anything of a call is read, and left when it is answered.
    """

    def __init__(
        self, channel: grpc.aio.Channel, handle: Handle | None = None, door: Door = lambda context: nullcontext()
    ) -> None:
        self.channel = channel
        self._handle = handle or self.forward
        self._door = door

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if details.method not in METHODS:
            return None
        method = details.method.removeprefix(PREFIX)

        async def answer(requests: AsyncIterator[bytes], context: Context) -> bytes:
            try:
                async with self._door(context):
                    return await self._handle(method, await _arrival(requests), context)
            except Refused as refused:
                status, reason = refused.status, str(refused)
            except grpc.aio.AioRpcError as error:
                status, reason = error.code(), error.details() or ""
            # Not `abort`: what that raises is kept with the call, and keeps megabytes of it until a collection.
            context.set_code(status)
            context.set_details(reason)
            return b""

        # Not unary: so the time that a call takes to arrive is ours to bound, and who calls is known before it is read.
        return grpc.stream_unary_rpc_method_handler(answer)

    async def forward(self, method: str, request: bytes, context: Context) -> bytes:
        """The other side's answer, or its error."""
        remaining = context.time_remaining()
        onward: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(PREFIX + method)
        return await onward(
            request,
            metadata=forwarded(context.invocation_metadata()),
            timeout=CALL_SECONDS if remaining is None else min(remaining, CALL_SECONDS),
        )


async def _arrival(requests: AsyncIterator[bytes]) -> bytes:
    messages: Any = aiter(requests)
    try:
        return bytes(await asyncio.wait_for(anext(messages), CALL_SECONDS))
    except (TimeoutError, StopAsyncIteration):
        raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "The call did not arrive in time.") from None
    finally:
        await messages.aclose()  # else it keeps what it gave until a collection


def forwarded(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    """What Flower itself put there: its authentication and version."""
    return tuple(
        (key, value) for key, value in metadata or () if key != "user-agent" and not key.startswith(("grpc-", ":"))
    )
