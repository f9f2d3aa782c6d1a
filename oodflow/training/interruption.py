"""When a running training is saved: with its reports, every ten minutes, and on interruption."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from oodflow.training.distributed import world

__all__ = ["INTERVAL", "Checkpoints"]

INTERVAL = 600.0
"""Seconds after which a training is saved though no report is due."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Checkpoints:
    """As a context, lets the first SIGINT or SIGTERM wait until the training has been saved.

    The second one acts at once. So does the first where several processes train together: they
    would receive it after different updates, and each has sums over its own images. They are saved
    with their reports only.
    """

    def __init__(self, save: Callable[[], None]) -> None:
        """``save()`` writes the state between two updates."""
        self._save = save
        self._last = time.monotonic()
        self._asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Checkpoints":
        if world() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._ask) for each in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        self._pass_on()

    def save(self) -> None:
        """Save now, and end the training if that was asked for."""
        self._save()
        self._last = time.monotonic()
        self._pass_on()

    def between_updates(self) -> None:
        """Save if the training is to end, or if the last save was long ago."""
        if world() == 1 and (self._asked or time.monotonic() - self._last > INTERVAL):
            self.save()

    def _ask(self, number: int, _: FrameType | None) -> None:
        self._restore()
        self._asked = number

    def _pass_on(self) -> None:
        """Let the waiting signal act as it would have done."""
        asked, self._asked = self._asked, 0
        if not asked:
            return
        handler = signal.getsignal(asked)
        if callable(handler):
            # Called, not raised: a Ray worker blocks SIGINT and is interrupted by Ray itself.
            handler(asked, None)
        else:
            signal.raise_signal(asked)

    def _restore(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}
