"""The ledger's service: what a stranger, a former member or a hostile one can send it, and what stops there."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

import causaldao.ledger
from causaldao.errors import (
    CausalDAOError,
    ConfigurationError,
    IdentityError,
    LedgerError,
    MisuseError,
    NetworkError,
)
from causaldao.ledger import ledger_pb2 as pb
from causaldao.ledger import reader as reader_module
from causaldao.ledger import service as service_module
from causaldao.ledger.merkle import verify_consistency, verify_inclusion
from causaldao.ledger.reader import FILES, SERVICE, Reader, Remote, Told, credentials
from causaldao.ledger.receipt import Pending, Receipt
from causaldao.ledger.service import CALLS_OF_ONE, MAX_REQUEST_BYTES, MESSAGE_BYTES, OPTIONS, Service, messages_of
from causaldao.server.authority import Authority
from tests.ledger.shelf import Shelf, policy, record
from tests.sockets import client_hello, closed

LOOPBACK = "127.0.0.1"
PROVE = bool(os.environ.get("CAUSALDAO_PROVE"))
FOLDER = Path(causaldao.ledger.__file__).parent
Code = grpc.StatusCode


@dataclass
class Row:
    """A member as the registry has it."""

    state: str
    tls: str


class World:
    """An authority, members' keys and folders, and a service over a shelf."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder, "test", datetime.now(UTC) - timedelta(days=1))
        self.keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("north", "south")}
        self.rows = {name: Row("admitted", public(key)) for name, key in self.keys.items()}
        self.shelf = Shelf(agreed=12)
        self.reader: Reader = self.shelf
        self.port = 0

    def pem(self, name: str, key: Any = None, **validity: Any) -> tuple[bytes, bytes, bytes]:
        """Authority, key and certificate of a member."""
        key = key or self.keys[name]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        now = validity.pop("now", datetime.now(UTC))
        issued = self.authority.issue_member(name, request.public_bytes(Encoding.PEM).decode(), now, **validity)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self.authority.certificate_pem, private, issued.encode()

    def node(self, name: str, **how: Any) -> Path:
        """A node's folder."""
        folder = self.folder / f"node of {name}"
        folder.mkdir(exist_ok=True)
        for file, data in zip(FILES, self.pem(name, **how), strict=True):
            (folder / file).write_bytes(data)
        return folder

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Service]:
        service = Service(self.reader, self.rows.get)
        pair = self.authority.issue_server([LOOPBACK, "localhost"], datetime.now(UTC))
        trust = grpc.ssl_server_credentials([pair], self.authority.certificate_pem, True)
        server, self.port = await service_module.start(service, f"{LOOPBACK}:0", trust)
        try:
            yield service
        finally:
            await server.stop(0)
            service.close()

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @asynccontextmanager
    async def channel(self, name: str = "north", **how: Any) -> AsyncIterator[grpc.aio.Channel]:
        trust = grpc.ssl_channel_credentials(*self.pem(name, **how))
        options = [("grpc.use_local_subchannel_pool", 1)]  # else two of one member share a connection
        async with grpc.aio.secure_channel(self.address, trust, options=options) as channel:
            yield channel


