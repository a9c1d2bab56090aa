"""The doctor: it calls a sick installation healthy, falls over the sickness, or says what a stranger should not see."""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import socket
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from causaldao import doctor
from causaldao.doctor import Check, doctor_app
from causaldao.errors import ConfigurationError

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def certificate_pem(begins: datetime, ends: datetime) -> bytes:
    """A self-signed certificate with these dates."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, begins, ends).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def test_this_installation_is_not_well() -> None:
    """All but the disk, the limits and the other processes of the machine that runs the tests."""
    for check in (
        doctor.python, doctor.packages, doctor.flower_commands, doctor.checkout, doctor.clock, doctor.entropy,
        doctor.loopback,
    ):  # fmt: skip
        found = check()
        assert found.state == "ok", found
        assert found.remedy == ""


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0)])
def test_a_python_that_is_not_tested(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    found = doctor.python()
    assert found.state == "fail"
    assert "3.11 to 3.13" in found.remedy


def test_another_version_of_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    wrong = {"flwr": "1.40.0", "click": "8.5.1"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: wrong.get(name) or real(name))
    found = doctor.packages()
    assert found.state == "fail"
    assert "flwr is 1.40.0, expected ==1.39.0" in found.detail
    assert "click is 8.5.1, expected <8.5,>=8.2" in found.detail
    assert found.detail.count(";") == 1


def test_a_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "torch is missing" in doctor.packages().detail


def test_flowers_programs_are_not_beside_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flower-superlink").touch(0o755)
    (tmp_path / "flower-supernode").touch(0o644)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = doctor.flower_commands()
    assert found.state == "fail"
    assert found.detail.startswith("flower-supernode not in")


def test_a_zip_lost_the_links(tmp_path: Path) -> None:
    package = tmp_path / "causaldao"
    package.mkdir()
    assert doctor.checkout(package).state == "ok"  # a wheel: no links wanted
    (tmp_path / "pyproject.toml").touch()
    for floor in doctor.FLOORS:
        (package / floor).symlink_to(f"../{floor}")
    assert doctor.checkout(package).state == "ok"
    (package / "server").unlink()
    (package / "server").write_text("../server")
    (package / "client").unlink()
    (package / "client").symlink_to("../server")
    found = doctor.checkout(package)
    assert found.state == "fail"
    assert found.detail.endswith(": client, server")


def test_the_disk_is_full(tmp_path: Path) -> None:
    assert doctor.space("disk", tmp_path, least=0, wanted=0).state == "ok"
    assert doctor.space("disk", tmp_path, least=0, wanted=1e9).state == "warn"
    assert doctor.space("disk", tmp_path, least=1e9, wanted=2e9).state == "fail"


def test_the_clock_is_wrong(tmp_path: Path) -> None:
    now = datetime.now(UTC).timestamp()
    assert doctor.clock(lambda: now + 3600).state == "warn"
    (tmp_path / "file").touch()
    os.utime(tmp_path / "file", (now + 86_400, now + 86_400))
    found = doctor.clock(package=tmp_path / "file")
    assert found.state == "fail"
    assert "NTP" in found.remedy


def test_few_files_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, state in ((resource.RLIM_INFINITY, "ok"), (1024, "ok"), (512, "warn"), (64, "fail")):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limit=limit: (limit, limit))
        assert doctor.open_files().state == state


def test_there_is_no_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket, "create_server", refuse)
    assert doctor.loopback().state == "fail"


def test_a_superlink_outlived_its_coordinator() -> None:
    table = "    1     0 /sbin/init\n  40 1 python /venv/bin/flower-superlink --port 1\n  41 40 flower-supernode\n x"
    found = doctor.orphans(lambda: table)
    assert found.state == "warn"
    assert found.remedy.endswith("kill 40")
    in_container = table.replace("/sbin/init", "python /venv/bin/causaldao coordinator start /data")
    assert doctor.orphans(lambda: in_container).state == "ok"


def test_there_is_no_ps() -> None:
    def none() -> str:
        raise FileNotFoundError("ps")

    assert doctor.orphans(none).state == "ok"
    assert doctor.orphans().name == "left-over processes"


def test_a_key_that_others_can_read(tmp_path: Path) -> None:
    for name, mode in (("signing.pem", 0o600), ("witness.pem", 0o640)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    assert doctor.key_files(tmp_path, ("signing.pem",)).state == "ok"
    found = doctor.key_files(tmp_path, ("signing.pem", "witness.pem", "tls.pem"))
    assert found.state == "fail"
    assert "witness.pem has mode 0640" in found.detail
    assert "tls.pem is missing" in found.detail
    assert f"chmod 600 {tmp_path / 'witness.pem'}" in found.remedy


@pytest.mark.parametrize(
    ("begins", "ends", "state"), [(-1, 9, "ok"), (-1, 1, "warn"), (-9, -1, "fail"), (1, 9, "fail"), (-1, 0, "fail")]
)
def test_a_certificate_is_out_of_its_dates(tmp_path: Path, begins: int, ends: int, state: str) -> None:
    path = tmp_path / "own.pem"
    path.write_bytes(certificate_pem(NOW + timedelta(days=begins), NOW + timedelta(days=ends)))
    assert doctor.certificate("certificate", path, NOW, timedelta(days=5), "renew").state == state


def test_a_certificate_is_none(tmp_path: Path) -> None:
    (tmp_path / "own.pem").write_text("none")
    for name in ("own.pem", "absent.pem"):
        assert doctor.certificate("certificate", tmp_path / name, NOW, timedelta(days=5), "renew").state == "fail"


def test_a_database_is_damaged_or_locked_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    before = path.read_bytes()
    assert doctor.sqlite_file("journal", path, "mend").state == "ok"
    assert path.read_bytes() == before
    path.write_bytes(before[:100] + b"damage" * 600)
    assert doctor.sqlite_file("journal", path, "mend").state == "fail"
    assert doctor.sqlite_file("journal", tmp_path / "absent.db", "mend").state == "fail"
    assert not (tmp_path / "absent.db").exists()


def test_a_database_is_held_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT_SECONDS", 0.05)
    holder = sqlite3.connect(tmp_path / "journal.db")
    holder.execute("BEGIN EXCLUSIVE")
    assert "locked" in doctor.sqlite_file("journal", tmp_path / "journal.db", "mend").detail
    holder.close()


def test_a_dead_process_counts_as_running(tmp_path: Path) -> None:
    assert doctor.running(tmp_path) is None
    (tmp_path / "run").mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for text, process in (
        (json.dumps({"pid": os.getpid()}), os.getpid()), (json.dumps({"pid": ended.pid}), None), ("{", None),
        ("{}", None), ('{"pid": null}', None),
    ):  # fmt: skip
        (tmp_path / "run" / "status.json").write_text(text)
        assert doctor.running(tmp_path) == process


def test_a_check_that_breaks_breaks_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> Check:
        raise ValueError("what a stranger should not see")

    def refuses() -> Check:
        raise ConfigurationError("a file is wrong")

    monkeypatch.setattr(doctor, "INSTALLATION", (breaks, refuses, doctor.python))
    first, second, third = doctor.examine()
    assert first == Check("breaks", "fail", "the check could not be made (ValueError)", "Report this.")
    assert second == Check("refuses", "fail", "a file is wrong")
    assert third.state == "ok"


GOOD, POOR, BAD = Check("good", "ok", "all"), Check("poor", "warn", "some", "do"), Check("bad", "fail", "none", "do")


@pytest.mark.parametrize("checks", [(GOOD,), (GOOD, POOR), (GOOD, POOR, BAD)])
def test_the_exit_status_or_the_envelope_is_wrong(monkeypatch: pytest.MonkeyPatch, checks: tuple[Check, ...]) -> None:
    monkeypatch.setattr(doctor, "INSTALLATION", tuple(lambda check=check: check for check in checks))
    status = int(BAD in checks)
    told = CliRunner().invoke(doctor_app, [])
    assert told.exit_code == status
    assert told.stdout.splitlines()[-1] == "ok    good: all"
    assert ("warn  poor: some\n      → do\n" in told.stdout) == (POOR in checks)
    machine = CliRunner().invoke(doctor_app, ["--json"])
    envelope = json.loads(machine.stdout)
    assert machine.exit_code == status
    if status:
        assert envelope["error"]["code"] == "finding"
        assert envelope["error"]["problems"] == ["poor: some → do", "bad: none → do"]
    else:
        assert [check["name"] for check in envelope["data"]["checks"]] == [check.name for check in checks]


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    told = CliRunner().invoke(doctor_app, [str(tmp_path), "--json"])
    assert (told.exit_code, json.loads(told.stdout)["error"]["code"]) == (10, "configuration")
    for name in doctor.FOLDERS:
        (tmp_path / name).touch()
    assert CliRunner().invoke(doctor_app, [str(tmp_path)]).exit_code == 10


def test_a_check_has_no_name_or_a_twin() -> None:
    from causaldao.client.doctor import CHECKS as OF_NODE
    from causaldao.server.doctor import CHECKS as OF_COORDINATOR

    for checks in (OF_NODE, OF_COORDINATOR, doctor.INSTALLATION):
        assert len({check.__name__ for check in checks}) == len(checks)
        assert all(check.__doc__ for check in checks)
