"""The coordinator on PostgreSQL: ledger and registry in one database, shared by its processes, whoever is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from causaldao.server.home import SETTINGS
from causaldao.simulations.deployment import Deployment
from tests.ledger import postgres
from tests.wire import cases
from tests.wire.test_study import once_each, reach

pytestmark = pytest.mark.wire
MEMBERS = 3


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.server() as running:
        yield running


def test_a_study_on_postgresql_is_another_or_does_not_survive_its_coordinator(
    tmp_path: Path, server: postgres.Server
) -> None:
    asked = cases.study(faulty=0)
    url = server.url(server.schema())
    with Deployment(tmp_path / "wire", cases.tables(MEMBERS), seed=cases.SEED, database=url) as deployment:
        assert not (deployment.home.folder / "coordinator.db").exists()
        assert url in (deployment.home.folder / SETTINGS).read_text()
        deployment.start_coordinator()
        deployment.enrol()
        deployment.approve(asked)
        deployment.start_nodes()
        running = deployment.begin_study(asked)
        reach(deployment, asked, "evidence", running)
        deployment.coordinator.kill()
        running.communicate(timeout=60)
        assert running.returncode == 17
        deployment.start_coordinator()
        status, envelope = deployment.run_study(asked.hash, resume=True)
        assert status == 0, envelope
        once_each(deployment, cases.NAMES[:MEMBERS])
        row = deployment.home.registry.study(asked.hash)
        folder = Path(envelope["data"]["folder"])
        assert not list((tmp_path / "wire" / "coordinator").rglob("coordinator.db"))
    assert row.state == "closed"
    assert cases.answer(cases.written(folder)) == cases.answer(cases.inline(asked, tmp_path / "inline", MEMBERS))
    assert sorted(cases.audited(folder).members) == sorted(cases.NAMES[:MEMBERS])
