"""The doctor at a coordinator's folder: a port that another holds, a key that others read, a database that is gone."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from causaldao.doctor import Check, examine
from causaldao.server import doctor
from causaldao.server.home import Home, Settings


def _ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    numbers = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return numbers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fleet, enrolment, ledger, metrics = _ports(4)
    given = Settings(
        federation="fed", host="localhost", bind="127.0.0.1", fleet_port=fleet, enrolment_port=enrolment,
        ledger_port=ledger, metrics_port=metrics,
    )  # fmt: skip
    Home.create(tmp_path / "home", given, datetime.now(UTC))
    return tmp_path / "home"


@pytest.fixture
def held(folder: Path) -> Iterator[int]:
    """Somebody listens on the fleet port."""
    port = Home.open(folder).settings.fleet_port
    with socket.create_server(("127.0.0.1", port)):
        yield port


def _states(folder: Path) -> dict[str, str]:
    return {check.__name__: check(folder).state for check in doctor.CHECKS if check is not doctor.disk}


def _before(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_coordinator_is_not_well(folder: Path) -> None:
    before = _before(folder)
    assert set(_states(folder).values()) == {"ok"}
    assert _before(folder) == before
    names = [check.name for check in examine(folder)]
    assert names[-6:] == ["settings", "keys", "authority", "ports", "database", "folder"]


def test_another_program_holds_a_port(folder: Path, held: int) -> None:
    found = doctor.ports(folder)
    assert found.state == "fail"
    assert f"fleet_port {held}" in found.detail
    assert "enrolment" not in found.detail
    assert "ledger" not in found.detail


def test_another_program_holds_the_port_of_the_ledger(folder: Path, held: int) -> None:
    path = folder / "coordinator.toml"
    settings = Home.open(folder).settings
    given = path.read_text().replace(f"fleet_port = {held}", f"fleet_port = {settings.ledger_port}")
    path.write_text(given.replace(f"ledger_port = {settings.ledger_port}", f"ledger_port = {held}"))
    found = doctor.ports(folder)
    assert found.state == "fail"
    assert f"ledger_port {held}" in found.detail
    path.write_text(path.read_text().replace(f"ledger_port = {held}", "ledger_port = 0"))
    assert doctor.ports(folder).state == "ok"  # served nowhere


def _claim(folder: Path) -> None:
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "status.json").write_text(json.dumps({"pid": os.getpid(), "started": "", "ports": {}}))


def test_our_own_process_counts_as_a_stranger(folder: Path, held: int) -> None:
    _claim(folder)
    found = doctor.ports(folder)
    assert found.state == "fail"  # it runs, but only one of its ports answers
    assert f"fleet_port {held}" not in found.detail
    text = (folder / "coordinator.toml").read_text().splitlines()
    kept = [line for line in text if not line.startswith(("enrolment_port", "ledger_port", "metrics_port"))]
    (folder / "coordinator.toml").write_text(
        "\n".join([*kept, f"enrolment_port = {held}", f"ledger_port = {held}", "metrics_port = 0"])
    )
    assert doctor.ports(folder) == Check(
        "ports", "ok",
        f"fleet_port {held}, enrolment_port {held}, ledger_port {held}: held by our own process {os.getpid()}",
    )  # fmt: skip


def test_a_key_of_the_federation_is_open_to_all(folder: Path) -> None:
    (folder / "authority.key").chmod(0o644)
    assert "authority.key has mode 0644" in doctor.keys(folder).detail


def test_the_settings_are_wrong(folder: Path) -> None:
    path = folder / "coordinator.toml"
    path.write_text(path.read_text() + "\nfleat_port = 1\n")
    found = doctor.settings(folder)
    assert found.state == "fail"
    assert "fleat_port" in found.detail
    path.write_text("federation = ")
    assert doctor.settings(folder).state == "fail"
    assert {check.state for check in examine(folder)[-6:]} >= {"fail"}


def test_the_database_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "coordinator.db").rename(folder / "moved.db")
    assert doctor.database(folder).state == "fail"
    assert not (folder / "coordinator.db").exists()
    monkeypatch.setenv("CAUSALDAO_DATABASE", "sqlite:///moved.db")
    assert doctor.database(folder).state == "ok"


def test_the_authority_is_gone(folder: Path) -> None:
    (folder / "authority.crt").unlink()
    assert doctor.authority(folder).state == "fail"
