"""The verifier against everything that was ever done to a bundle or a receipt."""

from __future__ import annotations

import ast
import base64
import gc
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from causaldao.errors import LedgerError
from causaldao.ledger import KINDS, Entry, export, helpers
from causaldao.ledger import verify as verifier
from causaldao.ledger.bundle import FORMAT, MAX_BUNDLE_BYTES, write_policy
from causaldao.ledger.entry import MAX_BODY_DEPTH
from causaldao.ledger.receipt import Receipt
from causaldao.ledger.verify import MAX_BYTES, MAX_ENTRY, MAX_RECEIPT, Policy, verify, verify_receipt
from causaldao.signing import SigningKey, sha256
from tests.counts import count
from tests.ledger import cases, forge
from tests.ledger.forge import LOG_KEY, ORIGIN, STUDY, TIME, Document, Forge, policy_text, witness

PLACE = re.compile(r"(section \w+, byte \d+)|(entry \d+)|(whole file)")
OTHER_KEY = SigningKey.from_seed(b"X" * 32)


@pytest.fixture(scope="module")
def ledger() -> Forge:
    return forge.history()


@pytest.fixture(scope="module")
def bundle(ledger: Forge) -> bytes:
    return ledger.bundle(["ada", "bob", "dan"])


POLICY = Policy.parse(forge.history_policy(3))


def refusal(bundle: bytes, policy: Policy = POLICY) -> str:
    """The verifier's words about a bundle it must refuse; they always say where."""
    with pytest.raises(LedgerError) as caught:
        verify(bundle, policy)
    assert PLACE.search(caught.value.message), caught.value.message
    return caught.value.message


def simple(*entries: tuple[str, dict[str, Any]]) -> Forge:
    ledger = Forge().genesis().admit("ada").propose()
    for kind, body in entries:
        ledger.add(kind, body)
    return ledger


SIMPLE = Policy.parse(policy_text(["ada"]))


def test_a_true_bundle_is_refused_or_the_report_lacks_something(ledger: Forge, bundle: bytes) -> None:
    report = verify(bundle, POLICY)
    assert report.size == len(report.entries) == ledger.size
    assert [line.index for line in report.entries] == [*range(ledger.size)]
    assert [(line.kind, line.time) for line in report.entries] == [
        (item["record"]["kind"], item["record"]["time"]) for item in ledger.items
    ]
    assert report.entries[9].body["gram"] == [[1.0, 1e-7, -0.1], [1e21, 123456.789, 5e-324]]
    assert (report.origin, report.root, report.time) == (ORIGIN, ledger.root(ledger.size), TIME)
    assert (report.members, report.cosigners, report.strangers) == (("ada", "bob", "dan"), ("ada", "bob", "dan"), ())
    assert sorted(report.payloads.values()) == [b"moments of ada", b"moments of bob"]
    assert {sha256(data) for data in report.payloads.values()} == set(report.payloads)
    assert report.erased == (sha256(b"moments of cyd"),)
    assert report.policy_fingerprint == sha256(forge.history_policy(3).encode())


def test_what_the_writer_exports_is_refused(tmp_path: Path) -> None:
    members = {name: cases.MEMBERS[name].public for name in ("ada", "bob")}
    watch = {name: cases.witness(name).public for name in members}
    with cases.create(tmp_path / "ledger.db") as log:
        note = log.note_at(log.head.size)
        text = note.split("\n\n")[0] + "\n"
        for name in ("ada", "bob"):
            line = forge.cosignature(text, name, cases.witness(name)).rstrip("\n")
            log.keep_cosignatures(log.head.size, {name: line})
        data, head = export(log), log.head
    report = verify(data, Policy.parse(write_policy(cases.ORIGIN, cases.LOG_KEY, members, watch, 2)))
    assert (report.size, report.root, report.cosigners) == (head.size, head.root, ("ada", "bob"))
    assert [line.kind for line in report.entries] == [entry.kind for entry in cases.entries()]
    assert len(report.payloads) == 2
    assert forge.write(forge.parse(data)) == data


def test_what_was_erased_is_exported_or_missed(tmp_path: Path) -> None:
    members = {name: cases.MEMBERS[name].public for name in ("ada", "bob")}
    with cases.create(tmp_path / "ledger.db") as log:
        (name, *_) = sorted(cases.evidence("ada").payloads)
        log.erase([name], "asked for")
        report = verify(export(log), Policy.parse(write_policy(cases.ORIGIN, cases.LOG_KEY, members)))
    assert report.erased == (name,)
    assert name not in report.payloads


