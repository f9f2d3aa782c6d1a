"""Images as people send them: the same pixels as in training, or an error text and no exception."""

import base64
import io
import struct
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from oodflow.data.decode import decode
from oodflow.data.folder import read
from oodflow.data.source import Request, to_grey
from oodflow.data.torchvision_sets import enlarge
from oodflow.detection.inputs import (
    MOST_SENT_PIXELS,
    from_anything,
    from_array,
    from_base64,
    from_bytes,
    from_file,
    from_picture,
)
from oodflow.detection.preprocessing import Preprocessing, preprocessing_of
from oodflow.errors import UserError

PLAIN = Preprocessing(3)


def photo(width=60, height=45, mode="RGB", seed=0):
    """A picture of random blocks, which resizing changes."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def content(picture, format="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def text(picture, format="PNG"):
    return base64.b64encode(content(picture, format)).decode()


def huge_png(width, height):
    """A PNG whose head promises so many pixels, and which ends after a few."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "options", ["", "?crop=32", "?resize=40", "?resize=40&crop=32", "?channels=1"]
)
def test_a_folder_detector_sees_what_the_folder_dataset_held(tmp_path, options):
    for i in range(4):
        photo(50 + 7 * i, 61, seed=i).save(tmp_path / f"{i}.png")
    photo(40, 40, "L").save(tmp_path / "4.jpg")
    how = preprocessing_of(f"folder:{tmp_path}{options}")
    given = dict(pair.split("=") for pair in options[1:].split("&") if pair)
    facts = SimpleNamespace(
        name="", channels=how.channels, classes=0, options={**given, "test": "1"}
    )
    raw = read(Request(facts, tmp_path))
    [piece] = raw.folds["test"].pieces()
    files = sorted(tmp_path.iterdir())
    for file, expected in zip(files, piece.pixels, strict=True):
        np.testing.assert_array_equal(from_file(file, how).pixels, expected)
        np.testing.assert_array_equal(from_bytes(file.read_bytes(), how).pixels, expected)


def test_an_mnist_detector_enlarges_as_the_dataset_was():
    how = preprocessing_of("mnist")
    small = photo(28, 28, "L")
    expected = enlarge(torch.from_numpy(np.asarray(small)[None, None].copy())).numpy()[0]
    sent = from_bytes(content(small), how)
    np.testing.assert_array_equal(sent.pixels, expected)
    assert sent.resized
    # Pillow rounds otherwise, so this is not what any resizing gives.
    assert (decode(io.BytesIO(content(small)), 1) != expected).any()
    colour = np.asarray(photo(28, 28))
    expected = to_grey(enlarge(torch.from_numpy(colour.transpose(2, 0, 1)[None].copy())).numpy())
    np.testing.assert_array_equal(from_array(colour, how).pixels, expected[0])
    assert from_bytes(content(photo(300, 200)), how).pixels.shape == (1, 32, 32)


