"""Images mixed in frequency space: the amplitudes of one with the phases of another (S3).

The phases carry the content of an image, the amplitudes its low-level statistics. The likelihood of
a mixed image, compared with those of its two donors, shows which of them a model depends on.
"""

import torch
from torch import Tensor

from oodflow.errors import UserError

__all__ = ["derangement", "fourier_mix", "mix_spectra"]

NO_PHASE = 1e-6
"""Below this a Fourier coefficient of an 8-bit image is rounding noise of a zero."""


def mix_spectra(amplitude: Tensor, phase: Tensor) -> Tensor:
    """The real part of F⁻¹(|F(a)| · F(p) / |F(p)|), F the 2-D Fourier transform of a channel.

    Takes N×C×H×W of any real type, returns float64 of that shape. Where p has no phase, since
    F(p) = 0, it is 0. The result has the amplitudes |F(a)|.

    >>> flat = torch.full((1, 1, 2, 2), 7)
    >>> mix_spectra(flat, torch.tensor([[[[9, 1], [0, 0]]]])).flatten().tolist()
    [7.0, 7.0, 7.0, 7.0]
    """
    spectrum = torch.fft.fft2(phase.double())
    size = spectrum.abs()
    # In float64: float32 is off by 1e-4 levels, which can round to another level.
    direction = torch.where(size > NO_PHASE, spectrum / size, 1.0)
    return torch.fft.ifft2(torch.fft.fft2(amplitude.double()).abs() * direction).real


def fourier_mix(amplitude: Tensor, phase: Tensor) -> Tensor:
    """Amplitudes of the first image with the phases of the second, as an image (S3).

    Both are uint8 N×C×H×W, as is the result: :func:`mix_spectra`, clipped to 0 … 255 and rounded.
    An image mixed with itself is itself. Raises UserError for other types and unequal shapes.

    >>> image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    >>> torch.equal(fourier_mix(image, image), image)
    True
    """
    kinds = {amplitude.dtype, phase.dtype}
    if kinds != {torch.uint8} or amplitude.shape != phase.shape or amplitude.dim() != 4:
        raise UserError(
            "images are mixed as uint8 N×C×H×W of equal shape, but got "
            f"{amplitude.dtype} {tuple(amplitude.shape)} and {phase.dtype} {tuple(phase.shape)}"
        )
    return mix_spectra(amplitude, phase).clamp(0, 255).round().to(torch.uint8)


def derangement(count: int, generator: torch.Generator) -> Tensor:
    """A random order of 0 … count − 1 that leaves nothing in its place: int64 of shape count.

    All such orders are equally likely. Raises UserError for fewer than two, which have none.

    >>> derangement(2, torch.Generator().manual_seed(0)).tolist()
    [1, 0]
    """
    if count < 2:
        raise UserError(f"{count} image cannot be mixed with another; take at least 2")
    # One in e permutations is a derangement, whatever the count.
    while True:
        order = torch.randperm(count, generator=generator)
        if (order != torch.arange(count)).all():
            return order
