"""How variables stand in what mechanisms read, and how nodes of one kind are padded into one batch.

`Design` codes a table's columns, `Group` holds nodes of one kind as tensors, `stack` and `unstack` put their parameters
together and take them apart. `structural` solves models made of these, `fitting` trains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from causaldao.errors import DataError
from causaldao.models.mechanisms import ABSENT, Kind, Params, Size


@dataclass(frozen=True)
class Column:
    """A variable: mean and deviation (the unit of numbers), range in the table, and the levels of a category."""

    centre: float
    half: float
    low: float
    high: float
    levels: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Node:
    """A mechanism: its kind by name, its hidden units, and its parameters as `Kind.layout` says."""

    kind: str
    hidden: int
    params: Params


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes of one kind, padded to one shape: ``index`` (g, p) says which design columns are their parents."""

    kind: Kind
    members: tuple[int, ...]
    index: Tensor
    params: Params

    def parents(self, design: Tensor) -> Tensor:
        """(columns, n) -> (g, p, n)."""
        return design[self.index]

    def only(self, wanted: frozenset[int]) -> Group | None:
        """The group without the other nodes; None where none is left."""
        kept = [place for place, member in enumerate(self.members) if member in wanted]
        if len(kept) == len(self.members):
            return self
        if not kept:
            return None
        params = {name: tensor[kept] for name, tensor in self.params.items()}
        return Group(self.kind, tuple(self.members[place] for place in kept), self.index[kept], params)


@dataclass(frozen=True, eq=False)
class Design:
    """Where each variable stands among the columns that mechanisms read.

    A number or a count is (x - centre) / half; a category has a column for each level but the first, 1 where it is
    taken. The last column is zero: padding points there.
    """

    names: tuple[str, ...]
    columns: tuple[Column, ...]

    @cached_property
    def places(self) -> tuple[range, ...]:
        """The columns of each variable."""
        found, start = [], 0
        for one in self.columns:
            width = max(len(one.levels) - 1, 1)
            found.append(range(start, start + width))
            start += width
        return tuple(found)

    @property
    def width(self) -> int:
        """Columns, without the zero."""
        return self.places[-1].stop

    def empty(self, n: int) -> Tensor:
        """All zero: (width + 1, n)."""
        return torch.zeros(self.width + 1, n, dtype=torch.float64)

    def write(self, design: Tensor, j: int, natural: Tensor) -> None:
        """Put a variable's values (n,) where they are read."""
        one, place = self.columns[j], self.places[j]
        if one.levels:
            for at, level in zip(place, one.levels[1:], strict=True):
                design[at] = natural == level
        else:
            design[place.start] = (natural - one.centre) / one.half

    def target(self, j: int, natural: Tensor) -> Tensor:
        """A variable's values as its mechanism gives them. DataError for what is not a level, or not a count."""
        levels = self.columns[j].levels
        if not levels:
            return natural
        codes = torch.searchsorted(torch.tensor(levels, dtype=torch.float64), natural.contiguous())
        codes = codes.clamp(max=len(levels) - 1)
        wrong = torch.tensor(levels, dtype=torch.float64)[codes] != natural
        if bool(wrong.any()):
            odd = natural[wrong][0].item()
            raise DataError(
                f"{self.names[j]} = {odd:g} is none of its levels {', '.join(f'{one:g}' for one in levels)}."
            )
        return codes.double()

    def index(self, parents: Sequence[int]) -> list[int]:
        """The columns of these variables."""
        return [at for parent in parents for at in self.places[parent]]


def stack(made: Kind, params: Sequence[Params], size: Size) -> Params:
    """The parameters of several nodes in one tensor each, padded with zeros; a level that a node lacks is `ABSENT`."""
    shapes = made.layout(size)
    found = {}
    for name, shape in shapes.items():
        fill = ABSENT if made.domain == "category" and name == "bias" else 0.0
        whole = torch.full((len(params), *shape), fill, dtype=params[0][name].dtype)
        for j, one in enumerate(params):
            _corner(whole[j], one[name].shape).copy_(one[name])
        found[name] = whole
    return found


def unstack(made: Kind, params: Params, sizes: Sequence[Size]) -> list[Params]:
    """What `stack` put together, taken apart again."""
    found = []
    for j, size in enumerate(sizes):
        found.append(
            {name: _corner(params[name][j], shape).detach().clone() for name, shape in made.layout(size).items()}
        )
    return found


def _corner(whole: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, length in enumerate(shape):
        whole = whole.narrow(axis, 0, length)
    return whole
