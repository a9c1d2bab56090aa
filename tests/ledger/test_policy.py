"""Policies that say something else than their author meant, and checkpoints that were not signed by whom they trust."""

from __future__ import annotations

import base64
import itertools
import re

import pytest

from causaldao.errors import ConfigurationError, LedgerError
from causaldao.ledger.bundle import write_policy
from causaldao.ledger.policy import MAX_NAMES, MAX_NOTE, Checkpoint, Key, Policy, open_checkpoint
from causaldao.signing import VerifyKey, sha256
from tests.ledger import forge
from tests.ledger.forge import ORIGIN, cosignature, policy_text, signature_line, signing, vkey, witness

NAMES = ("X1", "X2", "X3", "Y1", "Y2", "Y3")


def lines(*more: str, log: str = f"log {vkey(ORIGIN, forge.LOG_KEY)}") -> str:
    return "\n".join([log, *more, ""])


def witnesses(*names: str) -> list[str]:
    """Witness lines under names of their own: the keys' names are others."""
    return [f"witness {name} {vkey(f'witness.example/{name}', witness(name), 4)}" for name in names]


EXAMPLE = lines(
    "",
    *witnesses("X1", "X2", "X3"),
    "group X-witnesses 2 X1 X2 X3",
    "",
    *witnesses("Y1", "Y2", "Y3"),
    "group Y-witnesses any Y1 Y2 Y3",
    "",
    "group X-and-Y all X-witnesses Y-witnesses",
    "quorum X-and-Y",
)


# Policies


def test_the_example_of_the_standard_asks_for_something_else() -> None:
    policy = Policy.parse(EXAMPLE)
    for size in range(7):
        for cosigned in itertools.combinations(NAMES, size):
            enough = sum(name[0] == "X" for name in cosigned) >= 2 and any(name[0] == "Y" for name in cosigned)
            assert policy.satisfied(cosigned) == enough
    assert policy.asked == "2 of X-and-Y (2 of X-witnesses (X1, X2, X3), 1 of Y-witnesses (Y1, Y2, Y3))"
    assert not policy.satisfied(["X-and-Y", "X-witnesses", "Y-witnesses", "none", "X1"])


@pytest.mark.parametrize(
    ("quorum", "enough", "too_few"),
    [
        (["quorum none"], [[], ["X1"]], []),
        (["quorum X1"], [["X1"], ["X1", "X2"]], [[], ["X2", "X3"]]),
        (["group g any X1 X2", "quorum g"], [["X1"], ["X2"]], [[], ["X3"]]),
        (["group g all X1 X2", "quorum g"], [["X1", "X2"]], [["X1"], ["X1", "X3"]]),
        (["group g 1 X1", "group h 2 g X2", "quorum h"], [["X1", "X2"]], [["X1"], ["X2", "X3"]]),
        (["group g 2 X1 X2", "quorum X3"], [["X3"]], [["X1", "X2"]]),
    ],
)
def test_a_quorum_is_met_by_others(quorum: list[str], enough: list[list[str]], too_few: list[list[str]]) -> None:
    policy = Policy.parse(lines(*witnesses("X1", "X2", "X3"), *quorum))
    assert all(policy.satisfied(names) for names in enough)
    assert not any(policy.satisfied(names) for names in too_few)


