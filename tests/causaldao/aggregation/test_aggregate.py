"""The whole call: what holds for every rule, what an auditor can repeat, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from causaldao.aggregation import RULES, Aggregate, aggregate, by_name, gram, weights_from_gram
from causaldao.errors import GuaranteeError, MisuseError
from tests.causaldao.aggregation.test_gram_rules import cases
from tests.counts import count

COMPOSED = ["arc+caf", "nnm+trimmed-mean", "nnm+multi-krum", "clip+geometric-median", "arc+centred-clipping",
            "clip+signguard", "arc+bulyan", "arc+monna", "nnm+fltrust"]  # fmt: skip
EVERY = [*RULES, *COMPOSED]
TIED_TO_THE_ORIGIN = ("fltrust", "signguard", "arc", "clip")  # norms and angles: not translation equivariant
DEALT = ["bucketing+caf", "bucketing+trimmed-mean"]  # the deal goes by place: no permutation leaves it alone
AT_ZERO_THE_MEAN = ["mean", "trimmed-mean", "meamed", "multi-krum", "mda", "smea", "caf", "dnc", "monna", "bulyan",
                    "arc+caf", "nnm+trimmed-mean", "nnm+krum", "nnm+geometric-median", "arc+nnm+coordinate-median",
                    ]  # fmt: skip


def _result(rows: Any, name: str, f: int, trusted: Any) -> Any:
    dealer = torch.Generator().manual_seed(f)
    return aggregate(
        torch.as_tensor(rows), name, f, generator=dealer, reference=torch.as_tensor(trusted)
    ).vector.numpy()


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_members_matters(name: str) -> None:
    rng = np.random.default_rng(30)
    for rows, f in cases(30, name, count(7, 200)):
        trusted = rows.mean(axis=0)
        found = _result(rows, name, f, trusted), _result(rows[rng.permutation(len(rows))], name, f, trusted)
        np.testing.assert_allclose(*found, rtol=0, atol=1e-8 * float(np.abs(rows).max()))


@pytest.mark.parametrize(
    "name", [name for name in EVERY if not any(word in name for word in TIED_TO_THE_ORIGIN)] + DEALT
)
def test_the_place_of_the_origin_matters(name: str) -> None:
    rng = np.random.default_rng(31)
    for rows, f in cases(31, name, count(7, 200)):
        trusted, shift = rows.mean(axis=0), rng.normal(size=rows.shape[1]) * np.abs(rows).max()
        moved = _result(rows + shift, name, f, trusted + shift) - shift
        np.testing.assert_allclose(
            moved, _result(rows, name, f, trusted), rtol=0, atol=1e-7 * float(np.abs(rows).max())
        )


@pytest.mark.parametrize("name", TIED_TO_THE_ORIGIN)
def test_a_rule_that_needs_the_origin_does_not_say_so(name: str) -> None:
    """The exceptions above are exceptions."""
    rows = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[0] *= 5
    full = name if name in RULES else f"{name}+mean"
    shift = torch.tensor([4.0, 0, 0], dtype=torch.float64)
    moved = _result(rows + shift, full, 1, rows[1] + shift) - shift.numpy()
    assert float(np.abs(moved - _result(rows, full, 1, rows[1])).max()) > 1e-3


@pytest.mark.parametrize("name", EVERY + DEALT)
def test_the_unit_of_updates_matters(name: str) -> None:
    """Units that are powers of two change no digit, and others only the last; the sign is a unit too."""
    rng = np.random.default_rng(32)
    for rows, f in cases(32, name, count(7, 200)):
        trusted = rows.mean(axis=0)
        plain = _result(rows, name, f, trusted)
        for factor in (10 ** rng.uniform(-6, 6), -3.0, 2.0**-40):
            grown = _result(rows * factor, name, f, trusted * factor)
            close = 1e-7 * float(np.abs(rows).max())
            np.testing.assert_allclose(grown / factor, plain, rtol=0, atol=close)


@pytest.mark.parametrize("name", AT_ZERO_THE_MEAN)
def test_a_rule_without_faults_is_not_the_mean(name: str) -> None:
    rng = np.random.default_rng(33)
    for n in (3, 7, 20):
        rows = rng.normal(size=(n, 11))
        np.testing.assert_allclose(_result(rows, name, 0, rows[0]), rows.mean(axis=0), atol=1e-13)


@pytest.mark.parametrize("name", EVERY + DEALT)
def test_low_precision_rows_are_summed_in_low_precision_or_changed(name: str) -> None:
    rows = torch.randn(11, 3000, generator=torch.Generator().manual_seed(6))
    for dtype in (torch.bfloat16, torch.float32):
        low = rows.to(dtype)
        before = low.clone()
        found = _result(low, name, 1, low[3])
        np.testing.assert_allclose(found, _result(low.double(), name, 1, low[3].double()), rtol=0, atol=5e-6)
        assert found.dtype == np.float32
        assert torch.equal(low, before)


@pytest.mark.parametrize("name", EVERY + DEALT)
def test_the_same_call_gives_other_bits_or_a_file_other_than_memory(name: str, tmp_path: Path) -> None:
    rows = torch.randn(11, 30_000, generator=torch.Generator().manual_seed(8))
    rows.numpy().tofile(tmp_path / "updates")
    mapped = torch.from_numpy(np.memmap(tmp_path / "updates", dtype=np.float32, mode="c", shape=(11, 30_000)))
    first = _result(rows, name, 1, rows[2])
    for again in (rows, rows.clone(), mapped):
        assert np.array_equal(_result(again, name, 1, rows[2]), first)
    assert (tmp_path / "updates").read_bytes() == rows.numpy().tobytes()


@pytest.mark.parametrize("name", [name for name in EVERY + DEALT if by_name(name).recomputable])
def test_an_auditor_gets_other_weights_from_the_gram_matrix(name: str) -> None:
    """Also where a row was not finite, a reference was compared with, or a deal was made."""
    rows = torch.randn(12, 3_000, generator=torch.Generator().manual_seed(7))
    rows[4] = torch.inf
    rows[9] *= 1e9
    rule = by_name(name)
    f = max(f for f in (0, 1, 2) if len(rows) >= rule.least(f))
    if f == 0:
        rows = rows[[k for k in range(12) if k != 4]]
    found = aggregate(rows, rule, f, generator=torch.Generator().manual_seed(1), reference=rows[0], state=rows[0])
    assert found.gram is not None
    assert found.weights is not None
    again = weights_from_gram(
        found.gram, found.norms, name, f, found.not_finite, generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(again, found.weights)
    assert len(found.gram) == len(rows) + 1 + bool(rule.needs & {"reference", "state"})


def test_what_an_auditor_cannot_recompute_is_recomputed() -> None:
    found = aggregate(torch.randn(9, 5, generator=torch.Generator().manual_seed(9)), "arc+caf", 2)
    assert found.gram is not None
    for name in ("trimmed-mean", "nnm+trimmed-mean", "bulyan"):
        with pytest.raises(MisuseError, match="coordinates"):
            weights_from_gram(found.gram, found.norms, name, 1)
    with pytest.raises(MisuseError, match="signs"):
        weights_from_gram(found.gram, found.norms, "signguard", 2)
    with pytest.raises(MisuseError, match="reference"):
        weights_from_gram(found.gram, found.norms, "monna", 2)
    with pytest.raises(MisuseError, match=r"not \(9, 9\)"):
        weights_from_gram(found.gram[:9, :9], found.norms, "caf", 2)
    with pytest.raises(MisuseError, match="finite"):
        weights_from_gram(found.gram * torch.nan, found.norms, "caf", 2)


def test_the_gram_matrix_of_a_coordinate_rule_is_made_or_cannot_be_made() -> None:
    rows = torch.randn(9, 50, generator=torch.Generator().manual_seed(10))
    rows[3] = torch.nan
    assert aggregate(rows, "trimmed-mean", 2).gram is None
    made = aggregate(rows, "nnm+trimmed-mean", 2).gram
    assert made is not None
    products, norms, bad = gram(rows)
    assert torch.equal(products, made)
    assert torch.equal(norms, aggregate(rows, "trimmed-mean", 2).norms)
    assert bad == (3,)
    assert not products[3].any()
    with pytest.raises(GuaranteeError, match="No update"):
        gram(rows * torch.nan)


def test_bad_rows_do_not_count_against_f() -> None:
    rows = torch.ones(7, 2)
    rows[:2] = torch.nan
    for name in ("multi-krum", "trimmed-mean", "arc+caf", "nnm+trimmed-mean"):
        found = aggregate(rows, name, 2)
        assert found.not_finite == (0, 1)
        assert {0, 1} <= set(found.excluded)
        assert found.norms[:2].tolist() == [0, 0]
        np.testing.assert_allclose(found.vector.numpy(), 1, rtol=1e-6)
        with pytest.raises(GuaranteeError, match="2 updates are not finite"):
            aggregate(rows, name, 1)
    assert aggregate(rows, "mean", 0).excluded == (0, 1)
    with pytest.raises(GuaranteeError, match="No update"):
        aggregate(rows * torch.nan, "mean", 0)


def test_a_liar_buys_weight_with_its_norm_or_hides_in_the_default() -> None:
    """No count is declared anywhere: the default weighs each row once, and a giant not at all."""
    rows = torch.randn(20, 40, generator=torch.Generator().manual_seed(11))
    rows[:4] = 1e6
    found = aggregate(rows, faulty=4)
    assert found.weights is not None
    assert float(found.weights[4:].min()) > 0.7 / 16
    assert float((found.vector - rows[4:].mean(dim=0)).norm()) < 1
    assert found.state is None


def test_a_misuse_is_computed() -> None:
    rows = torch.zeros(5, 2)
    wrong: list[tuple[Tensor, str, int]] = [
        (torch.zeros(3), "mean", 0), (torch.zeros(0, 3), "mean", 0), (rows, "mean", -1), (rows.long(), "mean", 0),
    ]  # fmt: skip
    for updates, rule, faulty in wrong:
        with pytest.raises(MisuseError):
            aggregate(updates, rule, faulty)
    with pytest.raises(MisuseError, match="give a reference"):
        aggregate(rows, "monna", 1)
    with pytest.raises(MisuseError, match=r"shape \(2,\), but got \(3,\)"):
        aggregate(rows, "fltrust", 1, reference=torch.zeros(3))
    with pytest.raises(MisuseError, match="not finite"):
        aggregate(rows, "centred-clipping", 1, state=torch.full((2,), torch.nan))


def test_a_state_is_lost_or_kept_where_there_is_none() -> None:
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(12))
    first: Aggregate = aggregate(rows, "centred-clipping", 2)
    assert first.state is first.vector
    assert first.reference_weight == 0
    again = aggregate(rows, "centred-clipping", 2, state=first.state)
    assert 0 < again.reference_weight < 1
    assert not torch.equal(again.vector, first.vector)
    for name in ("mean", "trimmed-mean", "arc+bulyan"):
        assert aggregate(torch.zeros(11, 2), name, 1, state=torch.ones(2)).state is None


def test_no_columns_at_all() -> None:
    for name in ("mean", "trimmed-mean", "arc+caf", "nnm+trimmed-mean"):
        assert aggregate(torch.zeros(5, 0), name, 1 if name != "mean" else 0).vector.shape == (0,)
