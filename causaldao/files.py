"""Files that are whole or not there at all, whenever the machine stops."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any


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


def parse_json(text: str) -> Any:
    """The content of a JSON file that a person may have written.

    ValueError for anything else, and also for what `json` takes: a key twice in one object, of which the first would go
    unheard, and more nesting than can be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_keys_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _keys_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"the keys {twice} stand twice in one object")
    return found


def hold(path: Path) -> IO[str] | None:
    """An open file that holds a lock for as long as the process lives, however it ends; None if another holds it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
