"""Discovery on moments beside causal-learn in the same process, one thread: agreement, speed, growth, memory.

Random linear-Gaussian models: a random order, a mean degree, weights |w| in [.5, 1.5] ("strong") or [.3, 1] ("weak"),
unit noise. Both sides start from rows, so our seconds hold the making of the moments. Times are CPU seconds of the
process, in pairs on one table, with the median of the pairs' ratios.

Agreement is to the mark of every edge. ``default`` compares the defaults of both; ``alike`` ours with causal-learn's
rules: unanimous colliders, which enter by name. Each problem on which they still differ is named with its cause:

``no CPDAG``       causal-learn's graph has a directed cycle, or no DAG with its arrows and no further collider;
``no PAG``         its graph has a directed cycle, where ours left an arrow out and says so;
``contradiction``  the tests' colliders contradict each other, so no DAG has them all, and both say something else;
``walk`` ...       its graph is ours, to every mark, once exactly that is corrected, or all of ``walk+still``, where
                   fewer corrections do not do (see `causal_learn`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from causaldao.errors import ConfigurationError, MisuseError
from causaldao.models.discovery import METHODS, Discovery
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.score import PENALTY, Score, mask_of
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import NONE
from causaldao.models.pattern import extension
from causaldao.simulations.benchmarks import causal_learn as peer
from causaldao.simulations.benchmarks.memory import most_held

PARTS = ("agreement", "scores", "speed", "growth")
WEIGHTS = {"strong": (0.5, 1.5), "weak": (0.3, 1.0)}
AIMS = {"pc": 100.0, "ges": 10.0, "boss": 4.0}
ALPHA = 0.01
_MODULE = "causaldao.simulations.benchmarks.discovery"


def measure(
    *,
    parts: Sequence[str] = PARTS,
    problems: int = 100,
    pairs: int = 5,
    starts: int = 12,
    weights: Sequence[str] = tuple(WEIGHTS),
    sizes: Sequence[int] = (10, 20, 50, 100, 200, 500),
    limit: float = 60.0,
) -> dict[str, Any]:
    """The parts asked for. ``problems`` of each method for agreement, a fifth as many for scores; ``pairs`` of
    runs for speed; ``starts`` of BOSS on both sides; growth over ``sizes``, each run ended after ``limit`` seconds.

    Raises:
        MisuseError: causal-learn is not installed, or there is no such part or range of weights.
    """
    for what, given, known in (("part", parts, PARTS), ("range of weights", weights, tuple(WEIGHTS))):
        if odd := sorted(set(given) - set(known)):
            raise MisuseError(f"There is no {what} {', '.join(odd)}; choose of {', '.join(known)}.")
    result: dict[str, Any] = {"causal_learn": peer.installed(), "alpha": ALPHA, "penalty": PENALTY}
    if "agreement" in parts:
        result["agreement"] = {
            kind: {method: _agreement(method, kind, problems) for method in AGREED} for kind in weights
        }
    if "scores" in parts:
        result["scores"] = _scores(max(1, problems // 5), starts)
    if "speed" in parts:
        result["speed"] = _speeds(pairs, starts)
    if "growth" in parts:
        result["growth"] = {method: _growth(method, sizes, limit) for method in AIMS}
    return result


def problem(seed: int, weights: str = "strong", latent: bool = False) -> pd.DataFrame:
    """5 to 20 columns of 1,000 or 2,000 rows, of mean degree 1, 2 or 3; with ``latent`` one variable in five is
    hidden in every other problem.
    """
    rng = np.random.default_rng(seed)
    table = draw(rng, int(rng.integers(5, 21)), float(1 + seed % 3), (1000, 2000)[seed % 2], WEIGHTS[weights])
    if latent and seed % 2:
        d = table.shape[1]
        table = table.iloc[:, sorted(rng.permutation(d)[: max(4, round(0.8 * d))].tolist())]
    return table


def draw(rng: np.random.Generator, d: int, degree: float, n: int, weights: tuple[float, float]) -> pd.DataFrame:
    """n rows of a random linear-Gaussian model over d columns."""
    order = rng.permutation(d)
    present = np.triu(rng.random((d, d)) < degree / max(d - 1, 1), k=1)
    matrix = np.zeros((d, d))
    matrix[np.ix_(order, order)] = present * rng.uniform(*weights, (d, d)) * rng.choice([-1, 1], (d, d))
    rows = rng.normal(size=(n, d)) @ np.linalg.inv(np.eye(d) - matrix)
    return pd.DataFrame(rows, columns=[f"v{i:03}" for i in range(d)])


def compare_pc(seed: int, weights: str) -> tuple[bool, str]:
    """Whether the defaults agree, and why the rules alike do not, "" where they do."""
    table = problem(seed, weights)
    theirs = peer.pc(table, ALPHA)
    ours = _found("pc", table, colliders="unanimous", priority="name")
    default = peer.marked(_found("pc", table).graph) == theirs
    if peer.marked(ours.graph) == theirs:
        return default, ""
    if not _extends(theirs, list(table.columns)):
        return default, "no CPDAG"
    return default, "contradiction" if ours.conflicts else "unexplained"


def compare_ges(seed: int, weights: str) -> tuple[bool, str]:
    """As `compare_pc`; GES has no rules to choose from."""
    table = problem(seed, weights)
    same = peer.marked(_found("ges", table).graph) == peer.ges(table)
    return same, "" if same else "unexplained"


def compare_fci(seed: int, weights: str) -> tuple[bool, str]:
    """As `compare_pc`."""
    table = problem(seed, weights, latent=True)
    theirs, ours = peer.fci(table, ALPHA), _found("fci", table, colliders="unanimous")
    default = peer.marked(_found("fci", table).graph) == theirs
    if peer.marked(ours.graph) == theirs:
        return default, ""
    for size in range(1, len(peer.CORRECTIONS) + 1):
        for corrections in combinations(peer.CORRECTIONS, size):
            if peer.marked(ours.graph) == peer.fci(table, ALPHA, corrections):
                return default, "+".join(corrections)
    return default, "no PAG" if ours.conflicts and not _acyclic(theirs, list(table.columns)) else "unexplained"


AGREED: dict[str, Callable[[int, str], tuple[bool, str]]] = {"pc": compare_pc, "ges": compare_ges, "fci": compare_fci}


def _agreement(method: str, weights: str, problems: int) -> dict[str, Any]:
    _say(f"agreement: {method}, {weights} weights")
    told = [AGREED[method](seed, weights) for seed in range(problems)]
    causes = Counter(cause for _, cause in told if cause)
    return {
        "of": problems,
        "default": sum(same for same, _ in told),
        "alike": sum(not cause for _, cause in told),
        "causes": dict(causes),
        "problems": {str(seed): cause for seed, (_, cause) in enumerate(told) if cause},
    }


def _found(method: str, table: pd.DataFrame, **options: Any) -> Discovery:
    level = {"alpha": ALPHA} if method in ("pc", "fci") else {}
    return METHODS[method](Evidence.from_data(table), **level, **options)


def _arrows(edges: peer.Marked) -> tuple[list[Pair], list[Pair]]:
    """(directed, undirected) of the edges."""
    directed, lines = [], []
    for edge in edges:
        (a, at_a), (b, at_b) = sorted(edge)
        if at_a == at_b == "-":
            lines.append((a, b))
        elif {at_a, at_b} == {"-", ">"}:
            directed.append((a, b) if at_b == ">" else (b, a))
    return directed, lines


def _acyclic(edges: peer.Marked, names: Sequence[str]) -> bool:
    try:
        CausalGraph.dag(_arrows(edges)[0], names)
    except ConfigurationError:
        return False
    return True


def _extends(edges: peer.Marked, names: Sequence[str]) -> bool:
    directed, lines = _arrows(edges)
    return _acyclic(edges, names) and extension(CausalGraph.cpdag(directed, lines, names)) is not None


def _scores(problems: int, starts: int) -> dict[str, Any]:
    """BOSS on both sides from as many starts: by how much our best score exceeds the best of theirs."""
    _say("scores: boss")
    margins = [compare_boss(seed, starts) for seed in range(problems)]
    return {
        "of": problems, "starts": starts, "equal_or_better": sum(m > -1e-6 for m in margins),
        "better": sum(m > 1e-6 for m in margins), "least_margin": min(margins),
    }  # fmt: skip


def compare_boss(seed: int, starts: int) -> float:
    """Our best score minus the best that causal-learn's BOSS reached."""
    rng = np.random.default_rng(1_000_000 + seed)
    table = draw(rng, int(rng.integers(5, 21)), 3.0, 1000, WEIGHTS["weak"])
    score = Score.of(Evidence.from_data(table), PENALTY, NONE, "BOSS")

    def total(edges: peer.Marked) -> float:
        dag = extension(CausalGraph.cpdag(*_arrows(edges), list(table.columns)))
        if dag is None:
            raise MisuseError("A CPDAG has no extension.")
        parents = [mask_of(a in dag.parents(b) for a in score.names) for b in score.names]
        return sum(score.of_parents(j, mask) for j, mask in enumerate(parents))

    ours = total(peer.marked(_found("boss", table, restarts=starts).graph))
    return ours - max(total(edges) for edges in peer.boss(table, PENALTY, starts, seed))


