"""The cleaned subset of 300 000 Tiny Images, or any other array of such images.

On disk: one ``.npy`` file with an array N×32×32×3 of unsigned bytes in C order: rows, columns,
channels. Nothing is changed but the order of the axes. 80 % of the images, in seeded runs of 64
neighbours, are for training (S5.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from oodflow.data.source import Fold, Piece, Raw, Request, in_test_fold
from oodflow.errors import UserError

__all__ = ["read"]

CHUNK = 4096
"""Images read at once, 12 MB."""


@dataclass(frozen=True)
class _Array:
    """Where the images lie in a file."""

    path: Path
    offset: int
    count: int


def read(request: Request) -> Raw:
    """Both folds of the array, without labels."""
    array = _open(_find(request.path))
    test = in_test_fold(array.count)
    if not test.any():
        raise UserError(
            f"{array.path} holds {array.count} images, too few for a training and a test fold"
        )
    return Raw({"train": _fold(array, ~test), "test": _fold(array, test)})


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.npy"))
    if len(found) != 1:
        raise UserError(f"{path} holds {len(found)} .npy files instead of one")
    return found[0]


def _open(path: Path) -> _Array:
    try:
        # The map is for the header and the check of the size alone; it is dropped unread.
        mapped = open_memmap(path, mode="r")
    # numpy has no one error for a file that is cut, pickled or something else.
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not a whole .npy file of numbers ({why})") from error
    shape = mapped.shape
    if mapped.dtype != np.uint8 or len(shape) != 4 or shape[1:] != (32, 32, 3):
        raise UserError(
            f"{path} holds {mapped.dtype} of shape {shape} instead of uint8 of (N, 32, 32, 3)"
        )
    if not mapped.flags.c_contiguous:
        raise UserError(f"{path} holds its array in Fortran order instead of C order")
    return _Array(path, mapped.offset, len(mapped))


def _fold(array: _Array, chosen: NDArray[np.bool_]) -> Fold:
    def pieces() -> Iterator[Piece]:
        with array.path.open("rb") as stream:
            stream.seek(array.offset)
            for start in range(0, array.count, CHUNK):
                of_fold = chosen[start : start + CHUNK]
                # Plain reads: the pages of a memory map would count as memory of the process.
                images = np.empty((len(of_fold), 32, 32, 3), np.uint8)
                if stream.readinto(images.data.cast("B")) != images.nbytes:
                    raise UserError(f"{array.path} became shorter while it was read")
                if of_fold.any():
                    yield Piece(images[of_fold].transpose(0, 3, 1, 2))

    return Fold(int(chosen.sum()), pieces)
