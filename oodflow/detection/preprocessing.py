"""How the images of a dataset became 32×32, to do the same with an image of any size later.

A differently resized image is an anomaly by itself, so what a detector is given goes through the
very functions that prepared its training images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from oodflow.data.catalog import lookup
from oodflow.data.decode import SIDE, fitted, scaled
from oodflow.data.folder import lengths
from oodflow.data.image_files import UnreadableImage
from oodflow.data.source import to_grey
from oodflow.data.torchvision_sets import enlarge
from oodflow.errors import UserError, unknown_name
from oodflow.experiment import Experiment

__all__ = ["METHODS", "Preprocessing", "preprocessing_of", "remembered"]

METHODS = ("pillow", "torch", "slice")


@dataclass(frozen=True)
class Preprocessing:
    """From a picture of any size to the C×32×32 that a model scores.

    ``pillow``: :func:`oodflow.data.decode.fitted` with ``resize`` and ``crop``, 0 where there is
    none. ``torch``: up to 32×32 as :func:`oodflow.data.torchvision_sets.enlarge` does with MNIST's
    28×28, whose rounding is another than Pillow's; larger pictures as ``pillow``. ``slice``: the
    central 32×32 of a grey slice, as in the test fold of the MRI datasets. Raises UserError for
    values that are none of these.
    """

    channels: int
    resize: int = 0
    crop: int = 0
    method: str = "pillow"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("method", str(self.method), METHODS)
        if self.channels not in (1, 3):
            raise UserError(f"a detector's images have 1 or 3 channels, not {self.channels!r}")
        lengths({k: str(v) for k, v in (("resize", self.resize), ("crop", self.crop)) if v != 0})

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """A picture of mode L or RGB as uint8 C×32×32; colour becomes grey last (S5.1).

        Raises UnreadableImage for one that is too small to be cropped.
        """
        if self.method == "slice":
            return self._central(image)
        if self.method == "torch" and self.resizes(image.size) and max(image.size) <= SIDE:
            pixels = np.asarray(image)
            planes = pixels[None] if image.mode == "L" else pixels.transpose(2, 0, 1)
            large = enlarge(torch.from_numpy(planes[None].copy())).numpy()
            grey = to_grey(large) if large.shape[1] > self.channels else large
            return np.repeat(grey[0], self.channels // grey.shape[1], axis=0)
        return fitted(image, self.channels, self.resize, self.crop)

    def resizes(self, size: tuple[int, int]) -> bool:
        """Whether a picture of this width and height is resized on its way to 32×32.

        >>> Preprocessing(3, crop=32).resizes((40, 50)), Preprocessing(3).resizes((40, 50))
        (False, True)
        """
        if self.method == "slice":
            return False
        after = scaled(size, self.resize) if self.resize else size
        cut = (self.crop, self.crop) if self.crop else after
        return after != size or cut != (SIDE, SIDE)

    def covers(self, size: tuple[int, int]) -> bool:
        """Whether the dataset has images of this size, or states what becomes of them.

        >>> [Preprocessing(3, crop=32).covers((40, 50)), Preprocessing(3).covers((40, 50))]
        [True, False]
        """
        if self.method == "torch":
            return max(size) <= SIDE
        return bool(self.resize or self.crop) or self.method == "slice" or size == (SIDE, SIDE)

    @property
    def keeps_32(self) -> bool:
        """Whether pictures of 32×32 stay as they are, but for their channels."""
        return self.resize in (0, SIDE) and self.crop in (0, SIDE)

    def _central(self, image: Image.Image) -> NDArray[np.uint8]:
        width, height = image.size
        if min(width, height) < SIDE:
            raise UnreadableImage(f"its {width}×{height} pixels are less than {SIDE}×{SIDE}")
        left, top = (width - SIDE) // 2, (height - SIDE) // 2
        grey = np.asarray(image.convert("L").crop((left, top, left + SIDE, top + SIDE)))
        return np.repeat(grey[None], self.channels, axis=0)


def preprocessing_of(dataset: str) -> Preprocessing:
    """What was done to the images of a dataset; raises UserError for an unknown one.

    >>> preprocessing_of("mnist")
    Preprocessing(channels=1, resize=0, crop=0, method='torch')
    >>> preprocessing_of("folder:/photos?resize=40&crop=32")
    Preprocessing(channels=3, resize=40, crop=32, method='pillow')
    """
    facts = lookup(dataset)
    # The grey form of a dataset is made from its prepared colour images.
    source = lookup(facts.name.removesuffix("-grey")) if facts.source == "grey" else facts
    match source.source:
        case "folder" | "array":
            return Preprocessing(facts.channels, *lengths(facts.options))
        case "lsun":
            return Preprocessing(facts.channels, SIDE, SIDE)
        case "torchvision" | "idx" | "rows":
            return Preprocessing(facts.channels, method="torch")
        case "brats":
            return Preprocessing(facts.channels, method="slice")
        case _:
            return Preprocessing(facts.channels)


def remembered(experiment: Experiment) -> Preprocessing:
    """What was done to the images that a model was trained on, by its experiment.

    Weights from elsewhere may name no dataset, or one that is not known here: their images are
    resized to 32×32 where they have another size.
    """
    try:
        return preprocessing_of(experiment.data.dataset)
    except UserError:
        return Preprocessing(experiment.model.channels)