def test_an_earlier_size_is_exported_with_what_came_later(tmp_path: Path) -> None:
    members = {name: cases.MEMBERS[name].public for name in ("ada", "bob")}
    with cases.create(tmp_path / "ledger.db", cases.entries()[:6]) as log:
        then = export(log)
        log.append(cases.entries()[6:])
        assert export(log, 6) == then
        report = verify(export(log, 5), Policy.parse(write_policy(cases.ORIGIN, cases.LOG_KEY, members)))
    assert (report.size, len(report.payloads)) == (5, 1)


def test_an_empty_ledger_is_exported(tmp_path: Path) -> None:
    with cases.create(tmp_path / "ledger.db", []) as log, pytest.raises(LedgerError, match="is empty"):
        export(log)


# Bytes


def test_no_changed_byte_is_placed_in_another_entry(bundle: bytes) -> None:
    starts = [match.start() for match in re.finditer(rb'^{"record":', bundle, re.MULTILINE)]
    draw = random.Random(7)
    for _ in range(count(60, 500)):
        index = draw.randrange(len(starts) - 1)
        position = draw.randrange(starts[index], starts[index + 1] - 1)
        message = refusal(bundle[:position] + bytes([bundle[position] ^ 1]) + bundle[position + 1 :])
        named = re.search(r"entry (\d+)", message)
        assert named, message
        assert int(named[1]) == index, (position, message)


@pytest.mark.parametrize("section", ["header", "payloads", "checkpoint"])
def test_a_changed_section_is_not_named(bundle: bytes, section: str) -> None:
    start = {
        "header": 0,
        "payloads": bundle.index(b'{"data":'),
        "checkpoint": bundle.index(f"\n{ORIGIN}\n".encode()) + 1,
    }[section]
    end = {"header": bundle.index(b"\n"), "payloads": bundle.index(b"\n", start), "checkpoint": len(bundle)}[section]
    draw = random.Random(section)
    for _ in range(count(30, 300)):
        position = draw.randrange(start, end)
        if bundle[position] ^ 1 == ord("\n") or bundle[position] == ord("\n"):
            continue
        message = refusal(bundle[:position] + bytes([bundle[position] ^ 1]) + bundle[position + 1 :])
        place = re.search(r"section (\w+), byte (\d+)", message)
        if section == "header" and place is None:
            continue  # another number of entries or payloads: then what is missing is named
        assert place, message
        assert place[1] == section or section == "header"
        # A name that is greater now is found out at the next one.
        assert start <= int(place[2]) <= end + 1 or section == "header"


def test_an_oversize_bundle_is_parsed(bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*_: object, **__: object) -> None:
        raise RuntimeError("it was parsed")

    monkeypatch.setattr(verifier, "read", parsed)
    with pytest.raises(LedgerError, match="not parsed"):
        verify(bundle, POLICY, max_bytes=len(bundle) - 1)
    with pytest.raises(RuntimeError):
        verify(bundle, POLICY, max_bytes=len(bundle))


def test_an_endless_line_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "section header, byte 0: expected a line of at most" in refusal(b"x" * (MAX_ENTRY + 1) + b"\n")
    data = simple().bundle()
    first = data.index(b"\n") + 1
    long = data[:first] + b'{"record":{"body":{"a":"' + b"x" * MAX_ENTRY + data[first:]
    message = refusal(long, SIMPLE)
    assert f"entry 0, byte {first}: expected a line of at most {MAX_ENTRY} bytes" in message
    payload = Forge().genesis()
    payload.add("pool", {}, {sha256(b"1"): b"1"})
    monkeypatch.setattr(verifier, "MAX_LINE", 60)
    assert "section payloads, byte" in refusal(payload.bundle(), SIMPLE)


@pytest.mark.parametrize("length", [0, 1, 10, 100])
def test_a_bundle_that_ends_too_soon(bundle: bytes, length: int) -> None:
    ends = [match.end() for match in re.finditer(b"\n", bundle)]
    for end in ends[:-1]:
        refusal(bundle[: end - 1 - length] if length else bundle[:end])
        refusal(bundle[: end - 1])


