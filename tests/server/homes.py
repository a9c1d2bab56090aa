"""Coordinators' folders for the tests, with members that have joined: no process, no network."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from causaldao.members import witness_text
from causaldao.server.home import Home, Settings
from causaldao.server.registry import Candidate
from causaldao.signing import SigningKey

NOW = datetime.now(UTC)
LOOPBACK = "127.0.0.1"


def settings(**changes: Any) -> Settings:
    return Settings(**{"federation": "test", "host": LOOPBACK, "bind": LOOPBACK, **changes})


def create(folder: Path, **changes: Any) -> Home:
    return Home.create(folder, settings(**changes), NOW)


def key(name: str) -> SigningKey:
    """A member's signing key."""
    return SigningKey.from_seed(name.encode().ljust(32, b"."))


def witness(name: str) -> SigningKey:
    """A member's witness key."""
    return SigningKey.from_seed(name.encode().ljust(32, b"w"))


def join(home: Home, *names: str, dictionary: str | None = None, tls: str = "") -> None:
    """As the enrolment service records members: invited, joined, pending."""
    for name in names:
        secret = home.registry.invite(name, NOW)
        signing, seen = key(name).public.to_text(name), witness_text(name, witness(name).public)
        candidate = Candidate(name, signing, seen, tls or f"tls key of {name}", "0.1.0", dictionary)
        home.registry.join(candidate, secret, NOW)


def admit(home: Home, *names: str) -> None:
    join(home, *names)
    for name in names:
        home.admit(name, NOW)
