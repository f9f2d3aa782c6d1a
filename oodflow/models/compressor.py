"""Lossless image compressors as models: log p(x) from the size of the compressed file."""

import io
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, features
from torch import Tensor

from oodflow.errors import UserError, unknown_name
from oodflow.models.likelihood import NOISE_FREE, LikelihoodModel

__all__ = ["CODECS", "Codec", "Compressor"]


@dataclass(frozen=True)
class Codec:
    """A lossless file format of Pillow."""

    format: str
    """Pillow's name of the format."""

    feature: str
    """What :func:`PIL.features.check` calls the library behind it."""

    options: Mapping[str, Any]
    """Options of :meth:`PIL.Image.Image.save`: lossless, as small as is affordable."""

    def encode(self, pixels: Any) -> bytes:
        """The compressed file of one uint8 array, H×W (grey) or H×W×3."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, self.format, **self.options)
        return buffer.getvalue()


CODECS: Mapping[str, Codec] = {
    # "optimize" includes zlib's highest level, 9; photo crops take 0.3 % less than with 9 alone.
    "png": Codec("PNG", "zlib", {"optimize": True}),
    # On 32×32 photo crops method 4 gives smaller files than 5 and 6, which take 3 to 25 times as
    # long. Among lossless files "quality" is the effort spent.
    "webp": Codec("WEBP", "webp", {"lossless": True, "quality": 100, "method": 4}),
    "jpeg2000": Codec("JPEG2000", "jpg_2000", {"irreversible": False}),
}
"""The compressors by name."""


class Compressor(LikelihoodModel):
    """A compressor as a general-purpose distribution of images (S6): log p(x) = −bits · ln 2.

    An ideal code spends −log2 p(x) bits on x, so the bits of a losslessly compressed file, headers
    included, give an (unnormalised, hence pessimistic) log p(x) of 8-bit images in nats, N×1. It
    has no parameters and no gradient.

    ``codec`` is a key of :data:`CODECS`. PNG is the one of S6, at zlib's highest level 9. The
    authors' replication encodes with OpenCV, here Pillow does. Both deflate at level 9, but each
    has its own choice of the rows' prediction filters and of zlib's strategy, so the sizes of
    single files, and with them single scores, need not be the same.

    Raises :class:`UserError` for an unknown codec and for one that the installed Pillow lacks.

    >>> model = Compressor(channels=3, codec="png")
    >>> black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    >>> size = len(CODECS["png"].encode(black[0].permute(1, 2, 0).numpy()))
    >>> bool(model(black).item() == torch.tensor(-8 * size * math.log(2)))
    True
    """

    scales = 1

    uses_noise = False

    def __init__(self, channels: int, codec: str) -> None:
        super().__init__()
        if codec not in CODECS:
            raise unknown_name("compressor", codec, CODECS)
        if not features.check(CODECS[codec].feature):
            raise UserError(
                f"the installed Pillow cannot write {codec}: install one of Pillow's own wheels, "
                f"or use another compressor of {', '.join(CODECS)}"
            )
        self.image_shape = (channels, 32, 32)
        self.codec = CODECS[codec]

    def forward(self, images: Tensor, noise: Tensor | float = NOISE_FREE) -> Tensor:
        """log p(x) of uint8 images N×C×H×W, N×1 float32 on their device; the noise is ignored."""
        sizes = torch.tensor(self.file_sizes(images), dtype=torch.float64)
        return (-8 * math.log(2) * sizes).unsqueeze(1).to(images.device, torch.float32)

    def file_sizes(self, images: Tensor) -> list[int]:
        """Bytes of every image's file, headers included."""
        pixels = images.permute(0, 2, 3, 1).squeeze(3).contiguous().cpu().numpy()
        return _map_in_threads(lambda one: len(self.codec.encode(one)), pixels)


def _map_in_threads(size: Callable[[Any], int], items: Any) -> list[int]:
    # Pillow releases the interpreter's lock inside the PNG and WebP encoders: two threads take
    # 0.6 times as long as one. JPEG 2000 gains nothing and loses little.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(size, items))
