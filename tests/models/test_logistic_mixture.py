"""The mixture of discretised logistics: a proper distribution over 256 levels, and its samples."""

import math

import pytest
import torch
from torch import Tensor

from oodflow.models.logistic_mixture import (
    LOG_SCALE_FLOOR,
    PARAMETERS_PER_COMPONENT,
    component_log_probs,
    level_log_probs,
    log_likelihood,
    sample_pixels,
    scale_levels,
)

MIXTURES = 4


def random_parameters(channels: int, seed: int, height: int = 3, width: int = 5) -> Tensor:
    """Mixtures from wide to narrower than a level, many of them centred on or past the edges."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, *shape, height, width, generator=random, dtype=torch.float64)

    logits, means, coefficients = draw(MIXTURES), draw(channels, MIXTURES), draw(3, MIXTURES)
    log_scales = (draw(channels, MIXTURES) * 2 - 3).clamp(min=-6)
    kinds = [means, log_scales] if channels == 1 else [means, log_scales, coefficients]
    return torch.cat((logits, torch.stack(kinds, dim=2).flatten(1, 3)), dim=1)


def random_images(channels: int, seed: int, height: int = 3, width: int = 5) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    shape = (2, channels, height, width)
    return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)


def mass_by_definition(level: int, mean: float, log_scale: float) -> float:
    """σ at the upper minus σ at the lower end of a level, which the extreme levels lack."""

    def cdf(end: float) -> float:
        return 1 / (1 + math.exp(-(end - mean) / math.exp(log_scale)))

    value = level / 255 * 2 - 1
    upper = 1.0 if level == 255 else cdf(value + 1 / 255)
    return upper - (0.0 if level == 0 else cdf(value - 1 / 255))


@pytest.mark.parametrize("level", [0, 1, 90, 128, 254, 255])
def test_grey_mixture_is_the_weighted_sum_of_the_definition(level: int) -> None:
    weights, means, log_scales = [0.3, 0.7], [-0.4, 0.8], [-2.0, -3.0]
    values = [math.log(0.3), math.log(0.7), *means, *log_scales]
    parameters = torch.tensor(values, dtype=torch.float64).view(1, 6, 1, 1)
    image = torch.full((1, 1, 1, 1), level, dtype=torch.uint8)
    components = zip(weights, means, log_scales, strict=True)
    expected = sum(w * mass_by_definition(level, m, s) for w, m, s in components)
    # Less near than double precision: one component's mass is small enough to be approximated.
    assert log_likelihood(parameters, image).exp().item() == pytest.approx(expected, rel=1e-6)


def test_colours_shift_the_means_of_later_colours_linearly() -> None:
    a, b, c = 0.2, -0.9, 0.5
    means, log_scales, coefficients = [0.1, -0.2, 0.3], [-2.0, -2.5, -1.5], [a, b, c]
    colours = zip(means, log_scales, coefficients, strict=True)
    flat = [0.0, *(value for colour in colours for value in colour)]
    parameters = torch.tensor(flat, dtype=torch.float64).view(1, 10, 1, 1)
    levels = [200, 40, 130]
    red, green = (level / 255 * 2 - 1 for level in levels[:2])
    shifted = [
        means[0],
        means[1] + math.tanh(a) * red,
        means[2] + math.tanh(b) * red + math.tanh(c) * green,
    ]
    image = torch.tensor(levels, dtype=torch.uint8).view(1, 3, 1, 1)
    triples = zip(levels, shifted, log_scales, strict=True)
    expected = sum(math.log(mass_by_definition(*triple)) for triple in triples)
    assert log_likelihood(parameters, image).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("channels", "channel"), [(1, 0), (3, 0), (3, 1), (3, 2)])
def test_levels_of_a_sub_pixel_sum_to_one(channels: int, channel: int, seed: int) -> None:
    parameters, images = random_parameters(channels, seed), random_images(channels, seed)
    total = level_log_probs(parameters, images, channel).exp().sum(dim=1)
    assert (total - 1).abs().max().item() < 1e-5


def test_narrowest_components_lose_no_more_than_the_density_in_the_tails() -> None:
    parameters = random_parameters(1, seed=0)
    parameters[:, 2 * MIXTURES :] = -50
    total = level_log_probs(parameters, random_images(1, seed=0), 0).exp().sum(dim=1)
    assert (1 - total).max().item() < 2.5e-5
    assert total.max().item() < 1 + 1e-12


@pytest.mark.parametrize("channels", [1, 3])
def test_likelihood_is_the_product_of_the_conditionals(channels: int) -> None:
    parameters, images = random_parameters(channels, seed=3), random_images(channels, seed=4)
    expected = torch.zeros(2, dtype=torch.float64)
    for channel in range(channels):
        levels = level_log_probs(parameters, images, channel)
        index = images[:, channel : channel + 1].long()
        expected += levels.gather(1, index).sum(dim=(1, 2, 3))
    torch.testing.assert_close(log_likelihood(parameters, images), expected)


def test_all_greens_and_blues_add_up_to_the_red() -> None:
    parameters = random_parameters(3, seed=5, height=1, width=1)[:1]
    red = 77
    others = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    pixels = torch.cat((torch.full((len(others), 1), red), others), dim=1).to(torch.uint8)
    joint = log_likelihood(parameters.expand(len(pixels), -1, 1, 1), pixels.view(-1, 3, 1, 1))
    expected = level_log_probs(parameters, pixels[:1].view(1, 3, 1, 1), 0)[0, red, 0, 0]
    assert joint.logsumexp(dim=0).exp().item() == pytest.approx(expected.exp().item(), abs=1e-5)


def test_colours_depend_on_themselves_and_earlier_colours_alone() -> None:
    parameters = random_parameters(3, seed=6)
    scaled = scale_levels(random_images(3, seed=6), torch.float64).requires_grad_()
    log_probs = component_log_probs(parameters, scaled)
    for channel in range(3):
        (gradient,) = torch.autograd.grad(
            log_probs[:, channel].sum(), scaled, retain_graph=True, allow_unused=True
        )
        used = gradient.abs().amax(dim=(0, 2, 3)) > 0
        assert used.tolist() == [index <= channel for index in range(3)]


def test_far_tail_is_density_times_width_and_finite_in_single_precision() -> None:
    mean, log_scale = -1.0, LOG_SCALE_FLOOR
    parameters = torch.tensor([0.0, mean, log_scale]).view(1, 3, 1, 1).requires_grad_()
    image = torch.full((1, 1, 1, 1), 200, dtype=torch.uint8)
    log_prob = log_likelihood(parameters, image)
    z = (200 / 255 * 2 - 1 - mean) / math.exp(log_scale)
    assert log_prob.item() == pytest.approx(-z - log_scale + math.log(2 / 255), rel=1e-5)
    log_prob.sum().backward()
    assert parameters.grad is not None and parameters.grad.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_log_scales_below_the_floor_are_the_floor(channels: int) -> None:
    images = random_images(channels, seed=7)
    parameters = random_parameters(channels, seed=7)
    kinds = 2 if channels == 1 else 3
    view = parameters[:, MIXTURES:].view(2, channels, kinds, MIXTURES, 3, 5)
    view[:, :, 1] = LOG_SCALE_FLOOR
    at_floor = log_likelihood(parameters, images)
    view[:, :, 1] = -30
    torch.testing.assert_close(log_likelihood(parameters, images), at_floor, rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_single_precision_agrees_with_double(channels: int) -> None:
    parameters, images = random_parameters(channels, seed=8), random_images(channels, seed=8)
    single = log_likelihood(parameters.float(), images).double()
    torch.testing.assert_close(single, log_likelihood(parameters, images), rtol=1e-5, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_have_the_distribution_of_the_levels(channels: int) -> None:
    """Where a sample falls in its own conditional distribution must be uniform on [0, 1]."""
    height, width = 40, 100
    one = random_parameters(channels, seed=9, height=1, width=1)[:1]
    parameters = one.expand(1, MIXTURES * PARAMETERS_PER_COMPONENT[channels], height, width)
    random = torch.Generator().manual_seed(10)
    images = sample_pixels(parameters, channels, random)
    assert images.dtype == torch.uint8 and images.shape == (1, channels, height, width)
    for channel in range(channels):
        masses = level_log_probs(parameters, images, channel).exp()
        own = images[:, channel : channel + 1].long()
        upper = masses.cumsum(dim=1).gather(1, own)
        spread = torch.rand(upper.shape, generator=random, dtype=torch.float64)
        place = (upper - spread * masses.gather(1, own)).flatten()
        counts = torch.histc(place, bins=10, min=0, max=1)
        chi_square = ((counts - 400) ** 2 / 400).sum().item()
        assert chi_square < 28  # 99.9 % of the χ² with 9 degrees of freedom


def test_samples_are_reproducible_from_the_generator() -> None:
    parameters = random_parameters(3, seed=11)
    first, again, other = (
        sample_pixels(parameters, 3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.equal(again) and not first.equal(other)
