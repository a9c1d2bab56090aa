"""Reading a ledger: from its database (`Local`), or from the coordinator over the wire (`Remote`).

Both answer the questions of ``ledger.proto``. Neither is to be believed: who asks checks signatures and proofs against
a policy (`causaldao.ledger.monitor`, `causaldao.ledger.verify`). What comes over the wire is bounded before it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from causaldao.errors import CausalDAOError, IdentityError, LedgerError, MisuseError, NetworkError
from causaldao.ledger import ledger_pb2 as pb
from causaldao.ledger.note import MAX_PROOF_HASHES, Verifier, signer, with_cosignatures
from causaldao.ledger.receipt import Pending, Receipt
from causaldao.logs import visible

if TYPE_CHECKING:
    from causaldao.ledger.log import Log

SERVICE = "causaldao.ledger.v1.Ledger"
MAX_ENTRIES = 100_000  # of one call
MAX_RECORD_BYTES = 5 << 20  # a body has at most 4 MiB, and its record little more
MAX_RESPONSE_BYTES = 6 << 20  # a receipt brings a record; a message of `Entries` stays below 1 MiB
PAGE = 10_000  # entries that this reader asks for at once
SECONDS = 60.0
FILES = ("authority.crt", "tls.pem", "certificate.pem")
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # each reader connects anew
)
_DISTRUST = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification")  # what gRPC says of a certificate it will not have
_Answer = TypeVar("_Answer", bound=Message)


@dataclass(frozen=True)
class Shown:
    """A checkpoint: its signed note with cosignatures, whether a quorum of the members cosigned it, and how many
    entries are recorded now. The last two are the reader's word, unsigned."""

    note: str
    agreed: bool
    log_size: int


@dataclass(frozen=True)
class Told:
    """An entry: its index, its record's canonical bytes, the log's own signature in base64."""

    index: int
    record: bytes
    signature: str


class Reader(Protocol):
    """What a ledger can be asked. Sizes and indices that it has not are a MisuseError."""

    def checkpoint(self, size: int | None = None, *, head: bool = False) -> Shown:
        """The newest checkpoint that a quorum of the members cosigned, and the log's newest if there is none; with
        ``size`` the one of that size, if a member cosigned it; with ``head`` the log's newest, whoever cosigned it."""
        ...

    def entries(self, start: int, stop: int) -> Iterator[Told]:
        """The entries with start ≤ index < stop, in order."""
        ...

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """The proof (RFC 9162, 2.1.3) that an entry is in the tree of a size."""
        ...

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """The proof (RFC 9162, 2.1.4) that the tree of size ``new`` begins with the one of size ``old``."""
        ...

    def receipt(self, index: int) -> Receipt | Pending: ...

    def cosignatures(self, size: int) -> tuple[str, ...]:
        """The cosignature lines that are kept of the checkpoint of that size, by name."""
        ...


