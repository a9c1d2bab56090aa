"""The signed variable dictionary of an institution: what it offers, and where that does not fit a study.

It holds names, kinds, units and levels; no count, no range, no statistic of any record. An operator compares it with a
study before asking anybody; an institution compares itself with the same function before it approves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from causaldao.errors import ConfigurationError, IdentityError
from causaldao.models.discovery.evidence import FeatureRows, Variable
from causaldao.signing import SigningKey, Statement, VerifyKey, check_name, digest, seal, unseal
from causaldao.study import Study

KIND = "dictionary"
KINDS = ("continuous", "binary", "count", "categorical")
MAX_BYTES = 128 << 10
MAX_VARIABLES = 1000
MAX_LEVELS = 200
MAX_TEXT = 200
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_DIMENSIONS: tuple[dict[str, float], ...] = (  # each unit in the first one of its row
    {"days": 1.0, "hours": 1 / 24, "minutes": 1 / 1440, "weeks": 7.0, "months": 365.25 / 12, "years": 365.25},
    {"m": 1.0, "mm": 0.001, "cm": 0.01, "km": 1000.0, "inches": 0.0254, "feet": 0.3048},
    {"g": 1.0, "mg": 0.001, "kg": 1000.0, "lb": 453.59237},
)


@dataclass(frozen=True)
class Offered:
    """One variable that an institution offers.

    ``unit`` is that of the values it would use, ``levels`` are the words that it reads as numbers, ``column`` is the
    name in its own table, None unless its owner shares it.
    """

    name: str
    kind: str
    unit: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)
    column: str | None = None

    def to_json(self) -> dict[str, Any]:
        value = {"name": self.name, "kind": self.kind, "unit": self.unit, "levels": dict(self.levels)}
        return value if self.column is None else {**value, "column": self.column}

    @staticmethod
    def from_json(value: object) -> Offered:
        """A variable from outside; IdentityError for another form, an unknown kind or an oversized text."""
        if not isinstance(value, dict) or set(value) - {"column"} != {"name", "kind", "unit", "levels"}:
            raise IdentityError("A variable of the dictionary needs name, kind, unit and levels, and nothing unknown.")
        name, kind, levels = value["name"], value["kind"], value["levels"]
        texts = [value["unit"], *([value["column"]] if "column" in value else [])]
        good = (
            isinstance(name, str) and _NAME.fullmatch(name) is not None and kind in KINDS
            and isinstance(levels, dict) and len(levels) <= MAX_LEVELS
            and all(isinstance(text, str) and len(text) <= MAX_TEXT for text in (*texts, *levels))
            and all(type(code) in (int, float) and math.isfinite(code) for code in levels.values())
        )  # fmt: skip
        if not good:
            raise IdentityError(
                f"A variable of the dictionary, {str(name)[:64]!r}, has a wrong name, kind, unit or levels: a kind is "
                f"one of {', '.join(KINDS)}, a text has at most {MAX_TEXT} characters, a level is a finite number."
            )
        return Offered(name, kind, value["unit"], dict(levels), value.get("column"))


@dataclass(frozen=True)
class SiteDictionary:
    """What one member offers."""

    federation: str
    member: str
    variables: tuple[Offered, ...]

    def __post_init__(self) -> None:
        names = [offered.name for offered in self.variables]
        if len(set(names)) != len(names) or len(names) > MAX_VARIABLES:
            raise IdentityError(
                f"The dictionary of {self.member!r} has {len(names)} variables; their names must differ, and the bound "
                f"is {MAX_VARIABLES}."
            )


@dataclass(frozen=True)
class Mismatch:
    """Where an institution's variable is not what a study means by it; ``what`` is missing, kind, unit or levels."""

    variable: str
    what: str
    here: str
    study: str
    remedy: str

    def __str__(self) -> str:
        return f"variable {self.variable!r}: {self.what}: here {self.here}, in the study {self.study}. {self.remedy}"


def make(site: SiteDictionary, key: SigningKey, nonce: str) -> bytes:
    """The dictionary as an envelope (DSSE) signed by the member's key.

    Raises
    ------
    ConfigurationError
        it is larger than what is read.
    """
    for name in (site.federation, site.member):
        check_name(name)
    statement = Statement(
        federation=site.federation, study="", round=0, member=site.member, kind=KIND, nonce=nonce, parent="",
        body={"dictionary": {"variables": [offered.to_json() for offered in site.variables]}}, digest=digest({}),
    )  # fmt: skip
    envelope = seal(statement, key)
    if len(envelope) > MAX_BYTES:
        raise ConfigurationError(
            f"The signed dictionary of {len(site.variables)} variables has {len(envelope)} bytes, the bound is "
            f"{MAX_BYTES}: offer fewer variables, or shorten units and levels."
        )
    return envelope


