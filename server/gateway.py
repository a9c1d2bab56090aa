"""The one door of the Fleet API: mutual TLS, one member for each call, replies that enter whole or not at all.

Behind it Flower's SuperLink listens on loopback only. Here a call's certificate says which member speaks; the member
must be admitted *now* (a revocation acts at the next call, whatever the certificate says), the certificate must not
have expired since the connection was made, and the member can speak only as its own node. A node may send one reply
for each request it was given, of at most ``max_reply`` bytes. Its parts are kept here until the last one has come:
Flower's coordinator would wait up to two hours, for everybody, for a part that a member announced and never sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest, PushObjectResponse
from google.protobuf.message import DecodeError

from causaldao.errors import CausalDAOError, IdentityError
from causaldao.logs import Sparingly
from causaldao.objects import MAX_OBJECTS, unpack
from causaldao.relay import Context, Refused, Relay

_LOG = logging.getLogger(__name__)
MAX_REPLY_BYTES = 16 << 20
MAX_PLAIN_BYTES = 256 << 10  # of a call that carries no part of a reply
MAX_CALLS = 32  # of one member at once; a node's connection has at most 16, and two while it changes its certificate
_SAME = ("run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "message_type", "group_id")
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
_SLACK = 2  # replies that a node may owe from before this gateway started


class Member(Protocol):
    """What the gateway asks of a member's record."""

    @property
    def state(self) -> str: ...

    @property
    def tls(self) -> str: ...


@dataclass
class _Reply:
    """A reply whose parts are coming in: its first call, the parts wanted, and those that are here."""

    request: bytes
    session: str
    wanted: frozenset[str]
    parts: dict[str, bytes] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def size(self) -> int:
        return sum(map(len, self.parts.values()))


@dataclass
class _Account:
    """What a member may still send, the one reply that it is sending, and the session of the last that went on."""

    owed: int = _SLACK
    reply: _Reply | None = None
    passed: str = ""


@dataclass(frozen=True)
class Caller:
    """Whose call it is."""

    name: str
    key: bytes


