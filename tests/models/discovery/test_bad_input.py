"""Input that no graph can be learnt from, for every method and feature map: a clear error, and never a graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import causaldao
from causaldao.__main__ import app
from causaldao.errors import CausalDAOError, ConfigurationError, DataError
from causaldao.models.discovery import METHODS, ON_TABLES, LocalTables, discover, search
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.knowledge import Knowledge
from tests.models.random_models import noisy, population

N = 200


def _good() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(N, 4)), columns=list("abcd"))
    return frame.assign(b=frame.a + frame.b, c=frame.a + frame.b + frame.c)


def _numbers() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(1).normal(size=N)


# what is wrong with a table, and what every method and map says of it
TABLES: dict[str, tuple[Callable[[], pd.DataFrame], str]] = {
    "constant": (lambda: _good().assign(k=0.1), r"constant.*Drop"),
    "constant but for rounding": (lambda: _good().assign(k=1e9 + 1e-9 * _numbers()), r"constant.*Drop"),
    "copied": (lambda: _good().assign(k=_good().a), r"[Dd]rop"),
    "copied in another unit": (lambda: _good().assign(k=7 - 3 * _good().a), r"[Dd]rop"),
    "copied but for rounding": (lambda: _good().assign(k=_good().a + 1e-7 * _numbers()), r"[Dd]rop"),
    "two of one name": (lambda: pd.concat([_good(), _good()[["a"]]], axis=1), "2 columns are named 'a'"),
    "one name once it is text": (lambda: _good().set_axis([1, "1", "c", "d"], axis=1), "2 columns are named '1'"),
    "one row": (lambda: _good()[:1], r"constant.*Drop"),
    "no rows": (lambda: _good()[:0], "0 rows of 4 columns"),
    "no columns": (lambda: _good()[[]], "200 rows of 0 columns"),
    "missing": (lambda: _good().assign(a=_good().a.where(_good().a > 0)), "missing or infinite"),
    "infinite": (lambda: _good().assign(a=_good().a.where(_good().a > 0, np.inf)), "missing or infinite"),
    "complex": (lambda: _good().assign(a=1j * _good().a), "neither a number nor a level"),
    "dates": (lambda: _good().assign(a=pd.date_range("2020", periods=N)), "neither a number nor a level"),
    "one text": (lambda: _good().assign(a="x"), r"not a number|two or more|constant"),
    "a text for each record": (lambda: _good().assign(a=[f"id{k}" for k in range(N)]), r"not a number|fewer"),
}  # fmt: skip
MAPS = {"identity": METHODS.keys(), "one-hot": ("boss", "pc"), "fourier": ("boss", "pc"), "table": sorted(ON_TABLES)}


@pytest.mark.parametrize("case", TABLES)
def test_a_graph_comes_out_of_a_table_that_bears_none(case: str) -> None:
    make, words = TABLES[case]
    for features, methods in MAPS.items():
        for method in methods:
            if features == "table" and case == "copied but for rounding":
                continue  # cut into bins it is a copy, or differs in records enough to be another variable
            with pytest.raises((DataError, ConfigurationError), match=words):
                causaldao.discover(make(), method, features=features)


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_no_more_records_than_variables_bring_a_graph_without_a_word(rows: int) -> None:
    """PC alone answers, by the tests that so few records bear, and says so."""
    for features, methods in MAPS.items():
        for method in methods:
            if (features, method, rows) == ("identity", "pc", 4):
                evidence = Evidence.from_data(_good()[:rows])
                (note,) = search(evidence, "pc").notes
                assert "no set of more than 0 variables was tested, for there are 4 records" in note
                continue
            with pytest.raises(DataError):
                causaldao.discover(_good()[:rows], method, features=features)
    assert not search(Evidence.from_data(_good()), "pc").notes


def test_levels_by_other_names_or_too_many_of_them_are_taken_for_another_variable() -> None:
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"a": rng.integers(0, 3, N), "b": rng.integers(0, 2, N)})
    for method in ON_TABLES:
        with pytest.raises(DataError, match=r"'a' and 'renamed' are the same in all 200 records.*Drop one"):
            discover(LocalTables.from_data(frame.assign(renamed=2 - frame.a)), method)
        with pytest.raises(DataError, match=r"'k' has 150 levels in 200 records"):
            discover(LocalTables.from_data(frame.assign(k=np.arange(N) % 150)), method)
        discover(LocalTables.from_data(frame.assign(k=np.arange(N) % 100)), method)


KNOWLEDGE = {
    "required and forbidden": (lambda: Knowledge({("a", "b")}, {("a", "b")}), "both required and forbidden"),
    "required both ways": (lambda: Knowledge({("a", "b"), ("b", "a")}), "both required"),
    "a required cycle": (lambda: Knowledge({("a", "b"), ("b", "c"), ("c", "a")}), "a -> b -> c -> a|cycle"),
    "against the tiers": (lambda: Knowledge({("a", "b")}, tiers={"a": 1, "b": 0}), "a is in tier 1 and b in tier 0"),
    "around the tiers": (
        lambda: Knowledge({("a", "b"), ("b", "c")}, tiers={"a": 1, "c": 0}),
        "required edges lead from a to c, but a is in tier 1 and c in tier 0",
    ),
    "tiers in a ring": (lambda: Knowledge.from_toml("tiers = { a = ['b'], b = ['a'] }"), "Give an integer"),
    "a name that is not there": (lambda: Knowledge({("a", "zz")}), r"unknown variables \['zz'\]"),
}


@pytest.mark.parametrize("case", KNOWLEDGE)
def test_knowledge_that_contradicts_itself_is_obeyed_by_half(case: str) -> None:
    make, words = KNOWLEDGE[case]
    for method in sorted(METHODS):
        with pytest.raises(ConfigurationError, match=words):
            causaldao.discover(_good(), method, make())


def test_noise_that_no_data_have_gives_a_graph_with_a_cycle_or_a_traceback() -> None:
    """Correlations that are not positive: a clear error, or a graph that an honest search can end in."""
    graphs, refused = 0, []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        evidence = noisy(population(np.triu(rng.normal(size=(6, 6)), 1), count=300), 60.0, rng)
        for method in METHODS:
            try:
                graph = discover(evidence, method)
            except CausalDAOError as error:
                refused.append(str(error))
            else:
                graphs += 1
                assert set(graph.nodes) == set(evidence.names)
    assert refused
    assert all("noise" in told or "records" in told for told in refused)
    assert graphs


def test_moments_that_are_none_are_read_all_the_same() -> None:
    square = torch.eye(3, dtype=torch.float64)
    for moments, words in (
        (torch.full((3, 3), float("nan"), dtype=torch.float64), "finite"),
        (square + torch.triu(square + 1, 1), "symmetric"),
        (-square, "counts -1 records"),
        (torch.eye(4, dtype=torch.float64), "shape"),
    ):
        with pytest.raises(CausalDAOError, match=words):
            Evidence(("a", "b"), moments)
    singular = Evidence(("a", "b"), torch.tensor([[9.0, 0, 0], [0, 9, 9], [0, 9, 9]], dtype=torch.float64))
    for method in METHODS:
        with pytest.raises(DataError, match="linearly dependent"):
            discover(singular, method)


@pytest.mark.parametrize("case", ["constant", "copied", "missing", "one text"])
def test_the_command_prints_a_graph_or_a_traceback(case: str, tmp_path: Path) -> None:
    TABLES[case][0]().to_csv(tmp_path / "table.csv", index=False)
    for method in ("boss", "fci"):
        result = CliRunner().invoke(app, ["discover", str(tmp_path / "table.csv"), "--method", method, "--json"])
        assert not isinstance(result.exception, Exception), result.exception
        assert result.exit_code == 11
        assert json.loads(result.stdout)["status"] == "error"
