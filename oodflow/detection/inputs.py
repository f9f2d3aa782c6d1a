"""Turns images as users send them into what a detector scores, or into an error text.

Whatever is wrong with an image becomes the error text of its row and never an exception, so that
its neighbours are scored.
"""

import base64
import binascii
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodflow.data.decode import SIDE
from oodflow.data.image_files import MOST_PIXELS, Admit, admission, flattened, open_image
from oodflow.detection.preprocessing import Preprocessing
from oodflow.errors import UserError

__all__ = [
    "MOST_SENT_PIXELS",
    "InputImage",
    "all_pixels",
    "from_anything",
    "from_array",
    "from_base64",
    "from_bytes",
    "from_file",
    "from_picture",
]

MOST_SENT_PIXELS = 89_478_485
"""A larger image sent by anybody is not decoded: Pillow begins to warn of such ones."""

SENT_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are read from bytes sent by anybody: a decoder more is one more to attack, and that
of EPS runs another program."""


@dataclass(frozen=True, eq=False)
class InputImage:
    """An image ready to be scored, or why there is none."""

    pixels: NDArray[np.uint8] | None
    """C×32×32; None where there is an error."""
    resized: bool = False
    error: str = ""
    size: tuple[int, int] = (0, 0)
    """Width and height that it had."""
    remarks: tuple[str, ...] = ()
    """Keys of :data:`oodflow.data.account.REMARKS`."""


def from_file(path: Path, preprocessing: Preprocessing) -> InputImage:
    """An image file of any format of Pillow, by the rules of :mod:`oodflow.data.image_files`."""
    return _decoded(path, None, preprocessing)


def from_bytes(content: bytes, preprocessing: Preprocessing) -> InputImage:
    """The content of an image file in one of :data:`SENT_FORMATS`."""
    return _decoded(io.BytesIO(content), SENT_FORMATS, preprocessing, MOST_SENT_PIXELS)


def from_base64(text: str, preprocessing: Preprocessing) -> InputImage:
    """Base64 of such a content; the head of a data URL and white space are ignored."""
    if not isinstance(text, str):
        return InputImage(None, error=f"{type(text).__name__} in place of a base64 text")
    code = text.partition(",")[2] if text[:5] == "data:" else text
    try:
        content = base64.b64decode("".join(code.split()), validate=True)
    except (binascii.Error, ValueError):
        return InputImage(None, error="not valid base64")
    if not content:
        return InputImage(None, error="empty")
    return from_bytes(content, preprocessing)


def from_picture(picture: Image.Image, preprocessing: Preprocessing) -> InputImage:
    """A picture that Pillow has opened, of any mode."""

    def load(admit: Admit, remark: Callable[[str], None]) -> Image.Image:
        admit(picture.size)
        picture.load()
        return flattened(picture, remark)

    return _guarded(load, preprocessing)


def from_array(array: NDArray, preprocessing: Preprocessing) -> InputImage:
    """uint8 H×W, H×W×C or C×H×W with 1, 3 or 4 (with transparency) channels.

    Of two readings H×W×C is taken.
    """
    pixels = np.asarray(array)
    if pixels.dtype != np.uint8:
        return InputImage(None, error=f"an array of {pixels.dtype}; give uint8")
    shape = "×".join(map(str, pixels.shape))
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not (pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] in (3, 4)) or 0 in array.shape:
        return InputImage(None, error=f"an array of shape {shape}; give H×W×3, 3×H×W or H×W")
    if (
        preprocessing.keeps_32
        and preprocessing.method != "slice"
        and pixels.shape == (SIDE, SIDE, preprocessing.channels)
    ):
        return InputImage(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return from_picture(Image.fromarray(np.ascontiguousarray(pixels)), preprocessing)


def from_anything(item: object, preprocessing: Preprocessing) -> InputImage:
    """A path (text or Path), the bytes of a file, a picture of Pillow, or an array or tensor."""
    match item:
        case str() | Path():
            return from_file(Path(item), preprocessing)
        case bytes() | bytearray() | memoryview():
            return from_bytes(bytes(item), preprocessing)
        case Image.Image():
            return from_picture(item, preprocessing)
    if hasattr(item, "__array__"):
        return from_array(np.asarray(item), preprocessing)
    return InputImage(None, error=f"{type(item).__name__} is no image; give a path, bytes or array")


def all_pixels(images: Iterable[object], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Images of all kinds as uint8 N×C×32×32.

    An array or tensor N×C×H×W or N×H×W×C is N images; uint8 N×C×32×32 stays as it is. Raises
    UserError for the first one that cannot be read.

    >>> all_pixels(np.zeros((5, 40, 40), np.uint8), Preprocessing(1)).shape
    (5, 1, 32, 32)
    """
    if isinstance(images, str | Path):
        images = [images]
    shape = (preprocessing.channels, SIDE, SIDE)
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == shape:
        return images
    ready = []
    for i, each in enumerate(images):
        image = from_anything(each, preprocessing)
        if image.pixels is None:
            raise UserError(f"image {i} cannot be read: {image.error}; leave it out")
        ready.append(image.pixels)
    return np.stack(ready) if ready else np.zeros((0, *shape), np.uint8)


def _decoded(
    source: BinaryIO | Path,
    formats: tuple[str, ...] | None,
    preprocessing: Preprocessing,
    most: int = MOST_PIXELS,
) -> InputImage:
    return _guarded(
        lambda admit, remark: open_image(source, formats=formats, admit=admit, remark=remark),
        preprocessing,
        most,
    )


def _guarded(
    load: Callable[[Admit, Callable[[str], None]], Image.Image],
    preprocessing: Preprocessing,
    most: int = MOST_PIXELS,
) -> InputImage:
    """What ``load`` opens, prepared; large pictures one at a time, too large ones never."""
    remarks: list[str] = []
    with admission(most) as admit:
        try:
            image = load(admit, remarks.append)
            resized = preprocessing.resizes(image.size)
            pixels = preprocessing.apply(image)
            return InputImage(pixels, resized, size=image.size, remarks=tuple(remarks))
        # Pillow's decoders raise whatever their formats make of broken bytes.
        except Exception as error:
            return InputImage(None, error=_reason(error))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # Pillow names the object that it read from, with its address where it is no file.
    return "no image of a known format" if text.startswith("cannot identify image") else text
