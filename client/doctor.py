"""The checks of a node's folder, for `causaldao doctor`. They read, and change nothing.

A report may leave the house. So of the data it says whether they can be read and how many columns there are, and never
a value, a column's name, or the text of a reader's error, which can quote a record.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from causaldao.doctor import TIMEOUT_SECONDS, Check, certificate, key_files, listens, space, sqlite_file
from causaldao.errors import CausalDAOError

_KEYS = ("signing.pem", "witness.pem", "tls.pem")
_SIMULATED_KEY = "key.pem"
_JOIN = "causaldao node join, with the token that the operator gives you"
_APART = timedelta(hours=1)


def settings(folder: Path) -> Check:
    """``node.toml`` is valid."""
    from causaldao.client.config import NodeConfig  # here: it brings pandas

    try:
        config = NodeConfig.load(folder, joined=False)
    except CausalDAOError as error:
        return Check("settings", "fail", str(error), "Mend node.toml.")
    if config.insecure_seed is not None:
        return Check("settings", "warn", "insecure_seed is set: the noise can be foretold", "Remove it for real data.")
    return Check("settings", "ok", f"node.toml is valid, {len(config.approved)} studies approved in it")


def keys(folder: Path) -> Check:
    """The keys that joining made; a simulated node has one."""
    if (folder / _SIMULATED_KEY).exists():
        return key_files(folder, (_SIMULATED_KEY,))
    if not (folder / "federation.json").exists():
        return Check("keys", "warn", "this node has not joined a federation", f"Run {_JOIN}.")
    return key_files(folder, _KEYS)


def own_certificate(folder: Path) -> Check:
    """The node's certificate, which the running node renews by itself."""
    path = folder / "certificate.pem"
    if not path.exists():
        return Check("certificate", "warn", "none yet", "The node fetches it when the operator has admitted it.")
    remedy = "The running node renews it: start it, and look at its log if it runs."
    return certificate("certificate", path, datetime.now(UTC), timedelta(hours=2), remedy)


def data(folder: Path) -> Check:
    """The source of the rows can be read, and holds the columns that are mapped."""
    from causaldao.client.config import NodeConfig
    from causaldao.client.data.sources import batches

    try:
        config = NodeConfig.load(folder, joined=False)
    except CausalDAOError:
        return Check("data", "fail", "not looked at: node.toml is not valid", "Mend node.toml first.")
    try:
        part = next(iter(batches(config.table, folder)), None)
    except CausalDAOError as error:
        detail = f"the source cannot be read ({error.code})"
        return Check("data", "fail", detail, "causaldao node dry-run says why, for your eyes only.")
    columns = [] if part is None else [str(name) for name in part.columns]
    lost = [name for name, column in config.mapping.items() if column.column not in columns]
    if lost:
        detail = f"the columns of these variables are not there: {', '.join(lost)}"
        return Check("data", "fail", detail, "Correct [mapping] in node.toml.")
    return Check("data", "ok", f"the source can be read and has {len(columns)} columns")


def coordinator(folder: Path) -> Check:
    """Both doors of the coordinator take a connection; nothing is sent."""
    federation = _federation(folder)
    if not federation:
        return Check("coordinator", "warn", "not known: this node has not joined", f"Run {_JOIN}.")
    addresses = {door: str(federation.get(door, "")) for door in ("fleet", "enrolment")}
    silent = [f"{door} ({address})" for door, address in addresses.items() if not _answers(address)]
    if silent:
        detail = f"no connection within {TIMEOUT_SECONDS:g} s to {', '.join(silent)}"
        remedy = "Allow outgoing TCP to these ports in your firewall, or ask the operator whether it runs."
        return Check("coordinator", "fail", detail, remedy)
    return Check("coordinator", "ok", f"{' and '.join(addresses.values())} take connections")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return port.isdecimal() and int(port) < 65536 and bool(host) and listens(host.strip("[]"), int(port))


