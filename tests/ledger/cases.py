"""A small ledger with every part that a verifier looks at, and tools to forge bundles of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from causaldao.ledger import Entry, Log, write_policy
from causaldao.ledger.note import COSIGNER, Verifier
from causaldao.ledger.verify import Policy
from causaldao.signing import SigningKey, Statement, digest, manifest, raw_bytes, seal, sha256

ORIGIN = "causaldao.example/north"
FEDERATION = "north"
STUDY = sha256(b"a study")
LOG_KEY = SigningKey.from_seed(b"L" * 32)
OTHER_KEY = SigningKey.from_seed(b"X" * 32)
MEMBERS = {name: SigningKey.from_seed(name.encode().ljust(32, b".")) for name in ("ada", "bob")}


def clock() -> Callable[[], datetime]:
    """A clock that starts at one moment and goes on by a second a look."""
    ticks = iter(range(10**6))
    return lambda: datetime(2025, 1, 31, 12, tzinfo=UTC) + timedelta(seconds=next(ticks))


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def statement(member: str, kind: str, body: dict[str, Any], **changes: Any) -> Statement:
    fields: dict[str, Any] = {
        "federation": FEDERATION, "study": STUDY, "round": 0, "member": member, "kind": kind, "body": body,
        "nonce": "00", "parent": "", "digest": digest({}),
    }  # fmt: skip
    return Statement(**{**fields, **changes})


def spoken(member: str, kind: str, body: dict[str, Any], key: SigningKey | None = None, **changes: Any) -> Entry:
    """An entry of one member's own words."""
    envelope = seal(statement(member, kind, body, **changes), key or MEMBERS[member])
    return Entry(kind, {"member": member, "envelope": envelope.decode()})


def genesis() -> Entry:
    return Entry("genesis", {"federation": FEDERATION, "faulty": 0, "note": 'quotes " and \\ and ü and \u2028'})


def admit(member: str, epoch: int = 0) -> Entry:
    key = MEMBERS.get(member) or SigningKey.from_seed(member.encode().ljust(32, b"."))
    watch = Verifier.of(member, witness(member).public, COSIGNER).text
    body = {"member": member, "key": key.public.to_text(member), "witness": watch, "epoch": epoch}
    return Entry("member.admit", body)


def admissions() -> list[Entry]:
    """The members, admitted in the founding."""
    return [admit(member, epoch) for epoch, member in enumerate(MEMBERS)]


def revoke(member: str) -> Entry:
    return Entry("member.revoke", {"member": member, "reason": "left"})


def witness(member: str) -> SigningKey:
    return SigningKey.from_seed(f"witness {member}".encode().ljust(32, b"."))


def evidence(member: str) -> Entry:
    tensors = {"moments": np.arange(6, dtype=np.int64) + member.encode()[0]}
    said = statement(member, "evidence", {"noise": 12.5}, digest=digest(tensors))
    body = {
        "member": member,
        "envelope": seal(said, MEMBERS[member]).decode(),
        "manifest": manifest(tensors),
    }
    data = raw_bytes(tensors["moments"])
    return Entry("evidence", body, {sha256(data): data})


def entries() -> list[Entry]:
    """A short study: admission, evidence with payloads, ballots, floats of every size."""
    return [
        genesis(),
        *admissions(),
        Entry("study.proposed", {"study": STUDY, "question": "what causes what?"}),
        evidence("ada"),
        evidence("bob"),
        Entry("aggregate", {"gram": [[1.0, 1e-7, -0.1], [1e21, 123456.789, 5e-324], [1e20, 0.0, 2.5e-6]]}),
        spoken("ada", "ballot", {"marks": [1, 0, -1]}),
        spoken("bob", "ballot", {"marks": [1, 1, -1]}),
        Entry("study.closed", {"study": STUDY}),
    ]


def create(where: Path | str, recorded: Sequence[Entry] | None = None) -> Log:
    """A ledger in a file, or in the database of a URL."""
    log = Log.create(where if isinstance(where, str) else url(where), ORIGIN, LOG_KEY, clock())
    log.append(entries() if recorded is None else recorded)
    return log


def policy_text(members: Sequence[str] = ("ada", "bob"), log_key: SigningKey = LOG_KEY, quorum: int = 0) -> str:
    watching = {name: witness(name).public for name in members}
    return write_policy(ORIGIN, log_key, {name: MEMBERS[name].public for name in members}, watching, quorum)


def policy(*arguments: Any, **options: Any) -> Policy:
    return Policy.parse(policy_text(*arguments, **options))
