"""Writers that are killed, given faults or raced: a program of the tests beside it, which know its batches from here.

``python crashing.py`` imports the ledger once, and then forks for each line ``MODE URL`` on stdin a writer of that mode
and waits for its end. What a writer does it says on stdout, each line in one ``write``: ``pid N``, then ``begun B`` and
``done B FIRST LAST SIZE ROOT``, or ``refused B WHY``. Behind its last word the program says ``end STATUS``, negative
for a signal.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import traceback
from typing import Any

from causaldao.errors import LedgerError
from causaldao.ledger.entry import Entry
from causaldao.ledger.log import Log
from causaldao.signing import SigningKey, sha256

KEY = SigningKey.from_seed(b"L" * 32)
GO = signal.SIGUSR1
END = "/the-append-has-ended"  # there is no such file: that it is looked for marks the place in a trace of system calls
SECONDS = 60  # a writer that hangs is ended by its own alarm
_PR_SET_PTRACER, _ANY = (
    0x59616D61,
    ctypes.c_ulong(-1),
)  # linux/prctl.h: where Yama is on, only a parent may trace, unless


def batch(number: int) -> list[Entry]:
    """The entries of one append, the same wherever they are made: one to four, each with a payload of up to 9 KB."""
    source = random.Random(number)
    entries = []
    for place in range(source.randint(1, 4)):
        data = source.randbytes(source.randint(0, 9000))
        body = {"study": "a", "batch": number, "place": place}
        entries.append(Entry("pool", body, {sha256(data): data}, f"{number}/{place}"))
    return entries


def state(number: int) -> dict[str, Any]:
    """What is saved with a batch: one value that each batch replaces, one that every third does."""
    return {"batch": number, f"third/{number % 3}": [number]}


def record(log: Log, number: int) -> None:
    """Append a batch, and say so once `append` has returned."""
    indices = log.append(batch(number), state(number))
    os.access(END, os.F_OK)
    say("done", number, indices[0], indices[-1], log.head.size, log.head.root)


def write(url: str) -> None:
    """One batch after the other, until somebody kills it."""
    with Log.open(url, KEY) as log:
        number = log.state("batch")
        while True:
            number += 1
            say("begun", number)
            record(log, number)


def plain(url: str) -> None:
    """One batch when the signal says so."""
    with Log.open(url, KEY) as log:
        record(log, _when_told(log))


def once(url: str) -> None:
    """One batch, whose commit a checkpoint follows, when the signal says so. If it is refused, die at once."""
    with Log.open(url, KEY) as log:
        _checkpoint_always(log)
        number = _when_told(log)
        try:
            record(log, number)
        except LedgerError as error:
            say("refused", number, error)
            os.kill(os.getpid(), signal.SIGKILL)


def retry(url: str) -> None:
    """The same; if it is refused, again; if that is refused too, with the ledger opened again. Then one batch more."""
    with Log.open(url, KEY) as log:
        _checkpoint_always(log)
        number = _when_told(log)
        for _ in range(2):
            try:
                record(log, number)
                record(log, number + 1)
                return
            except LedgerError as error:
                say("refused", number, error)
    with Log.open(url, KEY) as log:
        record(log, number)
        record(log, number + 1)


def race(url: str) -> None:
    """One entry of its own, when the signal says so, in the study of all."""
    with Log.open(url, KEY) as log:
        mine = Entry("pool", {"study": "a", "writer": os.getpid()})
        _when_told(log)
        try:
            say("won", *log.append([mine], {"writer": os.getpid()}))
        except LedgerError as error:
            say("lost", error)


def _checkpoint_always(log: Log) -> None:
    with log._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_autocheckpoint = 1")


def _when_told(log: Log) -> int:
    """Wait for the signal; the number of the next batch. Whatever Python loads on first use is loaded by now."""
    number: int = log.state("batch") + 1
    batch(number)
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY)
    say("ready", number)
    signal.sigwait({GO})
    return number


def say(*words: object) -> None:
    os.write(1, (" ".join(str(word).replace("\n", " ") for word in words) + "\n").encode())


def run(mode: str, url: str) -> None:
    """Be a writer of that mode, and end."""
    signal.alarm(SECONDS)
    signal.pthread_sigmask(signal.SIG_BLOCK, {GO})
    say("pid", os.getpid())
    try:
        {"write": write, "plain": plain, "once": once, "retry": retry, "race": race}[mode](url)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(*line.split())
        say("end", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