@pytest.mark.parametrize("tail", [b" ", b"\n", b"\x00", b"{}", b"]", b"\n\n"])
def test_trailing_bytes(bundle: bytes, tail: bytes) -> None:
    assert "section checkpoint" in refusal(bundle + tail)
    refusal(tail + bundle)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b"\n\n\n", b"null\n", b"[]\n", b"{}\n", b'"x"\n', b"\xff\n", b"NaN\n",
        b"[" * 99999, b"[" * 99999 + b"\n",
        b'{"format":"causaldao-bundle/1"}\n', b'{"format":"causaldao-bundle/2"}\n', b'{"cosignatures":[],"entries":[]}',
        b'{"entries":0,"format":"causaldao-bundle/2","origin":"causaldao.example/north","payloads":0}\n',
        b'{"entries":-1,"format":"causaldao-bundle/2","origin":"causaldao.example/north","payloads":0}\n',
        b'{"entries":1,"format":"causaldao-bundle/2","origin":"causaldao.example/north","payloads":-1}\n',
        b'{"entries":1,"format":"causaldao-bundle/2","origin":"causaldao.example/north","payloads":0}\n',
        b'{"entries":9007199254740991,"format":"causaldao-bundle/2","origin":"causaldao.example/north","payloads":0}\n',
    ],
)  # fmt: skip
def test_files_that_are_no_bundle(data: bytes) -> None:
    refusal(data, SIMPLE)


@pytest.mark.parametrize("name", ["entries", "payloads", "format", "origin", "more"])
@pytest.mark.parametrize("value", [None, 1, 2**40, -1, 1.5, "x", [], {}, True])
def test_a_header_of_another_shape_or_with_other_numbers(bundle: bytes, name: str, value: object) -> None:
    refusal(forge.reencode(bundle, lambda document: document["header"].update({name: value})))


@pytest.mark.parametrize("name", ["body", "index", "kind", "payloads", "previous", "time"])
@pytest.mark.parametrize("value", [None, True, -1, 1.5, "x", [], {}, [1], [[]]])
def test_records_of_another_shape_even_when_signed(name: str, value: object) -> None:
    """A log that signs nonsense is refused too, in order and without an internal error."""
    ledger = simple(("complaint", {"study": STUDY}))
    record = ledger.items[-1]["record"]
    changed = ledger.bundle()
    if name in ("index", "previous"):
        changed = forge.reencode(changed, lambda document: document["entries"][3]["record"].update({name: value}))
    else:
        again = simple()
        again.add_record({**record, name: value})
        changed = again.bundle()
    if record[name] == value or (name == "body" and value == {}):
        assert verify(changed, SIMPLE).size == 4
    else:
        refusal(changed, SIMPLE)


def test_entries_with_more_or_less_than_a_record_and_a_signature(bundle: bytes) -> None:
    def changed(change: Callable[[Document], object]) -> str:
        return refusal(forge.reencode(bundle, lambda document: change(document["entries"][4])))

    assert "entry 4: expected an object with exactly" in changed(lambda item: item.update(more=1))
    assert "entry 4: expected an object with exactly" in changed(lambda item: item.update(a=1))
    assert "entry 4: expected an object with exactly" in changed(lambda item: item.pop("signature"))
    assert "entry 4: expected an object with exactly" in changed(lambda item: item.pop("record"))
    assert "entry 4: 'signature' is not a str" in changed(lambda item: item.update(signature=1))
    assert "entry 4" in changed(lambda item: item.update(signature=""))
    assert "entry 4" in changed(lambda item: item.update(signature=item["signature"][:-4]))
    assert "entry 4" in changed(lambda item: item.update(signature="é" * 44))
    assert "entry 4: expected an object with exactly" in changed(lambda item: item["record"].update(more=1))


@pytest.mark.parametrize("time", ["2025-01-31T12:00:00Z", "2025-01-31 12:00:00.000Z", "", "٢025-01-31T12:00:00.000Z"])
def test_a_time_of_another_form(time: str) -> None:
    ledger = simple()
    ledger.add("complaint", {"study": STUDY}, time=time)
    assert "entry 3: the time" in refusal(ledger.bundle(), SIMPLE)


@pytest.mark.parametrize("kind", ["genesis", "", "Genesis", "study", "study.won", "federation.coup", "member"])
def test_a_kind_that_nobody_knows(kind: str) -> None:
    assert "entry 3: the kind" in refusal(simple((kind, {"study": STUDY})).bundle(), SIMPLE)
    first = Forge()
    first.add("pool", {})
    assert "entry 0: the kind 'pool'" in refusal(first.bundle(), SIMPLE)


@pytest.mark.parametrize("payloads", [["b" * 64, "a" * 64], ["a" * 64] * 2, ["A" * 64], ["a"], [1], [None, "a" * 64]])
def test_a_list_of_payloads_of_another_form(payloads: list[Any]) -> None:
    ledger = simple()
    ledger.add_record({"kind": "pool", "body": {"study": STUDY}, "payloads": payloads, "time": TIME})
    assert "entry 3: its payloads are not" in refusal(ledger.bundle(), SIMPLE)


# Forgeries


def drop(index: int) -> Callable[[Document], object]:
    return lambda document: document["entries"].pop(index)


