"""The node's process: what it starts before it may, goes on with after it must not, or does not keep up.

The coordinator's enrolment is replaced; Flower's SuperNode and the launcher are processes that sleep.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from causaldao.children import Child
from causaldao.client import enrolment, service
from causaldao.client.enrolment import Renewal
from causaldao.client.service import Service
from causaldao.errors import CausalDAOError, ConfigurationError, IdentityError, NetworkError, RefusedError
from causaldao.flower_app import fab_hash
from causaldao.server.authority import Authority
from causaldao.signing import SigningKey

NOW = datetime.now(UTC)
REVOKED = IdentityError("'north' was revoked from 'test': ask the operator why.")
PENDING = RefusedError("'north' is not admitted yet: ask the operator.")
AWAY = NetworkError("The coordinator did not answer.")
OTHER = "cd" * 32


def read_status(folder: Path) -> dict[str, Any] | None:
    """What the process wrote of itself; None if it is gone, or wrote nothing."""
    path = folder / "run" / "status.json"
    return json.loads(path.read_text()) if path.exists() else None


@dataclass
class Coordinator:
    """What the enrolment service answers: each error once, in turn, then a certificate."""

    folder: Path
    authority: Authority
    errors: deque[Exception] = field(default_factory=deque)
    bundle: str = field(default_factory=fab_hash)
    asked: int = 0
    announced: int = 0
    announcement: Exception | None = None

    def renew(self, folder: Path, now: datetime) -> Renewal:
        self.asked += 1
        if self.errors:
            raise self.errors.popleft()
        request = enrolment._request(enrolment._load_tls(folder), "north")
        pem = self.authority.issue_member("north", request, datetime.now(UTC))
        (folder / "certificate.pem").write_text(pem)
        expires = enrolment.certificate_expiry(folder)
        assert expires is not None
        return Renewal(expires, "127.0.0.1:1", self.bundle, "")

    def announce(self, folder: Path, now: datetime) -> None:
        self.announced += 1
        if self.announcement is not None:
            raise self.announcement

    def expire(self, hours: float) -> None:
        """The node's certificate is good for so long."""
        request = enrolment._request(enrolment._load_tls(self.folder), "north")
        pem = self.authority.issue_member("north", request, NOW - timedelta(hours=24 - hours), 24)
        (self.folder / "certificate.pem").write_text(pem)


