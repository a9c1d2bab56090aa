"""A study over the wire: the same answer as inline, whoever is killed, and no budget spent twice."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from causaldao.ledger.verify import Policy
from causaldao.simulations.deployment import Deployment, wait_for
from causaldao.study import Study
from tests.counts import count
from tests.wire import cases

pytestmark = pytest.mark.wire
STATES = ("proposed", "roll-call", "evidence", "ballots", "adopted", "training", "evaluated", "released")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("study"), cases.tables(), seed=cases.SEED) as deployment:
        deployment.start_coordinator()
        deployment.enrol()
        deployment.start_nodes()
        yield deployment


@pytest.fixture
def deployment(started: Deployment) -> Deployment:
    """A coordinator and five nodes that run, whatever the test before has left of them."""
    if not started.coordinator.running:
        started.start_coordinator()
    down = [name for name, node in started.nodes.items() if not node.running]
    if down:
        started.start_nodes(*down)
    return started


def named(name: str, **how: Any) -> Study:
    """A study that is not another test's."""
    first = cases.study()
    return cases.study(study={**first.study.model_dump(), "name": name}, **how)


def once_each(deployment: Deployment, names: tuple[str, ...] = cases.NAMES) -> None:
    for name in names:
        debits = deployment.debits(name)
        assert len(debits) == len(set(debits)), f"{name} spent twice: {debits}"


def test_the_wire_gives_the_inline_engines_graph_and_effects(deployment: Deployment, tmp_path: Path) -> None:
    # with f = 1 the answer may be that of four, if the fifth is late
    asked = named("small-inline", rounds=2, faulty=0, **cases.with_sums())
    deployment.approve(asked)
    status, envelope = deployment.run_study(asked)
    assert status == 0, envelope
    folder = Path(envelope["data"]["folder"])
    once_each(deployment)
    here = cases.written(folder)
    assert cases.answer(here) == cases.answer(cases.inline(asked, tmp_path / "inline"))
    assert [(effect.get("method"), effect["estimate"] is None) for effect in here["effects"]] == [
        (None, False), ("aipw", False),
    ]  # fmt: skip
    assert sorted(cases.audited(folder).members) == sorted(cases.NAMES)
    policy = Policy.parse((folder / "policy").read_text())
    words = {
        ("evidence", 0),
        ("ballot", 0),
        ("effects", 0),
        *((kind, k) for kind in ("update", "evaluation") for k in (1, 2)),
    }
    for name in cases.NAMES:
        assert cases.receipted(deployment.node_folder(name), asked, policy) == words
    names = {path.name for path in folder.iterdir()}
    assert {"result.json", "graph.json", "graph.svg", "model.safetensors", "report.html"} <= names


def test_studies_complete_though_a_node_is_killed_in_each_phase(deployment: Deployment) -> None:
    """Whoever misses the roll call or the evidence is out of that study, so those deaths have a study each; whoever
    misses a later phase is back for the next, and another one dies."""
    plans: tuple[tuple[str, ...], ...]
    plans = (("roll call",), ("evidence",), ("ballots", "training", "evaluate", "close"), ("training",))
    plans = plans[count(quick=3, full=0) : count(quick=4, full=3)]
    for number, phases in enumerate(plans):
        asked = named(f"small-{number}")
        deployment.approve(asked)
        running = deployment.begin_study(asked)
        for victim, phase in zip(cases.NAMES, phases, strict=False):
            die_in(deployment, asked, victim, phase, running)
        out, _ = running.communicate(timeout=240)
        assert running.returncode == 0, out
    once_each(deployment)


def die_in(deployment: Deployment, asked: Study, victim: str, phase: str, running: subprocess.Popen[bytes]) -> None:
    """Kill a node as a phase begins; bring it back when the study has gone on without it."""

    def entered() -> bool:
        assert running.poll() is None, f"the study ended with {running.returncode} before {phase}"
        return phase in deployment.phases(asked)

    wait_for(f"the study to reach {phase}", entered, 120)
    deployment.nodes[victim].kill()
    wait_for(f"the study to pass {phase}", lambda: deployment.phases(asked)[-1] != phase, 120)
    deployment.start_nodes(victim)


def test_a_coordinator_killed_in_each_state_goes_on_and_nothing_is_spent_twice(deployment: Deployment) -> None:
    asked, states = named("small-killed"), STATES[:: count(quick=4, full=1)]
    deployment.approve(asked)
    running = deployment.begin_study(asked)
    for state in states:
        reach(deployment, asked, state, running)
        deployment.coordinator.kill()
        running.communicate(timeout=60)
        assert running.returncode == 17
        deployment.start_coordinator()
        running = deployment.begin_study(asked.hash, resume=True)
    out, _ = running.communicate(timeout=240)
    assert running.returncode == 0, out
    once_each(deployment)
    cases.audited(deployment.home.study_folder(asked.hash))


def reach(deployment: Deployment, asked: Study, state: str, running: subprocess.Popen[bytes]) -> None:
    """Wait until a study is in a state, or already past it."""
    order = (*STATES, "closed")
    deadline = time.monotonic() + 120
    while (found := deployment.state(asked)) not in order[order.index(state) :]:
        assert running.poll() is None, f"the study ended in state {found!r} with {running.returncode}"
        assert time.monotonic() < deadline, f"waited 120 s for {state}, the study is in {found!r}"
        time.sleep(0.05)
