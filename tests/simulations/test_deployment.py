"""The tests' own deployment: processes it leaves behind, waits without end, and nodes that are not what it says.

Its processes are small here; whole ones run in tests/wire.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from causaldao.client.config import NodeConfig
from causaldao.client.privacy.journal import Journal
from causaldao.errors import GuaranteeError, NetworkError
from causaldao.server.home import Home
from causaldao.simulations import deployment as deployment_module
from causaldao.simulations.deployment import Deployment, Process, free_ports, wait_for
from tests.simulations import small

SLEEPS = "import sys, time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    table = small.table(rows=60)
    return Deployment(tmp_path / "wire", dict.fromkeys(("north", "south", "west"), table))


@pytest.fixture
def small_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of ours is a process that sleeps, and names its arguments."""
    popen = subprocess.Popen

    def start(command: list[str], **settings: Any) -> Any:
        return popen([sys.executable, "-c", SLEEPS, *command[3:]], **settings)

    monkeypatch.setattr(deployment_module.subprocess, "Popen", start)


def test_two_ports_are_one_or_are_taken() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as found:
            found.bind(("127.0.0.1", port))


def test_a_port_is_one_that_another_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = free_ports(2)
    offered = iter([first, second, second, *free_ports(1)])
    monkeypatch.setattr(deployment_module.secrets, "choice", lambda ports: next(offered))
    with socket.create_server(("127.0.0.1", first)):
        found = free_ports(2)
    assert found[0] == second
    assert not {first, second} & {found[1]}


def test_two_coordinators_on_one_machine_listen_on_one_port(deployment: Deployment, tmp_path: Path) -> None:
    other = Deployment(tmp_path / "other", deployment.tables)
    settings = [one.home.settings for one in (deployment, other)]
    ports = [port for one in settings for port in (one.fleet_port, one.enrolment_port, one.ledger_port)]
    assert len(set(ports)) == 6
    assert Home.open(other.home.folder).ledger == f"127.0.0.1:{other.ledger_port}"


def test_a_wait_has_no_end_or_does_not_say_for_what() -> None:
    began = time.monotonic()
    with pytest.raises(NetworkError, match="for the moon"):
        wait_for("the moon", lambda: False, 0.2)
    assert time.monotonic() - began < 5
    wait_for("nothing", lambda: True, 0)


def test_a_process_that_ended_is_waited_for_without_its_last_words(tmp_path: Path) -> None:
    process = Process(["node", "nonsense"], tmp_path / "log")
    assert (process.running, process.stop(), process.said) == (False, 0, "")
    process.start()
    assert process.process is not None
    assert process.process.wait(30) == 2
    with pytest.raises(NetworkError, match=r"node nonsense ended: [\s\S]*No such command"):
        process.require()


@pytest.mark.usefixtures("small_processes")
def test_a_process_is_left_behind(deployment: Deployment) -> None:
    with deployment:
        deployment.coordinator.start()
        for node in deployment.nodes.values():
            node.start()
        wait_for("them", lambda: all("up" in node.said for node in deployment.nodes.values()), 20)
        assert len(deployment._processes()) == 4
        assert deployment.coordinator_pids()[0] == getattr(deployment.coordinator.process, "pid", None)
    assert not deployment.processes_left(0)
    assert not any(process.running for process in (deployment.coordinator, *deployment.nodes.values()))


@pytest.mark.usefixtures("small_processes")
def test_processes_stay_after_a_test_that_failed(deployment: Deployment) -> None:
    def fail() -> None:
        with deployment:
            deployment.coordinator.start()
            raise GuaranteeError("what the test found")

    with pytest.raises(GuaranteeError):
        fail()
    assert not deployment.coordinator.running


def test_a_stranger_that_is_left_behind_is_not_noticed(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grandchild that nobody told to stop: it is found by the folder in its command line."""
    monkeypatch.setattr(Deployment.processes_left, "__defaults__", (0.3,))
    with subprocess.Popen([sys.executable, "-c", SLEEPS, str(deployment.folder)]) as stranger:
        with pytest.raises(NetworkError, match="left behind"), deployment:
            pass
        stranger.kill()


def test_a_coordinator_that_does_not_start_is_waited_for(deployment: Deployment) -> None:
    deployment.coordinator.arguments = ["coordinator", "nonsense"]
    began = time.monotonic()
    with pytest.raises(NetworkError, match="No such command"):
        deployment.start_coordinator()
    assert time.monotonic() - began < deployment_module.READY_SECONDS / 2


def test_the_coordinator_lies_in_another_database_than_it_was_given(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    deployment = Deployment(tmp_path / "wire", {"north": pd.DataFrame({"a": [1.0]})}, database=url)
    assert Home.open(deployment.home.folder).database == url
    assert (tmp_path / "elsewhere.db").exists()
    assert not (deployment.home.folder / "coordinator.db").exists()


def test_a_token_is_not_one_for_the_deployments_ports(deployment: Deployment) -> None:
    text = deployment.token("north")
    assert deployment_module.Token.from_text(text).address == f"127.0.0.1:{deployment.enrolment_port}"


def test_a_node_has_other_rows_or_another_seed_than_it_was_given(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment_module.enrolment, "join", lambda folder, token, now: {})
    deployment.enrol("north", admit=False)
    folder = deployment.node_folder("north")
    config = NodeConfig.load(folder, joined=False)
    assert (config.name, config.insecure_seed, config.lifetime.epsilon) == ("north", 0, 10000.0)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "data.parquet"), deployment.tables["north"])
    deployment.seed = None
    deployment.enrol("south", admit=False)
    assert NodeConfig.load(deployment.node_folder("south"), joined=False).insecure_seed is None


def test_the_debits_of_a_node_without_a_journal_are_a_traceback(deployment: Deployment) -> None:
    assert deployment.debits("north") == []
    deployment.node_folder("north").mkdir()
    Journal.open(deployment.node_folder("north") / "journal.db")
    assert deployment.debits("north") == []


def test_phases_are_counted_twice_or_out_of_order(deployment: Deployment) -> None:
    asked = small.study(faulty=0)
    registry = deployment.home.registry
    for phase in ("roll call", "roll call", "quarantine", "evidence", "pool", "evidence", "training", "roll call"):
        registry.add_event(asked.hash, deployment_module.now(), phase, "")
    assert deployment.phases(asked) == ["roll call", "evidence", "training", "roll call"]
    assert deployment.state(asked) == ""
