"""Real pictures for a general set: clip art, emoji, glyphs, strokes and photographs, composed.

Every picture is drawn at four times its size and brought down as those of the in-distribution
were: the colour form to 32×32, the grey form to 28×28 and then bilinearly to 32×32 as MNIST and
Fashion-MNIST are (S5). The same files give the same bytes; nothing shows a decimal digit.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps, ImageStat

from oodflow.data.picture_sources import GLYPH, Sources, gather
from oodflow.data.source import Fold, Piece, Raw, Request
from oodflow.data.torchvision_sets import enlarge

__all__ = ["KINDS", "VERSION", "Painter", "generate", "read", "stamp"]

VERSION = 2
"""Raise it with every change that changes a pixel: it is in the seed and in the stamp."""

SIDES = {3: 32, 1: 28}
"""Side at which pictures of so many channels are made, before they are made 32×32."""
FINE = 4
"""Pictures are drawn so many times larger."""
CHUNK = 500
"""Pictures made at once. Part of the recipe: each chunk has a random generator of its own."""
FAINT = 8.0
"""Standard deviation of the levels below which a picture shows too little and is drawn again."""

Size = tuple[int, int]


class Painter:
    """Draws pictures of one fold, one after the other, from a random generator."""

    def __init__(self, sources: Sources, channels: int, rng: np.random.Generator) -> None:
        self.sources, self.rng = sources, rng
        self.mode = "RGB" if channels == 3 else "L"
        self.side = SIDES[channels]
        self.fine = self.side * FINE
        self.kinds, self.shares = list(KINDS[channels]), list(KINDS[channels].values())
        self.black = BLACK[channels]

    def picture(self) -> Image.Image:
        """One picture, side × side, of a kind chosen by the shares in ``KINDS``."""
        while True:
            kind = str(self.rng.choice(self.kinds, p=self.shares))
            made = self._down(getattr(self, kind)(), CRISP if kind == "framed" else SOFT)
            if np.asarray(made).std() >= FAINT:
                return made

    # Kinds

    def framed(self) -> Image.Image:
        """One object that fills the frame, upright, in the middle, on black."""
        tile, mask = self._object()
        # Of one drawing there are slimmer and wider ones.
        width, height = tile.width * np.exp(self.rng.normal(0, 0.2)), tile.height
        scale = self.fine * min(self.rng.uniform(0.86, 1.04), 1.0) / max(width, height)
        size = max(round(width * scale), 4), max(round(height * scale), 4)
        tile, mask = (each.resize(size, Image.Resampling.HAMMING) for each in (tile, mask))
        return self._composed(self._flat(0), tile, mask, 1.0, (0.5, 0.5), 0.0, 0.0)

    def object(self) -> Image.Image:
        """One or two objects of any size, place and angle on any ground."""
        drawn = self._ground()
        for _ in range(1 + self._chance(0.25)):
            tile, mask = self._object()
            scale = self.fine / max(tile.size) * self.rng.uniform(0.35, 1.5)
            drawn = self._composed(
                drawn, tile, mask, scale, self._place(0.2), self.rng.normal(0, 0.3), 0.0
            )
        return drawn

    def glyph(self) -> Image.Image:
        """A character of any script in any stroke, mostly bright on black."""
        mask = self._character()
        tile, ground = self._inked(mask.size)
        extent = self.rng.uniform(0.35, 1.0)
        scale = min(extent * self.fine / max(mask.size), 2.0)
        return self._composed(
            ground, tile, mask, scale, self._place(0.06),
            self.rng.normal(0, 0.15), self.rng.normal(0, 0.2),
        )  # fmt: skip

    def strokes(self) -> Image.Image:
        """One to three curves drawn with a pen."""
        mask = Image.new("L", (self.fine, self.fine))
        draw = ImageDraw.Draw(mask)
        width = int(self.rng.uniform(1.2, 4.5) * FINE)
        for _ in range(self.rng.integers(1, 4)):
            points = _curve(self.rng, int(self.rng.integers(3, 7))) * self.fine
            places = [tuple(point) for point in points.tolist()]
            draw.line(places, 255, width, joint="curve")
            for x, y in (places[0], places[-1]):
                draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 255)
        tile, ground = self._inked(mask.size)
        ground.paste(tile, (0, 0), mask)
        return ground

    def photograph(self) -> Image.Image:
        """A piece of a photograph."""
        return self._photo((self.fine, self.fine), 1.0)

    def surface(self) -> Image.Image:
        """A ground alone, or one beside another."""
        ground = self._ground()
        share = int(self.fine * self.rng.uniform(0.1, 0.9))
        box = (0, 0, share, self.fine) if self._chance(0.5) else (0, 0, self.fine, share)
        ground.paste(self._ground().crop(box), box)
        return ground

    # Parts

    def _chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def _pick(self, among):
        return among[int(self.rng.integers(len(among)))]

    def _place(self, spread: float) -> tuple[float, float]:
        x, y = np.clip(self.rng.normal(0.5, spread, 2), 0.1, 0.9).tolist()
        return x, y

    def _flat(self, level: int | None = None, size: Size | None = None) -> Image.Image:
        """One level all over, or with none given one colour of all."""
        colour = self.rng.integers(256, size=3).tolist() if level is None else [level] * 3
        shape = size or (self.fine, self.fine)
        return Image.new(self.mode, shape, tuple(colour) if self.mode == "RGB" else colour[0])

    def _gradient(self, size: Size) -> Image.Image:
        """Four colours, one a corner."""
        middle = self.rng.integers(256)
        corners = np.clip(middle + self.rng.integers(-90, 91, size=(2, 2, 3)), 0, 255)
        image = Image.fromarray(corners.astype(np.uint8))
        return image.resize(size, Image.Resampling.BILINEAR, (0.5, 0.5, 1.5, 1.5)).convert(
            self.mode
        )

    def _photo(self, size: Size, least: float) -> Image.Image:
        """A piece of a photograph of the fold, at least ``least`` of its pixels a final pixel."""
        photo = self._pick(self.sources.photos)
        longest = min(photo.width / size[0], photo.height / size[1])
        low = min(least / FINE, longest)
        scale = low * (longest / low) ** self.rng.beta(1, 1.7)
        width, height = scale * size[0], scale * size[1]
        left = self.rng.uniform(0, photo.width - width)
        top = self.rng.uniform(0, photo.height - height)
        box = (left, top, left + width, top + height)
        piece = photo.resize(size, Image.Resampling.BILINEAR, box)
        return ImageOps.mirror(piece) if self._chance(0.5) else piece

    def _pattern(self, size: Size) -> Image.Image:
        """Stripes, checks or a small motif that repeats."""
        across, down = self.rng.integers(1, 7, 2).tolist()
        if self._chance(0.5):
            across, down = (1, down + 1) if self._chance(0.5) else (across + 1, 1)
        middle, spread = self.rng.integers(40, 216), self.rng.integers(20, 130)
        levels = middle + self.rng.integers(-spread, spread + 1, (down, across, 1))
        motif = np.clip(levels + self.rng.integers(-40, 41, 3), 0, 255).astype(np.uint8)
        step = self.rng.uniform(0.8, 2.0) * FINE
        times = int(np.ceil(size[1] / step / down)), int(np.ceil(size[0] / step / across))
        many = Image.fromarray(np.tile(motif, (*times, 1))).convert(self.mode)
        box = (0, 0, min(size[0] / step, many.width), min(size[1] / step, many.height))
        return many.resize(size, Image.Resampling.BILINEAR, box)

    def _ground(self) -> Image.Image:
        """Black, white, flat, gradient or photographic."""
        size = (self.fine, self.fine)
        if self._chance(self.black / 2):
            return self._flat(0)
        kind = self.rng.random()
        if kind < 0.15:
            return self._flat(255)
        if kind < 0.4:
            return self._flat()
        return self._gradient(size) if kind < 0.65 else self._photo(size, 0.7)

    def _fill(self, size: Size) -> Image.Image:
        return self._flat(size=size) if self._chance(0.4) else self._texture(size)

    def _texture(self, size: Size) -> Image.Image:
        kind = self.rng.random()
        if kind < 0.2:
            return self._gradient(size)
        return self._pattern(size) if kind < 0.4 else self._photo(size, 0.5)

    def _object(self) -> tuple[Image.Image, Image.Image]:
        """A clip art or an emoji: levels and mask, perhaps mirrored, inverted or textured."""
        at = int(np.searchsorted(self.sources.clip_bounds[:-1], self.rng.random(), "right"))
        tile = self.sources.clips[at] if self._chance(0.85) else self._emoji()
        if self._chance(0.5):
            tile = ImageOps.mirror(tile)
        mask = tile.getchannel("A")
        own = tile.convert(self.mode)
        # What is drawn in black could not be seen on black.
        inside = mask.point(_THRESHOLD)
        dark = not inside.getbbox() or ImageStat.Stat(own.convert("L"), inside).mean[0] < DARK
        if self._chance(0.8 if dark else 0.2):
            own = ImageChops.invert(own)
        if self._chance(0.65):
            # A texture shows through, as cloth does under the seams of a garment.
            own = Image.blend(own, self._texture(own.size), self.rng.uniform(0.2, 1.0))
            if self._chance(0.6):
                own = ImageOps.autocontrast(own, mask=inside)
        if self._chance(0.6):
            low, high = self.rng.uniform((0, 160), (110, 280)).tolist()
            own = own.point(_tone(low, high, len(own.getbands())))
        return own, mask

    def _emoji(self) -> Image.Image:
        font = self.sources.emoji_font
        character = self._pick(self.sources.emoji)
        return _emoji_tile(character, font).convert("RGBA" if self.mode == "RGB" else "LA")

    def _character(self) -> Image.Image:
        """The mask of a glyph, thinned or thickened."""
        while True:
            font, characters = self._pick(self.sources.fonts)
            stroke = int(self.rng.choice((0, 0, 0, 0, 1, 2, 3, 5)))
            mask = _glyph(_font(str(font)), self._pick(characters), stroke)
            if mask is not None:
                return ImageOps.mirror(mask) if self._chance(0.15) else mask

    def _inked(self, size: Size) -> tuple[Image.Image, Image.Image]:
        """What a stroke is drawn in, and the ground: most are bright on black."""
        kind = self.rng.random() * 0.65 / self.black
        if kind < 0.5:
            level = int(255 - abs(self.rng.normal(0, 40)) % 200)
            return self._flat(level, size), self._flat(0)
        if kind < 0.65:
            return self._fill(size), self._flat(0)
        if self._chance(0.25):
            return self._flat(int(self.rng.integers(80)), size), self._flat(255)
        return self._fill(size), self._ground()

    def _composed(
        self,
        ground: Image.Image,
        tile: Image.Image,
        mask: Image.Image,
        scale: float,
        place: tuple[float, float],
        turn: float,
        shear: float,
    ) -> Image.Image:
        """The ground with the tile upon it, its middle at ``place``, turned and sheared."""
        size = (max(round(scale * tile.width), 2), max(round(scale * tile.height), 2))
        if size != tile.size:
            tile = tile.resize(size, Image.Resampling.HAMMING)
            mask = mask.resize(size, Image.Resampling.HAMMING)
        x, y = place[0] * self.fine, place[1] * self.fine
        if turn or shear:
            cos, sin = np.cos(turn), np.sin(turn)
            matrix = np.array([[cos, sin], [-sin, cos]]) @ np.array([[1, shear], [0, 1]])
            offset = np.array(size) / 2 - matrix @ (x, y)
            data = (*matrix[0], offset[0], *matrix[1], offset[1])
            whole = ground.size
            method, sampling = Image.Transform.AFFINE, Image.Resampling.BILINEAR
            tile = tile.transform(whole, method, data, sampling)
            mask = mask.transform(whole, method, data, sampling)
            ground.paste(tile, (0, 0), mask)
        else:
            ground.paste(tile, (round(x - size[0] / 2), round(y - size[1] / 2)), mask)
        return ground

    def _down(self, drawn: Image.Image, finish: "Finish") -> Image.Image:
        """The drawing at its size: the mean of each block, or softer, or sharper."""
        kind = self.rng.random()
        if kind < finish.blurred:
            drawn = drawn.filter(ImageFilter.BoxBlur(self.rng.uniform(0.5, FINE)))
        if self.mode == "RGB" or kind < 1 - finish.sharpened:
            return drawn.reduce(FINE)
        # Fashion-MNIST's makers took single pixels and sharpened them.
        single = self._chance(finish.single)
        size = (self.side, self.side)
        made = drawn.resize(size, Image.Resampling.NEAREST) if single else drawn.reduce(FINE)
        return made.filter(ImageFilter.UnsharpMask(1.0, int(self.rng.integers(30, 150)), 0))


@dataclass(frozen=True)
class Finish:
    """Shares of pictures that are blurred, sharpened, and of these made of single pixels."""

    blurred: float
    sharpened: float
    single: float


SOFT, CRISP = Finish(0.25, 0.25, 0.4), Finish(0.1, 0.6, 0.6)

KINDS: Mapping[int, Mapping[str, float]] = {
    1: {"framed": 0.34, "object": 0.16, "glyph": 0.28, "strokes": 0.08, "photograph": 0.1,
        "surface": 0.04},
    3: {"framed": 0.08, "object": 0.34, "glyph": 0.22, "strokes": 0.05, "photograph": 0.25,
        "surface": 0.06},
}  # fmt: skip
"""Shares of the kinds of pictures, by channels: names of the painter's methods."""
BLACK = {1: 0.65, 3: 0.2}
"""Share of the glyphs and strokes that are bright on black; half of it for objects in a scene."""
DARK = 48
"""Mean level below which a drawing counts as dark."""

