"""Logs: a peer forges a line, a field hides the time, Flower writes past us, a value breaks the JSON."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from causaldao.errors import MisuseError
from causaldao.logs import FORMATS, MAX_TEXT, configure, visible

LOG = logging.getLogger("causaldao.tests.logs")
HOSTILE = 'north\n{"level": "error"}\r\x1b[2K\u202eevil\u2028\x00\x9b\ud800'


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is one per process: leave it as it was."""
    loggers = [logging.getLogger(), logging.getLogger("flwr")]
    before = [(one, list(one.handlers), one.level, one.propagate) for one in loggers]
    yield
    for one, handlers, level, propagate in before:
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


def _stream(format: str = "json", level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure(format, level, stream)
    return stream


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_of_json_lacks_a_key() -> None:
    stream = _stream()
    LOG.warning("reply of %s refused", "north", extra={"fields": {"code": "budget", "round": 3, "late": True}})
    (line,) = _lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning", "logger": "causaldao.tests.logs", "message": "reply of north refused", "code": "budget",
        "round": 3, "late": True,
    }  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_a_peer_forges_a_line(format: str) -> None:
    stream = _stream(format)
    LOG.info("from %s", HOSTILE, extra={"fields": {HOSTILE: HOSTILE}})
    written = stream.getvalue()
    assert written.count("\n") == 1
    assert written.endswith("\n")
    assert written[:-1].isprintable()
    assert len(written.splitlines()) == 1
    stream.getvalue().encode("utf-8")


def test_a_reader_that_decodes_the_json_is_deceived() -> None:
    """`jq -r .message` prints the decoded text: the escapes must survive one decoding."""
    stream = _stream()
    LOG.info(HOSTILE)
    message = _lines(stream)[0]["message"]
    assert message.isprintable()
    assert message.startswith("north\\n{")
    assert "\\x1b[2K\\u202eevil\\u2028\\x00\\x9b\\ud800" in message


def test_a_name_of_many_alphabets_is_escaped() -> None:
    assert visible("Zürich, 東京, Αθήνα") == "Zürich, 東京, Αθήνα"


def test_a_character_beyond_the_first_plane() -> None:
    assert visible("\U000e0001") == "\\U000e0001"


def test_a_peer_fills_the_disk_with_one_message() -> None:
    assert visible("x" * MAX_TEXT) == "x" * MAX_TEXT
    shown = visible("x" * (MAX_TEXT + 7))
    assert shown.startswith("x" * MAX_TEXT)
    assert shown.endswith("… (7 more characters)")


def test_a_field_takes_the_place_of_the_level() -> None:
    stream = _stream()
    LOG.error("true", extra={"fields": {"level": "info", "message": "false", "time": 0}})
    (line,) = _lines(stream)
    assert (line["level"], line["message"]) == ("error", "true")
    assert (line["field_level"], line["field_message"], line["field_time"]) == ("info", "false", 0)


def test_a_field_that_json_cannot_say() -> None:
    stream = _stream()
    LOG.info("x", extra={"fields": {"nan": float("nan"), "much": float("inf"), "set": {1}, "none": None, "half": 0.5}})
    (line,) = _lines(stream)
    assert (line["nan"], line["much"], line["set"], line["none"], line["half"]) == ("nan", "inf", "{1}", None, 0.5)


@pytest.mark.parametrize("format", FORMATS)
def test_a_traceback_breaks_the_line_or_shows_a_row(format: str) -> None:
    def fails(row: str) -> None:
        raise ValueError("the cause")

    stream = _stream(format)
    try:
        fails("a row's " + "value")
    except ValueError:
        LOG.exception("it failed")
    written = stream.getvalue()
    assert written.count("\n") == 1
    assert "ValueError: the cause" in written
    assert "a row's value" not in written
    if format == "json":
        assert "Traceback" in json.loads(written)["exception"]


def test_the_text_cannot_be_read() -> None:
    stream = _stream("text")
    LOG.warning("reply refused", extra={"fields": {"member": "north", "why": "no budget", "empty": ""}})
    line = stream.getvalue().split(" ", 1)[1]
    assert line == 'WARNING causaldao.tests.logs: reply refused member=north why="no budget" empty=""\n'


def test_flower_writes_past_us(capsys: pytest.CaptureFixture[str]) -> None:
    from flwr.common.logger import log

    stream = _stream()
    log(logging.INFO, "from\nFlower")
    log(logging.DEBUG, "too much")
    LOG.debug("too much")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert [(line["logger"], line["message"]) for line in _lines(stream)] == [("flwr", "from\\nFlower")]


def test_configured_twice_each_line_comes_twice() -> None:
    first, second = _stream(), _stream("text")
    LOG.info("once")
    logging.getLogger("flwr").info("once")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 2


def test_the_level_is_not_heeded() -> None:
    stream = _stream(level="error")
    LOG.warning("quiet")
    LOG.error("loud")
    assert [line["message"] for line in _lines(stream)] == ["loud"]


@pytest.mark.parametrize(("format", "level"), [("xml", "info"), ("json", "loud")])
def test_a_format_or_level_that_does_not_exist(format: str, level: str) -> None:
    before = list(logging.getLogger().handlers)
    with pytest.raises(MisuseError, match="choose one of"):
        configure(format, level)
    assert logging.getLogger().handlers == before


def test_without_a_stream_it_is_not_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    LOG.info("here")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["message"] == "here"
