"""Batches: shuffled, augmented, with dequantisation noise, made on the device from one tensor.

All randomness is a function of the seed and of the position in the training, never of earlier
draws. A resumed run continues with the same batches and needs no generator state, and the
batches on a CPU and on an accelerator are the same.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from oodflow.data.images import Images
from oodflow.errors import UserError

__all__ = ["Batch", "Batches", "flip", "noise_like", "step_generator", "translate"]


def step_generator(seed: int, stream: str, step: int) -> torch.Generator:
    """A CPU generator for one purpose (``stream``) at one position (``step``).

    >>> a, b = step_generator(0, "noise", 7), step_generator(0, "noise", 7)
    >>> torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
    True
    """
    digest = hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()
    # Consecutive seeds give related states in some generators; a hash has no neighbours.
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def translate(images: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Shift image i of N×C×H×W by dx[i] pixels to the right and dy[i] down, filled with 0 (S4.1).

    ``dx`` and ``dy`` are int64 of shape N, negative for left and up.

    >>> image = torch.tensor([[[[1, 2], [3, 4]]]])
    >>> translate(image, torch.tensor([1]), torch.tensor([0])).tolist()
    [[[[0, 1], [0, 3]]]]
    """
    count, channels, height, width = images.shape
    # The source of each target row and column; those from outside are clamped, then blanked.
    rows = torch.arange(height, device=images.device) - dy[:, None]
    columns = torch.arange(width, device=images.device) - dx[:, None]
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    shifted = images[
        torch.arange(count, device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[None, :, None, None],
        rows.clamp(0, height - 1)[:, None, :, None],
        columns.clamp(0, width - 1)[:, None, None, :],
    ]
    return shifted * (inside_rows[:, None, :, None] & inside_columns[:, None, None, :])


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Mirror left and right the images of N×C×H×W where ``which`` (bool, shape N) says so.

    >>> flip(torch.tensor([[[[1, 2]]], [[[3, 4]]]]), torch.tensor([True, False])).tolist()
    [[[[2, 1]]], [[[3, 4]]]]
    """
    return torch.where(which[:, None, None, None], images.flip(3), images)


def noise_like(images: Tensor, generator: torch.Generator) -> Tensor:
    """One dequantisation sample (S4.1) in units of a level: float32 in [0, 1), shape of the images.

    It is drawn on the generator's device and moved to the images'.
    """
    drawn = torch.rand(images.shape, generator=generator, device=generator.device)
    return drawn.to(images.device)


@dataclass(frozen=True, eq=False)
class Batch:
    """The images of one training step, all on the device."""

    images: Tensor
    """uint8 B×C×H×W, augmented."""
    labels: Tensor | None
    """int64 B, or None where the dataset has no labels."""
    noise: Tensor
    """float32 B×C×H×W in [0, 1), in units of a level."""

    def part(self, number: int, parts: int) -> "Batch":
        """One of so many parts in a row, counted from 0; their sizes differ by one at most."""
        size = len(self.images)
        own = slice(size * number // parts, size * (number + 1) // parts)
        labels = None if self.labels is None else self.labels[own]
        return Batch(self.images[own], labels, self.noise[own])


class Batches:
    """The training batches of a dataset, by the number of the step.

    A pass goes through the images once in a random order, another in each pass, and drops the last
    incomplete batch (authors' code). ``translate`` is the largest shift in pixels, ``flip`` whether
    half of the images are mirrored. Raises UserError where there is not even one batch of images.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        translate: int,
        flip: bool,
        device: torch.device | str,
    ) -> None:
        count = len(images.pixels)
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        if count < batch_size:
            raise UserError(
                f"{images.name} {images.fold} has {count} images, fewer than one batch of "
                f"{batch_size}; lower batch_size or raise limit"
            )
        self.steps_per_pass = count // batch_size
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._seed = seed
        # Two datasets side by side, inliers and outliers, must not share their noise.
        self._stream = images.name
        self._translate = translate
        self._flip = flip
        self._pixels = images.pixels.to(device)
        self._labels = None if images.labels is None else images.labels.to(device)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def at(self, step: int) -> Batch:
        """The batch of one step, counted from 0 over all passes."""
        each_pass, position = divmod(step, self.steps_per_pass)
        start = position * self.batch_size
        chosen = self._permutation(each_pass)[start : start + self.batch_size]
        images = self._pixels[chosen]
        device = images.device
        generator = step_generator(self._seed, f"{self._stream}/batch", step)
        if self._translate:
            shifts = torch.randint(
                -self._translate,
                self._translate + 1,
                (2, self.batch_size),
                generator=generator,
            ).to(device)
            images = translate(images, shifts[0], shifts[1])
        if self._flip:
            which = torch.rand(self.batch_size, generator=generator) < 0.5
            images = flip(images, which.to(device))
        return Batch(
            images=images,
            labels=None if self._labels is None else self._labels[chosen],
            noise=noise_like(images, generator),
        )

    def _permutation(self, each_pass: int) -> Tensor:
        """The order of one pass; the last one asked for is kept."""
        if self._order[0] != each_pass:
            generator = step_generator(self._seed, f"{self._stream}/shuffle", each_pass)
            order = torch.randperm(len(self._pixels), generator=generator)
            self._order = (each_pass, order.to(self._pixels.device))
        return self._order[1]
