"""The verifier against everything that was ever done to a bundle."""

from __future__ import annotations

import base64
import json
import math
import random
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from causaldao.errors import ConfigurationError, LedgerError
from causaldao.ledger import KINDS, Entry, export
from causaldao.ledger import verify as verifier
from causaldao.ledger.bundle import FORMAT, MAX_BUNDLE_BYTES
from causaldao.ledger.entry import MAX_BODY_DEPTH, head_text
from causaldao.ledger.verify import MAX_BYTES, MAX_DEPTH, Policy, verify
from causaldao.signing import sha256
from tests.counts import count
from tests.ledger import cases

PLACE = re.compile(r"(section (\w+)(, entry \d+)?, byte \d+)|(entry \d+)|(whole file)")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with cases.create(tmp_path_factory.mktemp("ledger") / "ledger.db") as log:
        return export(log)


def refusal(bundle: bytes, policy: Policy | None = None) -> str:
    """The verifier's words about a bundle it must refuse; they always say where."""
    with pytest.raises(LedgerError) as caught:
        verify(bundle, policy or cases.policy())
    assert PLACE.search(caught.value.message), caught.value.message
    return caught.value.message


def made(tmp_path: Path, *entries: Entry) -> bytes:
    with cases.create(tmp_path / "made.db", entries) as log:
        return export(log)


def opening(*more: Entry) -> tuple[Entry, ...]:
    proposed = Entry("study.proposed", {"study": cases.STUDY})
    return (cases.genesis(), cases.admit("ada"), proposed, *more)


def test_a_true_bundle_verifies_and_the_report_holds_it(bundle: bytes) -> None:
    report = verify(bundle, cases.policy())
    assert report.size == len(report.entries) == len(cases.entries())
    assert (report.origin, report.members, report.cosigners) == (cases.ORIGIN, ("ada", "bob"), ())
    assert [line.kind for line in report.entries] == [entry.kind for entry in cases.entries()]
    assert report.entries[6].body["gram"] == cases.entries()[6].body["gram"]
    assert {sha256(data) for data in report.payloads.values()} == set(report.payloads)
    assert len(report.payloads) == 2
    assert report.policy_fingerprint == sha256(cases.policy_text().encode())


MUTATIONS = ("flip", "delete", "insert")


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_no_changed_byte_goes_unseen(bundle: bytes, mutation: str) -> None:
    draw = random.Random(f"{mutation} 2025")
    for _ in range(count(60, 200)):
        position, byte = draw.randrange(len(bundle)), bytes([draw.randrange(256)])
        if mutation == "flip":
            changed = bundle[:position] + bytes([bundle[position] ^ 1 << draw.randrange(8)]) + bundle[position + 1 :]
        elif mutation == "delete":
            changed = bundle[:position] + bundle[position + 1 :]
        else:
            changed = bundle[:position] + byte + bundle[position:]
        refusal(changed)


def test_no_changed_byte_is_placed_in_another_entry(bundle: bytes) -> None:
    starts = [match.start() for match in re.finditer(rb'{"record":', bundle)]
    draw = random.Random(7)
    for _ in range(count(60, 200)):
        index = draw.randrange(len(starts) - 1)
        position = draw.randrange(starts[index] + 1, starts[index + 1] - 1)
        message = refusal(bundle[:position] + bytes([bundle[position] ^ 1]) + bundle[position + 1 :])
        named = re.search(r"entry (\d+)", message)
        assert named, message
        assert int(named[1]) == index, (position, message)


@pytest.mark.parametrize("section", ["cosignatures", "format", "head", "origin", "payloads"])
def test_a_changed_section_is_named(bundle: bytes, section: str) -> None:
    start = bundle.rfind(b'"%b":' % section.encode())
    position = start + len(section) + (8 if section in ("format", "origin") else 20 if section != "cosignatures" else 4)
    message = refusal(bundle[:position] + bytes([bundle[position] ^ 1]) + bundle[position + 1 :])
    place = re.search(r"section (\w+), byte (\d+)", message)
    assert place, message
    assert place[1] == section
    assert start <= int(place[2]) <= position + 1


# Forgeries


def drop(index: int) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["entries"].pop(index)


def swap(document: dict[str, Any]) -> None:
    items = document["entries"]
    items[7], items[8] = items[8], items[7]


