"""Random damage: every change of a bundle is seen, and nothing that it holds makes the verifier stumble."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from causaldao.errors import ConfigurationError, LedgerError
from causaldao.ledger.verify import Policy, Report, verify, verify_receipt
from tests.counts import count
from tests.ledger import forge
from tests.ledger.forge import LOG_KEY, ORIGIN, Forge

WITNESSES = ("ada", "bob", "dan")
POLICY = Policy.parse(forge.history_policy(3))  # everybody: then no cosignature can be left out unseen
SOME = Policy.parse(forge.history_policy(1))
ALONE = Policy.parse(forge.history_policy(0))


@pytest.fixture(scope="module")
def ledger() -> Forge:
    return forge.history()


@pytest.fixture(scope="module")
def bundle(ledger: Forge) -> bytes:
    return ledger.bundle(WITNESSES)


def flip(data: bytes, draw: random.Random) -> bytes:
    position = draw.randrange(len(data))
    return data[:position] + bytes([data[position] ^ 1 << draw.randrange(8)]) + data[position + 1 :]


def delete(data: bytes, draw: random.Random) -> bytes:
    position = draw.randrange(len(data))
    return data[:position] + data[position + draw.choice((1, 1, 2, 10, 100)) :]


def insert(data: bytes, draw: random.Random) -> bytes:
    position = draw.randrange(len(data) + 1)
    more = draw.choice([bytes([draw.randrange(256)]), b"\n", b" ", b"\x00", b'"', b"\\", b"}", b"0", draw.randbytes(9)])
    return data[:position] + more + data[position:]


def copy_over(data: bytes, draw: random.Random) -> bytes:
    """Some bytes of one place written over another place."""
    length = draw.randrange(1, 200)
    source, target = (draw.randrange(max(1, len(data) - length)) for _ in range(2))
    return data[:target] + data[source : source + length] + data[target + length :]


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))] if draw.random() < 0.7 else data[draw.randrange(1, len(data)) :]


def move_line(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    line = lines.pop(draw.randrange(len(lines)))
    lines.insert(draw.randrange(len(lines) + 1), line)
    return b"\n".join(lines)


def double_line(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    return b"\n".join(lines)


def drop_line(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    del lines[draw.randrange(len(lines))]
    return b"\n".join(lines)


def another_digit(data: bytes, draw: random.Random) -> bytes:
    place = draw.choice([match.start() for match in re.finditer(rb"[0-9]", data)])
    return data[:place] + draw.choice(b"0123456789").to_bytes(1, "big") + data[place + 1 :]


def another_case(data: bytes, draw: random.Random) -> bytes:
    place = draw.choice([match.start() for match in re.finditer(rb"[A-Za-z]", data)])
    return data[:place] + data[place : place + 1].swapcase() + data[place + 1 :]


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip, delete, insert, copy_over, cut, move_line, double_line, drop_line, another_digit, another_case,
)  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_no_change_of_a_bundle_goes_unseen(bundle: bytes, mutation: Callable[[bytes, random.Random], bytes]) -> None:
    draw = random.Random(f"{mutation.__name__} 2026")
    for _ in range(count(50, 1200)):
        changed = mutation(bundle, draw)
        if changed != bundle:
            with pytest.raises(LedgerError, match="does not verify"):
                verify(changed, POLICY)


def test_no_bit_goes_unseen_where_not_all_witnesses_are_needed(bundle: bytes) -> None:
    """A lost cosignature may be, as the policy says so; what they cosigned may not change."""
    true = verify(bundle, SOME)
    start = bundle.rindex(f"\n{ORIGIN}\n".encode())
    draw, kept = random.Random(5), set[tuple[str, ...]]()
    for position in range(start, len(bundle), 1 if count(0, 1) else 3):
        changed = bundle[:position] + bytes([bundle[position] ^ 1 << draw.randrange(8)]) + bundle[position + 1 :]
        with suppress(LedgerError):
            report = verify(changed, SOME)
            kept.add(report.cosigners)
            assert facts(report) == facts(true)
    assert kept
    assert all(0 < len(cosigners) < len(WITNESSES) for cosigners in kept)


def facts(report: Report) -> tuple[object, ...]:
    return report.root, report.size, report.entries, report.payloads, report.members


def test_a_ledger_is_cut_below_what_was_cosigned(ledger: Forge, bundle: bytes) -> None:
    """By whoever has the log's key: cosignatures of the longer one do not fit, those of the shorter are not there."""
    document = forge.parse(bundle)
    lines = document["note"].split("\n\n")[1].splitlines(keepends=True)
    for size in range(1, ledger.size):

        def shorten(changed: dict[str, Any], size: int = size) -> None:
            changed["entries"] = changed["entries"][:size]
            named = {name for item in changed["entries"] for name in item["record"]["payloads"]}
            changed["payloads"] = {name: data for name, data in changed["payloads"].items() if name in named}

        shorter = forge.rewrite(bundle, LOG_KEY, shorten)
        for note in (forge.parse(shorter)["note"], forge.parse(shorter)["note"] + "".join(lines[1:]), document["note"]):
            with pytest.raises(LedgerError):
                verify(forge.write({**forge.parse(shorter), "note": note}), POLICY)


STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**53 - 1, 0.5, -1e-7, 1e300, "", "x", "0" * 64, "ada", "é\u2028😀", "\\ud800", "{}",
    "[]", "member.admit", "vote", [], {}, [[]], [{}], [None], {"": ""}, {"envelope": "x"}, {"envelope": "{}"},
    {"envelope": 1},
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def strangely(document: dict[str, Any], draw: random.Random) -> None:
    """Something in a record, or in a statement that a member signs, becomes something else, or goes."""
    records = [item["record"] for item in document["entries"]]
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        record = draw.choice(records)
        found = [(holder, key) for holder, key in places(record) if key not in ("index", "previous")]
        holder, key = draw.choice(found)
        choice = draw.random()
        if choice < 0.15 and isinstance(holder, dict) and holder is not record:
            del holder[key]
        elif choice < 0.3 and isinstance(holder, dict) and holder is not record:
            holder[draw.choice(("votes", "envelope", "member", "manifest", "study", "x"))] = draw.choice(STRANGE)
        elif choice < 0.5:
            other, name = draw.choice(list(places(draw.choice(records))))
            holder[key] = copy.deepcopy(other[name])
        else:
            holder[key] = copy.deepcopy(draw.choice(STRANGE))


def test_nonsense_that_the_log_signed_makes_the_verifier_stumble(bundle: bytes) -> None:
    """Whatever the log's key signs is verified or refused, never met with another error."""
    draw, refused = random.Random(11), 0
    keys = {**{name: forge.signing(name) for name in (*forge.MEMBERS, "dan")}, "bob": forge.NEW_KEY}
    rounds = count(150, 3000)
    for number in range(rounds):
        voters = keys if number % 2 else None  # accomplices, or the votes as they are
        try:
            forged = forge.rewrite(bundle, LOG_KEY, lambda document: strangely(document, draw), voters)
        except (TypeError, ValueError, KeyError, AttributeError):
            continue  # the forger stumbled
        try:
            verify(forged, ALONE)
        except LedgerError:
            refused += 1
    assert refused > rounds // 3


def test_a_statement_of_nonsense_makes_the_verifier_stumble() -> None:
    draw, refused = random.Random(12), 0
    rounds = count(150, 3000)
    fields = ("federation", "study", "round", "member", "kind", "body", "nonce", "parent", "digest", "epoch", "v")
    for _ in range(rounds):
        ledger = Forge().genesis().admit("ada", "bob").propose()
        body = {"name": "p", "sha256": "1" * 64}
        strange = {name: draw.choice(STRANGE) for name in draw.sample(fields, draw.choice((1, 1, 2)))}
        votes = [
            ledger.vote("ada", "federation.policy", body, **strange),
            ledger.vote("bob", "federation.policy", body),
        ]
        ledger.add("federation.policy", {**body, "votes": votes})
        try:
            verify(ledger.bundle(), ALONE)
        except LedgerError:
            refused += 1
    assert refused > rounds // 2


def test_no_change_of_a_receipt_goes_unseen(ledger: Forge) -> None:
    receipt, record = ledger.receipt(6, WITNESSES).encode(), ledger.records[6]
    for mutation in MUTATIONS:
        draw = random.Random(f"{mutation.__name__} receipt")
        for _ in range(count(20, 300)):
            for changed in ((mutation(receipt, draw), record), (receipt, mutation(record, draw))):
                if changed == (receipt, record):
                    continue
                try:
                    line = verify_receipt(*changed, POLICY)
                except LedgerError:
                    continue
                # C2SP leaves open in which order, and how often, the same signatures stand there.
                assert (changed[1], line.index) == (record, 6)
                assert set(changed[0].splitlines()) == set(receipt.splitlines())


def test_a_damaged_policy_makes_its_reader_stumble(bundle: bytes) -> None:
    text = forge.history_policy(3).encode()
    for mutation in MUTATIONS:
        draw = random.Random(f"{mutation.__name__} policy")
        for _ in range(count(30, 600)):
            with suppress(ConfigurationError, LedgerError, UnicodeDecodeError):
                verify(bundle, Policy.parse(mutation(text, draw).decode()))


def test_garbage_makes_the_verifier_stumble(bundle: bytes) -> None:
    draw = random.Random(13)
    header = bundle[: bundle.index(b"\n") + 1]
    for _ in range(count(100, 2000)):
        garbage = draw.choice((b"", header)) + draw.choice(
            (draw.randbytes(draw.randrange(300)), bytes(draw.choices(b'{}[]":,\\ue01-.\n ', k=draw.randrange(300))))
        )
        with pytest.raises(LedgerError):
            verify(garbage, POLICY)
        with pytest.raises(LedgerError):
            verify_receipt(garbage, garbage, POLICY)
