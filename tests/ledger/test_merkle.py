"""The tree against RFC 6962's own recursion, published cases, Go's x/mod, mutated proofs and sizes nobody can store."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causaldao.errors import LedgerError, ProofError
from causaldao.ledger.merkle import (
    EMPTY_ROOT,
    MAX_SIZE,
    consistency_proof,
    grown,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    stored_consistency,
    stored_inclusion,
    stored_root,
    verify_consistency,
    verify_inclusion,
)
from tests.counts import count
from tests.ledger.interop import xmod

VECTORS = Path(__file__).with_name("vectors")
PUBLISHED = json.loads((VECTORS / "merkle.json").read_text())
XMOD = json.loads(xmod.RECORDED.read_text())

LEAVES = [leaf_hash(f"leaf {number}".encode()) for number in range(100)]  # those of `xmod`
SIZES = range(71)
MUTATED = count(20, 71)

# The published data refuse to ask from size 0 at all. These three have empty proofs, so nothing in them is wrong by RFC
# 6962 and C2SP's rule (an empty tree is consistent with any; its proof is empty), but that their roots are no hashes.
FROM_NOTHING = {
    "additional/size1-is-zero-and-does-not-equal-size2",
    "additional/size1-is-zero-and-size2-is-not-zero",
    "additional/sizes-are-equal-zero-and-proof-is-empty",
}

# One published case takes any text for a root where two equal sizes have the same one. A hash of ours has 32 bytes.
NO_HASHES = {"additional/sizes-are-equal-one-and-proof-is-empty"}


def rfc_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, 2.1, as it stands."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = rfc_split(len(leaves))
    return hashlib.sha256(b"\x01" + rfc_root(leaves[:k]) + rfc_root(leaves[k:])).digest()


def rfc_path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 6962, 2.1.1, as it stands."""
    if len(leaves) == 1:
        return []
    k = rfc_split(len(leaves))
    if m < k:
        return [*rfc_path(m, leaves[:k]), rfc_root(leaves[k:])]
    return [*rfc_path(m - k, leaves[k:]), rfc_root(leaves[:k])]


def rfc_subproof(m: int, leaves: Sequence[bytes], whole: bool) -> list[bytes]:
    """RFC 6962, 2.1.2, as it stands."""
    if m == len(leaves):
        return [] if whole else [rfc_root(leaves)]
    k = rfc_split(len(leaves))
    if m <= k:
        return [*rfc_subproof(m, leaves[:k], whole), rfc_root(leaves[k:])]
    return [*rfc_subproof(m - k, leaves[k:], False), rfc_root(leaves[:k])]


def rfc_split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


@cache
def root_of(size: int) -> bytes:
    return root(LEAVES[:size])


class Store:
    """Complete subtrees only, each written once; counts what is asked."""

    def __init__(self) -> None:
        self.size = 0
        self.asked = 0
        self.hashes: dict[tuple[int, int], bytes] = {}

    def node(self, level: int, index: int) -> bytes:
        self.asked += 1
        return self.hashes[level, index]

    def append(self, leaves: Sequence[bytes]) -> None:
        for level, index, value in grown(self.size, leaves, self.node):
            assert (level, index) not in self.hashes
            self.hashes[level, index] = value
        self.size += len(leaves)


@cache
def stored(size: int) -> Store:
    store = Store()
    store.append(LEAVES[:size])
    return store


def same_leaves(level: int, index: int) -> bytes:
    """The complete subtrees of a tree all whose leaves are the same: as large as one likes."""
    value = leaf_hash(b"same")
    for _ in range(level):
        value = node_hash(value, value)
    return value


def distinct(level: int, index: int) -> bytes:
    """Hashes for complete subtrees at will: what is above them must come out right all the same."""
    return hashlib.sha256(f"{level} {index}".encode()).digest()


def decoded(hashes: Sequence[str]) -> list[bytes]:
    return [base64.b64decode(value) for value in hashes]