def test_an_entry_removed_and_signed_again_with_another_key(bundle: bytes) -> None:
    forged = cases.rewrite(bundle, cases.OTHER_KEY, drop(7))
    assert "entry 0" in refusal(forged)
    # The forgery itself is well made: under the forger's own key it verifies.
    assert verify(forged, cases.policy(log_key=cases.OTHER_KEY)).size == len(cases.entries()) - 1


def test_an_entry_removed(bundle: bytes) -> None:
    assert "entry 7: its record says index 8" in refusal(cases.reencode(bundle, drop(7)))


def test_the_last_entry_removed(bundle: bytes) -> None:
    assert "section head" in refusal(cases.reencode(bundle, drop(-1)))


def test_entries_reordered(bundle: bytes) -> None:
    assert "entry 7" in refusal(cases.reencode(bundle, swap))


def test_an_entry_repeated(bundle: bytes) -> None:
    message = refusal(cases.reencode(bundle, lambda document: document["entries"].insert(5, document["entries"][4])))
    assert "entry 5" in message


def test_entries_reordered_with_their_indices_mended(bundle: bytes) -> None:
    def change(document: dict[str, Any]) -> None:
        swap(document)
        for index, item in enumerate(document["entries"]):
            item["record"]["index"] = index

    assert "entry 7: it does not follow" in refusal(cases.reencode(bundle, change))


def test_a_payload_swapped_for_another(bundle: bytes) -> None:
    def under_the_old_name(document: dict[str, Any]) -> None:
        name = min(document["payloads"])
        document["payloads"][name] = cases.payload_name(b"other moments")[1]

    def under_its_own_name(document: dict[str, Any]) -> None:
        document["payloads"] = dict([cases.payload_name(b"other moments")])

    assert "section payloads" in refusal(cases.reencode(bundle, under_the_old_name))
    assert "entry 4: its payload" in refusal(cases.reencode(bundle, under_its_own_name))


def test_a_payload_nobody_speaks_of(bundle: bytes) -> None:
    def change(document: dict[str, Any]) -> None:
        document["payloads"] |= [cases.payload_name(b"smuggled")]

    assert "no entry speaks of" in refusal(cases.reencode(bundle, change))


@pytest.mark.parametrize(
    "change", [{"size": 9}, {"time": "2025-01-31T12:00:09.000Z"}, {"root": "0" * 64}, {"signature": ""}]
)
def test_a_head_that_was_not_signed(bundle: bytes, change: dict[str, Any]) -> None:
    assert "section head" in refusal(cases.reencode(bundle, lambda document: document["head"].update(change)))


@pytest.mark.parametrize(("change", "fault"), [({"size": 11}, "it is of 11 entries"), ({"root": "0" * 64}, "its root")])
def test_a_head_that_was_signed_for_other_entries(bundle: bytes, change: dict[str, Any], fault: str) -> None:
    def fork(document: dict[str, Any]) -> None:
        head = document["head"]
        head.update(change)
        text = head_text(cases.ORIGIN, head["size"], head["root"], head["time"])
        head["signature"] = base64.b64encode(cases.LOG_KEY.sign(text)).decode()

    message = refusal(cases.reencode(bundle, fork))
    assert "section head" in message
    assert fault in message


def test_a_second_spelling_of_a_signature_or_payload(tmp_path: Path) -> None:
    """Base64 has stray bits in its last digit: with them, one ledger would have two bundles."""
    data = b"four"
    bundle = made(tmp_path, *opening(Entry("pool", {}, {sha256(data): data})))
    spelt = re.compile(rb'[A-Za-z0-9+/]=="')
    places = [match.start() for match in spelt.finditer(bundle)]
    assert len(places) == 4 + 1 + 1  # entries, head, payload
    for place in places:
        message = refusal(bundle[:place] + bytes([_next_digit(bundle[place])]) + bundle[place + 1 :])
        assert "canonical base64" in message


def _next_digit(digit: int) -> int:
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return digits[digits.index(digit) + 1]


def test_an_older_head_does_not_fit_the_longer_ledger_but_fits_its_own(tmp_path: Path) -> None:
    """Truncation at a signed head cannot be seen in the file alone; the docs say so and this pins it."""
    with cases.create(tmp_path / "ledger.db", cases.entries()[:5]) as log:
        older = export(log)
        log.append(cases.entries()[5:])
        newer = export(log)
    old_head = json.loads(older)["head"]
    grafted = cases.reencode(newer, lambda document: document.update(head=old_head))
    assert "section head" in refusal(grafted)
    assert verify(older, cases.policy()).size == 5


