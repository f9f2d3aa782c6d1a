"""The embedded datasets, the sketch family: generated from a fixed seed.

They show in minutes what the paper shows on CIFAR10 and SVHN: shapes on photographs are the
in-distribution, digits on smooth gradients are simpler images that fool a raw likelihood, and the
general set has something of everything. An image is background·(1 − mask) + fill·mask.

``letters-grey`` and ``scenes-grey`` are outliers beside MNIST and Fashion-MNIST: they come to 32×32
by way of 28×28 as those do, since another resampling is an anomaly by itself (arXiv:2405.11881).
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from oodflow.data.catalog import lookup
from oodflow.data.sketch_masks import STYLES, glyph_tiles, place, shape_tiles
from oodflow.data.sketch_photos import SIDE, crops
from oodflow.data.source import Fold, Piece, Raw, Request, to_grey
from oodflow.data.torchvision_sets import enlarge

__all__ = ["DIGITS", "LETTERS", "PRINTABLE", "VERSION", "generate", "read", "stamp"]

VERSION = 1
"""Raise it with every change that changes a pixel: it is in the seed and in the stamp."""

LETTERS = "ABEGHKMRSX"
DIGITS = "0123456789"
PRINTABLE = "".join(map(chr, range(33, 127)))

BESIDE_MNIST = {"letters-grey": "sketch-letters", "scenes-grey": "sketch-scenes"}
"""Grey datasets of 28×28, and the recipe of each."""

CHUNK = 500
"""Images made at once. Part of the recipe: each chunk has a random generator of its own."""

RECORD = np.dtype([("pixels", np.uint8, (3, SIDE, SIDE)), ("label", np.int8)])
"""One image; the label is −1 where there is none."""


def generate(name: str, fold: str, count: int) -> NDArray[np.void]:
    """The first ``count`` images of a fold as N records; the same for every larger count."""
    chunks = [_chunk(name, fold, at) for at in range(-(-count // CHUNK))]
    return np.concatenate(chunks)[:count] if chunks else np.empty(0, RECORD)


def read(request: Request) -> Raw:
    """The folds that the dataset has, generated chunk by chunk."""
    facts = request.facts
    sizes = {"train": facts.train_size, "test": facts.test_size}
    return Raw(
        {
            fold: Fold(size, partial(_pieces, facts.name, fold, size))
            for fold, size in sizes.items()
            if size
        }
    )


def stamp(path: Path) -> str:
    """The version of the recipe; there are no raw files."""
    return f"v{VERSION}"


def _pieces(name: str, fold: str, size: int) -> Iterator[Piece]:
    labelled = lookup(name).classes > 0
    for at in range(-(-size // CHUNK)):
        records = _chunk(BESIDE_MNIST.get(name, name), fold, at)[: size - at * CHUNK]
        labels = records["label"].astype(np.int64) if labelled else None
        pixels = records["pixels"]
        yield Piece(_by_way_of_28(pixels) if name in BESIDE_MNIST else pixels, labels)


def _by_way_of_28(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """N×3×32×32 as grey N×1×32×32 that was 28×28 in between."""
    grey = torch.from_numpy(to_grey(pixels)).float()
    small = F.interpolate(grey, size=(28, 28), mode="bilinear", antialias=True)
    return enlarge(small.round().to(torch.uint8)).numpy()


def _chunk(name: str, fold: str, at: int) -> NDArray[np.void]:
    """Images at · CHUNK and following."""
    seed = hashlib.sha256(f"{VERSION}/{name}/{fold}/{at}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(seed[:16], "big"))
    records = np.empty(CHUNK, RECORD)
    labels = rng.integers(lookup(name).classes or 1, size=CHUNK)
    if name == "sketch-scenes":
        pixels = crops(CHUNK, fold, rng)
    elif name == "sketch-general":
        pixels = _mixture(fold, rng)
    elif name == "sketch-digits":
        middle = _muted(CHUNK, rng)
        brightness = middle.sum(axis=1, keepdims=True) // 3
        # Away from the nearer end of the range, so that the digit can always be seen.
        fill = _tinted(np.where(brightness < 128, brightness + 64, brightness - 64), rng)
        mask = place(_glyphs(DIGITS, labels, rng), rng)
        pixels = _paint(_gradients(middle, 24, rng), fill, mask)
    else:
        tiles = shape_tiles()[labels] if name == "sketch-shapes" else _glyphs(LETTERS, labels, rng)
        fill = _fills(_muted(CHUNK, rng), fold, rng)
        pixels = _paint(crops(CHUNK, fold, rng), fill, place(tiles, rng))
    records["pixels"] = pixels
    records["label"] = labels if lookup(name).classes else -1
    return records


def _mixture(fold: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Photo crops and gradients, empty or with any shape or printable character: N×3×32×32."""
    colour = np.where(
        (rng.random(CHUNK) < 0.5)[:, None, None, None], _muted(CHUNK, rng), _any(CHUNK, rng)
    )
    ground = np.where(
        (rng.random(CHUNK) < 0.5)[:, None, None, None],
        crops(CHUNK, fold, rng),
        _gradients(_muted(CHUNK, rng), 60, rng),
    )
    glyphs = _glyphs(PRINTABLE, rng.integers(len(PRINTABLE), size=CHUNK), rng)
    shapes = shape_tiles()[rng.integers(len(shape_tiles()), size=CHUNK)]
    kind = rng.random(CHUNK)[:, None, None]
    mask = place(np.where(kind < 0.4, glyphs, shapes), rng, sizes=(12.0, 28.0), turn=0.6)
    return _paint(ground, _fills(colour, fold, rng), np.where(kind < 0.6, mask, 0))


