from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.discovery import discover
from causaldao.models.discovery.boss import _placed, _Search, boss
from causaldao.models.discovery.evidence import Evidence, partial
from causaldao.models.discovery.score import PENALTY, Score
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of, extension, shd
from tests.counts import count
from tests.models.random_models import dag_of, names, noisy, orientations, population, sample, weights


def _skeleton_f1(found: CausalGraph, truth: CausalGraph) -> float:
    a, b = found.skeleton(), truth.skeleton()
    return 2 * len(a & b) / (len(a) + len(b))


def test_the_population_gives_the_true_cpdag() -> None:
    for seed in range(count(25, 300)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, int(rng.integers(2, 11)), degree=2.5)
        assert boss(population(matrix)).graph == cpdag_of(dag_of(matrix)), seed


def test_er2_with_20_variables_and_1000_records_is_found_at_better_than_measured_elsewhere() -> None:
    scores, distances = [], []
    for seed in range(count(3, 20)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 20, degree=4)
        found = discover(Evidence.from_data(sample(rng, matrix, 1000)))
        scores.append(_skeleton_f1(found, dag_of(matrix)))
        distances.append(shd(found, cpdag_of(dag_of(matrix))))
    assert np.mean(scores) > 0.9
    assert np.mean(distances) < 6


def _bic(evidence: Evidence, dag: CausalGraph, penalty: float) -> float:
    """The score by its definition: regress each node on its parents."""
    data = evidence.correlation().numpy()
    index = {name: i for i, name in enumerate(evidence.names)}
    total = 0.0
    for node in dag.nodes:
        own, pa = index[node], [index[p] for p in dag.parents(node)]
        explained = data[own, pa] @ np.linalg.solve(data[np.ix_(pa, pa)], data[pa, own]) if pa else 0.0
        total -= evidence.count * np.log(1 - explained) + penalty * len(pa) * np.log(evidence.count)
    return total


def test_the_best_of_all_orders_is_hardly_ever_missed_and_its_score_is_the_bic() -> None:
    missed, seeds = 0, count(8, 60)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        evidence = Evidence.from_data(sample(rng, weights(rng, 5, 3, low=0.1, high=0.6), 120))
        search = _Search(Score.of(evidence, PENALTY, NONE, "BOSS"))
        orders = [_placed(search, list(order)).values() for order in permutations(range(5))]
        best = max(sum(one.score for one in placed) for placed in orders)
        found = extension(boss(evidence).graph)
        assert found is not None
        score = _bic(evidence, found, 2.0)
        assert score <= best + 1e-6
        missed += score < best - 1e-6
    assert missed <= seeds // 30, "a local optimum that twelve restarts do not leave"


def test_hardly_ever_does_any_dag_on_four_variables_score_better() -> None:
    pairs = list(combinations(names(4), 2))
    subsets = [[p for i, p in enumerate(pairs) if mask >> i & 1] for mask in range(1 << len(pairs))]
    dags = [dag for subset in subsets for dag in orientations(subset, names(4))]
    assert len(dags) == 543
    missed, seeds = 0, count(6, 40)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        evidence = Evidence.from_data(sample(rng, weights(rng, 4, 2, low=0.1, high=0.5), 120))
        found = extension(boss(evidence).graph)
        assert found is not None
        missed += _bic(evidence, found, 2.0) < max(_bic(evidence, dag, 2.0) for dag in dags) - 1e-6
    assert missed <= 1 + seeds // 20, "greedy growth misses only parents that help together but none alone"


def test_the_order_of_columns_does_not_matter() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        frame = sample(rng, weights(rng, 9, 3), 300)
        mixed = frame[list(rng.permutation(frame.columns))]
        assert boss(Evidence.from_data(mixed)).graph == boss(Evidence.from_data(frame)).graph


def test_one_seed_gives_one_outcome_and_the_global_generator_is_left_alone() -> None:
    rng = np.random.default_rng(5)
    evidence = Evidence.from_data(sample(rng, weights(rng, 12, 5, low=0.1, high=0.6), 200))
    before = torch.random.get_rng_state()
    runs = {boss(evidence, restarts=2, generator=torch.Generator().manual_seed(7)).graph for _ in range(3)}
    assert len(runs) == 1
    assert boss(evidence).graph == boss(evidence).graph
    assert torch.equal(before, torch.random.get_rng_state())


