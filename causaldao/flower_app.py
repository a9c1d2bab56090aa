"""The Flower app bundle (FAB), the same bytes on every machine, so that its hash can be pinned.

It is a zip archive of the few files in ``server/flower-app``, stored without compression, since a compressor's output
may differ from one version of it to another, with a fixed date and in a fixed order. Both ends build it from the
package that is installed: the coordinator to send it, a node to know the one bundle that it answers.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

APP_ID = "causaldao/causaldao-app"
APP_VERSION = "1.0.0"
_FILES = (
    "pyproject.toml",
    "LICENSE",
    "cdao_app/__init__.py",
    "cdao_app/client_app.py",
    "cdao_app/server_app.py",
)  # in the order in which they stand in the archive
_CONTENT = ".info/CONTENT"  # Flower's list of path, SHA-256 and bits of each file


@cache
def fab() -> bytes:
    """The bundle's bytes: about 15 kB, most of it the licence."""
    folder = files("causaldao.server").joinpath("flower-app")
    return build({name: folder.joinpath(name).read_bytes() for name in _FILES})


def build(contents: Mapping[str, bytes]) -> bytes:
    """A bundle of files, by their paths in it, ``pyproject.toml`` among them; a function of its argument alone."""
    lines = [f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for name, data in contents.items()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {**contents, _CONTENT: "\n".join(lines).encode()}.items():
            archive.writestr(_entry(name), data)
    return buffer.getvalue()


def fab_hash() -> str:
    """SHA-256 of the bundle, 64 hexadecimal digits."""
    return hashlib.sha256(fab()).hexdigest()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # dated 1980, the format's zero
    entry.create_system = 3  # else it names the machine it was made on
    return entry