def _glyphs(
    characters: str, which: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Tiles of the chosen characters, each in a random style."""
    return glyph_tiles(characters)[which * len(STYLES) + rng.integers(len(STYLES), size=len(which))]


def _fills(colour: NDArray[np.int64], fold: str, rng: np.random.Generator) -> NDArray[np.int64]:
    """What objects are filled with, half of them their colour and half a photo crop: N×3×32×32."""
    plain = (rng.random(CHUNK) < 0.5)[:, None, None, None]
    return np.where(plain, colour, crops(CHUNK, fold, rng))


def _any(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """One of all colours an image: N×3×1×1."""
    return rng.integers(256, size=(count, 3, 1, 1))


def _muted(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """One colour near grey an image, as most surfaces have: N×3×1×1."""
    return _tinted(rng.integers(256, size=(count, 1, 1, 1)), rng)


def _tinted(brightness: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A colour near grey of each brightness N×1×1×1: N×3×1×1."""
    return np.clip(brightness + rng.integers(-30, 31, size=(len(brightness), 3, 1, 1)), 0, 255)


def _gradients(
    middle: NDArray[np.int64], spread: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Four corner colours around a given one, interpolated bilinearly: N×3×32×32."""
    count = len(middle)
    bright = rng.integers(-spread, spread + 1, size=(count, 1, 2, 2))
    tint = rng.integers(-spread // 3, spread // 3 + 1, size=(count, 3, 2, 2))
    corners = np.clip(middle + bright + tint, 0, 255)
    last = SIDE - 1
    right = np.arange(SIDE)
    across = corners[..., :1] * (last - right) + corners[..., 1:] * right
    down = right[:, None]
    mixed = across[:, :, :1] * (last - down) + across[:, :, 1:] * down
    return (mixed + last**2 // 2) // last**2


def _paint(ground: NDArray[Any], fill: NDArray[Any], mask: NDArray[np.int64]) -> NDArray[np.uint8]:
    """ground·(1 − mask) + fill·mask in integers, rounded: uint8 N×3×32×32."""
    cover = mask[:, None]
    return ((ground * (255 - cover) + fill * cover + 127) // 255).astype(np.uint8)
