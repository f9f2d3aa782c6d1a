"""The Fourier mix against explicit DFT matrices, and the orders that leave nothing in place."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.evaluation.fourier import derangement, fourier_mix, mix_spectra

SHAPES = [(6, 3, 8, 8), (5, 1, 7, 7), (4, 2, 6, 9)]


def random_images(shape, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def dft(size: int, sign: int = -1) -> np.ndarray:
    """The matrix exp(sign·2πi·j·k/n)."""
    steps = np.arange(size)
    return np.exp(sign * 2j * np.pi * np.outer(steps, steps) / size)


def spectrum(channel: np.ndarray) -> np.ndarray:
    height, width = channel.shape
    return dft(height) @ channel.astype(float) @ dft(width)


def brute_force(amplitude: Tensor, phase: Tensor) -> np.ndarray:
    """Image by image and channel by channel, before rounding."""
    count, channels, height, width = amplitude.shape
    mixed = np.empty(amplitude.shape)
    for i in range(count):
        for c in range(channels):
            one, other = spectrum(amplitude[i, c].numpy()), spectrum(phase[i, c].numpy())
            combined = np.abs(one) * np.exp(1j * np.angle(other))
            inverse = dft(height, +1) @ combined @ dft(width, +1) / (height * width)
            mixed[i, c] = inverse.real
    return mixed


@pytest.mark.parametrize("shape", SHAPES)
def test_mixed_images_are_those_of_explicit_dft_matrices(shape):
    amplitude, phase = random_images(shape, 1), random_images(shape, 2)
    expected = brute_force(amplitude, phase)
    np.testing.assert_allclose(mix_spectra(amplitude, phase).numpy(), expected, atol=1e-9)
    mixed = fourier_mix(amplitude, phase)
    assert mixed.dtype == torch.uint8
    # Both ways of leaving the range occur, and neither wraps around.
    assert expected.min() < -1 and expected.max() > 256
    assert np.array_equal(mixed.numpy(), np.clip(np.rint(expected), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
def test_amplitudes_are_of_the_first_and_phases_of_the_second_before_rounding(shape):
    amplitude, phase = random_images(shape, 3), random_images(shape, 4)
    mixed = mix_spectra(amplitude, phase).numpy()
    for i, c in np.ndindex(*shape[:2]):
        got = spectrum(mixed[i, c])
        one, other = spectrum(amplitude[i, c].numpy()), spectrum(phase[i, c].numpy())
        np.testing.assert_allclose(np.abs(got), np.abs(one), atol=1e-8)
        np.testing.assert_allclose(got * np.abs(other), np.abs(got) * other, atol=1e-5)


def test_an_image_mixed_with_itself_is_itself():
    rows, columns = torch.arange(32).view(1, 1, 32, 1), torch.arange(32).view(1, 1, 1, 32)
    images = [
        random_images((50, 3, 32, 32), 5),
        (rows + columns).remainder(2).mul(255).to(torch.uint8),
        (8 * rows).expand(1, 1, 32, 32).to(torch.uint8),
        *(torch.full((1, 3, 32, 32), level, dtype=torch.uint8) for level in (0, 1, 128, 255)),
    ]
    for image in images:
        assert torch.equal(fourier_mix(image, image), image)


def test_a_flat_image_has_no_phases_but_a_brightness():
    amplitude = random_images((2, 1, 6, 6), 6)
    mixed = mix_spectra(amplitude, torch.full((2, 1, 6, 6), 200, dtype=torch.uint8)).numpy()
    for i in range(2):
        inverse = dft(6, +1) @ np.abs(spectrum(amplitude[i, 0].numpy())) @ dft(6, +1) / 36
        np.testing.assert_allclose(mixed[i, 0], inverse.real, atol=1e-9)


@pytest.mark.parametrize(
    ("amplitude", "phase"),
    [
        (random_images((2, 1, 4, 4), 0), random_images((1, 1, 4, 4), 0)),
        (random_images((2, 1, 4, 4), 0), random_images((2, 1, 4, 4), 0).float()),
        (random_images((4, 4, 4), 0), random_images((4, 4, 4), 0)),
    ],
)
def test_unequal_shapes_and_other_types_are_refused(amplitude, phase):
    with pytest.raises(UserError, match="uint8 N×C×H×W of equal shape"):
        fourier_mix(amplitude, phase)


@pytest.mark.parametrize("count", [2, 3, 5, 64, 1001])
def test_a_derangement_is_an_order_without_a_fixed_point(count):
    for seed in range(20):
        order = derangement(count, torch.Generator().manual_seed(seed))
        assert order.sort().values.tolist() == list(range(count))
        assert not (order == torch.arange(count)).any()
        again = derangement(count, torch.Generator().manual_seed(seed))
        assert torch.equal(order, again)


def test_all_nine_derangements_of_four_are_equally_likely():
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(tuple(derangement(4, generator).tolist()) for _ in range(1800))
    assert len(drawn) == 9
    # 200 of each on average, standard deviation 13.3.
    assert all(abs(count - 200) < 60 for count in drawn.values())


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_have_no_derangement(count):
    with pytest.raises(UserError, match="at least 2"):
        derangement(count, torch.Generator())
