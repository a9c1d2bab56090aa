"""Structural models against algebra written out elsewhere, and against what do() and abduction mean."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch

from causaldao.errors import DataError, MisuseError
from causaldao.models.fitting import Training, fit
from causaldao.models.graph import CausalGraph
from causaldao.models.intervention import Intervention, Law, Set, Shift
from causaldao.models.structural import StructuralModel
from tests.models.structural_models import GRAPH, NAMES, SLOPES, SPREAD, algebra, bits, line

# every kind of mechanism, below causes of several kinds
KINDS = {
    "root": "additive", "flag": "categorical", "add": "additive", "scale": "heteroscedastic", "bend": "flow",
    "level": "categorical", "many": "negative-binomial", "few": "poisson", "end": "linear",
}  # fmt: skip
ARROWS = [
    ("root", "add"), ("flag", "add"), ("add", "scale"), ("scale", "bend"), ("root", "level"), ("level", "many"),
    ("add", "many"), ("root", "few"), ("flag", "few"), ("bend", "end"), ("level", "end"),
]  # fmt: skip
ZEROS = torch.zeros(1, 4, dtype=torch.float64)
INVERTIBLE = ("root", "add", "scale", "bend", "end")


def table(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    root, flag = rng.normal(size=n), (rng.random(n) < 0.4).astype(float)
    add = np.sin(root) + flag + 0.4 * rng.normal(size=n)
    scale = add + (0.3 + 0.2 * add**2) * rng.normal(size=n)
    bend = 0.5 * scale + np.sinh(rng.normal(size=n))
    level = np.argmax(np.stack([0 * root, root, -root]) + rng.gumbel(size=(3, n)), 0) * 2.0 - 1
    many = rng.poisson(np.exp(0.4 * level + 0.3 * add) * rng.gamma(2.0, 0.5, n)).astype(float)
    few = rng.poisson(np.exp(0.5 * root - flag)).astype(float)
    end = bend - level + 0.5 * rng.normal(size=n)
    return pd.DataFrame(
        {
            "root": root,
            "flag": flag,
            "add": add,
            "scale": scale,
            "bend": bend,
            "level": level,
            "many": many,
            "few": few,
            "end": end,
        }
    )


@pytest.fixture(scope="module")
def mixed() -> StructuralModel:
    graph = CausalGraph.dag(ARROWS)
    return fit(table(800), graph, KINDS, generator=generator(), training=Training(hidden=6, epochs=3, steps=20)).model


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(frame: pd.DataFrame, model: StructuralModel) -> torch.Tensor:
    return torch.from_numpy(frame[list(model.names)].to_numpy(dtype=np.float64, copy=True))


def column(rows: torch.Tensor, model: StructuralModel, name: str) -> torch.Tensor:
    return rows[:, model.names.index(name)]


@pytest.mark.parametrize(
    ("do", "shift"),
    [
        ({}, {}),
        ({"x": 1.0}, {}),
        ({}, {"x": 2.0}),
        ({"m": -3.0}, {"z": 1.0}),
        ({"z": 0.0, "y": 5.0}, {"m": 2.0, "w": -1.0}),
    ],
    ids=str,
)
def test_moments_and_samples_of_a_line_are_not_those_of_matrix_algebra(
    do: dict[str, float], shift: dict[str, float]
) -> None:
    act = Intervention.set(**do) | Intervention.shift(**shift)
    mean, covariance = algebra(do, shift)
    found = line().moments(act)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-10, atol=1e-10)
    assert not found.error.any()
    per_row = {name: Set(torch.full((20_000,), value)) for name, value in do.items()}
    by_row = Intervention({**per_row, **{name: Shift(value) for name, value in shift.items()}})
    for rows in (
        line().sample(20_000, act, generator()),
        line().sample(20_000, by_row, generator(1)),
    ):  # closed, solved
        error = np.sqrt(covariance.diagonal() / 20_000)
        np.testing.assert_array_less(np.abs(rows.numpy().mean(0) - mean), 5 * error + 1e-9)
        spread = np.sqrt(covariance.diagonal())
        np.testing.assert_array_less(np.abs(np.cov(rows.T) - covariance), 0.05 * np.outer(spread, spread) + 1e-9)


@pytest.mark.parametrize("by_row", [False, True])
def test_a_counterfactual_of_a_line_is_not_that_of_algebra(by_row: bool) -> None:
    rows = line().sample(200, None, generator())
    delta = torch.linspace(-2, 2, 200).double() if by_row else torch.full((200,), 1.5).double()
    value = delta - rows[:, NAMES.index("x")] * 0 + 40
    act = Intervention.set(x=value if by_row else 41.5) | Intervention.shift(y=delta if by_row else 1.5)
    changed = line().counterfactual(rows, act)
    dx = value - rows[:, NAMES.index("x")]
    dm = SLOPES["x", "m"] * dx
    dy = SLOPES["m", "y"] * dm + delta
    expected = {"z": 0 * dx, "x": dx, "m": dm, "y": dy, "w": SLOPES["y", "w"] * dy}
    for j, name in enumerate(NAMES):
        assert torch.allclose(changed[:, j] - rows[:, j], expected[name], atol=1e-9), name
    assert torch.equal(changed[:, NAMES.index("z")], rows[:, NAMES.index("z")])


def test_nothing_done_changes_a_row(mixed: StructuralModel) -> None:
    rows = rows_of(table(300, 1), mixed)
    assert torch.equal(mixed.counterfactual(rows, None, generator()), rows)
    same = Intervention.set(add=column(rows, mixed, "add"))  # an action that does what was
    assert torch.equal(mixed.counterfactual(rows, same, generator()), rows)


def test_abduction_and_prediction_lose_the_row(mixed: StructuralModel) -> None:
    """Not by the rule that what no action moves stays: noise is recovered, and the equations are solved with it."""
    rows = rows_of(table(300, 1), mixed)
    solved = mixed.solve(mixed.noise(rows, generator()), None)
    for j, name in enumerate(mixed.names):
        if name in INVERTIBLE:
            assert torch.allclose(solved[j], rows[:, j], rtol=1e-5, atol=1e-5), name
        else:
            assert float((solved[j] == rows[:, j]).double().mean()) > 0.99, name  # rounding, where a parent is a number


def test_abducted_noise_is_not_noise_of_the_model(mixed: StructuralModel) -> None:
    """Drawn rows give back noise of the same law: uniform scores, Gumbel maxima that are Gumbel again."""
    rows = mixed.sample(4000, None, generator())
    for name, noise in zip(mixed.names, mixed.noise(rows, generator(1)), strict=True):
        if mixed.kinds[name] == "categorical":
            uniform = torch.exp(-torch.exp(-noise.flatten()))
        else:
            uniform = torch.special.ndtr(noise.flatten())
        ordered, n = uniform.sort().values, uniform.numel()
        distance = float((ordered - (torch.arange(n) + 0.5) / n).abs().max())  # Kolmogorov-Smirnov
        assert distance < 2.2 / 4000**0.5, (name, distance)  # by chance in one of 8,000


def test_do_moves_what_does_not_descend(mixed: StructuralModel) -> None:
    rows = rows_of(table(200, 1), mixed)
    for name in mixed.names:
        value = mixed.columns[mixed.names.index(name)].high
        changed = mixed.counterfactual(rows, {name: value}, generator())
        moved = {
            other for other in mixed.names if not torch.equal(column(changed, mixed, other), column(rows, mixed, other))
        }
        assert moved <= mixed.graph.descendants(name)
        assert moved >= {name}
        assert (column(changed, mixed, name) == value).all()


def test_do_leaves_an_edge_into_its_node_or_cuts_another(mixed: StructuralModel) -> None:
    """With one noise, do(add) makes add independent of root, while root still moves level and few."""
    noise = mixed.draw(500, generator())
    plain, held = mixed.solve(noise, None), mixed.solve(noise, {"add": 1.0})
    both = mixed.solve(noise, {"add": 1.0, "root": 2.0})
    place = {name: j for j, name in enumerate(mixed.names)}
    assert (held[place["add"]] == 1.0).all()
    for name in ("root", "flag", "level", "few"):  # not below add
        assert torch.equal(held[place[name]], plain[place[name]]), name
    assert torch.equal(both[place["scale"]], held[place["scale"]])  # root reached it by add alone
    assert not torch.equal(both[place["few"]], held[place["few"]])
    assert not torch.equal(held[place["scale"]], plain[place["scale"]])


def test_chunks_make_other_rows(mixed: StructuralModel, monkeypatch: pytest.MonkeyPatch) -> None:
    act = Intervention.set(root=torch.linspace(-1, 1, 300).double()) | Intervention.shift(add=0.5)
    noise, rows = mixed.draw(300, generator()), rows_of(table(300, 1), mixed)
    whole = mixed.solve(noise, act)
    below = {"bend": 0.3}  # below it nothing is drawn
    changed = mixed.counterfactual(rows, below, generator())
    monkeypatch.setattr("causaldao.models.structural._ROWS", 64)
    assert torch.allclose(mixed.solve(noise, act), whole, rtol=1e-5, atol=1e-5)
    assert torch.allclose(mixed.counterfactual(rows, below, generator()), changed, rtol=1e-5, atol=1e-5)


def test_a_replaced_mechanism_keeps_its_parents_or_its_law() -> None:
    law = Law(("w",), lambda columns, noise: 2 * columns["w"] + 3 * noise)  # of m; w no longer follows from it
    act = Intervention.replace(m=law, y=Law.normal(7.0, 2.0))
    rows = line().sample(20_000, act, generator())
    y, m, w = (rows[:, NAMES.index(name)] for name in ("y", "m", "w"))
    assert float(y.mean()) == pytest.approx(7.0, abs=0.08)
    assert float(y.std()) == pytest.approx(2.0, abs=0.06)
    assert float((m - 2 * w).std()) == pytest.approx(3.0, abs=0.08)
    assert abs(float(torch.corrcoef(torch.stack([m - 2 * w, w]))[0, 1])) < 0.04


def test_a_mechanism_replaced_by_itself_changes_an_answer(mixed: StructuralModel) -> None:
    noise, rows = mixed.draw(100, generator()), rows_of(table(100, 1), mixed)
    itself = Intervention.replace(**{name: mixed.law(name) for name in ("add", "bend", "level", "end")})
    assert torch.allclose(mixed.solve(noise, itself), mixed.solve(noise, None), rtol=1e-5, atol=1e-5)
    changed = mixed.counterfactual(rows, itself, generator())
    for name in INVERTIBLE:
        assert torch.allclose(column(changed, mixed, name), column(rows, mixed, name), rtol=1e-4, atol=1e-4), name


def test_shifts_that_would_cancel_do_not_cancel(mixed: StructuralModel) -> None:
    rows = rows_of(table(100, 1), mixed)
    there = mixed.counterfactual(rows, Intervention.shift(bend=0.7), generator())
    back = mixed.counterfactual(there, Intervention.shift(bend=-0.7), generator())
    assert torch.allclose(back, rows, atol=1e-4)
    assert torch.allclose(column(there, mixed, "bend"), column(rows, mixed, "bend") + 0.7)


def test_a_model_comes_back_changed_from_its_file(mixed: StructuralModel, tmp_path: Path) -> None:
    for model in (mixed, line(), bits()):
        model.save(tmp_path / "model.safetensors")
        again = StructuralModel.load(tmp_path / "model.safetensors")
        assert (again.graph, again.names, again.columns, again.kinds) == (
            model.graph, model.names, model.columns, model.kinds,
        )  # fmt: skip
        assert torch.equal(again.sample(50, None, generator()), model.sample(50, None, generator()))


def _spoil(tensors: dict[str, Any], meta: dict[str, Any], how: str) -> None:
    changes = {
        "nan": lambda: tensors["2.linear"].__setitem__((0, 0), np.nan),
        "shape": lambda: tensors.__setitem__("2.linear", tensors["2.linear"][:, :-1]),
        "missing": lambda: tensors.pop("centre"),
        "extra": lambda: tensors.__setitem__("more", np.zeros(2)),
        "type": lambda: tensors.__setitem__("half", tensors["half"].astype(np.float32)),
        "scale": lambda: tensors["8.scale"].__setitem__((0, 0), -1.0),
        "noise": lambda: tensors["0.noise"].__setitem__(3, tensors["0.noise"][9]),
        "half": lambda: tensors["half"].__setitem__(0, 0.0),
        "names": lambda: meta.__setitem__("names", ["root", 3]),
        "twice": lambda: meta["names"].__setitem__(0, meta["names"][1]),
        "kind": lambda: meta["kinds"].__setitem__(0, "magic"),
        "kinds": lambda: meta["kinds"].pop(),
        "hidden": lambda: meta["hidden"].__setitem__(0, 10**12),
        "hidden text": lambda: meta["hidden"].__setitem__(0, "6"),
        "levels": lambda: meta["levels"].__setitem__(1, [1.0, 0.0]),
        "levels of a number": lambda: meta["levels"].__setitem__(0, [0.0, 1.0]),
        "levels text": lambda: meta["levels"].__setitem__(1, "01"),
        "cycle": lambda: meta["graph"]["edges"].append({"from": "end", "to": "root", "marks": ["-", ">"]}),
        "no graph": lambda: meta.__setitem__("graph", []),
        "format": lambda: meta.__setitem__("format", "causaldao-neural-scm/1"),
        "key": lambda: meta.__setitem__("code", "print()"),
    }
    changes[how]()


HOSTILE = (
    "nan", "shape", "missing", "extra", "type", "scale", "noise", "half", "names", "twice", "kind", "kinds", "hidden",
    "hidden text", "levels", "levels of a number", "levels text", "cycle", "no graph", "format", "key",
)  # fmt: skip


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_file_is_taken(how: str, mixed: StructuralModel, tmp_path: Path) -> None:
    tensors, meta = copy.deepcopy(mixed.state())
    StructuralModel.from_state(tensors, meta)
    _spoil(tensors, meta, how)
    data = safetensors.numpy.save(tensors, metadata={"model": json.dumps(meta)})
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(DataError):
        StructuralModel.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"x" * 100])
def test_what_is_no_file_of_tensors_is_taken(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(DataError, match="Couldn't read a model"):
        StructuralModel.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        ({"nobody": 1.0}, MisuseError, "nobody"),
        ({"x": float("nan")}, MisuseError, "nan"),
        (Intervention.set(x=torch.zeros(3)), DataError, r"\(3,\)"),
        (Intervention.set(x=torch.full((20,), torch.inf)), DataError, "inf"),
        (Intervention.shift(x=float("inf")), MisuseError, "inf"),
        (Intervention.replace(z=Law(("w",), lambda columns, noise: noise)), MisuseError, "cycle"),
        (Intervention.replace(z=Law(("nobody",), lambda columns, noise: noise)), MisuseError, "nobody"),
        (Intervention.replace(z=Law((), lambda columns, noise: noise[:3])), MisuseError, r"\(3,\)"),
    ],
)
def test_an_action_that_cannot_be_done_is_done(act: Any, error: type[Exception], words: str) -> None:
    model = line()
    with pytest.raises(error, match=words):
        model.sample(20, act, generator())
    with pytest.raises(error, match=words):
        model.counterfactual(torch.zeros(20, 5).double(), act, generator())


def test_two_actions_on_one_variable_pass() -> None:
    with pytest.raises(MisuseError, match="x is acted on twice"):
        Intervention.set(x=1.0) | Intervention.shift(x=1.0)


def test_wrong_rows_pass() -> None:
    with pytest.raises(DataError, match="none of its levels 0, 1"):
        bits().counterfactual(torch.full((1, 4), 0.5).double(), {"a": 1.0}, generator())
    for ask in (
        lambda act: bits().sample(5, act, generator()),
        lambda act: bits().counterfactual(ZEROS, act, generator()),
    ):
        with pytest.raises(DataError, match="b = 2 is none of its levels 0, 1"):
            ask({"b": 2.0})
        with pytest.raises(DataError, match=r"b = 0\.3 is none of its levels"):
            ask(Intervention.replace(b=Law((), lambda columns, noise: 0 * noise[0] + 0.3)))
    with pytest.raises(DataError, match="nan"):
        line().counterfactual(torch.full((1, 5), torch.nan), {"x": 1.0})
    with pytest.raises(MisuseError, match=r"noise of b, c, d: give a generator"):
        bits().counterfactual(ZEROS, {"a": 1.0})
    with pytest.raises(MisuseError, match="n=0 rows"):
        line().sample(0, None, generator())
    with pytest.raises(MisuseError, match="category, which cannot be shifted"):
        bits().sample(5, Intervention.shift(a=1.0), generator())
    with pytest.raises(MisuseError, match="no closed form"):
        bits().moments({"a": 1.0})


def test_the_model_by_hand_is_another() -> None:
    """The hand-made line is what the tests take it for: its noise has the spread that is written down."""
    rows = line().sample(20_000, None, generator())
    for j, name in enumerate(NAMES):
        left = rows[:, j] - sum(
            (slope * rows[:, NAMES.index(cause)] for (cause, effect), slope in SLOPES.items() if effect == name),
            torch.zeros(len(rows)).double(),
        )
        assert float(left.std()) == pytest.approx(SPREAD[j], rel=0.03)
    assert line().graph == GRAPH