_THRESHOLD = [255 * (level > 128) for level in range(256)]


def read(request: Request) -> Raw:
    """Both folds, drawn chunk by chunk; the training fold is to be read first."""
    channels = request.facts.channels
    sources = lru_cache(maxsize=1)(lambda: gather(request.path, "RGB" if channels == 3 else "L"))
    sizes = {"train": request.facts.train_size, "test": request.facts.test_size}

    trained: set[bytes] = set()

    def pieces(fold: str) -> Iterator[Piece]:
        # Grounds alone can be the same in both folds: those of the training fold stay.
        seen = set[bytes]() if fold == "train" else set(trained)
        left, at = sizes[fold], 0
        while left:
            made = generate(sources()[fold], fold, channels, at)
            # A drawing without a texture can come again in the same size: it is taken once.
            contents = {each.tobytes(): row for row, each in reversed([*enumerate(made)])}
            rows = sorted(row for content, row in contents.items() if _brief(content) not in seen)
            seen |= {_brief(content) for content in contents}
            if rows:
                yield Piece(made[rows[:left]])
            left, at = left - len(rows[:left]), at + 1
        if fold == "train":
            trained.update(seen)

    return Raw({fold: Fold(size, partial(pieces, fold)) for fold, size in sizes.items()})


def stamp(path: Path) -> str:
    """The version of the recipe; the packages' files are taken to be the same."""
    return f"v{VERSION}"


