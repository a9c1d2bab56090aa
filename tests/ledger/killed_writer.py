"""A writer that is killed: run as a program by the test beside it, never imported.

``python killed_writer.py append|create URL STEP``: for k = 0, STEP, 2·STEP … forks, and lets the child kill itself with
SIGKILL just before its k-th word to the database (statements and COMMIT alike), until a child lives to the end. After
each death somebody opens the database and must find nothing of it. Prints the k of the child that lived.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from causaldao.errors import LedgerError
from causaldao.ledger import Entry, Log, log, store
from causaldao.signing import SigningKey, sha256

KEY = SigningKey.from_seed(b"L" * 32)


def arm(engine: sa.Engine, fatal: int) -> sa.Engine:
    words = iter(range(10**6))

    def word(*_: Any) -> None:
        if next(words) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(engine, "before_cursor_execute", word)
    sa.event.listen(engine, "commit", word)
    return engine


def append(url: str, fatal: int) -> None:
    written = Log.open(url, KEY)
    arm(written._engine, fatal)
    entries = [
        Entry("pool", {"round": number}, {sha256(data): data}, key=f"pool/{number}")
        for number, data in enumerate((b"one", b"two", b"three"))
    ]
    written.append(entries, {"state": "after", "more": [1, 2]})


def create(url: str, fatal: int) -> None:
    log.connect = lambda url, *, create: arm(store.connect(url, create=create), fatal)
    Log.create(url, "causaldao.example/north", KEY)


def appended(url: str) -> bool:
    with Log.open(url, KEY) as found:
        parts = (found.head.size, len(found.entries()), len(found.snapshot().payloads), found.state("state"))
        if parts not in ((1, 1, 0, "before"), (4, 4, 3, "after")):
            raise SystemExit(f"a part was left behind: {parts}")
        return parts[0] == 4


def created(url: str) -> bool:
    try:
        Log.open(url, KEY).close()
    except LedgerError:
        return False  # a part of it would make the next creation fail
    return True


def main(write: Callable[[str, int], None], written: Callable[[str], bool], url: str, step: str) -> int:
    for fatal in range(0, 1000, int(step)):
        child = os.fork()
        if child == 0:
            write(url, fatal)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if written(url) != (status == 0):
            raise SystemExit(f"child {fatal} ended with status {status}, written: {written(url)}")
        if status == 0:
            return fatal
        if os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit(f"child {fatal} ended with status {status}")
    raise SystemExit("the writer never finished")


if __name__ == "__main__":
    modes = {"append": (append, appended), "create": (create, created)}
    sys.stdout.write(str(main(*modes[sys.argv[1]], *sys.argv[2:])))
