from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery import discover, noisy_tables, search
from causaldao.models.discovery import tables as tables_module
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.table_score import TableScore
from causaldao.models.discovery.tables import LocalTables, share
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of
from tests.counts import count
from tests.models.discovery.test_tables import Source
from tests.models.random_models import orientations, random_dag
from tests.models.random_tables import joint, levels_of, population, rows

_LEVELS = {"a": 2, "b": 3, "c": 4, "d": 2}


def _frame(seed: int, n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({name: rng.integers(0, size - (name == "c"), n) for name, size in _LEVELS.items()})


def _counts(frame: pd.DataFrame, child: str, parents: list[str]) -> list[list[int]]:
    """N_ij of every joint level of the parents, whether it occurs or not."""
    found = []
    for where in product(*(range(_LEVELS[parent]) for parent in parents)):
        here = np.ones(len(frame), dtype=bool)
        for parent, level in zip(parents, where, strict=True):
            here &= (frame[parent] == level).to_numpy()
        found.append([int((frame[child][here] == k).sum()) for k in range(_LEVELS[child])])
    return found


def _bdeu(frame: pd.DataFrame, child: str, parents: list[str], size: float) -> float:
    counts = _counts(frame, child, parents)
    q, r, total = len(counts), _LEVELS[child], -len(parents) * math.log(len(frame.columns) - 1)
    for n_ij in counts:
        total += math.lgamma(size / q) - math.lgamma(size / q + sum(n_ij))
        total += sum(math.lgamma(size / (r * q) + n) - math.lgamma(size / (r * q)) for n in n_ij)
    return total


def _bic(frame: pd.DataFrame, child: str, parents: list[str], penalty: float) -> float:
    counts = _counts(frame, child, parents)
    total = sum(n * math.log(n / sum(n_ij)) for n_ij in counts for n in n_ij if n)
    return total - penalty / 2 * math.log(len(frame)) * (_LEVELS[child] - 1) * len(counts)


@pytest.mark.parametrize(
    ("kind", "weight", "formula"), [("bdeu", 1.0, _bdeu), ("bdeu", 7.5, _bdeu), ("bic", 1.0, _bic)]
)
def test_scores_gains_and_losses_are_those_of_the_formula(kind: Any, weight: float, formula: Any) -> None:
    for seed in range(count(1, 20)):
        frame = _frame(seed)
        score = TableScore.of(LocalTables.from_data(frame, _LEVELS), kind, weight, NONE, "GES")
        assert score.names == ("a", "b", "c", "d")

        sets = {m: [name for i, name in enumerate(score.names) if m >> i & 1] for m in range(16)}
        value = {(j, m): formula(frame, score.names[j], sets[m], weight) for j in range(4) for m in sets if ~m >> j & 1}
        for j in range(4):
            for mask in range(16):
                if mask >> j & 1:
                    continue
                fresh = TableScore.of(score.tables, kind, weight, NONE, "GES")
                columns, gains = fresh.gains(j, mask, -1)
                assert columns == [i for i in range(4) if i != j and not mask >> i & 1]
                assert gains == pytest.approx([value[j, mask | 1 << i] - value[j, mask] for i in columns], abs=1e-8)
                assert score.of_parents(j, mask) == pytest.approx(value[j, mask], rel=1e-12)
                members, losses = score.losses(j, mask)
                assert losses == pytest.approx([value[j, mask & ~(1 << i)] - value[j, mask] for i in members], abs=1e-8)


@pytest.mark.parametrize("kind", ["bdeu", "bic"])
def test_equivalent_graphs_have_one_score_and_others_have_another(kind: Any) -> None:
    nodes = ["a", "b", "c", "d"]
    score = TableScore.of(LocalTables.from_data(_frame(1), _LEVELS), kind, None, NONE, "GES")

    def total(dag: CausalGraph) -> float:
        masks = {name: sum(1 << nodes.index(p) for p in dag.parents(name)) for name in nodes}
        return sum(score.of_parents(nodes.index(name), mask) for name, mask in masks.items())

    classes: dict[CausalGraph, list[float]] = {}
    for skeleton in ([("a", "b"), ("b", "c"), ("c", "d")], [("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")]):
        for dag in orientations(skeleton, nodes):
            classes.setdefault(cpdag_of(dag), []).append(total(dag))
    assert any(len(scores) > 3 for scores in classes.values())
    for scores in classes.values():
        assert max(scores) - min(scores) < 1e-9
    means = sorted(np.mean(scores) for scores in classes.values())
    assert min(np.diff(means)) > 1e-6


@pytest.mark.parametrize("options", [{}, {"sample_size": 10.0}, {"score": "bic"}])
@pytest.mark.parametrize("method", ["ges", "boss"])
def test_the_exact_tables_of_a_model_give_its_class(method: str, options: dict[str, Any]) -> None:
    for seed in range(count(6, 60)):
        rng = np.random.default_rng(seed)
        dag = random_dag(rng, int(rng.integers(3, 7)), degree=2)
        tables = population(joint(rng, dag, levels_of(rng, dag)), dag.nodes, 1e8)
        assert discover(tables, method, **options) == cpdag_of(dag), seed


def test_the_columns_order_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    dag = random_dag(rng, 6, degree=2)
    frame = rows(rng, joint(rng, dag, levels_of(rng, dag)), dag.nodes, 800)
    mixed = frame[list(rng.permutation(frame.columns))]
    for method in ("ges", "boss", "pc"):
        found = [discover(LocalTables.from_data(f), method) for f in (frame, mixed)]
        assert found[0].edges == found[1].edges


def test_knowledge_is_never_scored_against_and_always_kept() -> None:
    rng = np.random.default_rng(0)
    frame = rows(rng, joint(rng, random_dag(rng, 5, 3), dict.fromkeys([f"v{i:02}" for i in range(5)], 2)), tuple(
        f"v{i:02}" for i in range(5)), 3000)  # fmt: skip
    knowledge = Knowledge(required={("v04", "v00")}, forbidden={("v01", "v02"), ("v02", "v01")})
    score = TableScore.of(LocalTables.from_data(frame), "bdeu", None, knowledge, "GES")
    assert score.gains(1, 0, -1)[0] == [0, 3, 4]
    assert score.losses(0, 1 << 4 | 1 << 2)[0] == [2]
    for method in ("ges", "boss"):
        graph = discover(LocalTables.from_data(frame), method, knowledge)
        assert ("v04", "v00") in graph.directed
        assert not graph.adjacent("v01", "v02")


def test_tables_too_small_for_the_parents_are_not_considered_and_it_says_so() -> None:
    dag = CausalGraph.dag([("a", "d"), ("b", "d"), ("c", "d")])
    whole = joint(np.random.default_rng(1), dag, dict.fromkeys(dag.nodes, 2))
    full = population(whole, dag.nodes, 1e8)
    assert search(full, "ges").notes == ()
    for method in ("ges", "boss"):
        found = search(share(full, 3), method)
        assert len(found.graph.parents("d")) <= 2
        assert "not considered" in found.notes[0]


def test_a_set_of_parents_with_too_many_cells_is_not_considered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "MAX_CELLS", 12)
    score = TableScore.of(LocalTables.from_data(_frame(0), _LEVELS), "bdeu", None, NONE, "GES")
    assert score.of_parents(0, 0b0110) == -math.inf
    columns, gains = score.gains(0, 0b0010, -1)
    assert dict(zip(columns, np.isfinite(gains), strict=True)) == {2: False, 3: True}
    assert "a given b, c" in score.notes()[0]


