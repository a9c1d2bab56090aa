"""Feature maps and the moments of blocks: bounded rows, tests and scores of blocks, and what only they can see."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import chi2, norm

from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import exact_moments, release_evidence
from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.discovery import discover, search
from causaldao.models.discovery.block_score import BlockScore
from causaldao.models.discovery.blocks import BlockTests, Whitened, normal
from causaldao.models.discovery.evidence import Evidence, Variable, add, partial
from causaldao.models.discovery.features import FeatureMap, Features, from_data, variables_of
from causaldao.models.discovery.score import Score
from causaldao.models.knowledge import NONE, Knowledge
from tests.counts import count
from tests.models.random_models import names, noisy, population, sample, weights

MIXED = (
    Variable("x", bounds=(-5, 5)),
    Variable("n", "count", (0, 50), transform="log1p"),
    Variable("b", "binary"),
    Variable("k", "categorical", levels=("r", "s", "t", "u")),
)


def _table(rng: np.random.Generator, n: int) -> pd.DataFrame:
    return pd.DataFrame({
        "k": rng.choice(list("rstu"), n), "x": rng.normal(0, 4, n), "b": rng.integers(0, 2, n), "n": rng.poisson(9, n),
    })  # fmt: skip


def _rejected(statistics: list[float], alpha: float) -> float:
    return float(np.mean([z > norm.isf(alpha / 2) for z in statistics]))


def _ask(evidence: Evidence, a: str, b: str, *given: str) -> float:
    (found,) = BlockTests(Whitened.of(evidence)).answers([((a, b), given)])
    return found


def test_a_row_of_features_is_longer_than_the_clip() -> None:
    rng = np.random.default_rng(0)
    for number in range(count(40, 400)):
        kind = ("one-hot", "fourier")[number % 2]
        waves, lattice = int(rng.integers(1, 8)), int(rng.choice([4, 64, 1024]))
        linear, seed = bool(rng.integers(2)), int(rng.integers(99))
        made = FeatureMap(MIXED, kind, waves, float(rng.uniform(0.05, 2)), linear, seed, lattice=lattice)
        chosen = FeatureMap(
            MIXED, kind, waves, made.width, linear, seed, float(rng.uniform(1.01, made.clip)), lattice=lattice
        )
        frame = _table(rng, 50).astype({"n": float})
        frame.loc[0, ["x", "n"]] = [1e300, 1e300]
        for feature_map in (made, chosen):
            rows = feature_map.lattice_rows(frame)
            assert rows.dtype == np.int64
            assert rows.shape == (50, 1 + sum(feature_map.blocks))
            assert bool((rows[:, 0] == lattice).all())
            assert max(sum(int(v) ** 2 for v in row) for row in rows) <= feature_map.clip * lattice**2
        # by default no row is shortened, so that the rows are the features, rounded
        free = FeatureMap(MIXED, kind, waves, made.width, linear, seed, lattice=lattice).lattice_rows(frame)
        fine = FeatureMap(MIXED, kind, waves, made.width, linear, seed, lattice=1 << 20).lattice_rows(frame)
        assert np.abs(free / lattice - fine / (1 << 20)).max() <= 0.51 / lattice


def test_a_release_of_features_does_not_read_back() -> None:
    feature_map = FeatureMap(MIXED, waves=2, width=0.3, lattice=64)
    frame = _table(np.random.default_rng(1), 400)
    frame.loc[0, "x"] = math.nan
    frame.loc[1, "k"] = "unheard of"  # a record must not be able to make the release fail
    exact = exact_moments(frame, feature_map)
    sigma = 500
    released = release_evidence(frame, feature_map, sigma, NoiseSource.simulated(bytes(32)))
    found = Evidence.from_release(released, feature_map, sigma)
    assert found.blocks == (3, 3, 1, 3)
    difference = found.moments.numpy() * 64**2 - exact
    assert 0.5 * sigma < difference.diagonal().std() < 1.8 * sigma
    again = Evidence.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    assert again.blocks == found.blocks


def test_waves_differ_between_members_or_miss_their_kernel() -> None:
    grid = pd.DataFrame({"x": np.linspace(-3, 3, 61)})
    make = FeatureMap((Variable("x", bounds=(-3, 3)),), waves=2000, width=0.4, linear=False, lattice=1 << 20)
    rows = make.lattice_rows(grid)[:, 1:] / (1 << 20)
    z = grid["x"].to_numpy() / 3
    kernel = np.exp(-((z[:, None] - z) ** 2) / (2 * 0.4**2))
    np.testing.assert_allclose(rows @ rows.T, kernel, atol=0.01)
    short = FeatureMap((Variable("x", bounds=(-3, 3)),), waves=4, width=0.4, lattice=1024)
    # pinned: a study's members must agree on these, whatever they have installed
    assert short.lattice_rows(grid)[[0, 30, 45], 1:].tolist() == [
        [-1024, 167, -704, 166, -705],
        [0, 479, -543, 571, 445],
        [512, 596, -411, -66, 721],
    ]


def _wilks(frame: pd.DataFrame, a: list[str], b: list[str], given: list[str]) -> float:
    """From the rows: -(n - 1 - s - (p + q + 1)/2) log(det of joint residuals / dets of each), by least squares."""
    n = len(frame)
    basis = np.column_stack([np.ones(n), frame[given].to_numpy()])
    ya, yb = frame[a].to_numpy(), frame[b].to_numpy()
    ra, rb = (y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0] for y in (ya, yb))
    joint = np.column_stack([ra, rb])
    ratio = np.linalg.det(joint.T @ joint) / np.linalg.det(ra.T @ ra) / np.linalg.det(rb.T @ rb)
    return -(n - 1 - len(given) - (len(a) + len(b) + 1) / 2) * math.log(ratio)


def test_the_statistic_is_not_that_of_regressions_on_rows() -> None:
    rng = np.random.default_rng(2)
    for _ in range(count(15, 200)):
        frame = _table(rng, 300)
        frame["x"] += (frame["k"] == "s") + 0.1 * frame["n"]
        dummies = pd.get_dummies(frame, columns=["k"], dtype=float)
        chosen = FeatureMap((Variable("x"), Variable("n", "count"), Variable("b", "binary"), MIXED[3]), "one-hot")
        evidence = from_data(frame, chosen)
        levels = [str(level) for level in rng.permutation(["k_r", "k_s", "k_t", "k_u"])][:3]  # any three will do
        own = {"x": ["x"], "n": ["n"], "b": ["b"], "k": levels}
        a, b, *rest = (str(name) for name in rng.permutation(list(own)))
        given = rest[: int(rng.integers(0, 3))]
        expected = _wilks(dummies, own[a], own[b], [c for name in given for c in own[name]])
        p_value = 2 * norm.sf(_ask(evidence, a, b, *given))
        assert p_value == pytest.approx(chi2.sf(expected, len(own[a]) * len(own[b])), rel=1e-6, abs=1e-12)


def test_blocks_of_one_column_decide_otherwise_than_fisher() -> None:
    """-(n - s - 2.5)·log(1 - r²) and (n - s - 3)·atanh(r)² differ by a share of r²/6 + 1/n, so that |z| agrees."""
    rng = np.random.default_rng(3)
    for sigma in (0.0, 4.0):
        for _ in range(count(10, 100)):
            evidence = noisy(Evidence.from_data(sample(rng, weights(rng, 5, 2, 0.1, 0.4), 2000)), sigma, rng)
            tests = BlockTests(Whitened.of(evidence))
            for a, b in combinations(names(5), 2):
                given = tuple(name for name in names(5) if name not in (a, b))[: int(rng.integers(0, 4))]
                theirs = partial(evidence, a, b, given)
                (ours,) = tests.answers([((a, b), given)])
                fisher = abs(theirs.z) / theirs.standard_error
                assert ours == pytest.approx(fisher, rel=0.6 * theirs.correlation**2 + 2e-3, abs=1e-6)
                assert abs(fisher - 2.576) < 0.02 or (ours > 2.576) == (fisher > 2.576)


def test_a_score_of_blocks_of_one_column_differs_from_the_score() -> None:
    rng = np.random.default_rng(4)
    for sigma in (0.0, 20.0):
        evidence = noisy(population(weights(rng, 5, 2.5, 0.3, 0.8), 3000), sigma, rng)
        scores = Score.of(evidence, 2.0, NONE, "BOSS"), BlockScore.of(evidence, 2.0, NONE)
        for j in range(5):
            for parents in range(32):
                if parents >> j & 1:
                    continue
                ours, theirs = (score.of_parents(j, parents) for score in scores[::-1])
                assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-6)
                for ask in ("gains", "losses"):
                    more = (parents, -1) if ask == "gains" else (parents,)
                    (i1, g1), (i2, g2) = (getattr(score, ask)(j, *more) for score in scores)
                    assert i1 == i2
                    np.testing.assert_allclose(g1, g2, rtol=1e-9, atol=1e-6)


def test_equivalent_graphs_of_blocks_score_differently() -> None:
    evidence = from_data(_table(np.random.default_rng(5), 500), FeatureMap(MIXED[:2] + MIXED[3:], waves=4, width=1.0))
    score = BlockScore.of(evidence, 1.0, NONE)
    chain = score.of_parents(0, 0) + score.of_parents(1, 1) + score.of_parents(2, 2)
    back = score.of_parents(2, 0) + score.of_parents(1, 4) + score.of_parents(0, 2)
    assert chain == pytest.approx(back, rel=1e-10)


LEVELS = Variable("k", "categorical", levels=tuple("rst")), Variable("j", "categorical", levels=tuple("uvw"))


def _levels_apart(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """k -> x and k -> j, nothing else."""
    k = rng.integers(0, 3, n)
    chances = np.array([[0.6, 0.2, 0.2], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])[k]
    j = (rng.random((n, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    x = np.array([0.0, 1.0, -1.0])[k] + rng.normal(size=n)
    return pd.DataFrame({"k": np.array(list("rst"))[k], "j": np.array(list("uvw"))[j], "x": x})


def test_true_independence_of_levels_is_rejected_too_often() -> None:
    repeats = count(150, 4000)
    one_hot = FeatureMap((*LEVELS, Variable("x")), "one-hot")
    found = [
        _ask(from_data(frame, one_hot), "j", "x", "k")
        for frame in (_levels_apart(np.random.default_rng([6, i]), 400) for i in range(repeats))
    ]
    assert _rejected(found, 0.05) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / repeats))
    assert _rejected(found, 0.01) == pytest.approx(0.01, abs=4 * math.sqrt(0.01 * 0.99 / repeats))


def _of_curves(seed: int, records: int, repeats: int) -> list[float]:
    """Statistics of a against b given s where a <- s -> b, both curved."""
    found = []
    for i in range(repeats):
        rng = np.random.default_rng([seed, i])
        s = rng.normal(size=records)
        a, b = np.sin(2 * s) + 0.5 * rng.normal(size=records), 0.7 * s**2 + 0.5 * rng.normal(size=records)
        frame = pd.DataFrame({"s": s, "a": a, "b": b})
        found.append(_ask(from_data(frame, FeatureMap(variables_of(frame))), "a", "b", "s"))
    return found


def test_true_independence_of_curves_is_rejected_too_often() -> None:
    """Beyond the level lies what 20 waves of s do not fit: of 800 draws 7.9 % at .05."""
    repeats = count(60, 500)
    assert _rejected(_of_curves(7, 1000, repeats), 0.05) <= 0.10 + 3 * math.sqrt(0.1 * 0.9 / repeats)


def test_with_many_records_the_tails_of_a_strongly_curved_cause_count_as_dependence() -> None:
    """The fainter directions of s, left out, once made that 17 % at level .01."""
    repeats = count(25, 400)
    assert _rejected(_of_curves(17, 5000, repeats), 0.01) <= 0.02 + 3 * math.sqrt(0.02 * 0.98 / repeats)


def test_noise_makes_dependence_of_what_is_independent() -> None:
    """The noise is the larger part of the error here: without it in the null, most tests would reject."""
    repeats, sigma = count(80, 500), 30.0
    found: list[float] = []
    unaware: list[float] = []
    chosen = FeatureMap((*LEVELS, Variable("x", bounds=(-3, 3))), "one-hot")
    for i in range(repeats):
        rng = np.random.default_rng([8, i])
        exact = Evidence.from_data(_levels_apart(rng, 4000), chosen)
        p = exact.d + 1
        draw = rng.normal(size=(p, p)) * sigma
        error = (draw + draw.T) / 2
        error[np.diag_indices(p)] = rng.normal(size=p) * sigma
        moments = exact.moments + torch.from_numpy(error)
        for into, told in ((found, sigma), (unaware, 0.0)):
            into.append(_ask(Evidence(exact.names, moments, told, blocks=exact.blocks), "j", "x", "k"))
    assert _rejected(found, 0.05) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / repeats)
    assert _rejected(unaware, 0.05) > 0.3


def test_a_parabola_is_found_by_numbers_or_missed_by_waves() -> None:
    rng = np.random.default_rng(9)
    x = rng.normal(size=1000)
    frame = pd.DataFrame({"x": x, "y": x**2 + rng.normal(size=1000), "z": rng.normal(size=1000)})
    for method in ("pc", "fci", "rfci", "ges", "boss"):
        assert discover(Evidence.from_data(frame), method).skeleton() == frozenset()
        curved = discover(from_data(frame, FeatureMap(variables_of(frame))), method)
        assert curved.skeleton() == {("x", "y")}, method


def test_a_parent_of_levels_without_an_order_is_missed() -> None:
    rng = np.random.default_rng(10)
    k = rng.integers(0, 3, 2000)
    y = np.array([1.0, -1.0, 1.0])[k] + rng.normal(size=2000)
    frame = pd.DataFrame({"k": np.array(["low", "middle", "high"])[k], "y": y, "w": y + rng.normal(size=2000)})
    codes = frame.assign(k=k.astype(float))
    for method in ("pc", "fci", "rfci", "ges", "boss"):
        found = discover(from_data(frame, FeatureMap(variables_of(frame), "one-hot")), method)
        assert found.skeleton() == {("k", "y"), ("w", "y")}, method
        assert discover(Evidence.from_data(codes), method).skeleton() == {("w", "y")}, method


def test_knowledge_is_asked_after_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    answers = BlockTests.answers
    monkeypatch.setattr(BlockTests, "answers", lambda self, qs: asked.extend(qs) or answers(self, qs))
    evidence = from_data(_table(np.random.default_rng(11), 300), FeatureMap(MIXED, "one-hot"))
    known = Knowledge(frozenset({("k", "x")}), frozenset({("b", "n"), ("n", "b")}))
    graph = search(evidence, "pc", known).graph
    assert ("k", "x") in graph.directed
    assert asked
    assert not {("k", "x"), ("b", "n")} & {pair for pair, _ in asked}


def test_a_p_value_is_lost_to_underflow() -> None:
    for df in (1, 2, 9, 25):
        at = torch.tensor([0.1, 5.0, 60.0, 900.0, 1180.0, 1300.0, 1e5])
        found = normal(at.double(), df).tolist()
        assert found == sorted(found)
        assert 2 * norm.sf(found[1]) == pytest.approx(chi2.sf(5.0, df), rel=1e-9)
        assert found[-1] == pytest.approx(math.sqrt(1e5), rel=0.01)
    assert normal(torch.tensor([4.0, math.inf], dtype=torch.float64), 1).tolist() == [pytest.approx(2.0), math.inf]


def test_evidence_of_blocks_is_taken_for_numbers() -> None:
    evidence = from_data(_table(np.random.default_rng(12), 300), FeatureMap(MIXED, "one-hot"))
    assert evidence.select(["b", "x"]).blocks == ()
    assert evidence.select(["k", "x"]).blocks == (3, 1)
    assert list(evidence.columns("k")) == [3, 4, 5]
    with pytest.raises(MisuseError, match="'k' has 3 columns"):
        partial(evidence, "k", "x")
    with pytest.raises(ConfigurationError, match=r"\(1, 0\) columns"):
        Evidence(("a", "b"), torch.eye(2, dtype=torch.float64), blocks=(1, 0))


def _bad(change: dict[str, Any]) -> pd.DataFrame:
    return _table(np.random.default_rng(13), 60).assign(**change)


@pytest.mark.parametrize(("frame", "words"), [
    (_bad({"x": 3.5}), "constant at 3.5"),
    (_bad({"k": "r"}), "No row of 60 has level 's'"),
    (_bad({"k": ["z"] + ["r"] * 59}), r"holds \['z'\], and its levels are \['r', 's', 't', 'u'\]"),
    (_bad({"x": np.nan}), "missing or infinite"),
    (_bad({"k": [None] + ["r"] * 59}), "missing values"),
    (_bad({"n": -1}), "log1p takes more than -1"),
    (_bad({}).drop(columns="k"), "'k' is missing"),
    (_bad({})[:24], "24 rows make 46 columns of features: give more than 47"),
])  # fmt: skip
def test_rows_that_make_no_features(frame: pd.DataFrame, words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_data(frame, FeatureMap(MIXED))


@pytest.mark.parametrize(("options", "words"), [
    ({"features": "spline"}, "identity, one-hot, fourier"),
    ({"features": "identity"}, "'k' is categorical"),
    ({"waves": 0}, "waves is 0"),
    ({"width": 0.0}, "width 0.0"),
    ({"clip": 1.0}, r"must lie in \(1, "),
    ({"clip": 99.0}, r"must lie in \(1, "),
    ({"variables": (Variable("k", "categorical", levels=("r",)),)}, "two or more"),
    ({"variables": (Variable("k", "categorical", levels=("r", "r")),)}, "each once"),
])  # fmt: skip
def test_a_map_that_is_none(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        FeatureMap(**{"variables": MIXED, **options})


def test_blocks_that_determine_each_other() -> None:
    frame = _table(np.random.default_rng(14), 200)
    frame["twin"] = frame["k"]
    evidence = from_data(
        frame, FeatureMap((*MIXED, Variable("twin", "categorical", levels=MIXED[3].levels)), "one-hot")
    )
    for method in ("pc", "fci", "ges", "boss"):
        with pytest.raises(DataError, match="linearly dependent"):
            discover(evidence, method)
    few = Evidence(("a", "b"), torch.eye(5, dtype=torch.float64) * 5, blocks=(2, 2))
    with pytest.raises(DataError, match="5 records for 4 columns"):
        discover(few, "pc")
    drowned = Evidence(("a", "b"), torch.eye(5, dtype=torch.float64) * 100, 99.0, blocks=(2, 2))
    with pytest.raises(DataError, match="'a' is drowned in the noise of 99"):
        discover(drowned, "boss")


def test_parts_made_by_a_map_lose_their_blocks_or_add_to_those_of_another() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=300), "b": rng.choice(["x", "y", "z"], 300)})
    chosen = FeatureMap(variables_of(frame), "one-hot")
    clipped = [Evidence.from_data(part, chosen) for part in (frame[:100], frame[100:])]
    whole = Evidence.from_data(frame, chosen)
    added = add(clipped)
    assert added.blocks == whole.blocks
    assert torch.allclose(added.moments, whole.moments)
    waves = Evidence.from_data(frame, FeatureMap(variables_of(frame)))
    with pytest.raises(MisuseError, match="different feature maps does not add"):
        add([whole, waves])


LEVELLED = (
    Variable("k", "categorical", levels=("a", "b", "c", "d")),
    Variable("x", bounds=(-3, 5)),
    Variable("flag", "binary", bounds=(0, 1)),
)


def _levelled(rng: np.random.Generator, n: int) -> pd.DataFrame:
    words = np.array(["a", "b", "c", "d"], object)[rng.integers(0, 4, n)]
    return pd.DataFrame({"k": words, "x": rng.normal(1, 1, n), "flag": rng.integers(0, 2, n).astype(float)})


def test_numbers_keep_their_unit_among_features() -> None:
    fourier = FeatureMap(LEVELLED, "fourier", waves=4)
    assert fourier.half.tolist() == [1.0, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    assert fourier.centre.tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.5]
    frame = _levelled(np.random.default_rng(0), 800)
    plain = fourier.plain(Evidence.from_data(frame, fourier))
    one_hot = Evidence.from_data(frame, FeatureMap(LEVELLED, "one-hot"))
    assert plain.blocks == one_hot.blocks == (3, 1, 1)
    torch.testing.assert_close(plain.moments, one_hot.moments)
    assert torch.equal(plain.half, one_hot.half)
    with pytest.raises(ConfigurationError, match="linear"):
        FeatureMap(LEVELLED, "fourier", linear=False).plain(one_hot)


@pytest.mark.parametrize("features", ["one-hot", "fourier"])
@pytest.mark.parametrize("clip", [math.inf, 2.2])
def test_evidence_of_records_is_possible_whatever_the_noise(features: Features, clip: float) -> None:
    chosen = FeatureMap(LEVELLED, features, waves=4, clip=clip)
    rng = np.random.default_rng(1)
    for seed in range(count(20, 400)):
        frame = _levelled(np.random.default_rng(seed), 300)
        sigma = float(rng.choice([0, 1, 30, 300]))
        exact = Evidence.from_data(frame, chosen)
        drawn = torch.from_numpy(rng.normal(size=exact.moments.shape)) * sigma / math.sqrt(2)
        upper = torch.triu(drawn, 1)
        moments = exact.moments + upper + upper.T + torch.diag(drawn.diagonal() * math.sqrt(2))
        moments[0, 0] = moments[0, 0].clamp_min(1)
        assert chosen.impossible(replace(exact, moments=moments, noise=sigma)) == ""


def test_evidence_that_no_record_makes_is_told_from_noise() -> None:
    chosen = FeatureMap(LEVELLED, "fourier", waves=4)
    exact = replace(Evidence.from_data(_levelled(np.random.default_rng(2), 2000), chosen), noise=20.0)
    assert chosen.impossible(exact) == ""
    lies = {
        "two levels": ((1, 2), 300.0), "differs from its square": ((3, 3), 400.0), "another norm": ((5, 5), -500.0),
        "is negative": ((0, 2), -1000.0), "exceeds its bounds": ((9, 9), 800.0),
    }  # fmt: skip
    for said, ((i, j), by) in lies.items():
        moments = exact.moments.clone()
        moments[i, j] += by
        moments[j, i] = moments[i, j]
        found = chosen.impossible(replace(exact, moments=moments))
        assert found, said
        assert said in found or said == "is negative"
    many = exact.moments.clone()
    for cell in (1, 2, 3):
        many[0, cell] += 400
        many[cell, 0] = many[0, cell]
        many[cell, cell] += 400
    assert "exceed the records" in chosen.impossible(replace(exact, moments=many))


def test_a_clip_that_shortens_every_record_is_known_from_the_map() -> None:
    assert FeatureMap(LEVELLED, "fourier", waves=4).least == 2.0
    assert FeatureMap(LEVELLED, "one-hot").least == 1.0
