"""Glow with independent latents: exact log-likelihood, per-scale contributions, inverse, samples.

Three scales of squeeze, K steps, split (S1.1, S1.3); 3×32×32 → 12×16×16 → 24×8×8 → 48×4×4.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodflow.errors import UserError
from oodflow.models.form import run
from oodflow.models.fused import fold
from oodflow.models.layers import ActNorm, CouplingNetwork, FlowStep
from oodflow.models.likelihood import LEVELS, LikelihoodModel

__all__ = [
    "Glow",
    "IndependentLatent",
    "LatentFactory",
    "LatentLayer",
    "StepFactory",
    "convolutional_step",
    "standard_normal_log_prob",
]


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Σ log N(z; 0, 1) over all dimensions but the first, in nats, shape N.

    >>> round(standard_normal_log_prob(torch.zeros(1, 2)).item(), 4)
    -1.8379
    """
    z = z.flatten(1)
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


StepFactory = Callable[[int, int, int], nn.Module]
"""Channels, side and hidden width to an invertible step on N×channels×side×side."""


def convolutional_step(channels: int, size: int, hidden: int) -> FlowStep:
    """The step of Glow itself, the same at every position, for images of any size."""
    return FlowStep(channels, lambda given, wanted: CouplingNetwork(given, wanted, hidden))


