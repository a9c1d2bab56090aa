"""The operator's one long-running process: gateway, enrolment and metrics here, Flower's SuperLink under it.

It holds no state of its own: what it serves stands in the database, and the commands of the operator work on that.
Killed and started again it goes on; a study that was running is resumed with ``causaldao study resume``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import IO

import grpc

from causaldao.children import born
from causaldao.errors import CausalDAOError, ConfigurationError, NetworkError
from causaldao.files import hold, write_text
from causaldao.ledger import service
from causaldao.ledger.log import Log
from causaldao.ledger.note import Verifier
from causaldao.ledger.reader import Local
from causaldao.members import Roster
from causaldao.metrics import CoordinatorMetrics, serve
from causaldao.relay import OPTIONS, SERVER_OPTIONS
from causaldao.server import enrolment, membership, superlink
from causaldao.server.gateway import Gateway
from causaldao.server.home import Home, utc_now
from causaldao.server.progress import QUARANTINE, WAITING

_LOG = logging.getLogger(__name__)
READY_SECONDS = 60.0
TEND_SECONDS = 1.0
_FILES = 1 << 16
_LOOK_SECONDS = 15.0  # between two looks at what the SuperLink knows
IDLE = "idle"
_CERTIFICATE = timedelta(hours=24)
_RENEWAL_SECONDS = 5.0  # that calls have to end when their port is opened anew
_SEEN = timedelta(seconds=5)  # how often a member's last call is written down


Listen = Callable[[], Awaitable[grpc.aio.Server]]


class _Door:
    """A port to the outside; it can be shut, and opened again."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._server: grpc.aio.Server | None = None

    async def open(self) -> None:
        """Listen; nothing if it does."""
        if self._server is None:
            self._server = await self._listen()

    async def close(self, grace: float) -> None:
        """Listen no more; calls under way have ``grace`` seconds."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace)


class Daemon:
    """`run` it until SIGTERM or SIGINT."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._authority = home.authority
        self._metrics = CoordinatorMetrics()
        self._heard: dict[str, datetime] = {}
        self._seen: dict[str, datetime] = {}
        self._complained = ""
        self._stop = asyncio.Event()
        self._last: dict[str, int] = {}
        self._phase = IDLE
        self._known: dict[bytes, int] = {}
        self._look = 0.0
        self._electorate: tuple[int, frozenset[Verifier], int] | None = None  # of a size of the log
        self._issued: tuple[datetime, tuple[bytes, bytes]] | None = None
        self._doors: list[_Door] = []

    async def run(self) -> None:
        """Start everything, say where it is in ``run/status.json``, and keep it up."""
        home = self._home
        lock = _claim(home)
        _allow_connections()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        fleet, control = _free_port(), _free_port()
        self._child = superlink.child(home.folder / "superlink", home.folder, self._authority, fleet, control)
        self._control = superlink.Control(f"{superlink.LOOPBACK}:{control}", self._authority.certificate_pem)
        async with AsyncExitStack() as up:  # ended from the last to the first, also if one of them does not start
            up.callback(lock.close)
            up.callback(self._child.stop)
            up.callback(serve(self._metrics, "127.0.0.1", home.settings.metrics_port).close)
            self._doors = [_Door(self._fleet(fleet)), _Door(self._enrolment()), *map(_Door, self._ledger(up))]
            for door in self._doors:
                up.push_async_callback(door.close, 1.0)
                await door.open()
            up.callback((home.run_folder / "status.json").unlink, missing_ok=True)
            self._child.start()
            await self._wait_ready()
            self._write_status(control)
            _LOG.info("the coordinator of %s is ready: fleet %s, enrolment %s", home.origin, home.fleet, home.enrolment)
            await self._tend()
            _LOG.info("the coordinator of %s is stopping", home.origin)

    def _fleet(self, fleet: int) -> Listen:
        """The gateway on its public port, in front of the SuperLink on its loopback port."""
        settings = self._home.settings
        trust = grpc.ssl_channel_credentials(self._authority.certificate_pem)
        channel = grpc.aio.secure_channel(f"{superlink.LOOPBACK}:{fleet}", trust, options=OPTIONS)
        gateway = Gateway(
            channel, self._home.registry.member, self._note_seen, self._metrics.gateway_call,
            max_reply=settings.max_reply_mib << 20,
        )  # fmt: skip

        async def listen() -> grpc.aio.Server:
            server = grpc.aio.server(options=SERVER_OPTIONS)
            server.add_generic_rpc_handlers((gateway.relay,))
            address = f"{settings.bind}:{settings.fleet_port}"
            try:
                server.add_secure_port(address, self._credentials())
            except RuntimeError as error:
                raise ConfigurationError(
                    f"The fleet port {address} cannot be used ({error}): stop what holds it, or change fleet_port in "
                    "coordinator.toml."
                ) from error
            await server.start()
            return server

        return listen

    def _enrolment(self) -> Listen:
        home = self._home
        answers = enrolment.Enrolment(
            home.registry, self._authority, home.facts, self._roster, home.motions, utc_now,
            home.settings.certificate_hours,
        )  # fmt: skip

        async def listen() -> grpc.aio.Server:
            address = f"{home.settings.bind}:{home.settings.enrolment_port}"
            return (await enrolment.start(answers, address, self._certificate))[0]

        return listen

    def _ledger(self, up: AsyncExitStack) -> list[Listen]:
        """The ledger for members to read, if it is served: from a log without its key, in threads of its own."""
        home = self._home
        if not home.settings.ledger_port:
            return []
        with home.log():
            pass  # brings a ledger of an older version up to this one's, which needs the key
        log = Log.read(home.database)
        up.callback(log.close)
        answers = service.Service(Local(log, lambda: self._electors(log)), home.registry.member, utc_now)
        up.callback(answers.close)

        async def listen() -> grpc.aio.Server:
            address = f"{home.settings.bind}:{home.settings.ledger_port}"
            return (await service.start(answers, address, self._credentials()))[0]

        return [listen]

    def _electors(self, log: Log) -> tuple[frozenset[Verifier], int]:
        """The witnesses whose cosignatures count now, and how many must agree."""
        known, size = self._electorate, log.head.size
        if known is None or known[0] != size:
            epoch = membership.epoch(log, size)
            self._electorate = known = (size, frozenset(one.verifier for one in epoch.members.values()), epoch.quorum)
        return known[1:]

    def _credentials(self) -> grpc.ServerCredentials:
        """The server's certificate as it is now; members must show one of the same authority.

        Not asked for at each handshake: gRPC's dynamic credentials end the process when peers leave in the middle of
        one (docs/adr/0023-server-certificates.md). So a port is opened anew when the certificate is renewed.
        """
        return grpc.ssl_server_credentials([self._certificate()], self._authority.certificate_pem, True)

    async def _renew(self) -> None:
        """Open the ports anew if their certificate is due, and those that could not be."""
        due = self._issued is not None and utc_now() - self._issued[0] > _CERTIFICATE / 2
        for door in self._doors:
            if due:
                await door.close(_RENEWAL_SECONDS)
            try:
                await door.open()
            except ConfigurationError as error:
                self._complain(error)

    def _certificate(self) -> tuple[bytes, bytes]:
        now = utc_now()
        if self._issued is None or now - self._issued[0] > _CERTIFICATE / 2:
            names = [*self._home.hosts, superlink.LOOPBACK, "localhost"]
            hours = int(_CERTIFICATE.total_seconds() // 3600)
            self._issued = (now, self._authority.issue_server(names, now, hours))
            self._metrics.certificate((now + _CERTIFICATE).timestamp())
        return self._issued[1]

    async def _wait_ready(self) -> None:
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        while not await asyncio.to_thread(self._control.ready):
            self._child.require()
            if asyncio.get_running_loop().time() > deadline:
                raise NetworkError(
                    f"Flower's SuperLink was not ready within {READY_SECONDS:g} s: see {self._child.log}."
                )
            await asyncio.sleep(0.3)

    async def _tend(self) -> None:
        """Keep the SuperLink up, and its list of nodes the registry's, until told to stop."""
        while not self._stop.is_set():
            if self._child.tend():
                self._metrics.superlink_restarted()
            await self._renew()
            try:
                await asyncio.to_thread(self._register)
            except NetworkError:
                pass  # the SuperLink is just starting again
            except CausalDAOError as error:  # a full disk, say: those who are in stay in, and it is tried again
                self._complain(error)
            else:
                self._complained = ""
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), TEND_SECONDS)

    def _complain(self, error: CausalDAOError) -> None:
        if error.message != self._complained:
            self._complained = error.message
            _LOG.error("members and studies cannot be looked up, trying again every second: %s", error.message)

    def _register(self) -> None:
        """Let in whom the registry admits, also when the SuperLink has lost its own state."""
        now = time.monotonic()
        if now >= self._look:
            self._known, self._look = self._control.nodes(), now + _LOOK_SECONDS
        members = self._home.registry.members()
        for member in members:
            if member.state == "admitted" and (member.node_id is None or member.tls.encode() not in self._known):
                self._known[member.tls.encode()] = node = self._control.register(member.tls, member.name)
                self._home.registry.set_node(member.name, node)
                _LOG.info("%s is admitted, its node is %d", member.name, node)
            elif member.state == "revoked" and member.node_id is not None:
                if member.node_id in self._known.values():  # else a kill came between this and the next line
                    self._control.unregister(member.node_id)
                    self._known = {key: node for key, node in self._known.items() if node != member.node_id}
                self._home.registry.set_node(member.name, None)
                _LOG.warning("%s is revoked, its node %d was unregistered", member.name, member.node_id)
        self._write_seen()
        self._metrics.members(Counter(member.state for member in members))
        studies = self._home.registry.studies()
        self._metrics.studies(Counter(study.state for study in studies))
        running = [study.hash for study in studies if study.state == "running"]
        standings = [one for study in running for one in self._home.registry.standings(study).values()]
        self._metrics.standings(Counter(standing.state for standing in standings))
        self._tell_phase(running)

    def _tell_phase(self, running: Sequence[str]) -> None:
        """The phase of the running study that spoke last; its events come in order, so only the new ones are read."""
        for study in running:
            for event in self._home.registry.events(study, self._last.get(study, 0)):
                self._last[study] = event.id
                if event.phase not in (self._phase, QUARANTINE, WAITING):
                    self._phase = event.phase
                    self._metrics.phase(event.phase, event.time.timestamp())
        if not running and self._phase != IDLE:
            self._phase = IDLE
            self._metrics.phase(IDLE)

    def _roster(self) -> Roster:
        """Who may connect. Whether they are enough to bear liars is a study's question: the first few are too few."""
        with self._home.log() as log:
            epoch = membership.epoch(log)
        return Roster(epoch.federation, tuple(epoch.members.values()))

    def _note_seen(self, name: str) -> None:
        """Only noted: a member's call must neither wait for the database nor fail with it."""
        self._heard[name] = utc_now()

    def _write_seen(self) -> None:
        for name, at in list(self._heard.items()):
            if at - self._seen.get(name, datetime.min.replace(tzinfo=UTC)) > _SEEN:
                self._seen[name] = at
                self._home.registry.seen(name, at)

    def _write_status(self, control: int) -> None:
        settings = self._home.settings
        ports = {
            "fleet": settings.fleet_port, "enrolment": settings.enrolment_port, "ledger": settings.ledger_port,
            "control": control,
        }  # fmt: skip
        status = {
            "pid": os.getpid(), "born": born(os.getpid()), "started": utc_now().isoformat(), "ports": ports,
            "control": f"{superlink.LOOPBACK}:{control}", "ledger": self._home.ledger,
        }  # fmt: skip
        write_text(self._home.run_folder / "status.json", json.dumps(status))


def start(home: Home) -> None:
    """Run the coordinator of a folder until it is told to stop."""

    async def run() -> None:
        await Daemon(home).run()

    asyncio.run(run())


def _claim(home: Home) -> IO[str]:
    """The folder is this process's alone."""
    home.run_folder.mkdir(exist_ok=True)
    lock = hold(home.run_folder / "lock")
    if lock is None:
        raise ConfigurationError(f"The coordinator of {home.folder} is running already: see its status.")
    (home.run_folder / "status.json").unlink(missing_ok=True)  # of one that was killed
    return lock


def _allow_connections() -> None:
    """The usual 1024 open files are soon taken by connections that somebody holds; then the database cannot be opened
    either."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((superlink.LOOPBACK, 0))
        return int(found.getsockname()[1])
