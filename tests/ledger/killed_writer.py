"""A writer that is killed: run as a program by the test beside it, never imported.

``python killed_writer.py DATABASE COPIES``: for k = 0, 1, 2 … copies the database, forks, and lets the
child kill itself with SIGKILL just before its k-th word to SQLite (statements and COMMIT alike), until a
child lives to the end. Prints how many children died.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from causaldao.ledger import Entry, Log
from causaldao.signing import SigningKey, sha256


def arm(engine: sa.Engine, fatal: int) -> None:
    words = iter(range(10**6))

    def word(*_: Any) -> None:
        if next(words) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(engine, "before_cursor_execute", word)
    sa.event.listen(engine, "after_cursor_execute", word)
    sa.event.listen(engine, "commit", word)


def write(database: Path, fatal: int) -> None:
    log = Log.open(f"sqlite:///{database}", SigningKey.from_seed(b"L" * 32))
    arm(log._engine, fatal)
    entries = [
        Entry("pool", {"round": number}, {sha256(data): data}, key=f"pool/{number}")
        for number, data in enumerate((b"one", b"two", b"three"))
    ]
    log.append(entries, {"state": "after", "more": [1, 2]})
    os._exit(0)


def main(database: Path, copies: Path) -> int:
    for fatal in range(1000):
        copy = copies / f"{fatal:03}.db"
        shutil.copyfile(database, copy)
        child = os.fork()
        if child == 0:
            write(copy, fatal)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return fatal
        if os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit(f"child {fatal} ended with status {status}")
    raise SystemExit("the writer never finished")


if __name__ == "__main__":
    sys.stdout.write(str(main(Path(sys.argv[1]), Path(sys.argv[2]))))