def swap(document: Document) -> None:
    items = document["entries"]
    items[10], items[11] = items[11], items[10]


def test_an_entry_removed_and_signed_again_with_another_key() -> None:
    true = simple(("complaint", {"study": STUDY, "n": 1}), ("complaint", {"study": STUDY, "n": 2})).bundle()
    forged = forge.rewrite(true, OTHER_KEY, drop(3))
    assert "entry 0: its signature" in refusal(forged, SIMPLE)
    # The forgery itself is well made: under the forger's own key it verifies.
    assert verify(forged, Policy.parse(policy_text(["ada"], log=OTHER_KEY))).size == 4


def test_an_entry_removed(bundle: bytes) -> None:
    assert "entry 7: its record says index 8" in refusal(forge.reencode(bundle, drop(7)))


def test_the_last_entry_removed(bundle: bytes) -> None:
    assert "section checkpoint" in refusal(forge.reencode(bundle, drop(-1)))


def test_entries_reordered(bundle: bytes) -> None:
    assert "entry 10" in refusal(forge.reencode(bundle, swap))


def test_an_entry_repeated(bundle: bytes) -> None:
    message = refusal(forge.reencode(bundle, lambda document: document["entries"].insert(5, document["entries"][4])))
    assert "entry 5: its record says index 4" in message


def test_entries_reordered_with_their_indices_mended(bundle: bytes) -> None:
    def change(document: Document) -> None:
        swap(document)
        for index, item in enumerate(document["entries"]):
            item["record"]["index"] = index

    assert "entry 10: it does not follow" in refusal(forge.reencode(bundle, change))


def test_a_signature_of_another_entry(bundle: bytes) -> None:
    def change(document: Document) -> None:
        items = document["entries"]
        items[4]["signature"], items[5]["signature"] = items[5]["signature"], items[4]["signature"]

    assert "entry 4: its signature" in refusal(forge.reencode(bundle, change))


def test_the_last_entry_is_not_signed(bundle: bytes) -> None:
    """Nothing follows it that would name another link."""

    def change(document: Document) -> None:
        document["entries"][-1]["signature"] = base64.b64encode(bytes(64)).decode()

    last = forge.history().size - 1
    assert f"entry {last}: its signature" in refusal(forge.reencode(bundle, change))


def test_a_payload_swapped_for_another(bundle: bytes) -> None:
    def under_the_old_name(document: Document) -> None:
        document["payloads"][min(document["payloads"])] = forge.payload_name(b"other moments")[1]

    def under_its_own_name(document: Document) -> None:
        document["payloads"] = dict([forge.payload_name(b"other moments")])

    assert "section payloads" in refusal(forge.reencode(bundle, under_the_old_name))
    assert "no entry speaks of" in refusal(forge.reencode(bundle, under_its_own_name))


def test_a_payload_left_out(bundle: bytes) -> None:
    message = refusal(forge.reencode(bundle, lambda document: document["payloads"].pop(sha256(b"moments of bob"))))
    assert f"entry 7: its payload {sha256(b'moments of bob')} is not in the file, and no entry erases it" in message


def test_a_payload_nobody_speaks_of(bundle: bytes) -> None:
    def change(document: Document) -> None:
        document["payloads"] |= [forge.payload_name(b"smuggled")]

    assert "no entry speaks of" in refusal(forge.reencode(bundle, change))


def test_payloads_in_another_order_or_twice(bundle: bytes) -> None:
    lines = bundle.split(b"\n")
    first, second = (k for k, line in enumerate(lines) if line.startswith(b'{"data"'))
    lines[first], lines[second] = lines[second], lines[first]
    assert "in order" in refusal(b"\n".join(lines))
    lines[first] = lines[second]
    assert "in order" in refusal(b"\n".join(lines))


@pytest.mark.parametrize("value", [{"data": 1, "sha256": "0"}, {"data": ""}, {"data": "", "sha256": "", "x": 1}, [], 1])
def test_a_payload_of_another_shape(bundle: bytes, value: object) -> None:
    lines = bundle.split(b"\n")
    first = next(k for k, line in enumerate(lines) if line.startswith(b'{"data"'))
    lines[first] = json.dumps(value, separators=(",", ":")).encode()
    assert "section payloads" in refusal(b"\n".join(lines))


