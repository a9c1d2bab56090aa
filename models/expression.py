"""Expressions in observed probabilities: what an identified effect is made of.

Four immutable forms: P(of | given), a product, a sum over the values of variables, a quotient. A sum binds its
variables: in Σ_m P(m | x) Σ_x' P(y | m, x') P(x') the inner x is another than the outer one, which only printing has to
say, by a prime. The functions `product`, `total` and `quotient` build simplified expressions; each keeps the value
wherever the value is defined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Names = frozenset[str]


@dataclass(frozen=True)
class Probability:
    """P(of | given) of the observed variables."""

    of: Names
    given: Names = frozenset()


@dataclass(frozen=True)
class Product:
    """The product of its factors in the order in which they are printed; without any it is 1."""

    factors: tuple[Expression, ...]


@dataclass(frozen=True)
class Sum:
    """The sum of ``body`` over all values of the variables ``over``."""

    over: Names
    body: Expression


@dataclass(frozen=True)
class Quotient:
    """``above`` divided by ``below``."""

    above: Expression
    below: Expression


Expression = Probability | Product | Sum | Quotient
ONE = Product(())


def free(expression: Expression) -> Names:
    """The variables that the value depends on: all but those that a sum binds."""
    match expression:
        case Probability(of, given):
            return of | given
        case Product(factors):
            return frozenset[str]().union(*map(free, factors))
        case Sum(over, body):
            return free(body) - over
        case Quotient(above, below):
            return free(above) | free(below)


def product(factors: Iterable[Expression]) -> Expression:
    """The product, flat and in one order, so that equal products are equal objects."""
    flat: list[Expression] = []
    for factor in factors:
        flat.extend(factor.factors if isinstance(factor, Product) else [factor])
    return flat[0] if len(flat) == 1 else Product(tuple(sorted(flat, key=_order)))


def total(over: Iterable[str], body: Expression) -> Expression:
    """Σ_over body. Each of ``over`` must be free in body: a sum over anything else would count its levels.

    A variable that stands in one P(of | given) only, among ``of``, is left out of it (probabilities sum to 1); factors
    without a summed variable go before the sum, and sums of sums become one.
    """
    rest, factors = set(over), list(body.factors if isinstance(body, Product) else [body])
    while found := _summed_out(rest, factors):
        name, place = found
        term = factors.pop(place)
        assert isinstance(term, Probability)
        rest.remove(name)
        if term.of != {name}:
            factors.append(Probability(term.of - {name}, term.given))
    inside = [factor for factor in factors if free(factor) & rest]
    outside = [factor for factor in factors if not free(factor) & rest]
    if not rest:
        return product(outside)
    inner = product(inside)
    summed = Sum(frozenset(rest) | inner.over, inner.body) if isinstance(inner, Sum) else Sum(frozenset(rest), inner)
    return product([*outside, summed])


def quotient(above: Expression, below: Expression) -> Expression:
    """above / below without the factors that stand in both; P(a, b | c) / P(b | c) becomes P(a | b, c)."""
    top = list(above.factors if isinstance(above, Product) else [above])
    bottom = []
    for factor in below.factors if isinstance(below, Product) else [below]:
        if factor in top:
            top.remove(factor)
        else:
            bottom.append(factor)
    for factor in list(bottom):
        if (place := next((k for k, whole in enumerate(top) if _conditional(whole, factor)), None)) is not None:
            whole = _conditional(top[place], factor)
            assert whole is not None
            top[place] = whole
            bottom.remove(factor)
    return Quotient(product(top), product(bottom)) if bottom else product(top)


def tidy(expression: Expression) -> Expression:
    """The expression as a reader wants it: P(a | b, c) P(b | c) written as P(a, b | c), all else rebuilt as simple."""
    match expression:
        case Probability():
            return expression
        case Product(factors):
            return product(_chained([tidy(factor) for factor in factors]))
        case Sum(over, body):
            return total(over, tidy(body))
        case Quotient(above, below):
            return quotient(tidy(above), tidy(below))


def _summed_out(over: Iterable[str], factors: Sequence[Expression]) -> tuple[str, int] | None:
    """A variable that stands in a single factor, there before the bar, and that factor's place."""
    for name in sorted(over):
        places = [place for place, factor in enumerate(factors) if name in free(factor)]
        if len(places) == 1:
            term = factors[places[0]]
            if isinstance(term, Probability) and name in term.of:
                return name, places[0]
    return None


def _conditional(whole: Expression, part: Expression) -> Probability | None:
    """P(a | b, c) for whole = P(a, b | c) and part = P(b | c)."""
    if not (isinstance(whole, Probability) and isinstance(part, Probability)):
        return None
    if whole.given != part.given or not part.of < whole.of:
        return None
    return Probability(whole.of - part.of, whole.given | part.of)


def _chained(factors: list[Expression]) -> list[Expression]:
    """The factors, joined by the chain rule as long as two of them can be."""
    for left in factors:
        for right in factors:
            if (
                isinstance(left, Probability)
                and isinstance(right, Probability)
                and left.given == right.of | right.given
                and not right.of & right.given
                and right.given  # P(y | x, z) P(z) says more to a reader of adjustment formulas than P(y, z | x) would
            ):
                rest = [factor for factor in factors if factor is not left and factor is not right]
                return _chained([*rest, Probability(left.of | right.of, right.given)])
    return factors


def _order(expression: Expression) -> tuple[int, int, str]:
    """Conditional probabilities first, then marginal ones, quotients, and sums last."""
    match expression:
        case Probability(of, given):
            return 0, -len(given), f"{sorted(of)}{sorted(given)}"
        case Quotient():
            return 1, 0, _key(expression)
        case Product():
            return 2, 0, _key(expression)
        case Sum(over):
            return 3, len(over), _key(expression)


def _key(expression: Expression) -> str:
    """A text that equal expressions share; the order of a set's ``repr`` changes from process to process."""
    match expression:
        case Probability(of, given):
            return f"P({sorted(of)}|{sorted(given)})"
        case Product(factors):
            return f"({' '.join(map(_key, factors))})"
        case Sum(over, body):
            return f"S{sorted(over)}{_key(body)}"
        case Quotient(above, below):
            return f"{_key(above)}/{_key(below)}"
