"""Members' votes for the tests: signed on a ledger as it stands now, as if every witness had just seen it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from causaldao.governance import make_vote, motion
from causaldao.ledger.log import Log
from causaldao.server import membership
from causaldao.signing import SigningKey


def votes(log: Log, kind: str, body: Mapping[str, Any], keys: Mapping[str, SigningKey]) -> list[dict[str, str]]:
    """For the entry ``kind`` with ``body``, by everybody in ``keys``: signing keys by member."""
    size, epoch = log.refresh().size, membership.epoch(log)
    return [
        {
            "member": name,
            "envelope": make_vote(
                key, federation=epoch.federation, member=name, epoch=epoch.number, motion=motion(kind, body), size=size,
                root=membership.root_at(log, size),
            ),
        }
        for name, key in keys.items()
    ]  # fmt: skip


def revoke(log: Log, name: str, reason: str, keys: Mapping[str, SigningKey]) -> None:
    """Revoke a member after the founding, by the votes of ``keys``."""
    body = {"member": name, "reason": reason}
    membership.revoke(log, name, reason, votes(log, "member.revoke", body, keys))
