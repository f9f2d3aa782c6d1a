"""Scores of the field, as functions of arrays. Higher always means more in-distribution.

Log-likelihoods are in nats, per image. What is fitted is fitted to training images only; of those,
images whose statistics are not finite are left out, as training leaves them out (S4.3).
"""

import numpy as np
import pandas as pd
from scipy.stats import gaussian_kde, norm

__all__ = [
    "density_of_states",
    "density_of_states_svm",
    "gradient_density",
    "statistics_of",
    "typicality",
    "waic",
]

CONSTANT = 1e-6
"""A statistic whose deviation is this share of its size or less carries rounding errors only."""

PARTS = ("scale", "prior", "logdet")


def typicality(log_prob: np.ndarray, train_log_prob: np.ndarray) -> np.ndarray:
    """−|log p(x) − mean of log p over training images| (Nalisnick et al. 2019, arXiv:1906.02994).

    >>> typicality(np.array([-5.0, -2.0]), np.array([-3.0, -1.0, -np.inf])).tolist()
    [-3.0, -0.0]
    """
    known = train_log_prob[np.isfinite(train_log_prob)]
    return -np.abs(log_prob - (known.mean() if known.size else 0.0))


def waic(log_probs: np.ndarray) -> np.ndarray:
    """Mean over S ≥ 2 models of log p_s(x) − sample variance over them, from S×N numbers.

    Choi et al. 2018, arXiv:1810.01392; the variance has n − 1 as in the criterion's own estimate.

    >>> waic(np.array([[-5.0, -2.0], [-7.0, -2.0]])).tolist()
    [-8.0, -2.0]
    """
    return log_probs.mean(axis=0) - log_probs.var(axis=0, ddof=1)


def statistics_of(table: pd.DataFrame, train: pd.DataFrame) -> tuple[str, ...]:
    """The columns whose density over training images is that of the states of a model.

    log p(x), log p(z) and log|det| (arXiv:2006.09273), here one of each a scale, as far as both
    tables have them. Statistics that do not vary over the training images are left out.
    """
    common = [name for name in table.columns if name in train.columns]
    parts = [
        name
        for part in PARTS
        for name in common
        if name.startswith(part) and name.removeprefix(part).isdigit()
    ]
    names = parts if any(name.startswith("scale") for name in parts) else ["log_prob", *parts]
    values = _finite_rows(train[names].to_numpy())
    size = np.abs(values).max(axis=0, initial=0.0)
    varying = values.std(axis=0) > CONSTANT * size if len(values) > 1 else size < 0
    return tuple(np.array(names)[varying])


def density_of_states(statistics: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Σ_j log k_j(T_j(x)), k_j the Gaussian kernel density of statistic j over training images.

    Statistics are N×J, of training images M×J. Bandwidths are by Scott's rule, M^(−1/5) standard
    deviations (Morningstar et al. 2021, arXiv:2006.09273).
    """
    densities = [gaussian_kde(column) for column in _finite_rows(train).T]
    return np.sum(
        [density.logpdf(values) for density, values in zip(densities, statistics.T, strict=True)],
        axis=0,
    )


def density_of_states_svm(statistics: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The one-class SVM of the standardised statistics, in place of kernel densities.

    Its decision function with a Gaussian kernel and scikit-learn's parameters, ν = 0.5 and
    γ = 1/J (arXiv:2006.09273).
    """
    # A detector that is served does without it.
    from sklearn.svm import OneClassSVM

    known = _finite_rows(train)
    mean, std = known.mean(axis=0), known.std(axis=0)
    machine = OneClassSVM(gamma="scale").fit((known - mean) / std)
    return machine.decision_function((statistics - mean) / std)


def gradient_density(squares: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Σ_l log N(log ‖∇_l log p(x)‖²) over layers l (Dauncey et al. 2024, arXiv:2403.01485).

    Squared norms are N×L, of training images M×L; mean and sample deviation of each layer's log
    norm are those of the training images. Layers whose norms do not vary there, such as those of
    no gradient, are left out. A norm that is 0 or not finite counts as the smallest number.
    """
    smallest = np.finfo(np.float64).tiny

    def logs(values: np.ndarray) -> np.ndarray:
        return np.log(np.where(np.isfinite(values), np.maximum(values, smallest), smallest))

    known = logs(_finite_rows(train))
    mean, std = known.mean(axis=0), known.std(axis=0, ddof=1)
    varying = std > CONSTANT * np.maximum(np.abs(mean), 1.0)
    return norm.logpdf(logs(squares)[:, varying], mean[varying], std[varying]).sum(axis=1)


def _finite_rows(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values).all(axis=1)]
