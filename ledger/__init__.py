"""What is remembered: an append-only, signed, hash-chained log, its bundle, and a verifier that trusts
neither.

Names are loaded on first use, so that `causaldao ledger --help` does not wait for a database driver and so
that the verifier can be imported without the writer. The verifying function is not among them:
`causaldao.ledger.verify` is its module, so write ``from causaldao.ledger.verify import verify``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from causaldao.ledger.bundle import export, write_policy
    from causaldao.ledger.entry import KINDS, Entry
    from causaldao.ledger.log import Head, Log, Recorded
    from causaldao.ledger.verify import Policy, Report

__all__ = ["KINDS", "Entry", "Head", "Log", "Policy", "Recorded", "Report", "export", "write_policy"]

_HOME = {
    "KINDS": "entry",
    "Entry": "entry",
    "Head": "log",
    "Log": "log",
    "Recorded": "log",
    "Policy": "verify",
    "Report": "verify",
    "export": "bundle",
    "write_policy": "bundle",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
