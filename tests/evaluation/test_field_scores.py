"""Scores of the field against other people's code, or formulas written out, on small tables."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from oodflow.evaluation.field_scores import statistics_of
from oodflow.evaluation.scores import CLIP, compute_scores

EXACT = {"rtol": 1e-9, "atol": 1e-9}
PARTS = [f"{part}{i}" for part in ("scale", "prior", "logdet") for i in (1, 2, 3)]


def table(count: int, seed: int, scales: int = 3, flow: bool = True) -> pd.DataFrame:
    """A score table of a model with so many scales, of random numbers."""
    rng = np.random.default_rng(seed)
    prior = rng.normal(-3000, 200, (count, scales))
    logdet = rng.normal(-2000, 300, (count, scales))
    columns = {"index": np.arange(count), "label": np.full(count, -1)}
    columns["log_prob"] = (prior + logdet).sum(axis=1)
    if scales > 1:
        columns |= {f"scale{i + 1}": each for i, each in enumerate((prior + logdet).T)}
    if flow:
        for name, part in (("prior", prior), ("logdet", logdet)):
            columns |= {f"{name}{i + 1}": each for i, each in enumerate(part.T)}
    return pd.DataFrame(columns)


def gradients(count: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    columns = {f"gradient/flow.{i}": rng.lognormal(5 + i, 1, count) for i in range(3)}
    return pd.DataFrame({"index": np.arange(count), "label": -1, **columns})


TEST, TRAIN = table(30, 1), table(50, 2)


def test_typicality_is_the_distance_from_the_mean_of_the_training_images():
    found = compute_scores(TEST, train=TRAIN)["typicality"]
    centre = math.fsum(TRAIN["log_prob"]) / 50
    expected = [-abs(value - centre) for value in TEST["log_prob"]]
    np.testing.assert_allclose(found, expected, **EXACT)


def test_waic_is_the_mean_less_the_sample_variance_over_all_seeds():
    others = (table(30, 3), table(30, 4))
    found = compute_scores(TEST, seeds=others)["waic"]
    for i in range(30):
        values = [float(each["log_prob"][i]) for each in (TEST, *others)]
        mean = sum(values) / 3
        expected = mean - sum((value - mean) ** 2 for value in values) / 2
        assert found[i] == pytest.approx(expected, rel=1e-9)


def test_with_one_seed_there_is_no_waic():
    assert "waic" not in compute_scores(TEST, train=TRAIN, seeds=())


def test_complexity_adds_the_bits_of_the_shortest_file():
    bits = np.random.default_rng(5).integers(4000, 9000, 30)
    file = pd.DataFrame({"index": np.arange(30), "label": -1, "log_prob": -bits * math.log(2)})
    found = compute_scores(TEST, compressor=file)["complexity"]
    expected = [value + n * math.log(2) for value, n in zip(TEST["log_prob"], bits, strict=True)]
    np.testing.assert_allclose(found, expected, **EXACT)


def test_dose_is_the_sum_of_kernel_densities_of_scott():
    found = compute_scores(TEST, train=TRAIN)["dose"]
    total = np.zeros(30)
    for name in PARTS:
        width = TRAIN[name].std(ddof=1) * 50 ** (-1 / 5)
        kernel = KernelDensity(bandwidth=width, rtol=1e-12).fit(TRAIN[[name]].to_numpy())
        total += kernel.score_samples(TEST[[name]].to_numpy())
    np.testing.assert_allclose(found, total, **EXACT)


def test_dose_svm_is_the_one_class_svm_of_standardised_statistics():
    found = compute_scores(TEST, train=TRAIN)["dose_svm"]
    machine = make_pipeline(StandardScaler(), OneClassSVM(nu=0.5, gamma=1 / 9))
    expected = machine.fit(TRAIN[PARTS].to_numpy()).decision_function(TEST[PARTS].to_numpy())
    np.testing.assert_allclose(found, expected, **EXACT)


def test_gradient_is_the_normal_density_of_the_layers_log_norms():
    own, train = gradients(30, 6), gradients(50, 7)
    found = compute_scores(TEST, gradient=own, train_gradient=train)["gradient"]
    expected = np.zeros(30)
    for name in own.columns[2:]:
        known = np.log(train[name])
        expected += norm(known.mean(), known.std(ddof=1)).logpdf(np.log(own[name]))
    np.testing.assert_allclose(found, expected, **EXACT)


@pytest.mark.parametrize(
    ("scales", "flow", "expected"),
    [
        (3, True, PARTS),
        (1, True, ["log_prob", "prior1", "logdet1"]),
        (3, False, PARTS[:3]),
        (1, False, ["log_prob"]),
    ],
)
def test_a_model_without_scales_or_latents_has_fewer_statistics(scales, flow, expected):
    tables = table(9, 1, scales, flow), table(9, 2, scales, flow)
    assert list(statistics_of(*tables)) == expected
    assert np.isfinite(compute_scores(tables[0], train=tables[1])["dose"]).all()


def test_tables_made_before_have_the_statistics_that_both_have():
    before = table(9, 1, flow=False)
    assert list(statistics_of(before, table(9, 2))) == PARTS[:3]


def test_a_statistic_that_does_not_vary_in_training_is_left_out():
    train = TRAIN.assign(logdet2=-2000 + 1e-7 * np.arange(50))
    assert "logdet2" not in statistics_of(TEST, train)
    assert np.isfinite(compute_scores(TEST, train=train)["dose"]).all()


def test_infinities_of_any_table_leave_every_score_finite():
    """Images that a model gives no likelihood count as the least likely (S4.5)."""
    broken = {}
    for name, (size, seed) in {"test": (30, 1), "train": (50, 2), "other": (30, 3)}.items():
        broken[name] = table(size, seed)
        for row, value in enumerate((-math.inf, math.inf, math.nan)):
            broken[name].loc[row, ["log_prob", "scale2", "prior2", "logdet2"]] = value
    norms, train_norms = gradients(30, 6), gradients(50, 7)
    for each in (norms, train_norms):
        each.loc[:2, "gradient/flow.1"] = [0.0, math.inf, math.nan]
    scores = compute_scores(
        broken["test"],
        broken["other"],
        broken["other"],
        train=broken["train"],
        seeds=(broken["other"],),
        compressor=broken["other"],
        gradient=norms,
        train_gradient=train_norms,
    )
    assert len(scores) == 12
    for name, values in scores.items():
        assert np.isfinite(values).all(), name
    sound = broken["train"]["log_prob"][3:].mean()
    assert scores["typicality"][0] == pytest.approx(-abs(CLIP - sound))
    assert (scores["dose"][:3] < scores["dose"][3:].min()).all()
    assert (scores["gradient"][:3] < scores["gradient"][3:].min()).all()


def test_training_images_that_have_no_likelihood_count_for_no_fit():
    broken = TRAIN.copy()
    broken.loc[:4, ["log_prob", *PARTS]] = -math.inf
    found = compute_scores(TEST, train=broken)
    expected = compute_scores(TEST, train=TRAIN[5:])
    for name in ("typicality", "dose", "dose_svm"):
        np.testing.assert_array_equal(found[name], expected[name])
    none = compute_scores(TEST, train=TRAIN.assign(log_prob=math.nan, **dict.fromkeys(PARTS, -1.0)))
    assert np.isfinite(none["typicality"]).all() and np.isfinite(none["dose"]).all()


def test_what_is_fitted_does_not_depend_on_the_test_images():
    """Each image's score is the same whichever other test images there are."""
    tables = {"train": TRAIN, "train_gradient": gradients(50, 7)}
    whole = compute_scores(TEST, **tables, gradient=gradients(30, 6))
    part = compute_scores(TEST[:7], **tables, gradient=gradients(30, 6)[:7])
    assert {"typicality", "dose", "dose_svm", "gradient"} <= set(part)
    for name, values in part.items():
        np.testing.assert_allclose(values, whole[name][:7], rtol=1e-12)