def test_a_second_spelling_of_a_signature_or_payload() -> None:
    """Base64 has stray bits in its last digit: with them, one ledger would have two bundles."""
    data = b"four"
    ledger = simple()
    ledger.add("pool", {"study": STUDY}, {sha256(data): data})
    bundle = ledger.bundle()
    places = [match.start() for match in re.finditer(rb'[A-Za-z0-9+/](==|=)["\n]', bundle)]
    assert len(places) == 4 + 1 + 2  # entries, payload, root and the signature of the checkpoint
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for place in places:
        following = digits[digits.index(bundle[place]) + 1]
        message = refusal(bundle[:place] + bytes([following]) + bundle[place + 1 :], SIMPLE)
        assert "canonical base64" in message or "not one by the policy's log key" in message


# Checkpoints


def noted(document: Document, text: str, names: tuple[str, ...] = ("ada", "bob", "dan")) -> None:
    document["note"] = forge.note(text, cosigners={name: witness(name) for name in names})


def test_a_checkpoint_that_was_signed_for_other_entries(ledger: Forge, bundle: bytes) -> None:
    """Everybody signed it: it is of a longer ledger, or of another history."""
    origin, size, root = ledger.checkpoint.splitlines()
    longer = f"{origin}\n{int(size) + 1}\n{root}\n"
    other = f"{origin}\n{size}\n{base64.b64encode(bytes(32)).decode()}\n"
    assert "it is of 23 entries, the file has 22" in refusal(
        forge.reencode(bundle, lambda document: noted(document, longer))
    )
    assert "its root is 00000000" in refusal(forge.reencode(bundle, lambda document: noted(document, other)))


def test_an_older_checkpoint_does_not_fit_the_longer_ledger_but_fits_its_own() -> None:
    """Truncation at a cosigned checkpoint cannot be seen in the file alone; the docs say so and this pins it."""
    ledger = simple(("complaint", {"study": STUDY}))
    older = ledger.bundle(["ada"])
    policy = Policy.parse(policy_text(["ada"], ["ada"], 1))
    ledger.add("complaint", {"study": STUDY, "later": True})
    newer = ledger.bundle(["ada"])
    note = forge.parse(older)["note"]
    assert "it is of 4 entries, the file has 5" in refusal(
        forge.reencode(newer, lambda document: document.update(note=note)), policy
    )
    assert verify(older, policy).size == 4


def test_a_rewritten_history_lacks_the_cosignatures(bundle: bytes) -> None:
    """The log's key alone is not enough where witnesses are asked for."""
    rewritten = forge.rewrite(bundle, LOG_KEY, lambda document: document["entries"].pop())
    assert "asks for the cosignatures of 3 of all-of-them (ada, bob, dan); cosigned by nobody" in refusal(rewritten)
    old = forge.parse(bundle)["note"].split("\n\n")[1].splitlines(keepends=True)[1:]
    kept = forge.reencode(rewritten, lambda document: document.update(note=document["note"] + "".join(old)))
    assert "the cosignature of 'ada' is not one by that witness's key" in refusal(kept)
    assert verify(rewritten, Policy.parse(forge.history_policy(0))).size == forge.history().size - 1


def test_fewer_cosigned_than_the_policy_asks_for(ledger: Forge) -> None:
    names = ("ada", "bob", "dan")
    for asked in range(4):
        policy = Policy.parse(forge.history_policy(asked))
        for number in range(4):
            for cosigners in itertools.combinations(names, number):
                if number < asked:
                    assert f"of {asked} of all-of-them" in refusal(ledger.bundle(cosigners), policy)
                else:
                    assert verify(ledger.bundle(cosigners), policy).cosigners == cosigners


def test_strangers_are_counted_or_hidden(ledger: Forge) -> None:
    report = verify(ledger.bundle(["ada", "bob", "dan", "eve", "zoe"]), POLICY)
    assert (report.cosigners, report.strangers) == (("ada", "bob", "dan"), ("eve", "zoe"))


def test_a_policy_with_another_log_key(bundle: bytes) -> None:
    text = forge.history_policy(0).replace(forge.vkey(ORIGIN, LOG_KEY), forge.vkey(ORIGIN, OTHER_KEY))
    assert "entry 0: its signature" in refusal(bundle, Policy.parse(text))


def test_a_policy_for_another_origin(bundle: bytes) -> None:
    text = forge.history_policy(0).replace(forge.vkey(ORIGIN, LOG_KEY), forge.vkey("o", LOG_KEY))
    assert "section header, byte 0: the log is" in refusal(bundle, Policy.parse(text))