class Local:
    """A ledger in its database. ``electorate`` gives those whose cosignatures count now, and how many must agree."""

    def __init__(self, log: Log, electorate: Callable[[], tuple[Collection[Verifier], int]]) -> None:
        self._log = log
        self._electorate = electorate

    def checkpoint(self, size: int | None = None, *, head: bool = False) -> Shown:
        newest = self._log.refresh().size
        witnesses, quorum = self._electorate()
        if size is None and not head:
            agreed = self._log.agreed(witnesses, quorum)
            if agreed is not None:
                return Shown(agreed, True, newest)
        wanted = newest if size is None else size
        lines = self._log.cosignatures(wanted) if wanted <= newest else {}
        _require(
            wanted == newest or bool(lines),
            f"no checkpoint of size {wanted} is kept: ask for one that a member cosigned, or for the newest, {newest}",
        )
        note = with_cosignatures(self._log.note_at(wanted), lines.values())
        known = {witness.by for witness in witnesses}
        return Shown(note, len(known.intersection(map(signer, lines.values()))) >= quorum, newest)

    def entries(self, start: int, stop: int) -> Iterator[Told]:
        self._require_range(start, stop)
        many = 8
        while start < stop:
            found = self._log.entries(start, min(start + many, stop))
            for entry in found:
                yield Told(entry.index, entry.record, entry.signature)
            start += len(found)
            # About a mebibyte at a time: a record may have four, and most have a few hundred bytes.
            largest = max((len(entry.record) for entry in found), default=1)
            many = max(1, min(2 * many, (1 << 20) // largest))

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        self._require_size(size)
        _require(index < size, f"entry {index} is in no tree of size {size}")
        return tuple(self._log.inclusion_proof(index, size))

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        self._require_size(new)
        _require(old <= new, f"a tree of size {new} cannot begin with one of size {old}")
        return tuple(self._log.consistency_proof(old, new))

    def receipt(self, index: int) -> Receipt | Pending:
        self._require_range(index, index + 1)
        return self._log.receipt(index, *self._electorate())

    def cosignatures(self, size: int) -> tuple[str, ...]:
        self._require_size(size)
        return tuple(line for _, line in sorted(self._log.cosignatures(size).items()))

    def _require_size(self, size: int) -> None:
        newest = self._log.refresh().size
        _require(size <= newest, f"there is no tree of size {size}: the log has {newest} entries")

    def _require_range(self, start: int, stop: int) -> None:
        newest = self._log.refresh().size
        _require(start <= stop <= newest, f"there are no entries {start} to {stop - 1}: the log has {newest} entries")


class Remote:
    """A ledger over the wire. Close it, or use it in a `with`.

    Raises, from each of its questions
    ----------------------------------
    IdentityError
        the coordinator does not admit the certificate that was shown, or is not whom the pinned authority certified.
    NetworkError
        it cannot be reached, or cannot answer now.
    LedgerError
        it answers with something that is no answer.
    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials, seconds: float = SECONDS) -> None:
        self._address = address
        self._seconds = seconds
        self._channel = grpc.secure_channel(address, credentials, _OPTIONS)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def checkpoint(self, size: int | None = None, *, head: bool = False) -> Shown:
        request = pb.CheckpointRequest(head=True) if head else pb.CheckpointRequest(size=size)
        found = self._ask("Checkpoint", request, pb.CheckpointResponse)
        return Shown(found.note, found.agreed, found.log_size)

    def entries(self, start: int, stop: int) -> Iterator[Told]:
        for first in range(start, stop, PAGE):
            last = min(first + PAGE, stop)
            index = first
            for entry in self._stream(first, last):
                if entry.index != index or index >= last:
                    raise LedgerError(f"The ledger at {self._address} sent entry {entry.index} in place of {index}.")
                index += 1
                yield entry
            if index != last:
                raise LedgerError(f"The ledger at {self._address} sent {index - first} of {last - first} entries.")

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        return self._hashes("Inclusion", pb.InclusionRequest(index=index, size=size))

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        return self._hashes("Consistency", pb.ConsistencyRequest(old_size=old, new_size=new))

    def receipt(self, index: int) -> Receipt | Pending:
        found = self._ask("Receipt", pb.ReceiptRequest(index=index), pb.ReceiptResponse)
        if found.WhichOneof("answer") == "pending":
            return Pending(found.pending.agreed_size)
        return Receipt(found.receipt.proof, found.receipt.record)

    def cosignatures(self, size: int) -> tuple[str, ...]:
        found = self._ask("Cosignatures", pb.CosignaturesRequest(size=size), pb.CosignaturesResponse)
        return tuple(found.lines)

    def _hashes(self, method: str, request: Message) -> tuple[bytes, ...]:
        found = tuple(self._ask(method, request, pb.Hashes).hashes)
        if len(found) > MAX_PROOF_HASHES:
            raise LedgerError(f"The ledger at {self._address} sent {len(found)} hashes, a proof has at most 64.")
        return found

    def _stream(self, start: int, stop: int) -> Iterator[Told]:
        ask: Any = self._channel.unary_stream(f"/{SERVICE}/Entries")
        request = pb.EntriesRequest(start=start, stop=stop).SerializeToString()
        begun = bytearray()
        with self._answers():
            for data in ask(request, timeout=self._seconds):
                for item in _parsed(data, pb.EntriesResponse).entries:
                    begun += item.record
                    if len(begun) > MAX_RECORD_BYTES:
                        raise LedgerError(
                            f"The record of entry {item.index} at {self._address} has more than {MAX_RECORD_BYTES} "
                            "bytes: no log of ours writes such a one."
                        )
                    if not item.goes_on:
                        yield Told(item.index, bytes(begun), item.signature)
                        begun.clear()

    def _ask(self, method: str, request: Message, kind: type[_Answer]) -> _Answer:
        ask: Any = self._channel.unary_unary(f"/{SERVICE}/{method}")
        with self._answers():
            return _parsed(ask(request.SerializeToString(), timeout=self._seconds), kind)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise _told(error, self._address) from error
        except DecodeError as error:
            raise LedgerError(f"What {self._address} answers is no message of a ledger.") from error


def credentials(folder: Path) -> grpc.ChannelCredentials:
    """What a member shows, and whom it trusts: the files of its node's folder.

    Raises
    ------
    IdentityError
        one of them is missing: the node has not joined, or has no certificate yet.
    """
    try:
        authority, key, certificate = ((folder / name).read_bytes() for name in FILES)
    except OSError as error:
        raise IdentityError(
            f"{error.filename} cannot be read ({error.strerror}): name the folder of a node that has joined and was "
            f"admitted, which holds {', '.join(FILES)}."
        ) from error
    return grpc.ssl_channel_credentials(authority, key, certificate)


def _parsed(data: bytes, kind: type[_Answer]) -> _Answer:
    return kind.FromString(data)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise MisuseError(f"{otherwise[0].upper()}{otherwise[1:]}.")


def _told(error: grpc.RpcError, address: str) -> CausalDAOError:
    """An error of the wire as one of ours."""
    status, details = error.code(), visible(error.details() or "")[:600]
    if any(word in details for word in _DISTRUST):
        return IdentityError(
            f"Whoever answers at {address} is not the coordinator that this node trusts: its certificate is not one of "
            "the pinned authority for that address. Check the address with the operator."
        )
    if status in _REFUSALS:
        return _REFUSALS[status](f"The ledger at {address} says: {details}")
    if status == grpc.StatusCode.UNIMPLEMENTED:
        return NetworkError(f"What answers at {address} is no ledger of causaldao: check the address and the port.")
    return NetworkError(
        f"The ledger at {address} did not answer ({details or status.name}): check that the address can be reached "
        "from here, that the coordinator runs, and that this node's certificate has not expired."
    )


_REFUSALS: dict[grpc.StatusCode, type[CausalDAOError]] = {
    grpc.StatusCode.UNAUTHENTICATED: IdentityError,
    grpc.StatusCode.INVALID_ARGUMENT: MisuseError,
    grpc.StatusCode.OUT_OF_RANGE: MisuseError,
}
