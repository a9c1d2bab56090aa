"""Data sets a federation on one machine can start from, and how rows are dealt out to its members.

`rand-hie` is the RAND Health Insurance Experiment as statsmodels ships it (20,190 person-years): Newhouse et
al. (1993), "Free for All? Lessons from the RAND Health Insurance Experiment"; the extract of Deb and Trivedi
(2002), "The structure of demand for health care", Journal of Health Economics 21(4).

From files of the package `causaldata` (MIT), none of whose code is run: `nhefs`, the follow-up of a national survey in
which some quit smoking (Hernán & Robins, "Causal Inference: What If", chapters 12-15); `nsw` and `cps`, the National
Supported Work experiment and comparison rows of a survey (LaLonde, American Economic Review 76, 1986; Dehejia & Wahba,
JASA 94, 1999).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.graph import CausalGraph

_RAND_HIE_NAMES = {
    "mdvis": "visits",
    "lncoins": "log_coinsurance",
    "idp": "deductible_plan",
    "lpi": "log_incentive",
    "fmde": "log_max_expenditure",
    "physlm": "physical_limitation",
    "disea": "chronic_diseases",
    "hlthg": "health_good",
    "hlthf": "health_fair",
    "hlthp": "health_poor",
}


def load(name: str) -> pd.DataFrame:
    """Return the data set `name`, one row per record, columns in a fixed order, no missing values.

    `rand-hie`: (20190, 10). `physical_limitation` lies in [0, 1] but is not a flag: 1,052 rows hold imputed
    values. `nhefs`: (1566, 16), complete records; `quit` 0 or 1, `weight_gain` in kg from 1971 to 1982, and what is
    to be adjusted for, with levels as columns of 0 and 1. `nsw`: (445, 10), `cps`: (15992, 10), earnings in dollars.

    Raises:
        MisuseError: there is no data set of that name; the message lists the names there are.
        ConfigurationError: the library that carries the data is not installed.
    """
    if name not in _LOADERS:
        raise MisuseError(f"No data set is called {name!r}. Choose one of: {', '.join(sorted(_LOADERS))}.")
    return _LOADERS[name]()


def split(
    frame: pd.DataFrame,
    members: int | Sequence[int],
    *,
    generator: np.random.Generator,
    ratio: float = 4.0,
    minimum: int = 20,
) -> list[pd.DataFrame]:
    """Deal every row of `frame` to exactly one member, at random.

    `members` is how many members there are, and their sizes then fall geometrically from the first to the
    last, the largest at most `ratio` times the smallest (to within one row); or it is the list of sizes
    itself, which must add up to the rows there are. The same generator state gives the same parts. Each part
    is indexed from 0.

    Raises:
        MisuseError: `members` < 1, `ratio` < 1, or sizes that do not add up.
        DataError: a part would have fewer than `minimum` rows.
    """
    rows = len(frame)
    sizes = _geometric(rows, members, ratio) if isinstance(members, int) else _stated(rows, members)
    if min(sizes) < minimum:
        raise DataError(
            f"The smallest of {len(sizes)} members would have {min(sizes)} rows of {rows}, fewer than the "
            f"minimum of {minimum}: use fewer members, a smaller ratio, or more rows."
        )
    order = generator.permutation(rows)
    parts = np.split(order, np.cumsum(sizes)[:-1])
    return [frame.iloc[part].reset_index(drop=True) for part in parts]


def linear_gaussian(
    weights: Mapping[tuple[str, str], float],
    n: int,
    generator: np.random.Generator,
    nodes: Sequence[str] = (),
) -> pd.DataFrame:
    """Draw `n` records of the linear model x_j = sum_i w_ij x_i + e_j, e_j standard normal.

    `weights` maps (cause, effect) to w_ij. Returns (n, d), columns in the order of `nodes`, which may name
    variables without an edge; without `nodes`, in the order of names.

    Raises:
        ConfigurationError: the weights hold a cycle or a self loop, or name a variable that `nodes` lacks.
        MisuseError: `n` < 1.
    """
    if n < 1:
        raise MisuseError(f"n={n} records were asked for; ask for at least 1.")
    graph = CausalGraph.dag(list(weights), nodes=tuple(nodes))
    noise = generator.standard_normal((n, len(graph.nodes)))
    columns = dict(zip(graph.nodes, noise.T, strict=True))
    for effect in graph.topological_order():
        for cause in sorted(graph.parents(effect)):
            columns[effect] = columns[effect] + weights[cause, effect] * columns[cause]
    return pd.DataFrame(columns)


def _rand_hie() -> pd.DataFrame:
    try:
        module = import_module("statsmodels.datasets.randhie")
    except ImportError as error:
        raise ConfigurationError(
            "The data set 'rand-hie' is part of statsmodels, which is not installed: "
            "install the extra `demo` (pip install 'causaldao[demo]')."
        ) from error
    frame: pd.DataFrame = module.load_pandas().data
    return frame[list(_RAND_HIE_NAMES)].rename(columns=_RAND_HIE_NAMES)


def _causaldata(name: str) -> pd.DataFrame:
    found = find_spec("causaldata")
    if found is None or found.origin is None:
        raise ConfigurationError(
            "These data are part of causaldata, which is not installed: pip install causaldata (1.3 MB of tables)."
        )
    return pd.read_stata(Path(found.origin).parent / name / f"{name}.dta")


def _nhefs() -> pd.DataFrame:
    raw = _causaldata("nhefs_complete")
    plain = {"qsmk": "quit", "wt82_71": "weight_gain", "age": "age", "wt71": "weight"}
    plain |= {"smokeintensity": "cigarettes", "smokeyrs": "years_smoked"}
    frame = raw[list(plain)].rename(columns=plain).astype(np.float64)
    for name, levels in (("sex", 2), ("race", 2), ("education", 5), ("exercise", 3), ("active", 3)):
        codes = raw[name].astype("category").cat.codes.to_numpy()
        if codes.min() < 0 or codes.max() + 1 != levels:
            raise DataError(f"{name} of nhefs has {codes.max() + 1} levels, expected {levels}: another causaldata?")
        for level in range(1, levels):
            frame[f"{name}_{level}" if levels > 2 else name] = (codes == level).astype(np.float64)
    return frame


def _earnings(name: str) -> pd.DataFrame:
    return _causaldata(name).drop(columns="data_id").astype(np.float64)


def _geometric(rows: int, members: int, ratio: float) -> list[int]:
    if members < 1:
        raise MisuseError(f"members={members}: a federation needs at least 1.")
    if not 1.0 <= ratio < float("inf"):
        raise MisuseError(f"ratio={ratio}: largest part over smallest, a finite number of at least 1.")
    shares = ratio ** -np.linspace(0.0, 1.0, members)
    sizes: list[int] = np.floor(rows * shares / shares.sum()).astype(int).tolist()
    # What rounding left over goes to the smallest parts, so that it can never widen the ratio.
    for index in range(1, rows - sum(sizes) + 1):
        sizes[-index] += 1
    return sizes


def _stated(rows: int, sizes: Sequence[int]) -> list[int]:
    if not sizes or min(sizes) < 0 or sum(sizes) != rows:
        raise MisuseError(f"The sizes {list(sizes)} add up to {sum(sizes)}; the data have {rows} rows.")
    return list(sizes)


_LOADERS: Mapping[str, Callable[[], pd.DataFrame]] = {
    "rand-hie": _rand_hie,
    "nhefs": _nhefs,
    "nsw": lambda: _earnings("nsw_mixtape"),
    "cps": lambda: _earnings("cps_mixtape"),
}
NAMES = tuple(sorted(_LOADERS))
