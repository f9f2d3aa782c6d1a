"""Supervised Glow: per class a Gaussian of the latents, and the marginal over the classes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oodflow.errors import UserError
from oodflow.models.glow import Glow
from oodflow.models.likelihood import LEVELS
from oodflow.models.precision import full_precision

__all__ = ["ClassConditionalGlow", "ClassGaussians"]


class ClassGaussians(nn.Module):
    """log p(z | y) for all classes y: an affine per dimension, then a diagonal Gaussian.

    u = exp(log_scale_y)·(z + loc_y) ~ N(mean_y, exp(log_std_y)²), all of them classes×d. So z is
    itself Gaussian, with the mean and standard deviation

        μ_y = mean_y·exp(−log_scale_y) − loc_y,    σ_y = exp(log_std_y − log_scale_y).

    Zeros, the state before training, are N(0, I) for every class.
    """

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(classes, features))
        self.log_scale = nn.Parameter(torch.zeros(classes, features))
        self.mean = nn.Parameter(torch.zeros(classes, features))
        self.log_std = nn.Parameter(torch.zeros(classes, features))

    def moments(self) -> tuple[Tensor, Tensor]:
        """μ and log σ of z, classes×d each."""
        return self.mean * (-self.log_scale).exp() - self.loc, self.log_std - self.log_scale

    def forward(self, z: Tensor) -> Tensor:
        """log p(z | y) in nats, N×classes, from latents N×d.

        −½ Σ (z − μ_y)²/σ_y² is a quadratic form in z: two matrix products, and nothing of the
        size N×classes×d. Written in z − m with m the mean of all μ_y, and with the mean precision
        of the classes taken out, the products carry only what distinguishes the classes, so that
        little cancels and equal classes come out exactly equal.
        """
        with full_precision(z.device):
            mean, log_std = self.moments()
            precision = (-2 * log_std).exp()
            # The result does not depend on these two, and therefore nor does its gradient.
            centre, common = mean.detach().mean(0), precision.detach().mean(0)
            z, mean = z - centre, mean - centre
            weighted = precision * mean
            constants = -0.5 * (weighted * mean).sum(1) - log_std.sum(1)
            constants = constants - 0.5 * z.shape[1] * math.log(2 * math.pi)
            square = z.square()
            shared = -0.5 * (square @ common)[:, None]
            return (
                shared + (z @ weighted.t() - 0.5 * (square @ (precision - common).t())) + constants
            )

    def draw(self, labels: Tensor, normal: Tensor) -> Tensor:
        """z ~ p(z | y) of the given classes, N, from standard normal numbers N×d."""
        mean, log_std = self.moments()
        return mean[labels] + log_std[labels].exp() * normal

    @torch.no_grad()
    def initialise(self) -> None:
        """Back to N(0, I) for every class."""
        for parameter in self.parameters():
            parameter.zero_()


class ClassConditionalGlow(Glow):
    """Glow with log p(x|y) for every class y; p(x) is the mean of p(x|y) over y (authors' code).

    Flow and affine-normalised latents z_1 … z_S are those of :class:`Glow`, under the same names;
    only the density of the latents differs, c_i(x, y) = log p(z_i | y) + log|det| of scale i.

    Anomaly scores use the unlabelled log p(x) = logsumexp_y Σ_i c_i(x, y) − ln(classes). Its
    contributions follow the chain rule from the last scale on,

        c_i(x) = log p(scale i | later scales) = logsumexp_y [log p(y | later scales) + c_i(x, y)]

    with log p(y) = −ln(classes) at the last scale, which has none. Thus they sum to log p(x), and
    c_S is the unlabelled likelihood of the last scale alone, logsumexp_y c_S(x, y) − ln(classes).
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        depth: int = 32,
        hidden: int = 512,
        size: int = 32,
        scales: int = 3,
    ) -> None:
        super().__init__(channels, depth, hidden, size, scales)
        if classes < 1:
            raise UserError(f"no class-conditional Glow of {classes} classes")
        self.classes = classes
        self.per_class = nn.ModuleList(
            ClassGaussians(classes, math.prod(scale.latent_shape))  # type: ignore[arg-type]
            for scale in self.flow
        )

    def encode_per_class(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """Latents z_1 … z_S, N×d_i each, and c_i(x, y) without the levels, N×S×classes."""
        latents, log_dets = self.transform(v)
        return latents, self._per_class(latents) + log_dets[:, :, None]

    def density(self, latents: Sequence[Tensor]) -> Tensor:
        """log p(z_i | later scales) of the unlabelled latents, N×S: as c_i, without log|det|.

        That is the same for all classes.
        """
        per_class = self._per_class(latents)
        log_posterior = torch.full_like(per_class[:, 0], -math.log(self.classes))
        priors: list[Tensor] = []
        for scale in reversed(per_class.unbind(1)):
            joint = log_posterior + scale
            priors.insert(0, joint.logsumexp(1))
            log_posterior = joint - priors[0][:, None]
        return torch.stack(priors, dim=1)

    def _per_class(self, latents: Sequence[Tensor]) -> Tensor:
        """log p(z_i | y), N×S×classes."""
        priors = [density(z) for density, z in zip(self.per_class, latents, strict=True)]
        return torch.stack(priors, dim=1)

    def class_log_probs(self, images: Tensor, noise: Tensor | float) -> Tensor:
        """log p(x|y) of every class in nats over the 256 levels, N×classes.

        The unlabelled log p(x) is its logsumexp over the classes − ln(classes).
        """
        per_class = self.encode_per_class(self.preprocess(images, noise))[1].sum(1)
        return per_class - math.prod(self.image_shape) * math.log(LEVELS)

    def initialise(self, images: Tensor, noise: Tensor | float) -> None:
        """Data-dependent initialisation of the flow; all classes are then N(0, I)."""
        super().initialise(images, noise)
        for density in self.per_class:
            density.initialise()  # type: ignore[operator]

    def draw_latents(
        self, count: int, generator: torch.Generator, temperature: float = 1.0
    ) -> list[Tensor]:
        """Latents of images of random classes, equally likely."""
        labels = torch.randint(self.classes, (count,), generator=generator)
        normals = super().draw_latents(count, generator, temperature)
        return [
            density.draw(labels.to(normal.device), normal)  # type: ignore[operator]
            for density, normal in zip(self.per_class, normals, strict=True)
        ]
