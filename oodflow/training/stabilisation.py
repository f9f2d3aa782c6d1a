"""Numerical stabilisation of training (S4.3): dropped images and skipped minibatches.

A true outlier has likelihood zero, so infinite log-likelihoods are expected under an outlier loss.
Nothing is clipped: images are dropped, minibatches and updates are skipped, and each is counted.
Several processes decide together, over the images of all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from oodflow.training.distributed import total

__all__ = ["MAX_DROPPED", "StableLogProbs", "all_finite", "not_finite", "stable_log_probs"]

MAX_DROPPED = 0.75
"""A minibatch that would lose more than this share of its images is skipped."""


@dataclass(frozen=True)
class StableLogProbs:
    """Log-likelihoods of each minibatch, which of its images are finite, and how many were dropped.

    With several processes, each has those of its own images; ``dropped`` counts the images of all.
    ``log_probs`` is None where the minibatches are to be skipped; ``finite`` holds a mask over
    each.
    """

    log_probs: tuple[Tensor, ...] | None
    finite: tuple[Tensor, ...]
    dropped: int


def stable_log_probs(
    log_prob: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    noise: Tensor,
    sizes: tuple[int, ...],
    contrast: Tensor | None = None,
    finite: Tensor | None = None,
) -> StableLogProbs:
    """log p of minibatches that share one pass, without the images that are not finite.

    ``sizes`` are those of the minibatches, each judged by itself. ``log_prob`` gives one value per
    image, or one per class. Without ``finite`` all images are taken as finite, nothing waits for
    the device, and the returned masks show whether that was right. An image must also be finite
    under ``contrast``, another model's log p of the last images.

    Where some are not, the caller passes the masks in, and the other images are computed again: an
    infinity makes the gradient of the whole batch undefined.
    """
    if finite is None:
        values = log_prob(images, noise)
        finite = values.isfinite().reshape(len(values), -1).all(1)
        if contrast is not None:
            finite[-len(contrast) :] &= contrast.isfinite()
        return StableLogProbs(values.split(sizes), finite.split(sizes), dropped=0)
    masks = finite.split(sizes)
    left = [int(mask.sum()) for mask in masks]
    counts = total(torch.tensor((sizes, left), device=finite.device)).tolist()
    dropped = sum(counts[0]) - sum(counts[1])
    if any(size - rest > MAX_DROPPED * size for size, rest in zip(*counts, strict=True)):
        return StableLogProbs(None, masks, dropped)
    if any(left):
        values = log_prob(images[finite], noise[finite])
    else:
        # The images left are all with other processes. Of a model's answer the shape alone is used.
        with torch.no_grad():
            values = log_prob(images[:1], noise[:1])[:0]
    return StableLogProbs(values.split(left), masks, dropped)


def all_finite(values: Tensor) -> Tensor:
    """Whether every number is finite, on the device: one pass that writes nothing.

    >>> others = 2.0, float("nan"), -float("inf")
    >>> [all_finite(torch.tensor([1.0, other])).item() for other in others]
    [True, False, False]
    """
    return torch.stack(torch.aminmax(values)).isfinite().all()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity.

    >>> not_finite({"weight": torch.ones(2), "bias": torch.tensor([0.0, float("nan")])})
    ['bias']
    """
    return [
        name
        for name, each in tensors.items()
        if each.numel() and each.is_floating_point() and not all_finite(each)
    ]
