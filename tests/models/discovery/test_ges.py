from __future__ import annotations

import warnings
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.discovery import discover
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.ges import _Move, _Place, _Search, ges
from causaldao.models.discovery.score import PENALTY, Score, members_of
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of, extension
from tests.counts import count
from tests.models.random_models import (
    dag_of,
    names,
    noisy,
    orientations,
    population,
    random_dag,
    sample,
    weights,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from causallearn.search.ScoreBased.GES import ges as causal_learn_ges


def _case(seed: int, n: int = 1000) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return sample(rng, weights(rng, int(rng.integers(5, 21)), degree=2.5, low=0.3, high=1.0), n)


def _reference(frame: pd.DataFrame) -> CausalGraph:
    """causal-learn's GES; its lambda counts n·log σ² by half, so 1 is our penalty of 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = causal_learn_ges(frame.to_numpy(), "local_score_BIC_from_cov", parameters={"lambda_value": 1.0})
    marks, labels = found["G"].graph, list(frame.columns)
    directed, lines = [], []
    for i, j in permutations(range(len(labels)), 2):
        if (marks[i, j], marks[j, i]) == (-1, 1):
            directed.append((labels[i], labels[j]))
        elif i < j and marks[i, j] == marks[j, i] == -1:
            lines.append((labels[i], labels[j]))
    return CausalGraph.cpdag(directed, lines, labels)


def _total(evidence: Evidence, pattern: CausalGraph) -> float:
    dag = extension(pattern)
    assert dag is not None
    score = Score.of(evidence.select(dag.nodes), PENALTY, NONE, "GES")
    return sum(score.of_parents(j, _mask(dag, node)) for j, node in enumerate(dag.nodes))


def _mask(dag: CausalGraph, node: str) -> int:
    return sum(1 << dag.nodes.index(parent) for parent in dag.parents(node))


def test_patterns_are_those_of_causal_learn_or_score_better() -> None:
    seeds = count(10, 100)
    same = 0
    for seed in range(seeds):
        frame = _case(seed)
        evidence = Evidence.from_data(frame)
        ours, theirs = ges(evidence).graph, _reference(frame)
        same += ours == theirs
        assert ours == theirs or _total(evidence, ours) > _total(evidence, theirs) + 1e-6, seed
    assert same >= 0.95 * seeds


def test_the_population_gives_the_true_cpdag() -> None:
    for seed in range(count(25, 300)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, int(rng.integers(2, 11)), degree=2.5)
        # so many records that a nearly cancelled path, which some weights make, is not taken for none
        evidence = population(matrix, count=1e11)
        assert ges(evidence, turning=bool(seed % 2)).graph == cpdag_of(dag_of(matrix)), seed


def _members(cpdag: CausalGraph) -> list[CausalGraph]:
    return [dag for dag in orientations(sorted(cpdag.skeleton()), list(cpdag.nodes)) if cpdag_of(dag) == cpdag]


def _without_cycle(edges: set[tuple[str, str]], nodes: tuple[str, ...]) -> list[CausalGraph]:
    try:
        return [CausalGraph.dag(edges, nodes)]
    except ConfigurationError:
        return []


def _neighbours(cpdag: CausalGraph) -> tuple[set[CausalGraph], set[CausalGraph], set[CausalGraph]]:
    """The classes with a DAG that is one edge more, less or reversed away from some DAG of the class."""
    more, less, turned = set(), set(), set()
    for dag in _members(cpdag):
        edges = set(dag.directed)
        free = [p for p in permutations(dag.nodes, 2) if not dag.adjacent(*p)]
        more |= {cpdag_of(d) for pair in free for d in _without_cycle(edges | {pair}, dag.nodes)}
        less |= {cpdag_of(d) for pair in edges for d in _without_cycle(edges - {pair}, dag.nodes)}
        turned |= {cpdag_of(d) for p in edges for d in _without_cycle(edges - {p} | {p[::-1]}, dag.nodes)}
    return more, less, turned - {cpdag}


class _Anything(Score):
    """A score by which everything is better than anything, to see all operators."""

    def gains(self, j: int, parents: int, among: int) -> Any:
        columns = members_of(self.allowed[j] & ~parents)
        return columns, np.ones(len(columns))

    def losses(self, j: int, parents: int) -> Any:
        columns = members_of(parents)
        return columns, np.ones(len(columns))


def test_the_operators_reach_each_neighbouring_class_and_no_other() -> None:
    turnings = 0
    for seed in range(count(12, 300)):
        rng = np.random.default_rng(seed)
        dag = random_dag(rng, int(rng.integers(3, 6)), degree=rng.uniform(0.5, 3))
        score = Score.of(population(np.zeros((len(dag.nodes),) * 2)), PENALTY, NONE, "GES")
        search = _Search(_Anything(**vars(score)), NONE)
        place = search._place(dag)
        reached = [_reached(search, place, moves) for moves in (search.inserts, search.deletes, search.turns)]
        expected = _neighbours(place.pattern)
        assert reached == list(expected), seed
        turnings += len(expected[2])
    assert turnings > 10


def _reached(search: _Search, place: _Place, moves: Any) -> set[CausalGraph]:
    found: set[CausalGraph] = set()
    for y in range(len(place.lines)):
        for move in moves(place, y):
            if move.blocks is None or not search._open(place, move, move.blocks):
                found.add(_pattern_after(search, place, move))
    return found


def _pattern_after(search: _Search, place: _Place, move: _Move) -> CausalGraph:
    following = search._follow(_Place(**{**vars(place), "score": -np.inf}), move)
    assert following is not None, "an operator that is valid always leads to a class"
    return following.pattern


def test_gains_are_differences_of_scores() -> None:
    for seed in range(count(5, 50)):
        rng = np.random.default_rng(seed)
        dag = random_dag(rng, 7, degree=2.5)
        evidence = Evidence.from_data(sample(rng, weights(rng, 7, 3), 200))
        search = _Search(Score.of(evidence, PENALTY, NONE, "GES"), NONE)
        place = search._place(dag)
        for moves in (search.inserts, search.deletes, search.turns):
            for move in (move for y in range(7) for move in moves(place, y)):
                if move.gain > 1e-3 and not (move.blocks is not None and search._open(place, move, move.blocks)):
                    following = search._follow(place, move)
                    assert following is not None
                    assert following.score - place.score == pytest.approx(move.gain, rel=1e-6), (seed, move)


def test_turning_never_ends_in_a_worse_score() -> None:
    gained = 0
    for seed in range(count(8, 100)):
        rng = np.random.default_rng(seed)
        evidence = Evidence.from_data(sample(rng, weights(rng, 10, 4, low=0.1, high=0.7), 300))
        plain, turned = _total(evidence, ges(evidence).graph), _total(evidence, ges(evidence, turning=True).graph)
        assert turned >= plain - 1e-6
        gained += turned > plain + 1e-6
    assert gained, "a phase that never helps would not be worth its code"


def test_the_order_of_columns_does_not_matter() -> None:
    for seed in range(5):
        frame = _case(seed, n=300)
        mixed = frame[list(np.random.default_rng(seed).permutation(frame.columns))]
        for turning in (False, True):
            found = ges(Evidence.from_data(mixed), turning=turning).graph
            assert found == ges(Evidence.from_data(frame), turning=turning).graph
            assert found.nodes == tuple(mixed.columns)


def test_the_outcome_is_a_cpdag() -> None:
    for seed in range(count(10, 100)):
        graph = ges(Evidence.from_data(_case(seed, n=150)), turning=bool(seed % 2)).graph
        dag = extension(graph)
        assert dag is not None
        assert cpdag_of(dag) == graph


def test_noise_is_not_taken_for_edges() -> None:
    false, blind, runs = 0, 0, count(15, 100)
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        nothing = noisy(Evidence.from_data(sample(rng, np.zeros((8, 8)), 5000)), 200.0, rng)
        false += bool(ges(nothing, turning=True).graph.edges)
        blind += bool(ges(Evidence(nothing.names, nothing.moments, 1e-9)).graph.edges)
    assert false <= 0.05 * runs
    assert blind > 0.5 * runs


def test_a_forbidden_parent_is_never_scored(scored: set[tuple[int, int]]) -> None:
    rng = np.random.default_rng(1)
    evidence = Evidence.from_data(sample(rng, weights(rng, 8, 3), 500))
    knowledge = Knowledge(forbidden={("v00", "v01"), ("v03", "v02")}, tiers={"v04": 1, "v05": 0, "v06": 0})
    graph = ges(evidence, knowledge=knowledge, turning=True).graph
    pruned = {(0, 1), (3, 2), (4, 5), (4, 6)}
    assert len(scored) == 8 * 7 - len(pruned)
    assert scored.isdisjoint(pruned)
    assert all(knowledge.allows(a, b) for a, b in graph.directed)


def test_tiers_are_respected_and_the_truth_is_found_within_them() -> None:
    for seed in range(count(10, 100)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 8, 2.5)
        dag = dag_of(matrix)
        tiers = {name: i // 3 for i, name in enumerate(dag.topological_order())}
        knowledge = Knowledge(tiers=tiers)
        graph = ges(population(matrix, count=1e11), knowledge=knowledge).graph
        assert graph == knowledge.orient(cpdag_of(dag)), seed


def test_knowledge_that_the_data_contradict_still_holds() -> None:
    for seed in (*range(count(15, 150)), 65):  # at 65 a turn closes a cycle with edges that the knowledge directs
        rng = np.random.default_rng(seed)
        evidence = Evidence.from_data(sample(rng, weights(rng, 8, 3), 500))
        pairs = [tuple(pair) for pair in rng.permutation(list(combinations(names(8), 2)))]
        required = {(str(a), str(b)) for a, b in pairs[:3]}
        forbidden = {(str(a), str(b))[:: 1 if rng.random() < 0.5 else -1] for a, b in pairs[3:12]}
        knowledge = Knowledge(required=required, forbidden=forbidden)
        found = ges(evidence, knowledge=knowledge, turning=bool(seed % 2)).graph
        assert required <= found.directed, seed
        assert all(knowledge.allows(*pair) for pair in found.directed)
        assert all(knowledge.allows(a, b) and knowledge.allows(b, a) for a, b in found.undirected)
        dag = extension(found)
        assert dag is not None
        assert knowledge.orient(cpdag_of(dag)).skeleton() == found.skeleton()


def test_required_edges_are_present_even_against_the_data() -> None:
    rng = np.random.default_rng(2)
    evidence = Evidence.from_data(sample(rng, np.zeros((6, 6)), 500))
    required = {("v05", "v00"), ("v00", "v03"), ("v03", "v01")}
    graph = ges(evidence, knowledge=Knowledge(required)).graph
    assert graph.directed == required
    assert not graph.undirected


def test_a_score_on_the_line_is_listed_as_a_near_tie() -> None:
    count_, penalty = 1000.0, 2.0
    correlation = np.sqrt(1 - np.exp(-penalty * np.log(count_) / count_))
    tied = torch.tensor([[1, 0, 0], [0, 1, correlation], [0, correlation, 1]], dtype=torch.float64) * count_
    assert ges(Evidence(("a", "b"), tied), penalty=penalty).near_ties == {("a", "b")}
    assert not ges(Evidence(("a", "b"), tied), penalty=penalty * 1.001).near_ties


def test_two_pairs_that_tie_for_a_step_are_both_listed() -> None:
    moments = torch.eye(4, dtype=torch.float64)
    moments[1, 2] = moments[2, 1] = moments[2, 3] = moments[3, 2] = 0.5
    assert ges(Evidence(("a", "b", "c"), moments * 1000)).near_ties == {("a", "b"), ("b", "c")}


def test_evidence_that_cannot_be_scored_is_refused() -> None:
    rng = np.random.default_rng(0)
    frame = sample(rng, np.zeros((3, 3)), 100)
    with pytest.raises(DataError, match=r"v00, v01, v02.*linearly dependent"):
        ges(Evidence.from_data(frame.assign(copy=frame["v00"])))
    with pytest.raises(DataError, match=r"5 records.*more records than variables"):
        ges(Evidence.from_data(sample(rng, np.zeros((6, 6)), 5)))
    constant = Evidence(("a", "b"), torch.tensor([[9.0, 9, 0], [9, 9, 0], [0, 0, 9]], dtype=torch.float64))
    with pytest.raises(DataError, match=r"'a' has variance 0.*constant"):
        ges(constant)
    drowned = Evidence(("a", "b"), 100 * torch.eye(3, dtype=torch.float64), noise=1e4)
    with pytest.raises(DataError, match="GES needs 3"):
        ges(drowned)


def test_noise_that_leaves_no_variance_makes_no_parent() -> None:
    impossible = torch.tensor([[100.0, 0, 0], [0, 100, 120], [0, 120, 100]], dtype=torch.float64)
    assert not ges(Evidence(("a", "b"), impossible, noise=30.0)).graph.edges
    with pytest.raises(DataError, match="required parents"):
        ges(Evidence(("a", "b"), impossible, noise=30.0), knowledge=Knowledge({("a", "b")}))


def test_parents_whose_correlations_noise_made_impossible_are_no_parents() -> None:
    moments = 1000 * torch.eye(5, dtype=torch.float64)
    for i, j, value in ((1, 2, 1200), (1, 3, 1200), (2, 3, -1200)):
        moments[i, j] = moments[j, i] = value
    score = Score.of(Evidence(("a", "b", "c", "d"), moments, noise=30.0), PENALTY, NONE, "GES")
    assert score.of_parents(3, 0b111) == -np.inf, "d is independent of all three, so its own variance tells nothing"
    assert score.of_parents(3, 0b001) > -np.inf


def test_misuse_is_told_with_the_choices() -> None:
    evidence = population(np.zeros((2, 2)))
    with pytest.raises(MisuseError, match="penalty is -1"):
        ges(evidence, penalty=-1)
    with pytest.raises(MisuseError, match=r"ges has no options \['alpha'\].*penalty, turning"):
        discover(evidence, "ges", alpha=0.1)
    with pytest.raises(ConfigurationError, match=r"\['zz'\]"):
        ges(evidence, knowledge=Knowledge({("zz", "v00")}))
    with pytest.raises(ConfigurationError, match="both required and forbidden"):
        ges(evidence, knowledge=Knowledge({("v00", "v01")}, {("v00", "v01")}))
