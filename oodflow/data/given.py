"""Arrays that Python gives as a dataset: kept as images in the data folder, under their digest.

The same array is the same dataset, whoever gives it, and later commands find it by its name.
"""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from oodflow.errors import ResourceError, UserError
from oodflow.files import exclusively

__all__ = ["keep_array"]

FOLDER = "given"


def keep_array(images: ArrayLike, data_dir: Path, options: str = "") -> str:
    """The name of the dataset that an array is: a folder of its images below the data folder.

    uint8 N×H×W, N×H×W×C or N×C×H×W, C = 1 or 3. ``options`` are those of a folder's name. Nothing
    is written where the array is there already. Raises UserError for another array.

    >>> keep_array(np.zeros((2, 32, 32)), Path("data"))
    Traceback (most recent call last):
    oodflow.errors.UserError: images are an array of float64, 2×32×32; give uint8 N×H×W, N×H×W×C ...
    """
    pixels = np.asarray(images)
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3) and pixels.shape[1] in (1, 3):
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    colour = pixels.ndim == 4 and pixels.shape[3] == 3
    if pixels.dtype != np.uint8 or not (colour or pixels.ndim == 3) or 0 in pixels.shape:
        shape = "×".join(map(str, pixels.shape))
        raise UserError(
            f"images are an array of {pixels.dtype}, {shape}; give uint8 N×H×W, N×H×W×C or "
            "N×C×H×W of at least one image, with 1 or 3 channels"
        )
    pixels = np.ascontiguousarray(pixels)
    digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()[:16]
    folder = data_dir / FOLDER / digest
    try:
        with exclusively(folder.with_name(f".{digest}.lock")):
            if not folder.exists():
                _write(pixels, folder)
    except OSError as error:
        raise ResourceError(f"cannot write {folder}: {error.strerror}") from error
    chosen = "&".join(filter(None, ("" if colour else "channels=1", options)))
    return f"folder:{folder.absolute()}" + f"?{chosen}" * bool(chosen)


def _write(pixels: np.ndarray, folder: Path) -> None:
    """The images as PNG files in a folder that is there whole or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(part / f"{number:08}.png", compress_level=1)
    os.replace(part, folder)
