"""The enrolment service: how an institution joins, keeps its certificate, hears of studies, and votes on motions.

TLS with the server's certificate only: who asks is told by the proof in the request, signed with the member's signing
key. `Enrolment` takes bytes and a time and gives bytes; the rest of this file puts it on a gRPC server.

It listens to strangers, so everything is bounded: the handshake, a request's size and the time it may take to arrive,
calls at once, a connection's age. Errors of the caller's making cross with their text, since somebody at the
institution must mend them and no data of anyone are in them; all else crosses as "look at the coordinator's log".
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate

from causaldao.dictionary import read as read_dictionary
from causaldao.enrolment import (
    FRESH_SECONDS,
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    METHODS,
    SERVICE,
    check_address,
    check_hash,
    check_origin,
    check_proof,
    check_version,
    decode,
    error_to_text,
    visible,
)
from causaldao.errors import CausalDAOError, ConfigurationError, IdentityError, MisuseError, RefusedError
from causaldao.governance import MAX_VOTE_BYTES
from causaldao.logs import Sparingly
from causaldao.members import Member, Roster, read_witness, witness_text
from causaldao.messages import fields
from causaldao.server.authority import MEMBER_HOURS, Authority, request_key
from causaldao.server.motions import Motions
from causaldao.server.registry import ADMITTED, OPEN, PENDING, REVOKED, Candidate, Enrolled, Registry
from causaldao.signing import Statement, VerifyKey, canonical, check_name, peek, sha256

_LOG = logging.getLogger(__name__)
CONCURRENT = 128
ARRIVAL_SECONDS = 5.0  # a request that has not arrived by then is let go
OPTIONS = (
    ("grpc.so_reuseport", 0),  # two servers on one port would share it in silence
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_connection_idle_ms", 30_000),
    ("grpc.max_connection_age_ms", 120_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
)
_ROOM = MAX_RESPONSE_BYTES - (64 << 10)  # for what one answer lists; the next has room for more
_MAX_KNOWN = 2_000  # hashes: they fit a request
_NONCES = 1_000  # of one member within their lifetime: a node that waits to be admitted asks every few seconds
_TELLABLE = (ConfigurationError, IdentityError, MisuseError, RefusedError)
_UNSAID = "The coordinator could not do this now: try again later, or ask its operator to look at the log."
_STATUS = {
    IdentityError.code: grpc.StatusCode.UNAUTHENTICATED,
    ConfigurationError.code: grpc.StatusCode.INVALID_ARGUMENT,
    MisuseError.code: grpc.StatusCode.INVALID_ARGUMENT,
}
_JOIN: dict[str, type | tuple[type, ...]] = {
    "name": str, "secret": str, "csr": str, "signing": str, "witness": str, "version": str,
    "dictionary": (str, type(None)), "proof": str,
}  # fmt: skip
_JOIN_PROOF = {"csr": str, "secret": str, "witness": str}
_MOTIONS: dict[str, type | tuple[type, ...]] = {"known": (int, type(None)), "word": str}
_VOTE = {"motion": str, "envelope": str, "word": str}
_PROPOSE = {"edit": dict, "envelope": str, "word": str}

Context = grpc.aio.ServicerContext[bytes, bytes]
Certificate = Callable[[], tuple[bytes, bytes]]


@dataclass(frozen=True)
class Facts:
    """What a member must know of its coordinator: ``coordinator`` is a verifier key, ``bundle`` a SHA-256, ``origin``
    the name of the ledger, which the same key signs."""

    federation: str
    coordinator: str
    fleet: str
    bundle: str
    origin: str

    def __post_init__(self) -> None:
        check_name(self.federation)
        VerifyKey.from_text(self.coordinator)
        check_address(self.fleet)
        check_hash(self.bundle)
        check_origin(self.origin)


class _Nonces:
    """Which proofs were used, for as long as they are fresh. In memory: a restart forgets at most ten minutes.

    Only what a member signed comes here, and each member has room of its own: none can push out another's.
    """

    def __init__(self) -> None:
        self._used: dict[str, dict[str, float]] = defaultdict(dict)
        self._lock = threading.Lock()

    def use(self, statement: Statement, now: datetime) -> None:
        """Take note of a proof. IdentityError if it was used before, RefusedError if the member asks too often."""
        with self._lock:
            used, at = self._used[statement.member], now.timestamp()
            for nonce in [nonce for nonce, until in used.items() if until < at]:
                del used[nonce]
            if statement.nonce in used:
                raise IdentityError("The proof was used before: a request is made anew each time.")
            if len(used) >= _NONCES:
                raise RefusedError(
                    f"{statement.member!r} asked {_NONCES} times in {2 * FRESH_SECONDS} seconds: wait before the next."
                )
            used[statement.nonce] = statement.body["time"] + FRESH_SECONDS


class Enrolment:
    """Answers to members' requests. ``roster`` gives the ledger's membership now: it has the last word.

    Each method takes a request's bytes and the time and returns a response's bytes; it raises a CausalDAOError for a
    request that it will not have. Methods may run in several threads.
    """

    def __init__(
        self,
        registry: Registry,
        authority: Authority,
        facts: Facts,
        roster: Callable[[], Roster],
        motions: Motions,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        hours: int = MEMBER_HOURS,
    ) -> None:
        self._registry = registry
        self._authority = authority
        self._facts = facts
        self._roster = roster
        self._motions = motions
        self._clock = clock
        self._hours = hours
        self._nonces = _Nonces()
        self._may_say = Sparingly()

    def join(self, request: bytes, now: datetime) -> bytes:
        """Redeem a token and record its bearer as pending. The same request again is answered the same way.

        The proof binds the three keys and the secret together under the signing key, so that nobody can join with a
        key that is not theirs.
        """
        value = decode(request, MAX_REQUEST_BYTES)
        fields(value, _JOIN)
        candidate = self._candidate(value, now)
        member = self._registry.join(candidate, value["secret"], now)
        _LOG.info("%s joined and is %s", member.name, member.state)
        return canonical({**asdict(self._facts), "state": member.state})

    def _candidate(self, value: Mapping[str, Any], now: datetime) -> Candidate:
        name = check_name(value["name"])
        key = _key(value["signing"], name)
        _check_witness(value["witness"], name)
        statement = check_proof(
            value["proof"], key, federation=self._facts.federation, name=name, kind="join", expected=_JOIN_PROOF,
            now=now,
        )  # fmt: skip
        said: dict[str, Any] = {part: sha256(value[part].encode()) for part in ("csr", "secret")}
        said |= {"witness": value["witness"], "time": statement.body["time"]}
        if statement.body != said:
            raise IdentityError(
                f"What {name!r} sends is not what it signed: another stood between, or the keys changed."
            )
        if value["dictionary"] is not None:
            self._check_dictionary(value["dictionary"], key, name)
        return Candidate(
            name, value["signing"], value["witness"], _public_pem(value["csr"], name), check_version(value["version"]),
            value["dictionary"],
        )  # fmt: skip

    def renew(self, request: bytes, now: datetime) -> bytes:
        """A new certificate for an admitted member, also if its old one expired or its TLS key changed."""
        member, body = self._asked(request, "renew", {"csr": str, "version": str}, now)
        self._check_admitted(member)
        # The ledger is asked too: who was revoked there is out, even if the registry has not heard of it yet.
        roster = self._roster()
        if member.name not in roster.names or roster.key(member.name) != member.key:
            raise IdentityError(
                f"{member.name!r} does not stand among the ledger's members with this key: its admission was not "
                "finished, or it was revoked. Ask the operator."
            )
        tls, version = _public_pem(body["csr"], member.name), check_version(body["version"])
        if tls != member.tls:
            self._registry.rotate(member.name, tls, now)
            _LOG.warning("%s changed its TLS key: its node is registered anew", member.name)
        certificate = self._authority.issue_member(member.name, body["csr"], now, self._hours)
        self._registry.seen(member.name, now, version)
        expires = load_pem_x509_certificate(certificate.encode()).not_valid_after_utc.isoformat()
        return canonical({**asdict(self._facts), "certificate": certificate, "expires": expires})

    def announce(self, request: bytes, now: datetime) -> bytes:
        """Keep the signed dictionary of a member, admitted or pending: an operator may want it to decide."""
        member, body = self._asked(request, "announce", {"dictionary": str}, now)
        self._check_dictionary(body["dictionary"], member.key, member.name)
        self._registry.set_dictionary(member.name, body["dictionary"])
        return canonical({"dictionary": sha256(body["dictionary"].encode())})

    def _check_dictionary(self, envelope: str, key: VerifyKey, name: str) -> None:
        site = read_dictionary(envelope.encode(), key)
        if (site.federation, site.member) != (self._facts.federation, name):
            raise IdentityError(
                f"The dictionary is one of {visible(site.member)!r} in {visible(site.federation)!r}, not of {name!r} "
                f"in {self._facts.federation!r}."
            )

    def studies(self, request: bytes, now: datetime) -> bytes:
        """The open studies, oldest first; without its document each that the member knows, or that has no room now."""
        member, body = self._asked(request, "studies", {"known": list}, now)
        self._check_admitted(member)
        if len(body["known"]) > _MAX_KNOWN:
            raise IdentityError(f"{member.name!r} names {len(body['known'])} known studies, the bound is {_MAX_KNOWN}.")
        known = {check_hash(text) for text in body["known"]}
        found, room = [], _ROOM
        for study in reversed(self._registry.studies()):
            if study.state not in OPEN:
                continue
            item = {"hash": study.hash, "name": study.name, "state": study.state, "document": None}
            full = {**item, "document": study.document}
            chosen = item if study.hash in known or len(canonical(full)) > room else full
            room -= len(canonical(chosen)) + 1
            if room >= 0:
                found.append(chosen)
        self._registry.seen(member.name, now)
        return canonical({"studies": found})

    def motions(self, request: bytes, now: datetime) -> bytes:
        """What the members are asked to vote on now, oldest first, with the epoch in which they decide.

        Whoever says what it has ``known`` of the ledger is shown how it goes on, if that has room.
        """
        member, body = self._asked(request, "motions", _MOTIONS, now, barred=True)
        told = self._motions.tell(member.name, body["known"], body["word"], now)
        epoch, found, room = told.epoch, [], _ROOM
        for row in told.rows:
            item = {
                "id": row.id, "kind": row.kind, "body": row.body, "opened": row.opened.isoformat(),
                "votes": sorted(row.votes),
            }  # fmt: skip
            room -= len(canonical(item)) + 1
            if room >= 0:
                found.append(item)
        return canonical({
            "epoch": epoch.number, "members": len(epoch.members), "faulty": epoch.faulty, "needed": epoch.quorum,
            "since": epoch.last_change, "motions": found, "trail": told.trail if _fits(told.trail, room) else "",
        })  # fmt: skip

    def vote(self, request: bytes, now: datetime) -> bytes:
        """Keep a member's vote, and first the cosignature of the checkpoint that it names.

        Whom the operator bars, but the ledger does not, has its vote as before.
        """
        member, body = self._asked(request, "vote", _VOTE, now, barred=True)
        _check_vote_size(body["envelope"])
        self._motions.hear(member.name, body["word"], body["envelope"])
        row = self._motions.vote(member.name, check_hash(body["motion"]), body["envelope"], now)
        return canonical({"motion": row.id, "state": row.state, "votes": sorted(row.votes)})

    def propose(self, request: bytes, now: datetime) -> bytes:
        """Put an edit of a graph to the vote that a member proposes, with its own vote for it."""
        member, body = self._asked(request, "propose", _PROPOSE, now)
        self._check_admitted(member)
        _check_vote_size(body["envelope"])
        row = self._motions.propose(member.name, body["edit"], body["envelope"], body["word"], now)
        return canonical({"motion": row.id, "state": row.state, "votes": sorted(row.votes)})

    def graph(self, request: bytes, now: datetime) -> bytes:
        """The graph of a study as the ledger's first ``size`` entries (0: all) have it, each entry proven."""
        member, body = self._asked(request, "graph", {"study": str, "size": int}, now, barred=True)
        trail = self._motions.graph(member.name, check_hash(body["study"]), max(body["size"], 0))
        if not _fits(trail, _ROOM):
            raise RefusedError(
                f"What the ledger says of study {body['study'][:12]} is larger than one answer, {MAX_RESPONSE_BYTES} "
                "bytes: read it from the ledger's bundle, with causaldao audit --json."
            )
        return canonical({"trail": trail})

    def rotate(self, request: bytes, now: datetime) -> bytes:
        """Take a member's new keys: to the vote, or in the founding at once. ``held`` is a proof by the new one."""
        body_types = {"signing": str, "witness": str, "held": str}
        member, body = self._asked(request, "rotate", body_types, now)
        self._check_admitted(member)
        key = _key(body["signing"], member.name)
        held = check_proof(
            body["held"], key, federation=self._facts.federation, name=member.name, kind="rotate",
            expected={"witness": str}, now=now,
        )  # fmt: skip
        if held.body["witness"] != body["witness"]:
            raise IdentityError(f"The new keys of {member.name!r} were not made for one another.")
        _check_witness(body["witness"], member.name)
        row = self._motions.rotate(Member(member.name, key, read_witness(body["witness"])[1]), now)
        return canonical({"motion": "" if row is None else row.id})

    def _asked(
        self, request: bytes, kind: str, expected: Mapping[str, Any], now: datetime, *, barred: bool = False
    ) -> tuple[Enrolled, Mapping[str, Any]]:
        """Who asks, by the registered key, and for what; every refusal that does not depend on the kind is here.

        ``barred``: also somebody who was revoked may ask.
        """
        value = decode(request, MAX_REQUEST_BYTES)
        fields(value, {"proof": str})
        name = check_name(peek(value["proof"].encode(), MAX_REQUEST_BYTES).member)
        member = self._registry.member(name)
        if member is None:
            raise IdentityError(f"{name!r} has not joined {self._facts.federation!r}: ask the operator for a token.")
        statement = check_proof(
            value["proof"], member.key, federation=self._facts.federation, name=name, kind=kind, expected=expected,
            now=now,
        )  # fmt: skip
        self._nonces.use(statement, now)
        if member.state == REVOKED and not barred:
            raise IdentityError(f"{name!r} was revoked from {self._facts.federation!r}: ask the operator why.")
        return member, statement.body

    @staticmethod
    def _check_admitted(member: Enrolled) -> None:
        if member.state == PENDING:
            raise RefusedError(f"{member.name!r} is not admitted yet: ask the operator.")
        if member.state != ADMITTED:
            raise IdentityError(f"{member.name!r} is {member.state}.")

    def add_to(self, server: grpc.aio.Server) -> None:
        """Put the service on a server that has not started."""
        handlers: dict[str, Any] = {
            # Not unary: so the time that a request takes to arrive is ours to bound.
            method: grpc.stream_unary_rpc_method_handler(partial(self._serve, method))
            for method in METHODS
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def _serve(self, method: str, requests: AsyncIterator[bytes], context: Context) -> bytes:
        request = b""
        try:
            request = await asyncio.wait_for(anext(aiter(requests)), ARRIVAL_SECONDS)
            return await asyncio.to_thread(getattr(self, method.lower()), request, self._clock())
        except (TimeoutError, StopAsyncIteration):
            self._refused(method, request, context, f"no whole request within {ARRIVAL_SECONDS:g} seconds")
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "The request did not arrive in time.")
        except _TELLABLE as error:
            self._refused(method, request, context, error.message)
            await context.abort(_STATUS.get(error.code, grpc.StatusCode.PERMISSION_DENIED), error_to_text(error))
        except CausalDAOError as error:
            _LOG.error("%s for %s failed: %s", method, _claimed(request), visible(error.message))
            await context.abort(grpc.StatusCode.UNAVAILABLE, error_to_text(type(error)(_UNSAID)))
        except Exception:
            # Whatever a stranger's bytes may cause ends with this call, never with the service.
            _LOG.exception("%s for %s failed", method, _claimed(request))
            await context.abort(grpc.StatusCode.INTERNAL, error_to_text(CausalDAOError(_UNSAID)))

    def _refused(self, method: str, request: bytes, context: Context, reason: str) -> None:
        """One line for each address, method and kind of fault in a while: a stranger must not fill the log."""
        if self._may_say(str(context.peer()).rpartition(":")[0], method, reason[:40]):
            who = f"{_claimed(request)} at {visible(str(context.peer()), 80)}"
            _LOG.warning("%s refused to %s: %s", method, who, visible(reason))


