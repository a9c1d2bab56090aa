"""What a reply must say to be taken, question by question. Each check raises an IdentityError for one that is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from causaldao.ballots import Ballot, Proposal, recheck
from causaldao.declared import Declaration, expected, lacks_of, misplaced
from causaldao.errors import IdentityError
from causaldao.estimates import Functions, of_member
from causaldao.graph_ballots import GraphBallot
from causaldao.messages import Parcel, fields, names_of
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.features import FeatureMap
from causaldao.models.summaries import summary
from causaldao.server.recording import Book
from causaldao.server.replies import Check
from causaldao.signing import Statement
from causaldao.study import Study

_MAX_VERSION = 64  # characters
_MOST = 100  # times n_max, to which counts are clamped: so many records are no larger institution but a false claim


def approval(study: Study) -> Check:
    """An approval says which version the node is, where its noise comes from, and what the study asks it to declare."""

    def check(statement: Statement, parcel: Parcel) -> None:
        fields(statement.body, {"version": str, "noise": str, **expected(study)})
        if len(statement.body["version"]) > _MAX_VERSION:
            raise IdentityError(f"A node's version has at most {_MAX_VERSION} characters.")
        Declaration.from_json(study, statement.body)
        _check_noise(study, statement)

    return check


def evidence(book: Book) -> Check:
    """Evidence is a release that can be read as moments, of a number of records that somebody can have, and of features
    that some record has."""
    lacks = lacks_of(book.declared)

    def check(statement: Statement, parcel: Parcel) -> None:
        fields(statement.body, {"noise": str})
        _check_noise(book.study, statement)
        found, most = book.evidence_of(parcel.tensors["moments"]), _MOST * book.study.members.n_max
        if found.count > most:
            raise IdentityError(f"The evidence claims {found.count:.4g} records, over {_MOST} times the study's n_max.")
        if said := misplaced(found, lacks.get(statement.member, ())):
            raise IdentityError(f"The evidence has moments of {names_of(said)}, which its member said it lacks.")
        encoding = book.study.encoding
        if isinstance(encoding, FeatureMap) and (wrong := encoding.impossible(found)):
            raise IdentityError(f"The evidence is none that the study's features make: {wrong}.")

    return check


def ballot(
    proposal: Proposal,
    released: Mapping[str, Evidence],
    level: float,
    voting: Mapping[str, Mapping[str, Any]] | None = None,
) -> Check:
    """A ballot follows from the evidence that its voter released, and from the conditions that it declared, ``voting``
    by member (`Declaration.voting`)."""

    def check(statement: Statement, parcel: Parcel) -> None:
        said, own = Ballot.from_json(statement.body, proposal), released[statement.member]
        wrong = recheck(said, proposal, own, level, **(voting or {}).get(statement.member, {}))
        if wrong:
            raise IdentityError(f"The ballot does not follow from its voter's evidence on {names_of(wrong)}.")

    return check


def graph_ballot(study: Study) -> Check:
    """A ballot of local mode is a graph that can be counted; whether it is what the member's rows say, nobody can
    check."""

    def check(statement: Statement, parcel: Parcel) -> None:
        GraphBallot.from_json(statement.body, study)

    return check


def based_on(base: str, what: str) -> Check:
    """An update or an evaluation is of the model that was sent, whose digest is ``base``."""

    def check(statement: Statement, parcel: Parcel) -> None:
        if statement.body != {"base": base}:
            raise IdentityError(f"The {what} another model than the one that was sent.")

    return check


def effects(base: str, found: Sequence[Functions], sigma: int) -> Check:
    """Sums are of the question that was sent, whose digest is ``base``, and some records add up to them."""

    def check(statement: Statement, parcel: Parcel) -> None:
        if statement.body != {"base": base}:
            raise IdentityError("The sums answer another question than the one that was sent.")
        for row, member in zip(parcel.tensors["sums"], of_member(found, statement.member), strict=True):
            if member is not None:
                summary(row, member, sigma)
            elif row.any():
                raise IdentityError("The reply has sums for an effect that this member cannot answer.")

    return check


def vote(body: Mapping[str, Any]) -> Check:
    """A vote for a release is for what was asked."""

    def check(statement: Statement, parcel: Parcel) -> None:
        if statement.body != body:
            raise IdentityError("The member voted for the release of something else than was asked.")

    return check


def challenge(text: str) -> Check:
    """The answer to a challenge is that challenge."""

    def check(statement: Statement, parcel: Parcel) -> None:
        if statement.body != {"challenge": text}:
            raise IdentityError("The node signed another challenge than the one it was sent.")

    return check


def _check_noise(study: Study, statement: Statement) -> None:
    """A member says where its noise comes from; only a study that is a simulation may have it seeded."""
    allowed = ("os", "simulated") if study.study.simulation else ("os",)
    if statement.body["noise"] not in allowed:
        raise IdentityError(f"The node's noise must be one of {', '.join(allowed)}, but it declares another.")
