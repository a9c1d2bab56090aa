"""Keys, canonical bytes and envelopes: what a forger, a replayer or a careless hand could do."""

from __future__ import annotations

import base64
import json
import stat
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causaldao.errors import ConfigurationError, IdentityError
from causaldao.signing import (
    MAX_ENVELOPE_BYTES,
    SigningKey,
    Statement,
    VerifyKey,
    canonical,
    check_name,
    digest,
    manifest,
    peek,
    seal,
    sha256,
    unseal,
)

KEY = SigningKey.from_seed(b"k" * 32)
OTHER = SigningKey.from_seed(b"o" * 32)
STATEMENT = Statement(
    federation="north", study="s", round=0, member="ada", kind="ballot", body={"x": 1.5, "y": ["é"]}, nonce="n",
    parent="", digest=digest({}),
)  # fmt: skip


def _signed(payload: bytes, key: SigningKey = KEY) -> bytes:
    """An envelope over any bytes, rightly signed."""
    kind = b"application/vnd.causaldao+json"
    signature = key.sign(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload))
    return canonical({
        "payloadType": kind.decode(), "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key.public.id, "sig": base64.b64encode(signature).decode()}],
    })  # fmt: skip


def test_an_envelope_does_not_read_back() -> None:
    assert unseal(seal(STATEMENT, KEY), KEY.public) == STATEMENT
    assert peek(seal(STATEMENT, KEY)) == STATEMENT
    assert _signed(canonical(asdict(STATEMENT))) == seal(STATEMENT, KEY)


def test_another_key_speaks_for_a_member() -> None:
    with pytest.raises(IdentityError, match=KEY.public.id):
        unseal(seal(STATEMENT, OTHER), KEY.public)


def test_any_flipped_bit_is_read() -> None:
    good = seal(STATEMENT, KEY)
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 4
        with pytest.raises(IdentityError):
            unseal(bytes(bad), KEY.public)


def test_an_envelope_in_another_form_poisons_the_ledger() -> None:
    """The ledger's verifier takes one form only: what it would refuse for ever must not be accepted now."""
    good = seal(STATEMENT, KEY)
    document = json.loads(good)
    loose = json.loads(good)
    loose["payload"] = _stray_bits(loose["payload"])
    named = json.loads(good)
    named["signatures"][0]["extra"] = 1
    unkeyed = json.loads(good)
    del unkeyed["signatures"][0]["keyid"]
    twice = json.loads(good)
    twice["signatures"] *= 2
    forms = [
        json.dumps(document, indent=1).encode(), good + b"\n", good.decode().encode("utf-16"),
        canonical(loose), canonical(named), canonical(unkeyed), canonical(twice), canonical({**document, "more": 1}),
    ]  # fmt: skip
    for form in forms:
        with pytest.raises(IdentityError):
            unseal(form, KEY.public)


