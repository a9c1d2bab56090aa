"""Studies over a network that loses, repeats, delays and cuts: each completes or aborts with a clear code, and none
gives a wrong result, loses an entry or spends twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from causaldao.simulations.deployment import LOOPBACK, Deployment, free_ports
from tests.counts import count
from tests.wire import cases
from tests.wire.proxy import FaultProxy

pytestmark = pytest.mark.wire
MEMBERS = 3
CLEAR = (13, 17)
MORE = 2  # seeds beyond those asked for, if each of them ended in an abort: that is an answer, but shows no result


def test_no_fault_of_the_network_gives_a_wrong_answer(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    tables = cases.tables(MEMBERS)
    first = cases.study(faulty=0)
    asked_for = count(quick=1, full=30)
    closed, made = 0, 0
    aborted: dict[int, Any] = {}
    with Deployment(tmp_path / "wire", tables, seed=cases.SEED, public_fleet=f"{LOOPBACK}:{port}") as deployment:
        deployment.start_coordinator()
        deployment.enrol()
        nodes, gateway = deployment.folder, deployment.fleet_port
        started = False
        for seed in range(asked_for + MORE):
            if seed >= asked_for and closed:
                break
            with FaultProxy(port, gateway, deployment.home.authority, nodes, seed) as proxy:
                if not started:
                    deployment.start_nodes()
                    started = True
                asked = cases.study(faulty=0, study={**first.study.model_dump(), "name": f"small-{seed}"})
                deployment.approve(asked)
                status, envelope = deployment.run_study(asked, seconds=400)
                made += sum(proxy.done.values())
            assert status in (0, *CLEAR), envelope
            if status in CLEAR:
                aborted[seed] = envelope
                continue
            closed += 1
            folder = deployment.home.study_folder(asked.hash)
            inline = cases.inline(asked, tmp_path / f"inline-{seed}", MEMBERS)
            assert cases.answer(cases.written(folder)) == cases.answer(inline), f"seed {seed}"
            cases.audited(folder)
        for name in tables:
            debits = deployment.debits(name)
            assert len(debits) == len(set(debits)), f"{name} spent twice"
    assert made > 0
    assert closed > 0, aborted
