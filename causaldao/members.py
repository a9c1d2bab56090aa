"""The members of a federation: names bound to keys, the fault bound f, and the quorum that follows.

Identity is the key, never the name a message claims; one member has one vote, whatever its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from causaldao.errors import GuaranteeError, IdentityError
from causaldao.ledger.note import COSIGNER, Verifier
from causaldao.signing import Statement, VerifyKey, check_name, peek, unseal


@dataclass(frozen=True)
class Member:
    """An institution: a slug, a signing key, a witness key and the epoch in which the keys were admitted.

    The witness key cosigns the ledger's checkpoints and nothing else, so it is another than the signing key.
    """

    name: str
    key: VerifyKey
    witness: VerifyKey
    epoch: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.key == self.witness:
            raise IdentityError(f"{self.name!r} uses key {self.key.id} to sign and to witness: it needs two keys.")

    @property
    def keys(self) -> tuple[VerifyKey, VerifyKey]:
        return self.key, self.witness

    @property
    def verifier(self) -> Verifier:
        """The witness key under its name, of type 0x04: what a checkpoint's cosignature is checked with."""
        return Verifier.of(self.name, self.witness, COSIGNER)

    @property
    def witness_text(self) -> str:
        """The same as a C2SP verifier key."""
        return self.verifier.text

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "key": self.key.to_text(self.name), "witness": self.witness_text, "epoch": self.epoch,
        }  # fmt: skip

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Member:
        (name, key), (witnessed, witness) = VerifyKey.from_text(value["key"]), read_witness(value["witness"])
        for found in (name, witnessed):
            if found != value["name"]:
                raise IdentityError(f"The key of {found!r} stands under the name {value['name']!r}.")
        return Member(name, key, witness, value["epoch"])


def witness_text(name: str, key: VerifyKey) -> str:
    """The C2SP verifier key of a witness, ``name+hash+base64(0x04 || key)``."""
    return Verifier.of(name, key, COSIGNER).text


def read_witness(text: str) -> tuple[str, VerifyKey]:
    """Name and key of a witness's verifier key; an IdentityError if it is none, or a key that signs something else."""
    verifier = Verifier.parse(text, (COSIGNER,))
    return verifier.name, VerifyKey(verifier.key)


@dataclass(frozen=True)
class Roster:
    """The admitted members of one federation and the number f of them that may lie."""

    federation: str
    members: tuple[Member, ...]
    faulty: int = 0

    def __post_init__(self) -> None:
        check_name(self.federation)
        names = [member.name for member in self.members]
        keys = {key.raw for member in self.members for key in member.keys}
        if len(set(names)) != len(names) or len(keys) != 2 * len(names):
            raise IdentityError("Every member needs a name and keys of its own: one institution, one vote.")
        if not 0 <= self.faulty < max(len(names), 1):
            raise GuaranteeError(f"faulty = {self.faulty} must lie in [0, {len(names) - 1}] with {len(names)} members.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(member.name for member in self.members))

    def member(self, name: str) -> Member:
        """A member by name; an unknown name is an IdentityError."""
        for member in self.members:
            if member.name == name:
                return member
        raise IdentityError(f"{name!r} is not a member of {self.federation!r}: only admitted keys are heard.")

    def key(self, name: str) -> VerifyKey:
        """The signing key of a member; an unknown name is an IdentityError."""
        return self.member(name).key

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
