"""`causaldao doctor`: what is wrong with an installation or a folder, and what to do about it.

A check is a plain function that returns a `Check`; adding one is one function and one entry in its tuple. The checks of
a coordinator's and of a node's folder stand on their floors and are found by name, as the front door finds commands.
Checks read, and change nothing. What they say can be shown to a stranger: no key, no row, no name of a column.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

import causaldao
from causaldao.console import command
from causaldao.errors import CausalDAOError, ConfigurationError, Finding

State = Literal["ok", "warn", "fail"]
FLOORS: Final = ("client", "ledger", "models", "server", "simulations")
FLOWER: Final = ("flower-superlink", "flower-supernode")
PYTHON: Final = ((3, 11), (3, 14))
FOLDERS: Final[Mapping[str, str]] = {
    "coordinator.toml": "causaldao.server.doctor", "node.toml": "causaldao.client.doctor",
}  # fmt: skip
TIMEOUT_SECONDS: Final = 3.0
_GIB = 1 << 30

doctor_app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@dataclass(frozen=True)
class Check:
    """What a check found. ``remedy`` says what to do if ``state`` is not ok."""

    name: str
    state: State
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" + (f" → {self.remedy}" if self.remedy else "")


def python() -> Check:
    """The version of Python is one that is tested."""
    version, (least, below) = sys.version_info[:2], PYTHON
    detail = f"Python {'.'.join(map(str, sys.version_info[:3]))}"
    if least <= version < below:
        return Check("python", "ok", detail)
    return Check("python", "fail", detail, f"Use Python 3.{least[1]} to 3.{below[1] - 1}.")


def packages() -> Check:
    """What causaldao declares to need is installed, in the versions that it declares."""
    from packaging.requirements import Requirement  # here: without it the other checks still run

    declared = [Requirement(text) for text in importlib.metadata.requires("causaldao") or ()]
    needed = [one for one in declared if one.marker is None or one.marker.evaluate({"extra": ""})]
    problems = []
    for requirement in needed:
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing, expected {requirement.specifier}")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement.name} is {found}, expected {requirement.specifier}")
    if problems:
        remedy = "Install causaldao again, with its constraints file, into an environment of its own."
        return Check("packages", "fail", "; ".join(problems), remedy)
    return Check("packages", "ok", f"{len(needed)} packages, each in a version that is asked for")


def flower_commands() -> Check:
    """Flower's programs lie beside the interpreter, where the daemons start them."""
    folder = Path(sys.executable).parent
    missing = [name for name in FLOWER if not os.access(folder / name, os.X_OK)]
    if missing:
        return Check("flower", "fail", f"{', '.join(missing)} not in {folder}", "Install flwr into this environment.")
    return Check("flower", "ok", f"{' and '.join(FLOWER)} in {folder}")


def checkout(package: Path = Path(causaldao.__file__).parent) -> Check:
    """In a source tree the links from the package to the top-level folders are there; a ZIP or Windows breaks them."""
    if not (package.parent / "pyproject.toml").is_file():
        return Check("files", "ok", f"installed in {package}")
    broken = [name for name in FLOORS if _link(package / name) != f"../{name}"]
    if not broken:
        return Check("files", "ok", f"source tree {package.parent}, all {len(FLOORS)} links there")
    detail = f"in {package} these are no links to the folders beside it: {', '.join(broken)}"
    return Check(
        "files",
        "fail",
        detail,
        "Clone with git on Linux or macOS: git config core.symlinks true; git checkout causaldao",
    )


def _link(path: Path) -> str:
    return os.readlink(path) if path.is_symlink() else ""


def temporary_space() -> Check:
    """There is room for temporary files."""
    return space("temporary files", Path(tempfile.gettempdir()))


def space(name: str, folder: Path, least: float = 0.2, wanted: float = 2.0) -> Check:
    """Free disk of ``folder``: fails under ``least`` GiB, warns under ``wanted``."""
    free = shutil.disk_usage(folder).free / _GIB
    detail = f"{free:.1f} GiB free in {folder}"
    if free >= wanted:
        return Check(name, "ok", detail)
    return Check(name, "fail" if free < least else "warn", detail, f"Free some: {wanted:g} GiB are comfortable.")


