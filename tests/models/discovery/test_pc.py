from __future__ import annotations

import warnings
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.discovery import discover, search
from causaldao.models.discovery.evidence import Evidence, partial
from causaldao.models.discovery.pc import COLLIDERS, _search, pc
from causaldao.models.discovery.skeleton import Answer, Oracle, PartialCorrelations
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import cpdag_of, extension
from tests.counts import count
from tests.models.random_models import dag_of, names, noisy, population, sample, weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from causallearn.search.ConstraintBased.PC import pc as causal_learn_pc

Asked = list[tuple[Pair, tuple[str, ...]]]


def _case(seed: int, n: int = 1000) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return sample(rng, weights(rng, int(rng.integers(5, 16)), degree=2.5, low=0.3, high=1.0), n)


def _reference(frame: pd.DataFrame, alpha: float) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return causal_learn_pc(frame.to_numpy(), alpha, "fisherz", True, 0, 2, show_progress=False)


def _skeleton(reference: Any, labels: list[str]) -> set[Pair]:
    marks = reference.G.graph
    return {(labels[i], labels[j]) for i, j in combinations(range(len(labels)), 2) if marks[i, j] or marks[j, i]}


def test_skeletons_and_colliders_are_those_of_causal_learn() -> None:
    compared = differing = 0
    for seed in range(count(10, 50)):
        frame = _case(seed)
        labels = list(frame.columns)
        evidence = Evidence.from_data(frame)
        found, reference = pc(evidence, alpha=0.01), _reference(frame, 0.01)
        assert found.graph.skeleton() == _skeleton(reference, labels), seed
        for a, c, b in found.graph.unshielded_triples():
            theirs = _separating_sets(evidence, a, b, len(found.separating_sets[a, b]), alpha=0.01)
            unions = reference.sepset[labels.index(a), labels.index(b)]
            reference_says = all(labels.index(c) not in union for union in unions)
            ours_says = c not in found.separating_sets[a, b]
            compared += len(theirs) == 1
            differing += reference_says != ours_says
            # causal-learn joins all separating sets of the level into one; a single one leaves no choice
            assert len(theirs) > 1 or reference_says == ours_says, (seed, a, c, b)
    assert compared > 5 * differing


def _separating_sets(evidence: Evidence, a: str, b: str, level: int, alpha: float) -> list[tuple[str, ...]]:
    """All sets of that size that separate a and b, from every variable: no fewer than PC may have tried."""
    rest = [name for name in evidence.names if name not in (a, b)]
    sets = list(combinations(rest, level))
    rows = torch.tensor([[evidence.index(name) for name in (a, b, *given)] for given in sets])
    statistics = PartialCorrelations.of(evidence).statistics(rows).tolist()
    critical = float(norm.isf(alpha / 2))
    return [given for given, statistic in zip(sets, statistics, strict=True) if statistic <= critical]


def test_a_chain_gives_exactly_its_two_edges() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=2000)
    b = a + rng.normal(size=2000)
    frame = pd.DataFrame({"A": a, "B": b, "C": b + rng.normal(size=2000)})
    found = pc(Evidence.from_data(frame))
    assert found.graph == CausalGraph.cpdag(undirected=[("A", "B"), ("B", "C")])
    assert found.separating_sets == {("A", "C"): frozenset({"B"})}


def test_the_population_gives_the_true_cpdag() -> None:
    for seed in range(count(25, 300)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, int(rng.integers(3, 11)), degree=2)
        # so many records that a true partial correlation of 1e-4, which some weights make, is no independence
        found = pc(population(matrix, count=1e12))
        assert found.graph == cpdag_of(dag_of(matrix)), seed
        assert not found.conflicts


def test_the_outcome_always_has_an_extension_and_conflicts_are_named() -> None:
    conflicts = 0
    for seed in range(count(20, 200)):
        found = pc(Evidence.from_data(_case(seed, n=150)), alpha=0.05)
        dag = extension(found.graph)
        assert dag is not None, seed
        assert cpdag_of(dag) == found.graph
        conflicts += bool(found.conflicts)
        for triple in found.conflicts:
            wanted = triple[1] not in found.separating_sets[triple[0], triple[2]]
            assert wanted != (triple in found.graph.unshielded_colliders())
    assert conflicts


