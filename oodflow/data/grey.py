"""Grey forms of RGB datasets: every image as 0.2989 r + 0.5870 g + 0.1140 b (S5.1)."""

from collections.abc import Iterator

import numpy as np

from oodflow.data.prepared import Prepared
from oodflow.data.source import Fold, Piece, Raw, to_grey

__all__ = ["read", "stamp"]

CHUNK = 4096


def read(base: Prepared) -> Raw:
    """The folds of a prepared RGB dataset in grey, with its labels."""
    return Raw({name: _fold(base, name) for name in base.folds})


def stamp(base: Prepared) -> str:
    """The digests of the RGB folds: another content makes another grey form."""
    return "/".join(each.digest for each in base.folds.values())


def _fold(base: Prepared, name: str) -> Fold:
    def pieces() -> Iterator[Piece]:
        pixels, labels = base.arrays(name)
        for start in range(0, len(pixels), CHUNK):
            chosen = slice(start, start + CHUNK)
            yield Piece(
                to_grey(np.asarray(pixels[chosen])),
                None if labels is None else np.asarray(labels[chosen]),
            )

    return Fold(base.folds[name].count, pieces)
