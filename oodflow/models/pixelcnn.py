"""PixelCNN++: log p(x) as a product over the pixels in raster order (S1.2, S4.2)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, pad
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import cached

from oodflow.errors import UserError
from oodflow.models.form import run
from oodflow.models.likelihood import NOISE_FREE, LikelihoodModel
from oodflow.models.logistic_mixture import (
    PARAMETERS_PER_COMPONENT,
    log_likelihood,
    sample_pixels,
    scale_levels,
)

__all__ = ["STAGES", "PixelCNN"]

STAGES = 3  # of strides 1, 2 and 4

Kernel = tuple[int, int]
ABOVE: Kernel = (2, 3)  # this row and the one above, to both sides
ABOVE_LEFT: Kernel = (2, 2)  # this row and the one above, this column and the one to the left


class PixelCNN(LikelihoodModel):
    """PixelCNN++ of the public PyTorch implementation (S1.2, S4.2; arXiv:1701.05517).

    log p(x) = Σ over pixels of log p(x_i | x_1 … x_{i−1}), each a mixture of ``mixtures``
    discretised logistics (:mod:`oodflow.models.logistic_mixture`) over the 256 levels, in nats,
    N×1. The pixels are discrete here: the dequantisation noise is ignored.

    Two streams of ``filters`` feature maps go through six stages of gated residual blocks with
    concat-ELU, at strides 1, 2, 4, 4, 2, 1: ``blocks`` a stage on the way in, and on the way out
    one more in the last two, each of which takes one feature map of the way in as a shortcut. At
    every pixel the vertical stream knows the rows above, the horizontal one also the pixels to
    the left in the same row, and it alone makes the output. ``dropout`` drops whole feature maps
    before the second convolution of a block. Every weight is weight-normalised.

    The paper uses 120 filters, 5 blocks, 10 mixtures and dropout 0.5 (S1.2).

    Raises :class:`UserError` for images of neither 1 nor 3 channels.

    >>> _ = torch.manual_seed(0)
    >>> model = PixelCNN(channels=1, filters=4, blocks=1, mixtures=2).eval()
    >>> images = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    >>> model(images).shape, model.mixture_parameters(torch.zeros(2, 1, 32, 32)).shape
    (torch.Size([2, 1]), torch.Size([2, 6, 32, 32]))
    """

    scales = 1

    uses_noise = False

    def __init__(
        self,
        channels: int,
        filters: int = 120,
        blocks: int = 5,
        mixtures: int = 10,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if channels not in PARAMETERS_PER_COMPONENT:
            raise UserError(f"pixelcnn models images of 1 or 3 channels, not {channels}")
        self.image_shape = (channels, 32, 32)
        # One more input, constantly 1, tells the image from the zeros that surround it.
        self.rows_above = _conv(channels + 1, filters, ABOVE)
        self.row_above = _conv(channels + 1, filters, (1, 3))
        self.column_left = _conv(channels + 1, filters, (2, 1))
        self.vertical = _Stream(filters, blocks, ABOVE, dropout, sided=False)
        self.horizontal = _Stream(filters, blocks, ABOVE_LEFT, dropout, sided=True)
        outputs = PARAMETERS_PER_COMPONENT[channels] * mixtures
        self.output = _conv(filters, outputs, (1, 1))

    def forward(self, images: Tensor, noise: Tensor | float = NOISE_FREE) -> Tensor:
        """log p(x) of uint8 images N×C×32×32, N×1 in nats; the noise is ignored."""
        scaled = scale_levels(images, next(self.parameters()).dtype)
        # Under autocast the network's output is 16-bit, too coarse for a sum over 3072 terms.
        parameters = self.mixture_parameters(scaled).to(scaled.dtype)
        return log_likelihood(parameters, images).unsqueeze(1)

    def mixture_parameters(self, scaled: Tensor) -> Tensor:
        """The network: images on [−1, 1], N×C×H×W, to mixture parameters N×P×H×W.

        Those at a pixel depend only on the pixels before it, row by row from the left. H and W
        are multiples of 4; P is 3 (grey) or 10 (RGB) per component.
        """
        vertical, row_above = self._features_above(scaled)
        horizontal = self._features_left(scaled, vertical, row_above)
        return self.output(elu(horizontal))

    def _features_above(self, scaled: Tensor) -> tuple[list[Tensor], Tensor]:
        """All that depends, at each row, on the rows above it alone."""
        x = pad(scaled, (0, 0, 0, 0, 0, 1), value=1.0)
        return self.vertical(_shift_down(self.rows_above(x)), []), _shift_down(self.row_above(x))

    def _features_left(
        self, scaled: Tensor, vertical: Sequence[Tensor], row_above: Tensor
    ) -> Tensor:
        """The horizontal stream's last features, given what depends on the rows above."""
        x = pad(scaled, (0, 0, 0, 0, 0, 1), value=1.0)
        start = row_above + _shift_right(self.column_left(x))
        return self.horizontal(start, vertical)[-1]

    @torch.no_grad()
    def sample(
        self,
        count: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw uint8 images N×C×32×32 pixel by pixel, reproducible from the generator.

        There are no latents, and no temperature but 1: UserError for another. ``on_progress`` gets
        the rows done and their total after every row. Dropout is off.

        The vertical stream runs once a row, the horizontal one once a pixel, and both only over
        the part of the image up to there. Sixteen images take about 6 seconds on one CPU core
        with 1 block of 8 filters.
        """
        if temperature != 1:
            raise UserError("pixelcnn has no latents, and so no temperature: leave it at 1")
        channels, height, width = self.image_shape
        scaled = next(self.parameters()).new_zeros(count, *self.image_shape)
        images = torch.zeros_like(scaled, dtype=torch.uint8)
        was_training = self.training
        self.eval()
        try:
            with cached():  # normalises the weights once
                for row in range(height):
                    rows = _next_multiple_of_4(row)
                    vertical, row_above = self._features_above(scaled[:, :, :rows])
                    for column in range(width):
                        columns = _next_multiple_of_4(column)
                        features = self._features_left(
                            scaled[:, :, :rows, :columns],
                            [side[..., : side.shape[3] * columns // width] for side in vertical],
                            row_above[..., :columns],
                        )
                        here = features[:, :, row : row + 1, column : column + 1]
                        pixel = sample_pixels(self.output(elu(here)), channels, generator)
                        images[:, :, row, column] = pixel[:, :, 0, 0]
                        scaled[:, :, row, column] = scale_levels(pixel, scaled.dtype)[:, :, 0, 0]
                    if on_progress is not None:
                        on_progress(row + 1, height)
        finally:
            self.train(was_training)
        return images


class _Stream(nn.Module):
    """Gated residual blocks down to stride 4 and up again, with shortcuts across.

    ``forward(start, sides)`` returns the output of every block, in order. A sided stream is given
    those of the other stream and feeds each of its blocks the other's output of the same rank.
    """

    def __init__(
        self, filters: int, blocks: int, kernel: Kernel, dropout: float, sided: bool
    ) -> None:
        super().__init__()

        def stage(count: int, sides: int) -> nn.ModuleList:
            return nn.ModuleList(_GatedBlock(filters, kernel, sides, dropout) for _ in range(count))

        self.encode = nn.ModuleList(stage(blocks, int(sided)) for _ in range(STAGES))
        self.decode = nn.ModuleList(
            stage(blocks + (index > 0), 1 + int(sided)) for index in range(STAGES)
        )
        self.shrink = nn.ModuleList(
            _conv(filters, filters, kernel, stride=2) for _ in range(STAGES - 1)
        )
        self.grow = nn.ModuleList(_transposed(filters, kernel) for _ in range(STAGES - 1))

    def forward(self, start: Tensor, sides: Sequence[Tensor]) -> list[Tensor]:
        x, shortcuts, outputs = start, [start], list[Tensor]()
        for index, stage in enumerate(self.encode):
            assert isinstance(stage, nn.ModuleList)
            if index > 0:
                x = self.shrink[index - 1](x)
                shortcuts.append(x)
            for block in stage:
                x = run(block, x, *sides[len(outputs) : len(outputs) + 1])
                shortcuts.append(x)
                outputs.append(x)
        x = shortcuts.pop()
        for index, stage in enumerate(self.decode):
            assert isinstance(stage, nn.ModuleList)
            if index > 0:
                x = self.grow[index - 1](x)
            for block in stage:
                side = sides[len(outputs) : len(outputs) + 1]
                x = run(block, x, *side, shortcuts.pop())
                outputs.append(x)
        return outputs


class _GatedBlock(nn.Module):
    """x + a·σ(b), where a, b = conv(dropout(f(conv(f(x)) + conv1×1(f(sides))))), f concat-ELU."""

    def __init__(self, filters: int, kernel: Kernel, sides: int, dropout: float) -> None:
        super().__init__()
        self.first = _conv(2 * filters, filters, kernel)
        self.side = _conv(2 * sides * filters, filters, (1, 1)) if sides else None
        self.dropout = nn.Dropout2d(dropout)
        self.second = _conv(2 * filters, 2 * filters, kernel)

    def forward(self, x: Tensor, *sides: Tensor) -> Tensor:
        hidden = self.first(_concat_elu(x))
        if self.side is not None:
            hidden = hidden + self.side(_concat_elu(torch.cat(sides, dim=1)))
        value, gate = self.second(self.dropout(_concat_elu(hidden))).chunk(2, dim=1)
        return x + value * gate.sigmoid()


class _CausalConv2d(nn.Conv2d):
    """Convolution whose window ends at its own row and, if of even width, at its own column."""

    def forward(self, input: Tensor) -> Tensor:
        height, width = (-(-size // self.stride[0]) for size in input.shape[2:])
        return super().forward(input)[:, :, :height, :width]


def _conv(inputs: int, outputs: int, kernel: Kernel, stride: int = 1) -> nn.Conv2d:
    # Padding on all sides and dropping the last row (and column) is faster than padding one side.
    padding = (kernel[0] - 1, kernel[1] // 2)
    return weight_norm(_CausalConv2d(inputs, outputs, kernel, stride, padding))


def _transposed(filters: int, kernel: Kernel) -> nn.ConvTranspose2d:
    """Doubles height and width; an output row 2i or 2i + 1 depends on input row i and above."""
    odd = kernel[1] % 2
    return weight_norm(
        nn.ConvTranspose2d(
            filters, filters, kernel, stride=2, padding=(0, odd), output_padding=(0, odd)
        )
    )


def _concat_elu(x: Tensor) -> Tensor:
    # In place, its gradient comes from the output, which the convolution behind it keeps anyway.
    return elu(torch.cat((x, -x), dim=1), inplace=True)


def _shift_down(x: Tensor) -> Tensor:
    return pad(x[:, :, :-1], (0, 0, 1, 0))


def _shift_right(x: Tensor) -> Tensor:
    return pad(x[..., :-1], (1, 0))


def _next_multiple_of_4(index: int) -> int:
    """The size, divisible by the strides, of the smallest part that contains ``index``."""
    return 4 * (index // 4 + 1)