# The tree


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100])
def test_a_root_of_any_size_is_another_than_the_standard_defines(size: int) -> None:
    leaves = [sha256(bytes([k])).encode()[:32] for k in range(size)]
    chain = verifier._Chain()
    for start in range(0, size, 5):
        chain.levels[0] += leaves[start : start + 5]
        chain.grow()
    assert [chain.root(k) for k in range(1, size + 1)] == [forge.tree(leaves[:k]) for k in range(1, size + 1)]
    for index in range(size):
        path = forge.path(leaves, index)
        assert verifier._climb(leaves[index], index, size, path) == forge.tree(leaves)
        assert verifier._climb(leaves[index], index, size, [*path, bytes(32)]) is None
        assert not path or verifier._climb(leaves[index], index, size, path[:-1]) is None


# Receipts


def receipt_refusal(receipt: str | bytes, record: bytes, policy: Policy = POLICY) -> str:
    with pytest.raises(LedgerError, match=r"does not verify: (receipt|record)") as caught:
        verify_receipt(receipt, record, policy)
    return caught.value.message


COSIGNERS = ("ada", "bob", "dan")


def test_a_true_receipt_is_refused(ledger: Forge) -> None:
    for index in range(ledger.size):
        receipt = ledger.receipt(index, COSIGNERS)
        line = verify_receipt(receipt, ledger.records[index], POLICY)
        assert (line.index, line.kind) == (index, ledger.items[index]["record"]["kind"])
        assert verify_receipt(receipt.encode(), ledger.records[index], POLICY) == line


def test_the_receipt_that_the_writer_gives_is_refused(tmp_path: Path) -> None:
    policy = Policy.parse(write_policy(cases.ORIGIN, cases.LOG_KEY, {}))
    with cases.create(tmp_path / "ledger.db") as log:
        for index in range(log.head.size):
            given = log.receipt(index, (), 0)
            assert isinstance(given, Receipt)
            assert verify_receipt(given.text, given.record, policy).index == index


def test_a_receipt_for_another_record_index_or_log(ledger: Forge) -> None:
    receipt, record = ledger.receipt(5, COSIGNERS), ledger.records[5]
    assert "does not prove" in receipt_refusal(receipt, ledger.records[6])
    assert "does not prove" in receipt_refusal(receipt, record + b" ")
    assert "does not prove" in receipt_refusal(receipt.replace("index 5", "index 6"), record)
    assert "does not prove" in receipt_refusal(receipt.replace("index 5", "index 22"), record)
    assert "does not prove" in receipt_refusal(receipt.replace("index 5", f"index {2**62}"), record)
    other = Policy.parse(forge.history_policy(3).replace(forge.vkey(ORIGIN, LOG_KEY), forge.vkey("o", LOG_KEY)))
    assert "the policy's log has not signed it" in receipt_refusal(receipt, record, other)


def test_a_receipt_that_too_few_cosigned(ledger: Forge) -> None:
    assert "cosigned by ada, bob" in receipt_refusal(ledger.receipt(5, ["ada", "bob"]), ledger.records[5])


def test_a_receipt_of_others_is_refused_for_its_extra_data_or_the_order_of_its_signatures(ledger: Forge) -> None:
    receipt, record = ledger.receipt(5, COSIGNERS), ledger.records[5]
    extra = receipt.replace("\nindex", "\nextra AAAA\nindex")
    assert verify_receipt(extra, record, POLICY).index == 5
    head, text, signatures = receipt.split("\n\n")
    backwards = "".join(reversed(signatures.splitlines(keepends=True)))
    assert verify_receipt(f"{head}\n\n{text}\n\n{backwards}", record, POLICY).index == 5
    assert "tlog-proof" in receipt_refusal(receipt.replace("\nindex", "\nextra é\nindex"), record)
    assert "base64" in receipt_refusal(receipt.replace("\nindex", "\nextra A\nindex"), record)


def test_no_changed_byte_of_a_receipt_goes_unseen(ledger: Forge) -> None:
    receipt, record = ledger.receipt(5, COSIGNERS).encode(), ledger.records[5]
    for position in range(len(receipt)):
        receipt_refusal(receipt[:position] + bytes([receipt[position] ^ 1]) + receipt[position + 1 :], record)
        receipt_refusal(receipt[:position] + receipt[position + 1 :], record)
    for position in range(0, len(record), 7):
        receipt_refusal(receipt, record[:position] + bytes([record[position] ^ 1]) + record[position + 1 :])


def test_a_receipt_of_a_leaf_that_is_no_record() -> None:
    """The log signed a tree over something else; an inner node of it is no leaf either."""
    ledger = Forge().genesis()
    for kind, body in (("pool", {"study": STUDY}), ("nothing", {})):
        ledger.add(kind, body)
    assert "the kind 'nothing' is unknown" in receipt_refusal(ledger.receipt(2), ledger.records[2], SIMPLE)
    ledger.records.append(b'{"a": 1}')
    ledger.leaves.append(verifier._leaf(b'{"a": 1}'))
    assert "canonical" in receipt_refusal(ledger.receipt(3), b'{"a": 1}', SIMPLE)
    inner = ledger.leaves[0] + ledger.leaves[1]
    text = ledger.receipt(0).split("\n")
    shorter = "\n".join([*text[:2], *text[3:]])
    assert "does not prove" in receipt_refusal(shorter, inner, SIMPLE)


