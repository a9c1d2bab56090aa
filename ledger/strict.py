"""Canonical JSON (RFC 8785) and base64 (RFC 4648), read so strictly that no two readers can differ.

This is the verifier's own reader; it shares no code with what writes a ledger. One value has one encoding: what is read
is written anew and must give the same bytes. Most bytes of a ledger are plain (no fraction, exponent or large number,
no name with a character beyond U+FFFF): for those the standard library's encoder writes what RFC 8785 asks for, at C's
speed. Everything else, and everything that has a fault, goes through `encode`, number by number.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn

from causaldao.errors import LedgerError

MAX_DEPTH = 48
MAX_PLAIN_DIGITS = 15  # of a whole number that is a double and is written as its digits


def fault(place: str, what: str) -> LedgerError:
    """The one form of everything that does not verify; ``place`` is an entry, or a section, with the byte if known."""
    return LedgerError(f"The ledger does not verify: {place}: {what}.")


def read(data: bytes, place: str, start: int | None = None) -> Any:
    """The value of canonical bytes.

    ``start`` is the offset of ``data`` in the file: a fault is then placed at its byte. Raises LedgerError on what is
    not UTF-8, not JSON, not canonical, nested deeper than `MAX_DEPTH`, or names one thing twice.
    """
    try:
        return _plain(data)
    except (ValueError, RecursionError):
        return _careful(data, place, start)


def read_all(texts: Sequence[str], depth: int) -> list[Any]:
    """The values of many canonical texts, none nested deeper than ``depth``, as `read` reads each, but sooner.

    The plain ones are written anew in one go, which compares each with its own text: no JSON text that is an object,
    and no number before a comma, is the beginning of another, so the first that differs makes the whole differ.
    Raises ValueError or LedgerError, which name no place, if any is anything else.
    """
    try:
        values = [_parse_plain(text, depth) for text in texts]
        if _ENCODER.encode(values) == f"[{','.join(texts)}]":
            return values
    except (ValueError, RecursionError):
        pass
    values = [read(text.encode(), "") for text in texts]
    return _leave("deep") if _deeper(values, depth + 1) else values


def reread(texts: Sequence[bytes]) -> list[Any]:
    """The values of texts each of which was accepted before."""
    whole = b"[%b]" % b",".join(texts)
    try:
        return list(_DECODER.decode(whole.decode()))
    except ValueError:
        return list(json.loads(whole, parse_int=_number, parse_float=_number))


def fields(value: Any, kinds: Mapping[str, type], place: str) -> None:
    """``value`` is an object with exactly these names, each of exactly this type; else LedgerError."""
    if type(value) is dict and [*map(type, value.values())] == [*kinds.values()] and [*value] == [*kinds]:
        return  # the common case: both are sorted
    if type(value) is not dict or value.keys() != kinds.keys():
        raise fault(place, f"expected an object with exactly {sorted(kinds)}")
    for name, kind in kinds.items():
        if type(value[name]) is not kind:
            raise fault(place, f"{name!r} is not a {kind.__name__}")


def unbase64(text: str, place: str, size: int | None = None) -> bytes:
    """The bytes of their one base64 encoding: stray bits in its last digit are refused; ``size``: as many, if given."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise fault(place, f"not base64: {error}") from error
    if binascii.b2a_base64(data, newline=False).decode() != text:
        raise fault(place, "not the canonical base64 of its bytes")
    if size is not None and len(data) != size:
        raise fault(place, f"expected {size} bytes in base64, found {len(data)}")
    return data


# The plain way


def _leave(text: str) -> NoReturn:
    raise ValueError(text)


def _whole(text: str) -> int:
    return int(text) if len(text) <= MAX_PLAIN_DIGITS else _leave(text)


_DECODER = json.JSONDecoder(parse_float=_leave, parse_int=_whole, parse_constant=_leave)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False)


def _plain(data: bytes) -> Any:
    """The value of plain canonical bytes; ValueError or RecursionError for all others."""
    text = data.decode()
    value = _parse_plain(text)
    return value if _ENCODER.encode(value) == text else _leave("not canonical")


def _parse_plain(text: str, depth: int = MAX_DEPTH) -> Any:
    """The value of a plain text, canonical if it is written so."""
    value, end = _DECODER.raw_decode(text)
    # Names are sorted by UTF-16 units (RFC 8785, 3.2.3), here by code points: the same up to U+FFFF.
    if not text.isascii() and len(text.encode("utf-16-le")) != 2 * len(text):
        _leave("a character beyond U+FFFF")
    if text.count("{") + text.count("[") > depth and _deeper(value, depth):
        _leave("deep")
    return value if end == len(text) else _leave("something behind it")


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(item, levels - 1) for item in items)


# The careful way


class _RefusedError(Exception):
    """Something that JSON's grammar allows and RFC 8785 does not."""


def _careful(data: bytes, place: str, start: int | None) -> Any:
    def at(offset: int) -> str:
        return place if start is None else f"{place}, byte {start + offset}"

    try:
        text = data.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_number, parse_int=_number, parse_float=_number
        )
        written = encode(value)
    except UnicodeDecodeError as error:
        raise fault(at(error.start), "the bytes are not UTF-8") from error
    except json.JSONDecodeError as error:
        raise fault(at(len(text[: error.pos].encode())), f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise fault(at(0), f"nested deeper than {MAX_DEPTH} levels") from error
    except (_RefusedError, LedgerError) as error:
        raise fault(at(0), str(error)) from error
    if written != data:
        different = (offset for offset, (a, b) in enumerate(zip(data, written, strict=False)) if a != b)
        offset = next(different, min(len(data), len(written)))
        raise fault(at(offset), "the bytes are not in their one canonical form (RFC 8785)")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise _RefusedError(f"the name {name[:40]!r} stands twice in one object")
        value[name] = item
    return value


def _number(text: str) -> int | float:
    """RFC 8785 numbers are IEEE doubles; small integers stay integers so that shapes can be told apart."""
    value = float(text)
    if not float("-inf") < value < float("inf"):
        raise _RefusedError(f"{text[:40]} is not a double")
    is_small_integer = abs(value) <= 2**53 and text.lstrip("-").isdigit()
    return int(value) if is_small_integer else value


def encode(value: Any, depth: int = MAX_DEPTH) -> bytes:
    """RFC 8785 of a JSON value; LedgerError if it is too deep, or a text has half of a surrogate pair."""
    if depth < 0:
        raise LedgerError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return b"{" + b",".join(_encode_text(n) + b":" + encode(value[n], depth - 1) for n in names) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(encode(item, depth - 1) for item in value) + b"]"
    if isinstance(value, str):
        return _encode_text(value)
    if value is None or isinstance(value, bool):
        return {None: b"null", True: b"true", False: b"false"}[value]
    return str(value).encode() if isinstance(value, int) else _encode_float(value)


def _encode_text(text: str) -> bytes:
    try:
        return json.dumps(text, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise LedgerError("a text holds half of a surrogate pair") from error


def _encode_float(value: float) -> bytes:
    """ECMAScript's Number::toString: the shortest digits that read back, exponents outside 1e-6 … 1e21."""
    if value == 0:
        return b"0"
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    point = len(digits) + int(exponent)  # of the decimal point, counted from the first digit
    text = "".join(map(str, digits)).rstrip("0")
    if len(text) <= point <= 21:
        body = text + "0" * (point - len(text))
    elif 0 < point <= 21:
        body = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        body = "0." + "0" * -point + text
    else:
        body = f"{text[0]}{'.' if text[1:] else ''}{text[1:]}e{point - 1:+d}"
    return ("-" * sign + body).encode()