def holds(check: Callable[..., None], *arguments: Any) -> bool:
    try:
        check(*arguments)
    except ProofError:
        return False
    return True


# --- published cases


@pytest.mark.parametrize("name", PUBLISHED["inclusion"])
def test_an_inclusion_is_judged_otherwise_than_published(name: str) -> None:
    case = PUBLISHED["inclusion"][name]
    leaf, wanted = (base64.b64decode(case[part] or "") for part in ("leafHash", "root"))
    held = holds(verify_inclusion, leaf, case["leafIdx"], case["treeSize"], decoded(case["proof"]), wanted)
    assert held is not case["wantErr"]


@pytest.mark.parametrize("name", PUBLISHED["consistency"])
def test_a_consistency_is_judged_otherwise_than_published(name: str) -> None:
    case = PUBLISHED["consistency"][name]
    first, second = (base64.b64decode(case[part] or "") for part in ("root1", "root2"))
    held = holds(verify_consistency, case["size1"], first, case["size2"], second, decoded(case["proof"]))
    assert held is not (case["wantErr"] or name in NO_HASHES)


def test_none_of_the_published_cases_is_lost() -> None:
    wanted = {kind: [case["wantErr"] for case in PUBLISHED[kind].values()] for kind in ("inclusion", "consistency")}
    assert {kind: len(cases) for kind, cases in wanted.items()} == {"inclusion": 98, "consistency": 98}
    assert {kind: cases.count(False) for kind, cases in wanted.items()} == {"inclusion": 6, "consistency": 6}
    assert set(PUBLISHED["consistency"]) >= FROM_NOTHING | NO_HASHES


@pytest.mark.parametrize("name", sorted(NO_HASHES))
def test_a_text_passes_for_a_root(name: str) -> None:
    case = PUBLISHED["consistency"][name]
    roots = [base64.b64decode(case[part]) for part in ("root1", "root2")]
    assert (roots[0] == roots[1], case["size1"] == case["size2"] == 1, case["wantErr"]) == (True, True, False)
    with pytest.raises(ProofError, match="has 32 bytes, but one here has 12"):
        verify_consistency(1, roots[0], 1, roots[1], [])
    verify_consistency(1, root_of(1), 1, root_of(1), [])


@pytest.mark.parametrize("name", sorted(FROM_NOTHING))
def test_from_nothing_every_tree_goes_on_and_only_its_roots_were_wrong(name: str) -> None:
    case = PUBLISHED["consistency"][name]
    assert (case["size1"], case["proof"], case["wantErr"]) == (0, [], True)
    with pytest.raises(ProofError, match="32 bytes"):
        verify_consistency(0, base64.b64decode(case["root1"]), case["size2"], base64.b64decode(case["root2"]), [])
    second = root_of(case["size2"])
    verify_consistency(0, EMPTY_ROOT, case["size2"], second, [])
    with pytest.raises(ProofError, match="not that of an empty tree"):
        verify_consistency(0, root_of(1), case["size2"], second, [])
    with pytest.raises(ProofError, match="has 0 hashes"):
        verify_consistency(0, EMPTY_ROOT, case["size2"], second, [EMPTY_ROOT])


def test_the_published_tree_has_other_hashes() -> None:
    tree = PUBLISHED["tree"]
    leaves = [leaf_hash(bytes.fromhex(data)) for data in tree["leaves"]]
    added = grown(0, leaves, distinct)
    for level, hashes in enumerate(tree["nodes"]):
        assert [value.hex() for at, _, value in added if at == level] == hashes
    assert [root(leaves[:size]).hex() for size in range(9)] == tree["roots"]
    # rfc6962_test.go of the same project
    assert leaf_hash(b"L123456").hex() == "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"
    assert node_hash(b"N123", b"N456").hex() == "aa217fe888e47007fa15edab33c2b492a722cb106c64667fc2b044444de66bbb"


