"""The promise of conformal p-values, simulated, and the arithmetic behind it."""

import math

import numpy as np
import pytest
from scipy import stats

from oodflow.detection.conformal import (
    allowed_rank,
    benjamini_hochberg,
    conformal_p_values,
    false_positive_interval,
    flagged_interval,
    folder_p_value,
    rank_allowed_by_fdr,
)
from oodflow.errors import UserError

SEEDS = 200


def flagged_shares(scores, alpha=0.05, calibration=199, inliers=4000):
    """Share of inliers with p ≤ α for each of 200 calibration sets; ``scores(rng, count)``."""
    shares = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        p = conformal_p_values(scores(rng, calibration), scores(rng, inliers))
        shares.append((p <= alpha).mean())
    return np.array(shares)


def standard_error(values):
    return values.std(ddof=1) / math.sqrt(len(values))


def test_the_false_positive_rate_is_the_promised_one_on_average_and_spreads_as_the_beta():
    shares = flagged_shares(lambda rng, count: rng.standard_normal(count))
    assert shares.mean() <= 0.05 + 3 * standard_error(shares)
    assert shares.mean() >= 0.05 - 3 * standard_error(shares)
    rank = allowed_rank(0.05, 199)
    law = stats.beta(rank, 200 - rank)
    assert stats.kstest(shares, law.cdf).pvalue > 0.01
    assert 0.85 < shares.std(ddof=1) / law.std() < 1.15
    low, high = false_positive_interval(0.05, 199)
    inside = ((shares >= low) & (shares <= high)).mean()
    assert 0.9 <= inside <= 0.99


def test_ties_keep_the_promise():
    shares = flagged_shares(lambda rng, count: rng.integers(0, 30, count))
    assert 0 < shares.mean() <= 0.05 + 3 * standard_error(shares)


@pytest.mark.parametrize("anomalies", [0, 20, 100])
def test_benjamini_hochberg_keeps_the_share_of_false_discoveries(anomalies):
    proportions, powers = [], []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        outliers = rng.standard_normal(anomalies) - 4
        scores = np.concatenate([rng.standard_normal(400), outliers])
        found = benjamini_hochberg(conformal_p_values(rng.standard_normal(2000), scores), 0.1)
        proportions.append(found[:400].sum() / max(found.sum(), 1))
        powers.append(found[400:].mean() if anomalies else 1.0)
    mean = np.mean(proportions)
    assert mean <= 0.1 + 3 * standard_error(np.array(proportions))
    if anomalies:
        assert mean <= 0.1
    assert np.mean(powers) > 0.8


@pytest.mark.parametrize("scores", ["continuous", "tied"])
def test_the_folder_test_is_level_correct(scores):
    def draw(rng, count):
        values = rng.standard_normal(count)
        return np.round(values) if scores == "tied" else values

    tails = []
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        p = conformal_p_values(draw(rng, 199), draw(rng, 150))
        tails.append(folder_p_value(int((p <= 0.05).sum()), 150, 0.05, 199))
    for level in (0.01, 0.05, 0.2):
        rejected = np.mean(np.array(tails) <= level)
        assert rejected <= level + 3 * math.sqrt(level * (1 - level) / 2000)
        if scores == "continuous":
            # Exact, not only valid: a number of images cannot have every tail probability.
            assert rejected >= 0.6 * level


def test_the_folder_test_is_the_sum_over_the_beta_binomial():
    n, m, alpha = 99, 30, 0.1
    rank = 10
    grid, step = np.linspace(0, 1, 200_001, retstep=True)
    tail = stats.binom.sf(4, m, grid) * stats.beta.pdf(grid, rank, n + 1 - rank)
    assert folder_p_value(5, m, alpha, n) == pytest.approx(tail.sum() * step, rel=1e-6)
    # Where one minus the rest would be rounding alone.
    assert 0 < folder_p_value(300, 2000, 0.01, 1999) < 1e-30


def test_p_values_count_ties_and_orders_do_not_matter():
    calibration = np.array([5.0, 1.0, 5.0, 3.0])
    p = conformal_p_values(calibration, [[0.0, 1.0], [5.0, 4.9]])
    np.testing.assert_array_equal(p, np.array([[1, 2], [5, 3]]) / 5)


def test_whole_numbers_are_not_rounded_down():
    """Every α of up to three decimals, whole where the fraction is; p ≤ α agrees in floats."""
    wrong = 0
    for thousandths in range(1, 1000):
        alpha = thousandths / 1000
        for n in (9, 99, 499, 999, 1999):
            if thousandths * (n + 1) < 1000:
                continue
            rank = thousandths * (n + 1) // 1000
            assert allowed_rank(alpha, n) == rank
            assert ((np.arange(1, n + 2) / (n + 1)) <= alpha).sum() == rank
            wrong += math.floor(alpha * (n + 1)) != rank
    assert wrong > 0, "no case left that plain arithmetic gets wrong"


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_rate_that_is_none_is_refused(alpha):
    with pytest.raises(UserError, match="between 0 and 1"):
        allowed_rank(alpha, 100)
    with pytest.raises(UserError, match="between 0 and 1"):
        benjamini_hochberg([0.5], alpha)


def test_too_small_a_rate_names_the_smallest_possible():
    with pytest.raises(UserError, match=r"the smallest possible is 1/500 = 0\.002"):
        false_positive_interval(0.001, 499)
    assert allowed_rank(1 / 500, 499) == 1


def test_scores_that_are_not_finite_and_empty_calibrations_are_refused():
    with pytest.raises(UserError, match="given score is not finite"):
        conformal_p_values([1.0], [math.nan])
    with pytest.raises(UserError, match="calibration score is not finite"):
        conformal_p_values([-math.inf], [1.0])
    with pytest.raises(UserError, match="no calibration scores"):
        conformal_p_values([], [1.0])


def test_the_histogram_chooses_what_scipy_chooses():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(5, 60))
        ranks = np.minimum(rng.geometric(rng.choice([0.05, 0.3]), int(rng.integers(1, 80))), n + 1)
        for rate in (0.05, 0.1, 0.2, 0.5):
            rank = rank_allowed_by_fdr(np.bincount(ranks, minlength=n + 2), rate)
            expected = benjamini_hochberg(ranks / (n + 1), rate)
            np.testing.assert_array_equal(ranks <= rank, expected)


def test_the_interval_of_a_measured_rate_holds_nineteen_of_twenty():
    low, high = flagged_interval(0.05, 499, 500)
    inside = []
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        p = conformal_p_values(rng.standard_normal(499), rng.standard_normal(500))
        inside.append(low <= (p <= 0.05).mean() <= high)
    assert 0.94 <= np.mean(inside) <= 0.98
