"""Progress of a study, for people: bars on a terminal, plain lines in a file, nothing for machines.

Everything goes to stderr; stdout belongs to results. Names and reasons may come from members, so control
characters in them are made visible instead of being obeyed by the terminal.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

PHASES: Final = ("roll call", "evidence", "pool", "ballots", "adopt", "effects", "training", "evaluate", "release")
QUARANTINE: Final = "quarantine"
WAITING: Final = "waiting"  # for members that are needed and not there


@dataclass(frozen=True)
class Event:
    """Something that happened in a study.

    `phase` is one of `PHASES` (or another word), or `QUARANTINE` or `WAITING`: then `message` says who and why, and
    stays on the screen. `done` of `total` counts members, or rounds in training. A phase is over when it is done, or
    when another has begun.
    """

    phase: str
    message: str
    done: int | None = None
    total: int | None = None


class Progress:
    """A sink for events: ``with Progress() as progress: progress(Event("evidence", "waiting", 7, 10))``.

    On a terminal each phase has a row that is updated in place; elsewhere each event is one line, and an
    event that says what the last one said is left out. `quiet` shows nothing at all. Without `with` there
    are only lines.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self._console = console if console is not None else Console(stderr=True)
        self._quiet = quiet
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last = ""

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            self._bars = Bars(*_columns(), console=self._console)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is None:
            return
        if error is None:
            self._finish_others(None)
        self._bars.stop()
        self._bars = None

    def __call__(self, event: Event) -> None:
        if self._quiet:
            return
        if self._bars is None or event.phase in (QUARANTINE, WAITING):
            self._line(event)
        else:
            self._update(self._bars, event)

    def _line(self, event: Event) -> None:
        count = "" if event.done is None and event.total is None else f" {_count(event.done, event.total)}"
        line = f"{_visible(event.phase)}{count}: {_visible(event.message)}"
        if line != self._last:
            style = "bold red" if event.phase == QUARANTINE else ""
            self._console.print(Text(line, style=style), soft_wrap=True)
        self._last = line

    def _update(self, bars: Bars, event: Event) -> None:
        if event.phase not in self._tasks:
            self._finish_others(event.phase)
            self._tasks[event.phase] = bars.add_task(_visible(event.phase), total=None, note="", count="")
        known = event.total is not None
        bars.update(
            self._tasks[event.phase],
            total=event.total if known else None,
            completed=event.done if event.done is not None else None,
            note=_visible(event.message),
            count=_count(event.done, event.total) if known or event.done is not None else "",
        )

    def _finish_others(self, phase: str | None) -> None:
        """A phase that has begun means that the ones before it are over, counted or not."""
        if self._bars is None:
            return
        for task in self._bars.tasks:
            if not task.finished and self._tasks.get(phase or "") != task.id:
                self._bars.update(task.id, total=task.total or 1, completed=task.total or 1)


class _Note(TextColumn):
    """A column of plain text: nothing in a message is read as markup."""

    def __init__(self, field: str, style: str = "") -> None:
        super().__init__("", style=style, markup=False)
        self._field = field

    def render(self, task: Task) -> Text:
        return Text(str(task.fields[self._field]), style=str(self.style))


class _Phase(TextColumn):
    def __init__(self) -> None:
        super().__init__("", markup=False)

    def render(self, task: Task) -> Text:
        return Text(f"{task.description:<10}", style="green" if task.finished else "bold")


def _columns() -> list[ProgressColumn]:
    spinner = SpinnerColumn(finished_text=Text("✓", style="green"))
    counts = [BarColumn(bar_width=24), _Note("count"), TimeElapsedColumn()]
    return [spinner, _Phase(), *counts, _Note("note", "dim")]


def _count(done: int | None, total: int | None) -> str:
    return f"{'?' if done is None else done}/{'?' if total is None else total}"


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
