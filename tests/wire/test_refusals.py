"""What is refused on the wire, where it stops, and what the operator sees of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from causaldao.flower_app import build
from causaldao.server.standing import summary
from causaldao.server.superlink import Control
from causaldao.simulations.deployment import ENVIRONMENT, Deployment, now, wait_for
from causaldao.study import Study
from tests.wire import cases

pytestmark = pytest.mark.wire
GOOD, OTHER, WRONG_DATA, POOR, SILENT = cases.NAMES


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two good nodes, one whose table lacks a column, one whose budget is too small, one that approves nothing."""
    tables = cases.tables()
    tables[WRONG_DATA] = tables[WRONG_DATA].drop(columns=["b"])
    with Deployment(tmp_path_factory.mktemp("refusals"), tables, seed=cases.SEED) as deployment:
        deployment.start_coordinator()
        deployment.enrol()
        poor = deployment.node_folder(POOR) / "node.toml"
        poor.write_text(poor.read_text().replace("epsilon = 10000.0", "epsilon = 1.0"))
        deployment.start_nodes()
        yield deployment


def test_the_operator_sees_why_each_member_does_not_take_part(deployment: Deployment) -> None:
    asked = cases.study(deadline=30.0)
    deployment.approve(asked, GOOD, OTHER, WRONG_DATA, POOR)
    status, envelope = deployment.run_study(asked)
    assert (status, envelope["error"]["code"]) == (13, "guarantee")
    for name in (WRONG_DATA, POOR, SILENT):
        assert name in envelope["error"]["message"]
    standings = deployment.home.registry.standings(asked.hash)
    assert summary(standings) == "2 of 5 approved, 1 declined: budget 12, 1 declined: data 11, 1 pending"
    shown = subprocess.run(
        [sys.executable, "-m", "causaldao", "coordinator", "status", str(deployment.home.folder), "--json"],
        capture_output=True, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    (study,) = [row for row in json.loads(shown.stdout)["data"]["studies"] if row["hash"] == asked.hash]
    assert study["state"] == "aborted"
    assert (study["members"][WRONG_DATA]["code"], study["members"][WRONG_DATA]["exit_code"]) == ("data", 11)
    assert (study["members"][POOR]["code"], study["members"][POOR]["exit_code"]) == ("budget", 12)
    assert study["members"][SILENT]["state"] == "pending"
    assert not deployment.debits(GOOD)
    assert "not approved" in (deployment.node_folder(SILENT) / "run" / "launcher.log").read_text()


def test_a_study_altered_after_its_approval_is_refused(deployment: Deployment) -> None:
    asked = cases.study(deadline=20.0, privacy={"epsilon": 39.0, "delta": 1e-5})
    deployment.approve(asked)
    (approval,) = [path for path in (deployment.node_folder(GOOD) / "approvals").iterdir() if asked.hash in path.name]
    approval.write_text(approval.read_text().replace("39.0", "3900.0"))
    status, envelope = deployment.run_study(asked)
    assert (status, envelope["error"]["exit_code"]) == (13, 13)
    assert deployment.home.registry.standings(asked.hash)[GOOD].state in ("pending", "declined")
    assert asked.hash[:12] in (deployment.node_folder(GOOD) / "run" / "launcher.log").read_text()
    assert not deployment.debits(GOOD)


def test_an_altered_bundle_is_never_run(deployment: Deployment, tmp_path: Path) -> None:
    """It would touch a file as it is imported, at the node and (where it may) at the coordinator."""
    touched, asked = tmp_path / "node", tmp_path / "coordinator"
    source = Path("server/flower-app")
    files = {name: (source / name).read_bytes() for name in ("pyproject.toml", "LICENSE", "cdao_app/__init__.py")}
    files["cdao_app/client_app.py"] = (
        f"from pathlib import Path\nPath({str(touched)!r}).touch()\n".encode()
        + (source / "cdao_app/client_app.py").read_bytes()
    )
    files["cdao_app/server_app.py"] = ASKING.format(out=str(asked)).encode()
    before = (deployment.node_folder(GOOD) / "run" / "launcher.log").read_text().count("bundle refused")
    control = Control(deployment.home.require_running()["control"], deployment.home.authority.certificate_pem)
    run = control.start_app(build(files), {"study": "x"})
    wait_for("the altered bundle's run", lambda: not control.running(run), 90)
    assert set(json.loads(asked.read_text())) == {"refused"}
    assert not touched.exists()
    said = (deployment.node_folder(GOOD) / "run" / "launcher.log").read_text()
    assert said.count("bundle refused") > before


ASKING = """
import json, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    content = RecordDict({{"c": ConfigRecord({{"k": 1}})}})
    ids = list(grid.push_messages([Message(content, node, "query.evidence") for node in grid.get_node_ids()]))
    answers = {{}}
    while len(answers) < len(ids):
        for m in grid.pull_messages([i for i in ids if i not in answers]):
            word = f"error {{m.error.code}}: {{m.error.reason}}" if m.has_error() else ", ".join(m.content)
            answers[m.metadata.reply_to_message_id] = word
        time.sleep(0.2)
    open({out!r}, "w").write(json.dumps(list(answers.values())))
"""


def test_a_token_serves_once_and_a_stranger_does_not_start(deployment: Deployment, tmp_path: Path) -> None:
    folder = tmp_path / "late"
    folder.mkdir()
    cases.tables()[GOOD].to_parquet(folder / "data.parquet")
    (folder / "node.toml").write_text('name = "late"\ndata = "data.parquet"\ndataset = "late"\n')
    token = deployment.token("late")

    def node(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "causaldao", "node", *arguments], capture_output=True, env=ENVIRONMENT, timeout=60
        )
        return done.returncode, (done.stdout + done.stderr).decode()

    assert node("start", str(folder))[0] in (10, 14)  # it has not joined
    assert node("join", str(folder), token)[0] == 0
    other = tmp_path / "thief"
    other.mkdir()
    (other / "node.toml").write_text('name = "late"\ndata = "data.parquet"\ndataset = "late"\n')
    status, said = node("join", str(other), token)
    assert status == 14
    assert "used" in said
    deployment.home.admit("late", now())
    deployment.home.revoke("late", "a test", now())
    status, said = node("start", str(folder))
    assert status == 14
    assert "revoked" in said


