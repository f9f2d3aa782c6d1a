"""What people see in the terminal: lines, a live progress bar, tables. Results go to stdout."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["duration", "error", "progress", "say", "show"]


SECONDS_BETWEEN_DRAWINGS = 0.2
"""A bar is drawn no oftener."""

WIDTH_WITHOUT_TERMINAL = 160
"""Columns in a log file, where nobody's window limits a table."""

UNITS = (
    ("ms", 1e-3, 1.0),
    ("s", 1.0, 120.0),
    ("min", 60.0, 7200.0),
    ("h", 3600.0, 172_800.0),
    ("days", 86_400.0, math.inf),
)
"""Unit, its seconds, and the duration from which on the next one is used."""


def say(line: str) -> None:
    """One line for the reader, as it is: nothing in it is taken for markup."""
    _console().print(line, markup=False, highlight=False, soft_wrap=True)


def show(table: "Table") -> None:
    """A results table, in its full width where no terminal limits it."""
    _console().print(table)


def error(line: str) -> None:
    """One line on stderr that says what is wrong."""
    _console(stderr=True).print(f"error: {line}", markup=False, highlight=False, soft_wrap=True)


def _console(stderr: bool = False) -> Any:
    # Imported late: the command line prints its help without rich.
    from rich.console import Console

    console = Console(stderr=stderr, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH_WITHOUT_TERMINAL
    return console


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A bar with rate and time left on stderr; yields ``advance(done, note, total)``.

    ``note`` makes the text behind the bar. It is called only when the bar is drawn, since a number
    in it may have to come from the device. A total of 0 is not known yet. Without
    a terminal nothing is drawn, so that logs hold lines only.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = _console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=total or None, completed=done, rate="", note="")

        shown = 0.0

        def advance(done: int, note: Callable[[], str] = str, total: int | None = None) -> None:
            nonlocal shown
            if bar.disable or time.monotonic() < shown + SECONDS_BETWEEN_DRAWINGS:
                return
            shown = time.monotonic()
            speed = bar.tasks[0].speed
            rate = f"{speed:.1f}/s" if speed else ""
            bar.update(task, completed=done, note=note(), rate=rate, total=total)

        yield advance


def duration(seconds: float) -> str:
    """A duration in words, to about two digits.

    >>> [duration(seconds) for seconds in (0.0412, 8.2, 95, 4020, 4e5)]
    ['41 ms', '8.2 s', '95 s', '67 min', '4.6 days']
    """
    unit, length = next((unit, length) for unit, length, end in UNITS if seconds < end)
    amount = seconds / length
    return f"{amount:.{int(amount < 9.95)}f} {unit}"
