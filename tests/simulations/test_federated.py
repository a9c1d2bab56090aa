"""The benchmark of federated discovery: its scores, its liars, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldao.errors import MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.pattern import cpdag_of
from causaldao.pool import Pool, Settings, pool
from causaldao.simulations.benchmarks import federated, federated_sachs
from causaldao.simulations.benchmarks.federated import SETTINGS, Setting, measure
from causaldao.simulations.benchmarks.federated_worlds import World, lies, releases
from tests.models.random_models import random_dag

SMALL = "ER1/strong/d10/K10/n100/epsinf/liars1/reversed"


def test_a_small_run_has_no_intervals_or_pictures(tmp_path: Path) -> None:
    found = measure(settings=SMALL, seeds=2, processes=1, out=tmp_path)
    (one,) = found["settings"]
    assert set(one["methods"]) == {"pooled", "multi-krum", "sieve", "sieve+doubt", "sieve+fit", "mean", "majority"}
    assert one["methods"]["sieve"]["liars_kept"]["mean"] == 0
    assert one["methods"]["pooled"]["extra"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    assert "liars1" in (tmp_path / "federated.md").read_text()
    assert (tmp_path / "federated.svg").read_text().startswith("<svg")


def test_settings_that_no_rule_bears_are_run() -> None:
    outside = [setting for setting in SETTINGS if not setting.borne]
    assert {(s.members, s.liars) for s in outside} == {(5, 2), (10, 4)}
    found = measure(settings="*K5*liars2*", seeds=2, processes=1)
    assert "outside" in found["settings"][0]
    assert "methods" not in found["settings"][0]


def test_the_moral_graph_of_a_class_is_not_that_of_its_members() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        dag = random_dag(rng, 7, 3.0)
        assert federated._moral(cpdag_of(dag).edges) == federated._moral(dag.edges)
    collider = CausalGraph.dag([("a", "c"), ("b", "c")])
    assert federated._moral(collider.edges) == {frozenset(p) for p in ("ac", "bc", "ab")}


def test_quiet_liars_are_seen() -> None:
    world = World.draw("ER1", "strong", 8, 0)
    rng = np.random.default_rng(0)
    parts = {f"s{k}": world.rows(300, rng) for k in range(9)}
    evidence, liars = releases(parts, world.dictionary, math.inf, 0), ("s0", "s1")

    def look(sent: Mapping[str, Evidence]) -> Pool:
        return pool(sent, Settings(2, "sieve"))

    quiet, loud = (look(lies(world, attack, evidence, liars, look, 0)) for attack in ("quiet", "reversed"))
    assert set(liars) <= set(quiet.kept) - set(quiet.accused)
    assert not set(liars) & set(loud.kept)


@pytest.mark.parametrize("options", [
    {"seeds": 1}, {"processes": 0}, {"settings": "ER3*"}, {"methods": ("best",)}, {"peers": ("notears",)},
])  # fmt: skip
def test_a_slip_is_taken_for_a_setting(options: dict[str, Any]) -> None:
    with pytest.raises(MisuseError):
        measure(**options)


def test_f_is_not_what_lies() -> None:
    assert [Setting("ER1", "strong", k, 100, 1.0, liars).faulty for k, liars in ((20, 0), (20, 8), (10, 1))] == [
        7,
        8,
        3,
    ]


def test_sachs_without_its_package_has_no_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(federated_sachs, "find_spec", lambda name: None)
    with pytest.raises(MisuseError, match=r"pip install --no-deps cdt==0\.6\.0"):
        measure(settings="sachs")
    folder = tmp_path / "data" / "resources"
    folder.mkdir(parents=True)
    rng, size = np.random.default_rng(0), sum(federated_sachs.CONDITIONS.values())
    names = sorted({name for edge in federated_sachs.NETWORK for name in edge.split()})
    table = pd.DataFrame(np.exp(3 + rng.normal(size=(size, len(names)))), columns=names)
    table.to_csv(folder / "cyto_full_data.csv", index=False)
    monkeypatch.setattr(federated_sachs, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "x.py")))
    found = measure(settings="sachs")["sachs"]
    assert found["accused"] == []
    assert found["federation"] < 0.2  # independent columns: there is nothing to find
