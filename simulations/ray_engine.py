"""Flower's simulation engine, on Ray: the same ServerApp, and the members as ClientApps in worker processes.

A worker holds nothing: each message opens its member from the run's folder, so a run that was killed is resumed on
either engine. Ray is started for this run alone and ends with it. It listens on every address of the machine and runs
what it is sent, so it is told to ask for a token, which only the processes of this run are given. Time is real here.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from causaldao.client.app import client_app
from causaldao.errors import ConfigurationError
from causaldao.server.clock import SystemClock
from causaldao.simulations.members import RunFolder

LOG_FILE = "ray.log"
_OBJECT_STORE = 256 * 2**20  # bytes: a message or two for each worker; what does not fit is spilled to disk
_POLL = 0.05  # seconds
_JOIN = 60.0  # seconds for the threads of an engine that has stopped
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave the accelerators' variables as they are
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # the workers run in this environment, however it was started
}


def require_ray() -> None:
    """Raise a ConfigurationError with the remedy if Ray is not installed."""
    if find_spec("ray") is None:
        raise ConfigurationError(
            "The engine 'ray' needs Ray, which is not installed: install the extra `ray` "
            "(pip install 'causaldao[ray]'), or use --engine inline."
        )


class EngineClock(SystemClock):
    """The machine's own time. Whoever sleeps while the engine stops is woken with an error, and so never waits for
    nodes that are no more."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def sleep(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise ConfigurationError(
                f"The engine 'ray' stopped before the study was over. {LOG_FILE} in the run's folder says why; "
                "go on with --resume, on this engine or the other."
            )


def run(app: ServerApp, out: Path, members: int, clock: EngineClock) -> None:
    """Run a ServerApp over the ``members`` nodes of a run's folder, in at most as many processes as there are cores.

    Raises
    ------
    ConfigurationError
        Ray is not installed, does not start, or stops on its way; ``ray.log`` in the folder holds its words.
    """
    require_ray()
    failed: list[BaseException] = []
    waiting = ServerApp()

    @waiting.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            while len(list(grid.get_node_ids())) < members:
                clock.sleep(_POLL)
            app(grid, context)
        except BaseException as error:
            failed.append(error)
            raise

    with ExitStack() as stack:
        stack.enter_context(_environment())
        stack.enter_context(_logged(out / LOG_FILE))
        # Ray puts sockets there, whose paths have at most 107 characters: a run's folder may be too deep. It opens its
        # own folder to everybody, so that one stands in a folder that is its owner's.
        private = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        temporary = Path(private) / "r"
        stack.callback(_keep_words, temporary, out / LOG_FILE)
        stack.enter_context(_joined(clock))
        from flwr.simulation import run_simulation

        try:
            run_simulation(
                waiting, client_app(RunFolder(str(out.absolute()))), members, "ray", _backend(members, temporary)
            )
        except RuntimeError as error:
            if error in failed:
                raise
            raise ConfigurationError(
                f"Ray could not run the simulation ({error.__cause__ or error}): {out / LOG_FILE} holds its words. "
                "Go on with --resume, on this engine or the other."
            ) from error


def _backend(members: int, temporary: Path) -> Any:
    workers = min(members, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    start = {
        "address": "local", "num_cpus": workers, "num_gpus": 0, "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE, "log_to_driver": False, "logging_level": "error",
        "_temp_dir": str(temporary),
    }  # fmt: skip
    return {"init_args": start, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def _environment() -> Iterator[None]:
    """No telemetry, no usage statistics, a fresh token; Flower's change of PYTHONPATH is undone afterwards."""
    from flwr.supercore import telemetry

    before, enabled = dict(os.environ), telemetry.FLWR_TELEMETRY_ENABLED
    # A port that is named: for one that it finds by itself, Ray waits 30 s and no longer, loaded as the machine may be.
    os.environ.update(_ENVIRONMENT, RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_GCS_SERVER_PORT=str(_free_port()))
    telemetry.FLWR_TELEMETRY_ENABLED = "0"  # it was read when Flower was imported
    try:
        yield
    finally:
        telemetry.FLWR_TELEMETRY_ENABLED = enabled
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """Flower's words go to a file, not to the terminal."""
    logger = logging.getLogger("flwr")
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers, propagate = list(logger.handlers), logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        handler.close()


@contextmanager
def _joined(clock: EngineClock) -> Iterator[None]:
    """Nothing of the engine goes on when it is left: its sleepers are woken, its threads waited for, Ray shut down."""
    before = set(threading.enumerate())
    try:
        yield
    finally:
        clock.stopped.set()
        import_module("ray").shutdown()
        for thread in set(threading.enumerate()) - before:
            if not thread.daemon:
                thread.join(_JOIN)


def _keep_words(temporary: Path, file: Path) -> None:
    """What the workers wrote, before Ray's own folder goes."""
    with file.open("a", encoding="utf-8") as kept:
        for words in sorted(temporary.glob("session_*/logs/worker-*.err")):
            if not words.is_symlink():
                kept.write(words.read_text(encoding="utf-8", errors="replace"))
