"""The bundle: a whole ledger in one file of canonical JSON that anyone can verify offline.

    {"cosignatures": [], "entries": [{"record": …, "signature": base64}, …], "format": "causaldao-bundle/1",
     "head": {"root", "signature", "size", "time"}, "origin": …, "payloads": {sha256: base64, …}}

The bytes are RFC 8785 of that value, so a ledger has exactly one bundle for each size. The policy, with
the keys that are to be trusted, is *not* in it: it must reach the auditor by another way.

A bundle of an older head is a true bundle of the ledger as it was then: cutting a ledger short at a signed
head cannot be seen from the file alone. Compare size and root with what a member holds; cosigned heads will
settle it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from causaldao.errors import LedgerError
from causaldao.ledger.log import Log, Recorded
from causaldao.signing import SigningKey, VerifyKey, canonical, check_name

FORMAT = "causaldao-bundle/1"
MAX_BUNDLE_BYTES = 256 << 20


def export(log: Log) -> bytes:
    """The bundle of the log as it stands in its database: deterministic, canonical.

    Raises
    ------
    LedgerError
        the log is empty, or the bundle would be larger than a verifier reads.
    """
    snapshot = log.snapshot()
    head = snapshot.head
    if head.size == 0:
        raise LedgerError(f"The ledger of {head.origin!r} is empty: there is nothing to export before its genesis.")
    sections = {
        "cosignatures": b"[]",
        "entries": b"[" + b",".join(map(_entry, snapshot.entries)) + b"]",
        "format": canonical(FORMAT),
        "head": canonical({"root": head.root, "signature": head.signature, "size": head.size, "time": head.time}),
        "origin": canonical(head.origin),
        "payloads": _payloads(snapshot.payloads),
    }
    bundle = b"{" + b",".join(b'"%b":%b' % (name.encode(), sections[name]) for name in sorted(sections)) + b"}"
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise LedgerError(f"The bundle has {len(bundle)} bytes, a verifier reads at most {MAX_BUNDLE_BYTES}.")
    return bundle


def write_policy(origin: str, key: SigningKey | VerifyKey, members: Mapping[str, VerifyKey], quorum: int = 0) -> str:
    """The text of a policy file: the log's key, the members' keys and how many cosigners a head needs."""
    public = key.public if isinstance(key, SigningKey) else key
    lines = [f"log {public.to_text(origin)}"]
    lines += [f"member {member.to_text(check_name(name))}" for name, member in sorted(members.items())]
    return "\n".join([*lines, f"quorum {quorum}", ""])


def _entry(entry: Recorded) -> bytes:
    # Spliced, not parsed and written anew: the bytes that were signed are the bytes that travel.
    return b'{"record":%b,"signature":%b}' % (entry.record, canonical(entry.signature))


def _payloads(payloads: Mapping[str, bytes]) -> bytes:
    pairs = (b'"%b":"%b"' % (name.encode(), base64.b64encode(payloads[name])) for name in sorted(payloads))
    return b"{" + b",".join(pairs) + b"}"
