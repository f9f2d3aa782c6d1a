"""Any number of files, read and scored by a few threads side by side."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch

from oodflow.data.account import Account
from oodflow.data.image_files import printable
from oodflow.detection.detector import Detector
from oodflow.detection.inputs import InputImage, from_file
from oodflow.detection.preprocessing import Preprocessing
from oodflow.models.precision import precision_context

__all__ = ["JudgedFiles", "judged_files", "side_by_side"]

TOGETHER = 512
"""Files that a thread reads, then scores, where their images are small."""

FEW = 32
"""Files of a thread at first, and where images are large: then progress is seen more often."""

SMALL = 128 * 128
"""Pixels up to which reading an image is mostly Python, which one thread at a time runs."""

MOST_THREADS = 8
"""Threads that read for an accelerator."""

MOST_SCORERS = 4
"""Threads that score on the CPU; each needs memory of its own and has a share of the cores."""


@dataclass(frozen=True, eq=False)
class JudgedFiles:
    """Some files in their order: a row each, and what was read of each."""

    rows: pd.DataFrame
    """``file``, then the columns of :meth:`oodflow.detection.detector.Detector.judge`."""
    inputs: list[InputImage]

    def count_remarks(self, account: Account) -> None:
        """Enter what there is to say of the images."""
        for name, each in zip(self.rows["file"], self.inputs, strict=True):
            for kind in each.remarks:
                account.remark(kind, name)


def judged_files(
    detector: Detector,
    files: Iterable[Path],
    alpha: float | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Iterator[JudgedFiles]:
    """The files in their order, some at a time, a row for every one.

    ``alpha`` as in :meth:`oodflow.detection.detector.Detector.judge`; ``on_progress`` gets the
    number of files so far. The memory needed does not grow with the number of files.
    """
    done = 0

    def judge(inputs: Sequence[InputImage], on_batch: Callable[[int], None]) -> pd.DataFrame:
        return detector.judge(inputs, alpha, on_batch)

    for part, inputs, rows in side_by_side(files, detector.preprocessing, detector.device, judge):
        rows.insert(0, "file", [printable(file) for file in part])
        yield JudgedFiles(rows, inputs)
        done += len(part)
        on_progress(done)


Part = tuple[list[Path], list[InputImage], pd.DataFrame]


def side_by_side(
    files: Iterable[Path],
    preprocessing: Preprocessing,
    device: torch.device | str,
    score: Callable[[Sequence[InputImage], Callable[[int], None]], pd.DataFrame],
) -> Iterator[Part]:
    """Some files, what is read of them, and ``score`` of that, in the order of the files.

    Each thread reads some files and scores them itself, with its share of the cores: threads that
    compute one batch together wait for the one whose core reads a file. An accelerator scores for
    one thread at a time. How many files come together depends on the files alone, so that no number
    depends on the time that anything takes. ``score`` calls its second argument after each batch,
    which raises CancelledError where the rows are no longer wanted.
    """
    on_cpu = torch.device(device).type == "cpu"
    scorer: AbstractContextManager[Any] = nullcontext() if on_cpu else threading.Lock()
    reader, stopped = threading.Lock(), threading.Event()

    def go_on(done: int = 0) -> None:
        if stopped.is_set():
            raise CancelledError

    def task(part: list[Path], small: bool) -> Part:
        inputs = []
        # Threads that take turns within a small image lose more than they gain.
        with reader if small else nullcontext():
            for file in part:
                go_on()
                inputs.append(from_file(file, preprocessing))
        with scorer:
            return part, inputs, score(inputs, go_on)

    remaining, waiting, small = iter(files), deque[Future[Part]](), False
    with _threads(on_cpu) as (pool, count):

        def submit() -> None:
            if part := list(islice(remaining, TOGETHER if small else FEW)):
                waiting.append(pool.submit(task, part, small))

        try:
            for _ in range(2 * count):
                submit()
            while waiting:
                done = waiting.popleft().result()
                small = median(each.size[0] * each.size[1] for each in done[1]) <= SMALL
                submit()
                yield done
        finally:
            stopped.set()


@contextmanager
def _threads(on_cpu: bool) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Threads, and how many; on the CPU they share those with which torch computes."""
    if not on_cpu:
        count = min(MOST_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(count) as pool:
            yield pool, count
        return
    together = torch.get_num_threads()
    count = min(MOST_SCORERS, together)
    share = together // count
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(share,))
    try:
        # Each thread sets the precision and restores what it found, which is this.
        with precision_context("fp32", torch.device("cpu")), pool:
            yield pool, count
    finally:
        # It is not a thread's alone.
        torch.set_num_threads(together)