class LatentLayer(Protocol):
    """What becomes of the part of a scale's output, N×d, that stays there as its latent."""

    takes_first: bool
    """Whether the first half of the channels is the latent and the second half goes on."""

    def standardise(self, kept: Tensor, onward: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``kept`` to a latent that is N(0, I) under the model; and log|det|, N or one."""

    def restore(self, latent: Tensor, onward: Tensor) -> Tensor:
        """The inverse of :meth:`standardise`, given the same ``onward``."""

    def initialise(self, kept: Tensor) -> Tensor:
        """Set what depends on data."""


LatentFactory = Callable[[int, int, int], LatentLayer]
"""Channels that stay, channels that go on (0: last scale) and side to the latent's layer."""


class IndependentLatent(ActNorm):
    """One learned affine per dimension, whatever goes on: z_i ~ N(0, I) on its own (S1.3)."""

    takes_first = True

    def __init__(self, kept: int, onward: int, size: int) -> None:
        super().__init__(kept * size**2)

    def standardise(self, kept: Tensor, onward: Tensor) -> tuple[Tensor, Tensor]:
        return self(kept), self.log_scale.sum()

    def restore(self, latent: Tensor, onward: Tensor) -> Tensor:
        return self.inverse(latent)


class Scale(nn.Module):
    """Squeeze 2×2, K steps, and the layer of the part that becomes this scale's latent."""

    latent: LatentLayer

    def __init__(
        self,
        channels: int,
        size: int,
        last: bool,
        steps: Iterable[nn.Module],
        latent: LatentFactory,
    ) -> None:
        """``channels`` and ``size`` are those after the squeeze."""
        super().__init__()
        kept = channels if last else channels // 2
        self.steps = nn.ModuleList(steps)
        self.latent = latent(kept, channels - kept, size)
        self.latent_shape = (kept, size, size)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What stays, flattened, and what goes on: nothing of the last scale."""
        kept, onward = self.latent_shape[0], x.shape[1] - self.latent_shape[0]
        if self.latent.takes_first:
            first, second = x.split((kept, onward), dim=1)
            return first.flatten(1), second
        first, second = x.split((onward, kept), dim=1)
        return second.flatten(1), first

    def join(self, kept: Tensor, onward: Tensor) -> Tensor:
        kept = kept.unflatten(1, self.latent_shape)
        return torch.cat((kept, onward) if self.latent.takes_first else (onward, kept), dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latent N×d, what goes on to the next scale, and log|det| of the scale, N."""
        x = F.pixel_unshuffle(x, 2)
        steps, shared = fold(self.steps)
        log_dets = []
        for step in steps:
            x, step_log_det = run(step, x)
            log_dets.append(step_log_det)
        kept, onward = self.split(x)
        latent, latent_log_det = self.latent.standardise(kept, onward)
        log_det = torch.stack(log_dets).sum(0) + shared * (x.shape[2] * x.shape[3])
        return latent, onward, log_det + latent_log_det

    def inverse(self, latent: Tensor, onward: Tensor) -> Tensor:
        x = self.join(self.latent.restore(latent, onward), onward)
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

    The variants differ in their steps, in how a latent follows from what stays, or in the density
    of the latents: ``step``, ``latent`` and :meth:`encode`.
    """

    initialised: Tensor

    def __init__(
        self,
        channels: int,
        depth: int = 32,
        hidden: int = 512,
        size: int = 32,
        scales: int = 3,
        step: StepFactory = convolutional_step,
        latent: LatentFactory = IndependentLatent,
    ) -> None:
        super().__init__()
        if size % 2**scales or channels < 1 or depth < 1 or hidden < 1:
            raise UserError(
                f"no {type(self).__name__} of {scales} scales on {channels}×{size}×{size} images "
                f"with {depth} steps and {hidden} hidden channels"
            )
        self.image_shape = (channels, size, size)
        self.scales = scales
        self.flow = nn.ModuleList()
        for i in range(1, scales + 1):
            shape = channels * 2 ** (i + 1), size >> i
            steps = (step(*shape, hidden) for _ in range(depth))
            self.flow.append(Scale(*shape, i == scales, steps, latent))
        # A buffer, so that a loaded model knows that its data-dependent layers are set.
        self.register_buffer("initialised", torch.tensor(False))

    def preprocess(self, images: Tensor, noise: Tensor | float) -> Tensor:
        """v = (x + noise)/256 − 0.5 in the parameters' dtype (S4.1)."""
        return (images.to(next(self.parameters()).dtype) + noise) / LEVELS - 0.5

    def transform(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """Latents z_1 … z_S, N×d_i each, and log|det| of the scales, N×S, without the levels'."""
        latents, log_dets = [], []
        for scale in self.flow:
            latent, v, log_det = scale(v)
            latents.append(latent)
            log_dets.append(log_det)
        return latents, torch.stack(log_dets, dim=1)

    def density(self, latents: Sequence[Tensor]) -> Tensor:
        """log p(z_i | later scales) of the latents, N×S."""
        return torch.stack([standard_normal_log_prob(latent) for latent in latents], dim=1)

    def encode(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """Latents z_1 … z_S, N×d_i each, and contributions N×S to log p(v)."""
        latents, log_dets = self.transform(v)
        return latents, self.density(latents) + log_dets

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """v from its latents: the inverse of :meth:`encode`."""
        # The last scale keeps everything: nothing came on to it from a later one.
        side = self.image_shape[1] >> self.scales
        x = latents[-1].new_empty(len(latents[-1]), 0, side, side)
        for scale, latent in zip(reversed(self.flow), reversed(latents), strict=True):
            x = scale.inverse(latent, x)  # type: ignore[operator]
        return x

    def terms(self, images: Tensor, noise: Tensor | float) -> tuple[Tensor, Tensor]:
        """See :meth:`LikelihoodModel.terms`."""
        latents, log_dets = self.transform(self.preprocess(images, noise))
        priors = self.density(latents)
        levels = torch.zeros_like(priors[0])
        levels[0] = math.prod(self.image_shape) * math.log(LEVELS)
        return priors + log_dets - levels, priors

    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        return self.terms(images, noise)[0]

    @torch.no_grad()
    def initialise(self, images: Tensor, noise: Tensor | float) -> None:
        """Data-dependent initialisation of all actnorms in one pass over the batch."""
        x = self.preprocess(images, noise)
        for scale in self.flow:
            x = scale.initialise(x)  # type: ignore[operator]
        self.initialised.fill_(True)

    def draw_latents(
        self, count: int, generator: torch.Generator, temperature: float = 1.0
    ) -> list[Tensor]:
        """Latents z_1 … z_S from the model's own density, in the parameters' type and place.

        They are as far from their mean as ``temperature`` says in units of what the density says.
        """
        like = next(self.parameters())
        sizes = [math.prod(scale.latent_shape) for scale in self.flow]  # type: ignore[arg-type]
        drawn = [torch.randn(count, size, generator=generator) for size in sizes]
        return [temperature * each.to(like) for each in drawn]

    @torch.no_grad()
    def sample(
        self,
        count: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        v = self.decode(self.draw_latents(count, generator, temperature))
        return ((v + 0.5) * LEVELS).floor().clamp(0, LEVELS - 1).to(torch.uint8)
