"""Calibration scores: those of in-distribution images that no model was trained on."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from oodflow.detection.conformal import conformal_p_values
from oodflow.errors import UserError

__all__ = ["Calibration", "halves", "refuse_training_images"]

SPLIT_SEED = 20230228
"""Seed of the split of a test fold into its calibrating and its measuring half."""

BLOCK = 4096
"""Images hashed at once."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration scores, and where they are from.

    Raises UserError where there is none, or one that is not finite.
    """

    table: pd.DataFrame
    """``score``, and its parts ``scale1`` … where there are any: float64, one row per image."""
    facts: Mapping[str, str]
    """What the images are: ``dataset``, ``fold``, ``digest``, as far as known."""

    def __post_init__(self) -> None:
        if len(self.table) == 0:
            raise UserError("there are no calibration images; calibrate with at least one")
        if not np.isfinite(self.table.to_numpy(np.float64)).all():
            raise UserError("the calibration holds a score that is not finite")

    @property
    def size(self) -> int:
        """n, the number of calibration images."""
        return len(self.table)

    @property
    def scales(self) -> list[str]:
        """Names of the parts: ``scale1`` … ``scaleS``, or none."""
        return [name for name in self.table.columns if name != "score"]

    def p_values(self, measured: pd.DataFrame) -> pd.DataFrame:
        """Conformal p-values of each column of the table: ``p_value``, ``scale1_p`` ….

        See :func:`oodflow.detection.conformal.conformal_p_values`.
        """
        names = {"score": "p_value", **{name: f"{name}_p" for name in self.scales}}
        return pd.DataFrame(
            {
                new: conformal_p_values(self.table[old].to_numpy(), measured[old].to_numpy())
                for old, new in names.items()
            },
            index=measured.index,
        )

    def threshold(self, rank: int) -> float:
        """The l-th smallest score: anomalous at rank l are exactly the images that lie below it."""
        return float(np.sort(self.table["score"].to_numpy())[rank - 1])


def halves(count: int, seed: int = SPLIT_SEED) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A seeded split of 0 … count − 1 in two, each ascending; the first may be one larger.

    >>> first, second = halves(5)
    >>> len(first), sorted([*first.tolist(), *second.tolist()])
    (3, [0, 1, 2, 3, 4])
    """
    order = np.random.default_rng(seed).permutation(count)
    middle = -(-count // 2)
    return np.sort(order[:middle]), np.sort(order[middle:])


def refuse_training_images(calibration: Tensor, training: Tensor, where: str) -> None:
    """Raise UserError where a calibration image is a training image too, by its digest.

    Both uint8 N×C×32×32. The p-values of such a calibration would promise nothing: the model knows
    its training images too well. ``where`` names the training images in the error.
    """
    known = frozenset(_digests(calibration))
    shared = sum(digest in known for digest in _digests(training))
    if shared:
        raise UserError(
            f"{shared} training images of {where} are among the calibration images; calibrate with "
            "images that were not trained on"
        )


def _digests(pixels: Tensor) -> Iterator[bytes]:
    for start in range(0, len(pixels), BLOCK):
        for image in pixels[start : start + BLOCK].cpu().contiguous().numpy():
            yield hashlib.blake2b(image.data, digest_size=16).digest()
