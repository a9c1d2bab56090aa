"""Expressions keep their value when simplified, and say what they mean; tables that cannot carry them are refused."""

from __future__ import annotations

import numpy as np
import pytest

from causaldao.errors import DataError, MisuseError
from causaldao.models.estimand import Estimand, Table
from causaldao.models.expression import (
    ONE,
    Expression,
    Probability,
    Product,
    Quotient,
    Sum,
    free,
    product,
    quotient,
    tidy,
    total,
)
from causaldao.models.notation import LATEX, TEXT, printed


def p(of: str, given: str = "") -> Probability:
    return Probability(frozenset(of), frozenset(given))


def test_a_sum_keeps_what_sums_to_one() -> None:
    chain = product([p("a"), p("b", "a"), p("c", "ab")])
    assert total("c", chain) == product([p("a"), p("b", "a")])
    assert total("abc", chain) == ONE
    assert total("a", p("ab")) == p("b")
    assert total("a", product([p("c", "b"), p("a"), p("b", "a")])) == product(
        [p("c", "b"), Sum(frozenset("a"), product([p("a"), p("b", "a")]))]
    )


def test_a_quotient_keeps_what_stands_in_both() -> None:
    assert quotient(product([p("a"), p("b", "a")]), p("a")) == p("b", "a")
    assert quotient(p("ab", "c"), p("b", "c")) == p("a", "bc")
    assert quotient(p("a"), p("a")) == ONE
    assert quotient(p("a", "c"), p("b", "c")) == Quotient(p("a", "c"), p("b", "c"))


def test_the_chain_rule_joins_what_does_not_belong_together() -> None:
    assert tidy(product([p("y", "xwz"), p("x", "wz")])) == p("xy", "wz")
    apart = product([p("y", "xwz"), p("x", "w")])
    assert tidy(apart) == apart


def test_equal_products_are_two_objects() -> None:
    assert product([p("a"), product([p("b"), p("c", "a")])]) == product([p("c", "a"), p("b"), p("a")])
    assert free(Sum(frozenset("a"), product([p("a"), p("b", "ac")]))) == frozenset("bc")


@pytest.mark.parametrize(
    ("expression", "text", "latex"),
    [
        (ONE, "1", "1"),
        (p("y", "x"), "P(y | x)", r"P(y \mid x)"),
        (Sum(frozenset("x"), p("y", "x")), "Σ_x' P(y | x')", r"\sum_{x'} P(y \mid x')"),
        (
            product([Sum(frozenset("a"), p("y", "a")), Sum(frozenset("b"), p("z", "b"))]),
            "(Σ_a P(y | a)) Σ_b P(z | b)",
            r"\left(\sum_{a} P(y \mid a)\right) \sum_{b} P(z \mid b)",
        ),
        (Quotient(p("y"), p("x")), "[P(y)] / [P(x)]", r"\frac{P(y)}{P(x)}"),
        (Probability(frozenset({r"a\b^2 ~"})), r"P(a\b^2 ~)", r"P(\mathrm{a\backslash{}b\wedge{}2\ \sim{}})"),
        (Probability(frozenset({"stay_1"})), "P(stay_1)", r"P(\mathrm{stay\_1})"),
    ],
)
def test_an_expression_reads_as_another(expression: Expression, text: str, latex: str) -> None:
    assert (printed(expression, TEXT, "x"), printed(expression, LATEX, "x")) == (text, latex)


def test_a_summed_variable_is_taken_for_the_outer_one_of_its_name() -> None:
    inner = Sum(frozenset("x"), product([p("y", "mx"), p("x")]))
    front_door = Estimand(("x",), ("y",), (), total("m", product([p("m", "x"), inner])), "front-door")
    rng = np.random.default_rng(1)
    joint = rng.dirichlet(np.ones(12)).reshape(2, 3, 2)  # x, m, y
    x, xm = joint.sum(axis=(1, 2)), joint.sum(axis=2)
    right = np.einsum("xm,my->xy", xm / x[:, None], np.einsum("xmy,x->my", joint / xm[..., None], x))
    got = front_door.evaluate(Table(("x", "m", "y"), joint))
    assert got.names == ("x", "y")
    np.testing.assert_allclose(got.values, right, atol=1e-15)


def test_a_table_that_is_no_distribution_is_evaluated() -> None:
    estimand = Estimand(("x",), ("y",), (), p("y", "x"), "adjustment")
    uniform = np.full((2, 2), 0.25)
    with pytest.raises(DataError, match=r"sums to 4.*Divide counts"):
        estimand.evaluate(Table(("x", "y"), uniform * 4))
    with pytest.raises(DataError, match=r"least entry is -0\.25"):
        estimand.evaluate(Table(("x", "y"), np.array([[-0.25, 0.75], [0.25, 0.25]])))
    with pytest.raises(DataError, match=r"sums to nan"):
        estimand.evaluate(Table(("x", "y"), uniform * np.nan))
    with pytest.raises(DataError, match=r"No record has x = level 1.*Merge or drop"):
        estimand.evaluate(Table(("x", "y"), np.array([[0.5, 0.5], [0.0, 0.0]])))
    with pytest.raises(MisuseError, match=r"lacks y; it has x, z"):
        estimand.evaluate(Table(("x", "z"), uniform))
    with pytest.raises(MisuseError, match="one name twice"):
        Table(("x", "x"), uniform)
    with pytest.raises(MisuseError, match="2 axes and 1 names"):
        Table(("x",), uniform)


def test_an_effect_that_does_not_depend_on_the_treatment_loses_its_axis() -> None:
    estimand = Estimand(("x",), ("y",), (), Product((p("y"),)), "none")
    got = estimand.evaluate(Table(("x", "y"), np.array([[0.1, 0.2], [0.3, 0.4]])))
    np.testing.assert_allclose(got.values, [[0.4, 0.6], [0.4, 0.6]])
