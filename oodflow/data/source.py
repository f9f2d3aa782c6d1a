"""The interface of every source: the folds of a dataset, read from its raw files in pieces.

A source module has one function ``read(request) -> Raw``. It checks at once what it can check
cheaply (files there, sizes right, at least one image) and reads lazily, so that memory stays small
whatever the size of the dataset. :mod:`oodflow.data.prepared` writes what it yields.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodflow.data.account import Account
from oodflow.data.catalog import Dataset
from oodflow.errors import UserError

__all__ = [
    "Fold",
    "Piece",
    "Raw",
    "Request",
    "in_test_fold",
    "lowest_hashes",
    "refuse_broken",
    "to_grey",
]

SPLIT_SEED = 20191203
"""Seed of the splits that the makers of a dataset did not make (the authors' seed for Tiny)."""


def refuse_broken(which: str, why: str) -> None:
    """An unreadable image ends the preparation."""
    raise UserError(f"{which} cannot be read ({why}); repair or remove it, or use --skip-broken")


@dataclass(frozen=True)
class Request:
    """What is to be read."""

    facts: Dataset
    path: Path
    """Folder or file with the raw data, absolute."""
    on_broken: Callable[[str, str], None] = refuse_broken
    """Called with an unreadable image's name and the reason; where it returns, it is left out."""
    exclude: tuple[Path, ...] = ()
    """Tiny Images: files with the numbers of records to leave out."""
    account: Account = field(default_factory=Account)
    """What is left out without being broken, and what is odd, is counted here."""


@dataclass(frozen=True)
class Piece:
    """Some consecutive images of a fold, with their labels where there are any.

    >>> len(Piece(np.zeros((5, 3, 32, 32), np.uint8)).pixels)
    5
    """

    pixels: NDArray[np.uint8]
    """N×C×32×32."""
    labels: NDArray[np.int64] | None = None
    """N, from 0; None where the dataset has no labels."""
    files: tuple[str, ...] | None = None
    """The N images' files, relative to the folder; None where an image is no file."""


@dataclass(frozen=True)
class Fold:
    """One fold: how many images it has at most, and the images in their order.

    >>> fold = Fold(5, lambda: iter([Piece(np.zeros((5, 3, 32, 32), np.uint8))]))
    >>> sum(len(piece.pixels) for piece in fold.pieces())
    5
    """

    total: int
    pieces: Callable[[], Iterator[Piece]]


@dataclass(frozen=True)
class Raw:
    """A dataset as its raw files define it: what a source reads, fold by fold.

    >>> Raw({"test": Fold(0, lambda: iter([]))}).classes
    ()
    """

    folds: Mapping[str, Fold]
    """``train`` and ``test``, or ``test`` alone for a set that only serves as outliers."""
    classes: tuple[str, ...] = field(default=())
    """Names of the classes where the files say them."""


def in_test_fold(count: int, share: float = 0.2, run: int = 64) -> NDArray[np.bool_]:
    """Which of ``count`` records are test images: a seeded choice of runs of consecutive records.

    ``share`` of the runs, at least one of them where there are two, so that neighbours, which are
    often alike, fall on one side. The same for every call.

    >>> chosen = in_test_fold(6400)
    >>> runs = chosen.reshape(-1, 64)
    >>> int(chosen.sum()), bool((runs.all(1) | ~runs.any(1)).all())
    (1280, True)
    """
    runs = -(-count // run)
    order = np.random.default_rng(SPLIT_SEED).permutation(runs)
    held_out = np.zeros(runs, bool)
    held_out[order[: max(round(share * runs), int(runs > 1))]] = True
    return np.repeat(held_out, run)[:count]


def lowest_hashes(names: Iterable[str], share: float) -> set[str]:
    """A share of the names, at least one: those with the lowest SHA-256.

    The same names give the same ones, whatever their order and wherever they are.

    >>> sorted(lowest_hashes("abcdefghij", 0.2))
    ['d', 'j']
    """
    ranked = sorted(
        set(names),
        key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest(),
    )
    return set(ranked[: max(round(share * len(ranked)), 1)])


def to_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """0.2989 r + 0.5870 g + 0.1140 b, rounded (S5.1): N×3×H×W to N×1×H×W.

    >>> to_grey(np.full((1, 3, 1, 1), 255, np.uint8)).tolist()
    [[[[255]]]]
    """
    weights = np.array([0.2989, 0.5870, 0.1140], np.float32)
    grey = np.tensordot(weights, pixels.astype(np.float32), axes=([0], [1]))
    return np.rint(grey)[:, None].astype(np.uint8)
