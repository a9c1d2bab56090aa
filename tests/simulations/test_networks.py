from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldao.errors import MisuseError
from causaldao.models.graph import CausalGraph
from causaldao.simulations.benchmarks import networks, run
from tests.models.random_tables import joint, rows


def _small(name: str, seed: int, count: int) -> tuple[pd.DataFrame, dict[str, int], CausalGraph]:
    """In place of a network of pgmpy: a collider whose middle its causes decide, seen through an error."""
    rng = np.random.default_rng(seed)
    dag = CausalGraph.dag([("a", "c"), ("b", "c"), ("c", "d")], "abcd")
    frame = rows(rng, joint(rng, CausalGraph.dag([], "ab"), {"a": 2, "b": 2}), ("a", "b"), count)
    frame["c"] = frame["a"] | frame["b"]
    frame["d"] = frame["c"] ^ (rng.random(count) < 0.1)
    return frame.astype(int), dict.fromkeys("abcd", 2), dag


def test_the_benchmark_reads_another_graph_than_the_peer_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "sampled", _small)
    found = run("networks", networks=("asia",), seeds=1, mixed_seeds=0, noisy_seeds=0, rows=1500)["networks"]["asia"]
    methods: dict[str, Any] = found["methods"]
    assert set(methods) == {"pc", "ges", "boss", "causal-learn pc", "causal-learn ges"}
    assert all(len(one["seeds"]) == 1 for one in methods.values())
    assert methods["ges"]["skeleton_f1"] == methods["causal-learn ges"]["skeleton_f1"] == 1
    assert methods["ges"]["shd"] == methods["causal-learn ges"]["shd"] == 0
    # a and b decide c, so a test of c and d given both has no degrees of freedom
    assert methods["pc"]["skeleton_f1"] == 1 > methods["causal-learn pc"]["skeleton_f1"]
    assert [one["ours_only"] for one in found["pc_differs"]] == [[("c", "d")]]
    assert all(one["alike_by_their_rule"] for one in found["pc_differs"])
    assert set(found["ratios"]) == {"pc", "ges", "boss"}


def test_mixed_data_lose_their_causes_in_bins() -> None:
    found = run("networks", networks=(), mixed_seeds=2, noisy_seeds=0)["mixed"]
    assert set(found) == {f"{method} {cut}" for method in ("pc", "ges", "boss") for cut in ("quantiles", "public")}
    assert min(one["skeleton_f1"] for one in found.values()) > 0.85


def test_the_planted_models_hide_their_order_and_have_all_kinds() -> None:
    frame, dag = networks.planted(0, 200)
    assert sorted(frame.columns) == list(dag.nodes) != list(frame.columns)
    kinds = [frame[name].dtype.kind for name in frame.columns]
    assert (kinds.count("f"), kinds.count("i")) == (4, 6)
    assert sorted(frame.nunique()[[k == "i" for k in kinds]])[:3] == [2, 2, 2]


def test_a_missing_pgmpy_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pgmpy.utils", None)
    with pytest.raises(MisuseError, match=r"pip install pgmpy==1\.1\.2"):
        run("networks", networks=("asia",))