def _stray_bits(text: str) -> str:
    """Another base64 text of the same bytes, if there is one."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for letter in alphabet:
        stem = text.rstrip("=")
        other = stem[:-1] + letter + "=" * (len(text) - len(stem))
        if other != text and base64.b64decode(other) == base64.b64decode(text):
            return other
    return text + "===="


@pytest.mark.parametrize("change", [
    {"v": 2}, {"v": True}, {"round": "0"}, {"round": 1.5}, {"body": []}, {"seed": 1}, {"member": None},
    {"epoch": False},
])  # fmt: skip
def test_a_statement_of_another_form_is_read(change: dict[str, Any]) -> None:
    with pytest.raises(IdentityError):
        unseal(_signed(canonical({**asdict(STATEMENT), **change})), KEY.public)


@pytest.mark.parametrize("payload", [
    b"", b"[]", b"null", b"{", b"\xff", b'{"v":1,"v":1}', b"[" * 100_000, json.dumps(asdict(STATEMENT)).encode(),
])  # fmt: skip
def test_bytes_that_are_no_canonical_statement_are_read(payload: bytes) -> None:
    with pytest.raises(IdentityError):
        unseal(_signed(payload), KEY.public)


@pytest.mark.parametrize("number", ["1e400", "NaN", "-Infinity", "9007199254740993", "1.0"])
def test_a_number_that_two_readers_read_differently(number: str) -> None:
    text = canonical(asdict(replace(STATEMENT, body={"x": 7}))).replace(b'"x":7', b'"x":' + number.encode())
    with pytest.raises(IdentityError):
        unseal(_signed(text), KEY.public)


def test_a_body_nested_deeper_than_the_verifier_reads() -> None:
    body: Any = 1
    for _ in range(40):
        body = [body]
    with pytest.raises(IdentityError, match="deeper"):
        unseal(seal(replace(STATEMENT, body={"x": body}), KEY), KEY.public)


def test_an_oversize_envelope_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(data: bytes) -> Any:
        raise AssertionError("it was parsed")

    monkeypatch.setattr("causaldao.signing.json.loads", explode)
    with pytest.raises(IdentityError, match=str(MAX_ENVELOPE_BYTES)):
        peek(b"{" * (MAX_ENVELOPE_BYTES + 1))


def test_two_contents_in_one_slot_look_alike() -> None:
    again = replace(STATEMENT, nonce="m", parent="p")
    assert again.slot == STATEMENT.slot
    assert again.content == STATEMENT.content
    for other in ({"body": {}}, {"digest": sha256(b"")}, {"epoch": 1}):
        assert replace(STATEMENT, **other).content != STATEMENT.content


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**60, {1: 2}, {"a": object()}, "\ud800"])
def test_what_json_cannot_say_is_written(value: Any) -> None:
    with pytest.raises(ConfigurationError):
        canonical(value)


def test_canonical_bytes_depend_on_the_order_of_keys() -> None:
    assert canonical({"b": 1.0, "a": [1e21, 0.1]}) == b'{"a":[1e+21,0.1],"b":1}'


def test_a_verifier_key_does_not_come_back() -> None:
    text = KEY.public.to_text("ada")
    assert VerifyKey.from_text(f" {text}\n") == ("ada", KEY.public)
    name, key_hash, encoded = text.split("+", 2)
    forged = [
        text.replace("ada", "bob"), f"{name}+00000000+{encoded}", f"{name}+{key_hash}", f"{name}+{key_hash}+!!",
        OTHER.public.to_text("ada").replace(OTHER.public.to_text("ada").split("+")[1], key_hash),
    ]  # fmt: skip
    for wrong in forged:
        with pytest.raises(IdentityError):
            VerifyKey.from_text(wrong)
    with pytest.raises(IdentityError, match="31"):
        VerifyKey(b"x" * 31)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "ada\n", "a" * 65, "a b", "<b>", "ä", None, 3])
def test_a_name_carries_a_path_or_markup(name: Any) -> None:
    with pytest.raises(IdentityError):
        check_name(name)


def test_a_key_file_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    KEY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).public == KEY.public
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        SigningKey.load(path)


def test_a_key_file_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    KEY.save(path)
    before = path.read_bytes()
    with pytest.raises(IdentityError, match="never overwritten"):
        OTHER.save(path)
    assert path.read_bytes() == before
    with pytest.raises(IdentityError, match="cannot be written"):
        KEY.save(tmp_path / "missing" / "key.pem")


def test_a_passphrase_does_not_protect(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    KEY.save(path, b"correct horse")
    assert b"ENCRYPTED" in path.read_bytes()
    assert SigningKey.load(path, b"correct horse").public == KEY.public
    for wrong in (None, b"wrong"):
        with pytest.raises(IdentityError, match="passphrase"):
            SigningKey.load(path, wrong)


def test_a_file_that_is_no_key_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(IdentityError, match="cannot be read"):
        SigningKey.load(path)
    path.write_text("hello")
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="cannot be opened"):
        SigningKey.load(path)


def test_a_private_key_shows_in_its_repr() -> None:
    assert (b"k" * 32).hex() not in repr(KEY)
    assert "kkkk" not in repr(KEY)


def test_tensors_with_one_digest_differ() -> None:
    a = np.arange(6, dtype=np.float32)
    same = {"x": np.asfortranarray(a.reshape(2, 3)), "y": a.astype(">f4")}
    assert digest(same) == digest({"y": a, "x": a.reshape(2, 3)})
    for other in ({"x": a}, {"x": a.reshape(3, 2), "y": a}, {"x": a.reshape(2, 3), "y": a.astype(np.float64)}):
        assert digest(other) != digest(same)
    assert manifest({"x": a})[0] == {"name": "x", "dtype": "float32", "shape": [6], "sha256": sha256(a.tobytes())}