def test_a_policy_with_another_log_key(bundle: bytes) -> None:
    assert "entry 0: its signature" in refusal(bundle, cases.policy(log_key=cases.OTHER_KEY))


def test_a_policy_for_another_origin(bundle: bytes) -> None:
    text = cases.policy_text().replace(cases.LOG_KEY.public.to_text(cases.ORIGIN), cases.LOG_KEY.public.to_text("o"))
    assert "section origin" in refusal(bundle, Policy.parse(text))


def test_a_policy_that_lacks_the_member(bundle: bytes) -> None:
    assert "entry 2: the policy has no member 'bob'" in refusal(bundle, cases.policy(members=("ada",)))


def test_a_policy_that_has_another_key_for_the_member(bundle: bytes) -> None:
    text = cases.policy_text(members=("ada",)) + f"member {cases.OTHER_KEY.public.to_text('bob')}\n"
    assert "entry 2: the key recorded for 'bob'" in refusal(bundle, Policy.parse(text))


def test_a_quorum_that_no_cosigner_meets(bundle: bytes) -> None:
    assert "asks for 2 cosigners" in refusal(bundle, cases.policy(quorum=2))


def test_cosignatures_that_nobody_can_check(bundle: bytes) -> None:
    message = refusal(cases.reencode(bundle, lambda document: document["cosignatures"].append({"name": "ada"})))
    assert "section cosignatures" in message


# Members


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (cases.spoken("ada", "ballot", {}, cases.OTHER_KEY), "not signed by that member's key"),
        (cases.spoken("bob", "ballot", {}), "'bob' speaks, but is not a member"),
        (cases.spoken("ada", "ballot", {}, federation="south"), "federation 'south'"),
        (cases.spoken("ada", "ballot", {}, study="0" * 64), "which no entry before it names"),
        (cases.spoken("ada", "ballot", {}, study=""), "which no entry before it names"),
        (Entry("evidence", cases.spoken("ada", "ballot", {}).body), "the entry says otherwise"),
        (
            Entry("ballot", {**cases.spoken("ada", "ballot", {}).body, "member": "bob"}),
            "the entry says otherwise",
        ),
        (Entry("ballot", {"envelope": "{}"}), "expected an object with exactly"),
        (Entry("pool", {"envelope": 7}), "lacks the text 'envelope'"),
        (Entry("complaint", {"deep": [{"envelope": "x"}]}), "cannot be read"),
        (Entry("member.admit", {"member": "bob", "key": "bob+00000000+AAAA"}), "not a verifier key"),
        (Entry("member.revoke", {"member": "bob"}), "who is not a member"),
        (cases.admit("ada"), "who is a member"),
    ],
)
def test_words_put_into_a_members_mouth(tmp_path: Path, entry: Entry, fault: str) -> None:
    message = refusal(made(tmp_path, *opening(entry)))
    assert "entry 3" in message
    assert fault in message


def test_a_manifest_the_member_did_not_sign(tmp_path: Path) -> None:
    true = cases.evidence("ada")
    false = Entry("evidence", {**true.body, "manifest": [{**true.body["manifest"][0], "sha256": "0" * 64}]})
    assert "entry 3: the manifest" in refusal(made(tmp_path, *opening(false)))


def test_a_slot_filled_twice_with_different_content(tmp_path: Path) -> None:
    first, second = (cases.spoken("ada", "ballot", {"marks": [mark]}) for mark in (1, -1))
    assert "entry 4: the slot" in refusal(made(tmp_path, *opening(first, second)))
    both = Entry("equivocation", {"proof": [dict(first.body), dict(second.body)]})
    with cases.create(tmp_path / "honest.db", opening(first, both)) as log:
        assert verify(export(log), cases.policy()).size == 5


def test_a_revoked_key_speaks_no_more_but_what_it_said_stands(tmp_path: Path) -> None:
    said, later = (cases.spoken("ada", "ballot", {}, round=number) for number in (0, 1))
    revoke = Entry("member.revoke", {"member": "ada"})
    with cases.create(tmp_path / "ledger.db", opening(said, revoke)) as log:
        assert verify(export(log), cases.policy()).members == ()
        log.append([later])
        assert "entry 5: 'ada' speaks" in refusal(export(log))


