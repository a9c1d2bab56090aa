"""The ledger's service: every admitted member may read the log at any time, over gRPC with TLS in both directions.

``ledger.proto`` is the contract. This file is at the ledger's edge and knows nothing of a federation's studies: it is
given a reader of the log, and a look at who is admitted now. Nobody but an admitted member reaches either.

It listens to strangers, so everything is bounded before it costs anything: a connection has 5 seconds for its
handshake, which needs a certificate of the federation's authority; a call has 5 seconds to arrive and at most 4 KiB, of
which nothing is read before its caller is known; a member has so many calls at once, and all members together; an
answer that is not taken is given up, in time. The log is read in threads of its own: whoever reads a lot hinders other
readers, not the coordinator.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from google.protobuf.message import DecodeError, Message

from causaldao.errors import CausalDAOError, ConfigurationError, MisuseError
from causaldao.ledger import ledger_pb2 as pb
from causaldao.ledger.reader import MAX_ENTRIES, MAX_RESPONSE_BYTES, SERVICE, Reader, Told
from causaldao.ledger.receipt import Pending
from causaldao.logs import Sparingly, visible

_LOG = logging.getLogger(__name__)
MAX_REQUEST_BYTES = 4 << 10
MESSAGE_BYTES = 1 << 20  # of `Entries`
ARRIVAL_SECONDS = 5.0  # that a request may take
CALL_SECONDS = 60.0  # that a call may take, its answer taken
CONCURRENT = 64
CALLS_OF_ONE = 8
THREADS = 4
OPTIONS = (
    ("grpc.so_reuseport", 0),  # two servers on one port would share it in silence
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_concurrent_streams", CALLS_OF_ONE),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
)
_PIECE_BYTES = MESSAGE_BYTES - (4 << 10)  # of records in one message, with room for what stands around them
_ENTRY_BYTES = 128  # what stands around a record: index, signature, lengths
_UNSAID = "The ledger cannot be read now: try again later, or ask the operator to look at the coordinator's log."
_Status: TypeAlias = grpc.StatusCode
_Result = TypeVar("_Result")
_Request = TypeVar("_Request", bound=Message)

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"  # generic for the type checker only


class Holder(Protocol):
    """What is asked of a member's record: ``tls`` is the public key (PEM) of its certificates."""

    @property
    def state(self) -> str: ...

    @property
    def tls(self) -> str: ...


