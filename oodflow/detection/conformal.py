"""From scores to decisions with guaranteed error rates: conformal p-values and their use.

Bates, Candès, Lei, Romano, Sesia (2023), "Testing for outliers with conformal p-values", Annals of
Statistics 51(1), arXiv 2104.08279. Nothing here knows of images or models: s_1 … s_n are the scores
of n calibration images, in-distribution and not trained on, and higher means more in-distribution.

A false-positive rate α is meant as it is written: 0.05 is the fraction 1/20. As a binary number it
is not, and ⌊α(n + 1)⌋ would be one too low for α = 0.29 and n = 99.
"""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from oodflow.errors import UserError

__all__ = [
    "allowed_rank",
    "benjamini_hochberg",
    "conformal_p_values",
    "false_positive_interval",
    "flagged_interval",
    "folder_p_value",
    "rank_allowed_by_fdr",
    "smallest_alpha",
]

ROUNDING = 1e-12
"""Relative error that Benjamini–Hochberg's p-values may have from floating-point arithmetic."""


def conformal_p_values(calibration: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """p(x) = (1 + #{i: s_i ≤ s(x)}) / (n + 1), of the shape of ``scores``.

    For an inlier exchangeable with the calibration images P(p ≤ α) ≤ α, whatever the score; ties
    count as ≤, which keeps that true for scores that are not continuous (Bates et al., Eq. 3 with
    the sign of our scores). Lies in [1/(n + 1), 1]. Raises UserError where the calibration is
    empty, and where a value is not finite.

    >>> conformal_p_values([3.0, 1.0, 2.0], [0.0, 1.0, 2.5, 9.0]).tolist()
    [0.25, 0.5, 0.75, 1.0]
    """
    known = np.sort(np.asarray(calibration, dtype=np.float64), axis=None)
    asked = np.asarray(scores, dtype=np.float64)
    if known.size == 0:
        raise UserError("there are no calibration scores; calibrate with at least one image")
    for name, values in (("calibration", known), ("given", asked)):
        if not np.isfinite(values).all():
            raise UserError(
                f"a {name} score is not finite; replace non-finite log-likelihoods first (S4.5)"
            )
    return (1 + np.searchsorted(known, asked, side="right")) / (known.size + 1)


def smallest_alpha(calibration_size: int) -> float:
    """1/(n + 1), the smallest false-positive rate that n calibration images can promise.

    >>> smallest_alpha(99)
    0.01
    """
    return 1 / (calibration_size + 1)


def allowed_rank(alpha: float, calibration_size: int) -> int:
    """l = ⌊α(n + 1)⌋: anomalous are the images with 1 + #{i: s_i ≤ s(x)} ≤ l, that is p(x) ≤ α.

    Exact, see the module. The comparison p ≤ α of floating-point numbers agrees with it, since
    k/(n + 1) and α are each the double nearest to their fraction. Raises UserError where α is not
    between 0 and 1, and where it is below 1/(n + 1), so that nothing could ever be anomalous.

    >>> allowed_rank(0.29, 99), math.floor(0.29 * 100)
    (29, 28)
    """
    if not 0 < alpha < 1:
        raise UserError(f"alpha is {alpha}; the false-positive rate lies between 0 and 1")
    rank = math.floor(Fraction(repr(float(alpha))) * (calibration_size + 1))
    if rank == 0:
        raise UserError(
            f"alpha {alpha} is too small for {calibration_size} calibration images: the smallest "
            f"possible is 1/{calibration_size + 1} = {smallest_alpha(calibration_size):.3g}; "
            "choose a larger one, or calibrate with more images"
        )
    return rank


def false_positive_interval(
    alpha: float, calibration_size: int, level: float = 0.95
) -> tuple[float, float]:
    """Where the true false-positive rate lies with probability ``level`` over calibration sets.

    Given the calibration set the rate is F(s_(l)), l-th smallest of n, hence Beta(l, n + 1 − l)
    distributed for continuous scores, l = ⌊α(n + 1)⌋ (Bates et al., section 3); ties make it
    smaller. Central interval; raises UserError as :func:`allowed_rank` does.

    >>> low, high = false_positive_interval(0.05, 999)
    >>> round(low, 4), round(high, 4)
    (0.0374, 0.0643)
    """
    rank = allowed_rank(alpha, calibration_size)
    low, high = stats.beta.interval(level, rank, calibration_size + 1 - rank)
    return float(low), float(high)


def flagged_interval(
    alpha: float, calibration_size: int, images: int, level: float = 0.95
) -> tuple[float, float]:
    """Where the share flagged of ``images`` inliers lies with probability ``level`` or more.

    Beta-binomial(m, l, n + 1 − l) over m: chance in the calibration set and in these m images. A
    measured false-positive rate outside of it says that the two are not of one distribution.

    >>> flagged_interval(0.05, 499, 500)
    (0.026, 0.08)
    """
    rank = allowed_rank(alpha, calibration_size)
    law = stats.betabinom(images, rank, calibration_size + 1 - rank)
    low, high = law.interval(level)
    return float(low) / images, float(high) / images


def folder_p_value(flagged: int, images: int, alpha: float, calibration_size: int) -> float:
    """P(at least so many of m inliers are flagged): small where inliers alone do not explain it.

    The exact upper tail of Beta-binomial(m, l, n + 1 − l), the law of the number of inliers with
    p ≤ α given exchangeability; conservative with ties. It tests a whole folder, whatever the
    single images are. Raises UserError as :func:`allowed_rank` does.

    >>> folder_p_value(0, 100, 0.05, 999)
    1.0
    >>> round(folder_p_value(12, 100, 0.05, 999), 4)
    0.0065
    """
    rank = allowed_rank(alpha, calibration_size)
    if not 0 <= flagged <= images:
        raise UserError(f"{flagged} of {images} images cannot be anomalous")
    law = stats.betabinom(images, rank, calibration_size + 1 - rank)
    if flagged == 0:
        return 1.0
    # The tail itself is summed: one minus the rest would leave nothing below 1e-16.
    return min(float(law.pmf(np.arange(flagged, images + 1)).sum()), 1.0)


def benjamini_hochberg(p_values: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """Which of m images are anomalous at the false discovery rate ``rate``; shape N.

    Those with p ≤ p_(k), k the largest with p_(k) ≤ q·k/m. On conformal p-values, which share one
    calibration set, the expected share of inliers among them is at most q·(share of inliers)
    (Bates et al., Theorem 2: they are positively dependent as Benjamini and Hochberg need it).
    Raises UserError where the rate is not between 0 and 1.

    >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.5], 0.1).tolist()
    [True, True, True, False]
    """
    _check_rate(rate)
    values = np.asarray(p_values, dtype=np.float64)
    if values.size == 0:
        return np.zeros(0, dtype=bool)
    return stats.false_discovery_control(values, method="bh") <= rate * (1 + ROUNDING)


def rank_allowed_by_fdr(counts: ArrayLike, rate: float) -> int:
    """The same choice from a histogram, for more images than memory holds p-values of.

    ``counts[k]`` is the number of images with p = k/(n + 1), k = 0 … n + 1. Returns the largest k
    with k/(n + 1) ≤ q·#{p ≤ k/(n + 1)}/m, in whole numbers, or 0 where there is none: anomalous
    are the images with p ≤ k/(n + 1).

    >>> rank_allowed_by_fdr([0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 7], 0.5)
    1
    """
    _check_rate(rate)
    histogram = np.asarray(counts, dtype=np.int64)
    exact = Fraction(repr(float(rate)))
    images = int(histogram.sum())
    below = np.cumsum(histogram).tolist()
    last = len(histogram) - 1
    fitting = (
        k
        for k in np.flatnonzero(histogram)[::-1].tolist()
        if k * images * exact.denominator <= exact.numerator * below[k] * last
    )
    return next(fitting, 0)


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise UserError(f"the false discovery rate is {rate}; it lies between 0 and 1")
