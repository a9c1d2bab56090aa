"""We and Go's x/mod, asked anew: what was recorded, thousands of altered notes, and proofs, good and bad."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from causaldao.errors import ProofError
from causaldao.ledger import merkle
from tests.ledger.interop import xmod

pytestmark = pytest.mark.prove

LEAVES = [merkle.leaf_hash(leaf) for leaf in xmod.LEAVES[:64]]
SEED = 20250131


def written(value: bytes) -> str:
    return base64.b64encode(value).decode()


def test_go_answers_otherwise_than_was_recorded() -> None:
    assert xmod.record() == json.loads(xmod.RECORDED.read_text())


def test_an_altered_note_opens_here_and_not_there() -> None:
    """Where both open it they read the same. Go opens more: see `xmod.STRICTER`."""
    chance = random.Random(SEED)
    altered = [_altered(xmod.cosigned(xmod.checkpoint(size)).encode(), chance) for size in range(50) for _ in range(80)]
    answers = xmod.ask({"open": [xmod.opening(note) for note in altered]})["open"]
    read = 0
    for note, go in zip(altered, answers, strict=True):
        ours = xmod.opened(note, xmod.VKEYS)
        if ours is not None:
            assert ours == (go["text"], set(go["by"])), note
            read += 1
    assert 50 < read < len(altered) / 2  # neither everything nor nothing


def _altered(note: bytes, chance: random.Random) -> bytes:
    """Some bytes, or whole lines, replaced, left out, doubled or moved."""
    if chance.random() < 0.3:
        lines = note.split(b"\n")
        first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
        lines.insert(first, lines[second] if chance.random() < 0.5 else lines.pop(second))
        return b"\n".join(lines)
    place = chance.randrange(len(note))
    length = chance.choice([0, 1, 1, 1, 4])
    return (
        note[:place] + chance.choice([b"", b"A", b"=", b"\n", b"\xe2\x80\x94", b"\xff", b"0"]) + note[place + length :]
    )


def test_an_inclusion_holds_here_and_not_there() -> None:
    chance, asked, ours = random.Random(SEED), [], []
    for size in range(1, 65):
        root = merkle.root(LEAVES[:size])
        for index in range(size):
            honest = merkle.inclusion_proof(LEAVES[:size], index)
            for proof, at, of in _claims(honest, index, size, chance):
                asked.append(
                    {"leaf": written(LEAVES[index]), "index": at, "size": of, "proof": proof, "root": written(root)}
                )
                ours.append(_holds(merkle.verify_inclusion, LEAVES[index], at, of, _read(proof), root))
    assert xmod.ask({"inclusion": asked})["inclusion"] == ours
    assert 2080 <= ours.count(True) < len(ours) / 2


def test_a_consistency_holds_here_and_not_there() -> None:
    chance, asked, ours = random.Random(SEED), [], []
    for size in range(1, 65):
        new = merkle.root(LEAVES[:size])
        for old_size in range(1, size + 1):
            old = merkle.root(LEAVES[:old_size])
            honest = merkle.consistency_proof(LEAVES[:size], old_size)
            for proof, at, of in _claims(honest, old_size, size, chance):
                if at == 0:
                    continue  # Go refuses to ask from nothing; C2SP's rule for it is in `verify_consistency`
                asked.append(
                    {"old_size": at, "old_root": written(old), "new_size": of, "new_root": written(new), "proof": proof}
                )
                ours.append(_holds(merkle.verify_consistency, at, old, of, new, _read(proof)))
    assert xmod.ask({"consistency": asked})["consistency"] == ours
    assert 2080 <= ours.count(True) < len(ours) / 2


def _claims(honest: Sequence[bytes], first: int, size: int, chance: random.Random) -> list[tuple[list[str], int, int]]:
    """The proof for its own place, for neighbouring ones, and altered ones for its own."""
    proof = list(map(written, honest))
    other = written(merkle.leaf_hash(chance.randbytes(4)))
    claims = [(proof, first, size), (proof, first + 1, size), (proof, max(0, first - 1), size)]
    claims += [(proof, first, size + 1), (proof, first, max(1, size - 1)), (proof, first, 2 * size)]
    claims += [([*proof, other], first, size), ([other, *proof], first, size)]
    if proof:
        place = chance.randrange(len(proof))
        claims += [
            (proof[:place] + proof[place + 1 :], first, size),
            ([*proof[:place], other, *proof[place + 1 :]], first, size),
            (proof[::-1], first, size),
        ]
    return claims


def _read(proof: Sequence[str]) -> list[bytes]:
    return [base64.b64decode(value) for value in proof]


def _holds(check: Any, *arguments: Any) -> bool:
    try:
        check(*arguments)
    except ProofError:
        return False
    return True


def test_go_is_not_there_and_nobody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="golang-golang-x-mod-dev"):
        xmod._program.__wrapped__()
