"""Encoded images of any size and kind, as uint8 C×32×32 (S5)."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodflow.data.archives import Shelf
from oodflow.data.image_files import UnreadableImage, admission, open_image, printable
from oodflow.data.source import Piece, Request, to_grey

__all__ = ["SIDE", "decode", "fitted", "pieces", "scaled"]

SIDE = 32
CHUNK = 512
"""Images in a piece."""


def decode(
    source: BinaryIO | Path,
    channels: int,
    resize: int = 0,
    crop: int = 0,
    remark: Callable[[str], None] = lambda kind: None,
) -> NDArray[np.uint8]:
    """One image file as C×32×32, as :func:`fitted` makes it; ``remark`` as in `open_image`.

    Raises UnreadableImage for what is no image, and for one that is smaller than ``crop``.
    """
    with admission() as admit:
        return fitted(open_image(source, admit=admit, remark=remark), channels, resize, crop)


def fitted(image: Image.Image, channels: int, resize: int = 0, crop: int = 0) -> NDArray[np.uint8]:
    """A picture of mode L or RGB as C×32×32.

    ``resize`` makes its shorter side so long and keeps its aspect, ``crop`` then takes the central
    square of that side, both as torchvision does. What is not 32×32 after them is resized to it.
    All resizing is bilinear and antialiased. Colour becomes grey last, with the weights of S5.1.

    Raises UnreadableImage for one that is smaller than ``crop``.
    """
    if resize:
        image = image.resize(scaled(image.size, resize), Image.Resampling.BILINEAR)
    if crop:
        width, height = image.size
        if min(width, height) < crop:
            raise UnreadableImage(f"its {width}×{height} pixels are too few for crop={crop}")
        left, top = round((width - crop) / 2), round((height - crop) / 2)
        image = image.crop((left, top, left + crop, top + crop))
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    if image.mode == "L":
        return np.repeat(pixels[None], channels, axis=0)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return planes if channels == 3 else to_grey(planes[None])[0]


def scaled(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Width and height of a picture once its shorter side is ``short`` pixels.

    >>> scaled((640, 480), 32)
    (42, 32)
    """
    width, height = (int(short * side / min(size)) for side in size)
    return width, height


def pieces(
    request: Request,
    shelf: Shelf,
    names: tuple[str, ...],
    labels: NDArray[np.int64] | None = None,
    resize: int = 0,
    crop: int = 0,
) -> Iterator[Piece]:
    """The images of those names in their order, decoded by several threads, a piece at a time.

    ``request.on_broken`` is told about an unreadable one, which is left out where it returns;
    ``request.account`` about odd ones.
    """
    # Neither an archive nor an LMDB transaction serves two threads at once.
    serial = threading.Lock()

    def attempt(name: str) -> tuple[NDArray[np.uint8] | UnreadableImage, list[str]]:
        remarks: list[str] = []
        try:
            with serial:
                source = shelf.fetch(name)
            pixels = decode(source, request.facts.channels, resize, crop, remarks.append)
            return pixels, remarks
        except UnreadableImage as error:
            return error, []

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), CHUNK):
            part = names[start : start + CHUNK]
            kept, images = [], []
            for i, (result, remarks) in enumerate(pool.map(attempt, part), start):
                for kind in remarks:
                    request.account.remark(kind, printable(names[i]))
                if isinstance(result, UnreadableImage):
                    request.on_broken(printable(f"{shelf.path}/{names[i]}"), str(result))
                else:
                    kept.append(i)
                    images.append(result)
            if images:
                files = tuple(printable(names[i]) for i in kept)
                yield Piece(np.stack(images), None if labels is None else labels[kept], files)
