"""Child processes that do not outlive their parent, and come back when they die.

Both long-running commands stand over Flower's own processes. A child is started through this module's own command
line, which asks the kernel to end it when its parent is gone, whichever way, and then becomes the child. (Linux only:
elsewhere a parent that is killed outright leaves its children, and `causaldao doctor` names them.)
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from causaldao.errors import ConfigurationError, NetworkError

_LOG = logging.getLogger(__name__)
_BACKOFF = (1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before each restart
_STEADY_SECONDS = 60.0  # a child that lived so long is new again
_PR_SET_PDEATHSIG = 1
MAX_LOG_BYTES = 32 << 20
FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else each bundle could install packages
}


def script(name: str) -> str:
    """The path of one of Flower's commands beside this Python; a ConfigurationError if there is none."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise ConfigurationError(f"Flower's command {name!r} is not installed beside {sys.executable}: reinstall.")
    return found


@dataclass
class Child:
    """A process to be kept up. Its output goes to ``log``, which is cut when it grows over 32 MiB."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    restarts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _began: float = 0.0
    _due: float = 0.0
    _failures: int = 0

    def start(self) -> None:
        # Flower starts its own commands by name: they are those beside this Python
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path, **self.environment}
        wrapped = [sys.executable, "-m", "causaldao.children", str(os.getpid()), *self.command]
        self._cut()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                wrapped, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._began = time.monotonic()

    def _cut(self) -> None:
        """Begin the log anew if it is too long. The process appends, so that it goes on at the new end: what others
        make it say must not fill the disk."""
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            os.truncate(self.log, 0)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tend(self) -> bool:
        """Restart the child if it died, not too often. True if it was started again now."""
        self._cut()
        if self.alive():
            return False
        now = time.monotonic()
        if not self._due:
            steady = now - self._began > _STEADY_SECONDS
            self._failures = 0 if steady else self._failures
            wait = _BACKOFF[min(self._failures, len(_BACKOFF) - 1)]
            self._failures += 1
            self._due = now + wait
            code = None if self._process is None else self._process.returncode
            _LOG.error(
                "%s ended with status %s; it is started again in %g s (its log: %s)", self.name, code, wait, self.log
            )
        if now < self._due:
            return False
        self._due = 0.0
        self.restarts += 1
        self.start()
        return True

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, grace: float = 8.0) -> None:
        """End it: politely, then not."""
        self.ask_to_stop()
        self.wait(grace)

    def wait(self, grace: float = 8.0) -> None:
        """Give it time to end as it was asked to, then end it."""
        if self._process is None:
            return
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def require(self) -> None:
        """A NetworkError with the end of its log, if it has ended."""
        if not self.alive():
            code = None if self._process is None else self._process.returncode
            tail = self.log.read_bytes()[-2000:].decode("utf-8", "replace")
            raise NetworkError(f"{self.name} ended with status {code} as it started. The end of {self.log}:\n{tail}")


def born(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did; None if it is gone, or that cannot be told here.

    With its number it names a process for good: numbers are given anew, in a container often the same one.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def stop_all(children: Sequence[Child]) -> None:
    """End children, all at once."""
    for child in children:
        child.ask_to_stop()
    for child in children:
        child.wait()  # asked once only: Flower's processes take a second SIGTERM for an order to drop everything


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: Sequence[str]) -> None:
    """Become ``arguments[1:]``, to end with the process ``arguments[0]``."""
    parent, command = int(arguments[0]), list(arguments[1:])
    end_with_parent()
    if os.getppid() != parent:  # it went before we asked
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