def clock(now: Callable[[], float] = time.time, package: Path = Path(causaldao.__file__)) -> Check:
    """The clock is not behind the installed files, and agrees with the disk's."""
    behind = package.stat().st_mtime - now()
    with tempfile.NamedTemporaryFile() as probe:
        apart = os.stat(probe.name).st_mtime - now()
    remedy = "Set the clock by NTP: certificates and deadlines depend on it."
    if behind > 60:
        return Check("clock", "fail", f"the clock is {behind:.0f} s behind the installed files", remedy)
    if abs(apart) > 2:
        return Check("clock", "warn", f"the clock and that of the temporary disk are {abs(apart):.0f} s apart", remedy)
    return Check("clock", "ok", datetime.fromtimestamp(now(), UTC).isoformat(timespec="seconds"))


def entropy() -> Check:
    """The operating system's random numbers are ready: keys and noise are drawn from them."""
    if sys.platform == "linux":
        try:
            os.getrandom(32, os.GRND_NONBLOCK)
        except BlockingIOError:
            return Check(
                "entropy", "fail", "the kernel has not gathered enough yet", "Wait, or give the machine a virtio-rng."
            )
    return Check("entropy", "ok", "the operating system's random numbers are ready")


def loopback() -> Check:
    """Programs of this machine reach each other on 127.0.0.1: Flower and ours talk so."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            socket.create_connection(listening.getsockname(), timeout=TIMEOUT_SECONDS).close()
    except OSError as error:
        return Check(
            "loopback", "fail", f"127.0.0.1: {error.strerror}", "Bring the loopback interface up (ip link set lo up)."
        )
    return Check("loopback", "ok", "127.0.0.1 can be bound and reached")


def open_files() -> Check:
    """A process may hold enough files and connections open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= 1024:
        return Check("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"up to {soft}")
    return Check("open files", "fail" if soft < 256 else "warn", f"only up to {soft}", "Raise it: ulimit -n 4096")


def orphans(list_processes: Callable[[], str] | None = None) -> Check:
    """No program of Flower outlived the daemon that started it (it can, where the kernel does not end it: macOS)."""
    try:
        rows = (list_processes or _processes)().splitlines()
    except (OSError, subprocess.SubprocessError):
        return Check("left-over processes", "ok", "not looked for: there is no ps here")
    split = [row.split(None, 2) for row in rows]
    table = [(int(one[0]), int(one[1]), one[2]) for one in split if len(one) == 3]
    # In a container our own daemon may be process 1, and its children are no orphans
    if any(pid == 1 and "causaldao" in line for pid, _, line in table):
        table = []
    left = [pid for pid, parent, line in table if parent == 1 and any(name in line for name in FLOWER)]
    if not left:
        return Check("left-over processes", "ok", "none of Flower's programs is without its daemon")
    numbers = " ".join(map(str, left))
    return Check(
        "left-over processes", "warn", f"Flower's programs without a daemon of ours: {numbers}",
        f"If nobody else uses Flower here: kill {numbers}",
    )  # fmt: skip


def _processes() -> str:
    command = ["ps", "-A", "-o", "pid=,ppid=,args="]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_SECONDS).stdout


INSTALLATION: Final[tuple[Callable[[], Check], ...]] = (
    python, packages, flower_commands, checkout, temporary_space, clock, entropy, loopback, open_files, orphans,
)  # fmt: skip


# What the checks of both kinds of folder are made of


def key_files(folder: Path, names: Iterable[str]) -> Check:
    """The keys are there, readable by their owner only."""
    problems, remedies = [], []
    for path in (folder / name for name in names):
        if not path.is_file():
            problems.append(f"{path.name} is missing")
            remedies.append(f"restore {path.name} from a backup")
        elif path.stat().st_mode & 0o077:
            problems.append(f"{path.name} has mode {path.stat().st_mode & 0o777:04o}: others may read it")
            remedies.append(f"chmod 600 {path}")
        elif not os.access(path, os.R_OK):
            problems.append(f"{path.name} cannot be read by this user")
            remedies.append(f"run as its owner, user {path.stat().st_uid}")
    if problems:
        return Check("keys", "fail", "; ".join(problems), "; ".join(remedies))
    return Check("keys", "ok", f"{', '.join(names)}: readable by their owner only")


