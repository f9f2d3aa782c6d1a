"""The objective of an update: likelihood, class likelihood or classification, with outliers.

Each objective runs the model once over the in-distribution and the outlier images together: no
layer but the classifier's batch normalisation mixes images, so the numbers are those of two passes.
With several processes, each computes its share of the images and of every mean
(:mod:`oodflow.training.distributed`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oodflow.data.batches import Batch
from oodflow.experiment import Experiment, Loss
from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.likelihood import LikelihoodModel
from oodflow.models.wide_resnet import WideResNet
from oodflow.training.distributed import mean
from oodflow.training.losses import classifier_loss, outlier_loss, wrong_class_loss
from oodflow.training.stabilisation import StableLogProbs, stable_log_probs

__all__ = ["BatchLoss", "joint", "objective"]


@dataclass(frozen=True)
class BatchLoss:
    """The loss to minimise, or None where S4.3 skips the batch, and its parts for the reports."""

    loss: Tensor | None
    dropped: int
    finite: Tensor | None = None
    """Which images have a finite likelihood, inliers then outliers; None from a classifier."""
    log_prob: Tensor | None = None
    """log p(x) of the in-distribution images kept; None from a classifier."""
    outlier_loss: Tensor | None = None


def objective(
    experiment: Experiment,
    model: LikelihoodModel,
    contrast: LikelihoodModel | None,
    inliers: Batch,
    outliers: Batch | None,
    finite: Tensor | None = None,
) -> BatchLoss:
    """The objective of one update in nats: mean −log p of the inliers plus what the loss adds.

    It is computed over all images as if all likelihoods were finite, and never waits for the
    device. If the outcome's ``finite`` shows otherwise, pass it in: then the images that are not
    finite are dropped (S4.3).
    """
    if isinstance(model, WideResNet):
        return _classification(model, inliers, outliers)
    if isinstance(model, ClassConditionalGlow):
        return _class_likelihood(experiment.loss, model, contrast, inliers, outliers, finite)
    return _likelihood(experiment.loss, model, contrast, inliers, outliers, finite)


def joint(outcomes: Sequence[BatchLoss]) -> BatchLoss:
    """The loss of a minibatch from the losses of its equal parts, none of which dropped images."""
    losses, inliers, outliers, log_probs, terms = [], [], [], [], []
    for each in outcomes:
        if each.loss is None or each.finite is None or each.log_prob is None:
            raise ValueError("a minibatch that is skipped or classified is not made of parts")
        losses.append(each.loss.detach())
        log_probs.append(each.log_prob.detach())
        # The mask has the part's inliers, as many as likelihoods, and then its outliers.
        inliers.append(each.finite[: len(each.log_prob)])
        outliers.append(each.finite[len(each.log_prob) :])
        if each.outlier_loss is not None:
            terms.append(each.outlier_loss.detach())
    return BatchLoss(
        loss=torch.stack(losses).mean(),
        dropped=0,
        finite=torch.cat((*inliers, *outliers)),
        log_prob=torch.cat(log_probs),
        outlier_loss=torch.stack(terms).mean() if terms else None,
    )


def _stable(
    log_prob: Callable[[Tensor, Tensor], Tensor],
    contrast: LikelihoodModel | None,
    inliers: Batch,
    outliers: Batch | None,
    finite: Tensor | None,
    contrast_inliers: bool,
) -> tuple[StableLogProbs, list[Tensor]]:
    """Stable log p of the minibatches, and the frozen model's on the images kept, a minibatch each.

    The frozen model scores the outliers, and the inliers too where the loss asks for it; what it
    did not score is empty.
    """
    batches = [inliers] if outliers is None else [inliers, outliers]
    images = torch.cat([batch.images for batch in batches])
    noise = torch.cat([batch.noise for batch in batches])
    sizes = [len(batch.images) for batch in batches]
    scored_sizes = [0 if contrast is None else size for size in sizes]
    if not contrast_inliers:
        scored_sizes[0] = 0
    scored = None
    if contrast is not None:
        first = len(images) - sum(scored_sizes)
        with torch.inference_mode():
            scored = contrast.log_prob(images[first:], noise[first:])
        # A new tensor: autograd cannot use one that was made in inference mode.
        scored = scored.clone()
    stable = stable_log_probs(log_prob, images, noise, tuple(sizes), scored, finite)
    contrasts = list((noise.new_empty(0) if scored is None else scored).split(scored_sizes))
    if stable.dropped:
        pairs = zip(contrasts, stable.finite, strict=True)
        contrasts = [part[kept] if len(part) else part for part, kept in pairs]
    return stable, contrasts


def _likelihood(
    loss: Loss,
    model: LikelihoodModel,
    contrast: LikelihoodModel | None,
    inliers: Batch,
    outliers: Batch | None,
    finite: Tensor | None,
) -> BatchLoss:
    stable, contrasts = _stable(model.log_prob, contrast, inliers, outliers, finite, False)
    finite = torch.cat(stable.finite)
    if stable.log_probs is None:
        return BatchLoss(None, stable.dropped, finite)
    inlier = stable.log_probs[0]
    if outliers is None:
        return BatchLoss(-mean(inlier), stable.dropped, finite, inlier)
    term = _outlier_term(loss, model, stable, inlier, stable.log_probs[1], contrasts[1])
    return BatchLoss(-mean(inlier) + term, stable.dropped, finite, inlier, term)


def _class_likelihood(
    loss: Loss,
    model: ClassConditionalGlow,
    contrast: LikelihoodModel | None,
    inliers: Batch,
    outliers: Batch | None,
    finite: Tensor | None,
) -> BatchLoss:
    """Likelihood of the true class, wrong classes pushed away, outliers by the unlabelled one."""
    if inliers.labels is None or contrast is None:
        raise ValueError("supervised training needs labels and a frozen general model")
    stable, contrasts = _stable(model.class_log_probs, contrast, inliers, outliers, finite, True)
    finite = torch.cat(stable.finite)
    if stable.log_probs is None:
        return BatchLoss(None, stable.dropped, finite)
    per_class = stable.log_probs[0]
    labels = inliers.labels[stable.finite[0]] if stable.dropped else inliers.labels
    true_class = per_class.gather(1, labels[:, None]).squeeze(1)
    term = wrong_class_loss(per_class, labels, contrasts[0], loss)
    inlier = _unlabelled(per_class)
    if outliers is not None:
        outlier = _unlabelled(stable.log_probs[1])
        term = term + _outlier_term(loss, model, stable, inlier, outlier, contrasts[1])
    return BatchLoss(-mean(true_class) + term, stable.dropped, finite, inlier, term)


def _unlabelled(per_class: Tensor) -> Tensor:
    return per_class.logsumexp(1) - math.log(per_class.shape[1])


def _outlier_term(
    loss: Loss,
    model: LikelihoodModel,
    stable: StableLogProbs,
    inlier: Tensor,
    outlier: Tensor,
    contrast: Tensor,
) -> Tensor:
    """The outlier loss; the margin loss over those pairs of which both images were kept."""
    if loss.outlier_loss == "margin" and stable.dropped:
        inlier_kept, outlier_kept = stable.finite
        pairs = inlier_kept & outlier_kept
        inlier, outlier = inlier[pairs[inlier_kept]], outlier[pairs[outlier_kept]]
    dimensions = math.prod(model.image_shape)
    given = contrast if len(contrast) == len(outlier) else None
    return outlier_loss(loss, inlier, outlier, given, dimensions)


def _classification(model: WideResNet, inliers: Batch, outliers: Batch | None) -> BatchLoss:
    if outliers is None:
        raise ValueError("the classifier needs outliers as its other class")
    logits = model.logits(torch.cat((inliers.images, outliers.images)))
    inlier, outlier = logits.split((len(inliers.images), len(outliers.images)))
    loss = classifier_loss(inlier, outlier)
    return BatchLoss(loss, 0, outlier_loss=loss)
