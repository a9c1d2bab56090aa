"""The node's signed dictionary: what it tells its federation about its variables, and nothing about its records."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from causaldao.client.config import NodeConfig
from causaldao.dictionary import SiteDictionary, make, read
from causaldao.errors import ConfigurationError
from causaldao.signing import SigningKey

__all__ = ["FILE", "read", "site", "write"]

FILE = "dictionary.dsse"


def site(config: NodeConfig, federation: str = "") -> SiteDictionary:
    """What a node offers: names, kinds, units and levels; names of columns only if its owner shares them.

    A node without a mapping names nothing: it tells what its owner chose, not whatever its table holds.
    """
    return SiteDictionary(federation or config.federation, config.name, config.offered)


def write(folder: Path, federation: str = "") -> SiteDictionary:
    """Sign what ``node.toml`` offers now into ``dictionary.dsse``, for the federation that the node joined.

    ``federation`` names the one that it is about to join, so that the dictionary goes with the request.
    """
    offered = site(NodeConfig.load(folder, joined=not federation), federation)
    envelope = make(offered, SigningKey.load(key_path(folder)), secrets.token_hex(16))
    temporary = folder / f"{FILE}.tmp"
    try:
        temporary.write_bytes(envelope)
        os.replace(temporary, folder / FILE)
    except OSError as error:
        raise ConfigurationError(f"{folder / FILE} cannot be written: {error.strerror}.") from error
    return offered


def key_path(folder: Path) -> Path:
    """The node's signing key: ``signing.pem``, or ``key.pem`` of a simulated node."""
    own = folder / "signing.pem"
    return own if own.exists() or not (folder / "key.pem").exists() else folder / "key.pem"
