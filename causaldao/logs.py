"""The daemons' logs: one line an event on stderr, as JSON for machines or as text for people.

A JSON line holds ``time`` (UTC, milliseconds, ``Z``), ``level``, ``logger`` and ``message``, then the fields that the
caller gave, then ``exception`` if there was one:

    logging.getLogger(__name__).warning("reply refused", extra={"fields": {"member": "north", "code": "budget"}})
    {"time": "2026-11-21T12:00:00.123Z", "level": "warning", "logger": "…", "message": "reply refused", "member": …}

A message may hold what a peer sent. So every character that is not printable leaves as its escape (a line break as
``\\n``), in both formats: no message can begin a line of its own, move the cursor of a terminal, or turn the direction
of the text. Nothing here looks at records; what a caller does not put into a message or a field is not logged, and a
traceback never shows the values of variables.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from typing import TextIO

from causaldao.errors import MisuseError

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
MAX_TEXT = 16_384  # characters of one message, field or traceback; the rest is counted, not shown
_CHATTY = ("httpx", "alembic")  # a line a call, and Flower polls several times a second
_OWN = ("time", "level", "logger", "message", "exception")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def configure(format: str = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Send every log of this process, Flower's too, to ``stream`` (stderr if None) in one format.

    Call it once when a daemon starts; called again it replaces what it set before. Raises MisuseError for a format or
    level that does not exist.
    """
    if format not in FORMATS:
        raise MisuseError(f"There is no log format {format!r}: choose one of {', '.join(FORMATS)}.")
    if level not in LEVELS:
        raise MisuseError(f"There is no log level {level!r}: choose one of {', '.join(LEVELS)}.")
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(_FORMATTERS[format]())
    handler.setLevel(level.upper())  # on the handler: Flower sets its own logger to DEBUG when it is imported
    root = logging.getLogger()
    root.setLevel(level.upper())
    for former in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    _adopt_flower(handler)


def visible(text: str) -> str:
    """``text`` in one line: what is not printable as its escape, and no more than `MAX_TEXT` characters of it."""
    kept, rest = text[:MAX_TEXT], len(text) - MAX_TEXT
    shown = "".join(one if one.isprintable() else _SHORT.get(one, _escape(one)) for one in kept)
    return f"{shown}… ({rest} more characters)" if rest > 0 else shown


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _adopt_flower(handler: logging.Handler) -> None:
    """Take over Flower's logger. Importing Flower gives it a handler, so import it first, lest that comes after us."""
    import_module("flwr.common.logger")
    flower = logging.getLogger("flwr")
    for former in list(flower.handlers):
        flower.removeHandler(former)
    flower.addHandler(handler)
    flower.propagate = False  # the root has the same handler: each line once


class Sparingly:
    """Lets the same thing be said once in ``seconds``: who may cause a line must not fill the log.

    It remembers ``limit`` things; when there are more, it says nothing new until the oldest may be said again.
    """

    def __init__(self, seconds: float = 10.0, limit: int = 1024) -> None:
        self._seconds = seconds
        self._limit = limit
        self._said: dict[tuple[str, ...], float] = {}

    def __call__(self, *what: str, now: float | None = None) -> bool:
        """Whether it may be said now (seconds of a clock that never goes back; None: the system's); then it counts as
        said."""
        moment = time.monotonic() if now is None else now
        while self._said and moment - next(iter(self._said.values())) >= self._seconds:
            del self._said[next(iter(self._said))]  # in the order in which they were said
        if what in self._said or len(self._said) >= self._limit:
            return False
        self._said[what] = moment
        return True


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that a second `configure` knows what to replace."""


class _Formatter(logging.Formatter):
    """What both formats share: the record as an ordered dictionary of plain values."""

    def values(self, record: logging.LogRecord) -> dict[str, object]:
        moment = datetime.fromtimestamp(record.created, UTC)
        known: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": visible(record.name),
            "message": visible(record.getMessage()),
        }
        given = getattr(record, "fields", {})
        for name, value in given.items():
            key = visible(str(name))
            known[f"field_{key}" if key in _OWN else key] = _plain(value)
        if record.exc_info:
            known["exception"] = visible(self.formatException(record.exc_info))
        return known


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.values(record), ensure_ascii=False, allow_nan=False)


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values = self.values(record)
        time, level, logger, message = (str(values.pop(name)) for name in _OWN[:4])
        pairs = "".join(f" {name}={_quoted(value)}" for name, value in values.items())
        return f"{time} {level.upper():7} {logger}: {message}{pairs}"


def _plain(value: object) -> object:
    """A value that JSON can say: numbers and truth values as they are, anything else as visible text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return visible(str(value))


def _quoted(value: object) -> str:
    text = str(value)
    return f'"{text}"' if not text or set(text) & set(' ="') else text


_FORMATTERS: dict[str, type[_Formatter]] = {"text": _Text, "json": _Json}
