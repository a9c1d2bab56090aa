"""Tasks that a node's launcher should not answer, or that end it: foreign bundles, crafted messages, failing apps."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.common.serde import context_to_proto, fab_to_proto, message_from_proto, run_to_proto
from flwr.proto import message_pb2, runtime_pb2
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.proto.task_pb2 import Task
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run

from causaldao.client import launcher
from causaldao.client.launcher import Launcher, _Counts, main
from causaldao.errors import NetworkError, RefusedError
from causaldao.flower_app import build, fab, fab_hash
from causaldao.simulations.engine import identity

NODE, RUN = 7, 11
EMPTY = httpx.Request("POST", "http://127.0.0.1:1/")


@dataclass
class Given:
    """A task as the SuperNode hands it over; ``error`` is what its first call raises, ``damage`` alters an object."""

    bundle: bytes = field(default_factory=fab)
    error: Exception | None = None
    damage: bytes = b""


@dataclass
class SuperNode:
    """The SuperNode's Runtime API, and the connection to it."""

    tasks: deque[Given | Exception]
    stop: threading.Event
    pushed: list[Any] = field(default_factory=list)
    outputs: list[tuple[str, bool]] = field(default_factory=list)
    closed: int = 0

    def AcquireTask(self, request: Any) -> Any:
        if not self.tasks:
            self.stop.set()
            return runtime_pb2.AcquireTaskResponse()
        given = self.tasks.popleft()
        if isinstance(given, Exception):
            raise given
        self.given = given
        with identity(1):
            message = Message(RecordDict({"body": ConfigRecord({"k": 1})}), NODE, "query.evidence")
        message.metadata.__dict__["_message_id"] = message.object_id
        self.tree = get_object_tree(message)
        self.objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
        return runtime_pb2.AcquireTaskResponse(task=Task(task_id=3), token="token")

    def PullTaskInput(self, request: Any) -> Any:
        if self.given.error is not None:
            raise self.given.error
        bundle = Fab("", self.given.bundle, {})
        return runtime_pb2.PullTaskInputResponse(
            context=context_to_proto(Context(RUN, NODE, {}, RecordDict(), {})), run=run_to_proto(Run.create_empty(RUN)),
            fab=fab_to_proto(bundle), task_id=3,
        )  # fmt: skip

    def PullMessages(self, request: Any) -> Any:
        return runtime_pb2.PullAppMessagesResponse(
            messages_list=[message_pb2.Message()], message_object_trees=[self.tree]
        )

    def PullObject(self, request: Any) -> Any:
        content = self.given.damage or self.objects[request.object_id]
        return message_pb2.PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> Any:
        return message_pb2.ConfirmMessageReceivedResponse()

    def PushMessages(self, request: Any) -> Any:
        self.pushed.append(request)
        waiting, wanted = list(request.message_object_trees), []
        while waiting:
            tree = waiting.pop()
            wanted.append(tree.object_id)
            waiting += tree.children
        return runtime_pb2.PushAppMessagesResponse(objects_to_push=wanted, session_id="s")

    def PushObject(self, request: Any) -> Any:
        self.pushed.append(request)
        return message_pb2.PushObjectResponse(stored=True)

    def PushTaskOutput(self, request: Any) -> Any:
        self.outputs.append((request.sub_status, request.HasField("context")))
        return runtime_pb2.PushTaskOutputResponse()

    def SendTaskHeartbeat(self, request: Any) -> Any:
        return runtime_pb2.SendTaskHeartbeatResponse(success=True)

    def close(self) -> None:
        self.closed += 1

    @property
    def replies(self) -> list[Any]:
        return [message_from_proto(one.messages_list[0]) for one in self.pushed if hasattr(one, "messages_list")]

    def said(self, word: str) -> bool:
        """Whether some pushed object holds the word."""
        return any(word.encode() in one.object_content for one in self.pushed if hasattr(one, "object_content"))


@dataclass
class World:
    node: SuperNode
    told: list[str]
    run: Callable[[Callable[[Message, Context], Message]], None]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    stop = threading.Event()
    node, told = SuperNode(deque(), stop), list[str]()
    monkeypatch.setattr(Launcher, "_client", lambda self, interceptor, patience=0.0: node)
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.01)

    def run(app: Any) -> None:
        with identity(NODE):
            Launcher("127.0.0.1:1", b"s" * 32, fab_hash(), app, told.append).run(stop)

    return World(node, told, run)


