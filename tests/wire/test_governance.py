"""A federation that changes by its members' votes, over the wire: nothing of it is the operator's to decide alone.

Five founding members run a study. A sixth is voted in, and right after it one of the five is voted out, with no study
between; those who are left run another. Then the coordinator records a member of its own making.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from causaldao.__main__ import app
from causaldao.governance import admission
from causaldao.ledger.entry import Entry
from causaldao.ledger.verify import Policy, Report, verify
from causaldao.members import Member
from causaldao.server import membership
from causaldao.signing import SigningKey
from causaldao.simulations.deployment import ENVIRONMENT, Deployment
from causaldao.study import Study
from tests.simulations import small
from tests.wire import cases

pytestmark = pytest.mark.wire
FOUNDING, LATE, GONE = cases.NAMES, "hospital-06", cases.NAMES[-1]
VOTERS = FOUNDING[:4]  # with five members of whom one may lie, four must agree
LEFT = (*VOTERS, LATE)


@dataclass
class Story:
    """What came of each step; the deployment still runs."""

    deployment: Deployment
    statuses: dict[str, int] = field(default_factory=dict)
    """How each study ended, by its name."""
    envelopes: dict[str, dict[str, Any]] = field(default_factory=dict)
    admitted: list[dict[str, Any]] = field(default_factory=list)
    """What each vote for the sixth member came to, and in ``revoked`` each for the end of another's membership."""
    revoked: list[dict[str, Any]] = field(default_factory=list)

    def run(self, name: str, members: tuple[str, ...], deadline: float = 120.0) -> None:
        asked = study(name, deadline)
        self.deployment.approve(asked, *members)
        self.statuses[name], self.envelopes[name] = self.deployment.run_study(asked)

    def vote(self, name: str, motion: str) -> dict[str, Any]:
        return invoked("node", "vote", self.deployment.node_folder(name), motion, "--yes")

    def folder(self, name: str) -> Path:
        return Path(self.envelopes[name]["data"]["folder"])

    @property
    def report(self) -> Report:
        """The second study's bundle, verified under the policy as it is then."""
        folder = self.folder("second")
        return verify((folder / "ledger.bundle").read_bytes(), Policy.parse((folder / "policy").read_text()))


def study(name: str, deadline: float = 120.0) -> Study:
    asked = cases.study(rounds=0, deadline=deadline)
    return cases.study(rounds=0, deadline=deadline, study={**asked.study.model_dump(), "name": name})


def said(*arguments: object) -> dict[str, Any]:
    """What a command says, in a process of its own."""
    line = [sys.executable, "-m", "causaldao", *map(str, arguments), "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, env=ENVIRONMENT, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    return data


def invoked(*arguments: object) -> dict[str, Any]:
    """The same in this process, which is quicker."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)["data"]
    return data


def make_up(deployment: Deployment) -> None:
    """A member that the coordinator records by itself, for whom nobody voted: past every check of its own."""
    member = Member("made-up", SigningKey.generate().public, SigningKey.generate().public)
    with deployment.home.log() as log:
        log.append([Entry("member.admit", admission(member, membership.epoch(log).number))])


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    rows = small.table(rows=300 * 6, seed=cases.SEED)
    tables = {name: rows.iloc[k::6].reset_index(drop=True) for k, name in enumerate((*FOUNDING, LATE))}
    with Deployment(tmp_path_factory.mktemp("governance") / "wire", tables, seed=cases.SEED) as deployment:
        found, home = Story(deployment), deployment.home
        deployment.start_coordinator()
        deployment.enrol(*FOUNDING)
        invoked("coordinator", "faulty", home.folder, 1)
        deployment.start_nodes(*FOUNDING)
        found.run("first", FOUNDING)
        deployment.enrol(LATE, admit=False)
        (motion,) = invoked("coordinator", "admit", home.folder, LATE)["motions"]
        found.admitted = [found.vote(name, motion["id"]) for name in VOTERS]
        (motion,) = invoked("coordinator", "revoke", home.folder, GONE, "--reason", "left")["motions"]
        found.revoked = [found.vote(name, motion["id"][:8]) for name in VOTERS[1:]]
        found.revoked.append(said("node", "vote", deployment.node_folder(LATE), motion["id"], "--yes"))
        deployment.start_nodes(LATE)
        found.run("second", LEFT)
        make_up(deployment)
        found.run("third", LEFT, deadline=15.0)
        yield found


def test_a_deployment_without_its_sixth_member_is_as_good(story: Story) -> None:
    """It joined late, was voted in by four owners, and its word is in the second study's result."""
    assert [voted["state"] for voted in story.admitted] == ["voting", "voting", "voting", "passed"]
    assert story.statuses["first"] == story.statuses["second"] == 0
    result = cases.written(story.folder("second"))
    assert [member["name"] for member in result["members"]] == list(LEFT)
    # One of five is left out of a pool that bears one liar, whoever it is.
    assert sorted(member["status"] for member in result["members"]) == ["excluded", *["ok"] * 4]
    assert [kind for _, kind, _ in story.deployment.debits(LATE)] == ["evidence"]


def test_one_vote_needs_a_study_before_the_next(story: Story) -> None:
    """Both changes stand on the ledger with four votes each, of members as they were before it; the second with one of
    the sixth, whose node had never run."""
    changes = [line for line in story.report.entries if "votes" in line.body and line.kind.startswith("member.")]
    assert [(line.kind, line.body["member"]) for line in changes] == [("member.admit", LATE), ("member.revoke", GONE)]
    voters = [{vote["member"] for vote in line.body["votes"]} for line in changes]
    assert voters == [set(VOTERS), {LATE, *VOTERS[1:]}]
    assert changes[1].index == changes[0].index + 1
    assert [voted["state"] for voted in story.revoked] == ["voting", "voting", "voting", "passed"]


def test_an_auditor_finds_something(story: Story) -> None:
    """The bundle verifies under the policy of the members as they are, a quorum of whom cosigned it; nothing that the
    coordinator decided does not follow."""
    assert (story.report.members, story.report.faulty, story.report.quorum) == (LEFT, 1, 4)
    assert len(story.report.cosigners) >= 4
    assert GONE not in story.report.cosigners
    folder = story.folder("second")
    audited = invoked("audit", folder / "ledger.bundle", "--policy", folder / "policy")
    assert (audited["size"], audited["root"]) == (story.report.size, story.report.root)


def test_a_coordinator_admits_by_itself(story: Story) -> None:
    """Every node refuses it at the next roll call, before anything is released, and says why where its owner looks."""
    error = story.envelopes["third"]["error"]
    assert (story.statuses["third"], error["code"]) == (13, "guarantee")
    assert "Only 0 of the 5 members that 'rollcall' needs" in error["message"]
    for name in LEFT:
        log = (story.deployment.node_folder(name) / "run" / "launcher.log").read_text()
        assert "member.admit has 0 of the 4 votes it needs from the 5 members of epoch" in log
        assert f"{name}: rollcall: " in error["message"]
    assert {study for name in LEFT for study, _, _ in story.deployment.debits(name)} == {
        study("first").hash, study("second").hash,
    }  # fmt: skip
