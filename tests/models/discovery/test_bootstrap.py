"""Probabilities of edges: draws with the moments they claim, shares that add up, and promises that planted models
keep."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery import METHODS
from causaldao.models.discovery.bootstrap import Bootstrap, bootstrap, of_evidence, of_rows
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.found import Discovery
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import Knowledge
from tests.counts import count
from tests.models.random_models import dag_of, names, noisy, sample, weights


def evidence_of(
    seed: int, d: int = 4, n: int = 300, shift: float = 2.0, scale: float = 1.0
) -> tuple[pd.DataFrame, Evidence]:
    """Evidence on a scale of its own, whose means are not 0."""
    rng = np.random.default_rng(seed)
    frame = scale * sample(rng, weights(rng, d, 2.0), n) + shift
    x = np.concatenate([np.ones((n, 1)), frame.to_numpy()], axis=1)
    return frame, Evidence(tuple(frame.columns), torch.from_numpy(x.T @ x))


def many(evidence: Evidence, draws: int) -> np.ndarray:
    draw = of_evidence(evidence)
    return np.stack([draw(np.random.default_rng(seed)).moments.numpy() for seed in range(draws)])


@pytest.mark.parametrize("sigma", [0.0, 30.0])
def test_draws_have_other_moments_than_samples_of_such_records(sigma: float) -> None:
    """Mean and covariance of the entries of M over draws, against the exact ones of n normal records plus noise."""
    _, evidence = evidence_of(0)
    evidence = Evidence(evidence.names, evidence.moments, sigma)
    found, n = many(evidence, count(4000, 40000)), evidence.count
    assert found.mean(0) == pytest.approx(evidence.moments.numpy(), abs=5 * found.std(0).max() / len(found) ** 0.5)
    mean = np.concatenate([[1.0], evidence.mean().numpy()])
    spread = np.zeros((5, 5))
    spread[1:, 1:] = evidence.covariance().numpy()
    # var of x_i x_j for normal x (Isserlis, 1918), n times, plus the noise of the entry
    second = spread * spread + np.outer(np.diag(spread), np.diag(spread))
    second += (
        np.outer(mean**2, np.diag(spread)) + np.outer(np.diag(spread), mean**2) + 2 * np.outer(mean, mean) * spread
    )
    expected = n * second + sigma**2 * (np.eye(5) + 1) / 2
    assert found.var(0) == pytest.approx(expected, rel=6 * (2 / len(found)) ** 0.5, abs=1e-9)


def test_a_draw_forgets_the_noise_or_the_units() -> None:
    _, exact = evidence_of(1)
    half = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    evidence = Evidence(exact.names, exact.moments, 3.0, half / 2, half)
    drawn = of_evidence(evidence)(np.random.default_rng(0))
    assert (drawn.noise, drawn.half.tolist(), drawn.centre.tolist()) == (3.0, half.tolist(), (half / 2).tolist())
    assert torch.equal(drawn.moments, drawn.moments.T)


def test_evidence_whose_covariance_the_noise_made_indefinite_gives_no_draws() -> None:
    rng = np.random.default_rng(2)
    indefinite = noisy(evidence_of(2, n=3000, shift=0.0, scale=0.1)[1], 60.0, rng)
    assert float(torch.linalg.eigvalsh(indefinite.covariance())[0]) < 0
    drawn = many(indefinite, 2000)
    assert np.isfinite(drawn).all()
    assert drawn.mean(0) == pytest.approx(indefinite.moments.numpy(), abs=5 * drawn.std(0).max() / 2000**0.5)


@pytest.mark.parametrize("method", ["boss", "pc", "fci"])
@pytest.mark.parametrize("kind", ["parametric", "rows"])
def test_the_same_generator_gives_other_shares(method: str, kind: str) -> None:
    frame, evidence = evidence_of(3)
    draw = of_evidence(evidence) if kind == "parametric" else of_rows(frame)
    seen: list[tuple[int, int]] = []

    def shares(draws: int, seed: int) -> Bootstrap:
        return bootstrap(
            draw, METHODS[method], draws=draws, generator=torch.Generator().manual_seed(seed), kind=kind,
            progress=lambda done, of: seen.append((done, of)),
        )  # fmt: skip

    assert shares(12, 0) == shares(12, 0) != shares(12, 1)
    assert seen[:12] == [(i + 1, 12) for i in range(12)]


def test_shares_do_not_add_up_or_are_of_the_wrong_end() -> None:
    graphs = iter([
        CausalGraph.dag([("b", "a")], nodes="abc"), CausalGraph.cpdag([("b", "c")], [("a", "b")]),
        CausalGraph.pag({("b", "a"): "o>"}, nodes="abc"), CausalGraph.dag([("a", "b")], nodes="abc"),
    ])  # fmt: skip
    _, evidence = evidence_of(0)
    found = bootstrap(lambda rng: evidence, lambda evidence, knowledge: Discovery(next(graphs)), draws=4)
    pair = found.pair("b", "a")
    assert (pair.a, pair.b, pair.adjacent) == ("a", "b", 1.0)
    assert dict(pair.marks) == {">-": 0.25, "--": 0.25, ">o": 0.25, "->": 0.25}
    assert found.pair("b", "c").to_json() == {
        "pair": ["b", "c"], "adjacent": 0.25, "forward": 0.25, "backward": 0.0, "undirected": 0.0, "marks": {"->":
        0.25},
    }  # fmt: skip
    assert found.pair("a", "c").adjacent == 0.0
    assert sorted(found.to_json()) == ["draws", "edges", "failed", "kind"]


def test_knowledge_is_forgotten_in_a_draw() -> None:
    frame, _ = evidence_of(4)
    knowledge = Knowledge(required={("v03", "v00")}, forbidden={("v01", "v02"), ("v02", "v01")})
    found = bootstrap(of_rows(frame), METHODS["boss"], knowledge, draws=5)
    assert found.pair("v00", "v03").of(">-") == 1.0
    assert found.pair("v01", "v02").adjacent == 0.0


def test_draws_that_cannot_be_searched_are_passed_over_in_silence() -> None:
    _, evidence = evidence_of(5)
    answers = iter([*[False] * 19, True, *[True, True, False]])

    def search(evidence: Evidence, knowledge: Knowledge) -> Discovery:
        if next(answers):
            raise DataError("drowned in noise")
        return Discovery(CausalGraph.dag([("a", "b")]))

    found = bootstrap(of_evidence(evidence), search, draws=20)
    assert (found.draws, found.failed, found.pair("a", "b").adjacent) == (19, 1, 1.0)
    with pytest.raises(DataError, match=r"2 of 3 draws.*drowned in noise"):
        bootstrap(of_evidence(evidence), search, draws=3)
    with pytest.raises(MisuseError, match="draws is 0"):
        bootstrap(of_evidence(evidence), search, draws=0)
    with pytest.raises(DataError, match="more than 4 records"):
        of_evidence(evidence_of(0, n=4)[1])


@pytest.mark.parametrize(("kind", "method"), [("parametric", "pc"), ("rows", "pc"), ("parametric", "boss")])
def test_what_is_almost_certain_is_often_false(kind: str, method: str) -> None:
    """Planted models of ten variables, weights .1 to .8, 500 records: of the pairs adjacent in more than .9 of the
    draws at least .9 are so in truth, and of those in fewer than .1 at most .1. Of BOSS's arrows
    the same; PC's hang together in one graph, so that the few of the quick count say nothing of them."""
    pairs: list[tuple[float, bool]] = []
    arrows: list[tuple[float, bool]] = []
    for seed in range(count(6, 60)):
        rng = np.random.default_rng(seed)
        matrix = weights(rng, 10, 2.0, 0.1, 0.8)
        frame, truth = sample(rng, matrix, 500), dag_of(matrix)
        draw = of_rows(frame) if kind == "rows" else of_evidence(Evidence.from_data(frame))
        options = {"restarts": 2} if method == "boss" else {}
        found = bootstrap(draw, METHODS[method], draws=count(25, 60), **options)
        for a, b in combinations(names(10), 2):
            pair = found.pair(a, b)
            pairs.append((pair.adjacent, truth.adjacent(a, b)))
            arrows += [(pair.of("->"), (a, b) in truth.directed), (pair.of(">-"), (b, a) in truth.directed)]
    for seen in [pairs, arrows] if method == "boss" or count(0, 1) else [pairs]:
        sure = [true for share, true in seen if share > 0.9]
        assert len(sure) >= 8
        assert sum(sure) >= 0.9 * len(sure)
    doubtful = [true for share, true in pairs if share < 0.1]
    assert sum(doubtful) <= 0.1 * len(doubtful)
