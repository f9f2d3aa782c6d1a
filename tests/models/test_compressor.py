"""Compressors as models: lossless, and log p(x) is the size of the file."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import Tensor

from oodflow.errors import UserError
from oodflow.models.compressor import CODECS, Compressor


def noise(channels: int, count: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, 32, 32), generator=random, dtype=torch.uint8)


def speckle(channels: int) -> Tensor:
    """One pixel in five lit: repetitive enough for zlib's levels to differ."""
    return (noise(channels) > 204) * torch.tensor(200, dtype=torch.uint8)


def pixels(image: Tensor) -> np.ndarray:
    """C×32×32 as Pillow wants it: rows × columns, and colours only where there are some."""
    array = image.numpy()
    return array[0] if len(array) == 1 else np.ascontiguousarray(np.moveaxis(array, 0, 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("codec", CODECS)
def test_compression_is_lossless(codec: str, channels: int) -> None:
    original = pixels(noise(channels)[0])
    decoded = Image.open(io.BytesIO(CODECS[codec].encode(original)))
    assert decoded.format == CODECS[codec].format
    # WebP has no grey images: it stores three equal colours.
    assert np.array_equal(np.asarray(decoded.convert("L" if channels == 1 else "RGB")), original)


@pytest.mark.parametrize("channels", [1, 3])
def test_log_prob_counts_the_bits_of_a_png_at_the_highest_level(channels: int) -> None:
    images = speckle(channels)
    expected = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(pixels(image)).save(buffer, "png", optimize=True, compress_level=9)
        expected.append([-8 * buffer.tell() * math.log(2)])
    log_prob = Compressor(channels, "png")(images, torch.rand(images.shape))
    assert log_prob.shape == (3, 1) and log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob, torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("codec", CODECS)
def test_constant_images_are_likelier_than_noise(codec: str, channels: int) -> None:
    model = Compressor(channels, codec)
    flat = torch.full((1, channels, 32, 32), 90, dtype=torch.uint8)
    noisy = model.log_prob(noise(channels))
    assert model.log_prob(flat).item() > noisy.max().item() / 4
    assert noisy.max().item() < -channels * 32 * 32 * math.log(256)  # noise cannot be compressed


def test_images_keep_their_order() -> None:
    flat = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    images = torch.cat([noise(3, 40), flat, noise(3, 40)])
    sizes = Compressor(3, "png").file_sizes(images)
    assert len(sizes) == 81 and sizes.index(min(sizes)) == 40


def test_it_is_a_model_without_parameters() -> None:
    model = Compressor(3, "png")
    assert model.scales == 1 and model.image_shape == (3, 32, 32)
    assert not list(model.parameters()) and not model.state_dict()


def test_unknown_codec_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="unknown compressor 'gif'; available: png, webp, jpeg2000"):
        Compressor(3, "gif")


def test_codec_that_pillow_was_built_without_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: feature != "jpg_2000")
    with pytest.raises(UserError, match="cannot write jpeg2000"):
        Compressor(3, "jpeg2000")
    Compressor(3, "png")
