"""Names, bounds and promises of the rules."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from causaldao.aggregation import PRE, RULES, Rule, aggregate, by_name, faults_left, is_rule, require
from causaldao.aggregation.geometry import Geometry
from causaldao.errors import GuaranteeError, MisuseError

COMPOSED = ["arc+caf", "nnm+trimmed-mean", "bucketing+multi-krum", "bucketing+nnm+caf", "nnm+bulyan"]
NAMES = [
    "mean", "coordinate-median", "trimmed-mean", "meamed", "krum", "multi-krum", "bulyan", "geometric-median",
    "centred-clipping", "mda", "smea", "caf", "monna", "fltrust", "dnc", "signguard",
]  # fmt: skip


def test_a_promised_name_is_unknown() -> None:
    assert set(RULES) == set(NAMES)
    assert set(PRE) == {"nnm", "bucketing", "arc", "clip"}
    for step, name in product(PRE, NAMES):
        assert is_rule(name)
        assert is_rule(f"{step}+{name}") == (name != "signguard" or step in ("arc", "clip"))


@pytest.mark.parametrize(("name", "said"), [
    ("krumm", "multi-krum, .*nnm\\+"), ("caf+mean", "pre-aggregation 'caf'.*nnm, "), ("arc+", "''"), ("", "''"),
    ("+caf", "pre-aggregation ''"), ("arc + caf", "pre-aggregation"), ("nnm+signguard", "counts signs"),
])  # fmt: skip
def test_an_unknown_name_is_taken(name: str, said: str) -> None:
    assert not is_rule(name)
    with pytest.raises(MisuseError, match=said):
        by_name(name)
    with pytest.raises(MisuseError):
        aggregate(torch.zeros(5, 2), name, 0)


@pytest.mark.parametrize("name", [*RULES, *COMPOSED])
def test_a_rule_is_both_or_neither(name: str) -> None:
    rule = by_name(name)
    assert rule.name == name
    assert (rule.weigh is None) != (rule.combine is None)
    assert rule.recomputable == (rule.weigh is not None and name != "signguard")


@pytest.mark.parametrize(("name", "n", "f", "largest"), [
    ("multi-krum", 6, 2, 1), ("krum", 10, 4, 3), ("trimmed-mean", 4, 2, 1), ("coordinate-median", 10, 5, 4),
    ("meamed", 8, 4, 3), ("bulyan", 14, 3, 2), ("geometric-median", 6, 3, 2), ("centred-clipping", 12, 3, 2),
    ("mda", 6, 3, 2), ("smea", 6, 3, 2), ("caf", 8, 4, 3), ("monna", 4, 2, 1), ("fltrust", 4, 4, 3), ("dnc", 4, 2, 1),
    ("signguard", 4, 2, 1), ("arc+caf", 8, 4, 3), ("nnm+multi-krum", 6, 2, 1), ("bucketing+trimmed-mean", 8, 2, 1),
    ("bucketing+bulyan", 20, 3, 1), ("arc+mean", 4, 2, 1),
])  # fmt: skip
def test_a_rule_degrades_in_silence_outside_its_bound(name: str, n: int, f: int, largest: int) -> None:
    given: dict[str, Any] = {"reference": torch.ones(3), "generator": torch.Generator().manual_seed(0)}
    with pytest.raises(GuaranteeError, match=f"needs at least .* at most faulty = {largest}\\b"):
        aggregate(torch.zeros(n, 3), name, f, **given)
    aggregate(torch.zeros(n, 3), name, largest, **given)


def test_too_few_members_for_any_f() -> None:
    with pytest.raises(GuaranteeError, match="fewer than it needs"):
        aggregate(torch.zeros(2, 3), "multi-krum", 0)


@pytest.mark.parametrize(("name", "n", "f", "said"), [
    ("smea", 20, 6, "38,760 of at most 20,000"), ("mda", 40, 15, "faulty = 14 at most"),
    ("bucketing+smea", 40, 6, "38,760"), ("nnm+mda", 100, 20, "faulty = 14 at most"),
])  # fmt: skip
def test_a_search_never_ends(name: str, n: int, f: int, said: str) -> None:
    with pytest.raises(GuaranteeError, match=said):
        require(name, n, f)
    require(name, n, 2)


def test_a_negative_f_is_borne() -> None:
    with pytest.raises(MisuseError, match="0 or more"):
        require("mean", 5, -1)


def test_a_kappa_is_below_what_any_rule_can_have() -> None:
    """f/(n - 2f) is the floor (Allouah et al. 2023); without faults a κ of 0 means the mean."""
    for name in [*RULES, *COMPOSED, "arc+trimmed-mean", "arc+nnm+geometric-median"]:
        rule = by_name(name)
        for f in range(1, 6):
            for n in range(max(rule.least(f), 2 * f + 1), 60, 7):
                kappa = rule.kappa(n, f)
                assert kappa is None or kappa >= f / (n - 2 * f)
    zero = [name for name in (*RULES, *COMPOSED) if by_name(name).kappa(9, 0) == 0]
    assert zero == ["trimmed-mean", "mean", "mda", "smea", "caf", "arc+caf", "nnm+trimmed-mean"]
    assert RULES["mean"].kappa(9, 1) == math.inf
    assert RULES["multi-krum"].kappa(13, 3) == pytest.approx(6 * (1 + 3 / 7))
    assert by_name("nnm+geometric-median").kappa(20, 4) == pytest.approx(2 * (4 * (4 / 3) ** 2 + 1))
    assert by_name("bucketing+caf").kappa(20, 1) is None
    assert RULES["caf"].kappa(9, 3) is None


def test_nnm_does_not_bring_a_rule_near_the_floor() -> None:
    for name in ("krum", "geometric-median", "coordinate-median"):
        alone, mixed = RULES[name].kappa(100, 5), by_name(f"nnm+{name}").kappa(100, 5)
        assert alone is not None
        assert mixed is not None
        assert mixed < alone


def test_a_rule_of_ones_own_is_refused() -> None:
    def first(geometry: Geometry, faulty: int) -> Tensor:
        return torch.eye(len(geometry.gram), dtype=torch.float64)[0]

    mine = Rule("first", lambda f: f + 2, weigh=first)
    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(aggregate(rows, mine, 1).vector, rows[0])
    with pytest.raises(GuaranteeError, match="'first'"):
        aggregate(rows, mine, 2)


@pytest.mark.parametrize("rule", ["multi-krum", "trimmed-mean", "bulyan", "arc+caf", "bucketing+caf"])
def test_silent_members_within_f_leave_a_rule_that_cannot_be_run(rule: str) -> None:
    """n ≥ least(f) bears any m ≤ f silent members, with the f - m that remain; more than f silent may be too many."""
    least = by_name(rule).least
    for members in range(3, 40):
        for faulty in [f for f in range(members) if members >= least(f)]:
            for silent in range(faulty + 1):
                left = faults_left(rule, members, faulty, members - silent)
                assert faulty - silent <= left <= faulty
                assert members - silent >= least(left)
            if members - faulty - 1 < least(faulty):
                with pytest.raises(GuaranteeError):
                    faults_left(rule, members, faulty, members - faulty - 1)
