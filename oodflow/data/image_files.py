"""Image files and folders of them, and pictures as Pillow decodes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from oodflow.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "UnreadableImage",
    "find_images",
    "flattened",
    "image_suffixes",
    "open_image",
    "printable",
]


class UnreadableImage(Exception):
    """A file that Pillow cannot decode."""


@cache
def image_suffixes() -> frozenset[str]:
    """The lower-case endings of the files that Pillow can open, with their dots."""
    from PIL import Image

    return frozenset(
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN
    )


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths as they are, and the image files below the folders, sorted.

    Raises UserError for a path that does not exist, and where there is no image at all.
    """
    known = image_suffixes()
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(
                each for each in path.rglob("*") if each.is_file() and each.suffix.lower() in known
            )
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"no file or folder at {path}")
    if not found:
        raise UserError(f"no image in {', '.join(map(str, paths))}")
    return found


def open_image(
    source: BinaryIO | Path,
    *,
    formats: tuple[str, ...] | None = None,
    admit: Callable[[tuple[int, int]], None] = lambda size: None,
) -> Image.Image:
    """The first picture of a file in Pillow's mode L or RGB, turned as it is stored.

    Transparency is put on black. Of 16-bit grey values the upper 8 bits stay, as Pillow does with
    16-bit colour. ``formats`` are the only ones that are tried, by Pillow's names. ``admit`` gets
    width and height before anything is decoded, and may wait or raise UnreadableImage. Raises that
    for what is no image.
    """
    from PIL import Image

    try:
        with Image.open(source, formats=formats) as opened:
            admit(opened.size)
            opened.load()
            return flattened(opened)
    except UnreadableImage:
        raise
    # Pillow's decoders raise whatever their formats make of broken bytes.
    except Exception as error:
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def flattened(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode as :func:`open_image` gives it, in mode L or RGB."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):
        # Pillow would clip the values at 255; 32 bits wide, they come from files of 16 bits.
        values = np.array(image)
        if "transparency" in image.info:
            values[values == image.info["transparency"]] = 0
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
    mode = "L" if image.mode in ("1", "L", "F") else "RGB"
    # A conversion to the same mode would copy the picture.
    return image if image.mode == mode else image.convert(mode)


def printable(file: Path | str) -> str:
    """A file's name as text that any file can hold: bytes that are no UTF-8 are spelled out.

    >>> printable("caf\udce9.png")
    'caf\\\\xe9.png'
    """
    return os.fsencode(file).decode("utf-8", "backslashreplace")