def test_a_400_mb_reply_leaves_the_memory_of_the_coordinator_where_it_was(deployment: Deployment) -> None:
    """Beside the most that a study takes in which that member says nothing."""
    deployment.nodes[SILENT].stop()
    usual = peak(deployment, cases.study(deadline=15.0, privacy={"epsilon": 37.0, "delta": 1e-5}))
    hostile = subprocess.Popen(
        [sys.executable, "-m", "tests.wire.hostile", str(deployment.node_folder(SILENT)), deployment.home.fleet, "400"],
        stdout=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    assert hostile.stdout is not None
    assert hostile.stdout.readline() == b"ready\n"
    most = peak(deployment, cases.study(deadline=15.0, privacy={"epsilon": 38.0, "delta": 1e-5}))
    out, _ = hostile.communicate(timeout=60)
    deployment.start_nodes(SILENT)
    lines = out.decode().splitlines()
    assert lines[0].startswith("stopped after 16 MB: RESOURCE_EXHAUSTED"), lines[:3]
    assert len(lines) == 100 - 4
    assert most - usual < 64 << 20, f"{(most - usual) >> 20} MB more"
    assert "larger than" in deployment.coordinator.said


def peak(deployment: Deployment, asked: Study) -> int:
    """The most memory, in bytes, of the coordinator's processes while a study is tried."""
    pids = deployment.coordinator_pids()
    most, over = [0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            most[0] = max(most[0], resident(pids))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    deployment.run_study(asked)
    over.set()
    watcher.join()
    return most[0]


def resident(pids: list[int]) -> int:
    """Bytes of memory of processes, those that have ended left out."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        except OSError:
            continue
    return total


def test_a_revoked_member_is_out_at_once_and_its_node_stops(deployment: Deployment) -> None:
    deployment.home.revoke(OTHER, "a test", now())
    wait_for(
        "the gateway to refuse it", lambda: f"of {OTHER} refused: the member is revoked" in deployment.coordinator.said
    )
