"""The doctor at a node's folder: a lost journal goes unseen, a record's value is shown, a dead coordinator is well."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from causaldao import doctor as ground
from causaldao.client import doctor
from causaldao.client.answers import Answers, Slot
from causaldao.client.privacy.journal import Journal
from causaldao.doctor import Check, examine
from causaldao.errors import LedgerError
from causaldao.ledger import merkle
from causaldao.ledger.note import LOG, Checkpoint, Verifier, sign_checkpoint
from causaldao.ledger.witness import Witness
from causaldao.signing import SigningKey
from tests.causaldao.test_doctor import certificate_pem

NODE = 'name = "north"\ndata = "rows.csv"\ndataset = "ward"\n'
COORDINATOR = SigningKey.generate()
MAPPING = '[mapping.age]\ncolumn = "{column}"\nkind = "continuous"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A node that has joined."""
    (tmp_path / "node.toml").write_text(NODE + MAPPING.format(column="geb_alter"))
    (tmp_path / "rows.csv").write_text("geb_alter,secret_column\n41,1\n42,0\n")
    (tmp_path / "tls.pem").touch(0o600)
    for name in ("signing.pem", "witness.pem"):
        SigningKey.generate().save(tmp_path / name)
    Witness.create(tmp_path / "witness.db", "fed")
    now = datetime.now(UTC)
    (tmp_path / "certificate.pem").write_bytes(certificate_pem(now - timedelta(minutes=5), now + timedelta(days=1)))
    return tmp_path


def _join(folder: Path, fleet: str, enrolment: str) -> None:
    known = {
        "federation": "fed", "coordinator": COORDINATOR.public.to_text("coordinator"), "origin": "fed", "fleet": fleet,
        "enrolment": enrolment, "bundle": "0" * 64,
    }  # fmt: skip
    (folder / "federation.json").write_text(json.dumps(known))


def _found(folder: Path) -> dict[str, Check]:
    return {check.__name__: check(folder) for check in doctor.CHECKS if check is not doctor.disk}


