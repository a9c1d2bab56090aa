"""The one face of every command: people read stderr, machines one JSON envelope on stdout, and the exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from causaldao.errors import CausalDAOError

SCHEMA_VERSION = 1


def shown(values: Iterable[float], sign: str = "") -> str:
    """A format for these numbers side by side: four decimals, or four digits where decimals would hide all of them."""
    largest = max(map(abs, values), default=0.0)
    return f"{sign}.4f" if largest == 0 or 1e-3 <= largest < 1e9 else f"{sign}.4g"


class Output:
    """Where a command puts its one result: `emit(data, text)`."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def emit(self, data: dict[str, Any], text: str | Callable[[], str] = "") -> None:
        """Print the result: the JSON envelope, or the text a person reads."""
        if self.as_json:
            self._print({"schema_version": SCHEMA_VERSION, "status": "ok", "data": data})
        elif text:
            sys.stdout.write((text() if callable(text) else text).rstrip("\n") + "\n")

    def fail(self, error: CausalDAOError) -> NoReturn:
        """Print an error with its remedy and leave with its exit status."""
        if self.as_json:
            described: dict[str, Any] = {"code": error.code, "exit_code": error.exit_code, "message": error.message}
            described |= {"problems": list(error.problems), "help": f"docs/errors/{error.page}.md", **error.details}
            self._print({"schema_version": SCHEMA_VERSION, "status": "error", "error": described})
        else:
            sys.stderr.write(f"error ({error.code}): {error}\n  help: docs/errors/{error.page}.md\n")
        raise SystemExit(error.exit_code)

    @staticmethod
    def _print(value: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def command(as_json: bool) -> Iterator[Output]:
    """Run a command's body; an error of ours becomes a message and an exit status, never a traceback."""
    output = Output(as_json)
    try:
        yield output
    except CausalDAOError as error:
        output.fail(error)
