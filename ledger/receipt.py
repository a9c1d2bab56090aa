"""What a ledger answers to whoever asks for the receipt of an entry."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Receipt:
    """A proof that anybody can check offline: ``text`` is a C2SP tlog-proof, its leaf's data is ``record``."""

    text: str
    record: bytes


@dataclass(frozen=True)
class Pending:
    """There is no receipt yet: no quorum has cosigned a checkpoint larger than ``agreed_size``."""

    agreed_size: int
