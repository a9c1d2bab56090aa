"""A DAG solved level by level: which nodes can be worked out at once, after which others, and with which weights.

Of a unit with mechanisms f_j(z) = offset_j + head_j · silu(Wᵀ_j z_pa(j) + bias_j), in scaled units. Nodes of one level
have all their parents in earlier ones, so a level is two matrix products, and n rows cost each node once, whatever the
depth. Below held nodes only what descends from them is worked out again. Rows stand transposed here, (d, n): what is
known so far is then one block, and a product with few rows is faster than one with few columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Weights(NamedTuple):
    """adjacency (d, d), weight (d, d, hidden), bias and head (d, hidden), offset (d,)."""

    adjacency: Tensor
    weight: Tensor
    bias: Tensor
    head: Tensor
    offset: Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """The order of a graph's nodes below held ones: first those that stay, then held ones, then level by level.

    A held node that descends from another one stands in its level. ``places``: the nodes in this order, and ``back``
    its inverse; None where the order is that of the columns. reach (d, held), bool: what descends from each of
    ``held``, itself too.
    """

    held: tuple[int, ...]
    given: int
    starts: tuple[int, ...]
    levels: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    places: Tensor | None
    back: Tensor | None
    reach: Tensor
    free: frozenset[int]  # nodes that are never held

    @classmethod
    def of(cls, adjacency: Tensor, held: Sequence[int] | None) -> Schedule:
        """Of a DAG (d, d) and the places of held nodes; None: every node is to be solved, from its noise alone."""
        d = len(adjacency)
        parents = [[i for i in range(d) if row[i]] for row in adjacency.ne(0).T.tolist()]
        order = sorted(range(d), key=_depths(parents).__getitem__)
        chosen = tuple(range(d)) if held is None else tuple(held)
        reach = torch.eye(d, dtype=torch.bool)[:, list(chosen)]
        for j in order:
            for i in parents[j]:
                reach[j] |= reach[i]
        moved = [held is None or int(reach[j].sum()) > int(j in chosen) for j in range(d)]
        among: list[list[int]] = [[i for i in parents[j] if moved[i]] for j in range(d)]
        depth, levels = _depths(among), list[tuple[int, ...]]()
        for level in range(1 + max((depth[j] for j in range(d) if moved[j]), default=-1)):
            levels.append(tuple(j for j in range(d) if moved[j] and depth[j] == level))
        starts = tuple(j for j in chosen if not moved[j])
        stay = [j for j in range(d) if not moved[j] and j not in starts]
        placed = (*stay, *starts, *(j for level in levels for j in level))
        places = None if placed == tuple(range(d)) else torch.tensor(placed, dtype=torch.long)
        back = None if places is None else places.argsort()
        free = frozenset(range(d)) - frozenset(chosen)
        return cls(chosen, len(stay), starts, tuple(levels), placed, places, back, reach[list(placed)], free)


class Level(NamedTuple):
    """Of one level: its nodes, whether one of them may be held, how many rows stand above them, and their two products.

    first (nodes · hidden, d), bias (nodes · hidden, 1), second (nodes, nodes · hidden).
    """

    nodes: tuple[int, ...]
    holds: bool
    top: int
    first: Tensor
    bias: Tensor
    second: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """A schedule with weights. first, bias and second are those of all levels together; all on rows in its order."""

    schedule: Schedule
    first: Tensor
    bias: Tensor
    second: Tensor
    offset: Tensor  # (moved, 1)
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, schedule: Schedule, weights: Weights) -> Plan:
        """Differentiable in the weights."""
        seen = weights.weight * weights.adjacency[..., None]
        bias, head, offset = weights.bias, weights.head, weights.offset[:, None]
        if schedule.places is not None:
            seen = seen[schedule.places][:, schedule.places]
            bias, head, offset = bias[schedule.places], head[schedule.places], offset[schedule.places]
        sizes, hidden = [len(nodes) for nodes in schedule.levels], bias.shape[1]
        top = len(schedule.order) - sum(sizes)
        first, bias, head = seen.flatten(1).T[top * hidden :], bias[top:].reshape(-1, 1), head[top:]
        units = [size * hidden for size in sizes]
        parts = zip(
            schedule.levels, torch.split(first, units), torch.split(bias, units), torch.split(head, sizes), strict=True
        )
        levels, above = [], top
        for nodes, product, inner, last in parts:
            holds = not schedule.free.issuperset(nodes)
            levels.append(Level(nodes, holds, above, product, inner, _blocks(last)))
            above += len(nodes)
        return cls(schedule, first, bias, _blocks(head), offset[top:], tuple(levels))

    def solve(self, noise: Tensor, mask: Tensor | None = None, goal: Tensor | None = None) -> Tensor:
        """Rows from their noise under do, all nodes: noise, mask and goal (n, d) -> (n, d)."""
        noise = self._placed(noise)

        def hold(level: Level, now: Tensor) -> Tensor:
            nodes = list(level.nodes)
            return now if mask is None or goal is None else mixed(mask.T[nodes], goal.T[nodes], now)

        return self._columns(self._solved([noise[:0], noise], noise + self.offset, hold))

    def change(self, rows: Tensor, held: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The same rows had do been done, (n, d) -> (n, d), by abduction, action and prediction.

        held: of each of the schedule's held nodes which rows hold it, bool or weights (n,), and at what, (n,) or ().
        Where a row holds nothing above a node, the node comes back bit for bit.
        """
        schedule, rows = self.schedule, self._placed(rows)
        at = dict(zip(schedule.held, held, strict=True))
        stay, *tops, moved = torch.split(rows, [schedule.given, *[1] * len(schedule.starts), len(self.offset)])
        known = [stay, *(mixed(*at[j], row) for j, row in zip(schedule.starts, tops, strict=True)), moved]

        def hold(level: Level, now: Tensor) -> Tensor:
            if not level.holds:
                return now
            pairs = zip(level.nodes, torch.split(now, 1), strict=True)
            return torch.cat([mixed(*at[j], row) if j in at else row for j, row in pairs])

        base = torch.addmm(moved, self.second, _active(self.bias, self.first, rows), alpha=-1) if len(moved) else moved
        now = self._solved(known, base, hold)
        # All levels in one product and level by level, f(x) differs by rounding: what nothing moves is put back.
        reached = [_moved(mask) for mask, _ in held]
        some = reached[0] if len(reached) == 1 else (schedule.reach.float() @ torch.stack(reached).float()) > 0
        return self._columns(torch.where(some, now, rows))

    def _solved(self, known: list[Tensor], base: Tensor, hold: Callable[[Level, Tensor], Tensor]) -> Tensor:
        """All rows, level by level. known: blocks of rows, the last of those that the levels find; base: theirs too.

        A level sees all rows: those that are not found yet bear no weight in it.
        """
        *known, last = known
        rows = torch.cat([*known, last])
        for level, one in zip(self.levels, torch.split(base, [len(level.nodes) for level in self.levels]), strict=True):
            active, bottom = _active(level.bias, level.first, rows), level.top + len(level.nodes)
            if torch.is_grad_enabled():
                known.append(hold(level, torch.addmm(one, level.second, active)))
                rows = torch.cat([*known, last[len(last) - len(rows) + bottom :]])
                continue
            into = rows[level.top : bottom]
            torch.addmm(one, level.second, active, out=into)
            if level.holds:
                into.copy_(hold(level, into))
        return rows

    def _placed(self, rows: Tensor) -> Tensor:
        places = self.schedule.places
        return rows.T if places is None else rows.T.index_select(0, places)

    def _columns(self, known: Tensor) -> Tensor:
        back = self.schedule.back
        return (known if back is None else known.index_select(0, back)).T


