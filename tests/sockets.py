"""Sockets that stop half-way, for the tests of ports that listen to strangers."""

from __future__ import annotations

import socket
import ssl

import pytest


def client_hello() -> bytes:
    """The first bytes of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def closed(one: socket.socket) -> bool:
    """Whether the other side has ended a connection; ours is closed then too."""
    one.setblocking(False)
    try:
        ended = one.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        ended = True
    if ended:
        one.close()
    return ended
