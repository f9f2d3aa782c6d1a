"""Bootstrap of the AUROC: how far it depends on which images happened to be in the test folds.

A replicate draws as many in-distribution and as many outlier images as there are, with replacement,
and takes their AUROC. The draws belong to the images, not to the scores: replicate b of every
score, seed and model uses the same images, so that a mean of AUROCs has as its replicates the means
of theirs (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
"""

import zlib

import numpy as np

__all__ = ["bootstrap_auroc", "resample_counts"]

CHUNK = 4_000_000
"""Elements that are worked on at a time, for constant memory."""


def resample_counts(images: str, count: int, replicates: int) -> np.ndarray:
    """How often each of ``count`` images is drawn in each replicate: float32, replicates × count.

    ``images`` names the set of images, such as by its digest; the same name gives the same draws.

    >>> resample_counts("cifar10", 4, 3).sum(axis=1).tolist()
    [4.0, 4.0, 4.0]
    """
    generator = np.random.default_rng(zlib.crc32(images.encode()))
    shares = np.full(count, 1 / count)
    return generator.multinomial(count, shares, size=replicates).astype(np.float32)


def bootstrap_auroc(
    inliers: np.ndarray, outliers: np.ndarray, in_counts: np.ndarray, out_counts: np.ndarray
) -> np.ndarray:
    """AUROC of each replicate, float64: P(in > out) + P(in = out) / 2 over the images drawn.

    Scores are 1-D of n in-distribution and m outlier images, counts replicates × n and replicates
    × m. With the images sorted by their scores once, a replicate costs O(n + m).

    >>> ones = np.ones((1, 2), np.float32)
    >>> bootstrap_auroc(np.array([1.0, 3.0]), np.array([0.0, 1.0]), ones, ones).tolist()
    [0.875]
    """
    order = np.argsort(inliers)
    ranked = inliers[order]
    # Images drawn among the k lowest, for k = 0 … n; whole numbers, exact in float32 below 2^24.
    below = np.zeros((len(in_counts), len(inliers) + 1), np.float32)
    np.cumsum(in_counts[:, order], axis=1, out=below[:, 1:])
    low = np.searchsorted(ranked, outliers, side="left")
    high = np.searchsorted(ranked, outliers, side="right")
    total = len(inliers) * len(outliers)
    step = max(CHUNK // len(outliers), 1)
    values = []
    for start in range(0, len(in_counts), step):
        part = below[start : start + step]
        beaten = len(inliers) - (part[:, low] + part[:, high]) / 2
        won = np.einsum("bj,bj->b", beaten, out_counts[start : start + step], dtype=np.float64)
        values.append(won / total)
    return np.concatenate(values)