def answers(message: Message, context: Context) -> Message:
    return Message(RecordDict({"answer": ConfigRecord({"word": "yes"})}), reply_to=message)


def never(message: Message, context: Context) -> Message:
    raise AssertionError("the app was called")


def test_a_good_task_is_not_answered_or_answered_to_another(world: World) -> None:
    world.node.tasks.append(Given())
    world.run(answers)
    assert world.node.outputs == [(SubStatus.COMPLETED, True)]
    assert world.told == ["answered"]
    (reply,) = world.node.replies
    assert reply.metadata.src_node_id == NODE
    assert reply.metadata.reply_to_message_id == world.node.tree.object_id
    assert world.node.said("yes")
    assert world.node.closed == 1


def test_a_foreign_bundle_is_unpacked_or_its_request_read(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = build({"pyproject.toml": b"[project]"})

    def unpacked(*_: Any, **__: Any) -> None:
        raise AssertionError("the bundle was opened")

    monkeypatch.setattr("zipfile.ZipFile.__init__", unpacked)
    world.node.tasks += [Given(other), Given(fab() + b"\0"), Given(b"")]
    with caplog.at_level(logging.ERROR, "causaldao.client.launcher"):
        world.run(never)
    assert world.told == ["bundle refused"] * 3
    assert world.node.outputs == [(SubStatus.COMPLETED, True)] * 3
    assert len(world.node.replies) == 3
    assert world.node.said("refused")
    assert caplog.text.count("nothing of it was unpacked or run") == 3
    assert fab_hash() in caplog.text


def test_a_hash_that_the_message_claims_is_believed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the hash of the bytes."""
    world.node.tasks.append(Given(b"evil"))
    pull = world.node.PullTaskInput

    def lying(request: Any) -> Any:
        response = pull(request)
        response.fab.hash_str = fab_hash()
        response.run.fab_hash = fab_hash()
        return response

    monkeypatch.setattr(world.node, "PullTaskInput", lying)
    world.run(never)
    assert world.told == ["bundle refused"]


def test_an_app_that_raises_ends_the_launcher_or_seems_to_have_answered(world: World) -> None:
    calls: list[int] = []

    def fails_first(message: Message, context: Context) -> Message:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("a value of a record: 4711")
        return answers(message, context)

    world.node.tasks += [Given(), Given()]
    world.run(fails_first)
    assert world.node.outputs == [(SubStatus.FAILED, False), (SubStatus.COMPLETED, True)]
    assert world.told == ["failed", "answered"]
    first, _ = world.node.replies  # without a first one the SuperNode would wait for it for ever
    assert first.has_error()
    assert first.error.reason == "the task failed"
    assert not world.node.said("4711")


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["in front", "in the background"])
def started(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What SIGINT does as the process begins: a shell's script starts those in the background with it ignored."""
    before = signal.signal(signal.SIGINT, request.param)
    yield request.param
    signal.signal(signal.SIGINT, before)


def test_a_task_that_the_supernode_gave_up_ends_the_launcher(
    world: World, started: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Flower's heartbeat says so by an interrupt of the main thread, in the midst of the work."""
    calls: list[float] = []

    def slow_first(message: Message, context: Context) -> Message:
        calls.append(time.monotonic())
        while len(calls) == 1 and time.monotonic() < calls[0] + 60:
            time.sleep(0.01)
        return answers(message, context)

    world.node.tasks += [Given(), Given()]

    def heartbeat(request: Any) -> Any:
        first = len(world.node.tasks) == 1
        while first and not calls:  # the work has begun
            time.sleep(0.01)
        return runtime_pb2.SendTaskHeartbeatResponse(success=not first)

    monkeypatch.setattr(world.node, "SendTaskHeartbeat", heartbeat)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "causaldao.client.launcher"):
        world.run(slow_first)
    assert time.monotonic() - began < 60  # Flower asks again after some seconds if a heartbeat got no answer
    assert "the task was given up" in caplog.text
    assert world.told == ["answered"]
    assert world.node.outputs == [(SubStatus.COMPLETED, True)]
    assert signal.getsignal(signal.SIGINT) is started


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"Message 99999999999\0", b"ConfigRecord 3\0abc"])
def test_a_crafted_message_ends_the_launcher(world: World, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    bad = Given(damage=damage) if damage else Given(error=RuntimeError("no messages"))
    world.node.tasks += [bad, Given()]
    with caplog.at_level(logging.ERROR, "causaldao.client.launcher"):
        world.run(answers)
    assert world.told == ["failed", "answered"]
    assert world.node.outputs == [(SubStatus.COMPLETED, True)]  # the other counts as crashed when its heartbeat ends
    assert "a request could not be read" in caplog.text


def test_a_part_that_never_comes_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never comes of a request whose run ended while the SuperNode fetched it; Flower would wait for two hours."""
    monkeypatch.setattr(launcher, "_PART_SECONDS", 0.05)

    class Nothing:
        def PullObject(self, request: Any) -> PullObjectResponse:
            return PullObjectResponse(object_found=True, object_available=False)

    bounded = launcher._Bounded(cast(Any, Nothing()))
    assert not bounded.PullObject(PullObjectRequest(object_id="x")).object_available
    time.sleep(0.1)
    with pytest.raises(NetworkError, match="run may have ended"):
        bounded.PullObject(PullObjectRequest(object_id="x"))


def test_a_supernode_that_is_away_ends_the_launcher(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.node.tasks += [httpx.ConnectError("refused"), httpx.ReadTimeout("late"), Given()]
    with caplog.at_level(logging.INFO, "causaldao.client.launcher"):
        world.run(answers)
    assert world.told == ["answered"]
    assert "the SuperNode does not answer (ConnectError)" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Flower's thread ends by it
def test_a_heartbeat_that_ended_by_itself_makes_an_answer_a_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: Any) -> Any:
        raise httpx.HTTPStatusError("gone", request=EMPTY, response=httpx.Response(404, request=EMPTY))

    def patient(message: Message, context: Context) -> Message:
        time.sleep(0.3)  # until the heartbeat's thread is gone
        return answers(message, context)

    monkeypatch.setattr(world.node, "SendTaskHeartbeat", refuse)
    world.node.tasks.append(Given())
    world.run(patient)
    assert world.told == ["answered"]
    assert world.node.outputs == [(SubStatus.COMPLETED, True)]


def test_a_launcher_that_was_told_to_stop_takes_another_task(world: World) -> None:
    world.node.tasks += [Given(), Given()]

    def last(message: Message, context: Context) -> Message:
        world.node.stop.set()
        return answers(message, context)

    world.run(last)
    assert len(world.node.tasks) == 1
    assert world.told == ["answered"]


def test_what_was_done_is_not_counted(tmp_path: Path) -> None:
    counts = _Counts(tmp_path / "launcher.json")
    for word in ("answered", "failed", "answered"):
        counts(word)
    assert json.loads((tmp_path / "launcher.json").read_text()) == {"answered": 2, "failed": 1}


def test_the_process_does_not_end_when_it_is_told_to_or_opens_its_node_for_each_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "secret").write_bytes(b"s" * 32)
    (tmp_path / "run").mkdir()

    class Opened:
        def answer(self, parcel: Any) -> Any:
            raise RefusedError("a test")

    def run(self: Launcher, stop: threading.Event) -> None:
        with identity(1):
            message = Message(RecordDict({"body": ConfigRecord({"k": 1})}), NODE, "query.evidence")
        with identity(NODE):
            for _ in range(2):
                self._reply(message, Context(RUN, NODE, {}, RecordDict(), {}), fab())
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)

    def open_node(folder: Path) -> Opened:
        opened.append(folder)
        return Opened()

    monkeypatch.setattr("causaldao.logs.configure", lambda form: None)
    monkeypatch.setattr("causaldao.client.node.Node.open", open_node)
    monkeypatch.setattr(Launcher, "run", run)
    secret = str(tmp_path / "secret")
    try:
        assert main([str(tmp_path), "--runtime", "127.0.0.1:1", "--secret", secret, "--bundle", fab_hash()]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert opened == [tmp_path]
    assert json.loads((tmp_path / "run" / "launcher.json").read_text()) == {"answered": 2}
