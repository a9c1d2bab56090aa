"""What would go wrong with a signed dictionary: another's, a forged one, one that tells more than it should, one that
would not be read by the rule it was written by."""

from __future__ import annotations

import json
from typing import Any

import pytest

from causaldao.dictionary import (
    MAX_LEVELS,
    MAX_TEXT,
    MAX_VARIABLES,
    Offered,
    SiteDictionary,
    compare,
    conversion,
    make,
    mismatches,
    read,
)
from causaldao.errors import ConfigurationError, IdentityError
from causaldao.models.discovery.evidence import Dictionary, Variable
from causaldao.signing import SigningKey, Statement, digest, peek, seal
from causaldao.study import Study

KEY = SigningKey.from_seed(b"N" * 32)
SITE = SiteDictionary(
    "walking", "north", (Offered("age", "count", "years"), Offered("sex", "binary", levels={"M": 0.0, "F": 1.0}))
)
STUDY = Study.from_mapping(
    {
        "study": {"name": "s", "question": "q", "purpose": "p", "retention": "r"},
        "variables": [
            {"name": "age", "kind": "continuous", "bounds": [0, 120], "unit": "years"},
            {"name": "sex", "kind": "binary", "bounds": [0, 1], "levels": ["M", "F"]},
        ],
        "privacy": {"epsilon": 1.0, "delta": 1e-6},
    }
)


def sealed(body: dict[str, Any], **changed: Any) -> bytes:
    given: dict[str, Any] = {"federation": "walking", "study": "", "round": 0, "member": "north", "kind": "dictionary"}
    return seal(Statement(**{**given, **changed}, body=body, nonce="n", parent="", digest=digest({})), KEY)


def body(**changed: Any) -> dict[str, Any]:
    return {"dictionary": {"variables": [{"name": "age", "kind": "count", "unit": "years", "levels": {}, **changed}]}}


def test_what_was_made_is_read_back() -> None:
    assert read(make(SITE, KEY, "n"), KEY.public) == SITE


def test_it_tells_names_kinds_units_and_levels_and_nothing_else() -> None:
    said = peek(make(SITE, KEY, "n")).body["dictionary"]["variables"]
    assert [set(variable) for variable in said] == [{"name", "kind", "unit", "levels"}] * 2
    shared = Offered("age", "count", column="AGE")
    assert shared.to_json()["column"] == "AGE"
    assert Offered.from_json(json.loads(json.dumps(shared.to_json()))) == shared


def test_another_key_is_refused() -> None:
    with pytest.raises(IdentityError):
        read(make(SITE, KEY, "n"), SigningKey.from_seed(b"X" * 32).public)


@pytest.mark.parametrize("changed", [{"kind": "evidence"}, {"study": "0" * 64}, {"round": 1}], ids=str)
def test_another_statement_is_no_dictionary(changed: dict[str, Any]) -> None:
    with pytest.raises(IdentityError, match="expected"):
        read(sealed(body(), **changed), KEY.public)


@pytest.mark.parametrize("name", ["../x", "", "North", "a" * 65])
def test_a_name_that_is_no_slug_is_refused(name: str) -> None:
    with pytest.raises(IdentityError):
        read(sealed(body(), member=name), KEY.public)
    with pytest.raises(IdentityError):
        make(SiteDictionary(name, "north", ()), KEY, "n")


BAD: dict[str, dict[str, Any]] = {
    "more than variables": {**body(), "rows": 7},
    "a range": body(low=3),
    "a count": {"dictionary": {"variables": [], "rows": 7}},
    "no list": {"dictionary": {"variables": {}}},
    "no dictionary": {"dictionary": []},
    "no body": {},
    "an unknown kind": body(kind="date"),
    "a name with markup": body(name="<b>"),
    "a name that is a number": body(name=7),
    "a unit that is a number": body(unit=7),
    "an endless unit": body(unit="x" * (MAX_TEXT + 1)),
    "an endless level": body(levels={"x" * (MAX_TEXT + 1): 1}),
    "too many levels": body(levels={str(k): k for k in range(MAX_LEVELS + 1)}),
    "a level that is true": body(levels={"M": True}),
    "a level that is text": body(levels={"M": "0"}),
    "a column that is none": body(column=None),
    "two of one name": {"dictionary": {"variables": body()["dictionary"]["variables"] * 2}},
    "too many": {
        "dictionary": {
            "variables": [
                {"name": f"v{k}", "kind": "count", "unit": "", "levels": {}} for k in range(MAX_VARIABLES + 1)
            ]
        }
    },
}


@pytest.mark.parametrize("case", BAD)
def test_content_of_another_form_is_refused(case: str) -> None:
    with pytest.raises(IdentityError):
        read(sealed(BAD[case]), KEY.public)


def test_what_could_not_be_read_is_not_made() -> None:
    levels = {f"{k:03d}" + "x" * 190: float(k) for k in range(MAX_LEVELS)}
    huge = SiteDictionary("walking", "north", tuple(Offered(f"v{k}", "binary", levels=levels) for k in range(5)))
    with pytest.raises(ConfigurationError, match="bound"):
        make(huge, KEY, "n")


def test_a_dictionary_that_fits_is_found_wanting() -> None:
    assert compare(SITE, STUDY) == []


def test_every_difference_is_told_at_once() -> None:
    here = (Offered("age", "continuous", "months"), Offered("sex", "binary", levels={"M": 1.0, "F": 0.0}))
    months, flipped = compare(SiteDictionary("walking", "south", here), STUDY)
    assert "months" in months
    assert "0.0833333333" in months
    assert "'M' = 1" in flipped
    assert "'M' = 0" in flipped


def test_words_of_its_own_may_stand_beside_the_studys() -> None:
    own = Offered("sex", "binary", levels={"8507": 0, "M": 0, "8532": 1, "F": 1})
    assert mismatches([SITE.variables[0], own], STUDY.dictionary) == []
    unsaid = Offered("sex", "binary")
    assert [m.what for m in mismatches([SITE.variables[0], unsaid], STUDY.dictionary)] == ["levels"]


def test_a_member_that_maps_nothing_is_not_said_to_lack_everything() -> None:
    (line,) = compare(SiteDictionary("walking", "south", ()), STUDY)
    assert "dry run" in line


@pytest.mark.parametrize(
    ("here", "study", "fits"),
    [("count", "continuous", True), ("continuous", "count", False), ("binary", "continuous", False)],
)
def test_a_count_serves_as_a_continuous_variable_and_nothing_else_does(here: str, study: Any, fits: bool) -> None:
    dictionary = Dictionary((Variable("x", study, (0, 9)), Variable("y", "binary", (0, 1))), 3.0)
    found = mismatches([Offered("x", here), Offered("y", "binary")], dictionary)
    assert [m.what for m in found] == ([] if fits else ["kind"])


def test_conversions_are_right_both_ways() -> None:
    assert conversion("months", "Years") == pytest.approx(1 / 12)
    assert conversion("kg", "g") == 1000
    assert conversion("inches", "cm") == pytest.approx(2.54)
    assert conversion("kg", "years") is None
    assert conversion("mmol/l", "mg/dl") is None  # it depends on the substance
