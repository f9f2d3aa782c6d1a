"""What people see in the terminal: lines, a live progress bar, tables. Results go to stdout."""

import json
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "say_json",
    "show",
    "show_rows",
]


SECONDS_BETWEEN_DRAWINGS = 0.2
"""Seconds between two drawings of a bar, at least."""

WIDTH_WITHOUT_TERMINAL = 160
"""Columns in a log file, where no window limits a table."""

LEAST = 24
"""Characters for a text that a table breaks, before columns are left out for it."""

UNITS = (
    ("ms", 1e-3, 1.0),
    ("s", 1.0, 120.0),
    ("min", 60.0, 7200.0),
    ("h", 3600.0, 172_800.0),
    ("days", 86_400.0, math.inf),
)
"""Unit, its seconds, and the duration from which on the next one is used."""


COPIED = re.compile(r"://|`|--\w|\boodflow \w")
"""What people copy from a line: it would be broken by the end of a line within it."""


def say(line: str) -> None:
    """One line for the reader, as it is: nothing in it is taken for markup.

    A terminal shows it in lines that end between words, unless there is something to copy in it.
    """
    console, said = _console(), without_secrets(line)
    if console.is_terminal and not COPIED.search(said):
        said = textwrap.fill(said, console.width, break_long_words=False, break_on_hyphens=False)
    _print(said, markup=False, highlight=False, soft_wrap=True)


def show(table: "Table") -> None:
    """A results table, in its full width where no terminal limits it; else cells get more lines."""
    for column in table.columns:
        column.overflow = "fold"
    _print(table)


def say_json(values: Any) -> None:
    """Values as JSON for another program, without colours; what is not finite is null."""
    say(json.dumps(_finite(values), indent=2, ensure_ascii=False, default=str))


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return list(map(_finite, values))
    return None if isinstance(values, float) and not math.isfinite(values) else values


def show_rows(rows: Sequence[Mapping[str, str]], wrapped: str, less: Sequence[str]) -> None:
    """Rows of the same columns as a table in which only the column ``wrapped`` is broken.

    Empty columns are hidden. Where the terminal is too narrow, columns of ``less`` are left out in
    their order, and a line says so.
    """
    from rich.table import Table

    widths = {key: max(len(row[key]) for row in rows) for key in rows[0]}
    widths = {key: max(width, len(key)) + 3 for key, width in widths.items() if width}
    widths[wrapped] = min(widths[wrapped], LEAST + 3)
    table, left_out = Table(), []
    for key in less:
        if key in widths and sum(widths.values()) >= _console().width:
            del widths[key]
            left_out.append(key)
    for key in widths:
        table.add_column(key, no_wrap=key != wrapped)
    for row in rows:
        table.add_row(*(row[key] for key in widths))
    show(table)
    if left_out:
        say(f"not shown: {', '.join(left_out)}; a wider terminal and --json show all")


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
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Name(TextColumn):
        """The name, whose end is left out where the terminal is too narrow for the numbers."""

        def render(self, task: Task) -> Text:
            return Text(task.description, no_wrap=True, overflow="ellipsis")

    console = _console(stderr=True)
    whole = Column(no_wrap=True)
    bars = Progress(
        # Columns that wrap are those that rich makes narrower.
        Name("", table_column=Column()),
        BarColumn(bar_width=min(40, console.width // 8), table_column=whole),
        TextColumn("{task.completed}/{task.total}  {task.fields[rate]}"),
        TimeRemainingColumn(table_column=whole),
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
