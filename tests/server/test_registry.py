"""The registry: a token works once, a key is one institution's, and several processes see one truth."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from causaldao.errors import IdentityError, LedgerError, MisuseError
from causaldao.ledger.log import Log
from causaldao.members import witness_text
from causaldao.server.registry import Candidate, Registry
from causaldao.server.standing import Standing
from causaldao.signing import SigningKey, canonical, sha256

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
DOCUMENT = {"study": {"name": "hearts"}, "bound": 1.5, "name": "é"}
HASH = sha256(canonical(DOCUMENT))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'coordinator.db'}"


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    registry = Registry(url, create=True)
    yield registry
    registry.close()


def candidate(name: str, seed: int = 0) -> Candidate:
    signing, witness = (SigningKey.from_seed(bytes([seed, part]) * 16).public for part in (1, 2))
    return Candidate(name, signing.to_text(name), witness_text(name, witness), f"tls key {seed}", "0.1.0")


def joined(registry: Registry, name: str, seed: int = 0) -> str:
    secret = registry.invite(name, NOW)
    registry.join(candidate(name, seed), secret, NOW)
    return secret


def refused(registry: Registry, name: str, secret: str, now: datetime = NOW) -> str:
    with pytest.raises(IdentityError) as caught:
        registry.join(candidate(name, 9), secret, now)
    return caught.value.message


def test_a_secret_is_stored(registry: Registry, tmp_path: Path) -> None:
    secret = registry.invite("alpha", NOW)
    assert len(secret) == 43
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes()


def test_a_token_works_twice(registry: Registry) -> None:
    secret = joined(registry, "alpha")
    message = refused(registry, "alpha", secret, LATER)
    assert "used already at 2027-03-01T12:00:00" in message
    member = registry.member("alpha")
    assert member is not None
    assert member.signing == candidate("alpha").signing


def test_a_lost_answer_costs_the_token(registry: Registry) -> None:
    secret = registry.invite("alpha", NOW)
    first = registry.join(candidate("alpha"), secret, NOW)
    late = NOW + timedelta(days=1)
    assert registry.join(candidate("alpha"), secret, late) == first
    admitted = registry.admit("alpha", LATER)
    assert registry.join(candidate("alpha"), secret, late) == admitted


def test_a_token_of_nobody_is_taken(registry: Registry) -> None:
    registry.invite("alpha", NOW)
    assert "unknown" in refused(registry, "alpha", "x" * 43)
    assert registry.members() == ()


def test_a_late_token_is_taken(registry: Registry) -> None:
    secret = registry.invite("alpha", NOW)
    message = refused(registry, "alpha", secret, NOW + timedelta(minutes=15, seconds=1))
    assert "expired at 2027-03-01T12:15:00" in message
    assert registry.members() == ()
    assert registry.join(candidate("alpha"), secret, NOW + timedelta(minutes=15)).state == "pending"


def test_a_token_serves_another_name(registry: Registry) -> None:
    secret = registry.invite("alpha", NOW)
    assert "for 'alpha', not for 'beta'" in refused(registry, "beta", secret)
    assert registry.join(candidate("alpha"), secret, NOW).state == "pending"


def test_a_replaced_token_still_works(registry: Registry) -> None:
    first, second = registry.invite("alpha", NOW), registry.invite("alpha", LATER)
    assert "unknown" in refused(registry, "alpha", first)
    assert registry.join(candidate("alpha"), second, LATER).state == "pending"
    (invitation,) = registry.invitations()
    assert (invitation.name, invitation.used) == ("alpha", LATER)


def test_a_refused_join_burns_the_token(registry: Registry) -> None:
    """Redeeming and recording are one transaction."""
    joined(registry, "alpha")
    secret = registry.invite("beta", NOW)
    with pytest.raises(IdentityError, match="another member"):
        registry.join(candidate("beta", 0), secret, NOW)
    assert registry.join(candidate("beta", 1), secret, NOW).state == "pending"


@pytest.mark.parametrize("key", ["signing", "witness", "tls"])
def test_one_institution_has_two_votes(registry: Registry, key: str) -> None:
    joined(registry, "alpha")
    stolen = candidate("beta", 1)
    own = getattr(candidate("beta", 0), key)
    with pytest.raises(IdentityError, match="one institution, one vote"):
        registry.join(replace(stolen, **{key: own}), registry.invite("beta", NOW), NOW)


def test_a_witness_key_signs(registry: Registry) -> None:
    both = candidate("alpha")
    with pytest.raises(IdentityError, match="need three"):
        registry.join(replace(both, witness=both.signing), registry.invite("alpha", NOW), NOW)


def test_a_member_is_invited_again(registry: Registry) -> None:
    joined(registry, "alpha")
    with pytest.raises(IdentityError, match="waits to be admitted"):
        registry.invite("alpha", NOW)
    registry.admit("alpha", NOW)
    with pytest.raises(IdentityError, match="a member already"):
        registry.invite("alpha", NOW)
    registry.revoke("alpha", NOW)
    with pytest.raises(IdentityError, match="by another name"):
        registry.invite("alpha", NOW)
    with pytest.raises(IdentityError, match="not allowed"):
        registry.invite("Alpha", NOW)


def test_a_revoked_member_comes_back(registry: Registry) -> None:
    joined(registry, "alpha")
    assert registry.admit("alpha", LATER).changed == LATER
    assert registry.admit("alpha", LATER + timedelta(days=1)).changed == LATER
    assert registry.revoke("alpha", LATER).state == "revoked"
    assert registry.revoke("alpha", LATER).state == "revoked"
    with pytest.raises(IdentityError, match="revoked"):
        registry.admit("alpha", LATER)


def test_nobody_is_admitted(registry: Registry) -> None:
    for act in (registry.admit, registry.revoke, registry.seen):
        with pytest.raises(IdentityError, match="has not joined"):
            act("nobody", NOW)
    with pytest.raises(IdentityError, match="has not joined"):
        registry.set_node("nobody", 1)
    assert registry.member("nobody") is None


def test_what_is_known_of_a_member_is_lost(registry: Registry, url: str) -> None:
    joined(registry, "alpha")
    registry.set_node("alpha", 2**64 - 1)
    registry.seen("alpha", LATER, "0.2.0")
    registry.set_dictionary("alpha", "envelope")
    other = Registry(url)
    member = other.member("alpha")
    assert member is not None
    assert (member.node_id, member.last_seen, member.version, member.dictionary) == (
        2**64 - 1,
        LATER,
        "0.2.0",
        "envelope",
    )
    assert (member.joined, member.key) == (NOW, SigningKey.from_seed(bytes([0, 1]) * 16).public)
    other.seen("alpha", LATER + timedelta(hours=1))
    again = registry.member("alpha")
    assert again is not None
    assert again.version == "0.2.0"
    other.close()


def test_a_new_tls_key_keeps_the_old_node(registry: Registry) -> None:
    joined(registry, "alpha")
    joined(registry, "beta", 1)
    registry.set_node("alpha", 7)
    registry.rotate("alpha", "new key", LATER)
    member = registry.member("alpha")
    assert member is not None
    assert (member.tls, member.node_id, member.changed) == ("new key", None, LATER)
    with pytest.raises(IdentityError, match="belongs to another"):
        registry.rotate("alpha", "tls key 1", LATER)


def test_two_processes_redeem_one_token(registry: Registry, url: str) -> None:
    secret = registry.invite("alpha", NOW)
    outcomes: list[str] = []
    barrier = threading.Barrier(6)

    def redeem(seed: int) -> None:
        own = Registry(url)
        barrier.wait()
        try:
            outcomes.append(own.join(candidate("alpha", seed), secret, NOW).state)
        except IdentityError as error:
            outcomes.append("used" if "used already" in error.message else error.message)
        own.close()

    threads = [threading.Thread(target=redeem, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["pending", *["used"] * 5]


def test_two_processes_make_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    sqlite3.connect(path).close()
    faults: list[Exception] = []

    def opened() -> None:
        try:
            Registry(f"sqlite:///{path}", create=True).close()
        except LedgerError as error:
            faults.append(error)

    threads = [threading.Thread(target=opened) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_the_ledger_does_not_open_beside_the_registry(url: str) -> None:
    key = SigningKey.from_seed(b"c" * 32)
    Registry(url, create=True).close()
    Log.create(url, "north", key).close()
    registry = Registry(url)
    joined(registry, "alpha")
    registry.close()
    log = Log.open(url, key)
    assert list(log.entries()) == []
    log.close()


def test_a_mistyped_path_makes_a_registry(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger at"):
        Registry(f"sqlite:///{tmp_path / 'nothing.db'}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://user:hidden@host/db", "nonsense"])
def test_a_database_that_processes_cannot_share(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        Registry(url, create=True)
    assert "hidden" not in caught.value.message


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, and long enough to be read as a header" * 20)
    with pytest.raises(LedgerError, match="database"):
        Registry(f"sqlite:///{tmp_path / 'text'}")


def test_a_registry_of_a_newer_version_is_used(registry: Registry, url: str, tmp_path: Path) -> None:
    registry.close()
    with sqlite3.connect(tmp_path / "coordinator.db") as connection:
        connection.execute("UPDATE registry_version SET version = 3")
    connection.close()
    with pytest.raises(LedgerError, match="version"):
        Registry(url)


def test_a_study_changes_under_its_hash(registry: Registry) -> None:
    row = registry.propose(HASH, "hearts", DOCUMENT, NOW)
    assert (row.document, row.state, row.run_id, row.proposed) == (DOCUMENT, "proposed", None, NOW)
    with pytest.raises(IdentityError, match="hash"):
        registry.propose(HASH, "hearts", {**DOCUMENT, "bound": 2.5}, NOW)
    registry.set_state(HASH, "running", LATER)
    registry.set_run(HASH, 2**63 + 5, LATER)
    again = registry.propose(HASH, "hearts", DOCUMENT, LATER)
    assert (again.state, again.run_id, again.proposed, again.changed) == ("running", 2**63 + 5, NOW, LATER)
    with pytest.raises(MisuseError, match="proposed, running"):
        registry.set_state(HASH, "resting", LATER)


def test_a_study_is_not_found_by_what_people_type(registry: Registry) -> None:
    other = {**DOCUMENT, "bound": 9}
    newer = sha256(canonical(other))
    registry.propose(HASH, "hearts", DOCUMENT, NOW)
    registry.propose(newer, "hearts", other, LATER)
    assert registry.study("hearts").hash == newer
    assert registry.study(HASH[:8]).hash == registry.study(HASH).hash == HASH
    assert [row.hash for row in registry.studies()] == [newer, HASH]
    for wrong in (HASH[:7], "%%%%%%%%", "________", "lungs", ""):
        with pytest.raises(IdentityError, match="no study"):
            registry.study(wrong)
    with pytest.raises(IdentityError, match="no study"):
        registry.set_state("0" * 64, "running", NOW)


def test_a_standing_is_an_older_one(registry: Registry) -> None:
    registry.propose(HASH, "hearts", DOCUMENT, NOW)
    registry.put_standings(HASH, {"beta": Standing("pending"), "alpha": Standing("approved")})
    refusal = Standing("declined", "refused: budget", "budget", 12)
    registry.put_standings(HASH, {"beta": refusal, "alpha": Standing("approved")})
    assert registry.standings(HASH) == {"alpha": Standing("approved"), "beta": refusal}
    assert list(registry.standings(HASH)) == ["alpha", "beta"]
    assert registry.standings("0" * 64) == {}
    with pytest.raises(IdentityError, match="no study"):
        registry.put_standings("0" * 64, {"alpha": Standing("pending")})


def test_an_event_is_told_twice_or_never(registry: Registry) -> None:
    first = registry.add_event(HASH, NOW, "evidence", "3 of 9 answered", 3, 9)
    registry.add_event("0" * 64, NOW, "evidence", "of another study")
    second = registry.add_event(HASH, LATER, "pool", "pooled")
    assert [event.id for event in registry.events(HASH)] == [first, second]
    (event,) = registry.events(HASH, first)
    assert (event.phase, event.message, event.done, event.total, event.time) == ("pool", "pooled", None, None, LATER)
    assert registry.events(HASH, second) == ()
    assert [event.id for event in registry.events(HASH, limit=1)] == [first]


def test_a_time_without_a_zone(registry: Registry) -> None:
    with pytest.raises(MisuseError, match="zone"):
        registry.invite("alpha", datetime(2027, 3, 1))


def test_a_time_of_another_zone_is_out_of_order(registry: Registry) -> None:
    from zoneinfo import ZoneInfo

    secret = registry.invite("alpha", NOW.astimezone(ZoneInfo("Pacific/Auckland")))
    (invitation,) = registry.invitations()
    assert invitation.expires == NOW + timedelta(minutes=15)
    assert registry.join(candidate("alpha"), secret, NOW).joined == NOW


def test_new_keys_are_those_of_a_stranger(registry: Registry) -> None:
    joined(registry, "alpha")
    new = candidate("alpha", 5)
    registry.rekey("alpha", new.signing, new.witness, LATER)
    member = registry.member("alpha")
    assert member is not None
    assert (member.signing, member.witness, member.changed) == (new.signing, new.witness, LATER)
    assert member.witness_key == SigningKey.from_seed(bytes([5, 2]) * 16).public
    with pytest.raises(IdentityError):
        registry.rekey("beta", new.signing, new.witness, LATER)
