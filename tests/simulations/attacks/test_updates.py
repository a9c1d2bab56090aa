"""Attacks that are not those of their papers, that change with the wind, or that a fixed strength would beat."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from causaldao.aggregation import aggregate
from causaldao.errors import MisuseError
from causaldao.simulations.attacks.updates import CRAFTS, Sight, alie_strength

FAULTY = 2
KEEPS_FINITE = [name for name in CRAFTS if name not in ("nan", "inf")]


def mean(rows: Tensor) -> Tensor:
    return rows.mean(dim=0)


def ruled(rule: str, faulty: int = FAULTY) -> Callable[[Tensor], Tensor]:
    return lambda rows: aggregate(rows, rule, faulty).vector.to(rows.dtype)


def seen(
    honest: Tensor | None = None, pipeline: Callable[[Tensor], Tensor] = mean, *, seed: int = 0, **known: Tensor
) -> Sight:
    rows = torch.randn(8, 30, generator=torch.Generator().manual_seed(5)) + 1 if honest is None else honest
    return Sight(
        rows, FAULTY, pipeline, torch.Generator().manual_seed(seed), own=known.get("own"), last=known.get("last")
    )


PAIR = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0], [2.0, -3.0]])  # mean (2, 0)


@pytest.mark.parametrize("name", CRAFTS)
def test_an_attack_sends_another_number_of_rows_or_changes_what_it_sees(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        honest = torch.randn(9, 12, generator=torch.Generator().manual_seed(1), dtype=dtype)
        before = honest.clone()
        rows = CRAFTS[name](seen(honest))
        assert (rows.shape, rows.dtype) == ((FAULTY, 12), dtype)
        assert bool(rows.isfinite().all()) is (name in KEEPS_FINITE)
        assert torch.equal(honest, before)


@pytest.mark.parametrize("name", KEEPS_FINITE)
def test_an_attack_differs_under_the_same_generator(name: str) -> None:
    first, second = CRAFTS[name](seen(seed=3)), CRAFTS[name](seen(seed=3))
    assert torch.equal(first, second)
    drawn = name in ("gaussian", "fang", "clip-history")
    assert not drawn or not torch.equal(first, CRAFTS[name](seen(pipeline=ruled("trimmed-mean"), seed=4)))


@pytest.mark.parametrize("name", CRAFTS)
def test_one_honest_row_or_rows_of_zeros_break_an_attack(name: str) -> None:
    for honest in (torch.ones(1, 4), torch.zeros(5, 4)):
        rows = CRAFTS[name](seen(honest))
        assert rows.shape == (FAULTY, 4)
        assert bool(rows.isfinite().all()) is (name in KEEPS_FINITE)


def test_small_attacks_are_not_what_they_say() -> None:
    centre = PAIR.mean(dim=0)
    assert torch.equal(CRAFTS["sign-flip"](seen(PAIR))[0], -centre)
    assert torch.equal(CRAFTS["zero"](seen(PAIR)), torch.zeros(2, 2))
    assert torch.equal(CRAFTS["foe"](seen(PAIR))[1], torch.tensor([-1.0, -0.0]))
    assert torch.equal(CRAFTS["large-norm"](seen(PAIR))[0], -1e6 * centre)
    assert torch.isnan(CRAFTS["nan"](seen(PAIR))).all()
    assert CRAFTS["inf"](seen(PAIR))[0].tolist() == [-math.inf, math.inf]


def test_gaussian_liars_send_one_row_or_rows_of_another_size() -> None:
    honest = torch.full((8, 5000), 2.0)
    first, second = CRAFTS["gaussian"](seen(honest))
    assert float(first.std()) == pytest.approx(200, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.1


def test_a_little_is_enough_takes_another_quantile() -> None:
    """Baruch et al.'s example: of 50 workers 24 lie; s = 50/2 + 1 - 24 = 2 supporters of 26, so z = Φ⁻¹(24/26)."""
    assert alie_strength(26, 24) == pytest.approx(1.4261, abs=1e-4)
    sight = seen(PAIR)
    expected = PAIR.mean(dim=0) - alie_strength(4, FAULTY) * PAIR.std(dim=0)
    assert torch.allclose(CRAFTS["alie"](sight)[0], expected)


def test_min_max_leaves_its_ball_or_stops_short_of_it() -> None:
    measures: dict[str, Callable[[Tensor], Tensor]] = {
        "min-max": lambda d: d.square().amax(dim=-1),
        "min-sum": lambda d: d.square().sum(dim=-1),
    }
    for name, measure in measures.items():
        sight = seen()
        row = CRAFTS[name](sight)[0].double()
        honest = sight.honest.double()
        allowed = measure(torch.cdist(honest, honest)).max()
        assert float(measure(torch.cdist(row[None], honest))[0]) == pytest.approx(float(allowed), rel=1e-5)


def test_min_max_by_hand() -> None:
    """Two honest rows at ±1 on a line: the ball about each has radius 2, so from the middle it is 1 to its edge."""
    row = CRAFTS["min-max"](seen(torch.tensor([[-1.0, 0.0], [1.0, 0.0]])))[0]
    assert row.abs().tolist() == pytest.approx([1.0, 0.0])