def clocks(folder: Path) -> Check:
    """The coordinator's clock, by which the certificate is dated, and ours, by which its file is, agree."""
    from cryptography import x509

    path = folder / "certificate.pem"
    if not path.exists():
        return Check("clocks", "ok", "not compared: no certificate yet")
    began = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_before_utc
    apart = datetime.fromtimestamp(path.stat().st_mtime, UTC) - began
    if timedelta(0) <= apart <= _APART:
        return Check("clocks", "ok", "ours and the coordinator's agreed when the certificate came")
    way = "behind" if apart < timedelta(0) else "ahead of"
    detail = f"when the certificate came ours was {way} the coordinator's by {abs(apart.total_seconds()):.0f} s"
    return Check("clocks", "warn", detail, "Set the clock by NTP (or ignore this, if the file was copied since).")


def journal(folder: Path) -> Check:
    """The privacy journal is whole and can be written; a node that has answered has one."""
    path = folder / "journal.db"
    if path.exists():
        remedy = "Stop the node and keep the file; never go on with an older copy, which forgets what was spent."
        return sqlite_file("journal", path, remedy)
    if (folder / "answers.db").exists() and _released(folder / "answers.db"):
        remedy = "Find it. Without it the node would spend again what it has spent."
        return Check("journal", "fail", "journal.db is gone, but this node has released answers", remedy)
    return Check("journal", "ok", "none yet: nothing was spent")


def _released(path: Path) -> bool:
    """Whether the node ever answered with a release: its roll calls alone cost nothing."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            query = "SELECT count(*) FROM slots WHERE kind IN ('evidence', 'effects', 'update', 'evaluation')"
            return bool(database.execute(query).fetchone()[0])
    except sqlite3.Error:
        return True  # it cannot be told, so the worse is said


def witness(folder: Path) -> Check:
    """The ledger's witness has its state, and witnesses; without it the node answers no study."""
    from causaldao.client.config import NodeConfig
    from causaldao.client.enrolment import WITNESS_STATE
    from causaldao.client.node import Node
    from causaldao.client.witnessing import open_witness

    path = folder / WITNESS_STATE
    rotate = f"Run causaldao node rotate {folder} for new keys, and again when the members have voted on them."
    if not path.exists():
        if not NodeConfig.load(folder, joined=False).federation:
            return Check("witness", "ok", "none yet: this node has not joined")
        detail = f"{path.name} is gone: nothing more is cosigned under this key, and no study is answered"
        return Check("witness", "fail", detail, f"Never put an older copy in its place. {rotate}")
    stored = sqlite_file("witness", path, f"Never put an older copy in its place. {rotate}")
    if stored.state != "ok":
        return stored
    found = open_witness(Node.open(folder))
    status, suspicion = found.status, found.suspicion
    if status == "retired":
        return Check("witness", "fail", f"retired: {found.reason}", rotate)
    if status == "alarmed":
        remedy = f"Take no part in studies, and show both notes, which {path.name} keeps, to the other members."
        return Check("witness", "fail", f"alarmed: {found.reason}", f"{remedy} Once it is settled: {rotate}")
    if suspicion is not None:
        detail = f"checkpoints refused because their proof does not hold: {suspicion.count}"
        return Check("witness", "warn", detail, "Compare the ledger's newest checkpoint with the other members'.")
    return Check("witness", "ok", f"witnessing, it has seen {found.seen.size} entries of the ledger")


def disk(folder: Path) -> Check:
    """Room for journal and answers, in a folder that others cannot change."""
    if not os.access(folder, os.W_OK):
        return Check("folder", "fail", f"{folder} cannot be written by this user", "Run as its owner.")
    if folder.stat().st_mode & 0o022:
        return Check("folder", "warn", f"others may change files in {folder}", f"chmod go-w {folder}")
    return space("folder", folder, wanted=1.0)


def _federation(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "federation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


CHECKS: Final[tuple[Callable[[Path], Check], ...]] = (
    settings, keys, own_certificate, data, coordinator, clocks, journal, witness, disk,
)  # fmt: skip
