"""Detection metrics against their definitions, counted by hand."""

import math
import statistics

import numpy as np
import pytest

from oodflow.errors import UserError
from oodflow.evaluation.metrics import (
    aupr,
    aupr_out,
    auroc,
    detection_metrics,
    evaluate_scores,
    fpr95,
    fpr95_out,
    mean_std,
)


def pairwise_auroc(inliers, outliers):
    wins = sum((x > y) + 0.5 * (x == y) for x in inliers for y in outliers)
    return wins / (len(inliers) * len(outliers))


def threshold_fpr95(inliers, outliers):
    for threshold in sorted({*inliers, *outliers}, reverse=True):
        if 100 * sum(x >= threshold for x in inliers) >= 95 * len(inliers):
            return sum(y >= threshold for y in outliers) / len(outliers)
    raise AssertionError("the lowest threshold accepts everything")


def average_precision(inliers, outliers):
    total, recall_before = 0.0, 0.0
    for threshold in sorted({*inliers, *outliers}, reverse=True):
        hits = sum(x >= threshold for x in inliers)
        alarms = sum(y >= threshold for y in outliers)
        recall = hits / len(inliers)
        total += (recall - recall_before) * hits / (hits + alarms)
        recall_before = recall
    return total


def with_outliers_positive(metric):
    return lambda inliers, outliers: metric([-y for y in outliers], [-x for x in inliers])


REFERENCES = [
    (auroc, pairwise_auroc),
    (aupr, average_precision),
    (aupr_out, with_outliers_positive(average_precision)),
    (fpr95, threshold_fpr95),
    (fpr95_out, with_outliers_positive(threshold_fpr95)),
]


@pytest.mark.parametrize(("metric", "reference"), REFERENCES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("inliers", "outliers"), [(1, 1), (20, 33), (60, 7), (101, 100)])
def test_against_the_definition(metric, reference, ties, inliers, outliers):
    rng = np.random.default_rng([inliers, outliers, ties])
    for shift in (-1.0, 0.0, 0.7, 3.0):
        x, y = rng.normal(shift, 1, inliers), rng.normal(0, 2, outliers)
        if ties:
            x, y = x.round(), y.round()
        assert metric(x, y) == pytest.approx(reference(x.tolist(), y.tolist()), abs=1e-12)


def test_higher_means_more_in_distribution():
    found = detection_metrics([2.0, 3.0], [0.0, 1.0])
    assert found == {"auroc": 1.0, "aupr": 1.0, "aupr_out": 1.0, "fpr95": 0.0, "fpr95_out": 0.0}
    assert auroc([0.0, 1.0], [2.0, 3.0]) == 0.0
    assert fpr95([0.0, 1.0], [2.0, 3.0]) == 1.0


def test_fpr95_counts_exactly_95_percent_as_reached():
    inliers = np.arange(100.0, 120.0)
    assert fpr95(inliers, [100.5, 0.0]) == 0.0
    assert fpr95(inliers, [101.0, 0.0]) == 0.5


@pytest.mark.parametrize("metric", [auroc, aupr, aupr_out, fpr95, fpr95_out, detection_metrics])
@pytest.mark.parametrize(
    ("inliers", "outliers", "message"),
    [
        ([], [1.0], "the in-distribution scores have shape"),
        ([1.0], [], "the outlier scores have shape"),
        ([], [], "at least one score"),
        ([[1.0]], [1.0], r"shape \(1, 1\)"),
        ([1.0, math.nan], [1.0], "1 of 2 in-distribution scores are not finite"),
        ([1.0], [-math.inf, math.nan, 0.0], "2 of 3 outlier scores are not finite"),
    ],
)
def test_bad_scores_are_refused(metric, inliers, outliers, message):
    with pytest.raises(UserError, match=message):
        metric(inliers, outliers)


def test_evaluate_scores_names_and_values():
    rng = np.random.default_rng(0)
    inliers = {name: rng.normal(size=30) for name in ("raw", "diff")}
    outs = {
        ood: {name: rng.normal(size=20) for name in ("raw", "diff", "scale1")}
        for ood in ("svhn", "lsun")
    }
    metrics = evaluate_scores(inliers, outs)
    assert set(metrics) == {
        *(
            f"{metric}/{ood}/{score}"
            for metric in ("auroc", "aupr", "aupr_out", "fpr95", "fpr95_out")
            for ood in ("svhn", "lsun")
            for score in ("raw", "diff")
        ),
        "auroc/mean/raw",
        "auroc/mean/diff",
    }
    single = [pairwise_auroc(inliers["diff"], outs[ood]["diff"]) for ood in outs]
    assert metrics["auroc/lsun/diff"] == pytest.approx(single[1])
    assert metrics["auroc/mean/diff"] == pytest.approx(sum(single) / 2)
    assert metrics["fpr95/svhn/raw"] == fpr95(inliers["raw"], outs["svhn"]["raw"])
    assert all(type(value) is float for value in metrics.values())


def test_evaluate_scores_refuses_gaps():
    with pytest.raises(UserError, match="no outlier dataset"):
        evaluate_scores({"raw": np.ones(2)}, {})
    with pytest.raises(UserError, match="'svhn' has no score 'diff'"):
        evaluate_scores({"diff": np.ones(2)}, {"svhn": {"raw": np.ones(2)}})


def test_mean_std():
    values = [0.91, 0.95, 0.98, 0.90]
    mean, std = mean_std(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert std == pytest.approx(statistics.stdev(values))
    assert mean_std(iter([0.5]))[0] == 0.5 and math.isnan(mean_std([0.5])[1])
    with pytest.raises(UserError, match="no values"):
        mean_std([])
