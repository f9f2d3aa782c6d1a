"""The embedded datasets, the sketch family: generated from a fixed seed, cached on disk.

They show in minutes what the paper shows on CIFAR10 and SVHN: shapes on photographs are the
in-distribution, digits on smooth gradients are simpler images that fool a raw likelihood, and the
general set has something of everything. An image is background·(1 − mask) + fill·mask.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodflow.data.catalog import lookup
from oodflow.data.sketch_masks import STYLES, glyph_tiles, place, shape_tiles
from oodflow.data.sketch_photos import SIDE, crops
from oodflow.errors import UserError

__all__ = ["DIGITS", "LETTERS", "PRINTABLE", "VERSION", "cache_file", "generate", "read"]

VERSION = 1
"""Raise it with every change that changes a pixel: it is in the seed and in the cached name."""

LETTERS = "ABEGHKMRSX"
DIGITS = "0123456789"
PRINTABLE = "".join(map(chr, range(33, 127)))

CHUNK = 500
"""Images made at once. Part of the recipe: each chunk has a random generator of its own."""

RECORD = np.dtype([("pixels", np.uint8, (3, SIDE, SIDE)), ("label", np.int8)])
"""One image in the cached file; the label is −1 where there is none."""


def generate(name: str, fold: str, count: int) -> NDArray[np.void]:
    """The first ``count`` images of a fold as N records; the same for every larger count."""
    chunks = [_chunk(name, fold, at) for at in range(-(-count // CHUNK))]
    return np.concatenate(chunks)[:count] if chunks else np.empty(0, RECORD)


def read(name: str, fold: str, data_dir: Path, limit: int = 0) -> tuple[Tensor, Tensor | None]:
    """Pixels (uint8 N×3×32×32) and labels (int64 N, or None) of a fold.

    They are the first ``limit``, or all where it is 0. The fold is generated at its first use and
    read from the data folder afterwards. Raises UserError where the cached file is damaged or
    cannot be written.
    """
    facts = lookup(name)
    file = cache_file(name, fold, data_dir)
    size = facts.train_size if fold == "train" else facts.test_size
    if not file.exists():
        _write(file, generate(name, fold, size))
    try:
        records = np.load(file, mmap_mode="r", allow_pickle=False)
    # numpy has no one error for a file that is cut or is something else.
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise _damaged(file) from error
    if records.dtype != RECORD or records.shape != (size,):
        raise _damaged(file)
    chosen = records[: limit or None]
    # Always a copy: one record alone is contiguous, and its tensor would write into the file.
    pixels = torch.from_numpy(chosen["pixels"].copy())
    if not facts.classes:
        return pixels, None
    return pixels, torch.from_numpy(chosen["label"].astype(np.int64))


def cache_file(name: str, fold: str, data_dir: Path) -> Path:
    """Where a generated fold is kept."""
    return data_dir / "sketch" / f"{name}-{fold}-v{VERSION}.npy"


def _damaged(file: Path) -> UserError:
    return UserError(f"{file} is damaged; delete it and it is generated again")


def _write(file: Path, records: NDArray[np.void]) -> None:
    """Write the whole file or none; of processes that start together the last one's stays."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            with temporary.open("wb") as stream:
                np.save(stream, records, allow_pickle=False)
            os.replace(temporary, file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}); choose another data folder "
            "with data_dir or OODFLOW_DATA"
        ) from error


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