def test_a_rotated_key_replaces_the_old_one_from_its_index_on(tmp_path: Path) -> None:
    policy = Policy.parse(cases.policy_text() + f"member {cases.OTHER_KEY.public.to_text('ada')}\n")
    rotate = Entry("member.rotate", {"member": "ada", "key": cases.OTHER_KEY.public.to_text("ada")})
    old, new = cases.spoken("ada", "ballot", {}), cases.spoken("ada", "ballot", {}, cases.OTHER_KEY, round=1)
    with cases.create(tmp_path / "ledger.db", opening(old, rotate, new)) as log:
        assert verify(export(log), policy).size == 6
        log.append([cases.spoken("ada", "ballot", {}, round=2)])
        assert "entry 6" in refusal(export(log), policy)


# Bytes


def test_an_oversize_bundle_is_refused_before_it_is_parsed(bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*_: object, **__: object) -> None:
        raise RuntimeError("it was parsed")

    monkeypatch.setattr(json, "loads", parsed)
    with pytest.raises(LedgerError, match="not parsed"):
        verify(bundle, cases.policy(), max_bytes=len(bundle) - 1)


def inserted(bundle: bytes, text: bytes) -> bytes:
    """The bundle with a member put into the body of entry 3, before all others."""
    position = bundle.index(b'"body":{"question"') + len(b'"body":{')
    return bundle[:position] + b'"a":' + text + b"," + bundle[position:]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"1.0", "canonical"),
        (b"1e0", "canonical"),
        (b"-0", "canonical"),
        (b"-0.0", "canonical"),
        (b"100e-2", "canonical"),
        (b"9007199254740993", "canonical"),
        (b"0.30000000000000004441", "canonical"),
        (b"01", "not JSON"),
        (b"NaN", "NaN is not a double"),
        (b"Infinity", "Infinity is not a double"),
        (b"-Infinity", "-Infinity is not a double"),
        (b"1e400", "1e400 is not a double"),
        (b"9" * 5000, "is not a double"),
        (b'"\\u0061"', "canonical"),
        (b'"\\/"', "canonical"),
        (b'"\\ud800"', "surrogate"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'"\xff"', "not UTF-8"),
        (b'"\t"', "not JSON"),
        (b'{"x":1,"x":1}', "stands twice"),
        (b'{"x":1,"\\u0078":1}', "stands twice"),
        (b'{"b":1,"a":1}', "canonical"),
        (b"[1, 2]", "canonical"),
        (b"[" * 60 + b"]" * 60, "deeper"),
        (b"[" * 100_000 + b"]" * 100_000, "deeper"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "deeper"),
        (b"[" * 100_000, ""),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_json_that_two_readers_could_read_differently(bundle: bytes, text: bytes, fault: str) -> None:
    message = refusal(inserted(bundle, text))
    assert fault in message
    assert "entry 3" in message


def test_a_repeated_name_is_placed_where_it_stands_the_second_time(bundle: bytes) -> None:
    changed = inserted(bundle, b'{"x":1,"x":2}')
    second = changed.index(b',"x":2') + 1
    assert f"byte {second}:" in refusal(changed)


def test_a_hostile_file_is_placed_in_one_pass(bundle: bytes) -> None:
    start = time.perf_counter()
    refusal(inserted(bundle, b'"' + b'\\"' * 300_000)[:-50_000])
    refusal(b'{"' + b"\\" * 1_000_001)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("tail", [b" ", b"\n", b"\x00", b"{}", b"]"])
def test_trailing_bytes(bundle: bytes, tail: bytes) -> None:
    assert f"byte {len(bundle)}" in refusal(bundle + tail)
    refusal(tail + bundle)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b'"x"', b"\xff", b"NaN", b'{"format":"causaldao-bundle/1"}', b"[" * 99999],
)
def test_files_that_are_no_bundle(data: bytes) -> None:
    refusal(data)


OTHER = [
    (name, value)
    for name in ("cosignatures", "entries", "head", "origin", "payloads", "format")
    for value in (None, 1, "x", [], {}, [[]], [{}], {"a": 1}, True)
    if (name, value) != ("cosignatures", [])  # which is what a bundle of today holds
]


@pytest.mark.parametrize(("name", "value"), OTHER)
def test_sections_of_another_type(bundle: bytes, name: str, value: object) -> None:
    refusal(cases.reencode(bundle, lambda document: document.update({name: value})))


