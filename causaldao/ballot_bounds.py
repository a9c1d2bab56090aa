"""How many supporters a mark needs in local mode, and what that bears: n members, f of whom may lie, threshold τ.

A mark enters with k = max(τ·n, f + 1) supporters or more. So f liars alone enter none; and where n - f is k or more,
what all honest members support enters whatever the liars say, unless no causal order has it (ADR 7). In between they
decide: a mark that k - f honest members or more support by error enters if all liars support it too, and one that fewer
than k honest members support stays out if the liars withhold their support.
"""

from __future__ import annotations

from math import ceil

from causaldao.errors import GuaranteeError

_TOLERANCE = 1e-9  # 0.6 * 5 is 3.0000000000000004 or so in floating point


def needed(threshold: float, faulty: int, eligible: int) -> int:
    """The supporters that a mark needs to enter."""
    return max(ceil(threshold * eligible - _TOLERANCE), faulty + 1)


def borne(threshold: float, members: int) -> int:
    """The largest f with which what all honest members support still enters; -1 where there are no members."""
    return max((f for f in range(members) if members - f >= needed(threshold, f, members)), default=-1)


def least(threshold: float, faulty: int) -> int:
    """The fewest members with whom what all honest members support enters whatever ``faulty`` liars say.

    For τ = 1 that is so with no liar alone, and a study with both is refused before this is asked.
    """
    members = 2 * faulty + 1
    if faulty and threshold < 1:
        members = max(members, ceil(faulty / (1 - threshold) - _TOLERANCE))
    while members - faulty < needed(threshold, faulty, members) and threshold < 1:
        members += 1
    return members


def require(threshold: float, faulty: int, members: int) -> None:
    """Refuse a study of local ballots in which liars could keep out what every honest member supports.

    Raises
    ------
    GuaranteeError
        names the largest f that this many members bear.
    """
    if members - faulty < needed(threshold, faulty, members):
        raise GuaranteeError(
            f"With local ballots a mark needs {needed(threshold, faulty, members)} of {members} supporters, and "
            f"faulty = {faulty} leaves {max(members - faulty, 0)} honest members: liars could keep out everything. The "
            f"largest f is {max(borne(threshold, members), 0)}; or admit {least(threshold, faulty)} members, or lower "
            "the threshold."
        )


def cautions(threshold: float, faulty: int, members: int) -> list[str]:
    """What local ballots cannot promise, in words, for so many members."""
    enough = needed(threshold, faulty, members)
    found = [
        'Ballots are graphs from private rows (discovery.evidence = "local"): nobody can recompute one, and a false '
        "one is not found. Each member sees as far as its own noisy records alone, so weak links are lost that a pool "
        "would show."
    ]
    if faulty:
        found.append(
            f"Of {members} members, {enough} must support a mark. {faulty} liars cannot enter one alone, but "
            f"with {max(enough - faulty, 1)} honest members that err alike they do; and by withholding their support "
            f"they keep out whatever fewer than {enough} of the {members - faulty} honest members find."
        )
    return found