def read(envelope: bytes, key: VerifyKey) -> SiteDictionary:
    """What a member's envelope says.

    Raises
    ------
    IdentityError
        another signer, a statement of another kind, or content that is not of this form or beyond its bounds.
    """
    statement = unseal(envelope, key, MAX_BYTES)
    if (statement.kind, statement.study, statement.round) != (KIND, "", 0):
        raise IdentityError(f"{statement.member!r} signed a {statement.kind!r}, but a dictionary was expected.")
    said = statement.body.get("dictionary")
    if set(statement.body) != {"dictionary"} or not isinstance(said, dict) or set(said) != {"variables"}:
        raise IdentityError(f"What {statement.member!r} signed is no dictionary: it holds its variables, nothing else.")
    if not isinstance(said["variables"], list):
        raise IdentityError("The variables of a dictionary are a list.")
    variables = tuple(Offered.from_json(value) for value in said["variables"])
    return SiteDictionary(check_name(statement.federation), check_name(statement.member), variables)


def compare(site: SiteDictionary, study: Study) -> list[str]:
    """Everything in which a member's dictionary does not fit a study, in words; empty if it fits."""
    if not site.variables:
        return [f"{site.member} maps no variables, so only its own dry run can tell whether its columns fit."]
    found = mismatches(site.variables, study.encoding)
    may = set(study.members.may_lack)
    return [
        f"variable {one.variable!r}: not offered; the study lets a member lack it, and its node.toml must say so"
        if one.what == "missing" and one.variable in may
        else str(one)
        for one in found
    ]


def mismatches(offered: Iterable[Offered], dictionary: FeatureRows) -> list[Mismatch]:
    """Every mismatch at once, in the order of the study.

    A count serves as a continuous variable. Units are compared without regard to case, and only if the study names one.
    If the study names levels, a variable's k-th level is the number k, and the institution must say so as well: words
    read the other way round would reverse an effect without any other sign.
    """
    here = {variable.name: variable for variable in offered}
    found = []
    for variable in dictionary.variables:
        if variable.name in here:
            found += _differences(here[variable.name], variable)
        else:
            remedy = f"Add [mapping.{variable.name}] to node.toml, or do not take part."
            found.append(Mismatch(variable.name, "missing", "nothing of that name", f"a {variable.kind} one", remedy))
    return found


def _differences(here: Offered, study: Variable) -> list[Mismatch]:
    found = []
    if here.kind != study.kind and (here.kind, study.kind) != ("count", "continuous"):
        remedy = f'If that is what the values are, write kind = "{study.kind}" in [mapping.{here.name}].'
        found.append(Mismatch(here.name, "kind", repr(here.kind), repr(study.kind), remedy))
    wanted, unit = study.unit.strip(), here.unit.strip()
    if wanted and unit.casefold() != wanted.casefold():
        found.append(Mismatch(here.name, "unit", repr(unit), repr(wanted), _unit_remedy(here.name, unit, wanted)))
    wrong = {word: code for code, word in enumerate(study.levels) if here.levels.get(word) != code}
    if wrong:
        said = ", ".join(f"{word!r} = {code:g}" for word, code in here.levels.items()) or "no levels"
        means = ", ".join(f"{word!r} = {code}" for code, word in enumerate(study.levels))
        remedy = (
            f"List your own words and the study's in the levels of [mapping.{here.name}], each with the number that "
            "the study gives it."
        )
        found.append(Mismatch(here.name, "levels", said, means, remedy))
    return found


def _unit_remedy(name: str, unit: str, wanted: str) -> str:
    where = f"[mapping.{name}]"
    if not unit:
        return f'Write unit = "{wanted}" in {where} if the values are in it; if not, scale (and offset) too.'
    factor = conversion(unit, wanted)
    if factor is not None:
        return f'Write scale = {factor!r} and unit = "{wanted}" in {where}.'
    return f'Write scale (and offset) and unit = "{wanted}" in {where}: value * scale + offset must be in {wanted}.'


def conversion(unit: str, wanted: str) -> float | None:
    """What a value in ``unit`` is multiplied by to be in ``wanted``; None if it is not among the few units known."""
    for units in _DIMENSIONS:
        one, other = units.get(unit.strip().casefold()), units.get(wanted.strip().casefold())
        if one is not None and other is not None:
            return one / other
    return None


def require_names(names: Iterable[str]) -> None:
    """Refuse variable names that no study could ask for."""
    wrong = sorted(name for name in names if not _NAME.fullmatch(name))
    if wrong:
        raise ConfigurationError(
            f"The names {wrong} of [mapping] are not variable names: a letter, then letters, digits or '_', at most 64."
        )
