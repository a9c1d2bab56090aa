"""The checks of a coordinator's folder, for `causaldao doctor`. They read, and change nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from causaldao.doctor import Check, certificate, key_files, listens, running, space, sqlite_file, toml
from causaldao.errors import CausalDAOError

_SETTINGS = "coordinator.toml"
_PORTS = {"fleet_port": 9092, "enrolment_port": 9093, "ledger_port": 9094, "metrics_port": 0}
_RESTORE = "Restore the folder from a backup."


def settings(folder: Path) -> Check:
    """``coordinator.toml`` is valid."""
    from causaldao.server.home import Home  # here: it brings the database and Flower

    try:
        home = Home.open(folder)
    except CausalDAOError as error:
        return Check("settings", "fail", str(error), f"Mend {_SETTINGS}.")
    return Check("settings", "ok", f"{_SETTINGS} is valid, federation {home.settings.federation}")


def keys(folder: Path) -> Check:
    """The signing key and the authority's."""
    return key_files(folder, ("signing.pem", "authority.key"))


def authority(folder: Path) -> Check:
    """The authority's certificate, which every member pinned."""
    remedy = "Plan a new federation: members pin this certificate at joining, so it cannot be exchanged."
    return certificate("authority", folder / "authority.crt", datetime.now(UTC), timedelta(days=180), remedy)


def ports(folder: Path) -> Check:
    """The ports are free, or held by our own process."""
    given = toml(folder / _SETTINGS)
    bind = str(given.get("bind", "0.0.0.0"))
    wanted = {name: int(given.get(name, port)) for name, port in _PORTS.items() if int(given.get(name, port))}
    process = running(folder)
    if process is None:
        # Bound as the daemon would: the metrics on loopback, the others where coordinator.toml says
        addresses = {name: ("127.0.0.1" if name == "metrics_port" else bind, port) for name, port in wanted.items()}
        taken = [f"{name} {port}" for name, (host, port) in addresses.items() if not _free(host, port)]
        remedy = f"Stop what holds it, or change it in {_SETTINGS}."
        said = "another program holds, or nobody may bind,"
    else:
        taken = [f"{name} {port}" for name, port in wanted.items() if not listens(_reached(bind), port)]
        remedy = "Wait if it is just starting; else look at its log, and restart it."
        said = f"process {process} runs, but does not answer on"
    if taken:
        return Check("ports", "fail", f"{said} {', '.join(taken)}", remedy)
    listed = ", ".join(f"{name} {port}" for name, port in wanted.items())
    return Check("ports", "ok", f"{listed}: " + ("free" if process is None else f"held by our own process {process}"))


def _reached(bind: str) -> str:
    """Where one reaches on this machine what is bound there."""
    return "127.0.0.1" if bind in ("0.0.0.0", "::", "") else bind


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: a closed connection holds nothing
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def database(folder: Path) -> Check:
    """The database that holds the ledger and the registry can be reached and written."""
    import sqlalchemy as sa

    from causaldao.server.home import Home

    url = sa.make_url(Home.open(folder).database)
    if url.get_backend_name() == "sqlite":
        return sqlite_file("database", Path(url.database or ""), _RESTORE)
    shown = url.render_as_string(hide_password=True)
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"connect_timeout": 3})
    try:
        with engine.connect() as connection:
            read_only = connection.exec_driver_sql("SHOW transaction_read_only").scalar_one()
    except sa.exc.SQLAlchemyError as error:
        detail = f"{shown} does not answer ({type(error).__name__})"
        return Check("database", "fail", detail, "Check that it runs, the URL, and the password's variable.")
    finally:
        engine.dispose()
    if read_only == "on":
        return Check("database", "fail", f"{shown} can only be read", "Name its primary, not a replica.")
    return Check("database", "ok", f"{shown} answers and can be written")


def disk(folder: Path) -> Check:
    """Room for ledger, runs and Flower's state."""
    if not os.access(folder, os.W_OK):
        return Check("folder", "fail", f"{folder} cannot be written by this user", "Run as its owner.")
    return space("folder", folder)


CHECKS: Final[tuple[Callable[[Path], Check], ...]] = (settings, keys, authority, ports, database, disk)
