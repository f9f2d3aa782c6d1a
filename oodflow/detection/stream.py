"""Decisions over any number of files: read ahead by threads while the models score."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd

from oodflow.data.account import Account
from oodflow.data.image_files import printable
from oodflow.detection.detector import Detector
from oodflow.detection.inputs import InputImage, from_file
from oodflow.detection.preprocessing import Preprocessing

__all__ = ["JudgedFiles", "judged_files", "read_ahead"]

TOGETHER = 4096
"""Files whose rows come together: fewer at a time make scoring wait for reading more often."""

PART = 32
"""Files that a thread reads at a time: a task costs more than to read a small image."""

AHEAD = 1
"""Batches that are read, or being read, while one is scored."""


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
    """The files in batches of :data:`TOGETHER`, a row for every one.

    ``alpha`` as in :meth:`oodflow.detection.detector.Detector.judge`; ``on_progress`` gets the
    number of files so far. The memory needed does not grow with the number of files.
    """
    done = 0
    for batch, inputs in read_ahead(iter(files), detector.preprocessing):
        rows = detector.judge(inputs, alpha)
        rows.insert(0, "file", [printable(file) for file in batch])
        yield JudgedFiles(rows, inputs)
        done += len(batch)
        on_progress(done)


def read_ahead(
    files: Iterator[Path], preprocessing: Preprocessing
) -> Iterator[tuple[list[Path], list[InputImage]]]:
    """The files and what is read of them, :data:`TOGETHER` at a time."""

    def read_part(part: list[Path]) -> list[InputImage]:
        return [from_file(file, preprocessing) for file in part]

    def collected(tasks: list[Future[list[InputImage]]]) -> list[InputImage]:
        return [each for task in tasks for each in task.result()]

    waiting: deque[tuple[list[Path], list[Future[list[InputImage]]]]] = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while batch := list(islice(files, TOGETHER)):
            parts = [batch[start : start + PART] for start in range(0, len(batch), PART)]
            waiting.append((batch, [pool.submit(read_part, part) for part in parts]))
            if len(waiting) > AHEAD:
                oldest, tasks = waiting.popleft()
                yield oldest, collected(tasks)
        for oldest, tasks in waiting:
            yield oldest, collected(tasks)
