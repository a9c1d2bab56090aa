"""Pre-aggregations against float64 definitions on whole vectors, and the geometry that they leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from causaldao.aggregation import aggregate, passes
from causaldao.aggregation.geometry import Geometry
from causaldao.aggregation.rules import PRE, RULES
from causaldao.errors import MisuseError
from tests.causaldao.aggregation.references import REFERENCES, STEPS
from tests.causaldao.aggregation.test_gram_rules import cases
from tests.counts import count


def _geometry(rows: Tensor) -> Geometry:
    survey, gram = passes.gram(rows)
    return Geometry(gram, len(rows), survey.norms)


def _points(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.zeros(1, rows.shape[1], dtype=rows.dtype)])


@pytest.mark.parametrize("name", STEPS)
def test_a_step_differs_from_its_definition(name: str) -> None:
    for values, f in cases(20, "trimmed-mean", count(30, 400)):
        rows = torch.from_numpy(values)
        geometry = _geometry(rows)
        mixing = PRE[name].mix(geometry, f, None)
        np.testing.assert_allclose(mixing.sum(dim=1).numpy(), 1, rtol=0, atol=1e-12)
        made = mixing @ _points(rows)
        close = {"rtol": 0, "atol": 1e-9 * float(np.abs(values).max())}
        np.testing.assert_allclose(made.numpy(), STEPS[name](values, f), **close)
        after = geometry.mixed(mixing)
        np.testing.assert_allclose(
            after.norms.numpy(), made.norm(dim=1).numpy(), rtol=0, atol=1e-6 * close["atol"] * 1e9
        )


@pytest.mark.parametrize("name", [f"{step}+{rule}" for step in STEPS for rule in ("trimmed-mean", "multi-krum", "caf")])
def test_a_composed_rule_differs_from_its_parts(name: str) -> None:
    step, rule = name.split("+")
    for rows, f in cases(21, name, count(15, 200)):
        found = aggregate(torch.from_numpy(rows), name, f).vector.numpy()
        expected = REFERENCES[rule](STEPS[step](rows, f), f)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * float(np.abs(rows).max()))


def test_three_steps_are_done_in_another_order() -> None:
    for rows, f in cases(22, "trimmed-mean", count(15, 200)):
        found = aggregate(torch.from_numpy(rows), "arc+nnm+clip+trimmed-mean", f).vector.numpy()
        expected = REFERENCES["trimmed-mean"](STEPS["clip"](STEPS["nnm"](STEPS["arc"](rows, f), f), f), f)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * float(np.abs(rows).max()))


def test_a_deal_cannot_be_repeated() -> None:
    """The same seed makes the same buckets; without one nothing is dealt, as no one could check it."""
    rows = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    geometry = _geometry(rows)
    first, again, other = (PRE["bucketing"].mix(geometry, 1, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (5, 10)
    assert sorted((first > 0).sum(dim=1).tolist()) == [1, 2, 2, 2, 2]
    assert torch.equal((first > 0).sum(dim=0), torch.tensor([1] * 9 + [0]))
    with pytest.raises(MisuseError, match="generator"):
        aggregate(rows, "bucketing+caf", 1)


def test_a_clipped_giant_keeps_its_size() -> None:
    """Its weight is 1e-30 and its row 1e30: the mean holds it at the norm of the bound, in its direction."""
    rows = torch.eye(10, dtype=torch.float32)
    rows[0] *= 1e30
    for name in ("arc+mean", "clip+mean"):
        np.testing.assert_allclose(aggregate(rows, name, 2).vector.numpy(), np.full(10, 0.1), rtol=1e-6)


def test_bulyan_selects_the_same_row_twice() -> None:
    rows = torch.randn(15, 4, generator=torch.Generator().manual_seed(1))
    selection = RULES["bulyan"].before[0].mix(_geometry(rows), 3, None)
    assert selection.shape == (9, 16)
    assert torch.equal(selection.sum(dim=1), torch.ones(9, dtype=torch.float64))
    assert int((selection == 1).sum()) == 9
    assert float(selection.sum(dim=0).max()) == 1
