"""A proxy with faults between nodes and the coordinator's gateway: what networks do, by a seed.

Two layers. Bytes: connections are cut after a random number of them. Calls: a call is lost before it arrives, arrives
and its answer is lost, arrives twice, or comes late. It holds the authority's key, as only a test can, and so stands in
the middle of mutual TLS; each node's calls go on under the node's own certificate.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from causaldao.client.connector import Identity
from causaldao.relay import OPTIONS, PREFIX, SERVER_OPTIONS, Context, Relay, forwarded
from causaldao.server.authority import Authority
from causaldao.simulations.deployment import LOOPBACK, now


@dataclass(frozen=True)
class Rates:
    """Probabilities for a call; ``cut`` is the mean number of bytes after which a connection is cut."""

    lose_request: float = 0.04
    lose_answer: float = 0.04
    twice: float = 0.06
    late: float = 0.10
    longest: float = 1.5
    cut: float = 400_000.0


@dataclass
class FaultProxy:
    """Listens on ``port``; ``with`` it, in a thread of its own. ``done`` counts the faults that were made."""

    port: int
    gateway: int
    authority: Authority
    nodes: Path
    seed: int
    rates: Rates = field(default_factory=Rates)
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._started = threading.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(15)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        key, chain = self.authority.issue_server([LOOPBACK, "localhost"], now())
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((Relay(grpc.aio.insecure_channel(LOOPBACK), _Faulty(self)),))
        inner = server.add_secure_port(
            f"{LOOPBACK}:0", grpc.ssl_server_credentials([(key, chain)], self.authority.certificate_pem, True)
        )
        await server.start()
        front = await asyncio.start_server(lambda r, w: self._pump(r, w, inner), LOOPBACK, self.port)
        self._started.set()
        await self._stop.wait()
        front.close()
        await server.stop(0)
        for channel in self._channels.values():
            await channel.close()
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inner: int) -> None:
        """Bytes both ways until either side ends, or the connection is cut."""
        left = [self._random.expovariate(1 / self.rates.cut)]
        task = asyncio.current_task()
        if task is not None:
            self._pumps.add(task)
        try:
            onward, answer = await asyncio.open_connection(LOOPBACK, inner)
        except OSError:
            writer.close()
            return
        self._open |= {writer, answer}

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(1 << 14):
                    left[0] -= len(data)
                    if left[0] < 0:
                        self.done["cut"] += 1
                        break
                    sink.write(data)
                    await sink.drain()
            for end in (writer, answer):
                with suppress(OSError):
                    end.transport.abort()

        await asyncio.gather(copy(reader, answer), copy(onward, writer))
        self._open -= {writer, answer}

    def channel(self, name: str) -> grpc.aio.Channel:
        """To the gateway, as that node."""
        if name not in self._channels:
            credentials = Identity.read(self.nodes / name).credentials()
            self._channels[name] = grpc.aio.secure_channel(f"{LOOPBACK}:{self.gateway}", credentials, options=OPTIONS)
        return self._channels[name]

    def happens(self, fault: str) -> bool:
        happened = self._random.random() < float(getattr(self.rates, fault))
        self.done[fault] += happened
        return happened

    def delay(self) -> float:
        return self._random.uniform(0, self.rates.longest)


class _Faulty:
    """Loses, repeats and delays calls."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    async def __call__(self, method: str, request: bytes, context: Context) -> bytes:
        proxy = self._proxy
        (name,) = (value.decode() for value in context.auth_context()["x509_common_name"])
        if proxy.happens("late"):
            await asyncio.sleep(proxy.delay())
        if proxy.happens("lose_request"):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "lost on the way")
        response = b""
        for _ in range(2 if proxy.happens("twice") else 1):
            response = await self._call(proxy.channel(name), method, request, context)
        if proxy.happens("lose_answer"):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return response

    @staticmethod
    async def _call(channel: grpc.aio.Channel, method: str, request: bytes, context: Context) -> bytes:
        onward: Any = channel.unary_unary(PREFIX + method)
        try:
            answer: bytes = await onward(request, metadata=forwarded(context.invocation_metadata()), timeout=30)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        return answer
