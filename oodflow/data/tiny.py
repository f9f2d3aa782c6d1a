"""80 Million Tiny Images: a seeded subset of 1 000 000 images, read from the one file (S5.1).

On disk: ``tiny_images.bin``, 79 302 017 records of 3072 bytes and nothing else. A record is a
32×32×3 image in column-major order: the row runs fastest, then the column, then the channel.

The subset is 15 625 runs of 64 consecutive records, a seeded choice among all whole runs, in the
order of the file; 80 % of the runs are for training. The authors' code takes 24 415.
Records of the subset that an exclusion file names are left out, others do not take their place.
An exclusion file has one number a line, from 1 as in the published lists of the images that are
also in CIFAR; 0 stands there for an image that was not found.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodflow.data.source import SPLIT_SEED, Fold, Piece, Raw, Request, in_test_fold
from oodflow.errors import UserError

__all__ = ["RUNS", "chosen_runs", "read", "read_subset"]

NAME = "tiny_images.bin"
RECORDS = 79_302_017
RECORD_BYTES = 3072
RUN = 64
"""Consecutive records that are taken together: neighbours came from one word, and one read."""
RUNS = 15_625
RUNS_AT_ONCE = 64
"""Runs in a piece: 4096 images, 12 MB."""


def read(request: Request) -> Raw:
    """Both folds of the subset, without labels."""
    path = request.path / NAME if request.path.is_dir() else request.path
    return read_subset(path, RUNS, request.exclude)


def read_subset(path: Path, runs: int, exclude: Sequence[Path]) -> Raw:
    """Both folds of a subset of so many runs of the file ``path``."""
    _check_size(path)
    excluded = np.unique(np.concatenate([np.empty(0, np.int64), *map(_numbers, exclude)]))
    chosen = chosen_runs(runs)
    test = in_test_fold(runs * RUN, run=RUN)[::RUN]
    return Raw(
        {
            name: _fold(path, name, chosen[test == held_out], excluded)
            for name, held_out in (("train", False), ("test", True))
        }
    )


def chosen_runs(runs: int) -> NDArray[np.int64]:
    """Which runs of 64 records the subset takes, ascending; run i starts at record 64·i.

    >>> chosen_runs(3).tolist() == sorted(chosen_runs(3).tolist())
    True
    """
    return np.sort(np.random.default_rng(SPLIT_SEED).choice(RECORDS // RUN, runs, replace=False))


def _check_size(path: Path) -> None:
    expected = RECORDS * RECORD_BYTES
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {NAME} is needed") from error
    if size != expected:
        raise UserError(f"{path} has {size} bytes instead of {expected}: incomplete or not {NAME}")


def _numbers(path: Path) -> NDArray[np.int64]:
    """The records that a file excludes, counted from 0."""
    numbers = []
    try:
        with path.open(encoding="ascii") as lines:
            for at, line in enumerate(lines, start=1):
                if text := line.strip():
                    numbers.append(_number(path, at, text))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file with one number a line") from error
    found = np.array(numbers, np.int64)
    return found[found > 0] - 1


def _number(path: Path, at: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= RECORDS:
        raise UserError(
            f"{path} line {at}: {text[:40]!r} is not the number of a record, 0 to {RECORDS}"
        )
    return number


def _fold(path: Path, name: str, runs: NDArray[np.int64], excluded: NDArray[np.int64]) -> Fold:
    # A list names records of the whole file, of which few are in the subset.
    excluded = excluded[np.isin(excluded // RUN, runs)]
    total = RUN * len(runs) - len(excluded)
    if total == 0:
        raise UserError(f"nothing of the {name} fold of {path} is left after the exclusions")

    def pieces() -> Iterator[Piece]:
        with path.open("rb") as stream:
            for start in range(0, len(runs), RUNS_AT_ONCE):
                part = runs[start : start + RUNS_AT_ONCE]
                records = (RUN * part[:, None] + np.arange(RUN)).ravel()
                pixels = _read_runs(path, stream, part)[~np.isin(records, excluded)]
                if len(pixels):
                    yield Piece(pixels)

    return Fold(total, pieces)


def _read_runs(path: Path, stream, runs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The images of some runs, N×3×32×32."""
    # Plain reads: the pages of a memory map would count as memory of the process.
    records = np.empty((len(runs), RUN * RECORD_BYTES), np.uint8)
    for row, run in zip(records, runs.tolist(), strict=True):
        stream.seek(run * RUN * RECORD_BYTES)
        if stream.readinto(row.data) != len(row):
            raise UserError(f"{path} became shorter while it was read")
    return records.reshape(-1, 3, 32, 32).swapaxes(2, 3)
