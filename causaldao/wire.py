"""Parcels as Flower records: the one place that knows both. Nothing is decided here.

Tensors travel as raw little-endian bytes without the `.npy` header, so that no header can claim terabytes; names,
types, shapes and sizes are checked against what the study expects before a byte is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from causaldao.errors import IdentityError
from causaldao.messages import MAX_REQUEST_BYTES, Parcel, Shape, check_shapes, sizes
from causaldao.signing import MAX_ENVELOPE_BYTES, raw_bytes

_STYPE = "raw.le"
_LEDGER = "ledger"
_DTYPES = frozenset({"int64", "float32", "float64"})


def to_records(parcel: Parcel) -> RecordDict:
    """A parcel as the content of a Flower message."""
    arrays = {
        name: Array(dtype=array.dtype.name, shape=tuple(array.shape), stype=_STYPE, data=raw_bytes(array))
        for name, array in sorted(parcel.tensors.items())
    }
    content = RecordDict({"causaldao": ConfigRecord({"envelope": parcel.envelope}), "tensors": ArrayRecord(arrays)})
    return with_trail(content, parcel.trail) if parcel.trail else content


def with_trail(content: RecordDict, trail: bytes) -> RecordDict:
    """The same records, not copied, and beside them what is shown or said of the ledger."""
    return RecordDict({**content, _LEDGER: ConfigRecord({"trail": trail})})


def from_records(content: RecordDict, expected: Mapping[str, Shape] | None = None) -> Parcel:
    """The parcel in a message's content.

    ``expected`` gives the tensors that the study fixes; without it (a node reads a request that it will check by
    digest) only the total size is bounded.

    Raises
    ------
    IdentityError
        missing records, an oversized envelope, tensors of another name, type, shape or size.
    """
    envelope = content["causaldao"].get("envelope") if "causaldao" in content.config_records else None
    arrays = content.array_records.get("tensors")
    trail = content[_LEDGER].get("trail") if _LEDGER in content.config_records else b""
    records = 2 + (_LEDGER in content)
    if not isinstance(envelope, bytes) or arrays is None or not isinstance(trail, bytes) or len(content) != records:
        raise IdentityError("The message does not hold the records 'causaldao' and 'tensors', and maybe 'ledger'.")
    _check_sizes(envelope, arrays, expected)
    return Parcel(envelope, {name: _array(name, array) for name, array in arrays.items()}, trail)


def _check_sizes(envelope: bytes, arrays: ArrayRecord, expected: Mapping[str, Shape] | None) -> None:
    total, bound = sum(len(array.data) for array in arrays.values()), MAX_REQUEST_BYTES
    if expected is not None:
        bound = sizes(expected)
    if total > bound or len(envelope) > (MAX_REQUEST_BYTES if expected is None else MAX_ENVELOPE_BYTES):
        raise IdentityError(
            f"The message has {total} bytes of tensors and {len(envelope)} of envelope; the study allows {bound} and "
            f"{MAX_ENVELOPE_BYTES}: it was not read."
        )
    if expected is not None:
        check_shapes(arrays, expected)


def _array(name: str, array: Array) -> np.ndarray[Any, np.dtype[Any]]:
    if array.stype != _STYPE or array.dtype not in _DTYPES:
        raise IdentityError(f"Tensor {name!r} is {array.stype} {array.dtype}; only raw little-endian numbers are read.")
    dtype = np.dtype(array.dtype).newbyteorder("<")
    if any(side < 0 for side in array.shape) or len(array.data) != dtype.itemsize * int(
        np.prod(array.shape, dtype=object)
    ):
        raise IdentityError(f"Tensor {name!r} claims the shape {array.shape}, but has {len(array.data)} bytes.")
    return np.frombuffer(array.data, dtype=dtype).reshape(array.shape)