def certificate(name: str, path: Path, now: datetime, wanted: timedelta, remedy: str) -> Check:
    """A certificate's dates: fails outside them, warns with less than ``wanted`` left."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return Check(name, "fail", f"{path.name} cannot be read ({type(error).__name__})", remedy)
    left = found.not_valid_after_utc - now
    if now < found.not_valid_before_utc:
        since = found.not_valid_before_utc.isoformat(timespec="seconds")
        return Check(name, "fail", f"{path.name} is valid only from {since}", "Set the clock by NTP.")
    detail = f"{path.name} is valid until {found.not_valid_after_utc.isoformat(timespec='minutes')}"
    if left <= timedelta(0):
        return Check(name, "fail", f"{detail}: expired", remedy)
    return Check(name, "warn", detail, remedy) if left < wanted else Check(name, "ok", detail)


def sqlite_file(name: str, path: Path, remedy: str) -> Check:
    """An SQLite file is whole and can be written. It is locked for an instant, and nothing is written."""
    try:
        with closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=TIMEOUT_SECONDS)
        ) as database:
            health = database.execute("PRAGMA quick_check").fetchone()[0]
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        return Check(name, "fail", f"{path.name}: {error}", remedy)
    if health != "ok" or not os.access(path.parent, os.W_OK):
        why = "it is damaged" if health != "ok" else "its folder cannot be written"
        return Check(name, "fail", f"{path.name}: {why}", remedy)
    return Check(name, "ok", f"{path.name} is whole and can be written")


def running(folder: Path) -> int | None:
    """The process that a folder's ``run/status.json`` speaks of, if it is alive."""
    try:
        number = int(json.loads((folder / "run" / "status.json").read_text(encoding="utf-8"))["pid"])
        os.kill(number, 0)
    except PermissionError:
        return number  # alive, and another user's
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return number


def listens(host: str, port: int) -> bool:
    """Whether somebody answers at an address."""
    with suppress(OSError, UnicodeError), socket.create_connection((host, port), timeout=TIMEOUT_SECONDS):
        return True
    return False


def toml(path: Path) -> dict[str, Any]:
    """A TOML file, empty if it cannot be read: the check of the settings says why."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}


# The command


def examine(folder: Path | None = None) -> tuple[Check, ...]:
    """All checks of the installation, and of ``folder`` if it is given.

    Raises ConfigurationError for a folder that is neither a coordinator's nor a node's.
    """
    checks: list[Callable[[], Check]] = list(INSTALLATION)
    if folder is not None:
        checks += [_of_folder(check, folder) for check in _folder_checks(folder)]
    return tuple(_guarded(check) for check in checks)


def _of_folder(check: Callable[[Path], Check], folder: Path) -> Callable[[], Check]:
    def bound() -> Check:
        return check(folder)

    bound.__name__ = check.__name__
    return bound


def _folder_checks(folder: Path) -> Sequence[Callable[[Path], Check]]:
    kinds = [module for name, module in FOLDERS.items() if (folder / name).is_file()]
    if len(kinds) != 1:
        found = "both" if kinds else "none"
        raise ConfigurationError(
            f"Expected one of {' and '.join(FOLDERS)} in {folder}, found {found}: name a coordinator's or a node's."
        )
    checks: Sequence[Callable[[Path], Check]] = import_module(kinds[0]).CHECKS
    return checks


def _guarded(check: Callable[[], Check]) -> Check:
    """A check that cannot be made is a finding, and the others are made all the same."""
    name = check.__name__.replace("_", " ")
    try:
        return check()
    except CausalDAOError as error:
        return Check(name, "fail", str(error))
    except Exception as error:  # its text is left out: it might hold what a stranger should not see
        return Check(name, "fail", f"the check could not be made ({type(error).__name__})", "Report this.")


@doctor_app.command()
def doctor(
    folder: Annotated[Path | None, typer.Argument(help="A coordinator's or a node's folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")] = False,
) -> None:
    """Check the installation, and FOLDER if given: what is wrong, and what to do. Exit status 1 if a check fails."""
    with command(as_json) as output:
        checks = examine(folder)
        failed = [check for check in checks if check.state == "fail"]
        if failed and as_json:
            raise Finding(_summary(checks), problems=[str(one) for one in checks if one.state != "ok"])
        output.emit({"checks": [asdict(check) for check in checks]}, _report(checks))
        if failed:
            raise Finding(_summary(checks))


def _summary(checks: Sequence[Check]) -> str:
    failed, warned = (sum(check.state == state for check in checks) for state in ("fail", "warn"))
    return f"{failed} of {len(checks)} checks failed, {warned} warned."


def _report(checks: Sequence[Check]) -> str:
    lines = []
    for state in ("fail", "warn", "ok"):
        for check in (one for one in checks if one.state == state):
            lines.append(f"{state:4}  {check.name}: {check.detail}")
            lines += [f"      → {check.remedy}"] if check.remedy else []
    return "\n".join(lines)
