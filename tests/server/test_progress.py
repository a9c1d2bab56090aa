"""What would leave a person in the dark, or put noise where a program reads."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from causaldao.server.progress import QUARANTINE, Event, Progress


def plain() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=60), stream


def terminal() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=120, force_terminal=True, color_system=None), stream


def test_a_file_is_filled_with_control_codes() -> None:
    console, stream = plain()
    with Progress(console) as progress:
        progress(Event("roll call", "waiting: 7 of 10 members", 7, 10))
        progress(Event("training", "round 3 of 8", 3, 8))
        progress(Event("adopt", "graph adopted"))
    assert stream.getvalue().splitlines() == [
        "roll call 7/10: waiting: 7 of 10 members",
        "training 3/8: round 3 of 8",
        "adopt: graph adopted",
    ]


def test_the_same_state_fills_the_log() -> None:
    console, stream = plain()
    with Progress(console) as progress:
        for _ in range(100):
            progress(Event("evidence", "waiting: 7 of 10 members", 7, 10))
        progress(Event("evidence", "waiting: 8 of 10 members", 8, 10))
    assert len(stream.getvalue().splitlines()) == 2


def test_a_long_reason_is_broken_over_lines() -> None:
    console, stream = plain()
    with Progress(console) as progress:
        progress(Event(QUARANTINE, "clinic-3: " + "the norm of the update is not finite " * 5))
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("make", [plain, terminal])
def test_a_quarantine_is_not_said(make: object) -> None:
    console, stream = terminal() if make is terminal else plain()
    with Progress(console) as progress:
        progress(Event("training", "round 1 of 8", 1, 8))
        progress(Event(QUARANTINE, "clinic-3: signature does not verify"))
        progress(Event("training", "round 2 of 8", 2, 8))
    assert "quarantine: clinic-3: signature does not verify" in stream.getvalue()


def test_a_waiting_phase_is_silent_on_a_terminal() -> None:
    console, stream = terminal()
    with Progress(console) as progress:
        progress(Event("roll call", "waiting: 7 of 10 members", 7, 10))
        progress(Event("evidence", "pooling"))
        progress(Event("training", "round 2 of 8", 2, 8))
    last = stream.getvalue().replace("\r", "\n")
    assert "waiting: 7 of 10 members" in last
    assert "7/10" in last
    assert "round 2 of 8" in last
    assert "\x1b[?25h" in last, "the cursor is not given back"


def last_rows(stream: io.StringIO) -> str:
    """The screen as it was left: what follows the last clearing of lines, without control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", re.split(r"\x1b\[1A\x1b\[2K", stream.getvalue())[-1])


def test_a_phase_that_failed_is_ticked_off() -> None:
    console, stream = terminal()

    def fail() -> None:
        with Progress(console) as progress:
            progress(Event("roll call", "asking"))
            progress(Event("evidence", "waiting: 2 of 10 members", 2, 10))
            raise TimeoutError

    with pytest.raises(TimeoutError):
        fail()
    first, second = last_rows(stream).strip().splitlines()
    assert first.startswith("✓ roll call")
    assert "evidence" in second
    assert "2/10" in second
    assert "✓" not in second


def test_a_phase_that_is_over_is_not_ticked_off() -> None:
    console, stream = terminal()
    with Progress(console) as progress:
        progress(Event("evidence", "asking"))
        progress(Event("pool", "comparing"))
    rows = last_rows(stream).strip().splitlines()
    assert [row[:10] for row in rows] == ["✓ evidence", "✓ pool    "]


@pytest.mark.parametrize("make", [plain, terminal])
def test_quiet_says_something(make: object) -> None:
    console, stream = terminal() if make is terminal else plain()
    with Progress(console, quiet=True) as progress:
        progress(Event("evidence", "waiting", 1, 2))
        progress(Event(QUARANTINE, "clinic-3: bad"))
    assert stream.getvalue() == ""


def test_standard_output_is_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress(Event("evidence", "waiting", 1, 2))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "evidence 1/2: waiting\n"


@pytest.mark.parametrize("make", [plain, terminal])
def test_a_members_text_drives_the_terminal(make: object) -> None:
    console, stream = terminal() if make is terminal else plain()
    hostile = "clinic-3: \x1b]0;owned\x07\x1b[2J[bold red]loud[/] [/nonsense] :warning:\r\nfake line"
    with Progress(console) as progress:
        progress(Event("evidence", hostile, 1, 2))
        progress(Event(QUARANTINE, hostile))
        progress(Event("[red]phase\x1b[2J", hostile))
    written = stream.getvalue()
    assert "\x1b]0;" not in written
    assert "\x1b[2J" not in written
    assert "[bold red]loud[/] [/nonsense] :warning:" in written
    assert "\nfake line" not in written


def test_an_event_outside_the_context_is_lost() -> None:
    console, stream = terminal()
    Progress(console)(Event("release", "done"))
    assert "release: done" in stream.getvalue()
