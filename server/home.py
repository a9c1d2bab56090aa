"""A coordinator's folder: its settings, keys, authority and database, opened by every command of the operator.

coordinator.toml   settings, for people            signing.pem     the coordinator's key (Ed25519)
authority.key/.crt the certificate authority       coordinator.db  ledger and registry (or PostgreSQL, by URL)
policy             what an auditor needs           studies/HASH/   what each study produced
superlink/         Flower's own state              run/            of the running process: status, logs, sockets
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from causaldao import governance
from causaldao.children import born
from causaldao.enrolment import check_address
from causaldao.errors import ConfigurationError, IdentityError, LedgerError, NetworkError
from causaldao.files import write_text
from causaldao.flower_app import fab_hash
from causaldao.ledger.log import Log
from causaldao.members import Member
from causaldao.server import membership
from causaldao.server.authority import Authority
from causaldao.server.ballot_box import MotionRow
from causaldao.server.enrolment import Facts
from causaldao.server.motions import Motions
from causaldao.server.registry import REVOKED, Enrolled, Registry
from causaldao.signing import NAME, SigningKey

SETTINGS = "coordinator.toml"
HOME_VARIABLE = "CAUSALDAO_HOME"  # how the process of a study is told where the coordinator's folder is
DATABASE_VARIABLE = "CAUSALDAO_DATABASE"
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseModel):
    """``coordinator.toml``. A database URL that holds a password belongs into the variable CAUSALDAO_DATABASE."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    federation: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    host: Annotated[str, Field(min_length=1, max_length=253)]
    """The name or address under which institutions reach this machine."""
    bind: str = "0.0.0.0"
    fleet_port: Port = 9092
    enrolment_port: Port = 9093
    ledger_port: Port = 9094
    """Where members read the ledger; 0: nowhere."""
    public_fleet: str = ""
    """HOST:PORT of the fleet port as members reach it, if something (a load balancer, an ingress) stands before it."""
    public_enrolment: str = ""
    public_ledger: str = ""
    metrics_port: Port = 0
    database: str = "sqlite:///coordinator.db"
    faulty: Annotated[int, Field(ge=0)] = 0
    max_reply_mib: Annotated[int, Field(ge=1, le=1024)] = 16
    certificate_hours: Annotated[int, Field(ge=1, le=24 * 7)] = 24

    @field_validator("host")
    @classmethod
    def _reachable(cls, value: str) -> str:
        try:
            check_address(f"{value}:1")
        except IdentityError as error:
            raise ValueError("is no name or address of a machine (an IPv6 address stands in brackets)") from error
        return value

    @field_validator("database")
    @classmethod
    def _without_password(cls, value: str) -> str:
        """These settings are written into a file that others may read."""
        if _database_url(value).password is not None:
            raise ValueError(f"holds a password, which has no place in {SETTINGS}: give the URL in {DATABASE_VARIABLE}")
        return value


