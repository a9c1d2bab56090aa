"""The verifier's own reader of JSON against texts that two readers could read differently."""

from __future__ import annotations

import math
import random
import struct
import time
from typing import TypeAlias

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from causaldao.errors import LedgerError
from causaldao.ledger import strict
from causaldao.ledger.entry import MAX_BODY_DEPTH
from causaldao.ledger.strict import MAX_DEPTH, encode, fields, read, read_all, reread, unbase64
from tests.counts import count

JSON: TypeAlias = "bool | int | str | float | list[JSON] | dict[str, JSON] | None"


def refusal(data: bytes) -> str:
    """The reader's words about bytes it must refuse; they always say where in the file."""
    with pytest.raises(LedgerError) as caught:
        read(data, "entry 3", 1000)
    assert "entry 3, byte 1" in caught.value.message
    return caught.value.message


HOSTILE = [
    (b"1.0", "canonical"),
    (b"1e0", "canonical"),
    (b"-0", "canonical"),
    (b"-0.0", "canonical"),
    (b"100e-2", "canonical"),
    (b"9007199254740993", "canonical"),
    (b"1000000000000000000000000", "canonical"),
    (b"0.30000000000000004441", "canonical"),
    (b"01", "not JSON"),
    (b"NaN", "NaN is not a double"),
    (b"Infinity", "Infinity is not a double"),
    (b"-Infinity", "-Infinity is not a double"),
    (b"1e400", "1e400 is not a double"),
    (b"9" * 5000, "is not a double"),
    (b'"\\u0061"', "canonical"),
    (b'"\\/"', "canonical"),
    (b'"\\u000A"', "canonical"),
    (b'"\\ud800"', "surrogate"),
    (b'"\xed\xa0\x80"', "not UTF-8"),
    (b'"\xff"', "not UTF-8"),
    (b'"\t"', "not JSON"),
    (b'{"x":1,"x":1}', "stands twice"),
    (b'{"x":1,"\\u0078":1}', "stands twice"),
    (b'{"b":1,"a":1}', "canonical"),
    ('{"\ue000":1,"😀":1}'.encode(), "canonical"),
    (b"[1, 2]", "canonical"),
    (b"[" * 60 + b"]" * 60, "deeper"),
    (b"[" * 100_000 + b"]" * 100_000, "deeper"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "deeper"),
    (b"[" * 100_000, ""),
    (b"", "not JSON"),
    (b"{} ", "canonical"),
    (b" {}", "canonical"),
    (b"{}{}", "not JSON"),
]


@pytest.mark.parametrize(("text", "fault"), HOSTILE, ids=lambda value: repr(value[:24]))
def test_a_text_that_two_readers_could_read_differently(text: bytes, fault: str) -> None:
    assert fault in refusal(text)
    if not text.strip(b" ").startswith(b"{"):
        assert fault in refusal(b'{"a":' + text + b"}")


@pytest.mark.parametrize("names", [("\ue000", "😀"), ("é", "z"), ("\uffff", "\U00010000")])
def test_names_are_sorted_by_code_points_instead_of_utf_16(names: tuple[str, str]) -> None:
    right, wrong = (
        b"{" + b",".join(b'"%b":1' % name.encode() for name in order) + b"}"
        for order in (
            sorted(names, key=lambda name: name.encode("utf-16-be")),
            sorted(names, key=lambda name: name.encode("utf-16-be"), reverse=True),
        )
    )
    assert read(right, "", 0) == dict.fromkeys(names, 1)
    assert right == rfc8785.dumps(dict.fromkeys(names, 1))
    assert "canonical" in refusal(wrong)
    with pytest.raises(LedgerError, match="canonical"):
        read_all([right.decode(), wrong.decode()], MAX_DEPTH)


def test_the_byte_at_fault_is_another() -> None:
    assert "byte 1006:" in refusal(b'{"a":1e0}')
    assert "byte 1007:" in refusal(b'{"ab":"\xff"}')
    assert "byte 1006:" in refusal('{"é":}'.encode())


def test_a_hostile_text_takes_more_than_one_pass() -> None:
    start = time.perf_counter()
    refusal(b'{"a":"' + b'\\"' * 300_000)
    refusal(b'{"' + b"\\" * 1_000_001)
    refusal(b"{" + b",".join(b'"%d":1' % k for k in range(100_000)) + b',"99999":1}')
    assert time.perf_counter() - start < 5


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text() | st.floats(-1e30, 1e30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=count(100, 2000), deadline=None)
@given(VALUES)
def test_a_value_is_written_otherwise_than_rfc_8785_has_it(value: JSON) -> None:
    written = rfc8785.dumps(value)
    again = read(written, "", 0)
    assert encode(again) == written
    assert repr(reread([written, b"{}", written])) == repr([again, {}, again])