@pytest.mark.parametrize("size", [(33, 35), (40, 47)])
def test_a_slice_is_cut_where_the_test_fold_was(size):
    how = preprocessing_of("brats-t1")
    pixels = np.asarray(photo(*size, "L"))
    top, left = (size[1] - 32) // 2, (size[0] - 32) // 2
    sent = from_array(pixels, how)
    expected = pixels[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(sent.pixels, np.repeat(expected[None], 3, axis=0))
    assert not sent.resized
    assert "less than 32×32" in from_array(pixels[:30], how).error


def test_grey_forms_and_scenes_are_prepared_as_their_datasets():
    assert preprocessing_of("cifar10-grey") == Preprocessing(1, method="torch")
    assert preprocessing_of("lsun") == Preprocessing(3, 32, 32)
    assert preprocessing_of("sketch-shapes-grey") == Preprocessing(1)
    grey = from_bytes(content(photo(32, 32)), Preprocessing(1)).pixels
    np.testing.assert_array_equal(
        grey, to_grey(np.asarray(photo(32, 32)).transpose(2, 0, 1)[None])[0]
    )


@pytest.mark.parametrize(
    ("how", "size", "resized"),
    [
        (PLAIN, (32, 32), False),
        (PLAIN, (64, 64), True),
        (Preprocessing(3, crop=32), (64, 50), False),
        (Preprocessing(3, crop=40), (64, 50), True),
        (Preprocessing(3, resize=32, crop=32), (32, 50), False),
        (Preprocessing(3, resize=32, crop=32), (64, 50), True),
        (Preprocessing(3, resize=32), (32, 50), True),
        (preprocessing_of("mnist"), (28, 28), True),
        (preprocessing_of("mnist"), (32, 32), False),
    ],
)
def test_who_was_resized_is_told(how, size, resized):
    sent = from_picture(photo(*size), how)
    assert sent.error == "" and sent.resized == resized
    assert sent.pixels.shape == (how.channels, 32, 32) and sent.pixels.dtype == np.uint8


def test_every_way_of_sending_gives_the_same_pixels(tmp_path):
    picture = photo(32, 32)
    expected = np.asarray(picture).transpose(2, 0, 1)
    file = tmp_path / "a.png"
    picture.save(file)
    tensor = torch.from_numpy(expected.copy())
    ways = [file, str(file), content(picture), picture, np.asarray(picture), expected, tensor]
    for way in ways:
        np.testing.assert_array_equal(from_anything(way, PLAIN).pixels, expected)
    for line in (
        text(picture),
        f"data:image/png;base64,{text(picture)}",
        text(picture)[:70] + "\n" + text(picture)[70:],
    ):
        np.testing.assert_array_equal(from_base64(line, PLAIN).pixels, expected)
    assert from_anything(3.5, PLAIN).error.startswith("float is no image")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_the_formats_that_people_send(format):
    file = content(photo(), format)
    expected = decode(io.BytesIO(file), 3)
    np.testing.assert_array_equal(from_bytes(file, PLAIN).pixels, expected)


def test_rare_kinds_follow_the_rules_of_the_datasets():
    """Palette, transparency, 16 bits, one bit, CMYK, and an orientation that EXIF asks for."""
    transparent = photo(32, 32).convert("RGBA")
    transparent.putalpha(photo(32, 32, "L", seed=3))
    deep = Image.fromarray(np.linspace(0, 65535, 1024, dtype=np.uint16).reshape(32, 32))
    turned = Image.Exif()
    turned[0x0112] = 6
    cases = [
        content(photo(32, 32).quantize(16)),
        content(transparent),
        content(deep),
        content(photo(32, 32, "1")),
        content(photo(32, 40, "CMYK"), "JPEG"),
        content(photo(32, 40), "JPEG", exif=turned),
    ]
    for file in cases:
        np.testing.assert_array_equal(from_bytes(file, PLAIN).pixels, decode(io.BytesIO(file), 3))
    assert from_bytes(cases[2], PLAIN).pixels.max() == 255
    rgba = np.asarray(transparent)
    np.testing.assert_array_equal(
        from_array(rgba, PLAIN).pixels, from_bytes(cases[1], PLAIN).pixels
    )


def test_what_is_no_image_is_an_error_text_of_one_line(tmp_path):
    note = tmp_path / "note.png"
    note.write_text("not an image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(content(photo(200, 200))[:1000])
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    bad = [
        from_file(note, PLAIN),
        from_file(cut, PLAIN),
        from_file(tmp_path / "absent.png", PLAIN),
        from_bytes(b"", PLAIN),
        from_bytes(eps, PLAIN),
        from_base64("!!!", PLAIN),
        from_base64("", PLAIN),
        from_base64(None, PLAIN),
        from_array(np.zeros((32, 32, 3)), PLAIN),
        from_array(np.zeros((5, 32, 32, 3), np.uint8), PLAIN),
        from_array(np.zeros((32, 32, 2), np.uint8), PLAIN),
        from_array(np.zeros((0, 32, 3), np.uint8), PLAIN),
        from_picture(photo(20, 40), Preprocessing(3, crop=32)),
    ]
    for each in bad:
        assert each.pixels is None and each.error and "\n" not in each.error
        assert "0x" not in each.error
    assert bad[0].error == bad[3].error == bad[4].error == "no image of a known format"
    assert bad[8].error == "an array of float64; give uint8"


def test_a_300_megapixel_image_is_not_decoded(tmp_path, monkeypatch):
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr(
        "PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self.size) or load(self)
    )
    with warnings.catch_warnings(record=True) as warned:
        large = from_bytes(huge_png(10_000, 9_000), PLAIN)
    assert warned == []
    assert str(MOST_SENT_PIXELS) in large.error and "10000×9000" in large.error
    file = tmp_path / "bomb.png"
    file.write_bytes(huge_png(20_000, 15_000))
    bomb = from_file(file, PLAIN)
    assert bomb.pixels is None and "300000000 pixels" in bomb.error
    assert decoded == []


def test_numbers_that_are_no_lengths_are_refused():
    with pytest.raises(UserError, match="resize=-1"):
        Preprocessing(3, resize=-1)
    with pytest.raises(UserError, match="1 or 3 channels"):
        Preprocessing(2)
    with pytest.raises(UserError, match="unknown method"):
        Preprocessing(3, method="magic")
