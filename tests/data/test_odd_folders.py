"""Generated folders of odd files: every file is read, refused by name, or counted as left out."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from oodflow.data.account import Account
from oodflow.data.archives import find_images
from oodflow.data.catalog import lookup
from oodflow.data.folder import read
from oodflow.data.source import Request
from oodflow.detection.inputs import from_file
from oodflow.detection.preprocessing import preprocessing_of
from oodflow.errors import UserError

NAMES = (
    *("a", "ü ñ", "日本", "it's", 'q"q', "100%", "a,b", "what?", "#1", "-dash", "caf\udce9"),
    *("tab\there", "x" * 200, ".hidden", "train", "val", "TEST", "[red]", "$HOME", "a&b"),
)
ENDINGS = (
    *(".png", ".PNG", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp", ".heic", ".txt"),
    *("", ".h5", ".mpg", ".eps", ".pdf", ".svg", ".jp2", ".ico", ".ppm", ".db"),
)


def picture(rng) -> Image.Image:
    """A picture of a random kind, size and range."""
    height, width = rng.integers(1, 70, 2)
    kind = rng.integers(9)
    pixels = rng.integers(256, size=(height, width, 4), dtype=np.uint8)
    match kind:
        case 0:
            return Image.fromarray(pixels[..., :3])
        case 1:
            return Image.fromarray(pixels)
        case 2:
            return Image.fromarray(pixels[..., 0])
        case 3:
            return Image.fromarray(pixels[..., 0] > 99)
        case 4:
            return Image.fromarray(pixels[..., 0].astype(np.uint16) * int(rng.integers(1, 257)))
        case 5:
            scale = rng.choice([1 / 255, 1, 200, -1, np.nan])
            return Image.fromarray(pixels[..., 0].astype(np.float32) * np.float32(scale))
        case 6:
            return Image.fromarray(pixels[..., 0].astype(np.int32) * int(rng.integers(-1, 600)))
        case 7:
            return Image.fromarray(pixels[..., :3]).quantize(9)
        case _:
            return Image.fromarray(pixels, "CMYK")


def content(rng) -> bytes:
    """The bytes of a picture of any format, whole or cut or changed, or of something else."""
    stream = io.BytesIO()
    try:
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(1, 9))
        kind = rng.choice(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"])
        picture(rng).save(stream, kind, exif=exif)
    except (OSError, ValueError, TypeError, KeyError):
        return rng.bytes(int(rng.integers(40)))
    data = bytearray(stream.getvalue())
    match rng.integers(5):
        case 0:
            return bytes(data[: rng.integers(len(data) + 1)])
        case 1:
            data[rng.integers(len(data))] ^= 255
    return bytes(data)


def fill(folder, rng) -> int:
    """Write an odd folder; returns the number of entries that are no folders to go into."""
    places, entries = [folder], 0
    folder.mkdir()
    for _ in range(rng.integers(3)):
        place = places[rng.integers(len(places))] / str(rng.choice(NAMES))
        if not place.exists():
            place.mkdir()
            # Nobody goes into a hidden folder: it counts as one.
            if place.name.startswith("."):
                entries += 1
            else:
                places.append(place)
    for _ in range(rng.integers(1, 16)):
        file = places[rng.integers(len(places))] / f"{rng.choice(NAMES)}{rng.choice(ENDINGS)}"
        if os.path.lexists(file):
            continue
        match rng.integers(12):
            case 0:
                file.symlink_to(folder)
            case 1:
                file.symlink_to("absent")
            case 2:
                os.mkfifo(file)
            case _:
                file.write_bytes(content(rng))
        entries += 1
    return entries


@pytest.mark.parametrize("start", range(0, 100, 10))
def test_read_and_left_out_are_all_there_are(tmp_path, start):
    outcomes = set()
    for seed in range(start, start + 10):
        folder = tmp_path / f"f{seed}"
        entries = fill(folder, np.random.default_rng(seed))
        # As score and detect see it.
        account, how = Account(), preprocessing_of(f"folder:{folder}")
        try:
            files = list(find_images([folder], account))
        except UserError as error:
            files = []
            assert "no image in" in str(error)
        inputs = [from_file(file, how) for file in files]
        assert len(inputs) + account.left_out.total() == entries
        assert all((each.pixels is None) == bool(each.error) for each in inputs)
        # As a dataset sees it.
        broken: list[str] = []
        request = Request(
            lookup(f"folder:{folder}?channels=3"),
            folder,
            lambda name, why, b=broken: b.append(name),
        )
        try:
            raw = read(request)
            pieces = [piece for fold in raw.folds.values() for piece in fold.pieces()]
        except UserError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
            outcomes.add("refused")
            continue
        count = sum(len(piece.pixels) for piece in pieces)
        assert count + len(broken) + request.account.left_out.total() == entries
        assert sum(len(piece.files) for piece in pieces) == count
        # What both read is alike.
        assert len(broken) <= sum(each.pixels is None for each in inputs)
        outcomes.add("read")
    assert "read" in outcomes
