"""How a member stands in a study: what an operator sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from causaldao.errors import DeclinedError, by_code


@dataclass(frozen=True)
class Standing:
    """How a member stands in its study now.

    ``state`` is unknown (no node has spoken for it yet), not connected, pending (not approved yet), asked (and not
    heard yet), approved, declined, answered, absent, quarantined, excluded or revoked; ``code``
    and ``exit_code`` say why it declined, or why its answer was not taken.
    """

    state: str
    reason: str = ""
    code: str = ""
    exit_code: int = 0


def why(codes: Iterable[str]) -> str:
    """Why members declined, for the end of "2 declined": ": budget 12, data 11"; an owner's no needs no code."""
    reasons = sorted({f"{code} {by_code(code).exit_code}" for code in codes if code != DeclinedError.code})
    return f": {', '.join(reasons)}" if reasons else ""


def summary(standings: Mapping[str, Standing]) -> str:
    """ "2 of 5 approved, 1 declined: data 11, 2 pending"; after the roll call, how many answered."""
    states = Counter(one.state + (why([one.code]) if one.state == "declined" else "") for one in standings.values())
    verb = "answered" if states.keys() & {"asked", "answered", "absent", "quarantined"} else "approved"
    done = states.pop("approved", 0) + states.pop("answered", 0)
    parts = [f"{count} {state}" for state, count in sorted(states.items())]
    return ", ".join([f"{done} of {len(standings)} {verb}", *parts])
