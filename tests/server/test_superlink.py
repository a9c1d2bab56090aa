"""Orders to Flower's SuperLink that are lost, given twice, or answered by another; the command that starts it."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509 import load_pem_x509_certificate
from flwr.common.constant import Status
from flwr.proto import control_pb2 as control
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run, RunStatus

from causaldao.errors import NetworkError
from causaldao.flower_app import build, fab_hash
from causaldao.relay import CHUNK_BYTES, CHUNK_VARIABLE
from causaldao.server import superlink
from causaldao.server.authority import Authority
from causaldao.server.home import HOME_VARIABLE
from causaldao.server.superlink import LOOPBACK, Control, child
from tests.server.homes import NOW


@dataclass
class SuperLink:
    """What stands in for the SuperLink: nodes by public key, runs by id, and what it was asked."""

    port: int = 0
    nodes: dict[bytes, int] = field(default_factory=dict)
    gone: dict[bytes, int] = field(default_factory=dict)
    runs: dict[int, str] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    broken: int = 0
    starts: bool = True

    def answer(self, path: str, data: bytes) -> bytes:
        name = "".join(part.title() for part in path.removeprefix("/v1/control/").split("-"))
        request = getattr(control, f"{name}Request").FromString(data)
        self.asked.append(request)
        response: Any = getattr(self, f"_{path.rpartition('/')[2].replace('-', '_')}")(request)
        return bytes(response.SerializeToString())

    def _list_nodes(self, request: Any) -> Any:
        found = [NodeInfo(node_id=node, public_key=key) for key, node in self.nodes.items()]
        found += [NodeInfo(node_id=node, public_key=key, status="unregistered") for key, node in self.gone.items()]
        return control.ListNodesResponse(nodes_info=found)

    def _register_node(self, request: Any) -> Any:
        self.nodes[request.public_key] = 2**63 + len(self.nodes) + len(self.gone)
        return control.RegisterNodeResponse(node_id=self.nodes[request.public_key])

    def _unregister_node(self, request: Any) -> Any:
        (key,) = [key for key, node in self.nodes.items() if node == request.node_id]
        self.gone[key] = self.nodes.pop(key)
        return control.UnregisterNodeResponse()

    def _start_run(self, request: Any) -> Any:
        if not self.starts:
            return control.StartRunResponse()
        self.runs[2**63 + 5] = Status.PENDING
        return control.StartRunResponse(run_id=2**63 + 5)

    def _stop_run(self, request: Any) -> Any:
        self.runs[request.run_id] = Status.FINISHED
        return control.StopRunResponse(success=True)

    def _list_runs(self, request: Any) -> Any:
        found = {run: Run(run_id=run, status=RunStatus(status=status)) for run, status in self.runs.items()}
        return control.ListRunsResponse(run_dict={run: found[run] for run in found if run == request.run_id})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"), "test", NOW)


@pytest.fixture
def behind(authority: Authority, tmp_path: Path) -> Iterator[SuperLink]:
    state = SuperLink()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            body = b"" if state.broken else state.answer(self.path, data)
            self.send_response(state.broken or 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return None

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    key, chain = authority.issue_server([LOOPBACK], datetime.now(UTC))
    for name, data in {"key": key, "chain": chain}.items():
        (tmp_path / name).write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def link(behind: SuperLink, authority: Authority) -> Control:
    return Control(f"{LOOPBACK}:{behind.port}", authority.certificate_pem)


def test_a_node_is_registered_twice(link: Control, behind: SuperLink) -> None:
    """An answer may be lost after it was registered: the same key gets the same id."""
    first = link.register("key of north", "north")
    assert link.register("key of north", "north") == first
    assert first == 2**63  # more than a signed integer holds
    assert link.register("key of south", "south") != first
    assert len([one for one in behind.asked if isinstance(one, control.RegisterNodeRequest)]) == 2
    link.unregister(first)
    assert link.nodes() == {b"key of south": 2**63 + 1}  # Flower lists for ever what it has unregistered


def test_a_run_is_started_for_another_study_or_with_another_bundle(link: Control, behind: SuperLink) -> None:
    run = link.start("ab" * 32)
    (request,) = behind.asked
    assert run == 2**63 + 5
    assert hashlib.sha256(request.fab.content).hexdigest() == request.fab.hash_str == fab_hash()
    assert {name: value.string for name, value in request.override_config.items()} == {"study": "ab" * 32}
    other = build({"pyproject.toml": b"x"})
    link.start_app(other, {"study": "x", "more": "y"})
    assert behind.asked[-1].fab.hash_str == hashlib.sha256(other).hexdigest()


def test_a_run_that_was_not_started_has_the_id_0(link: Control, behind: SuperLink) -> None:
    behind.starts = False
    with pytest.raises(NetworkError, match="would not start"):
        link.start("ab" * 32)


def test_a_finished_or_unknown_run_seems_to_run(link: Control, behind: SuperLink) -> None:
    run = link.start("ab" * 32)
    for status in (Status.PENDING, Status.STARTING, Status.RUNNING):
        behind.runs[run] = status
        assert link.running(run), status
    link.stop(run)
    assert behind.runs[run] == Status.FINISHED
    assert not link.running(run)
    assert not link.running(4711)


def test_an_unreachable_superlink_is_a_traceback(authority: Authority) -> None:
    port = closed_port()
    link = Control(f"{LOOPBACK}:{port}", authority.certificate_pem)
    acts: dict[str, tuple[Any, ...]] = {"running": (1,), "register": ("key", "name"), "start": ("x",), "stop": (1,)}
    for name, arguments in acts.items():
        with pytest.raises(NetworkError, match="is the coordinator running"):
            getattr(link, name)(*arguments)
    assert not link.ready()


def closed_port() -> int:
    """One that nobody listens on."""
    server = ThreadingHTTPServer((LOOPBACK, 0), BaseHTTPRequestHandler)
    port = int(server.server_address[1])
    server.server_close()
    return port


def test_a_superlink_that_answers_with_an_error_is_ready(link: Control, behind: SuperLink) -> None:
    assert link.ready()
    behind.broken = 503
    assert not link.ready()
    with pytest.raises(NetworkError, match="stop a run"):
        link.stop(1)


def test_another_authoritys_server_is_told_what_to_do(behind: SuperLink, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority.create(tmp_path / "other", "test", NOW)
    link = Control(f"{LOOPBACK}:{behind.port}", other.certificate_pem)
    assert not link.ready()
    with pytest.raises(NetworkError, match="CERTIFICATE_VERIFY_FAILED"):
        link.stop(1)
    assert not behind.asked


def test_the_superlink_listens_to_more_than_this_machine(authority: Authority, tmp_path: Path) -> None:
    made = child(tmp_path / "superlink", tmp_path, authority, 1111, 2222)
    words = list(made.command)
    given = {word: words[k + 1] for k, word in enumerate(words[:-1]) if word.startswith("--")}
    assert given["--host"] == LOOPBACK
    assert given["--fleet-api-address"] == f"{LOOPBACK}:1111"
    assert given["--port"] == "2222"
    assert "--insecure" not in words
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} <= set(words)
    environment = dict(made.environment)
    assert environment[CHUNK_VARIABLE] == str(CHUNK_BYTES)
    assert environment[HOME_VARIABLE] == str(tmp_path.resolve())
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"


def test_the_superlinks_key_can_be_read_by_others_or_its_certificate_is_for_another_machine(
    authority: Authority, tmp_path: Path
) -> None:
    folder = tmp_path / "superlink"
    for _ in range(2):  # made anew at each start
        child(folder, tmp_path, authority, 1111, 2222)
        assert (folder / "server.key").stat().st_mode & 0o777 == 0o600
    leaf = load_pem_x509_certificate((folder / "server.pem").read_bytes())
    leaf.verify_directly_issued_by(authority.certificate)
    assert superlink.LOOPBACK in str(leaf.extensions)
    assert (folder / "authority.crt").read_bytes() == authority.certificate_pem
    assert (folder / "server.pem").read_bytes().endswith(authority.certificate_pem)
