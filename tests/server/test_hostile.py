"""What a hostile member's program, an operator's bad luck, or a hostile coordinator can still break."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node

from causaldao import children
from causaldao.children import Child, born
from causaldao.client import service
from causaldao.client.connector import Connector
from causaldao.client.launcher import _Bounded, _Counts, changed
from causaldao.errors import CausalDAOError, IdentityError, LedgerError, NetworkError, RefusedError
from causaldao.files import write_text
from causaldao.objects import MAX_OBJECTS, check_objects, unpack
from causaldao.relay import PREFIX, Refused
from causaldao.server import daemon as daemon_module
from causaldao.server import gateway as gateway_module
from causaldao.server.daemon import Daemon
from causaldao.server.gateway import MAX_CALLS, check_reply
from causaldao.server.home import Home
from causaldao.server.registry import Registry
from tests.server import homes
from tests.server.test_gateway import NODES, World, object_of, pull, push, refused, session_of

NORTH = NODES["north"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    found = World(tmp_path)
    found.check = check_reply
    return found


# objects


def stored(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(content).hexdigest(), content


def record(parts: dict[str, bytes], kind: str, children: list[str], body: bytes) -> str:
    name, content = stored(kind, children, body)
    parts[name] = content
    return name


def bomb(repeats: int, chunk: bytes) -> tuple[str, dict[str, bytes]]:
    """A message of little more than one chunk, whose one array names it so many times."""
    parts: dict[str, bytes] = {}
    piece = ArrayChunk(memoryview(chunk))
    parts[piece.object_id] = piece.deflate()
    said = {"dtype": "int64", "shape": [1], "stype": "raw.le", "arraychunk_ids": [0] * repeats}
    array = record(parts, "Array", [piece.object_id], json.dumps(said).encode())
    arrays = record(parts, "ArrayRecord", [array], json.dumps({"x": array}).encode())
    records = record(parts, "RecordDict", [arrays], json.dumps({"tensors": arrays}).encode())
    return record(parts, "Message", [records], ProtoMessage(metadata=inside()).SerializeToString()), parts


def inside(**changes: Any) -> Metadata:
    said = {
        "run_id": 1, "src_node_id": NORTH, "dst_node_id": 1, "reply_to_message_id": "asked", "message_type": "train",
        "group_id": "0", "ttl": 60.0, "created_at": 1.0,
    }  # fmt: skip
    return Metadata(**{**said, **changes})


def a_reply(**changes: Any) -> tuple[str, dict[str, bytes]]:
    """An honest reply's objects, or one whose inside says something else."""
    parts: dict[str, bytes] = {}

    def add(one: Any) -> None:
        for child in (one.children or {}).values():
            add(child)
        parts[one.object_id] = one.deflate()

    array = Array(dtype="int64", shape=(2,), stype="raw.le", data=bytes(16))
    content = RecordDict({"c": ConfigRecord({"envelope": b"signed"}), "tensors": ArrayRecord({"x": array})})
    add(content)
    body = ProtoMessage(metadata=inside(**changes)).SerializeToString()
    return record(parts, "Message", [content.object_id], body), parts


def announced(root: str, parts: dict[str, bytes]) -> PushMessagesRequest:
    tree = ObjectTree(object_id=root, children=[ObjectTree(object_id=name) for name in parts if name != root])
    outside = inside(message_id=root)
    return PushMessagesRequest(
        node=Node(node_id=NORTH), messages_list=[ProtoMessage(metadata=outside)], message_object_trees=[tree]
    )


async def send(call: Any, root: str, parts: dict[str, bytes]) -> str:
    """What the gateway said of a whole reply: empty if it was taken."""
    session = await session_of(call, announced(root, parts))
    for content in parts.values():
        try:
            await call("PushObject", object_of(session, content))
        except grpc.aio.AioRpcError as error:
            return error.details() or "?"
    return ""


def test_an_honest_message_is_not_unpacked() -> None:
    root, parts = a_reply()
    found = unpack(root, parts, 1 << 20)
    assert found.metadata.reply_to_message_id == "asked"
    assert found.content.array_records["tensors"]["x"].data == bytes(16)