def generate(sources: Sources, fold: str, channels: int, at: int) -> NDArray[np.uint8]:
    """Pictures at · CHUNK and following of a fold: uint8 CHUNK×C×32×32."""
    seed = hashlib.sha256(f"{VERSION}/pictures/{channels}/{fold}/{at}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(seed[:16], "big"))
    painter = Painter(sources, channels, rng)
    made = np.stack([np.asarray(painter.picture()) for _ in range(CHUNK)])
    planes = made.transpose(0, 3, 1, 2) if channels == 3 else made[:, None]
    return enlarge(torch.from_numpy(np.ascontiguousarray(planes))).numpy()


def _brief(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]


def _tone(low: float, high: float, bands: int) -> list[int]:
    """A table that maps 0 to ``low`` and 255 to ``high``, at most to 255, for every band."""
    levels = np.minimum(np.rint(np.linspace(low, high, 256)), 255)
    return np.tile(levels.astype(int), bands).tolist()


def _curve(rng: np.random.Generator, points: int) -> NDArray[np.float64]:
    """A smooth curve through random points in the unit square, as 40 places x, y."""
    steps = rng.normal(0, 0.3, size=(points, 2))
    through = np.cumsum(steps, axis=0)
    # Catmull–Rom: each piece passes through its two middle points.
    before, behind = 2 * through[:1] - through[1:2], 2 * through[-1:] - through[-2:-1]
    ends = np.concatenate([before, through, behind])
    t = np.linspace(0, points - 1 - 1e-9, 40)
    at, part = t.astype(int), (t % 1)[:, None]
    a, b, c, d = (ends[at + shift] for shift in range(4))
    curve = 0.5 * (
        2 * b + (c - a) * part + (2 * a - 5 * b + 4 * c - d) * part**2
        + (3 * b - a - 3 * c + d) * part**3
    )  # fmt: skip
    low, high = curve.min(0), curve.max(0)
    extent = rng.uniform(0.3, 0.8) / max((high - low).max(), 1e-6)
    centre = rng.normal(0.5, 0.06, 2)
    return (curve - (low + high) / 2) * extent + centre


@lru_cache(maxsize=512)
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, GLYPH, layout_engine=ImageFont.Layout.BASIC)


def _glyph(font: ImageFont.FreeTypeFont, character: str, stroke: int) -> Image.Image | None:
    """The mask of a character, cut to its box; None where it has none."""
    left, top, right, bottom = font.getbbox(character, stroke_width=stroke)
    size = (int(right - left), int(bottom - top))
    if min(size) < 4 or max(size) < 16:
        return None
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).text((-left, -top), character, 255, font, stroke_width=stroke)
    return mask if mask.getbbox() else None


@lru_cache(maxsize=4096)
def _emoji_tile(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    image = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(image).text((0, 0), character, font=font, embedded_color=True)
    return image.crop(image.getbbox() or (0, 0, 8, 8))
