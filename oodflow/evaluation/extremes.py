"""The images that score highest, out of more than fit into memory (S8).

Images are read batch by batch. Only the highest scores so far and their positions are kept, so the
memory needed depends on the batch size alone.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from oodflow.errors import UserError

__all__ = ["NOTHING", "Ranking", "highest", "keep_highest", "random_subset"]

Ranking = tuple[np.ndarray, np.ndarray]
"""Scores, float64, highest first, and the positions of their images, int64."""

NOTHING: Ranking = (np.empty(0), np.empty(0, dtype=np.int64))
"""The ranking before any batch."""


def keep_highest(kept: Ranking, scores: ArrayLike, positions: ArrayLike, k: int) -> Ranking:
    """The ``k`` highest of the scores kept so far and those of one more batch.

    Of equal scores the earlier position counts, so that the result is that of a full sort however
    the images are cut into batches. Of fewer than ``k`` scores all are kept. Scores are finite.

    >>> first = keep_highest(NOTHING, [1.0, 5.0, 3.0], [0, 1, 2], k=2)
    >>> values, positions = keep_highest(first, [4.0, 5.0], [3, 4], k=2)
    >>> values.tolist(), positions.tolist()
    ([5.0, 5.0], [1, 4])
    """
    values = np.concatenate([kept[0], np.asarray(scores, dtype=np.float64)])
    where = np.concatenate([kept[1], np.asarray(positions, dtype=np.int64)])
    # Not torch.topk: which of equal values it takes is not defined.
    best = np.lexsort((where, -values))[:k]
    return values[best], where[best]


def random_subset(count: int, size: int, generator: torch.Generator) -> Tensor:
    """``size`` different positions out of ``count``, or all where there are no more; ascending.

    >>> random_subset(3, 5, torch.Generator().manual_seed(0)).tolist()
    [0, 1, 2]
    """
    return torch.randperm(count, generator=generator)[:size].sort().values


def highest(
    pixels: Tensor,
    positions: Tensor,
    score: Callable[[Tensor], Mapping[str, np.ndarray]],
    k: int,
    *,
    batch_size: int = 250,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Ranking]:
    """Score → the ``k`` highest-scoring of the images at some positions, from one pass over them.

    ``pixels`` are uint8 N×C×H×W, such as a memory map, of which ``batch_size`` images are read at
    once. ``score`` gives each score of a batch, one value per image. ``on_progress`` gets the
    number of images done so far. Raises UserError where there is nothing to rank.
    """
    if k < 1 or len(positions) == 0:
        raise UserError(f"cannot take the {k} highest of {len(positions)} images; take at least 1")
    kept: dict[str, Ranking] = {}
    for start in range(0, len(positions), batch_size):
        where = positions[start : start + batch_size]
        for name, values in score(pixels[where]).items():
            kept[name] = keep_highest(kept.get(name, NOTHING), values, where.numpy(), k)
        if on_progress is not None:
            on_progress(start + len(where))
    return kept
