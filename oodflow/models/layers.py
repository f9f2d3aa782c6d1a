"""The invertible layers of Glow, each by itself (S1.1; Glow: arXiv:1807.03039).

They define the model; inverses and the initialisation run them. In training and scoring the steps
of a whole scale are folded into fewer operations: see :mod:`oodflow.models.fused`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodflow.models.precision import full_precision

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "CouplingNetwork",
    "FlowStep",
    "InvertibleConv",
    "lu_factors",
    "lu_product",
    "scaled_conv",
    "sigmoid_and_log",
]

MIN_STD = 1e-6
"""Floor of the standard deviation in the data-dependent initialisation (authors' code)."""


class ActNorm(nn.Module):
    """y = exp(log_scale)·(x + loc) per feature, dimension 1; log|det| = Σ log_scale a position."""

    def __init__(self, features: int, correction: int = 1) -> None:
        """``correction``: 1 initialises with the unbiased variance, 0 with the biased one."""
        super().__init__()
        self.correction = correction
        self.loc = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return self.log_scale.exp().view(shape) * (x + self.loc.view(shape))

    def inverse(self, y: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (y.dim() - 2)
        return y * (-self.log_scale).exp().view(shape) - self.loc.view(shape)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Give the output on x zero mean and unit variance per feature, and return it."""
        others = [dim for dim in range(x.dim()) if dim != 1]
        self.loc.copy_(-x.mean(others))
        std = x.std(others, correction=self.correction)
        self.log_scale.copy_(-std.clamp(min=MIN_STD).log())
        return self(x)


def lu_factors(matrix: Tensor) -> dict[str, Tensor]:
    """The buffers and parameters of an :class:`InvertibleConv` whose weight is ``matrix``.

    >>> lu_factors(torch.tensor([[0.0, 1.0], [-2.0, 0.0]]))["sign"].tolist()
    [-1.0, 1.0]
    """
    permutation, lower, upper = torch.linalg.lu(matrix.double())
    diagonal = upper.diagonal()
    factors = {
        "permutation": permutation,
        "sign": diagonal.sign(),
        "lower": lower,
        "upper": upper,
        "log_abs": diagonal.abs().log(),
    }
    return {name: factor.to(matrix.dtype) for name, factor in factors.items()}


def lu_product(
    permutation: Tensor, sign: Tensor, lower: Tensor, upper: Tensor, log_abs: Tensor
) -> Tensor:
    """W = P·L·(U + diag(s)), C×C, or K×C×C from K of each; only strict triangles of L, U enter."""
    unit = torch.eye(sign.shape[-1], dtype=lower.dtype, device=lower.device)
    lower = lower.tril(-1) + unit
    upper = upper.triu(1) + torch.diag_embed(sign * log_abs.exp())
    return permutation @ lower @ upper


class InvertibleConv(nn.Module):
    """1×1 convolution with W = P·L·(U + diag(s)); log|det| = Σ log|s| a position.

    P and the signs of s are fixed, from the LU decomposition of a random orthogonal matrix; L has
    a unit diagonal and U is strictly upper.
    """

    permutation: Tensor
    sign: Tensor
    lower: Tensor
    upper: Tensor
    log_abs: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        orthogonal = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64))[0]
        for name, factor in lu_factors(orthogonal).items():
            factor = factor.to(torch.get_default_dtype())
            if name in ("permutation", "sign"):
                self.register_buffer(name, factor)
            else:
                self.register_parameter(name, nn.Parameter(factor))

    def weight(self) -> Tensor:
        """W, features×features."""
        return lu_product(self.permutation, self.sign, self.lower, self.upper, self.log_abs)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            return F.conv2d(x, self.weight()[:, :, None, None])

    def inverse(self, y: Tensor) -> Tensor:
        return torch.linalg.solve(self.weight(), y.flatten(2)).view_as(y)


def scaled_conv(x: Tensor, weight: Tensor, bias: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """(conv3×3(x) + bias)·exp(3·logs) per channel: its even output channels, and its odd ones."""
    scaled = F.conv2d(x, weight, bias, padding=1) * (3 * logs).exp().view(-1, 1, 1)
    return scaled[:, 0::2], scaled[:, 1::2]


class CouplingNetwork(nn.Module):
    """conv3×3 – actnorm – ReLU – conv1×1 – actnorm – ReLU – conv3×3, the last one zero at first.

    The last convolution has a bias, and its output is multiplied by exp(3·logs), learned per
    channel. Its even output channels are the shift t, the odd ones the scale r (authors' code).
    ``forward`` returns the two, N×out/2×H×W each.
    """

    def __init__(
        self, features_in: int, features_out: int, hidden: int, correction: int = 1
    ) -> None:
        """``correction`` is that of the actnorms."""
        super().__init__()
        self.conv1 = nn.Conv2d(features_in, hidden, 3, padding=1, bias=False)
        self.actnorm1 = ActNorm(hidden, correction)
        self.conv2 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.actnorm2 = ActNorm(hidden, correction)
        self.conv3 = nn.Conv2d(hidden, features_out, 3, padding=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(features_out))
        self.logs = nn.Parameter(torch.zeros(features_out))
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, std=0.05)
        nn.init.zeros_(self.conv3.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.actnorm1(self.conv1(x)))
        x = F.relu(self.actnorm2(self.conv2(x)))
        return scaled_conv(x, self.conv3.weight, self.bias, self.logs)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Data-dependent actnorms; the last layer gives zeros until it is trained."""
        x = F.relu(self.actnorm1.initialise(self.conv1(x)))
        self.actnorm2.initialise(self.conv2(x))


def sigmoid_and_log(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ(z) and log σ(z), with the value and slope of both right for every z.

    >>> [round(float(part), 4) for part in sigmoid_and_log(torch.tensor(-200.0))]
    [0.0, -200.0]
    """
    # logsigmoid takes six times as long on a CPU. Where σ would underflow, log σ(z) is z, and the
    # floor keeps the gradient of the branch that is not taken finite.
    scale = torch.sigmoid(z)
    return scale, torch.where(z < -60, z, scale.clamp(min=1e-30).log())


class AffineCoupling(nn.Module):
    """The first half of the features decides how the second half b moves.

    b → (b + t)·sigmoid(r + 2), shift first, then scale (authors' code). log|det| is
    Σ log sigmoid(r + 2).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y of x's shape and log|det|, N."""
        fixed, moved = x.chunk(2, dim=1)
        shift, raw_scale = self.network(fixed)
        scale, log_scale = sigmoid_and_log(raw_scale.to(x.dtype) + 2)
        moved = (moved + shift) * scale
        return torch.cat((fixed, moved), dim=1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        fixed, moved = y.chunk(2, dim=1)
        shift, raw_scale = self.network(fixed)
        return torch.cat((fixed, moved / torch.sigmoid(raw_scale + 2) - shift), dim=1)


class FlowStep(nn.Module):
    """Actnorm → invertible 1×1 convolution → affine coupling, on N×C×H×W."""

    def __init__(
        self, features: int, network: Callable[[int, int], nn.Module], correction: int = 1
    ) -> None:
        """``network(features in, features out)`` makes the coupling network."""
        super().__init__()
        self.actnorm = ActNorm(features, correction)
        self.mixing = InvertibleConv(features)
        self.coupling = AffineCoupling(network(features // 2, features))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y of x's shape and log|det|, N."""
        y, coupling_log_det = self.coupling(self.mixing(self.actnorm(x)))
        log_det = self.actnorm.log_scale.sum() + self.mixing.log_abs.sum()
        return y, coupling_log_det + log_det * (x.shape[2] * x.shape[3])

    def inverse(self, y: Tensor) -> Tensor:
        return self.actnorm.inverse(self.mixing.inverse(self.coupling.inverse(y)))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Set every actnorm from x, N×C×H×W, and return the step's output."""
        x = self.mixing(self.actnorm.initialise(x))
        self.coupling.network.initialise(x.chunk(2, dim=1)[0])  # type: ignore[operator]
        return self.coupling(x)[0]