class Gateway:
    """Checks Fleet calls. ``member`` finds a member by name, None if there is none; ``seen`` is told who called."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        member: Callable[[str], Member | None],
        seen: Callable[[str], None] = lambda name: None,
        counted: Callable[[str, str, int, int], None] = lambda method, outcome, received, sent: None,
        *,
        max_reply: int = MAX_REPLY_BYTES,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        check: Callable[[PushMessagesRequest, Mapping[str, bytes], int], None] | None = None,
    ) -> None:
        self.relay = Relay(channel, self._handle, self._door)
        self._member = member
        self._seen = seen
        self._counted = counted
        self._max_reply = max_reply
        self._now = now
        self._check = check or check_reply
        self._calls: Counter[str] = Counter()
        self._nodes: dict[str, int] = {}
        self._activated: dict[str, bytes] = {}  # by member: the key of its node, until a call shows that it knows
        self._accounts: dict[str, _Account] = defaultdict(_Account)
        self._certificates: dict[bytes, x509.Certificate] = {}
        self._may_say = Sparingly()

    async def _handle(self, method: str, request: bytes, context: Context) -> bytes:
        try:
            caller = self._caller(context)
            if method != "PushObject" and len(request) > MAX_PLAIN_BYTES:
                _refuse(caller.name, f"the call is larger than {MAX_PLAIN_BYTES} bytes", _EXHAUSTED)
            message = self._look(method, request, caller)
            if method == "ActivateNode":
                answer = await self._activate(request, caller, context)
            elif method == "PushMessages":
                answer = self._begin_reply(message, request, caller)
            elif method == "PushObject":
                answer = await self._take_part(message, caller, context)
            else:
                answer = await self.relay.forward(method, request, context)
                self._note(method, answer, caller)
        except _Refusal as refusal:
            self._tell(method, refusal)
            self._counted(method, "refused", len(request), 0)
            raise
        except CausalDAOError as error:  # the registry cannot be read, say: no fault of the caller's
            self._tell(method, _Refusal("", error.message, grpc.StatusCode.UNAVAILABLE))
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the coordinator cannot do this now: try again later") from None
        if method != "ActivateNode":
            self._activated.pop(caller.name, None)
        self._counted(method, "passed", len(request), len(answer))
        self._seen(caller.name)
        return answer

    @asynccontextmanager
    async def _door(self, context: Context) -> AsyncIterator[None]:
        """So many calls of one member at once; of a further one nothing is read."""
        name = _name_in(self._certificate(context)) if _pem(context) else ""
        if self._calls[name] >= MAX_CALLS:
            refusal = _Refusal(name, f"it has {MAX_CALLS} calls open", _EXHAUSTED)
            self._tell("a call", refusal)
            raise refusal
        self._calls[name] += 1
        try:
            yield
        finally:
            self._calls[name] -= 1
            if not self._calls[name]:
                del self._calls[name]

    def _tell(self, method: str, refusal: _Refusal) -> None:
        """One line for each reason in a while: a caller must not fill the log."""
        if self._may_say(method, refusal.name, refusal.reason):
            _LOG.warning("%s of %s refused: %s", method, refusal.name or "an unknown caller", refusal.reason)

    def _caller(self, context: Context) -> Caller:
        certificate = self._certificate(context)
        name = _name_in(certificate)
        key = certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        if not certificate.not_valid_before_utc <= self._now() <= certificate.not_valid_after_utc:
            _refuse(name, f"the certificate expired at {certificate.not_valid_after_utc.isoformat()}")
        member = self._member(name)
        if member is None or member.state != "admitted":
            _refuse(name, "the member is not admitted" if member is None else f"the member is {member.state}")
        if member.tls.encode().strip() != key.strip():
            _refuse(name, "the certificate is for another key than the member's")
        return Caller(name, key)

    def _certificate(self, context: Context) -> x509.Certificate:
        found = _pem(context)
        if not found:
            _refuse("", "no client certificate")
        if found not in self._certificates:
            if len(self._certificates) > 4096:
                self._certificates.clear()
            self._certificates[found] = x509.load_pem_x509_certificate(found)
        return self._certificates[found]

    def _look(self, method: str, request: bytes, caller: Caller) -> Any:
        parse = _PARSERS.get(method)
        if parse is None:
            return None  # Flower itself checks that the node of the call is the key's
        try:
            message = parse(request)
        except DecodeError:
            _refuse(caller.name, "the call cannot be read")
        if method == "ActivateNode":
            if message.public_key.strip() != caller.key.strip():
                _refuse(caller.name, "it would activate a node of another key")
            return message
        node = message.node_id if method == "DeactivateNode" else message.node.node_id
        if self._nodes.setdefault(caller.name, node) != node:
            _refuse(caller.name, "it speaks as a node that is not its own")  # which one would be a new line each time
        return message

    async def _activate(self, request: bytes, caller: Caller, context: Context) -> bytes:
        """Make a member's node count as connected, and tell it its number; again, if that seems not to have arrived.

        Flower activates no node that is active, so one whose answer was lost would be kept out for the minute until
        Flower misses it. A node that has spoken since knew its number: then a second process with its key would speak
        for it, and Flower's refusal stands.
        """
        try:
            answer = await self.relay.forward("ActivateNode", request, context)
        except grpc.aio.AioRpcError as error:
            lost = self._activated.get(caller.name) == caller.key
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION or not lost:
                raise
            return ActivateNodeResponse(node_id=self._nodes[caller.name]).SerializeToString()
        self._nodes[caller.name] = ActivateNodeResponse.FromString(answer).node_id
        self._activated[caller.name] = caller.key
        return answer

    def _begin_reply(self, message: Any, request: bytes, caller: Caller) -> bytes:
        """Ask for every part of a reply; nothing of it goes on yet. Begun again, it starts anew."""
        account = self._accounts[caller.name]
        sources = {item.metadata.src_node_id for item in message.messages_list}
        if sources - {message.node.node_id}:
            _refuse(caller.name, "its reply names another node as its source")
        if len(message.messages_list) != 1 or len(message.message_object_trees) != 1 or account.owed < 1:
            _refuse(caller.name, "it sends a reply that nobody asked for", _EXHAUSTED)
        wanted = _objects(message.message_object_trees[0])
        if len(wanted) > MAX_OBJECTS:
            _refuse(caller.name, f"its reply has more than {MAX_OBJECTS} parts", _EXHAUSTED)
        account.reply = _Reply(request, secrets.token_hex(16), frozenset(wanted))
        return PushMessagesResponse(
            objects_to_push=sorted(set(wanted)), session_id=account.reply.session
        ).SerializeToString()

    async def _take_part(self, message: Any, caller: Caller, context: Context) -> bytes:
        """Keep a part; with the last one, pass the whole reply on."""
        account = self._accounts[caller.name]
        reply = account.reply
        if message.session_id == account.passed:  # sent again, since our answer was lost
            return PushObjectResponse(stored=True).SerializeToString()
        if reply is None or message.session_id != reply.session or message.object_id not in reply.wanted:
            _refuse(caller.name, "it sends a part of no reply of its own")
        if hashlib.sha256(message.object_content).hexdigest() != message.object_id:
            _refuse(caller.name, "it sends another part than the one that it announced")
        reply.parts[message.object_id] = message.object_content
        if reply.size > self._max_reply:
            account.reply, account.owed = None, account.owed - 1
            _refuse(
                caller.name,
                f"its reply is larger than {self._max_reply} bytes, the bound of this coordinator",
                _EXHAUSTED,
            )
        async with reply.lock:
            if reply.wanted == reply.parts.keys() and account.reply is reply:
                await self._check_whole(reply, account, caller)
                await self._pass_reply_on(reply, message, context)
                account.reply, account.owed, account.passed = None, account.owed - 1, reply.session
        return PushObjectResponse(stored=True).SerializeToString()

    async def _check_whole(self, reply: _Reply, account: _Account, caller: Caller) -> None:
        """One that cannot be unpacked would take down with it all that Flower's coordinator takes in at once."""
        request = PushMessagesRequest.FromString(reply.request)
        try:
            await asyncio.to_thread(self._check, request, reply.parts, 2 * self._max_reply)
        except IdentityError as error:
            if account.reply is reply:
                account.reply, account.owed = None, account.owed - 1
            _LOG.info("the reply of %s: %s", caller.name, error.message)
            _refuse(caller.name, "its reply is not one that can be unpacked", grpc.StatusCode.INVALID_ARGUMENT)

    async def _pass_reply_on(self, reply: _Reply, last: Any, context: Context) -> None:
        """A reply that is whole. If it fails, the node sends its last part again, and so does this."""
        answer = PushMessagesResponse.FromString(await self.relay.forward("PushMessages", reply.request, context))
        for name in answer.objects_to_push:
            part = PushObjectRequest(
                node=last.node, run_id=last.run_id, object_id=name, object_content=reply.parts.get(name, b""),
                session_id=answer.session_id,
            )  # fmt: skip
            await self.relay.forward("PushObject", part.SerializeToString(), context)

    def _note(self, method: str, answer: bytes, caller: Caller) -> None:
        if method == "PullMessages":
            self._accounts[caller.name].owed += len(PullMessagesResponse.FromString(answer).messages_list)


