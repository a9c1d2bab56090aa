"""The node's way out: it shows the institution's certificate, which Flower's SuperNode cannot.

It listens on loopback for the SuperNode, and passes each call on to the coordinator's gateway over mutual TLS. The
coordinator is who holds a certificate of the authority that was pinned at joining. The certificate is read anew when
it has been renewed; calls then go over a new connection.
"""

from __future__ import annotations

import datetime
import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from causaldao.messages import MAX_REQUEST_BYTES
from causaldao.relay import OPTIONS, SERVER_OPTIONS, Context, Refused, Relay

_LOG = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
_CLIENT_OPTIONS = (
    *OPTIONS,
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
MAX_LIST_BYTES = 2 << 20  # of what a message says of itself: the names of its parts
MAX_PULLED_BYTES = MAX_REQUEST_BYTES + (8 << 20)  # of all parts of one message: Flower keeps them in memory
_LOCAL_DAYS = 3650  # of the certificate that never leaves this machine; it is made anew at each start


@dataclass(frozen=True)
class Identity:
    """What the node shows, and whom it trusts: PEM bytes."""

    authority: bytes
    key: bytes
    certificate: bytes

    @staticmethod
    def read(folder: Path) -> Identity:
        return Identity(*((folder / name).read_bytes() for name in ("authority.crt", "tls.pem", "certificate.pem")))

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


class Connector:
    """A loopback port for the SuperNode; ``root`` is the file with which it knows it. ``heard`` is told of answers."""

    def __init__(self, coordinator: str, identity: Identity, root: Path, heard: Callable[[], None]) -> None:
        self._coordinator = coordinator
        self._identity = identity
        self._root = root
        self._heard = heard
        self._pulled = 0
        self.port = 0

    async def start(self) -> None:
        key, certificate = _local_certificate()
        self._root.write_bytes(certificate)
        self._channel = self._connect()
        self._relay = Relay(self._channel, self._pass_on)
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers((self._relay,))
        self.port = self._server.add_secure_port(f"{LOOPBACK}:0", grpc.ssl_server_credentials([(key, certificate)]))
        await self._server.start()

    async def _pass_on(self, method: str, request: bytes, context: Context) -> bytes:
        answer = await self._relay.forward(method, request, context)
        self._heard()
        if method == "PullMessages":  # the SuperNode takes one message at a time, and this is where it begins
            self._pulled = 0
        bound = MAX_LIST_BYTES if method == "PullMessages" else MAX_PULLED_BYTES
        if method in ("PullMessages", "PullObject"):
            self._pulled += len(answer)
            if self._pulled > bound:
                _LOG.warning("a request of more than %d bytes was not taken in", bound)
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a request has at most {bound} bytes")
        return answer

    async def renew(self, identity: Identity) -> None:
        """Go on with a new certificate; calls in flight end on the old connection."""
        self._identity = identity
        old, self._channel = self._channel, self._connect()
        self._relay.channel = self._channel
        await old.close(grace=30)

    async def stop(self) -> None:
        await self._server.stop(grace=2)
        await self._channel.close()

    def _connect(self) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(self._coordinator, self._identity.credentials(), options=_CLIENT_OPTIONS)


def _local_certificate() -> tuple[bytes, bytes]:
    """A key and a certificate for this machine's loopback address."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "causaldao node, loopback")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=_LOCAL_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK)), x509.DNSName("localhost")]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, certificate.public_bytes(serialization.Encoding.PEM)
