"""What a coordinator knows of its members besides the ledger: invitations, keys, nodes, studies and how far they are.
Its ``ballots`` hold the motions that members vote on.

The registry lies in the ledger's own database, in tables that begin with ``registry_``. The ledger is evidence and
is never rewritten; the registry is working state and is. Where both speak of a member, the ledger decides.

A method is one transaction (`causaldao.server.database`), so that a token is redeemed once, whatever number of
processes ask. Secrets are kept as SHA-256 only.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from causaldao.enrolment import TOKEN_MINUTES
from causaldao.errors import IdentityError, LedgerError, MisuseError
from causaldao.ledger.note import Verifier
from causaldao.members import read_witness
from causaldao.server.ballot_box import BallotBox
from causaldao.server.database import METADATA, MIN_PREFIX, Database, maybe, to_text, to_time
from causaldao.server.standing import Standing
from causaldao.signing import VerifyKey, canonical, check_name, sha256

VERSION = 2
PENDING, ADMITTED, REVOKED = "pending", "admitted", "revoked"
OPEN = ("proposed", "running", "aborted")  # an aborted study may be resumed, by members who decided late too
STATES = (*OPEN, "closed")

_VERSION = sa.Table("registry_version", METADATA, sa.Column("version", sa.Integer, primary_key=True))
_INVITATIONS = sa.Table(
    "registry_invitations",
    METADATA,
    sa.Column("secret_sha256", sa.String(64), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("expires", sa.Text, nullable=False),
    sa.Column("used", sa.Text),
)
_MEMBERS = sa.Table(
    "registry_members",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("signing", sa.Text, nullable=False),
    sa.Column("witness", sa.Text, nullable=False),
    sa.Column("tls", sa.Text, nullable=False),
    sa.Column("dictionary", sa.Text),
    sa.Column("node_id", sa.Text),
    sa.Column("joined", sa.Text, nullable=False),
    sa.Column("changed", sa.Text, nullable=False),
    sa.Column("last_seen", sa.Text),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("secret_sha256", sa.String(64), nullable=False),
)
_STUDIES = sa.Table(
    "registry_studies",
    METADATA,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("proposed", sa.Text, nullable=False),
    sa.Column("changed", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text),
)
_STANDINGS = sa.Table(
    "registry_standings",
    METADATA,
    sa.Column("study", sa.String(64), primary_key=True),
    sa.Column("member", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("exit_code", sa.Integer, nullable=False),
)
_EVENTS = sa.Table(
    "registry_events",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("study", sa.String(64), nullable=False, index=True),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("done", sa.Integer),
    sa.Column("total", sa.Integer),
)


@dataclass(frozen=True)
class Invitation:
    """A name that was invited, until when, and when it was taken up."""

    name: str
    expires: datetime
    used: datetime | None


@dataclass(frozen=True)
class Candidate:
    """What an institution asks to be recorded with. Keys: C2SP verifier keys of the types 0x01 (``signing``) and 0x04
    (``witness``), and a public key in PEM."""

    name: str
    signing: str
    witness: str
    tls: str
    version: str = ""
    dictionary: str | None = None


@dataclass(frozen=True)
class Enrolled:
    """A member as the registry knows it; ``state`` is pending, admitted or revoked."""

    name: str
    state: str
    signing: str
    witness: str
    tls: str
    dictionary: str | None
    node_id: int | None
    joined: datetime
    changed: datetime
    last_seen: datetime | None
    version: str

    @property
    def key(self) -> VerifyKey:
        """The signing key."""
        return VerifyKey.from_text(self.signing)[1]

    @property
    def witness_key(self) -> VerifyKey:
        return read_witness(self.witness)[1]


@dataclass(frozen=True)
class StudyRow:
    """A proposed study; ``state`` is one of `STATES`, ``document`` its validated JSON."""

    hash: str
    name: str
    document: dict[str, Any]
    state: str
    proposed: datetime
    changed: datetime
    run_id: int | None


@dataclass(frozen=True)
class Event:
    """One line of a study's progress."""

    id: int
    study: str
    time: datetime
    phase: str
    message: str
    done: int | None
    total: int | None


