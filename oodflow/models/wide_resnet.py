"""Wide residual network: classifies images as in-distribution or general, without a density."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, logsigmoid

from oodflow.errors import UserError
from oodflow.models.likelihood import NOISE_FREE, LikelihoodModel

__all__ = ["WideResNet"]


class WideResNet(LikelihoodModel):
    """A binary classifier with the interface of a likelihood model (S9; arXiv:1605.07146).

    The purely discriminative baseline of S9: trained on in-distribution images as the positive
    and general images as the negative class, it scores an image with p(in-distribution | x). So
    that scores and tables work unchanged, ``forward`` returns the logarithm of that
    probability, N×1, in nats. It is a log-probability of a label, NOT a log-density of the image:
    bits per dimension and differences to a general model mean nothing, as ``is_density`` says.

    Pre-activation network of the public CIFAR repository: a 3×3 convolution to 16 channels; three
    groups of (depth − 4)/6 blocks with 16k, 32k and 64k channels (k = ``widen``), the second and
    third beginning with stride 2; batch norm, ReLU, mean over the remaining 8×8, one logit. The
    pixels enter as (x/255 − 1/2)/(1/4), which for photographs is about zero mean and unit
    variance. ``dropout`` acts between the two convolutions of a block.

    Raises :class:`UserError` if (depth − 4) is not a positive multiple of 6.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = WideResNet(channels=1, depth=10, widen=1).eval()
    >>> images = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    >>> scores = model(images)
    >>> scores.shape, bool((scores <= 0).all())
    (torch.Size([2, 1]), True)
    """

    is_density = False
    uses_noise = False
    scales = 1

    def __init__(
        self, channels: int, depth: int = 28, widen: int = 10, dropout: float = 0.3
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"wide-resnet depth {depth} must be 10, 16, 22, 28, … (4 + 6·blocks)")
        self.image_shape = (channels, 32, 32)
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.stem = _conv3x3(channels, widths[0], stride=1)
        self.groups = nn.Sequential(
            *(
                _group(widths[index], widths[index + 1], blocks, stride, dropout)
                for index, stride in enumerate((1, 2, 2))
            )
        )
        self.norm = nn.BatchNorm2d(widths[3])
        self.classify = nn.Linear(widths[3], 1)
        self._initialise_weights()

    def logits(self, images: Tensor) -> Tensor:
        """log p(in-distribution | x) − log p(general | x) of uint8 images N×C×32×32, shape N."""
        pixels = (images.to(self.classify.weight.dtype) / 255 - 0.5) / 0.25
        # In this layout convolutions are fastest, and what follows takes it over.
        features = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        features = self.norm(self.groups(features)).relu()
        return self.classify(avg_pool2d(features, 8).flatten(start_dim=1)).squeeze(1)

    def forward(self, images: Tensor, noise: Tensor | float = NOISE_FREE) -> Tensor:
        """log σ(logit) = log p(in-distribution | x), N×1, in nats; the noise is ignored."""
        return logsigmoid(self.logits(images)).unsqueeze(1)

    def _initialise_weights(self) -> None:
        # He et al. over the outgoing connections, as in the public repository.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.classify.bias)


class _Block(nn.Module):
    """x + conv(dropout(ReLU(BN(conv(ReLU(BN(x))))))), with a 1×1 shortcut where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv3x3(outputs, outputs, stride=1)
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            if inputs != outputs or stride != 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active = self.norm1(x).relu()
        residual = self.conv2(self.dropout(self.norm2(self.conv1(active)).relu()))
        # A block that changes the shape has no path untouched by its first batch norm and ReLU.
        return residual + (x if self.shortcut is None else self.shortcut(active))


def _group(inputs: int, outputs: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = _Block(inputs, outputs, stride, dropout)
    rest = (_Block(outputs, outputs, 1, dropout) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
