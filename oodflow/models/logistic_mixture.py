"""Mixtures of discretised logistics: the distribution of one pixel given a network's output.

Each of M components is, per sub-pixel, a logistic distribution cut into the 256 levels of width
2/255 on [−1, 1]; the two outermost levels take the tails. In RGB one component serves the three
sub-pixels of a pixel, and its means shift linearly with the sub-pixels before:

    μ_r,  μ_g + a·x_r,  μ_b + b·x_r + c·x_g        with a, b, c = tanh of the network's output.

Layout of the parameters N×P×H×W, that of the public PixelCNN++: M mixture logits, then for every
colour M means, M log-scales and (RGB only) M coefficients, the three colours' coefficients being
a, b and c. P = 3·M in grey, 10·M in RGB. Source: PixelCNN++, arXiv:1701.05517, section 2.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = [
    "LOG_SCALE_FLOOR",
    "PARAMETERS_PER_COMPONENT",
    "component_log_probs",
    "level_log_probs",
    "log_likelihood",
    "sample_pixels",
    "scale_levels",
]

PARAMETERS_PER_COMPONENT: Mapping[int, int] = {1: 3, 3: 10}
"""Channels of the image → network outputs a component needs."""

LOG_SCALE_FLOOR = -7.0
"""Log-scales below are raised to this one, a logistic 17 times narrower than a level."""

HALF_LEVEL = 1 / 255

# Where a level holds less than this, the public implementation puts density × width in place of
# the exact mass. For narrow components that is less than the mass, so a pixel's levels may sum to
# as little as 1 − 2e-5; it is kept because published weights were trained and scored with it.
TINY_MASS = 1e-5


def scale_levels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Levels 0 … 255 to [−1, 1].

    >>> scale_levels(torch.tensor([0, 51, 255], dtype=torch.uint8), torch.float64).tolist()
    [-1.0, -0.6, 1.0]
    """
    return images.to(dtype) / 255 * 2 - 1


def log_likelihood(parameters: Tensor, images: Tensor) -> Tensor:
    """log p of the sub-pixels of ``images`` (uint8 N×C×H×W), summed per image: N, in nats.

    ``parameters`` are N×P×H×W; the result has their dtype.

    >>> wide = torch.zeros(1, 3, 1, 1)  # one component: mean 0, scale 1
    >>> middle = torch.full((1, 1, 1, 1), 127, dtype=torch.uint8)
    >>> round(math.exp(log_likelihood(wide, middle).item()), 6)  # width 2/255 at density 1/4
    0.001961
    """
    logits, *_ = _split(parameters, images.shape[1])
    components = component_log_probs(parameters, scale_levels(images, parameters.dtype))
    joint = logits.log_softmax(dim=1) + components.sum(dim=1)
    return joint.logsumexp(dim=1).sum(dim=(1, 2))


def level_log_probs(parameters: Tensor, images: Tensor, channel: int) -> Tensor:
    """log p of every level of one channel, given the channels before it: N×256×H×W, in nats.

    Only the channels before ``channel`` are read from ``images`` (uint8 N×C×H×W).

    >>> pixel = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    >>> levels = level_log_probs(torch.zeros(1, 3, 1, 1), pixel, channel=0)
    >>> levels.shape, round(levels.exp().sum().item(), 4)
    (torch.Size([1, 256, 1, 1]), 1.0)
    """
    logits, means, log_scales, coefficients = _split(parameters, images.shape[1])
    scaled = scale_levels(images, parameters.dtype)
    before = component_log_probs(parameters, scaled)[:, :channel].sum(dim=1)
    weights = (logits.log_softmax(dim=1) + before).log_softmax(dim=1)
    mean = _shifted_mean(means, coefficients, scaled, channel)
    levels = scale_levels(torch.arange(256, device=images.device), parameters.dtype)
    masses = _log_mass(
        levels.view(1, 256, 1, 1, 1), mean.unsqueeze(1), log_scales[:, channel].unsqueeze(1)
    )
    return (weights.unsqueeze(1) + masses).logsumexp(dim=2)