class Home:
    """A coordinator's folder. `open` it; the database is opened when it is first asked for."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self._registry: Registry | None = None

    @classmethod
    def create(cls, folder: Path, settings: Settings, now: datetime) -> Home:
        """Make keys, authority, ledger and registry; refuses a folder that holds a coordinator.

        Killed half-way it is called again: what is there is kept, ``coordinator.toml`` is written last.
        """
        if (folder / SETTINGS).exists():
            raise ConfigurationError(f"{folder} holds a coordinator already: use another folder, or go on with it.")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # keys and evidence are in it
        home = cls(folder, settings)
        for name in ("signing.pem", "authority.key"):  # killed as it was made: the name, and nothing in it
            if (folder / name).exists() and not (folder / name).stat().st_size:
                (folder / name).unlink()
        if not (folder / "signing.pem").exists():
            SigningKey.generate().save(folder / "signing.pem")
        if not (folder / "authority.crt").exists():
            Authority.create(folder, settings.federation, now)
        Registry(home.database, create=True).close()
        try:
            log = Log.create(home.database, home.origin, home.key)
        except LedgerError:
            log = Log.open(home.database, home.key)  # of an init that was cut short; another's is refused by its key
        with log:
            membership.found(log, settings.federation, settings.faulty)
            home.write_policy(log)
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.model_dump().items()]
        write_text(folder / SETTINGS, "\n".join(lines))
        return home

    @classmethod
    def open(cls, folder: Path) -> Home:
        path = folder / SETTINGS
        try:
            value = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"{folder} holds no coordinator ({SETTINGS} is missing): run causaldao coordinator init {folder}"
            ) from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{path} cannot be read: {error}.") from error
        try:
            return cls(folder, Settings.model_validate(value))
        except ValidationError as error:
            problems = [f"{SETTINGS}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ConfigurationError(f"{path} has {len(problems)} fault(s):", problems=problems) from error

    @property
    def database(self) -> str:
        """The database's URL; a relative SQLite path is one in this folder."""
        try:
            url = _database_url(os.environ.get(DATABASE_VARIABLE) or self.settings.database)
        except ValueError as error:
            raise ConfigurationError(f"The variable {DATABASE_VARIABLE} {error}.") from None
        if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_absolute():
            url = url.set(database=str((self.folder / url.database).resolve()))
        return url.render_as_string(hide_password=False)

    @property
    def origin(self) -> str:
        """The ledger's name: the federation's."""
        return self.settings.federation

    @property
    def key(self) -> SigningKey:
        return SigningKey.load(self.folder / "signing.pem")

    @property
    def authority(self) -> Authority:
        return Authority.open(self.folder)

    @property
    def fleet(self) -> str:
        return self.settings.public_fleet or f"{self.settings.host}:{self.settings.fleet_port}"

    @property
    def enrolment(self) -> str:
        return self.settings.public_enrolment or f"{self.settings.host}:{self.settings.enrolment_port}"

    @property
    def ledger(self) -> str:
        """Where members read the ledger; empty if it is not served."""
        served = self.settings.public_ledger or f"{self.settings.host}:{self.settings.ledger_port}"
        return served if self.settings.ledger_port else ""

    @property
    def hosts(self) -> list[str]:
        """Every name under which members reach this machine: what its certificate must say."""
        addresses = filter(None, (self.fleet, self.enrolment, self.ledger))
        return sorted({self.settings.host, *(address.rpartition(":")[0] for address in addresses)})

    @property
    def facts(self) -> Facts:
        """What a member is told as it joins."""
        coordinator = self.key.public.to_text("coordinator")
        return Facts(self.settings.federation, coordinator, self.fleet, fab_hash(), self.origin)

    @property
    def registry(self) -> Registry:
        if self._registry is None:
            self._registry = Registry(self.database)
        return self._registry

    @contextmanager
    def log(self) -> Iterator[Log]:
        """The ledger, to write."""
        with Log.open(self.database, self.key) as log:
            yield log

    def study_folder(self, study: str) -> Path:
        return self.folder / "studies" / study

    @property
    def motions(self) -> Motions:
        """What the members vote on: changes after the founding."""
        return Motions(self.registry, self.log, self.write_policy)

    def admit(self, name: str, now: datetime) -> Enrolled:
        """Admit a member that has joined: on the ledger, then in the registry.

        After the founding the members decide: it stays pending, and a motion is put.
        """
        joined = self._joined(name)
        if joined.state == REVOKED:  # perhaps turned away before it was ever admitted: the ledger cannot tell
            raise IdentityError(f"{name!r} was revoked and cannot be admitted: invite it by another name.")
        member = Member(name, joined.key, joined.witness_key)
        with self.log() as log:
            epoch = membership.epoch(log)
            known = epoch.members.get(name)
            if not epoch.founding and (known is None or known.keys != member.keys):
                self.motions.put("member.admit", governance.admission(member, epoch.number), now)
                return joined
            membership.admit(log, member)
            self.write_policy(log)
        return self.registry.admit(name, now)

    def revoke(self, name: str, reason: str, now: datetime) -> Enrolled:
        """Bar a member, at once: the gateway and the running study look it up at each call.

        After the founding the members decide whether its key is void on the ledger too: a motion is put.
        """
        self._joined(name)
        gone = self.registry.revoke(name, now)  # first: killed after it, the door is shut, and the same again goes on
        self.motions.withdraw("member.admit", name)
        with self.log() as log:
            epoch = membership.epoch(log)
            if name in epoch.members and not epoch.founding:
                self.motions.put("member.revoke", {"member": name, "reason": reason}, now)
            elif name in epoch.members:  # its admission may have been cut short between ledger and registry
                membership.revoke(log, name, reason)
                self.write_policy(log)
        return gone

    def set_faulty(self, faulty: int, now: datetime) -> MotionRow | None:
        """Change how many members may lie; the motion, if the members must decide, None if it is so now."""
        with self.log() as log:
            epoch = membership.epoch(log)
            if not epoch.founding and epoch.faulty != faulty:
                return self.motions.put("federation.faulty", {"faulty": faulty}, now)
            membership.set_faulty(log, faulty)
            self.write_policy(log)
        return None

    def _joined(self, name: str) -> Enrolled:
        found = self.registry.member(name)
        if found is None:
            known = ", ".join(member.name for member in self.registry.members()) or "none"
            raise ConfigurationError(
                f"{name!r} has not joined (joined so far: {known}): it must run its join command first."
            )
        return found

    def write_policy(self, log: Log) -> None:
        """The keys an auditor verifies with: of all who were ever admitted, and of the witnesses now, of whom a quorum
        must cosign."""
        while True:
            seen = log.head
            write_text(self.folder / "policy", membership.policy(log, self.key.public))
            if log.refresh() == seen:  # else another command admitted somebody, and may have written before us
                return

    # the running process

    @property
    def run_folder(self) -> Path:
        return self.folder / "run"

    def status(self) -> dict[str, Any] | None:
        """What the running process says of itself; None if none is running."""
        try:
            status: dict[str, Any] = json.loads((self.run_folder / "status.json").read_text())
            os.kill(int(status["pid"]), 0)
        except (OSError, ValueError, KeyError):
            return None
        return status if status.get("born") in (None, born(int(status["pid"]))) else None

    def require_running(self) -> Mapping[str, Any]:
        status = self.status()
        if status is None or "control" not in status:
            raise NetworkError(
                f"The coordinator of {self.folder} is not running: "
                f"start it with causaldao coordinator start {self.folder}"
            )
        return status


def _database_url(text: str) -> sa.URL:
    """A database's URL; a ValueError that repeats nothing of one that cannot be read, since a password may be in it."""
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise ValueError("is no database URL: write sqlite:///PATH or postgresql+psycopg://HOST/NAME") from None
    # the driver that comes with us: the short form would name another
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def utc_now() -> datetime:
    return datetime.now(UTC)
