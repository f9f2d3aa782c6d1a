"""Losses on log-likelihoods in nats per image: two that push outliers away (S4.4, S7.5).

Means are over the images of all processes of a training (oodflow.training.distributed).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from oodflow.experiment import Loss
from oodflow.training.distributed import mean

__all__ = [
    "binary_outlier_loss",
    "classifier_loss",
    "margin_outlier_loss",
    "outlier_loss",
    "wrong_class_loss",
]


def binary_outlier_loss(
    model_log_prob: Tensor, contrast_log_prob: Tensor, temperature: float, weight: float
) -> Tensor:
    """Mean over outlier images of −λ·log σ((log p_g(x) − log p_in(x))/T) (S4.4, Eq. S1).

    ``contrast_log_prob`` belongs to the frozen model p_g, of the same images with the same noise.

    >>> binary_outlier_loss(torch.zeros(2), torch.zeros(2), 1000.0, 6000.0).item() / 6000
    0.6931...
    """
    return -weight * mean(F.logsigmoid((contrast_log_prob - model_log_prob) / temperature))


def margin_outlier_loss(
    inlier_log_prob: Tensor, outlier_log_prob: Tensor, margin: float, weight: float
) -> Tensor:
    """Mean over pairs of relu(margin + nll_in − nll_out), nll in nats, nll_in detached (S7.5).

    >>> margin_outlier_loss(torch.tensor([-5.0]), torch.tensor([-7.0]), 3.0, 1.0).item()
    1.0
    """
    return weight * mean(F.relu(margin - inlier_log_prob.detach() + outlier_log_prob))


def wrong_class_loss(
    class_log_prob: Tensor, labels: Tensor, contrast_log_prob: Tensor, loss: Loss
) -> Tensor:
    """The binary loss of every image and wrong class, log p(x|wrong class) in place of log p_in.

    ``class_log_prob`` is N×classes, labels and ``contrast_log_prob`` are N. Averaged over all
    N·classes cells, those of the true class counting as 0 (authors' code).
    """
    gap = (contrast_log_prob[:, None] - class_log_prob) / loss.temperature
    cells = -loss.outlier_weight * F.logsigmoid(gap)
    classes = torch.arange(class_log_prob.shape[1], device=labels.device)
    true_class = labels[:, None] == classes
    return mean(cells.masked_fill(true_class, 0))


def classifier_loss(inlier_logits: Tensor, outlier_logits: Tensor) -> Tensor:
    """Mean binary cross-entropy in nats of in-distribution (1) against outliers (0) (S9).

    >>> classifier_loss(torch.zeros(2), torch.zeros(2)).item()
    0.6931...
    """
    return mean(F.softplus(torch.cat((-inlier_logits, outlier_logits))))


def outlier_loss(
    loss: Loss,
    inlier_log_prob: Tensor,
    outlier_log_prob: Tensor,
    contrast_log_prob: Tensor | None,
    dimensions: int,
) -> Tensor:
    """The loss that the experiment names; a margin of 0 means D, the dimensions (authors' code)."""
    if loss.outlier_loss == "binary":
        if contrast_log_prob is None:
            raise ValueError("the binary loss needs the contrast model's log-likelihoods")
        return binary_outlier_loss(
            outlier_log_prob, contrast_log_prob, loss.temperature, loss.outlier_weight
        )
    return margin_outlier_loss(
        inlier_log_prob, outlier_log_prob, loss.margin or float(dimensions), loss.outlier_weight
    )
