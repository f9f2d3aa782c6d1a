"""Decoding: files of every kind that Pillow writes, with pixels known from the arrays in them."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from oodflow.data.account import Account
from oodflow.data.archives import Shelf, find_images
from oodflow.data.decode import decode, pieces
from oodflow.data.image_files import UnreadableImage
from oodflow.data.source import Request
from oodflow.errors import UserError


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(3).integers(np.iinfo(dtype).max + 1, size=shape, dtype=dtype)


def stored(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return io.BytesIO(stream.getvalue())


def grey_of(rgb):
    """H×W×3 to H×W with the weights of S5.1, in double precision."""
    return np.rint(rgb.astype(float) @ [0.2989, 0.5870, 0.1140]).astype(np.uint8)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_colour_of_32_by_32_is_unchanged(kind, options):
    rgb = noise(32, 32, 3)
    pixels = decode(stored(Image.fromarray(rgb), kind, **options), 3)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert np.array_equal(pixels, rgb.transpose(2, 0, 1))
    # Single precision may round a value that lies on a half the other way.
    grey = decode(stored(Image.fromarray(rgb)), 1)
    assert grey.shape == (1, 32, 32)
    assert np.abs(grey[0].astype(int) - grey_of(rgb)).max() <= 1
    assert (grey[0] == grey_of(rgb)).mean() > 0.99


def test_grey_stays_as_it_is_and_is_repeated():
    grey = noise(32, 32)
    grey[0, :2] = 0, 255
    for source in (stored(Image.fromarray(grey)), stored(Image.fromarray(grey).convert("RGB"))):
        assert np.array_equal(decode(source, 1), grey[None])
        source.seek(0)
        assert np.array_equal(decode(source, 3), np.stack([grey] * 3))


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("PPM", "I")])
def test_16_bits_become_the_upper_8(kind, mode):
    wide = noise(32, 32, dtype=np.uint16)
    source = stored(Image.fromarray(wide), kind)
    assert Image.open(source).mode == mode
    source.seek(0)
    assert np.array_equal(decode(source, 1), (wide // 256)[None])


def test_a_16_bit_value_that_is_transparent_is_black():
    wide = noise(32, 32, dtype=np.uint16)
    source = stored(Image.fromarray(wide), transparency=int(wide[4, 5]))
    expected = np.where(wide == wide[4, 5], 0, wide // 256)
    assert np.array_equal(decode(source, 1), expected[None])


def test_one_bit_is_black_and_white():
    bits = noise(32, 32) > 127
    assert np.array_equal(decode(stored(Image.fromarray(bits)), 1), bits[None] * np.uint8(255))


def test_transparency_is_put_on_black():
    rgba = noise(32, 32, 4)
    rgba[:8, :, 3], rgba[8:16, :, 3] = 0, 255
    pixels = decode(stored(Image.fromarray(rgba)), 3).transpose(1, 2, 0)
    assert (pixels[:8] == 0).all() and np.array_equal(pixels[8:16], rgba[8:16, :, :3])
    assert np.abs(pixels - rgba[..., :3] * (rgba[..., 3:] / 255)).max() <= 1
    la = noise(32, 32, 2)
    la[:8, :, 1], la[8:16, :, 1] = 0, 255
    grey = decode(stored(Image.fromarray(la, "LA")), 1)[0]
    assert (grey[:8] == 0).all() and np.array_equal(grey[8:16], la[8:16, :, 0])


@pytest.mark.parametrize("transparent", [None, 7])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes(kind, transparent):
    indices, palette = noise(32, 32) % 16, noise(16, 3)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    options = {} if transparent is None else {"transparency": transparent}
    expected = palette[indices]
    if transparent is not None:
        expected[indices == transparent] = 0
    pixels = decode(stored(image, kind, **options), 3)
    assert np.array_equal(pixels, expected.transpose(2, 0, 1))


def test_cmyk():
    cmyk = noise(32, 32, 4)
    pixels = decode(stored(Image.fromarray(cmyk, "CMYK"), "TIFF"), 3).transpose(1, 2, 0)
    ink, black = cmyk[..., :3].astype(float), cmyk[..., 3:].astype(float)
    assert np.abs(pixels - (255 - ink) * (255 - black) / 255).max() <= 1


def test_the_first_frame_is_taken_and_orientation_left():
    frames = [Image.fromarray(noise(32, 32)), Image.new("L", (32, 32))]
    source = stored(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(source, 1)[0], noise(32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decode(stored(frames[0], exif=exif), 1)[0], noise(32, 32))


def test_a_crop_of_32_takes_the_centre():
    rgb = noise(41, 50, 3)
    # torchvision rounds (41 - 32) / 2 = 4.5 to the even 4.
    expected = rgb[4:36, 9:41].transpose(2, 0, 1)
    assert np.array_equal(decode(stored(Image.fromarray(rgb)), 3, crop=32), expected)


@pytest.mark.parametrize("size", [(45, 70), (70, 45), (20, 31), (64, 64)])
def test_resize_and_crop_are_those_of_torchvision(size):
    from torchvision.transforms import CenterCrop, Compose, Resize

    image = Image.fromarray(noise(*size, 3))
    expected = np.asarray(Compose([Resize(32), CenterCrop(32)])(image)).transpose(2, 0, 1)
    assert np.array_equal(decode(stored(image), 3, resize=32, crop=32), expected)


def test_other_sizes_are_stretched_to_32():
    flat = np.zeros((64, 128, 3), np.uint8)
    flat[:, 64:] = 200
    pixels = decode(stored(Image.fromarray(flat)), 3)
    assert pixels.shape == (3, 32, 32)
    assert (pixels[:, :, :15] == 0).all() and (pixels[:, :, 17:] == 200).all()
    # The central 128×128 of 256×256 is made four times smaller; within a block nothing mixes.
    big = np.kron(noise(8, 8), np.ones((32, 32), np.uint8))
    pixels = decode(stored(Image.fromarray(big)), 1, crop=128)
    assert np.array_equal(pixels[0, 3::8, 3::8], big[64:192, 64:192][12::32, 12::32])


def test_grey_is_taken_after_resizing():
    rgb = noise(90, 70, 3)
    small = np.asarray(Image.fromarray(rgb).resize((32, 32), Image.Resampling.BILINEAR))
    grey = decode(stored(Image.fromarray(rgb)), 1)[0]
    assert np.abs(grey.astype(int) - grey_of(small)).max() <= 1
    assert (grey == grey_of(small)).mean() > 0.99


def test_too_small_for_the_crop_is_said():
    with pytest.raises(UnreadableImage, match="40×31 pixels are too few for crop=32"):
        decode(stored(Image.fromarray(noise(31, 40))), 1, crop=32)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated_files_are_unreadable(kind):
    data = stored(Image.fromarray(noise(64, 64)), kind).getvalue()
    for keep in (0, 3, len(data) // 2):
        with pytest.raises(UnreadableImage):
            decode(io.BytesIO(data[:keep]), 3)


def test_decompression_bombs_and_absent_files_are_unreadable(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode(stored(Image.fromarray(noise(32, 32))), 3)
    with pytest.raises(UnreadableImage, match="No such file"):
        decode(tmp_path / "absent.png", 3)


def test_endings_that_pillow_only_writes_are_no_images(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(noise(32, 32)).save(tmp_path / name)
    (tmp_path / "notes.pdf").write_bytes(b"Pillow writes these and does not read them")
    assert [path.name for path in find_images([tmp_path], Account())] == ["a.png", "b.png"]


def test_pieces_keep_the_order_over_their_ends_and_leave_out_what_is_broken(monkeypatch):
    monkeypatch.setattr("oodflow.data.decode.CHUNK", 4)
    names = tuple(f"{i}" for i in range(10))
    data = {name: stored(Image.new("L", (32, 32), int(name))).getvalue() for name in names}
    data["5"] = data["5"][:50]
    for name in ("4", "5", "6", "7"):
        data[name] = data["5"]
    shelf = Shelf(Path("/shelf"), names, lambda name: io.BytesIO(data[name]))
    facts, told = SimpleNamespace(channels=3), []
    request = Request(facts, Path("/shelf"), lambda name, why: told.append(name))
    found = list(pieces(request, shelf, names, np.arange(10, 20)))
    # The middle piece would be empty and is not given.
    assert [piece.labels.tolist() for piece in found] == [[10, 11, 12, 13], [18, 19]]
    assert [piece.pixels[:, 0, 0, 0].tolist() for piece in found] == [[0, 1, 2, 3], [8, 9]]
    assert told == [f"/shelf/{i}" for i in range(4, 8)]
    with pytest.raises(UserError, match="^/shelf/4 cannot be read"):
        list(pieces(Request(facts, Path("/shelf")), shelf, names))
