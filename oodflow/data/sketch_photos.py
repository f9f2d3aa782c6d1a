"""Photo crops for the sketch family: the photographs that scikit-image and scikit-learn ship.

Each photograph is cut once into a training and a test region with a gap between them, and each
region is reduced to smaller sizes on its own. So no test image shares a source pixel with a
training image, not even through the filter of the reduction.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodflow.errors import UserError

__all__ = ["MORE_PHOTOS", "PHOTOS", "SIDE", "crops", "photo", "regions"]

SIDE = 32
"""Side of every image of the family, in pixels."""

PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png", "left"),
    "chelsea": ("skimage", "data/chelsea.png", "left"),
    "coffee": ("skimage", "data/coffee.png", "right"),
    "rocket": ("skimage", "data/rocket.jpg", "right"),
    # The right image of the pair shows the same scene, so only one of them may be used.
    "motorcycle": ("skimage", "data/motorcycle_left.png", "right"),
    "tissue": ("skimage", "data/ihc.png", "right"),
    "china": ("sklearn", "datasets/images/china.jpg", "right"),
    "flower": ("sklearn", "datasets/images/flower.jpg", "bottom"),
}
"""Name → package that ships the photograph, its path there, and the side that is kept for tests:
where some of the main object is, not only blurred background."""

MORE_PHOTOS = {
    name: ("skimage", f"data/{name}.{suffix}", "right")
    for name, suffix in {
        "brick": "png", "camera": "png", "cell": "png", "coins": "png", "grass": "png",
        "gravel": "png", "hubble_deep_field": "jpg", "moon": "png", "retina": "jpg",
    }.items()
}  # fmt: skip
"""Most of them grey: not in the sketch family, which was defined without them."""

REDUCTIONS = (1.0, 1.5, 2.0, 2.5, 3.0)
"""Source pixels per pixel of a crop: from close-ups to views of a whole object."""

Box = tuple[int, int, int, int]


def regions(width: int, height: int, side: str) -> dict[str, Box]:
    """Fold → box (left, top, right, bottom) of a photograph; the boxes do not touch.

    The test region takes 27 % of the photograph on the named side, the gap 1 %.

    >>> regions(640, 427, "right")
    {'train': (0, 0, 460, 427), 'test': (467, 0, 640, 427)}
    >>> regions(640, 427, "bottom")
    {'train': (0, 0, 640, 307), 'test': (0, 311, 640, 427)}
    """
    if side == "left":
        begin = int(0.28 * width)
        return {"train": (begin, 0, width, height), "test": (0, 0, int(0.27 * width), height)}
    if side == "right":
        begin, end = int(0.73 * width), int(0.72 * width)
        return {"train": (0, 0, end, height), "test": (begin, 0, width, height)}
    begin, end = int(0.73 * height), int(0.72 * height)
    return {"train": (0, 0, width, end), "test": (0, begin, width, height)}


def photo(name: str) -> NDArray[np.uint8]:
    """One photograph, uint8 H×W×3; UserError where the package came without it."""
    from PIL import Image

    package, inside, _ = (PHOTOS | MORE_PHOTOS)[name]
    # The packages are found without being imported: both take seconds, for one file each.
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / inside
        if path.is_file():
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
    raise UserError(
        f"the dataset needs the photograph {inside} of the package {package}, which is "
        "not installed with it; reinstall the package"
    )


@dataclass(frozen=True, eq=False)
class _Sources:
    """All regions of one fold at all sizes, end to end in one array."""

    pixels: NDArray[np.uint8]
    """P×3: the pixels of region after region, row by row."""
    start: NDArray[np.int64]
    """Index in ``pixels`` of the first pixel, photos × sizes."""
    width: NDArray[np.int64]
    height: NDArray[np.int64]


@lru_cache(maxsize=2)
def _sources(fold: str) -> _Sources:
    from PIL import Image

    flat, start, width, height, at = [], [], [], [], 0
    for name, (_, _, side) in PHOTOS.items():
        whole = photo(name)
        left, top, right, bottom = regions(whole.shape[1], whole.shape[0], side)[fold]
        region = Image.fromarray(whole[top:bottom, left:right])
        for reduction in REDUCTIONS:
            size = (int(region.width / reduction), int(region.height / reduction))
            smaller = np.asarray(region.resize(size, Image.Resampling.BOX))
            flat.append(smaller.reshape(-1, 3))
            start.append(at)
            width.append(size[0])
            height.append(size[1])
            at += size[0] * size[1]
    shape = (len(PHOTOS), len(REDUCTIONS))
    return _Sources(
        pixels=np.concatenate(flat),
        start=np.array(start).reshape(shape),
        width=np.array(width).reshape(shape),
        height=np.array(height).reshape(shape),
    )


def crops(count: int, fold: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random crops of the fold's regions, at random sizes, half mirrored: uint8 N×3×32×32."""
    sources = _sources(fold)
    which = rng.integers(len(PHOTOS), size=count), rng.integers(len(REDUCTIONS), size=count)
    width = sources.width[which]
    top = rng.integers(sources.height[which] - SIDE + 1)
    left = rng.integers(width - SIDE + 1)
    columns = np.arange(SIDE)
    mirrored = rng.random(count) < 0.5
    columns = np.where(mirrored[:, None], columns[::-1], columns)
    rows = sources.start[which] + top * width + left
    index = (rows[:, None] + np.arange(SIDE) * width[:, None])[:, :, None] + columns[:, None, :]
    return np.stack([plane.take(index) for plane in sources.pixels.T.copy()], axis=1)