class Service:
    """Answers members' calls. ``member`` finds a member by name, None if there is none; it and the reader are called in
    threads. `close` it when its server has stopped."""

    def __init__(
        self,
        reader: Reader,
        member: Callable[[str], Holder | None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._reader = reader
        self._member = member
        self._now = now
        self._calls: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ledger")
        self._may_say = Sparingly()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Put the service on a server that has not started."""
        answers: dict[str, Callable[[bytes], Message]] = {
            "Checkpoint": self._checkpoint, "Inclusion": self._inclusion, "Consistency": self._consistency,
            "Receipt": self._receipt, "Cosignatures": self._cosignatures,
        }  # fmt: skip
        # Not unary: so who calls is known before the request is read, and its time to arrive is ours to bound.
        handlers: dict[str, Any] = {
            method: grpc.stream_unary_rpc_method_handler(self._unary(method, answer))
            for method, answer in answers.items()
        }
        handlers["Entries"] = grpc.stream_stream_rpc_method_handler(self._entries)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    # answers, in a thread

    def _checkpoint(self, data: bytes) -> Message:
        request = _parsed(data, pb.CheckpointRequest)
        size = request.size if request.WhichOneof("which") == "size" else None
        shown = self._reader.checkpoint(size, head=request.head)
        return pb.CheckpointResponse(note=shown.note, agreed=shown.agreed, log_size=shown.log_size)

    def _inclusion(self, data: bytes) -> Message:
        request = _parsed(data, pb.InclusionRequest)
        return pb.Hashes(hashes=self._reader.inclusion(request.index, request.size))

    def _consistency(self, data: bytes) -> Message:
        request = _parsed(data, pb.ConsistencyRequest)
        return pb.Hashes(hashes=self._reader.consistency(request.old_size, request.new_size))

    def _receipt(self, data: bytes) -> Message:
        found = self._reader.receipt(_parsed(data, pb.ReceiptRequest).index)
        if isinstance(found, Pending):
            return pb.ReceiptResponse(pending=pb.Pending(agreed_size=found.agreed_size))
        return pb.ReceiptResponse(receipt=pb.Receipt(proof=found.text, record=found.record))

    def _cosignatures(self, data: bytes) -> Message:
        request = _parsed(data, pb.CosignaturesRequest)
        return pb.CosignaturesResponse(lines=self._reader.cosignatures(request.size))

    def _wanted(self, data: bytes) -> Iterator[Told]:
        request = _parsed(data, pb.EntriesRequest)
        if not 0 <= request.stop - request.start <= MAX_ENTRIES:
            _refuse(
                _Status.INVALID_ARGUMENT,
                f"entries {request.start} up to {request.stop} were asked for: a call has 0 to {MAX_ENTRIES}, ask "
                "again for the others.",
            )
        return self._reader.entries(request.start, request.stop)

    # calls

    def _unary(self, method: str, answer: Callable[[bytes], Message]) -> Callable[..., Any]:
        async def call(requests: AsyncIterator[bytes], context: Context) -> bytes:
            with self._outcome(method, context) as outcome:
                async with asyncio.timeout(CALL_SECONDS):
                    with self._place(context) as pem:
                        request = await self._admit(pem, requests)
                        outcome.append((await self._work(answer, request)).SerializeToString())
            return outcome[0] if outcome else b""

        return call

    async def _entries(self, requests: AsyncIterator[bytes], context: Context) -> None:
        with self._outcome("Entries", context):
            async with asyncio.timeout(CALL_SECONDS):
                with self._place(context) as pem:
                    request = await self._admit(pem, requests)
                    messages = messages_of(await self._work(self._wanted, request))
                    while message := await self._work(next, messages, b""):
                        await context.write(message)  # waits until the caller takes it

    async def _admit(self, pem: bytes, requests: AsyncIterator[bytes]) -> bytes:
        """A call's request, read once its caller is known."""
        await self._work(self._check_admitted, pem)
        arriving: Any = aiter(requests)
        try:
            return bytes(await asyncio.wait_for(anext(arriving), ARRIVAL_SECONDS))
        except (TimeoutError, StopAsyncIteration):
            _refuse(_Status.DEADLINE_EXCEEDED, f"no whole request arrived within {ARRIVAL_SECONDS:g} seconds.")

    def _check_admitted(self, pem: bytes) -> None:
        certificate = x509.load_pem_x509_certificate(pem)
        name = _name_in(certificate)
        if not certificate.not_valid_before_utc <= self._now() <= certificate.not_valid_after_utc:
            # TLS looked when the connection was made, which may be a while ago
            _refuse(
                _Status.UNAUTHENTICATED, f"the certificate expired at {certificate.not_valid_after_utc.isoformat()}."
            )
        member = self._member(name)
        if member is None or member.state != "admitted":
            state = "not admitted" if member is None else member.state
            _refuse(_Status.UNAUTHENTICATED, f"{visible(name)!r} is {state}: only admitted members read the ledger.")
        key = certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        if member.tls.encode().strip() != key.strip():
            _refuse(_Status.UNAUTHENTICATED, f"the certificate is for another key than the one of {name!r}.")

    @contextmanager
    def _place(self, context: Context) -> Iterator[bytes]:
        """The caller's certificate (PEM), and one of its places for as long as the call lasts."""
        pem = bytes(next(iter(context.auth_context().get("x509_pem_cert", ())), b""))
        if not pem:
            _refuse(_Status.UNAUTHENTICATED, "no certificate was shown.")
        name = _name_in(x509.load_pem_x509_certificate(pem))
        if self._calls[name] >= CALLS_OF_ONE:
            _refuse(_Status.RESOURCE_EXHAUSTED, f"{visible(name)!r} has {CALLS_OF_ONE} calls open: end one first.")
        self._calls[name] += 1
        try:
            yield pem
        finally:
            self._calls[name] -= 1
            if not self._calls[name]:
                del self._calls[name]

    async def _work(self, act: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, act, *arguments)

    @contextmanager
    def _outcome(self, method: str, context: Context) -> Iterator[list[bytes]]:
        """Gives a list for the answer; what goes wrong becomes the call's status."""
        status, reason = _Status.OK, ""
        try:
            yield []
        except _Refused as refused:
            status, reason = refused.status, str(refused)
        except MisuseError as error:
            status, reason = _Status.OUT_OF_RANGE, error.message
        except TimeoutError:
            status, reason = _Status.DEADLINE_EXCEEDED, f"The call took more than {CALL_SECONDS:g} seconds."
        except CausalDAOError as error:
            status, reason = _Status.UNAVAILABLE, _UNSAID
            if self._may_say(method, error.message):
                _LOG.error("%s failed: %s", method, visible(error.message))
        except Exception as error:
            # Whatever a caller's bytes may cause ends with this call, never with the service.
            status, reason = _Status.INTERNAL, _UNSAID
            if self._may_say(method, type(error).__name__):
                _LOG.exception("%s failed", method)
        if status != _Status.OK:
            # Not `abort`: what that raises is kept with the call until a collection, and what it holds too.
            context.set_code(status)
            context.set_details(reason)
            self._say(method, context, status, reason)

    def _say(self, method: str, context: Context, status: grpc.StatusCode, reason: str) -> None:
        """One line for each address, method and kind of fault in a while: a caller must not fill the log."""
        peer = visible(str(context.peer()))
        if self._may_say(peer.rpartition(":")[0], method, status.name):
            _LOG.warning("%s of %s refused: %s", method, peer, reason)


async def start(service: Service, address: str, credentials: grpc.ServerCredentials) -> tuple[grpc.aio.Server, int]:
    """A started server and its port. ``credentials`` must demand a client's certificate of the federation's authority.

    Raises
    ------
    ConfigurationError
        the address cannot be listened on.
    """
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=CONCURRENT)
    service.add_to(server)
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigurationError(
            f"The ledger's service cannot listen on {address} ({error}): stop what holds it, or change ledger_port in "
            "coordinator.toml (0: no such service)."
        ) from error
    await server.start()
    return server, port


def messages_of(entries: Iterator[Told]) -> Iterator[bytes]:
    """Entries as messages of at most `MESSAGE_BYTES`; a record that is larger goes in pieces."""
    waiting = pb.EntriesResponse()
    room = _PIECE_BYTES
    for entry in entries:
        record = entry.record
        while _ENTRY_BYTES + len(record) > room:
            if room == _PIECE_BYTES:
                piece, record = record[: room - _ENTRY_BYTES], record[room - _ENTRY_BYTES :]
                waiting.entries.add(index=entry.index, record=piece, goes_on=True)
            yield waiting.SerializeToString()
            waiting.Clear()
            room = _PIECE_BYTES
        waiting.entries.add(index=entry.index, record=record, signature=entry.signature)
        room -= _ENTRY_BYTES + len(record)
    if waiting.entries:
        yield waiting.SerializeToString()


class _Refused(Exception):
    """A call that is not answered: what its caller is told."""

    def __init__(self, status: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason[0].upper() + reason[1:])
        self.status = status


def _refuse(status: grpc.StatusCode, reason: str) -> NoReturn:
    raise _Refused(status, reason)


def _parsed(data: bytes, kind: type[_Request]) -> _Request:
    try:
        return kind.FromString(data)
    except DecodeError:
        _refuse(_Status.INVALID_ARGUMENT, f"the request is no {kind.DESCRIPTOR.name}.")


def _name_in(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""
