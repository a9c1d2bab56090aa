"""A whole deployment on loopback, for tests and benchmarks: real processes, TLS, free ports, and none left behind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from causaldao.client import approvals, enrolment
from causaldao.client.privacy.journal import Journal
from causaldao.enrolment import Token
from causaldao.errors import NetworkError
from causaldao.server.home import Home, Settings
from causaldao.server.progress import QUARANTINE, WAITING
from causaldao.server.studies import put_forward
from causaldao.study import Study

READY_SECONDS = 120.0
LOOPBACK = "127.0.0.1"
PORTS = range(15_000, 30_000)  # Linux gives those from 32768 to connections, macOS those from 49152
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def now() -> datetime:
    return datetime.now(UTC)


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on, none of those that the system gives to connections going out: while a
    coordinator is down, one of these could take its port."""
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.choice(PORTS)
        with socket.socket() as found, suppress(OSError):
            found.bind((LOOPBACK, port))
            ports += [] if port in ports else [port]
    return ports


def wait_for(what: str, ready: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
    """Wait until ``ready`` says so; a NetworkError that says what was waited for."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise NetworkError(f"Waited {seconds:g} s for {what}, in vain.")
        time.sleep(0.1)


@dataclass
class Process:
    """A command of ours that runs until it is told to stop."""

    arguments: list[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "causaldao", *self.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**ENVIRONMENT, **self.environment},
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """As a power cut would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def require(self) -> None:
        """A NetworkError with what it said last, if it has ended."""
        if not self.running:
            raise NetworkError(f"{' '.join(self.arguments[:2])} ended: {self.said[-3000:]}")

    def stop(self, seconds: float = 30.0) -> int:
        """Politely; its exit status."""
        if self.process is None:
            return 0
        if self.running:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


class Deployment:
    """A coordinator and nodes in ``folder``; ``with Deployment(...) as deployment`` ends every process it started."""

    def __init__(
        self,
        folder: Path,
        tables: Mapping[str, pd.DataFrame],
        *,
        seed: int | None = 0,
        public_fleet: str = "",
        database: str = "sqlite:///coordinator.db",
    ) -> None:
        self.folder = folder
        self.tables = dict(tables)
        self.seed = seed
        self.fleet_port, self.enrolment_port, self.ledger_port = free_ports(3)
        settings = Settings(
            federation="wire", host=LOOPBACK, bind=LOOPBACK, fleet_port=self.fleet_port,
            enrolment_port=self.enrolment_port, ledger_port=self.ledger_port, public_fleet=public_fleet,
            database=database,
        )  # fmt: skip
        self.home = Home.create(folder / "coordinator", settings, now())
        self.coordinator = Process(["coordinator", "start", str(self.home.folder)], folder / "coordinator.log")
        self.nodes = {
            name: Process(["node", "start", str(self.node_folder(name))], folder / f"{name}.log")
            for name in self.tables
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = [*self.nodes.values(), self.coordinator]
        for process in processes:
            if process.process is not None and process.running:
                process.process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.stop()
            except subprocess.TimeoutExpired:
                process.kill()
        self.home.registry.close()
        left = self.processes_left()
        if error is None and left:
            raise NetworkError(f"Processes were left behind: {left}.")

    def processes_left(self, seconds: float = 10.0) -> list[str]:
        """Command lines that name this deployment's folder and are still there after a while."""
        deadline = time.monotonic() + seconds
        while (left := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def coordinator_pids(self) -> list[int]:
        """The coordinator's process, and Flower's SuperLink under it."""
        own = 0 if self.coordinator.process is None else self.coordinator.process.pid
        return [own, *self._children(own)]

    @staticmethod
    def _children(parent: int) -> list[int]:
        listed = Path(f"/proc/{parent}/task").glob("*/children")
        return [int(pid) for path in listed for pid in path.read_text().split()]

    def _processes(self) -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if int(entry.name) != os.getpid() and (str(self.folder) in command or str(self.folder) in environment):
                found.append(command)
        return found

    def node_folder(self, name: str) -> Path:
        return self.folder / name

    def start_coordinator(self) -> None:
        self.coordinator.start()

        def ready() -> bool:
            self.coordinator.require()
            return self.home.status() is not None

        wait_for("the coordinator", ready)

    def enrol(self, *names: str, admit: bool = True) -> None:
        """Make nodes' folders, join, and admit them; all of them if none is named."""
        for name in names or self.tables:
            folder = self.node_folder(name)
            folder.mkdir()
            self.tables[name].to_parquet(folder / "data.parquet")
            seed = "" if self.seed is None else f"insecure_seed = {self.seed}\n"
            (folder / "node.toml").write_text(
                f'name = "{name}"\ndata = "data.parquet"\ndataset = "small"\n{seed}[lifetime]\nepsilon = 10000.0\n'
            )
            enrolment.make_keys(folder)
            enrolment.join(folder, self.token(name), now())
            if admit:
                self.home.admit(name, now())

    def token(self, name: str) -> str:
        secret = self.home.registry.invite(name, now())
        authority = self.home.authority.certificate_der
        return Token(self.home.origin, name, self.home.enrolment, secret, authority).to_text()

    def approve(self, study: Study, *names: str) -> None:
        for name in names or self.tables:
            approvals.approve(self.node_folder(name), study, now())

    def start_nodes(self, *names: str) -> None:
        for name in names or self.nodes:
            self.nodes[name].start()
        wait_for("the nodes", lambda: all(self.node_state(name) == "running" for name in names or self.nodes))

    def node_state(self, name: str) -> str:
        self.nodes[name].require()
        try:
            return str(json.loads((self.node_folder(name) / "run" / "status.json").read_text())["state"])
        except (OSError, ValueError):
            return ""

    def run_study(
        self, study: Study | str, *, resume: bool = False, seconds: float = 400.0
    ) -> tuple[int, dict[str, Any]]:
        """``causaldao study run|resume … --json``: the exit status and the envelope."""
        process = self.begin_study(study, resume=resume)
        out, _ = process.communicate(timeout=seconds)
        return process.returncode, json.loads(out)

    def begin_study(self, study: Study | str, *, resume: bool = False) -> subprocess.Popen[bytes]:
        """The same, without waiting."""
        name = study if isinstance(study, str) else self.propose(study)
        arguments = ["study", "resume" if resume else "run", str(self.home.folder), name, "--json"]
        with (self.folder / "study.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "causaldao", *arguments], stdout=subprocess.PIPE, stderr=log, env=ENVIRONMENT
            )

    def propose(self, study: Study) -> str:
        return put_forward(self.home, study).hash

    def debits(self, name: str) -> list[tuple[str, str, int]]:
        """Study, kind and round of every debit in a node's journal."""
        journal = self.node_folder(name) / "journal.db"
        found = Journal.open(journal).debits() if journal.exists() else ()
        return [(debit.key.study, debit.key.kind, debit.key.round) for debit in found]

    def phases(self, study: Study) -> list[str]:
        """The phases of a study as its coordinator told them, each once for every time it was entered."""
        events = self.home.registry.events(study.hash)
        told = [event.phase for event in events if event.phase not in (QUARANTINE, WAITING, "pool", "adopt")]
        return [phase for phase, _ in groupby(told)]

    def state(self, study: Study) -> str:
        """The last state of a study on the ledger."""
        with self.home.log() as log:
            states = [
                r.kind.removeprefix("study.")
                for r in log.entries()
                if r.body.get("study") == study.hash and r.kind.startswith("study.")
            ]
        return states[-1] if states else ""
