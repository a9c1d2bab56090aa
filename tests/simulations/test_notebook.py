"""The ten lines of a notebook: the README's own example, and what may go wrong in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldao import CausalDAO, CausalRule, CausalRuleSet, FederatedClient
from causaldao.errors import ConfigurationError, GuaranteeError, IdentityError, MisuseError
from causaldao.simulations.datasets import linear_gaussian
from tests.simulations import small

BOUNDS = dict.fromkeys("abc", (-6.0, 6.0))


def clients(number: int = 4, rows: int = 1500) -> list[FederatedClient]:
    rng = np.random.default_rng(0)
    return [FederatedClient(f"site-{k}", linear_gaussian(small.WEIGHTS, rows, rng)) for k in range(number)]


def federation(**options: Any) -> CausalDAO:
    dao = CausalDAO(BOUNDS, **{"epsilon": 20.0, "effects": [("a", "c")], "rounds": 1, **options})
    for client in clients():
        dao.register(client)
    return dao


def test_the_readmes_example_does_not_run(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(code + "\nimport json; print(json.dumps([result.effects, result.details['simulation']]))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ((effect,), simulation) = json.loads(done.stdout)
    assert effect["estimate"] == pytest.approx(-2.0, abs=0.5)
    assert simulation["noise"] == "os"


def test_a_federation_finds_other_than_the_chain(tmp_path: Path) -> None:
    result = federation().run(seed=0, folder=tmp_path / "run")
    assert {frozenset(pair) for pair in result.graph.skeleton()} == {frozenset("ab"), frozenset("bc")}
    assert all(abs(effect["estimate"] - 0.72) < 0.15 for effect in result.effects if not effect["graph_implies_zero"])
    assert (result.accused, result.report.is_file()) == ([], True)
    assert result.model is not None
    assert small.audited(tmp_path / "run").faults == []
    again = federation().run(seed=0, folder=tmp_path / "again")
    assert again.effects == result.effects


def test_an_effect_by_sums_is_not_paid_for() -> None:
    effect = {"treatment": "t", "outcome": "c", "adjustment": [], "method": "aipw"}
    bounds = {**BOUNDS, "t": {"kind": "binary", "bounds": (0, 1)}}
    for rounds, split in ((0, (0.5, 0.0, 0.0, 0.5)), (1, (0.3, 0.3, 0.1, 0.3))):
        asked = CausalDAO(bounds, effects=[("a", "c"), effect], rounds=rounds).study
        shares = asked.privacy.split
        assert (shares.evidence, shares.training, shares.evaluation, shares.effects) == split
        assert [one.method for one in asked.effects] == ["moments", "aipw"]


def test_rules_are_no_knowledge(tmp_path: Path) -> None:
    rules = CausalRuleSet((CausalRule("a", "b"), CausalRule("b", "c")))
    result = federation(knowledge=rules).run(seed=0, folder=tmp_path / "run")
    assert {("a", "b"), ("b", "c")} <= result.graph.directed


def test_a_graph_only_study_trains(tmp_path: Path) -> None:
    result = federation(rounds=0).run(seed=0, folder=tmp_path / "run")
    assert (result.model, result.details["rounds"]) == (None, [])
    assert max(result.details["privacy"]["spent"].values()) <= 20.0


def test_a_wrong_federation_is_taken() -> None:
    with pytest.raises(MisuseError, match="No member"):
        CausalDAO(BOUNDS).run()
    with pytest.raises(ConfigurationError):
        CausalDAO({"a": (1.0, 0.0), "b": (0.0, 1.0)})
    with pytest.raises(IdentityError, match=r"\.\./x"):
        FederatedClient("../x", pd.DataFrame())
    dao = federation()
    with pytest.raises(IdentityError, match="one vote"):
        dao.register(clients()[0])
    with pytest.raises(GuaranteeError, match="at most faulty = 0"):
        federation(faulty=2).run()
