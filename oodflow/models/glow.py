"""Glow with independent latents: exact log-likelihood, per-scale contributions, inverse, samples.

Three scales of squeeze, K steps, split (S1.1, S1.3); 3×32×32 → 12×16×16 → 24×8×8 → 48×4×4.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodflow.errors import UserError
from oodflow.models.layers import ActNorm, CouplingNetwork, FlowStep
from oodflow.models.likelihood import LEVELS, LikelihoodModel

__all__ = ["Glow", "standard_normal_log_prob"]


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Σ log N(z; 0, 1) over all dimensions but the first, in nats, shape N.

    >>> standard_normal_log_prob(torch.zeros(1, 2)).round(decimals=4).tolist()
    [-1.8379]
    """
    z = z.flatten(1)
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


class Scale(nn.Module):
    """Squeeze 2×2, K steps, and the affine of the part that becomes this scale's latent."""

    def __init__(self, channels: int, size: int, depth: int, hidden: int, last: bool) -> None:
        """``channels`` and ``size`` are those after the squeeze."""
        super().__init__()
        self.last = last
        self.steps = nn.ModuleList(
            FlowStep(channels, lambda given, wanted: CouplingNetwork(given, wanted, hidden))
            for _ in range(depth)
        )
        self.latent_shape = (channels if last else channels // 2, size, size)
        self.latent = ActNorm(math.prod(self.latent_shape))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first half of the channels stays here, the second half goes on (authors)."""
        kept = x.shape[1] if self.last else x.shape[1] // 2
        return x[:, :kept].flatten(1), x[:, kept:]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latent N×d, what goes on to the next scale, and log|det| of the scale, N."""
        x = F.pixel_unshuffle(x, 2)
        log_det = self.latent.log_scale.sum()
        for step in self.steps:
            x, step_log_det = step(x)
            log_det = log_det + step_log_det
        kept, onward = self.split(x)
        return self.latent(kept), onward, log_det

    def inverse(self, latent: Tensor, onward: Tensor) -> Tensor:
        kept = self.latent.inverse(latent).unflatten(1, self.latent_shape)
        x = torch.cat((kept, onward), dim=1)
        for step in reversed(self.steps):
            x = step.inverse(x)  # type: ignore[operator]
        return F.pixel_shuffle(x, 2)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Set every actnorm from x, layer by layer, and return what goes on."""
        x = F.pixel_unshuffle(x, 2)
        for step in self.steps:
            x = step.initialise(x)  # type: ignore[operator]
        kept, onward = self.split(x)
        self.latent.initialise(kept)
        return onward


class Glow(LikelihoodModel):
    """Multi-scale Glow over C×size×size images with z_1, z_2, z_3 ~ N(0, I) (S1.3).

    log p(x) = c_1 + c_2 + c_3 with c_i = log N(z_i; 0, I) + log|det| of scale i (Eq. 3). The map
    from levels to the network's input, v = (x + noise)/256 − 0.5, has log|det| = −D ln 256 and
    comes before everything, so c_1 carries it.
    """

    initialised: Tensor

    def __init__(
        self, channels: int, depth: int = 32, hidden: int = 512, size: int = 32, scales: int = 3
    ) -> None:
        super().__init__()
        if size % 2**scales or channels < 1 or depth < 1 or hidden < 1:
            raise UserError(
                f"no Glow of {scales} scales on {channels}×{size}×{size} images with "
                f"{depth} steps and {hidden} hidden channels"
            )
        self.image_shape = (channels, size, size)
        self.scales = scales
        self.flow = nn.ModuleList(
            Scale(channels * 2 ** (i + 1), size >> i, depth, hidden, last=i == scales)
            for i in range(1, scales + 1)
        )
        # A buffer, so that a loaded model knows that its data-dependent layers are set.
        self.register_buffer("initialised", torch.tensor(False))

    def preprocess(self, images: Tensor, noise: Tensor | float) -> Tensor:
        """v = (x + noise)/256 − 0.5 in the parameters' dtype (S4.1)."""
        return (images.to(next(self.parameters()).dtype) + noise) / LEVELS - 0.5

    def encode(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """Latents z_1 … z_S after their affine, N×d_i each, and contributions N×S to log p(v)."""
        latents, contributions = [], []
        for scale in self.flow:
            latent, v, log_det = scale(v)
            latents.append(latent)
            contributions.append(standard_normal_log_prob(latent) + log_det)
        return latents, torch.stack(contributions, dim=1)

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """v from its latents: the inverse of :meth:`encode`."""
        # The last scale keeps everything: nothing came on to it from a later one.
        side = self.image_shape[1] >> self.scales
        x = latents[-1].new_empty(len(latents[-1]), 0, side, side)
        for scale, latent in zip(reversed(self.flow), reversed(latents), strict=True):
            x = scale.inverse(latent, x)  # type: ignore[operator]
        return x

    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        contributions = self.encode(self.preprocess(images, noise))[1]
        levels = torch.zeros_like(contributions[0])
        levels[0] = math.prod(self.image_shape) * math.log(LEVELS)
        return contributions - levels

    @torch.no_grad()
    def initialise(self, images: Tensor, noise: Tensor | float) -> None:
        """Data-dependent initialisation of all actnorms in one pass over the batch."""
        x = self.preprocess(images, noise)
        for scale in self.flow:
            x = scale.initialise(x)  # type: ignore[operator]
        self.initialised.fill_(True)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        like = next(self.parameters())
        latents = [
            torch.randn(count, math.prod(scale.latent_shape), generator=generator).to(like)  # type: ignore[arg-type]
            for scale in self.flow
        ]
        v = self.decode(latents)
        return ((v + 0.5) * LEVELS).floor().clamp(0, LEVELS - 1).to(torch.uint8)
