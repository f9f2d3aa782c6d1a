"""How well a score separates in-distribution from outlier images: AUROC, AUPR, FPR at 95 % TPR.

In-distribution images are the positive class, a higher score means more in-distribution, and every
metric is a fraction (S5.1, S6). scikit-learn does the counting. The field also has outliers as the
positive class: those metrics end in ``_out``. The AUROC is the same either way.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from oodflow.errors import UserError

__all__ = [
    "METRICS",
    "TRUE_POSITIVE_RATE",
    "aupr",
    "aupr_out",
    "auroc",
    "detection_metrics",
    "evaluate_scores",
    "fpr95",
    "fpr95_out",
    "mean_std",
]

TRUE_POSITIVE_RATE = 0.95
"""Share of the positive images that must be found where FPR95 is read off."""


def _labelled(inliers: ArrayLike, outliers: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Truth (1 in-distribution, 0 outlier) and scores of both sets in a row, checked."""
    parts = []
    for name, values in (("in-distribution", inliers), ("outlier", outliers)):
        part = np.asarray(values, dtype=np.float64)
        if part.ndim != 1 or part.size == 0:
            raise UserError(
                f"the {name} scores have shape {part.shape}; "
                "a detection metric needs a list of at least one score of either kind"
            )
        bad = int(np.count_nonzero(~np.isfinite(part)))
        if bad:
            raise UserError(
                f"{bad} of {part.size} {name} scores are not finite; "
                "replace non-finite log-likelihoods first (S4.5)"
            )
        parts.append(part)
    truth = np.repeat([1, 0], [parts[0].size, parts[1].size])
    return truth, np.concatenate(parts)


def auroc(inliers: ArrayLike, outliers: ArrayLike) -> float:
    """P(in-distribution score > outlier score) + P(equal) / 2.

    A fraction, of two lists of scores (shape N and M). Raises UserError, as all metrics do,
    if a side is empty or holds a non-finite score.

    >>> auroc([1.0, 3.0], [0.0, 1.0])
    0.875
    """
    return float(roc_auc_score(*_labelled(inliers, outliers)))


def aupr(inliers: ArrayLike, outliers: ArrayLike) -> float:
    """Average precision Σ_n (R_n − R_{n−1}) P_n over the thresholds, in-distribution positive.

    A fraction, of two lists of scores (shape N and M). Raises UserError as :func:`auroc` does.

    >>> round(aupr([3.0, 1.0], [2.0]), 4)
    0.8333
    """
    return float(average_precision_score(*_labelled(inliers, outliers)))


def fpr95(inliers: ArrayLike, outliers: ArrayLike) -> float:
    """Share of outliers accepted at the highest threshold that accepts 95 % of the inliers.

    A score equal to the threshold is accepted; there is no interpolation between thresholds. A
    fraction, of two lists of scores (shape N and M). Raises UserError as :func:`auroc` does.

    >>> fpr95([5.0, 4.0], [4.5, 3.0])
    0.5
    """
    return _false_positives(*_labelled(inliers, outliers))


def _false_positives(truth: np.ndarray, scores: np.ndarray) -> float:
    # With intermediate points dropped, the first threshold at 95 % might be one of those missing.
    false_positives, true_positives, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(false_positives[np.argmax(true_positives >= TRUE_POSITIVE_RATE)])


def aupr_out(inliers: ArrayLike, outliers: ArrayLike) -> float:
    """:func:`aupr` with the outliers positive, those of the lowest scores first.

    >>> round(aupr_out([3.0, 1.0], [2.0]), 4)
    0.5
    """
    truth, scores = _labelled(inliers, outliers)
    return float(average_precision_score(1 - truth, -scores))


def fpr95_out(inliers: ArrayLike, outliers: ArrayLike) -> float:
    """Share of inliers rejected at the lowest threshold that rejects 95 % of the outliers.

    >>> fpr95_out([5.0, 4.0], [4.5, 3.0])
    0.5
    """
    truth, scores = _labelled(inliers, outliers)
    return _false_positives(1 - truth, -scores)


METRICS = {
    "auroc": auroc,
    "aupr": aupr,
    "aupr_out": aupr_out,
    "fpr95": fpr95,
    "fpr95_out": fpr95_out,
}
"""All by the names that they have in MLflow."""


def detection_metrics(inliers: ArrayLike, outliers: ArrayLike) -> dict[str, float]:
    """All of :data:`METRICS` by their names.

    >>> detection_metrics([1.0, 2.0], [-1.0, 0.0])
    {'auroc': 1.0, 'aupr': 1.0, 'aupr_out': 1.0, 'fpr95': 0.0, 'fpr95_out': 0.0}
    """
    return {name: metric(inliers, outliers) for name, metric in METRICS.items()}


def evaluate_scores(
    in_scores: Mapping[str, np.ndarray], out_scores: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Metrics of every score against every outlier dataset, under their names in MLflow.

    ``in_scores`` maps a score to its values on the in-distribution test fold, ``out_scores`` maps
    an outlier dataset to the same for that dataset. Returns ``auroc/<ood>/<score>``, and the other
    metrics likewise, and ``auroc/mean/<score>``, the mean over the outlier datasets. Raises
    UserError if there is no outlier dataset or one lacks a score.

    >>> ones, noughts = {"raw": np.ones(2)}, {"raw": np.zeros(2)}
    >>> metrics = evaluate_scores(ones, {"svhn": noughts, "lsun": ones})
    >>> metrics["auroc/svhn/raw"], metrics["auroc/lsun/raw"], metrics["auroc/mean/raw"]
    (1.0, 0.5, 0.75)
    """
    if not out_scores:
        raise UserError("there is no outlier dataset to compare with; name at least one")
    metrics: dict[str, float] = {}
    for score, inliers in in_scores.items():
        for ood, scores in out_scores.items():
            if score not in scores:
                raise UserError(f"outlier dataset {ood!r} has no score {score!r}; evaluate it too")
            for name, value in detection_metrics(inliers, scores[score]).items():
                metrics[f"{name}/{ood}/{score}"] = value
        per_ood = [metrics[f"auroc/{ood}/{score}"] for ood in out_scores]
        metrics[f"auroc/mean/{score}"] = math.fsum(per_ood) / len(per_ood)
    return metrics


def mean_std(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n − 1); the latter is NaN for a single value.

    >>> mean_std([1.0, 2.0, 3.0])
    (2.0, 1.0)
    >>> mean_std([0.5])
    (0.5, nan)
    """
    array = np.fromiter(values, dtype=np.float64)
    if array.size == 0:
        raise UserError("there are no values to average")
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else math.nan
