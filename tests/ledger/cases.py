"""A small ledger with every part that a verifier looks at, and tools to forge bundles of it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from causaldao.ledger import Entry, Log, write_policy
from causaldao.ledger.entry import entry_text, first_link, head_text, next_link
from causaldao.ledger.verify import Policy
from causaldao.signing import SigningKey, Statement, canonical, digest, manifest, raw_bytes, seal, sha256

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
    return Entry("genesis", {"federation": FEDERATION, "note": 'quotes " and \\ and ü and \u2028'})


def admit(member: str) -> Entry:
    return Entry("member.admit", {"member": member, "key": MEMBERS[member].public.to_text(member)})


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
        *map(admit, MEMBERS),
        Entry("study.proposed", {"study": STUDY, "question": "what causes what?"}),
        evidence("ada"),
        evidence("bob"),
        Entry("aggregate", {"gram": [[1.0, 1e-7, -0.1], [1e21, 123456.789, 5e-324], [1e20, 0.0, 2.5e-6]]}),
        spoken("ada", "ballot", {"marks": [1, 0, -1]}),
        spoken("bob", "ballot", {"marks": [1, 1, -1]}),
        Entry("study.closed", {"study": STUDY}),
    ]


def create(path: Path, recorded: Sequence[Entry] | None = None) -> Log:
    log = Log.create(url(path), ORIGIN, LOG_KEY, clock())
    log.append(entries() if recorded is None else recorded)
    return log


def policy_text(members: Sequence[str] = ("ada", "bob"), log_key: SigningKey = LOG_KEY, quorum: int = 0) -> str:
    return write_policy(ORIGIN, log_key, {name: MEMBERS[name].public for name in members}, quorum)


def policy(*arguments: Any, **options: Any) -> Policy:
    return Policy.parse(policy_text(*arguments, **options))


def rewrite(bundle: bytes, key: SigningKey, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A forger with ``key``: change the parsed bundle, then make chain, signatures and head fit."""
    document = json.loads(bundle)
    change(document)
    link, origin = first_link(document["origin"]), document["origin"]
    for index, item in enumerate(document["entries"]):
        item["record"] |= {"index": index, "previous": link}
        link = next_link(index, link, canonical(_doubles(item["record"])))
        item["signature"] = _signature(key, entry_text(origin, index, link))
    head = document["head"]
    head |= {"size": len(document["entries"]), "root": link}
    head["signature"] = _signature(key, head_text(origin, head["size"], head["root"], head["time"]))
    return canonical(_doubles(document))


def reencode(bundle: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A forger without a key: change the parsed bundle and write it canonically."""
    document = json.loads(bundle)
    change(document)
    return canonical(_doubles(document))


def payload_name(data: bytes) -> tuple[str, str]:
    return hashlib.sha256(data).hexdigest(), base64.b64encode(data).decode()


def _signature(key: SigningKey, text: bytes) -> str:
    return base64.b64encode(key.sign(text)).decode()


def _doubles(value: Any) -> Any:
    """Integers that JSON read from 1e20 and the like, as the doubles they are."""
    if isinstance(value, dict):
        return {name: _doubles(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_doubles(item) for item in value]
    return float(value) if type(value) is int and abs(value) > 2**53 else value