def test_a_node_that_is_well_is_called_ill(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        _join(folder, address, address)
        Journal.open(folder / "journal.db")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        found = _found(folder)
    assert {check.state for check in found.values()} == {"ok"}, found
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_node_that_has_not_joined_is_called_broken(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(NODE)
    (tmp_path / "rows.csv").write_text("a\n1\n")
    states = {name: check.state for name, check in _found(tmp_path).items()}
    assert states == {
        "settings": "ok", "keys": "warn", "own_certificate": "warn", "data": "ok", "coordinator": "warn",
        "clocks": "ok", "journal": "ok", "witness": "ok",
    }  # fmt: skip


def test_a_node_of_a_simulation_lacks_keys(folder: Path) -> None:
    (folder / "key.pem").touch(0o600)
    (folder / "tls.pem").unlink()
    assert doctor.keys(folder).state == "ok"


def test_the_journal_is_lost_and_nobody_sees_it(folder: Path) -> None:
    answers = Answers(folder / "answers.db")
    answers.once(Slot("study", 0, "rollcall"), "0", lambda: b"present")
    assert doctor.journal(folder).state == "ok"  # a roll call costs nothing
    answers.once(Slot("study", 0, "evidence"), "0", lambda: b"moments")
    found = doctor.journal(folder)
    assert found.state == "fail"
    assert "spend again" in found.remedy
    (folder / "answers.db").write_bytes(b"damaged" * 1000)
    assert doctor.journal(folder).state == "fail"


def test_the_journal_is_damaged(folder: Path) -> None:
    (folder / "journal.db").write_bytes(b"damaged" * 1000)
    found = doctor.journal(folder)
    assert found.state == "fail"
    assert "older copy" in found.remedy


def _witness(folder: Path) -> Witness:
    _join(folder, "127.0.0.1:1", "127.0.0.1:1")
    key, log = SigningKey.load(folder / "witness.pem"), Verifier("fed", LOG, COORDINATOR.public.raw)
    return Witness.open(folder / "witness.db", "north", key, log, lambda: 1)


def _note(*leaves: bytes) -> str:
    root = merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
    return sign_checkpoint(Checkpoint("fed", len(leaves), root), COORDINATOR)


def test_a_witness_that_is_well_is_called_ill_or_changed(folder: Path) -> None:
    _witness(folder).cosign(_note(b"a", b"b"), {})
    before = (folder / "witness.db").read_bytes()
    assert doctor.witness(folder) == Check("witness", "ok", "witnessing, it has seen 2 entries of the ledger")
    assert (folder / "witness.db").read_bytes() == before


def test_a_witness_has_lost_its_state_and_nobody_sees_it(folder: Path) -> None:
    _witness(folder)
    (folder / "witness.db").rename(folder / "elsewhere.db")
    for lost in (None, b"damaged" * 1000):
        if lost is not None:
            (folder / "witness.db").write_bytes(lost)
        found = doctor.witness(folder)
        assert found.state == "fail"
        assert "Never put an older copy" in found.remedy
        assert f"causaldao node rotate {folder}" in found.remedy
    assert (folder / "witness.db").read_bytes() == b"damaged" * 1000


def test_a_witness_that_saw_two_histories_is_called_well(folder: Path) -> None:
    witness = _witness(folder)
    witness.cosign(_note(b"a", b"b"), {})
    with pytest.raises(LedgerError):
        witness.cosign(_note(b"a", b"b", b"c"), {2: [b"x" * 32]})
    found = doctor.witness(folder)
    assert (found.state, found.detail[-1]) == ("warn", "1")
    assert "Compare" in found.remedy
    with pytest.raises(LedgerError, match="two histories"):
        witness.cosign(_note(b"a", b"other"), {})
    found = doctor.witness(folder)
    assert (found.state, found.detail.split()[0]) == ("fail", "alarmed:")
    assert "show both notes" in found.remedy
    assert "node rotate" in found.remedy


def test_a_retired_witness_is_called_well(folder: Path) -> None:
    witness, copy = _witness(folder), (folder / "witness.db").read_bytes()
    seen = witness.cosign(_note(b"a", b"b"), {})
    (folder / "witness.db").write_bytes(copy)
    with pytest.raises(LedgerError):
        witness.remember(seen.line, seen.size, seen.root)
    found = doctor.witness(folder)
    assert (found.state, found.detail.split()[0]) == ("fail", "retired:")
    assert "old copy" in found.detail
    assert "node rotate" in found.remedy


def _ragged(folder: Path) -> None:
    (folder / "rows.csv").write_text("geb_alter,secret_column\n41,1\nMeier,7,8\n")


def _unmapped(folder: Path) -> None:
    (folder / "node.toml").write_text(NODE + MAPPING.format(column="geburtsjahr"))


def _absent(folder: Path) -> None:
    (folder / "rows.csv").unlink()


def _database(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "rows.db")) as database:
        database.execute("CREATE TABLE patients (secret_column)")
    source = '[source]\nurl = "sqlite:///rows.db"\nquery = "SELECT geb_alter FROM patients WHERE secret_column = 41"\n'
    (folder / "node.toml").write_text('name = "north"\ndataset = "ward"\n' + source)


@pytest.mark.parametrize("spoil", [_ragged, _unmapped, _absent, _database])
def test_bad_data_pass_or_a_value_or_column_is_shown(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    found = doctor.data(folder)
    assert found.state == "fail"
    for secret in ("Meier", "41", "secret_column", "geb_alter", "geburtsjahr"):
        assert secret not in str(found)


def test_the_settings_are_wrong(folder: Path) -> None:
    (folder / "node.toml").write_text(NODE + "aproved = []\n")
    assert "aproved" in doctor.settings(folder).detail
    assert doctor.data(folder).state == "fail"
    (folder / "node.toml").write_text(NODE + "insecure_seed = 1\n")
    assert doctor.settings(folder).state == "warn"


def test_a_coordinator_that_is_down_is_called_well(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        up = f"127.0.0.1:{listening.getsockname()[1]}"
        for wrong in ("127.0.0.1:1", "nowhere.invalid:1", "127.0.0.1", "127.0.0.1:99999", "", ":1"):
            _join(folder, up, wrong)
            found = doctor.coordinator(folder)
            assert found.state == "fail"
            assert f"enrolment ({wrong})" in found.detail
            assert "fleet" not in found.detail
    (folder / "federation.json").write_text("[]")
    assert doctor.coordinator(folder).state == "warn"


def test_two_clocks_are_apart(folder: Path) -> None:
    path = folder / "certificate.pem"
    issued = datetime.now(UTC).timestamp() - 300
    for seconds, word in ((-600, "behind"), (7200, "ahead")):
        os.utime(path, (issued + seconds, issued + seconds))
        found = doctor.clocks(folder)
        assert found.state == "warn"
        assert word in found.detail


def test_a_certificate_expired(folder: Path) -> None:
    now = datetime.now(UTC)
    (folder / "certificate.pem").write_bytes(certificate_pem(now - timedelta(days=2), now - timedelta(days=1)))
    assert doctor.own_certificate(folder).state == "fail"


def test_others_may_change_the_folder(folder: Path) -> None:
    folder.chmod(0o777)
    assert doctor.disk(folder).state == "warn"


def test_a_check_of_the_folder_is_left_out(folder: Path) -> None:
    _join(folder, "127.0.0.1:1", "127.0.0.1:1")
    names = [check.name for check in examine(folder)][len(ground.INSTALLATION) :]
    assert names == ["settings", "keys", "certificate", "data", "coordinator", "clocks", "journal", "witness", "folder"]
