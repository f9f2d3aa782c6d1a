"""DeLong, Holm and mean ranks against counting, resampling and other people's numbers."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm, rankdata, ttest_1samp

from oodflow.evaluation.bootstrap import resample_counts
from oodflow.evaluation.comparison import (
    combine,
    critical_difference,
    delong,
    friedman,
    holm,
    mean_estimate,
    mean_ranks,
    resampled,
)
from oodflow.evaluation.metrics import METRICS


def paired_scores(rng, inliers=60, outliers=40, scores=2, shift=1.0, ties=False):
    """K×n and K×m: correlated scores of the same images."""
    sides = []
    for count, mean in ((inliers, shift), (outliers, 0.0)):
        shared = rng.normal(size=count)
        side = mean + 0.7 * shared + 0.7 * rng.normal(size=(scores, count))
        sides.append(side.round() if ties else side)
    return sides


@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_the_covariance_of_the_placements_counted_pair_by_pair(ties):
    inliers, outliers = paired_scores(np.random.default_rng(0), 23, 17, 3, ties=ties)
    won = (inliers[:, :, None] > outliers[:, None]) + 0.5 * (
        inliers[:, :, None] == outliers[:, None]
    )
    expected = np.cov(won.mean(axis=2)) / 23 + np.cov(won.mean(axis=1)) / 17
    found = delong(inliers, outliers)
    np.testing.assert_allclose(found.values, won.mean(axis=(1, 2)), atol=1e-12)
    np.testing.assert_allclose(found.covariance, expected, atol=1e-12)


def test_delong_agrees_with_a_brute_force_bootstrap_within_its_error():
    rng = np.random.default_rng(1)
    inliers, outliers = paired_scores(rng, 300, 200)
    replicates = 2000
    drawn = []
    for _ in range(replicates):
        i, j = rng.integers(300, size=300), rng.integers(200, size=200)
        ranks = rankdata(np.concatenate([inliers[:, i], outliers[:, j]], axis=1), axis=1)
        # The Mann-Whitney statistic, from the ranks of the inliers.
        drawn.append((ranks[:, :300].sum(axis=1) - 300 * 301 / 2) / (300 * 200))
    covariance = delong(inliers, outliers).covariance
    gap = np.array(drawn) @ [1, -1]
    contrast = np.array([1, -1]) @ covariance @ [1, -1]
    # A variance of B normal numbers has the relative error √(2/(B − 1)).
    error = 3 * math.sqrt(2 / (replicates - 1))
    for found, values in ((covariance[0, 0], np.array(drawn)[:, 0]), (contrast, gap)):
        # The bootstrap's own bias is 1/n.
        assert found == pytest.approx(values.var(ddof=1), rel=error + 1 / 200)


def test_the_paired_test_has_its_size():
    rng = np.random.default_rng(2)
    simulations = 1000
    rejected = 0
    for _ in range(simulations):
        pair = delong(*paired_scores(rng, 150, 120))
        rejected += combine([pair]).p_value(0, 1) < 0.05
    assert abs(rejected / simulations - 0.05) < 3 * math.sqrt(0.05 * 0.95 / simulations)


def test_intervals_hold_the_true_auroc_as_often_as_they_say():
    rng = np.random.default_rng(3)
    truth = norm.cdf(1 / math.sqrt(4 * 0.49))
    simulations = 1000
    held = 0
    for _ in range(simulations):
        low, high = combine([delong(*paired_scores(rng, 200, 200))]).interval(0)
        held += low <= truth <= high
    assert abs(held / simulations - 0.95) < 3 * math.sqrt(0.05 * 0.95 / simulations)


def test_equal_scores_cannot_be_told_apart_and_other_ones_can():
    inliers, outliers = paired_scores(np.random.default_rng(4), 200, 200, shift=2.0)
    same = combine([delong(inliers[[0, 0]], outliers[[0, 0]])])
    assert same.p_value(0, 1) == 1.0
    noise = np.random.default_rng(5).normal(size=(1, 200))
    other = combine([delong(np.vstack([inliers[:1], noise]), np.vstack([outliers[:1], noise]))])
    assert other.p_value(0, 1) < 1e-6


def test_seeds_add_their_spread_to_the_error_of_the_images():
    rng = np.random.default_rng(6)
    seeds = [delong(*paired_scores(rng, 5000, 5000, shift=shift)) for shift in (0.4, 1.0, 1.6)]
    both = combine(seeds)
    # With so many images the seeds alone count: then it is the t interval of three numbers.
    values = np.array([each.values[0] for each in seeds])
    expected = ttest_1samp(values, 0).confidence_interval()
    low, high = both.interval(0)
    assert low == pytest.approx(max(expected.low, 0), abs=0.01)
    assert high == pytest.approx(min(expected.high, 1), abs=0.01)
    alone = mean_estimate(seeds).covariance[0, 0]
    assert both.covariance[0, 0] == pytest.approx(alone)


def test_a_mean_over_outlier_datasets_shares_the_inliers():
    rng = np.random.default_rng(7)
    inliers, first = paired_scores(rng, 80, 50, 1)
    _, second = paired_scores(rng, 80, 30, 1)
    parts = [delong(inliers, first, ("a", "b")), delong(inliers, second, ("a", "c"))]
    won = [(inliers[0][:, None] > out[0]).astype(float) for out in (first, second)]
    placed = np.mean([each.mean(axis=1) for each in won], axis=0)
    expected = placed.var(ddof=1) / 80
    expected += sum(each.mean(axis=0).var(ddof=1) / each.shape[1] for each in won) / 4
    assert mean_estimate(parts).covariance[0, 0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "auroc"])
@pytest.mark.parametrize("ties", [False, True])
def test_other_metrics_have_the_errors_of_resampled_images(metric, ties):
    rng = np.random.default_rng(8)
    inliers, outliers = paired_scores(rng, 40, 30, 2, ties=ties)
    counts = (resample_counts("a", 40, 50), resample_counts("b", 30, 50))
    found = resampled(metric, inliers, outliers, *counts)["resamples"]
    replicates = []
    for i, j in zip(*counts, strict=True):
        drawn = [
            np.repeat(side, n.astype(int), axis=1) for side, n in ((inliers, i), (outliers, j))
        ]
        replicates.append([METRICS[metric](x, y) for x, y in zip(*drawn, strict=True)])
    # Precisions are in float32.
    np.testing.assert_allclose(found @ found.T, np.cov(np.transpose(replicates)), rtol=1e-5)


def test_holm_keeps_the_error_of_the_family():
    # By hand, of the definition: 4·0.005, 3·0.01, 2·0.03, then nothing below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    rng = np.random.default_rng(9)
    wrong = sum(holm(rng.uniform(size=10)).min() < 0.05 for _ in range(1000))
    assert wrong / 1000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_ranks_and_the_critical_difference_are_those_of_demsar():
    # Table 5 of Demšar (2006): two-tailed Nemenyi, q for 2, 5 and 10 classifiers.
    for methods, quantile in ((2, 1.960), (5, 2.728), (10, 3.164)):
        expected = quantile * math.sqrt(methods * (methods + 1) / (6 * 30))
        assert critical_difference(methods, 30) == pytest.approx(expected, abs=1e-3)
    values = np.array([[0.9, 0.8, 0.8], [0.5, 0.7, 0.6], [0.3, 0.2, 0.1]])
    ranks = [sorted(row, reverse=True).index(v) + 1 for row in values for v in row]
    by_hand = np.reshape(ranks, (3, 3)).astype(float)
    by_hand[0, 1:] = 2.5
    np.testing.assert_allclose(mean_ranks(values), by_hand.mean(axis=0))


def test_friedmans_p_value_is_that_of_all_orders():
    values = np.array([[3.0, 2, 1], [3, 2, 1], [3, 2, 1], [3, 1, 2], [2, 3, 1], [3, 2, 1]])
    orders = list(itertools.permutations([1, 2, 3]))

    def spread(rows):
        return np.sum((np.mean(rows, axis=0) - 2) ** 2)

    observed = spread(np.apply_along_axis(rankdata, 1, -values))
    rng = np.random.default_rng(10)
    drawn = [spread([orders[i] for i in rng.integers(6, size=len(values))]) for _ in range(4000)]
    exact = np.mean(np.array(drawn) >= observed - 1e-12)
    assert friedman(values) == pytest.approx(exact, abs=0.02)
