"""Image files and folders of them, as the uint8 tensors that models score."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from oodflow.errors import UserError

__all__ = ["UnreadableImage", "find_images", "read_image"]


class UnreadableImage(Exception):
    """A file that Pillow cannot decode."""


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths as they are, and the image files below the folders, sorted.

    Raises UserError for a path that does not exist, and where there is no image at all.
    """
    from PIL import Image

    known = set(Image.registered_extensions())
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


def read_image(path: Path, shape: tuple[int, int, int], resize: bool) -> Tensor:
    """One image as uint8 C×H×W of the given shape; grey or RGB by the number of channels.

    Transparency is put on black. Another size is resized bilinearly, or without ``resize`` refused
    with a UserError that names the file. Raises UnreadableImage for what is no image.
    """
    import numpy as np
    from PIL import Image

    channels, height, width = shape
    try:
        with Image.open(path) as opened:
            opened.load()
            image = opened.convert("RGBA") if opened.has_transparency_data else opened.copy()
    # Pillow's decoders raise whatever their formats make of broken bytes.
    except Exception as error:
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    image = image.convert("RGB" if channels == 3 else "L")
    if image.size != (width, height):
        if not resize:
            raise UserError(
                f"{path} is {image.size[0]}×{image.size[1]}, the model scores {width}×{height}; "
                "use --resize"
            )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))
    return pixels.permute(2, 0, 1) if channels == 3 else pixels[None]
