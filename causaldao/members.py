"""The members of a federation: names bound to keys, the fault bound f, and the quorum that follows.

Identity is the key, never the name a message claims; one member has one vote, whatever its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from causaldao.errors import GuaranteeError, IdentityError
from causaldao.signing import Statement, VerifyKey, check_name, peek, unseal


@dataclass(frozen=True)
class Member:
    """An institution: a slug, a signing key and the epoch in which the key was admitted."""

    name: str
    key: VerifyKey
    epoch: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "key": self.key.to_text(self.name), "epoch": self.epoch}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Member:
        name, key = VerifyKey.from_text(value["key"])
        if name != value["name"]:
            raise IdentityError(f"The key of {name!r} stands under the name {value['name']!r}.")
        return Member(name, key, value["epoch"])


@dataclass(frozen=True)
class Roster:
    """The admitted members of one federation and the number f of them that may lie."""

    federation: str
    members: tuple[Member, ...]
    faulty: int = 0

    def __post_init__(self) -> None:
        check_name(self.federation)
        names = [member.name for member in self.members]
        keys = {member.key.raw for member in self.members}
        if len(set(names)) != len(names) or len(keys) != len(names):
            raise IdentityError("Every member needs a name and a key of its own: one institution, one vote.")
        if not 0 <= self.faulty < max(len(names), 1):
            raise GuaranteeError(f"faulty = {self.faulty} must lie in [0, {len(names) - 1}] with {len(names)} members.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(member.name for member in self.members))

    def key(self, name: str) -> VerifyKey:
        """The key of a member; an unknown name is an IdentityError."""
        for member in self.members:
            if member.name == name:
                return member.key
        raise IdentityError(f"{name!r} is not a member of {self.federation!r}: only admitted keys are heard.")

    def open(self, envelope: bytes, *, study: str, round: int, kind: str) -> Statement:
        """The verified statement of an envelope for this slot; the key is the admitted one of the member it names.

        Raises
        ------
        IdentityError
            unknown member, another's signature, or a statement made for another federation, study, round or kind
            (a replay).
        """
        claimed = peek(envelope)
        statement = unseal(envelope, self.key(claimed.member))
        expected = {"federation": self.federation, "study": study, "round": round, "kind": kind}
        for field, value in expected.items():
            if getattr(statement, field) != value:
                raise IdentityError(
                    f"{statement.member} signed {field} {getattr(statement, field)!r}, but {value!r} was asked: "
                    "an answer to another question is not taken."
                )
        return statement


def quorum(members: int, faulty: int) -> int:
    """⌊(n + f) / 2⌋ + 1: two quorums share an honest member while n > f."""
    return (members + faulty) // 2 + 1
