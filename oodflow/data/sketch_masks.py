"""Masks for the sketch family: ten shapes and the characters of the DejaVu fonts, placed at random.

A mask says per pixel how much of it the object covers. Every object is drawn once, centred in a
tile; a batch of masks is gathered from the tiles through random affine maps. From the tiles on the
arithmetic is in integers, so that every machine gets the same bytes.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oodflow.data.sketch_photos import SIDE

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SHAPES", "glyph_tiles", "place", "shape_tiles"]

TILE = 40
"""Side of a tile in pixels."""
EXTENT = 28
"""Longest side of the object in its tile; the rest is an empty margin."""
FINE = 8
"""Objects are drawn so many times larger, then reduced to get smooth edges."""

STYLES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSansMono-Bold",
)


def _star(points: int, inner: float) -> list[list[tuple[float, float]]]:
    """A star with its first point up; ``inner`` is the radius between the points."""
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return [list(zip(radii * np.cos(angles), radii * np.sin(angles), strict=True))]


def _box(x: float, y: float) -> list[tuple[float, float]]:
    return [(-x, -y), (x, -y), (x, y), (-x, y)]


SHAPES: dict[str, list[list[tuple[float, float]]]] = {
    "disk": [],
    "ring": [],
    "triangle": [[(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]],
    "square": [_box(0.85, 0.85)],
    "five-pointed star": _star(5, 0.42),
    "eight-pointed star": _star(8, 0.6),
    "cross": [_box(1.0, 0.33), _box(0.33, 1.0)],
    "bar": [_box(1.0, 0.3)],
    # Slimmer than a turned square, which would be the same figure.
    "diamond": [[(0.0, -1.0), (0.6, 0.0), (0.0, 1.0), (-0.6, 0.0)]],
    "bow tie": [[(-1.0, -0.7), (0.0, 0.0), (-1.0, 0.7)], [(1.0, -0.7), (0.0, 0.0), (1.0, 0.7)]],
}
"""Class name → polygons with corners in [−1, 1]²; the two round ones are drawn as ellipses."""


@lru_cache(maxsize=1)
def shape_tiles() -> NDArray[np.uint8]:
    """One tile for each of the ten shapes in the order of ``SHAPES``: uint8 10×40×40."""
    from PIL import Image, ImageDraw

    side, radius = TILE * FINE, EXTENT * FINE / 2
    tiles = []
    for name, polygons in SHAPES.items():
        image = Image.new("L", (side, side))
        draw = ImageDraw.Draw(image)
        for polygon in polygons:
            draw.polygon([(side / 2 + radius * x, side / 2 + radius * y) for x, y in polygon], 255)
        if name in ("disk", "ring"):
            for share, colour in ((1.0, 255), (0.55, 0))[: 1 if name == "disk" else 2]:
                low, high = side / 2 - share * radius, side / 2 + share * radius
                draw.ellipse((low, low, high, high), colour)
        tiles.append(_reduced(image))
    return np.stack(tiles)


@lru_cache(maxsize=3)
def glyph_tiles(characters: str) -> NDArray[np.uint8]:
    """One tile for each style of each character: uint8 (characters · 8)×40×40, styles fastest."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(get_data_path()) / "fonts" / "ttf"
    side, longest = TILE * FINE, EXTENT * FINE
    fonts = [ImageFont.truetype(str(folder / f"{style}.ttf"), longest) for style in STYLES]
    tiles = []
    for character in characters:
        for font in fonts:
            left, top, right, bottom = font.getbbox(character)
            # Letters share a height; only what is wider than the tile allows is drawn smaller.
            size = max(right - left, bottom - top)
            fitting = font.font_variant(size=int(longest * min(longest / size, 1.4)))
            left, top, right, bottom = fitting.getbbox(character)
            image = Image.new("L", (side, side))
            corner = ((side - left - right) / 2, (side - top - bottom) / 2)
            ImageDraw.Draw(image).text(corner, character, 255, fitting)
            tiles.append(_reduced(image))
    return np.stack(tiles)


def _reduced(image: "Image") -> NDArray[np.uint8]:
    """The tile of an object that was drawn FINE times larger."""
    return np.asarray(image.reduce(FINE))


def place(
    tiles: NDArray[np.uint8],
    rng: np.random.Generator,
    sizes: tuple[float, float] = (15.0, 26.0),
    turn: float = 0.3,
) -> NDArray[np.int64]:
    """Each tile's object at a random place, size and angle: int64 N×32×32, from 0 to 255.

    ``sizes`` are the least and the largest extent in pixels, ``turn`` the largest angle in radians.
    A pixel p of the image shows the tile at A·(p − centre), A = rotation / scale, interpolated
    bilinearly between 1/256 pixels.
    """
    count = len(tiles)
    scale = rng.uniform(*sizes, size=count) / EXTENT
    angle = rng.uniform(-turn, turn, size=count)
    # Larger objects move less, so that none is cut by more than a few pixels.
    reach = np.maximum(SIDE / 2 - scale * EXTENT / 2, 0.0) + 1.0
    centre = (SIDE - 1) / 2 + rng.uniform(-1, 1, size=(2, count)) * reach
    along = np.rint(np.cos(angle) / scale * 65536).astype(np.int64)[:, None, None]
    across = np.rint(np.sin(angle) / scale * 65536).astype(np.int64)[:, None, None]
    x, y = np.rint(centre * 256).astype(np.int64)[:, :, None, None]
    grid = np.arange(SIDE, dtype=np.int64) * 256
    from_x, from_y = grid[None, None, :] - x, grid[None, :, None] - y
    middle = (TILE - 1) * 128
    # Fixed point: 1/256 pixels. Places outside the tile show its margin, which is empty.
    u = np.clip(((along * from_x + across * from_y) >> 16) + middle, 0, (TILE - 1) * 256 - 1)
    v = np.clip(((along * from_y - across * from_x) >> 16) + middle, 0, (TILE - 1) * 256 - 1)
    corner = (np.arange(count) * TILE * TILE)[:, None, None] + (v >> 8) * TILE + (u >> 8)
    part_u, part_v = u & 255, v & 255
    flat = tiles.reshape(-1).astype(np.int64)
    upper = flat.take(corner) * (256 - part_u) + flat.take(corner + 1) * part_u
    lower = flat.take(corner + TILE) * (256 - part_u) + flat.take(corner + TILE + 1) * part_u
    return (upper * (256 - part_v) + lower * part_v + 32768) >> 16