class _Refusal(Refused):
    def __init__(self, name: str, reason: str, status: grpc.StatusCode) -> None:
        super().__init__(status, reason)
        self.name = "".join(c if c.isprintable() else "?" for c in name)
        self.reason = reason


def _refuse(name: str, reason: str, status: grpc.StatusCode = grpc.StatusCode.UNAUTHENTICATED) -> NoReturn:
    raise _Refusal(name, reason, status)


def check_reply(request: PushMessagesRequest, parts: Mapping[str, bytes], max_bytes: int) -> None:
    """Return if a whole reply can be unpacked and says inside what it says outside, where Flower checked it: a reply
    to another's message would be taken for the other's. IdentityError if not."""
    outside = request.messages_list[0].metadata
    (tree,) = request.message_object_trees
    if outside.message_id != tree.object_id:
        raise IdentityError("The reply has another name than its objects.")
    inside = unpack(tree.object_id, parts, max_bytes).metadata
    if any(getattr(inside, name) != getattr(outside, name) for name in _SAME):
        raise IdentityError("The reply says another thing inside than outside.")


def _objects(tree: ObjectTree, limit: int = MAX_OBJECTS) -> list[str]:
    """The names of a tree's objects, looked for no further than the limit; one that stands there twice counts twice,
    or a small call would be a long walk."""
    waiting, found = [tree], list[str]()
    while waiting and len(found) <= limit:
        one = waiting.pop()
        found.append(one.object_id)
        waiting.extend(one.children[: limit + 1])
    return found


def _pem(context: Context) -> bytes:
    """The certificate that was shown, empty if there was none."""
    return bytes(next(iter(context.auth_context().get("x509_pem_cert", ())), b""))


def _name_in(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


_PARSERS: dict[str, Callable[[bytes], Any]] = {
    "ActivateNode": ActivateNodeRequest.FromString,
    "DeactivateNode": DeactivateNodeRequest.FromString,
    "SendNodeHeartbeat": SendNodeHeartbeatRequest.FromString,
    "PushMessages": PushMessagesRequest.FromString,
    "PushObject": PushObjectRequest.FromString,
}