FIRST = "c2sp.org/tlog-proof@v1"


@pytest.mark.parametrize(
    "receipt",
    [
        "",
        "\n\n",
        "é",
        "\ud800",
        b"\xff\xfe",
        FIRST,
        f"{FIRST}\n\n",
        f"{FIRST}\nindex 0",
        f"{FIRST}\nindex 00\n\n",
        f"{FIRST}\nindex -1\n\n",
        f"{FIRST}\nindex ٣\n\n",
        f"{FIRST}\nindex {'9' * 5000}\n\n",
        f"{FIRST}\nextra AAAA\n\n",
        f"{FIRST}\nindex 0\nAAAA\n\nx\n\n",
        f"{FIRST}\nindex 0\n{'A' * 43}B=\n\n",
        f"{FIRST}\nindex 0\n" + f"{'A' * 43}=\n" * 64 + "\nx\n\n",
        "c2sp.org/tlog-proof@v2\nindex 0\n\n",
    ],
    ids=lambda value: repr(value[:40]),
)
def test_texts_that_are_no_receipt(receipt: str | bytes) -> None:
    receipt_refusal(receipt, b"{}")


def test_an_endless_receipt_or_record_is_parsed(ledger: Forge) -> None:
    receipt = ledger.receipt(5, COSIGNERS)
    assert "not parsed" in receipt_refusal(receipt + "x" * MAX_RECEIPT, ledger.records[5])
    assert "not parsed" in receipt_refusal(receipt, b"x" * (MAX_ENTRY + 1))


# Several processes


def long_ledger(entries: int) -> Forge:
    ledger = simple()
    while ledger.size < entries:
        ledger.add("complaint", {"study": STUDY, "number": ledger.size, "share": 0.5 if ledger.size % 50 == 0 else 1})
    ledger.add("ballot", forge.word("ada", kind="ballot"))
    return ledger


@pytest.fixture(scope="module")
def long_bundle() -> bytes:
    return long_ledger(2500).bundle()


def test_several_processes_find_something_else_than_one(long_bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    alone = verify(long_bundle, SIMPLE, processes=1)
    assert verify(long_bundle, SIMPLE, processes=2, progress=lambda *done: told.append(done)) == alone
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (2502, 2502)
    assert {total for _, total in told} == {2502}
    lines = long_bundle.split(b"\n")
    for index in (0, 999, 1000, 1777, 2500):
        broken = lines.copy()
        broken[index + 1] = broken[index + 1].replace(b'"signature":"', b'"signature":"A', 1)[:-3] + b'"}'
        shifted = lines.copy()
        shifted[index + 1] = shifted[index + 1].replace(b"2026-01-31", b"2026-01-30", 1)
        for changed in (b"\n".join(broken), b"\n".join(shifted)):
            with pytest.raises(LedgerError, match=rf"entry {index}\b") as caught:
                verify(changed, SIMPLE, processes=1)
            with pytest.raises(LedgerError) as again:
                verify(changed, SIMPLE, processes=2)
            assert again.value.message == caught.value.message
        if os.environ.get("CAUSALDAO_PROVE") is None:
            break


def test_a_line_without_its_end_is_told_before_an_earlier_fault(long_bundle: bytes) -> None:
    changed = long_bundle[:-30_000].replace(b"2026-01-31", b"2026-01-3x", 1)
    for processes in (1, 2):
        with pytest.raises(LedgerError, match=r"entry 0: the time"):
            verify(changed, SIMPLE, processes=processes)
        with pytest.raises(LedgerError, match=r"entry 2\d\d\d, byte \d+: expected a line of at most"):
            verify(long_bundle[: long_bundle.index(b'"index":2400')], SIMPLE, processes=processes)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (',"index":7,', ',"c":1,"index":7,'), (',"index":7,', ',"index":07,'), ('"body":{', '"body":[{'),
        ('"payloads":[]', '"payloads":[""]'), ('"payloads":[]', f'"payloads":["{"b" * 64}","{"a" * 64}"]'),
        ('"payloads":[]', f'"payloads":["{"a" * 64}","{"a" * 64}"]'), ('"payloads":[]', f'"payloads":["{"a" * 63}"]'),
        ('"previous":"', '"previous":"A'), ('"kind":"complaint"', '"kind":"genesis"'), ('"number":7', '"number":7.0'),
        ('"number":7', f'"number":{"[" * 47}1{"]" * 47}'), ('"number":7', '"number":12345678901234567890'),
    ],
)  # fmt: skip
def test_a_form_is_taken_at_once_that_is_refused_one_by_one(old: str, new: str) -> None:
    """Lines that are looked at together are held to no less than each alone."""
    ledger = simple(*(("complaint", {"study": STUDY, "number": number}) for number in range(3, 12)))
    lines = [line + b"\n" for line in ledger.bundle().split(b"\n")[1 : ledger.size + 1]]
    chunk = verifier._Chunk(0, 0, lines, ORIGIN, SIMPLE.log)
    assert [*map(list, verifier._read_at_once(chunk))] == [*map(list, verifier._read_one_by_one(chunk))]
    assert old.encode() in lines[7]
    lines[7] = lines[7].replace(old.encode(), new.encode(), 1)
    with pytest.raises(LedgerError):
        verifier._read_one_by_one(chunk)
    with pytest.raises((ValueError, LedgerError)):
        verifier._read_at_once(chunk)