def public(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


async def call(channel: Any, method: str = "Checkpoint", data: bytes = b"", **options: Any) -> bytes:
    answer: bytes = await channel.unary_unary(f"/{SERVICE}/{method}")(data, **{"timeout": 10, **options})
    return answer


async def refusal(channel: Any, method: str = "Checkpoint", data: bytes = b"", **options: Any) -> tuple[Code, str]:
    with pytest.raises(grpc.aio.AioRpcError) as found:
        await call(channel, method, data, **options)
    return found.value.code(), found.value.details() or ""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def asked(world: World, question: Any, member: str = "north") -> Any:
    """What a member's reader is told over the wire."""

    async def run() -> Any:
        async with world.up():
            return await asyncio.to_thread(ask)

    def ask() -> Any:
        with Remote(world.address, credentials(world.node(member))) as remote:
            return question(remote)

    return asyncio.run(run())


# the contract


def test_the_messages_are_not_those_of_the_contract(tmp_path: Path) -> None:
    """Read by hand, so that it can be checked where the compiler is not installed."""
    text = re.sub(r"//.*", "", (FOLDER / "ledger.proto").read_text())
    messages = dict(re.findall(r"^message (\w+) \{\n(.*?)^\}", text, re.M | re.S))
    fields = {
        name: {(kind, field, int(number)) for kind, field, number in re.findall(r"(\w+) (\w+) = (\d+);", body)}
        for name, body in messages.items()
    }
    kinds = {4: "uint64", 8: "bool", 9: "string", 12: "bytes"}
    made = {
        name: {(f.message_type.name if f.message_type else kinds[f.type], f.name, f.number) for f in message.fields}
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
    }
    assert fields == made
    service = pb.DESCRIPTOR.services_by_name["Ledger"]
    assert service.full_name == SERVICE
    calls = re.findall(r"rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\)", text)
    assert calls == [
        (m.name, m.input_type.name, "stream " * m.server_streaming, m.output_type.name) for m in service.methods
    ]


def test_the_messages_were_edited_or_made_of_an_older_contract(tmp_path: Path) -> None:
    compiler = find_spec("grpc_tools")
    committed = {name: (FOLDER / name).read_text() for name in ("ledger_pb2.py", "ledger_pb2.pyi")}
    assert "source: causaldao/ledger/ledger.proto" in committed["ledger_pb2.py"]
    if compiler is not None:  # it comes with the extra "dev"
        out = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "causaldao/ledger/ledger.proto"]
        root = str(FOLDER.parent.parent if FOLDER.parent.name == "causaldao" else FOLDER.parent)
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", *out], check=True, cwd=root)
        made = {name: (tmp_path / "causaldao" / "ledger" / name).read_text() for name in committed}
        assert made == committed


# good members


def test_a_member_is_told_something_else_than_the_ledger_says(world: World) -> None:
    told, shelf = asked(world, everything), world.shelf
    head, agreed, old, entries, inclusion, consistency, receipt, waiting, lines = told
    assert (head.note, head.agreed, head.log_size) == (shelf.note(20), False, 20)
    assert (agreed.note, agreed.agreed) == (shelf.note(12), True)
    assert old.note == shelf.note(5)
    assert entries == list(shelf.entries(0, 20))
    leaves, roots = shelf.leaves(), {size: shelf.checkpoint_at(size).root for size in (7, 12, 20)}
    verify_inclusion(leaves[3], 3, 20, inclusion, roots[20])
    verify_consistency(7, roots[7], 20, roots[20], consistency)
    assert receipt == shelf.receipt(4)
    assert isinstance(receipt, Receipt)
    assert waiting == Pending(12)
    assert lines == tuple(shelf.lines(12))


def everything(reader: Reader) -> tuple[Any, ...]:
    return (
        reader.checkpoint(head=True), reader.checkpoint(), reader.checkpoint(5), list(reader.entries(0, 20)),
        reader.inclusion(3, 20), reader.consistency(7, 20), reader.receipt(4), reader.receipt(12),
        reader.cosignatures(12),
    )  # fmt: skip


def test_a_checkpoint_of_size_0_is_taken_for_no_size(world: World) -> None:
    assert asked(world, lambda reader: reader.checkpoint(0)).note == world.shelf.note(0)


def test_entries_of_several_pages_are_lost_at_the_seams(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "PAGE", 7)
    assert asked(world, lambda reader: list(reader.entries(2, 20))) == list(world.shelf.entries(2, 20))


def big(index: int, size: int) -> Told:
    return Told(index, bytes([index]) * size, "s" * 88)