def _blocks(head: Tensor) -> Tensor:
    """(nodes, hidden) -> (nodes, nodes · hidden), each node's own weights in its own columns and 0 elsewhere."""
    return (torch.eye(len(head), dtype=head.dtype, device=head.device)[..., None] * head).flatten(1)


def mixed(held: Tensor, goal: Tensor, natural: Tensor) -> Tensor:
    """goal where held, else natural; weights in [0, 1] mix the two. No gradient reaches natural where held is 1."""
    return torch.where(held, goal, natural) if held.dtype == torch.bool else torch.lerp(natural, goal, held)


def _active(bias: Tensor, first: Tensor, known: Tensor) -> Tensor:
    inner = torch.addmm(bias, first, known)
    return functional.silu(inner, inplace=not inner.requires_grad)


def _moved(held: Tensor) -> Tensor:
    """Which rows may be moved (n,); a weight of 0 that has a gradient may."""
    if held.dtype == torch.bool:
        return held
    return torch.ones_like(held, dtype=torch.bool) if held.requires_grad else held != 0


def _depths(parents: Sequence[Sequence[int]]) -> list[int]:
    """The longest path into each node, in edges. The graph has no cycle."""
    depth, left = [-1] * len(parents), set(range(len(parents)))
    while left:
        for j in sorted(left):
            if all(depth[i] >= 0 for i in parents[j]):
                depth[j] = 1 + max((depth[i] for i in parents[j]), default=-1)
        left = {j for j in left if depth[j] < 0}
    return depth
