"""`make prove`: every test at its full count, the demo over twenty seeds, and a dated JSON of what came of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

OUT = Path("proofs")
LIBRARIES = ("flwr", "torch", "opacus", "numpy", "causal-learn", "cryptography", "sqlalchemy")


class Outcomes:
    """Collects what pytest reports: one outcome for each test."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.when == "call" or report.outcome != "passed":
            self.of[report.nodeid] = report.outcome


def main() -> int:
    """Run the proofs; the exit status is pytest's, or 1 if the demo's claims do not hold."""
    os.environ["CAUSALDAO_PROVE"] = "1"
    outcomes, began = Outcomes(), time.monotonic()
    status = int(
        pytest.main(
            ["-q", "--numprocesses", "auto", "--dist", "loadscope", "--no-loadscope-reorder"], plugins=[outcomes]
        )
    )
    from causaldao.simulations.benchmarks import run

    demo = run("demo", seeds=20)
    claims = held(demo)
    slowest = sorted(outcomes.seconds.items(), key=lambda item: -item[1])[:20]
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "clean": _git("status", "--porcelain", "--", ".", ":!proofs") == "",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "libraries": {name: version(name) for name in LIBRARIES},
        "seconds": round(time.monotonic() - began, 1),
        "tests": dict(Counter(outcomes.of.values())),
        "failed": sorted(name for name, outcome in outcomes.of.items() if outcome == "failed"),
        "slowest": {name: round(seconds, 1) for name, seconds in slowest},
        "claims": claims,
        "demo": demo,
    }
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    sys.stdout.write(f"{json.dumps(claims, indent=1)}\n{record['tests']} in {record['seconds']} s, written to {path}\n")
    return status or int(not all(claim["held"] for claim in claims))


def held(demo: dict[str, Any]) -> list[dict[str, Any]]:
    """What the demo claims over twenty seeds, each with what was measured."""
    rule, honest, mean = demo["rule"], demo["honest"], demo["mean"]
    claims = [
        ("the effect is negative in all 20", rule["negative"], rule["negative"] == 20),
        ("its 95 % interval covers the pooled estimate in at least 18", *_at_least(rule["interval_covers_pooled"], 18)),
        ("its median half-width is at most .03", rule["half_width_median"], rule["half_width_median"] <= 0.03),
        ("the accused are exactly the liars in at least 18", *_at_least(rule["accused_are_the_liars"], 18)),
        ("no honest member is accused in at least 18", *_at_least(rule["no_honest_accused"], 18)),
        ("without liars nobody is accused in at least 18", *_at_least(honest["no_honest_accused"], 18)),
        ("no member spends more than epsilon 3", rule["epsilon_largest"], rule["epsilon_largest"] <= 3),
        ("under the plain mean the sign turns in all 20", 20 - mean["negative"], mean["negative"] == 0),
    ]
    return [{"claim": claim, "measured": measured, "held": bool(ok)} for claim, measured, ok in claims]


def _at_least(measured: int, bound: int) -> tuple[int, bool]:
    return measured, measured >= bound


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