def test_a_small_bundle_starts_processes(bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise RuntimeError("it was started")

    monkeypatch.setattr(helpers, "ProcessPoolExecutor", started)
    assert verify(bundle, POLICY, processes=8).size
    monkeypatch.setattr(verifier, "POOLED", 1)
    assert verify(bundle, POLICY, processes=1).size
    with pytest.raises(RuntimeError):
        verify(bundle, POLICY, processes=2)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_of_cycles_is_left_off(bundle: bytes, enabled: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        verify(bundle, POLICY)
        assert gc.isenabled() == enabled
        refusal(forge.reencode(bundle, drop(7)))
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()


class _Dying(Executor):
    """A pool whose processes are killed, by the system for want of memory."""

    def submit(self, *_: object, **__: object) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool("killed"))
        return future


def test_a_process_that_dies_is_waited_for(bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "POOLED", 1)
    monkeypatch.setattr(helpers, "ProcessPoolExecutor", lambda *_, **__: _Dying())
    with pytest.raises(LedgerError, match="verify again with processes = 1"):
        verify(bundle, POLICY, processes=2)


def test_a_chunk_of_lines_hides_where_it_was_cut(ledger: Forge, bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain that breaks between two chunks, for every length of a chunk."""
    lines = bundle.split(b"\n")
    for size in (1, 2, 3, 7, 22, 23):
        monkeypatch.setattr(verifier, "CHUNK", size)
        assert verify(bundle, POLICY).size == ledger.size
        for index in (6, 7):
            changed = lines.copy()
            changed[index + 1] = changed[index + 1].replace(b"2026-01-31", b"2026-01-30", 1)
            assert f"entry {index}: its signature" in refusal(b"\n".join(changed))


# Independence


def test_writer_and_verifier_disagree_or_share_code() -> None:
    assert verifier.KINDS == KINDS
    assert (FORMAT, MAX_BUNDLE_BYTES) == (verifier.FORMAT, MAX_BYTES)
    ours = {f"causaldao.ledger.{name}" for name in ("verify", "helpers", "strict", "policy", "rules")}
    for name in ours:
        source = Path(sys.modules[name].__file__ or "").read_text()
        imported = set[str]()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
        assert {one for one in imported if one.startswith("causaldao")} <= ours | {"causaldao.errors"}


def test_the_verifier_cannot_be_loaded_without_the_writer() -> None:
    code = (
        "import sys, causaldao.ledger.verify\n"
        "print(sorted(n for n in sys.modules if n.startswith('causaldao.') or n in ('sqlalchemy', 'numpy', 'grpc')))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    ours = (f"causaldao.ledger.{name}" for name in ("helpers", "policy", "rules", "strict", "verify"))
    assert set(ast.literal_eval(shown)) == {"causaldao.errors", "causaldao.ledger", *ours}


def test_a_body_that_the_writer_takes_is_too_deep_for_the_verifier(tmp_path: Path) -> None:
    deep: Any = {"note": "ü \u2028 😀", "numbers": [1e-7, 5e-324, 1e21, 0.1, 123456789]}
    for _ in range(MAX_BODY_DEPTH - 3):
        deep = [deep]
    body = {"study": STUDY, "deep": deep}
    policy = Policy.parse(write_policy(cases.ORIGIN, cases.LOG_KEY, {}))
    with cases.create(tmp_path / "ledger.db", [cases.genesis(), Entry("pool", body)]) as log:
        assert verify(export(log), policy).entries[1].body == body
