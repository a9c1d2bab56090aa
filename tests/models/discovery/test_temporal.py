from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.discovery.evidence import Dictionary, Evidence, Variable, add
from causaldao.models.discovery.temporal import Link, Temporal, at, lagged, pcmci, pcmci_plus
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import Knowledge
from causaldao.models.pattern import meek
from causaldao.models.rules import CausalRule
from tests.counts import count
from tests.models.random_models import names, noisy, weights

Lags = list[np.ndarray]


def _process(seed: int, d: int, lags: int, within: bool) -> Lags:
    """[A_0, ..., A_lags], [i, j] of i on j: a stationary process, each variable with its own past."""
    rng = np.random.default_rng(seed)
    while True:
        now = weights(rng, d, 1.5, 0.3, 0.6) if within else np.zeros((d, d))
        past = [
            (rng.random((d, d)) < 0.25) * rng.uniform(0.2, 0.4, (d, d)) * rng.choice([-1, 1], (d, d))
            for _ in range(lags)
        ]
        np.fill_diagonal(past[0], rng.uniform(0.3, 0.7, d))
        if np.abs(np.linalg.eigvals(_companion([now, *past])[0])).max() < 0.95:
            return [now, *past]


def _companion(process: Lags) -> tuple[np.ndarray, np.ndarray]:
    """(transition, mixing) of the stacked state (z_t, ..., z_{t-lags+1}): state' = transition state + mixing e."""
    d, lags = len(process[0]), len(process) - 1
    solve = np.linalg.inv(np.eye(d) - process[0]).T
    transition = np.eye(d * lags, k=-d)
    transition[:d] = np.concatenate([solve @ a.T for a in process[1:]], axis=1)
    mixing = np.zeros((d * lags, d))
    mixing[:d] = solve
    return transition, mixing


def _population(process: Lags, lags: int) -> Evidence:
    """The evidence of windows of lags + 1 steps with the moments of the process exactly, of so many that a nearly
    cancelled path is not taken for none.
    """
    records = 1e13
    d = len(process[0])
    transition, mixing = _companion(process)
    state = solve_discrete_lyapunov(transition, mixing @ mixing.T)
    auto, power = [], state
    for _ in range(lags + 1):
        auto.append(power[:d, :d])  # E z_{t+k} z_tᵀ
        power = transition @ power
    blocks = [[auto[b - a] if b >= a else auto[a - b].T for b in range(lags + 1)] for a in range(lags + 1)]
    covariance = np.block(blocks)
    scale = covariance.diagonal() ** -0.5
    moments = np.zeros((len(covariance) + 1,) * 2)
    moments[0, 0], moments[1:, 1:] = records, records * covariance * np.outer(scale, scale)
    return Evidence(tuple(at(n, lag) for lag in range(lags + 1) for n in names(d)), torch.from_numpy(moments))


def _edges(process: Lags) -> list[tuple[str, str]]:
    labels = names(len(process[0]))
    return [
        (at(labels[i], k), at(labels[j])) for k, a in enumerate(process) for i, j in zip(*np.nonzero(a), strict=True)
    ]


def _rows(process: Lags, n: int, seed: int) -> pd.DataFrame:
    rng, d, lags = np.random.default_rng(seed), len(process[0]), len(process) - 1
    transition, mixing = _companion(process)
    state, rows = np.zeros(d * lags), np.empty((n + 200, d))
    for t, draw in enumerate(rng.normal(size=(n + 200, d))):
        state = transition @ state + mixing @ draw
        rows[t] = state[:d]
    return pd.DataFrame(rows[200:], columns=names(d))


def _run_of_ten(n: int, seed: int) -> pd.DataFrame:
    """x acts on y at lags 3 to 12, by .25 each; x, y and the bystander z each carry half of their last value on."""
    process = [np.zeros((3, 3)) for _ in range(13)]
    process[1] = np.eye(3) / 2
    for lag in range(3, 13):
        process[lag][0, 1] = 0.25
    return _rows(process, n, seed).set_axis(["x", "y", "z"], axis=1)


def test_a_planted_lag_of_3_that_lasts_10_comes_out_as_that_rule_and_no_other() -> None:
    wrong, seeds = 0, count(3, 60)
    for seed in range(seeds):
        found = pcmci(lagged(_run_of_ten(2000, seed), 28), correction="bonferroni").rules()
        slots = {(rule.cause, rule.effect, rule.offset, rule.duration) for rule in found}
        wrong += slots != {("x", "y", 3, 10), *((name, name, 1, 1) for name in "xyz")}
    assert wrong <= seeds // 20, "the whole family of tests is wrong in 1 % of runs"


def test_the_population_gives_the_true_lagged_links() -> None:
    for seed in range(count(8, 100)):
        process = _process(seed, 4, 3, within=False)
        found = pcmci(_population(process, 8), alpha=1e-6)
        assert found.graph == CausalGraph.dag(_edges(process), found.graph.nodes), seed


