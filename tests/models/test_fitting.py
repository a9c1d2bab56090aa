"""Fitting: planted mechanisms are found, a batch fits what single nodes would, and faults of a table are named."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.errors import DataError, MisuseError
from causaldao.models.design import Design
from causaldao.models.fitting import Training, _averaged, _fit_group, _Task, ensemble, fit, kinds_of, shared_units
from causaldao.models.graph import CausalGraph
from causaldao.models.mechanisms import KINDS, Size, hidden_start
from tests.models.structural_models import GRAPH as LINE
from tests.models.structural_models import NAMES, SLOPES
from tests.models.structural_models import line as planted_line
from tests.models.test_structural import ARROWS
from tests.models.test_structural import KINDS as MIXED
from tests.models.test_structural import table as mixed_table

PAIR = CausalGraph.dag([("x", "y")])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(kind: str, n: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """(x, y) with y of that kind given x; and the spread that y has given x, as it can be foretold at best."""
    rng = np.random.default_rng(seed)
    x, u = rng.normal(size=n), rng.normal(size=n)
    mean, spread = np.sin(1.5 * x) + 0.3 * x, np.full(n, 0.4)
    if kind == "linear":
        mean = 1.5 * x - 1
    if kind == "heteroscedastic":
        spread = 0.2 + 0.3 / (1 + np.exp(-2 * x))
    if kind == "flow":
        u = np.sinh(u) / 1.8
    y = mean + spread * u
    if kind in ("poisson", "negative-binomial"):
        rate = np.exp(mean)
        mixed = rng.gamma(2.0, 0.5, n) if kind == "negative-binomial" else 1.0
        y, spread = rng.poisson(rate * mixed).astype(float), np.sqrt(rate + rate**2 * 0.5 * (kind != "poisson"))
    if kind == "categorical":
        y = (rng.random(n) < 1 / (1 + np.exp(-3 * mean))).astype(float)
    return pd.DataFrame({"x": x, "y": y}), spread


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_mechanism_is_missed(kind: str) -> None:
    frame, _ = pair(kind, 1500)
    fresh, spread = pair(kind, 4000, 1)
    fitted = fit(frame, PAIR, {"y": kind}, generator=generator())
    values = torch.from_numpy(fresh.to_numpy(copy=True))
    expected = fitted.model.expected(values)["y"].numpy()
    if kind == "categorical":
        truth = 1 / (1 + np.exp(-3 * (np.sin(1.5 * fresh["x"]) + 0.3 * fresh["x"])))
        assert float(np.sqrt(np.mean((expected[1] - truth) ** 2))) < 0.06
    else:
        error = float(np.sqrt(np.mean((expected - fresh["y"]) ** 2)))
        assert error < 1.05 * float(np.sqrt(np.mean(spread**2)))
    drawn = fitted.model.sample(4000, None, generator()).numpy()
    for q in (0.1, 0.5, 0.9):
        near = np.quantile(fresh["y"], (max(q - 0.04, 0), min(q + 0.04, 1)))
        assert near[0] <= np.quantile(drawn[:, 1], q) <= near[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_density_does_not_sum_to_one(kind: str) -> None:
    model = fit(pair(kind, 400)[0], PAIR, {"y": kind}, generator=generator(), training=Training(6, 3, 30)).model
    for x in (-1.5, 0.4):
        if KINDS[kind].domain == "number":
            grid = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
            step = 24 / 48_000
        else:
            grid, step = torch.arange(2 if kind == "categorical" else 200).double(), 1.0
        density = model.log_prob("y", {"x": torch.full_like(grid, x)}, grid).exp()
        assert float(density.sum() * step) == pytest.approx(1.0, abs=2e-3)


def test_a_line_is_not_least_squares() -> None:
    rows = planted_line().sample(3000, None, generator())
    frame = pd.DataFrame(rows.numpy(), columns=list(NAMES))
    model = fit(frame, LINE, "linear", generator=generator()).model
    for j, name in enumerate(NAMES):
        parents = [one for one in NAMES if (one, name) in SLOPES]
        columns = np.column_stack([np.ones(len(frame)), frame[parents]])
        beta, squares = np.linalg.lstsq(columns, frame[name], rcond=None)[:2]
        scales = np.array([model.columns[NAMES.index(one)].half for one in parents])
        slopes = model.nodes[j].params["linear"][0].numpy() * model.columns[j].half / scales
        np.testing.assert_allclose(slopes, beta[1:], rtol=1e-9)
        spread = float(model.nodes[j].params["scale"]) * model.columns[j].half
        assert spread == pytest.approx(math.sqrt(float(squares[0]) / len(frame)), rel=1e-9)


def test_a_batch_fits_other_mechanisms_than_node_by_node() -> None:
    """In double precision, where only the padding could make a difference."""
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 300))
    d = np.sin(a) + b * c + 0.3 * rng.normal(size=300)
    frame = pd.DataFrame({"a": a, "b": a + b, "c": np.tanh(a) + c, "d": d})
    graph = CausalGraph.dag([("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")])
    design = Design(("a", "b", "c", "d"), shared_units(frame))
    rows = torch.from_numpy(frame.to_numpy(copy=True)).T
    for kind in ("additive", "heteroscedastic", "flow"):
        task = _Task(graph, design, ("linear", kind, kind, kind), rows[:, 50:], rows[:, :50], Training(5, 6, 20, 64))
        together = _fit_group(task, [1, 2, 3], range(5))
        for j, (node, epoch) in zip((1, 2, 3), together, strict=True):
            ((alone, epoch_alone),) = _fit_group(task, [j], range(5))
            assert epoch == epoch_alone
            for name, value in node.params.items():
                assert torch.allclose(value, alone.params[name], rtol=2e-3, atol=2e-4), (kind, j, name)


def test_one_seed_gives_two_models() -> None:
    graph, frame = CausalGraph.dag(ARROWS), mixed_table(150)
    first, second, other = (
        fit(frame, graph, MIXED, generator=generator(seed), training=Training(3, 2, 5)).model.state()[0]
        for seed in (0, 0, 1)
    )
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_training_goes_on_to_the_worse() -> None:
    """A table of noise: what is kept is what held-out rows like best, which is next to nothing."""
    rng = np.random.default_rng(0)
    frame, fresh = (pd.DataFrame(rng.normal(size=(n, 5)), columns=list("abcdy")) for n in (60, 4000))
    graph = CausalGraph.dag([(name, "y") for name in "abcd"], list("abcdy"))
    long = Training(hidden=24, epochs=200, held_out=0.3, patience=1.0)
    fitted = fit(frame, graph, generator=generator(), training=long)
    assert fitted.reports[4].epochs < 100
    expected = fitted.model.expected(torch.from_numpy(fresh.to_numpy(copy=True)))["y"].numpy()
    assert float(np.sqrt(np.mean((fresh["y"] - expected) ** 2))) < 1.25  # 1 is the noise; at the end of training 1.6


def test_members_of_an_ensemble_are_one_model() -> None:
    frame = pd.DataFrame(planted_line().sample(400, None, generator()).numpy(), columns=list(NAMES))
    models = ensemble(frame, LINE, "linear", members=40, generator=generator())
    slopes = np.array([float(model.nodes[NAMES.index("w")].params["linear"]) for model in models])
    scale = models[0].columns[NAMES.index("w")].half / models[0].columns[NAMES.index("y")].half
    error = 2.0 / (frame["y"].std() * math.sqrt(400))  # of least squares: the noise of w over the spread of y
    assert 0.6 * error < slopes.std() * scale < 1.6 * error


def test_kinds_are_guessed_wrong() -> None:
    frame = mixed_table(300)
    frame["third"] = np.arange(300) % 3 / 2
    guessed = kinds_of(frame)
    assert guessed == {
        "root": "additive", "flag": "categorical", "add": "additive", "scale": "additive", "bend": "additive",
        "level": "additive", "many": "negative-binomial", "few": "negative-binomial", "end": "additive",
        "third": "additive",
    }  # fmt: skip
    assert kinds_of(frame, "linear")["add"] == "linear"
    with pytest.raises(MisuseError, match="no kind for numbers; those are linear"):
        kinds_of(frame, "poisson")


def _with(name: str, values: object) -> pd.DataFrame:
    frame = pair("additive", 60)[0]
    frame[name] = values
    return frame


@pytest.mark.parametrize(
    ("frame", "kinds", "error", "words"),
    [
        (_with("y", 3.0), None, DataError, "y is 3 in every row"),
        (_with("y", [np.nan, *range(59)]), None, DataError, "y is nan in row 0"),
        (_with("y", ["a"] * 60), "additive", DataError, "y are not numbers"),
        (_with("y", np.arange(60) / 7), {"y": "poisson"}, DataError, "expected counts"),
        (_with("y", np.arange(60) - 3), {"y": "negative-binomial"}, DataError, "value -3"),
        (_with("y", np.arange(60)), {"y": "categorical"}, DataError, "60 levels: expected at most 50"),
        (_with("y", 2 * _with("y", 0)["x"] + 1), {"y": "linear"}, DataError, "residual variance"),
        (_with("y", 0).iloc[:5], None, DataError, "5 rows: expected at least 20"),
        (_with("z", 0.0), None, MisuseError, "z"),
        (_with("y", np.arange(60)), "magic", MisuseError, "magic.*linear, additive"),
        (_with("y", np.arange(60)), {"q": "linear"}, MisuseError, "q; the table has x, y|q, which the table lacks"),
    ],
)  # fmt: skip
def test_a_fault_of_the_table_passes(
    frame: pd.DataFrame, kinds: str | dict[str, str] | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fit(frame, PAIR, kinds, generator=generator())


def test_wrong_settings_pass() -> None:
    for wrong in ({"hidden": 0}, {"held_out": 0.9}, {"rate": 0.0}, {"patience": 0.0}, {"steps": 0}):
        with pytest.raises(MisuseError):
            Training(**wrong)
    with pytest.raises(MisuseError, match="members=1"):
        ensemble(pair("additive", 60)[0], PAIR, members=1, generator=generator())


def test_the_mean_of_networks_is_another_function() -> None:
    made, networks = KINDS["heteroscedastic"], []
    for seed, width in enumerate((3, 3, 2)):
        size = Size(2, width, 0)
        start = hidden_start(size, made.layout(size), generator(seed))
        drawn = {name: torch.randn(start[name].shape, generator=generator(seed)) for name in ("head", "linear", "bias")}
        networks.append({**start, **drawn})
    x = torch.randn(2, 50, generator=generator(9))

    def output(one: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = torch.tanh(one["hidden"] @ x + one["hidden_bias"])
        return one["linear"] @ x + one["bias"] + one["head"] @ hidden

    mean = _averaged(networks)
    assert {name: value.shape for name, value in mean.items()} == made.layout(Size(2, 8, 0))
    torch.testing.assert_close(output(mean), torch.stack([output(one) for one in networks]).mean(0))


def test_hidden_units_are_lost_when_networks_share_them() -> None:
    frame, _ = pair("additive", 200)
    for hidden, networks in ((7, 3), (2, 5), (4, 1)):
        training = Training(hidden, 2, 10, networks=networks)
        node = fit(frame, PAIR, "additive", generator=generator(), training=training).model.nodes[1]
        assert (node.hidden, node.params["hidden"].shape[0]) == (hidden, hidden)
        assert (node.params["head"] != 0).all()