def test_noisy_tables_that_no_score_can_bear_are_scored_and_the_methods_that_bear_them_not_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noisy = share(LocalTables.from_data(_frame(0, 3000)), 2, sigma=2, noise=Source(0))
    drowned = share(LocalTables.from_data(_frame(0, 100)), 2, sigma=40, noise=Source(1))
    for method in ("ges", "boss"):
        assert "2998.05 records under noise of 2 were scored as 2973.59" in search(noisy, method).notes[0]
        assert "more than 2 variables do only together was not seen" in search(noisy, method).notes[0]
        with pytest.raises(DataError, match=r"worth .* after their noise of 40.*larger epsilon"):
            discover(drowned, method)
    monkeypatch.setattr(noisy_tables, "MOST_CELLS", 35)
    for method in ("ges", "boss"):
        with pytest.raises(DataError, match=r"has 36 cells, of at most 35.*Take pc, fci or rfci"):
            discover(noisy, method)


def test_options_that_a_score_lacks_are_refused() -> None:
    tables = LocalTables.from_data(_frame(0), _LEVELS)
    evidence = Evidence.from_data(_frame(0, 500).astype(float))
    for method in ("ges", "boss"):
        with pytest.raises(MisuseError, match=r"no score 'bde'.*bdeu and bic"):
            discover(tables, method, score="bde")
        with pytest.raises(MisuseError, match="sample_size is 0"):
            discover(tables, method, sample_size=0)
        with pytest.raises(MisuseError, match="bdeu has no option penalty, which is of bic"):
            discover(tables, method, penalty=2.0)
        with pytest.raises(MisuseError, match="bic has no option sample_size, which is of bdeu"):
            discover(tables, method, score="bic", sample_size=2.0)
        with pytest.raises(MisuseError, match="are of tables, and this evidence is second moments"):
            discover(evidence, method, score="bdeu")


def test_a_method_that_cannot_use_tables_names_those_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    from causaldao.models import discovery

    monkeypatch.setattr(discovery, "METHODS", {**discovery.METHODS, "moments-only": discovery.METHODS["pc"]})
    with pytest.raises(MisuseError, match=r"moments-only takes second moments.*boss, fci, ges, pc, rfci"):
        discover(LocalTables.from_data(_frame(0)), "moments-only")
