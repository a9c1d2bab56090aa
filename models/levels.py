"""A DAG solved level by level: which nodes can be worked out at once, after which others, and with which weights.

Of a unit with mechanisms f_j(z) = offset_j + head_j · silu(Wᵀ_j z_pa(j) + bias_j), in scaled units. Nodes of one level
have all their parents in earlier ones, so a level is two matrix products, and n rows cost each node once, whatever the
depth. Below held nodes only what descends from them is worked out again. Rows stand transposed here, (d, n): what is
known so far is then one block, and a product with few rows is faster than one with few columns.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        return cls(chosen, len(stay), starts, tuple(levels), placed, places, back, reach[list(placed)])


class Level(NamedTuple):
    """Of one level: its nodes, their rows among those of all levels, and their two products.

    first (nodes · hidden, known rows), bias (nodes · hidden, 1), second (nodes, nodes · hidden).
    """

    nodes: tuple[int, ...]
    rows: slice
    first: Tensor
    bias: Tensor
    second: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """A schedule with weights. first and second are those of all levels together, on rows in the schedule's order."""

    schedule: Schedule
    first: Tensor
    bias: Tensor
    second: Tensor
    offset: Tensor  # (moved, 1)
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, schedule: Schedule, weights: Weights) -> Plan:
        """Differentiable in the weights."""
        seen, d = weights.weight * weights.adjacency[..., None], len(schedule.order)
        bias, head, offset = weights.bias, weights.head, weights.offset[:, None]
        if schedule.places is not None:
            seen = seen[schedule.places][:, schedule.places]
            bias, head, offset = bias[schedule.places], head[schedule.places], offset[schedule.places]
        hidden, top = bias.shape[1], d - sum(map(len, schedule.levels))
        first = seen[:, top:].flatten(1).T
        bias = bias[top:].reshape(-1, 1)
        own = torch.eye(d - top, dtype=head.dtype, device=head.device)
        second = (own[..., None] * head[top:]).flatten(1)
        levels, start = [], 0
        for nodes in schedule.levels:
            rows, units = slice(start, start + len(nodes)), slice(start * hidden, (start + len(nodes)) * hidden)
            levels.append(Level(nodes, rows, first[units, : top + start], bias[units], second[rows, units]))
            start += len(nodes)
        return cls(schedule, first, bias, second, offset[top:], tuple(levels))

    def solve(self, noise: Tensor, mask: Tensor | None = None, goal: Tensor | None = None) -> Tensor:
        """Rows from their noise under do, all nodes: noise, mask and goal (n, d) -> (n, d)."""
        noise = self._placed(noise)
        base, known = noise + self.offset, noise[:0]
        for level in self.levels:
            now = torch.addmm(base[level.rows], level.second, _active(level.bias, level.first, known))
            if mask is not None and goal is not None:
                nodes = list(level.nodes)
                now = mixed(mask.T[nodes], goal.T[nodes], now)
            known = torch.cat([known, now])
        return self._columns(known)

    def change(self, rows: Tensor, held: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The same rows had do been done, (n, d) -> (n, d), by abduction, action and prediction.

        held: of each of the schedule's held nodes which rows hold it, bool or weights (n,), and at what, (n,) or ().
        Where a row holds nothing above a node, the node comes back bit for bit.
        """
        schedule, rows = self.schedule, self._placed(rows)
        at = dict(zip(schedule.held, held, strict=True))
        starts = [mixed(*at[j], rows[schedule.given + i])[None] for i, j in enumerate(schedule.starts)]
        known = torch.cat([rows[: schedule.given], *starts])
        if self.levels:
            base = torch.addmm(rows[len(known) :], self.second, _active(self.bias, self.first, rows), alpha=-1)
        for level in self.levels:
            now = torch.addmm(base[level.rows], level.second, _active(level.bias, level.first, known))
            if any(j in at for j in level.nodes):
                mixtures = [mixed(*at[j], one) if j in at else one for j, one in zip(level.nodes, now, strict=True)]
                now = torch.stack(mixtures)
            known = torch.cat([known, now])
        # All levels in one product and level by level, f(x) differs by rounding: what nothing moves is put back.
        moved = [_moved(mask) for mask, _ in held]
        reached = moved[0] if len(moved) == 1 else (schedule.reach.float() @ torch.stack(moved).float()) > 0
        return self._columns(torch.where(reached, known, rows))

    def _placed(self, rows: Tensor) -> Tensor:
        places = self.schedule.places
        return rows.T if places is None else rows.T.index_select(0, places)

    def _columns(self, known: Tensor) -> Tensor:
        back = self.schedule.back
        return (known if back is None else known.index_select(0, back)).T


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
