"""A private PostgreSQL server for the tests: made, started and ended here, reached through a socket in its own folder.

It is looked for where PATH, ``pg_config`` and Debian put it; a machine without it cannot run these tests, and they say
so instead of being left out.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

SECONDS = 30.0


@dataclass
class Server:
    """A running server; `schema` makes one more empty place in it."""

    socket: Path
    numbers: Iterator[int] = field(default_factory=count)

    def schema(self) -> str:
        """The name of a new schema, which stands for a database of its own and is made in a tenth of the time."""
        name = f"ledger{next(self.numbers)}"
        self.run(f"CREATE SCHEMA {name}")
        return name

    def url(self, schema: str, user: str = "causaldao", password: str = "") -> str:
        """The URL of a ledger in that schema."""
        secret = f":{password}" if password else ""
        options = f"host={self.socket}&options=-csearch_path%3D{schema}"
        return f"postgresql+psycopg://{user}{secret}@/postgres?{options}"

    def run(self, *statements: str, schema: str = "public") -> list[Any]:
        """Run statements as the owner, each by itself; the rows of the last."""
        found: list[Any] = []
        where = {"host": str(self.socket), "dbname": "postgres", "options": f"-csearch_path={schema}"}
        with psycopg.connect(**where, user="causaldao", autocommit=True) as connection:
            for statement in statements:
                rows = connection.execute(statement.encode())
                found = rows.fetchall() if rows.description else []
        return found


@contextmanager
def server() -> Iterator[Server]:
    """A server of this process, in a folder of its own under the system's temporary folder; nothing of it is left."""
    binaries, user = _binaries(), _user()
    folder = Path(tempfile.mkdtemp(prefix="causaldao-pg-"))
    try:
        if user is not None:
            shutil.chown(folder, user["user"], user["group"])
        data = folder / "data"
        made = [binaries / "initdb", "--no-sync", "--auth=trust", "--encoding=UTF8", "--no-locale", "-U", "causaldao"]
        subprocess.run([*made, "-D", data], check=True, capture_output=True, cwd=folder, **(user or {}))
        settings = {"listen_addresses": "", "unix_socket_directories": folder, "max_connections": 40}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd=folder, **(user or {})
            )
        try:
            yield _ready(Server(folder), process, folder / "log")
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: it ends its own processes, and nothing is to be kept
            process.wait(SECONDS)
    finally:
        shutil.rmtree(folder)


def _ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> Server:
    until = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < until:
        with suppress(psycopg.OperationalError):
            server.run("SELECT 1")
            return server
        time.sleep(0.05)
    raise RuntimeError(f"The PostgreSQL server did not start:\n{log.read_text(errors='replace')}")


def _binaries() -> Path:
    """The folder of initdb and postgres."""
    places = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    if shutil.which("pg_config"):
        done = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True)
        places.append(Path(done.stdout.strip()))
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in places:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise RuntimeError("These tests need a PostgreSQL server's initdb and postgres: install the package postgresql.")


def _user() -> dict[str, Any] | None:
    """PostgreSQL refuses to be run by root: another user, if that is who we are."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_name, "group": entry.pw_gid, "extra_groups": []}
