"""Glow with conditioned latents (S1.3), the form of the public Glow-PyTorch (S6)."""

import torch
from torch import Tensor, nn

from oodflow.models.glow import Glow, LatentLayer
from oodflow.models.layers import CouplingNetwork, FlowStep, scaled_conv

__all__ = ["ConditionalGlow"]


class _GaussianLatent(nn.Module):
    """z ~ N(m, exp(s)²) with m, s a function of what goes on to the next scale.

    Standardised, ε = (z − m)·exp(−s) is N(0, I) under the model and the map from z has
    log|det| = −Σ s. Hence everything that holds for independent latents holds for ε (S1.3).
    """

    takes_first = False

    def mean_and_log_std(self, onward: Tensor) -> tuple[Tensor, Tensor]:
        """m and s of every dimension of z, N×d or 1×d."""
        raise NotImplementedError

    def standardise(self, kept: Tensor, onward: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.mean_and_log_std(onward)
        return (kept - mean) * (-log_std).exp(), -log_std.sum(1)

    def restore(self, latent: Tensor, onward: Tensor) -> Tensor:
        mean, log_std = self.mean_and_log_std(onward)
        return latent * log_std.exp() + mean

    def initialise(self, kept: Tensor) -> Tensor:
        """Nothing depends on data: m and s are zero until they are trained."""
        return kept


class ConditionedLatent(_GaussianLatent):
    """m and s are the even and odd channels of a zero-initialised conv3×3, times exp(3·logs)."""

    def __init__(self, kept: int, onward: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * kept, onward, 3, 3))
        self.bias = nn.Parameter(torch.zeros(2 * kept))
        self.logs = nn.Parameter(torch.zeros(2 * kept))

    def mean_and_log_std(self, onward: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = scaled_conv(onward, self.weight, self.bias, self.logs)
        return mean.flatten(1).to(onward.dtype), log_std.flatten(1).to(onward.dtype)


class TopLatent(_GaussianLatent):
    """m and s of the last scale are learned per channel, the halves of bias·exp(3·logs).

    The public implementation writes this as a convolution of zeros, whose weights never enter.
    """

    def __init__(self, kept: int, size: int) -> None:
        super().__init__()
        self.positions = size**2
        self.bias = nn.Parameter(torch.zeros(2 * kept))
        self.logs = nn.Parameter(torch.zeros(2 * kept))

    def mean_and_log_std(self, onward: Tensor) -> tuple[Tensor, Tensor]:
        both = self.bias * (3 * self.logs).exp()
        mean, log_std = both.repeat_interleave(self.positions)[None].chunk(2, dim=1)
        return mean, log_std


def _latent(kept: int, onward: int, size: int) -> LatentLayer:
    return ConditionedLatent(kept, onward) if onward else TopLatent(kept, size)


def _step(channels: int, size: int, hidden: int) -> FlowStep:
    return FlowStep(
        channels, lambda given, wanted: CouplingNetwork(given, wanted, hidden, 0), correction=0
    )


class ConditionalGlow(Glow):
    """Glow with z_1 ~ N(f(z_2, z_3), g(z_2, z_3)²), z_2 ~ N(f(z_3), g(z_3)²), a learned N for z_3.

    f and log g are a convolution of what goes on to the next scale, before its flow. The first
    half of the channels goes on and the second is the latent, there is no affine of the latents,
    and actnorms are initialised with the biased variance (Glow-PyTorch).

    c_i = log p(z_i | what goes on) + log|det| of scale i. The latents of :meth:`encode` are the
    standardised ε_i, N(0, I) under the model; :meth:`decode` and samples come from ε_3 first, then
    from ε_2 given what z_3 became, and so on.
    """

    def __init__(
        self, channels: int, depth: int = 32, hidden: int = 512, size: int = 32, scales: int = 3
    ) -> None:
        super().__init__(channels, depth, hidden, size, scales, step=_step, latent=_latent)