def test_the_population_gives_the_true_class_with_effects_within_a_step() -> None:
    directed = 0
    for seed in range(count(8, 100)):
        process = _process(seed, 4, 2, within=True)
        found = pcmci_plus(_population(process, 4), alpha=1e-6)
        dag = CausalGraph.dag(_edges(process), found.graph.nodes)
        arrows = {(end, c) for a, c, b in dag.unshielded_colliders() for end in (a, b)}
        arrows |= {pair for pair in dag.directed if not pair[0].endswith("[t]")}
        lines = [pair for pair in dag.skeleton() if pair not in arrows and pair[::-1] not in arrows]
        assert found.graph == meek(CausalGraph.cpdag(arrows, lines, dag.nodes)), seed
        assert not found.conflicts
        directed += sum(link.lag == 0 for link in found.links)
    assert directed


def test_in_independent_autocorrelated_series_links_are_found_at_the_level() -> None:
    alpha, wrong, naive, tests = 0.05, 0, 0, 0
    for seed in range(count(12, 150)):
        process = [np.zeros((4, 4)), 0.9 * np.eye(4)]
        evidence = lagged(_rows(process, 400, seed), 4)
        found = pcmci(evidence, alpha, "none")
        wrong += sum(link.cause != link.effect for link in found.links)
        tests += 4 * 3 * 2
        correlation = evidence.correlation()
        naive += int((correlation[:4, 4:12].atanh().abs() * 400**0.5 > 1.96).sum())
    assert abs(wrong / tests - alpha) < 4 * (alpha * (1 - alpha) / tests) ** 0.5
    assert naive / tests > 0.3, "plain correlations of such series are far above their level"


def test_bonferroni_bounds_the_chance_of_any_false_link_and_fdr_the_share() -> None:
    runs, any_false, found_, false = count(24, 300), 0, 0, 0
    process = [np.zeros((4, 4)), 0.8 * np.eye(4)]
    process[1][0, 1] = process[1][2, 3] = 0.3
    truth = {(*pair, 1) for pair in [(n, n) for n in names(4)] + [("v00", "v01"), ("v02", "v03")]}
    for seed in range(runs):
        evidence = lagged(_rows(process, 400, seed), 4)
        strict, lenient = pcmci(evidence, 0.1, "bonferroni"), pcmci(evidence, 0.1, "fdr")
        any_false += any((link.cause, link.effect, link.lag) not in truth for link in strict.links)
        found_ += len(lenient.links)
        false += sum((link.cause, link.effect, link.lag) not in truth for link in lenient.links)
        assert set(strict.graph.edges) <= set(lenient.graph.edges)
    assert any_false / runs < 0.1 + 3 * (0.09 / runs) ** 0.5
    assert false / found_ < 0.1 + 3 * (0.09 / found_) ** 0.5


def test_windows_cross_neither_series_nor_gaps() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(30, 2)), columns=["a", "b"])
    frame["who"] = ["p"] * 12 + ["q"] * 18
    frame["day"] = [*range(5), *range(8, 15), *range(18)]
    evidence = lagged(frame, 2, series="who", time="day")
    z = (frame[["a", "b"]] - frame[["a", "b"]].mean()) / frame[["a", "b"]].std(ddof=0)
    runs = [range(5), range(5, 12), range(12, 30)]
    windows = [[1, *z.loc[t], *z.loc[t - 1], *z.loc[t - 2]] for run in runs for t in run[2:]]
    assert evidence.names == ("a[t]", "b[t]", "a[t-1]", "b[t-1]", "a[t-2]", "b[t-2]")
    assert evidence.count == 3 + 5 + 16
    assert evidence.moments.numpy() == pytest.approx(np.array(windows).T @ np.array(windows))
    assert lagged(frame.drop(columns="day"), 2, series="who").count == 10 + 16


def test_moments_of_institutions_add_to_those_of_all_series() -> None:
    process = _process(5, 3, 2, within=False)
    parts = [_rows(process, 300 + 50 * k, k) for k in range(4)]
    whole = pd.concat([part.assign(site=k) for k, part in enumerate(parts)], ignore_index=True)
    one, added = lagged(whole, 4, series="site"), add([lagged(part, 4) for part in parts])
    assert added.count == one.count == sum(len(part) - 4 for part in parts)
    assert added.correlation().numpy() == pytest.approx(one.correlation().numpy())
    assert pcmci(added).graph == pcmci(one).graph
    variables = tuple(Variable(name, bounds=(-8, 8)) for name in names(3))
    public = Dictionary(variables, clip=4.0)
    summed = add([lagged(part, 4, dictionary=public) for part in parts])
    assert summed.moments.numpy() == pytest.approx(lagged(whole, 4, series="site", dictionary=public).moments.numpy())