def _speeds(pairs: int, starts: int) -> list[dict[str, Any]]:
    from_rows = Evidence.from_data
    boss = METHODS["boss"]
    settings: list[tuple[str, int, float, int, dict[str, Any], Callable[..., Any], Callable[..., Any]]] = []
    for degree in (2.0, 4.0):
        settings.append(
            ("pc", 100, degree, 10_000, {}, lambda t: METHODS["pc"](from_rows(t), alpha=ALPHA), peer.pc),
        )
    settings.append(("ges", 50, 2.0, 2000, {}, lambda t: METHODS["ges"](from_rows(t)), peer.ges))
    for d in (20, 50):
        for count in sorted({1, starts}):
            settings.append((
                "boss", d, 2.0, 2000, {"starts": count}, lambda t, c=count: boss(from_rows(t), restarts=c),
                lambda t, c=count: peer.boss(t, PENALTY, c),
            ))  # fmt: skip
    return [_speed(*setting, pairs) for setting in settings]


def _speed(
    method: str, d: int, degree: float, n: int, more: dict[str, Any], ours: Any, theirs: Any, pairs: int
) -> dict[str, Any]:
    _say(f"speed: {method}, d {d}, degree {degree:g}, n {n} {more or ''}")
    tables = [draw(np.random.default_rng(seed), d, degree, n, WEIGHTS["strong"]) for seed in range(pairs)]
    ours(tables[0])
    timed = [(_seconds(ours, table, 3), _seconds(theirs, table, 1)) for table in tables]
    return {
        "method": method, "d": d, "degree": degree, "rows": n, **more, "pairs": pairs,
        "ours": median(a for a, _ in timed), "causal_learn": median(b for _, b in timed),
        "ratio": median(b / a for a, b in timed), "least_ratio": min(b / a for a, b in timed), "aim": AIMS[method],
    }  # fmt: skip


