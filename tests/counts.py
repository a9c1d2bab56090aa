"""How many cases a property test runs: few in `make test`, all of them in `make prove`."""

from __future__ import annotations

import os


def count(quick: int, full: int) -> int:
    """``full`` when CAUSALDAO_PROVE is set, else ``quick``."""
    return full if os.environ.get("CAUSALDAO_PROVE") else quick
