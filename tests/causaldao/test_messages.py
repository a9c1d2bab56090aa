"""What crosses the wire: forged, replayed, altered, oversize or ill-formed, nothing of it is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from causaldao.errors import IdentityError
from causaldao.messages import (
    COORDINATOR,
    Parcel,
    Shape,
    check_finite,
    check_shapes,
    check_tensors,
    fields,
    make,
    names_of,
    open_request,
    sizes,
)
from causaldao.signing import MAX_ENVELOPE_BYTES, SigningKey, unseal
from causaldao.wire import from_records, to_records

KEY = SigningKey.from_seed(b"c" * 32)
OTHER = SigningKey.from_seed(b"m" * 32)
TENSORS = {"delta": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array([2**60], dtype=np.int64)}
SHAPES = {"delta": Shape("float32", (2, 3)), "count": Shape("int64", (1,))}


def _request(key: SigningKey = KEY, **changes: Any) -> Parcel:
    options: dict[str, Any] = {
        "federation": "north", "study": "s", "round": 1, "member": COORDINATOR, "kind": "update", "body": {"a": 1},
        "nonce": "n", "parent": "p", "tensors": TENSORS,
    }  # fmt: skip
    return make(key, **{**options, **changes})


def _same(found: Parcel, sent: Parcel) -> None:
    assert found.envelope == sent.envelope
    assert set(found.tensors) == set(sent.tensors)
    for name, array in sent.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], array, strict=False)
        assert found.tensors[name].dtype.name == array.dtype.name


def test_a_request_is_not_heard() -> None:
    statement = open_request(_request(), KEY.public, "north")
    assert (statement.kind, statement.round, statement.body) == ("update", 1, {"a": 1})


@pytest.mark.parametrize("parcel", [
    _request(OTHER), _request(federation="south"), _request(member="ada"),
    Parcel(_request().envelope, {}), Parcel(_request().envelope, {**TENSORS, "more": TENSORS["count"]}),
    Parcel(_request().envelope, {**TENSORS, "delta": TENSORS["delta"] + 1}),
    Parcel(_request().envelope, {**TENSORS, "delta": TENSORS["delta"].reshape(3, 2)}),
    Parcel(_request().envelope, {**TENSORS, "delta": TENSORS["delta"].astype(np.float64)}),
    Parcel(_request().envelope, {"delta ": TENSORS["delta"], "count": TENSORS["count"]}),
])  # fmt: skip
def test_a_forged_request_is_heard(parcel: Parcel) -> None:
    with pytest.raises(IdentityError):
        open_request(parcel, KEY.public, "north")


def test_a_parcel_changes_on_the_wire_or_on_the_disk() -> None:
    sent = _request()
    _same(from_records(to_records(sent)), sent)
    _same(from_records(to_records(sent), SHAPES), sent)
    _same(Parcel.unpack(sent.pack()), sent)
    odd = _request(tensors={"delta": np.asfortranarray(TENSORS["delta"]).astype(">f4"), "count": TENSORS["count"]})
    arrived = from_records(to_records(odd), SHAPES)
    check_tensors(arrived, unseal(arrived.envelope, KEY.public))
    empty = _request(tensors={})
    _same(from_records(to_records(empty), {}), empty)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 8, b"\x02\x00\x00\x00\x00\x00\x00\x00{}", b"\x00" * 100, _request().pack()[:-1]]
)
def test_a_damaged_store_is_read(data: bytes) -> None:
    with pytest.raises(IdentityError):
        Parcel.unpack(data)


def _records(array: Array | None = None, **changes: Any) -> RecordDict:
    record = to_records(_request())
    arrays = dict(record.array_records["tensors"])
    if array is not None:
        arrays["delta"] = array
    content = {"causaldao": record.config_records["causaldao"], "tensors": ArrayRecord(arrays), **changes}
    return RecordDict({name: value for name, value in content.items() if value is not None})


@pytest.mark.parametrize("content", [
    _records(causaldao=None), _records(tensors=None), _records(more=ConfigRecord()), RecordDict(),
    _records(causaldao=ConfigRecord({})), _records(causaldao=ConfigRecord({"envelope": "text"})),
    _records(tensors=ConfigRecord({"envelope": b""})),
])  # fmt: skip
def test_records_of_another_form_are_read(content: RecordDict) -> None:
    for expected in (None, SHAPES):
        with pytest.raises(IdentityError):
            from_records(content, expected)


GOOD = TENSORS["delta"].tobytes()


@pytest.mark.parametrize("array", [
    Array("float32", (2, 3), "numpy.ndarray", GOOD), Array("object", (2, 3), "raw.le", GOOD),
    Array("float16", (3, 4), "raw.le", GOOD), Array("float32", (2**40, 2**40), "raw.le", GOOD),
    Array("float32", (-2, -3), "raw.le", GOOD), Array("float32", (2, 3), "raw.le", b""),
    Array("float32", (2, 3), "raw.le", GOOD + b"\0"), Array("float32", (0, 3), "raw.le", GOOD),
    Array("float32", (), "raw.le", GOOD), Array("float32", (2**64, 0), "raw.le", GOOD),
])  # fmt: skip
def test_a_header_that_claims_what_is_not_there(array: Array) -> None:
    for expected in (None, SHAPES):
        with pytest.raises(IdentityError):
            from_records(_records(array), expected)


@pytest.mark.parametrize("shapes", [
    {"delta": SHAPES["delta"]}, {**SHAPES, "more": Shape("int64", (1,))}, {**SHAPES, "delta": Shape("float32", (3, 2))},
    {**SHAPES, "delta": Shape("float64", (2, 3))}, {**SHAPES, "count": Shape("int64", (2,))}, {},
])  # fmt: skip
def test_tensors_that_the_study_does_not_fix(shapes: dict[str, Shape]) -> None:
    with pytest.raises(IdentityError):
        from_records(to_records(_request()), shapes)
    with pytest.raises(IdentityError):
        check_shapes(TENSORS, shapes)


def test_an_oversize_message_is_read() -> None:
    big = replace(_request(), envelope=b"x" * (MAX_ENVELOPE_BYTES + 1))
    with pytest.raises(IdentityError, match="not read"):
        from_records(to_records(big), SHAPES)
    assert sizes(SHAPES) == 6 * 4 + 8


def test_numbers_that_are_none() -> None:
    check_finite(TENSORS)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(IdentityError, match="'x'"):
            check_finite({"x": np.array([1.0, value])})


@pytest.mark.parametrize("body", [
    {"model": {}, "seed": 1}, {}, {"seed": 1}, {"model": []}, {"model": None}, {"model": {}, "../x": 1},
])  # fmt: skip
def test_a_seed_comes_in_a_message(body: dict[str, Any]) -> None:
    fields({"model": {}}, {"model": dict})
    with pytest.raises(IdentityError):
        fields(body, {"model": dict})


def test_true_passes_for_a_number() -> None:
    with pytest.raises(IdentityError):
        fields({"round": True}, {"round": int})


def test_a_list_of_names_fills_the_screen() -> None:
    assert names_of([]) == "none"
    assert names_of(["a", "b"]) == "a, b"
    assert names_of([str(k) for k in range(9)]) == "0, 1, 2, 3, 4, 5 and 3 more"
