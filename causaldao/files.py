"""Files that are whole or not there at all, whenever the machine stops."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import IO


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a text file, ending in one line break, in the place of what was there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # its own: two may write at once
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text.rstrip("\n") + "\n")
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
        temporary.chmod(mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def hold(path: Path) -> IO[str] | None:
    """An open file that holds a lock for as long as the process lives, however it ends; None if another holds it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
