"""The registry on PostgreSQL, where several connections really write at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from causaldao.errors import CausalDAOError, IdentityError, LedgerError
from causaldao.ledger.log import Log
from causaldao.members import witness_text
from causaldao.server import database, membership
from causaldao.server.registry import Candidate, Registry, Standing
from causaldao.signing import SigningKey, canonical, sha256
from tests.ledger import postgres

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
DOCUMENT = {"study": {"name": "hearts"}, "bound": 1.5, "name": "é"}
HASH = sha256(canonical(DOCUMENT))


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.server() as running:
        yield running


@pytest.fixture
def url(server: postgres.Server) -> str:
    return server.url(server.schema())


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    with closing(Registry(url, create=True)) as found:
        yield found


def candidate(name: str, seed: int = 0) -> Candidate:
    signing, witness = (SigningKey.from_seed(bytes([seed, part]) * 16).public for part in (1, 2))
    return Candidate(name, signing.to_text(name), witness_text(name, witness), f"tls key {seed}", "0.1.0")


def at_once(*acts: Callable[[], Any]) -> list[Any]:
    """Run acts in threads that begin together; what each returned or raised."""
    found: list[Any] = [None] * len(acts)
    together = threading.Barrier(len(acts))

    def run(number: int) -> None:
        together.wait(10)
        try:
            found[number] = acts[number]()
        except CausalDAOError as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_a_token_is_redeemed_twice_by_two_that_ask_at_once(url: str, registry: Registry) -> None:
    """Two processes: two institutions with one stolen token, ten times over."""
    with closing(Registry(url)) as other:
        for k in range(10):
            name = f"member-{k}"
            secret = registry.invite(name, NOW)
            both = [candidate(name, 2 * k), candidate(name, 2 * k + 1)]
            first, second = at_once(
                lambda both=both, secret=secret: registry.join(both[0], secret, NOW),
                lambda both=both, secret=secret: other.join(both[1], secret, NOW),
            )
            errors = [one for one in (first, second) if isinstance(one, CausalDAOError)]
            (joined,) = [one for one in (first, second) if not isinstance(one, CausalDAOError)]
            assert [type(error) for error in errors] == [IdentityError]
            assert "used already" in errors[0].message
            assert registry.member(name) == other.member(name) == joined
        assert len(registry.members()) == 10


def test_a_writer_does_not_wait_for_another_connections_transaction(url: str, registry: Registry) -> None:
    """Between the look and the write of one, the other may not write: here the first holds its lock for a while."""
    secret = registry.invite("alpha", NOW)
    done: list[float] = []

    def join() -> None:
        registry.join(candidate("alpha"), secret, NOW)
        done.append(time.monotonic())

    with closing(Registry(url)) as other:
        waiting = threading.Thread(target=join)
        with other._database.write("hold the lock"):
            waiting.start()
            time.sleep(0.3)
            assert not done
            released = time.monotonic()
        waiting.join(10)
    assert done[0] >= released


def test_one_key_joins_under_two_names_at_once(url: str, registry: Registry) -> None:
    secrets = {name: registry.invite(name, NOW) for name in ("alpha", "beta")}
    with closing(Registry(url)) as other:
        found = at_once(
            lambda: registry.join(candidate("alpha"), secrets["alpha"], NOW),
            lambda: other.join(candidate("beta"), secrets["beta"], NOW),
        )
    assert sum(isinstance(one, IdentityError) for one in found) == 1
    assert len(registry.members()) == 1


def test_a_registry_that_two_processes_make_at_once_is_none(url: str) -> None:
    made = at_once(*[lambda: Registry(url, create=True)] * 4)
    assert not [one for one in made if isinstance(one, CausalDAOError)]
    for one in made:
        one.close()
    with closing(Registry(url)) as again:
        assert again.members() == ()


def test_a_member_is_another_on_postgresql_than_on_sqlite(registry: Registry) -> None:
    secret = registry.invite("alpha", NOW)
    assert registry.join(candidate("alpha"), secret, NOW).state == "pending"
    assert registry.join(candidate("alpha"), secret, LATER).state == "pending"  # its first answer was lost
    assert registry.admit("alpha", LATER).changed == LATER
    assert registry.admit("alpha", NOW).changed == LATER
    registry.set_node("alpha", 2**64 - 1)
    registry.set_dictionary("alpha", "envelope é")
    registry.seen("alpha", LATER, "0.2.0")
    member = registry.member("alpha")
    assert member is not None
    assert (member.node_id, member.dictionary, member.last_seen) == (2**64 - 1, "envelope é", LATER)
    assert (member.version, member.joined) == ("0.2.0", NOW)
    registry.rotate("alpha", "new tls key", LATER)
    assert [(one.tls, one.node_id) for one in registry.members()] == [("new tls key", None)]
    assert registry.revoke("alpha", LATER).state == "revoked"
    with pytest.raises(IdentityError):
        registry.invite("alpha", NOW)


def test_a_late_token_is_taken(registry: Registry) -> None:
    secret = registry.invite("alpha", NOW)
    with pytest.raises(IdentityError, match="expired"):
        registry.join(candidate("alpha"), secret, NOW + timedelta(minutes=16))
    assert registry.join(candidate("alpha"), secret, NOW).state == "pending"  # the refusal did not burn it


def test_a_study_is_another_on_postgresql_than_on_sqlite(registry: Registry) -> None:
    row = registry.propose(HASH, "hearts", DOCUMENT, NOW)
    assert registry.propose(HASH, "hearts", DOCUMENT, LATER) == row
    assert row.document == DOCUMENT
    registry.set_state(HASH, "running", LATER)
    registry.set_run(HASH, 2**64 - 1, LATER)
    for reference in (HASH, HASH[:10], "hearts"):
        found = registry.study(reference)
        assert (found.state, found.run_id, found.proposed, found.changed) == ("running", 2**64 - 1, NOW, LATER)
    with pytest.raises(IdentityError):
        registry.study("he_rts")  # no pattern
    assert [one.hash for one in registry.studies()] == [HASH]


def test_standings_are_lost_when_two_are_written_at_once(url: str, registry: Registry) -> None:
    registry.propose(HASH, "hearts", DOCUMENT, NOW)
    standings = {f"m{k}": Standing("declined", "é", "data", 11) for k in range(20)}
    with closing(Registry(url)) as other:
        found = at_once(*[lambda one=one: one.put_standings(HASH, standings) for one in (registry, other)] * 3)
    assert found == [None] * 6
    assert {name: one.exit_code for name, one in registry.standings(HASH).items()} == {f"m{k}": 11 for k in range(20)}


def test_events_are_told_twice_or_out_of_order(url: str, registry: Registry) -> None:
    """Who follows asks for what came after the last id: one that is committed late must not have a lower one."""
    registry.propose(HASH, "hearts", DOCUMENT, NOW)
    heard: list[int] = []
    over = threading.Event()

    def follow() -> None:
        with closing(Registry(url)) as reader:
            last = False
            while not last:
                last = over.is_set()
                heard.extend(event.id for event in reader.events(HASH, heard[-1] if heard else 0))

    following = threading.Thread(target=follow)
    following.start()
    with closing(Registry(url)) as other:
        told = at_once(
            *[
                lambda one=one: [one.add_event(HASH, NOW, "training", "x", k, 25) for k in range(25)]
                for one in (registry, other, registry, other)
            ]
        )
    over.set()
    following.join(20)
    assert heard == sorted(id for ids in told for id in ids)
    assert len(heard) == 100
    assert [event.id for event in registry.events(HASH, heard[49], 10)] == heard[50:60]


def test_ledger_and_registry_cannot_share_a_database(url: str, registry: Registry) -> None:
    with Log.create(url, "test", SigningKey.from_seed(b"k" * 32)) as log:
        membership.found(log, "test")
        registry.invite("alpha", NOW)
        assert membership.roster(log).names == ()
    with closing(Registry(url)) as again:
        assert [one.name for one in again.invitations()] == ["alpha"]


def test_a_registry_of_another_version_is_read(server: postgres.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = server.schema()
    Registry(server.url(schema), create=True).close()
    server.run("UPDATE registry_version SET version = 99", schema=schema)
    engines: list[sa.Engine] = []
    make = database.connect

    def connect(url: str, *, create: bool) -> sa.Engine:
        engines.append(make(url, create=create))
        return engines[-1]

    monkeypatch.setattr(database, "connect", connect)
    with pytest.raises(LedgerError, match="99"):
        Registry(server.url(schema))
    for engine in engines:
        engine.dispose()


def test_a_server_that_is_away_is_a_traceback(tmp_path: Any) -> None:
    with pytest.raises(LedgerError, match="Could not open the registry"):
        Registry(f"postgresql+psycopg://me@/postgres?host={tmp_path}")


def test_a_server_that_was_restarted_ends_the_registry(server: postgres.Server, registry: Registry) -> None:
    """Its connections are gone; the next call makes a new one."""
    registry.invite("alpha", NOW)
    server.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'postgres'"
    )
    assert [one.name for one in registry.invitations()] == ["alpha"]