def test_more_restarts_never_score_worse() -> None:
    gained = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        evidence = Evidence.from_data(sample(rng, weights(rng, 12, 6, low=0.1, high=0.6), 300))
        graphs = [extension(boss(evidence, restarts=restarts).graph) for restarts in (1, 6, 12)]
        scores = [_bic(evidence, graph, 2.0) for graph in graphs if graph is not None]
        assert len(scores) == 3
        assert scores[0] <= scores[1] + 1e-6 <= scores[2] + 2e-6
        gained += scores[2] > scores[0] + 1e-6
    assert gained, "restarts that never help would not be worth their time"


def _scaled(rng: np.random.Generator, matrix: np.ndarray, n: int, sigma: float) -> Evidence:
    """Noisy evidence in the manner of a public dictionary: means that are not zero, spreads that differ."""
    d = len(matrix)
    x = sample(rng, matrix, n).to_numpy()
    x = x / x.std(axis=0) * rng.uniform(0.12, 0.45, d) + rng.uniform(-0.3, 0.3, d)
    rows = np.concatenate([np.ones((n, 1)), x], axis=1)
    return noisy(Evidence(tuple(names(d)), torch.from_numpy(rows.T @ rows)), sigma, rng)


def _residual(moments: torch.Tensor, target: int, given: list[int]) -> torch.Tensor:
    vector = torch.zeros(len(moments), dtype=torch.float64)
    vector[target] = 1
    vector[given] -= torch.linalg.solve(moments[given][:, given], moments[given, target])
    return vector


def _noise_over_sampling(evidence: Evidence, j: int, k: int, others: list[int]) -> float:
    """V_k by its definition, from the noise of the residual covariance of j and k."""
    given, moments = [0, *(i + 1 for i in others)], evidence.moments
    u, w = _residual(moments, k + 1, given), _residual(moments, j + 1, given)
    product = torch.outer(u, w)
    sampling = (u @ moments @ u) * (w @ moments @ w) / evidence.count
    return evidence.noise_of((product + product.T) / 2) ** 2 / float(sampling)


def test_a_parent_is_weighed_by_the_noise_of_its_coefficient_and_gains_are_differences_of_scores() -> None:
    for seed in range(count(3, 20)):
        rng = np.random.default_rng(seed)
        evidence = _scaled(rng, weights(rng, 6, 3), 3000, sigma=2.0)
        scores = Score.of(evidence, PENALTY, NONE, "BOSS")
        for j, parents in ((0, [1, 2, 5]), (3, [4]), (2, [0, 1, 3, 4, 5])):
            expected = [1 + _noise_over_sampling(evidence, j, k, [i for i in parents if i != k]) for k in parents]
            assert scores._weigh(j, [parents])[0] == pytest.approx(sum(expected), rel=1e-6)
            mask = sum(1 << k for k in parents)
            here = scores.of_parents(j, mask)
            for k, gain in zip(*scores.gains(j, mask, -1), strict=True):
                assert gain == pytest.approx(scores.of_parents(j, mask | 1 << k) - here, rel=1e-6, abs=1e-6)
            for k, gain in zip(*scores.losses(j, mask), strict=True):
                assert gain == pytest.approx(scores.of_parents(j, mask & ~(1 << k)) - here, rel=1e-6, abs=1e-6)


