"""Glow with another inductive bias: local patches only (S2.1), or no locality at all (S2.2)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodflow.errors import UserError
from oodflow.models.glow import Glow
from oodflow.models.layers import ActNorm, AffineCoupling
from oodflow.models.likelihood import LikelihoodModel
from oodflow.models.precision import full_precision

__all__ = ["DenseGlow", "DenseStep", "LocalGlow", "cut_patches", "join_patches"]


def cut_patches(images: Tensor, patch: int) -> Tensor:
    """N×C×H×W → (N·H/p·W/p)×C×p×p: the patches of an image one after another, row by row.

    >>> cut_patches(torch.arange(16).view(1, 1, 4, 4), 2)[1].tolist()
    [[[2, 3], [6, 7]]]
    """
    cut = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def join_patches(patches: Tensor, side: int) -> Tensor:
    """The square images, ``side`` patches wide, that :func:`cut_patches` took apart."""
    grid = patches.unflatten(0, (-1, side, side))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class LocalGlow(LikelihoodModel):
    """Glow of one scale on non-overlapping patches of 8×8 pixels: log p(x) = Σ log p(patch) (S2.1).

    The same flow scores all (size/patch)² patches, 16 in a 32×32 image, as a batch of N·16 small
    images; nothing passes between them. Contributions are N×1.
    """

    scales = 1

    def __init__(
        self, channels: int, depth: int = 32, hidden: int = 512, size: int = 32, patch: int = 8
    ) -> None:
        super().__init__()
        if patch < 1 or size % patch:
            raise UserError(f"patches of {patch}×{patch} do not tile images of {size}×{size}")
        self.image_shape = (channels, size, size)
        self.patch = patch
        self.side = size // patch
        self.flow = Glow(channels, depth, hidden, patch, scales=1)

    @property
    def initialised(self) -> Tensor:
        """The buffer of the flow on the patches."""
        return self.flow.initialised

    def preprocess(self, images: Tensor, noise: Tensor | float) -> Tensor:
        """v = (x + noise)/256 − 0.5 of whole images (S4.1)."""
        return self.flow.preprocess(images, noise)

    def transform(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """The latents of all patches, N×D in a list of one, and log|det|, N×1."""
        return self._per_image(*self.flow.transform(cut_patches(v, self.patch)))

    def encode(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """The latents of all patches, N×D in a list of one, and the contribution N×1."""
        return self._per_image(*self.flow.encode(cut_patches(v, self.patch)))

    def decode(self, latents: list[Tensor]) -> Tensor:
        """v from its latents: the inverse of :meth:`encode`."""
        by_patch = [latent.unflatten(1, (self.side**2, -1)).flatten(0, 1) for latent in latents]
        return join_patches(self.flow.decode(by_patch), self.side)

    def terms(self, images: Tensor, noise: Tensor | float) -> tuple[Tensor, Tensor]:
        """See :meth:`LikelihoodModel.terms`."""
        contributions, priors = self.flow.terms(*self._cut(images, noise))
        return self._sum(contributions), self._sum(priors)

    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        return self.terms(images, noise)[0]

    def initialise(self, images: Tensor, noise: Tensor | float) -> None:
        """Data-dependent initialisation from all patches of the images as one batch."""
        self.flow.initialise(*self._cut(images, noise))

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        patches = self.flow.sample(count * self.side**2, generator, temperature)
        return join_patches(patches, self.side)

    def _cut(self, images: Tensor, noise: Tensor | float) -> tuple[Tensor, Tensor | float]:
        if isinstance(noise, Tensor):
            noise = cut_patches(noise, self.patch)
        return cut_patches(images, self.patch), noise

    def _per_image(self, latents: list[Tensor], terms: Tensor) -> tuple[list[Tensor], Tensor]:
        regrouped = [latent.unflatten(0, (-1, self.side**2)).flatten(1) for latent in latents]
        return regrouped, self._sum(terms)

    def _sum(self, per_patch: Tensor) -> Tensor:
        return per_patch.view(-1, self.side**2).sum(1, keepdim=True)


class FixedProjection(nn.Module):
    """y = W·x on N×d with a random orthogonal W that is not trained (S2.2); log|det| = 0.

    Rounding W to float32 moves log|det W| by about 1e-7 nats (2e-5 in weights of the public
    implementation, which factorises in float32): nothing that a log-likelihood could show.
    """

    weight: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        orthogonal = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64))[0]
        self.register_buffer("weight", orthogonal.to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            return F.linear(x, self.weight)

    def inverse(self, y: Tensor) -> Tensor:
        """x with Wx = y, to the rounding of its type whatever the one that W was made in."""
        # Wᵀ is the inverse up to W's rounding δ, and one correction leaves δ². Solving for W
        # instead takes d³ operations, and has twenty times the error in float32.
        x = y @ self.weight
        return x + (y - self(x)) @ self.weight


class DenseNetwork(nn.Module):
    """linear – ReLU – linear – ReLU – linear on N×d, initialised as PyTorch does (authors' code).

    The even outputs are the shift t, the odd ones the scale r, N×out/2 each.
    """

    def __init__(self, features_in: int, features_out: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(features_in, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.linear3 = nn.Linear(hidden, features_out)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.linear3(self.linear2(self.linear1(x).relu()).relu())
        return x[:, 0::2], x[:, 1::2]


class DenseStep(nn.Module):
    """Actnorm → fixed projection → affine coupling, on all C·H·W values as one vector (S2.2)."""

    def __init__(self, channels: int, size: int, hidden: int) -> None:
        super().__init__()
        features = channels * size**2
        self.actnorm = ActNorm(features)
        self.mixing = FixedProjection(features)
        self.coupling = AffineCoupling(DenseNetwork(features // 2, features, hidden))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y of x's shape N×C×H×W and log|det|, N."""
        y, coupling_log_det = self.coupling(self.mixing(self.actnorm(x.flatten(1))))
        return y.unflatten(1, x.shape[1:]), coupling_log_det + self.actnorm.log_scale.sum()

    def inverse(self, y: Tensor) -> Tensor:
        x = self.mixing.inverse(self.coupling.inverse(y.flatten(1)))
        return self.actnorm.inverse(x).unflatten(1, y.shape[1:])

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Set the actnorm from x, N×C×H×W, and return the step's output."""
        self.actnorm.initialise(x.flatten(1))
        return self(x)[0]


class DenseGlow(Glow):
    """Glow whose steps are fully connected (S2.2): three scales and squeezes, 8 steps a scale.

    In the first scale of 3×32×32 images a step mixes 3072 dimensions. Its projections are buffers
    of 3072² numbers; all of them take 400 MB in float32, for RGB images and 8 steps.
    """

    def __init__(
        self, channels: int, depth: int = 8, hidden: int = 512, size: int = 32, scales: int = 3
    ) -> None:
        super().__init__(channels, depth, hidden, size, scales, step=DenseStep)
