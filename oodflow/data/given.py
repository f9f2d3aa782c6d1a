"""Arrays that Python gives as a dataset: kept as a file in the data folder, under their digest.

The same array is the same dataset, whoever gives it, and later commands find it by its name.
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from oodflow.data.array_files import array_images
from oodflow.errors import ResourceError
from oodflow.files import exclusively, replaced

__all__ = ["keep_array"]

FOLDER = "given"


def keep_array(images: ArrayLike, data_dir: Path, options: str = "") -> str:
    """The name of the dataset that an array is: a file with it below the data folder.

    uint8 N×H×W, N×H×W×C or N×C×H×W, C = 1 or 3. ``options`` are those behind the file's name.
    Nothing is written where the array is there already. Raises UserError for another array.

    >>> keep_array(np.zeros((2, 32, 32)), Path("data"))
    Traceback (most recent call last):
    oodflow.errors.UserError: the given array holds float64 of shape 2×32×32 in place of uint8; ...
    """
    pixels = np.ascontiguousarray(array_images("the given array", np.asarray(images)))
    digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()[:16]
    file = data_dir.absolute() / FOLDER / f"{digest}.npy"
    try:
        with exclusively(file.with_suffix(".lock")):
            if not file.exists():
                with replaced(file) as partial, partial.open("wb") as stream:
                    np.save(stream, pixels, allow_pickle=False)
    except OSError as error:
        raise ResourceError(f"cannot write {file}: {error.strerror}") from error
    chosen = "&".join(filter(None, ("channels=1" if pixels.ndim == 3 else "", options)))
    return f"array:{file}" + f"?{chosen}" * bool(chosen)
