"""Causal discovery on second moments, of numbers or features, or on tables of counts: one `discover`, and the methods
it knows by name.

A method takes evidence, knowledge and options of its own and returns a `Discovery`; adding one is one file
and one line of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from causaldao.errors import MisuseError
from causaldao.models.discovery.boss import boss as _boss
from causaldao.models.discovery.dagma import dagma as _dagma
from causaldao.models.discovery.dagma import notears as _notears
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.fci import fci as _fci
from causaldao.models.discovery.fci import rfci as _rfci
from causaldao.models.discovery.found import Discovery
from causaldao.models.discovery.ges import ges as _ges
from causaldao.models.discovery.pc import pc as _pc
from causaldao.models.discovery.tables import LocalTables, SharedTables, Tables
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge

# under other names, so that `discovery.boss` and `discovery.pc` stay the modules
METHODS: Mapping[str, Callable[..., Discovery]] = {
    "boss": _boss, "pc": _pc, "ges": _ges, "fci": _fci, "rfci": _rfci, "notears": _notears, "dagma": _dagma,
}  # fmt: skip
ON_TABLES = frozenset({"boss", "pc", "ges", "fci", "rfci"})

__all__ = ["METHODS", "ON_TABLES", "Discovery", "LocalTables", "SharedTables", "Tables", "discover", "search"]


def discover(
    evidence: Evidence | Tables, method: str = "boss", knowledge: Knowledge = NONE, **options: Any
) -> CausalGraph:
    """The CPDAG that ``method`` finds in the evidence, directed further by the knowledge; a PAG from ``fci`` and
    ``rfci``.

    The evidence is second moments (`Evidence`), of numbers or of features (`features.from_data`, whose tests and scores
    are those of blocks of columns), or tables of discrete variables (`LocalTables`, `SharedTables`) for the methods in
    `ON_TABLES`. Options of ``boss``: penalty, generator, restarts; of ``ges``: penalty, turning; of both on tables also
    score and sample_size; of ``pc``, ``fci`` and ``rfci``: alpha; of ``pc`` and ``fci`` also colliders, of ``pc``
    priority; of ``notears`` and ``dagma``: sparsity, threshold, standardise.

    Raises:
        MisuseError: no method or option of that name, or a method that cannot use tables; the choices are listed.
        ConfigurationError: the knowledge names unknown variables.
        DataError: the evidence cannot bear the method (linearly dependent variables, too few records, a variable that
            does not vary or is drowned in noise).
    """
    return search(evidence, method, knowledge, **options).graph


def search(evidence: Evidence | Tables, method: str = "boss", knowledge: Knowledge = NONE, **options: Any) -> Discovery:
    """As `discover`, with what else the search found: near ties, separating sets, conflicts, what was left out."""
    if method not in METHODS:
        raise MisuseError(f"there is no discovery method {method!r}. The methods are {', '.join(METHODS)}.")
    if not isinstance(evidence, Evidence) and method not in ON_TABLES:
        raise MisuseError(
            f"{method} takes second moments (Evidence), not tables. The methods on tables are "
            f"{', '.join(sorted(ON_TABLES))}."
        )
    choices = [name for name in signature(METHODS[method]).parameters if name not in ("evidence", "knowledge")]
    if unknown := sorted(set(options) - set(choices)):
        raise MisuseError(f"{method} has no options {unknown}. Its options are {', '.join(choices)}.")
    return METHODS[method](evidence, knowledge=knowledge, **options)