@pytest.mark.parametrize(
    "sizes",
    [[5 << 20], [1, 3 << 20, 1], [MESSAGE_BYTES], [MESSAGE_BYTES - 4096 - 128], [MESSAGE_BYTES - 4096 - 127, 5],
     [300_000] * 9, [0] * 5, [700] * 4000, []],
    ids=range(9),
)  # fmt: skip
def test_a_message_is_larger_than_its_bound_or_loses_a_byte(sizes: list[int]) -> None:
    told = [big(index % 250, size) for index, size in enumerate(sizes)]
    messages = list(messages_of(iter(told)))
    assert all(0 < len(message) <= MESSAGE_BYTES for message in messages)
    assert len(messages) <= 1 + 2 * sum(sizes) // MESSAGE_BYTES + len(sizes) // 4
    joined, begun = [], b""
    for entry in (entry for message in messages for entry in pb.EntriesResponse.FromString(message).entries):
        begun += entry.record
        if not entry.goes_on:
            joined.append(Told(entry.index, begun, entry.signature))
            begun = b""
    assert joined == told


def test_a_record_that_is_larger_than_a_message_is_not_sent(world: World) -> None:
    world.shelf.records[3] = record(3, text="x" * (4 << 20))
    assert asked(world, lambda reader: [told.record for told in reader.entries(0, 20)]) == world.shelf.records
    receipt = asked(world, lambda reader: reader.receipt(3))
    assert receipt.record == world.shelf.records[3]


# what cannot be asked


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (lambda reader: reader.checkpoint(21), "20 entries"),
        (lambda reader: list(reader.entries(0, 21)), "20 entries"),
        (lambda reader: reader.inclusion(3, 21), "20 entries"),
        (lambda reader: reader.consistency(3, 21), "20 entries"),
        (lambda reader: reader.receipt(20), "20 entries"),
        (lambda reader: reader.cosignatures(21), "20 entries"),
    ],
    ids=["checkpoint", "entries", "inclusion", "consistency", "receipt", "cosignatures"],
)
def test_what_the_log_has_not_is_a_failure_of_the_server(world: World, question: Any, words: str) -> None:
    with pytest.raises(MisuseError, match=words):
        asked(world, question)


