"""byzfl, the library of Byzantine-robust aggregation (MIT), as a peer of the benchmarks and an oracle of the tests.

Its package imports torchvision and seaborn for its own experiments, of which we need nothing. So it is installed
without what it depends on, and its aggregators are imported under an empty package of the same name and folder.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType

NEEDED = "0.0.11"
REMEDY = f"not installed: pip install --no-deps byzfl=={NEEDED}"


def load() -> ModuleType | None:
    """The module of byzfl's aggregators and pre-aggregators, or None where byzfl is not installed (see `REMEDY`)."""
    if "byzfl" not in sys.modules:
        found = find_spec("byzfl")
        if found is None or not found.submodule_search_locations:
            return None
        package = ModuleType("byzfl")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["byzfl"] = package
    return import_module("byzfl.aggregators")


def installed() -> str:
    """The version that is installed, or `REMEDY`."""
    return REMEDY if load() is None else version("byzfl")
