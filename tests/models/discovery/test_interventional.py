from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.discovery.boss import boss
from causaldao.models.discovery.evidence import Dictionary, Evidence, Variable
from causaldao.models.discovery.interventional import (
    Environment,
    Kind,
    Scores,
    environments_of,
    interventional,
    score_of,
)
from causaldao.models.discovery.score import PENALTY
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of, extension
from tests.counts import count
from tests.models.random_models import dag_of, names, orientations, population, sample, weights

Targets = list[frozenset[str]]


def _moments(matrix: np.ndarray, mean: np.ndarray, deviation: np.ndarray, records: float) -> Evidence:
    """The evidence of so many records of x = x W + noise with these means and deviations, exactly."""
    d = len(matrix)
    mixing = np.linalg.inv(np.eye(d) - matrix)
    centre = np.concatenate([[1.0], mean @ mixing])
    moments = np.outer(centre, centre)
    moments[1:, 1:] += mixing.T @ np.diag(deviation**2) @ mixing
    return Evidence(tuple(names(d)), torch.from_numpy(records * moments))


def _populations(
    matrix: np.ndarray, targets: Targets, rng: np.random.Generator, soft: bool = False
) -> list[Environment]:
    found = []
    for held in targets:
        columns = [names(len(matrix)).index(name) for name in sorted(held)]
        changed, mean, deviation = matrix.copy(), np.zeros(len(matrix)), np.ones(len(matrix))
        changed[:, columns] *= rng.uniform(0.3, 0.7) if soft else 0
        mean[columns], deviation[columns] = rng.uniform(-2, 2), rng.uniform(0.5, 1.5)
        found.append(Environment(_moments(changed, mean, deviation, 1e8), held))
    return found


def _singles(rng: np.random.Generator, d: int) -> Targets:
    """Observation, and interventions on some variables, one at a time."""
    chosen = rng.choice(names(d), int(rng.integers(1, d + 1)), replace=False)
    return [frozenset(), *(frozenset([str(name)]) for name in chosen)]


def _table(matrix: np.ndarray, targets: Targets, n: int, rng: np.random.Generator) -> pd.DataFrame:
    """n rows an environment, with held variables drawn from N(2, 1)."""
    parts = []
    for k, held in enumerate(targets):
        columns = [names(len(matrix)).index(name) for name in sorted(held)]
        changed, noise = matrix.copy(), rng.normal(size=(n, len(matrix)))
        changed[:, columns] = 0
        noise[:, columns] += 2
        rows = noise @ np.linalg.inv(np.eye(len(matrix)) - changed)
        parts.append(pd.DataFrame(rows, columns=names(len(matrix))).assign(environment=f"e{k}"))
    return pd.concat(parts, ignore_index=True)


def _declared(targets: Targets) -> dict[str, list[str]]:
    return {f"e{k}": sorted(held) for k, held in enumerate(targets)}


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_population_gives_the_true_interventional_cpdag(kind: Kind) -> None:
    told = 0
    for seed in range(count(12, 300)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, int(rng.integers(2, 9)), degree=2.5)
        targets = _singles(rng, len(matrix))
        environments = _populations(matrix, targets, rng, soft=kind == "soft")
        found = interventional(environments, kind=kind).graph
        assert found == cpdag_of(dag_of(matrix), targets), seed
        told += len(found.directed) - len(cpdag_of(dag_of(matrix)).directed)
    assert told > 0, "interventions that never direct an edge would test nothing"


def test_a_soft_intervention_scored_as_a_hard_one_can_reverse_an_edge() -> None:
    matrix = np.array([[0.0, 1.0], [0.0, 0.0]])
    environments = [
        Environment(_moments(matrix, np.zeros(2), np.ones(2), 1e4)),
        Environment(_moments(1.2 * matrix, np.zeros(2), np.ones(2), 1e4), frozenset(["v01"])),
    ]
    assert interventional(environments, kind="soft").graph.directed == {("v00", "v01")}
    assert interventional(environments, kind="hard").graph.directed == {("v01", "v00")}


def test_observations_alone_give_what_boss_gives() -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        frame = sample(rng, weights(rng, 8, 3, 0.3, 1.0), 400)
        whole = Evidence.from_data(frame)
        parts = environments_of(frame.assign(site=["a", "b"] * 200), "site", {"a": [], "b": []})
        assert interventional(parts).graph == boss(whole).graph


def _regressed(table: pd.DataFrame, dag: CausalGraph, targets: dict[str, list[str]]) -> float:
    """The score by its definition, from rows: regress each node on its parents where it is no target."""
    total = 0.0
    for node in dag.nodes:
        rows = table[[node not in targets[label] for label in table["environment"]]]
        x = np.column_stack([np.ones(len(rows)), *(rows[parent] for parent in sorted(dag.parents(node)))])
        left = rows[node] - x @ np.linalg.lstsq(x, rows[node], rcond=None)[0]
        total -= len(rows) * np.log((left**2).mean() / rows[node].var(ddof=0))
    return total - PENALTY * np.log(len(table)) * len(dag.edges)


def _total(score: Scores, dag: CausalGraph) -> float:
    masks = [sum(1 << score.names.index(parent) for parent in dag.parents(name)) for name in score.names]
    return sum(score.of_parents(j, mask) for j, mask in enumerate(masks))


