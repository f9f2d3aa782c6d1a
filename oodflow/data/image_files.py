"""Image files as Pillow decodes them: which endings, which sizes, and one rule for each kind."""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "MOST_PIXELS",
    "Admit",
    "UnreadableImage",
    "admission",
    "flattened",
    "image_suffixes",
    "open_image",
    "printable",
]

MOST_PIXELS = 178_956_970
"""A larger image is not decoded: Pillow itself takes it for a decompression bomb."""

MANY_PIXELS = 8_000_000
"""Larger images are decoded one at a time, since each takes 4 bytes a pixel or more."""

DIM = {"wide": 64, "8 bits": 16}
"""An image whose highest level is below this is nearly black: values of 14 bits in 16, or of 12."""

NOT_DECODED = frozenset({"EPS", "MPEG"})
"""Formats that Pillow opens and does not decode itself, beside its stubs. EPS runs a program."""

ORIENTATION = 0x0112
"""The EXIF tag of the turn that a camera asks for."""

WHOLE = 65536
"""Smaller files are read in one go."""

QUIET = ("ignore", None, Warning, re.compile(r"PIL(\.|$)"), 0)
"""A filter of what Pillow says of sizes and damaged metadata, with a path into its own files."""

Admit = Callable[[tuple[int, int]], None]

_one_large = threading.Lock()


class UnreadableImage(Exception):
    """A file that Pillow cannot decode."""


@cache
def image_suffixes() -> frozenset[str]:
    """The lower-case endings of the files that are decoded, with their dots.

    Those of HEIF are among them where pillow-heif is installed.
    """
    from PIL import Image, ImageFile

    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = Image.registered_extensions()
    stubs = {
        kind
        for kind, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    }
    decoded = Image.OPEN.keys() - stubs - NOT_DECODED
    return frozenset(suffix for suffix, kind in known.items() if kind in decoded)


@cache
def _all_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it tries, the commonest first."""
    from PIL import Image

    # Pillow knows all of them only after this.
    image_suffixes()
    common = ("PNG", "JPEG")
    return (*common, *(name for name in Image.ID if name not in common))


@contextmanager
def admission(most: int = MOST_PIXELS) -> Iterator[Admit]:
    """Yields the ``admit`` of :func:`open_image` for one image.

    It refuses an image of more than ``most`` pixels. Of those above :data:`MANY_PIXELS` only one is
    inside the block at a time.
    """
    with ExitStack() as room:

        def admit(size: tuple[int, int]) -> None:
            pixels = size[0] * size[1]
            if pixels > most:
                raise UnreadableImage(
                    f"its {size[0]}×{size[1]} pixels are more than the {most} that are decoded; "
                    "make it smaller"
                )
            if pixels > MANY_PIXELS:
                room.enter_context(_one_large)

        yield admit


def open_image(
    source: BinaryIO | Path,
    *,
    formats: tuple[str, ...] | None = None,
    admit: Admit = lambda size: None,
    remark: Callable[[str], None] = lambda kind: None,
) -> Image.Image:
    """The first picture of a file in Pillow's mode L or RGB, turned as it is stored.

    Transparency is put on black. One rule for each kind of values wider than 8 bits: of 16 bits the
    upper 8 stay, as Pillow does with colour; 32-bit integers are taken for 16-bit ones; floats up
    to 1 are multiplied by 255, others are levels from 0 to 255. Values outside are unreadable.

    ``formats`` are the only ones that are tried, by Pillow's names. ``admit`` gets width and height
    before anything is decoded, and may wait or raise UnreadableImage. ``remark`` gets a key of
    :data:`oodflow.data.account.REMARKS`. Raises UnreadableImage for what is no image.
    """
    from PIL import Image

    if QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=QUIET[3].pattern)
    try:
        with Image.open(_content(source), formats=formats or _all_formats()) as opened:
            admit(opened.size)
            opened.load()
            with suppress(Exception):
                # Whatever tells of a turn comes with an entry in info.
                if opened.info and opened.getexif().get(ORIENTATION, 1) != 1:
                    remark("turned")
            return flattened(opened, remark)
    except UnreadableImage:
        raise
    # Pillow's decoders raise whatever their formats make of broken bytes.
    except Exception as error:
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def flattened(image: Image.Image, remark: Callable[[str], None] = lambda kind: None) -> Image.Image:
    """A loaded picture of any mode as :func:`open_image` gives it, in mode L or RGB."""
    from PIL import Image

    wide = image.mode[0] in "IF"
    if wide:
        lit, image = _eight_bits(image)
    else:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
        mode = "L" if image.mode in ("1", "L") else "RGB"
        # A conversion to the same mode would copy the picture.
        image = image if image.mode == mode else image.convert(mode)
    dim = DIM["wide" if wide else "8 bits"]
    # Most images have a bright centre, which spares looking for the highest level.
    if _highest(image.getpixel((image.width // 2, image.height // 2))) < dim:
        peak = _highest(image.getextrema())
        if (lit if wide else peak) and peak < dim:
            remark("dim")
    return image


def _highest(levels: Any) -> float:
    """Of one level, or of any tuple of levels."""
    return max(map(_highest, levels)) if isinstance(levels, tuple) else levels


def _content(source: BinaryIO | Path) -> BinaryIO | Path:
    """A small file's content, which Pillow then takes apart without asking the system again.

    At every such question another thread would take over.
    """
    if not isinstance(source, Path):
        return source
    # Not what is read only once, such as a pipe.
    status = os.stat(source)
    if not stat.S_ISREG(status.st_mode) or status.st_size >= WHOLE:
        return source
    # An opened file object would ask four times more.
    descriptor = os.open(source, os.O_RDONLY)
    try:
        return io.BytesIO(os.read(descriptor, WHOLE))
    finally:
        os.close(descriptor)


def _eight_bits(image: Image.Image) -> tuple[bool, Image.Image]:
    """A picture of wide values in 8 bits, and whether any of them is above 0."""
    import numpy as np
    from PIL import Image

    values = np.array(image)
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = 0
    low, high = values.min(), values.max()
    floats = image.mode == "F"
    # Not the negation, which would let NaN pass.
    if not (low >= 0 and high <= (255 if floats else 65535)):
        fitting = "0 to 1 or 0 to 255" if floats else "0 to 65535"
        raise UnreadableImage(f"its values from {low:g} to {high:g} are not within {fitting}")
    # Integers of 32 bits come from files of 16 bits.
    levels = np.rint(values * 255 if high <= 1 else values) if floats else values >> 8
    return bool(high > 0), Image.fromarray(levels.astype(np.uint8))


def printable(file: Path | str) -> str:
    r"""A file's name as text that any file can hold: bytes that are no UTF-8 are spelled out.

    >>> printable("caf\udce9.png")
    'caf\\xe9.png'
    """
    return os.fsencode(file).decode("utf-8", "backslashreplace")
