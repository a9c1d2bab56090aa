"""What a member says of itself at the roll call, where the study asks: the conditions its records are from, and the
variables that it does not have.

It stands in the member's signed approval, and so on the ledger before any evidence does: nobody can choose it after
having seen what others released.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from causaldao.errors import IdentityError
from causaldao.models.discovery.evidence import Dictionary, Evidence, FeatureRows
from causaldao.study import Study


@dataclass(frozen=True)
class Declaration:
    """``environment`` is one of the study's, "" where it declares none; ``lacks`` are variables, sorted by name."""

    environment: str = ""
    lacks: tuple[str, ...] = ()

    def to_json(self, study: Study) -> dict[str, Any]:
        """The fields of an approval that the study asks for."""
        value: dict[str, Any] = {}
        if study.environments:
            value["environment"] = self.environment
        if study.members.may_lack:
            value["lacks"] = list(self.lacks)
        return value

    @staticmethod
    def from_json(study: Study, value: Mapping[str, Any]) -> Declaration:
        """Read those fields of an approval; an IdentityError for an environment or a lack that the study has not."""
        shapes = expected(study)
        wrong = sorted(name for name, kind in shapes.items() if type(value.get(name)) is not kind)
        if wrong:
            raise IdentityError(f"The approval must declare {', '.join(wrong)}, missing or ill-typed here.")
        environment, lacks = value.get("environment", "") if study.environments else "", value.get("lacks", [])
        known = [one.name for one in study.environments]
        if study.environments and environment not in known:
            raise IdentityError(f"An approval names an environment that the study lacks; it has {', '.join(known)}.")
        if not study.members.may_lack:
            return Declaration(environment)
        may = set(study.members.may_lack)
        if not all(isinstance(name, str) and name in may for name in lacks) or lacks != sorted(set(lacks)):
            raise IdentityError(
                f"A member may lack {', '.join(sorted(may))}, each named once, in order; an approval says otherwise."
            )
        if set(lacks) == set(study.names):
            raise IdentityError("A member that lacks every variable of a study has no part in it.")
        return Declaration(environment, tuple(lacks))

    def targets(self, study: Study) -> frozenset[str]:
        """The variables that were acted on where this member's records are from."""
        return frozenset(t for one in study.environments if one.name == self.environment for t in one.targets)

    def words(self, study: Study) -> list[str]:
        """What is declared, for the member's owner: everybody in the federation will read it."""
        found = []
        if study.environments:
            acted_on = ", ".join(sorted(self.targets(study))) or "nothing"
            found.append(f"its records are of environment {self.environment!r}, which acts on {acted_on}")
        if study.members.may_lack:
            found.append(
                f"it lacks {', '.join(self.lacks)}, which is not read" if self.lacks else "it lacks no variable"
            )
        return found

    def voting(self, study: Study) -> dict[str, Any]:
        """What `ballots.cast` and `recheck` are told of the member: the same by node, coordinator and audit."""
        told: dict[str, Any] = {"lacks": self.lacks} if self.lacks else {}
        if study.environments:
            told |= {"targets": self.targets(study), "environment": self.environment}
        return told


def held(rows: FeatureRows, lacks: Collection[str]) -> FeatureRows:
    """The public map of the records of somebody who lacks variables: what is left of the row is no longer than before.

    Only maps of numbers lose variables: a study of features lets nobody lack one.
    """
    if not lacks or not isinstance(rows, Dictionary):
        return rows
    kept = tuple(variable for variable in rows.variables if variable.name not in lacks)
    return Dictionary(kept, min(rows.clip, len(kept) + 1.0), rows.lattice)


def misplaced(evidence: Evidence, lacks: Collection[str]) -> tuple[str, ...]:
    """The variables that a member said it lacks, and of which its evidence says something all the same."""
    return tuple(
        name for name in sorted(lacks) if bool(evidence.moments[[c + 1 for c in evidence.columns(name)]].any())
    )


def lacks_of(declared: Mapping[str, Declaration]) -> dict[str, tuple[str, ...]]:
    """What each member said it does not have; those who lack nothing left out."""
    return {name: said.lacks for name, said in declared.items() if said.lacks}


def expected(study: Study) -> dict[str, type]:
    """The fields of an approval beyond those of every study, with their types."""
    found: dict[str, type] = {}
    if study.environments:
        found["environment"] = str
    if study.members.may_lack:
        found["lacks"] = list
    return found
