"""The node's launcher: it takes each task that Flower's SuperNode has received, and decides whether to answer it.

Flower would install and import whatever bundle a coordinator sends. The launcher stands in the place of Flower's own
executor and imports nothing that was sent: it compares the hash of the bundle's bytes with the one that is pinned at
this node, and if they agree answers with the app of the *installed* package, which the bundle only names. Any other
bundle is refused without being unpacked. It stays up from task to task, so that a request costs no start of Python.

Run as ``python -m causaldao.client.launcher FOLDER --runtime HOST:PORT --secret FILE``, by `causaldao node start`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, cast

import httpx
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from causaldao.client.config import FEDERATION_FILE, NODE_FILE
from causaldao.errors import NetworkError
from causaldao.files import write_text
from causaldao.messages import MAX_REQUEST_BYTES
from causaldao.objects import check_objects

_LOG = logging.getLogger(__name__)
POLL_SECONDS = 0.2
MAX_UNPACKED_BYTES = 2 * MAX_REQUEST_BYTES  # of a request: its chunks, and the arrays that are put together from them
MAX_REQUEST_OBJECTS = 1 << 14  # a model is sent as an array for each of its layers, of each variable
_RETRY_SECONDS = 20.0  # of one call to the SuperNode, which may be starting
_PROTECTED = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_PART_SECONDS = 30.0  # without any part of a request, after which it is given up: Flower would wait for two hours
REFUSED = "refused"


class Launcher:
    """Answers the tasks of the SuperNode at ``address`` with ``app``, if their bundle's SHA-256 is ``bundle``.

    ``told`` hears of each task: "answered", "failed" or "bundle refused".
    """

    def __init__(
        self, address: str, secret: bytes, bundle: str, app: ClientApp, told: Callable[[str], None] = lambda word: None
    ) -> None:
        self._address = address
        self._bundle = bundle
        self._app = app
        self._told = told
        signed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_PROTECTED)
        self._tasks = self._client(signed, 0.0)

    def run(self, stop: threading.Event) -> None:
        """Answer tasks until told to stop; a task that goes wrong is reported, and the next one is taken.

        In the main thread only: Flower's heartbeat interrupts it when a task is no longer ours.
        """
        with _interrupted():
            self._run(stop)

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                token = self._acquire()
                if token:
                    self._task(token)
                    continue
            except KeyboardInterrupt:  # how Flower's heartbeat says that a task is no longer ours
                _LOG.warning("the task was given up: the SuperNode no longer waits for it")
            except httpx.HTTPError as error:
                _LOG.info("the SuperNode does not answer (%s); trying again", type(error).__name__)
            except Exception:  # whatever a crafted message makes Flower raise: the next task may be a good one
                _LOG.exception("a task could not be read")
                self._told("failed")
            stop.wait(POLL_SECONDS)

    def _acquire(self) -> str:
        response = self._tasks.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        return response.token if response.HasField("task") else ""

    def _task(self, token: str) -> None:
        with closing(self._client(RuntimeTokenHttpInterceptor(token))) as client, _heartbeat(client):
            try:
                message, context, _, fab = pull_task_input(cast("RuntimeHttpClient", _Bounded(client)))
            except Exception:
                # Not reported: without a heartbeat the SuperNode takes it for crashed and says so to the coordinator,
                # while of a task that it knows to have failed it would wait for the reply for ever.
                _LOG.exception("a request could not be read")
                self._told("failed")
                return
            status = SubStatus.COMPLETED
            try:
                reply = self._reply(message, context, fab.content)
            except Exception:
                _LOG.exception("the task failed")
                self._told("failed")
                status = SubStatus.FAILED
                reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "the task failed"), reply_to=message)
            push_message(client, reply, context)
            push_task_output(client, context if status == SubStatus.COMPLETED else None, status, "")

    def _reply(self, message: Message, context: Context, bundle: bytes) -> Message:
        found = hashlib.sha256(bundle).hexdigest()
        if found != self._bundle:
            _LOG.error(
                "bundle refused: the coordinator's bundle has SHA-256 %s, this node's owner pinned %s; nothing of it "
                "was unpacked or run, and its request was not read",
                found,
                self._bundle,
            )
            self._told("bundle refused")
            return Message(RecordDict({"refused": ConfigRecord({"code": REFUSED})}), reply_to=message)
        reply = self._app(message, context)
        self._told("answered")
        return reply

    def _client(self, interceptor: Any, patience: float = _RETRY_SECONDS) -> RuntimeHttpClient:
        retry = make_simple_http_retry_invoker()
        retry.max_time = patience
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,  # loopback
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), interceptor],
            retry_invoker=retry,
        )


class _Bounded:
    """The SuperNode's client for one task; a request is looked at after it was pulled and before Flower unpacks it."""

    def __init__(self, client: RuntimeHttpClient) -> None:
        self._client = client
        self._objects: dict[str, bytes] = {}
        self._progress = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        response = self._client.PullObject(request)
        if response.object_available:
            self._objects[request.object_id] = response.object_content
            self._progress = time.monotonic()
        elif time.monotonic() - self._progress > _PART_SECONDS:
            raise NetworkError(f"No part of the request came for {_PART_SECONDS:g} s: its run may have ended.")
        return response

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> ConfirmMessageReceivedResponse:
        check_objects(request.message_object_id, self._objects, MAX_UNPACKED_BYTES, MAX_REQUEST_OBJECTS)
        return self._client.ConfirmMessageReceived(request)


@contextmanager
def _interrupted() -> Iterator[None]:
    """SIGINT is a KeyboardInterrupt: a process that a script started in the background would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _heartbeat(client: RuntimeHttpClient) -> Iterator[None]:
    """Tell the SuperNode that its task is being worked on; training may take minutes."""
    sender = HeartbeatSender(make_task_heartbeat_fn_http(client))
    sender.start()
    try:
        yield
    finally:
        if sender.is_running:  # it ends by itself when the SuperNode will not hear it
            sender.stop()


def main(arguments: list[str] | None = None) -> int:
    """Run a launcher for a node's folder until SIGTERM."""
    parser = argparse.ArgumentParser(prog="causaldao.client.launcher", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--secret", type=Path, required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--log-format", default="text")
    given = parser.parse_args(arguments)

    import torch

    from causaldao.client.app import client_app
    from causaldao.client.node import Node
    from causaldao.logs import configure

    configure(given.log_format)
    torch.set_num_threads(1)  # the same digits on every machine, and the machine is its owner's
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    counts = _Counts(given.folder / "run" / "launcher.json")
    opened: dict[tuple[int, ...], Node] = {}

    def opener(context: Context) -> Node:
        now = changed(given.folder)
        if now not in opened:  # opened anew when its owner changed a file: what is taken back there counts at once
            opened.clear()
            opened[now] = Node.open(given.folder)
        return opened[now]

    app = client_app(opener)
    Launcher(given.runtime, given.secret.read_bytes(), given.bundle, app, counts).run(stop)
    return 0


def changed(folder: Path) -> tuple[int, ...]:
    """When the node's own files were written last, in nanoseconds; what is missing is for `Node.open` to say."""
    return tuple(path.stat().st_mtime_ns for name in (NODE_FILE, FEDERATION_FILE) if (path := folder / name).exists())


class _Counts:
    """What was done, in a file that the supervising process reads for its metrics."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: dict[str, int] = {}

    def __call__(self, word: str) -> None:
        self._counts[word] = self._counts.get(word, 0) + 1
        with suppress(OSError):  # a full disk must not cost an answer whose privacy is spent
            write_text(self._path, json.dumps(self._counts))


if __name__ == "__main__":
    sys.exit(main())
