"""Expressions in print: as text, Σ_z P(y | x, z) P(z), and as LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from causaldao.models.expression import Expression, Probability, Product, Quotient, Sum


@dataclass(frozen=True)
class Notation:
    """How the parts look: a name, a conditional bar, a sum with its body, a quotient, a bracketed part."""

    name: Callable[[str], str]
    bar: str
    sum_over: Callable[[str], str]
    quotient: Callable[[str, str], str]
    bracket: Callable[[str], str]
    do: str


_LATEX = {letter: f"\\{letter}" for letter in "_%&#${} "} | {
    "\\": r"\backslash{}", "^": r"\wedge{}", "~": r"\sim{}", "\t": r"\ ", "\n": r"\ ",
}  # fmt: skip


def _latex_name(name: str) -> str:
    """One letter as it is, a word upright, primes behind it; what LaTeX would read as a command is spelt out."""
    stem = name.rstrip("'")
    escaped = "".join(_LATEX.get(letter, letter) for letter in stem)
    return (escaped if len(stem) == 1 else rf"\mathrm{{{escaped}}}") + name[len(stem) :]


TEXT = Notation(
    name=lambda name: name,
    bar=" | ",
    sum_over=lambda names: f"Σ_{{{names}}}" if ", " in names else f"Σ_{names}",
    quotient=lambda above, below: f"[{above}] / [{below}]",
    bracket=lambda inner: f"({inner})",
    do="do",
)
LATEX = Notation(
    name=_latex_name,
    bar=r" \mid ",
    sum_over=lambda names: rf"\sum_{{{names}}}",
    quotient=lambda above, below: rf"\frac{{{above}}}{{{below}}}",
    bracket=lambda inner: rf"\left({inner}\right)",
    do=r"\mathrm{do}",
)


def printed(expression: Expression, notation: Notation, taken: Iterable[str] = ()) -> str:
    """The expression; a summed variable whose name is ``taken``, or in use around the sum, gets a prime."""
    return _print(expression, notation, {name: name for name in taken})


def query(outcome: Iterable[str], treatment: Iterable[str], conditions: Iterable[str], notation: Notation) -> str:
    """P(y | do(x), z), the question itself."""
    given = [f"{notation.do}({_names(treatment, notation, {})})"] if treatment else []
    given += [notation.name(name) for name in conditions]
    return f"P({_names(outcome, notation, {})}{notation.bar}{', '.join(given)})"


def _print(expression: Expression, notation: Notation, shown: Mapping[str, str]) -> str:
    match expression:
        case Probability(of, given):
            before, after = (_names(sorted(part), notation, shown) for part in (of, given))
            return f"P({before}{notation.bar}{after})" if given else f"P({before})"
        case Product(factors):
            if not factors:
                return "1"
            # A sum reaches to the end of its line, so all but the last factor need brackets if they are sums.
            *first, last = (_print(factor, notation, shown) for factor in factors)
            kept = [
                notation.bracket(text) if isinstance(factor, Sum) else text
                for factor, text in zip(factors, first, strict=False)
            ]
            return " ".join([*kept, last])
        case Sum(over, body):
            inner = {**shown, **{name: _fresh(name, set(shown.values())) for name in sorted(over)}}
            return f"{notation.sum_over(_names(sorted(over), notation, inner))} {_print(body, notation, inner)}"
        case Quotient(above, below):
            return notation.quotient(_print(above, notation, shown), _print(below, notation, shown))


def _names(names: Iterable[str], notation: Notation, shown: Mapping[str, str]) -> str:
    return ", ".join(notation.name(shown.get(name, name)) for name in names)


def _fresh(name: str, used: set[str]) -> str:
    while name in used:
        name += "'"
    return name
