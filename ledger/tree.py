"""The Merkle tree as the database keeps it: the hash of every complete subtree, written once (`store.NODES`).

An append needs the tree's right edge only, which a `Log` remembers: it reads nothing and adds O(k) rows for k entries.
A root or a proof of any size reads O(log n) rows. Who can write to the database can write wrong hashes into it; so what
is made of them is checked against a head that the log's key signed, before anybody is shown or asked to believe it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import sqlalchemy as sa

from causaldao.errors import LedgerError, ProofError
from causaldao.ledger import merkle
from causaldao.ledger.note import Checkpoint
from causaldao.ledger.store import NODES

Row = tuple[int, int, bytes]  # level, index within it, hash
ALTERED = "the database was altered outside this program. Restore it from a backup."

_NODE = sa.select(NODES.c.hash).where(NODES.c.level == sa.bindparam("l"), NODES.c.position == sa.bindparam("p"))


@dataclass(frozen=True)
class Edge:
    """The complete subtrees that the root of ``size`` leaves is made of, by level and index: one for each bit of it."""

    size: int
    nodes: Mapping[tuple[int, int], bytes]

    @classmethod
    def read(cls, connection: sa.Connection, size: int) -> Edge:
        """The edge of the first ``size`` leaves, as stored."""
        node = reader(connection)
        return cls(size, {name: node(*name) for name in _names(size)})

    @property
    def root(self) -> bytes:
        """The Merkle root, 32 bytes."""
        return merkle.stored_root(self.size, self._node)

    def grow(self, leaves: Sequence[bytes]) -> tuple[Edge, list[Row]]:
        """The edge after these leaves, and the rows that the database must add."""
        added = merkle.grown(self.size, leaves, self._node)
        known = {**self.nodes, **{(level, position): hash for level, position, hash in added}}
        size = self.size + len(leaves)
        return Edge(size, {name: known[name] for name in _names(size)}), added

    def _node(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]


def reader(connection: sa.Connection) -> merkle.Node:
    """The stored hash of a subtree; LedgerError if it is not there. Each is read once in a reader's life."""

    @cache
    def node(level: int, index: int) -> bytes:
        found = connection.scalar(_NODE, {"l": level, "p": index})
        if found is None:
            raise LedgerError(f"The ledger's Merkle tree lacks node {index} of level {level}: {ALTERED}")
        return bytes(found)

    return node


def root_at(node: merkle.Node, size: int, head: Checkpoint) -> bytes:
    """The root of the first ``size`` leaves, from which ``head`` goes on.

    Raises
    ------
    LedgerError
        ``head`` has fewer leaves, or does not go on from what is stored.
    """
    if not 0 <= size <= head.size:
        raise LedgerError(f"The log has {head.size} entries as last seen: there is no root of size {size}.")
    root = merkle.stored_root(size, node)
    proof = merkle.stored_consistency(size, head.size, node)
    _agrees(lambda: merkle.verify_consistency(size, root, head.size, head.root, proof))
    return root


def inclusion(node: merkle.Node, leaf: bytes, index: int, size: int, head: Checkpoint) -> list[bytes]:
    """The proof that ``leaf`` is leaf ``index`` in the tree of ``size``; raises as `root_at`, or if it is not."""
    root = root_at(node, size, head)
    proof = merkle.stored_inclusion(index, size, node)
    _agrees(lambda: merkle.verify_inclusion(leaf, index, size, proof, root))
    return proof


def consistency(node: merkle.Node, old: int, new: int, head: Checkpoint) -> list[bytes]:
    """The proof that the tree of ``new`` leaves begins with that of ``old``; raises as `root_at`."""
    roots = root_at(node, old, head), root_at(node, new, head)
    proof = merkle.stored_consistency(old, new, node)
    _agrees(lambda: merkle.verify_consistency(old, roots[0], new, roots[1], proof))
    return proof


def _agrees(check: Callable[[], None]) -> None:
    try:
        check()
    except ProofError as error:
        raise LedgerError(
            f"The ledger's Merkle tree does not agree with its head ({error.message}): {ALTERED}"
        ) from error


def _names(size: int) -> list[tuple[int, int]]:
    """Level and index of the subtrees that ``size`` leaves are made of."""
    return [(level, (size >> level) - 1) for level in range(size.bit_length()) if size >> level & 1]