def test_a_megabyte_unpacks_to_gigabytes() -> None:
    """Measured before: one reply of 1 MB took 4 GB of the process of the study, as many as it liked."""
    root, parts = bomb(5000, bytes(1 << 20))
    assert sum(map(len, parts.values())) < 2 << 20
    with pytest.raises(IdentityError, match="unpacks to more than"):
        check_objects(root, parts, 32 << 20)


def test_few_objects_are_many_by_the_ways_to_them() -> None:
    """Every array record names the same array: Flower would walk to it each time."""
    root, parts = a_reply()
    arrays = next(name for name, content in parts.items() if content.startswith(b"Array "))
    many = [record(parts, "ArrayRecord", [arrays], json.dumps({str(k): arrays}).encode()) for k in range(40)]
    records = record(parts, "RecordDict", many, b"{}")
    root = record(parts, "Message", [records], ProtoMessage(metadata=inside()).SerializeToString())
    with pytest.raises(IdentityError, match="more than 100 objects"):
        check_objects(root, parts, 1 << 20, 100)


def damaged(how: str) -> tuple[str, dict[str, bytes]]:
    root, parts = a_reply()
    if how == "missing":
        del parts[next(name for name, content in parts.items() if content.startswith(b"ArrayChunk"))]
    elif how == "unnamed":
        record(parts, "ConfigRecord", [], b"")
    elif how == "kind":
        chunk = next(name for name, content in parts.items() if content.startswith(b"ArrayChunk"))
        parts = {chunk: parts[chunk]}
        root = record(parts, "Message", [chunk], b"")
    elif how == "nonsense":
        parts = {}
        root = record(parts, "Pickle", [], b"")
    elif how == "head":
        root, parts = hashlib.sha256(b"no head").hexdigest(), {hashlib.sha256(b"no head").hexdigest(): b"no head"}
    elif how == "body":
        parts = {}
        config = record(parts, "ConfigRecord", [], b"\xff\xff\xff")
        records = record(parts, "RecordDict", [config], json.dumps({"c": config}).encode())
        root = record(parts, "Message", [records], b"")
    elif how == "empty":
        parts = {}
        root = record(parts, "Message", [], b"")  # neither content nor an error
    return root, parts


DAMAGES = ("missing", "unnamed", "kind", "nonsense", "head", "body", "empty")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_message_raises_what_flower_likes(how: str) -> None:
    with pytest.raises(IdentityError):
        unpack(*damaged(how), 1 << 20)


# the gateway


def test_an_honest_reply_does_not_pass(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            assert await send(call, *a_reply()) == ""
        assert world.reached("PushMessages") == 1

    asyncio.run(run())


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "missing"])
def test_a_reply_that_cannot_be_unpacked_takes_those_of_others_with_it(world: World, how: str) -> None:
    """Flower hands out all replies at once; one that raises there loses every other that was handed out with it."""

    async def run() -> None:
        async with world.up(), world.member("north") as call:
            assert "unpacked" in await send(call, *damaged(how))
        assert world.reached("PushMessages") == 0

    asyncio.run(run())


def test_a_bomb_reaches_the_coordinator(world: World) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            assert "unpacked" in await send(call, *bomb(5000, bytes(1 << 20)))
        assert not world.fleet.heard

    asyncio.run(run())


@pytest.mark.parametrize("change", [{"reply_to_message_id": "another's"}, {"src_node_id": 22}, {"run_id": 2}])
def test_a_reply_says_inside_that_it_answers_what_another_was_asked(world: World, change: dict[str, Any]) -> None:
    """Flower checks what stands outside; the coordinator reads what stands inside."""

    async def run() -> None:
        async with world.up(), world.member("north") as call:
            assert "unpacked" in await send(call, *a_reply(**change))
        assert not world.fleet.heard

    asyncio.run(run())


