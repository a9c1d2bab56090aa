"""Notes, cosignatures and receipts: published cases, Go's x/mod, torchwood, and texts that must not be read."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causaldao.errors import IdentityError, LedgerError, ProofError
from causaldao.ledger import merkle
from causaldao.ledger.note import (
    COSIGNER,
    LOG,
    MAX_NOTE_BYTES,
    MAX_PROOF_BYTES,
    MAX_PROOF_HASHES,
    MAX_SIGNATURES,
    MAX_TIME,
    Checkpoint,
    Verifier,
    check_cosignature,
    cosign,
    cosigners,
    open_note,
    parse_proof,
    proof_text,
    sign_checkpoint,
    signed_text,
    with_cosignatures,
)
from causaldao.signing import SigningKey, VerifyKey
from tests.counts import count
from tests.ledger.interop import xmod

VECTORS = Path(__file__).with_name("vectors")
C2SP, GOLANG, TORCHWOOD, XMOD = (
    json.loads((VECTORS / f"{name}.json").read_text()) for name in ("c2sp", "golang", "torchwood", "xmod")
)
PETER = Verifier.parse(GOLANG["note"]["vkeys"]["PeterNeumann"])
ENOCH = Verifier.parse(GOLANG["note"]["vkeys"]["EnochRoot"])
SUMDB = Verifier.parse(TORCHWOOD["sumdb"]["vkey"])

LOG_VERIFIER, ADA, BOB = xmod.LOG_VERIFIER, *xmod.WITNESS_VERIFIERS[:2]
HEAD = xmod.checkpoint()
SIGNED = sign_checkpoint(HEAD, xmod.LOG_KEY)
GOOD = xmod.cosigned(HEAD)
ADA_LINE, BOB_LINE = (cosign(HEAD, name, xmod.WITNESSES[name], xmod.TIME) for name in ("ada", "bob"))
HASHES = [merkle.leaf_hash(bytes([number])) for number in range(MAX_PROOF_HASHES + 1)]

Reader = Callable[[str], object]
READERS: list[Reader] = [
    lambda note: open_note(note, LOG_VERIFIER),
    lambda note: signed_text(note, LOG_VERIFIER),
    lambda note: cosigners(note, xmod.WITNESS_VERIFIERS),
    lambda note: with_cosignatures(note, []),
    lambda note: proof_text(0, [], note),
    lambda note: parse_proof(f"c2sp.org/tlog-proof@v1\nindex 0\n\n{note}"),
]


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- what others published


def test_the_example_of_signed_note_is_refused() -> None:
    example = C2SP["signed-note"]
    verifier = Verifier.parse(example["vkey"])
    assert verifier.text == example["vkey"]
    assert signed_text(example["note"], verifier) == example["text"]
    with pytest.raises(LedgerError, match="three lines"):
        open_note(example["note"], verifier)


def test_the_example_of_a_cosignature_says_another_time() -> None:
    """Its keys are not published. The id, the time and the text that is signed are."""
    example = C2SP["tlog-cosignature"]
    note: str = example["note"]
    text, _, lines = note.partition("\n\n")
    line = lines.splitlines()[1]
    assert int.from_bytes(base64.b64decode(line.split(" ")[2])[4:12], "big") == example["time"]
    assert example["signed"] == f"cosignature/v1\ntime {example['time']}\n{Checkpoint.parse(text + chr(10)).text}"
    stranger = Verifier.of("witness.example.com/w1", xmod.LOG_KEY.public, COSIGNER)
    assert cosigners(note, [stranger]) == {}
    with pytest.raises(LedgerError, match=r"witness.example.com/w1\+8d66cf3f"):
        check_cosignature(Checkpoint.parse(text + "\n"), line, stranger)
    assert with_cosignatures(note, []) == note


def test_the_words_that_a_witness_signs_are_others() -> None:
    key, example = SigningKey.from_seed(b"w" * 32), C2SP["tlog-cosignature"]
    text = example["note"].partition("\n\n")[0] + "\n"
    line = cosign(Checkpoint.parse(text), "witness.example.com/w1", key, example["time"])
    key.public.verify(base64.b64decode(line.split(" ")[2])[12:], example["signed"].encode())


def test_two_keys_of_one_name_are_taken_for_one() -> None:
    example = C2SP["tlog-witness"]
    together = with_cosignatures(example["note"], example["cosignatures"])
    assert [line.split(" ")[1] for line in together.partition("\n\n")[2].splitlines()] == [
        *["example.com/behind-the-sofa"] * 2, "witness.example/w1", "witness.example/w1", "witness.example/w2",
    ]  # fmt: skip
    assert set(together.splitlines()) == {*example["note"].splitlines(), *example["cosignatures"]}


def test_the_example_of_a_proof_is_read_otherwise() -> None:
    """Its notes are elided, so a whole one takes their place."""
    head, _, _ = C2SP["tlog-proof"]["elided"].partition("\n\n")
    _, extra, _, *hashes = head.split("\n")
    whole = f"{head}\n\n{GOOD}"
    assert parse_proof(whole) == (C2SP["tlog-proof"]["index"], tuple(map(base64.b64decode, hashes)), GOOD)
    assert proof_text(*parse_proof(whole)) == whole.replace(f"{extra}\n", "")


def test_a_note_of_go_is_refused() -> None:
    cases = GOLANG["note"]
    for note in cases["opened by PeterNeumann"].values():
        assert signed_text(note, PETER) == cases["text"]
    assert signed_text(cases["opened by PeterNeumann"]["both signatures"], ENOCH) == cases["text"]
    with pytest.raises(LedgerError, match="twice"):  # stricter than Go: one content has one text
        signed_text(cases["doubled and accepted by Go"], PETER)


@pytest.mark.parametrize("name", GOLANG["note"]["refused with the key of PeterNeumann"])
def test_a_note_that_go_refuses_is_opened(name: str) -> None:
    with pytest.raises(LedgerError):
        signed_text(GOLANG["note"]["refused with the key of PeterNeumann"][name], PETER)


def test_a_checkpoint_of_go_is_another() -> None:
    tree = GOLANG["tree"]
    expected = Checkpoint("go.sum database tree", tree["size"], merkle.leaf_hash(tree["leaf"].encode()))
    assert expected.text == tree["text"]
    assert base64_of(expected.root) == tree["root"]
    assert Checkpoint.parse(tree["text"]) == expected
    for text in tree["extended"]:
        assert Checkpoint.parse(text).text == text
        assert (Checkpoint.parse(text).size, Checkpoint.parse(text).root) == (expected.size, expected.root)
    for text in [*tree["refused"], tree["extended without a newline, accepted by Go only"]]:
        with pytest.raises(LedgerError):
            Checkpoint.parse(text)


def test_gos_checksum_database_has_signed_nothing() -> None:
    note = TORCHWOOD["sumdb"]["note"]
    assert Checkpoint.parse(signed_text(note, SUMDB)).size == 35225469
    with pytest.raises(LedgerError, match=r"is of 'go.sum database tree', but the key .* of 'sum.golang.org'"):
        open_note(note, SUMDB)
    # The signature in C2SP's example of a checkpoint is one of that database, over its own origin.
    example = C2SP["tlog-witness"]["note"].replace("example.com/behind-the-sofa\n", "go.sum database tree\n")
    real = example.replace("— example.com/behind-the-sofa Az3", "— sum.golang.org Az3")
    assert Checkpoint.parse(signed_text(real, SUMDB)).size == 20852163


def test_torchwoods_witness_would_answer_otherwise() -> None:
    """Its requests in their order. What only a witness's memory can refuse (409) is the witness's."""
    log = Verifier(TORCHWOOD["log"]["origin"], LOG, bytes.fromhex(TORCHWOOD["log"]["key"]))
    assert log == Verifier.parse(TORCHWOOD["log"]["vkey"])
    size, root = 0, merkle.EMPTY_ROOT
    for request in TORCHWOOD["add-checkpoint"]:
        status, head = 200, None
        try:
            head = open_note(request["note"], log)
            if request["old"] == size:
                proof = [base64.b64decode(line) for line in request["proof"]]
                merkle.verify_consistency(size, root, head.size, head.root, proof)
            else:
                status = 409
        except ProofError:
            status = 422
        except LedgerError:
            status = 403
        assert status == request["status"], request
        if status == 200 and head:
            size, root = head.size, head.root
    assert size == 5


@pytest.mark.parametrize("case", TORCHWOOD["cosigned"], ids=lambda case: case["text"].split("\n")[0])
def test_a_cosignature_of_torchwood_does_not_verify(case: dict[str, Any]) -> None:
    head, witnesses = Checkpoint.parse(case["text"]), []
    for line, by in zip(case["note"].partition("\n\n")[2].splitlines(), case["by"], strict=True):
        key = SigningKey.from_seed(bytes.fromhex(by["seed"]))
        witnesses.append(Verifier.of(by["name"], key.public, COSIGNER))
        assert witnesses[-1].text == by["vkey"]
        assert witnesses[-1] == Verifier.parse(by["vkey"], kinds=(COSIGNER,))
        assert check_cosignature(head, line, witnesses[-1]) == by["time"]
        assert cosign(head, by["name"], key, by["time"]) == line
    assert cosigners(case["note"], witnesses) == {by["name"]: by["time"] for by in case["by"]}


def test_go_signs_another_note() -> None:
    times = (1, xmod.TIME, MAX_TIME)
    for asked, note in zip(xmod.questions()["sign"], XMOD["sign"], strict=True):
        head = open_note(note, LOG_VERIFIER)
        assert head == Checkpoint.parse(asked["text"])
        assert cosigners(note, xmod.WITNESS_VERIFIERS) == dict(zip(xmod.WITNESSES, times, strict=True))
        lines = [cosign(head, *pair, at) for pair, at in zip(xmod.WITNESSES.items(), times, strict=True)]
        assert with_cosignatures(sign_checkpoint(head, xmod.LOG_KEY), reversed(lines)) == note


@pytest.mark.parametrize("name", xmod.notes())
def test_we_and_go_open_different_notes(name: str) -> None:
    ours, go = xmod.opened(xmod.notes()[name].encode(), xmod.VKEYS), XMOD["open"][name]
    if name in xmod.STRICTER:
        assert (ours, go["text"] is None) == (None, False)
    elif name in xmod.LOOSER:
        assert (ours is None, go["text"]) == (False, None)
    else:
        assert ours == (None if go["text"] is None else (go["text"], set(go["by"])))


def test_what_was_asked_of_go_is_not_what_is_tested() -> None:
    assert set(XMOD["open"]) == set(xmod.notes()) >= set(xmod.STRICTER) | set(xmod.LOOSER)
    assert sum(xmod.opened(note.encode(), xmod.VKEYS) is not None for note in xmod.notes().values()) == 10


# --- keys


def test_a_mangled_verifier_key_is_read() -> None:
    text = GOLANG["note"]["vkeys"]["PeterNeumann"]
    mangled = {text[first:last] for first in range(len(text)) for last in range(first, len(text) + 1)} - {text}
    mangled |= {text[:at] + chr(ord(text[at]) + 1) + text[at + 1 :] for at in range(len(text))}
    mangled |= {text + " ", text + "\n", " " + text, text + "=", text.upper(), text.replace("c74f", "C74F")}
    for bad in [*mangled, *GOLANG["note"]["bad vkeys"]]:
        with pytest.raises(IdentityError):
            Verifier.parse(bad)


def test_a_key_of_another_kind_is_taken() -> None:
    with pytest.raises(IdentityError, match="of type 0x04"):
        Verifier.parse(PETER.text, kinds=(COSIGNER,))
    with pytest.raises(IdentityError, match="of type 0x01,"):
        Verifier.parse(ADA.text, kinds=(LOG,))
    with pytest.raises(IdentityError, match="of type 0x06"):
        Verifier("ada", 6, bytes(32))
    with pytest.raises(IdentityError, match="32 bytes"):
        Verifier("ada", COSIGNER, bytes(33))
    reads: list[Callable[[], object]] = [
        lambda: open_note(GOOD, Verifier(LOG_VERIFIER.name, COSIGNER, LOG_VERIFIER.key)),
        lambda: cosigners(GOOD, [Verifier("ada", LOG, ADA.key)]),
        lambda: check_cosignature(HEAD, ADA_LINE, Verifier("ada", LOG, ADA.key)),
    ]
    for read in reads:
        with pytest.raises(LedgerError, match="is needed here"):
            read()


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\tb", "a\nb", "a\u00a0b", "a\u2028b", "a\x00b", "a\ud800b"])
def test_a_name_that_no_line_can_carry_has_a_key(name: str) -> None:
    with pytest.raises(IdentityError, match="spaces"):
        Verifier(name, LOG, bytes(32))
    with pytest.raises(IdentityError, match="spaces"):
        cosign(HEAD, name, xmod.LOG_KEY, 1)


@given(st.binary(min_size=32, max_size=32), st.sampled_from([LOG, COSIGNER]), st.text("aZ9./-_:ü", min_size=1))
def test_a_verifier_key_is_not_read_back(key: bytes, kind: int, name: str) -> None:
    verifier = Verifier.of(name, VerifyKey(key), kind)
    assert Verifier.parse(verifier.text) == Verifier.parse(verifier.text, kinds=[kind]) == verifier
    if kind == LOG:  # one notation for the signing keys of the whole project
        assert verifier.text == VerifyKey(key).to_text(name)
        assert VerifyKey.from_text(verifier.text) == (name, VerifyKey(key))
    assert verifier.id != Verifier(name, LOG + COSIGNER - kind, key).id


# --- checkpoints

LINE = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1, max_size=20)
SIZE = st.integers(0, 2**63 - 1)
CHECKPOINTS = st.builds(
    Checkpoint, LINE, SIZE, st.binary(min_size=32, max_size=32), st.lists(LINE, max_size=2).map(tuple)
)


@given(CHECKPOINTS)
def test_a_checkpoint_is_not_read_back(head: Checkpoint) -> None:
    assert Checkpoint.parse(head.text) == head
    assert head.text.encode().count(b"\n") == 3 + len(head.extensions)


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "o\n7\n", "o\n7\nROOT", "\n7\nROOT\n", "o\n\nROOT\n", "o\n7\n\n", "o\n07\nROOT\n", "o\n+7\nROOT\n",
        "o\n-7\nROOT\n", "o\n7 \nROOT\n", "o\n 7\nROOT\n", "o\n7_0\nROOT\n", "o\n٧\nROOT\n", "o\n0x7\nROOT\n",
        "o\n7.0\nROOT\n", "o\n00\nROOT\n", "o\n9223372036854775808\nROOT\n", f"o\n{'9' * 5000}\nROOT\n",
        "o\n7\nROOT\n\n",
        "o\n7\nROOT\n\nextension\n", "o\n7\nROOT\nextension", "o\n7\n ROOT\n", "o\n7\nROOT \n", "o\r\n7\r\nROOT\r\n",
        "o\t\n7\nROOT\n", "o\n7\nROOT\n\x00\n", "o\ud800\n7\nROOT\n", "o\n7\nAAAA\n", "o\n7\nROOT=\n", "o\n7\nNOPAD\n",
        "o\n7\nTRAILING\n", "o\n7\nURLSAFE\n",
    ],
)  # fmt: skip
def test_a_text_in_another_spelling_is_a_checkpoint(text: str) -> None:
    root = base64_of(b"\xff" * 32)
    spelled = {
        "NOPAD": root.rstrip("="), "TRAILING": root[:-2] + "9=", "URLSAFE": root.replace("/", "_"), "ROOT": root
    }  # fmt: skip
    assert Checkpoint.parse(f"o\n7\n{root}\n").root == base64.b64decode(spelled["TRAILING"])
    for word, value in spelled.items():
        text = text.replace(word, value)
    with pytest.raises(LedgerError):
        Checkpoint.parse(text)


def test_a_checkpoint_that_cannot_be_written_is_made() -> None:
    for changes in (
        {"origin": ""}, {"origin": "a\nb"}, {"origin": "a\x1fb"}, {"origin": "\udc80"}, {"size": -1}, {"size": 2**63},
        {"root": bytes(31)}, {"root": b""}, {"extensions": ("",)}, {"extensions": ("a\n\nb",)},
        {"extensions": ("x" * MAX_NOTE_BYTES,)},
    ):  # fmt: skip
        fields: dict[str, Any] = {"origin": "o", "size": 1, "root": bytes(32), "extensions": (), **changes}
        with pytest.raises(LedgerError):
            Checkpoint(**fields)
    with pytest.raises(IdentityError, match="spaces"):
        sign_checkpoint(Checkpoint("go.sum database tree", 1, bytes(32)), xmod.LOG_KEY)


# --- signed notes


@given(CHECKPOINTS.filter(lambda head: not set("+ \u00a0") & set(head.origin) and head.origin.split() == [head.origin]))
@settings(max_examples=count(50, 1000), deadline=None)
def test_a_signed_checkpoint_is_not_read_back(head: Checkpoint) -> None:
    note = sign_checkpoint(head, xmod.LOG_KEY)
    log = Verifier.of(head.origin, xmod.LOG_KEY.public, LOG)
    assert open_note(note, log) == head
    line = cosign(head, "ada", xmod.WITNESSES["ada"], 17)
    assert check_cosignature(head, line, ADA) == 17
    whole = with_cosignatures(note, [line])
    assert open_note(whole, log) == head
    assert cosigners(whole, [ADA, BOB]) == {"ada": 17}


@pytest.mark.parametrize("read", READERS)
def test_a_note_is_parsed_before_it_is_measured(read: Reader) -> None:
    def padded(size: int) -> str:
        spent = len(sign_checkpoint(xmod.checkpoint(7, ("x",)), xmod.LOG_KEY).encode()) - 1
        return sign_checkpoint(xmod.checkpoint(7, ("x" * (size - spent),)), xmod.LOG_KEY)

    whole = padded(MAX_NOTE_BYTES)
    assert len(whole.encode()) == MAX_NOTE_BYTES
    read(whole)
    for large in (whole + "\n", whole.replace("x", "ü", 1), "\x00" * (MAX_PROOF_BYTES + 1), "—" * MAX_NOTE_BYTES):
        began = time.monotonic()
        with pytest.raises(LedgerError, match=r"the bound is 10\d+: it was not parsed"):
            read(large)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("read", READERS)
def test_lines_without_end_are_read(read: Reader) -> None:
    read(SIGNED + "— w AAAAAAA=\n" * (MAX_SIGNATURES - 1))
    with pytest.raises(LedgerError, match="at most 256 signatures"):
        read(SIGNED + "not even a signature line\n" * MAX_SIGNATURES)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "name",
    [
        "no final newline", "no empty line", "no signature", "no signature line", "a text behind the signatures",
        "a carriage return", "a tab", "a control character", "a hyphen for the dash", "two spaces",
        "a space at the end", "a name with a plus", "a name with a no-break space", "an empty name",
        "a signature without bytes", "no padding", "the other alphabet of base64", "nothing", "a newline",
        "two newlines",
        "trailing bits in base64", "257 signatures",
    ],
)  # fmt: skip
def test_a_note_in_another_spelling_is_read(name: str, read: Reader) -> None:
    with pytest.raises(LedgerError):
        read(xmod.notes()[name])


@pytest.mark.parametrize("end", ["", "x", "=", "\n\n", "\n ", " \n"])
@pytest.mark.parametrize("read", READERS)
def test_a_note_with_another_end_is_read(read: Reader, end: str) -> None:
    with pytest.raises(LedgerError):
        read(GOOD[:-1] + end)


def test_a_text_that_is_no_checkpoint_is_refused() -> None:
    for text in ("\n", "\n\n", "a\n\nb\n", "— looks BASE64\n", "\n— looks AAAAAAA=\n"):
        assert signed_text(xmod.signed_text(text), LOG_VERIFIER) == text


def test_a_note_that_utf8_cannot_write_is_read() -> None:
    for read in READERS:
        with pytest.raises(LedgerError, match="UTF-8"):
            read(SIGNED + "— \ud800 AAAAAAA=\n")


def test_a_note_of_another_log_is_opened() -> None:
    other = SigningKey.from_seed(b"X" * 32)
    with pytest.raises(LedgerError, match="no signature of the key"):
        open_note(SIGNED, Verifier.of(xmod.ORIGIN, other.public, LOG))
    with pytest.raises(LedgerError, match="no signature of the key"):
        open_note(SIGNED, Verifier("causaldao.example/south", LOG, LOG_VERIFIER.key))
    # one key under two names: the text must be of the name
    south = Verifier("causaldao.example/south", LOG, LOG_VERIFIER.key)
    signed = xmod.signed_text(HEAD.text, LOG, south.name)
    with pytest.raises(LedgerError, match=r"is of 'causaldao\.example/north', but the key"):
        open_note(signed, south)


def test_a_cosignature_passes_for_the_logs_signature_or_the_other_way() -> None:
    key = xmod.LOG_KEY
    witness, log = (Verifier.of(xmod.ORIGIN, key.public, kind) for kind in (COSIGNER, LOG))
    assert witness.id != log.id
    cosigned = f"{HEAD.text}\n{cosign(HEAD, xmod.ORIGIN, key, 1)}\n"
    assert cosigners(cosigned, [witness]) == {xmod.ORIGIN: 1}
    with pytest.raises(LedgerError, match="no signature of the key"):
        open_note(cosigned, log)
    assert cosigners(SIGNED, [witness]) == {}


@given(st.data())
@settings(max_examples=count(300, 5000), deadline=None)
def test_an_altered_note_says_something_else(data: st.DataObject) -> None:
    """Whatever is put in, out or elsewhere: what is opened was signed, and whoever cosigned signed just that."""
    note = GOOD
    for _ in range(data.draw(st.integers(1, 2))):
        first = data.draw(st.integers(0, len(note)))
        last = data.draw(st.integers(first, min(len(note), first + 3)))
        put = data.draw(st.sampled_from(["", "\n", "A", "=", " ", "—", "\n\n", "8", "\x00", "ü", ADA_LINE, GOOD]))
        note = note[:first] + put + note[last:]
    try:
        head = open_note(note, LOG_VERIFIER)
        times = cosigners(note, xmod.WITNESS_VERIFIERS)
    except LedgerError:
        return
    signed = {verifier.name: at for verifier, at in zip(xmod.WITNESS_VERIFIERS, WITNESSED.values(), strict=True)}
    assert head == HEAD
    assert {name: signed[name] for name in times} == times


WITNESSED = cosigners(GOOD, xmod.WITNESS_VERIFIERS)


# --- cosignatures


def test_a_cosignature_counts_for_another_checkpoint_key_name_or_time() -> None:
    assert check_cosignature(HEAD, ADA_LINE, ADA) == xmod.TIME
    data = base64.b64decode(ADA_LINE.split(" ")[2])
    later = f"— ada {base64_of(data[:4] + (xmod.TIME + 1).to_bytes(8, 'big') + data[12:])}"
    cases = [
        (xmod.checkpoint(6), ADA_LINE, ADA, "does not verify"),
        (xmod.checkpoint(7, ("more",)), ADA_LINE, ADA, "does not verify"),
        (HEAD, later, ADA, "does not verify"),
        (HEAD, f"— ada {base64_of(data[:-1])}", ADA, "does not verify"),
        (HEAD, f"— ada {base64_of(data + b'1')}", ADA, "does not verify"),
        (HEAD, f"— ada {base64_of(data[:5])}", ADA, "from 1 to|does not verify"),
        (HEAD, BOB_LINE, ADA, "is of bob"),
        (HEAD, ADA_LINE.replace("ada", "bob"), BOB, "is of bob"),
        (HEAD, ADA_LINE, Verifier("ada", COSIGNER, BOB.key), "is of ada"),
        (HEAD, ADA_LINE + "\n", ADA, "not base64"),
        (HEAD, f"{ADA_LINE}\n{BOB_LINE}", ADA, "not base64"),
        (HEAD, "", ADA, "A signature line is"),
        (HEAD, "x" * (MAX_NOTE_BYTES + 1), ADA, "it was not parsed"),
    ]
    for head, line, verifier, said in cases:
        with pytest.raises(LedgerError, match=said):
            check_cosignature(head, line, verifier)


@pytest.mark.parametrize("at", [0, -1, 2**63, 2**64])
def test_a_time_beyond_the_bounds_is_signed(at: int) -> None:
    with pytest.raises(LedgerError, match="a POSIX second from 1 to 9223372036854775807"):
        cosign(HEAD, "ada", xmod.WITNESSES["ada"], at)


@pytest.mark.parametrize("name", ["a cosignature at time 0", "a cosignature at time 2^63"])
def test_a_time_beyond_the_bounds_is_read(name: str) -> None:
    note = xmod.notes()[name]
    with pytest.raises(LedgerError, match="a POSIX second from 1"):
        cosigners(note, [ADA])
    assert cosigners(note, [BOB]) == {}


def test_a_bad_line_of_a_known_key_is_passed_over() -> None:
    for name in ("a cosignature altered", "a cosignature of another size", "a cosignature by another key",
                 "a cosignature without a time", "a witness's line twice", "the size altered"):  # fmt: skip
        with pytest.raises(LedgerError):
            cosigners(xmod.notes()[name], xmod.WITNESS_VERIFIERS)


def test_an_unknown_key_spoils_a_note() -> None:
    note = xmod.notes()["unknown lines twice"]
    assert cosigners(note, []) == {}
    assert cosigners(note, [BOB]) == {"bob": xmod.TIME + 3}
    assert open_note(note, LOG_VERIFIER) == HEAD


def test_one_key_counts_as_two_witnesses() -> None:
    """An Ed25519 cosignature does not cover the name, so anyone can put a second name on it."""
    twin = Verifier("twin", COSIGNER, ADA.key)
    data = base64.b64decode(ADA_LINE.split(" ")[2])
    copied = with_cosignatures(SIGNED, [ADA_LINE, f"— twin {base64_of(twin.id + data[4:])}"])
    assert cosigners(copied, [twin]) == {"twin": xmod.TIME}
    with pytest.raises(LedgerError, match="the same name or the same key"):
        cosigners(copied, [ADA, twin])
    with pytest.raises(LedgerError, match="the same name or the same key"):
        cosigners(GOOD, [ADA, Verifier("ada", COSIGNER, BOB.key)])


@given(st.permutations([*GOOD.partition("\n\n")[2].splitlines()[1:], "— other AAAAAAA=", "— ada AAAAAAA="]))
def test_the_order_in_which_cosignatures_came_shows(lines: list[str]) -> None:
    whole = with_cosignatures(SIGNED, lines)
    names = [line.split(" ")[1] for line in whole.partition("\n\n")[2].splitlines()]
    assert names == [xmod.ORIGIN, "ada", "ada", "bob", "other", "zoë.example/w1"]
    assert with_cosignatures(with_cosignatures(SIGNED, lines[:3]), lines[2:]) == whole
    assert with_cosignatures(whole, lines * 2) == whole
    assert cosigners(whole, xmod.WITNESS_VERIFIERS) == WITNESSED


def test_a_key_has_two_signatures() -> None:
    again = cosign(HEAD, "ada", xmod.WITNESSES["ada"], xmod.TIME + 60)
    for lines in ([ADA_LINE, again], [again, ADA_LINE]):
        with pytest.raises(LedgerError, match=r"ada\+[0-9a-f]{8} has two different signatures"):
            with_cosignatures(SIGNED, lines)
    with pytest.raises(LedgerError, match="two different signatures"):
        with_cosignatures(with_cosignatures(SIGNED, [ADA_LINE]), [again])


def test_more_cosignatures_are_added_than_are_read() -> None:
    lines = [f"— w{number} AAAAAAA=" for number in range(MAX_SIGNATURES)]
    whole = with_cosignatures(SIGNED, lines[:-1])
    assert open_note(whole, LOG_VERIFIER) == HEAD
    with pytest.raises(LedgerError, match="at most 256"):
        with_cosignatures(SIGNED, lines)
    with pytest.raises(LedgerError, match="A signature line is"):
        with_cosignatures(SIGNED, ["no line"])


# --- receipts


@given(SIZE, st.integers(0, MAX_PROOF_HASHES))
@settings(max_examples=count(50, 500), deadline=None)
def test_a_receipt_is_not_read_back(index: int, length: int) -> None:
    text = proof_text(index, HASHES[:length], GOOD)
    assert parse_proof(text) == (index, tuple(HASHES[:length]), GOOD)
    assert proof_text(*parse_proof(text)) == text


def test_a_receipt_proves_nothing() -> None:
    leaves = [merkle.leaf_hash(leaf) for leaf in xmod.LEAVES[:7]]
    index, proof, note = parse_proof(proof_text(3, merkle.inclusion_proof(leaves, 3), GOOD))
    head = open_note(note, LOG_VERIFIER)
    merkle.verify_inclusion(merkle.leaf_hash(b"leaf 3"), index, head.size, proof, head.root)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(merkle.leaf_hash(b"leaf 2"), index, head.size, proof, head.root)


@pytest.mark.parametrize(
    "text",
    [
        "", "NOTE", "c2sp.org/tlog-proof@v1\n\nNOTE", "c2sp.org/tlog-proof@v2\nindex 0\n\nNOTE",
        "index 0\n\nNOTE", "c2sp.org/tlog-proof@v1\nindex 0\nNOTE", "c2sp.org/tlog-proof@v1\nindex 0\n\n\nNOTE",
        "c2sp.org/tlog-proof@v1 \nindex 0\n\nNOTE", "\nc2sp.org/tlog-proof@v1\nindex 0\n\nNOTE",
        "HEAD\nindex 00\n\nNOTE", "HEAD\nindex  0\n\nNOTE", "HEAD\nindex -1\n\nNOTE", "HEAD\nindex\n\nNOTE",
        "HEAD\nindex \n\nNOTE", "HEAD\nindex 0 \n\nNOTE", "HEAD\nindex ١\n\nNOTE",
        "HEAD\nindex 9223372036854775808\n\nNOTE",
        "HEAD\nindex 0\nindex 0\n\nNOTE", "HEAD\nindex 0\nextra YWdl\n\nNOTE",
        "HEAD\nextra YWdl\nextra YWdl\nindex 0\n\nNOTE",
        "HEAD\nextra YWd\nindex 0\n\nNOTE", "HEAD\nextra  YWdl\nindex 0\n\nNOTE", "HEAD\nextra\nindex 0\n\nNOTE",
        "HEAD\nextra YWdl\n\nNOTE", "HEAD\nindex 0\nYWdl\n\nNOTE", "HEAD\nindex 0\nHASH \n\nNOTE",
        "HEAD\nindex 0\nHASHHASH\n\nNOTE", "HEAD\r\nindex 0\r\n\r\nNOTE", "HEAD\nindex 0\n\n", "HEAD\nindex 0\n\nTEXT",
        "HEAD\nindex 0\n\nMESSAGE",
    ],
)  # fmt: skip
def test_a_receipt_in_another_spelling_is_read(text: str) -> None:
    words = {
        "HEAD": "c2sp.org/tlog-proof@v1", "HASH": base64_of(HASHES[0]), "NOTE": GOOD, "TEXT": HEAD.text,
        "MESSAGE": C2SP["signed-note"]["note"],
    }  # fmt: skip
    assert parse_proof(f"{words['HEAD']}\nextra YWdl\nindex 0\n{words['HASH']}\n\n{GOOD}")[0] == 0
    for word, value in words.items():
        text = text.replace(word, value)
    with pytest.raises(LedgerError):
        parse_proof(text)


def test_hashes_without_end_are_read() -> None:
    head = "c2sp.org/tlog-proof@v1\nextra YWdl\nindex 0\n"
    most = "".join(f"{base64_of(value)}\n" for value in HASHES[:-1])
    assert len(parse_proof(f"{head}{most}\n{GOOD}")[1]) == MAX_PROOF_HASHES
    for lines in (MAX_PROOF_HASHES + 1, MAX_PROOF_HASHES + 2, 5000):
        with pytest.raises(LedgerError, match="at most 64 hashes, this one has more: it was not read"):
            parse_proof(head + "not base64\n" * lines + f"\n{GOOD}")
        with pytest.raises(LedgerError, match="at most 64 hashes"):
            parse_proof(head.replace("extra YWdl\n", "") + "not base64\n" * lines + f"\n{GOOD}")
    with pytest.raises(LedgerError, match="at most 64 hashes"):
        proof_text(0, HASHES, GOOD)


def test_a_receipt_that_cannot_be_read_is_written() -> None:
    for index, hashes, note in (
        (-1, [], GOOD), (2**63, [], GOOD), (0, [b"short"], GOOD), (0, [], HEAD.text), (0, [], "\n" + GOOD),
        (0, [], C2SP["signed-note"]["note"]),
    ):  # fmt: skip
        with pytest.raises(LedgerError):
            proof_text(index, hashes, note)