def test_more_entries_than_a_call_may_have_are_read(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.channel() as channel:
            for start, stop in ((0, 100_001), (5, 2), (0, 2**64 - 1)):
                request = pb.EntriesRequest(start=start, stop=stop).SerializeToString()
                code, details = await refusal(channel, "Entries", request)
                assert (code, "0 to 100000" in details) == (Code.INVALID_ARGUMENT, True)

    asyncio.run(run())
    assert world.shelf.asked == []


@pytest.mark.parametrize("method", [m.name for m in pb.DESCRIPTOR.services_by_name["Ledger"].methods])
def test_a_request_that_is_none_is_a_traceback(world: World, method: str) -> None:
    async def run() -> None:
        async with world.up(), world.channel() as channel:
            for data in (b"\xff" * 9, b"\x0a\xff", b"\x08"):
                code, details = await refusal(channel, method, data)
                assert (code, "the request is no" in details.lower()) == (Code.INVALID_ARGUMENT, True)

    asyncio.run(run())
    assert world.shelf.asked == []


def test_a_method_that_no_contract_has_is_answered(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.channel() as channel:
            assert (await refusal(channel, "Append"))[0] == Code.UNIMPLEMENTED

    asyncio.run(run())


# strangers


async def _stranger(world: World, trust: grpc.ChannelCredentials) -> None:
    async with grpc.aio.secure_channel(world.address, trust) as channel:
        code, _ = await refusal(channel, timeout=3)
        assert code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)


def test_a_caller_without_a_certificate_of_the_authority_gets_through_tls(world: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other")
    other.keys = world.keys
    past = datetime.now(UTC) - timedelta(hours=3)
    root = world.authority.certificate_pem

    async def run() -> None:
        async with world.up():
            for shown in ((), other.pem("north")[1:], world.pem("north", now=past, hours=1)[1:]):
                await _stranger(world, grpc.ssl_channel_credentials(root, *shown))

    asyncio.run(run())
    assert world.shelf.asked == []


@pytest.mark.parametrize(
    ("row", "words"),
    [(None, "not admitted"), ("pending", "pending"), ("revoked", "revoked"), ("another's key", "another key")],
)
def test_somebody_who_is_no_member_now_reads_the_ledger(
    world: World, row: str | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A certificate outlives an admission by up to a day, a connection too."""

    async def run() -> None:
        async with world.up(), world.channel() as channel:
            await call(channel)
            admitted, before = world.rows.pop("north"), list(world.shelf.asked)
            if row == "another's key":
                world.rows["north"] = Row("admitted", world.rows["south"].tls)
            elif row is not None:
                world.rows["north"] = Row(row, admitted.tls)
            for method in ("Checkpoint", "Entries", "Receipt"):
                code, details = await refusal(channel, method)
                assert (code, words in details) == (Code.UNAUTHENTICATED, True)
            assert world.shelf.asked == before

    with caplog.at_level(logging.WARNING, "causaldao.ledger.service"):
        asyncio.run(run())
    assert "Checkpoint of ipv4:127.0.0.1" in caplog.text


def test_a_certificate_that_expires_on_an_open_connection_is_enough(world: World) -> None:
    async def run() -> None:
        past = datetime.now(UTC) - timedelta(hours=1) + timedelta(seconds=1.5)
        async with world.up(), world.channel(now=past, hours=1) as channel:
            await call(channel)
            await asyncio.sleep(1.6)
            code, details = await refusal(channel)
            assert (code, "expired" in details) == (Code.UNAUTHENTICATED, True)

    asyncio.run(run())
    assert world.shelf.asked == ["checkpoint"]


# too much, too slow


def test_a_request_over_the_bound_is_read(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.channel() as channel:
            for size in (MAX_REQUEST_BYTES + 1, 3 << 20):
                assert (await refusal(channel, data=b"x" * size))[0] == Code.RESOURCE_EXHAUSTED
            metadata = [("x", "y" * (64 << 10))]
            assert (await refusal(channel, metadata=metadata))[0] == Code.RESOURCE_EXHAUSTED
            await call(channel)

    asyncio.run(run())
    assert world.shelf.asked == ["checkpoint"]


def test_calls_that_send_nothing_keep_their_places(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One member opens all that it may, on two connections; another is served meanwhile, and so is it afterwards."""
    monkeypatch.setattr(service_module, "ARRIVAL_SECONDS", 0.7)

    async def run() -> None:
        async with world.up(), world.channel() as first, world.channel() as second, world.channel("south") as south:
            silent: list[Any] = [first.stream_unary(f"/{SERVICE}/Checkpoint")(timeout=20) for _ in range(CALLS_OF_ONE)]
            began = time.monotonic()
            await asyncio.sleep(0.3)
            code, details = await refusal(second)
            assert (code, f"{CALLS_OF_ONE} calls open" in details) == (Code.RESOURCE_EXHAUSTED, True)
            await call(south)
            assert world.shelf.asked == ["checkpoint"]
            assert [await one.code() for one in silent] == [Code.DEADLINE_EXCEEDED] * CALLS_OF_ONE
            assert time.monotonic() - began < 10  # not the caller's own patience
            await call(second)

    asyncio.run(run())


def test_all_places_are_taken_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "CONCURRENT", 3)
    monkeypatch.setattr(service_module, "ARRIVAL_SECONDS", 0.7)

    async def run() -> None:
        async with world.up(), world.channel() as channel, world.channel("south") as south:
            silent: list[Any] = [channel.stream_unary(f"/{SERVICE}/Checkpoint")(timeout=20) for _ in range(3)]
            await asyncio.sleep(0.3)
            assert (await refusal(south))[0] == Code.RESOURCE_EXHAUSTED
            assert [await one.code() for one in silent] == [Code.DEADLINE_EXCEEDED] * 3
            await call(south)

    asyncio.run(run())


class Endless(Shelf):
    """A log that has more than anybody takes."""

    given = 0

    def entries(self, start: int, stop: int) -> Iterator[Told]:
        for index in range(start, stop):
            self.given += 1
            yield big(index % 250, 100_000)


async def drained(answer: Any) -> None:
    while await answer.read() is not grpc.aio.EOF:
        pass


def test_an_answer_that_nobody_takes_is_read_into_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "CALL_SECONDS", 1.0)
    world.reader = endless = Endless()

    async def run() -> None:
        async with world.up(), world.channel() as channel:
            request = pb.EntriesRequest(start=0, stop=100_000).SerializeToString()
            ask: Any = channel.unary_stream(f"/{SERVICE}/Entries")
            answer = ask(request, timeout=20)
            await answer.read()
            await asyncio.sleep(2.0)
            assert endless.given < 400  # of 10 GB, what fits into the windows of the connection
            given = endless.given
            await asyncio.sleep(0.3)
            assert endless.given == given
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await drained(answer)
            assert found.value.code() == Code.DEADLINE_EXCEEDED
            await call(channel)

    asyncio.run(run())


def test_a_reader_that_is_slow_stalls_the_others_for_ever(world: World) -> None:
    """The threads are the service's own: a few calls wait for the database, the process goes on."""
    released = threading.Event()

    class Slow(Shelf):
        def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
            released.wait(10)
            return super().inclusion(index, size)

    world.reader = Slow()

    async def run() -> None:
        async with world.up(), world.channel() as channel:
            request = pb.InclusionRequest(index=1, size=2).SerializeToString()
            slow = [asyncio.ensure_future(call(channel, "Inclusion", request)) for _ in range(3)]
            await asyncio.sleep(0.2)
            await call(channel)
            await asyncio.wait_for(asyncio.to_thread(lambda: None), 1)
            released.set()
            await asyncio.gather(*slow)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("fault", "code"),
    [(LedgerError("secret table"), Code.UNAVAILABLE), (ZeroDivisionError("secret detail"), Code.INTERNAL)],
)
def test_a_fault_of_ours_is_told_or_ends_the_service(
    world: World, fault: Exception, code: Code, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise fault

    async def run() -> None:
        async with world.up(), world.channel() as channel:
            with monkeypatch.context() as patch:
                patch.setattr(world.shelf, "checkpoint", fail)
                status, details = await refusal(channel)
                assert (status, "secret" in details) == (code, False)
            await call(channel)

    asyncio.run(run())
    assert "secret" in caplog.text


def test_slow_connections_neither_stall_a_member_nor_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them say nothing at all, half begin TLS and stop."""
    assert ("grpc.server_handshake_timeout_ms", 5_000) in OPTIONS
    patience, seconds = (5_000, 15.0) if PROVE else (1_500, 5.0)
    quick = tuple((k, patience if k == "grpc.server_handshake_timeout_ms" else v) for k, v in OPTIONS)
    monkeypatch.setattr(service_module, "OPTIONS", quick)

    async def run() -> None:
        async with world.up(), world.channel() as channel:
            slow = [socket.create_connection((LOOPBACK, world.port)) for _ in range(200)]
            hello = client_hello()
            for one in slow[::2]:
                one.sendall(hello[:40])
            began = time.monotonic()
            await call(channel)
            assert time.monotonic() - began < 5
            while slow and time.monotonic() < began + seconds:
                await asyncio.sleep(0.2)
                slow = [one for one in slow if not closed(one)]
            for one in slow:
                one.close()
            assert not slow, f"{len(slow)} connections were still held after {seconds} s"

    asyncio.run(run())


_CHILD = """
import asyncio, sys
from pathlib import Path
from tests.ledger.test_service import World

async def run():
    world = World(Path(sys.argv[1]))
    async with world.up():
        print(world.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(run())
"""


@pytest.mark.parametrize("how", ["no TLS", "a hello without an end", "TLS without a certificate"])
def test_what_a_stranger_sends_is_kept_in_memory(tmp_path: Path, how: str) -> None:
    """400 MB from somebody who shows no certificate; the service is a process of its own, so that it can be weighed."""
    total = (400 if PROVE else 60) << 20
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        port = int(child.stdout.readline())
        flood(port, how, 1 << 20)
        before = resident(child.pid)
        flood(port, how, total)
        grown = peak(child.pid) - before
        child.stdin.close()
    assert child.returncode == 0
    assert grown < 64 << 20, f"{grown >> 20} MiB more for {total >> 20} MiB sent"


def flood(port: int, how: str, total: int) -> None:
    """Send so many bytes, on as many connections as the other side makes necessary."""
    chunk = endless_hello(1 << 20) if how == "a hello without an end" else b"x" * (1 << 20)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    sent = 0
    while sent < total:
        with ExitStack() as open_:
            stream = open_.enter_context(socket.create_connection((LOOPBACK, port)))
            stream.settimeout(5)
            with suppress(OSError):  # it closes the connection: to the next
                if how == "TLS without a certificate":
                    stream = open_.enter_context(context.wrap_socket(stream))
                while sent < total:
                    sent += stream.send(chunk)


def endless_hello(size: int) -> bytes:
    """TLS records that are pieces of one ClientHello of 16 MiB, the most that its header can say."""
    body = b"\x01\xff\xff\xff" + b"\x00" * size
    pieces = (body[start : start + 16_384] for start in range(0, len(body), 16_384))
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def resident(pid: int) -> int:
    return _status(pid, "VmRSS")


def peak(pid: int) -> int:
    return _status(pid, "VmHWM")


def _status(pid: int, field: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    assert found
    return int(found[1]) << 10


# the reader's end


def test_a_coordinator_of_another_federation_is_read(world: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other")

    async def run() -> None:
        async with world.up():
            node = other.node("north")
            (node / "tls.pem").write_bytes(world.pem("north")[1])
            (node / "certificate.pem").write_bytes(world.pem("north")[2])
            with (
                Remote(world.address, credentials(node)) as remote,
                pytest.raises(IdentityError, match="not the coord"),
            ):
                await asyncio.to_thread(remote.checkpoint)

    asyncio.run(run())


def test_nobody_at_the_address_or_no_node_is_a_traceback(world: World, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    with Remote(f"{LOOPBACK}:{port}", credentials(world.node("north"))) as remote, pytest.raises(NetworkError):
        remote.checkpoint()
    with pytest.raises(IdentityError, match="node that has joined"):
        credentials(tmp_path / "nowhere")


class Hostile(Shelf):
    """A coordinator that sends what it likes."""

    def entries(self, start: int, stop: int) -> Iterator[Told]:
        kind = stop % 4
        if kind == 0:
            yield big(1, 6 << 20)
        else:
            yield from (big(index, 10) for index in {1: [], 2: [1, 0], 3: range(200)}[kind])

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        return (b"x" * 32,) * 65


@pytest.mark.parametrize(
    ("stop", "words"), [(1, "0 of 1"), (2, "entry 1 in place of 0"), (3, "entry 3 in place of 3"), (4, "more than")]
)
def test_a_hostile_coordinator_fills_the_readers_memory(world: World, stop: int, words: str) -> None:
    world.reader = Hostile()
    with pytest.raises(LedgerError, match=words):
        asked(world, lambda reader: list(reader.entries(0, stop)))


def test_a_hostile_coordinators_proof_is_endless(world: World) -> None:
    world.reader = Hostile()
    with pytest.raises(LedgerError, match="65 hashes"):
        asked(world, lambda reader: reader.consistency(0, 1))


def test_what_a_coordinator_says_moves_the_readers_cursor(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise MisuseError("\x1b[2J\nerror: all is well")

    monkeypatch.setattr(world.shelf, "checkpoint", refuse)
    with pytest.raises(CausalDAOError) as found:
        asked(world, lambda reader: reader.checkpoint())
    assert not {"\x1b", "\n"} & set(found.value.message)


def test_a_port_that_is_taken(world: World) -> None:
    async def run(address: str) -> None:
        service = Service(world.shelf, world.rows.get)
        pair = world.authority.issue_server([LOOPBACK], datetime.now(UTC))
        trust = grpc.ssl_server_credentials([pair], world.authority.certificate_pem, True)
        with pytest.raises(ConfigurationError, match=address):
            await service_module.start(service, address, trust)

    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        asyncio.run(run(f"{LOOPBACK}:{taken.getsockname()[1]}"))


def test_a_receipt_over_the_wire_does_not_verify(world: World) -> None:
    from causaldao.ledger.verify import verify_receipt

    receipt = asked(world, lambda reader: reader.receipt(4))
    assert verify_receipt(receipt.text, receipt.record, policy()).index == 4