def test_a_tree_of_empty_names_is_a_long_walk(world: World) -> None:
    """Measured before: a call of 5 MB held the gateway, for everybody, for a minute."""
    tree = ObjectTree(object_id="a")
    tree.children.extend([ObjectTree()] * 2_000_000)
    began = time.monotonic()
    assert len(gateway_module._objects(tree)) > MAX_OBJECTS
    assert time.monotonic() - began < 0.5
    request = push()
    request.message_object_trees[0].children.extend([ObjectTree()] * 100_000)

    async def run() -> None:
        async with world.up(), world.member("north") as call:
            assert "parts" in ((await refused(call, "PushMessages", request)).details() or "")

    asyncio.run(run())


def test_a_large_call_of_a_small_kind_is_passed_on(world: World) -> None:
    """An error's reason, or fields that nobody knows, would lie in Flower's memory and database."""
    large = PushMessagesRequest.FromString(push().SerializeToString())
    large.messages_list[0].error.reason = "x" * (1 << 20)

    async def run() -> None:
        async with world.up(), world.member("north") as call:
            assert "larger" in ((await refused(call, "PushMessages", large)).details() or "")
        assert not world.fleet.heard

    asyncio.run(run())


def test_a_caller_fills_the_log_with_nodes_that_are_not_its_own(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with world.up(), world.member("north") as call:
            await session_of(call, push())
            for node in range(100, 150):
                await refused(call, "PushMessages", push(node=node))

    with caplog.at_level(logging.WARNING, "causaldao.server.gateway"):
        asyncio.run(run())
    assert caplog.text.count("not its own") == 1


def test_one_member_holds_more_calls_open_than_a_node_needs(world: World) -> None:
    """Over many connections; of a call beyond the bound nothing is read. Others are served meanwhile."""

    async def run() -> None:
        async with world.up(), world.member("south") as other:
            channels = [
                grpc.aio.secure_channel(
                    f"127.0.0.1:{world.port}", world.identity("north"), options=[("grpc.use_local_subchannel_pool", 1)]
                )
                for _ in range(MAX_CALLS // 16 + 1)
            ]
            calls: list[Any] = [
                channel.stream_unary(PREFIX + "PullMessages")(silence(), timeout=5)
                for channel in channels
                for _ in range(16)
            ]
            await asyncio.sleep(1)
            await other("PullMessages", PullMessagesRequest(node=Node(node_id=22)))
            ended = [call for call in calls if call.done()]
            assert len(ended) == len(calls) - MAX_CALLS
            assert {await call.code() for call in ended} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            for call in calls:
                call.cancel()
            await asyncio.sleep(0.3)
            async with world.member("north") as again:
                await again("PullMessages", pull())
            for channel in channels:
                await channel.close()

    async def silence() -> Any:
        await asyncio.sleep(60)
        yield b""

    asyncio.run(run())


def test_a_call_that_never_arrives_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causaldao.relay.CALL_SECONDS", 0.2)

    async def silence() -> Any:
        await asyncio.sleep(60)
        yield b""

    async def run() -> None:
        async with world.up():
            channel = grpc.aio.secure_channel(f"127.0.0.1:{world.port}", world.identity("north"))
            call: Any = channel.stream_unary(PREFIX + "PullMessages")(silence(), timeout=5)
            assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert "did not arrive" in (await call.details() or "")
            await channel.close()

    asyncio.run(run())


def test_a_registry_that_fails_tells_its_error_to_the_caller(world: World, caplog: pytest.LogCaptureFixture) -> None:
    class Locked(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            raise LedgerError("Could not read /secret/place/coordinator.db: it is locked.")

    world.members = Locked()

    async def run() -> None:
        async with world.up(), world.member("north") as call:
            error = await refused(call, "PullMessages", pull())
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert "secret" not in (error.details() or "")

    with caplog.at_level(logging.WARNING, "causaldao.server.gateway"):
        asyncio.run(run())
    assert "/secret/place" in caplog.text


# the daemon


class Link:
    """The SuperLink's Control API; who was taken off cannot be taken off again."""

    def __init__(self) -> None:
        self.registered: dict[bytes, int] = {}

    def nodes(self) -> dict[bytes, int]:
        return dict(self.registered)

    def register(self, key: str, name: str) -> int:
        return self.registered.setdefault(key.encode(), 100 + len(self.registered))

    def unregister(self, node: int) -> None:
        if node not in self.registered.values():
            raise NetworkError("NOT_FOUND")
        self.registered = {key: found for key, found in self.registered.items() if found != node}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return homes.create(tmp_path / "coordinator")


def daemon_of(home: Home, link: Link) -> Daemon:
    made = Daemon(home)
    made._control = cast(Any, link)
    return made


def test_a_kill_between_taking_a_node_off_and_noting_it_keeps_others_out_for_ever(home: Home) -> None:
    homes.admit(home, "north")
    link = Link()
    daemon_of(home, link)._register()
    home.revoke("north", "a test", homes.NOW)
    link.unregister(100)  # and then the power went
    homes.admit(home, "south")
    daemon_of(home, link)._register()
    nodes = {member.name: member.node_id for member in home.registry.members()}
    assert nodes["north"] is None
    assert nodes["south"] is not None


def test_a_call_waits_for_or_fails_with_the_database(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    homes.admit(home, "north")
    made = daemon_of(home, Link())

    def full(*arguments: object, **named: object) -> None:
        raise LedgerError("Could not update the member: database or disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "seen", full)
        made._note_seen("north")
    made._register()
    found = home.registry.member("north")
    assert found is not None
    assert found.last_seen is not None


def test_a_full_disk_ends_the_daemon(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daemon_module, "TEND_SECONDS", 0.01)
    made, turns = daemon_of(home, Link()), [0]

    class Up:
        def tend(self) -> bool:
            return False

    def full() -> None:
        turns[0] += 1
        if turns[0] == 5:
            made._stop.set()
        raise LedgerError("database or disk is full")

    made._child = cast(Any, Up())
    monkeypatch.setattr(made, "_register", full)
    with caplog.at_level(logging.ERROR, "causaldao.server.daemon"):
        asyncio.run(made._tend())
    assert turns[0] == 5
    assert caplog.text.count("disk is full") == 1  # not once a second


# files, logs and the operator's commands


def test_two_commands_write_one_file_through_each_other(tmp_path: Path) -> None:
    path, texts = tmp_path / "policy", ["a" * 200_000, "b" * 200_000]
    errors: list[Exception] = []

    def work(text: str) -> None:
        try:
            for _ in range(15):
                write_text(path, text)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert path.read_text().strip() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_a_policy_that_was_read_before_another_admission_is_written_after_it(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes.join(home, "north", "south")
    written, first = write_text, [True]

    def late(path: Path, text: str) -> None:
        if first.pop() if first else False:
            home.admit("south", homes.NOW)  # another terminal, between the reading and the writing
        written(path, text)

    monkeypatch.setattr("causaldao.server.home.write_text", late)
    home.admit("north", homes.NOW)
    policy = (home.folder / "policy").read_text()
    assert "north+" in policy
    assert "south+" in policy


def test_the_log_of_a_child_that_lives_long_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a member makes Flower say goes there, a line for each call."""
    monkeypatch.setattr(children, "MAX_LOG_BYTES", 10_000)
    talk = "i=0\nwhile [ $i -lt 400 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; sleep 60"
    child = Child("talker", ["/bin/sh", "-c", talk], tmp_path / "log")
    child.start()
    try:
        deadline = time.monotonic() + 10
        while (tmp_path / "log").stat().st_size < 16_000 and time.monotonic() < deadline:
            time.sleep(0.05)
        child.tend()
        assert child.alive()
        assert (tmp_path / "log").stat().st_size < 10_000
    finally:
        child.stop(1)


def test_a_count_that_cannot_be_written_costs_an_answer(tmp_path: Path) -> None:
    _Counts(tmp_path / "not there" / "launcher.json")("answered")


def test_what_an_owner_takes_back_in_its_file_counts_at_the_next_start_only(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("approved = ['x']")
    before = changed(tmp_path)
    time.sleep(0.01)
    (tmp_path / "node.toml").write_text("approved = []")
    assert changed(tmp_path) != before


# a hostile coordinator


class SuperNode:
    """What the SuperNode hands to the launcher."""

    def __init__(self, parts: dict[str, bytes]) -> None:
        self.parts = parts
        self.confirmed = False

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        return PullObjectResponse(
            object_found=True, object_available=True, object_content=self.parts[request.object_id]
        )

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> ConfirmMessageReceivedResponse:
        self.confirmed = True
        return ConfirmMessageReceivedResponse()


@pytest.mark.parametrize("honest", [True, False])
def test_a_request_unpacks_to_gigabytes_at_the_node(honest: bool) -> None:
    root, parts = a_reply() if honest else bomb(5000, bytes(1 << 20))
    node = SuperNode(parts)
    bounded = _Bounded(cast(Any, node))
    for name in parts:
        bounded.PullObject(PullObjectRequest(object_id=name))
    confirm = ConfirmMessageReceivedRequest(message_object_id=root)
    if honest:
        bounded.ConfirmMessageReceived(confirm)
    else:
        with pytest.raises(IdentityError, match="unpacks to more"):
            bounded.ConfirmMessageReceived(confirm)
    assert node.confirmed == honest


def test_a_request_of_hundreds_of_megabytes_is_taken_into_the_nodes_memory(tmp_path: Path) -> None:
    """The parts of one message are counted together; the next message begins anew."""

    class Sender:
        async def forward(self, method: str, request: bytes, context: Any) -> bytes:
            return bytes(4 << 20) if method == "PullObject" else b""

    unused = cast(Any, None)
    made = Connector("nowhere:1", unused, tmp_path / "root.crt", lambda: None)
    made._relay = cast(Any, Sender())

    async def parts(many: int) -> None:
        for _ in range(many):
            await made._pass_on("PullObject", b"", unused)

    async def run() -> None:
        for _ in range(2):
            await made._pass_on("PullMessages", b"", unused)
            await parts(18)  # 72 MiB
            with pytest.raises(Refused):
                await parts(1)

    asyncio.run(run())


@pytest.mark.parametrize("error", [CausalDAOError("could not do this now"), LedgerError("the disk is full")])
def test_trouble_at_the_coordinator_ends_a_node_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: CausalDAOError
) -> None:
    monkeypatch.setattr(service, "_ADMISSION_SECONDS", 0.01)
    errors = [error]
    made = node_of(tmp_path, monkeypatch, errors)
    assert asyncio.run(made._admitted())
    assert not errors


@pytest.mark.parametrize("error", [RefusedError("asked too often"), CausalDAOError("could not do this now")])
def test_whatever_the_coordinator_says_to_a_renewal_ends_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: CausalDAOError
) -> None:
    monkeypatch.setattr(service, "TEND_SECONDS", 0.01)
    monkeypatch.setattr(service, "_RETRY", timedelta(0))
    errors = [error]
    made = node_of(tmp_path, monkeypatch, errors)
    asyncio.run(made._tend(cast(Any, None)))  # no certificate comes, so it is not given one
    assert not errors


def node_of(folder: Path, monkeypatch: pytest.MonkeyPatch, errors: list[CausalDAOError]) -> service.Service:
    """A node whose renewals fail so often, and which is then told to stop."""
    (folder / "run").mkdir()
    made = service.Service(folder)

    async def renew(anyway: bool = False) -> None:
        if errors:
            raise errors.pop()
        made._stop.set()

    async def nothing() -> None:
        return None

    monkeypatch.setattr(made, "_renew", renew)
    monkeypatch.setattr(made, "_announce", nothing)
    monkeypatch.setattr(made, "_check_bundle", lambda: None)
    return made


@pytest.mark.parametrize("name", ["signing.pem", "authority.key"])
def test_an_init_that_was_killed_as_it_made_a_key_cannot_be_done_again(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch(0o600)
    made = homes.create(tmp_path)
    assert made.key.public
    assert made.authority.fingerprint


@pytest.mark.parametrize(("began", "lives"), [(born(os.getpid()), True), (1, False)], ids=["itself", "another"])
def test_another_process_with_the_number_of_a_dead_one_is_taken_for_it(
    home: Home, began: int | None, lives: bool
) -> None:
    home.run_folder.mkdir(exist_ok=True)
    (home.run_folder / "status.json").write_text(json.dumps({"pid": os.getpid(), "born": began, "control": "x"}))
    assert (home.status() is not None) == lives