def test_the_order_of_columns_does_not_matter() -> None:
    for seed in range(5):
        frame = _case(seed, n=300)
        mixed = frame[list(np.random.default_rng(seed).permutation(frame.columns))]
        assert pc(Evidence.from_data(mixed)).graph == pc(Evidence.from_data(frame)).graph


def test_batched_statistics_are_those_of_the_evidence() -> None:
    rng = np.random.default_rng(3)
    matrix = weights(rng, 6, degree=3)
    exact = Evidence.from_data(sample(rng, matrix, 400) + 0.7)
    shifted = torch.eye(7, dtype=torch.float64)
    shifted[1:, 0] = torch.linspace(-0.5, 0.4, 6, dtype=torch.float64)
    moved = Evidence(exact.names, shifted @ exact.moments @ shifted.T)
    for evidence in (exact, moved, noisy(moved, 6.0, rng)):
        tester = PartialCorrelations.of(evidence)
        for level in range(4):
            for chosen in list(combinations(range(6), level + 2))[:8]:
                a, b, *given = (evidence.names[i] for i in chosen)
                expected = partial(evidence, a, b, given)
                got = float(tester.statistics(torch.tensor([chosen])))
                assert got == pytest.approx(abs(expected.z) / expected.standard_error, rel=1e-8)


def test_noise_widens_the_tests_so_that_false_edges_stay_rare() -> None:
    wide, narrow = 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        independent = sample(rng, np.zeros((6, 6)), 2000)
        evidence = noisy(Evidence.from_data(independent), 200.0, rng)
        wide += len(pc(evidence).graph.edges)
        narrow += len(pc(Evidence(evidence.names, evidence.moments, 1e-9)).graph.edges)
    assert wide <= 12, "20 graphs of 15 pairs at level .01 expect 3 false edges"
    assert narrow > 100


def test_an_excluded_pair_is_never_tested(asked: Asked) -> None:
    knowledge = Knowledge(forbidden={("v00", "v01"), ("v01", "v00")})
    found = pc(Evidence.from_data(_case(1)), knowledge=knowledge)
    assert asked
    assert ("v00", "v01") not in {pair for pair, _ in asked}
    assert not found.graph.adjacent("v00", "v01")
    assert ("v00", "v01") not in found.separating_sets


def test_knowledge_saves_tests(asked: Asked) -> None:
    frame = _case(1)
    pc(Evidence.from_data(frame))
    without, labels = len(asked), list(frame.columns)
    asked.clear()
    pc(Evidence.from_data(frame), knowledge=Knowledge(tiers={name: i for i, name in enumerate(labels)}))
    tier = labels.index
    assert len(asked) < without
    assert all(tier(c) < max(tier(a), tier(b)) for (a, b), given in asked for c in given)


def test_a_required_edge_is_present_directed_and_never_tested(asked: Asked) -> None:
    rng = np.random.default_rng(0)
    evidence = Evidence.from_data(sample(rng, np.zeros((4, 4)), 500))
    found = pc(evidence, knowledge=Knowledge(required={("v03", "v01")}))
    assert ("v03", "v01") in found.graph.directed
    assert ("v01", "v03") not in {pair for pair, _ in asked}