def test_an_edge_enters_where_z_in_units_of_both_errors_passes_the_root_of_the_penalty() -> None:
    decided = {True: 0, False: 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        matrix = np.array([[0.0, rng.uniform(0.0, 0.2)], [0.0, 0.0]])
        evidence = _scaled(rng, matrix, 4000, sigma=8.0)
        test = partial(evidence, "v00", "v01")
        ratio = (test.z / test.standard_error) ** 2 / (PENALTY * np.log(evidence.count))
        if abs(ratio - 1) > 0.2:
            decided[ratio > 1] += 1
            assert bool(boss(evidence).graph.edges) == (ratio > 1), seed
    assert min(decided.values()) > 5


def test_noise_is_not_taken_for_edges() -> None:
    runs = count(60, 400)
    found = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        evidence = _scaled(rng, np.zeros((8, 8)), 5000, sigma=(5.0, 20.0)[seed % 2])
        found += bool(boss(evidence, restarts=3).graph.edges)
    assert found <= 0.05 * runs


@pytest.mark.parametrize(("low", "high"), [(0.4, 0.9), (0.5, 2.0)])
def test_weighing_noise_finds_more_than_a_flat_penalty(
    low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = []
    for seed in range(count(3, 12)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 20, 2, low, high)
        cases.append((_scaled(rng, matrix, 20_000, sigma=20.0), cpdag_of(dag_of(matrix))))

    def distance(penalty: float) -> float:
        found = [boss(evidence, penalty, restarts=3).graph for evidence, _ in cases]
        return float(np.mean([shd(graph, truth) for graph, (_, truth) in zip(found, cases, strict=True)]))

    weighed = distance(PENALTY)
    monkeypatch.setattr(Score, "_weigh", lambda self, j, sets: np.full(len(sets), float(len(sets[0]))))
    assert weighed < min(distance(2.0), distance(8.0)) / 2
    assert weighed < 6


def test_a_forbidden_parent_is_never_scored(scored: set[tuple[int, int]]) -> None:
    rng = np.random.default_rng(1)
    evidence = Evidence.from_data(sample(rng, weights(rng, 8, 3), 500))
    knowledge = Knowledge(forbidden={("v00", "v01"), ("v03", "v02")}, tiers={"v04": 1, "v05": 0, "v06": 0})
    graph = boss(evidence, knowledge=knowledge).graph
    pruned = {(0, 1), (3, 2), (4, 5), (4, 6)}
    assert len(scored) == 8 * 7 - len(pruned)
    assert scored.isdisjoint(pruned)
    assert all(knowledge.allows(a, b) for a, b in graph.directed)


def test_tiers_are_respected_and_the_truth_is_found_within_them() -> None:
    for seed in range(count(10, 60)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 8, 2.5)
        dag = dag_of(matrix)
        tiers = {name: i // 3 for i, name in enumerate(dag.topological_order())}
        knowledge = Knowledge(tiers=tiers)
        graph = boss(population(matrix), knowledge=knowledge).graph
        assert graph == knowledge.orient(cpdag_of(dag)), seed
        assert all(tiers[a] <= tiers[b] for a, b in graph.directed)


def test_required_edges_are_present_even_against_the_data() -> None:
    rng = np.random.default_rng(2)
    evidence = Evidence.from_data(sample(rng, np.zeros((6, 6)), 500))
    required = {("v05", "v00"), ("v00", "v03"), ("v03", "v01")}
    graph = boss(evidence, knowledge=Knowledge(required)).graph
    assert graph.directed == required
    assert not graph.undirected


def test_a_score_on_the_line_is_listed_as_a_near_tie() -> None:
    count_, penalty = 1000.0, 2.0
    correlation = np.sqrt(1 - np.exp(-penalty * np.log(count_) / count_))
    tied = torch.tensor([[1, 0, 0], [0, 1, correlation], [0, correlation, 1]], dtype=torch.float64) * count_
    assert boss(Evidence(("a", "b"), tied), penalty=penalty).near_ties == {("a", "b")}
    assert not boss(Evidence(("a", "b"), tied), penalty=penalty * 1.001).near_ties


def test_evidence_that_cannot_be_scored_is_refused() -> None:
    rng = np.random.default_rng(0)
    frame = sample(rng, np.zeros((3, 3)), 100)
    frame["sum"] = frame["v00"] + frame["v01"]
    with pytest.raises(DataError, match=r"v00, v01, v02.*linearly dependent"):
        boss(Evidence.from_data(frame))
    drowned = Evidence(("a", "b"), 100 * torch.eye(3, dtype=torch.float64), noise=1e4)
    with pytest.raises(DataError, match="after noise"):
        boss(drowned)


def test_noise_that_leaves_no_variance_makes_no_parent() -> None:
    impossible = torch.tensor([[100.0, 0, 0], [0, 100, 120], [0, 120, 100]], dtype=torch.float64)
    assert not boss(Evidence(("a", "b"), impossible, noise=30.0)).graph.edges
    with pytest.raises(DataError, match="required parents"):
        boss(Evidence(("a", "b"), impossible, noise=30.0), knowledge=Knowledge({("a", "b")}))


def test_misuse_is_told_with_the_choices() -> None:
    evidence = population(np.zeros((2, 2)))
    with pytest.raises(MisuseError, match="restarts is 0"):
        boss(evidence, restarts=0)
    with pytest.raises(MisuseError, match="penalty -1"):
        boss(evidence, penalty=-1)
    with pytest.raises(MisuseError, match=r"boss has no options \['alpha'\].*penalty, generator, restarts"):
        discover(evidence, alpha=0.1)
    with pytest.raises(ConfigurationError, match=r"\['zz'\]"):
        boss(evidence, knowledge=Knowledge({("zz", "v00")}))