def _seconds(run: Callable[[pd.DataFrame], Any], table: pd.DataFrame, times: int) -> float:
    found = []
    for _ in range(times):
        began = time.process_time()
        run(table)
        found.append(time.process_time() - began)
    return median(found)


def _growth(method: str, sizes: Sequence[int], limit: float) -> list[dict[str, Any]]:
    """One run at each size in a process of its own, until one meets the limit."""
    return list(_until(limit, method, sizes))


def _until(limit: float, method: str, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    for d in sizes:
        _say(f"growth: {method}, d {d}")
        command = [sys.executable, "-m", _MODULE, method, str(d)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit)
        except subprocess.TimeoutExpired:
            yield {"d": d, "over_seconds": limit}
            return
        yield json.loads(done.stdout)


def once(method: str, d: int) -> dict[str, Any]:
    """CPU seconds of one run at mean degree 2 on 5,000 rows; the process's peak memory in MiB, before and after."""
    import torch

    torch.set_num_threads(1)
    table = draw(np.random.default_rng(0), d, 2.0, 5000, WEIGHTS["strong"])
    before = most_held() / 2**20
    began = time.process_time()
    found = _found(method, table)
    seconds = time.process_time() - began
    peak = most_held() / 2**20
    return {"d": d, "seconds": seconds, "edges": len(found.graph.edges), "before_mib": before, "peak_mib": peak}


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")


if __name__ == "__main__":
    json.dump(once(sys.argv[1], int(sys.argv[2])), sys.stdout)
