"""The bundle: a whole ledger in one file that anyone can verify offline.

Lines of canonical JSON (RFC 8785), then the signed checkpoint (C2SP tlog-checkpoint) to the end of the file:

    {"entries":N,"format":"causaldao-bundle/2","origin":…,"payloads":P}
    {"record":{…},"signature":base64}        N times, in their order
    {"data":base64,"sha256":hex}             P times, sorted by hash
    ORIGIN
    N
    base64(root)
    (an empty line)
    — ORIGIN base64(…)                       then the cosignatures, sorted by name

So a ledger with its cosignatures has exactly one bundle for each size. Payloads that were erased are not in it. The
policy, with the keys that are to be trusted, is *not* in it either: it must reach the auditor by another way.

A bundle of an older checkpoint is a true bundle of the ledger as it was then. What the members' witnesses cosigned
since shows that it is old: compare size and root with what a member holds, or ask for a newer one.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from causaldao.errors import ConfigurationError, LedgerError
from causaldao.ledger.log import Log, Recorded
from causaldao.ledger.note import COSIGNER, Verifier
from causaldao.signing import SigningKey, VerifyKey, canonical, check_name

FORMAT = "causaldao-bundle/2"
MAX_BUNDLE_BYTES = 1 << 30
GROUP = "members"  # of a policy: the witnesses
NOBODY: Mapping[str, VerifyKey] = MappingProxyType({})


def export(log: Log, size: int | None = None) -> bytes:
    """The bundle of the log's first ``size`` entries, of all by default: deterministic, canonical.

    Raises
    ------
    LedgerError
        the log is empty or smaller, or the bundle would be larger than a verifier reads.
    """
    snapshot = log.snapshot(size)
    head = snapshot.head
    if head.size == 0:
        raise LedgerError(f"The ledger of {head.origin!r} is empty: there is nothing to export before its genesis.")
    header = {"entries": head.size, "format": FORMAT, "origin": head.origin, "payloads": len(snapshot.payloads)}
    lines = [canonical(header), *map(_entry, snapshot.entries), *_payloads(snapshot.payloads)]
    bundle = b"\n".join([*lines, snapshot.note.encode()])
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise LedgerError(f"The bundle has {len(bundle)} bytes, a verifier reads at most {MAX_BUNDLE_BYTES}.")
    return bundle


def write_policy(
    origin: str,
    key: SigningKey | VerifyKey,
    members: Mapping[str, VerifyKey | Sequence[VerifyKey]],
    witnesses: Mapping[str, VerifyKey] = NOBODY,
    quorum: int = 0,
) -> str:
    """The text of a policy file (C2SP tlog-policy): the log's key, the witnesses and how many of them must cosign.

    ``members`` are all that were ever admitted with every signing key they ever had, ``witnesses`` those of today with
    their witness keys, ``quorum`` of whom are asked for.

    Raises
    ------
    ConfigurationError
        more cosigners are asked for than there are witnesses.
    """
    if not 0 <= quorum <= len(witnesses):
        raise ConfigurationError(
            f"The policy asks for {quorum} cosigners, but names {len(witnesses)} witnesses: ask for 0 to as many."
        )
    public = key.public if isinstance(key, SigningKey) else key
    lines = [f"log {public.to_text(origin)}"]
    lines += [f"witness {_label(name)} {_vkey(name, witness)}" for name, witness in sorted(witnesses.items())]
    if quorum:
        lines += [f"group {GROUP} {quorum} {' '.join(map(_label, sorted(witnesses)))}"]
    lines += [f"quorum {GROUP if quorum else 'none'}"]
    for name, keys in sorted(members.items()):
        several: Iterable[VerifyKey] = [keys] if isinstance(keys, VerifyKey) else keys
        lines += [f"# causaldao member {one.to_text(check_name(name))}" for one in several]
    return "\n".join([*lines, ""])


def _label(name: str) -> str:
    """What a policy calls a member's witness: its name, unless a policy means something else by it."""
    return f"{name}.witness" if name in (GROUP, "none") else name


def _vkey(name: str, key: VerifyKey) -> str:
    return Verifier.of(check_name(name), key, COSIGNER).text


def _entry(entry: Recorded) -> bytes:
    # Spliced, not parsed and written anew: the bytes that were signed are the bytes that travel.
    return b'{"record":%b,"signature":%b}' % (entry.record, canonical(entry.signature))


def _payloads(payloads: Mapping[str, bytes]) -> Iterator[bytes]:
    return (
        b'{"data":"%b","sha256":"%b"}' % (base64.b64encode(payloads[name]), name.encode()) for name in sorted(payloads)
    )