def test_tiers_direct_every_edge_between_them() -> None:
    for seed in range(5):
        frame = _case(seed)
        tiers = {name: i // 3 for i, name in enumerate(frame.columns)}
        graph = pc(Evidence.from_data(frame), knowledge=Knowledge(tiers=tiers)).graph
        assert all(tiers[a] <= tiers[b] for a, b in graph.directed)
        assert all(tiers[a] == tiers[b] for a, b in graph.undirected)


def test_a_statistic_on_the_line_is_listed_as_a_near_tie() -> None:
    evidence = population(np.array([[0.0, 0.1], [0.0, 0.0]]), count=900)
    statistic = abs(partial(evidence, "v00", "v01").z) / partial(evidence, "v00", "v01").standard_error
    alpha = 2 * float(torch.special.ndtr(torch.tensor(-statistic, dtype=torch.float64)))
    assert pc(evidence, alpha=alpha).near_ties == {("v00", "v01")}
    assert not pc(evidence, alpha=alpha * 1.01).near_ties


def test_dependent_variables_are_named_where_no_test_exists() -> None:
    frame = _case(0)
    frame["copy"] = frame["v00"]
    frame["v00"] += 0.5 * frame["v02"]
    frame["other"] = frame["v00"] - frame["copy"]
    with pytest.raises(DataError, match=r"linearly dependent.*Drop one"):
        pc(Evidence.from_data(frame))


def test_misuse_is_told_with_the_choices() -> None:
    evidence = population(np.zeros((2, 2)))
    with pytest.raises(MisuseError, match=r"alpha is 1\.5"):
        pc(evidence, alpha=1.5)
    with pytest.raises(DataError, match="more than 3 records"):
        pc(population(np.zeros((2, 2)), count=3))
    with pytest.raises(ConfigurationError, match=r"\['zz'\]"):
        pc(evidence, knowledge=Knowledge(tiers={"zz": 1}))
    with pytest.raises(MisuseError, match=r"'pcc'.*boss, pc"):
        discover(evidence, "pcc")
    with pytest.raises(MisuseError, match=r"pc has no options \['penalty'\].*alpha"):
        discover(evidence, "pc", penalty=2)


def test_discover_returns_the_graph_of_the_search() -> None:
    evidence = Evidence.from_data(_case(2))
    assert discover(evidence, "pc", alpha=0.05) == search(evidence, "pc", alpha=0.05).graph == pc(evidence, 0.05).graph


@pytest.mark.parametrize("d", [0, 1])
def test_no_pairs_mean_no_edges(d: int) -> None:
    evidence = Evidence(tuple(names(d)), 10 * torch.eye(d + 1, dtype=torch.float64))
    for method in ("pc", "boss"):
        assert discover(evidence, method) == CausalGraph.dag([], names(d))


def _said(separating: dict[Pair, set[tuple[str, ...]]], labels: str) -> Oracle:
    """An oracle that separates each pair by exactly these sets."""

    def run(questions: Any, level: int) -> Any:
        for pair, given in questions:
            yield Answer(pair, given, 0.0 if given in separating.get(pair, ()) else np.inf)

    return Oracle(tuple(labels), run, 1.0, len(labels) - 2)


def test_rules_for_colliders_differ_just_where_separating_sets_do() -> None:
    """a and b are separated given nothing, and, once the skeleton is known, given c too; e hangs on c."""
    sets = {("a", "b"): {(), ("c",)}, ("a", "e"): {("c",)}, ("b", "e"): {("c",)}}
    found = {rule: _search(_said(sets, "abce"), "abce", NONE, rule) for rule in COLLIDERS}
    collider = CausalGraph.cpdag([("a", "c"), ("b", "c"), ("c", "e")])
    assert found["stable"].graph == found["unanimous"].graph == collider
    bare = CausalGraph.cpdag(undirected=[("a", "c"), ("b", "c"), ("c", "e")])
    for rule in ("conservative", "majority"):
        assert found[rule].graph == bare
        assert found[rule].ambiguous == {("a", "c", "b")}
    sets["a", "b"] = {(), ("d",), ("c",)}
    sets |= {("a", "e"): {("c",)}, ("d", "e"): {("c",)}, ("b", "d"): {("c",)}}
    found = {rule: _search(_said(sets, "abcde"), "abcde", NONE, rule) for rule in COLLIDERS}
    assert ("a", "c", "b") in found["conservative"].ambiguous
    assert ("a", "c", "b") in found["majority"].graph.unshielded_colliders(), "one set in three holds c"


def test_every_rule_for_colliders_finds_the_cpdag_of_the_population() -> None:
    for seed in range(count(8, 100)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, int(rng.integers(3, 10)), degree=2)
        for rule in COLLIDERS:
            found = pc(population(matrix, count=1e12), colliders=rule)
            assert (found.graph, found.ambiguous) == (cpdag_of(dag_of(matrix)), frozenset()), (seed, rule)


def test_conservative_verdicts_are_those_of_causal_learn() -> None:
    """Its definite rule, of which the closing step must be left out: that concludes from ambiguous triples too."""
    compared = ambiguous = 0
    for seed in range(count(6, 50)):
        frame = _case(seed)
        labels = list(frame.columns)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = causal_learn_pc(frame.to_numpy(), 0.01, "fisherz", True, 2, 3, show_progress=False)
        found = pc(Evidence.from_data(frame), colliders="conservative")
        wanted = found.graph.unshielded_colliders() ^ found.conflicts
        for a, c, b in found.graph.unshielded_triples():
            i, j, k = (labels.index(name) for name in (a, c, b))
            says = ((i, j, k) in theirs.definite_UC, (i, j, k) in theirs.definite_non_UC)
            if not found.conflicts and says != (False, False):
                assert says == ((a, c, b) in wanted, (a, c, b) not in wanted | found.ambiguous), (seed, a, c, b)
                compared += 1
            ambiguous += (a, c, b) in found.ambiguous and says == (False, False)
    assert compared > 20
    assert ambiguous


def test_arrays_of_tests_change_nothing() -> None:
    for seed in range(count(5, 50)):
        evidence = Evidence.from_data(_case(seed, n=300))
        fast = Oracle.of(evidence, 0.05, "PC")
        slow = Oracle(fast.names, fast.run, fast.critical, fast.largest)
        for rule in COLLIDERS:
            assert _search(fast, evidence.names, NONE, rule) == _search(slow, evidence.names, NONE, rule), (seed, rule)


def test_variables_that_others_determine_are_refused_even_where_no_test_meets_them() -> None:
    for seed in range(count(10, 60)):
        frame = _case(seed, n=200)
        frame["sum"] = frame["v00"] + frame["v01"]
        with pytest.raises(DataError, match="linearly dependent"):
            pc(Evidence.from_data(frame))


def test_fewer_records_than_variables_bound_the_sets(asked: Asked) -> None:
    rng = np.random.default_rng(0)
    evidence = Evidence.from_data(sample(rng, weights(rng, 12, degree=9, low=0.9, high=1.5), 8))
    found = pc(evidence, alpha=0.5)
    assert max(len(given) for _, given in asked) <= 4
    assert extension(found.graph) is not None


def test_rules_that_do_not_exist_are_told_with_the_choices() -> None:
    evidence = population(np.zeros((2, 2)))
    with pytest.raises(MisuseError, match=r"colliders is 'all'.*stable, unanimous, conservative, majority"):
        pc(evidence, colliders="all")
    with pytest.raises(MisuseError, match=r"priority is 'p'.*independence or by name"):
        pc(evidence, priority="p")


_IMPOSSIBLE = torch.tensor([[1, 0, 0, 0], [0, 1, 0.9, 0.9], [0, 0.9, 1, -0.9], [0, 0.9, -0.9, 1]], dtype=torch.float64)


def test_correlations_that_noise_made_impossible() -> None:
    """Tests without power separate nothing, and scores join no parents that such correlations hold for; exact
    evidence of that kind is refused.
    """
    noisy_, exact = Evidence(("a", "b", "c"), 1000 * _IMPOSSIBLE, 30.0), Evidence(("a", "b", "c"), 1000 * _IMPOSSIBLE)
    for method in ("pc", "fci", "rfci"):
        assert len(discover(noisy_, method).edges) == 3, method
    for method in ("ges", "boss"):
        found = extension(discover(noisy_, method))
        assert found is not None
        assert max(len(found.parents(name)) for name in "abc") < 2, method
    for method in ("pc", "fci", "rfci", "ges", "boss"):
        with pytest.raises(DataError, match="linearly dependent"):
            discover(exact, method)
