"""Whether scores differ: DeLong's variances and tests, combined over seeds; Holm; mean ranks.

A metric of K scores on the same images is an :class:`Estimate`: K values and what each image
contributes to their error. Means over outlier datasets and over seeds are means of both, so that
images which several numbers share make these dependent, as they are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range, t

from oodflow.evaluation.metrics import TRUE_POSITIVE_RATE

__all__ = [
    "Combined",
    "Estimate",
    "combine",
    "critical_difference",
    "delong",
    "friedman",
    "holm",
    "mean_estimate",
    "mean_ranks",
    "resampled",
]


@dataclass(frozen=True)
class Estimate:
    """K values of a metric, and the parts of their errors.

    ``errors`` maps a set of images, or the resamples, to K×N numbers that are independent of each
    other in the second place and of those of another set: the covariance of the values is the sum
    of E·Eᵀ.
    """

    values: np.ndarray
    errors: Mapping[str, np.ndarray]

    @property
    def covariance(self) -> np.ndarray:
        """K×K, over the images."""
        return sum((part @ part.T for part in self.errors.values()), np.zeros(()))


def delong(
    inliers: np.ndarray, outliers: np.ndarray, names: tuple[str, str] = ("in", "out")
) -> Estimate:
    """AUROCs of K scores with DeLong's covariance; ``inliers`` is K×n, ``outliers`` K×m.

    With the placements V_i = P(outlier < x_i) + P(outlier = x_i)/2 of the inliers, and W_j of the
    outliers likewise, the covariance is cov(V)/n + cov(W)/m (DeLong, DeLong and Clarke-Pearson,
    Biometrics 44, 1988), both from midranks in O(K n log n) (Sun and Xu, IEEE Signal Processing
    Letters 21, 2014). ``names`` are those of the two sets of images.

    >>> both = delong(np.array([[1.0, 3.0, 4.0]]), np.array([[0.0, 1.0]]))
    >>> both.values.round(4).tolist(), both.covariance.round(4).tolist()
    ([0.9167], [[0.0139]])
    """
    n, m = inliers.shape[1], outliers.shape[1]
    ranks = rankdata(np.concatenate([inliers, outliers], axis=1), axis=1)
    of_inliers = (ranks[:, :n] - rankdata(inliers, axis=1)) / m
    of_outliers = 1 - (ranks[:, n:] - rankdata(outliers, axis=1)) / n
    values = of_inliers.mean(axis=1)
    errors = {
        name: (each - values[:, None]) / math.sqrt(each.shape[1] * max(each.shape[1] - 1, 1))
        for name, each in zip(names, (of_inliers, of_outliers), strict=True)
    }
    return Estimate(values, errors)


def resampled(
    metric: str,
    inliers: np.ndarray,
    outliers: np.ndarray,
    in_counts: np.ndarray,
    out_counts: np.ndarray,
) -> dict[str, np.ndarray]:
    """The errors of an AUPR or FPR95 of K scores, K×n and K×m, from B resamples of the images.

    Counts say how often each image is drawn, B×n and B×m, as of
    :func:`oodflow.evaluation.bootstrap.resample_counts`.
    """
    name, _, side = metric.partition("_")
    if side == "out":
        inliers, outliers, in_counts, out_counts = -outliers, -inliers, out_counts, in_counts
    one = _fpr95s if name == "fpr95" else _auprs
    drawn = np.array(
        [one(*pair, in_counts, out_counts) for pair in zip(inliers, outliers, strict=True)]
    )
    spread = drawn - drawn.mean(axis=1, keepdims=True)
    return {"resamples": spread / math.sqrt(drawn.shape[1] - 1)}


def _accepted(
    inliers: np.ndarray, outliers: np.ndarray, in_counts: np.ndarray, out_counts: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Of the thresholds at the inliers, the highest first: what each accepts in each resample.

    The counts themselves B×n, those of inliers up to each B×n, and for each the place of the last
    equal one, n; those of outliers up to each place B×(m + 1), and the place of each threshold, n.
    """
    order, out_order = np.argsort(-inliers), np.argsort(-outliers)
    values, counts = -inliers[order], in_counts[:, order]
    wrong = np.zeros((len(out_counts), len(outliers) + 1), np.float32)
    # Whole numbers, exact in float32 below 2^24.
    np.cumsum(out_counts[:, out_order], axis=1, out=wrong[:, 1:])
    last = np.searchsorted(values, values, side="right") - 1
    places = np.searchsorted(-outliers[out_order], values, side="right")
    return counts, np.cumsum(counts, axis=1), last, wrong, places


