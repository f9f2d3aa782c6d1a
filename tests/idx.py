"""Small idx files as those of MNIST and Fashion-MNIST."""

import gzip
import struct

import numpy as np


def write_folds(folder, packed=False, dotted=False, folds=("train", "t10k")):
    """Idx files of 70 random training images and 30 test images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for prefix, count in (("train", 70), ("t10k", 30)):
        images = rng.integers(256, size=(count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images", images), ("labels", labels)):
            name = f"{prefix}-{kind}{'.' if dotted else '-'}idx{array.ndim}-ubyte"
            content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            content += array.tobytes()
            if packed:
                name, content = f"{name}.gz", gzip.compress(content)
            if prefix in folds:
                (folder / name).write_bytes(content)
    return folder
