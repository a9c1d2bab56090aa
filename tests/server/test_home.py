"""A coordinator's folder that is half made, made twice, misread; members whom ledger and registry see differently."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from causaldao.errors import CausalDAOError, ConfigurationError, IdentityError, LedgerError, NetworkError
from causaldao.ledger.log import Log
from causaldao.ledger.verify import Policy
from causaldao.server import home as homes_module
from causaldao.server import membership
from causaldao.server.authority import Authority
from causaldao.server.home import DATABASE_VARIABLE, SETTINGS, Home
from causaldao.server.registry import Registry
from causaldao.signing import SigningKey
from tests.server import homes
from tests.server.homes import NOW
from tests.server.power import power_cut


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return homes.create(tmp_path / "home")


def roster(home: Home) -> tuple[str, ...]:
    with home.log() as log:
        return tuple(membership.roster(log).names)


def policy(home: Home) -> set[str]:
    return set(Policy.parse((home.folder / "policy").read_text()).members)


# making and opening


def test_what_is_opened_is_not_what_was_made(tmp_path: Path) -> None:
    made = homes.create(tmp_path / "home", faulty=1, fleet_port=1234)
    opened = Home.open(tmp_path / "home")
    assert opened.settings == made.settings
    assert opened.key.public == made.key.public
    assert opened.authority.fingerprint == made.authority.fingerprint
    homes.admit(opened, "north", "south")
    with opened.log() as log:
        assert (membership.roster(log).faulty, log.head.origin) == (1, "test")
    assert opened.fleet == "127.0.0.1:1234"


def test_others_can_read_a_private_key(home: Home) -> None:
    before = os.umask(0)
    try:
        homes.create(home.folder.with_name("open"))
    finally:
        os.umask(before)
    for folder in (home.folder, home.folder.with_name("open")):
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert (modes["signing.pem"], modes["authority.key"]) == (0o600, 0o600)


def test_a_coordinator_is_made_over_another(home: Home) -> None:
    before = {path.name: path.read_bytes() for path in home.folder.iterdir() if path.is_file()}
    with pytest.raises(ConfigurationError, match="holds a coordinator already"):
        homes.create(home.folder, federation="other")
    assert {path.name: path.read_bytes() for path in home.folder.iterdir() if path.is_file()} == before


STEPS: list[tuple[Any, str]] = [
    (SigningKey, "save"), (Authority, "create"), (Registry, "__init__"), (Log, "create"), (membership, "found"),
    (Home, "write_policy"), (homes_module, "write_text"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "step"), STEPS, ids=[step for _, step in STEPS])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_folder_that_was_left_half_made_cannot_be_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, step: str, when: str
) -> None:
    """The power goes before or after each step; the same command again goes on, with the keys that are there."""
    folder = tmp_path / "home"
    with power_cut(monkeypatch, where, step, when):
        homes.create(folder)
    assert not (folder / SETTINGS).exists()
    kept = {name: (folder / name).read_bytes() for name in ("signing.pem", "authority.crt") if (folder / name).exists()}
    homes.create(folder)
    home = Home.open(folder)
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert roster(home) == ()
    homes.admit(home, "north")
    assert roster(home) == ("north",)


def test_a_half_made_folder_is_completed_for_another_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Home, "write_policy", lambda self, log: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            homes.create(tmp_path / "home")
    with pytest.raises(LedgerError):
        homes.create(tmp_path / "home", federation="other")
    assert not (tmp_path / "home" / SETTINGS).exists()


def test_a_ledger_of_another_coordinator_is_taken_over(home: Home, tmp_path: Path) -> None:
    with pytest.raises(CausalDAOError):
        homes.create(tmp_path / "other", database=home.database)
    assert roster(home) == ()


def test_faults_of_the_settings_are_told_one_at_a_time(home: Home) -> None:
    (home.folder / SETTINGS).write_text(
        'federation = "Not A Name"\nfleet_port = 70000\nnonsense = 1\ndatabase = "sqlite:///x"\n'
    )
    with pytest.raises(ConfigurationError, match="4 fault") as found:
        Home.open(home.folder)
    said = "\n".join(found.value.problems)
    assert all(name in said for name in ("federation", "fleet_port", "nonsense", "host"))
    (home.folder / SETTINGS).write_text("federation = ")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Home.open(home.folder)


def test_a_missing_coordinator_is_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="causaldao coordinator init"):
        Home.open(tmp_path / "nowhere")


# the database


def test_the_database_depends_on_how_the_folder_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.folder.parent)
    for folder in (Path("home"), Path("../") / home.folder.parent.name / "home", home.folder):
        assert Home.open(folder).database == f"sqlite:///{home.folder.resolve() / 'coordinator.db'}"


def test_the_variable_is_not_heard(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, f"sqlite:///{tmp_path / 'other.db'}")
    assert home.database == f"sqlite:///{tmp_path / 'other.db'}"
    homes.create(tmp_path / "second")
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "second" / "coordinator.db").exists()
    monkeypatch.setenv(DATABASE_VARIABLE, "")  # as a container's empty setting gives it
    assert home.database.endswith("/home/coordinator.db")


def test_a_password_is_written_into_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql+psycopg://operator:hunter2@db.example.org/causaldao"
    with pytest.raises(ValueError, match=DATABASE_VARIABLE) as found:
        homes.settings(database=url)
    assert "no place in coordinator.toml" in str(found.value)
    monkeypatch.setenv(DATABASE_VARIABLE, f"sqlite:///{tmp_path / 'secret-hunter2.db'}")
    home = homes.create(tmp_path / "home")
    for path in home.folder.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
    assert tomllib.loads((home.folder / SETTINGS).read_text())["database"] == "sqlite:///coordinator.db"
    monkeypatch.setenv(DATABASE_VARIABLE, url)
    assert home.database == url  # not "***": the engine needs it


def test_a_password_in_the_settings_is_told_to_everybody(home: Home) -> None:
    text = (home.folder / SETTINGS).read_text()
    (home.folder / SETTINGS).write_text(text.replace("sqlite:///coordinator.db", "postgresql://me:hunter2@db/x"))
    with pytest.raises(ConfigurationError) as found:
        Home.open(home.folder)
    assert "hunter2" not in str(found.value)
    assert "CAUSALDAO_DATABASE" in str(found.value)


def test_the_short_form_of_postgresql_names_a_driver_that_is_not_there(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, "postgresql://db.example.org/causaldao")
    assert home.database == "postgresql+psycopg://db.example.org/causaldao"


def test_a_database_that_is_no_url_is_a_traceback(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="database URL"):
        homes.settings(database="coordinator db")
    monkeypatch.setenv(DATABASE_VARIABLE, "my password: hunter2")
    with pytest.raises(ConfigurationError, match=DATABASE_VARIABLE) as found:
        _ = home.database
    assert "hunter2" not in str(found.value)


# members


def test_a_member_is_admitted_that_never_joined(home: Home) -> None:
    homes.join(home, "south")
    with pytest.raises(ConfigurationError, match="joined so far: south"):
        home.admit("north", NOW)
    with pytest.raises(ConfigurationError, match="has not joined"):
        home.revoke("north", "x", NOW)
    assert roster(home) == ()


def test_the_registry_admits_a_member_that_the_ledger_does_not_know(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger comes first: what is cut short in between is mended by the same command again."""
    homes.join(home, "north")
    with monkeypatch.context() as patch:
        patch.setattr(membership, "admit", lambda log, *members: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            home.admit("north", NOW)
    assert [member.state for member in home.registry.members()] == ["pending"]
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "admit", lambda self, name, now: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            home.admit("north", NOW)
    assert roster(home) == ("north",)
    assert policy(home) == {"north"}
    assert home.admit("north", NOW).state == "admitted"
    with home.log() as log:
        assert len(log.entries(kinds=("member.admit",))) == 1
        assert membership.keys(log) == {"north": (homes.key("north").public,)}


def test_a_revocation_that_is_cut_short_leaves_the_door_open(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    homes.admit(home, "north", "south")
    with monkeypatch.context() as patch:
        patch.setattr(membership, "revoke", lambda log, name, reason: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            home.revoke("north", "a reason", NOW)
    found = home.registry.member("north")
    assert found is not None
    assert found.state == "revoked"  # what the gateway asks at each call
    assert home.revoke("north", "a reason", NOW).state == "revoked"
    assert roster(home) == ("south",)


def test_the_first_reason_of_a_revocation_is_overwritten(home: Home) -> None:
    homes.admit(home, "north", "south")
    home.revoke("north", "a reason", NOW)
    home.revoke("north", "another reason", NOW)
    with home.log() as log:
        (entry,) = log.entries(kinds=("member.revoke",))
    assert entry.body["reason"] == "a reason"


def test_a_member_whose_admission_was_cut_short_cannot_be_revoked(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the ledger it is a member: it would count in every study, and never be heard."""
    homes.join(home, "north")
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "admit", lambda self, name, now: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            home.admit("north", NOW)
    home.revoke("north", "not after all", NOW)
    assert roster(home) == ()


def test_somebody_turned_away_stands_on_the_ledger(home: Home) -> None:
    homes.join(home, "north")
    assert home.revoke("north", "not whom it says", NOW).state == "revoked"
    with pytest.raises(IdentityError, match="revoked"):
        home.admit("north", NOW)
    with home.log() as log:
        assert not log.entries(kinds=("member.admit", "member.revoke"))
    assert policy(home) == set()


def test_the_policy_forgets_who_was_revoked(home: Home) -> None:
    """What a revoked member said before must still verify."""
    homes.admit(home, "north", "south")
    home.revoke("south", "a test", NOW)
    homes.admit(home, "west")
    assert policy(home) == {"north", "south", "west"}
    assert roster(home) == ("north", "west")


# the running process


def write_status(home: Home, **status: Any) -> None:
    home.run_folder.mkdir(exist_ok=True)
    (home.run_folder / "status.json").write_text(json.dumps(status))


def test_a_coordinator_that_was_killed_seems_to_run(home: Home) -> None:
    assert home.status() is None
    with subprocess.Popen(["sleep", "60"]) as process:
        write_status(home, pid=process.pid, control="127.0.0.1:1")
        assert home.require_running()["control"] == "127.0.0.1:1"
        process.kill()
    assert home.status() is None
    with pytest.raises(NetworkError, match="coordinator start"):
        home.require_running()


@pytest.mark.parametrize("text", ["", "{", "{}", '{"pid": "x"}'])
def test_a_status_that_is_none_is_a_traceback(home: Home, text: str) -> None:
    home.run_folder.mkdir()
    (home.run_folder / "status.json").write_text(text)
    assert home.status() is None


def test_addresses_before_a_load_balancer_are_not_in_the_certificate(tmp_path: Path) -> None:
    home = homes.create(
        tmp_path / "home", host="inner.example.org", public_fleet="fleet.example.org:443",
        public_enrolment="join.example.org:8443", public_ledger="ledger.example.org:443",
    )  # fmt: skip
    assert (home.fleet, home.enrolment) == ("fleet.example.org:443", "join.example.org:8443")
    assert home.ledger == "ledger.example.org:443"
    assert home.hosts == ["fleet.example.org", "inner.example.org", "join.example.org", "ledger.example.org"]
    assert home.facts.fleet == "fleet.example.org:443"


def test_a_secret_of_a_token_lies_in_the_folder(home: Home) -> None:
    secret = home.registry.invite("north", NOW)
    for path in home.folder.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    with sqlite3.connect(home.folder / "coordinator.db") as connection:
        ((name,),) = connection.execute("SELECT name FROM registry_invitations").fetchall()
    connection.close()
    assert name == "north"