def _fpr95s(*given: np.ndarray) -> np.ndarray:
    _, right, _, wrong, places = _accepted(*given)
    recall = right.astype(np.float64) / right[:, -1:]
    first = np.argmax(recall >= TRUE_POSITIVE_RATE, axis=1)
    return wrong[np.arange(len(wrong)), places[first]].astype(np.float64) / wrong[:, -1]


def _auprs(*given: np.ndarray) -> np.ndarray:
    counts, right, last, wrong, places = _accepted(*given)
    accepted = right[:, last]
    precision = accepted / np.maximum(accepted + wrong[:, places], 1)
    return np.einsum("bi,bi->b", counts, precision, dtype=np.float64) / right[:, -1]


def mean_estimate(parts: Sequence[Estimate]) -> Estimate:
    """The mean of estimates of the same scores, with the errors that they share."""
    names = dict.fromkeys(name for part in parts for name in part.errors)
    return Estimate(
        np.mean([part.values for part in parts], axis=0),
        {
            name: sum((part.errors[name] for part in parts if name in part.errors), np.zeros(()))
            / len(parts)
            for name in names
        },
    )


@dataclass(frozen=True)
class Combined:
    """Means over S seeds of K scores, with their covariances.

    The images and the seeds are two sources of error: the variance of a mean, or of a difference
    of two, is DeLong's of the means over the seeds, plus s²/S of the seeds' own values. Its degrees
    of freedom follow Satterthwaite, with S − 1 for the second part; one seed leaves the first.
    """

    values: np.ndarray
    """Seeds × K."""
    covariance: np.ndarray
    """K×K over the images, of the means over the seeds."""

    def interval(self, place: int, confidence: float = 0.95) -> tuple[float, float]:
        """Of one score's mean, within 0 … 1."""
        weights = np.zeros(self.values.shape[1])
        weights[place] = 1
        mean, error, freedom = self._contrast(weights)
        reach = float(t.ppf((1 + confidence) / 2, freedom)) * error
        return max(mean - reach, 0.0), min(mean + reach, 1.0)

    def p_value(self, first: int, second: int) -> float:
        """Two-sided, of the difference of two scores' means."""
        weights = np.zeros(self.values.shape[1])
        weights[first], weights[second] = 1, -1
        mean, error, freedom = self._contrast(weights)
        if error == 0:
            return float(mean == 0)
        return float(2 * t.sf(abs(mean) / error, freedom))

    def _contrast(self, weights: np.ndarray) -> tuple[float, float, float]:
        """Mean, standard error and degrees of freedom of a weighted sum of the scores."""
        per_seed = self.values @ weights
        images = max(float(weights @ self.covariance @ weights), 0.0)
        seeds = float(per_seed.var(ddof=1)) / len(per_seed) if len(per_seed) > 1 else 0.0
        freedom = (len(per_seed) - 1) * ((images + seeds) / seeds) ** 2 if seeds else math.inf
        return float(per_seed.mean()), math.sqrt(images + seeds), freedom


def combine(seeds: Sequence[Estimate]) -> Combined:
    """Estimates of the same scores, one a seed, all on the same images.

    The errors of the images are those of the seeds that have any.
    """
    together = mean_estimate([each for each in seeds if each.errors])
    return Combined(np.array([each.values for each in seeds]), together.covariance)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjusted p-values that keep the error of the family (Holm, Scand. J. Statistics 6, 1979).

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * np.take(p_values, order)), 1.0)
    return adjusted


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Mean over N places of the ranks of K methods, from N×K values; the highest has rank 1.

    >>> mean_ranks(np.array([[0.9, 0.8, 0.8], [0.7, 0.5, 0.6]])).tolist()
    [1.0, 2.75, 2.25]
    """
    return rankdata(-values, axis=1).mean(axis=0)


def critical_difference(methods: int, places: int, alpha: float = 0.05) -> float:
    """What mean ranks of two methods have to differ by (Nemenyi; Demšar, JMLR 7, 2006).

    q·√(k(k + 1)/(6N)) with q the studentised range's quantile for k methods, over √2.

    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    quantile = float(studentized_range.ppf(1 - alpha, methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * places))


def friedman(values: np.ndarray) -> float:
    """p-value of all K ≥ 3 methods having the same mean rank over N places, from N×K values."""
    return float(friedmanchisquare(*values.T).pvalue)