async def start(enrolment: Enrolment, address: str, certificate: Certificate) -> tuple[grpc.aio.Server, int]:
    """A started server and its port. ``certificate`` gives key and chain (PEM).

    Raises
    ------
    ConfigurationError
        the address cannot be listened on.
    """
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=CONCURRENT)
    enrolment.add_to(server)
    try:
        port = server.add_secure_port(address, credentials(certificate))
    except RuntimeError as error:
        raise ConfigurationError(
            f"The enrolment service cannot listen on {address}: is the port in use, or not this machine's? ({error})"
        ) from error
    await server.start()
    return server, port


def credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """TLS with the certificate as it is now; not asked for at each handshake (docs/adr/0023-server-certificates.md)."""
    return grpc.ssl_server_credentials([certificate()])


def _check_vote_size(envelope: str) -> None:
    if len(envelope) > MAX_VOTE_BYTES:
        raise IdentityError(f"The vote has {len(envelope)} bytes, the bound is {MAX_VOTE_BYTES}.")


def _fits(trail: str, room: int) -> bool:
    """Whether a trail has room in an answer, as its JSON writes it."""
    return len(trail) < room and len(canonical(trail)) < room


def _key(text: str, name: str) -> VerifyKey:
    named, key = VerifyKey.from_text(text)
    if named != name or key.to_text(name) != text:
        raise IdentityError(f"A key of {name!r} stands under the name {visible(named)!r}.")
    return key


def _check_witness(text: str, name: str) -> None:
    named, key = read_witness(text)
    if named != name or witness_text(name, key) != text:
        raise IdentityError(f"A witness key of {name!r} stands under the name {visible(named)!r}.")


def _public_pem(csr: str, name: str) -> str:
    return request_key(csr, name).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _claimed(request: bytes) -> str:
    """Who a request says it is from: unverified, only for the log."""
    try:
        value = json.loads(request)
        name = value["name"] if "name" in value else peek(value["proof"].encode(), MAX_REQUEST_BYTES).member
        return visible(str(name), 80)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, IdentityError):
        return "somebody unnamed"
