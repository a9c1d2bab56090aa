"""Causal discovery on second moments, of numbers or features, or on tables of counts: one `discover`, and the methods
and feature maps it knows by name.

A method takes evidence, knowledge and options of its own and returns a `Discovery`; adding one is one file
and one line of `METHODS`. A feature map makes a table into evidence; adding one is one line of `frames.FEATURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import pandas as pd

from causaldao.errors import MisuseError
from causaldao.models.discovery.boss import boss as _boss
from causaldao.models.discovery.dagma import dagma as _dagma
from causaldao.models.discovery.dagma import notears as _notears
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.fci import fci as _fci
from causaldao.models.discovery.fci import rfci as _rfci
from causaldao.models.discovery.found import Discovery
from causaldao.models.discovery.frames import evidence_of
from causaldao.models.discovery.ges import ges as _ges
from causaldao.models.discovery.moment_fit import moment_fit as _moment_fit
from causaldao.models.discovery.pc import pc as _pc
from causaldao.models.discovery.tables import LocalTables, SharedTables, Tables
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge

# under other names, so that `discovery.boss` and `discovery.pc` stay the modules
METHODS: Mapping[str, Callable[..., Discovery]] = {
    "boss": _boss, "pc": _pc, "ges": _ges, "fci": _fci, "rfci": _rfci, "notears": _notears, "dagma": _dagma,
    "moment-fit": _moment_fit,
}  # fmt: skip
ON_TABLES = frozenset({"boss", "pc", "ges", "fci", "rfci"})

__all__ = ["METHODS", "ON_TABLES", "Discovery", "LocalTables", "SharedTables", "Tables", "discover", "search"]


def discover(
    evidence: Evidence | Tables | pd.DataFrame,
    method: str = "boss",
    knowledge: Knowledge = NONE,
    *,
    features: str = "identity",
    **options: Any,
) -> CausalGraph:
    """The CPDAG that ``method`` finds in the evidence, directed further by the knowledge; a PAG from ``fci`` and
    ``rfci``.

    A DataFrame, a row for each record, is made into exact evidence by the feature map called ``features``:

    >>> import causaldao, numpy, pandas
    >>> rng = numpy.random.default_rng(0)
    >>> dose, age = rng.normal(size=(2, 1000))
    >>> frame = pandas.DataFrame({"age": age, "dose": dose, "pressure": dose - age + rng.normal(size=1000)})
    >>> causaldao.discover(frame)
    CausalGraph(age, dose, pressure, age -> pressure, dose -> pressure)
    >>> chain = pandas.DataFrame({"dose": dose, "pressure": frame["pressure"]})
    >>> causaldao.discover(chain, "pc", alpha=0.001)
    CausalGraph(dose, pressure, dose - pressure)
    >>> causaldao.discover(chain, knowledge=causaldao.Knowledge(tiers={"dose": 0, "pressure": 1}))
    CausalGraph(dose, pressure, dose -> pressure)

    Evidence is second moments (`Evidence`), of numbers or of features (`features.from_data`, whose tests and scores
    are those of blocks of columns), or tables of discrete variables (`LocalTables`, `SharedTables`) for the methods in
    `ON_TABLES`. Options of ``boss`` and ``moment-fit``: penalty, generator, restarts; of ``ges``: penalty, turning; of
    ``boss`` and ``ges`` on tables also score and sample_size; of ``pc``, ``fci`` and ``rfci``: alpha; of ``pc`` and
    ``fci`` also colliders, of ``pc`` priority; of ``notears`` and ``dagma``: sparsity, threshold, standardise.

    Raises:
        MisuseError: no method, option or feature map of that name, or a method that cannot use tables; the choices are
            listed.
        ConfigurationError: the knowledge names unknown variables.
        DataError: the evidence cannot bear the method (linearly dependent variables, too few records, a variable that
            does not vary or is drowned in noise), or the table's columns are not what the feature map takes.
    """
    return search(evidence_of(evidence, features), method, knowledge, **options).graph


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
