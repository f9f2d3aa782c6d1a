"""What people see in the terminal: lines, a live progress bar, tables. Results go to stdout."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from oodflow.errors import without_secrets

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Board",
    "any_text",
    "board",
    "drawn",
    "duration",
    "error",
    "listening",
    "progress",
    "say",
    "show",
]


SECONDS_BETWEEN_DRAWINGS = 0.2
"""Seconds between two drawings of a bar, at least."""

WIDTH_WITHOUT_TERMINAL = 160
"""Columns in a log file, where no window limits a table."""

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
    _print(without_secrets(line), markup=False, highlight=False, soft_wrap=True)


def show(table: "Table") -> None:
    """A results table, in its full width where no terminal limits it."""
    _print(table)


def error(line: str) -> None:
    """One line on stderr that says what is wrong."""
    said = f"error: {without_secrets(line)}"
    _print(said, stderr=True, markup=False, highlight=False, soft_wrap=True)


def any_text() -> None:
    """Let stdout and stderr take any text: what their encoding does not have is spelled out."""
    for stream in (sys.stdout, sys.stderr):
        # In the C locale errors are "surrogateescape", which spells out no letter.
        strict = getattr(stream, "errors", "") in ("strict", "surrogateescape")
        if strict and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print(what: Any, stderr: bool = False, **how: Any) -> None:
    """Print; where nobody reads any more, or the disk is full, a line is lost and nothing else."""
    any_text()
    stream = sys.stderr if stderr else sys.stdout
    try:
        _console(stderr).print(what, **how)
    # rich ends the process where a pipe is closed; a closed stream is a ValueError.
    except (OSError, ValueError, SystemExit) as error:
        if isinstance(error, ValueError) and not getattr(stream, "closed", True):
            raise
        # What waits in the stream's buffer would raise again when the process ends.
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def _console(stderr: bool = False) -> Any:
    # Imported late: the command line prints its help without rich.
    from rich.console import Console

    console = Console(stderr=stderr, emoji=False)
    if not _watched(console):
        console.width = WIDTH_WITHOUT_TERMINAL
    return console


def _watched(console: Any) -> bool:
    """Whether somebody watches while it works: in a terminal, or in a notebook that can draw.

    rich draws in a notebook by a widget of ipywidgets, and only warns where it is not there.
    """
    return console.is_terminal or console.is_jupyter and find_spec("ipywidgets") is not None


Board = Callable[..., None]
"""``draw(name, done, total, note)`` shows a bar, and ``draw(name)`` takes it away."""

Listener = Callable[[int, int | None, str], None]

_listener: Listener | None = None


@contextmanager
def board() -> Iterator[Board]:
    """Bars on stderr with rate and time left, one for each name; none where nobody watches."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = _console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[note]}"),
        console=console,
        transient=True,
        disable=not _watched(console),
    )
    with bars:
        known: dict[str, Any] = {}

        def draw(name: str, done: int | None = None, total: int | None = None, note: str = ""):
            if done is None:
                if name in known:
                    bars.remove_task(known.pop(name))
                return
            if name not in known:
                known[name] = bars.add_task(name, total=total, completed=done, rate="", note="")
            speed = bars.tasks[bars.task_ids.index(known[name])].speed
            rate = f"{speed:.1f}/s" if speed else ""
            bars.update(known[name], completed=done, total=total, note=note, rate=rate)

        # Where nothing is drawn, nothing has to be computed either.
        yield (lambda *_: None) if bars.disable else draw


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send progress to a listener in place of a bar: ``listener(done, total, note)``."""
    global _listener
    _listener = listener
    try:
        yield
    finally:
        _listener = None


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A bar with rate and time left; yields ``advance(done, note, total)``.

    ``note`` makes the text behind the bar. It is called only when the bar is drawn, since a number
    in it may have to come from the device. A total of 0 means that it is not known yet. Where
    nobody watches nothing is drawn, so that logs hold lines only.
    """
    if _listener:
        yield _throttled(_listener, total or None)
        return
    with board() as draw:
        draw(what, done, total or None, "")
        yield _throttled(lambda *said: draw(what, *said), total or None, idle=not drawn())


def _throttled(show: Listener, known: int | None, idle: bool = False) -> Callable[..., None]:
    """``advance`` of :func:`progress`, which shows something a few times a second at most."""
    shown = 0.0

    def advance(done: int, note: Callable[[], str] = str, total: int | None = None) -> None:
        nonlocal shown
        if idle or time.monotonic() < shown + SECONDS_BETWEEN_DRAWINGS:
            return
        shown = time.monotonic()
        show(done, total or known, note())

    return advance


def drawn() -> bool:
    """Whether there is something to draw bars on."""
    return bool(_watched(_console(stderr=True)))


def duration(seconds: float) -> str:
    """A duration in words, to about two digits.

    >>> [duration(seconds) for seconds in (0.0412, 8.2, 95, 4020, 4e5)]
    ['41 ms', '8.2 s', '95 s', '67 min', '4.6 days']
    """
    unit, length = next((unit, length) for unit, length, end in UNITS if seconds < end)
    amount = seconds / length
    return f"{amount:.{int(amount < 9.95)}f} {unit}"
