"""Benchmarks: `causaldao bench NAME --json`. Medians, side by side with a peer in the same run;
never part of a test.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from causaldao.errors import MisuseError

NAMES = (
    "engine",
    "demo",
    "scale",
    "wire",
    "ledger",
    "aggregation",
    "robustness",
    "attacks",
    "effects",
    "causal-unit",
    "identification",
    "discovery",
    "networks",
    "nonlinear",
    "federated-features",
    "lacking",
    "continuous",
    "federated",
    "wide-fit",
    "scm",
    "federated-effects",
    "edge-probabilities",
    "local-ballots",
)


def run(name: str, **options: Any) -> dict[str, Any]:
    """Run a benchmark by name with its own options; it returns a JSON object. MisuseError: it has no such option."""
    if name not in NAMES:
        raise MisuseError(f"There is no benchmark {name!r}; choose one of {', '.join(NAMES)}.")
    measure = import_module(f"causaldao.simulations.benchmarks.{name.replace('-', '_')}").measure
    if odd := sorted(set(options) - set(measure.__kwdefaults__)):
        raise MisuseError(f"The benchmark {name!r} has no option {', '.join(odd)}: leave it out.")
    result: dict[str, Any] = measure(**options)
    return {"benchmark": name, **result}
