"""The institution's one long-running process: the way out, the launcher and Flower's SuperNode, kept up.

It renews the certificate by itself, long before it ends, with the node's signing key; it stops when the coordinator
says that the member is revoked, or sends a bundle that this node's owner did not pin at joining.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from causaldao.children import FLOWER, Child, born, script, stop_all
from causaldao.client import dictionary, enrolment
from causaldao.client.config import NodeConfig
from causaldao.client.connector import LOOPBACK, Connector, Identity
from causaldao.client.privacy.journal import Journal
from causaldao.errors import CausalDAOError, ConfigurationError, IdentityError, RefusedError
from causaldao.files import hold, write_text
from causaldao.flower_app import fab_hash
from causaldao.metrics import NodeMetrics, serve
from causaldao.relay import CHUNK_BYTES, CHUNK_VARIABLE

_LOG = logging.getLogger(__name__)
TEND_SECONDS = 1.0
_ADMISSION_SECONDS = 10.0  # between two questions whether the member is admitted
_RETRY = timedelta(minutes=5)
SUPERNODE = "flower-supernode"


class Service:
    """`run` it until SIGTERM or SIGINT."""

    def __init__(self, folder: Path, metrics_port: int = 0, log_format: str = "text") -> None:
        self._folder = folder
        self._log_format = log_format
        self._metrics = NodeMetrics()
        self._metrics_port = metrics_port
        self._stop = asyncio.Event()
        self._run = folder / "run"
        self._state = "starting"
        self._error = ""
        self._children: list[Child] = []
        self._journal = folder / "journal.db"
        self._measured = 0.0
        self._offered = ""  # the bundle of the coordinator's last answer

    async def run(self) -> None:
        """Start everything and keep it up.

        Raises
        ------
        IdentityError
            the node has not joined, or is revoked.
        RefusedError
            the coordinator's bundle is another one than the owner pinned.
        """
        NodeConfig.load(self._folder)  # its faults before anything starts
        with self._claim():
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
            await self._serve()

    async def _serve(self) -> None:
        federation = enrolment.read_federation(self._folder)
        if federation["bundle"] != fab_hash():
            raise RefusedError(
                f"This node's owner pinned the bundle {federation['bundle'][:12]}, but this version of causaldao would "
                f"answer {fab_hash()[:12]}. Read what changed, then pin it in federation.json."
            )
        metrics = serve(self._metrics, LOOPBACK, self._metrics_port)
        connector: Connector | None = None
        try:
            self._write_status()
            if not await self._admitted():
                return
            connector = Connector(
                federation["fleet"], Identity.read(self._folder), self._run / "loopback.crt", self._metrics.contact
            )
            await connector.start()
            self._children = [self._supernode(connector.port), self._launcher(federation["bundle"])]
            for child in self._children:
                child.start()
            self._say("running")
            await self._tend(connector)
        except CausalDAOError as error:
            self._error = str(error)
            self._say("failed")
            raise
        finally:
            stop_all(self._children)
            if connector is not None:
                await connector.stop()
            metrics.close()
            if self._state != "failed":
                (self._run / "status.json").unlink(missing_ok=True)

    async def _admitted(self) -> bool:
        """Wait for the operator's admission, and fetch a certificate; False if told to stop first."""
        said = False
        while not self._stop.is_set():
            try:
                await self._renew()
            except RefusedError as error:
                if not said:
                    _LOG.info("waiting for the operator to admit this node: %s", error.message)
                self._say("waiting for admission")
                said = True
            except (ConfigurationError, IdentityError):
                raise
            except CausalDAOError as error:  # also what went wrong at the coordinator: another time it may not
                _LOG.warning("%s", error.message)
                self._say("coordinator not reachable")
            else:
                self._check_bundle()
                await self._announce()
                return True
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _ADMISSION_SECONDS)
        return False

    async def _renew(self, anyway: bool = False) -> None:
        """Fetch a certificate when it is due; asked for anyway, an IdentityError tells a member that it is revoked."""
        now = datetime.now(UTC)
        if not (anyway or enrolment.due(self._folder, now)):
            return
        before = enrolment.read_federation(self._folder)["fleet"]
        renewal = await asyncio.to_thread(enrolment.renew, self._folder, now)
        if renewal.fleet != before:
            _LOG.warning(
                "the coordinator is now at %s, no longer at %s: from this node's next start", renewal.fleet, before
            )
        _LOG.info("the certificate is good until %s", renewal.expires.isoformat(timespec="minutes"))
        self._offered = renewal.bundle

    def _check_bundle(self) -> None:
        """Apart from `_renew`, whose RefusedError says that the operator has not decided, which is waited for."""
        pinned = enrolment.read_federation(self._folder)["bundle"]
        if self._offered not in ("", pinned):
            (self._folder / enrolment.CERTIFICATE_FILE).unlink(missing_ok=True)  # so the next start asks again
            raise RefusedError(
                f"The coordinator now sends the bundle {self._offered[:12]}; this node's owner pinned {pinned[:12]}. "
                "Nothing of it will run here. Ask the operator what changed."
            )

    async def _announce(self) -> None:
        """Tell the coordinator what this site offers, as it now stands in node.toml; not to be reached is no fault."""
        try:
            await asyncio.to_thread(dictionary.write, self._folder)
            await asyncio.to_thread(enrolment.announce, self._folder, datetime.now(UTC))
        except CausalDAOError as error:
            _LOG.warning("the variable dictionary could not be announced: %s", error.message)

    async def _tend(self, connector: Connector) -> None:
        """Keep the children up and the certificate fresh until told to stop."""
        retry, doubtful = datetime.now(UTC), False
        while not self._stop.is_set():
            for child in self._children:
                if child.tend():
                    self._metrics.restarted(child.name.removeprefix("flower-"))
                    doubtful = doubtful or child.name == SUPERNODE  # it ends when the gateway will not have it
            now = datetime.now(UTC)
            self._measure()
            if now >= retry or doubtful:
                before = enrolment.certificate_expiry(self._folder)
                try:
                    await self._renew(anyway=doubtful)
                except CausalDAOError as error:  # whatever the coordinator says of it, the node goes on while it can
                    if isinstance(error, IdentityError) and "revoked" in error.message:
                        raise
                    _LOG.warning("the certificate could not be renewed, trying again in 5 min: %s", error.message)
                    retry = now + _RETRY
                else:
                    self._check_bundle()
                    if enrolment.certificate_expiry(self._folder) != before:
                        await connector.renew(Identity.read(self._folder))
                    retry = now + timedelta(minutes=1)
                doubtful = False
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), TEND_SECONDS)

    def _measure(self) -> None:
        """What the launcher did, what the data set has spent, and how long the certificate is good."""
        with suppress(OSError, ValueError):
            self._metrics.tasks(json.loads((self._run / "launcher.json").read_text()))
        if self._journal.exists() and self._journal.stat().st_mtime != self._measured:
            self._measured = self._journal.stat().st_mtime
            try:
                config = NodeConfig.load(self._folder)
                spent = Journal.open(self._journal).spent(config.dataset, config.lifetime.delta)
            except CausalDAOError as error:  # node.toml is being edited, say: the node itself goes on
                _LOG.warning("what was spent could not be measured: %s", error)
            else:
                self._metrics.budget(config.dataset, spent, config.lifetime.epsilon)
        expires = enrolment.certificate_expiry(self._folder)
        if expires is not None:
            self._metrics.certificate(expires.timestamp())

    def _supernode(self, port: int) -> Child:
        (self._run / "executor.secret").write_bytes(secrets.token_bytes(32))
        (self._run / "executor.secret").chmod(0o600)
        self._runtime = f"{LOOPBACK}:{_free_port()}"
        command = [
            script("flower-supernode"), "--root-certificates", str(self._run / "loopback.crt"),
            "--superlink", f"{LOOPBACK}:{port}", "--grpc-rere",
            "--auth-supernode-private-key", str(self._flower_key()), "--isolation", "process",
            "--host", LOOPBACK, "--port", self._runtime.rpartition(":")[2],
            "--superexec-auth-secret-file", str(self._run / "executor.secret"),
        ]  # fmt: skip
        environment = {**FLOWER, "FLWR_HOME": str(self._run), "OMP_NUM_THREADS": "1"}
        return Child(SUPERNODE, command, self._run / "supernode.log", environment)

    def _launcher(self, bundle: str) -> Child:
        command = [
            sys.executable, "-m", "causaldao.client.launcher", str(self._folder), "--runtime", self._runtime,
            "--secret", str(self._run / "executor.secret"), "--bundle", bundle, "--log-format", self._log_format,
        ]  # fmt: skip
        environment = {**FLOWER, "OMP_NUM_THREADS": "1", CHUNK_VARIABLE: str(CHUNK_BYTES)}
        return Child("launcher", command, self._run / "launcher.log", environment)

    def _flower_key(self) -> Path:
        """The TLS key in the form that Flower reads."""
        key: Any = load_pem_private_key((self._folder / "tls.pem").read_bytes(), None)
        path = self._run / "node.key"
        path.touch(0o600)
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        return path

    def _claim(self) -> IO[str]:
        """The folder is this process's alone."""
        self._run.mkdir(mode=0o700, exist_ok=True)
        lock = hold(self._run / "lock")
        if lock is None:
            raise ConfigurationError(f"The node of {self._folder} is running already: see its status.")
        return lock

    def _say(self, state: str) -> None:
        if state != self._state:
            _LOG.info("the node is %s", state)
        self._state = state
        self._write_status()

    def _write_status(self) -> None:
        status = {
            "pid": os.getpid(), "born": born(os.getpid()), "state": self._state,
            "since": datetime.now(UTC).isoformat(), "error": self._error,
        }  # fmt: skip
        write_text(self._run / "status.json", json.dumps(status))


def start(folder: Path, metrics_port: int = 0, log_format: str = "text") -> None:
    """Run the node of a folder until it is told to stop."""

    async def run() -> None:
        await Service(folder, metrics_port, log_format).run()

    asyncio.run(run())


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        return int(found.getsockname()[1])
