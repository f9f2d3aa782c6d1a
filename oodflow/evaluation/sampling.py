"""Images that a model draws by itself, and the one picture in which many of them are shown."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.models.likelihood import LikelihoodModel

__all__ = ["draw_images", "grid"]

BATCH = 64
"""Images that are drawn together."""

GAP = 1
"""Pixels between the images of a grid, and around them."""


def draw_images(
    model: LikelihoodModel,
    count: int,
    seed: int,
    temperature: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """``count`` images of a model, uint8 N×C×H×W on the CPU, a function of model and seed.

    See :meth:`LikelihoodModel.sample` for ``temperature``. ``on_progress(done, all)`` hears of
    images; a part of a batch counts as so many images as have that part of their work behind them.

    Raises UserError for a model that draws no images, and for numbers that make none.
    """
    if count < 1:
        raise UserError(f"count is {count}; it must be at least 1")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature is {temperature}; it must be 0 or a number above it")
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)

        def on_step(step: int, steps: int, start: int = start, size: int = size) -> None:
            if on_progress is not None:
                on_progress(start + size * step // steps, count)

        batches.append(model.sample(size, generator, temperature, on_step).cpu())
        on_step(1, 1)
    return torch.cat(batches)


def grid(images: Tensor, columns: int = 0) -> Tensor:
    """uint8 H×W×3 of images N×C×h×w, C = 1 or 3, row by row on white; 0 columns: nearly square.

    >>> grid(torch.zeros(5, 1, 32, 32, dtype=torch.uint8)).shape
    torch.Size([67, 100, 3])
    """
    count, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    picture = images.new_full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        picture[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return picture
