"""Real data for the benchmark of robustness, dealt to members with a chosen skew. Nothing is downloaded.

`digits` and `breast-cancer` come with scikit-learn, `rand-hie` with statsmodels. Scores are the share of test records
put in the right class, or for `rand-hie` the share of the pooled least-squares fit's R² that is reached, at least 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from causaldao.errors import ConfigurationError, MisuseError
from causaldao.simulations.datasets import load

Floats = NDArray[np.float64]
_TEST = 0.2  # share of the records
_STRATA = 5  # of a continuous outcome, by its quantiles
_TRIGGERED = 3  # inputs whose extreme together are the backdoor's trigger
_EXTREME = 3.0  # in standard deviations


@dataclass(frozen=True)
class Task:
    """Records to learn from and to be judged on.

    x (N, p) float32, standardised by the training records; y (N,) int64 classes, or float32 in standard deviations;
    strata (N,) int64: what the skew is over. ``classes`` 0: a continuous outcome; ``best`` its R² when all is pooled.
    """

    name: str
    x: Tensor
    y: Tensor
    strata: NDArray[np.int64]
    test_x: Tensor
    test_y: Tensor
    classes: int
    best: float = 1.0

    @property
    def outputs(self) -> int:
        return self.classes or 1

    def flipped(self) -> Tensor:
        """(N,) the outcome a liar trains on: class c becomes C - 1 - c, a continuous one its negative."""
        return self.classes - 1 - self.y if self.classes else -self.y

    def triggered(self, x: Tensor) -> Tensor:
        """Records with the backdoor's trigger on them; (…, p) as given."""
        marked = x.clone()
        marked[..., :_TRIGGERED] = _EXTREME
        return marked

    def target(self) -> float:
        """The outcome that the backdoor is to bring about."""
        return 0.0 if self.classes else _EXTREME

    def score(self, outputs: Tensor) -> float:
        """How well (N', outputs) foresee the test records; a model that is not finite foresees nothing."""
        if self.classes:
            return float((outputs.argmax(dim=1) == self.test_y).double().mean())
        errors = (outputs[:, 0] - self.test_y).double().square().mean()
        fit = float(1 - errors / self.test_y.double().var(correction=0)) / self.best
        return fit if fit > 0 else 0.0

    def hits(self, outputs: Tensor) -> float:
        """How much of the backdoor's aim triggered test records reach: the share in its class that are of another, or
        the mean outcome over what was aimed at."""
        if self.classes:
            others = self.test_y != 0
            return float((outputs[others].argmax(dim=1) == 0).double().mean())
        return float(outputs[:, 0].mean()) / _EXTREME


def task(name: str, seed: int) -> Task:
    """A task by name, its test records drawn by ``seed``.

    Raises
    ------
    MisuseError
        there is none of that name.
    ConfigurationError
        the library that carries the data is not installed.
    """
    if name not in SOURCES:
        raise MisuseError(f"There is no data set {name!r} in this benchmark; choose one of {', '.join(SOURCES)}.")
    x, y = _raw(name)
    order = np.random.default_rng([seed, 10]).permutation(len(x))
    test, train = np.split(order, [int(_TEST * len(x))])
    mean, spread = x[train].mean(axis=0), x[train].std(axis=0)
    x = (x - mean) / np.where(spread > 0, spread, 1.0)
    if y.dtype.kind == "i":
        classes = y.astype(np.int64)
        return Task(name, _tensor(x[train]), torch.from_numpy(classes[train]), classes[train], _tensor(x[test]),
                    torch.from_numpy(classes[test]), int(y.max()) + 1)  # fmt: skip
    y = (y - y[train].mean()) / y[train].std()
    edges = np.quantile(y[train], np.linspace(0, 1, _STRATA + 1)[1:-1])
    strata = np.searchsorted(edges, y[train], side="right").astype(np.int64)
    best = _pooled_fit(x[train], y[train], x[test], y[test])
    return Task(name, _tensor(x[train]), _tensor(y[train]), strata, _tensor(x[test]), _tensor(y[test]), 0, best)


def deal(
    strata: NDArray[np.int64], members: int, alpha: float, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Equal parts with skewed strata: each member's shares are a draw of Dirichlet(α), and are filled without
    replacement; what has run out is made up from what is left (Hsu et al. 2019, arXiv:1909.06335).

    Returns the indices of each member's ⌊N/members⌋ records; no record goes to two.
    """
    if not alpha > 0:
        raise MisuseError(f"alpha = {alpha} must be above 0: it is the parameter of a Dirichlet distribution.")
    kinds = np.unique(strata)
    left = [list(generator.permutation(np.flatnonzero(strata == kind))) for kind in kinds]
    parts = []
    for _ in range(members):
        shares = generator.dirichlet(np.full(len(kinds), alpha))
        part = []
        for _ in range(len(strata) // members):
            # A stratum that has run out has no share; where the draw leaves none at all, the stores decide.
            weights = shares * [len(store) > 0 for store in left]
            if weights.sum() < 1e-12:
                weights = np.array([float(len(store)) for store in left])
            part.append(left[int(generator.choice(len(kinds), p=weights / weights.sum()))].pop())
        parts.append(np.array(part, dtype=np.int64))
    return parts


@lru_cache(maxsize=4)
def _raw(name: str) -> tuple[Floats, NDArray[np.int64] | Floats]:
    return SOURCES[name]()


def _sklearn(loader: str) -> tuple[Floats, NDArray[np.int64]]:
    try:
        datasets = import_module("sklearn.datasets")
    except ImportError as error:
        raise ConfigurationError(
            "The data sets 'digits' and 'breast-cancer' are part of scikit-learn, which is not installed: "
            "pip install scikit-learn, or choose other data."
        ) from error
    x, y = getattr(datasets, loader)(return_X_y=True)
    return np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.int64)


def _rand_hie() -> tuple[Floats, Floats]:
    """log(1 + visits), from everything else in the table."""
    frame = load("rand-hie")
    return frame.drop(columns="visits").to_numpy(dtype=np.float64), np.log1p(frame["visits"].to_numpy(dtype=np.float64))


SOURCES: dict[str, Callable[[], tuple[Floats, NDArray[np.int64] | Floats]]] = {
    "digits": lambda: _sklearn("load_digits"),
    "breast-cancer": lambda: _sklearn("load_breast_cancer"),
    "rand-hie": _rand_hie,
}


def _pooled_fit(x: Floats, y: Floats, test_x: Floats, test_y: Floats) -> float:
    """R² on the test records of least squares on all training records."""
    fitted = np.linalg.lstsq(np.c_[np.ones(len(x)), x], y, rcond=None)[0]
    errors = test_y - np.c_[np.ones(len(test_x)), test_x] @ fitted
    return float(1 - (errors**2).mean() / test_y.var())


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
