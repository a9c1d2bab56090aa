"""The Merkle tree over a log's leaves: roots and proofs of RFC 6962, 2.1 (the same in RFC 9162, 2.1), with SHA-256.

With `||` for concatenation and H for SHA-256:

    leaf_i = H(0x00 || data_i)                    one prefix for leaves and another for nodes,
    node = H(0x01 || left || right)               so that neither can be shown as the other
    root of n leaves: n = 0: H of nothing; n = 1: the leaf; else the node over the root of the first k leaves and
    the root of the others, where k is the largest power of two below n

A tree only grows to the right. So the subtree over the leaves [index·2^level, (index+1)·2^level) never changes once
all its leaves are there. Such a *complete* subtree is named by ``(level, index)``; a store of their hashes answers
every question here with O(log n) of them.

Hashes are 32 bytes. Sizes are at most `MAX_SIZE`: Go's trees and SQL databases count in signed 64-bit integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from causaldao.errors import LedgerError, ProofError

HASH_BYTES = 32
MAX_SIZE = 2**63 - 1
EMPTY_ROOT = hashlib.sha256(b"").digest()

Node = Callable[[int, int], bytes]  # of level and index: the hash of that complete subtree
Range = tuple[int, int]  # the leaves from the first number up to, without it, the second


def leaf_hash(data: bytes) -> bytes:
    """The 32-byte leaf of ``data``."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The 32-byte node over two others."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """The root over the leaves, in their order; of no leaves, SHA-256 of nothing. n - 1 hashes, O(n) memory."""
    level = list(leaf_hashes)
    while len(level) > 1:
        level = _paired(level) + level[len(level) & ~1 :]
    return level[0] if level else EMPTY_ROOT


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that lead from leaf ``index`` to the root, the leaf's sibling first.

    Raises
    ------
    LedgerError
        there is no such leaf.
    """
    return stored_inclusion(index, len(leaf_hashes), _Levels(leaf_hashes).node)


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """The hashes that show the tree over ``leaf_hashes`` to begin with its first ``old_size`` leaves.

    Raises
    ------
    LedgerError
        the tree has fewer leaves.
    """
    return stored_consistency(old_size, len(leaf_hashes), _Levels(leaf_hashes).node)


def stored_root(size: int, node: Node) -> bytes:
    """The root of the first ``size`` leaves, of which ``node`` knows every complete subtree; at most 63 calls of it."""
    _check_size(size)
    return _range_hash((0, size), node) if size else EMPTY_ROOT


def stored_inclusion(index: int, size: int, node: Node) -> list[bytes]:
    """`inclusion_proof` in the tree of the first ``size`` leaves, with O(log n) calls of ``node``."""
    _check_size(size)
    if not 0 <= index < size:
        raise LedgerError(f"A tree of {size} leaves has no leaf {index}: the first has index 0, the last {size - 1}.")
    beside: list[Range] = []
    first, end = 0, size
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            beside.append((middle, end))
            end = middle
        else:
            beside.append((first, middle))
            first = middle
    return [_range_hash(leaves, node) for leaves in reversed(beside)]


def stored_consistency(old_size: int, new_size: int, node: Node) -> list[bytes]:
    """`consistency_proof` between two sizes, with O(log n) calls of ``node``.

    It is empty where nothing needs to be proved: from no leaves, and between equal sizes.
    """
    _check_size(new_size)
    if not 0 <= old_size <= new_size:
        raise LedgerError(f"A tree of {new_size} leaves has no earlier size {old_size}: ask for 0 to {new_size}.")
    if old_size == 0:
        return []
    needed: list[Range] = []
    first, end = 0, new_size
    while end != old_size:
        middle = first + _split(end - first)
        if old_size <= middle:
            needed.append((middle, end))
            end = middle
        else:
            needed.append((first, middle))
            first = middle
    if first:  # what is left is no whole tree of the old size, whose root the verifier holds: it must be shown too
        needed.append((first, end))
    return [_range_hash(leaves, node) for leaves in reversed(needed)]


def grown(size: int, leaf_hashes: Iterable[bytes], node: Node) -> list[tuple[int, int, bytes]]:
    """What appending leaves to a tree of ``size`` makes complete: ``(level, index, hash)``, the leaves (level 0) first.

    ``node`` is asked for complete subtrees of the old tree only, at most one for each level. What is returned is all
    that a store must add.
    """
    hashes = list(leaf_hashes)
    _check_size(size)
    _check_size(size + len(hashes))
    added: list[tuple[int, int, bytes]] = []
    level, first = 0, size
    while hashes:
        added.extend((level, first + offset, value) for offset, value in enumerate(hashes))
        if first % 2:
            first -= 1
            hashes.insert(0, node(level, first))
        hashes = _paired(hashes)
        level, first = level + 1, first // 2
    return added


def verify_inclusion(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Return None if ``proof`` shows ``leaf_hash`` to be leaf ``index`` of the tree of ``size`` leaves with this root.

    Of a proof, length and order are fixed by index and size (RFC 9162, 2.1.3.2): nothing may lack or be left over.

    Raises
    ------
    ProofError
        it does not, a hash is not of 32 bytes, or there is no such leaf.
    """
    _check_proved_size(size)
    if not 0 <= index < size:
        raise ProofError(f"The proof is of leaf {index}, but a tree of {size} leaves has none of that index.")
    inner, outer = _path_lengths(index, size - 1)
    _check_hashes(leaf_hash, root, *_of_length(proof, inner + outer))
    found = leaf_hash
    for level, beside in enumerate(proof):
        # Above the inner part the path runs along the tree's right edge, where there are neighbours on the left only.
        on_the_left = level >= inner or index >> level & 1
        found = node_hash(beside, found) if on_the_left else node_hash(found, beside)
    if found != root:
        raise ProofError(
            f"The proof leads from leaf {index} to the root {found.hex()}, not to {root.hex()} of size {size}: "
            "the leaf is not in that tree at that place."
        )


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Return None if ``proof`` shows that the new tree begins with all of the old one.

    From ``old_size`` 0 there is nothing to prove: every tree begins with no leaves. The proof must then be empty, and
    any ``new_root`` is consistent, whatever it is: such an answer says nothing about the new tree. The root of a size
    0 is always `EMPTY_ROOT` and is refused otherwise. The test data of transparency-dev/merkle refuse every question
    from size 0 as useless; who would be misled by the answer must refuse to ask. That is a witness (C2SP tlog-witness):
    it may ask from 0 only if it never cosigned a checkpoint of that log before. Between equal sizes the proof is
    empty and the roots are equal.

    Raises
    ------
    ProofError
        it does not, a hash is not of 32 bytes, or the sizes are not 0 ≤ old ≤ new ≤ `MAX_SIZE`.
    """
    _check_proved_size(new_size)
    if not 0 <= old_size <= new_size:
        raise ProofError(f"A tree of {new_size} leaves cannot go on from one of {old_size}: history was cut.")
    _check_hashes(old_root, new_root)
    for size, of_size in ((old_size, old_root), (new_size, new_root)):
        if size == 0 and of_size != EMPTY_ROOT:
            raise ProofError(f"The root {of_size.hex()} is not that of an empty tree, which is {EMPTY_ROOT.hex()}.")
    if old_size in (0, new_size):
        _of_length(proof, 0)
        if old_size == new_size and old_root != new_root:
            raise ProofError(
                f"Size {old_size} has two roots, {old_root.hex()} and {new_root.hex()}: history was forked."
            )
        return
    _follow_both(old_size, old_root, new_size, new_root, proof)


def _follow_both(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """The proof for 0 < old < new: one path, followed to the old root and to the new one (RFC 9162, 2.1.4.2).

    It starts at the last complete subtree of the old tree; if that is all of the old tree, its hash is the old root
    and is not repeated in the proof.
    """
    level = (old_size & -old_size).bit_length() - 1
    index = (old_size - 1) >> level
    inner, outer = _path_lengths(index, (new_size - 1) >> level)
    _check_hashes(*_of_length(proof, inner + outer + (index > 0)))
    old = new = proof[0] if index else old_root
    path = proof[1:] if index else proof
    for height, beside in enumerate(path):
        if height >= inner or index >> height & 1:
            old, new = node_hash(beside, old), node_hash(beside, new)
        else:
            new = node_hash(new, beside)
    for size, found, wanted in ((old_size, old, old_root), (new_size, new, new_root)):
        if found != wanted:
            raise ProofError(
                f"The proof from size {old_size} to {new_size} leads to the root {found.hex()} of size {size}, "
                f"not to {wanted.hex()}: the new tree does not begin with the old one, or the proof is another's."
            )


class _Levels:
    """All complete subtrees over a list of leaves, by level."""

    def __init__(self, leaf_hashes: Sequence[bytes]) -> None:
        self._levels = [list(leaf_hashes)]
        while len(self._levels[-1]) > 1:
            self._levels.append(_paired(self._levels[-1]))

    def node(self, level: int, index: int) -> bytes:
        return self._levels[level][index]


def _paired(hashes: Sequence[bytes]) -> list[bytes]:
    """The nodes over each two hashes; an odd last one has no partner and is left out."""
    return [
        hashlib.sha256(b"\x01" + left + right).digest() for left, right in zip(hashes[::2], hashes[1::2], strict=False)
    ]


def _range_hash(leaves: Range, node: Node) -> bytes:
    """The root over some leaves as it occurs in a tree: of complete subtrees, each smaller than the one before it."""
    first, end = leaves
    complete = []
    while first < end:
        level = (end - first).bit_length() - 1
        complete.append(node(level, first >> level))
        first += 1 << level
    found = complete.pop()
    while complete:
        found = node_hash(complete.pop(), found)
    return found


def _split(count: int) -> int:
    """k of RFC 6962: the largest power of two below ``count``, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def _path_lengths(index: int, last: int) -> tuple[int, int]:
    """How many hashes the path from ``index`` has until it meets the path from ``last``, and how many from there on."""
    inner = (index ^ last).bit_length()
    return inner, (index >> inner).bit_count()


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_SIZE:
        raise LedgerError(f"A tree has 0 to {MAX_SIZE} leaves, not {size}.")


def _check_proved_size(size: int) -> None:
    if not 0 <= size <= MAX_SIZE:
        raise ProofError(f"A tree has 0 to {MAX_SIZE} leaves, not {size}: the proof was not read.")


def _of_length(proof: Sequence[bytes], length: int) -> Sequence[bytes]:
    if len(proof) != length:
        raise ProofError(f"Between these sizes a proof has {length} hashes, but this one has {len(proof)}.")
    return proof


def _check_hashes(*hashes: bytes) -> None:
    for value in hashes:
        if len(value) != HASH_BYTES:
            raise ProofError(f"A hash of the tree has {HASH_BYTES} bytes, but one here has {len(value)}.")
