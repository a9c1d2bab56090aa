"""What crosses the wire: a parcel is a signed envelope and the tensors whose digest it carries.

A *request* is signed by the coordinator, a *reply* by a member. Requests name the study by hash; replies echo nothing
but their slot. Of a failure only the error's code crosses, in a signed ``refusal``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as _load
from safetensors.numpy import save as _save

from causaldao.errors import IdentityError
from causaldao.signing import SigningKey, Statement, Tensors, VerifyKey, digest, seal, unseal

COORDINATOR = "coordinator"  # the name under which requests are signed
REFUSAL = "refusal."  # prefix of the kind of a signed refusal
MAX_REQUEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Parcel:
    """An envelope (DSSE bytes), the tensors that travel beside it, and what the message shows or says of the ledger
    (`causaldao.trail`; empty: nothing)."""

    envelope: bytes
    tensors: Tensors = field(default_factory=dict)
    trail: bytes = b""

    def pack(self) -> bytes:
        """One byte string (safetensors with the envelope as metadata): what a release cache stores. What is said of the
        ledger is of the moment, and is not part of it."""
        return bytes(_save(dict(self.tensors), {"envelope": base64.b64encode(self.envelope).decode()}))

    @staticmethod
    def unpack(data: bytes) -> Parcel:
        """Read what `pack` wrote. Data on the node's own disk, but read without trust all the same."""
        try:
            length = int.from_bytes(data[:8], "little")
            envelope = json.loads(data[8 : 8 + length])["__metadata__"]["envelope"]
            return Parcel(base64.b64decode(envelope), _load(data))
        except (SafetensorError, KeyError, ValueError) as error:
            raise IdentityError(f"A stored parcel cannot be read: {error}.") from error


@dataclass(frozen=True)
class Shape:
    """What a tensor of a reply must be: dtype name and shape; `None` never occurs, all sizes are public."""

    dtype: str
    shape: tuple[int, ...]


def make(
    key: SigningKey,
    *,
    federation: str,
    study: str,
    round: int,
    member: str,
    kind: str,
    body: Mapping[str, Any],
    nonce: str,
    parent: str,
    tensors: Tensors | None = None,
) -> Parcel:
    """Seal a statement over a body and tensors."""
    tensors = tensors or {}
    statement = Statement(
        federation=federation, study=study, round=round, member=member, kind=kind, body=dict(body), nonce=nonce,
        parent=parent, digest=digest(tensors),
    )  # fmt: skip
    return Parcel(seal(statement, key), tensors)


def open_request(parcel: Parcel, coordinator: VerifyKey, federation: str) -> Statement:
    """The statement of a request, if the pinned coordinator signed it for this federation and these tensors.

    Raises
    ------
    IdentityError
        another signer, another federation, a reply passed off as a request, altered tensors.
    """
    statement = unseal(parcel.envelope, coordinator, MAX_REQUEST_BYTES)
    if statement.federation != federation or statement.member != COORDINATOR:
        raise IdentityError(
            f"The request speaks for {statement.member!r} of {statement.federation!r}, not for {federation!r}."
        )
    check_tensors(parcel, statement)
    return statement


def check_tensors(parcel: Parcel, statement: Statement) -> None:
    """Refuse tensors other than those whose digest was signed."""
    if digest(parcel.tensors) != statement.digest:
        raise IdentityError(f"The tensors beside {statement.member}'s {statement.kind} are not those that were signed.")


def fields(body: Mapping[str, Any], expected: Mapping[str, type | tuple[type, ...]]) -> None:
    """Refuse a body with missing, unknown or ill-typed fields; this is how a seed in a message is refused."""
    wrong = sorted(set(body) ^ set(expected)) or sorted(
        name for name, kinds in expected.items() if not isinstance(body[name], kinds) or isinstance(body[name], bool)
    )
    if wrong:
        raise IdentityError(f"The message's fields {wrong} are missing, unknown or of the wrong type.")


def check_shapes(tensors: Mapping[str, Any], expected: Mapping[str, Shape]) -> None:
    """Refuse tensors of other names, dtypes or shapes than the study fixes.

    Works on anything with ``dtype`` and ``shape``, so that it can be asked before a byte is copied.
    """
    if set(tensors) != set(expected):
        raise IdentityError(f"Expected the tensors {sorted(expected)}, but got {sorted(map(str, tensors))[:5]}.")
    for name, want in expected.items():
        got = Shape(str(tensors[name].dtype), tuple(tensors[name].shape))
        if got != want:
            raise IdentityError(
                f"Tensor {name!r} is {got.dtype} {got.shape}, but the study makes it {want.dtype} {want.shape}."
            )


def check_finite(tensors: Tensors) -> None:
    """Refuse NaN and infinities."""
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise IdentityError(f"Tensor {name!r} holds NaN or an infinity.")


def sizes(expected: Mapping[str, Shape]) -> int:
    """Bytes of the tensors that a reply must have."""
    return sum(int(np.dtype(s.dtype).itemsize * np.prod(s.shape, dtype=np.int64)) for s in expected.values())


def names_of(values: Sequence[str], limit: int = 6) -> str:
    """A short list for a message."""
    shown = ", ".join(values[:limit])
    return shown + (f" and {len(values) - limit} more" if len(values) > limit else "") if values else "none"