def test_go_has_other_roots_or_other_proofs() -> None:
    for size in range(1, 101):
        store = stored(size)
        assert base64.b64encode(stored_root(size, store.node)).decode() == XMOD["roots"][size - 1]
        inclusion = [stored_inclusion(index, size, store.node) for index in range(size)]
        consistency = [stored_consistency(old, size, store.node) for old in range(1, size + 1)]
        assert xmod.proofs_digest(inclusion) == XMOD["inclusion digests"][size - 1]
        assert xmod.proofs_digest(consistency) == XMOD["consistency digests"][size - 1]


def test_a_proof_that_go_made_is_refused() -> None:
    for size, (inclusion, consistency) in enumerate(zip(XMOD["inclusion"], XMOD["consistency"], strict=True), 1):
        assert len(inclusion) == len(consistency) == size
        for index in range(size):
            verify_inclusion(LEAVES[index], index, size, decoded(inclusion[index]), root_of(size))
            verify_consistency(index + 1, root_of(index + 1), size, root_of(size), decoded(consistency[index]))


# --- the RFC's own words


def test_a_leaf_passes_for_a_node() -> None:
    left, right = LEAVES[:2]
    assert leaf_hash(left + right) != node_hash(left, right)
    assert leaf_hash(b"") != root([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()


def test_roots_and_proofs_are_not_the_rfcs() -> None:
    for size in SIZES:
        leaves = LEAVES[:size]
        assert root(leaves) == root(iter(leaves)) == rfc_root(leaves)
        for index in range(size):
            assert inclusion_proof(leaves, index) == rfc_path(index, leaves)
        for old in range(1, size + 1):
            assert consistency_proof(leaves, old) == rfc_subproof(old, leaves, True)
        assert consistency_proof(leaves, 0) == []


def test_an_honest_proof_is_refused() -> None:
    for size in SIZES:
        for index in range(size):
            proof = stored_inclusion(index, size, stored(size).node)
            verify_inclusion(LEAVES[index], index, size, proof, root_of(size))
        for old in range(size + 1):
            proof = stored_consistency(old, size, stored(size).node)
            verify_consistency(old, root_of(old), size, root_of(size), proof)


# --- what must be refused


def flipped(value: bytes, bit: int = 0) -> bytes:
    return bytes([value[0] ^ 1 << bit]) + value[1:]


def mutations(proof: list[bytes], stranger: bytes) -> list[list[bytes]]:
    """The proof with each hash altered, left out, doubled or swapped with the next, and one more at either end."""
    altered = [[*proof[:at], flipped(proof[at]), *proof[at + 1 :]] for at in range(len(proof))]
    shorter = [proof[:at] + proof[at + 1 :] for at in range(len(proof))]
    doubled = [proof[: at + 1] + proof[at:] for at in range(len(proof))]
    swapped = [[*proof[:at], proof[at + 1], proof[at], *proof[at + 2 :]] for at in range(len(proof) - 1)]
    cut = [[*proof[:at], proof[at][:-1], *proof[at + 1 :]] for at in range(len(proof))]
    return [*altered, *shorter, *doubled, *swapped, *cut, [stranger, *proof], [*proof, stranger], [*proof, b""]]


def test_a_mutated_inclusion_proof_holds() -> None:
    for size in range(1, MUTATED):
        wanted = root_of(size)
        for index in range(size):
            proof, leaf = inclusion_proof(LEAVES[:size], index), LEAVES[index]
            for other in mutations(proof, wanted):
                assert not holds(verify_inclusion, leaf, index, size, other, wanted)
            for place in range(-1, size + 1):
                assert holds(verify_inclusion, leaf, place, size, proof, wanted) is (place == index)
            for claim in ((flipped(leaf), wanted), (leaf, flipped(wanted)), (leaf[1:], wanted), (leaf, wanted + b"\0")):
                assert not holds(verify_inclusion, claim[0], index, size, proof, claim[1])


def test_a_mutated_consistency_proof_holds() -> None:
    for size in range(1, MUTATED):
        new = root_of(size)
        for old_size in range(size + 1):
            proof, old = consistency_proof(LEAVES[:size], old_size), root_of(old_size)
            for other in mutations(proof, new):
                assert not holds(verify_consistency, old_size, old, size, new, other)
            for first, second in ((flipped(old), new), (old[1:], new), (old, new[1:]), (old, new + b"\0")):
                assert not holds(verify_consistency, old_size, first, size, second, proof)
            if old_size:  # after nothing, any tree is right
                assert not holds(verify_consistency, old_size, old, size, flipped(new), proof)
            if 0 < old_size < size:
                assert not holds(verify_consistency, old_size, new, size, old, proof)
                assert not holds(verify_consistency, size, new, old_size, old, proof)
                assert not holds(verify_consistency, old_size, old, old_size, new, [])


@given(st.data())
@settings(max_examples=count(150, 3000), deadline=None)
def test_a_rewritten_history_is_consistent(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 70))
    old_size = data.draw(st.integers(1, size - 1))
    place = data.draw(st.integers(0, old_size - 1))
    rewritten = [*LEAVES[:place], leaf_hash(b"rewritten"), *LEAVES[place + 1 : size]]
    proof = consistency_proof(rewritten, old_size)
    with pytest.raises(ProofError, match="does not begin with the old one"):
        verify_consistency(old_size, root_of(old_size), size, root(rewritten), proof)
    with pytest.raises(ProofError):
        verify_inclusion(LEAVES[place], place, size, inclusion_proof(rewritten, place), root(rewritten))
    verify_consistency(old_size, root(rewritten[:old_size]), size, root(rewritten), proof)


def test_equal_sizes_have_two_roots() -> None:
    verify_consistency(5, root_of(5), 5, root_of(5), [])
    with pytest.raises(ProofError, match="forked"):
        verify_consistency(5, root_of(5), 5, root_of(6), [])
    with pytest.raises(ProofError, match="has 0 hashes"):
        verify_consistency(5, root_of(5), 5, root_of(5), [root_of(5)])
    with pytest.raises(ProofError, match="empty tree"):
        verify_consistency(0, root_of(1), 0, root_of(1), [])


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1, 2**64, 10**40])
def test_a_size_beyond_the_bounds_is_followed(size: int) -> None:
    with pytest.raises(ProofError, match="has 0 to 9223372036854775807"):
        verify_inclusion(LEAVES[0], 0, size, [], LEAVES[0])
    with pytest.raises(ProofError):
        verify_consistency(1, LEAVES[0], size, LEAVES[0], [])
    with pytest.raises(ProofError):
        verify_consistency(size, LEAVES[0], 1, LEAVES[0], [])
    with pytest.raises(LedgerError):
        stored_root(size, distinct)
    with pytest.raises(LedgerError):
        stored_inclusion(0, size, distinct)
    with pytest.raises(LedgerError):
        stored_consistency(0, size, distinct)
    with pytest.raises(LedgerError):
        grown(size, [LEAVES[0]], distinct)
    with pytest.raises(LedgerError, match="not 9223372036854775808"):
        grown(MAX_SIZE - 1, LEAVES[:2], distinct)


