"""The benchmarks run and measure what they say; no speed is asserted."""

from __future__ import annotations

import pytest

from causaldao.errors import MisuseError
from causaldao.simulations.benchmarks import run
from causaldao.simulations.benchmarks.demo import VARIANTS


def test_the_engine_is_measured_without_its_peer() -> None:
    found = run("engine", members=6, parameters=1000, repeats=1, seeds=3)
    assert (found["benchmark"], found["members"], found["parameters"]) == ("engine", 6, 1000)
    assert found["message"]["ratio"] == pytest.approx(found["message"]["ms"] / found["message"]["bare_flower_ms"])
    assert set(found["round"]["parts"]) == {"ballots", "updates", "adopt", "aggregate", "ledger"}
    assert found["round"]["seconds"] == pytest.approx(sum(found["round"]["parts"].values()))
    assert found["first_round"]["seconds"] > 0


def test_the_demo_hides_what_the_mean_does() -> None:
    found = run("demo", seeds=1)
    assert set(VARIANTS) <= set(found)
    assert (found["rule"]["negative"], found["mean"]["negative"]) == (1, 0)
    assert found["rule"]["accused_are_the_liars"] == 1
    assert found["quiet"]["moved_most"] <= found["quiet"]["runs"][0]["bound"]


def test_an_unknown_benchmark_is_run() -> None:
    with pytest.raises(MisuseError, match="engine, demo"):
        run("speed")
