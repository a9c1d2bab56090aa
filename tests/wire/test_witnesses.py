"""The members as witnesses, over the wire: a coordinator whose database was put back gets nothing more from anybody.

One study is the story of all these tests. Its coordinator is stopped in the middle, and goes on with an older copy of
its database; then with the newest again, to the end, where each word has a receipt.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from causaldao.client.overview import status
from causaldao.ledger.cli import app
from causaldao.ledger.log import Log
from causaldao.ledger.verify import Policy, verify_receipt
from causaldao.server.studies import begin, follow, last_event, put_forward
from causaldao.simulations.deployment import Deployment, wait_for
from causaldao.study import Study
from tests.wire import cases

pytestmark = pytest.mark.wire
MEMBERS, QUORUM = 3, 2
NAMES = cases.NAMES[:MEMBERS]


@dataclass
class Story:
    """What was found of one study, and the deployment that has closed it and still runs."""

    deployment: Deployment
    asked: Study
    before: dict[str, list[Any]] = field(default_factory=dict)
    """The journals as the older copy was put back, and ``after`` its study had ended."""
    after: dict[str, list[Any]] = field(default_factory=dict)
    ended: int = 0
    error: dict[str, Any] = field(default_factory=dict)
    recorded: str = ""
    """The study's state on the older copy at the end."""
    watched: list[Result] = field(default_factory=list)
    """What the same watch told: in the middle, of the older copy, of the end."""

    @property
    def folder(self) -> Path:
        return self.deployment.home.study_folder(self.asked.hash)

    @property
    def policy(self) -> Policy:
        return Policy.parse((self.deployment.home.folder / "policy").read_text())

    def ledger(self, command: str, *arguments: object) -> Result:
        """A command on the coordinator's own service, as the first member."""
        deployment = self.deployment
        node, policy = deployment.node_folder(NAMES[0]), deployment.home.folder / "policy"
        given = (command, *arguments, "--node", node, "--policy", policy)
        return CliRunner().invoke(app, [str(argument) for argument in given])

    def watch(self) -> None:
        url, state = f"ledger://127.0.0.1:{self.deployment.ledger_port}", self.deployment.folder / "seen"
        self.watched.append(self.ledger("watch", url, "--once", "--state", state))

    def debits(self) -> dict[str, list[Any]]:
        return {name: self.deployment.debits(name) for name in NAMES}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    asked = cases.study(faulty=0, rounds=0)
    folder = tmp_path_factory.mktemp("witnesses")
    with Deployment(folder / "wire", cases.tables(MEMBERS), seed=cases.SEED) as deployment:
        found = Story(deployment, asked)
        deployment.start_coordinator()
        deployment.enrol()
        deployment.approve(asked)
        row = put_forward(deployment.home, asked)
        for node in deployment.nodes.values():
            node.start()
        begin(deployment.home, row)
        wait_for("the roll call", lambda: deployment.state(asked) == "roll-call", 120)
        database, old, newest = deployment.home.folder / "coordinator.db", folder / "old.db", folder / "newest.db"
        copy(database, old)
        with Log.read(f"sqlite:///{old}") as log:
            size = log.head.size
        # What no member has seen may be lost: nobody can tell, and nothing was built on it.
        wait_for("all members to see more", lambda: all(seen(deployment, name) > size for name in NAMES), 120)
        found.watch()
        deployment.coordinator.stop()
        found.before = found.debits()

        copy(database, newest)
        put_back(deployment, old)
        deployment.start_coordinator()
        found.watch()
        found.ended, envelope = deployment.run_study(asked.hash, resume=True)
        found.error, found.recorded = envelope["error"], deployment.state(asked)
        found.after = found.debits()

        deployment.coordinator.stop()
        put_back(deployment, newest)
        deployment.start_coordinator()
        run = begin(deployment.home, row)
        follow(deployment.home, row, run, last_event(deployment.home, asked.hash), lambda event: None)
        found.watch()
        yield found


def seen(deployment: Deployment, name: str) -> int:
    """How many entries a member's witness has seen."""
    return int(status(deployment.node_folder(name))["witness"]["size"])


def put_back(deployment: Deployment, source: Path) -> None:
    """Another copy in the database's place, also for this process, which would go on with the file that it had open."""
    deployment.home.registry.close()
    copy(source, deployment.home.folder / "coordinator.db")


def copy(source: Path, target: Path) -> None:
    """A consistent copy of a database, also of one in use, with its write-ahead log."""
    for name in (target, Path(f"{target}-wal"), Path(f"{target}-shm")):
        name.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def test_a_rolled_back_coordinator_goes_on_or_does_not_say_why(story: Story) -> None:
    assert (story.ended, story.error["code"]) == (15, "ledger")
    assert "was rolled back or replaced" in story.error["message"]
    assert story.recorded == "roll-call"  # not aborted: it goes on once the newest copy is back


def test_a_member_releases_something_to_a_rolled_back_coordinator(story: Story) -> None:
    assert story.after == story.before
    assert {kind for debits in story.before.values() for _, kind, _ in debits} == {"evidence"}
    for name in NAMES:
        assert len(story.deployment.debits(name)) == 1, f"{name} spent twice, to the end"


def test_a_monitor_does_not_notice_that_the_ledger_was_rolled_back(story: Story) -> None:
    middle, old, end = story.watched
    assert (middle.exit_code, old.exit_code, end.exit_code) == (0, 1, 0), [r.output for r in story.watched]
    assert "contradicts itself" in old.stderr
    assert "as the policy asks" in end.stdout
    assert set(middle.stdout.splitlines()).isdisjoint(end.stdout.splitlines())  # nothing is told twice


def test_a_word_over_the_wire_has_no_receipt(story: Story) -> None:
    for name in NAMES:
        words = cases.receipted(story.deployment.node_folder(name), story.asked, story.policy)
        assert words == {("evidence", 0), ("ballot", 0)}
        assert status(story.deployment.node_folder(name))["witness"]["without_receipt"] == 0


def test_a_study_over_the_wire_ends_without_a_quorum_having_cosigned_it(story: Story) -> None:
    report = cases.audited(story.folder)
    assert report.entries[-1].kind == "study.closed"
    assert len(report.cosigners) >= QUORUM == report.quorum
    assert story.policy.satisfied(report.cosigners)


def test_a_member_gets_no_receipt_of_anothers_entry_from_the_coordinator(story: Story, tmp_path: Path) -> None:
    entry = next(line for line in cases.audited(story.folder).entries if line.kind == "pool")
    url = f"ledger://127.0.0.1:{story.deployment.ledger_port}"
    result = story.ledger("receipt", entry.index, "--from", url, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    receipt, record = (tmp_path / f"{entry.index}.{end}" for end in ("tlog-proof", "record"))
    assert verify_receipt(receipt.read_text(), record.read_bytes(), story.policy).kind == "pool"