def component_log_probs(parameters: Tensor, scaled: Tensor) -> Tensor:
    """log p of each sub-pixel under each component, given the sub-pixels before: N×C×M×H×W.

    ``scaled`` holds the image on [−1, 1] (:func:`scale_levels`), in which it is differentiable.
    """
    channels = scaled.shape[1]
    _, means, log_scales, coefficients = _split(parameters, channels)
    shifted = torch.stack(
        [_shifted_mean(means, coefficients, scaled, channel) for channel in range(channels)], dim=1
    )
    return _log_mass(scaled.unsqueeze(2), shifted, log_scales)


def sample_pixels(parameters: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Draw uint8 N×C×H×W from parameters N×P×H×W, reproducible from the generator.

    A component is drawn per pixel, then its sub-pixels one after the other, each conditioned on
    the levels (not the unrounded values) of those before. Random numbers are drawn on the
    generator's device.

    >>> draws = [sample_pixels(torch.zeros(1, 3, 1, 4), 1, torch.Generator().manual_seed(0))
    ...          for _ in range(2)]
    >>> draws[0].dtype, draws[0].shape, bool((draws[0] == draws[1]).all())
    (torch.uint8, torch.Size([1, 1, 1, 4]), True)
    """
    logits, means, log_scales, coefficients = _split(parameters, channels)
    gumbel = -(-_uniform(logits, generator).log()).log()
    chosen = (logits + gumbel).argmax(dim=1, keepdim=True)
    pick = chosen.unsqueeze(1).expand(-1, channels, -1, -1, -1)
    means, log_scales = means.gather(2, pick), log_scales.gather(2, pick)
    if coefficients is not None:
        coefficients = coefficients.gather(2, pick)
    levels = torch.zeros_like(means[:, :, 0])
    for channel in range(channels):
        mean = _shifted_mean(means, coefficients, levels / 255 * 2 - 1, channel)
        logistic = torch.logit(_uniform(mean, generator))
        value = (mean + log_scales[:, channel].exp() * logistic)[:, 0]
        levels[:, channel] = ((value + 1) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8)


def _split(parameters: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Logits N×M×H×W; means, log-scales and (RGB) coefficients, each N×C×M×H×W."""
    count, width, *place = parameters.shape
    mixtures = width // PARAMETERS_PER_COMPONENT[channels]
    logits, rest = parameters[:, :mixtures], parameters[:, mixtures:]
    if channels == 1:
        means, log_scales = rest.reshape(count, 1, 2, mixtures, *place).unbind(dim=2)
        return logits, means, log_scales.clamp(min=LOG_SCALE_FLOOR), None
    means, log_scales, raw = rest.reshape(count, 3, 3, mixtures, *place).unbind(dim=2)
    return logits, means, log_scales.clamp(min=LOG_SCALE_FLOOR), raw.tanh()


def _shifted_mean(
    means: Tensor, coefficients: Tensor | None, scaled: Tensor, channel: int
) -> Tensor:
    """Means of a channel, N×M×H×W, after the linear shift by the channels before it."""
    mean = means[:, channel]
    if coefficients is None or channel == 0:
        return mean
    red = scaled[:, 0].unsqueeze(1)
    if channel == 1:
        return mean + coefficients[:, 0] * red
    return mean + coefficients[:, 1] * red + coefficients[:, 2] * scaled[:, 1].unsqueeze(1)


def _log_mass(scaled: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log of the logistic's mass on the level around ``scaled``; the arguments broadcast.

    With a and b the standardised upper and lower ends of the level, σ(a) − σ(b) cancels badly in
    float32; its equal σ(a)·σ(−b)·(1 − exp(b − a)) has no difference of near values but the last
    factor, whose exponent is known without rounding.
    """
    inverse = torch.exp(-log_scale)
    middle = inverse * (scaled - mean)
    half = inverse * HALF_LEVEL
    below_top = logsigmoid(middle + half)
    above_bottom = logsigmoid(half - middle)
    mass = below_top + above_bottom + torch.log(-torch.expm1(-2 * half))
    density = logsigmoid(middle) + logsigmoid(-middle) - log_scale + math.log(2 * HALF_LEVEL)
    inner = torch.where(mass > math.log(TINY_MASS), mass, density)
    return torch.where(scaled < -0.999, below_top, torch.where(scaled > 0.999, above_bottom, inner))


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers strictly inside (0, 1), of the shape and dtype of ``like``."""
    draw = torch.rand(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return draw.clamp(2**-25, 1 - 2**-24).to(like)