@pytest.mark.parametrize("name", ["body", "index", "kind", "payloads", "previous", "time"])
@pytest.mark.parametrize("value", [None, True, -1, 1.5, "x", [], {}, [1], [[]]])
def test_records_of_another_shape_even_when_signed(bundle: bytes, name: str, value: object) -> None:
    """A log that signs nonsense is refused too, in order and without an internal error."""
    if name in ("index", "previous"):
        forged = cases.reencode(bundle, lambda document: document["entries"][5]["record"].update({name: value}))
    else:
        change = {name: value}
        forged = cases.rewrite(bundle, cases.LOG_KEY, lambda document: document["entries"][5]["record"].update(change))
    refusal(forged)


# The verifier's own canonical form against the reference


@settings(max_examples=count(200, 3000), deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_written_as_rfc_8785_has_them(value: float) -> None:
    assert verifier._encode_float(value) == rfc8785.dumps(value)
    assert verifier._encode(verifier._strict_json(rfc8785.dumps(value))) == rfc8785.dumps(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text() | st.floats(-1e30, 1e30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=count(100, 2000), deadline=None)
@given(JSON)
def test_values_are_written_as_rfc_8785_has_them(value: object) -> None:
    written = rfc8785.dumps(value)  # type: ignore[arg-type]
    assert verifier._encode(verifier._strict_json(written)) == written


@pytest.mark.parametrize(
    ("bits", "expected"),
    [  # RFC 8785, appendix B
        (0x0000000000000000, "0"), (0x8000000000000000, "0"), (0x0000000000000001, "5e-324"),
        (0x8000000000000001, "-5e-324"), (0x7FEFFFFFFFFFFFFF, "1.7976931348623157e+308"),
        (0x4340000000000000, "9007199254740992"), (0x4430000000000000, "295147905179352830000"),
        (0x44B52D02C7E14AF5, "9.999999999999997e+22"), (0x44B52D02C7E14AF6, "1e+23"),
        (0x444B1AE4D6E2EF4E, "999999999999999700000"), (0x444B1AE4D6E2EF50, "1e+21"),
        (0x3EB0C6F7A0B5ED8C, "9.999999999999997e-7"), (0x3EB0C6F7A0B5ED8D, "0.000001"),
        (0x41B3DE4355555555, "333333333.3333333"), (0xBECBF647612F3696, "-0.0000033333333333333333"),
    ],
)  # fmt: skip
def test_the_examples_of_rfc_8785(bits: int, expected: str) -> None:
    (value,) = struct.unpack(">d", struct.pack(">Q", bits))
    assert math.isfinite(value)
    assert verifier._encode_float(value).decode() == expected


def test_writer_and_verifier_agree_without_sharing_code() -> None:
    assert all(verifier.KINDS.fullmatch(kind) for kind in KINDS)
    assert len(KINDS) == 26
    assert (FORMAT, MAX_BUNDLE_BYTES) == (verifier.FORMAT, MAX_BYTES)
    assert MAX_BODY_DEPTH + 4 <= MAX_DEPTH
    source = Path(verifier.__file__).read_text()
    assert set(re.findall(r"(?:from|import) (causaldao[\w.]*)", source)) == {"causaldao.errors"}


# Policy


def test_a_policy_is_read_with_its_comments() -> None:
    text = "# whom we trust\n\n" + cases.policy_text().replace("\nmember", "  # the log\n\tmember", 1)
    policy = Policy.parse(text)
    assert policy.origin == cases.ORIGIN
    assert policy.members == {name: (key.public.raw,) for name, key in cases.MEMBERS.items()}
    assert policy.fingerprint == sha256(text.encode()) != cases.policy().fingerprint


@pytest.mark.parametrize(
    "line",
    ["quorum", "quorum -1", "quorum x", "quorum ²", "member", "member ada", "member ada+00000000+AAAA",
     "witness a", "log a+b+c d", "member ada+" + "0" * 8 + "+" + "A" * 44],
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_named(line: str) -> None:
    with pytest.raises(ConfigurationError, match="line 5"):
        Policy.parse(cases.policy_text() + line)


@pytest.mark.parametrize("text", ["", "quorum 0", cases.policy_text() * 2, cases.policy_text().replace("quorum 0", "")])
def test_a_policy_needs_one_log_and_one_quorum(text: str) -> None:
    with pytest.raises(ConfigurationError, match="exactly one"):
        Policy.parse(text)