@dataclass
class World:
    folder: Path
    coordinator: Coordinator
    children: list[Child] = field(default_factory=list)

    def run(self, watch: Callable[[Service], Any] | None = None, **settings: Any) -> Service:
        """Run the node until it ends by itself, or ``watch`` has seen enough: then it is told to stop."""

        async def whole() -> Service:
            node = Service(self.folder, **settings)
            task = asyncio.create_task(node.run())
            if watch is not None:
                watching = asyncio.create_task(watch(node))
                await asyncio.wait({task, watching}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
                if not task.done():
                    os.kill(os.getpid(), signal.SIGTERM)
                elif not watching.done():
                    watching.cancel()
                else:
                    await watching
                await task
                await watching
            else:
                await asyncio.wait_for(task, 20)
            return node

        return asyncio.run(whole())

    @property
    def state(self) -> str:
        status = read_status(self.folder)
        return "" if status is None else str(status["state"])


async def until(ready: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not ready():
        assert asyncio.get_running_loop().time() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    folder, hub = tmp_path / "node", tmp_path / "hub"
    folder.mkdir()
    hub.mkdir()
    authority = Authority.create(hub, "test", NOW - timedelta(days=2))
    enrolment.make_keys(folder)
    (folder / "node.toml").write_text('name = "north"\ndata = "data.csv"\ndataset = "visits"\n')
    (folder / "authority.crt").write_bytes(authority.certificate_pem)
    write_federation(folder, fab_hash())
    found = World(folder, Coordinator(folder, authority))

    def child(name: str, command: Any, log: Path, environment: Any) -> Child:
        found.children.append(Child(name, ["sleep", "60"], log, {**environment, "COMMAND": "\n".join(command)}))
        return found.children[-1]

    monkeypatch.setattr(service, "Child", child)
    monkeypatch.setattr(enrolment, "renew", found.coordinator.renew)
    monkeypatch.setattr(enrolment, "announce", found.coordinator.announce)
    monkeypatch.setattr(service, "_ADMISSION_SECONDS", 0.05)
    monkeypatch.setattr(service, "TEND_SECONDS", 0.05)
    monkeypatch.setattr("causaldao.children._BACKOFF", (0.1,))
    return found


def write_federation(folder: Path, bundle: str) -> None:
    value = {
        "federation": "test", "name": "north", "coordinator": SigningKey.generate().public.to_text("coordinator"),
        "origin": "test",
        "fleet": "127.0.0.1:1", "enrolment": "127.0.0.1:2", "bundle": bundle, "joined": NOW.isoformat(),
    }  # fmt: skip
    (folder / "federation.json").write_text(json.dumps(value))


# starting


def test_a_node_starts_without_its_children_or_leaves_them_behind(world: World) -> None:
    async def watch(node: Service) -> None:
        await until(lambda: world.state == "running")
        assert [(child.name, child.alive()) for child in world.children] == [
            ("flower-supernode", True),
            ("launcher", True),
        ]

    world.run(watch)
    assert not any(child.alive() for child in world.children)
    assert read_status(world.folder) is None
    assert world.coordinator.announced == 1
    world.run(watch=lambda node: until(lambda: world.state == "running"))  # the folder is free again


def test_flowers_supernode_is_started_in_the_open(world: World) -> None:
    """TLS to the connector, a secret between it and the launcher, and the launcher in the executor's place."""
    world.run(watch=lambda node: until(lambda: world.state == "running"))
    supernode, launcher = (child.environment["COMMAND"].split("\n") for child in world.children)
    given = {word: supernode[k + 1] for k, word in enumerate(supernode[:-1]) if word.startswith("--")}
    assert "--insecure" not in supernode
    assert given["--superlink"].startswith("127.0.0.1:")
    assert (given["--host"], given["--isolation"]) == ("127.0.0.1", "process")
    assert launcher[launcher.index("--runtime") + 1] == f"127.0.0.1:{given['--port']}"
    assert launcher[launcher.index("--secret") + 1] == given["--superexec-auth-secret-file"]
    assert launcher[launcher.index("--bundle") + 1] == fab_hash()
    secret, key = Path(given["--superexec-auth-secret-file"]), Path(given["--auth-supernode-private-key"])
    assert len(secret.read_bytes()) == 32
    assert {path.stat().st_mode & 0o777 for path in (secret, key)} == {0o600}
    assert (world.folder / "run").stat().st_mode & 0o777 == 0o700
    own: Any = load_pem_private_key((world.folder / "tls.pem").read_bytes(), None)
    flowers: Any = load_ssh_private_key(key.read_bytes(), None)
    assert flowers.private_numbers() == own.private_numbers()
    assert all(child.environment["FLWR_TELEMETRY_ENABLED"] == "0" for child in world.children)


def test_a_node_runs_twice_in_one_folder(world: World) -> None:
    async def watch(node: Service) -> None:
        await until(lambda: world.state == "running")
        with pytest.raises(ConfigurationError, match="running already"):
            await Service(world.folder).run()
        assert world.state == "running"

    world.run(watch)
    assert len(world.children) == 2


@pytest.mark.parametrize(
    ("break_it", "kind"),
    [
        (lambda folder: (folder / "node.toml").write_text('name = "No Name"\n'), ConfigurationError),
        (lambda folder: (folder / "node.toml").unlink(), ConfigurationError),
        (lambda folder: (folder / "federation.json").unlink(), CausalDAOError),
        (lambda folder: folder.rename(folder.with_name("elsewhere")), ConfigurationError),
    ],
    ids=["faults", "no settings", "not joined", "no folder"],
)
def test_a_node_that_is_not_whole_starts_something(
    world: World, break_it: Callable[[Path], Any], kind: type[CausalDAOError]
) -> None:
    break_it(world.folder)
    with pytest.raises(kind):
        world.run()
    assert (world.children, world.coordinator.asked) == ([], 0)


# admission


def test_a_node_that_waits_for_admission_starts_something_or_gives_up(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.coordinator.errors += [PENDING] * 3 + [AWAY] * 2 + [PENDING] * 30
    states: list[str] = []

    async def watch(node: Service) -> None:
        while world.state != "running":
            states.append(world.state)
            assert not world.children or world.coordinator.asked > 35
            await asyncio.sleep(0.005)

    with caplog.at_level(logging.INFO, "causaldao.client.service"):
        world.run(watch)
    told = [state for k, state in enumerate(states) if state and (k == 0 or states[k - 1] != state)]
    order = ["starting", "waiting for admission", "coordinator not reachable", "waiting for admission"]
    assert [state for state in told if state in order][-3:] == order[1:]
    assert caplog.text.count("waiting for the operator to admit") == 1
    assert world.coordinator.asked == 36


def test_a_node_that_waits_cannot_be_stopped(world: World) -> None:
    world.coordinator.errors += [PENDING] * 10_000
    world.run(watch=lambda node: until(lambda: world.state == "waiting for admission"))
    assert world.children == []
    assert read_status(world.folder) is None


def test_a_revoked_node_starts_or_says_nothing(world: World) -> None:
    world.coordinator.errors.append(REVOKED)
    with pytest.raises(IdentityError, match="revoked") as found:
        world.run()
    assert found.value.exit_code == 14
    assert world.children == []
    status = read_status(world.folder)
    assert status is not None
    assert (status["state"], "revoked" in status["error"]) == ("failed", True)


def test_an_unannounced_dictionary_stops_the_node(world: World) -> None:
    world.coordinator.announcement = AWAY
    world.run(watch=lambda node: until(lambda: world.state == "running"))
    assert world.coordinator.announced == 1


def test_a_good_certificate_is_fetched_again_or_a_node_needs_its_coordinator_to_start(world: World) -> None:
    world.coordinator.expire(hours=12)
    world.coordinator.errors += [AWAY] * 100
    world.run(watch=lambda node: until(lambda: world.state == "running"))
    assert world.coordinator.asked == 0


# bundles


def test_a_bundle_that_this_version_does_not_answer_is_noticed_late(world: World) -> None:
    write_federation(world.folder, OTHER)
    with pytest.raises(RefusedError, match="pinned the bundle cdcdcdcdcdcd") as found:
        world.run()
    assert found.value.exit_code == 18
    assert (world.children, world.coordinator.asked) == ([], 0)


def test_a_coordinator_with_another_bundle_is_taken_for_one_that_has_not_decided(world: World) -> None:
    """Also when the node is started again: what was refused is not forgotten."""
    world.coordinator.bundle = OTHER
    for _ in range(2):
        with pytest.raises(RefusedError, match="now sends the bundle cdcdcdcdcdcd") as found:
            world.run()
        assert found.value.exit_code == 18
    assert (world.children, world.coordinator.asked) == ([], 2)
    world.coordinator.bundle = fab_hash()
    world.run(watch=lambda node: until(lambda: world.state == "running"))


# a running node


def renewing(world: World, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A node that runs and whose certificate is about to end; the certificates that its connector was given."""
    given: list[bytes] = []

    async def renew(self: Any, identity: Any) -> None:
        given.append(identity.certificate)

    monkeypatch.setattr("causaldao.client.connector.Connector.renew", renew)
    world.coordinator.expire(hours=12)
    return given


async def near_its_end(world: World) -> None:
    await until(lambda: world.state == "running")
    world.coordinator.expire(hours=7)


def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the certificate are not a minute apart."""
    monkeypatch.setattr(service, "_RETRY", timedelta(0))
    monkeypatch.setattr(service, "timedelta", lambda **_: timedelta(0))


def test_a_certificate_runs_out_or_its_successor_is_not_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given = renewing(world, monkeypatch)
    soon(monkeypatch)

    async def watch(node: Service) -> None:
        await near_its_end(world)
        await until(lambda: bool(given))

    world.run(watch)
    assert given == [(world.folder / "certificate.pem").read_bytes()]
    assert world.coordinator.asked == 1


@pytest.mark.parametrize(("error", "exit_code"), [(REVOKED, 14), (None, 18)], ids=["revoked", "another bundle"])
def test_a_running_node_goes_on_after_it_must_not(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception | None, exit_code: int
) -> None:
    renewing(world, monkeypatch)
    soon(monkeypatch)
    if error is None:
        world.coordinator.bundle = OTHER
    else:
        world.coordinator.errors.append(error)

    async def watch(node: Service) -> None:
        await near_its_end(world)
        await asyncio.sleep(10)

    with pytest.raises(CausalDAOError) as found:
        world.run(watch)
    assert found.value.exit_code == exit_code
    assert [child.alive() for child in world.children] == [False, False]
    status = read_status(world.folder)
    assert status is not None
    assert status["state"] == "failed"


@pytest.mark.parametrize("error", [AWAY, IdentityError("It is 1970 here: check the clock.")], ids=["away", "clock"])
def test_a_passing_fault_ends_a_running_node(world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    given = renewing(world, monkeypatch)
    soon(monkeypatch)
    world.coordinator.errors += [error] * 3

    async def watch(node: Service) -> None:
        await near_its_end(world)
        await until(lambda: bool(given))
        assert world.state == "running"

    world.run(watch)
    assert world.coordinator.asked == 4


def test_a_dead_child_is_not_brought_back(world: World) -> None:
    async def watch(node: Service) -> None:
        await until(lambda: world.state == "running")
        pid = world.children[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: world.children[1].restarts == 1 and world.children[1].alive())
        assert world.children[0].restarts == 0

    world.run(watch)


def test_an_owner_who_edits_node_toml_ends_the_running_node(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What is spent is measured while the node runs; a fault in the file is one for the next start."""

    async def watch(node: Service) -> None:
        await until(lambda: world.state == "running")
        (world.folder / "node.toml").write_text("name = ")
        (world.folder / "journal.db").touch()
        await until(lambda: "could not be measured" in caplog.text)
        await asyncio.sleep(0.2)
        assert world.state == "running"

    with caplog.at_level(logging.WARNING, "causaldao.client.service"):
        world.run(watch)
    assert caplog.text.count("could not be measured") == 1