def test_a_policy_is_read_with_its_comments_urls_and_tabs() -> None:
    kelvin = vkey("Kelvin-\u212a", witness("k"), 4)  # no ASCII K
    key, other = vkey("ada", signing("ada")), vkey("ada", forge.NEW_KEY)
    text = lines(
        "# whom we trust: é ✓",
        f" \twitness\tw1  {vkey('witness.example', witness('w'), 4)} https://witness.example/  ",
        f"witness w2 {kelvin}",
        "  # quorum none",
        "quorum\tw1",
        f"# causaldao member {key}",
        f"\t#  causaldao\tmember   {other} ",
        f"#causaldao member {vkey('bob', signing('bob'))}",
        "# causaldao is the name of this program",
        log=f"log {vkey(ORIGIN, forge.LOG_KEY)} https://log.example/",
    )
    policy = Policy.parse(text)
    assert (policy.origin, policy.log) == (ORIGIN, forge.LOG_KEY.public.raw)
    assert policy.members == {"ada": (signing("ada").public.raw, forge.NEW_KEY.public.raw)}
    assert policy.witnesses["w1"] == Key("witness.example", 4, witness("w").public.raw)
    assert policy.quorum == policy.asked == "w1"
    assert policy.fingerprint == sha256(text.encode()) != Policy.parse(text + " ").fingerprint


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("quorum", "expected one of"),
        ("quorum none", "expected one of"),  # a second one
        ("quorum w1 w2", "expected one of"),
        ("group g 1", "expected one of"),
        ("group g", "expected one of"),
        ("witness w9", "expected one of"),
        ("witness", "expected one of"),
        ("log", "expected one of"),
        ("LOG x", "expected one of"),
        ("anything", "expected one of"),
        (f"member {vkey('ada', signing('ada'))}", "expected one of"),  # of the format before this one
        ("# causaldao member", "expected one of"),
        ("# causaldao member a b", "expected one of"),
        (f"witness w9 {vkey('n', witness('w9'), 4)} url # comment", "expected one of"),
        (f"witness w1 {vkey('n', witness('w9'), 4)}", "is taken"),
        (f"witness g1 {vkey('n', witness('w9'), 4)}", "is taken"),
        (f"witness none {vkey('n', witness('w9'), 4)}", "is taken"),
        ("group w1 any w3", "is taken"),
        ("group g1 any w3", "is taken"),
        ("group none any w3", "is taken"),
        ("group g any w9", "no line before it defines 'w9'"),
        ("group g any g", "no line before it defines 'g'"),
        ("group g any none", "no line before it defines 'none'"),
        ("group g any w1", "'w1' stands in a group already"),
        ("group g any w3 w3", "'w3' stands in a group already"),
        ("group g 0 w3", "0 of 1 is no quorum"),
        ("group g 2 w3", "2 of 1 is no quorum: ask for any, all, or 1 to 1"),
        ("group g 3 w3 w4", "3 of 2 is no quorum"),
        ("group g -1 w3", "-1 of 1"),
        ("group g 1.0 w3", "1.0 of 1"),
        ("group g ² w3", "² of 1"),
        ("group g ANY w3", "ANY of 1"),
        ("group g " + "9" * 5000 + " w3", "of 1 is no quorum"),
        (f"witness w9 {vkey('n', witness('w1'), 4)}", "another witness's too"),
        (f"witness w9 {vkey('n', witness('w9'), 1)}", "type 0x01, expected 0x04"),
        (f"log {vkey(ORIGIN, forge.LOG_KEY, 4)}", "type 0x04, expected 0x01"),
        (f"# causaldao member {vkey('ada', signing('ada'), 4)}", "type 0x04, expected 0x01"),
        ("witness w9 ada", "not a key"),
        ("witness w9 ada+00000000+AAAA", "not a key"),
        ("witness w9 ada+00000000+" + "A" * 44, "its own hash"),
        ("witness w9 +" + vkey("", witness("w9"), 4), "not a key"),
        ("witness w9 " + vkey("", witness("w9"), 4), "its own hash"),
        ("witness w9 " + vkey("a\u00a0b", witness("w9"), 4), "its own hash"),
        ("witness w9 " + vkey("a", witness("w9"), 4).upper(), ""),
        ("witness w9 " + vkey("a", witness("w9"), 4) + "=", "not a key"),
        ("# a\x0bb", "control character"),
        ("quorum none\r", "control character"),
        ("# \x7f", "control character"),
        ("# \x00", "control character"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_a_line_that_cannot_be_read_is_passed_over(line: str, fault: str) -> None:
    text = lines(*witnesses("w1", "w2", "w3", "w4"), "group g1 any w1", "quorum w2")
    assert Policy.parse(text).quorum == "w2"
    with pytest.raises(ConfigurationError, match="line 8 cannot be used") as caught:
        Policy.parse(text + line)
    assert fault in caught.value.message


def test_a_quorum_speaks_of_what_comes_later() -> None:
    """Order matters for groups and the quorum, not for logs and witnesses."""
    later = lines("quorum w1", *witnesses("w1"))
    with pytest.raises(ConfigurationError, match="line 2 cannot be used: no line before it defines 'w1'"):
        Policy.parse(later)
    assert Policy.parse("\n".join([*witnesses("w1"), "quorum w1", f"log {vkey(ORIGIN, forge.LOG_KEY)}"])).quorum == "w1"


LOG = f"log {vkey(ORIGIN, forge.LOG_KEY)}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "0 'log' and 0 'quorum'"),
        ("quorum none", "0 'log' and 1 'quorum'"),
        (LOG, "1 'log' and 0 'quorum'"),
        (f"{LOG}\n{LOG}\nquorum none", "2 'log' and 1 'quorum'"),
    ],
)
def test_a_policy_needs_one_log_and_one_quorum(text: str, found: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{found} lines; write exactly one of each"):
        Policy.parse(text)


def test_a_policy_without_end() -> None:
    many = [f"witness w{k} {vkey('w', witness(str(k)), 4)}" for k in range(MAX_NAMES + 1)]
    assert len(Policy.parse(lines(*many[:-1], "quorum none")).witnesses) == MAX_NAMES
    with pytest.raises(ConfigurationError, match="more than"):
        Policy.parse(lines(*many, "quorum none"))


def test_the_policy_that_is_written_says_something_else() -> None:
    keys = {name: signing(name).public for name in ("ada", "bob", "members", "none")}
    watch = {name: witness(name).public for name in keys}
    rotated: dict[str, VerifyKey | list[VerifyKey]] = {**keys, "bob": [signing("bob").public, forge.NEW_KEY.public]}
    text = write_policy(ORIGIN, forge.LOG_KEY, rotated, watch, 3)
    policy = Policy.parse(text)
    assert (policy.origin, policy.log) == (ORIGIN, forge.LOG_KEY.public.raw)
    assert policy.members == {**{name: (key.raw,) for name, key in keys.items()}, "bob": (
        signing("bob").public.raw, forge.NEW_KEY.public.raw)}  # fmt: skip
    assert {key.name: key.raw for key in policy.witnesses.values()} == {name: key.raw for name, key in watch.items()}
    assert policy.satisfied([*policy.witnesses][:3])
    assert not policy.satisfied([*policy.witnesses][:2])
    assert text.splitlines()[1] == f"witness ada {vkey('ada', witness('ada'), 4)}"
    assert text == write_policy(ORIGIN, forge.LOG_KEY.public, rotated, watch, 3)


def test_the_policy_that_is_written_asks_for_nobody_or_for_more_than_there_are() -> None:
    text = write_policy(ORIGIN, forge.LOG_KEY, {"ada": signing("ada").public}, quorum=0)
    assert text == policy_text(["ada"])
    for quorum in (-1, 2):
        with pytest.raises(ConfigurationError, match="names 1 witnesses"):
            write_policy(ORIGIN, forge.LOG_KEY, {}, {"ada": witness("ada").public}, quorum)


# Checkpoints

TEXT = f"{ORIGIN}\n7\n{base64.b64encode(bytes(32)).decode()}\n"
POLICY = Policy.parse(policy_text(["ada"], ["ada", "bob", "cyd"], 2))
SIGNED = forge.note(TEXT, cosigners={name: witness(name) for name in ("ada", "bob")})
LOG_LINE, ADA, BOB = SIGNED.split("\n\n")[1].splitlines(keepends=True)
CYD = cosignature(TEXT, "cyd")


def opened(note: str | bytes, policy: Policy = POLICY, ordered: bool = True) -> Checkpoint:
    data = note if isinstance(note, bytes) else note.encode()
    return open_checkpoint(data, policy, "section checkpoint, byte 5", ordered=ordered)


def refusal(note: str | bytes, policy: Policy = POLICY, ordered: bool = True) -> str:
    with pytest.raises(LedgerError, match="section checkpoint, byte 5") as caught:
        opened(note, policy, ordered)
    return caught.value.message


def test_a_true_checkpoint_is_refused() -> None:
    assert opened(SIGNED) == Checkpoint(7, bytes(32), ("ada", "bob"), ())
    assert opened(SIGNED + CYD).cosigners == ("ada", "bob", "cyd")
    assert opened(forge.note(TEXT), Policy.parse(policy_text([]))).cosigners == ()


def test_an_extension_line_is_refused_or_its_bytes_are_not_signed() -> None:
    extended = TEXT + "an extension of others\n"
    note = forge.note(extended, cosigners={name: witness(name) for name in ("ada", "bob")})
    assert opened(note).size == 7
    assert "not one by the policy's log key" in refusal(note.replace("an ext", "An ext"))
    assert "it is not a checkpoint" in refusal(forge.note(TEXT + "\nafter an empty line\n"))


def test_too_few_cosigned() -> None:
    message = refusal(TEXT + "\n" + LOG_LINE + ADA)
    assert "asks for the cosignatures of 2 of all-of-them (ada, bob, cyd); cosigned by ada" in message
    assert "cosigned by nobody" in refusal(TEXT + "\n" + LOG_LINE)
    twice = TEXT + "\n" + LOG_LINE + ADA + ADA
    assert "cosigned by ada" in refusal(twice, ordered=False)


def test_a_stranger_counts_or_a_known_witness_under_another_name() -> None:
    stranger = cosignature(TEXT, "dan")
    assert opened(SIGNED + stranger) == Checkpoint(7, bytes(32), ("ada", "bob"), ("dan",))
    assert "cosigned by ada" in refusal(TEXT + "\n" + LOG_LINE + ADA + stranger)
    renamed = cosignature(TEXT, "dan", witness("bob"))
    assert "cosigned by ada" in refusal(TEXT + "\n" + LOG_LINE + ADA + renamed)
    # A policy may call a witness otherwise than its key is called: then that name counts.
    other = Policy.parse(lines(f"witness first {vkey('ada', witness('ada'), 4)}", "quorum first"))
    assert opened(TEXT + "\n" + LOG_LINE + ADA, other).cosigners == ("first",)


def bad(name: str, **changes: object) -> str:
    """A cosignature with the right name and key id whose content is wrong."""
    time = int(str(changes.get("time", 1_700_000_000)))
    signed_time, text = changes.get("signed_time", time), changes.get("text", TEXT)
    signature = witness(name).sign(f"cosignature/v1\ntime {signed_time}\n{text}".encode())
    raw = time.to_bytes(8, "big") + signature
    return signature_line(name, 4, witness(name), raw[: int(str(changes.get("length", 72)))])


@pytest.mark.parametrize(
    "line",
    [
        bad("bob", signed_time=1_700_000_001),
        bad("bob", text=TEXT.replace("7", "8")),
        bad("bob", text=""),
        bad("bob", time=2**63),
        bad("bob", length=71),
        bad("bob", length=8),
        signature_line("bob", 4, witness("bob"), witness("bob").sign(TEXT.encode())),
        signature_line("bob", 4, witness("bob"), bytes(72)),
    ],
)
def test_a_bad_cosignature_of_a_known_witness_is_passed_over(line: str) -> None:
    """Even where enough others cosigned."""
    message = refusal(TEXT + "\n" + LOG_LINE + ADA + line + CYD)
    assert "the cosignature of 'bob' is not one by that witness's key" in message


@pytest.mark.parametrize(
    "note",
    [
        TEXT + "\n" + ADA + BOB,
        TEXT + "\n" + signature_line(ORIGIN, 1, forge.NEW_KEY, forge.NEW_KEY.sign(TEXT.encode())) + ADA + BOB,
        TEXT + "\n" + signature_line(ORIGIN, 1, forge.LOG_KEY, forge.LOG_KEY.sign(b"x")) + ADA + BOB,
        TEXT + "\n" + signature_line(ORIGIN, 4, forge.LOG_KEY, forge.LOG_KEY.sign(TEXT.encode())) + ADA + BOB,
        TEXT + "\n" + signature_line("other", 1, forge.LOG_KEY, forge.LOG_KEY.sign(TEXT.encode())) + ADA + BOB,
    ],
)
@pytest.mark.parametrize("ordered", [True, False])
def test_a_checkpoint_that_the_log_has_not_signed(note: str, ordered: bool) -> None:
    assert "log" in refusal(note, ordered=ordered)


@pytest.mark.parametrize(
    "signatures",
    [
        LOG_LINE + BOB + ADA,
        ADA + LOG_LINE + BOB,
        LOG_LINE + ADA + ADA + BOB,
        LOG_LINE + LOG_LINE + ADA + BOB,
        LOG_LINE + ADA + cosignature(TEXT, "ada", time=9) + BOB,
    ],
)
def test_a_second_order_of_the_same_signatures(signatures: str) -> None:
    assert re.search("sorted|first signature", refusal(TEXT + "\n" + signatures))
    assert opened(TEXT + "\n" + signatures, ordered=False).cosigners == ("ada", "bob")


@pytest.mark.parametrize(
    "text",
    [
        f"other\n7\n{'A' * 43}=\n",
        f"{ORIGIN}\n07\n{'A' * 43}=\n",
        f"{ORIGIN}\n-7\n{'A' * 43}=\n",
        f"{ORIGIN}\n+7\n{'A' * 43}=\n",
        f"{ORIGIN}\n７\n{'A' * 43}=\n",
        f"{ORIGIN}\n\n{'A' * 43}=\n",
        f"{ORIGIN}\n{2**63}\n{'A' * 43}=\n",
        f"{ORIGIN}\n{'9' * 5000}\n{'A' * 43}=\n",
        f"{ORIGIN}\n7\n{'A' * 42}B=\n",
        f"{ORIGIN}\n7\n{'A' * 40}\n",
        f"{ORIGIN}\n7\n{'A' * 43}=\n\n",
        f"{ORIGIN}\n7\n",
        f"{ORIGIN}\n",
    ],
)
def test_a_text_that_is_no_checkpoint_even_when_it_is_signed(text: str) -> None:
    log = signature_line(ORIGIN, 1, forge.LOG_KEY, forge.LOG_KEY.sign(text.encode()))
    note = text + "\n" + log + cosignature(text, "ada") + cosignature(text, "bob")
    assert re.search("not a checkpoint|policy trusts|base64", refusal(note))


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n\n",
        TEXT,
        TEXT + "\n",
        SIGNED[:-1],
        SIGNED + "\n",
        SIGNED + "— ada\n",
        SIGNED + "- ada AAAAAAA=\n",
        SIGNED + "—  ada AAAAAAA=\n",
        SIGNED + "— ada AAAAAAA= \n",
        SIGNED + "— a+b AAAAAAA=\n",
        SIGNED + "— ada AAAA\n",
        SIGNED + "— ada AAAAAAB=\n",
        SIGNED + "— a\u00a0da AAAAAAA=\n",
        SIGNED.replace("\n", "\r\n"),
        SIGNED.replace("— ada", "— ada\t"),
        SIGNED.encode() + b"\xff\n",
        b"\xe2\x80" + SIGNED.encode(),
    ],
)
@pytest.mark.parametrize("ordered", [True, False])
def test_bytes_that_are_no_signed_note(note: str | bytes, ordered: bool) -> None:
    refusal(note, ordered=ordered)


def test_an_endless_note_is_parsed() -> None:
    assert f"the bound is {MAX_NOTE}; it was not parsed" in refusal(SIGNED + "x" * MAX_NOTE)
