"""What would make Ray another engine: other results, a run that is lost with it, processes or words it leaves."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from causaldao.errors import ConfigurationError, GuaranteeError, MisuseError
from causaldao.simulations import ray_engine
from causaldao.simulations.attacks import Conduct
from causaldao.simulations.benchmarks.scale import descendants
from causaldao.simulations.engine import Faults
from causaldao.simulations.federation import simulate
from causaldao.simulations.members import Setting
from causaldao.study import Study
from tests.simulations import small

pytestmark = [
    pytest.mark.ray,
    # Ray stops its processes and does not wait for their ends, and leaves files to the garbage collector.
    pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning", "ignore:unclosed:ResourceWarning"),
]
LYING = Setting(members=7, liars=2)
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from causaldao.simulations.federation import simulate
from tests.simulations import small
torch.set_num_threads(1)
def die(state):
    if state == "aggregate 1":
        os.kill(os.getpid(), signal.SIGKILL)
simulate(small.study(rounds=2), small.table(), Path(sys.argv[1]), small.SETTING, engine="ray", on_state=die)
"""


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """What Ray left is collected here, where that is expected, and not in another test."""
    yield
    gc.collect()


def test_ray_finds_another_result_than_the_inline_engine_or_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study, table = _asking_for_sums()
    simulate(study, table, tmp_path / "inline", LYING)
    environment, handlers = dict(os.environ), list(logging.getLogger("flwr").handlers)
    threads, processes = threading.active_count(), set(descendants(os.getpid()))
    simulate(study, table, tmp_path / "ray", LYING, engine="ray")
    # Nothing is left behind, and nothing was said.
    assert (dict(os.environ), logging.getLogger("flwr").handlers) == (environment, handlers)
    assert not [t for t in threading.enumerate() if not t.daemon][threads:]
    assert set(descendants(os.getpid())) <= processes
    assert capfd.readouterr() == ("", "")
    assert "ServerApp finished" in (tmp_path / "ray" / ray_engine.LOG_FILE).read_text()
    assert small.result_of(tmp_path / "ray") == small.result_of(tmp_path / "inline")
    assert small.debits(tmp_path / "ray") == small.debits(tmp_path / "inline")
    assert small.audited(tmp_path / "ray").faults == []
    linear, by_sums = small.result_of(tmp_path / "ray")["effects"]
    assert ("method" in linear, by_sums["method"]) == (False, "aipw")
    assert len(by_sums["members"]) == LYING.members  # all were asked, and what each of them said was taken


def _asking_for_sums() -> tuple[Study, pd.DataFrame]:
    """The small study with a treatment of two values, whose effect members also answer by sums."""
    variables = [
        {"name": "a", "kind": "binary", "bounds": [0, 1]},
        *({"name": name, "kind": "continuous", "bounds": [-6.0, 6.0]} for name in "bc"),
    ]
    effect = {"treatment": "a", "outcome": "c", "adjustment": []}
    split = {"evidence": 0.4, "training": 0.3, "evaluation": 0.1, "effects": 0.2}
    study = small.study(
        variables=variables, effects=[effect, {**effect, "method": "aipw"}],
        privacy={"epsilon": 40.0, "delta": 1e-5, "split": split},
    )  # fmt: skip
    table = small.table()
    return study, table.assign(a=(table["a"] > 0).astype(float))


def test_a_run_killed_on_ray_is_not_resumed_inline(tmp_path: Path) -> None:
    driver = [sys.executable, "-c", KILLED, str(tmp_path / "run")]
    # Killed, it cannot remove Ray's folder; pytest's own is too deep for Ray's sockets.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "TMPDIR": folder}
        root = Path(__file__).parents[2]
        done = subprocess.run(driver, cwd=root, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    simulate(small.study(rounds=2), small.table(), tmp_path / "run", small.SETTING, resume=True)
    simulate(small.study(rounds=2), small.table(), tmp_path / "whole", small.SETTING)
    assert small.result_of(tmp_path / "run") == small.result_of(tmp_path / "whole")
    assert small.debits(tmp_path / "run") == small.debits(tmp_path / "whole")
    assert small.audited(tmp_path / "run").faults == []


def test_faults_and_conducts_that_ray_cannot_carry_are_left_out_in_silence(tmp_path: Path) -> None:
    for wrong in ({"faults": Faults(request=lambda message: False)}, {"conducts": {"hospital-01": Conduct()}}):
        with pytest.raises(MisuseError, match="no faults and no conducts"):
            simulate(small.study(), small.table(), tmp_path / "run", small.SETTING, engine="ray", **wrong)
    assert list(tmp_path.iterdir()) == []


class NoGrid:
    """A grid with as many nodes as it is given, which answer nothing."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        return list(range(self._nodes))


def serve(app: ServerApp, grid: Any) -> threading.Thread:
    """Flower's way: the ServerApp in a thread of its own."""

    def main() -> None:
        try:
            app(grid, Context(1, 1, {}, RecordDict(), {}))
        except BaseException as error:
            raised.append(error)

    raised.clear()
    thread = threading.Thread(target=main)
    thread.start()
    return thread


raised: list[BaseException] = []


def stopping(*args: Any) -> None:
    """A simulation whose backend crashes while the ServerApp waits."""
    serve(args[0], NoGrid(0))
    raise RuntimeError("An error was encountered. Ending simulation.") from OSError("no more memory")


def test_a_coordinator_waits_for_ever_for_an_engine_that_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flwr.simulation.run_simulation", stopping)
    began, before = time.monotonic(), threading.active_count()
    with pytest.raises(ConfigurationError, match=r"no more memory.*ray\.log"):
        ray_engine.run(ServerApp(), tmp_path, 7, ray_engine.EngineClock())
    assert time.monotonic() - began < 10
    assert threading.active_count() == before
    assert isinstance(raised[0], ConfigurationError)
    assert "--resume" in str(raised[0])


@pytest.mark.parametrize("error", [GuaranteeError("Only 4 of the 5"), RuntimeError("a fault of our own")])
def test_what_the_coordinator_raises_is_said_to_be_rays(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        raise error

    def simulation(*args: Any) -> None:
        serve(args[0], NoGrid(7)).join()
        raise raised[0]

    monkeypatch.setattr("flwr.simulation.run_simulation", simulation)
    with pytest.raises(type(error), match=str(error)):
        ray_engine.run(app, tmp_path, 7, ray_engine.EngineClock())
