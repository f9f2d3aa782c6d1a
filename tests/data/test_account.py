"""Files as they come: every one is read, or counted with the reason why not."""

import io
import os
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from oodflow.data.account import Account
from oodflow.data.archives import find_images
from oodflow.data.image_files import MOST_PIXELS, UnreadableImage, image_suffixes, open_image


def names(folder, account):
    return [str(file.relative_to(folder)) for file in find_images([folder], account)]


def test_a_macs_folder_and_what_else_lies_in_folders(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "c.JPEG")
    for name in ("._b.png", ".DS_Store", "Thumbs.db", "clip.mpg", "features.h5", "IMG_1.HEIC",
                 "IMG_2.heic", "noending", "picture.eps", "x.hdf", "caf\udce9.txt"):  # fmt: skip
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "d.png").write_bytes(b"?")
    (tmp_path / "elsewhere").symlink_to("/usr")
    (tmp_path / "gone.png").symlink_to("absent")
    os.mkfifo(tmp_path / "pipe.png")
    account = Account()
    assert names(tmp_path, account) == ["b.png", "a/c.JPEG"]
    assert account.left_out == {
        "hidden": 3, ".db": 1, ".mpg": 1, ".h5": 1, ".heic": 2, "without an ending": 1, ".eps": 1,
        ".hdf": 1, ".txt": 1, "links to folders or to nothing": 2, "devices or pipes": 1,
    }  # fmt: skip
    [line] = account.lines()
    assert line.startswith("15 left out: 3 hidden")
    assert "2 .heic (install pillow-heif to read them)" in line


def test_endings_of_what_pillow_decodes_and_no_others():
    """Pillow opens some formats only to say their name, which no file can be read by."""
    decoded = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".gif", ".bmp", ".jp2", ".avif"}
    assert decoded <= image_suffixes()
    for suffix in decoded:
        stream = io.BytesIO()
        Image.new("RGB", (32, 32)).save(stream, Image.registered_extensions()[suffix])
        stream.seek(0)
        assert open_image(stream).size == (32, 32)
    assert not {".h5", ".hdf", ".mpg", ".grib", ".wmf", ".eps", ".ps", ".pdf"} & image_suffixes()


def opened(tmp_path, values, **options):
    remarks = []
    Image.fromarray(values).save(tmp_path / "a.tif", **options)
    image = open_image(tmp_path / "a.tif", remark=remarks.append)
    return np.asarray(image), remarks


RAMP = np.linspace(0, 1, 1024).reshape(32, 32)


def test_floats_to_1_and_to_255_are_alike(tmp_path):
    expected = np.rint(RAMP * 255)
    for scale in (1, 255):
        levels, remarks = opened(tmp_path, (RAMP * scale).astype(np.float32))
        assert np.abs(levels - expected).max() == 0 and remarks == []


@pytest.mark.parametrize(
    "values",
    [
        (RAMP * 65535).astype(np.float32),
        (RAMP - 0.5).astype(np.float32),
        np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32),
        np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32),
        (RAMP * 70_000).astype(np.int32),
        (RAMP * 10 - 5).astype(np.int32),
    ],
)
def test_values_outside_the_rule_are_refused_with_their_range(tmp_path, values):
    with pytest.raises(UnreadableImage, match="its values from .* to .* are not within 0 to"):
        opened(tmp_path, values)


@pytest.mark.parametrize(("bits", "dim"), [(12, True), (14, True), (10, True), (8, True),
                                           (15, False), (16, False)])  # fmt: skip
@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_16_bits_that_hold_fewer_are_told(tmp_path, bits, dim, kind):
    values = np.rint(RAMP * (2**bits - 1)).astype(kind)
    levels, remarks = opened(tmp_path, values)
    assert np.array_equal(levels, values >> 8)
    assert remarks == ["dim"] * dim


def test_dim_pictures_of_8_bits_and_black_ones(tmp_path):
    masks = (RAMP > 0.5).astype(np.uint8)
    assert opened(tmp_path, masks)[1] == ["dim"]
    assert opened(tmp_path, np.stack([masks] * 3, -1))[1] == ["dim"]
    for black in (np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint16)):
        assert opened(tmp_path, black)[1] == []


@pytest.mark.parametrize("place", [(0, 0), (4, 4), (7, 7)])
def test_one_bright_pixel_anywhere_is_no_dim_picture(tmp_path, place):
    pixels = np.ones((8, 8, 3), np.uint8)
    pixels[place] = 1, 16, 1
    assert opened(tmp_path, pixels)[1] == []
    assert opened(tmp_path, pixels[..., 1])[1] == []


def test_a_pipe_is_read_once(tmp_path):
    Image.fromarray(pixels := np.full((8, 8, 3), 77, np.uint8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe")
    content = (tmp_path / "a.png").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    assert np.array_equal(open_image(tmp_path / "pipe"), pixels)
    writer.join()


def test_a_turn_that_is_not_applied_is_told(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    remarks = []
    Image.new("RGB", (20, 30), "white").save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg", remark=remarks.append).size == (20, 30)
    assert remarks == ["turned"]
    account = Account()
    account.remark("turned", "a.jpg")
    account.remark("turned", "b.jpg")
    [line] = account.lines()
    assert line == "images that EXIF asks to turn, read as they are stored: 2, such as a.jpg"


def test_100_megapixels_are_read_without_a_word_and_200_refused_in_one_line(tmp_path):
    Image.new("1", (10_000, 10_000), 1).save(tmp_path / "big.png")
    Image.new("1", (20_000, 9_000), 1).save(tmp_path / "bomb.png")
    with warnings.catch_warnings(record=True) as warned:
        assert open_image(tmp_path / "big.png").getextrema() == (255, 255)
        with pytest.raises(UnreadableImage, match=f"180000000 pixels.*{MOST_PIXELS} pixels"):
            open_image(tmp_path / "bomb.png")
    assert warned == []
