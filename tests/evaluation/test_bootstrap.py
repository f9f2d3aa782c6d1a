"""The bootstrap against scikit-learn's weighted AUROC, and its intervals against repetition."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from oodflow.evaluation import bootstrap
from oodflow.evaluation.bootstrap import bootstrap_auroc, resample_counts


def test_replicates_are_the_aurocs_of_the_images_drawn(monkeypatch):
    rng = np.random.default_rng(0)
    # Rounded scores tie often, within a set and between the two.
    inliers, outliers = rng.normal(0.5, 1, 60).round(1), rng.normal(0, 1, 45).round(1)
    counts = resample_counts("in", 60, 20), resample_counts("out", 45, 20)
    expected = [
        roc_auc_score(
            np.repeat([1, 0], [60, 45]), np.r_[inliers, outliers], sample_weight=np.r_[w, v]
        )
        for w, v in zip(*counts, strict=True)
    ]
    np.testing.assert_allclose(bootstrap_auroc(inliers, outliers, *counts), expected, rtol=1e-12)
    monkeypatch.setattr(bootstrap, "CHUNK", 100)
    np.testing.assert_allclose(bootstrap_auroc(inliers, outliers, *counts), expected, rtol=1e-12)


def test_draws_belong_to_the_images():
    one, two = resample_counts("a", 50, 4), resample_counts("b", 50, 4)
    assert (one == resample_counts("a", 50, 4)).all() and (one != two).any()
    assert (one.sum(axis=1) == 50).all() and (one >= 0).all()
    assert (one[0] != one[1]).any()


def test_the_spread_of_replicates_is_that_of_repeated_experiments():
    rng = np.random.default_rng(3)
    n, m = 300, 200

    def experiment() -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(1, 1, n), rng.normal(0, 1, m)

    truth = [roc_auc_score(np.repeat([1, 0], [n, m]), np.r_[experiment()]) for _ in range(400)]
    spreads = [
        bootstrap_auroc(*experiment(), resample_counts("x", n, 300), resample_counts("y", m, 300))
        for _ in range(10)
    ]
    mean_spread = np.mean([np.std(values, ddof=1) for values in spreads])
    assert mean_spread == pytest.approx(np.std(truth, ddof=1), rel=0.12)