def test_a_mimic_copies_nobody_or_changes_its_victim() -> None:
    honest = torch.randn(6, 20, generator=torch.Generator().manual_seed(2)) * 0.1
    honest[3] += 5
    notes: dict[str, Tensor] = {}
    for scale in (1.0, 0.5, 2.0):
        sight = Sight(scale * honest, FAULTY, mean, torch.Generator(), notes=notes)
        assert torch.equal(CRAFTS["mimic"](sight), (scale * honest[3]).repeat(FAULTY, 1))
    # A single round in which another stands out does not make the liars forget whom they copy.
    other = 0.2 * honest
    other[0] += 1.5
    assert torch.equal(CRAFTS["mimic"](Sight(other, FAULTY, mean, torch.Generator(), notes=notes))[0], other[3])


def test_fang_stays_inside_the_honest_range_where_the_rule_trims() -> None:
    sight = seen(pipeline=ruled("trimmed-mean"))
    rows = CRAFTS["fang"](sight)
    low, high = sight.honest.min(dim=0).values, sight.honest.max(dim=0).values
    outside = torch.where(sight.mean > 0, rows <= low, rows >= high)
    assert bool(outside.all())


def test_fang_is_not_taken_by_krum() -> None:
    """Where honest rows differ by more than they have in common, Krum takes a row against the sign of their mean."""
    for seed in range(5):
        honest = torch.randn(8, 30, generator=torch.Generator().manual_seed(seed)) + 0.1
        sight = seen(honest, ruled("krum"))
        rows = CRAFTS["fang"](sight)
        result = sight.pipeline(torch.cat([honest, rows]))
        assert any(torch.allclose(result, row) for row in rows)
        assert float(torch.sign(sight.mean) @ (sight.mean - result)) > 0


def test_the_drift_is_forgotten_or_clipped() -> None:
    last, notes = torch.full((30,), 1.0), dict[str, Tensor]()
    drifts = []
    for seed in range(3):
        honest = torch.randn(8, 30, generator=torch.Generator().manual_seed(seed)) + 1
        sight = Sight(honest, FAULTY, mean, torch.Generator().manual_seed(seed), last=last, notes=notes)
        row = CRAFTS["clip-history"](sight)[0]
        reach = torch.linalg.vector_norm(row - last)
        assert float(reach) <= float(torch.linalg.vector_norm(honest - last, dim=1).median()) * 1.2
        reference = (sight.mean + last) / 2
        drift = row - reference
        assert abs(float(drift @ reference)) < 1e-3
        drifts.append(drift / torch.linalg.vector_norm(drift))
    assert min(float(drifts[0] @ drifts[1]), float(drifts[1] @ drifts[2])) > 0.9


def test_replacement_does_not_replace_the_mean() -> None:
    target = torch.tensor([[7.0, -2.0], [9.0, -2.0]])
    sight = seen(PAIR, own=target)
    rows = CRAFTS["model-replacement"](sight)
    assert mean(torch.cat([PAIR, rows])).tolist() == pytest.approx([8.0, -2.0], abs=1e-5)
    undone = CRAFTS["model-replacement"](seen(PAIR))
    assert mean(torch.cat([PAIR, undone])).tolist() == pytest.approx([-2.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("rule", ["mean", "trimmed-mean", "multi-krum", "arc+caf"])
@pytest.mark.parametrize("name", ["alie", "foe"])
def test_the_optimised_attack_is_weaker_than_the_fixed(name: str, rule: str) -> None:
    for seed in range(5):
        honest = torch.randn(9, 40, generator=torch.Generator().manual_seed(seed)) + 0.5
        sight, notes = seen(honest, ruled(rule)), dict[str, Tensor]()
        fixed = sight.moved(CRAFTS[name](sight)[0])
        for _ in range(2):  # the second search begins about what the first found
            again = Sight(honest, FAULTY, ruled(rule), torch.Generator(), notes=notes)
            assert again.moved(CRAFTS[f"{name}-optimised"](again)[0]) >= fixed


def test_a_pipeline_that_breaks_is_not_the_best_target() -> None:
    def breaking(rows: Tensor) -> Tensor:
        return rows.mean(dim=0) * (math.nan if float(rows.abs().max()) > 20 else 1.0)

    sight = seen(pipeline=breaking)
    assert sight.moved(CRAFTS["foe-optimised"](sight)[0]) >= sight.moved(CRAFTS["foe"](sight)[0])
    assert sight.moved(torch.full((30,), 50.0)) == math.inf


@pytest.mark.parametrize("name", ["sign-flip", "gaussian", "large-norm", "foe-optimised", "model-replacement", "fang"])
def test_the_mean_bears_what_only_a_robust_rule_does(name: str) -> None:
    """Twelve honest rows about one direction, three liars: what is left of the honest step."""
    honest = torch.randn(12, 200, generator=torch.Generator().manual_seed(0)) + 1

    def left(rule: str) -> float:
        pipeline = ruled(rule, 3)
        sight = Sight(honest, 3, pipeline, torch.Generator().manual_seed(1))
        moved = pipeline(torch.cat([honest, CRAFTS[name](sight)])) - sight.mean
        return float(torch.linalg.vector_norm(moved) / torch.linalg.vector_norm(sight.mean))

    assert left("arc+caf") < 0.75
    assert left("mean") > max(0.25, left("arc+caf"))


def test_an_attack_without_liars_or_without_victims_is_let_through() -> None:
    with pytest.raises(MisuseError, match="faulty = 0"):
        Sight(PAIR, 0, mean, torch.Generator())
    with pytest.raises(MisuseError, match="honest rows"):
        Sight(torch.zeros(0, 3), 1, mean, torch.Generator())