def test_a_leaf_or_an_old_size_that_is_not_there_is_proved() -> None:
    for index in (-1, 5, 2**63):
        with pytest.raises(LedgerError, match="no leaf"):
            inclusion_proof(LEAVES[:5], index)
        with pytest.raises(ProofError, match="none of that index"):
            verify_inclusion(LEAVES[0], index, 5, [], root_of(5))
    for old_size in (-1, 6):
        with pytest.raises(LedgerError, match="no earlier size"):
            consistency_proof(LEAVES[:5], old_size)
        with pytest.raises(ProofError, match="history was cut"):
            verify_consistency(old_size, root_of(5), 5, root_of(5), [])
    with pytest.raises(LedgerError, match="no leaf"):
        inclusion_proof([], 0)


# --- a stored tree


@given(st.lists(st.integers(0, 40), max_size=8))
@settings(max_examples=count(60, 1000), deadline=None)
def test_a_stored_tree_is_another_however_its_leaves_came(steps: list[int]) -> None:
    store, leaves = Store(), [leaf_hash(bytes([number % 256, number // 256])) for number in range(sum(steps))]
    for first, last in pairwise([0, *(sum(steps[: at + 1]) for at in range(len(steps)))]):
        before = store.asked
        store.append(leaves[first:last])
        assert store.asked - before <= first.bit_length()
    size = len(leaves)
    # each complete subtree once: n - 1 nodes at most over n leaves, and 2n - popcount(n) in all
    assert len(store.hashes) == 2 * size - size.bit_count()
    assert stored_root(size, store.node) == root(leaves)
    for index in {0, size // 3, size // 2, size - 1} & set(range(size)):
        assert stored_inclusion(index, size, store.node) == inclusion_proof(leaves, index)
        assert stored_consistency(index, size, store.node) == consistency_proof(leaves, index)
        assert stored_root(index, store.node) == root(leaves[:index])  # of an earlier size


class Counted:
    """Answers with hashes at will, and counts; may be asked for subtrees of trees within the bounds only."""

    def __init__(self) -> None:
        self.asked = 0

    def node(self, level: int, index: int) -> bytes:
        self.asked += 1
        assert 0 <= level < 63
        assert (index + 1) << level <= MAX_SIZE
        return distinct(level, index)


@given(st.data())
@settings(max_examples=count(100, 2000), deadline=None)
def test_a_tree_that_nobody_can_store_has_no_proofs(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, MAX_SIZE) | st.integers(0, 62).map(lambda bits: 2**bits))
    index, old_size = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    asked = Counted()
    proof = stored_inclusion(index, size, asked.node)
    assert len(proof) <= 63
    assert asked.asked <= 2 * 63
    path = stored_consistency(old_size, size, same_leaves)
    verify_consistency(old_size, stored_root(old_size, same_leaves), size, stored_root(size, same_leaves), path)
    assert len(path) <= 64
    same = stored_inclusion(index, size, same_leaves)
    verify_inclusion(leaf_hash(b"same"), index, size, same, stored_root(size, same_leaves))
    if same:
        assert not holds(verify_inclusion, leaf_hash(b"same"), index, size, same[1:], stored_root(size, same_leaves))


def test_the_largest_tree_has_no_proofs() -> None:
    new = stored_root(MAX_SIZE, same_leaves)
    for old_size in (1, 2**62, 2**62 + 1, MAX_SIZE - 1):
        old = stored_root(old_size, same_leaves)
        verify_consistency(old_size, old, MAX_SIZE, new, stored_consistency(old_size, MAX_SIZE, same_leaves))
    proof = stored_inclusion(0, MAX_SIZE, same_leaves)
    assert len(proof) == 63
    verify_inclusion(leaf_hash(b"same"), 0, MAX_SIZE, proof, new)


def test_a_tree_of_one_leaf_more_asks_for_what_is_not_complete() -> None:
    for size in SIZES:
        store = stored(size)
        for level, index, value in grown(size, [LEAVES[size]], store.node):
            assert value == root(LEAVES[index << level : (index + 1) << level])
        assert grown(size, [], store.node) == []


def test_a_large_tree_takes_time_that_is_not_linear() -> None:
    size = count(100_000, 1_000_000)
    leaves = [leaf_hash(number.to_bytes(4, "big")) for number in range(size)]
    began = time.monotonic()
    whole = root(leaves)
    taken = time.monotonic() - began
    assert taken < size / 20_000, "a million leaves take under a second; quadratic copies would take hours"
    store = Store()
    store.append(leaves[:77_777])
    store.append(leaves[77_777:])
    assert stored_root(size, store.node) == whole
    before = store.asked
    proof = stored_inclusion(size // 3, size, store.node)
    assert store.asked - before <= 2 * size.bit_length()
    verify_inclusion(leaves[size // 3], size // 3, size, proof, whole)
