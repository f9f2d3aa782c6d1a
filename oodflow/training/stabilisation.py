"""Numerical stabilisation of training (S4.3): what leaves a minibatch, and when one is skipped.

A true outlier has likelihood zero, so infinite log-likelihoods are expected under an outlier loss.
Nothing is clipped: images leave, minibatches and updates are skipped, and each is counted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["MAX_DROPPED", "StableLogProbs", "gradients_finite", "stable_log_probs"]

MAX_DROPPED = 0.75
"""A minibatch that would lose more than this share of its images is skipped."""


@dataclass(frozen=True)
class StableLogProbs:
    """Finite log-likelihoods of each minibatch, which images they belong to, and how many left.

    ``log_probs`` is None where the minibatches are to be skipped; ``kept`` holds a mask over each.
    """

    log_probs: tuple[Tensor, ...] | None
    kept: tuple[Tensor, ...]
    dropped: int


def stable_log_probs(
    log_prob: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    noise: Tensor,
    sizes: tuple[int, ...],
    contrast: Tensor | None = None,
) -> StableLogProbs:
    """log p of minibatches that share one pass, without the images that are not finite.

    ``sizes`` are those of the minibatches, each judged by itself. ``contrast`` holds another
    model's log p of the last images; those not finite under it leave too. ``log_prob`` gives one
    value an image, or one a class. Where images leave, the rest is computed again: an infinity
    makes the gradient of the whole batch undefined.
    """
    values = log_prob(images, noise)
    finite = values.isfinite().reshape(len(values), -1).all(1)
    if contrast is not None:
        finite[-len(contrast) :] &= contrast.isfinite()
    kept = finite.split(sizes)
    if bool(finite.all()):
        return StableLogProbs(values.split(sizes), kept, dropped=0)
    left = [int(mask.sum()) for mask in kept]
    dropped = sum(sizes) - sum(left)
    if any(size - rest > MAX_DROPPED * size for size, rest in zip(sizes, left, strict=True)):
        return StableLogProbs(None, kept, dropped)
    values = log_prob(images[finite], noise[finite])
    return StableLogProbs(values.split(left), kept, dropped)


def gradients_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether every gradient is finite: one reduction a tensor, one copy to the host in all."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all())