def test_the_score_is_that_of_regressions_on_the_rows_and_hardly_ever_does_another_dag_have_a_better_one() -> None:
    pairs = list(combinations(names(4), 2))
    subsets = [[p for i, p in enumerate(pairs) if mask >> i & 1] for mask in range(1 << len(pairs))]
    dags = [dag for subset in subsets for dag in orientations(subset, names(4))]
    missed, seeds = 0, count(5, 40)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        targets = _singles(rng, 4)
        table = _table(weights(rng, 4, 2, low=0.1, high=0.5), targets, 100, rng)
        environments = environments_of(table, "environment", _declared(targets))
        score = score_of(environments, PENALTY, NONE)
        found = extension(interventional(environments).graph)
        assert found is not None
        assert _total(score, found) == pytest.approx(_regressed(table, found, _declared(targets)))
        missed += _total(score, found) < max(_total(score, dag) for dag in dags) - 1e-6
    assert missed <= 1 + seeds // 20


def test_experiments_find_more_of_the_dag_than_as_many_observations() -> None:
    right = {True: 0, False: 0}
    for seed in range(count(6, 40)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 8, 2.5)
        targets: Targets = [frozenset(), *(frozenset([name]) for name in names(8)[:4])]
        truth = dag_of(matrix).directed
        for experiments in (True, False):
            chosen = targets if experiments else [frozenset()] * 5
            table = _table(matrix, chosen, 200, rng)
            found = interventional(environments_of(table, "environment", _declared(chosen))).graph
            right[experiments] += len(found.directed & truth) - len(found.directed - truth)
    assert right[True] > right[False]


def test_a_value_that_is_set_may_be_constant() -> None:
    rng = np.random.default_rng(4)
    matrix = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.8], [0.0, 0.0, 0.0]])
    table = _table(matrix, [frozenset(), frozenset(["v01"])], 500, rng)
    table.loc[table["environment"] == "e1", "v01"] = 2.0
    table.loc[table["environment"] == "e1", "v02"] = 1.6 + rng.normal(size=500)
    targets = {"e0": [], "e1": ["v01"]}
    assert interventional(environments_of(table, "environment", targets)).graph.directed == {
        ("v00", "v01"),
        ("v01", "v02"),
    }
    public = Dictionary(tuple(Variable(name, bounds=(-8, 8)) for name in names(3)), clip=3.0, lattice=65536)
    assert interventional(environments_of(table, "environment", targets, public)).graph.directed == {
        ("v00", "v01"),
        ("v01", "v02"),
    }


def test_a_forbidden_edge_is_never_present_and_a_required_one_always() -> None:
    for seed in range(count(4, 30)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 6, 2.5)
        targets = _singles(rng, 6)
        order = dag_of(matrix).topological_order()
        apart = [pair for pair in combinations(order, 2) if not dag_of(matrix).adjacent(*pair)]
        knowledge = Knowledge(set(apart[:1]), set(sorted(dag_of(matrix).directed)[:2]))
        table = _table(matrix, targets, 300, rng)
        found = interventional(environments_of(table, "environment", _declared(targets)), knowledge=knowledge).graph
        assert set(apart[:1]) <= found.directed
        assert all(knowledge.allows(a, b) for a, b in found.directed), seed


def test_the_order_of_columns_and_of_environments_does_not_matter() -> None:
    rng = np.random.default_rng(7)
    matrix, targets = weights(rng, 7, 3), [frozenset(), frozenset(["v01"]), frozenset(["v02", "v04"])]
    table = _table(matrix, targets, 300, rng)
    environments = environments_of(table, "environment", _declared(targets))
    turned = environments_of(table[table.columns[::-1]], "environment", _declared(targets))
    assert interventional(environments).graph == interventional(turned[::-1]).graph


def test_what_cannot_be_used_is_refused() -> None:
    rng = np.random.default_rng(0)
    evidence = population(weights(rng, 3, 2))
    word: Any = "v01"  # what a caller without types may pass
    odd: Any = "firm"
    watched, held = Environment(evidence), Environment(evidence, frozenset(["v01"]))
    with pytest.raises(MisuseError, match=r"targets \['zz'\] are no variables"):
        Environment(evidence, frozenset(["zz"]))
    with pytest.raises(MisuseError, match="Give a collection of names"):
        Environment(evidence, word)
    with pytest.raises(MisuseError, match="v01: a target in every environment"):
        interventional([held, held])
    with pytest.raises(MisuseError, match="without targets beside them"):
        interventional([held, Environment(evidence, frozenset(["v02"]))], kind="soft")
    with pytest.raises(MisuseError, match="kind is 'firm'"):
        interventional([watched], kind=odd)
    with pytest.raises(MisuseError, match="no environment"):
        interventional([])
    with pytest.raises(MisuseError, match="penalty -1"):
        interventional([watched], penalty=-1)
    with pytest.raises(MisuseError, match="no variable 'v02'"):
        interventional([watched, Environment(evidence.select(["v00", "v01"]))])
    with pytest.raises(ConfigurationError, match=r"\['zz'\]"):
        interventional([watched], knowledge=Knowledge({("zz", "v00")}))
    table = _table(np.zeros((2, 2)), [frozenset(), frozenset(["v01"])], 50, rng)
    with pytest.raises(MisuseError, match=r"\['e1'\].*Unknown targets are not guessed"):
        environments_of(table, "environment", {"e0": []})
    with pytest.raises(DataError, match="'batch' is missing"):
        environments_of(table, "batch", {"e0": []})
    with pytest.raises(DataError, match="missing or infinite"):
        environments_of(table.assign(v00=np.nan), "environment", {"e0": [], "e1": []})
    with pytest.raises(DataError, match="constant"):
        environments_of(table.assign(v00=1.0), "environment", {"e0": [], "e1": []})
    copied = environments_of(table.assign(copy=table["v00"]), "environment", {"e0": [], "e1": ["v01"]})
    with pytest.raises(DataError, match="linearly dependent"):
        interventional(copied)
