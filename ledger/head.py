"""The head of a log: a C2SP checkpoint that the log's key signed, and what goes on from it."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from causaldao.errors import IdentityError, LedgerError
from causaldao.ledger.note import LOG, Checkpoint, Verifier
from causaldao.ledger.tree import Edge
from causaldao.signing import SigningKey


@dataclass(frozen=True)
class Head:
    """The signed state of a log: ``size`` entries under ``root``, the Merkle root (64 hex digits).

    ``signature`` is the log's over the checkpoint's text, plain Ed25519 in base64; ``key`` is the verifier key of who
    signed. ``time`` informs and is not signed.
    """

    origin: str
    size: int
    root: str
    time: str
    signature: str
    key: str

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.origin, self.size, bytes.fromhex(self.root))

    @property
    def note(self) -> str:
        """The checkpoint as a signed note (C2SP signed-note), with the log's signature alone."""
        signature = Verifier.parse(self.key).id + base64.b64decode(self.signature)
        return f"{self.checkpoint.text}\n— {self.origin} {base64.b64encode(signature).decode()}\n"


@dataclass(frozen=True)
class Seen:
    """The end of a log as somebody last saw it: enough to go on from it, and to check that others did.

    ``link`` is the last one of the chain, ``edge`` the Merkle tree's.
    """

    head: Head
    link: str
    edge: Edge


def sign_head(key: SigningKey, checkpoint: Checkpoint, time: str) -> Head:
    """The head of that checkpoint. The same key signs the same checkpoint with the same bytes (RFC 8032)."""
    signature = base64.b64encode(key.sign(checkpoint.text.encode())).decode()
    verifier = Verifier.of(checkpoint.origin, key.public, LOG)
    return Head(checkpoint.origin, checkpoint.size, checkpoint.root.hex(), time, signature, verifier.text)


def check_signer(key: SigningKey, head: Head) -> None:
    """Return None if ``key`` signed the head; raise LedgerError otherwise."""
    try:
        key.public.verify(base64.b64decode(head.signature), head.checkpoint.text.encode())
        signed = head.key == Verifier.of(head.origin, key.public, LOG).text
    except (IdentityError, ValueError):
        signed = False
    if not signed:
        raise LedgerError(
            f"The head of {head.origin!r} at size {head.size} was not signed by key {key.public.id}: "
            "this is another log's key, or the head was altered."
        )