def test_noise_in_the_moments_is_counted_by_every_test() -> None:
    rng, false, tests = np.random.default_rng(0), 0, 0
    for seed in range(count(12, 100)):
        process = [np.zeros((3, 3)), 0.7 * np.eye(3)]
        evidence = noisy(lagged(_rows(process, 1000, seed), 4), 20.0, rng)
        found = pcmci(evidence, 0.05, "none")
        false += sum(link.cause != link.effect for link in found.links)
        tests += 3 * 2 * 2
    assert false / tests < 0.05 + 4 * (0.0475 / tests) ** 0.5


@pytest.mark.parametrize("method", [pcmci, pcmci_plus])
def test_a_forbidden_link_is_never_there_and_a_required_one_always(method: object) -> None:
    assert callable(method)
    process = _process(1, 3, 2, within=False)
    evidence = lagged(_rows(process, 800, 1), 4)
    free = method(evidence).graph.directed
    forbidden = frozenset(free)
    required = {(at("v00", 2), at("v01"))} - forbidden or {(at("v02", 2), at("v01"))}
    found = method(evidence, knowledge=Knowledge(required, forbidden))
    assert free
    assert found.graph.directed.isdisjoint(forbidden)
    assert required <= found.graph.directed
    assert all(node.endswith("[t]") for _, node in found.graph.directed)


def test_nothing_later_causes_anything_earlier() -> None:
    found = pcmci_plus(lagged(_rows(_process(2, 3, 2, within=True), 500, 2), 4), alpha=0.2)
    assert all(b.endswith("[t]") for edge in found.graph.edges for b in [edge.b])
    assert all(link.lag >= 0 for link in found.links)


def test_runs_of_lags_become_rules_and_end_where_the_sign_turns_or_a_lag_is_missing() -> None:
    links = [("x", "y", 3, 0.2), ("x", "y", 4, 0.5), ("x", "y", 5, -0.1), ("x", "y", 7, -0.3), ("x", "z", 8, 0.1)]
    found = Temporal(CausalGraph.dag((), ["n"]), tuple(Link(*link, 0.0) for link in links)).rules()
    assert set(found) == {
        CausalRule("x", "y", 0.5, 3, 2),
        CausalRule("x", "y", -0.1, 5, 1),
        CausalRule("x", "y", -0.3, 7, 1),
        CausalRule("x", "z", 0.1, 8, 1),
    }


def test_what_cannot_be_used_is_refused() -> None:
    frame = _rows(_process(0, 3, 1, within=False), 60, 0)
    evidence = lagged(frame, 4)
    with pytest.raises(MisuseError, match="lags is 0"):
        lagged(frame, 0)
    with pytest.raises(DataError, match="longest unbroken run has 60"):
        lagged(frame, 60)
    with pytest.raises(DataError, match="stand apart"):
        lagged(frame.assign(who=[0, 1, 2] * 20), 2, series="who")
    with pytest.raises(DataError, match="do not rise"):
        lagged(frame.assign(day=[*range(30), *range(30)]), 2, time="day")
    with pytest.raises(DataError, match="whole numbers"):
        lagged(frame.assign(day=np.arange(60) + 0.5), 2, time="day")
    with pytest.raises(DataError, match="'day' is missing"):
        lagged(frame, 2, time="day")
    with pytest.raises(DataError, match="constant"):
        lagged(frame.assign(v00=1.0), 2)
    with pytest.raises(DataError, match="missing or infinite"):
        lagged(frame.assign(v00=np.inf), 2)
    with pytest.raises(DataError, match=r"40 windows of 63 columns"):
        pcmci(lagged(frame, 20))
    with pytest.raises(MisuseError, match=r"reaches 4 steps back. Give 1 to 2"):
        pcmci(evidence, lags=3)
    with pytest.raises(MisuseError, match=r"alpha is 1"):
        pcmci_plus(evidence, alpha=1.0)
    odd: Any = "holm"  # what a caller without types may pass
    with pytest.raises(MisuseError, match="correction is 'holm'"):
        pcmci(evidence, correction=odd)
    with pytest.raises(MisuseError, match="'v00' is no node of a window"):
        pcmci(Evidence.from_data(frame))
    with pytest.raises(MisuseError, match=r"lack v00\[t-1\]"):
        pcmci(evidence.select([name for name in evidence.names if name != "v00[t-1]"]))
    with pytest.raises(ConfigurationError, match="unknown"):
        pcmci(evidence, knowledge=Knowledge(forbidden={("v00", "v01")}))
    with pytest.raises(ConfigurationError, match="Require edges into t only"):
        pcmci(evidence, knowledge=Knowledge({("v00[t-2]", "v01[t-1]")}))
    copied = frame.assign(copy=frame["v00"].shift(1, fill_value=0.0))
    with pytest.raises(DataError, match="linearly dependent"):
        pcmci(lagged(copied, 4))