class Registry:
    """The registry in the database at ``url`` (SQLite or PostgreSQL). Times are aware datetimes.

    Raises
    ------
    LedgerError
        the database cannot be opened, does not exist (a SQLite file, unless ``create``), or has a registry of a
        version that this program does not know. Each method raises it when the database fails.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        self._database = Database(url, create=create)
        self.ballots = BallotBox(self._database)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        with self._database.write("open the registry") as connection:
            METADATA.create_all(connection)
            found = connection.scalars(sa.select(_VERSION.c.version)).all()
            if not found:
                connection.execute(sa.insert(_VERSION).values(version=VERSION))
            elif list(found) != [VERSION]:
                raise LedgerError(
                    f"The registry has version {list(found)}, this program knows {VERSION}: it was written by another "
                    "causaldao; install that one."
                )

    def close(self) -> None:
        self._database.close()

    # -- members

    def invite(self, name: str, now: datetime) -> str:
        """A secret that lets ``name`` join once within 15 minutes; an earlier one that nobody used is void.

        Raises
        ------
        IdentityError
            the name is not allowed, or belongs to a member (pending, admitted or revoked).
        """
        check_name(name)
        secret = secrets.token_urlsafe(32)
        with self._database.write(f"invite {name!r}") as connection:
            member = _member(connection, name)
            if member is not None:
                raise IdentityError(_TAKEN[member.state].format(name=name))
            unused = sa.and_(_INVITATIONS.c.name == name, _INVITATIONS.c.used.is_(None))
            connection.execute(sa.delete(_INVITATIONS).where(unused))
            row = {
                "secret_sha256": sha256(secret.encode()),
                "name": name,
                "expires": to_text(now + timedelta(minutes=TOKEN_MINUTES)),
            }
            connection.execute(sa.insert(_INVITATIONS).values(row))
        return secret

    def invitations(self) -> tuple[Invitation, ...]:
        """All invitations by name, used and expired ones too."""
        with self._database.read("read the invitations") as connection:
            rows = connection.execute(sa.select(_INVITATIONS).order_by(_INVITATIONS.c.name, _INVITATIONS.c.expires))
            return tuple(Invitation(row.name, to_time(row.expires), maybe(row.used)) for row in rows)

    def join(self, candidate: Candidate, secret: str, now: datetime) -> Enrolled:
        """Redeem an invitation and record its bearer as pending, both or neither.

        The same candidate with the same secret again gets the same record, since its first answer may have been lost.

        Raises
        ------
        IdentityError
            the token is unknown, used, late or for another name; or a key belongs to another member.
        """
        digest = sha256(secret.encode())
        with self._database.write(f"record {candidate.name!r}") as connection:
            earlier = _repeated(connection, candidate, digest)
            if earlier is not None:
                return earlier
            _redeem(connection, candidate.name, digest, now)
            _check_keys_are_new(connection, candidate)
            row = {
                **asdict(candidate), "state": PENDING, "joined": to_text(now), "changed": to_text(now),
                "secret_sha256": digest,
            }  # fmt: skip
            connection.execute(sa.insert(_MEMBERS).values(row))
            return _known(connection, candidate.name)

    def admit(self, name: str, now: datetime) -> Enrolled:
        """Let a pending member in; again changes nothing. IdentityError if it is unknown or revoked."""
        with self._database.write(f"admit {name!r}") as connection:
            member = _known(connection, name)
            if member.state == REVOKED:
                raise IdentityError(_TAKEN[REVOKED].format(name=name))
            return (
                member if member.state == ADMITTED else _change(connection, name, state=ADMITTED, changed=to_text(now))
            )

    def revoke(self, name: str, now: datetime) -> Enrolled:
        """Bar a member, or turn a pending one away, for ever; again changes nothing. IdentityError if unknown."""
        with self._database.write(f"revoke {name!r}") as connection:
            member = _known(connection, name)
            return member if member.state == REVOKED else _change(connection, name, state=REVOKED, changed=to_text(now))

    def member(self, name: str) -> Enrolled | None:
        with self._database.read(f"read the member {name!r}") as connection:
            return _member(connection, name)

    def members(self) -> tuple[Enrolled, ...]:
        """All members by name, revoked ones too."""
        with self._database.read("read the members") as connection:
            return tuple(map(_enrolled, connection.execute(sa.select(_MEMBERS).order_by(_MEMBERS.c.name))))

    def set_node(self, name: str, node_id: int | None) -> None:
        """Remember under which node id Flower knows a member's key."""
        self._set(name, node_id=None if node_id is None else str(node_id))

    def set_dictionary(self, name: str, envelope: str) -> None:
        """Keep the signed dictionary of a member's variables."""
        self._set(name, dictionary=envelope)

    def rotate(self, name: str, tls: str, now: datetime) -> None:
        """Replace a member's TLS key; its node must then be registered anew.

        Raises
        ------
        IdentityError
            the key belongs to another member, or the member is unknown.
        """
        with self._database.write(f"rotate the TLS key of {name!r}") as connection:
            _known(connection, name)
            taken = sa.and_(_MEMBERS.c.tls == tls, _MEMBERS.c.name != name)
            if connection.execute(sa.select(_MEMBERS.c.name).where(taken)).first() is not None:
                raise IdentityError(f"The TLS key that {name!r} would change to belongs to another member.")
            _change(connection, name, tls=tls, node_id=None, changed=to_text(now))

    def rekey(self, name: str, signing: str, witness: str, now: datetime) -> None:
        """Replace a member's signing and witness key, as the ledger says. IdentityError if the member is unknown."""
        self._set(name, signing=signing, witness=witness, changed=to_text(now))

    def seen(self, name: str, now: datetime, version: str | None = None) -> None:
        """Note when a member was last heard, and the version of causaldao that it runs."""
        self._set(name, last_seen=to_text(now), **({} if version is None else {"version": version}))

    def _set(self, name: str, **values: str | None) -> None:
        with self._database.write(f"update the member {name!r}") as connection:
            _known(connection, name)
            _change(connection, name, **values)

    # -- studies

    def propose(self, study: str, name: str, document: Mapping[str, Any], now: datetime) -> StudyRow:
        """Keep a study by its hash; the same hash again changes nothing.

        Raises
        ------
        IdentityError
            the hash is not the one of the document.
        """
        text = canonical(dict(document))
        if sha256(text) != study:
            raise IdentityError(
                f"The study {name!r} has hash {sha256(text)[:16]}…, but {study[:16]}… was given for it."
            )
        with self._database.write(f"keep the study {name!r}") as connection:
            row = {"hash": study, "name": name, "document": text.decode(), "state": STATES[0]}
            if _study(connection, study) is None:
                times = {"proposed": to_text(now), "changed": to_text(now)}
                connection.execute(sa.insert(_STUDIES).values({**row, **times}))
            return _known_study(connection, study)

    def study(self, reference: str) -> StudyRow:
        """A study by hash, by at least eight first digits of it, or by name (of several, the one proposed last).

        Raises
        ------
        IdentityError
            there is none, or the digits fit several.
        """
        with self._database.read(f"read the study {reference!r}") as connection:
            exact = _study(connection, reference)
            if exact is not None:
                return exact
            latest = sa.select(_STUDIES).where(_STUDIES.c.name == reference).order_by(_STUDIES.c.proposed.desc())
            found = connection.execute(latest.limit(1)).all()
            if not found and len(reference) >= MIN_PREFIX:
                prefixed = sa.select(_STUDIES).where(_STUDIES.c.hash.startswith(reference, autoescape=True))
                found = connection.execute(prefixed.limit(2)).all()
        if len(found) != 1:
            problem = "no study" if not found else "more than one study"
            raise IdentityError(f"There is {problem} {reference!r}: give its name, or more digits of its hash.")
        return _study_row(found[0])

    def studies(self) -> tuple[StudyRow, ...]:
        """All studies, the one proposed last first."""
        with self._database.read("read the studies") as connection:
            newest = sa.select(_STUDIES).order_by(_STUDIES.c.proposed.desc(), _STUDIES.c.hash)
            return tuple(map(_study_row, connection.execute(newest)))

    def set_state(self, study: str, state: str, now: datetime) -> None:
        """Move a study to one of `STATES`. IdentityError if there is no such study."""
        if state not in STATES:
            raise MisuseError(f"A study's state is one of {', '.join(STATES)}, not {state!r}.")
        self._set_study(study, state=state, changed=to_text(now))

    def set_run(self, study: str, run_id: int | None, now: datetime) -> None:
        """Remember which Flower run works on a study. IdentityError if there is no such study."""
        self._set_study(study, run_id=None if run_id is None else str(run_id), changed=to_text(now))

    def _set_study(self, study: str, **values: str | None) -> None:
        with self._database.write(f"update the study {study[:16]!r}") as connection:
            _known_study(connection, study)
            connection.execute(sa.update(_STUDIES).where(_STUDIES.c.hash == study).values(values))

    def put_standings(self, study: str, standings: Mapping[str, Standing]) -> None:
        """Write how members stand. IdentityError: no such study."""
        with self._database.write(f"write the standings of {study[:16]!r}") as connection:
            _known_study(connection, study)
            for member, standing in standings.items():
                here = sa.and_(_STANDINGS.c.study == study, _STANDINGS.c.member == member)
                connection.execute(sa.delete(_STANDINGS).where(here))
                row = {**asdict(standing), "study": study, "member": member}
                connection.execute(sa.insert(_STANDINGS).values(row))

    def standings(self, study: str) -> dict[str, Standing]:
        """By member's name, in the order of names."""
        with self._database.read(f"read the standings of {study[:16]!r}") as connection:
            return _standings(connection, study)

    def add_event(
        self, study: str, now: datetime, phase: str, message: str, done: int | None = None, total: int | None = None
    ) -> int:
        """Add a line to a study's progress; its id is greater than those before it."""
        row = {"study": study, "time": to_text(now), "phase": phase, "message": message, "done": done, "total": total}
        with self._database.write(f"note the progress of {study[:16]!r}") as connection:
            return int(connection.execute(sa.insert(_EVENTS).values(row).returning(_EVENTS.c.id)).scalar_one())

    def events(self, study: str, after_id: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        """The lines after the one with ``after_id``, oldest first, at most ``limit``."""
        chosen = sa.select(_EVENTS).where(_EVENTS.c.study == study, _EVENTS.c.id > after_id)
        with self._database.read(f"read the progress of {study[:16]!r}") as connection:
            rows = connection.execute(chosen.order_by(_EVENTS.c.id).limit(limit))
            return tuple(Event(**{**row._mapping, "time": to_time(row.time)}) for row in rows)


_TAKEN = {
    PENDING: "{name!r} has joined already and waits to be admitted: admit it, or revoke it and use another name.",
    ADMITTED: "{name!r} is a member already: one institution has one name.",
    REVOKED: "{name!r} was revoked and cannot come back: invite it by another name.",
}


def _redeem(connection: sa.Connection, name: str, digest: str, now: datetime) -> None:
    here = _INVITATIONS.c.secret_sha256 == digest
    row = connection.execute(sa.select(_INVITATIONS).where(here)).one_or_none()
    if row is None:
        raise IdentityError("The token is unknown here: it was mistyped, replaced by a newer one, or made elsewhere.")
    if row.name != name:
        raise IdentityError(f"The token is for {row.name!r}, not for {name!r}: ask the operator for one of your own.")
    if row.used is not None:
        raise IdentityError(f"The token of {name!r} was used already at {row.used}: ask the operator for a new one.")
    if now > to_time(row.expires):
        raise IdentityError(f"The token of {name!r} expired at {row.expires}: ask the operator for a new one.")
    connection.execute(sa.update(_INVITATIONS).where(here).values(used=to_text(now)))


def _repeated(connection: sa.Connection, candidate: Candidate, digest: str) -> Enrolled | None:
    row = connection.execute(sa.select(_MEMBERS).where(_MEMBERS.c.name == candidate.name)).one_or_none()
    if row is None or row.secret_sha256 != digest:
        return None
    keys = ("signing", "witness", "tls")
    return _enrolled(row) if all(getattr(row, key) == getattr(candidate, key) for key in keys) else None


def _check_keys_are_new(connection: sa.Connection, candidate: Candidate) -> None:
    """A key is one institution's: else one would have two votes. A member's three keys are three keys, too."""
    rows = connection.execute(sa.select(_MEMBERS)).all()
    taken = {_raw(text) for row in rows for text in (row.signing, row.witness)} | {row.tls for row in rows}
    own = [_raw(candidate.signing), _raw(candidate.witness), candidate.tls]
    if len(set(own)) != len(own):
        raise IdentityError(f"{candidate.name!r} uses one key for two purposes: signing, witness and TLS need three.")
    if not taken.isdisjoint(own):
        raise IdentityError(f"A key of {candidate.name!r} belongs to another member: one institution, one vote.")


def _raw(verifier: str) -> str:
    return Verifier.parse(verifier).key.hex()


def _member(connection: sa.Connection, name: str) -> Enrolled | None:
    row = connection.execute(sa.select(_MEMBERS).where(_MEMBERS.c.name == name)).one_or_none()
    return None if row is None else _enrolled(row)


def _known(connection: sa.Connection, name: str) -> Enrolled:
    member = _member(connection, name)
    if member is None:
        raise IdentityError(f"{name!r} has not joined this federation: invite it first.")
    return member


def _change(connection: sa.Connection, name: str, **values: str | None) -> Enrolled:
    connection.execute(sa.update(_MEMBERS).where(_MEMBERS.c.name == name).values(values))
    return _known(connection, name)


def _enrolled(row: sa.Row[Any]) -> Enrolled:
    return Enrolled(
        row.name, row.state, row.signing, row.witness, row.tls, row.dictionary, _number(row.node_id),
        to_time(row.joined), to_time(row.changed), maybe(row.last_seen), row.version,
    )  # fmt: skip


def _study(connection: sa.Connection, study: str) -> StudyRow | None:
    row = connection.execute(sa.select(_STUDIES).where(_STUDIES.c.hash == study)).one_or_none()
    return None if row is None else _study_row(row)


def _known_study(connection: sa.Connection, study: str) -> StudyRow:
    row = _study(connection, study)
    if row is None:
        raise IdentityError(f"There is no study {study[:16]!r} here: propose it first.")
    return row


def _study_row(row: sa.Row[Any]) -> StudyRow:
    return StudyRow(
        row.hash, row.name, json.loads(row.document), row.state, to_time(row.proposed), to_time(row.changed),
        _number(row.run_id),
    )  # fmt: skip


def _standings(connection: sa.Connection, study: str) -> dict[str, Standing]:
    rows = connection.execute(sa.select(_STANDINGS).where(_STANDINGS.c.study == study).order_by(_STANDINGS.c.member))
    return {row.member: Standing(row.state, row.reason, row.code, row.exit_code) for row in rows}


def _number(text: str | None) -> int | None:
    # Flower's ids are unsigned 64-bit numbers: more than an integer column holds.
    return None if text is None else int(text)
