"""Benchmarks: `causaldao bench NAME --json`. Medians, side by side with a peer in the same run;
never part of a test.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from causaldao.errors import MisuseError

NAMES = ("engine", "demo")


def run(name: str, **options: Any) -> dict[str, Any]:
    """Run a benchmark by name; it takes of the options what it knows and returns a JSON object."""
    if name not in NAMES:
        raise MisuseError(f"There is no benchmark {name!r}; choose one of {', '.join(NAMES)}.")
    measure = import_module(f"causaldao.simulations.benchmarks.{name}").measure
    result: dict[str, Any] = measure(**{key: value for key, value in options.items() if key in measure.__kwdefaults__})
    return {"benchmark": name, **result}
