"""Flower's SuperLink as the coordinator uses it: on loopback, with TLS, told what to do over its Control API."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.transport_pb2 import Scalar
from flwr.supercore.control.control_http_client import ControlHttpClient

from causaldao.children import FLOWER, Child, script
from causaldao.errors import NetworkError
from causaldao.flower_app import fab
from causaldao.relay import CHUNK_BYTES, CHUNK_VARIABLE
from causaldao.server.authority import Authority
from causaldao.server.home import HOME_VARIABLE

LOOPBACK = "127.0.0.1"
_LOOPBACK_HOURS = 24 * 365  # of a certificate that is made anew at each start
_FINISHED = "finished"
_UNREGISTERED = "unregistered"


def child(folder: Path, home: Path, authority: Authority, fleet: int, control: int) -> Child:
    """The process: its own state in ``folder``; the Fleet API and the Control API on loopback ports."""
    folder.mkdir(parents=True, exist_ok=True)
    key, chain = authority.issue_server([LOOPBACK, "localhost"], datetime.now(UTC), _LOOPBACK_HOURS)
    for name, data in {"server.key": key, "server.pem": chain, "authority.crt": authority.certificate_pem}.items():
        (folder / name).touch(0o600)
        (folder / name).write_bytes(data)
    command = [
        script("flower-superlink"), "--ssl-ca-certfile", str(folder / "authority.crt"),
        "--ssl-certfile", str(folder / "server.pem"), "--ssl-keyfile", str(folder / "server.key"),
        "--enable-supernode-auth", "--disable-runtime-dependency-installation",
        "--host", LOOPBACK, "--port", str(control),
        "--fleet-api-type", "grpc-rere", "--fleet-api-address", f"{LOOPBACK}:{fleet}",
        "--database", str(folder / "superlink.db"),
    ]  # fmt: skip
    environment = {
        **FLOWER,
        "FLWR_HOME": str(folder),
        CHUNK_VARIABLE: str(CHUNK_BYTES),
        HOME_VARIABLE: str(home.resolve()),
        "OMP_NUM_THREADS": "1",
    }
    return Child("flower-superlink", command, folder / "superlink.log", environment)


@dataclass(frozen=True)
class Control:
    """The Control API at ``address``; it knows no passwords, which is why it listens on loopback only."""

    address: str
    authority: bytes

    def register(self, key: str, name: str) -> int:
        """Let the node with that public key (PEM) connect; its Flower id, also if it was registered before."""
        known = self.nodes()
        if key.encode() in known:
            return known[key.encode()]
        with self._client("register a node") as client:
            return int(client.RegisterNode(RegisterNodeRequest(public_key=key.encode(), name=name)).node_id)

    def nodes(self) -> dict[bytes, int]:
        """The nodes that may connect: Flower's id by public key (PEM)."""
        with self._client("look at its nodes") as client:
            listed = client.ListNodes(ListNodesRequest()).nodes_info
        return {bytes(node.public_key): int(node.node_id) for node in listed if node.status != _UNREGISTERED}

    def unregister(self, node: int) -> None:
        with self._client("unregister a node") as client:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def start(self, study: str) -> int:
        """Start a run of the coordinator's app for a study; its id."""
        return self.start_app(fab(), {"study": study})

    def start_app(self, bundle: bytes, config: Mapping[str, str]) -> int:
        """Start a run of any app bundle; its id."""
        content = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
        settings = {name: Scalar(string=value) for name, value in config.items()}
        with self._client("start a run") as client:
            response = client.StartRun(StartRunRequest(fab=content, override_config=settings))
        if not response.HasField("run_id"):
            raise NetworkError("Flower's SuperLink would not start the run: see superlink/superlink.log.")
        return int(response.run_id)

    def stop(self, run: int) -> None:
        with self._client("stop a run") as client:
            client.StopRun(StopRunRequest(run_id=run))

    def running(self, run: int) -> bool:
        """Whether a run is still going on; one that is unknown is not."""
        with self._client("look at a run") as client:
            runs: Mapping[int, Any] = client.ListRuns(ListRunsRequest(run_id=run)).run_dict
        return run in runs and runs[run].status.status != _FINISHED

    def ready(self) -> bool:
        try:
            self.nodes()
        except NetworkError:
            return False
        return True

    def _client(self, action: str) -> _Client:
        return _Client(self, action)


class _Client:
    """A connection for the time of one action; what goes wrong with it is a NetworkError."""

    def __init__(self, control: Control, action: str) -> None:
        self._action = action
        self._client = ControlHttpClient.from_server_address(
            server_address=control.address, insecure=False, root_certificates=control.authority, interceptors=[]
        )

    def __enter__(self) -> ControlHttpClient:
        return self._client

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._client.close()
        if isinstance(error, httpx.HTTPError):
            raise NetworkError(
                f"Flower's SuperLink could not {self._action} ({error}): is the coordinator running? See its log."
            ) from error