@settings(max_examples=count(200, 3000), deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_written_otherwise_than_rfc_8785_has_it(value: float) -> None:
    assert encode(value) == rfc8785.dumps(value)
    assert encode(read(rfc8785.dumps(value), "", 0)) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [  # RFC 8785, appendix B
        (0x0000000000000000, "0"), (0x8000000000000000, "0"), (0x0000000000000001, "5e-324"),
        (0x8000000000000001, "-5e-324"), (0x7FEFFFFFFFFFFFFF, "1.7976931348623157e+308"),
        (0x4340000000000000, "9007199254740992"), (0x4430000000000000, "295147905179352830000"),
        (0x44B52D02C7E14AF5, "9.999999999999997e+22"), (0x44B52D02C7E14AF6, "1e+23"),
        (0x444B1AE4D6E2EF4E, "999999999999999700000"), (0x444B1AE4D6E2EF50, "1e+21"),
        (0x3EB0C6F7A0B5ED8C, "9.999999999999997e-7"), (0x3EB0C6F7A0B5ED8D, "0.000001"),
        (0x41B3DE4355555555, "333333333.3333333"), (0xBECBF647612F3696, "-0.0000033333333333333333"),
    ],
)  # fmt: skip
def test_the_examples_of_rfc_8785(bits: int, expected: str) -> None:
    (value,) = struct.unpack(">d", struct.pack(">Q", bits))
    assert math.isfinite(value)
    assert encode(value).decode() == expected


def outcome(data: bytes) -> object:
    """What the careful way makes of some bytes: a value with its types, or the refusal."""
    try:
        value = strict._careful(data, "entry 0", 0)
    except LedgerError as error:
        return error.message
    return repr(value)


def hurried(data: bytes) -> object:
    try:
        return repr(read(data, "entry 0", 0))
    except LedgerError as error:
        return error.message


@settings(max_examples=count(200, 5000), deadline=None)
@given(VALUES, st.randoms(use_true_random=False))
def test_the_plain_way_takes_what_the_careful_way_refuses(value: JSON, draw: random.Random) -> None:
    """Both ways say the same of every text: a canonical one, and one with a byte changed, lost or added."""
    data = bytearray(rfc8785.dumps(value))
    assert hurried(bytes(data)) == outcome(bytes(data))
    position = draw.randrange(len(data))
    changed = draw.choice(
        [
            data[:position] + data[position + 1 :],
            data[:position] + bytes([draw.choice(b' {}[],:"\\019-.eEtfn\xc3')]) + data[position:],
            data[:position] + bytes([data[position] ^ 1 << draw.randrange(8)]) + data[position + 1 :],
        ]
    )
    assert hurried(bytes(changed)) == outcome(bytes(changed))


@settings(max_examples=count(100, 2000), deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_many_texts_at_once_are_read_otherwise_than_one_by_one(values: list[JSON], draw: random.Random) -> None:
    texts = [rfc8785.dumps(value).decode() for value in values]
    if draw.random() < 0.7:
        whole = ",".join(texts)
        cut = draw.randrange(len(whole) + 1)
        texts = draw.choice([[whole[:cut], whole[cut:]], [*texts, whole[:cut]], whole.split(",")])
    depth = draw.choice([1, 2, MAX_DEPTH])
    assert at_once(texts, depth) == one_by_one(texts, depth)


def at_once(texts: list[str], depth: int) -> str:
    try:
        return repr(read_all(texts, depth))
    except (ValueError, LedgerError):
        return "refused"


def one_by_one(texts: list[str], depth: int) -> str:
    try:
        values = [read(text.encode(), "") for text in texts]
    except LedgerError:
        return "refused"
    return "refused" if any(strict._deeper(value, depth) for value in values) else repr(values)


def test_a_text_that_spills_into_the_next_one() -> None:
    """Two lines whose join is the canonical join of two values, while neither line is one."""
    for lines in (['{"a":[1', '2]},{"b":3}'], ['{"a":"x', 'y"},{"b":3}'], ["1,2", ""], ['"a","b"', '"c"']):
        assert at_once(lines, MAX_DEPTH) == "refused"


def test_the_depth_of_what_the_writer_may_record() -> None:
    assert MAX_BODY_DEPTH + 4 <= MAX_DEPTH
    deepest = b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH
    assert read(deepest, "", 0) is not None
    assert "deeper" in refusal(b"[" + deepest + b"]")


@pytest.mark.parametrize(
    "value", [None, [], "x", 1, {"a": 1}, {"a": 1, "b": "x", "c": 1}, {"a": True, "b": "x"}, {"a": 1, "b": 1}]
)
def test_an_object_of_another_shape(value: object) -> None:
    fields({"b": "x", "a": 1}, {"a": int, "b": str}, "here")
    with pytest.raises(LedgerError, match="here"):
        fields(value, {"a": int, "b": str}, "here")


@pytest.mark.parametrize("text", ["AA=", "AA==\n", "A A=", "AB==", "AAB=", "AA", "A-==", "é", "AA==AA=="])
def test_a_second_spelling_of_the_same_bytes(text: str) -> None:
    assert unbase64("AA==", "here") == b"\0"
    with pytest.raises(LedgerError, match="here"):
        unbase64(text, "here")


def test_too_few_bytes() -> None:
    with pytest.raises(LedgerError, match="expected 2 bytes in base64, found 1"):
        unbase64("AA==", "here", 2)
