"""The interface of every model: log p(x) of 8-bit images, in nats."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from oodflow.errors import UserError

__all__ = ["LEVELS", "NOISE_FREE", "LikelihoodModel", "bits_per_dimension"]

LEVELS = 256
"""Values that a sub-pixel can take."""

NOISE_FREE = 0.5
"""The constant that replaces dequantisation noise in anomaly scores: half a level (S4.5)."""


class LikelihoodModel(nn.Module):
    """A density over 8-bit images.

    ``forward(images, noise)`` takes uint8 images N×C×H×W and dequantisation noise in units of one
    level, in [0, 1): a tensor of the images' shape, or one number for all. It returns the
    contributions c_1 … c_S to log p(x) of the model's S scales, N×S, in nats over the 256 levels
    (Eq. 3 of the paper); a model without scales returns N×1. Models of discrete pixels ignore the
    noise. Non-finite values are returned as they are: losses drop them, scores replace them.

    >>> class Uniform(LikelihoodModel):
    ...     image_shape, scales = (3, 32, 32), 1
    ...     def forward(self, images, noise):
    ...         return torch.full((len(images), 1), -3072 * math.log(256))
    >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    >>> bits_per_dimension(Uniform().log_prob(images), (3, 32, 32)).tolist()
    [8.0, 8.0]
    """

    image_shape: tuple[int, int, int]
    """C, H, W of the images this model scores."""

    scales: int
    """Number of contributions a log-likelihood is made of."""

    uses_noise: bool = True
    """Whether dequantisation noise enters; models of the discrete pixels ignore it."""

    is_density: bool = True
    """Whether the values are log-densities of images; a classifier's are not, and have no BPD."""

    def log_prob(self, images: Tensor, noise: Tensor | float = NOISE_FREE) -> Tensor:
        """log p(x) in nats per image, shape N: the sum of the contributions."""
        return self(images, noise).sum(dim=1)

    def terms(self, images: Tensor, noise: Tensor | float) -> tuple[Tensor, Tensor | None]:
        """The contributions, N×S, and of a flow what its latents' density is of each of them, N×S.

        Of c_i = prior_i + logdet_i the second is prior_i; other models have None.
        """
        return self(images, noise), None

    def initialise(self, images: Tensor, noise: Tensor | float) -> None:
        """Set data-dependent parameters from a batch of training images; most models have none."""

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw ``count`` images, uint8 N×C×H×W, reproducible from the generator.

        ``temperature`` is the standard deviation of a flow's latents before what the model knows of
        them: below 1 the images are nearer to the most likely ones. ``on_progress`` hears how many
        steps of how many are done, from models that take many.

        Raises UserError where the model cannot draw, or has no temperature other than 1.
        """
        raise UserError(f"no images can be drawn from a {type(self).__name__}")


def bits_per_dimension(log_prob: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """−log p(x) / (D ln 2) with D = C·H·W; a uniform model of 8-bit pixels has 8.

    ``log_prob`` is in nats, of any shape. Raises ZeroDivisionError for images without pixels.

    >>> uniform = torch.tensor([-3072 * math.log(256)])
    >>> bits_per_dimension(uniform, (3, 32, 32)).round(decimals=4).tolist()
    [8.0]
    """
    return -log_prob / (math.prod(image_shape) * math.log(2))
